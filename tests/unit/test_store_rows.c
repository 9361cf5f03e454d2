/* test_store_rows.c - the rows of a state: their order, going on after any of them; and a state built of rows: wrong rows, a full disk, a full map, failing
 * flushes, references to the store. White-box: compares with LMDB's own view. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>
#include "raftdir/store_rows.h"
#include "raftdir/store_state.h"
#include "support_store.h"

/* Flushes of this program and of LMDB come through here. */
static unsigned flushes, flush_fails_at; /* 0: none */
static bool dir_flushed;                 /* the last one was of a directory */
static int flush(long call, int fd)
{
    struct stat st;
    dir_flushed = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    if (++flushes == flush_fails_at) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(call, fd);
}
__attribute__((visibility("default"))) int fdatasync(int fd)
{
    return flush(SYS_fdatasync, fd);
}
__attribute__((visibility("default"))) int fsync(int fd)
{
    return flush(SYS_fsync, fd);
}

/* A state with rows in every table, several mailboxes with one uniqueid, and some with long values. */
static void fill(struct support_store *s, int n)
{
    struct support_arena a = {0};
    struct err err = {0};
    struct store_txn *txn;
    for (int i = 0; i < n; i++) {
        char name[64], uniqueid[32], acl[4000];
        snprintf(name, sizeof name, "user.u%04d", i);
        snprintf(uniqueid, sizeof uniqueid, "id-%d", i / 3);
        size_t at = 0;
        for (int k = 0; k <= (i % 50 == 7 ? 200 : 1); k++)
            at += (size_t)snprintf(acl + at, sizeof acl - at, "a%d\tlrs\t", k + i % 5);
        Raftdir__Log__Op *op = support_put(&a, name, "be1", i % 2 ? "p1" : "p2", acl);
        op->put->mailbox->uniqueid = support_text(&a, uniqueid);
        assert_int_equal(support_do(&a, s, op), 0);
    }
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(&a, "user.r");
    op->reserve->location = support_location(&a, "be1", "p1");
    assert_int_equal(support_do(&a, s, op), 0);
    assert_int_equal(store_write_begin(s->store, &txn, &err), 0);
    assert_int_equal(store_configuration_put(txn, "members", 7, 3, &err), 0);
    assert_int_equal(store_checkpoint_put(txn, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    support_free(&a);
}

/* All rows, copied. */
struct list {
    struct store_row *rows;
    size_t n;
    struct support_arena a;
};

static void *copy(struct support_arena *a, const void *p, size_t len)
{
    void *c = support_alloc(a, len);
    if (len)
        memcpy(c, p, len);
    return c;
}

static void list_add(struct list *l, const struct store_row *row)
{
    if (l->n % 256 == 0) {
        l->rows = realloc(l->rows, (l->n + 256) * sizeof *l->rows);
        assert_non_null(l->rows);
    }
    struct store_row c = *row;
    c.key = copy(&l->a, row->key, row->key_len);
    c.value = copy(&l->a, row->value, row->value_len);
    l->rows[l->n++] = c;
}

static void list_free(struct list *l)
{
    free(l->rows);
    support_free(&l->a);
}

static void list_read(struct store *store, struct list *l)
{
    struct store_txn *txn;
    struct store_rows *rows;
    struct store_row row;
    struct err err = {0};
    int rc;
    *l = (struct list){0};
    assert_int_equal(store_read_begin(store, &txn, &err), 0);
    assert_int_equal(store_rows_begin(txn, &rows, &err), 0);
    while ((rc = store_rows_next(rows, &row, &err)) == 0)
        list_add(l, &row);
    assert_int_equal(rc, RAFTDIR_ENOTFOUND);
    assert_int_equal(store_rows_next(rows, &row, &err), RAFTDIR_ENOTFOUND);
    store_rows_end(&rows);
    store_read_end(&txn);
}

static void same_row(const struct store_row *a, const struct store_row *b)
{
    assert_int_equal(a->table, b->table);
    assert_int_equal(a->key_len, b->key_len);
    assert_int_equal(a->value_len, b->value_len);
    assert_memory_equal(a->key, b->key, a->key_len);
    if (a->value_len)
        assert_memory_equal(a->value, b->value, a->value_len);
}

static void same_list(const struct list *a, const struct list *b)
{
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++)
        same_row(&a->rows[i], &b->rows[i]);
}

static void test_order(void **state)
{
    (void)state;
    struct support_store s;
    struct list l;
    struct store_txn *txn;
    struct err err = {0};
    uint64_t n;
    support_store_open(&s, 0);
    fill(&s, 200);
    list_read(s.store, &l);
    /* The same from LMDB, table by table. */
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    size_t at = 0;
    for (uint32_t t = 0; t < TABLES; t++) {
        MDB_cursor *cursor;
        MDB_val k, v;
        size_t before = at;
        assert_int_equal(mdb_cursor_open(txn->mdb, s.store->dbi[t], &cursor), 0);
        while (mdb_cursor_get(cursor, &k, &v, MDB_NEXT) == 0) {
            struct store_row want = {t, k.mv_data, v.mv_data, k.mv_size, v.mv_size};
            assert_true(at < l.n);
            same_row(&want, &l.rows[at++]);
        }
        mdb_cursor_close(cursor);
        if (at == before)
            fail_msg("nothing in table %s", store_table_name(t));
    }
    assert_int_equal(at, l.n);
    assert_int_equal(store_rows_count(txn, &n, &err), 0);
    assert_int_equal(n, l.n);
    store_read_end(&txn);
    list_free(&l);
    support_store_close(&s);
}

static void test_seek(void **state)
{
    (void)state;
    struct support_store s;
    struct list l;
    struct store_txn *txn;
    struct store_rows *rows;
    struct store_row row;
    struct err err = {0};
    support_store_open(&s, 0);
    fill(&s, 60);
    list_read(s.store, &l);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_rows_begin(txn, &rows, &err), 0);
    size_t dups = 0;
    for (size_t i = 0; i < l.n; i++) {
        struct store_row after = l.rows[i];
        dups += i && after.table == TABLE_UNIQUEID && after.key_len == l.rows[i - 1].key_len && memcmp(after.key, l.rows[i - 1].key, after.key_len) == 0;
        if (after.table != TABLE_UNIQUEID)
            after.value_len = 0; /* doesn't count */
        assert_int_equal(store_rows_seek(rows, &after, &err), 0);
        for (size_t k = i + 1; k < l.n && k < i + 4; k++) {
            assert_int_equal(store_rows_next(rows, &row, &err), 0);
            same_row(&row, &l.rows[k]);
        }
        if (i + 1 == l.n)
            assert_int_equal(store_rows_next(rows, &row, &err), RAFTDIR_ENOTFOUND);
        /* Rows that aren't there. */
        uint8_t other[STORE_KEY_MAX + 1];
        memcpy(other, after.key, after.key_len);
        other[after.key_len] = 0;
        if (after.key_len < STORE_KEY_MAX) {
            row = after;
            row.key = other;
            row.key_len++;
            assert_int_equal(store_rows_seek(rows, &row, &err), RAFTDIR_ENOTFOUND);
        }
        if (after.table == TABLE_UNIQUEID) {
            row = after;
            row.value = other;
            assert_int_equal(store_rows_seek(rows, &row, &err), RAFTDIR_ENOTFOUND);
            row.value_len = 0;
            assert_int_equal(store_rows_seek(rows, &row, &err), RAFTDIR_ENOTFOUND);
        }
    }
    assert_true(dups > 20);
    struct store_row bad = {.table = TABLES, .key = "k", .key_len = 1};
    assert_int_equal(store_rows_seek(rows, &bad, &err), RAFTDIR_ENOTFOUND);
    bad = (struct store_row){.table = TABLE_MAILBOX, .key = "", .key_len = 0};
    assert_int_equal(store_rows_seek(rows, &bad, &err), RAFTDIR_ENOTFOUND);
    static const uint8_t longest[STORE_KEY_MAX + 1];
    bad = (struct store_row){.table = TABLE_MAILBOX, .key = longest, .key_len = sizeof longest};
    assert_int_equal(store_rows_seek(rows, &bad, &err), RAFTDIR_ENOTFOUND);
    store_rows_end(&rows);
    store_read_end(&txn);
    list_free(&l);
    support_store_close(&s);
}

/* An empty directory for a built state; support_store_close removes it. */
static void stage(const struct support_store *s, struct support_store *copy_r)
{
    struct support_store empty;
    char path[128];
    support_store_open(&empty, 0);
    store_close(&empty.store);
    snprintf(path, sizeof path, "%s/data.mdb", empty.dir);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/lock.mdb", empty.dir);
    assert_int_equal(unlink(path), 0);
    *copy_r = *s;
    copy_r->store = NULL;
    memcpy(copy_r->dir, empty.dir, sizeof empty.dir);
}

static void same_state(struct support_store *s, struct support_store *built, const struct list *l)
{
    struct support_arena a = {0};
    struct list got;
    uint8_t d1[16], d2[16];
    support_store_reopen(built, 0);
    list_read(built->store, &got);
    same_list(l, &got);
    list_free(&got);
    assert_int_equal(support_verify(built, false), 0);
    /* And it goes on like the other. */
    for (int i = 0; i < 40; i++) {
        char name[64];
        snprintf(name, sizeof name, "user.u%04d.sub", i * 7);
        Raftdir__Log__Op *op = i % 4 ? support_put(&a, name, "be2", "p9", "a1\tlr\tnew\tl\t") : support_delete(&a, "user.u0001", true);
        Raftdir__Log__Request *r = support_request(&a, s, &op, 1);
        Raftdir__Log__Result *r1 = support_apply(&a, s, r), *r2 = support_apply(&a, built, r);
        assert_int_equal(r1->code, r2->code);
    }
    support_digest(s, d1);
    support_digest(built, d2);
    assert_memory_equal(d1, d2, 16);
    assert_int_equal(support_verify(built, false), 0);
    support_free(&a);
}

static void test_build(void **state)
{
    (void)state;
    struct support_store s, built;
    struct store_build *build;
    struct list l;
    struct err err = {0};
    support_store_open(&s, 0);
    fill(&s, 300);
    list_read(s.store, &l);
    for (unsigned every = 1; every <= 1000; every *= 10) { /* rows between commits */
        stage(&s, &built);
        unsigned before = flushes;
        assert_int_equal(store_build_begin(built.dir, NULL, &build, &err), 0);
        for (size_t i = 0; i < l.n; i++) {
            assert_int_equal(store_build_add(build, &l.rows[i], &err), 0);
            if (i % every == 0)
                assert_int_equal(store_build_commit(build, &err), 0);
        }
        assert_int_equal(store_build_finish(build, &err), 0);
        store_build_end(&build);
        assert_null(build);
        assert_true(flushes > before + 2 && dir_flushed);
        if (every == 1000) {
            same_state(&s, &built, &l);
            assert_int_equal(store_build_begin(built.dir, NULL, &build, &err), RAFTDIR_EEXIST);
        } else {
            struct list got;
            support_store_reopen(&built, 0);
            list_read(built.store, &got);
            same_list(&l, &got);
            list_free(&got);
        }
        support_store_close(&built);
        if (every == 1) { /* a million flushes are no test */
            struct store_options o = {.no_sync = true};
            stage(&s, &built);
            before = flushes;
            assert_int_equal(store_build_begin(built.dir, &o, &build, &err), 0);
            for (size_t i = 0; i < l.n; i++)
                assert_int_equal(store_build_add(build, &l.rows[i], &err), 0);
            assert_int_equal(store_build_finish(build, &err), 0);
            store_build_end(&build);
            assert_int_equal(flushes, before);
            support_store_close(&built);
        }
    }
    assert_int_equal(store_build_begin("/nonexistent/raftdir", NULL, &build, &err), RAFTDIR_EUNAVAIL);
    list_free(&l);
    support_store_close(&s);
}

/* Every rung of the ladder: a flush that fails ends the build, at once and for good. */
static void test_flush_fails(void **state)
{
    (void)state;
    struct support_store s, built;
    struct list l;
    struct err err = {0};
    support_store_open(&s, 0);
    fill(&s, 30);
    list_read(s.store, &l);
    bool passed = false;
    unsigned step;
    for (step = 1; !passed && step < 20; step++) {
        struct store_build *build;
        stage(&s, &built);
        flushes = 0;
        flush_fails_at = step;
        int rc = store_build_begin(built.dir, NULL, &build, &err);
        if (rc == 0) {
            for (size_t i = 0; i < l.n && !rc; i++) {
                rc = store_build_add(build, &l.rows[i], &err);
                if (!rc && i % (l.n / 3) == 0)
                    rc = store_build_commit(build, &err);
            }
            if (!rc)
                rc = store_build_finish(build, &err);
            if (rc) {
                assert_int_equal(rc, RAFTDIR_EIO);
                flush_fails_at = 0; /* the next would succeed, and lie */
                assert_int_not_equal(store_build_add(build, &l.rows[l.n - 1], &err), 0);
                assert_int_not_equal(store_build_commit(build, &err), 0);
                assert_int_not_equal(store_build_finish(build, &err), 0);
            }
            passed = rc == 0;
            store_build_end(&build);
        } else {
            assert_int_equal(rc, RAFTDIR_EIO);
        }
        support_store_close(&built);
    }
    flush_fails_at = 0;
    assert_true(passed && step > 6);
    list_free(&l);
    support_store_close(&s);
}

static void test_bad_rows(void **state)
{
    (void)state;
    static const uint8_t longest[STORE_KEY_MAX + 1];
    static const struct {
        const char *what;
        struct store_row rows[3];
        size_t n;
    } cases[] = {
        {"unknown table", {{TABLES, "a", "", 1, 0}}, 1},
        {"empty key", {{TABLE_MAILBOX, "", "v", 0, 1}}, 1},
        {"long key", {{TABLE_MAILBOX, longest, "v", sizeof longest, 1}}, 1},
        {"empty value of several", {{TABLE_UNIQUEID, "a", "", 1, 0}}, 1},
        {"long value of several", {{TABLE_UNIQUEID, "a", longest, 1, sizeof longest}}, 1},
        {"key twice", {{TABLE_MAILBOX, "a", "v", 1, 1}, {TABLE_MAILBOX, "a", "w", 1, 1}}, 2},
        {"key goes back", {{TABLE_MAILBOX, "ab", "v", 2, 1}, {TABLE_MAILBOX, "a", "w", 1, 1}}, 2},
        {"table goes back", {{TABLE_STORE, "a", "v", 1, 1}, {TABLE_MAILBOX, "b", "w", 1, 1}}, 2},
        {"row twice", {{TABLE_UNIQUEID, "a", "v", 1, 1}, {TABLE_UNIQUEID, "a", "w", 1, 1}, {TABLE_UNIQUEID, "a", "w", 1, 1}}, 3},
        {"value goes back", {{TABLE_UNIQUEID, "a", "v", 1, 1}, {TABLE_UNIQUEID, "a", "w", 1, 1}, {TABLE_UNIQUEID, "a", "v", 1, 1}}, 3},
    };
    struct support_store s = {0}, built;
    struct err err = {0};
    struct store_build *build;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int commits = 0; commits < 2; commits++) {
            stage(&s, &built);
            assert_int_equal(store_build_begin(built.dir, NULL, &build, &err), 0);
            for (size_t k = 0; k < cases[i].n; k++) {
                int rc = store_build_add(build, &cases[i].rows[k], &err);
                if (rc != (k + 1 < cases[i].n ? 0 : RAFTDIR_EINVAL))
                    fail_msg("%s: row %zu: %d", cases[i].what, k, rc);
                if (commits && !rc)
                    assert_int_equal(store_build_commit(build, &err), 0);
            }
            assert_int_not_equal(store_build_finish(build, &err), 0);
            store_build_end(&build);
            support_store_close(&built);
        }
    }
}

/* A disk, or a map, that is full now and then: what was committed stays, the rest comes again. */
static void run_full(struct support_store *s, const struct list *l, uint64_t map_len, size_t every)
{
    struct support_store built;
    struct store_build *build;
    struct err err = {0};
    struct rlimit old, limit;
    struct store_options o = {.map_len = map_len};
    size_t at = 0, committed = 0, fulls = 0;
    stage(s, &built);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){256 << 10, old.rlim_max};
    assert_int_equal(store_build_begin(built.dir, &o, &build, &err), 0);
    while (at < l->n && fulls < 1000) {
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int rc = store_build_add(build, &l->rows[at], &err);
        if (!rc)
            at++;
        if (!rc && (at - committed >= every || at == l->n)) {
            rc = store_build_commit(build, &err);
            if (!rc)
                committed = at;
        }
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        if (!rc)
            continue;
        assert_int_equal(rc, RAFTDIR_ENOSPC);
        if (map_len)
            break; /* a map doesn't grow */
        fulls++;
        at = committed;
        if (fulls % 3 == 0) /* still full for a while, then there is some room */
            limit.rlim_cur += 300 << 10;
    }
    if (map_len) {
        assert_true(at < l->n);
        store_build_end(&build);
    } else {
        assert_true(at == l->n && fulls > 3);
        assert_int_equal(store_build_finish(build, &err), 0);
        store_build_end(&build);
        struct list got;
        support_store_reopen(&built, 0);
        list_read(built.store, &got);
        same_list(l, &got);
        list_free(&got);
        assert_int_equal(support_verify(&built, false), 0);
    }
    support_store_close(&built);
}

static void test_full(void **state)
{
    (void)state;
    struct support_store s;
    struct list l;
    support_store_open(&s, 0);
    fill(&s, 2000);
    list_read(s.store, &l);
    run_full(&s, &l, 0, 1000);
    run_full(&s, &l, 0, 100);
    run_full(&s, &l, 256 << 10, 100);
    list_free(&l);
    support_store_close(&s);
}

/* Has this process the state of that directory open? */
static bool is_open(const char *dir)
{
    char link[64], to[256], want[128];
    snprintf(want, sizeof want, "%s/data.mdb", dir);
    for (int fd = 3; fd < 256; fd++) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, to, sizeof to - 1);
        if (n > 0 && (to[n] = '\0', strcmp(to, want) == 0))
            return true;
    }
    return false;
}

static void test_references(void **state)
{
    (void)state;
    struct support_store s;
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    support_store_open(&s, 0);
    fill(&s, 10);
    struct store *other = store_ref(s.store);
    assert_int_equal(store_read_begin(other, &txn, &err), 0);
    store_close(&s.store);
    assert_null(s.store);
    assert_true(is_open(s.dir)); /* the other goes on, also with a transaction that is open */
    assert_int_equal(store_lookup(txn, "user.u0003", 10, &m, &err), 0);
    store_read_end(&txn);
    assert_int_equal(store_read_begin(other, &txn, &err), 0);
    assert_int_equal(store_lookup(txn, "user.u0004", 10, &m, &err), 0);
    store_read_end(&txn);
    struct store *third = store_ref(other);
    store_close(&other);
    assert_true(is_open(s.dir));
    store_close(&third);
    assert_false(is_open(s.dir));
    store_close(&third); /* nothing */
    support_store_reopen(&s, 0);
    assert_int_equal(support_verify(&s, false), 0);
    support_store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),    cmocka_unit_test(test_seek), cmocka_unit_test(test_build),      cmocka_unit_test(test_flush_fails),
        cmocka_unit_test(test_bad_rows), cmocka_unit_test(test_full), cmocka_unit_test(test_references),
    };
    return cmocka_run_group_tests_name("store_rows", tests, NULL, NULL);
}
