/* store_absent.c - is what isn't found really not there? A wrong "no such mailbox" bounces mail, a list that lacks some makes clients delete them, and records'
 * checksums say nothing about a key that flipped into another, or about the page that should have led to it (DESIGN D3).
 *
 * Leaves: the head of a page and its row pointers must account for each of its bytes, else rows could be hidden. Lookups that find nothing, and every page of
 * a list, are checked for it.
 * Lookups: the two rows before the place where the name would be and the two after are read, and verified: by checksums, which cover the keys, and by their order. A binary
 * search that misses an existing name because of one wrong key or row pointer in its page always ends beside that row: the damaged row is a neighbour that doesn't
 * verify, or a valid one out of order. A wrong separator in a branch page leads to neighbours that the name isn't between.
 * Not seen here, but by the scrub: a branch page that lost its last children, and a well-formed old leaf in the place of the current one.
 * Only for readers: in a write transaction, pages that it has changed lie elsewhere, and apply's answers are compared by their digest.
 *
 * The layout of a page is LMDB 0.9's, and the same on disk since 2011: u64 page number, u16, u16 flags, u16 lower, u16 upper, then u16 offsets of nodes; a
 * node is u16 and u16 the value's length, u16 flags, u16 key length, key, value (8 bytes when it is on pages of its own), padded to even. */
#include <string.h>
#include "name.h"
#include "store_state.h"

#define PAGE_HEAD_LEN 16
#define PAGE_LEAF 0x02
#define NODE_HEAD_LEN 8
#define NODE_BIG 0x01
#define NEIGHBOURS 2
#define PAGE_LEN_MIN 4096

static uint16_t u16_at(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v); /* the host's order, as LMDB writes it */
    return v;
}

/* Do its nodes fill it exactly, from the end to `upper`? */
static bool leaf_whole(const uint8_t *page, size_t psize)
{
    unsigned flags = u16_at(page + 10), lower = u16_at(page + 12), upper = u16_at(page + 14);
    if (flags != PAGE_LEAF || lower < PAGE_HEAD_LEN + 2 || lower > upper || upper > psize || lower % 2)
        return false;
    size_t used = 0;
    for (unsigned at = PAGE_HEAD_LEN; at < lower; at += 2) {
        size_t node = u16_at(page + at);
        if (node < upper || node + NODE_HEAD_LEN > psize)
            return false;
        const uint8_t *n = page + node;
        size_t value = u16_at(n) | (size_t)u16_at(n + 2) << 16;
        size_t len = NODE_HEAD_LEN + u16_at(n + 6) + (u16_at(n + 4) & NODE_BIG ? 8 : value);
        len += len & 1;
        if (len > psize - node)
            return false;
        used += len;
    }
    return used == psize - upper;
}

int store_leaf_check(struct store_txn *txn, enum store_table table, const MDB_val *key, uintptr_t *page_inout, struct err *err)
{
    MDB_stat st;
    uintptr_t block = (uintptr_t)key->mv_data / PAGE_LEN_MIN;
    if (txn->write || block == *page_inout)
        return 0;
    int rc = mdb_stat(txn->mdb, txn->store->dbi[table], &st);
    if (rc)
        return store_fail(err, rc, store_table_name(table));
    if (!leaf_whole((const uint8_t *)((uintptr_t)key->mv_data & ~((uintptr_t)st.ms_psize - 1)), st.ms_psize))
        return err_set(err, RAFTDIR_ECORRUPT, "table %s has a damaged page", store_table_name(table));
    *page_inout = block;
    return 0;
}

static int compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

/* Up to NEIGHBOURS rows from where the cursor is, each further away from `key`: are they what they say? */
static int neighbours_check(struct store_txn *txn, MDB_cursor *cursor, int rc, MDB_val k, MDB_val v, MDB_cursor_op onward, const uint8_t *key, size_t len, struct err *err)
{
    MDB_val nearer = {len, (void *)(uintptr_t)key};
    uintptr_t page = 0;
    struct record r;
    for (int i = 0; i < NEIGHBOURS && rc == 0; i++) {
        int order = compare(k.mv_data, k.mv_size, nearer.mv_data, nearer.mv_size);
        int rc2 = store_leaf_check(txn, TABLE_MAILBOX, &k, &page, err);
        if (rc2)
            return rc2;
        if (onward == MDB_NEXT ? order <= 0 : order >= 0)
            return err_set(err, RAFTDIR_ECORRUPT, "records beside its place are out of order");
        if (k.mv_size == 0 || k.mv_size > NAME_KEY_LEN_MAX || record_decode(k.mv_data, k.mv_size, v.mv_data, v.mv_size, &r, NULL) != 0)
            return err_set(err, RAFTDIR_ECORRUPT, "a record beside its place is damaged");
        nearer = k;
        rc = mdb_cursor_get(cursor, &k, &v, onward);
    }
    return rc == 0 || rc == MDB_NOTFOUND ? 0 : store_fail(err, rc, "read table mailbox");
}

/* One side, by a search of its own: a cursor that has a place already takes a short cut from there, and wouldn't go the way that the lookup went. */
static int one_side(struct store_txn *txn, MDB_cursor_op onward, const uint8_t *key, size_t len, struct err *err)
{
    MDB_cursor *cursor;
    MDB_val k = {len, (void *)(uintptr_t)key}, v;
    int rc = mdb_cursor_open(txn->mdb, txn->store->dbi[TABLE_MAILBOX], &cursor);
    if (rc)
        return store_fail(err, rc, "read table mailbox");
    rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    if (onward == MDB_PREV)
        rc = mdb_cursor_get(cursor, &k, &v, rc == 0 ? MDB_PREV : MDB_LAST);
    rc = neighbours_check(txn, cursor, rc, k, v, onward, key, len, err);
    mdb_cursor_close(cursor);
    return rc;
}

int store_absent_check(struct store_txn *txn, const uint8_t *key, size_t len, struct err *err)
{
    if (txn->write)
        return 0;
    int rc = one_side(txn, MDB_NEXT, key, len, err);
    return rc ? rc : one_side(txn, MDB_PREV, key, len, err);
}
