/* srv.c - see srv.h.
 *
 * A waiter can't miss its index: it registers, then looks again; apply publishes, then looks for waiters; all four sequentially consistent. */
#include "srv.h"
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "logger.h"

void srv_call(struct service *s, struct consensus_call *call, enum consensus_kind kind, uint64_t deadline_ms)
{
    s->calls++;
    free(call->result);
    memset(&call->msg, 0, sizeof call->msg);
    call->msg.kind = kind;
    call->reply_to = &s->inbox;
    call->code = 0;
    call->err.text[0] = '\0';
    call->result = NULL;
    call->result_len = 0;
    if (kind == CONSENSUS_READ)
        call->u.read.deadline_ms = deadline_ms;
    else if (kind == CONSENSUS_WRITE)
        call->u.write.deadline_ms = deadline_ms;
    else if (kind == CONSENSUS_MEMBER)
        call->u.member.deadline_ms = deadline_ms;
    consensus_submit(s->d->consensus, call);
}

/* --- Waiting ------------------------------------------------------------------------------------------------------------------ */

static void waiting_for_set(struct service *s)
{
    uint64_t lowest = UINT64_MAX;
    struct srv_wait *w;
    DL_FOREACH(s->waiting, w)
        if (w->index < lowest)
            lowest = w->index;
    atomic_store(&s->waiting_for, lowest);
}

static void list(struct srv_wait *w, struct srv_wait **to)
{
    if (w->list)
        DL_DELETE(*w->list, w);
    w->list = to;
    if (to)
        DL_APPEND(*to, w);
}

bool srv_wait_reached(const struct srv_wait *w)
{
    return atomic_load(&w->service->d->shared.published) >= w->index;
}

void srv_wait_begin(struct service *s, struct srv_wait *w, uint64_t index, uint64_t deadline_ms)
{
    w->service = s;
    w->index = index;
    w->deadline_ms = deadline_ms;
    if (srv_wait_reached(w)) {
        w->done(w);
        return;
    }
    list(w, &s->waiting);
    if (index < atomic_load(&s->waiting_for))
        atomic_store(&s->waiting_for, index);
    /* Published between the look and the store: apply may not have seen that somebody waits. */
    if (srv_wait_reached(w))
        srv_wait_published(s);
}

void srv_wait_cancel(struct srv_wait *w)
{
    if (!w->list)
        return;
    struct service *s = w->service;
    list(w, NULL);
    waiting_for_set(s);
}

/* Unlinked first, told after: who is told may begin and cancel others. */
static void waiting_tell(struct service *s, uint64_t published, uint64_t expired_before)
{
    struct srv_wait *w, *next;
    DL_FOREACH_SAFE(s->waiting, w, next)
        if (w->index <= published || w->deadline_ms < expired_before)
            list(w, &s->taken);
    waiting_for_set(s);
    while ((w = s->taken)) {
        list(w, NULL);
        w->done(w);
    }
}

void srv_wait_published(struct service *s)
{
    struct shared_view view;
    shared_view_get(&s->d->shared, &view);
    bool serves = view.phase == SHARED_RUNNING || view.phase == SHARED_STOPPING; /* else nothing is published any more, and all of them fail */
    waiting_tell(s, serves ? atomic_load(&s->d->shared.published) : UINT64_MAX, 0);
}

void srv_wait_expired(struct service *s, uint64_t now)
{
    if (s->waiting)
        waiting_tell(s, atomic_load(&s->d->shared.published), now);
}

/* --- Streams -------------------------------------------------------------------------------------------------------------------- */

static void on_turn(uv_idle_t *idle)
{
    srv_stream_turn(idle->data);
}

void srv_stream_run(struct service *s, struct srv_stream *st)
{
    if (st->listed)
        return;
    st->service = s;
    st->listed = true;
    DL_APPEND(s->runnable, st);
    uv_idle_start(&s->turn, on_turn);
}

void srv_stream_stop(struct srv_stream *st)
{
    if (!st->listed)
        return;
    st->listed = false;
    DL_DELETE(st->service->runnable, st);
}

void srv_stream_turn(struct service *s)
{
    struct srv_stream *st = s->runnable;
    if (st) {
        srv_stream_stop(st);
        st->turn(st);
    }
    if (!s->runnable)
        uv_idle_stop(&s->turn);
}

/* --- The state -------------------------------------------------------------------------------------------------------------------- */

void srv_store_drop(struct service *s, bool end)
{
    if (!s->store || (!end && atomic_load(&s->d->store_generation) == s->store_generation))
        return;
    if (s->txn)
        store_read_end(&s->txn);
    store_close(&s->store);
}

int srv_txn(struct service *s, struct store_meta *meta_r, struct err *err)
{
    srv_store_drop(s, false);
    if (!s->store && !(s->store = daemon_store(s->d, &s->store_generation)))
        return err_set(err, RAFTDIR_EFAILED, "this node has no state that it may serve (it failed or was removed): ask another node");
    int rc = s->txn ? store_read_renew(s->txn, err) : store_read_begin(s->store, &s->txn, err);
    if (rc != 0)
        return rc;
    if ((rc = store_meta_get(s->txn, meta_r, err)) != 0)
        store_read_reset(s->txn);
    return rc;
}

void srv_txn_done(struct service *s)
{
    store_read_reset(s->txn);
}

void srv_corrupt(struct service *s, const char *why)
{
    srv_corrupt_of(s, s->store_generation, why);
}

void srv_corrupt_of(struct service *s, unsigned store_generation, const char *why)
{
    char text[ERR_TEXT_LEN];
    logger_limited(LOGGER_ERROR, "store", "a record is corrupt: %s", why);
    snprintf(text, sizeof text, "a record of the state is corrupt: %.400s; rebuild this node from its peers: raftdirctl cluster rebuild", why);
    consensus_fail(s->d->consensus, store_generation, RAFTDIR_ECORRUPT, text);
}

uint64_t srv_age_ms(struct service *s)
{
    struct shared_view view;
    shared_view_get(&s->d->shared, &view);
    return shared_age_ms(&view, shared_now_ms());
}

#define SLEPT_MS 1000      /* without a tick */
#define SLEPT_AFTER_MS 100 /* what had come is read by then */

void srv_ticked(struct service *s, uint64_t now)
{
    if (s->ticked_ms && now - s->ticked_ms >= SLEPT_MS) {
        s->slept_from_ms = s->ticked_ms;
        s->slept_until_ms = now + SLEPT_AFTER_MS;
    }
    s->ticked_ms = now;
}

uint64_t srv_came_ms(const struct service *s)
{
    uint64_t now = shared_now_ms();
    if (s->ticked_ms && now - s->ticked_ms >= SLEPT_MS)
        return s->ticked_ms; /* woken up by what has come, before the tick */
    return now < s->slept_until_ms ? s->slept_from_ms : now;
}
