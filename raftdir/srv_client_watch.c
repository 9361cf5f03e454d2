/* srv_client_watch.c - watch: events behind a position, as they are published.
 *
 * A watch keeps a position and no events: these are read from the feed when the client has given credit and its socket has room, in chunks from a read transaction
 * each, one chunk a loop turn, round robin with the other streams. So a watcher that is far behind or doesn't read costs a struct, and nobody else's time.
 *
 *     begin -> (WAIT for the position, if this node isn't there yet) -> RUNNABLE -> at the end of the feed: WAIT for the next index
 *                                                                                -> without credit: CREDIT; socket full: BLOCKED
 *
 * What is told (raftdir.h, "Watch"): an event has a side before and one after; a side is in the filter when its name has the prefix, its store is (as places are now)
 * at the server and partition, and it is a mailbox, or reservations are asked for. After in: CHANGED, RENAMED or RESERVED. Only before in: DELETED, of the name that it
 * had before. Neither: nothing. The row beside it is what the name is in the snapshot, unless that is outside of the filter by now: then there is none, and a
 * later event says why. So "drop old_name; put the row under name, or drop name when there is none" builds an equal copy, whatever the filter.
 *
 * PROGRESS is told at the start, and when nothing was for progress_ms. It takes credit, as every event.
 * The state may be replaced by an image's: its feed has the same events under the same positions, or says ECOMPACTED. */
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_client.h"

struct watch {
    bool from_now; /* no position yet */
    bool started;  /* the position has been reached here */
    bool told;     /* anything yet */
    uint64_t index;
    uint32_t done;
    uint64_t told_ms;
    unsigned progress_ms;
};

/* What one frame needs, freed at once. */
struct events {
    struct srv_rows rows;
    Raftdir__Client__Event event[LIST_CHUNK_ROWS], *pointers[LIST_CHUNK_ROWS];
    size_t n;
};

void srv_watch_free(struct request *r)
{
    if (!r->watch)
        return;
    if (r->client)
        r->client->watches--;
    atomic_fetch_sub(&r->service->d->watchers, 1);
    free(r->watch);
    r->watch = NULL;
}

/* An error that tells where the state is: a watcher may begin there once it has listed everything. */
static void fail_at(struct request *r, int code, uint64_t index, const char *text)
{
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.code = code;
    f.message = (char *)(uintptr_t)text;
    f.has_index = true;
    f.index = index;
    srv_answer(r, &f);
}

static bool begin(struct request *r)
{
    const Raftdir__Client__Watch *q = r->msg->watch;
    struct daemon *d = r->service->d;
    struct shared_view view;
    char text[ERR_TEXT_LEN];
    shared_view_get(&d->shared, &view);
    if ((q->prefix && strlen(q->prefix) > NAME_KEY_LEN_MAX) || (q->server && strlen(q->server) > SERVER_LEN_MAX) ||
        (q->partition && strlen(q->partition) > PARTITION_LEN_MAX)) {
        srv_fail(r, RAFTDIR_ETOOBIG, "prefix, server or partition is longer than %d, %d or %d bytes", NAME_KEY_LEN_MAX, SERVER_LEN_MAX, PARTITION_LEN_MAX);
        return false;
    }
    if (q->has_index && q->incarnation != view.incarnation) {
        snprintf(text, sizeof text, "the position is of incarnation %llu, this cluster's is %llu: it was restored or recovered; list everything, then watch anew",
                 (unsigned long long)q->incarnation, (unsigned long long)view.incarnation);
        fail_at(r, RAFTDIR_EFOREIGN, atomic_load(&d->shared.published), text);
        return false;
    }
    if (r->client->watches >= CLIENT_WATCHES_MAX) {
        srv_fail(r, RAFTDIR_ELIMIT, "%d watches are open on this connection: close some, or open another connection", CLIENT_WATCHES_MAX);
        return false;
    }
    if (atomic_fetch_add(&d->watchers, 1) >= WATCHES_MAX) {
        atomic_fetch_sub(&d->watchers, 1);
        srv_fail(r, RAFTDIR_ELIMIT, "%d watches are open at this node: ask another", WATCHES_MAX);
        return false;
    }
    r->client->watches++;
    struct watch *w = r->watch = mem_calloc(1, sizeof *w);
    w->from_now = !q->has_index;
    w->index = q->index;
    w->done = q->done;
    w->progress_ms = !q->progress_ms                             ? WATCH_PROGRESS_DEFAULT_MS
                     : q->progress_ms < WATCH_PROGRESS_MIN_MS ? WATCH_PROGRESS_MIN_MS
                     : q->progress_ms > WATCH_PROGRESS_MAX_MS ? WATCH_PROGRESS_MAX_MS
                                                              : q->progress_ms;
    r->credit = !q->credit ? LIST_CREDIT_DEFAULT : q->credit < LIST_CREDIT_MAX ? q->credit : LIST_CREDIT_MAX;
    return true;
}

void srv_watch_ready(struct request *r)
{
    if (!srv_role_allows(r) || (!r->watch && !begin(r)))
        return;
    struct watch *w = r->watch;
    /* It was resumed at a node that is behind the one it comes from. */
    if (!w->started && !w->from_now && atomic_load(&r->service->d->shared.published) < w->index) {
        srv_wait_for(r, w->index);
        return;
    }
    w->started = true;
    if (!r->credit)
        r->state = REQUEST_CREDIT;
    else
        srv_list_resume(r);
}

bool srv_watch_expired(struct request *r)
{
    return r->watch && r->watch->started;
}

/* --- What is told ---------------------------------------------------------------------------------------------------------------- */

static bool at_place(const Raftdir__Client__Watch *q, struct store_str server, struct store_str partition)
{
    return (!q->server || !*q->server || (strlen(q->server) == server.len && memcmp(q->server, server.s, server.len) == 0)) &&
           (!q->partition || !*q->partition || (strlen(q->partition) == partition.len && memcmp(q->partition, partition.s, partition.len) == 0));
}

static bool has_prefix(const Raftdir__Client__Watch *q, const char *name)
{
    return !q->prefix || strncmp(name, q->prefix, strlen(q->prefix)) == 0;
}

/* Is one side of an event in the filter? */
static int side_in(struct request *r, const char *name, uint64_t store_id, bool reserved, bool *in_r, struct err *err)
{
    const Raftdir__Client__Watch *q = r->msg->watch;
    struct store_str server, partition;
    *in_r = store_id && (!reserved || q->reserved) && has_prefix(q, name);
    if (!*in_r || ((!q->server || !*q->server) && (!q->partition || !*q->partition)))
        return 0;
    int rc = store_place(r->service->txn, store_id, &server, &partition, err);
    *in_r = rc == 0 && at_place(q, server, partition);
    return rc;
}

static Raftdir__Client__Event *add(struct events *list, unsigned kind, uint64_t index, uint32_t done)
{
    Raftdir__Client__Event *e = &list->event[list->n];
    raftdir__client__event__init(e);
    e->kind = kind;
    e->index = index;
    e->done = done;
    list->pointers[list->n++] = e;
    return e;
}

static char *copy(const char *s)
{
    size_t len = strlen(s) + 1;
    return memcpy(mem_alloc(len), s, len);
}

/* One event of the feed: into the list, if it is to be told. */
static int tell(struct request *r, const struct store_feed_event *f, struct events *list, struct err *err)
{
    const Raftdir__Client__Watch *q = r->msg->watch;
    struct store_mailbox m;
    bool before, after;
    const char *old = *f->old_name ? f->old_name : f->name;
    int rc = side_in(r, f->name, f->store_id, f->reserved, &after, err);
    if (rc == 0)
        rc = side_in(r, old, f->old_store_id, f->old_reserved, &before, err);
    if (rc != 0 || (!before && !after))
        return rc;
    unsigned kind = !after ? RAFTDIR_EVENT_DELETED : f->event == STORE_EVENT_RENAMED ? RAFTDIR_EVENT_RENAMED : f->reserved ? RAFTDIR_EVENT_RESERVED : RAFTDIR_EVENT_CHANGED;
    if (after) {
        rc = store_lookup(r->service->txn, f->name, strlen(f->name), &m, err);
        if (rc != 0 && rc != RAFTDIR_ENOTFOUND)
            return rc;
    }
    Raftdir__Client__Event *e = add(list, kind, f->index, f->ordinal + 1);
    e->name = copy(after ? f->name : old);
    if (kind == RAFTDIR_EVENT_RENAMED)
        e->old_name = copy(f->old_name);
    if (after && rc == 0 && (m.state == STORE_ACTIVE || q->reserved) && at_place(q, m.server, m.partition)) {
        srv_rows_add(&list->rows, &m, NULL);
        e->row = list->rows.pointers[list->rows.n - 1];
    }
    r->credit--;
    return 0;
}

/* Events up to the bounds of a chunk, maybe none. 0: there may be more; RAFTDIR_ENOTFOUND: that was all for now. */
static int chunk_read(struct request *r, struct events *list, struct store_meta *meta, struct err *err)
{
    struct watch *w = r->watch;
    int rc = srv_txn(r->service, meta, err);
    if (rc != 0)
        return rc;
    if (w->from_now) {
        w->from_now = false;
        w->index = meta->applied_index;
        w->done = STORE_FEED_ALL;
    }
    uint64_t until = uv_hrtime() + SRV_CHUNK_NS;
    for (unsigned seen = 0; seen < SRV_CHUNK_TOUCHED && list->n < LIST_CHUNK_ROWS && list->rows.len < SRV_CHUNK_LEN && r->credit; seen++) {
        struct store_feed_event f;
        rc = store_feed_next(r->service->txn, w->index, w->done, &f, err);
        if (rc == 0)
            rc = tell(r, &f, list, err);
        if (rc != 0)
            break;
        w->index = f.index;
        w->done = f.ordinal + 1;
        if (seen % 16 == 15 && uv_hrtime() >= until)
            break;
    }
    if (rc == RAFTDIR_ENOTFOUND && w->index <= meta->applied_index) {
        w->index = meta->applied_index;
        w->done = STORE_FEED_ALL;
    }
    srv_txn_done(r->service);
    return rc;
}

static void events_free(struct events *list)
{
    for (size_t i = 0; i < list->n; i++) {
        free(list->event[i].name);
        free(list->event[i].old_name);
    }
    srv_rows_free(&list->rows);
    free(list);
}

/* False: the request has ended. */
static bool send_events(struct request *r, int rc, struct events *list, const struct store_meta *meta, const struct err *err)
{
    struct watch *w = r->watch;
    uint64_t now = shared_now_ms();
    if (rc == RAFTDIR_ECOMPACTED) {
        fail_at(r, rc, meta->applied_index, err->text);
        return false;
    }
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND) {
        if (rc == RAFTDIR_ECORRUPT)
            srv_corrupt(r->service, err->text);
        srv_fail(r, rc == RAFTDIR_ECORRUPT ? RAFTDIR_EFAILED : rc, "%s", err->text);
        return false;
    }
    if (list->n == 0 && (!w->told || now - w->told_ms >= w->progress_ms)) {
        add(list, RAFTDIR_EVENT_PROGRESS, w->index, w->done);
        r->credit--;
    }
    if (list->n == 0)
        return true;
    Raftdir__Client__Events events = RAFTDIR__CLIENT__EVENTS__INIT;
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    events.events = list->pointers;
    events.n_events = list->n;
    f.has_index = true;
    f.index = meta->applied_index;
    f.has_more = f.more = true;
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_EVENTS;
    f.events = &events;
    w->told = true;
    w->told_ms = now;
    srv_answer(r, &f);
    return true;
}

void srv_watch_chunk(struct request *r)
{
    struct events *list = mem_calloc(1, sizeof *list);
    struct store_meta meta;
    struct err err = {0};
    srv_rows_init(&list->rows);
    int rc = chunk_read(r, list, &meta, &err);
    bool goes_on = send_events(r, rc, list, &meta, &err);
    events_free(list);
    if (!goes_on)
        return;
    struct watch *w = r->watch;
    if (srv_client_stream_full(r->client)) {
        srv_request_block(r);
    } else if (!r->credit) {
        r->state = REQUEST_CREDIT;
    } else if (rc == RAFTDIR_ENOTFOUND) {
        r->deadline_ms = w->told_ms + w->progress_ms;
        srv_wait_for(r, w->index + 1);
    } else {
        srv_list_resume(r);
    }
}
