/* apply_op.c - the operations on one mailbox: see proto/log.proto for what each means. Where it leaves something open:
 *
 * A reservation belongs to whoever has its token; without a token, to the store that it was made for.
 * RESERVE by its owner prolongs it. DEACTIVATE turns an active mailbox into a reservation without an end, which keeps its ids and
 * fields: nothing is forgotten because a backend died between two steps. DEACTIVATE of an ordinary reservation gives it up; of a deactivated
 * mailbox it changes nothing. A take-over overrides reservations as well.
 * `server!` means the mailbox's own store when that is on this server; and a mailbox whose partition isn't known (`server!`) takes a partition
 * of the same server when it is activated there. With any_partition all partitions of a server are one place: what is active on one of them, or reserved there
 * without a token, is the server's own.
 * A slot that isn't its store's active one (a replica) registers nothing: the same ACL and type again succeeds and changes nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "apply_internal.h"
#include "name.h"
#include "op.h"

int apply_load_key(struct apply_ctx *ctx, const uint8_t *key, size_t key_len, uint8_t *buf, struct apply_box *box)
{
    MDB_val v;
    if (box->key != key)
        memcpy(box->key, key, key_len);
    box->key_len = key_len;
    box->present = box->live = false;
    box->data = buf;
    box->len = 0;
    int rc = store_get(ctx->txn, TABLE_MAILBOX, key, key_len, &v, ctx->err);
    if (rc == RAFTDIR_ENOTFOUND)
        return 0;
    if (rc)
        return rc;
    if (v.mv_size > RECORD_LEN_MAX)
        return err_set(ctx->err, RAFTDIR_ECORRUPT, "mailbox record has %zu bytes", v.mv_size);
    memcpy(buf, v.mv_data, v.mv_size); /* LMDB's own is gone with the next write */
    rc = record_decode(key, key_len, buf, v.mv_size, &box->r, ctx->err);
    if (rc) {
        char name[NAME_KEY_LEN_MAX + 1];
        name_from_key(key, key_len, name);
        return err_wrap(ctx->err, "mailbox \"%s\"", name);
    }
    box->len = v.mv_size;
    box->present = true;
    box->live = !store_mailbox_expired(&box->r, ctx->txn->state.meta.log_time_ms);
    return 0;
}

int apply_load(struct apply_ctx *ctx, const char *name, struct apply_box *box)
{
    size_t len = name_to_key(name, strlen(name), box->key);
    return apply_load_key(ctx, box->key, len, ctx->old_buf, box);
}

/* RAFTDIR_ETOOBIG is the one error of a change that is an answer: the request as a whole is too big to be taken back. */
int apply_change(struct apply_ctx *ctx, const struct apply_box *box, const struct record *now, const void *data, size_t len)
{
    struct err *err = ctx->err;
    int rc = store_mailbox_change(ctx->txn, box->key, box->key_len, box->present ? &box->r : NULL, box->data, box->len, now, data, len, err);
    if (rc == RAFTDIR_ETOOBIG) {
        apply_refuse(ctx, rc, "%s", err->text);
        *err = (struct err){0};
        return APPLY_REFUSED;
    }
    return rc;
}

int apply_write(struct apply_ctx *ctx, const struct apply_box *box, struct record *now, enum store_event event, Raftdir__Log__OpResult *out)
{
    size_t len;
    if (box->live) {
        now->generation = box->r.generation;
        len = record_encode(box->key, box->key_len, now, ctx->new_buf);
        if (len == box->len && memcmp(ctx->new_buf, box->data, len) == 0)
            goto done;
    } else {
        now->id = ctx->txn->state.mailbox_id_max + 1;
    }
    now->generation = ctx->txn->state.meta.change_seq + 1;
    len = record_encode(box->key, box->key_len, now, ctx->new_buf);
    int rc = apply_change(ctx, box, now, ctx->new_buf, len);
    if (!rc)
        rc = store_feed_add(ctx->txn, event, box->key, box->key_len, now, NULL, 0, box->present ? &box->r : NULL, ctx->err);
    if (rc)
        return rc;
    ctx->txn->state.meta.change_seq++;
    if (!box->live)
        ctx->txn->state.mailbox_id_max++;
    out->changed++;
done:
    out->has_changed = out->has_generation = out->has_mailbox_id = true;
    out->generation = now->generation;
    out->mailbox_id = now->id;
    return 0;
}

int apply_remove(struct apply_ctx *ctx, const struct apply_box *box)
{
    int rc = apply_change(ctx, box, NULL, NULL, 0);
    if (!rc)
        ctx->txn->state.meta.change_seq++;
    return rc;
}

static struct store_str text_str(const char *s)
{
    return (struct store_str){s, strlen(s)};
}

int apply_locate(struct apply_ctx *ctx, const Raftdir__Log__Location *loc, const struct apply_box *box, uint64_t *store_id_r, bool *active_r)
{
    struct store_str server = text_str(loc->server), partition = text_str(loc->partition);
    *active_r = true;
    if (partition.len == 0 && box && box->live) {
        const struct record_store *place;
        int rc = store_place_get(ctx->txn, box->r.store_id, &place, ctx->err);
        if (rc)
            return rc;
        if (str_eq(place->slot[place->active].server, server)) {
            *store_id_r = box->r.store_id;
            return 0;
        }
    }
    int rc = store_place_find(ctx->txn, server, partition, store_id_r, active_r, ctx->err);
    if (rc != RAFTDIR_ENOTFOUND)
        return rc;
    *store_id_r = 0;
    return 0;
}

int apply_make_store(struct apply_ctx *ctx, const Raftdir__Log__Location *loc, uint64_t *store_id)
{
    if (*store_id)
        return 0;
    int rc = store_place_make(ctx->txn, text_str(loc->server), text_str(loc->partition), store_id, NULL, ctx->err);
    if (rc == RAFTDIR_ETOOBIG) {
        apply_refuse(ctx, rc, "%s", ctx->err->text);
        *ctx->err = (struct err){0};
        return APPLY_REFUSED;
    }
    return rc;
}

int apply_place_text(struct apply_ctx *ctx, uint64_t store_id, char text[APPLY_PLACE_TEXT_LEN])
{
    const struct record_store *place;
    int rc = store_place_get(ctx->txn, store_id, &place, ctx->err);
    if (rc)
        return rc;
    const struct record_slot *s = &place->slot[place->active];
    snprintf(text, APPLY_PLACE_TEXT_LEN, "%.*s!%.*s", (int)s->server.len, s->server.s, (int)s->partition.len, s->partition.s);
    return 0;
}

int apply_fence(struct apply_ctx *ctx, uint64_t store_id)
{
    if (!ctx->req->has_store_epoch)
        return 0;
    uint64_t epoch = 1; /* of a store that will be made */
    if (store_id) {
        const struct record_store *place;
        int rc = store_place_get(ctx->txn, store_id, &place, ctx->err);
        if (rc)
            return rc;
        epoch = place->epoch;
    }
    if (epoch != ctx->req->store_epoch)
        return apply_refuse(ctx, RAFTDIR_EFENCED, "the store has epoch %llu, the writer believes in %llu", (unsigned long long)epoch,
                            (unsigned long long)ctx->req->store_epoch);
    return 0;
}

int apply_token(struct apply_ctx *ctx, bool has, const ProtobufCBinaryData *token, uint8_t hash[RECORD_TOKEN_LEN], const uint8_t **hash_r)
{
    *hash_r = NULL;
    if (!has || token->len == 0)
        return 0;
    *hash_r = hash;
    return record_sha256(token->data, token->len, hash, ctx->err);
}

bool apply_owns(const struct apply_box *box, const uint8_t *token_hash, uint64_t store_id)
{
    struct store_str token = box->r.field[RECORD_TOKEN];
    if (token.len)
        return token_hash && token.len == RECORD_TOKEN_LEN && memcmp(token.s, token_hash, RECORD_TOKEN_LEN) == 0;
    return box->r.store_id == store_id;
}

static void set_text(struct store_str *field, const char *text, bool exact)
{
    if (text)
        *field = text_str(text);
    else if (exact)
        *field = (struct store_str){NULL, 0};
}

static void set_number(uint64_t *field, bool has, uint64_t value, bool exact)
{
    if (has || exact)
        *field = has ? value : 0;
}

/* What is present in m replaces what r has; exact: what is absent empties it. */
static void merge(struct record *r, const Raftdir__Log__Mailbox *m, bool exact)
{
    set_text(&r->field[RECORD_ACL], m->acl, exact);
    set_text(&r->field[RECORD_MBTYPE], m->mbtype, exact);
    set_text(&r->field[RECORD_UNIQUEID], m->uniqueid, exact);
    set_text(&r->field[RECORD_SPECIALUSE], m->legacy_specialuse, exact);
    set_text(&r->field[RECORD_JMAPID], m->jmapid, exact);
    /* An empty history has one form. */
    set_text(&r->field[RECORD_NAME_HISTORY], m->name_history && strcmp(m->name_history, "[]") == 0 ? "" : m->name_history, exact);
    set_number(&r->mtime, m->has_mtime, m->mtime, exact);
    set_number(&r->uidvalidity, m->has_uidvalidity, m->uidvalidity, exact);
    set_number(&r->createdmodseq, m->has_createdmodseq, m->createdmodseq, exact);
    set_number(&r->foldermodseq, m->has_foldermodseq, m->foldermodseq, exact);
}

/* The record to start from: the live one, or an empty one. */
static struct record base(const struct apply_box *box)
{
    struct record r = {0};
    return box->live ? box->r : r;
}

static void make_active(struct record *r)
{
    r->state = STORE_ACTIVE;
    r->reserved_until_ms = 0;
    r->field[RECORD_TOKEN] = (struct store_str){NULL, 0};
}

/* Is the mailbox on the server of loc, and at `server!`, or anywhere there with any_partition? */
static int at_server(struct apply_ctx *ctx, const struct apply_box *box, const Raftdir__Log__Location *loc, bool any_partition, bool *is_r)
{
    const struct record_store *place;
    int rc = store_place_get(ctx->txn, box->r.store_id, &place, ctx->err);
    if (rc)
        return rc;
    const struct record_slot *s = &place->slot[place->active];
    *is_r = str_eq(s->server, text_str(loc->server)) && (any_partition || (place->implicit && s->partition.len == 0));
    return 0;
}

/* May whoever has this token, or none, take the name that is reserved? */
static int may_take(struct apply_ctx *ctx, const struct apply_box *box, const uint8_t *token, uint64_t store_id, const Raftdir__Log__Location *loc, bool any_partition,
                    bool *may_r)
{
    *may_r = apply_owns(box, token, store_id);
    if (*may_r || !any_partition || box->r.field[RECORD_TOKEN].len)
        return 0;
    return at_server(ctx, box, loc, true, may_r);
}

static int refuse_passive(struct apply_ctx *ctx, uint64_t store_id, const Raftdir__Log__Location *loc)
{
    char place[APPLY_PLACE_TEXT_LEN];
    int rc = apply_place_text(ctx, store_id, place);
    if (rc)
        return rc;
    return apply_refuse(ctx, RAFTDIR_EOTHERSTORE, "%.64s!%.64s is a replica of a store whose active slot is %s", loc->server, loc->partition, place);
}

static int refuse_elsewhere(struct apply_ctx *ctx, int code, const struct apply_box *box, const char *name)
{
    char place[APPLY_PLACE_TEXT_LEN];
    int rc = apply_place_text(ctx, box->r.store_id, place);
    if (rc)
        return rc;
    return apply_refuse(ctx, code, "mailbox \"%.160s\" is active at %s", name, place);
}

static int refuse_reserved(struct apply_ctx *ctx, const struct apply_box *box, const char *name)
{
    char place[APPLY_PLACE_TEXT_LEN];
    int rc = apply_place_text(ctx, box->r.store_id, place);
    if (rc)
        return rc;
    return apply_refuse(ctx, RAFTDIR_ERESERVED, "the name \"%.160s\" is reserved at %s", name, place);
}

static int reserve(struct apply_ctx *ctx, const Raftdir__Log__Reserve *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    uint64_t store_id;
    bool active, own = false, any_partition = op->has_any_partition && op->any_partition;
    uint8_t hash[RECORD_TOKEN_LEN];
    const uint8_t *token;
    int rc = apply_load(ctx, op->name, &box);
    if (!rc)
        rc = apply_locate(ctx, op->location, &box, &store_id, &active);
    if (!rc)
        rc = apply_token(ctx, op->has_token, &op->token, hash, &token);
    if (!rc)
        rc = apply_fence(ctx, store_id);
    if (rc)
        return rc;
    if (box.live && box.r.state == STORE_ACTIVE) {
        rc = at_server(ctx, &box, op->location, any_partition, &own);
        if (rc)
            return rc;
        if (box.r.store_id != store_id && !own)
            return refuse_elsewhere(ctx, RAFTDIR_EEXIST, &box, op->name);
        struct record same = box.r;
        return apply_write(ctx, &box, &same, STORE_EVENT_CHANGED, out); /* tells generation and id, changes nothing */
    }
    if (!active)
        return refuse_passive(ctx, store_id, op->location);
    if (box.live) {
        rc = may_take(ctx, &box, token, store_id, op->location, any_partition, &own);
        if (rc)
            return rc;
        if (!own)
            return refuse_reserved(ctx, &box, op->name);
    }
    rc = apply_make_store(ctx, op->location, &store_id);
    if (rc)
        return rc;
    struct record now = base(&box);
    now.state = STORE_RESERVED;
    now.store_id = store_id;
    if (!box.live || now.reserved_until_ms) /* a deactivated mailbox stays without an end */
        now.reserved_until_ms = ctx->txn->state.meta.log_time_ms + (op->has_ttl_ms && op->ttl_ms ? op->ttl_ms : RESERVATION_TTL_DEFAULT_MS);
    if (token)
        now.field[RECORD_TOKEN] = (struct store_str){(const char *)token, RECORD_TOKEN_LEN};
    return apply_write(ctx, &box, &now, STORE_EVENT_RESERVED, out);
}

/* A replica's registration of what is there already. */
static bool is_same_again(const struct apply_box *box, const Raftdir__Log__Mailbox *m)
{
    return (!m->acl || str_eq(text_str(m->acl), box->r.field[RECORD_ACL])) &&
           (!m->mbtype || str_eq(text_str(m->mbtype), box->r.field[RECORD_MBTYPE]));
}

struct activation {
    const Raftdir__Log__Mailbox *mailbox;
    bool has_token;
    const ProtobufCBinaryData *token;
    bool take_over, any_partition;
    bool create; /* the name must be absent, or reserved for this */
};

static int activate(struct apply_ctx *ctx, const struct activation *a, Raftdir__Log__OpResult *out)
{
    const Raftdir__Log__Mailbox *m = a->mailbox;
    struct apply_box box;
    uint64_t store_id;
    bool active, own = false;
    uint8_t hash[RECORD_TOKEN_LEN];
    const uint8_t *token;
    int rc = apply_load(ctx, m->name, &box);
    if (!rc)
        rc = apply_locate(ctx, m->location, &box, &store_id, &active);
    if (!rc)
        rc = apply_token(ctx, a->has_token, a->token, hash, &token);
    if (!rc)
        rc = apply_fence(ctx, store_id);
    if (rc)
        return rc;
    if (box.live && box.r.state == STORE_ACTIVE) {
        if (a->create)
            return refuse_elsewhere(ctx, RAFTDIR_EEXIST, &box, m->name);
        if (box.r.store_id == store_id && !active && is_same_again(&box, m)) {
            struct record same = box.r;
            return apply_write(ctx, &box, &same, STORE_EVENT_CHANGED, out);
        }
        rc = at_server(ctx, &box, m->location, a->any_partition, &own);
        if (rc)
            return rc;
        if (box.r.store_id != store_id && !own && !a->take_over)
            return refuse_elsewhere(ctx, RAFTDIR_EOTHERSTORE, &box, m->name);
    } else if (box.live && !a->take_over) {
        rc = may_take(ctx, &box, token, store_id, m->location, a->any_partition, &own);
        if (rc)
            return rc;
        if (!own)
            return refuse_reserved(ctx, &box, m->name);
    }
    if (!active)
        return refuse_passive(ctx, store_id, m->location);
    rc = apply_make_store(ctx, m->location, &store_id);
    if (rc)
        return rc;
    struct record now = base(&box);
    merge(&now, m, false);
    make_active(&now);
    if (now.store_id != store_id)
        now.moving_store_id = 0;
    now.store_id = store_id;
    return apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
}

static int deactivate(struct apply_ctx *ctx, const Raftdir__Log__Deactivate *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    uint8_t hash[RECORD_TOKEN_LEN];
    const uint8_t *token;
    int rc = apply_load(ctx, op->name, &box);
    if (!rc)
        rc = apply_token(ctx, op->has_token, &op->token, hash, &token);
    if (rc)
        return rc;
    if (!box.live)
        return apply_refuse(ctx, RAFTDIR_ENOTFOUND, "no mailbox \"%.200s\"", op->name);
    uint64_t store_id = box.r.store_id;
    bool active = true;
    if (op->location)
        rc = apply_locate(ctx, op->location, &box, &store_id, &active);
    if (!rc)
        rc = apply_fence(ctx, store_id);
    if (rc)
        return rc;
    if (store_id != box.r.store_id)
        return refuse_elsewhere(ctx, RAFTDIR_EOTHERSTORE, &box, op->name);
    if (!active)
        return refuse_passive(ctx, store_id, op->location);
    struct record now = box.r;
    if (box.r.state == STORE_RESERVED) {
        if (!apply_owns(&box, token, store_id))
            return refuse_reserved(ctx, &box, op->name);
        if (box.r.reserved_until_ms) {
            rc = apply_remove(ctx, &box);
            if (!rc)
                rc = store_feed_add(ctx->txn, STORE_EVENT_DELETED, box.key, box.key_len, NULL, NULL, 0, &box.r, ctx->err);
            out->has_changed = true;
            out->changed = 1;
            return rc;
        }
    } else {
        now.state = STORE_RESERVED;
        now.reserved_until_ms = 0;
        now.moving_store_id = 0;
        now.field[RECORD_TOKEN] = token ? (struct store_str){(const char *)token, RECORD_TOKEN_LEN} : (struct store_str){NULL, 0};
    }
    return apply_write(ctx, &box, &now, STORE_EVENT_RESERVED, out);
}

/* An active mailbox whose store's epoch the writer knows. */
static int load_active(struct apply_ctx *ctx, const char *name, struct apply_box *box)
{
    int rc = apply_load(ctx, name, box);
    if (rc)
        return rc;
    if (!box->live || box->r.state != STORE_ACTIVE)
        return apply_refuse(ctx, RAFTDIR_ENOTFOUND, "no mailbox \"%.200s\"%s", name, box->live ? ": the name is only reserved" : "");
    return apply_fence(ctx, box->r.store_id);
}

static int update(struct apply_ctx *ctx, const Raftdir__Log__Update *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    int rc = load_active(ctx, op->mailbox->name, &box);
    if (rc)
        return rc;
    struct record now = box.r;
    merge(&now, op->mailbox, false);
    return apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
}

static int set_acl(struct apply_ctx *ctx, const Raftdir__Log__SetAcl *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    int rc = load_active(ctx, op->name, &box);
    if (rc)
        return rc;
    struct record now = box.r;
    if (op->acl) {
        now.field[RECORD_ACL] = text_str(op->acl);
    } else {
        size_t len;
        struct store_str acl = box.r.field[RECORD_ACL];
        rc = acl_modify(acl.s, acl.len, op->identifier, op->rights, ctx->acl, sizeof ctx->acl, &len, &ctx->refusal);
        if (rc)
            return APPLY_REFUSED;
        now.field[RECORD_ACL] = (struct store_str){ctx->acl, len};
    }
    return apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
}

static int put(struct apply_ctx *ctx, const Raftdir__Log__Mailbox *m, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    uint64_t store_id;
    bool active;
    int rc = apply_load(ctx, m->name, &box);
    if (!rc)
        rc = apply_locate(ctx, m->location, NULL, &store_id, &active);
    if (!rc)
        rc = apply_fence(ctx, store_id);
    if (!rc)
        rc = apply_make_store(ctx, m->location, &store_id);
    if (rc)
        return rc;
    struct record now = base(&box);
    merge(&now, m, true);
    make_active(&now);
    if (now.store_id != store_id)
        now.moving_store_id = 0;
    now.store_id = store_id;
    return apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
}

static int set_feature_level(struct apply_ctx *ctx, uint32_t level, Raftdir__Log__OpResult *out)
{
    uint32_t *now = &ctx->txn->state.meta.feature_level;
    if (level < *now)
        return apply_refuse(ctx, RAFTDIR_EINVAL, "the feature level is %u: it never goes down", *now);
    out->has_changed = true;
    *now = level;
    return 0;
}

static int check_precondition(struct apply_ctx *ctx, const Raftdir__Log__Op *op, const Raftdir__Log__Precondition *p)
{
    const char *name = p->name ? p->name : op_name(op);
    if (p->condition == RAFTDIR__LOG__CONDITION__ANY)
        return 0;
    struct apply_box box;
    int rc = apply_load(ctx, name, &box);
    if (rc)
        return rc;
    bool present = box.live && box.r.state == STORE_ACTIVE;
    switch (p->condition) {
    case RAFTDIR__LOG__CONDITION__ABSENT:
        if (box.live)
            return apply_refuse(ctx, RAFTDIR_ECONFLICT, "the name \"%.200s\" is %s", name, present ? "in use" : "reserved");
        return 0;
    case RAFTDIR__LOG__CONDITION__PRESENT:
        return present ? 0 : apply_refuse(ctx, RAFTDIR_ECONFLICT, "there is no mailbox \"%.200s\"", name);
    case RAFTDIR__LOG__CONDITION__GENERATION:
        if (!present)
            return apply_refuse(ctx, RAFTDIR_ECONFLICT, "there is no mailbox \"%.200s\"", name);
        if (box.r.generation != p->generation)
            return apply_refuse(ctx, RAFTDIR_ECONFLICT, "mailbox \"%.200s\" has generation %llu, not %llu", name,
                                (unsigned long long)box.r.generation, (unsigned long long)p->generation);
        return 0;
    default:
        return err_set(ctx->err, RAFTDIR_EVERSION, "unknown precondition %d", (int)p->condition);
    }
}

int apply_op(struct apply_ctx *ctx, const Raftdir__Log__Op *op, Raftdir__Log__OpResult *out)
{
    for (size_t i = 0; i < op->n_preconditions; i++) {
        int rc = check_precondition(ctx, op, op->preconditions[i]);
        if (rc)
            return rc;
    }
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE:
        return reserve(ctx, op->reserve, out);
    case RAFTDIR__LOG__OP__OP_ACTIVATE:
        return activate(ctx,
                        &(struct activation){
                            .mailbox = op->activate->mailbox,
                            .has_token = op->activate->has_token,
                            .token = &op->activate->token,
                            .take_over = op->activate->has_take_over && op->activate->take_over,
                            .any_partition = op->activate->has_any_partition && op->activate->any_partition,
                        },
                        out);
    case RAFTDIR__LOG__OP__OP_DEACTIVATE:
        return deactivate(ctx, op->deactivate, out);
    case RAFTDIR__LOG__OP__OP_CREATE:
        return activate(ctx, &(struct activation){.mailbox = op->create->mailbox, .has_token = op->create->has_token, .token = &op->create->token, .create = true}, out);
    case RAFTDIR__LOG__OP__OP_UPDATE:
        return update(ctx, op->update, out);
    case RAFTDIR__LOG__OP__OP_SET_ACL:
        return set_acl(ctx, op->set_acl, out);
    case RAFTDIR__LOG__OP__OP_DELETE:
        return apply_delete(ctx, op->delete_, out);
    case RAFTDIR__LOG__OP__OP_RENAME:
        return apply_rename(ctx, op->rename, out);
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN:
        return apply_move_begin(ctx, op->move_begin, out);
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
        return apply_move_end(ctx, op->move_commit->name, op->move_commit->has_subtree && op->move_commit->subtree, true, out);
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT:
        return apply_move_end(ctx, op->move_abort->name, op->move_abort->has_subtree && op->move_abort->subtree, false, out);
    case RAFTDIR__LOG__OP__OP_PUT:
        return put(ctx, op->put->mailbox, out);
    case RAFTDIR__LOG__OP__OP_NOOP:
        return 0;
    case RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL:
        return set_feature_level(ctx, op->set_feature_level->level, out);
    default:
        return err_set(ctx->err, RAFTDIR_EVERSION, "unknown operation %d", (int)op->op_case);
    }
}
