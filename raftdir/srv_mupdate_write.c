/* srv_mupdate_write.c - RESERVE, ACTIVATE, DEACTIVATE, DELETE. How they are mapped is in client/murder.h, which does the same for Cyrus with libraftdir: both kinds may be mixed.
 *
 * A verb is one request to the log, exactly-once: this node sends it again when the leader changes, and the client waits, for MUPDATE_WRITE_MS at most. Nothing was done when the answer is NO, unless
 * its text says that it can't be told; then the write is found out and ended (srv_mupdate_undo.c), so that it doesn't happen later.
 *
 * What needs a look first, in the state that is published here, or one that a majority has confirmed when that finds nothing: DELETE (what it takes away is kept, for it may be the beginning of a
 * rename, and must be what was looked at: its generation is a precondition); a take-over; the reason of a refusal where the protocol has several answers for it.
 *
 * Failures: the connection goes while a request is under way: it goes on to its end; what the client can only believe to have failed is taken back. A refusal within a rename: the deleted
 * mailbox is put back, then the client hears NO. */
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

/* As murder_write.c: whoever activates next may. What DEACTIVATE holds is held under this, which is no secret. A RESERVE holds without a token, for its own server alone. */
static const char move_token[] = "cyrus XFER";
#define TRIES 8
#define RETRY_MS 50

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

static void deleted_forget(struct mupdate_session *m)
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

static void write_begin(struct mupdate_session *m, void (*begin)(struct mupdate_session *m))
{
    write_clear(m);
    m->write.begin = begin;
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
    deleted_forget(m);
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
static void refuse(struct mupdate_session *m, const char *text)
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

static void refuse_result(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    char text[ERR_TEXT_LEN];
    snprintf(text, sizeof text, "%s", text_of(r));
    refuse(m, text);
}

static void done(struct mupdate_session *m)
{
    write_clear(m);
    mupdate_answer(m, "OK", "done");
}

void mupdate_write_close(struct mupdate_session *m)
{
    if (m->write.sent)
        return; /* on_call goes on */
    if (m->logged_out)
        deleted_forget(m);
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
    if (!m->conn)
        gone(m, r, false);
    else if (r->code == RAFTDIR_EEXPIRED && m->write.tries++ < TRIES)
        m->write.begin(m); /* with a new id: this one was older than the log, surely not done */
    else
        m->write.done(m, r);
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
            refuse(m, "no majority of the directory's nodes is in reach: not done, try again");
        else
            refuse(m, "too many writes are waiting at this node: not done, try again");
        return;
    case RAFTDIR_ENOSPC:
        if (m->conn)
            refuse(m, "the directory's disks are nearly full: not done, try again when there is room");
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
        refuse(m, err.text);
    }
    return rc == 0;
}

static void submit(struct mupdate_session *m, Raftdir__Log__Op *op, void (*when_done)(struct mupdate_session *m, const Raftdir__Log__Result *r))
{
    struct err err = {0};
    if (!may_send(m, op))
        return;
    mupdate_op_id(m->service, m->write.op_id, &m->write.expires_ms);
    uint8_t *packed = mupdate_request(m->service, m->access.identity, m->write.op_id, m->write.expires_ms, &op, 1, &m->write.request_len, &err);
    if (!packed) {
        refuse(m, err.text);
        return;
    }
    free(m->packed);
    m->packed = packed;
    m->write.done = when_done;
    request_send(m);
}

/* --- What the verbs share -------------------------------------------------------------------------------------------------------------------- */

struct place {
    char server[SERVER_LEN_MAX + 1], partition[PARTITION_LEN_MAX + 1];
};

static char *arg(struct mupdate_session *m, unsigned i)
{
    return (char *)(uintptr_t)mupdate_arg(m, i); /* protobuf-c's messages want what isn't const, and change nothing */
}

/* The location that argument i says; an empty partition in a rename means that of the deleted mailbox. False: refused. */
static bool place_of(struct mupdate_session *m, unsigned i, struct place *p)
{
    struct mupdate_location l;
    struct err err = {0};
    if (mupdate_location_parse(&m->line.word[2 + i], &l, &err) != 0) {
        refuse(m, err.text);
        return false;
    }
    if (l.server_len > SERVER_LEN_MAX || l.partition_len > PARTITION_LEN_MAX) {
        refuse(m, "the location is too long");
        return false;
    }
    memcpy(p->server, l.server, l.server_len);
    p->server[l.server_len] = '\0';
    memcpy(p->partition, l.partition, l.partition_len);
    p->partition[l.partition_len] = '\0';
    const Raftdir__Log__Location *was = m->deleted ? m->deleted->location : NULL;
    if (!*p->partition && was && strcmp(was->server, p->server) == 0 && strlen(was->partition) <= PARTITION_LEN_MAX)
        strcpy(p->partition, was->partition);
    return true;
}

/* The client has spoken for this server. After LIST of a server's locations it is that one. */
static void spoke_for(struct mupdate_session *m, const struct place *p)
{
    if (!m->listed)
        mupdate_view_server(m, p->server, strlen(p->server));
}

static void token_set(ProtobufCBinaryData *token, protobuf_c_boolean *has)
{
    *has = true;
    token->data = (uint8_t *)(uintptr_t)move_token;
    token->len = sizeof move_token - 1;
}

static bool str_is(struct store_str s, const char *wanted)
{
    return s.len == strlen(wanted) && (!s.len || memcmp(s.s, wanted, s.len) == 0);
}

/* The mailbox of the first argument in the published state: 0, and the service's read transaction is the caller's to end; RAFTDIR_ENOTFOUND: there is none; else refused. */
static int look(struct mupdate_session *m, struct store_mailbox *box_r)
{
    struct service *s = m->service;
    struct store_meta meta;
    struct err err = {0};
    int rc = srv_txn(s, &meta, &err);
    if (rc == 0) {
        rc = store_ask(s->txn, STORE_BY_NAME, mupdate_arg(m, 0), box_r, &err);
        if (rc != 0)
            srv_txn_done(s);
        if (rc == RAFTDIR_ECORRUPT)
            srv_corrupt(s, err.text);
    }
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND)
        refuse(m, err.text);
    return rc;
}

/* A name that DEACTIVATE holds: without an end. */
static bool is_held_at(const struct store_mailbox *box, const char *server)
{
    return box->state == STORE_RESERVED && box->reserved_until_ms == 0 && str_is(box->server, server);
}

/* --- RESERVE ------------------------------------------------------------------------------------------------------------------------------- */

/* The name is reserved: what this server has deactivated itself is its own, and stays as it is. */
static void reserve_look(struct mupdate_session *m)
{
    struct store_mailbox box;
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    int rc = look(m, &box);
    bool own = rc == 0 && is_held_at(&box, at.server);
    if (rc == 0)
        srv_txn_done(m->service);
    else if (rc != RAFTDIR_ENOTFOUND)
        return;
    if (own)
        done(m);
    else
        refuse(m, "mailbox already exists");
}

static void reserve_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    if (r->code == 0)
        done(m);
    else if (r->code == RAFTDIR_ERESERVED)
        mupdate_wait(m, r->index, reserve_look);
    else if (r->code == RAFTDIR_EEXIST)
        refuse(m, "mailbox already exists");
    else
        refuse_result(m, r);
}

static void reserve(struct mupdate_session *m)
{
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT;
    Raftdir__Log__Reserve reserve = RAFTDIR__LOG__RESERVE__INIT;
    Raftdir__Log__Location location = RAFTDIR__LOG__LOCATION__INIT;
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    spoke_for(m, &at);
    location.server = at.server;
    location.partition = at.partition;
    reserve.name = arg(m, 0);
    reserve.location = &location;
    reserve.has_any_partition = reserve.any_partition = true;
    op.op_case = RAFTDIR__LOG__OP__OP_RESERVE;
    op.reserve = &reserve;
    submit(m, &op, reserve_done);
}

void mupdate_reserve(struct mupdate_session *m)
{
    m->renaming = m->deleted != NULL;
    write_begin(m, reserve);
}

/* --- ACTIVATE ------------------------------------------------------------------------------------------------------------------------------ */

static bool may_take_over(struct daemon *d)
{
    pthread_mutex_lock(&d->config_mutex);
    bool may = d->config->mupdate_take_over;
    pthread_mutex_unlock(&d->config_mutex);
    return may;
}

/* Active at another server, and the configuration allows to take it: exactly what is there now, or look again. */
static void take_over_look(struct mupdate_session *m)
{
    struct store_mailbox box;
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    int rc = look(m, &box);
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND)
        return;
    m->write.generation = 0;
    if (rc == 0 && box.state == STORE_ACTIVE && !str_is(box.server, at.server)) {
        char from[SERVER_LEN_MAX + PARTITION_LEN_MAX + 2];
        snprintf(from, sizeof from, "%.*s!%.*s", (int)box.server.len, box.server.s ? box.server.s : "", (int)box.partition.len, box.partition.s ? box.partition.s : "");
        free(m->write.from);
        m->write.from = mem_strdup(from);
        m->write.generation = box.generation;
    }
    if (rc == 0)
        srv_txn_done(m->service);
    m->write.begin(m);
}

static void activate_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    bool elsewhere = r->code == RAFTDIR_EOTHERSTORE || (r->code == RAFTDIR_ECONFLICT && m->write.generation);
    if (elsewhere && m->write.tries++ < TRIES && may_take_over(m->service->d)) {
        mupdate_wait(m, r->index, take_over_look);
        return;
    }
    if (r->code != 0) {
        refuse_result(m, r);
        return;
    }
    if (m->write.generation)
        logger_line(LOGGER_WARN, "mupdate", "%s (%s) has taken mailbox \"%s\" over: it was active at %s, now it is at %s", m->view.peer, m->access.identity, mupdate_arg(m, 0),
                    m->write.from, mupdate_arg(m, 1));
    deleted_forget(m);
    done(m);
}

static void activate(struct mupdate_session *m)
{
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT;
    Raftdir__Log__Activate activate = RAFTDIR__LOG__ACTIVATE__INIT;
    Raftdir__Log__Mailbox mailbox = RAFTDIR__LOG__MAILBOX__INIT;
    Raftdir__Log__Location location = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Precondition seen = RAFTDIR__LOG__PRECONDITION__INIT, *preconditions[] = {&seen};
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    spoke_for(m, &at);
    location.server = at.server;
    location.partition = at.partition;
    mailbox.name = arg(m, 0);
    mailbox.location = &location;
    mailbox.acl = arg(m, 2); /* an empty one too: nobody */
    activate.mailbox = &mailbox;
    activate.has_any_partition = activate.any_partition = true;
    token_set(&activate.token, &activate.has_token);
    op.op_case = RAFTDIR__LOG__OP__OP_ACTIVATE;
    op.activate = &activate;
    if (m->write.generation) {
        activate.has_take_over = activate.take_over = true;
        seen.condition = RAFTDIR__LOG__CONDITION__GENERATION;
        seen.has_generation = true;
        seen.generation = m->write.generation;
        op.preconditions = preconditions;
        op.n_preconditions = 1;
    }
    m->write.activates = true;
    submit(m, &op, activate_done);
}

void mupdate_activate(struct mupdate_session *m)
{
    if (!m->renaming) /* ctl_mboxlist -m: it deletes one, and activates another, which has nothing to do with it */
        deleted_forget(m);
    write_begin(m, activate);
}

/* --- DEACTIVATE ---------------------------------------------------------------------------------------------------------------------------- */

/* It is not active: held already, or why not? */
static void deactivate_look(struct mupdate_session *m)
{
    struct store_mailbox box;
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    int rc = look(m, &box);
    if (rc == RAFTDIR_ENOTFOUND)
        refuse(m, "mailbox doesn't exist");
    if (rc != 0)
        return;
    bool held = is_held_at(&box, at.server), active = box.state == STORE_ACTIVE;
    srv_txn_done(m->service);
    if (held)
        done(m);
    else if (active && m->write.tries++ < TRIES)
        m->write.begin(m);
    else
        refuse(m, "mailbox not currently active");
}

static void deactivate_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    if (r->code == 0)
        done(m);
    else if (r->code == RAFTDIR_ECONFLICT)
        mupdate_wait(m, r->index, deactivate_look);
    else
        refuse_result(m, r);
}

static void deactivate(struct mupdate_session *m)
{
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT;
    Raftdir__Log__Deactivate deactivate = RAFTDIR__LOG__DEACTIVATE__INIT;
    Raftdir__Log__Location location = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Precondition active = RAFTDIR__LOG__PRECONDITION__INIT, *preconditions[] = {&active};
    struct place at;
    if (!place_of(m, 1, &at))
        return;
    spoke_for(m, &at);
    location.server = at.server;
    location.partition = arg(m, 0) + strlen(mupdate_arg(m, 0)); /* "": on whichever of its partitions it is */
    deactivate.name = arg(m, 0);
    deactivate.location = &location;
    token_set(&deactivate.token, &deactivate.has_token);
    active.condition = RAFTDIR__LOG__CONDITION__PRESENT;
    op.preconditions = preconditions;
    op.n_preconditions = 1;
    op.op_case = RAFTDIR__LOG__OP__OP_DEACTIVATE;
    op.deactivate = &deactivate;
    submit(m, &op, deactivate_done);
}

void mupdate_deactivate(struct mupdate_session *m)
{
    deleted_forget(m);
    write_begin(m, deactivate);
}

/* --- DELETE -------------------------------------------------------------------------------------------------------------------------------- */

static char *text_copy(struct store_str s)
{
    char *text = mem_alloc(s.len + 1);
    if (s.len)
        memcpy(text, s.s, s.len);
    text[s.len] = '\0';
    return text;
}

static char *text_or_null(struct store_str s)
{
    return s.len ? text_copy(s) : NULL;
}

/* All that is known of it. As an unpacked message: free_unpacked. */
static Raftdir__Log__Mailbox *mailbox_copy(const struct store_mailbox *box)
{
    Raftdir__Log__Mailbox *c = mem_alloc(sizeof *c);
    raftdir__log__mailbox__init(c);
    c->location = mem_alloc(sizeof *c->location);
    raftdir__log__location__init(c->location);
    c->name = mem_strdup(box->name);
    c->location->server = text_copy(box->server);
    c->location->partition = text_copy(box->partition);
    c->acl = text_copy(box->acl);
    c->mbtype = text_or_null(box->mbtype);
    c->uniqueid = text_or_null(box->uniqueid);
    c->legacy_specialuse = text_or_null(box->legacy_specialuse);
    c->jmapid = text_or_null(box->jmapid);
    c->name_history = text_or_null(box->name_history);
    c->has_mtime = c->has_uidvalidity = c->has_createdmodseq = c->has_foldermodseq = true;
    c->mtime = box->mtime;
    c->uidvalidity = box->uidvalidity;
    c->createdmodseq = box->createdmodseq;
    c->foldermodseq = box->foldermodseq;
    return c;
}

static void delete_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    if (r->code == 0) {
        m->deleted = m->write.was;
        m->write.was = NULL;
        done(m);
    } else if ((r->code == RAFTDIR_ECONFLICT || r->code == RAFTDIR_ENOTFOUND) && m->write.tries++ < TRIES) {
        mupdate_wait(m, r->index, m->write.begin); /* it has changed since the look */
    } else {
        refuse_result(m, r);
    }
}

/* In a state that is new enough: what is there, is it this server's? */
static void delete_look(struct mupdate_session *m)
{
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT;
    Raftdir__Log__Delete delete = RAFTDIR__LOG__DELETE__INIT;
    Raftdir__Log__Location location = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Precondition seen = RAFTDIR__LOG__PRECONDITION__INIT, *preconditions[] = {&seen};
    const char *server = *m->access.server ? m->access.server : m->view.server;
    struct store_mailbox box;
    char text[ERR_TEXT_LEN];
    int rc = look(m, &box);
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND)
        return;
    bool elsewhere = rc == 0 && *server && !str_is(box.server, server);
    if ((rc != 0 || elsewhere) && !m->write.confirmed) {
        if (rc == 0)
            srv_txn_done(m->service);
        m->write.confirmed = true;
        mupdate_linearize(m, m->write.begin);
        return;
    }
    if (rc != 0) {
        refuse(m, "mailbox doesn't exist");
        return;
    }
    if (elsewhere) {
        snprintf(text, sizeof text, "mailbox is at %.*s!%.*s, and this connection speaks for %.200s", (int)box.server.len, box.server.s ? box.server.s : "", (int)box.partition.len,
                 box.partition.s ? box.partition.s : "", server);
        srv_txn_done(m->service);
        refuse(m, text);
        return;
    }
    raftdir__log__mailbox__free_unpacked(m->write.was, NULL);
    m->write.was = NULL;
    if (box.state == STORE_ACTIVE) {
        m->write.was = mailbox_copy(&box);
        seen.condition = RAFTDIR__LOG__CONDITION__GENERATION;
        seen.has_generation = true;
        seen.generation = box.generation;
        op.preconditions = preconditions;
        op.n_preconditions = 1;
    }
    srv_txn_done(m->service);
    delete.name = arg(m, 0);
    location.server = (char *)(uintptr_t)server;
    location.partition = arg(m, 0) + strlen(mupdate_arg(m, 0));
    delete.location = *server ? &location : NULL;
    token_set(&delete.token, &delete.has_token);
    op.op_case = RAFTDIR__LOG__OP__OP_DELETE;
    op.delete_ = &delete;
    submit(m, &op, delete_done);
}

static void delete_wait(struct mupdate_session *m)
{
    mupdate_wait(m, 0, delete_look);
}

void mupdate_delete(struct mupdate_session *m)
{
    deleted_forget(m);
    write_begin(m, delete_wait);
}
