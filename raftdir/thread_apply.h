/* thread_apply.h - the apply thread: the only writer of the store. Takes committed entries, applies them in as few commits as possible, publishes. */
#ifndef RAFTDIR_THREAD_APPLY_H
#define RAFTDIR_THREAD_APPLY_H
#include <stdbool.h>
#include "apply.h"

struct apply_thread;
/* Who is a member, by the applied configuration. Ids are never given twice: one that the state has seen given and that isn't here was removed for good. */
struct apply_members {
    uint64_t id_max;
    uint64_t ids[MEMBERS_MAX];
    size_t n; /* 0: no configuration was applied yet */
};
int apply_members_get(struct store *store, struct apply_members *members_r, struct err *err);
bool apply_members_removed(const struct apply_members *members, uint64_t id);
/* A state that is durable. */
struct apply_synced {
    uint64_t index, term, configuration_index;
    uint8_t *configuration; /* as applied then; malloc'd; NULL: none was applied yet */
    size_t configuration_len;
};
/* All on the apply thread. */
struct apply_thread_ops {
    void *data;
    void (*space)(void *data, bool lacking); /* the disk is full; it has room again. In turns */
    bool (*release)(void *data);             /* a commit found no room: true when some was made just now */
    void (*published)(void *data, const struct store_meta *meta); /* committed: readers that begin now see it */
    /* Given back. members: the applied configuration has changed; NULL: not. */
    void (*applied)(void *data, struct apply_batch *batch, const struct apply_members *members);
    void (*synced)(void *data, struct apply_synced *synced); /* its configuration is given */
    void (*broken)(void *data, int code, const char *why);   /* the disk refused a commit or a flush: the process has to end. Once */
};
int apply_thread_start(struct store *store, const struct apply_thread_ops *ops, struct apply_thread **thread_r, struct err *err);
void apply_thread_push(struct apply_thread *t, struct apply_batch *batch); /* given */
/* Ends after the commit in progress. What is still queued is in the log and is applied at the next start. */
void apply_thread_stop(struct apply_thread **thread);

#endif
