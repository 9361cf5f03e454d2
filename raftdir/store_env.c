/* store_env.c - opening the LMDB environment: its map, its files' modes, and what a reader in another process must be sure of. See store.h, store_state.h.
 *
 * Writers. data.mdb and lock.mdb belong to their owner alone (0600), or, with options.group, also to a group that may read the one and write the other (0640, 0660):
 * LMDB's readers write their slots there. Both are made so at each open, whatever umask is and whatever they were before, since the configuration may have changed; a file
 * that is right already is left alone. lock.mdb is only ever opened here before LMDB opens it: closing a descriptor later would drop this process's locks on the file, by
 * which others see that it lives.
 *
 * Readers. They never create anything, so both files are looked for first: LMDB makes a missing lock.mdb. (It still would if the file went in the moment between, and the reader
 * may write in the directory; a generation that is being removed then keeps its directory until the next start removes it.) Where lock.mdb can't be written, on a file
 * system that is mounted read-only, LMDB reads without a slot, and the writer overwrites the pages under the reader: refused.
 *
 * The map. A writer maps STORE_MAP_LEN or, where RLIMIT_AS forbids it, the largest half of a half that fits. A reader is somebody else's process: with a limit, or where so much can't be had, it
 * takes what the state needs and a little more, at most half of the limit, and is refused when that isn't enough. Its map is `small`: when the state has outgrown it, it is mapped
 * anew at a moment when no transaction of this process reads (store_small_begin); until then, and when the limit forbids it, reading fails with RAFTDIR_EUNAVAIL. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "store_state.h"

#define MAP_LEN_MIN (64ull << 20)
#define LOCK_FILE_LEN (STORE_READERS_MAX * 64 + 4096) /* LMDB makes it so long: a slot is a cache line */
#define DATA_MODE_OWNER 0600
#define DATA_MODE_GROUP 0640
#define LOCK_MODE_GROUP 0660
#define PATH_LEN_MAX 4096

static int path_of(const char *dir, const char *file, char path_r[PATH_LEN_MAX], struct err *err)
{
    if ((size_t)snprintf(path_r, PATH_LEN_MAX, "%s/%s", dir, file) >= PATH_LEN_MAX)
        return err_set(err, RAFTDIR_EINVAL, "open store: the directory's name is too long");
    return 0;
}

static bool group_wanted(const struct store_options *o)
{
    return o->group > 0;
}

static bool mode_right(const struct stat *st, const struct store_options *o, mode_t mode)
{
    return (st->st_mode & 07777) == mode && (!group_wanted(o) || st->st_gid == (gid_t)o->group);
}

static int mode_set(int fd, const char *dir, const char *file, const struct store_options *o, mode_t mode, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st))
        return err_set(err, err_from_errno(errno), "open store %s: %s: %s", dir, file, strerror(errno));
    if (mode_right(&st, o, mode))
        return 0;
    if (group_wanted(o) && st.st_gid != (gid_t)o->group && fchown(fd, (uid_t)-1, (gid_t)o->group)) {
        int e = errno;
        return err_set(err, err_from_errno(e), "open store %s: give %s to group %d: %s%s", dir, file, o->group, strerror(e),
                       e == EPERM ? ": the daemon's user must be a member of that group, and own the file" : "");
    }
    if (fchmod(fd, mode))
        return err_set(err, err_from_errno(errno), "open store %s: set the mode of %s: %s: the daemon's user must own the file", dir, file, strerror(errno));
    return 0;
}

/* The readers' table is a sparse file that LMDB maps: the first reader to need a page of it on a full disk would be killed by SIGBUS. */
static int lock_file_prepare(const char *dir, const struct store_options *o, bool reserve, struct err *err)
{
    char path[PATH_LEN_MAX];
    struct stat st;
    mode_t mode = group_wanted(o) ? LOCK_MODE_GROUP : DATA_MODE_OWNER;
    int rc = path_of(dir, "lock.mdb", path, err);
    if (rc)
        return rc;
    if (!reserve && stat(path, &st) == 0 && mode_right(&st, o, mode))
        return 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, DATA_MODE_OWNER);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "open store %s: lock.mdb: %s", dir, strerror(errno));
    rc = mode_set(fd, dir, "lock.mdb", o, mode, err);
    while (!rc && reserve && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, LOCK_FILE_LEN) != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        if (errno != EINTR)
            rc = err_set(err, err_from_errno(errno), "open store %s: reserve space for lock.mdb: %s", dir, strerror(errno));
    close(fd);
    return rc;
}

/* Both files are there and can be used as LMDB will; the length of the data. */
static int reader_check(const char *dir, uint64_t *data_len_r, struct err *err)
{
    char path[PATH_LEN_MAX];
    struct stat st;
    int rc = path_of(dir, "data.mdb", path, err);
    if (rc)
        return rc;
    if (stat(path, &st) || faccessat(AT_FDCWD, path, R_OK, AT_EACCESS)) {
        int e = errno;
        return err_set(err, e == ENOENT || e == ENOTDIR ? RAFTDIR_ENOTREADY : err_from_errno(e), "open store %s: data.mdb: %s", dir, strerror(e));
    }
    *data_len_r = (uint64_t)st.st_size;
    rc = path_of(dir, "lock.mdb", path, err);
    if (rc)
        return rc;
    if (faccessat(AT_FDCWD, path, R_OK | W_OK, AT_EACCESS)) {
        int e = errno;
        return err_set(err, e == ENOENT ? RAFTDIR_ENOTREADY : err_from_errno(e), "open store %s: lock.mdb, which readers must be able to write: %s", dir, strerror(e));
    }
    return 0;
}

static uint64_t address_limit(void)
{
    struct rlimit l;
    return getrlimit(RLIMIT_AS, &l) || l.rlim_cur == RLIM_INFINITY ? 0 : (uint64_t)l.rlim_cur;
}

/* What a reader with a limit maps for so much data; 0: it may not. */
static uint64_t small_map_len(uint64_t data_len, uint64_t limit)
{
    uint64_t len = data_len + data_len / 4 + MAP_LEN_MIN;
    len = (len + 0xffff) & ~0xffffull;
    if (len > limit / 2)
        len = data_len <= limit / 2 ? (limit / 2) & ~0xffffull : 0;
    return len;
}

static int open_env(const char *dir, bool read_only, unsigned flags, uint64_t map_len, MDB_env **env_r)
{
    MDB_env *env;
    int rc = mdb_env_create(&env);
    if (rc)
        return rc;
    rc = mdb_env_set_maxdbs(env, TABLES);
    if (!rc)
        rc = mdb_env_set_maxreaders(env, STORE_READERS_MAX);
    if (!rc)
        rc = mdb_env_set_mapsize(env, map_len);
    if (!rc)
        rc = mdb_env_open(env, dir, MDB_NORDAHEAD | MDB_NOTLS | (read_only ? MDB_RDONLY : 0) | flags, DATA_MODE_OWNER);
    /* LMDB leaves the data file's descriptor to programs that are executed. A reader is in somebody's imapd: they would get the state to read, and hold its disk space. */
    mdb_filehandle_t fd;
    if (!rc && !(rc = mdb_env_get_fd(env, &fd)) && fcntl(fd, F_SETFD, FD_CLOEXEC))
        rc = errno;
    if (rc) {
        mdb_env_close(env);
        return rc;
    }
    *env_r = env;
    return 0;
}

/* ENOMEM by the kernel, EINVAL by valgrind. */
static bool too_large(int rc)
{
    return rc == ENOMEM || rc == EINVAL;
}

static int open_failed(const char *dir, int rc, struct err *err)
{
    if (rc == ENOMEM && address_limit())
        return err_set(err, RAFTDIR_EUNAVAIL, "open store %s: the limit of address space (RLIMIT_AS) leaves no room for it", dir);
    return err_set(err, err_from_lmdb(rc), "open store %s: %s", dir, mdb_strerror(rc));
}

static int open_reader(const char *dir, const struct store_options *o, unsigned flags, MDB_env **env_r, bool *small_r, struct err *err)
{
    uint64_t data_len, limit = address_limit(), map_len = o->map_len ? o->map_len : STORE_MAP_LEN;
    int rc = reader_check(dir, &data_len, err);
    if (rc)
        return rc;
    if (!o->map_len && limit) {
        map_len = small_map_len(data_len, limit);
        *small_r = true;
    }
    if (map_len < data_len) {
        *small_r = false;
        return err_set(err, RAFTDIR_EUNAVAIL, "open store %s: its %llu MB are more than this process may map (%s)", dir, (unsigned long long)(data_len >> 20),
                       o->map_len ? "map_len" : "half of RLIMIT_AS");
    }
    rc = open_env(dir, true, flags, map_len, env_r);
    if (too_large(rc) && !o->map_len && !limit) { /* forbidden by something else, as by valgrind */
        *small_r = true;
        rc = open_env(dir, true, flags, small_map_len(data_len, UINT64_MAX), env_r);
    }
    return rc == ENOENT ? err_set(err, RAFTDIR_ENOTREADY, "open store %s: %s", dir, strerror(rc)) : rc ? open_failed(dir, rc, err) : 0;
}

static int open_writer(const char *dir, const struct store_options *o, unsigned flags, MDB_env **env_r, struct err *err)
{
    uint64_t map_len = o->map_len ? o->map_len : STORE_MAP_LEN;
    int rc = lock_file_prepare(dir, o, !(flags & MDB_NOSYNC), err);
    if (rc)
        return rc;
    while (too_large(rc = open_env(dir, false, flags, map_len, env_r)) && !o->map_len && map_len / 2 >= MAP_LEN_MIN)
        map_len /= 2; /* RLIMIT_AS forbids that much */
    if (rc)
        return open_failed(dir, rc, err);
    mdb_filehandle_t fd;
    rc = mdb_env_get_fd(*env_r, &fd);
    rc = rc ? store_fail(err, rc, "open store") : mode_set(fd, dir, "data.mdb", o, group_wanted(o) ? DATA_MODE_GROUP : DATA_MODE_OWNER, err);
    if (rc) {
        mdb_env_close(*env_r);
        *env_r = NULL;
    }
    return rc;
}

int store_env_open(const char *dir, const struct store_options *o, unsigned flags, MDB_env **env_r, bool *small_r, struct err *err)
{
    *small_r = false;
    return o->read_only ? open_reader(dir, o, flags, env_r, small_r, err) : open_writer(dir, o, flags, env_r, err);
}

/* With the mutex, and nobody reads. LMDB's code. A map that couldn't be made anew is gone, and LMDB can't make another: the environment is good for nothing but to be closed. */
static int small_grow(struct store *s)
{
    struct stat st;
    mdb_filehandle_t fd;
    int rc = mdb_env_get_fd(s->env, &fd);
    if (rc)
        return rc;
    if (fstat(fd, &st))
        return errno;
    uint64_t len = small_map_len((uint64_t)st.st_size, address_limit() ? address_limit() : UINT64_MAX);
    if (len <= store_map_len(s))
        return MDB_MAP_RESIZED;
    rc = mdb_env_set_mapsize(s->env, len);
    s->small.lost = rc != 0;
    return rc ? MDB_MAP_RESIZED : 0;
}

int store_small_begin(struct store *s, MDB_txn **mdb_inout)
{
    int rc = MDB_MAP_RESIZED;
    pthread_mutex_lock(&s->small.mutex);
    for (int tries = 0; tries < 2 && rc == MDB_MAP_RESIZED && !s->small.lost; tries++) {
        rc = *mdb_inout ? mdb_txn_renew(*mdb_inout) : mdb_txn_begin(s->env, NULL, MDB_RDONLY, mdb_inout);
        if (rc == MDB_MAP_RESIZED && (s->small.reading > 0 || small_grow(s) != 0))
            break;
    }
    s->small.reading += rc == 0;
    pthread_mutex_unlock(&s->small.mutex);
    return rc;
}

void store_small_end(struct store *s)
{
    pthread_mutex_lock(&s->small.mutex);
    s->small.reading--;
    pthread_mutex_unlock(&s->small.mutex);
}
