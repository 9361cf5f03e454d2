/* test_lib_engine.c - libraftdir against fake nodes: failover, a second node for a silent one, late and wrong answers, what is certain at the deadline. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
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

static void open_at(const char *endpoints, unsigned timeout_ms, unsigned patience_ms)
{
    struct raftdir_options o;
    char text[256];
    raftdir_options_init(&o);
    o.endpoints = endpoints;
    o.timeout_ms = timeout_ms;
    o.patience_ms = patience_ms;
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

static void open_both(unsigned timeout_ms, unsigned patience_ms)
{
    char list[300];
    snprintf(list, sizeof list, "%s,%s", one.endpoint, two.endpoint);
    open_at(list, timeout_ms, patience_ms);
}

static int create(const char *name, const struct raftdir_result **r)
{
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    m.name = name;
    m.server = "be1";
    return raftdir_create(d, &m, r);
}

/* --- Handlers ------------------------------------------------------------------------------------------------------------ */

/* Answers everything well. A lookup's server is the node's `data`. */
static void good(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    switch (m->body_case) {
    case F(LOOKUP):
        fake_row(f, conn, m->request_id, m->lookup->name, f->data ? f->data : "be1", 10);
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

static void closes(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    (void)m;
    fake_close(f, conn);
}

static void no_quorum(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_code(f, conn, m->request_id, RAFTDIR_ENOQUORUM, "no quorum: n2 can't reach n1, n3");
}

static void not_ready(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_code(f, conn, m->request_id, RAFTDIR_ENOTREADY, "not part of a cluster");
}

/* --- Lookups ---------------------------------------------------------------------------------------------------------------- */

static void lookup_found(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    struct raftdir_answer a;
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    assert_string_equal(m->name, "user.anna");
    assert_string_equal(m->server, "be1");
    assert_string_equal(m->acl, "");
    assert_int_equal(raftdir_answer(d, &a), 0);
    assert_int_equal(a.index, 10);
    assert_string_equal(a.node, "one.sock");
    assert_string_equal(a.identity, "unix:0");
    assert_int_equal(a.age_ms, -1);
    /* A result may be the next call's argument. */
    assert_int_equal(raftdir_lookup(d, m->name, &m), 0);
    assert_string_equal(m->name, "user.anna");
    assert_int_equal(fake_seen(&one, F(HELLO)), 1);
}

static void not_found(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_code(f, conn, m->request_id, RAFTDIR_ENOTFOUND, "no mailbox");
}

static void lookup_not_found_is_final(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m = (void *)1;
    fake_start(&one, dir, "one", not_found, NULL);
    fake_start(&two, dir, "two", good, NULL);
    open_both(3000, 0);
    assert_int_equal(raftdir_lookup(d, "user.x", &m), RAFTDIR_ENOTFOUND);
    assert_null(m);
    assert_string_equal(raftdir_message(d), "no mailbox");
    assert_int_equal(fake_seen(&two, F(LOOKUP)), 0);
}

static void empty_answer(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    Raftdir__Client__Rows rows = RAFTDIR__CLIENT__ROWS__INIT;
    Raftdir__Client__FromNode a = RAFTDIR__CLIENT__FROM_NODE__INIT;
    a.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
    a.rows = &rows;
    fake_answer(f, conn, m->request_id, &a);
}

static void lookup_empty_answer_is_not_not_found(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", empty_answer, NULL);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(raftdir_lookup(d, "user.x", &m), RAFTDIR_EPROTO);
}

static void lookup_first_is_gone(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    char list[400];
    fake_start(&two, dir, "two", good, NULL);
    snprintf(list, sizeof list, "unix:%s/nobody.sock,%s", dir, two.endpoint);
    open_at(list, 3000, 0);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_true(now_ms() - t < 1000);
}

static void lookup_first_closes(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", closes, NULL);
    fake_start(&two, dir, "two", good, NULL);
    open_both(3000, 5000);
    uint64_t t = now_ms();
    for (int i = 0; i < 20; i++)
        assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_true(now_ms() - t < 2000); /* at once, not after a patience */
}

static void lookup_first_is_silent(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", good, NULL);
    open_both(10000, 100);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    uint64_t first = now_ms() - t;
    assert_true(first >= 90 && first < 3000);
    /* It is known to be slow now: the next ones don't wait for it. */
    t = now_ms();
    for (int i = 0; i < 20; i++)
        assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_true(now_ms() - t < 1000);
    assert_int_equal(fake_seen(&one, F(LOOKUP)), 1);
}

static void lookup_hello_is_silent(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", good, NULL);
    one.hello_silent = true;
    fake_start(&two, dir, "two", good, NULL);
    open_both(10000, 100);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_int_equal(fake_seen(&one, F(LOOKUP)), 0);
}

/* The first node keeps the first request and answers it, wrongly by then, when the second comes. */
struct late {
    uint64_t id;
    unsigned conn;
};

static void answers_late(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct late *l = f->data;
    if (m->body_case != F(LOOKUP))
        return;
    if (!l->id) {
        l->id = m->request_id;
        l->conn = conn;
        return;
    }
    fake_row(f, l->conn, l->id, "user.first", "late", 9);
    fake_row(f, conn, m->request_id, m->lookup->name, "one", 11);
}

static void late_answers_are_dropped(void **state)
{
    (void)state;
    STOP_FAKES;
    const struct raftdir_mailbox *m;
    struct late late = {0};
    fake_start(&one, dir, "one", answers_late, &late);
    fake_start(&two, dir, "two", good, "two");
    open_both(5000, 60);
    assert_int_equal(raftdir_lookup(d, "user.first", &m), 0);
    assert_string_equal(m->server, "two");
    assert_int_equal(raftdir_use_endpoint(d, 0), 0);
    assert_int_equal(raftdir_lookup(d, "user.second", &m), 0);
    assert_string_equal(m->name, "user.second");
    assert_string_equal(m->server, "one");
}

static void lookup_no_answer_at_all(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", silent, NULL);
    open_at(one.endpoint, 300, 50);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_ETIMEDOUT);
    uint64_t spent = now_ms() - t;
    assert_true(spent >= 290 && spent < 2000);
}

static void lookup_nobody_there(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    char endpoint[200];
    snprintf(endpoint, sizeof endpoint, "unix:%s/nobody.sock", dir);
    open_at(endpoint, 300, 0);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(raftdir_message(d), "no such socket"));
    raftdir_close(&d);
    /* Given up early, when that was asked for. */
    struct raftdir_options o;
    raftdir_options_init(&o);
    o.endpoints = endpoint;
    o.timeout_ms = 10000;
    o.unreachable_ms = 100;
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), 0);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_EUNAVAIL);
    assert_true(now_ms() - t < 2000);
}

static void not_let_in(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", good, NULL);
    one.hello_code = RAFTDIR_EPERM;
    one.hello_text = "unix:1000 is not allowed here";
    open_at(one.endpoint, 10000, 0);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_EPERM);
    assert_non_null(strstr(raftdir_message(d), "unix:1000 is not allowed here"));
    assert_true(now_ms() - t < 2000); /* trying again won't help */
}

static void not_ready_anywhere(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", not_ready, NULL);
    fake_start(&two, dir, "two", not_ready, NULL);
    open_both(10000, 0);
    uint64_t t = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_ENOTREADY);
    assert_true(now_ms() - t < 2000);
    assert_int_equal(fake_seen(&one, F(LOOKUP)), 1);
    assert_int_equal(fake_seen(&two, F(LOOKUP)), 1);
}

/* --- Garbage ------------------------------------------------------------------------------------------------------------------- */

static void garbage(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    static const uint8_t bytes[] = {0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0xff};
    (void)m;
    fake_bytes(f, conn, bytes, sizeof bytes);
}

static void oversized(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    static const uint8_t bytes[] = {0xff, 0xff, 0xff, 0xff, 'x'};
    (void)m;
    fake_bytes(f, conn, bytes, sizeof bytes);
}

static void half(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    static const uint8_t bytes[] = {0, 0, 0, 9, 8, 1};
    (void)m;
    fake_bytes(f, conn, bytes, sizeof bytes);
    fake_close(f, conn);
}

static void newer_version(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    Raftdir__Client__FromNode a = RAFTDIR__CLIENT__FROM_NODE__INIT;
    a.version = 99;
    a.request_id = m->request_id;
    uint8_t buf[100];
    size_t len = raftdir__client__from_node__pack(&a, buf + FRAME_HEADER_LEN);
    frame_header_put(buf, (uint32_t)len);
    fake_bytes(f, conn, buf, FRAME_HEADER_LEN + len);
}

static void wrong_answers(void **state)
{
    (void)state;
    static const struct {
        fake_handler *handler;
        int code;
    } rows[] = {{garbage, RAFTDIR_EPROTO}, {oversized, RAFTDIR_EPROTO}, {half, RAFTDIR_EUNAVAIL}, {newer_version, RAFTDIR_EVERSION}};
    const struct raftdir_mailbox *m;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        /* Another node answers; the connection is not used further. */
        fake_start(&one, dir, "one", rows[i].handler, NULL);
        fake_start(&two, dir, "two", good, NULL);
        open_both(5000, 4000);
        uint64_t t = now_ms();
        assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
        assert_true(now_ms() - t < 2000);
        raftdir_close(&d);
        /* Alone it is an error, and a write that it got is uncertain. */
        open_at(one.endpoint, 300, 0);
        assert_int_equal(raftdir_lookup(d, "user.a", &m), rows[i].code);
        assert_int_equal(create("user.a", NULL), RAFTDIR_EUNCERTAIN);
        raftdir_close(&d);
        fake_stop(&one);
        fake_stop(&two);
    }
}

/* --- Writes ------------------------------------------------------------------------------------------------------------------------ */

struct noted {
    unsigned n;
    uint8_t op_id[8][OP_ID_LEN];
    uint64_t expires_ms[8];
    fake_handler *then;
};

static void notes_write(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct noted *n = f->data;
    if (m->body_case == F(WRITE) && n->n < 8) {
        if (m->write->op_id.len == OP_ID_LEN)
            memcpy(n->op_id[n->n], m->write->op_id.data, OP_ID_LEN);
        n->expires_ms[n->n++] = m->write->expires_ms;
    }
    n->then(f, conn, m);
}

static void write_same_id_in_each_retry(void **state)
{
    (void)state;
    STOP_FAKES;
    struct noted first = {.then = silent}, second = {.then = closes}, third = {.then = good};
    struct fake three;
    const struct raftdir_result *r;
    char list[500];
    fake_start(&one, dir, "one", notes_write, &first);
    fake_start(&two, dir, "two", notes_write, &second);
    fake_start(&three, dir, "three", notes_write, &third);
    three.log_time_ms = 77777; /* must not matter for an id that is under way */
    snprintf(list, sizeof list, "%s,%s,%s", one.endpoint, two.endpoint, three.endpoint);
    open_at(list, 5000, 80);
    assert_int_equal(create("user.a", &r), 0);
    assert_int_equal(r->index, 50);
    assert_int_equal(r->ops_n, 1);
    assert_int_equal(r->ops[0].changed, 1);
    raftdir_close(&d);
    fake_stop(&three);
    fake_stop(&one);
    fake_stop(&two);
    assert_int_equal(first.n, 1);
    assert_int_equal(second.n, 1);
    assert_int_equal(third.n, 1);
    assert_memory_equal(first.op_id[0], second.op_id[0], OP_ID_LEN);
    assert_memory_equal(first.op_id[0], third.op_id[0], OP_ID_LEN);
    assert_int_equal(first.expires_ms[0], 1000 + OP_TTL_DEFAULT_MS);
    assert_int_equal(second.expires_ms[0], first.expires_ms[0]);
    assert_int_equal(third.expires_ms[0], first.expires_ms[0]);
}

static void write_ids_differ(void **state)
{
    (void)state;
    STOP_FAKES;
    struct noted n = {.then = good};
    fake_start(&one, dir, "one", notes_write, &n);
    open_at(one.endpoint, 5000, 0);
    assert_int_equal(create("user.a", NULL), 0);
    assert_int_equal(create("user.a", NULL), 0);
    raftdir_close(&d);
    fake_stop(&one);
    assert_int_equal(n.n, 2);
    assert_memory_not_equal(n.op_id[0], n.op_id[1], OP_ID_LEN);
}

static void write_outcomes_at_the_deadline(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        fake_handler *one, *two; /* NULL: nobody there */
        int code;
    } rows[] = {
        {"silent", silent, NULL, RAFTDIR_EUNCERTAIN},
        {"closes", closes, NULL, RAFTDIR_EUNCERTAIN},
        {"no quorum anywhere", no_quorum, no_quorum, RAFTDIR_ENOQUORUM},
        {"silent, then no quorum", silent, no_quorum, RAFTDIR_EUNCERTAIN},
        {"no quorum, then silent", no_quorum, silent, RAFTDIR_EUNCERTAIN},
        {"nobody there", NULL, NULL, RAFTDIR_EUNAVAIL},
        {"no quorum, nobody else", no_quorum, NULL, RAFTDIR_ENOQUORUM},
        {"no quorum, then good", no_quorum, good, 0},
        {"silent, then good", silent, good, 0},
        {"not ready, then good", not_ready, good, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char list[400];
        if (rows[i].one)
            fake_start(&one, dir, "one", rows[i].one, NULL);
        if (rows[i].two)
            fake_start(&two, dir, "two", rows[i].two, NULL);
        snprintf(list, sizeof list, "unix:%s/one.sock,unix:%s/two.sock", dir, dir);
        open_at(list, 400, 60);
        int rc = create("user.a", NULL);
        if (rc != rows[i].code)
            fail_msg("%s: %s (%s)", rows[i].what, raftdir_errname(rc), raftdir_message(d));
        raftdir_close(&d);
        fake_stop(&one);
        fake_stop(&two);
    }
}

/* As a node without a quorum does: says so shortly before the time it was given is over. */
static void no_quorum_at_its_timeout(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    uint32_t ms = m->timeout_ms < 200 ? m->timeout_ms : 200;
    if (m->body_case != F(WRITE))
        return;
    usleep(ms * 1000);
    fake_code(f, conn, m->request_id, RAFTDIR_ENOQUORUM, "no quorum");
}

static void write_no_quorum_is_certain(void **state)
{
    (void)state;
    fake_start(&one, dir, "one", no_quorum_at_its_timeout, NULL);
    for (unsigned timeout_ms = 350; timeout_ms < 1300; timeout_ms += 130) {
        open_at(one.endpoint, timeout_ms, 0);
        uint64_t t = now_ms();
        int rc = create("user.a", NULL);
        if (rc != RAFTDIR_ENOQUORUM)
            fail_msg("timeout %u ms: %s", timeout_ms, raftdir_message(d));
        assert_true(now_ms() - t <= timeout_ms + 100);
        raftdir_close(&d);
    }
}

static void refuses(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_write_result(f, conn, m, RAFTDIR_EEXIST, 51, "user.a is on be2");
}

static void write_refused(void **state)
{
    (void)state;
    const struct raftdir_result *r;
    fake_start(&one, dir, "one", refuses, NULL);
    fake_start(&two, dir, "two", good, NULL);
    open_both(3000, 0);
    assert_int_equal(create("user.a", &r), RAFTDIR_EEXIST);
    assert_string_equal(raftdir_message(d), "user.a is on be2");
    assert_int_equal(r->index, 51);
    assert_int_equal(r->failed_op, 0);
    assert_int_equal(fake_seen(&two, F(WRITE)), 0);
}

static void not_permitted(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_code(f, conn, m->request_id, RAFTDIR_EPERM, "role read");
}

static void write_not_permitted(void **state)
{
    (void)state;
    /* Alone: certain. After a silent node: not any more. */
    fake_start(&one, dir, "one", not_permitted, NULL);
    open_at(one.endpoint, 3000, 0);
    uint64_t t = now_ms();
    assert_int_equal(create("user.a", NULL), RAFTDIR_EPERM);
    assert_true(now_ms() - t < 1000);
    raftdir_close(&d);
    fake_stop(&one);
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", not_permitted, NULL);
    open_both(400, 60);
    assert_int_equal(create("user.a", NULL), RAFTDIR_EUNCERTAIN);
}

static void somebody_elses(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == F(WRITE))
        fake_write_result(f, conn, m, RAFTDIR_EPERM, 51, "the operation id is somebody else's");
}

static void slow_result(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    usleep(300000);
    fake_write_result(f, conn, m, 0, 50, NULL);
}

/* The result of a write is bound to an identity: where another node knows us as somebody else, a known id is refused, and nothing happens twice. */
static void write_other_identity(void **state)
{
    (void)state;
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", good, NULL);
    two.identity = "cert:be1";
    open_both(3000, 60);
    assert_int_equal(create("user.a", NULL), 0);
    raftdir_close(&d);
    fake_stop(&one);
    fake_stop(&two);
    /* The first is gone and the write was applied as its: uncertain, at once. */
    fake_start(&one, dir, "one", closes, NULL);
    fake_start(&two, dir, "two", somebody_elses, NULL);
    two.identity = "cert:be1";
    open_both(5000, 60);
    uint64_t t = now_ms();
    assert_int_equal(create("user.a", NULL), RAFTDIR_EUNCERTAIN);
    assert_true(now_ms() - t < 2000);
    raftdir_close(&d);
    fake_stop(&one);
    /* The first has stopped: it isn't waited for either. */
    fake_start(&one, dir, "one", silent, NULL);
    open_both(5000, 60);
    t = now_ms();
    assert_int_equal(create("user.a", NULL), RAFTDIR_EUNCERTAIN);
    assert_true(now_ms() - t < 2000);
    raftdir_close(&d);
    fake_stop(&one);
    /* The first is only slow: it has the result. */
    fake_start(&one, dir, "one", slow_result, NULL);
    open_both(5000, 250);
    assert_int_equal(create("user.a", NULL), 0);
    assert_int_equal(fake_seen(&two, F(WRITE)), 3);
    raftdir_close(&d);
    /* Alone it is what it says. */
    open_at(two.endpoint, 5000, 60);
    assert_int_equal(create("user.a", NULL), RAFTDIR_EPERM);
}

static void expired_first(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case != F(WRITE))
        return;
    if (m->write->expires_ms < 5000000) {
        f->log_time_ms = 5000000;
        fake_write_result(f, conn, m, RAFTDIR_EEXPIRED, 40, "expired");
    } else
        fake_write_result(f, conn, m, 0, 50, NULL);
}

static void write_expired_begins_anew(void **state)
{
    (void)state;
    STOP_FAKES;
    struct noted n = {.then = expired_first};
    fake_start(&one, dir, "one", notes_write, &n);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(create("user.a", NULL), 0);
    raftdir_close(&d);
    fake_stop(&one);
    assert_int_equal(n.n, 2);
    assert_memory_not_equal(n.op_id[0], n.op_id[1], OP_ID_LEN);
    assert_int_equal(n.expires_ms[1], 5000000 + OP_TTL_DEFAULT_MS);
}

#define AHEAD (4ull * OP_TTL_MAX_MS)

/* As apply does: an expiry that is too far off is refused. */
static void not_too_late(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case != F(WRITE))
        return;
    if (m->write->expires_ms - f->log_time_ms > OP_TTL_MAX_MS)
        fake_write_result(f, conn, m, RAFTDIR_EINVAL, 40, "the operation id expires too late");
    else
        fake_write_result(f, conn, m, 0, 50, NULL);
}

/* Nothing was written for hours, then all nodes were restarted: log time goes on from the last entry, and this handle with it. */
static void log_time_of_a_restarted_cluster(void **state)
{
    (void)state;
    STOP_FAKES;
    struct noted n = {.then = not_too_late};
    fake_start(&one, dir, "one", notes_write, &n);
    fake_lock(&one);
    one.log_time_ms = AHEAD;
    fake_unlock(&one);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(create("user.a", NULL), 0);
    fake_lock(&one);
    one.log_time_ms = 1000;
    fake_unlock(&one);
    assert_int_equal(create("user.b", NULL), 0);
    assert_int_equal(create("user.c", NULL), 0);
    raftdir_close(&d);
    fake_stop(&one);
    assert_int_equal(n.n, 4);
    assert_int_equal(n.expires_ms[0], AHEAD + OP_TTL_DEFAULT_MS);
    assert_memory_not_equal(n.op_id[1], n.op_id[2], OP_ID_LEN);
    assert_int_equal(n.expires_ms[2], 1000 + OP_TTL_DEFAULT_MS);
    assert_int_equal(n.expires_ms[3], 1000 + OP_TTL_DEFAULT_MS);
}

static void always_expired(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    fake_write_result(f, conn, m, RAFTDIR_EEXPIRED, 40, "expired");
}

static void write_expired_after_a_retry_is_uncertain(void **state)
{
    (void)state;
    fake_start(&one, dir, "one", silent, NULL);
    fake_start(&two, dir, "two", always_expired, NULL);
    open_both(3000, 60);
    assert_int_equal(create("user.a", NULL), RAFTDIR_EUNCERTAIN);
}

/* --- Sessions -------------------------------------------------------------------------------------------------------------------- */

struct wanted {
    bool has;
    uint64_t incarnation, min_index;
    int level;
};

static void notes_level(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == F(LOOKUP)) {
        struct wanted *w = f->data;
        w->has = m->has_min_index;
        w->min_index = m->min_index;
        w->incarnation = m->incarnation;
        w->level = (int)m->level;
        fake_row(f, conn, m->request_id, m->lookup->name, "be1", 60);
    } else
        good(f, conn, m);
}

static void session_follows_to_another_node(void **state)
{
    (void)state;
    STOP_FAKES;
    struct wanted w = {0};
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", good, NULL);
    fake_start(&two, dir, "two", notes_level, &w);
    open_both(3000, 0);
    assert_int_equal(create("user.a", NULL), 0); /* index 50 */
    fake_stop(&one);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_true(w.has);
    assert_int_equal(w.min_index, 50);
    assert_int_equal(w.incarnation, 1);
    assert_int_equal(w.level, RAFTDIR__CLIENT__READ_LEVEL__SESSION);
    raftdir_set_level(d, RAFTDIR_LOCAL);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_false(w.has);
    assert_int_equal(w.level, RAFTDIR__CLIENT__READ_LEVEL__LOCAL);
}

static void restored(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->has_incarnation && m->incarnation != f->incarnation)
        fake_code(f, conn, m->request_id, RAFTDIR_EFOREIGN, "another incarnation");
    else
        good(f, conn, m);
}

static void session_ends_with_the_incarnation(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    struct raftdir_answer a;
    fake_start(&one, dir, "one", restored, NULL);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(create("user.a", NULL), 0);
    fake_lock(&one);
    one.incarnation = 2;
    fake_unlock(&one);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    raftdir_answer(d, &a);
    assert_int_equal(a.incarnation, 2);
    /* A node of the past isn't listened to. */
    fake_lock(&one);
    one.incarnation = 1;
    fake_unlock(&one);
    raftdir_set_timeout(d, 200);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_EFOREIGN);
}

/* --- Processes and arguments ------------------------------------------------------------------------------------------------------ */

static void handle_after_fork(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", good, NULL);
    open_at(one.endpoint, 3000, 0);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        int rc = raftdir_lookup(d, "user.a", &m);
        bool told = strstr(raftdir_message(d), "fork") != NULL;
        int rc2 = create("user.b", NULL);
        raftdir_close(&d);
        _exit(rc == RAFTDIR_EINVAL && rc2 == RAFTDIR_EINVAL && told && !d ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    /* The parent's connection is as it was. */
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_int_equal(fake_seen(&one, F(HELLO)), 1);
    assert_int_equal(fake_seen(&one, F(WRITE)), 0);
}

static void endpoints_that_are_none(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "tcp:1.2.3.4:5", "tls:host", "tls:host:", "tls::5", "tls:[::1]", "unix:", "tls:h:99999x", "tls:h:1=",
                                      "unix:/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct raftdir_options o;
        char text[256];
        raftdir_options_init(&o);
        o.endpoints = bad[i];
        assert_int_equal(raftdir_open(&o, &d, text, sizeof text), RAFTDIR_EINVAL);
        assert_null(d);
        assert_true(strlen(text) > 5);
    }
    struct raftdir_options o;
    raftdir_options_init(&o);
    o.size = 3;
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), RAFTDIR_EINVAL);
}

static void pinned_to_an_endpoint(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", good, "one");
    fake_start(&two, dir, "two", good, "two");
    open_both(500, 50);
    assert_int_equal(raftdir_use_endpoint(d, 1), 0);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_string_equal(m->server, "two");
    fake_stop(&two);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), RAFTDIR_EUNAVAIL); /* no failover */
    assert_int_equal(raftdir_use_endpoint(d, -1), 0);
    assert_int_equal(raftdir_lookup(d, "user.a", &m), 0);
    assert_string_equal(m->server, "one");
    assert_int_equal(raftdir_use_endpoint(d, 2), RAFTDIR_EINVAL);
    assert_null(raftdir_endpoint(d, 2));
    assert_string_equal(raftdir_endpoint(d, 1), two.endpoint);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(lookup_found),
        TEST(lookup_not_found_is_final),
        TEST(lookup_empty_answer_is_not_not_found),
        TEST(lookup_first_is_gone),
        TEST(lookup_first_closes),
        TEST(lookup_first_is_silent),
        TEST(lookup_hello_is_silent),
        TEST(late_answers_are_dropped),
        TEST(lookup_no_answer_at_all),
        TEST(lookup_nobody_there),
        TEST(not_let_in),
        TEST(not_ready_anywhere),
        TEST(wrong_answers),
        TEST(write_same_id_in_each_retry),
        TEST(write_ids_differ),
        TEST(write_outcomes_at_the_deadline),
        TEST(write_no_quorum_is_certain),
        TEST(write_refused),
        TEST(write_not_permitted),
        TEST(write_other_identity),
        TEST(write_expired_begins_anew),
        TEST(log_time_of_a_restarted_cluster),
        TEST(write_expired_after_a_retry_is_uncertain),
        TEST(session_follows_to_another_node),
        TEST(session_ends_with_the_incarnation),
        TEST(handle_after_fork),
        TEST(endpoints_that_are_none),
        TEST(pinned_to_an_endpoint),
    };
    return cmocka_run_group_tests_name("lib_engine", tests, NULL, NULL);
}
