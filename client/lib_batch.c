/* lib_batch.c - batches: operations, packed one after the other as they are added. Belongs to no handle, touches no network.
 *
 * `ops` holds the packed raftdir.log.Op messages without their length prefixes; `ends` where each ends. A precondition is appended to the last one:
 * protobuf allows a repeated field anywhere in a message. */
#include <stdlib.h>
#include <string.h>
#include "lib_batch.h"

raftdir_batch *raftdir_batch_create(void)
{
    return calloc(1, sizeof(struct raftdir_batch));
}

void raftdir_batch_destroy(raftdir_batch **b)
{
    if (!*b)
        return;
    free((*b)->ops);
    free((*b)->ends);
    free(*b);
    *b = NULL;
}

void raftdir_batch_clear(raftdir_batch *b)
{
    b->len = 0;
    b->n = 0;
    b->store_epoch = 0;
}

size_t raftdir_batch_count(const raftdir_batch *b)
{
    return b->n;
}

size_t raftdir_batch_len(const raftdir_batch *b)
{
    return b->len + b->n * BATCH_OP_OVERHEAD;
}

void raftdir_batch_set_store_epoch(raftdir_batch *b, uint64_t epoch)
{
    b->store_epoch = epoch;
}

/* Room for `len` more bytes; RAFTDIR_ETOOBIG when the batch would not fit a request. */
static int reserve(raftdir_batch *b, size_t len, bool new_op)
{
    if ((new_op && b->n == REQUEST_OPS_MAX) || raftdir_batch_len(b) + len + BATCH_OP_OVERHEAD + BATCH_OVERHEAD > REQUEST_LEN_MAX)
        return RAFTDIR_ETOOBIG;
    if (b->size - b->len < len) {
        size_t size = b->size ? b->size : 1024;
        while (size - b->len < len)
            size *= 2;
        uint8_t *ops = realloc(b->ops, size);
        if (!ops)
            return RAFTDIR_ENOMEM;
        b->ops = ops;
        b->size = size;
    }
    if (new_op && b->n == b->ends_size) {
        size_t n = b->ends_size ? b->ends_size * 2 : 16;
        uint32_t *ends = realloc(b->ends, n * sizeof *ends);
        if (!ends)
            return RAFTDIR_ENOMEM;
        b->ends = ends;
        b->ends_size = n;
    }
    return 0;
}

static int add(raftdir_batch *b, const Raftdir__Log__Op *op)
{
    size_t len = raftdir__log__op__get_packed_size(op);
    int rc = reserve(b, len, true);
    if (rc < 0)
        return rc;
    b->len += raftdir__log__op__pack(op, b->ops + b->len);
    b->ends[b->n++] = (uint32_t)b->len;
    return 0;
}

int raftdir_batch_if(raftdir_batch *b, enum raftdir_condition condition, uint64_t generation, const char *name)
{
    if (!b->n)
        return RAFTDIR_EINVAL;
    Raftdir__Log__Precondition p = RAFTDIR__LOG__PRECONDITION__INIT;
    switch (condition) {
    case RAFTDIR_IF_ABSENT:
        p.condition = RAFTDIR__LOG__CONDITION__ABSENT;
        break;
    case RAFTDIR_IF_PRESENT:
        p.condition = RAFTDIR__LOG__CONDITION__PRESENT;
        break;
    case RAFTDIR_IF_GENERATION:
        p.condition = RAFTDIR__LOG__CONDITION__GENERATION;
        p.has_generation = 1;
        p.generation = generation;
        break;
    default:
        return RAFTDIR_EINVAL;
    }
    p.name = (char *)name;
    Raftdir__Log__Precondition *list[] = {&p};
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT; /* nothing but the precondition: its bytes are what is appended */
    op.n_preconditions = 1;
    op.preconditions = list;
    size_t len = raftdir__log__op__get_packed_size(&op);
    int rc = reserve(b, len, false);
    if (rc < 0)
        return rc;
    b->len += raftdir__log__op__pack(&op, b->ops + b->len);
    b->ends[b->n - 1] = (uint32_t)b->len;
    return 0;
}

/* --- The operations --------------------------------------------------------------------------------------------------- */

static bool given(const char *s)
{
    return s && *s;
}

static void location_set(Raftdir__Log__Location *l, Raftdir__Log__Location **at_r, const char *server, const char *partition)
{
    raftdir__log__location__init(l);
    l->server = (char *)(server ? server : "");
    l->partition = (char *)(partition ? partition : "");
    *at_r = given(server) ? l : NULL;
}

static char *string_of(const char *s, bool keep_empty)
{
    return (char *)(keep_empty || given(s) ? s : NULL);
}

static void mailbox_set(Raftdir__Log__Mailbox *b, Raftdir__Log__Location *l, const struct raftdir_mailbox *m, bool update)
{
    raftdir__log__mailbox__init(b);
    b->name = (char *)m->name;
    if (!update)
        location_set(l, &b->location, m->server, m->partition);
    b->acl = string_of(m->acl, update);
    b->mbtype = string_of(m->mbtype, update);
    b->uniqueid = string_of(m->uniqueid, update);
    b->legacy_specialuse = string_of(m->legacy_specialuse, update);
    b->jmapid = string_of(m->jmapid, update);
    b->name_history = string_of(m->name_history, update);
    b->mtime = m->mtime;
    b->has_mtime = m->mtime || (update && (m->fields & RAFTDIR_F_MTIME));
    b->uidvalidity = m->uidvalidity;
    b->has_uidvalidity = m->uidvalidity || (update && (m->fields & RAFTDIR_F_UIDVALIDITY));
    b->createdmodseq = m->createdmodseq;
    b->has_createdmodseq = m->createdmodseq || (update && (m->fields & RAFTDIR_F_CREATEDMODSEQ));
    b->foldermodseq = m->foldermodseq;
    b->has_foldermodseq = m->foldermodseq || (update && (m->fields & RAFTDIR_F_FOLDERMODSEQ));
}

/* The caller's, as ours. */
static bool mailbox_take(struct raftdir_mailbox *own, const struct raftdir_mailbox *m)
{
    return m && lib_sized(own, sizeof *own, m, m->size) && given(own->name);
}

static int token_set(protobuf_c_boolean *has_r, ProtobufCBinaryData *data_r, const void *token, size_t len)
{
    if (len > TOKEN_LEN_MAX)
        return RAFTDIR_ETOOBIG;
    *has_r = token && len;
    data_r->data = (uint8_t *)token;
    data_r->len = len;
    return 0;
}

/* An Op around `body`, whose type and member are `kind`. */
#define ADD(b, kind, CASE, body)                                                                                                           \
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT;                                                                                          \
    op.op_case = RAFTDIR__LOG__OP__OP_##CASE;                                                                                              \
    op.kind = &body;                                                                                                                       \
    return add(b, &op)

int raftdir_batch_add_create(raftdir_batch *b, const struct raftdir_mailbox *m, const void *token, size_t token_len)
{
    Raftdir__Log__Mailbox box;
    Raftdir__Log__Location at;
    Raftdir__Log__Create c = RAFTDIR__LOG__CREATE__INIT;
    struct raftdir_mailbox own;
    if (!mailbox_take(&own, m) || !given(own.server))
        return RAFTDIR_EINVAL;
    mailbox_set(&box, &at, &own, false);
    c.mailbox = &box;
    if (token_set(&c.has_token, &c.token, token, token_len) < 0)
        return RAFTDIR_ETOOBIG;
    ADD(b, create, CREATE, c);
}

int raftdir_batch_add_put(raftdir_batch *b, const struct raftdir_mailbox *m)
{
    Raftdir__Log__Mailbox box;
    Raftdir__Log__Location at;
    Raftdir__Log__Put p = RAFTDIR__LOG__PUT__INIT;
    struct raftdir_mailbox own;
    if (!mailbox_take(&own, m) || !given(own.server))
        return RAFTDIR_EINVAL;
    mailbox_set(&box, &at, &own, false);
    p.mailbox = &box;
    ADD(b, put, PUT, p);
}

int raftdir_batch_add_update(raftdir_batch *b, const struct raftdir_mailbox *m)
{
    Raftdir__Log__Mailbox box;
    Raftdir__Log__Update u = RAFTDIR__LOG__UPDATE__INIT;
    struct raftdir_mailbox own;
    if (!mailbox_take(&own, m))
        return RAFTDIR_EINVAL;
    mailbox_set(&box, NULL, &own, true);
    u.mailbox = &box;
    ADD(b, update, UPDATE, u);
}

int raftdir_batch_add_reserve(raftdir_batch *b, const char *name, const char *server, const char *partition, const void *token, size_t token_len,
                              uint64_t ttl_ms)
{
    Raftdir__Log__Location at;
    Raftdir__Log__Reserve r = RAFTDIR__LOG__RESERVE__INIT;
    if (!given(name) || !given(server))
        return RAFTDIR_EINVAL;
    r.name = (char *)name;
    location_set(&at, &r.location, server, partition);
    r.has_ttl_ms = ttl_ms != 0;
    r.ttl_ms = ttl_ms;
    if (token_set(&r.has_token, &r.token, token, token_len) < 0)
        return RAFTDIR_ETOOBIG;
    ADD(b, reserve, RESERVE, r);
}

int raftdir_batch_add_activate(raftdir_batch *b, const struct raftdir_mailbox *m, const void *token, size_t token_len, int take_over)
{
    Raftdir__Log__Mailbox box;
    Raftdir__Log__Location at;
    Raftdir__Log__Activate a = RAFTDIR__LOG__ACTIVATE__INIT;
    struct raftdir_mailbox own;
    if (!mailbox_take(&own, m) || !given(own.server))
        return RAFTDIR_EINVAL;
    mailbox_set(&box, &at, &own, false);
    a.mailbox = &box;
    a.has_take_over = a.take_over = take_over != 0;
    if (token_set(&a.has_token, &a.token, token, token_len) < 0)
        return RAFTDIR_ETOOBIG;
    ADD(b, activate, ACTIVATE, a);
}

int raftdir_batch_add_deactivate(raftdir_batch *b, const char *name, const char *server, const char *partition, const void *token, size_t token_len)
{
    Raftdir__Log__Location at;
    Raftdir__Log__Deactivate x = RAFTDIR__LOG__DEACTIVATE__INIT;
    if (!given(name))
        return RAFTDIR_EINVAL;
    x.name = (char *)name;
    location_set(&at, &x.location, server, partition);
    if (token_set(&x.has_token, &x.token, token, token_len) < 0)
        return RAFTDIR_ETOOBIG;
    ADD(b, deactivate, DEACTIVATE, x);
}

int raftdir_batch_add_delete(raftdir_batch *b, const char *name, int subtree, const char *server, const char *partition, const void *token,
                             size_t token_len)
{
    Raftdir__Log__Location at;
    Raftdir__Log__Delete x = RAFTDIR__LOG__DELETE__INIT;
    if (!given(name))
        return RAFTDIR_EINVAL;
    x.name = (char *)name;
    x.has_subtree = x.subtree = subtree != 0;
    location_set(&at, &x.location, server, partition);
    if (token_set(&x.has_token, &x.token, token, token_len) < 0)
        return RAFTDIR_ETOOBIG;
    ADD(b, delete_, DELETE, x);
}

int raftdir_batch_add_rename(raftdir_batch *b, const char *from, const char *to, int subtree, const char *server, const char *partition)
{
    Raftdir__Log__Location at;
    Raftdir__Log__Rename r = RAFTDIR__LOG__RENAME__INIT;
    if (!given(from) || !given(to))
        return RAFTDIR_EINVAL;
    r.from = (char *)from;
    r.to = (char *)to;
    r.has_subtree = r.subtree = subtree != 0;
    location_set(&at, &r.location, server, partition);
    ADD(b, rename, RENAME, r);
}

int raftdir_batch_add_setacl(raftdir_batch *b, const char *name, const char *acl)
{
    Raftdir__Log__SetAcl s = RAFTDIR__LOG__SET_ACL__INIT;
    if (!given(name) || !acl)
        return RAFTDIR_EINVAL;
    s.name = (char *)name;
    s.acl = (char *)acl;
    ADD(b, set_acl, SET_ACL, s);
}

int raftdir_batch_add_setacl_one(raftdir_batch *b, const char *name, const char *identifier, const char *rights)
{
    Raftdir__Log__SetAcl s = RAFTDIR__LOG__SET_ACL__INIT;
    if (!given(name) || !given(identifier) || !rights)
        return RAFTDIR_EINVAL;
    s.name = (char *)name;
    s.identifier = (char *)identifier;
    s.rights = (char *)rights;
    ADD(b, set_acl, SET_ACL, s);
}

int raftdir_batch_add_move_begin(raftdir_batch *b, const char *name, const char *server, const char *partition, int subtree)
{
    Raftdir__Log__Location at;
    Raftdir__Log__MoveBegin m = RAFTDIR__LOG__MOVE_BEGIN__INIT;
    if (!given(name) || !given(server))
        return RAFTDIR_EINVAL;
    m.name = (char *)name;
    location_set(&at, &m.to, server, partition);
    m.has_subtree = m.subtree = subtree != 0;
    ADD(b, move_begin, MOVE_BEGIN, m);
}

int raftdir_batch_add_move_commit(raftdir_batch *b, const char *name, int subtree)
{
    Raftdir__Log__MoveCommit m = RAFTDIR__LOG__MOVE_COMMIT__INIT;
    if (!given(name))
        return RAFTDIR_EINVAL;
    m.name = (char *)name;
    m.has_subtree = m.subtree = subtree != 0;
    ADD(b, move_commit, MOVE_COMMIT, m);
}

int raftdir_batch_add_move_abort(raftdir_batch *b, const char *name, int subtree)
{
    Raftdir__Log__MoveAbort m = RAFTDIR__LOG__MOVE_ABORT__INIT;
    if (!given(name))
        return RAFTDIR_EINVAL;
    m.name = (char *)name;
    m.has_subtree = m.subtree = subtree != 0;
    ADD(b, move_abort, MOVE_ABORT, m);
}

int raftdir_batch_add_noop(raftdir_batch *b)
{
    Raftdir__Log__Noop n = RAFTDIR__LOG__NOOP__INIT;
    ADD(b, noop, NOOP, n);
}

int raftdir_batch_add_feature_level(raftdir_batch *b, uint32_t level)
{
    Raftdir__Log__SetFeatureLevel s = RAFTDIR__LOG__SET_FEATURE_LEVEL__INIT;
    s.level = level;
    ADD(b, set_feature_level, SET_FEATURE_LEVEL, s);
}

/* --- The packed Write ------------------------------------------------------------------------------------------------ */

static uint8_t *varint(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

int batch_pack(const raftdir_batch *b, struct call *c, struct err *err)
{
    uint8_t *body = malloc(b->len + b->n * BATCH_OP_OVERHEAD + BATCH_OVERHEAD), *p = body;
    if (!body)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    /* raftdir.client.Write: op_id, expires_ms, store_epoch, ops. */
    *p++ = 1 << 3 | 2;
    *p++ = OP_ID_LEN;
    c->op_id_pos = (uint32_t)(p - body);
    int rc = lib_random(p, OP_ID_LEN, err);
    if (rc < 0) {
        free(body);
        return rc;
    }
    p += OP_ID_LEN;
    *p++ = 2 << 3 | 0;
    c->expires_pos = (uint32_t)(p - body);
    memset(p, 0x80, 9); /* set when it is first sent */
    p[9] = 0;
    p += 10;
    if (b->store_epoch) {
        *p++ = 3 << 3 | 0;
        p = varint(p, b->store_epoch);
    }
    for (size_t i = 0, start = 0; i < b->n; start = b->ends[i++]) {
        size_t len = b->ends[i] - start;
        *p++ = 4 << 3 | 2;
        p = varint(p, len);
        memcpy(p, b->ops + start, len);
        p += len;
    }
    free(c->body);
    c->body = body;
    c->body_len = (size_t)(p - body);
    return 0;
}
