/* conn_begin.c - how a connection begins: accepted, or connected to one address of a name after the other; then TLS, or open. See conn.h; conn.c has the rest of its life.
 *
 * Known limit: a name that is being resolved can't always be cancelled; the connection doesn't wait for it, uv_loop_close does. */
#include "conn_internal.h"
#include "limits.h"
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define ADDRESSES_MAX 8
#define KEEPALIVE_IDLE_S 15
#define KEEPALIVE_INTERVAL_S 5
#define KEEPALIVE_COUNT 3

static void sigpipe_ignore(void)
{
    struct sigaction sa;
    if (sigaction(SIGPIPE, NULL, &sa) == 0 && !(sa.sa_flags & SA_SIGINFO) && sa.sa_handler == SIG_DFL) {
        sa.sa_handler = SIG_IGN;
        sigaction(SIGPIPE, &sa, NULL);
    }
}

static struct conn *conn_create(uv_loop_t *loop, const struct conn_options *o, const struct conn_events *ev)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, sigpipe_ignore);
    struct conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->o = *o;
    c->ev = *ev;
    if (c->o.tls)
        SSL_CTX_up_ref(c->o.tls);
    if (!c->o.user_timeout_ms)
        c->o.user_timeout_ms = CONN_USER_TIMEOUT_MS;
    if (!c->o.connect_timeout_ms)
        c->o.connect_timeout_ms = HANDSHAKE_TIMEOUT_MS;
    uv_idle_init(loop, &c->turn); /* these two can't fail */
    uv_timer_init(loop, &c->timer);
    c->turn.data = c->timer.data = c;
    c->handles = 2;
    return c;
}

/* Gives up a connection that the caller never got. */
static void conn_discard(struct conn *c)
{
    c->silent = true;
    if (c->handles == 3) {
        conn_handles_close(c);
        return;
    }
    c->state = CONN_CLOSED;
    uv_close((uv_handle_t *)&c->turn, conn_handle_closed);
    uv_close((uv_handle_t *)&c->timer, conn_handle_closed);
}

static void address_text(const struct sockaddr *sa, socklen_t len, char *buf_r, size_t size)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getnameinfo(sa, len, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(buf_r, size, "unknown address");
    else
        snprintf(buf_r, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

/* Best effort: a socket without one of these works, only worse. */
static void tcp_tune(struct conn *c)
{
    uv_os_fd_t fd;
    if (uv_fileno(&c->handle, &fd))
        return;
    int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S, count = KEEPALIVE_COUNT, notsent = (int)c->o.notsent_len;
    unsigned timeout = c->o.user_timeout_ms;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
    if (notsent > 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof notsent);
}

/* Connected: TLS, or open in the next turn (no callback from within conn_accept). */
static int begin(struct conn *c, bool accepted, struct err *err)
{
    if (!c->o.tls) {
        c->state = CONN_OPEN;
        uv_timer_stop(&c->timer);
        conn_wake(c);
        return 0;
    }
    int rc = conn_tls_init(c, accepted, err);
    if (rc)
        return rc;
    c->state = CONN_HANDSHAKE;
    uv_timer_start(&c->timer, conn_timeout_cb, HANDSHAKE_TIMEOUT_MS, 0);
    if (!accepted)
        conn_tls_handshake(c);
    conn_wake(c);
    return 0;
}

static void address_take(struct conn *c, const struct sockaddr *sa, socklen_t len)
{
    const struct sockaddr_in *v4 = (const void *)sa;
    const struct sockaddr_in6 *v6 = (const void *)sa;
    address_text(sa, len, c->peer_text, sizeof c->peer_text);
    if (sa->sa_family == AF_INET)
        c->loopback = ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    else if (sa->sa_family == AF_INET6)
        c->loopback = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) || (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && v6->sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
}

int conn_accept(uv_loop_t *loop, uv_stream_t *listener, const struct conn_options *o, const struct conn_events *ev, struct conn **conn_r, struct err *err)
{
    struct conn *c = conn_create(loop, o, ev);
    if (!c)
        return err_set(err, RAFTDIR_ENOMEM, "accept: out of memory");
    bool tcp = listener->type == UV_TCP;
    int rc = tcp ? uv_tcp_init(loop, &c->tcp) : uv_pipe_init(loop, &c->pipe, 0);
    if (rc) {
        conn_discard(c);
        return err_set(err, err_from_uv(rc), "accept: %s", uv_strerror(rc));
    }
    c->handle.data = c;
    c->handles = 3;
    rc = uv_accept(listener, &c->stream);
    if (rc) {
        conn_discard(c);
        return err_set(err, err_from_uv(rc), "accept: %s", uv_strerror(rc));
    }
    if (tcp) {
        struct sockaddr_storage sa;
        int len = sizeof sa;
        if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&sa, &len) == 0)
            address_take(c, (struct sockaddr *)&sa, (socklen_t)len);
        else
            snprintf(c->peer_text, sizeof c->peer_text, "unknown address");
        tcp_tune(c);
    } else {
        uv_os_fd_t fd;
        struct ucred cred;
        socklen_t len = sizeof cred;
        if (uv_fileno(&c->handle, &fd) == 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0) {
            c->have_uid = true;
            c->uid = cred.uid;
            c->gid = cred.gid;
            snprintf(c->peer_text, sizeof c->peer_text, "unix socket, uid %u, pid %d", (unsigned)cred.uid, (int)cred.pid);
        } else {
            snprintf(c->peer_text, sizeof c->peer_text, "unix socket");
        }
    }
    rc = begin(c, true, err);
    if (rc) {
        conn_discard(c);
        return rc;
    }
    *conn_r = c;
    return 0;
}

static void connect_cb(uv_connect_t *req, int status)
{
    struct conn *c = req->data;
    if (c->state != CONN_CONNECTING || uv_is_closing(&c->handle))
        return;
    char why[512];
    if (status < 0) {
        if (c->addr) {
            conn_address_try(c);
            return;
        }
        snprintf(why, sizeof why, "connect to %s: %s", c->peer_text, uv_strerror(status));
        conn_end(c, RAFTDIR_EUNAVAIL, why, false);
        return;
    }
    struct err err;
    int rc = begin(c, false, &err);
    if (rc)
        conn_end(c, rc, err.text, false);
}

static void address_connect(struct conn *c)
{
    const struct addrinfo *a = c->addr;
    c->addr = a->ai_next;
    c->connect_req.data = c;
    int rc = uv_tcp_connect(&c->connect_req, &c->tcp, a->ai_addr, connect_cb);
    if (rc == 0) {
        tcp_tune(c);
        uv_timer_start(&c->timer, conn_timeout_cb, c->o.connect_timeout_ms, 0);
    } else if (c->addr) {
        conn_address_try(c);
    } else {
        char why[512];
        snprintf(why, sizeof why, "connect to %s: %s", c->peer_text, uv_strerror(rc));
        conn_end(c, RAFTDIR_EUNAVAIL, why, false);
    }
}

/* The socket of the address before is closed: a fresh one for the next. */
static void address_next_cb(uv_handle_t *h)
{
    struct conn *c = h->data;
    if (c->state != CONN_CONNECTING) {
        conn_handle_closed(h);
        return;
    }
    int rc = uv_tcp_init(c->turn.loop, &c->tcp);
    c->handle.data = c;
    if (rc) { /* can't happen without flags; the handle isn't open, so it isn't counted */
        c->handles--;
        c->code = err_from_uv(rc);
        snprintf(c->why, sizeof c->why, "%s", uv_strerror(rc));
        c->state = CONN_CLOSED;
        uv_close((uv_handle_t *)&c->turn, conn_handle_closed);
        uv_close((uv_handle_t *)&c->timer, conn_handle_closed);
        return;
    }
    address_connect(c);
}

void conn_address_try(struct conn *c)
{
    uv_timer_stop(&c->timer);
    if (!uv_is_closing(&c->handle))
        uv_close(&c->handle, address_next_cb);
}

static void addresses_use(struct conn *c, struct addrinfo *list)
{
    c->addrs = c->addr = list;
    unsigned n = 0;
    for (struct addrinfo *a = list; a; a = a->ai_next) {
        if (++n == ADDRESSES_MAX && a->ai_next) {
            uv_freeaddrinfo(a->ai_next);
            a->ai_next = NULL;
        }
    }
    address_connect(c);
}

static void resolve_cb(uv_getaddrinfo_t *req, int status, struct addrinfo *list)
{
    struct conn_resolve *r = req->data;
    struct conn *c = r->c;
    free(r);
    if (!c) {
        uv_freeaddrinfo(list);
        return;
    }
    c->resolve = NULL;
    if (status < 0 || !list) {
        char why[512];
        snprintf(why, sizeof why, "look up %s: %s", c->peer_text, status < 0 ? uv_strerror(status) : "no address");
        if (list)
            uv_freeaddrinfo(list);
        conn_end(c, RAFTDIR_EUNAVAIL, why, false);
        return;
    }
    addresses_use(c, list);
}

int conn_connect(uv_loop_t *loop, const char *host, const char *port, const struct conn_options *o, const struct conn_events *ev,
                 struct conn **conn_r, struct err *err)
{
    struct conn *c = conn_create(loop, o, ev);
    if (!c)
        return err_set(err, RAFTDIR_ENOMEM, "connect: out of memory");
    bool is_path = host[0] == '/';
    int rc = is_path ? uv_pipe_init(loop, &c->pipe, 0) : uv_tcp_init(loop, &c->tcp);
    if (rc) {
        conn_discard(c);
        return err_set(err, err_from_uv(rc), "connect to %s: %s", host, uv_strerror(rc));
    }
    c->handle.data = c;
    c->handles = 3;
    c->state = CONN_CONNECTING;
    if (is_path) {
        snprintf(c->peer_text, sizeof c->peer_text, "%s", host);
        if (strlen(host) >= 108) { /* sun_path; libuv would cut it off silently */
            conn_discard(c);
            return err_set(err, RAFTDIR_EINVAL, "connect to %s: the path is longer than a socket's may be", host);
        }
        c->connect_req.data = c;
        uv_pipe_connect(&c->connect_req, &c->pipe, host, connect_cb);
        uv_timer_start(&c->timer, conn_timeout_cb, c->o.connect_timeout_ms, 0);
        *conn_r = c;
        return 0;
    }
    snprintf(c->peer_text, sizeof c->peer_text, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    struct addrinfo *list;
    if (getaddrinfo(host, port, &hints, &list) == 0) { /* an address needs no name server, nor a thread that may be stuck with one */
        addresses_use(c, list);
        *conn_r = c;
        return 0;
    }
    struct conn_resolve *r = calloc(1, sizeof *r);
    if (!r) {
        conn_discard(c);
        return err_set(err, RAFTDIR_ENOMEM, "connect to %s: out of memory", host);
    }
    r->c = c;
    r->req.data = r;
    hints.ai_flags = AI_ADDRCONFIG;
    rc = uv_getaddrinfo(loop, &r->req, resolve_cb, host, port, &hints);
    if (rc) {
        free(r);
        conn_discard(c);
        return err_set(err, err_from_uv(rc), "look up %s: %s", host, uv_strerror(rc));
    }
    c->resolve = r;
    /* Name servers may take their time; no address can be tried before. */
    uv_timer_start(&c->timer, conn_timeout_cb, HANDSHAKE_TIMEOUT_MS, 0);
    *conn_r = c;
    return 0;
}
