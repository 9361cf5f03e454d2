/* test_mupdate_parse.c - MUPDATE's lines: tables, each row also cut at every byte; limits to the byte; real sessions; random lines printed and read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "raftdir/mupdate_parse.h"
#include "raftdir/mupdate_print.h"

#define B(s) s, sizeof s - 1

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

/* What a parser made of bytes: "[a|NOOP]" a line, "{a|x}" bad with the words before the fault, "+" go ahead, "X" fatal. */
struct story {
    char *text;
    size_t len, size;
    char why[ERR_TEXT_LEN]; /* of the last BAD or FATAL */
    int code;
    unsigned parses;
};

static void tell(struct story *s, const char *p, size_t len)
{
    if (s->size < s->len + len + 1) {
        s->size = 2 * (s->len + len + 1);
        s->text = realloc(s->text, s->size);
        assert_non_null(s->text);
    }
    memcpy(s->text + s->len, p, len);
    s->len += len;
    s->text[s->len] = 0;
}

static void tell_words(struct story *s, const struct mupdate_line *l, const char *buf, size_t taken, char open, char close)
{
    tell(s, &open, 1);
    for (unsigned i = 0; i < l->n; i++) {
        assert_true(l->word[i].s >= buf && l->word[i].s + l->word[i].len <= buf + taken);
        if (i)
            tell(s, "|", 1);
        tell(s, l->word[i].s, l->word[i].len);
    }
    tell(s, &close, 1);
}

/* A connection's buffer: bytes come in pieces and move about, each time into memory that ends where they end. */
struct feed {
    char *buf;
    size_t len;
    struct mupdate_parser p;
    bool ended;
};

static void feed(struct feed *f, struct story *s, const char *data, size_t len)
{
    char *moved = malloc(f->len + len ? f->len + len : 1);
    assert_non_null(moved);
    if (f->len)
        memcpy(moved, f->buf, f->len);
    if (len)
        memcpy(moved + f->len, data, len);
    free(f->buf);
    f->buf = moved;
    f->len += len;
    while (!f->ended) {
        struct mupdate_line l = {0};
        struct err err = {0};
        size_t taken = SIZE_MAX;
        s->parses++;
        enum mupdate_parsed rc = mupdate_parse(&f->p, f->buf, f->len, &l, &taken, &err);
        if (rc == MUPDATE_MORE)
            break;
        if (rc == MUPDATE_GO_AHEAD) {
            tell(s, "+", 1);
            continue;
        }
        if (rc == MUPDATE_BAD || rc == MUPDATE_FATAL) {
            assert_true(err.code == RAFTDIR_EPROTO || err.code == RAFTDIR_ETOOBIG);
            assert_true(err.text[0]);
            memcpy(s->why, err.text, sizeof s->why);
            s->code = err.code;
        }
        if (rc == MUPDATE_FATAL) {
            tell(s, "X", 1);
            f->ended = true;
            break;
        }
        assert_true(taken > 0 && taken <= f->len);
        tell_words(s, &l, f->buf, taken, rc == MUPDATE_LINE ? '[' : '{', rc == MUPDATE_LINE ? ']' : '}');
        /* What is left moves to the front, as in a connection. */
        memmove(f->buf, f->buf + taken, f->len - taken);
        f->len -= taken;
    }
}

static void story_free(struct story *s)
{
    free(s->text);
    *s = (struct story){0};
}

/* The same bytes as a whole, cut in two at every byte (of short ones), and byte for byte: one story. The caller frees it. */
static struct story read_in_every_way(const struct mupdate_parser *limits, const char *data, size_t len)
{
    struct story whole = {0};
    tell(&whole, "", 0);
    for (size_t cut = 0; cut <= (len < 400 ? len : 0) + 1; cut++) {
        struct story s = {0};
        struct feed f = {.p = *limits};
        tell(&s, "", 0);
        if (cut == 0) {
            feed(&f, &s, data, len);
        } else if (cut <= len && len < 400) {
            feed(&f, &s, data, cut);
            feed(&f, &s, data + cut, len - cut);
        } else
            for (size_t i = 0; i < len; i++)
                feed(&f, &s, data + i, 1);
        free(f.buf);
        if (cut == 0) {
            story_free(&whole);
            whole = s;
            continue;
        }
        assert_string_equal(s.text, whole.text);
        assert_string_equal(s.why, whole.why);
        assert_int_equal(s.code, whole.code);
        story_free(&s);
    }
    return whole;
}

struct row {
    const char *data;
    size_t len;
    const char *story;
    const char *why; /* a part of the last error's text; NULL: no error */
};

static void run_rows(const struct row *rows, size_t n, const struct mupdate_parser *limits)
{
    for (size_t i = 0; i < n; i++) {
        struct story s = read_in_every_way(limits, rows[i].data, rows[i].len);
        if (strcmp(s.text, rows[i].story) || !rows[i].why != !s.why[0] || (rows[i].why && !strstr(s.why, rows[i].why)))
            fail_msg("row %zu, \"%s\": \"%s\" (%s) instead of \"%s\" (%s)", i, rows[i].data, s.text, s.why, rows[i].story, rows[i].why ? rows[i].why : "");
        story_free(&s);
    }
}

/* mupdate_parse/good: every form a line may have. */
static void good(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {B(""), "", NULL},
        {B("a NOOP"), "", NULL},
        {B("a NOOP\r"), "", NULL},
        {B("a NOOP\r\n"), "[a|NOOP]", NULL},
        {B("a NOOP\n"), "[a|NOOP]", NULL},
        {B("\r\n"), "[]", NULL},
        {B("\n"), "[]", NULL},
        {B("\r\n\na\r\n"), "[][][a]", NULL},
        {B("* OK MUPDATE \"mup.test\" \"Cyrus IMAP\" \"3.6.1\" \"(master)\"\r\n"), "[*|OK|MUPDATE|mup.test|Cyrus IMAP|3.6.1|(master)]", NULL},
        {B("a NO Unknown COMPRESS algorithm: LZW\r\n"), "[a|NO|Unknown|COMPRESS|algorithm:|LZW]", NULL},
        {B("a FIND \"\"\r\n"), "[a|FIND|]", NULL},
        {B("a FIND \"x\"\n"), "[a|FIND|x]", NULL},
        {B("a FIND \"a b\tc\"\r\n"), "[a|FIND|a b\tc]", NULL},
        {B("a FIND \"\\\"\\\\\" \"x\\\\y\"\r\n"), "[a|FIND|\"\\|x\\y]", NULL},
        {B("a FIND \"{3+}\"\r\n"), "[a|FIND|{3+}]", NULL},
        {B("a FIND {0+}\r\n\r\n"), "[a|FIND|]", NULL},
        {B("a FIND {3+}\r\nabc\r\n"), "[a|FIND|abc]", NULL},
        {B("a FIND {3+}\nabc\n"), "[a|FIND|abc]", NULL},
        {B("a FIND {0003+}\r\nabc\r\n"), "[a|FIND|abc]", NULL},
        {B("a FIND {3+}\r\n\r\n \r\n"), "[a|FIND|\r\n ]", NULL},
        {B("a FIND {4+}\r\n\" \\\"\r\n"), "[a|FIND|\" \\\"]", NULL},
        {B("a ACTIVATE {1+}\r\nx {4+}\r\nbe!d {0+}\r\n\r\n"), "[a|ACTIVATE|x|be!d|]", NULL},
        {B("a FIND {3}\r\nabc\r\n"), "+[a|FIND|abc]", NULL},
        {B("a FIND {0}\r\n\r\n"), "+[a|FIND|]", NULL},
        {B("a ACTIVATE {1}\r\nx {4}\r\nbe!d \"l\"\r\n"), "++[a|ACTIVATE|x|be!d|l]", NULL},
        {B("a FIND {3}\r\n"), "+", NULL},
        {B("a FIND {3}\r\nab"), "+", NULL},
        {B("a FIND {9+}\r\nuser.\xc3\xa9\"\\\r\n"), "[a|FIND|user.\xc3\xa9\"\\]", NULL},
        {B("\xff\xfe \x80\r\n"), "[\xff\xfe|\x80]", NULL},
        {B("a b\"c d{3+} e}\r\n"), "[a|b\"c|d{3+}|e}]", NULL},
        {B("a b\\\r\n"), "[a|b\\]", NULL},
        {B("a NOOP\r\nb FIND {1+}\r\nx\r\nc LOGOUT\r\n"), "[a|NOOP][b|FIND|x][c|LOGOUT]", NULL},
        {B("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64\r\n"),
         "[1|2|3|4|5|6|7|8|9|10|11|12|13|14|15|16|17|18|19|20|21|22|23|24|25|26|27|28|29|30|31|32|33|34|35|36|37|38|39|40|41|42|43|44|45|46|47|48|49|50|51|52|53|54|55|56|57|58|59|60|61|62|63|64]", NULL},
    };
    run_rows(rows, sizeof rows / sizeof *rows, &(struct mupdate_parser){0});
}

/* mupdate_parse/bad: the line is refused as a whole, the next one is good; or nobody could say where the next one begins. */
static void bad(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {B("a \r\nb NOOP\r\n"), "{a}[b|NOOP]", "empty word"},
        {B(" \n"), "{}", "empty word"},
        {B("a  NOOP\r\nb NOOP\r\n"), "{a}[b|NOOP]", "empty word"},
        {B(" a NOOP\r\n"), "{}", "empty word"},
        {B("a NOOP \r\n"), "{a|NOOP}", "empty word"},
        {B("a FIND \"x\" \n"), "{a|FIND|x}", "empty word"},
        {B("a NO\0OP x\r\nb\r\n"), "{a}[b]", "NUL"},
        {B("a \0\r\n"), "{a}", "NUL"},
        {B("a FIND \"x\0y\" z\r\nb\r\n"), "{a|FIND}[b]", "NUL"},
        {B("a FIND \"x\\\0y\"\r\n"), "{a|FIND}", "NUL"},
        {B("a FIND {3+}\r\nx\0y z\r\nb\r\n"), "{a|FIND}[b]", "NUL"},
        {B("a FIND \"x\\y\"\r\nb\r\n"), "{a|FIND}[b]", "backslash"},
        {B("a FIND \"x\"y\r\nb\r\n"), "{a|FIND|x}[b]", "no space"},
        {B("a FIND \"x\"\"y\"\r\n"), "{a|FIND|x}", "no space"},
        {B("a FIND {1+}\r\nxy\r\nb\r\n"), "{a|FIND|x}[b]", "no space"},
        {B("a FIND {2+}\r\nxyz b NOOP\r\n"), "{a|FIND|xy}", "no space"},
        {B("a FIND \"x\r\nb\r\n"), "{a|FIND}[b]", "without an end"},
        {B("a FIND \"x\\\r\nb\r\n"), "{a|FIND}[b]", "without an end"},
        {B("a FIND \"x\nb\r\n"), "{a|FIND}[b]", "without an end"},
        {B("a FI\rND x\r\nb\r\n"), "{a|FI}[b]", "CR"},
        {B("\r\r\nb\r\n"), "{}[b]", "CR"},
        {B("a {}\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {+}\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {x}\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {3-}\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {3\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {3+\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {3+}x\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {-1}\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("a {3}\rx\r\nb\r\n"), "{a}[b]", "malformed literal"},
        {B("\"a\" NOOP\r\nb\r\n"), "{}[b]", "tag"},
        {B("{1+}\r\na NOOP\r\nb\r\n"), "{}[b]", "tag"},
        /* What is refused is still read to its end: nothing of it becomes a command. */
        {B("a  x {15+}\r\na\r\nz DELETE x\r\n y\r\nb\r\n"), "{a}[b]", "empty word"},
        {B("a \"\\x\" {8+}\r\nz NOOP\r\n\r\nb\r\n"), "{a}[b]", "backslash"},
        /* The sender waits: refused in place of the go-ahead. */
        {B("a  x {15}\r\nb\r\n"), "{a}[b]", "empty word"},
        {B("{1}\r\nb\r\n"), "{}[b]", "tag"},
        /* A literal's head where the structure is lost. */
        {B("a \"x\"y {8+}\r\nz NOOP\r\n\r\nb\r\n"), "X", "where the next command begins"},
        {B("a \"x {8+}\r\nz NOOP\r\n\r\nb\r\n"), "X", "where the next command begins"},
        {B("a \"x{8+}\n"), "X", "where the next command begins"},
        {B("a \"x\"y{8+} \r\nb\r\n"), "{a|x}[b]", "no space"},
        {B("a \"x\"y {8}\r\nb\r\n"), "{a|x}[b]", "no space"},
        {B("a \"x\"8+}\r\nb\r\n"), "{a|x}[b]", "no space"},
        {B("a {1+}\r\n{8+}\r\nb\r\n"), "{a|{}[b]", "no space"}, /* the brace is the literal's */
        {B("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 {1+}\r\n5\r\nb\r\n"),
         "{1|2|3|4|5|6|7|8|9|10|11|12|13|14|15|16|17|18|19|20|21|22|23|24|25|26|27|28|29|30|31|32|33|34|35|36|37|38|39|40|41|42|43|44|45|46|47|48|49|50|51|52|53|54|55|56|57|58|59|60|61|62|63|64}[b]", "more than 64 words"},
    };
    run_rows(rows, sizeof rows / sizeof *rows, &(struct mupdate_parser){0});
}

/* mupdate_parse/limits: each to the byte. */
static void limits(void **state)
{
    (void)state;
    const struct mupdate_parser line = {.line_len_max = 10}, literal = {.literal_len_max = 4}, all = {.len_max = 20};
    static const struct row lines[] = {
        {B("a 345678\r\n"), "[a|345678]", NULL},
        {B("a 3456789\n"), "[a|3456789]", NULL},
        {B("a 3456789\r\n"), "X", "a line longer than 10 bytes"},
        {B("a 345678901"), "X", "a line longer than 10 bytes"},
        {B("a 34567890"), "", NULL},
        {B("a {6+}\r\n123456\r\n"), "[a|123456]", NULL},              /* a literal's bytes don't count, */
        {B("a {6+}\r\n123456 x\r\n"), "X", "a line longer than 10"},   /* what is behind it does */
    };
    run_rows(lines, sizeof lines / sizeof *lines, &line);
    static const struct row literals[] = {
        {B("a {4+}\r\n1234\r\n"), "[a|1234]", NULL},
        {B("a {5+}\r\n"), "X", "a literal or response longer than 4 bytes"},
        {B("a {4}\r\n1234\r\n"), "+[a|1234]", NULL},
        {B("a {5}\r\nb\r\n"), "{a}[b]", "a literal or response longer than 4 bytes"},
        {B("a {99999999+}\r\n"), "X", "longer than 4"},
        {B("a {99999999999999999999999999999999999999999999}\r\nb\r\n"), "{a}[b]", "longer than 4"},
        {B("a {18446744073709551616+}\r\n"), "X", "longer than 4"}, /* 2^64 */
        {B("a {18446744073709551620+}\r\n"), "X", "longer than 4"},
        {B("a  {5+}\r\n"), "X", "empty word"},
    };
    run_rows(literals, sizeof literals / sizeof *literals, &literal);
    static const struct row commands[] = {
        {B("a {10+}\r\n1234567890\n"), "[a|1234567890]", NULL},
        {B("a {10+}\r\n123456789 \r\n"), "X", "a command longer than 20 bytes"},
        {B("a {11+}\r\n12345678901\n"), "X", "a command longer than 20 bytes"},
        {B("a {12+}\r\n"), "X", "a command longer than 20 bytes"},
        {B("a {2+}\r\n12 {5+}\r\n12345\n"), "X", "a command longer than 20 bytes"},
        {B("a {2+}\r\n12 {5}\r\nb\r\n"), "{a|12}[b]", "a command longer than 20 bytes"},
        {B("a 3456789012345678\r\n"), "[a|3456789012345678]", NULL},
        {B("a 34567890123456789\r\n"), "X", "a command longer than 20 bytes"},
    };
    run_rows(commands, sizeof commands / sizeof *commands, &all);

    /* What RFC 3656 wants taken, and a literal that is at the standard limit. */
    static char data[MUPDATE_COMMAND_LEN_MAX];
    memset(data, 'x', sizeof data);
    memcpy(data, "a ", 2);
    memcpy(data + 1022, "\r\n", 2);
    struct story s = read_in_every_way(&(struct mupdate_parser){0}, data, 1024);
    assert_int_equal(s.len, 1024);
    assert_int_equal(s.text[0], '[');
    story_free(&s);
    for (size_t n = 4096; n; n = n == 4096 ? MUPDATE_LITERAL_LEN_MAX : 0) {
        memset(data, 'y', sizeof data);
        int head = snprintf(data, 64, "a {%zu+}\r\n", n);
        data[head] = 'y';
        memcpy(data + head + n, "\r\n", 2);
        s = read_in_every_way(&(struct mupdate_parser){0}, data, (size_t)head + n + 2);
        assert_int_equal(s.len, n + 4);
        assert_int_equal(s.code, 0);
        story_free(&s);
    }
    int head = snprintf(data, 64, "a {%u+}\r\n", MUPDATE_LITERAL_LEN_MAX + 1);
    s = read_in_every_way(&(struct mupdate_parser){0}, data, (size_t)head);
    assert_string_equal(s.text, "X");
    assert_int_equal(s.code, RAFTDIR_ETOOBIG);
    story_free(&s);
    memset(data, 'z', MUPDATE_LINE_LEN_MAX + 1);
    s = read_in_every_way(&(struct mupdate_parser){0}, data, MUPDATE_LINE_LEN_MAX);
    assert_string_equal(s.text, "");
    story_free(&s);
    s = read_in_every_way(&(struct mupdate_parser){0}, data, MUPDATE_LINE_LEN_MAX + 1);
    assert_string_equal(s.text, "X");
    story_free(&s);
}

/* mupdate_parse/once: what was looked at isn't looked at again, and a go-ahead is told once. */
static void once(void **state)
{
    (void)state;
    struct mupdate_parser p = {0};
    struct mupdate_line l;
    struct err err = {0};
    size_t taken;
    char data[] = "a FIND {6}\r\nabcdef \"x y\" \"\\\\\"\r\n";
    size_t len = sizeof data - 1;
    assert_int_equal(mupdate_parse(&p, data, 4, &l, &taken, &err), MUPDATE_MORE);
    data[2] = ' ';
    assert_int_equal(mupdate_parse(&p, data, 12, &l, &taken, &err), MUPDATE_GO_AHEAD);
    assert_int_equal(mupdate_parse(&p, data, 12, &l, &taken, &err), MUPDATE_MORE);
    assert_int_equal(mupdate_parse(&p, data, 12, &l, &taken, &err), MUPDATE_MORE);
    assert_int_equal(mupdate_parse(&p, data, 15, &l, &taken, &err), MUPDATE_MORE);
    data[12] = 0;
    assert_int_equal(mupdate_parse(&p, data, len - 4, &l, &taken, &err), MUPDATE_MORE);
    data[20] = 0;
    assert_int_equal(mupdate_parse(&p, data, len, &l, &taken, &err), MUPDATE_LINE);
    assert_int_equal(taken, len);
    assert_int_equal(l.n, 5);
    assert_int_equal(l.word[4].len, 1);
    /* Ready for the next line at once. */
    char next[] = "b NOOP\r\nrest";
    assert_int_equal(mupdate_parse(&p, next, sizeof next - 1, &l, &taken, &err), MUPDATE_LINE);
    assert_int_equal(taken, 8);
    assert_int_equal(l.n, 2);
}

/* mupdate_parse/response: SASL's lines. */
static void response(void **state)
{
    (void)state;
    static const struct {
        const char *data;
        size_t len;
        enum mupdate_parsed rc;
        const char *word; /* or a part of the error */
        size_t taken;
        bool go_ahead;
    } rows[] = {
        {B("AG11cmRlcgBtdXJkZXJwdw==\r\n"), MUPDATE_LINE, "AG11cmRlcgBtdXJkZXJwdw==", 26, false},
        {B("AG11cmRlcgBtdXJkZXJwdw==\nrest\r\n"), MUPDATE_LINE, "AG11cmRlcgBtdXJkZXJwdw==", 25, false},
        {B("*\r\n"), MUPDATE_LINE, "*", 3, false},
        {B("\r\n"), MUPDATE_LINE, "", 2, false},
        {B("\n"), MUPDATE_LINE, "", 1, false},
        {B("some words \r\n"), MUPDATE_LINE, "some words ", 13, false},
        {B("{4+}\r\nAG11\r\n"), MUPDATE_LINE, "AG11", 12, false},
        {B("{4}\r\nAG11\r\n"), MUPDATE_LINE, "AG11", 11, true},
        {B("\"AG11\"\r\n"), MUPDATE_LINE, "AG11", 8, false},
        {B("\"\"\r\n"), MUPDATE_LINE, "", 4, false},
        {B("\"a\" b\r\n"), MUPDATE_BAD, "more than one response", 7, false},
        {B("\"a\"b\r\n"), MUPDATE_BAD, "no space", 6, false},
        {B("a\0b\r\n"), MUPDATE_BAD, "NUL", 5, false},
        {B("{17+}\r\n"), MUPDATE_FATAL, "longer than 16", 0, false},
        {B("0123456789abcdef\r\n"), MUPDATE_LINE, "0123456789abcdef", 18, false},
        {B("0123456789abcdefg\r\n"), MUPDATE_FATAL, "longer than 16", 0, false},
        {B("0123456789abcdefghijklm"), MUPDATE_FATAL, "longer than 16", 0, false},
        {B("0123456789abcdef"), MUPDATE_MORE, NULL, 0, false},
        {B(""), MUPDATE_MORE, NULL, 0, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t cut = 0; cut <= rows[i].len + 1; cut++) {
            /* Cut at each byte; the last time byte for byte. A literal is longer than the limit that is set for plain lines in some rows. */
            struct mupdate_parser p = {.literal_len_max = i < 15 && i != 13 && i != 14 ? 64 : 16};
            struct mupdate_word w = {0};
            struct err err = {0};
            size_t taken = 0, have = 0;
            bool go_ahead = false;
            enum mupdate_parsed rc = MUPDATE_MORE;
            char *buf = malloc(rows[i].len ? rows[i].len : 1);
            memcpy(buf, rows[i].data, rows[i].len);
            while (rc == MUPDATE_MORE || rc == MUPDATE_GO_AHEAD) {
                if (rc == MUPDATE_MORE) {
                    if (have == rows[i].len && have)
                        break;
                    have = cut > rows[i].len ? have + 1 : have < cut ? cut : rows[i].len;
                    have = have > rows[i].len ? rows[i].len : have;
                }
                rc = mupdate_parse_response(&p, buf, have, &w, &taken, &err);
                assert_false(go_ahead && rc == MUPDATE_GO_AHEAD);
                go_ahead |= rc == MUPDATE_GO_AHEAD;
                if (!rows[i].len)
                    break;
            }
            assert_int_equal(rc, rows[i].rc);
            assert_int_equal(go_ahead, rows[i].go_ahead);
            if (rc == MUPDATE_LINE) {
                assert_int_equal(w.len, strlen(rows[i].word));
                assert_memory_equal(w.s, rows[i].word, w.len);
            } else if (rc != MUPDATE_MORE)
                assert_non_null(strstr(err.text, rows[i].word));
            if (rc == MUPDATE_LINE || rc == MUPDATE_BAD)
                assert_int_equal(taken, rows[i].taken);
            free(buf);
        }
}

/* mupdate_parse/word_is, mupdate_parse/location */
static void words(void **state)
{
    (void)state;
    struct mupdate_word w = {"NoOpX", 4};
    assert_true(mupdate_word_is(&w, "NOOP"));
    assert_true(mupdate_word_is(&w, "noop"));
    assert_false(mupdate_word_is(&w, "NOOPX"));
    assert_false(mupdate_word_is(&w, "NOO"));
    assert_false(mupdate_word_is(&w, ""));
    assert_true(mupdate_word_is(&(struct mupdate_word){"", 0}, ""));
    assert_false(mupdate_word_is(&(struct mupdate_word){"@", 1}, "`")); /* 32 apart, as letters are */
    assert_false(mupdate_word_is(&(struct mupdate_word){"\xc9", 1}, "\xe9"));

    static const struct {
        const char *text, *server, *partition; /* server NULL: refused */
    } rows[] = {
        {"be1.test!default", "be1.test", "default"}, {"s!", "s", ""}, {"!p", NULL, NULL},          {"!", NULL, NULL},   {"", NULL, NULL},
        {"be1", NULL, NULL},                         {"a!b!c", NULL, NULL}, {"a!!", NULL, NULL}, {"a!b", "a", "b"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        /* In memory of its own, without a NUL behind it. */
        size_t len = strlen(rows[i].text);
        char *s = malloc(len ? len : 1);
        memcpy(s, rows[i].text, len);
        struct mupdate_location l = {0};
        struct err err = {0};
        int rc = mupdate_location_parse(&(struct mupdate_word){s, len}, &l, &err);
        if (rows[i].server) {
            assert_int_equal(rc, 0);
            assert_int_equal(l.server_len, strlen(rows[i].server));
            assert_memory_equal(l.server, rows[i].server, l.server_len);
            assert_int_equal(l.partition_len, strlen(rows[i].partition));
            assert_memory_equal(l.partition, rows[i].partition, l.partition_len);
        } else {
            assert_int_equal(rc, RAFTDIR_EINVAL);
            assert_true(err.text[0]);
        }
        free(s);
    }
}

/* --- Real sessions ----------------------------------------------------------------------------------------------------------------------- */

/* C escapes of one field, in place. */
static size_t unescape(char *s)
{
    char *to = s;
    for (char *p = s; *p; p++) {
        unsigned x;
        if (*p != '\\') {
            *to++ = *p;
            continue;
        }
        switch (*++p) {
        case 'r': *to++ = '\r'; break;
        case 'n': *to++ = '\n'; break;
        case 't': *to++ = '\t'; break;
        case '\\': *to++ = '\\'; break;
        default:
            assert_int_equal(sscanf(p, "x%2x", &x), 1);
            *to++ = (char)x;
            p += 2;
        }
    }
    return (size_t)(to - s);
}

/* mupdate_parse/sessions: what Cyrus' programs and its master say to each other, cut at each byte of each line. */
static void sessions(void **state)
{
    (void)state;
    FILE *in = fopen(TEST_DATA "/mupdate-sessions.txt", "r");
    static char text[8192], bytes[8192];
    size_t bytes_len = 0;
    unsigned lines = 0, responses = 0;
    assert_non_null(in);
    while (fgets(text, sizeof text, in)) {
        size_t len = strlen(text);
        assert_int_equal(text[len - 1], '\n');
        text[len - 1] = 0;
        if (text[0] == '>') {
            strcpy(bytes, text + 2);
            bytes_len = unescape(bytes);
        } else if (text[0] == '=' || text[0] == '~') {
            struct story want = {0};
            tell(&want, "[", 1);
            for (char *field = text[0] == '=' ? strchr(text, '\t') : NULL, *next; field; field = next) {
                field++;
                next = strchr(field, '\t');
                if (next)
                    *next = 0;
                if (want.len > 1)
                    tell(&want, "|", 1);
                size_t n = unescape(field);
                tell(&want, field, n);
            }
            tell(&want, "]", 1);
            if (text[0] == '=') {
                struct story s = read_in_every_way(&(struct mupdate_parser){0}, bytes, bytes_len);
                assert_string_equal(s.text, want.text);
                story_free(&s);
                lines++;
            } else {
                const char *wanted = text[1] ? text + 2 : "";
                for (size_t cut = 0; cut <= bytes_len; cut++) {
                    struct mupdate_parser p = {0};
                    struct mupdate_word w;
                    size_t taken = 0;
                    if (cut < bytes_len)
                        assert_int_equal(mupdate_parse_response(&p, bytes, cut, &w, &taken, NULL), MUPDATE_MORE);
                    assert_int_equal(mupdate_parse_response(&p, bytes, bytes_len, &w, &taken, NULL), MUPDATE_LINE);
                    assert_int_equal(taken, bytes_len);
                    assert_int_equal(w.len, strlen(wanted));
                    assert_memory_equal(w.s, wanted, w.len);
                }
                responses++;
            }
            story_free(&want);
        }
    }
    fclose(in);
    assert_true(lines > 300);
    assert_true(responses >= 12);
}

/* --- Random lines ------------------------------------------------------------------------------------------------------------------------ */

static size_t random_word(char *to, bool atom)
{
    static const char some[] = "user.a^b!{}+\"\\ \r\n\t0123456789\xc3\xa9*%()";
    size_t len = (size_t)random_below(4) ? random_below(24) : random_below(300);
    if (atom && !len)
        len = 1;
    for (size_t i = 0; i < len; i++) {
        do
            to[i] = random_below(8) ? some[random_below(sizeof some - 1)] : (char)(1 + random_below(255));
        while (atom && (strchr(" \r\n", to[i]) || (!i && strchr("\"{", to[i]))));
    }
    return len;
}

static bool could_be_quoted(const char *s, size_t len)
{
    return !memchr(s, '\r', len) && !memchr(s, '\n', len);
}

/* mupdate_parse/random: lines in all forms, fed in random pieces, give the words that they were made of. */
static void random_lines(void **state)
{
    (void)state;
    random_start("random lines");
    for (unsigned round = 0; round < 1500; round++) {
        struct mupdate_out out = {0};
        struct story want = {0}, got = {0};
        unsigned lines = 1 + random_below(4);
        tell(&got, "", 0);
        for (unsigned k = 0; k < lines; k++) {
            static char s[MUPDATE_WORDS_MAX][300];
            struct mupdate_word w[MUPDATE_WORDS_MAX];
            unsigned n = 1 + random_below(random_below(8) ? 6 : MUPDATE_WORDS_MAX);
            bool own = random_below(2);
            unsigned begin = own ? 1 : 3;
            if (n < begin)
                n = begin;
            for (unsigned i = 0; i < n; i++)
                w[i] = (struct mupdate_word){s[i], random_word(s[i], !i || (i == 1 && !own))};
            if (!own) { /* as a client prints a command */
                char tag[301], verb[301];
                snprintf(tag, sizeof tag, "%.*s", (int)w[0].len, w[0].s);
                snprintf(verb, sizeof verb, "%.*s", (int)w[1].len, w[1].s);
                mupdate_print_command(&out, tag, verb, n - 2, w + 2);
                tell(&want, "[", 1);
            } else { /* in any form */
                mupdate_print(&out, w[0].s, w[0].len);
                for (unsigned i = 1; i < n; i++) {
                    char head[32];
                    unsigned form = random_below(3);
                    mupdate_print(&out, " ", 1);
                    if (form == 0 && w[i].len && !memchr(w[i].s, ' ', w[i].len) && could_be_quoted(w[i].s, w[i].len) && w[i].s[0] != '"' && w[i].s[0] != '{')
                        mupdate_print(&out, w[i].s, w[i].len);
                    else if (form == 1 && could_be_quoted(w[i].s, w[i].len)) {
                        mupdate_print(&out, "\"", 1);
                        for (size_t j = 0; j < w[i].len; j++) {
                            if (w[i].s[j] == '"' || w[i].s[j] == '\\')
                                mupdate_print(&out, "\\", 1);
                            mupdate_print(&out, w[i].s + j, 1);
                        }
                        mupdate_print(&out, "\"", 1);
                    } else {
                        bool sync = random_below(2);
                        int len = snprintf(head, sizeof head, "{%zu%s}%s\n", w[i].len, sync ? "" : "+", random_below(2) ? "\r" : "");
                        mupdate_print(&out, head, (size_t)len);
                        mupdate_print(&out, w[i].s, w[i].len);
                        if (sync)
                            tell(&want, "+", 1);
                    }
                }
                bool cr = random_below(2);
                mupdate_print(&out, cr ? "\r\n" : "\n", cr ? 2 : 1);
                tell(&want, "[", 1);
            }
            for (unsigned i = 0; i < n; i++) {
                if (i)
                    tell(&want, "|", 1);
                tell(&want, w[i].s, w[i].len);
            }
            tell(&want, "]", 1);
        }
        struct feed f = {.p = {.line_len_max = 1 << 20}};
        for (size_t at = 0; at < out.len;) {
            size_t n = 1 + random_below(random_below(2) ? 3 : 200);
            n = n < out.len - at ? n : out.len - at;
            feed(&f, &got, out.p + at, n);
            at += n;
        }
        assert_int_equal(f.len, 0);
        assert_int_equal(got.len, want.len);
        assert_memory_equal(got.text, want.text, want.len);
        free(f.buf);
        story_free(&want);
        story_free(&got);
        mupdate_out_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good),     cmocka_unit_test(bad),   cmocka_unit_test(limits),   cmocka_unit_test(once),
        cmocka_unit_test(response), cmocka_unit_test(words), cmocka_unit_test(sessions), cmocka_unit_test(random_lines),
    };
    return cmocka_run_group_tests_name("mupdate_parse", tests, NULL, NULL);
}
