/* bench_load.c - a load of mailbox creates, and the check that none was lost or done twice. Uses libraftdir alone. bench/README.md tells more.
 *
 *     bench_load [--endpoints LIST] [--clients N] [--seconds T] [--rate R] [--timeout MS] [--patience MS] [--prefix P] [--journal FILE] [--spread]
 *     bench_load --check JOURNAL [--endpoints LIST]
 *
 * Load: N threads, each with its own handle, create mailboxes of unique names below user.P for T seconds. The journal has a line an operation:
 *     create NAME OUTCOME CODE START_US END_US INDEX CLIENT
 * OUTCOME: ok, uncertain, failed; times are CLOCK_MONOTONIC, so that they compare with those of whoever kills nodes meanwhile. Prints one JSON object.
 * Exit status: 0; 1: a create of a unique name was answered "exists already", so something was done twice; 2 usage.
 *
 * Check: on each of the given endpoints, after a barrier (everything done before), at local level: every acknowledged name is found by a lookup, no name that
 * surely failed is there, the list has each name once and none that the journal doesn't know; what was uncertain is the same on all nodes.
 * Prints one JSON object. Exit status: 0; 1: violations; 3: a node could not be asked. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include "include/raftdir.h"

#define CLIENTS_MAX 1024
#define NAME_LEN 128
#define TOLD_MAX 20

enum outcome { OK, UNCERTAIN, FAILED };
static const char *const outcome_names[] = {"ok", "uncertain", "failed"};

struct op {
    char name[NAME_LEN];
    enum outcome outcome;
    int code;
    uint64_t start_us, end_us, index;
};
struct client {
    pthread_t thread;
    unsigned number;
    struct op *ops;
    size_t n, size;
    int open_code;
    char open_text[256];
};

static struct {
    const char *endpoints, *prefix, *journal, *check;
    unsigned clients, timeout_ms, patience_ms;
    double seconds, rate;
    bool spread;
} opt = {.clients = 8, .seconds = 10, .timeout_ms = 30000};
static uint64_t stop_us;

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void *need(void *p)
{
    if (!p) {
        fputs("bench_load: out of memory\n", stderr);
        exit(6);
    }
    return p;
}

/* --- Load -------------------------------------------------------------------------------------------------------------- */

/* The list of endpoints, beginning with its n-th. Given. */
static char *rotated(const char *list, unsigned n)
{
    char *copy = need(strdup(list)), *words[64], *save = NULL;
    unsigned count = 0;
    for (char *w = strtok_r(copy, ", ", &save); w && count < 64; w = strtok_r(NULL, ", ", &save))
        words[count++] = w;
    char *out = need(calloc(1, strlen(list) + count + 2));
    for (unsigned i = 0; i < count; i++) {
        if (i)
            strcat(out, ",");
        strcat(out, words[(i + n) % count]);
    }
    free(copy);
    return out;
}

static void sleep_until(uint64_t us)
{
    struct timespec ts = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
        ;
}

static void *client_run(void *arg)
{
    struct client *c = arg;
    struct raftdir_options o;
    raftdir *d;
    raftdir_options_init(&o);
    const char *list = opt.endpoints ? opt.endpoints : getenv("RAFTDIR_ENDPOINTS");
    char *mine = list && *list ? rotated(list, opt.spread ? c->number : 0) : NULL;
    o.endpoints = mine;
    o.timeout_ms = opt.timeout_ms;
    o.patience_ms = opt.patience_ms;
    o.software = "bench_load";
    c->open_code = raftdir_open(&o, &d, c->open_text, sizeof c->open_text);
    free(mine);
    if (c->open_code < 0)
        return NULL;
    uint64_t next = now_us();
    for (unsigned long seq = 0; now_us() < stop_us; seq++) {
        if (c->n == c->size) {
            c->size = c->size ? 2 * c->size : 1024;
            c->ops = need(realloc(c->ops, c->size * sizeof *c->ops));
        }
        struct op *op = &c->ops[c->n++];
        struct raftdir_mailbox m;
        const struct raftdir_result *r = NULL;
        raftdir_mailbox_init(&m);
        snprintf(op->name, sizeof op->name, "user.%s.c%u-%06lu", opt.prefix, c->number, seq);
        m.name = op->name;
        m.server = "load.example.net";
        m.partition = "default";
        m.acl = "load\tlrswipkxtea\t";
        op->start_us = now_us();
        op->code = raftdir_create(d, &m, &r);
        op->end_us = now_us();
        op->index = r ? r->index : 0;
        op->outcome = op->code == 0 ? OK : op->code == RAFTDIR_EUNCERTAIN ? UNCERTAIN : FAILED;
        if (op->code < 0 && op->code != RAFTDIR_EUNCERTAIN)
            sleep_until(now_us() + 20000); /* an immediate refusal isn't repeated in a hot loop */
        if (opt.rate > 0) {
            next += (uint64_t)(1e6 / opt.rate);
            if (next > now_us())
                sleep_until(next < stop_us ? next : stop_us);
        }
    }
    raftdir_close(&d);
    return NULL;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void set(json_t *o, const char *key, double v)
{
    json_object_set_new(o, key, json_real(v));
}

static void count(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

static int load(void)
{
    struct client *clients = need(calloc(opt.clients, sizeof *clients));
    uint64_t started = now_us(), ended, n[3] = {0}, all = 0, twice = 0;
    char random_prefix[32];
    FILE *journal = NULL;
    if (!opt.prefix) {
        uint32_t r;
        if (getrandom(&r, sizeof r, 0) != sizeof r)
            r = (uint32_t)started;
        snprintf(random_prefix, sizeof random_prefix, "load-%08" PRIx32, r);
        opt.prefix = random_prefix;
    }
    if (opt.journal && !(journal = fopen(opt.journal, "w"))) {
        fprintf(stderr, "bench_load: %s: %s\n", opt.journal, strerror(errno));
        return 2;
    }
    stop_us = started + (uint64_t)(opt.seconds * 1e6);
    for (unsigned i = 0; i < opt.clients; i++) {
        clients[i].number = i;
        int e = pthread_create(&clients[i].thread, NULL, client_run, &clients[i]);
        if (e) {
            fprintf(stderr, "bench_load: thread: %s\n", strerror(e));
            exit(6);
        }
    }
    for (unsigned i = 0; i < opt.clients; i++)
        pthread_join(clients[i].thread, NULL);
    ended = now_us();
    for (unsigned i = 0; i < opt.clients; i++) {
        all += clients[i].n;
        if (clients[i].open_code < 0) {
            fprintf(stderr, "bench_load: %s\n", clients[i].open_text);
            return 2;
        }
    }
    /* Latencies of the acknowledged ones; the longest time without any acknowledgement, of one client and of all together. */
    uint64_t *latency = need(calloc(all + 1, sizeof *latency)), *acks = need(calloc(all + 2, sizeof *acks)), acks_n = 0;
    uint64_t client_gap = 0, gap = 0, gap_at = 0;
    json_t *codes = json_object();
    if (journal)
        fprintf(journal, "# bench_load 1 prefix %s started_us %" PRIu64 " ended_us %" PRIu64 "\n", opt.prefix, started, ended);
    for (unsigned i = 0; i < opt.clients; i++) {
        uint64_t last = started;
        for (size_t k = 0; k < clients[i].n; k++) {
            const struct op *op = &clients[i].ops[k];
            n[op->outcome]++;
            twice += op->code == RAFTDIR_EEXIST;
            if (op->outcome == OK) {
                latency[acks_n] = op->end_us - op->start_us;
                acks[acks_n++] = op->end_us;
                client_gap = op->end_us - last > client_gap ? op->end_us - last : client_gap;
                last = op->end_us;
            } else {
                const char *name = raftdir_errname(op->code);
                json_object_set_new(codes, name, json_integer(json_integer_value(json_object_get(codes, name)) + 1));
            }
            if (journal)
                fprintf(journal, "create %s %s %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %u\n", op->name, outcome_names[op->outcome], raftdir_errname(op->code),
                        op->start_us, op->end_us, op->index, i);
        }
        free(clients[i].ops);
    }
    qsort(latency, acks_n, sizeof *latency, by_number);
    qsort(acks, acks_n, sizeof *acks, by_number);
    for (uint64_t i = 0, last = started; i < acks_n; last = acks[i++])
        if (acks[i] - last > gap) {
            gap = acks[i] - last;
            gap_at = last;
        }
    json_t *o = json_object();
    json_object_set_new(o, "prefix", json_string(opt.prefix));
    count(o, "clients", opt.clients);
    set(o, "seconds", (double)(ended - started) / 1e6);
    count(o, "writes", all);
    count(o, "acknowledged", n[OK]);
    count(o, "uncertain", n[UNCERTAIN]);
    count(o, "failed", n[FAILED]);
    count(o, "twice", twice);
    set(o, "rate", (double)n[OK] * 1e6 / (double)(ended - started));
    set(o, "p50_ms", acks_n ? (double)latency[acks_n / 2] / 1000 : 0);
    set(o, "p99_ms", acks_n ? (double)latency[acks_n * 99 / 100] / 1000 : 0);
    set(o, "max_ms", acks_n ? (double)latency[acks_n - 1] / 1000 : 0);
    set(o, "longest_gap_ms", (double)gap / 1000);
    count(o, "longest_gap_at_us", gap_at);
    set(o, "longest_gap_of_a_client_ms", (double)client_gap / 1000);
    json_object_set_new(o, "codes", codes);
    json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(o);
    free(latency);
    free(acks);
    free(clients);
    if (journal && fclose(journal) == EOF) {
        fprintf(stderr, "bench_load: %s: %s\n", opt.journal, strerror(errno));
        return 6;
    }
    return twice ? 1 : 0;
}

/* --- Check ------------------------------------------------------------------------------------------------------------------- */

struct entry {
    char name[NAME_LEN];
    enum outcome outcome;
    uint64_t seen; /* times listed on the node that is being checked */
    int there;     /* uncertain ones: -1 not known yet, 0, 1 */
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int read_journal(struct entry **list_r, size_t *n_r, char *prefix, size_t prefix_size)
{
    FILE *in = fopen(opt.check, "r");
    char line[512];
    size_t n = 0, size = 0;
    struct entry *list = NULL;
    if (!in) {
        fprintf(stderr, "bench_load: %s: %s\n", opt.check, strerror(errno));
        return -1;
    }
    while (fgets(line, sizeof line, in)) {
        char outcome[16];
        if (*line == '#') {
            char text[NAME_LEN];
            if (sscanf(line, "# bench_load 1 prefix %120s", text) == 1)
                snprintf(prefix, prefix_size, "user.%s.", text);
            continue;
        }
        if (n == size) {
            size = size ? 2 * size : 4096;
            list = need(realloc(list, size * sizeof *list));
        }
        struct entry *e = &list[n];
        *e = (struct entry){.there = -1};
        if (sscanf(line, "create %127s %15s", e->name, outcome) != 2) {
            fprintf(stderr, "bench_load: %s: a line that can't be read: %s", opt.check, line);
            fclose(in);
            free(list);
            return -1;
        }
        e->outcome = !strcmp(outcome, "ok") ? OK : !strcmp(outcome, "uncertain") ? UNCERTAIN : FAILED;
        n++;
    }
    fclose(in);
    if (n)
        qsort(list, n, sizeof *list, by_name);
    *list_r = list;
    *n_r = n;
    return 0;
}

static json_t *told;
static uint64_t violations;

static void violation(const char *node, const char *name, const char *what)
{
    violations++;
    if (violations <= TOLD_MAX)
        json_array_append_new(told, json_pack("{s:s,s:s,s:s}", "node", node, "name", name, "what", what));
}

/* 0, or -1: the node can't be asked. */
static int check_node(raftdir *d, const char *endpoint, struct entry *list, size_t n, const char *prefix)
{
    const struct raftdir_mailbox *m;
    struct raftdir_filter f;
    raftdir_list *l;
    int rc;
    raftdir_set_level(d, RAFTDIR_LINEARIZABLE);
    if ((rc = raftdir_barrier(d, 0)) < 0)
        goto unreachable;
    raftdir_set_level(d, RAFTDIR_LOCAL);
    for (size_t i = 0; i < n; i++)
        list[i].seen = 0;
    raftdir_filter_init(&f);
    f.prefix = prefix;
    if ((rc = raftdir_list_open(d, &f, &l)) < 0)
        goto unreachable;
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        struct entry key;
        snprintf(key.name, sizeof key.name, "%s", m->name);
        struct entry *e = n ? bsearch(&key, list, n, sizeof *list, by_name) : NULL;
        if (!e)
            violation(endpoint, m->name, "unknown: nobody created it");
        else if (++e->seen > 1)
            violation(endpoint, m->name, "listed twice");
    }
    raftdir_list_close(&l);
    if (rc < 0)
        goto unreachable;
    for (size_t i = 0; i < n; i++) {
        struct entry *e = &list[i];
        rc = raftdir_lookup(d, e->name, &m);
        if (rc < 0 && rc != RAFTDIR_ENOTFOUND)
            goto unreachable;
        bool there = rc == 0;
        if (there != (e->seen > 0))
            violation(endpoint, e->name, there ? "found, but not listed" : "listed, but not found");
        if (e->outcome == OK && !there)
            violation(endpoint, e->name, "LOST: acknowledged and not there");
        if (e->outcome == FAILED && there)
            violation(endpoint, e->name, "said to be not done, and is there");
        if (e->outcome == UNCERTAIN) {
            if (e->there >= 0 && e->there != there)
                violation(endpoint, e->name, "not the same on all nodes");
            e->there = there;
        }
    }
    return 0;
unreachable:
    fprintf(stderr, "bench_load: %s: %s\n", endpoint, raftdir_message(d));
    return -1;
}

static int check(void)
{
    struct entry *list = NULL;
    size_t n = 0;
    char prefix[NAME_LEN + 8] = "user.load-";
    struct raftdir_options o;
    raftdir *d;
    char text[256];
    uint64_t by_outcome[3] = {0}, uncertain_there = 0;
    unsigned nodes = 0, unreachable = 0;
    const char *endpoint;
    if (read_journal(&list, &n, prefix, sizeof prefix) < 0)
        return 2;
    raftdir_options_init(&o);
    o.endpoints = opt.endpoints;
    o.timeout_ms = opt.timeout_ms;
    o.only_these = 1;
    o.software = "bench_load --check";
    if (raftdir_open(&o, &d, text, sizeof text) < 0) {
        fprintf(stderr, "bench_load: %s\n", text);
        return 2;
    }
    told = json_array();
    for (unsigned i = 0; (endpoint = raftdir_endpoint(d, i)); i++) {
        raftdir_use_endpoint(d, (int)i);
        if (check_node(d, endpoint, list, n, prefix) < 0)
            unreachable++;
        else
            nodes++;
    }
    raftdir_close(&d);
    for (size_t i = 0; i < n; i++) {
        by_outcome[list[i].outcome]++;
        uncertain_there += list[i].there == 1;
    }
    json_t *j = json_object();
    count(j, "nodes_checked", nodes);
    count(j, "nodes_not_reached", unreachable);
    count(j, "acknowledged", by_outcome[OK]);
    count(j, "uncertain", by_outcome[UNCERTAIN]);
    count(j, "uncertain_that_happened", uncertain_there);
    count(j, "failed", by_outcome[FAILED]);
    count(j, "violations", violations);
    json_object_set_new(j, "first_violations", told);
    json_dumpf(j, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(j);
    free(list);
    return violations ? 1 : unreachable ? 3 : 0;
}

static const char usage[] =
    "Usage: bench_load [--endpoints LIST] [--clients N] [--seconds T] [--rate R] [--timeout MS] [--patience MS] [--prefix P] [--journal FILE] [--spread]\n"
    "       bench_load --check JOURNAL [--endpoints LIST] [--timeout MS]\n"
    "  --endpoints   default: RAFTDIR_ENDPOINTS (and RAFTDIR_CA, _CERT, _KEY)\n"
    "  --rate        creates per second and client; default: as fast as it goes\n"
    "  --spread      client I prefers the I-th endpoint\n";

int main(int argc, char **argv)
{
    static const struct option options[] = {{"endpoints", required_argument, NULL, 'e'}, {"clients", required_argument, NULL, 'n'},
                                            {"seconds", required_argument, NULL, 's'},   {"rate", required_argument, NULL, 'r'},
                                            {"timeout", required_argument, NULL, 't'},   {"patience", required_argument, NULL, 'p'},
                                            {"prefix", required_argument, NULL, 'x'},    {"journal", required_argument, NULL, 'j'},
                                            {"spread", no_argument, NULL, 'S'},          {"check", required_argument, NULL, 'c'},
                                            {"help", no_argument, NULL, 'h'},            {NULL, 0, NULL, 0}};
    int o;
    while ((o = getopt_long(argc, argv, "e:h", options, NULL)) != -1)
        switch (o) {
        case 'e': opt.endpoints = optarg; break;
        case 'n': opt.clients = (unsigned)strtoul(optarg, NULL, 10); break;
        case 's': opt.seconds = strtod(optarg, NULL); break;
        case 'r': opt.rate = strtod(optarg, NULL); break;
        case 't': opt.timeout_ms = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'p': opt.patience_ms = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'x': opt.prefix = optarg; break;
        case 'j': opt.journal = optarg; break;
        case 'S': opt.spread = true; break;
        case 'c': opt.check = optarg; break;
        case 'h': fputs(usage, stdout); return 0;
        default: fputs(usage, stderr); return 2;
        }
    if (optind < argc || opt.clients < 1 || opt.clients > CLIENTS_MAX || !(opt.seconds > 0) || opt.timeout_ms < 1 ||
        (opt.prefix && strlen(opt.prefix) > 64)) {
        fputs(usage, stderr);
        return 2;
    }
    return opt.check ? check() : load();
}
