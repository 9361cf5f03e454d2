/* test_guard.c - one deterministic scenario per guard, each run twice: with all guards nothing bad may happen, and without that one guard it must (else
 * the guard doesn't matter any more, and somebody should know). Then the guard's own behaviour.
 *
 * A scenario is a function that says whether the bad thing happened. The run without the guard is a child process: a libraft with assertions
 * aborts in some of them, which counts as bad; so does nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "guard_peer.h"

#define CHILD_BAD 77

typedef bool scenario(unsigned off);

struct guard_case {
    const char *name;
    unsigned bit;
    scenario *bad;
};

static struct raft_message append_result(raft_term term, raft_index rejected, raft_index last)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = RAFT_APPEND_ENTRIES_RESULT;
    m.append_entries_result.version = 2;
    m.append_entries_result.term = term;
    m.append_entries_result.rejected = rejected;
    m.append_entries_result.last_log_index = last;
    return m;
}

/* --- 1: answers to a stale term ---------------------------------------------------------------------------------------------- */

/* Server 1 leads term 2; what it appended is stored by nobody else. A request of its own of term 1, delayed, reaches server 2. */
static bool commits_by_stale_answer(unsigned off, bool image)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct raft_message m;
    struct err err;
    elect(a, b);
    CHECK_EQ(peer_submit(a, "x", &err), 0);
    peer_stored(a);
    raft_index before = raft_commit_index(a->r);
    out_clear(b);
    memset(&m, 0, sizeof m);
    if (image) {
        m.type = RAFT_INSTALL_SNAPSHOT;
        m.install_snapshot.term = 1;
        m.install_snapshot.last_index = 1;
        m.install_snapshot.last_term = 1;
        m.install_snapshot.conf_index = 1;
        conf_parse("1v 2v 3v", &m.install_snapshot.conf);
    } else {
        m.type = RAFT_APPEND_ENTRIES;
        m.append_entries.term = 1;
    }
    CHECK_EQ(peer_receive(b, 1, m), 0);
    CHECK(pass(b, a, RAFT_APPEND_ENTRIES_RESULT));
    bool bad = raft_commit_index(a->r) > before;
    peer_free(a);
    peer_free(b);
    return bad;
}

static bool stale_append(unsigned off)
{
    return commits_by_stale_answer(off, false);
}

static bool stale_image(unsigned off)
{
    return commits_by_stale_answer(off, true);
}

/* --- 2: a sole voter starts in the same term ------------------------------------------------------------------------------------ */

static bool sole_start(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 5, "1v 2s");
    struct raft_entry first, second;
    struct err err;
    CHECK(leads(a));
    CHECK_EQ(peer_submit(a, "one", &err), 0);
    raft_index index = last_index(a);
    first = entry_copy(log_at(a, index)); /* sent to 2, never stored by 1 */
    peer_crash(a);
    peer_start(a);
    CHECK(leads(a));
    if (last_index(a) < index)
        CHECK_EQ(peer_submit(a, "two", &err), 0);
    CHECK_EQ(last_index(a), index);
    second = entry_copy(log_at(a, index));
    bool bad = first.term == second.term && strcmp(first.buf.base, second.buf.base) != 0;
    CHECK(bad || a->term > 5); /* else the new term has been made durable */
    free(first.buf.base);
    free(second.buf.base);
    peer_free(a);
    return bad;
}

/* --- 3, 4: configurations on a follower --------------------------------------------------------------------------------------------- */

/* A CHANGE that isn't the first of its batch is cut off by the next leader: the configuration before it must come back. */
static bool split_change(unsigned off)
{
    struct peer *c = peer_boot1(3, off, 1, "1v 2v 3v");
    struct raft_entry batch[3] = {entry_make(2, RAFT_COMMAND, "a"), entry_make(2, RAFT_COMMAND, "b"), entry_make(2, RAFT_CHANGE, "1v 3v")};
    CHECK_EQ(peer_append(c, 1, 2, 1, 1, 1, batch, 3), 0);
    CHECK_STR(conf_text(&c->r->configuration), "1v 3v");
    CHECK_EQ(last_index(c), 4);
    struct raft_entry other = entry_make(3, RAFT_COMMAND, "c");
    CHECK_EQ(peer_append(c, 2, 3, 3, 2, 1, &other, 1), 0);
    bool bad = strcmp(conf_text(&c->r->configuration), "1v 2v 3v") != 0;
    peer_free(c);
    return bad;
}

/* The second CHANGE arrives before the first, committed, is applied here; then the next leader cuts the second off. */
static bool previous_change(unsigned off)
{
    struct peer *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct raft_entry first = entry_make(2, RAFT_CHANGE, "1v 2v 3v 4s"), second = entry_make(2, RAFT_CHANGE, "1v 2v 3v 4v"), other;
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 1, &first, 1), 0);
    CHECK_EQ(peer_append(b, 1, 2, 2, 2, 2, &second, 1), 0);
    CHECK_STR(conf_text(&b->r->configuration), "1v 2v 3v 4v");
    other = entry_make(3, RAFT_COMMAND, "c");
    CHECK_EQ(peer_append(b, 3, 3, 2, 2, 2, &other, 1), 0);
    bool bad = strcmp(conf_text(&b->r->configuration), "1v 2v 3v 4s") != 0;
    peer_free(b);
    return bad;
}

/* The same with the second CHANGE in the first message of a leader of a new term. */
static bool previous_change_new_term(unsigned off)
{
    struct peer *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct raft_entry first = entry_make(2, RAFT_CHANGE, "1v 2v 3v 4s"), second = entry_make(3, RAFT_CHANGE, "1v 2v 3v 4v"), other;
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 1, &first, 1), 0);
    CHECK_EQ(peer_append(b, 3, 3, 2, 2, 2, &second, 1), 0);
    other = entry_make(4, RAFT_COMMAND, "c");
    CHECK_EQ(peer_append(b, 1, 4, 2, 2, 2, &other, 1), 0);
    bool bad = strcmp(conf_text(&b->r->configuration), "1v 2v 3v 4s") != 0;
    peer_free(b);
    return bad;
}

/* --- 5: a duplicate from before the log was cut ---------------------------------------------------------------------------------------- */

static bool duplicate_below_log(unsigned off)
{
    struct peer *b = peer_boot_image(2, off, 2, 10, 2, "1v 2v 3v");
    struct raft_entry first = entry_make(1, RAFT_CHANGE, "1v 2v 3v");
    CHECK_EQ(peer_append(b, 1, 2, 0, 0, 1, &first, 1), 0);
    bool bad = b->wild || raft_last_index(b->r) != 10; /* eleven entries made of one */
    if (!bad) {
        const struct raft_message *m = waiting(b, RAFT_APPEND_ENTRIES_RESULT, 1);
        CHECK(m != NULL);
        CHECK_EQ(m->append_entries_result.rejected, 0);
        CHECK_EQ(m->append_entries_result.last_log_index, 10);
        CHECK_EQ(guard_counts(b->g)->trimmed, 1);
    }
    peer_free(b);
    return bad;
}

/* --- 6: an entry of the current term ------------------------------------------------------------------------------------------------------ */

static bool no_barrier(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    CHECK_EQ(raft_commit_index(a->r), last_index(a));
    elect(a, b);
    const struct raft_entry *e = log_at(a, 2);
    bool bad = !e || e->type != RAFT_BARRIER || e->term != raft_current_term(a->r);
    peer_free(a);
    peer_free(b);
    return bad;
}

/* The known bug of changes by single servers. Of four voters, the leader adds server 5, which only the two of them store; then they are cut off. Another leader,
 * elected by the other two, removes the first one, not having committed anything of its term: it commits that with one of them. The third, who hasn't heard of it,
 * elects one of the first two, and they commit the addition: two logs. */
static bool change_too_early(unsigned off)
{
    const char *without[] = {"2v 3v 4v", "1v 3v 4v", "1v 2v 4v", "1v 2v 3v"};
    struct peer *peers[5], *rest[3];
    struct err err;
    for (raft_id id = 1; id <= 4; id++)
        peers[id - 1] = peer_boot1(id, off, 1, "1v 2v 3v 4v");
    peers[4] = peer_new(5, off, 0);
    peer_create(peers[4]);
    struct guard_start start = {.start_index = 1};
    CHECK_EQ(guard_start(peers[4]->g, now, &start, &err), 0);
    run(peers, 4, 5 * ELECTION_MS);
    struct peer *first = leader_of(peers, 4);
    CHECK(first != NULL);
    for (unsigned i = 0, n = 0; i < 4; i++)
        if (peers[i] != first)
            rest[n++] = peers[i];
    CHECK_EQ(peer_change(first, "1v 2v 3v 4v 5v", &err), 0);
    struct peer *cut_off[] = {first, peers[4]};
    run(cut_off, 2, 5 * ELECTION_MS);
    CHECK_EQ(last_index(peers[4]), last_index(first));

    struct peer *second = NULL;
    for (int i = 0; i < 20 * ELECTION_MS && !second; i++) {
        run(rest, 3, 1);
        second = leader_of(rest, 3);
    }
    CHECK(second != NULL);
    struct peer *helper = second == rest[0] ? rest[1] : rest[0], *third = second == rest[2] ? rest[1] : rest[2];
    int rc = peer_change(second, without[first->id - 1], &err);
    if (rc) {
        CHECK_EQ(rc, RAFTDIR_EBUSY);
        CHECK(strstr(err.text, "hasn't committed") != NULL);
    }
    struct peer *pair[] = {second, helper};
    run(pair, 2, ELECTION_MS / 2);

    struct peer *others[] = {first, third, peers[4]};
    run(others, 3, 20 * ELECTION_MS);
    bool bad = false;
    for (raft_index i = 1; i <= raft_commit_index(first->r) && i <= raft_commit_index(second->r); i++)
        bad = bad || log_at(first, i)->term != log_at(second, i)->term;
    for (unsigned i = 0; i < 5; i++)
        peer_free(peers[i]);
    return bad;
}

/* --- 7: a rejection that was overtaken --------------------------------------------------------------------------------------------------- */

/* Server 2 has acknowledged 5 of 7 and lost the rest; then its rejection of old arrives. It must still get 6 and 7. */
static bool late_rejection(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct err err;
    elect(a, b);
    raft_term term = raft_current_term(a->r);
    while (last_index(a) < 5)
        CHECK_EQ(peer_submit(a, "x", &err), 0);
    CHECK_EQ(peer_receive(a, 2, append_result(term, 0, 5)), 0); /* match 5, pipeline */
    CHECK_EQ(peer_submit(a, "x", &err), 0);
    CHECK_EQ(peer_submit(a, "x", &err), 0);
    CHECK_EQ(peer_receive(a, 2, append_result(term, 7, 5)), 0); /* 6 was lost: next 6, probe */
    CHECK_EQ(peer_receive(a, 2, append_result(term, 5, 2)), 0); /* late */
    bool bad = true;
    for (int i = 0; i < 20 && bad; i++) {
        out_clear(a);
        now += BEAT_MS;
        peer_timeout(a);
        const struct raft_message *m = waiting(a, RAFT_APPEND_ENTRIES, 2);
        CHECK(m != NULL);
        raft_index sent = m->append_entries.prev_log_index + m->append_entries.n_entries;
        if (m->append_entries.n_entries && sent == 7)
            bad = false;
        CHECK_EQ(peer_receive(a, 2, append_result(term, 0, sent < 5 ? sent : 5)), 0);
    }
    peer_free(a);
    peer_free(b);
    return bad;
}

/* --- 8: elections that need to learn a term --------------------------------------------------------------------------------------------- */

/* Server 2 has the longer log but an old term, server 1 a high term but a shorter log: each refuses the other. */
static bool prevote_hides_term(unsigned off)
{
    struct peer *peers[2] = {peer_boot1(1, off, 9, "1v 2v"), peer_boot1(2, off, 3, "1v 2v")};
    struct raft_entry e = entry_make(2, RAFT_COMMAND, "longer");
    CHECK_EQ(peer_append(peers[1], 1, 3, 1, 1, 1, &e, 1), 0);
    peer_stored(peers[1]);
    out_clear(peers[1]);
    run(peers, 2, 60 * ELECTION_MS);
    bool bad = !leader_of(peers, 2);
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* --- 9: the vote of a server that doesn't know yet that it is a voter --------------------------------------------------------------------- */

/* 1 led {1v 2s}, appended the promotion of 2, and starts again before 2 has it: it needs the vote of 2. */
static bool nonvoter_vote(unsigned off)
{
    const char *promoted[] = {"1v 2s", "1v 2v"};
    struct peer *peers[2] = {peer_boot(1, off, 5, promoted, 2), peer_boot1(2, off, 5, "1v 2s")};
    CHECK_EQ(peer_append(peers[1], 1, 5, 1, 1, 1, NULL, 0), 0); /* 2 has heard its leader */
    out_clear(peers[1]);
    run(peers, 2, 60 * ELECTION_MS);
    bool bad = !leader_of(peers, 2);
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* --- 10: the leader demotes itself --------------------------------------------------------------------------------------------------------- */

/* Only the leader has stored its own demotion when it starts again, and server 3 is down: 1 and 2 are a majority and need a leader. */
static bool self_demotion(unsigned off)
{
    struct peer *peers[2] = {peer_boot1(1, off, 1, "1v 2v 3v"), peer_boot1(2, off, 1, "1v 2v 3v")};
    struct err err;
    elect(peers[0], peers[1]);
    peer_stored(peers[0]);
    CHECK_EQ(peer_receive(peers[0], 2, append_result(raft_current_term(peers[0]->r), 0, 2)), 0); /* the barrier is committed */
    CHECK_EQ(peer_receive(peers[0], 3, append_result(raft_current_term(peers[0]->r), 0, 1)), 0);
    struct raft_entry barrier = entry_copy(log_at(peers[0], 2));
    CHECK_EQ(peer_append(peers[1], 1, raft_current_term(peers[0]->r), 1, 1, 2, &barrier, 1), 0);
    peer_stored(peers[1]);
    int rc = peer_change(peers[0], "1s 2v 3v", &err);
    if (rc) {
        CHECK_EQ(rc, RAFTDIR_EINVAL);
        CHECK(strstr(err.text, "transfer the leadership") != NULL);
        rc = peer_change(peers[0], "2v 3v", &err);
        CHECK_EQ(rc, RAFTDIR_EINVAL);
    } else {
        peer_stored(peers[0]);
    }
    peer_crash(peers[0]);
    peer_start(peers[0]);
    out_clear(peers[1]);
    run(peers, 2, 60 * ELECTION_MS);
    bool bad = !leader_of(peers, 2);
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* --- 11: the permission to disrupt ------------------------------------------------------------------------------------------------------------ */

static bool disrupt_sticks(unsigned off)
{
    struct peer *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct raft_message m;
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 1, NULL, 0), 0);
    memset(&m, 0, sizeof m);
    m.type = RAFT_TIMEOUT_NOW;
    m.timeout_now.term = 2;
    m.timeout_now.last_log_index = 1;
    m.timeout_now.last_log_term = 1;
    CHECK_EQ(peer_receive(b, 1, m), 0);
    const struct raft_message *v = waiting(b, RAFT_REQUEST_VOTE, 3);
    CHECK(v != NULL);
    CHECK(v->request_vote.disrupt_leader);
    out_clear(b);
    peer_expire(b);
    v = waiting(b, RAFT_REQUEST_VOTE, 3);
    CHECK(v != NULL);
    bool bad = v->request_vote.disrupt_leader;
    peer_free(b);
    return bad;
}

/* --- 12: the commit index goes back ------------------------------------------------------------------------------------------------------------- */

static bool commit_goes_back(unsigned off)
{
    struct peer *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct raft_entry batch[3] = {entry_make(2, RAFT_COMMAND, "a"), entry_make(2, RAFT_COMMAND, "b"), entry_make(2, RAFT_COMMAND, "c")};
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 4, batch, 3), 0);
    CHECK_EQ(raft_commit_index(b->r), 4);
    b->flags = 0;
    CHECK_EQ(peer_append(b, 1, 2, 1, 1, 5, NULL, 0), 0); /* older, but with a newer commit index */
    bool bad = raft_commit_index(b->r) != 4;
    if (!bad)
        CHECK(!(b->flags & RAFT_UPDATE_COMMIT_INDEX));
    peer_free(b);
    return bad;
}

/* --- 13: the union ------------------------------------------------------------------------------------------------------------------------------- */

_Static_assert(offsetof(struct raft, candidate_state.in_pre_vote) == offsetof(struct raft, leader_state.promotee_id) + 1,
               "the scenario of row 13 knows what a leader has where a candidate has in_pre_vote");

/* A vote result of a higher term reaches a leader that catches up server 256, or doesn't. That can't matter: but a leader keeps the id
 * of that server where a candidate keeps "in pre-vote". */
static bool steps_down_by_vote_result(unsigned off, bool catching_up)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v 256s"), *b = peer_boot1(2, off, 1, "1v 2v 3v 256s");
    struct raft_message m;
    struct err err;
    elect(a, b);
    if (catching_up)
        CHECK_EQ(guard_catch_up(a->g, now, 256, &err), 0);
    memset(&m, 0, sizeof m);
    m.type = RAFT_REQUEST_VOTE_RESULT;
    m.request_vote_result.version = 2;
    m.request_vote_result.term = raft_current_term(a->r) + 1;
    CHECK_EQ(peer_receive(a, 2, m), 0);
    bool steps_down = !leads(a);
    peer_free(a);
    peer_free(b);
    return steps_down;
}

static bool vote_result_union(unsigned off)
{
    return steps_down_by_vote_result(off, false) != steps_down_by_vote_result(off, true);
}

/* --- 14: a sole voter elects itself --------------------------------------------------------------------------------------------------------------- */

/* Stepped down by a standby's higher term, in which that standby might have led: it must not lead in that term. */
static bool sole_timeout(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 5, "1v 2s");
    CHECK(leads(a));
    peer_stored(a);
    raft_term term = raft_current_term(a->r) + 1;
    CHECK_EQ(peer_receive(a, 2, append_result(term, 0, 0)), 0);
    CHECK(!(leads(a)));
    out_clear(a);
    peer_expire(a);
    CHECK(leads(a));
    bool bad = raft_current_term(a->r) == term;
    if (!bad) {
        CHECK_EQ(a->term, term + 1); /* durable */
        CHECK_EQ(a->vote, 1);
        CHECK(waiting(a, RAFT_REQUEST_VOTE_RESULT, 1) == NULL); /* its own answer isn't sent */
    }
    peer_free(a);
    return bad;
}

/* The leader of {1v 2v} removes itself; 2 stores that, but 1 doesn't hear of it. (Guard 10 is off in both runs: it forbids the start of this.) */
static bool sole_by_change(unsigned off, bool timeout_now)
{
    unsigned both = GUARD_NO_SELF_REMOVAL | GUARD_CHANGE_STORED | GUARD_NONMEMBER;
    struct peer *a = peer_boot1(1, off | both, 1, "1v 2v"), *b = peer_boot1(2, off | both, 1, "1v 2v");
    struct err err;
    elect(a, b);
    peer_stored(a);
    struct raft_entry barrier = entry_copy(log_at(a, 2));
    raft_term term = raft_current_term(a->r);
    CHECK_EQ(peer_append(b, 1, term, 1, 1, 1, &barrier, 1), 0);
    peer_stored(b);
    CHECK(pass(b, a, RAFT_APPEND_ENTRIES_RESULT));
    CHECK_EQ(peer_change(a, "2v", &err), 0);
    struct raft_entry change = entry_copy(log_at(a, 3));
    CHECK_EQ(peer_append(b, 1, term, 2, term, 2, &change, 1), 0);
    peer_stored(b);
    if (timeout_now) {
        struct raft_message m;
        memset(&m, 0, sizeof m);
        m.type = RAFT_TIMEOUT_NOW;
        m.timeout_now.term = term;
        m.timeout_now.last_log_index = 3;
        m.timeout_now.last_log_term = term;
        CHECK_EQ(peer_receive(b, 1, m), 0);
    } else {
        peer_expire(b);
    }
    CHECK(leads(a));
    bool bad = leads(b) && raft_current_term(b->r) == raft_current_term(a->r);
    CHECK_EQ(leads(b), bad || !timeout_now);
    peer_free(a);
    peer_free(b);
    return bad;
}

static bool sole_by_change_timeout(unsigned off)
{
    return sole_by_change(off, false);
}

static bool sole_by_change_timeout_now(unsigned off)
{
    return sole_by_change(off, true);
}

/* --- Beyond the table --------------------------------------------------------------------------------------------------------------------------- */

/* Voter 3 hasn't stored the last committed change: the next one has to wait. */
static bool change_unknown_to_a_voter(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    struct err err;
    elect(a, b);
    raft_term term = raft_current_term(a->r);
    peer_stored(a);
    CHECK_EQ(peer_receive(a, 2, append_result(term, 0, 2)), 0);
    CHECK_EQ(peer_receive(a, 3, append_result(term, 0, 1)), 0);
    CHECK_EQ(peer_change(a, "1v 2v 3v 4s", &err), 0);
    CHECK_EQ(last_index(a), 3);
    peer_stored(a);
    CHECK_EQ(peer_receive(a, 2, append_result(term, 0, 3)), 0);
    CHECK_EQ(peer_receive(a, 3, append_result(term, 0, 2)), 0);
    peer_apply(a);
    int rc = peer_change(a, "1v 2v 3v 4v", &err);
    bool bad = rc == 0;
    if (!bad) {
        CHECK_EQ(rc, RAFTDIR_EBUSY);
        CHECK(strstr(err.text, "server 3 has not stored the last change yet") != NULL);
        CHECK_EQ(peer_receive(a, 3, append_result(term, 0, 3)), 0);
        CHECK_EQ(peer_change(a, "1v 2v 3v 4v", &err), 0);
    }
    peer_free(a);
    peer_free(b);
    return bad;
}

/* A result, and a vote request with the permission to disrupt, of server 9, which was removed. */
static bool stranger_unseats_leader(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    elect(a, b);
    raft_term term = raft_current_term(a->r);
    CHECK_EQ(peer_receive(a, 9, append_result(term + 5, 0, 0)), 0);
    bool bad = !leads(a);
    peer_free(a);
    peer_free(b);
    return bad;
}

static struct raft_message vote_request(raft_id candidate, raft_term term, raft_index last, raft_term last_term, bool disrupt)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = RAFT_REQUEST_VOTE;
    m.request_vote.version = 2;
    m.request_vote.term = term;
    m.request_vote.candidate_id = candidate;
    m.request_vote.last_log_index = last;
    m.request_vote.last_log_term = last_term;
    m.request_vote.disrupt_leader = disrupt;
    return m;
}

static bool stranger_disrupts(unsigned off)
{
    struct peer *a = peer_boot1(1, off, 1, "1v 2v 3v"), *b = peer_boot1(2, off, 1, "1v 2v 3v");
    elect(a, b);
    raft_term term = raft_current_term(a->r);
    CHECK_EQ(peer_append(b, 1, term, 1, 1, 1, NULL, 0), 0); /* 2 has a leader */
    CHECK_EQ(peer_receive(a, 9, vote_request(9, term + 1, 99, term, true)), 0);
    CHECK_EQ(peer_receive(b, 9, vote_request(9, term + 1, 99, term, true)), 0);
    bool bad = !leads(a) || raft_current_term(b->r) != term;
    peer_free(a);
    peer_free(b);
    return bad;
}

/* The leader of {1v 2v} demotes 2, which stores that; the leader's machine stops before it has stored it itself. 2 believes that it is no voter and
 * doesn't campaign, but its log is the newer one, so that it can't vote for the other. */
static bool change_lost_by_leader(unsigned off)
{
    struct peer *peers[2] = {peer_boot1(1, off, 1, "1v 2v"), peer_boot1(2, off, 1, "1v 2v")};
    struct err err;
    run(peers, 2, 10 * ELECTION_MS);
    struct peer *a = leader_of(peers, 2);
    CHECK(a != NULL);
    struct peer *b = a == peers[0] ? peers[1] : peers[0];
    out_clear(a);
    out_clear(b);
    CHECK_EQ(peer_change(a, a->id == 1 ? "1v 2s" : "1s 2v", &err), 0);
    while (pass(a, b, RAFT_APPEND_ENTRIES))
        ;
    peer_stored(b);
    peer_crash(a); /* nothing of it was stored */
    peer_crash(b);
    peer_start(a);
    peer_start(b);
    run(peers, 2, 60 * ELECTION_MS);
    bool bad = !leader_of(peers, 2);
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* Nobody writes, and the standby that is to be promoted holds everything. */
static bool catch_up_never_ends(unsigned off)
{
    struct peer *peers[2] = {peer_boot1(1, off, 1, "1v 2s"), peer_boot1(2, off, 1, "1v 2s")};
    struct err err;
    run(peers, 2, 5 * ELECTION_MS);
    CHECK(leads(peers[0]));
    CHECK_EQ(last_index(peers[1]), last_index(peers[0]));
    CHECK_EQ(guard_catch_up(peers[0]->g, now, 2, &err), 0);
    int status = RAFT_CATCH_UP_RUNNING;
    for (int i = 0; i < 20 && status == RAFT_CATCH_UP_RUNNING; i++) {
        run(peers, 2, ELECTION_MS);
        CHECK_EQ(raft_catch_up(peers[0]->r, 2, &status), 0);
    }
    bool bad = status != RAFT_CATCH_UP_FINISHED;
    if (!bad)
        CHECK_EQ(peer_change(peers[0], "1v 2v", &err), 0);
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* --- 19: a silent leader ------------------------------------------------------------------------------------------------------------------- */

/* 2 and 3 have heard leader 1 for the last time, at the same moment. The first of them whose timer fires gets the other's vote at once; before the
 * election timeout has passed nobody does. */
static bool silent_leader(unsigned off)
{
    struct peer *peers[2] = {peer_boot1(2, off, 5, "1v 2v 3v"), peer_boot1(3, off, 5, "1v 2v 3v")};
    for (int i = 0; i < 2; i++)
        CHECK_EQ(peer_append(peers[i], 1, 5, 1, 1, 1, NULL, 0), 0);
    raft_time heard = now;
    int first = raft_timeout(peers[0]->r) < raft_timeout(peers[1]->r) ? 0 : 1;
    struct peer *p = peers[first], *q = peers[1 - first];
    CHECK(raft_timeout(p->r) < raft_timeout(q->r));
    out_clear(p);
    out_clear(q);
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = RAFT_REQUEST_VOTE;
    m.request_vote.term = 6;
    m.request_vote.candidate_id = p->id;
    m.request_vote.last_log_index = last_index(p);
    m.request_vote.last_log_term = 1;
    m.request_vote.pre_vote = true;
    now = heard + ELECTION_MS - 1;
    CHECK_EQ(peer_receive(q, p->id, m), 0);
    const struct raft_message *answer = waiting(q, RAFT_REQUEST_VOTE_RESULT, p->id);
    CHECK(answer && !answer->request_vote_result.vote_granted);
    out_clear(q);
    now = raft_timeout(p->r);
    CHECK(now >= heard + ELECTION_MS);
    peer_timeout(p);
    CHECK(pass(p, q, RAFT_REQUEST_VOTE)); /* pre-vote */
    CHECK(pass(q, p, RAFT_REQUEST_VOTE_RESULT));
    bool bad = !pass(p, q, RAFT_REQUEST_VOTE);
    if (!bad) {
        CHECK(pass(q, p, RAFT_REQUEST_VOTE_RESULT));
        CHECK(leads(p));
    }
    peer_free(peers[0]);
    peer_free(peers[1]);
    return bad;
}

/* --- 20: an image that was installed by itself -------------------------------------------------------------------------------------------------- */

static void snapshot_take(struct peer *p, raft_index keep_from)
{
    struct raft_snapshot_metadata metadata = {.index = p->applied, .term = p->applied_term, .configuration_index = 1};
    struct err err;
    conf_parse("1v 2v 3v", &metadata.configuration);
    CHECK_EQ(guard_snapshot(p->g, now, &metadata, (unsigned)(p->applied - keep_from + 1), &err), 0);
    raft_configuration_close(&metadata.configuration);
}

/* Server 3 lags behind the leader's log, and comes back with an image a little older than the leader's newest snapshot, whose last entry and successors the leader
 * still holds. Everything that the core needs is there. */
static bool image_not_acknowledged(unsigned off, bool snapshots_go_on)
{
    struct peer *peers[3] = {peer_boot1(1, off, 1, "1v 2v 3v"), peer_boot1(2, off, 1, "1v 2v 3v"), peer_boot1(3, off, 1, "1v 2v 3v")};
    struct err err;
    run(peers, 2, 10 * ELECTION_MS);
    struct peer *leader = leader_of(peers, 2);
    CHECK(leader != NULL);
    for (int i = 0; i < 40; i++)
        CHECK_EQ(peer_submit(leader, "x", &err), 0);
    run(peers, 2, ELECTION_MS);
    raft_index image = leader->applied - 3;
    snapshot_take(leader, image);
    run(peers, 3, ELECTION_MS / 2);
    leader = leader_of(peers, 3);
    CHECK(leader && leader->manifests >= 1);
    CHECK(leader->manifests <= ELECTION_MS / 2 / (BEAT_MS / 2)); /* not one for each rejection as fast as they come */
    raft_term term = peers[2]->term;
    peer_free(peers[2]);
    peers[2] = peer_boot_image(3, off, term, image, log_at(leader, image)->term, "1v 2v 3v");
    for (int i = 0; i < 60; i++) {
        CHECK_EQ(guard_acknowledged(leader->g, now, 3, peers[2]->applied, &err), 0);
        CHECK_EQ(peer_submit(leader, "y", &err), 0);
        run(peers, 3, ELECTION_MS / 4);
        if (snapshots_go_on)
            snapshot_take(leader, image);
        CHECK(leads(leader));
    }
    bool bad = last_index(peers[2]) < last_index(leader);
    unsigned sent = leader->manifests;
    run(peers, 3, 3 * ELECTION_MS);
    CHECK(bad == (leader->manifests > sent)); /* for ever, or never again */
    for (int i = 0; i < 3; i++)
        peer_free(peers[i]);
    return bad;
}

static bool image_installed(unsigned off)
{
    return image_not_acknowledged(off, false);
}

static bool image_installed_under_writes(unsigned off)
{
    return image_not_acknowledged(off, true);
}

static struct guard_case cases[] = {
    {"stale_append", GUARD_STALE_RESULT, stale_append},
    {"stale_image", GUARD_STALE_RESULT, stale_image},
    {"sole_start", GUARD_SOLE_START, sole_start},
    {"split_change", GUARD_SPLIT_CHANGE, split_change},
    {"previous_change", GUARD_PREVIOUS_CHANGE, previous_change},
    {"previous_change_new_term", GUARD_PREVIOUS_CHANGE, previous_change_new_term},
    {"duplicate_below_log", GUARD_TRIM, duplicate_below_log},
    {"no_barrier", GUARD_BARRIER, no_barrier},
    {"change_too_early", GUARD_BARRIER, change_too_early},
    {"late_rejection", GUARD_LATE_REJECT, late_rejection},
    {"prevote_hides_term", GUARD_PREVOTE_TERM, prevote_hides_term},
    {"nonvoter_vote", GUARD_NONVOTER_VOTE, nonvoter_vote},
    {"self_demotion", GUARD_NO_SELF_REMOVAL, self_demotion},
    {"disrupt_sticks", GUARD_DISRUPT_ONCE, disrupt_sticks},
    {"commit_goes_back", GUARD_COMMIT_MONOTONIC, commit_goes_back},
    {"vote_result_union", GUARD_VOTE_RESULT, vote_result_union},
    {"sole_timeout", GUARD_SOLE_TIMEOUT, sole_timeout},
    {"sole_by_change_timeout", GUARD_SOLE_TIMEOUT, sole_by_change_timeout},
    {"sole_by_change_timeout_now", GUARD_SOLE_TIMEOUT, sole_by_change_timeout_now},
    {"change_unknown_to_a_voter", GUARD_CHANGE_KNOWN, change_unknown_to_a_voter},
    {"stranger_unseats_leader", GUARD_NONMEMBER, stranger_unseats_leader},
    {"stranger_disrupts", GUARD_NONMEMBER, stranger_disrupts},
    {"change_lost_by_leader", GUARD_CHANGE_STORED, change_lost_by_leader},
    {"catch_up_never_ends", GUARD_CATCH_UP_IDLE, catch_up_never_ends},
    {"silent_leader", GUARD_SILENT_LEADER, silent_leader},
    {"image_installed", GUARD_ACKNOWLEDGED, image_installed},
    {"image_installed_under_writes", GUARD_ACKNOWLEDGED, image_installed_under_writes},
};
#define CASES_N (sizeof cases / sizeof cases[0])

static void test_with_guard(void **state)
{
    const struct guard_case *c = *state;
    CHECK(!(c->bad(0)));
}

static void test_without_guard(void **state)
{
    const struct guard_case *c = *state;
    int status;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        in_child = true;
        alarm(60);
        _exit(c->bad(c->bit) ? CHILD_BAD : 0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    CHECK(aborted || (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_BAD));
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[2 * CASES_N];
    char names[2 * CASES_N][64];
    raft_heap_set(&heap);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    for (size_t i = 0; i < CASES_N; i++) {
        struct CMUnitTest with = cmocka_unit_test_prestate(test_with_guard, &cases[i]), without = cmocka_unit_test_prestate(test_without_guard, &cases[i]);
        snprintf(names[2 * i], sizeof names[0], "guard/%s", cases[i].name);
        snprintf(names[2 * i + 1], sizeof names[0], "guard/%s_off", cases[i].name);
        with.name = names[2 * i];
        without.name = names[2 * i + 1];
        tests[2 * i] = with;
        tests[2 * i + 1] = without;
    }
    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
