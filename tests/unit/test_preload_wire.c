/* test_preload_wire.c - what Cyrus' hidden mupdate_reserve prints, taken apart; and nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "client/preload_internal.h"

static const struct {
    const char *text; /* ";" stands for CR LF */
    const char *words; /* joined by "|"; NULL: malformed */
} rows[] = {
    {"X0 RESERVE {10+};user.alice {6+};be!def;", "X0|RESERVE|user.alice|be!def"},
    {"X12 RESERVE {11+};a b {1+};c {0+};;", "X12|RESERVE|a b {1+};c|"}, /* a literal may hold anything */
    {"X0 NOOP;", "X0|NOOP"},
    {"X0 RESERVE {0+}; {0+};;", "X0|RESERVE||"},
    {"", NULL},
    {";", NULL},
    {"X0 NOOP", NULL},                        /* no end */
    {"X0 NOOP;X1 NOOP;", NULL},               /* two lines */
    {"X0  NOOP;", NULL},                      /* two spaces */
    {"X0 NOOP ;", NULL},
    {"X0 RESERVE {3+};ab", NULL},             /* short */
    {"X0 RESERVE {3+};ab;", NULL},            /* its end is part of the literal */
    {"X0 RESERVE {3};abc;", NULL},            /* that would have to wait for "+" */
    {"X0 RESERVE {+};abc;", NULL},
    {"X0 RESERVE {99999999999999999999+};abc;", NULL},
    {"X0 RESERVE {999999999+};abc;", NULL},
    {"X0 RESERVE {1+};abc;", NULL},           /* long */
    {"X0 RESERVE {", NULL},
    {"X0 RESERVE {3", NULL},
    {"X0 RESERVE {3+}", NULL},
    {"a b c d e;", "a|b|c|d|e"},
    {"a b c d e f;", NULL},
};

/* In a block of its own length, so that the sanitizer sees a byte read behind it. */
static int split(const char *text, size_t len, char out[256])
{
    char *copy = malloc(len ? len : 1), *word[PRELOAD_WORDS_MAX];
    assert_non_null(copy);
    memcpy(copy, text, len);
    int n = preload_split(copy, len, word);
    out[0] = 0;
    for (int i = 0; i < n; i++) {
        if (i)
            strcat(out, "|");
        strcat(out, word[i]);
    }
    free(copy);
    return n;
}

static size_t wire(const char *text, char out[256])
{
    size_t n = 0;
    for (; *text; text++) {
        if (*text == ';') {
            out[n++] = '\r';
            out[n++] = '\n';
        } else {
            out[n++] = *text;
        }
    }
    return n;
}

static void table(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256], want[256], got[256];
        size_t len = wire(rows[i].text, text);
        int n = split(text, len, got);
        if (!rows[i].words) {
            assert_int_equal(n, -1);
            continue;
        }
        want[wire(rows[i].words, want)] = 0;
        assert_string_equal(got, want);
        /* Cut off anywhere, it is malformed. */
        for (size_t cut = 0; cut < len; cut++)
            assert_int_equal(split(text, cut, got), -1);
    }
}

static void no_nul(void **state)
{
    (void)state;
    static const char literal[] = "X0 RESERVE {3+}\r\na\0b\r\n", atom[] = "X0 RE\0SERVE\r\n";
    char got[256];
    assert_int_equal(split(literal, sizeof literal - 1, got), -1);
    assert_int_equal(split(atom, sizeof atom - 1, got), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(table), cmocka_unit_test(no_nul)};
    return cmocka_run_group_tests_name("preload_wire", tests, NULL, NULL);
}
