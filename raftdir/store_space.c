/* store_space.c - how much of the map the state takes. Pages that a deletion set free stay in the file, and are used again before it grows. */
#include <string.h>
#include "store_state.h"

#define FREE_DBI 0 /* LMDB's own: transaction id -> page numbers, the first word is how many */

uint64_t store_map_len(struct store *store)
{
    MDB_envinfo info;
    return mdb_env_info(store->env, &info) ? 0 : info.me_mapsize;
}

int store_free_len(struct store_txn *txn, uint64_t *len_r, struct err *err)
{
    MDB_cursor *cursor;
    MDB_val k, v;
    MDB_stat st;
    uint64_t pages = 0;
    int rc = mdb_env_stat(txn->store->env, &st);
    if (!rc)
        rc = mdb_cursor_open(txn->mdb, FREE_DBI, &cursor);
    if (rc)
        return store_fail(err, rc, "read the free pages");
    while ((rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) == 0) {
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
