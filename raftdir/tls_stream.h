/* tls_stream.h - frames over TLS for a thread that has nothing else to do: every call waits, with a bound, and another thread can end it at once.
 *
 * For bulk transfers (images). What answers many at a time is conn.h. One thread uses a stream; tls_cancel_now is for any thread.
 * RAFTDIR_ETIMEDOUT: no byte moved for io_timeout_ms; RAFTDIR_ECANCELED: tls_cancel_now; RAFTDIR_EUNAVAIL: the connection broke;
 * RAFTDIR_EAUTH, RAFTDIR_EPROTO: TLS. After any of them only tls_stream_close. The program ignores SIGPIPE, or the thread blocks it. */
#ifndef RAFTDIR_TLS_STREAM_H
#define RAFTDIR_TLS_STREAM_H
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "frame.h"

/* Ends what waits: now, and everything that is begun with it later. */
struct tls_cancel {
    int fd; /* an eventfd, readable once it is cancelled */
};
int tls_cancel_init(struct tls_cancel *c, struct err *err);
void tls_cancel_now(struct tls_cancel *c);   /* any thread; async-signal-safe */
void tls_cancel_clear(struct tls_cancel *c); /* from now on it is not cancelled any more */
bool tls_cancelled(const struct tls_cancel *c);
bool tls_cancel_sleep(const struct tls_cancel *c, uint64_t ms); /* true: cancelled, at once */
void tls_cancel_close(struct tls_cancel *c);

struct tls_stream;
struct tls_stream_options {
    unsigned connect_timeout_ms; /* for each address of a name, for the name server, and for the handshake */
    unsigned io_timeout_ms;      /* without a byte. 0: don't wait at all */
    const struct tls_cancel *cancel; /* outlives the stream; NULL: none */
};
/* Connects as a client. The peer's certificate is checked against the CA; whose it is (tls_stream_peer) is the caller's to judge. */
int tls_stream_connect(const char *host, const char *port, SSL_CTX *tls, const struct tls_stream_options *o, struct tls_stream **stream_r, struct err *err);
/* On an open connection (conn_detach): socket and SSL object are given, in the case of an error too. */
int tls_stream_adopt(int fd, SSL *ssl, const struct tls_stream_options *o, struct tls_stream **stream_r, struct err *err);
const char *tls_stream_peer(const struct tls_stream *s); /* the name in the peer's certificate */

/* A frame whole, */
int tls_stream_send(struct tls_stream *s, const uint8_t *frame, size_t len, struct err *err);
/* or its header and then its bytes, in as many pieces as the caller likes. */
int tls_stream_send_header(struct tls_stream *s, uint32_t len, struct err *err);
int tls_stream_send_bytes(struct tls_stream *s, const uint8_t *bytes, size_t len, struct err *err);
/* The next frame, borrowed until the next call. RAFTDIR_ENOTFOUND: the other end has closed in order, between two frames. RAFTDIR_ETOOBIG: longer than len_max. */
int tls_stream_receive(struct tls_stream *s, size_t len_max, const uint8_t **frame_r, size_t *len_r, struct err *err);
/* Says goodbye if that takes no waiting. Nulls. */
void tls_stream_close(struct tls_stream **s);

#endif
