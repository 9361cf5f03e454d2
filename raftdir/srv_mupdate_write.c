/* srv_mupdate_write.c - RESERVE, ACTIVATE, DEACTIVATE, DELETE: each one request to the log (srv_mupdate_request.c). How they are mapped is in client/murder.h, which does the same
 * for Cyrus with libraftdir: both kinds may be mixed.
 *
 * What needs a look, too, at the state that is published here, or that a majority has confirmed when that finds nothing: DELETE (what it takes away is kept, for it may be the beginning of a
 * rename, and must be what was looked at: its generation is a precondition); a take-over; the reason of a refusal where the protocol has several answers for it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_mupdate.h"

/* As murder_write.c: whoever activates next may. What DEACTIVATE holds is held under this, which is no secret. A RESERVE holds without a token, for its own server alone. */
static const char move_token[] = "cyrus XFER";
#define TRIES 8 /* another writer may come in between a look and the request */

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
        mupdate_refuse(m, err.text);
        return false;
    }
    if (l.server_len > SERVER_LEN_MAX || l.partition_len > PARTITION_LEN_MAX) {
        mupdate_refuse(m, "the location is too long");
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
        mupdate_refuse(m, err.text);
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
        mupdate_done(m);
    else
        mupdate_refuse(m, "mailbox already exists");
}

static void reserve_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    if (r->code == 0)
        mupdate_done(m);
    else if (r->code == RAFTDIR_ERESERVED)
        mupdate_wait(m, r->index, reserve_look);
    else if (r->code == RAFTDIR_EEXIST)
        mupdate_refuse(m, "mailbox already exists");
    else
        mupdate_refuse_result(m, r);
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
    mupdate_submit(m, &op, reserve_done);
}

void mupdate_reserve(struct mupdate_session *m)
{
    m->renaming = m->deleted != NULL;
    mupdate_write_begin(m, reserve);
}

/* --- ACTIVATE ------------------------------------------------------------------------------------------------------------------------------ */

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

/* A reload may change it. */
static bool may_take_over(struct daemon *d)
{
    pthread_mutex_lock(&d->config_mutex);
    bool may = d->config->mupdate_take_over;
    pthread_mutex_unlock(&d->config_mutex);
    return may;
}

static void activate_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    bool elsewhere = r->code == RAFTDIR_EOTHERSTORE || (r->code == RAFTDIR_ECONFLICT && m->write.generation);
    if (elsewhere && m->write.tries++ < TRIES && may_take_over(m->service->d)) {
        mupdate_wait(m, r->index, take_over_look);
        return;
    }
    if (r->code != 0) {
        mupdate_refuse_result(m, r);
        return;
    }
    if (m->write.generation)
        logger_line(LOGGER_WARN, "mupdate", "%s (%s) has taken mailbox \"%s\" over: it was active at %s, now it is at %s", m->view.peer, m->access.identity, mupdate_arg(m, 0),
                    m->write.from, mupdate_arg(m, 1));
    mupdate_deleted_forget(m);
    mupdate_done(m);
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
    mupdate_submit(m, &op, activate_done);
}

void mupdate_activate(struct mupdate_session *m)
{
    if (!m->renaming) /* ctl_mboxlist -m: it deletes one, and activates another, which has nothing to do with it */
        mupdate_deleted_forget(m);
    mupdate_write_begin(m, activate);
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
        mupdate_refuse(m, "mailbox doesn't exist");
    if (rc != 0)
        return;
    bool held = is_held_at(&box, at.server), active = box.state == STORE_ACTIVE;
    srv_txn_done(m->service);
    if (held)
        mupdate_done(m);
    else if (active && m->write.tries++ < TRIES)
        m->write.begin(m);
    else
        mupdate_refuse(m, "mailbox not currently active");
}

static void deactivate_done(struct mupdate_session *m, const Raftdir__Log__Result *r)
{
    if (r->code == 0)
        mupdate_done(m);
    else if (r->code == RAFTDIR_ECONFLICT)
        mupdate_wait(m, r->index, deactivate_look);
    else
        mupdate_refuse_result(m, r);
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
    mupdate_submit(m, &op, deactivate_done);
}

void mupdate_deactivate(struct mupdate_session *m)
{
    mupdate_deleted_forget(m);
    mupdate_write_begin(m, deactivate);
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
        mupdate_done(m);
    } else if ((r->code == RAFTDIR_ECONFLICT || r->code == RAFTDIR_ENOTFOUND) && m->write.tries++ < TRIES) {
        mupdate_wait(m, r->index, m->write.begin); /* it has changed since the look */
    } else {
        mupdate_refuse_result(m, r);
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
    char text[ERR_TEXT_LEN], at[SERVER_LEN_MAX + 1];
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
        mupdate_refuse(m, "mailbox doesn't exist");
        return;
    }
    if (elsewhere) {
        snprintf(text, sizeof text, "mailbox is at %.*s!%.*s, and this connection speaks for %.200s", (int)box.server.len, box.server.s ? box.server.s : "", (int)box.partition.len,
                 box.partition.s ? box.partition.s : "", server);
        srv_txn_done(m->service);
        mupdate_refuse(m, text);
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
    snprintf(at, sizeof at, "%.*s", (int)box.server.len, box.server.s ? box.server.s : ""); /* what is held there may be activated elsewhere before the request */
    srv_txn_done(m->service);
    delete.name = arg(m, 0);
    location.server = at;
    location.partition = arg(m, 0) + strlen(mupdate_arg(m, 0));
    delete.location = &location;
    token_set(&delete.token, &delete.has_token);
    op.op_case = RAFTDIR__LOG__OP__OP_DELETE;
    op.delete_ = &delete;
    mupdate_submit(m, &op, delete_done);
}

static void delete_wait(struct mupdate_session *m)
{
    mupdate_wait(m, 0, delete_look);
}

void mupdate_delete(struct mupdate_session *m)
{
    mupdate_deleted_forget(m);
    mupdate_write_begin(m, delete_wait);
}
