/* store_state.h - what the files of the store and apply share about the environment; nobody else includes it.
 *
 * Tables (named LMDB databases). Keys in memcmp order, integers in keys big-endian; NAME is a name's key (name.h).
 *   meta       "state" -> struct store_totals, packed (store.c); "configuration" -> u64 index, raft configuration as encoded
 *   mailbox    NAME -> mailbox record
 *   uniqueid   uniqueid -> NAME (sorted duplicates)
 *   store      u64 store id || NAME -> empty: the mailboxes of a store, reservations included
 *   racl       u64 principal id || NAME -> u32 positive, u32 negative rights, little-endian: the reverse ACL index, active mailboxes only
 *   principal  text -> u64 principal id, big-endian. Never removed: an id is small, and identifiers come back
 *   stores     u64 store id -> store record
 *   slot       u64 server id || partition -> u64 store id, big-endian
 *   servers    'i' || u64 server id -> server record; 'n' || name, or 'h' || SHA-256 of a name over STORE_SERVER_KEY_MAX -> u64 id, big-endian
 *   op         u64 expiry || op id -> result: exactly-once (DESIGN D6)
 *   reserved   u64 log time || NAME -> empty: reservations by their end
 *   feed       u64 raft index || u32 ordinal -> event (store_feed.c); kept to store_options.events_kept; outside the digest
 *   digests    u64 raft index -> digest, 16 bytes; the last DIGESTS_KEPT
 * LMDB's longest key is 511 bytes: 8 bytes of an id and the longest name key are just that. A server's name may be longer: hence its hash.
 *
 * Digest: the sum mod 2^128 of XXH3-128 (seeded by table and key) over the values of mailbox, stores, servers ('i' rows) and op; of a
 * result without its message, which is for people and may be worded anew by a later version. So it needs no order, and a change costs two hashes.
 *
 * `anyone` holds inside a domain only (Cyrus' virtdomains): its rows stand under the principal "anyone" 0x1D DOMAIN, where DOMAIN is that of
 * the mailbox and empty for a mailbox without one. No identifier can contain 0x1D (acl_check), so no user can be taken for it. */
#ifndef RAFTDIR_STORE_STATE_H
#define RAFTDIR_STORE_STATE_H
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include "record.h"
#include "store.h"

enum store_table {
    TABLE_META,
    TABLE_MAILBOX,
    TABLE_UNIQUEID,
    TABLE_STORE,
    TABLE_RACL,
    TABLE_PRINCIPAL,
    TABLE_STORES,
    TABLE_SLOT,
    TABLE_SERVERS,
    TABLE_OP,
    TABLE_RESERVED,
    TABLE_FEED,
    TABLE_DIGESTS,
    TABLES
};
#define STORE_KEY_MAX 511
#define STORE_VERSION_KEY "version" /* in meta: STORE_VERSION as text, the only row there that is not a record */
#define STORE_VERSION_KEY_LEN 7
#define STORE_SERVER_KEY_MAX 400
#define STORE_ANYONE "anyone\x1d"
#define STORE_ANYONE_LEN 7
#define STORE_UNDO_LEN_MAX (256u << 20) /* what the operations of one request may overwrite, the last one's aside; part of the replicated behaviour */

/* The counters that change with the data; in a write transaction the copy in store_txn is the truth until the commit. */
struct store_totals {
    struct store_meta meta; /* meta.digest is not kept up to date here: `digest` is */
    struct record_digest digest;
    uint64_t mailbox_id_max, store_id_max, server_id_max, principal_id_max;
};

/* Small direct-mapped caches of the writer: text -> id. Emptied whenever something that they may hold was undone. */
#define STORE_CACHE_SLOTS 4096
#define STORE_CACHE_TEXT_LEN 112
struct store_cache_slot {
    uint64_t id;
    uint16_t len; /* 0: empty */
    char text[STORE_CACHE_TEXT_LEN];
};
struct store_cache {
    struct store_cache_slot slot[STORE_CACHE_SLOTS];
};
bool store_cache_get(const struct store_cache *cache, const void *text, size_t len, uint64_t *id_r);
void store_cache_put(struct store_cache *cache, const void *text, size_t len, uint64_t id);

/* One identity's rights in one mailbox. */
struct store_racl_row {
    uint64_t principal;
    uint32_t positive, negative;
};

/* What a request has overwritten, so that it can be taken back (store_undo.c). */
struct store_undo {
    bool on;
    uint8_t *buf;
    size_t len, size;
    size_t *at; /* where each step starts */
    size_t steps, steps_size;
    size_t len_max; /* STORE_UNDO_LEN_MAX; tests lower it */
    struct store_totals state;
    uint32_t feed_ordinal;
};

/* Memory of the only writer, kept between its transactions. */
struct store_writer {
    struct store_cache principals, places;
    struct store_racl_row rows_old[ACL_ENTRIES_MAX], rows_new[ACL_ENTRIES_MAX];
    struct store_undo undo;
    uint8_t undo_buf[RECORD_LEN_MAX];
};

struct store {
    _Atomic unsigned refs;
    MDB_env *env;
    MDB_dbi dbi[TABLES];
    struct store_options options;
    struct store_writer *writer; /* NULL when read-only */
    /* A reader's map that the state may outgrow (store_env.c). */
    struct {
        bool on;
        pthread_mutex_t mutex; /* of what follows */
        bool lost;
        unsigned reading; /* transactions of this process */
    } small;
};

/* A store's active slot as a reader has found it in the snapshot `txn_id`; the texts are in the map. */
struct store_active {
    uint64_t id, txn_id, epoch; /* id 0: none */
    const char *server, *partition;
    uint16_t server_len, partition_len;
};
#define STORE_ACTIVES 256 /* a power of two; stores are numbered from 1 on, so a site with fewer has a slot for each */

struct store_txn {
    struct store *store;
    MDB_txn *mdb;
    uint64_t snapshot; /* differs between any two begins and renewals in this process: scans compare it */
    bool write, live;
    bool state_read;
    struct store_totals state;
    /* The store that was read last, and how many were. */
    uint64_t place_id, places_read;
    struct record_store place;
    uint64_t txn_id;             /* LMDB's: two read transactions of an environment with the same see the same */
    struct store_active *active; /* readers only: STORE_ACTIVES, by id; NULL: none yet */
    struct store_active active_one; /* instead of them */
    /* Writer only. */
    MDB_cursor *cursor[TABLES];
    uint64_t feed_index;
    uint32_t feed_ordinal;
};

/* store_env.c: what opening and building have in common. flags: MDB_NOSYNC, MDB_NOMETASYNC. small_r: this reader's transactions begin and are renewed by
 * store_small_begin (LMDB's codes; NULL in *mdb_inout: begin), and store_small_end is called when one has ended or was reset. */
int store_env_open(const char *dir, const struct store_options *options, unsigned flags, MDB_env **env_r, bool *small_r, struct err *err);
int store_small_begin(struct store *store, MDB_txn **mdb_inout);
void store_small_end(struct store *store);
int store_table_create(MDB_txn *txn, enum store_table table, MDB_dbi *dbi_r);
/* After an EIO of a commit: was it for want of space? */
bool store_space_is_short(MDB_env *env);

/* LMDB's code as ours, with "what: text". Not for MDB_NOTFOUND where that is an answer. */
int store_fail(struct err *err, int mdb_rc, const char *what);
/* The state, read once a transaction. */
int store_state_get(struct store_txn *txn, struct err *err);
/* Rows. get: 0, RAFTDIR_ENOTFOUND without a text, or an error. put and del are for write transactions; del of an absent row is RAFTDIR_ECORRUPT. */
int store_get(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, MDB_val *value_r, struct err *err);
int store_put(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, const void *value, size_t len, unsigned flags,
              struct err *err);
int store_del(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, struct err *err);
int store_cursor(struct store_txn *txn, enum store_table table, MDB_cursor **cursor_r, struct err *err);
const char *store_table_name(enum store_table table);
bool store_table_has_dups(enum store_table table); /* one key may have several rows */
int store_configuration_put(struct store_txn *txn, const void *data, size_t len, uint64_t index, struct err *err);
int store_checkpoint_put(struct store_txn *txn, uint64_t index, struct err *err);

/* store_place.c: servers, slots and stores. */
int store_place_get(struct store_txn *txn, uint64_t store_id, const struct record_store **place_r, struct err *err);
/* The same for those who only want the active slot: a reader has it verified once a snapshot. Lives until the transaction ends or the next of these calls. */
int store_place_active(struct store_txn *txn, uint64_t store_id, const struct store_active **active_r, struct err *err);
/* The store that has this slot and whether the slot is its active one; RAFTDIR_ENOTFOUND without a text. */
int store_place_find(struct store_txn *txn, struct store_str server, struct store_str partition, uint64_t *store_id_r, bool *active_r,
                     struct err *err);
/* The same, made when it isn't there: an implicit store. */
int store_place_make(struct store_txn *txn, struct store_str server, struct store_str partition, uint64_t *store_id_r, bool *active_r,
                     struct err *err);
int store_server_find(struct store_txn *txn, struct store_str server, uint64_t *id_r, struct err *err); /* RAFTDIR_ENOTFOUND without a text */
size_t store_server_key(struct store_str server, uint8_t key_r[STORE_KEY_MAX], int *rc_r, struct err *err);

/* store_racl.c: ACL -> rows, ascending by principal; an ACL that doesn't parse has none. `make`: unknown principals get an id, otherwise
 * they are RAFTDIR_ECORRUPT. rows: ACL_ENTRIES_MAX. */
int store_racl_rows(struct store_txn *txn, const uint8_t *key, size_t key_len, struct store_str acl, bool make, struct store_racl_row *rows_r,
                    size_t *n_r, struct err *err);
int store_racl_change(struct store_txn *txn, const uint8_t *key, size_t key_len, struct store_str old_acl, struct store_str new_acl,
                      struct err *err);
int store_racl_principal(struct store_txn *txn, const char *text, size_t len, uint64_t *id_r, struct err *err); /* RAFTDIR_ENOTFOUND */

/* store_mailbox.c: the one way to change a mailbox record: writes it, every index, the counters and the digest, and notes how to undo it.
 * `old` (NULL: there is none) must be the present record, in memory that is not LMDB's; `data` (NULL: remove it) the encoded new one.
 * RAFTDIR_ETOOBIG: the request overwrites too much at once; nothing was done. */
int store_mailbox_change(struct store_txn *txn, const uint8_t *key, size_t key_len, const struct record *old, const void *old_data,
                         size_t old_len, const struct record *now, const void *data, size_t len, struct err *err);
/* For readers, at each row of a walk through a table: are all rows of its page there? *page_inout: 0 at first. */
int store_leaf_check(struct store_txn *txn, enum store_table table, const MDB_val *key, uintptr_t *page_inout, struct err *err);
/* For readers, after store_mailbox_get said RAFTDIR_ENOTFOUND: 0, it is so; RAFTDIR_ECORRUPT: a damaged page may hide it. */
int store_absent_check(struct store_txn *txn, const uint8_t *key, size_t len, struct err *err);
/* The record under a key: RAFTDIR_ENOTFOUND without a text. */
int store_mailbox_get(struct store_txn *txn, const uint8_t *key, size_t key_len, struct record *r_r, MDB_val *value_r, struct err *err);
/* Has this record, as far as a reader is concerned, run out? */
bool store_mailbox_expired(const struct record *r, uint64_t log_time_ms);
/* A record as a view; m->name is set already. */
int store_mailbox_view(struct store_txn *txn, const struct record *r, struct store_mailbox *m, struct err *err);

/* store_feed.c */
void store_feed_start(struct store_txn *txn, uint64_t index);
/* now, old: the mailbox after and before; NULL: none. old_key_len 0: not renamed. */
int store_feed_add(struct store_txn *txn, enum store_event event, const uint8_t *key, size_t key_len, const struct record *now, const uint8_t *old_key,
                   size_t old_key_len, const struct record *old, struct err *err);
int store_feed_truncate(struct store_txn *txn, uint32_t ordinal, struct err *err); /* of the present index, from this one on */
int store_feed_trim(struct store_txn *txn, struct err *err);
bool store_feed_row_good(const MDB_val *k, const MDB_val *v); /* for store_verify */

/* store_op.c: results by expiry and op id. */
struct store_result {
    uint8_t identity[RECORD_IDENTITY_LEN];
    struct store_str packed; /* raftdir.log.Result, without a message */
};
int store_op_get(struct store_txn *txn, uint64_t expires_ms, const uint8_t *op_id, struct store_result *r_r, struct err *err); /* RAFTDIR_ENOTFOUND */
int store_op_put(struct store_txn *txn, uint64_t expires_ms, const uint8_t *op_id, const struct store_result *r, struct err *err);
int store_op_expire(struct store_txn *txn, uint64_t log_time_ms, struct err *err);       /* at most OP_EXPIRE_BATCH */
int store_reserved_expire(struct store_txn *txn, uint64_t log_time_ms, struct err *err); /* at most OP_EXPIRE_BATCH */
void store_op_digest(struct record_digest *d, bool add, const uint8_t *key, size_t key_len, const void *data, size_t len);

/* store_undo.c */
void store_undo_start(struct store_txn *txn); /* from here on, what is overwritten is noted */
void store_undo_pause(struct store_txn *txn); /* what follows can't fail: it is not noted any more */
/* Room for so many steps and bytes of keys and records: RAFTDIR_ETOOBIG, RAFTDIR_ENOMEM. Asked for before anything is changed. */
int store_undo_room(struct store_txn *txn, size_t steps, size_t len, struct err *err);
void store_undo_mailbox(struct store_txn *txn, const uint8_t *key, size_t key_len, const void *old, size_t old_len);
void store_undo_row(struct store_txn *txn, enum store_table table, const void *key, size_t key_len); /* a row that was made */
int store_undo_run(struct store_txn *txn, struct err *err);
void store_undo_close(struct store_undo *undo);

#endif
