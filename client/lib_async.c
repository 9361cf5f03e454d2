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

static int lookup_start(struct raftdir *d, Raftdir__Client__Lookup__ByCase by, const char *key, raftdir_mailbox_fn *done, void *data)
{
    int rc = enter(d, done);
    return rc < 0 ? rc : begin(d, read_lookup(d, by, key), done, data);
}

int raftdir_lookup_start(raftdir *d, const char *name, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, RAFTDIR__CLIENT__LOOKUP__BY_NAME, name, done, data);
}

int raftdir_lookup_uniqueid_start(raftdir *d, const char *uniqueid, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, RAFTDIR__CLIENT__LOOKUP__BY_UNIQUEID, uniqueid, done, data);
}

int raftdir_lookup_user_start(raftdir *d, const char *user, raftdir_mailbox_fn *done, void *data)
{
    return lookup_start(d, RAFTDIR__CLIENT__LOOKUP__BY_USER, user, done, data);
}

int raftdir_my_rights_start(raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n, raftdir_mailbox_fn *done, void *data)
{
    int rc = enter(d, done);
    return rc < 0 ? rc : begin(d, read_my_rights(d, name, user, groups, groups_n), done, data);
}
