/* lib_engine.c - calls in flight: which node is asked, when a second one is, what an answer means, when to give up.
 *
 * Happy path: call_start -> an attempt at the first endpoint -> its link becomes ready -> the frame leaves -> the answer ends the call.
 * - A link that breaks, or a node that says it can't (no quorum, busy, ...), ends its attempts; the call goes on at the next endpoint at once, and after
 *   a round over all of them with a pause of RETRY_PAUSE_MS.
 * - A node that is silent for the handle's patience keeps its attempt, and another node gets one as well (writes are exactly-once; reads don't matter).
 *   "Silent" is about the link: a busy pipeline whose answers keep coming isn't doubled by impatience, until 10 patiences.
 * - At the deadline a write that may have been done ends as RAFTDIR_EUNCERTAIN; what surely wasn't done ends with the last node's reason.
 * - A write may go to nodes that know us under different identities (a Unix socket, then TLS): apply does one of them and refuses the others' id as
 *   "somebody else's", without telling the result. So such a refusal says that the write was decided elsewhere: if no attempt is left that could still
 *   bring the result, it is uncertain.
 * - A node whose state is older than the caller allows (RAFTDIR_ESTALE) can't tell, as one without a quorum: others are asked, and all of them again until
 *   the deadline, since during a failover states become fresh again in a moment.
 * What a code means for a write: proto/README.md. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

#define FRAME_VERSION CLIENT_FRAME_VERSION

static void end_decided(struct call *c);

/* Something has changed that calls wait for. */
static void wake_calls(struct raftdir *d)
{
    d->schedule_at = 0;
}

/* --- Calls ------------------------------------------------------------------------------------------------------------------ */

struct call *call_create(struct raftdir *d, unsigned flags, unsigned body_field)
{
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->d = d;
    c->flags = flags;
    c->body_field = body_field;
    c->level = d->level;
    c->pinned = d->pinned;
    c->timeout_ms = d->timeout_ms;
    c->max_age_ms = d->max_age_ms;
    c->absent_max_age_ms = d->absent_max_age_ms;
    return c;
}

int call_body(struct call *c, const ProtobufCMessage *body)
{
    size_t len = protobuf_c_message_get_packed_size(body);
    uint8_t *data = malloc(len ? len : 1);
    if (!data)
        return RAFTDIR_ENOMEM;
    free(c->body);
    c->body = data;
    c->body_len = protobuf_c_message_pack(body, data);
    return 0;
}

void call_start(struct call *c)
{
    c->started_at = lib_now_ms();
    c->deadline = c->started_at + c->timeout_ms;
    c->waiting_since = c->started_at;
    c->serial = c->d->next_serial++;
    struct call **bucket = &c->d->by_serial[c->serial % CALL_BUCKETS];
    c->hash_next = *bucket;
    *bucket = c;
    wake_calls(c->d);
    c->next = c->d->calls;
    if (c->next)
        c->next->prev = c;
    c->d->calls = c;
    choose_started(c);
}

static Raftdir__Client__ToNode head_of(uint64_t request_id)
{
    Raftdir__Client__ToNode head = RAFTDIR__CLIENT__TO_NODE__INIT;
    head.version = FRAME_VERSION;
    head.request_id = request_id;
    return head;
}

/* Tells the node that nobody waits any more. Writes are left alone: their results are remembered anyway. */
static void cancel_attempt(struct call *c, const struct attempt *a)
{
    if ((c->flags & CALL_WRITE) || !a->end_pos || !a->ep->link || a->ep->link->state != LINK_READY)
        return;
    Raftdir__Client__ToNode head = head_of(a->request_id);
    link_queue(a->ep->link, &head, RAFTDIR__CLIENT__TO_NODE__BODY_CANCEL, NULL, 0, NULL); /* best effort */
}

static void drop_attempt(struct call *c, unsigned i)
{
    c->attempts[i] = c->attempts[--c->attempts_n];
}

static struct call *call_of_request(const struct raftdir *d, uint64_t request_id)
{
    uint64_t serial = request_id >> CALL_ATTEMPT_BITS;
    struct call *c = d->by_serial[serial % CALL_BUCKETS];
    while (c && c->serial != serial)
        c = c->hash_next;
    return c;
}

void call_destroy(struct call **cp)
{
    struct call *c = *cp;
    if (!c)
        return;
    *cp = NULL;
    while (c->attempts_n) {
        cancel_attempt(c, &c->attempts[c->attempts_n - 1]);
        c->attempts_n--;
    }
    if (c->prev)
        c->prev->next = c->next;
    else if (c->d->calls == c)
        c->d->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    for (struct call **at = c->serial ? &c->d->by_serial[c->serial % CALL_BUCKETS] : NULL; at && *at; at = &(*at)->hash_next)
        if (*at == c) {
            *at = c->hash_next;
            break;
        }
    if (c->done_fn)
        c->d->submitted_n--;
    if (c->answered_fn)
        c->d->reads_n--;
    raftdir_mailbox_free(c->found);
    if (c->answer)
        raftdir__client__from_node__free_unpacked(c->answer, NULL);
    free(c->body);
    free(c);
}

static bool attempt_reached_wire(const struct attempt *a)
{
    return a->end_pos && a->ep->link && a->ep->link->tried >= a->end_pos;
}

void call_end(struct call *c, int code, const char *text)
{
    assert(!c->done);
    while (c->attempts_n) {
        cancel_attempt(c, &c->attempts[c->attempts_n - 1]);
        c->attempts_n--;
    }
    c->done = true;
    c->d->ended_some = true;
    if (c->done_fn || c->answered_fn) {
        *c->d->ended_last = c;
        c->d->ended_last = &c->ended_next;
    }
    c->result.code = code;
    snprintf(c->result.text, sizeof c->result.text, "%s", code ? (text && *text ? text : err_text(code)) : "");
}

static bool may_have_been_done(const struct call *c)
{
    bool maybe = c->maybe;
    for (unsigned i = 0; i < c->attempts_n; i++)
        maybe |= attempt_reached_wire(&c->attempts[i]);
    return maybe;
}

/* Gives up: the deadline, or nothing that would help. */
static void call_give_up(struct call *c, uint64_t now)
{
    char text[ERR_TEXT_LEN];
    bool maybe = may_have_been_done(c);
    unsigned long long ms = now - c->started_at;
    if (maybe && (c->flags & (CALL_WRITE | CALL_ONCE))) {
        snprintf(text, sizeof text, "no answer within %llu ms: it may or may not have been done%s%.300s", ms, c->fail.code ? "; last: " : "",
                 c->fail.code ? c->fail.text : "");
        call_end(c, RAFTDIR_EUNCERTAIN, text);
    } else if (maybe && !c->fail.code) {
        snprintf(text, sizeof text, "%s: no answer within %llu ms", c->attempts_n ? c->attempts[0].ep->text : "node", ms);
        call_end(c, RAFTDIR_ETIMEDOUT, text);
    } else if (c->fail.code) {
        /* A node's reason says more than an unreachable node's. */
        int code = c->fail.code == RAFTDIR_ENOTLEADER ? RAFTDIR_ENOQUORUM : c->fail.code;
        call_end(c, code, c->fail.text);
    } else if (!c->d->endpoints_n) {
        const struct err *problem = endpoints_problem(c->d);
        call_end(c, RAFTDIR_EUNAVAIL, problem ? problem->text : "no endpoint is known");
    } else {
        const struct endpoint *ep = c->attempts_n ? c->attempts[0].ep : c->d->endpoints[c->pinned >= 0 ? c->pinned : 0];
        snprintf(text, sizeof text, "%s: not connected within %llu ms%s%.300s", ep->text, ms, ep->err.code ? ": " : "",
                 ep->err.code ? ep->err.text : "");
        call_end(c, RAFTDIR_EUNAVAIL, text);
    }
}

/* --- Failures ------------------------------------------------------------------------------------------------------------------------ */

static void attempt_failed(struct call *c, const struct err *err, bool maybe, bool hard)
{
    wake_calls(c->d);
    c->maybe |= maybe;
    /* What a node answered is a better reason than that another couldn't be reached; that its state is too old, than what is the matter with the rest. */
    bool answered = err->code != RAFTDIR_EUNAVAIL && c->fail.code != RAFTDIR_ESTALE;
    if (answered || err->code == RAFTDIR_ESTALE || !c->fail.code || c->fail.code == RAFTDIR_EUNAVAIL)
        c->fail = *err;
    c->round_n++;
    c->round_hard += hard;
}

/* Without memory here no other node helps, and the user shall know at once. But a write that may have been done goes on, to learn whether it was. */
static void end_without_memory(struct call *c)
{
    if (!(c->flags & (CALL_WRITE | CALL_ONCE)) || !may_have_been_done(c))
        call_end(c, RAFTDIR_ENOMEM, NULL);
}

static void endpoint_failed(struct raftdir *d, struct endpoint *ep, uint64_t now, const struct err *err)
{
    wake_calls(d);
    ep->err = *err;
    ep->ping_open = false;
    bool was_ready = ep->link && ep->link->state == LINK_READY;
    bool no_memory = err->code == RAFTDIR_ENOMEM; /* here: no fault of the node's */
    /* Where memory was lacking, OpenSSL now and then finds a certificate bad, or doesn't send ours. What is really wrong is wrong twice. */
    bool doubtful = ep->link && ep->link->doubtful && !ep->doubted;
    ep->doubted = doubtful;
    ep->hard = !was_ready && !doubtful && (err->code == RAFTDIR_EPERM || err->code == RAFTDIR_EAUTH || err->code == RAFTDIR_EVERSION);
    if (was_ready)
        ep->failures = 0; /* it may be back at once */
    else if (!no_memory)
        ep->failures++;
    unsigned shift = ep->failures < 5 ? ep->failures : 5;
    uint64_t pause = ep->failures ? (uint64_t)RETRY_PAUSE_MS / 2 << shift : 0;
    ep->retry_at = now + (pause > RECONNECT_MAX_MS ? RECONNECT_MAX_MS : pause);
    for (struct call *c = d->calls; c; c = c->next)
        for (unsigned i = 0; !c->done && i < c->attempts_n;) {
            if (c->attempts[i].ep != ep) {
                i++;
                continue;
            }
            bool maybe = attempt_reached_wire(&c->attempts[i]);
            drop_attempt(c, i);
            attempt_failed(c, err, maybe, ep->hard);
            if (maybe && (c->flags & CALL_ONCE))
                call_give_up(c, now);
            else if (no_memory)
                end_without_memory(c);
        }
    link_close(&ep->link, true);
}

/* --- Sending ------------------------------------------------------------------------------------------------------------------------ */

static Raftdir__Client__ReadLevel wire_level(int level)
{
    return level == RAFTDIR_LOCAL     ? RAFTDIR__CLIENT__READ_LEVEL__LOCAL
           : level == RAFTDIR_SESSION ? RAFTDIR__CLIENT__READ_LEVEL__SESSION
                                      : RAFTDIR__CLIENT__READ_LEVEL__LINEARIZABLE;
}

/* The expiry is a varint of ten bytes whatever its value, so that it can be set in the packed body. */
static void write_set_expiry(struct call *c, uint64_t expires_ms)
{
    uint8_t *p = c->body + c->expires_pos;
    c->expires_ms = expires_ms;
    for (int i = 0; i < 9; i++, expires_ms >>= 7)
        p[i] = (uint8_t)(expires_ms & 0x7f) | 0x80;
    p[9] = (uint8_t)expires_ms;
    c->expires_set = true;
}

/* The link is ready: the request's frame. False: this attempt is not to be (dropped, or the call ended). */
static bool attempt_queue(struct call *c, unsigned i, uint64_t now)
{
    struct attempt *a = &c->attempts[i];
    struct raftdir *d = c->d;
    struct err err = {0};
    c->connected = true;
    if (c->expires_pos && !c->expires_set)
        write_set_expiry(c, d->log_time_ms + OP_TTL_DEFAULT_MS); /* once, for all its retries; the hello's answer told the log time */
    if (c->prepare && c->prepare(c) < 0) {
        call_end(c, RAFTDIR_ENOMEM, NULL);
        return false;
    }
    Raftdir__Client__ToNode head = head_of(a->request_id);
    head.has_level = 1;
    head.level = wire_level(c->level);
    /* A linearizable answer is of now, whatever is known of the state's age. */
    bool lookup = c->body_field == RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP || c->body_field == RAFTDIR__CLIENT__TO_NODE__BODY_MY_RIGHTS;
    bool list = c->body_field == RAFTDIR__CLIENT__TO_NODE__BODY_LIST || c->body_field == RAFTDIR__CLIENT__TO_NODE__BODY_VISIBLE;
    head.has_max_age_ms = (lookup || list) && c->level != RAFTDIR_LINEARIZABLE && c->max_age_ms;
    head.max_age_ms = c->max_age_ms;
    head.has_absent_max_age_ms = lookup && c->level == RAFTDIR_SESSION;
    head.absent_max_age_ms = c->absent_max_age_ms;
    bool beyond = c->min_index && c->min_incarnation == d->incarnation && c->min_index > d->index;
    uint64_t index = beyond ? c->min_index : d->index;
    if (c->level >= RAFTDIR_SESSION && index) {
        head.has_incarnation = head.has_min_index = 1;
        head.incarnation = d->incarnation;
        head.min_index = index;
    }
    /* The node gives up a little before us, so that its reason arrives: "surely not done" is worth more than no answer. */
    uint64_t left = c->deadline > now ? c->deadline - now : 1;
    left -= left / 4 < ANSWER_MARGIN_MS ? left / 4 : ANSWER_MARGIN_MS;
    head.has_timeout_ms = 1;
    head.timeout_ms = left > REQUEST_TIMEOUT_MAX_MS ? REQUEST_TIMEOUT_MAX_MS : (uint32_t)left;
    if (link_queue(a->ep->link, &head, c->body_field, c->body, c->body_len, &err) < 0) {
        call_end(c, err.code, err.text); /* too big, or no memory: no other node would help */
        return false;
    }
    a->end_pos = a->ep->link->queued;
    a->sent_at = now;
    c->sent_n++;
    return true;
}

/* An answer to an attempt that is over finds no attempt with its id: ids of a call come again after a million attempts. */
static uint64_t request_id(struct call *c)
{
    return c->serial << CALL_ATTEMPT_BITS | (c->attempts_made++ & ((1u << CALL_ATTEMPT_BITS) - 1));
}

/* A barrier that asks for nothing: any node answers it at once. */
static void send_ping(struct raftdir *d, struct endpoint *ep, uint64_t now)
{
    struct err err;
    ep->ping_at = now;
    ep->ping_open = true;
    ep->ping_id = d->next_serial++ << CALL_ATTEMPT_BITS;
    Raftdir__Client__ToNode head = head_of(ep->ping_id);
    head.has_level = 1;
    head.level = RAFTDIR__CLIENT__READ_LEVEL__LOCAL;
    link_queue(ep->link, &head, RAFTDIR__CLIENT__TO_NODE__BODY_BARRIER, NULL, 0, &err); /* best effort */
}

static void attempt_start(struct call *c, struct endpoint *ep, uint64_t now)
{
    struct raftdir *d = c->d;
    unsigned n = endpoint_number(d, ep);
    c->tried |= 1ull << n;
    struct err err = {0};
    if (!ep->link && link_open(d, ep, now, &err) < 0) {
        endpoint_failed(d, ep, now, &err);
        if (!c->done) {
            attempt_failed(c, &err, false, ep->hard);
            if (err.code == RAFTDIR_ENOMEM)
                end_without_memory(c);
        }
        return;
    }
    c->attempts[c->attempts_n++] = (struct attempt){.ep = ep, .request_id = request_id(c), .started_at = now};
    struct endpoint *warm = choose_warm(c, now);
    if (warm && link_open(d, warm, now, &err) < 0)
        endpoint_failed(d, warm, now, &err);
}

static void new_round(struct call *c, uint64_t now)
{
    endpoints_refresh(c->d, choose_nothing_reachable(c), now);
    c->tried = 0;
    c->round_n = c->round_hard = 0;
    c->next_at = now + RETRY_PAUSE_MS;
}

static void call_schedule(struct call *c, uint64_t now)
{
    struct raftdir *d = c->d;
    if (c->done)
        return;
    bool idle_stream = (c->flags & CALL_STREAM) && !c->waiting_since;
    if (c->decided && !c->attempts_n) {
        end_decided(c);
        return;
    }
    if (!idle_stream && now >= c->deadline) {
        call_give_up(c, now);
        return;
    }
    struct endpoint *other = idle_stream ? NULL : choose_second(c, now);
    if (other) {
        if (c->flags & CALL_SWITCH)
            while (c->attempts_n) {
                cancel_attempt(c, &c->attempts[c->attempts_n - 1]);
                c->attempts_n--;
            }
        attempt_start(c, other, now);
        if (c->done)
            return;
    }
    if (!c->attempts_n && !idle_stream) {
        /* A last attempt without time for an answer could only turn "surely not done" into "uncertain". */
        if ((c->flags & (CALL_WRITE | CALL_ONCE)) && c->fail.code && c->connected && !c->maybe && c->deadline - now < LAST_ATTEMPT_MS &&
            c->timeout_ms > 2 * LAST_ATTEMPT_MS) {
            call_give_up(c, now);
            return;
        }
        while (!c->attempts_n && now >= c->next_at) {
            struct endpoint *ep = choose_endpoint(c, now);
            if (ep) {
                attempt_start(c, ep, now);
                if (c->done)
                    return;
                continue;
            }
            bool useless = c->round_n && c->round_hard == c->round_n && choose_all_tried(c);
            if (useless || (!c->connected && d->unreachable_ms && now - c->started_at >= d->unreachable_ms && choose_nothing_reachable(c))) {
                call_give_up(c, now);
                return;
            }
            new_round(c, now);
        }
    }
    for (unsigned i = 0; !c->done && i < c->attempts_n;) {
        struct attempt *a = &c->attempts[i];
        if (a->end_pos || !a->ep->link || a->ep->link->state != LINK_READY || attempt_queue(c, i, now))
            i++;
    }
    for (unsigned i = 0; !c->done && i < c->attempts_n; i++)
        if (choose_ping(c, &c->attempts[i], now))
            send_ping(d, c->attempts[i].ep, now);
}

/* When this call wants to be scheduled again, if nothing happens. */
static uint64_t call_wakes(const struct call *c, uint64_t now)
{
    uint64_t at = c->deadline;
    if ((c->flags & CALL_STREAM) && !c->waiting_since)
        return UINT64_MAX;
    if (!c->attempts_n) {
        uint64_t next = c->next_at > now ? c->next_at : now + RETRY_PAUSE_MS;
        at = next < at ? next : at;
    } else if (c->flags & (CALL_HEDGE | CALL_SWITCH)) {
        uint64_t next = choose_wakes(c, now);
        at = next < at ? next : at;
    }
    return at;
}

/* --- Answers --------------------------------------------------------------------------------------------------------------------------- */

static bool replace_text(char **p, const char *s)
{
    char *copy = strdup(s ? s : "");
    if (!copy)
        return false;
    free(*p);
    *p = copy;
    return true;
}

static int on_hello(struct raftdir *d, struct endpoint *ep, const Raftdir__Client__FromNode *m, struct err *err)
{
    if (m->code < 0)
        return err_set(err, m->code, "%s: %s", ep->text, m->message && *m->message ? m->message : err_text(m->code));
    if (m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_HELLO)
        return err_set(err, RAFTDIR_EPROTO, "%s: no hello; is this a raftdir node?", ep->text);
    const Raftdir__Client__HelloResult *h = m->hello;
    if (!replace_text(&ep->node, h->node_name) || !replace_text(&ep->identity, h->identity) || !replace_text(&ep->role, h->role))
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    ep->node_id = h->node_id;
    if (h->has_cluster_id)
        d->cluster_id = h->cluster_id;
    ep->link->state = LINK_READY;
    wake_calls(d);
    ep->failures = 0;
    ep->hard = false;
    ep->err.code = 0;
    endpoints_answered(d, ep, h->site);
    if (!d->only_these && d->tls)
        for (size_t i = 0; i < h->n_endpoints && i < MEMBERS_MAX; i++)
            endpoints_learn(d, h->endpoints[i], h->n_endpoint_sites == h->n_endpoints ? h->endpoint_sites[i] : NULL);
    return 0;
}

static void remember(struct raftdir *d, struct endpoint *ep, const Raftdir__Client__FromNode *m, bool decided)
{
    if (m->has_log_time_ms && m->log_time_ms > d->log_time_ms)
        d->log_time_ms = m->log_time_ms;
    if (!decided)
        return;
    d->answer_ep = ep;
    d->answer_local = false;
    if (!m->has_incarnation || !m->has_index)
        return;
    d->answer_incarnation = m->incarnation;
    d->answer_index = m->index;
    d->answer_age_ms = m->has_age_ms && m->age_ms <= INT64_MAX ? (int64_t)m->age_ms : -1;
    if (m->incarnation != d->incarnation) {
        /* Indexes of different incarnations say nothing about each other: a new session begins. */
        d->incarnation = m->incarnation;
        d->index = m->index;
        if (m->has_log_time_ms)
            d->log_time_ms = m->log_time_ms;
    } else if (m->index > d->index)
        d->index = m->index;
}

/* Nothing that another node or a later moment could answer differently. */
bool call_code_is_final(const struct call *c, int code)
{
    switch (code) {
    case 0:
    case RAFTDIR_EINVAL:
    case RAFTDIR_ENAME:
    case RAFTDIR_ETOOBIG:
    case RAFTDIR_EACL:
    case RAFTDIR_EUNSUPPORTED:
    case RAFTDIR_EVERSION:
    case RAFTDIR_ENOTFOUND:
    case RAFTDIR_EEXIST:
    case RAFTDIR_ECONFLICT:
    case RAFTDIR_ERESERVED:
    case RAFTDIR_EOTHERSTORE:
    case RAFTDIR_EFENCED:
        return true;
    case RAFTDIR_EPERM:
    case RAFTDIR_EAUTH:
    case RAFTDIR_ENOSPC:
        return !may_have_been_done(c);
    case RAFTDIR_EBUSY:
        return (c->flags & (CALL_WRITE | CALL_HEDGE)) == 0; /* a membership change: the user decides */
    }
    return false;
}

/* A negative code that ended an attempt of a write: surely not done by that attempt? */
static bool surely_not_done(int code)
{
    switch (code) {
    case RAFTDIR_EPERM:
    case RAFTDIR_EAUTH:
    case RAFTDIR_ENOSPC:
    case RAFTDIR_ENOQUORUM:
    case RAFTDIR_ENOTLEADER:
    case RAFTDIR_ENOTREADY:
    case RAFTDIR_ELIMIT:
    case RAFTDIR_EBUSY:
    case RAFTDIR_EFOREIGN:
        return true;
    }
    return false;
}

/* The code of a decided answer: that of the inner result where there is one. */
static int code_of(const Raftdir__Client__FromNode *m, const char **text_r)
{
    *text_r = m->message;
    if (m->code)
        return m->code;
    if (m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_WRITE) {
        *text_r = m->write->message;
        return m->write->code;
    }
    if (m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_MEMBER) {
        *text_r = m->member->message;
        return m->member->code;
    }
    return 0;
}

/* Log time goes on by itself where nothing is written, but a cluster that was restarted goes on from its last entry. What this handle knows may then be ahead by more
 * than an expiry is allowed to be, and every write be refused for it (RAFTDIR_EINVAL, and not kept): believe the answer. */
static bool expires_too_late(struct call *c, int code, uint64_t log_time_ms)
{
    if (code != RAFTDIR_EINVAL || !c->expires_pos || !log_time_ms || c->expires_ms <= log_time_ms || c->expires_ms - log_time_ms <= OP_TTL_MAX_MS)
        return false;
    c->d->log_time_ms = log_time_ms;
    /* A copy that a node sends to another leader must not be in time where the first wasn't. */
    return c->expires_ms - log_time_ms > OP_TTL_MAX_MS + REQUEST_TIMEOUT_MAX_MS;
}

/* The operation id was no good when it was to be applied: expired, or too far from that. Sent only once: nothing was done, and the write begins anew with the log
 * time of the answer. */
static bool begin_anew(struct call *c, uint64_t log_time_ms)
{
    struct err err;
    if (c->sent_n != 1 || c->anew || !log_time_ms || lib_random(c->body + c->op_id_pos, OP_ID_LEN, &err) < 0)
        return false;
    write_set_expiry(c, log_time_ms + OP_TTL_DEFAULT_MS);
    c->anew = true;
    c->sent_n = 0;
    c->tried = 0;
    return true;
}

static void end_decided(struct call *c)
{
    call_end(c, RAFTDIR_EUNCERTAIN, "the write was decided as sent to a node that is gone now and knew us under another identity; whether it was done can't be asked there any more");
}

static void on_answer(struct call *c, unsigned i, Raftdir__Client__FromNode *m, uint64_t now)
{
    struct raftdir *d = c->d;
    struct endpoint *ep = c->attempts[i].ep;
    const char *text;
    int code = code_of(m, &text);
    if (code > 0)
        code = RAFTDIR_EPROTO;
    bool refused = c->body_field == RAFTDIR__CLIENT__TO_NODE__BODY_WRITE && !m->code && code < 0;
    bool late = refused && m->has_log_time_ms && expires_too_late(c, code, m->log_time_ms);
    if (late && begin_anew(c, m->log_time_ms)) {
        drop_attempt(c, i);
        wake_calls(d);
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    if (code == RAFTDIR_EEXPIRED && (c->flags & CALL_WRITE)) {
        uint64_t log_time = m->has_log_time_ms ? m->log_time_ms : d->log_time_ms;
        drop_attempt(c, i);
        if (begin_anew(c, log_time)) {
            wake_calls(d);
            raftdir__client__from_node__free_unpacked(m, NULL);
            return;
        }
        call_end(c, c->sent_n > 1 ? RAFTDIR_EUNCERTAIN : RAFTDIR_EEXPIRED,
                 c->sent_n > 1 ? "the operation id expired before an answer came: it may or may not have been done" : text);
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    if (refused && code == RAFTDIR_EPERM && c->sent_n > 1) {
        /* "The operation id is somebody else's": ours, under the identity that another node knows us by. Decided, and that attempt has the result. */
        drop_attempt(c, i);
        c->maybe = c->decided = true;
        wake_calls(d);
        uint64_t grace = now + 2ull * d->patience_ms; /* for a node that is slow; one that is stopped isn't waited for */
        c->deadline = grace < c->deadline ? grace : c->deadline;
        if (!c->attempts_n)
            end_decided(c);
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    if (code == RAFTDIR_EFOREIGN && m->has_incarnation && m->incarnation > d->incarnation && d->incarnation) {
        /* The cluster was restored. What we had seen is of another history: begin a session in the new one. */
        d->incarnation = m->incarnation;
        d->index = 0;
        c->min_index = 0;
        c->tried &= ~(1ull << endpoint_number(d, ep));
    }
    /* This attempt is over, unless it is a stream that goes on. */
    struct attempt a = c->attempts[i];
    bool final = refused || call_code_is_final(c, code) || (c->is_final && c->is_final(c, m, code));
    if (final)
        choose_answered(c, i, now);
    if (code < 0 && !refused && !final) {
        /* Asked again without its own attempt: what remains may still make it uncertain. */
        drop_attempt(c, i);
        bool maybe = (c->flags & CALL_WRITE) ? !surely_not_done(code) : (c->flags & CALL_ONCE) && !surely_not_done(code);
        final = call_code_is_final(c, code); /* EPERM and the like, with no other attempt under way */
        if (!final) {
            struct err err;
            err_set(&err, code, "%s: %s", ep->node && *ep->node ? ep->node : ep->text, text && *text ? text : err_text(code));
            attempt_failed(c, &err, maybe, code == RAFTDIR_ENOTREADY || code == RAFTDIR_EPERM || code == RAFTDIR_EAUTH);
            if (code == RAFTDIR_ENOQUORUM || code == RAFTDIR_ENOTREADY || code == RAFTDIR_EFAILED || code == RAFTDIR_ESTALE)
                ep->slow_until = now + SLOW_MS;
            if (maybe && (c->flags & CALL_ONCE))
                call_give_up(c, now);
            raftdir__client__from_node__free_unpacked(m, NULL);
            return;
        }
    }
    remember(d, ep, m, true);
    c->answered_by = ep;
    if ((c->flags & CALL_STREAM) && code == 0) {
        bool more = m->has_more && m->more;
        c->last_frame_at = now;
        c->deadline = now + c->timeout_ms;
        c->on_frame(c, m);
        if (!more && !c->done) {
            for (unsigned k = 0; k < c->attempts_n; k++)
                if (c->attempts[k].request_id == a.request_id)
                    drop_attempt(c, k);
            call_end(c, 0, NULL);
        }
        return;
    }
    /* Over: don't cancel what has just been answered. */
    for (unsigned k = 0; k < c->attempts_n; k++)
        if (c->attempts[k].request_id == a.request_id) {
            drop_attempt(c, k);
            break;
        }
    c->answer = m;
    call_end(c, code, text);
}

/* Unpacking fails without saying whether bytes or memory are to blame. What it gives is freed with free, as protobuf-c's own allocator does. */
static void *unpack_alloc(void *no_memory, size_t size)
{
    void *p = malloc(size);
    if (!p)
        *(bool *)no_memory = true;
    return p;
}

static void unpack_free(void *no_memory, void *p)
{
    (void)no_memory;
    free(p);
}

static int on_frame(struct raftdir *d, struct endpoint *ep, const uint8_t *frame, size_t len, uint64_t now, struct err *err)
{
    bool no_memory = false;
    ProtobufCAllocator allocator = {unpack_alloc, unpack_free, &no_memory};
    Raftdir__Client__FromNode *m = raftdir__client__from_node__unpack(&allocator, len, frame);
    if (!m && no_memory)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    if (!m)
        return err_set(err, RAFTDIR_EPROTO, "%s: an answer that can't be read (%zu bytes)", ep->text, len);
    if (m->version > FRAME_VERSION) {
        uint32_t version = m->version;
        raftdir__client__from_node__free_unpacked(m, NULL);
        return err_set(err, RAFTDIR_EVERSION, "%s: the node speaks protocol version %u, this library %d: upgrade it", ep->text, version, FRAME_VERSION);
    }
    ep->last_rx = now;
    ep->ping_open = false;
    if (m->request_id != ep->ping_id) {
        ep->last_answer = now;
        if (m->code == 0 || m->code == RAFTDIR_ENOTFOUND)
            ep->slow_until = 0;
    }
    if (ep->link->state == LINK_HELLO) {
        int rc = 0;
        if (m->request_id == ep->link->hello_id)
            rc = on_hello(d, ep, m, err);
        else if (m->code < 0)
            rc = err_set(err, m->code, "%s: %s", ep->text, m->message && *m->message ? m->message : err_text(m->code));
        remember(d, ep, m, false);
        raftdir__client__from_node__free_unpacked(m, NULL);
        return rc;
    }
    struct call *c = call_of_request(d, m->request_id);
    for (unsigned i = 0; c && i < c->attempts_n; i++)
        if (c->attempts[i].ep == ep && c->attempts[i].request_id == m->request_id && c->attempts[i].end_pos) {
            on_answer(c, i, m, now);
            return 0;
        }
    remember(d, ep, m, false);
    raftdir__client__from_node__free_unpacked(m, NULL); /* late: its call is over */
    return 0;
}

/* --- The links ------------------------------------------------------------------------------------------------------------------------------ */

static int say_hello(struct raftdir *d, struct endpoint *ep, struct err *err)
{
    Raftdir__Client__Hello hello = RAFTDIR__CLIENT__HELLO__INIT;
    uint8_t body[512];
    hello.software = d->software;
    if (raftdir__client__hello__get_packed_size(&hello) > sizeof body)
        hello.software = NULL;
    size_t len = raftdir__client__hello__pack(&hello, body);
    ep->link->hello_id = d->next_serial++ << CALL_ATTEMPT_BITS;
    Raftdir__Client__ToNode head = head_of(ep->link->hello_id);
    return link_queue(ep->link, &head, RAFTDIR__CLIENT__TO_NODE__BODY_HELLO, body, len, err);
}

void engine_io(struct raftdir *d, struct endpoint *ep, uint64_t now)
{
    struct err err = {0};
    int rc = link_progress(ep, &err);
    if (rc == 0 && ep->link->state == LINK_HELLO && !ep->link->hello_id) {
        if ((rc = say_hello(d, ep, &err)) == 0)
            rc = link_progress(ep, &err);
    }
    /* Whatever came before the link broke still counts. */
    const uint8_t *frame;
    size_t len;
    int got = 0;
    struct err frame_err = {0};
    while (ep->link->state >= LINK_HELLO && (got = frame_reader_next(&ep->link->in, CLIENT_FRAME_LEN_MAX, &frame, &len, &frame_err)) > 0)
        if ((got = on_frame(d, ep, frame, len, now, &frame_err)) < 0)
            break;
    if (got < 0) {
        if (got == RAFTDIR_ETOOBIG)
            err_set(&frame_err, RAFTDIR_EPROTO, "%s: an answer over the limit of %u bytes; is this a raftdir node?", ep->text, CLIENT_FRAME_LEN_MAX);
        endpoint_failed(d, ep, now, &frame_err);
    } else if (rc < 0)
        endpoint_failed(d, ep, now, &err);
    else if (ep->link->state != LINK_READY && now >= ep->link->deadline) {
        err_set(&err, RAFTDIR_EUNAVAIL, "%s: no %s within %d ms", ep->text,
                ep->link->state == LINK_CONNECTING  ? "connection"
                : ep->link->state == LINK_HANDSHAKE ? "TLS handshake"
                                                    : "answer to our hello",
                LINK_TIMEOUT_MS);
        endpoint_failed(d, ep, now, &err);
    }
}

void engine_schedule(struct raftdir *d, uint64_t now)
{
    if (now < d->schedule_at)
        return;
    /* Scheduling may wake calls again: a link that breaks as soon as it is opened ends attempts of calls that were looked at already. */
    d->schedule_at = UINT64_MAX;
    if (d->sources_n && d->calls)
        endpoints_refresh(d, false, now);
    for (struct call *c = d->calls; c; c = c->next)
        engine_schedule_one(c, now);
}

void engine_schedule_one(struct call *c, uint64_t now)
{
    call_schedule(c, now);
    if (c->done)
        return;
    uint64_t at = call_wakes(c, now);
    if (at < c->d->schedule_at)
        c->d->schedule_at = at;
}

void engine_send(struct raftdir *d, uint64_t now)
{
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct endpoint *ep = d->endpoints[i];
        if (ep->link && ep->link->state == LINK_READY && ep->link->out_start < ep->link->out_end)
            engine_io(d, ep, now);
    }
}

int call_credit(struct call *c, uint32_t rows)
{
    struct err err = {0};
    Raftdir__Client__Credit credit = RAFTDIR__CLIENT__CREDIT__INIT;
    uint8_t body[16];
    credit.rows = rows;
    size_t len = raftdir__client__credit__pack(&credit, body);
    for (unsigned i = 0; i < c->attempts_n; i++) {
        const struct attempt *a = &c->attempts[i];
        if (!a->end_pos || !a->ep->link || a->ep->link->state != LINK_READY)
            continue;
        Raftdir__Client__ToNode head = head_of(a->request_id);
        if (link_queue(a->ep->link, &head, RAFTDIR__CLIENT__TO_NODE__BODY_CREDIT, body, len, &err) < 0)
            return err.code;
    }
    return 0;
}

int call_run(struct raftdir *d, struct call **cp)
{
    struct call *c = *cp;
    call_start(c);
    int code = call_wait(c);
    /* Only now: the arguments of this call may have been the results of the one before. */
    if (d->kept)
        raftdir__client__from_node__free_unpacked(d->kept, NULL);
    d->kept = c->answer;
    c->answer = NULL;
    d->err = c->result;
    call_destroy(cp);
    return code;
}
