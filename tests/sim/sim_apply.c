/* sim_apply.c - the apply thread and its environment: real LMDB on a memory file system.
 *
 * A batch is run (committed) at one moment and told to the driver at a later one; a crash may come between. Now and then a synced copy of the environment is
 * kept; a power loss may put it back, which is more than MDB_NOMETASYNC loses (the last commits since a sync): replay has to repair it. */
#include "sim.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIM_MAP_LEN (256ull << 20)

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
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0)
        fail(from, strerror(errno));
    ssize_t got;
    while ((got = read(in, buf, sizeof buf)) > 0)
        if (write(out, buf, (size_t)got) != got)
            fail(to, strerror(errno));
    if (got < 0)
        fail(from, strerror(errno));
    close(in);
    close(out);
}

void apply_open(struct sim_node *n)
{
    struct err err;
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    if (!n->disk.dir[0])
        snprintf(n->disk.dir, sizeof n->disk.dir, "%s/n%u-%u", sim.options.dir, n->slot, n->lives);
    if (mkdir(n->disk.dir, 0700) && errno != EEXIST)
        fail(n->disk.dir, strerror(errno));
    if (store_open(n->disk.dir, &options, &n->store, &err))
        sim_violation("store", "member %" PRIu64 " can't open its environment: %s", n->id, err.text);
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
    }
}

void apply_sync(struct sim_node *n)
{
    char data[256], synced[256];
    struct err err;
    if (store_sync(n->store, &err))
        sim_violation("store", "member %" PRIu64 " can't sync: %s", n->id, err.text);
    path(n, "data.mdb", data);
    path(n, "synced.mdb", synced);
    copy_file(data, synced);
    n->disk.copied = true;
}

void apply_wipe(struct sim_node *n)
{
    static const char *const files[] = {"data.mdb", "lock.mdb", "synced.mdb"};
    char file[256];
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        path(n, files[i], file);
        unlink(file);
    }
    rmdir(n->disk.dir);
    n->disk.dir[0] = '\0';
    n->disk.copied = false;
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
    apply_batch_run(n->store, b);
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
