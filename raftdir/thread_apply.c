/* thread_apply.c - see thread_apply.h.
 *
 * Happy path: push -> what is queued becomes one batch (up to APPLY_BATCH_ENTRIES) -> apply_batch_run: one commit -> published -> applied.
 * No space: nothing was applied; the batch is tried again every second, reads go on, an alarm is in the log. That is sound: a commit that failed left nothing
 * that a later one builds on, each writes all its pages anew.
 * The disk refuses (EIO): `broken`, the process ends and never tries again: what the page cache says is no longer what the disk has. The state is then that of
 * the last commit that reached the disk, and the rest comes from the log at the next start.
 * Any other error: the batch goes back with it, and nothing more is applied: the state may not go its own way.
 *
 * Syncing: a commit flushes the data, not the page that makes it the newest state (store.c). After STATE_SYNC_LEN or STATE_SYNC_ENTRIES, and when nothing has come
 * for SYNC_IDLE_MS, store_sync does that, and `synced` says up to where the log isn't needed any more. A sync that failed for want of space is repeated only after
 * another commit, which writes that page anew: repeated at once it would succeed without having written what failed.
 *
 * What this thread reads it reads in one transaction, which it keeps and renews: a new one would take a reader's slot, under a mutex that LMDB shares with the processes that
 * read the state directly. One of them that is stopped just there must not stop applying. */
#include "thread_apply.h"
#include <raft.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "guard.h"
#include "logger.h"
#include "mem.h"
#include "worker.h"

#define SYNC_IDLE_MS 1000

_Static_assert(offsetof(struct apply_batch, next) == 0, "an apply_batch is a worker_item");

struct apply_thread {
    struct store *store;
    struct store_txn *txn; /* reset between uses */
    struct apply_thread_ops ops;
    struct worker *worker;
    /* the thread's own */
    uint64_t configuration_index;
    uint64_t unsynced_len, unsynced_entries;
    bool broken;
};

static int members_read(struct store_txn *txn, struct apply_members *members_r, struct err *err)
{
    struct store_meta meta;
    const uint8_t *data;
    size_t len;
    uint64_t index;
    int rc;
    memset(members_r, 0, sizeof *members_r);
    if ((rc = store_meta_get(txn, &meta, err)) != 0 || (rc = store_configuration_get(txn, &data, &len, &index, err)) != 0 || len == 0)
        return rc;
    struct raft_configuration c;
    struct raft_buffer buf = {(void *)(uintptr_t)data, len};
    if (!guard_configuration_valid(data, len) || raft_configuration_decode(&buf, &c) != 0) /* the decoder trusts its lengths, and an image has it from a peer */
        return err_set(err, RAFTDIR_ECORRUPT, "the applied configuration doesn't decode");
    members_r->id_max = meta.member_id_max;
    for (unsigned i = 0; i < c.n && members_r->n < MEMBERS_MAX; i++)
        members_r->ids[members_r->n++] = c.servers[i].id;
    raft_configuration_close(&c);
    return 0;
}

int apply_members_get(struct store *store, struct apply_members *members_r, struct err *err)
{
    struct store_txn *txn;
    int rc = store_read_begin(store, &txn, err);
    if (rc != 0)
        return rc;
    rc = members_read(txn, members_r, err);
    store_read_end(&txn);
    return rc;
}

bool apply_members_removed(const struct apply_members *members, uint64_t id)
{
    for (size_t i = 0; i < members->n; i++)
        if (members->ids[i] == id)
            return false;
    return members->n && id <= members->id_max;
}

/* All that is queued, up to the bound. */
static struct worker_item *last_of_commit(void *data, struct worker_item *first)
{
    struct apply_batch *last = (struct apply_batch *)first;
    unsigned n = last->n;
    (void)data;
    while (last->next && n + last->next->n <= APPLY_BATCH_ENTRIES) {
        last = last->next;
        n += last->n;
    }
    return (struct worker_item *)last;
}

static void drop(struct worker_item *item)
{
    struct apply_batch *b = (struct apply_batch *)item;
    apply_batch_destroy(&b);
}

/* One batch with the entries of all in the list, which is destroyed. */
static struct apply_batch *merge(struct apply_batch *list)
{
    if (!list->next)
        return list;
    unsigned n = 0;
    for (struct apply_batch *b = list; b; b = b->next)
        n += b->n;
    struct entry **entries = mem_alloc(n * sizeof *entries);
    n = 0;
    for (struct apply_batch *b = list; b; b = b->next) {
        memcpy(entries + n, b->entries, b->n * sizeof *entries);
        n += b->n;
    }
    struct apply_batch *all = apply_batch_create(entries, n);
    free(entries);
    if (!all)
        mem_exhausted("apply");
    while (list) {
        struct apply_batch *b = list;
        list = b->next;
        apply_batch_destroy(&b);
    }
    return all;
}

/* --- Syncing ------------------------------------------------------------------------------------------------------------------ */

static int synced_get(struct store_txn *txn, struct apply_synced *s, struct err *err)
{
    struct store_meta meta;
    const uint8_t *data;
    int rc = store_read_renew(txn, err);
    if (rc != 0)
        return rc;
    if ((rc = store_meta_get(txn, &meta, err)) == 0 && (rc = store_configuration_get(txn, &data, &s->configuration_len, &s->configuration_index, err)) == 0) {
        s->index = meta.applied_index;
        s->term = meta.applied_term;
        if (s->configuration_len) {
            s->configuration = mem_alloc(s->configuration_len);
            memcpy(s->configuration, data, s->configuration_len);
        }
    }
    store_read_reset(txn);
    return rc;
}

static void broken(struct apply_thread *t, int code, const struct err *err)
{
    if (t->broken)
        return;
    t->broken = true;
    t->ops.broken(t->ops.data, code, err->text);
}

static void sync_state(struct apply_thread *t)
{
    struct apply_synced s = {0};
    struct err err = {0};
    t->unsynced_len = t->unsynced_entries = 0;
    int rc = store_sync(t->store, &err);
    if (rc == RAFTDIR_ENOSPC) {
        logger_limited(LOGGER_WARN, "apply", "no space to flush the state: %s", err.text);
        return;
    }
    if (rc == 0 && (rc = synced_get(t->txn, &s, &err)) == 0)
        t->ops.synced(t->ops.data, &s); /* this thread is the only writer: what it reads is what was flushed */
    else
        broken(t, rc, &err);
}

static void idle(void *data)
{
    struct apply_thread *t = data;
    if (t->unsynced_entries && !t->broken)
        sync_state(t);
}

/* --- Applying ------------------------------------------------------------------------------------------------------------------ */

/* false: stopped while there was no space. */
static bool run_batch(void *data, struct worker_item *items)
{
    struct apply_thread *t = data;
    struct apply_batch *batch = merge((struct apply_batch *)items);
    bool alarmed = false, changed = false;
    struct apply_members members;
    uint64_t len = 0;
    unsigned n = batch->n;
    for (unsigned i = 0; i < n; i++)
        len += batch->entries[i]->len;
    if (t->broken) { /* it waits in the log for the day when this node can */
        apply_batch_destroy(&batch);
        return true;
    }
    for (;;) {
        batch->status = 0;
        memset(&batch->err, 0, sizeof batch->err);
        apply_batch_run(t->store, batch);
        if (batch->status != RAFTDIR_ENOSPC)
            break;
        if (t->ops.release(t->ops.data))
            continue;
        if (!alarmed)
            logger_line(LOGGER_ERROR, "apply", "ALARM: no space for the state (%s): this node's state stands still, reads go on; make room on data_dir's disk", batch->err.text);
        else
            logger_limited(LOGGER_ERROR, "apply", "ALARM: still no space for the state");
        if (!alarmed)
            t->ops.space(t->ops.data, true);
        alarmed = true;
        if (worker_pause(t->worker)) {
            apply_batch_destroy(&batch);
            return false;
        }
    }
    if (batch->status == 0) {
        if (alarmed) {
            logger_line(LOGGER_WARN, "apply", "there is space again: applying goes on");
            t->ops.space(t->ops.data, false);
        }
        t->ops.published(t->ops.data, &batch->meta);
        if (batch->meta.configuration_index != t->configuration_index) {
            t->configuration_index = batch->meta.configuration_index;
            if ((batch->status = store_read_renew(t->txn, &batch->err)) == 0) {
                batch->status = members_read(t->txn, &members, &batch->err);
                store_read_reset(t->txn);
            }
            changed = batch->status == 0;
        }
    }
    if (batch->status == RAFTDIR_EIO)
        broken(t, batch->status, &batch->err);
    if (batch->status != 0)
        t->broken = true;
    t->ops.applied(t->ops.data, batch, changed ? &members : NULL);
    t->unsynced_len += len;
    t->unsynced_entries += n;
    if (!t->broken && (t->unsynced_len >= STATE_SYNC_LEN || t->unsynced_entries >= STATE_SYNC_ENTRIES))
        sync_state(t);
    return true;
}

int apply_thread_start(struct store *store, const struct apply_thread_ops *ops, struct apply_thread **thread_r, struct err *err)
{
    struct apply_thread *t = mem_calloc(1, sizeof *t);
    t->store = store;
    t->ops = *ops;
    struct worker_ops ops_of_worker = {.data = t, .name = "apply", .last = last_of_commit, .run = run_batch, .drop = drop, .idle = idle, .idle_ms = SYNC_IDLE_MS};
    int rc = store_read_begin(store, &t->txn, err);
    if (rc == 0) {
        store_read_reset(t->txn);
        rc = worker_start(&ops_of_worker, &t->worker, err);
    }
    if (rc != 0) {
        store_read_end(&t->txn);
        free(t);
        return rc;
    }
    *thread_r = t;
    return 0;
}

void apply_thread_push(struct apply_thread *t, struct apply_batch *batch)
{
    worker_push(t->worker, (struct worker_item *)batch);
}

void apply_thread_stop(struct apply_thread **thread)
{
    struct apply_thread *t = *thread;
    *thread = NULL;
    if (!t)
        return;
    worker_stop(&t->worker);
    store_read_end(&t->txn);
    free(t);
}
