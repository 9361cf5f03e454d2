/* lib_internal.h - what the parts of libraftdir share. One handle = endpoints, their links (connections), and calls in flight; one thread.
 *
 * endpoint: where a node may be reached; lives as long as the handle. link: one connection to it (lib_link.c).
 * call: one question or write of the user's (lib_engine.c), which becomes one or more attempts: requests sent to endpoints. The first attempt that
 * gets a deciding answer ends the call; answers to other attempts, however late, are dropped by their request id. */
#ifndef RAFTDIR_LIB_INTERNAL_H
#define RAFTDIR_LIB_INTERNAL_H
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "client.pb-c.h"
#include "include/raftdir.h"
#include "raftdir/err.h"
#include "raftdir/frame.h"
#include "raftdir/limits.h"

#define LIB_SENDING_MAX 16 /* images that one node sends at a time; what is beyond is not shown */
#define ENDPOINTS_MAX 64             /* a bit each in call.tried */
#define CALL_ATTEMPTS_MAX 4          /* of one call at one moment */
#define TIMEOUT_DEFAULT_MS 10000
#define PATIENCE_DEFAULT_MS 300
#define WINDOW_DEFAULT 16
#define WINDOW_MAX 1024
#define LINK_TIMEOUT_MS HANDSHAKE_TIMEOUT_MS /* connect, handshake and hello together */
#define RETRY_PAUSE_MS 50            /* between rounds over all endpoints */
#define RECONNECT_MAX_MS 500
#define SLOW_MS 2000                 /* an endpoint that let us wait isn't the first choice for this long */
#define STREAM_PATIENCE 4            /* a silent stream moves to another node after this many patiences */
#define ANSWER_MARGIN_MS 200         /* nodes are told to give up so much before we do */
#define LAST_ATTEMPT_MS 100          /* no write is begun again with less time than this */
#define LIST_WINDOW 2048             /* rows of credit */

struct raftdir;
struct call;

enum link_state { LINK_CONNECTING, LINK_HANDSHAKE, LINK_HELLO, LINK_READY };

struct link {
    int fd;
    SSL *ssl; /* NULL on a Unix socket */
    enum link_state state;
    short want;          /* poll events that TLS asked for */
    struct frame_reader in;
    uint8_t *out;
    size_t out_start, out_end, out_size;
    uint64_t queued;     /* bytes ever queued */
    uint64_t tried;      /* stream position behind the last byte ever offered to the socket or to TLS */
    uint64_t deadline;   /* while not ready */
    uint64_t hello_id;
};

struct endpoint {
    char *text;
    char *path;          /* unix: */
    char *host, *port;   /* tls: */
    char *name;          /* the certificate must carry it; NULL: any server certificate of the CA */
    bool learned;
    struct link *link;   /* NULL: not connected */
    uint64_t retry_at;   /* no new link before */
    unsigned failures;   /* links in a row that never became ready */
    bool hard;           /* the last failure doesn't go away by itself (permissions, certificates, versions) */
    uint64_t slow_until;
    uint64_t last_rx;
    struct err err;      /* of the last failure */
    char *node, *identity, *role; /* of the last hello; NULL before */
    uint64_t node_id;
};

struct attempt {
    struct endpoint *ep;
    uint64_t request_id;
    uint64_t started_at;
    uint64_t end_pos;    /* link.queued behind its frame; 0: not queued yet, the link isn't ready */
};

enum {
    CALL_WRITE = 1,  /* exactly-once: may be sent to many, may end uncertain */
    CALL_HEDGE = 2,  /* may be sent to a second endpoint while the first is silent */
    CALL_ONCE = 4,   /* must not be sent again when it may have been done: ends uncertain */
    CALL_STREAM = 8, /* many answers; taken by on_frame */
    CALL_SWITCH = 16 /* a silent stream moves to another endpoint */
};

struct call {
    struct call *prev, *next;
    struct raftdir *d;
    unsigned flags;
    unsigned body_field; /* of ToNode */
    uint8_t *body;
    size_t body_len;
    int level;           /* enum raftdir_level */
    uint64_t min_index, min_incarnation; /* beyond what the handle has seen; 0: no more than that */
    int pinned;          /* endpoint, or -1 */
    uint64_t timeout_ms, started_at, deadline, next_at;
    uint64_t waiting_since; /* streams: the user waits for a frame; 0: not */
    uint64_t last_frame_at;
    struct attempt attempts[CALL_ATTEMPTS_MAX];
    unsigned attempts_n;
    uint64_t tried;      /* endpoints tried in this round, a bit each */
    unsigned round_n, round_hard; /* attempts that ended in this round; those of them that trying again won't help */
    unsigned sent_n;     /* attempts that reached a wire */
    bool maybe;          /* an ended attempt may have been done */
    bool connected;      /* an endpoint was reached */
    bool decided;        /* a write: applied, but as sent under another identity, so that only that attempt gets the result */
    struct err fail;     /* why the last attempt ended; code 0: none did */
    bool done;
    struct err result;   /* when done */
    Raftdir__Client__FromNode *answer; /* when done, and there was one */
    struct endpoint *answered_by;
    uint32_t op_id_pos, expires_pos; /* writes: where they stand in the body; 0: not a write */
    bool expires_set, anew;
    int (*prepare)(struct call *c);                                     /* streams: rebuild the body before each attempt; NULL: nothing to do */
    void (*on_frame)(struct call *c, Raftdir__Client__FromNode *answer); /* streams: takes the answer */
    void *data;
    raftdir_done_fn *done_fn; /* submitted writes */
};

struct raftdir {
    pid_t pid;
    struct endpoint *endpoints[ENDPOINTS_MAX];
    unsigned endpoints_n;
    bool only_these;
    SSL_CTX *tls;        /* NULL without tls: endpoints and without a CA */
    char *software;
    unsigned timeout_ms, patience_ms, unreachable_ms, window;
    int level;
    int pinned;
    uint64_t next_id;
    struct call *calls;
    unsigned submitted_n;
    /* What has been seen. */
    uint64_t incarnation, index; /* the session */
    uint64_t log_time_ms;
    uint64_t answer_incarnation, answer_index;
    int64_t answer_age_ms;
    struct endpoint *answer_ep;
    /* What was given to the user, until the next call. */
    struct err err;
    Raftdir__Client__FromNode *kept;
    struct raftdir_mailbox mailbox;
    struct raftdir_result result;
    struct raftdir_op_result *result_ops;
    struct raftdir_node_status status;
    struct raftdir_image sending[LIB_SENDING_MAX];
    struct raftdir_node_info info;
    struct raftdir_members members;
    struct raftdir_member *member_list;
    struct raftdir_verify_result verify;
    struct raftdir_checkpoint *checkpoints;
};

/* lib_handle.c */
uint64_t lib_now_ms(void);
int lib_random(void *buf, size_t len, struct err *err);
/* The start of every public function: right process, error cleared. */
int lib_enter(struct raftdir *d);
/* ... without clearing the error. */
int lib_check(struct raftdir *d);
struct endpoint *endpoint_add(struct raftdir *d, const char *text, size_t len, bool learned, struct err *err);

/* lib_link.c */
int link_open(struct raftdir *d, struct endpoint *ep, uint64_t now, struct err *err);
void link_close(struct link **link, bool quiet); /* quiet: say nothing on the wire */
short link_events(const struct link *l);
/* Goes on with what the socket is ready for. Negative: the link is of no more use. */
int link_progress(struct endpoint *ep, struct err *err);
/* A frame: ToNode's scalars, packed, then the body as field `field`. Copies. RAFTDIR_ETOOBIG, RAFTDIR_ENOMEM. */
int link_queue(struct link *l, const Raftdir__Client__ToNode *head, unsigned field, const uint8_t *body, size_t body_len, struct err *err);

/* lib_engine.c */
struct call *call_create(struct raftdir *d, unsigned flags, unsigned body_field); /* NULL without memory; not started */
int call_body(struct call *c, const ProtobufCMessage *body);                        /* packs */
void call_start(struct call *c);
void call_destroy(struct call **c);         /* ends its attempts */
int call_wait(struct call *c);               /* runs the engine until it is done; its code */
void engine_turn(struct raftdir *d, uint64_t until); /* one round: schedule, poll, read, answer */
void engine_flush(struct raftdir *d);        /* schedule and send, without waiting or reading */
int call_credit(struct call *c, uint32_t rows);
/* call_start, call_wait, the answer kept in the handle, the call freed. The code is put into d->err. */
int call_run(struct raftdir *d, struct call **c);
bool call_code_is_final(const struct call *c, int code);

/* lib_mailbox.c */
void mailbox_from_row(struct raftdir_mailbox *m_r, const Raftdir__Client__Row *row); /* borrows the row's strings */

/* lib_admin.c */
int members_from(struct raftdir *d, Raftdir__Cluster__Member *const *list, size_t n, uint64_t leader);

#endif
