/* srv_mupdate_read.c - FIND and NOOP, and what every read of MUPDATE stands on: a state that is new enough.
 *
 * Cyrus opens a connection for every mutation, and reads on another: so what any MUPDATE client of this node was told is in the state that the next answer comes from
 * (daemon.mupdate_seen; other nodes' clients have NOOP, LIST and UPDATE, which ask a majority).
 *
 * FIND answers from the published state. A row may be some milliseconds old, as any answer is when it arrives; "no such mailbox" bounces mail, so it is only said from a state
 * that is at most MUPDATE_ABSENT_MAX_AGE_MS old, or that a majority has confirmed; else NO, "can't tell".
 *
 * FIND after LIST "server!...": that is `ctl_mboxlist -m` (of 3.6 and 3.10 alike), which WIPES its mailbox when FIND says that it is anywhere else. It is never told so: the directory may
 * be wrong, and the mail be there. Such a FIND finds nothing, ctl_mboxlist then tries to activate the mailbox, is refused, and a person finds a line in both logs. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "logger.h"
#include "srv_mupdate.h"

#define RETRY_MS 50 /* between questions to a majority that can't be had */

void mupdate_seen(struct service *s, uint64_t index)
{
    uint64_t seen = atomic_load(&s->d->mupdate_seen);
    while (seen < index && !atomic_compare_exchange_weak(&s->d->mupdate_seen, &seen, index))
        ;
}

/* --- Waiting -------------------------------------------------------------------------------------------------------------------------- */

static bool serves(struct service *s)
{
    struct shared_view view;
    shared_view_get(&s->d->shared, &view);
    return view.phase == SHARED_RUNNING || view.phase == SHARED_STOPPING;
}

/* Within a write, what the client has deleted for it is put back. */
static void cant_tell(struct mupdate_session *m, const char *text)
{
    if (m->write.begin)
        mupdate_refuse(m, text);
    else
        mupdate_answer(m, "NO", "%s", text);
}

static void waited(struct srv_wait *w)
{
    struct mupdate_session *m = (struct mupdate_session *)((char *)w - offsetof(struct mupdate_session, wait));
    if (!serves(m->service))
        cant_tell(m, "this node has stopped serving; try again, at another node");
    else if (!srv_wait_reached(w))
        cant_tell(m, "this node is behind the others; try again");
    else
        m->next_step(m);
}

void mupdate_wait(struct mupdate_session *m, uint64_t index, void (*next_step)(struct mupdate_session *m))
{
    uint64_t seen = atomic_load(&m->service->d->mupdate_seen);
    m->next_step = next_step;
    m->wait.done = waited;
    srv_wait_begin(m->service, &m->wait, seen > index ? seen : index, m->deadline_ms);
}

static void ask(struct mupdate_session *m);

static void ask_again(struct srv_wait *w)
{
    ask((struct mupdate_session *)((char *)w - offsetof(struct mupdate_session, wait)));
}

static void asked(struct consensus_call *call)
{
    struct mupdate_session *m = (struct mupdate_session *)((char *)call - offsetof(struct mupdate_session, call));
    uint64_t now = shared_now_ms();
    m->calling = false;
    if (!m->conn) {
        mupdate_release(m);
        return;
    }
    if (call->code == 0) {
        mupdate_wait(m, call->index, m->next_step);
    } else if (call->code == RAFTDIR_ENOQUORUM && now + RETRY_MS < m->deadline_ms && serves(m->service)) {
        m->wait.done = ask_again; /* an election may be under way */
        srv_wait_begin(m->service, &m->wait, UINT64_MAX, now + RETRY_MS);
    } else if (call->code == RAFTDIR_ENOQUORUM) {
        cant_tell(m, "can't tell: no majority of the directory's nodes is in reach; try again");
    } else {
        char text[ERR_TEXT_LEN + 32];
        snprintf(text, sizeof text, "can't tell: %s; try again", *call->err.text ? call->err.text : err_text(call->code));
        cant_tell(m, text);
    }
}

static void ask(struct mupdate_session *m)
{
    m->call.done = asked;
    m->calling = true;
    srv_call(m->service, &m->call, CONSENSUS_READ, m->deadline_ms);
}

void mupdate_linearize(struct mupdate_session *m, void (*next_step)(struct mupdate_session *m))
{
    m->next_step = next_step;
    ask(m);
}

/* --- FIND ------------------------------------------------------------------------------------------------------------------------------ */

static bool at_server(const struct store_mailbox *m, const char *server)
{
    return m->server.len == strlen(server) && memcmp(m->server.s, server, m->server.len) == 0;
}

static void found(struct mupdate_session *m, const struct store_mailbox *box)
{
    struct mupdate_out out = {0};
    mupdate_print_mailbox(&out, &m->tag, box);
    srv_txn_done(m->service);
    mupdate_send(m, out.p, out.len);
    mupdate_out_free(&out);
    mupdate_answer(m, "OK", "Search completed");
}

static void hide(struct mupdate_session *m, const struct store_mailbox *box)
{
    logger_line(LOGGER_WARN, "mupdate", "%s (%s): looks for \"%s\", which the directory has at %.*s!%.*s, as ctl_mboxlist of %s does before it wipes a mailbox: not told; if %s has it too, a person must decide",
                m->view.peer, m->access.identity, box->name, (int)box->server.len, box->server.s ? box->server.s : "", (int)box->partition.len,
                box->partition.s ? box->partition.s : "", m->view.server, m->view.server);
    srv_txn_done(m->service);
    mupdate_answer(m, "OK", "Search completed");
}

static void find(struct mupdate_session *m)
{
    struct service *s = m->service;
    struct store_meta meta;
    struct store_mailbox box;
    struct err err = {0};
    uint64_t age_ms = srv_age_ms(s); /* before the state is read, which may get fresher meanwhile */
    int rc = srv_txn(s, &meta, &err);
    if (rc != 0) {
        mupdate_answer(m, "NO", "can't tell: %s", err.text);
        return;
    }
    rc = store_ask(s->txn, STORE_BY_NAME, mupdate_arg(m, 0), &box, &err);
    if (rc == 0) {
        if (m->listed && *m->view.server && !at_server(&box, m->view.server))
            hide(m, &box);
        else
            found(m, &box);
        return;
    }
    srv_txn_done(s);
    if (rc == RAFTDIR_ENOTFOUND && !m->write.confirmed && age_ms > MUPDATE_ABSENT_MAX_AGE_MS) {
        m->write.confirmed = true;
        mupdate_linearize(m, find);
    } else if (rc == RAFTDIR_ENOTFOUND || rc == RAFTDIR_ENAME || rc == RAFTDIR_ETOOBIG || rc == RAFTDIR_EINVAL) {
        mupdate_answer(m, "OK", "Search completed"); /* a name that can't be is nowhere */
    } else {
        if (rc == RAFTDIR_ECORRUPT)
            srv_corrupt(s, err.text);
        mupdate_answer(m, "NO", "can't tell: %s; try again, at another node", err.text);
    }
}

void mupdate_find(struct mupdate_session *m)
{
    m->write = (struct mupdate_write){0};
    mupdate_wait(m, 0, find);
}

/* --- NOOP ------------------------------------------------------------------------------------------------------------------------------ */

static void noop_done(struct mupdate_session *m)
{
    mupdate_answer(m, "OK", "Noop done");
}

static void noop_confirmed(struct mupdate_session *m)
{
    mupdate_seen(m->service, m->wait.index);
    if (m->update)
        mupdate_update_until(m, m->wait.index, noop_done);
    else
        noop_done(m);
}

void mupdate_noop(struct mupdate_session *m)
{
    mupdate_linearize(m, noop_confirmed);
}
