/* mupdate_spool.c - see mupdate_spool.h. A row in the file: the length of its strings, its kind, then the four strings, each with its NUL. The file is nobody else's: it is trusted. */
#include "mupdate_spool.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/mem.h"

#define HEAD_LEN 8

int mupdate_spool_open(struct mupdate_spool *s, struct err *err)
{
    const char *dir = getenv("TMPDIR");
    char path[512];
    *s = (struct mupdate_spool){0};
    snprintf(path, sizeof path, "%s/raftdirctl.XXXXXX", dir && *dir ? dir : "/tmp");
    s->fd = mkostemp(path, O_CLOEXEC);
    if (s->fd < 0)
        return err_set(err, RAFTDIR_EIO, "%s: %s", path, strerror(errno));
    unlink(path);
    s->open = true;
    s->out = mem_alloc(SPOOL_BUF_LEN);
    s->in_size = SPOOL_BUF_LEN;
    s->in = mem_alloc(s->in_size);
    return 0;
}

void mupdate_spool_close(struct mupdate_spool *s)
{
    if (s->open)
        close(s->fd);
    free(s->out);
    free(s->in);
    *s = (struct mupdate_spool){0};
}

static int write_all(struct mupdate_spool *s, const char *p, size_t len, struct err *err)
{
    while (len) {
        ssize_t n = pwrite(s->fd, p, len, (off_t)s->in_file);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, n < 0 && errno != ENOSPC ? RAFTDIR_EIO : RAFTDIR_ENOSPC, "the temporary file (TMPDIR says where): %s", n < 0 ? strerror(errno) : "full");
        p += n;
        len -= (size_t)n;
        s->in_file += (uint64_t)n;
    }
    return 0;
}

static int flush(struct mupdate_spool *s, struct err *err)
{
    int rc = write_all(s, s->out, s->out_len, err);
    if (!rc)
        s->out_len = 0;
    return rc;
}

static int put(struct mupdate_spool *s, const void *p, size_t len, struct err *err)
{
    int rc;
    if (len > SPOOL_BUF_LEN - s->out_len && (rc = flush(s, err)))
        return rc;
    if (len > SPOOL_BUF_LEN) {
        if ((rc = write_all(s, p, len, err)))
            return rc;
    } else {
        memcpy(s->out + s->out_len, p, len);
        s->out_len += len;
    }
    s->written += len;
    return 0;
}

int mupdate_spool_put(struct mupdate_spool *s, const struct mupdate_row *row, uint64_t *offset_r, struct err *err)
{
    const char *part[4] = {row->name, row->server, row->partition, row->acl};
    uint32_t head[2] = {0, (uint32_t)row->kind};
    for (int i = 0; i < 4; i++)
        head[0] += (uint32_t)strlen(part[i]) + 1;
    if (offset_r)
        *offset_r = s->written;
    int rc = put(s, head, sizeof head, err);
    for (int i = 0; i < 4 && !rc; i++)
        rc = put(s, part[i], strlen(part[i]) + 1, err);
    return rc;
}

/* The bytes from `at` on are at the pointer. */
static int get(struct mupdate_spool *s, uint64_t at, size_t len, const char **p_r, struct err *err)
{
    if (at >= s->in_at && at + len <= s->in_at + s->in_len) {
        *p_r = s->in + (at - s->in_at);
        return 0;
    }
    int rc = flush(s, err);
    if (rc)
        return rc;
    if (len > s->in_size) {
        s->in_size = len;
        s->in = mem_realloc(s->in, len);
    }
    s->in_at = at;
    s->in_len = 0;
    while (s->in_len < len) {
        ssize_t n = pread(s->fd, s->in + s->in_len, s->in_size - s->in_len, (off_t)(at + s->in_len));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, RAFTDIR_EIO, "the temporary file: %s", n < 0 ? strerror(errno) : "it was cut off");
        s->in_len += (size_t)n;
    }
    *p_r = s->in;
    return 0;
}

static int read_row(struct mupdate_spool *s, uint64_t at, struct mupdate_row *row_r, uint64_t *end_r, struct err *err)
{
    const char *p;
    uint32_t head[2];
    int rc = get(s, at, HEAD_LEN, &p, err);
    if (rc)
        return rc;
    memcpy(head, p, sizeof head);
    if ((rc = get(s, at + HEAD_LEN, head[0], &p, err)))
        return rc;
    row_r->kind = (enum mupdate_row_kind)head[1];
    row_r->name = p;
    row_r->server = row_r->name + strlen(row_r->name) + 1;
    row_r->partition = row_r->server + strlen(row_r->server) + 1;
    row_r->acl = row_r->partition + strlen(row_r->partition) + 1;
    *end_r = at + HEAD_LEN + head[0];
    return 0;
}

int mupdate_spool_next(struct mupdate_spool *s, struct mupdate_row *row_r, uint64_t *offset_r, struct err *err)
{
    if (mupdate_spool_empty(s))
        return RAFTDIR_ENOTFOUND;
    if (offset_r)
        *offset_r = s->read_at;
    return read_row(s, s->read_at, row_r, &s->read_at, err);
}

int mupdate_spool_at(struct mupdate_spool *s, uint64_t offset, struct mupdate_row *row_r, struct err *err)
{
    uint64_t end;
    return read_row(s, offset, row_r, &end, err);
}

bool mupdate_spool_empty(const struct mupdate_spool *s)
{
    return s->read_at == s->written;
}

void mupdate_spool_forget(struct mupdate_spool *s)
{
    if (!mupdate_spool_empty(s) || !s->written)
        return;
    if (s->in_file && ftruncate(s->fd, 0) < 0)
        return; /* it stays as long as it is: only room is lost */
    s->read_at = s->written = s->in_file = s->in_at = 0;
    s->out_len = s->in_len = 0;
}
