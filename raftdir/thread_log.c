/* thread_log.c - see thread_log.h.
 *
 * Happy path: push -> all queued batches, as far as they follow each other and fit LOG_FLUSH_LEN_MAX, in one seglog_write -> written.
 * Disk full: nothing was written; the same batches are tried again every second, an alarm is in the log meanwhile, nothing is acknowledged. What is to be cut
 * goes before each try: segments that nobody needs any more may be all the room that is missing.
 * Cutting (log_thread_cut) removes whole files, which may take a while: it is done when no batch waits, or after a write when it has been due for CUT_LATE_MS, so
 * that a log that is never idle is cut all the same. A disk too full for that (a file system that copies on write) is tried again with the next cut or write.
 * Any other error is final (after a failed fsync the page cache may lie): `broken`, and every batch from then on comes back with the code. */
#include "thread_log.h"
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include "logger.h"
#include "mem.h"
#include "shared.h"
#include "worker.h"

#define CUT_LATE_MS 1000

_Static_assert(offsetof(struct log_batch, next) == 0, "a log_batch is a worker_item");

struct log_thread {
    struct seglog *log;
    struct log_thread_ops ops;
    struct worker *worker;
    _Atomic uint64_t cut_wanted;
    /* the thread's own */
    int broken;
    uint64_t cut_done;
    uint64_t cut_due_ms; /* when cut_wanted was first seen beyond cut_done; 0: it isn't */
};

static void broken(struct log_thread *t, int code, const struct err *err)
{
    if (t->broken)
        return;
    t->broken = code;
    t->ops.broken(t->ops.data, code, err->text);
}

static void cut(struct log_thread *t)
{
    struct err err = {0};
    uint64_t index = atomic_load(&t->cut_wanted);
    if (t->broken || index <= t->cut_done)
        return;
    int rc = seglog_cut(t->log, index, &err);
    t->cut_due_ms = 0;
    if (rc == 0)
        t->cut_done = index;
    else if (rc == RAFTDIR_ENOSPC)
        logger_limited(LOGGER_WARN, "log", "no space to remove old segments: %s", err.text);
    else
        broken(t, rc, &err);
}

/* After a write: not before the next one unless it is late. */
static void cut_if_late(struct log_thread *t)
{
    if (atomic_load(&t->cut_wanted) <= t->cut_done)
        return;
    uint64_t now = shared_now_ms();
    if (!t->cut_due_ms)
        t->cut_due_ms = now;
    else if (now - t->cut_due_ms >= CUT_LATE_MS)
        cut(t);
}

/* Batches that follow each other (a batch that cuts the log starts a new write) up to a bound. */
static struct worker_item *last_of_write(void *data, struct worker_item *first)
{
    struct log_batch *last = (struct log_batch *)first;
    size_t len = 0;
    (void)data;
    for (struct log_batch *b = last; b; b = b->next) {
        for (unsigned i = 0; i < b->n; i++)
            len += b->entries[i]->len;
        if (b != last && (b->first != last->first + last->n || len > LOG_FLUSH_LEN_MAX))
            break;
        last = b;
    }
    return (struct worker_item *)last;
}

static void drop(struct worker_item *item)
{
    struct log_batch *b = (struct log_batch *)item;
    log_batch_destroy(&b);
}

/* false: stopped before the disk had room again; the batches are destroyed, unacknowledged. */
static bool write_out(void *data, struct worker_item *items)
{
    struct log_thread *t = data;
    struct log_batch *list = (struct log_batch *)items;
    struct err err = {0};
    bool alarmed = false;
    int rc = t->broken;
    while (rc == 0 && (rc = seglog_write(t->log, list, &err)) == RAFTDIR_ENOSPC) {
        rc = 0;
        uint64_t done = t->cut_done;
        cut(t);
        if (t->cut_done != done || t->ops.release(t->ops.data))
            continue;
        if (!alarmed)
            logger_line(LOGGER_ERROR, "log", "ALARM: no space for the log (%s): writes wait, nothing is lost or acknowledged; make room on data_dir's disk", err.text);
        else
            logger_limited(LOGGER_ERROR, "log", "ALARM: still no space for the log: writes wait");
        if (!alarmed)
            t->ops.space(t->ops.data, true);
        alarmed = true;
        if (worker_pause(t->worker)) {
            while (list) {
                struct log_batch *b = list;
                list = b->next;
                log_batch_destroy(&b);
            }
            return false;
        }
    }
    if (rc == 0 && alarmed) {
        logger_line(LOGGER_WARN, "log", "there is space again: writes go on");
        t->ops.space(t->ops.data, false);
    }
    if (rc != 0)
        broken(t, rc, &err);
    t->ops.written(t->ops.data, list, rc);
    cut_if_late(t);
    return true;
}

static void idle(void *data)
{
    cut(data);
}

int log_thread_start(struct seglog *log, const struct log_thread_ops *ops, struct log_thread **thread_r, struct err *err)
{
    struct log_thread *t = mem_calloc(1, sizeof *t);
    t->log = log;
    t->ops = *ops;
    struct worker_ops ops_of_worker = {.data = t, .name = "log", .drain = true, .last = last_of_write, .run = write_out, .drop = drop, .idle = idle};
    int rc = worker_start(&ops_of_worker, &t->worker, err);
    if (rc != 0) {
        free(t);
        return rc;
    }
    *thread_r = t;
    return 0;
}

void log_thread_push(struct log_thread *t, struct log_batch *batch)
{
    worker_push(t->worker, (struct worker_item *)batch);
}

void log_thread_cut(struct log_thread *t, uint64_t index)
{
    uint64_t have = atomic_load(&t->cut_wanted);
    while (have < index && !atomic_compare_exchange_weak(&t->cut_wanted, &have, index))
        ;
    worker_wake(t->worker);
}

void log_thread_stop(struct log_thread **thread)
{
    struct log_thread *t = *thread;
    *thread = NULL;
    if (!t)
        return;
    worker_stop(&t->worker);
    free(t);
}
