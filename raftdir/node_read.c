/* node_read.c - linearizable reads, and how old a node's state may be (DESIGN D7).
 *
 * Linearizable (Raft dissertation section 6.4, with our own correlation, since an AppendEntries result proves nothing about time): the leader, having
 * committed an entry of its term, notes the commit index, sends PROBE(term, seq) to the voters; a peer answers only while its current term is that term; with a
 * majority, and still leading in that term, the read may be served from any state that has applied the noted index. One probe serves all reads that came before
 * it was sent. No leases: they are not sound on this core.
 *
 * Age: a leader's state is as fresh as the send time of its last confirmed probe; a follower asks (Freshness) and is as fresh as its own send time less the leader's age,
 * once it has applied what the leader had committed then. No clock of another machine is compared with ours. The question also carries what the asker says of
 * itself (node_image.c). */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "node_internal.h"

/* Until an entry of its own term is committed a leader doesn't know how far earlier leaders have committed: its state may be old. */
#define COMMIT_UNKNOWN UINT64_MAX

/* --- Freshness ------------------------------------------------------------------------------------------------------------ */

/* Everything committed at `at_ms` is in the state once `index` is applied. */
static void fresh_note(struct node *n, uint64_t at_ms, uint64_t index)
{
    if (n->fresh_pending_n == FRESH_PENDING) { /* apply is far behind: keep the oldest, they come true first */
        n->fresh_pending[FRESH_PENDING - 1].at_ms = at_ms;
        n->fresh_pending[FRESH_PENDING - 1].index = index;
    } else {
        n->fresh_pending[n->fresh_pending_n].at_ms = at_ms;
        n->fresh_pending[n->fresh_pending_n].index = index;
        n->fresh_pending_n++;
    }
    node_reads_applied(n);
}

void node_reads_applied(struct node *n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n->fresh_pending_n; i++) {
        if (n->fresh_pending[i].index > n->meta.applied_index) {
            n->fresh_pending[kept++] = n->fresh_pending[i];
        } else if (!n->fresh_known || n->fresh_pending[i].at_ms > n->fresh_ms) {
            n->fresh_known = true;
            n->fresh_ms = n->fresh_pending[i].at_ms;
        }
    }
    n->fresh_pending_n = kept;
}

uint64_t node_reads_age(const struct node *n)
{
    return n->fresh_known ? n->now - n->fresh_ms : UINT64_MAX;
}

/* --- Probes ----------------------------------------------------------------------------------------------------------------- */

uint64_t node_reads_leader_age(const struct node *n)
{
    if (!n->probe_confirmed || n->probes[n->probe_confirmed % PROBE_RING].seq != n->probe_confirmed)
        return UINT64_MAX;
    return n->now - n->probes[n->probe_confirmed % PROBE_RING].sent_ms;
}

static bool is_voter(const struct node *n, uint64_t id)
{
    const struct raft_server *s = node_server(n, id);
    return s && s->role == RAFT_VOTER;
}

static void read_unlink(struct node *n, struct read *r)
{
    DL_DELETE(n->reads, r);
    if (!r->local)
        HASH_DEL(n->peer_reads, r);
}

static void read_done(struct node *n, struct read *r, int code, uint64_t index)
{
    read_unlink(n, r);
    if (r->local) {
        n->io.read_done(n->io.data, r->local, code, index);
    } else {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__ReadIndexResult body = RAFTDIR__PEER__READ_INDEX_RESULT__INIT;
        node_frame_init(n, &f, r->peer, RAFTDIR__PEER__FRAME__BODY_READ_INDEX_RESULT);
        f.read_index_result = &body;
        body.corr = r->corr;
        body.code = code;
        body.has_index = true;
        body.index = index;
        node_frame_send(n, &f);
    }
    free(r);
}

/* The highest sequence that a majority of the voters, this node included, has answered. */
static void probes_count(struct node *n)
{
    const struct raft_configuration *c = &n->raft->configuration;
    uint64_t acked[MEMBERS_MAX];
    size_t voters = 0;
    for (unsigned i = 0; i < c->n && voters < MEMBERS_MAX; i++) {
        if (c->servers[i].role != RAFT_VOTER)
            continue;
        uint64_t seq = n->probe_seq;
        if (c->servers[i].id != n->options.id) {
            const struct node_peer_state *p = node_peer_state(n, c->servers[i].id);
            seq = p ? p->probe_acked : 0;
        }
        size_t at = voters++;
        for (; at > 0 && acked[at - 1] < seq; at--) /* descending; a handful of voters */
            acked[at] = acked[at - 1];
        acked[at] = seq;
    }
    uint64_t confirmed = voters ? acked[voters / 2] : 0;
    if (confirmed <= n->probe_confirmed)
        return;
    n->probe_confirmed = confirmed;
    if (n->probes[confirmed % PROBE_RING].seq == confirmed && n->probes[confirmed % PROBE_RING].commit != COMMIT_UNKNOWN)
        fresh_note(n, n->probes[confirmed % PROBE_RING].sent_ms, n->probes[confirmed % PROBE_RING].commit);
    struct read *r, *tmp;
    DL_FOREACH_SAFE(n->reads, r, tmp)
        if (r->state == READ_PROBED && r->probe_seq <= confirmed)
            read_done(n, r, 0, r->index);
}

static void probe_send(struct node *n)
{
    const struct raft_configuration *c = &n->raft->configuration;
    uint64_t seq = ++n->probe_seq;
    struct read *r;
    n->probes[seq % PROBE_RING].seq = seq;
    n->probes[seq % PROBE_RING].sent_ms = n->now;
    n->probes[seq % PROBE_RING].commit = guard_current_term_committed(n->guard) ? n->commit : COMMIT_UNKNOWN;
    n->probe_sent_ms = n->now;
    if (guard_current_term_committed(n->guard))
        DL_FOREACH(n->reads, r)
            if (r->state == READ_PROBE) {
                r->state = READ_PROBED;
                r->index = n->commit;
                r->probe_seq = seq;
            }
    for (unsigned i = 0; i < c->n; i++) {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__Probe body = RAFTDIR__PEER__PROBE__INIT;
        if (c->servers[i].role != RAFT_VOTER || c->servers[i].id == n->options.id)
            continue;
        node_frame_init(n, &f, c->servers[i].id, RAFTDIR__PEER__FRAME__BODY_PROBE);
        f.probe = &body;
        body.term = n->term;
        body.seq = seq;
        node_frame_send(n, &f);
    }
    probes_count(n); /* a sole voter is its own majority */
}

void node_reads_probe(struct node *n, uint64_t from, const Raftdir__Peer__Probe *p)
{
    Raftdir__Peer__Frame f;
    Raftdir__Peer__ProbeAck body = RAFTDIR__PEER__PROBE_ACK__INIT;
    if (p->term != raft_current_term(n->raft) || raft_state(n->raft) == RAFT_LEADER)
        return;
    node_frame_init(n, &f, from, RAFTDIR__PEER__FRAME__BODY_PROBE_ACK);
    f.probe_ack = &body;
    body.term = p->term;
    body.seq = p->seq;
    node_frame_send(n, &f);
}

void node_reads_probe_ack(struct node *n, uint64_t from, const Raftdir__Peer__ProbeAck *p)
{
    struct node_peer_state *peer = node_peer_state(n, from);
    if (n->state != RAFT_LEADER || p->term != n->term || p->seq > n->probe_seq || !peer || !is_voter(n, from))
        return;
    if (p->seq > peer->probe_acked) {
        peer->probe_acked = p->seq;
        probes_count(n);
    }
}

void node_reads_freshness(struct node *n, uint64_t from, const Raftdir__Peer__Freshness *q)
{
    Raftdir__Peer__Frame f;
    Raftdir__Peer__FreshnessAck body = RAFTDIR__PEER__FRESHNESS_ACK__INIT;
    node_images_told(n, from, q);
    uint64_t age = node_reads_leader_age(n);
    if (n->failed || n->state != RAFT_LEADER || age == UINT64_MAX || !guard_current_term_committed(n->guard))
        return;
    node_frame_init(n, &f, from, RAFTDIR__PEER__FRAME__BODY_FRESHNESS_ACK);
    f.freshness_ack = &body;
    body.seq = q->seq;
    body.term = n->term;
    body.commit_index = n->commit;
    body.leader_age_ms = age;
    body.log_time_ms = node_log_time(n);
    raft_index match = 0;
    body.has_match_index = raft_match_index(n->raft, from, &match) == 0;
    body.match_index = match;
    node_frame_send(n, &f);
}

void node_reads_freshness_ack(struct node *n, uint64_t from, const Raftdir__Peer__FreshnessAck *a)
{
    if (from != n->leader || a->term != n->term || a->seq > n->freshness_seq || a->seq + PROBE_RING <= n->freshness_seq)
        return;
    /* Acknowledged in this very term, and a leader's log only grows in its term: a log that ends below it was put back from a copy, or its disk lost what it
     * had synced. The core of the leader takes our rejections for late ones and would wait for ever; worse, our vote would count. */
    if (a->has_match_index && a->match_index > node_last_index(n)) {
        err_set(&n->err, RAFTDIR_ECORRUPT,
                "this node has acknowledged entry %llu to its leader, but its log ends at %llu: its data_dir was put back from a copy, or its disk lost what it had synced. "
                "Remove this member and join it anew with an empty data_dir",
                (unsigned long long)a->match_index, (unsigned long long)node_last_index(n));
        node_fail(n, RAFTDIR_ECORRUPT, n->err.text);
        return;
    }
    uint64_t sent = n->freshness_sent[a->seq % PROBE_RING];
    node_log_time_told(n, a->log_time_ms);
    fresh_note(n, sent > a->leader_age_ms ? sent - a->leader_age_ms : 0, a->commit_index);
}

/* --- Reads ---------------------------------------------------------------------------------------------------------------------- */

static void read_dispatch(struct node *n, struct read *r)
{
    if (n->state == RAFT_LEADER) {
        r->state = READ_PROBE;
    } else if (n->leader && r->local) {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__ReadIndex body = RAFTDIR__PEER__READ_INDEX__INIT;
        node_frame_init(n, &f, n->leader, RAFTDIR__PEER__FRAME__BODY_READ_INDEX);
        f.read_index = &body;
        body.corr = r->corr;
        r->state = READ_FORWARDED;
        r->sent_ms = n->now;
        node_frame_send(n, &f);
    }
}

static struct read *read_create(struct node *n, struct node_read *local, uint64_t peer, uint64_t corr, uint64_t deadline_ms)
{
    struct read *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->local = local;
    r->peer = peer;
    r->corr = corr;
    r->state = READ_WAITING;
    r->since_ms = n->now;
    r->deadline_ms = deadline_ms;
    DL_APPEND(n->reads, r);
    if (!local)
        HASH_ADD(hh, n->peer_reads, peer, 2 * sizeof r->peer, r);
    return r;
}

void node_read(struct node *n, uint64_t now, struct node_read *local)
{
    if (now > n->now)
        n->now = now;
    struct read *r = read_create(n, local, 0, n->corr_next++, local->deadline_ms);
    local->own = r;
    if (!r) {
        node_fail(n, RAFTDIR_ENOMEM, "no memory for a read");
        n->io.read_done(n->io.data, local, RAFTDIR_ENOMEM, 0);
        return;
    }
    if (!n->failed)
        read_dispatch(n, r);
}

void node_reads_read_index(struct node *n, uint64_t from, const Raftdir__Peer__ReadIndex *q)
{
    struct read *r;
    const uint64_t key[2] = {from, q->corr};
    if (n->state != RAFT_LEADER)
        return; /* it asks again, or somebody else */
    HASH_FIND(hh, n->peer_reads, key, sizeof key, r);
    if (r || HASH_COUNT(n->peer_reads) >= WRITES_INFLIGHT_MAX)
        return;
    r = read_create(n, NULL, from, q->corr, n->now + REQUEST_TIMEOUT_DEFAULT_MS);
    if (r)
        read_dispatch(n, r);
}

void node_reads_read_index_result(struct node *n, uint64_t from, const Raftdir__Peer__ReadIndexResult *a)
{
    struct read *r, *tmp;
    (void)from; /* whoever confirmed it was the leader when it did, and the read had begun: that is enough */
    DL_FOREACH_SAFE(n->reads, r, tmp)
        if (r->local && r->corr == a->corr) {
            if (a->code == 0 && a->has_index)
                read_done(n, r, 0, a->index);
            return; /* refused: it waits for a better leader */
        }
}

void node_reads_leader_changed(struct node *n)
{
    struct read *r, *tmp;
    n->probe_confirmed = 0;
    n->probe_seq++; /* answers of an earlier term carry that term; the sequence is never used twice all the same */
    for (size_t i = 0; i < n->peers_n; i++)
        n->peers[i].probe_acked = 0;
    DL_FOREACH_SAFE(n->reads, r, tmp) {
        if (!r->local) {
            read_unlink(n, r); /* its node asks the new leader */
            free(r);
            continue;
        }
        r->state = READ_WAITING;
        read_dispatch(n, r);
    }
}

void node_reads_period(struct node *n)
{
    struct read *r, *tmp;
    bool no_leader = n->leader_lost_ms && n->now - n->leader_lost_ms >= NO_QUORUM_AFTER_MS;
    if (n->state == RAFT_LEADER) {
        if (n->now - n->probe_sent_ms >= PROBE_INTERVAL_MS)
            probe_send(n);
    } else if (n->leader && n->now - n->freshness_sent_ms >= FRESHNESS_INTERVAL_MS) {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__Freshness body = RAFTDIR__PEER__FRESHNESS__INIT;
        n->freshness_seq++;
        n->freshness_sent[n->freshness_seq % PROBE_RING] = n->now;
        n->freshness_sent_ms = n->now;
        node_frame_init(n, &f, n->leader, RAFTDIR__PEER__FRAME__BODY_FRESHNESS);
        f.freshness = &body;
        body.seq = n->freshness_seq;
        node_images_tell(n, &body);
        node_frame_send(n, &f);
    }
    DL_FOREACH_SAFE(n->reads, r, tmp) {
        if (n->now >= r->deadline_ms || (r->state == READ_WAITING && no_leader && n->now - r->since_ms >= NO_QUORUM_AFTER_MS))
            read_done(n, r, RAFTDIR_ENOQUORUM, 0);
        else if (r->state == READ_WAITING || (r->state == READ_FORWARDED && n->now - r->sent_ms >= READ_RESEND_MS))
            read_dispatch(n, r);
    }
}

/* One probe for all reads of this burst. */
void node_reads_flush(struct node *n)
{
    struct read *r;
    if (n->failed) {
        while (n->reads)
            read_done(n, n->reads, RAFTDIR_EFAILED, 0);
        return;
    }
    if (n->state != RAFT_LEADER || !guard_current_term_committed(n->guard))
        return;
    DL_FOREACH(n->reads, r)
        if (r->state == READ_PROBE) {
            probe_send(n);
            return;
        }
}

void node_reads_close(struct node *n)
{
    struct read *r, *tmp;
    DL_FOREACH_SAFE(n->reads, r, tmp) {
        read_unlink(n, r);
        if (r->local)
            n->io.read_done(n->io.data, r->local, RAFTDIR_ECANCELED, 0);
        free(r);
    }
}
