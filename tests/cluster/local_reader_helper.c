/* local_reader_helper.c - readers of a node's state for tests/cluster/local_reader and local_readers_many: what a shell can't do.
 *
 *   follow DIR ENDPOINTS NAME STOP-FILE   looks NAME up every few milliseconds on one handle until STOP-FILE is there; prints what came of it
 *   own-writes DIR ENDPOINTS N SERVER     creates N mailboxes by way of ENDPOINTS and looks each up at once at session level
 *   many DIR COUNT NAME                   COUNT processes, each with a handle of its own, look NAME up now and then. Commands on standard input, one line answered with one:
 *                                         kill N, stop N, cont, report, end. They die with this process
 *   slots DIR                             prints how many slots of the lock file are taken, by whomever; clears none
 *   pin DIR                               begins a read transaction, says "pinned", and keeps it until it is killed: what a process does that is stopped while it reads */
#include <errno.h>
#include <inttypes.h>
#include <lmdb.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"

#define CHILDREN_MAX 8192

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void sleep_us(unsigned us)
{
    struct timespec t = {us / 1000000, (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

static raftdir *open_handle(const char *dir, const char *endpoints, int level, unsigned timeout_ms)
{
    struct raftdir_options o;
    raftdir *d;
    char text[300];
    raftdir_options_init(&o);
    o.local_dir = dir;
    o.endpoints = endpoints;
    o.level = level;
    o.timeout_ms = timeout_ms;
    if (raftdir_open(&o, &d, text, sizeof text) < 0) {
        fprintf(stderr, "open: %s\n", text);
        exit(2);
    }
    return d;
}

static int is_local(raftdir *d, struct raftdir_answer *a)
{
    raftdir_answer(d, a);
    return a->local;
}

static int follow(const char *dir, const char *endpoints, const char *name, const char *stop_file)
{
    raftdir *d = open_handle(dir, endpoints, RAFTDIR_SESSION, 5000);
    struct raftdir_answer a;
    uint64_t lookups = 0, local = 0, failed = 0, turns = 0, index = 0;
    int64_t age_max = 0;
    int before = -1;
    const struct raftdir_mailbox *m;
    for (uint64_t until = now_ms() + 170000; access(stop_file, F_OK) != 0 && now_ms() < until; sleep_us(3000)) {
        int rc = raftdir_lookup(d, name, &m);
        lookups++;
        if (rc < 0) {
            failed++;
            fprintf(stderr, "%s\n", raftdir_message(d));
            continue;
        }
        int now = is_local(d, &a);
        if (a.index < index)
            failed++, fprintf(stderr, "index %" PRIu64 " after %" PRIu64 "\n", a.index, index);
        index = a.index;
        local += (uint64_t)now;
        turns += now != before;
        before = now;
        if (now && a.age_ms > age_max)
            age_max = a.age_ms;
    }
    printf("{\"lookups\":%" PRIu64 ",\"local\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"turns\":%" PRIu64 ",\"last\":%d,\"age_max\":%" PRId64 "}\n", lookups, local, failed, turns,
           before, age_max);
    raftdir_close(&d);
    return 0;
}

static int own_writes(const char *dir, const char *endpoints, int n, const char *server)
{
    raftdir *d = open_handle(dir, endpoints, RAFTDIR_SESSION, 10000);
    struct raftdir_answer a;
    int local = 0;
    for (int i = 0; i < n; i++) {
        struct raftdir_mailbox m;
        const struct raftdir_mailbox *found;
        char name[64];
        snprintf(name, sizeof name, "user.own%ld-%d", (long)getpid(), i);
        raftdir_mailbox_init(&m);
        m.name = name;
        m.server = server;
        m.partition = "p1";
        if (raftdir_create(d, &m, NULL) < 0 || raftdir_lookup(d, name, &found) < 0) {
            fprintf(stderr, "%s: %s\n", name, raftdir_message(d));
            return 1;
        }
        local += is_local(d, &a);
        if (raftdir_setacl(d, name, "anna\tlrs\t", NULL) < 0 || raftdir_lookup(d, name, &found) < 0 || strcmp(found->acl, "anna\tlrs\t") != 0) {
            fprintf(stderr, "%s: its ACL isn't what was written: %s\n", name, raftdir_message(d));
            return 1;
        }
        local += is_local(d, &a);
        sleep_us(150000); /* a follower hears with the next heartbeat that it is committed */
        if (raftdir_lookup(d, name, &found) < 0)
            return 1;
        local += is_local(d, &a);
    }
    printf("{\"reads\":%d,\"local\":%d}\n", 3 * n, local);
    raftdir_close(&d);
    return 0;
}

/* --- many --------------------------------------------------------------------------------------------------------------------- */

struct child {
    _Atomic uint64_t lookups, failed, longest_us;
};
static struct child *children;
static pid_t pids[CHILDREN_MAX]; /* 0: dead */
static int stopped[CHILDREN_MAX];

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void child_run(struct child *c, unsigned n, const char *dir, const char *name)
{
    raftdir *d = open_handle(dir, "unix:/nowhere/at-all.sock", RAFTDIR_SESSION, 300);
    struct raftdir_answer a;
    const struct raftdir_mailbox *m;
    unsigned seed = n * 2654435761u;
    for (;;) {
        /* Some in a row, so that a signal has something to meet. */
        for (int i = 0; i < 5; i++) {
            uint64_t t = now_us();
            if (raftdir_lookup(d, name, &m) < 0 || !is_local(d, &a)) {
                if (atomic_fetch_add(&c->failed, 1) == 0)
                    fprintf(stderr, "reader %u: %s\n", n, raftdir_message(d));
            }
            t = now_us() - t;
            if (t > atomic_load(&c->longest_us))
                atomic_store(&c->longest_us, t);
            atomic_fetch_add(&c->lookups, 1);
        }
        seed = seed * 1103515245u + 12345;
        sleep_us(500000 + seed / 4096 % 1000000);
    }
}

static unsigned pick(unsigned count, unsigned n, int sig)
{
    static unsigned at;
    unsigned done = 0;
    for (unsigned tries = 0; done < n && tries < count; tries++, at = (at + 7) % count) {
        if (!pids[at] || stopped[at])
            continue;
        kill(pids[at], sig);
        if (sig == SIGKILL) {
            waitpid(pids[at], NULL, 0);
            pids[at] = 0;
        } else
            stopped[at] = 1;
        done++;
    }
    return done;
}

static void report(unsigned count)
{
    static uint64_t before[CHILDREN_MAX];
    unsigned alive = 0, silent = 0;
    uint64_t lookups = 0, failed = 0;
    for (unsigned i = 0; i < count; i++) {
        if (pids[i] && waitpid(pids[i], NULL, WNOHANG) == pids[i])
            pids[i] = 0, failed++; /* ended by itself */
        uint64_t l = atomic_load(&children[i].lookups);
        lookups += l;
        failed += atomic_load(&children[i].failed);
        alive += pids[i] != 0;
        silent += pids[i] && !stopped[i] && l == before[i];
        before[i] = l;
    }
    printf("{\"alive\":%u,\"silent\":%u,\"lookups\":%" PRIu64 ",\"failed\":%" PRIu64 "}\n", alive, silent, lookups, failed);
}

static int many(const char *dir, unsigned count, const char *name)
{
    char line[100];
    unsigned n;
    children = mmap(NULL, count * sizeof *children, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count > CHILDREN_MAX || children == MAP_FAILED)
        return 2;
    /* What a process sets up once is set up here; nothing of the node's is open yet. */
    raftdir *first = open_handle(dir, "unix:/nowhere/at-all.sock", 0, 300);
    raftdir_close(&first);
    for (unsigned i = 0; i < count; i++) {
        pid_t parent = getpid();
        if ((pids[i] = fork()) == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            child_run(&children[i], i, dir, name);
        }
        if (pids[i] < 0) {
            fprintf(stderr, "fork %u: %s\n", i, strerror(errno));
            return 2;
        }
    }
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "kill %u", &n) == 1)
            printf("%u\n", pick(count, n, SIGKILL));
        else if (sscanf(line, "stop %u", &n) == 1)
            printf("%u\n", pick(count, n, SIGSTOP));
        else if (strncmp(line, "cont", 4) == 0) {
            n = 0;
            for (unsigned i = 0; i < count; i++)
                if (pids[i] && stopped[i])
                    n++, kill(pids[i], SIGCONT), stopped[i] = 0;
            printf("%u\n", n);
        } else if (strncmp(line, "report", 6) == 0)
            report(count);
        else
            break;
        fflush(stdout);
    }
    for (unsigned i = 0; i < count; i++)
        if (pids[i])
            kill(pids[i], SIGKILL);
    for (unsigned i = 0; i < count; i++)
        if (pids[i])
            waitpid(pids[i], NULL, 0);
    return 0;
}

static int env_open(const char *dir, MDB_env **env_r)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/CURRENT/state", dir);
    int rc = mdb_env_create(env_r);
    if (!rc && !(rc = mdb_env_set_mapsize(*env_r, 1ull << 40)) && !(rc = mdb_env_set_maxreaders(*env_r, 32768)))
        rc = mdb_env_open(*env_r, path, MDB_RDONLY | MDB_NOTLS, 0600);
    if (rc)
        fprintf(stderr, "open %s: %s\n", path, mdb_strerror(rc));
    return rc;
}

static int count_slot(const char *line, void *count)
{
    /* A title, then "PID thread txnid" a line. */
    *(unsigned *)count += strstr(line, "pid") == NULL && strpbrk(line, "0123456789") != NULL;
    return 0;
}

static int slots(const char *dir)
{
    MDB_env *env;
    unsigned n = 0;
    if (env_open(dir, &env) || mdb_reader_list(env, count_slot, &n) < 0)
        return 2;
    printf("%u\n", n);
    mdb_env_close(env);
    return 0;
}

static int pin(const char *dir)
{
    MDB_env *env;
    MDB_txn *txn;
    if (env_open(dir, &env) || mdb_txn_begin(env, NULL, MDB_RDONLY, &txn))
        return 2;
    puts("pinned");
    fflush(stdout);
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 6 && !strcmp(argv[1], "follow"))
        return follow(argv[2], argv[3], argv[4], argv[5]);
    if (argc == 6 && !strcmp(argv[1], "own-writes"))
        return own_writes(argv[2], argv[3], atoi(argv[4]), argv[5]);
    if (argc == 5 && !strcmp(argv[1], "many"))
        return many(argv[2], (unsigned)atoi(argv[3]), argv[4]);
    if (argc == 3 && !strcmp(argv[1], "slots"))
        return slots(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "pin"))
        return pin(argv[2]);
    fprintf(stderr, "usage: see the head of the source\n");
    return 2;
}
