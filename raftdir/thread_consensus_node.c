/* thread_consensus_node.c - what the node wants of the world, and what the world says to the node: struct node_io, the log and apply threads, the peers.
 *
 * Calls of service threads end here, each exactly once. Failures: an I/O error of the log, of the state, or of term and vote: the daemon stops with EXIT_FAULT;
 * the node's own end goes through consensus_failed. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "consensus_internal.h"
#include "logger.h"
#include "thread_space.h"
#include "thread_service.h"

/* --- Calls go back to their service thread ----------------------------------------------------------------------------------- */

void consensus_call_done(struct consensus_call *call, int code)
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
    consensus_call_done(call, code);
}

static void on_read_done(void *data, struct node_read *r, int code, uint64_t index)
{
    (void)data;
    struct consensus_call *call = (struct consensus_call *)((char *)r - offsetof(struct consensus_call, u.read));
    call->index = index;
    consensus_call_done(call, code);
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
    consensus_call_done(call, result->code == RAFTDIR_ECANCELED ? result->code : 0);
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
        return rc;
    }
    c->term = term;
    c->voted_for = voted_for;
    return 0;
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

void consensus_failed(struct consensus *c, int code, const char *why)
{
    if (code == RAFTDIR_ENOMEM)
        mem_exhausted(why);
    shared_page_stop(&c->d->shared);
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

static void on_log_cut(void *data, uint64_t index)
{
    log_thread_cut(((struct consensus *)data)->log_thread, index);
}

static void on_image_wanted(void *data, uint64_t index, uint64_t term)
{
    (void)term;
    ((struct consensus *)data)->image.wanted = index; /* looked at when the turn ends */
}

static void on_alarm(void *data, const char *text)
{
    if (!shared_alarm_set(&((struct consensus *)data)->d->shared, ALARM_DIFFERS, text))
        return;
    if (text)
        logger_line(LOGGER_ERROR, "consensus", "ALARM: %s", text);
    else
        logger_line(LOGGER_WARN, "consensus", "the state of no member differs from this node's any more");
}

static void on_failed(void *data, int code, const char *why)
{
    consensus_failed(data, code, why);
}

void consensus_node_io(struct consensus *c, struct node_io *io_r)
{
    *io_r = (struct node_io){.data = c,
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
                             .wall_ms = on_wall_ms,
                             .log_cut = on_log_cut,
                             .image_wanted = on_image_wanted,
                             .alarm = on_alarm};
}

/* --- From the log and apply threads ------------------------------------------------------------------------------------------------- */

static void on_written(void *data, struct log_batch *batches, int status)
{
    struct consensus *c = data;
    struct log_done *done = mem_calloc(1, sizeof *done);
    done->msg.kind = CONSENSUS_LOG_DONE;
    done->life = c->life;
    done->batches = batches;
    done->status = status;
    inbox_push(&c->inbox, &done->msg.link); /* open until this thread has been joined */
}

static void space_tell(struct consensus *c, bool apply, bool lacking)
{
    struct space *space = mem_calloc(1, sizeof *space);
    space->msg.kind = CONSENSUS_SPACE;
    space->life = c->life;
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

/* The ballast, if there is one (thread_space.h). */
static bool on_release(void *data)
{
    struct daemon *d = ((struct consensus *)data)->d;
    return d->space && space_watch_release(d->space);
}

static void on_log_broken(void *data, int code, const char *why)
{
    struct consensus *c = data;
    logger_line(LOGGER_ERROR, "log", "the log can't be written: %s (%s): this node stops, nothing of it was acknowledged; check the disk", why, err_name(code));
    daemon_stop(c->d, EXIT_FAULT);
}

static void on_published(void *data, const struct store_meta *meta)
{
    struct consensus *c = data;
    struct daemon *d = c->d;
    uint64_t show_at = atomic_load(&c->show_at);
    if (show_at) { /* readers have a state that had come so far */
        if (meta->applied_index >= show_at)
            consensus_store_show(c, meta->applied_index);
        return;
    }
    shared_published_set(&d->shared, meta->applied_index);
    for (unsigned i = 0; i < d->services_n; i++)
        service_published(d->services[i], meta->applied_index);
}

static void on_applied(void *data, struct apply_batch *batch, const struct apply_members *members)
{
    struct consensus *c = data;
    struct apply_done *done = mem_calloc(1, sizeof *done);
    done->msg.kind = CONSENSUS_APPLY_DONE;
    done->life = c->life;
    done->batch = batch;
    done->changed = members != NULL;
    if (members)
        done->members = *members;
    inbox_push(&c->inbox, &done->msg.link);
}

static void on_synced(void *data, struct apply_synced *state)
{
    struct consensus *c = data;
    struct synced *synced = mem_calloc(1, sizeof *synced);
    synced->msg.kind = CONSENSUS_SYNCED;
    synced->life = c->life;
    synced->state = *state;
    inbox_push(&c->inbox, &synced->msg.link);
}

static void on_apply_broken(void *data, int code, const char *why)
{
    struct consensus *c = data;
    logger_line(LOGGER_ERROR, "apply", "the state can't be written: %s (%s): this node stops, what it can't write is in the log; check the disk", why, err_name(code));
    daemon_stop(c->d, EXIT_FAULT);
}

int consensus_threads_start(struct consensus *c, struct err *err)
{
    struct log_thread_ops log_ops = {.data = c, .space = on_log_space, .release = on_release, .written = on_written, .broken = on_log_broken};
    struct apply_thread_ops apply_ops = {.data = c,
                                         .space = on_apply_space,
                                         .release = on_release,
                                         .published = on_published,
                                         .applied = on_applied,
                                         .synced = on_synced,
                                         .broken = on_apply_broken};
    int rc = log_thread_start(c->d->log, &log_ops, &c->log_thread, err);
    if (rc != 0)
        return rc;
    rc = apply_thread_start(c->store, &apply_ops, &c->apply_thread, err);
    if (rc != 0)
        log_thread_stop(&c->log_thread);
    return rc;
}

/* What they have said so far is in the inbox, and is dropped there: it was for a node that is no more. */
void consensus_threads_stop(struct consensus *c)
{
    log_thread_stop(&c->log_thread);
    apply_thread_stop(&c->apply_thread);
    c->life++;
    c->no_space_log = c->no_space_apply = false;
}

/* --- Peers ----------------------------------------------------------------------------------------------------------------------------- */

static void on_peer_frame(void *data, uint64_t from, const uint8_t *frame, size_t len)
{
    struct consensus *c = data;
    if (c->node && !c->failed)
        node_receive(c->node, shared_now_ms(), from, frame, len);
}

static void on_peer_endpoint(void *data, uint64_t id, const char *endpoint, const char *site)
{
    shared_endpoint_set(&((struct consensus *)data)->d->shared, id, endpoint, site);
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

static void on_peer_image(void *data, uint64_t from, int fd, SSL *ssl, const Raftdir__Image__Request *request)
{
    image_senders_take(((struct consensus *)data)->senders, from, fd, ssl, request);
}

static void on_peer_log(void *data, int level, const char *text)
{
    (void)data;
    logger_line((enum logger_level)level, "peers", "%s", text);
}

/* Until this node is in the configuration that it knows, that one may be old (it is catching up), and its leader may be one of those
 * that it was told of when it was adopted. */
size_t consensus_members(struct consensus *c, struct node_peer list_r[MEMBERS_MAX])
{
    size_t n = node_members(c->node, shared_now_ms(), list_r, MEMBERS_MAX);
    bool self = false;
    for (size_t i = 0; i < n; i++)
        self = self || list_r[i].id == c->identity.node_id;
    for (size_t i = 0; !self && i < c->identity.members_n && n < MEMBERS_MAX; i++) {
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known = known || list_r[k].id == c->identity.members[i].id;
        if (!known)
            list_r[n++] = c->identity.members[i];
    }
    return n;
}

void consensus_members_update(struct consensus *c)
{
    struct node_peer list[MEMBERS_MAX];
    size_t n = consensus_members(c, list);
    peers_members(c->peers, list, n);
    shared_members_set(&c->d->shared, list, n);
    shared_endpoint_set(&c->d->shared, c->identity.node_id, c->d->config->client_advertise, c->d->config->site);
}

static void on_peers_stopped(void *data)
{
    (void)data;
}

int consensus_peers_start(struct consensus *c, const char *host, const char *port, struct err *err)
{
    struct daemon *d = c->d;
    struct peers_options po = {.loop = &c->loop,
                               .tls = daemon_tls(d),
                               .listen_host = host,
                               .listen_port = port,
                               .self_id = c->identity.node_id,
                               .cluster_id = c->identity.cluster_id,
                               .incarnation = c->identity.incarnation,
                               .client_endpoint = d->config->client_advertise,
                               .site = d->config->site,
                               .data = c,
                               .on_frame = on_peer_frame,
                               .on_endpoint = on_peer_endpoint,
                               .removed = on_peer_removed,
                               .on_removed = on_removed_by_peer,
                               .on_image = on_peer_image,
                               .log = on_peer_log};
    memcpy(po.uuid, d->uuid, NODE_UUID_LEN);
    int rc = peers_start(&po, &c->peers, err);
    SSL_CTX_free(po.tls); /* ours; a reload may replace the daemon's own meanwhile */
    return rc;
}

void consensus_peers_stop(struct consensus *c)
{
    if (c->peers)
        peers_stop(&c->peers, on_peers_stopped, c);
}
