/* consensus_internal.h - what the files of the consensus thread share (thread_consensus*.c). Nobody else includes it.
 *
 * thread_consensus.c         the loop: turns, messages, the end
 * thread_consensus_node.c    what the node wants of the world (struct node_io), what log, apply and peers say
 * thread_consensus_member.c  making, opening, closing and resetting a member
 * thread_consensus_image.c   fetching an image, and the swap: it takes the place of state and log
 * thread_consensus_renewal.c copying the own state, and the swap: the copy takes its place, the log goes along */
#ifndef RAFTDIR_CONSENSUS_INTERNAL_H
#define RAFTDIR_CONSENSUS_INTERNAL_H
#include "peers.h"
#include "thread_apply.h"
#include "thread_consensus.h"
#include "thread_image.h"
#include "thread_log.h"

enum make { MAKE_RESTART, MAKE_BOOTSTRAP, MAKE_ADOPT };

/* What is done about images here. All of it this thread's, apart from `number`, which the fetching thread reads. */
struct consensus_image {
    uint64_t wanted;       /* by the node, since the last turn: an image at this index or later; 0: none */
    bool needed;           /* as of the last turn */
    struct image_fetch *fetch;
    unsigned number;       /* of the fetch, so that what an earlier one said is told from what this one says. Changes only while none runs */
    uint64_t retry_ms;     /* not before */
    unsigned backoff_ms;   /* after the last failure; 0: there was none */
    uint64_t unneeded_ms;  /* the node hasn't needed it since; 0: it needs it */
    bool cleaning, clean_again; /* the pool removes what isn't current; and shall do so once more */
    bool clean_when_shown;      /* likewise, but readers still get the state of the old generation (show_at) */
};

/* Likewise, about a fresh copy of the own state. */
struct consensus_renewal {
    struct image_copy *copy;
    unsigned number;     /* of the copy, as for `fetch` */
    uint64_t index;      /* of a complete one that waits for the swap; 0: none */
    uint64_t retry_ms;
    unsigned backoff_ms;
};

struct consensus {
    struct daemon *d;
    uv_loop_t loop;
    uv_thread_t thread;
    struct inbox inbox;
    uv_timer_t timer, watch, alive;
    uv_check_t check;
    struct node *node;
    unsigned life;       /* of the node: what the threads of an earlier one said is told from what this one's say. Changes only while none run */
    uint64_t term, voted_for; /* as they are on the disk */
    uint64_t generation; /* of `store`: N of gen-N */
    struct store *store; /* the state: a reference, besides the one that daemon_store gives others */
    struct peers *peers;
    struct image_senders *senders;
    _Atomic uint64_t show_at; /* `store` is shown when it has come so far: readers have the one before until then. 0: they have this one. Set while apply doesn't run, then its */
    struct consensus_image image;
    struct consensus_renewal renewal;
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
    uint64_t stop_by_ms; /* writes are waited for until then */
    bool ended; /* for `failed` or `removed`: everything is closed, and Status says so */
    struct consensus_call *reset; /* waits until nobody works on the data directory */
    bool no_space_log, no_space_apply;
    enum node_space space;
    uint64_t space_transfer_ms;
    struct node_member_op transfer;
    Raftdir__Cluster__MemberRequest transfer_request;
    bool transfer_runs; /* `transfer` is the node's */
};

/* --- Messages of the daemon's own threads ----------------------------------------------------------------------------------------- */

struct log_done {
    struct consensus_msg msg;
    unsigned life;
    struct log_batch *batches;
    int status;
};
struct space {
    struct consensus_msg msg;
    unsigned life;
    bool apply, lacking;
};
struct trouble {
    struct consensus_msg msg;
    unsigned generation; /* of the state it was found in */
    int code;
    char why[ERR_TEXT_LEN];
};
struct room {
    struct consensus_msg msg;
    enum node_space space;
};
struct apply_done {
    struct consensus_msg msg;
    unsigned life;
    struct apply_batch *batch;
    bool changed;
    struct apply_members members; /* when changed */
};
struct synced {
    struct consensus_msg msg;
    unsigned life;
    struct apply_synced state;
};
struct image_said {
    struct consensus_msg msg;
    unsigned number;
    bool done;            /* else: the image will have this index */
    int code;
    uint64_t index, term;
    char why[ERR_TEXT_LEN];
};
struct copy_said {
    struct consensus_msg msg;
    unsigned number;
    int code;
    uint64_t index;
    char why[ERR_TEXT_LEN];
};
struct renew {
    struct consensus_msg msg;
    char why[ERR_TEXT_LEN];
};
struct reload {
    struct consensus_msg msg;
    SSL_CTX *tls;
};

/* thread_consensus.c */
void consensus_status_update(struct consensus *c, uint64_t now);
/* For `failed` and `removed`: says so, closes everything, once. */
void consensus_end_check(struct consensus *c);
/* Leadership goes to the most up-to-date voter, if this node leads and there is another; c->transfer_runs until then, or until it couldn't be. */
void consensus_transfer_begin(struct consensus *c, uint64_t timeout_ms);

/* thread_consensus_node.c */
/* ECANCELED: the node ended while it had the call; what became of a write is for others to say. */
void consensus_call_done(struct consensus_call *call, int code);
/* The node is to fail at the end of this turn; the first reason stays. */
void consensus_failed(struct consensus *c, int code, const char *why);
void consensus_node_io(struct consensus *c, struct node_io *io_r);
int consensus_threads_start(struct consensus *c, struct err *err);
void consensus_threads_stop(struct consensus *c);
int consensus_peers_start(struct consensus *c, const char *host, const char *port, struct err *err);
void consensus_peers_stop(struct consensus *c);
/* The members that this node may talk to, itself perhaps among them. */
size_t consensus_members(struct consensus *c, struct node_peer list_r[MEMBERS_MAX]);
void consensus_members_update(struct consensus *c);

/* thread_consensus_member.c */
/* The whole way to a member that takes part; c->identity says as whom. */
int consensus_member_start(struct consensus *c, enum make make, struct err *err);
/* The node takes part no more; every call comes back. keep: state and log stay open for those who read, else nobody gets them any more. */
void consensus_member_close(struct consensus *c, bool keep);
/* State and log of the current generation, and a node made of them; on failure everything is closed again. A c->store that is there is that state. staged: the log is open already (taken), and empty
 * after `base`; NULL: it is opened. */
int consensus_node_open(struct consensus *c, enum make make, struct seglog **staged, uint64_t base, struct err *err);
/* Readers get c->store from now on, and those that wait look again. */
void consensus_store_show(struct consensus *c, uint64_t published);
void consensus_make(struct consensus *c, struct consensus_call *call); /* bootstrap, adopt */
void consensus_reset(struct consensus *c, struct consensus_call *call);

/* thread_consensus_image.c */
void consensus_image_turn(struct consensus *c, uint64_t now);
void consensus_image_said(struct consensus *c, const struct image_said *said);
void consensus_image_stop(struct consensus *c);
/* Removes, in the pool, every generation that is neither current nor staged, nor the one that readers still get. */
void consensus_image_clean(struct consensus *c);

/* thread_consensus_renewal.c */
int consensus_renewal_begin(struct consensus *c, const char *why, struct err *err); /* 0 also when one is under way */
void consensus_renewal_wanted(struct consensus *c, const char *why); /* unless one failed a moment ago */
void consensus_renewal_said(struct consensus *c, const struct copy_said *said);
void consensus_renewal_turn(struct consensus *c);
void consensus_renewal_drop(struct consensus *c); /* an image is needed */
void consensus_renewal_stop(struct consensus *c);

#endif
