/* seglog_replay.c - what the files say at start: entries, the place to write next, and whether a bad end is a torn tail or damage (rules: seglog.c). */
#include "seglog_internal.h"
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEGMENT_NAME_LEN 24 /* 20 digits and ".seg" */

struct replay {
    struct seglog *log;
    struct seglog_found *found;
    size_t entries_size;
    struct seglog_segment *current;
};

/* --- Entries --- */

void seglog_account(struct seglog *log, struct seglog_segment *current, uint64_t first, unsigned n)
{
    for (size_t i = 0; i < log->segments_n; i++) {
        if (log->segments[i].last >= first)
            log->segments[i].last = first - 1;
    }
    if (!current->first || first < current->first)
        current->first = first;
    current->last = first + n - 1;
    if (log->empty || first <= log->base)
        log->base = first - 1;
    log->empty = false;
    log->last = first + n - 1;
}

static int entries_append(struct replay *r, struct entry *e)
{
    struct seglog_found *f = r->found;
    if (f->entries_n == r->entries_size) {
        size_t size = r->entries_size ? r->entries_size * 2 : 1024;
        struct entry **p = realloc(f->entries, size * sizeof *p);
        if (!p)
            return RAFTDIR_ENOMEM;
        f->entries = p;
        r->entries_size = size;
    }
    f->entries[f->entries_n++] = e;
    return 0;
}

static int batch_apply(struct replay *r, uint64_t first, uint32_t n, const uint8_t *p, const uint8_t *end, const uint8_t **next_r)
{
    struct seglog *log = r->log;
    if ((n == 0 && !log->empty) || first == 0 || first > UINT64_MAX - n)
        return RAFTDIR_ECORRUPT;
    if (!log->empty && first > log->last + 1)
        return RAFTDIR_ECORRUPT;
    /* At or below the base: the segments before, which held what this batch follows, were cut off later. */
    struct seglog_found *f = r->found;
    while (f->entries_n && log->base + f->entries_n >= first)
        entry_unref(f->entries[--f->entries_n]);
    for (uint32_t i = 0; i < n; i++) {
        if ((size_t)(end - p) < SEGLOG_ENTRY_HEADER_LEN)
            return RAFTDIR_ECORRUPT;
        uint64_t term = seglog_get_u64(p);
        uint32_t len = seglog_get_u32(p + 8), type = seglog_get_u32(p + 12);
        p += SEGLOG_ENTRY_HEADER_LEN;
        if ((size_t)(end - p) < len || type > UINT16_MAX)
            return RAFTDIR_ECORRUPT;
        struct entry *e = entry_create(first + i, term, (uint16_t)type, p, len);
        if (!e)
            return RAFTDIR_ENOMEM;
        if (entries_append(r, e)) {
            entry_unref(e);
            return RAFTDIR_ENOMEM;
        }
        p += len;
    }
    seglog_account(log, r->current, first, n);
    *next_r = p;
    return 0;
}

static int payload_apply(struct replay *r, const struct seglog_frame_header *h, const uint8_t *p)
{
    const uint8_t *end = p + h->len;
    for (uint32_t i = 0; i < h->batches; i++) {
        if ((size_t)(end - p) < SEGLOG_BATCH_HEADER_LEN)
            return RAFTDIR_ECORRUPT;
        int rc = batch_apply(r, seglog_get_u64(p), seglog_get_u32(p + 8), p + SEGLOG_BATCH_HEADER_LEN, end, &p);
        if (rc)
            return rc;
    }
    return p == end ? 0 : RAFTDIR_ECORRUPT;
}

/* --- One segment --- */

/* Behind a bad frame: does anything say that it had been durable? */
static bool later_frame(const uint8_t *buf, size_t from, size_t size, uint64_t salt, uint64_t seq)
{
    for (size_t at = from; at + SEGLOG_FRAME_HEADER_LEN <= size; at += SEGLOG_BLOCK_LEN) {
        struct seglog_frame_header h;
        if (seglog_frame_header_get(buf + at, salt, &h) && h.durable_seq >= seq)
            return true;
    }
    return false;
}

static int frames_apply(struct replay *r, const char *name, const uint8_t *buf, size_t size, bool newest, struct err *err)
{
    struct seglog *log = r->log;
    size_t pos = SEGLOG_BLOCK_LEN;
    while (size - pos >= SEGLOG_FRAME_HEADER_LEN) {
        struct seglog_frame_header h;
        if (!seglog_frame_header_get(buf + pos, log->salt, &h))
            break;
        if (h.seq != log->seq || h.durable_seq >= h.seq || h.len > SEGLOG_SEGMENT_LEN_MAX)
            return err_set(err, RAFTDIR_ECORRUPT, "%s: offset %zu: frame %" PRIu64 " stands where frame %" PRIu64 " belongs", name, pos, h.seq, log->seq);
        if (h.len > size - pos - SEGLOG_FRAME_HEADER_LEN)
            break;
        const uint8_t *payload = buf + pos + SEGLOG_FRAME_HEADER_LEN;
        if (seglog_sum(payload, h.len, log->salt) != h.payload_sum)
            break;
        int rc = payload_apply(r, &h, payload);
        if (rc == RAFTDIR_ENOMEM)
            return err_set(err, rc, "read the log: out of memory");
        if (rc)
            return err_set(err, rc, "%s: offset %zu: frame %" PRIu64 " doesn't fit what stands before it", name, pos, h.seq);
        log->sealed = h.batches == 0;
        log->seq++;
        pos += seglog_frame_padded(h.len);
        if (pos > size)
            pos = size; /* the file ends within the padding */
    }
    log->pos = pos;
    r->current->used_len = pos;
    if (later_frame(buf, pos, size, log->salt, log->seq))
        return err_set(err, RAFTDIR_ECORRUPT,
                       "%s: offset %zu: frame %" PRIu64 " is damaged, and a later one says that it had been durable; nothing was changed. "
                       "Rebuild this node from the others",
                       name, pos, log->seq);
    if (!newest)
        return 0; /* the next segment's header says whether all of this one was there */
    size_t end = size;
    while (end > pos && seglog_all_zero(buf + (end - 1) / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN, end - (end - 1) / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN))
        end = (end - 1) / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN;
    r->found->torn_len = end > pos ? end - pos : 0;
    return 0;
}

/* Makes the newest segment one that can be written to: what is in it durable, no stale byte behind `pos`, full length. */
static int newest_prepare(struct replay *r, const char *path, struct err *err)
{
    struct seglog *log = r->log;
    const struct seglog_io *io = &log->io;
    bool cut = r->found->torn_len > 0;
    log->size = log->size < log->segment_len ? log->segment_len : log->size;
    log->pos = (log->pos + SEGLOG_BLOCK_LEN - 1) / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN;
    if (cut) {
        if (io->ftruncate(io->data, log->fd, (off_t)log->pos) < 0)
            return seglog_fail_errno(err, errno, "cut the torn end of", path);
        if (io->fsync(io->data, log->fd) < 0)
            return seglog_broken(log, err, errno, "sync", path);
    }
    /* Fails on a full disk: then this segment takes what the file holds already, and the next write asks for a new one. */
    if (io->fallocate(io->data, log->fd, (off_t)log->size) < 0) {
        if (errno != ENOSPC && errno != EDQUOT)
            return seglog_fail_errno(err, errno, "preallocate", path);
        struct stat st;
        if (fstat(log->fd, &st) < 0)
            return seglog_fail_errno(err, errno, "stat", path);
        log->size = (uint64_t)st.st_size / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN;
        if (log->size < log->pos)
            log->size = log->pos;
    }
    if (io->fsync(io->data, log->fd) < 0)
        return seglog_broken(log, err, errno, "sync", path);
    log->zeroed = log->pos;
    return 0;
}

static int segment_replay(struct replay *r, uint64_t number, bool newest, struct err *err)
{
    struct seglog *log = r->log;
    char name[SEGMENT_NAME_LEN + 1], path[SEGLOG_PATH_LEN_MAX];
    snprintf(name, sizeof name, "%020" PRIu64 ".seg", number);
    int rc = seglog_path(log, name, path, err);
    if (rc)
        return rc;
    int fd = log->io.open(log->io.data, path, newest ? O_RDWR : O_RDONLY);
    if (fd < 0)
        return seglog_fail_errno(err, errno, "open", path);
    uint8_t *buf = NULL;
    struct stat st;
    if (fstat(fd, &st) < 0) {
        rc = seglog_fail_errno(err, errno, "stat", path);
        goto close_fd;
    }
    if (st.st_size < (off_t)SEGLOG_BLOCK_LEN || st.st_size > (off_t)SEGLOG_SEGMENT_LEN_MAX) {
        rc = err_set(err, RAFTDIR_ECORRUPT, "%s: a length of %lld bytes is no segment's", path, (long long)st.st_size);
        goto close_fd;
    }
    /* What we read must be on the disk before anybody builds on it, and be read from there: after a process that died between write and sync, or on a
     * failed sync, the page cache holds what the disk doesn't. */
    if (newest && log->io.fdatasync(log->io.data, fd) < 0) {
        rc = seglog_broken(log, err, errno, "sync", path);
        goto close_fd;
    }
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    size_t size = (size_t)st.st_size;
    buf = malloc(size);
    if (!buf) {
        rc = err_set(err, RAFTDIR_ENOMEM, "read %s: out of memory", path);
        goto close_fd;
    }
    rc = seglog_read_all(path, fd, buf, size, 0, err);
    if (rc)
        goto close_fd;
    struct seglog_segment_header h;
    rc = seglog_segment_header_get(buf, size, &log->who, &h, err);
    if (rc) {
        err_wrap(err, "%s", path);
        goto close_fd;
    }
    if (h.number != number || (log->segments_n && h.first_seq != log->seq)) {
        rc = err_set(err, RAFTDIR_ECORRUPT, "%s: it begins with frame %" PRIu64 ", but the log before it ends with %" PRIu64 "; nothing was changed. "
                     "Rebuild this node from the others", path, h.first_seq, log->seq - 1);
        goto close_fd;
    }
    log->seq = h.first_seq;
    log->salt = h.salt;
    log->size = size;
    r->current = &log->segments[log->segments_n++];
    *r->current = (struct seglog_segment){.number = number};
    rc = frames_apply(r, path, buf, size, newest, err);
    if (rc)
        goto close_fd;
    free(buf);
    if (!newest) {
        log->io.close(log->io.data, fd);
        return 0;
    }
    log->fd = fd;
    return newest_prepare(r, path, err); /* seglog_close closes log->fd */
close_fd:
    free(buf);
    log->io.close(log->io.data, fd);
    return rc;
}

/* --- The directory --- */

static bool segment_name_parse(const char *name, uint64_t *number_r)
{
    if (strlen(name) != SEGMENT_NAME_LEN || strcmp(name + 20, ".seg") != 0)
        return false;
    uint64_t v = 0;
    for (int i = 0; i < 20; i++) {
        if (name[i] < '0' || name[i] > '9' || v > (UINT64_MAX - 9) / 10)
            return false;
        v = v * 10 + (uint64_t)(name[i] - '0');
    }
    *number_r = v;
    return v > 0;
}

static int number_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Numbers of the segments, ascending; removes unfinished files. */
static int segments_list(struct seglog *log, uint64_t **numbers_r, size_t *n_r, struct err *err)
{
    DIR *d = opendir(log->dir);
    if (!d)
        return seglog_fail_errno(err, errno, "read directory", log->dir);
    uint64_t *numbers = NULL;
    size_t n = 0, size = 0;
    int rc = 0;
    struct dirent *e;
    while (!rc && (errno = 0, e = readdir(d))) {
        size_t len = strlen(e->d_name);
        uint64_t number;
        if (len > 4 && strcmp(e->d_name + len - 4, ".tmp") == 0) {
            char path[SEGLOG_PATH_LEN_MAX];
            rc = seglog_path(log, e->d_name, path, err);
            if (!rc && log->io.unlink(log->io.data, path) < 0 && errno != ENOENT)
                rc = seglog_fail_errno(err, errno, "remove", path);
        } else if (segment_name_parse(e->d_name, &number)) {
            if (n == size) {
                size = size ? size * 2 : 64;
                uint64_t *p = realloc(numbers, size * sizeof *p);
                if (!p) {
                    rc = err_set(err, RAFTDIR_ENOMEM, "read directory %s: out of memory", log->dir);
                    break;
                }
                numbers = p;
            }
            numbers[n++] = number;
        }
    }
    if (!rc && errno)
        rc = seglog_fail_errno(err, errno, "read directory", log->dir);
    closedir(d);
    if (rc) {
        free(numbers);
        return rc;
    }
    if (n)
        qsort(numbers, n, sizeof *numbers, number_compare);
    *numbers_r = numbers;
    *n_r = n;
    return 0;
}

int seglog_replay(struct seglog *log, struct seglog_found *found, struct err *err)
{
    uint64_t *numbers;
    size_t n;
    int rc = segments_list(log, &numbers, &n, err);
    if (rc)
        return rc;
    struct replay r = {.log = log, .found = found};
    log->seq = 1;
    log->empty = true;
    log->sealed = true;
    log->segments = calloc(n + 1, sizeof *log->segments);
    if (!log->segments)
        rc = err_set(err, RAFTDIR_ENOMEM, "open the log: out of memory");
    for (size_t i = 0; !rc && i < n; i++) {
        if (i && numbers[i] != numbers[i - 1] + 1)
            rc = err_set(err, RAFTDIR_ECORRUPT, "%s: segment %020" PRIu64 " is missing; nothing was changed. Rebuild this node from the others", log->dir,
                         numbers[i - 1] + 1);
        else
            rc = segment_replay(&r, numbers[i], i == n - 1, err);
    }
    free(numbers);
    if (rc)
        return rc;
    uint64_t used = 0;
    for (size_t i = 0; i < log->segments_n; i++)
        used += log->segments[i].used_len;
    atomic_store(&log->used_len, used);
    found->first = log->base + 1;
    return 0;
}
