/* thread_consensus.c - see thread_consensus.h.
 *
 * One turn of the loop: timers, frames of peers, messages of other threads; then turn_end: node_flush, what the node asked for meanwhile (members,
 * failure), the status for everybody, the timer for node_deadline. Nothing in a turn waits for a disk, apart from term and vote (rare, and
 * they must be durable before anything else happens) and the making of a member, before which there is nothing to wait for.
 *
 * Failures: divergence or corruption: the node is destroyed, which ends every call, and the daemon goes on answering Status; an I/O
 * error of the log, or of term and vote: the daemon stops with EXIT_FAULT; removal from the cluster: as a failure, but said as what it is. */
#include "thread_consensus.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "consensus_internal.h"
#include "logger.h"
#include "thread_service.h"

#define STOP_TRANSFER_MS 1000
#define STOP_WRITES_MS 2000 /* what is on its way when the daemon stops gets its result in this time, or its client can't be told */
#define DETAILS_REFRESH_MS 250
#define SPACE_TRANSFER_MS 10000 /* a leader without space offers its place this often */

static void on_timer(uv_timer_t *timer);

/* --- The turn ---------------------------------------------------------------------------------------------------------------------------- */

static const char *role_name(int role)
{
    return role == 1 ? "voter" : role == 0 ? "standby" : role == 2 ? "spare" : "not a member yet";
}

void consensus_status_update(struct consensus *c, uint64_t now)
{
    struct node_status s;
    node_status_get(c->node, now, &s);
    shared_status_set(&c->d->shared, &s, now);
    c->image.needed = s.image_needed;
    atomic_store(&c->d->shared.log_len, seglog_used_len(c->d->log)); /* the log itself may be replaced by an image's; nobody else looks at it */
    if (now - c->details_ms >= DETAILS_REFRESH_MS || c->role_dirty) {
        c->details_ms = now;
        struct node_peer list[MEMBERS_MAX];
        size_t n = node_members(c->node, now, list, MEMBERS_MAX);
        if (n)
            shared_members_set(&c->d->shared, list, n);
        shared_endpoint_set(&c->d->shared, c->identity.node_id, c->d->config->client_advertise, c->d->config->site);
    }
    if (c->role_dirty && (s.state != c->last.state || s.term != c->last.term || s.leader != c->last.leader || s.role != c->last.role)) {
        static const char *const states[] = {"?", "follower", "candidate", "leader", "failed"};
        logger_line(LOGGER_INFO, "consensus", "%s (%s), term %" PRIu64 ", leader %" PRIu64 ", log up to %" PRIu64 ", committed %" PRIu64, states[s.state],
                    role_name(s.role), s.term, s.leader, s.last_index, s.commit_index);
        c->last = s;
    }
    c->role_dirty = false;
}

/* A restart would serve again what was found to be wrong, until it is found again. */
static void failure_keep(struct consensus *c)
{
    struct err err = {0};
    if (datadir_failure_set(c->d->datadir, c->why, &err) != 0)
        logger_line(LOGGER_WARN, "consensus", "that can't be noted down (%s): a restart may serve this state again, until the fault is found again", err.text);
}

void consensus_end_check(struct consensus *c)
{
    if (c->ended || (!c->failed && !c->removed))
        return;
    c->ended = true;
    if (c->failed) {
        static const char advice[] = "; a new member can be made of it: raftdirctl cluster rebuild";
        size_t len = strlen(c->why);
        if (c->failed == RAFTDIR_ECORRUPT && !strstr(c->why, "raftdirctl") && len + sizeof advice <= sizeof c->why)
            memcpy(c->why + len, advice, sizeof advice);
        logger_line(LOGGER_ERROR, "consensus", "this node has FAILED and serves nothing but status: %s (%s)", c->why, err_name(c->failed));
        shared_phase_set(&c->d->shared, SHARED_FAILED, c->why);
        if (c->failed == RAFTDIR_ECORRUPT && c->node)
            failure_keep(c); /* damage that a start met is met again at the next one; nothing is written then */
    } else {
        static const char why[] = "this node was removed from the cluster; to bring the machine back, use raftdirctl cluster rebuild, or move its data_dir away, start it and join it as a new node";
        logger_line(LOGGER_WARN, "consensus", "%s", why);
        shared_phase_set(&c->d->shared, SHARED_REMOVED, why);
    }
    consensus_member_close(c, false);
}

static void on_alive(uv_timer_t *timer)
{
    shared_alive(&((struct consensus *)timer->data)->d->shared);
}

static void stop_go_on(struct consensus *c);

static void turn_end(struct consensus *c)
{
    uint64_t now = shared_now_ms();
    if (c->node && !c->failed && !c->removed) {
        node_flush(c->node, now);
        if (c->members_dirty) {
            c->members_dirty = false;
            consensus_members_update(c);
        }
        consensus_status_update(c, now);
        if (!c->failed)
            consensus_image_turn(c, now);
        if (c->node && !c->failed)
            consensus_renewal_turn(c);
    }
    consensus_end_check(c);
    if (c->node) {
        now = shared_now_ms();
        uint64_t deadline = node_deadline(c->node, now);
        uv_timer_start(&c->timer, on_timer, deadline > now ? deadline - now : 0, 0);
    }
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

void consensus_transfer_begin(struct consensus *c, uint64_t timeout_ms)
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
        consensus_transfer_begin(c, STOP_TRANSFER_MS);
    }
}

/* --- Messages ------------------------------------------------------------------------------------------------------------------------------- */

static int call_refuse(struct consensus_call *call)
{
    return err_set(&call->err, RAFTDIR_ENOTREADY, "this node takes no part in the cluster now (it is stopping, failed or was removed): ask another");
}

static void on_call(struct consensus *c, struct consensus_call *call)
{
    if (!c->node || c->failed || c->removed) {
        consensus_call_done(call, call_refuse(call)); /* the node never had it */
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
        if (c->node && done->life == c->life)
            node_log_written(c->node, shared_now_ms(), b, done->status);
        else
            log_batch_destroy(&b);
    }
    free(done);
}

static void on_apply_done(struct consensus *c, struct apply_done *done)
{
    if (!c->node || done->life != c->life) {
        apply_batch_destroy(&done->batch);
    } else {
        node_applied(c->node, shared_now_ms(), done->batch);
        if (done->changed) {
            c->applied_members = done->members;
            c->removed = c->removed || apply_members_removed(&c->applied_members, c->identity.node_id);
        }
    }
    free(done);
}

static void on_synced(struct consensus *c, struct synced *synced)
{
    const struct apply_synced *s = &synced->state;
    if (c->node && synced->life == c->life) {
        struct node_synced told = {.index = s->index,
                                   .term = s->term,
                                   .configuration_index = s->configuration_index,
                                   .configuration = s->configuration,
                                   .configuration_len = s->configuration_len};
        node_synced(c->node, shared_now_ms(), &told);
    }
    free(s->configuration);
    free(synced);
}

static void on_trouble(struct consensus *c, const struct trouble *t)
{
    if (c->node && !c->removed && t->generation == atomic_load(&c->d->store_generation)) /* else there is nothing that could be served, or it is another state now */
        consensus_failed(c, t->code, t->why);
}

static void space_told(struct consensus *c)
{
    if (c->node)
        node_space_set(c->node, c->no_space_log || c->no_space_apply ? NODE_SPACE_NONE : c->space);
}

static void on_space(struct consensus *c, const struct space *space)
{
    if (space->life != c->life)
        return;
    if (space->apply)
        c->no_space_apply = space->lacking;
    else
        c->no_space_log = space->lacking;
    space_told(c);
}

static void on_compact(struct consensus *c, struct consensus_call *call)
{
    consensus_call_done(call, consensus_renewal_begin(c, "an admin asked for it", &call->err));
}

static void stop_begin(struct consensus *c)
{
    c->stopping = true;
    c->stop_by_ms = shared_now_ms() + STOP_WRITES_MS;
    shared_phase_set(&c->d->shared, SHARED_STOPPING, NULL);
    if (c->node && !c->failed && !c->removed && !c->transfer_runs)
        consensus_transfer_begin(c, STOP_TRANSFER_MS);
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
            consensus_make(c, (struct consensus_call *)msg);
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
            on_trouble(c, (struct trouble *)msg);
            free(msg);
            break;
        case CONSENSUS_ROOM:
            c->space = ((struct room *)msg)->space;
            space_told(c);
            free(msg);
            break;
        case CONSENSUS_RESET:
            consensus_reset(c, (struct consensus_call *)msg);
            break;
        case CONSENSUS_IMAGE:
            consensus_image_said(c, (struct image_said *)msg);
            free(msg);
            break;
        case CONSENSUS_COPIED:
            consensus_renewal_said(c, (struct copy_said *)msg);
            free(msg);
            break;
        case CONSENSUS_RENEW:
            consensus_renewal_wanted(c, ((struct renew *)msg)->why);
            free(msg);
            break;
        case CONSENSUS_COMPACT:
            on_compact(c, (struct consensus_call *)msg);
            break;
        case CONSENSUS_SYNCED:
            on_synced(c, (struct synced *)msg);
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

/* A write whose outcome its client isn't told may be done all the same: a MUPDATE client, which can't ask another node for it, then believes something else than the directory says. Comes to an
 * end though others may begin meanwhile; on_watch looks again when nothing else happens. */
static bool writes_wait(struct consensus *c)
{
    return c->node && !c->failed && !c->removed && shared_now_ms() < c->stop_by_ms && node_writes_wait(c->node);
}

/* Once leadership is somewhere else, or can't be in time, and writes have their results: the node, then its threads, then the loop. */
static void stop_go_on(struct consensus *c)
{
    if (c->closing || (c->node && !c->failed && c->transfer_runs) || writes_wait(c))
        return;
    c->closing = true;
    consensus_member_close(c, true);
    inbox_close(&c->inbox, NULL); /* what the threads still said is taken back here */
    uv_close((uv_handle_t *)&c->timer, NULL);
    uv_close((uv_handle_t *)&c->watch, NULL);
    uv_close((uv_handle_t *)&c->alive, NULL);
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
    uv_timer_init(&c->loop, &c->alive);
    c->timer.data = c->watch.data = c->check.data = c->alive.data = c;
    uv_timer_start(&c->alive, on_alive, PAGE_ALIVE_MS, PAGE_ALIVE_MS);
    uint64_t period = d->config->election_timeout_ms / 4;
    uv_timer_start(&c->watch, on_watch, period, period);
    uv_check_start(&c->check, on_check);
    int rc = service_probe("peer_listen", d->config->peer_listen, err); /* an unconfigured node says so now, not when it joins */
    if (rc == 0 && datadir_identity(d->datadir)->cluster_id) {
        char why[ERR_TEXT_LEN];
        c->identity = *datadir_identity(d->datadir);
        rc = datadir_failure_get(d->datadir, why, sizeof why, err);
        if (rc == 0)
            rc = err_set(err, RAFTDIR_ECORRUPT, "%.400s (found in an earlier run)", why);
        else if (rc == RAFTDIR_ENOTFOUND || rc == RAFTDIR_ECORRUPT) /* whether it may serve is known: or CURRENT is damaged, which is said there */
            rc = consensus_member_start(c, MAKE_RESTART, err);
        if (rc == RAFTDIR_ECORRUPT) {
            shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
            consensus_failed(c, rc, err->text);
            rc = 0;
        }
        consensus_end_check(c); /* before anybody asks */
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

void consensus_fail(struct consensus *c, unsigned generation, int code, const char *why)
{
    struct trouble *t = mem_calloc(1, sizeof *t);
    t->msg.kind = CONSENSUS_FAIL;
    t->generation = generation;
    t->code = code;
    snprintf(t->why, sizeof t->why, "%s", why);
    if (!inbox_push(&c->inbox, &t->msg.link))
        free(t);
}

void consensus_renew(struct consensus *c, const char *why)
{
    struct renew *r = mem_calloc(1, sizeof *r);
    r->msg.kind = CONSENSUS_RENEW;
    snprintf(r->why, sizeof r->why, "%s", why);
    if (!inbox_push(&c->inbox, &r->msg.link))
        free(r);
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
