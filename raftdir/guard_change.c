/* guard_change.c - membership: changes, catch-up, transfer, applied configurations. See guard.h.
 *
 * An encoded configuration is the core's own format: a byte 1 (version), u64 count, then per server u64 id, address with a zero at its end, a byte role (0
 * standby, 1 voter, 2 spare), padded with zeros to a multiple of 8; integers little-endian. The core decodes it without checking lengths. */
#include <string.h>
#include "guard_internal.h"
#include "limits.h"

#define CONFIGURATION_VERSION 1
#define CONFIGURATION_HEAD_LEN 9

const struct raft_server *guard_server(const struct raft_configuration *c, raft_id id)
{
    for (unsigned i = 0; i < c->n; i++)
        if (c->servers[i].id == id)
            return &c->servers[i];
    return NULL;
}

unsigned guard_voters(const struct raft_configuration *c)
{
    unsigned n = 0;
    for (unsigned i = 0; i < c->n; i++)
        n += c->servers[i].role == RAFT_VOTER;
    return n;
}

bool guard_sole_voter(const struct raft_configuration *c, raft_id id)
{
    const struct raft_server *s = guard_server(c, id);
    return s && s->role == RAFT_VOTER && guard_voters(c) == 1;
}

int guard_configuration_copy(const struct raft_configuration *from, struct raft_configuration *copy_r)
{
    raft_configuration_init(copy_r);
    for (unsigned i = 0; i < from->n; i++)
        if (raft_configuration_add(copy_r, from->servers[i].id, from->servers[i].address, from->servers[i].role)) {
            raft_configuration_close(copy_r);
            return RAFTDIR_ENOMEM;
        }
    return 0;
}

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

bool guard_configuration_valid(const void *data, size_t len)
{
    const uint8_t *p = data, *end;
    if (!p || len < CONFIGURATION_HEAD_LEN || p[0] != CONFIGURATION_VERSION)
        return false;
    end = p + len;
    uint64_t n = get_u64(p + 1);
    p += CONFIGURATION_HEAD_LEN;
    if (n == 0 || n > MEMBERS_MAX)
        return false;
    for (uint64_t i = 0; i < n; i++) {
        if (end - p < 8 || get_u64(p) == 0)
            return false;
        p += 8;
        const uint8_t *zero = memchr(p, 0, (size_t)(end - p));
        if (!zero || end - zero < 2 || zero[1] > RAFT_SPARE)
            return false;
        p = zero + 2;
    }
    return true;
}

int guard_step_configuration(struct guard *g, raft_time now, raft_index index, const void *data, size_t len, struct err *err)
{
    struct guard_step s;
    struct raft_buffer buf = {(void *)(uintptr_t)data, len};
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_CONFIGURATION;
    s.event.configuration.index = index;
    if (!guard_configuration_valid(data, len))
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "the configuration at %llu is malformed", index);
    int rv = raft_configuration_decode(&buf, &s.event.configuration.conf);
    if (rv)
        return guard_fail(g, rv == RAFT_NOMEM ? RAFTDIR_ENOMEM : RAFTDIR_ECORRUPT, err, "the configuration at %llu: %s", index, raft_strerror(rv));
    return guard_step(g, now, &s, NULL, err); /* the core takes the configuration */
}

int guard_configuration(struct guard *g, raft_time now, raft_index index, const void *data, size_t len, struct err *err)
{
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (index == 0 || g->raft.configuration_uncommitted_index != index)
        return 0; /* told before, or replaced by an image */
    return guard_step_configuration(g, now, index, data, len, err);
}

/* --- Prechecks ----------------------------------------------------------------------------------------------------------------- */

static int check_leads(struct guard *g, struct err *err)
{
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (g->raft.state != RAFT_LEADER)
        return err_set(err, RAFTDIR_ENOTLEADER, "this node doesn't lead");
    if (raft_transferee(&g->raft))
        return err_set(err, RAFTDIR_EBUSY, "leadership is being transferred to server %llu", raft_transferee(&g->raft));
    return 0;
}

static int check_no_change(const struct raft *r, struct err *err)
{
    if (r->configuration_uncommitted_index)
        return err_set(err, RAFTDIR_EBUSY, "another change is in progress (entry %llu is not applied yet)", r->configuration_uncommitted_index);
    if (r->leader_state.promotee_id)
        return err_set(err, RAFTDIR_EBUSY, "server %llu is being caught up", r->leader_state.promotee_id);
    return 0;
}

static bool server_differs(const struct raft_server *a, const struct raft_server *b)
{
    return a->role != b->role || strcmp(a->address, b->address) != 0;
}

/* Exactly one server may differ (dissertation section 4.1). */
static int check_one_server(const struct raft_configuration *old, const struct raft_configuration *new, struct err *err)
{
    unsigned differ = 0;
    for (unsigned i = 0; i < old->n; i++) {
        const struct raft_server *s = guard_server(new, old->servers[i].id);
        differ += !s || server_differs(s, &old->servers[i]);
    }
    for (unsigned i = 0; i < new->n; i++)
        differ += !guard_server(old, new->servers[i].id);
    if (differ == 0)
        return err_set(err, RAFTDIR_EINVAL, "the new configuration is the present one");
    if (differ > 1)
        return err_set(err, RAFTDIR_EINVAL, "only one server may be changed at a time, not %u", differ);
    return 0;
}

/* A copy with the servers in their present order, a new one last: the core matches its per-server state by position when the number stays. */
static int in_present_order(const struct raft_configuration *old, const struct raft_configuration *new, struct raft_configuration *copy_r)
{
    int rv = 0;
    raft_configuration_init(copy_r);
    for (unsigned i = 0; i < old->n && !rv; i++) {
        const struct raft_server *s = guard_server(new, old->servers[i].id);
        if (s)
            rv = raft_configuration_add(copy_r, s->id, s->address, s->role);
    }
    for (unsigned i = 0; i < new->n && !rv; i++)
        if (!guard_server(old, new->servers[i].id))
            rv = raft_configuration_add(copy_r, new->servers[i].id, new->servers[i].address, new->servers[i].role);
    if (rv)
        raft_configuration_close(copy_r);
    return rv;
}

static int check_limits(const struct raft_configuration *new, struct err *err)
{
    if (new->n > MEMBERS_MAX)
        return err_set(err, RAFTDIR_ELIMIT, "%u members are too many (limit %d)", new->n, MEMBERS_MAX);
    if (guard_voters(new) > VOTERS_MAX)
        return err_set(err, RAFTDIR_ELIMIT, "%u voters are too many (limit %d)", guard_voters(new), VOTERS_MAX);
    if (guard_voters(new) == 0)
        return err_set(err, RAFTDIR_EINVAL, "the new configuration has no voter");
    return 0;
}

static int check_change(struct guard *g, const struct raft_configuration *new, struct err *err)
{
    const struct raft *r = &g->raft;
    const struct raft_configuration *old = &r->configuration;
    const struct raft_server *self = guard_server(new, r->id);
    int rc;
    if ((rc = check_leads(g, err)) || (rc = check_no_change(r, err)))
        return rc;
    if (guard_on(g, GUARD_BARRIER) && !guard_current_term_committed(g))
        return err_set(err, RAFTDIR_EBUSY, "this leader hasn't committed an entry of its term %llu yet", r->current_term);
    if ((rc = check_one_server(old, new, err)) || (rc = check_limits(new, err)))
        return rc;
    if (guard_on(g, GUARD_NO_SELF_REMOVAL) && (!self || self->role != RAFT_VOTER))
        return err_set(err, RAFTDIR_EINVAL, "the leader can't remove or demote itself: transfer the leadership first");
    /* A server may only come in, or get a vote, when every voter knows the configuration before: a voter that has never heard of the standby that became a
     * voter would refuse its connections. Taking one out needs no such knowledge, and has to be possible while the others that are to go are dead, too. */
    bool shrinks = new->n < old->n || guard_voters(new) < guard_voters(old);
    if (guard_on(g, GUARD_CHANGE_KNOWN) && !shrinks)
        for (unsigned i = 0; i < old->n; i++) {
            raft_index match = 0;
            if (old->servers[i].role != RAFT_VOTER || old->servers[i].id == r->id)
                continue;
            if (raft_match_index(r, old->servers[i].id, &match) || match < r->configuration_committed_index)
                return err_set(err, RAFTDIR_EBUSY, "server %llu has not stored the last change yet (entry %llu); remove it first if it is gone",
                               old->servers[i].id, r->configuration_committed_index);
        }
    return 0;
}

/* --- What the leader is asked for ------------------------------------------------------------------------------------------------ */

int guard_change(struct guard *g, raft_time now, const struct raft_configuration *conf, struct err *err)
{
    struct raft_configuration copy;
    struct raft_entry entry;
    int refused = 0, rc = check_change(g, conf, err);
    if (rc)
        return rc;
    int rv = in_present_order(&g->raft.configuration, conf, &copy);
    if (rv == RAFT_NOMEM)
        return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory for a configuration");
    if (rv)
        return err_set(err, RAFTDIR_EINVAL, "the new configuration: %s", raft_strerror(rv));
    memset(&entry, 0, sizeof entry);
    entry.type = RAFT_CHANGE;
    rv = raft_configuration_encode(&copy, &entry.buf);
    raft_configuration_close(&copy);
    if (rv)
        return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory for a configuration");
    rc = guard_step_submit(g, now, &entry, 1, &refused, err);
    raft_free(entry.buf.base);
    if (!rc && refused)
        return err_set(err, err_from_raft(refused), "change the configuration: %s", raft_strerror(refused));
    return rc;
}

int guard_catch_up(struct guard *g, raft_time now, raft_id id, struct err *err)
{
    struct guard_step s;
    const struct raft *r = &g->raft;
    const struct raft_server *server = guard_server(&r->configuration, id);
    raft_index match = 0;
    int rc;
    if ((rc = check_leads(g, err)) || (rc = check_no_change(r, err)))
        return rc;
    if (!server)
        return err_set(err, RAFTDIR_EINVAL, "server %llu is not a member", id);
    if (server->role == RAFT_VOTER)
        return err_set(err, RAFTDIR_EINVAL, "server %llu is a voter already", id);
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_CATCH_UP;
    s.event.catch_up.server_id = id;
    rc = guard_step(g, now, &s, NULL, err);
    if (rc || !guard_on(g, GUARD_CATCH_UP_IDLE))
        return rc;
    /* The core notices the end of a round only when an answer acknowledges something new. A server that holds everything would be given up
     * as unresponsive in an idle cluster: so there is something new. */
    if (raft_match_index(r, id, &match) || match < guard_trail_last(r))
        return 0;
    return guard_step_barrier(g, now, err);
}

/* The other voter that holds most of the log; 0: there is none. The core's own choice, unless somebody holds all of it, is the last in the list, even if dead.
 */
static raft_id best_transferee(const struct raft *r)
{
    raft_id best = 0;
    raft_index best_match = 0;
    for (unsigned i = 0; i < r->configuration.n; i++) {
        const struct raft_server *s = &r->configuration.servers[i];
        raft_index match = 0;
        if (s->role != RAFT_VOTER || s->id == r->id || raft_match_index(r, s->id, &match))
            continue;
        if (!best || match > best_match) {
            best = s->id;
            best_match = match;
        }
    }
    return best;
}

int guard_transfer(struct guard *g, raft_time now, raft_id id, struct err *err)
{
    struct guard_step s;
    const struct raft *r = &g->raft;
    const struct raft_server *server = guard_server(&r->configuration, id);
    int refused = 0, rc;
    if ((rc = check_leads(g, err)))
        return rc;
    if (id && (!server || server->role != RAFT_VOTER || id == r->id))
        return err_set(err, RAFTDIR_EINVAL, "server %llu is not another voter", id);
    if (!id && !(id = best_transferee(r)))
        return err_set(err, RAFTDIR_EINVAL, "there is no other voter to transfer the leadership to");
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_TRANSFER;
    s.event.transfer.server_id = id;
    rc = guard_step(g, now, &s, &refused, err);
    if (!rc && refused)
        return err_set(err, err_from_raft(refused), "transfer the leadership: %s", raft_strerror(refused));
    return rc;
}
