/* node_image.c - images, as far as consensus has to do with them (DESIGN D9): when one is needed, and what members tell each other meanwhile. See node.h.
 *
 * The receiver. The leader's core, when its log begins after what a follower holds, sends an InstallSnapshot: our manifest, without data, repeated. It is never
 * stepped into the follower's core, which would forget its log, refuse to vote and wait. The node stays a follower as any other, its election timer is reset by the
 * heartbeats that come between the manifests (it rejects them, for their predecessor isn't in its log), and the daemon is told that an image is wanted. When one is
 * complete and durable, this node ends and another is made on it: same id, term and vote, an empty log that begins after the image.
 *
 * The leader. Its core is in snapshot mode for that member then, and would send manifests for ever: it ignores where a rejection says that the log ends, and leaves
 * the mode only when the member acknowledges the index of the newest snapshot, which moves on under writes. So the member's applied index, which each
 * Freshness frame carries, is stepped as an acknowledgement (guard_acknowledged).
 *
 * The log between. While a member says that it fetches an image of index A, everybody who hears it keeps the log from A on (node_log.c): the
 * leader, by Freshness; the other voters, one of which may lead by the time it is installed, by a copy of that frame. The leader keeps it from its applied index
 * on when the image is in its place, until the member has caught up. All that ends LOG_HOLD_MS after the last word. */
#include "node_internal.h"

/* --- The receiver ----------------------------------------------------------------------------------------------------------- */

bool node_image_wanted(const struct node *n, uint64_t index, uint64_t term)
{
    if (n->failed || n->state == RAFT_LEADER || n->meta.applied_index >= index)
        return false;
    const struct entry *e = node_entry(n, index);
    return !e || e->term != term;
}

void node_image_fetching(struct node *n, uint64_t index)
{
    n->image_fetching = index;
    n->image_told_ms = 0;
}

bool node_images_needed(const struct node *n)
{
    /* Another leader has to say so itself: its log may reach further back. */
    return n->image_index && n->image_leader_term == n->term && node_image_wanted(n, n->image_index, n->image_term);
}

/* Only the leader of our term sends one. One of an earlier term is late. In a later term the leader's heartbeat comes first, or next. In the first moments of a node's
 * life the leader may not have heard yet what it holds: a node that was just made on an image mustn't fetch the next one. */
void node_images_manifest(struct node *n, uint64_t from, const Raftdir__Peer__InstallSnapshot *m)
{
    if (!m->last_index || !m->last_term || m->last_term > m->term) {
        n->frames_dropped++;
        return;
    }
    if (n->now - n->started_ms < IMAGE_REPEAT_MS)
        return;
    if (m->term != n->term || from != n->leader || n->state != RAFT_FOLLOWER || !node_image_wanted(n, m->last_index, m->last_term))
        return;
    n->image_index = m->last_index;
    n->image_term = m->last_term;
    n->image_leader_term = m->term;
    n->io.image_wanted(n->io.data, m->last_index, m->last_term);
}

void node_images_tell(const struct node *n, Raftdir__Peer__Freshness *q)
{
    q->has_applied_index = true;
    q->applied_index = n->meta.applied_index;
    q->has_image_index = n->image_fetching != 0;
    q->image_index = n->image_fetching;
    q->has_space = true;
    q->space = (uint32_t)n->space;
}

/* The leader hears it with our Freshness; the other voters, so that they keep their logs as well. Only a leader answers. */
void node_images_period(struct node *n)
{
    const struct raft_configuration *c = &n->raft->configuration;
    if (n->failed || !n->image_fetching || (n->image_told_ms && n->now - n->image_told_ms < IMAGE_REPEAT_MS))
        return;
    n->image_told_ms = n->now;
    for (unsigned i = 0; i < c->n; i++) {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__Freshness body = RAFTDIR__PEER__FRESHNESS__INIT;
        if (c->servers[i].role != RAFT_VOTER || c->servers[i].id == n->options.id || c->servers[i].id == n->leader)
            continue;
        node_frame_init(n, &f, c->servers[i].id, RAFTDIR__PEER__FRAME__BODY_FRESHNESS);
        f.freshness = &body;
        body.seq = n->freshness_seq; /* sent before now: should it be answered, it proves no more than it may */
        node_images_tell(n, &body);
        node_frame_send(n, &f);
    }
}

/* --- Those who hear it -------------------------------------------------------------------------------------------------------- */

void node_images_told(struct node *n, uint64_t from, const Raftdir__Peer__Freshness *q)
{
    struct node_peer_state *p = node_peer_state(n, from);
    if (!p || !node_server(n, from))
        return;
    p->told_ms = n->now;
    if (q->has_space)
        p->space = q->space > NODE_SPACE_NONE ? NODE_SPACE_NONE : (enum node_space)q->space;
    if (q->has_image_index && q->image_index) {
        p->image_index = q->image_index;
        p->image_ms = n->now;
    } else if (p->image_index && q->has_applied_index && q->applied_index >= p->image_index) {
        /* Installed: it catches up, until it has applied what was committed when it was last heard. */
        p->image_index = q->applied_index >= p->told_commit ? 0 : q->applied_index;
        p->image_ms = n->now;
    }
    p->told_commit = n->commit;
    if (n->state == RAFT_LEADER && q->has_applied_index) {
        int rc = guard_acknowledged(n->guard, n->now, from, q->applied_index, &n->err);
        if (rc)
            node_fail(n, rc, n->err.text);
        node_settle(n);
    }
}

uint64_t node_images_held(const struct node *n)
{
    uint64_t lowest = UINT64_MAX;
    for (size_t i = 0; i < n->peers_n; i++) {
        const struct node_peer_state *p = &n->peers[i];
        /* What is gone already helps nobody: that member has to fetch another image. */
        if (p->image_index >= n->log_first && n->now - p->image_ms < LOG_HOLD_MS && p->image_index < lowest)
            lowest = p->image_index;
    }
    return lowest;
}
