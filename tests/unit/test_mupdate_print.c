/* test_mupdate_print.c - what is said in MUPDATE: tables of bytes as Cyrus' master and clients send them; random rows read back; how fast rows are made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "raftdir/mupdate_print.h"

static uint64_t random_state = 88172645463325252ull;

static uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % n;
}

static struct mupdate_word word(const char *s)
{
    return (struct mupdate_word){s, strlen(s)};
}

static struct store_str str(const char *s)
{
    return (struct store_str){s, s ? strlen(s) : 0};
}

static void assert_says(struct mupdate_out *o, const char *wanted)
{
    assert_int_equal(o->len, strlen(wanted));
    assert_memory_equal(o->p, wanted, o->len);
    mupdate_out_free(o);
    assert_null(o->p);
    assert_int_equal(o->len, 0);
}

/* mupdate_print/answers */
static void answers(void **state)
{
    (void)state;
    static const struct {
        const char *tag, *word, *text, *wanted;
    } rows[] = {
        {"a", "OK", "done", "a OK \"done\"\r\n"},
        {"*", "BYE", "", "* BYE \"\"\r\n"},
        {"X0", "NO", "is at \"be1\" \\ be2", "X0 NO \"is at \\\"be1\\\" \\\\ be2\"\r\n"},
        {"X0", "BAD", "two\r\nlines\n", "X0 BAD \"two  lines \"\r\n"},
        {"X0", "NO", "\xc3\xa9\t", "X0 NO \"\xc3\xa9\t\"\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct mupdate_out o = {0};
        struct mupdate_word tag = word(rows[i].tag);
        mupdate_print_answer(&o, &tag, rows[i].word, rows[i].text);
        assert_says(&o, rows[i].wanted);
    }
}

/* mupdate_print/rows: as the stock master's, to the byte. */
static void rows(void **state)
{
    (void)state;
    struct mupdate_out o = {0};
    struct mupdate_word tag = word("U01");
    struct store_mailbox m = {.state = STORE_ACTIVE, .name = "user.alice", .name_len = 10, .server = str("be1.murder.test"), .partition = str("default"), .acl = str("alice\tlrswipkxtecdan\t")};
    mupdate_print_mailbox(&o, &tag, &m);
    assert_says(&o, "U01 MAILBOX {10+}\r\nuser.alice {23+}\r\nbe1.murder.test!default {21+}\r\nalice\tlrswipkxtecdan\t\r\n");
    m.state = STORE_RESERVED;
    mupdate_print_mailbox(&o, &tag, &m);
    assert_says(&o, "U01 RESERVE {10+}\r\nuser.alice {23+}\r\nbe1.murder.test!default\r\n");
    m.state = STORE_ACTIVE;
    m.acl = m.partition = str(NULL);
    m.server = str("s");
    mupdate_print_mailbox(&o, &tag, &m);
    assert_says(&o, "U01 MAILBOX {10+}\r\nuser.alice {2+}\r\ns! {0+}\r\n\r\n");
    mupdate_print_delete(&o, &tag, "user.ghost");
    assert_says(&o, "U01 DELETE {10+}\r\nuser.ghost\r\n");
    mupdate_print(&o, "ab", 2);
    mupdate_print(&o, "", 0);
    mupdate_print(&o, "c", 1);
    mupdate_print_delete(&o, &(struct mupdate_word){"", 0}, "");
    assert_says(&o, "abc DELETE {0+}\r\n\r\n");
}

/* mupdate_print/commands */
static void commands(void **state)
{
    (void)state;
    struct mupdate_out o = {0};
    struct mupdate_word args[] = {{"user.q1", 7}, {"be!d", 4}, {"a\0b\r\n", 5}};
    mupdate_print_command(&o, "Q01", "LOGOUT", 0, NULL);
    assert_says(&o, "Q01 LOGOUT\r\n");
    mupdate_print_command(&o, "X0", "RESERVE", 2, args);
    assert_says(&o, "X0 RESERVE {7+}\r\nuser.q1 {4+}\r\nbe!d\r\n");
    mupdate_print_command(&o, "X1", "X", 3, args);
    static const char wanted[] = "X1 X {7+}\r\nuser.q1 {4+}\r\nbe!d {5+}\r\na\0b\r\n\r\n";
    assert_int_equal(o.len, sizeof wanted - 1);
    assert_memory_equal(o.p, wanted, o.len);
    mupdate_out_free(&o);
}

/* mupdate_print/read_back: rows of all lengths, into memory that grows as it must, read back as what they were made of. */
static void read_back(void **state)
{
    (void)state;
    static char acl[ACL_LEN_MAX], text[SERVER_LEN_MAX + PARTITION_LEN_MAX];
    struct mupdate_word tag = word("U01");
    for (size_t i = 0; i < sizeof acl; i++)
        acl[i] = (char)(1 + random_below(255));
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + random_below(26));
    for (unsigned round = 0; round < 400; round++) {
        struct mupdate_out o = {0};
        struct mupdate_parser p = {0};
        static struct store_mailbox m[20];
        unsigned n = 1 + random_below(20);
        for (unsigned i = 0; i < n; i++) {
            m[i] = (struct store_mailbox){.state = random_below(4) ? STORE_ACTIVE : STORE_RESERVED, .name_len = 1 + random_below(NAME_KEY_LEN_MAX)};
            for (size_t k = 0; k < m[i].name_len; k++)
                m[i].name[k] = (char)(1 + random_below(255));
            m[i].server = (struct store_str){text, 1 + random_below(SERVER_LEN_MAX)};
            m[i].partition = (struct store_str){text + SERVER_LEN_MAX, random_below(PARTITION_LEN_MAX + 1)};
            m[i].acl = (struct store_str){acl, random_below(random_below(8) ? 200 : ACL_LEN_MAX)};
            mupdate_print_mailbox(&o, &tag, &m[i]);
            assert_true(o.len <= o.size);
        }
        char *at = o.p, *end = o.p + o.len;
        for (unsigned i = 0; i < n; i++) {
            struct mupdate_line l;
            struct mupdate_location where;
            size_t taken;
            bool active = m[i].state == STORE_ACTIVE;
            assert_int_equal(mupdate_parse(&p, at, (size_t)(end - at), &l, &taken, NULL), MUPDATE_LINE);
            at += taken;
            assert_int_equal(l.n, active ? 5 : 4);
            assert_true(mupdate_word_is(&l.word[0], "U01"));
            assert_true(mupdate_word_is(&l.word[1], active ? "MAILBOX" : "RESERVE"));
            assert_int_equal(l.word[2].len, m[i].name_len);
            assert_memory_equal(l.word[2].s, m[i].name, m[i].name_len);
            assert_int_equal(mupdate_location_parse(&l.word[3], &where, NULL), 0);
            assert_int_equal(where.server_len, m[i].server.len);
            assert_memory_equal(where.server, text, where.server_len);
            assert_int_equal(where.partition_len, m[i].partition.len);
            assert_memory_equal(where.partition, text + SERVER_LEN_MAX, where.partition_len);
            if (active) {
                assert_int_equal(l.word[4].len, m[i].acl.len);
                assert_memory_equal(l.word[4].s, acl, m[i].acl.len);
            }
        }
        assert_ptr_equal(at, end);
        mupdate_out_free(&o);
    }
}

/* mupdate_print/speed: an UPDATE of a million rows is to take about a second with everything; their text must be a small part of it. Told, and bounded loosely: sanitizers are on. */
static void speed(void **state)
{
    (void)state;
    struct mupdate_out o = {0};
    struct mupdate_word tag = word("U01");
    struct store_mailbox m = {.state = STORE_ACTIVE, .name = "example.org!user.john^doe.Archive.2024", .server = str("be1.murder.test"), .partition = str("default"), .acl = str("john.doe@example.org\tlrswipkxtecdan\tanyone\tp\t")};
    m.name_len = strlen(m.name);
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    for (unsigned i = 0; i < 100000; i++) {
        if (o.len > 256 << 10)
            o.len = 0;
        mupdate_print_mailbox(&o, &tag, &m);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    double ns = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / 100000;
    printf("%.0f ns a row\n", ns);
    assert_true(ns < 5000);
    mupdate_out_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers), cmocka_unit_test(rows), cmocka_unit_test(commands), cmocka_unit_test(read_back), cmocka_unit_test(speed),
    };
    return cmocka_run_group_tests_name("mupdate_print", tests, NULL, NULL);
}
