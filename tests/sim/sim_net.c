/* sim_net.c - the network: frames as bytes, from machine to machine.
 *
 * Two kinds of links. As TCP: frames arrive in order; a loss is a reset, which takes everything in flight in both directions with it. As
 * datagrams: each frame may be lost, doubled, overtaken or late by itself, which is harsher than the product's transport. Both know cuts
 * (whole groups, or links in one direction only), which lose what is sent and what arrives during them.
 * The sender's identity is that of the machine at the time of sending, as mutual TLS would have it. */
#include "sim.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "peer.pb-c.h"

struct frame {
    struct sim_node *from, *to;
    unsigned from_epoch, to_epoch, gen;
    uint64_t from_id, to_id;
    size_t len;
    uint8_t data[];
};

static unsigned link_gen[SLOTS_MAX][SLOTS_MAX];
static uint64_t link_last[SLOTS_MAX][SLOTS_MAX];
static bool cut[SLOTS_MAX][SLOTS_MAX];

bool net_open(const struct sim_node *a, const struct sim_node *b)
{
    return !cut[a->slot][b->slot] && !cut[b->slot][a->slot];
}

/* A connection's ends check id and UUID by the newest list of members that they know (raftdir/peers_hello.c). Here a stranger's frames pass, which the transport
 * wouldn't let them: a list may be old. But nobody passes for a member with another directory. */
static bool knows_as_another(const struct sim_node *n, const struct sim_node *who)
{
    struct node_peer peers[MEMBERS_MAX];
    if (!who->clone || planted(PLANT_CLONE))
        return false;
    size_t members = node_members(n->node, node_clock(n), peers, MEMBERS_MAX);
    for (size_t i = 0; i < members; i++)
        if (peers[i].id == who->id)
            return memcmp(peers[i].uuid, who->clone_uuid, NODE_UUID_LEN) != 0;
    return true;
}

static void reset_link(unsigned a, unsigned b)
{
    link_gen[a][b]++;
    link_gen[b][a]++;
    sim.stats.resets++;
}

void net_reset(const struct sim_node *n)
{
    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        link_gen[n->slot][i]++;
        link_gen[i][n->slot]++;
    }
}

static void trace_frame(const char *what, const struct frame *f)
{
    if (!sim.options.trace)
        return;
    Raftdir__Peer__Frame *m = raftdir__peer__frame__unpack(NULL, f->len, f->data);
    if (!m) {
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s %zu bytes of garbage", f->from_id, f->to_id, what, f->len);
        return;
    }
    switch (m->body_case) {
    case RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s RequestVote term %" PRIu64 " last %" PRIu64 "/%" PRIu64 "%s%s", f->from_id, f->to_id, what,
              m->request_vote->term, m->request_vote->last_log_index, m->request_vote->last_log_term,
              m->request_vote->pre_vote ? " pre" : "", m->request_vote->disrupt_leader ? " disrupt" : "");
        break;
    case RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE_RESULT:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s RequestVoteResult term %" PRIu64 " %s%s", f->from_id, f->to_id, what,
              m->request_vote_result->term, m->request_vote_result->vote_granted ? "granted" : "refused",
              m->request_vote_result->pre_vote ? " pre" : "");
        break;
    case RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s AppendEntries term %" PRIu64 " prev %" PRIu64 "/%" PRIu64 " n %zu commit %" PRIu64, f->from_id,
              f->to_id, what, m->append_entries->term, m->append_entries->prev_log_index, m->append_entries->prev_log_term,
              m->append_entries->n_entries, m->append_entries->leader_commit);
        break;
    case RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES_RESULT:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s AppendEntriesResult term %" PRIu64 " last %" PRIu64 " rejected %" PRIu64, f->from_id, f->to_id,
              what, m->append_entries_result->term, m->append_entries_result->last_log_index, m->append_entries_result->rejected);
        break;
    case RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s InstallSnapshot term %" PRIu64 " last %" PRIu64 "/%" PRIu64, f->from_id, f->to_id, what,
              m->install_snapshot->term, m->install_snapshot->last_index, m->install_snapshot->last_term);
        break;
    case RAFTDIR__PEER__FRAME__BODY_FRESHNESS:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s Freshness applied %" PRIu64 " image %" PRIu64 " space %u", f->from_id, f->to_id, what,
              m->freshness->applied_index, m->freshness->image_index, m->freshness->space);
        break;
    default:
        TRACE("net: %" PRIu64 " > %" PRIu64 " %s %s, %zu bytes", f->from_id, f->to_id, what,
              m->body_case == RAFTDIR__PEER__FRAME__BODY_TIMEOUT_NOW         ? "TimeoutNow"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_PROBE             ? "Probe"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_PROBE_ACK         ? "ProbeAck"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_FRESHNESS_ACK     ? "FreshnessAck"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_READ_INDEX        ? "ReadIndex"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_READ_INDEX_RESULT ? "ReadIndexResult"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_FORWARD           ? "Forward"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_FORWARD_RESULT    ? "ForwardResult"
              : m->body_case == RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS       ? "Checkpoints"
                                                                             : "other",
              f->len);
    }
    raftdir__peer__frame__free_unpacked(m, NULL);
}

static void frame_drop(struct event *ev)
{
    free(ev->data);
}

/* Noise, or a frame that is not for this member of this cluster: dropped and counted. */
static void deliver_foreign(struct sim_node *to, const struct frame *f)
{
    uint8_t noise[64], *data = noise;
    size_t len = rnd_in(0, sizeof noise);
    Raftdir__Peer__Frame *m = chance(500) ? raftdir__peer__frame__unpack(NULL, f->len, f->data) : NULL;
    if (m) {
        unsigned what = rnd_in(0, 3);
        if (what == 0)
            m->cluster_id++;
        else if (what == 1)
            m->incarnation++;
        else if (what == 2)
            m->to++;
        else
            m->from++;
        len = raftdir__peer__frame__get_packed_size(m);
        data = xcalloc(1, len);
        raftdir__peer__frame__pack(m, data);
        raftdir__peer__frame__free_unpacked(m, NULL);
    } else {
        for (size_t i = 0; i < len; i++)
            noise[i] = (uint8_t)rnd();
    }
    uint64_t dropped = to->status.frames_dropped, last = to->status.last_index, term = to->status.term;
    unsigned epoch = to->epoch;
    node_enter(to);
    node_receive(to->node, node_clock(to), f->from_id, data, len);
    node_leave(to);
    if (to->up && to->epoch == epoch && !to->failed &&
        (to->status.frames_dropped != dropped + 1 || to->status.last_index != last || to->status.term != term))
        sim_violation("foreign frame", "member %" PRIu64 " takes a frame that is not for it", to->id);
    if (data != noise)
        free(data);
    sim.stats.foreign++;
}

static void frame_arrive(struct event *ev)
{
    struct frame *f = ev->data;
    struct sim_node *to = f->to;
    bool lost = cut[f->from->slot][to->slot] || f->to_id != to->id || knows_as_another(to, f->from);
    if (sim.config.fifo)
        lost = lost || f->gen != link_gen[f->from->slot][to->slot];
    if (lost) {
        sim.stats.frames_lost++;
        trace_frame("lost", f);
    } else {
        if (!sim.healing && chance(2))
            deliver_foreign(to, f);
        if (!to->up) { /* died of it, at a crash point */
            free(f);
            return;
        }
        trace_frame("got", f);
        if (f->from->clone || to->clone)
            sim_violation("identity", "a frame passes between machines %u and %u, one of which runs a copy of member %" PRIu64 "'s disk", f->from->slot + 1,
                          to->slot + 1, f->from->clone ? f->from->id : to->id);
        sim_hash(f->data, f->len);
        node_enter(to);
        node_receive(to->node, node_clock(to), f->from_id, f->data, f->len);
        node_leave(to);
    }
    free(f);
}

static void post_frame(struct sim_node *from, struct sim_node *to, const uint8_t *data, size_t len, uint64_t delay)
{
    struct frame *f = xcalloc(1, sizeof *f + len);
    f->from = from;
    f->to = to;
    f->from_id = from->id;
    f->to_id = to->id;
    f->gen = link_gen[from->slot][to->slot];
    f->len = len;
    memcpy(f->data, data, len);
    event_post(delay, frame_arrive, frame_drop, to, f, 0);
}

void net_send(struct sim_node *from, uint64_t to_id, const uint8_t *frame, size_t len)
{
    struct sim_node *to = to_id < IDS_MAX ? sim.by_id[to_id] : NULL;
    unsigned a = from->slot;
    sim.stats.frames++;
    if (!to || !to->up || to == from) {
        sim.stats.frames_lost++;
        return;
    }
    unsigned b = to->slot;
    if (planted(PLANT_MUTE_NODE) && sim.healing && from->id == sim.id_max)
        return;
    uint64_t delay = rnd_in(1, sim.config.latency_max_ms);
    bool faulty = !sim.healing;
    if (sim.config.fifo) {
        if (cut[a][b] || (faulty && chance(sim.config.loss / 8))) {
            reset_link(a, b);
            sim.stats.frames_lost++;
            return;
        }
        if (faulty && chance(sim.config.straggle))
            delay += rnd_in(20, 1200);
        if (sim.now + delay < link_last[a][b])
            delay = link_last[a][b] - sim.now;
        link_last[a][b] = sim.now + delay;
        post_frame(from, to, frame, len, delay);
        return;
    }
    if (cut[a][b] || (faulty && chance(sim.config.loss))) {
        sim.stats.frames_lost++;
        return;
    }
    if (faulty && chance(sim.config.straggle))
        delay += rnd_in(50, 2500);
    post_frame(from, to, frame, len, delay);
    if (faulty && chance(sim.config.duplicate))
        post_frame(from, to, frame, len, delay + rnd_in(0, 1500));
}

void net_partition(void)
{
    unsigned n = sim.config.slots;
    bool side[SLOTS_MAX];
    for (unsigned i = 0; i < n; i++)
        side[i] = chance(500);
    bool one_way = chance(350);
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n; j++)
            cut[i][j] = i != j && (one_way ? side[i] && !side[j] : side[i] != side[j]);
    if (chance(200)) /* a mesh with holes */
        for (unsigned i = 0; i < n; i++)
            for (unsigned j = 0; j < n; j++)
                cut[i][j] = i != j && chance(300);
    sim.stats.partitions++;
    TRACE("net: partition%s", one_way ? ", one way" : "");
}

void net_isolate(const struct sim_node *n)
{
    bool in = chance(700), out = !in || chance(700);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        if (i == n->slot)
            continue;
        cut[i][n->slot] |= in;
        cut[n->slot][i] |= out;
    }
    sim.stats.partitions++;
    TRACE("net: machine %u is cut off%s%s", n->slot + 1, in ? ", inwards" : "", out ? ", outwards" : "");
}

void net_heal(void)
{
    memset(cut, 0, sizeof cut);
    TRACE("net: healed");
}
