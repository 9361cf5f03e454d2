/* srv.h - what the protocols of a service thread stand on: calls to the consensus thread, waiting for an index, streams that take turns, the read transaction.
 *
 * srv_client*  the client protocol (srv_client.h)
 * srv_mupdate* MUPDATE (srv_mupdate.h)
 *
 * Everything here is for the service's own thread, apart from service_published (thread_service.h). */
#ifndef RAFTDIR_SRV_H
#define RAFTDIR_SRV_H
#include "daemon.h"
#include "inbox.h"
#include "sasl_login.h"
#include "thread_consensus.h"

#define SRV_TICK_MS 50 /* deadlines and progress are looked at this often */

/* A listening socket of a service thread. `service` and `take` are the caller's to fill in, once. */
struct srv_listener {
    struct service *service;
    union {
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    };
    bool open, closing;
    void (*take)(struct srv_listener *l); /* a connection waits: conn_accept(&l->service->loop, &l->stream, ...) */
    _Atomic unsigned *conns;   /* of this protocol, in struct daemon. With three quarters of daemon.conns_max, or all of those with the other protocol's, `take` isn't called: */
    const char *refusal;       /* said to those who come then, before they are closed; NULL: nothing */
};

/* Waiting for an index to be published here. Embedded; zeroed at first. */
struct srv_wait {
    struct srv_wait *prev, *next, **list; /* list: where it is; NULL: nowhere */
    struct service *service;
    uint64_t index, deadline_ms;
    void (*done)(struct srv_wait *w);
};
/* A stream that has something to do: its turn comes once for each call of srv_stream_run, one stream a turn of the loop, round robin. Embedded; zeroed at first. */
struct srv_stream {
    struct srv_stream *prev, *next;
    struct service *service;
    bool listed;
    void (*turn)(struct srv_stream *st);
};

struct client;
struct mupdate_session;
struct verify;
struct service {
    struct daemon *d;
    unsigned number;
    uv_loop_t loop;
    uv_thread_t thread;
    struct inbox inbox;
    struct wake publication;
    struct srv_listener client_tcp, client_pipe, mupdate_tcp, mupdate_tls, mupdate_pipe;
    uv_timer_t tick;
    uv_idle_t turn;            /* active while a stream may go on */
    struct store *store;       /* the state that was current when it was last looked at; NULL: none */
    unsigned store_generation; /* of `store` */
    struct store_txn *txn;     /* of `store`, reset between uses */
    struct client *clients;
    struct mupdate_session *mupdates;
    struct sasl_pool logins;      /* of MUPDATE sessions */
    struct srv_wait *waiting, *taken;
    struct srv_stream *runnable;
    _Atomic uint64_t waiting_for; /* the lowest index of `waiting`; UINT64_MAX: none */
    uint64_t silent_ms;           /* when silent clients were last looked for */
    uint64_t ticked_ms;           /* the last tick; */
    uint64_t slept_from_ms, slept_until_ms; /* a longer time without one: from when to a little after its end */
    unsigned calls, verifies;     /* requests that are somebody else's now */
    unsigned works;               /* work that belongs to MUPDATE sessions: in libuv's pool, or the lister's */
    struct worker *lister;        /* makes their text; NULL: none was wanted yet */
    struct inbox lists_made;      /* what it has made */
    unsigned lists;               /* MUPDATE lists that hold a snapshot */
    struct mupdate_list *lists_waiting; /* those that wait for their turn, in order */
    struct mupdate_list *lists_paced;   /* those that go on with the timer */
    uv_timer_t lists_pace;
    uint64_t lists_sent_ns;             /* when what was sent of them would have been sent at their pace */
    bool mupdate_opened;          /* its listeners were open before: from now on only after MUPDATE_FRESH_MS of a fresh state */
    uint64_t mupdate_fresh_ms;    /* since when it is fresh; 0: it isn't */
    uint64_t mupdate_looked_ms;   /* when sessions' times were last looked at */
    struct verify *verify_list;
    bool stopping, closed;
};

/* srv_listen.c. RAFTDIR_EUNAVAIL: the address can't be had; the text says why, beginning with `key`, the configuration's. RAFTDIR_EBUSY: it is still closing; again in a moment.
 * With several service threads each has its own socket at the same address (SO_REUSEPORT). */
int srv_listen_tcp(struct srv_listener *l, const char *key, const char *address, struct err *err);
/* A socket that a dead daemon left is removed, a living one's is not. */
int srv_listen_pipe(struct srv_listener *l, const char *key, const char *path, mode_t mode, struct err *err);
void srv_listen_close(struct srv_listener *l); /* harmless when it isn't open; connections that wait to be taken are reset */
/* Could somebody listen there now? For addresses that are bound later. */
int srv_listen_probe(const char *key, const char *address, struct err *err);

/* Gives `call` (with u filled in) to the consensus thread; call->done comes on this thread, once, later. `result` of an earlier use is freed. */
void srv_call(struct service *s, struct consensus_call *call, enum consensus_kind kind, uint64_t deadline_ms);

/* w->done comes once: within this call if `index` is published here already, else when it is; or when nothing will be published any more (the phase says so), or
 * at the deadline: srv_wait_reached tells. w->done may free w. */
void srv_wait_begin(struct service *s, struct srv_wait *w, uint64_t index, uint64_t deadline_ms);
void srv_wait_cancel(struct srv_wait *w); /* harmless when it isn't waiting */
bool srv_wait_reached(const struct srv_wait *w);
/* thread_service.c calls these. */
void srv_wait_published(struct service *s);
void srv_wait_expired(struct service *s, uint64_t now);

void srv_stream_run(struct service *s, struct srv_stream *st); /* harmless when it is listed already */
void srv_stream_stop(struct srv_stream *st);                   /* harmless when it isn't */
void srv_stream_turn(struct service *s);                       /* thread_service.c */

/* The service's read transaction on the state that is current now, renewed; meta_r: the state's. Give it back with srv_txn_done. RAFTDIR_EFAILED: there is no
 * state that may be served. */
int srv_txn(struct service *s, struct store_meta *meta_r, struct err *err);
void srv_txn_done(struct service *s);
/* Lets go of a state that isn't the current one any more. At each tick, and at the end. */
void srv_store_drop(struct service *s, bool end);
/* A record of this state is damaged: the node fails. The first: of the state that srv_txn has given; the second: of the one with this number (daemon_store). */
void srv_corrupt(struct service *s, const char *why);
void srv_corrupt_of(struct service *s, unsigned store_generation, const char *why);
/* Age of the published state, UINT64_MAX: not known. */
uint64_t srv_age_ms(struct service *s);
/* When what is read now may have come at the earliest: a process that was stopped, or got no processor, finds what was sent meanwhile. */
uint64_t srv_came_ms(const struct service *s);
void srv_ticked(struct service *s, uint64_t now); /* thread_service.c */

#endif
