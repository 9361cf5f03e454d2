/* support_fake_node.h - a node for tests of libraftdir: a thread that takes connections on a Unix socket, or by TLS on a port of the loopback, answers hello, and hands every other request
 * to the test, which answers as it likes, late, wrong, or never. The handler runs on the node's thread, with the node's lock held. */
#ifndef SUPPORT_FAKE_NODE_H
#define SUPPORT_FAKE_NODE_H
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "client.pb-c.h"
#include "raftdir/frame.h"

#define FAKE_CONNS_MAX 16
#define FAKE_SEEN_MAX 4096

struct fake;
typedef void fake_handler(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m);

struct fake {
    char path[108], endpoint[128];
    SSL_CTX *tls;              /* NULL: a Unix socket */
    const char *identity;      /* in hello answers; default "unix:0" */
    int hello_code;            /* refuse with this code */
    const char *hello_text;
    bool hello_silent;
    bool answers_pings;        /* barriers without an index: a node that hangs doesn't */
    uint64_t log_time_ms, incarnation;
    fake_handler *handler;
    void *data;
    /* what came: request kinds, counted by ToNode's field number */
    unsigned seen[64];
    unsigned conns_opened;
    unsigned farewells;        /* TLS connections that ended with a close_notify */
    uint64_t credit;           /* rows that credit frames have granted */
    /* the node's own */
    pthread_t thread;
    pthread_mutex_t lock;
    int listener, wake[2];
    bool running, up; /* up: its thread has begun */
    struct {
        int fd;
        SSL *ssl;
        struct frame_reader in;
        bool close_after;
    } conns[FAKE_CONNS_MAX];
};

/* `dir` must exist. The socket is DIR/NAME.sock. */
void fake_start(struct fake *f, const char *dir, const char *name, fake_handler *handler, void *data);
/* By TLS, with a context that stays the caller's; the endpoint has the port. */
void fake_start_tls(struct fake *f, const char *name, SSL_CTX *tls, fake_handler *handler, void *data);
void fake_stop(struct fake *f); /* closes everything and removes the socket; idempotent */
unsigned fake_seen(struct fake *f, unsigned field); /* locked */
/* From within a handler (the lock is held), or between fake_lock and fake_unlock. */
void fake_lock(struct fake *f);
void fake_unlock(struct fake *f);
void fake_answer(struct fake *f, unsigned conn, uint64_t request_id, Raftdir__Client__FromNode *m); /* version, id, log time, incarnation are filled in */
void fake_code(struct fake *f, unsigned conn, uint64_t request_id, int code, const char *text);
void fake_row(struct fake *f, unsigned conn, uint64_t request_id, const char *name, const char *server, uint64_t index);
void fake_write_result(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m, int code, uint64_t index, const char *text); /* one OpResult an op */
void fake_bytes(struct fake *f, unsigned conn, const void *data, size_t len);
void fake_close(struct fake *f, unsigned conn);

#endif
