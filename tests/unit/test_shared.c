/* test_shared.c - the phases of a node: what serves nothing doesn't begin to because the daemon stops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "raftdir/shared.h"

static enum shared_phase after_stop(enum shared_phase phase)
{
    struct shared s;
    struct shared_view view;
    assert_int_equal(shared_init(&s), 0);
    shared_phase_set(&s, phase, NULL);
    shared_phase_set(&s, SHARED_STOPPING, NULL);
    shared_view_get(&s, &view);
    shared_close(&s);
    return view.phase;
}

static void test_stopping(void **state)
{
    (void)state;
    assert_int_equal(after_stop(SHARED_RUNNING), SHARED_STOPPING);
    assert_int_equal(after_stop(SHARED_UNCONFIGURED), SHARED_UNCONFIGURED); /* there is no store to read */
    assert_int_equal(after_stop(SHARED_FAILED), SHARED_FAILED);
    assert_int_equal(after_stop(SHARED_REMOVED), SHARED_REMOVED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stopping)};
    return cmocka_run_group_tests_name("shared", tests, NULL, NULL);
}
