/* srv_mupdate_undo.c - takes back what a client can only believe to have failed, so that directory and Cyrus say the same again without a person.
 *
 * A rename comes as DELETE old, RESERVE new, ACTIVATE new, and Cyrus puts its own back when one of them fails, or its connection does; it keeps a mailbox whose DELETE failed. So when the directory
 * said NO, can't tell, or could not say anything because the connection is gone, the deleted mailbox is created again, and the new name goes if it had been made.
 *
 * A write whose outcome isn't known is found out first: a NOOP is sent under its operation id. The one that is applied first takes the id, the other gets its result. So either that write
 * has happened, and its result says so, or it never will: nothing that was answered NO happens later.
 *
 * Steps: FIND_OUT -> PUT_BACK -> DROP, each a request, exactly-once, tried again while there is no majority, no room, or too much to do, for as long as the operation id lives. It belongs to no
 * session: service.works counts it. What a crash of this node leaves: a step that wasn't done; `ctl_mboxlist -m` of the backend repairs it. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_mupdate.h"

#define RETRY_MS 200

enum undo_step { UNDO_FIND_OUT, UNDO_PUT_BACK, UNDO_DROP, UNDO_END };

struct undo {
    struct service *service;
    enum undo_step step;
    bool deletion, made; /* made: op_id and the request of this step are */
    char *identity, *drop, *drop_server, *why;
    Raftdir__Log__Mailbox *put_back;
    uint64_t drop_generation;
    uint8_t op_id[OP_ID_LEN];
    uint64_t expires_ms, give_up_ms;
    uint8_t *request;
    size_t request_len;
    struct consensus_call call;
    struct srv_wait wait;
    struct mupdate_session *session; /* who waits for the first attempt; NULL: nobody */
    void (*then)(struct mupdate_session *m);
};

static void attempt(struct undo *u);

static void tell_session(struct undo *u)
{
    struct mupdate_session *m = u->session;
    if (!m)
        return;
    u->session = NULL;
    m->calling = false;
    if (m->conn)
        u->then(m);
    else
        mupdate_release(m);
}

static void undo_destroy(struct undo *u)
{
    tell_session(u);
    u->service->works--;
    raftdir__log__mailbox__free_unpacked(u->put_back, NULL);
    free(u->call.result);
    free(u->request);
    free(u->identity);
    free(u->drop);
    free(u->drop_server);
    free(u->why);
    free(u);
}

/* --- Steps ----------------------------------------------------------------------------------------------------------------------------- */

static uint8_t *request_of(struct undo *u, struct err *err)
{
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT, *ops[] = {&op};
    Raftdir__Log__Noop noop = RAFTDIR__LOG__NOOP__INIT;
    Raftdir__Log__Create create = RAFTDIR__LOG__CREATE__INIT;
    Raftdir__Log__Delete drop = RAFTDIR__LOG__DELETE__INIT;
    Raftdir__Log__Location at = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Precondition as_made = RAFTDIR__LOG__PRECONDITION__INIT, *preconditions[] = {&as_made};
    if (u->step == UNDO_FIND_OUT) {
        op.op_case = RAFTDIR__LOG__OP__OP_NOOP;
        op.noop = &noop;
    } else if (u->step == UNDO_PUT_BACK) {
        op.op_case = RAFTDIR__LOG__OP__OP_CREATE;
        op.create = &create;
        create.mailbox = u->put_back;
    } else {
        op.op_case = RAFTDIR__LOG__OP__OP_DELETE;
        op.delete_ = &drop;
        drop.name = u->drop;
        drop.location = &at;
        at.server = u->drop_server;
        at.partition = (char *)(uintptr_t)"";
        as_made.condition = RAFTDIR__LOG__CONDITION__GENERATION;
        as_made.has_generation = true;
        as_made.generation = u->drop_generation;
        op.preconditions = preconditions;
        op.n_preconditions = 1;
    }
    if (u->step != UNDO_FIND_OUT)
        mupdate_op_id(u->service, u->op_id, &u->expires_ms);
    return mupdate_request(u->service, u->identity, u->op_id, u->expires_ms, ops, 1, &u->request_len, err);
}

static void step_to(struct undo *u, enum undo_step step)
{
    if (step == UNDO_PUT_BACK && !u->put_back)
        step = UNDO_DROP;
    if (step == UNDO_DROP) {
        tell_session(u);
        if (!u->drop || !u->drop_generation)
            step = UNDO_END;
    }
    free(u->request);
    u->request = NULL;
    u->step = step;
    if (step == UNDO_END)
        undo_destroy(u);
    else
        attempt(u);
}

static void lost(struct undo *u, const char *why)
{
    if (u->step == UNDO_DROP)
        logger_line(LOGGER_ERROR, "mupdate", "%s: \"%s\" stays in the directory, though its client can't know that it was made (%s): %s; ctl_mboxlist -m at %s repairs it", u->identity,
                    u->drop, u->why, why, u->drop_server);
    else if (u->put_back)
        logger_line(LOGGER_ERROR, "mupdate", "%s: \"%s\" may have been deleted for something that failed (%s), and could not be put back: %s; ctl_mboxlist -m at %s repairs it",
                    u->identity, u->put_back->name, u->why, why, u->put_back->location->server);
    undo_destroy(u);
}

/* --- Results --------------------------------------------------------------------------------------------------------------------------- */

static void found_out(struct undo *u, const Raftdir__Log__Result *r)
{
    const Raftdir__Log__OpResult *op = r->code == 0 && r->n_ops ? r->ops[0] : NULL;
    bool changed = op && op->changed; /* a NOOP changes nothing: then the write hasn't happened, and can't any more */
    if (u->deletion && !changed) {
        step_to(u, UNDO_END);
        return;
    }
    if (changed && op->has_generation && !u->drop_generation)
        u->drop_generation = op->generation;
    step_to(u, UNDO_PUT_BACK);
}

static void step_done(struct undo *u, const Raftdir__Log__Result *r)
{
    const char *text = r->message ? r->message : err_text(r->code);
    mupdate_seen(u->service, r->index);
    if (u->step == UNDO_FIND_OUT) {
        found_out(u, r);
    } else if (u->step == UNDO_PUT_BACK) {
        if (r->code == 0)
            logger_line(LOGGER_INFO, "mupdate", "%s: \"%s\" is in the directory as before: its deletion or rename failed (%s)", u->identity, u->put_back->name, u->why);
        else
            logger_line(LOGGER_WARN, "mupdate", "%s: \"%s\" was not put back after its deletion or rename failed (%s): %s", u->identity, u->put_back->name, u->why, text);
        step_to(u, UNDO_DROP);
    } else {
        if (r->code == 0)
            logger_line(LOGGER_INFO, "mupdate", "%s: \"%s\" was taken back: its rename failed (%s)", u->identity, u->drop, u->why);
        else
            logger_line(LOGGER_WARN, "mupdate", "%s: \"%s\" was not taken back after its rename failed (%s): %s", u->identity, u->drop, u->why, text);
        step_to(u, UNDO_END);
    }
}

static void again(struct srv_wait *w)
{
    attempt((struct undo *)((char *)w - offsetof(struct undo, wait)));
}

static void on_call(struct consensus_call *call)
{
    struct undo *u = (struct undo *)((char *)call - offsetof(struct undo, call));
    Raftdir__Log__Result *r = call->code == 0 ? raftdir__log__result__unpack(NULL, call->result_len, call->result) : NULL;
    if (r && r->code != RAFTDIR_EEXPIRED) {
        step_done(u, r);
        raftdir__log__result__free_unpacked(r, NULL);
        return;
    }
    int code = r ? r->code : call->code;
    if (r)
        raftdir__log__result__free_unpacked(r, NULL);
    uint64_t now = shared_now_ms();
    struct shared_view view;
    shared_view_get(&u->service->d->shared, &view);
    if (u->service->stopping || view.phase != SHARED_RUNNING || now >= u->give_up_ms || code == RAFTDIR_EEXPIRED) {
        lost(u, err_text(code));
        return;
    }
    if (u->step == UNDO_PUT_BACK)
        tell_session(u); /* it has waited long enough */
    u->wait.done = again;
    srv_wait_begin(u->service, &u->wait, UINT64_MAX, now + RETRY_MS);
}

static void attempt(struct undo *u)
{
    struct err err = {0};
    if (!u->request && !(u->request = request_of(u, &err))) {
        lost(u, err.text);
        return;
    }
    memset(&u->call.u.write, 0, sizeof u->call.u.write);
    memcpy(u->call.u.write.op_id, u->op_id, OP_ID_LEN);
    u->call.u.write.request = u->request;
    u->call.u.write.request_len = u->request_len;
    u->call.done = on_call;
    srv_call(u->service, &u->call, CONSENSUS_WRITE, shared_now_ms() + MUPDATE_UNDO_MS);
}

void mupdate_undo(struct mupdate_session *m, const struct mupdate_undo_plan *plan, void (*then)(struct mupdate_session *m))
{
    struct undo *u = mem_calloc(1, sizeof *u);
    u->service = m->service;
    u->identity = mem_strdup(m->access.identity);
    u->deletion = plan->deletion;
    u->put_back = plan->put_back;
    u->drop = mem_strdup(plan->drop);
    u->drop_server = mem_strdup(plan->drop_server);
    u->drop_generation = plan->drop_generation;
    u->why = mem_strdup(plan->why);
    u->give_up_ms = shared_now_ms() + OP_TTL_DEFAULT_MS / 2;
    if (plan->op_id) {
        memcpy(u->op_id, plan->op_id, OP_ID_LEN);
        u->expires_ms = plan->expires_ms;
    }
    u->service->works++;
    if (then) {
        u->session = m;
        u->then = then;
        m->calling = true;
    }
    step_to(u, plan->op_id ? UNDO_FIND_OUT : UNDO_PUT_BACK);
}
