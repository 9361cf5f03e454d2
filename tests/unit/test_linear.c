/* test_linear.c - the checker of tests/linear.c: histories written by hand, random ones against all permutations, and what a register with planted faults does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/linear.h"

static uint64_t rng;

static uint32_t below(uint32_t n)
{
    rng ^= rng << 13; /* xorshift64 */
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)((rng >> 16) % n);
}

static uint64_t seed_start(void)
{
    const char *given = getenv("RAFTDIR_TEST_SEED");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    rng = given ? strtoull(given, NULL, 10) : (uint64_t)ts.tv_sec * 1000000007u + (uint64_t)ts.tv_nsec;
    rng = rng ? rng : 1;
    return rng;
}

/* --- By hand ----------------------------------------------------------------------------------------------------------------------- */

static enum linear_verdict check_text(const char *text)
{
    struct linear_op *ops = NULL;
    size_t n = 0;
    struct linear_report r;
    FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    assert_non_null(f);
    long line = linear_read(f, &ops, &n);
    fclose(f);
    if (line)
        fail_msg("line %ld of\n%s", line, text);
    enum linear_verdict v = linear_check(ops, n, 0, &r);
    free(ops);
    assert_true((v == LINEAR_OK) == !*r.text);
    return v;
}

static void by_hand(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum linear_verdict want;
        const char *text;
    } table[] = {
        {"read your write", LINEAR_OK, "1 a create 5 done 0 10\n1 a lookup 5 done 20 30\n"},
        {"absent first", LINEAR_OK, "1 a lookup 0 notfound 0 1\n1 a create 5 done 2 3\n"},
        {"stale: not there", LINEAR_BAD, "1 a create 5 done 0 10\n2 a lookup 0 notfound 20 30\n"},
        {"at the same time: not there yet", LINEAR_OK, "1 a create 5 done 0 10\n2 a lookup 0 notfound 5 30\n"},
        {"stale: old value", LINEAR_BAD, "1 a put 5 done 0 10\n1 a put 6 done 20 30\n2 a lookup 5 done 40 50\n"},
        {"there and gone again", LINEAR_BAD, "1 a put 5 done 0 10\n1 a put 6 done 20 100\n2 a lookup 6 done 30 40\n3 a lookup 5 done 50 60\n"},
        {"two readers agree", LINEAR_OK, "1 a put 5 done 0 10\n1 a put 6 done 20 100\n2 a lookup 5 done 30 40\n3 a lookup 6 done 50 60\n"},
        {"a value that nobody wrote", LINEAR_BAD, "1 a put 5 done 0 10\n2 a lookup 7 done 20 30\n"},
        {"two creates", LINEAR_BAD, "1 a create 5 done 0 10\n2 a create 6 done 5 20\n"},
        {"two creates, a delete", LINEAR_OK, "1 a create 5 done 0 10\n2 a create 6 done 5 20\n3 a delete 0 done 6 7\n"},
        {"created once", LINEAR_OK, "1 a create 5 done 0 10\n2 a create 6 exists 5 20\n"},
        {"exists, though nobody made it", LINEAR_BAD, "2 a create 6 exists 5 20\n"},
        {"exists because of an uncertain one", LINEAR_OK, "1 a create 5 uncertain 0 10\n2 a create 6 exists 20 30\n2 a lookup 5 done 40 50\n"},
        {"an uncertain one takes effect late", LINEAR_OK, "1 a put 5 uncertain 0 10\n2 a lookup 0 notfound 20 30\n2 a lookup 5 done 40 50\n"},
        {"an uncertain one never does", LINEAR_OK, "1 a put 5 uncertain 0 10\n2 a lookup 0 notfound 20 30\n"},
        {"an uncertain one happens once", LINEAR_BAD, "1 a put 5 uncertain 0 10\n2 a put 6 done 20 30\n2 a lookup 5 done 40 50\n2 a put 7 done 60 70\n2 a lookup 5 done 80 90\n"},
        {"an uncertain one doesn't happen before it began", LINEAR_BAD, "2 a lookup 5 done 0 1\n1 a put 5 uncertain 2 10\n"},
        {"no answer at all", LINEAR_OK, "1 a put 5 uncertain 0 -\n2 a lookup 5 done 20 30\n"},
        {"done twice", LINEAR_BAD, "1 a create 1 done 0 1\n1 a setacl 5 done 2 10\n2 a setacl 6 done 20 30\n2 a lookup 6 done 31 32\n2 a lookup 5 done 40 50\n"},
        {"deleted twice", LINEAR_BAD, "1 a create 1 done 0 1\n1 a delete 0 done 2 10\n2 a delete 0 done 20 30\n"},
        {"deleted, then not there", LINEAR_OK, "1 a create 1 done 0 1\n1 a delete 0 done 2 10\n2 a delete 0 notfound 20 30\n2 a setacl 9 notfound 40 50\n"},
        {"refused though it is there", LINEAR_BAD, "1 a create 1 done 0 1\n2 a setacl 9 notfound 40 50\n"},
        {"a refused write is a read", LINEAR_BAD, "1 a create 1 done 0 1\n2 a create 2 exists 10 20\n2 a lookup 2 done 30 40\n"},
        {"what was not done says nothing", LINEAR_OK, "1 a create 1 notdone 0 1\n2 a lookup 0 notfound 10 20\n"},
        {"a read without an answer says nothing", LINEAR_OK, "1 a lookup 0 uncertain 0 -\n"},
        {"each mailbox by itself", LINEAR_OK, "1 a create 1 done 0 1\n1 b lookup 0 notfound 2 3\n"},
        {"the second mailbox is wrong", LINEAR_BAD, "1 a create 1 done 0 1\n1 b create 1 done 2 3\n1 b lookup 0 notfound 4 5\n"},
        {"one at the moment of the other", LINEAR_OK, "1 a create 1 done 0 10\n2 a lookup 0 notfound 10 20\n"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (check_text(table[i].text) != table[i].want)
            fail_msg("%s", table[i].name);
}

static void senseless(void **state)
{
    (void)state;
    static const char *const lines[] = {"1 a create 1 done 0", "1 a create 1 done 0 1 2", "x a create 1 done 0 1", "1 a make 1 done 0 1", "1 a create 1 well 0 1",
                                        "1 a create -1 done 0 1", "1 a create 99999999999999999999999 done 0 1", "", "1 a create 1 done 0 1 \xff"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct linear_op *ops = NULL;
        size_t n = 0;
        char text[100];
        snprintf(text, sizeof text, "1 a create 1 done 0 1\n%s\n", lines[i]);
        FILE *f = fmemopen(text, strlen(text), "r");
        assert_int_equal(linear_read(f, &ops, &n), 2);
        fclose(f);
        free(ops);
    }
    /* A last line that was cut off. */
    struct linear_op *ops = NULL;
    size_t n = 0;
    char text[] = "1 a create 1 done 0 1\n1 a lookup 1 done 2 3";
    FILE *f = fmemopen(text, strlen(text), "r");
    assert_int_equal(linear_read(f, &ops, &n), 2);
    fclose(f);
    free(ops);
    assert_int_equal(check_text("1 a create 1 notfound 0 1\n"), LINEAR_UNDECIDED);
    assert_int_equal(check_text("1 a create 0 done 0 1\n"), LINEAR_UNDECIDED);
    assert_int_equal(check_text("1 a create 1 done 2 1\n"), LINEAR_UNDECIDED);
    assert_int_equal(check_text("1 a lookup 1 done 2 -\n"), LINEAR_UNDECIDED);
}

/* --- Against all permutations -------------------------------------------------------------------------------------------------------- */

#define SMALL 6

/* The model once more, written differently: the new state, or -1. */
static int64_t then(int64_t s, const struct linear_op *op)
{
    bool u = op->outcome == LINEAR_UNCERTAIN;
    if (op->kind == LINEAR_LOOKUP)
        return (op->outcome == LINEAR_NOT_FOUND ? s == 0 : s == (int64_t)op->value) ? s : -1;
    if (op->kind == LINEAR_PUT)
        return (int64_t)op->value;
    if (op->kind == LINEAR_CREATE)
        return s == 0 ? (op->outcome == LINEAR_EXISTS ? -1 : (int64_t)op->value) : (u || op->outcome == LINEAR_EXISTS) ? s : -1;
    if (s == 0)
        return u || op->outcome == LINEAR_NOT_FOUND ? 0 : -1;
    return op->outcome == LINEAR_NOT_FOUND ? -1 : op->kind == LINEAR_DELETE ? 0 : (int64_t)op->value;
}

static bool brute(const struct linear_op *ops, unsigned n, unsigned used, int64_t s)
{
    bool all = true;
    for (unsigned i = 0; i < n; i++)
        all &= (used & 1u << i) || ops[i].outcome == LINEAR_UNCERTAIN;
    if (all)
        return true;
    for (unsigned i = 0; i < n; i++) {
        if (used & 1u << i)
            continue;
        bool may = true;
        for (unsigned k = 0; k < n; k++) /* somebody who is still to come, and was over before this one began? */
            if (k != i && !(used & 1u << k) && ops[k].outcome != LINEAR_UNCERTAIN && ops[k].return_ns < ops[i].invoke_ns)
                may = false;
        int64_t next = may ? then(s, &ops[i]) : -1;
        if (next >= 0 && brute(ops, n, used | 1u << i, next))
            return true;
    }
    return false;
}

static void all_permutations(void **state)
{
    (void)state;
    uint64_t seed = seed_start();
    unsigned good = 0, bad = 0;
    for (unsigned round = 0; round < 20000; round++) {
        struct linear_op ops[SMALL];
        struct linear_report r;
        unsigned n = 1 + below(SMALL);
        for (unsigned i = 0; i < n; i++) {
            memset(&ops[i], 0, sizeof ops[i]);
            strcpy(ops[i].key, "a");
            ops[i].client = i;
            ops[i].kind = (enum linear_kind)below(LINEAR_KINDS);
            ops[i].value = 1 + below(2);
            ops[i].outcome = LINEAR_DONE;
            if (ops[i].kind != LINEAR_LOOKUP && below(4) == 0)
                ops[i].outcome = LINEAR_UNCERTAIN;
            else if (below(3) == 0)
                ops[i].outcome = ops[i].kind == LINEAR_CREATE ? LINEAR_EXISTS : ops[i].kind == LINEAR_PUT ? LINEAR_DONE : LINEAR_NOT_FOUND;
            ops[i].invoke_ns = below(12);
            ops[i].return_ns = ops[i].invoke_ns + below(8);
        }
        bool want = brute(ops, n, 0, 0);
        enum linear_verdict got = linear_check(ops, n, 0, &r);
        if (got != (want ? LINEAR_OK : LINEAR_BAD)) {
            for (unsigned i = 0; i < n; i++)
                linear_write(stderr, &ops[i]);
            fail_msg("RAFTDIR_TEST_SEED=%llu: %s is called %s", (unsigned long long)seed, want ? "good" : "bad", got == LINEAR_OK ? "good" : "bad");
        }
        good += want;
        bad += !want;
    }
    assert_true(good > 1000 && bad > 1000);
}

/* --- A register, and what is wrong with it -------------------------------------------------------------------------------------------------- */

enum plant { PLANT_NONE, PLANT_STALE_READ, PLANT_LOST_WRITE, PLANT_DONE_TWICE, PLANT_UNCERTAIN_TWICE, PLANTS };
#define CLIENTS 8
#define KEYS 3
#define HISTORY 1500

/* One history: clients that begin, have done and are answered at random moments. A write of the fault may be planted where it shows. */
static size_t run_register(enum plant plant, struct linear_op *ops, unsigned *planted_r)
{
    struct {
        bool busy, done;
        struct linear_op op;
    } client[CLIENTS] = {{0}};
    uint64_t value[KEYS] = {0}, old[KEYS] = {0}, next_value = 1, now = 0;
    struct linear_op again = {0}; /* one that will be done once more */
    uint64_t again_at = UINT64_MAX;
    size_t n = 0;
    *planted_r = 0;
    while (n < HISTORY) {
        unsigned i = below(CLIENTS);
        struct linear_op *op = &client[i].op;
        now += 1 + below(3);
        if (now >= again_at) {
            unsigned k = (unsigned)(again.key[0] - 'a');
            if (value[k] && value[k] != again.value) { /* else nobody could tell */
                value[k] = again.value;
                (*planted_r)++;
                again_at = UINT64_MAX;
            }
        }
        if (!client[i].busy) {
            memset(op, 0, sizeof *op);
            op->key[0] = (char)('a' + below(KEYS));
            op->client = i;
            op->kind = below(2) ? LINEAR_LOOKUP : (enum linear_kind)below(LINEAR_KINDS);
            op->value = op->kind == LINEAR_DELETE || op->kind == LINEAR_LOOKUP ? 0 : next_value++;
            op->invoke_ns = now;
            client[i].busy = true;
            client[i].done = false;
            continue;
        }
        unsigned k = (unsigned)(op->key[0] - 'a');
        bool give_up = op->kind != LINEAR_LOOKUP && below(60) == 0;
        if (!client[i].done && !give_up) {
            uint64_t before = value[k];
            client[i].done = true;
            op->outcome = LINEAR_DONE;
            if (op->kind == LINEAR_LOOKUP) {
                bool stale = plant == PLANT_STALE_READ && below(10) == 0 && old[k] != value[k];
                op->value = stale ? old[k] : value[k];
                *planted_r += stale;
                if (!op->value)
                    op->outcome = LINEAR_NOT_FOUND;
                continue;
            }
            if (op->kind == LINEAR_CREATE && value[k])
                op->outcome = LINEAR_EXISTS;
            else if ((op->kind == LINEAR_SETACL || op->kind == LINEAR_DELETE) && !value[k])
                op->outcome = LINEAR_NOT_FOUND;
            else if (plant == PLANT_LOST_WRITE && below(10) == 0 && before != (op->kind == LINEAR_DELETE ? 0 : op->value))
                (*planted_r)++;
            else
                value[k] = op->kind == LINEAR_DELETE ? 0 : op->value;
            if (value[k] != before)
                old[k] = before;
            if (plant == PLANT_DONE_TWICE && op->outcome == LINEAR_DONE && op->value && again_at == UINT64_MAX && below(5) == 0) {
                again = *op;
                again_at = now + 40;
            }
            continue;
        }
        if (give_up) {
            /* Uncertain: done already, or later (by itself, now), or never. */
            if (!client[i].done && below(2) && (op->kind == LINEAR_PUT || (op->kind == LINEAR_CREATE ? !value[k] : value[k] != 0))) {
                value[k] = op->kind == LINEAR_DELETE ? 0 : op->value;
                if (plant == PLANT_UNCERTAIN_TWICE && op->value && again_at == UINT64_MAX) {
                    again = *op;
                    again_at = now + 100;
                }
            }
            op->outcome = LINEAR_UNCERTAIN;
        }
        op->return_ns = now;
        ops[n++] = *op;
        client[i].busy = false;
    }
    /* What is still under way may have been done, and seen by others: nobody was told what became of it. */
    for (unsigned i = 0; i < CLIENTS; i++)
        if (client[i].busy && client[i].op.kind != LINEAR_LOOKUP) {
            ops[n] = client[i].op;
            ops[n].outcome = LINEAR_UNCERTAIN;
            ops[n++].return_ns = UINT64_MAX;
        }
    return n;
}

static enum linear_verdict one_history(enum plant plant, unsigned *planted_r, struct linear_report *r)
{
    static struct linear_op ops[HISTORY + CLIENTS];
    size_t n = run_register(plant, ops, planted_r);
    return linear_check(ops, n, 0, r);
}

static void planted(void **state)
{
    (void)state;
    static const char *const names[PLANTS] = {"none", "stale read", "lost write", "done twice", "uncertain, done twice"};
    uint64_t seed = seed_start();
    for (int plant = 0; plant < PLANTS; plant++) {
        unsigned with = 0, caught = 0;
        for (unsigned round = 0; round < 40; round++) {
            struct linear_report r;
            unsigned n;
            enum linear_verdict v = one_history((enum plant)plant, &n, &r);
            if (v == LINEAR_UNDECIDED || (plant == PLANT_NONE && v != LINEAR_OK))
                fail_msg("RAFTDIR_TEST_SEED=%llu: %s, history %u: %s: %s", (unsigned long long)seed, names[plant], round, r.key, r.text);
            with += n >= (plant == PLANT_UNCERTAIN_TWICE ? 1 : 3);
            caught += n >= (plant == PLANT_UNCERTAIN_TWICE ? 1 : 3) && v == LINEAR_BAD;
        }
        printf("%s: caught in %u of %u histories\n", names[plant], caught, with);
        /* That an uncertain write was done twice shows only when somebody read it before as well. */
        unsigned tenths = plant == PLANT_UNCERTAIN_TWICE ? 3 : 8;
        if (plant != PLANT_NONE && (with < 10 || caught * 10 < with * tenths))
            fail_msg("RAFTDIR_TEST_SEED=%llu: %s was caught in only %u of %u histories", (unsigned long long)seed, names[plant], caught, with);
    }
}

/* Many uncertain writes at once have more orders than anybody can try: that is said, in bounded time. */
static void bounded(void **state)
{
    (void)state;
    struct linear_op ops[60];
    struct linear_report r;
    memset(ops, 0, sizeof ops);
    for (unsigned i = 0; i < 59; i++)
        ops[i] = (struct linear_op){.key = "a", .client = i, .kind = LINEAR_PUT, .outcome = LINEAR_UNCERTAIN, .value = i + 1, .return_ns = UINT64_MAX};
    ops[59] = (struct linear_op){.key = "a", .client = 99, .kind = LINEAR_LOOKUP, .outcome = LINEAR_DONE, .value = 1000, .invoke_ns = 5, .return_ns = 6};
    assert_int_equal(linear_check(ops, 60, 100000, &r), LINEAR_UNDECIDED);
    assert_string_equal(r.key, "a");
    assert_non_null(strstr(r.text, "undecided"));
    /* What is surely wrong elsewhere is told all the same. */
    struct linear_op more[62];
    memcpy(more, ops, sizeof ops);
    more[60] = (struct linear_op){.key = "b", .kind = LINEAR_CREATE, .outcome = LINEAR_DONE, .value = 1, .invoke_ns = 1, .return_ns = 2};
    more[61] = (struct linear_op){.key = "b", .kind = LINEAR_LOOKUP, .outcome = LINEAR_NOT_FOUND, .invoke_ns = 3, .return_ns = 4};
    assert_int_equal(linear_check(more, 62, 100000, &r), LINEAR_BAD);
    assert_string_equal(r.key, "b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand), cmocka_unit_test(senseless), cmocka_unit_test(all_permutations), cmocka_unit_test(planted), cmocka_unit_test(bounded),
    };
    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
