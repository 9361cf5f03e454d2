/* support_disk.c - see support_disk.h. */
#include "support_disk.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "support_certs.h"

struct disk disk;
char disk_dir[256];
uint64_t rng;

uint32_t rnd(uint32_t n)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng >> 33) % n);
}

static struct file *file_new(void)
{
    struct file *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->last = &f->first;
    assert_true(disk.files_n < 1024);
    disk.files[disk.files_n++] = f;
    return f;
}

static void changes_drop(struct file *f)
{
    while (f->first) {
        struct change *c = f->first;
        f->first = c->next;
        free(c);
    }
    f->last = &f->first;
}

static void length_set(struct file *f, size_t len)
{
    if (len > f->len) {
        f->durable = realloc(f->durable, len);
        assert_non_null(f->durable);
        memset(f->durable + f->len, 0, len - f->len);
    }
    f->len = len;
}

static void change_apply(struct file *f, const struct change *c, bool torn)
{
    if (!c->is_write) {
        if (!torn || rnd(2))
            length_set(f, c->grow && f->len > c->at ? f->len : c->at);
        return;
    }
    unsigned luck = torn ? rnd(4) : 0; /* 0: all of it, 1: nothing, else some */
    for (size_t at = 0; at < c->len && luck != 1;) {
        size_t n = 512 - (c->at + at) % 512;
        if (n > c->len - at)
            n = c->len - at;
        if (luck == 0 || rnd(2)) {
            if (f->len < c->at + at + n)
                length_set(f, c->at + at + n);
            memcpy(f->durable + c->at + at, c->data + at, luck == 2 && rnd(2) ? rnd((uint32_t)n + 1) : n); /* a disk may tear sectors, too */
        }
        at += n;
    }
}

void disk_file_sync(struct file *f, bool torn)
{
    for (struct change *c = f->first; c; c = c->next)
        change_apply(f, c, torn);
    changes_drop(f);
}

static void change_add(struct file *f, bool is_write, bool grow, size_t at, const void *data, size_t len)
{
    struct change *c = malloc(sizeof *c + len);
    assert_non_null(c);
    *c = (struct change){.is_write = is_write, .grow = grow, .at = at, .len = len};
    if (len)
        memcpy(c->data, data, len);
    *f->last = c;
    f->last = &c->next;
}

struct file **disk_name_find(struct names *n, const char *name)
{
    for (size_t i = 0; i < n->n; i++) {
        if (strcmp(n->at[i].name, name) == 0)
            return &n->at[i].file;
    }
    return NULL;
}

static void name_remove(struct names *n, const char *name)
{
    for (size_t i = 0; i < n->n; i++) {
        if (strcmp(n->at[i].name, name) == 0) {
            n->at[i] = n->at[--n->n];
            return;
        }
    }
}

static void name_set(struct names *n, const char *name, struct file *f)
{
    name_remove(n, name);
    assert_true(n->n < NAMES_MAX);
    snprintf(n->at[n->n].name, sizeof n->at[0].name, "%s", name);
    n->at[n->n++].file = f;
}

static void name_apply(struct names *n, const struct name_change *c)
{
    if (c->kind != CREATE)
        name_remove(n, c->from);
    if (c->kind != UNLINK)
        name_set(n, c->to, c->file);
}

static void name_note(int kind, const char *from, const char *to, struct file *f)
{
    assert_true(disk.pending_n < 256);
    struct name_change *c = &disk.pending[disk.pending_n++];
    c->kind = kind;
    c->file = f;
    snprintf(c->from, sizeof c->from, "%s", from);
    snprintf(c->to, sizeof c->to, "%s", to);
    name_apply(&disk.now, c);
}

static const char *base(const char *path)
{
    return strrchr(path, '/') + 1;
}

static struct file *file_of(int fd)
{
    for (size_t i = 0; i < disk.open_n; i++) {
        if (disk.open[i].fd == fd)
            return disk.open[i].file;
    }
    return NULL; /* the directory */
}

/* True: this call fails (errno is set); nothing happens, or with a power cut something may be on its way. */
static bool fails(bool *on_its_way_r)
{
    *on_its_way_r = false;
    if (disk.crashed) {
        errno = EIO;
        return true;
    }
    if (++disk.step != disk.fail_at)
        return false;
    disk.failed = true;
    disk.crashed = disk.fail_errno == 0;
    *on_its_way_r = disk.crashed;
    errno = disk.crashed ? EIO : disk.fail_errno;
    return true;
}

static int h_open(void *data, const char *path, int flags)
{
    (void)data;
    bool way;
    if (fails(&way))
        return -1;
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    struct file **known = disk_name_find(&disk.now, base(path));
    struct file *f = known ? *known : NULL;
    if (!f) {
        f = file_new();
        name_note(CREATE, "", base(path), f);
    } else if (flags & O_TRUNC) {
        change_add(f, false, false, 0, NULL, 0);
    }
    assert_true(disk.open_n < 64);
    disk.open[disk.open_n].fd = fd;
    disk.open[disk.open_n++].file = f;
    return fd;
}

static int h_close(void *data, int fd)
{
    (void)data;
    for (size_t i = 0; i < disk.open_n; i++) {
        if (disk.open[i].fd == fd) {
            disk.open[i] = disk.open[--disk.open_n];
            break;
        }
    }
    return close(fd);
}

static ssize_t h_pwritev(void *data, int fd, const struct iovec *iov, int n, off_t at)
{
    (void)data;
    bool way, bad = fails(&way);
    if (bad && !way) {
        /* A full disk is noticed midway. */
        if (errno == ENOSPC && iov[0].iov_len > 512) {
            assert_int_equal(pwrite(fd, iov[0].iov_base, 512, at), 512);
            change_add(file_of(fd), true, false, (size_t)at, iov[0].iov_base, 512);
            errno = ENOSPC;
        }
        return -1;
    }
    ssize_t total = 0;
    for (int i = 0; i < n; i++) {
        change_add(file_of(fd), true, false, (size_t)(at + total), iov[i].iov_base, iov[i].iov_len);
        if (!bad)
            assert_int_equal(pwrite(fd, iov[i].iov_base, iov[i].iov_len, at + total), iov[i].iov_len);
        total += (ssize_t)iov[i].iov_len;
    }
    return bad ? -1 : total;
}

static int h_fsync(void *data, int fd)
{
    (void)data;
    bool way;
    if (fails(&way)) {
        if (!way)
            disk.failed_sync = true;
        return -1;
    }
    struct file *f = file_of(fd);
    if (f) {
        disk_file_sync(f, false);
    } else {
        disk.durable = disk.now;
        disk.pending_n = 0;
    }
    return 0;
}

static int h_fallocate(void *data, int fd, off_t len)
{
    (void)data;
    bool way;
    if (fails(&way))
        return -1;
    change_add(file_of(fd), false, true, (size_t)len, NULL, 0);
    int rc = posix_fallocate(fd, 0, len);
    errno = rc;
    return rc ? -1 : 0;
}

static int h_ftruncate(void *data, int fd, off_t len)
{
    (void)data;
    bool way;
    if (fails(&way) && !way)
        return -1;
    change_add(file_of(fd), false, false, (size_t)len, NULL, 0);
    return way ? -1 : ftruncate(fd, len);
}

static int h_rename(void *data, const char *from, const char *to)
{
    (void)data;
    bool way;
    if (fails(&way) && !way)
        return -1;
    name_note(RENAME, base(from), base(to), *disk_name_find(&disk.now, base(from)));
    return way ? -1 : rename(from, to);
}

static int h_unlink(void *data, const char *path)
{
    (void)data;
    bool way;
    if (fails(&way) && !way)
        return -1;
    name_note(UNLINK, base(path), "", NULL);
    return way ? -1 : unlink(path);
}

const struct seglog_io disk_hooks = {.open = h_open,
                                       .close = h_close,
                                       .pwritev = h_pwritev,
                                       .fdatasync = h_fsync,
                                       .fsync = h_fsync,
                                       .fallocate = h_fallocate,
                                       .ftruncate = h_ftruncate,
                                       .rename = h_rename,
                                       .unlink = h_unlink};

void disk_reset(void)
{
    for (size_t i = 0; i < disk.files_n; i++) {
        changes_drop(disk.files[i]);
        free(disk.files[i]->durable);
        free(disk.files[i]);
    }
    memset(&disk, 0, sizeof disk);
}

void disk_fresh(void)
{
    if (disk_dir[0])
        support_dir_remove(disk_dir);
    support_dir_make(disk_dir, sizeof disk_dir, "seglog");
    disk_reset();
}

void disk_path(char path_r[512], const char *name)
{
    snprintf(path_r, 512, "%s/%s", disk_dir, name);
}

void disk_file_put(const char *name, const uint8_t *data, size_t len)
{
    char path[512];
    disk_path(path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

/* The power went: the directory becomes what the disk holds. */
void disk_power_cut(void)
{
    struct names left = disk.durable;
    /* A journal keeps the order of directory changes; nobody promises it. */
    size_t n = disk.pending_n ? rnd((uint32_t)disk.pending_n + 1) : 0;
    bool in_order = rnd(2);
    for (size_t i = 0; i < disk.pending_n; i++) {
        if (in_order ? i < n : rnd(2))
            name_apply(&left, &disk.pending[i]);
    }
    for (size_t i = 0; i < disk.files_n; i++)
        disk_file_sync(disk.files[i], true);
    support_dir_remove(disk_dir);
    assert_int_equal(mkdir(disk_dir, 0700), 0);
    for (size_t i = 0; i < left.n; i++)
        disk_file_put(left.at[i].name, left.at[i].file->durable, left.at[i].file->len);
    /* Files without a name any more are only memory. */
    disk.durable = disk.now = left;
    disk.pending_n = disk.open_n = 0;
}
