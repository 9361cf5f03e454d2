/* worker.h - a thread with a queue: items go in from any thread, runs of them come out on its own, in order. */
#ifndef RAFTDIR_WORKER_H
#define RAFTDIR_WORKER_H
#include <stdbool.h>
#include "err.h"

/* The first member of what is queued. */
struct worker_item {
    struct worker_item *next;
};

struct worker;
struct worker_ops {
    void *data;
    const char *name; /* "log", for messages */
    bool drain;       /* worker_stop: run what is queued first, not drop it */
    /* Of the queue that begins with `first`: the last item that belongs into the same run. Under the queue's lock: no waiting. */
    struct worker_item *(*last)(void *data, struct worker_item *first);
    /* On the thread. The list is given. false: the thread ends. */
    bool (*run)(void *data, struct worker_item *list);
    void (*drop)(struct worker_item *item); /* what was queued when the thread ended */
    /* NULL: none. On the thread, while nothing is queued: soon after worker_wake, and once when nothing has come for idle_ms (0: never) after a run. */
    void (*idle)(void *data);
    unsigned idle_ms;
};
int worker_start(const struct worker_ops *ops, struct worker **worker_r, struct err *err);
void worker_push(struct worker *w, struct worker_item *item); /* given */
void worker_wake(struct worker *w); /* from any thread: idle is wanted */
/* From within run: waits up to a second, or until worker_stop; true: stop. */
bool worker_pause(struct worker *w);
void worker_stop(struct worker **worker);

#endif
