/* store_undo.c - taking back what a request did when one of its later operations fails.
 *
 * Steps are noted in one buffer and run backwards. A step is either a mailbox record as it was before (or its absence), whose undoing goes
 * through store_mailbox_change() and so keeps the indexes right, or the key of a row that was made. The counters and the digest
 * are simply put back. LMDB's nested transactions would do the same, but cost each request a copy of every page that it touches. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "store_state.h"

#define KEEP_LEN (16u << 20)
#define STEP_MAILBOX 0xFF
#define STEP_HEAD 8 /* u8 table or STEP_MAILBOX, u8 had a record before, u16 key length, u32 record length */

void store_undo_start(struct store_txn *txn)
{
    struct store_undo *u = &txn->store->writer->undo;
    if (u->size > KEEP_LEN) /* one huge request isn't a reason to hold that much for good */
        store_undo_close(u);
    u->on = true;
    u->len = 0;
    u->steps = 0;
    u->state = txn->state;
    u->feed_ordinal = txn->feed_ordinal;
}

void store_undo_pause(struct store_txn *txn)
{
    txn->store->writer->undo.on = false;
}

int store_undo_room(struct store_txn *txn, size_t steps, size_t len, struct err *err)
{
    struct store_undo *u = &txn->store->writer->undo;
    if (!u->on)
        return 0;
    size_t want = u->len + len + steps * STEP_HEAD;
    if (want > u->len_max)
        return err_set(err, RAFTDIR_ETOOBIG, "the request changes too much at once: split it");
    if (want > u->size) {
        size_t size = u->size ? u->size : 65536;
        while (size < want)
            size *= 2;
        uint8_t *buf = realloc(u->buf, size);
        if (!buf)
            return err_set(err, RAFTDIR_ENOMEM, "note what a request changes: out of memory");
        u->buf = buf;
        u->size = size;
    }
    if (u->steps + steps > u->steps_size) {
        size_t size = u->steps_size ? u->steps_size : 1024;
        while (size < u->steps + steps)
            size *= 2;
        size_t *at = realloc(u->at, size * sizeof *at);
        if (!at)
            return err_set(err, RAFTDIR_ENOMEM, "note what a request changes: out of memory");
        u->at = at;
        u->steps_size = size;
    }
    return 0;
}

static void step(struct store_undo *u, uint8_t what, const void *key, size_t key_len, const void *data, size_t len)
{
    if (!u->on)
        return;
    size_t total = STEP_HEAD + key_len + len;
    assert(u->len + total <= u->size && u->steps < u->steps_size);
    uint8_t *p = u->buf + u->len;
    p[0] = what;
    p[1] = data != NULL;
    put_le16(p + 2, (uint16_t)key_len);
    put_le32(p + 4, (uint32_t)len);
    memcpy(p + STEP_HEAD, key, key_len);
    if (len)
        memcpy(p + STEP_HEAD + key_len, data, len);
    u->at[u->steps++] = u->len;
    u->len += total;
}

void store_undo_mailbox(struct store_txn *txn, const uint8_t *key, size_t key_len, const void *old, size_t old_len)
{
    step(&txn->store->writer->undo, STEP_MAILBOX, key, key_len, old, old ? old_len : 0);
}

void store_undo_row(struct store_txn *txn, enum store_table table, const void *key, size_t key_len)
{
    step(&txn->store->writer->undo, (uint8_t)table, key, key_len, NULL, 0);
}

static int undo_mailbox(struct store_txn *txn, const uint8_t *key, size_t key_len, const uint8_t *before, size_t before_len, struct err *err)
{
    uint8_t *copy = txn->store->writer->undo_buf;
    struct record now, old;
    MDB_val v;
    size_t now_len = 0;
    int rc = store_get(txn, TABLE_MAILBOX, key, key_len, &v, err);
    if (rc == 0) {
        if (v.mv_size > RECORD_LEN_MAX)
            return err_set(err, RAFTDIR_ECORRUPT, "mailbox record has %zu bytes", v.mv_size);
        now_len = v.mv_size;
        memcpy(copy, v.mv_data, now_len);
        rc = record_decode(key, key_len, copy, now_len, &now, err);
    } else if (rc == RAFTDIR_ENOTFOUND) {
        rc = 0;
    }
    if (!rc && before)
        rc = record_decode(key, key_len, before, before_len, &old, err);
    if (rc)
        return rc;
    return store_mailbox_change(txn, key, key_len, now_len ? &now : NULL, copy, now_len, before ? &old : NULL, before, before_len, err);
}

int store_undo_run(struct store_txn *txn, struct err *err)
{
    struct store_writer *w = txn->store->writer;
    struct store_undo *u = &w->undo;
    u->on = false;
    bool made = false;
    while (u->steps) {
        const uint8_t *p = u->buf + u->at[--u->steps];
        size_t key_len = get_le16(p + 2), len = get_le32(p + 4);
        const uint8_t *key = p + STEP_HEAD, *data = p[1] ? key + key_len : NULL;
        int rc;
        if (p[0] == STEP_MAILBOX) {
            rc = undo_mailbox(txn, key, key_len, data, len, err);
        } else {
            rc = store_del(txn, p[0], key, key_len, err);
            made = true;
        }
        if (rc)
            return err ? err_wrap(err, "take back a refused request") : rc;
    }
    txn->state = u->state;
    if (made) {
        memset(&w->principals, 0, sizeof w->principals);
        memset(&w->places, 0, sizeof w->places);
    }
    return store_feed_truncate(txn, u->feed_ordinal, err);
}

void store_undo_close(struct store_undo *undo)
{
    free(undo->buf);
    free(undo->at);
    *undo = (struct store_undo){.len_max = undo->len_max};
}
