/* space.c - see space.h. */
#include "space.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BALLAST "ballast"

/* --- The decision: pure ------------------------------------------------------------------------------------------------------- */

struct space_plan space_decide(const struct space_look *look, const struct space_plan *before)
{
    struct space_plan plan = {0};
    uint64_t reserve = look->reserve_len;
    if (reserve) {
        uint64_t have = look->free_len + look->ballast_len;
        uint64_t headroom = have > reserve ? have - reserve : 0;
        plan.disk_low = headroom < (before->disk_low ? reserve + reserve / 4 : reserve);
        plan.ballast_make = look->ballast_len == 0 && look->free_len >= 2 * reserve;
    }
    if (look->used_max) {
        uint64_t left = look->used_max > look->used_len ? look->used_max - look->used_len : 0;
        plan.state_low = left < look->used_max / (before->state_low ? 16 : 20);
    }
    return plan;
}

enum node_space space_of_plan(const struct space_plan *plan)
{
    return plan->disk_low || plan->state_low ? NODE_SPACE_LOW : NODE_SPACE_OK;
}

const char *space_text(uint64_t len, char buf_r[SPACE_TEXT_SIZE])
{
    static const char units[] = "KMGTP";
    if (len < 1024) {
        snprintf(buf_r, SPACE_TEXT_SIZE, "%" PRIu64, len);
        return buf_r;
    }
    unsigned unit = 0;
    uint64_t scale = 1024;
    while (unit + 2 < sizeof units && len / scale >= 1024) {
        scale *= 1024;
        unit++;
    }
    unsigned tenths = (unsigned)(len % scale * 10 / scale);
    if (tenths)
        snprintf(buf_r, SPACE_TEXT_SIZE, "%" PRIu64 ".%u%c", len / scale, tenths, units[unit]);
    else
        snprintf(buf_r, SPACE_TEXT_SIZE, "%" PRIu64 "%c", len / scale, units[unit]);
    return buf_r;
}

/* --- The ballast ------------------------------------------------------------------------------------------------------------------ */

int space_ballast_open(struct space_ballast *b, const char *dir, uint64_t reserve_len, struct err *err)
{
    struct stat st;
    b->len = 0;
    b->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (b->dir_fd < 0)
        return err_set(err, err_from_errno(errno), "data_dir %s: open: %s", dir, strerror(errno));
    if (fstatat(b->dir_fd, BALLAST, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return 0;
    /* A copied one may have the length without the blocks. */
    if (reserve_len && S_ISREG(st.st_mode) && (uint64_t)st.st_size == reserve_len && (uint64_t)st.st_blocks * 512 >= reserve_len)
        b->len = reserve_len;
    else
        unlinkat(b->dir_fd, BALLAST, 0); /* when it can't be, making one says why */
    return 0;
}

int space_ballast_make(struct space_ballast *b, uint64_t reserve_len, struct err *err)
{
    int fd = openat(b->dir_fd, BALLAST, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "create " BALLAST ": %s", strerror(errno));
    int rc = 0;
    while (fallocate(fd, 0, 0, (off_t)reserve_len) != 0) {
        if (errno == EINTR)
            continue;
        rc = err_set(err, errno == EOPNOTSUPP || errno == ENOSYS ? RAFTDIR_EUNSUPPORTED : err_from_errno(errno), "keep room for " BALLAST ": %s", strerror(errno));
        break;
    }
    close(fd);
    if (rc != 0)
        unlinkat(b->dir_fd, BALLAST, 0);
    else
        b->len = reserve_len;
    return rc;
}

bool space_ballast_free(struct space_ballast *b)
{
    if (!b->len)
        return false;
    /* Some file systems need room to remove a name; for cutting a file down they don't. */
    int fd = openat(b->dir_fd, BALLAST, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    bool cut = fd >= 0 && ftruncate(fd, 0) == 0;
    if (fd >= 0)
        close(fd);
    bool removed = unlinkat(b->dir_fd, BALLAST, 0) == 0 || errno == ENOENT;
    if (!cut && !removed)
        return false;
    b->len = 0;
    return true;
}

void space_ballast_close(struct space_ballast *b)
{
    if (b->dir_fd >= 0)
        close(b->dir_fd);
    b->dir_fd = -1;
}
