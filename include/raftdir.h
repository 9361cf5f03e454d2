/* raftdir.h - the public API of libraftdir: ask and change a replicated mailbox directory for Cyrus IMAP, from C or C++.
 *
 *     struct raftdir_options o;
 *     raftdir_options_init(&o);
 *     raftdir *d;
 *     char text[256];
 *     if (raftdir_open(&o, &d, text, sizeof text) < 0) ...
 *     const struct raftdir_mailbox *m;
 *     int rc = raftdir_lookup(d, "user.anna", &m);      // 0: m->server says where; RAFTDIR_ENOTFOUND: surely not there; else: can't tell
 *     raftdir_close(&d);
 *
 * Rules that hold for every function
 * - Results: 0 (or a count) or a negative RAFTDIR_E* code, for deciding; raftdir_message() has the text, for reading.
 *   RAFTDIR_ENOTFOUND is only ever said by a node that knows; "can't tell" is always another code.
 * - Ownership: what a function takes is copied before it returns. What it gives (mailboxes, results, status, texts) belongs to the handle and lives until
 *   the next call on that handle; what an iterator gives lives until the next call on that iterator. raftdir_mailbox_copy() keeps a mailbox.
 * - Threads: a handle (with its iterators) is used by one thread at a time. Different handles are independent of each other. A batch belongs to no handle.
 * - fork: a handle is of use in the process that opened it. In a child every call on it returns RAFTDIR_EINVAL with a text that says so, except
 *   raftdir_close(), which frees it there without disturbing the parent's connections.
 * - Time: a call ends by itself within the handle's timeout (monotonic milliseconds). Only resolving a host name (getaddrinfo) may take longer:
 *   give addresses where that matters. The library starts no thread, installs no signal handler and never raises SIGPIPE.
 * - Strings are NUL-terminated. Mailbox names are in Cyrus' internal form (`user.john^doe`, `example.org!user.anna`): '.' separates, '^' is a literal dot.
 *   Where a *user* is meant, it is written as people do: `john.doe@example.org`.
 * - Out of memory: RAFTDIR_ENOMEM, and the handle stays usable.
 * - Versions: structs that begin with `size` may get members at their end, and so may structs that the library makes (raftdir_node_status, ...). A program works with
 *   a newer library as it is, and with an older one while it leaves members that are newer at 0 (else RAFTDIR_EINVAL). All others stay as they are.
 *
 * Error codes first: the daemon, the protocol and the tools use the same table. */
#ifndef RAFTDIR_H
#define RAFTDIR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RAFTDIR_API __attribute__((visibility("default")))
#else
#define RAFTDIR_API
#endif

/* X(name, value, text). Codes are negative, stable, and travel on the wire. The code is for deciding, the text for reading. */
#define RAFTDIR_ERRORS(X)                                                                                     \
    X(EINVAL, -1, "invalid argument")                                                                         \
    X(ENOMEM, -2, "out of memory")                                                                            \
    X(ENOTFOUND, -3, "no such mailbox")                                                                       \
    X(EEXIST, -4, "exists already")                                                                           \
    X(ECONFLICT, -5, "precondition failed")                                                                   \
    X(ENAME, -6, "illegal mailbox name")                                                                      \
    X(ETOOBIG, -7, "over a limit")                                                                            \
    X(EACL, -8, "malformed ACL")                                                                              \
    X(ENOQUORUM, -9, "no quorum: the node can't reach a majority of the cluster")                             \
    X(EUNCERTAIN, -10, "uncertain: the write may or may not have happened")                                   \
    X(ETIMEDOUT, -11, "timed out")                                                                            \
    X(EUNAVAIL, -12, "no node could be reached")                                                              \
    X(EPERM, -13, "not permitted for this role")                                                              \
    X(EAUTH, -14, "authentication failed")                                                                    \
    X(EPROTO, -15, "protocol error")                                                                          \
    X(EVERSION, -16, "unknown version")                                                                       \
    X(ENOSPC, -17, "no space left")                                                                           \
    X(EIO, -18, "input/output error")                                                                         \
    X(ECORRUPT, -19, "data is corrupt")                                                                       \
    X(ECANCELED, -20, "canceled")                                                                             \
    X(EBUSY, -21, "busy: another change of this kind is in progress")                                         \
    X(EEXPIRED, -22, "the operation id has expired")                                                          \
    X(ENOTREADY, -23, "the node is not part of a cluster yet")                                                \
    X(ERESERVED, -24, "the name is reserved by somebody else")                                                \
    X(ENOTLEADER, -25, "not the leader")                                                                      \
    X(EUNSUPPORTED, -26, "not supported by the cluster's feature level or by this version")                   \
    X(EFOREIGN, -27, "belongs to another cluster, node or incarnation")                                       \
    X(EOTHERSTORE, -28, "the mailbox is active on another store")                                             \
    X(EFAILED, -29, "the node has stopped serving after a fault; see its log")                                \
    X(ELIMIT, -30, "too many at once")                                                                        \
    X(EFENCED, -31, "the store has another epoch: a newer master took over")                                  \
    X(ECOMPACTED, -32, "the changes from there on are no longer kept: read all anew")                         \
    X(ESTALE, -33, "no state as fresh as asked for could be reached")                                         \
    X(EAGAIN, -34, "nothing yet")

enum {
#define X(name, value, text) RAFTDIR_##name = value,
    RAFTDIR_ERRORS(X)
#undef X
};

/* The text and the name ("ENOTFOUND") of a code; never NULL, static. Thread-safe. */
RAFTDIR_API const char *raftdir_strerror(int code);
RAFTDIR_API const char *raftdir_errname(int code);

/* --- The handle ------------------------------------------------------------------------------------------------------ */

typedef struct raftdir raftdir;

/* How fresh a read has to be (DESIGN D7). */
enum raftdir_level {
    RAFTDIR_LOCAL = 1,       /* whatever the asked node has published; raftdir_answer() tells its age. Answered without a quorum */
    RAFTDIR_SESSION = 2,     /* the default: at least everything that this handle has written or read before */
    RAFTDIR_LINEARIZABLE = 3 /* everything that anybody was told to be done before the call began; needs a quorum */
};

struct raftdir_options {
    size_t size;               /* set by raftdir_options_init */
    const char *endpoints;     /* comma list, the first is preferred: name the own host's node first. NULL: $RAFTDIR_ENDPOINTS, else unix:/run/raftdir/raftdird.sock.
                                  unix:/path
                                  tls:host:port[=NAME][@SITE]   NAME: the certificate must carry it; without it any server certificate of the CA is good
                                  file:/path                    a text file, one unix: or tls: endpoint a line, # begins a comment; read again when it has changed.
                                                                Wrong or not there: an error of raftdir_open, and later no change
                                  dns:name[:port][@SITE]        the SRV records _raftdir._tcp.name, or, with a port, all addresses of name; looked up when the handle is
                                                                opened (a failure is no error) and again when none answers. Needs certificates */
    const char *ca;            /* PEM files for tls: endpoints. NULL: $RAFTDIR_CA, $RAFTDIR_CERT, $RAFTDIR_KEY. */
    const char *cert;
    const char *key;
    unsigned timeout_ms;       /* of each call; 0: 10,000 */
    unsigned patience_ms;      /* a request that a node hasn't answered by then is also sent to another; 0: 300. Sooner, when the node doesn't answer pings either, or (at most
                                  5 % of the requests) when it takes longer than it usually does there */
    unsigned unreachable_ms;   /* give up before the timeout when no endpoint could be connected for this long; 0: try until the timeout */
    unsigned window;           /* raftdir_submit: writes in flight; 0: 16, at most 1,024 */
    int level;                 /* enum raftdir_level; 0: RAFTDIR_SESSION */
    int only_these;            /* not 0: don't learn the members' endpoints from the nodes */
    const char *site;          /* where we are: after the first endpoint those of this site are preferred; NULL: $RAFTDIR_SITE, else that of the first node that answers */
    const char *local_dir;     /* data directory of this host's node, to read without a socket (DESIGN D8); "": never. NULL: $RAFTDIR_LOCAL; else, if the endpoints
                                  aren't given either, /var/lib/raftdir. What isn't there or may not be read is passed over in silence */
    unsigned max_age_ms;       /* reads are answered only from a state known to be at most this old; 0: any age */
    unsigned absent_max_age_ms; /* session level: RAFTDIR_ENOTFOUND is told only from a state at most this old, since it may bounce somebody's mail; 0: 5,000 */
    const char *software;      /* who we are, for the nodes' logs; NULL: "libraftdir VERSION" */
};
static inline void raftdir_options_init(struct raftdir_options *o)
{
    memset(o, 0, sizeof *o);
    o->size = sizeof *o;
}

/* Reads the certificates, connects to nothing yet. On failure *d_r is NULL and text_r (NULL allowed) says why: RAFTDIR_EINVAL for an endpoint,
 * RAFTDIR_EAUTH or EIO for a certificate, RAFTDIR_ENOMEM. Environment variables are ignored in set-id programs. */
RAFTDIR_API int raftdir_open(const struct raftdir_options *options, raftdir **d_r, char *text_r, size_t text_size);
/* Frees the handle and nulls the pointer (NULL is fine). Writes that were submitted and not drained end with RAFTDIR_ECANCELED (their callbacks are called).
 * Its iterators must be closed before. */
RAFTDIR_API void raftdir_close(raftdir **d);

/* What went wrong in the last call on this handle, for people; "" after a success. */
RAFTDIR_API const char *raftdir_message(const raftdir *d);

RAFTDIR_API int raftdir_set_timeout(raftdir *d, unsigned timeout_ms); /* 0: back to 10,000 */
RAFTDIR_API int raftdir_set_level(raftdir *d, int level);             /* for the reads that follow */
RAFTDIR_API int raftdir_set_max_age(raftdir *d, unsigned max_age_ms); /* for the reads that follow; 0: any age. RAFTDIR_ESTALE when no state so fresh could be reached */

/* The state that the last answer came from. */
struct raftdir_answer {
    uint64_t incarnation; /* indexes are never compared across one */
    uint64_t index;
    int64_t age_ms;       /* how old that state may be; -1: not known */
    const char *node;     /* name of the node that answered; "" before any answer */
    const char *endpoint;
    const char *identity; /* as which it knows us: "cert:NAME", "unix:UID" */
    const char *role;     /* "read", "backend", "admin" */
    int local;            /* 1: read from this host's copy of the state, without a socket; then identity and role are "" */
};
RAFTDIR_API int raftdir_answer(raftdir *d, struct raftdir_answer *answer_r);

/* The endpoints known now, in the order in which they became known; NULL beyond the last. Indexes stay valid while the handle lives; one that a file or DNS no longer
 * has keeps its index until all 64 are taken. 0 endpoints: DNS has named none yet. */
RAFTDIR_API const char *raftdir_endpoint(raftdir *d, unsigned i);
/* Send the calls that follow to this endpoint only (no failover, no second node); -1: to any again. */
RAFTDIR_API int raftdir_use_endpoint(raftdir *d, int i);

/* --- Mailboxes -------------------------------------------------------------------------------------------------------- */

/* A Cyrus mailbox entry. As a result every string is non-NULL, maybe empty. As an argument NULL and "" mean "not given", except for
 * raftdir_batch_add_update, where "" empties a field. Start arguments with raftdir_mailbox_init. */
struct raftdir_mailbox {
    size_t size;             /* set by raftdir_mailbox_init */
    const char *name;
    const char *server;
    const char *partition;   /* may be empty, as Cyrus' masters have it */
    const char *acl;         /* identifier TAB rights TAB ... */
    const char *mbtype;
    const char *uniqueid;
    const char *legacy_specialuse;
    const char *jmapid;
    const char *name_history; /* compact JSON array; empty for [] */
    uint64_t mtime;          /* Unix seconds */
    uint64_t uidvalidity;
    uint64_t createdmodseq;
    uint64_t foldermodseq;
    unsigned fields;         /* arguments of update: RAFTDIR_F_* of the numbers that are given (0 may be meant) */
    /* Results only: */
    uint64_t mailbox_id;     /* stays the same through renames */
    uint64_t generation;     /* differs after every change; for preconditions */
    uint64_t store_id, store_epoch;
    int reserved;            /* a reservation, not a mailbox */
    const char *moving_server; /* a move in progress goes there; "" without one */
    const char *moving_partition;
    const char *rights;      /* visible, my_rights: effective rights; else "" */
};
enum { RAFTDIR_F_MTIME = 1, RAFTDIR_F_UIDVALIDITY = 2, RAFTDIR_F_CREATEDMODSEQ = 4, RAFTDIR_F_FOLDERMODSEQ = 8 };
static inline void raftdir_mailbox_init(struct raftdir_mailbox *m)
{
    memset(m, 0, sizeof *m);
    m->size = sizeof *m;
}
/* A copy in one piece of memory, given to the caller; NULL without memory, or when raftdir_mailbox_init didn't begin it. Free with raftdir_mailbox_free (NULL is fine). Thread-safe. */
RAFTDIR_API struct raftdir_mailbox *raftdir_mailbox_copy(const struct raftdir_mailbox *m);
RAFTDIR_API void raftdir_mailbox_free(struct raftdir_mailbox *m);

/* --- Reads, at the handle's level ------------------------------------------------------------------------------------------
 * Errors of all of them: RAFTDIR_ENAME, EINVAL (argument); RAFTDIR_EPERM (role); can't tell: RAFTDIR_EUNAVAIL (no node reached), ENOQUORUM (linearizable),
 * ETIMEDOUT, ENOTREADY (not part of a cluster), EFOREIGN (the cluster was restored: what this handle had seen is of another incarnation). */

/* One mailbox (or reservation: m->reserved). RAFTDIR_ENOTFOUND: there is none. */
RAFTDIR_API int raftdir_lookup(raftdir *d, const char *name, const struct raftdir_mailbox **m_r);
RAFTDIR_API int raftdir_lookup_uniqueid(raftdir *d, const char *uniqueid, const struct raftdir_mailbox **m_r);
/* The INBOX of a user. */
RAFTDIR_API int raftdir_lookup_user(raftdir *d, const char *user, const struct raftdir_mailbox **m_r);
/* The mailbox, with the effective rights of a user in m->rights ("" when none). groups: groups_n names, with or without "group:". */
RAFTDIR_API int raftdir_my_rights(raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n,
                                  const struct raftdir_mailbox **m_r);

/* Listings: rows in Cyrus' mailbox order (domain; then names with '.' sorting before everything else in them). Streamed with flow control: a reader that
 * stops costs the node nothing. A listing that loses its node goes on at another one behind the last row, from a state at least as new:
 * no row is given twice, and rows that didn't change meanwhile are never left out. */
typedef struct raftdir_list raftdir_list;
struct raftdir_filter { /* NULL: any; all of them must hold */
    size_t size;         /* set by raftdir_filter_init */
    const char *prefix;  /* of the name, as bytes */
    const char *pattern; /* of the whole name: % (one level), * (anything) */
    const char *server;
    const char *partition;
    const char *after;   /* only what comes after this name */
    uint64_t limit;      /* rows; 0: all */
    int reserved;        /* not 0: reservations too */
};
static inline void raftdir_filter_init(struct raftdir_filter *f)
{
    memset(f, 0, sizeof *f);
    f->size = sizeof *f;
}
struct raftdir_visible { /* what a user may see */
    size_t size;         /* set by raftdir_visible_init */
    const char *user;
    const char *const *groups;
    size_t groups_n;
    const char *rights;  /* any of these letters; NULL: "l" */
    const char *pattern; /* NULL: "*" */
    const char *after;
    uint64_t limit;
};
static inline void raftdir_visible_init(struct raftdir_visible *v)
{
    memset(v, 0, sizeof *v);
    v->size = sizeof *v;
}
RAFTDIR_API int raftdir_list_open(raftdir *d, const struct raftdir_filter *filter, raftdir_list **l_r);
RAFTDIR_API int raftdir_visible_open(raftdir *d, const struct raftdir_visible *who, raftdir_list **l_r);
/* 1 with a row, 0 at the end (again and again), negative: can't go on; what came so far is right but not all. The timeout is of each call. */
RAFTDIR_API int raftdir_list_next(raftdir_list *l, const struct raftdir_mailbox **m_r);
/* Where a watch has to begin so that it misses nothing of what changed since this list was read: the state of its first chunk (later chunks may come from newer ones).
 * RAFTDIR_EAGAIN: nothing has come yet; at the end of a list it is always known. See "Watch". */
struct raftdir_position;
RAFTDIR_API int raftdir_list_position(const raftdir_list *l, struct raftdir_position *position_r);
/* Rows that the node read, and seeks over what didn't match, for the rows told so far. */
RAFTDIR_API void raftdir_list_counters(const raftdir_list *l, uint64_t *touched_r, uint64_t *skips_r);
RAFTDIR_API void raftdir_list_close(raftdir_list **l); /* before its handle; NULL is fine */

/* Waits until the asked node (raftdir_use_endpoint) has published `index` of this incarnation; 0: all that this handle has seen.
 * Linearizable level: everything done before the call. RAFTDIR_ETIMEDOUT. */
RAFTDIR_API int raftdir_barrier(raftdir *d, uint64_t index);

/* --- Writes -------------------------------------------------------------------------------------------------------------------
 * A write is atomic and happens exactly once, whatever is sent how often to whom: it carries an operation id that its retries share.
 * It ends as done (0), refused (the directory says no, nothing changed), surely not done (RAFTDIR_ENOQUORUM, EUNAVAIL, ENOTREADY, ENOSPC, ELIMIT),
 * or RAFTDIR_EUNCERTAIN: sent, and no answer until the timeout. Look whether it is there, or (where that is right) do it again.
 * Refusals: RAFTDIR_ENOTFOUND, EEXIST, ECONFLICT (a precondition), ERESERVED, EOTHERSTORE, EFENCED; RAFTDIR_ENAME, ETOOBIG, EACL, EINVAL, EPERM, EUNSUPPORTED.
 * After a 0, reads on this handle at session level see it, on whatever node. */

struct raftdir_op_result {
    uint64_t generation; /* of the mailbox afterwards */
    uint64_t mailbox_id;
    uint32_t changed;    /* mailboxes changed; 0: it was so already */
};
struct raftdir_result {
    uint64_t index;      /* the log index at which it was applied; 0: not applied */
    int failed_op;       /* which operation was refused; -1: none, or not known */
    size_t ops_n;
    const struct raftdir_op_result *ops; /* one an operation, when the write is done */
};

/* One operation, by itself. result_r may be NULL. Tokens: a reservation's secret of at most 64 bytes; NULL and 0: none. */
RAFTDIR_API int raftdir_create(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_put(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_update(raftdir *d, const struct raftdir_mailbox *m, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_reserve(raftdir *d, const char *name, const char *server, const char *partition, const void *token, size_t token_len,
                                uint64_t ttl_ms, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_activate(raftdir *d, const struct raftdir_mailbox *m, const void *token, size_t token_len, int take_over,
                                 const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_deactivate(raftdir *d, const char *name, const char *server, const char *partition, const void *token, size_t token_len,
                                   const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_delete(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_rename(raftdir *d, const char *from, const char *to, int subtree, const char *server, const char *partition,
                               const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_setacl(raftdir *d, const char *name, const char *acl, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_setacl_one(raftdir *d, const char *name, const char *identifier, const char *rights, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_move_begin(raftdir *d, const char *name, const char *server, const char *partition, int subtree,
                                   const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_move_commit(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_move_abort(raftdir *d, const char *name, int subtree, const struct raftdir_result **result_r);
RAFTDIR_API int raftdir_set_feature_level(raftdir *d, uint32_t level, const struct raftdir_result **result_r);

/* Many operations in one atomic write: at most 4,096, and 1 MiB packed. The add functions return 0, RAFTDIR_EINVAL (a needed field is missing),
 * RAFTDIR_ETOOBIG (the batch is full: nothing was added) or RAFTDIR_ENOMEM. */
typedef struct raftdir_batch raftdir_batch;
RAFTDIR_API raftdir_batch *raftdir_batch_create(void); /* NULL without memory */
RAFTDIR_API void raftdir_batch_destroy(raftdir_batch **b);
RAFTDIR_API void raftdir_batch_clear(raftdir_batch *b);
RAFTDIR_API size_t raftdir_batch_count(const raftdir_batch *b); /* operations */
RAFTDIR_API size_t raftdir_batch_len(const raftdir_batch *b);   /* bytes */
/* The store's epoch that the writer believes in: refused with RAFTDIR_EFENCED when the store has a newer one. */
RAFTDIR_API void raftdir_batch_set_store_epoch(raftdir_batch *b, uint64_t epoch);
/* Create: name (absent) and server needed. */
RAFTDIR_API int raftdir_batch_add_create(raftdir_batch *b, const struct raftdir_mailbox *m, const void *token, size_t token_len);
/* Put: the mailbox becomes exactly this, whatever was there; `changed` tells whether it wasn't so already. */
RAFTDIR_API int raftdir_batch_add_put(raftdir_batch *b, const struct raftdir_mailbox *m);
/* Update: the given fields replace the stored ones; neither name nor location. */
RAFTDIR_API int raftdir_batch_add_update(raftdir_batch *b, const struct raftdir_mailbox *m);
/* Reserve: holds a name until activate, deactivate or ttl_ms (0: 5 minutes). Where the mailbox is active at that location already: succeeds, changes nothing. */
RAFTDIR_API int raftdir_batch_add_reserve(raftdir_batch *b, const char *name, const char *server, const char *partition, const void *token,
                                          size_t token_len, uint64_t ttl_ms);
/* Activate: makes a reserved or absent name active. RAFTDIR_EOTHERSTORE when it is active elsewhere, unless take_over. */
RAFTDIR_API int raftdir_batch_add_activate(raftdir_batch *b, const struct raftdir_mailbox *m, const void *token, size_t token_len, int take_over);
RAFTDIR_API int raftdir_batch_add_deactivate(raftdir_batch *b, const char *name, const char *server, const char *partition, const void *token,
                                             size_t token_len);
/* Delete: server NULL: wherever it is; else only if it is there. */
RAFTDIR_API int raftdir_batch_add_delete(raftdir_batch *b, const char *name, int subtree, const char *server, const char *partition,
                                         const void *token, size_t token_len);
/* Rename: server NULL: the location stays. */
RAFTDIR_API int raftdir_batch_add_rename(raftdir_batch *b, const char *from, const char *to, int subtree, const char *server, const char *partition);
/* The whole ACL (identifier TAB rights TAB ...), or one identifier's entry: rights "" removes it, "+x" adds, "-x" takes away, else they replace. */
RAFTDIR_API int raftdir_batch_add_setacl(raftdir_batch *b, const char *name, const char *acl);
RAFTDIR_API int raftdir_batch_add_setacl_one(raftdir_batch *b, const char *name, const char *identifier, const char *rights);
RAFTDIR_API int raftdir_batch_add_move_begin(raftdir_batch *b, const char *name, const char *server, const char *partition, int subtree);
RAFTDIR_API int raftdir_batch_add_move_commit(raftdir_batch *b, const char *name, int subtree);
RAFTDIR_API int raftdir_batch_add_move_abort(raftdir_batch *b, const char *name, int subtree);
RAFTDIR_API int raftdir_batch_add_noop(raftdir_batch *b); /* to carry a precondition on another name */
RAFTDIR_API int raftdir_batch_add_feature_level(raftdir_batch *b, uint32_t level);

enum raftdir_condition {
    RAFTDIR_IF_ABSENT = 1,    /* no mailbox and no live reservation */
    RAFTDIR_IF_PRESENT = 2,   /* an active mailbox */
    RAFTDIR_IF_GENERATION = 3 /* present, with exactly this generation */
};
/* A precondition of the operation added last, on `name` (NULL: the operation's own). All hold, or the whole batch is refused with RAFTDIR_ECONFLICT. */
RAFTDIR_API int raftdir_batch_if(raftdir_batch *b, enum raftdir_condition condition, uint64_t generation, const char *name);

/* Does the batch. It stays as it is and may be written again (as another write). */
RAFTDIR_API int raftdir_write(raftdir *d, const raftdir_batch *b, const struct raftdir_result **result_r);

/* Many writes in flight, for imports. raftdir_submit copies the batch and returns as soon as fewer than `window` writes are in flight; `done` is called once,
 * from within a later call on the handle, in any order. The callback may submit writes and start reads (raftdir_*_start); other functions refuse it with
 * RAFTDIR_EINVAL, and with the window full it gets RAFTDIR_EAGAIN. The handle must not be closed in it. Writes in flight together may be
 * applied in any order. An error from raftdir_submit: the callback is never called. */
typedef void raftdir_done_fn(void *data, int code, const char *message, const struct raftdir_result *result);
RAFTDIR_API int raftdir_submit(raftdir *d, const raftdir_batch *b, raftdir_done_fn *done, void *data);
/* Until all of them have ended. 0 even when some were refused: their callbacks say so. */
RAFTDIR_API int raftdir_drain(raftdir *d);

/* --- In an event loop ------------------------------------------------------------------------------------------------------------
 * For proxies: one thread, many questions in flight, nothing that waits. Watch raftdir_fd() for readability in the loop; when it is readable, call raftdir_process().
 *
 *     raftdir_lookup_user_start(d, "anna", answered, session);
 *     ... poll(raftdir_fd(d), POLLIN) ... raftdir_process(d);   // calls answered(session, code, message, mailbox)
 */

/* A descriptor that is readable whenever raftdir_process has something to do, its timers included. It stays the same, and the library's, while the handle lives.
 * It is level-triggered: what is left undone keeps it readable. RAFTDIR_EIO, RAFTDIR_ENOMEM, RAFTDIR_ELIMIT (too many files). */
RAFTDIR_API int raftdir_fd(raftdir *d);
/* Does what can be done without waiting, and calls the callbacks of what has ended. 0; RAFTDIR_EINVAL in a callback or in a child after fork. What goes wrong with a
 * question is told to its callback. Two things wait all the same, each for one new connection: a host's name is looked up in the DNS (give addresses), and a TLS
 * handshake computes. */
RAFTDIR_API int raftdir_process(raftdir *d);
/* Not 0: raftdir_submit (window full), raftdir_list_next and raftdir_watch_next (nothing there yet) return RAFTDIR_EAGAIN instead of waiting. */
RAFTDIR_API int raftdir_set_nonblocking(raftdir *d, int on);
/* A read in flight. `done` is called once, from raftdir_process or another call on the handle, never from within the call that starts it; m is NULL unless code is 0,
 * and lives until `done` returns. `done` may start further reads and submit writes; other functions refuse it with RAFTDIR_EINVAL, and it must not close the handle. At most 1,024 in flight
 * (RAFTDIR_ELIMIT). Closing the handle ends them with RAFTDIR_ECANCELED. */
typedef void raftdir_mailbox_fn(void *data, int code, const char *message, const struct raftdir_mailbox *m);
RAFTDIR_API int raftdir_lookup_start(raftdir *d, const char *name, raftdir_mailbox_fn *done, void *data);
RAFTDIR_API int raftdir_lookup_uniqueid_start(raftdir *d, const char *uniqueid, raftdir_mailbox_fn *done, void *data);
RAFTDIR_API int raftdir_lookup_user_start(raftdir *d, const char *user, raftdir_mailbox_fn *done, void *data);
RAFTDIR_API int raftdir_my_rights_start(raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n, raftdir_mailbox_fn *done, void *data);

/* --- Watch ------------------------------------------------------------------------------------------------------------------------
 * What changes, in the order of the log, from any node, without gaps and without duplicates, across broken connections and dead nodes.
 *
 * To hold a copy of what a filter asks for, and keep it equal:
 *     list it (raftdir_list_open with the same prefix, server, partition, reserved) to its end; take raftdir_list_position(); close the list;
 *     raftdir_watch_open() from that position, and for each event but PROGRESS: drop old_name unless it is ""; then put *m under name, or drop name when m is NULL.
 * Events between the position and the end of the list are told again: nothing is missed, and doing them again changes nothing. On RAFTDIR_ECOMPACTED or
 * RAFTDIR_EFOREIGN: close the watch, begin again with the list.
 *
 * What is told: a mailbox is in the filter before and after an event, or not. After: CHANGED, RENAMED (with old_name, whether or not that was in the filter) or
 * RESERVED. Only before (deleted, renamed out of the prefix, moved to another server, a reservation now): DELETED, of the name that it had. Neither: nothing.
 * The location counts, not where a move in progress goes; begin and end of such a move are CHANGED. A subtree's rename is one event for each mailbox. */

#define RAFTDIR_DONE_ALL UINT32_MAX
/* Where a watcher is: everything up to event number `done` of `index` has been told (RAFTDIR_DONE_ALL: all events of it). Keep it to go on later, on whatever node.
 * Positions ascend strictly, by index, then done. */
struct raftdir_position {
    uint64_t incarnation; /* 0: begin with what happens from now on */
    uint64_t index;
    uint32_t done;
};
enum raftdir_event_kind {
    RAFTDIR_EVENT_CHANGED = 1, /* made or changed: m is how it is now */
    RAFTDIR_EVENT_DELETED,     /* gone; or it left what the filter asks for */
    RAFTDIR_EVENT_RENAMED,     /* from old_name */
    RAFTDIR_EVENT_RESERVED,    /* a reservation was made (with `reserved` in the filter only) */
    RAFTDIR_EVENT_PROGRESS     /* nothing else for this filter up to `position`: keep it. The first event, when nothing has happened since `from` */
};
struct raftdir_event {
    int kind;                  /* enum raftdir_event_kind */
    const char *name;
    const char *old_name;      /* "" unless renamed */
    const struct raftdir_mailbox *m; /* the mailbox as the node has it when it tells the event: maybe newer than the event, never older. NULL: it isn't in the filter any more
                                by now (a later event says so), or DELETED */
    struct raftdir_position position;
};
struct raftdir_watch_filter {  /* all of them must hold */
    size_t size;               /* set by raftdir_watch_filter_init */
    const char *prefix;        /* of the name, as bytes; NULL: any. A rename is told when either name has it */
    const char *server;        /* the mailbox is there, or was before the event; NULL: any */
    const char *partition;
    int reserved;
    unsigned progress_ms;      /* RAFTDIR_EVENT_PROGRESS at least this often while nothing happens; 0: 10,000 */
};
static inline void raftdir_watch_filter_init(struct raftdir_watch_filter *f)
{
    memset(f, 0, sizeof *f);
    f->size = sizeof *f;
}
typedef struct raftdir_watch raftdir_watch;
/* filter NULL: everything. from NULL: from now on. */
RAFTDIR_API int raftdir_watch_open(raftdir *d, const struct raftdir_watch_filter *filter, const struct raftdir_position *from, raftdir_watch **w_r);
/* Waits at most timeout_ms (0: not at all) for the next event (then 0), which lives until the next call on this watch. RAFTDIR_EAGAIN: none came; call it again.
 * RAFTDIR_ECOMPACTED: the position is older than what nodes keep. RAFTDIR_EFOREIGN: the cluster was restored. Both stay: close the watch, list everything, watch anew. (A
 * list at session level that begins now may also be followed by a watch from what raftdir_watch_position says now.) Other errors: no node could be asked for now;
 * call it again, it goes on where it was. Several watches on a handle, beside other calls, are fine; each holds at most 512 events that weren't taken yet. */
RAFTDIR_API int raftdir_watch_next(raftdir_watch *w, unsigned timeout_ms, const struct raftdir_event **event_r);
/* Behind the event given last, and behind what is known not to be for this filter. incarnation 0: nothing came yet, and `from` was NULL. */
RAFTDIR_API void raftdir_watch_position(const raftdir_watch *w, struct raftdir_position *position_r);
RAFTDIR_API void raftdir_watch_close(raftdir_watch **w); /* before its handle; NULL is fine */

/* --- Cluster ------------------------------------------------------------------------------------------------------------------ */

#define RAFTDIR_UUID_LEN 16
#define RAFTDIR_DIGEST_LEN 16
enum raftdir_role { RAFTDIR_STANDBY = 0, RAFTDIR_VOTER = 1, RAFTDIR_SPARE = 2 };
struct raftdir_member {
    uint64_t id;
    const char *address;       /* host:port of its peer listener */
    const char *cert_name;
    uint8_t uuid[RAFTDIR_UUID_LEN];
    int role;                  /* enum raftdir_role */
    int leader;                /* 1: leads */
    int64_t last_contact_ms;   /* -1: not known */
    int64_t match_index;       /* -1: not known */
};
/* A node's whole state, on its way to another node. */
struct raftdir_image {
    uint64_t member;     /* from or to whom; 0: not known yet; the node itself: a copy of its own state */
    uint64_t index, rows, rows_total, bytes;
    const char *phase;   /* "connecting", "receiving", "verifying", "installing", "waiting" (nobody can send one now); "sending"; "compacting"; "": none */
    const char *problem; /* why the last attempt failed; "" */
};
struct raftdir_node_status {
    uint64_t node_id;          /* 0: not part of a cluster yet */
    const char *node_name, *state, *role, *software;
    const char *failure;       /* why the state is "failed"; else "" */
    uint64_t cluster_id, incarnation, term, leader;
    uint64_t last_index, commit_index, applied_index, published_index;
    uint64_t mailboxes, log_bytes, state_bytes, uptime_ms;
    uint32_t feature_level;
    int quorum;                /* 1: it reaches a majority */
    int has_digest;
    uint8_t digest[RAFTDIR_DIGEST_LEN]; /* of the state at published_index */
    uint64_t log_first;        /* index of the oldest entry kept; 0: not known */
    const char *space;         /* "": enough room on its disk; "low": only writes that don't grow the state are taken; "none" */
    uint64_t space_free;       /* bytes; 0: not known */
    int64_t scrub_age_s;       /* since the last complete scrub of this life; -1: none yet */
    uint32_t local_readers;    /* slots in use by processes of its host that read the state directly */
    uint32_t watchers;
    struct raftdir_image fetching;    /* member 0 and an empty phase: none */
    size_t sending_n;
    const struct raftdir_image *sending; /* images that others fetch there */
    size_t alarms_n;
    const char *const *alarms; /* what an operator should look at */
    size_t members_n;
    const struct raftdir_member *members; /* the configuration that this node knows */
    int mupdate_listening;           /* it takes MUPDATE connections: 1; 0: not now; -1: its configuration names no address for them */
    const char *mupdate_why_not;     /* with 0; else "" */
    uint32_t mupdate_sessions;
};
/* Of the node that answers (raftdir_use_endpoint chooses). Any role. */
RAFTDIR_API int raftdir_status(raftdir *d, const struct raftdir_node_status **status_r);

/* Who a node says it is. Works on a node that is not part of a cluster. */
struct raftdir_node_info {
    const char *node_name, *cert_name, *peer_address;
    uint8_t uuid[RAFTDIR_UUID_LEN];
    uint64_t node_id;
    uint64_t cluster_id; /* 0: not part of a cluster */
    uint32_t feature_level;
};
RAFTDIR_API int raftdir_node_info(raftdir *d, const struct raftdir_node_info **info_r);

/* Role "admin" for the rest; one membership change at a time (RAFTDIR_EBUSY). raftdir_set_timeout to 40 s or more: a promotion waits until the member has
 * caught up. RAFTDIR_EUNCERTAIN: sent, and no answer; ask raftdir_members. */
struct raftdir_members {
    uint64_t cluster_id, incarnation, term, leader;
    size_t n;
    const struct raftdir_member *list;
};
RAFTDIR_API int raftdir_members(raftdir *d, const struct raftdir_members **members_r); /* as the leader sees them */
/* Adds a standby. id 0: the leader gives the next one. Idempotent by uuid. members_r may be NULL; it holds the new member and all the others. */
RAFTDIR_API int raftdir_member_add(raftdir *d, const struct raftdir_member *m, uint64_t *id_r, const struct raftdir_members **members_r);
RAFTDIR_API int raftdir_member_promote(raftdir *d, uint64_t id);
RAFTDIR_API int raftdir_member_demote(raftdir *d, uint64_t id); /* a voter becomes a standby */
RAFTDIR_API int raftdir_member_remove(raftdir *d, uint64_t id);
RAFTDIR_API int raftdir_leader_transfer(raftdir *d, uint64_t id); /* 0: to the voter with the most */

/* On a node that is not part of a cluster, which is the chosen endpoint (raftdir_use_endpoint) or the only one.
 * Bootstrap makes it the sole voter of a new cluster; adopt tells it what raftdir_member_add has decided. RAFTDIR_EEXIST: it is part of a cluster. */
RAFTDIR_API int raftdir_bootstrap(raftdir *d);
RAFTDIR_API int raftdir_adopt(raftdir *d, uint64_t node_id, const struct raftdir_members *members);
/* On a node that has failed or was removed, chosen in the same way: it forgets who it was. Its log and state are deleted, it gets a new UUID and is part of no cluster.
 * cluster_id and node_id must be its own (RAFTDIR_EINVAL); RAFTDIR_EBUSY: it is neither failed nor removed. Its old id must have been removed from the cluster. */
RAFTDIR_API int raftdir_reset(raftdir *d, uint64_t cluster_id, uint64_t node_id);

/* The chosen node moves to a fresh copy of its state, beside the running one, so that the disk gets back what is free inside. Returns when that has begun, or is under way already;
 * raftdir_status has its progress (fetching, with the node's own id as member). RAFTDIR_EBUSY: not at the moment, try again; RAFTDIR_ENOSPC: no room. */
RAFTDIR_API int raftdir_compact(raftdir *d);

/* Who is connected to the MUPDATE listeners of the node that answers (raftdir_use_endpoint chooses). */
struct raftdir_mupdate_session {
    const char *peer;          /* its address */
    const char *identity;      /* "sasl:USER", "cert:NAME", "unix:UID", "noauth:loopback"; another text before that is known */
    const char *role, *server; /* server: whose locations it has written or listed; "": not known */
    const char *doing;         /* "login", "idle", "update", or the command that is worked on */
    int tls, compressed;
    int updating;              /* gets every change: a frontend */
    uint64_t connected_ms;     /* ago */
    uint64_t quiet_ms;         /* since its last command */
    uint64_t commands, rows, bytes; /* rows and bytes: sent */
    uint64_t behind;           /* updating: log entries published since what it was sent last; most of them may not concern it */
    uint64_t queued;           /* bytes that wait for it at the node */
};
struct raftdir_mupdate_sessions {
    int listening;
    const char *why_not;       /* why it takes no connections; "" */
    size_t n;
    const struct raftdir_mupdate_session *list;
};
RAFTDIR_API int raftdir_mupdate_sessions(raftdir *d, const struct raftdir_mupdate_sessions **sessions_r);

struct raftdir_checkpoint {
    uint64_t index;
    uint8_t digest[RAFTDIR_DIGEST_LEN];
};
struct raftdir_verify_result {
    uint64_t done, total, problems;
    uint8_t digest[RAFTDIR_DIGEST_LEN];        /* recomputed from the records */
    uint8_t digest_stored[RAFTDIR_DIGEST_LEN];
    int matches;                                /* 1: both are there and equal */
    uint64_t index;                             /* of the state that was read */
    size_t problem_n;
    const char *const *problem;                 /* the first ones, as text */
    size_t checkpoints_n;
    const struct raftdir_checkpoint *checkpoints; /* oldest first; equal on every node where the index is equal */
};
/* The node re-reads everything and compares. 0 even with problems: look at them. The timeout is that between two signs of progress.
 * progress may be NULL; it must not call functions on the handle. */
RAFTDIR_API int raftdir_verify(raftdir *d, void (*progress)(void *data, uint64_t done, uint64_t total), void *data,
                               const struct raftdir_verify_result **result_r);

#ifdef __cplusplus
}
#endif

#endif
