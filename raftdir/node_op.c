/* node_op.c - writes on their way: each is known by its operation id, whoever waits for it.
 *
 * Happy path: WAITING -> (FORWARDED to the leader | QUEUED here) -> PROPOSED -> applied -> told to all that wait.
 * A changed leader: what was forwarded or proposed goes to the new one at once; apply makes it exactly-once (DESIGN D6), so that
 * sending too often is only a waste, never a fault. A lost frame: sent again after OP_RESEND_MS.
 * The end: a result; ENOQUORUM, when there was no leader for NO_QUORUM_AFTER_MS and the write can't be in any log; at the deadline EUNCERTAIN if it may
 * be in a log; if it can't, ENOQUORUM, or ELIMIT when it waited at a leader whose apply doesn't get on. A callback never fires within the call that started the write.
 *
 * Space (DESIGN D13): the leader refuses with ENOSPC what it doesn't admit (node_ops_admit), at the moment when it would queue it for the first time. What may be in a
 * log already passes: its result has to be told, and it costs nothing if it was applied. So do entries of the log. While this leader's own log has no
 * room, what it has proposed is still with the followers: they commit it without this node's flush, the daemon hands leadership on, and the new leader's result ends
 * the write; if nobody has room, the write waits until its deadline, and is uncertain: it is in a log. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "node_internal.h"
#include "op.h"

/* Tells all that wait; code 0 goes with a packed Result. */
static void op_tell(struct node *n, struct op *op, int code, const uint8_t *result, size_t len)
{
    while (op->writes) {
        struct node_write *w = op->writes;
        DL_DELETE(op->writes, w);
        n->io.write_done(n->io.data, w, code, code ? NULL : result, code ? 0 : len);
    }
    while (op->forwards) {
        struct op_forward *f = op->forwards;
        Raftdir__Peer__Frame frame;
        Raftdir__Peer__ForwardResult body = RAFTDIR__PEER__FORWARD_RESULT__INIT;
        op->forwards = f->next;
        node_frame_init(n, &frame, f->peer, RAFTDIR__PEER__FRAME__BODY_FORWARD_RESULT);
        frame.forward_result = &body;
        body.op_id.data = op->id;
        body.op_id.len = OP_ID_LEN;
        body.code = code;
        if (!code) {
            body.has_result = true;
            body.result.data = (uint8_t *)(uintptr_t)result;
            body.result.len = len;
        }
        node_frame_send(n, &frame);
        free(f);
    }
}

static void op_free(struct node *n, struct op *op)
{
    if (op->state == OP_QUEUED)
        DL_DELETE(n->queue, op);
    if (op->state == OP_ENDED)
        n->ops_ended--;
    HASH_DEL(n->ops, op);
    n->ops_len -= op->request_len;
    free(op->request);
    free(op);
}

/* Ends it at the next flush, not now. */
static void op_end_later(struct node *n, struct op *op, int code)
{
    if (op->state == OP_QUEUED)
        DL_DELETE(n->queue, op);
    if (op->state != OP_ENDED)
        n->ops_ended++;
    op->state = OP_ENDED;
    op->code = code;
}

static struct op *op_create(struct node *n, const uint8_t id[OP_ID_LEN], const uint8_t *request, size_t len)
{
    struct op *op = calloc(1, sizeof *op);
    if (!op)
        return NULL;
    op->request = malloc(len ? len : 1);
    if (!op->request) {
        free(op);
        return NULL;
    }
    memcpy(op->request, request, len);
    op->request_len = len;
    memcpy(op->id, id, OP_ID_LEN);
    op->state = OP_WAITING;
    op->since_ms = n->now;
    HASH_ADD(hh, n->ops, id, OP_ID_LEN, op);
    n->ops_len += len;
    return op;
}

static bool ops_full(const struct node *n, size_t len)
{
    return HASH_COUNT(n->ops) >= WRITES_INFLIGHT_MAX || n->ops_len + len > WRITES_INFLIGHT_LEN_MAX;
}

static void op_forward_send(struct node *n, struct op *op)
{
    Raftdir__Peer__Frame frame;
    Raftdir__Peer__Forward body = RAFTDIR__PEER__FORWARD__INIT;
    node_frame_init(n, &frame, n->leader, RAFTDIR__PEER__FRAME__BODY_FORWARD);
    frame.forward = &body;
    body.request.data = op->request;
    body.request.len = op->request_len;
    op->state = OP_FORWARDED;
    op->maybe_before = op->maybe_proposed;
    op->maybe_proposed = true;
    op->sent_ms = n->now;
    node_frame_send(n, &frame);
}

/* --- Space ---------------------------------------------------------------------------------------------------------------------- */

/* Are there voters with no more than that space, without which there is no majority? This node leads. Who can't be reached is no help to the others; who can, but
 * hasn't said anything yet, or is of a version that doesn't, has space. */
static bool voters_short(const struct node *n, enum node_space space)
{
    const struct raft_configuration *c = &n->raft->configuration;
    unsigned voters = 0, fine = 0, lacking = 0;
    for (unsigned i = 0; i < c->n; i++) {
        enum node_space its = n->space;
        if (c->servers[i].role != RAFT_VOTER)
            continue;
        voters++;
        if (c->servers[i].id != n->options.id) {
            const struct node_peer_state *p = NULL;
            for (size_t k = 0; k < n->peers_n && !p; k++)
                if (n->peers[k].id == c->servers[i].id)
                    p = &n->peers[k];
            if (!p || !p->last_frame_ms || n->now - p->last_frame_ms >= SPACE_TOLD_MS)
                continue;
            its = p->told_ms && n->now - p->told_ms < SPACE_TOLD_MS ? p->space : NODE_SPACE_OK;
        }
        if (its >= space)
            lacking++;
        else
            fine++;
    }
    return lacking && 2 * fine <= voters;
}

void node_ops_admit(struct node *n)
{
    n->admits = NODE_SPACE_OK;
    if (n->state != RAFT_LEADER)
        return;
    if (n->space >= NODE_SPACE_NONE || voters_short(n, NODE_SPACE_NONE))
        n->admits = NODE_SPACE_NONE;
    else if (n->space >= NODE_SPACE_LOW || voters_short(n, NODE_SPACE_LOW))
        n->admits = NODE_SPACE_LOW;
}

static bool op_admitted(const struct node *n, const struct op *op)
{
    if (n->admits == NODE_SPACE_OK || op->maybe_proposed)
        return true;
    if (n->admits == NODE_SPACE_NONE)
        return false;
    Raftdir__Log__Request *request = raftdir__log__request__unpack(NULL, op->request_len, op->request);
    bool admitted = request && !op_request_grows(request);
    if (request)
        raftdir__log__request__free_unpacked(request, NULL);
    return admitted;
}

void node_space_set(struct node *n, enum node_space space)
{
    n->space = space;
    node_ops_admit(n);
}

/* --- On their way ----------------------------------------------------------------------------------------------------------------- */

/* Sends it on its way, if there is one. */
static void op_dispatch(struct node *n, struct op *op)
{
    assert(op->state == OP_WAITING);
    if (n->state == RAFT_LEADER && !op_admitted(n, op)) {
        op_end_later(n, op, RAFTDIR_ENOSPC);
    } else if (n->state == RAFT_LEADER) {
        op->state = OP_QUEUED;
        DL_APPEND(n->queue, op);
    } else if (n->leader && op->writes) {
        op_forward_send(n, op);
    }
}

void node_write(struct node *n, uint64_t now, struct node_write *w)
{
    struct op *op;
    if (now > n->now)
        n->now = now;
    HASH_FIND(hh, n->ops, w->op_id, OP_ID_LEN, op);
    if (op && op->state != OP_ENDED) { /* a retry while the first try is still on its way */
        DL_APPEND(op->writes, w);
        if (op->state == OP_WAITING)
            op_dispatch(n, op);
        return;
    }
    bool late = w->deadline_ms && now >= w->deadline_ms; /* this process was stopped meanwhile: who sent it has given up */
    int code = n->failed ? RAFTDIR_EFAILED : late ? RAFTDIR_ENOQUORUM : ops_full(n, w->request_len) ? RAFTDIR_ELIMIT : 0;
    if (op) { /* ended, to be told at the next flush: with the same end */
        DL_APPEND(op->writes, w);
        return;
    }
    op = op_create(n, w->op_id, w->request, w->request_len);
    if (!op) {
        node_fail(n, RAFTDIR_ENOMEM, "no memory for a write");
        n->io.write_done(n->io.data, w, RAFTDIR_ENOMEM, NULL, 0); /* the process ends; the promise about callbacks with it */
        return;
    }
    DL_APPEND(op->writes, w);
    if (code)
        op_end_later(n, op, code);
    else
        op_dispatch(n, op);
}

/* A member took a write and believes that this node leads. */
void node_ops_forward(struct node *n, uint64_t from, const Raftdir__Peer__Forward *f)
{
    Raftdir__Log__Request *request = NULL;
    struct op *op = NULL;
    struct op_forward *waiter;
    int code = 0;

    if (f->request.len <= FORWARD_LEN_MAX)
        request = raftdir__log__request__unpack(NULL, f->request.len, f->request.data);
    if (!request || request->op_id.len != OP_ID_LEN)
        code = RAFTDIR_EPROTO;
    else if (n->state != RAFT_LEADER)
        code = RAFTDIR_ENOTLEADER;
    else if (op_request_check(request, n->meta.feature_level, &n->err)) /* the peer checked; a peer with a fault must not stop apply everywhere */
        code = n->err.code;
    if (!code) {
        HASH_FIND(hh, n->ops, request->op_id.data, OP_ID_LEN, op);
        if (op && op->state == OP_ENDED)
            code = op->code;
        else if (!op && ops_full(n, f->request.len))
            code = RAFTDIR_ELIMIT;
    }
    waiter = calloc(1, sizeof *waiter);
    if (!waiter)
        goto free_request; /* it will be sent again */
    waiter->peer = from;
    if (code) {
        struct op refused = {.forwards = waiter};
        if (!request || request->op_id.len != OP_ID_LEN) {
            n->frames_dropped++;
            free(waiter);
            goto free_request;
        }
        memcpy(refused.id, request->op_id.data, OP_ID_LEN);
        op_tell(n, &refused, code, NULL, 0);
        goto free_request;
    }
    if (!op) {
        op = op_create(n, request->op_id.data, f->request.data, f->request.len);
        if (!op) {
            free(waiter);
            goto free_request;
        }
    }
    for (struct op_forward *other = op->forwards; other; other = other->next)
        if (other->peer == from) { /* sent again */
            free(waiter);
            waiter = NULL;
            break;
        }
    if (waiter) {
        waiter->next = op->forwards;
        op->forwards = waiter;
    }
    if (op->state == OP_WAITING)
        op_dispatch(n, op);
free_request:
    if (request)
        raftdir__log__request__free_unpacked(request, NULL);
}

static bool says_expired(const Raftdir__Peer__ForwardResult *r)
{
    Raftdir__Log__Result *result = raftdir__log__result__unpack(NULL, r->result.len, r->result.data);
    bool expired = !result || result->code == RAFTDIR_EEXPIRED;
    if (result)
        raftdir__log__result__free_unpacked(result, NULL);
    return expired;
}

void node_ops_forward_result(struct node *n, uint64_t from, const Raftdir__Peer__ForwardResult *r)
{
    struct op *op = NULL;
    if (r->op_id.len == OP_ID_LEN)
        HASH_FIND(hh, n->ops, r->op_id.data, OP_ID_LEN, op);
    if (!op || op->state == OP_ENDED)
        return; /* told already, or its deadline passed */
    if (r->code == 0 && r->has_result) {
        /* Expired by the time that the second copy was applied: the first may have been in time, further back in the log than this node has got. */
        if (op->maybe_before && says_expired(r))
            op_tell(n, op, RAFTDIR_EUNCERTAIN, NULL, 0);
        else
            op_tell(n, op, 0, r->result.data, r->result.len);
        op_free(n, op);
        return;
    }
    if (op->state != OP_FORWARDED || from != n->leader)
        return; /* an old leader's refusal: the new one has it by now */
    if (r->code == RAFTDIR_ENOTLEADER || r->code == RAFTDIR_EFAILED) {
        op->state = OP_WAITING; /* ops_period or a new leader sends it again */
        return;
    }
    /* The leader wasn't given it, or doesn't want it now. It is sent again after OP_RESEND_MS, or to a new leader. That holds for every refusal of what was sent
     * before: that leader, or an earlier one, may have it in its log, and it may yet be applied, or has been. */
    if (r->code == RAFTDIR_ELIMIT || r->code == 0 || op->maybe_before)
        return;
    /* No space, or refused by the check of the request itself, which any leader would repeat. */
    op_tell(n, op, r->code, NULL, 0);
    op_free(n, op);
}

void node_ops_result(struct node *n, const struct apply_result *r)
{
    struct op *op;
    HASH_FIND(hh, n->ops, r->op_id, OP_ID_LEN, op);
    if (!op || op->state == OP_ENDED)
        return;
    op_tell(n, op, 0, r->result, r->result_len);
    op_free(n, op);
}

void node_ops_leader_lost(struct node *n)
{
    struct op *op, *tmp;
    HASH_ITER(hh, n->ops, op, tmp) {
        if (op->state == OP_QUEUED)
            DL_DELETE(n->queue, op);
        else if (op->state != OP_PROPOSED)
            continue;
        op->state = OP_WAITING;
        op->since_ms = n->now;
        if (op->forwards) { /* their own nodes send them to the next leader; a hint saves them the wait */
            struct op others = {.forwards = op->forwards};
            memcpy(others.id, op->id, OP_ID_LEN);
            op->forwards = NULL;
            op_tell(n, &others, RAFTDIR_ENOTLEADER, NULL, 0);
        }
        if (!op->writes)
            op_free(n, op);
    }
}

void node_ops_leader_changed(struct node *n)
{
    struct op *op, *tmp;
    node_ops_admit(n);
    HASH_ITER(hh, n->ops, op, tmp) {
        if (op->state == OP_FORWARDED)
            op->state = OP_WAITING;
        if (op->state == OP_WAITING)
            op_dispatch(n, op);
    }
}

void node_ops_period(struct node *n)
{
    struct op *op, *tmp;
    struct node_write *w, *wtmp;
    bool no_leader = n->leader_lost_ms && n->now - n->leader_lost_ms >= NO_QUORUM_AFTER_MS;
    node_ops_admit(n);
    HASH_ITER(hh, n->ops, op, tmp) {
        if (op->state == OP_ENDED)
            continue;
        DL_FOREACH_SAFE(op->writes, w, wtmp) {
            if (n->now < w->deadline_ms)
                continue;
            DL_DELETE(op->writes, w);
            n->io.write_done(n->io.data, w,
                             op->maybe_proposed                             ? RAFTDIR_EUNCERTAIN
                             : op->state == OP_QUEUED && node_log_full(n) ? RAFTDIR_ELIMIT
                                                                          : RAFTDIR_ENOQUORUM,
                             NULL, 0);
        }
        if (!op->writes && !op->forwards && op->state != OP_PROPOSED) {
            op_free(n, op);
            continue;
        }
        if (op->state == OP_WAITING && no_leader && !op->maybe_proposed && n->now - op->since_ms >= NO_QUORUM_AFTER_MS) {
            op_tell(n, op, RAFTDIR_ENOQUORUM, NULL, 0);
            op_free(n, op);
            continue;
        }
        if (op->state == OP_WAITING)
            op_dispatch(n, op); /* refused by a node that was about to lead */
        else if (op->state == OP_FORWARDED && n->now - op->sent_ms >= OP_RESEND_MS && n->leader && op->writes)
            op_forward_send(n, op);
    }
}

static void ops_tell_ended(struct node *n)
{
    struct op *op, *tmp;
    if (!n->ops_ended && !n->failed)
        return;
    HASH_ITER(hh, n->ops, op, tmp) {
        if (op->state != OP_ENDED && !n->failed)
            continue;
        op_tell(n, op, op->state == OP_ENDED ? op->code : op->maybe_proposed ? RAFTDIR_EUNCERTAIN : RAFTDIR_EFAILED, NULL, 0);
        op_free(n, op);
    }
}

/* Packs one entry from the head of the queue; NULL when memory ran out. */
static struct entry *pack_entry(struct node *n, uint64_t index, struct op **last_r)
{
    struct op_packed requests[ENTRY_PACK_REQUESTS];
    size_t count = 0, bytes = 0, len;
    uint8_t *data;
    struct op *op;
    DL_FOREACH(n->queue, op) {
        if (count && (count == ENTRY_PACK_REQUESTS || bytes + op->request_len > ENTRY_PACK_LEN))
            break;
        requests[count].data = op->request;
        requests[count].len = op->request_len;
        bytes += op->request_len;
        count++;
        *last_r = op;
    }
    if (op_entry_pack(n->meta.feature_level, node_log_time(n), n->io.wall_ms(n->io.data), requests, count, &data, &len, &n->err))
        return NULL;
    struct entry *e = entry_create(index, n->term, RAFT_COMMAND, data, (uint32_t)len);
    free(data);
    return e;
}

/* Small proposals wait while the disk is busy: group commit by itself, at the cost of at most one flush. */
static bool queue_worth_packing(const struct node *n)
{
    if (n->writing_n < PIPELINE_DEPTH)
        return true;
    size_t bytes = 0;
    const struct op *op;
    DL_FOREACH(n->queue, op) {
        bytes += op->request_len;
        if (bytes >= ENTRY_PACK_LEN)
            return true;
    }
    return false;
}

void node_ops_pack(struct node *n)
{
    ops_tell_ended(n);
    while (!n->failed && n->state == RAFT_LEADER && n->queue && !raft_transferee(n->raft) && queue_worth_packing(n) &&
           node_last_index(n) - n->commit < UNCOMMITTED_ENTRIES_MAX && !node_log_full(n)) {
        struct entry *entries[SUBMIT_ENTRIES_MAX];
        unsigned count = 0;
        uint64_t index = n->log_first + n->log_n;
        int rc = 0;
        while (count < SUBMIT_ENTRIES_MAX && n->queue) {
            struct op *last = NULL, *op;
            struct entry *e = pack_entry(n, index + count, &last);
            if (!e) {
                node_fail(n, RAFTDIR_ENOMEM, "no memory for an entry");
                break;
            }
            entries[count++] = e;
            do { /* marked before the step: what comes back may be about them */
                op = n->queue;
                DL_DELETE(n->queue, op);
                op->state = OP_PROPOSED;
                op->maybe_proposed = true;
                op->index = e->index;
            } while (op != last);
        }
        if (count && !n->failed)
            rc = node_submit(n, entries, count);
        for (unsigned i = 0; i < count; i++)
            entry_unref(entries[i]);
        if (rc == 0)
            continue;
        /* Not taken (a transfer began, or leadership is gone): back to waiting; period or the next leader sends them on. */
        struct op *op, *tmp;
        if (rc != RAFTDIR_ENOTLEADER && rc != RAFTDIR_EBUSY)
            node_fail(n, rc, n->err.text);
        HASH_ITER(hh, n->ops, op, tmp)
            if (op->state == OP_PROPOSED && op->index >= index)
                op->state = OP_WAITING;
        return;
    }
}

bool node_writes_wait(const struct node *n)
{
    const struct op *op;
    for (op = n->ops; op; op = op->hh.next)
        if (op->writes)
            return true;
    return false;
}

void node_ops_close(struct node *n)
{
    struct op *op, *tmp;
    HASH_ITER(hh, n->ops, op, tmp) {
        struct op_forward *f;
        while ((f = op->forwards)) {
            op->forwards = f->next;
            free(f);
        }
        op_tell(n, op, RAFTDIR_ECANCELED, NULL, 0);
        op_free(n, op);
    }
}
