/* seglog_scrub.c - reads the whole log again, from the disk, and checks it, beside the thread that writes it.
 *
 * What is checked: every segment that the log has, its header, each frame's header, number and checksum, that no frame is missing between or at the end, and both
 * slots of the vote against what is in memory. Only what was durable when it began: the writing thread tells its oldest and newest segment and the number of the
 * next frame (seglog_publish) under a mutex that is held for a copy only. A segment that was cut off meanwhile is none of our business: it is told as going before
 * it goes. Everything else that is missing is a problem.
 *
 * After a problem: on with the next frame of the segment that has a good header, so that one bad block is one problem. What can't be read counts as one, too.
 * The page cache is told to drop the files first: it would hide what became of the disk. It drops clean pages only, so all that is durable.
 * Memory: one chunk. Nothing here is decoded: the checksums cover every byte that carries something. */
#include "seglog_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define CHUNK_LEN (256u << 10) /* whole blocks: no frame header lies across two */

struct scrub {
    struct seglog *log;
    const struct seglog_scrub_cb *cb;
    struct seglog_durable upto;
    uint64_t problems, read_len;
    bool seq_known; /* of the next frame: else what came before it couldn't be read, or was cut off */
    uint64_t seq;
    XXH3_state_t *sum;

    /* The segment being read. */
    char path[SEGLOG_PATH_LEN_MAX];
    int fd;
    uint64_t size;
    uint8_t *chunk;
    uint64_t chunk_at, chunk_len; /* chunk_len 0: none */
};

enum { READ_BAD = 1 }; /* beside 0 and error codes: a problem that was told; leave the segment */

__attribute__((format(printf, 2, 3))) static void problem(struct scrub *s, const char *format, ...)
{
    char text[ERR_TEXT_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    s->problems++;
    if (s->cb->problem)
        s->cb->problem(s->cb->data, text);
}

/* The bytes at `pos`, which lies within the file, as far as one chunk has them. */
static int chunk_get(struct scrub *s, uint64_t pos, const uint8_t **p_r, size_t *n_r, struct err *err)
{
    if (!s->chunk_len || pos < s->chunk_at || pos >= s->chunk_at + s->chunk_len) {
        if (s->cb->stop && s->cb->stop(s->cb->data))
            return err_set(err, RAFTDIR_ECANCELED, "the check of the log was stopped");
        uint64_t at = pos / CHUNK_LEN * CHUNK_LEN;
        size_t len = s->size - at < CHUNK_LEN ? (size_t)(s->size - at) : CHUNK_LEN;
        struct err why = {0};
        s->chunk_len = 0;
        if (seglog_read_all(s->path, s->fd, s->chunk, len, (off_t)at, &why) != 0) {
            problem(s, "%s: offset %" PRIu64 ": %s", s->path, at, why.text);
            return READ_BAD;
        }
        s->read_len += len;
        if (s->cb->progress)
            s->cb->progress(s->cb->data, s->read_len);
        s->chunk_at = at;
        s->chunk_len = len;
    }
    *p_r = s->chunk + (pos - s->chunk_at);
    *n_r = (size_t)(s->chunk_at + s->chunk_len - pos);
    return 0;
}

static int payload_sum(struct scrub *s, uint64_t pos, uint64_t len, uint64_t salt, uint64_t *sum_r, struct err *err)
{
    XXH3_64bits_reset_withSeed(s->sum, salt);
    while (len) {
        const uint8_t *p;
        size_t n;
        int rc = chunk_get(s, pos, &p, &n, err);
        if (rc)
            return rc;
        if (n > len)
            n = (size_t)len;
        XXH3_64bits_update(s->sum, p, n);
        pos += n;
        len -= n;
    }
    *sum_r = XXH3_64bits_digest(s->sum);
    return 0;
}

/* The next good frame header from `pos` on, of frame `seq` or later; *pos_r is the end of the file when there is none. */
static int frame_find(struct scrub *s, uint64_t pos, uint64_t salt, uint64_t seq, uint64_t *pos_r, struct seglog_frame_header *h_r, struct err *err)
{
    for (; pos + SEGLOG_FRAME_HEADER_LEN <= s->size; pos += SEGLOG_BLOCK_LEN) {
        const uint8_t *p;
        size_t n;
        int rc = chunk_get(s, pos, &p, &n, err);
        if (rc)
            return rc;
        if (n >= SEGLOG_FRAME_HEADER_LEN && seglog_frame_header_get(p, salt, h_r) && h_r->seq >= seq)
            break;
    }
    *pos_r = pos + SEGLOG_FRAME_HEADER_LEN <= s->size ? pos : s->size;
    return 0;
}

/* Frames from s->seq on, until the segment or what was durable ends. */
static int frames_scrub(struct scrub *s, uint64_t salt, bool newest, struct err *err)
{
    uint64_t pos = SEGLOG_BLOCK_LEN, at;
    while (s->seq < s->upto.seq) {
        struct seglog_frame_header h;
        int rc = frame_find(s, pos, salt, s->seq, &at, &h, err);
        if (rc)
            return rc;
        if (at == s->size && !newest)
            return 0; /* the next segment's header says whether all of this one was there */
        if (at == s->size || h.seq >= s->upto.seq) {
            problem(s, "%s: offset %" PRIu64 ": frames %" PRIu64 "..%" PRIu64 " are damaged", s->path, pos, s->seq, s->upto.seq - 1);
            return 0;
        }
        if (at != pos || h.seq != s->seq)
            problem(s, "%s: offset %" PRIu64 ": frame %" PRIu64 " is damaged; the next good one is %" PRIu64 " at %" PRIu64, s->path, pos, s->seq, h.seq, at);
        uint64_t sum;
        bool whole = h.len <= s->size - at - SEGLOG_FRAME_HEADER_LEN;
        rc = whole ? payload_sum(s, at + SEGLOG_FRAME_HEADER_LEN, h.len, salt, &sum, err) : 0;
        if (rc)
            return rc;
        if (!whole || sum != h.payload_sum)
            problem(s, "%s: offset %" PRIu64 ": the entries in frame %" PRIu64 " are damaged", s->path, at, h.seq);
        s->seq = h.seq + 1;
        pos = at + (whole ? seglog_frame_padded(h.len) : SEGLOG_BLOCK_LEN);
    }
    return 0;
}

static int segment_read(struct scrub *s, uint64_t number, struct err *err)
{
    const uint8_t *p = NULL;
    size_t n = 0;
    struct stat st;
    struct seglog_segment_header h;
    struct err why = {0};
    if (fstat(s->fd, &st) < 0)
        return seglog_fail_errno(err, errno, "stat", s->path);
    (void)posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED);
    s->size = (uint64_t)st.st_size;
    s->chunk_len = 0;
    int rc = s->size ? chunk_get(s, 0, &p, &n, err) : 0;
    if (rc)
        return rc;
    if (seglog_segment_header_get(p, n, &s->log->who, &h, &why) != 0) {
        problem(s, "%s: %s", s->path, why.text);
        return READ_BAD;
    }
    if (h.number != number) {
        problem(s, "%s: it calls itself segment %" PRIu64, s->path, h.number);
        return READ_BAD;
    }
    if (s->seq_known && h.first_seq != s->seq)
        problem(s, "%s/%020" PRIu64 ".seg: its last good frame is %" PRIu64 ", but the next segment begins with %" PRIu64, s->log->dir, number - 1, s->seq - 1,
                h.first_seq);
    s->seq = h.first_seq;
    s->seq_known = true;
    return frames_scrub(s, h.salt, number == s->upto.newest, err);
}

/* Was it cut off since we began? */
static bool segment_cut(struct seglog *log, uint64_t number)
{
    pthread_mutex_lock(&log->durable_mutex);
    bool gone = number < log->durable.oldest;
    pthread_mutex_unlock(&log->durable_mutex);
    return gone;
}

static int segment_scrub(struct scrub *s, uint64_t number, struct err *err)
{
    char name[40];
    snprintf(name, sizeof name, "%020" PRIu64 ".seg", number);
    int rc = seglog_path(s->log, name, s->path, err);
    if (rc)
        return rc;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0) {
        int e = errno;
        if (e == EMFILE || e == ENFILE || e == ENOMEM || e == EINTR)
            return seglog_fail_errno(err, e, "open", s->path);
        s->seq_known = false;
        if (e != ENOENT)
            problem(s, "%s: it can't be opened (error %d)", s->path, e);
        else if (!segment_cut(s->log, number))
            problem(s, "%s is missing", s->path);
        return 0;
    }
    rc = segment_read(s, number, err);
    if (rc == READ_BAD) {
        s->seq_known = false;
        rc = 0;
    }
    (void)posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED); /* nobody reads it again soon */
    close(s->fd);
    return rc;
}

int seglog_scrub(const struct seglog *scrubbed, const struct seglog_scrub_cb *cb, uint64_t *problems_r, struct err *err)
{
    struct seglog *log = (struct seglog *)scrubbed; /* its mutexes are taken; nothing else is changed */
    struct scrub s = {.log = log, .cb = cb, .chunk = malloc(CHUNK_LEN), .sum = XXH3_createState()};
    int rc = 0;
    *problems_r = 0;
    if (!s.chunk || !s.sum) {
        rc = err_set(err, RAFTDIR_ENOMEM, "check the log: out of memory");
        goto free_chunk;
    }
    pthread_mutex_lock(&log->durable_mutex);
    s.upto = log->durable;
    pthread_mutex_unlock(&log->durable_mutex);
    for (uint64_t number = s.upto.oldest; !rc && number && number <= s.upto.newest; number++)
        rc = segment_scrub(&s, number, err);
    bool bad[2];
    if (!rc)
        rc = seglog_vote_scrub(log, bad, err);
    for (int i = 0; !rc && i < 2; i++) {
        if (bad[i])
            problem(&s, "%s/vote: copy %d of term and vote is damaged", log->dir, i + 1);
    }
    *problems_r = s.problems;
free_chunk:
    XXH3_freeState(s.sum);
    free(s.chunk);
    return rc;
}
