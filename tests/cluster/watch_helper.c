/* watch_helper.c - for tests/cluster/watch: random changes, and copies of the directory that are kept by list and watch alone. RAFTDIR_ENDPOINTS, RAFTDIR_CA and so on say
 * where the cluster is.
 *
 *   watch_helper load SEED SECONDS TAG           random operations; prints "INCARNATION INDEX DONE-WRITES" at the end. Fails when a write ends otherwise than done or refused
 *   watch_helper bulk WRITES BYTES TAG               so many mailboxes with a field of so many bytes, as fast as it goes
 *   watch_helper copy OUT STOP PREFIX SERVER PARTITION RESERVED
 *       holds a copy until the file STOP names an index ("INCARNATION INDEX") and everything up to there was told; then writes it to OUT, a line a mailbox, sorted,
 *       and prints "EVENTS LISTS". Positions that don't ascend strictly, or an event outside of the filter, end it with status 4; what a node must never say, with 5. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uthash.h>
#include "include/raftdir.h"

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static raftdir *handle(void)
{
    struct raftdir_options o;
    raftdir *d;
    char text[256];
    raftdir_options_init(&o);
    o.timeout_ms = 20000;
    if (raftdir_open(&o, &d, text, sizeof text) < 0) {
        fprintf(stderr, "open: %s\n", text);
        exit(2);
    }
    return d;
}

/* --- Load ------------------------------------------------------------------------------------------------------------------------- */

static uint64_t rnd;
static unsigned below(unsigned n)
{
    rnd ^= rnd << 13;
    rnd ^= rnd >> 7;
    rnd ^= rnd << 17;
    return (unsigned)((rnd >> 11) % n);
}

static const char *tag;
static const char *user(char buf[64])
{
    snprintf(buf, 64, "user.%s%u", tag, below(12));
    return buf;
}
static const char *name(char buf[64])
{
    int n = snprintf(buf, 64, "user.%s%u", tag, below(12));
    for (unsigned i = below(3); i; i--)
        n += snprintf(buf + n, 64 - (size_t)n, ".f%u", below(4));
    return buf;
}

static int one(raftdir *d, const char *history)
{
    static const char *const servers[] = {"be1", "be2", "be3"}, *const partitions[] = {"p1", "p2"};
    const char *server = servers[below(3)], *partition = partitions[below(2)];
    char a[64], b[64], rights[24];
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    switch (below(12)) {
    case 0:
    case 1:
    case 2:
    case 3:
        m.name = name(a);
        m.server = server;
        m.partition = partition;
        m.acl = "anna\tlrswipkxtecda\t";
        m.name_history = history;
        return raftdir_put(d, &m, NULL);
    case 4: return raftdir_rename(d, user(a), user(b), 1, NULL, NULL, NULL);
    case 5: return raftdir_rename(d, name(a), name(b), (int)below(2), below(2) ? server : NULL, partition, NULL);
    case 6: return raftdir_delete(d, name(a), below(4) == 0, NULL);
    case 7:
        snprintf(rights, sizeof rights, "lrs%s", below(2) ? "wip" : "");
        return raftdir_setacl_one(d, name(a), below(2) ? "anyone" : "anna", rights, NULL);
    case 8: return raftdir_move_begin(d, name(a), server, partition, 1, NULL);
    case 9: return below(3) ? raftdir_move_commit(d, name(a), 1, NULL) : raftdir_move_abort(d, name(a), 1, NULL);
    case 10: return raftdir_reserve(d, name(a), server, partition, "t", 1, 1 + below(3000), NULL);
    default: return raftdir_deactivate(d, name(a), NULL, NULL, "t", 1, NULL);
    }
}

static int load(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    rnd = strtoull(argv[0], NULL, 10) * 2654435769u + 1;
    uint64_t until = now_ms() + strtoull(argv[1], NULL, 10) * 1000, done = 0;
    tag = argv[2];
    raftdir *d = handle();
    char history[64];
    while (now_ms() < until) {
        snprintf(history, sizeof history, "[\"%u\"]", below(1000000));
        int rc = one(d, history);
        done += rc == 0;
        switch (rc) {
        case 0:
        case RAFTDIR_ENOTFOUND:
        case RAFTDIR_EEXIST:
        case RAFTDIR_ECONFLICT:
        case RAFTDIR_ERESERVED:
        case RAFTDIR_EOTHERSTORE:
        case RAFTDIR_EBUSY:
        case RAFTDIR_EINVAL:
            break;
        default:
            fprintf(stderr, "load: %s: %s\n", raftdir_errname(rc), raftdir_message(d));
            return 1;
        }
    }
    /* All that was done, by whomever. */
    struct raftdir_answer answer;
    raftdir_set_level(d, RAFTDIR_LINEARIZABLE);
    if (raftdir_barrier(d, 0) < 0 || raftdir_answer(d, &answer) < 0) {
        fprintf(stderr, "barrier: %s\n", raftdir_message(d));
        return 1;
    }
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", answer.incarnation, answer.index, done);
    raftdir_close(&d);
    return 0;
}

static void on_written(void *data, int code, const char *message, const struct raftdir_result *result)
{
    (void)result;
    if (code == 0)
        return;
    fprintf(stderr, "bulk: %s: %s\n", raftdir_errname(code), message);
    *(int *)data = 1;
}

static int bulk(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    unsigned n = (unsigned)strtoul(argv[0], NULL, 10), len = (unsigned)strtoul(argv[1], NULL, 10);
    raftdir *d = handle();
    raftdir_batch *b = raftdir_batch_create();
    char *history = calloc(1, len + 64), key[64];
    struct raftdir_mailbox m;
    int failed = 0;
    if (!b || !history)
        return 2;
    for (unsigned i = 0; i < n; i++) {
        raftdir_mailbox_init(&m);
        snprintf(key, sizeof key, "user.%s.b%u", argv[2], i % 50);
        snprintf(history, len + 64, "[\"%0*u\"]", (int)len, i);
        m.name = key;
        m.server = "be1";
        m.name_history = history;
        raftdir_batch_clear(b);
        if (raftdir_batch_add_put(b, &m) < 0 || raftdir_submit(d, b, on_written, &failed) < 0) {
            fprintf(stderr, "bulk: %s\n", raftdir_message(d));
            return 1;
        }
    }
    int rc = raftdir_drain(d);
    raftdir_batch_destroy(&b);
    raftdir_close(&d);
    free(history);
    return rc < 0 || failed;
}

/* --- A copy ---------------------------------------------------------------------------------------------------------------------------- */

struct row {
    UT_hash_handle hh;
    char *text; /* as it is printed */
    char name[];
};
static struct row *rows;
static struct raftdir_watch_filter filter;

static void drop(const char *key)
{
    struct row *r;
    HASH_FIND_STR(rows, key, r);
    if (!r)
        return;
    HASH_DEL(rows, r);
    free(r->text);
    free(r);
}

static void outside(const char *what, const char *key)
{
    fprintf(stderr, "%s is not in the filter: %s\n", what, key);
    exit(4);
}

static void put(const char *key, const struct raftdir_mailbox *m)
{
    if (strcmp(key, m->name) != 0 || (filter.prefix && strncmp(key, filter.prefix, strlen(filter.prefix)) != 0) || (filter.server && strcmp(filter.server, m->server) != 0) ||
        (filter.partition && strcmp(filter.partition, m->partition) != 0) || (m->reserved && !filter.reserved))
        outside("mailbox", key);
    drop(key);
    struct row *r = calloc(1, sizeof *r + strlen(key) + 1);
    if (!r || asprintf(&r->text, "%s|%s|%s|%d|%" PRIu64 "|%s|%s", key, m->server, m->partition, m->reserved, m->generation, m->moving_server, m->acl) < 0)
        abort();
    memcpy(r->name, key, strlen(key));
    HASH_ADD_STR(rows, name, r);
}

static int by_text(struct row *a, struct row *b)
{
    return strcmp(a->text, b->text);
}

static bool behind(const struct raftdir_position *a, const struct raftdir_position *b)
{
    return b->index > a->index || (b->index == a->index && b->done > a->done);
}

static void list_all(raftdir *d, struct raftdir_position *position)
{
    struct raftdir_filter f;
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    raftdir_filter_init(&f);
    f.prefix = filter.prefix;
    f.server = filter.server;
    f.partition = filter.partition;
    f.reserved = filter.reserved;
    for (int tries = 0;; tries++) {
        struct row *r, *next;
        HASH_ITER(hh, rows, r, next) {
            drop(r->name);
        }
        int rc = raftdir_list_open(d, &f, &l);
        while (rc >= 0 && (rc = raftdir_list_next(l, &m)) > 0)
            put(m->name, m);
        if (rc == 0 && raftdir_list_position(l, position) == 0) {
            raftdir_list_close(&l);
            return;
        }
        fprintf(stderr, "list: %s\n", raftdir_message(d));
        if (l)
            raftdir_list_close(&l);
        if (tries == 10)
            exit(3);
    }
}

/* 1: STOP names an index that `p` has reached. */
static bool reached(const char *stop, const struct raftdir_position *p)
{
    uint64_t incarnation, index;
    FILE *f = fopen(stop, "r");
    if (!f)
        return false;
    bool is = fscanf(f, "%" SCNu64 " %" SCNu64, &incarnation, &index) == 2 && incarnation == p->incarnation && (p->index > index || (p->index == index && p->done == RAFTDIR_DONE_ALL));
    fclose(f);
    return is;
}

static int copy(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    struct raftdir_position at;
    uint64_t events = 0, lists = 1, quiet_since = now_ms();
    raftdir_watch *w;
    raftdir_watch_filter_init(&filter);
    filter.prefix = *argv[2] ? argv[2] : NULL;
    filter.server = *argv[3] ? argv[3] : NULL;
    filter.partition = *argv[4] ? argv[4] : NULL;
    filter.reserved = atoi(argv[5]);
    filter.progress_ms = 200;
    raftdir *d = handle();
    list_all(d, &at);
    if (raftdir_watch_open(d, &filter, &at, &w) < 0)
        return 3;
    while (!reached(argv[1], &at)) {
        const struct raftdir_event *e;
        struct raftdir_position p;
        int rc = raftdir_watch_next(w, 100, &e);
        if (rc == RAFTDIR_ECOMPACTED) {
            raftdir_watch_close(&w);
            list_all(d, &at);
            lists++;
            if (raftdir_watch_open(d, &filter, &at, &w) < 0)
                return 3;
            continue;
        }
        if (rc == RAFTDIR_EPROTO || rc == RAFTDIR_EINVAL || rc == RAFTDIR_EFOREIGN) {
            fprintf(stderr, "watch: %s\n", raftdir_message(d));
            return 5;
        }
        if (rc < 0 && now_ms() - quiet_since > 40000) {
            fprintf(stderr, "nothing was told for 40 s: %s\n", raftdir_message(d));
            return 3;
        }
        if (rc < 0)
            continue;
        quiet_since = now_ms();
        raftdir_watch_position(w, &p);
        if (!behind(&at, &e->position) || behind(&p, &e->position)) {
            fprintf(stderr, "event at %" PRIu64 ":%u behind one at %" PRIu64 ":%u\n", e->position.index, e->position.done, at.index, at.done);
            return 4;
        }
        at = e->position;
        if (e->kind == RAFTDIR_EVENT_PROGRESS)
            continue;
        events++;
        if (*e->old_name)
            drop(e->old_name);
        if (e->kind == RAFTDIR_EVENT_RESERVED && !filter.reserved)
            outside("reservation", e->name);
        if (e->m)
            put(e->name, e->m);
        else
            drop(e->name);
    }
    raftdir_watch_close(&w);
    raftdir_close(&d);
    FILE *out = fopen(argv[0], "w");
    if (!out)
        return 2;
    HASH_SORT(rows, by_text);
    for (struct row *r = rows; r; r = r->hh.next)
        fprintf(out, "%s\n", r->text);
    if (fclose(out) != 0)
        return 2;
    printf("%" PRIu64 " %" PRIu64 "\n", events, lists);
    struct row *r, *next;
    HASH_ITER(hh, rows, r, next) {
        drop(r->name);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "load"))
        return load(argc - 2, argv + 2);
    if (argc > 1 && !strcmp(argv[1], "bulk"))
        return bulk(argc - 2, argv + 2);
    if (argc > 1 && !strcmp(argv[1], "copy"))
        return copy(argc - 2, argv + 2);
    fprintf(stderr, "see the head of watch_helper.c\n");
    return 2;
}
