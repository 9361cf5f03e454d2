/* thread_log.c - see thread_log.h.
 *
 * Happy path: push -> all queued batches, as far as they follow each other and fit LOG_FLUSH_LEN_MAX, in one seglog_write -> written.
 * Disk full: nothing was written; the same batches are tried again every second, an alarm is in the log meanwhile, nothing is acknowledged.
 * Any other error is final (after a failed fsync the page cache may lie): `broken`, and every batch from then on comes back with the code. */
#include "thread_log.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include "logger.h"
#include "mem.h"

struct log_thread {
    struct seglog *log;
    struct log_thread_ops ops;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct log_batch *head, **tail;
    bool stopping;
    int broken; /* the log thread's own */
};

/* Takes the front of the queue: batches that follow each other (a batch that cuts the log starts a new write) up to a bound. */
static struct log_batch *take(struct log_thread *t)
{
    struct log_batch *list = t->head, *last = list;
    size_t len = 0;
    for (struct log_batch *b = list; b; b = b->next) {
        for (unsigned i = 0; i < b->n; i++)
            len += b->entries[i]->len;
        if (b != list && (b->first != last->first + last->n || len > LOG_FLUSH_LEN_MAX))
            break;
        last = b;
    }
    t->head = last->next;
    if (!t->head)
        t->tail = &t->head;
    last->next = NULL;
    return list;
}

/* true: stop. */
static bool pause_a_second(struct log_thread *t)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    pthread_mutex_lock(&t->mutex);
    while (!t->stopping && pthread_cond_timedwait(&t->cond, &t->mutex, &until) == 0)
        ;
    bool stop = t->stopping;
    pthread_mutex_unlock(&t->mutex);
    return stop;
}

/* false: stopped before the disk had room again; the batches are destroyed, unacknowledged. */
static bool write_out(struct log_thread *t, struct log_batch *list)
{
    struct err err = {0};
    bool alarmed = false;
    int rc = t->broken;
    while (rc == 0 && (rc = seglog_write(t->log, list, &err)) == RAFTDIR_ENOSPC) {
        if (!alarmed)
            logger_line(LOGGER_ERROR, "log", "ALARM: no space for the log (%s): writes wait, nothing is lost or acknowledged; make room on data_dir's disk", err.text);
        else
            logger_limited(LOGGER_ERROR, "log", "ALARM: still no space for the log: writes wait");
        if (!alarmed)
            t->ops.space(t->ops.data, true);
        alarmed = true;
        if (pause_a_second(t)) {
            while (list) {
                struct log_batch *b = list;
                list = b->next;
                log_batch_destroy(&b);
            }
            return false;
        }
        rc = 0;
    }
    if (rc == 0 && alarmed) {
        logger_line(LOGGER_WARN, "log", "there is space again: writes go on");
        t->ops.space(t->ops.data, false);
    }
    if (rc != 0 && !t->broken) {
        t->broken = rc;
        t->ops.broken(t->ops.data, rc, err.text);
    }
    t->ops.written(t->ops.data, list, rc);
    return true;
}

static void *run(void *arg)
{
    struct log_thread *t = arg;
    for (;;) {
        pthread_mutex_lock(&t->mutex);
        while (!t->head && !t->stopping)
            pthread_cond_wait(&t->cond, &t->mutex);
        struct log_batch *list = t->head ? take(t) : NULL;
        pthread_mutex_unlock(&t->mutex);
        if (!list || !write_out(t, list))
            return NULL;
    }
}

int log_thread_start(struct seglog *log, const struct log_thread_ops *ops, struct log_thread **thread_r, struct err *err)
{
    struct log_thread *t = mem_calloc(1, sizeof *t);
    pthread_condattr_t attr;
    t->log = log;
    t->ops = *ops;
    t->tail = &t->head;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->cond, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&t->thread, NULL, run, t);
    if (rc != 0) {
        pthread_cond_destroy(&t->cond);
        pthread_mutex_destroy(&t->mutex);
        free(t);
        return err_set(err, err_from_errno(rc), "can't start the log thread: too many threads?");
    }
    *thread_r = t;
    return 0;
}

void log_thread_push(struct log_thread *t, struct log_batch *batch)
{
    batch->next = NULL;
    pthread_mutex_lock(&t->mutex);
    *t->tail = batch;
    t->tail = &batch->next;
    pthread_cond_signal(&t->cond);
    pthread_mutex_unlock(&t->mutex);
}

void log_thread_stop(struct log_thread **thread)
{
    struct log_thread *t = *thread;
    *thread = NULL;
    if (!t)
        return;
    pthread_mutex_lock(&t->mutex);
    t->stopping = true;
    pthread_cond_signal(&t->cond);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    while (t->head) {
        struct log_batch *b = t->head;
        t->head = b->next;
        log_batch_destroy(&b);
    }
    pthread_cond_destroy(&t->cond);
    pthread_mutex_destroy(&t->mutex);
    free(t);
}
