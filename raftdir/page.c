/* page.c - see page.h.
 *
 * A page is made whole beside the old one (page.tmp), then renamed over it: a reader finds a whole one or none. What a crash leaves: page.tmp, which the next start makes
 * anew. Its bytes are allocated before it is mapped, so that a full disk is an error here and no SIGBUS at a store. Nothing of it has to be durable: after a power cut
 * the boot is another one, and a file that came to be without its content is no page (magic).
 * The page that is replaced is told not to be served from any more, so that a process that has it mapped looks for the new one. It is written to only when it
 * is a page of ours: the data directory belongs to the daemon's user, a reader's group can't write there.
 * Security: a reader trusts the page as it trusts the state beside it; both are written by the daemon's user alone. */
#include "page.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct page) <= PAGE_LEN, "struct page is one page at most");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "processes share these without a lock");

#define BOOT_ID_FILE "/proc/sys/kernel/random/boot_id"
#define AHEAD_MS_MAX 100 /* roundings are less. More: this process is in a time namespace of its own, whose clock tells nothing about the daemon's */

uint64_t page_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int boot_id_get(uint8_t id_r[16], struct err *err)
{
    char text[64];
    size_t n = 0;
    int fd = open(BOOT_ID_FILE, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "%s: %s", BOOT_ID_FILE, strerror(errno));
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    text[len > 0 ? len : 0] = '\0';
    for (const char *p = text; *p && n < 32; p++) {
        int digit = *p >= '0' && *p <= '9' ? *p - '0' : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10 : -1;
        if (digit < 0)
            continue;
        id_r[n / 2] = (uint8_t)(n % 2 ? id_r[n / 2] << 4 | digit : digit);
        n++;
    }
    return n == 32 ? 0 : err_set(err, RAFTDIR_EIO, "%s has no identifier of this boot in it", BOOT_ID_FILE);
}

static pthread_once_t boot_once = PTHREAD_ONCE_INIT;
static uint8_t boot_id[16];
static int boot_id_rc;

static void boot_id_ask(void)
{
    boot_id_rc = boot_id_get(boot_id, NULL);
}

/* Where it can't be read (no /proc) no age is known, and a reader takes the socket. */
static bool this_boot(const struct page *page)
{
    pthread_once(&boot_once, boot_id_ask);
    return boot_id_rc == 0 && memcmp(boot_id, page->boot_id, sizeof boot_id) == 0;
}

static int path_of(const char *data_dir, const char *name, char path_r[PATH_MAX], struct err *err)
{
    return (size_t)snprintf(path_r, PATH_MAX, "%s/%s", data_dir, name) >= PATH_MAX ? err_set(err, RAFTDIR_EINVAL, "%s: the path is too long", data_dir) : 0;
}

static int failed(const char *path, const char *what, struct err *err)
{
    int e = errno, code = err_from_errno(e);
    return err_set(err, code == RAFTDIR_EUNAVAIL ? RAFTDIR_EIO : code, "%s: %s: %s", path, what, strerror(e));
}

/* Is this file a page of this version? *fd_r stays open when it is. */
static int page_open(const char *path, int flags, int *fd_r, struct stat *st_r, struct err *err)
{
    struct page head;
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), rc = 0;
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? err_set(err, RAFTDIR_ENOTFOUND, "%s: there is no such file: has raftdird been started with this data_dir?", path)
                                                   : failed(path, "open", err);
    if (fstat(fd, st_r) != 0)
        rc = failed(path, "stat", err);
    else if (!S_ISREG(st_r->st_mode) || st_r->st_size != PAGE_LEN || pread(fd, &head, sizeof head, 0) != (ssize_t)sizeof head || head.magic != PAGE_MAGIC)
        rc = err_set(err, RAFTDIR_EVERSION, "%s is not a raftdird's status page", path);
    else if (head.version != PAGE_VERSION || head.len != sizeof head)
        rc = err_set(err, RAFTDIR_EVERSION, "%s has version %u, and this program knows version %d: use the libraftdir that belongs to the raftdird that runs", path,
                     (unsigned)head.version, PAGE_VERSION);
    if (rc != 0)
        close(fd);
    else
        *fd_r = fd;
    return rc;
}

/* Whoever has the old one mapped looks for another. */
static void retire(const char *path)
{
    struct stat st;
    int fd = -1;
    if (page_open(path, O_RDWR, &fd, &st, NULL) != 0)
        return;
    struct page *old = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (old == MAP_FAILED)
        return;
    atomic_store(&old->serving, 0);
    atomic_store(&old->pid, 0);
    munmap(old, PAGE_LEN);
}

int page_create(const char *data_dir, const char *node_name, int group, struct page **page_r, struct err *err)
{
    char path[PATH_MAX], tmp[PATH_MAX];
    struct page *page = MAP_FAILED;
    uint8_t id[16];
    int rc = boot_id_get(id, err);
    if (rc != 0 || (rc = path_of(data_dir, PAGE_FILE, path, err)) != 0 || (rc = path_of(data_dir, PAGE_FILE ".tmp", tmp, err)) != 0)
        return rc;
    retire(path); /* also when there will be no new one: what the daemon does from now on isn't told there any more */
    if (unlink(tmp) != 0 && errno != ENOENT)
        return failed(tmp, "remove", err);
    int fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return failed(tmp, "create", err);
    int full = posix_fallocate(fd, 0, PAGE_LEN);
    errno = full;
    if (full != 0)
        rc = failed(tmp, "allocate", err);
    else if (group > 0 && (fchown(fd, (uid_t)-1, (gid_t)group) != 0 || fchmod(fd, 0640) != 0))
        rc = failed(tmp, "give to local_group", err);
    else if ((page = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
        rc = failed(tmp, "map", err);
    close(fd);
    if (rc == 0) {
        page->version = PAGE_VERSION;
        page->len = sizeof *page;
        memcpy(page->boot_id, id, sizeof page->boot_id);
        snprintf(page->node_name, sizeof page->node_name, "%s", node_name);
        atomic_store(&page->alive_at_ms, page_now_ms());
        atomic_store(&page->pid, (uint64_t)getpid());
        page->magic = PAGE_MAGIC;
        if (rename(tmp, path) != 0)
            rc = failed(tmp, "rename", err);
    }
    if (rc != 0) {
        if (page != MAP_FAILED)
            munmap(page, PAGE_LEN);
        unlink(tmp);
        unlink(path); /* the retired one */
        return rc;
    }
    *page_r = page;
    return 0;
}

void page_destroy(struct page **page)
{
    if (*page) {
        atomic_store(&(*page)->pid, 0);
        munmap(*page, PAGE_LEN);
    }
    *page = NULL;
}

int page_map(const char *data_dir, const struct page **page_r, uint64_t *inode_r, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    int fd = -1, rc = path_of(data_dir, PAGE_FILE, path, err);
    if (rc != 0 || (rc = page_open(path, O_RDONLY, &fd, &st, err)) != 0)
        return rc;
    const struct page *page = mmap(NULL, PAGE_LEN, PROT_READ, MAP_SHARED, fd, 0);
    rc = page == MAP_FAILED ? failed(path, "map", err) : 0;
    close(fd);
    if (rc == 0) {
        *page_r = page;
        *inode_r = st.st_ino;
    }
    return rc;
}

void page_unmap(const struct page **page)
{
    if (*page)
        munmap((void *)(uintptr_t)*page, PAGE_LEN);
    *page = NULL;
}

bool page_is_current(const char *data_dir, uint64_t inode)
{
    char path[PATH_MAX];
    struct stat st;
    return path_of(data_dir, PAGE_FILE, path, NULL) == 0 && lstat(path, &st) == 0 && st.st_ino == inode;
}

int64_t page_age_ms(const struct page *page)
{
    uint64_t fresh = atomic_load(&page->fresh_at_ms), now = page_now_ms(); /* in this order: what was fresh is never in the future */
    if (!fresh || fresh > now + AHEAD_MS_MAX || !this_boot(page))
        return -1;
    return now > fresh ? (int64_t)(now - fresh) : 0;
}
