/* thread_consensus.c - see thread_consensus.h.
 *
 * One turn of the loop: timers, frames of peers, messages of other threads; then turn_end: node_flush, what the node asked for meanwhile (members,
 * failure), the status for everybody, the timer for node_deadline. Nothing in a turn waits for a disk, apart from term and vote (rare, and
 * they must be durable before anything else happens) and the making of a member, before which there is nothing to wait for.
 *
 * Failures: divergence or corruption: the node is destroyed, which ends every call, and the daemon goes on answering Status; an I/O
 * error of the log, or of term and vote: the daemon stops with EXIT_FAULT; removal from the cluster: as a failure, but said as what it is.
 *
 * Making a member (DESIGN D12; datadir.h has the invariant): an empty gen-1, the log and state in it, ports bound, then IDENTITY. What a crash
 * leaves before IDENTITY is removed by the next attempt; after it, this is a restart. */
#include "thread_consensus.h"
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include "logger.h"
#include "peers.h"
#include "thread_apply.h"
#include "thread_log.h"
#include "thread_service.h"

#define STOP_TRANSFER_MS 1000
#define DETAILS_REFRESH_MS 250
#define SPACE_TRANSFER_MS 10000 /* a leader without space offers its place this often */

enum make { MAKE_RESTART, MAKE_BOOTSTRAP, MAKE_ADOPT };

struct consensus {
    struct daemon *d;
    uv_loop_t loop;
    uv_thread_t thread;
    struct inbox inbox;
    uv_timer_t timer, watch;
    uv_check_t check;
    struct node *node;
    struct peers *peers;
    struct log_thread *log_thread;
    struct apply_thread *apply_thread;
    struct datadir_identity identity;
    struct apply_members applied_members;
    struct node_status last; /* as told to the log */
    uint64_t details_ms, watch_ms;
    bool members_dirty, role_dirty;
    /* The end. */
    int failed; /* code, 0: none */
    char why[ERR_TEXT_LEN];
    bool removed, stopping, closing;
    bool no_space_log, no_space_apply;
    enum node_space space;
    uint64_t space_transfer_ms;
    struct node_member_op transfer;
    Raftdir__Cluster__MemberRequest transfer_request;
    bool transfer_runs; /* `transfer` is the node's */
};

struct log_done {
    struct consensus_msg msg;
    struct log_batch *batches;
    int status;
};
struct space {
    struct consensus_msg msg;
    bool apply, lacking;
};
struct trouble {
    struct consensus_msg msg;
    int code;
    char why[ERR_TEXT_LEN];
};
struct room {
    struct consensus_msg msg;
    enum node_space space;
};
struct apply_done {
    struct consensus_msg msg;
    struct apply_batch *batch;
    bool changed;
    struct apply_members members; /* when changed */
};
struct reload {
    struct consensus_msg msg;
    SSL_CTX *tls;
};

static void on_timer(uv_timer_t *timer);

/* --- Calls go back to their service thread ----------------------------------------------------------------------------------- */

/* ECANCELED: the node ended while it had the call; what became of a write is for others to say. */
static void call_done(struct consensus_call *call, int code)
{
    call->code = code;
    if (!inbox_push(call->reply_to, &call->reply)) {
        logger_line(LOGGER_ERROR, "consensus", "a service thread ended before its calls");
        abort();
    }
}

static void result_copy(struct consensus_call *call, const uint8_t *data, size_t len)
{
    call->result = mem_alloc(len);
    memcpy(call->result, data, len);
    call->result_len = len;
}

static void on_write_done(void *data, struct node_write *w, int code, const uint8_t *result, size_t len)
{
    (void)data;
    struct consensus_call *call = (struct consensus_call *)((char *)w - offsetof(struct consensus_call, u.write));
    if (code == 0)
        result_copy(call, result, len);
    call_done(call, code);
}

static void on_read_done(void *data, struct node_read *r, int code, uint64_t index)
{
    (void)data;
    struct consensus_call *call = (struct consensus_call *)((char *)r - offsetof(struct consensus_call, u.read));
    call->index = index;
    call_done(call, code);
}

static void on_member_done(void *data, struct node_member_op *m, const Raftdir__Cluster__MemberResult *result)
{
    struct consensus *c = data;
    if (m == &c->transfer) {
        c->transfer_runs = false;
        return;
    }
    struct consensus_call *call = (struct consensus_call *)((char *)m - offsetof(struct consensus_call, u.member));
    Raftdir__Cluster__MemberResult done = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
    if (result->code == RAFTDIR_ECANCELED && c->removed && m->request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE &&
        m->request->remove == c->identity.node_id) {
        /* This node was asked to have itself removed, and it was: the answer can't reach it any more, but the removal is the answer. */
        done.has_cluster_id = done.has_incarnation = true;
        done.cluster_id = c->identity.cluster_id;
        done.incarnation = c->identity.incarnation;
        result = &done;
    }
    size_t len = raftdir__cluster__member_result__get_packed_size(result);
    call->result = mem_alloc(len);
    call->result_len = raftdir__cluster__member_result__pack(result, call->result);
    call_done(call, result->code == RAFTDIR_ECANCELED ? result->code : 0);
}

/* --- What the node wants of the world (struct node_io) ---------------------------------------------------------------------------- */

static int on_meta_write(void *data, uint64_t term, uint64_t voted_for)
{
    struct consensus *c = data;
    struct err err = {0};
    int rc = seglog_vote(c->d->log, term, voted_for, &err);
    if (rc != 0) {
        logger_line(LOGGER_ERROR, "log", "term %" PRIu64 " and vote can't be made durable: %s", term, err.text);
        daemon_stop(c->d, EXIT_FAULT);
    }
    return rc;
}

static void on_log_write(void *data, struct log_batch *batch)
{
    log_thread_push(((struct consensus *)data)->log_thread, batch);
}

static void on_apply(void *data, struct apply_batch *batch)
{
    apply_thread_push(((struct consensus *)data)->apply_thread, batch);
}

static void on_send(void *data, uint64_t to, const uint8_t *frame, size_t len)
{
    struct consensus *c = data;
    if (c->peers)
        peers_send(c->peers, to, frame, len);
}

static void on_members_changed(void *data)
{
    ((struct consensus *)data)->members_dirty = true;
}

static void on_role_changed(void *data)
{
    ((struct consensus *)data)->role_dirty = true;
}

static void on_failed(void *data, int code, const char *why)
{
    struct consensus *c = data;
    if (code == RAFTDIR_ENOMEM)
        mem_exhausted(why);
    if (!c->failed) {
        c->failed = code;
        snprintf(c->why, sizeof c->why, "%s", why);
    }
}

static uint64_t on_wall_ms(void *data)
{
    (void)data;
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* --- From the log and apply threads ------------------------------------------------------------------------------------------------- */

static void on_written(void *data, struct log_batch *batches, int status)
{
    struct consensus *c = data;
    struct log_done *done = mem_calloc(1, sizeof *done);
    done->msg.kind = CONSENSUS_LOG_DONE;
    done->batches = batches;
    done->status = status;
    inbox_push(&c->inbox, &done->msg.link); /* open until this thread has been joined */
}

static void space_tell(struct consensus *c, bool apply, bool lacking)
{
    struct space *space = mem_calloc(1, sizeof *space);
    space->msg.kind = CONSENSUS_SPACE;
    space->apply = apply;
    space->lacking = lacking;
    inbox_push(&c->inbox, &space->msg.link);
}

static void on_log_space(void *data, bool lacking)
{
    space_tell(data, false, lacking);
}

static void on_apply_space(void *data, bool lacking)
{
    space_tell(data, true, lacking);
}

static void on_log_broken(void *data, int code, const char *why)
{
    struct consensus *c = data;
    logger_line(LOGGER_ERROR, "log", "the log can't be written: %s (%s): this node stops, nothing of it was acknowledged; check the disk", why, err_name(code));
    daemon_stop(c->d, EXIT_FAULT);
}

static void on_published(void *data, const struct store_meta *meta)
{
    struct daemon *d = ((struct consensus *)data)->d;
    atomic_store(&d->shared.published, meta->applied_index);
    for (unsigned i = 0; i < d->services_n; i++)
        service_published(d->services[i], meta->applied_index);
}

static void on_applied(void *data, struct apply_batch *batch, const struct apply_members *members)
{
    struct consensus *c = data;
    struct apply_done *done = mem_calloc(1, sizeof *done);
    done->msg.kind = CONSENSUS_APPLY_DONE;
    done->batch = batch;
    done->changed = members != NULL;
    if (members)
        done->members = *members;
    inbox_push(&c->inbox, &done->msg.link);
}

/* --- Peers ----------------------------------------------------------------------------------------------------------------------------- */

static void on_peer_frame(void *data, uint64_t from, const uint8_t *frame, size_t len)
{
    struct consensus *c = data;
    if (c->node && !c->failed)
        node_receive(c->node, shared_now_ms(), from, frame, len);
}

static void on_peer_endpoint(void *data, uint64_t id, const char *endpoint)
{
    shared_endpoint_set(&((struct consensus *)data)->d->shared, id, endpoint);
}

static bool on_peer_removed(void *data, uint64_t id)
{
    return apply_members_removed(&((struct consensus *)data)->applied_members, id);
}

static void on_removed_by_peer(void *data, uint64_t by)
{
    struct consensus *c = data;
    if (!c->removed)
        logger_line(LOGGER_WARN, "consensus", "member %" PRIu64 " says that this node was removed", by);
    c->removed = true;
}

static void on_peer_log(void *data, int level, const char *text)
{
    (void)data;
    logger_line((enum logger_level)level, "peers", "%s", text);
}

/* Until this node is in the configuration that it knows, that one may be old (it is catching up), and its leader may be one of those
 * that it was told of when it was adopted. */
static void members_update(struct consensus *c)
{
    struct node_peer list[MEMBERS_MAX];
    size_t n = node_members(c->node, shared_now_ms(), list, MEMBERS_MAX);
    bool self = false;
    for (size_t i = 0; i < n; i++)
        self = self || list[i].id == c->identity.node_id;
    for (size_t i = 0; !self && i < c->identity.members_n && n < MEMBERS_MAX; i++) {
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known = known || list[k].id == c->identity.members[i].id;
        if (!known)
            list[n++] = c->identity.members[i];
    }
    peers_members(c->peers, list, n);
    shared_members_set(&c->d->shared, list, n);
    shared_endpoint_set(&c->d->shared, c->identity.node_id, c->d->config->client_advertise);
}

/* --- The turn ---------------------------------------------------------------------------------------------------------------------------- */

static const char *role_name(int role)
{
    return role == 1 ? "voter" : role == 0 ? "standby" : role == 2 ? "spare" : "not a member yet";
}

static void status_update(struct consensus *c, uint64_t now)
{
    struct node_status s;
    node_status_get(c->node, now, &s);
    shared_status_set(&c->d->shared, &s, now);
    if (now - c->details_ms >= DETAILS_REFRESH_MS || c->role_dirty) {
        c->details_ms = now;
        struct node_peer list[MEMBERS_MAX];
        size_t n = node_members(c->node, now, list, MEMBERS_MAX);
        if (n)
            shared_members_set(&c->d->shared, list, n);
        shared_endpoint_set(&c->d->shared, c->identity.node_id, c->d->config->client_advertise);
    }
    if (c->role_dirty && (s.state != c->last.state || s.term != c->last.term || s.leader != c->last.leader || s.role != c->last.role)) {
        static const char *const states[] = {"?", "follower", "candidate", "leader", "failed"};
        logger_line(LOGGER_INFO, "consensus", "%s (%s), term %" PRIu64 ", leader %" PRIu64 ", log up to %" PRIu64 ", committed %" PRIu64, states[s.state],
                    role_name(s.role), s.term, s.leader, s.last_index, s.commit_index);
        c->last = s;
    }
    c->role_dirty = false;
}

static void on_peers_stopped(void *data)
{
    (void)data;
}

/* The node takes part no more; every call comes back. */
static void node_end(struct consensus *c)
{
    if (!c->node)
        return;
    struct node_status s;
    uint64_t now = shared_now_ms();
    node_status_get(c->node, now, &s);
    s.leader = 0;
    s.quorum = false;
    shared_status_set(&c->d->shared, &s, now);
    node_destroy(&c->node);
    if (c->peers)
        peers_stop(&c->peers, on_peers_stopped, c);
}

static void stop_go_on(struct consensus *c);

static void turn_end(struct consensus *c)
{
    if (!c->node)
        goto out;
    uint64_t now = shared_now_ms();
    if (!c->failed && !c->removed) {
        node_flush(c->node, now);
        if (c->members_dirty) {
            c->members_dirty = false;
            members_update(c);
        }
        status_update(c, now);
    }
    if (c->failed) {
        logger_line(LOGGER_ERROR, "consensus", "this node has FAILED and serves nothing but status: %s (%s)", c->why, err_name(c->failed));
        shared_phase_set(&c->d->shared, SHARED_FAILED, c->why);
        node_end(c);
        goto out;
    }
    if (c->removed) {
        static const char why[] = "this node was removed from the cluster; to bring the machine back, move its data_dir away, start it and join it as a new node";
        logger_line(LOGGER_WARN, "consensus", "%s", why);
        shared_phase_set(&c->d->shared, SHARED_REMOVED, why);
        node_end(c);
        goto out;
    }
    now = shared_now_ms();
    uint64_t deadline = node_deadline(c->node, now);
    uv_timer_start(&c->timer, on_timer, deadline > now ? deadline - now : 0, 0);
out:
    if (c->stopping)
        stop_go_on(c);
}

static void on_timer(uv_timer_t *timer)
{
    struct consensus *c = timer->data;
    if (c->node && !c->failed)
        node_tick(c->node, shared_now_ms());
    turn_end(c);
}

static void on_check(uv_check_t *check)
{
    turn_end(check->data);
}

/* Leadership goes to the most up-to-date voter, if this node leads and there is another. */
static void transfer_begin(struct consensus *c, uint64_t timeout_ms)
{
    struct node_status s;
    struct node_peer list[MEMBERS_MAX];
    uint64_t now = shared_now_ms();
    node_status_get(c->node, now, &s);
    if (s.state != NODE_LEADER)
        return;
    size_t n = node_members(c->node, now, list, MEMBERS_MAX), others = 0;
    for (size_t i = 0; i < n; i++)
        others += list[i].role == RAFTDIR__CLUSTER__ROLE__VOTER && list[i].id != c->identity.node_id;
    if (!others)
        return;
    raftdir__cluster__member_request__init(&c->transfer_request);
    c->transfer_request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER;
    c->transfer_request.transfer = 0;
    memset(&c->transfer, 0, sizeof c->transfer);
    c->transfer.request = &c->transfer_request;
    c->transfer.deadline_ms = now + timeout_ms;
    c->transfer_runs = true;
    node_member_op(c->node, now, &c->transfer);
}

/* Comes late exactly when the loop stood still. */
static void on_watch(uv_timer_t *timer)
{
    struct consensus *c = timer->data;
    uint64_t now = shared_now_ms(), late = now - c->watch_ms;
    uint64_t period = uv_timer_get_repeat(timer);
    c->watch_ms = now;
    if (late > period + c->d->config->election_timeout_ms / 2)
        logger_limited(LOGGER_WARN, "consensus", "the consensus loop stood still for %" PRIu64 " ms (half an election timeout is %u ms): is the machine or its disk overloaded?",
                       late - period, c->d->config->election_timeout_ms / 2);
    /* A leader that can't apply or store for lack of space isn't one that the site wants; another may have room. */
    if (c->node && !c->failed && !c->removed && !c->stopping && !c->transfer_runs && (c->no_space_log || c->no_space_apply) &&
        now - c->space_transfer_ms >= SPACE_TRANSFER_MS) {
        c->space_transfer_ms = now;
        transfer_begin(c, STOP_TRANSFER_MS);
    }
}

/* --- Making and opening a member ------------------------------------------------------------------------------------------------------------ */

static int boot_state(struct consensus *c, struct node_boot *boot, struct store_txn **txn_r, struct err *err)
{
    int rc = store_read_begin(c->d->store, txn_r, err);
    if (rc != 0)
        return rc;
    rc = store_meta_get(*txn_r, &boot->meta, err);
    if (rc == 0)
        rc = store_configuration_get(*txn_r, &boot->configuration, &boot->configuration_len, &boot->meta.configuration_index, err);
    return rc;
}

/* The first entry of a new cluster, durable, in term 1. */
static int bootstrap_log(struct consensus *c, struct seglog_found *found, struct err *err)
{
    struct daemon *d = c->d;
    char address[NODE_ADDRESS_SIZE];
    int rc = node_address_format(d->config->peer_advertise, d->cert_name, d->uuid, address, sizeof address, err);
    if (rc != 0)
        return rc;
    struct entry *e = node_bootstrap_entry(c->identity.node_id, address, err);
    if (!e)
        return RAFTDIR_ENOMEM;
    struct log_batch *batch = log_batch_create(&e, 1);
    if (!batch)
        mem_exhausted("bootstrap");
    if ((rc = seglog_vote(d->log, 1, 0, err)) == 0)
        rc = seglog_write(d->log, batch, err);
    log_batch_destroy(&batch);
    if (rc != 0) {
        entry_unref(e);
        return rc;
    }
    free(found->entries);
    found->entries = mem_alloc(sizeof *found->entries);
    found->entries[0] = e;
    found->entries_n = 1;
    found->first = 1;
    found->term = 1;
    found->voted_for = 0;
    return 0;
}

static void found_free(struct seglog_found *found)
{
    for (size_t i = 0; i < found->entries_n; i++)
        entry_unref(found->entries[i]);
    free(found->entries);
    memset(found, 0, sizeof *found);
}

/* A data directory that was copied or carried to another node: two of them would take each other's connections. */
static int self_check(struct consensus *c, const struct node_boot *boot, struct err *err)
{
    const struct daemon *d = c->d;
    struct node_peer self;
    int rc = node_boot_self(boot, c->identity.node_id, &self, err);
    if (rc != 0)
        return rc == RAFTDIR_ENOTFOUND ? 0 : rc;
    if (strcmp(self.cert_name, d->cert_name) != 0 || strcmp(self.host_port, d->config->peer_advertise) != 0)
        return err_set(err, RAFTDIR_EFOREIGN,
                       "data_dir is that of member %" PRIu64 ", certificate \"%s\", at %s; this configuration has the certificate \"%s\" and peer_advertise %s: "
                       "is it a copy of another node's? To give a member another address or name, remove it and join it anew with an empty data_dir",
                       self.id, self.cert_name, self.host_port, d->cert_name, d->config->peer_advertise);
    return 0;
}

/* Opens state and log and makes the node of them. On failure everything is closed again. */
static int node_open(struct consensus *c, enum make make, struct err *err)
{
    struct daemon *d = c->d;
    char state_path[PATH_MAX], log_path[PATH_MAX];
    struct seglog_found found = {0};
    struct store_txn *txn = NULL;
    struct node_boot boot = {0};
    struct seglog_identity who = {.cluster_id = c->identity.cluster_id, .incarnation = c->identity.incarnation};
    memcpy(who.uuid, d->uuid, NODE_UUID_LEN);
    int rc;
    if ((rc = datadir_path(d->datadir, "state", state_path, sizeof state_path, err)) != 0 ||
        (rc = datadir_path(d->datadir, "log", log_path, sizeof log_path, err)) != 0 ||
        (rc = store_open(state_path, &(struct store_options){0}, &d->store, err)) != 0)
        return rc;
    rc = seglog_open(log_path, &who, &d->log, &found, err);
    if (rc != 0)
        goto close_store;
    if (found.torn_len)
        logger_line(LOGGER_WARN, "log", "cut off %" PRIu64 " bytes that were being written when the node went down; they had not been acknowledged", found.torn_len);
    if (make == MAKE_BOOTSTRAP)
        rc = bootstrap_log(c, &found, err);
    else if (make == MAKE_ADOPT)
        rc = seglog_vote(d->log, found.term, found.voted_for, err); /* the file is there from now on: datadir_check wants it */
    if (rc != 0 || (rc = boot_state(c, &boot, &txn, err)) != 0 || (rc = apply_members_get(d->store, &c->applied_members, err)) != 0)
        goto close_log;
    boot.term = found.term;
    boot.voted_for = found.voted_for;
    boot.log_first = found.first;
    boot.entries = found.entries;
    boot.entries_n = found.entries_n;
    if ((rc = self_check(c, &boot, err)) != 0)
        goto close_log;
    found.entries = NULL; /* node_create takes them */
    found.entries_n = 0;
    struct node_options options = {.id = c->identity.node_id,
                                   .cluster_id = c->identity.cluster_id,
                                   .incarnation = c->identity.incarnation,
                                   .election_timeout_ms = d->config->election_timeout_ms,
                                   .heartbeat_ms = d->config->heartbeat_ms};
    if (getrandom(&options.seed, sizeof options.seed, 0) != sizeof options.seed)
        options.seed = (unsigned)uv_hrtime();
    struct node_io io = {.data = c,
                         .meta_write = on_meta_write,
                         .log_write = on_log_write,
                         .apply = on_apply,
                         .send = on_send,
                         .write_done = on_write_done,
                         .read_done = on_read_done,
                         .member_done = on_member_done,
                         .members_changed = on_members_changed,
                         .role_changed = on_role_changed,
                         .failed = on_failed,
                         .wall_ms = on_wall_ms};
    rc = node_create(&options, &io, &boot, &c->node, err);
    if (rc != 0)
        goto close_log;
    store_read_end(&txn);
    atomic_store(&d->shared.published, boot.meta.applied_index);
    c->removed = apply_members_removed(&c->applied_members, c->identity.node_id);
    logger_line(LOGGER_INFO, "consensus", "state at index %" PRIu64 ", %zu entries in the log, term %" PRIu64, boot.meta.applied_index, boot.entries_n, boot.term);
    return 0;

close_log:
    if (txn)
        store_read_end(&txn);
    found_free(&found);
    seglog_close(&d->log);
close_store:
    store_close(&d->store);
    return rc;
}

static int threads_start(struct consensus *c, struct err *err)
{
    struct log_thread_ops log_ops = {.data = c, .space = on_log_space, .written = on_written, .broken = on_log_broken};
    struct apply_thread_ops apply_ops = {.data = c, .space = on_apply_space, .published = on_published, .applied = on_applied};
    int rc = log_thread_start(c->d->log, &log_ops, &c->log_thread, err);
    if (rc != 0)
        return rc;
    rc = apply_thread_start(c->d->store, &apply_ops, &c->apply_thread, err);
    if (rc != 0)
        log_thread_stop(&c->log_thread);
    return rc;
}

/* The whole way to a member that takes part; c->identity says as whom. */
static int member_start(struct consensus *c, enum make make, struct err *err)
{
    struct daemon *d = c->d;
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    int rc = make == MAKE_RESTART ? datadir_check(d->datadir, err) : datadir_prepare(d->datadir, err);
    if (rc != 0 || (rc = config_host_port(d->config->peer_listen, host, port, err)) != 0 || (rc = node_open(c, make, err)) != 0)
        return rc;
    if (c->removed) {
        /* turn_end says so and ends the node before it has taken part in anything. */
        shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
        return 0;
    }
    struct peers_options po = {.loop = &c->loop,
                               .tls = daemon_tls(d),
                               .listen_host = host,
                               .listen_port = port,
                               .self_id = c->identity.node_id,
                               .cluster_id = c->identity.cluster_id,
                               .incarnation = c->identity.incarnation,
                               .client_endpoint = d->config->client_advertise,
                               .data = c,
                               .on_frame = on_peer_frame,
                               .on_endpoint = on_peer_endpoint,
                               .removed = on_peer_removed,
                               .on_removed = on_removed_by_peer,
                               .log = on_peer_log};
    memcpy(po.uuid, d->uuid, NODE_UUID_LEN);
    rc = peers_start(&po, &c->peers, err);
    SSL_CTX_free(po.tls); /* ours; a reload may replace the daemon's own meanwhile */
    if (rc != 0)
        goto destroy_node;
    rc = threads_start(c, err);
    if (rc != 0)
        goto stop_peers;
    if (make != MAKE_RESTART && (rc = datadir_join(d->datadir, &c->identity, err)) != 0) {
        if (rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EINVAL)
            daemon_stop(d, EXIT_FAULT); /* it may be on the disk all the same: what is there decides at the next start */
        goto stop_threads;
    }
    shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
    c->members_dirty = c->role_dirty = true;
    rc = node_start(c->node, shared_now_ms());
    if (rc != 0 && !c->failed)
        on_failed(c, rc, "the node didn't start");
    status_update(c, shared_now_ms()); /* service threads must not see a member without its feature level and log time */
    shared_phase_set(&d->shared, SHARED_RUNNING, NULL);
    return 0;

stop_threads:
    log_thread_stop(&c->log_thread);
    apply_thread_stop(&c->apply_thread);
stop_peers:
    peers_stop(&c->peers, on_peers_stopped, c);
destroy_node:
    node_destroy(&c->node);
    seglog_close(&d->log);
    store_close(&d->store);
    return rc;
}

static void on_make(struct consensus *c, struct consensus_call *call)
{
    struct daemon *d = c->d;
    bool adopt = call->msg.kind == CONSENSUS_ADOPT;
    const struct datadir_identity *have = datadir_identity(d->datadir);
    int rc;
    if (have->cluster_id) {
        bool same = adopt && have->cluster_id == call->u.adopt->cluster_id && have->incarnation == call->u.adopt->incarnation &&
                    have->node_id == call->u.adopt->node_id;
        rc = same ? 0 : err_set(&call->err, RAFTDIR_EEXIST, "this node is part of cluster %016" PRIx64 " as member %" PRIu64 " already", have->cluster_id, have->node_id);
    } else if (c->stopping || atomic_load(&d->stop_wanted)) {
        rc = RAFTDIR_ECANCELED;
    } else {
        memset(&c->identity, 0, sizeof c->identity);
        if (adopt) {
            c->identity = *call->u.adopt;
        } else {
            while (c->identity.cluster_id == 0)
                if (getrandom(&c->identity.cluster_id, sizeof c->identity.cluster_id, 0) < 0)
                    mem_exhausted("getrandom");
            c->identity.incarnation = 1;
            c->identity.node_id = 1;
        }
        rc = member_start(c, adopt ? MAKE_ADOPT : MAKE_BOOTSTRAP, &call->err);
        if (rc == 0)
            logger_line(LOGGER_INFO, "consensus", "%s cluster %016" PRIx64 " as member %" PRIu64, adopt ? "adopted into" : "bootstrapped", c->identity.cluster_id,
                        c->identity.node_id);
        else
            logger_line(LOGGER_ERROR, "consensus", "%s failed: %s", adopt ? "adoption" : "bootstrap", call->err.text);
    }
    call_done(call, rc);
}

/* --- Messages ------------------------------------------------------------------------------------------------------------------------------- */

static int call_refuse(struct consensus_call *call)
{
    return err_set(&call->err, RAFTDIR_ENOTREADY, "this node takes no part in the cluster now (it is stopping, failed or was removed): ask another");
}

static void on_call(struct consensus *c, struct consensus_call *call)
{
    if (!c->node || c->failed || c->removed) {
        call_done(call, call_refuse(call)); /* the node never had it */
        return;
    }
    uint64_t now = shared_now_ms();
    if (call->msg.kind == CONSENSUS_WRITE)
        node_write(c->node, now, &call->u.write);
    else if (call->msg.kind == CONSENSUS_READ)
        node_read(c->node, now, &call->u.read);
    else
        node_member_op(c->node, now, &call->u.member);
}

static void on_log_done(struct consensus *c, struct log_done *done)
{
    while (done->batches) {
        struct log_batch *b = done->batches;
        done->batches = b->next;
        b->next = NULL;
        if (c->node)
            node_log_written(c->node, shared_now_ms(), b, done->status);
        else
            log_batch_destroy(&b);
    }
    free(done);
}

static void on_apply_done(struct consensus *c, struct apply_done *done)
{
    if (c->node)
        node_applied(c->node, shared_now_ms(), done->batch);
    else
        apply_batch_destroy(&done->batch);
    if (done->changed) {
        c->applied_members = done->members;
        c->removed = c->removed || apply_members_removed(&c->applied_members, c->identity.node_id);
    }
    free(done);
}

static void space_told(struct consensus *c)
{
    if (c->node)
        node_space_set(c->node, c->no_space_log || c->no_space_apply ? NODE_SPACE_NONE : c->space);
}

static void on_space(struct consensus *c, const struct space *space)
{
    if (space->apply)
        c->no_space_apply = space->lacking;
    else
        c->no_space_log = space->lacking;
    space_told(c);
}

static void stop_begin(struct consensus *c)
{
    c->stopping = true;
    shared_phase_set(&c->d->shared, SHARED_STOPPING, NULL);
    if (c->node && !c->failed && !c->removed && !c->transfer_runs)
        transfer_begin(c, STOP_TRANSFER_MS);
}

static void on_messages(struct inbox *inbox, struct inbox_msg *list)
{
    struct consensus *c = inbox->data;
    while (list) {
        struct consensus_msg *msg = (struct consensus_msg *)list;
        struct reload *reload;
        list = list->next;
        switch (msg->kind) {
        case CONSENSUS_WRITE:
        case CONSENSUS_READ:
        case CONSENSUS_MEMBER:
            on_call(c, (struct consensus_call *)msg);
            break;
        case CONSENSUS_BOOTSTRAP:
        case CONSENSUS_ADOPT:
            on_make(c, (struct consensus_call *)msg);
            break;
        case CONSENSUS_LOG_DONE:
            on_log_done(c, (struct log_done *)msg);
            break;
        case CONSENSUS_APPLY_DONE:
            on_apply_done(c, (struct apply_done *)msg);
            break;
        case CONSENSUS_SPACE:
            on_space(c, (struct space *)msg);
            free(msg);
            break;
        case CONSENSUS_FAIL:
            on_failed(c, ((struct trouble *)msg)->code, ((struct trouble *)msg)->why);
            free(msg);
            break;
        case CONSENSUS_ROOM:
            c->space = ((struct room *)msg)->space;
            space_told(c);
            free(msg);
            break;
        case CONSENSUS_RESET:
            call_done((struct consensus_call *)msg, RAFTDIR_EUNSUPPORTED);
            break;
        case CONSENSUS_IMAGE:
        case CONSENSUS_SYNCED:
            free(msg);
            break;
        case CONSENSUS_RELOAD:
            reload = (struct reload *)msg;
            if (c->peers)
                peers_tls_set(c->peers, reload->tls);
            SSL_CTX_free(reload->tls);
            free(reload);
            break;
        case CONSENSUS_STOP:
            free(msg);
            stop_begin(c);
            break;
        }
    }
}

/* --- The end ----------------------------------------------------------------------------------------------------------------------------------- */

/* Once leadership is somewhere else, or can't be in time: the node, then its threads, then the loop. */
static void stop_go_on(struct consensus *c)
{
    if (c->closing || (c->node && !c->failed && c->transfer_runs))
        return;
    c->closing = true;
    node_end(c);
    log_thread_stop(&c->log_thread);
    apply_thread_stop(&c->apply_thread);
    inbox_close(&c->inbox, NULL); /* what the threads still said is taken back here */
    uv_close((uv_handle_t *)&c->timer, NULL);
    uv_close((uv_handle_t *)&c->watch, NULL);
    uv_close((uv_handle_t *)&c->check, NULL);
}

static void run(void *arg)
{
    struct consensus *c = arg;
    c->watch_ms = shared_now_ms();
    turn_end(c);
    uv_run(&c->loop, UV_RUN_DEFAULT);
}

int consensus_start(struct daemon *d, struct consensus **consensus_r, struct err *err)
{
    struct consensus *c = mem_calloc(1, sizeof *c);
    c->d = d;
    if (uv_loop_init(&c->loop) != 0 || inbox_init(&c->inbox, &c->loop, on_messages, c) != 0)
        mem_exhausted("consensus loop");
    uv_timer_init(&c->loop, &c->timer);
    uv_timer_init(&c->loop, &c->watch);
    uv_check_init(&c->loop, &c->check);
    c->timer.data = c->watch.data = c->check.data = c;
    uint64_t period = d->config->election_timeout_ms / 4;
    uv_timer_start(&c->watch, on_watch, period, period);
    uv_check_start(&c->check, on_check);
    int rc = service_probe("peer_listen", d->config->peer_listen, err); /* an unconfigured node says so now, not when it joins */
    if (rc == 0 && datadir_identity(d->datadir)->cluster_id) {
        c->identity = *datadir_identity(d->datadir);
        rc = member_start(c, MAKE_RESTART, err);
    }
    if (rc == 0) {
        rc = uv_thread_create(&c->thread, run, c);
        if (rc == 0) {
            *consensus_r = c;
            return 0;
        }
        rc = err_set(err, err_from_uv(rc), "can't start the consensus thread: %s", uv_strerror(rc));
    }
    c->stopping = true;
    stop_go_on(c);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    uv_loop_close(&c->loop);
    inbox_destroy(&c->inbox);
    free(c);
    return rc;
}

void consensus_submit(struct consensus *c, struct consensus_call *call)
{
    if (!inbox_push(&c->inbox, &call->msg.link)) {
        call->code = call_refuse(call);
        inbox_push(call->reply_to, &call->reply);
    }
}

void consensus_fail(struct consensus *c, int code, const char *why)
{
    struct trouble *t = mem_calloc(1, sizeof *t);
    t->msg.kind = CONSENSUS_FAIL;
    t->code = code;
    snprintf(t->why, sizeof t->why, "%s", why);
    if (!inbox_push(&c->inbox, &t->msg.link))
        free(t);
}

void consensus_space(struct consensus *c, enum node_space space)
{
    struct room *r = mem_calloc(1, sizeof *r);
    r->msg.kind = CONSENSUS_ROOM;
    r->space = space;
    if (!inbox_push(&c->inbox, &r->msg.link))
        free(r);
}

void consensus_reload(struct consensus *c, SSL_CTX *tls)
{
    struct reload *reload = mem_calloc(1, sizeof *reload);
    reload->msg.kind = CONSENSUS_RELOAD;
    reload->tls = tls;
    SSL_CTX_up_ref(tls);
    if (!inbox_push(&c->inbox, &reload->msg.link)) {
        SSL_CTX_free(tls);
        free(reload);
    }
}

/* The struct outlives the thread: service threads may still submit, and are told ECANCELED. consensus_destroy comes after theirs. */
void consensus_stop(struct consensus *c)
{
    struct consensus_msg *stop = mem_calloc(1, sizeof *stop);
    stop->kind = CONSENSUS_STOP;
    inbox_push(&c->inbox, &stop->link);
    uv_thread_join(&c->thread);
    uv_loop_close(&c->loop);
}

void consensus_destroy(struct consensus **consensus)
{
    struct consensus *c = *consensus;
    *consensus = NULL;
    if (!c)
        return;
    inbox_destroy(&c->inbox);
    free(c);
}
