/* store_feed.c - what happened to mailboxes, in order, for watchers. Each node's own matter: outside the digest, and kept only as
 * far back as store_options.events_kept. Index and ordinal of an event are the same on all nodes.
 *
 * Key: u64 raft index || u32 ordinal. Value: the head of record.h (kind: enum store_event; flags: FLAG_*), then
 *   16 u64 store id after   24 u64 store id before   32 u16 length of the name's key   34 the name's key, then the old name's key (renames only)
 * A subtree's rename is one event for each mailbox. Names below are those of the time of the event.
 *
 * What was dropped is known exactly: the newest event that was dropped leaves a marker, a row of the same key and kind EVENT_DROPPED, which is the first row of the
 * table from then on. Without a marker nothing was ever dropped, so an empty feed without one says that nothing happened. The rows, marker included,
 * travel with images and copies of the state: a node that was made of one can tell exactly as much as the one that it came from.
 *
 * A watcher must not miss an event because a bit flipped: rows have checksums, their pages are checked (store_leaf_check), and ordinals have no gaps.
 *
 * Places are resolved through the store as it is now. A change of a store's active slot must therefore add events of its own, one for each of its mailboxes or
 * one of a new kind; nothing changes slots yet. */
#include <string.h>
#include "name.h"
#include "store_state.h"

#define KEY_LEN 12
#define EVENT_DROPPED 0
#define FLAG_RESERVED 1
#define FLAG_OLD_RESERVED 2
#define HEAD_LEN (RECORD_COMMON_LEN + 8 + 8 + 2)

void store_feed_start(struct store_txn *txn, uint64_t index)
{
    txn->feed_index = index;
    txn->feed_ordinal = 0;
}

int store_feed_add(struct store_txn *txn, enum store_event event, const uint8_t *key, size_t key_len, const struct record *now, const uint8_t *old_key,
                   size_t old_key_len, const struct record *old, struct err *err)
{
    uint8_t k[KEY_LEN], v[HEAD_LEN + 2 * NAME_KEY_LEN_MAX];
    uint16_t flags = 0;
    put_be64(k, txn->feed_index);
    put_be32(k + 8, txn->feed_ordinal);
    put_le64(v + RECORD_COMMON_LEN, now ? now->store_id : 0);
    put_le64(v + RECORD_COMMON_LEN + 8, old ? old->store_id : 0);
    put_le16(v + RECORD_COMMON_LEN + 16, (uint16_t)key_len);
    memcpy(v + HEAD_LEN, key, key_len);
    if (old_key_len)
        memcpy(v + HEAD_LEN + key_len, old_key, old_key_len);
    if (now && now->state == STORE_RESERVED)
        flags |= FLAG_RESERVED;
    if (old && old->state == STORE_RESERVED)
        flags |= FLAG_OLD_RESERVED;
    record_seal(k, sizeof k, (uint8_t)event, flags, v, HEAD_LEN + key_len + old_key_len);
    txn->feed_ordinal++;
    return store_put(txn, TABLE_FEED, k, sizeof k, v, HEAD_LEN + key_len + old_key_len, MDB_APPEND, err);
}

int store_feed_truncate(struct store_txn *txn, uint32_t ordinal, struct err *err)
{
    uint8_t key[KEY_LEN];
    put_be64(key, txn->feed_index);
    while (txn->feed_ordinal > ordinal) {
        put_be32(key + 8, --txn->feed_ordinal);
        int rc = store_del(txn, TABLE_FEED, key, sizeof key, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* --- Rows ------------------------------------------------------------------------------------------------------------------------ */

static uint8_t kind_of(const MDB_val *v)
{
    return ((const uint8_t *)v->mv_data)[1];
}

/* What a row says; e_r->event is EVENT_DROPPED for the marker. */
static int decode(const MDB_val *k, const MDB_val *v, struct store_feed_event *e, struct err *err)
{
    struct store_str rest;
    uint16_t flags;
    if (k->mv_size != KEY_LEN)
        return err_set(err, RAFTDIR_ECORRUPT, "table feed has a key of %zu bytes", k->mv_size);
    int rc = record_decode_rest(k->mv_data, k->mv_size, v->mv_data, v->mv_size, RECORD_COMMON_LEN, &rest, err);
    if (rc)
        return err ? err_wrap(err, "an event") : rc;
    e->store_id = e->old_store_id = 0;
    e->reserved = e->old_reserved = false;
    e->index = get_be64(k->mv_data);
    e->ordinal = get_be32((const uint8_t *)k->mv_data + 8);
    e->event = (enum store_event)kind_of(v);
    e->name[0] = e->old_name[0] = '\0';
    flags = get_le16((const uint8_t *)v->mv_data + 2);
    if (kind_of(v) == EVENT_DROPPED)
        return rest.len == 0 && flags == 0 ? 0 : err_set(err, RAFTDIR_ECORRUPT, "table feed has a malformed marker");
    size_t key_len = rest.len >= HEAD_LEN - RECORD_COMMON_LEN ? get_le16(rest.s + 16) : 0;
    size_t old_len = rest.len - (HEAD_LEN - RECORD_COMMON_LEN) - key_len; /* looked at only when it doesn't wrap */
    if (kind_of(v) > STORE_EVENT_RESERVED || flags & ~(FLAG_RESERVED | FLAG_OLD_RESERVED) || key_len == 0 || key_len > NAME_KEY_LEN_MAX ||
        rest.len < HEAD_LEN - RECORD_COMMON_LEN + key_len || old_len > NAME_KEY_LEN_MAX || (old_len != 0) != (kind_of(v) == STORE_EVENT_RENAMED))
        return err_set(err, RAFTDIR_ECORRUPT, "table feed has a malformed row");
    e->store_id = get_le64(rest.s);
    e->old_store_id = get_le64(rest.s + 8);
    e->reserved = flags & FLAG_RESERVED;
    e->old_reserved = flags & FLAG_OLD_RESERVED;
    const uint8_t *key = (const uint8_t *)rest.s + (HEAD_LEN - RECORD_COMMON_LEN);
    e->name[name_from_key(key, key_len, e->name)] = '\0';
    if (old_len)
        e->old_name[name_from_key(key + key_len, old_len, e->old_name)] = '\0';
    return 0;
}

bool store_feed_row_good(const MDB_val *k, const MDB_val *v)
{
    struct store_feed_event e;
    struct err err = {0};
    return decode(k, v, &e, &err) == 0;
}

/* --- What is kept ------------------------------------------------------------------------------------------------------------------ */

int store_feed_trim(struct store_txn *txn, struct err *err)
{
    uint64_t kept = txn->store->options.events_kept ? txn->store->options.events_kept : FEED_EVENTS_KEPT;
    MDB_stat st;
    MDB_cursor *cursor;
    MDB_val k, v;
    int rc = mdb_stat(txn->mdb, txn->store->dbi[TABLE_FEED], &st);
    if (rc)
        return store_fail(err, rc, "read table feed");
    if (st.ms_entries <= kept)
        return 0;
    rc = store_cursor(txn, TABLE_FEED, &cursor, err);
    if (rc)
        return rc;
    rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
    if (rc)
        return store_fail(err, rc, "read table feed");
    if (v.mv_size < RECORD_COMMON_LEN)
        return err_set(err, RAFTDIR_ECORRUPT, "table feed has a malformed row");
    bool marked = kind_of(&v) == EVENT_DROPPED;
    if (st.ms_entries - marked <= kept)
        return 0;
    /* All that goes, then the marker in the last one's place. */
    uint8_t last[KEY_LEN], marker[RECORD_COMMON_LEN];
    for (uint64_t n = st.ms_entries - kept; n > 0; n--) {
        rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
        if (!rc && k.mv_size != KEY_LEN)
            return err_set(err, RAFTDIR_ECORRUPT, "table feed has a malformed row");
        if (!rc) {
            memcpy(last, k.mv_data, KEY_LEN);
            rc = mdb_cursor_del(cursor, 0);
        }
        if (rc)
            return store_fail(err, rc, "drop old events");
    }
    record_seal(last, sizeof last, EVENT_DROPPED, 0, marker, sizeof marker);
    return store_put(txn, TABLE_FEED, last, sizeof last, marker, sizeof marker, MDB_NOOVERWRITE, err);
}

/* --- Reading ------------------------------------------------------------------------------------------------------------------------ */

/* The first row, if it is the marker, says up to where events are gone. */
static int check_kept(MDB_cursor *cursor, uint64_t index, uint32_t done, struct store_feed_event *e, struct err *err)
{
    MDB_val k, v;
    int rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc)
        return store_fail(err, rc, "read table feed");
    if ((rc = decode(&k, &v, e, err)) != 0)
        return rc;
    if (e->event == EVENT_DROPPED && (e->index > index || (e->index == index && e->ordinal >= done)))
        return err_set(err, RAFTDIR_ECOMPACTED, "events up to index %llu are not kept any more; the position is %llu", (unsigned long long)e->index,
                       (unsigned long long)index);
    return 0;
}

static int feed_next(struct store_txn *txn, MDB_cursor *cursor, uint64_t index, uint32_t done, struct store_feed_event *e, struct err *err)
{
    uint8_t key[KEY_LEN];
    MDB_val k = {sizeof key, key}, v;
    uintptr_t page = 0;
    int rc = check_kept(cursor, index, done, e, err);
    if (rc)
        return rc;
    put_be64(key, index);
    put_be32(key + 8, done);
    rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    if (rc == MDB_NOTFOUND)
        return RAFTDIR_ENOTFOUND;
    if (rc)
        return store_fail(err, rc, "read table feed");
    if ((rc = store_leaf_check(txn, TABLE_FEED, &k, &page, err)) != 0 || (rc = decode(&k, &v, e, err)) != 0)
        return rc;
    /* Nothing behind the position was dropped, so the next one is either the very next of this index or the first one of a later index. */
    if (e->event == EVENT_DROPPED || e->ordinal != (e->index == index ? done : 0))
        return err_set(err, RAFTDIR_ECORRUPT, "table feed lacks events before number %u of index %llu", e->ordinal, (unsigned long long)e->index);
    return 0;
}

int store_feed_next(struct store_txn *txn, uint64_t index, uint32_t done, struct store_feed_event *e, struct err *err)
{
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(txn->mdb, txn->store->dbi[TABLE_FEED], &cursor);
    if (rc)
        return store_fail(err, rc, "open table feed");
    rc = feed_next(txn, cursor, index, done, e, err);
    mdb_cursor_close(cursor);
    return rc;
}
