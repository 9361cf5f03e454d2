/* bench_lookup.c - a local lookup beside a bare mdb_get of the same key in the same environment (DESIGN D8), one thread, each renewing one read transaction.
 *
 *   bench_lookup [--mailboxes N] [--dir DIR] [--keep] [--lookups N] [--rounds N] [--commits MS] [--cold] [--ratio-max X]
 *
 * The state is made in DIR/gen-1/state unless there is one already, and removed at the end unless --keep is given. It has the records, servers and stores of N mailboxes as a site
 * has them, but not the other indexes, which a lookup doesn't touch; so it is half as large as a node's.
 * Warm: rounds of lookups in random order, each of another order; within a round the kinds take turns, in an order that changes too. Medians of the rounds' means, in CPU time, and
 * of the ratios within each round: on a machine that does other things as well, the caches are as warm as those leave them.
 *   bare       mdb_txn_renew, mdb_get, mdb_txn_reset with the key as it is stored
 *   lookup     store_read_renew, store_lookup by the mailbox's name, store_read_reset: decoded, checksum verified, with the store's active server
 *   copy       the same, and all strings copied with a NUL each before the reset, as libraftdir does
 *   library    raftdir_lookup at session level, which reads this host's copy (DIR is made a data directory), in an LMDB environment of its own on the same file
 *   absent     names that aren't there, by mdb_get and by store_lookup, which verifies the neighbours (store_absent.c)
 * --commits MS: meanwhile a thread commits a change that often; each makes the stores be read again.
 * --cold: fresh processes that look up some thousand names after the page cache has been dropped, in turns. Needs root for all of the cache, else only the file's pages go.
 * --ratio-max X: exit status 1 when the median of lookup/bare within a round is above X. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "raftdir/name.h"
#include "raftdir/page.h"
#include "raftdir/store_state.h"

#define ROUNDS_MAX 1001
#define NAME_LEN 48
#define DOMAINS 50
#define FOLDERS 20
#define SERVERS 64
#define PARTITIONS 4
#define COMMIT_ROWS 200000

enum kind { BARE, LOOKUP, COPY, LIBRARY, ABSENT_BARE, ABSENT_LOOKUP, KINDS };
static const char *const kind_names[KINDS] = {"bare", "lookup", "copy", "library", "absent, bare", "absent, lookup"};

static struct {
    unsigned long mailboxes, lookups, rounds, commits_ms;
    char *dir;
    bool keep, cold;
    const char *child; /* the name of a kind: this process is one of --cold */
    double ratio_max;
} options = {.mailboxes = 1000000, .lookups = 0, .rounds = 0};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Of this thread alone: other programs on the machine take its time, but not its processor's. */
static double now_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_lookup: %s: %s\n", what, why);
    exit(2);
}

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* --- The state -------------------------------------------------------------------------------------------------------------------- */

/* In the order of their keys. `absent`: a name between this one and the next, which is nobody's. */
static size_t name_of(uint64_t i, bool absent, char name[NAME_LEN])
{
    uint64_t users = options.mailboxes / FOLDERS + 1, per_domain = users / DOMAINS + 1, user = i / FOLDERS;
    return (size_t)snprintf(name, NAME_LEN, "d%02u.example!user.u%07u.folder%02u%s", (unsigned)(user / per_domain % 100), (unsigned)(user % 10000000), (unsigned)(i % FOLDERS),
                            absent ? "x" : "");
}

static struct store_str str(const char *s)
{
    return (struct store_str){s, strlen(s)};
}

static void add_rows(struct store_txn *txn, const uint64_t *stores, uint64_t first, uint64_t n)
{
    struct err err = {0};
    for (uint64_t i = first; i < first + n; i++) {
        char name[NAME_LEN], acl[160], uniqueid[24];
        uint8_t key[NAME_KEY_LEN_MAX], buf[1024];
        uint64_t user = i / FOLDERS, mixed = i;
        size_t len = name_to_key(name, name_of(i, false, name), key);
        snprintf(acl, sizeof acl, "u%07u\tlrswipkxtecdan\tgroup:staff%02u\tlrs\tanyone\tp\t", (unsigned)(user % 10000000), (unsigned)(user % 50));
        snprintf(uniqueid, sizeof uniqueid, "%016llx", (unsigned long long)random_next(&mixed));
        mixed = user;
        struct record r = {.state = STORE_ACTIVE, .id = i + 1, .store_id = stores[random_next(&mixed) % (SERVERS * PARTITIONS)], .generation = i + 1, .mtime = 1700000000 + i,
                           .uidvalidity = 1600000000 + i, .foldermodseq = 1};
        r.field[RECORD_ACL] = str(acl);
        r.field[RECORD_UNIQUEID] = str(uniqueid);
        size_t value_len = record_encode(key, len, &r, buf);
        if (store_put(txn, TABLE_MAILBOX, key, len, buf, value_len, MDB_APPEND, &err))
            die("make the state", err.text);
        record_digest_add(&txn->state.digest, TABLE_MAILBOX, key, len, buf, value_len);
    }
    txn->state.meta.mailboxes += n;
    txn->state.meta.change_seq = txn->state.mailbox_id_max = first + n;
    txn->state.meta.applied_index++;
}

static void make_state(const char *dir)
{
    struct store *store;
    struct store_txn *txn;
    struct err err = {0};
    uint64_t stores[SERVERS * PARTITIONS];
    double t = now();
    if (store_open(dir, &(struct store_options){.no_sync = true}, &store, &err) || store_write_begin(store, &txn, &err))
        die("make the state", err.text);
    for (int i = 0; i < SERVERS * PARTITIONS; i++) {
        char server[40], partition[16];
        bool active;
        snprintf(server, sizeof server, "imap%02d.example.net", i / PARTITIONS);
        snprintf(partition, sizeof partition, "p%d", i % PARTITIONS);
        if (store_place_make(txn, str(server), str(partition), &stores[i], &active, &err))
            die("make the state", err.text);
    }
    for (uint64_t i = 0; i < options.mailboxes; i += COMMIT_ROWS) {
        uint64_t left = options.mailboxes - i;
        add_rows(txn, stores, i, left < COMMIT_ROWS ? left : COMMIT_ROWS);
        if (store_write_commit(&txn, &err) || store_write_begin(store, &txn, &err))
            die("make the state", err.text);
    }
    store_write_abort(&txn);
    if (store_sync(store, &err))
        die("make the state", err.text);
    fprintf(stderr, "made a state of %lu mailboxes, %.0f MB, in %.1f s\n", options.mailboxes, (double)store_used_len(store) / 1e6, now() - t);
    store_close(&store);
}

static uint64_t count_of(const char *dir)
{
    struct store *store;
    struct store_txn *txn;
    struct store_meta meta;
    struct err err = {0};
    if (store_open(dir, &(struct store_options){.read_only = true}, &store, &err) || store_read_begin(store, &txn, &err) || store_meta_get(txn, &meta, &err))
        die("look into the state", err.text);
    store_read_end(&txn);
    store_close(&store);
    return meta.mailboxes;
}

/* --- Counters of the processor, where they are allowed ------------------------------------------------------------------------------- */

static int counter_open(void)
{
    struct perf_event_attr a = {.type = PERF_TYPE_HARDWARE, .size = sizeof a, .config = PERF_COUNT_HW_INSTRUCTIONS, .exclude_kernel = 1, .exclude_hv = 1};
    return (int)syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
}

static uint64_t counter_read(int fd)
{
    uint64_t v;
    return fd >= 0 && read(fd, &v, sizeof v) == sizeof v ? v : 0;
}

/* --- Lookups -------------------------------------------------------------------------------------------------------------------------- */

struct names {
    size_t n, len[2]; /* all have the same lengths: of those that are there, and of those that aren't */
    char (*name)[NAME_LEN];
    uint8_t (*key)[NAME_LEN];
};

static void names_pick(struct names *s, bool absent, uint64_t *seed)
{
    for (size_t i = 0; i < s->n; i++) {
        s->len[absent] = name_of(random_next(seed) % options.mailboxes, absent, s->name[i]);
        name_to_key(s->name[i], s->len[absent], s->key[i]);
    }
}

static char *put_str(char *p, struct store_str s)
{
    if (s.len)
        memcpy(p, s.s, s.len);
    p[s.len] = '\0';
    return p + s.len + 1;
}

static size_t copy(const struct store_mailbox *m, char *buf)
{
    char *p = put_str(buf, (struct store_str){m->name, m->name_len});
    const struct store_str all[] = {m->server, m->partition, m->moving_server, m->moving_partition, m->acl, m->mbtype, m->uniqueid, m->legacy_specialuse, m->jmapid, m->name_history};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        p = put_str(p, all[i]);
    return (size_t)(p - buf);
}

static uint64_t sink; /* so that nothing is optimised away */

static double (*run_clock)(void) = now_cpu;

static double run_bare(MDB_txn *mdb, MDB_dbi dbi, const struct names *s, bool absent)
{
    double t = run_clock();
    for (size_t i = 0; i < s->n; i++) {
        MDB_val k = {s->len[absent], s->key[i]}, v = {0, NULL};
        if (mdb_txn_renew(mdb) || mdb_get(mdb, dbi, &k, &v) != (absent ? MDB_NOTFOUND : 0))
            die("mdb_get", s->name[i]);
        sink += v.mv_size;
        mdb_txn_reset(mdb);
    }
    return run_clock() - t;
}

static double run_ours(struct store_txn *txn, const struct names *s, bool absent, bool copied)
{
    static char buf[256 << 10];
    struct store_mailbox m;
    struct err err = {0};
    double t = run_clock();
    for (size_t i = 0; i < s->n; i++) {
        if (store_read_renew(txn, &err) || store_lookup(txn, s->name[i], s->len[absent], &m, &err) != (absent ? RAFTDIR_ENOTFOUND : 0))
            die(s->name[i], err.text);
        if (!absent)
            sink += copied ? copy(&m, buf) : m.server.len;
        store_read_reset(txn);
    }
    return run_clock() - t;
}

static struct page *page;
static raftdir *handle;

static void library_open(struct store *store)
{
    struct raftdir_options o;
    struct store_txn *txn;
    struct store_meta meta;
    struct err err = {0};
    char text[512];
    if (page_create(options.dir, "bench", -1, &page, &err) || store_read_begin(store, &txn, &err) || store_meta_get(txn, &meta, &err))
        die("page", err.text);
    store_read_end(&txn);
    atomic_store(&page->cluster_id, 1);
    atomic_store(&page->node_id, 1);
    atomic_store(&page->incarnation, 1);
    atomic_store(&page->generation, 1);
    atomic_store(&page->published, meta.applied_index);
    atomic_store(&page->serving, 1);
    raftdir_options_init(&o);
    o.endpoints = "unix:/nonexistent/raftdird.sock";
    o.local_dir = options.dir;
    if (raftdir_open(&o, &handle, text, sizeof text))
        die("raftdir_open", text);
}

static double run_library(const struct names *s)
{
    const struct raftdir_mailbox *m;
    struct raftdir_answer answer;
    atomic_store(&page->fresh_at_ms, page_now_ms());
    atomic_store(&page->alive_at_ms, page_now_ms());
    double t = run_clock();
    for (size_t i = 0; i < s->n; i++) {
        if (raftdir_lookup(handle, s->name[i], &m))
            die(s->name[i], raftdir_message(handle));
        sink += (size_t)m->server[0];
    }
    t = run_clock() - t;
    if (raftdir_answer(handle, &answer) || !answer.local)
        die("raftdir_lookup", "not answered from here");
    return t;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return v[n / 2];
}

static struct names names_make(size_t n)
{
    struct names s = {.n = n, .name = calloc(n, sizeof *s.name), .key = calloc(n, sizeof *s.key)};
    if (!s.name || !s.key)
        die("names", "out of memory");
    return s;
}

static _Atomic bool writer_stop;

static void *commit_often(void *store)
{
    struct store_txn *txn;
    struct err err = {0};
    while (!writer_stop) {
        if (store_write_begin(store, &txn, &err))
            die("write", err.text);
        txn->state.meta.log_time_ms++;
        if (store_write_commit(&txn, &err))
            die("commit", err.text);
        usleep((useconds_t)options.commits_ms * 1000);
    }
    return NULL;
}

static int warm(const char *dir)
{
    static double took[KINDS][ROUNDS_MAX], ratio[KINDS][ROUNDS_MAX];
    uint64_t seed = 1, instructions[KINDS] = {0};
    struct store *store;
    struct store_txn *txn;
    struct err err = {0};
    MDB_txn *mdb;
    pthread_t writer;
    struct names s = names_make(options.lookups);
    if (store_open(dir, &(struct store_options){.no_sync = true, .read_only = !options.commits_ms}, &store, &err) || store_read_begin(store, &txn, &err))
        die("open the state", err.text);
    if (mdb_txn_begin(store->env, NULL, MDB_RDONLY, &mdb))
        die("open the state", "mdb_txn_begin");
    mdb_txn_reset(mdb);
    store_read_reset(txn);
    if (options.commits_ms && pthread_create(&writer, NULL, commit_often, store))
        die("writer", strerror(errno));
    library_open(store);
    int counter = counter_open();
    for (unsigned long round = 0; round < options.rounds + 1; round++) /* the first one warms and doesn't count */
        for (unsigned turn = 0; turn < KINDS; turn++) {
            enum kind kind = (enum kind)((turn + round) % KINDS);
            bool absent = kind == ABSENT_BARE || kind == ABSENT_LOOKUP;
            names_pick(&s, absent, &seed);
            uint64_t before = counter_read(counter);
            double t = kind == LIBRARY ? run_library(&s) : kind == BARE || kind == ABSENT_BARE ? run_bare(mdb, store->dbi[TABLE_MAILBOX], &s, absent) : run_ours(txn, &s, absent, kind == COPY);
            if (round == 0)
                continue;
            took[kind][round - 1] = t / (double)s.n * 1e9;
            instructions[kind] += counter_read(counter) - before;
        }
    for (unsigned long round = 0; round < options.rounds; round++)
        for (unsigned kind = 0; kind < KINDS; kind++)
            ratio[kind][round] = took[kind][round] / took[kind >= ABSENT_BARE ? ABSENT_BARE : BARE][round];
    printf("%lu mailboxes, %.0f MB, %lu rounds of %zu lookups%s\n", options.mailboxes, (double)store_used_len(store) / 1e6, options.rounds, s.n,
           options.commits_ms ? ", beside a writer" : "");
    for (unsigned kind = 0; kind < KINDS; kind++) {
        double lowest = took[kind][0];
        for (unsigned long round = 1; round < options.rounds; round++)
            lowest = took[kind][round] < lowest ? took[kind][round] : lowest;
        printf("%-15s %7.0f ns (lowest %.0f)  ratio %.3f", kind_names[kind], median(took[kind], options.rounds), lowest, median(ratio[kind], options.rounds));
        if (instructions[kind])
            printf("  %.0f instructions", (double)instructions[kind] / ((double)s.n * (double)options.rounds));
        printf("\n");
    }
    if (options.commits_ms) {
        writer_stop = true;
        pthread_join(writer, NULL);
    }
    raftdir_close(&handle);
    page_destroy(&page);
    mdb_txn_abort(mdb);
    store_read_end(&txn);
    store_close(&store);
    free(s.name);
    free(s.key);
    bool above = options.ratio_max > 0 && ratio[LOOKUP][options.rounds / 2] > options.ratio_max;
    if (above)
        printf("the ratio of a lookup is above %.2f\n", options.ratio_max);
    return above;
}

/* --- Cold ------------------------------------------------------------------------------------------------------------------------------ */

static bool cache_drop(const char *dir)
{
    char path[4096];
    bool all = false;
    sync();
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        all = write(fd, "1\n", 2) == 2;
        close(fd);
    }
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        die("drop the cache", path);
    close(fd);
    return all;
}

/* In a process of its own: prints nanoseconds a lookup and pages read. */
static int cold_child(const char *dir, unsigned long seed_text)
{
    uint64_t seed = seed_text;
    struct names s = names_make(options.lookups);
    struct rusage before, after;
    double t;
    run_clock = now; /* waiting for the disk counts */
    names_pick(&s, false, &seed);
    if (strcmp(options.child, kind_names[BARE]) == 0) {
        MDB_env *env;
        MDB_txn *mdb;
        MDB_dbi dbi;
        if (mdb_env_create(&env) || mdb_env_set_maxdbs(env, TABLES) || mdb_env_set_mapsize(env, STORE_MAP_LEN) ||
            mdb_env_open(env, dir, MDB_NORDAHEAD | MDB_NOTLS | MDB_RDONLY, 0600) || mdb_txn_begin(env, NULL, MDB_RDONLY, &mdb) || mdb_dbi_open(mdb, "mailbox", 0, &dbi) || mdb_txn_commit(mdb) ||
            mdb_txn_begin(env, NULL, MDB_RDONLY, &mdb))
            die("open the state", "LMDB");
        mdb_txn_reset(mdb);
        getrusage(RUSAGE_SELF, &before);
        t = run_bare(mdb, dbi, &s, false);
    } else {
        struct store *store;
        struct store_txn *txn;
        struct err err = {0};
        if (store_open(dir, &(struct store_options){.read_only = true}, &store, &err) || store_read_begin(store, &txn, &err))
            die("open the state", err.text);
        store_read_reset(txn);
        getrusage(RUSAGE_SELF, &before);
        t = run_ours(txn, &s, false, true);
    }
    getrusage(RUSAGE_SELF, &after);
    printf("%.0f %ld\n", t / (double)s.n * 1e9, after.ru_majflt - before.ru_majflt);
    return 0;
}

static void cold(const char *self, const char *dir)
{
    static double took[2][ROUNDS_MAX], ratio[ROUNDS_MAX], faults[2][ROUNDS_MAX];
    static const enum kind kinds[2] = {BARE, COPY};
    bool all = true;
    for (unsigned long round = 0; round < options.rounds; round++) {
        for (unsigned turn = 0; turn < 2; turn++) {
            unsigned which = (turn + (unsigned)round) % 2;
            char command[5000], line[100];
            all &= cache_drop(dir);
            /* The seed differs between the two: what one has read stays out of the other's way even where the cache couldn't be dropped. */
            snprintf(command, sizeof command, "'%s' --child %s --seed %lu --mailboxes %lu --lookups %lu --dir '%s'", self, kind_names[kinds[which]], 2 * round + turn + 100,
                     options.mailboxes, options.lookups, options.dir);
            FILE *f = popen(command, "r");
            if (!f || !fgets(line, sizeof line, f) || sscanf(line, "%lf %lf", &took[which][round], &faults[which][round]) != 2 || pclose(f))
                die("cold", command);
        }
        ratio[round] = took[1][round] / took[0][round];
    }
    printf("%lu mailboxes, cold (%s), %lu rounds of %lu lookups in fresh processes\n", options.mailboxes, all ? "the page cache dropped" : "the file's pages dropped", options.rounds,
           options.lookups);
    for (unsigned which = 0; which < 2; which++)
        printf("%-15s %7.1f us a lookup, %.2f pages read\n", kind_names[kinds[which]], median(took[which], options.rounds) / 1e3,
               median(faults[which], options.rounds) / (double)options.lookups);
    printf("ratio %.3f\n", median(ratio, options.rounds));
}

/* --- The program ----------------------------------------------------------------------------------------------------------------------- */

static unsigned long number(const char *text)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    if (end == text || *end)
        die("not a number", text);
    return v;
}

static void remove_state(void)
{
    char path[4096];
    static const char *const files[] = {"gen-1/state/data.mdb", "gen-1/state/lock.mdb", "gen-1/state", "gen-1", "page"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", options.dir, files[i]);
        remove(path);
    }
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"mailboxes", 1, NULL, 'n'}, {"dir", 1, NULL, 'd'}, {"keep", 0, NULL, 'k'}, {"lookups", 1, NULL, 'l'}, {"rounds", 1, NULL, 'r'},
                                          {"commits", 1, NULL, 'w'}, {"cold", 0, NULL, 'c'}, {"ratio-max", 1, NULL, 'm'}, {"child", 1, NULL, 'C'}, {"seed", 1, NULL, 's'}, {0}};
    unsigned long seed = 1;
    char made[] = "/tmp/raftdir-bench-XXXXXX", dir[4000];
    struct stat st;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (c) {
        case 'n': options.mailboxes = number(optarg); break;
        case 'd': options.dir = optarg; break;
        case 'k': options.keep = true; break;
        case 'l': options.lookups = number(optarg); break;
        case 'r': options.rounds = number(optarg); break;
        case 'w': options.commits_ms = number(optarg); break;
        case 'c': options.cold = true; break;
        case 'm': options.ratio_max = strtod(optarg, NULL); break;
        case 'C': options.child = optarg; break;
        case 's': seed = number(optarg); break;
        default: return 2;
        }
    if (optind != argc || !options.mailboxes || options.mailboxes > 99000000 || options.rounds > ROUNDS_MAX)
        die("usage", "see the head of bench_lookup.c, or bench/README.md");
    if (!options.lookups)
        options.lookups = options.cold ? 5000 : 20000;
    if (!options.rounds)
        options.rounds = options.cold ? 9 : 101;
    if (!options.dir && !(options.dir = mkdtemp(made)))
        die("mkdtemp", strerror(errno));
    if ((size_t)snprintf(dir, sizeof dir, "%s/gen-1", options.dir) >= sizeof dir - 8)
        die("the directory's name", "too long");
    if (mkdir(dir, 0700) && errno != EEXIST)
        die(dir, strerror(errno));
    strcat(dir, "/state");
    if (options.child)
        return cold_child(dir, seed);
    if (stat(dir, &st)) {
        if (mkdir(dir, 0700))
            die(dir, strerror(errno));
        make_state(dir);
    } else if (count_of(dir) != options.mailboxes) {
        die(dir, "has another number of mailboxes");
    }
    int rc = 0;
    if (options.cold)
        cold(argv[0], dir);
    else
        rc = warm(dir);
    if (!options.keep) {
        remove_state();
        if (options.dir == made)
            rmdir(made);
    }
    return rc;
}
