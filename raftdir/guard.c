/* guard.c - the core's life, the driver's events, time. See guard.h; the guards themselves are listed in GUARDS.md. */
#include "guard.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "guard_internal.h"
#include "limits.h"

int guard_create(const struct guard_options *options, const struct guard_ops *ops, struct guard **guard_r, struct err *err)
{
    assert(options->id && ops->on_update && ops->entry_at && ops->applied_index && ops->applied_term);
    if (!options->election_timeout_ms || !options->heartbeat_ms || options->heartbeat_ms >= options->election_timeout_ms)
        return err_set(err, RAFTDIR_EINVAL, "the heartbeat (%u ms) must be shorter than the election timeout (%u ms)", options->heartbeat_ms,
                       options->election_timeout_ms);
    struct guard *g = calloc(1, sizeof *g); /* raft_init wants zeros */
    if (!g)
        return err_set(err, RAFTDIR_ENOMEM, "no memory for the consensus core");
    int rv = raft_init(&g->raft, NULL, NULL, options->id, options->address ? options->address : "");
    if (rv) {
        free(g);
        return err_set(err, err_from_raft(rv), "initialise the consensus core: %s", raft_strerror(rv));
    }
    g->raft.tracer = NULL; /* else each log line of the core is formatted, to be thrown away */
    g->ops = *ops;
    g->off = options->off;
    raft_seed(&g->raft, options->seed);
    raft_set_election_timeout(&g->raft, options->election_timeout_ms);
    raft_set_heartbeat_timeout(&g->raft, options->heartbeat_ms);
    /* A follower's rejections end the core's snapshot mode only when they are about the newest snapshot, which moves on. Else this does. */
    raft_set_install_snapshot_timeout(&g->raft, IMAGE_REPEAT_MS);
    raft_set_pre_vote(&g->raft, true);
    if (options->max_inflight_entries)
        raft_set_max_inflight_entries(&g->raft, options->max_inflight_entries);
    *guard_r = g;
    return 0;
}

void guard_destroy(struct guard **guard)
{
    struct guard *g = *guard;
    if (!g)
        return;
    raft_close(&g->raft, NULL);
    free(g);
    *guard = NULL;
}

struct raft *guard_raft(struct guard *g)
{
    return &g->raft;
}

const struct guard_counts *guard_counts(const struct guard *g)
{
    return &g->counts;
}

/* --- Start ------------------------------------------------------------------------------------------------------------------ */

/* Is this server the only voter of the newest configuration in what START is given? -1: a CHANGE is malformed. */
static int start_as_sole_voter(const struct guard *g, const struct guard_start *start)
{
    const struct raft_entry *newest = NULL;
    for (unsigned i = 0; i < start->n_entries; i++) {
        const struct raft_entry *e = &start->entries[i];
        if (e->type != RAFT_CHANGE)
            continue;
        if (!guard_configuration_valid(e->buf.base, e->buf.len))
            return -1;
        if (!start->metadata || start->start_index + i > start->metadata->configuration_index)
            newest = e;
    }
    if (!newest)
        return start->metadata && guard_sole_voter(&start->metadata->configuration, g->raft.id);
    struct raft_configuration c;
    if (raft_configuration_decode(&newest->buf, &c))
        return -1;
    bool sole = guard_sole_voter(&c, g->raft.id);
    raft_configuration_close(&c);
    return sole;
}

int guard_start(struct guard *g, raft_time now, const struct guard_start *start, struct err *err)
{
    struct guard_step s;
    struct raft_entry *entries = NULL;
    unsigned n = start->n_entries;
    raft_index first = start->start_index, applied = start->metadata ? start->metadata->index : 0;
    int rc, sole = start_as_sole_voter(g, start);
    if (g->failed)
        rc = err_set(err, g->failed, "consensus has stopped after an error");
    else if (sole < 0)
        rc = guard_fail(g, RAFTDIR_ECORRUPT, err, "a configuration in the log is malformed");
    else if (n && (first == 0 || first > applied + 1))
        rc = guard_fail(g, RAFTDIR_ECORRUPT, err, "the log starts at %llu, but only %llu is applied: entries are missing", first, applied);
    else if (!start->metadata && n && start->entries[0].type != RAFT_CHANGE)
        rc = guard_fail(g, RAFTDIR_ECORRUPT, err, "the log doesn't start with a configuration");
    else if (start->term == 0 && (applied || n))
        rc = guard_fail(g, RAFTDIR_ECORRUPT, err, "there is a log, but no term");
    else
        rc = 0;
    if (rc)
        goto close_configuration;
    /* A log that ends below the applied state tells the core nothing. */
    if (n == 0 || first + n - 1 < applied) {
        n = 0;
        first = applied + 1;
    }
    if (n) {
        entries = raft_malloc(n * sizeof *entries); /* the core frees it, and each batch, on some errors */
        if (!entries) {
            rc = guard_fail(g, RAFTDIR_ENOMEM, err, "no memory to start with %u entries", n);
            goto close_configuration;
        }
        memcpy(entries, start->entries, n * sizeof *entries);
        for (unsigned i = 0; i < n; i++)
            entries[i].batch = entries;
    }
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_START;
    s.event.start.term = start->term;
    s.event.start.voted_for = start->voted_for;
    s.event.start.metadata = start->metadata;
    s.event.start.start_index = first;
    s.event.start.entries = entries;
    s.event.start.n_entries = n;
    if (sole && guard_on(g, GUARD_SOLE_START)) {
        /* The core becomes leader in the very term that it is given. In a new one it can't write a second payload for an index and term. */
        s.event.start.term++;
        s.event.start.voted_for = g->raft.id;
        s.new_term = true;
    }
    g->leader_contact = now;
    rc = guard_step(g, now, &s, NULL, err);
    if (s.stepped)
        raft_free(entries); /* when the core itself fails it is unknown who owns it: the node ends */
    return rc;

close_configuration:
    if (start->metadata)
        raft_configuration_close(&start->metadata->configuration);
    return rc;
}

/* --- Time ------------------------------------------------------------------------------------------------------------------- */

/* A follower that is the only voter becomes leader on a timeout without a new term or a vote. So it first votes for itself: the core gets a
 * RequestVote of our own for the next term, newer than any log, and the update makes both durable. */
static int vote_for_self(struct guard *g, raft_time now, struct err *err)
{
    struct raft *r = &g->raft;
    struct raft_message m;
    struct guard_step s;
    raft_term term = r->current_term + 1;
    if (r->state != RAFT_FOLLOWER || now < raft_timeout(r) || r->snapshot.installing || r->last_stored < guard_trail_last(r) ||
        !guard_sole_voter(&r->configuration, r->id))
        return 0;
    memset(&m, 0, sizeof m);
    m.type = RAFT_REQUEST_VOTE;
    m.server_id = r->id;
    m.server_address = r->address;
    m.request_vote.version = 2;
    m.request_vote.term = term;
    m.request_vote.candidate_id = r->id;
    m.request_vote.last_log_index = guard_trail_last(r);
    m.request_vote.last_log_term = term;
    m.request_vote.disrupt_leader = true;
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_RECEIVE;
    s.event.receive.message = &m;
    s.own_vote = true;
    s.timer = r->election_timer_start; /* granting a vote re-arms the timer, which has to stay expired */
    int rc = guard_step(g, now, &s, NULL, err);
    if (rc)
        return rc;
    if (r->current_term != term || r->voted_for != r->id)
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "the core didn't take this sole voter's vote: term %llu, vote %llu", r->current_term, r->voted_for);
    return 0;
}

int guard_timeout(struct guard *g, raft_time now, struct err *err)
{
    struct guard_step s;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    g->timeout_stepped = now;
    if (guard_on(g, GUARD_SOLE_TIMEOUT)) {
        int rc = vote_for_self(g, now, err);
        if (rc)
            return rc;
    }
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_TIMEOUT;
    return guard_step(g, now, &s, NULL, err);
}

raft_time guard_deadline(struct guard *g, raft_time now)
{
    const struct raft *r = &g->raft;
    raft_time at = raft_timeout(r), soonest = now + 1;
    /* A leader's deadline can lie in the past for good (a member that it sends nothing to): then look a few times per heartbeat, no more. */
    if (at <= now && r->state == RAFT_LEADER && g->timeout_stepped + r->heartbeat_timeout / 4 > soonest)
        soonest = g->timeout_stepped + r->heartbeat_timeout / 4;
    raft_time latest = now + 2 * (raft_time)r->election_timeout;
    return at < soonest ? soonest : at > latest ? latest : at;
}

/* --- Stored, applied, submitted ---------------------------------------------------------------------------------------------- */

int guard_persisted_entries(struct guard *g, raft_time now, raft_index index, struct err *err)
{
    struct guard_step s;
    const struct raft *r = &g->raft;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (index <= r->last_stored || r->snapshot.installing)
        return 0; /* nothing new; or the image that comes replaces them */
    if (index > guard_trail_last(r) || r->state == RAFT_CANDIDATE)
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "entry %llu is reported as stored, but the log ends at %llu", index, guard_trail_last(r));
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_PERSISTED_ENTRIES;
    s.event.persisted_entries.index = index;
    return guard_step(g, now, &s, NULL, err);
}

int guard_persisted_snapshot(struct guard *g, raft_time now, const struct raft_snapshot_metadata *metadata, struct err *err)
{
    struct guard_step s;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (!g->raft.snapshot.installing || g->raft.trail.snapshot.index != metadata->index)
        return guard_fail(g, RAFTDIR_EINVAL, err, "image %llu is reported as stored, but none of that index is being installed", metadata->index);
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_PERSISTED_SNAPSHOT;
    s.event.persisted_snapshot.metadata = *metadata;
    s.event.persisted_snapshot.last = true;
    if (guard_configuration_copy(&metadata->configuration, &s.event.persisted_snapshot.metadata.configuration))
        return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory for a configuration");
    return guard_step(g, now, &s, NULL, err);
}

int guard_snapshot(struct guard *g, raft_time now, const struct raft_snapshot_metadata *metadata, unsigned trailing, struct err *err)
{
    struct guard_step s;
    const struct raft *r = &g->raft;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (metadata->index <= r->trail.snapshot.index || r->snapshot.installing)
        return 0; /* strictly increasing (ordering rule 7) */
    if (metadata->index > r->commit_index || guard_trail_term(r, metadata->index) != metadata->term)
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "state %llu of term %llu is reported as durable, but commit is %llu and the log says term %llu",
                          metadata->index, metadata->term, r->commit_index, guard_trail_term(r, metadata->index));
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_SNAPSHOT;
    s.event.snapshot.metadata = *metadata;
    s.event.snapshot.trailing = trailing;
    if (guard_configuration_copy(&metadata->configuration, &s.event.snapshot.metadata.configuration))
        return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory for a configuration");
    return guard_step(g, now, &s, NULL, err);
}

/* In snapshot mode the core takes nothing from a rejection, and leaves the mode only when the newest snapshot's index is acknowledged: by a core that was
 * given an image. Ours never is (a node is made anew on it), so its index has to come another way.
 *
 * Why this is safe. `index` is applied at that server: committed, by whichever leader in whichever term, and durable there, in its log or in a durable image. By
 * leader completeness each later leader's log holds the same entries up to it, and a server never gives up what it has applied: the statement doesn't age,
 * and needs no term. A leader that doesn't know yet that `index` is committed ignores it (it is told again), so nothing is ever committed by it either:
 * it only moves the match index, below the commit index, and what hangs on it (where to send from, catch-up rounds, who knows the last change). */
int guard_acknowledged(struct guard *g, raft_time now, raft_id id, raft_index index, struct err *err)
{
    struct raft *r = &g->raft;
    struct raft_message m;
    struct guard_step s;
    raft_index match = 0;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (!guard_on(g, GUARD_ACKNOWLEDGED) || r->state != RAFT_LEADER || id == r->id || index > r->commit_index || raft_match_index(r, id, &match) || index <= match)
        return 0;
    memset(&m, 0, sizeof m);
    m.type = RAFT_APPEND_ENTRIES_RESULT;
    m.server_id = id;
    m.server_address = "";
    m.append_entries_result.version = 1;
    m.append_entries_result.term = r->current_term;
    m.append_entries_result.last_log_index = index;
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_RECEIVE;
    s.event.receive.message = &m;
    return guard_step(g, now, &s, NULL, err);
}

int guard_submit(struct guard *g, raft_time now, const struct raft_entry *entries, unsigned n, struct err *err)
{
    int refused = 0;
    if (g->failed)
        return err_set(err, g->failed, "consensus has stopped after an error");
    if (!n)
        return err_set(err, RAFTDIR_EINVAL, "nothing to submit");
    for (unsigned i = 0; i < n; i++)
        if (entries[i].type != RAFT_COMMAND && entries[i].type != RAFT_BARRIER)
            return err_set(err, RAFTDIR_EINVAL, "only commands and barriers are submitted; a configuration goes through guard_change");
    if (g->raft.state != RAFT_LEADER)
        return err_set(err, RAFTDIR_ENOTLEADER, "this node doesn't lead");
    if (raft_transferee(&g->raft))
        return err_set(err, RAFTDIR_EBUSY, "leadership is being transferred to server %llu", raft_transferee(&g->raft));
    int rc = guard_step_submit(g, now, entries, n, &refused, err);
    if (!rc && refused)
        return err_set(err, err_from_raft(refused), "submit: %s", raft_strerror(refused));
    return rc;
}

void guard_log_range(const struct guard *g, raft_index *first_r, raft_index *last_r)
{
    *first_r = g->raft.trail.offset + 1;
    *last_r = guard_trail_last(&g->raft);
}

bool guard_current_term_committed(struct guard *g)
{
    const struct raft *r = &g->raft;
    return r->current_term && guard_trail_term(r, r->commit_index) == r->current_term;
}
