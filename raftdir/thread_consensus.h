/* thread_consensus.h - the consensus thread: a libuv loop that owns struct node and the peers, and makes this node a member (bootstrap, adopt, restart). */
#ifndef RAFTDIR_THREAD_CONSENSUS_H
#define RAFTDIR_THREAD_CONSENSUS_H
#include "daemon.h"
#include "inbox.h"
#include "node.h"

enum consensus_kind {
    CONSENSUS_WRITE = 1,
    CONSENSUS_READ,
    CONSENSUS_MEMBER,
    CONSENSUS_BOOTSTRAP,
    CONSENSUS_ADOPT,
    CONSENSUS_RELOAD, /* the rest are the daemon's own */
    CONSENSUS_STOP,
    CONSENSUS_LOG_DONE,
    CONSENSUS_APPLY_DONE,
    CONSENSUS_SPACE,
    CONSENSUS_ROOM,
    CONSENSUS_FAIL,
    CONSENSUS_RESET,  /* a call: u.reset */
    CONSENSUS_IMAGE,  /* the fetching of an image has ended */
    CONSENSUS_SYNCED, /* the state is durable up to an index */
    CONSENSUS_COPIED, /* the copying of the state has ended */
    CONSENSUS_RENEW,  /* a reader holds too much of the state back */
    CONSENSUS_COMPACT, /* a call: an admin wants a fresh copy of the state */
};
struct consensus_msg {
    struct inbox_msg link; /* first */
    enum consensus_kind kind;
};

/* A request of a service thread, embedded by it, alive until it comes back through `reply_to`; which stays open until the consensus thread has ended. */
struct consensus_call {
    struct consensus_msg msg; /* first */
    union {
        struct node_write write;
        struct node_read read;
        struct node_member_op member;
        const struct datadir_identity *adopt; /* borrowed */
        struct {
            uint64_t cluster_id, node_id;
        } reset;
    } u;
    struct inbox *reply_to;
    struct inbox_msg reply;
    void (*done)(struct consensus_call *call); /* on the thread of reply_to */
    /* The outcome. */
    int code;
    struct err err;     /* text may be empty */
    uint64_t index;     /* read */
    uint8_t *result;    /* write: packed raftdir.log.Result; member: packed MemberResult. malloc'd, the caller's */
    size_t result_len;
};

/* Opens what there is on disk, if the node is a member, and starts the thread. */
int consensus_start(struct daemon *d, struct consensus **consensus_r, struct err *err);
/* Never fails: after the stop the call comes back with RAFTDIR_ECANCELED. */
void consensus_submit(struct consensus *c, struct consensus_call *call);
/* New certificates: takes a reference. */
void consensus_reload(struct consensus *c, SSL_CTX *tls);
/* This node's state or log can't be trusted (a record's checksum, the scrub): it stops serving, and says why. From any thread; the first reason stays. `generation`
 * is that of the state it was found in (daemon_store): of one whose place an image has taken meanwhile it says nothing about this node. */
void consensus_fail(struct consensus *c, unsigned generation, int code, const char *why);
/* A reader holds more of the state back than it may: this node shall move to a fresh copy. From any thread; asked again while it is so. */
void consensus_renew(struct consensus *c, const char *why);
/* How much room there is on data_dir's disk and in the map. From any thread. */
void consensus_space(struct consensus *c, enum node_space space);
/* Transfers leadership, ends every call, joins the thread. Store and log stay open; calls may still be submitted. */
void consensus_stop(struct consensus *c);
void consensus_destroy(struct consensus **consensus); /* when no service thread runs any more */

#endif
