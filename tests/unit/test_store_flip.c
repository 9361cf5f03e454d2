/* test_store_flip.c - bits that flip in the state's file, anywhere (DESIGN D3): whatever is hit, no reader gets a wrong answer about a mailbox, and verify finds what
 * matters. Each flip is read by a process of its own, since a damaged tree may end it.
 *
 * Also: verify stops when it is told to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "support_store.h"

#define MAILBOXES 1500
#define FLIPS 400 /* of each kind; RAFTDIR_FLIPS: more */

#define PAGE_LEN 4096
#define HEAD_LEN 96

static struct support_store base;
static uint64_t seed;
static char names[MAILBOXES][64], acls[MAILBOXES][128];
static bool deleted[MAILBOXES];

static void build(void)
{
    struct support_arena a = {0};
    support_store_open(&base, 0);
    for (int i = 0; i < MAILBOXES; i++) {
        snprintf(names[i], sizeof names[i], "user.u%04d%s", i * 7 % MAILBOXES, i % 3 ? "" : ".sub.folder");
        snprintf(acls[i], sizeof acls[i], "u%04d\tlrswipkxtecda\tgroup:g%d\tlrs\tanyone\tl\t", i, i % 10);
        assert_int_equal(support_do(&a, &base, support_put(&a, names[i], i % 2 ? "be1" : "be2", "p1", acls[i])), 0);
        support_free(&a);
    }
    /* Free pages and old copies of pages inside, as in any state that has lived. */
    for (int i = 0; i < MAILBOXES; i += 10) {
        deleted[i] = true;
        assert_int_equal(support_do(&a, &base, support_delete(&a, names[i], false)), 0);
        support_free(&a);
    }
    for (int i = 1; i < MAILBOXES; i += 10) {
        snprintf(acls[i], sizeof acls[i], "new%04d\tlrs\t", i);
        assert_int_equal(support_do(&a, &base, support_put(&a, names[i], "be3", "p1", acls[i])), 0);
        support_free(&a);
    }
    assert_int_equal(support_verify(&base, false), 0);
    store_close(&base.store);
}

static uint8_t *file_read(const char *dir, size_t *len_r)
{
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    uint8_t *data = malloc(64u << 20);
    assert_non_null(data);
    *len_r = fread(data, 1, 64u << 20, f);
    fclose(f);
    return data;
}

/* What a reader met. */
enum { SAW_WRONG = 1, SAW_MISSING = 2, SAW_LIST = 4, SAW_EXTRA = 8, SAW_ERROR = 16, SAW_PROBLEM = 32, SAW_REFUSED = 64, SAW_ALL = 128 /* it came to the end */ };
#define SAW_BAD (SAW_WRONG | SAW_MISSING | SAW_LIST | SAW_EXTRA)

static bool right(const struct store_mailbox *m, int i)
{
    const char *server = i % 10 == 1 ? "be3" : i % 2 ? "be1" : "be2";
    return m->acl.len == strlen(acls[i]) && memcmp(m->acl.s, acls[i], m->acl.len) == 0 && m->server.len == 3 && memcmp(m->server.s, server, 3) == 0 &&
           m->partition.len == 2 && memcmp(m->partition.s, "p1", 2) == 0 && m->state == STORE_ACTIVE;
}

static int read_all(const char *dir)
{
    struct store *store;
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    int saw = SAW_ALL;
    if (store_open(dir, &(struct store_options){.no_sync = true}, &store, &err) != 0)
        return saw | SAW_REFUSED;
    if (store_read_begin(store, &txn, &err) != 0)
        return saw | SAW_REFUSED;
    for (int i = 0; i < MAILBOXES; i++) {
        int rc = store_lookup(txn, names[i], strlen(names[i]), &m, &err);
        if (rc == 0)
            saw |= deleted[i] || !right(&m, i) ? SAW_WRONG : 0;
        else if (rc == RAFTDIR_ENOTFOUND)
            saw |= deleted[i] ? 0 : SAW_MISSING;
        else
            saw |= SAW_ERROR;
    }
    struct store_scan *scan;
    if (store_list_begin(&(struct store_filter){0}, NULL, &scan, &err) != 0)
        return saw | SAW_ERROR;
    int rc, n = 0;
    char before[NAME_KEY_LEN_MAX + 1] = "";
    while ((rc = store_scan_next(scan, txn, &m, NULL, &err)) == 0 && n < 2 * MAILBOXES) {
        if (strcmp(before, m.name) == 0)
            saw |= SAW_EXTRA;
        memcpy(before, m.name, sizeof before);
        n++;
    }
    if (rc != RAFTDIR_ENOTFOUND && rc != 0)
        saw |= SAW_ERROR;
    else if (n != MAILBOXES - MAILBOXES / 10)
        saw |= SAW_LIST;
    store_scan_end(&scan);
    uint8_t digest[16];
    uint64_t problems = 0;
    if (store_verify(txn, NULL, digest, &problems, &err) != 0 || problems)
        saw |= SAW_PROBLEM;
    return saw;
}

static int read_apart(const char *dir)
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        int fd = open("/dev/null", O_WRONLY);
        if (fd >= 0)
            dup2(fd, STDERR_FILENO);
        static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT};
        for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
            signal(fatal[i], SIG_DFL);
        alarm(20);
        _exit(read_all(dir));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) && WEXITSTATUS(status) & SAW_ALL ? WEXITSTATUS(status) & ~SAW_ALL : -1; /* -1: it died of it, in whichever way */
}

/* One bit flips anywhere, or in the heads and row pointers of pages: there the whole tree hangs on. */
static void flips(bool heads)
{
    struct support_store copy;
    size_t len;
    uint8_t *data = file_read(base.dir, &len);
    support_store_copy(&base, &copy);
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", copy.dir);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(read_apart(copy.dir), 0);
    unsigned harmless = 0, found = 0, died = 0, refused = 0, bad = 0, unnoticed = 0;
    int n = getenv("RAFTDIR_FLIPS") ? atoi(getenv("RAFTDIR_FLIPS")) : FLIPS;
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)(support_random(&seed) % len);
        if (heads)
            at = at / PAGE_LEN * PAGE_LEN + at % HEAD_LEN;
        uint8_t bit = (uint8_t)(1u << support_below(&seed, 8)), byte = data[at] ^ bit;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        int saw = read_apart(copy.dir);
        assert_int_equal(pwrite(fd, data + at, 1, (off_t)at), 1);
        if (saw < 0)
            died++;
        else if (saw & SAW_REFUSED)
            refused++;
        else if (saw & SAW_PROBLEM)
            found++;
        else if (saw & SAW_ERROR)
            unnoticed++; /* a reader met what verify didn't find */
        else
            harmless++;
        if (saw > 0 && saw & SAW_BAD) {
            bad++;
            print_error("byte %zu of page %zu, bit %02x:%s%s%s%s\n", at % PAGE_LEN, at / PAGE_LEN, bit, saw & SAW_WRONG ? " a wrong answer" : "",
                        saw & SAW_MISSING ? " a mailbox is said not to exist" : "", saw & SAW_LIST ? " the list lacks some" : "", saw & SAW_EXTRA ? " the list has one twice" : "");
        }
    }
    printf("%d flips in %zu bytes: %u harmless, %u found, %u refused at the start, %u ended the process\n", n, len, harmless, found, refused, died);
    assert_int_equal(bad, 0);
    assert_int_equal(unnoticed, 0);
    assert_true(found > (unsigned)n / 8);
    /* Reading changed nothing: what a damaged page hides is not made anew. */
    size_t len_after;
    uint8_t *after = file_read(copy.dir, &len_after);
    assert_int_equal(len_after, len);
    assert_memory_equal(after, data, len);
    free(after);
    close(fd);
    free(data);
    support_store_close(&copy);
}

static void test_flips_anywhere(void **state)
{
    (void)state;
    flips(false);
}

static void test_flips_in_page_heads(void **state)
{
    (void)state;
    flips(true);
}

/* A separator in a branch page that leads lookups astray: every mailbox is still met by a walk. */
static void test_flipped_separators(void **state)
{
    (void)state;
    struct support_store copy;
    size_t len;
    uint8_t *data = file_read(base.dir, &len);
    support_store_copy(&base, &copy);
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", copy.dir);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    unsigned tried = 0, found = 0;
    for (size_t page = len / PAGE_LEN - 1; page > 1 && tried < 60; page--) { /* the newest are the likelier ones */
        const uint8_t *p = data + page * PAGE_LEN;
        unsigned flags = p[10] | p[11] << 8, lower = p[12] | p[13] << 8;
        if (flags != 1 || lower > PAGE_LEN) /* a branch page: its first separator doesn't count */
            continue;
        for (unsigned at = 18; at < lower && tried < 60; at += 2) {
            size_t node = p[at] | p[at + 1] << 8;
            if (node + 8 + 4 > PAGE_LEN || memcmp(p + node + 8, "user", 4) != 0)
                continue;
            uint8_t byte = p[node + 8] ^ (tried % 2 ? 2 : 1); /* "wser" is behind all, "tser" before */
            off_t offset = (off_t)(page * PAGE_LEN + node + 8);
            assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
            int saw = read_apart(copy.dir);
            assert_int_equal(pwrite(fd, p + node + 8, 1, offset), 1);
            assert_true(saw >= 0);
            assert_int_equal(saw & SAW_BAD, 0);
            if (saw & SAW_ERROR)
                assert_true(saw & SAW_PROBLEM);
            found += (saw & SAW_PROBLEM) != 0;
            tried++;
        }
    }
    printf("%u of %u separators were in use, and missed\n", found, tried);
    assert_true(found > 0);
    close(fd);
    free(data);
    support_store_close(&copy);
}

/* The heads of both meta pages say that there are no tables: the state is refused, not made anew over what is there. */
static void test_hidden_tables(void **state)
{
    (void)state;
    struct support_store copy;
    struct store *store;
    struct err err = {0};
    char path[128];
    support_store_copy(&base, &copy);
    snprintf(path, sizeof path, "%s/data.mdb", copy.dir);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    static const uint8_t none[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    for (int meta = 0; meta < 2; meta++) /* page head, magic, version, address, map length, the free pages' tree; then the root of the main one */
        assert_int_equal(pwrite(fd, none, sizeof none, meta * PAGE_LEN + 16 + 24 + 48 + 40), (ssize_t)sizeof none);
    close(fd);
    size_t len, len_after;
    uint8_t *before = file_read(copy.dir, &len);
    assert_int_equal(store_open(copy.dir, &(struct store_options){.no_sync = true}, &store, &err), RAFTDIR_ECORRUPT);
    uint8_t *after = file_read(copy.dir, &len_after);
    assert_int_equal(len, len_after);
    assert_memory_equal(before, after, len);
    free(before);
    free(after);
    support_store_close(&copy);
}

/* --- Verify stops ----------------------------------------------------------------------------------------------------------------------- */

static int asked, stop_at;

static bool on_stop(void *data)
{
    assert_ptr_equal(data, &asked);
    return ++asked == stop_at;
}

static void test_verify_stops(void **state)
{
    (void)state;
    struct store *store;
    struct store_txn *txn;
    struct err err = {0};
    struct store_verify_cb cb = {.data = &asked, .stop = on_stop};
    uint8_t digest[16];
    uint64_t problems = 7;
    assert_int_equal(store_open(base.dir, &(struct store_options){.no_sync = true}, &store, &err), 0);
    assert_int_equal(store_read_begin(store, &txn, &err), 0);
    stop_at = 0;
    assert_int_equal(store_verify(txn, &cb, digest, &problems, &err), 0);
    assert_int_equal(problems, 0);
    int times = asked;
    assert_true(times >= 10);
    for (stop_at = 1; stop_at <= times; stop_at++) {
        asked = 0;
        assert_int_equal(store_verify(txn, &cb, digest, &problems, &err), RAFTDIR_ECANCELED);
        assert_int_equal(asked, stop_at); /* at once, and isn't asked again */
        assert_int_equal(problems, 0);
    }
    store_read_end(&txn);
    store_close(&store);
}

int main(void)
{
    seed = support_seed();
    build();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_flips_anywhere), cmocka_unit_test(test_flips_in_page_heads), cmocka_unit_test(test_flipped_separators),
                                       cmocka_unit_test(test_hidden_tables),  cmocka_unit_test(test_verify_stops)};
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    support_store_close(&base);
    return rc;
}
