/* srv_client.h - the client protocol (proto/client.proto) on a service thread. Private to thread_service.c and srv_client*.c.
 *
 * srv_client.c         connections: Hello, limits, requests by id, answers
 * srv_client_read.c    levels: waiting for a state that a request may be answered from; lookup, my_rights, barrier
 * srv_client_list.c    list and visible: streams of rows
 * srv_client_watch.c   watch: streams of events
 * srv_client_row.c     a mailbox as the protocol's row
 * srv_client_write.c   writes: role, check, packing, outcome
 * srv_client_admin.c   member, bootstrap, adopt, reset, verify
 * srv_client_status.c  status
 * srv_client_mupdate.c MUPDATE's sessions
 *
 * A request is in exactly one state and, apart from CALL and VERIFY, dies with its connection; those two are somebody else's until they come back. */
#ifndef RAFTDIR_SRV_CLIENT_H
#define RAFTDIR_SRV_CLIENT_H
#include <uthash.h>
#include <utlist.h>
#include "client.pb-c.h"
#include "conn.h"
#include "srv.h"

#define SRV_CHUNK_LEN (256u << 10) /* a chunk of rows ends beyond this */
#define SRV_CHUNK_NS 5000000ull /* and beyond so many nanoseconds: long ACLs and many groups */
#define SRV_CHUNK_TOUCHED 4096     /* and beyond so many rows touched: a filter may match none of millions */
/* Three marks of what waits for a client. Streams stop at the lowest, so that they alone never keep Credit, Cancel and lookups from being read; at
 * CLIENT_OUT_LEN_MAX nothing more is read; at the highest the connection closes. Under the lowest (half of conn's limit: on_drain) all goes on. */
#define SRV_OUT_LEN_MAX (CLIENT_OUT_LEN_MAX + CLIENT_OUT_LEN_MAX / 2)
#define SRV_STREAM_OUT_LEN (SRV_OUT_LEN_MAX / 2)

enum request_state {
    REQUEST_NEW = 1,
    REQUEST_CALL,     /* at the consensus thread */
    REQUEST_WAIT,     /* for an index to be published */
    REQUEST_BLOCKED,  /* answerable, but the client doesn't read what it has */
    REQUEST_RUNNABLE, /* a stream that may go on */
    REQUEST_CREDIT,   /* a stream that waits for credit */
    REQUEST_VERIFY,   /* in the pool */
};

struct verify;
struct watch;
struct request {
    UT_hash_handle hh; /* in client->requests */
    uint64_t id;
    struct client *client; /* NULL: gone */
    struct service *service;
    size_t len; /* of its memory, as far as the client chose it */
    Raftdir__Client__ToNode *msg;
    enum request_state state;
    struct request *prev, *next; /* BLOCKED: in the client's list */
    struct srv_wait wait;        /* WAIT */
    struct srv_stream stream;    /* RUNNABLE */
    uint64_t deadline_ms;
    struct consensus_call call;
    uint8_t *packed; /* a write's request */
    bool linearized; /* a write whose location was looked up in a state that is not older than the request */
    /* streams */
    struct store_scan *scan;
    bool visible;
    uint64_t rows_left;
    uint32_t credit;
    struct watch *watch;
    struct verify *verify;
    struct datadir_identity *adopt;
};

struct client {
    struct client *prev, *next;
    struct service *service;
    struct conn *conn;
    bool local; /* Unix socket */
    uid_t uid;
    unsigned rules_generation;
    struct access access;
    bool greeted, backed_up;
    uint64_t since_ms;
    struct request *requests; /* by id */
    size_t open_len;          /* of their memory */
    struct request *blocked;
    unsigned watches;
};

/* srv_client.c */
extern const struct conn_events srv_client_events;
void srv_clients_silent_close(struct service *s, uint64_t now); /* those that never said Hello */
void srv_client_accepted(struct service *s, struct conn *c, bool local);
void srv_request_free(struct request *r);
/* Answers. `f` needs only what is particular: the rest (version, id, incarnation, log time, age) is filled in. The request goes on with `more`, ends without. */
void srv_answer(struct request *r, Raftdir__Client__FromNode *f);
void srv_fail(struct request *r, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void srv_fail_err(struct request *r, int code, const struct err *err);
bool srv_client_backed_up(struct client *c);
bool srv_client_stream_full(struct client *c);
void srv_client_backed_up_set(struct client *c);
void srv_request_block(struct request *r);
bool srv_phase_allows(struct request *r); /* may this node answer it now? Answers itself when not */
bool srv_role_allows(struct request *r);  /* by the rules as they are now. Answers itself when not */
void srv_consensus_call(struct request *r, enum consensus_kind kind);

/* srv_client_read.c */
void srv_read_begin(struct request *r);
void srv_read_called(struct request *r);
void srv_read_linearize(struct request *r);
void srv_read_ready(struct request *r); /* answer now, from the published state */
void srv_wait_for(struct request *r, uint64_t index); /* srv_read_ready once it is published, ETIMEDOUT at r->deadline_ms */
/* Is a state of that age one that the request allows? Answers itself when not. */
bool srv_read_fresh(struct request *r, uint64_t age_ms);
/* srv_client_list.c */
void srv_list_begin(struct request *r);
void srv_list_credit(struct request *r, uint32_t rows);
void srv_list_resume(struct request *r);

/* srv_client_watch.c */
void srv_watch_ready(struct request *r); /* as srv_read_ready */
bool srv_watch_expired(struct request *r); /* is it one that has only waited for the next event? Then that is no failure */
void srv_watch_chunk(struct request *r);
void srv_watch_free(struct request *r);

/* srv_client_row.c: memory that a chunk of rows needs, freed at once. */
struct srv_rows {
    Raftdir__Client__Rows rows;
    Raftdir__Client__Row **pointers;
    size_t n, size;
    size_t len; /* rough size of what is in it */
};
void srv_rows_init(struct srv_rows *rows);
void srv_rows_add(struct srv_rows *rows, const struct store_mailbox *m, const acl_rights *rights); /* rights: NULL allowed */
void srv_rows_free(struct srv_rows *rows);

/* srv_client_write.c */
void srv_write_begin(struct request *r);
void srv_write_done(struct request *r);

/* srv_client_admin.c */
void srv_member_begin(struct request *r);
void srv_member_done(struct request *r);
void srv_make_begin(struct request *r); /* bootstrap, adopt */
void srv_make_done(struct request *r);
void srv_reset_begin(struct request *r);
void srv_verify_begin(struct request *r);
void srv_mupdate_sessions(struct request *r); /* srv_client_mupdate.c */
void srv_verify_unwanted(struct request *r); /* nobody waits for it any more: it ends soon */
void srv_verify_progress(struct service *s);

/* srv_client_status.c */
void srv_status(struct request *r);
void srv_hello(struct request *r);

#endif
