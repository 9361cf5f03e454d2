/* op_check.c - what a client may ask for, and what this program knows: see op.h.
 *
 * Every field of every operation is checked here against limits.h, with a text that names the field. Whether an operation is
 * possible in the directory as it stands (exists, absent, other store) is decided by apply alone. */
#include <inttypes.h>
#include <string.h>
#include "acl.h"
#include "name.h"
#include "op.h"
#include "op_check.h"

static int check_submessages(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *field, struct err *err)
{
    const char *at = (const char *)m + field->offset;
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        size_t n;
        ProtobufCMessage *const *sub;
        memcpy(&n, (const char *)m + field->quantifier_offset, sizeof n);
        memcpy(&sub, at, sizeof sub);
        for (size_t i = 0; i < n; i++) {
            int rc = op_unknown_check(sub[i], err);
            if (rc)
                return rc;
        }
        return 0;
    }
    ProtobufCMessage *sub;
    memcpy(&sub, at, sizeof sub);
    return sub ? op_unknown_check(sub, err) : 0;
}

static int check_enum(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *field, struct err *err)
{
    int value;
    memcpy(&value, (const char *)m + field->offset, sizeof value);
    if (!protobuf_c_enum_descriptor_get_value(field->descriptor, value))
        return err_set(err, RAFTDIR_EUNSUPPORTED, "%s.%s has the unknown value %d", m->descriptor->short_name, field->name, value);
    return 0;
}

int op_unknown_check(const ProtobufCMessage *m, struct err *err)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    if (m->n_unknown_fields)
        return err_set(err, RAFTDIR_EUNSUPPORTED, "%s has the unknown field %" PRIu32, d->short_name, m->unknown_fields[0].tag);
    if (d == &raftdir__log__op__descriptor && ((const Raftdir__Log__Op *)m)->op_case == RAFTDIR__LOG__OP__OP__NOT_SET)
        return err_set(err, RAFTDIR_EUNSUPPORTED, "Op has no operation that this version knows");
    for (unsigned i = 0; i < d->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &d->fields[i];
        if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
            uint32_t which;
            memcpy(&which, (const char *)m + field->quantifier_offset, sizeof which);
            if (which != field->id)
                continue;
        }
        int rc = 0;
        if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            rc = check_submessages(m, field, err);
        else if (field->type == PROTOBUF_C_TYPE_ENUM) /* none is repeated in log.proto */
            rc = check_enum(m, field, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* Printable 7-bit text without any of `without`. */
static int check_word(const char *what, const char *s, size_t len_max, const char *without, struct err *err)
{
    size_t len = strlen(s);
    if (len > len_max)
        return err_set(err, RAFTDIR_ETOOBIG, "%s has %zu bytes, more than %zu", what, len, len_max);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c < 0x20 || c >= 0x7F)
            return err_set(err, RAFTDIR_EINVAL, "%s has the byte 0x%02x at position %zu, which is not allowed", what, c, i);
        if (strchr(without, c))
            return err_set(err, RAFTDIR_EINVAL, "%s has '%c' at position %zu, which is not allowed", what, c, i);
    }
    return 0;
}

static int check_location(const Raftdir__Log__Location *l, struct err *err)
{
    if (!l->server[0])
        return err_set(err, RAFTDIR_EINVAL, "server is empty");
    int rc = check_word("server", l->server, SERVER_LEN_MAX, " !", err);
    return rc ? rc : check_word("partition", l->partition, PARTITION_LEN_MAX, " !", err);
}

static int check_name(const char *name, struct err *err)
{
    return name_check(name, strlen(name), err);
}

static int check_token(bool has, const ProtobufCBinaryData *token, struct err *err)
{
    if (has && (token->len == 0 || token->len > TOKEN_LEN_MAX))
        return err_set(err, token->len ? RAFTDIR_ETOOBIG : RAFTDIR_EINVAL, "token has %zu bytes; 1 to %d are allowed", token->len, TOKEN_LEN_MAX);
    return 0;
}

int op_mailbox_check(const Raftdir__Log__Mailbox *m, struct err *err)
{
    int rc = check_name(m->name, err);
    if (!rc && m->location)
        rc = check_location(m->location, err);
    if (!rc && m->acl)
        rc = acl_check(m->acl, strlen(m->acl), err);
    if (!rc && m->mbtype)
        rc = check_word("mbtype", m->mbtype, MBTYPE_LEN_MAX, " ", err);
    if (!rc && m->uniqueid)
        rc = check_word("uniqueid", m->uniqueid, UNIQUEID_LEN_MAX, " ", err);
    if (!rc && m->jmapid)
        rc = check_word("jmapid", m->jmapid, UNIQUEID_LEN_MAX, " ", err);
    if (!rc && m->legacy_specialuse)
        rc = check_word("legacy_specialuse", m->legacy_specialuse, SPECIALUSE_LEN_MAX, "", err);
    if (!rc && m->has_uidvalidity && m->uidvalidity > UINT32_MAX)
        rc = err_set(err, RAFTDIR_EINVAL, "uidvalidity %" PRIu64 " has more than 32 bits", m->uidvalidity);
    if (!rc && m->has_mtime && m->mtime > INT64_MAX)
        rc = err_set(err, RAFTDIR_EINVAL, "mtime %" PRIu64 " is no time", m->mtime);
    if (!rc && m->name_history && m->name_history[0]) {
        size_t len = strlen(m->name_history);
        if (len > NAME_HISTORY_LEN_MAX)
            rc = err_set(err, RAFTDIR_ETOOBIG, "name_history has %zu bytes, more than %d", len, NAME_HISTORY_LEN_MAX);
        else if (!op_json_array_ok(m->name_history, len))
            rc = err_set(err, RAFTDIR_EINVAL, "name_history is no compact JSON array");
    }
    return rc;
}

static int check_located_mailbox(const Raftdir__Log__Mailbox *m, struct err *err)
{
    int rc = op_mailbox_check(m, err);
    if (!rc && !m->location)
        rc = err_set(err, RAFTDIR_EINVAL, "mailbox has no location");
    return rc;
}

static int check_set_acl(const Raftdir__Log__SetAcl *op, struct err *err)
{
    int rc = check_name(op->name, err);
    if (rc)
        return rc;
    if (op->acl) {
        if (op->identifier || op->rights)
            return err_set(err, RAFTDIR_EINVAL, "SetAcl has both a whole ACL and one identifier's rights");
        return acl_check(op->acl, strlen(op->acl), err);
    }
    if (!op->identifier || !op->rights)
        return err_set(err, RAFTDIR_EINVAL, "SetAcl has neither an ACL nor an identifier with rights");
    /* On an empty ACL, only what is given can be wrong. */
    char buf[IDENTIFIER_LEN_MAX + 64];
    size_t len;
    return acl_modify("", 0, op->identifier, op->rights, buf, sizeof buf, &len, err);
}

static int check_rename(const Raftdir__Log__Rename *op, struct err *err)
{
    int rc = check_name(op->from, err);
    if (!rc)
        rc = check_name(op->to, err);
    if (!rc && op->location)
        rc = check_location(op->location, err);
    if (rc)
        return rc;
    if (strcmp(op->from, op->to) == 0 && !op->location)
        return err_set(err, RAFTDIR_EINVAL, "rename to the same name");
    if (op->has_subtree && op->subtree && strcmp(op->from, op->to) != 0 &&
        name_is_within(op->to, strlen(op->to), op->from, strlen(op->from)))
        return err_set(err, RAFTDIR_EINVAL, "a subtree can't be renamed into itself");
    return 0;
}

static int check_precondition(const Raftdir__Log__Precondition *p, struct err *err)
{
    if (p->condition == RAFTDIR__LOG__CONDITION__GENERATION && !p->has_generation)
        return err_set(err, RAFTDIR_EINVAL, "precondition on the generation has none");
    return p->name ? check_name(p->name, err) : 0;
}

static int check_op(const Raftdir__Log__Op *op, struct err *err)
{
    for (size_t i = 0; i < op->n_preconditions; i++) {
        int rc = check_precondition(op->preconditions[i], err);
        if (rc)
            return rc;
        if (!op->preconditions[i]->name && !op_name(op))
            return err_set(err, RAFTDIR_EINVAL, "precondition has no name and the operation is about none");
    }
    int rc;
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE:
        rc = check_name(op->reserve->name, err);
        if (!rc)
            rc = check_location(op->reserve->location, err);
        if (!rc)
            rc = check_token(op->reserve->has_token, &op->reserve->token, err);
        if (!rc && op->reserve->has_ttl_ms && op->reserve->ttl_ms > RESERVATION_TTL_MAX_MS)
            rc = err_set(err, RAFTDIR_ETOOBIG, "reservation for %" PRIu64 " ms, more than %llu", op->reserve->ttl_ms, RESERVATION_TTL_MAX_MS);
        return rc;
    case RAFTDIR__LOG__OP__OP_ACTIVATE:
        rc = check_located_mailbox(op->activate->mailbox, err);
        return rc ? rc : check_token(op->activate->has_token, &op->activate->token, err);
    case RAFTDIR__LOG__OP__OP_DEACTIVATE:
        rc = check_name(op->deactivate->name, err);
        if (!rc && op->deactivate->location)
            rc = check_location(op->deactivate->location, err);
        return rc ? rc : check_token(op->deactivate->has_token, &op->deactivate->token, err);
    case RAFTDIR__LOG__OP__OP_CREATE:
        rc = check_located_mailbox(op->create->mailbox, err);
        return rc ? rc : check_token(op->create->has_token, &op->create->token, err);
    case RAFTDIR__LOG__OP__OP_UPDATE:
        rc = op_mailbox_check(op->update->mailbox, err);
        if (!rc && op->update->mailbox->location)
            rc = err_set(err, RAFTDIR_EINVAL, "Update can't change the location");
        return rc;
    case RAFTDIR__LOG__OP__OP_SET_ACL: return check_set_acl(op->set_acl, err);
    case RAFTDIR__LOG__OP__OP_DELETE:
        rc = check_name(op->delete_->name, err);
        if (!rc && op->delete_->location)
            rc = check_location(op->delete_->location, err);
        return rc ? rc : check_token(op->delete_->has_token, &op->delete_->token, err);
    case RAFTDIR__LOG__OP__OP_RENAME: return check_rename(op->rename, err);
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN:
        rc = check_name(op->move_begin->name, err);
        return rc ? rc : check_location(op->move_begin->to, err);
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT: return check_name(op->move_commit->name, err);
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT: return check_name(op->move_abort->name, err);
    case RAFTDIR__LOG__OP__OP_PUT: return check_located_mailbox(op->put->mailbox, err);
    case RAFTDIR__LOG__OP__OP_NOOP: return 0;
    case RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL:
        if (op->set_feature_level->level == 0 || op->set_feature_level->level > FEATURE_LEVEL_MAX)
            return err_set(err, RAFTDIR_EUNSUPPORTED, "feature level %" PRIu32 " is unknown; this program knows 1 to %d", op->set_feature_level->level, FEATURE_LEVEL_MAX);
        return 0;
    default: return err_set(err, RAFTDIR_EUNSUPPORTED, "unknown operation %d", (int)op->op_case);
    }
}

/* The feature level that a cluster must have for an operation. Those of level 1 are the first release's: every cluster has them. */
static uint32_t op_feature_level(const Raftdir__Log__Op *op)
{
    switch (op->op_case) {
    default: return 1;
    }
}

int op_request_check(const Raftdir__Log__Request *req, uint32_t feature_level, struct err *err)
{
    if (req->op_id.len != OP_ID_LEN)
        return err_set(err, RAFTDIR_EINVAL, "operation id has %zu bytes, not %d", req->op_id.len, OP_ID_LEN);
    if (req->expires_ms == 0)
        return err_set(err, RAFTDIR_EINVAL, "request has no expiry");
    size_t identity_len = strlen(req->identity);
    if (identity_len == 0)
        return err_set(err, RAFTDIR_EINVAL, "request has no identity");
    if (identity_len > IDENTITY_LEN_MAX || (req->origin && strlen(req->origin) > IDENTITY_LEN_MAX))
        return err_set(err, RAFTDIR_ETOOBIG, "identity or origin has more than %d bytes", IDENTITY_LEN_MAX);
    if (!name_utf8_ok(req->identity, identity_len) || (req->origin && !name_utf8_ok(req->origin, strlen(req->origin))))
        return err_set(err, RAFTDIR_EINVAL, "identity or origin has a control character or is not UTF-8");
    if (req->n_ops == 0)
        return err_set(err, RAFTDIR_EINVAL, "request has no operation");
    if (req->n_ops > REQUEST_OPS_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "request has %zu operations, more than %d", req->n_ops, REQUEST_OPS_MAX);
    int rc = op_unknown_check(&req->base, err);
    if (rc)
        return rc;
    size_t len = raftdir__log__request__get_packed_size(req);
    if (len > REQUEST_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "request has %zu bytes, more than %u", len, REQUEST_LEN_MAX);
    for (size_t i = 0; i < req->n_ops; i++) {
        uint32_t needed = op_feature_level(req->ops[i]);
        if (needed > 1 && needed > feature_level)
            return err_set(err, RAFTDIR_EUNSUPPORTED, "operation %zu needs feature level %" PRIu32 "; the cluster has %" PRIu32, i + 1, needed, feature_level);
        rc = check_op(req->ops[i], err);
        if (rc) {
            if (req->n_ops > 1)
                err_wrap(err, "operation %zu", i + 1);
            return rc;
        }
    }
    return 0;
}
