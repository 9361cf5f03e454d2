/* two_fakes.h - the fixture of the library's tests: a folder, up to two fake nodes and a handle, all gone at the end. For one test program each. */
#ifndef RAFTDIR_TESTS_TWO_FAKES_H
#define RAFTDIR_TESTS_TWO_FAKES_H
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include "include/raftdir.h"
#include "support_certs.h"
#include "support_fake_node.h"

#define F(name) RAFTDIR__CLIENT__TO_NODE__BODY_##name
#define FIXTURE static __attribute__((unused))

FIXTURE char dir[80];
FIXTURE struct fake one, two;
FIXTURE raftdir *d;

/* A handler's data stands in the frame of its test: the nodes end before that does. */
FIXTURE void stop_fakes(int *unused)
{
    (void)unused;
    fake_stop(&one);
    fake_stop(&two);
}
#define STOP_FAKES int stopped_at_the_end __attribute__((cleanup(stop_fakes), unused)) = 0

FIXTURE uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

FIXTURE int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "lib");
    memset(&one, 0, sizeof one);
    memset(&two, 0, sizeof two);
    d = NULL;
    return 0;
}

FIXTURE int teardown(void **state)
{
    (void)state;
    raftdir_close(&d);
    stop_fakes(NULL);
    support_dir_remove(dir);
    return 0;
}

#endif
