/* apply.c - batches, entries, requests: see apply.h. The operations themselves are in apply_op.c and apply_tree.c.
 *
 * For an entry: log time moves on (never back), then what ran out leaves (bounded; what is left over is treated as gone all the same),
 * then its requests, each atomic. For a request: an expired id is refused and not kept; a known id gets its stored result, or RAFTDIR_EPERM when
 * somebody else sent it; otherwise the operations run in order, each seeing what the ones before it did, its own preconditions first;
 * when one refuses, everything of the request is taken back. The result is kept until the expiry either way, without its text.
 *
 * Checks that op_request_check() makes belong to the replicated behaviour too, since they are made again here: a later version that allows
 * more must bind that to a feature level. */
#include "apply.h"
#include <assert.h>
#include <raft.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "apply_internal.h"
#include "op.h"

struct apply_batch *apply_batch_create(struct entry *const *entries, unsigned n)
{
    assert(n > 0);
    struct apply_batch *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->entries = malloc(n * sizeof(struct entry *));
    if (!b->entries) {
        free(b);
        return NULL;
    }
    b->first = entries[0]->index;
    b->n = n;
    for (unsigned i = 0; i < n; i++)
        b->entries[i] = entry_ref(entries[i]);
    return b;
}

static void drop_outputs(struct apply_batch *b)
{
    for (size_t i = 0; i < b->results_n; i++)
        free(b->results[i].result);
    free(b->results);
    b->results = NULL;
    b->results_n = 0;
    b->checkpoints_n = 0;
}

void apply_batch_destroy(struct apply_batch **batch)
{
    struct apply_batch *b = *batch;
    if (!b)
        return;
    drop_outputs(b);
    for (unsigned i = 0; i < b->n; i++)
        entry_unref(b->entries[i]);
    free(b->entries);
    free(b);
    *batch = NULL;
}

int apply_refuse(struct apply_ctx *ctx, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    ctx->refusal.code = code;
    vsnprintf(ctx->refusal.text, sizeof ctx->refusal.text, fmt, ap);
    va_end(ap);
    return APPLY_REFUSED;
}

/* Takes the packed result (given) into the batch. */
static int add_result(struct apply_batch *b, const Raftdir__Log__Request *req, uint64_t index, uint8_t *packed, size_t len, bool replayed,
                      struct err *err)
{
    if ((b->results_n & (b->results_n - 1)) == 0) { /* 0 and the powers of two */
        size_t size = b->results_n ? 2 * b->results_n : 1;
        struct apply_result *results = realloc(b->results, size * sizeof *results);
        if (!results) {
            free(packed);
            return err_set(err, RAFTDIR_ENOMEM, "apply: out of memory");
        }
        b->results = results;
    }
    struct apply_result *r = &b->results[b->results_n++];
    *r = (struct apply_result){.result = packed, .result_len = len, .index = index, .replayed = replayed};
    memcpy(r->op_id, req->op_id.data, req->op_id.len < OP_ID_LEN ? req->op_id.len : OP_ID_LEN);
    return 0;
}

static int pack_result(const Raftdir__Log__Result *result, uint8_t **packed_r, size_t *len_r, struct err *err)
{
    size_t len = raftdir__log__result__get_packed_size(result);
    uint8_t *packed = malloc(len);
    if (!packed)
        return err_set(err, RAFTDIR_ENOMEM, "apply: out of memory");
    *len_r = raftdir__log__result__pack(result, packed);
    *packed_r = packed;
    return 0;
}

/* A refusal that is told but not kept. */
static int answer_refused(struct apply_batch *b, struct apply_ctx *ctx)
{
    Raftdir__Log__Result result = RAFTDIR__LOG__RESULT__INIT;
    uint8_t *packed = NULL;
    size_t len = 0;
    result.code = ctx->refusal.code;
    result.message = ctx->refusal.text;
    result.index = ctx->index;
    int rc = pack_result(&result, &packed, &len, ctx->err);
    return rc ? rc : add_result(b, ctx->req, ctx->index, packed, len, false, ctx->err);
}

/* The operations: 0, APPLY_REFUSED with *failed_r, or trouble. What was refused has left nothing. */
static int run_ops(struct apply_ctx *ctx, Raftdir__Log__OpResult *outs, uint32_t *failed_r)
{
    const Raftdir__Log__Request *req = ctx->req;
    bool many = req->n_ops > 1;
    if (many)
        store_undo_start(ctx->txn);
    for (size_t i = 0; i < req->n_ops; i++) {
        bool last = i + 1 == req->n_ops;
        if (many && last)
            store_undo_pause(ctx->txn); /* it refuses before it changes anything */
        struct record_digest before = ctx->txn->state.digest;
        int rc = apply_op(ctx, req->ops[i], &outs[i]);
        if (rc == APPLY_REFUSED) {
            if (last)
                assert(before.lo == ctx->txn->state.digest.lo && before.hi == ctx->txn->state.digest.hi);
            *failed_r = (uint32_t)i;
            if (many)
                rc = store_undo_run(ctx->txn, ctx->err);
            return rc < 0 ? rc : APPLY_REFUSED;
        }
        if (rc)
            return rc;
    }
    store_undo_pause(ctx->txn);
    return 0;
}

static int apply_new(struct apply_batch *b, struct apply_ctx *ctx, const uint8_t *identity)
{
    const Raftdir__Log__Request *req = ctx->req;
    Raftdir__Log__Result result = RAFTDIR__LOG__RESULT__INIT;
    Raftdir__Log__OpResult *outs = NULL, **out_ptrs = NULL;
    uint32_t failed = 0;
    int rc = op_request_check(req, ctx->txn->state.meta.feature_level, &ctx->refusal);
    if (rc) {
        rc = APPLY_REFUSED;
    } else {
        outs = malloc(req->n_ops * sizeof *outs);
        out_ptrs = malloc(req->n_ops * sizeof *out_ptrs);
        if (!outs || !out_ptrs) {
            rc = err_set(ctx->err, RAFTDIR_ENOMEM, "apply: out of memory");
            goto free_outs;
        }
        for (size_t i = 0; i < req->n_ops; i++) {
            raftdir__log__op_result__init(&outs[i]);
            out_ptrs[i] = &outs[i];
        }
        rc = run_ops(ctx, outs, &failed);
        if (rc == APPLY_REFUSED && req->n_ops > 1)
            err_wrap(&ctx->refusal, "operation %u", failed + 1);
    }
    if (rc < 0)
        goto free_outs;
    result.index = ctx->index;
    if (rc == APPLY_REFUSED) {
        result.code = ctx->refusal.code;
        result.message = ctx->refusal.text;
        result.has_failed_op = true;
        result.failed_op = failed;
    } else {
        result.ops = out_ptrs;
        result.n_ops = req->n_ops;
    }
    uint8_t *packed = NULL, *kept = NULL;
    size_t len = 0, kept_len = 0;
    rc = pack_result(&result, &packed, &len, ctx->err);
    result.message = NULL; /* texts are this program's, not the cluster's: another version may word them anew */
    if (!rc)
        rc = pack_result(&result, &kept, &kept_len, ctx->err);
    if (!rc) {
        struct store_result stored = {.packed = {(const char *)kept, kept_len}};
        memcpy(stored.identity, identity, sizeof stored.identity);
        rc = store_op_put(ctx->txn, req->expires_ms, req->op_id.data, &stored, ctx->err);
    }
    free(kept);
    if (rc)
        free(packed);
    else
        rc = add_result(b, req, ctx->index, packed, len, false, ctx->err);
free_outs:
    free(outs);
    free(out_ptrs);
    return rc;
}

static int apply_request(struct apply_batch *b, struct apply_ctx *ctx)
{
    const Raftdir__Log__Request *req = ctx->req;
    uint64_t log_time_ms = ctx->txn->state.meta.log_time_ms;
    if (req->op_id.len != OP_ID_LEN) {
        apply_refuse(ctx, RAFTDIR_EINVAL, "operation id has %zu bytes, not %d", req->op_id.len, OP_ID_LEN);
        return answer_refused(b, ctx);
    }
    if (req->expires_ms <= log_time_ms) {
        apply_refuse(ctx, RAFTDIR_EEXPIRED, "the operation id expired %llu ms ago", (unsigned long long)(log_time_ms - req->expires_ms));
        return answer_refused(b, ctx);
    }
    if (req->expires_ms - log_time_ms > OP_TTL_MAX_MS) {
        apply_refuse(ctx, RAFTDIR_EINVAL, "the operation id expires in %llu ms, more than %llu", (unsigned long long)(req->expires_ms - log_time_ms),
                     OP_TTL_MAX_MS);
        return answer_refused(b, ctx);
    }
    uint8_t identity[32];
    int rc = record_sha256(req->identity, strlen(req->identity), identity, ctx->err);
    if (rc)
        return rc;
    struct store_result known;
    rc = store_op_get(ctx->txn, req->expires_ms, req->op_id.data, &known, ctx->err);
    if (rc == RAFTDIR_ENOTFOUND)
        return apply_new(b, ctx, identity);
    if (rc)
        return rc;
    if (memcmp(known.identity, identity, sizeof known.identity) != 0) {
        apply_refuse(ctx, RAFTDIR_EPERM, "the operation id is somebody else's");
        return answer_refused(b, ctx);
    }
    uint8_t *packed = malloc(known.packed.len ? known.packed.len : 1);
    if (!packed)
        return err_set(ctx->err, RAFTDIR_ENOMEM, "apply: out of memory");
    memcpy(packed, known.packed.s, known.packed.len);
    return add_result(b, req, ctx->index, packed, known.packed.len, true, ctx->err);
}

/* This node can't apply what a level that it doesn't know allows: it stops here, before the cluster uses it. */
static int check_level(const Raftdir__Log__Request *req, struct err *err)
{
    for (size_t i = 0; i < req->n_ops; i++) {
        const Raftdir__Log__Op *op = req->ops[i];
        if (op->op_case == RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL && op->set_feature_level->level > FEATURE_LEVEL_MAX)
            return err_set(err, RAFTDIR_EVERSION, "the cluster goes to feature level %u; this program knows up to %d", op->set_feature_level->level,
                           FEATURE_LEVEL_MAX);
    }
    return 0;
}

static int apply_command(struct apply_batch *b, struct apply_ctx *ctx, const struct entry *e)
{
    Raftdir__Log__Entry *entry;
    int rc = op_entry_unpack(e->data, e->len, &entry, ctx->err);
    if (rc)
        return rc;
    struct store_meta *meta = &ctx->txn->state.meta;
    if (entry->log_time_ms > meta->log_time_ms)
        meta->log_time_ms = entry->log_time_ms;
    rc = store_op_expire(ctx->txn, meta->log_time_ms, ctx->err);
    if (!rc)
        rc = store_reserved_expire(ctx->txn, meta->log_time_ms, ctx->err);
    for (size_t i = 0; i < entry->n_requests && !rc; i++) {
        ctx->req = entry->requests[i];
        rc = check_level(ctx->req, ctx->err);
        if (!rc)
            rc = apply_request(b, ctx);
    }
    op_entry_free(&entry);
    return rc;
}

static int apply_configuration(struct apply_ctx *ctx, const struct entry *e)
{
    struct raft_configuration c;
    struct raft_buffer buf = {.base = (void *)(uintptr_t)e->data, .len = e->len};
    raft_configuration_init(&c);
    int rc = raft_configuration_decode(&buf, &c);
    if (rc) {
        raft_configuration_close(&c);
        return err_set(ctx->err, rc == RAFT_NOMEM ? RAFTDIR_ENOMEM : RAFTDIR_ECORRUPT, "the configuration can't be decoded");
    }
    struct store_meta *meta = &ctx->txn->state.meta;
    for (unsigned i = 0; i < c.n; i++) {
        if (c.servers[i].id > meta->member_id_max)
            meta->member_id_max = c.servers[i].id;
    }
    raft_configuration_close(&c);
    return store_configuration_put(ctx->txn, e->data, e->len, e->index, ctx->err);
}

/* The digest at this index: into the state, and told with the batch. */
static int record_checkpoint(struct apply_batch *b, struct apply_ctx *ctx, uint64_t index)
{
    int rc = store_checkpoint_put(ctx->txn, index, ctx->err);
    if (rc)
        return rc;
    if (b->checkpoints_n == APPLY_BATCH_CHECKPOINTS_MAX) /* a batch beyond APPLY_BATCH_ENTRIES: the newest are told */
        memmove(&b->checkpoints[0], &b->checkpoints[1], --b->checkpoints_n * sizeof b->checkpoints[0]);
    struct store_checkpoint *c = &b->checkpoints[b->checkpoints_n++];
    c->index = index;
    record_digest_bytes(&ctx->txn->state.digest, c->digest);
    return 0;
}

static int apply_entry(struct apply_batch *b, struct apply_ctx *ctx, const struct entry *e)
{
    struct store_meta *meta = &ctx->txn->state.meta;
    assert(e->index == meta->applied_index + 1 && e->term >= meta->applied_term);
    ctx->index = e->index;
    store_feed_start(ctx->txn, e->index);
    int rc = 0;
    switch (e->type) {
    case RAFT_COMMAND:
        rc = apply_command(b, ctx, e);
        break;
    case RAFT_CHANGE:
        rc = apply_configuration(ctx, e);
        break;
    case RAFT_BARRIER:
        break;
    default:
        rc = err_set(ctx->err, RAFTDIR_EVERSION, "unknown entry type %u", e->type);
    }
    if (rc)
        return err_wrap(ctx->err, "apply entry %llu", (unsigned long long)e->index);
    meta->applied_index = e->index;
    meta->applied_term = e->term;
    return e->index % DIGEST_INTERVAL == 0 ? record_checkpoint(b, ctx, e->index) : 0;
}

void apply_batch_run(struct store *store, struct apply_batch *b)
{
    struct store_txn *txn = NULL;
    drop_outputs(b);
    b->err = (struct err){0};
    struct apply_ctx *ctx = malloc(sizeof *ctx); /* some hundred KB: not for the stack */
    if (!ctx) {
        b->status = err_set(&b->err, RAFTDIR_ENOMEM, "apply: out of memory");
        return;
    }
    b->status = store_write_begin(store, &txn, &b->err);
    if (b->status)
        goto free_ctx;
    ctx->txn = txn;
    ctx->err = &b->err;
    ctx->keys = (struct apply_keys){0};
    uint64_t before = txn->state.meta.applied_index;
    for (unsigned i = 0; i < b->n && !b->status; i++) {
        if (b->entries[i]->index > txn->state.meta.applied_index)
            b->status = apply_entry(b, ctx, b->entries[i]);
    }
    if (!b->status)
        b->status = store_feed_trim(txn, &b->err);
    free(ctx->keys.buf);
    if (!b->status)
        b->status = store_meta_get(txn, &b->meta, &b->err);
    if (b->status || txn->state.meta.applied_index == before)
        store_write_abort(&txn);
    else
        b->status = store_write_commit(&txn, &b->err);
    if (b->status)
        drop_outputs(b);
free_ctx:
    free(ctx);
}
