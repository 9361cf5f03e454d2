/* store_mailbox.c - reading one mailbox, and the one way to change one. */
#include <assert.h>
#include <string.h>
#include "name.h"
#include "store_state.h"

#define CACHE_LINE_LEN 64
#define PREFETCH_LEN_MAX 512

bool store_mailbox_expired(const struct record *r, uint64_t log_time_ms)
{
    return r->state == STORE_RESERVED && r->reserved_until_ms != 0 && r->reserved_until_ms <= log_time_ms;
}

int store_mailbox_get(struct store_txn *txn, const uint8_t *key, size_t key_len, struct record *r, MDB_val *value_r, struct err *err)
{
    int rc = store_get(txn, TABLE_MAILBOX, key, key_len, value_r, err);
    if (rc)
        return rc;
    /* The checksum needs all of it, and most of the time goes into waiting for memory. */
    for (size_t at = CACHE_LINE_LEN; at < value_r->mv_size && at < PREFETCH_LEN_MAX; at += CACHE_LINE_LEN)
        __builtin_prefetch((const char *)value_r->mv_data + at);
    rc = record_decode(key, key_len, value_r->mv_data, value_r->mv_size, r, err);
    if (rc && err) {
        char name[NAME_KEY_LEN_MAX + 1];
        name_from_key(key, key_len, name);
        err_wrap(err, "mailbox \"%s\"", name);
    }
    return rc;
}

int store_mailbox_view(struct store_txn *txn, const struct record *r, struct store_mailbox *m, struct err *err)
{
    const struct store_active *active;
    m->id = r->id;
    m->store_id = r->store_id;
    m->generation = r->generation;
    m->state = r->state;
    m->moving_server = m->moving_partition = (struct store_str){NULL, 0};
    m->acl = r->field[RECORD_ACL];
    m->mbtype = r->field[RECORD_MBTYPE];
    m->uniqueid = r->field[RECORD_UNIQUEID];
    m->legacy_specialuse = r->field[RECORD_SPECIALUSE];
    m->jmapid = r->field[RECORD_JMAPID];
    m->name_history = r->field[RECORD_NAME_HISTORY];
    m->mtime = r->mtime;
    m->uidvalidity = r->uidvalidity;
    m->createdmodseq = r->createdmodseq;
    m->foldermodseq = r->foldermodseq;
    m->reserved_until_ms = r->reserved_until_ms;
    int rc;
    if (r->moving_store_id) {
        rc = store_place_active(txn, r->moving_store_id, &active, err);
        if (rc)
            return rc;
        m->moving_server = (struct store_str){active->server, active->server_len};
        m->moving_partition = (struct store_str){active->partition, active->partition_len};
    }
    rc = store_place_active(txn, r->store_id, &active, err);
    if (rc)
        return rc;
    m->store_epoch = active->epoch;
    m->server = (struct store_str){active->server, active->server_len};
    m->partition = (struct store_str){active->partition, active->partition_len};
    return 0;
}

int store_lookup(struct store_txn *txn, const char *name, size_t len, struct store_mailbox *m, struct err *err)
{
    uint8_t key[NAME_KEY_LEN_MAX];
    struct record r;
    MDB_val v;
    if (len == 0 || len > NAME_KEY_LEN_MAX)
        return err_set(err, RAFTDIR_ENOTFOUND, "no such mailbox");
    name_to_key(name, len, key);
    int rc = store_mailbox_get(txn, key, len, &r, &v, err);
    if (rc == RAFTDIR_ENOTFOUND) {
        int rc2 = store_absent_check(txn, key, len, err);
        if (rc2)
            return err ? err_wrap(err, "mailbox \"%.*s\"", (int)len, name) : rc2;
    }
    if (rc == 0 && r.state == STORE_RESERVED) {
        rc = store_state_get(txn, err);
        if (rc == 0 && store_mailbox_expired(&r, txn->state.meta.log_time_ms))
            rc = RAFTDIR_ENOTFOUND;
    }
    if (rc == RAFTDIR_ENOTFOUND)
        return err_set(err, rc, "no mailbox \"%.*s\"", (int)len, name);
    if (rc)
        return rc;
    memcpy(m->name, name, len);
    m->name[len] = '\0';
    m->name_len = len;
    return store_mailbox_view(txn, &r, m, err);
}

int store_lookup_uniqueid(struct store_txn *txn, const char *uniqueid, size_t len, struct store_mailbox *m, struct err *err)
{
    if (len == 0 || len > UNIQUEID_LEN_MAX)
        return err_set(err, RAFTDIR_ENOTFOUND, "no such uniqueid");
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(txn->mdb, txn->store->dbi[TABLE_UNIQUEID], &cursor);
    if (rc)
        return store_fail(err, rc, "open table uniqueid");
    /* The first active one in mailbox order; without any, the first reservation. */
    bool found = false;
    MDB_val k = {len, (void *)(uintptr_t)uniqueid}, v;
    for (rc = mdb_cursor_get(cursor, &k, &v, MDB_SET); rc == 0; rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT_DUP)) {
        char name[NAME_KEY_LEN_MAX + 1];
        struct store_mailbox one;
        if (v.mv_size == 0 || v.mv_size > NAME_KEY_LEN_MAX) {
            mdb_cursor_close(cursor);
            return err_set(err, RAFTDIR_ECORRUPT, "table uniqueid has a malformed row");
        }
        size_t name_len = name_from_key(v.mv_data, v.mv_size, name);
        int rc2 = store_lookup(txn, name, name_len, &one, err);
        if (rc2 == RAFTDIR_ENOTFOUND)
            continue;
        if (rc2) {
            mdb_cursor_close(cursor);
            return rc2;
        }
        if (!found || one.state == STORE_ACTIVE)
            *m = one;
        found = true;
        if (one.state == STORE_ACTIVE)
            break;
    }
    mdb_cursor_close(cursor);
    if (rc && rc != MDB_NOTFOUND)
        return store_fail(err, rc, "read table uniqueid");
    return found ? 0 : err_set(err, RAFTDIR_ENOTFOUND, "no mailbox has the uniqueid \"%.*s\"", (int)len, uniqueid);
}

/* A row of the tables `store` and `reserved`. */
static int change_number_row(struct store_txn *txn, enum store_table table, uint64_t old, uint64_t now, const uint8_t *key, size_t key_len,
                             struct err *err)
{
    if (old == now)
        return 0;
    uint8_t row[STORE_KEY_MAX];
    memcpy(row + 8, key, key_len);
    int rc = 0;
    if (old) {
        put_be64(row, old);
        rc = store_del(txn, table, row, 8 + key_len, err);
    }
    if (!rc && now) {
        put_be64(row, now);
        rc = store_put(txn, table, row, 8 + key_len, "", 0, 0, err);
    }
    return rc;
}

static int change_uniqueid(struct store_txn *txn, struct store_str old, struct store_str now, const uint8_t *key, size_t key_len, struct err *err)
{
    if (str_eq(old, now))
        return 0;
    MDB_val name = {key_len, (void *)(uintptr_t)key};
    if (old.len) {
        MDB_val k = {old.len, (void *)(uintptr_t)old.s};
        int rc = mdb_del(txn->mdb, txn->store->dbi[TABLE_UNIQUEID], &k, &name);
        if (rc)
            return store_fail(err, rc, "drop a row of table uniqueid");
    }
    return now.len ? store_put(txn, TABLE_UNIQUEID, now.s, now.len, key, key_len, 0, err) : 0;
}

static uint64_t reserved_until(const struct record *r)
{
    return r && r->state == STORE_RESERVED ? r->reserved_until_ms : 0;
}

int store_mailbox_change(struct store_txn *txn, const uint8_t *key, size_t key_len, const struct record *old, const void *old_data,
                         size_t old_len, const struct record *now, const void *data, size_t len, struct err *err)
{
    static const struct store_str none = {NULL, 0};
    assert(txn->write && key_len && key_len <= NAME_KEY_LEN_MAX && (old || now));
    struct store_str old_acl = old && old->state == STORE_ACTIVE ? old->field[RECORD_ACL] : none;
    struct store_str new_acl = now && now->state == STORE_ACTIVE ? now->field[RECORD_ACL] : none;
    /* For the record, and for each principal that the ACL may make: an entry is three bytes or more. */
    size_t principals = new_acl.len / 3 + 1;
    int rc = store_undo_room(txn, 1 + principals, key_len + (old ? old_len : 0) + new_acl.len + NAME_KEY_LEN_MAX + STORE_ANYONE_LEN, err);
    if (rc)
        return rc;
    if (!str_eq(old_acl, new_acl))
        rc = store_racl_change(txn, key, key_len, old_acl, new_acl, err);
    if (!rc)
        rc = now ? store_put(txn, TABLE_MAILBOX, key, key_len, data, len, 0, err) : store_del(txn, TABLE_MAILBOX, key, key_len, err);
    if (!rc)
        rc = change_number_row(txn, TABLE_STORE, old ? old->store_id : 0, now ? now->store_id : 0, key, key_len, err);
    if (!rc)
        rc = change_number_row(txn, TABLE_RESERVED, reserved_until(old), reserved_until(now), key, key_len, err);
    if (!rc)
        rc = change_uniqueid(txn, old ? old->field[RECORD_UNIQUEID] : none, now ? now->field[RECORD_UNIQUEID] : none, key, key_len, err);
    if (rc)
        return rc;
    if (old)
        record_digest_sub(&txn->state.digest, TABLE_MAILBOX, key, key_len, old_data, old_len);
    if (now)
        record_digest_add(&txn->state.digest, TABLE_MAILBOX, key, key_len, data, len);
    txn->state.meta.mailboxes -= old && old->state == STORE_ACTIVE;
    txn->state.meta.mailboxes += now && now->state == STORE_ACTIVE;
    store_undo_mailbox(txn, key, key_len, old ? old_data : NULL, old_len);
    return 0;
}
