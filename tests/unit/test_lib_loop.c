/* test_lib_loop.c - libraftdir in an event loop: the loop here knows nothing but the descriptor, so whatever it doesn't say in time shows. And fork: what a
 * child does with a handle disturbs nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "raftdir/limits.h"
#include "support_certs.h"
#include "support_fake_node.h"
#include "two_fakes.h"

#define READS_MAX 1024 /* as raftdir.h says */

static void open_at(const char *endpoints, unsigned timeout_ms, unsigned patience_ms, unsigned window)
{
    struct raftdir_options o;
    char text[256], ca[128], cert[128], key[128];
    raftdir_options_init(&o);
    o.endpoints = endpoints;
    o.timeout_ms = timeout_ms;
    o.patience_ms = patience_ms;
    o.window = window;
    o.only_these = 1;
    if (strstr(endpoints, "tls:")) {
        snprintf(ca, sizeof ca, "%s/ca.crt", dir);
        snprintf(cert, sizeof cert, "%s/node.crt", dir);
        snprintf(key, sizeof key, "%s/node.key", dir);
        o.ca = ca;
        o.cert = cert;
        o.key = key;
    }
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

static void open_both(unsigned timeout_ms, unsigned patience_ms)
{
    char list[300];
    snprintf(list, sizeof list, "%s,%s", one.endpoint, two.endpoint);
    open_at(list, timeout_ms, patience_ms, 0);
}

/* --- The loop ------------------------------------------------------------------------------------------------------------- */

/* Runs until *n is at least `want`; fails after ms. How often the descriptor was readable. */
static unsigned loop(const unsigned *n, unsigned want, unsigned ms)
{
    uint64_t end = now_ms() + ms;
    unsigned turns = 0;
    int fd = raftdir_fd(d);
    assert_true(fd >= 0);
    while (*n < want) {
        uint64_t now = now_ms();
        if (now >= end)
            fail_msg("%u of %u answers within %u ms, %u turns", *n, want, ms, turns);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)(end - now)) != 1)
            continue;
        assert_int_equal(raftdir_process(d), 0);
        turns++;
    }
    return turns;
}

/* Nothing happens: the descriptor may be readable for what was left, or for a timer that wasn't needed, but no more than that. */
static void assert_quiet(void)
{
    struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
    uint64_t end = now_ms() + 250;
    unsigned turns = 0;
    for (uint64_t now; (now = now_ms()) < end && turns < 20; turns++)
        if (poll(&p, 1, (int)(end - now)) == 1)
            assert_int_equal(raftdir_process(d), 0);
        else
            break;
    assert_in_range(turns, 0, 5);
}

/* --- Handlers and callbacks -------------------------------------------------------------------------------------------------- */

static void good(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    switch (m->body_case) {
    case F(LOOKUP):
        if (m->lookup->by_case == RAFTDIR__CLIENT__LOOKUP__BY_NAME && !strncmp(m->lookup->name, "none.", 5))
            fake_code(f, conn, m->request_id, RAFTDIR_ENOTFOUND, "no such mailbox");
        else
            fake_row(f, conn, m->request_id, m->lookup->name, f->data ? f->data : "be1", 10);
        break;
    case F(MY_RIGHTS):
        fake_row(f, conn, m->request_id, m->my_rights->name, m->my_rights->user, 10);
        break;
    case F(WRITE):
        fake_write_result(f, conn, m, 0, 50, NULL);
        break;
    case F(CREDIT):
    case F(CANCEL):
        break;
    default:
        fake_code(f, conn, m->request_id, RAFTDIR_EUNSUPPORTED, NULL);
    }
}

static void silent(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    (void)f;
    (void)conn;
    (void)m;
}

struct told {
    unsigned n;
    int code;
    char name[64], server[64], message[200];
};

static void answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    struct told *t = data;
    t->n++;
    t->code = code;
    assert_true((m != NULL) == (code == 0));
    snprintf(t->name, sizeof t->name, "%s", m ? m->name : "");
    snprintf(t->server, sizeof t->server, "%s", m ? m->server : "");
    snprintf(t->message, sizeof t->message, "%s", message);
}

/* --- Tests ---------------------------------------------------------------------------------------------------------------------- */

static void each_kind_of_read(void **state)
{
    (void)state;
    struct told t[5] = {{0}};
    static const char *const groups[] = {"staff"};
    unsigned none = 0;
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 3000, 0, 0);
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t[0]), 0);
    assert_int_equal(raftdir_lookup_uniqueid_start(d, "id", answered, &t[1]), 0);
    assert_int_equal(raftdir_lookup_user_start(d, "anna", answered, &t[2]), 0);
    assert_int_equal(raftdir_my_rights_start(d, "user.b", "bob", groups, 1, answered, &t[3]), 0);
    assert_int_equal(raftdir_lookup_start(d, "none.x", answered, &t[4]), 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(t[i].n, 0); /* never from within the call that starts it */
        loop(&t[i].n, 1, 3000);
        assert_int_equal(t[i].n, 1);
        assert_int_equal(t[i].code, i == 4 ? RAFTDIR_ENOTFOUND : 0);
        for (int k = i + 1; k < 5; k++)
            none += t[k].n;
        if (none)
            break; /* they came together */
    }
    for (int i = 0; i < 5; i++)
        loop(&t[i].n, 1, 3000);
    assert_string_equal(t[0].name, "user.a");
    assert_string_equal(t[1].name, "id");
    assert_string_equal(t[2].name, "anna");
    assert_string_equal(t[3].server, "bob");
    assert_string_equal(t[4].message, "no such mailbox");
    /* What can't be asked is told at once, and calls nothing back. */
    assert_int_equal(raftdir_lookup_start(d, "", answered, &t[0]), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_lookup_start(d, "user.a", NULL, NULL), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_my_rights_start(d, "user.a", "", NULL, 0, answered, &t[0]), RAFTDIR_EINVAL);
    assert_quiet();
    assert_int_equal(t[0].n, 1);
}

static unsigned many_n, many_wrong;
static char many_seen[READS_MAX];

static void many_answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    size_t i = (size_t)(uintptr_t)data;
    char want[32];
    (void)message;
    snprintf(want, sizeof want, "user.u%zu", i);
    many_wrong += code != 0 || !m || strcmp(m->name, want) != 0 || many_seen[i];
    many_seen[i] = 1;
    many_n++;
}

static void many_in_flight(void **state)
{
    (void)state;
    char name[32];
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 10000, 0, 0);
    for (int round = 0; round < 2; round++) { /* the first before there is a connection */
        memset(many_seen, 0, sizeof many_seen);
        many_n = many_wrong = 0;
        for (size_t i = 0; i < READS_MAX; i++) {
            snprintf(name, sizeof name, "user.u%zu", i);
            assert_int_equal(raftdir_lookup_start(d, name, many_answered, (void *)(uintptr_t)i), 0);
        }
        assert_int_equal(raftdir_lookup_start(d, "user.x", many_answered, NULL), RAFTDIR_ELIMIT);
        loop(&many_n, READS_MAX, 10000);
        assert_int_equal(many_wrong, 0);
        assert_int_equal(fake_seen(&one, F(LOOKUP)), (unsigned)(round + 1) * READS_MAX);
    }
    assert_int_equal(many_n, READS_MAX);
    assert_quiet();
}

/* A second node is asked after the patience, the deadline ends a call, a dead node's calls move on: nothing but the descriptor's timer says when. */
static void timers(void **state)
{
    (void)state;
    struct told t = {0}, u = {0};
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", good, (void *)"be2");
    open_both(5000, 100);
    uint64_t began = now_ms();
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t), 0);
    loop(&t.n, 1, 3000);
    assert_int_equal(t.code, 0);
    assert_string_equal(t.server, "be2");
    assert_in_range(now_ms() - began, 100, 1000);
    raftdir_close(&d);

    open_at(one.endpoint, 300, 100, 0);
    began = now_ms();
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &u), 0);
    loop(&u.n, 1, 3000);
    assert_int_equal(u.code, RAFTDIR_ETIMEDOUT);
    assert_in_range(now_ms() - began, 300, 1500);
    assert_quiet();
    fake_stop(&one);
    u = (struct told){0};
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &u), 0);
    loop(&u.n, 1, 3000);
    assert_int_equal(u.code, RAFTDIR_EUNAVAIL);
    assert_quiet();
}

static void node_dies(void **state)
{
    (void)state;
    struct told t[20] = {{0}};
    unsigned done = 0;
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", good, (void *)"be2");
    open_both(5000, 4000);
    for (int i = 0; i < 20; i++)
        assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t[i]), 0);
    uint64_t end = now_ms() + 3000;
    while (fake_seen(&one, F(LOOKUP)) < 20 && now_ms() < end) {
        struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
        if (poll(&p, 1, 10) == 1)
            raftdir_process(d);
    }
    fake_stop(&one);
    uint64_t began = now_ms();
    for (int i = 0; i < 20; i++) {
        loop(&t[i].n, 1, 3000);
        done += t[i].code == 0 && !strcmp(t[i].server, "be2");
    }
    assert_int_equal(done, 20);
    assert_in_range(now_ms() - began, 0, 1000); /* long before the patience is over */
}

/* --- Callbacks that go on -------------------------------------------------------------------------------------------------------- */

static struct {
    unsigned reads, writes, refused, full, deep, deepest;
    unsigned left;
    int codes[8];
} chain;

static void chain_written(void *data, int code, const char *message, const struct raftdir_result *r);

static void chain_answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    (void)data;
    (void)message;
    const struct raftdir_mailbox *other;
    raftdir_batch *b = raftdir_batch_create();
    chain.deepest = ++chain.deep > chain.deepest ? chain.deep : chain.deepest;
    chain.reads++;
    chain.codes[0] |= code;
    if (chain.left) {
        chain.left--;
        chain.codes[1] |= raftdir_lookup_start(d, "user.b", chain_answered, NULL);
        raftdir_batch_add_delete(b, "user.x", 0, NULL, NULL, NULL, 0);
        int rc = raftdir_submit(d, b, chain_written, NULL);
        chain.full += rc == RAFTDIR_EAGAIN;
        chain.codes[2] |= rc == RAFTDIR_EAGAIN ? 0 : rc;
    }
    if (m)
        chain.codes[3] |= strcmp(m->name, "user.b") != 0; /* it lives until we return */
    raftdir_list *l;
    chain.refused += raftdir_lookup(d, "user.c", &other) == RAFTDIR_EINVAL;
    chain.refused += raftdir_drain(d) == RAFTDIR_EINVAL;
    chain.refused += raftdir_process(d) == RAFTDIR_EINVAL;
    chain.refused += raftdir_list_open(d, NULL, &l) == RAFTDIR_EINVAL;
    raftdir_batch_destroy(&b);
    chain.deep--;
}

static void chain_written(void *data, int code, const char *message, const struct raftdir_result *r)
{
    (void)data;
    (void)message;
    (void)r;
    chain.writes++;
    chain.codes[4] |= code;
}

static void callbacks_go_on(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    memset(&chain, 0, sizeof chain);
    chain.left = 200;
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 5000, 0, 2);
    for (int i = 0; i < 8; i++)
        assert_int_equal(raftdir_lookup_start(d, "user.b", chain_answered, NULL), 0);
    loop(&chain.reads, 208, 5000);
    assert_int_equal(chain.reads, 208);
    assert_int_equal(chain.refused, 4 * 208);
    assert_int_equal(chain.deepest, 1);
    assert_true(chain.full > 0);
    for (int i = 0; i < 8; i++)
        assert_int_equal(chain.codes[i], 0);
    loop(&chain.writes, 200 - chain.full, 5000);
    assert_int_equal(chain.writes, 200 - chain.full);
    /* The same from within a call that waits. Its own answer and text aren't touched by what callbacks do. */
    chain.left = 50;
    chain.reads = chain.refused = 0;
    assert_int_equal(raftdir_lookup_start(d, "user.b", chain_answered, NULL), 0);
    for (int i = 0; i < 200 && chain.reads < 51; i++) {
        assert_int_equal(raftdir_lookup(d, "user.d", &m), 0);
        assert_string_equal(m->name, "user.d");
        assert_string_equal(raftdir_message(d), "");
    }
    assert_int_equal(chain.reads, 51);
    assert_int_equal(raftdir_drain(d), 0);
    assert_quiet();
}

static void written(void *data, int code, const char *message, const struct raftdir_result *r)
{
    (void)message;
    (void)r;
    assert_int_equal(code, 0);
    ++*(unsigned *)data;
}

static void window_full(void **state)
{
    (void)state;
    unsigned n = 0, submitted = 0;
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 5000, 0, 3);
    assert_int_equal(raftdir_set_nonblocking(d, 1), 0);
    raftdir_batch *b = raftdir_batch_create();
    raftdir_batch_add_delete(b, "user.x", 0, NULL, NULL, NULL, 0);
    while (submitted < 3) {
        assert_int_equal(raftdir_submit(d, b, written, &n), 0);
        submitted++;
    }
    assert_int_equal(raftdir_submit(d, b, written, &n), RAFTDIR_EAGAIN);
    assert_int_equal(n, 0);
    while (submitted < 30) {
        loop(&n, submitted - 2, 3000);
        assert_int_equal(raftdir_submit(d, b, written, &n), 0);
        submitted++;
    }
    loop(&n, 30, 3000);
    /* Without it, it waits. */
    assert_int_equal(raftdir_set_nonblocking(d, 0), 0);
    for (; submitted < 40; submitted++)
        assert_int_equal(raftdir_submit(d, b, written, &n), 0);
    assert_int_equal(raftdir_drain(d), 0);
    assert_int_equal(n, 40);
    raftdir_batch_destroy(&b);
    assert_quiet();
}

/* --- Listings --------------------------------------------------------------------------------------------------------------------- */

#define LIST_ROWS 40

static void lists(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    char name[32];
    if (m->body_case != F(LIST))
        return;
    for (unsigned i = 0; i < LIST_ROWS; i++) {
        Raftdir__Log__Location l = RAFTDIR__LOG__LOCATION__INIT;
        Raftdir__Log__Mailbox b = RAFTDIR__LOG__MAILBOX__INIT;
        Raftdir__Client__Row row = RAFTDIR__CLIENT__ROW__INIT, *list[] = {&row};
        Raftdir__Client__Rows rows = RAFTDIR__CLIENT__ROWS__INIT;
        Raftdir__Client__FromNode a = RAFTDIR__CLIENT__FROM_NODE__INIT;
        snprintf(name, sizeof name, "user.u%02u", i);
        l.server = l.partition = "s";
        b.name = name;
        b.location = &l;
        row.mailbox = &b;
        rows.n_rows = 1;
        rows.rows = list;
        a.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
        a.rows = &rows;
        a.has_more = a.more = i + 1 < LIST_ROWS;
        fake_answer(f, conn, m->request_id, &a);
        if (i == LIST_ROWS / 2)
            usleep(50000); /* so that the reader runs dry */
    }
}

static void listing(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    raftdir_list *l;
    unsigned rows = 0, again = 0;
    int rc = 1;
    fake_start(&one, dir, "one", lists, NULL);
    open_at(one.endpoint, 5000, 0, 0);
    assert_int_equal(raftdir_set_nonblocking(d, 1), 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), RAFTDIR_EAGAIN);
    uint64_t end = now_ms() + 5000;
    while (rc && now_ms() < end) {
        uint64_t before = now_ms();
        rc = raftdir_list_next(l, &m);
        assert_in_range(now_ms() - before, 0, 30);
        if (rc == 1) {
            char name[32];
            snprintf(name, sizeof name, "user.u%02u", rows++);
            assert_string_equal(m->name, name);
        } else if (rc == RAFTDIR_EAGAIN) {
            struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
            again++;
            if (poll(&p, 1, 1000) == 1)
                assert_int_equal(raftdir_process(d), 0);
        } else
            assert_int_equal(rc, 0);
    }
    assert_int_equal(rc, 0);
    assert_int_equal(rows, LIST_ROWS);
    assert_in_range(again, 1, 60);
    raftdir_list_close(&l);
    assert_quiet();
}

static void listing_closed_early(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    raftdir_list *l;
    fake_start(&one, dir, "one", silent, NULL);
    open_at(one.endpoint, 5000, 0, 0);
    assert_int_equal(raftdir_set_nonblocking(d, 1), 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    uint64_t end = now_ms() + 3000;
    while (!fake_seen(&one, F(LIST)) && now_ms() < end) {
        struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
        assert_int_equal(raftdir_list_next(l, &m), RAFTDIR_EAGAIN);
        if (poll(&p, 1, 20) == 1)
            raftdir_process(d);
    }
    raftdir_list_close(&l);
    /* The node hears of it, though nobody calls the library again. */
    while (!fake_seen(&one, F(CANCEL)) && now_ms() < end)
        usleep(2000);
    assert_int_equal(fake_seen(&one, F(CANCEL)), 1);
    assert_quiet();
}

/* --- Closing ------------------------------------------------------------------------------------------------------------------------ */

static void canceled(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    struct told *t = data;
    answered(data, code, message, m);
    assert_int_equal(raftdir_lookup_start(d, "user.z", answered, data), RAFTDIR_ECANCELED); /* d is NULL only when it is closed */
    assert_int_equal(t->n, 1);
}

static void closed_in_flight(void **state)
{
    (void)state;
    struct told t[3] = {{0}}, late = {0};
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", good, NULL);
    open_at(one.endpoint, 5000, 0, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(raftdir_lookup_start(d, "user.a", canceled, &t[i]), 0);
    raftdir *closing = d;
    raftdir_close(&closing); /* the callbacks still have d */
    d = NULL;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(t[i].n, 1);
        assert_int_equal(t[i].code, RAFTDIR_ECANCELED);
    }
    /* What had ended already is told as it ended. */
    open_at(two.endpoint, 5000, 0, 0);
    const struct raftdir_mailbox *m;
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_int_equal(raftdir_lookup_start(d, "user.b", answered, &late), 0);
    uint64_t end = now_ms() + 2000;
    while (fake_seen(&two, F(LOOKUP)) < 2 && now_ms() < end)
        usleep(1000);
    usleep(20000);
    raftdir_lookup_start(d, "user.c", answered, &late); /* takes in what has come, and calls nothing back */
    assert_int_equal(late.n, 0);
    raftdir_close(&d);
    assert_int_equal(late.n, 2);
}

/* --- fork ---------------------------------------------------------------------------------------------------------------------------- */

static void start_tls(struct fake *f, SSL_CTX **ctx_r, fake_handler *handler)
{
    struct support_ca ca;
    char file[128];
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    support_cert_make(&ca, dir, "node", &(struct support_cert){.cn = "node"});
    *ctx_r = support_ctx(dir, "ca", "node");
    support_ca_free(&ca);
    fake_start_tls(f, "tls", *ctx_r, handler, NULL);
}

static void wait_for_child(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A child that uses the handle, closes it and ends; or just ends. The parent's questions, and its descriptor, are as they were. */
static void fork_beside(const char *endpoint)
{
    struct told before = {0}, after = {0};
    struct told t = {0};
    open_at(endpoint, 8000, 8000, 0); /* the timers that look at calls now and then don't help */
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &before), 0);
    loop(&before.n, 1, 3000);
    assert_int_equal(before.code, 0);
    for (int how = 0; how < 2; how++) {
        t = after = (struct told){0};
        assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            const struct raftdir_mailbox *m;
            bool ok = raftdir_lookup(d, "user.a", &m) == RAFTDIR_EINVAL && strstr(raftdir_message(d), "fork");
            ok = ok && raftdir_fd(d) == RAFTDIR_EINVAL && raftdir_process(d) == RAFTDIR_EINVAL;
            ok = ok && raftdir_lookup_start(d, "user.a", answered, &after) == RAFTDIR_EINVAL;
            if (how)
                raftdir_close(&d);
            _exit(ok && !t.n && !after.n ? 0 : 1); /* the parent's callbacks are the parent's */
        }
        wait_for_child(pid);
        assert_int_equal(raftdir_lookup_start(d, "user.b", answered, &after), 0);
        loop(&after.n, 1, 1000);
        loop(&t.n, 1, 1000);
        assert_int_equal(t.code, 0);
        assert_int_equal(after.code, 0);
        assert_int_equal(fake_seen(&one, F(HELLO)), 1); /* on the same connection */
        assert_int_equal(one.farewells, 0);
    }
    assert_quiet();
}

static void fork_unix(void **state)
{
    (void)state;
    fake_start(&one, dir, "one", good, NULL);
    fork_beside(one.endpoint);
}

static void fork_tls(void **state)
{
    (void)state;
    SSL_CTX *ctx;
    start_tls(&one, &ctx, good);
    fork_beside(one.endpoint);
    raftdir_close(&d);
    uint64_t end = now_ms() + 2000;
    unsigned said = 0;
    while (!said && now_ms() < end) {
        usleep(1000);
        fake_lock(&one);
        said = one.farewells;
        fake_unlock(&one);
    }
    assert_int_equal(said, 1); /* the parent does say it */
    fake_stop(&one);
    SSL_CTX_free(ctx);
}

/* A child keeps the parent's sockets open while the parent's connections end: their registrations must not stay in the parent's loop. */
static void fork_keeps_sockets(void **state)
{
    (void)state;
    struct told t = {0};
    int ends[2];
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 3000, 0, 0);
    assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t), 0);
    loop(&t.n, 1, 3000);
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        char c;
        close(ends[1]);
        close(one.listener); /* the node's, which is another process elsewhere */
        for (int i = 0; i < FAKE_CONNS_MAX; i++)
            if (one.conns[i].fd >= 0)
                close(one.conns[i].fd);
        _exit(read(ends[0], &c, 1) == 0 ? 0 : 1);
    }
    close(ends[0]);
    fake_stop(&one);
    fake_start(&one, dir, "one", good, NULL);
    for (int i = 0; i < 2; i++) {
        t.n = 0;
        assert_int_equal(raftdir_lookup_start(d, "user.a", answered, &t), 0);
        loop(&t.n, 1, 3000);
        assert_int_equal(t.code, 0);
    }
    assert_quiet();
    raftdir_close(&d);
    close(ends[1]);
    wait_for_child(pid);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(each_kind_of_read), TEST(many_in_flight),       TEST(timers),           TEST(node_dies), TEST(callbacks_go_on), TEST(window_full),
        TEST(listing),           TEST(listing_closed_early), TEST(closed_in_flight), TEST(fork_unix), TEST(fork_tls),        TEST(fork_keeps_sockets),
    };
    return cmocka_run_group_tests_name("lib_loop", tests, NULL, NULL);
}
