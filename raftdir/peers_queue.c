/* peers_queue.c - what waits for one member.
 *
 * A connection takes PEER_CONN_LEN_MAX bytes (and the kernel, by TCP_NOTSENT_LOWAT, little more than what is on its way); the rest waits here, in two lanes:
 *   bulk     AppendEntries, InstallSnapshot, Forward, and anything over CONTROL_FRAME_LEN_MAX: in order
 *   control  all the rest: votes, results, probes, freshness, answers. Small, worth nothing when late; they go first
 * As long as nothing waits, frames go to the connection in the order of peers_send. A heartbeat is an AppendEntries: were it to overtake those before it, it
 * would be rejected and replication would start over, so it keeps its place; those before it are as good as heartbeats to the receiver.
 *
 * A full lane drops the newest frame: what the member gets then is a prefix without gaps, which it can use; raft sends the rest again.
 * A member that reads nothing for PEER_STALL_MS (stopped, stuck, cut off) will have no use for what waits: the leader has gone back to probing it. The bulk lane is
 * dropped, and stays empty until bytes move again: so when the member comes back, it gets fresh frames at once, not megabytes of old ones. */
#include "peers_internal.h"
#include <stdlib.h>
#include <string.h>

#define CONTROL_FRAME_LEN_MAX 16384u
#define CONTROL_LEN_MAX (1u << 20)
#define PEER_STALL_MS 1000

static void lane_init(struct peer_lane *l)
{
    l->first = NULL;
    l->last = &l->first;
    l->len = 0;
}

static unsigned lane_clear(struct peer_lane *l)
{
    unsigned n = 0;
    while (l->first) {
        struct peer_waiting *w = l->first;
        l->first = w->next;
        free(w);
        n++;
    }
    lane_init(l);
    return n;
}

void peer_queue_init(struct peer_queue *q)
{
    memset(q, 0, sizeof *q);
    lane_init(&q->control);
    lane_init(&q->bulk);
}

void peer_queue_clear(struct peer_queue *q)
{
    q->dropped += lane_clear(&q->control);
    q->dropped += lane_clear(&q->bulk);
    q->sent_len = 0;
    q->progress_ms = 0;
    q->stalled = false;
}

static bool is_bulk(const uint8_t *frame, size_t len)
{
    struct peer_frame_head head;
    if (len > CONTROL_FRAME_LEN_MAX || !peer_frame_head(frame, len, &head))
        return true;
    return head.body == RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES || head.body == RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT ||
           head.body == RAFTDIR__PEER__FRAME__BODY_FORWARD;
}

static void lane_put(struct peer_queue *q, struct peer_lane *l, size_t max, const uint8_t *frame, size_t len)
{
    struct peer_waiting *w = NULL;
    if (len <= max && l->len <= max - len)
        w = malloc(sizeof *w + len);
    if (!w) { /* full, or no memory: as good as lost on the way */
        q->dropped++;
        return;
    }
    w->next = NULL;
    w->len = len;
    memcpy(w->frame, frame, len);
    *l->last = w;
    l->last = &w->next;
    l->len += len;
}

static bool lane_drain(struct peer_queue *q, struct peer_lane *l, struct conn *c)
{
    while (l->first) {
        struct peer_waiting *w = l->first;
        int rc = conn_send(c, w->frame, w->len);
        if (rc == RAFTDIR_ELIMIT)
            return false;
        if (rc)
            q->dropped++;
        l->first = w->next;
        if (!l->first)
            l->last = &l->first;
        l->len -= w->len;
        free(w);
    }
    return true;
}

void peer_queue_drain(struct peer_queue *q, struct conn *c, uint64_t now)
{
    peer_queue_tick(q, c, now);
    if (lane_drain(q, &q->control, c))
        lane_drain(q, &q->bulk, c);
}

uint64_t peer_queue_tick(struct peer_queue *q, struct conn *c, uint64_t now)
{
    bool idle = !q->control.first && !q->bulk.first && conn_queued_len(c) == 0;
    uint64_t sent = conn_sent_len(c);
    if (idle || sent != q->sent_len || !q->progress_ms) {
        q->sent_len = sent;
        q->progress_ms = now;
        q->stalled = false;
        return idle ? UINT64_MAX : now + PEER_STALL_MS;
    }
    if (now < q->progress_ms + PEER_STALL_MS)
        return q->progress_ms + PEER_STALL_MS;
    if (!q->stalled) {
        q->stalled = true;
        q->dropped += lane_clear(&q->bulk);
    }
    return now + PEER_STALL_MS;
}

void peer_queue_send(struct peer_queue *q, struct conn *c, uint64_t now, const uint8_t *frame, size_t len)
{
    peer_queue_tick(q, c, now);
    if (!q->control.first && !q->bulk.first) {
        int rc = conn_send(c, frame, len);
        if (rc == 0)
            return;
        if (rc != RAFTDIR_ELIMIT) {
            q->dropped++;
            return;
        }
    }
    if (!is_bulk(frame, len))
        lane_put(q, &q->control, CONTROL_LEN_MAX, frame, len);
    else if (q->stalled)
        q->dropped++;
    else
        lane_put(q, &q->bulk, PEER_QUEUE_LEN_MAX, frame, len);
}
