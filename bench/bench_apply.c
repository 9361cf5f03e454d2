/* bench_apply.c - how many mailboxes a second apply takes on one core, and how fast they are found again: puts in batches as an import makes them,
 * the same again (nothing changes), single creates as backends make them, lookups with a renewed transaction each, a list, a verify.
 *
 *   bench_apply [mailboxes] [directory]     default: 100000 /tmp */
#include <raft.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "raftdir/apply.h"
#include "raftdir/op.h"

#define PUTS_PER_REQUEST 200
#define ENTRIES_PER_BATCH 16

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

/* The i-th mailbox: twenty for each user, in several domains, three ACL entries, as a site has them. */
static void name_of(unsigned long i, char name[128])
{
    snprintf(name, 128, "d%02lu.example!user.u%07lu.folder%02lu", i / 20 % 50, i / 20, i % 20);
}

static struct entry *make_entry(uint64_t index, unsigned long first, unsigned n, unsigned per_request, unsigned long *op)
{
    static struct op_packed packed[4096];
    struct err err = {0};
    unsigned requests = 0;
    for (unsigned i = 0; i < n;) {
        static char name[PUTS_PER_REQUEST][128], acl[PUTS_PER_REQUEST][256], uid[PUTS_PER_REQUEST][32];
        static Raftdir__Log__Op ops[PUTS_PER_REQUEST], *ptrs[PUTS_PER_REQUEST];
        static Raftdir__Log__Put puts[PUTS_PER_REQUEST];
        static Raftdir__Log__Mailbox mailboxes[PUTS_PER_REQUEST];
        static Raftdir__Log__Location location[PUTS_PER_REQUEST];
        static char server[PUTS_PER_REQUEST][32];
        unsigned k = 0;
        for (; k < per_request && i < n; k++, i++) {
            unsigned long m = first + i;
            name_of(m, name[k]);
            snprintf(acl[k], sizeof acl[k], "u%07lu@d%02lu.example\tlrswipkxtecdan\tgroup:staff%02lu\tlrs\tu%07lu@d%02lu.example\tlr\t", m / 20,
                     m / 20 % 50, m / 20 % 50, m / 20 / 2, m / 20 % 50);
            snprintf(uid[k], sizeof uid[k], "uid%016lx", m * 0x9E3779B97F4A7C15ul);
            snprintf(server[k], sizeof server[k], "imap%02lu.example.net", m / 20 % 8);
            raftdir__log__location__init(&location[k]);
            location[k].server = server[k];
            location[k].partition = "p1";
            raftdir__log__mailbox__init(&mailboxes[k]);
            mailboxes[k].name = name[k];
            mailboxes[k].location = &location[k];
            mailboxes[k].acl = acl[k];
            mailboxes[k].uniqueid = uid[k];
            mailboxes[k].mbtype = "e";
            raftdir__log__put__init(&puts[k]);
            puts[k].mailbox = &mailboxes[k];
            raftdir__log__op__init(&ops[k]);
            ops[k].op_case = RAFTDIR__LOG__OP__OP_PUT;
            ops[k].put = &puts[k];
            ptrs[k] = &ops[k];
        }
        Raftdir__Log__Request r = RAFTDIR__LOG__REQUEST__INIT;
        uint8_t id[OP_ID_LEN] = {0};
        *op += 1;
        memcpy(id, op, sizeof *op);
        r.op_id = (ProtobufCBinaryData){OP_ID_LEN, id};
        r.expires_ms = 600000;
        r.identity = "unix:0";
        r.ops = ptrs;
        r.n_ops = k;
        packed[requests].len = raftdir__log__request__get_packed_size(&r);
        uint8_t *data = malloc(packed[requests].len);
        if (!data)
            exit(4);
        raftdir__log__request__pack(&r, data);
        packed[requests++].data = data;
    }
    uint8_t *data;
    size_t len;
    if (op_entry_pack(1, 1000, 0, packed, requests, &data, &len, &err))
        die("pack", &err);
    struct entry *e = entry_create(index, 1, RAFT_COMMAND, data, (uint32_t)len);
    free(data);
    for (unsigned i = 0; i < requests; i++)
        free((void *)(uintptr_t)packed[i].data);
    return e;
}

/* Applies n mailboxes from `first` on; packing isn't counted. */
static double run(struct store *store, uint64_t *index, unsigned long first, unsigned long n, unsigned per_entry, unsigned per_request, unsigned long *op)
{
    double spent = 0;
    for (unsigned long at = 0; at < n;) {
        struct entry *entries[ENTRIES_PER_BATCH];
        unsigned k = 0;
        for (; k < ENTRIES_PER_BATCH && at < n; k++) {
            unsigned some = n - at < per_entry ? (unsigned)(n - at) : per_entry;
            entries[k] = make_entry(++*index, first + at, some, per_request, op);
            at += some;
        }
        struct apply_batch *b = apply_batch_create(entries, k);
        double t = now();
        apply_batch_run(store, b);
        spent += now() - t;
        if (b->status)
            die("apply", &b->err);
        apply_batch_destroy(&b);
        for (unsigned i = 0; i < k; i++)
            entry_unref(entries[i]);
    }
    return spent;
}

int main(int argc, char **argv)
{
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000, op = 0;
    char dir[256], path[300];
    struct err err = {0};
    struct store *store;
    uint64_t index = 0;
    snprintf(dir, sizeof dir, "%s/raftdir-bench-XXXXXX", argc > 2 ? argv[2] : "/tmp");
    if (!mkdtemp(dir) || store_open(dir, NULL, &store, &err))
        die("open", &err);
    double t = run(store, &index, 0, n, PUTS_PER_REQUEST, PUTS_PER_REQUEST, &op);
    printf("put, %d in a request, %d entries in a commit: %.0f mailboxes/s\n", PUTS_PER_REQUEST, ENTRIES_PER_BATCH, (double)n / t);
    t = run(store, &index, 0, n, PUTS_PER_REQUEST, PUTS_PER_REQUEST, &op);
    printf("the same again: %.0f mailboxes/s\n", (double)n / t);
    t = run(store, &index, n, n / 4, 64, 1, &op);
    printf("put, one in a request, %d in a commit: %.0f mailboxes/s\n", 64 * ENTRIES_PER_BATCH, (double)(n / 4) / t);
    struct store_txn *txn;
    struct store_mailbox m;
    if (store_read_begin(store, &txn, &err))
        die("read", &err);
    t = now();
    uint64_t x = 1;
    for (unsigned long i = 0; i < n; i++) {
        char name[128];
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        name_of((x >> 33) % n, name);
        if (store_read_renew(txn, &err) || store_lookup(txn, name, strlen(name), &m, &err))
            die("lookup", &err);
    }
    printf("lookup, a transaction each: %.0f/s\n", (double)n / (now() - t));
    struct store_scan *scan;
    unsigned long rows = 0;
    t = now();
    if (store_list_begin(NULL, NULL, &scan, &err))
        die("list", &err);
    while (store_scan_next(scan, txn, &m, NULL, &err) == 0)
        rows++;
    printf("list: %.0f rows/s\n", (double)rows / (now() - t));
    store_scan_end(&scan);
    struct acl_subject who = {.user = "u0000100@d00.example"};
    rows = 0;
    t = now();
    for (int i = 0; i < 1000; i++) {
        if (store_visible_begin(&who, acl_right('l'), "*", NULL, &scan, &err))
            die("visible", &err);
        while (store_scan_next(scan, txn, &m, NULL, &err) == 0)
            rows++;
        store_scan_end(&scan);
    }
    printf("visible: %.0f questions/s of %lu rows\n", 1000 / (now() - t), rows / 1000);
    uint8_t digest[16];
    uint64_t problems;
    t = now();
    if (store_verify(txn, NULL, digest, &problems, &err))
        die("verify", &err);
    printf("verify: %.0f mailboxes/s, %lu problems\n", (double)(n + n / 4) / (now() - t), (unsigned long)problems);
    printf("%.0f bytes of map a mailbox\n", (double)store_used_len(store) / (double)(n + n / 4));
    store_read_end(&txn);
    store_close(&store);
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/lock.mdb", dir);
    unlink(path);
    rmdir(dir);
    return 0;
}
