/* sim_check.c - what has to hold between the nodes, looked at after every call into a driver: terms, leaders, logs, commits, applied states. */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TERMS_MAX (1u << 16)
#define CONVERGE_MS 20000
#define NOTICE_MS 20000 /* for a member whose state differs, while clients go on */
#define DEADLINE_SLACK_MS 300

static struct sim_log committed;          /* by whichever leader first */
static uint64_t *commit_terms;            /* the leader's term at that moment */
static size_t commit_terms_cap;
static uint64_t leaders[TERMS_MAX];       /* the leader of each term */
static uint64_t *votes[IDS_MAX];          /* each member's durable vote in each term */
static struct {
    uint64_t at, index;
} *acks;
static size_t acks_n, acks_cap;
static uint64_t healed_at;

uint64_t check_committed(void)
{
    return committed.n;
}

uint64_t check_committed_term(uint64_t index)
{
    const struct entry *e = log_at(&committed, index);
    return e ? e->term : 0;
}

const struct entry *check_entry(uint64_t index)
{
    const struct entry *e = log_at(&committed, index);
    if (!e)
        sim_violation("simulation", "index %" PRIu64 " is not committed", index);
    return e;
}

/* --- Acknowledgements ------------------------------------------------------------------------------------------------------------- */

void check_acked(uint64_t index)
{
    if (index <= check_acked_max())
        return;
    if (acks_n == acks_cap) {
        acks_cap = acks_cap ? acks_cap * 2 : 256;
        acks = realloc(acks, acks_cap * sizeof *acks);
        if (!acks)
            abort();
    }
    acks[acks_n].at = sim.now;
    acks[acks_n++].index = index;
}

uint64_t check_acked_max(void)
{
    return acks_n ? acks[acks_n - 1].index : 0;
}

uint64_t check_acked_at(uint64_t time)
{
    size_t i = acks_n;
    while (i && acks[i - 1].at > time)
        i--;
    return i ? acks[i - 1].index : 0;
}

/* --- Leaders and commits ------------------------------------------------------------------------------------------------------------ */

static void elected(struct sim_node *n, uint64_t term)
{
    if (term >= TERMS_MAX)
        sim_violation("election", "term %" PRIu64, term);
    if (leaders[term] && leaders[term] != n->id)
        sim_violation("election safety", "members %" PRIu64 " and %" PRIu64 " lead in term %" PRIu64, leaders[term], n->id, term);
    if (leaders[term] == n->id && n->was_leader)
        return;
    leaders[term] = n->id;
    sim.stats.elections++;
    TRACE("check: %" PRIu64 " leads in term %" PRIu64, n->id, term);
    for (uint64_t i = committed.n; i > n->log.base && i + 64 > committed.n; i--) {
        if (commit_terms[i - 1] >= term)
            continue; /* committed by a newer leader */
        const struct entry *e = log_at(&n->log, i);
        if (!e || e->term != committed.e[i - 1]->term)
            sim_violation("leader completeness", "member %" PRIu64 " leads in term %" PRIu64 " without entry %" PRIu64 " that was committed in term %" PRIu64,
                          n->id, term, i, commit_terms[i - 1]);
    }
}

static void commit(struct entry *e, uint64_t term)
{
    log_append(&committed, &e, 1);
    if (committed.n > commit_terms_cap) {
        commit_terms_cap = commit_terms_cap ? commit_terms_cap * 2 : 1024;
        commit_terms = realloc(commit_terms, commit_terms_cap * sizeof *commit_terms);
        if (!commit_terms)
            abort();
    }
    commit_terms[committed.n - 1] = term;
    sim.stats.commits++;
}

/* The first configuration is committed by agreement: all that start with it hold it. */
void check_first_entry(struct entry *e)
{
    commit(e, e->term);
}

static void new_commits(struct sim_node *n, uint64_t index)
{
    struct node_peer peers[MEMBERS_MAX];
    unsigned voters = 0, durable = 0;
    for (uint64_t i = committed.n + 1; i <= index; i++) {
        struct entry *e = log_at(&n->log, i);
        if (!e)
            sim_violation("commit", "leader %" PRIu64 " commits %" PRIu64 ", its log ends at %" PRIu64, n->id, i, log_last(&n->log));
        commit(e, n->status.term);
    }
    uint64_t term = committed.e[index - 1]->term;
    size_t members = node_members(n->node, node_clock(n), peers, MEMBERS_MAX);
    for (size_t i = 0; i < members; i++) {
        if (peers[i].role != RAFT_VOTER)
            continue;
        voters++;
        durable += disk_has(peers[i].id, index, term);
    }
    if (durable <= voters / 2)
        sim_violation("durable majority", "leader %" PRIu64 " commits %" PRIu64 " of term %" PRIu64 ", which is on disk at %u of %u voters", n->id, index,
                      term, durable, voters);
}

void check_node(struct sim_node *n)
{
    const struct node_status *s = &n->status;
    if (s->state == NODE_FAILED || n->failed)
        return;
    if (s->term < n->term_seen)
        sim_violation("term monotonic", "member %" PRIu64 " goes from term %" PRIu64 " to %" PRIu64, n->id, n->term_seen, s->term);
    n->term_seen = s->term;
    if (!n->doomed && s->term != n->disk.term)
        sim_violation("term durable", "member %" PRIu64 " is in term %" PRIu64 ", its disk in %" PRIu64, n->id, s->term, n->disk.term);
    if (s->state == NODE_LEADER)
        elected(n, s->term);
    if (s->state == NODE_LEADER && n->differs)
        sim.wrong_leader_at = sim.now;
    n->was_leader = s->state == NODE_LEADER;
    if (n->doomed && s->state != NODE_LEADER)
        return; /* what it was about to write may be lost with it; a dying leader's commits may have been heard of */
    if (s->commit_index < n->commit_seen)
        sim_violation("commit monotonic", "member %" PRIu64 " goes from %" PRIu64 " to %" PRIu64, n->id, n->commit_seen, s->commit_index);
    if (s->commit_index > committed.n) {
        if (s->state != NODE_LEADER)
            sim_violation("commit", "member %" PRIu64 " takes %" PRIu64 " for committed, no leader has gone beyond %zu", n->id, s->commit_index,
                          committed.n);
        new_commits(n, s->commit_index);
    }
    for (uint64_t i = (n->commit_seen > n->log.base ? n->commit_seen : n->log.base) + 1; i <= s->commit_index; i++) {
        const struct entry *e = log_at(&n->log, i);
        if (!e || !entry_same(e, committed.e[i - 1]))
            sim_violation("committed entries", "member %" PRIu64 " has %s entry %" PRIu64 " than was committed", n->id, e ? "another" : "no", i);
    }
    n->commit_seen = s->commit_index;
}

void check_vote(const struct sim_node *n, uint64_t term, uint64_t voted_for)
{
    if (!voted_for)
        return;
    if (term >= TERMS_MAX)
        sim_violation("election", "term %" PRIu64, term);
    if (!votes[n->id])
        votes[n->id] = xcalloc(TERMS_MAX, sizeof **votes);
    uint64_t *vote = &votes[n->id][term];
    if (*vote && *vote != voted_for)
        sim_violation("vote", "member %" PRIu64 " votes for %" PRIu64 " and for %" PRIu64 " in term %" PRIu64, n->id, *vote, voted_for, term);
    *vote = voted_for;
}

void check_boot(struct sim_node *n, uint64_t term, uint64_t voted_for)
{
    uint64_t vote = votes[n->id] && term < TERMS_MAX ? votes[n->id][term] : 0;
    if (vote && vote != voted_for && !n->clone)
        sim_violation("vote", "member %" PRIu64 " starts in term %" PRIu64 " and doesn't know any more that it voted for %" PRIu64, n->id, term, vote);
    if (term < n->term_seen)
        sim_violation("term monotonic", "member %" PRIu64 " starts in term %" PRIu64 " after %" PRIu64, n->id, term, n->term_seen);
}

/* --- Apply ----------------------------------------------------------------------------------------------------------------------------- */

void check_to_apply(struct sim_node *n, const struct apply_batch *b)
{
    if (!b->n || b->first > n->applied_seen + 1)
        sim_violation("apply order", "member %" PRIu64 " applies %u entries from %" PRIu64 " after %" PRIu64, n->id, b->n, b->first, n->applied_seen);
    for (unsigned i = 0; i < b->n; i++) {
        const struct entry *e = b->entries[i];
        if (e->index != b->first + i)
            sim_violation("apply order", "member %" PRIu64 ": entry %" PRIu64 " in place of %" PRIu64, n->id, e->index, b->first + i);
        if (e->index > committed.n)
            sim_violation("apply committed", "member %" PRIu64 " applies %" PRIu64 ", committed is %zu", n->id, e->index, committed.n);
        if (!entry_same(e, committed.e[e->index - 1]))
            sim_violation("committed entries", "member %" PRIu64 " applies another entry %" PRIu64 " than was committed", n->id, e->index);
        if (!planted(PLANT_ACK_BEFORE_DURABLE) && !disk_has(n->id, e->index, e->term))
            sim_violation("apply durable", "member %" PRIu64 " applies %" PRIu64 ", which is not on its disk", n->id, e->index);
    }
}

bool check_same_state(uint64_t index, const uint8_t digest[16])
{
    uint8_t expected[16];
    model_digest(index, expected);
    return !index || !memcmp(digest, expected, 16);
}

static void compare_digest(const struct sim_node *n, uint64_t index, const uint8_t digest[16])
{
    if (!n->differs && !check_same_state(index, digest))
        sim_violation("digest", "the state of member %" PRIu64 " at index %" PRIu64 " is not what the log says", n->id, index);
}

void check_applied(struct sim_node *n, const struct apply_batch *b)
{
    uint64_t last = b->first + b->n - 1;
    if (b->status)
        sim_violation("apply", "member %" PRIu64 " at %" PRIu64 ": %s", n->id, b->first, b->err.text);
    if (last <= n->applied_seen)
        return; /* nothing but what was applied already */
    if (b->meta.applied_index != last || b->meta.applied_term != b->entries[b->n - 1]->term)
        sim_violation("apply", "member %" PRIu64 " says applied %" PRIu64 " after a batch up to %" PRIu64, n->id, b->meta.applied_index, last);
    compare_digest(n, last, b->meta.digest);
    if (n->differs) {
        n->differs_now = !check_same_state(last, b->meta.digest);
        n->applied_seen = last;
        return;
    }
    size_t at = 0;
    for (uint64_t i = n->applied_seen + 1; i <= last; i++) {
        size_t results_n;
        const struct apply_result *expected = model_results(i, &results_n);
        for (size_t k = 0; k < results_n; k++, at++) {
            const struct apply_result *r = &b->results[at];
            if (at >= b->results_n || memcmp(r->op_id, expected[k].op_id, OP_ID_LEN) || r->replayed != expected[k].replayed ||
                r->result_len != expected[k].result_len || memcmp(r->result, expected[k].result, r->result_len))
                sim_violation("result", "member %" PRIu64 " has another result %zu of index %" PRIu64 " than the log says", n->id, k, i);
        }
    }
    if (at != b->results_n)
        sim_violation("result", "member %" PRIu64 " has %zu results for %zu requests", n->id, b->results_n, at);
    n->applied_seen = last;
}

static void problem(void *data, const char *text)
{
    const struct sim_node *n = data;
    sim_violation("verify", "member %" PRIu64 ": %s", n->id, text);
}

/* The environment against brute force, and against the model. */
void check_verify(struct sim_node *n)
{
    struct store_txn *txn;
    struct store_meta meta;
    struct err err;
    uint8_t digest[16];
    uint64_t problems;
    struct store_verify_cb cb = {.data = n, .problem = problem};
    if (store_read_begin(n->store, &txn, &err) || store_meta_get(txn, &meta, &err) || store_verify(txn, &cb, digest, &problems, &err))
        sim_violation("verify", "member %" PRIu64 ": %s", n->id, err.text);
    if (problems || memcmp(digest, meta.digest, 16))
        sim_violation("verify", "member %" PRIu64 ": %" PRIu64 " problems", n->id, problems);
    compare_digest(n, meta.applied_index, meta.digest);
    store_read_end(&txn);
    sim.stats.verifies++;
}

/* --- Logs ---------------------------------------------------------------------------------------------------------------------------------- */

/* Entries of one index and term are the same, and so is all that is before them. */
static void match_logs(const struct sim_node *a, const struct sim_node *b, uint64_t from)
{
    const struct sim_log *x = &a->disk.log, *y = &b->disk.log;
    bool same = false;
    if (from < x->base)
        from = x->base;
    if (from < y->base)
        from = y->base;
    for (uint64_t i = log_last(x) < log_last(y) ? log_last(x) : log_last(y); i > from; i--) {
        const struct entry *p = log_at(x, i), *q = log_at(y, i);
        if (p->term == q->term) {
            same = true;
            if (!entry_same(p, q))
                sim_violation("log matching", "members %" PRIu64 " and %" PRIu64 " hold two entries %" PRIu64 " of term %" PRIu64, a->id, b->id, i,
                              p->term);
        } else if (same) {
            sim_violation("log matching", "members %" PRIu64 " and %" PRIu64 " differ at %" PRIu64 " and agree after it", a->id, b->id, i);
        }
    }
}

static void match_all(uint64_t window)
{
    uint64_t from = committed.n > window ? committed.n - window : 0;
    for (unsigned i = 0; i < sim.config.slots; i++)
        for (unsigned j = i + 1; j < sim.config.slots; j++)
            if (sim.nodes[i].id && sim.nodes[j].id)
                match_logs(&sim.nodes[i], &sim.nodes[j], from);
}

/* A member's idea of the membership is the last change in its log, or before its beginning. */
static void check_configuration(struct sim_node *n)
{
    const struct entry *change = NULL;
    struct node_peer peers[MEMBERS_MAX];
    struct raft_configuration conf;
    for (uint64_t i = log_last(&n->log); i && !change; i--) {
        const struct entry *e = i > n->log.base ? log_at(&n->log, i) : check_entry(i);
        if (e->type == RAFT_CHANGE)
            change = e;
    }
    size_t members = node_members(n->node, node_clock(n), peers, MEMBERS_MAX);
    if (planted(PLANT_PHANTOM_MEMBER) && members && n->slot == 0 && chance(20))
        peers[0].role = peers[0].role == RAFT_VOTER ? RAFT_STANDBY : RAFT_VOTER;
    if (!change) {
        if (members)
            sim_violation("configuration", "member %" PRIu64 " knows %zu members, its log says nothing", n->id, members);
        return;
    }
    struct raft_buffer buf = {(void *)change->data, change->len};
    raft_configuration_init(&conf);
    if (raft_configuration_decode(&buf, &conf))
        sim_violation("configuration", "the change at %" PRIu64 " doesn't parse", change->index);
    bool same = conf.n == members;
    for (unsigned i = 0; i < conf.n && same; i++) {
        same = false;
        for (size_t k = 0; k < members; k++)
            same = same || (peers[k].id == conf.servers[i].id && peers[k].role == conf.servers[i].role);
    }
    if (!same)
        sim_violation("configuration", "member %" PRIu64 " doesn't live by the last change in its log, at %" PRIu64, n->id, change->index);
    raft_configuration_close(&conf);
}

/* What an operator is told about a membership was committed at some time: he starts or wipes machines by it. */
void check_member_answer(uint64_t id, int role)
{
    bool held = false;
    for (uint64_t i = committed.n; i && !held; i--) {
        const struct entry *e = committed.e[i - 1];
        struct raft_configuration conf;
        struct raft_buffer buf = {(void *)e->data, e->len};
        if (e->type != RAFT_CHANGE)
            continue;
        raft_configuration_init(&conf);
        if (raft_configuration_decode(&buf, &conf))
            sim_violation("configuration", "the change at %" PRIu64 " doesn't parse", i);
        int found = -1;
        for (unsigned k = 0; k < conf.n; k++)
            if (conf.servers[k].id == id)
                found = conf.servers[k].role;
        held = role == RAFT_STANDBY ? found >= 0 : found == role; /* it may have been promoted since */
        raft_configuration_close(&conf);
    }
    if (!held)
        sim_violation("membership answer", "an operator is told what was never committed: member %" PRIu64 ", role %d", id, role);
}

/* --- Deadlines -------------------------------------------------------------------------------------------------------------------------------- */

static void overdue(const struct sim_node *n, const char *what, uint64_t deadline_ms)
{
    if (node_clock(n) > deadline_ms + DEADLINE_SLACK_MS)
        sim_violation("deadline", "member %" PRIu64 ": a %s has not ended %" PRIu64 " ms after its deadline", n->id, what,
                      node_clock(n) - deadline_ms);
}

static void check_deadlines(const struct sim_node *n)
{
    if (n->failed || n->paused_until > sim.now || sim.now < n->resumed_at + DEADLINE_SLACK_MS)
        return;
    for (const struct sim_write *w = n->writes; w; w = w->next)
        overdue(n, "write", w->w.deadline_ms);
    for (const struct sim_read *r = n->reads; r; r = r->next)
        if (!r->granted)
            overdue(n, "read", r->r.deadline_ms);
    for (const struct sim_member *m = n->members; m; m = m->next)
        overdue(n, "membership change", m->m.deadline_ms);
}

static void periodic(struct event *ev)
{
    (void)ev;
    match_all(64);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[i];
        if (!n->up || n->failed)
            continue;
        check_deadlines(n);
        if (n->status.term) /* it has started */
            check_configuration(n);
        if (chance(20))
            check_verify(n);
    }
    event_post(200, periodic, NULL, NULL, NULL, 0);
}

void check_periodic(void)
{
    event_post(200, periodic, NULL, NULL, NULL, 0);
}

/* --- Convergence -------------------------------------------------------------------------------------------------------------------------------- */

/* NULL when all members agree, else what is missing. */
static const char *unsettled(void)
{
    struct raft_configuration conf;
    const struct sim_node *leader = node_leader();
    const char *why = NULL;
    if (!leader)
        return "there is no leader";
    model_members(&conf);
    if (admin_repairing())
        why = "a member that is beyond repair is still there";
    for (unsigned i = 0; i < conf.n && !why; i++) {
        struct sim_node *n = conf.servers[i].id < IDS_MAX ? sim.by_id[conf.servers[i].id] : NULL;
        if (!n)
            continue; /* added by a request that outlived its machine's wiping: a member that nobody starts */
        if (!n->up || n->failed)
            why = "a member is down";
        else if (n->status.leader != leader->id || n->status.term != leader->status.term)
            why = "members don't agree on the leader";
        else if (n->status.applied_index != leader->status.applied_index || n->applied_seen != n->status.applied_index ||
                 n->status.commit_index != leader->status.last_index)
            why = "members have not applied everything";
        else if ((n->status.writes_pending && !n->differs) || n->writes || n->reads || n->members)
            /* The rot takes the entry's results as well: who leads waits for those that others had forwarded. No real apply leaves one out. */
            why = "a member still has requests";
        else if (!client_fresh_done(n))
            why = "a fresh write has not succeeded at every member";
    }
    if (!why && !client_idle())
        why = "a client still waits";
    raft_configuration_close(&conf);
    return why;
}

static void converge(struct event *ev)
{
    (void)ev;
    admin_sweep();
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].state == SLOT_MEMBER)
            client_write_fresh(&sim.nodes[i]);
    const char *why = unsettled();
    if (!why) {
        sim.stats.settle_ms = sim.now - healed_at;
        sim.stop = true;
    } else if (sim.now > healed_at + CONVERGE_MS) {
        sim_violation("liveness", "%u ms after the last fault %s", CONVERGE_MS, why);
    } else {
        event_post(50, converge, NULL, NULL, NULL, 0);
    }
}

/* Is there a member that differs and doesn't know it yet? */
static const struct sim_node *unnoticed(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].differs_now && !sim.nodes[i].condemned && sim.nodes[i].state == SLOT_MEMBER)
            return &sim.nodes[i];
    return NULL;
}

/* A member that isn't level with the leader: it lacks what was committed three checks ago, or needs an image. NULL: none. */
static const struct sim_node *behind(uint64_t index)
{
    struct raft_configuration conf;
    const struct sim_node *found = NULL;
    model_members(&conf);
    for (unsigned i = 0; i < conf.n && !found; i++) {
        const struct sim_node *n = conf.servers[i].id < IDS_MAX ? sim.by_id[conf.servers[i].id] : NULL;
        if (n && !n->condemned && (!n->up || n->fetch || n->status.image_needed || n->applied_seen < index))
            found = n;
    }
    raft_configuration_close(&conf);
    return found;
}

/* Under writes first: everybody has to get level and to stay so for a while, images or not. */
static bool level(void)
{
    static uint64_t before[3];
    static unsigned checks;
    const struct sim_node *n = behind(before[0]);
    memmove(before, before + 1, sizeof before - sizeof *before);
    before[2] = committed.n;
    checks = n ? 0 : checks + 1;
    if (n && sim.now > healed_at + CONVERGE_MS)
        sim_violation("liveness", "%u ms after the last fault, under writes, member %" PRIu64 " doesn't keep up: it has applied %" PRIu64, CONVERGE_MS, n->id,
                      n->applied_seen);
    return checks >= 8;
}

static void no_more_clients(struct event *ev)
{
    const struct sim_node *n = unnoticed();
    if (n && sim.now > healed_at + NOTICE_MS)
        sim_violation("divergence", "the state of member %" PRIu64 " differs from index %" PRIu64 " on; it has applied %" PRIu64 " and doesn't know it", n->id,
                      n->differs_from, n->applied_seen);
    if (n || (sim.config.busy_end && !level())) { /* until the next checkpoint */
        event_post(200, no_more_clients, NULL, NULL, NULL, ev->a);
        return;
    }
    healed_at = sim.now;
    client_stop();
    event_post(50, converge, NULL, NULL, NULL, 0);
}

void check_converge_start(void)
{
    healed_at = sim.now;
    for (unsigned i = 0; i < sim.config.slots; i++)
        sim.nodes[i].rotting = false;
    event_post(500, no_more_clients, NULL, NULL, NULL, 0);
}

void check_final(void)
{
    model_advance(committed.n);
    match_all(LOG_MAX);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[i];
        if (!n->up || n->state != SLOT_MEMBER)
            continue;
        check_configuration(n);
        check_verify(n);
        for (uint64_t k = n->disk.log.base + 1; k <= committed.n && k <= log_last(&n->disk.log); k++)
            if (!entry_same(log_at(&n->disk.log, k), committed.e[k - 1]))
                sim_violation("committed entries", "the disk of member %" PRIu64 " holds another entry %" PRIu64, n->id, k);
    }
}

void check_init(void)
{
    memset(leaders, 0, sizeof leaders);
}

void check_close(void)
{
    log_clear(&committed);
    for (unsigned i = 0; i < IDS_MAX; i++) {
        log_clear(&sim.graves[i]);
        free(votes[i]);
    }
    free(commit_terms);
    free(acks);
    commit_terms = NULL;
    acks = NULL;
}
