/* test_guard_rules.c - the guard's own behaviour: what it refuses and says, who owns what, what strangers may do, errors, images, membership. */
#include "guard_peer.h"

static struct err err;

static struct raft_message message(enum raft_message_type type)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = type;
    return m;
}

static struct raft_message vote(raft_id candidate, raft_term term, raft_index last, raft_term last_term)
{
    struct raft_message m = message(RAFT_REQUEST_VOTE);
    m.request_vote.term = term;
    m.request_vote.candidate_id = candidate;
    m.request_vote.last_log_index = last;
    m.request_vote.last_log_term = last_term;
    return m;
}

static struct raft_message result(raft_term term, raft_index rejected, raft_index last)
{
    struct raft_message m = message(RAFT_APPEND_ENTRIES_RESULT);
    m.append_entries_result.term = term;
    m.append_entries_result.rejected = rejected;
    m.append_entries_result.last_log_index = last;
    return m;
}

/* A leader of {1v 2v 3v}, its barrier committed, everybody up to date. */
static struct peer *ready_leader(void)
{
    struct peer *a = peer_boot1(1, 0, 1, "1v 2v 3v"), *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    elect(a, b);
    peer_free(b);
    peer_stored(a);
    CHECK_EQ(peer_receive(a, 2, result(2, 0, 2)), 0);
    CHECK_EQ(peer_receive(a, 3, result(2, 0, 2)), 0);
    peer_apply(a);
    CHECK(guard_current_term_committed(a->g));
    out_clear(a);
    return a;
}

/* --- Strangers ------------------------------------------------------------------------------------------------------------------ */

static void test_strangers_needed(void **state)
{
    (void)state;
    /* No configuration yet: a standby that is being added takes its log from anybody. */
    struct peer *n = peer_new(4, 0, 0);
    peer_create(n);
    struct guard_start start = {.start_index = 1};
    CHECK_EQ(guard_start(n->g, now, &start, &err), 0);
    struct raft_entry first = entry_make(1, RAFT_CHANGE, "1v 4s");
    CHECK_EQ(peer_append(n, 1, 3, 0, 0, 1, &first, 1), 0);
    CHECK_EQ(last_index(n), 1);
    CHECK_EQ(n->term, 3);
    peer_free(n);

    /* A leader that we haven't heard of: elected by a configuration that we don't have yet. */
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v");
    struct raft_entry e = entry_make(5, RAFT_CHANGE, "1v 2v 9v");
    CHECK_EQ(peer_append(b, 9, 5, 1, 1, 1, &e, 1), 0);
    CHECK_STR(conf_text(&b->r->configuration), "1v 2v 9v");
    CHECK_EQ(guard_counts(b->g)->strangers, 0);
    peer_free(b);

    /* A candidate that can't win must vote for the voter that it doesn't know. */
    b = peer_boot1(2, 0, 1, "1v 2v");
    peer_expire(b);
    CHECK_EQ(raft_state(b->r), RAFT_CANDIDATE);
    CHECK_EQ(peer_receive(b, 9, vote(9, 4, 7, 3)), 0);
    const struct raft_message *m = waiting(b, RAFT_REQUEST_VOTE_RESULT, 9);
    CHECK(m && m->request_vote_result.vote_granted);
    CHECK_EQ(b->vote, 9);
    CHECK_EQ(b->term, 4);
    peer_free(b);
}

static void test_strangers_dropped(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    struct raft_message m = message(RAFT_REQUEST_VOTE_RESULT);
    m.request_vote_result.term = 50;
    CHECK_EQ(peer_receive(a, 9, m), 0);
    CHECK_EQ(peer_receive(a, 9, vote(9, 50, 50, 50)), 0);
    CHECK_EQ(peer_receive(a, 9, result(50, 0, 0)), 0);
    m = message(RAFT_TIMEOUT_NOW);
    m.timeout_now.term = 50;
    CHECK_EQ(peer_receive(a, 9, m), 0);
    CHECK(leads(a));
    CHECK_EQ(a->term, 2);
    CHECK_EQ(guard_counts(a->g)->strangers, 4);
    CHECK_EQ(a->out_n, 0);
    /* A removed leader of an old term is told so. */
    CHECK_EQ(peer_append(a, 9, 1, 1, 1, 1, NULL, 0), 0);
    CHECK(waiting(a, RAFT_APPEND_ENTRIES_RESULT, 9) != NULL);
    peer_free(a);
}

/* --- What no correct peer sends ------------------------------------------------------------------------------------------------------ */

static void test_malformed(void **state)
{
    (void)state;
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    char ok[] = "x";
    struct raft_entry good = {.term = 2, .type = RAFT_COMMAND, .buf = {ok, 1}};
    struct raft_entry bad[] = {
        {.term = 0, .type = RAFT_COMMAND, .buf = {ok, 1}},
        {.term = 3, .type = RAFT_COMMAND, .buf = {ok, 1}}, /* above the leader's */
        {.term = 2, .type = (enum raft_entry_type)9, .buf = {ok, 1}},
        {.term = 2, .type = RAFT_CHANGE, .buf = {ok, 1}},
        {.term = 2, .type = RAFT_CHANGE, .buf = {NULL, 0}},
    };
    unsigned updates = b->updates, dropped = 0;
    struct raft_message m;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct raft_entry list[2] = {good, bad[i]};
        m = message(RAFT_APPEND_ENTRIES);
        m.append_entries = (struct raft_append_entries){.term = 2, .prev_log_index = 1, .prev_log_term = 1, .entries = list, .n_entries = 2};
        CHECK_EQ(peer_receive(b, 1, m), 0);
        CHECK_EQ(guard_counts(b->g)->malformed, ++dropped);
    }
    const struct raft_append_entries appends[] = {
        {.term = 0, .prev_log_index = 1, .prev_log_term = 1},
        {.term = 2, .prev_log_index = 0, .prev_log_term = 1},
        {.term = 2, .prev_log_index = 1, .prev_log_term = 0},
        {.term = 2, .prev_log_index = 1, .prev_log_term = 3},
        {.term = 2, .prev_log_index = 1, .prev_log_term = 1, .n_entries = 1},
        {.term = 2, .prev_log_index = UINT64_MAX, .prev_log_term = 1, .n_entries = 1, .entries = &good},
    };
    for (size_t i = 0; i < sizeof appends / sizeof appends[0]; i++) {
        m = message(RAFT_APPEND_ENTRIES);
        m.append_entries = appends[i];
        CHECK_EQ(peer_receive(b, 1, m), 0);
        CHECK_EQ(guard_counts(b->g)->malformed, ++dropped);
    }
    m = vote(3, 9, 9, 9); /* for somebody else */
    CHECK_EQ(peer_receive(b, 1, m), 0);
    CHECK_EQ(peer_receive(b, 2, result(9, 0, 0)), 0); /* from ourselves */
    CHECK_EQ(peer_receive(b, 0, result(9, 0, 0)), 0);
    CHECK_EQ(peer_receive(b, 1, message((enum raft_message_type)77)), 0);
    m = message(RAFT_INSTALL_SNAPSHOT); /* freed although dropped */
    m.install_snapshot.term = 2;
    conf_parse("1v 2v", &m.install_snapshot.conf);
    CHECK_EQ(peer_receive(b, 1, m), 0);
    CHECK_EQ(guard_counts(b->g)->malformed, dropped + 5);
    CHECK_EQ(b->updates, updates);
    CHECK_EQ(b->term, 1);
    peer_free(b);
}

static void test_configuration_valid(void **state)
{
    (void)state;
    struct raft_buffer b = conf_encode("1v 2v 300s");
    CHECK(guard_configuration_valid(b.base, b.len));
    CHECK(!guard_configuration_valid(NULL, 0));
    size_t used = 9 + 3 * 9 + strlen("n1") + strlen("n2") + strlen("n300") + 3;
    for (size_t len = 0; len < used; len++) { /* exact buffers, for the sanitizer */
        char *copy = malloc(len ? len : 1);
        memcpy(copy, b.base, len);
        CHECK(!guard_configuration_valid(copy, len));
        free(copy);
    }
    unsigned char *p = b.base;
    const struct {
        size_t at;
        unsigned char value;
    } bad[] = {{0, 2}, {1, 0}, {1, 4}, {2, 1}, {8, 0xff}, {9, 0}, {20, 3}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        unsigned char old = p[bad[i].at];
        p[bad[i].at] = bad[i].value;
        CHECK(!guard_configuration_valid(p, b.len));
        p[bad[i].at] = old;
    }
    CHECK(guard_configuration_valid(p, b.len));
    free(b.base);
}

static void test_two_leaders(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    unsigned updates = a->updates;
    CHECK_EQ(peer_append(a, 2, 2, 1, 1, 1, NULL, 0), RAFTDIR_ECORRUPT);
    CHECK_EQ(peer_submit(a, "x", &err), RAFTDIR_ECORRUPT); /* for good */
    CHECK_EQ(guard_timeout(a->g, now, &err), RAFTDIR_ECORRUPT);
    CHECK_EQ(a->updates, updates);
    peer_free(a);
}

/* --- Errors ------------------------------------------------------------------------------------------------------------------------- */

static void test_update_error(void **state)
{
    (void)state;
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    struct raft_entry batch[2] = {entry_make(2, RAFT_COMMAND, "a"), entry_make(2, RAFT_CHANGE, "1v 2v 3v 4s")}; /* two steps */
    unsigned updates = b->updates;
    b->fail_next = RAFTDIR_EIO;
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 1, batch, 2), RAFTDIR_EIO);
    CHECK_EQ(b->updates, updates + 1);
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 1, NULL, 0), RAFTDIR_EIO);
    struct raft_message m = message(RAFT_INSTALL_SNAPSHOT);
    m.install_snapshot.term = m.install_snapshot.last_term = 2;
    m.install_snapshot.last_index = 9;
    conf_parse("1v 2v", &m.install_snapshot.conf);
    CHECK_EQ(peer_receive(b, 1, m), RAFTDIR_EIO); /* taken nevertheless */
    CHECK_EQ(b->updates, updates + 1);
    peer_free(b);

    struct peer *a = ready_leader();
    a->fail_next = RAFTDIR_ENOSPC;
    CHECK_EQ(peer_submit(a, "x", &err), RAFTDIR_ENOSPC);
    CHECK_EQ(peer_change(a, "1v 2v 3v 4s", &err), RAFTDIR_ENOSPC);
    peer_free(a);
}

static void test_core_error(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    step_error = RAFT_NOSPACE; /* refused: nothing has changed */
    CHECK_EQ(peer_submit(a, "x", &err), RAFTDIR_ENOSPC);
    CHECK_EQ(peer_submit(a, "x", &err), 0);
    step_error = RAFT_NOMEM; /* the core's trail may be ahead of the log: over */
    CHECK_EQ(peer_submit(a, "x", &err), RAFTDIR_ENOMEM);
    CHECK_EQ(peer_submit(a, "x", &err), RAFTDIR_ENOMEM);
    peer_free(a);
}

/* Every allocation of a change fails once. */
static void test_no_memory(void **state)
{
    (void)state;
    unsigned at = 1;
    for (;; at++) {
        struct peer *a = ready_leader();
        struct raft_configuration c;
        conf_parse("1v 2v 3v 4s", &c);
        heap_fails = at;
        int rc = guard_change(a->g, now, &c, &err);
        bool done = heap_fails != 0;
        heap_fails = 0;
        raft_configuration_close(&c);
        CHECK(rc == RAFTDIR_ENOMEM || rc == 0); /* a message that can't be queued is only lost */
        if (rc)
            CHECK_EQ(guard_timeout(a->g, now, &err), RAFTDIR_ENOMEM);
        peer_free(a);
        if (done)
            break;
        CHECK(at < 200);
    }
    CHECK(at > 5);
    for (at = 1; at < 50; at++) {
        struct guard_options o = {.id = 1, .address = "x", .election_timeout_ms = 100, .heartbeat_ms = 10};
        struct guard_ops ops = {NULL, peer_on_update, peer_entry_at, peer_applied_index, peer_applied_term};
        struct guard *g = NULL;
        heap_fails = at;
        int rc = guard_create(&o, &ops, &g, &err);
        bool done = heap_fails != 0;
        heap_fails = 0;
        CHECK_EQ(rc, done ? 0 : RAFTDIR_ENOMEM);
        guard_destroy(&g);
        if (done)
            break;
    }
}

/* --- Ownership -------------------------------------------------------------------------------------------------------------------------- */

static void test_borrowed_bufs(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    char payload[] = "mine";
    struct raft_entry e = {.type = RAFT_COMMAND, .buf = {payload, sizeof payload}};
    CHECK_EQ(guard_submit(a->g, now, &e, 1, &err), 0);
    CHECK(a->last_buf == payload);
    CHECK_EQ(log_at(a, last_index(a))->term, 2);
    CHECK_EQ(peer_change(a, "1v 2v 3v 4s", &err), 0);
    CHECK(a->last_buf != payload);
    CHECK_EQ(log_at(a, last_index(a))->type, RAFT_CHANGE);
    peer_free(a);

    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    struct raft_message m = message(RAFT_APPEND_ENTRIES);
    e.term = 2;
    m.append_entries = (struct raft_append_entries){.term = 2, .prev_log_index = 1, .prev_log_term = 1, .entries = &e, .n_entries = 1};
    CHECK_EQ(peer_receive(b, 1, m), 0);
    CHECK(b->last_buf == payload);
    CHECK_EQ(peer_receive(b, 1, m), 0); /* again: the core frees its batch itself */
    m.append_entries.term = 1;
    e.term = 1;
    CHECK_EQ(peer_receive(b, 1, m), 0); /* stale: likewise */
    CHECK_EQ(last_index(b), 2);
    peer_free(b);
}

/* --- Submitting, changing, transferring ----------------------------------------------------------------------------------------------------- */

static void refused(int rc, int want, const char *text)
{
    CHECK_EQ(rc, want);
    if (!strstr(err.text, text))
        check_failed(__FILE__, __LINE__, err.text, 0, 0);
}

static void test_submit(void **state)
{
    (void)state;
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    refused(peer_submit(b, "x", &err), RAFTDIR_ENOTLEADER, "doesn't lead");
    refused(peer_change(b, "1v 2v", &err), RAFTDIR_ENOTLEADER, "doesn't lead");
    refused(guard_catch_up(b->g, now, 1, &err), RAFTDIR_ENOTLEADER, "doesn't lead");
    refused(guard_transfer(b->g, now, 1, &err), RAFTDIR_ENOTLEADER, "doesn't lead");
    peer_free(b);
    struct peer *a = ready_leader();
    struct raft_entry e = entry_make(0, RAFT_CHANGE, "1v");
    refused(guard_submit(a->g, now, &e, 1, &err), RAFTDIR_EINVAL, "guard_change");
    refused(guard_submit(a->g, now, &e, 0, &err), RAFTDIR_EINVAL, "nothing");
    free(e.buf.base);
    refused(guard_transfer(a->g, now, 1, &err), RAFTDIR_EINVAL, "not another voter");
    refused(guard_transfer(a->g, now, 7, &err), RAFTDIR_EINVAL, "not another voter");
    CHECK_EQ(guard_transfer(a->g, now, 2, &err), 0);
    CHECK(waiting(a, RAFT_TIMEOUT_NOW, 2) != NULL);
    refused(peer_submit(a, "x", &err), RAFTDIR_EBUSY, "transferred to server 2");
    refused(peer_change(a, "1v 2v", &err), RAFTDIR_EBUSY, "transferred to server 2");
    refused(guard_transfer(a->g, now, 3, &err), RAFTDIR_EBUSY, "transferred to server 2");
    peer_free(a);
    /* Any voter: not the one that is behind, as the core would do while nobody holds everything. */
    a = ready_leader();
    CHECK_EQ(peer_submit(a, "x", &err), 0);
    CHECK_EQ(peer_submit(a, "y", &err), 0);
    CHECK_EQ(peer_receive(a, 2, result(2, 0, 3)), 0);
    CHECK_EQ(guard_transfer(a->g, now, 0, &err), 0);
    CHECK_EQ(raft_transferee(a->r), 2);
    peer_free(a);
    a = peer_boot1(1, 0, 1, "1v 2s");
    refused(guard_transfer(a->g, now, 0, &err), RAFTDIR_EINVAL, "no other voter");
    peer_free(a);
}

static void test_change(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    refused(peer_change(a, "1v 2v 3v", &err), RAFTDIR_EINVAL, "the present one");
    refused(peer_change(a, "1v 2v 3v 4s 5s", &err), RAFTDIR_EINVAL, "not 2");
    refused(peer_change(a, "1v 2v 4v", &err), RAFTDIR_EINVAL, "not 2"); /* a replacement is two changes */
    refused(peer_change(a, "2v 3v", &err), RAFTDIR_EINVAL, "remove or demote itself");
    refused(peer_change(a, "1s 2v 3v", &err), RAFTDIR_EINVAL, "remove or demote itself");
    refused(guard_catch_up(a->g, now, 9, &err), RAFTDIR_EINVAL, "not a member");
    refused(guard_catch_up(a->g, now, 2, &err), RAFTDIR_EINVAL, "a voter already");
    struct raft_configuration many;
    raft_configuration_init(&many);
    for (raft_id id = 1; id <= 3; id++) {
        char address[8];
        snprintf(address, sizeof address, "n%llu", id);
        CHECK_EQ(raft_configuration_add(&many, id, address, RAFT_VOTER), 0);
    }
    CHECK_EQ(raft_configuration_add(&many, 4, "n3x", RAFT_STANDBY), 0);
    /* The order given doesn't matter: the present one is kept, since the core matches its state by position. */
    struct raft_server swap = many.servers[0];
    many.servers[0] = many.servers[3];
    many.servers[3] = swap;
    CHECK_EQ(guard_change(a->g, now, &many, &err), 0);
    raft_configuration_close(&many);
    CHECK_STR(conf_text(&a->r->configuration), "1v 2v 3v 4s");
    refused(peer_change(a, "1v 2v 3v", &err), RAFTDIR_EBUSY, "another change is in progress");
    refused(guard_catch_up(a->g, now, 4, &err), RAFTDIR_EBUSY, "another change is in progress");
    peer_stored(a);
    CHECK_EQ(peer_receive(a, 2, result(2, 0, 3)), 0);
    CHECK_EQ(raft_commit_index(a->r), 3);
    peer_apply(a);
    CHECK_EQ(a->r->configuration_uncommitted_index, 0);
    CHECK_EQ(guard_catch_up(a->g, now, 4, &err), 0);
    refused(peer_change(a, "1v 2v 3v", &err), RAFTDIR_EBUSY, "server 4 is being caught up");
    peer_free(a);
}

/* 4 and 5 of five voters are dead, and never answered this leader: they can be removed, one after the other; nobody can come in before. */
static void test_remove_dead(void **state)
{
    (void)state;
    struct peer *peers[3];
    for (raft_id id = 1; id <= 3; id++)
        peers[id - 1] = peer_boot1(id, 0, 1, "1v 2v 3v 4v 5v");
    run(peers, 3, 10 * ELECTION_MS);
    struct peer *l = leader_of(peers, 3);
    CHECK(l != NULL);
    refused(peer_change(l, "1v 2v 3v 4v 5v 6s", &err), RAFTDIR_EBUSY, "server 4 has not stored the last change yet");
    CHECK_EQ(peer_change(l, "1v 2v 3v 5v", &err), 0);
    run(peers, 3, ELECTION_MS);
    refused(peer_change(l, "1v 2v 3v 5v 6s", &err), RAFTDIR_EBUSY, "server 5 has not stored the last change yet");
    CHECK_EQ(peer_change(l, "1v 2v 3v", &err), 0);
    run(peers, 3, ELECTION_MS);
    CHECK_EQ(peer_change(l, "1v 2v 3v 6s", &err), 0);
    for (unsigned i = 0; i < 3; i++)
        peer_free(peers[i]);
}

/* Nobody gets a CHANGE before the leader has stored it; then they do. */
static void test_change_held(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    CHECK_EQ(peer_change(a, "1v 2v 3v 4s", &err), 0);
    CHECK(waiting(a, RAFT_APPEND_ENTRIES, 2) == NULL);
    CHECK(guard_counts(a->g)->changes_held >= 2);
    peer_stored(a);
    bool sent = false;
    for (int i = 0; i < 3 && !sent; i++) {
        now += BEAT_MS;
        peer_timeout(a);
        const struct raft_message *m = waiting(a, RAFT_APPEND_ENTRIES, 2);
        CHECK(m != NULL);
        if (m->append_entries.prev_log_index + m->append_entries.n_entries > 3 || m->append_entries.n_entries)
            sent = true;
        else
            CHECK_EQ(peer_receive(a, 2, result(2, m->append_entries.prev_log_index > 2 ? m->append_entries.prev_log_index : 0, 2)), 0);
        const struct raft_message *retry = waiting(a, RAFT_APPEND_ENTRIES, 2);
        sent = sent || (retry && retry->append_entries.n_entries);
    }
    CHECK(sent);
    peer_free(a);
}

/* --- Images ------------------------------------------------------------------------------------------------------------------------------- */

static struct raft_message image(raft_term term, raft_index index, raft_term index_term)
{
    struct raft_message m = message(RAFT_INSTALL_SNAPSHOT);
    m.install_snapshot.term = term;
    m.install_snapshot.last_index = index;
    m.install_snapshot.last_term = index_term;
    m.install_snapshot.conf_index = 1;
    conf_parse("1v 2v 3v", &m.install_snapshot.conf);
    return m;
}

static void test_install(void **state)
{
    (void)state;
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    CHECK_EQ(peer_receive(b, 1, image(2, 20, 2)), 0);
    CHECK(b->flags & RAFT_UPDATE_SNAPSHOT);
    CHECK_EQ(b->installed.index, 20);
    CHECK_EQ(b->installed.term, 2);
    CHECK_EQ(peer_receive(b, 1, image(2, 21, 2)), 0); /* while installing: dropped, not leaked */
    CHECK_EQ(b->installed.index, 20);
    log_cut(b, 0);
    b->base = b->applied = 20;
    b->applied_term = 2;
    struct raft_snapshot_metadata metadata = {.index = 20, .term = 2, .configuration_index = 1};
    conf_parse("1v 2v 3v", &metadata.configuration);
    out_clear(b);
    CHECK_EQ(guard_persisted_snapshot(b->g, now, &metadata, &err), 0);
    CHECK_EQ(raft_commit_index(b->r), 20);
    const struct raft_message *m = waiting(b, RAFT_APPEND_ENTRIES_RESULT, 1);
    CHECK(m != NULL);
    CHECK_EQ(m->append_entries_result.last_log_index, 20);
    CHECK_EQ(peer_receive(b, 1, image(2, 20, 2)), 0); /* have it */
    CHECK_EQ(guard_persisted_snapshot(b->g, now, &metadata, &err), RAFTDIR_EINVAL);
    raft_configuration_close(&metadata.configuration);
    peer_free(b);
}

static void test_snapshot(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    while (last_index(a) < 10)
        CHECK_EQ(peer_submit(a, "x", &err), 0);
    peer_stored(a);
    CHECK_EQ(peer_receive(a, 2, result(2, 0, 10)), 0);
    peer_apply(a);
    CHECK_EQ(a->applied, 10);
    struct raft_snapshot_metadata metadata = {.index = 8, .term = 2, .configuration_index = 1};
    conf_parse("1v 2v 3v", &metadata.configuration);
    CHECK_EQ(guard_snapshot(a->g, now, &metadata, 2, &err), 0);
    CHECK_EQ(a->r->trail.snapshot.index, 8);
    CHECK_EQ(guard_snapshot(a->g, now, &metadata, 2, &err), 0); /* again: ignored */
    metadata.index = 7;
    CHECK_EQ(guard_snapshot(a->g, now, &metadata, 2, &err), 0); /* older: ignored */
    CHECK_EQ(a->r->trail.snapshot.index, 8);
    CHECK(guard_current_term_committed(a->g));
    /* What server 3 lacks is still there in part: it has to get an image, with neither configuration nor data that the core didn't write. */
    CHECK_EQ(peer_receive(a, 3, result(2, 10, 2)), 0);
    const struct raft_message *m = waiting(a, RAFT_INSTALL_SNAPSHOT, 3);
    CHECK(m != NULL);
    CHECK_EQ(m->install_snapshot.last_index, 8);
    CHECK_EQ(m->install_snapshot.conf.n, 0);
    CHECK(m->install_snapshot.data.base == NULL);
    metadata.index = 11;
    CHECK_EQ(guard_snapshot(a->g, now, &metadata, 2, &err), RAFTDIR_ECORRUPT); /* not committed */
    raft_configuration_close(&metadata.configuration);
    peer_free(a);
}

static void log_is(struct peer *p, raft_index first, raft_index last)
{
    raft_index f, l;
    guard_log_range(p->g, &f, &l);
    CHECK_EQ(f, first);
    CHECK_EQ(l, last);
}

/* The driver cuts its own log by this. */
static void test_log_range(void **state)
{
    (void)state;
    struct peer *a = ready_leader(), *b = peer_boot_image(2, 0, 2, 10, 2, "1v 2v 3v"), *fresh = peer_new(4, 0, 0);
    peer_start(fresh);
    log_is(fresh, 1, 0);
    log_is(b, 11, 10);
    struct raft_entry e = entry_make(3, RAFT_COMMAND, "x");
    CHECK_EQ(peer_append(b, 1, 3, 10, 2, 10, &e, 1), 0);
    log_is(b, 11, 11);
    for (unsigned trailing = 6; trailing <= 6; trailing--) { /* the last: 0 */
        while (last_index(a) < 20 - trailing)
            CHECK_EQ(peer_submit(a, "x", &err), 0);
        peer_stored(a);
        CHECK_EQ(peer_receive(a, 2, result(2, 0, last_index(a))), 0);
        peer_apply(a);
        struct raft_snapshot_metadata metadata = {.index = last_index(a), .term = 2, .configuration_index = 1};
        conf_parse("1v 2v 3v", &metadata.configuration);
        CHECK_EQ(guard_snapshot(a->g, now, &metadata, trailing, &err), 0);
        raft_configuration_close(&metadata.configuration);
        log_is(a, metadata.index - trailing + 1, metadata.index);
    }
    peer_free(a);
    peer_free(b);
    peer_free(fresh);
}

/* What a server says about itself moves its match index, below the commit index, and nothing else. */
static void test_acknowledged(void **state)
{
    (void)state;
    struct peer *a = ready_leader();
    raft_index match = 0;
    while (last_index(a) < 10)
        CHECK_EQ(peer_submit(a, "x", &err), 0);
    peer_stored(a);
    CHECK_EQ(guard_acknowledged(a->g, now, 2, 8, &err), 0); /* an answer would have committed it */
    CHECK_EQ(raft_match_index(a->r, 2, &match), 0);
    CHECK_EQ(match, 2);
    CHECK_EQ(raft_commit_index(a->r), 2);
    CHECK_EQ(peer_receive(a, 3, result(2, 0, 7)), 0);
    CHECK_EQ(raft_commit_index(a->r), 7);
    CHECK_EQ(guard_acknowledged(a->g, now, 2, 8, &err), 0); /* beyond the commit index still */
    CHECK_EQ(guard_acknowledged(a->g, now, 9, 7, &err), 0); /* a stranger */
    CHECK_EQ(guard_acknowledged(a->g, now, 1, 7, &err), 0); /* itself */
    CHECK_EQ(raft_match_index(a->r, 2, &match), 0);
    CHECK_EQ(match, 2);
    CHECK_EQ(guard_acknowledged(a->g, now, 2, 6, &err), 0);
    CHECK_EQ(raft_match_index(a->r, 2, &match), 0);
    CHECK_EQ(match, 6);
    unsigned updates = a->updates;
    CHECK_EQ(guard_acknowledged(a->g, now, 2, 6, &err), 0); /* no news */
    CHECK_EQ(guard_acknowledged(a->g, now, 2, 5, &err), 0);
    CHECK_EQ(a->updates, updates);
    CHECK_EQ(raft_match_index(a->r, 2, &match), 0);
    CHECK_EQ(match, 6);
    CHECK_EQ(raft_commit_index(a->r), 7);
    /* At one that doesn't lead it is nothing. */
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    CHECK_EQ(guard_acknowledged(b->g, now, 1, 1, &err), 0);
    CHECK_EQ(b->out_n, 0);
    peer_free(a);
    peer_free(b);
}

/* --- Start --------------------------------------------------------------------------------------------------------------------------------- */

static int start_with(raft_term term, raft_index applied, raft_index first, struct raft_entry *entries, unsigned n, struct peer **peer_r)
{
    struct peer *p = peer_new(2, 0, term);
    struct raft_snapshot_metadata metadata = {.index = applied, .term = 1, .configuration_index = 1};
    peer_create(p);
    if (applied)
        conf_parse("1v 2v 3v", &metadata.configuration);
    struct guard_start start = {.term = term, .metadata = applied ? &metadata : NULL, .start_index = first, .entries = entries, .n_entries = n};
    int rc = guard_start(p->g, now, &start, &err);
    if (peer_r)
        *peer_r = p;
    else
        peer_free(p);
    return rc;
}

static void test_start(void **state)
{
    (void)state;
    char x[] = "x";
    struct raft_entry commands[3] = {
        {.term = 1, .type = RAFT_COMMAND, .buf = {x, 1}}, {.term = 1, .type = RAFT_COMMAND, .buf = {x, 1}}, {.term = 2, .type = RAFT_COMMAND, .buf = {x, 1}}};
    struct raft_entry garbage = {.term = 1, .type = RAFT_CHANGE, .buf = {x, 1}};
    struct peer *p;
    refused(start_with(2, 5, 7, commands, 3, NULL), RAFTDIR_ECORRUPT, "entries are missing");
    refused(start_with(2, 0, 2, commands, 3, NULL), RAFTDIR_ECORRUPT, "entries are missing");
    refused(start_with(2, 0, 1, commands, 3, NULL), RAFTDIR_ECORRUPT, "doesn't start with a configuration");
    refused(start_with(2, 0, 1, &garbage, 1, NULL), RAFTDIR_ECORRUPT, "malformed");
    refused(start_with(0, 5, 6, commands, 3, NULL), RAFTDIR_ECORRUPT, "no term");
    CHECK_EQ(start_with(2, 5, 4, commands, 3, &p), 0); /* overlapping */
    CHECK_EQ(raft_last_index(p->r), 6);
    CHECK_EQ(raft_commit_index(p->r), 5);
    peer_free(p);
    CHECK_EQ(start_with(2, 50, 4, commands, 3, &p), 0); /* a log that ends below the state */
    CHECK_EQ(raft_last_index(p->r), 50);
    peer_free(p);
    CHECK_EQ(start_with(2, 50, 0, NULL, 0, &p), 0);
    CHECK_EQ(raft_last_index(p->r), 50);
    peer_free(p);
    CHECK_EQ(start_with(0, 0, 0, NULL, 0, &p), 0); /* a fresh one */
    CHECK(p->r->pre_vote);
    CHECK(p->r->tracer == NULL);
    peer_free(p);
}

/* --- Time ------------------------------------------------------------------------------------------------------------------------------------- */

static void test_deadline(void **state)
{
    (void)state;
    struct peer *b = peer_boot1(2, 0, 1, "1v 2v 3v");
    raft_time at = guard_deadline(b->g, now);
    CHECK(at >= now + ELECTION_MS && at <= now + 2 * ELECTION_MS);
    CHECK_EQ(guard_deadline(b->g, at + 5), at + 6);
    peer_free(b);
    /* A sole voter without anybody to send to: no more than a few calls per heartbeat, whatever the core asks for. */
    struct peer *a = peer_boot1(1, 0, 1, "1v 2s");
    peer_stored(a);
    unsigned calls = 0;
    for (raft_time end = now + 10 * BEAT_MS; now < end; calls++) {
        at = guard_deadline(a->g, now);
        CHECK(at > now);
        now = at;
        peer_timeout(a);
    }
    CHECK(calls <= 50);
    CHECK(leads(a));
    peer_free(a);
}

/* --- A whole life ------------------------------------------------------------------------------------------------------------------------------- */

static void test_cluster(void **state)
{
    (void)state;
    enum { N = 4 };
    struct peer *peers[N] = {peer_boot1(1, 0, 1, "1v"), peer_new(2, 0, 0), peer_new(3, 0, 0), peer_new(4, 0, 0)};
    char conf[64] = "1v";
    for (unsigned i = 1; i < N; i++) {
        peer_create(peers[i]);
        struct guard_start start = {.start_index = 1};
        CHECK_EQ(guard_start(peers[i]->g, now, &start, &err), 0);
    }
    run(peers, N, 2 * ELECTION_MS);
    for (raft_id id = 2; id <= 3; id++) {
        struct peer *l = leader_of(peers, N);
        int status = RAFT_CATCH_UP_RUNNING;
        CHECK(l != NULL);
        CHECK_EQ(peer_submit(l, "w", &err), 0);
        run(peers, N, ELECTION_MS);
        size_t len = strlen(conf);
        snprintf(conf + len, sizeof conf - len, " %llus", id);
        CHECK_EQ(peer_change(l, conf, &err), 0);
        run(peers, N, 2 * ELECTION_MS);
        CHECK_EQ(guard_catch_up(l->g, now, id, &err), 0);
        run(peers, N, ELECTION_MS);
        CHECK_EQ(raft_catch_up(l->r, id, &status), 0);
        CHECK_EQ(status, RAFT_CATCH_UP_FINISHED);
        conf[strlen(conf) - 1] = 'v';
        CHECK_EQ(peer_change(l, conf, &err), 0);
        run(peers, N, 2 * ELECTION_MS);
    }
    struct peer *first = leader_of(peers, N);
    CHECK_EQ(first->id, 1);
    CHECK_EQ(guard_transfer(first->g, now, 3, &err), 0);
    run(peers, N, 2 * ELECTION_MS);
    struct peer *second = leader_of(peers, N);
    CHECK(second != NULL && second->id == 3);
    CHECK(!leads(first));
    CHECK_EQ(peer_change(second, "2v 3v", &err), 0); /* the old leader goes */
    run(peers, N, 2 * ELECTION_MS);
    peer_crash(first);
    CHECK_EQ(peer_submit(second, "last", &err), 0);
    run(peers, N, 2 * ELECTION_MS);
    CHECK_EQ(peers[1]->applied, last_index(second));
    for (raft_index i = 1; i <= last_index(second); i++) {
        const struct raft_entry *x = log_at(second, i), *y = log_at(peers[1], i);
        CHECK(x->term == y->term && x->buf.len == y->buf.len && memcmp(x->buf.base, y->buf.base, x->buf.len) == 0);
    }
    CHECK_EQ(last_index(peers[3]), 0);
    for (unsigned i = 0; i < N; i++)
        peer_free(peers[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"guard/strangers_needed", test_strangers_needed, NULL, NULL, NULL},
        {"guard/strangers_dropped", test_strangers_dropped, NULL, NULL, NULL},
        {"guard/malformed", test_malformed, NULL, NULL, NULL},
        {"guard/configuration_valid", test_configuration_valid, NULL, NULL, NULL},
        {"guard/two_leaders", test_two_leaders, NULL, NULL, NULL},
        {"guard/update_error", test_update_error, NULL, NULL, NULL},
        {"guard/core_error", test_core_error, NULL, NULL, NULL},
        {"guard/no_memory", test_no_memory, NULL, NULL, NULL},
        {"guard/borrowed_bufs", test_borrowed_bufs, NULL, NULL, NULL},
        {"guard/submit", test_submit, NULL, NULL, NULL},
        {"guard/change", test_change, NULL, NULL, NULL},
        {"guard/remove_dead", test_remove_dead, NULL, NULL, NULL},
        {"guard/change_held", test_change_held, NULL, NULL, NULL},
        {"guard/install", test_install, NULL, NULL, NULL},
        {"guard/snapshot", test_snapshot, NULL, NULL, NULL},
        {"guard/log_range", test_log_range, NULL, NULL, NULL},
        {"guard/acknowledged", test_acknowledged, NULL, NULL, NULL},
        {"guard/start", test_start, NULL, NULL, NULL},
        {"guard/deadline", test_deadline, NULL, NULL, NULL},
        {"guard/cluster", test_cluster, NULL, NULL, NULL},
    };
    raft_heap_set(&heap);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("guard_rules", tests, NULL, NULL);
}
