/* test_lib_hedge.c - when libraftdir asks a second node, and how often: slow requests, silent connections, nodes that live and get nothing done. Against fake nodes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "support_certs.h"
#include "support_fake_node.h"
#include "two_fakes.h"

static void open_both(unsigned patience_ms)
{
    struct raftdir_options o;
    char list[300], text[256];
    snprintf(list, sizeof list, "%s,%s", one.endpoint, two.endpoint);
    raftdir_options_init(&o);
    o.endpoints = list;
    o.timeout_ms = 20000;
    o.patience_ms = patience_ms;
    o.local_dir = "";
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

static int create(const char *name)
{
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    m.name = name;
    m.server = "be1";
    return raftdir_create(d, &m, NULL);
}

/* Answers at once, but for what has "slow" in its name: that never, or, with data, every so many lookups. */
struct slow {
    unsigned every, n;
};
static void some_slow(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct slow *s = f->data;
    if (m->body_case == F(LOOKUP)) {
        bool slow = strstr(m->lookup->name, "slow") || (s && s->every && ++s->n % s->every == 0);
        if (!slow)
            fake_row(f, conn, m->request_id, m->lookup->name, f == &one ? "one" : "two", 10);
    } else if (m->body_case == F(WRITE)) {
        if (!s || !s->n)
            fake_write_result(f, conn, m, 0, 50, NULL);
    }
}

static void warm_up(unsigned n)
{
    const struct raftdir_mailbox *m;
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
}

/* One slow request of a node that is fast otherwise: the second node is asked long before the patience. */
static void slow_read(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", some_slow, NULL);
    fake_start(&two, dir, "two", some_slow, NULL);
    one.answers_pings = two.answers_pings = true;
    open_both(5000);
    warm_up(20);
    assert_int_equal(fake_seen(&two, F(LOOKUP)), 0);
    fake_lock(&two);
    two.handler = some_slow;
    fake_unlock(&two);
    uint64_t t = now_ms();
    struct slow always = {.every = 1};
    fake_lock(&one);
    one.data = &always;
    fake_unlock(&one);
    assert_int_equal(raftdir_lookup(d, "user.b", &m), 0);
    assert_true(now_ms() - t < 2000);
    assert_string_equal(m->server, "two");
    /* One slow answer is no reason to leave the own host's node. */
    fake_lock(&one);
    one.data = NULL;
    fake_unlock(&one);
    assert_int_equal(raftdir_lookup(d, "user.b", &m), 0);
    assert_string_equal(m->server, "one");
    raftdir_close(&d); /* before `always` is gone */
    fake_stop(&one);
}

/* A node that hangs doesn't answer pings: everything moves on after 100 ms, though nobody knows yet what it takes there. */
static void hung_node(void **state)
{
    (void)state;
    static struct slow mute = {.every = 1, .n = 1};
    fake_start(&one, dir, "one", some_slow, &mute);
    fake_start(&two, dir, "two", some_slow, NULL);
    open_both(5000);
    uint64_t t = now_ms();
    assert_int_equal(create("user.a"), 0);
    uint64_t ms = now_ms() - t;
    assert_true(ms >= 90 && ms < 2500);
    assert_true(fake_seen(&one, F(BARRIER)) >= 1); /* it was pinged */
    /* And is left alone for a while. */
    t = now_ms();
    assert_int_equal(create("user.b"), 0);
    assert_true(now_ms() - t < 90);
}

/* A node that answers pings lives: it has the patience, if nobody knows what is usual. */
static void stuck_node(void **state)
{
    (void)state;
    static struct slow mute = {.every = 1, .n = 1};
    fake_start(&one, dir, "one", some_slow, &mute);
    fake_start(&two, dir, "two", some_slow, NULL);
    one.answers_pings = true;
    open_both(600);
    uint64_t t = now_ms();
    assert_int_equal(create("user.a"), 0);
    uint64_t ms = now_ms() - t;
    assert_true(ms >= 590 && ms < 3000);
}

/* A fifth of all requests is slow; a twentieth is asked twice, and a few more. */
static void budget(void **state)
{
    (void)state;
    static struct slow fifth = {.every = 5};
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", some_slow, NULL);
    fake_start(&two, dir, "two", some_slow, NULL);
    one.answers_pings = two.answers_pings = true;
    open_both(60);
    warm_up(20);
    fake_lock(&one);
    one.data = &fifth;
    fake_unlock(&one);
    unsigned early = 0;
    for (unsigned i = 0; i < 200; i++) {
        uint64_t t = now_ms();
        unsigned before = fake_seen(&two, F(LOOKUP));
        assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
        early += fake_seen(&two, F(LOOKUP)) > before && now_ms() - t < 50 && fake_seen(&one, F(LOOKUP)) == 20 + i + 1;
        if (!strcmp(m->server, "two")) /* what waited for the patience makes it slow; the test wants it asked again */
            usleep(1000);
    }
    assert_true(early >= 1);
    assert_true(early <= 8 + 11);
}

/* Reads alone, and few writes, need one connection; who goes on writing has a second one ready. */
static void second_connection(void **state)
{
    (void)state;
    char name[32];
    fake_start(&one, dir, "one", some_slow, NULL);
    fake_start(&two, dir, "two", some_slow, NULL);
    one.answers_pings = two.answers_pings = true;
    open_both(5000);
    warm_up(30);
    for (unsigned i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "user.a%u", i);
        assert_int_equal(create(name), 0);
    }
    warm_up(5);
    usleep(50000); /* time for one that was begun in error */
    warm_up(5);
    assert_int_equal(fake_seen(&two, F(HELLO)), 0);
    assert_int_equal(two.conns_opened, 0);
    for (unsigned i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "user.b%u", i);
        assert_int_equal(create(name), 0);
    }
    for (unsigned i = 0; i < 100 && !fake_seen(&two, F(HELLO)); i++)
        warm_up(1);
    assert_int_equal(fake_seen(&two, F(HELLO)), 1);
    assert_int_equal(fake_seen(&two, F(WRITE)), 0);
    assert_int_equal(fake_seen(&one, F(HELLO)), 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(slow_read), TEST(hung_node), TEST(stuck_node), TEST(budget), TEST(second_connection)};
    return cmocka_run_group_tests_name("lib_hedge", tests, NULL, NULL);
}
