/* seglog.c - the log on disk: opening, writing, cutting. seglog.h says what it promises; this is how the bytes lie and why.
 *
 * Directory: `vote` (seglog_vote.c) and segments "%020u.seg", numbered without gaps in the order of writing; "*.tmp" are unfinished, or cut off, and removed at start.
 *
 * Segment (little-endian), LOG_SEGMENT_LEN bytes, preallocated:
 *   block 0: magic "RDIRLOG\n"   8 u32 version   12 u32 block length (4096)   16 u64 segment number   24 u64 seq of its first frame
 *            32 u64 cluster id   40 u64 incarnation   48 uuid (16)   64 u64 salt (random)   72 u64 XXH3-64 of the 72 bytes before
 *   then frames, each from a block's start, zeros behind them.
 * Frame: 0 magic "RFRM"   4 u32 number of batches   8 u32 payload length   12 u32 0   16 u64 seq   24 u64 durable_seq
 *        32 u64 XXH3-64 of the payload, seeded with the salt   40 u64 the same of the 40 bytes before, so of the whole frame   48 payload
 * Payload: batches: u64 first index, u32 number of entries, u32 0, entries: u64 term, u32 length, u32 type, bytes. Each batch cuts the log at its first
 *        index and then appends: all of a frame or nothing of it. A frame without batches is a seal: it only says that all before it is durable.
 *        A batch of no entries is the base of a log that was made for an image: the next entry is `first`. Valid only where nothing stands before it but seals.
 *
 * Invariants
 * - One frame is under way at a time: frame N + 1 is written when N is durable, so durable_seq is seq - 1.
 * - No block of a durable frame is ever written again: a torn write destroys nothing but what it was writing.
 * - A segment exists under its name only complete: made as .tmp, preallocated, header written, synced, renamed, directory synced, before a frame goes in.
 *   It is made when everything in the segment before it is durable.
 * - What seglog_open returns has been synced: a process that was killed between write and sync leaves frames that only the page cache holds.
 * - Once an entry or a base was written, some segment always says where the log begins: seglog_cut leaves the newest segment that does.
 *
 * The end of the log at start. In a segment that is not the newest, fewer frames than the next segment's header says: damage. In the newest, a bad
 * frame (checksum, length, magic) where frame N belongs is
 * - damage, if a frame header that is valid stands anywhere behind it: N had been durable then. RAFTDIR_ECORRUPT, nothing is changed;
 * - else a torn tail, never acknowledged: cut off, and its length told.
 * A valid frame with another number than expected, or a batch that doesn't fit the log before it, is damage.
 * After a torn tail the file is cut there, synced and preallocated afresh before anything is written: no stale byte stays behind it. Besides, the
 * salt, unknown outside this file, keeps an entry's bytes from ever looking like a frame, or a frame of another segment like one of this.
 *
 * What can't be decided: damage to the last frame, as long as nothing was written after it, looks like a torn tail; so does losing the last frames' blocks
 * together, or the newest segments as whole files. To keep that window small, closing and opening write a seal when the newest frame is none: what is
 * open to doubt is at most the one frame written last before a crash, until the next is. Raft's other copies are what protects that one. A base
 * is sealed at once: no vote and no acknowledgement may stand on a log whose beginning is open to doubt.
 * Padding behind a frame and behind the headers carries nothing and is not checked.
 *
 * Full disk: a frame that doesn't fit asks for the next segment first; if that can't be had, RAFTDIR_ENOSPC and nothing was written. Within a segment the space
 * is there. On a file system that copies on write, preallocation promises nothing: there a write may fail with ENOSPC midway; the frame isn't
 * counted then, its place is written over by the next try, and a start in between finds a torn tail.
 * Speed: zeros are written SEGLOG_ZERO_AHEAD_LEN ahead, with the frame that needs them, so that most flushes change no extent map and
 * need no commit of the file system's journal (a quarter less time a flush on ext4). */
#include "seglog_internal.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUF_LEN_KEPT (1u << 20)

static const uint8_t zeros[SEGLOG_ZERO_AHEAD_LEN];

static void segment_name(uint64_t number, const char *suffix, char *buf_r, size_t size)
{
    snprintf(buf_r, size, "%020" PRIu64 ".seg%s", number, suffix);
}

void seglog_publish(struct seglog *log, size_t from)
{
    pthread_mutex_lock(&log->durable_mutex);
    log->durable = (struct seglog_durable){.seq = log->seq};
    if (log->segments_n > from) {
        log->durable.oldest = log->segments[from].number;
        log->durable.newest = log->segments[log->segments_n - 1].number;
    }
    pthread_mutex_unlock(&log->durable_mutex);
}

/* Makes the next segment and leaves `log` at its start. On failure the log is as it was. */
static int segment_create(struct seglog *log, struct err *err)
{
    const struct seglog_io *io = &log->io;
    uint64_t number = log->segments_n ? log->segments[log->segments_n - 1].number + 1 : 1;
    char name[40], path[SEGLOG_PATH_LEN_MAX], tmp[SEGLOG_PATH_LEN_MAX];
    segment_name(number, "", name, sizeof name);
    int rc = seglog_path(log, name, path, err);
    segment_name(number, ".tmp", name, sizeof name);
    if (!rc)
        rc = seglog_path(log, name, tmp, err);
    if (rc)
        return rc;
    struct seglog_segment_header h = {.number = number, .first_seq = log->seq};
    if (getrandom(&h.salt, sizeof h.salt, 0) != (ssize_t)sizeof h.salt)
        return seglog_fail_errno(err, errno, "get random bytes for", path);
    struct seglog_segment *segments = realloc(log->segments, (log->segments_n + 1) * sizeof *segments);
    if (!segments)
        return err_set(err, RAFTDIR_ENOMEM, "create %s: out of memory", path);
    log->segments = segments;

    int fd = io->open(io->data, tmp, O_RDWR | O_CREAT | O_TRUNC);
    if (fd < 0)
        return seglog_fail_errno(err, errno, "create", tmp);
    if (io->fallocate(io->data, fd, (off_t)log->segment_len) < 0) {
        rc = seglog_fail_errno(err, errno, "preallocate", tmp);
        goto remove_tmp;
    }
    uint8_t block[SEGLOG_BLOCK_LEN];
    seglog_segment_header_put(block, &log->who, &h);
    int e = seglog_write_all(io, fd, block, sizeof block, 0);
    if (e) {
        rc = seglog_fail_errno(err, e, "write", tmp);
        goto remove_tmp;
    }
    if (io->fsync(io->data, fd) < 0) {
        rc = seglog_broken(log, err, errno, "sync", tmp);
        goto remove_tmp;
    }
    if (io->rename(io->data, tmp, path) < 0) {
        rc = seglog_fail_errno(err, errno, "rename to", path);
        goto remove_tmp;
    }
    rc = seglog_dir_sync(log, err);
    if (rc) {
        io->close(io->data, fd);
        return rc;
    }
    if (log->fd >= 0)
        io->close(io->data, log->fd);
    log->segments[log->segments_n++] = (struct seglog_segment){.number = number, .used_len = SEGLOG_BLOCK_LEN};
    log->fd = fd;
    log->salt = h.salt;
    log->pos = log->zeroed = SEGLOG_BLOCK_LEN;
    log->size = log->segment_len;
    atomic_fetch_add(&log->used_len, SEGLOG_BLOCK_LEN);
    seglog_publish(log, 0);
    return 0;
remove_tmp:
    io->close(io->data, fd);
    io->unlink(io->data, tmp);
    return rc;
}

/* The frame in log->buf, `len` bytes of it (whole blocks), to the place where it belongs; then durable. */
static int frame_flush(struct seglog *log, size_t len, struct err *err)
{
    const struct seglog_io *io = &log->io;
    uint64_t end = log->pos + len, ahead = 0;
    if (end > log->zeroed) {
        ahead = log->size - end;
        if (ahead > SEGLOG_ZERO_AHEAD_LEN)
            ahead = SEGLOG_ZERO_AHEAD_LEN;
    }
    uint64_t done = 0;
    while (done < len + ahead) {
        struct iovec iov[2];
        int n = 0;
        if (done < len)
            iov[n++] = (struct iovec){log->buf + done, len - done};
        uint64_t zeros_done = done > len ? done - len : 0;
        if (ahead > zeros_done)
            iov[n++] = (struct iovec){(void *)zeros, ahead - zeros_done};
        ssize_t w = io->pwritev(io->data, log->fd, iov, n, (off_t)(log->pos + done));
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0 && done >= len)
            break; /* the frame is there; the zeros are only for speed */
        if (w < 0 && (errno == ENOSPC || errno == EDQUOT))
            return seglog_fail_errno(err, errno, "write the log in", log->dir);
        if (w <= 0)
            return seglog_broken(log, err, w < 0 ? errno : EIO, "write the log in", log->dir);
        done += (uint64_t)w;
    }
    if (io->fdatasync(io->data, log->fd) < 0)
        return seglog_broken(log, err, errno, "sync the log in", log->dir);
    if (log->zeroed < log->pos + done)
        log->zeroed = log->pos + done;
    log->pos = end;
    log->seq++;
    log->segments[log->segments_n - 1].used_len += len;
    atomic_fetch_add(&log->used_len, len);
    seglog_publish(log, 0);
    return 0;
}

static int frame_write(struct seglog *log, const struct log_batch *batches, size_t payload_len, uint32_t batches_n, struct err *err)
{
    size_t len = seglog_frame_padded(payload_len);
    if (log->buf_size < len) {
        uint8_t *p = realloc(log->buf, len);
        if (!p)
            return err_set(err, RAFTDIR_ENOMEM, "write the log: out of memory");
        log->buf = p;
        log->buf_size = len;
    }
    if (log->size - log->pos < len) {
        int rc = segment_create(log, err);
        if (rc)
            return rc;
    }
    seglog_payload_put(log->buf + SEGLOG_FRAME_HEADER_LEN, batches);
    memset(log->buf + SEGLOG_FRAME_HEADER_LEN + payload_len, 0, len - SEGLOG_FRAME_HEADER_LEN - payload_len);
    struct seglog_frame_header h = {
        .batches = batches_n,
        .len = (uint32_t)payload_len,
        .seq = log->seq,
        .durable_seq = log->seq - 1,
        .payload_sum = seglog_sum(log->buf + SEGLOG_FRAME_HEADER_LEN, payload_len, log->salt),
    };
    seglog_frame_header_put(log->buf, &h, log->salt);
    int rc = frame_flush(log, len, err);
    if (log->buf_size > BUF_LEN_KEPT) {
        free(log->buf);
        log->buf = NULL;
        log->buf_size = 0;
    }
    if (!rc)
        log->sealed = batches_n == 0;
    return rc;
}

int seglog_base(struct seglog *log, uint64_t index, struct err *err)
{
    int rc = seglog_refused(log, err);
    if (rc)
        return rc;
    bool again = !log->empty && log->base == index && log->last == index; /* the base was written, its seal wasn't */
    if (index == UINT64_MAX || (!log->empty && !again))
        return err_set(err, RAFTDIR_EINVAL, "begin the log after entry %" PRIu64 ": it holds entries %" PRIu64 "..%" PRIu64 " already", index, log->base + 1,
                       log->last);
    if (!again) {
        struct log_batch base = {.first = index + 1};
        rc = frame_write(log, &base, SEGLOG_BATCH_HEADER_LEN, 1, err);
        if (rc)
            return rc;
        seglog_account(log, &log->segments[log->segments_n - 1], base.first, 0);
    }
    return log->sealed ? 0 : frame_write(log, NULL, 0, 0, err);
}

/* Would the batches leave a log without gaps? */
static int batches_check(const struct seglog *log, const struct log_batch *batches, struct err *err)
{
    uint64_t last = log->last;
    bool empty = log->empty;
    if (!batches)
        return err_set(err, RAFTDIR_EINVAL, "write the log: nothing to write");
    uint64_t base = log->base;
    for (const struct log_batch *b = batches; b; b = b->next) {
        if (b->n == 0 || b->first == 0 || (!empty && (b->first > last + 1 || b->first <= base)))
            return err_set(err, RAFTDIR_EINVAL, "write the log: %u entries from %" PRIu64 " don't fit entries %" PRIu64 "..%" PRIu64, b->n, b->first, base + 1,
                           last);
        if (empty)
            base = b->first - 1;
        empty = false;
        last = b->first + b->n - 1;
    }
    return 0;
}

int seglog_write(struct seglog *log, const struct log_batch *batches, struct err *err)
{
    int rc = seglog_refused(log, err);
    if (!rc)
        rc = batches_check(log, batches, err);
    if (rc)
        return rc;
    size_t len, max = log->segment_len - SEGLOG_BLOCK_LEN - SEGLOG_FRAME_HEADER_LEN;
    uint32_t n;
    if (seglog_payload_len(batches, max, &len, &n))
        return err_set(err, RAFTDIR_ETOOBIG, "write the log: more than %zu bytes at once", max);
    rc = frame_write(log, batches, len, n, err);
    if (rc)
        return rc;
    for (const struct log_batch *b = batches; b; b = b->next)
        seglog_account(log, &log->segments[log->segments_n - 1], b->first, b->n);
    return 0;
}

/* Does any segment but the oldest say where the log begins? One between may hold nothing but a seal: its disk was full. */
static bool later_segment_begins(const struct seglog *log)
{
    for (size_t i = log->segments_n; i-- > 1;) {
        if (log->segments[i].first)
            return true;
    }
    return false;
}

/* The oldest segment goes: in one step, by its name; its blocks are given back later (seglog_remove.c). */
static int segment_cut(struct seglog *log, struct err *err)
{
    char name[40], path[SEGLOG_PATH_LEN_MAX], cut[SEGLOG_PATH_LEN_MAX];
    segment_name(log->segments[0].number, "", name, sizeof name);
    int rc = seglog_path(log, name, path, err);
    segment_name(log->segments[0].number, SEGLOG_CUT_SUFFIX, name, sizeof name);
    if (!rc)
        rc = seglog_path(log, name, cut, err);
    if (rc)
        return rc;
    seglog_publish(log, 1); /* before it goes: a scrub must not miss it */
    if (log->io.rename(log->io.data, path, cut) < 0 && errno != ENOENT) {
        rc = seglog_fail_errno(err, errno, "remove", path);
        seglog_publish(log, 0);
        return rc;
    }
    log->dir_dirty = true;
    atomic_fetch_sub(&log->used_len, log->segments[0].used_len);
    log->segments_n--;
    memmove(log->segments, log->segments + 1, log->segments_n * sizeof *log->segments);
    log->base = UINT64_MAX;
    for (size_t i = 0; i < log->segments_n; i++) { /* as a start would find it */
        uint64_t first = log->segments[i].first;
        if (first && first - 1 < log->base)
            log->base = first - 1;
    }
    if (log->alone)
        (void)log->io.unlink(log->io.data, cut); /* else the next start does */
    return 0;
}

int seglog_cut(struct seglog *log, uint64_t index, struct err *err)
{
    bool some = false;
    int rc = seglog_refused(log, err);
    /* One by one, each removal durable before the next: a crash never leaves a gap. The last one needs no sync of its own: it may come back, and the next new
     * segment syncs the directory anyway. So a cut that keeps up with the writing costs no sync in the thread that everybody waits for. */
    while (!rc && log->segments[0].last <= index && later_segment_begins(log)) {
        if (log->dir_dirty)
            rc = seglog_dir_sync(log, err);
        if (!rc)
            rc = segment_cut(log, err);
        some = some || !rc;
    }
    if (some && !log->alone)
        seglog_remove_start(log);
    return rc;
}

uint64_t seglog_used_len(const struct seglog *log)
{
    return atomic_load(&log->used_len);
}

/* Confirms the newest frame, if there is room and need (top of the file). */
static int seal(struct seglog *log, struct err *err)
{
    if (log->sealed || log->size - log->pos < SEGLOG_BLOCK_LEN)
        return 0;
    return frame_write(log, NULL, 0, 0, err);
}

static void log_free(struct seglog *log)
{
    seglog_remove_wait(log);
    if (log->fd >= 0)
        log->io.close(log->io.data, log->fd);
    if (log->vote_fd >= 0)
        log->io.close(log->io.data, log->vote_fd);
    if (log->dir_fd >= 0)
        close(log->dir_fd);
    pthread_mutex_destroy(&log->durable_mutex);
    pthread_mutex_destroy(&log->vote_mutex);
    free(log->segments);
    free(log->buf);
    free(log);
}

void seglog_found_clear(struct seglog_found *found)
{
    for (size_t i = 0; i < found->entries_n; i++)
        entry_unref(found->entries[i]);
    free(found->entries);
    memset(found, 0, sizeof *found);
}

static int open_files(struct seglog *log, struct seglog_found *found, struct err *err)
{
    bool have_vote;
    int rc = seglog_vote_load(log, &have_vote, err);
    if (!rc)
        rc = seglog_replay(log, found, err);
    if (rc)
        return rc;
    if (!have_vote && log->segments_n)
        return err_set(err, RAFTDIR_ECORRUPT, "%s/vote is missing: this node's term and vote are lost. Rebuild it from the others, as a new member", log->dir);
    if (have_vote && !log->segments_n && log->term)
        return err_set(err, RAFTDIR_ECORRUPT, "%s: there is a vote in term %" PRIu64 ", but no segment is left. Rebuild this node from the others", log->dir,
                       log->term);
    if (!have_vote)
        rc = seglog_vote_create(log, err);
    if (!rc && !log->segments_n)
        rc = segment_create(log, err);
    if (!rc)
        rc = seglog_dir_sync(log, err);
    if (!rc) {
        rc = seal(log, err);
        if (rc == RAFTDIR_ENOSPC) /* a log on a full disk opens all the same */
            rc = 0;
    }
    if (!rc)
        seglog_publish(log, 0);
    return rc;
}

int seglog_open_with(const char *dir, const struct seglog_identity *who, const struct seglog_options *o, struct seglog **log_r,
                     struct seglog_found *found_r, struct err *err)
{
    memset(found_r, 0, sizeof *found_r);
    struct seglog *log = calloc(1, sizeof *log);
    if (!log)
        return err_set(err, RAFTDIR_ENOMEM, "open the log: out of memory");
    log->fd = log->vote_fd = log->dir_fd = -1;
    log->io = o && o->io ? *o->io : seglog_io_system;
    log->alone = o && o->io;
    log->who = *who;
    log->segment_len = o && o->segment_len ? o->segment_len / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN : LOG_SEGMENT_LEN;
    assert(log->segment_len >= 2 * SEGLOG_BLOCK_LEN && log->segment_len <= SEGLOG_SEGMENT_LEN_MAX);
    int rc = pthread_mutex_init(&log->vote_mutex, NULL);
    if (!rc && (rc = pthread_mutex_init(&log->durable_mutex, NULL)) != 0)
        pthread_mutex_destroy(&log->vote_mutex);
    if (rc) {
        free(log);
        return err_set(err, err_from_errno(rc), "open the log: %s", strerror(rc));
    }
    if (snprintf(log->dir, sizeof log->dir, "%s", dir) >= (int)sizeof log->dir) {
        rc = err_set(err, RAFTDIR_ETOOBIG, "path %s is too long", dir);
        goto free_log;
    }
    log->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (log->dir_fd < 0) {
        rc = seglog_fail_errno(err, errno, "open directory", dir);
        goto free_log;
    }
    rc = open_files(log, found_r, err);
    if (rc)
        goto free_log;
    found_r->term = log->term;
    found_r->voted_for = log->voted_for;
    *log_r = log;
    return 0;
free_log:
    seglog_found_clear(found_r);
    log_free(log);
    return rc;
}

int seglog_open(const char *dir, const struct seglog_identity *who, struct seglog **log_r, struct seglog_found *found_r, struct err *err)
{
    return seglog_open_with(dir, who, NULL, log_r, found_r, err);
}

void seglog_close(struct seglog **log)
{
    if (!*log)
        return;
    if (!atomic_load(&(*log)->failed))
        (void)seal(*log, NULL); /* best effort */
    log_free(*log);
    *log = NULL;
}
