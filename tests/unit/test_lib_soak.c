/* test_lib_soak.c - many calls of every kind on one handle, and many handles: memory stays what it was, no descriptor is left open. RAFTDIR_SOAK_CALLS says how many
 * calls (default 100,000; 1,000,000 with RAFTDIR_TEST_LONG=yes). check/valgrind runs it with fewer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "support_certs.h"
#include "support_fake_node.h"

#define F(name) RAFTDIR__CLIENT__TO_NODE__BODY_##name
#define GROWTH_MAX (64u << 10) /* of a buffer that once held more than before */
#define IN_FLIGHT 64

size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static char dir[80];
static struct fake node;
static raftdir *d;
static unsigned long calls, calls_max;

static size_t allocated(void)
{
    return __sanitizer_get_current_allocated_bytes ? __sanitizer_get_current_allocated_bytes() : mallinfo2().uordblks;
}

static unsigned descriptors(void)
{
    unsigned n = 0;
    DIR *fds = opendir("/proc/self/fd");
    assert_non_null(fds);
    while (readdir(fds))
        n++;
    closedir(fds);
    return n;
}

static void answer(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    Raftdir__Client__FromNode end = RAFTDIR__CLIENT__FROM_NODE__INIT;
    switch (m->body_case) {
    case F(LOOKUP):
        if (m->lookup->name[0] == 'n')
            fake_code(f, conn, m->request_id, RAFTDIR_ENOTFOUND, "no such mailbox");
        else
            fake_row(f, conn, m->request_id, m->lookup->name, "be1", 10);
        break;
    case F(MY_RIGHTS):
    case F(LIST):
        fake_row(f, conn, m->request_id, "user.anna", "be1", 10);
        break;
    case F(WRITE):
        fake_write_result(f, conn, m, 0, 50, NULL);
        break;
    case F(CREDIT):
    case F(CANCEL):
        break;
    default:
        fake_answer(f, conn, m->request_id, &end);
    }
}

static int open_handle(raftdir **r)
{
    struct raftdir_options o;
    raftdir_options_init(&o);
    o.endpoints = node.endpoint;
    o.local_dir = "";
    o.timeout_ms = 60000; /* valgrind */
    o.patience_ms = 30000;
    return raftdir_open(&o, r, NULL, 0);
}

static unsigned in_flight;

static void answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    (void)message;
    assert_int_equal(code, data ? RAFTDIR_ENOTFOUND : 0);
    assert_true(data || m);
    in_flight--;
}

static void written(void *data, int code, const char *message, const struct raftdir_result *r)
{
    (void)data;
    (void)message;
    assert_int_equal(code, 0);
    assert_int_equal(r->ops_n, 2);
    in_flight--;
}

static void loop(void)
{
    int fd = raftdir_fd(d);
    while (in_flight) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_true(poll(&p, 1, 60000) >= 0);
        assert_int_equal(raftdir_process(d), 0);
    }
}

/* About 300 calls. */
static void round_of_calls(void)
{
    const struct raftdir_mailbox *m;
    const struct raftdir_result *r;
    struct raftdir_mailbox box;
    static const char *const groups[] = {"staff"};
    raftdir_mailbox_init(&box);
    box.name = "user.anna";
    box.server = "be1";
    box.acl = "anna\tlrs\t";
    raftdir_batch *b = raftdir_batch_create();
    assert_non_null(b);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
        struct raftdir_mailbox *kept = raftdir_mailbox_copy(m);
        assert_int_equal(raftdir_lookup(d, "none", &m), RAFTDIR_ENOTFOUND);
        assert_string_equal(kept->name, "user.anna");
        raftdir_mailbox_free(kept);
    }
    assert_int_equal(raftdir_lookup(d, "", &m), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_my_rights(d, "user.anna", "bob", groups, 1, &m), 0);
    assert_int_equal(raftdir_create(d, &box, &r), 0);
    assert_int_equal(raftdir_setacl_one(d, "user.anna", "bob", "lr", NULL), 0);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(raftdir_batch_add_put(b, &box), 0);
        assert_int_equal(raftdir_batch_add_delete(b, "user.x", 1, NULL, NULL, "tok", 3), 0);
        assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_PRESENT, 0, NULL), 0);
        if (i < 10) {
            in_flight++;
            assert_int_equal(raftdir_submit(d, b, written, NULL), 0);
            raftdir_batch_clear(b);
        }
    }
    raftdir_batch_destroy(&b);
    for (int i = 0; i < IN_FLIGHT; i++) {
        in_flight++;
        if (i % 4 == 0)
            assert_int_equal(raftdir_my_rights_start(d, "user.anna", "bob", groups, 1, answered, NULL), 0);
        else if (i % 4 == 1)
            assert_int_equal(raftdir_lookup_start(d, "none", answered, &calls), 0);
        else
            assert_int_equal(raftdir_lookup_user_start(d, "anna", answered, NULL), 0);
    }
    loop();
    raftdir_list *l, *left;
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(raftdir_list_open(d, NULL, &left), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1);
    assert_int_equal(raftdir_list_next(l, &m), 0);
    raftdir_list_close(&l);
    raftdir_list_close(&left); /* before its end */
    raftdir *other;
    assert_int_equal(open_handle(&other), 0);
    assert_int_equal(raftdir_lookup(other, "user.anna", &m), 0);
    assert_int_equal(raftdir_barrier(other, 1), 0);
    raftdir_close(&other);
    assert_int_equal(open_handle(&other), 0);
    raftdir_close(&other);
    calls += 20 + 4 + 200 + 10 + IN_FLIGHT + 8;
}

static void memory_stays(void **state)
{
    (void)state;
    const char *given = getenv("RAFTDIR_SOAK_CALLS"), *is_long = getenv("RAFTDIR_TEST_LONG");
    calls_max = given ? strtoul(given, NULL, 10) : is_long && !strcmp(is_long, "yes") ? 1000000 : 100000;
    support_dir_make(dir, sizeof dir, "soak");
    fake_start(&node, dir, "one", answer, NULL);
    node.answers_pings = true;
    assert_int_equal(open_handle(&d), 0);
    size_t before = 0;
    unsigned fds_before = 0;
    while (calls < calls_max) {
        round_of_calls();
        if (!before && calls >= calls_max / 10) {
            usleep(20000); /* the node takes its ends of closed connections away */
            before = allocated();
            fds_before = descriptors();
        }
    }
    usleep(20000);
    size_t after = allocated();
    print_message("%lu calls; allocated %zu bytes after a tenth, %zu at the end\n", calls, before, after);
    assert_in_range(after, 0, before + GROWTH_MAX);
    assert_in_range(descriptors(), 0, fds_before + 2);
    raftdir_close(&d);
    fake_stop(&node);
    support_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory_stays)};
    return cmocka_run_group_tests_name("lib_soak", tests, NULL, NULL);
}
