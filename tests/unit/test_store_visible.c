/* test_store_visible.c - lists and visible against brute force: the whole dump of a real Cyrus with some dozens of its users, and the bound
 * on the rows touched, at 1x and 100x directory size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "raftdir/name.h"
#include "support_store.h"

static const char *domain_of_user(const char *user)
{
    const char *at = strrchr(user, '@');
    return at ? at + 1 : "";
}

static bool same_domain(const char *name, const char *user)
{
    size_t len = name_domain_len(name, strlen(name));
    const char *domain = domain_of_user(user);
    return len == 0 ? *domain == '\0' : strlen(domain) == len - 1 && memcmp(domain, name, len - 1) == 0;
}

/* Has the ACL an entry (positive, if wanted) with rights for the user himself, one of the groups, or (own domain) anyone? */
static bool names_it(const char *name, const char *acl, const struct acl_subject *who, bool positive_only)
{
    struct acl_entry e;
    size_t pos = 0;
    while (acl_next(acl, strlen(acl), &pos, &e, NULL) == 1) {
        char one[IDENTIFIER_LEN_MAX + 64];
        if ((e.negative && positive_only) || e.rights == 0)
            continue;
        bool anyone = e.id_len == 6 && memcmp(e.id, "anyone", 6) == 0;
        if (anyone && same_domain(name, who->user))
            return true;
        /* An ACL of this entry alone, positive: does it give the subject anything? */
        snprintf(one, sizeof one, "%.*s\tl\t", (int)e.id_len, e.id);
        if (!anyone && acl_eval(one, strlen(one), who))
            return true;
    }
    return false;
}

static acl_rights brute_rights(const char *name, const char *acl, const struct acl_subject *who)
{
    return names_it(name, acl, who, true) ? acl_eval(acl, strlen(acl), who) : 0;
}

static void load_dump(struct support_store *s, const struct support_dump *dump)
{
    struct support_arena a = {0};
    Raftdir__Log__Op *ops[200];
    for (size_t i = 0; i < dump->n;) {
        size_t n = 0;
        for (; n < 200 && i < dump->n; n++, i++) {
            const struct support_dump_row *r = &dump->rows[i];
            ops[n] = support_put(&a, r->name, r->server, r->partition, r->acl);
            ops[n]->put->mailbox->uniqueid = support_text(&a, r->uniqueid);
            ops[n]->put->mailbox->mbtype = support_text(&a, r->mbtype);
            ops[n]->put->mailbox->has_mtime = true;
            ops[n]->put->mailbox->mtime = r->mtime;
        }
        Raftdir__Log__Result *result = support_apply(&a, s, support_request(&a, s, ops, n));
        if (result->code)
            fail_msg("%s", result->message);
        support_free(&a);
    }
}

/* Runs a visible scan and compares it with brute force over the rows; in chunks of `chunk` rows and transactions. Returns the rows. */
static size_t check_visible(struct support_store *s, const struct support_dump *dump, const struct acl_subject *who, acl_rights rights,
                            const char *pattern, const char *after, unsigned chunk)
{
    struct store_scan *scan;
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    struct store_counters c;
    size_t rows = 0, acl_rows = 0, literal = name_pattern_literal(pattern);
    uint8_t after_key[NAME_KEY_LEN_MAX], key[NAME_KEY_LEN_MAX];
    size_t after_len = after ? name_to_key(after, strlen(after), after_key) : 0;
    assert_int_equal(store_visible_begin(who, rights, pattern, after, &scan, &err), 0);
    assert_int_equal(store_read_begin(s->store, &txn, &err), 0);
    unsigned in_chunk = 0, chunks = 1;
    for (size_t i = 0; i < dump->n; i++) {
        const struct support_dump_row *r = &dump->rows[i];
        size_t len = strlen(r->name);
        if (strncmp(r->name, pattern, literal) == 0) {
            struct acl_entry e;
            size_t pos = 0;
            /* Rows, as the index has them: one for each identity that the ACL names. */
            while (acl_next(r->acl, strlen(r->acl), &pos, &e, NULL) == 1) {
                char one[IDENTIFIER_LEN_MAX + 64];
                snprintf(one, sizeof one, "%.*s\tl\t", (int)e.id_len, e.id);
                acl_rows += names_it(r->name, one, who, false) && !e.negative;
            }
        }
        acl_rights want = brute_rights(r->name, r->acl, who), got;
        name_to_key(r->name, len, key);
        if (!(want & rights) || !name_match(pattern, r->name, len) || (after && name_key_cmp(key, len, after_key, after_len) <= 0))
            continue;
        if (in_chunk == chunk) {
            store_scan_release(scan);
            store_read_reset(txn);
            assert_int_equal(store_read_renew(txn, &err), 0);
            in_chunk = 0;
            chunks++;
        }
        int rc = store_scan_next(scan, txn, &m, &got, &err);
        if (rc)
            fail_msg("%s, pattern \"%s\": lacks \"%s\": %s", who->user, pattern, r->name, rc == RAFTDIR_ENOTFOUND ? "end" : err.text);
        assert_string_equal(m.name, r->name);
        assert_int_equal(got, want);
        assert_int_equal(m.server.len, strlen(r->server));
        assert_memory_equal(m.server.s, r->server, m.server.len);
        assert_int_equal(m.acl.len, strlen(r->acl));
        rows++;
        in_chunk++;
    }
    int rc = store_scan_next(scan, txn, &m, NULL, &err);
    if (rc != RAFTDIR_ENOTFOUND)
        fail_msg("%s, pattern \"%s\": has \"%s\" too many", who->user, pattern, rc ? err.text : m.name);
    store_scan_counters(scan, &c);
    if (c.touched > 2 * (acl_rows + rows + c.skips))
        fail_msg("%s, pattern \"%s\": %llu rows touched; %zu ACL rows, %zu rows, %llu skips", who->user, pattern, (unsigned long long)c.touched,
                 acl_rows, rows, (unsigned long long)c.skips);
    /* Skips stay honest: a seek for each source and range and chunk, and for each row at most one in each source. */
    assert_true(c.skips <= 2 * (who->groups_n + 2) * chunks + (acl_rows + rows) * 2);
    store_scan_end(&scan);
    store_read_end(&txn);
    return rows;
}

static void test_dump(void **state)
{
    (void)state;
    struct support_store s;
    struct support_dump dump;
    uint64_t random = support_seed();
    support_store_open(&s, 0);
    support_dump_read(TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", &dump);
    assert_int_equal(dump.n, 29095);
    load_dump(&s, &dump);
    assert_int_equal(support_verify(&s, false), 0);

    /* The list is the dump, in its order, in chunks of one transaction each. */
    struct store_scan *scan;
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    assert_int_equal(store_list_begin(NULL, NULL, &scan, &err), 0);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    for (size_t i = 0; i < dump.n; i++) {
        if (i % 1000 == 999) {
            store_scan_release(scan);
            store_read_reset(txn);
            assert_int_equal(store_read_renew(txn, &err), 0);
        }
        assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), 0);
        assert_string_equal(m.name, dump.rows[i].name);
        assert_int_equal(m.mtime, dump.rows[i].mtime);
        assert_memory_equal(m.uniqueid.s, dump.rows[i].uniqueid, m.uniqueid.len);
    }
    assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), RAFTDIR_ENOTFOUND);
    store_scan_end(&scan);

    /* By server and partition. */
    const struct store_filter filter = {.server = "imap02.example.net", .partition = "p4", .prefix = "user."};
    assert_int_equal(store_list_begin(&filter, NULL, &scan, &err), 0);
    size_t of_server = 0;
    for (size_t i = 0; i < dump.n; i++) {
        const struct support_dump_row *r = &dump.rows[i];
        if (strcmp(r->server, filter.server) != 0 || strcmp(r->partition, filter.partition) != 0 || strncmp(r->name, "user.", 5) != 0)
            continue;
        assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), 0);
        assert_string_equal(m.name, r->name);
        of_server++;
    }
    assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), RAFTDIR_ENOTFOUND);
    struct store_counters c;
    store_scan_counters(scan, &c);
    assert_true(of_server > 100 && c.touched <= 2 * of_server + 100);
    store_scan_end(&scan);
    store_read_end(&txn);

    /* Users that ACLs name, owners, and strangers; groups picked at random. */
    static const char *const patterns[] = {"*", "user.*", "%", "user.%", "*.sub1", "user.%.%", "DELETED.*", "acme126.example!*", "shared.*", "%.%.sub%"};
    static const char *const rights[] = {"l", "p", "lr", "w", "a", "te"};
    size_t rows = 0, asked = 0;
    for (int i = 0; i < 60; i++) {
        char user[NAME_LEN_MAX + 1], pattern[NAME_LEN_MAX + 8], groups_text[8][32];
        const char *groups[8];
        const struct support_dump_row *r = &dump.rows[support_below(&random, (unsigned)dump.n)];
        if (i % 3 == 0 || !name_owner(r->name, strlen(r->name), user)) {
            struct acl_entry e;
            size_t pos = 0;
            unsigned skip = support_below(&random, 4);
            snprintf(user, sizeof user, "stranger");
            while (acl_next(r->acl, strlen(r->acl), &pos, &e, NULL) == 1) {
                if (strncmp(e.id, "group:", 6) == 0)
                    continue;
                snprintf(user, sizeof user, "%.*s", (int)e.id_len, e.id);
                if (skip-- == 0)
                    break;
            }
        }
        struct acl_subject who = {.user = user, .groups = groups, .groups_n = support_below(&random, 9)};
        for (size_t g = 0; g < who.groups_n; g++) {
            snprintf(groups_text[g], sizeof groups_text[g], "%sstaff%u", g % 2 ? "group:" : "", support_below(&random, 140));
            groups[g] = groups_text[g];
        }
        acl_rights want;
        const char *letters = rights[support_below(&random, 6)];
        assert_int_equal(acl_rights_parse(letters, strlen(letters), &want, NULL), 0);
        const char *p = patterns[support_below(&random, 10)];
        snprintf(pattern, sizeof pattern, "%s", p);
        if (i % 4 == 1 && name_of_user(user, pattern, NULL) == 0)
            strcat(pattern, "%");
        else if (i % 4 == 2 && name_of_user(user, pattern, NULL) == 0)
            strcat(pattern, ".%");
        rows += check_visible(&s, &dump, &who, want, pattern, NULL, 7 + support_below(&random, 100));
        rows += check_visible(&s, &dump, &who, want, "*", i % 2 ? r->name : NULL, 1000);
        asked += 2;
    }
    print_message("%zu questions, %zu rows\n", asked, rows);
    assert_true(rows > 500);
    support_dump_free(&dump);
    support_store_close(&s);
}

static void add_row(struct support_dump *d, const char *name, const char *acl)
{
    if ((d->n & (d->n - 1)) == 0) { /* 0 and the powers of two */
        d->rows = realloc(d->rows, (d->n ? 2 * d->n : 1) * sizeof *d->rows);
        assert_non_null(d->rows);
    }
    d->rows[d->n++] = (struct support_dump_row){.name = strdup(name), .server = strdup("be1"), .partition = strdup("p1"), .acl = strdup(acl),
                                                .mbtype = strdup(""), .uniqueid = strdup("")};
}

static int cmp_rows(const void *a, const void *b)
{
    const struct support_dump_row *x = a, *y = b;
    uint8_t k[NAME_KEY_LEN_MAX], l[NAME_KEY_LEN_MAX];
    size_t k_len = name_to_key(x->name, strlen(x->name), k), l_len = name_to_key(y->name, strlen(y->name), l);
    return name_key_cmp(k, k_len, l, l_len);
}

/* The same questions over a directory with `others` further users: what they touch must not depend on it. */
static void fill(struct support_store *s, struct support_dump *d, unsigned others)
{
    char name[128], acl[128];
    *d = (struct support_dump){0};
    for (int i = 0; i < 30; i++) {
        snprintf(name, sizeof name, "user.m^m.f%02d", i);
        add_row(d, name, "m.m\tlrswipkxtecdan\t");
        for (int j = 0; j < 5; j++) {
            snprintf(name, sizeof name, "user.m^m.f%02d.s%d", i, j);
            add_row(d, name, "m^m\tlrswipkxtecdan\t");
        }
        snprintf(name, sizeof name, "shared.t%02d", i);
        add_row(d, name, i % 2 ? "anyone\tlr\t-group:out\tl\t" : "group:in\tlrs\t-m.m\ts\t");
    }
    for (unsigned i = 0; i < others; i++) {
        snprintf(name, sizeof name, "user.o%u", i);
        snprintf(acl, sizeof acl, "o%u\tlrswipkxtecdan\tgroup:g%u\tlr\t", i, i % 7);
        add_row(d, name, acl);
        snprintf(name, sizeof name, "d%u.org!shared.box", i);
        add_row(d, name, "anyone\tlr\t");
    }
    qsort(d->rows, d->n, sizeof *d->rows, cmp_rows);
    load_dump(s, d);
}

static void test_touched(void **state)
{
    (void)state;
    static const struct {
        const char *user, *group, *pattern;
        bool visible;
        size_t rows;
    } questions[] = {
        {"m.m", NULL, "*", true, 180 + 15},
        {"m.m", "in", "*", true, 180 + 30},
        {"m.m", "out", "*", true, 180},
        {"m.m", NULL, "user.m^m.%", true, 30},
        {"m.m", "in", "%", true, 0},
        {"m.m", "in", "shared.%", true, 30},
        {"x@d3.org", NULL, "*", true, 1},
        {"x", NULL, "*", true, 15},
        {NULL, NULL, "user.m^m.%", false, 30},
        {NULL, NULL, "shared.%", false, 30},
        {NULL, NULL, "user.m^m.%.s3", false, 30},
    };
    enum { N = sizeof questions / sizeof *questions };
    struct store_counters first[N];
    for (int round = 0; round < 2; round++) {
        struct support_store s;
        struct support_dump d;
        struct store_txn *txn;
        struct err err = {0};
        support_store_open(&s, 0);
        fill(&s, &d, round ? 10000 : 100);
        assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
        for (int i = 0; i < N; i++) {
            struct store_scan *scan;
            struct store_mailbox m;
            struct store_counters c;
            struct acl_subject who = {.user = questions[i].user, .groups = &questions[i].group, .groups_n = questions[i].group ? 1 : 0};
            struct store_filter filter = {.pattern = questions[i].pattern};
            if (questions[i].visible)
                assert_int_equal(store_visible_begin(&who, acl_right('l'), questions[i].pattern, NULL, &scan, &err), 0);
            else
                assert_int_equal(store_list_begin(&filter, NULL, &scan, &err), 0);
            size_t rows = 0;
            int rc;
            while ((rc = store_scan_next(scan, txn, &m, NULL, &err)) == 0)
                rows++;
            assert_int_equal(rc, RAFTDIR_ENOTFOUND);
            assert_int_equal(rows, questions[i].rows);
            store_scan_counters(scan, &c);
            store_scan_end(&scan);
            if (!questions[i].visible)
                assert_true(c.touched <= 2 * (rows + c.skips));
            if (round && (c.touched != first[i].touched || c.skips != first[i].skips))
                fail_msg("question %d touches %llu rows and %llu skips at 1x, %llu and %llu at 100x", i, (unsigned long long)first[i].touched,
                         (unsigned long long)first[i].skips, (unsigned long long)c.touched, (unsigned long long)c.skips);
            first[i] = c;
            if (questions[i].visible)
                check_visible(&s, &d, &who, acl_right('l'), questions[i].pattern, NULL, 10000);
        }
        store_read_end(&txn);
        support_dump_free(&d);
        support_store_close(&s);
    }
}

/* A filter that nothing matches is walked in bounded steps, and what is found is the same, whether the transaction stays or not. */
static void test_bound(void **state)
{
    (void)state;
    struct support_store s;
    struct support_dump d;
    struct store_txn *txn;
    struct store_mailbox m;
    struct store_scan *scan;
    struct err err = {0};
    support_store_open(&s, 0);
    fill(&s, &d, 2000);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    for (int renew = 0; renew < 2; renew++) {
        unsigned calls = 0, rows = 0, busy = 0;
        assert_int_equal(store_list_begin(&(struct store_filter){.pattern = "*4.s*"}, NULL, &scan, &err), 0);
        store_scan_bound(scan, 50);
        for (;;) {
            struct store_counters before, after;
            assert_true(++calls < 1000);
            store_scan_counters(scan, &before);
            int rc = store_scan_next(scan, txn, &m, NULL, &err);
            store_scan_counters(scan, &after);
            assert_true(after.touched - before.touched <= 50 + 3);
            if (rc == RAFTDIR_ENOTFOUND)
                break;
            assert_true(rc == 0 || rc == RAFTDIR_EBUSY);
            rows += rc == 0;
            busy += rc != 0;
            if (renew) {
                store_scan_release(scan);
                assert_int_equal(store_read_renew(txn, &err), 0);
            }
        }
        assert_int_equal(rows, 15);
        assert_true(busy > 20);
        store_scan_end(&scan);
    }
    store_read_end(&txn);
    support_dump_free(&d);
    support_store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_touched),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests_name("store_visible", tests, NULL, NULL);
}
