/* sim.h - the simulated world of one seed: clock, network, disks, nodes, clients, checkers (README.md tells what each part stands for).
 *
 * One world a process, single-threaded. Everything that happens is an event in one queue, ordered by (time, sequence number); everything that is
 * random comes from one generator. Nothing may depend on an address, the wall clock or the order of a hash table: the same seed gives the same run.
 * A violated property ends the process through sim_violation(). */
#ifndef RAFTDIR_SIM_H
#define RAFTDIR_SIM_H
#include <raft.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "log.pb-c.h"
#include "raftdir/apply.h"
#include "raftdir/entry.h"
#include "raftdir/err.h"
#include "raftdir/limits.h"
#include "raftdir/node.h"
#include "raftdir/store.h"

#define SLOTS_MAX 9        /* machines: up to 7 members and spares */
#define IDS_MAX 256        /* member ids given in one run */
#define CLIENTS_MAX 8
#define LOG_MAX (1u << 20) /* entries in one run; more is a runaway */
#define SIM_MAP_LEN (256ull << 20)
#define CLUSTER_ID 0x5eed5eed5eed5eedull
#define EXIT_VIOLATION 42

enum profile { PROFILE_MIXED, PROFILE_CALM, PROFILE_NORMAL, PROFILE_CHAOS };

/* Bugs planted on purpose, outside the product's code: each must be found by a checker (sim_plant.c has the table). */
enum plant {
    PLANT_NONE,
    PLANT_FORGET_VOTE,
    PLANT_FORGET_TERM,
    PLANT_ACK_BEFORE_DURABLE,
    PLANT_LOSE_LOG,
    PLANT_SWAP_ENTRY,
    PLANT_SKIP_DEDUP,
    PLANT_LOSE_APPLY,
    PLANT_DIFFERENT_APPLY,
    PLANT_WRONG_INDEX_ROW,
    PLANT_STALE_READ,
    PLANT_FAKE_ACK,
    PLANT_WRONG_RESULT,
    PLANT_DENY_WRITE,
    PLANT_LOST_ANSWER,
    PLANT_YOUNG_AGE,
    PLANT_MUTE_NODE,
    PLANT_PHANTOM_MEMBER,
    PLANT_EARLY_MEMBER,
    PLANT_CUT_UNSYNCED,
    PLANT_NEVER_CUT,
    PLANT_FORGET_BASE,
    PLANT_IMAGE_LOST_ROW,
    PLANT_IMAGE_OLD,
    PLANT_IMAGE_NO_VOTE,
    PLANT_IMAGE_NEVER,
    PLANT_HIGH_ACK,
    PLANT_UNSEEN_ROT,
    PLANT_DENY_DELETE,
    PLANT_SPACE_UNTOLD,
    PLANT_CLONE,
};

struct sim_options {
    uint64_t seed;
    unsigned nodes; /* 0: the seed chooses */
    uint64_t duration_ms;
    enum profile profile;
    unsigned guards_off;
    enum plant plant;
    bool trace;
    const char *dir; /* for the environments of this seed */
};

/* What the seed chose. Chances are in thousandths unless the name says otherwise. */
struct sim_config {
    enum profile profile;
    bool fifo;               /* links like TCP: in order, resets; else datagrams */
    unsigned voters, slots;  /* at the beginning; machines in all */
    bool bootstrap_one;      /* one node bootstraps, the others join */
    unsigned latency_max_ms, loss, duplicate, straggle; /* straggle: chance of a long delay */
    unsigned crash_point;    /* chance, in 100,000ths, that a call into the world is where the node dies */
    unsigned power_loss;     /* chance that a crash takes the unsynced commits with it */
    unsigned io_error;       /* chance, in 100,000ths, that a log write fails */
    unsigned flush_max_ms, apply_max_ms, slow_disk;
    unsigned fault_min_ms, fault_max_ms; /* 0: no faults */
    unsigned admin_min_ms, admin_max_ms; /* 0: no membership changes */
    bool churn;              /* members come and go all the time, down to one voter and up again */
    bool big;                /* ACLs of tens of kilobytes: frames and entries meet their limits */
    unsigned election_timeout_ms, heartbeat_ms;
    unsigned clients, think_max_ms, reply_loss, read_chance;
    unsigned sync_min_ms, sync_max_ms; /* between synced copies of an environment */
    unsigned log_keep_entries;         /* these four: node_options; 0: the product's own */
    uint64_t log_keep_len, log_hold_len_max, log_unapplied_len_max;
    unsigned segment_entries;          /* the durable log is cut in steps of so many entries */
    unsigned cut_put_off;              /* chance that a cut is put off */
    unsigned image_ms;                 /* for an image, at most */
    unsigned image_break, image_damage; /* chance that a connection breaks at a frame, that a frame arrives damaged */
    bool busy_end;                     /* at the end all have to get level while clients go on */
    bool rot;                          /* a member's state may come to differ from the others' */
    bool disk_loss;                    /* a member may lose its disk */
};

/* --- Events (sim_world.c) ---------------------------------------------------------------------------------------------------- */
struct sim_node;
struct event {
    uint64_t at, seq;
    void (*run)(struct event *ev);
    void (*drop)(struct event *ev); /* frees `data` when the event never runs; NULL: nothing to free */
    struct sim_node *node; /* dropped when this node has died since; kept back while it is paused. NULL: always runs */
    unsigned epoch;
    void *data;
    uint64_t a;
};
void event_post(uint64_t delay_ms, void (*run)(struct event *), void (*drop)(struct event *), struct sim_node *node, void *data, uint64_t a);
void world_init(const struct sim_options *options);
void world_run(uint64_t until); /* runs events up to and including `until`, or until sim.stop */
void world_close(void);
uint64_t rnd(void);
unsigned rnd_in(unsigned min, unsigned max); /* both included */
bool chance(unsigned thousandths);
void sim_violation(const char *checker, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
void sim_trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sim_hash(const void *data, size_t len); /* mixes into the run's hash */
void *xcalloc(size_t n, size_t size);
void *xmemdup(const void *data, size_t len);
#define TRACE(...)                   \
    do {                             \
        if (sim.options.trace)       \
            sim_trace(__VA_ARGS__);  \
    } while (0)

/* --- Logs as arrays of entries (sim_disk.c) -------------------------------------------------------------------------------------- */
struct sim_log {
    uint64_t base;    /* what is up to here is in a state, not in the log */
    struct entry **e; /* e[i] has index base + 1 + i; one reference each */
    size_t n, cap;
};
uint64_t log_last(const struct sim_log *log);
struct entry *log_at(const struct sim_log *log, uint64_t index); /* NULL: not there */
void log_append(struct sim_log *log, struct entry *const *entries, unsigned n); /* cuts at entries[0]->index first */
void log_copy(struct sim_log *to, const struct sim_log *from, uint64_t last); /* up to `last`; `to` is cleared first */
void log_drop(struct sim_log *log, uint64_t index); /* the entries up to `index` */
void log_clear(struct sim_log *log);
bool entry_same(const struct entry *a, const struct entry *b);

/* --- A machine ------------------------------------------------------------------------------------------------------------------ */
struct sim_disk {
    uint64_t term, voted_for;    /* durable */
    struct sim_log log;          /* durable */
    struct log_batch *waiting;   /* handed over, not being written */
    struct log_batch *flight;    /* being written: durable as a whole at the end of the flush */
    struct log_batch *unsafe;    /* PLANT_ACK_BEFORE_DURABLE: what was reported too early */
    struct log_batch *lost;      /* handed over by a dying process */
    uint64_t slow_until;
    struct apply_batch *applying; /* handed to apply, in order */
    bool apply_busy;
    uint64_t told_at;            /* when the driver hears of the last batch that was run */
    char dir[192];               /* the environment */
    unsigned generation;         /* of it: one more with each image */
    bool copied;                 /* dir/synced.mdb holds a synced copy */
    uint64_t synced;             /* its applied index */
    uint64_t applied;            /* the environment's, when its process ended last */
    uint64_t cut;                /* the driver doesn't need what is up to here */
    uint64_t full_until;
};

enum slot_state { SLOT_SPARE, SLOT_ADDING, SLOT_MEMBER, SLOT_REMOVED };

struct sim_fetch;

struct sim_node {
    unsigned slot;
    enum slot_state state;
    uint64_t id; /* 0: none yet */
    uint8_t uuid[NODE_UUID_LEN];
    unsigned lives; /* how often the machine was wiped */
    char host_port[64], cert_name[64], address[256];

    bool up;
    bool doomed;    /* dies at the end of the call that is being made */
    bool failed;    /* the driver said so */
    bool ending;    /* an image takes its place: its requests end */
    bool rotting;   /* the next entry that can go wrong goes wrong */
    bool differs;   /* its state has come to be another than what the log says */
    bool differs_now; /* it is so at the last index that it applied */
    bool condemned; /* it said itself that it is corrupt, or lost its disk: the operator takes it out */
    bool lost;      /* the disk */
    bool clone;     /* lost; now somebody runs an older copy of its disk, in a directory of its own: */
    uint8_t clone_uuid[NODE_UUID_LEN];
    bool busy;      /* inside a node_*() call */
    unsigned epoch; /* counts lives of the process */
    uint64_t up_since, paused_until, resumed_at;
    int drift;      /* thousandths by which its clock is fast */
    uint64_t clock_base;
    int64_t wall_skew_ms;
    struct node *node;
    struct store *store;
    struct sim_disk disk;
    struct sim_log log; /* what the driver handed to the log writer, written or not; never cut in one life */
    struct sim_fetch *fetch; /* of an image */
    unsigned fetches;
    uint64_t differs_from; /* index */
    enum node_space space; /* as the driver was told */
    uint64_t none_at;      /* until when it was last without any space; 0: it never was */
    uint64_t synced_told, synced_before; /* in this life: the last two reports */

    uint64_t tick_at;   /* world time; 0: none armed */
    unsigned tick_gen;
    bool flush_posted;
    unsigned space_gen;
    struct node_status status;
    uint64_t commit_seen, term_seen, applied_seen;
    bool was_leader;
    struct sim_write *writes;
    struct sim_read *reads;
    struct sim_member *members;
};

/* A client's request at one node. Freed when the node has answered. */
struct sim_write {
    struct node_write w;
    struct sim_node *node;
    struct client *client;
    uint64_t attempt, posted_at;
    uint64_t op_since; /* when the client began with it */
    bool low_leader;   /* asked a leader that lacks space, for the first time */
    uint8_t *request;
    struct sim_write *prev, *next;
};
struct sim_read {
    struct node_read r;
    struct sim_node *node;
    struct client *client;
    uint64_t attempt, posted_at;
    uint64_t acked_before; /* highest index acknowledged to anybody before the read began */
    bool granted;
    uint64_t index; /* granted at */
    unsigned name;
    struct sim_read *prev, *next;
};
struct sim_member {
    struct node_member_op m;
    struct sim_node *node;
    Raftdir__Cluster__MemberRequest request;
    Raftdir__Cluster__Member member;
    uint64_t posted_at;
    unsigned slot; /* the machine that the change is about */
    struct sim_member *prev, *next;
};

/* --- The world ------------------------------------------------------------------------------------------------------------------- */
/* X(field, name in the totals) */
#define SIM_STATS(X)                                                                                                              \
    X(steps, "steps") X(frames, "frames") X(frames_lost, "lost") X(foreign, "foreign") X(entries, "entries") X(commits, "commits") X(crashes, "crashes") \
    X(crash_points, "crash_points") X(torn, "torn") X(rollbacks, "rollbacks") X(pauses, "pauses") X(io_errors, "io_errors")        \
    X(partitions, "partitions") X(resets, "resets") X(elections, "elections") X(changes, "changes") X(transfers, "transfers")      \
    X(writes, "writes") X(acks, "acks") X(refused, "refused") X(replays, "replays") X(uncertain, "uncertain")                      \
    X(syncs, "syncs") X(cuts, "cuts") X(fetches, "fetches") X(fetch_breaks, "fetch_breaks") X(images, "images") X(rots, "rots") X(disks_lost, "disks_lost") X(repairs, "repairs") \
    X(no_quorum, "no_quorum") X(no_space, "no_space") X(expired, "expired") X(reads, "reads") X(linear_reads, "linearizable") X(verifies, "verifies")
struct sim_stats {
#define X(field, name) uint64_t field;
    SIM_STATS(X)
#undef X
    uint64_t settle_ms; /* from the end of faults to convergence */
    uint64_t hash;
};

struct sim_world {
    struct sim_options options;
    struct sim_config config;
    struct sim_stats stats;
    uint64_t now, started;
    bool healing, stop;
    bool hurting; /* soon a member gets into trouble that only another member can get it out of */
    struct sim_node nodes[SLOTS_MAX];
    struct sim_node *by_id[IDS_MAX];
    struct sim_log graves[IDS_MAX]; /* the logs of wiped members */
    bool given[IDS_MAX];            /* the id was a member's */
    uint64_t id_max;
    uint64_t fetched_at;      /* when an image was fetched last */
    uint64_t wrong_leader_at; /* when a member whose state differs led last */
};
extern struct sim_world sim;

/* --- sim_net.c: frames between nodes ------------------------------------------------------------------------------------------------ */
void net_send(struct sim_node *from, uint64_t to, const uint8_t *frame, size_t len);
void net_reset(const struct sim_node *n); /* the machine's connections break */
void net_partition(void);                 /* cuts the machines into two groups, or some links one way */
void net_isolate(const struct sim_node *n);
void net_heal(void);
bool net_open(const struct sim_node *a, const struct sim_node *b); /* both ways */

/* --- sim_disk.c, sim_apply.c: log, term and vote, environment ------------------------------------------------------------------------ */
void disk_init(struct sim_node *n);
void disk_log_cut(struct sim_node *n, uint64_t index);
void disk_image(struct sim_node *n, uint64_t index); /* a new, empty log that begins after index */
void disk_lose(struct sim_node *n, bool clone);
int disk_meta_write(struct sim_node *n, uint64_t term, uint64_t voted_for);
void disk_log_write(struct sim_node *n, struct log_batch *batch);
void disk_log_lose(struct sim_node *n, struct log_batch *batch); /* never written: the process dies */
bool disk_has(uint64_t id, uint64_t index, uint64_t term); /* durable on the member of that id */
void disk_crash(struct sim_node *n, bool power_loss);
void disk_wipe(struct sim_node *n);
void disk_close(struct sim_node *n);
void apply_submit(struct sim_node *n, struct apply_batch *batch);
void apply_open(struct sim_node *n);
void apply_crash(struct sim_node *n, bool power_loss); /* closes the environment; may roll it back */
void apply_sync(struct sim_node *n);                   /* keeps a synced copy, and reports it */
void apply_wipe(struct sim_node *n);
void apply_stage(struct sim_node *n, char dir_r[192]); /* an empty directory for the next generation */
void apply_unstage(const char *dir);
void apply_image(struct sim_node *n);                  /* what was staged, and is durable, is the environment */

/* --- sim_image.c: images from member to member -------------------------------------------------------------------------------------- */
void image_wanted(struct sim_node *n, uint64_t index); /* from within a driver's call */
void image_fetch_drop(struct sim_node *n);             /* the process that fetched is gone, or has what it wanted */
void image_send_drop(const struct sim_node *n);        /* the process that sent is gone */

/* --- sim_node.c: processes ----------------------------------------------------------------------------------------------------------- */
void node_init(struct sim_node *n, unsigned slot);
void node_new_identity(struct sim_node *n);
void node_up(struct sim_node *n);
void node_crash(struct sim_node *n, uint64_t restart_ms); /* 0: stays down */
void node_pause(struct sim_node *n, uint64_t ms);
void node_lack_space(struct sim_node *n, enum node_space space, uint64_t ms);
void node_fill_disk(struct sim_node *n, uint64_t ms);
void node_lose_disk(struct sim_node *n);
void node_image(struct sim_node *n, uint64_t index, uint64_t term); /* what is staged takes the place of state and log */
bool node_serves(const struct sim_node *n); /* it is up, as the member that it says it is, and has not failed */
uint64_t node_clock(const struct sim_node *n); /* its own monotonic milliseconds */
/* Brackets around every call into the driver. */
void node_enter(struct sim_node *n);
void node_leave(struct sim_node *n);
void node_flush_soon(struct sim_node *n);
struct sim_node *node_random_up(void); /* NULL: none */
struct sim_node *node_leader(void);    /* of the highest term; NULL: none */

/* --- sim_fault.c, sim_admin.c, sim_client.c, sim_request.c ---------------------------------------------------------------------------- */
void fault_config(void); /* lets the seed choose the configuration */
void fault_start(void);
void fault_heal(void);
void admin_start(void);
bool admin_repairing(void); /* a member is beyond repair, and not replaced yet */
bool admin_may_hurt(void);  /* nobody is, and the others can do without one more */
void admin_sweep(void); /* brings machines in line with the committed configuration */
void admin_done(struct sim_member *m, const Raftdir__Cluster__MemberResult *result);
void client_start(void);
void client_stop(void); /* no new operations */
bool client_idle(void);
void client_write_fresh(struct sim_node *n); /* once: a write that must succeed there */
bool client_fresh_done(const struct sim_node *n);
void client_write_done(struct sim_write *w, int code, const uint8_t *result, size_t len);
void client_read_done(struct sim_read *r, int code, uint64_t index);
void client_reads_due(struct sim_node *n); /* the environment of n has moved on */
void client_reads_lost(struct sim_node *n); /* its process is gone: reads that waited for the environment with it */
void client_close(void);
/* A random packed request; malloc'd. */
uint8_t *request_random(const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, const char *identity, size_t *len_r);
uint8_t *request_noop(const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, const char *identity, size_t *len_r);
#define NAMES_MAX 256
extern char request_names[NAMES_MAX][64]; /* all the names that requests are about */
extern unsigned request_names_n;
void request_init(void);
/* Bit i of *touched_r: the operations may have changed request_names[i]. */
void request_touched(const Raftdir__Log__Request *req, uint64_t touched_r[NAMES_MAX / 64]);

/* --- sim_check.c: logs, terms, commits; sim_model.c: what the committed log means ------------------------------------------------------ */
void check_init(void);
void check_close(void);
void check_first_entry(struct entry *e);
void check_node(struct sim_node *n);                         /* after every call into the driver */
void check_vote(const struct sim_node *n, uint64_t term, uint64_t voted_for); /* it is durable */
void check_boot(struct sim_node *n, uint64_t term, uint64_t voted_for);
void check_applied(struct sim_node *n, const struct apply_batch *batch);
void check_to_apply(struct sim_node *n, const struct apply_batch *batch);
bool check_same_state(uint64_t index, const uint8_t digest[16]); /* as the log says */
void check_periodic(void);
void check_final(void);
void check_verify(struct sim_node *n);
void check_member_answer(uint64_t id, int role); /* an operator is told that it has this role; -1: that it is gone */
uint64_t check_committed(void); /* the highest index committed anywhere */
const struct entry *check_entry(uint64_t index);
void check_acked(uint64_t index);
uint64_t check_acked_max(void);
uint64_t check_acked_at(uint64_t time); /* the highest index acknowledged up to then */
uint64_t check_committed_term(uint64_t index);
void check_converge_start(void);

/* sim_check_cut.c: what is cut, what takes its place, what is refused for lack of space. */
void check_cut(const struct sim_node *n, uint64_t index);
void check_boot_log(const struct sim_node *n, uint64_t applied);
void check_image(const struct sim_node *n, const char *dir, uint64_t index, uint64_t term);
void check_bounded(struct sim_node *n);
void check_no_space(const struct sim_write *w, int code);
void check_failed(const struct sim_node *n, int code, const char *why);

struct model_result {
    uint8_t op_id[OP_ID_LEN];
    uint64_t index;
    int code;
    unsigned applications; /* not replayed, not refused as expired: at most one */
    uint8_t *result;       /* of the application, packed */
    size_t result_len;
};
void model_init(void);
void model_close(void);
void model_advance(uint64_t index); /* applies the committed log up to there */
void model_digest(uint64_t index, uint8_t digest_r[16]);
const struct model_result *model_find(const uint8_t op_id[OP_ID_LEN]); /* NULL: never applied */
uint64_t model_content(unsigned name, uint64_t index); /* hash of the mailbox at that index; 0: none */
uint64_t content_hash(struct store_txn *txn, const char *name);
size_t model_members(struct raft_configuration *conf_r); /* the committed configuration; close it */
size_t model_members_at(uint64_t index, struct raft_configuration *conf_r);
const struct apply_result *model_results(uint64_t index, size_t *n_r);

/* --- sim_plant.c ------------------------------------------------------------------------------------------------------------------------ */
enum plant plant_by_name(const char *name); /* PLANT_NONE: unknown */
const char *plant_name(enum plant plant);
void plant_list(void); /* name, checkers and description, one a line, tabs between */
bool planted(enum plant plant);
struct entry *plant_change_entry(const struct entry *e, const struct sim_node *n); /* a new reference; maybe to another entry. n NULL: the model */
void plant_restore_results(struct apply_batch *batch);
void plant_break_index(const char *dir);
struct entry *plant_nothing(const struct entry *e); /* the same entry without its requests */
bool plant_frame(const struct sim_node *n, const uint8_t *frame, size_t len, uint8_t **frame_r, size_t *len_r); /* false: as it is */

#endif
