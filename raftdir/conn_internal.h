/* conn_internal.h - what conn.c (sockets, life cycle), conn_begin.c (accepting, connecting) and conn_tls.c (OpenSSL on memory BIOs) share. */
#ifndef RAFTDIR_CONN_INTERNAL_H
#define RAFTDIR_CONN_INTERNAL_H
#include "conn.h"

#define CONN_READ_LEN 65536
#define CONN_TLS_CHUNK_LEN (256u << 10) /* encrypted at a time: bounds the copy that waits for the socket */

enum conn_state {
    CONN_CONNECTING = 1, /* resolving, connecting */
    CONN_HANDSHAKE,      /* TLS */
    CONN_OPEN,
    CONN_CLEARING,   /* conn_starttls: what was queued goes out in clear, nothing is read */
    CONN_LINGERING, /* closed by us: what is queued goes out, what comes in is thrown away */
    CONN_CLOSED,    /* handles are being closed; on_close is next */
};

struct conn_buf {
    uint8_t *p;
    size_t start, end, size;
};

/* A name being resolved; outlives its connection if that ends first. */
struct conn_resolve {
    uv_getaddrinfo_t req;
    struct conn *c; /* NULL: nobody waits any more */
};

struct conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    };
    uv_idle_t turn;  /* once before the loop blocks: deferred callbacks, and the flush of all that one turn queued */
    uv_timer_t timer;  /* connecting, handshake, lingering */
    unsigned handles;  /* initialised and not yet closed */
    uv_connect_t connect_req;
    uv_write_t write_req;
    uv_shutdown_t shutdown_req;

    struct conn_options o;
    struct conn_events ev;
    enum conn_state state;
    bool announced;    /* on_open was called */
    bool silent;       /* never given to a caller: no on_close */
    bool paused, reading;
    bool pump_wanted;  /* frames may wait in `in` after a pause */
    bool writing;      /* write_req is under way */
    bool write_broken; /* the socket takes nothing more: wait for what the other end had to say */
    bool shut;         /* shutdown was asked for */
    bool drain_wanted;
    bool offering;     /* within on_data */
    bool ended;        /* the other end has closed its side */
    bool starttls;     /* from conn_starttls to on_tls: nothing but clear_len bytes of `out` goes to the socket */
    size_t clear_len;
    int code;
    char why[256];

    struct conn_resolve *resolve;
    struct addrinfo *addrs, *addr; /* all, and the one to try next */

    struct frame_reader in;
    struct conn_buf out;  /* frames, not encrypted */
    struct conn_buf wire; /* what the socket gets; not touched while `writing` */
    uint64_t sent_len;

    SSL *ssl;
    BIO *ssl_in, *ssl_out; /* of the network side; owned by ssl */
    bool ssl_broken;       /* no more calls for data */

    bool have_uid;
    bool loopback;
    uid_t uid;
    gid_t gid;
    char cert_name[256];
    char peer_text[320];
};

/* conn.c */
extern _Thread_local uint8_t conn_scratch[CONN_READ_LEN]; /* free whenever no read callback uses it */
int conn_buf_append(struct conn_buf *b, const void *data, size_t len);
void conn_buf_consume(struct conn_buf *b, size_t len);
size_t conn_buf_len(const struct conn_buf *b);
void conn_opened(struct conn *c);
void conn_pump(struct conn *c);
void conn_wake(struct conn *c);
/* The other end sends nothing more. */
void conn_other_ended(struct conn *c);
/* The end. linger: the other end should still get what is queued. */
void conn_end(struct conn *c, int code, const char *why, bool linger);

void conn_handles_close(struct conn *c);
void conn_handle_closed(uv_handle_t *h);
void conn_timeout_cb(uv_timer_t *t);

/* conn_begin.c */
void conn_address_try(struct conn *c); /* the next address of the name; there is one */

/* conn_tls.c */
int conn_tls_init(struct conn *c, bool accepted, struct err *err);
int conn_tls_feed(struct conn *c, const uint8_t *data, size_t len); /* bytes from the socket; < 0: no memory */
void conn_tls_handshake(struct conn *c);
size_t conn_tls_get(struct conn *c, uint8_t *buf_r, size_t size); /* some more plain bytes; 0: none now, or the connection has ended */
int conn_tls_read(struct conn *c);  /* the same into c->in: 1 or 0 */
int conn_tls_fill(struct conn *c);  /* encrypts from c->out into c->wire; < 0: no memory or the connection is broken */
void conn_tls_bye(struct conn *c);  /* close_notify */
void conn_tls_trim(struct conn *c); /* nothing is under way: gives large buffers back */
void conn_tls_close(struct conn *c);

#endif
