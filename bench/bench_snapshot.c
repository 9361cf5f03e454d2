/* bench_snapshot.c - how fast the rows of an UPDATE are made: mupdate_snapshot.c over a state, without sockets; one thread.
 *
 *   bench_snapshot DIR [ROUNDS]       DIR: where a state's data.mdb is: of a stopped node, or DIR/gen-1/state of bench_lookup --keep
 *
 * For each round: all rows, the rows of one server by its index, and the same rows by a prefix that is no whole server's name. CPU time; the fastest of the rounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "raftdir/mupdate_snapshot.h"

static double now_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct mupdate_word word(const char *s)
{
    return (struct mupdate_word){s, strlen(s)};
}

static void die(const char *text)
{
    fprintf(stderr, "bench_snapshot: %s\n", text);
    exit(1);
}

static double run(struct store *store, const char *prefix, uint64_t *rows_r, uint64_t *len_r)
{
    struct mupdate_word tag = word("U01");
    struct mupdate_snapshot_filter filter = {.prefix = word(prefix)};
    struct mupdate_snapshot *snapshot = mupdate_snapshot_create(&tag, &filter);
    struct mupdate_out out = {0};
    struct err err = {0};
    _Atomic bool stop = false;
    int rc;
    *rows_r = *len_r = 0;
    double t = now_cpu();
    mupdate_snapshot_of(snapshot, store);
    do {
        uint64_t rows;
        out.len = 0;
        rc = mupdate_snapshot_piece(snapshot, MUPDATE_SNAPSHOT_LEN, &stop, &out, &rows, &err);
        *rows_r += rows;
        *len_r += out.len;
    } while (rc == 0);
    t = now_cpu() - t;
    if (rc != RAFTDIR_ENOTFOUND)
        die(err.text);
    mupdate_out_free(&out);
    mupdate_snapshot_destroy(&snapshot);
    return t;
}

static void measure(struct store *store, const char *what, const char *prefix, int rounds)
{
    uint64_t rows = 0, len = 0;
    double best = 0;
    for (int i = 0; i < rounds; i++) {
        double t = run(store, prefix, &rows, &len);
        if (i == 0 || t < best)
            best = t;
    }
    printf("%-24s %9llu rows %7.1f MB %8.3f s %10.0f rows/s %7.0f ns/row\n", what, (unsigned long long)rows, (double)len / 1e6, best, (double)rows / best,
           rows ? best * 1e9 / (double)rows : 0.0);
}

int main(int argc, char **argv)
{
    struct store *store;
    struct store_txn *txn;
    struct store_scan *scan;
    struct store_mailbox m;
    struct err err = {0};
    if (argc < 2)
        die("usage: bench_snapshot DIR [ROUNDS]");
    int rounds = argc > 2 ? atoi(argv[2]) : 5;
    char index_prefix[SERVER_LEN_MAX + 2], prefix[SERVER_LEN_MAX + 2];
    if (store_open(argv[1], &(struct store_options){.read_only = true}, &store, &err) || store_read_begin(store, &txn, &err) || store_list_begin(NULL, NULL, &scan, &err) ||
        store_scan_next(scan, txn, &m, NULL, &err))
        die(*err.text ? err.text : "an empty state");
    snprintf(index_prefix, sizeof index_prefix, "%.*s!", (int)m.server.len, m.server.s);
    snprintf(prefix, sizeof prefix, "%.*s", (int)m.server.len - 1, m.server.s);
    store_scan_end(&scan);
    store_read_end(&txn);
    measure(store, "all", "", rounds);
    measure(store, "a server, by its index", index_prefix, rounds);
    measure(store, "a prefix", prefix, rounds);
    store_close(&store);
    return 0;
}
