/* lib_choose.c - which endpoint a call goes to, and when it goes to a second one.
 *
 * Order of preference: the first endpoint that was given (the own host's node), then those of our own site, then the others; within each as they were given,
 * learned ones last. Slow ones come after all that aren't; those that file: or dns: no longer has aren't chosen.
 *
 * A call goes to a second endpoint as well, writes too (they are exactly-once):
 * 1. Early: its only request has taken longer than that endpoint takes (mean + 4 deviations of such requests, at least HEDGE_MIN_MS). That is paid from the handle's budget:
 *    each call adds HEDGE_PERCENT of a request, at most HEDGE_BURST are saved up; so the nodes see at most 5 % more requests.
 * 2. Its connection is silent: a ping goes out after half of SILENCE_MS, and when nothing has come by SILENCE_MS the node hangs or can't be reached: all that waits for it
 *    moves on, whatever the budget says. A connection that isn't ready yet gets the patience (TLS across an ocean takes longer), on a Unix socket SILENCE_MS.
 * 3. Nothing but answers to pings has come for the patience, or the request is 10 patiences old: the node lives, and gets nothing done (a leader that was cut off).
 *    A busy pipeline whose answers keep coming isn't doubled by impatience before that.
 * An endpoint that let a call wait for 2 or 3, or that a second endpoint has beaten twice in a row, is no first choice for SLOW_MS.
 *
 * A handle that goes on writing keeps a second connection ready. When a node dies, all its clients move at once, and they shouldn't all be in the middle of a TLS handshake
 * when the cluster has a new leader. Others connect when they need it: most processes never do.
 *
 * Times are whole milliseconds: endpoints that answer in less are told apart from slow ones only by HEDGE_MIN_MS, which is what it is for. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

#define HEDGE_PERCENT 5
#define HEDGE_BURST 8
#define HEDGE_MIN_MS 5
#define SILENCE_MS 100
#define OLD_PATIENCES 10
#define BEATEN_MAX 2
#define WARM_WRITES 8      /* so many writes */
#define WARM_WITHIN_MS 2000 /* in so short a time are a handle that goes on writing */

unsigned endpoint_number(const struct raftdir *d, const struct endpoint *ep)
{
    unsigned i = 0;
    while (d->endpoints[i] != ep)
        i++;
    return i;
}

/* --- Which one ------------------------------------------------------------------------------------------------------------------- */

/* May this call go there at all? */
static bool eligible(const struct call *c, unsigned i)
{
    const struct endpoint *ep = c->d->endpoints[i];
    if (c->pinned >= 0)
        return (unsigned)c->pinned == i;
    return !ep->removed && (!ep->learned || c->d->tls);
}

static bool has_attempt_at(const struct call *c, const struct endpoint *ep)
{
    for (unsigned i = 0; i < c->attempts_n; i++)
        if (c->attempts[i].ep == ep)
            return true;
    return false;
}

enum { CLASS_FIRST, CLASS_SITE, CLASS_OTHER };

static int class_of(const struct raftdir *d, const struct endpoint *ep, const struct endpoint *first)
{
    if (ep == first)
        return CLASS_FIRST;
    return d->site && ep->site && !strcmp(d->site, ep->site) ? CLASS_SITE : CLASS_OTHER;
}

/* Is `a` preferred to `b`? */
static bool before(const struct raftdir *d, const struct endpoint *a, const struct endpoint *b, const struct endpoint *first, uint64_t now)
{
    bool a_slow = a->slow_until > now, b_slow = b->slow_until > now;
    if (a_slow != b_slow)
        return b_slow;
    int a_class = class_of(d, a, first), b_class = class_of(d, b, first);
    return a_class != b_class ? a_class < b_class : a->order < b->order;
}

struct endpoint *choose_endpoint(const struct call *c, uint64_t now)
{
    const struct raftdir *d = c->d;
    struct endpoint *best = NULL, *first = NULL;
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct endpoint *ep = d->endpoints[i];
        if (!ep->removed && !ep->learned && (!first || ep->order < first->order))
            first = ep;
    }
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct endpoint *ep = d->endpoints[i];
        if (!eligible(c, i) || (c->tried & 1ull << i) || has_attempt_at(c, ep) || (!ep->link && ep->retry_at > now))
            continue;
        if (!best || before(d, ep, best, first, now))
            best = ep;
    }
    return best;
}

bool choose_nothing_reachable(const struct call *c)
{
    const struct raftdir *d = c->d;
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        const struct endpoint *ep = d->endpoints[i];
        if (!eligible(c, i))
            continue;
        if (ep->link ? ep->link->state == LINK_READY : !ep->failures)
            return false;
        if (ep->link && !ep->failures)
            return false; /* its first try is still going on */
    }
    return true;
}

bool choose_all_tried(const struct call *c)
{
    for (unsigned i = 0; i < c->d->endpoints_n; i++)
        if (eligible(c, i) && !(c->tried & 1ull << i))
            return false;
    return true;
}

/* --- How long it takes there --------------------------------------------------------------------------------------------------------- */

static unsigned kind_of(const struct call *c)
{
    return (c->flags & CALL_WRITE) ? LATENCY_WRITE : c->level == RAFTDIR_LINEARIZABLE ? LATENCY_QUORUM_READ : LATENCY_READ;
}

/* As TCP's retransmission timer (RFC 6298 section 2), in sixteenths of a millisecond. */
static void latency_sample(struct latency *l, uint64_t ms)
{
    uint32_t r = ms > 60000 ? 60000 * 16 : (uint32_t)ms * 16;
    if (!l->samples) {
        l->mean = r;
        l->deviation = r / 2;
    } else {
        uint32_t off = r > l->mean ? r - l->mean : l->mean - r;
        l->deviation = (3 * l->deviation + off) / 4;
        l->mean = (7 * l->mean + r) / 8;
    }
    if (l->samples < UINT32_MAX)
        l->samples++;
}

/* After so long a second request is worth sending. Unknown yet: the patience. */
static uint64_t hedge_after(const struct call *c, const struct endpoint *ep)
{
    const struct latency *l = &ep->latency[kind_of(c)];
    uint64_t patience = c->d->patience_ms;
    if (l->samples < LATENCY_SAMPLES_MIN)
        return patience;
    uint64_t ms = (l->mean + 4ull * l->deviation + 15) / 16;
    ms = ms < HEDGE_MIN_MS ? HEDGE_MIN_MS : ms;
    return ms < patience ? ms : patience;
}

void choose_answered(struct call *c, unsigned i, uint64_t now)
{
    struct attempt *winner = &c->attempts[i];
    if (!(c->flags & CALL_HEDGE) || !winner->end_pos)
        return;
    winner->ep->beaten = 0;
    latency_sample(&winner->ep->latency[kind_of(c)], now - winner->sent_at);
    for (unsigned k = 0; k < c->attempts_n; k++) {
        struct attempt *a = &c->attempts[k];
        if (k == i || a->started_at > winner->started_at || !a->end_pos)
            continue;
        /* It would have taken at least so long: an endpoint that got slower is soon known as such, and no longer doubled. */
        latency_sample(&a->ep->latency[kind_of(c)], now - a->sent_at);
        if (++a->ep->beaten >= BEATEN_MAX)
            a->ep->slow_until = now + SLOW_MS;
    }
}

/* --- When to go to a second one ------------------------------------------------------------------------------------------------------------ */

void choose_started(struct call *c)
{
    struct raftdir *d = c->d;
    if (c->flags & CALL_WRITE) {
        if (c->started_at - d->writes_since > WARM_WITHIN_MS) {
            d->writes_since = c->started_at;
            d->writes_n = 0;
        }
        if (d->writes_n < WARM_WRITES)
            d->writes_n++;
    }
    d->hedge_budget += HEDGE_PERCENT;
    if (d->hedge_budget > HEDGE_BURST * 100)
        d->hedge_budget = HEDGE_BURST * 100;
}

void choose_init(struct raftdir *d)
{
    d->hedge_budget = HEDGE_BURST * 100;
}

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t silence_of(const struct raftdir *d)
{
    return sooner(SILENCE_MS, d->patience_ms);
}

/* When this attempt is waited for no longer without another beside it (rules 2 and 3 above). */
static uint64_t overdue_at(const struct call *c, const struct attempt *a)
{
    const struct raftdir *d = c->d;
    if (c->flags & CALL_SWITCH) {
        uint64_t heard = later(a->started_at, c->waiting_since);
        if (a->ep->last_answer > heard)
            heard = sooner(a->ep->last_answer, a->started_at + (uint64_t)OLD_PATIENCES * d->patience_ms);
        return later(heard, c->waiting_since) + (uint64_t)STREAM_PATIENCE * d->patience_ms;
    }
    if (!a->end_pos)
        return a->started_at + (a->ep->path ? silence_of(d) : d->patience_ms);
    uint64_t heard = later(a->sent_at, a->ep->last_rx);
    /* Without a ping under way nobody knows: maybe the user was away, and answers wait to be read. */
    uint64_t silent = !a->ep->ping_open ? UINT64_MAX : later(heard + silence_of(d), a->ep->ping_at + silence_of(d) / 2);
    uint64_t stuck = later(a->sent_at, a->ep->last_answer) + d->patience_ms;
    uint64_t old = a->started_at + (uint64_t)OLD_PATIENCES * d->patience_ms;
    return sooner(sooner(silent, stuck), old);
}

/* A pipeline's latency is that of its length: as long as answers come, nobody is slow. */
static uint64_t early_at(const struct call *c)
{
    const struct attempt *a = &c->attempts[0];
    return later(a->sent_at, a->ep->last_answer) + hedge_after(c, a->ep);
}

static bool may_hedge_early(const struct call *c)
{
    return c->attempts_n == 1 && (c->flags & CALL_HEDGE) && c->attempts[0].end_pos && c->d->hedge_budget >= 100;
}

static uint64_t all_overdue_at(const struct call *c)
{
    uint64_t at = 0;
    for (unsigned i = 0; i < c->attempts_n; i++)
        at = later(at, overdue_at(c, &c->attempts[i]));
    return at;
}

static bool wants_more(const struct call *c)
{
    return c->attempts_n && c->attempts_n < CALL_ATTEMPTS_MAX && !c->decided && (c->flags & (CALL_HEDGE | CALL_SWITCH)) &&
           c->pinned < 0 && c->d->endpoints_n > 1;
}

/* Certificates are the same for all; a Unix socket knows us by our user. */
static bool same_identity(const struct endpoint *a, const struct endpoint *b)
{
    if (a->identity && b->identity)
        return !strcmp(a->identity, b->identity);
    return !a->path == !b->path;
}

struct endpoint *choose_second(struct call *c, uint64_t now)
{
    struct raftdir *d = c->d;
    struct endpoint *other;
    if (!wants_more(c))
        return NULL;
    if (now >= all_overdue_at(c)) {
        if (!(other = choose_endpoint(c, now)))
            return NULL;
        for (unsigned i = 0; i < c->attempts_n; i++)
            c->attempts[i].ep->slow_until = now + SLOW_MS;
        return other;
    }
    if (!may_hedge_early(c) || now < early_at(c) || !(other = choose_endpoint(c, now)))
        return NULL;
    /* One that is known to be slow, or that we aren't connected to and couldn't connect to last time, is no help. */
    if (other->slow_until > now || (!other->link && other->failures))
        return NULL;
    /* A write that was decided tells its result only to the identity that it was applied for. */
    if ((c->flags & CALL_WRITE) && !same_identity(c->attempts[0].ep, other))
        return NULL;
    d->hedge_budget -= 100;
    return other;
}

struct endpoint *choose_warm(const struct call *c, uint64_t now)
{
    const struct raftdir *d = c->d;
    if (!(c->flags & CALL_WRITE) || d->writes_n < WARM_WRITES || c->pinned >= 0)
        return NULL;
    for (unsigned i = 0; i < d->endpoints_n; i++)
        if (d->endpoints[i]->link && !has_attempt_at(c, d->endpoints[i]) && eligible(c, i))
            return NULL;
    return choose_endpoint(c, now);
}

bool choose_ping(const struct call *c, const struct attempt *a, uint64_t now)
{
    const struct endpoint *ep = a->ep;
    if (!wants_more(c) || !(c->flags & CALL_HEDGE) || !a->end_pos || !ep->link || ep->link->state != LINK_READY)
        return false;
    uint64_t heard = later(a->sent_at, ep->last_rx);
    return !ep->ping_open && now >= heard + silence_of(c->d) / 2;
}

uint64_t choose_wakes(const struct call *c, uint64_t now)
{
    uint64_t often = now + c->d->patience_ms / 4 + 1, at = often; /* also what changes by others' doing (budget, slow ones) is seen in time */
    if (!wants_more(c))
        return often;
    uint64_t times[CALL_ATTEMPTS_MAX + 2];
    unsigned n = 0;
    times[n++] = all_overdue_at(c);
    if (may_hedge_early(c))
        times[n++] = early_at(c);
    for (unsigned i = 0; i < c->attempts_n; i++) {
        const struct attempt *a = &c->attempts[i];
        uint64_t heard = later(a->sent_at, a->ep->last_rx);
        if (a->end_pos && (c->flags & CALL_HEDGE) && !a->ep->ping_open)
            times[n++] = heard + silence_of(c->d) / 2;
    }
    for (unsigned i = 0; i < n; i++)
        if (times[i] > now) /* else it could not be done, and nothing but time will change that */
            at = sooner(at, times[i]);
    return at;
}
