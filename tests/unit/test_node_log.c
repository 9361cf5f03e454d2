/* test_node_log.c - the log that begins above 1: what is cut, who needs an image and gets on with it, what is held, what is bounded. The world is node_world.h. */
#include "node_world.h"
#include "raftdir/node_internal.h"

#define KEEP 64
#define SYNC_EVERY 8
/* What is kept, a sixteenth, one sync, and what isn't applied yet. */
#define KEEP_AT_MOST (KEEP + KEEP / 16 + SYNC_EVERY + 8)

static int world(void **state)
{
    setup(state);
    W.options.log_keep_entries = KEEP;
    W.sync_every = SYNC_EVERY;
    return 0;
}

static struct node_status status(int id)
{
    struct node_status s;
    node_status_get(W.nodes[id].node, W.now, &s);
    return s;
}

static uint32_t next_tag = 1000;

/* One entry each; all must succeed. */
static void writes(int node, int count)
{
    static struct write x;
    for (int i = 0; i < count; i++) {
        write_start(&x, node, next_tag++, 5000);
        for (int k = 0; k < 5000 && !x.times; k++)
            run(W.now + 1);
        assert_int_equal(x.times, 1);
        assert_int_equal(x.code, 0);
    }
}

static void equal(int a, int b)
{
    assert_int_equal(W.nodes[a].failed, 0);
    assert_int_equal(W.nodes[b].failed, 0);
    assert_int_equal(status(a).applied_index, status(b).applied_index);
    assert_int_equal(status(a).last_index, status(b).last_index);
    assert_int_equal(W.nodes[a].meta.log_time_ms, W.nodes[b].meta.log_time_ms);
}

/* Of three: the leader, a follower that is cut off until the others' logs begin after its own, and the other one. */
static void lagging(int *l, int *f, int *o)
{
    three();
    *l = leader();
    *f = *l % 3 + 1;
    *o = 6 - *l - *f;
    writes(*l, 5);
    W.nodes[*f].cut = true;
    writes(*l, 3 * KEEP);
    assert_true(status(*l).log_first > status(*f).last_index + 1);
    W.nodes[*f].cut = false;
}

static void image_frame(int from, int to, uint64_t term, uint64_t index, uint64_t index_term)
{
    Raftdir__Peer__Frame f = RAFTDIR__PEER__FRAME__INIT;
    Raftdir__Peer__InstallSnapshot b = RAFTDIR__PEER__INSTALL_SNAPSHOT__INIT;
    uint8_t buf[256];
    f.version = PEER_FRAME_VERSION;
    f.cluster_id = CLUSTER;
    f.incarnation = INCARNATION;
    f.from = (uint64_t)from;
    f.to = (uint64_t)to;
    f.body_case = RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT;
    f.install_snapshot = &b;
    b.term = term;
    b.last_index = index;
    b.last_term = index_term;
    assert_true(raftdir__peer__frame__get_packed_size(&f) <= sizeof buf);
    size_t len = raftdir__peer__frame__pack(&f, buf);
    node_receive(W.nodes[to].node, W.now, (uint64_t)from, buf, len);
}

/* --- What is cut -------------------------------------------------------------------------------------------------------------- */

static void the_log_is_cut_behind_what_is_kept(void **state)
{
    (void)state;
    three();
    int l = leader();
    for (int i = 0; i < 12; i++) {
        writes(i % 3 + 1, 25);
        for (int k = 1; k <= 3; k++) {
            struct node_status s = status(k);
            uint64_t held = s.last_index + 1 - s.log_first;
            assert_true(held <= KEEP_AT_MOST);
            assert_true(s.log_first == 1 || held >= KEEP);
            assert_true(s.log_first == 1 || s.log_first == W.nodes[k].log_cut + 1);
            assert_int_equal(W.nodes[k].failed, 0);
        }
    }
    assert_true(status(l).log_first > 1);
    assert_int_equal(leader(), l);
    assert_int_equal(W.manifests, 0);
    /* From a disk whose log begins above 1, with more on it than was kept in memory. */
    for (int k = 1; k <= 3; k++) {
        uint64_t first = status(k).log_first, applied = status(k).applied_index;
        node_reboot((uint64_t)k);
        assert_true(status(k).log_first > 1 && status(k).log_first <= first);
        assert_int_equal(status(k).applied_index, applied);
        run(W.now + 1500);
        assert_true(leader());
        writes(leader(), 30);
    }
    run(W.now + 500);
    equal(1, 2);
    equal(2, 3);
    assert_int_equal(W.manifests, 0);
}

/* By bytes as well: whichever is reached first. */
static void the_log_is_cut_by_length(void **state)
{
    (void)state;
    W.options.log_keep_len = 4096;
    W.options.log_keep_entries = 1000000;
    three();
    writes(leader(), 200);
    for (int k = 1; k <= 3; k++) {
        struct node_status s = status(k);
        assert_true(s.log_first > 1);
        assert_true(s.log_bytes >= 4096);
        assert_true(s.log_bytes <= 4096 + 256 + (SYNC_EVERY + 8) * 150);
    }
}

/* Told of a sync before it is told of the batch. */
static void a_sync_waits_for_its_batch(void **state)
{
    (void)state;
    W.sync_every = 0;
    three();
    int l = leader(), f = l % 3 + 1;
    writes(l, KEEP);
    W.nodes[f].stalled = true;
    writes(l, 2 * KEEP);
    struct world_node *n = &W.nodes[f];
    struct node_synced s = {.index = status(f).commit_index, .term = status(f).term, .configuration_index = n->meta.configuration_index,
                            .configuration = n->conf, .configuration_len = n->conf_len};
    n->synced = s.index;
    node_synced(n->node, W.now, &s);
    run(W.now + 2000);
    assert_int_equal(status(f).log_first, 1);
    n->stalled = false;
    run(W.now + 2000);
    assert_int_equal(status(f).log_first, status(f).last_index - KEEP + 1);
}

static void limits_are(uint64_t keep_len, uint64_t keep_entries, uint64_t hold_len_max)
{
    const struct node_options *o = &W.nodes[1].node->options;
    assert_int_equal(o->log_keep_len, keep_len);
    assert_int_equal(o->log_keep_entries, keep_entries);
    assert_int_equal(o->log_hold_len_max, hold_len_max);
    node_stop(&W.nodes[1]);
}

/* Who wants more by length gets it with small entries, too, and what is held is always more than what is kept. */
static void limits_fit_each_other(void **state)
{
    (void)state;
    memset(&W.options, 0, sizeof W.options);
    node_make(1, 1);
    limits_are(LOG_KEEP_LEN, LOG_KEEP_ENTRIES, LOG_HOLD_LEN_MAX);
    W.options.log_keep_len = LOG_KEEP_LEN / 64;
    node_make(1, 1);
    limits_are(LOG_KEEP_LEN / 64, LOG_KEEP_ENTRIES, LOG_HOLD_LEN_MAX);
    W.options.log_keep_len = LOG_KEEP_LEN * 16;
    node_make(1, 1);
    limits_are(LOG_KEEP_LEN * 16, LOG_KEEP_ENTRIES * 16, LOG_KEEP_LEN * 32);
}

/* Nothing goes that isn't in a synced state: a crash leaves a state and a log that meet. */
static void nothing_goes_before_it_is_synced(void **state)
{
    (void)state;
    W.sync_every = 0;
    three();
    writes(leader(), 3 * KEEP);
    for (int k = 1; k <= 3; k++) {
        assert_int_equal(status(k).log_first, 1);
        sync_state(&W.nodes[k]);
        assert_int_equal(status(k).log_first, status(k).last_index - KEEP + 1);
        sync_state(&W.nodes[k]); /* told again: nothing */
    }
    /* A state that was synced long ago limits what goes. */
    uint64_t synced = W.nodes[1].synced;
    writes(leader(), 2 * KEEP);
    run(W.now + 2000);
    assert_true(status(1).log_first <= synced + 1);
}

/* Sizes, syncs and limits at random, against a model that counts from scratch. RAFTDIR_TEST_SEED replays one. */
static void what_is_kept_equals_a_model(void **state)
{
    (void)state;
    static uint64_t size[4096]; /* by index */
    static char identity[2001];
    const char *given = getenv("RAFTDIR_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < 6; round++) {
        struct world_node *n = &W.nodes[1];
        static struct write x;
        node_stop(n);
        W.sync_every = 0;
        W.options.log_keep_len = (uint64_t)(rand() % 20000 + 16);
        W.options.log_keep_entries = (uint64_t)(rand() % 100 + 16);
        node_make(1, 1);
        run(W.now + 50);
        memset(size, 0, sizeof size);
        uint64_t first = 1, counted = 0;
        for (int i = 0; i < 600; i++) {
            memset(identity, 'x', sizeof identity - 1);
            identity[rand() % 4 ? rand() % 50 : rand() % 2000] = 0;
            write_start_as(&x, 1, next_tag++, 5000, identity);
            run(W.now + 2);
            assert_int_equal(x.times, 1);
            free(x.buf);
            struct node_status s = status(1);
            for (; counted < s.last_index; counted++) {
                const struct entry *e = n->disk[counted + 1 - n->disk_first];
                size[e->index] = e->len + sizeof *e;
            }
            if (rand() % 5 == 0) { /* sometimes long before what is applied */
                uint64_t applied = n->meta.applied_index;
                if (applied > n->synced + 1 && rand() % 2) {
                    uint64_t earlier = n->synced + 1 + (uint64_t)rand() % (applied - n->synced);
                    if (earlier >= n->disk_first && n->disk[earlier - n->disk_first]->term == n->meta.applied_term && earlier >= n->meta.configuration_index)
                        n->meta.applied_index = earlier; /* one that could have been so */
                }
                sync_state(n);
                n->meta.applied_index = applied;
            }
            s = status(1);
            assert_false(n->failed);
            uint64_t bytes = 0, len = 0, cut = s.last_index;
            for (uint64_t k = s.log_first; k <= s.last_index; k++)
                bytes += size[k];
            assert_int_equal(s.log_bytes, bytes);
            while (cut > 0 && (cut > n->synced || (len < W.options.log_keep_len && s.last_index - cut < W.options.log_keep_entries)))
                len += size[cut--]; /* the highest that may go */
            assert_true(s.log_first >= first);
            assert_true(s.log_first == first || s.log_first - 1 <= cut);
            if (s.log_first != first)
                assert_true(s.log_first == cut + 1);
            else if (n->synced == s.last_index && cut + 1 > first) { /* nothing went, and the log hasn't grown since: it was little */
                uint64_t gone = 0;
                for (uint64_t k = first; k <= cut; k++)
                    gone += size[k];
                assert_true((gone < W.options.log_keep_len / 16 && cut + 1 - first < W.options.log_keep_entries / 16) ||
                            (bytes < W.options.log_keep_len + W.options.log_keep_len / 16 && s.last_index + 1 - first < W.options.log_keep_entries + W.options.log_keep_entries / 16));
            }
            first = s.log_first;
        }
        assert_true(first > 300);
        assert_int_equal(n->failed, 0);
    }
}

static void a_slow_follower_needs_no_image(void **state)
{
    (void)state;
    three();
    int l = leader(), f = l % 3 + 1;
    writes(l, 2 * KEEP);
    for (int i = 0; i < 5; i++) {
        W.nodes[f].cut = true;
        writes(l, KEEP - 8);
        W.nodes[f].cut = false;
        run(W.now + 1500);
        equal(l, f);
    }
    assert_int_equal(W.manifests, 0);
    assert_int_equal(W.nodes[f].wanted_times, 0);
}

/* --- Who needs an image --------------------------------------------------------------------------------------------------------- */

static void a_follower_beyond_the_log_wants_an_image(void **state)
{
    (void)state;
    int l, f, o;
    lagging(&l, &f, &o);
    struct node_status before = status(l);
    assert_false(status(f).image_needed);
    unsigned manifests = W.manifests;
    run(W.now + 2000);
    assert_true(W.nodes[f].wanted_times >= 10);
    assert_true(W.manifests - manifests <= 2000 / HEARTBEAT_MS + 5); /* about one a heartbeat at most */
    assert_true(W.nodes[f].wanted_index >= before.log_first && W.nodes[f].wanted_index <= before.commit_index);
    assert_true(status(f).image_needed);
    assert_false(status(o).image_needed);
    /* It stays a follower as any other: no election, and its vote counts. */
    assert_int_equal(leader(), l);
    assert_int_equal(status(l).term, before.term);
    assert_int_equal(status(f).state, NODE_FOLLOWER);
    assert_int_equal(W.nodes[f].failed, 0);
    W.nodes[l].cut = true;
    run(W.now + 1500);
    assert_int_equal(leader(), o);
    assert_int_equal(status(f).leader, o);
}

/* The image is older than the leader's newest snapshot, writes go on, and the leader changes while it is fetched. */
static void an_image_under_writes_and_another_leader(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    lagging(&l, &f, &o);
    run(W.now + 300);
    assert_true(W.nodes[f].wanted_times > 0);
    image_take((uint64_t)o, &image);
    uint64_t at = image.meta.applied_index;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 150);
    writes(l, 2 * KEEP);
    for (int k = 1; k <= 3; k++) /* held, also by who doesn't lead */
        assert_true(k == f || status(k).log_first <= at);
    assert_true(status(l).last_index - at > KEEP_AT_MOST);
    W.nodes[l].cut = true;
    run(W.now + 1500);
    assert_int_equal(leader(), o);
    assert_true(status(o).log_first <= at);
    W.nodes[l].cut = false;
    run(W.now + 500);
    writes(o, 20);
    assert_int_equal(W.nodes[f].failed, 0);
    uint64_t term = status(f).term;
    assert_true(node_image_wanted(W.nodes[f].node, at, image.meta.applied_term));
    image_install((uint64_t)f, &image);
    assert_int_equal(status(f).term, term);
    assert_int_equal(status(f).last_index, at);
    assert_int_equal(status(f).log_first, at + 1);
    unsigned wanted = W.nodes[f].wanted_times;
    for (int i = 0; i < 10; i++) {
        writes(o, 5);
        run(W.now + 100);
    }
    run(W.now + IMAGE_REPEAT_MS);
    equal(o, f);
    equal(o, l);
    assert_int_equal(W.nodes[f].wanted_times, wanted); /* not another one */
    assert_int_equal(leader(), o);
    assert_false(status(f).image_needed);
    /* Nobody holds anything any more. */
    run(W.now + LOG_HOLD_MS + 1000);
    writes(o, KEEP);
    for (int k = 1; k <= 3; k++)
        assert_true(status(k).last_index + 1 - status(k).log_first <= KEEP_AT_MOST);
    /* And it starts again from what it has. */
    node_reboot((uint64_t)f);
    run(W.now + 1000);
    writes(f, 5);
    run(W.now + 300);
    equal(o, f);
}

/* The first member that is added to a cluster whose log begins above 1, and its vote. */
static void a_standby_starts_with_an_image(void **state)
{
    (void)state;
    struct change x;
    struct image image;
    uint8_t uuid[NODE_UUID_LEN] = {4};
    Raftdir__Cluster__Member member = RAFTDIR__CLUSTER__MEMBER__INIT;
    Raftdir__Cluster__MemberRequest q = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    three();
    int l = leader();
    writes(l, 3 * KEEP);
    assert_true(status(l).log_first > 1);
    node_make(4, 0);
    member.address = (char *)"127.0.0.1:7004";
    member.cert_name = (char *)"n4";
    member.uuid.data = uuid;
    member.uuid.len = sizeof uuid;
    member.role = RAFTDIR__CLUSTER__ROLE__STANDBY;
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD;
    q.add = &member;
    image_take((uint64_t)l, &image); /* doesn't know of the new member */
    uint64_t at = image.meta.applied_index;
    change_and_wait(&x, l, &q);
    assert_int_equal(x.code, 0);
    assert_int_equal(x.id, 4);
    run(W.now + 1500);
    assert_true(W.nodes[4].wanted_times > 0);
    assert_true(status(4).image_needed);
    assert_int_equal(status(4).last_index, 0);
    node_image_fetching(W.nodes[4].node, at);
    /* The promotion is asked for while the image is on its way: it waits. */
    q.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE;
    q.promote = 4;
    member_op(&x, l, &q);
    x.m.deadline_ms = W.now + 20000;
    run(W.now + 200);
    writes(l, KEEP);
    run(W.now + 6000);
    assert_int_equal(x.times, 0);
    image_install(4, &image);
    for (int i = 0; i < 100 && !x.times; i++)
        run(W.now + 100);
    assert_int_equal(x.times, 1);
    assert_int_equal(x.code, 0);
    assert_int_equal(x.members, 4);
    assert_int_equal(status(4).role, RAFT_VOTER);
    run(W.now + 300);
    equal(l, 4);
    /* Its vote and its log count: with another voter dead, nothing goes without it. */
    W.nodes[l % 3 + 1].cut = true;
    writes(l, 3);
    W.nodes[l].cut = true;
    run(W.now + 500);
    W.nodes[l % 3 + 1].cut = false;
    run(W.now + 2000);
    assert_true(leader() && leader() != l);
    writes(leader(), 3);
}

/* All that a manifest may be wrong about, at a follower and at the leader. */
static void manifests_of_others_are_nothing(void **state)
{
    (void)state;
    int l, f, o;
    three();
    l = leader();
    f = l % 3 + 1;
    o = 6 - l - f;
    run(W.now + 1500);
    struct node_status s = status(f);
    uint64_t far = s.last_index + 100;
    image_frame(l, f, s.term - 1, far, 1);          /* an old one */
    image_frame(l, f, s.term + 1, far, 1);          /* of a term that we haven't heard of */
    image_frame(o, f, s.term, far, 1);              /* not the leader's */
    image_frame(4, f, s.term, far, 1);              /* a stranger's */
    image_frame(l, f, s.term, 0, 1);                /* malformed */
    image_frame(l, f, s.term, far, 0);
    image_frame(l, f, s.term, far, s.term + 1);
    image_frame(l, f, s.term, s.last_index, s.term); /* held */
    image_frame(l, f, s.term, s.applied_index, s.term + 0);
    image_frame(o, l, s.term, far, 1);              /* at the leader */
    image_frame(o, l, s.term + 5, far, 1);
    assert_int_equal(W.nodes[f].wanted_times, 0);
    assert_int_equal(W.nodes[l].wanted_times, 0);
    assert_false(status(f).image_needed);
    assert_int_equal(status(f).term, s.term);
    assert_int_equal(status(l).term, s.term);
    assert_int_equal(leader(), l);
    image_frame(l, f, s.term, far, s.term);
    assert_int_equal(W.nodes[f].wanted_times, 1);
    assert_int_equal(W.nodes[f].wanted_index, far);
    assert_int_equal(W.nodes[f].wanted_term, s.term);
    assert_true(status(f).image_needed);
    assert_true(node_image_wanted(W.nodes[f].node, far, s.term));
    assert_false(node_image_wanted(W.nodes[f].node, s.applied_index, s.term)); /* it has come so far */
    assert_false(node_image_wanted(W.nodes[l].node, far, s.term));             /* leaders have everything */
    /* What isn't committed, with another term: the log can't come so far by itself. */
    W.nodes[l].cut = true;
    static struct write x;
    write_start(&x, l, next_tag++, 60000);
    run(W.now + 10);
    assert_true(status(l).last_index > status(l).commit_index);
    run(W.now + 1500);
    assert_int_not_equal(status(l).state, NODE_LEADER);
    assert_true(node_image_wanted(W.nodes[l].node, status(l).last_index, status(l).term + 7));
    W.nodes[l].cut = false;
    run(W.now + 1500);
    assert_int_equal(x.times, 1);
    /* Got there all by itself. */
    writes(leader(), 120);
    assert_false(status(f).image_needed);
}

/* --- What is held -------------------------------------------------------------------------------------------------------------- */

/* To the entry: the leader sends what comes after an index whose term it knows. */
static void what_is_held_is_just_enough(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    lagging(&l, &f, &o);
    run(W.now + 300);
    image_take((uint64_t)l, &image);
    uint64_t at = image.meta.applied_index;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 150);
    W.sync_every = 0;
    writes(l, 2 * KEEP);
    sync_state(&W.nodes[l]);
    sync_state(&W.nodes[o]);
    assert_int_equal(status(l).log_first, at);
    assert_int_equal(status(o).log_first, at);
    image_install((uint64_t)f, &image);
    unsigned wanted = W.nodes[f].wanted_times;
    run(W.now + 2 * IMAGE_REPEAT_MS);
    equal(l, f);
    assert_int_equal(W.nodes[f].wanted_times, wanted);
    unsigned manifests = W.manifests;
    run(W.now + 2 * IMAGE_REPEAT_MS);
    assert_int_equal(W.manifests, manifests);
}

/* More has come since the image than the leader keeps, and than it sends at once: it is held until the member has caught up. */
static void what_comes_after_an_image_is_held(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    lagging(&l, &f, &o);
    run(W.now + 300);
    image_take((uint64_t)l, &image);
    uint64_t at = image.meta.applied_index;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 150);
    writes(l, APPEND_INFLIGHT_ENTRIES + KEEP);
    W.nodes[f].deaf = true; /* its disk is slow: nothing is acknowledged */
    image_install((uint64_t)f, &image);
    unsigned wanted = W.nodes[f].wanted_times;
    run(W.now + 500);
    writes(l, 3 * KEEP);
    run(W.now + LOG_HOLD_MS + 1000);
    writes(l, SYNC_EVERY);
    assert_true(status(l).log_first <= at);
    W.nodes[f].deaf = false;
    run(W.now + 2000);
    equal(l, f);
    assert_int_equal(W.nodes[f].wanted_times, wanted);
    writes(l, KEEP);
    assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
}

static void what_is_held_ends(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    lagging(&l, &f, &o);
    run(W.now + 300);
    image_take((uint64_t)l, &image);
    uint64_t at = image.meta.applied_index;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 1200);
    writes(l, 2 * KEEP);
    assert_true(status(l).log_first <= at);
    assert_true(status(o).log_first <= at);
    /* As long as it says so. */
    run(W.now + LOG_HOLD_MS + 2000);
    writes(l, SYNC_EVERY);
    assert_true(status(l).log_first <= at);
    assert_true(status(o).log_first <= at);
    /* It doesn't any more. */
    W.nodes[f].cut = true;
    run(W.now + LOG_HOLD_MS - 500);
    assert_true(status(l).log_first <= at);
    run(W.now + 2000); /* without another write */
    assert_true(status(l).log_first > at);
    assert_true(status(o).log_first > at);
    assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
    /* What is gone isn't held: its wish stops nothing. */
    W.nodes[f].cut = false;
    run(W.now + 300);
    writes(l, 2 * KEEP);
    assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
}

/* A part goes at the one sync that there is, the rest when nobody holds it any more: no write and no sync is needed for that. */
static void what_was_held_goes_without_another_sync(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    lagging(&l, &f, &o);
    run(W.now + 300);
    image_take((uint64_t)l, &image);
    uint64_t at = image.meta.applied_index;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 200);
    W.sync_every = 0;
    writes(l, 3 * KEEP);
    assert_true(status(l).log_first < at);
    W.nodes[f].cut = true;
    for (int k = 1; k <= 3; k++)
        if (k != f)
            sync_state(&W.nodes[k]);
    assert_int_equal(status(l).log_first, at);
    assert_int_equal(status(o).log_first, at);
    run(W.now + LOG_HOLD_MS + 2000);
    assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
    assert_true(status(o).last_index + 1 - status(o).log_first <= KEEP_AT_MOST);
}

/* What this node wants for itself, behind a copy of its own state: from that index on, and not for ever. */
static void what_is_held_for_itself(void **state)
{
    (void)state;
    three();
    int l = leader();
    writes(l, 2 * KEEP);
    uint64_t at = status(l).applied_index;
    node_log_hold(W.nodes[l].node, at);
    W.sync_every = 0;
    writes(l, 3 * KEEP);
    for (int i = 1; i <= 3; i++)
        sync_state(&W.nodes[i]);
    assert_int_equal(status(l).log_first, at);
    int o = l % 3 + 1; /* nobody else does */
    assert_true(status(o).log_first > at);
    node_log_hold(W.nodes[l].node, 0);
    run(W.now + 1000);
    assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
}

static void what_is_held_is_bounded(void **state)
{
    (void)state;
    struct image image;
    int l, f, o;
    W.options.log_hold_len_max = 40000;
    W.options.log_keep_len = 20000;
    lagging(&l, &f, &o);
    run(W.now + 300);
    image_take((uint64_t)l, &image);
    uint64_t at = image.meta.applied_index, most = 0;
    node_image_fetching(W.nodes[f].node, at);
    run(W.now + 200);
    for (int i = 0; i < 60 && status(l).log_first <= at; i++) {
        writes(l, 10);
        most = status(l).log_bytes > most ? status(l).log_bytes : most;
    }
    assert_true(status(l).log_first > at);
    assert_true(most >= 40000 - 4000 && most <= 40000 + 4000);
    for (int i = 0; i < 10; i++) {
        writes(l, KEEP);
        assert_true(status(l).last_index + 1 - status(l).log_first <= KEEP_AT_MOST);
    }
    /* It fetches another. */
    run(W.now + 1500);
    assert_true(status(f).image_needed);
    image_take((uint64_t)l, &image);
    image_install((uint64_t)f, &image);
    run(W.now + 2000);
    equal(l, f);
}

/* --- What is bounded ------------------------------------------------------------------------------------------------------------ */

#define UNAPPLIED 8192

static void a_follower_takes_no_more_than_it_can_apply(void **state)
{
    (void)state;
    W.options.log_unapplied_len_max = UNAPPLIED;
    W.options.log_keep_entries = 0;
    W.options.log_keep_len = 0;
    three();
    int l = leader(), f = l % 3 + 1, o = 6 - l - f;
    writes(l, 5);
    W.nodes[f].stalled = true;
    uint64_t before = status(f).log_bytes;
    writes(l, 200);
    assert_true(status(f).log_bytes > before + UNAPPLIED);
    assert_true(status(f).log_bytes < before + UNAPPLIED + 2000);
    assert_true(status(l).last_index > status(f).last_index + 50);
    /* What it doesn't take is sent again once a heartbeat, a frame of it. */
    static char identity[200001];
    static struct write big[20];
    memset(identity, 'x', sizeof identity - 1);
    for (int i = 0; i < 20; i++) {
        write_start_as(&big[i], l, next_tag++, 5000, identity);
        run(W.now + 10);
        assert_int_equal(big[i].code, 0);
        assert_int_equal(big[i].times, 1);
        free(big[i].buf);
    }
    uint64_t sent = W.bytes_sent[f];
    run(W.now + 1000);
    assert_true(W.bytes_sent[f] - sent <= (1000 / HEARTBEAT_MS + 2) * (APPEND_LEN_MAX + 65536));
    assert_true(status(f).log_bytes < before + UNAPPLIED + 2000);
    assert_int_equal(status(f).state, NODE_FOLLOWER);
    assert_int_equal(leader(), l);
    equal(l, o);
    W.nodes[f].stalled = false;
    run(W.now + 1000);
    equal(l, f);
    assert_int_equal(W.manifests, 0);
}

static void a_leader_proposes_no_more_than_it_can_apply(void **state)
{
    (void)state;
    static struct write x[400];
    W.options.log_unapplied_len_max = UNAPPLIED;
    three();
    int l = leader();
    W.nodes[l].stalled = true;
    uint64_t before = status(l).log_bytes;
    for (int i = 0; i < 400; i++) {
        write_start(&x[i], l, next_tag++, 60000);
        run(W.now + 1);
    }
    run(W.now + 500);
    assert_true(status(l).log_bytes > before + UNAPPLIED);
    assert_true(status(l).log_bytes < before + UNAPPLIED + 4000);
    assert_int_equal(leader(), l);
    W.nodes[l].stalled = false;
    run(W.now + 1000);
    for (int i = 0; i < 400; i++) {
        assert_int_equal(x[i].times, 1);
        assert_int_equal(x[i].code, 0);
    }
    equal(1, 2);
    equal(2, 3);
}

/* Logs full of what nobody has committed yet: what commits them must still get in. */
static void full_logs_are_committed_by_the_next_leader(void **state)
{
    (void)state;
    static struct write x[200];
    W.options.log_unapplied_len_max = UNAPPLIED;
    three();
    int l = leader(), f = l % 3 + 1, o = 6 - l - f;
    W.nodes[f].deaf = W.nodes[o].deaf = true;
    for (int i = 0; i < 200; i++) {
        write_start(&x[i], l, next_tag++, 60000);
        run(W.now + 1);
    }
    assert_true(status(f).log_bytes > UNAPPLIED && status(o).log_bytes > UNAPPLIED);
    uint64_t last = status(l).last_index;
    assert_true(status(l).commit_index < last);
    W.nodes[l].cut = true;
    run(W.now + 20);
    W.nodes[f].deaf = W.nodes[o].deaf = false;
    run(W.now + 2000);
    assert_true(leader() && leader() != l);
    assert_true(status(f).applied_index > last);
    assert_true(status(o).applied_index > last);
    writes(f, 3);
    W.nodes[l].cut = false;
    run(W.now + 2000);
    equal(f, o);
    equal(f, l);
    for (int i = 0; i < 200; i++)
        assert_int_equal(x[i].times, 1);
}

/* --- Starts ---------------------------------------------------------------------------------------------------------------------- */

static int start_with(uint64_t first, const uint64_t *terms, size_t n, uint64_t applied, uint64_t applied_term, struct err *err)
{
    struct node_options o = {.id = 2, .cluster_id = CLUSTER, .incarnation = INCARNATION, .seed = 1};
    struct node_io io = {.meta_write = on_meta_write};
    struct node_boot boot = {.term = 9, .log_first = first, .entries_n = n, .meta = {.applied_index = applied, .applied_term = applied_term, .configuration_index = 1}};
    struct raft_configuration c;
    struct raft_buffer b;
    struct node *node = NULL;
    char address[NODE_ADDRESS_SIZE];
    raft_configuration_init(&c);
    address_of(1, address);
    assert_int_equal(raft_configuration_add(&c, 1, address, RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_encode(&c, &b), 0);
    raft_configuration_close(&c);
    boot.configuration = b.base;
    boot.configuration_len = b.len;
    boot.entries = n ? malloc(n * sizeof *boot.entries) : NULL;
    for (size_t i = 0; i < n; i++)
        boot.entries[i] = entry_create(first + i, terms[i], RAFT_BARRIER, "12345678", 8);
    int rc = node_create(&o, &io, &boot, &node, err);
    raft_free(b.base);
    if (!rc)
        node_destroy(&node);
    return rc;
}

static void a_log_meets_its_state_at_the_start(void **state)
{
    (void)state;
    static const uint64_t terms[] = {3, 3, 4};
    struct err err;
    assert_int_equal(start_with(11, NULL, 0, 10, 3, &err), 0);              /* on an image */
    assert_int_equal(start_with(11, terms, 3, 10, 3, &err), 0);
    assert_int_equal(start_with(9, terms, 3, 10, 3, &err), 0);
    assert_int_equal(start_with(8, terms, 3, 10, 4, &err), 0);
    assert_int_equal(start_with(12, NULL, 0, 10, 3, &err), RAFTDIR_ECORRUPT); /* a gap */
    assert_non_null(strstr(err.text, "missing"));
    assert_int_equal(start_with(12, terms, 3, 10, 3, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(start_with(5, NULL, 0, 10, 3, &err), RAFTDIR_ECORRUPT);  /* it has lost its end */
    assert_non_null(strstr(err.text, "lost"));
    assert_int_equal(start_with(5, terms, 3, 10, 3, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(start_with(9, terms, 3, 10, 4, &err), RAFTDIR_ECORRUPT); /* another's */
    assert_non_null(strstr(err.text, "term"));
}

/* An image's sender said it, or a disk. */
static void a_malformed_configuration_is_told(void **state)
{
    (void)state;
    struct node_options o = {.id = 2, .cluster_id = CLUSTER, .incarnation = INCARNATION, .seed = 1};
    struct node_io io = {.meta_write = on_meta_write};
    struct raft_configuration c;
    struct raft_buffer b;
    char address[NODE_ADDRESS_SIZE];
    raft_configuration_init(&c);
    address_of(1, address);
    assert_int_equal(raft_configuration_add(&c, 1, address, RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_encode(&c, &b), 0);
    raft_configuration_close(&c);
    for (size_t len = 0; len < 9 + 8 + strlen(address) + 2; len++) {
        struct node_boot boot = {.term = 9, .log_first = 11, .meta = {.applied_index = 10, .applied_term = 3, .configuration_index = 1}};
        struct node *node = NULL;
        struct err err;
        uint8_t *copy = malloc(len ? len : 1); /* so that what lies behind it isn't read */
        assert_non_null(copy);
        memcpy(copy, b.base, len);
        boot.configuration = len ? copy : NULL;
        boot.configuration_len = len;
        assert_int_equal(node_create(&o, &io, &boot, &node, &err), RAFTDIR_ECORRUPT);
        assert_non_null(strstr(err.text, "malformed"));
        free(copy);
    }
    raft_free(b.base);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, world, teardown)
    const struct CMUnitTest tests[] = {
        T(the_log_is_cut_behind_what_is_kept), T(the_log_is_cut_by_length), T(limits_fit_each_other), T(nothing_goes_before_it_is_synced), T(a_sync_waits_for_its_batch), T(what_is_kept_equals_a_model), T(a_slow_follower_needs_no_image),
        T(a_follower_beyond_the_log_wants_an_image), T(an_image_under_writes_and_another_leader), T(a_standby_starts_with_an_image),
        T(manifests_of_others_are_nothing), T(what_is_held_is_just_enough), T(what_comes_after_an_image_is_held), T(what_is_held_ends), T(what_was_held_goes_without_another_sync), T(what_is_held_for_itself), T(what_is_held_is_bounded), T(a_follower_takes_no_more_than_it_can_apply),
        T(a_leader_proposes_no_more_than_it_can_apply), T(full_logs_are_committed_by_the_next_leader), T(a_log_meets_its_state_at_the_start),
        T(a_malformed_configuration_is_told),
    };
    return cmocka_run_group_tests_name("node_log", tests, NULL, NULL);
}
