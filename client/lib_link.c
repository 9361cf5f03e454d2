/* lib_link.c - one connection to a node: connect, TLS handshake, bytes out, frames in. Never blocks.
 *
 * Happy path: link_open -> CONNECTING -> (HANDSHAKE ->) HELLO -> READY; the engine sends the hello and reads its answer.
 * Failures: any error, or LINK_TIMEOUT_MS before READY: link_progress says so (or the engine sees the deadline) and the engine closes the link.
 * No SIGPIPE: plain sends carry MSG_NOSIGNAL, and so does the BIO below OpenSSL, which its own socket BIO doesn't. */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "lib_internal.h"
#include "raftdir/tls.h"

#define READ_LEN 65536

/* --- A socket BIO that never raises SIGPIPE --------------------------------------------------------------------------- */

static int bio_fd(BIO *b)
{
    return (int)(intptr_t)BIO_get_data(b);
}

static int bio_send(BIO *b, const char *data, int len)
{
    BIO_clear_retry_flags(b);
    ssize_t n;
    do
        n = send(bio_fd(b), data, (size_t)len, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_write(b);
    return (int)n;
}

static int bio_recv(BIO *b, char *data, int len)
{
    BIO_clear_retry_flags(b);
    ssize_t n;
    do
        n = recv(bio_fd(b), data, (size_t)len, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_read(b);
    if (n == 0)
        BIO_set_flags(b, BIO_FLAGS_IN_EOF);
    return (int)n;
}

static long bio_ctrl(BIO *b, int command, long num, void *ptr)
{
    (void)num;
    (void)ptr;
    if (command == BIO_CTRL_EOF)
        return BIO_test_flags(b, BIO_FLAGS_IN_EOF) != 0;
    return command == BIO_CTRL_FLUSH; /* nothing is buffered here */
}

static BIO_METHOD *bio_method;
static pthread_once_t bio_once = PTHREAD_ONCE_INIT;

static void bio_init(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "raftdir socket");
    if (m && BIO_meth_set_write(m, bio_send) && BIO_meth_set_read(m, bio_recv) && BIO_meth_set_ctrl(m, bio_ctrl))
        bio_method = m;
    else
        BIO_meth_free(m);
}

static int start_tls(struct raftdir *d, struct link *l, const struct endpoint *ep, struct err *err)
{
    pthread_once(&bio_once, bio_init);
    BIO *bio = bio_method ? BIO_new(bio_method) : NULL;
    l->ssl = bio ? SSL_new(d->tls) : NULL;
    if (!l->ssl) {
        BIO_free(bio);
        return err_set(err, RAFTDIR_ENOMEM, "TLS: out of memory");
    }
    BIO_set_data(bio, (void *)(intptr_t)l->fd);
    BIO_set_init(bio, 1);
    SSL_set_bio(l->ssl, bio, bio);
    SSL_set_mode(l->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_set_connect_state(l->ssl);
    struct in6_addr a;
    if (inet_pton(AF_INET, ep->host, &a) != 1 && inet_pton(AF_INET6, ep->host, &a) != 1)
        SSL_set_tlsext_host_name(l->ssl, ep->host);
    return 0;
}

/* --- Opening and closing ------------------------------------------------------------------------------------------------ */

static int connect_to(int family, const struct sockaddr *sa, socklen_t sa_len, int *fd_r)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    int rc;
    do
        rc = connect(fd, sa, sa_len);
    while (rc < 0 && errno == EINTR);
    /* EAGAIN: a Unix socket whose backlog is full; it isn't connecting. */
    if (rc < 0 && errno != EINPROGRESS) {
        int e = errno;
        close(fd);
        return e;
    }
    *fd_r = fd;
    return 0;
}

static int open_unix(const struct endpoint *ep, int *fd_r, struct err *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    memcpy(un.sun_path, ep->path, strlen(ep->path) + 1); /* its length was checked by endpoint_add */
    int e = connect_to(AF_UNIX, (struct sockaddr *)&un, sizeof un, fd_r);
    if (!e)
        return 0;
    if (e == EACCES || e == EPERM)
        return err_set(err, RAFTDIR_EPERM, "%s: permission denied: this user may not use the node's socket", ep->text);
    if (e == ENOENT)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: there is no such socket: is raftdird running, and is this its client_socket?", ep->text);
    if (e == ECONNREFUSED)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: nobody listens there: raftdird is not running", ep->text);
    return err_set(err, e == EMFILE || e == ENFILE ? RAFTDIR_ELIMIT : RAFTDIR_EUNAVAIL, "%s: %s", ep->text, strerror(e));
}

static int open_tcp(const struct endpoint *ep, int *fd_r, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG}, *list = NULL;
    struct in6_addr a;
    if (inet_pton(AF_INET, ep->host, &a) == 1 || inet_pton(AF_INET6, ep->host, &a) == 1)
        hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    int rc = getaddrinfo(ep->host, ep->port, &hints, &list);
    if (rc)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s", ep->text, rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    int e = ECONNREFUSED;
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next)
        if (!(e = connect_to(ai->ai_family, ai->ai_addr, ai->ai_addrlen, fd_r)))
            break;
    freeaddrinfo(list);
    if (e)
        return err_set(err, e == EMFILE || e == ENFILE ? RAFTDIR_ELIMIT : RAFTDIR_EUNAVAIL, "%s: %s", ep->text, strerror(e));
    int on = 1;
    setsockopt(*fd_r, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(*fd_r, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return 0;
}

int link_open(struct raftdir *d, struct endpoint *ep, uint64_t now, struct err *err)
{
    struct link *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    l->fd = -1;
    int rc = 0;
    if (!ep->path && !d->tls)
        rc = err_set(err, RAFTDIR_EAUTH, "%s: needs certificates, and none are given", ep->text);
    if (!rc)
        rc = ep->path ? open_unix(ep, &l->fd, err) : open_tcp(ep, &l->fd, err);
    if (!rc && !ep->path)
        rc = start_tls(d, l, ep, err);
    if (rc < 0) {
        link_close(&l, true);
        return rc;
    }
    l->state = LINK_CONNECTING;
    l->want = POLLOUT;
    l->deadline = now + LINK_TIMEOUT_MS;
    ep->link = l;
    return 0;
}

void link_unwatch(struct link *l)
{
    if (l->watched)
        epoll_ctl(l->loop_fd, EPOLL_CTL_DEL, l->fd, NULL);
    l->watched = 0;
}

void link_close(struct link **lp, bool quiet)
{
    struct link *l = *lp;
    if (!l)
        return;
    *lp = NULL;
    link_unwatch(l); /* closing does it only while no child has the descriptor, too */
    if (l->ssl) {
        if (!quiet && l->state >= LINK_HELLO) {
            ERR_clear_error();
            SSL_shutdown(l->ssl); /* best effort */
            ERR_clear_error();
        }
        SSL_free(l->ssl);
    }
    if (l->fd >= 0)
        close(l->fd);
    frame_reader_close(&l->in);
    free(l->out);
    free(l);
}

short link_events(const struct link *l)
{
    if (l->state == LINK_CONNECTING || l->state == LINK_HANDSHAKE)
        return l->want;
    short e = POLLIN;
    if (l->out_start < l->out_end || (l->want & POLLOUT))
        e |= POLLOUT;
    return e;
}

/* --- Progress --------------------------------------------------------------------------------------------------------------- */

/* What an SSL_ call that returned `rc` wants: 0, and l->want is set; else an error. */
static int tls_wants(struct endpoint *ep, int rc, const char *doing, struct err *err)
{
    struct link *l = ep->link;
    int saved = errno;
    switch (SSL_get_error(l->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        l->want = POLLIN;
        return 0;
    case SSL_ERROR_WANT_WRITE:
        l->want = POLLIN | POLLOUT;
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: the node closed the connection", ep->text);
    case SSL_ERROR_SYSCALL:
        if (!ERR_peek_error())
            return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s: %s", ep->text, doing, saved ? strerror(saved) : "the connection ended");
        break;
    }
    /* A node that dies ends its TCP connection without TLS' farewell: that is no matter of certificates. */
    if (tls_no_memory(l->ssl)) {
        ERR_clear_error();
        return err_set(err, RAFTDIR_ENOMEM, "%s: %s: out of memory", ep->text, doing);
    }
    unsigned long e = ERR_peek_last_error();
    int reason = ERR_GET_REASON(e);
    if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        ERR_clear_error();
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s: the connection ended", ep->text, doing);
    }
    /* With TLS 1.3 a refusal of our certificate comes as an alert after the handshake. */
    bool alert = ERR_GET_LIB(e) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256;
    bool auth = l->state == LINK_HANDSHAKE || alert;
    l->doubtful = auth;
    char text[256];
    tls_error_text(l->ssl, text, sizeof text);
    ERR_clear_error();
    return err_set(err, auth ? RAFTDIR_EAUTH : RAFTDIR_EPROTO, "%s: %s: %s", ep->text, doing, text);
}

static int handshake(struct endpoint *ep, struct err *err)
{
    struct link *l = ep->link;
    ERR_clear_error();
    errno = 0;
    int rc = SSL_do_handshake(l->ssl);
    if (rc != 1)
        return tls_wants(ep, rc, "TLS handshake", err);
    l->want = POLLIN;
    if (ep->name) {
        char name[256];
        if (tls_peer_name(l->ssl, name, sizeof name, err) < 0)
            return err_wrap(err, "%s", ep->text);
        if (strcmp(name, ep->name))
            return err_set(err, RAFTDIR_EAUTH, "%s: the node there has a certificate for \"%s\", not for \"%s\"", ep->text, name, ep->name);
    }
    l->state = LINK_HELLO;
    return 0;
}

static int flush_out(struct endpoint *ep, struct err *err)
{
    struct link *l = ep->link;
    while (l->out_start < l->out_end) {
        size_t len = l->out_end - l->out_start;
        l->tried = l->queued;
        ssize_t n;
        if (l->ssl) {
            size_t done = 0;
            ERR_clear_error();
            errno = 0;
            int rc = SSL_write_ex(l->ssl, l->out + l->out_start, len, &done);
            if (rc != 1)
                return tls_wants(ep, rc, "write", err);
            n = (ssize_t)done;
        } else {
            n = send(l->fd, l->out + l->out_start, len, MSG_NOSIGNAL);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                return 0;
            if (n < 0)
                return err_set(err, RAFTDIR_EUNAVAIL, "%s: write: %s", ep->text, strerror(errno));
        }
        l->out_start += (size_t)n;
    }
    l->out_start = l->out_end = 0;
    return 0;
}

/* Reads what is there, up to a few frames' worth, so that one busy link doesn't starve the others. */
static int read_in(struct endpoint *ep, struct err *err)
{
    struct link *l = ep->link;
    for (int i = 0; i < 16; i++) {
        uint8_t *room;
        size_t room_len;
        if (!(room = frame_reader_room(&l->in, READ_LEN, &room_len)))
            return err_set(err, RAFTDIR_ENOMEM, "out of memory");
        ssize_t n;
        if (l->ssl) {
            size_t got = 0;
            ERR_clear_error();
            errno = 0;
            int rc = SSL_read_ex(l->ssl, room, room_len, &got);
            if (rc != 1)
                return tls_wants(ep, rc, "read", err);
            n = (ssize_t)got;
        } else {
            n = recv(l->fd, room, room_len, 0);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                return 0;
            if (n < 0)
                return err_set(err, RAFTDIR_EUNAVAIL, "%s: read: %s", ep->text, strerror(errno));
            if (n == 0)
                return err_set(err, RAFTDIR_EUNAVAIL, "%s: the node closed the connection", ep->text);
        }
        frame_reader_fill(&l->in, (size_t)n);
        if (!l->ssl && (size_t)n < room_len)
            return 0;
    }
    return 0;
}

int link_progress(struct endpoint *ep, struct err *err)
{
    struct link *l = ep->link;
    int rc;
    if (l->state == LINK_CONNECTING) {
        struct pollfd p = {.fd = l->fd, .events = POLLOUT};
        if (poll(&p, 1, 0) <= 0)
            return 0;
        int e = 0;
        socklen_t len = sizeof e;
        if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
            e = errno;
        if (e)
            return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s", ep->text, strerror(e));
        l->state = l->ssl ? LINK_HANDSHAKE : LINK_HELLO;
        l->want = l->ssl ? POLLOUT : 0;
    }
    if (l->state == LINK_HANDSHAKE) {
        if ((rc = handshake(ep, err)) < 0 || l->state == LINK_HANDSHAKE)
            return rc;
    }
    l->want = 0;
    rc = flush_out(ep, err);
    /* Also after a failed write: the node may have said why before it closed. */
    struct err read_err = {0};
    int read_rc = read_in(ep, &read_err);
    if (read_rc < 0) {
        *err = read_err;
        return read_rc;
    }
    return rc;
}

static size_t varint_put(uint8_t *p, uint64_t v)
{
    size_t n = 0;
    while (v >= 0x80) {
        p[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    p[n++] = (uint8_t)v;
    return n;
}

int link_queue(struct link *l, const Raftdir__Client__ToNode *head, unsigned field, const uint8_t *body, size_t body_len, struct err *err)
{
    uint8_t scalars[128];
    assert(raftdir__client__to_node__get_packed_size(head) <= sizeof scalars);
    size_t scalars_len = raftdir__client__to_node__pack(head, scalars);
    scalars_len += varint_put(scalars + scalars_len, (uint64_t)field << 3 | 2);
    scalars_len += varint_put(scalars + scalars_len, body_len);
    size_t len = scalars_len + body_len;
    if (len > CLIENT_FRAME_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "a request of %zu bytes; the limit is %u", len, CLIENT_FRAME_LEN_MAX);
    size_t need = FRAME_HEADER_LEN + len;
    if (l->out_size - l->out_end < need) {
        if (l->out_start) {
            memmove(l->out, l->out + l->out_start, l->out_end - l->out_start);
            l->out_end -= l->out_start;
            l->out_start = 0;
        }
        if (l->out_size - l->out_end < need) {
            size_t size = l->out_size ? l->out_size : 4096;
            while (size - l->out_end < need)
                size *= 2;
            uint8_t *out = realloc(l->out, size);
            if (!out)
                return err_set(err, RAFTDIR_ENOMEM, "out of memory");
            l->out = out;
            l->out_size = size;
        }
    }
    uint8_t *p = l->out + l->out_end;
    frame_header_put(p, (uint32_t)len);
    memcpy(p + FRAME_HEADER_LEN, scalars, scalars_len);
    if (body_len)
        memcpy(p + FRAME_HEADER_LEN + scalars_len, body, body_len);
    l->out_end += need;
    l->queued += need;
    return 0;
}
