/* guard_receive.c - messages of peers, checked and repaired before the core sees them. See guard.h.
 *
 * A peer's mistake is never this process's end: what is malformed is counted and dropped (the core asserts, or worse, trusts it). The one exception:
 * another leader in our own term is proof of divergence, and this node stops.
 *
 * Who may say what (GUARD_NONMEMBER). The transport has authenticated the sender as somebody who is or was a member by *its* list. Measured by the newest
 * configuration in our own log, which may be older than the sender's:
 * - a node without any configuration (a standby that is being added) listens to everybody;
 * - AppendEntries and InstallSnapshot pass from anybody: who sends them was elected, and may be a server that we haven't heard of yet. If its term is
 *   below ours, the answer tells it to step down;
 * - RequestVote passes, except at a leader: a voter that we don't know yet may need our vote, for good if we are a candidate that
 *   can't win. A leader that is current can ignore a stranger; one that isn't loses its quorum and passes the next one as a follower. But a
 *   stranger never has the permission to unseat a leader (disrupt_leader is cleared): at most its hand-over takes an election timeout longer;
 * - results and TimeoutNow of non-members are dropped: they would count for nothing, except that their term makes a leader step down. */
#include <string.h>
#include "guard_internal.h"
#include "limits.h"

static bool append_valid(const struct raft_append_entries *a)
{
    raft_term term = a->prev_log_term;
    if (!a->term || (a->prev_log_index == 0) != (term == 0) || term > a->term || (a->n_entries && !a->entries))
        return false;
    if (a->prev_log_index + a->n_entries < a->prev_log_index)
        return false;
    for (unsigned i = 0; i < a->n_entries; i++) {
        const struct raft_entry *e = &a->entries[i];
        if (e->term == 0 || e->term < term || e->term > a->term)
            return false;
        if (e->type != RAFT_COMMAND && e->type != RAFT_BARRIER && e->type != RAFT_CHANGE)
            return false;
        if (e->type == RAFT_CHANGE && !guard_configuration_valid(e->buf.base, e->buf.len))
            return false;
        term = e->term;
    }
    return true;
}

static bool message_valid(const struct guard *g, const struct raft_message *m)
{
    if (m->server_id == 0 || m->server_id == g->raft.id)
        return false;
    switch (m->type) {
    case RAFT_APPEND_ENTRIES:
        return append_valid(&m->append_entries);
    case RAFT_APPEND_ENTRIES_RESULT:
        return m->append_entries_result.term != 0;
    case RAFT_REQUEST_VOTE:
        return m->request_vote.term && m->request_vote.candidate_id == m->server_id;
    case RAFT_REQUEST_VOTE_RESULT:
        return m->request_vote_result.term != 0;
    case RAFT_INSTALL_SNAPSHOT:
        return m->install_snapshot.term && m->install_snapshot.last_index && m->install_snapshot.last_term &&
               m->install_snapshot.last_term <= m->install_snapshot.term && m->install_snapshot.conf.n;
    case RAFT_TIMEOUT_NOW:
        return m->timeout_now.term != 0;
    }
    return false;
}

/* What the sender may say; see above. May take the permission to disrupt from the message. */
static bool sender_may(const struct guard *g, struct raft_message *m)
{
    const struct raft *r = &g->raft;
    if (!guard_on(g, GUARD_NONMEMBER) || r->configuration.n == 0 || guard_server(&r->configuration, m->server_id))
        return true;
    switch (m->type) {
    case RAFT_APPEND_ENTRIES:
    case RAFT_INSTALL_SNAPSHOT:
        return true;
    case RAFT_REQUEST_VOTE:
        m->request_vote.disrupt_leader = false;
        return r->state != RAFT_LEADER;
    default:
        return false;
    }
}

static int step_message(struct guard *g, raft_time now, struct raft_message *m, struct guard_step *s, struct err *err)
{
    memset(&s->event, 0, sizeof s->event);
    s->event.type = RAFT_RECEIVE;
    s->event.receive.message = m;
    return guard_step(g, now, s, NULL, err);
}

/* --- AppendEntries ------------------------------------------------------------------------------------------------------------ */

/* Before the core takes a CHANGE while an earlier one is still uncommitted to it: leaders propose a second one only when the first is
 * committed. So if our log agrees with the leader's up to `prev`, the earlier one is committed, and the core must know before it forgets it. */
static int tell_previous_change(struct guard *g, raft_time now, raft_index prev, raft_term prev_term, struct err *err)
{
    const struct raft *r = &g->raft;
    raft_index index = r->configuration_uncommitted_index;
    if (index == 0 || index > prev || guard_trail_term(r, prev) != prev_term)
        return 0;
    const struct raft_entry *e = g->ops.entry_at(g->ops.data, index);
    if (!e || e->type != RAFT_CHANGE)
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "the log doesn't hold the configuration at %llu", index);
    return guard_step_configuration(g, now, index, e->buf.base, e->buf.len, err);
}

static int step_append(struct guard *g, raft_time now, const struct raft_message *whole, raft_index prev, raft_term prev_term, const struct raft_entry *entries,
                       unsigned n, struct guard_step *s, struct err *err)
{
    struct raft_message m = *whole;
    struct raft_entry *batch = NULL;
    if (n) {
        batch = raft_malloc(n * sizeof *batch); /* from here on the core's or guard_step's */
        if (!batch)
            return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory for %u received entries", n);
        memcpy(batch, entries, n * sizeof *batch);
        for (unsigned i = 0; i < n; i++)
            batch[i].batch = batch;
    }
    m.append_entries.prev_log_index = prev;
    m.append_entries.prev_log_term = prev_term;
    m.append_entries.entries = batch;
    m.append_entries.n_entries = n;
    return step_message(g, now, &m, s, err);
}

static int receive_append(struct guard *g, raft_time now, const struct raft_message *m, struct err *err)
{
    struct raft *r = &g->raft;
    const struct raft_append_entries *a = &m->append_entries;
    const struct raft_entry *entries = a->entries;
    unsigned n = a->n_entries;
    raft_index prev = a->prev_log_index;
    raft_term prev_term = a->prev_log_term;
    struct guard_step s;
    memset(&s, 0, sizeof s);
    s.stale = a->term < r->current_term;
    if (s.stale)
        return step_append(g, now, m, prev, prev_term, entries, n, &s, err);
    g->leader_contact = now;
    if (guard_on(g, GUARD_TRIM) && !r->snapshot.installing) {
        /* What is applied is committed, hence the same in the leader's log; where our own log is cut, the core can't compare. */
        raft_index applied = g->ops.applied_index(g->ops.data);
        if (prev < applied && prev <= r->trail.offset) {
            unsigned known = applied - prev < n ? (unsigned)(applied - prev) : n;
            entries += known;
            n -= known;
            prev = applied;
            prev_term = g->ops.applied_term(g->ops.data);
            g->counts.trimmed++;
        }
    }
    for (;;) {
        unsigned chunk = n;
        if (guard_on(g, GUARD_SPLIT_CHANGE))
            for (unsigned i = 1; i < n; i++)
                if (entries[i].type == RAFT_CHANGE) {
                    chunk = i;
                    break;
                }
        if (chunk && entries[0].type == RAFT_CHANGE && guard_on(g, GUARD_PREVIOUS_CHANGE)) {
            int rc = tell_previous_change(g, now, prev, prev_term, err);
            if (rc)
                return rc;
        }
        int rc = step_append(g, now, m, prev, prev_term, entries, chunk, &s, err);
        if (rc || s.rejected || chunk == n)
            return rc;
        prev += chunk;
        prev_term = entries[chunk - 1].term;
        entries += chunk;
        n -= chunk;
    }
}

/* A rejection that was overtaken: the follower has acknowledged more since. Only that it is alive still counts. */
static void defuse_late_rejection(struct guard *g, raft_id from, struct raft_append_entries_result *a)
{
    raft_index match, hint = a->last_log_index;
    if (!a->rejected || g->raft.state != RAFT_LEADER || a->term != g->raft.current_term)
        return;
    if (hint >= a->rejected)
        hint = a->rejected - 1; /* as the core reads it */
    if (raft_match_index(&g->raft, from, &match) || hint >= match)
        return;
    a->rejected = 0;
    a->last_log_index = 0;
    g->counts.late_rejections++;
}

/* --- Votes -------------------------------------------------------------------------------------------------------------------- */

/* The core refuses to vote if its own configuration says that it is no voter. But the candidate's newer configuration may count on this vote.
 * (Dissertation section 4.2.3: votes are granted whatever the configuration says.)
 *
 * And it refuses while it remembers a leader, which is until its own timer fires, up to two election timeouts after the last sign of life; a
 * non-voter has no timer and never forgets. Section 4.2.3 says "within the minimum election timeout of hearing from a current leader": so after that a silent
 * leader is forgotten, and the first candidate after a leader's death wins, not the second. */
static int receive_request_vote(struct guard *g, raft_time now, struct raft_message *m, struct err *err)
{
    struct raft *r = &g->raft;
    struct raft_server *self = NULL;
    struct guard_step s;
    int role = RAFT_VOTER;
    if (guard_on(g, GUARD_SILENT_LEADER) && r->state == RAFT_FOLLOWER && now - g->leader_contact >= r->election_timeout)
        r->follower_state.current_leader.id = 0;
    if (guard_on(g, GUARD_NONVOTER_VOTE)) {
        self = (struct raft_server *)(uintptr_t)guard_server(&r->configuration, r->id);
        if (self && self->role != RAFT_VOTER) {
            role = self->role;
            self->role = RAFT_VOTER;
        } else {
            self = NULL;
        }
    }
    memset(&s, 0, sizeof s);
    int rc = step_message(g, now, m, &s, err); /* doesn't change the configuration */
    if (self)
        self->role = role;
    return rc;
}

static int receive_install(struct guard *g, raft_time now, struct raft_message *m, struct err *err)
{
    struct guard_step s;
    memset(&s, 0, sizeof s);
    s.stale = m->install_snapshot.term < g->raft.current_term;
    if (!s.stale)
        g->leader_contact = now;
    /* The core would ignore it, and lose the configuration. The sender repeats it. */
    if (g->raft.snapshot.installing) {
        raft_configuration_close(&m->install_snapshot.conf);
        return 0;
    }
    memset(&m->install_snapshot.data, 0, sizeof m->install_snapshot.data);
    return step_message(g, now, m, &s, err);
}

int guard_receive(struct guard *g, raft_time now, struct raft_message *m, struct err *err)
{
    struct raft *r = &g->raft;
    struct guard_step s;
    raft_term leads = 0;
    if (g->failed) {
        if (m->type == RAFT_INSTALL_SNAPSHOT)
            raft_configuration_close(&m->install_snapshot.conf);
        return err_set(err, g->failed, "consensus has stopped after an error");
    }
    if (!m->server_address)
        m->server_address = "";
    bool valid = message_valid(g, m);
    if (!valid || !sender_may(g, m)) {
        if (valid)
            g->counts.strangers++;
        else
            g->counts.malformed++;
        if (m->type == RAFT_INSTALL_SNAPSHOT)
            raft_configuration_close(&m->install_snapshot.conf);
        return 0;
    }
    if (m->type == RAFT_APPEND_ENTRIES)
        leads = m->append_entries.term;
    else if (m->type == RAFT_INSTALL_SNAPSHOT)
        leads = m->install_snapshot.term;
    if (leads == r->current_term && r->state == RAFT_LEADER) {
        if (m->type == RAFT_INSTALL_SNAPSHOT)
            raft_configuration_close(&m->install_snapshot.conf);
        return guard_fail(g, RAFTDIR_ECORRUPT, err, "server %llu leads term %llu as well as this one: their logs may differ", m->server_id, leads);
    }
    memset(&s, 0, sizeof s);
    switch (m->type) {
    case RAFT_APPEND_ENTRIES:
        return receive_append(g, now, m, err);
    case RAFT_INSTALL_SNAPSHOT:
        return receive_install(g, now, m, err);
    case RAFT_APPEND_ENTRIES_RESULT:
        if (guard_on(g, GUARD_LATE_REJECT))
            defuse_late_rejection(g, m->server_id, &m->append_entries_result);
        return step_message(g, now, m, &s, err);
    case RAFT_REQUEST_VOTE:
        m->request_vote.version = 2;
        return receive_request_vote(g, now, m, err);
    case RAFT_REQUEST_VOTE_RESULT:
        /* In another state the core looks at whether it is in pre-vote, which shares its memory with something else then. */
        if (guard_on(g, GUARD_VOTE_RESULT) && r->state != RAFT_CANDIDATE)
            return 0;
        m->request_vote_result.version = 2;
        return step_message(g, now, m, &s, err);
    case RAFT_TIMEOUT_NOW:
        if (guard_on(g, GUARD_SOLE_TIMEOUT) && guard_voters(&r->configuration) == 1)
            return 0;
        return step_message(g, now, m, &s, err);
    }
    return 0;
}
