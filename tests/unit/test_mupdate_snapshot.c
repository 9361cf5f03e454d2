/* test_mupdate_snapshot.c - rows of a snapshot against brute force: the shared dump and random mailboxes (domains, names with ^, DELETED., reservations), every kind of filter, pieces of
 * every size, each piece made by another thread while the state is changed; a damaged record or page ends the list, it never makes it shorter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/mupdate_snapshot.h"
#include "raftdir/name.h"
#include "support_store.h"

#define MAILBOXES 600

static struct mupdate_word word(const char *s)
{
    return (struct mupdate_word){s, strlen(s)};
}

struct row {
    char name[80], server[24], partition[16], acl[48];
    bool reserved;
    uint8_t key[80];
};

static int by_key(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    return name_key_cmp(x->key, strlen(x->name), y->key, strlen(y->name));
}

static struct row model[MAILBOXES];
static size_t model_n;

static Raftdir__Log__Op *reserve(struct support_arena *a, const struct row *row)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(a, row->name);
    op->reserve->location = support_location(a, row->server, row->partition);
    return op;
}

static void build(struct support_store *s, uint64_t *r)
{
    static const char *const names[] = {"user.u%u", "user.u%u.a", "user.u%u.a^b", "user.u%u.a-b", "user.j^u%u", "x.org!user.u%u", "x.org!user.u%u.a^b", "DELETED.user.u%u.5B01D517", "shared.u%u", "y!shared.u%u"};
    struct support_arena a = {0};
    model_n = 0;
    for (unsigned i = 0; model_n < MAILBOXES; i++) {
        struct row *row = &model[model_n];
        snprintf(row->name, sizeof row->name, names[support_below(r, 10)], i);
        snprintf(row->server, sizeof row->server, "be%u", support_below(r, 12)); /* be1 begins be10 and be11 */
        snprintf(row->partition, sizeof row->partition, "%s", support_below(r, 2) ? "default" : "de");
        snprintf(row->acl, sizeof row->acl, support_below(r, 9) ? "u%u\tlrswipkxtecda\t" : "", i);
        row->reserved = support_below(r, 8) == 0;
        name_to_key(row->name, strlen(row->name), row->key);
        assert_int_equal(support_do(&a, s, row->reserved ? reserve(&a, row) : support_put(&a, row->name, row->server, row->partition, row->acl)), 0);
        support_free(&a);
        model_n++;
    }
    qsort(model, model_n, sizeof *model, by_key);
}

static void print_row(struct mupdate_out *o, const char *tag, const struct row *row)
{
    char text[512], place[64];
    int len, place_len = snprintf(place, sizeof place, "%s!%s", row->server, row->partition);
    if (row->reserved)
        len = snprintf(text, sizeof text, "%s RESERVE {%zu+}\r\n%s {%d+}\r\n%s\r\n", tag, strlen(row->name), row->name, place_len, place);
    else
        len = snprintf(text, sizeof text, "%s MAILBOX {%zu+}\r\n%s {%d+}\r\n%s {%zu+}\r\n%s\r\n", tag, strlen(row->name), row->name, place_len, place, strlen(row->acl), row->acl);
    mupdate_print(o, text, (size_t)len);
}

static bool model_wants(const struct row *row, const char *prefix, const char *const *servers)
{
    char place[64];
    snprintf(place, sizeof place, "%s!%s", row->server, row->partition);
    if (prefix && strncmp(place, prefix, strlen(prefix)) != 0)
        return false;
    for (size_t i = 0; servers && servers[i]; i++)
        if (strcmp(servers[i], row->server) == 0)
            return true;
    return !servers || !*servers;
}

/* --- The list ------------------------------------------------------------------------------------------------------------------------- */

struct job {
    struct mupdate_snapshot *snapshot;
    size_t len;
    struct mupdate_out out;
    uint64_t rows;
    int rc;
    struct err err;
};
static const _Atomic bool go_on;

static void *piece(void *arg)
{
    struct job *j = arg;
    j->rc = mupdate_snapshot_piece(j->snapshot, j->len, &go_on, &j->out, &j->rows, &j->err);
    return NULL;
}

static struct mupdate_snapshot *begin(struct support_store *s, const char *tag, const char *prefix, const char *const *servers)
{
    struct mupdate_word t = word(tag), list[8];
    struct mupdate_snapshot_filter filter = {.servers = list};
    for (; servers && servers[filter.servers_n]; filter.servers_n++)
        list[filter.servers_n] = word(servers[filter.servers_n]);
    if (prefix)
        filter.prefix = word(prefix);
    struct mupdate_snapshot *snapshot = mupdate_snapshot_create(&t, &filter);
    mupdate_snapshot_of(snapshot, s->store);
    return snapshot;
}

static void check(struct support_store *s, const char *prefix, const char *const *servers, size_t len)
{
    struct mupdate_out want = {0}, got = {0};
    struct job j = {.snapshot = begin(s, "U01", prefix, servers), .len = len};
    uint64_t want_rows = 0, rows = 0;
    for (size_t i = 0; i < model_n; i++)
        if (model_wants(&model[i], prefix, servers)) {
            print_row(&want, "U01", &model[i]);
            want_rows++;
        }
    do {
        piece(&j);
        rows += j.rows;
        assert_true(j.out.len < len + 512);
        mupdate_print(&got, j.out.p ? j.out.p : "", j.out.len);
        j.out.len = 0;
    } while (j.rc == 0);
    assert_int_equal(j.rc, RAFTDIR_ENOTFOUND);
    assert_int_equal(mupdate_snapshot_index(j.snapshot), s->index);
    assert_int_equal(rows, want_rows);
    assert_int_equal(got.len, want.len);
    if (got.len)
        assert_memory_equal(got.p, want.p, got.len);
    mupdate_snapshot_destroy(&j.snapshot);
    mupdate_out_free(&j.out);
    mupdate_out_free(&got);
    mupdate_out_free(&want);
}

static void test_filters(void **state)
{
    (void)state;
    static const char *const prefixes[] = {NULL, "", "be", "be1", "be1!", "be1!de", "be1!def", "be1!default", "be1!defaultx", "be10!", "be1!x", "b", "x", "!", "be", "be1!de!", "nobody!"};
    static const char *const one[] = {"be1", NULL}, *const some[] = {"be1", "be10", "be1", "nobody", NULL}, *const none[] = {"nobody", "be", NULL}, *const empty[] = {"", NULL};
    static const char *const *const servers[] = {NULL, one, some, none, empty};
    static const size_t lens[] = {1, 100, 4096, MUPDATE_SNAPSHOT_LEN};
    struct support_store s;
    uint64_t r = support_seed();
    support_store_open(&s, 0);
    build(&s, &r);
    for (size_t l = 0; l < sizeof lens / sizeof *lens; l++) {
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            check(&s, prefixes[i], NULL, lens[l]);
        for (size_t i = 0; i < sizeof servers / sizeof *servers; i++)
            check(&s, NULL, servers[i], lens[l]);
    }
    /* A NUL byte isn't the end of a name. */
    struct mupdate_word tag = word("t"), server = {"be1\0x", 5};
    struct mupdate_snapshot_filter filters[] = {{.prefix = {"be1\0x!", 6}}, {.servers = &server, .servers_n = 1}, {.prefix = {"be1!\0", 5}}};
    for (size_t i = 0; i < 3; i++) {
        struct job j = {.snapshot = mupdate_snapshot_create(&tag, &filters[i]), .len = 1 << 20};
        mupdate_snapshot_of(j.snapshot, s.store);
        piece(&j);
        assert_int_equal(j.rc, RAFTDIR_ENOTFOUND);
        assert_int_equal(j.out.len, 0);
        mupdate_snapshot_destroy(&j.snapshot);
    }
    support_store_close(&s);
}

/* Mailboxes are deleted, made and renamed between the pieces, by whichever thread: the list is that of its beginning. */
static void test_one_snapshot(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct mupdate_out want = {0}, got = {0};
    uint64_t r = support_seed();
    support_store_open(&s, 0);
    build(&s, &r);
    for (size_t i = 0; i < model_n; i++)
        print_row(&want, "t", &model[i]);
    struct job j = {.snapshot = begin(&s, "t", NULL, NULL), .len = 500};
    uint64_t index = s.index;
    unsigned pieces = 0;
    do {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, piece, &j), 0);
        pthread_join(thread, NULL);
        mupdate_print(&got, j.out.p ? j.out.p : "", j.out.len);
        j.out.len = 0;
        for (unsigned i = 0; i < 8; i++) {
            char name[80];
            const struct row *row = &model[support_below(&r, (unsigned)model_n)];
            snprintf(name, sizeof name, "%s", row->name);
            unsigned what = support_below(&r, 3);
            if (what == 2)
                snprintf(name, sizeof name, "user.new%u", support_below(&r, 1000));
            Raftdir__Log__Op *op = what ? support_put(&a, name, "be99", "other", "x\tlr\t") : support_delete(&a, name, false);
            support_do(&a, &s, op); /* it may be gone already */
            support_free(&a);
        }
        pieces++;
    } while (j.rc == 0);
    assert_int_equal(j.rc, RAFTDIR_ENOTFOUND);
    assert_true(pieces > 50);
    assert_int_equal(mupdate_snapshot_index(j.snapshot), index);
    assert_true(s.index > index + 100);
    assert_int_equal(got.len, want.len);
    assert_memory_equal(got.p, want.p, got.len);
    mupdate_snapshot_destroy(&j.snapshot);
    mupdate_out_free(&j.out);
    mupdate_out_free(&got);
    mupdate_out_free(&want);
    support_store_close(&s);
}

static void test_dump(void **state)
{
    (void)state;
    struct support_store s;
    struct support_dump dump;
    struct support_arena a = {0};
    struct mupdate_out want = {0};
    support_store_open(&s, 0);
    support_dump_read(TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", &dump);
    size_t n = dump.n < 3000 ? dump.n : 3000;
    for (size_t i = n; i > 0; i--) { /* put in the opposite order */
        const struct support_dump_row *d = &dump.rows[i - 1];
        assert_int_equal(support_do(&a, &s, support_put(&a, d->name, d->server && *d->server ? d->server : "be1", d->partition, d->acl)), 0);
        support_free(&a);
    }
    for (size_t i = 0; i < n; i++) { /* Cyrus' own order */
        const struct support_dump_row *d = &dump.rows[i];
        char head[128];
        const char *server = d->server && *d->server ? d->server : "be1";
        snprintf(head, sizeof head, "t MAILBOX {%zu+}\r\n", strlen(d->name));
        mupdate_print(&want, head, strlen(head));
        mupdate_print(&want, d->name, strlen(d->name));
        snprintf(head, sizeof head, " {%zu+}\r\n%s!%s {%zu+}\r\n", strlen(server) + 1 + strlen(d->partition), server, d->partition, strlen(d->acl));
        mupdate_print(&want, head, strlen(head));
        mupdate_print(&want, d->acl, strlen(d->acl));
        mupdate_print(&want, "\r\n", 2);
    }
    struct job j = {.snapshot = begin(&s, "t", NULL, NULL), .len = 64u << 20};
    piece(&j);
    assert_int_equal(j.rc, RAFTDIR_ENOTFOUND);
    assert_int_equal(j.rows, n);
    assert_int_equal(j.out.len, want.len);
    assert_memory_equal(j.out.p, want.p, want.len);
    mupdate_snapshot_destroy(&j.snapshot);
    mupdate_out_free(&j.out);
    mupdate_out_free(&want);
    support_dump_free(&dump);
    support_store_close(&s);
}

/* --- Ends ------------------------------------------------------------------------------------------------------------------------------- */

static void test_stop(void **state)
{
    (void)state;
    struct support_store s;
    uint64_t r = support_seed();
    _Atomic bool stop = true;
    struct mupdate_out out = {0};
    uint64_t rows;
    support_store_open(&s, 0);
    build(&s, &r);
    struct mupdate_snapshot *snapshot = begin(&s, "t", NULL, NULL);
    assert_int_equal(mupdate_snapshot_piece(snapshot, 4096, &stop, &out, &rows, NULL), 0);
    assert_int_equal(rows, 0);
    mupdate_snapshot_destroy(&snapshot); /* in the middle */
    snapshot = begin(&s, "t", NULL, NULL);
    mupdate_snapshot_destroy(&snapshot); /* before anything */
    mupdate_out_free(&out);
    support_store_close(&s);
}

/* Each of the records' ACLs, flipped in the file: the list ends with an error, behind rows that are all right. */
static void test_damage(void **state)
{
    (void)state;
    struct support_store s;
    struct mupdate_out want = {0};
    uint64_t r = support_seed();
    char path[128];
    unsigned damaged = 0;
    support_store_open(&s, 0);
    build(&s, &r);
    for (size_t i = 0; i < model_n; i++)
        print_row(&want, "t", &model[i]);
    snprintf(path, sizeof path, "%s/data.mdb", s.dir);
    assert_int_equal(store_sync(s.store, NULL), 0);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    size_t len = (size_t)lseek(fd, 0, SEEK_END);
    uint8_t *data = malloc(len);
    assert_non_null(data);
    assert_int_equal(pread(fd, data, len, 0), len);
    for (size_t at = 0; at + 20 < len && damaged < 60; at++) {
        uint8_t flipped = data[at] ^ 0x04;
        if (memcmp(data + at, "lrswipkxtecda\t", 14) != 0 || support_below(&r, 8))
            continue;
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
        struct job j = {.snapshot = begin(&s, "t", NULL, NULL), .len = 1 << 20};
        piece(&j);
        if (j.rc == RAFTDIR_ECORRUPT) { /* else: a page that isn't used any more */
            damaged++;
            assert_true(j.out.len < want.len);
        } else {
            assert_int_equal(j.rc, RAFTDIR_ENOTFOUND);
            assert_int_equal(j.out.len, want.len);
        }
        if (j.out.len)
            assert_memory_equal(j.out.p, want.p, j.out.len);
        mupdate_snapshot_destroy(&j.snapshot);
        mupdate_out_free(&j.out);
        assert_int_equal(pwrite(fd, data + at, 1, (off_t)at), 1);
    }
    assert_true(damaged > 5);
    close(fd);
    free(data);
    mupdate_out_free(&want);
    support_store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters), cmocka_unit_test(test_one_snapshot), cmocka_unit_test(test_dump), cmocka_unit_test(test_stop), cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
