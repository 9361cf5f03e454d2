/* tls_stream.c - see tls_stream.h.
 *
 * The socket doesn't block; each call tries, and waits in poll(2) for the socket, the time and the cancelling descriptor. A name is resolved on a thread of
 * its own, since getaddrinfo can't be interrupted: it is left behind when the caller waits no longer, and ends when the name server answers or gives up.
 * Sending: OpenSSL makes a record of each piece it is given, so a header waits for the first bytes of its frame.
 * Known limit: a peer that takes a byte now and then keeps a stream alive for as long as it likes; peers are authenticated. */
#include "tls_stream.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "tls.h"

#define RECORD_LEN 16384 /* the most that one TLS record carries */
#define READ_LEN 65536
#define ADDRESSES_MAX 8

struct tls_stream {
    int fd;
    SSL *ssl;
    struct tls_stream_options o;
    struct frame_reader in;
    uint8_t header[FRAME_HEADER_LEN]; /* of a frame that was begun */
    bool header_waits;
    bool broken; /* no more goodbye */
    char peer[256];
};

/* --- Cancelling -------------------------------------------------------------------------------------------------------------------- */

int tls_cancel_init(struct tls_cancel *c, struct err *err)
{
    c->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return c->fd < 0 ? err_set(err, err_from_errno(errno), "eventfd: %s", strerror(errno)) : 0;
}

void tls_cancel_now(struct tls_cancel *c)
{
    uint64_t one = 1;
    ssize_t n = write(c->fd, &one, sizeof one); /* fails only when it is cancelled 2^64 times already */
    (void)n;
}

void tls_cancel_clear(struct tls_cancel *c)
{
    uint64_t count;
    ssize_t n = read(c->fd, &count, sizeof count); /* fails when it isn't cancelled */
    (void)n;
}

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

bool tls_cancel_sleep(const struct tls_cancel *c, uint64_t ms)
{
    uint64_t until = now_ms() + ms;
    for (;;) {
        uint64_t now = now_ms(), left = now < until ? until - now : 0;
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        int n = poll(&p, 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (n > 0)
            return true;
        if (n == 0 && now_ms() >= until)
            return false;
    }
}

bool tls_cancelled(const struct tls_cancel *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

void tls_cancel_close(struct tls_cancel *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* Waits until `fd` is ready for `events` (an error of the socket counts: the next call reports it). */
static int wait_for(int fd, short events, unsigned timeout_ms, const struct tls_cancel *cancel, struct err *err)
{
    uint64_t until = now_ms() + timeout_ms;
    for (;;) {
        struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = cancel ? cancel->fd : -1, .events = POLLIN}};
        uint64_t now = now_ms();
        int n = poll(p, 2, now < until ? (int)(until - now) : 0);
        if (n < 0 && errno != EINTR)
            return err_set(err, err_from_errno(errno), "poll: %s", strerror(errno));
        if (n > 0 && p[1].revents)
            return err_set(err, RAFTDIR_ECANCELED, "canceled");
        if (n > 0 && p[0].revents)
            return 0;
        if (n <= 0 && now_ms() >= until)
            return err_set(err, RAFTDIR_ETIMEDOUT, "nothing moved for %u ms", timeout_ms);
    }
}

/* --- Names --------------------------------------------------------------------------------------------------------------------------- */

struct resolve {
    pthread_mutex_t mutex;
    bool done, abandoned; /* under the mutex: the last of the two sides frees */
    int event;            /* readable when done */
    char *host, *port;
    struct addrinfo hints, *list;
    int rc;
};

static void resolve_free(struct resolve *r)
{
    if (r->list)
        freeaddrinfo(r->list);
    if (r->event >= 0)
        close(r->event);
    pthread_mutex_destroy(&r->mutex);
    free(r->host);
    free(r->port);
    free(r);
}

static void *resolve_main(void *data)
{
    struct resolve *r = data;
    struct addrinfo *list = NULL;
    int rc = getaddrinfo(r->host, r->port, &r->hints, &list);
    pthread_mutex_lock(&r->mutex);
    r->rc = rc;
    r->list = rc ? NULL : list;
    r->done = true;
    bool last = r->abandoned;
    uint64_t one = 1;
    ssize_t n = write(r->event, &one, sizeof one);
    (void)n;
    pthread_mutex_unlock(&r->mutex);
    if (last)
        resolve_free(r);
    return NULL;
}

static int resolve_on_thread(const char *host, const char *port, const struct addrinfo *hints, const struct tls_stream_options *o, struct addrinfo **list_r,
                             struct err *err)
{
    struct resolve *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    pthread_mutex_init(&r->mutex, NULL);
    r->hints = *hints;
    r->host = strdup(host);
    r->port = strdup(port);
    r->event = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before;
    int rc = RAFTDIR_ENOMEM;
    if (!r->host || !r->port || r->event < 0 || pthread_attr_init(&attr)) {
        rc = err_set(err, r->event < 0 ? RAFTDIR_ELIMIT : RAFTDIR_ENOMEM, "no memory or descriptor left");
        resolve_free(r);
        return rc;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for others */
    rc = pthread_create(&thread, &attr, resolve_main, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (rc) {
        resolve_free(r);
        return err_set(err, RAFTDIR_ELIMIT, "no thread to look it up: %s", strerror(rc));
    }
    rc = wait_for(r->event, POLLIN, o->connect_timeout_ms, o->cancel, err);
    pthread_mutex_lock(&r->mutex);
    bool ours = r->done;
    r->abandoned = true;
    if (ours) {
        if (rc == 0 && r->rc)
            rc = err_set(err, RAFTDIR_EUNAVAIL, "%s", gai_strerror(r->rc));
        if (rc == 0) {
            *list_r = r->list;
            r->list = NULL;
        }
    }
    pthread_mutex_unlock(&r->mutex);
    if (ours)
        resolve_free(r);
    return rc;
}

static int resolve(const char *host, const char *port, const struct tls_stream_options *o, struct addrinfo **list_r, struct err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    if (getaddrinfo(host, port, &hints, list_r) == 0)
        return 0;
    hints.ai_flags = AI_ADDRCONFIG;
    int rc = resolve_on_thread(host, port, &hints, o, list_r, err);
    if (rc)
        err_wrap(err, "look up %s", host);
    return rc;
}

/* --- Beginning and end ----------------------------------------------------------------------------------------------------------------- */

static int failed(struct tls_stream *s, int n, const char *doing, struct err *err)
{
    int e = errno;
    s->broken = true;
    switch (SSL_get_error(s->ssl, n)) {
    case SSL_ERROR_SYSCALL:
        ERR_clear_error();
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: the connection broke: %s", doing, e ? strerror(e) : "closed by the other end");
    case SSL_ERROR_SSL:
        if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
            ERR_clear_error();
            return err_set(err, RAFTDIR_EUNAVAIL, "%s: the connection broke: closed by the other end", doing);
        }
        break;
    default:
        break;
    }
    char text[200];
    int code = SSL_get_verify_result(s->ssl) != X509_V_OK ? RAFTDIR_EAUTH : RAFTDIR_EPROTO;
    tls_error_text(s->ssl, text, sizeof text);
    return err_set(err, code, "%s: %s", doing, text);
}

/* Waits for what OpenSSL wants of the socket after a call that returned n <= 0. */
static int want(struct tls_stream *s, int n, unsigned timeout_ms, const char *doing, struct err *err)
{
    int e = SSL_get_error(s->ssl, n), rc;
    if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE)
        return failed(s, n, doing, err);
    rc = wait_for(s->fd, e == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, timeout_ms, s->o.cancel, err);
    if (rc) {
        s->broken = true;
        err_wrap(err, "%s", doing);
    }
    return rc;
}

/* Best effort, as in conn.c. Unacknowledged bytes may be as old as our own patience. */
static void tune(struct tls_stream *s)
{
    int on = 1;
    unsigned timeout = s->o.io_timeout_ms;
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(s->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

static struct tls_stream *create(int fd, SSL *ssl, const struct tls_stream_options *o)
{
    struct tls_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->fd = fd;
    s->ssl = ssl;
    s->o = *o;
    tune(s);
    return s;
}

int tls_stream_adopt(int fd, SSL *ssl, const struct tls_stream_options *o, struct tls_stream **stream_r, struct err *err)
{
    int rc = 0, flags = fcntl(fd, F_GETFL);
    struct tls_stream *s = NULL;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
        rc = err_set(err, err_from_errno(errno), "socket: %s", strerror(errno));
    else if (!(s = create(fd, ssl, o)))
        rc = err_set(err, RAFTDIR_ENOMEM, "TLS connection: out of memory");
    if (rc) {
        SSL_free(ssl);
        close(fd);
        return rc;
    }
    rc = tls_peer_name(ssl, s->peer, sizeof s->peer, err);
    if (rc)
        tls_stream_close(&s);
    *stream_r = s;
    return rc;
}

static int connect_one(const struct addrinfo *a, const struct tls_stream_options *o, int *fd_r, struct err *err)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "socket: %s", strerror(errno));
    int rc = 0, e = 0;
    socklen_t len = sizeof e;
    if (connect(fd, a->ai_addr, a->ai_addrlen)) {
        if (errno != EINPROGRESS)
            e = errno;
        else if ((rc = wait_for(fd, POLLOUT, o->connect_timeout_ms, o->cancel, err)) == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len))
            e = errno;
    }
    if (e)
        rc = err_set(err, RAFTDIR_EUNAVAIL, "%s", strerror(e));
    if (rc)
        close(fd);
    else
        *fd_r = fd;
    return rc;
}

static int handshake(struct tls_stream *s, struct err *err)
{
    uint64_t until = now_ms() + s->o.connect_timeout_ms;
    for (;;) {
        ERR_clear_error();
        int n = SSL_do_handshake(s->ssl);
        if (n == 1)
            return tls_peer_name(s->ssl, s->peer, sizeof s->peer, err);
        uint64_t now = now_ms();
        int rc = want(s, n, now < until ? (unsigned)(until - now) : 0, "TLS handshake", err);
        if (rc)
            return rc;
    }
}

int tls_stream_connect(const char *host, const char *port, SSL_CTX *tls, const struct tls_stream_options *o, struct tls_stream **stream_r, struct err *err)
{
    struct addrinfo *list;
    int fd = -1, rc = resolve(host, port, o, &list, err);
    if (rc)
        return rc;
    rc = err_set(err, RAFTDIR_EUNAVAIL, "no address");
    unsigned n = 0;
    for (struct addrinfo *a = list; a && rc && rc != RAFTDIR_ECANCELED && n < ADDRESSES_MAX; a = a->ai_next, n++)
        rc = connect_one(a, o, &fd, err);
    freeaddrinfo(list);
    if (rc)
        return err_wrap(err, "connect to %s:%s", host, port), rc;
    SSL *ssl = SSL_new(tls);
    struct tls_stream *s = ssl && SSL_set_fd(ssl, fd) == 1 ? create(fd, ssl, o) : NULL;
    if (!s) {
        SSL_free(ssl);
        close(fd);
        ERR_clear_error();
        return err_set(err, RAFTDIR_ENOMEM, "TLS connection: out of memory");
    }
    SSL_set_connect_state(ssl);
    rc = handshake(s, err);
    if (rc)
        tls_stream_close(&s);
    *stream_r = s;
    return rc;
}

const char *tls_stream_peer(const struct tls_stream *s)
{
    return s->peer;
}

void tls_stream_close(struct tls_stream **stream)
{
    struct tls_stream *s = *stream;
    *stream = NULL;
    if (!s)
        return;
    if (!s->broken && SSL_is_init_finished(s->ssl)) {
        ERR_clear_error();
        (void)SSL_shutdown(s->ssl);
    }
    ERR_clear_error();
    SSL_free(s->ssl);
    close(s->fd);
    frame_reader_close(&s->in);
    free(s);
}

/* --- Frames -------------------------------------------------------------------------------------------------------------------------------- */

static int write_all(struct tls_stream *s, const uint8_t *bytes, size_t len, struct err *err)
{
    while (len) {
        int piece = len < RECORD_LEN ? (int)len : RECORD_LEN;
        ERR_clear_error();
        errno = 0;
        int n = SSL_write(s->ssl, bytes, piece); /* all of it, or the same again after a wait */
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
            continue;
        }
        int rc = want(s, n, s->o.io_timeout_ms, "send", err);
        if (rc)
            return rc;
    }
    return 0;
}

int tls_stream_send_header(struct tls_stream *s, uint32_t len, struct err *err)
{
    assert(!s->header_waits);
    frame_header_put(s->header, len);
    if (len == 0)
        return write_all(s, s->header, sizeof s->header, err);
    s->header_waits = true;
    return 0;
}

int tls_stream_send_bytes(struct tls_stream *s, const uint8_t *bytes, size_t len, struct err *err)
{
    if (s->header_waits && len) {
        uint8_t record[RECORD_LEN];
        size_t first = len < sizeof record - sizeof s->header ? len : sizeof record - sizeof s->header;
        memcpy(record, s->header, sizeof s->header);
        memcpy(record + sizeof s->header, bytes, first);
        int rc = write_all(s, record, sizeof s->header + first, err);
        if (rc)
            return rc;
        s->header_waits = false;
        bytes += first;
        len -= first;
    }
    return write_all(s, bytes, len, err);
}

int tls_stream_send(struct tls_stream *s, const uint8_t *frame, size_t len, struct err *err)
{
    if (len > UINT32_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "send: a frame of %zu bytes", len);
    int rc = tls_stream_send_header(s, (uint32_t)len, err);
    return rc ? rc : tls_stream_send_bytes(s, frame, len, err);
}

int tls_stream_receive(struct tls_stream *s, size_t len_max, const uint8_t **frame_r, size_t *len_r, struct err *err)
{
    for (;;) {
        int rc = frame_reader_next(&s->in, len_max, frame_r, len_r, err);
        if (rc)
            return rc > 0 ? 0 : rc;
        size_t room;
        uint8_t *p = frame_reader_room(&s->in, READ_LEN, &room);
        if (!p)
            return err_set(err, RAFTDIR_ENOMEM, "receive: out of memory");
        ERR_clear_error();
        errno = 0;
        int n = SSL_read(s->ssl, p, room > INT32_MAX ? INT32_MAX : (int)room);
        if (n > 0) {
            frame_reader_fill(&s->in, (size_t)n);
            continue;
        }
        if (SSL_get_error(s->ssl, n) == SSL_ERROR_ZERO_RETURN) {
            if (s->in.end > s->in.start)
                return err_set(err, RAFTDIR_EUNAVAIL, "receive: closed by the other end in the middle of a frame");
            return err_set(err, RAFTDIR_ENOTFOUND, "closed by the other end");
        }
        rc = want(s, n, s->o.io_timeout_ms, "receive", err);
        if (rc)
            return rc;
    }
}
