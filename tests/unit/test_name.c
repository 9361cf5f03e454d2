/* test_name.c - names: the rules as a table, the order and the patterns against brute force, and every name of the kept dumps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>
#include "raftdir/name.h"

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

struct check_row {
    const char *name;
    int rc;
    const char *text; /* a part of the message */
};

static void name_check_table(void **state)
{
    (void)state;
    static const struct check_row rows[] = {
        {"user.foo", 0, NULL},
        {"user.foo.bar", 0, NULL},
        {"user.john^doe", 0, NULL},
        {"example.org!user.john^doe.Sent", 0, NULL},
        {"example.org!pub", 0, NULL},
        {"shared dep with space", 0, NULL},
        {"shared", 0, NULL},
        {"user.O'Neil", 0, NULL},
        {"user.a.#calendars.Default", 0, NULL},
        {"user.a.b*c?d:e=f@g[h](i)+j,k_l~m$", 0, NULL},
        {"user.$bar", 0, NULL},
        {"user", RAFTDIR_ENAME, "reserved"},
        {"example.org!user", RAFTDIR_ENAME, "reserved"},
        {"user.anyone", RAFTDIR_ENAME, "reserved"},
        {"user.anonymous", RAFTDIR_ENAME, "reserved"},
        {"user.anyone.x", 0, NULL},
        {"users", 0, NULL},
        {"DELETED.user.foo.5F8471B3", 0, NULL},
        {"example.org!DELETED.user.foo.5F8471B3", 0, NULL},
        {"", RAFTDIR_ENAME, "empty"},
        {"$RACL", RAFTDIR_ENAME, "starts with '$'"},
        {"$d!user.x", RAFTDIR_ENAME, "starts with '$'"},
        {".user.foo", RAFTDIR_ENAME, "starts with '.'"},
        {"~foo", RAFTDIR_ENAME, "starts with '~'"},
        {"d!.foo", RAFTDIR_ENAME, "starts with '.'"},
        {"d!~foo", RAFTDIR_ENAME, "starts with '~'"},
        {"user.foo.", RAFTDIR_ENAME, "ends with '.'"},
        {".", RAFTDIR_ENAME, "starts with '.'"},
        {"user..foo", RAFTDIR_ENAME, "'..' at position 4"},
        {"!user.foo", RAFTDIR_ENAME, "domain is empty"},
        {"example.org!", RAFTDIR_ENAME, "nothing else"},
        {"a!b!c", RAFTDIR_ENAME, "'!' at position 3"},
        {".org!user.x", RAFTDIR_ENAME, "empty label"},
        {"example.!user.x", RAFTDIR_ENAME, "empty label"},
        {"example..org!user.x", RAFTDIR_ENAME, "empty label"},
        {"exa mple!user.x", RAFTDIR_ENAME, "' ' at position 3"},
        {"exa/mple!user.x", RAFTDIR_ENAME, "'/' at position 3"},
        {"user.a\"b", RAFTDIR_ENAME, "'\"'"},
        {"user.a%b", RAFTDIR_ENAME, "'%' at position 6"},
        {"user.a/b", RAFTDIR_ENAME, "'/'"},
        {"user.a;b", RAFTDIR_ENAME, "';'"},
        {"user.a<b", RAFTDIR_ENAME, "'<'"},
        {"user.a>b", RAFTDIR_ENAME, "'>'"},
        {"user.a\\b", RAFTDIR_ENAME, "'\\'"},
        {"user.a`b", RAFTDIR_ENAME, "'`'"},
        {"user.a{b", RAFTDIR_ENAME, "'{'"},
        {"user.a|b", RAFTDIR_ENAME, "'|'"},
        {"user.a}b", RAFTDIR_ENAME, "'}'"},
        {"user.a\rb", RAFTDIR_ENAME, "0x0d at position 6"},
        {"user.a\nb", RAFTDIR_ENAME, "0x0a"},
        {"user.a\tb", RAFTDIR_ENAME, "0x09"},
        {"user.a\x7f", RAFTDIR_ENAME, "0x7f"},
        {"user.a\x1f", RAFTDIR_ENAME, "0x1f"},
        {"user.\xc3\xbc", RAFTDIR_ENAME, "8-bit character 0xc3"},
        /* modified UTF-7, RFC 3501 section 5.1.3 */
        {"user.Entw&APw-rfe", 0, NULL},
        {"user.a&-b", 0, NULL},
        {"user.&-&-", 0, NULL},
        {"user.~peter.mail.&U,BTFw-.&ZeVnLIqe-", 0, NULL},
        {"user.&APwA9g-", 0, NULL},
        {"user.&APwA9gDk-", 0, NULL},
        {"user.&2D3eAA-", 0, NULL},
        {"user.&APw-&-", 0, NULL},
        {"user.&APw-x&APY-", 0, NULL},
        {"user.&APw-&APY-", RAFTDIR_ENAME, "adjacent"},
        {"user.a&b", RAFTDIR_ENAME, "ends in the modified UTF-7"},
        {"user.a&", RAFTDIR_ENAME, "ends in the modified UTF-7"},
        {"user.a&AP", RAFTDIR_ENAME, "ends in the modified UTF-7"},
        {"user.a&AP-", RAFTDIR_ENAME, "incomplete"},
        {"user.a&A-", RAFTDIR_ENAME, "incomplete"},
        {"user.a&APx-", RAFTDIR_ENAME, "incomplete"},
        {"user.a&APwA-", RAFTDIR_ENAME, "incomplete"},
        {"user.a&AGE-", RAFTDIR_ENAME, "ASCII"},
        {"user.a&AP/-", RAFTDIR_ENAME, "no valid modified UTF-7"},
        {"user.a&AP.w-", RAFTDIR_ENAME, "no valid modified UTF-7"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        int rc = name_check(rows[i].name, strlen(rows[i].name), &err);
        if (rc != rows[i].rc || (rows[i].text && !strstr(err.text, rows[i].text)))
            fail_msg("\"%s\": %d \"%s\", wanted %d \"%s\"", rows[i].name, rc, err.text, rows[i].rc, rows[i].text ? rows[i].text : "");
        assert_int_equal(name_check(rows[i].name, strlen(rows[i].name), NULL), rows[i].rc);
    }
    struct err err;
    assert_int_equal(name_check("user.a\0b", 8, &err), RAFTDIR_ENAME);
    assert_non_null(strstr(err.text, "NUL byte at position 6"));
}

static void name_check_length(void **state)
{
    (void)state;
    char name[600];
    struct err err;
    memset(name, 'x', sizeof name);
    assert_int_equal(name_check(name, NAME_LEN_MAX, &err), 0);
    assert_int_equal(name_check(name, NAME_LEN_MAX + 1, &err), RAFTDIR_ETOOBIG);
    assert_non_null(strstr(err.text, "491 bytes"));
    /* A deleted one may be longer. */
    memcpy(name, "DELETED.user.", 13);
    for (size_t len = NAME_LEN_MAX; len <= DELETED_NAME_LEN_MAX + 1; len++) {
        memset(name + 13, 'x', sizeof name - 13);
        memcpy(name + len - 9, ".5F8471B3", 9);
        assert_int_equal(name_check(name, len, &err), len <= DELETED_NAME_LEN_MAX ? 0 : RAFTDIR_ETOOBIG);
    }
    /* With a domain too, which counts. */
    memset(name, 'x', sizeof name);
    memcpy(name, "d.org!DELETED.user.", 19);
    memcpy(name + DELETED_NAME_LEN_MAX - 9, ".5F8471B3", 9);
    assert_int_equal(name_check(name, DELETED_NAME_LEN_MAX, &err), 0);
    memcpy(name, "DELETED.user.", 13);
    memset(name + 13, 'x', sizeof name - 13);
    memcpy(name + NAME_LEN_MAX - 8, ".5F8471BX", 9); /* no hexadecimal time */
    assert_int_equal(name_check(name, NAME_LEN_MAX + 1, &err), RAFTDIR_ETOOBIG);
}

/* Cyrus' order, said another way: the domain's bytes, then level by level, '^' as a dot; a shorter one first. */
static int naive_unit(const char *s, size_t len, size_t i)
{
    size_t domain = name_domain_len(s, len);
    if (i >= len)
        return -1;
    if (domain && i < domain)
        return i == domain - 1 ? 0x1D : (unsigned char)s[i];
    return s[i] == '.' ? 0x1F : s[i] == '^' ? 0x2E : (unsigned char)s[i];
}

static int naive_cmp(const char *a, size_t alen, const char *b, size_t blen)
{
    for (size_t i = 0;; i++) {
        int x = naive_unit(a, alen, i), y = naive_unit(b, blen, i);
        if (x != y)
            return x < y ? -1 : 1;
        if (x < 0)
            return 0;
    }
}

static size_t random_name(char *buf, const char *alphabet, size_t len_max)
{
    size_t len = 1 + random_below((uint32_t)len_max);
    for (size_t i = 0; i < len; i++)
        buf[i] = alphabet[random_below((uint32_t)strlen(alphabet))];
    buf[len] = '\0';
    return len;
}

static int sign(int c)
{
    return (c > 0) - (c < 0);
}

static void name_key_order(void **state)
{
    (void)state;
    random_start("name/key_order");
    for (int i = 0; i < 200000; i++) {
        char a[16], b[16], back[NAME_KEY_LEN_MAX + 1];
        uint8_t ka[16], kb[16];
        size_t alen = random_name(a, "ab.^!- ~", 8), blen = random_name(b, "ab.^!- ~", 8);
        size_t kalen = name_to_key(a, alen, ka), kblen = name_to_key(b, blen, kb);
        int got = sign(name_key_cmp(ka, kalen, kb, kblen)), wanted = naive_cmp(a, alen, b, blen);
        if (got != wanted)
            fail_msg("\"%s\" \"%s\": %d, wanted %d", a, b, got, wanted);
        assert_int_equal(sign(name_key_cmp(kb, kblen, ka, kalen)), -wanted);
        assert_int_equal(name_from_key(ka, kalen, back), alen);
        /* One domain at most: more '!' are no names, and come back as they are too. */
        assert_string_equal(back, a);
    }
    static const char *const ascending[] = {
        "DELETED.user.a.1", "a.org!user.b", "a.org!user.b.c", "shared", "shared.x", "shared dep", "user.a", "user.a.z", "user.a b", "user.a-b", "user.a^b",
        "user.a^b.c", "user.a^c", "user.aa",
    };
    for (size_t i = 1; i < sizeof ascending / sizeof *ascending; i++) {
        uint8_t ka[64], kb[64];
        size_t alen = name_to_key(ascending[i - 1], strlen(ascending[i - 1]), ka), blen = name_to_key(ascending[i], strlen(ascending[i]), kb);
        if (name_key_cmp(ka, alen, kb, blen) >= 0)
            fail_msg("\"%s\" comes not before \"%s\"", ascending[i - 1], ascending[i]);
    }
    assert_int_equal(name_key_cmp((const uint8_t *)"a", 1, (const uint8_t *)"a", 1), 0);
}

static bool naive_match(const char *p, const char *s, const char *end)
{
    if (!*p)
        return s == end;
    if (*p == '*' || *p == '%') {
        for (const char *t = s;; t++) {
            if (naive_match(p + 1, t, end))
                return true;
            if (t == end || (*p == '%' && (*t == '.' || *t == '!')))
                return false;
        }
    }
    return s < end && *s == *p && naive_match(p + 1, s + 1, end);
}

static void name_match_property(void **state)
{
    (void)state;
    random_start("name/match");
    unsigned matched = 0;
    for (int i = 0; i < 200000; i++) {
        char pattern[16], name[16];
        random_name(pattern, "aab.%*!", 8);
        size_t len = random_name(name, "aab.!", 8);
        bool got = name_match(pattern, name, len), wanted = naive_match(pattern, name, name + len);
        if (got != wanted)
            fail_msg("pattern \"%s\" name \"%s\": %d, wanted %d", pattern, name, got, wanted);
        matched += wanted;
    }
    assert_true(matched > 1000);
}

static void name_match_table(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *name;
        bool matches;
        size_t literal;
    } rows[] = {
        {"", "", true, 0},
        {"*", "", true, 0},
        {"%", "", true, 0},
        {"", "a", false, 0},
        {"*", "example.org!user.foo.bar", true, 0},
        {"user.foo", "user.foo", true, 8},
        {"user.foo", "user.foo.bar", false, 8},
        {"user.foo.%", "user.foo.bar", true, 9},
        {"user.foo.%", "user.foo.bar.baz", false, 9},
        {"user.foo.*", "user.foo.bar.baz", true, 9},
        {"user.%.Sent", "user.foo.Sent", true, 5},
        {"user.%.Sent", "user.foo.x.Sent", false, 5},
        {"user.*.Sent", "user.foo.x.Sent", true, 5},
        {"user.foo^%", "user.foo^bar", true, 9},
        {"%.%", "user.foo", true, 0},
        {"%.%", "user.foo.x", false, 0},
        {"%user.foo", "example!user.foo", false, 0},
        {"*user.foo", "example!user.foo", true, 0},
        {"%%%%a", "bba", true, 0},
        {"%*%a", "b.b.a", true, 0},
        {"user.FOO", "user.foo", false, 8},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (name_match(rows[i].pattern, rows[i].name, strlen(rows[i].name)) != rows[i].matches)
            fail_msg("pattern \"%s\" name \"%s\"", rows[i].pattern, rows[i].name);
        assert_int_equal(name_pattern_literal(rows[i].pattern), rows[i].literal);
    }
}

/* A hostile pattern must not cost more than length times length. */
static void name_match_hostile(void **state)
{
    (void)state;
    char name[NAME_KEY_LEN_MAX + 1], pattern[20001];
    memset(name, 'a', sizeof name);
    name[NAME_KEY_LEN_MAX] = '\0';
    for (size_t i = 0; i < 800; i += 2)
        memcpy(pattern + i, i % 4 ? "%a" : "*a", 2);
    strcpy(pattern + 800, "b");
    clock_t start = clock();
    for (int i = 0; i < 20; i++)
        assert_false(name_match(pattern, name, NAME_KEY_LEN_MAX));
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 2.0);
    pattern[800] = '\0';
    assert_true(name_match(pattern, name, NAME_KEY_LEN_MAX));
    memset(pattern, '%', 20000);
    pattern[20000] = '\0';
    assert_true(name_match(pattern, name, NAME_KEY_LEN_MAX));
    memset(pattern, 'a', 20000);
    pattern[0] = '*';
    assert_false(name_match(pattern, name, NAME_KEY_LEN_MAX));
    assert_false(name_match("*", name, NAME_KEY_LEN_MAX + 1)); /* no name is that long */
}

static void name_users(void **state)
{
    (void)state;
    static const struct {
        const char *user, *name;
    } rows[] = {
        {"foo", "user.foo"},
        {"john.doe", "user.john^doe"},
        {"john.doe@example.org", "example.org!user.john^doe"},
        {"a@b@example.org", "example.org!user.a@b"},
        {".a.", "user.^a^"},
        {"", NULL},
        {"@example.org", NULL},
        {"foo@", NULL},
        {"a!b", NULL},
        {"a@b!c", NULL},
        {"a/b", NULL},
        {"a%", NULL},
        {"a@.org", NULL},
        {"anyone", NULL},
        {"a\tb", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[NAME_LEN_MAX + 1], user[NAME_LEN_MAX + 1];
        struct err err = {0};
        int rc = name_of_user(rows[i].user, name, &err);
        if (!rows[i].name) {
            if (rc != RAFTDIR_ENAME || !err.text[0])
                fail_msg("user \"%s\": %d \"%s\"", rows[i].user, rc, err.text);
            continue;
        }
        assert_int_equal(rc, 0);
        assert_string_equal(name, rows[i].name);
        assert_true(name_owner(name, strlen(name), user));
        assert_string_equal(user, rows[i].user);
    }
    /* Lengths: the longest that fits, and one more. */
    char user[600], name[NAME_LEN_MAX + 1], back[NAME_LEN_MAX + 1];
    memset(user, 'x', sizeof user);
    user[NAME_LEN_MAX - 5] = '\0';
    assert_int_equal(name_of_user(user, name, NULL), 0);
    assert_true(name_owner(name, strlen(name), back));
    assert_string_equal(back, user);
    user[NAME_LEN_MAX - 5] = 'x';
    user[NAME_LEN_MAX - 4] = '\0';
    assert_int_equal(name_of_user(user, name, NULL), RAFTDIR_ENAME);
}

static void name_owners(void **state)
{
    (void)state;
    static const struct {
        const char *name, *user;
    } rows[] = {
        {"user.foo.bar", "foo"},
        {"user.john^doe.Sent.x^y", "john.doe"},
        {"example.org!user.john^doe", "john.doe@example.org"},
        {"DELETED.user.foo.5F8471B3", "foo"},
        {"DELETED.user.foo.Old.5F8471B3", "foo"},
        {"example.org!DELETED.user.a^b.Old.5F8471B3", "a.b@example.org"},
        {"DELETED.user.5F8471B3", NULL},
        {"DELETED.shared.5F8471B3", NULL},
        {"DELETED.user.foo.notatime", NULL},
        {"shared.user.foo", NULL},
        {"shared", NULL},
        {"user", NULL},
        {"user.", NULL},
        {"users.foo", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char user[NAME_LEN_MAX + 1];
        bool owned = name_owner(rows[i].name, strlen(rows[i].name), user);
        if (owned != (rows[i].user != NULL) || (owned && strcmp(user, rows[i].user) != 0))
            fail_msg("\"%s\": %s", rows[i].name, owned ? user : "shared");
    }
    /* A name that was never checked doesn't write beyond the buffer. */
    char name[600], user[NAME_LEN_MAX + 1];
    memset(name, 'x', sizeof name);
    memcpy(name, "user.", 5);
    assert_true(name_owner(name, NAME_LEN_MAX + 5, user));
    assert_false(name_owner(name, NAME_LEN_MAX + 6, user));
}

static void name_within(void **state)
{
    (void)state;
    static const struct {
        const char *name, *root;
        bool within;
    } rows[] = {
        {"user.foo", "user.foo", true},       {"user.foo.bar", "user.foo", true}, {"user.foobar", "user.foo", false}, {"user.fo", "user.foo", false},
        {"user.foo^x", "user.foo", false},    {"user.foo", "", true},             {"d!user.foo", "d!", true},         {"d!user.foo", "d", false},
        {"d!user.foo.x", "d!user.foo", true}, {"user.foo x", "user.foo", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (name_is_within(rows[i].name, strlen(rows[i].name), rows[i].root, strlen(rows[i].root)) != rows[i].within)
            fail_msg("\"%s\" within \"%s\"", rows[i].name, rows[i].root);
    }
    assert_int_equal(name_domain_len("example.org!user.a", 18), 12);
    assert_int_equal(name_domain_len("user.a", 6), 0);
}

static void name_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        bool ok;
    } rows[] = {
        {"", true}, {"abc", true}, {"\xc3\xbc", true}, {"\xe2\x82\xac", true}, {"\xf0\x9f\x93\xa7", true}, {"\xf4\x8f\xbf\xbf", true},
        {"a\tb", false}, {"\x7f", false}, {"\xc3", false}, {"\xc3(", false}, {"\xc0\xaf", false}, {"\xe0\x80\x80", false}, {"\xed\xa0\x80", false},
        {"\xf4\x90\x80\x80", false}, {"\xf8\x88\x80\x80\x80", false}, {"\x80", false}, {"\xf0\x9f\x93", false}, {"\xe2\x82", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (name_utf8_ok(rows[i].s, strlen(rows[i].s)) != rows[i].ok)
            fail_msg("row %zu", i);
    }
}

/* The keys of a dump's top-level object: each stands at the start of a line. */
static unsigned each_dumped(const char *path, bool ascending)
{
    gzFile file = gzopen(path, "rb");
    assert_non_null(file);
    static char line[1 << 20];
    uint8_t last[NAME_KEY_LEN_MAX];
    size_t last_len = 0;
    unsigned n = 0;
    while (gzgets(file, line, sizeof line)) {
        if (line[0] != '"')
            continue;
        char *end = strchr(line + 1, '"');
        assert_non_null(end);
        size_t len = (size_t)(end - line) - 1;
        struct err err;
        if (name_check(line + 1, len, &err) != 0)
            fail_msg("%.*s: %s", (int)len, line + 1, err.text);
        uint8_t key[NAME_KEY_LEN_MAX];
        size_t key_len = name_to_key(line + 1, len, key);
        if (ascending && n && name_key_cmp(last, last_len, key, key_len) >= 0)
            fail_msg("%.*s is not in ascending order", (int)len, line + 1);
        memcpy(last, key, key_len);
        last_len = key_len;
        n++;
    }
    gzclose(file);
    return n;
}

static void name_dumps(void **state)
{
    (void)state;
    assert_int_equal(each_dumped(TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", true), 29095);
    assert_true(each_dumped(TEST_DATA "/mailboxes-cyrus-3.10-backend.json", true) > 10);
    assert_true(each_dumped(TEST_DATA "/mailboxes-cyrus-3.10-master.json", true) > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(name_check_table),   cmocka_unit_test(name_check_length), cmocka_unit_test(name_key_order),
        cmocka_unit_test(name_match_property), cmocka_unit_test(name_match_table),  cmocka_unit_test(name_match_hostile),
        cmocka_unit_test(name_users),         cmocka_unit_test(name_owners),       cmocka_unit_test(name_within),
        cmocka_unit_test(name_utf8),          cmocka_unit_test(name_dumps),
    };
    return cmocka_run_group_tests_name("name", tests, NULL, NULL);
}
