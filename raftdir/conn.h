/* conn.h - one connection on a libuv loop: TCP or Unix socket, TLS or none, carrying frames or plain bytes both ways. All calls on the loop's thread.
 *
 * Happy path: conn_accept or conn_connect -> (TLS handshake, names known) on_open -> on_frame ... -> conn_close or the peer's end -> on_close, once, last.
 * Failures: a handshake longer than HANDSHAKE_TIMEOUT_MS, a frame over frame_len_max, a TLS or socket error: on_close with code and text.
 * No callback is made from within one of these functions. After conn_close only on_close is.
 * TCP_NODELAY, keepalive and TCP_USER_TIMEOUT are set. SIGPIPE is ignored from the first connection on, unless the program handles it. */
#ifndef RAFTDIR_CONN_H
#define RAFTDIR_CONN_H
#include <openssl/ssl.h>
#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>
#include "err.h"
#include "frame.h"

struct conn;
struct conn_events {
    void (*on_open)(struct conn *c);
    void (*on_frame)(struct conn *c, const uint8_t *frame, size_t len); /* borrowed */
    void (*on_drain)(struct conn *c);                                    /* queued bytes fell below half of out_len_max; may be NULL */
    /* The other end announced a frame over frame_len_max: the connection is about to close with `code`. What is sent from here still goes out. May be NULL. */
    void (*on_oversize)(struct conn *c, int code, const char *why);
    void (*on_close)(struct conn *c, int code, const char *why);         /* the conn is freed after it; code 0: closed in order */
    /* Instead of on_frame, with conn_options.raw: all bytes that came and weren't taken. Returns how many are taken; the rest is offered again together with what
     * comes next, or after conn_pause(c, false), which asks for that also when nothing was paused. frame_len_max bytes that nobody takes end the connection as an
     * oversized frame does, unless it is paused. */
    size_t (*on_data)(struct conn *c, const uint8_t *data, size_t len);
    void (*on_tls)(struct conn *c); /* conn_starttls has succeeded; conn_peer_cert is known */
    /* Raw: the other end sends nothing more, but may still read: the connection is the user's to close, also when more than on_data took is left. It is gone when a
     * conn_send fails. NULL: the connection ends, after what is queued went out. */
    void (*on_eof)(struct conn *c);
};
struct conn_options {
    SSL_CTX *tls;         /* NULL: no TLS. Referenced for as long as it is needed */
    size_t frame_len_max; /* of what comes in */
    size_t out_len_max;   /* of what waits to go out; one frame of any length is taken when nothing waits */
    void *data;
    unsigned user_timeout_ms;    /* unacknowledged bytes older than this end the connection; 0: CONN_USER_TIMEOUT_MS */
    unsigned connect_timeout_ms; /* for each address of the name; 0: HANDSHAKE_TIMEOUT_MS */
    bool raw;             /* a stream of bytes, no frames: conn_send sends what it is given, on_data gets what comes */
    unsigned notsent_len;        /* TCP_NOTSENT_LOWAT: bytes that may wait in the kernel behind what is on its way; 0: the kernel's own */
};
#define CONN_USER_TIMEOUT_MS 30000
/* Takes the connection that `listener` (uv_tcp_t or uv_pipe_t) announces. */
int conn_accept(uv_loop_t *loop, uv_stream_t *listener, const struct conn_options *o, const struct conn_events *ev, struct conn **conn_r, struct err *err);
/* host: name or address, resolved asynchronously, its addresses tried one after the other; or the path of a Unix socket ("/..."; port is ignored). */
int conn_connect(uv_loop_t *loop, const char *host, const char *port, const struct conn_options *o, const struct conn_events *ev,
                 struct conn **conn_r, struct err *err);
/* Copies; before on_open too. RAFTDIR_ELIMIT: out_len_max is full and nothing was queued (on_drain will come). RAFTDIR_ECANCELED: closed.
 * Frames queued within one loop turn leave in one TLS write and one system call. */
int conn_send(struct conn *c, const uint8_t *frame, size_t len);
/* Raw connections without TLS, from within on_data or later: what is queued goes out in clear, then both ends speak TLS, as a server here. on_tls, or on_close with
 * RAFTDIR_EAUTH, ETIMEDOUT and so on. Bytes that came before the other end could know (RFC 3207, section 5: they may be somebody else's) close the connection with
 * RAFTDIR_EPROTO; what the running on_data takes doesn't count. References tls. */
void conn_starttls(struct conn *c, SSL_CTX *tls);
size_t conn_queued_len(const struct conn *c);
uint64_t conn_sent_len(const struct conn *c); /* bytes that the socket has taken so far: does the other end still read? */
void conn_pause(struct conn *c, bool paused); /* stop or go on reading */
/* on_close comes later. Idempotent: the first reason counts. What was queued is still sent, for at most CONN_LINGER_MS. */
void conn_close(struct conn *c, int code, const char *why);
#define CONN_LINGER_MS 1000
/* Takes an open TLS connection away from its loop, from within on_frame or later, when nothing is queued and the peer has sent no more than was handled:
 * a blocking socket and the SSL object on it (SSL_set_fd done; both given). on_close comes as for a conn_close with code 0, without touching the socket.
 * RAFTDIR_EBUSY: bytes are under way in either direction (or there is no descriptor left); nothing was changed, it may be tried again later. */
int conn_detach(struct conn *c, int *fd_r, SSL **ssl_r);
void *conn_data(struct conn *c);
void conn_data_set(struct conn *c, void *data);
const char *conn_peer_cert(struct conn *c);             /* the peer's certificate name; NULL without one, without TLS or before on_open */
bool conn_peer_uid(struct conn *c, uid_t *uid_r, gid_t *gid_r); /* Unix sockets */
bool conn_peer_loopback(struct conn *c);                /* accepted, TCP: the other end is a process of this machine (127.0.0.0/8, ::1) */
const char *conn_peer_text(struct conn *c);             /* address for logs */

#endif
