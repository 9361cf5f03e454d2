/* guard.h - raft_step() of libraft 0.22.1 with its known defects closed (raftdir/GUARDS.md: one row a guard). Pure.
 *
 * The guard sees every event before the core and every update before the driver. One call may take several raft_step()s; after each, the
 * driver's on_update is called, in which it must, in this order: make a changed term or vote durable; append the entries to its log and
 * start writing them; queue the messages; note the commit index. on_update must not call back into the guard.
 * Time is monotonic milliseconds, never smaller than before.
 *
 * Ownership inside on_update: everything in the update is borrowed until on_update returns; the guard frees what the core handed out.
 * - entries: replace the log from update.entries.index on. The bufs of submitted and received entries are the very pointers that the caller gave to
 * guard_submit or guard_receive, so that it can recognise its own; any other buf is the core's or the guard's (the barrier of a new leader, an encoded CHANGE)
 * and must be copied. `batch` is none of the driver's business. Their term is set.
 * - messages: AppendEntries has no entries, only prev_log_index and n_entries: fill them from the log at that moment. InstallSnapshot has an empty conf and no
 * data. server_address may be used during the call only.
 * - snapshot: metadata.configuration is borrowed too (freed by the guard); chunk is empty.
 * After a negative return of on_update nothing more is stepped, now or later. The same holds after every other fatal error: each later call returns its code.
 */
#ifndef RAFTDIR_GUARD_H
#define RAFTDIR_GUARD_H
#include <raft.h>
#include <stdbool.h>
#include <stdint.h>
#include "err.h"

#if RAFT_VERSION_NUMBER != 2201
#error "raftdir's guards are for libraft 0.22.1 exactly (bookworm-backports, trixie). raftdir/GUARDS.md says how another version is admitted."
#endif

/* Bits to switch single guards off: tests only. The numbers are the rows of the table in raftdir/GUARDS.md. */
enum guard_bit {
    GUARD_STALE_RESULT = 1 << 1,      /* 1: zero rejected and last_log_index in answers to a stale term */
    GUARD_SOLE_START = 1 << 2,        /* 2: a sole voter starts in a new term */
    GUARD_SPLIT_CHANGE = 1 << 3,      /* 3: received batches are split at a CHANGE */
    GUARD_PREVIOUS_CHANGE = 1 << 4,   /* 4: CONFIGURATION of the first CHANGE is fed before a second */
    GUARD_TRIM = 1 << 5,              /* 5: entries at or below applied are trimmed */
    GUARD_BARRIER = 1 << 6,           /* 6: barrier on election; CHANGE only after a commit of the current term */
    GUARD_LATE_REJECT = 1 << 7,       /* 7: a late rejection is dropped if its hint is below match */
    GUARD_PREVOTE_TERM = 1 << 8,      /* 8: our term goes into a pre-vote refusal */
    GUARD_NONVOTER_VOTE = 1 << 9,     /* 9: a non-voter by its own configuration can vote and forget its leader */
    GUARD_NO_SELF_REMOVAL = 1 << 10,  /* 10: a leader never removes or demotes itself */
    GUARD_DISRUPT_ONCE = 1 << 11,     /* 11: disrupt_leader is cleared after the first round */
    GUARD_COMMIT_MONOTONIC = 1 << 12, /* 12: a follower's commit index never goes back */
    GUARD_VOTE_RESULT = 1 << 13,      /* 13: a vote result is dropped unless candidate */
    GUARD_SOLE_TIMEOUT = 1 << 14,     /* 14: a sole voter elects itself with a term and a vote */
    GUARD_CHANGE_KNOWN = 1 << 15,     /* nobody comes in or is promoted until every voter holds the last committed CHANGE */
    GUARD_NONMEMBER = 1 << 16,        /* frames of non-members are dropped, as far as liveness allows: the rule is in guard_receive.c */
    GUARD_CHANGE_STORED = 1 << 17,    /* a CHANGE leaves the leader only after it has stored it itself */
    GUARD_CATCH_UP_IDLE = 1 << 18,    /* the catch-up of a server that holds everything ends in an idle cluster as well */
    GUARD_SILENT_LEADER = 1 << 19,    /* a leader that is silent for the election timeout is no reason to refuse a vote */
    GUARD_ACKNOWLEDGED = 1 << 20,     /* guard_acknowledged works: a server that has installed an image by itself gets entries again */
};

struct guard;
struct guard_ops {
    void *data;
    /* After each raft_step. u is NULL never; state, term, vote and commit are read with raft_*(). Negative: the driver has failed, stop. */
    int (*on_update)(void *data, const struct raft_update *u);
    /* The driver's log: NULL when it doesn't hold that index. Valid until the next call. */
    const struct raft_entry *(*entry_at)(void *data, raft_index index);
    raft_index (*applied_index)(void *data); /* durably or not: what has been applied */
    raft_term (*applied_term)(void *data);
};

struct guard_options {
    raft_id id;
    const char *address; /* copied */
    unsigned seed;
    unsigned election_timeout_ms, heartbeat_ms, max_inflight_entries;
    unsigned off; /* guard_bit mask; 0 outside tests */
};

/* What the guard dropped or altered since it was made: for metrics, and for tests that want to know that a guard was at work. */
struct guard_counts {
    uint64_t malformed; /* messages that no correct peer sends */
    uint64_t strangers; /* messages of non-members */
    uint64_t late_rejections;
    uint64_t trimmed;      /* AppendEntries that began below our log */
    uint64_t changes_held; /* AppendEntries with a CHANGE that wasn't stored here yet */
};

struct guard_start {
    raft_term term;
    raft_id voted_for;
    struct raft_snapshot_metadata *metadata; /* applied state; NULL when nothing is applied. Its configuration is taken, on errors too */
    raft_index start_index;                  /* index of the first entry, at most applied + 1 */
    struct raft_entry *entries;              /* borrowed; only a CHANGE needs its buf */
    unsigned n_entries;
};

int guard_create(const struct guard_options *options, const struct guard_ops *ops, struct guard **guard_r, struct err *err);
void guard_destroy(struct guard **guard);
struct raft *guard_raft(struct guard *g); /* to read, never to step */
const struct guard_counts *guard_counts(const struct guard *g);

/* All return 0 or a negative RAFTDIR_E*. After an error other than from guard_submit, guard_change, guard_transfer and guard_catch_up the node must
 * stop. If one of theirs is final (no memory, the driver's own), the next call of any other says so. */
int guard_start(struct guard *g, raft_time now, const struct guard_start *start, struct err *err);
int guard_timeout(struct guard *g, raft_time now, struct err *err);
/* `m` as received from server m->server_id (authenticated); altered in places. server_address may be NULL, and is copied. AppendEntries' entries: buf borrowed
 * for the call, batch ignored (the guard makes its own). InstallSnapshot's conf is taken, always; its data is ignored. What is malformed or not the sender's
 * business is counted and dropped, without an error. */
int guard_receive(struct guard *g, raft_time now, struct raft_message *m, struct err *err);
/* Everything up to `index` is stored. Ignored when that is no news or while an image is being installed. Completions of entries that were cut off since
 * are the driver's to sort out. */
int guard_persisted_entries(struct guard *g, raft_time now, raft_index index, struct err *err);
/* The image that an update told to install is durable. The configuration is copied. */
int guard_persisted_snapshot(struct guard *g, raft_time now, const struct raft_snapshot_metadata *metadata, struct err *err);
/* The applied state at metadata->index is durable: the core forgets its trail but for the last `trailing` entries before it. The configuration is copied.
 * Ignored unless the index is higher than the last time. */
int guard_snapshot(struct guard *g, raft_time now, const struct raft_snapshot_metadata *metadata, unsigned trailing, struct err *err);
/* A CHANGE was applied. Ignored where the core has been told already. */
int guard_configuration(struct guard *g, raft_time now, raft_index index, const void *data, size_t len, struct err *err);
/* Server `id` holds everything up to `index` durably, and all of that is committed (it says so by another way than an AppendEntries result). As an acknowledgement:
 * a server that has installed an image by itself gets entries again. Ignored unless this node leads and it is news. */
int guard_acknowledged(struct guard *g, raft_time now, raft_id id, raft_index index, struct err *err);
/* RAFT_COMMAND or RAFT_BARRIER payloads; buf borrowed. RAFTDIR_ENOTLEADER, RAFTDIR_EBUSY (transfer in progress). */
int guard_submit(struct guard *g, raft_time now, const struct raft_entry *entries, unsigned n, struct err *err);
/* A new configuration, with every precheck: leader, no transfer, a commit of this term, no change in progress, one server changed, not this one removed or
 * demoted; and, unless it removes or demotes, every voter holds the last committed change. Borrowed. RAFTDIR_ENOTLEADER, RAFTDIR_EBUSY (try again),
 * RAFTDIR_EINVAL, RAFTDIR_ELIMIT. */
int guard_change(struct guard *g, raft_time now, const struct raft_configuration *conf, struct err *err);
/* Starts to catch a standby up; raft_catch_up() tells how it goes, and a change is refused until it has ended. */
int guard_catch_up(struct guard *g, raft_time now, raft_id id, struct err *err);
int guard_transfer(struct guard *g, raft_time now, raft_id id, struct err *err); /* 0: any voter */
/* An encoded configuration (a CHANGE's payload), checked before it is decoded: raft_configuration_decode() trusts its lengths. */
bool guard_configuration_valid(const void *data, size_t len);
raft_time guard_deadline(struct guard *g, raft_time now); /* when guard_timeout is due; >= now + 1 */
bool guard_current_term_committed(struct guard *g);
/* The entries that the core knows of: the driver's log holds the same. Empty: *last_r is *first_r - 1. */
void guard_log_range(const struct guard *g, raft_index *first_r, raft_index *last_r);

#endif
