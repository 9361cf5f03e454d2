/* seglog.h - the log on disk: preallocated, checksummed segment files, and the file of term and vote. I/O; one thread at a time.
 *
 * Directory `log/`: segments "00000000000000000001.seg" numbered in the order of writing. One flush = one frame = one checksum: a frame holds an append (which
 * cuts the log at its first index first, atomically) of one or more batches. Each frame carries its sequence number and the highest one known durable when it
 * was written: at start a bad frame is a torn tail if no valid later frame says that it had been durable, else corruption (RAFTDIR_ECORRUPT, never cut silently).
 * File `vote`: two checksummed slots written in turn, synced before the call returns.
 * fsync errors are final: after one the log refuses everything (the page cache may lie). */
#ifndef RAFTDIR_SEGLOG_H
#define RAFTDIR_SEGLOG_H
#include <stdint.h>
#include "entry.h"
#include "err.h"
#include "limits.h"
#include "node.h"

struct seglog;

struct seglog_identity {
    uint64_t cluster_id, incarnation;
    uint8_t uuid[NODE_UUID_LEN];
};

/* What seglog_open found; entries are given (free each with entry_unref, then the array). */
struct seglog_found {
    uint64_t first; /* index of entries[0]; 1 + base when empty */
    struct entry **entries;
    size_t entries_n;
    uint64_t term, voted_for;
    uint64_t torn_len; /* bytes of a torn tail that were cut off */
};

/* Opens or creates the log in `dir` (exists). RAFTDIR_EFOREIGN: another node's or cluster's. */
int seglog_open(const char *dir, const struct seglog_identity *who, struct seglog **log_r, struct seglog_found *found_r, struct err *err);
void seglog_close(struct seglog **log);
/* Writes the batches (a list by `next`) as one frame and makes them durable. RAFTDIR_ENOSPC before anything was written: may be tried again. */
int seglog_write(struct seglog *log, const struct log_batch *batches, struct err *err);
/* Term and vote. May be called from another thread than seglog_write. */
int seglog_vote(struct seglog *log, uint64_t term, uint64_t voted_for, struct err *err);
/* Removes whole segments that hold only entries <= index (they are in a synced state). */
int seglog_cut(struct seglog *log, uint64_t index, struct err *err);
uint64_t seglog_used_len(const struct seglog *log); /* thread-safe */

#endif
