/* store_space.c - where the map is, and how much of it the state takes. Pages that a deletion set free stay in the file, and are used again before it grows. */
#include <stdatomic.h>
#include <string.h>
#include "store_state.h"

#define FREE_DBI 0 /* LMDB's own: transaction id -> page numbers, the first word is how many */

uint64_t store_map_len(struct store *store)
{
    MDB_envinfo info;
    return mdb_env_info(store->env, &info) ? 0 : info.me_mapsize;
}

/* Pages that were set free by the transaction `from` or a later one. */
static int free_pages(struct store_txn *txn, size_t from, uint64_t *len_r, struct err *err)
{
    MDB_cursor *cursor;
    MDB_val k = {sizeof from, &from}, v;
    MDB_stat st;
    uint64_t pages = 0;
    int rc = mdb_env_stat(txn->store->env, &st);
    if (!rc)
        rc = mdb_cursor_open(txn->mdb, FREE_DBI, &cursor);
    if (rc)
        return store_fail(err, rc, "read the free pages");
    for (MDB_cursor_op op = MDB_SET_RANGE; (rc = mdb_cursor_get(cursor, &k, &v, op)) == 0; op = MDB_NEXT) {
        size_t n;
        if (v.mv_size < sizeof n)
            continue;
        memcpy(&n, v.mv_data, sizeof n);
        pages += n;
    }
    mdb_cursor_close(cursor);
    if (rc != MDB_NOTFOUND)
        return store_fail(err, rc, "read the free pages");
    *len_r = pages * st.ms_psize;
    return 0;
}

int store_free_len(struct store_txn *txn, uint64_t *len_r, struct err *err)
{
    return free_pages(txn, 0, len_r, err);
}

/* What a transaction sets free, it was the last to see: a reader of the one before it holds it back. LMDB itself is a little more careful. */
int store_held_len(struct store_txn *txn, uint64_t at, uint64_t *len_r, struct err *err)
{
    return free_pages(txn, (size_t)at + 1, len_r, err);
}

/* LMDB doesn't tell where its map is, but a page begins with its own number. */
static _Atomic uintptr_t watched;
static _Atomic uint64_t watched_len;

void store_map_watch(struct store *store)
{
    struct store_txn *txn;
    MDB_stat st;
    MDB_val v;
    atomic_store(&watched_len, 0);
    if (!store || store_read_begin(store, &txn, NULL) != 0)
        return;
    if (mdb_env_stat(store->env, &st) == 0 && store_get(txn, TABLE_META, STORE_VERSION_KEY, STORE_VERSION_KEY_LEN, &v, NULL) == 0) {
        uintptr_t page = (uintptr_t)v.mv_data & ~((uintptr_t)st.ms_psize - 1);
        size_t number;
        memcpy(&number, (const void *)page, sizeof number);
        if (number < store_used_len(store) / st.ms_psize) {
            atomic_store(&watched, page - number * st.ms_psize);
            atomic_store(&watched_len, store_map_len(store));
        }
    }
    store_read_end(&txn);
}

bool store_map_holds(const void *address)
{
    return (uintptr_t)address - atomic_load(&watched) < atomic_load(&watched_len);
}
