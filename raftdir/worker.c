/* worker.c - see worker.h. */
#include "worker.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include "cond.h"
#include "mem.h"

struct worker {
    struct worker_ops ops;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct worker_item *head, **tail;
    bool stopping;
    bool woken;  /* idle is wanted */
    bool ran;    /* since the last idle */
};

/* Waits, under the mutex, for something to do. */
static void await(struct worker *w)
{
    bool timed = w->ops.idle && w->ops.idle_ms && w->ran;
    struct timespec until = {0};
    if (timed)
        until = cond_after_ms(w->ops.idle_ms);
    while (!w->head && !w->stopping && !w->woken) {
        if (!timed)
            pthread_cond_wait(&w->cond, &w->mutex);
        else if (pthread_cond_timedwait(&w->cond, &w->mutex, &until) == ETIMEDOUT)
            w->woken = true;
    }
}

/* The next thing to do: a run (*list_r), or idle (NULL there). false: the end. */
static bool take(struct worker *w, struct worker_item **list_r)
{
    bool more = true;
    *list_r = NULL;
    pthread_mutex_lock(&w->mutex);
    await(w);
    if (w->head && (!w->stopping || w->ops.drain)) {
        struct worker_item *last = w->ops.last(w->ops.data, w->head);
        *list_r = w->head;
        w->head = last->next;
        if (!w->head)
            w->tail = &w->head;
        last->next = NULL;
        w->ran = true;
    } else if (w->stopping) {
        more = false;
    } else {
        w->woken = w->ran = false;
    }
    pthread_mutex_unlock(&w->mutex);
    return more;
}

static void *run(void *arg)
{
    struct worker *w = arg;
    struct worker_item *list;
    while (take(w, &list)) {
        if (!list)
            w->ops.idle(w->ops.data);
        else if (!w->ops.run(w->ops.data, list))
            break;
    }
    return NULL;
}

int worker_start(const struct worker_ops *ops, struct worker **worker_r, struct err *err)
{
    struct worker *w = mem_calloc(1, sizeof *w);
    w->ops = *ops;
    w->tail = &w->head;
    pthread_mutex_init(&w->mutex, NULL);
    cond_init(&w->cond);
    *worker_r = w; /* run may use it at once */
    int rc = pthread_create(&w->thread, NULL, run, w);
    if (rc != 0) {
        pthread_cond_destroy(&w->cond);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        *worker_r = NULL;
        return err_set(err, err_from_errno(rc), "can't start the %s thread: too many threads?", ops->name);
    }
    return 0;
}

void worker_push(struct worker *w, struct worker_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&w->mutex);
    *w->tail = item;
    w->tail = &item->next;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

void worker_wake(struct worker *w)
{
    pthread_mutex_lock(&w->mutex);
    w->woken = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

bool worker_pause(struct worker *w)
{
    struct timespec until = cond_after_ms(1000);
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping && pthread_cond_timedwait(&w->cond, &w->mutex, &until) == 0)
        ;
    bool stop = w->stopping;
    pthread_mutex_unlock(&w->mutex);
    return stop;
}

void worker_stop(struct worker **worker)
{
    struct worker *w = *worker;
    *worker = NULL;
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    while (w->head) {
        struct worker_item *item = w->head;
        w->head = item->next;
        w->ops.drop(item);
    }
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}
