/* seglog_internal.h - what the files of the log share. The layout on disk is described at the top of seglog.c. */
#ifndef RAFTDIR_SEGLOG_INTERNAL_H
#define RAFTDIR_SEGLOG_INTERNAL_H
#include "seglog.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define SEGLOG_BLOCK_LEN 4096u
#define SEGLOG_FRAME_HEADER_LEN 48u
#define SEGLOG_BATCH_HEADER_LEN 16u
#define SEGLOG_ENTRY_HEADER_LEN 16u
#define SEGLOG_ZERO_AHEAD_LEN (1u << 20)
#define SEGLOG_SEGMENT_LEN_MAX (1u << 30)
#define SEGLOG_PATH_LEN_MAX 4096
#define SEGLOG_CUT_SUFFIX ".cut.tmp" /* of a segment that was cut off and waits to be removed */

struct seglog_segment {
    uint64_t number;
    uint64_t first; /* lowest index that a batch in it began with; 0: none yet */
    uint64_t last;  /* newest entry in it that no later batch has cut off; 0: none */
    uint64_t used_len;
};

struct seglog_segment_header {
    uint64_t number, first_seq, salt;
};

struct seglog_frame_header {
    uint32_t batches, len;
    uint64_t seq, durable_seq, payload_sum;
};

/* What is on the disk for certain: segments by number, and all frames before `seq`. */
struct seglog_durable {
    uint64_t oldest, newest, seq;
};

struct seglog {
    struct seglog_io io;
    struct seglog_identity who;
    char dir[SEGLOG_PATH_LEN_MAX - 64];
    int dir_fd;
    size_t segment_len;

    /* The writing thread's. */
    struct seglog_segment *segments; /* oldest first; the last one is open */
    size_t segments_n;
    int fd;
    uint64_t salt, pos, size, zeroed; /* of the open segment: where the next frame goes, end of the file, end of the zeros written ahead */
    uint64_t seq;                     /* of the next frame */
    uint64_t base, last;              /* entries base + 1 .. last are in the log */
    bool empty;                       /* neither an entry nor a base was ever written: any index may come first */
    bool sealed;                      /* the newest frame is a seal, or there is none */
    bool dir_dirty;                   /* a segment's removal may not be durable yet */
    bool alone;                       /* no thread but those of the callers */
    bool remover_made;                /* there is a thread to join: */
    pthread_t remover;
    uint8_t *buf;
    size_t buf_size;

    /* Under durable_mutex, which is held for a copy only. */
    pthread_mutex_t durable_mutex;
    struct seglog_durable durable;     /* written by the writing thread, read by the scrub */
    bool remove_wanted, removing;      /* the writing thread's and the remover's */

    /* Under vote_mutex. */
    pthread_mutex_t vote_mutex;
    int vote_fd;
    uint64_t vote_counter, term, voted_for;

    _Atomic bool failed;
    _Atomic uint64_t used_len;
};

/* seglog_io.c */
int seglog_fail_errno(struct err *err, int errnum, const char *doing, const char *path);
int seglog_write_all(const struct seglog_io *io, int fd, const void *p, size_t len, off_t at); /* 0 or an errno */
int seglog_read_all(const char *path, int fd, uint8_t *p, size_t len, off_t at, struct err *err);
int seglog_path(const struct seglog *log, const char *name, char path_r[SEGLOG_PATH_LEN_MAX], struct err *err);
int seglog_dir_sync(struct seglog *log, struct err *err); /* a failure is final */
int seglog_broken(struct seglog *log, struct err *err, int errnum, const char *doing, const char *path); /* makes the failure final */
int seglog_refused(const struct seglog *log, struct err *err); /* 0, or the earlier failure */

/* seglog_format.c: pure */
void seglog_put_u32(uint8_t *p, uint32_t v);
void seglog_put_u64(uint8_t *p, uint64_t v);
uint32_t seglog_get_u32(const uint8_t *p);
uint64_t seglog_get_u64(const uint8_t *p);
size_t seglog_frame_padded(size_t payload_len);
void seglog_segment_header_put(uint8_t block_r[SEGLOG_BLOCK_LEN], const struct seglog_identity *who, const struct seglog_segment_header *h);
int seglog_segment_header_get(const uint8_t *block, size_t len, const struct seglog_identity *who, struct seglog_segment_header *h_r, struct err *err);
void seglog_frame_header_put(uint8_t *p, const struct seglog_frame_header *h, uint64_t salt);
bool seglog_frame_header_get(const uint8_t *p, uint64_t salt, struct seglog_frame_header *h_r); /* false: not a frame's */
uint64_t seglog_sum(const uint8_t *p, size_t len, uint64_t salt);
/* Payload of a list of batches. Length 0 with RAFTDIR_ETOOBIG. */
int seglog_payload_len(const struct log_batch *batches, size_t max, size_t *len_r, uint32_t *batches_r);
void seglog_payload_put(uint8_t *p, const struct log_batch *batches);
bool seglog_all_zero(const uint8_t *p, size_t len);

/* seglog.c: tells the scrub how far it may read; segments before the `from`-th are about to go. */
void seglog_publish(struct seglog *log, size_t from);

/* seglog_replay.c: fills segments, pos, seq, base, last and so on from the files. */
int seglog_replay(struct seglog *log, struct seglog_found *found, struct err *err);
/* A frame's batch goes into the log: what it cuts off, what each segment still holds. n is 0 for a base. */
void seglog_account(struct seglog *log, struct seglog_segment *current, uint64_t first, unsigned n);

/* seglog_remove.c: files named SEGLOG_CUT_SUFFIX go, beside everything else. */
void seglog_remove_start(struct seglog *log);
void seglog_remove_wait(struct seglog *log);

/* seglog_vote.c */
int seglog_vote_create(struct seglog *log, struct err *err);
int seglog_vote_load(struct seglog *log, bool *exists_r, struct err *err);
/* Reads both copies from the disk: which of them isn't what the log holds? Any thread. */
int seglog_vote_scrub(struct seglog *log, bool bad_r[2], struct err *err);

#endif
