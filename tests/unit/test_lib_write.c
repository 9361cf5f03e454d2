/* test_lib_write.c - what libraftdir's batches are on the wire, their limits, and writes in flight. */
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

#define WRITES 300

static void open_nodes(unsigned timeout_ms, unsigned patience_ms, unsigned window)
{
    struct raftdir_options o;
    char list[300], text[256];
    snprintf(list, sizeof list, "%s%s%s", one.endpoint, two.listener ? "," : "", two.listener ? two.endpoint : "");
    raftdir_options_init(&o);
    o.endpoints = list;
    o.timeout_ms = timeout_ms;
    o.patience_ms = patience_ms;
    o.window = window;
    if (raftdir_open(&o, &d, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

/* --- The wire ---------------------------------------------------------------------------------------------------------------- */

static void looks(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    Raftdir__Client__Write **w = f->data;
    if (m->body_case != F(WRITE))
        return;
    size_t len = raftdir__client__write__get_packed_size(m->write);
    uint8_t *buf = malloc(len);
    raftdir__client__write__pack(m->write, buf);
    *w = raftdir__client__write__unpack(NULL, len, buf); /* a copy that outlives the frame */
    free(buf);
    fake_write_result(f, conn, m, 0, 50, NULL);
}

static void every_operation(void **state)
{
    (void)state;
    STOP_FAKES;
    Raftdir__Client__Write *w = NULL;
    const struct raftdir_result *r;
    struct raftdir_mailbox m, u;
    raftdir_batch *b = raftdir_batch_create();
    fake_start(&one, dir, "one", looks, &w);
    open_nodes(3000, 0, 0);
    raftdir_mailbox_init(&m);
    m.name = "user.a";
    m.server = "be1";
    m.partition = "p1";
    m.acl = "a\tlrs\t";
    m.mbtype = "e";
    m.uniqueid = "u1";
    m.legacy_specialuse = "\\Sent";
    m.jmapid = "j";
    m.name_history = "[1]";
    m.mtime = 1;
    m.uidvalidity = 2;
    m.createdmodseq = 3;
    m.foldermodseq = 4;
    raftdir_mailbox_init(&u);
    u.name = "user.a";
    u.acl = "";       /* empties it */
    u.fields = RAFTDIR_F_MTIME;
    u.server = "be9"; /* an update has no location */
    assert_int_equal(raftdir_batch_add_create(b, &m, "tok", 3), 0);
    assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_ABSENT, 0, NULL), 0);
    assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_GENERATION, 5, "user.b"), 0);
    assert_int_equal(raftdir_batch_add_put(b, &m), 0);
    assert_int_equal(raftdir_batch_add_update(b, &u), 0);
    assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_PRESENT, 0, NULL), 0);
    assert_int_equal(raftdir_batch_add_reserve(b, "user.r", "be1", NULL, NULL, 0, 1234), 0);
    assert_int_equal(raftdir_batch_add_activate(b, &m, NULL, 0, 1), 0);
    assert_int_equal(raftdir_batch_add_deactivate(b, "user.a", NULL, NULL, NULL, 0), 0);
    assert_int_equal(raftdir_batch_add_delete(b, "user.a", 1, "be1", "p1", NULL, 0), 0);
    assert_int_equal(raftdir_batch_add_rename(b, "user.a", "user.c", 1, NULL, NULL), 0);
    assert_int_equal(raftdir_batch_add_setacl(b, "user.a", "x\tl\t"), 0);
    assert_int_equal(raftdir_batch_add_setacl_one(b, "user.a", "x", ""), 0);
    assert_int_equal(raftdir_batch_add_move_begin(b, "user.a", "be2", "", 0), 0);
    assert_int_equal(raftdir_batch_add_move_commit(b, "user.a", 0), 0);
    assert_int_equal(raftdir_batch_add_move_abort(b, "user.a", 1), 0);
    assert_int_equal(raftdir_batch_add_noop(b), 0);
    assert_int_equal(raftdir_batch_add_feature_level(b, 2), 0);
    raftdir_batch_set_store_epoch(b, 300);
    assert_int_equal(raftdir_batch_count(b), 15);
    assert_int_equal(raftdir_write(d, b, &r), 0);
    assert_int_equal(r->ops_n, 15);
    raftdir_batch_destroy(&b);
    raftdir_close(&d);
    fake_stop(&one);
    assert_non_null(w);
    assert_int_equal(w->op_id.len, OP_ID_LEN);
    assert_int_equal(w->expires_ms, 1000 + OP_TTL_DEFAULT_MS);
    assert_int_equal(w->store_epoch, 300);
    assert_int_equal(w->n_ops, 15);
    const Raftdir__Log__Op *c = w->ops[0];
    assert_int_equal(c->op_case, RAFTDIR__LOG__OP__OP_CREATE);
    assert_int_equal(c->n_preconditions, 2);
    assert_int_equal(c->preconditions[0]->condition, RAFTDIR__LOG__CONDITION__ABSENT);
    assert_null(c->preconditions[0]->name);
    assert_int_equal(c->preconditions[1]->condition, RAFTDIR__LOG__CONDITION__GENERATION);
    assert_int_equal(c->preconditions[1]->generation, 5);
    assert_string_equal(c->preconditions[1]->name, "user.b");
    assert_int_equal(c->create->token.len, 3);
    const Raftdir__Log__Mailbox *x = c->create->mailbox;
    assert_string_equal(x->name, "user.a");
    assert_string_equal(x->location->server, "be1");
    assert_string_equal(x->location->partition, "p1");
    assert_string_equal(x->acl, "a\tlrs\t");
    assert_string_equal(x->mbtype, "e");
    assert_string_equal(x->uniqueid, "u1");
    assert_string_equal(x->legacy_specialuse, "\\Sent");
    assert_string_equal(x->jmapid, "j");
    assert_string_equal(x->name_history, "[1]");
    assert_int_equal(x->mtime, 1);
    assert_int_equal(x->uidvalidity, 2);
    assert_int_equal(x->createdmodseq, 3);
    assert_int_equal(x->foldermodseq, 4);
    assert_int_equal(w->ops[1]->op_case, RAFTDIR__LOG__OP__OP_PUT);
    assert_int_equal(w->ops[1]->n_preconditions, 0);
    const Raftdir__Log__Mailbox *y = w->ops[2]->update->mailbox;
    assert_int_equal(w->ops[2]->n_preconditions, 1);
    assert_null(y->location);
    assert_string_equal(y->acl, "");
    assert_null(y->mbtype);
    assert_true(y->has_mtime);
    assert_false(y->has_uidvalidity);
    assert_int_equal(w->ops[3]->reserve->ttl_ms, 1234);
    assert_string_equal(w->ops[3]->reserve->location->partition, "");
    assert_true(w->ops[4]->activate->take_over);
    assert_null(w->ops[5]->deactivate->location);
    assert_true(w->ops[6]->delete_->subtree);
    assert_string_equal(w->ops[6]->delete_->location->server, "be1");
    assert_string_equal(w->ops[7]->rename->to, "user.c");
    assert_null(w->ops[7]->rename->location);
    assert_string_equal(w->ops[8]->set_acl->acl, "x\tl\t");
    assert_null(w->ops[8]->set_acl->identifier);
    assert_string_equal(w->ops[9]->set_acl->rights, "");
    assert_null(w->ops[9]->set_acl->acl);
    assert_string_equal(w->ops[10]->move_begin->to->server, "be2");
    assert_int_equal(w->ops[11]->op_case, RAFTDIR__LOG__OP__OP_MOVE_COMMIT);
    assert_true(w->ops[12]->move_abort->subtree);
    assert_int_equal(w->ops[13]->op_case, RAFTDIR__LOG__OP__OP_NOOP);
    assert_int_equal(w->ops[14]->set_feature_level->level, 2);
    raftdir__client__write__free_unpacked(w, NULL);
}

static void missing_fields_and_limits(void **state)
{
    (void)state;
    raftdir_batch *b = raftdir_batch_create();
    struct raftdir_mailbox m;
    static char big[200001];
    raftdir_mailbox_init(&m);
    assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_ABSENT, 0, NULL), RAFTDIR_EINVAL); /* of what? */
    assert_int_equal(raftdir_batch_add_create(b, &m, NULL, 0), RAFTDIR_EINVAL);
    m.name = "user.a";
    assert_int_equal(raftdir_batch_add_create(b, &m, NULL, 0), RAFTDIR_EINVAL); /* no server */
    assert_int_equal(raftdir_batch_add_put(b, &m), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_batch_add_delete(b, "", 0, NULL, NULL, NULL, 0), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_batch_add_rename(b, "a", NULL, 0, NULL, NULL), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_batch_add_setacl(b, "a", NULL), RAFTDIR_EINVAL);
    m.server = "be1";
    assert_int_equal(raftdir_batch_add_create(b, &m, big, TOKEN_LEN_MAX + 1), RAFTDIR_ETOOBIG);
    m.size = 1;
    assert_int_equal(raftdir_batch_add_create(b, &m, NULL, 0), RAFTDIR_EINVAL);
    m.size = sizeof m;
    assert_int_equal(raftdir_batch_count(b), 0);
    for (int i = 0; i < REQUEST_OPS_MAX; i++)
        assert_int_equal(raftdir_batch_add_noop(b), 0);
    assert_int_equal(raftdir_batch_add_noop(b), RAFTDIR_ETOOBIG);
    assert_int_equal(raftdir_batch_count(b), REQUEST_OPS_MAX);
    raftdir_batch_clear(b);
    memset(big, 'x', sizeof big - 1);
    m.acl = big;
    for (int i = 0; i < 5; i++)
        assert_int_equal(raftdir_batch_add_put(b, &m), 0);
    size_t len = raftdir_batch_len(b);
    assert_int_equal(raftdir_batch_add_put(b, &m), RAFTDIR_ETOOBIG);
    assert_int_equal(raftdir_batch_len(b), len); /* nothing of it was added */
    assert_int_equal(raftdir_batch_if(b, RAFTDIR_IF_ABSENT, 0, big), RAFTDIR_ETOOBIG);
    assert_int_equal(raftdir_batch_count(b), 5);
    raftdir_batch_destroy(&b);
    assert_null(b);
    raftdir_batch_destroy(&b);
}

static void empty_batch(void **state)
{
    (void)state;
    raftdir_batch *b = raftdir_batch_create();
    fake_start(&one, dir, "one", NULL, NULL);
    open_nodes(1000, 0, 0);
    assert_int_equal(raftdir_write(d, b, NULL), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_delete(d, "", 0, NULL), RAFTDIR_EINVAL);
    assert_true(strlen(raftdir_message(d)) > 5);
    raftdir_batch_destroy(&b);
}

/* A batch of the largest size goes through in one frame. */
static void largest_batch(void **state)
{
    (void)state;
    STOP_FAKES;
    Raftdir__Client__Write *w = NULL;
    raftdir_batch *b = raftdir_batch_create();
    struct raftdir_mailbox m;
    static char acl[60001];
    int rc = 0;
    size_t n = 0;
    memset(acl, 'x', sizeof acl - 1);
    raftdir_mailbox_init(&m);
    m.name = "user.a";
    m.server = "be1";
    for (size_t len = sizeof acl - 1; len; len /= 2) {
        acl[len] = '\0';
        m.acl = acl;
        while ((rc = raftdir_batch_add_put(b, &m)) == 0)
            n++;
        assert_int_equal(rc, RAFTDIR_ETOOBIG);
    }
    assert_true(raftdir_batch_len(b) > REQUEST_LEN_MAX - 2000);
    fake_start(&one, dir, "one", looks, &w);
    open_nodes(5000, 3000, 0);
    assert_int_equal(raftdir_write(d, b, NULL), 0);
    raftdir_batch_destroy(&b);
    raftdir_close(&d);
    fake_stop(&one);
    assert_int_equal(w->n_ops, n);
    raftdir__client__write__free_unpacked(w, NULL);
}

/* --- In flight ------------------------------------------------------------------------------------------------------------------ */

/* Keeps requests and answers them in reverse order, some at a time. Counts distinct operation ids. */
struct pipe {
    struct {
        unsigned conn;
        uint64_t id;
    } held[64];
    unsigned held_n, hold, most_held;
    unsigned close_after, answered;
    bool mute;
    unsigned muted; /* writes that it kept for itself */
    unsigned delay_us;
    struct ids *ids;
};
struct ids {
    pthread_mutex_t lock;
    uint8_t id[4 * WRITES][OP_ID_LEN];
    unsigned n, repeats;
};

static void note_id(struct ids *ids, const uint8_t *id)
{
    pthread_mutex_lock(&ids->lock);
    unsigned i = 0;
    while (i < ids->n && memcmp(ids->id[i], id, OP_ID_LEN))
        i++;
    if (i < ids->n)
        ids->repeats++;
    else if (ids->n < 4 * WRITES)
        memcpy(ids->id[ids->n++], id, OP_ID_LEN);
    pthread_mutex_unlock(&ids->lock);
}

static void pipelined(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    struct pipe *p = f->data;
    if (m->body_case != F(WRITE))
        return;
    note_id(p->ids, m->write->op_id.data);
    if (p->mute) {
        p->muted++;
        return;
    }
    if (p->delay_us)
        usleep(p->delay_us);
    p->held[p->held_n].conn = conn;
    p->held[p->held_n++].id = m->request_id;
    if (p->held_n > p->most_held)
        p->most_held = p->held_n;
    if (p->held_n < p->hold)
        return;
    while (p->held_n) {
        Raftdir__Client__ToNode to = *m;
        p->held_n--;
        to.request_id = p->held[p->held_n].id;
        fake_write_result(f, p->held[p->held_n].conn, &to, 0, 50, NULL);
        if (p->close_after && ++p->answered == p->close_after) {
            fake_close(f, conn);
            p->held_n = 0;
            return;
        }
    }
}

struct outcome {
    unsigned times;
    int code;
};

static void done(void *data, int code, const char *message, const struct raftdir_result *r)
{
    struct outcome *o = data;
    assert_non_null(message);
    assert_non_null(r);
    if (code == 0)
        assert_int_equal(r->ops_n, 1);
    o->times++;
    o->code = code;
}

static void submit_all(struct outcome *o, unsigned n)
{
    raftdir_batch *b = raftdir_batch_create();
    for (unsigned i = 0; i < n; i++) {
        raftdir_batch_clear(b);
        assert_int_equal(raftdir_batch_add_delete(b, "user.a", 0, NULL, NULL, NULL, 0), 0);
        assert_int_equal(raftdir_submit(d, b, done, &o[i]), 0);
        assert_int_equal(o[i].times, 0); /* never before it returned */
    }
    raftdir_batch_destroy(&b);
}

static void window_and_any_order(void **state)
{
    (void)state;
    STOP_FAKES;
    static struct ids ids;
    static struct outcome o[WRITES];
    memset(&ids, 0, sizeof ids);
    memset(o, 0, sizeof o);
    pthread_mutex_init(&ids.lock, NULL);
    struct pipe p = {.hold = 4, .ids = &ids};
    fake_start(&one, dir, "one", pipelined, &p);
    open_nodes(5000, 4000, 8);
    submit_all(o, WRITES);
    assert_int_equal(raftdir_drain(d), 0);
    for (unsigned i = 0; i < WRITES; i++) {
        assert_int_equal(o[i].times, 1);
        assert_int_equal(o[i].code, 0);
    }
    fake_stop(&one);
    assert_int_equal(ids.n, WRITES);
    assert_int_equal(ids.repeats, 0);
    assert_true(p.most_held <= 8);
    assert_true(p.most_held >= 4);
}

/* The node goes away with writes in flight: they are done at the other one, under the same ids. */
static void pipeline_fails_over(void **state)
{
    (void)state;
    STOP_FAKES;
    static struct ids ids;
    static struct outcome o[WRITES];
    memset(&ids, 0, sizeof ids);
    memset(o, 0, sizeof o);
    pthread_mutex_init(&ids.lock, NULL);
    struct pipe p = {.hold = 8, .close_after = 101, .ids = &ids}, q = {.hold = 1, .ids = &ids};
    fake_start(&one, dir, "one", pipelined, &p);
    fake_start(&two, dir, "two", pipelined, &q);
    open_nodes(10000, 3000, 16);
    submit_all(o, WRITES / 3);
    fake_lock(&one);
    p.mute = true; /* whatever it gets from now on, it keeps for itself */
    fake_unlock(&one);
    submit_all(o + WRITES / 3, 10);
    unsigned muted = 0; /* its thread has to come to them first */
    for (int i = 0; i < 5000 && !muted; i++) {
        usleep(1000);
        fake_lock(&one);
        muted = p.muted;
        fake_unlock(&one);
    }
    assert_true(muted > 0);
    fake_stop(&one);
    submit_all(o + WRITES / 3 + 10, WRITES - WRITES / 3 - 10);
    assert_int_equal(raftdir_drain(d), 0);
    for (unsigned i = 0; i < WRITES; i++) {
        assert_int_equal(o[i].times, 1);
        assert_int_equal(o[i].code, 0);
    }
    assert_int_equal(ids.n, WRITES); /* no write got a second id */
    assert_true(ids.repeats > 0);
}

static void pipeline_ends_uncertain(void **state)
{
    (void)state;
    STOP_FAKES;
    static struct ids ids;
    struct outcome o[5] = {{0}};
    memset(&ids, 0, sizeof ids);
    pthread_mutex_init(&ids.lock, NULL);
    struct pipe p = {.mute = true, .ids = &ids};
    fake_start(&one, dir, "one", pipelined, &p);
    open_nodes(300, 50, 16);
    submit_all(o, 5);
    assert_int_equal(raftdir_drain(d), 0);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(o[i].times, 1);
        assert_int_equal(o[i].code, RAFTDIR_EUNCERTAIN);
    }
}

static void close_ends_what_is_in_flight(void **state)
{
    (void)state;
    STOP_FAKES;
    static struct ids ids;
    struct outcome o[5] = {{0}};
    memset(&ids, 0, sizeof ids);
    pthread_mutex_init(&ids.lock, NULL);
    struct pipe p = {.mute = true, .ids = &ids};
    fake_start(&one, dir, "one", pipelined, &p);
    open_nodes(5000, 0, 16);
    submit_all(o, 5);
    raftdir_close(&d);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(o[i].times, 1);
        assert_int_equal(o[i].code, RAFTDIR_ECANCELED);
    }
}

/* A busy pipeline whose answers keep coming is not sent twice, however long each takes. */
static void busy_is_not_silent(void **state)
{
    (void)state;
    STOP_FAKES;
    static struct ids ids;
    static struct outcome o[WRITES];
    memset(&ids, 0, sizeof ids);
    memset(o, 0, sizeof o);
    pthread_mutex_init(&ids.lock, NULL);
    /* 64 in flight, 5 ms each: an answer takes three patiences. */
    struct pipe p = {.hold = 1, .delay_us = 5000, .ids = &ids}, q = {.hold = 1, .ids = &ids};
    fake_start(&one, dir, "one", pipelined, &p);
    fake_start(&two, dir, "two", pipelined, &q);
    open_nodes(20000, 100, 64);
    submit_all(o, WRITES);
    assert_int_equal(raftdir_drain(d), 0);
    assert_int_equal(ids.repeats, 0);
    assert_int_equal(fake_seen(&two, F(WRITE)), 0);
}

static void mailbox_copies(void **state)
{
    (void)state;
    struct raftdir_mailbox m;
    char name[] = "user.a";
    raftdir_mailbox_init(&m);
    m.name = name;
    m.acl = "a\tl\t";
    m.mtime = 9;
    struct raftdir_mailbox *c = raftdir_mailbox_copy(&m);
    name[0] = 'X';
    assert_string_equal(c->name, "user.a");
    assert_string_equal(c->acl, "a\tl\t");
    assert_null(c->server);
    assert_int_equal(c->mtime, 9);
    raftdir_mailbox_free(c);
    raftdir_mailbox_free(NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_operation),      TEST(missing_fields_and_limits), TEST(empty_batch),
        TEST(largest_batch),        TEST(window_and_any_order),      TEST(pipeline_fails_over),
        TEST(pipeline_ends_uncertain), TEST(close_ends_what_is_in_flight), TEST(busy_is_not_silent),
        TEST(mailbox_copies),
    };
    return cmocka_run_group_tests_name("lib_write", tests, NULL, NULL);
}
