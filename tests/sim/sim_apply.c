/* sim_apply.c - the apply thread and its environment: real LMDB on a memory file system.
 *
 * A batch is run (committed) at one moment and told to the driver at a later one; a crash may come between. Now and then a synced copy of the environment is
 * kept, and reported to the driver, which may cut its log below it; a power loss may put the environment back to the copy, which is more than MDB_NOMETASYNC
 * loses (the last commits since a sync): replay has to repair it. An image is staged in a directory beside the environment, and takes its place. */
#include "sim.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void path(const struct sim_node *n, const char *file, char buf_r[256])
{
    snprintf(buf_r, 256, "%s/%s", n->disk.dir, file);
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "raftdir-sim: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void copy_file(const char *from, const char *to)
{
    static uint8_t buf[1 << 16];
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (in < 0 || out < 0)
        fail(from, strerror(errno));
    off_t len = 0;
    ssize_t got;
    while ((got = read(in, buf, sizeof buf)) > 0) {
        if (write(out, buf, (size_t)got) != got)
            fail(to, strerror(errno));
        len += got;
    }
    if (got < 0 || ftruncate(out, len)) /* now, not before: the old file's pages are used again */
        fail(from, strerror(errno));
    close(in);
    close(out);
}

static void make_dir(const char *dir)
{
    if (mkdir(dir, 0700) && errno != EEXIST)
        fail(dir, strerror(errno));
}

static void remove_dir(const char *dir)
{
    static const char *const files[] = {"data.mdb", "lock.mdb", "synced.mdb"};
    char file[256];
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(file, sizeof file, "%s/%s", dir, files[i]);
        unlink(file);
    }
    if (rmdir(dir) && errno != ENOENT)
        fail(dir, strerror(errno));
}

void apply_open(struct sim_node *n)
{
    struct err err;
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    if (!n->disk.dir[0])
        snprintf(n->disk.dir, sizeof n->disk.dir, "%s/n%u-%u-%u", sim.options.dir, n->slot, n->lives, n->disk.generation);
    make_dir(n->disk.dir);
    if (store_open(n->disk.dir, &options, &n->store, &err))
        sim_violation("store", "member %" PRIu64 " can't open its environment: %s", n->id, err.text);
}

void apply_stage(struct sim_node *n, char dir_r[192])
{
    snprintf(dir_r, 192, "%s/n%u-%u-%u", sim.options.dir, n->slot, n->lives, n->disk.generation + 1);
    remove_dir(dir_r); /* what an ended process has left */
    make_dir(dir_r);
}

void apply_unstage(const char *dir)
{
    remove_dir(dir);
}

void apply_image(struct sim_node *n)
{
    char data[256], synced[256];
    remove_dir(n->disk.dir);
    n->disk.generation++;
    snprintf(n->disk.dir, sizeof n->disk.dir, "%s/n%u-%u-%u", sim.options.dir, n->slot, n->lives, n->disk.generation);
    path(n, "data.mdb", data);
    path(n, "synced.mdb", synced);
    copy_file(data, synced);
    n->disk.copied = true;
}

static void list_destroy(struct apply_batch **list)
{
    while (*list) {
        struct apply_batch *b = *list;
        *list = b->next;
        b->next = NULL;
        apply_batch_destroy(&b);
    }
}

void apply_crash(struct sim_node *n, bool power_loss)
{
    char data[256], synced[256], lock[256];
    list_destroy(&n->disk.applying);
    n->disk.apply_busy = false;
    n->disk.told_at = 0;
    n->disk.applied = n->applied_seen;
    store_close(&n->store);
    path(n, "lock.mdb", lock);
    unlink(lock);
    if (power_loss && chance(600)) {
        path(n, "data.mdb", data);
        path(n, "synced.mdb", synced);
        sim.stats.rollbacks++;
        TRACE("apply: %" PRIu64 " loses its unsynced commits", n->id);
        if (n->disk.copied)
            copy_file(synced, data);
        else
            unlink(data);
        n->disk.applied = n->disk.synced;
    }
}

struct synced {
    struct node_synced s;
    uint8_t configuration[];
};

static void synced_told(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct synced *s = ev->data;
    bool news = s->s.index > n->synced_told;
    if (news) {
        n->synced_before = n->synced_told;
        n->synced_told = s->s.index;
    }
    if (!planted(PLANT_NEVER_CUT)) {
        node_enter(n);
        node_synced(n->node, node_clock(n), &s->s);
        node_leave(n);
    }
    if (news && n->up && n->epoch == ev->epoch)
        check_bounded(n);
    free(s);
}

static void synced_drop(struct event *ev)
{
    free(ev->data);
}

void apply_sync(struct sim_node *n)
{
    char data[256], synced[256];
    struct store_txn *txn;
    struct store_meta meta;
    struct err err;
    const uint8_t *configuration;
    size_t len;
    uint64_t configuration_index;
    if (store_read_begin(n->store, &txn, &err) || store_meta_get(txn, &meta, &err) ||
        store_configuration_get(txn, &configuration, &len, &configuration_index, &err))
        sim_violation("store", "member %" PRIu64 ": %s", n->id, err.text);
    if (!n->disk.copied || (n->disk.synced != meta.applied_index && !planted(PLANT_CUT_UNSYNCED))) {
        if (store_sync(n->store, &err))
            sim_violation("store", "member %" PRIu64 " can't sync: %s", n->id, err.text);
        path(n, "data.mdb", data);
        path(n, "synced.mdb", synced);
        copy_file(data, synced);
        n->disk.synced = meta.applied_index;
        n->disk.copied = true;
    }
    if (meta.applied_index) {
        struct synced *s = xcalloc(1, sizeof *s + len);
        memcpy(s->configuration, configuration, len);
        s->s = (struct node_synced){meta.applied_index, meta.applied_term, configuration_index, s->configuration, len};
        sim.stats.syncs++;
        TRACE("apply: %" PRIu64 " synced at %" PRIu64, n->id, meta.applied_index);
        uint64_t at = sim.now + (chance(800) ? rnd_in(0, 5) : rnd_in(5, 400));
        if (at < n->disk.told_at) /* after what it says of applied entries, as in the daemon */
            at = n->disk.told_at;
        n->disk.told_at = at;
        event_post(at - sim.now, synced_told, synced_drop, n, s, 0);
    }
    store_read_end(&txn);
}

void apply_wipe(struct sim_node *n)
{
    if (n->disk.dir[0])
        remove_dir(n->disk.dir);
    n->disk.dir[0] = '\0';
    n->disk.copied = false;
    n->disk.synced = 0;
}

static void apply_next(struct sim_node *n);

static void told_drop(struct event *ev)
{
    struct apply_batch *b = ev->data;
    apply_batch_destroy(&b);
}

static void told(struct event *ev)
{
    struct sim_node *n = ev->node;
    node_enter(n);
    node_applied(n->node, node_clock(n), ev->data);
    node_leave(n);
}

/* Bit rot, or a defect: the requests of an entry that matters have no effect here. Returns that entry, which has its place back when the batch is applied: the node
 * counts the bytes that it gave. NULL: none of this batch. */
static struct entry *rot(struct sim_node *n, struct apply_batch *b, unsigned *at_r)
{
    uint8_t before[16];
    for (unsigned i = 0; i < b->n; i++) {
        struct entry *e = b->entries[i];
        if (e->type != RAFT_COMMAND || e->index <= n->applied_seen)
            continue;
        model_digest(e->index - 1, before);
        if (check_same_state(e->index, before))
            continue;
        b->entries[i] = plant_nothing(e);
        *at_r = i;
        n->rotting = false;
        n->differs = n->differs_now = true;
        n->differs_from = b->entries[i]->index;
        sim.stats.rots++;
        TRACE("apply: %" PRIu64 " differs from index %" PRIu64 " on", n->id, n->differs_from);
        return e;
    }
    return NULL;
}

/* What waits becomes one batch, one commit, as in the daemon. */
static struct apply_batch *merge(struct apply_batch *list)
{
    unsigned n = 0, at = 0;
    for (const struct apply_batch *b = list; b; b = b->next)
        n += b->n;
    struct entry **entries = xcalloc(n, sizeof *entries);
    for (const struct apply_batch *b = list; b; b = b->next)
        for (unsigned i = 0; i < b->n; i++)
            entries[at++] = b->entries[i];
    struct apply_batch *merged = apply_batch_create(entries, n);
    if (!merged)
        abort();
    free(entries);
    list_destroy(&list);
    return merged;
}

static void run(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct apply_batch *b = n->disk.applying;
    if (b->next && chance(700)) {
        b = merge(b);
        n->disk.applying = NULL;
    } else {
        n->disk.applying = b->next;
        b->next = NULL;
    }
    n->disk.apply_busy = false;
    check_to_apply(n, b);
    for (unsigned i = 0; i < b->n && sim.options.plant; i++) {
        struct entry *e = plant_change_entry(b->entries[i], n);
        entry_unref(b->entries[i]);
        b->entries[i] = e;
    }
    unsigned at_rot = 0;
    struct entry *rotten = n->rotting ? rot(n, b, &at_rot) : NULL;
    apply_batch_run(n->store, b);
    if (rotten) {
        entry_unref(b->entries[at_rot]);
        b->entries[at_rot] = rotten;
    }
    plant_restore_results(b);
    TRACE("apply: %" PRIu64 " applied %" PRIu64 "..%" PRIu64 ", status %d", n->id, b->first, b->first + b->n - 1, b->status);
    check_applied(n, b);
    client_reads_due(n);
    uint64_t at = sim.now + (chance(100) ? rnd_in(0, 20) : 0);
    if (at < n->disk.told_at)
        at = n->disk.told_at;
    n->disk.told_at = at;
    event_post(at - sim.now, told, told_drop, n, b, 0);
    if (n->disk.applying)
        apply_next(n);
}

static void apply_next(struct sim_node *n)
{
    n->disk.apply_busy = true;
    uint64_t delay = rnd_in(0, sim.config.apply_max_ms);
    if (!sim.healing && chance(sim.config.slow_disk))
        delay += rnd_in(10, 300);
    if (n->disk.full_until > sim.now + delay)
        delay = n->disk.full_until - sim.now + rnd_in(0, 1000);
    event_post(delay, run, NULL, n, NULL, 0);
}

void apply_submit(struct sim_node *n, struct apply_batch *batch)
{
    struct apply_batch **end = &n->disk.applying;
    while (*end)
        end = &(*end)->next;
    batch->next = NULL;
    *end = batch;
    if (!n->disk.apply_busy)
        apply_next(n);
}
