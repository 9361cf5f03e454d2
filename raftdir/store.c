/* store.c - the environment, transactions and the state record: see store.h; the tables and keys are described in store_state.h, the values
 * in record.h.
 *
 * Durability: MDB_NOMETASYNC (a commit flushes the data pages, not the meta page), so a power cut may lose the last commits but never the tree;
 * the applied index is lost with them, and the log is replayed from there. Never MDB_NOSYNC, except for tests.
 * Layout of meta "state" (little-endian, behind the head of record.h): applied index, applied term, log time, feature level, member_id_max,
 * configuration index, mailboxes, change_seq, mailbox, store, server and principal id_max, digest lo, hi: 14 x u64.
 * The key "version" holds STORE_VERSION as text, so that any later program can say what it found.
 *
 * Full disk: a commit that fails for want of space leaves everything as it was, and the next one may succeed. SIGXFSZ must be ignored by the program
 * where RLIMIT_FSIZE is set.
 *
 * A reader in another process opens the same directory read-only; it needs to write the lock file. It sees what is committed, nothing else. */
#include "store.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "store_state.h"

#define STATE_KEY "state"
#define STATE_KEY_LEN 5
#define CONFIGURATION_KEY "configuration"
#define CONFIGURATION_KEY_LEN 13
#define STATE_FIELDS 14
#define STATE_LEN (RECORD_COMMON_LEN + 8 * STATE_FIELDS)
#define SPACE_PROBE_LEN (1 << 20)

static const struct {
    const char *name;
    unsigned flags;
} tables[TABLES] = {
    [TABLE_META] = {"meta", 0},       [TABLE_MAILBOX] = {"mailbox", 0},   [TABLE_UNIQUEID] = {"uniqueid", MDB_DUPSORT},
    [TABLE_STORE] = {"store", 0},     [TABLE_RACL] = {"racl", 0},         [TABLE_PRINCIPAL] = {"principal", 0},
    [TABLE_STORES] = {"stores", 0},   [TABLE_SLOT] = {"slot", 0},         [TABLE_SERVERS] = {"servers", 0},
    [TABLE_OP] = {"op", 0},           [TABLE_RESERVED] = {"reserved", 0}, [TABLE_FEED] = {"feed", 0},
    [TABLE_DIGESTS] = {"digests", 0},
};
static _Atomic uint64_t snapshots; /* ranges of numbers of snapshots given so far in this process: a transaction has one to itself until it is used up */
#define SNAPSHOT_RANGE_BITS 20

const char *store_table_name(enum store_table table)
{
    return tables[table].name;
}

bool store_table_has_dups(enum store_table table)
{
    return tables[table].flags & MDB_DUPSORT;
}

int store_table_create(MDB_txn *txn, enum store_table table, MDB_dbi *dbi_r)
{
    return mdb_dbi_open(txn, tables[table].name, tables[table].flags | MDB_CREATE, dbi_r);
}

int store_fail(struct err *err, int mdb_rc, const char *what)
{
    /* A missing row is corruption here: callers to whom it is an answer don't come this way. */
    int code = mdb_rc == MDB_NOTFOUND ? RAFTDIR_ECORRUPT : err_from_lmdb(mdb_rc);
    return err_set(err, code, "%s: %s", what, mdb_strerror(mdb_rc));
}

bool store_cache_get(const struct store_cache *cache, const void *text, size_t len, uint64_t *id_r)
{
    if (len == 0 || len > STORE_CACHE_TEXT_LEN)
        return false;
    const struct store_cache_slot *slot = &cache->slot[XXH3_64bits(text, len) % STORE_CACHE_SLOTS];
    if (slot->len != len || memcmp(slot->text, text, len) != 0)
        return false;
    *id_r = slot->id;
    return true;
}

void store_cache_put(struct store_cache *cache, const void *text, size_t len, uint64_t id)
{
    if (len == 0 || len > STORE_CACHE_TEXT_LEN)
        return;
    struct store_cache_slot *slot = &cache->slot[XXH3_64bits(text, len) % STORE_CACHE_SLOTS];
    slot->id = id;
    slot->len = (uint16_t)len;
    memcpy(slot->text, text, len);
}

static void state_encode(const struct store_totals *s, uint8_t buf[STATE_LEN])
{
    const uint64_t v[STATE_FIELDS] = {
        s->meta.applied_index, s->meta.applied_term, s->meta.log_time_ms, s->meta.feature_level, s->meta.member_id_max,
        s->meta.configuration_index, s->meta.mailboxes, s->meta.change_seq, s->mailbox_id_max, s->store_id_max, s->server_id_max,
        s->principal_id_max, s->digest.lo, s->digest.hi};
    for (int i = 0; i < STATE_FIELDS; i++)
        put_le64(buf + RECORD_COMMON_LEN + 8 * i, v[i]);
    record_seal((const uint8_t *)STATE_KEY, STATE_KEY_LEN, 0, 0, buf, STATE_LEN);
}

static int state_write(struct store_txn *txn, struct err *err)
{
    uint8_t buf[STATE_LEN];
    state_encode(&txn->state, buf);
    return store_put(txn, TABLE_META, STATE_KEY, STATE_KEY_LEN, buf, sizeof buf, 0, err);
}

int store_state_get(struct store_txn *txn, struct err *err)
{
    if (txn->state_read)
        return 0;
    MDB_val v;
    struct store_str rest;
    int rc = store_get(txn, TABLE_META, STATE_KEY, STATE_KEY_LEN, &v, err);
    if (rc == RAFTDIR_ENOTFOUND)
        return err_set(err, RAFTDIR_ECORRUPT, "the state record is missing");
    if (!rc)
        rc = record_decode_rest((const uint8_t *)STATE_KEY, STATE_KEY_LEN, v.mv_data, v.mv_size, RECORD_COMMON_LEN, &rest, err);
    if (rc)
        return err ? err_wrap(err, "read the state record") : rc;
    if (v.mv_size != STATE_LEN)
        return err_set(err, RAFTDIR_ECORRUPT, "the state record has %zu bytes instead of %d", v.mv_size, STATE_LEN);
    uint64_t f[STATE_FIELDS];
    for (int i = 0; i < STATE_FIELDS; i++)
        f[i] = get_le64(rest.s + 8 * i);
    txn->state = (struct store_totals){
        .meta = {.applied_index = f[0], .applied_term = f[1], .log_time_ms = f[2], .feature_level = (uint32_t)f[3], .member_id_max = f[4],
                 .configuration_index = f[5], .mailboxes = f[6], .change_seq = f[7]},
        .mailbox_id_max = f[8], .store_id_max = f[9], .server_id_max = f[10], .principal_id_max = f[11], .digest = {f[12], f[13]}};
    txn->state_read = true;
    return 0;
}

/* Creates or finds every table, and checks or writes the version. */
static int open_tables(struct store *s, struct err *err)
{
    struct store_txn txn = {.store = s, .write = !s->options.read_only};
    int rc = mdb_txn_begin(s->env, NULL, s->options.read_only ? MDB_RDONLY : 0, &txn.mdb);
    if (rc)
        return store_fail(err, rc, "begin transaction");
    char version[16];
    int version_len = snprintf(version, sizeof version, "%d", STORE_VERSION);
    /* The version first: whatever else another version has, it isn't ours to touch. */
    rc = mdb_dbi_open(txn.mdb, tables[TABLE_META].name, s->options.read_only ? 0 : MDB_CREATE, &s->dbi[TABLE_META]);
    if (rc == MDB_NOTFOUND) {
        rc = err_set(err, RAFTDIR_ENOTREADY, "there is no state yet");
        goto abort_txn;
    }
    if (rc) {
        rc = store_fail(err, rc, "open table meta");
        goto abort_txn;
    }
    MDB_val v;
    bool fresh = false;
    rc = store_get(&txn, TABLE_META, STORE_VERSION_KEY, STORE_VERSION_KEY_LEN, &v, err);
    if (rc == RAFTDIR_ENOTFOUND) {
        MDB_stat st;
        MDB_envinfo info;
        rc = mdb_stat(txn.mdb, s->dbi[TABLE_META], &st);
        if (!rc)
            rc = mdb_env_info(s->env, &info);
        if (!rc && info.me_last_txnid && !st.ms_entries) {
            /* It has been written to, by one transaction that makes everything at the least: a damaged page hides it. */
            rc = err_set(err, RAFTDIR_ECORRUPT, "the state's tables can't be found in it");
            goto abort_txn;
        }
        if (rc || st.ms_entries || s->options.read_only) {
            rc = err_set(err, RAFTDIR_EVERSION, "the state has no version");
            goto abort_txn;
        }
        fresh = true;
    } else if (rc) {
        goto abort_txn;
    } else if (v.mv_size != (size_t)version_len || memcmp(v.mv_data, version, v.mv_size) != 0) {
        rc = err_set(err, RAFTDIR_EVERSION, "the state has version \"%.*s\"; this program knows %s", (int)(v.mv_size > 20 ? 20 : v.mv_size),
                     (const char *)v.mv_data, version);
        goto abort_txn;
    }
    for (int t = 0; t < TABLES; t++) {
        rc = mdb_dbi_open(txn.mdb, tables[t].name, tables[t].flags | (fresh ? MDB_CREATE : 0), &s->dbi[t]);
        if (rc) {
            rc = err_set(err, rc == MDB_NOTFOUND ? RAFTDIR_ECORRUPT : err_from_lmdb(rc), "open table %s: %s", tables[t].name, mdb_strerror(rc));
            goto abort_txn;
        }
    }
    if (fresh) {
        txn.state = (struct store_totals){.meta = {.feature_level = 1}};
        rc = store_put(&txn, TABLE_META, STORE_VERSION_KEY, STORE_VERSION_KEY_LEN, version, (size_t)version_len, 0, err);
        if (!rc)
            rc = state_write(&txn, err);
    } else {
        rc = store_state_get(&txn, err);
        if (!rc && txn.state.meta.feature_level > FEATURE_LEVEL_MAX)
            rc = err_set(err, RAFTDIR_EVERSION, "the state has feature level %u; this program knows up to %d", txn.state.meta.feature_level,
                         FEATURE_LEVEL_MAX);
    }
    if (rc)
        goto abort_txn;
    /* In a read-only transaction too the handles are kept only by a commit. */
    rc = mdb_txn_commit(txn.mdb);
    return rc ? store_fail(err, rc, "commit") : 0;
abort_txn:
    mdb_txn_abort(txn.mdb);
    return rc;
}

int store_open(const char *dir, const struct store_options *options, struct store **store_r, struct err *err)
{
    struct store *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, RAFTDIR_ENOMEM, "open store: out of memory");
    atomic_store(&s->refs, 1);
    pthread_mutex_init(&s->small.mutex, NULL);
    if (options)
        s->options = *options;
    int rc;
    if (!s->options.read_only) {
        s->writer = calloc(1, sizeof *s->writer);
        if (!s->writer) {
            rc = err_set(err, RAFTDIR_ENOMEM, "open store: out of memory");
            goto free_store;
        }
        s->writer->undo.len_max = STORE_UNDO_LEN_MAX;
    }
    rc = store_env_open(dir, &s->options, MDB_NOMETASYNC | (s->options.no_sync ? MDB_NOSYNC : 0), &s->env, &s->small.on, err);
    if (rc)
        goto free_store;
    if (!s->options.read_only) {
        int dead;
        rc = mdb_reader_check(s->env, &dead); /* readers that were killed no longer pin pages */
        if (rc) {
            rc = store_fail(err, rc, "check the readers");
            goto close_env;
        }
    }
    rc = open_tables(s, err);
    if (rc) {
        if (err)
            err_wrap(err, "open store %s", dir);
        goto close_env;
    }
    *store_r = s;
    return 0;
close_env:
    mdb_env_close(s->env);
free_store:
    pthread_mutex_destroy(&s->small.mutex);
    free(s->writer);
    free(s);
    return rc;
}

void store_close(struct store **store)
{
    struct store *s = *store;
    *store = NULL;
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    mdb_env_close(s->env);
    pthread_mutex_destroy(&s->small.mutex);
    if (s->writer)
        store_undo_close(&s->writer->undo);
    free(s->writer);
    free(s);
}

struct store *store_ref(struct store *store)
{
    atomic_fetch_add(&store->refs, 1);
    return store;
}

int store_sync(struct store *store, struct err *err)
{
    int rc = mdb_env_sync(store->env, 1);
    return rc ? store_fail(err, rc, "flush the state") : 0;
}

uint64_t store_used_len(struct store *store)
{
    MDB_envinfo info;
    MDB_stat st;
    if (mdb_env_info(store->env, &info) || mdb_env_stat(store->env, &st))
        return 0;
    return (uint64_t)(info.me_last_pgno + 1) * st.ms_psize;
}

static void snapshot_next(struct store_txn *txn)
{
    if ((++txn->snapshot & ((1u << SNAPSHOT_RANGE_BITS) - 1)) <= 1)
        txn->snapshot = ((atomic_fetch_add(&snapshots, 1) + 1) << SNAPSHOT_RANGE_BITS) + 1;
}

static struct store_txn *txn_create(struct store *store, bool write)
{
    struct store_txn *txn = calloc(1, sizeof *txn);
    if (!txn)
        return NULL;
    txn->store = store;
    txn->write = write;
    txn->live = true;
    snapshot_next(txn);
    return txn;
}

static int begin(struct store *store, bool write, MDB_txn **mdb_r)
{
    if (store->small.on)
        return store_small_begin(store, mdb_r);
    return mdb_txn_begin(store->env, NULL, write ? 0 : MDB_RDONLY, mdb_r);
}

static int txn_begin(struct store *store, bool write, struct store_txn **txn_r, struct err *err)
{
    struct store_txn *txn = txn_create(store, write);
    if (!txn)
        return err_set(err, RAFTDIR_ENOMEM, "begin transaction: out of memory");
    int rc = begin(store, write, &txn->mdb);
    if (rc == MDB_READERS_FULL) {
        int dead;
        if (mdb_reader_check(store->env, &dead) == 0 && dead > 0)
            rc = begin(store, write, &txn->mdb);
    }
    if (rc) {
        free(txn);
        return store_fail(err, rc, "begin transaction");
    }
    txn->txn_id = mdb_txn_id(txn->mdb);
    *txn_r = txn;
    return 0;
}

int store_read_begin(struct store *store, struct store_txn **txn_r, struct err *err)
{
    return txn_begin(store, false, txn_r, err);
}

void store_read_reset(struct store_txn *txn)
{
    assert(!txn->write);
    if (!txn->live)
        return;
    mdb_txn_reset(txn->mdb);
    txn->live = false;
    if (txn->store->small.on)
        store_small_end(txn->store);
}

int store_read_renew(struct store_txn *txn, struct err *err)
{
    store_read_reset(txn);
    int rc = txn->store->small.on ? store_small_begin(txn->store, &txn->mdb) : mdb_txn_renew(txn->mdb);
    if (rc)
        return store_fail(err, rc, "renew transaction");
    txn->live = true;
    uint64_t txn_id = mdb_txn_id(txn->mdb);
    if (txn_id != txn->txn_id) { /* else what was read and verified is what is there now: store_place_active */
        txn->txn_id = txn_id;
        txn->state_read = false;
        txn->place_id = 0;
    }
    snapshot_next(txn);
    return 0;
}

void store_read_end(struct store_txn **txn)
{
    if (!*txn)
        return;
    store_read_reset(*txn);
    mdb_txn_abort((*txn)->mdb);
    free((*txn)->active);
    free(*txn);
    *txn = NULL;
}

int store_write_begin(struct store *store, struct store_txn **txn_r, struct err *err)
{
    assert(!store->options.read_only);
    int rc = txn_begin(store, true, txn_r, err);
    if (rc)
        return rc;
    store->writer->undo.on = false;
    rc = store_state_get(*txn_r, err);
    if (rc)
        store_write_abort(txn_r);
    return rc;
}

/* What the caches learnt in a transaction that isn't committed may not exist. */
static void forget(struct store *store)
{
    memset(&store->writer->principals, 0, sizeof store->writer->principals);
    memset(&store->writer->places, 0, sizeof store->writer->places);
    store->writer->undo.on = false;
}

/* LMDB says EIO when the kernel took only a part of its pages, which is how a full disk or a quota shows first. Would the file grow? */
bool store_space_is_short(MDB_env *env)
{
    mdb_filehandle_t fd;
    struct stat st;
    if (mdb_env_get_fd(env, &fd) || fstat(fd, &st))
        return false;
    int rc = posix_fallocate(fd, st.st_size, SPACE_PROBE_LEN);
    return rc && err_from_errno(rc) == RAFTDIR_ENOSPC;
}

int store_write_commit(struct store_txn **txn_inout, struct err *err)
{
    struct store_txn *txn = *txn_inout;
    assert(txn->write);
    int rc = state_write(txn, err);
    if (rc) {
        store_write_abort(txn_inout);
        return rc;
    }
    rc = mdb_txn_commit(txn->mdb); /* frees it, whatever happens, and its cursors */
    if (rc) {
        forget(txn->store);
        if (rc == EIO && store_space_is_short(txn->store->env))
            rc = ENOSPC;
        rc = store_fail(err, rc, "commit");
    }
    free(txn);
    *txn_inout = NULL;
    return rc;
}

void store_write_abort(struct store_txn **txn)
{
    if (!*txn)
        return;
    assert((*txn)->write);
    mdb_txn_abort((*txn)->mdb);
    forget((*txn)->store);
    free(*txn);
    *txn = NULL;
}

int store_get(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, MDB_val *value_r, struct err *err)
{
    MDB_val k = {key_len, (void *)(uintptr_t)key};
    int rc = mdb_get(txn->mdb, txn->store->dbi[table], &k, value_r);
    if (rc == MDB_NOTFOUND)
        return RAFTDIR_ENOTFOUND;
    return rc ? err_set(err, err_from_lmdb(rc), "read table %s: %s", tables[table].name, mdb_strerror(rc)) : 0;
}

int store_cursor(struct store_txn *txn, enum store_table table, MDB_cursor **cursor_r, struct err *err)
{
    if (!txn->cursor[table]) {
        int rc = mdb_cursor_open(txn->mdb, txn->store->dbi[table], &txn->cursor[table]);
        if (rc)
            return err_set(err, err_from_lmdb(rc), "open table %s: %s", tables[table].name, mdb_strerror(rc));
    }
    *cursor_r = txn->cursor[table];
    return 0;
}

int store_put(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, const void *value, size_t len, unsigned flags,
              struct err *err)
{
    assert(txn->write);
    MDB_cursor *cursor = NULL;
    int rc = store_cursor(txn, table, &cursor, err);
    if (rc)
        return rc;
    MDB_val k = {key_len, (void *)(uintptr_t)key}, v = {len, (void *)(uintptr_t)value};
    rc = mdb_cursor_put(cursor, &k, &v, flags);
    return rc ? err_set(err, err_from_lmdb(rc), "write table %s: %s", tables[table].name, mdb_strerror(rc)) : 0;
}

int store_del(struct store_txn *txn, enum store_table table, const void *key, size_t key_len, struct err *err)
{
    assert(txn->write);
    MDB_val k = {key_len, (void *)(uintptr_t)key};
    int rc = mdb_del(txn->mdb, txn->store->dbi[table], &k, NULL);
    if (rc == MDB_NOTFOUND)
        return err_set(err, RAFTDIR_ECORRUPT, "table %s lacks a row that should be there", tables[table].name);
    return rc ? err_set(err, err_from_lmdb(rc), "write table %s: %s", tables[table].name, mdb_strerror(rc)) : 0;
}

int store_meta_get(struct store_txn *txn, struct store_meta *meta_r, struct err *err)
{
    int rc = store_state_get(txn, err);
    if (rc)
        return rc;
    *meta_r = txn->state.meta;
    record_digest_bytes(&txn->state.digest, meta_r->digest);
    return 0;
}

int store_configuration_get(struct store_txn *txn, const uint8_t **data_r, size_t *len_r, uint64_t *index_r, struct err *err)
{
    MDB_val v;
    struct store_str rest;
    *data_r = NULL;
    *len_r = 0;
    *index_r = 0;
    int rc = store_get(txn, TABLE_META, CONFIGURATION_KEY, CONFIGURATION_KEY_LEN, &v, err);
    if (rc == RAFTDIR_ENOTFOUND)
        return 0;
    if (!rc)
        rc = record_decode_rest((const uint8_t *)CONFIGURATION_KEY, CONFIGURATION_KEY_LEN, v.mv_data, v.mv_size, RECORD_COMMON_LEN + 8, &rest, err);
    if (rc)
        return err ? err_wrap(err, "read the configuration") : rc;
    *index_r = get_le64(rest.s - 8);
    *data_r = (const uint8_t *)rest.s;
    *len_r = rest.len;
    return 0;
}

int store_configuration_put(struct store_txn *txn, const void *data, size_t len, uint64_t index, struct err *err)
{
    uint8_t *buf = malloc(RECORD_COMMON_LEN + 8 + len);
    if (!buf)
        return err_set(err, RAFTDIR_ENOMEM, "store the configuration: out of memory");
    put_le64(buf + RECORD_COMMON_LEN, index);
    memcpy(buf + RECORD_COMMON_LEN + 8, data, len);
    record_seal((const uint8_t *)CONFIGURATION_KEY, CONFIGURATION_KEY_LEN, 0, 0, buf, RECORD_COMMON_LEN + 8 + len);
    int rc = store_put(txn, TABLE_META, CONFIGURATION_KEY, CONFIGURATION_KEY_LEN, buf, RECORD_COMMON_LEN + 8 + len, 0, err);
    free(buf);
    if (!rc)
        txn->state.meta.configuration_index = index;
    return rc;
}

int store_checkpoint_put(struct store_txn *txn, uint64_t index, struct err *err)
{
    uint8_t key[8], digest[16];
    put_be64(key, index);
    record_digest_bytes(&txn->state.digest, digest);
    int rc = store_put(txn, TABLE_DIGESTS, key, sizeof key, digest, sizeof digest, 0, err);
    MDB_cursor *cursor = NULL;
    if (!rc)
        rc = store_cursor(txn, TABLE_DIGESTS, &cursor, err);
    while (!rc) {
        MDB_stat st;
        MDB_val k, v;
        rc = mdb_stat(txn->mdb, txn->store->dbi[TABLE_DIGESTS], &st);
        if (!rc && st.ms_entries <= DIGESTS_KEPT)
            return 0;
        if (!rc)
            rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
        if (!rc)
            rc = mdb_cursor_del(cursor, 0);
        if (rc)
            rc = store_fail(err, rc, "drop an old digest");
    }
    return rc;
}

int store_checkpoints_get(struct store_txn *txn, struct store_checkpoint *list_r, size_t *n_inout, struct err *err)
{
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(txn->mdb, txn->store->dbi[TABLE_DIGESTS], &cursor);
    if (rc)
        return store_fail(err, rc, "open table digests");
    size_t n = 0;
    MDB_val k, v;
    for (rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST); rc == 0 && n < *n_inout; rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
        if (k.mv_size != 8 || v.mv_size != 16) {
            mdb_cursor_close(cursor);
            return err_set(err, RAFTDIR_ECORRUPT, "table digests has a malformed row");
        }
        list_r[n].index = get_be64(k.mv_data);
        memcpy(list_r[n++].digest, v.mv_data, 16);
    }
    mdb_cursor_close(cursor);
    if (rc && rc != MDB_NOTFOUND)
        return store_fail(err, rc, "read table digests");
    *n_inout = n;
    return 0;
}
