/* thread_apply.h - the apply thread: the only writer of the store. Takes committed entries, applies them in as few commits as possible, publishes. */
#ifndef RAFTDIR_THREAD_APPLY_H
#define RAFTDIR_THREAD_APPLY_H
#include "apply.h"

struct apply_thread;
struct apply_thread_ops {
    void *data;
    /* Both on the apply thread. */
    void (*published)(void *data, const struct store_meta *meta); /* committed: readers that begin now see it */
    void (*applied)(void *data, struct apply_batch *batch, bool removed); /* given back; removed: this node is no member any more */
};
int apply_thread_start(struct store *store, uint64_t self_id, const struct apply_thread_ops *ops, struct apply_thread **thread_r, struct err *err);
void apply_thread_push(struct apply_thread *t, struct apply_batch *batch); /* given */
/* Ends after the commit in progress. What is still queued is in the log and is applied at the next start. */
void apply_thread_stop(struct apply_thread **thread);

/* Has member `self_id` been removed, by the applied configuration? Not one yet is not removed: ids are never given twice, so that
 * an id that the state has seen given and that is in no configuration is gone for good. */
int apply_thread_removed(struct store *store, uint64_t self_id, bool *removed_r, struct err *err);

#endif
