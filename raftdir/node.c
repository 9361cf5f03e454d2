/* node.c - the life of a node, what the core's updates cause, commit and apply. See node.h; the log in memory is node_log.c.
 *
 * Invariants:
 *  - io.apply gets contiguous, committed, durably stored entries, each index once in a life of the node;
 *  - term and vote are durable before any frame of the step that changed them, or of a later one, is sent;
 *  - no entry at or below the commit index is ever cut. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "node_internal.h"
#include "op.h"

/* --- Small things ------------------------------------------------------------------------------------------------------- */

void node_fail(struct node *n, int code, const char *why)
{
    if (n->failed)
        return;
    char text[ERR_TEXT_LEN];
    strncpy(text, why && *why ? why : err_text(code), sizeof text - 1);
    text[sizeof text - 1] = 0;
    n->failed = true;
    n->io.failed(n->io.data, code, text);
}

bool node_is_leader(const struct node *n)
{
    return n->state == RAFT_LEADER;
}

const struct raft_server *node_server(const struct node *n, uint64_t id)
{
    const struct raft_configuration *c = &n->raft->configuration;
    for (unsigned i = 0; i < c->n; i++)
        if (c->servers[i].id == id)
            return &c->servers[i];
    return NULL;
}

struct node_peer_state *node_peer_state(struct node *n, uint64_t id)
{
    size_t free_slot = n->peers_n;
    for (size_t i = 0; i < n->peers_n; i++) {
        if (n->peers[i].id == id)
            return &n->peers[i];
        if (!node_server(n, n->peers[i].id))
            free_slot = i; /* no member any more: may be taken over */
    }
    if (free_slot == n->peers_n) {
        if (n->peers_n == sizeof n->peers / sizeof *n->peers)
            return NULL;
        n->peers_n++;
    }
    memset(&n->peers[free_slot], 0, sizeof n->peers[free_slot]);
    n->peers[free_slot].id = id;
    return &n->peers[free_slot];
}

/* --- Log time (DESIGN D3): moved on by monotonic clocks only -------------------------------------------------------------- */

uint64_t node_log_time(const struct node *n)
{
    return n->log_time + (n->now - n->log_time_at);
}

void node_log_time_seen(struct node *n, uint64_t log_time_ms)
{
    if (log_time_ms > node_log_time(n)) {
        n->log_time = log_time_ms;
        n->log_time_at = n->now;
    }
}

/* The leader's word counts even where it is behind: log time goes on by itself while nothing is written, but a leader that was restarted goes on from its last entry. A
 * node that stayed ahead of it would let clients compute expiries that apply refuses. Less than an expiry's length is nobody's trouble. */
void node_log_time_told(struct node *n, uint64_t log_time_ms)
{
    node_log_time_seen(n, log_time_ms);
    if (node_log_time(n) - log_time_ms > OP_TTL_DEFAULT_MS) {
        n->log_time = log_time_ms;
        n->log_time_at = n->now;
    }
}

/* A new leader goes on from the newest time in its log, applied or not. */
static void log_time_of_log(struct node *n)
{
    for (size_t i = n->log_n; i > 0; i--) {
        struct entry *e = n->log[i - 1];
        if (e->index <= n->meta.applied_index)
            break;
        if (e->type != RAFT_COMMAND)
            continue;
        Raftdir__Log__Entry *entry;
        if (op_entry_unpack(e->data, e->len, &entry, NULL) == 0) {
            node_log_time_seen(n, entry->log_time_ms);
            op_entry_free(&entry);
        }
        break;
    }
}

/* --- Updates of the core ------------------------------------------------------------------------------------------------------ */

/* Apply what is committed and stored here (ordering rule 5). */
static int send_apply(struct node *n)
{
    for (;;) {
        uint64_t upto = n->commit < n->raft->last_stored ? n->commit : n->raft->last_stored;
        if (upto <= n->apply_sent)
            return 0;
        uint64_t count = upto - n->apply_sent;
        if (count > APPLY_BATCH_ENTRIES)
            count = APPLY_BATCH_ENTRIES;
        struct apply_batch *b = apply_batch_create(&n->log[n->apply_sent + 1 - n->log_first], (unsigned)count);
        if (!b)
            return err_set(&n->err, RAFTDIR_ENOMEM, "no memory to apply");
        n->apply_sent += count;
        n->io.apply(n->io.data, b);
    }
}

static int on_update(void *data, const struct raft_update *u)
{
    struct node *n = data;
    int rc;
    if (n->failed)
        return RAFTDIR_EFAILED;
    if (u->flags & (RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR)) {
        rc = n->io.meta_write(n->io.data, raft_current_term(n->raft), raft_voted_for(n->raft));
        if (rc) {
            node_fail(n, rc, "write term and vote");
            return rc;
        }
    }
    if (u->flags & RAFT_UPDATE_ENTRIES && (rc = node_log_update(n, u))) {
        node_fail(n, rc, n->err.text);
        return rc;
    }
    if (u->flags & RAFT_UPDATE_SNAPSHOT) {
        node_fail(n, RAFTDIR_EUNSUPPORTED, "the core wants to install an image that was never received");
        return RAFTDIR_EUNSUPPORTED;
    }
    if (u->flags & RAFT_UPDATE_MESSAGES)
        for (unsigned i = 0; i < u->messages.n && !n->failed; i++)
            node_frame_send_raft(n, &u->messages.batch[i]);
    node_log_committed(n, raft_commit_index(n->raft));
    return n->failed ? RAFTDIR_EFAILED : 0;
}

static const struct raft_entry *guard_entry_at(void *data, raft_index index)
{
    struct node *n = data;
    struct entry *e = node_entry(n, index);
    if (!e)
        return NULL;
    memset(&n->entry_scratch, 0, sizeof n->entry_scratch);
    n->entry_scratch.term = e->term;
    n->entry_scratch.type = e->type;
    n->entry_scratch.buf.base = e->data;
    n->entry_scratch.buf.len = e->len;
    return &n->entry_scratch;
}

static raft_index guard_applied_index(void *data)
{
    return ((struct node *)data)->meta.applied_index;
}

static raft_term guard_applied_term(void *data)
{
    return ((struct node *)data)->meta.applied_term;
}

/* --- After each event ------------------------------------------------------------------------------------------------------- */

void node_settle(struct node *n)
{
    if (n->failed)
        return;
    raft_id leader;
    const char *address;
    enum raft_state state = raft_state(n->raft);
    uint64_t term = raft_current_term(n->raft);
    raft_leader(n->raft, &leader, &address);
    if (state == RAFT_LEADER)
        leader = n->options.id;
    else if (leader == n->options.id)
        leader = 0; /* this node led until now and has not stepped down in the core's follower state yet */

    bool was_leader = n->state == RAFT_LEADER;
    bool changed = state != n->state || term != n->term || leader != n->leader;
    bool new_leader = leader && (leader != n->leader || term != n->term);
    bool lost = was_leader && (state != RAFT_LEADER || term != n->term);
    n->state = state;
    n->term = term;
    n->leader = leader;
    if (!leader && !n->leader_lost_ms)
        n->leader_lost_ms = n->now;
    if (leader)
        n->leader_lost_ms = 0;
    if (n->configuration_seen[0] != n->raft->configuration_committed_index || n->configuration_seen[1] != n->raft->configuration_uncommitted_index) {
        n->configuration_seen[0] = n->raft->configuration_committed_index;
        n->configuration_seen[1] = n->raft->configuration_uncommitted_index;
        n->io.members_changed(n->io.data);
    }
    if (changed) {
        if (state == RAFT_LEADER && (!was_leader || lost))
            log_time_of_log(n);
        node_reads_leader_changed(n);
        if (lost)
            node_ops_leader_lost(n);
        node_members_leader_changed(n);
        if (new_leader)
            node_ops_leader_changed(n);
        n->io.role_changed(n->io.data);
    }
    node_log_check(n);
    node_frames_tell_commit(n);
    int rc = send_apply(n);
    if (rc)
        node_fail(n, rc, n->err.text);
}

/* Every guard call ends here: its error is the node's end. */
static void stepped(struct node *n, int rc)
{
    if (rc && !n->failed)
        node_fail(n, rc, n->err.text);
    node_settle(n);
}

static void clock_set(struct node *n, uint64_t now)
{
    if (now > n->now)
        n->now = now;
}

/* --- Life ----------------------------------------------------------------------------------------------------------------- */

static int boot_check(const struct node_boot *boot, struct err *err)
{
    uint64_t next = boot->entries_n ? boot->log_first + boot->entries_n : boot->log_first;
    if (boot->log_first > boot->meta.applied_index + 1)
        return err_set(err, RAFTDIR_ECORRUPT, "the log starts at %llu, after the applied index %llu: entries between are missing; rebuild this node from its peers",
                       (unsigned long long)boot->log_first, (unsigned long long)boot->meta.applied_index);
    if (next <= boot->meta.applied_index)
        return err_set(err, RAFTDIR_ECORRUPT, "the log ends at %llu, below the applied index %llu: its tail is lost; rebuild this node from its peers",
                       (unsigned long long)(next - 1), (unsigned long long)boot->meta.applied_index);
    struct entry *at = boot->meta.applied_index >= boot->log_first ? boot->entries[boot->meta.applied_index - boot->log_first] : NULL;
    if (at && at->term != boot->meta.applied_term)
        return err_set(err, RAFTDIR_ECORRUPT, "log and state differ in the term of index %llu: rebuild this node from its peers",
                       (unsigned long long)boot->meta.applied_index);
    return 0;
}

int node_boot_self(const struct node_boot *boot, uint64_t id, struct node_peer *self_r, struct err *err)
{
    struct raft_buffer b = {(void *)(uintptr_t)boot->configuration, boot->configuration_len};
    struct raft_configuration c;
    memset(self_r, 0, sizeof *self_r);
    for (size_t i = 0; i < boot->entries_n; i++)
        if (boot->entries[i]->type == RAFT_CHANGE && boot->entries[i]->index > boot->meta.configuration_index)
            b = (struct raft_buffer){boot->entries[i]->data, boot->entries[i]->len};
    if (!b.len)
        return RAFTDIR_ENOTFOUND;
    if (!guard_configuration_valid(b.base, b.len))
        return err_set(err, RAFTDIR_ECORRUPT, "the newest configuration is malformed: rebuild this node from its peers");
    if (raft_configuration_decode(&b, &c))
        return err_set(err, RAFTDIR_ENOMEM, "no memory for the configuration");
    int rc = RAFTDIR_ENOTFOUND;
    for (unsigned i = 0; i < c.n && rc == RAFTDIR_ENOTFOUND; i++) {
        if (c.servers[i].id != id)
            continue;
        rc = node_address_parse(c.servers[i].address, self_r, err);
        self_r->id = id;
        self_r->role = c.servers[i].role;
    }
    raft_configuration_close(&c);
    return rc;
}

int node_create(const struct node_options *options, const struct node_io *io, const struct node_boot *boot, struct node **node_r, struct err *err)
{
    int rc = boot_check(boot, err);
    struct node *n = NULL;
    if (rc)
        goto free_entries;
    n = calloc(1, sizeof *n);
    if (!n) {
        rc = err_set(err, RAFTDIR_ENOMEM, "no memory");
        goto free_entries;
    }
    n->options = *options;
    n->io = *io;
    n->meta = boot->meta;
    n->log_first = boot->log_first;
    n->commit = n->apply_sent = boot->meta.applied_index;
    /* A life of its own: an answer to a question of an earlier life must not match one of this. */
    n->corr_next = (uint64_t)options->seed << 32 | 1;
    n->freshness_seq = n->corr_next;
    node_digests_boot(n, boot->checkpoints, boot->checkpoints_n);
    n->start.term = boot->term;
    n->start.voted_for = boot->voted_for;
    n->start.start_index = boot->log_first;
    n->start.n_entries = (unsigned)boot->entries_n;
    if (boot->entries_n) {
        n->start_entries = calloc(boot->entries_n, sizeof *n->start_entries);
        if (!n->start_entries) {
            rc = err_set(err, RAFTDIR_ENOMEM, "no memory for the log");
            goto free_node;
        }
    }
    for (size_t i = 0; i < boot->entries_n; i++) {
        struct entry *e = boot->entries[i];
        n->start_entries[i].term = e->term;
        n->start_entries[i].type = e->type;
        n->start_entries[i].buf.base = e->data;
        n->start_entries[i].buf.len = e->len;
    }
    n->start.entries = n->start_entries;
    if (boot->meta.applied_index) {
        struct raft_buffer b = {(void *)(uintptr_t)boot->configuration, boot->configuration_len};
        n->start_metadata.index = boot->meta.applied_index;
        n->start_metadata.term = boot->meta.applied_term;
        n->start_metadata.configuration_index = boot->meta.configuration_index;
        if (!guard_configuration_valid(b.base, b.len)) { /* the decoder trusts its lengths, and an image has it from a peer */
            rc = err_set(err, RAFTDIR_ECORRUPT, "the applied configuration is malformed: rebuild this node from its peers");
            goto free_node;
        }
        if (raft_configuration_decode(&b, &n->start_metadata.configuration)) {
            rc = err_set(err, RAFTDIR_ECORRUPT, "the applied configuration doesn't decode: rebuild this node from its peers");
            goto free_node;
        }
        n->start.metadata = &n->start_metadata;
    }
    struct guard_options go = {
        .id = options->id,
        .address = "",
        .seed = options->seed,
        .election_timeout_ms = options->election_timeout_ms ? options->election_timeout_ms : ELECTION_TIMEOUT_MS,
        .heartbeat_ms = options->heartbeat_ms ? options->heartbeat_ms : HEARTBEAT_MS,
        .max_inflight_entries = APPEND_INFLIGHT_ENTRIES,
        .off = options->guards_off,
    };
    n->options.election_timeout_ms = go.election_timeout_ms;
    n->options.heartbeat_ms = go.heartbeat_ms;
    struct guard_ops ops = {.data = n, .on_update = on_update, .entry_at = guard_entry_at, .applied_index = guard_applied_index, .applied_term = guard_applied_term};
    rc = guard_create(&go, &ops, &n->guard, err);
    if (rc)
        goto close_metadata;
    n->raft = guard_raft(n->guard);
    rc = node_log_init(n, boot->entries, boot->entries_n);
    if (rc) {
        err_set(err, rc, "no memory for the log");
        goto destroy_guard;
    }
    free(boot->entries);
    *node_r = n;
    return 0;

destroy_guard:
    guard_destroy(&n->guard);
close_metadata:
    if (n->start.metadata)
        raft_configuration_close(&n->start_metadata.configuration);
free_node:
    free(n->start_entries);
    free(n);
free_entries:
    for (size_t i = 0; i < boot->entries_n; i++)
        entry_unref(boot->entries[i]);
    free(boot->entries);
    return rc;
}

void node_destroy(struct node **node)
{
    struct node *n = *node;
    if (!n)
        return;
    node_ops_close(n);
    node_reads_close(n);
    node_members_close(n);
    node_digests_close(n);
    guard_destroy(&n->guard);
    if (!n->started && n->start.metadata)
        raft_configuration_close(&n->start_metadata.configuration);
    node_log_close(n);
    free(n->start_entries);
    free(n->frame);
    free(n);
    *node = NULL;
}

int node_start(struct node *n, uint64_t now)
{
    assert(!n->started);
    n->now = n->started_ms = now;
    n->started = true;
    n->log_time = n->meta.log_time_ms;
    n->log_time_at = now;
    n->leader_lost_ms = now;
    n->next_period = now;
    int rc = guard_start(n->guard, now, &n->start, &n->err);
    free(n->start_entries);
    n->start_entries = NULL;
    stepped(n, rc);
    return n->failed ? (rc ? rc : RAFTDIR_EFAILED) : 0;
}

uint64_t node_deadline(struct node *n, uint64_t now)
{
    if (n->failed)
        return now + 1000;
    uint64_t at = guard_deadline(n->guard, now);
    return at < n->next_period ? at : n->next_period;
}

void node_tick(struct node *n, uint64_t now)
{
    clock_set(n, now);
    if (n->failed)
        return;
    if (now >= raft_timeout(n->raft))
        stepped(n, guard_timeout(n->guard, n->now, &n->err));
    if (n->failed || now < n->next_period)
        return;
    n->next_period = now + NODE_PERIOD_MS;
    node_reads_period(n);
    node_ops_period(n);
    node_members_progress(n);
    node_digests_period(n);
    node_images_period(n);
    node_log_period(n);
}

void node_receive(struct node *n, uint64_t now, uint64_t from, const uint8_t *frame, size_t len)
{
    clock_set(n, now);
    if (n->failed)
        return;
    Raftdir__Peer__Frame *f = len <= PEER_FRAME_LEN_MAX ? raftdir__peer__frame__unpack(NULL, len, frame) : NULL;
    if (!f || f->version != PEER_FRAME_VERSION || f->cluster_id != n->options.cluster_id || f->incarnation != n->options.incarnation ||
        f->from != from || f->to != n->options.id || from == n->options.id) {
        n->frames_dropped++;
        goto free_frame;
    }
    struct node_peer_state *p = node_peer_state(n, from);
    if (p)
        p->last_frame_ms = n->now;
    switch (f->body_case) {
    case RAFTDIR__PEER__FRAME__BODY_PROBE:
        node_reads_probe(n, from, f->probe);
        break;
    case RAFTDIR__PEER__FRAME__BODY_PROBE_ACK:
        node_reads_probe_ack(n, from, f->probe_ack);
        break;
    case RAFTDIR__PEER__FRAME__BODY_FRESHNESS:
        node_reads_freshness(n, from, f->freshness);
        break;
    case RAFTDIR__PEER__FRAME__BODY_FRESHNESS_ACK:
        node_reads_freshness_ack(n, from, f->freshness_ack);
        break;
    case RAFTDIR__PEER__FRAME__BODY_READ_INDEX:
        node_reads_read_index(n, from, f->read_index);
        break;
    case RAFTDIR__PEER__FRAME__BODY_READ_INDEX_RESULT:
        node_reads_read_index_result(n, from, f->read_index_result);
        break;
    case RAFTDIR__PEER__FRAME__BODY_FORWARD:
        node_ops_forward(n, from, f->forward);
        break;
    case RAFTDIR__PEER__FRAME__BODY_FORWARD_RESULT:
        node_ops_forward_result(n, from, f->forward_result);
        break;
    case RAFTDIR__PEER__FRAME__BODY_MEMBER_FORWARD:
        node_members_forward(n, from, f->member_forward);
        break;
    case RAFTDIR__PEER__FRAME__BODY_MEMBER_FORWARD_RESULT:
        node_members_forward_result(n, from, f->member_forward_result);
        break;
    case RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS:
        node_digests_receive(n, from, f->checkpoints);
        break;
    case RAFTDIR__PEER__FRAME__BODY__NOT_SET:
        n->frames_dropped++; /* a newer peer's frame, or none at all */
        break;
    case RAFTDIR__PEER__FRAME__BODY_HELLO:
        break; /* the transport's */
    default:
        node_frame_receive_raft(n, from, f);
        node_settle(n);
        break;
    }
free_frame:
    if (f)
        raftdir__peer__frame__free_unpacked(f, NULL);
}

void node_log_written(struct node *n, uint64_t now, struct log_batch *batch, int status)
{
    clock_set(n, now);
    if (!n->failed) {
        node_log_returned(n, batch);
        if (status)
            node_fail(n, status, "write the log");
        else if (batch->valid_to >= batch->first && batch->valid_to > n->raft->last_stored)
            stepped(n, guard_persisted_entries(n->guard, n->now, batch->valid_to, &n->err));
    }
    log_batch_destroy(&batch);
}

void node_applied(struct node *n, uint64_t now, struct apply_batch *batch)
{
    clock_set(n, now);
    if (n->failed)
        goto destroy_batch;
    if (batch->status) {
        node_fail(n, batch->status, batch->err.text);
        goto destroy_batch;
    }
    node_log_applied(n, batch);
    n->meta = batch->meta;
    node_log_time_seen(n, batch->meta.log_time_ms);
    for (unsigned i = 0; i < batch->n && !n->failed; i++) {
        const struct entry *e = batch->entries[i];
        if (e->type == RAFT_CHANGE)
            stepped(n, guard_configuration(n->guard, n->now, e->index, e->data, e->len, &n->err));
    }
    if (!n->failed)
        node_digests_applied(n, batch->checkpoints, batch->checkpoints_n); /* first: results of a wrong state aren't told */
    for (size_t i = 0; i < batch->results_n && !n->failed; i++)
        node_ops_result(n, &batch->results[i]);
    if (n->failed)
        goto destroy_batch;
    node_reads_applied(n);
destroy_batch:
    apply_batch_destroy(&batch);
}

int node_submit(struct node *n, struct entry *const *entries, unsigned count)
{
    struct raft_entry list[SUBMIT_ENTRIES_MAX];
    assert(count && count <= SUBMIT_ENTRIES_MAX);
    memset(list, 0, sizeof list);
    for (unsigned i = 0; i < count; i++) {
        list[i].term = n->term;
        list[i].type = entries[i]->type;
        list[i].buf.base = entries[i]->data;
        list[i].buf.len = entries[i]->len;
    }
    n->incoming = entries;
    n->incoming_n = count;
    int rc = guard_submit(n->guard, n->now, list, count, &n->err);
    n->incoming = NULL;
    n->incoming_n = 0;
    node_settle(n);
    return rc;
}

void node_flush(struct node *n, uint64_t now)
{
    clock_set(n, now);
    node_ops_pack(n);
    node_reads_flush(n);
    node_members_flush(n);
}

/* --- What others may know ------------------------------------------------------------------------------------------------- */

void node_status_get(struct node *n, uint64_t now, struct node_status *s)
{
    clock_set(n, now);
    memset(s, 0, sizeof *s);
    s->state = n->failed ? NODE_FAILED : n->state == RAFT_LEADER ? NODE_LEADER : n->state == RAFT_CANDIDATE ? NODE_CANDIDATE : NODE_FOLLOWER;
    s->role = raft_role(n->raft);
    s->term = raft_current_term(n->raft);
    s->leader = n->leader;
    s->last_index = node_last_index(n);
    s->commit_index = n->commit;
    s->applied_index = n->meta.applied_index;
    s->log_time_ms = node_log_time(n);
    s->feature_level = n->meta.feature_level;
    s->age_ms = node_reads_age(n);
    s->quorum = n->leader && s->age_ms <= 4 * (uint64_t)n->options.election_timeout_ms;
    s->writes_pending = HASH_COUNT(n->ops);
    s->frames_dropped = n->frames_dropped;
    s->log_bytes = n->log_bytes;
    s->log_first = n->log_first;
    s->image_needed = node_images_needed(n);
    s->space = n->space;
    s->writes_limited = n->state == RAFT_LEADER && n->admits != NODE_SPACE_OK;
    node_digests_status(n, s);
}

size_t node_members(struct node *n, uint64_t now, struct node_peer *list_r, size_t max)
{
    clock_set(n, now);
    const struct raft_configuration *c = &n->raft->configuration;
    size_t filled = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (filled == max)
            break;
        struct node_peer *p = &list_r[filled];
        memset(p, 0, sizeof *p);
        if (node_address_parse(c->servers[i].address, p, NULL))
            continue; /* refused before it was proposed; a member without a valid identity can't connect anyway */
        p->id = c->servers[i].id;
        p->role = c->servers[i].role;
        if (p->id == n->options.id) {
            p->match_index = node_last_index(n);
        } else {
            const struct node_peer_state *state = node_peer_state(n, p->id);
            raft_index match = 0;
            if (n->state == RAFT_LEADER && raft_match_index(n->raft, p->id, &match) == 0)
                p->match_index = match;
            p->last_contact_ms = state && state->last_frame_ms ? n->now - state->last_frame_ms : UINT64_MAX;
        }
        filled++;
    }
    return filled;
}

struct entry *node_bootstrap_entry(uint64_t id, const char *address, struct err *err)
{
    struct raft_configuration c;
    struct raft_buffer b;
    struct entry *e = NULL;
    raft_configuration_init(&c);
    if (raft_configuration_add(&c, id, address, RAFT_VOTER) || raft_configuration_encode(&c, &b)) {
        err_set(err, RAFTDIR_ENOMEM, "no memory for the first configuration");
        goto close_configuration;
    }
    e = entry_create(1, 1, RAFT_CHANGE, b.base, (uint32_t)b.len);
    if (!e)
        err_set(err, RAFTDIR_ENOMEM, "no memory for the first configuration");
    raft_free(b.base);
close_configuration:
    raft_configuration_close(&c);
    return e;
}
