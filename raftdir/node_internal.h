/* node_internal.h - what the files of the driver share (node*.c). Nobody else includes it.
 *
 * node.c         life, updates of the core, commit and apply
 * node_log.c     the log in memory, and what of it may go
 * node_image.c   images: when one is needed, who is fetching one
 * node_frame.c   peer frames, encoded and decoded
 * node_op.c      writes: waiting, forwarding, packing, results
 * node_read.c    probes, quorum reads, freshness
 * node_member.c  membership changes and leadership transfer
 * node_digest.c  digests of the state, compared with the other members'
 * node_address.c the member's address text */
#ifndef RAFTDIR_NODE_INTERNAL_H
#define RAFTDIR_NODE_INTERNAL_H
#include <uthash.h>
#include "guard.h"
#include "node.h"
#include "peer.pb-c.h"

#define NODE_PERIOD_MS 20         /* deadlines, retries, probes and freshness are looked at this often */
#define OP_RESEND_MS 400          /* a forwarded write without an answer is sent again to the same leader */
#define READ_RESEND_MS 100
#define PIPELINE_DEPTH 2          /* log writes in flight before small proposals wait for company */
#define UNCOMMITTED_ENTRIES_MAX 4096
#define PROBE_RING 256            /* probes whose send time is remembered */
#define FRESH_PENDING 32
#define SUBMIT_ENTRIES_MAX 16     /* entries packed in one step */
#define SPACE_TOLD_MS 1000        /* what a member said of its space counts for so long */

/* Another node, member or not any more. */
struct node_peer_state {
    uint64_t id;
    uint64_t last_frame_ms; /* 0: never */
    uint64_t probe_acked;   /* highest sequence of this term */
    uint64_t append_prev;   /* prev_log_index of the last AppendEntries with entries to it */
    uint64_t commit_sent;   /* highest commit index of this term that was sent to it when it had all entries up to there, */
    uint64_t commit_term;   /* and that term */
    /* What it said in its last Freshness (node_image.c). */
    uint64_t told_ms;       /* when; 0: never */
    uint64_t told_commit;   /* our commit index at that time */
    enum node_space space;
    uint64_t image_index;   /* the log is kept from this index on for it; 0: no need to */
    uint64_t image_ms;      /* when it last gave reason to */
};

enum op_state {
    OP_WAITING = 1, /* for a leader */
    OP_FORWARDED,   /* sent to the leader of sent_term */
    OP_QUEUED,      /* this node leads: to be packed */
    OP_PROPOSED,    /* in this leader's log */
    OP_ENDED,       /* with `code`; told at the next flush */
};

/* Somebody else's wait for an operation: a node that forwarded it. */
struct op_forward {
    struct op_forward *next;
    uint64_t peer;
};

/* One operation id on its way. */
struct op {
    UT_hash_handle hh;
    uint8_t id[OP_ID_LEN];
    enum op_state state;
    int code;
    uint8_t *request;
    size_t request_len;
    struct node_write *writes;   /* local waiters */
    struct op_forward *forwards; /* remote waiters */
    bool maybe_proposed;         /* it may be in somebody's log */
    bool maybe_before;           /* and may have been before it was sent the last time */
    uint64_t since_ms;           /* waiting for a leader since */
    uint64_t sent_ms;
    uint64_t index;              /* of the entry that it was proposed in, last */
    struct op *prev, *next;      /* in the pack queue */
};

enum read_state { READ_WAITING = 1, READ_FORWARDED, READ_PROBE, READ_PROBED, READ_ENDED };

/* A read on its way: a local node_read, or a peer's ReadIndex. */
struct read {
    struct read *prev, *next;
    UT_hash_handle hh;       /* of a peer's, by peer and corr, which stand together */
    struct node_read *local; /* NULL: a peer's */
    uint64_t peer, corr;
    enum read_state state;
    int code;
    uint64_t index, probe_seq, since_ms, sent_ms, deadline_ms;
};

enum member_state { MEMBER_TODO = 1, MEMBER_FORWARDED, MEMBER_CATCHING_UP, MEMBER_APPLYING, MEMBER_TRANSFERRING, MEMBER_ENDED };

struct member {
    struct member *prev, *next;
    struct node_member_op *local; /* NULL: a peer's */
    uint64_t peer, corr;
    Raftdir__Cluster__MemberRequest *request; /* own copy */
    enum member_state state;
    uint64_t deadline_ms, began_ms, since_ms, sent_ms, sent_term;
    uint64_t asked_leader; /* who led when it was first sent on */
    uint64_t id;           /* the server that it is about */
    uint64_t index, term;  /* of the proposed CHANGE */
    uint8_t *result;       /* packed MemberResult, when ended */
    size_t result_len;
    bool maybe;            /* a CHANGE for it was proposed, here or perhaps elsewhere: it may be in a log */
    int busy_code;         /* why it has to wait, for the message at its deadline */
    char busy_text[ERR_TEXT_LEN];
};

/* Digests at indexes, ascending; when it is full, the oldest leaves. */
struct digest_list {
    struct store_checkpoint at[DIGESTS_KEPT];
    size_t n;
};
enum digest_verdict { DIGEST_FINE = 0, DIGEST_UNDECIDED, DIGEST_MEMBER_IS_WRONG };
/* A member, as far as digests go. */
struct digest_member {
    uint64_t id;
    struct digest_list told;
    uint64_t sent_ms;            /* when it was last told ours; 0: never */
    bool heard;                  /* a frame of its came before sent_ms: it could be reached */
    uint64_t differs_index;      /* the newest index known of both, where they differ; 0: they don't, or there is none */
    uint64_t differs_ms;         /* seen since */
    enum digest_verdict alarmed; /* as told by io.alarm */
};
struct digests {
    struct digest_list own;
    struct digest_member *members[MEMBERS_MAX];
    size_t members_n;
    bool news;                         /* own has something that nobody was told */
    uint64_t configuration_seen[2];
};

struct node {
    struct node_options options;
    struct node_io io;
    struct guard *guard;
    struct raft *raft; /* the guard's, to read */
    bool started, failed;
    uint64_t now, next_period, started_ms;
    struct err err; /* scratch */

    /* The log: entries log_first .. log_first + log_n - 1. */
    struct entry **log;
    size_t log_n, log_cap;
    uint64_t log_first, log_bytes;
    uint64_t unapplied_len;     /* bytes of the entries above the applied index, */
    uint64_t uncommitted_len;   /* and of those among them that are above the commit index */
    struct {
        uint64_t index, term, configuration_index;
        uint8_t *configuration;
        size_t configuration_len;
    } synced;                   /* the newest that node_synced told */
    bool trim_waits;            /* more could go but for a member that fetches an image, or apply: looked at again */
    uint64_t trim_ms;
    struct log_batch **writing; /* given to io.log_write, oldest first */
    size_t writing_n, writing_cap;
    struct entry *const *incoming; /* entries of the event in progress: on_update takes them instead of copies */
    size_t incoming_n;

    /* Commit and apply. */
    uint64_t commit, apply_sent; /* highest index given to io.apply */
    struct store_meta meta;      /* as of the last apply that was told; applied_index is the applied index */
    struct guard_start start;    /* between create and start */
    struct raft_snapshot_metadata start_metadata;
    struct raft_entry *start_entries;
    struct raft_entry entry_scratch;

    /* Role. */
    enum raft_state state;
    uint64_t term, leader; /* as last settled; leader 0: unknown */
    uint64_t configuration_seen[2]; /* committed and uncommitted index: told by io.members_changed */
    uint64_t leader_lost_ms; /* no leader since; 0 while there is one */

    /* Log time: `log_time` at `log_time_at`, running with the monotonic clock. */
    uint64_t log_time, log_time_at;

    struct op *ops;   /* hash by id */
    struct op *queue; /* to be packed, in order of arrival */
    size_t ops_ended;
    size_t ops_len;        /* bytes of their requests */
    enum node_space space; /* node_space_set */
    enum node_space admits; /* as a leader: all new writes, those that don't grow the state, none */
    uint64_t corr_next;

    struct read *reads;
    struct read *peer_reads; /* hash of those of `reads` that are peers': a stalled leader gets all of them again and again */
    uint64_t probe_seq, probe_confirmed, probe_sent_ms;
    struct {
        uint64_t seq, sent_ms, commit;
    } probes[PROBE_RING];
    uint64_t freshness_seq, freshness_sent_ms;
    uint64_t freshness_sent[PROBE_RING]; /* send time by seq % PROBE_RING */
    struct {
        uint64_t at_ms, index;
    } fresh_pending[FRESH_PENDING];
    size_t fresh_pending_n;
    bool fresh_known;
    uint64_t fresh_ms; /* the applied state holds everything that was committed at this time */

    uint64_t log_held;             /* node_log_hold */
    uint64_t image_fetching;           /* node_image_fetching */
    uint64_t image_told_ms;            /* to the voters that don't lead */
    uint64_t image_index, image_term;  /* of the last manifest that asked for an image; 0: none yet */
    uint64_t image_leader_term;        /* and in which term */

    struct member *members;
    struct digests digests;

    struct node_peer_state peers[MEMBERS_MAX * 2];
    size_t peers_n;
    uint8_t *frame; /* scratch for encoding */
    size_t frame_size;
    uint64_t frames_dropped;
};

/* node.c */
void node_fail(struct node *n, int code, const char *why);
bool node_is_leader(const struct node *n);
/* Runs after every guard call: reacts to what changed. Not from within on_update. */
void node_settle(struct node *n);
uint64_t node_log_time(const struct node *n);
void node_log_time_seen(struct node *n, uint64_t log_time_ms);
void node_log_time_told(struct node *n, uint64_t log_time_ms); /* by the leader, of now */
struct node_peer_state *node_peer_state(struct node *n, uint64_t id); /* makes it; NULL when the table is full of live members */
const struct raft_server *node_server(const struct node *n, uint64_t id);
/* Submits entries made by the caller; takes no references. */
int node_submit(struct node *n, struct entry *const *entries, unsigned count);

/* node_log.c */
struct entry *node_entry(const struct node *n, uint64_t index); /* NULL when not held */
uint64_t node_last_index(const struct node *n);
int node_log_init(struct node *n, struct entry **entries, size_t count); /* takes the references over when it succeeds; the array stays the caller's */
void node_log_close(struct node *n);
/* Entries that the core has taken into its trail: into our log, and on their way to the disk. */
int node_log_update(struct node *n, const struct raft_update *u);
/* The oldest batch at the log writer came back. */
void node_log_returned(struct node *n, struct log_batch *batch);
void node_log_committed(struct node *n, uint64_t index);
void node_log_applied(struct node *n, const struct apply_batch *batch);
/* A leader proposes nothing new: too much waits to be applied (LOG_UNAPPLIED_LEN_MAX). */
bool node_log_full(const struct node *n);
/* A follower takes nothing that is new to it: too much is committed and waits to be applied. */
bool node_log_backlogged(const struct node *n);
void node_log_check(const struct node *n); /* asserts that it is what the core's trail says */
void node_log_period(struct node *n);

/* node_image.c */
/* A manifest from the leader. */
void node_images_manifest(struct node *n, uint64_t from, const Raftdir__Peer__InstallSnapshot *m);
/* What a member says about itself in a Freshness frame. */
void node_images_told(struct node *n, uint64_t from, const Raftdir__Peer__Freshness *q);
void node_images_tell(const struct node *n, Raftdir__Peer__Freshness *q);
/* The lowest index that a member which fetches an image needs the log from; UINT64_MAX: none. */
uint64_t node_images_held(const struct node *n);
bool node_images_needed(const struct node *n);
void node_images_period(struct node *n);

/* node_frame.c */
void node_frame_init(struct node *n, Raftdir__Peer__Frame *f, uint64_t to, Raftdir__Peer__Frame__BodyCase body);
void node_frame_send(struct node *n, const Raftdir__Peer__Frame *f);
void node_frame_send_raft(struct node *n, const struct raft_message *m);
/* A member that has all entries hears at once that they are committed, not with the next heartbeat: reads and watches there wait for it. */
void node_frames_tell_commit(struct node *n);
/* Hands a raft frame to the guard. */
void node_frame_receive_raft(struct node *n, uint64_t from, const Raftdir__Peer__Frame *f);

/* node_op.c */
void node_ops_leader_changed(struct node *n); /* new leader or term */
void node_ops_leader_lost(struct node *n);    /* this node doesn't lead any more */
void node_ops_result(struct node *n, const struct apply_result *r);
void node_ops_forward(struct node *n, uint64_t from, const Raftdir__Peer__Forward *f);
void node_ops_forward_result(struct node *n, uint64_t from, const Raftdir__Peer__ForwardResult *r);
void node_ops_period(struct node *n);
void node_ops_pack(struct node *n);
void node_ops_close(struct node *n);
void node_ops_admit(struct node *n); /* looks anew at who has space */

/* node_read.c */
void node_reads_leader_changed(struct node *n);
void node_reads_probe(struct node *n, uint64_t from, const Raftdir__Peer__Probe *p);
void node_reads_probe_ack(struct node *n, uint64_t from, const Raftdir__Peer__ProbeAck *p);
void node_reads_freshness(struct node *n, uint64_t from, const Raftdir__Peer__Freshness *f);
void node_reads_freshness_ack(struct node *n, uint64_t from, const Raftdir__Peer__FreshnessAck *f);
void node_reads_read_index(struct node *n, uint64_t from, const Raftdir__Peer__ReadIndex *r);
void node_reads_read_index_result(struct node *n, uint64_t from, const Raftdir__Peer__ReadIndexResult *r);
void node_reads_applied(struct node *n);
void node_reads_period(struct node *n);
void node_reads_flush(struct node *n);
void node_reads_close(struct node *n);
uint64_t node_reads_leader_age(const struct node *n); /* since the send time of the last confirmed probe; UINT64_MAX: none */
uint64_t node_reads_age(const struct node *n);

/* node_member.c */
void node_members_forward(struct node *n, uint64_t from, const Raftdir__Peer__MemberForward *f);
void node_members_forward_result(struct node *n, uint64_t from, const Raftdir__Peer__MemberForwardResult *r);
void node_members_leader_changed(struct node *n);
void node_members_progress(struct node *n); /* after anything that may let one go on */
void node_members_flush(struct node *n);
void node_members_close(struct node *n);

/* node_digest.c */
void node_digests_boot(struct node *n, const struct store_checkpoint *list, size_t count);
void node_digests_applied(struct node *n, const struct store_checkpoint *list, size_t count); /* may fail the node */
void node_digests_receive(struct node *n, uint64_t from, const Raftdir__Peer__Checkpoints *c); /* may fail the node */
void node_digests_period(struct node *n);
void node_digests_status(const struct node *n, struct node_status *s);
void node_digests_close(struct node *n);

#endif
