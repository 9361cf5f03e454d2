/* test_acl.c - ACLs: rights and macros as a table, evaluation and changes against brute force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "raftdir/acl.h"

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % n;
}

/* RAFTDIR_TEST_SEED=n repeats a run. */
static void random_start(const char *what)
{
    const char *seed = getenv("RAFTDIR_TEST_SEED");
    random_state = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL) * 2654435761u;
    printf("%s: RAFTDIR_TEST_SEED=%llu\n", what, (unsigned long long)random_state);
    random_state |= 1;
}

static void acl_rights_table(void **state)
{
    (void)state;
    /* What lib/acl.c of Cyrus makes of each text with its default "deleteright: c". */
    static const struct {
        const char *in, *out; /* NULL: refused */
    } rows[] = {
        {"", ""},
        {"lrs", "lrs"},
        {"srl", "lrs"},
        {"llrr", "lr"},
        {"k", "kc"},
        {"x", "xc"},
        {"t", "td"},
        {"e", "ed"},
        {"c", "kxc"},
        {"d", "ted"},
        {"cd", "kxtecd"},
        {"kc", "kc"},  /* a member beside the macro: the macro says nothing */
        {"cx", "xc"},
        {"td", "td"},
        {"lrswipkxtean", "lrswipkxtecdan"},
        {"lrswipkxtecdan", "lrswipkxtecdan"},
        {"lrswipcda", "lrswipkxtecda"},
        {"0123456789", "0123456789"},
        {"9a0", "a09"},
        {"lrswipkxtecdan0123456789", "lrswipkxtecdan0123456789"},
        {"L", NULL},
        {"lrz", NULL},
        {"l r", NULL},
        {"+l", NULL},
        {"l\xc3", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        acl_rights rights;
        char text[33];
        struct err err = {0};
        int rc = acl_rights_parse(rows[i].in, strlen(rows[i].in), &rights, &err);
        if (!rows[i].out) {
            if (rc != RAFTDIR_EACL || !strstr(err.text, "is no right"))
                fail_msg("\"%s\": %d \"%s\"", rows[i].in, rc, err.text);
            continue;
        }
        assert_int_equal(rc, 0);
        size_t len = acl_rights_format(rights, text);
        assert_int_equal(len, strlen(text));
        assert_string_equal(text, rows[i].out);
        acl_rights again;
        assert_int_equal(acl_rights_parse(text, strlen(text), &again, NULL), 0);
        assert_int_equal(again, rights);
    }
    acl_rights all = 0;
    for (const char *p = ACL_RIGHT_LETTERS; *p; p++) {
        assert_true(acl_right(*p) != 0);
        assert_int_equal(acl_right(*p) & (acl_right(*p) - 1), 0);
        assert_int_equal(all & acl_right(*p), 0);
        all |= acl_right(*p);
    }
    assert_int_equal(acl_right('c') | acl_right('d') | acl_right('z') | acl_right('\0'), 0);
    char text[33];
    assert_true(acl_rights_format(~(acl_rights)0, text) < sizeof text);
}

static void acl_check_table(void **state)
{
    (void)state;
    static const struct {
        const char *acl;
        int rc;
        const char *text;
        int entries;
    } rows[] = {
        {"", 0, NULL, 0},
        {"foo\tlrs\t", 0, NULL, 1},
        {"foo\tlrs\tanyone\tp\t-bar\tlr\tgroup:staff\tlrswipkxtecdan\t", 0, NULL, 4},
        {"foo\t\t", 0, NULL, 1},
        {"foo\tl\tfoo\tr\t", 0, NULL, 2},
        {"\xc3\xbc\tl\t", 0, NULL, 1},
        {"foo", RAFTDIR_EACL, "no TAB behind the identifier at position 0", 0},
        {"foo\tlrs", RAFTDIR_EACL, "no TAB behind the rights at position 4", 0},
        {"foo\tlrs\tbar", RAFTDIR_EACL, "no TAB behind the identifier at position 8", 0},
        {"foo\tlrs\tbar\tl", RAFTDIR_EACL, "no TAB behind the rights at position 12", 0},
        {"\tlrs\t", RAFTDIR_EACL, "empty identifier", 0},
        {"-\tlrs\t", RAFTDIR_EACL, "empty identifier", 0},
        {"\t\t", RAFTDIR_EACL, "empty identifier", 0},
        {"foo\tlrz\t", RAFTDIR_EACL, "'z', which is no right", 0},
        {"foo\tl\nr\t", RAFTDIR_EACL, "0x0a", 0},
        {"f\noo\tlr\t", RAFTDIR_EACL, "control character", 0},
        {"f\xff\tlr\t", RAFTDIR_EACL, "not UTF-8", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        int rc = acl_check(rows[i].acl, strlen(rows[i].acl), &err);
        if (rc != rows[i].rc || (rows[i].text && !strstr(err.text, rows[i].text)))
            fail_msg("row %zu: %d \"%s\"", i, rc, err.text);
        if (rc)
            continue;
        size_t pos = 0;
        int n = 0;
        struct acl_entry e;
        while (acl_next(rows[i].acl, strlen(rows[i].acl), &pos, &e, NULL) == 1)
            n++;
        assert_int_equal(n, rows[i].entries);
    }

    struct acl_entry e;
    size_t pos = 0;
    const char *acl = "-foo\tlr\tbar\tcd\t";
    assert_int_equal(acl_next(acl, strlen(acl), &pos, &e, NULL), 1);
    assert_true(e.negative && e.id_len == 3 && memcmp(e.id, "foo", 3) == 0 && e.rights == (acl_right('l') | acl_right('r')));
    assert_true(e.rights_len == 2 && memcmp(e.rights_text, "lr", 2) == 0);
    assert_int_equal(acl_next(acl, strlen(acl), &pos, &e, NULL), 1);
    assert_true(!e.negative && e.rights == (acl_right('k') | acl_right('x') | acl_right('t') | acl_right('e')));
    assert_int_equal(acl_next(acl, strlen(acl), &pos, &e, NULL), 0);
}

static void acl_check_limits(void **state)
{
    (void)state;
    char *acl = malloc(ACL_LEN_MAX + 100);
    assert_non_null(acl);
    struct err err;
    size_t len = 0;
    for (int i = 0; i < ACL_ENTRIES_MAX; i++, len += 4)
        memcpy(acl + len, "u\tl\t", 4);
    assert_int_equal(acl_check(acl, len, &err), 0);
    memcpy(acl + len, "u\tl\t", 4);
    assert_int_equal(acl_check(acl, len + 4, &err), RAFTDIR_ETOOBIG);
    assert_non_null(strstr(err.text, "4096 entries"));
    memset(acl, 'x', ACL_LEN_MAX + 100);
    assert_int_equal(acl_check(acl, ACL_LEN_MAX + 1, &err), RAFTDIR_ETOOBIG);
    memcpy(acl + IDENTIFIER_LEN_MAX, "\tl\t", 3);
    assert_int_equal(acl_check(acl, IDENTIFIER_LEN_MAX + 3, &err), 0);
    acl[IDENTIFIER_LEN_MAX] = 'x';
    memcpy(acl + IDENTIFIER_LEN_MAX + 1, "\tl\t", 3);
    assert_int_equal(acl_check(acl, IDENTIFIER_LEN_MAX + 4, &err), RAFTDIR_EACL);
    free(acl);
}

static void acl_principals(void **state)
{
    (void)state;
    static const struct {
        const char *id, *principal;
    } rows[] = {
        {"ben^1900", "ben.1900"}, {"ben.1900", "ben.1900"}, {"a^b@c.d", "a.b@c.d"}, {"anyone", "anyone"}, {"anonymous", "anonymous"},
        {"group:a^b", "group:a^b"}, {"group", "group"}, {"group^x", "group.x"},
    };
    char buf[IDENTIFIER_LEN_MAX];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t len = acl_principal(rows[i].id, strlen(rows[i].id), buf);
        if (len != strlen(rows[i].principal) || memcmp(buf, rows[i].principal, len) != 0)
            fail_msg("\"%s\": \"%.*s\"", rows[i].id, (int)len, buf);
    }
    char id[IDENTIFIER_LEN_MAX + 1];
    memset(id, '^', sizeof id);
    assert_int_equal(acl_principal(id, IDENTIFIER_LEN_MAX, buf), IDENTIFIER_LEN_MAX);
    assert_int_equal(acl_principal(id, IDENTIFIER_LEN_MAX + 1, buf), 0);
}

static void acl_eval_table(void **state)
{
    (void)state;
    static const char *const staff[] = {"staff"}, *const group_staff[] = {"other", "group:staff"};
    static const struct {
        const char *acl, *user;
        const char *const *groups;
        size_t groups_n;
        const char *rights;
    } rows[] = {
        {"foo\tlrs\t", "foo", NULL, 0, "lrs"},
        {"foo\tlrs\t", "fo", NULL, 0, ""},
        {"foo\tlrs\t", "fooo", NULL, 0, ""},
        {"foo\tlrs\t", "Foo", NULL, 0, ""},
        {"foo\tlrs\t", NULL, NULL, 0, ""},
        {"", "foo", NULL, 0, ""},
        {"anyone\tlr\t", "foo", NULL, 0, "lr"},
        {"anyone\tlr\t", "anonymous", NULL, 0, "lr"},
        {"anyone\tlr\t", NULL, NULL, 0, "lr"},
        {"anonymous\tlr\t", "foo", NULL, 0, ""},
        {"anonymous\tlr\t", "anonymous", NULL, 0, "lr"},
        {"ben^1900\tlr\t", "ben.1900", NULL, 0, "lr"},
        {"ben.1900\tlr\t", "ben^1900", NULL, 0, "lr"},
        {"ben^1900\tl\tben.1900\tr\t", "ben.1900", NULL, 0, "lr"},
        {"group:staff\tlr\t", "foo", staff, 1, "lr"},
        {"group:staff\tlr\t", "foo", group_staff, 2, "lr"},
        {"group:staff\tlr\t", "foo", NULL, 0, ""},
        {"group:staffs\tlr\t", "foo", staff, 1, ""},
        {"group:staf\tlr\t", "foo", staff, 1, ""},
        {"staff\tlr\t", "foo", staff, 1, ""},
        {"group:staff\tlr\t", "group:staff", NULL, 0, ""}, /* no user is a group */
        {"group:a^b\tlr\t", "group:a.b", NULL, 0, ""},
        {"foo\tl\tanyone\tr\tgroup:staff\ts\t", "foo", staff, 1, "lrs"},
        {"foo\tlrs\t-foo\tr\t", "foo", NULL, 0, "ls"},
        {"-foo\tr\tfoo\tlrs\t", "foo", NULL, 0, "ls"}, /* whatever the order */
        {"-anyone\tp\tfoo\tlrp\t", "foo", NULL, 0, "lr"},
        {"anyone\tlrs\t-group:staff\tlrs\t", "foo", staff, 1, ""},
        {"-foo\tlr\t", "foo", NULL, 0, ""},
        {"foo\tc\t-foo\tx\t", "foo", NULL, 0, "kc"},
        {"foo\tlr\tbar", "foo", NULL, 0, ""},      /* malformed: nothing */
        {"foo\tlr\tbar\tzz\t", "foo", NULL, 0, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct acl_subject who = {rows[i].user, rows[i].groups, rows[i].groups_n};
        char text[33];
        acl_rights_format(acl_eval(rows[i].acl, strlen(rows[i].acl), &who), text);
        if (strcmp(text, rows[i].rights) != 0)
            fail_msg("row %zu: \"%s\", wanted \"%s\"", i, text, rows[i].rights);
    }
}

/* ---- brute force ---- */

static const char *const ids[] = {"a", "a.b", "a^b", "b@d.org", "anyone", "anonymous", "group:g", "group:h", "group:a^b", "g"};
#define IDS (sizeof ids / sizeof *ids)

struct model_entry {
    char id[32];
    bool negative;
    char rights[33];
};

static size_t model_random(struct model_entry *m, size_t max, char *acl)
{
    size_t n = random_below((uint32_t)max + 1);
    *acl = '\0';
    for (size_t i = 0; i < n; i++) {
        strcpy(m[i].id, ids[random_below(IDS)]);
        m[i].negative = random_below(4) == 0;
        size_t k = random_below(6);
        for (size_t j = 0; j < k; j++)
            m[i].rights[j] = "lrswipkxtecdan0123456789"[random_below(24)];
        m[i].rights[k] = '\0';
        sprintf(acl + strlen(acl), "%s%s\t%s\t", m[i].negative ? "-" : "", m[i].id, m[i].rights);
    }
    return n;
}

/* As cyrus_acl_strtomask() has it, letter by letter. */
static acl_rights naive_rights(const char *s)
{
    acl_rights rights = 0;
    for (const char *p = s; *p; p++)
        rights |= acl_right(*p);
    if (strchr(s, 'c') && !strchr(s, 'k') && !strchr(s, 'x'))
        rights |= acl_right('k') | acl_right('x');
    if (strchr(s, 'd') && !strchr(s, 't') && !strchr(s, 'e'))
        rights |= acl_right('t') | acl_right('e');
    return rights;
}

static void dotted(const char *id, char *out)
{
    strcpy(out, id);
    if (strncmp(id, "group:", 6) != 0) {
        for (char *p = out; *p; p++) {
            if (*p == '^')
                *p = '.';
        }
    }
}

static bool naive_same(const char *a, const char *b)
{
    char x[64], y[64];
    dotted(a, x);
    dotted(b, y);
    return strcmp(x, y) == 0;
}

static acl_rights naive_eval(const struct model_entry *m, size_t n, const char *user, const char *const *groups, size_t groups_n)
{
    acl_rights yes = 0, no = 0;
    for (size_t i = 0; i < n; i++) {
        bool matches = strcmp(m[i].id, "anyone") == 0 || (strncmp(m[i].id, "group:", 6) != 0 && naive_same(m[i].id, user));
        for (size_t g = 0; g < groups_n; g++) {
            char group[64];
            snprintf(group, sizeof group, "%s%s", strncmp(groups[g], "group:", 6) == 0 ? "" : "group:", groups[g]);
            matches |= strcmp(m[i].id, group) == 0;
        }
        if (matches && m[i].negative)
            no |= naive_rights(m[i].rights);
        else if (matches)
            yes |= naive_rights(m[i].rights);
    }
    return yes & ~no;
}

static void acl_eval_property(void **state)
{
    (void)state;
    random_start("acl/eval");
    static const char *const users[] = {"a", "a.b", "a^b", "b@d.org", "anonymous", "anyone", "group:g", "g", "c"};
    static const char *const groups[] = {"g", "group:h", "a^b", "group:none"};
    unsigned granted = 0;
    for (int i = 0; i < 100000; i++) {
        struct model_entry m[8];
        char acl[1024];
        size_t n = model_random(m, 8, acl);
        const char *user = users[random_below(sizeof users / sizeof *users)];
        size_t from = random_below(4), groups_n = random_below(4 - (uint32_t)from + 1);
        struct acl_subject who = {user, groups + from, groups_n};
        acl_rights got = acl_eval(acl, strlen(acl), &who), wanted = naive_eval(m, n, user, groups + from, groups_n);
        if (got != wanted)
            fail_msg("\"%s\" user \"%s\" groups %zu+%zu: %x, wanted %x", acl, user, from, groups_n, got, wanted);
        assert_int_equal(acl_check(acl, strlen(acl), NULL), 0);
        granted += got != 0;
    }
    assert_true(granted > 1000);
}

static void acl_modify_table(void **state)
{
    (void)state;
    static const struct {
        const char *acl, *id, *rights, *out;
    } rows[] = {
        {"", "foo", "lrs", "foo\tlrs\t"},
        {"foo\tlrs\t", "bar", "p", "foo\tlrs\tbar\tp\t"},
        {"foo\tlrs\tbar\tp\t", "foo", "l", "foo\tl\tbar\tp\t"},
        {"foo\tlrs\tbar\tp\t", "foo", "", "bar\tp\t"},
        {"foo\tlrs\t", "foo", "+w", "foo\tlrsw\t"},
        {"foo\tlrs\t", "foo", "-s", "foo\tlr\t"},
        {"foo\tlrs\t", "foo", "-lrs", ""},
        {"foo\tlrs\t", "foo", "+", "foo\tlrs\t"},
        {"foo\tlrs\t", "bar", "-l", "foo\tlrs\t"},
        {"foo\tlrs\t", "bar", "", "foo\tlrs\t"},
        {"foo\tlrs\t", "-foo", "s", "foo\tlrs\t-foo\ts\t"},
        {"foo\tlrs\t-foo\ts\t", "-foo", "", "foo\tlrs\t"},
        {"foo\tlrs\t-foo\ts\t", "foo", "", "-foo\ts\t"},
        {"", "foo", "cd", "foo\tkxtecd\t"},
        {"foo\tlrswipkxtean\t", "foo", "lrswipkxtecdan", "foo\tlrswipkxtean\t"}, /* the same rights: the same text */
        {"ben^1900\tlr\t", "ben.1900", "+s", "ben^1900\tlrs\t"},                 /* one principal, its spelling stays */
        {"foo\tl\tbar\tp\tfoo\tr\t", "foo", "+s", "foo\tlrs\tbar\tp\t"},         /* listed twice: once afterwards */
        {"group:a^b\tl\t", "group:a.b", "r", "group:a^b\tl\tgroup:a.b\tr\t"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char buf[256];
        size_t len;
        struct err err = {0};
        int rc = acl_modify(rows[i].acl, strlen(rows[i].acl), rows[i].id, rows[i].rights, buf, sizeof buf, &len, &err);
        if (rc || len != strlen(rows[i].out) || memcmp(buf, rows[i].out, len) != 0)
            fail_msg("row %zu: %d \"%s\" \"%.*s\"", i, rc, err.text, rc ? 0 : (int)len, buf);
    }
    char buf[64];
    size_t len;
    assert_int_equal(acl_modify("", 0, "", "l", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("", 0, "-", "l", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("", 0, "a\tb", "l", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("", 0, "a", "z", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("", 0, "a", "+-l", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("bad", 3, "a", "l", buf, sizeof buf, &len, NULL), RAFTDIR_EACL);
    assert_int_equal(acl_modify("", 0, "a", "l", buf, 4, &len, NULL), 0);
    assert_int_equal(acl_modify("", 0, "a", "l", buf, 3, &len, NULL), RAFTDIR_ETOOBIG);

    /* The limits of a whole ACL hold for a changed one. */
    char *acl = malloc(ACL_LEN_MAX), *out = malloc(2 * ACL_LEN_MAX);
    assert_true(acl && out);
    for (size_t i = 0; i < ACL_ENTRIES_MAX; i++)
        memcpy(acl + 4 * i, "u\tl\t", 4);
    acl[0] = 'v';
    for (size_t i = 1; i < ACL_ENTRIES_MAX; i++)
        acl[4 * i] = (char)('A' + i % 26);
    assert_int_equal(acl_modify(acl, 4 * ACL_ENTRIES_MAX, "w", "l", out, 2 * ACL_LEN_MAX, &len, NULL), RAFTDIR_ETOOBIG);
    assert_int_equal(acl_modify(acl, 4 * ACL_ENTRIES_MAX, "v", "", out, 2 * ACL_LEN_MAX, &len, NULL), 0);
    assert_int_equal(len, 4 * ACL_ENTRIES_MAX - 4);
    memset(acl, 'x', ACL_LEN_MAX);
    for (size_t i = 400; i + 3 < ACL_LEN_MAX; i += 403)
        memcpy(acl + i, "\tl\t", 3);
    size_t whole = ACL_LEN_MAX / 403 * 403;
    assert_int_equal(acl_check(acl, whole, NULL), 0);
    char id[IDENTIFIER_LEN_MAX + 1];
    memset(id, 'y', IDENTIFIER_LEN_MAX);
    id[IDENTIFIER_LEN_MAX] = '\0';
    assert_int_equal(acl_modify(acl, whole, id, "l", out, 2 * ACL_LEN_MAX, &len, NULL), RAFTDIR_ETOOBIG);
    free(acl);
    free(out);
}

/* Changed as asked for the identifier, and for nobody else. */
static void acl_modify_property(void **state)
{
    (void)state;
    random_start("acl/modify");
    for (int i = 0; i < 50000; i++) {
        struct model_entry m[6];
        char acl[1024], out[2048], given[8] = "";
        size_t n = model_random(m, 6, acl), out_len;
        char id[40];
        bool negative = random_below(4) == 0;
        snprintf(id, sizeof id, "%s%s", negative ? "-" : "", ids[random_below(IDS)]);
        char mode = "=+-"[random_below(3)];
        size_t k = random_below(4);
        for (size_t j = 0; j < k; j++)
            given[j] = "lrswipkxtecdan"[random_below(14)];
        char rights[16];
        snprintf(rights, sizeof rights, "%s%s", mode == '+' ? "+" : mode == '-' ? "-" : "", given);
        assert_int_equal(acl_modify(acl, strlen(acl), id, rights, out, sizeof out, &out_len, NULL), 0);
        assert_int_equal(acl_check(out, out_len, NULL), 0);

        acl_rights old = 0, now = 0;
        unsigned others_before = 0, others_after = 0, found = 0;
        for (size_t j = 0; j < n; j++) {
            if (m[j].negative == negative && naive_same(m[j].id, id + negative))
                old |= naive_rights(m[j].rights);
            else
                others_before++;
        }
        struct acl_entry e;
        size_t pos = 0;
        while (acl_next(out, out_len, &pos, &e, NULL) == 1) {
            char this[64];
            snprintf(this, sizeof this, "%.*s", (int)e.id_len, e.id);
            if (e.negative == negative && naive_same(this, id + negative)) {
                now |= e.rights;
                found++;
            } else {
                others_after++;
            }
        }
        acl_rights delta = naive_rights(given), wanted = mode == '+' ? old | delta : mode == '-' ? old & ~delta : delta;
        if (now != wanted || others_before != others_after || found != (wanted != 0))
            fail_msg("\"%s\" %s \"%s\" -> \"%.*s\"", acl, id, rights, (int)out_len, out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(acl_rights_table), cmocka_unit_test(acl_check_table),   cmocka_unit_test(acl_check_limits), cmocka_unit_test(acl_principals),
        cmocka_unit_test(acl_eval_table),   cmocka_unit_test(acl_eval_property), cmocka_unit_test(acl_modify_table), cmocka_unit_test(acl_modify_property),
    };
    return cmocka_run_group_tests_name("acl", tests, NULL, NULL);
}
