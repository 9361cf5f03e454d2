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
#define LATENCY_SAMPLES_MIN 3        /* before that nobody knows what is slow */
#define SLOW_MS 2000                 /* an endpoint that let us wait isn't the first choice for this long */
#define STREAM_PATIENCE 4            /* a silent stream moves to another node after this many patiences */
#define ANSWER_MARGIN_MS 200         /* nodes are told to give up so much before we do */
#define LAST_ATTEMPT_MS 100          /* no write is begun again with less time than this */
#define ABSENT_MAX_AGE_DEFAULT_MS 5000
#define LIST_WINDOW 2048             /* rows of credit */
#define WATCH_WINDOW 512             /* events of credit */
#define READS_MAX 1024               /* reads begun by raftdir_*_start, in flight */
#define CALL_BUCKETS 256             /* calls in flight, by their number */
#define CALL_ATTEMPT_BITS 20         /* a request id: the call's number, then which of its attempts */
#define SIZED_EXTRA_MAX 1024         /* bytes that a newer program's struct may have beyond ours */
#define UNWATCHED_MS 10              /* how often a link is looked at that the kernel has no room to watch */

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
    bool doubtful;       /* TLS failed over certificates, it said */
    int loop_fd;         /* where it is registered for `watched`; valid while that isn't 0 */
    short watched;       /* poll events */
};

/* What requests of one kind take at an endpoint, in sixteenths of a millisecond. */
enum { LATENCY_READ, LATENCY_QUORUM_READ, LATENCY_WRITE, LATENCY_KINDS };
struct latency {
    uint32_t mean, deviation, samples;
};

struct endpoint {
    char *text;          /* without its site */
    char *path;          /* unix: */
    char *host, *port;   /* tls: */
    char *name;          /* the certificate must carry it; NULL: any server certificate of the CA */
    char *site;          /* NULL: not known */
    bool site_given;     /* by the user; else a node said so */
    uint32_t given;      /* by which of d->sources, a bit each, or by the list itself */
    bool told;           /* by a node */
    bool learned;        /* only told, not given */
    bool removed;        /* neither: not for new calls */
    uint32_t order;      /* of preference: item of the list, and where it stands in the item's file */
    struct link *link;   /* NULL: not connected */
    uint64_t retry_at;   /* no new link before */
    unsigned failures;   /* links in a row that never became ready */
    bool doubted;        /* the last link was doubtful */
    bool hard;           /* the last failure doesn't go away by itself (permissions, certificates, versions) */
    uint64_t slow_until;
    uint64_t last_rx;
    uint64_t last_answer; /* last_rx but for answers to pings */
    uint64_t ping_at;    /* when the last ping was sent */
    uint64_t ping_id;    /* of the last one */
    bool ping_open;      /* nothing has come since */
    unsigned beaten;     /* times in a row that a second endpoint was faster */
    struct latency latency[LATENCY_KINDS];
    struct err err;      /* of the last failure */
    char *node, *identity, *role; /* of the last hello; NULL before */
    uint64_t node_id;
};

struct attempt {
    struct endpoint *ep;
    uint64_t request_id;
    uint64_t started_at;
    uint64_t sent_at;    /* queued on a ready link */
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
    struct call *hash_next;  /* in the handle's by_serial */
    struct call *ended_next; /* in the handle's ended */
    uint64_t serial;         /* 0: not started */
    uint32_t attempts_made;
    struct raftdir *d;
    unsigned flags;
    unsigned body_field; /* of ToNode */
    uint8_t *body;
    size_t body_len;
    int level;           /* enum raftdir_level */
    unsigned max_age_ms, absent_max_age_ms; /* reads only; 0: any age */
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
    uint64_t expires_ms; /* when expires_set */
    bool expires_set, anew;
    int (*prepare)(struct call *c);                                     /* streams: rebuild the body before each attempt; NULL: nothing to do */
    void (*on_frame)(struct call *c, Raftdir__Client__FromNode *answer); /* streams: takes the answer */
    bool (*is_final)(struct call *c, const Raftdir__Client__FromNode *answer, int code); /* streams: ends it although another node might say otherwise; NULL: no */
    void *data;
    raftdir_done_fn *done_fn;         /* submitted writes */
    raftdir_mailbox_fn *answered_fn;  /* reads begun by raftdir_*_start */
    struct raftdir_mailbox *found;    /* ... and answered from this host's copy of the state */
};

struct raftdir {
    pid_t pid;
    struct endpoint *endpoints[ENDPOINTS_MAX];
    unsigned endpoints_n;
    struct source *sources; /* file: and dns: items */
    unsigned sources_n;
    char *site;          /* ours; NULL: not known yet */
    unsigned hedge_budget; /* in hundredths of a request */
    uint64_t writes_since; /* writes_n began then */
    unsigned writes_n;
    bool only_these;
    SSL_CTX *tls;        /* NULL without tls: endpoints and without a CA */
    char *software;
    unsigned timeout_ms, patience_ms, unreachable_ms, window;
    int level;
    unsigned max_age_ms, absent_max_age_ms; /* 0 (the first only): any age */
    struct local *local; /* lib_local.h; NULL: this host's state is never read directly */
    int pinned;
    uint64_t next_serial; /* of calls and of hellos */
    struct call *calls;
    struct call *by_serial[CALL_BUCKETS];
    struct call *ended, **ended_last; /* those with a callback that is to be called */
    unsigned submitted_n, reads_n;
    uint64_t schedule_at;    /* when calls are to be looked at again; 0: at once */
    bool ended_some;         /* a call ended in this turn */
    bool nonblocking;
    bool in_callback, closing;
    int loop_fd, timer_fd;   /* raftdir_fd; -1: nobody has asked for it */
    uint64_t timer_at;       /* what the timer is set to; UINT64_MAX: not set */
    /* What has been seen. */
    uint64_t incarnation, index; /* the session */
    uint64_t cluster_id;         /* of the node that last said hello; 0: none yet */
    uint64_t log_time_ms;
    bool answer_local;
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
    Raftdir__Client__FromNode **session_frames; /* whose strings mupdate_session_list has */
    size_t session_frames_n;
    struct raftdir_mupdate_session *mupdate_session_list;
    struct raftdir_mupdate_sessions mupdate_sessions;
    struct raftdir_checkpoint *checkpoints;
};

/* lib_handle.c */
pid_t lib_pid(void); /* lib_pid.c: of this process, without a system call */
uint64_t lib_now_ms(void);
/* A caller's struct that begins with its size, as ours. false: raftdir_*_init didn't begin it, or it uses members that this version doesn't know. */
bool lib_sized(void *own, size_t own_size, const void *given, size_t given_size);
int lib_random(void *buf, size_t len, struct err *err);
/* The start of every public function: right process, not within a callback, error cleared. */
void lib_sessions_free(struct raftdir *d); /* lib_mupdate.c */
int lib_enter(struct raftdir *d);
/* ... that callbacks may call. */
int lib_enter_callback(struct raftdir *d);
/* ... without clearing the error. */
int lib_check(struct raftdir *d);

/* lib_endpoints.c */
int endpoints_open(struct raftdir *d, const char *list, struct err *err); /* the whole list; err says what is wrong where */
bool endpoints_need_tls(const struct raftdir *d);
/* Adds what a node told: host:port and its site (NULL: not known). What can't be used is passed over. */
void endpoints_learn(struct raftdir *d, const char *address, const char *site);
void endpoints_answered(struct raftdir *d, struct endpoint *ep, const char *site); /* a node said hello, and where it is (NULL: it didn't) */
/* Looks whether files have changed and, when nothing answers, whether DNS has anything new; cheap when there is nothing to do. DNS may block for DNS_TIMEOUT_S a server. */
void endpoints_refresh(struct raftdir *d, bool none_answers, uint64_t now);
/* Why there is no better list: the first source with a problem; NULL: none. */
const struct err *endpoints_problem(const struct raftdir *d);
void endpoints_close(struct raftdir *d, bool quiet);

/* lib_dns.c */
struct dns_target {
    char text[300];      /* tls:host:port */
};
/* SRV records, in the order in which they are to be used, or (port not NULL) all addresses of the name. The number found, at least 1, or an error. */
int dns_lookup(const char *name, const char *port, struct dns_target *targets, unsigned targets_max, struct err *err);
/* The part of it that reads an answer: for tests. */
int dns_read_srv(const uint8_t *answer, size_t len, struct dns_target *targets, unsigned targets_max, struct err *err);

/* lib_choose.c */
void choose_init(struct raftdir *d);
void choose_started(struct call *c);                                        /* it has just begun */
struct endpoint *choose_endpoint(const struct call *c, uint64_t now);       /* for its next attempt; NULL: none now */
struct endpoint *choose_second(struct call *c, uint64_t now);               /* for one more attempt beside those that wait; NULL: not now */
struct endpoint *choose_warm(const struct call *c, uint64_t now);           /* to connect to ahead of need; NULL: none */
bool choose_ping(const struct call *c, const struct attempt *a, uint64_t now);  /* is a ping due on the attempt's link? */
void choose_answered(struct call *c, unsigned i, uint64_t now);             /* attempt i got its answer, before it is dropped */
uint64_t choose_wakes(const struct call *c, uint64_t now);                   /* when choose_second or choose_ping may say something else */
bool choose_nothing_reachable(const struct call *c);  /* is every endpoint out of reach, and none just being tried for the first time? */
bool choose_all_tried(const struct call *c);           /* has this round seen every endpoint that there is? */
unsigned endpoint_number(const struct raftdir *d, const struct endpoint *ep);

/* lib_link.c */
int link_open(struct raftdir *d, struct endpoint *ep, uint64_t now, struct err *err);
void link_close(struct link **link, bool quiet); /* quiet: say nothing on the wire */
void link_unwatch(struct link *l);               /* its event loop forgets it; nothing when there is none */
short link_events(const struct link *l);
/* Goes on with what the socket is ready for. Negative: the link is of no more use. */
int link_progress(struct endpoint *ep, struct err *err);
/* A frame: ToNode's scalars, packed, then the body as field `field`. Copies. RAFTDIR_ETOOBIG, RAFTDIR_ENOMEM. */
int link_queue(struct link *l, const Raftdir__Client__ToNode *head, unsigned field, const uint8_t *body, size_t body_len, struct err *err);

/* lib_engine.c */
struct call *call_create(struct raftdir *d, unsigned flags, unsigned body_field); /* NULL without memory; not started */
int call_body(struct call *c, const ProtobufCMessage *body);                        /* packs */
void call_start(struct call *c);
void call_end(struct call *c, int code, const char *text);
void call_destroy(struct call **c);         /* ends its attempts */
int call_credit(struct call *c, uint32_t rows);
/* call_start, call_wait, the answer kept in the handle, the call freed. The code is put into d->err. */
int call_run(struct raftdir *d, struct call **c);
bool call_code_is_final(const struct call *c, int code);
/* Starts what has to be started and queues what can be queued: of all calls (d->schedule_at is set to when that is to be done again), of one (it is lowered). */
void engine_schedule(struct raftdir *d, uint64_t now);
void engine_schedule_one(struct call *c, uint64_t now);
void engine_send(struct raftdir *d, uint64_t now); /* offers what is queued to the sockets */
void engine_io(struct raftdir *d, struct endpoint *ep, uint64_t now); /* goes on with its link, whatever the socket is ready for */

/* lib_wait.c */
int call_wait(struct call *c);               /* runs the engine until it is done; its code */
void engine_turn(struct raftdir *d, uint64_t until); /* one round: schedule, wait at most until then, read, answer, call back */
void engine_look(struct raftdir *d);         /* reads what has come, without waiting: who hasn't looked for long doesn't know who is silent */
void engine_flush(struct raftdir *d);        /* schedule and send, without waiting or calling back */
void engine_begin(struct call *c);           /* starts a call and sends it, without waiting or calling back */
void engine_begin_ended(struct call *c, int code, const char *text); /* the same, with its answer: the callback is called in the next turn */
void wait_init(struct raftdir *d);
void wait_close(struct raftdir *d, bool ours); /* before the links go */

/* lib_local_read.c: a question for one mailbox, from this host's copy of the state. LOCAL_PASS: it is to be asked by socket; else the code, with its text in d->err. */
#define LOCAL_PASS 1
enum local_kind { LOCAL_LOOKUP_NAME = 1, LOCAL_LOOKUP_UNIQUEID, LOCAL_LOOKUP_USER, LOCAL_RIGHTS };
struct local_question {
    enum local_kind kind;
    const char *key;  /* name, uniqueid or user */
    const char *user; /* rights: whose */
    const char *const *groups;
    size_t groups_n;
};
int local_ask(struct raftdir *d, const struct local_question *q, const struct raftdir_mailbox **m_r);
/* After the socket didn't help either: says in d->err what was in the way here. */
void local_explain(struct raftdir *d, int level);

/* lib_mailbox.c */
/* The strings that a mailbox has in the store and for the user under the same names; name and rights come beside. */
#define MAILBOX_STRINGS(X) X(server) X(partition) X(acl) X(mbtype) X(uniqueid) X(legacy_specialuse) X(jmapid) X(name_history) X(moving_server) X(moving_partition)
void mailbox_from_row(struct raftdir_mailbox *m_r, const Raftdir__Client__Row *row); /* borrows the row's strings */
/* Of a lookup's answer; RAFTDIR_EPROTO: it has no mailbox. */
int mailbox_from_answer(const Raftdir__Client__FromNode *answer, const struct endpoint *ep, struct raftdir_mailbox *m_r, struct err *err);

/* lib_read.c: calls of lookups, not started; NULL: d->err says why. */
struct call *read_lookup(struct raftdir *d, Raftdir__Client__Lookup__ByCase by, const char *key);
struct call *read_my_rights(struct raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n);

/* lib_admin.c */
int members_from(struct raftdir *d, Raftdir__Cluster__Member *const *list, size_t n, uint64_t leader);

#endif
