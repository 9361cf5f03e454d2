/* test_store_readers.c - the state beside readers in other processes: slots of the killed, snapshots of the stopped, a group that may read, opens that must not create anything,
 * limits of address space, and the cache of places that a reader keeps between its transactions. Readers are real processes. White-box. */
#include <dirent.h>
#include <grp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "raftdir/name.h"
#include "raftdir/store_rows.h"
#include "raftdir/store_state.h"
#include "support_store.h"

#define NOBODY 65534
#define SOME_GID 54321
#define OTHER_GID 54322
#define COMMIT_MS_MAX 5000 /* a writer that waits for a reader would wait for ever; a loaded machine doesn't take so long */

static void put_one(struct support_store *s, int i)
{
    struct support_arena a = {0};
    char name[64];
    snprintf(name, sizeof name, "user.u%04d", i);
    assert_int_equal(support_do(&a, s, support_put(&a, name, "be1", "p1", "anna\tlrs\t")), 0);
    support_free(&a);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* --- Processes ----------------------------------------------------------------------------------------------------------------------- */

/* In a child: what fails ends it, and tells the line. */
#define want(cond)                                                                                                                         \
    do {                                                                                                                                   \
        if (!(cond)) {                                                                                                                     \
            fprintf(stderr, "child: line %d: %s\n", __LINE__, #cond);                                                                      \
            _exit(1);                                                                                                                      \
        }                                                                                                                                  \
    } while (0)

struct child {
    pid_t pid;
    int say, hear; /* the parent's ends */
};

static struct child child_start(void (*run)(const char *dir, int say, int hear), const char *dir)
{
    int up[2], down[2];
    struct child c;
    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0) {
        close(up[0]);
        close(down[1]);
        alarm(60); /* whatever becomes of the parent */
        run(dir, up[1], down[0]);
        _exit(0);
    }
    close(up[1]);
    close(down[0]);
    c.hear = up[0];
    c.say = down[1];
    return c;
}

static void child_wait_word(struct child *c)
{
    char word;
    assert_int_equal(read(c->hear, &word, 1), 1);
}

static int child_end(struct child *c)
{
    int status;
    close(c->say);
    close(c->hear);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    return status;
}

static void child_kill(struct child *c)
{
    assert_int_equal(kill(c->pid, SIGKILL), 0);
    assert_true(WIFSIGNALED(child_end(c)));
}

static void child_stop(struct child *c)
{
    int status;
    assert_int_equal(kill(c->pid, SIGSTOP), 0);
    assert_int_equal(waitpid(c->pid, &status, WUNTRACED), c->pid);
    assert_true(WIFSTOPPED(status));
}

static const struct store_options read_only = {.read_only = true};

/* Holds a snapshot until it is told to look at it again: it must be what it was. */
static void hold_snapshot(const char *dir, int say, int hear)
{
    struct store *store;
    struct store_txn *txn;
    struct store_meta before, after;
    struct store_mailbox m;
    char name[64], word;
    want(store_open(dir, &read_only, &store, NULL) == 0);
    want(store_read_begin(store, &txn, NULL) == 0);
    want(store_meta_get(txn, &before, NULL) == 0);
    want(write(say, "r", 1) == 1);
    want(read(hear, &word, 1) == 1);
    txn->state_read = false;
    want(store_meta_get(txn, &after, NULL) == 0);
    want(memcmp(&before, &after, sizeof before) == 0);
    for (unsigned i = 0; i < before.mailboxes; i++) {
        snprintf(name, sizeof name, "user.u%04u", i);
        want(store_lookup(txn, name, strlen(name), &m, NULL) == 0);
    }
    snprintf(name, sizeof name, "user.u%04u", (unsigned)before.mailboxes);
    want(store_lookup(txn, name, strlen(name), &m, NULL) == RAFTDIR_ENOTFOUND);
    store_read_end(&txn);
    store_close(&store);
}

#define MANY 5000
static void hold_many(const char *dir, int say, int hear)
{
    struct store *store;
    char word;
    want(store_open(dir, &read_only, &store, NULL) == 0);
    for (int i = 0; i < MANY; i++) {
        struct store_txn *txn;
        want(store_read_begin(store, &txn, NULL) == 0);
        if (i % 2)
            store_read_reset(txn); /* a slot, and no snapshot */
    }
    want(write(say, "r", 1) == 1);
    want(read(hear, &word, 1) == 1);
}

/* So many commits, none of which waits. */
static void commits(struct support_store *s, int from, int n)
{
    for (int i = from; i < from + n; i++) {
        double t = now_ms();
        put_one(s, i);
        assert_true(now_ms() - t < COMMIT_MS_MAX);
    }
}

static void test_killed(void **state)
{
    (void)state;
    struct support_store s;
    struct store_readers r;
    struct err err = {0};
    support_store_open(&s, 0);
    commits(&s, 0, 5);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.others == 0 && r.oldest_pid == 0 && r.oldest_lag == 0);
    unsigned own = r.slots;
    struct child c = child_start(hold_snapshot, s.dir);
    child_wait_word(&c);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own + 1 && r.others == 1 && r.oldest_pid == c.pid && r.oldest_lag == 0);
    commits(&s, 5, 7);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own + 1 && r.others == 1 && r.oldest_pid == c.pid);
    assert_int_equal(r.oldest_lag, 7);
    child_kill(&c);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own && r.others == 0 && r.oldest_pid == 0 && r.oldest_lag == 0);
    /* Our own count, too. */
    struct store_txn *txn;
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own + 1 && r.others == 0 && r.oldest_pid == getpid());
    store_read_reset(txn);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own + 1 && r.oldest_pid == 0);
    store_read_end(&txn);
    /* Many at once. */
    c = child_start(hold_many, s.dir);
    child_wait_word(&c);
    commits(&s, 12, 3);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.others == MANY && r.oldest_pid == c.pid && r.oldest_lag == 3);
    child_kill(&c);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.slots == own && r.others == 0);
    support_store_close(&s);
}

/* Pages that a snapshot pins aren't used again; when it goes, they are. */
static void test_stopped(void **state)
{
    (void)state;
    struct support_store s;
    struct store_readers r;
    struct store_txn *txn;
    uint64_t live, free_len;
    struct err err = {0};
    support_store_open(&s, 0);
    commits(&s, 0, 300);
    struct child c = child_start(hold_snapshot, s.dir);
    child_wait_word(&c);
    child_stop(&c);
    uint64_t before = store_used_len(s.store);
    commits(&s, 300, 200);
    uint64_t pinned = store_used_len(s.store) - before;
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.others == 1 && r.oldest_pid == c.pid);
    assert_int_equal(r.oldest_lag, 200);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_live_len(txn, &live, &err), 0);
    assert_int_equal(store_free_len(txn, &free_len, &err), 0);
    store_read_end(&txn);
    assert_true(live > 4096 * TABLES && live < store_used_len(s.store) && live + free_len <= store_used_len(s.store));
    assert_true(pinned > live / 2);
    /* It goes on, and finds what it had. */
    assert_int_equal(kill(c.pid, SIGCONT), 0);
    assert_int_equal(write(c.say, "g", 1), 1);
    assert_int_equal(child_end(&c), 0);
    assert_int_equal(store_readers_check(s.store, &r, &err), 0);
    assert_true(r.others == 0 && r.oldest_lag == 0);
    before = store_used_len(s.store);
    commits(&s, 500, 200);
    assert_true(store_used_len(s.store) - before < pinned / 2);
    assert_int_equal(support_verify(&s, false), 0);
    support_store_close(&s);
}

/* --- A group --------------------------------------------------------------------------------------------------------------------------- */

static struct stat stat_of(const char *dir, const char *file)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    assert_int_equal(stat(path, &st), 0);
    return st;
}

static void modes_are(const char *dir, mode_t data, mode_t lock, gid_t gid)
{
    struct stat d = stat_of(dir, "data.mdb"), l = stat_of(dir, "lock.mdb");
    assert_int_equal(d.st_mode & 07777, data);
    assert_int_equal(l.st_mode & 07777, lock);
    assert_int_equal(d.st_gid, gid);
    assert_int_equal(l.st_gid, gid);
}

static void open_as(struct support_store *s, int group)
{
    struct err err = {0};
    struct store_options o = {.no_sync = true, .group = group};
    store_close(&s->store);
    if (store_open(s->dir, &o, &s->store, &err))
        fail_msg("%s", err.text);
}

static void test_group(void **state)
{
    (void)state;
    bool root = geteuid() == 0;
    gid_t own = getegid(), group = root ? SOME_GID : own;
    static const mode_t masks[] = {0, 0022, 0077, 0777};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        struct support_store s;
        support_store_open(&s, 0); /* made without a group, */
        mode_t old = umask(masks[i]);
        modes_are(s.dir, 0600, 0600, own);
        if (group) {
            open_as(&s, (int)group); /* then given to one, */
            modes_are(s.dir, 0640, 0660, group);
        }
        if (root) {
            open_as(&s, OTHER_GID); /* to another, */
            modes_are(s.dir, 0640, 0660, OTHER_GID);
        }
        open_as(&s, -1); /* and to none again */
        modes_are(s.dir, 0600, 0600, root ? OTHER_GID : group);
        umask(old);
        put_one(&s, 0);
        support_store_close(&s);
        /* Made with a group, by an open and by a build. */
        for (int build = 0; build < 2 && group; build++) {
            struct store_options o = {.no_sync = true, .group = (int)group};
            struct err err = {0};
            struct store_build *b;
            support_store_open(&s, 0);
            store_close(&s.store);
            char path[128];
            snprintf(path, sizeof path, "%s/data.mdb", s.dir);
            unlink(path);
            snprintf(path, sizeof path, "%s/lock.mdb", s.dir);
            unlink(path);
            old = umask(masks[i]);
            if (build) {
                if (store_build_begin(s.dir, &o, &b, &err))
                    fail_msg("%s", err.text);
                store_build_end(&b);
            } else if (store_open(s.dir, &o, &s.store, &err)) {
                fail_msg("%s", err.text);
            }
            umask(old);
            modes_are(s.dir, 0640, 0660, group);
            support_store_close(&s);
        }
    }
}

/* Becomes somebody else, for good. */
static void become(gid_t gid)
{
    want(setgroups(0, NULL) == 0 && setgid(gid) == 0 && setuid(NOBODY) == 0);
}

static void read_as_group(const char *dir, int say, int hear)
{
    struct store *store;
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    (void)say;
    (void)hear;
    become(SOME_GID);
    want(access(dir, W_OK) != 0);
    if (store_open(dir, &read_only, &store, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        _exit(1);
    }
    want(store_read_begin(store, &txn, &err) == 0);
    want(store_lookup(txn, "user.u0000", 10, &m, &err) == 0);
    store_read_end(&txn);
    store_close(&store);
}

static void read_as_other(const char *dir, int say, int hear)
{
    struct store *store;
    struct err err = {0};
    (void)say;
    (void)hear;
    become(OTHER_GID);
    want(store_open(dir, &read_only, &store, &err) == RAFTDIR_EPERM);
    want(strstr(err.text, "data.mdb"));
}

/* May read the data, but not write the lock file. */
static void read_without_lock(const char *dir, int say, int hear)
{
    struct store *store;
    struct err err = {0};
    (void)say;
    (void)hear;
    become(SOME_GID);
    want(store_open(dir, &read_only, &store, &err) == RAFTDIR_EPERM);
    want(strstr(err.text, "lock.mdb"));
}

static void give_away(const char *dir, int say, int hear)
{
    struct store *store;
    struct err err = {0};
    (void)say;
    (void)hear;
    become(OTHER_GID);
    want(store_open(dir, &(struct store_options){.no_sync = true, .group = SOME_GID}, &store, &err) == RAFTDIR_EPERM);
    want(strstr(err.text, "member of that group"));
}

static void other_user(void (*run)(const char *dir, int say, int hear), const char *dir)
{
    struct child c = child_start(run, dir);
    assert_int_equal(child_end(&c), 0);
}

static void test_group_reads(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("not root: nobody else to be\n");
        return;
    }
    struct support_store s;
    struct store_readers r;
    support_store_open(&s, 0);
    put_one(&s, 0);
    open_as(&s, SOME_GID);
    assert_int_equal(chown(s.dir, 0, SOME_GID), 0);
    assert_int_equal(chmod(s.dir, 0750), 0);
    other_user(read_as_group, s.dir);
    assert_int_equal(store_readers_check(s.store, &r, NULL), 0);
    assert_int_equal(r.others, 0);
    assert_int_equal(chmod(s.dir, 0755), 0);
    other_user(read_as_other, s.dir);
    char path[128];
    snprintf(path, sizeof path, "%s/lock.mdb", s.dir);
    assert_int_equal(chmod(path, 0640), 0);
    other_user(read_without_lock, s.dir);
    /* The node isn't running. */
    open_as(&s, SOME_GID);
    store_close(&s.store);
    other_user(read_as_group, s.dir);
    modes_are(s.dir, 0640, 0660, SOME_GID);
    /* A user who isn't a member can't give it away, and is told so. */
    assert_int_equal(chown(path, NOBODY, OTHER_GID), 0);
    snprintf(path, sizeof path, "%s/data.mdb", s.dir);
    assert_int_equal(chown(path, NOBODY, OTHER_GID), 0);
    assert_int_equal(chown(s.dir, NOBODY, OTHER_GID), 0);
    other_user(give_away, s.dir);
    support_store_close(&s);
}

/* --- Read-only opens ------------------------------------------------------------------------------------------------------------------------- */

static unsigned files_in(const char *dir)
{
    DIR *d = opendir(dir);
    unsigned n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void test_creates_nothing(void **state)
{
    (void)state;
    struct support_store s;
    struct store *store;
    struct err err = {0};
    char data[128], lock[128];
    support_store_open(&s, 0);
    put_one(&s, 0);
    store_close(&s.store);
    snprintf(data, sizeof data, "%s/data.mdb", s.dir);
    snprintf(lock, sizeof lock, "%s/lock.mdb", s.dir);
    assert_int_equal(unlink(lock), 0);
    assert_int_equal(store_open(s.dir, &read_only, &store, &err), RAFTDIR_ENOTREADY);
    assert_non_null(strstr(err.text, "lock.mdb"));
    assert_int_equal(files_in(s.dir), 1);
    assert_int_equal(unlink(data), 0);
    assert_int_equal(store_open(s.dir, &read_only, &store, &err), RAFTDIR_ENOTREADY);
    assert_int_equal(files_in(s.dir), 0);
    /* Another version: refused by a reader as by a writer. */
    support_store_reopen(&s, 0);
    struct store_txn *txn;
    assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_put(txn, TABLE_META, STORE_VERSION_KEY, STORE_VERSION_KEY_LEN, "99", 2, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    store_close(&s.store);
    assert_int_equal(store_open(s.dir, &read_only, &store, &err), RAFTDIR_EVERSION);
    assert_non_null(strstr(err.text, "99"));
    support_store_close(&s);
}

/* On a file system that is mounted read-only LMDB would read without a slot. */
static void read_read_only_mount(const char *dir, int say, int hear)
{
    struct store *store;
    struct err err = {0};
    (void)hear;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount(dir, dir, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, dir, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0) {
        want(write(say, "s", 1) == 1);
        return;
    }
    want(store_open(dir, &read_only, &store, &err) != 0);
    want(strstr(err.text, "lock.mdb"));
    want(write(say, "d", 1) == 1);
}

static void test_read_only_mount(void **state)
{
    (void)state;
    struct support_store s;
    char word;
    support_store_open(&s, 0);
    put_one(&s, 0);
    struct child c = child_start(read_read_only_mount, s.dir);
    if (read(c.hear, &word, 1) == 1 && word == 's')
        print_message("mounts aren't allowed here\n");
    assert_int_equal(child_end(&c), 0);
    support_store_close(&s);
}

/* --- Limits of address space ---------------------------------------------------------------------------------------------------------------- */

static void limit_to(uint64_t more)
{
    unsigned long pages;
    FILE *f = fopen("/proc/self/statm", "r");
    want(f && fscanf(f, "%lu", &pages) == 1);
    fclose(f);
    rlim_t len = pages * (rlim_t)sysconf(_SC_PAGESIZE) + more;
    want(setrlimit(RLIMIT_AS, &(struct rlimit){len, len}) == 0);
}

/* 100 MB with every word: a small map doesn't hold them. */
static void grow(struct support_store *s, unsigned *rows)
{
    static char big[1 << 20];
    struct store_txn *txn;
    struct err err = {0};
    assert_int_equal(store_write_begin(s->store, &txn, &err), 0);
    for (int i = 0; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "big%06u", (*rows)++);
        assert_int_equal(store_put(txn, TABLE_META, key, strlen(key), big, sizeof big, 0, &err), 0);
    }
    assert_int_equal(store_write_commit(&txn, &err), 0);
}

/* `word` from the parent: the state has grown. */
static void read_limited(const char *dir, int say, int hear)
{
    struct store *store;
    struct store_txn *a, *b;
    struct store_mailbox m;
    struct err err = {0};
    char word;
    limit_to(600u << 20);
    want(store_open(dir, &read_only, &store, &err) == 0);
    want(store->small.on && store_map_len(store) < 100u << 20);
    want(store_read_begin(store, &a, &err) == 0 && store_read_begin(store, &b, &err) == 0);
    want(store_lookup(a, "user.u0000", 10, &m, &err) == 0 && m.server.len == 3);
    store_read_reset(b);
    want(write(say, "r", 1) == 1 && read(hear, &word, 1) == 1);
    /* While somebody reads, its map stays where it is, and those who begin are refused. */
    want(store_read_renew(b, &err) == RAFTDIR_EUNAVAIL);
    want(store_lookup(a, "user.u0000", 10, &m, &err) == 0 && memcmp(m.server.s, "be1", 3) == 0);
    store_read_reset(a);
    want(store_read_renew(b, &err) == 0);
    want(store_map_len(store) > 100u << 20);
    want(store_lookup(b, "user.u0001", 10, &m, &err) == 0 && memcmp(m.server.s, "be1", 3) == 0);
    want(store_read_renew(a, &err) == 0);
    want(store_lookup(a, "user.u0001", 10, &m, &err) == 0);
    store_read_reset(a);
    store_read_reset(b);
    /* Beyond what the limit allows: refused, and nothing crashes. */
    limit_to(0);
    want(write(say, "r", 1) == 1 && read(hear, &word, 1) == 1);
    want(store_read_renew(a, &err) == RAFTDIR_EUNAVAIL);
    want(store_read_renew(b, &err) == RAFTDIR_EUNAVAIL);
    store_read_end(&a);
    store_read_end(&b);
    store_close(&store);
}

static void read_no_room(const char *dir, int say, int hear)
{
    struct store *store;
    struct err err = {0};
    (void)say;
    (void)hear;
    want(store_open(dir, &(struct store_options){.read_only = true, .map_len = 1 << 20}, &store, &err) == RAFTDIR_EUNAVAIL);
    want(strstr(err.text, "may map"));
    limit_to(32u << 20);
    want(store_open(dir, &read_only, &store, &err) == RAFTDIR_EUNAVAIL);
    want(strstr(err.text, "RLIMIT_AS"));
}

static void write_limited(const char *dir, int say, int hear)
{
    struct store *store;
    struct store_txn *txn;
    struct err err = {0};
    (void)say;
    (void)hear;
    limit_to(700u << 20);
    want(store_open(dir, &(struct store_options){.no_sync = true}, &store, &err) == 0);
    want(store_map_len(store) >= 64u << 20 && store_map_len(store) <= 700u << 20);
    want(store_write_begin(store, &txn, &err) == 0 && store_write_commit(&txn, &err) == 0);
    store_close(&store);
}

static void test_limits(void **state)
{
    (void)state;
    struct support_store s;
    unsigned rows = 0;
    support_store_open(&s, 0);
    put_one(&s, 0);
    struct child c = child_start(read_limited, s.dir);
    child_wait_word(&c);
    grow(&s, &rows);
    put_one(&s, 1);
    assert_int_equal(write(c.say, "g", 1), 1);
    child_wait_word(&c);
    grow(&s, &rows);
    grow(&s, &rows);
    assert_int_equal(write(c.say, "g", 1), 1);
    assert_int_equal(child_end(&c), 0);
    other_user(read_no_room, s.dir);
    store_close(&s.store);
    other_user(write_limited, s.dir);
    support_store_close(&s);
}

/* --- Places that a reader has found ----------------------------------------------------------------------------------------------------------- */

#define STORES 300 /* more than STORE_ACTIVES: some share a slot of the cache */
#define READERS 3

struct place_model {
    uint64_t epoch;
    unsigned active;
};

static void place_write(struct store_txn *txn, uint64_t id, const struct place_model *m)
{
    char server[3][24];
    struct record_store r = {.epoch = m->epoch, .slots_n = 3, .active = m->active};
    uint8_t key[8], buf[RECORD_STORE_LEN_MAX];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(server[i], sizeof server[i], "s%u-%u-%u", (unsigned)id, i, (unsigned)m->epoch % 7);
        r.slot[i] = (struct record_slot){i + 1, {server[i], strlen(server[i])}, {"p", 1}};
    }
    put_be64(key, id);
    size_t len = record_encode_store(key, sizeof key, &r, buf);
    assert_int_equal(store_put(txn, TABLE_STORES, key, sizeof key, buf, len, 0, NULL), 0);
}

static void place_is(struct store_txn *txn, uint64_t id, const struct place_model *m)
{
    const struct store_active *a;
    struct err err = {0};
    char server[24];
    if (store_place_active(txn, id, &a, &err))
        fail_msg("store %u: %s", (unsigned)id, err.text);
    snprintf(server, sizeof server, "s%u-%u-%u", (unsigned)id, m->active, (unsigned)m->epoch % 7);
    assert_int_equal(a->epoch, m->epoch);
    assert_int_equal(a->server_len, strlen(server));
    assert_memory_equal(a->server, server, a->server_len);
    assert_true(a->partition_len == 1 && a->partition[0] == 'p');
}

/* Readers that renew now and then, a writer that changes stores, or other things, and commits or takes it back: each reader sees the stores of its snapshot. */
static void test_places(void **state)
{
    (void)state;
    static struct place_model now[STORES + 1], next[STORES + 1], seen[READERS][STORES + 1];
    struct support_store s;
    struct store_txn *txn, *reader[READERS];
    struct err err = {0};
    const struct store_active *a;
    uint64_t seed = support_seed();
    support_store_open(&s, 0);
    assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
    for (uint64_t id = 1; id <= STORES; id++) {
        now[id] = (struct place_model){1, 0};
        place_write(txn, id, &now[id]);
    }
    assert_int_equal(store_write_commit(&txn, &err), 0);
    for (int i = 0; i < READERS; i++) {
        assert_int_equal(store_read_begin(s.store, &reader[i], &err), 0);
        memcpy(seen[i], now, sizeof now);
    }
    for (int step = 0; step < 1500; step++) {
        if (support_below(&seed, 3) == 0) {
            memcpy(next, now, sizeof now);
            assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
            for (unsigned n = support_below(&seed, 4); n > 0; n--) {
                uint64_t id = 1 + support_below(&seed, STORES);
                place_is(txn, id, &next[id]); /* not from a cache, in here */
                next[id].epoch++;
                next[id].active = support_below(&seed, 3);
                place_write(txn, id, &next[id]);
                place_is(txn, id, &next[id]);
            }
            if (support_below(&seed, 4)) {
                assert_int_equal(store_write_commit(&txn, &err), 0);
                memcpy(now, next, sizeof now);
            } else {
                store_write_abort(&txn);
            }
        }
        int i = (int)support_below(&seed, READERS);
        if (support_below(&seed, 4) == 0) {
            if (support_below(&seed, 2))
                store_read_reset(reader[i]);
            assert_int_equal(store_read_renew(reader[i], &err), 0);
            memcpy(seen[i], now, sizeof now);
        }
        for (int n = 0; n < 20; n++) {
            uint64_t id = 1 + support_below(&seed, n < 10 ? 8 : STORES);
            place_is(reader[i], id, &seen[i][id]);
        }
    }
    assert_int_equal(store_place_active(reader[0], 0, &a, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(store_place_active(reader[0], STORES + 1, &a, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(store_place_active(reader[0], 0, &a, &err), RAFTDIR_ECORRUPT);
    /* Damage is found by the next snapshot. */
    MDB_val v;
    uint8_t key[8], buf[RECORD_STORE_LEN_MAX];
    put_be64(key, 5);
    assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_get(txn, TABLE_STORES, key, sizeof key, &v, &err), 0);
    memcpy(buf, v.mv_data, v.mv_size);
    buf[v.mv_size - 1] ^= 1;
    assert_int_equal(store_put(txn, TABLE_STORES, key, sizeof key, buf, v.mv_size, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    place_is(reader[0], 5, &seen[0][5]);
    assert_int_equal(store_read_renew(reader[0], &err), 0);
    assert_int_equal(store_place_active(reader[0], 5, &a, &err), RAFTDIR_ECORRUPT);
    for (int i = 0; i < READERS; i++)
        store_read_end(&reader[i]);
    support_store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),          cmocka_unit_test(test_stopped), cmocka_unit_test(test_group),  cmocka_unit_test(test_group_reads),
        cmocka_unit_test(test_creates_nothing), cmocka_unit_test(test_read_only_mount), cmocka_unit_test(test_limits), cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
