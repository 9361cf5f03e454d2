/* srv_mupdate_list.c - LIST, and the list that an UPDATE begins with: see srv_mupdate.h; mupdate_snapshot.c makes the text.
 *
 * Happy path: a majority confirms the state (mupdate_linearize); a snapshot in a read transaction of its own; the service's lister, a thread of low priority, makes pieces of
 * MUPDATE_SNAPSHOT_LEN of it, the loop sends them while the client takes them: one is made while another is sent. The loop itself never walks through the state, and sends a slice a turn, round
 * robin with other streams, and no more than MUPDATE_LISTS_RATE altogether: a loop that has no pause waits for a processor as long as anybody, and so do the lookups that it answers.
 * Not in libuv's pool: there logins and name resolution would wait behind lists, all of them behind a process that was stopped while it took a reader's slot (thread_readers.c), and
 * its threads can't have a priority of their own.
 * The snapshot is let go of with the last piece made, before the client has it all.
 *
 * Bounded: MUPDATE_SNAPSHOTS_MAX lists of a node hold a snapshot, each service thread has its share of them; others wait their turn, in order. A list costs two pieces and what the
 * connection has queued.
 *
 * Ends with `* BYE`, and the client connects again: it takes less than LIST_PACE_LEN in MUPDATE_STALL_MS; the state's file has grown by state_growth since the snapshot, which keeps old pages from
 * being used again; another state has taken the place of the one that is read (an image, a reset, a copy), or this one failed; a record is damaged (the node fails, and what was
 * sent has no OK behind it).
 * The connection goes: nothing more is made; the piece that the lister works on ends first, and then the session is freed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>
#include "logger.h"
#include "mupdate_snapshot.h"
#include "srv_mupdate.h"
#include "worker.h"

#define LIST_LOOK_MS 250                     /* how often the bounds are looked at */
#define LIST_PACE_LEN (MUPDATE_SNAPSHOT_LEN) /* what a client takes in MUPDATE_STALL_MS at the least */
#define LIST_SLICE_LEN (64u << 10)           /* sent in one turn */
#define LIST_SLICE_ZIP_LEN (16u << 10)       /* the same with COMPRESS, which takes longer */
#define LIST_BURST_NS 3000000ull             /* what was not sent in so long may be made up for: timers are coarse */
#define LISTER_NICE 5                        /* lookups and writes go first where processors are short */

struct piece {
    struct mupdate_out text;
    uint64_t rows;
};

struct mupdate_list {
    struct mupdate_list *prev, *next, **queue; /* of service->lists_waiting or lists_paced; queue NULL: of neither */
    struct mupdate_session *m;
    struct service *service;
    void (*done)(struct mupdate_session *m, uint64_t index);
    bool holds;                /* it counts in service->lists */
    struct store *store;       /* until the rows are made */
    unsigned store_generation;
    uint64_t used_len;         /* of the state's file, when it began */
    uint64_t index;            /* of the snapshot */
    struct srv_stream stream;  /* a turn sends a slice */
    struct srv_wait look;
    uint64_t taken_len, taken_ms; /* when the client had last taken LIST_PACE_LEN more */
    struct piece ready;        /* is sent */
    size_t sent;               /* of it */
    bool next_there;           /* `next_piece` is made */
    bool made;                 /* and it, or `ready`, is the last */

    /* The lister's while it works. */
    struct worker_item work;
    struct inbox_msg worked;
    bool working, gone;        /* gone: the session lets go of it when the work has ended */
    _Atomic bool stop;
    struct mupdate_snapshot *rows;
    struct piece next_piece;
    int rc;
    struct err err;
};

static void turns_give(struct service *s);
static void on_look(struct srv_wait *w);
static void work_begin(struct mupdate_list *l);

static unsigned share(const struct service *s)
{
    return s->d->services_n < MUPDATE_SNAPSHOTS_MAX ? MUPDATE_SNAPSHOTS_MAX / (s->d->services_n ? s->d->services_n : 1) : 1;
}

static void queue_leave(struct mupdate_list *l)
{
    if (l->queue)
        DL_DELETE(*l->queue, l);
    l->queue = NULL;
}

static void queue_enter(struct mupdate_list *l, struct mupdate_list **queue)
{
    queue_leave(l);
    l->queue = queue;
    DL_APPEND(*queue, l);
}

/* The snapshot has ended: somebody else's turn. */
static void snapshot_end(struct mupdate_list *l)
{
    mupdate_snapshot_destroy(&l->rows);
    if (l->store)
        store_close(&l->store);
    if (!l->holds)
        return;
    l->holds = false;
    l->service->lists--;
    turns_give(l->service);
}

/* Not while the lister works on it. */
static void list_free(struct mupdate_list *l)
{
    queue_leave(l);
    srv_stream_stop(&l->stream);
    srv_wait_cancel(&l->look);
    snapshot_end(l);
    mupdate_out_free(&l->ready.text);
    mupdate_out_free(&l->next_piece.text);
    free(l);
}

void mupdate_list_close(struct mupdate_session *m)
{
    struct mupdate_list *l = m->list;
    if (!l)
        return;
    if (l->working) { /* m->list stays, and with it the session, until the lister is done with it */
        l->gone = true;
        atomic_store(&l->stop, true);
        queue_leave(l);
        srv_stream_stop(&l->stream);
        srv_wait_cancel(&l->look);
        return;
    }
    m->list = NULL;
    list_free(l);
}

static void give_up(struct mupdate_list *l, const char *why)
{
    struct mupdate_session *m = l->m;
    logger_limited(LOGGER_WARN, "mupdate", "%s: the list is given up: %s", m->view.peer, why);
    mupdate_list_close(m);
    mupdate_bye(m, "%s", why);
}

/* --- The lister ----------------------------------------------------------------------------------------------------------------------- */

static struct worker_item *lister_last(void *data, struct worker_item *first)
{
    (void)data;
    return first;
}

static bool lister_run(void *data, struct worker_item *item)
{
    static _Thread_local bool lowered;
    struct service *s = data;
    struct mupdate_list *l = (struct mupdate_list *)((char *)item - offsetof(struct mupdate_list, work));
    if (!lowered) {
        lowered = true;
        errno = 0;
        if (nice(LISTER_NICE) == -1 && errno) /* on Linux: this thread's */
            logger_line(LOGGER_WARN, "mupdate", "the lister keeps its priority: %s", strerror(errno));
    }
    l->rc = mupdate_snapshot_piece(l->rows, MUPDATE_SNAPSHOT_LEN, &l->stop, &l->next_piece.text, &l->next_piece.rows, &l->err);
    inbox_push(&s->lists_made, &l->worked); /* open while there is work: thread_service.c */
    return true;
}

static int lister_start(struct service *s, struct err *err)
{
    struct worker_ops ops = {.data = s, .name = "lister", .drain = true, .last = lister_last, .run = lister_run};
    return s->lister ? 0 : worker_start(&ops, &s->lister, err);
}

/* --- On the loop ---------------------------------------------------------------------------------------------------------------------- */

static void resume(struct mupdate_list *l)
{
    if (!l->gone && !l->queue && (l->ready.text.len > l->sent || (l->made && !l->next_there)) && !mupdate_backed_up(l->m))
        srv_stream_run(l->service, &l->stream);
}

/* The piece that was made becomes the one that is sent, and the next one is begun. */
static void pieces_move(struct mupdate_list *l)
{
    if (!l->next_there || l->sent < l->ready.text.len)
        return;
    struct piece sent = l->ready;
    l->ready = l->next_piece;
    l->next_piece = sent; /* its memory, again */
    l->next_piece.text.len = 0;
    l->next_piece.rows = 0;
    l->sent = 0;
    l->next_there = false;
    if (!l->made)
        work_begin(l);
}

static void on_worked(struct mupdate_list *l)
{
    struct mupdate_session *m = l->m;
    l->service->works--;
    l->working = false;
    if (l->gone) {
        m->list = NULL;
        list_free(l);
        mupdate_release(m);
        return;
    }
    if (l->rc == RAFTDIR_ECORRUPT)
        srv_corrupt_of(l->service, l->store_generation, l->err.text);
    if (l->rc != 0 && l->rc != RAFTDIR_ENOTFOUND) {
        give_up(l, l->rc == RAFTDIR_ECORRUPT ? "this node's state is damaged: ask another node" : l->err.text);
        return;
    }
    l->index = mupdate_snapshot_index(l->rows);
    l->made = l->rc == RAFTDIR_ENOTFOUND;
    l->next_there = true;
    if (l->made)
        snapshot_end(l);
    pieces_move(l);
    resume(l);
}

void srv_mupdate_lists_made(struct inbox *inbox, struct inbox_msg *list)
{
    (void)inbox;
    while (list) {
        struct mupdate_list *l = (struct mupdate_list *)((char *)list - offsetof(struct mupdate_list, worked));
        list = list->next;
        on_worked(l);
    }
}

static void work_begin(struct mupdate_list *l)
{
    l->working = true;
    l->service->works++;
    worker_push(l->service->lister, &l->work);
}

static void all_sent(struct mupdate_list *l)
{
    struct mupdate_session *m = l->m;
    void (*done)(struct mupdate_session *m, uint64_t index) = l->done;
    uint64_t index = l->index;
    m->list = NULL;
    list_free(l);
    done(m, index);
}

static void on_pace(uv_timer_t *timer)
{
    struct service *s = timer->data;
    struct mupdate_list *l;
    while ((l = s->lists_paced)) {
        queue_leave(l);
        resume(l);
    }
}

/* All lists of this thread together have sent what they may: it goes on in a moment. */
static bool paced(struct mupdate_list *l)
{
    struct service *s = l->service;
    uint64_t now = uv_hrtime();
    if (s->lists_sent_ns + LIST_BURST_NS < now)
        s->lists_sent_ns = now - LIST_BURST_NS;
    if (s->lists_sent_ns <= now)
        return false;
    queue_enter(l, &s->lists_paced);
    if (!uv_is_active((uv_handle_t *)&s->lists_pace))
        uv_timer_start(&s->lists_pace, on_pace, 1, 0);
    return true;
}

static void on_turn(struct srv_stream *st)
{
    struct mupdate_list *l = (struct mupdate_list *)((char *)st - offsetof(struct mupdate_list, stream));
    if (l->m->closing || mupdate_backed_up(l->m))
        return; /* mupdate_list_close comes, or mupdate_list_drained */
    if (paced(l))
        return;
    size_t len = l->ready.text.len - l->sent, slice = l->m->zip ? LIST_SLICE_ZIP_LEN : LIST_SLICE_LEN;
    if (len > slice)
        len = slice;
    if (len)
        mupdate_send(l->m, l->ready.text.p + l->sent, len);
    l->sent += len;
    l->service->lists_sent_ns += len * 1000000000ull / MUPDATE_LISTS_RATE;
    if (l->sent == l->ready.text.len) {
        mupdate_view_sent(l->m, l->ready.rows, 0);
        l->ready.rows = 0;
        if (l->made && !l->next_there) {
            all_sent(l);
            return;
        }
        pieces_move(l);
    }
    resume(l);
}

void mupdate_list_drained(struct mupdate_session *m)
{
    if (m->list)
        resume(m->list);
}

/* --- Bounds ------------------------------------------------------------------------------------------------------------------------------- */

static void look_again(struct mupdate_list *l, uint64_t now)
{
    l->look.done = on_look;
    srv_wait_begin(l->service, &l->look, UINT64_MAX, now + LIST_LOOK_MS); /* which nobody publishes: the deadline, or the end of all publishing */
}

static void on_look(struct srv_wait *w)
{
    struct mupdate_list *l = (struct mupdate_list *)((char *)w - offsetof(struct mupdate_list, look));
    struct daemon *d = l->service->d;
    uint64_t now = shared_now_ms(), sent = conn_sent_len(l->m->conn);
    if (conn_queued_len(l->m->conn) == 0 || sent - l->taken_len >= LIST_PACE_LEN) {
        l->taken_len = sent;
        l->taken_ms = now;
    }
    if (l->store && atomic_load(&d->store_generation) != l->store_generation) {
        give_up(l, "the state that was read isn't this node's any more: connect again");
    } else if (l->store && store_used_len(l->store) > l->used_len + d->config->state_growth_len) {
        give_up(l, "the list takes too long, the state has grown too much meanwhile: connect again");
    } else if (now - l->taken_ms > MUPDATE_STALL_MS) {
        give_up(l, "the list isn't read");
    } else {
        look_again(l, now);
        resume(l);
    }
}

static void begin(struct mupdate_list *l)
{
    struct service *s = l->service;
    queue_leave(l);
    l->holds = true;
    s->lists++;
    struct err err = {0};
    if (lister_start(s, &err) != 0) {
        give_up(l, err.text);
        return;
    }
    l->store = daemon_store(s->d, &l->store_generation);
    if (!l->store) {
        give_up(l, "this node has no state that it may serve: ask another node");
        return;
    }
    mupdate_snapshot_of(l->rows, l->store);
    l->used_len = store_used_len(l->store);
    l->taken_len = conn_sent_len(l->m->conn);
    l->taken_ms = shared_now_ms();
    look_again(l, l->taken_ms);
    work_begin(l);
}

static void turns_give(struct service *s)
{
    while (s->lists_waiting && s->lists < share(s))
        begin(s->lists_waiting);
}

/* --- The command ------------------------------------------------------------------------------------------------------------------------ */

void mupdate_rows(struct mupdate_session *m, const struct mupdate_word *servers, unsigned n, const char *prefix, void (*done)(struct mupdate_session *m, uint64_t index))
{
    struct service *s = m->service;
    struct mupdate_list *l = mem_calloc(1, sizeof *l);
    l->m = m;
    l->service = s;
    l->done = done;
    l->stream.turn = on_turn;
    l->rows = mupdate_snapshot_create(&m->tag, &(struct mupdate_snapshot_filter){.servers = servers, .servers_n = n, .prefix = {prefix, prefix ? strlen(prefix) : 0}});
    m->list = l;
    queue_enter(l, &s->lists_waiting);
    turns_give(s);
}

static void list_done(struct mupdate_session *m, uint64_t index)
{
    mupdate_seen(m->service, index);
    mupdate_answer(m, "OK", "list complete");
}

static void list_ready(struct mupdate_session *m)
{
    mupdate_rows(m, NULL, 0, m->line.n > 2 ? mupdate_arg(m, 0) : NULL, list_done);
}

void mupdate_list(struct mupdate_session *m)
{
    const char *place = m->line.n > 2 ? mupdate_arg(m, 0) : "", *mark = strchr(place, '!');
    if (mark && mark != place) { /* FIND answers differently from now on: srv_mupdate_read.c */
        m->listed = true;
        mupdate_view_server(m, place, (size_t)(mark - place));
    }
    mupdate_linearize(m, list_ready);
}
