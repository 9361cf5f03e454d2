/* datadir_failure.c - a state or log that was found to be wrong stays so across restarts: gen-N/FAILED says why.
 *
 * It lies in the generation that is wrong, and goes with it: by an image that takes its place, or by datadir_reset. Written as IDENTITY is, by a new file and a
 * rename, so it is there whole or not at all; what is lost in a crash before is found again by what had found it. */
#include "datadir_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FAILURE "FAILED"

int datadir_failure_set(struct datadir *d, const char *why, struct err *err)
{
    char path[PATH_MAX], tmp[PATH_MAX], dir[PATH_MAX];
    int rc = datadir_path(d, "", dir, sizeof dir, err);
    if (rc != 0 || (rc = datadir_path(d, FAILURE, path, sizeof path, err)) != 0 || (rc = datadir_path(d, FAILURE ".tmp", tmp, sizeof tmp, err)) != 0)
        return rc;
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return datadir_fail_errno(d, "create " FAILURE, err);
    size_t len = strlen(why);
    if (write(fd, why, len) != (ssize_t)len || fsync(fd) != 0)
        rc = datadir_fail_errno(d, "write " FAILURE, err);
    close(fd);
    if (rc == 0 && rename(tmp, path) != 0)
        rc = datadir_fail_errno(d, "rename " FAILURE, err);
    int dir_fd = rc == 0 ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (rc == 0 && (dir_fd < 0 || fsync(dir_fd) != 0))
        rc = datadir_fail_errno(d, "sync " FAILURE, err);
    if (dir_fd >= 0)
        close(dir_fd);
    return rc;
}

int datadir_failure_get(struct datadir *d, char *why_r, size_t size, struct err *err)
{
    char path[PATH_MAX];
    int rc = datadir_path(d, FAILURE, path, sizeof path, err);
    if (rc != 0)
        return rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? RAFTDIR_ENOTFOUND : datadir_fail_errno(d, "read " FAILURE, err);
    ssize_t n = read(fd, why_r, size - 1);
    close(fd);
    /* That it is there is what counts. */
    why_r[n > 0 ? n : 0] = '\0';
    return 0;
}
