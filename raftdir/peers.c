/* peers.c - the members and the connections to and from them (peers.h).
 *
 * A link is one connection. Dialled: connect, TLS, certificate name, our Hello, their Hello, ready: it carries what we send. Accepted: TLS, their Hello, ours,
 * ready: it carries what they send. Until a link is ready it may say nothing but Hello, within HANDSHAKE_TIMEOUT_MS, and there may be only
 * STRANGERS_MAX accepted ones of that kind at a time.
 * An accepted connection whose Hello asks for an image is answered and handed over (peers_image.c); it never becomes the member's.
 * A refusal closes the connection without a word: the other end sees only the end, its operator reads the reason here. Anything in a later frame that
 * doesn't fit what Hello said (garbage, another cluster, sender or receiver) ends the connection too.
 *
 * Dialling again: after BACKOFF_MIN_MS, doubled each time up to BACKOFF_MAX_MS, with a jitter of a quarter either way that depends on the two ids and the
 * number of the attempt (two nodes don't move in step, and a simulation is repeatable). A connection that lasted CONN_LASTING_MS starts it over. When a
 * member's own connection comes in, it is up: it is dialled at once. TCP_USER_TIMEOUT is short, and so is the time to connect, so that after a partition
 * has healed nobody waits for the kernel's long pauses between retransmissions. */
#include "peers_internal.h"
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BACKOFF_MIN_MS 50
#define BACKOFF_MAX_MS 1000
#define CONN_LASTING_MS 2000
#define PEER_USER_TIMEOUT_MS 5000
#define PEER_CONNECT_TIMEOUT_MS 1000
#define PEER_CONN_LEN_MAX (512u << 10)
#define PEER_NOTSENT_LEN (128u << 10)
#define STRANGERS_MAX 128
#define LOG_MINUTE_MS 60000

static void dial(struct peers *p, struct peer_member *m);

uint64_t peers_now(const struct peers *p)
{
    return uv_now(p->o.loop);
}

struct peer_member *peers_find(struct peers *p, uint64_t id)
{
    for (size_t i = 0; i < p->members_n; i++) {
        if (p->members[i]->who.id == id)
            return p->members[i];
    }
    return NULL;
}

/* --- The log --- */

static uint64_t text_key(const char *s, unsigned cause)
{
    uint64_t h = 14695981039346656037ull ^ cause; /* FNV-1a */
    const char *end = strrchr(s, ':');            /* an address without its port */
    for (; *s && s != end; s++)
        h = (h ^ (uint8_t)*s) * 1099511628211ull;
    return h ? h : 1;
}

/* When was this last said about that address? The oldest entry makes room. */
static uint64_t *stranger_slot(struct peers *p, uint64_t key)
{
    struct peer_stranger *oldest = &p->strangers[0];
    for (size_t i = 0; i < STRANGERS_KEPT; i++) {
        if (p->strangers[i].key == key)
            return &p->strangers[i].logged_ms;
        if (p->strangers[i].logged_ms < oldest->logged_ms)
            oldest = &p->strangers[i];
    }
    oldest->key = key;
    oldest->logged_ms = 0;
    return &oldest->logged_ms;
}

void peers_log(struct peers *p, struct peer_member *m, const char *stranger, enum peer_cause cause, enum logger_level level, const char *fmt, ...)
{
    if (!p->o.log || p->stopping)
        return;
    uint64_t now = peers_now(p) + 1; /* 0: never */
    uint64_t *last = m ? &m->logged_ms[cause] : stranger_slot(p, text_key(stranger, cause));
    if (*last && now < *last + LOG_MINUTE_MS)
        return;
    *last = now;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->o.log(p->o.data, level, text);
}

/* --- Links --- */

static void closed_one(struct peers *p)
{
    assert(p->open > 0);
    if (--p->open > 0 || !p->stopping)
        return;
    void (*stopped)(void *) = p->stopped;
    void *data = p->stopped_data;
    SSL_CTX_free(p->o.tls);
    free(p);
    if (stopped)
        stopped(data);
}

static struct peer_link *link_create(struct peers *p, struct peer_member *m)
{
    struct peer_link *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->p = p;
    l->m = m;
    l->accepted = !m;
    l->deadline_ms = UINT64_MAX;
    return l;
}

static void link_enlist(struct peer_link *l)
{
    struct peers *p = l->p;
    l->next = p->links;
    if (l->next)
        l->next->prev = l;
    p->links = l;
    p->open++;
    if (l->accepted)
        p->strangers_n++;
}

void peers_link_part(struct peer_link *l)
{
    struct peers *p = l->p;
    struct peer_member *m = l->m;
    if (l->parted)
        return;
    l->parted = true;
    if (l->accepted && !l->ready)
        p->strangers_n--;
    l->deadline_ms = UINT64_MAX;
    l->m = NULL;
    if (!m)
        return;
    if (m->in == l)
        m->in = NULL;
    if (m->out != l)
        return;
    m->out = NULL;
    peer_queue_clear(&m->queue);
    uint64_t now = peers_now(p);
    if (l->ready && now - m->ready_ms >= CONN_LASTING_MS)
        m->attempts = 0;
    uint64_t delay = BACKOFF_MIN_MS;
    for (unsigned i = 0; i < m->attempts && delay < BACKOFF_MAX_MS; i++)
        delay *= 2;
    if (delay > BACKOFF_MAX_MS)
        delay = BACKOFF_MAX_MS;
    uint64_t mix = (p->o.self_id * 0x9e3779b97f4a7c15ull) ^ (m->who.id * 0xc2b2ae3d27d4eb4full) ^ ((uint64_t)m->attempts * 0x165667b19e3779f9ull);
    mix ^= mix >> 29;
    mix *= 0xbf58476d1ce4e5b9ull;
    mix ^= mix >> 32;
    m->dial_ms = now + delay - delay / 4 + mix % (delay / 2 + 1);
    if (m->attempts < 16)
        m->attempts++;
}

void peers_link_refuse(struct peer_link *l, int code, const char *why)
{
    struct conn *c = l->c;
    peers_link_part(l);
    conn_close(c, code, why);
    peers_schedule(l->p);
}

static void on_open(struct conn *c)
{
    struct peer_link *l = conn_data(c);
    struct peers *p = l->p;
    if (p->stopping || l->parted)
        return;
    if (l->accepted) {
        l->deadline_ms = peers_now(p) + HANDSHAKE_TIMEOUT_MS;
        peers_schedule(p);
        return;
    }
    if (!peers_cert_fits(l, l->m)) {
        peers_link_refuse(l, RAFTDIR_EAUTH, "another certificate than the member's");
        return;
    }
    int rc = peers_hello_send(p, c, l->m->who.id, false);
    if (rc) {
        peers_link_refuse(l, rc, "hello could not be sent");
        return;
    }
    l->deadline_ms = peers_now(p) + HANDSHAKE_TIMEOUT_MS;
    peers_schedule(p);
}

static void dialled_ready(struct peer_link *l)
{
    struct peers *p = l->p;
    struct peer_member *m = l->m;
    l->ready = true;
    l->deadline_ms = UINT64_MAX;
    m->ready_ms = peers_now(p);
    peer_queue_clear(&m->queue);
    peers_log(p, m, NULL, CAUSE_CONNECTED, LOGGER_INFO, "connected to member %" PRIu64 " (%s)", m->who.id, conn_peer_text(l->c));
    peers_schedule(p);
}

static void accepted_ready(struct peer_link *l, struct peer_member *m)
{
    struct peers *p = l->p;
    int rc = peers_hello_send(p, l->c, m->who.id, false);
    if (rc) {
        peers_link_refuse(l, rc, "hello could not be sent");
        return;
    }
    struct peer_link *before = m->in;
    if (before) {
        peers_log(p, m, NULL, CAUSE_REPLACED, LOGGER_INFO,
                  "member %" PRIu64 " connected again from %s; the connection from %s is dropped. If this goes on: two processes act as this member", m->who.id,
                  conn_peer_text(l->c), conn_peer_text(before->c));
        peers_link_refuse(before, 0, "replaced by a newer connection");
    }
    p->strangers_n--;
    l->ready = true;
    l->deadline_ms = UINT64_MAX;
    l->m = m;
    m->in = l;
    if (!m->out && m->dial_ms > peers_now(p) + BACKOFF_MIN_MS)
        m->dial_ms = peers_now(p); /* it is up */
    peers_schedule(p);
}

static void on_frame(struct conn *c, const uint8_t *frame, size_t len)
{
    struct peer_link *l = conn_data(c);
    struct peers *p = l->p;
    if (p->stopping || l->parted)
        return;
    if (!l->ready) {
        struct peer_member *m = NULL;
        Raftdir__Peer__Frame *image = NULL;
        int rc = peers_hello_check(l, frame, len, &m, &image);
        if (rc)
            peers_link_refuse(l, rc, "hello refused");
        else if (image)
            peers_image_begin(l, m, image);
        else if (l->accepted)
            accepted_ready(l, m);
        else
            dialled_ready(l);
        return;
    }
    if (!l->accepted)
        return; /* only Hello comes this way; a later version may say more */
    struct peer_frame_head head;
    if (!peer_frame_head(frame, len, &head)) {
        peers_log(p, l->m, NULL, CAUSE_GARBAGE, LOGGER_WARN, "member %" PRIu64 " (%s) sent a malformed frame of %zu bytes; its connection is closed", l->m->who.id,
                  conn_peer_text(c), len);
        peers_link_refuse(l, RAFTDIR_EPROTO, "malformed frame");
        return;
    }
    if (head.version != PEER_FRAME_VERSION || head.cluster_id != p->o.cluster_id || head.incarnation != p->o.incarnation || head.from != l->m->who.id ||
        head.to != p->o.self_id) {
        peers_log(p, l->m, NULL, CAUSE_TO, LOGGER_WARN,
                  "member %" PRIu64 " (%s) sent a frame of version %" PRIu64 ", cluster %016" PRIx64 ", incarnation %" PRIu64 ", from %" PRIu64 " to %" PRIu64
                  " after a Hello that said otherwise; its connection is closed",
                  l->m->who.id, conn_peer_text(c), head.version, head.cluster_id, head.incarnation, head.from, head.to);
        peers_link_refuse(l, RAFTDIR_EFOREIGN, "frame doesn't fit its connection");
        return;
    }
    if (head.body == RAFTDIR__PEER__FRAME__BODY_HELLO)
        return;
    p->o.on_frame(p->o.data, l->m->who.id, frame, len);
}

static void on_drain(struct conn *c)
{
    struct peer_link *l = conn_data(c);
    if (!l->p->stopping && !l->parted && !l->accepted && l->ready)
        peer_queue_drain(&l->m->queue, c, peers_now(l->p));
}

static void on_close(struct conn *c, int code, const char *why)
{
    struct peer_link *l = conn_data(c);
    struct peers *p = l->p;
    struct peer_member *m = l->m;
    if (m && !l->accepted) {
        if (l->ready)
            peers_log(p, m, NULL, CAUSE_LOST, LOGGER_INFO, "lost the connection to member %" PRIu64 " (%s): %s", m->who.id, conn_peer_text(c), why);
        else if (l->deadline_ms != UINT64_MAX)
            peers_log(p, m, NULL, CAUSE_SILENT, LOGGER_WARN,
                      "member %" PRIu64 " (%s) took no Hello: %s. If this lasts, its log says why it refuses this node", m->who.id, conn_peer_text(c), why);
        else if (code == RAFTDIR_EAUTH || code == RAFTDIR_EPROTO)
            peers_log(p, m, NULL, CAUSE_HANDSHAKE, LOGGER_WARN,
                      "member %" PRIu64 " (%s): %s. Check the CA file and the certificates of both nodes", m->who.id, conn_peer_text(c), why);
        else
            peers_log(p, m, NULL, CAUSE_CONNECT, LOGGER_WARN, "member %" PRIu64 " can't be reached: %s (%s)", m->who.id, why, conn_peer_text(c));
    } else if (l->accepted && !l->ready && !l->parted) {
        const char *who = conn_peer_text(c);
        if (code == RAFTDIR_EAUTH)
            peers_log(p, NULL, who, CAUSE_HANDSHAKE, LOGGER_WARN, "refused a connection from %s: %s. Only nodes with a certificate of this cluster's CA are let in", who, why);
        else if (code)
            peers_log(p, NULL, who, CAUSE_GARBAGE, LOGGER_INFO, "a connection from %s ended before its Hello: %s", who, why);
    }
    peers_link_part(l);
    if (l->prev)
        l->prev->next = l->next;
    else
        p->links = l->next;
    if (l->next)
        l->next->prev = l->prev;
    if (l->image)
        raftdir__peer__frame__free_unpacked(l->image, NULL);
    free(l);
    if (!p->stopping)
        peers_schedule(p);
    closed_one(p);
}

static const struct conn_events events = {.on_open = on_open, .on_frame = on_frame, .on_drain = on_drain, .on_close = on_close};

static struct conn_options conn_options_for(struct peers *p, struct peer_link *l)
{
    return (struct conn_options){.tls = p->o.tls,
                                 .frame_len_max = PEER_FRAME_LEN_MAX,
                                 .out_len_max = PEER_CONN_LEN_MAX,
                                 .data = l,
                                 .user_timeout_ms = PEER_USER_TIMEOUT_MS,
                                 .connect_timeout_ms = PEER_CONNECT_TIMEOUT_MS,
                                 .notsent_len = PEER_NOTSENT_LEN};
}

static void dial(struct peers *p, struct peer_member *m)
{
    struct peer_link *l = link_create(p, m);
    if (!l) {
        m->dial_ms = peers_now(p) + BACKOFF_MAX_MS;
        return;
    }
    struct conn_options o = conn_options_for(p, l);
    struct err err;
    if (conn_connect(p->o.loop, m->host, m->port, &o, &events, &l->c, &err)) {
        peers_log(p, m, NULL, CAUSE_CONNECT, LOGGER_WARN, "member %" PRIu64 " can't be reached: %s", m->who.id, err.text);
        free(l);
        m->dial_ms = peers_now(p) + BACKOFF_MAX_MS;
        return;
    }
    m->out = l;
    link_enlist(l);
}

static void connection_cb(uv_stream_t *listener, int status)
{
    struct peers *p = listener->data;
    if (status < 0) {
        peers_log(p, NULL, "accept", CAUSE_CROWD, LOGGER_WARN, "can't accept a connection: %s", uv_strerror(status));
        return;
    }
    struct peer_link *l = link_create(p, NULL);
    struct conn_options o = conn_options_for(p, l);
    struct err err = {.text = "out of memory"};
    if (!l || conn_accept(p->o.loop, listener, &o, &events, &l->c, &err)) {
        /* libuv asks again for the same connection when the next one comes. */
        peers_log(p, NULL, "accept", CAUSE_CROWD, LOGGER_WARN, "can't accept a connection: %s", err.text);
        free(l);
        return;
    }
    link_enlist(l);
    if (p->stopping) {
        peers_link_refuse(l, RAFTDIR_ECANCELED, "stopping");
    } else if (p->strangers_n > STRANGERS_MAX) {
        peers_log(p, NULL, "crowd", CAUSE_CROWD, LOGGER_WARN, "refused a connection from %s: %u others have not said who they are yet", conn_peer_text(l->c),
                  (unsigned)STRANGERS_MAX);
        peers_link_refuse(l, RAFTDIR_ELIMIT, "too many connections without Hello");
    }
}

/* --- Time --- */

static void tick_cb(uv_timer_t *t)
{
    struct peers *p = t->data;
    uint64_t now = peers_now(p);
    for (struct peer_link *l = p->links, *next; l; l = next) {
        next = l->next; /* closing only marks: on_close comes from the loop */
        if (l->deadline_ms > now)
            continue;
        if (l->image) {
            peers_image_go_on(l);
            continue;
        }
        if (l->accepted) {
            peers_log(p, NULL, conn_peer_text(l->c), CAUSE_SILENT, LOGGER_WARN, "%s (certificate \"%s\") connected, but said no Hello within %d ms",
                      conn_peer_text(l->c), conn_peer_cert(l->c), HANDSHAKE_TIMEOUT_MS);
        } else {
            peers_log(p, l->m, NULL, CAUSE_SILENT, LOGGER_WARN, "member %" PRIu64 " (%s) didn't answer Hello within %d ms: is it stopped or overloaded?",
                      l->m->who.id, conn_peer_text(l->c), HANDSHAKE_TIMEOUT_MS);
        }
        struct conn *c = l->c;
        peers_link_part(l);
        conn_close(c, RAFTDIR_ETIMEDOUT, "no Hello");
    }
    for (size_t i = 0; i < p->members_n; i++) {
        struct peer_member *m = p->members[i];
        if (!m->out) {
            if (m->dial_ms <= now)
                dial(p, m);
            continue;
        }
        if (!m->out->ready)
            continue;
        peer_queue_tick(&m->queue, m->out->c, now);
        if (m->queue.stalled && !m->stall_told)
            peers_log(p, m, NULL, CAUSE_STUCK, LOGGER_WARN, "member %" PRIu64 " (%s) takes nothing: is it stopped, or the network broken? What waited for it is dropped",
                      m->who.id, conn_peer_text(m->out->c));
        m->stall_told = m->queue.stalled;
    }
    peers_schedule(p);
}

void peers_schedule(struct peers *p)
{
    if (p->stopping)
        return;
    uint64_t now = peers_now(p), at = UINT64_MAX;
    for (struct peer_link *l = p->links; l; l = l->next) {
        if (l->deadline_ms < at)
            at = l->deadline_ms;
    }
    for (size_t i = 0; i < p->members_n; i++) {
        struct peer_member *m = p->members[i];
        uint64_t want = UINT64_MAX;
        if (!m->out)
            want = m->dial_ms;
        else if (m->out->ready)
            want = peer_queue_tick(&m->queue, m->out->c, now);
        if (want < at)
            at = want;
    }
    if (at == UINT64_MAX)
        uv_timer_stop(&p->tick);
    else
        uv_timer_start(&p->tick, tick_cb, at > now ? at - now : 0, 0);
}

/* --- Members --- */

static bool host_port_split(const char *s, char *host_r, size_t host_size, char *port_r, size_t port_size)
{
    const char *colon = strrchr(s, ':');
    if (!colon || colon == s || !colon[1])
        return false;
    const char *host = s;
    size_t len = (size_t)(colon - s);
    if (host[0] == '[' && host[len - 1] == ']') {
        host++;
        len -= 2;
    }
    if (len == 0 || len >= host_size || strlen(colon + 1) >= port_size)
        return false;
    memcpy(host_r, host, len);
    host_r[len] = 0;
    strcpy(port_r, colon + 1);
    return true;
}

static void link_drop(struct peer_link *l, const char *why)
{
    if (!l)
        return;
    struct conn *c = l->c;
    peers_link_part(l);
    conn_close(c, 0, why);
}

static void member_remove(struct peers *p, size_t at)
{
    struct peer_member *m = p->members[at];
    link_drop(m->out, "no longer a member");
    link_drop(m->in, "no longer a member");
    peer_queue_clear(&m->queue);
    free(m);
    p->members[at] = p->members[--p->members_n];
}

static bool same_identity(const struct node_peer *a, const struct node_peer *b)
{
    return a->id == b->id && strcmp(a->cert_name, b->cert_name) == 0 && memcmp(a->uuid, b->uuid, NODE_UUID_LEN) == 0;
}

/* False: the address is none, or no memory; tried again with the next list. */
static bool member_set(struct peers *p, const struct node_peer *who)
{
    struct peer_member *m = peers_find(p, who->id);
    char host[sizeof m->host], port[sizeof m->port];
    if (!host_port_split(who->host_port, host, sizeof host, port, sizeof port)) {
        peers_log(p, m, who->host_port, CAUSE_CONNECT, LOGGER_ERROR, "member %" PRIu64 " has an address that is not host:port: \"%s\"", who->id, who->host_port);
        return false;
    }
    if (!m) {
        if (p->members_n == MEMBERS_MAX || !(m = calloc(1, sizeof *m)))
            return false;
        peer_queue_init(&m->queue);
        m->dial_ms = peers_now(p);
        p->members[p->members_n++] = m;
    } else if (strcmp(m->who.host_port, who->host_port) != 0) {
        link_drop(m->out, "the member's address has changed");
        m->attempts = 0;
        m->dial_ms = peers_now(p);
    }
    m->who = *who;
    strcpy(m->host, host);
    strcpy(m->port, port);
    return true;
}

void peers_members(struct peers *p, const struct node_peer *members, size_t n)
{
    if (p->stopping)
        return;
    for (size_t i = p->members_n; i-- > 0;) {
        bool stays = false;
        for (size_t k = 0; k < n && !stays; k++)
            stays = same_identity(&members[k], &p->members[i]->who) && members[k].id != p->o.self_id;
        if (!stays)
            member_remove(p, i);
    }
    for (size_t k = 0; k < n; k++) {
        if (members[k].id != p->o.self_id)
            member_set(p, &members[k]);
    }
    peers_schedule(p);
}

void peers_send(struct peers *p, uint64_t to, const uint8_t *frame, size_t len)
{
    struct peer_member *m = p->stopping ? NULL : peers_find(p, to);
    if (!m)
        return;
    if (!m->out || !m->out->ready) {
        m->queue.dropped++;
        return;
    }
    peer_queue_send(&m->queue, m->out->c, peers_now(p), frame, len);
    if (!uv_is_active((uv_handle_t *)&p->tick))
        peers_schedule(p);
}

bool peers_connected(struct peers *p, uint64_t id)
{
    struct peer_member *m = peers_find(p, id);
    return m && (m->in || (m->out && m->out->ready));
}

const char *peers_client_endpoint(struct peers *p, uint64_t id)
{
    struct peer_member *m = peers_find(p, id);
    return m && m->client_endpoint[0] ? m->client_endpoint : NULL;
}

uint64_t peers_dropped(struct peers *p, uint64_t id)
{
    struct peer_member *m = peers_find(p, id);
    return m ? m->queue.dropped : 0;
}

unsigned peers_port(const struct peers *p)
{
    return p->port;
}

void peers_tls_set(struct peers *p, SSL_CTX *tls)
{
    SSL_CTX_up_ref(tls);
    SSL_CTX_free(p->o.tls);
    p->o.tls = tls;
}

/* --- Start and stop --- */

static void handle_closed(uv_handle_t *h)
{
    closed_one(h->data);
}

void peers_stop(struct peers **peers, void (*stopped)(void *data), void *data)
{
    struct peers *p = *peers;
    *peers = NULL;
    if (!p)
        return;
    while (p->members_n)
        member_remove(p, p->members_n - 1);
    p->stopping = true;
    p->stopped = stopped;
    p->stopped_data = data;
    for (struct peer_link *l = p->links; l; l = l->next)
        conn_close(l->c, 0, "stopping");
    for (unsigned i = 0; i < p->listeners_n; i++)
        uv_close((uv_handle_t *)&p->listeners[i], handle_closed);
    uv_close((uv_handle_t *)&p->tick, handle_closed);
}

static unsigned port_of(uv_tcp_t *tcp)
{
    struct sockaddr_storage sa;
    int len = sizeof sa;
    if (uv_tcp_getsockname(tcp, (struct sockaddr *)&sa, &len))
        return 0;
    return ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port : ((struct sockaddr_in *)&sa)->sin_port);
}

static int listen_all(struct peers *p, struct err *err)
{
    const char *host = p->o.listen_host && p->o.listen_host[0] ? p->o.listen_host : NULL;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int rc = getaddrinfo(host, p->o.listen_port, &hints, &list);
    if (rc)
        return err_set(err, RAFTDIR_EINVAL, "peer listener: %s:%s: %s", host ? host : "*", p->o.listen_port, gai_strerror(rc));
    for (struct addrinfo *a = list; a && !rc && p->listeners_n < PEER_LISTENERS_MAX; a = a->ai_next) {
        uv_tcp_t *tcp = &p->listeners[p->listeners_n];
        rc = uv_tcp_init(p->o.loop, tcp);
        if (rc)
            break;
        tcp->data = p;
        p->listeners_n++;
        p->open++;
        rc = uv_tcp_bind(tcp, a->ai_addr, a->ai_family == AF_INET6 ? UV_TCP_IPV6ONLY : 0);
        if (!rc)
            rc = uv_listen((uv_stream_t *)tcp, 128, connection_cb);
        /* A host without one of the two address families: the other is enough. */
        if ((rc == UV_EAFNOSUPPORT || rc == UV_EADDRNOTAVAIL) && (a->ai_next || p->port)) {
            rc = 0;
            continue;
        }
        if (!rc)
            p->port = port_of(tcp);
    }
    uv_freeaddrinfo(list);
    if (rc)
        return err_set(err, err_from_uv(rc), "peer listener: %s:%s: %s", host ? host : "*", p->o.listen_port, uv_strerror(rc));
    return 0;
}

int peers_start(const struct peers_options *o, struct peers **peers_r, struct err *err)
{
    if (o->client_endpoint && strlen(o->client_endpoint) > PEER_ENDPOINT_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "client endpoint \"%s\" is longer than %d bytes", o->client_endpoint, PEER_ENDPOINT_LEN_MAX);
    if (o->site && strlen(o->site) > SITE_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "site \"%s\" is longer than %d bytes", o->site, SITE_LEN_MAX);
    struct peers *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, RAFTDIR_ENOMEM, "peer listener: out of memory");
    p->o = *o;
    SSL_CTX_up_ref(p->o.tls);
    snprintf(p->client_endpoint, sizeof p->client_endpoint, "%s", o->client_endpoint ? o->client_endpoint : "");
    snprintf(p->site, sizeof p->site, "%s", o->site ? o->site : "");
    uv_timer_init(o->loop, &p->tick); /* can't fail */
    p->tick.data = p;
    p->open = 1;
    int rc = listen_all(p, err);
    p->o.listen_host = p->o.listen_port = p->o.client_endpoint = p->o.site = NULL; /* the caller's */
    if (rc) {
        peers_stop(&p, NULL, NULL);
        return rc;
    }
    *peers_r = p;
    return 0;
}
