/* store_rows.c - reading a state as a sequence of rows: see store_rows.h. store_build.c is the other direction. */
#include "store_rows.h"
#include <stdlib.h>
#include "store_state.h"

struct store_rows {
    struct store_txn *txn;
    MDB_cursor *cursor; /* in `table`; NULL: that table hasn't been begun */
    unsigned table;     /* TABLES: the end */
    bool placed;        /* the cursor stands on a row that was given */
};

int store_rows_begin(struct store_txn *txn, struct store_rows **rows_r, struct err *err)
{
    struct store_rows *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(err, RAFTDIR_ENOMEM, "read the state's rows: out of memory");
    r->txn = txn;
    *rows_r = r;
    return 0;
}

/* Cursors of a read transaction are not closed with it. */
static void leave_table(struct store_rows *r)
{
    if (r->cursor)
        mdb_cursor_close(r->cursor);
    r->cursor = NULL;
    r->placed = false;
}

static int enter_table(struct store_rows *r, unsigned table, struct err *err)
{
    leave_table(r);
    r->table = table;
    int rc = mdb_cursor_open(r->txn->mdb, r->txn->store->dbi[table], &r->cursor);
    if (!rc)
        return 0;
    r->cursor = NULL;
    return err_set(err, err_from_lmdb(rc), "open table %s: %s", store_table_name(table), mdb_strerror(rc));
}

int store_rows_seek(struct store_rows *r, const struct store_row *after, struct err *err)
{
    if (after->table >= TABLES || after->key_len == 0 || after->key_len > STORE_KEY_MAX)
        return err_set(err, RAFTDIR_ENOTFOUND, "no such row");
    int rc = enter_table(r, after->table, err);
    if (rc)
        return rc;
    bool dups = store_table_has_dups(after->table);
    if (dups && (after->value_len == 0 || after->value_len > STORE_KEY_MAX))
        return err_set(err, RAFTDIR_ENOTFOUND, "no such row");
    MDB_val k = {after->key_len, (void *)(uintptr_t)after->key}, v = {after->value_len, (void *)(uintptr_t)after->value};
    rc = mdb_cursor_get(r->cursor, &k, &v, dups ? MDB_GET_BOTH : MDB_SET_KEY);
    r->placed = rc == 0;
    if (rc == MDB_NOTFOUND)
        return err_set(err, RAFTDIR_ENOTFOUND, "table %s has no such row", store_table_name(after->table));
    return rc ? err_set(err, err_from_lmdb(rc), "read table %s: %s", store_table_name(after->table), mdb_strerror(rc)) : 0;
}

int store_rows_next(struct store_rows *r, struct store_row *row_r, struct err *err)
{
    while (r->table < TABLES) {
        int rc = r->cursor ? 0 : enter_table(r, r->table, err);
        if (rc)
            return rc;
        MDB_val k, v;
        rc = mdb_cursor_get(r->cursor, &k, &v, r->placed ? MDB_NEXT : MDB_FIRST);
        if (rc == 0) {
            r->placed = true;
            *row_r = (struct store_row){.table = r->table, .key = k.mv_data, .key_len = k.mv_size, .value = v.mv_data, .value_len = v.mv_size};
            return 0;
        }
        if (rc != MDB_NOTFOUND)
            return err_set(err, err_from_lmdb(rc), "read table %s: %s", store_table_name(r->table), mdb_strerror(rc));
        leave_table(r);
        r->table++;
    }
    return RAFTDIR_ENOTFOUND;
}

void store_rows_end(struct store_rows **rows)
{
    if (!*rows)
        return;
    leave_table(*rows);
    free(*rows);
    *rows = NULL;
}

int store_rows_count(struct store_txn *txn, uint64_t *n_r, struct err *err)
{
    *n_r = 0;
    for (int t = 0; t < TABLES; t++) {
        MDB_stat st;
        int rc = mdb_stat(txn->mdb, txn->store->dbi[t], &st);
        if (rc)
            return store_fail(err, rc, "count the state's rows");
        *n_r += st.ms_entries; /* of a table with several rows a key: its rows */
    }
    return 0;
}
