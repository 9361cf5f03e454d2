/* srv_client_write.c - writes: may this identity do that, is it well-formed, then packed with identity and origin and given to the consensus thread.
 *
 * A backend that is bound to a server may write only locations of that server and touch only mailboxes that are there, or that are being moved
 * there. Where the operation doesn't show the server, the mailbox is looked up, again in a state that is at least as new as the request when the first look
 * finds nothing, or finds it on another server: this node may lag behind. The look and the operation are not one atomic step: it keeps hosts to their own, the preconditions of operations keep the directory whole.
 * The outcome: what apply computed (code 0, Result.code inside), refused here (nothing happened), or EUNCERTAIN; see proto/README.md. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "name.h"
#include "op.h"
#include "srv_client.h"

#define BOUND_SUBTREE_MAX 4096 /* rows looked at for a bound backend's subtree operation, in one turn */

static bool str_is(struct store_str s, const char *wanted)
{
    return s.s && s.len == strlen(wanted) && memcmp(s.s, wanted, s.len) == 0;
}

static bool is_there(const struct store_mailbox *m, const char *server)
{
    return str_is(m->server, server) || str_is(m->moving_server, server);
}

/* Refused, as far as this state knows. */
static int refuse(struct err *err, const char *server, const char *name, const struct store_mailbox *m)
{
    return err_set(err, RAFTDIR_ESTALE, "this identity is bound to server \"%s\", and %.200s is on \"%.*s\": do it from there, or with the role admin", server, name,
                   (int)m->server.len, m->server.s ? m->server.s : "");
}

/* RAFTDIR_ENOTFOUND: no such mailbox in this state. */
static int mailbox_check(struct service *s, const char *server, const char *name, struct err *err)
{
    struct store_mailbox m;
    int rc = store_lookup(s->txn, name, strlen(name), &m, err);
    if (rc != 0)
        return rc;
    return is_there(&m, server) ? 0 : refuse(err, server, name, &m);
}

static int subtree_check(struct service *s, const char *server, const char *root, struct err *err)
{
    struct store_filter filter = {.prefix = root, .reserved = true};
    struct store_scan *scan;
    struct store_mailbox m;
    int rc = store_list_begin(&filter, NULL, &scan, err);
    if (rc != 0)
        return rc;
    for (unsigned i = 0; (rc = store_scan_next(scan, s->txn, &m, NULL, err)) == 0; i++) {
        if (i == BOUND_SUBTREE_MAX)
            rc = err_set(err, RAFTDIR_EPERM, "a backend bound to a server may touch at most %d mailboxes with one subtree operation: use the role admin", BOUND_SUBTREE_MAX);
        else if (name_is_within(m.name, m.name_len, root, strlen(root)) && !is_there(&m, server))
            rc = refuse(err, server, m.name, &m);
        if (rc != 0)
            break;
    }
    store_scan_release(scan);
    store_scan_end(&scan);
    return rc == RAFTDIR_ENOTFOUND ? 0 : rc;
}

static bool subtree_of(const Raftdir__Log__Op *op)
{
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_DELETE:
        return op->delete_->subtree;
    case RAFTDIR__LOG__OP__OP_RENAME:
        return op->rename->subtree;
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN:
        return op->move_begin->subtree;
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
        return op->move_commit->subtree;
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT:
        return op->move_abort->subtree;
    default:
        return false;
    }
}

/* Operations that make a mailbox: there may be none yet, but one on another server isn't theirs. */
static bool makes(const Raftdir__Log__Op *op)
{
    return op->op_case == RAFTDIR__LOG__OP__OP_RESERVE || op->op_case == RAFTDIR__LOG__OP__OP_ACTIVATE || op->op_case == RAFTDIR__LOG__OP__OP_CREATE ||
           op->op_case == RAFTDIR__LOG__OP__OP_PUT;
}

/* 0; RAFTDIR_EPERM; RAFTDIR_ENOTFOUND, RAFTDIR_ESTALE (refused): look again in a newer state. */
static int bound_check(struct service *s, const char *server, const Raftdir__Log__Op *op, struct err *err)
{
    const char *name = op_name(op), *to = op_server(op);
    if (op->op_case == RAFTDIR__LOG__OP__OP_NOOP)
        return 0;
    if (!name)
        return err_set(err, RAFTDIR_EPERM, "this identity is bound to server \"%s\": this operation is for the role admin", server);
    /* Where a mailbox goes when it leaves is not the backend's own server, of course. */
    if (to && op->op_case != RAFTDIR__LOG__OP__OP_MOVE_BEGIN && strcmp(to, server) != 0)
        return err_set(err, RAFTDIR_EPERM, "this identity is bound to server \"%s\" and can't write a location on \"%.200s\": send it from there, or with the role admin", server, to);
    if (makes(op) && !to)
        return err_set(err, RAFTDIR_EPERM, "this identity is bound to server \"%s\": the location must say so", server);
    int rc = mailbox_check(s, server, name, err);
    if (makes(op)) {
        /* Somebody else's mailbox: apply refuses it with the better answer (EEXIST, EOTHERSTORE), unless the operation is one that takes it. */
        bool takes = op->op_case == RAFTDIR__LOG__OP__OP_PUT || (op->op_case == RAFTDIR__LOG__OP__OP_ACTIVATE && op->activate->take_over);
        return rc == RAFTDIR_ESTALE && !takes ? 0 : rc;
    }
    if (rc == 0 && subtree_of(op))
        rc = subtree_check(s, server, name, err);
    return rc;
}

static int role_check(struct request *r, struct err *err)
{
    const struct access *a = &r->client->access;
    const Raftdir__Client__Write *w = r->msg->write;
    struct store_meta meta;
    int rc = 0;
    if (a->role < ACCESS_ADMIN)
        for (size_t i = 0; i < w->n_ops; i++)
            if (w->ops[i]->op_case == RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL)
                return err_set(err, RAFTDIR_EPERM, "operation %zu raises the feature level: that needs the role admin", i + 1);
    if (a->role >= ACCESS_ADMIN || !*a->server)
        return 0;
    if ((rc = srv_txn(r->service, &meta, err)) != 0)
        return rc;
    bool look_again = false;
    for (size_t i = 0; rc == 0 && i < w->n_ops; i++) {
        rc = bound_check(r->service, a->server, w->ops[i], err);
        if (rc == RAFTDIR_ENOTFOUND || (rc == RAFTDIR_ESTALE && !r->linearized)) {
            look_again = true;
            rc = 0;
            continue;
        }
        if (rc == RAFTDIR_ESTALE)
            rc = err->code = RAFTDIR_EPERM;
        if (rc != 0 && w->n_ops > 1)
            err_wrap(err, "operation %zu", i + 1);
    }
    srv_txn_done(r->service);
    return rc == 0 && look_again && !r->linearized ? RAFTDIR_ENOTFOUND : rc;
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
