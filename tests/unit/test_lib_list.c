/* test_lib_list.c - listings of libraftdir against fake nodes: credit, order, going on at another node, and never a shortened list that looks whole. */
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
#include "raftdir/limits.h"
#include "support_certs.h"
#include "support_fake_node.h"
#include "two_fakes.h"

#define CHUNK 100

/* A directory of `total` mailboxes, user.000000 and so on, streamed as a node does: chunks, within the credit. */
struct directory {
    unsigned total;
    unsigned lose_after; /* closes the connection after so many rows; 0: never */
    unsigned hush_after; /* says nothing more after so many rows; 0: never */
    int fail_code;       /* at hush_after: answers this instead */
    bool reads_too;      /* answers lookups */
    /* the stream */
    uint64_t id;
    unsigned conn, next, sent;
    int64_t credit;
    uint64_t limit;
    bool open;
    /* what was asked */
    unsigned asked, most_ahead;
    char after[64];
    uint64_t min_index, first_limit;
    int level;
    bool cancelled;
};

static void stream(struct fake *f, struct directory *s)
{
    while (s->open && s->credit > 0) {
        Raftdir__Client__Row rows[CHUNK], *list[CHUNK];
        Raftdir__Log__Mailbox boxes[CHUNK];
        Raftdir__Log__Location at = RAFTDIR__LOG__LOCATION__INIT;
        char names[CHUNK][32];
        Raftdir__Client__Rows body = RAFTDIR__CLIENT__ROWS__INIT;
        Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
        unsigned n = 0;
        at.server = f->data == s ? "be1" : "be2";
        at.partition = "";
        while (n < CHUNK && s->next < s->total && s->credit > 0 && (!s->limit || s->sent < s->limit)) {
            if ((s->lose_after && s->sent == s->lose_after) || (s->hush_after && s->sent == s->hush_after))
                break;
            snprintf(names[n], sizeof names[n], "user.%06u", s->next++);
            raftdir__log__mailbox__init(&boxes[n]);
            raftdir__client__row__init(&rows[n]);
            boxes[n].name = names[n];
            boxes[n].location = &at;
            rows[n].mailbox = &boxes[n];
            list[n] = &rows[n];
            n++;
            s->sent++;
            s->credit--;
        }
        bool stops = (s->lose_after && s->sent == s->lose_after) || (s->hush_after && s->sent == s->hush_after);
        body.n_rows = n;
        body.rows = list;
        body.has_touched = body.has_skips = 1;
        body.touched = s->sent * 2;
        body.skips = 3;
        m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
        m.rows = &body;
        m.has_index = 1;
        m.index = 70;
        m.has_more = 1;
        m.more = stops || (s->next < s->total && (!s->limit || s->sent < s->limit));
        if (n || !stops)
            fake_answer(f, s->conn, s->id, &m);
        if (stops) {
            s->open = false;
            if (s->fail_code)
                fake_code(f, s->conn, s->id, s->fail_code, "can't go on");
            else if (s->lose_after)
                fake_close(f, s->conn);
            return;
        }
        if (!m.more)
            s->open = false;
    }
}

static void serve(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct directory *s = f->data;
    switch (m->body_case) {
    case F(LIST):
    case F(VISIBLE): {
        const char *after = m->body_case == F(LIST) ? m->list->after : m->visible->after;
        s->asked++;
        s->id = m->request_id;
        s->conn = conn;
        s->sent = 0;
        s->credit = m->body_case == F(LIST) ? m->list->credit : m->visible->credit;
        s->limit = m->body_case == F(LIST) ? m->list->limit : m->visible->limit;
        s->first_limit = s->limit;
        s->next = after ? (unsigned)strtoul(after + 5, NULL, 10) + 1 : 0;
        snprintf(s->after, sizeof s->after, "%s", after ? after : "");
        s->min_index = m->has_min_index ? m->min_index : 0;
        s->level = (int)m->level;
        s->open = true;
        break;
    }
    case F(CREDIT):
        if (m->request_id == s->id)
            s->credit += m->credit->rows;
        break;
    case F(CANCEL):
        if (m->request_id == s->id) {
            s->cancelled = true;
            s->open = false;
        }
        return;
    case F(LOOKUP):
        fake_row(f, conn, m->request_id, m->lookup->name, "be1", 70);
        return;
    default:
        return;
    }
    if (s->credit > s->most_ahead)
        s->most_ahead = (unsigned)s->credit;
    stream(f, s);
}

static void open_nodes(unsigned timeout_ms, unsigned patience_ms)
{
    struct raftdir_options o;
    char list[300], text[256];
    snprintf(list, sizeof list, "%s%s%s", one.endpoint, two.listener ? "," : "", two.listener ? two.endpoint : "");
    raftdir_options_init(&o);
    o.endpoints = list;
    o.timeout_ms = timeout_ms;
    o.patience_ms = patience_ms;
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

/* Reads to the end; every row once, in order. The last code. */
static int read_all(raftdir_list *l, unsigned *n_r)
{
    const struct raftdir_mailbox *m;
    int rc;
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "user.%06u", (*n_r)++);
        assert_string_equal(m->name, wanted);
    }
    assert_null(m);
    return rc;
}

static void whole_list(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory s = {.total = 20000};
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    unsigned n = 0;
    uint64_t touched, skips;
    fake_start(&one, dir, "one", serve, &s);
    open_nodes(5000, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(read_all(l, &n), 0);
    assert_int_equal(n, 20000);
    assert_int_equal(raftdir_list_next(l, &m), 0); /* the end again */
    struct raftdir_position p;
    assert_int_equal(raftdir_list_position(l, &p), 0);
    assert_true(p.incarnation == 1 && p.index == 70 && p.done == RAFTDIR_DONE_ALL);
    raftdir_list_counters(l, &touched, &skips);
    assert_int_equal(touched, 40000);
    assert_int_equal(skips, 3);
    raftdir_list_close(&l);
    assert_null(l);
    fake_stop(&one);
    assert_int_equal(s.asked, 1);
    assert_true(s.most_ahead <= LIST_CREDIT_MAX);
    assert_false(s.cancelled);
}

static void empty_list(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory s = {.total = 0};
    raftdir_list *l;
    unsigned n = 0;
    fake_start(&one, dir, "one", serve, &s);
    open_nodes(5000, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(read_all(l, &n), 0);
    assert_int_equal(n, 0);
    raftdir_list_close(&l);
}

/* A reader that stops holds the node up after the credit, and other calls work meanwhile. */
static void reader_that_stops(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory s = {.total = 20000};
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    unsigned n = 10;
    fake_start(&one, dir, "one", serve, &s);
    open_nodes(5000, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(raftdir_list_next(l, &m), 1);
    for (int i = 0; i < 30; i++) {
        assert_int_equal(raftdir_lookup(d, "user.x", &m), 0);
        assert_string_equal(m->name, "user.x");
    }
    fake_lock(&one);
    unsigned sent = s.sent;
    fake_unlock(&one);
    assert_true(sent <= 2048);
    assert_int_equal(read_all(l, &n), 0);
    assert_int_equal(n, 20000);
    raftdir_list_close(&l);
}

static void closed_early(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory s = {.total = 20000};
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", serve, &s);
    open_nodes(5000, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1);
    raftdir_list_close(&l);
    assert_int_equal(raftdir_lookup(d, "user.x", &m), 0);
    fake_stop(&one);
    assert_true(s.cancelled);
}

static void goes_on_elsewhere(void **state)
{
    (void)state;
    STOP_FAKES;
    /* Lost, silent, or refused in the middle: the other node goes on behind the last row. */
    struct directory rows[] = {{.total = 5000, .lose_after = 1234},
                               {.total = 5000, .hush_after = 777},
                               {.total = 5000, .lose_after = 3000},
                               {.total = 5000, .hush_after = 300, .fail_code = RAFTDIR_ENOQUORUM},
                               {.total = 5000, .hush_after = 300, .fail_code = RAFTDIR_ECANCELED}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct directory second = {.total = 5000};
        raftdir_list *l;
        unsigned n = 0, first = rows[i].lose_after ? rows[i].lose_after : rows[i].hush_after;
        char after[64];
        fake_start(&one, dir, "one", serve, &rows[i]);
        fake_start(&two, dir, "two", serve, &second);
        open_nodes(5000, 50);
        if (i % 2)
            raftdir_set_level(d, RAFTDIR_LOCAL);
        assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
        assert_int_equal(read_all(l, &n), 0);
        assert_int_equal(n, 5000);
        raftdir_list_close(&l);
        raftdir_close(&d);
        fake_stop(&one);
        fake_stop(&two);
        snprintf(after, sizeof after, "user.%06u", first - 1);
        assert_int_equal(second.asked, 1);
        assert_string_equal(second.after, after);
        assert_int_equal(second.min_index, 70); /* never an older state than that of the first rows */
        assert_int_equal(second.level, RAFTDIR__CLIENT__READ_LEVEL__SESSION);
    }
}

static void limit_across_nodes(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory first = {.total = 5000, .lose_after = 400}, second = {.total = 5000};
    struct raftdir_filter f;
    raftdir_list *l;
    unsigned n = 0;
    fake_start(&one, dir, "one", serve, &first);
    fake_start(&two, dir, "two", serve, &second);
    open_nodes(5000, 50);
    raftdir_filter_init(&f);
    f.limit = 1000;
    assert_int_equal(raftdir_list_open(d, &f, &l), 0);
    assert_int_equal(read_all(l, &n), 0);
    assert_int_equal(n, 1000);
    raftdir_list_close(&l);
    fake_stop(&one);
    fake_stop(&two);
    assert_int_equal(first.first_limit, 1000);
    assert_int_equal(second.first_limit, 600);
}

/* Whatever ends it early, it is no end. */
static void cut_short_is_an_error(void **state)
{
    (void)state;
    STOP_FAKES;
    static const struct {
        struct directory s;
        int code;
    } rows[] = {{{.total = 5000, .lose_after = 500}, RAFTDIR_EUNAVAIL},
                {{.total = 5000, .hush_after = 500}, RAFTDIR_ETIMEDOUT},
                {{.total = 5000, .hush_after = 500, .fail_code = RAFTDIR_ENOQUORUM}, RAFTDIR_ENOQUORUM},
                {{.total = 5000, .hush_after = 500, .fail_code = RAFTDIR_EINVAL}, RAFTDIR_EINVAL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct directory s = rows[i].s;
        raftdir_list *l;
        const struct raftdir_mailbox *m;
        unsigned n = 0;
        fake_start(&one, dir, "one", serve, &s);
        open_nodes(300, 50);
        assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
        int rc;
        while ((rc = raftdir_list_next(l, &m)) > 0) {
            n++;
            if (n == 500) { /* nobody goes on with it */
                fake_lock(&one);
                s.lose_after = s.hush_after = 0;
                one.handler = NULL;
                one.hello_silent = true;
                fake_unlock(&one);
            }
        }
        if (rc != rows[i].code && !(rows[i].code == RAFTDIR_EUNAVAIL && rc == RAFTDIR_ETIMEDOUT))
            fail_msg("row %zu: %s (%s)", i, raftdir_errname(rc), raftdir_message(d));
        assert_int_equal(n, 500);
        assert_true(raftdir_list_next(l, &m) < 0); /* still */
        raftdir_list_close(&l);
        raftdir_close(&d);
        fake_stop(&one);
    }
}

static void visible_is_asked_as_given(void **state)
{
    (void)state;
    STOP_FAKES;
    static const char *const groups[] = {"staff", "group:x"};
    struct directory s = {.total = 10};
    struct raftdir_visible v;
    raftdir_list *l;
    unsigned n = 0;
    fake_start(&one, dir, "one", serve, &s);
    open_nodes(3000, 0);
    raftdir_visible_init(&v);
    assert_int_equal(raftdir_visible_open(d, &v, &l), RAFTDIR_EINVAL); /* no user */
    v.user = "john.doe@example.org";
    v.groups = groups;
    v.groups_n = 2;
    v.after = "user.000003";
    assert_int_equal(raftdir_visible_open(d, &v, &l), 0);
    n = 4;
    assert_int_equal(read_all(l, &n), 0);
    assert_int_equal(n, 10);
    raftdir_list_close(&l);
    assert_int_equal(fake_seen(&one, F(VISIBLE)), 1);
}

/* Many lists at once on one handle, taken in turns. */
static void lists_side_by_side(void **state)
{
    (void)state;
    STOP_FAKES;
    struct directory s = {.total = 3000};
    raftdir_list *l[2];
    const struct raftdir_mailbox *m;
    /* The fake node serves one stream at a time: the second list goes to the other node. */
    struct directory t = {.total = 3000};
    fake_start(&one, dir, "one", serve, &s);
    fake_start(&two, dir, "two", serve, &t);
    open_nodes(5000, 0);
    for (int i = 0; i < 2; i++) {
        raftdir_use_endpoint(d, i);
        assert_int_equal(raftdir_list_open(d, NULL, &l[i]), 0);
    }
    for (unsigned n = 0; n < 3000; n++)
        for (int i = 0; i < 2; i++) {
            char wanted[32];
            snprintf(wanted, sizeof wanted, "user.%06u", n);
            assert_int_equal(raftdir_list_next(l[i], &m), 1);
            assert_string_equal(m->name, wanted);
        }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(raftdir_list_next(l[i], &m), 0);
        raftdir_list_close(&l[i]);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(whole_list),    TEST(empty_list),         TEST(reader_that_stops),     TEST(closed_early),
        TEST(goes_on_elsewhere), TEST(limit_across_nodes), TEST(cut_short_is_an_error), TEST(visible_is_asked_as_given),
        TEST(lists_side_by_side),
    };
    return cmocka_run_group_tests_name("lib_list", tests, NULL, NULL);
}
