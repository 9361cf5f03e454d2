/* test_node.c - the driver's promises, one at a time, in a tiny world: no disk, no LMDB, a network that delivers in order at once.
 *
 * The simulation (tests/sim) looks for what nobody thought of; this says what each call promises. */
#include "node_world.h"

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

/* Followers hear of a commit when it is one, not with the next heartbeat: readers and watchers there wait for it. At each moment between two heartbeats. */
static void followers_hear_of_a_commit_at_once(void **state)
{
    (void)state;
    three();
    for (int i = 0; i < HEARTBEAT_MS; i++) {
        struct write x;
        unsigned before = W.nodes[1].applied_commands;
        write_start(&x, i % 3 + 1, (uint32_t)(100 + i), 5000);
        run(W.now + AT_ONCE_MS);
        assert_int_equal(x.times, 1);
        assert_int_equal(x.code, 0);
        for (int k = 1; k <= 3; k++)
            assert_int_equal(W.nodes[k].applied_commands, before + 1);
        run(W.now + HEARTBEAT_MS + 1);
    }
}

static void sole_node_leads_and_writes(void **state)
{
    (void)state;
    struct write x;
    struct world_read r = {.r.deadline_ms = W.now + 3000};
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
        struct world_read r = {.r.deadline_ms = W.now + 3000};
        node_read(W.nodes[i].node, W.now, &r.r);
        assert_int_equal(r.times, 0);
        run(W.now + 100);
        assert_int_equal(r.times, 1);
        assert_int_equal(r.code, 0);
        assert_true(r.index >= x.index);
    }
    struct world_read r = {.r.deadline_ms = W.now + 2000};
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
    static struct world_read reads[N];
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

/* One that died a moment ago was heard of lately, and counts for nothing. Asked by way of the voter that is to go, or of the leader, or demoted: the reason comes
 * soon, and nothing has changed. */
static void a_voter_that_has_just_died_is_no_quorum(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct change x;
        Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
        three();
        int l = leader(), a = l % 3 + 1, b = 6 - l - a;
        run(W.now + 500);
        W.nodes[a].cut = true;
        q.op_case = i == 2 ? RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE : RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
        q.remove = (uint64_t)b; /* an id, as demote is */
        member_op(&x, i == 0 ? b : l, &q);
        x.m.deadline_ms = W.now + 20000;
        run(W.now + 5000);
        assert_int_equal(x.times, 1);
        assert_int_equal(x.code, RAFTDIR_ENOQUORUM);
        W.nodes[a].cut = false;
        run(W.now + 2000);
        change_and_wait(&x, leader(), &q); /* now it may */
        assert_int_equal(x.code, 0);
        assert_int_equal(x.members, i == 2 ? 3 : 2);
        teardown(NULL);
        setup(NULL);
    }
}

/* Nothing is written for hours, then a majority is restarted and leads: log time goes on from the last entry, and the node that wasn't restarted follows. What it
 * tells clients is what they compute expiries from. */
static void log_time_follows_the_leader(void **state)
{
    (void)state;
    struct write x;
    struct node_status leads, follows;
    three();
    write_start(&x, leader(), 1, 5000);
    run(W.now + 500);
    assert_int_equal(x.code, 0);
    W.now += 4 * OP_TTL_MAX_MS;
    run(W.now + 3000);
    int f = leader() % 3 + 1;
    node_status_get(W.nodes[f].node, W.now, &follows);
    assert_true(follows.log_time_ms >= 4 * OP_TTL_MAX_MS);
    W.nodes[f].cut = true;
    for (int i = 1; i <= 3; i++)
        if (i != f)
            node_reboot((uint64_t)i);
    run(W.now + 3000);
    W.nodes[f].cut = false;
    run(W.now + 1000);
    assert_int_not_equal(leader(), f);
    node_status_get(W.nodes[leader()].node, W.now, &leads);
    node_status_get(W.nodes[f].node, W.now, &follows);
    assert_true(leads.log_time_ms < OP_TTL_MAX_MS);
    assert_true(follows.log_time_ms < leads.log_time_ms + OP_TTL_DEFAULT_MS);
    write_start(&x, f, 2, 5000);
    run(W.now + 500);
    assert_int_equal(x.code, 0);
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
    node_stop(&W.nodes[f]);
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
        T(any_node_takes_a_write), T(followers_hear_of_a_commit_at_once), T(sole_node_leads_and_writes), T(writes_move_to_the_next_leader_at_once), T(a_deposed_leader_resubmits),
        T(no_quorum_is_no_maybe), T(a_refusal_of_the_second_time_is_no_end), T(expired_the_second_time_is_uncertain), T(a_change_in_the_log_is_uncertain), T(a_read_needs_a_quorum_now), T(many_reads_of_a_stalled_leader), T(age_grows_when_cut_off), T(a_cluster_grows_moves_and_shrinks),
        T(a_removal_keeps_a_quorum), T(a_voter_that_has_just_died_is_no_quorum), T(a_transfer_moves_once), T(a_log_put_back_is_noticed), T(log_time_follows_the_leader), T(a_node_knows_its_place), T(garbage_is_dropped), T(addresses),
    };
    return cmocka_run_group_tests_name("node", tests, NULL, NULL);
}
