/* store_rows.h - the whole state as a sequence of rows, and a state made of such a sequence: what images are made of. Pure but for LMDB.
 *
 * Order: table by table in the order of enum store_table, within a table as LMDB sorts. A row's place in the order is the row itself, so that reading can go
 * on after any row of the same snapshot. All tables, so a state that was built answers every question as the one that was read, with the same applied index. */
#ifndef RAFTDIR_STORE_ROWS_H
#define RAFTDIR_STORE_ROWS_H
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "store.h"

struct store_row {
    uint32_t table; /* enum store_table */
    const void *key, *value;
    size_t key_len, value_len;
};

/* Reading. One thread; the transaction is a read transaction that lives as long as this. */
struct store_rows;
int store_rows_begin(struct store_txn *txn, struct store_rows **rows_r, struct err *err);
/* Go on strictly after this row. RAFTDIR_ENOTFOUND: the snapshot has no such row. */
int store_rows_seek(struct store_rows *rows, const struct store_row *after, struct err *err); /* the value counts only where one key has several rows */
/* RAFTDIR_ENOTFOUND: the end. The row's pointers live until the transaction ends. */
int store_rows_next(struct store_rows *rows, struct store_row *row_r, struct err *err);
void store_rows_end(struct store_rows **rows);
int store_rows_count(struct store_txn *txn, uint64_t *n_r, struct err *err); /* rows of all tables */

/* Building. Rows in order, into a directory without a state; nothing but the builder may open it before store_build_finish. Constant memory, as long as the
 * caller commits now and then (IMAGE_COMMIT_LEN).
 * RAFTDIR_ENOSPC: the rows since the last commit are gone; when there is room, it goes on with the row after that commit.
 * Any other error: only store_build_end is left. add: RAFTDIR_EINVAL: an unknown table, a row that no table can hold, or out of order.
 * finish: commits; everything is durable, and a store_open() gives the state. What it checks of the rows' content is that they are rows: the rest is
 * store_verify's. */
struct store_build;
int store_build_begin(const char *dir, const struct store_options *options, struct store_build **build_r, struct err *err);
int store_build_add(struct store_build *build, const struct store_row *row, struct err *err);
int store_build_commit(struct store_build *build, struct err *err);
int store_build_finish(struct store_build *build, struct err *err);
void store_build_end(struct store_build **build); /* without finish: what is in the directory is rubbish */

#endif
