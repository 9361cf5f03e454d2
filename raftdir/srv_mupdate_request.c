/* srv_mupdate_request.c - a write of MUPDATE on its way to the log and back; srv_mupdate_write.c says what the verbs mean.
 *
 * One request a verb, exactly-once: this node sends it again when the leader changes, and the client waits, for MUPDATE_WRITE_MS at most. Nothing was done when the answer is NO, unless
 * its text says that it can't be told; then the write is found out and ended (srv_mupdate_undo.c), so that it doesn't happen later.
 *
 * Failures: the connection goes while a request is under way: it goes on to its end; what the client can only believe to have failed is taken back. A refusal within a rename: the deleted
 * mailbox is put back, then the client hears NO. This node was stopped for a while (srv_came_ms): what came meanwhile may be from clients that have given up, and put their own back: a command
 * that is too old isn't begun, and what was done for one is taken back. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "logger.h"
#include "op.h"
#include "srv_bound.h"
#include "srv_mupdate.h"

#define RETRY_MS 50   /* between attempts that surely did nothing */
#define LATE_MS 1500  /* behind the deadline: this node was stopped meanwhile, and Cyrus has given up */
#define EXPIRED_MAX 3 /* ids that were older than the log, one after the other */

/* --- Requests -------------------------------------------------------------------------------------------------------------------------- */

void mupdate_op_id(struct service *s, uint8_t op_id_r[OP_ID_LEN], uint64_t *expires_ms_r)
{
    struct shared_view view;
    if (getrandom(op_id_r, OP_ID_LEN, 0) != OP_ID_LEN) /* so few bytes are never cut short */
        mem_exhausted("getrandom");
    shared_view_get(&s->d->shared, &view);
    *expires_ms_r = shared_log_time_ms(&view, shared_now_ms()) + OP_TTL_DEFAULT_MS;
}

uint8_t *mupdate_request(struct service *s, const char *identity, const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, Raftdir__Log__Op **ops, size_t n, size_t *len_r,
                         struct err *err)
{
    Raftdir__Log__Request request = RAFTDIR__LOG__REQUEST__INIT;
    struct shared_view view;
    char origin[128];
    shared_view_get(&s->d->shared, &view);
    snprintf(origin, sizeof origin, "node %" PRIu64 " mupdate", view.node_id);
    request.op_id.data = (uint8_t *)(uintptr_t)op_id;
    request.op_id.len = OP_ID_LEN;
    request.expires_ms = expires_ms;
    request.identity = (char *)(uintptr_t)identity;
    request.origin = origin;
    request.ops = ops;
    request.n_ops = n;
    if (op_request_check(&request, view.status.feature_level, err) != 0)
        return NULL;
    *len_r = raftdir__log__request__get_packed_size(&request);
    uint8_t *packed = mem_alloc(*len_r);
    raftdir__log__request__pack(&request, packed);
    return packed;
}

void mupdate_deleted_forget(struct mupdate_session *m)
{
    raftdir__log__mailbox__free_unpacked(m->deleted, NULL);
    m->deleted = NULL;
    m->renaming = false;
}

static void write_clear(struct mupdate_session *m)
{
    raftdir__log__mailbox__free_unpacked(m->write.was, NULL);
    free(m->write.from);
    free(m->write.refusal);
    m->write = (struct mupdate_write){0};
}

void mupdate_write_begin(struct mupdate_session *m, void (*begin)(struct mupdate_session *m))
{
    write_clear(m);
    m->write.begin = begin;
    m->deadline_ms = srv_came_ms(m->service) + MUPDATE_WRITE_MS;
    if (shared_now_ms() >= m->deadline_ms)
        mupdate_refuse(m, "this node was stopped while the command waited: not done, try again");
    else
        begin(m);
}

/* --- What the client can only believe to have failed -------------------------------------------------------------------------------------- */

/* r: the result of the request, NULL: it was not sent, or surely not done; unknown: one can't tell. then: as mupdate_undo. False: there is nothing to take back. */
static bool take_back(struct mupdate_session *m, const Raftdir__Log__Result *r, bool unknown, const char *why, void (*then)(struct mupdate_session *m))
{
    struct mupdate_undo_plan plan = {.why = why};
    bool done = r && r->code == 0;
    if (unknown) {
        plan.op_id = m->write.op_id;
        plan.expires_ms = m->write.expires_ms;
    }
    if (m->write.was && (done || unknown)) {
        plan.deletion = true;
        plan.put_back = m->write.was;
        m->write.was = NULL;
    } else if (m->deleted && m->renaming) {
        plan.put_back = m->deleted;
        m->deleted = NULL;
        if (m->write.activates && (done || unknown)) {
            plan.drop = mupdate_arg(m, 0);
            plan.drop_server = plan.put_back->location->server;
            plan.drop_generation = done && r->n_ops && r->ops[0]->changed ? r->ops[0]->generation : 0;
        }
    }
    mupdate_deleted_forget(m);
    if (!plan.op_id && !plan.put_back)
        return false;
    mupdate_undo(m, &plan, then);
    return true;
}

static void refused(struct mupdate_session *m)
{
    char *text = m->write.refusal;
    m->write.refusal = NULL;
    write_clear(m);
    mupdate_answer(m, "NO", "%s", text);
    free(text);
}

/* It was not done. What the client deleted for it is put back first, if there is time for it. */
void mupdate_refuse(struct mupdate_session *m, const char *text)
{
    m->write.refusal = mem_strdup(text);
    bool time = shared_now_ms() + 2 * (uint64_t)MUPDATE_UNDO_MS < m->deadline_ms;
    if (!take_back(m, NULL, false, text, time ? refused : NULL) || !time)
        refused(m);
}

static const char *text_of(const Raftdir__Log__Result *r)
{
    return r->message ? r->message : err_text(r->code); /* a repeated answer has no text */
}

void mupdate_refuse_result(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    char text[ERR_TEXT_LEN];
    snprintf(text, sizeof text, "%s", text_of(r));
    mupdate_refuse(m, text);
}

void mupdate_done(struct mupdate_session *m)
{
    write_clear(m);
    mupdate_answer(m, "OK", "done");
}

void mupdate_write_close(struct mupdate_session *m)
{
    if (m->write.sent)
        return; /* on_call goes on */
    if (m->logged_out)
        mupdate_deleted_forget(m);
    take_back(m, NULL, false, "the connection ended within it", NULL);
    write_clear(m);
}

/* --- A request on its way ------------------------------------------------------------------------------------------------------------------- */

static void request_send(struct mupdate_session *m);

static void send_again(struct srv_wait *w)
{
    request_send((struct mupdate_session *)((char *)w - offsetof(struct mupdate_session, wait)));
}

static void gone(struct mupdate_session *m, const Raftdir__Log__Result *r, bool unknown)
{
    take_back(m, r, unknown, "the connection ended before the answer", NULL);
    write_clear(m);
    mupdate_release(m);
}

static void result(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    mupdate_seen(m->service, r->index);
    bool late = shared_now_ms() >= m->deadline_ms + LATE_MS && r->code == 0 && (m->write.was || (m->deleted && m->renaming));
    if (!m->conn || m->closing) { /* closing: it was let go, and isn't answered any more */
        gone(m, r, false);
    } else if (late) {
        take_back(m, r, false, "its result came when its client had given up", NULL);
        write_clear(m);
        mupdate_answer(m, "NO", "too late: taken back, try again");
    } else if (r->code == RAFTDIR_EEXPIRED && m->write.expired++ < EXPIRED_MAX) {
        m->write.begin(m); /* with a new id: this one was older than the log, surely not done */
    } else {
        m->write.done(m, r);
    }
}

static void no_result(struct mupdate_session *m, int code)
{
    uint64_t now = shared_now_ms();
    switch (code) {
    case RAFTDIR_ENOQUORUM: /* an election may be under way */
    case RAFTDIR_ELIMIT:
        if (m->conn && now + RETRY_MS < m->deadline_ms && !m->service->stopping) {
            m->wait.done = send_again;
            srv_wait_begin(m->service, &m->wait, UINT64_MAX, now + RETRY_MS);
            return;
        }
        if (!m->conn)
            gone(m, NULL, false);
        else if (code == RAFTDIR_ENOQUORUM)
            mupdate_refuse(m, "no majority of the directory's nodes is in reach: not done, try again");
        else
            mupdate_refuse(m, "too many writes are waiting at this node: not done, try again");
        return;
    case RAFTDIR_ENOTREADY: /* this node has ended its part before it had the write */
        if (m->conn)
            mupdate_refuse(m, "this node has stopped serving: not done, try again, at another node");
        else
            gone(m, NULL, false);
        return;
    case RAFTDIR_ENOSPC:
        if (m->conn)
            mupdate_refuse(m, "the directory's disks are nearly full: not done, try again when there is room");
        else
            gone(m, NULL, false);
        return;
    default: /* it was on its way when the time was up, or when this node ended its part in it */
        if (!m->conn) {
            gone(m, NULL, true);
            return;
        }
        take_back(m, NULL, true, "its outcome was not known in time", NULL);
        write_clear(m);
        mupdate_answer(m, "NO", "can't tell whether it was done: the directory's nodes did not agree in time; try again");
    }
}

static void on_call(struct consensus_call *call)
{
    struct mupdate_session *m = (struct mupdate_session *)((char *)call - offsetof(struct mupdate_session, call));
    Raftdir__Log__Result *r = call->code == 0 ? raftdir__log__result__unpack(NULL, call->result_len, call->result) : NULL;
    m->calling = m->write.sent = false;
    if (call->code == 0 && !r)
        logger_line(LOGGER_ERROR, "mupdate", "a write's result doesn't parse");
    if (r)
        result(m, r);
    else
        no_result(m, call->code == 0 ? RAFTDIR_EUNCERTAIN : call->code);
    if (r)
        raftdir__log__result__free_unpacked(r, NULL);
}

static void request_send(struct mupdate_session *m)
{
    m->calling = m->write.sent = true;
    memset(&m->call.u.write, 0, sizeof m->call.u.write);
    memcpy(m->call.u.write.op_id, m->write.op_id, OP_ID_LEN);
    m->call.u.write.request = m->packed;
    m->call.u.write.request_len = m->write.request_len;
    m->call.done = on_call;
    srv_call(m->service, &m->call, CONSENSUS_WRITE, m->deadline_ms);
}

/* Is this identity bound to a server, and does the operation leave it? Then, or while that can't be said yet, the rest happens later. */
static bool may_send(struct mupdate_session *m, Raftdir__Log__Op *op)
{
    struct err err = {0};
    int rc = srv_bound_check(m->service, &m->access, &op, 1, m->write.confirmed, &err);
    if (rc == RAFTDIR_ENOTFOUND) {
        m->write.confirmed = true;
        mupdate_linearize(m, m->write.begin);
    } else if (rc != 0) {
        mupdate_refuse(m, err.text);
    }
    return rc == 0;
}

void mupdate_submit(struct mupdate_session *m, Raftdir__Log__Op *op, void (*when_done)(struct mupdate_session *m, const Raftdir__Log__Result *r))
{
    struct err err = {0};
    if (!may_send(m, op))
        return;
    mupdate_op_id(m->service, m->write.op_id, &m->write.expires_ms);
    uint8_t *packed = mupdate_request(m->service, m->access.identity, m->write.op_id, m->write.expires_ms, &op, 1, &m->write.request_len, &err);
    if (!packed) {
        mupdate_refuse(m, err.text);
        return;
    }
    free(m->packed);
    m->packed = packed;
    m->write.done = when_done;
    request_send(m);
}
