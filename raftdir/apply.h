/* apply.h - the state machine: (state, index, entry) -> (state, results). A pure function: no clock, no random number, no address and no
 * configuration of the node enters it (DESIGN D3). The only writer of the store. */
#ifndef RAFTDIR_APPLY_H
#define RAFTDIR_APPLY_H
#include <stddef.h>
#include <stdint.h>
#include "entry.h"
#include "err.h"
#include "store.h"

#define APPLY_BATCH_CHECKPOINTS_MAX (APPLY_BATCH_ENTRIES / DIGEST_INTERVAL + 2)

/* One request's outcome. */
struct apply_result {
    uint8_t op_id[OP_ID_LEN];
    uint8_t *result; /* packed raftdir.log.Result; owned by the batch */
    size_t result_len;
    uint64_t index;
    bool replayed; /* the op id was known: this is the stored result, nothing was applied again */
};

/* Committed entries first..first+n-1, contiguous. Made by the node, run by the apply thread, given back with the outputs set. */
struct apply_batch {
    struct apply_batch *next;
    uint64_t first;
    unsigned n;
    struct entry **entries; /* one reference each */
    /* outputs */
    int status; /* 0; RAFTDIR_ENOSPC: nothing applied, try again later; others: this node must stop serving */
    struct err err;
    struct apply_result *results;
    size_t results_n;
    struct store_meta meta; /* as published by this batch's commit */
    struct store_checkpoint checkpoints[APPLY_BATCH_CHECKPOINTS_MAX]; /* recorded by this batch, ascending; none by entries that were applied before */
    size_t checkpoints_n;
};

/* NULL without memory. `entries` are referenced. */
struct apply_batch *apply_batch_create(struct entry *const *entries, unsigned n);
void apply_batch_destroy(struct apply_batch **batch);

/* Applies the batch in one write transaction and commits it; sets the outputs. Entries at or below the applied index are skipped
 * (replay after a crash); a gap is a programmer error. */
void apply_batch_run(struct store *store, struct apply_batch *batch);

#endif
