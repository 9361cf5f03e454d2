/* thread_log.h - the log writer: group-commits what the consensus thread gives it, in order, and tells it when it is durable. */
#ifndef RAFTDIR_THREAD_LOG_H
#define RAFTDIR_THREAD_LOG_H
#include <stdbool.h>
#include "node.h"
#include "seglog.h"

struct log_thread;
struct log_thread_ops {
    void *data;
    void (*space)(void *data, bool lacking); /* the disk is full; it has room again. On this thread, in turns */
    bool (*release)(void *data);             /* a write found no room: true when some was made just now. On this thread */
    /* Both on the log thread. The batches (a list by `next`) are given back; status is 0 or what made the log give up for good. */
    void (*written)(void *data, struct log_batch *batches, int status);
    void (*broken)(void *data, int code, const char *why); /* once, before the `written` that carries it */
};
int log_thread_start(struct seglog *log, const struct log_thread_ops *ops, struct log_thread **thread_r, struct err *err);
void log_thread_push(struct log_thread *t, struct log_batch *batch); /* given */
/* Entries up to `index` aren't needed any more (seglog_cut). Carried out soon, behind what is queued for writing. Any thread. */
void log_thread_cut(struct log_thread *t, uint64_t index);
/* Writes what is queued, unless the disk is full or broken, and ends. */
void log_thread_stop(struct log_thread **thread);

#endif
