/* test_node.c - the driver's promises, one at a time, in a tiny world: no disk, no LMDB, a network that delivers in order at once.
 *
 * The simulation (tests/sim) looks for what nobody thought of; this says what each call promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <raft.h>
#include "raftdir/node.h"
#include "raftdir/op.h"
#include "peer.pb-c.h"

#define NODES 4
#define CLUSTER 77
#define INCARNATION 1
#define AT_ONCE_MS 5

struct frame_item {
    struct frame_item *next;
    uint64_t from, to;
    size_t len;
    uint8_t data[];
};

struct world_node {
    uint64_t id;
    struct node *node;
    uint64_t term, vote;
    struct log_batch *log, **log_tail;
    struct apply_batch *apply, **apply_tail;
    bool cut, deaf; /* no frames in or out; no answers of the disk */
    int failed;
    struct store_meta meta;
    unsigned applied_commands;
};

struct write {
    struct node_write w;
    uint8_t buf[256];
    int code, times;
    uint64_t index;
    uint64_t done_at;
};

struct world {
    struct world_node nodes[NODES + 1];
    struct frame_item *frames, **frames_tail;
    uint64_t now;
};
static struct world W;

static int on_meta_write(void *data, uint64_t term, uint64_t vote)
{
    struct world_node *n = data;
    assert_true(term >= n->term);
    n->term = term;
    n->vote = vote;
    return 0;
}

static void on_log_write(void *data, struct log_batch *b)
{
    struct world_node *n = data;
    *n->log_tail = b;
    n->log_tail = &b->next;
}

static void on_apply(void *data, struct apply_batch *b)
{
    struct world_node *n = data;
    *n->apply_tail = b;
    n->apply_tail = &b->next;
}

static void on_send(void *data, uint64_t to, const uint8_t *frame, size_t len)
{
    struct world_node *n = data;
    if (n->cut || to > NODES || W.nodes[to].cut || !W.nodes[to].node)
        return;
    struct frame_item *f = malloc(sizeof *f + len);
    assert_non_null(f);
    f->next = NULL;
    f->from = n->id;
    f->to = to;
    f->len = len;
    memcpy(f->data, frame, len);
    *W.frames_tail = f;
    W.frames_tail = &f->next;
}

static void on_write_done(void *data, struct node_write *w, int code, const uint8_t *result, size_t len)
{
    (void)data;
    struct write *x = (struct write *)w;
    x->times++;
    x->code = code;
    x->done_at = W.now;
    if (code == 0) {
        Raftdir__Log__Result *r = raftdir__log__result__unpack(NULL, len, result);
        assert_non_null(r);
        x->index = r->index;
        raftdir__log__result__free_unpacked(r, NULL);
    }
}

struct read {
    struct node_read r;
    int code, times;
    uint64_t index;
};

static void on_read_done(void *data, struct node_read *r, int code, uint64_t index)
{
    (void)data;
    struct read *x = (struct read *)r;
    x->times++;
    x->code = code;
    x->index = index;
}

struct change {
    struct node_member_op m;
    int code, times;
    uint64_t id;
    size_t members;
    char text[256];
};

static void on_member_done(void *data, struct node_member_op *m, const Raftdir__Cluster__MemberResult *r)
{
    (void)data;
    struct change *x = (struct change *)m;
    x->times++;
    x->code = r->code;
    x->id = r->member ? r->member->id : 0;
    x->members = r->n_members;
    if (r->message)
        strncpy(x->text, r->message, sizeof x->text - 1);
}

static void nothing(void *data)
{
    (void)data;
}

static void on_failed(void *data, int code, const char *why)
{
    (void)why;
    ((struct world_node *)data)->failed = code;
}

static uint64_t wall(void *data)
{
    (void)data;
    return 1000000 + W.now;
}

static void address_of(uint64_t id, char *buf)
{
    char host[32], name[8];
    uint8_t uuid[NODE_UUID_LEN] = {(uint8_t)id};
    snprintf(host, sizeof host, "127.0.0.1:%d", 7000 + (int)id);
    snprintf(name, sizeof name, "n%d", (int)id);
    assert_int_equal(node_address_format(host, name, uuid, buf, NODE_ADDRESS_SIZE, NULL), 0);
}

/* A node whose log holds `voters` voters at index 1; none: an empty one, waiting to be added. */
static void node_make(uint64_t id, unsigned voters)
{
    struct world_node *n = &W.nodes[id];
    struct node_io io = {.data = n, .meta_write = on_meta_write, .log_write = on_log_write, .apply = on_apply, .send = on_send, .write_done = on_write_done,
                         .read_done = on_read_done, .member_done = on_member_done, .members_changed = nothing, .role_changed = nothing, .failed = on_failed, .wall_ms = wall};
    struct node_options o = {.id = id, .cluster_id = CLUSTER, .incarnation = INCARNATION, .seed = (unsigned)id * 7 + 1};
    struct node_boot boot = {.log_first = 1, .term = voters ? 1 : 0};
    memset(n, 0, sizeof *n);
    n->id = id;
    n->log_tail = &n->log;
    n->apply_tail = &n->apply;
    n->meta.feature_level = 1;
    boot.meta.feature_level = 1;
    if (voters) {
        struct raft_configuration c;
        struct raft_buffer b;
        char address[NODE_ADDRESS_SIZE];
        raft_configuration_init(&c);
        for (unsigned i = 1; i <= voters; i++) {
            address_of(i, address);
            assert_int_equal(raft_configuration_add(&c, i, address, RAFT_VOTER), 0);
        }
        assert_int_equal(raft_configuration_encode(&c, &b), 0);
        boot.entries = malloc(sizeof *boot.entries);
        boot.entries[0] = entry_create(1, 1, RAFT_CHANGE, b.base, (uint32_t)b.len);
        boot.entries_n = 1;
        raft_free(b.base);
        raft_configuration_close(&c);
        n->term = 1;
    }
    struct err err;
    assert_int_equal(node_create(&o, &io, &boot, &n->node, &err), 0);
    assert_int_equal(node_start(n->node, W.now), 0);
}

/* A stand-in for apply: commands succeed, an id is counted once in a life of the world. */
static void apply_run(struct world_node *n, struct apply_batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        struct entry *e = b->entries[i];
        assert_int_equal(e->index, n->meta.applied_index + 1);
        n->meta.applied_index = e->index;
        n->meta.applied_term = e->term;
        if (e->type == RAFT_CHANGE) {
            struct raft_configuration c;
            struct raft_buffer buf = {e->data, e->len};
            assert_int_equal(raft_configuration_decode(&buf, &c), 0);
            for (unsigned k = 0; k < c.n; k++)
                if (c.servers[k].id > n->meta.member_id_max)
                    n->meta.member_id_max = c.servers[k].id;
            raft_configuration_close(&c);
        }
        if (e->type != RAFT_COMMAND)
            continue;
        Raftdir__Log__Entry *entry;
        assert_int_equal(op_entry_unpack(e->data, e->len, &entry, NULL), 0);
        assert_true(entry->log_time_ms >= n->meta.log_time_ms);
        n->meta.log_time_ms = entry->log_time_ms;
        for (size_t k = 0; k < entry->n_requests; k++) {
            Raftdir__Log__Result r = RAFTDIR__LOG__RESULT__INIT;
            struct apply_result *list = realloc(b->results, (b->results_n + 1) * sizeof *list);
            assert_non_null(list);
            b->results = list;
            struct apply_result *x = &list[b->results_n++];
            memset(x, 0, sizeof *x);
            memcpy(x->op_id, entry->requests[k]->op_id.data, OP_ID_LEN);
            r.index = x->index = e->index;
            x->result_len = raftdir__log__result__get_packed_size(&r);
            x->result = malloc(x->result_len);
            raftdir__log__result__pack(&r, x->result);
            n->applied_commands++;
        }
        op_entry_free(&entry);
    }
    b->meta = n->meta;
}

/* Runs the world until nothing is left to do at `now`, then a millisecond on, until `until`. */
static void run(uint64_t until)
{
    while (W.now < until) {
        bool busy = true;
        for (int guard = 0; busy && guard < 1000; guard++) {
            busy = false;
            struct frame_item *f = W.frames;
            W.frames = NULL;
            W.frames_tail = &W.frames;
            while (f) {
                struct frame_item *next = f->next;
                if (W.nodes[f->to].node && !W.nodes[f->to].cut && !W.nodes[f->from].cut)
                    node_receive(W.nodes[f->to].node, W.now, f->from, f->data, f->len);
                free(f);
                f = next;
                busy = true;
            }
            for (int i = 1; i <= NODES; i++) {
                struct world_node *n = &W.nodes[i];
                if (!n->node)
                    continue;
                while (n->log && !n->deaf) {
                    struct log_batch *b = n->log;
                    n->log = b->next;
                    if (!n->log)
                        n->log_tail = &n->log;
                    node_log_written(n->node, W.now, b, 0);
                    busy = true;
                }
                while (n->apply) {
                    struct apply_batch *b = n->apply;
                    n->apply = b->next;
                    if (!n->apply)
                        n->apply_tail = &n->apply;
                    apply_run(n, b);
                    node_applied(n->node, W.now, b);
                    busy = true;
                }
                if (node_deadline(n->node, W.now) <= W.now)
                    busy = true;
                node_tick(n->node, W.now);
                node_flush(n->node, W.now);
            }
            if (guard > 50)
                break;
        }
        W.now++;
    }
}

static int setup(void **state)
{
    (void)state;
    memset(&W, 0, sizeof W);
    W.frames_tail = &W.frames;
    W.now = 1000;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 1; i <= NODES; i++) {
        struct world_node *n = &W.nodes[i];
        if (n->node)
            node_destroy(&n->node);
        for (struct log_batch *b = n->log, *next; b; b = next) {
            next = b->next;
            log_batch_destroy(&b);
        }
        for (struct apply_batch *b = n->apply, *next; b; b = next) {
            next = b->next;
            apply_batch_destroy(&b);
        }
    }
    while (W.frames) {
        struct frame_item *f = W.frames;
        W.frames = f->next;
        free(f);
    }
    return 0;
}

static int leader(void)
{
    int found = 0;
    for (int i = 1; i <= NODES; i++) {
        struct node_status s;
        if (!W.nodes[i].node || W.nodes[i].cut)
            continue;
        node_status_get(W.nodes[i].node, W.now, &s);
        if (s.state == NODE_LEADER)
            found = i;
    }
    return found;
}

static void three(void)
{
    for (unsigned i = 1; i <= 3; i++)
        node_make(i, 3);
    run(W.now + 2000);
    assert_true(leader() > 0);
}

static void write_start(struct write *x, int node, uint8_t tag, uint64_t deadline_in)
{
    Raftdir__Log__Request q = RAFTDIR__LOG__REQUEST__INIT;
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT, *ops[1] = {&op};
    Raftdir__Log__Noop noop = RAFTDIR__LOG__NOOP__INIT;
    memset(x, 0, sizeof *x);
    memset(x->w.op_id, tag, OP_ID_LEN);
    op.op_case = RAFTDIR__LOG__OP__OP_NOOP;
    op.noop = &noop;
    q.op_id.data = x->w.op_id;
    q.op_id.len = OP_ID_LEN;
    q.expires_ms = 600000;
    q.identity = (char *)"test";
    q.ops = ops;
    q.n_ops = 1;
    x->w.request_len = raftdir__log__request__get_packed_size(&q);
    assert_true(x->w.request_len <= sizeof x->buf);
    raftdir__log__request__pack(&q, x->buf);
    x->w.request = x->buf;
    x->w.deadline_ms = W.now + deadline_in;
    node_write(W.nodes[node].node, W.now, &x->w);
    assert_int_equal(x->times, 0); /* never within the call */
}

static void any_node_takes_a_write(void **state)
{
    (void)state;
    struct write x[3];
    three();
    for (int i = 0; i < 3; i++)
        write_start(&x[i], i + 1, (uint8_t)(i + 1), 5000);
    run(W.now + 200);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(x[i].times, 1);
        assert_int_equal(x[i].code, 0);
    }
    for (int i = 1; i <= 3; i++)
        assert_int_equal(W.nodes[i].applied_commands, 3);
}

static void sole_node_leads_and_writes(void **state)
{
    (void)state;
    struct write x;
    struct read r = {.r.deadline_ms = W.now + 3000};
    node_make(1, 1);
    run(W.now + 20);
    assert_int_equal(leader(), 1);
    write_start(&x, 1, 1, 1000);
    node_read(W.nodes[1].node, W.now, &r.r);
    run(W.now + 100);
    assert_int_equal(x.code, 0);
    assert_int_equal(x.times, 1);
    assert_int_equal(r.code, 0);
    assert_int_equal(r.times, 1);
}

static void writes_move_to_the_next_leader_at_once(void **state)
{
    (void)state;
    struct write x, y;
    three();
    int old = leader(), other = old % 3 + 1;
    W.nodes[old].cut = true;
    write_start(&x, other, 9, 5000); /* goes to the dead leader first */
    uint64_t start = W.now, elected = 0;
    while (W.now < start + 1500) {
        run(W.now + 1);
        if (!elected && leader())
            elected = W.now;
    }
    assert_true(elected && elected - start < 1000);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_true(x.done_at <= elected + AT_ONCE_MS); /* at once, not when a timeout expires */
    /* The old leader hears of it and forwards as well. */
    W.nodes[old].cut = false;
    run(W.now + 500);
    write_start(&y, old, 10, 5000);
    run(W.now + 300);
    assert_int_equal(y.code, 0);
}

/* What a deposed leader had in its log only is sent on by it, and the same id never counts as two ends. */
static void a_deposed_leader_resubmits(void **state)
{
    (void)state;
    struct write x;
    three();
    int old = leader();
    W.nodes[old].cut = true;
    write_start(&x, old, 11, 5000);
    run(W.now + 1500);
    assert_int_equal(x.times, 0);
    W.nodes[old].cut = false;
    run(W.now + 1000);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_int_not_equal(leader(), 0);
}

static void no_quorum_is_no_maybe(void **state)
{
    (void)state;
    struct write x, y, z;
    three();
    int old = leader();
    for (int i = 1; i <= 3; i++)
        W.nodes[i].cut = true;
    write_start(&x, old, 1, 3000); /* into the leader's own log: nobody can say */
    run(W.now + 1500);
    int follower = old % 3 + 1;
    write_start(&y, follower, 2, 3000); /* no leader is known: it surely didn't happen */
    write_start(&z, old, 3, 3000);
    uint64_t start = W.now;
    run(W.now + 1500);
    assert_int_equal(y.times, 1);
    assert_int_equal(y.code, RAFTDIR_ENOQUORUM);
    assert_true(y.done_at - start <= NO_QUORUM_AFTER_MS + 100);
    assert_int_equal(z.code, RAFTDIR_ENOQUORUM);
    run(W.now + 1500);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, RAFTDIR_EUNCERTAIN);
}

/* What was sent before may be in a log, or be applied: a leader's refusal of the second time is no answer. */
static void a_refusal_of_the_second_time_is_no_end(void **state)
{
    (void)state;
    struct write x, y;
    three();
    int l = leader(), f = l % 3 + 1;
    W.nodes[f].deaf = true; /* it will not learn the outcome from its own log */
    run(W.now + 20);
    write_start(&x, f, 21, 5000);
    while (W.frames) { /* the leader gets it, its answer is lost */
        struct frame_item *item = W.frames;
        W.frames = item->next;
        if (item->to == (uint64_t)l)
            node_receive(W.nodes[l].node, W.now, item->from, item->data, item->len);
        free(item);
    }
    W.frames_tail = &W.frames;
    W.nodes[f].cut = true;
    run(W.now + 50);
    assert_int_equal(W.nodes[l].applied_commands, 1);
    W.nodes[f].cut = false;
    node_space_set(W.nodes[l].node, NODE_SPACE_NONE);
    run(W.now + 1000); /* sent again, and refused */
    assert_int_equal(leader(), l);
    assert_int_equal(x.times, 0);
    write_start(&y, f, 22, 5000); /* what was never sent before may be refused for good */
    run(W.now + 100);
    assert_int_equal(y.times, 1);
    assert_int_equal(y.code, RAFTDIR_ENOSPC);
    W.nodes[f].deaf = false;
    run(W.now + 100);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_int_equal(W.nodes[l].applied_commands, 1);
}

static void forward_result(int from, int to, uint8_t tag, int code)
{
    Raftdir__Peer__Frame f = RAFTDIR__PEER__FRAME__INIT;
    Raftdir__Peer__ForwardResult body = RAFTDIR__PEER__FORWARD_RESULT__INIT;
    Raftdir__Log__Result result = RAFTDIR__LOG__RESULT__INIT;
    uint8_t id[OP_ID_LEN], packed[64], frame[256];
    memset(id, tag, sizeof id);
    result.code = code;
    result.index = 7;
    f.version = PEER_FRAME_VERSION;
    f.cluster_id = CLUSTER;
    f.incarnation = INCARNATION;
    f.from = (uint64_t)from;
    f.to = (uint64_t)to;
    f.body_case = RAFTDIR__PEER__FRAME__BODY_FORWARD_RESULT;
    f.forward_result = &body;
    body.op_id = (ProtobufCBinaryData){sizeof id, id};
    body.has_result = true;
    body.result = (ProtobufCBinaryData){raftdir__log__result__pack(&result, packed), packed};
    node_receive(W.nodes[to].node, W.now, (uint64_t)from, frame, raftdir__peer__frame__pack(&f, frame));
}

/* An id that ran out before its second copy was applied says nothing about the first. */
static void expired_the_second_time_is_uncertain(void **state)
{
    (void)state;
    struct write x, y;
    three();
    int l = leader(), f = l % 3 + 1;
    W.nodes[f].deaf = true;
    write_start(&x, f, 31, 5000);
    forward_result(l, f, 31, RAFTDIR_EEXPIRED);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0); /* sent once: this is the answer */
    for (int i = 1; i <= 3; i++)
        W.nodes[i].deaf = true;
    write_start(&y, f, 32, 5000);
    run(W.now + 600); /* sent again meanwhile */
    assert_int_equal(y.times, 0);
    assert_int_equal(leader(), l);
    forward_result(l, f, 32, RAFTDIR_EEXPIRED);
    assert_int_equal(y.times, 1);
    assert_int_equal(y.code, RAFTDIR_EUNCERTAIN);
}

static void a_read_needs_a_quorum_now(void **state)
{
    (void)state;
    struct write x;
    three();
    int l = leader();
    write_start(&x, l, 1, 1000);
    run(W.now + 100);
    for (int i = 1; i <= 3; i++) {
        struct read r = {.r.deadline_ms = W.now + 3000};
        node_read(W.nodes[i].node, W.now, &r.r);
        assert_int_equal(r.times, 0);
        run(W.now + 100);
        assert_int_equal(r.times, 1);
        assert_int_equal(r.code, 0);
        assert_true(r.index >= x.index);
    }
    struct read r = {.r.deadline_ms = W.now + 2000};
    W.nodes[l].cut = true;
    node_read(W.nodes[l].node, W.now, &r.r); /* it still believes that it leads */
    run(W.now + 100);
    assert_int_equal(r.times, 0);
    run(W.now + 3000);
    assert_int_equal(r.times, 1);
    assert_int_equal(r.code, RAFTDIR_ENOQUORUM);
}

/* A leader that can't confirm gets every open read of its followers again and again: what one costs must not grow with their number. */
static void many_reads_of_a_stalled_leader(void **state)
{
    (void)state;
    enum { N = 40000 };
    static struct read reads[N];
    three();
    int l = leader(), f = l % 3 + 1, other = 6 - l - f;
    W.nodes[other].cut = true;
    for (int i = 0; i < N; i++) {
        uint8_t buf[128];
        Raftdir__Peer__Frame frame = RAFTDIR__PEER__FRAME__INIT;
        Raftdir__Peer__ReadIndex body = RAFTDIR__PEER__READ_INDEX__INIT;
        frame.version = PEER_FRAME_VERSION;
        frame.cluster_id = CLUSTER;
        frame.incarnation = INCARNATION;
        frame.from = (uint64_t)f;
        frame.to = (uint64_t)l;
        frame.body_case = RAFTDIR__PEER__FRAME__BODY_READ_INDEX;
        frame.read_index = &body;
        body.corr = (uint64_t)i + 1;
        size_t len = raftdir__peer__frame__pack(&frame, buf);
        for (int again = 0; again < 2; again++) {
            clock_t start = clock();
            node_receive(W.nodes[l].node, W.now, (uint64_t)f, buf, len);
            reads[i].times += (int)(clock() - start);
        }
    }
    int64_t first = 0, last = 0;
    for (int i = 0; i < N / 4; i++) {
        first += reads[i].times;
        last += reads[N - 1 - i].times;
    }
    assert_true(last < 5 * first + CLOCKS_PER_SEC / 10);
}

static void age_grows_when_cut_off(void **state)
{
    (void)state;
    struct node_status s;
    three();
    int l = leader(), follower = l % 3 + 1;
    for (int i = 1; i <= 3; i++) {
        node_status_get(W.nodes[i].node, W.now, &s);
        assert_true(s.age_ms < 400);
        assert_true(s.quorum);
    }
    W.nodes[follower].cut = true;
    run(W.now + 2000);
    node_status_get(W.nodes[follower].node, W.now, &s);
    assert_true(s.age_ms >= 1900 && s.age_ms < 2500);
    assert_false(s.quorum);
    /* A follower of a cut-off leader is as stale as that leader. */
    int third = 6 - l - follower;
    if (leader() == l) {
        W.nodes[third].cut = true;
        run(W.now + 1500);
        node_status_get(W.nodes[l].node, W.now, &s);
        assert_true(s.age_ms >= 1400);
    }
}

static void member_op(struct change *x, int node, Raftdir__Cluster__MemberRequest *q)
{
    memset(x, 0, sizeof *x);
    x->m.request = q;
    x->m.deadline_ms = W.now + 10000;
    node_member_op(W.nodes[node].node, W.now, &x->m);
    assert_int_equal(x->times, 0);
}

static void change_and_wait(struct change *x, int node, Raftdir__Cluster__MemberRequest *q)
{
    member_op(x, node, q);
    for (int i = 0; i < 120 && !x->times; i++)
        run(W.now + 100);
    assert_int_equal(x->times, 1);
}

static void a_cluster_grows_moves_and_shrinks(void **state)
{
    (void)state;
    struct change x;
    struct write w;
    node_make(1, 1);
    run(W.now + 50);
    for (unsigned id = 2; id <= 3; id++) {
        uint8_t uuid[NODE_UUID_LEN] = {(uint8_t)id};
        char host[32], name[8];
        Raftdir__Cluster__Member member = RAFTDIR__CLUSTER__MEMBER__INIT;
        Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
        node_make(id, 0);
        snprintf(host, sizeof host, "127.0.0.1:%d", 7000 + (int)id);
        snprintf(name, sizeof name, "n%d", (int)id);
        member.address = host;
        member.cert_name = name;
        member.uuid.data = uuid;
        member.uuid.len = sizeof uuid;
        member.role = RAFTDIR__CLUSTER__ROLE__STANDBY;
        q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD;
        q.add = &member;
        change_and_wait(&x, 1, &q);
        assert_int_equal(x.code, 0);
        assert_int_equal(x.id, id);
        change_and_wait(&x, 1, &q); /* again: the same member */
        assert_int_equal(x.code, 0);
        assert_int_equal(x.id, id);
        uuid[5] = 1; /* another data directory at the same address */
        change_and_wait(&x, 1, &q);
        assert_int_equal(x.code, RAFTDIR_EEXIST);
        q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE;
        q.promote = id;
        change_and_wait(&x, 1, &q);
        assert_int_equal(x.code, 0);
        assert_int_equal(x.members, id);
    }
    write_start(&w, 3, 1, 1000);
    run(W.now + 200);
    assert_int_equal(w.code, 0);
    assert_int_equal(w.times, 1);

    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER;
    q.transfer = 2;
    change_and_wait(&x, 3, &q);
    assert_int_equal(x.code, 0);
    assert_int_equal(leader(), 2);
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
    q.remove = 9;
    change_and_wait(&x, 2, &q);
    assert_int_equal(x.code, RAFTDIR_EINVAL);
    q.remove = 2; /* the leader: it hands over first */
    change_and_wait(&x, 2, &q);
    assert_int_equal(x.code, 0);
    assert_int_equal(x.members, 2);
    assert_int_not_equal(leader(), 0);
    write_start(&w, 1, 2, 3000);
    run(W.now + 1000);
    assert_int_equal(w.code, 0);
}

/* Asked at a follower: leadership moves once, not back again, and the answer names who has it. */
static void a_transfer_moves_once(void **state)
{
    (void)state;
    struct change x;
    struct node_status before, after;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    three();
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER;
    for (int i = 0; i < 6; i++) {
        int l = leader(), f = i % 2 ? l % 3 + 1 : (l + 1) % 3 + 1;
        node_status_get(W.nodes[l].node, W.now, &before);
        q.transfer = 0;
        change_and_wait(&x, f, &q);
        assert_int_equal(x.code, 0);
        run(W.now + 1000);
        assert_int_not_equal(leader(), l);
        assert_int_equal(x.id, leader());
        node_status_get(W.nodes[leader()].node, W.now, &after);
        assert_int_equal(after.term, before.term + 1);
    }
}

static void a_removal_keeps_a_quorum(void **state)
{
    (void)state;
    struct change x;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    three();
    int l = leader(), a = l % 3 + 1, b = 6 - l - a;
    W.nodes[a].cut = true;
    run(W.now + 2000);
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
    q.remove = (uint64_t)b; /* the one that is alive */
    member_op(&x, l, &q);
    x.m.deadline_ms = W.now + 10000;
    run(W.now + 11000);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, RAFTDIR_ENOQUORUM);
    q.remove = (uint64_t)a; /* the dead one */
    change_and_wait(&x, l, &q);
    assert_int_equal(x.code, 0);
    assert_int_equal(x.members, 2);
}

/* A change that is in the log may yet happen: its asker must not hear that it didn't. */
static void a_change_in_the_log_is_uncertain(void **state)
{
    (void)state;
    struct change x;
    uint8_t uuid[NODE_UUID_LEN] = {4};
    Raftdir__Cluster__Member member = RAFTDIR__CLUSTER__MEMBER__INIT;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT, list = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    three();
    int l = leader(), a = l % 3 + 1, b = 6 - l - a;
    W.nodes[a].deaf = W.nodes[b].deaf = true; /* they vote and answer, but can't store anything */
    member.address = (char *)"127.0.0.1:7004";
    member.cert_name = (char *)"n4";
    member.uuid.data = uuid;
    member.uuid.len = sizeof uuid;
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD;
    q.add = &member;
    member_op(&x, l, &q);
    x.m.deadline_ms = W.now + 10000;
    run(W.now + 10100);
    assert_int_equal(leader(), l);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, RAFTDIR_EUNCERTAIN);
    W.nodes[a].deaf = W.nodes[b].deaf = false;
    run(W.now + 200);
    list.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST;
    list.list = true;
    change_and_wait(&x, l, &list);
    assert_int_equal(x.members, 4); /* it happened */
}

/* A data directory put back from a copy: what the node had acknowledged is not in it. It must not vote on, nor wait for ever. */
static void a_log_put_back_is_noticed(void **state)
{
    (void)state;
    struct write x;
    struct node_status s;
    three();
    int l = leader(), f = l % 3 + 1;
    write_start(&x, l, 1, 1000);
    run(W.now + 200);
    assert_int_equal(x.code, 0);
    uint64_t term = W.nodes[f].term, vote = W.nodes[f].vote;
    node_destroy(&W.nodes[f].node);
    node_make((uint64_t)f, 3); /* the first entry is all that it has */
    W.nodes[f].term = term;
    W.nodes[f].vote = vote;
    run(W.now + 600);
    assert_int_equal(W.nodes[f].failed, RAFTDIR_ECORRUPT);
    node_status_get(W.nodes[f].node, W.now, &s);
    assert_int_equal(s.state, NODE_FAILED);
    assert_int_equal(leader(), l);
    write_start(&x, l, 2, 1000);
    run(W.now + 200);
    assert_int_equal(x.code, 0);
}

static void a_node_knows_its_place(void **state)
{
    (void)state;
    struct raft_buffer b[2];
    struct node_peer self;
    struct node_boot boot = {.log_first = 1};
    struct entry *entries[2];
    char address[NODE_ADDRESS_SIZE];
    assert_int_equal(node_boot_self(&boot, 1, &self, NULL), RAFTDIR_ENOTFOUND);
    for (unsigned k = 0; k < 2; k++) { /* members 1 and 2, then 1 and 2 where 2 has moved to the place of 4 */
        struct raft_configuration c;
        raft_configuration_init(&c);
        address_of(1, address);
        assert_int_equal(raft_configuration_add(&c, 1, address, RAFT_VOTER), 0);
        address_of(k ? 4 : 2, address);
        assert_int_equal(raft_configuration_add(&c, 2, address, RAFT_STANDBY), 0);
        assert_int_equal(raft_configuration_encode(&c, &b[k]), 0);
        raft_configuration_close(&c);
        entries[k] = entry_create(k + 1, 1, RAFT_CHANGE, b[k].base, (uint32_t)b[k].len);
    }
    boot.entries = entries;
    boot.entries_n = 1;
    assert_int_equal(node_boot_self(&boot, 2, &self, NULL), 0);
    assert_string_equal(self.host_port, "127.0.0.1:7002");
    assert_string_equal(self.cert_name, "n2");
    assert_int_equal(self.role, RAFT_STANDBY);
    assert_int_equal(node_boot_self(&boot, 3, &self, NULL), RAFTDIR_ENOTFOUND);
    boot.entries_n = 2; /* the newest in the log counts */
    assert_int_equal(node_boot_self(&boot, 2, &self, NULL), 0);
    assert_string_equal(self.cert_name, "n4");
    boot.configuration = b[1].base; /* and the applied one, when the log's are not newer */
    boot.configuration_len = b[1].len;
    boot.meta.configuration_index = 2;
    boot.entries_n = 1;
    assert_int_equal(node_boot_self(&boot, 2, &self, NULL), 0);
    assert_string_equal(self.cert_name, "n4");
    for (unsigned k = 0; k < 2; k++) {
        entry_unref(entries[k]);
        raft_free(b[k].base);
    }
}

static void garbage_is_dropped(void **state)
{
    (void)state;
    struct node_status before, after;
    static const uint8_t junk[] = {0xff, 0xff, 0xff, 0x01, 0, 0, 0, 0, 0, 1, 2, 3};
    three();
    node_status_get(W.nodes[1].node, W.now, &before);
    for (size_t len = 0; len <= sizeof junk; len++)
        node_receive(W.nodes[1].node, W.now, 2, junk, len);
    node_status_get(W.nodes[1].node, W.now, &after);
    assert_int_equal(after.frames_dropped, before.frames_dropped + sizeof junk + 1);
    assert_int_equal(after.term, before.term);
}

static void addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "host", "host:1", "host:1/name", "host:1/name/12", "host:1//00000000000000000000000000000000",
                                      "/name/00000000000000000000000000000000", "host:1/name/0000000000000000000000000000000g"};
    struct node_peer p;
    char buf[NODE_ADDRESS_SIZE];
    uint8_t uuid[NODE_UUID_LEN] = {1, 2, 255};
    assert_int_equal(node_address_format("[::1]:7401", "n1.example.net", uuid, buf, sizeof buf, NULL), 0);
    assert_int_equal(node_address_parse(buf, &p, NULL), 0);
    assert_string_equal(p.host_port, "[::1]:7401");
    assert_string_equal(p.cert_name, "n1.example.net");
    assert_memory_equal(p.uuid, uuid, sizeof uuid);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(node_address_parse(bad[i], &p, NULL), RAFTDIR_EINVAL);
    assert_int_equal(node_address_format("nohost", "n", uuid, buf, sizeof buf, NULL), RAFTDIR_EINVAL);
    assert_int_equal(node_address_format("h:1", "a/b", uuid, buf, sizeof buf, NULL), RAFTDIR_EINVAL);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(any_node_takes_a_write), T(sole_node_leads_and_writes), T(writes_move_to_the_next_leader_at_once), T(a_deposed_leader_resubmits),
        T(no_quorum_is_no_maybe), T(a_refusal_of_the_second_time_is_no_end), T(expired_the_second_time_is_uncertain), T(a_change_in_the_log_is_uncertain), T(a_read_needs_a_quorum_now), T(many_reads_of_a_stalled_leader), T(age_grows_when_cut_off), T(a_cluster_grows_moves_and_shrinks),
        T(a_removal_keeps_a_quorum), T(a_transfer_moves_once), T(a_log_put_back_is_noticed), T(a_node_knows_its_place), T(garbage_is_dropped), T(addresses),
    };
    return cmocka_run_group_tests_name("node", tests, NULL, NULL);
}
