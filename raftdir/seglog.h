/* seglog.h - the log on disk: preallocated, checksummed segment files, and the file of term and vote. I/O; one thread at a time, except seglog_vote.
 *
 * Directory `log/`: segments "00000000000000000001.seg" numbered in the order of writing. One flush = one frame = one checksum: a frame holds an append (which
 * cuts the log at its first index first, atomically) of one or more batches. Each frame carries its sequence number and the highest one known durable when it
 * was written: at start a bad frame is a torn tail if no valid later frame says that it had been durable, else corruption (RAFTDIR_ECORRUPT, never cut silently).
 * File `vote`: two checksummed slots, both written and synced, one after the other, before the call returns.
 * fsync errors are final: after one the log refuses everything (the page cache may lie). */
#ifndef RAFTDIR_SEGLOG_H
#define RAFTDIR_SEGLOG_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
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

/* The calls that change or sync files, so that tests can fail each of them; each as the system call of its name (-1 and errno). `open` makes files with mode 0600. */
struct seglog_io {
    void *data;
    int (*open)(void *data, const char *path, int flags);
    int (*close)(void *data, int fd);
    ssize_t (*pwritev)(void *data, int fd, const struct iovec *iov, int n, off_t at);
    int (*fdatasync)(void *data, int fd);
    int (*fsync)(void *data, int fd); /* a directory's too */
    int (*fallocate)(void *data, int fd, off_t len);
    int (*ftruncate)(void *data, int fd, off_t len);
    int (*rename)(void *data, const char *from, const char *to);
    int (*unlink)(void *data, const char *path);
};
extern const struct seglog_io seglog_io_system;
struct seglog_options {
    const struct seglog_io *io; /* copied; NULL: seglog_io_system, and files that were cut off are removed by a thread that lives as long as that takes */
    size_t segment_len;         /* of segments made from now on; 0: LOG_SEGMENT_LEN */
};

/* Opens or creates the log in `dir` (exists). RAFTDIR_EFOREIGN: another node's or cluster's. What was found is durable. */
int seglog_open(const char *dir, const struct seglog_identity *who, struct seglog **log_r, struct seglog_found *found_r, struct err *err);
int seglog_open_with(const char *dir, const struct seglog_identity *who, const struct seglog_options *o, struct seglog **log_r,
                     struct seglog_found *found_r, struct err *err);
/* Frees entries and array. */
void seglog_found_clear(struct seglog_found *found);
void seglog_close(struct seglog **log);
/* Writes the batches (a list by `next`) as one frame and makes them durable. RAFTDIR_ENOSPC: nothing counts as written, may be tried again.
 * RAFTDIR_ETOOBIG: more than a segment holds (a flush is LOG_FLUSH_LEN_MAX at most). RAFTDIR_EINVAL: a gap or a cut below what seglog_cut removed. */
int seglog_write(struct seglog *log, const struct log_batch *batches, struct err *err);
/* Term and vote. May be called from another thread than seglog_write. */
int seglog_vote(struct seglog *log, uint64_t term, uint64_t voted_for, struct err *err);
/* Removes whole segments that hold only entries <= index (they are in a synced state); never the newest entries. After a crash the last of them may be there again.
 * Same thread as seglog_write. */
int seglog_cut(struct seglog *log, uint64_t index, struct err *err);
/* For a log that has held no entry yet: the next entry will be `index` + 1, nothing else is taken; durable on return, and found.first after every start. So a log
 * that was made for an image is told from one that lost its entries. RAFTDIR_ENOSPC: may be tried again. Same thread as seglog_write. */
int seglog_base(struct seglog *log, uint64_t index, struct err *err);
uint64_t seglog_used_len(const struct seglog *log); /* thread-safe */

/* Reads the whole log again, from the disk, and checks all of it that was durable at the call (the scrub): every frame, and the vote. Any thread, beside one that
 * writes and cuts; the log must stay open until it returns. Constant memory. problem() (NULL allowed) tells, *problems_r counts; stop (NULL allowed) is asked at
 * least every 256 KiB, and may take its time: true ends it with RAFTDIR_ECANCELED. Another error: it couldn't be checked, which says nothing about the log. */
struct seglog_scrub_cb {
    void *data;
    void (*problem)(void *data, const char *text);
    bool (*stop)(void *data);
    void (*progress)(void *data, uint64_t len); /* bytes read so far; NULL allowed */
};
int seglog_scrub(const struct seglog *log, const struct seglog_scrub_cb *cb, uint64_t *problems_r, struct err *err);

#endif
