/* test_lib_watch.c - watches of libraftdir against fake nodes: nothing twice, nothing left out, whatever becomes of connections and nodes; credit; what stays. */
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

#define BASE 10  /* index before the first event */
#define EACH 3   /* events of an index */
#define CHUNK 4
#define WINDOW 512 /* as raftdir.h says */
#define WATCHES 2

/* A feed of `total` events, user.000000 and so on, told as a node does. */
struct feed {
    unsigned total;
    unsigned lose_after; /* closes the connection after so many events of an attempt; 0: never */
    unsigned hush_after; /* says nothing more after so many; 0: never */
    int code;            /* answers a watch with this instead */
    bool backwards;      /* repeats the last event, once */
    bool quiet;          /* tells its position when asked, and no more */
    /* the streams */
    struct stream {
        uint64_t id;
        unsigned conn, next, sent;
        int64_t credit;
        bool open, greeted;
    } streams[WATCHES];
    /* what was asked */
    unsigned asked, cancelled;
    int64_t most_credit;
    uint64_t index, incarnation, min_index;
    uint32_t done, progress_ms;
    bool has_index;
    int level;
};

static void send_events(struct fake *f, struct stream *s, unsigned from, unsigned n, bool progress, uint64_t index, uint32_t done)
{
    Raftdir__Client__Event events[CHUNK], *list[CHUNK];
    Raftdir__Client__Row rows[CHUNK];
    Raftdir__Log__Mailbox boxes[CHUNK];
    Raftdir__Client__Events body = RAFTDIR__CLIENT__EVENTS__INIT;
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    char names[CHUNK][32];
    for (unsigned i = 0; i < n; i++) {
        raftdir__client__event__init(&events[i]);
        list[i] = &events[i];
        if (progress) {
            events[i].kind = RAFTDIR_EVENT_PROGRESS;
            events[i].index = index;
            events[i].done = done;
            continue;
        }
        snprintf(names[i], sizeof names[i], "user.%06u", from + i);
        events[i].kind = (from + i) % 5 == 4 ? RAFTDIR_EVENT_DELETED : RAFTDIR_EVENT_CHANGED;
        events[i].index = BASE + 1 + (from + i) / EACH;
        events[i].done = (from + i) % EACH + 1;
        events[i].name = names[i];
        raftdir__client__row__init(&rows[i]);
        raftdir__log__mailbox__init(&boxes[i]);
        boxes[i].name = names[i];
        rows[i].mailbox = &boxes[i];
        if (events[i].kind == RAFTDIR_EVENT_CHANGED)
            events[i].row = &rows[i];
    }
    body.n_events = n;
    body.events = list;
    m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_EVENTS;
    m.events = &body;
    m.has_index = m.has_more = m.more = 1;
    m.index = 5000;
    fake_answer(f, s->conn, s->id, &m);
}

static void stream(struct fake *f, struct feed *feed, struct stream *s)
{
    if (!s->greeted && s->open) {
        s->greeted = true;
        send_events(f, s, 0, 1, true, BASE + s->next / EACH + (s->next % EACH != 0), s->next % EACH ? s->next % EACH : RAFTDIR_DONE_ALL);
        s->credit--;
    }
    while (s->open && s->credit > 0 && s->next < feed->total && !feed->quiet) {
        unsigned n = 1 + s->next % CHUNK;
        n = n < feed->total - s->next ? n : feed->total - s->next;
        n = n < s->credit ? n : (unsigned)s->credit;
        if (feed->lose_after && n > feed->lose_after - s->sent)
            n = feed->lose_after - s->sent;
        if (feed->hush_after && n > feed->hush_after - s->sent)
            n = feed->hush_after - s->sent;
        send_events(f, s, s->next, n, false, 0, 0);
        if (feed->backwards && s->next) {
            feed->backwards = false;
            send_events(f, s, s->next - 1, 1, false, 0, 0);
        }
        s->next += n;
        s->sent += n;
        s->credit -= n;
        if (feed->hush_after && s->sent == feed->hush_after)
            s->open = false;
        if (feed->lose_after && s->sent == feed->lose_after) {
            s->open = false;
            fake_close(f, s->conn);
            return;
        }
    }
}

static void serve(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct feed *feed = f->data;
    struct stream *s = NULL;
    for (int i = 0; i < WATCHES; i++)
        if (feed->streams[i].id == m->request_id)
            s = &feed->streams[i];
    switch (m->body_case) {
    case F(WATCH):
        s = NULL;
        for (int i = 0; i < WATCHES && !s; i++)
            if (!feed->streams[i].open)
                s = &feed->streams[i];
        feed->asked++;
        feed->has_index = m->watch->has_index;
        feed->index = m->watch->index;
        feed->done = m->watch->done;
        feed->incarnation = m->watch->incarnation;
        feed->progress_ms = m->watch->progress_ms;
        feed->min_index = m->has_min_index ? m->min_index : 0;
        feed->level = (int)m->level;
        if (feed->code) {
            Raftdir__Client__FromNode e = RAFTDIR__CLIENT__FROM_NODE__INIT;
            e.code = feed->code;
            e.has_index = 1;
            e.index = 4711;
            fake_answer(f, conn, m->request_id, &e);
            return;
        }
        if (!s)
            return;
        uint64_t index = m->watch->has_index ? m->watch->index : BASE;
        uint32_t done = m->watch->has_index ? m->watch->done : RAFTDIR_DONE_ALL;
        *s = (struct stream){.id = m->request_id, .conn = conn, .credit = m->watch->credit, .open = true};
        s->next = (unsigned)(done == RAFTDIR_DONE_ALL ? (index - BASE) * EACH : (index - BASE - 1) * EACH + done);
        break;
    case F(CREDIT):
        if (s)
            s->credit += m->credit->rows;
        break;
    case F(CANCEL):
        feed->cancelled++;
        if (s)
            s->open = false;
        return;
    case F(LOOKUP):
        fake_row(f, conn, m->request_id, m->lookup->name, "be1", 70);
        return;
    default:
        return;
    }
    if (s && s->credit > feed->most_credit)
        feed->most_credit = s->credit;
    if (s)
        stream(f, feed, s);
}

static void open_nodes(unsigned patience_ms)
{
    struct raftdir_options o;
    char list[300], text[256];
    snprintf(list, sizeof list, "%s%s%s", one.endpoint, two.listener ? "," : "", two.listener ? two.endpoint : "");
    raftdir_options_init(&o);
    o.endpoints = list;
    o.timeout_ms = 5000;
    o.patience_ms = patience_ms;
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

static raftdir_watch *watch(const struct raftdir_position *from)
{
    raftdir_watch *w;
    assert_int_equal(raftdir_watch_open(d, NULL, from, &w), 0);
    return w;
}

/* The next event that isn't PROGRESS, within some seconds, whatever errors come between: must be this one. */
static void want_event(raftdir_watch *w, unsigned i)
{
    const struct raftdir_event *e;
    struct raftdir_position p;
    char name[32];
    for (int turns = 0;; turns++) {
        int rc = raftdir_watch_next(w, 100, &e);
        if (rc == 0 && e->kind != RAFTDIR_EVENT_PROGRESS)
            break;
        if (turns > 100 || (rc < 0 && rc != RAFTDIR_EAGAIN && rc != RAFTDIR_EUNAVAIL))
            fail_msg("event %u: %d: %s", i, rc, raftdir_message(d));
    }
    snprintf(name, sizeof name, "user.%06u", i);
    assert_string_equal(e->name, name);
    assert_string_equal(e->old_name, "");
    assert_true(e->position.incarnation == 1 && e->position.index == BASE + 1 + i / EACH && e->position.done == i % EACH + 1);
    assert_int_equal(e->m == NULL, i % 5 == 4);
    if (e->m)
        assert_string_equal(e->m->name, name);
    raftdir_watch_position(w, &p);
    assert_true(p.index > e->position.index || (p.index == e->position.index && p.done >= e->position.done));
}

static void want_nothing_more(raftdir_watch *w)
{
    const struct raftdir_event *e;
    for (int i = 0; i < 3; i++) {
        int rc = raftdir_watch_next(w, 20, &e);
        if (rc == 0 && e->kind == RAFTDIR_EVENT_PROGRESS)
            continue;
        assert_int_equal(rc, RAFTDIR_EAGAIN);
        assert_null(e);
    }
}

static void in_order_within_the_credit(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 5000};
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    raftdir_watch *w = watch(NULL);
    for (unsigned i = 0; i < 5000; i++)
        want_event(w, i);
    want_nothing_more(w);
    raftdir_watch_close(&w);
    assert_null(w);
    fake_stop(&one);
    assert_int_equal(feed.asked, 1);
    assert_false(feed.has_index);
    assert_int_equal(feed.level, RAFTDIR__CLIENT__READ_LEVEL__SESSION);
    assert_true(feed.most_credit <= WINDOW);
}

/* Nobody takes events: the node stops at the credit, and other calls, and another watch, go on. */
static void beside_others(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 3000};
    const struct raftdir_mailbox *m;
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    struct raftdir_position from = {1, BASE + 1, 2};
    raftdir_watch *slow = watch(NULL), *w = watch(&from);
    for (unsigned i = 2; i < 2000; i++) {
        want_event(w, i);
        if (i % 100 == 0) {
            assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
            assert_string_equal(m->name, "user.anna");
        }
    }
    fake_lock(&one);
    for (int i = 0; i < WATCHES; i++)
        assert_true(feed.streams[i].sent <= 2000 + WINDOW && feed.streams[i].credit >= 0);
    unsigned least = feed.streams[0].sent < feed.streams[1].sent ? feed.streams[0].sent : feed.streams[1].sent;
    fake_unlock(&one);
    assert_in_range(least, 1, WINDOW);
    for (unsigned i = 0; i < 1500; i++)
        want_event(slow, i);
    raftdir_watch_close(&slow);
    want_event(w, 2000);
    raftdir_watch_close(&w);
}

/* The connection breaks behind each event there is; the other node goes on, until it breaks, too. */
static void broken_everywhere(void **state)
{
    (void)state;
    for (unsigned after = 1; after <= 12; after++) {
        STOP_FAKES;
        struct feed a = {.total = 12, .lose_after = after}, b = a;
        fake_start(&one, dir, "one", serve, &a);
        fake_start(&two, dir, "two", serve, &b);
        open_nodes(0);
        raftdir_watch *w = watch(NULL);
        for (unsigned i = 0; i < 12; i++)
            want_event(w, i);
        raftdir_watch_close(&w);
        raftdir_close(&d);
        fake_stop(&one);
        fake_stop(&two);
        assert_true(a.asked + b.asked >= 12 / after);
    }
}

/* A position is gone on from exactly, also when a handle ends between two events. */
static void resumed_at_each_event(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 30};
    fake_start(&one, dir, "one", serve, &feed);
    for (unsigned stop = 1; stop < 30; stop++) {
        struct raftdir_position p;
        open_nodes(0);
        raftdir_watch *w = watch(NULL);
        for (unsigned i = 0; i < stop; i++)
            want_event(w, i);
        raftdir_watch_position(w, &p);
        raftdir_watch_close(&w);
        raftdir_close(&d);
        open_nodes(0);
        w = watch(&p);
        for (unsigned i = stop; i < 30; i++)
            want_event(w, i);
        want_nothing_more(w);
        raftdir_watch_close(&w);
        raftdir_close(&d);
        assert_true(feed.incarnation == 1 && feed.has_index);
        assert_int_equal(feed.level, RAFTDIR__CLIENT__READ_LEVEL__LOCAL);
    }
}

static void silent_node(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed a = {.total = 100, .hush_after = 10}, b = {.total = 100};
    fake_start(&one, dir, "one", serve, &a);
    fake_start(&two, dir, "two", serve, &b);
    open_nodes(40);
    raftdir_watch *w = watch(NULL);
    for (unsigned i = 0; i < 11; i++)
        want_event(w, i);
    /* What the first one says now comes too late. */
    fake_lock(&one);
    assert_true(a.progress_ms && a.progress_ms <= 100);
    send_events(&one, &a.streams[0], 10, 4, false, 0, 0);
    fake_unlock(&one);
    for (unsigned i = 11; i < 100; i++)
        want_event(w, i);
    raftdir_watch_close(&w);
    fake_stop(&one);
    fake_stop(&two);
    assert_true(a.asked == 1 && b.asked == 1 && a.cancelled == 1);
    assert_int_equal(b.index, BASE + 4);
    assert_int_equal(b.done, 1);
}

/* A user who is away for longer than anybody's patience doesn't take his node for silent. */
static void user_away(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed a = {.total = 3000}, b = {.total = 3000};
    const struct raftdir_event *e;
    fake_start(&one, dir, "one", serve, &a);
    fake_start(&two, dir, "two", serve, &b);
    open_nodes(20);
    raftdir_watch *w = watch(NULL);
    for (unsigned i = 0; i < 1500; i++) {
        if (i % 500 == 7)
            usleep(200000);
        want_event(w, i);
    }
    /* And what came while he was away counts, before anybody is judged. */
    for (unsigned i = 1500; i < 3000; i++)
        want_event(w, i);
    for (uint64_t index = 9000; index < 9004; index++) {
        usleep(150000);
        fake_lock(&one);
        send_events(&one, &a.streams[0], 0, 1, true, index, RAFTDIR_DONE_ALL);
        fake_unlock(&one);
        raftdir_watch_next(w, 1, &e);
    }
    raftdir_watch_close(&w);
    fake_stop(&one);
    fake_stop(&two);
    assert_true(a.asked == 1 && b.asked == 0);
}

static void compacted_stays(void **state)
{
    (void)state;
    static const int codes[] = {RAFTDIR_ECOMPACTED, RAFTDIR_EFOREIGN};
    for (int i = 0; i < 2; i++) {
        STOP_FAKES;
        struct feed feed = {.total = 10, .code = codes[i]};
        struct raftdir_position from = {1, BASE, RAFTDIR_DONE_ALL}, p;
        const struct raftdir_event *e;
        const struct raftdir_mailbox *m;
        fake_start(&one, dir, "one", serve, &feed);
        one.incarnation = codes[i] == RAFTDIR_EFOREIGN ? 2 : 1;
        open_nodes(0);
        raftdir_watch *w = watch(&from);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(raftdir_watch_next(w, 2000, &e), codes[i]);
            assert_null(e);
            assert_true(*raftdir_message(d));
        }
        raftdir_watch_position(w, &p);
        assert_true(p.incarnation == one.incarnation && p.index == 4711 && p.done == RAFTDIR_DONE_ALL);
        raftdir_watch_close(&w);
        assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
        assert_int_equal(feed.asked, 1);
        raftdir_close(&d);
        fake_stop(&one);
    }
}

/* A node that wasn't restored yet doesn't end a watch of the new incarnation. */
static void older_incarnation(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed a = {.code = RAFTDIR_EFOREIGN}, b = {.total = 10};
    struct raftdir_position from = {1, BASE, RAFTDIR_DONE_ALL};
    fake_start(&one, dir, "one", serve, &a);
    fake_start(&two, dir, "two", serve, &b);
    one.incarnation = 0;
    open_nodes(0);
    raftdir_watch *w = watch(&from);
    for (unsigned i = 0; i < 10; i++)
        want_event(w, i);
    raftdir_watch_close(&w);
}

static void backwards(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 20, .backwards = true};
    const struct raftdir_event *e;
    unsigned i = 0;
    int rc, wrong = 0;
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    raftdir_watch *w = watch(NULL);
    for (int turns = 0; i < 20 && turns < 200; turns++) {
        char name[32];
        rc = raftdir_watch_next(w, 100, &e);
        wrong += rc == RAFTDIR_EPROTO;
        if (rc < 0 || e->kind == RAFTDIR_EVENT_PROGRESS)
            continue;
        snprintf(name, sizeof name, "user.%06u", i++);
        assert_string_equal(e->name, name);
    }
    assert_int_equal(i, 20);
    assert_int_equal(wrong, 1);
    raftdir_watch_close(&w);
}

/* Without a node: an error that says so, not "nothing yet"; then it goes on. */
static void node_comes_back(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 5};
    const struct raftdir_event *e;
    int rc = 0;
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    raftdir_watch *w = watch(NULL);
    for (unsigned i = 0; i < 5; i++)
        want_event(w, i);
    want_nothing_more(w);
    fake_stop(&one);
    for (int i = 0; i < 20 && (rc = raftdir_watch_next(w, 20, &e)) != RAFTDIR_EUNAVAIL; i++)
        assert_true(rc == RAFTDIR_EAGAIN);
    assert_int_equal(rc, RAFTDIR_EUNAVAIL);
    struct feed more = {.total = 9};
    fake_start(&one, dir, "one", serve, &more);
    for (unsigned i = 5; i < 9; i++)
        want_event(w, i);
    raftdir_watch_close(&w);
    fake_stop(&one);
    assert_int_equal(more.index, BASE + 2);
    assert_int_equal(more.done, 2);
}

/* What is known not to be for the filter moves the position, is told once, then every progress_ms, and is gone on from. */
static void progress(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 10, .quiet = true};
    struct raftdir_watch_filter filter;
    struct raftdir_position p;
    const struct raftdir_event *e;
    raftdir_watch *w;
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    raftdir_watch_filter_init(&filter);
    filter.prefix = "user.";
    filter.progress_ms = 60;
    assert_int_equal(raftdir_watch_open(d, &filter, NULL, &w), 0);
    raftdir_watch_position(w, &p);
    assert_int_equal(p.incarnation, 0);
    assert_int_equal(raftdir_watch_next(w, 2000, &e), 0);
    assert_int_equal(e->kind, RAFTDIR_EVENT_PROGRESS);
    assert_true(e->position.index == BASE && e->position.done == RAFTDIR_DONE_ALL);
    assert_int_equal(raftdir_watch_next(w, 0, &e), RAFTDIR_EAGAIN);
    int told = 0;
    for (uint64_t index = 100; index < 1100; index++) { /* more than the window: they are given back */
        fake_lock(&one);
        send_events(&one, &feed.streams[0], 0, 1, true, index, RAFTDIR_DONE_ALL);
        fake_unlock(&one);
        if (index % 50 == 49 && raftdir_watch_next(w, 5, &e) == 0) {
            assert_int_equal(e->kind, RAFTDIR_EVENT_PROGRESS);
            told++;
        }
    }
    for (int turns = 0; turns < 50; turns++) {
        raftdir_watch_position(w, &p);
        if (p.index == 1099)
            break;
        told += raftdir_watch_next(w, 20, &e) == 0;
    }
    assert_int_equal(p.index, 1099);
    assert_in_range(told, 0, 20);
    assert_int_equal(raftdir_watch_next(w, 100, &e) == 0 || told, 1);
    usleep(20000);
    assert_int_equal(raftdir_watch_next(w, 20, &e), RAFTDIR_EAGAIN);
    fake_lock(&one);
    assert_true(one.credit >= 1000 - WINDOW);
    fake_unlock(&one);
    fake_stop(&one);
    struct feed more = {.total = 10, .quiet = true};
    fake_start(&one, dir, "one", serve, &more);
    for (int i = 0; i < 100 && fake_seen(&one, F(WATCH)) == 0; i++)
        raftdir_watch_next(w, 20, &e);
    fake_lock(&one);
    assert_true(more.index == 1099 && more.done == RAFTDIR_DONE_ALL);
    fake_unlock(&one);
    raftdir_watch_close(&w);
    fake_stop(&one);
}

static void arguments(void **state)
{
    (void)state;
    STOP_FAKES;
    struct feed feed = {.total = 1};
    struct raftdir_watch_filter filter = {0};
    raftdir_watch *w = NULL;
    fake_start(&one, dir, "one", serve, &feed);
    open_nodes(0);
    assert_int_equal(raftdir_watch_open(d, &filter, NULL, &w), RAFTDIR_EINVAL);
    assert_null(w);
    raftdir_watch_close(&w);
    raftdir_watch_close(NULL);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(in_order_within_the_credit), T(beside_others), T(broken_everywhere), T(resumed_at_each_event), T(silent_node), T(user_away),
                                       T(compacted_stays), T(older_incarnation), T(backwards), T(node_comes_back), T(progress), T(arguments)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
