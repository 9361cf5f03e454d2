/* test_node_space.c - what a leader admits while space is short (DESIGN D13), its own and the voters'; and what waits for an apply that doesn't get on. */
#include "node_world.h"
#include "support_store.h"

#define SPACE_TOLD 1000 /* what a member has said counts for so long */

enum kind { NOTHING, CREATE, DELETE, BOTH };
static uint32_t next_tag = 1;

static void write_kind(struct write *x, int node, enum kind kind, uint32_t tag, uint64_t deadline_in)
{
    struct support_arena a = {0};
    Raftdir__Log__Request q = RAFTDIR__LOG__REQUEST__INIT;
    Raftdir__Log__Op *ops[2];
    memset(x, 0, sizeof *x);
    memcpy(x->w.op_id, &tag, sizeof tag);
    q.op_id.data = x->w.op_id;
    q.op_id.len = OP_ID_LEN;
    q.expires_ms = 600000;
    q.identity = (char *)"test";
    q.ops = ops;
    if (kind == DELETE || kind == BOTH)
        ops[q.n_ops++] = support_delete(&a, "user.old", true);
    if (kind == CREATE || kind == BOTH)
        ops[q.n_ops++] = support_put(&a, "user.new", "be1", "p1", "anna\tlrs\t");
    if (kind == NOTHING)
        ops[q.n_ops++] = support_op(&a, RAFTDIR__LOG__OP__OP_NOOP);
    x->w.request_len = raftdir__log__request__get_packed_size(&q);
    assert_true(x->w.request_len <= sizeof x->small);
    raftdir__log__request__pack(&q, x->small);
    support_free(&a);
    x->w.request = x->small;
    x->w.deadline_ms = W.now + deadline_in;
    node_write(W.nodes[node].node, W.now, &x->w);
    assert_int_equal(x->times, 0);
}

static int write_code(int node, enum kind kind)
{
    struct write x;
    write_kind(&x, node, kind, next_tag++, 3000);
    for (int i = 0; i < 200 && !x.times; i++)
        run(W.now + 20);
    assert_int_equal(x.times, 1);
    return x.code;
}

static bool limited(int id)
{
    struct node_status s;
    node_status_get(W.nodes[id].node, W.now, &s);
    return s.writes_limited;
}

/* At the leader and at the others: what they forward. */
static void wanted(bool creates, bool deletes)
{
    for (int i = 1; i <= 3; i++) {
        if (W.nodes[i].cut)
            continue;
        unsigned before = W.nodes[leader()].applied_commands;
        assert_int_equal(write_code(i, CREATE), creates ? 0 : RAFTDIR_ENOSPC);
        assert_int_equal(write_code(i, BOTH), creates ? 0 : RAFTDIR_ENOSPC);
        assert_int_equal(write_code(i, DELETE), deletes ? 0 : RAFTDIR_ENOSPC);
        assert_int_equal(write_code(i, NOTHING), deletes ? 0 : RAFTDIR_ENOSPC);
        assert_int_equal(W.nodes[leader()].applied_commands, before + 2 * creates + 2 * deletes);
        assert_int_equal(limited(i), i == leader() && !creates);
    }
}

static void space(int id, enum node_space space_now)
{
    node_space_set(W.nodes[id].node, space_now);
    run(W.now + 3 * FRESHNESS_INTERVAL_MS); /* told */
}

static void the_leaders_own(void **state)
{
    (void)state;
    three();
    int l = leader();
    wanted(true, true);
    space(l, NODE_SPACE_LOW);
    wanted(false, true);
    space(l, NODE_SPACE_NONE);
    wanted(false, false);
    space(l, NODE_SPACE_LOW);
    wanted(false, true);
    space(l, NODE_SPACE_OK);
    wanted(true, true);
    assert_int_equal(leader(), l);
}

static void a_majority_must_have_space(void **state)
{
    (void)state;
    three();
    int l = leader(), a = l % 3 + 1, b = a % 3 + 1;
    space(a, NODE_SPACE_LOW);
    wanted(true, true); /* the other two do without it */
    space(a, NODE_SPACE_NONE);
    wanted(true, true);
    space(b, NODE_SPACE_LOW);
    wanted(false, true);
    space(b, NODE_SPACE_NONE);
    wanted(false, false); /* nobody could apply them */
    space(b, NODE_SPACE_LOW);
    space(a, NODE_SPACE_OK);
    wanted(true, true);
    space(l, NODE_SPACE_LOW);
    wanted(false, true);
    assert_int_equal(leader(), l);
}

/* A member that can't be reached is no help to those that are left. By itself it is no reason to refuse anything. */
static void who_is_away_is_no_help(void **state)
{
    (void)state;
    three();
    int l = leader(), a = l % 3 + 1, b = a % 3 + 1;
    W.nodes[b].cut = true;
    run(W.now + 1500);
    assert_int_equal(leader(), l);
    wanted(true, true);
    space(a, NODE_SPACE_LOW);
    wanted(false, true);
    W.nodes[b].cut = false;
    run(W.now + 500);
    wanted(true, true);
    /* The one that was short goes: what it said last doesn't count any more. */
    W.nodes[a].cut = true;
    run(W.now + 1500);
    wanted(true, true);
}

/* A new leader begins with what it knows, and doesn't refuse before the others have said anything. */
static void a_new_leader_admits(void **state)
{
    (void)state;
    struct write x;
    three();
    int old = leader();
    space(old, NODE_SPACE_LOW);
    assert_true(limited(old));
    W.nodes[old].cut = true;
    while (!leader() && W.now < 20000)
        run(W.now + 1);
    int l = leader();
    assert_true(l && l != old);
    write_kind(&x, l, CREATE, next_tag++, 3000);
    for (int i = 0; i < 100 && !x.times; i++)
        run(W.now + 5);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_false(limited(l));
}

/* What waits for a leader is refused when one comes that lacks space: it was never sent anywhere. What passes goes on. */
static void what_waits_is_looked_at(void **state)
{
    (void)state;
    struct write create, delete;
    three();
    int old = leader();
    for (int i = 1; i <= 3; i++)
        space(i, NODE_SPACE_LOW);
    W.nodes[old].cut = true;
    int f = old % 3 + 1;
    struct node_status s;
    do {
        run(W.now + 5);
        node_status_get(W.nodes[f].node, W.now, &s);
    } while (s.leader && W.now < 20000);
    write_kind(&create, f, CREATE, next_tag++, 5000);
    write_kind(&delete, f, DELETE, next_tag++, 5000);
    run(W.now + 3000);
    assert_true(leader() > 0);
    assert_int_equal(create.times, 1);
    assert_int_equal(create.code, RAFTDIR_ENOSPC);
    assert_int_equal(delete.times, 1);
    assert_int_equal(delete.code, 0);
}

/* What is in the log already, or may be, ends as it would have: a retry of it isn't a new write. */
static void what_is_on_its_way_passes(void **state)
{
    (void)state;
    struct write x, again, at_old;
    three();
    int l = leader();
    for (int i = 1; i <= 3; i++)
        W.nodes[i].deaf = true;
    write_kind(&x, l, CREATE, 5000, 5000);
    node_flush(W.nodes[l].node, W.now);
    space(l, NODE_SPACE_NONE);
    write_kind(&again, l, CREATE, 5000, 5000);
    run(W.now + 20);
    assert_int_equal(again.times, 0);
    for (int i = 1; i <= 3; i++)
        W.nodes[i].deaf = false;
    run(W.now + 100);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_int_equal(again.times, 1);
    assert_int_equal(again.code, 0);
    space(l, NODE_SPACE_OK);
    /* Proposed by a leader that loses its place; the next one lacks space, but whether it was done has to be found out. */
    W.nodes[l].cut = true;
    write_kind(&at_old, l, CREATE, 6000, 10000);
    node_flush(W.nodes[l].node, W.now);
    run(W.now + 2000);
    int now = leader();
    assert_true(now && now != l);
    for (int i = 1; i <= 3; i++)
        node_space_set(W.nodes[i].node, NODE_SPACE_LOW);
    W.nodes[l].cut = false;
    run(W.now + 2000);
    assert_int_equal(at_old.times, 0); /* refused, but that is no answer */
    for (int i = 1; i <= 3; i++)
        node_space_set(W.nodes[i].node, NODE_SPACE_OK);
    run(W.now + 2000);
    assert_int_equal(at_old.times, 1);
    assert_int_equal(at_old.code, 0);
}

/* A leader that comes back without space: what it had proposed goes on, what it only took meanwhile is refused. */
static void a_leader_again_without_space(void **state)
{
    (void)state;
    struct write proposed, waits;
    three();
    int l = leader(), a = l % 3 + 1, b = a % 3 + 1;
    W.nodes[a].cut = W.nodes[b].cut = true;
    write_kind(&proposed, l, CREATE, next_tag++, 30000);
    run(W.now + 3000);
    assert_int_equal(leader(), 0);
    write_kind(&waits, l, CREATE, next_tag++, 30000);
    node_space_set(W.nodes[l].node, NODE_SPACE_LOW);
    W.nodes[a].cut = false; /* its log is shorter: only l can lead */
    while (!leader() && W.now < 20000)
        run(W.now + 1);
    run(W.now + 200);
    assert_int_equal(leader(), l);
    assert_int_equal(proposed.times, 1);
    assert_int_equal(proposed.code, 0);
    assert_int_equal(waits.times, 1);
    assert_int_equal(waits.code, RAFTDIR_ENOSPC);
}

/* A leader that has lost its majority, and doesn't know it yet, isn't short of space. */
static void nobody_to_be_reached_is_another_matter(void **state)
{
    (void)state;
    struct write x;
    W.options.election_timeout_ms = 5000;
    for (unsigned i = 1; i <= 3; i++)
        node_make(i, 3);
    run(W.now + 20000);
    int l = leader();
    assert_true(l > 0);
    W.nodes[l % 3 + 1].cut = W.nodes[(l + 1) % 3 + 1].cut = true;
    run(W.now + 2 * SPACE_TOLD);
    assert_int_equal(leader(), l);
    assert_false(limited(l));
    write_kind(&x, l, CREATE, next_tag++, 500);
    run(W.now + 1000);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, RAFTDIR_EUNCERTAIN);
}

/* Apply stands still at the leader: so many bytes are proposed and no more. What never got into the log is surely not done. */
static void a_full_log_takes_no_more(void **state)
{
    (void)state;
    enum { N = 60 };
    static struct write x[N];
    struct node_status s;
    W.options.log_unapplied_len_max = 2000;
    three();
    int l = leader();
    node_status_get(W.nodes[l].node, W.now, &s);
    uint64_t last = s.last_index;
    W.nodes[l].stalled = true;
    for (int i = 0; i < N; i++) {
        write_kind(&x[i], l, CREATE, next_tag++, 1000);
        run(W.now + 1);
    }
    node_status_get(W.nodes[l].node, W.now, &s);
    assert_true(s.last_index > last && s.last_index < last + 30);
    last = s.last_index;
    run(W.now + 2000);
    node_status_get(W.nodes[l].node, W.now, &s);
    assert_int_equal(s.last_index, last);
    int uncertain = 0, refused = 0;
    for (int i = 0; i < N; i++) {
        assert_int_equal(x[i].times, 1);
        uncertain += x[i].code == RAFTDIR_EUNCERTAIN;
        refused += x[i].code == RAFTDIR_ELIMIT;
    }
    assert_true(uncertain > 0 && refused > 0 && uncertain + refused == N);
    struct write waits;
    write_kind(&waits, l, CREATE, next_tag++, 5000);
    run(W.now + 100);
    assert_int_equal(waits.times, 0);
    W.nodes[l].stalled = false;
    run(W.now + 200);
    assert_int_equal(waits.times, 1);
    assert_int_equal(waits.code, 0);
    assert_int_equal(W.nodes[l].applied_commands, (unsigned)uncertain + 1);
    wanted(true, true);
}

/* Writes that wait at a node take a bounded amount of memory. */
static void waiting_bytes_are_bounded(void **state)
{
    (void)state;
    enum { N = WRITES_INFLIGHT_LEN_MAX / REQUEST_LEN_MAX + 3 };
    static struct write x[N];
    uint8_t *big = calloc(1, REQUEST_LEN_MAX);
    assert_non_null(big);
    node_make(1, 3); /* by itself */
    for (uint32_t i = 0; i < N; i++) {
        memset(&x[i], 0, sizeof x[i]);
        memcpy(x[i].w.op_id, &i, sizeof i);
        x[i].w.request = big;
        x[i].w.request_len = REQUEST_LEN_MAX;
        x[i].w.deadline_ms = W.now + 100;
        node_write(W.nodes[1].node, W.now, &x[i].w);
    }
    node_flush(W.nodes[1].node, W.now);
    for (int i = 0; i < N; i++) {
        assert_int_equal(x[i].times, i >= N - 3);
        assert_true(!x[i].times || x[i].code == RAFTDIR_ELIMIT);
    }
    run(W.now + 200);
    for (int i = 0; i < N; i++)
        assert_int_equal(x[i].times, 1);
    x[0].times = 0; /* there is room again */
    x[0].w.deadline_ms = W.now + 100;
    node_write(W.nodes[1].node, W.now, &x[0].w);
    node_flush(W.nodes[1].node, W.now);
    assert_int_equal(x[0].times, 0);
    run(W.now + 200);
    assert_int_equal(x[0].code, RAFTDIR_ENOQUORUM);
    free(big);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(the_leaders_own), T(a_majority_must_have_space), T(who_is_away_is_no_help), T(a_new_leader_admits), T(what_waits_is_looked_at), T(what_is_on_its_way_passes),
        T(a_leader_again_without_space), T(nobody_to_be_reached_is_another_matter), T(a_full_log_takes_no_more), T(waiting_bytes_are_bounded),
    };
    return cmocka_run_group_tests_name("node_space", tests, NULL, NULL);
}
