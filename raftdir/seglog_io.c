/* seglog_io.c - the file calls under the log, and how their failures are told. */
#include "seglog_internal.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int sys_open(void *data, const char *path, int flags)
{
    (void)data;
    return open(path, flags | O_CLOEXEC, 0600);
}

static int sys_close(void *data, int fd)
{
    (void)data;
    return close(fd);
}

static ssize_t sys_pwritev(void *data, int fd, const struct iovec *iov, int n, off_t at)
{
    (void)data;
    return pwritev(fd, iov, n, at);
}

static int sys_fdatasync(void *data, int fd)
{
    (void)data;
    return fdatasync(fd);
}

static int sys_fsync(void *data, int fd)
{
    (void)data;
    return fsync(fd);
}

/* posix_fallocate where the file system can't: it writes. */
static int sys_fallocate(void *data, int fd, off_t len)
{
    (void)data;
    int rc;
    do {
        rc = posix_fallocate(fd, 0, len);
    } while (rc == EINTR);
    if (rc == 0)
        return 0;
    errno = rc;
    return -1;
}

static int sys_ftruncate(void *data, int fd, off_t len)
{
    (void)data;
    return ftruncate(fd, len);
}

static int sys_rename(void *data, const char *from, const char *to)
{
    (void)data;
    return rename(from, to);
}

static int sys_unlink(void *data, const char *path)
{
    (void)data;
    return unlink(path);
}

const struct seglog_io seglog_io_system = {
    .open = sys_open,
    .close = sys_close,
    .pwritev = sys_pwritev,
    .fdatasync = sys_fdatasync,
    .fsync = sys_fsync,
    .fallocate = sys_fallocate,
    .ftruncate = sys_ftruncate,
    .rename = sys_rename,
    .unlink = sys_unlink,
};

int seglog_fail_errno(struct err *err, int errnum, const char *doing, const char *path)
{
    return err_set(err, err_from_errno(errnum), "%s %s: %s", doing, path, strerror(errnum));
}

int seglog_broken(struct seglog *log, struct err *err, int errnum, const char *doing, const char *path)
{
    atomic_store(&log->failed, true);
    return err_set(err, RAFTDIR_EIO, "%s %s: %s; the log takes nothing more, since what it holds is not certain any longer", doing, path,
                   strerror(errnum));
}

int seglog_refused(const struct seglog *log, struct err *err)
{
    if (!atomic_load(&log->failed))
        return 0;
    return err_set(err, RAFTDIR_EIO, "log %s: refused after an earlier I/O error", log->dir);
}

int seglog_write_all(const struct seglog_io *io, int fd, const void *p, size_t len, off_t at)
{
    const uint8_t *from = p;
    while (len) {
        struct iovec iov = {.iov_base = (void *)from, .iov_len = len};
        ssize_t n = io->pwritev(io->data, fd, &iov, 1, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : EIO;
        from += n;
        len -= (size_t)n;
        at += n;
    }
    return 0;
}

int seglog_read_all(const char *path, int fd, uint8_t *p, size_t len, off_t at, struct err *err)
{
    while (len) {
        ssize_t n = pread(fd, p, len, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return seglog_fail_errno(err, errno, "read", path);
        if (n == 0)
            return err_set(err, RAFTDIR_EIO, "read %s: it became shorter", path);
        p += n;
        len -= (size_t)n;
        at += n;
    }
    return 0;
}

int seglog_path(const struct seglog *log, const char *name, char path_r[SEGLOG_PATH_LEN_MAX], struct err *err)
{
    int n = snprintf(path_r, SEGLOG_PATH_LEN_MAX, "%s/%s", log->dir, name);
    if (n < 0 || n >= SEGLOG_PATH_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "path %s/%s is too long", log->dir, name);
    return 0;
}

int seglog_dir_sync(struct seglog *log, struct err *err)
{
    if (log->io.fsync(log->io.data, log->dir_fd) == 0) {
        log->dir_dirty = false;
        return 0;
    }
    return seglog_broken(log, err, errno, "sync directory", log->dir);
}
