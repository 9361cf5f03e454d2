/* test_space.c - how much room there is: the decision at each look, its hysteresis, and the ballast file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "raftdir/space.h"

#define M (1ull << 20)
#define R (256 * M)

/* What a look sees and what was decided before -> what is decided. */
static void test_decide(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        struct space_look look;
        struct space_plan before, want;
    } rows[] = {
        {"plenty, ballast there", {100 * R, R, R, 0, 0}, {0}, {0}},
        {"plenty, no ballast yet", {100 * R, 0, R, 0, 0}, {0}, {.ballast_make = true}},
        {"just room for a ballast", {2 * R, 0, R, 0, 0}, {0}, {.ballast_make = true}},
        {"and then it is there", {R, R, R, 0, 0}, {0}, {0}},
        {"a byte less: no ballast, and low", {2 * R - 1, 0, R, 0, 0}, {0}, {.disk_low = true}},
        {"a byte less than the reserve beside it", {R - 1, R, R, 0, 0}, {0}, {.disk_low = true}},
        {"filled up to the ballast", {0, R, R, 0, 0}, {0}, {.disk_low = true}},
        {"given up: no more room than before", {R, 0, R, 0, 0}, {.disk_low = true}, {.disk_low = true}},
        {"given up and used", {0, 0, R, 0, 0}, {.disk_low = true}, {.disk_low = true}},
        {"low stays low below a quarter more", {R + R / 4 - 1, R, R, 0, 0}, {.disk_low = true}, {.disk_low = true}},
        {"and no longer", {R + R / 4, R, R, 0, 0}, {.disk_low = true}, {0}},
        {"enough stays enough there", {R + R / 4 - 1, R, R, 0, 0}, {0}, {0}},
        {"made again while still low", {2 * R, 0, R, 0, 0}, {.disk_low = true}, {.disk_low = true, .ballast_make = true}},
        {"room again, no ballast", {2 * R + R / 4, 0, R, 0, 0}, {.disk_low = true}, {.ballast_make = true}},
        {"no reserve: the disk never is low", {0, 0, 0, 0, 0}, {0}, {0}},
        {"nor makes a ballast", {100 * R, 0, 0, 0, 0}, {0}, {0}},
        {"nor stays low", {0, 0, 0, 0, 0}, {.disk_low = true}, {0}},
        {"the state is far from its quota", {100 * R, R, R, 90 * M, 100 * M}, {0}, {0}},
        {"at 95 %", {100 * R, R, R, 95 * M, 100 * M}, {0}, {0}},
        {"beyond 95 %", {100 * R, R, R, 95 * M + 1, 100 * M}, {0}, {.state_low = true}},
        {"beyond its quota", {100 * R, R, R, 200 * M, 100 * M}, {0}, {.state_low = true}},
        {"still more than 93.75 %", {100 * R, R, R, 94 * M, 100 * M}, {.state_low = true}, {.state_low = true}},
        {"less", {100 * R, R, R, 93 * M, 100 * M}, {.state_low = true}, {0}},
        {"the state without a reserve", {0, 0, 0, 99 * M, 100 * M}, {0}, {.state_low = true}},
        {"both", {0, R, R, 99 * M, 100 * M}, {0}, {.disk_low = true, .state_low = true}},
        {"one ends, the other stays", {100 * R, R, R, 99 * M, 100 * M}, {.disk_low = true, .state_low = true}, {.state_low = true}},
        {"there is no state any more", {100 * R, R, R, 0, 0}, {.state_low = true}, {0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct space_plan plan = space_decide(&rows[i].look, &rows[i].before);
        if (plan.disk_low != rows[i].want.disk_low || plan.state_low != rows[i].want.state_low || plan.ballast_make != rows[i].want.ballast_make)
            fail_msg("%s: disk_low %d, state_low %d, ballast_make %d", rows[i].what, plan.disk_low, plan.state_low, plan.ballast_make);
        assert_int_equal(space_of_plan(&plan), plan.disk_low || plan.state_low ? NODE_SPACE_LOW : NODE_SPACE_OK);
    }
}

/* A disk that others fill and empty at random: making and giving up the ballast never changes what is said, and what is said never swings without a change of a quarter. */
static void test_decide_model(void **state)
{
    (void)state;
    unsigned seed = 20261121;
    printf("seed %u\n", seed);
    for (int round = 0; round < 200; round++) {
        uint64_t disk = (1 + (uint64_t)rand_r(&seed) % 8) * R, others = 0, ballast = 0, high = 0, low = UINT64_MAX;
        struct space_plan plan = {0};
        for (int i = 0; i < 500; i++) {
            uint64_t target = (uint64_t)rand_r(&seed) % (disk + 1);
            others = (others * 3 + target) / 4; /* slowly, so that the thresholds are met */
            if (others + ballast > disk) { /* a write that fails gives the ballast up */
                if (rand_r(&seed) % 2)
                    ballast = 0;
                else
                    others = disk - ballast;
            }
            struct space_look look = {.free_len = disk - others - ballast, .ballast_len = ballast, .reserve_len = R};
            struct space_plan before = plan;
            plan = space_decide(&look, &before);
            uint64_t headroom = disk - others > R ? disk - others - R : 0;
            if (headroom < R)
                assert_true(plan.disk_low);
            if (headroom >= R + R / 4)
                assert_false(plan.disk_low);
            if (plan.disk_low != before.disk_low) {
                if (plan.disk_low)
                    low = headroom;
                else
                    high = headroom;
                if (low != UINT64_MAX && high)
                    assert_true(high - low >= R / 4);
            }
            if (plan.ballast_make) {
                assert_int_equal(ballast, 0);
                assert_true(look.free_len >= 2 * R); /* as much again is left */
                ballast = R;
                struct space_look after = {.free_len = look.free_len - R, .ballast_len = R, .reserve_len = R};
                assert_int_equal(space_decide(&after, &plan).disk_low, plan.disk_low);
            }
        }
    }
}

static void test_text(void **state)
{
    (void)state;
    static const struct {
        uint64_t len;
        const char *want;
    } rows[] = {{0, "0"}, {1023, "1023"}, {1024, "1K"}, {1536, "1.5K"}, {M - 1, "1023.9K"}, {M, "1M"}, {256 * M, "256M"}, {1ull << 40, "1T"}, {UINT64_MAX, "16383.9P"}};
    char text[SPACE_TEXT_SIZE];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(space_text(rows[i].len, text), rows[i].want);
}

/* --- The ballast file --------------------------------------------------------------------------------------------------------------- */

static char dir[] = "/tmp/raftdir-test-space-XXXXXX", file[128];

static void test_ballast(void **state)
{
    (void)state;
    struct space_ballast b;
    struct err err = {0};
    struct stat st;
    assert_int_equal(space_ballast_open(&b, dir, M, &err), 0);
    assert_int_equal(b.len, 0);
    assert_false(space_ballast_free(&b)); /* there is none */
    int rc = space_ballast_make(&b, M, &err);
    if (rc == RAFTDIR_EUNSUPPORTED) {
        space_ballast_close(&b);
        skip();
    }
    if (rc != 0)
        fail_msg("%s", err.text);
    assert_int_equal(b.len, M);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_size, M);
    assert_true((uint64_t)st.st_blocks * 512 >= M);
    assert_int_equal(st.st_mode & 07777, 0600);
    /* Found again at the next start. */
    space_ballast_close(&b);
    assert_int_equal(space_ballast_open(&b, dir, M, &err), 0);
    assert_int_equal(b.len, M);
    assert_true(space_ballast_free(&b));
    assert_int_equal(b.len, 0);
    assert_int_not_equal(stat(file, &st), 0);
    assert_false(space_ballast_free(&b));
    space_ballast_close(&b);
}

/* What was left by a crash, by a copy without blocks, by another configuration, or put there by somebody. */
static void test_ballast_leftovers(void **state)
{
    (void)state;
    struct space_ballast b;
    struct err err = {0};
    struct stat st;
    int fd = open(file, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, M), 0); /* the length, but no blocks */
    close(fd);
    assert_int_equal(space_ballast_open(&b, dir, M, &err), 0);
    assert_int_equal(b.len, 0);
    assert_int_not_equal(stat(file, &st), 0);
    if (space_ballast_make(&b, M, &err) != 0) {
        space_ballast_close(&b);
        skip();
    }
    space_ballast_close(&b);
    assert_int_equal(space_ballast_open(&b, dir, 2 * M, &err), 0); /* configured longer since */
    assert_int_equal(b.len, 0);
    assert_int_equal(space_ballast_make(&b, 2 * M, &err), 0);
    space_ballast_close(&b);
    assert_int_equal(space_ballast_open(&b, dir, 0, &err), 0); /* and then none */
    assert_int_equal(b.len, 0);
    assert_int_not_equal(stat(file, &st), 0);
    space_ballast_close(&b);
    /* A link is not followed, a directory not removed: then there is no ballast, and making says why. */
    char victim[160];
    snprintf(victim, sizeof victim, "%s/victim", dir);
    fd = open(victim, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(posix_fallocate(fd, 0, M), 0); /* it would do as a ballast */
    close(fd);
    assert_int_equal(symlink(victim, file), 0);
    assert_int_equal(space_ballast_open(&b, dir, M, &err), 0);
    assert_int_equal(b.len, 0);
    assert_int_equal(stat(victim, &st), 0);
    assert_int_equal(mkdir(file, 0700), 0);
    assert_int_not_equal(space_ballast_make(&b, M, &err), 0);
    assert_non_null(strstr(err.text, "create ballast"));
    assert_int_equal(b.len, 0);
    space_ballast_close(&b);
    assert_int_equal(rmdir(file), 0);
    assert_int_equal(unlink(victim), 0);
    assert_int_not_equal(space_ballast_open(&b, "/nonexistent/raftdir", M, &err), 0);
    assert_non_null(strstr(err.text, "/nonexistent/raftdir"));
}

/* No room: nothing stays behind. */
static void test_ballast_no_room(void **state)
{
    (void)state;
    struct space_ballast b;
    struct err err = {0};
    struct stat st;
    assert_int_equal(space_ballast_open(&b, dir, 1ull << 50, &err), 0);
    assert_int_not_equal(space_ballast_make(&b, 1ull << 50, &err), 0);
    assert_int_equal(b.len, 0);
    assert_int_not_equal(stat(file, &st), 0);
    space_ballast_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decide),  cmocka_unit_test(test_decide_model),      cmocka_unit_test(test_text),
        cmocka_unit_test(test_ballast), cmocka_unit_test(test_ballast_leftovers), cmocka_unit_test(test_ballast_no_room),
    };
    if (!mkdtemp(dir))
        return 1;
    snprintf(file, sizeof file, "%s/ballast", dir);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return rc;
}
