/* srv_client_write.c - writes: may this identity do that (srv_bound.c), is it well-formed, then packed with identity and origin and given to the consensus thread.
 *
 * The outcome: what apply computed (code 0, Result.code inside), refused here (nothing happened), or EUNCERTAIN; see proto/README.md. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "op.h"
#include "srv_bound.h"
#include "srv_client.h"

static int role_check(struct request *r, struct err *err)
{
    const struct access *a = &r->client->access;
    const Raftdir__Client__Write *w = r->msg->write;
    if (a->role < ACCESS_ADMIN)
        for (size_t i = 0; i < w->n_ops; i++)
            if (w->ops[i]->op_case == RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL)
                return err_set(err, RAFTDIR_EPERM, "operation %zu raises the feature level: that needs the role admin", i + 1);
    return srv_bound_check(r->service, a, w->ops, w->n_ops, r->linearized, err);
}

void srv_write_begin(struct request *r)
{
    Raftdir__Client__Write *w = r->msg->write;
    struct daemon *d = r->service->d;
    struct shared_view view;
    struct err err = {0};
    char origin[128];
    if (w->op_id.len != OP_ID_LEN) {
        srv_fail(r, RAFTDIR_EINVAL, "the operation id has %zu bytes; wanted %d random ones", w->op_id.len, OP_ID_LEN);
        return;
    }
    shared_view_get(&d->shared, &view);
    Raftdir__Log__Request request = RAFTDIR__LOG__REQUEST__INIT;
    snprintf(origin, sizeof origin, "node %" PRIu64 " client", view.node_id);
    request.op_id = w->op_id;
    request.expires_ms = w->expires_ms;
    request.identity = r->client->access.identity;
    request.origin = origin;
    request.has_store_epoch = w->has_store_epoch;
    request.store_epoch = w->store_epoch;
    request.n_ops = w->n_ops;
    request.ops = w->ops;
    int rc = op_request_check(&request, view.status.feature_level, &err);
    if (rc == 0)
        rc = role_check(r, &err);
    if (rc == RAFTDIR_ENOTFOUND) {
        srv_read_linearize(r);
        return;
    }
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    size_t len = raftdir__log__request__get_packed_size(&request);
    if (len > REQUEST_LEN_MAX) {
        srv_fail(r, RAFTDIR_ETOOBIG, "the request has %zu bytes; at most %u are allowed: split it", len, REQUEST_LEN_MAX);
        return;
    }
    r->packed = mem_alloc(len);
    raftdir__log__request__pack(&request, r->packed);
    memset(&r->call.u.write, 0, sizeof r->call.u.write);
    memcpy(r->call.u.write.op_id, w->op_id.data, OP_ID_LEN);
    r->call.u.write.request = r->packed;
    r->call.u.write.request_len = len;
    srv_consensus_call(r, CONSENSUS_WRITE);
}

static const char *why_not(int code)
{
    switch (code) {
    case RAFTDIR_ENOQUORUM:
        return "no quorum: this node can't reach a majority of the cluster; the write was not done; ask another node, or again when the others are back";
    case RAFTDIR_EUNCERTAIN:
        return "uncertain: the write may or may not have happened; send it again with the same operation id to find out";
    case RAFTDIR_ENOSPC:
        return "no space: data_dir is nearly full at the leader, or at so many voters that there is no majority without them. The write was not done, for it may make the "
               "directory larger; deletes are taken as long as the reserve lasts. Make room there; reads go on meanwhile";
    case RAFTDIR_ELIMIT:
        return "too many writes are waiting at this node: send it again in a moment, or to another node";
    default:
        return err_text(code);
    }
}

void srv_write_done(struct request *r)
{
    int code = r->call.code;
    if (code == RAFTDIR_ECANCELED || code == RAFTDIR_EFAILED || code == RAFTDIR_ENOMEM)
        code = RAFTDIR_EUNCERTAIN; /* it was on its way when this node ended its part in it */
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    Raftdir__Log__Result *result = NULL;
    if (code == 0) {
        result = raftdir__log__result__unpack(NULL, r->call.result_len, r->call.result);
        if (!result) {
            logger_line(LOGGER_ERROR, "client", "a write's result doesn't parse");
            code = RAFTDIR_EUNCERTAIN;
        }
    }
    Raftdir__Log__Result told;
    if (result) {
        told = *result;
        if (told.code && !told.message)
            told.message = (char *)(uintptr_t)err_text(told.code); /* a repeated answer: texts aren't kept */
        f.has_index = true;
        f.index = result->index;
        f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_WRITE;
        f.write = &told;
    } else {
        f.code = code;
        f.message = *r->call.err.text ? r->call.err.text : (char *)(uintptr_t)why_not(code);
    }
    srv_answer(r, &f);
    if (result)
        raftdir__log__result__free_unpacked(result, NULL);
}
