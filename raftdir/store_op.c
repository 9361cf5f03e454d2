/* store_op.c - results kept for exactly-once (DESIGN D6), and what runs out with log time.
 *
 * Keys start with the expiry, so new rows go to the end and old ones leave as a range from the front; a retry sends the same expiry, so its result
 * is one descent. */
#include <stdlib.h>
#include <string.h>
#include "store_state.h"

static void op_key(uint64_t expires_ms, const uint8_t *op_id, uint8_t key[8 + OP_ID_LEN])
{
    put_be64(key, expires_ms);
    memcpy(key + 8, op_id, OP_ID_LEN);
}

int store_op_get(struct store_txn *txn, uint64_t expires_ms, const uint8_t *op_id, struct store_result *r, struct err *err)
{
    uint8_t key[8 + OP_ID_LEN];
    op_key(expires_ms, op_id, key);
    MDB_val v;
    int rc = store_get(txn, TABLE_OP, key, sizeof key, &v, err);
    if (rc)
        return rc;
    rc = record_decode_rest(key, sizeof key, v.mv_data, v.mv_size, RECORD_RESULT_HEAD_LEN, &r->packed, err);
    if (rc)
        return err ? err_wrap(err, "read a stored result") : rc;
    memcpy(r->identity, r->packed.s - RECORD_IDENTITY_LEN, RECORD_IDENTITY_LEN);
    return 0;
}

void store_op_digest(struct record_digest *d, bool add, const uint8_t *key, size_t key_len, const void *data, size_t len)
{
    (add ? record_digest_add : record_digest_sub)(d, TABLE_OP, key, key_len, (const uint8_t *)data + RECORD_COMMON_LEN, len - RECORD_COMMON_LEN);
}

int store_op_put(struct store_txn *txn, uint64_t expires_ms, const uint8_t *op_id, const struct store_result *r, struct err *err)
{
    uint8_t key[8 + OP_ID_LEN], small[512];
    size_t len = RECORD_RESULT_HEAD_LEN + r->packed.len;
    uint8_t *buf = len <= sizeof small ? small : malloc(len);
    if (!buf)
        return err_set(err, RAFTDIR_ENOMEM, "store a result: out of memory");
    op_key(expires_ms, op_id, key);
    memcpy(buf + RECORD_COMMON_LEN, r->identity, RECORD_IDENTITY_LEN);
    memcpy(buf + RECORD_RESULT_HEAD_LEN, r->packed.s, r->packed.len);
    record_seal(key, sizeof key, 0, 0, buf, len);
    int rc = store_put(txn, TABLE_OP, key, sizeof key, buf, len, MDB_NOOVERWRITE, err);
    if (!rc)
        store_op_digest(&txn->state.digest, true, key, sizeof key, buf, len);
    if (buf != small)
        free(buf);
    return rc;
}

int store_op_expire(struct store_txn *txn, uint64_t log_time_ms, struct err *err)
{
    MDB_cursor *cursor;
    int rc = store_cursor(txn, TABLE_OP, &cursor, err);
    for (int n = 0; rc == 0 && n < OP_EXPIRE_BATCH; n++) {
        MDB_val k, v;
        rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
        if (rc == MDB_NOTFOUND)
            return 0;
        if (rc)
            return store_fail(err, rc, "read table op");
        if (k.mv_size != 8 + OP_ID_LEN || v.mv_size < RECORD_RESULT_HEAD_LEN)
            return err_set(err, RAFTDIR_ECORRUPT, "table op has a malformed row");
        if (get_be64(k.mv_data) > log_time_ms)
            return 0;
        store_op_digest(&txn->state.digest, false, k.mv_data, k.mv_size, v.mv_data, v.mv_size);
        rc = mdb_cursor_del(cursor, 0);
        if (rc)
            return store_fail(err, rc, "expire a result");
    }
    return rc;
}

int store_reserved_expire(struct store_txn *txn, uint64_t log_time_ms, struct err *err)
{
    uint8_t *copy = txn->store->writer->undo_buf; /* free while no request is being taken back */
    MDB_cursor *cursor;
    int rc = store_cursor(txn, TABLE_RESERVED, &cursor, err);
    for (int n = 0; rc == 0 && n < OP_EXPIRE_BATCH; n++) {
        MDB_val k, v;
        rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST);
        if (rc == MDB_NOTFOUND)
            return 0;
        if (rc)
            return store_fail(err, rc, "read table reserved");
        if (k.mv_size < 9 || k.mv_size > 8 + NAME_KEY_LEN_MAX)
            return err_set(err, RAFTDIR_ECORRUPT, "table reserved has a malformed row");
        if (get_be64(k.mv_data) > log_time_ms)
            return 0;
        uint8_t key[NAME_KEY_LEN_MAX];
        size_t key_len = k.mv_size - 8;
        memcpy(key, (uint8_t *)k.mv_data + 8, key_len);
        struct record r;
        rc = store_get(txn, TABLE_MAILBOX, key, key_len, &v, err);
        if (rc == RAFTDIR_ENOTFOUND || (rc == 0 && v.mv_size > RECORD_LEN_MAX))
            return err_set(err, RAFTDIR_ECORRUPT, "a reservation's mailbox record is missing or too long");
        if (rc)
            return rc;
        memcpy(copy, v.mv_data, v.mv_size);
        rc = record_decode(key, key_len, copy, v.mv_size, &r, err);
        if (!rc)
            rc = store_mailbox_change(txn, key, key_len, &r, copy, v.mv_size, NULL, NULL, 0, err);
        if (!rc)
            rc = store_feed_add(txn, STORE_EVENT_DELETED, key, key_len, NULL, NULL, 0, &r, err);
    }
    return rc;
}
