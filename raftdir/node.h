/* node.h - one node's consensus driver: libraft behind the guards, the log in memory, replication, forwarding of writes, quorum reads, membership.
 *
 * Pure: no socket, clock, random number or thread of its own; the world is `struct node_io`, time comes with each call (monotonic
 * milliseconds, never going back). The daemon and the simulation drive the very same code. Single-threaded.
 *
 * Happy path of a write: node_write -> (forward to the leader ->) queue -> node_flush packs an entry -> guard_submit -> log_write and
 * AppendEntries -> node_log_written -> commit -> apply -> node_applied -> write_done here or ForwardResult to the node that took it.
 * Failures: a changed leader: each node sends its pending writes to the new one at once (the op id makes it exactly-once); no leader: they wait,
 * and end at their deadline, with RAFTDIR_ENOQUORUM if they were never sent anywhere, else RAFTDIR_EUNCERTAIN.
 * An I/O error from meta_write, log_write or apply: the node fails (io.failed) and does nothing more. So does a node that hears from its leader that it has lost
 * entries which it had acknowledged. */
#ifndef RAFTDIR_NODE_H
#define RAFTDIR_NODE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "apply.h"
#include "cluster.pb-c.h"
#include "entry.h"
#include "err.h"
#include "limits.h"

struct node;
struct node_peer;

/* Entries for the log, in order. An `entries[0]->index` at or below what the log holds cuts the log there first, in the same atomic record. */
struct log_batch {
    struct log_batch *next;
    uint64_t first;
    unsigned n;
    struct entry **entries; /* one reference each */
    uint64_t valid_to;      /* the node's own: last index of it that still counts */
};
struct log_batch *log_batch_create(struct entry *const *entries, unsigned n); /* NULL without memory; entries are referenced */
void log_batch_destroy(struct log_batch **batch);

/* A client's write, embedded by the caller, alive until write_done. */
struct node_write {
    uint8_t op_id[OP_ID_LEN];
    const uint8_t *request; /* packed raftdir.log.Request, checked with op_request_check; borrowed until write_done */
    size_t request_len;
    uint64_t deadline_ms;   /* monotonic, of this node */
    struct node_write *prev, *next; /* the node's own */
};
/* A request for a linearizable read: read_done(0, index) once the node may serve it from a state published at `index` or later. */
struct node_read {
    uint64_t deadline_ms;
    void *own;              /* the node's */
};
struct node_member_op {
    const Raftdir__Cluster__MemberRequest *request; /* borrowed until member_done */
    uint64_t deadline_ms;
    void *own;              /* the node's */
};

/* Called from within node_*() calls, on their thread; none may call node_*() back. */
struct node_io {
    void *data;
    int (*meta_write)(void *data, uint64_t term, uint64_t voted_for);         /* durable on return; < 0: the node fails */
    void (*log_write)(void *data, struct log_batch *batch);                    /* given; node_log_written later, in order */
    void (*apply)(void *data, struct apply_batch *batch);                      /* given; node_applied later, in order */
    void (*send)(void *data, uint64_t to, const uint8_t *frame, size_t len);   /* borrowed; best effort, may be lost */
    void (*write_done)(void *data, struct node_write *w, int code, const uint8_t *result, size_t len); /* result: packed Result when code is 0 */
    void (*read_done)(void *data, struct node_read *r, int code, uint64_t index);
    void (*member_done)(void *data, struct node_member_op *m, const Raftdir__Cluster__MemberResult *result); /* result borrowed */
    void (*members_changed)(void *data);                                       /* read them with node_members() */
    void (*role_changed)(void *data);                                          /* leader, term or state differ: for logs and status */
    void (*failed)(void *data, int code, const char *why);
    uint64_t (*wall_ms)(void *data);                                           /* Unix time, for display only */
    void (*log_cut)(void *data, uint64_t index);                               /* entries up to `index` aren't needed any more: they are in a synced state */
    /* The leader's log begins after this node's: an image at `index` or later has to be fetched from a member (DESIGN D9). Called again with every manifest, about
     * once a heartbeat, as long as that is so. */
    void (*image_wanted)(void *data, uint64_t index, uint64_t term);
    /* A member's state differs from this node's (node_digest.c): an operator should know. Not repeated while it stays as it is; NULL: it is over. */
    void (*alarm)(void *data, const char *text);
};

struct node_options {
    uint64_t id;
    uint64_t cluster_id, incarnation;
    unsigned seed;
    unsigned election_timeout_ms, heartbeat_ms; /* 0: the defaults of limits.h */
    unsigned guards_off;                         /* tests only */
    uint64_t log_keep_len, log_keep_entries, log_hold_len_max, log_unapplied_len_max; /* 0: LOG_KEEP_LEN, LOG_KEEP_ENTRIES, and so on */
};

/* What was found on disk. */
struct node_boot {
    uint64_t term, voted_for;
    struct store_meta meta;                 /* applied state */
    const uint8_t *configuration;           /* as applied at meta.configuration_index; len 0 before anything was applied */
    size_t configuration_len;
    const struct store_checkpoint *checkpoints; /* of the state, oldest first; borrowed for the call */
    size_t checkpoints_n;
    uint64_t log_first;                     /* index of entries[0]; entries up to the applied index may be missing, none after it */
    struct entry **entries;                 /* references are taken over */
    size_t entries_n;
};

/* As whom this member stands in the newest configuration that is on disk: a data directory in the wrong place is told before it takes part in anything.
 * RAFTDIR_ENOTFOUND: not in it (a standby that has no log yet). Only id, role, host_port, cert_name and uuid are set. */
int node_boot_self(const struct node_boot *boot, uint64_t id, struct node_peer *self_r, struct err *err);
int node_create(const struct node_options *options, const struct node_io *io, const struct node_boot *boot, struct node **node_r, struct err *err);
/* Ends every pending request with RAFTDIR_ECANCELED. Batches still at the log writer or apply are theirs to destroy. */
void node_destroy(struct node **node);

int node_start(struct node *n, uint64_t now);
uint64_t node_deadline(struct node *n, uint64_t now); /* when node_tick wants to be called next */
void node_tick(struct node *n, uint64_t now);
/* A frame (without its length prefix) from a peer that the transport has authenticated as member `from`. Garbage is counted and dropped. */
void node_receive(struct node *n, uint64_t now, uint64_t from, const uint8_t *frame, size_t len);
void node_log_written(struct node *n, uint64_t now, struct log_batch *batch, int status);  /* takes the batch */
void node_applied(struct node *n, uint64_t now, struct apply_batch *batch);                /* takes the batch */

void node_write(struct node *n, uint64_t now, struct node_write *w);
void node_read(struct node *n, uint64_t now, struct node_read *r);
void node_member_op(struct node *n, uint64_t now, struct node_member_op *m);
/* Packs and submits what node_write and Forward frames queued. Call it when the current burst of events has been handled. */
void node_flush(struct node *n, uint64_t now);

/* How this node stands for disk and map (DESIGN D13). As a leader it refuses, with RAFTDIR_ENOSPC, new writes that may grow the state (op_request_grows) while its
 * own space is NODE_SPACE_LOW or worse, or that of voters without which there is no majority; all new writes while any of these is NODE_SPACE_NONE. It goes on in
 * everything else. */
enum node_space { NODE_SPACE_OK, NODE_SPACE_LOW, NODE_SPACE_NONE };
void node_space_set(struct node *n, enum node_space space);

/* The state is durable up to here: what the log may be cut below. */
struct node_synced {
    uint64_t index, term, configuration_index;
    const uint8_t *configuration; /* as applied then; borrowed */
    size_t configuration_len;
};
void node_synced(struct node *n, uint64_t now, const struct node_synced *synced);
/* This node is fetching an image of that index (0: not any more): the leader is asked to keep its log behind it. */
void node_image_fetching(struct node *n, uint64_t index);
/* This node keeps its log behind `index` (0: not any more), as it does for a member that fetches an image, and no longer than for one: while less than
 * log_hold_len_max is kept. */
void node_log_hold(struct node *n, uint64_t index);
/* Is an image at (index, term), complete and durable, to take the place of state and log? Not if the log has come so far by itself. The daemon then ends this
 * node and boots another on the image with an empty log that begins after `index`, same term and vote. */
bool node_image_wanted(const struct node *n, uint64_t index, uint64_t term);

enum node_state { NODE_FOLLOWER = 1, NODE_CANDIDATE, NODE_LEADER, NODE_FAILED };
struct node_status {
    enum node_state state;
    int role; /* RAFT_VOTER, RAFT_STANDBY, -1: not a member */
    uint64_t term, leader, last_index, commit_index, applied_index;
    uint64_t log_time_ms;  /* estimated now */
    uint32_t feature_level;
    uint64_t age_ms;       /* of the applied state, at `now`; UINT64_MAX: unknown */
    bool quorum;           /* a leader is known and was in touch with a majority lately */
    size_t writes_pending;
    uint64_t frames_dropped;
    uint64_t log_bytes;
    uint64_t log_first;    /* index of the oldest entry kept */
    bool image_needed;     /* the leader has said so, and it is still so */
    enum node_space space; /* this node's own */
    bool writes_limited;   /* as a leader it admits only writes that don't grow the state, or none */
    uint64_t differs_id, differs_index; /* a member whose digest differs from ours there, and this node isn't known to be the wrong one; 0: none */
    bool differs_undecided; /* a member's digest differs, and no majority is known to say that it is the wrong one: this state must not be copied to others */
};
void node_status_get(struct node *n, uint64_t now, struct node_status *status_r);
bool node_writes_wait(const struct node *n); /* some write of this node's own has no result yet */

struct node_peer {
    uint64_t id;
    int role;
    uint64_t match_index, last_contact_ms;
    char host_port[256];
    char cert_name[256];
    uint8_t uuid[NODE_UUID_LEN];
};
/* The members by the newest configuration in this node's log. Returns their number, fills at most `max`. */
size_t node_members(struct node *n, uint64_t now, struct node_peer *list_r, size_t max);

/* The `address` of a raft_server: "host:port/cert_name/uuid-hex" (DESIGN D12: a member is id, certificate name and data directory UUID). */
#define NODE_ADDRESS_SIZE 560 /* room for the longest, with its NUL */
int node_address_format(const char *host_port, const char *cert_name, const uint8_t uuid[NODE_UUID_LEN], char *buf_r, size_t size, struct err *err);
int node_address_parse(const char *address, struct node_peer *peer_r, struct err *err);

/* Bootstrap: the entry at index 1, term 1, that makes `self` the sole voter. */
struct entry *node_bootstrap_entry(uint64_t id, const char *address, struct err *err);

#endif
