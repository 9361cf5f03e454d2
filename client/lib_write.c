/* lib_write.c - writes: one at a time, and many in flight. */
#include <stdlib.h>
#include <string.h>
#include "lib_batch.h"

static struct call *write_call(struct raftdir *d, const raftdir_batch *b)
{
    if (!b->n) {
        err_set(&d->err, RAFTDIR_EINVAL, "the batch is empty");
        return NULL;
    }
    struct call *c = call_create(d, CALL_WRITE | CALL_HEDGE, RAFTDIR__CLIENT__TO_NODE__BODY_WRITE);
    if (!c)
        err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    else if (batch_pack(b, c, &d->err) < 0)
        call_destroy(&c);
    return c;
}

int raftdir_write(raftdir *d, const raftdir_batch *b, const struct raftdir_result **result_r)
{
    if (result_r)
        *result_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    d->result = (struct raftdir_result){.failed_op = -1};
    if (result_r)
        *result_r = &d->result;
    struct call *c = write_call(d, b);
    if (!c)
        return d->err.code;
    rc = call_run(d, &c);
    const Raftdir__Client__FromNode *m = d->kept;
    if (!m || m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_WRITE) {
        if (rc == 0)
            return err_set(&d->err, RAFTDIR_EUNCERTAIN, "the node's answer to a write has no result");
        return rc;
    }
    const Raftdir__Log__Result *w = m->write;
    d->result.index = w->index;
    if (w->has_failed_op)
        d->result.failed_op = (int)w->failed_op;
    if (rc == 0 && w->n_ops) {
        struct raftdir_op_result *ops = realloc(d->result_ops, w->n_ops * sizeof *ops);
        if (ops) { /* else: done, but what became of each operation can't be told; ops_n says so */
            d->result_ops = ops;
            for (size_t i = 0; i < w->n_ops; i++)
                ops[i] = (struct raftdir_op_result){w->ops[i]->generation, w->ops[i]->mailbox_id, w->ops[i]->changed};
            d->result.ops = ops;
            d->result.ops_n = w->n_ops;
        }
    }
    return rc;
}

int raftdir_submit(raftdir *d, const raftdir_batch *b, raftdir_done_fn *done, void *data)
{
    int rc = lib_enter_callback(d);
    if (rc < 0)
        return rc;
    if (!done)
        return err_set(&d->err, RAFTDIR_EINVAL, "no callback");
    while (d->submitted_n >= d->window) {
        if (d->nonblocking || d->in_callback)
            return err_set(&d->err, RAFTDIR_EAGAIN, "%u writes are in flight: the window is full", d->submitted_n);
        engine_turn(d, UINT64_MAX);
    }
    struct call *c = write_call(d, b);
    if (!c)
        return d->err.code;
    c->done_fn = done;
    c->data = data;
    d->submitted_n++;
    engine_begin(c);
    return 0;
}

int raftdir_drain(raftdir *d)
{
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    while (d->submitted_n)
        engine_turn(d, UINT64_MAX);
    return 0;
}

/* --- One operation by itself -------------------------------------------------------------------------------------- */

static int write_one(raftdir *d, raftdir_batch *b, int rc, const struct raftdir_result **result_r)
{
    if (rc < 0) {
        if (lib_enter(d) == 0)
            err_set(&d->err, rc, "%s",
                    rc == RAFTDIR_EINVAL   ? "a name or location that this operation needs is missing"
                    : rc == RAFTDIR_ETOOBIG ? "the operation is over the limit of a request or of a token"
                                            : "out of memory");
        if (result_r)
            *result_r = NULL;
        rc = d->err.code;
    } else
        rc = raftdir_write(d, b, result_r);
    raftdir_batch_destroy(&b);
    return rc;
}

#define ONE(call)                                                                                                                          \
    raftdir_batch *b = raftdir_batch_create();                                                                                             \
    return write_one(d, b, b ? (call) : RAFTDIR_ENOMEM, result_r)

int raftdir_create(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_create(b, m, NULL, 0));
}

int raftdir_put(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_put(b, m));
}

int raftdir_update(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_update(b, m));
}

int raftdir_reserve(raftdir *d, const char *name, const char *server, const char *partition, const void *token, size_t token_len, uint64_t ttl_ms,
                    const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_reserve(b, name, server, partition, token, token_len, ttl_ms));
}

int raftdir_activate(raftdir *d, const struct raftdir_mailbox *m, const void *token, size_t token_len, int take_over,
                     const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_activate(b, m, token, token_len, take_over));
}

int raftdir_deactivate(raftdir *d, const char *name, const char *server, const char *partition, const void *token, size_t token_len,
                       const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_deactivate(b, name, server, partition, token, token_len));
}

int raftdir_delete(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_delete(b, name, subtree, NULL, NULL, NULL, 0));
}

int raftdir_rename(raftdir *d, const char *from, const char *to, int subtree, const char *server, const char *partition,
                   const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_rename(b, from, to, subtree, server, partition));
}

int raftdir_setacl(raftdir *d, const char *name, const char *acl, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_setacl(b, name, acl));
}

int raftdir_setacl_one(raftdir *d, const char *name, const char *identifier, const char *rights, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_setacl_one(b, name, identifier, rights));
}

int raftdir_move_begin(raftdir *d, const char *name, const char *server, const char *partition, int subtree, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_move_begin(b, name, server, partition, subtree));
}

int raftdir_move_commit(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_move_commit(b, name, subtree));
}

int raftdir_move_abort(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_move_abort(b, name, subtree));
}

int raftdir_set_feature_level(raftdir *d, uint32_t level, const struct raftdir_result **result_r)
{
    ONE(raftdir_batch_add_feature_level(b, level));
}
