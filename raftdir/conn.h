/* conn.h - one connection on a libuv loop: TCP or Unix socket, TLS or none, carrying frames both ways. All calls on the loop's thread.
 *
 * Happy path: conn_accept or conn_connect -> (TLS handshake, names known) on_open -> on_frame ... -> conn_close or the peer's end -> on_close, once, last.
 * Failures: a handshake longer than HANDSHAKE_TIMEOUT_MS, a frame over frame_len_max, a TLS or socket error: on_close with code and text.
 * TCP_NODELAY, keepalive and TCP_USER_TIMEOUT are set. */
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
    void (*on_close)(struct conn *c, int code, const char *why);         /* the conn is freed after it; code 0: closed in order */
};
struct conn_options {
    SSL_CTX *tls;         /* NULL: no TLS */
    size_t frame_len_max;
    size_t out_len_max;
    void *data;
};
int conn_accept(uv_loop_t *loop, uv_stream_t *listener, const struct conn_options *o, const struct conn_events *ev, struct conn **conn_r, struct err *err);
/* A pair from socketpair or accept elsewhere is not needed. host: name or address; resolved asynchronously. */
int conn_connect(uv_loop_t *loop, const char *host, const char *port, const struct conn_options *o, const struct conn_events *ev,
                 struct conn **conn_r, struct err *err);
/* Copies. RAFTDIR_ELIMIT: out_len_max is full and nothing was queued. Frames queued within one loop turn leave in one TLS write and one system call. */
int conn_send(struct conn *c, const uint8_t *frame, size_t len);
size_t conn_queued_len(const struct conn *c);
void conn_pause(struct conn *c, bool paused); /* stop or go on reading */
void conn_close(struct conn *c, int code, const char *why); /* on_close comes later, never inside this call. Idempotent */
void *conn_data(struct conn *c);
void conn_data_set(struct conn *c, void *data);
const char *conn_peer_cert(struct conn *c);             /* the peer's certificate name; NULL without TLS */
bool conn_peer_uid(struct conn *c, uid_t *uid_r, gid_t *gid_r); /* Unix sockets */
const char *conn_peer_text(struct conn *c);             /* address for logs */

#endif
