/* store_feed.c - what happened to mailboxes, in order, for watchers. Each node's own matter: outside the digest, and kept only as
 * far back as FEED_EVENTS_KEPT. Key: u64 raft index || u32 ordinal. Value: u8 event, u8 0, u16 name key length, the name's key, the old name's key
 * (renames only). A subtree's rename is one event for each mailbox. */
#include <string.h>
#include "store_state.h"

void store_feed_start(struct store_txn *txn, uint64_t index)
{
    txn->feed_index = index;
    txn->feed_ordinal = 0;
}

int store_feed_add(struct store_txn *txn, enum store_event event, const uint8_t *key, size_t key_len, const uint8_t *old_key, size_t old_key_len,
                   struct err *err)
{
    uint8_t k[12], v[4 + 2 * NAME_KEY_LEN_MAX];
    put_be64(k, txn->feed_index);
    put_be32(k + 8, txn->feed_ordinal);
    v[0] = (uint8_t)event;
    v[1] = 0;
    put_le16(v + 2, (uint16_t)key_len);
    memcpy(v + 4, key, key_len);
    if (old_key_len)
        memcpy(v + 4 + key_len, old_key, old_key_len);
    txn->feed_ordinal++;
    return store_put(txn, TABLE_FEED, k, sizeof k, v, 4 + key_len + old_key_len, MDB_APPEND, err);
}

int store_feed_truncate(struct store_txn *txn, uint32_t ordinal, struct err *err)
{
    uint8_t key[12];
    put_be64(key, txn->feed_index);
    while (txn->feed_ordinal > ordinal) {
        put_be32(key + 8, --txn->feed_ordinal);
        int rc = store_del(txn, TABLE_FEED, key, sizeof key, err);
        if (rc)
            return rc;
    }
    return 0;
}

int store_feed_trim(struct store_txn *txn, struct err *err)
{
    MDB_stat st;
    MDB_cursor *cursor;
    int rc = mdb_stat(txn->mdb, txn->store->dbi[TABLE_FEED], &st);
    if (rc)
        return store_fail(err, rc, "read table feed");
    if (st.ms_entries <= FEED_EVENTS_KEPT)
        return 0;
    rc = store_cursor(txn, TABLE_FEED, &cursor, err);
    if (rc)
        return rc;
    for (size_t n = st.ms_entries - FEED_EVENTS_KEPT; n > 0 && !rc; n--) {
        MDB_val k, v;
        rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
        if (!rc)
            rc = mdb_cursor_del(cursor, 0);
    }
    return rc ? store_fail(err, rc, "drop old events") : 0;
}
