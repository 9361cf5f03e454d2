/* datadir.c - see datadir.h: the lock, IDENTITY, and what makes a member of it. The generations: datadir_generation.c.
 *
 * IDENTITY, a line each, in this order:
 *   raftdir identity 1
 *   uuid HEX
 *   cluster HEX              (this and the following: members of a cluster only)
 *   incarnation N
 *   node N
 *   member ID ROLE UUID HOST:PORT CERTIFICATE-NAME     (any number, up to MEMBERS_MAX; the name goes to the end of the line)
 *   checksum HEX             (XXH3, of everything before this line)
 */
#include "datadir_internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define IDENTITY_LEN_FILE_MAX (64 * 1024)

int (*datadir_step_hook)(const char *step);

int datadir_step(const char *name, struct err *err)
{
    if (datadir_step_hook && datadir_step_hook(name) != 0)
        return err_set(err, RAFTDIR_ECANCELED, "stopped before: %s", name);
    return 0;
}

int datadir_fail_errno(struct datadir *d, const char *what, struct err *err)
{
    int e = errno;
    int code = err_from_errno(e);
    return err_set(err, code == RAFTDIR_EUNAVAIL ? RAFTDIR_EIO : code, "data_dir %s: %s: %s", d->path, what, strerror(e));
}

static void hex_put(const uint8_t *data, size_t len, char *out)
{
    for (size_t i = 0; i < len; i++)
        sprintf(out + 2 * i, "%02x", data[i]);
}

static bool hex_get(const char *s, uint8_t *data_r, size_t len)
{
    if (strlen(s) != 2 * len || strspn(s, "0123456789abcdef") != 2 * len)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned v;
        if (sscanf(s + 2 * i, "%2x", &v) != 1)
            return false;
        data_r[i] = (uint8_t)v;
    }
    return true;
}

/* --- IDENTITY: text <-> struct ------------------------------------------------------------------------------------------- */

static int identity_format(const struct datadir_identity *id, char **text_r, size_t *len_r, struct err *err)
{
    size_t size = 512 + id->members_n * (sizeof(struct node_peer) + 128);
    char *t = malloc(size), uuid[2 * NODE_UUID_LEN + 1];
    if (!t)
        return err_set(err, RAFTDIR_ENOMEM, "identity: out of memory");
    hex_put(id->uuid, NODE_UUID_LEN, uuid);
    size_t n = (size_t)snprintf(t, size, "raftdir identity %d\nuuid %s\n", DATADIR_VERSION, uuid);
    if (id->cluster_id) {
        n += (size_t)snprintf(t + n, size - n, "cluster %016" PRIx64 "\nincarnation %" PRIu64 "\nnode %" PRIu64 "\n", id->cluster_id,
                              id->incarnation, id->node_id);
        for (size_t i = 0; i < id->members_n; i++) {
            hex_put(id->members[i].uuid, NODE_UUID_LEN, uuid);
            n += (size_t)snprintf(t + n, size - n, "member %" PRIu64 " %d %s %s %s\n", id->members[i].id, id->members[i].role, uuid,
                                  id->members[i].host_port, id->members[i].cert_name);
        }
    }
    n += (size_t)snprintf(t + n, size - n, "checksum %016" PRIx64 "\n", (uint64_t)XXH3_64bits(t, n));
    *text_r = t;
    *len_r = n;
    return 0;
}

static int identity_bad(struct datadir *d, struct err *err, const char *what)
{
    return err_set(err, RAFTDIR_ECORRUPT,
                   "%s/IDENTITY is damaged (%s); don't edit it: restore it from a backup of this node, or remove this member from the cluster, "
                   "move the directory away and join again as a new node",
                   d->path, what);
}

static int member_parse(char *line, struct node_peer *m_r)
{
    char uuid[2 * NODE_UUID_LEN + 1];
    int at = 0;
    memset(m_r, 0, sizeof *m_r);
    if (sscanf(line, "member %" SCNu64 " %d %32s %255s %n", &m_r->id, &m_r->role, uuid, m_r->host_port, &at) != 4 || !at || !line[at] ||
        strlen(line + at) >= sizeof m_r->cert_name || !hex_get(uuid, m_r->uuid, NODE_UUID_LEN))
        return -1;
    snprintf(m_r->cert_name, sizeof m_r->cert_name, "%s", line + at);
    return 0;
}

/* `text` is changed. */
static int identity_parse(struct datadir *d, char *text, size_t len, struct err *err)
{
    struct datadir_identity *id = &d->identity;
    memset(id, 0, sizeof *id);
    int version = 0;
    if (sscanf(text, "raftdir identity %d", &version) != 1)
        return identity_bad(d, err, "it doesn't start with \"raftdir identity\"");
    if (version != DATADIR_VERSION)
        return err_set(err, RAFTDIR_EVERSION,
                       "data_dir %s has version %d, and this raftdird (" RAFTDIR_VERSION
                       ") writes and reads version %d: run the raftdird that wrote it, or start with another, empty data_dir",
                       d->path, version, DATADIR_VERSION);
    char *sum = NULL;
    for (char *p = text; (p = strstr(p, "\nchecksum ")); p++)
        sum = p + 1;
    if (!sum || strlen(text) != len)
        return identity_bad(d, err, "it has no checksum line");
    char wanted[64];
    snprintf(wanted, sizeof wanted, "checksum %016" PRIx64 "\n", (uint64_t)XXH3_64bits(text, (size_t)(sum - text)));
    if (strcmp(sum, wanted) != 0)
        return identity_bad(d, err, "its checksum is wrong");
    *sum = '\0';
    char *save = NULL;
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save), n++) {
        bool ok = true;
        if (n == 0)
            continue;
        else if (n == 1)
            ok = strncmp(line, "uuid ", 5) == 0 && hex_get(line + 5, id->uuid, NODE_UUID_LEN);
        else if (n == 2)
            ok = sscanf(line, "cluster %" SCNx64, &id->cluster_id) == 1 && id->cluster_id != 0;
        else if (n == 3)
            ok = sscanf(line, "incarnation %" SCNu64, &id->incarnation) == 1;
        else if (n == 4)
            ok = sscanf(line, "node %" SCNu64, &id->node_id) == 1 && id->node_id != 0;
        else
            ok = id->members_n < MEMBERS_MAX && member_parse(line, &id->members[id->members_n++]) == 0;
        if (!ok)
            return identity_bad(d, err, line);
    }
    if (n != 2 && n < 5)
        return identity_bad(d, err, "lines are missing");
    return 0;
}

/* --- Files ---------------------------------------------------------------------------------------------------------------- */

int datadir_identity_write(struct datadir *d, const struct datadir_identity *id, struct err *err)
{
    char *text = NULL;
    size_t len = 0;
    int rc = identity_format(id, &text, &len, err);
    if (rc != 0)
        return rc;
    int fd = -1;
    if ((rc = datadir_step("create IDENTITY.tmp", err)) != 0)
        goto free_text;
    fd = openat(d->dir_fd, "IDENTITY.tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        rc = datadir_fail_errno(d, "create IDENTITY.tmp", err);
        goto free_text;
    }
    if ((rc = datadir_step("write IDENTITY.tmp", err)) != 0)
        goto close_fd;
    for (size_t done = 0; done < len;) {
        ssize_t w = write(fd, text + done, len - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            rc = datadir_fail_errno(d, "write IDENTITY.tmp", err);
            goto close_fd;
        }
        done += (size_t)w;
    }
    if (fsync(fd) != 0) {
        rc = datadir_fail_errno(d, "sync IDENTITY.tmp", err);
        goto close_fd;
    }
    if ((rc = datadir_step("rename IDENTITY", err)) != 0)
        goto close_fd;
    if (renameat(d->dir_fd, "IDENTITY.tmp", d->dir_fd, "IDENTITY") != 0)
        rc = datadir_fail_errno(d, "rename IDENTITY.tmp", err);
    else if ((rc = datadir_step("sync directory", err)) == 0 && fsync(d->dir_fd) != 0)
        rc = datadir_fail_errno(d, "sync", err);
close_fd:
    close(fd);
free_text:
    free(text);
    return rc;
}

/* RAFTDIR_ENOTFOUND: there is none. */
static int identity_read(struct datadir *d, struct err *err)
{
    int fd = openat(d->dir_fd, "IDENTITY", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? RAFTDIR_ENOTFOUND : datadir_fail_errno(d, "open IDENTITY", err);
    int rc = 0;
    size_t len = 0;
    char *text = malloc(IDENTITY_LEN_FILE_MAX + 1);
    if (!text) {
        rc = err_set(err, RAFTDIR_ENOMEM, "identity: out of memory");
        goto out;
    }
    for (;;) {
        ssize_t r = read(fd, text + len, IDENTITY_LEN_FILE_MAX - len);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            rc = datadir_fail_errno(d, "read IDENTITY", err);
        if (r <= 0)
            break;
        len += (size_t)r;
    }
    if (rc == 0) {
        text[len] = '\0';
        rc = identity_parse(d, text, len, err);
    }
out:
    free(text);
    close(fd);
    return rc;
}

/* A directory without IDENTITY may only hold what our own interrupted start left: data_dir = "/" must not be taken over. */
static int empty_check(struct datadir *d, struct err *err)
{
    static const char *const ours[] = {".", "..", "lock", "IDENTITY.tmp", "ballast", "lost+found"};
    DIR *dir = opendir(d->path);
    if (!dir)
        return datadir_fail_errno(d, "list", err);
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(dir));) {
        bool known = false;
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            known = known || strcmp(ours[i], e->d_name) == 0;
        if (!known)
            rc = err_set(err, RAFTDIR_EINVAL,
                         "data_dir %s is not empty (\"%.100s\") and has no IDENTITY: it isn't raftdir's, or its IDENTITY was lost; give an empty or new directory",
                         d->path, e->d_name);
    }
    closedir(dir);
    return rc;
}

static int lock_take(struct datadir *d, struct err *err)
{
    d->lock_fd = openat(d->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock_fd < 0)
        return datadir_fail_errno(d, "open lock", err);
    char pid[32] = "";
    if (flock(d->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK)
            return datadir_fail_errno(d, "lock", err);
        ssize_t n = pread(d->lock_fd, pid, sizeof pid - 1, 0);
        pid[n > 0 ? strcspn(pid, "\n") : 0] = '\0';
        return err_set(err, RAFTDIR_EBUSY, "data_dir %s is in use by another raftdird (process %s): stop that one, or give this one its own data_dir",
                       d->path, *pid ? pid : "unknown");
    }
    int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(d->lock_fd, 0) != 0 || pwrite(d->lock_fd, pid, (size_t)n, 0) != n)
        errno = 0; /* for people only; a full disk must not keep a node from starting */
    return 0;
}

int datadir_uuid_make(struct datadir *d, uint8_t uuid_r[NODE_UUID_LEN], struct err *err)
{
    return getrandom(uuid_r, NODE_UUID_LEN, 0) != NODE_UUID_LEN ? datadir_fail_errno(d, "random node UUID", err) : 0;
}

int datadir_open(const char *path, struct datadir **datadir_r, struct err *err)
{
    struct datadir *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(err, RAFTDIR_ENOMEM, "data_dir: out of memory");
    d->dir_fd = d->lock_fd = d->group = -1;
    int rc = pthread_mutex_init(&d->mutex, NULL);
    if (rc != 0) {
        free(d);
        return err_set(err, err_from_errno(rc), "data_dir: %s", strerror(rc));
    }
    if ((size_t)snprintf(d->path, sizeof d->path, "%s", path) >= sizeof d->path) {
        rc = err_set(err, RAFTDIR_EINVAL, "data_dir: the path is longer than %zu bytes", sizeof d->path - 1);
        goto fail;
    }
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        rc = datadir_fail_errno(d, "create", err);
        goto fail;
    }
    d->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->dir_fd < 0) {
        rc = datadir_fail_errno(d, "open", err);
        goto fail;
    }
    rc = identity_read(d, err);
    if (rc == RAFTDIR_ENOTFOUND) {
        if ((rc = empty_check(d, err)) != 0 || (rc = lock_take(d, err)) != 0)
            goto fail;
        if ((rc = datadir_uuid_make(d, d->identity.uuid, err)) != 0)
            goto fail;
        rc = datadir_identity_write(d, &d->identity, err);
    } else if (rc == 0) {
        /* Read again under the lock: another daemon may have been about to join. */
        if ((rc = lock_take(d, err)) == 0)
            rc = identity_read(d, err);
    }
    if (rc != 0)
        goto fail;
    *datadir_r = d;
    return 0;
fail:
    datadir_close(&d);
    return rc;
}

void datadir_close(struct datadir **datadir)
{
    struct datadir *d = *datadir;
    *datadir = NULL;
    if (!d)
        return;
    if (d->lock_fd >= 0)
        close(d->lock_fd);
    if (d->dir_fd >= 0)
        close(d->dir_fd);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

const struct datadir_identity *datadir_identity(const struct datadir *d)
{
    return &d->identity;
}

int datadir_join(struct datadir *d, const struct datadir_identity *identity, struct err *err)
{
    if (d->identity.cluster_id)
        return err_set(err, RAFTDIR_EBUSY, "data_dir %s is part of a cluster already", d->path);
    for (size_t i = 0; i < identity->members_n; i++)
        if (!*identity->members[i].cert_name || strpbrk(identity->members[i].cert_name, "\r\n") || !*identity->members[i].host_port ||
            strpbrk(identity->members[i].host_port, " \t\r\n"))
            return err_set(err, RAFTDIR_EINVAL, "member %" PRIu64 " has an address or a certificate name that can't be written", identity->members[i].id);
    struct datadir_identity next = *identity;
    memcpy(next.uuid, d->identity.uuid, NODE_UUID_LEN);
    /* The names of the files that were made in them; LMDB syncs its file, never its directory. */
    static const char *const dirs[] = {"gen-1/state", "gen-1/log"};
    uint64_t current;
    int rc = datadir_current(d, &current, err);
    if (rc == 0 && current != 1)
        rc = err_set(err, RAFTDIR_EINVAL, "data_dir %s: not prepared: gen-%" PRIu64 " is somebody else's", d->path, current);
    for (size_t i = 0; i < 2 && rc == 0; i++)
        if ((rc = datadir_step("sync gen-1", err)) == 0)
            rc = datadir_dir_sync(d, dirs[i], err);
    if (rc == 0)
        rc = datadir_identity_write(d, &next, err);
    if (rc == 0)
        d->identity = next;
    return rc;
}

/* A member that has lost something: what is gone, why it can't go on without, and the way back. */
static int member_lost(struct datadir *d, const char *path, const char *what, struct err *err)
{
    return err_set(err, RAFTDIR_ECORRUPT,
                   "%s%s: without it this member doesn't know what it voted for and acknowledged. Restore it as it was, or remove member %" PRIu64
                   " from the cluster and let this node join again as a new one (raftdirctl cluster rebuild)",
                   path, what, d->identity.node_id);
}

int datadir_check(struct datadir *d, struct err *err)
{
    static const char *const wanted[] = {"", "log", "log/vote", "state"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        char path[PATH_MAX];
        struct err why = {0};
        int rc = datadir_path(d, wanted[i], path, sizeof path, &why);
        if (rc == RAFTDIR_ECORRUPT)
            return member_lost(d, why.text, "", err);
        if (rc != 0)
            return err_set(err, rc, "%s", why.text);
        path[strlen(path) - (i == 0)] = '\0'; /* the first ends in a slash */
        if (access(path, F_OK) != 0)
            return member_lost(d, path, i ? " is missing" : " is missing, to which CURRENT points", err);
    }
    return 0;
}
