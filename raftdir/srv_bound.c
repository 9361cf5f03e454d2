/* srv_bound.c - see srv_bound.h.
 *
 * A backend that is bound to a server may write only locations of that server and touch only mailboxes that are there, or that are being moved
 * there. Where the operation doesn't show the server, the mailbox is looked up, again in a state that is at least as new as the request when the first look
 * finds nothing, or finds it on another server: this node may lag behind. The look and the operation are not one atomic step: it keeps hosts to their own, the
 * preconditions of operations keep the directory whole. */
#include "srv_bound.h"
#include <string.h>
#include "name.h"
#include "op.h"

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
        return (rc == RAFTDIR_ESTALE || rc == RAFTDIR_ENOTFOUND) && !takes ? 0 : rc;
    }
    if (rc == 0 && subtree_of(op))
        rc = subtree_check(s, server, name, err);
    return rc;
}

int srv_bound_check(struct service *s, const struct access *a, Raftdir__Log__Op *const *ops, size_t n, bool confirmed, struct err *err)
{
    struct store_meta meta;
    if (a->role >= ACCESS_ADMIN || !*a->server)
        return 0;
    int rc = srv_txn(s, &meta, err);
    if (rc != 0)
        return rc;
    bool look_again = false;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        rc = bound_check(s, a->server, ops[i], err);
        if (rc == RAFTDIR_ENOTFOUND || (rc == RAFTDIR_ESTALE && !confirmed)) {
            look_again = true;
            rc = 0;
            continue;
        }
        if (rc == RAFTDIR_ESTALE)
            rc = err->code = RAFTDIR_EPERM;
        if (rc != 0 && n > 1)
            err_wrap(err, "operation %zu", i + 1);
    }
    srv_txn_done(s);
    return rc == 0 && look_again && !confirmed ? RAFTDIR_ENOTFOUND : rc;
}
