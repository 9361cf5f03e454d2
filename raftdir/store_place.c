/* store_place.c - where mailboxes are: servers, slots (server, partition) and stores (DESIGN D5).
 *
 * mailbox -> store -> active slot -> server is the one path by which a location is found. A plain server!partition that belongs to no
 * store gets an implicit one of a single slot, epoch 1. Ids are given in the order of the log, so they are equal on all replicas.
 * Stores and servers stay when their last mailbox goes: they are few. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "store_state.h"

size_t store_server_key(struct store_str server, uint8_t key[STORE_KEY_MAX], int *rc_r, struct err *err)
{
    *rc_r = 0;
    if (server.len <= STORE_SERVER_KEY_MAX) {
        key[0] = 'n';
        memcpy(key + 1, server.s, server.len);
        return 1 + server.len;
    }
    key[0] = 'h';
    *rc_r = record_sha256(server.s, server.len, key + 1, err);
    return 1 + 32;
}

int store_server_find(struct store_txn *txn, struct store_str server, uint64_t *id_r, struct err *err)
{
    uint8_t key[STORE_KEY_MAX];
    int rc;
    if (server.len == 0 || server.len > SERVER_LEN_MAX)
        return RAFTDIR_ENOTFOUND;
    size_t key_len = store_server_key(server, key, &rc, err);
    if (rc)
        return rc;
    MDB_val v;
    rc = store_get(txn, TABLE_SERVERS, key, key_len, &v, err);
    if (rc)
        return rc;
    if (v.mv_size != 8)
        return err_set(err, RAFTDIR_ECORRUPT, "server \"%.*s\" has a malformed row", (int)server.len, server.s);
    *id_r = get_be64(v.mv_data);
    return 0;
}

static int server_make(struct store_txn *txn, struct store_str server, uint64_t *id_r, struct err *err)
{
    int rc = store_server_find(txn, server, id_r, err);
    if (rc != RAFTDIR_ENOTFOUND)
        return rc;
    assert(server.len && server.len <= SERVER_LEN_MAX);
    uint8_t key[STORE_KEY_MAX], id_key[9], id[8], buf[RECORD_SERVER_LEN_MAX];
    size_t key_len = store_server_key(server, key, &rc, err);
    if (!rc)
        rc = store_undo_room(txn, 2, 2 * STORE_KEY_MAX, err);
    if (rc)
        return rc;
    *id_r = txn->state.server_id_max + 1;
    put_be64(id, *id_r);
    id_key[0] = 'i';
    memcpy(id_key + 1, id, 8);
    memcpy(buf + RECORD_COMMON_LEN, server.s, server.len);
    record_seal(id_key, sizeof id_key, 0, 0, buf, RECORD_COMMON_LEN + server.len);
    rc = store_put(txn, TABLE_SERVERS, key, key_len, id, sizeof id, MDB_NOOVERWRITE, err);
    if (!rc)
        rc = store_put(txn, TABLE_SERVERS, id_key, sizeof id_key, buf, RECORD_COMMON_LEN + server.len, MDB_NOOVERWRITE, err);
    if (rc)
        return rc;
    record_digest_add(&txn->state.digest, TABLE_SERVERS, id_key, sizeof id_key, buf, RECORD_COMMON_LEN + server.len);
    txn->state.server_id_max++;
    store_undo_row(txn, TABLE_SERVERS, key, key_len);
    store_undo_row(txn, TABLE_SERVERS, id_key, sizeof id_key);
    return 0;
}

int store_place_get(struct store_txn *txn, uint64_t store_id, const struct record_store **place_r, struct err *err)
{
    *place_r = &txn->place;
    /* In a write transaction any write may have moved what the views point to. */
    if (txn->place_id == store_id && store_id && !txn->write)
        return 0;
    uint8_t key[8];
    put_be64(key, store_id);
    MDB_val v;
    txn->place_id = 0;
    txn->places_read++;
    int rc = store_get(txn, TABLE_STORES, key, sizeof key, &v, err);
    if (rc == RAFTDIR_ENOTFOUND)
        return err_set(err, RAFTDIR_ECORRUPT, "store %llu is missing", (unsigned long long)store_id);
    if (!rc)
        rc = record_decode_store(key, sizeof key, v.mv_data, v.mv_size, &txn->place, err);
    if (rc)
        return err ? err_wrap(err, "read store %llu", (unsigned long long)store_id) : rc;
    txn->place_id = store_id;
    return 0;
}

/* What a reader found is good as long as LMDB's transaction id stays: a commit, of whatever, gives another, and another generation is another environment. The texts it points to
 * are in pages of that snapshot, which nobody reuses while it is the newest, nor while this transaction reads it. (A power cut can bring the ids of lost commits back, but no reader
 * lives through it; after a crash of the writer alone no commit is lost that anybody has seen.) The page number of the table's root wouldn't do: pages are used again. */
int store_place_active(struct store_txn *txn, uint64_t store_id, const struct store_active **active_r, struct err *err)
{
    struct store_active *a = &txn->active_one;
    if (!txn->write) {
        if (!txn->active)
            txn->active = calloc(STORE_ACTIVES, sizeof *txn->active); /* without memory it goes without */
        if (txn->active)
            a = &txn->active[store_id % STORE_ACTIVES];
        if (a->id == store_id && a->txn_id == txn->txn_id && store_id) {
            *active_r = a;
            return 0;
        }
    }
    const struct record_store *place;
    a->id = 0;
    int rc = store_place_get(txn, store_id, &place, err);
    if (rc)
        return rc;
    const struct record_slot *slot = &place->slot[place->active];
    *a = (struct store_active){.id = store_id, .txn_id = txn->txn_id, .epoch = place->epoch, .server = slot->server.s, .partition = slot->partition.s,
                               .server_len = (uint16_t)slot->server.len, .partition_len = (uint16_t)slot->partition.len};
    *active_r = a;
    return 0;
}

int store_place(struct store_txn *txn, uint64_t store_id, struct store_str *server_r, struct store_str *partition_r, struct err *err)
{
    const struct store_active *active;
    int rc = store_place_active(txn, store_id, &active, err);
    if (rc)
        return rc;
    *server_r = (struct store_str){active->server, active->server_len};
    *partition_r = (struct store_str){active->partition, active->partition_len};
    return 0;
}

static size_t slot_key(uint64_t server_id, struct store_str partition, uint8_t key[8 + PARTITION_LEN_MAX])
{
    put_be64(key, server_id);
    if (partition.len)
        memcpy(key + 8, partition.s, partition.len);
    return 8 + partition.len;
}

int store_place_find(struct store_txn *txn, struct store_str server, struct store_str partition, uint64_t *store_id_r, bool *active_r,
                     struct err *err)
{
    if (partition.len > PARTITION_LEN_MAX)
        return RAFTDIR_ENOTFOUND;
    /* The text of the cache: server NUL partition. */
    char text[SERVER_LEN_MAX + 1 + PARTITION_LEN_MAX];
    size_t text_len = 0;
    bool cached = false;
    uint64_t id = 0;
    if (txn->write && server.len <= SERVER_LEN_MAX) {
        memcpy(text, server.s, server.len);
        text[server.len] = '\0';
        if (partition.len)
            memcpy(text + server.len + 1, partition.s, partition.len);
        text_len = server.len + 1 + partition.len;
        cached = store_cache_get(&txn->store->writer->places, text, text_len, &id);
    }
    if (!cached) {
        uint64_t server_id;
        int rc = store_server_find(txn, server, &server_id, err);
        if (rc)
            return rc;
        uint8_t key[8 + PARTITION_LEN_MAX];
        MDB_val v;
        rc = store_get(txn, TABLE_SLOT, key, slot_key(server_id, partition, key), &v, err);
        if (rc)
            return rc;
        if (v.mv_size != 8)
            return err_set(err, RAFTDIR_ECORRUPT, "a slot of server \"%.*s\" has a malformed row", (int)server.len, server.s);
        id = get_be64(v.mv_data);
        if (txn->write)
            store_cache_put(&txn->store->writer->places, text, text_len, id);
    }
    *store_id_r = id;
    if (!active_r)
        return 0;
    const struct record_store *place;
    int rc = store_place_get(txn, id, &place, err);
    if (rc)
        return rc;
    const struct record_slot *slot = &place->slot[place->active];
    *active_r = str_eq(slot->server, server) && str_eq(slot->partition, partition);
    return 0;
}

int store_place_make(struct store_txn *txn, struct store_str server, struct store_str partition, uint64_t *store_id_r, bool *active_r,
                     struct err *err)
{
    int rc = store_place_find(txn, server, partition, store_id_r, active_r, err);
    if (rc != RAFTDIR_ENOTFOUND)
        return rc;
    struct record_store s = {.implicit = true, .epoch = 1, .slots_n = 1, .active = 0};
    s.slot[0].server = server;
    s.slot[0].partition = partition;
    rc = server_make(txn, server, &s.slot[0].server_id, err);
    if (!rc)
        rc = store_undo_room(txn, 2, 2 * STORE_KEY_MAX, err);
    if (rc)
        return rc;
    uint8_t key[8], slot[8 + PARTITION_LEN_MAX], buf[RECORD_STORE_LEN_MAX];
    uint64_t id = txn->state.store_id_max + 1;
    put_be64(key, id);
    size_t len = record_encode_store(key, sizeof key, &s, buf);
    size_t slot_len = slot_key(s.slot[0].server_id, partition, slot);
    rc = store_put(txn, TABLE_STORES, key, sizeof key, buf, len, MDB_NOOVERWRITE, err);
    if (!rc)
        rc = store_put(txn, TABLE_SLOT, slot, slot_len, key, sizeof key, MDB_NOOVERWRITE, err);
    if (rc)
        return rc;
    record_digest_add(&txn->state.digest, TABLE_STORES, key, sizeof key, buf, len);
    txn->state.store_id_max = id;
    store_undo_row(txn, TABLE_STORES, key, sizeof key);
    store_undo_row(txn, TABLE_SLOT, slot, slot_len);
    *store_id_r = id;
    if (active_r)
        *active_r = true;
    return 0;
}
