/* lib_async.c - reads that don't wait: begun here, answered from lib_wait.c's turns. A read that this host's copy of the state answers ends at once;
 * its callback is called in the next turn all the same, never from within the call that began it. */
#include "lib_internal.h"

static int enter(struct raftdir *d, raftdir_mailbox_fn *done)
{
    int rc = lib_enter_callback(d);
    if (rc < 0)
        return rc;
    if (!done)
        return err_set(&d->err, RAFTDIR_EINVAL, "no callback");
    if (d->reads_n >= READS_MAX)
        return err_set(&d->err, RAFTDIR_ELIMIT, "%d reads are in flight: that is the limit", READS_MAX);
    return 0;
}

static int begin(struct raftdir *d, struct call *c, raftdir_mailbox_fn *done, void *data)
{
    if (!c)
        return d->err.code;
    c->answered_fn = done;
    c->data = data;
    d->reads_n++;
    engine_begin(c);
    return 0;
}

/* From this host's copy of the state, if that may answer; else LOCAL_PASS. */
static int begin_local(struct raftdir *d, const struct local_question *q, raftdir_mailbox_fn *done, void *data)
{
    const struct raftdir_mailbox *m;
    int code = local_ask(d, q, &m);
    if (code == LOCAL_PASS || code == RAFTDIR_ENOMEM)
        return code;
    struct call *c = call_create(d, CALL_HEDGE, RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP);
    if (!c || (code == 0 && !(c->found = raftdir_mailbox_copy(m)))) {
        call_destroy(&c);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    c->answered_fn = done;
    c->data = data;
    d->reads_n++;
    engine_begin_ended(c, code, d->err.text);
    d->err.code = 0; /* it is the read's, not this call's */
    d->err.text[0] = '\0';
    return 0;
}

static int lookup_start(struct raftdir *d, enum local_kind kind, Raftdir__Client__Lookup__ByCase by, const char *key, raftdir_mailbox_fn *done, void *data)
{
    struct local_question q = {.kind = kind, .key = key};
    int rc = enter(d, done);
    if (rc < 0)
        return rc;
    if (key && *key && (rc = begin_local(d, &q, done, data)) != LOCAL_PASS)
        return rc;
    return begin(d, read_lookup(d, by, key), done, data);
}

int raftdir_lookup_start(raftdir *d, const char *name, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, LOCAL_LOOKUP_NAME, RAFTDIR__CLIENT__LOOKUP__BY_NAME, name, done, data);
}

int raftdir_lookup_uniqueid_start(raftdir *d, const char *uniqueid, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, LOCAL_LOOKUP_UNIQUEID, RAFTDIR__CLIENT__LOOKUP__BY_UNIQUEID, uniqueid, done, data);
}

int raftdir_lookup_user_start(raftdir *d, const char *user, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, LOCAL_LOOKUP_USER, RAFTDIR__CLIENT__LOOKUP__BY_USER, user, done, data);
}

int raftdir_my_rights_start(raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n, raftdir_mailbox_fn *done, void *data)
{
    struct local_question q = {.kind = LOCAL_RIGHTS, .key = name, .user = user, .groups = groups, .groups_n = groups_n};
    int rc = enter(d, done);
    if (rc < 0)
        return rc;
    if (name && *name && user && *user && (rc = begin_local(d, &q, done, data)) != LOCAL_PASS)
        return rc;
    return begin(d, read_my_rights(d, name, user, groups, groups_n), done, data);
}
