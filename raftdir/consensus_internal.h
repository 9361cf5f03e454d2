/* consensus_internal.h - what the files of the consensus thread share (thread_consensus*.c). Nobody else includes it.
 *
 * thread_consensus.c         the loop: turns, messages, the end
 * thread_consensus_node.c    what the node wants of the world (struct node_io), what log, apply and peers say
 * thread_consensus_member.c  making, opening and closing a member */
#ifndef RAFTDIR_CONSENSUS_INTERNAL_H
#define RAFTDIR_CONSENSUS_INTERNAL_H
#include "peers.h"
#include "thread_apply.h"
#include "thread_consensus.h"
#include "thread_log.h"

enum make { MAKE_RESTART, MAKE_BOOTSTRAP, MAKE_ADOPT };

struct consensus {
    struct daemon *d;
    uv_loop_t loop;
    uv_thread_t thread;
    struct inbox inbox;
    uv_timer_t timer, watch;
    uv_check_t check;
    struct node *node;
    struct peers *peers;
    struct log_thread *log_thread;
    struct apply_thread *apply_thread;
    struct datadir_identity identity;
    struct apply_members applied_members;
    struct node_status last; /* as told to the log */
    uint64_t details_ms, watch_ms;
    bool members_dirty, role_dirty;
    /* The end. */
    int failed; /* code, 0: none */
    char why[ERR_TEXT_LEN];
    bool removed, stopping, closing;
    bool no_space_log, no_space_apply;
    enum node_space space;
    uint64_t space_transfer_ms;
    struct node_member_op transfer;
    Raftdir__Cluster__MemberRequest transfer_request;
    bool transfer_runs; /* `transfer` is the node's */
};

struct log_done {
    struct consensus_msg msg;
    struct log_batch *batches;
    int status;
};
struct space {
    struct consensus_msg msg;
    bool apply, lacking;
};
struct trouble {
    struct consensus_msg msg;
    int code;
    char why[ERR_TEXT_LEN];
};
struct room {
    struct consensus_msg msg;
    enum node_space space;
};
struct apply_done {
    struct consensus_msg msg;
    struct apply_batch *batch;
    bool changed;
    struct apply_members members; /* when changed */
};
struct reload {
    struct consensus_msg msg;
    SSL_CTX *tls;
};

/* thread_consensus.c */
void consensus_status_update(struct consensus *c, uint64_t now);
/* The node takes part no more; every call comes back. */
void consensus_node_end(struct consensus *c);

/* thread_consensus_node.c */
/* ECANCELED: the node ended while it had the call; what became of a write is for others to say. */
void consensus_call_done(struct consensus_call *call, int code);
/* The node is to fail at the end of this turn; the first reason stays. */
void consensus_failed(struct consensus *c, int code, const char *why);
void consensus_node_io(struct consensus *c, struct node_io *io_r);
int consensus_threads_start(struct consensus *c, struct err *err);
int consensus_peers_start(struct consensus *c, const char *host, const char *port, struct err *err);
void consensus_peers_stop(struct consensus *c);
void consensus_members_update(struct consensus *c);

/* thread_consensus_member.c */
/* The whole way to a member that takes part; c->identity says as whom. */
int consensus_member_start(struct consensus *c, enum make make, struct err *err);
void consensus_make(struct consensus *c, struct consensus_call *call); /* bootstrap, adopt */

#endif
