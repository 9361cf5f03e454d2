/* guard_internal.h - what the files of the guard share (guard*.c). Nobody else includes it.
 *
 * guard.c          life, the driver's events, time
 * guard_step.c     one raft_step: what is repaired in its update before the driver sees it
 * guard_receive.c  messages of peers, checked and repaired before the core sees them
 * guard_change.c   membership: changes, catch-up, transfer, applied configurations */
#ifndef RAFTDIR_GUARD_INTERNAL_H
#define RAFTDIR_GUARD_INTERNAL_H
#include "guard.h"

struct guard {
    struct raft raft;
    struct guard_ops ops;
    unsigned off;
    int failed;               /* the code of the first fatal error; every later call returns it */
    raft_time leader_contact; /* when a leader of our term was last heard of */
    raft_time timeout_stepped;
    struct guard_counts counts;
};

/* What a step was about, and what came of it. */
struct guard_step {
    struct raft_event event;
    bool stale;      /* the message is of a term below ours */
    bool own_vote;   /* our own RequestVote to ourselves */
    bool new_term;   /* START in a term that isn't stored yet */
    raft_time timer; /* own_vote: election_timer_start is put back to this */
    bool rejected;   /* out: the answer is a rejection of entries */
    bool stepped;    /* out: the core took the event; an error came after it */
};

static inline bool guard_on(const struct guard *g, enum guard_bit bit)
{
    return !(g->off & (unsigned)bit);
}

/* Steps the core, repairs the update, hands it to the driver, frees what it held; then the barrier of a new leader. Any error is final, except that
 * with `refused` not NULL an error of the core that changed nothing is stored there (RAFT_*), and 0 returned. */
int guard_step(struct guard *g, raft_time now, struct guard_step *s, int *refused, struct err *err);
/* Marks the guard as failed, and returns the code. */
int guard_fail(struct guard *g, int code, struct err *err, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Steps SUBMIT for entries of the current term; their buf stays the caller's. */
int guard_step_submit(struct guard *g, raft_time now, const struct raft_entry *entries, unsigned n, int *refused, struct err *err);
int guard_step_barrier(struct guard *g, raft_time now, struct err *err);
int guard_step_configuration(struct guard *g, raft_time now, raft_index index, const void *data, size_t len, struct err *err);

/* The core's trail of indexes and terms, read without its private functions. Term 0: not known (compacted, or past the end). */
raft_index guard_trail_last(const struct raft *r);
raft_term guard_trail_term(const struct raft *r, raft_index index);

const struct raft_server *guard_server(const struct raft_configuration *c, raft_id id);
unsigned guard_voters(const struct raft_configuration *c);
bool guard_sole_voter(const struct raft_configuration *c, raft_id id);
int guard_configuration_copy(const struct raft_configuration *from, struct raft_configuration *copy_r);

#endif
