/* datadir_generation.c - the generations of log and state, and CURRENT, which says which of them counts.
 *
 * Staging: stage (gen-(N+1), empty) -> the caller fills it and makes its files durable -> swap -> clean.
 * swap: the names in gen-(N+1) are synced, then that of gen-(N+1) itself; then CURRENT.tmp is made, renamed over CURRENT, and that is synced. A crash before
 * the rename leaves the old generation and a leftover; after it, until the last sync, either of the two, both whole; then the new one.
 * A log that goes along (datadir_log_link) is two names of the same files until the old generation is removed. Whichever generation a start finds, it may write to them:
 * the other is never opened, only unlinked, by which the files lose a name and nothing else.
 * reset: IDENTITY says "a new node, of no cluster" before the first byte is removed. From then on everything here is a leftover of somebody else's.
 *
 * Only names that are exactly "gen-" and a number are ones of ours: "gen-1.bak" that somebody put there stays. */
#include "datadir_internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NUMBER_MAX 999999999999999999ull

static bool generation_parse(const char *name, uint64_t *number_r)
{
    if (strncmp(name, "gen-", 4) != 0 || name[4] < '1' || name[4] > '9')
        return false;
    uint64_t v = 0;
    for (const char *p = name + 4; *p; p++) {
        if (*p < '0' || *p > '9' || v > (NUMBER_MAX - 9) / 10)
            return false;
        v = v * 10 + (uint64_t)(*p - '0');
    }
    *number_r = v;
    return true;
}

void datadir_generation_name(uint64_t number, char name_r[DATADIR_GENERATION_SIZE])
{
    snprintf(name_r, DATADIR_GENERATION_SIZE, "gen-%" PRIu64, number);
}

int datadir_current(struct datadir *d, uint64_t *number_r, struct err *err)
{
    char gen[64];
    ssize_t n = readlinkat(d->dir_fd, "CURRENT", gen, sizeof gen - 1);
    if (n < 0)
        return err_set(err, RAFTDIR_ECORRUPT, "%s/CURRENT, which points to the node's log and state, can't be read: %s", d->path, strerror(errno));
    gen[n] = '\0';
    if (!generation_parse(gen, number_r))
        return err_set(err, RAFTDIR_ECORRUPT, "%s/CURRENT points to \"%s\"; wanted gen-N", d->path, gen);
    return 0;
}

static int path_in(struct datadir *d, uint64_t number, const char *name, char *buf_r, size_t size, struct err *err)
{
    char gen[DATADIR_GENERATION_SIZE];
    datadir_generation_name(number, gen);
    if ((size_t)snprintf(buf_r, size, "%s/%s/%s", d->path, gen, name) >= size)
        return err_set(err, RAFTDIR_EINVAL, "data_dir %s: the path is too long", d->path);
    return 0;
}

int datadir_path(struct datadir *d, const char *name, char *buf_r, size_t size, struct err *err)
{
    uint64_t number;
    int rc = datadir_current(d, &number, err);
    return rc != 0 ? rc : path_in(d, number, name, buf_r, size, err);
}

int datadir_dir_sync(struct datadir *d, const char *name, struct err *err)
{
    int fd = openat(d->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return datadir_fail_errno(d, name, err);
    int rc = fsync(fd) != 0 ? datadir_fail_errno(d, name, err) : 0;
    close(fd);
    return rc;
}

/* --- Sharing ---------------------------------------------------------------------------------------------------------------- */

int datadir_dir_share(struct datadir *d, const char *name, struct err *err)
{
    if (d->group >= 0 && fchownat(d->dir_fd, name, (uid_t)-1, (gid_t)d->group, 0) != 0) {
        int e = errno;
        return err_set(err, err_from_errno(e), "data_dir %s: can't give %s to the group %d: %s; the user that raftdird runs as must own it and be in local_group", d->path, name,
                       d->group, strerror(e));
    }
    return fchmodat(d->dir_fd, name, d->group >= 0 ? 0750 : 0700, 0) != 0 ? datadir_fail_errno(d, name, err) : 0;
}

int datadir_share(struct datadir *d, int group, struct err *err)
{
    uint64_t number;
    char name[DATADIR_GENERATION_SIZE + 16];
    d->group = group;
    int rc = group >= 0 ? datadir_dir_share(d, ".", err) : 0; /* whoever may look into an unshared one is the operator's to say */
    if (rc != 0 || datadir_current(d, &number, NULL) != 0) /* no generation yet, or one that datadir_check complains about */
        return rc;
    datadir_generation_name(number, name);
    if (faccessat(d->dir_fd, name, F_OK, 0) != 0)
        return 0;
    if ((rc = datadir_dir_share(d, name, err)) != 0)
        return rc;
    strcat(name, "/state");
    return faccessat(d->dir_fd, name, F_OK, 0) == 0 ? datadir_dir_share(d, name, err) : 0;
}

int datadir_group(const struct datadir *d)
{
    return d->group;
}

int datadir_generation(struct datadir *d, uint64_t *number_r, struct err *err)
{
    return datadir_current(d, number_r, err);
}

/* --- Removing ------------------------------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path) != 0 && errno != ENOENT ? -1 : 0;
}

static int generation_remove(struct datadir *d, uint64_t number, struct err *err)
{
    char gen[DATADIR_GENERATION_SIZE], path[PATH_MAX], what[64];
    datadir_generation_name(number, gen);
    snprintf(path, sizeof path, "%s/%s", d->path, gen);
    snprintf(what, sizeof what, "remove %s", gen);
    int rc = datadir_step(what, err);
    if (rc == 0 && nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        rc = datadir_fail_errno(d, what, err);
    return rc;
}

static int name_remove(struct datadir *d, const char *name, struct err *err)
{
    int rc = datadir_step(name, err);
    if (rc == 0 && unlinkat(d->dir_fd, name, 0) != 0 && errno != ENOENT)
        rc = datadir_fail_errno(d, name, err);
    return rc;
}

/* All generations but these two (0: none), and what is unfinished. The names are read first: removing while reading may skip some. */
static int generations_remove(struct datadir *d, uint64_t keep, uint64_t keep_too, struct err *err)
{
    uint64_t *numbers = NULL, number;
    size_t n = 0, size = 0;
    int rc = 0;
    DIR *dir = opendir(d->path);
    if (!dir)
        return datadir_fail_errno(d, "list", err);
    for (struct dirent *e; rc == 0 && (errno = 0, e = readdir(dir));) {
        if (!generation_parse(e->d_name, &number) || number == keep || number == keep_too)
            continue;
        if (n == size) {
            size = size ? 2 * size : 16;
            uint64_t *more = realloc(numbers, size * sizeof *more);
            if (!more) {
                rc = err_set(err, RAFTDIR_ENOMEM, "data_dir: out of memory");
                break;
            }
            numbers = more;
        }
        numbers[n++] = number;
    }
    if (rc == 0 && errno)
        rc = datadir_fail_errno(d, "list", err);
    closedir(dir);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = generation_remove(d, numbers[i], err);
    free(numbers);
    if (rc == 0)
        rc = name_remove(d, "CURRENT.tmp", err);
    if (rc == 0)
        rc = name_remove(d, "IDENTITY.tmp", err);
    return rc;
}

static int clean(struct datadir *d, struct err *err)
{
    uint64_t current = 0;
    int rc = datadir_current(d, &current, err);
    if (rc != 0 && d->identity.cluster_id)
        return rc; /* which one is the member's can't be told: nothing is removed */
    return generations_remove(d, current, atomic_load(&d->staged), err);
}

int datadir_clean(struct datadir *d, struct err *err)
{
    pthread_mutex_lock(&d->mutex);
    int rc = clean(d, err);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}

/* --- Making ----------------------------------------------------------------------------------------------------------------- */

static int generation_make(struct datadir *d, uint64_t number, struct err *err)
{
    static const char *const below[] = {"", "/state", "/log"};
    char gen[DATADIR_GENERATION_SIZE], name[DATADIR_GENERATION_SIZE + 16];
    datadir_generation_name(number, gen);
    for (size_t i = 0; i < sizeof below / sizeof *below; i++) {
        int rc = datadir_step("create directories", err);
        if (rc != 0)
            return rc;
        snprintf(name, sizeof name, "%s%s", gen, below[i]);
        if (mkdirat(d->dir_fd, name, 0700) != 0)
            return datadir_fail_errno(d, name, err);
        if (d->group >= 0 && i < 2 && (rc = datadir_dir_share(d, name, err)) != 0) /* the log stays the owner's */
            return rc;
    }
    return 0;
}

/* CURRENT -> gen-`number`. *begun_r becomes true when it may have happened, whatever is returned. */
static int current_set(struct datadir *d, uint64_t number, bool *begun_r, struct err *err)
{
    char gen[DATADIR_GENERATION_SIZE];
    datadir_generation_name(number, gen);
    int rc = datadir_step("make CURRENT.tmp", err);
    if (rc != 0)
        return rc;
    if ((unlinkat(d->dir_fd, "CURRENT.tmp", 0) != 0 && errno != ENOENT) || symlinkat(gen, d->dir_fd, "CURRENT.tmp") != 0)
        return datadir_fail_errno(d, "make CURRENT.tmp", err);
    if ((rc = datadir_step("rename CURRENT", err)) != 0)
        return rc;
    *begun_r = true;
    if (renameat(d->dir_fd, "CURRENT.tmp", d->dir_fd, "CURRENT") != 0)
        return datadir_fail_errno(d, "rename CURRENT.tmp", err);
    if ((rc = datadir_step("sync CURRENT", err)) != 0)
        return rc;
    return fsync(d->dir_fd) != 0 ? datadir_fail_errno(d, "sync", err) : 0;
}

static int prepare(struct datadir *d, struct err *err)
{
    bool begun = false;
    char gen[DATADIR_GENERATION_SIZE];
    int rc = datadir_step("remove leftovers", err);
    if (rc == 0)
        rc = generations_remove(d, 0, 0, err);
    if (rc == 0)
        rc = generation_make(d, 1, err);
    datadir_generation_name(1, gen);
    if (rc == 0)
        rc = datadir_dir_sync(d, gen, err);
    return rc != 0 ? rc : current_set(d, 1, &begun, err);
}

int datadir_prepare(struct datadir *d, struct err *err)
{
    if (d->identity.cluster_id)
        return err_set(err, RAFTDIR_EBUSY, "data_dir %s is a member's: nothing is removed", d->path);
    pthread_mutex_lock(&d->mutex);
    atomic_store(&d->staged, 0);
    int rc = prepare(d, err);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}

int datadir_stage(struct datadir *d, struct err *err)
{
    uint64_t current;
    if (!d->identity.cluster_id)
        return err_set(err, RAFTDIR_EBUSY, "data_dir %s is no member's: there is nothing to stage an image beside", d->path);
    if (pthread_mutex_trylock(&d->mutex) != 0)
        return err_set(err, RAFTDIR_EBUSY, "data_dir %s: an earlier generation is being removed", d->path);
    atomic_store(&d->staged, 0);
    int rc = datadir_current(d, &current, err);
    if (rc == 0 && (rc = generations_remove(d, current, 0, err)) == 0 && (rc = generation_make(d, current + 1, err)) == 0)
        atomic_store(&d->staged, current + 1);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}

int datadir_staged_path(struct datadir *d, const char *name, char *buf_r, size_t size, struct err *err)
{
    uint64_t staged = atomic_load(&d->staged);
    if (!staged)
        return err_set(err, RAFTDIR_EINVAL, "data_dir %s: no generation is staged", d->path);
    return path_in(d, staged, name, buf_r, size, err);
}

void datadir_unstage(struct datadir *d)
{
    atomic_store(&d->staged, 0);
}

/* What is unfinished, or was cut off and waits to be removed, doesn't go along. */
static bool goes_along(const char *name)
{
    size_t len = strlen(name);
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !(len > 4 && strcmp(name + len - 4, ".tmp") == 0);
}

static int links_make(struct datadir *d, uint64_t current, uint64_t staged, struct err *err)
{
    char from[DATADIR_GENERATION_SIZE], to[DATADIR_GENERATION_SIZE], old_name[PATH_MAX], new_name[PATH_MAX];
    datadir_generation_name(current, from);
    datadir_generation_name(staged, to);
    snprintf(old_name, sizeof old_name, "%s/%s/log", d->path, from);
    DIR *dir = opendir(old_name);
    if (!dir)
        return datadir_fail_errno(d, "list the log", err);
    int rc = 0;
    for (struct dirent *e; rc == 0 && (errno = 0, e = readdir(dir));) {
        if (!goes_along(e->d_name) || (rc = datadir_step("link the log", err)) != 0)
            continue;
        snprintf(old_name, sizeof old_name, "%s/log/%s", from, e->d_name);
        snprintf(new_name, sizeof new_name, "%s/log/%s", to, e->d_name);
        if (linkat(d->dir_fd, old_name, d->dir_fd, new_name, 0) == 0)
            continue;
        bool never = errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS;
        rc = datadir_fail_errno(d, "link the log", err);
        if (never)
            rc = err_set(err, RAFTDIR_EUNSUPPORTED, "data_dir %s: its file system makes no hard links", d->path);
    }
    if (rc == 0 && errno)
        rc = datadir_fail_errno(d, "list the log", err);
    closedir(dir);
    return rc;
}

int datadir_log_link(struct datadir *d, struct err *err)
{
    uint64_t current;
    pthread_mutex_lock(&d->mutex);
    uint64_t staged = atomic_load(&d->staged);
    int rc = staged ? datadir_current(d, &current, err) : err_set(err, RAFTDIR_EINVAL, "data_dir %s: no generation is staged", d->path);
    if (rc == 0)
        rc = links_make(d, current, staged, err);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}

static int swap(struct datadir *d, uint64_t staged, bool *begun_r, struct err *err)
{
    static const char *const wanted[] = {"log/vote", "state"};
    static const char *const synced[] = {"/state", "/log", ""};
    char gen[DATADIR_GENERATION_SIZE], name[DATADIR_GENERATION_SIZE + 16];
    int rc = 0;
    datadir_generation_name(staged, gen);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        snprintf(name, sizeof name, "%s/%s", gen, wanted[i]);
        if (faccessat(d->dir_fd, name, F_OK, 0) != 0)
            return err_set(err, RAFTDIR_EINVAL, "data_dir %s: the staged %s is missing: %s", d->path, name, strerror(errno));
    }
    for (size_t i = 0; rc == 0 && i < sizeof synced / sizeof *synced; i++) {
        snprintf(name, sizeof name, "%s%s", gen, synced[i]);
        if ((rc = datadir_step("sync the staged generation", err)) == 0)
            rc = datadir_dir_sync(d, name, err);
    }
    if (rc == 0 && (rc = datadir_step("sync its name", err)) == 0 && fsync(d->dir_fd) != 0)
        rc = datadir_fail_errno(d, "sync", err);
    return rc != 0 ? rc : current_set(d, staged, begun_r, err);
}

int datadir_swap(struct datadir *d, struct err *err)
{
    bool begun = false;
    pthread_mutex_lock(&d->mutex);
    uint64_t staged = atomic_load(&d->staged);
    int rc = staged ? swap(d, staged, &begun, err) : err_set(err, RAFTDIR_EINVAL, "data_dir %s: no generation is staged", d->path);
    if (rc == 0)
        atomic_store(&d->staged, 0);
    else if (begun && (rc == RAFTDIR_ENOSPC || rc == RAFTDIR_EINVAL))
        rc = err_set(err, RAFTDIR_EIO, "data_dir %s: CURRENT may or may not point to gen-%" PRIu64 " after a restart", d->path, staged);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}

/* --- Starting anew ---------------------------------------------------------------------------------------------------------- */

int datadir_reset(struct datadir *d, struct err *err)
{
    struct datadir_identity anew = {0};
    int rc = datadir_uuid_make(d, anew.uuid, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&d->mutex);
    atomic_store(&d->staged, 0);
    rc = datadir_identity_write(d, &anew, err);
    if (rc == 0) {
        d->identity = anew;
        rc = generations_remove(d, 0, 0, err);
    }
    if (rc == 0)
        rc = name_remove(d, "CURRENT", err);
    pthread_mutex_unlock(&d->mutex);
    return rc;
}
