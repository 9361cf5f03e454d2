/* lib_wait.c - waiting: what a call that waits does, and what an event loop does instead.
 *
 * One mechanism. A turn schedules the calls, offers what is queued, asks poll() which links are ready (waiting until something is due, or not at all),
 * takes what came, and calls back. A call that waits repeats turns until it is answered; raftdir_process is one turn that doesn't wait.
 *
 * For the loop there is one descriptor: an epoll instance with all links and a timer in it. It only says *that* there is something to do; raftdir_process
 * finds out what. It is level-triggered: whatever is left undone keeps it readable. Whoever returns to the user brings it up to date (wait_sync): links that
 * are new or want something else, and the timer, which stands at the earliest moment at which something is due, and at "now" while callbacks are to be called.
 * A timer that stands too early costs a turn; it never stands too late. A link that the kernel can't register (ENOMEM, the user's limit) is
 * looked at every UNWATCHED_MS by that timer.
 *
 * fork: the epoll instance and the timer belong to the open file descriptions that parent and child share. A child therefore only closes its descriptors, and
 * never unregisters anything; and since a link's description may live on in a child, the parent unregisters a link itself before it closes it.
 *
 * Callbacks may start reads and submit writes. Those are scheduled and queued at once and sent at the end of the turn; if one ends at once, its callback is
 * called in the next turn: no recursion, and no turn without an end. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "lib_internal.h"

#define WAIT_MAX_MS 60000 /* of one poll: clocks and limits of int apart, nothing needs it */
#define NEVER UINT64_MAX

void wait_init(struct raftdir *d)
{
    d->loop_fd = d->timer_fd = -1;
    d->timer_at = NEVER;
    d->ended_last = &d->ended;
}

/* --- The descriptor ------------------------------------------------------------------------------------------------------------ */

static uint32_t epoll_events(short events)
{
    return (events & POLLIN ? EPOLLIN : 0u) | (events & POLLOUT ? EPOLLOUT : 0u);
}

static int watch_link(struct raftdir *d, struct link *l)
{
    short want = link_events(l);
    if (l->watched == want)
        return 0;
    struct epoll_event e = {.events = epoll_events(want), .data.fd = l->fd};
    if (epoll_ctl(d->loop_fd, l->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, l->fd, &e) < 0)
        return -1;
    l->loop_fd = d->loop_fd;
    l->watched = want;
    return 0;
}

static void set_timer(struct raftdir *d, uint64_t at)
{
    /* Zeros would disarm it; the first nanosecond of the clock has passed. */
    struct itimerspec t = {.it_value = {(time_t)(at / 1000), (long)(at % 1000) * 1000000 + 1}};
    if (at == NEVER)
        t.it_value = (struct timespec){0};
    if (timerfd_settime(d->timer_fd, TFD_TIMER_ABSTIME, &t, NULL) == 0)
        d->timer_at = at;
}

/* The earliest moment at which a turn has something to do by itself. */
static uint64_t due_at(const struct raftdir *d)
{
    uint64_t at = d->schedule_at;
    if (d->ended)
        at = 0;
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        const struct link *l = d->endpoints[i]->link;
        if (l && l->state != LINK_READY && l->deadline < at)
            at = l->deadline;
        if (l && l->ssl && l->state == LINK_READY && SSL_has_pending(l->ssl))
            at = 0; /* read from the socket already, so the socket says nothing */
    }
    return at;
}

/* fired: the timer has run out and is to be set anew, or it would keep the descriptor readable. */
static void wait_sync(struct raftdir *d, bool fired)
{
    if (d->loop_fd < 0)
        return;
    bool unwatched = false;
    for (unsigned i = 0; i < d->endpoints_n; i++)
        if (d->endpoints[i]->link && watch_link(d, d->endpoints[i]->link) < 0)
            unwatched = true;
    uint64_t at = due_at(d);
    if (unwatched) {
        uint64_t soon = lib_now_ms() + UNWATCHED_MS;
        at = soon < at ? soon : at;
    }
    /* One that stands earlier than needed is left alone: it costs a turn, but not a system call at every question. */
    if (fired || at < d->timer_at)
        set_timer(d, at);
}

int raftdir_fd(raftdir *d)
{
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    if (d->loop_fd >= 0)
        return d->loop_fd;
    int loop = epoll_create1(EPOLL_CLOEXEC);
    int timer = loop < 0 ? -1 : timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = timer};
    if (timer < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, timer, &e) < 0) {
        int why = errno;
        if (timer >= 0)
            close(timer);
        if (loop >= 0)
            close(loop);
        int code = err_from_errno(why);
        return err_set(&d->err, code == RAFTDIR_ENOMEM || code == RAFTDIR_ELIMIT ? code : RAFTDIR_EIO, "a descriptor for an event loop: %s", strerror(why));
    }
    d->loop_fd = loop;
    d->timer_fd = timer;
    d->timer_at = NEVER;
    wait_sync(d, false);
    return d->loop_fd;
}

int raftdir_set_nonblocking(raftdir *d, int on)
{
    int rc = lib_check(d);
    if (!rc)
        d->nonblocking = on != 0;
    return rc;
}

/* --- Callbacks -------------------------------------------------------------------------------------------------------------------- */

static void tell_write(struct call *c)
{
    struct raftdir_result r = {.failed_op = -1};
    struct raftdir_op_result *ops = NULL;
    if (c->answer && c->answer->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_WRITE) {
        const Raftdir__Log__Result *w = c->answer->write;
        r.index = w->index;
        if (w->has_failed_op)
            r.failed_op = (int)w->failed_op;
        /* Without memory: done, but what became of each operation can't be told; ops_n says so. */
        if (w->code == 0 && (ops = calloc(w->n_ops ? w->n_ops : 1, sizeof *ops))) {
            for (size_t i = 0; i < w->n_ops; i++)
                ops[i] = (struct raftdir_op_result){w->ops[i]->generation, w->ops[i]->mailbox_id, w->ops[i]->changed};
            r.ops = ops;
            r.ops_n = w->n_ops;
        }
    }
    c->done_fn(c->data, c->result.code, c->result.text, &r);
    free(ops);
}

static void tell_read(struct call *c)
{
    struct raftdir_mailbox m;
    const struct raftdir_mailbox *found = c->found;
    if (!found && c->result.code == 0 && mailbox_from_answer(c->answer, c->answered_by, &m, &c->result) == 0)
        found = &m;
    c->answered_fn(c->data, c->result.code, c->result.text, c->result.code == 0 ? found : NULL);
}

/* Calls the callbacks of what has ended by now, and frees the calls. What ends meanwhile waits for the next turn. */
static void call_back(struct raftdir *d)
{
    struct call *c = d->ended;
    if (!c)
        return;
    struct err kept = d->err; /* what callbacks do is no part of the call that they interrupt */
    d->ended = NULL;
    d->ended_last = &d->ended;
    d->in_callback = true;
    while (c) {
        struct call *next = c->ended_next;
        if (c->done_fn)
            tell_write(c);
        else
            tell_read(c);
        call_destroy(&c);
        c = next;
    }
    d->in_callback = false;
    d->err = kept;
}

void wait_close(struct raftdir *d, bool ours)
{
    d->closing = true; /* callbacks begin nothing new */
    for (struct call *c = d->calls; c && ours; c = c->next)
        if (!c->done && (c->done_fn || c->answered_fn))
            call_end(c, RAFTDIR_ECANCELED, "the handle was closed");
    if (ours)
        call_back(d);
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct link *l = d->endpoints[i]->link;
        if (l && !ours)
            l->watched = 0; /* it is the parent's registration */
        else if (l)
            link_unwatch(l);
    }
    if (d->timer_fd >= 0)
        close(d->timer_fd);
    if (d->loop_fd >= 0)
        close(d->loop_fd);
    d->loop_fd = d->timer_fd = -1;
}

/* --- Turns ---------------------------------------------------------------------------------------------------------------------------- */

static void turn(struct raftdir *d, uint64_t until)
{
    struct pollfd fds[ENDPOINTS_MAX + 1];
    struct endpoint *eps[ENDPOINTS_MAX + 1];
    nfds_t n = 0;
    uint64_t now = lib_now_ms();
    d->ended_some = false;
    engine_schedule(d, now);
    engine_send(d, now);
    uint64_t wake = due_at(d);
    wake = d->ended_some ? 0 : until < wake ? until : wake;
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct endpoint *ep = d->endpoints[i];
        if (!ep->link)
            continue;
        fds[n] = (struct pollfd){.fd = ep->link->fd, .events = link_events(ep->link)};
        eps[n++] = ep;
    }
    uint64_t wait = wake > now ? wake - now : 0;
    int rc = poll(fds, n, wait > WAIT_MAX_MS ? WAIT_MAX_MS : (int)wait);
    now = lib_now_ms();
    for (nfds_t i = 0; i < n; i++) {
        const struct link *l = eps[i]->link;
        if (l && l->fd == fds[i].fd &&
            ((rc > 0 && fds[i].revents) || (l->state != LINK_READY && now >= l->deadline) || (l->ssl && l->state == LINK_READY && SSL_has_pending(l->ssl))))
            engine_io(d, eps[i], now);
    }
    engine_schedule(d, now);
    call_back(d);
    engine_send(d, now);
    wait_sync(d, d->timer_at <= now);
}

void engine_turn(struct raftdir *d, uint64_t until)
{
    d->schedule_at = 0; /* whoever waits may have changed what his call waits for */
    turn(d, until);
}

int raftdir_process(raftdir *d)
{
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    turn(d, 0);
    return 0;
}

void engine_flush(struct raftdir *d)
{
    uint64_t now = lib_now_ms();
    d->schedule_at = 0;
    engine_schedule(d, now);
    engine_send(d, now);
    wait_sync(d, false);
}

void engine_begin(struct call *c)
{
    struct raftdir *d = c->d;
    uint64_t due = d->schedule_at;
    call_start(c);
    d->schedule_at = due; /* only this one is new */
    engine_schedule_one(c, c->started_at);
    if (d->in_callback)
        return; /* the turn sends it */
    engine_send(d, c->started_at);
    wait_sync(d, false);
}

void engine_begin_ended(struct call *c, int code, const char *text)
{
    struct raftdir *d = c->d;
    uint64_t due = d->schedule_at;
    call_start(c);
    d->schedule_at = due;
    call_end(c, code, text);
    if (!d->in_callback)
        wait_sync(d, false);
}

void engine_look(struct raftdir *d)
{
    uint64_t now = lib_now_ms();
    for (unsigned i = 0; i < d->endpoints_n; i++)
        if (d->endpoints[i]->link)
            engine_io(d, d->endpoints[i], now);
}

int call_wait(struct call *c)
{
    struct raftdir *d = c->d;
    engine_look(d); /* links that ended while nobody looked are found before anything is sent on them: a write isn't made uncertain needlessly */
    while (!c->done)
        engine_turn(d, NEVER);
    return c->result.code;
}
