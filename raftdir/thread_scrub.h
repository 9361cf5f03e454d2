/* thread_scrub.h - the scrub (DESIGN D3): every scrub_interval, at low priority, everything on the disk is read again: records, indexes, digest, log.
 * What it finds fails the node (consensus_fail): it stops serving, and is rebuilt from its peers. */
#ifndef RAFTDIR_THREAD_SCRUB_H
#define RAFTDIR_THREAD_SCRUB_H
#include "daemon.h"

struct scrub;
int scrub_start(struct daemon *d, struct scrub **scrub_r, struct err *err);
void scrub_stop(struct scrub **scrub); /* at once, in the middle of a scrub too */

/* One run over everything, for the scrub and for a client's verify. One at a time: whoever runs it holds d->verify_runs. */
struct scrub_run {
    struct daemon *d;
    void *data;
    bool (*stop)(void *data); /* asked all the time: true ends it */
    /* May be read by other threads meanwhile. */
    _Atomic uint64_t done, total, log_len; /* rows of the state; bytes of the log */
    _Atomic bool in_log;
    /* The result: what was found at meta.applied_index. */
    uint64_t problems;
    char *texts[VERIFY_PROBLEMS_MAX]; /* of the first; scrub_run_clear frees them */
    size_t texts_n;
    uint8_t digest[16]; /* recomputed */
    struct store_meta meta;
    struct store_checkpoint checkpoints[DIGESTS_KEPT];
    size_t checkpoints_n;
    /* The run's own. */
    struct store *store;
    unsigned generation;
    uint64_t used_len;
    int why_stopped;
};
/* 0: all was read; with problems the node has been failed. RAFTDIR_ECANCELED: stopped, or the state was replaced meanwhile; RAFTDIR_ENOTREADY: there is no state;
 * RAFTDIR_ELIMIT: the state grew by IMAGE_PIN_GROWTH_MAX, whose pages the run held back. */
int scrub_run(struct scrub_run *run, struct err *err);
void scrub_run_clear(struct scrub_run *run);

#endif
