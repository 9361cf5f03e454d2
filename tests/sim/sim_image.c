/* sim_image.c - images between members: what the daemon's fetching and sending threads do, on simulated time.
 *
 * The receiver goes on as a follower while it fetches. It asks any member that has applied enough, the leader last; frame by frame the image goes into a directory
 * beside its environment, by the product's own reader and writer; then it is verified, and if the driver still wants it, it takes the place of state and log.
 * A broken connection: it goes on where it was if the sender still has the snapshot, or begins again, there or elsewhere. A damaged frame, a dead sender: it begins
 * again. When the receiver dies, what it has staged is rubbish. While a sender is paused or its disk is slow nothing comes. */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/image.h"

#define TRIES_MAX 30

struct sim_fetch {
    unsigned number;
    uint64_t index_min;
    unsigned tries;
    struct sim_node *from;
    uint64_t from_id, pin;
    bool connected;
    unsigned duration_ms; /* of the whole transfer */
    bool damaged; /* a frame was, and perhaps not one with a checksum of its own */
    struct image_reader *reader; /* the sender's; NULL: it has nothing for us any more */
    struct image_writer *writer;
    struct image_progress progress;
    char dir[192];
};

static void connect(struct event *ev);
static void step(struct event *ev);

static void later(struct sim_node *n, uint64_t delay, void (*run)(struct event *))
{
    event_post(delay, run, NULL, n, NULL, n->fetch->number);
}

/* As long as these rows take. */
static uint64_t rows_ms(const struct sim_fetch *f, uint64_t rows)
{
    return f->progress.rows_total ? rows * f->duration_ms / f->progress.rows_total + 1 : 1;
}

/* The fetch that the event is about is still going on. */
static bool current(const struct event *ev)
{
    return ev->node->fetch && ev->node->fetch->number == ev->a && !ev->node->failed;
}

static void fetching(struct sim_node *n, uint64_t index)
{
    node_enter(n);
    node_image_fetching(n->node, index);
    node_leave(n);
}

static void forget_staged(struct sim_fetch *f)
{
    image_writer_end(&f->writer);
    if (f->dir[0])
        apply_unstage(f->dir);
    f->dir[0] = '\0';
}

static void forget_sender(struct sim_fetch *f)
{
    image_reader_end(&f->reader);
    f->from = NULL;
    f->connected = false;
}

void image_fetch_drop(struct sim_node *n)
{
    if (!n->fetch)
        return;
    sim.fetched_at = sim.now;
    forget_sender(n->fetch);
    forget_staged(n->fetch);
    free(n->fetch);
    n->fetch = NULL;
}

void image_send_drop(const struct sim_node *n)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].fetch && sim.nodes[i].fetch->from == n)
            forget_sender(sim.nodes[i].fetch);
}

static void give_up(struct sim_node *n)
{
    TRACE("image: %" PRIu64 " gives this attempt up", n->id);
    image_fetch_drop(n);
    fetching(n, 0);
}

static unsigned sends(const struct sim_node *n)
{
    unsigned count = 0;
    for (unsigned i = 0; i < sim.config.slots; i++)
        count += sim.nodes[i].fetch && sim.nodes[i].fetch->from == n && sim.nodes[i].fetch->connected;
    return count;
}

static bool can_send(const struct sim_node *m, const struct sim_node *to, uint64_t index_min)
{
    /* A member whose state differs would spread it: nobody can tell until the next checkpoint (README.md, "What is not simulated"). */
    return m != to && node_serves(m) && !m->differs && m->paused_until <= sim.now && net_open(m, to) && m->applied_seen >= index_min && sends(m) < IMAGE_SENDS_MAX;
}

static struct sim_node *choose_sender(const struct sim_node *to, uint64_t index_min)
{
    struct sim_node *leader = NULL;
    unsigned first = rnd_in(0, sim.config.slots - 1);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *m = &sim.nodes[(first + i) % sim.config.slots];
        if (!can_send(m, to, index_min))
            continue;
        if (m->status.state != NODE_LEADER)
            return m;
        leader = m;
    }
    return leader;
}

static void again(struct sim_node *n, const char *why)
{
    TRACE("image: %" PRIu64 " begins again: %s", n->id, why);
    forget_sender(n->fetch);
    forget_staged(n->fetch);
    later(n, rnd_in(1, 100), connect);
}

/* Takes a frame; false: the transfer is over, begun again or given up. */
static bool take(struct sim_node *n, const uint8_t *frame, size_t len)
{
    struct sim_fetch *f = n->fetch;
    struct err err;
    bool damaged = !sim.healing && chance(sim.config.image_damage);
    uint8_t *copy = xmemdup(frame, len);
    if (damaged)
        copy[rnd_in(0, (unsigned)len - 1)] ^= (uint8_t)(1u << rnd_in(0, 7));
    sim_hash(copy, len);
    int rc = image_writer_frame(f->writer, copy, len, &err);
    free(copy);
    f->damaged |= damaged;
    if (!rc)
        return true;
    if (!f->damaged)
        sim_violation("image", "member %" PRIu64 " refuses what member %" PRIu64 " sends: %s", n->id, f->from_id, err.text);
    again(n, err.text);
    return false;
}

static bool header(struct sim_node *n)
{
    struct sim_fetch *f = n->fetch;
    const uint8_t *frame;
    size_t len;
    struct err err;
    int rc = image_reader_header(f->reader, &frame, &len, &err);
    if (rc)
        sim_violation("image", "member %" PRIu64 " has no header for its image: %s", f->from_id, err.text);
    return take(n, frame, len);
}

static void connect(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct sim_fetch *f = n->fetch;
    struct err err;
    if (!current(ev))
        return;
    if (planted(PLANT_IMAGE_NEVER) || ++f->tries > TRIES_MAX) {
        give_up(n);
        return;
    }
    if (f->reader && chance(700) && can_send(f->from, n, 0)) { /* the sender keeps the snapshot for a while */
        const Raftdir__Image__Position *at = image_writer_position(f->writer);
        if (image_reader_seek(f->reader, at, &err)) {
            if (!f->damaged) /* else it may have been the header's number of the image */
                sim_violation("image", "member %" PRIu64 " can't go on with its own image: %s", f->from_id, err.text);
            again(n, err.text);
            return;
        }
        TRACE("image: %" PRIu64 " goes on at member %" PRIu64, n->id, f->from_id);
        f->connected = true;
        if (header(n))
            later(n, rnd_in(1, 10), step);
        return;
    }
    forget_sender(f);
    forget_staged(f);
    struct sim_node *from = choose_sender(n, f->index_min);
    if (!from) {
        later(n, rnd_in(50, 500), connect);
        return;
    }
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    apply_stage(n, f->dir);
    f->damaged = false;
    f->duration_ms = rnd_in(10, sim.config.image_ms);
    f->from = from;
    f->from_id = from->id;
    f->pin = rnd();
    if (image_reader_begin(from->store, CLUSTER_ID, 1, f->pin, &f->reader, &err))
        sim_violation("image", "member %" PRIu64 " can't read its state: %s", from->id, err.text);
    if (image_writer_begin(f->dir, &options, CLUSTER_ID, 1, &f->writer, &err))
        sim_violation("image", "member %" PRIu64 " can't stage an image: %s", n->id, err.text);
    f->connected = true;
    TRACE("image: %" PRIu64 " fetches index %" PRIu64 " from member %" PRIu64, n->id, image_reader_index(f->reader), from->id);
    sim.stats.fetches++;
    uint64_t index = image_reader_index(f->reader);
    if (!header(n))
        return;
    later(n, rnd_in(1, 10), step);
    fetching(n, index); /* last: the node may die of it */
}

/* Verified, and if it is still wanted it takes the place of state and log. */
static void finished(struct event *ev)
{
    struct sim_node *n = ev->node;
    if (!current(ev))
        return;
    struct sim_fetch *f = n->fetch;
    uint64_t index = f->progress.index, term = f->progress.term;
    node_enter(n);
    bool wanted = node_image_wanted(n->node, index, term);
    node_leave(n);
    if (!n->up || n->epoch != ev->epoch)
        return;
    if (!wanted && !planted(PLANT_IMAGE_OLD)) {
        TRACE("image: %" PRIu64 " doesn't want it any more", n->id);
        give_up(n);
        return;
    }
    if (planted(PLANT_IMAGE_LOST_ROW))
        plant_break_index(f->dir);
    check_image(n, f->dir, index, term);
    f->dir[0] = '\0'; /* it isn't rubbish any more */
    node_image(n, index, term);
}

static void complete(struct sim_node *n)
{
    struct sim_fetch *f = n->fetch;
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    struct err err;
    int rc = image_writer_finish(f->writer, &err);
    if (!rc) {
        image_writer_progress(f->writer, &f->progress);
        image_writer_end(&f->writer);
        rc = image_check(f->dir, &options, &f->progress, NULL, &err);
    }
    if (rc && f->damaged) {
        again(n, err.text);
        return;
    }
    if (rc)
        sim_violation("image", "member %" PRIu64 " got a bad image from member %" PRIu64 ": %s", n->id, f->from_id, err.text);
    forget_sender(f);
    later(n, rnd_in(1, sim.config.image_ms / 2), finished);
}

static void step(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct sim_fetch *f = n->fetch;
    const uint8_t *frame;
    size_t len;
    struct err err;
    if (!current(ev))
        return;
    if (!f->reader || !net_open(f->from, n) || !node_serves(f->from) || f->from->id != f->from_id || (!sim.healing && chance(sim.config.image_break))) {
        sim.stats.fetch_breaks++;
        f->connected = false;
        later(n, rnd_in(1, 500), connect);
        return;
    }
    if (f->from->paused_until > sim.now) {
        later(n, f->from->paused_until - sim.now, step);
        return;
    }
    int rc = image_reader_next(f->reader, &frame, &len, &err);
    if (rc)
        sim_violation("image", "member %" PRIu64 " can't go on with its image: %s", f->from_id, err.text);
    if (!take(n, frame, len))
        return;
    uint64_t before = f->progress.rows;
    image_writer_progress(f->writer, &f->progress);
    if (f->progress.complete)
        complete(n);
    else
        later(n, rows_ms(f, f->progress.rows - (f->progress.rows > before ? before : 0)) + (f->from->disk.slow_until > sim.now ? rnd_in(0, 50) : 0), step);
}

void image_wanted(struct sim_node *n, uint64_t index)
{
    TRACE("image: %" PRIu64 " wants one at %" PRIu64 " or later", n->id, index);
    if (n->fetch) {
        if (index > n->fetch->index_min)
            n->fetch->index_min = index; /* for the next attempt */
        return;
    }
    n->fetch = xcalloc(1, sizeof *n->fetch);
    n->fetch->number = ++n->fetches;
    n->fetch->index_min = index;
    later(n, rnd_in(1, 50), connect);
}
