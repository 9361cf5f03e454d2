/* client_load.c - many clients of libraftdir that write while a test does something to the cluster; what each began, and what it was told when, is kept.
 *
 *   client_load --endpoints LIST [--clients N] [--seconds S] --prefix P --history FILE --journal FILE [--probe ENDPOINT]... [--stale-reader ENDPOINT]
 *   client_load --check JOURNAL --endpoints LIST --prefix P
 *
 * Each client is a thread with a handle of its own, in a closed loop with pauses of up to PAUSE_US. It creates mailboxes with names of its own, changes some shared ones
 * (create, put, setacl, delete), and looks those up at level linearizable. All of it goes to the history, for linear_check; the creations also to the journal.
 * --probe: one more writer that uses this endpoint alone (give all nodes): with the clients they tell how long nobody got anything written.
 * --stale-reader: a fault planted on purpose: reads at level local, noted as if they were linearizable.
 *
 * Says "begun" on its standard error when all of them have been answered once; the seconds count from there. Then prints one line of JSON. cluster_gap_ms: the longest time without a write acknowledged to anybody; client_gap_ms: the longest time that any one client waited
 * for an answer; both after the clients have all begun. ordinary_ms: what the clients' operations took before that gap at most. --check: every acknowledged creation is there exactly once (with the generation that the client was told),
 * every uncertain one at most once, and nothing else has the prefix.
 * Exit status: 0 fine; 1 --check found something, or the load did nothing; 2 usage, or not to be told. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "tests/linear.h"

#define CLIENTS_MAX 256
#define PROBES_MAX 8
#define SHARED 48          /* mailboxes that all clients change */
#define PAUSE_US 30000     /* at most, between two operations of a client */
#define START_TIMEOUT_S 20
#define SETTLE_MS 300      /* after the beginning, second connections are made */
#define PROBE_PAUSE_US 2000
#define TIMEOUT_MS 10000
#define PROBE_TIMEOUT_MS 2000 /* the one at the node that is gone is not waited for longer */
#define NS_MS 1000000ull

enum role { CLIENT, PROBE, STALE_READER };

/* A creation with a name of its own. */
struct made {
    char name[LINEAR_KEY_LEN + 1];
    uint64_t value, generation;
    bool uncertain;
};

struct worker {
    unsigned number;
    enum role role;
    const char *endpoints;
    pthread_t thread;
    uint64_t rng, written;
    struct linear_op *ops;
    size_t ops_n, ops_room;
    struct made *made;
    size_t made_n, made_room;
    uint64_t first_ns;
    unsigned failed;
    char problem[300];     /* of the last failed one */
};

static const char *endpoints, *prefix = "load", *history_path, *journal_path, *check_path, *probes[PROBES_MAX], *stale_at;
static unsigned clients_n = 64, probes_n;
static double seconds = 4;
static atomic_bool stop;
static atomic_uint answered; /* workers that have been, once */

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void *need(void *p)
{
    if (!p) {
        fprintf(stderr, "client_load: out of memory\n");
        exit(2);
    }
    return p;
}

static uint32_t below(struct worker *w, uint32_t n)
{
    w->rng ^= w->rng << 13; /* xorshift64 */
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return (uint32_t)((w->rng >> 16) % n);
}

static raftdir *open_handle(const char *list, bool alone)
{
    struct raftdir_options o;
    char text[300];
    raftdir *d;
    raftdir_options_init(&o);
    o.endpoints = list;
    o.timeout_ms = alone && !check_path ? PROBE_TIMEOUT_MS : TIMEOUT_MS;
    o.level = RAFTDIR_LINEARIZABLE;
    o.only_these = alone;
    o.local_dir = "";
    if (raftdir_open(&o, &d, text, sizeof text) < 0) {
        fprintf(stderr, "client_load: %s\n", text);
        exit(2);
    }
    return d;
}

/* --- One operation ------------------------------------------------------------------------------------------------------------------- */

static enum linear_outcome outcome_of(enum linear_kind kind, int rc)
{
    switch (rc) {
    case 0:
        return LINEAR_DONE;
    case RAFTDIR_ENOTFOUND:
        return LINEAR_NOT_FOUND;
    case RAFTDIR_EEXIST:
        return LINEAR_EXISTS;
    case RAFTDIR_EUNCERTAIN:
        return LINEAR_UNCERTAIN;
    }
    return kind == LINEAR_LOOKUP ? LINEAR_UNCERTAIN : LINEAR_NOT_DONE; /* the library says surely not done */
}

static void mailbox(struct raftdir_mailbox *m, const char *name, const char *acl)
{
    raftdir_mailbox_init(m);
    m->name = name;
    m->server = "imap01.example.net";
    m->partition = "p1";
    m->acl = acl;
}

static void run_one(struct worker *w, raftdir *d, enum linear_kind kind, const char *name, bool own)
{
    if (w->ops_n == w->ops_room) {
        w->ops_room = w->ops_room ? 2 * w->ops_room : 256;
        w->ops = need(realloc(w->ops, w->ops_room * sizeof *w->ops));
    }
    struct linear_op *op = &w->ops[w->ops_n++];
    struct raftdir_mailbox m;
    const struct raftdir_mailbox *found;
    const struct raftdir_result *r = NULL;
    char acl[48] = "";
    int rc;
    memset(op, 0, sizeof *op);
    snprintf(op->key, sizeof op->key, "%s", name);
    op->client = w->number;
    op->kind = kind;
    if (kind == LINEAR_CREATE || kind == LINEAR_PUT || kind == LINEAR_SETACL) {
        op->value = (uint64_t)(w->number + 1) << 32 | ++w->written;
        snprintf(acl, sizeof acl, "v%llu\tl\t", (unsigned long long)op->value); /* the value is an identifier of the ACL */
    }
    mailbox(&m, name, acl);
    op->invoke_ns = now_ns();
    switch (kind) {
    case LINEAR_CREATE:
        rc = raftdir_create(d, &m, &r);
        break;
    case LINEAR_PUT:
        rc = raftdir_put(d, &m, &r);
        break;
    case LINEAR_SETACL:
        rc = raftdir_setacl(d, name, acl, &r);
        break;
    case LINEAR_DELETE:
        rc = raftdir_delete(d, name, 0, &r);
        break;
    default:
        rc = raftdir_lookup(d, name, &found);
        break;
    }
    op->return_ns = now_ns();
    op->outcome = outcome_of(kind, rc);
    if (kind == LINEAR_LOOKUP && rc == 0) {
        unsigned long long value;
        if (sscanf(found->acl, "v%llu\t", &value) == 1 && value)
            op->value = value;
        else
            op->value = UINT64_MAX; /* nobody wrote that */
    }
    if (rc == 0 && !w->first_ns) {
        w->first_ns = op->return_ns;
        atomic_fetch_add(&answered, 1);
    }
    if (op->outcome == LINEAR_NOT_DONE || op->outcome == LINEAR_UNCERTAIN) {
        w->failed++;
        snprintf(w->problem, sizeof w->problem, "%s: %.250s", raftdir_errname(rc), raftdir_message(d));
    }
    if (!own || (rc != 0 && rc != RAFTDIR_EUNCERTAIN))
        return;
    if (w->made_n == w->made_room) {
        w->made_room = w->made_room ? 2 * w->made_room : 256;
        w->made = need(realloc(w->made, w->made_room * sizeof *w->made));
    }
    struct made *made = &w->made[w->made_n++];
    memset(made, 0, sizeof *made);
    memcpy(made->name, op->key, sizeof made->name);
    made->value = op->value;
    made->uncertain = rc != 0;
    made->generation = rc == 0 && r && r->ops_n == 1 ? r->ops[0].generation : 0;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    raftdir *d = open_handle(w->endpoints, w->role != CLIENT);
    char name[LINEAR_KEY_LEN + 1];
    if (w->role == STALE_READER)
        raftdir_set_level(d, RAFTDIR_LOCAL);
    while (!atomic_load(&stop)) {
        uint32_t what = below(w, 100);
        bool own = w->role == PROBE || (w->role == CLIENT && what < 50);
        if (own)
            snprintf(name, sizeof name, "user.%s-c%un%zu", prefix, w->number, w->ops_n);
        else
            snprintf(name, sizeof name, "user.%s-shared%u", prefix, below(w, SHARED));
        enum linear_kind kind = own || what < 58 ? LINEAR_CREATE : what < 66 ? LINEAR_PUT : what < 73 ? LINEAR_SETACL : what < 80 ? LINEAR_DELETE : LINEAR_LOOKUP;
        run_one(w, d, w->role == STALE_READER ? LINEAR_LOOKUP : kind, name, own);
        usleep(below(w, w->role == CLIENT ? PAUSE_US : PROBE_PAUSE_US));
    }
    raftdir_close(&d);
    return NULL;
}

/* --- What came of it -------------------------------------------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static bool is_answer(const struct linear_op *op)
{
    return op->outcome == LINEAR_DONE || op->outcome == LINEAR_NOT_FOUND || op->outcome == LINEAR_EXISTS;
}

struct gap {
    uint64_t length, from;
    unsigned client;
};

static void wider(struct gap *g, uint64_t from, uint64_t to, unsigned client)
{
    if (to > from && to - from > g->length)
        *g = (struct gap){to - from, from, client};
}

static int report(const struct worker *ws, unsigned n)
{
    uint64_t begun = 0, *acks;
    size_t ops = 0, acks_n = 0, uncertain = 0, failed = 0, reads = 0;
    struct gap client = {0}, cluster = {0};
    const char *problem = "";
    for (unsigned i = 0; i < n; i++) {
        ops += ws[i].ops_n;
        if (ws[i].role != STALE_READER && ws[i].first_ns > begun)
            begun = ws[i].first_ns;
        if (ws[i].role != STALE_READER && !ws[i].first_ns) {
            printf("{\"error\":\"worker %u was never answered: %s\"}\n", i, ws[i].problem);
            return 1;
        }
        if (ws[i].role == CLIENT && *ws[i].problem)
            problem = ws[i].problem;
    }
    acks = need(calloc(ops + 1, sizeof *acks));
    for (unsigned i = 0; i < n; i++) {
        uint64_t from = 0; /* since when it has been waiting for an answer, to whatever */
        for (size_t k = 0; k < ws[i].ops_n; k++) {
            const struct linear_op *op = &ws[i].ops[k];
            from = from ? from : op->invoke_ns;
            uncertain += op->kind != LINEAR_LOOKUP && op->outcome == LINEAR_UNCERTAIN;
            reads += op->kind == LINEAR_LOOKUP;
            if (!is_answer(op)) {
                failed += ws[i].role == CLIENT;
                continue;
            }
            if (op->kind != LINEAR_LOOKUP && ws[i].role != STALE_READER)
                acks[acks_n++] = op->return_ns;
            if (ws[i].role == CLIENT && from >= begun)
                wider(&client, from, op->return_ns, i);
            from = 0;
        }
    }
    qsort(acks, acks_n, sizeof *acks, by_number);
    for (size_t k = 1; k < acks_n; k++)
        if (acks[k - 1] >= begun)
            wider(&cluster, acks[k - 1], acks[k], 0);
    /* What clients wait for an answer while nothing is wrong: what came before the cluster's gap. */
    size_t waits_n = 0;
    for (unsigned i = 0; i < n && ws[i].role == CLIENT; i++)
        for (size_t k = 0; k < ws[i].ops_n; k++)
            if (is_answer(&ws[i].ops[k]) && ws[i].ops[k].invoke_ns >= begun + SETTLE_MS * NS_MS && ws[i].ops[k].return_ns <= cluster.from)
                acks[waits_n++] = ws[i].ops[k].return_ns - ws[i].ops[k].invoke_ns; /* of those there is one for each operation at most */
    qsort(acks, waits_n, sizeof *acks, by_number);
    uint64_t ordinary = waits_n ? acks[waits_n - 1] : 0;
    printf("{\"operations\":%zu,\"acknowledged\":%zu,\"reads\":%zu,\"uncertain\":%zu,\"failed\":%zu,\"cluster_gap_ms\":%llu,\"client_gap_ms\":%llu,\"ordinary_ms\":%llu,\"client\":%u,"
           "\"client_from_ms\":%lld,\"last_problem\":\"%s\"}\n",
           ops, acks_n, reads, uncertain, failed, (unsigned long long)(cluster.length / NS_MS), (unsigned long long)(client.length / NS_MS), (unsigned long long)(ordinary / NS_MS), client.client,
           (long long)(((int64_t)client.from - (int64_t)cluster.from) / (int64_t)NS_MS), problem);
    free(acks);
    return acks_n ? 0 : 1;
}

static FILE *open_file(const char *path, const char *mode)
{
    FILE *f = fopen(path, mode);
    if (!f) {
        fprintf(stderr, "client_load: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    return f;
}

static void close_file(FILE *f, const char *path)
{
    int failed = ferror(f);
    if (fclose(f) || failed) {
        fprintf(stderr, "client_load: %s can't be written\n", path);
        exit(2);
    }
}

static int load(void)
{
    static struct worker ws[CLIENTS_MAX + PROBES_MAX + 1];
    unsigned n = 0;
    for (unsigned i = 0; i < clients_n; i++)
        ws[n++] = (struct worker){.role = CLIENT, .endpoints = endpoints};
    for (unsigned i = 0; i < probes_n; i++)
        ws[n++] = (struct worker){.role = PROBE, .endpoints = probes[i]};
    if (stale_at)
        ws[n++] = (struct worker){.role = STALE_READER, .endpoints = stale_at};
    for (unsigned i = 0; i < n; i++) {
        ws[i].number = i;
        ws[i].rng = (now_ns() ^ (uint64_t)i << 40) | 1;
        if (pthread_create(&ws[i].thread, NULL, work, &ws[i])) {
            fprintf(stderr, "client_load: no thread\n");
            exit(2);
        }
    }
    uint64_t end = now_ns() + START_TIMEOUT_S * 1000000000ull;
    while (atomic_load(&answered) < n && now_ns() < end)
        usleep(10000);
    fprintf(stderr, "begun\n");
    end = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < end)
        usleep(10000);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < n; i++)
        pthread_join(ws[i].thread, NULL);
    FILE *h = open_file(history_path, "we"), *j = open_file(journal_path, "we");
    for (unsigned i = 0; i < n; i++) {
        for (size_t k = 0; k < ws[i].ops_n; k++)
            linear_write(h, &ws[i].ops[k]);
        for (size_t k = 0; k < ws[i].made_n; k++)
            fprintf(j, "%s %llu %llu %s\n", ws[i].made[k].name, (unsigned long long)ws[i].made[k].value, (unsigned long long)ws[i].made[k].generation,
                    ws[i].made[k].uncertain ? "uncertain" : "done");
    }
    close_file(h, history_path);
    close_file(j, journal_path);
    int rc = report(ws, n);
    for (unsigned i = 0; i < n; i++) {
        free(ws[i].ops);
        free(ws[i].made);
    }
    return rc;
}

/* --- Looking after it ---------------------------------------------------------------------------------------------------------------------- */

static int made_by_name(const void *a, const void *b)
{
    return strcmp(((const struct made *)a)->name, ((const struct made *)b)->name);
}

/* One listing has everything that there is: each of the journal must be in it as it was told, and nothing else may be. */
static int check(void)
{
    struct made *list = NULL, key;
    size_t n = 0, room = 0, there = 0, problems = 0, done = 0;
    char line[256], name[LINEAR_KEY_LEN + 1], how[16], first[200] = "";
    unsigned long long value, generation;
    FILE *f = open_file(check_path, "re");
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%63s %llu %llu %15s", name, &value, &generation, how) != 4) {
            fprintf(stderr, "client_load: %s: line %zu can't be read\n", check_path, n + 1);
            exit(2);
        }
        if (n == room) {
            room = room ? 2 * room : 4096;
            list = need(realloc(list, room * sizeof *list));
        }
        memset(&list[n], 0, sizeof *list);
        snprintf(list[n].name, sizeof list[n].name, "%s", name);
        list[n].value = value;
        list[n].generation = generation;
        list[n++].uncertain = !strcmp(how, "uncertain");
    }
    fclose(f);
    qsort(list, n, sizeof *list, made_by_name);
    bool *seen = need(calloc(n + 1, sizeof *seen));
    raftdir *d = open_handle(endpoints, true);
    struct raftdir_filter filter;
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    snprintf(name, sizeof name, "user.%s-c", prefix);
    raftdir_filter_init(&filter);
    filter.prefix = name;
    int rc = raftdir_list_open(d, &filter, &l);
    while (rc >= 0 && (rc = raftdir_list_next(l, &m)) > 0) {
        snprintf(key.name, sizeof key.name, "%s", m->name);
        struct made *at = n ? bsearch(&key, list, n, sizeof *list, made_by_name) : NULL;
        const char *why = NULL;
        char acl[48] = "";
        there++;
        if (at)
            snprintf(acl, sizeof acl, "v%llu\tl\t", (unsigned long long)at->value);
        if (!at)
            why = "is there, and nobody was told so";
        else if (seen[at - list])
            why = "is there twice";
        else if (strcmp(m->acl, acl))
            why = "has another value than was written";
        else if (!at->uncertain && m->generation != at->generation)
            why = "has another generation than its creator was told: it was done twice";
        if (at)
            seen[at - list] = true;
        if (why && !problems++)
            snprintf(first, sizeof first, "%.80s %s", m->name, why);
    }
    if (rc < 0) {
        fprintf(stderr, "client_load: list: %s\n", raftdir_message(d));
        exit(2);
    }
    raftdir_list_close(&l);
    raftdir_close(&d);
    for (size_t i = 0; i < n; i++) {
        done += !list[i].uncertain;
        if (!seen[i] && !list[i].uncertain && !problems++)
            snprintf(first, sizeof first, "%s was acknowledged and isn't there", list[i].name);
    }
    printf("{\"acknowledged\":%zu,\"uncertain\":%zu,\"there\":%zu,\"problems\":%zu,\"first\":\"%s\"}\n", done, n - done, there, problems, first);
    free(list);
    free(seen);
    return problems || !done ? 1 : 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"endpoints", 1, NULL, 'e'}, {"clients", 1, NULL, 'c'}, {"seconds", 1, NULL, 's'}, {"prefix", 1, NULL, 'p'},
                                            {"history", 1, NULL, 'h'},   {"journal", 1, NULL, 'j'}, {"probe", 1, NULL, 'P'},   {"stale-reader", 1, NULL, 'S'},
                                            {"check", 1, NULL, 'C'},     {NULL, 0, NULL, 0}};
    int o;
    bool good = true;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (o) {
        case 'e': endpoints = optarg; break;
        case 'c': clients_n = (unsigned)atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'p': prefix = optarg; break;
        case 'h': history_path = optarg; break;
        case 'j': journal_path = optarg; break;
        case 'S': stale_at = optarg; break;
        case 'C': check_path = optarg; break;
        case 'P':
            if (probes_n < PROBES_MAX)
                probes[probes_n++] = optarg;
            else
                good = false;
            break;
        default: good = false;
        }
    if (!good || optind != argc || !endpoints || strlen(prefix) > 20 || !clients_n || clients_n > CLIENTS_MAX || (!check_path && (!history_path || !journal_path))) {
        fprintf(stderr, "usage: client_load --endpoints LIST [--clients N] [--seconds S] --prefix P --history FILE --journal FILE [--probe ENDPOINT]... "
                        "[--stale-reader ENDPOINT]\n       client_load --check JOURNAL --endpoints LIST --prefix P\n");
        return 2;
    }
    return check_path ? check() : load();
}
