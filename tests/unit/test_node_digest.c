/* test_node_digest.c - digests of the members, compared: who is wrong, and who is told. The world is node_world.h's; a node with a `flaw` has other digests than one
 * without. */
#include "node_world.h"

#define FIRST DIGEST_INTERVAL

/* Its state is one at `index`, and its log begins after that. The first members vote, the others stand by. */
static void member_at(uint64_t id, unsigned voters, unsigned standbys, uint64_t index)
{
    struct world_node *n = &W.nodes[id];
    struct raft_configuration c;
    struct raft_buffer b;
    char address[NODE_ADDRESS_SIZE];
    memset(n, 0, sizeof *n);
    n->id = id;
    n->log_tail = &n->log;
    n->apply_tail = &n->apply;
    raft_configuration_init(&c);
    for (unsigned i = 1; i <= voters + standbys; i++) {
        address_of(i, address);
        assert_int_equal(raft_configuration_add(&c, i, address, i <= voters ? RAFT_VOTER : RAFT_STANDBY), 0);
    }
    assert_int_equal(raft_configuration_encode(&c, &b), 0);
    n->conf = malloc(b.len);
    assert_non_null(n->conf);
    memcpy(n->conf, b.base, b.len);
    n->conf_len = b.len;
    raft_free(b.base);
    raft_configuration_close(&c);
    n->term = 1;
    n->disk_first = index + 1;
    n->synced = n->log_cut = index;
    n->meta = (struct store_meta){.applied_index = index, .applied_term = 1, .feature_level = 1, .member_id_max = voters + standbys, .configuration_index = 1};
}

/* All of them, a few entries before the first checkpoint; flaws[i] is that of member i + 1. */
static void cluster(unsigned voters, unsigned standbys, const char *flaws)
{
    for (unsigned i = 1; i <= voters + standbys; i++) {
        member_at(i, voters, standbys, FIRST - 3);
        W.nodes[i].flaw = (uint8_t)(flaws[i - 1] - '0');
    }
    for (unsigned i = 1; i <= voters + standbys; i++)
        node_open(i);
    run(W.now + 1000);
    assert_true(leader() > 0);
    for (unsigned i = 1; i <= voters + standbys; i++)
        assert_true(!W.nodes[i].failed && W.nodes[i].meta.applied_index < FIRST);
}

/* Writes until the leader has applied that. */
static void write_to(uint64_t index)
{
    struct write x;
    for (int guard = 0; W.nodes[leader()].meta.applied_index < index; guard++) {
        assert_true(guard < 3 * DIGEST_INTERVAL);
        write_start(&x, leader(), (uint32_t)guard + 1, 5000);
        for (int i = 0; i < 100 && !x.times; i++)
            run(W.now + 1);
        assert_int_equal(x.times, 1);
        if (!leader()) /* it was the one that is wrong */
            return;
    }
}

static uint64_t differs(int id, uint64_t *index_r)
{
    struct node_status s;
    node_status_get(W.nodes[id].node, W.now, &s);
    *index_r = s.differs_index;
    return s.differs_id;
}

static bool undecided(int id)
{
    struct node_status s;
    node_status_get(W.nodes[id].node, W.now, &s);
    return s.differs_undecided;
}

static void nobody_failed(void)
{
    for (int i = 1; i <= NODES; i++)
        assert_int_equal(W.nodes[i].failed, 0);
}

static void all_agree(void **state)
{
    (void)state;
    uint64_t index;
    cluster(3, 1, "0000");
    write_to(FIRST + 1);
    run(W.now + 10000);
    nobody_failed();
    for (int i = 1; i <= 4; i++) {
        assert_int_equal(W.nodes[i].digests_n, 1);
        assert_int_equal(W.nodes[i].alarms, 0);
        assert_int_equal(differs(i, &index), 0);
    }
}

/* Whichever it is, the leader among them. */
static void the_minority_fails(void **state)
{
    (void)state;
    for (int wrong = 1; wrong <= 3; wrong++) {
        char flaws[4] = "000", text[64];
        uint64_t index;
        flaws[wrong - 1] = '1';
        cluster(3, 0, flaws);
        write_to(FIRST);
        run(W.now + 2000);
        const struct world_node *n = &W.nodes[wrong];
        assert_int_equal(n->failed, RAFTDIR_ECORRUPT);
        assert_int_equal(n->alarms, 0);
        snprintf(text, sizeof text, "at index %d ", FIRST);
        assert_non_null(strstr(n->why, text));
        assert_non_null(strstr(n->why, "01010101010101010101010101010101"));
        assert_non_null(strstr(n->why, "01000000000000000000000000000000"));
        snprintf(text, sizeof text, "2 of 3 voters (members %d, %d)", wrong == 1 ? 2 : 1, wrong == 3 ? 2 : 3);
        assert_non_null(strstr(n->why, text));
        assert_non_null(strstr(n->why, "raftdirctl cluster rebuild"));
        for (int i = 1; i <= 3; i++) {
            if (i == wrong)
                continue;
            assert_int_equal(W.nodes[i].failed, 0);
            assert_true(W.nodes[i].alarms <= 1); /* none, if it failed before it had told */
            if (!W.nodes[i].alarms)
                continue;
            snprintf(text, sizeof text, "member %d differs from the majority and should stop by itself", wrong);
            assert_non_null(strstr(W.nodes[i].alarm, text));
            assert_int_equal(differs(i, &index), wrong);
            assert_int_equal(index, FIRST);
            assert_false(undecided(i)); /* these two may send images */
        }
        assert_true(leader() > 0 && leader() != wrong);
        write_to(FIRST + 5);
        teardown(NULL);
        setup(NULL);
    }
}

static void one_against_one_is_an_alarm(void **state)
{
    (void)state;
    uint64_t index;
    cluster(2, 0, "01");
    write_to(FIRST);
    run(W.now + 100); /* both have spoken: nothing to wait for */
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(W.nodes[i].alarms, 1);
        assert_non_null(strstr(W.nodes[i].alarm, "no majority of the 2 voters"));
        assert_int_equal(differs(i, &index), 3 - i);
        assert_int_equal(index, FIRST);
        assert_true(undecided(i));
    }
    run(W.now + 10000);
    write_to(2 * FIRST); /* still so: no other alarm */
    run(W.now + 100);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(W.nodes[i].alarms, 1);
        assert_int_equal(differs(i, &index), 3 - i);
        assert_int_equal(index, 2 * FIRST);
    }
    nobody_failed();
}

static void agreeing_again_ends_it(void **state)
{
    (void)state;
    uint64_t index;
    cluster(2, 0, "01");
    write_to(FIRST);
    run(W.now + 100);
    assert_int_equal(W.nodes[1].alarms, 1);
    W.nodes[2].flaw = 0;
    write_to(2 * FIRST);
    run(W.now + 100);
    nobody_failed();
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(differs(i, &index), 0);
        assert_false(undecided(i));
        assert_string_equal(W.nodes[i].alarm, "");
    }
    W.nodes[2].flaw = 2;
    write_to(3 * FIRST);
    run(W.now + 100);
    for (int i = 1; i <= 2; i++)
        assert_int_equal(W.nodes[i].alarms, 2); /* a new one */
}

static void two_against_two_is_an_alarm(void **state)
{
    (void)state;
    cluster(4, 0, "0011");
    write_to(FIRST);
    run(W.now + 5000);
    nobody_failed();
    for (int i = 1; i <= 4; i++) {
        assert_int_equal(W.nodes[i].alarms, 2);
        assert_non_null(strstr(W.nodes[i].alarm, "no majority of the 4 voters"));
    }
}

static void all_different_is_an_alarm(void **state)
{
    (void)state;
    cluster(3, 0, "012");
    write_to(FIRST);
    run(W.now + 5000);
    nobody_failed();
    for (int i = 1; i <= 3; i++)
        assert_int_equal(W.nodes[i].alarms, 2);
}

/* 2 : 2 becomes 2 : 1 when a member is removed. */
static void another_majority_is_looked_at(void **state)
{
    (void)state;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    struct change x;
    uint64_t index;
    cluster(4, 0, "0011");
    write_to(FIRST);
    run(W.now + 2000);
    nobody_failed();
    int gone = leader() == 4 ? 3 : 4, other = 7 - gone;
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
    q.remove = (uint64_t)gone;
    change_and_wait(&x, leader(), &q);
    assert_int_equal(x.code, 0);
    run(W.now + 2000);
    assert_int_equal(W.nodes[other].failed, RAFTDIR_ECORRUPT);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(W.nodes[i].failed, 0);
        assert_int_equal(differs(i, &index), other);
        assert_non_null(strstr(W.nodes[i].alarm, "differs from the majority"));
    }
}

/* A voter that is only late isn't worth an alarm. When it comes, it decides. */
static void the_third_one_decides(void **state)
{
    (void)state;
    uint64_t index;
    cluster(3, 0, "012");
    int l = leader(), late = l % 3 + 1, f = late % 3 + 1;
    W.nodes[late].flaw = W.nodes[l].flaw;
    W.nodes[late].cut = true;
    write_to(FIRST);
    uint64_t at = W.now;
    run(at + 2500);
    for (int i = 1; i <= 3; i++)
        assert_int_equal(W.nodes[i].alarms, 0);
    assert_int_equal(differs(l, &index), f); /* known at once */
    run(at + 3500);
    assert_int_equal(W.nodes[l].alarms, 1);
    assert_int_equal(W.nodes[f].alarms, 1);
    assert_non_null(strstr(W.nodes[l].alarm, "no majority of the 3 voters"));
    run(at + 10000);
    assert_int_equal(W.nodes[l].alarms, 1);
    nobody_failed();
    W.nodes[late].cut = false;
    run(W.now + 3000);
    assert_int_equal(W.nodes[f].failed, RAFTDIR_ECORRUPT);
    assert_int_equal(W.nodes[l].alarms, 2);
    assert_non_null(strstr(W.nodes[l].alarm, "differs from the majority"));
    assert_int_equal(W.nodes[late].alarms, 1);
}

/* And a third one that comes in time spares the alarm. */
static void in_time_spares_the_alarm(void **state)
{
    (void)state;
    cluster(3, 0, "012");
    int l = leader(), late = l % 3 + 1, f = late % 3 + 1;
    W.nodes[late].flaw = W.nodes[l].flaw;
    W.nodes[late].stalled = true;
    write_to(FIRST);
    run(W.now + 1500);
    W.nodes[late].stalled = false;
    run(W.now + 10000);
    assert_int_equal(W.nodes[f].failed, RAFTDIR_ECORRUPT);
    assert_int_equal(W.nodes[f].alarms, 0);
    assert_int_equal(W.nodes[l].alarms, 1);
    assert_non_null(strstr(W.nodes[l].alarm, "differs from the majority"));
}

static void a_standby_that_is_wrong_fails(void **state)
{
    (void)state;
    for (unsigned voters = 1; voters <= 3; voters++) {
        char flaws[5] = "0000";
        flaws[voters] = '1';
        cluster(voters, 1, flaws);
        write_to(FIRST);
        run(W.now + 2000);
        assert_int_equal(W.nodes[voters + 1].failed, RAFTDIR_ECORRUPT);
        for (unsigned i = 1; i <= voters; i++) {
            assert_int_equal(W.nodes[i].failed, 0);
            assert_true(!W.nodes[i].alarms || strstr(W.nodes[i].alarm, "differs from the majority"));
        }
        teardown(NULL);
        setup(NULL);
    }
}

/* Three against one, but only voters count: 1 : 1. */
static void standbys_have_no_say(void **state)
{
    (void)state;
    cluster(2, 2, "1000");
    write_to(FIRST);
    run(W.now + 5000);
    nobody_failed();
    assert_int_equal(W.nodes[1].alarms, 3);
    for (int i = 2; i <= 4; i++) {
        assert_int_equal(W.nodes[i].alarms, 1);
        assert_non_null(strstr(W.nodes[i].alarm, "no majority of the 2 voters"));
    }
}

/* Apply is behind: what the others told meanwhile is compared when it gets there. */
static void who_is_late_compares_with_what_was_told(void **state)
{
    (void)state;
    cluster(3, 0, "000");
    int slow = leader() % 3 + 1;
    W.nodes[slow].flaw = 3;
    W.nodes[slow].stalled = true;
    write_to(2 * FIRST + 5);
    run(W.now + 3000);
    nobody_failed();
    W.checkpoints_lost = true; /* nothing is told any more */
    assert_non_null(W.nodes[slow].apply);
    W.nodes[slow].stalled = false;
    run(W.now + 20);
    assert_int_equal(W.nodes[slow].failed, RAFTDIR_ECORRUPT);
    assert_non_null(strstr(W.nodes[slow].why, "at index 1024 "));
}

static void what_is_lost_is_told_again(void **state)
{
    (void)state;
    cluster(3, 0, "010");
    W.checkpoints_lost = true;
    write_to(FIRST + 5);
    run(W.now + 5000);
    nobody_failed();
    W.checkpoints_lost = false;
    run(W.now + CHECKPOINT_REPEAT_MS + 100);
    assert_int_equal(W.nodes[2].failed, RAFTDIR_ECORRUPT);
}

/* A node with an old state finds out, though the others have long gone on: they tell it where it stands. And a wrong one that is started again fails again. */
static void an_old_state_is_compared(void **state)
{
    (void)state;
    for (int i = 1; i <= 3; i++) {
        member_at((uint64_t)i, 3, 0, (i == 3 ? 10 : 40) * FIRST + 5);
        W.nodes[i].flaw = i == 3;
        for (uint64_t k = 1; k <= (i == 3 ? 10 : 40); k++)
            digest_record(&W.nodes[i], k * FIRST);
    }
    for (uint64_t i = 1; i <= 3; i++)
        node_open(i);
    for (int again = 0; again < 2; again++) {
        uint64_t at = W.now;
        while (!W.nodes[3].failed && W.now < at + 2 * CHECKPOINT_REPEAT_MS)
            run(W.now + 10);
        assert_int_equal(W.nodes[3].failed, RAFTDIR_ECORRUPT);
        const char *where = strstr(W.nodes[3].why, "at index ");
        assert_non_null(where);
        unsigned long index = strtoul(where + 9, NULL, 10);
        assert_true(index % FIRST == 0 && index > 2 * FIRST && index <= 10 * FIRST);
        W.nodes[3].failed = 0;
        node_reboot(3);
    }
    assert_int_equal(W.nodes[1].failed, 0);
    assert_int_equal(W.nodes[2].failed, 0);
}

/* After a restart the digests of the state count, before anything is written. */
static void the_state_at_boot_counts(void **state)
{
    (void)state;
    cluster(3, 0, "000");
    write_to(FIRST + 5);
    int f = leader() % 3 + 1;
    W.nodes[f].digests[0].digest[5] ^= 1;
    run(W.now + 3000);
    nobody_failed(); /* it hasn't looked again */
    node_reboot((uint64_t)f);
    run(W.now + 1000);
    assert_int_equal(W.nodes[f].failed, RAFTDIR_ECORRUPT);
}

static void who_is_removed_is_forgotten(void **state)
{
    (void)state;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    struct change x;
    uint64_t index;
    cluster(2, 2, "0012");
    write_to(FIRST);
    run(W.now + 1000);
    assert_int_equal(W.nodes[3].failed, RAFTDIR_ECORRUPT);
    assert_int_equal(W.nodes[4].failed, RAFTDIR_ECORRUPT);
    assert_int_equal(W.nodes[1].alarms, 2);
    /* First the one whose alarm is to be seen; then the other's is, again. */
    uint64_t first = strstr(W.nodes[1].alarm, "member 3 ") ? 3 : 4, second = 7 - first;
    char text[32];
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
    q.remove = first;
    change_and_wait(&x, leader(), &q);
    assert_int_equal(x.code, 0);
    run(W.now + 1000);
    assert_int_equal(differs(1, &index), second);
    snprintf(text, sizeof text, "member %d ", (int)second);
    assert_non_null(strstr(W.nodes[1].alarm, text));
    assert_int_equal(W.nodes[1].alarms, 3);
    assert_int_equal(W.nodes[1].alarm_ends, 0);
    q.remove = second;
    change_and_wait(&x, leader(), &q);
    assert_int_equal(x.code, 0);
    run(W.now + 1000);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(differs(i, &index), 0);
        assert_string_equal(W.nodes[i].alarm, "");
        assert_int_equal(W.nodes[i].failed, 0);
    }
    assert_int_equal(W.nodes[1].alarm_ends, 1);
}

static void a_sole_voter_tells_nobody(void **state)
{
    (void)state;
    cluster(1, 0, "1");
    write_to(FIRST + 5);
    run(W.now + 5000);
    nobody_failed();
    assert_int_equal(W.checkpoints, 0);
    assert_int_equal(W.nodes[1].alarms, 0);
}

/* At rest: a frame to each of the others in CHECKPOINT_REPEAT_MS. */
static void repeats_are_few(void **state)
{
    (void)state;
    cluster(3, 0, "000");
    write_to(FIRST);
    run(W.now + 2000);
    unsigned before = W.checkpoints;
    run(W.now + 10000);
    unsigned now = W.checkpoints - before;
    assert_true(now >= 6 * 9 && now <= 6 * 10);
}

static struct node_status status_of(int id)
{
    struct node_status s;
    node_status_get(W.nodes[id].node, W.now, &s);
    return s;
}

/* From a member to node 1. */
static void say(uint64_t from, size_t n, const uint64_t *indexes, size_t digest_len, uint8_t flaw)
{
    Raftdir__Peer__Frame f = RAFTDIR__PEER__FRAME__INIT;
    Raftdir__Peer__Checkpoints body = RAFTDIR__PEER__CHECKPOINTS__INIT;
    Raftdir__Peer__Checkpoint items[2 * CHECKPOINTS_PER_FRAME], *list[2 * CHECKPOINTS_PER_FRAME];
    uint8_t digests[2 * CHECKPOINTS_PER_FRAME][32], frame[2048];
    for (size_t i = 0; i < n; i++) {
        raftdir__peer__checkpoint__init(&items[i]);
        memset(digests[i], flaw, sizeof digests[i]);
        digests[i][0] = (uint8_t)(indexes[i] / DIGEST_INTERVAL);
        items[i].index = indexes[i];
        items[i].digest.data = digests[i];
        items[i].digest.len = digest_len;
        list[i] = &items[i];
    }
    f.version = PEER_FRAME_VERSION;
    f.cluster_id = CLUSTER;
    f.incarnation = INCARNATION;
    f.from = from;
    f.to = 1;
    f.body_case = RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS;
    f.checkpoints = &body;
    body.checkpoints = list;
    body.n_checkpoints = n;
    assert_true(raftdir__peer__frame__get_packed_size(&f) <= sizeof frame);
    size_t len = raftdir__peer__frame__pack(&f, frame);
    node_receive(W.nodes[1].node, W.now, from, frame, len);
}

static void bad_frames_are_dropped(void **state)
{
    (void)state;
    static const struct {
        uint64_t from, indexes[9];
        size_t n, digest_len;
    } rows[] = {
        {2, {FIRST}, 1, 15},
        {2, {FIRST}, 1, 17},
        {2, {FIRST}, 1, 0},
        {2, {FIRST + 1}, 1, 16},
        {2, {0}, 1, 16},
        {2, {UINT64_MAX}, 1, 16},
        {2, {0, FIRST}, 2, 16},
        {2, {FIRST, FIRST}, 2, 16},
        {2, {2 * FIRST, FIRST}, 2, 16},
        {2, {FIRST, 2 * FIRST + 1}, 2, 16},
        {2, {FIRST, 2 * FIRST, 3 * FIRST, 4 * FIRST, 5 * FIRST, 6 * FIRST, 7 * FIRST, 8 * FIRST, 9 * FIRST}, 9, 16},
        {2, {0}, 0, 16},
        {4, {FIRST}, 1, 16}, /* no member */
    };
    for (int i = 1; i <= 2; i++)
        member_at((uint64_t)i, 2, 0, FIRST + 5);
    digest_record(&W.nodes[1], FIRST);
    node_open(1);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        say(rows[i].from, rows[i].n, rows[i].indexes, rows[i].digest_len, 7);
        struct node_status s = status_of(1);
        if (s.frames_dropped != i + 1 || s.differs_id)
            fail_msg("row %zu: %d frames dropped", i, (int)s.frames_dropped);
    }
    say(2, 8, rows[10].indexes, 16, 7); /* the same, but it fits: this one counts */
    assert_int_equal(status_of(1).frames_dropped, sizeof rows / sizeof *rows);
    assert_int_equal(status_of(1).differs_id, 2);
    assert_int_equal(W.nodes[1].alarms, 1);
}

/* Whatever a member says, little of it is kept; the newest of it. What it says again counts. */
static void what_is_kept_is_bounded(void **state)
{
    (void)state;
    for (int i = 1; i <= 2; i++)
        member_at((uint64_t)i, 2, 0, 3 * FIRST + 5);
    for (uint64_t k = 1; k <= 3; k++)
        digest_record(&W.nodes[1], k * FIRST);
    node_open(1);
    uint64_t index = 2 * FIRST;
    say(2, 1, &index, 16, 1);
    assert_int_equal(status_of(1).differs_index, 2 * FIRST);
    say(2, 1, &index, 16, 0);
    assert_int_equal(status_of(1).differs_id, 0);
    index = 3 * FIRST;
    say(2, 1, &index, 16, 1);
    index = FIRST;
    say(2, 1, &index, 16, 0); /* older, and late: the newer one counts */
    assert_int_equal(status_of(1).differs_index, 3 * FIRST);
    /* Far ahead, again and again: room for these pushes out what both have, and what was known of it stands. */
    for (uint64_t k = 4; k < 4 + 3 * DIGESTS_KEPT; k++) {
        index = k * FIRST;
        say(2, 1, &index, 16, 0);
    }
    assert_int_equal(status_of(1).differs_id, 2);
    index = 3 * FIRST; /* too old to be kept by now */
    say(2, 1, &index, 16, 0);
    assert_int_equal(status_of(1).differs_id, 2);
    assert_int_equal(status_of(1).frames_dropped, 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(all_agree), T(the_minority_fails), T(one_against_one_is_an_alarm), T(agreeing_again_ends_it), T(two_against_two_is_an_alarm), T(all_different_is_an_alarm),
        T(another_majority_is_looked_at), T(the_third_one_decides), T(in_time_spares_the_alarm), T(a_standby_that_is_wrong_fails), T(standbys_have_no_say),
        T(who_is_late_compares_with_what_was_told), T(what_is_lost_is_told_again), T(an_old_state_is_compared), T(the_state_at_boot_counts),
        T(who_is_removed_is_forgotten), T(a_sole_voter_tells_nobody), T(repeats_are_few), T(bad_frames_are_dropped), T(what_is_kept_is_bounded),
    };
    return cmocka_run_group_tests_name("node_digest", tests, NULL, NULL);
}
