/* srv_mupdate_update.c - UPDATE after its list: what changes, as it is published. See srv_mupdate.h; store_feed.c keeps the events, srv_mupdate_list.c sends the list.
 *
 * Happy path: the list's snapshot is the state at an index; behind it the feed is followed in order. An event is told as its name is NOW, in the state that the chunk is read from: active ->
 * MAILBOX, reserved -> RESERVE, else DELETE; a rename tells the old name, then the new one. So a row may be newer than its event, never older, and a name's last event is always told: when the
 * feed has been followed to an index, the client's copy has everything up to there. Names that were told in this chunk aren't told again: it is one snapshot.
 * A chunk takes at most UPDATE_CHUNK_NS of the loop; a publication wakes the session, nothing is put off.
 *
 * With servers named (partial): an event counts when its name was at one of them before or is after it, as a watch's filter (srv_client_watch.c). A name that is elsewhere now is told as
 * DELETE: the copy is what is at those servers.
 *
 * NOOP: mupdate_update_until goes on until everything up to an index was given to the connection, then answers behind it.
 *
 * A client that doesn't read: the session keeps its position, and makes nothing while MUPDATE_OUT_LEN_MAX bytes wait; srv_mupdate.c ends it after MUPDATE_STALL_MS. `* BYE`, and the client
 * connects and lists again, when events behind its position aren't kept any more (ECOMPACTED), or this node has no state that may be served. An image that takes the state's place
 * changes nothing: events have the same positions in it. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "logger.h"
#include "srv_mupdate.h"

#define UPDATE_CHUNK_NS 1000000ull   /* of the loop's time, */
#define UPDATE_CHUNK_EVENTS 512      /* events, */
#define UPDATE_CHUNK_LEN (64u << 10) /* and bytes of rows, and one row more */
#define UPDATE_WAIT_MS 1000          /* for a publication; then the state is looked at anyhow: it may be none any more */
#define TOLD_SLOTS 2048              /* a power of two, more than twice the names of a chunk */

struct mupdate_update {
    struct mupdate_session *m;
    struct srv_stream stream;
    struct srv_wait wait;
    uint64_t index; /* everything up to here was told, and `done` events of it */
    uint32_t done;
    char *text;     /* of what follows */
    struct mupdate_word tag, *servers;
    size_t servers_n;
    struct {
        uint64_t index;
        void (*done)(struct mupdate_session *m); /* NULL: nobody waits */
    } until;
};

/* What one chunk says; the names that it has told. */
struct chunk {
    struct mupdate_out out, names;
    uint64_t rows;
    uint32_t told[TOLD_SLOTS]; /* 1 + where the name stands in `names`; 0: none */
};

static bool told_before(struct chunk *c, const char *name)
{
    size_t len = strlen(name) + 1;
    unsigned at = (unsigned)XXH3_64bits(name, len) % TOLD_SLOTS;
    for (; c->told[at]; at = (at + 1) % TOLD_SLOTS)
        if (strcmp(c->names.p + c->told[at] - 1, name) == 0)
            return true;
    c->told[at] = (uint32_t)c->names.len + 1;
    mupdate_print(&c->names, name, len);
    return false;
}

/* --- What is told --------------------------------------------------------------------------------------------------------------------- */

static bool server_wanted(const struct mupdate_update *u, struct store_str server)
{
    for (size_t i = 0; i < u->servers_n; i++)
        if (u->servers[i].len == server.len && memcmp(u->servers[i].s, server.s, server.len) == 0)
            return true;
    return u->servers_n == 0;
}

/* One side of an event: was, or is, it at a server that the client wants to know of? */
static int side_in(const struct mupdate_update *u, struct store_txn *txn, uint64_t store_id, bool *in_inout, struct err *err)
{
    struct store_str server, partition;
    if (!store_id || *in_inout)
        return 0;
    int rc = u->servers_n ? store_place(txn, store_id, &server, &partition, err) : 0;
    *in_inout = rc == 0 && (!u->servers_n || server_wanted(u, server));
    return rc;
}

static int tell_name(const struct mupdate_update *u, struct store_txn *txn, const char *name, struct chunk *c, struct err *err)
{
    struct store_mailbox m;
    if (told_before(c, name))
        return 0;
    int rc = store_lookup(txn, name, strlen(name), &m, err);
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND)
        return rc;
    if (rc == 0 && server_wanted(u, m.server))
        mupdate_print_mailbox(&c->out, &u->tag, &m);
    else
        mupdate_print_delete(&c->out, &u->tag, name);
    c->rows++;
    return 0;
}

static int tell(const struct mupdate_update *u, struct store_txn *txn, const struct store_feed_event *e, struct chunk *c, struct err *err)
{
    bool in = false;
    int rc = side_in(u, txn, e->old_store_id, &in, err);
    if (rc == 0)
        rc = side_in(u, txn, e->store_id, &in, err);
    if (rc == 0 && in && *e->old_name)
        rc = tell_name(u, txn, e->old_name, c, err);
    if (rc == 0 && in)
        rc = tell_name(u, txn, e->name, c, err);
    return rc;
}

/* Events up to the bounds of a chunk. 0: there may be more; RAFTDIR_ENOTFOUND: that was all for now. */
static int chunk_read(struct mupdate_update *u, struct chunk *c, struct err *err)
{
    struct service *s = u->m->service;
    struct store_feed_event e;
    struct store_meta meta;
    int rc = srv_txn(s, &meta, err);
    if (rc != 0)
        return rc;
    uint64_t until = uv_hrtime() + UPDATE_CHUNK_NS;
    for (unsigned n = 0; n < UPDATE_CHUNK_EVENTS && c->out.len < UPDATE_CHUNK_LEN; n++) {
        rc = store_feed_next(s->txn, u->index, u->done, &e, err);
        if (rc == 0)
            rc = tell(u, s->txn, &e, c, err);
        if (rc != 0)
            break;
        u->index = e.index;
        u->done = e.ordinal + 1;
        if (n % 16 == 15 && uv_hrtime() >= until)
            break;
    }
    if (rc == RAFTDIR_ENOTFOUND && u->index <= meta.applied_index) {
        u->index = meta.applied_index;
        u->done = STORE_FEED_ALL;
    }
    srv_txn_done(s);
    return rc;
}

/* --- Turns ------------------------------------------------------------------------------------------------------------------------------ */

/* The client is told why, and connects again. */
static void end(struct mupdate_update *u, int rc, const char *text)
{
    struct mupdate_session *m = u->m;
    if (rc == RAFTDIR_ECORRUPT)
        srv_corrupt(m->service, text);
    logger_limited(LOGGER_WARN, "mupdate", "%s: its updates end: %s", m->view.peer, text);
    mupdate_update_close(m);
    mupdate_bye(m, "%s", rc == RAFTDIR_ECOMPACTED ? "changes that you haven't got aren't kept any more: connect again" : rc == RAFTDIR_ECORRUPT ? "this node's state is damaged: ask another node" : text);
}

static void on_wait(struct srv_wait *w);

static void wait_for(struct mupdate_update *u, uint64_t index)
{
    u->wait.done = on_wait;
    srv_wait_begin(u->m->service, &u->wait, index, shared_now_ms() + UPDATE_WAIT_MS);
}

/* Everything of an index is told when the position is behind all of its events. */
static void until_look(struct mupdate_update *u)
{
    void (*done)(struct mupdate_session *m) = u->until.done;
    if (!done || u->index < u->until.index || (u->index == u->until.index && u->done != STORE_FEED_ALL))
        return;
    u->until.done = NULL;
    done(u->m);
}

static void on_turn(struct srv_stream *st)
{
    struct mupdate_update *u = (struct mupdate_update *)((char *)st - offsetof(struct mupdate_update, stream));
    struct mupdate_session *m = u->m;
    struct err err = {0};
    if (m->closing || mupdate_backed_up(m))
        return; /* mupdate_update_close comes, or mupdate_update_drained */
    mupdate_access_renew(m);
    if (m->access.role < ACCESS_READ) {
        end(u, RAFTDIR_EPERM, "you may not read any more");
        return;
    }
    struct chunk c = {0};
    int rc = chunk_read(u, &c, &err);
    if (c.out.len)
        mupdate_send(m, c.out.p, c.out.len);
    mupdate_view_sent(m, c.rows, u->done == STORE_FEED_ALL ? u->index : u->index - 1);
    mupdate_out_free(&c.out);
    mupdate_out_free(&c.names);
    if (rc == 0)
        srv_stream_run(m->service, st);
    else if (rc == RAFTDIR_ENOTFOUND)
        wait_for(u, u->index + 1);
    else
        end(u, rc, err.text);
    if (m->update == u)
        until_look(u);
}

static void on_wait(struct srv_wait *w)
{
    struct mupdate_update *u = (struct mupdate_update *)((char *)w - offsetof(struct mupdate_update, wait));
    srv_stream_run(u->m->service, &u->stream);
}

void mupdate_update_drained(struct mupdate_session *m)
{
    struct mupdate_update *u = m->update;
    if (!u || mupdate_backed_up(m))
        return;
    srv_wait_cancel(&u->wait);
    srv_stream_run(m->service, &u->stream);
}

void mupdate_update_until(struct mupdate_session *m, uint64_t index, void (*done)(struct mupdate_session *m))
{
    struct mupdate_update *u = m->update;
    u->until.index = index;
    u->until.done = done;
    until_look(u);
}

void mupdate_update_close(struct mupdate_session *m)
{
    struct mupdate_update *u = m->update;
    if (!u)
        return;
    m->update = NULL;
    srv_wait_cancel(&u->wait);
    srv_stream_stop(&u->stream);
    free(u->text);
    free(u->servers);
    free(u);
}

/* --- The command --------------------------------------------------------------------------------------------------------------------------- */

static struct mupdate_word keep(char **at, const struct mupdate_word *w)
{
    struct mupdate_word kept = {*at, w->len};
    if (w->len)
        memcpy(*at, w->s, w->len);
    *at += w->len;
    return kept;
}

static void listed(struct mupdate_session *m, uint64_t index)
{
    struct mupdate_update *u = mem_calloc(1, sizeof *u);
    size_t len = m->tag.len + 1;
    for (unsigned i = 2; i < m->line.n; i++)
        len += m->line.word[i].len;
    u->m = m;
    u->index = index;
    u->done = STORE_FEED_ALL;
    u->stream.turn = on_turn;
    char *at = u->text = mem_alloc(len);
    u->tag = keep(&at, &m->tag);
    u->servers = mem_calloc(MUPDATE_WORDS_MAX, sizeof *u->servers);
    for (unsigned i = 2; i < m->line.n; i++)
        u->servers[u->servers_n++] = keep(&at, &m->line.word[i]);
    m->update = u;
    mupdate_seen(m->service, index);
    mupdate_view_sent(m, 0, index);
    mupdate_view_refresh(m);
    mupdate_answer(m, "OK", "streaming starts");
    srv_stream_run(m->service, &u->stream);
}

static void ready(struct mupdate_session *m)
{
    mupdate_rows(m, &m->line.word[2], m->line.n - 2, NULL, listed);
}

void mupdate_update(struct mupdate_session *m)
{
    mupdate_linearize(m, ready);
}
