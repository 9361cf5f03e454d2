/* store.h - the directory's state: one LMDB environment with the mailbox records and every index (DESIGN D2, D4, D8).
 *
 * One writer thread (apply); any number of reader threads and processes. A read transaction is for one thread, one request
 * or one bounded chunk. Pointers in views live until the transaction ends or is reset.
 * Invariants (store_verify checks each): every index row is derivable from the mailbox and store records and none is missing;
 * the digest equals that of the records; applied index, term, log time and data change in one transaction. */
#ifndef RAFTDIR_STORE_H
#define RAFTDIR_STORE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "acl.h"
#include "err.h"
#include "limits.h"

struct store;
struct store_txn;

struct store_options {
    uint64_t map_len; /* 0: STORE_MAP_LEN, or less where RLIMIT_AS forbids it */
    bool read_only;   /* a local reader: never creates, never writes data */
    bool no_sync;     /* simulation and tests only: nothing survives a power cut */
    uint64_t events_kept; /* writers: events for watchers; 0: FEED_EVENTS_KEPT */
    int group;        /* writers: this group's processes may read (data.mdb 0640, lock.mdb 0660); -1 or 0: only the owner */
};
/* Opens or creates the environment in directory `dir` (which must exist). RAFTDIR_EVERSION for another STORE_VERSION. */
int store_open(const char *dir, const struct store_options *options, struct store **store_r, struct err *err);
/* Drops a reference and nulls *store; the environment is closed with the last one. store_open gives one. Both thread-safe. */
void store_close(struct store **store);
struct store *store_ref(struct store *store);
int store_sync(struct store *store, struct err *err); /* everything committed so far is durable on return */

/* What stands beside the data, changed in the same transaction. */
struct store_meta {
    uint64_t applied_index;
    uint64_t applied_term;
    uint64_t log_time_ms;
    uint32_t feature_level;
    uint64_t member_id_max;      /* ids of removed members are never given again */
    uint64_t configuration_index;
    uint8_t digest[16];
    uint64_t mailboxes;          /* active */
    uint64_t change_seq;         /* the last generation given */
};

/* Transactions. A read transaction can be renewed. A write transaction: commit frees it in every case. */
int store_read_begin(struct store *store, struct store_txn **txn_r, struct err *err);
void store_read_reset(struct store_txn *txn); /* releases the snapshot, keeps the slot */
int store_read_renew(struct store_txn *txn, struct err *err);
void store_read_end(struct store_txn **txn);
int store_write_begin(struct store *store, struct store_txn **txn_r, struct err *err);
int store_write_commit(struct store_txn **txn, struct err *err); /* RAFTDIR_ENOSPC: map or disk full, nothing changed */
void store_write_abort(struct store_txn **txn);

int store_meta_get(struct store_txn *txn, struct store_meta *meta_r, struct err *err);
/* The raft configuration as applied: bytes of raft_configuration_encode(); lives until the transaction ends. len 0: none. */
int store_configuration_get(struct store_txn *txn, const uint8_t **data_r, size_t *len_r, uint64_t *index_r, struct err *err);
/* Digests recorded at multiples of DIGEST_INTERVAL, oldest first; at most DIGESTS_KEPT. */
struct store_checkpoint {
    uint64_t index;
    uint8_t digest[16];
};
int store_checkpoints_get(struct store_txn *txn, struct store_checkpoint *list_r, size_t *n_inout, struct err *err);

/* A mailbox as a reader sees it: strings are NOT NUL-terminated, live in the map; the checksum has been verified. */
struct store_str {
    const char *s;
    size_t len;
};
enum store_state { STORE_ACTIVE = 1, STORE_RESERVED = 2 };
struct store_mailbox {
    uint64_t id, store_id, store_epoch, generation;
    enum store_state state;
    char name[NAME_KEY_LEN_MAX + 1]; /* internal form, NUL-terminated */
    size_t name_len;
    struct store_str server, partition; /* of the store's active slot */
    struct store_str moving_server, moving_partition; /* len 0 and s NULL: no move in progress */
    struct store_str acl, mbtype, uniqueid, legacy_specialuse, jmapid, name_history;
    uint64_t mtime, uidvalidity, createdmodseq, foldermodseq;
    uint64_t reserved_until_ms; /* log time */
};
/* 0, RAFTDIR_ENOTFOUND (the directory is sure), RAFTDIR_ECORRUPT, ... A reservation is found too (state says so). */
int store_lookup(struct store_txn *txn, const char *name, size_t len, struct store_mailbox *m_r, struct err *err);
int store_lookup_uniqueid(struct store_txn *txn, const char *uniqueid, size_t len, struct store_mailbox *m_r, struct err *err);

/* Lists, in Cyrus mailbox order. A scan keeps its position as a name: it can go on in a later transaction. */
struct store_filter {
    const char *prefix;    /* NULL: none */
    const char *pattern;   /* NULL: none; seeks on its literal prefix, skip-seeks over subtrees where '%' allows it */
    const char *server;    /* NULL: any; uses the store index when no prefix or pattern is more selective */
    const char *partition; /* NULL: any */
    bool reserved;         /* reservations too */
};
struct store_counters {
    uint64_t touched; /* rows read from any table */
    uint64_t skips;   /* seeks over a subtree or to the next candidate */
};
struct store_scan;
/* `after`: resume strictly after this name; NULL: from the start. The filter and `after` are copied. */
int store_list_begin(const struct store_filter *filter, const char *after, struct store_scan **scan_r, struct err *err);
/* Mailboxes visible to `who` with any of `rights` (DESIGN D4, DOMAIN "Reverse ACL index"): the reverse index of each identity, `anyone`
 * and the personal namespace by name prefix, merged in order; each candidate evaluated exactly as positive & ~negative.
 * Rows touched <= 2 x (the identities' ACL rows within the literal prefix + rows returned + skips). */
int store_visible_begin(const struct acl_subject *who, acl_rights rights, const char *pattern, const char *after,
                        struct store_scan **scan_r, struct err *err);
/* The next row within `txn` (any live read transaction; cursors are kept while it is the same snapshot). 0 with a row; RAFTDIR_ENOTFOUND at the
 * end. rights_r (NULL allowed): the effective rights of a visible scan. */
int store_scan_next(struct store_scan *scan, struct store_txn *txn, struct store_mailbox *m_r, acl_rights *rights_r, struct err *err);
/* At most so many rows touched in one store_scan_next(); beyond, it returns RAFTDIR_EBUSY and goes on at the next call, in any transaction. For threads
 * that must not be held up by a filter that nothing matches. 0, as at the start: no bound. */
void store_scan_bound(struct store_scan *scan, uint64_t touched_max);
void store_scan_counters(const struct store_scan *scan, struct store_counters *c_r);
void store_scan_release(struct store_scan *scan); /* forget cursors of the transaction; the position stays. Before the txn is reset or ends */
void store_scan_end(struct store_scan **scan);

/* What clients ask, checked first (RAFTDIR_ENAME, ETOOBIG, EINVAL, EACL): the daemon and local readers refuse and find the same. Beyond that as store_lookup,
 * store_list_begin and store_visible_begin; empty strings are NULL. */
enum store_by { STORE_BY_NAME = 1, STORE_BY_UNIQUEID, STORE_BY_USER };
int store_ask(struct store_txn *txn, enum store_by by, const char *key, struct store_mailbox *m_r, struct err *err);
int store_ask_rights(struct store_txn *txn, const char *name, const struct acl_subject *who, struct store_mailbox *m_r, acl_rights *rights_r, struct err *err);
int store_ask_list(const struct store_filter *filter, const char *after, struct store_scan **scan_r, struct err *err);
int store_ask_visible(const struct acl_subject *who, const char *rights, const char *pattern, const char *after, struct store_scan **scan_r, struct err *err);

/* Changes of mailboxes after a position, in order: what this node still keeps of them (outside the digest; store_options.events_kept). */
enum store_event { STORE_EVENT_CHANGED = 1, STORE_EVENT_DELETED, STORE_EVENT_RENAMED, STORE_EVENT_RESERVED };
#define STORE_FEED_ALL UINT32_MAX              /* as `done`: all events of the index */
struct store_feed_event {
    uint64_t index;
    uint32_t ordinal;                          /* 0, 1, ... within the index */
    enum store_event event;
    char name[NAME_KEY_LEN_MAX + 1], old_name[NAME_KEY_LEN_MAX + 1]; /* old_name: "" unless renamed */
    uint64_t store_id, old_store_id;           /* after and before; 0: none. Where a mailbox was is known by these, whatever became of it since */
    bool reserved, old_reserved;               /* it was only a reservation, after and before */
};
/* The first event behind (index, done), `done` counting the events of `index` that were seen. RAFTDIR_ENOTFOUND: none yet; RAFTDIR_ECOMPACTED: one behind the position isn't
 * kept any more (said exactly then); RAFTDIR_ECORRUPT. Read transactions only. */
int store_feed_next(struct store_txn *txn, uint64_t index, uint32_t done, struct store_feed_event *event_r, struct err *err);
/* Where the active slot of a store is: views until the transaction ends, or the next such call on it. RAFTDIR_ECORRUPT: there is no such store. */
int store_place(struct store_txn *txn, uint64_t store_id, struct store_str *server_r, struct store_str *partition_r, struct err *err);

/* Re-reads everything: checksums, every index against brute force, the digest. Progress and problems are told through callbacks.
 * Runs in chunks of one read transaction (it must be one snapshot). Returns 0 even with problems; *problems_r counts them. */
struct store_verify_cb {
    void *data;
    void (*progress)(void *data, uint64_t done, uint64_t total); /* NULL allowed */
    void (*problem)(void *data, const char *text);               /* NULL allowed */
    bool (*stop)(void *data); /* asked now and then: true ends the verify with RAFTDIR_ECANCELED; NULL allowed */
};
int store_verify(struct store_txn *txn, const struct store_verify_cb *cb, uint8_t digest_r[16], uint64_t *problems_r, struct err *err);

uint64_t store_used_len(struct store *store); /* bytes of the map in use, with what is free inside */
uint64_t store_map_len(struct store *store);
/* For fault.h: this is the node's state now (NULL: it has none); is the address within its map? The second may be called by a signal handler. */
void store_map_watch(struct store *store);
bool store_map_holds(const void *address);
/* Readers in all processes (DESIGN D8): slots of the lock file. */
struct store_readers {
    unsigned slots, others;   /* in use; those of other processes */
    uint64_t oldest_lag;      /* commits since the snapshot of the oldest of them that reads now; 0: none does */
    uint64_t oldest_at;       /* LMDB's number of that snapshot */
    int oldest_pid;           /* 0: none */
};
/* Frees the slots of processes that are gone (mdb_reader_check) and tells what is left. Takes the readers' mutex, which a process that was stopped at the wrong moment
 * holds: so never on a thread that others wait for. */
int store_readers_check(struct store *store, struct store_readers *readers_r, struct err *err);
/* Bytes of the pages that were replaced since the snapshot `at` (oldest_at): what its reader holds back. Reads a row for each transaction since. */
int store_held_len(struct store_txn *txn, uint64_t at, uint64_t *len_r, struct err *err);
/* Bytes of the pages that hold something: what a fresh copy would need. Reads no rows. */
int store_live_len(struct store_txn *txn, uint64_t *len_r, struct err *err);
/* Bytes inside that are free, or will be when the readers that see them have ended. Reads a row for each transaction that left some. */
int store_free_len(struct store_txn *txn, uint64_t *len_r, struct err *err);

#endif
