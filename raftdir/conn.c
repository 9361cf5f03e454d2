/* conn.c - see conn.h.
 *
 * Sending. conn_send appends to `out`; an idle handle (while it is active the loop doesn't block) hands over all that one turn of the loop queued: one TLS
 * write and one system call. One libuv write is under way at a time; what is queued meanwhile goes with the next.
 * Closing. conn_close lets the queue go out, shuts the sending side down and throws away what still comes in until the other end closes or
 * CONN_LINGER_MS have passed: closing with unread bytes would make the kernel send a reset, which can destroy an answer on its way.
 * Failures: every failed call, timeout or end of stream ends in conn_end, which closes the three
 * handles; the last of their close callbacks calls on_close and frees.
 * Raw connections. What comes is read into a buffer of the thread and offered from there; only what nobody took is kept, and no buffer stays with a connection that has
 * nothing to say: ten thousand idle ones cost some kilobytes each.
 * STARTTLS. conn_starttls stops reading; before each write of what was queued we look whether the socket has bytes already: whoever sent them spoke before he could know
 * our answer. Then the handshake, as for a connection that began with it. Bytes queued meanwhile wait until they can be encrypted.
 * Detaching. conn_detach duplicates the socket before libuv closes its own, so the handle goes and the socket stays; OpenSSL gets a socket BIO in place of the two
 * in memory, which must be empty. (TLS 1.3 session tickets would sit in them after a handshake; tls.c turns them off.)
 * conn_begin.c accepts and connects. */
#include "conn_internal.h"
#include "limits.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUF_LEN_MIN 1024
#define BUF_LEN_KEPT (256u << 10)

/* --- Buffers --- */

int conn_buf_append(struct conn_buf *b, const void *data, size_t len)
{
    if (b->start == b->end)
        b->start = b->end = 0;
    if (b->size - b->end < len && b->start) {
        memmove(b->p, b->p + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->size - b->end < len) {
        if (len > SIZE_MAX / 4 || b->end > SIZE_MAX / 4)
            return RAFTDIR_ENOMEM;
        size_t size = b->size ? b->size : BUF_LEN_MIN;
        while (size - b->end < len)
            size *= 2;
        uint8_t *p = realloc(b->p, size);
        if (!p)
            return RAFTDIR_ENOMEM;
        b->p = p;
        b->size = size;
    }
    memcpy(b->p + b->end, data, len);
    b->end += len;
    return 0;
}

void conn_buf_consume(struct conn_buf *b, size_t len)
{
    assert(len <= b->end - b->start);
    b->start += len;
    if (b->start < b->end)
        return;
    b->start = b->end = 0;
    if (b->size > BUF_LEN_KEPT) {
        free(b->p);
        memset(b, 0, sizeof *b);
    }
}

size_t conn_buf_len(const struct conn_buf *b)
{
    return b->end - b->start;
}

/* --- The end --- */

static void conn_free(struct conn *c)
{
    conn_tls_close(c);
    SSL_CTX_free(c->o.tls);
    frame_reader_close(&c->in);
    free(c->out.p);
    free(c->wire.p);
    if (c->addrs)
        uv_freeaddrinfo(c->addrs);
    free(c);
}

void conn_handle_closed(uv_handle_t *h)
{
    struct conn *c = h->data;
    assert(c->handles > 0);
    if (--c->handles > 0)
        return;
    if (!c->silent)
        c->ev.on_close(c, c->code, c->why);
    conn_free(c);
}

void conn_handles_close(struct conn *c)
{
    c->state = CONN_CLOSED;
    c->reading = false;
    if (c->resolve) {
        c->resolve->c = NULL;
        uv_cancel((uv_req_t *)&c->resolve->req);
        c->resolve = NULL;
    }
    uv_handle_t *handles[] = {&c->handle, (uv_handle_t *)&c->turn, (uv_handle_t *)&c->timer};
    for (unsigned i = 0; i < 3; i++) {
        /* Between two addresses the socket is closing already; its callback sees the state. */
        if (!uv_is_closing(handles[i]))
            uv_close(handles[i], conn_handle_closed);
    }
}

static void read_cb(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);
static void alloc_cb(uv_handle_t *h, size_t suggested, uv_buf_t *buf_r);

static void reading_set(struct conn *c, bool on)
{
    if (on == c->reading)
        return;
    if (!on) {
        uv_read_stop(&c->stream);
        c->reading = false;
        return;
    }
    int rc = uv_read_start(&c->stream, alloc_cb, read_cb);
    if (rc) {
        conn_end(c, err_from_uv(rc), uv_strerror(rc), false);
        return;
    }
    c->reading = true;
}

void conn_timeout_cb(uv_timer_t *t)
{
    struct conn *c = t->data;
    switch (c->state) {
    case CONN_CONNECTING:
        if (c->addr) { /* the next address may answer */
            conn_address_try(c);
            return;
        }
        conn_end(c, RAFTDIR_ETIMEDOUT, "connecting took too long", false);
        return;
    case CONN_HANDSHAKE:
        conn_end(c, RAFTDIR_ETIMEDOUT, "the TLS handshake took too long", false);
        return;
    case CONN_CLEARING:
        conn_end(c, RAFTDIR_ETIMEDOUT, "the other end reads nothing", false);
        return;
    case CONN_OPEN:
        assert(c->write_broken);
        conn_end(c, RAFTDIR_EUNAVAIL, "connection lost", false);
        return;
    case CONN_LINGERING:
        conn_handles_close(c);
        return;
    case CONN_CLOSED:
        return;
    }
}

void conn_end(struct conn *c, int code, const char *why, bool linger)
{
    if (c->state == CONN_CLOSED)
        return;
    if (c->state == CONN_LINGERING) {
        if (!linger)
            conn_handles_close(c);
        return;
    }
    c->code = code;
    snprintf(c->why, sizeof c->why, "%s", why ? why : err_text(code));
    bool said_something = c->sent_len > 0 || c->writing || conn_queued_len(c) > 0 || (c->ssl && BIO_ctrl_pending(c->ssl_out) > 0);
    if (!linger || c->state == CONN_CONNECTING || c->write_broken || !said_something) {
        conn_handles_close(c);
        return;
    }
    c->state = CONN_LINGERING;
    uv_timer_start(&c->timer, conn_timeout_cb, CONN_LINGER_MS, 0);
    conn_wake(c);
}

void conn_close(struct conn *c, int code, const char *why)
{
    if (c->state == CONN_LINGERING || c->state == CONN_CLOSED)
        return;
    conn_end(c, code, why, true);
}

/* --- Sending --- */

static void turn_cb(uv_idle_t *h);

void conn_wake(struct conn *c)
{
    if (c->state != CONN_CLOSED && !uv_is_active((uv_handle_t *)&c->turn))
        uv_idle_start(&c->turn, turn_cb);
}

size_t conn_queued_len(const struct conn *c)
{
    return conn_buf_len(&c->out) + conn_buf_len(&c->wire);
}

uint64_t conn_sent_len(const struct conn *c)
{
    return c->sent_len;
}

int conn_send(struct conn *c, const uint8_t *frame, size_t len)
{
    if (c->state == CONN_LINGERING || c->state == CONN_CLOSED)
        return RAFTDIR_ECANCELED;
    if (len > UINT32_MAX)
        return RAFTDIR_ETOOBIG;
    size_t queued = conn_queued_len(c), header_len = c->o.raw ? 0 : FRAME_HEADER_LEN;
    if (queued && (queued >= c->o.out_len_max || len + header_len > c->o.out_len_max - queued)) {
        c->drain_wanted = true;
        return RAFTDIR_ELIMIT;
    }
    if (c->write_broken)
        return 0; /* lost with the connection, as what was sent just before */
    uint8_t header[FRAME_HEADER_LEN];
    frame_header_put(header, (uint32_t)len);
    size_t end = conn_buf_len(&c->out);
    if (header_len && conn_buf_append(&c->out, header, header_len))
        return RAFTDIR_ENOMEM;
    if (len && conn_buf_append(&c->out, frame, len)) {
        c->out.end = c->out.start + end;
        return RAFTDIR_ENOMEM;
    }
    if (conn_queued_len(c) > c->o.out_len_max / 2)
        c->drain_wanted = true;
    conn_wake(c);
    return 0;
}

/* The socket takes nothing more. The other end may have said why, just before: read on for a moment. */
static void write_failed(struct conn *c, int rc)
{
    if (c->state == CONN_LINGERING || !c->reading) {
        char why[200];
        snprintf(why, sizeof why, "connection lost: %s", uv_strerror(rc));
        conn_end(c, err_from_uv(rc), why, false);
        return;
    }
    c->write_broken = true;
    free(c->out.p);
    memset(&c->out, 0, sizeof c->out);
    uv_timer_start(&c->timer, conn_timeout_cb, CONN_LINGER_MS, 0);
}

static void shutdown_cb(uv_shutdown_t *req, int status)
{
    struct conn *c = req->data;
    if ((status < 0 || c->ended) && c->state == CONN_LINGERING)
        conn_handles_close(c);
}

static bool drained(struct conn *c)
{
    if (c->state != CONN_OPEN || !c->announced || !c->drain_wanted || conn_queued_len(c) > c->o.out_len_max / 2)
        return false;
    c->drain_wanted = false;
    if (c->ev.on_drain)
        c->ev.on_drain(c);
    return true;
}

static void write_cb(uv_write_t *req, int status);

static bool bytes_wait(struct conn *c)
{
    uv_os_fd_t fd;
    uint8_t byte;
    return uv_fileno(&c->handle, &fd) == 0 && recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

static void spoke_early(struct conn *c)
{
    conn_end(c, RAFTDIR_EPROTO, "bytes in clear behind STARTTLS, before it was answered", true);
}

static int wire_fill(struct conn *c)
{
    if (c->ssl)
        return conn_tls_fill(c);
    if (c->starttls) { /* what was queued since waits for TLS */
        size_t len = c->clear_len;
        if (len && conn_buf_append(&c->wire, c->out.p + c->out.start, len))
            return RAFTDIR_ENOMEM;
        conn_buf_consume(&c->out, len);
        c->clear_len = 0;
        return 0;
    }
    if (c->announced && conn_buf_len(&c->out)) {
        struct conn_buf empty = c->wire;
        c->wire = c->out;
        c->out = empty;
    }
    return 0;
}

/* Of a raw connection with nothing under way. */
static void memory_trim(struct conn *c)
{
    if (!c->o.raw || c->writing || conn_queued_len(c))
        return;
    free(c->out.p);
    free(c->wire.p);
    memset(&c->out, 0, sizeof c->out);
    memset(&c->wire, 0, sizeof c->wire);
    if (c->ssl && c->state == CONN_OPEN && !c->ssl_broken)
        conn_tls_trim(c);
}

static void flush(struct conn *c)
{
    while (!c->writing && !c->write_broken && c->state != CONN_CLOSED && c->state != CONN_CONNECTING) {
        if (conn_buf_len(&c->wire) == 0) {
            int rc = wire_fill(c);
            if (rc) {
                conn_end(c, rc, "connection broken while encrypting", false);
                return;
            }
        }
        size_t len = conn_buf_len(&c->wire);
        if (len == 0) {
            if (c->state != CONN_LINGERING)
                memory_trim(c);
            if (c->state != CONN_LINGERING || c->shut)
                return;
            if (c->ssl) { /* may give some bytes more; it does so once */
                conn_tls_bye(c);
                if (BIO_ctrl_pending(c->ssl_out))
                    continue;
            }
            c->shut = true;
            c->shutdown_req.data = c;
            if (uv_shutdown(&c->shutdown_req, &c->stream, shutdown_cb))
                conn_handles_close(c);
            return;
        }
        if (c->state == CONN_CLEARING && bytes_wait(c)) {
            spoke_early(c);
            continue;
        }
        if (len > INT32_MAX)
            len = INT32_MAX;
        uv_buf_t buf = uv_buf_init((char *)c->wire.p + c->wire.start, (unsigned)len);
        int n = uv_try_write(&c->stream, &buf, 1);
        if (n > 0) {
            c->sent_len += (uint64_t)n;
            conn_buf_consume(&c->wire, (size_t)n);
            if ((size_t)n == len)
                continue;
            buf = uv_buf_init((char *)c->wire.p + c->wire.start, (unsigned)(len - (size_t)n));
        } else if (n != UV_EAGAIN) {
            write_failed(c, n);
            return;
        }
        c->write_req.data = c;
        int rc = uv_write(&c->write_req, &c->stream, &buf, 1, write_cb);
        if (rc) {
            write_failed(c, rc);
            return;
        }
        c->writing = true;
    }
}

static void write_cb(uv_write_t *req, int status)
{
    struct conn *c = req->data;
    c->writing = false;
    if (c->state == CONN_CLOSED)
        return;
    if (status < 0) {
        write_failed(c, status);
        return;
    }
    size_t len = conn_buf_len(&c->wire);
    c->sent_len += len;
    conn_buf_consume(&c->wire, len);
    flush(c);
    (void)drained(c);
    if (c->state == CONN_CLEARING)
        conn_wake(c);
}

/* --- Receiving --- */

/* Between alloc_cb and the end of its read_cb nothing else is read on the thread. */
_Thread_local uint8_t conn_scratch[CONN_READ_LEN];

static void alloc_cb(uv_handle_t *h, size_t suggested, uv_buf_t *buf_r)
{
    (void)suggested;
    struct conn *c = h->data;
    size_t room = sizeof conn_scratch;
    uint8_t *p = conn_scratch;
    if (!c->o.raw && !c->ssl && c->state != CONN_LINGERING)
        p = frame_reader_room(&c->in, CONN_READ_LEN, &room);
    *buf_r = p ? uv_buf_init((char *)p, room > INT32_MAX ? INT32_MAX : (unsigned)room) : uv_buf_init(NULL, 0);
}

static void read_ended(struct conn *c, ssize_t n)
{
    char why[200];
    if (c->state == CONN_LINGERING) {
        conn_handles_close(c);
    } else if (n == UV_ENOBUFS) {
        conn_end(c, RAFTDIR_ENOMEM, "out of memory", false);
    } else if (n != UV_EOF) {
        snprintf(why, sizeof why, "connection lost: %s", uv_strerror((int)n));
        conn_end(c, err_from_uv((int)n), why, false);
    } else if (c->state == CONN_HANDSHAKE) {
        conn_end(c, RAFTDIR_EUNAVAIL, "closed by the other end during the TLS handshake", false);
    } else if (!c->o.raw && c->in.end > c->in.start) {
        conn_end(c, RAFTDIR_EPROTO, "closed by the other end in the middle of a frame", false);
    } else {
        conn_other_ended(c);
    }
}

void conn_other_ended(struct conn *c)
{
    if (!c->o.raw) {
        conn_end(c, 0, "closed by the other end", false);
        return;
    }
    if (c->ended || c->state != CONN_OPEN)
        return;
    c->ended = true;
    reading_set(c, false);
    if (c->ev.on_eof)
        c->ev.on_eof(c);
    else
        conn_end(c, 0, "closed by the other end", true);
}

static bool takes(const struct conn *c)
{
    return c->state == CONN_OPEN && c->announced && !c->paused;
}

static void oversized(struct conn *c, int code, const char *why)
{
    if (c->ev.on_oversize)
        c->ev.on_oversize(c, code, why);
    conn_end(c, code, why, true);
}

static size_t offer(struct conn *c, const uint8_t *p, size_t len)
{
    c->offering = true;
    size_t taken = c->ev.on_data(c, p, len);
    c->offering = false;
    assert(taken <= len);
    return taken;
}

/* Is what nobody took somebody's fault? */
static void rest_check(struct conn *c)
{
    size_t len = c->in.end - c->in.start;
    char why[128];
    if (len == 0) {
        frame_reader_close(&c->in);
    } else if (c->state == CONN_CLEARING) {
        spoke_early(c);
    } else if (takes(c) && len >= c->o.frame_len_max) {
        snprintf(why, sizeof why, "more than %zu bytes that are no complete request", c->o.frame_len_max - 1);
        oversized(c, RAFTDIR_ETOOBIG, why);
    }
}

/* Plain bytes of a raw connection: offered where they are, unless there are older ones; what is left is kept. */
static void bytes_came(struct conn *c, const uint8_t *p, size_t len)
{
    bool older = c->in.end > c->in.start;
    if (!older && takes(c)) {
        size_t taken = offer(c, p, len);
        p += taken;
        len -= taken;
    }
    size_t room;
    uint8_t *to = len ? frame_reader_room(&c->in, len, &room) : NULL;
    if (len && !to) {
        conn_end(c, RAFTDIR_ENOMEM, "out of memory", false);
        return;
    }
    if (len) {
        memcpy(to, p, len);
        frame_reader_fill(&c->in, len);
    }
    if (older && takes(c))
        c->in.start += offer(c, c->in.buf + c->in.start, c->in.end - c->in.start);
    rest_check(c);
}

static void raw_pump(struct conn *c)
{
    size_t len;
    if (takes(c) && c->in.end > c->in.start) {
        c->in.start += offer(c, c->in.buf + c->in.start, c->in.end - c->in.start);
        rest_check(c);
    }
    while (c->ssl && takes(c) && !c->ended && (len = conn_tls_get(c, conn_scratch, sizeof conn_scratch)) > 0)
        bytes_came(c, conn_scratch, len);
    if (c->ssl)
        memory_trim(c);
}

static void read_cb(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *c = stream->data;
    if (n == 0)
        return;
    if (n < 0) {
        read_ended(c, n);
        return;
    }
    if (c->state == CONN_LINGERING)
        return;
    if (c->ssl) {
        if (conn_tls_feed(c, (const uint8_t *)buf->base, (size_t)n)) {
            conn_end(c, RAFTDIR_ENOMEM, "out of memory", false);
            return;
        }
    } else if (c->o.raw) {
        bytes_came(c, (const uint8_t *)buf->base, (size_t)n);
        return;
    } else {
        frame_reader_fill(&c->in, (size_t)n);
    }
    if (c->state == CONN_HANDSHAKE)
        conn_tls_handshake(c);
    conn_pump(c);
}

void conn_pump(struct conn *c)
{
    if (c->o.raw) {
        raw_pump(c);
        return;
    }
    while (c->state == CONN_OPEN && c->announced && !c->paused) {
        const uint8_t *frame;
        size_t len;
        struct err err;
        int rc = frame_reader_next(&c->in, c->o.frame_len_max, &frame, &len, &err);
        if (rc > 0) {
            c->ev.on_frame(c, frame, len);
            continue;
        }
        if (rc < 0) {
            oversized(c, rc, err.text);
            return;
        }
        if (!c->ssl || !conn_tls_read(c))
            return;
    }
}

void conn_pause(struct conn *c, bool paused)
{
    if (c->paused == paused && !(c->o.raw && !paused))
        return;
    c->paused = paused;
    if (c->state != CONN_OPEN)
        return;
    if (paused) {
        reading_set(c, false);
    } else {
        c->pump_wanted = true; /* frames that came before the pause go first, then the socket is read again */
        conn_wake(c);
    }
}

/* --- STARTTLS --- */

void conn_starttls(struct conn *c, SSL_CTX *tls)
{
    assert(c->o.raw && !c->ssl && !c->starttls && tls);
    if (c->state != CONN_OPEN)
        return;
    SSL_CTX_up_ref(tls);
    SSL_CTX_free(c->o.tls);
    c->o.tls = tls;
    c->starttls = true;
    c->clear_len = conn_buf_len(&c->out);
    c->state = CONN_CLEARING;
    reading_set(c, false);
    uv_timer_start(&c->timer, conn_timeout_cb, HANDSHAKE_TIMEOUT_MS, 0);
    if (!c->offering && c->in.end > c->in.start)
        spoke_early(c);
    conn_wake(c);
}

/* Everything that was to go out in clear has. */
static void handshake_begin(struct conn *c)
{
    struct err err;
    int rc = conn_tls_init(c, true, &err);
    if (rc) {
        conn_end(c, rc, err.text, false);
        return;
    }
    c->state = CONN_HANDSHAKE;
    uv_timer_start(&c->timer, conn_timeout_cb, HANDSHAKE_TIMEOUT_MS, 0);
}

/* --- Taking it away from the loop --- */

int conn_detach(struct conn *c, int *fd_r, SSL **ssl_r)
{
    assert(c->ssl);
    if (c->state != CONN_OPEN || !c->announced || c->write_broken || c->ssl_broken)
        return RAFTDIR_EBUSY;
    flush(c); /* what was sent just now; it fits into the socket of a peer that reads */
    if (c->state != CONN_OPEN || c->write_broken || c->writing || conn_queued_len(c) || BIO_ctrl_pending(c->ssl_out))
        return RAFTDIR_EBUSY;
    /* Bytes that came already, in any of the places on their way from the socket to on_frame. */
    if (c->in.end > c->in.start || SSL_has_pending(c->ssl) || BIO_ctrl_pending(c->ssl_in))
        return RAFTDIR_EBUSY;
    uv_os_fd_t own;
    int fd = uv_fileno(&c->handle, &own) ? -1 : fcntl(own, F_DUPFD_CLOEXEC, 0); /* libuv closes its own with the handle */
    if (fd < 0)
        return RAFTDIR_EBUSY;
    int flags = fcntl(fd, F_GETFL);
    BIO *bio = BIO_new_socket(fd, BIO_NOCLOSE);
    if (flags < 0 || !bio) {
        BIO_free(bio);
        close(fd);
        ERR_clear_error();
        return RAFTDIR_EBUSY;
    }
    reading_set(c, false);
    (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK); /* of a socket of our own: it can't fail */
    SSL_set_bio(c->ssl, bio, bio);                 /* frees the two in memory */
    *fd_r = fd;
    *ssl_r = c->ssl;
    c->ssl = NULL;
    c->ssl_in = c->ssl_out = NULL;
    c->code = 0;
    snprintf(c->why, sizeof c->why, "taken away from its loop");
    conn_handles_close(c);
    return 0;
}

/* --- One turn --- */

static void announce(struct conn *c)
{
    c->announced = true;
    c->ev.on_open(c);
}

void conn_opened(struct conn *c)
{
    c->state = CONN_OPEN;
    uv_timer_stop(&c->timer);
    if (c->paused)
        reading_set(c, false);
    if (c->state == CONN_OPEN && c->starttls) {
        c->starttls = false;
        c->ev.on_tls(c);
    } else if (c->state == CONN_OPEN) {
        announce(c);
    }
    conn_wake(c);
}

static void turn_cb(uv_idle_t *h)
{
    struct conn *c = h->data;
    bool called = false;
    if (c->state == CONN_OPEN && !c->announced) {
        announce(c);
        called = c->pump_wanted = true;
    }
    if (c->state == CONN_OPEN && c->pump_wanted && !c->paused) {
        c->pump_wanted = false;
        conn_pump(c);
        called = true;
    }
    bool wants = c->state == CONN_HANDSHAKE || c->state == CONN_LINGERING || (c->state == CONN_OPEN && !c->paused);
    if (wants && !c->write_broken && !c->ended)
        reading_set(c, true);
    flush(c);
    called |= drained(c);
    if (c->state == CONN_CLEARING && !c->writing && !c->write_broken && !c->clear_len && !conn_buf_len(&c->wire)) {
        handshake_begin(c);
        called = true; /* once more: to read */
    }
    /* After callbacks the loop makes one more round without blocking, so that what users do once a round (prepare, check) comes after them. */
    if (!called && c->state != CONN_CLOSED)
        uv_idle_stop(h);
}

/* --- About it --- */

void *conn_data(struct conn *c)
{
    return c->o.data;
}

void conn_data_set(struct conn *c, void *data)
{
    c->o.data = data;
}

const char *conn_peer_cert(struct conn *c)
{
    return c->cert_name[0] ? c->cert_name : NULL;
}

bool conn_peer_uid(struct conn *c, uid_t *uid_r, gid_t *gid_r)
{
    if (c->have_uid) {
        *uid_r = c->uid;
        *gid_r = c->gid;
    }
    return c->have_uid;
}

bool conn_peer_loopback(struct conn *c)
{
    return c->loopback;
}

const char *conn_peer_text(struct conn *c)
{
    return c->peer_text;
}
