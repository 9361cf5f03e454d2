/* lib_watch.c - watch: a stream of events that goes on behind the last one, whatever becomes of its node.
 *
 * A watch is a call that never ends by itself (CALL_STREAM, no deadline). It holds the frames that came and weren't given out yet, at most WATCH_WINDOW events: credit
 * goes back to the node as they are taken. `received` is the position behind the last event that came; whenever the request has to be sent again, to
 * whichever node, it asks for what is behind that. Answers to an earlier attempt are dropped by their request id. So nothing is given twice or left out, as
 * long as nodes tell the truth about positions; one that goes backwards ends the call with RAFTDIR_EPROTO, and the next one asks anew.
 *
 * Silence: nodes are asked to tell their position every third of what a stream may be silent; these are given to the user only as often as he wants. A silent
 * node is left for another one (lib_engine.c, CALL_SWITCH), but only when it is known to be silent: what had come while nobody looked is read first.
 * Between calls of raftdir_watch_next that wait nothing is retried, and nobody is taken for silent; behind one that doesn't wait, raftdir_process goes on with it.
 * Out of memory: the frame is forgotten, the call ends, and the next raftdir_watch_next asks for it again.
 * RAFTDIR_ECOMPACTED and RAFTDIR_EFOREIGN stay: going on by itself would leave a gap. */
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

#define PROGRESS_DEFAULT_MS WATCH_PROGRESS_DEFAULT_MS

struct frame {
    struct frame *next;
    Raftdir__Client__FromNode *answer;
};

struct raftdir_watch {
    struct raftdir *d;
    struct call *call;  /* NULL: ended by an error, or not begun */
    int pinned;
    Raftdir__Client__Watch watch; /* the request; the strings are ours */
    struct frame *first, **last;  /* frames that came, with at least one event that is to be given */
    size_t at;                    /* the next event of the first one */
    struct frame *given;          /* the frame of the event given last, when it is used up */
    uint32_t waiting, taken;      /* events in the frames; taken since credit was last given */
    uint64_t credit_at;           /* when the node last got the right to say more: it can't be silent since before */
    struct raftdir_position received, told; /* behind the last event that came; behind the last one given. incarnation 0: no position yet */
    uint64_t progress_ms, told_at;
    struct err failure;           /* for good */
    struct raftdir_event event;
    struct raftdir_mailbox mailbox;
};

static bool behind(const struct raftdir_position *a, uint64_t index, uint32_t done)
{
    return index > a->index || (index == a->index && done > a->done);
}

static void frame_free(struct frame *f)
{
    if (!f)
        return;
    raftdir__client__from_node__free_unpacked(f->answer, NULL);
    free(f);
}

/* --- The call ------------------------------------------------------------------------------------------------------------------------ */

static int watch_prepare(struct call *c)
{
    struct raftdir_watch *w = c->data;
    Raftdir__Client__Watch q = w->watch;
    uint64_t wire = (uint64_t)c->d->patience_ms * STREAM_PATIENCE / 3;
    q.has_index = q.has_done = q.has_incarnation = w->received.incarnation != 0;
    q.index = w->received.index;
    q.done = w->received.done;
    q.incarnation = w->received.incarnation;
    q.has_credit = q.has_progress_ms = true;
    q.credit = w->waiting < WATCH_WINDOW ? WATCH_WINDOW - w->waiting : 1;
    q.progress_ms = (uint32_t)(wire < w->progress_ms ? wire : w->progress_ms);
    /* The position says which state it takes; without one, "now" is at least what this handle has seen. */
    c->level = w->received.incarnation ? RAFTDIR_LOCAL : c->d->level;
    w->taken = 0;
    w->credit_at = lib_now_ms();
    return call_body(c, &q.base);
}

/* The attempt stays, so that call_destroy tells the node to stop. */
static void watch_fail(struct call *c, int code, const char *text)
{
    c->done = true;
    err_set(&c->result, code, "%s", text);
}

static bool is_given(const Raftdir__Client__Event *e)
{
    return e->kind >= RAFTDIR_EVENT_CHANGED && e->kind <= RAFTDIR_EVENT_RESERVED && e->name;
}

static void watch_on_frame(struct call *c, Raftdir__Client__FromNode *m)
{
    struct raftdir_watch *w = c->data;
    const char *wrong = NULL;
    struct raftdir_position p = w->received;
    uint32_t n = 0;
    if (c->done) { /* behind what ended the call */
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    if (m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_EVENTS || !m->has_more || !m->more || !m->has_incarnation || !m->incarnation)
        wrong = "a watch was answered with something else than events";
    else if (p.incarnation && p.incarnation != m->incarnation)
        wrong = "events of another incarnation";
    for (size_t i = 0; !wrong && i < m->events->n_events; i++) {
        const Raftdir__Client__Event *e = m->events->events[i];
        /* That nothing has happened may be said of the same position again. */
        bool again = !is_given(e) && e->index == p.index && e->done == p.done;
        if (p.incarnation && !again && !behind(&p, e->index, e->done))
            wrong = "events whose positions don't ascend";
        p = (struct raftdir_position){m->incarnation, e->index, e->done};
        n += is_given(e);
    }
    struct frame *f = !wrong && n ? calloc(1, sizeof *f) : NULL;
    if (wrong || (n && !f)) {
        raftdir__client__from_node__free_unpacked(m, NULL);
        watch_fail(c, wrong ? RAFTDIR_EPROTO : RAFTDIR_ENOMEM, wrong ? wrong : "out of memory");
        return;
    }
    w->received = p;
    w->taken += (uint32_t)m->events->n_events - n;
    w->waiting += n;
    if (f) {
        f->answer = m;
        *w->last = f;
        w->last = &f->next;
    } else {
        raftdir__client__from_node__free_unpacked(m, NULL);
    }
    if (c->waiting_since)
        c->waiting_since = c->last_frame_at; /* also where raftdir_process goes on with it */
    /* It has got somewhere: what went wrong before doesn't count any more. */
    c->fail = (struct err){0};
    c->maybe = false;
    c->round_n = c->round_hard = 0;
}

static bool watch_is_final(struct call *c, const Raftdir__Client__FromNode *m, int code)
{
    const struct raftdir_watch *w = c->data;
    if (code == RAFTDIR_ECOMPACTED)
        return true;
    /* A node of an older incarnation hasn't been restored yet: another one is asked. */
    return code == RAFTDIR_EFOREIGN && w->received.incarnation && m->has_incarnation && m->incarnation > w->received.incarnation;
}

static int watch_start(struct raftdir_watch *w)
{
    struct raftdir *d = w->d;
    if (!(w->call = call_create(d, CALL_STREAM | CALL_SWITCH, RAFTDIR__CLIENT__TO_NODE__BODY_WATCH)))
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    w->call->data = w;
    w->call->prepare = watch_prepare;
    w->call->on_frame = watch_on_frame;
    w->call->is_final = watch_is_final;
    w->call->pinned = w->pinned;
    w->call->timeout_ms = UINT64_MAX / 4; /* raftdir_watch_next has its own */
    call_start(w->call);
    w->credit_at = w->call->started_at;
    return 0;
}

/* The call has ended, which is never a success. */
static int watch_ended(struct raftdir_watch *w)
{
    struct call *c = w->call;
    struct raftdir *d = w->d;
    d->err = c->result;
    if (!d->err.code) /* a node that ended the stream without a reason */
        err_set(&d->err, RAFTDIR_EPROTO, "the node ended the watch");
    int code = d->err.code;
    if (code == RAFTDIR_ECOMPACTED || code == RAFTDIR_EFOREIGN) {
        w->failure = d->err;
        if (c->answer && c->answer->has_incarnation && c->answer->has_index)
            w->received = w->told = (struct raftdir_position){c->answer->incarnation, c->answer->index, RAFTDIR_DONE_ALL};
    }
    call_destroy(&w->call);
    return code;
}

/* --- The public functions -------------------------------------------------------------------------------------------------------------- */

int raftdir_watch_open(raftdir *d, const struct raftdir_watch_filter *f, const struct raftdir_position *from, raftdir_watch **w_r)
{
    struct raftdir_watch_filter own;
    *w_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    raftdir_watch_filter_init(&own);
    if (f && !lib_sized(&own, sizeof own, f, f->size))
        return err_set(&d->err, RAFTDIR_EINVAL, "a filter of another version: use raftdir_watch_filter_init");
    f = &own;
    struct raftdir_watch *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    raftdir__client__watch__init(&w->watch);
    w->d = d;
    w->last = &w->first;
    w->pinned = d->pinned;
    if ((f->prefix && *f->prefix && !(w->watch.prefix = strdup(f->prefix))) || (f->server && *f->server && !(w->watch.server = strdup(f->server))) ||
        (f->partition && *f->partition && !(w->watch.partition = strdup(f->partition)))) {
        raftdir_watch_close(&w);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    w->watch.has_reserved = w->watch.reserved = f->reserved != 0;
    w->progress_ms = f->progress_ms ? f->progress_ms : PROGRESS_DEFAULT_MS;
    if (from && from->incarnation)
        w->received = w->told = *from;
    if ((rc = watch_start(w)) < 0) {
        raftdir_watch_close(&w);
        return rc;
    }
    engine_flush(d);
    w->call->waiting_since = 0; /* nobody waits before raftdir_watch_next */
    *w_r = w;
    return 0;
}

static int give_event(struct raftdir_watch *w, const struct raftdir_event **event_r)
{
    struct raftdir *d = w->d;
    struct frame *f = w->first;
    const Raftdir__Client__Events *events = f->answer->events;
    while (!is_given(events->events[w->at]))
        w->at++; /* there is one: w->waiting counts them */
    const Raftdir__Client__Event *e = events->events[w->at++];
    w->event = (struct raftdir_event){.kind = (int)e->kind, .name = e->name, .old_name = e->old_name ? e->old_name : "",
                                      .position = {f->answer->incarnation, e->index, e->done}};
    if (e->row) {
        mailbox_from_row(&w->mailbox, e->row);
        w->event.m = &w->mailbox;
    }
    size_t next = w->at;
    while (next < events->n_events && !is_given(events->events[next]))
        next++;
    if (next == events->n_events) {
        w->given = f;
        w->at = 0;
        if (!(w->first = f->next))
            w->last = &w->first;
    }
    w->told = w->event.position;
    w->told_at = lib_now_ms();
    w->waiting--;
    w->taken++;
    *event_r = &w->event;
    d->err = (struct err){0};
    return 0;
}

/* Room for more, to the node; true: there is something to send. Without memory: at the next call. */
static bool give_credit(struct raftdir_watch *w)
{
    if (w->taken < WATCH_WINDOW / 2 || !w->call || w->call->done || !w->call->attempts_n || call_credit(w->call, w->taken) < 0)
        return false;
    w->taken = 0;
    w->credit_at = lib_now_ms();
    return true;
}

static bool progress_is_due(const struct raftdir_watch *w, uint64_t now)
{
    return w->received.incarnation && (!w->told_at || now - w->told_at >= w->progress_ms) &&
           (!w->told.incarnation || behind(&w->told, w->received.index, w->received.done));
}

static int give_progress(struct raftdir_watch *w, const struct raftdir_event **event_r)
{
    w->event = (struct raftdir_event){.kind = RAFTDIR_EVENT_PROGRESS, .name = "", .old_name = "", .position = w->received};
    w->told = w->received;
    w->told_at = lib_now_ms();
    *event_r = &w->event;
    return 0;
}

/* Nothing came in time. Is that because nothing happened, or because nobody could be asked? */
static int nothing(struct raftdir_watch *w)
{
    const struct call *c = w->call;
    bool heard = c->attempts_n && c->last_frame_at >= c->attempts[0].started_at;
    if (heard || !c->fail.code)
        return err_set(&w->d->err, RAFTDIR_EAGAIN, "no event yet");
    w->d->err = c->fail;
    return c->fail.code;
}

int raftdir_watch_next(raftdir_watch *w, unsigned timeout_ms, const struct raftdir_event **event_r)
{
    struct raftdir *d = w->d;
    *event_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    frame_free(w->given);
    w->given = NULL;
    if (d->nonblocking)
        timeout_ms = 0;
    uint64_t deadline = lib_now_ms() + timeout_ms, now;
    bool turned = false;
    if (!w->first && !w->failure.code)
        engine_look(d);
    for (;;) {
        if (w->first) {
            rc = give_event(w, event_r);
            if (give_credit(w))
                engine_flush(d);
            break;
        }
        if (w->failure.code) {
            d->err = w->failure;
            return d->err.code;
        }
        if (w->call && w->call->done)
            return watch_ended(w);
        if (!w->call && (rc = watch_start(w)) < 0)
            return rc;
        now = lib_now_ms();
        if (progress_is_due(w, now)) {
            rc = give_progress(w, event_r);
            break;
        }
        if (turned && now >= deadline) {
            rc = nothing(w);
            if (!timeout_ms)
                return rc; /* an event loop: raftdir_process goes on with it */
            break;
        }
        give_credit(w); /* for positions that were told meanwhile */
        uint64_t until = deadline;
        if (w->told_at && w->received.incarnation && w->told_at + w->progress_ms < until && w->told_at + w->progress_ms > now)
            until = w->told_at + w->progress_ms;
        w->call->waiting_since = w->call->last_frame_at > w->credit_at ? w->call->last_frame_at : w->credit_at; /* each frame is a sign of life */
        engine_turn(d, until);
        turned = true;
    }
    if (w->call)
        w->call->waiting_since = 0;
    return rc;
}

void raftdir_watch_position(const raftdir_watch *w, struct raftdir_position *position_r)
{
    *position_r = w->first ? w->told : w->received;
}

void raftdir_watch_close(raftdir_watch **wp)
{
    struct raftdir_watch *w = wp ? *wp : NULL;
    if (!w)
        return;
    *wp = NULL;
    /* In a forked child nothing may be said on the parent's connection. */
    if (w->call && lib_check(w->d) < 0)
        w->call->attempts_n = 0;
    bool tell = w->call && !w->call->done && w->call->attempts_n;
    call_destroy(&w->call);
    if (tell)
        engine_flush(w->d); /* the node shouldn't go on for nobody */
    while (w->first) {
        struct frame *f = w->first;
        w->first = f->next;
        frame_free(f);
    }
    frame_free(w->given);
    free(w->watch.prefix);
    free(w->watch.server);
    free(w->watch.partition);
    free(w);
}
