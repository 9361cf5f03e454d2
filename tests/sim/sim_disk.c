/* sim_disk.c - the log's disk and the file of term and vote.
 *
 * A flush takes everything that was handed over meanwhile and is durable when it completes, not earlier; only then the driver is told. A crash
 * during a flush leaves nothing of it, all of it, or its first batches (a batch, with the truncation that it implies, is atomic: one checksum). Term
 * and vote are durable when the call returns; a crash in the call leaves either.
 * What the driver doesn't need any more is removed in whole segments, some time later or never. A full disk: flushes take until there is room.
 * The files are kept in memory: disk_append and disk_vote write them, node_up reads them; there the product's segment files could be put instead (they have
 * tests of their own, power cuts included). */
#include "sim.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

uint64_t log_last(const struct sim_log *log)
{
    return log->base + log->n;
}

struct entry *log_at(const struct sim_log *log, uint64_t index)
{
    return index > log->base && index <= log_last(log) ? log->e[index - log->base - 1] : NULL;
}

static void log_cut(struct sim_log *log, uint64_t from)
{
    while (log->n && log_last(log) >= from)
        entry_unref(log->e[--log->n]);
}

void log_append(struct sim_log *log, struct entry *const *entries, unsigned n)
{
    if (entries[0]->index <= log->base)
        sim_violation("log", "an append at %" PRIu64 ", the log begins after %" PRIu64, entries[0]->index, log->base);
    log_cut(log, entries[0]->index);
    if (entries[0]->index != log_last(log) + 1)
        sim_violation("log", "an append at %" PRIu64 " leaves a gap: the log ends at %" PRIu64, entries[0]->index, log_last(log));
    if (log->n + n > LOG_MAX)
        sim_violation("log", "more than %u entries", LOG_MAX);
    if (log->n + n > log->cap) {
        log->cap = (log->n + n) * 2;
        log->e = realloc(log->e, log->cap * sizeof(struct entry *));
        if (!log->e)
            abort();
    }
    for (unsigned i = 0; i < n; i++) {
        if (entries[i]->index != log_last(log) + 1)
            sim_violation("log", "entry %" PRIu64 " stands where %" PRIu64 " is due", entries[i]->index, log_last(log) + 1);
        log->e[log->n++] = entry_ref(entries[i]);
    }
}

void log_copy(struct sim_log *to, const struct sim_log *from, uint64_t last)
{
    log_clear(to);
    to->base = from->base;
    if (last > log_last(from))
        last = log_last(from);
    if (last > from->base)
        log_append(to, from->e, (unsigned)(last - from->base));
}

void log_drop(struct sim_log *log, uint64_t index)
{
    if (index <= log->base)
        return;
    size_t gone = index < log_last(log) ? (size_t)(index - log->base) : log->n;
    for (size_t i = 0; i < gone; i++)
        entry_unref(log->e[i]);
    log->n -= gone;
    log->base += gone;
    memmove(log->e, log->e + gone, log->n * sizeof *log->e);
}

void log_clear(struct sim_log *log)
{
    log_cut(log, 1);
    free(log->e);
    memset(log, 0, sizeof *log);
}

bool entry_same(const struct entry *a, const struct entry *b)
{
    return a == b || (a->index == b->index && a->term == b->term && a->type == b->type && a->len == b->len && !memcmp(a->data, b->data, a->len));
}

/* --- The image ------------------------------------------------------------------------------------------------------------ */

static void disk_append(struct sim_node *n, const struct log_batch *b)
{
    if (planted(PLANT_SWAP_ENTRY) && n->slot == 1 && b->entries[0]->type == RAFT_COMMAND && chance(100)) {
        struct entry *other = entry_create(b->entries[0]->index, b->entries[0]->term, RAFT_COMMAND, b->entries[0]->data, b->entries[0]->len);
        if (!other)
            abort();
        other->data[other->len / 2] ^= 1;
        struct entry *rest[1] = {other};
        log_append(&n->disk.log, rest, 1);
        entry_unref(other);
        if (b->n > 1)
            log_append(&n->disk.log, b->entries + 1, b->n - 1);
        return;
    }
    log_append(&n->disk.log, b->entries, b->n);
}

static void disk_vote(struct sim_node *n, uint64_t term, uint64_t voted_for)
{
    check_vote(n, term, voted_for);
    n->disk.term = term;
    n->disk.voted_for = voted_for;
}

bool disk_has(uint64_t id, uint64_t index, uint64_t term)
{
    if (!id || id >= IDS_MAX)
        return false;
    const struct sim_log *log = sim.by_id[id] ? &sim.by_id[id]->disk.log : &sim.graves[id];
    const struct entry *e = log_at(log, index);
    if (e)
        return e->term == term;
    return index && index <= log->base && check_committed_term(index) == term; /* in its synced state (checker "cut") */
}

static void forgetful_crash(struct event *ev)
{
    node_crash(ev->node, 1);
}

/* --- Term and vote ------------------------------------------------------------------------------------------------------------- */

int disk_meta_write(struct sim_node *n, uint64_t term, uint64_t voted_for)
{
    TRACE("disk: %" PRIu64 " term %" PRIu64 ", vote %" PRIu64, n->id, term, voted_for);
    if (term < n->disk.term)
        sim_violation("term monotonic", "member %" PRIu64 " writes term %" PRIu64 " after %" PRIu64, n->id, term, n->disk.term);
    if (!sim.healing && rnd() % 100000 < sim.config.crash_point * 20 /* rare calls, worth more deaths */) {
        n->doomed = true;
        sim.stats.crash_points++;
        if (chance(500))
            disk_vote(n, term, voted_for);
        return RAFTDIR_EIO;
    }
    disk_vote(n, term, voted_for);
    if (planted(PLANT_FORGET_VOTE) && !sim.healing && voted_for && voted_for != n->id)
        event_post(rnd_in(0, 3), forgetful_crash, NULL, n, NULL, 0); /* the right moment is rare otherwise */
    return 0;
}

/* --- The log ----------------------------------------------------------------------------------------------------------------------- */

static struct log_batch **list_end(struct log_batch **list)
{
    while (*list)
        list = &(*list)->next;
    return list;
}

static void list_destroy(struct log_batch **list)
{
    while (*list) {
        struct log_batch *b = *list;
        *list = b->next;
        b->next = NULL;
        log_batch_destroy(&b);
    }
}

static void flush_start(struct sim_node *n);

static void deliver(struct sim_node *n, struct log_batch *list, int status)
{
    while (list && n->up && !n->doomed) {
        struct log_batch *b = list;
        list = b->next;
        b->next = NULL;
        node_enter(n);
        node_log_written(n->node, node_clock(n), b, status);
        if (status < 0 && !n->failed)
            sim_violation("io error", "member %" PRIu64 " goes on after its log could not be written", n->id);
        node_leave(n);
    }
    list_destroy(&list);
}

static void flush_done(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct log_batch *list = n->disk.flight;
    n->disk.flight = NULL;
    if (!sim.healing && rnd() % 100000 < sim.config.io_error) {
        /* The file system gave up: what reached the disk is unknown, nothing may be built on it. The process ends by itself, soon. */
        sim.stats.io_errors++;
        TRACE("disk: %" PRIu64 " log write fails", n->id);
        for (const struct log_batch *b = list; b && chance(500); b = b->next)
            disk_append(n, b);
        deliver(n, list, RAFTDIR_EIO);
        return;
    }
    if (planted(PLANT_ACK_BEFORE_DURABLE)) {
        for (const struct log_batch *b = n->disk.unsafe; b; b = b->next)
            disk_append(n, b);
        list_destroy(&n->disk.unsafe);
    }
    for (const struct log_batch *b = list; b; b = b->next)
        if (!planted(PLANT_ACK_BEFORE_DURABLE))
            disk_append(n, b);
    TRACE("disk: %" PRIu64 " durable up to %" PRIu64, n->id, log_last(&n->disk.log));
    deliver(n, list, 0);
    if (n->up && n->disk.waiting)
        flush_start(n);
}

static void deliver_early(struct event *ev)
{
    deliver(ev->node, ev->data, 0);
}

static void early_drop(struct event *ev)
{
    struct log_batch *list = ev->data;
    list_destroy(&list);
}

static void flush_start(struct sim_node *n)
{
    n->disk.flight = n->disk.waiting;
    n->disk.waiting = NULL;
    uint64_t delay = n->disk.slow_until > sim.now ? rnd_in(20, 400) : rnd_in(0, sim.config.flush_max_ms);
    if (!sim.healing && chance(sim.config.slow_disk))
        delay += rnd_in(20, 500);
    if (n->disk.full_until > sim.now + delay) /* tried again and again, until there is room */
        delay = n->disk.full_until - sim.now + rnd_in(0, 1000);
    if (planted(PLANT_ACK_BEFORE_DURABLE)) {
        for (const struct log_batch *b = n->disk.flight; b; b = b->next) {
            struct log_batch *copy = log_batch_create(b->entries, b->n);
            if (!copy)
                abort();
            *list_end(&n->disk.unsafe) = copy;
        }
        event_post(0, deliver_early, early_drop, n, n->disk.flight, 0);
        n->disk.flight = NULL;
    }
    event_post(delay, flush_done, NULL, n, NULL, 0);
}

static bool flushing(const struct sim_node *n)
{
    return n->disk.flight || n->disk.unsafe;
}

void disk_log_write(struct sim_node *n, struct log_batch *batch)
{
    batch->next = NULL;
    if (!batch->n)
        sim_violation("log", "member %" PRIu64 " writes an empty batch", n->id);
    const struct entry *last = batch->entries[batch->n - 1];
    TRACE("disk: %" PRIu64 " append %" PRIu64 "..%" PRIu64 " of term %" PRIu64, n->id, batch->entries[0]->index, last->index, last->term);
    if (batch->entries[0]->index <= n->commit_seen)
        sim_violation("log", "member %" PRIu64 " cuts its log at %" PRIu64 ", which is committed (up to %" PRIu64 ")", n->id,
                      batch->entries[0]->index, n->commit_seen);
    sim.stats.entries += batch->n;
    log_append(&n->log, batch->entries, batch->n);
    bool idle = !flushing(n) && !n->disk.waiting;
    *list_end(&n->disk.waiting) = batch;
    if (idle)
        flush_start(n);
}

void disk_log_lose(struct sim_node *n, struct log_batch *batch)
{
    batch->next = n->disk.lost;
    n->disk.lost = batch;
}

/* Segments are removed later, or never; and only whole ones, but for the newest. */
static void segments_removed(struct event *ev)
{
    struct sim_node *n = ev->node;
    uint64_t index = n->disk.cut / sim.config.segment_entries * sim.config.segment_entries;
    if (index >= log_last(&n->disk.log))
        index = log_last(&n->disk.log) - 1;
    if (!n->disk.log.n || index <= n->disk.log.base)
        return;
    log_drop(&n->disk.log, index);
    sim.stats.cuts++;
    TRACE("disk: %" PRIu64 " log begins after %" PRIu64, n->id, index);
}

void disk_log_cut(struct sim_node *n, uint64_t index)
{
    if (index > n->disk.cut)
        n->disk.cut = index;
    event_post(chance(sim.config.cut_put_off) ? rnd_in(500, 20000) : rnd_in(0, 20), segments_removed, NULL, n, NULL, 0);
}

void disk_image(struct sim_node *n, uint64_t index)
{
    log_clear(&n->disk.log);
    n->disk.log.base = planted(PLANT_FORGET_BASE) ? 0 : index;
    n->disk.cut = index;
    if (planted(PLANT_IMAGE_NO_VOTE))
        n->disk.voted_for = 0;
}

/* What it had promised stays on record. The clone's disk: as it was some time ago. */
void disk_lose(struct sim_node *n, bool clone)
{
    struct sim_log old = {0};
    if (clone)
        log_copy(&old, &n->disk.log, n->disk.applied);
    sim.graves[n->id] = n->disk.log;
    n->disk.log = old;
    n->disk.term = clone ? check_committed_term(n->disk.applied) : 0;
    n->disk.voted_for = 0;
    n->disk.slow_until = n->disk.full_until = 0;
}

void disk_init(struct sim_node *n)
{
    memset(&n->disk, 0, sizeof n->disk);
}

void disk_crash(struct sim_node *n, bool power_loss)
{
    struct log_batch *list = n->disk.flight ? n->disk.flight : n->disk.unsafe;
    if (list) {
        unsigned how = rnd_in(0, 2);
        if (how) { /* all of it, or its beginning */
            sim.stats.torn += how == 1;
            for (const struct log_batch *b = list; b && (how == 2 || chance(500)); b = b->next)
                disk_append(n, b);
        }
    }
    list_destroy(&n->disk.flight);
    list_destroy(&n->disk.unsafe);
    list_destroy(&n->disk.waiting);
    list_destroy(&n->disk.lost);
    log_clear(&n->log);
    if (planted(PLANT_FORGET_VOTE))
        n->disk.voted_for = 0;
    if (planted(PLANT_FORGET_TERM) && power_loss && n->disk.term > 1) {
        n->disk.term--;
        n->disk.voted_for = 0;
    }
    if (planted(PLANT_LOSE_LOG) && power_loss && n->disk.log.n > 3)
        log_cut(&n->disk.log, log_last(&n->disk.log) - 2);
}

/* The machine gets a new data directory. What its old self had promised stays on record. */
void disk_wipe(struct sim_node *n)
{
    if (n->id && !n->lost) {
        sim.graves[n->id] = n->disk.log;
        memset(&n->disk.log, 0, sizeof n->disk.log);
    } else {
        log_clear(&n->disk.log);
    }
    if (n->id)
        sim.by_id[n->id] = NULL;
    n->disk.term = n->disk.voted_for = n->disk.cut = 0;
    n->disk.slow_until = n->disk.full_until = 0;
}

void disk_close(struct sim_node *n)
{
    log_clear(&n->disk.log);
    log_clear(&n->log);
}
