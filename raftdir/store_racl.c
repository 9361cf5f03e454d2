/* store_racl.c - the reverse ACL index: from an ACL to rows, and changing them.
 *
 * A row stands for all of a principal's entries in one mailbox: positive and negative rights ORed each. A principal without any right in
 * either has no row. Group ids and users are principals as acl_principal() writes them, `anyone` as store_state.h says. */
#include <stdlib.h>
#include <string.h>
#include "store_state.h"

int store_racl_principal(struct store_txn *txn, const char *text, size_t len, uint64_t *id_r, struct err *err)
{
    MDB_val v;
    if (len == 0 || len > STORE_KEY_MAX)
        return RAFTDIR_ENOTFOUND;
    int rc = store_get(txn, TABLE_PRINCIPAL, text, len, &v, err);
    if (rc)
        return rc;
    if (v.mv_size != 8)
        return err_set(err, RAFTDIR_ECORRUPT, "principal \"%.*s\" has a malformed row", (int)len, text);
    *id_r = get_be64(v.mv_data);
    return 0;
}

/* The writer's way: cached. */
static int principal_id(struct store_txn *txn, const char *text, size_t len, bool make, uint64_t *id_r, struct err *err)
{
    struct store_cache *cache = txn->write ? &txn->store->writer->principals : NULL;
    if (cache && store_cache_get(cache, text, len, id_r))
        return 0;
    int rc = store_racl_principal(txn, text, len, id_r, err);
    if (rc == RAFTDIR_ENOTFOUND && !make)
        return err_set(err, RAFTDIR_ECORRUPT, "principal \"%.*s\" has no id", (int)len, text);
    if (rc == RAFTDIR_ENOTFOUND) {
        uint8_t id[8];
        put_be64(id, txn->state.principal_id_max + 1);
        rc = store_put(txn, TABLE_PRINCIPAL, text, len, id, sizeof id, MDB_NOOVERWRITE, err);
        if (rc)
            return rc;
        *id_r = ++txn->state.principal_id_max;
        store_undo_row(txn, TABLE_PRINCIPAL, text, len);
    }
    if (!rc && cache)
        store_cache_put(cache, text, len, *id_r);
    return rc;
}

static int cmp_rows(const void *a, const void *b)
{
    const struct store_racl_row *x = a, *y = b;
    return (x->principal > y->principal) - (x->principal < y->principal);
}

int store_racl_rows(struct store_txn *txn, const uint8_t *key, size_t key_len, struct store_str acl, bool make, struct store_racl_row *rows,
                    size_t *n_r, struct err *err)
{
    size_t n = 0, pos = 0;
    struct acl_entry e;
    int rc;
    *n_r = 0;
    while ((rc = acl_next(acl.s, acl.len, &pos, &e, NULL)) == 1) {
        if (e.rights == 0)
            continue;
        if (n == ACL_ENTRIES_MAX)
            return err_set(err, RAFTDIR_ECORRUPT, "a stored ACL has more than %d entries", ACL_ENTRIES_MAX);
        char text[STORE_ANYONE_LEN + NAME_KEY_LEN_MAX + IDENTIFIER_LEN_MAX];
        size_t len;
        if (e.id_len == 6 && memcmp(e.id, "anyone", 6) == 0) {
            const uint8_t *sep = memchr(key, 0x1D, key_len);
            len = sep ? (size_t)(sep - key) : 0;
            memcpy(text, STORE_ANYONE, STORE_ANYONE_LEN);
            memcpy(text + STORE_ANYONE_LEN, key, len);
            len += STORE_ANYONE_LEN;
        } else {
            len = acl_principal(e.id, e.id_len, text);
        }
        int rc2 = principal_id(txn, text, len, make, &rows[n].principal, err);
        if (rc2)
            return rc2;
        rows[n].positive = e.negative ? 0 : e.rights;
        rows[n].negative = e.negative ? e.rights : 0;
        n++;
    }
    if (rc < 0)
        return 0; /* acl_eval grants nothing by a malformed ACL either */
    if (n > 1)
        qsort(rows, n, sizeof *rows, cmp_rows);
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        if (out && rows[out - 1].principal == rows[i].principal) {
            rows[out - 1].positive |= rows[i].positive;
            rows[out - 1].negative |= rows[i].negative;
        } else {
            rows[out++] = rows[i];
        }
    }
    *n_r = out;
    return 0;
}

int store_racl_change(struct store_txn *txn, const uint8_t *key, size_t key_len, struct store_str old_acl, struct store_str new_acl,
                      struct err *err)
{
    struct store_writer *w = txn->store->writer;
    struct store_racl_row *old = w->rows_old, *now = w->rows_new;
    size_t old_n, now_n, i = 0, j = 0;
    int rc = store_racl_rows(txn, key, key_len, old_acl, false, old, &old_n, err);
    if (!rc)
        rc = store_racl_rows(txn, key, key_len, new_acl, true, now, &now_n, err);
    if (rc)
        return rc;
    uint8_t row[STORE_KEY_MAX], masks[8];
    memcpy(row + 8, key, key_len);
    while (i < old_n || j < now_n) {
        if (j == now_n || (i < old_n && old[i].principal < now[j].principal)) {
            put_be64(row, old[i++].principal);
            rc = store_del(txn, TABLE_RACL, row, 8 + key_len, err);
        } else {
            bool there = i < old_n && old[i].principal == now[j].principal;
            bool same = there && old[i].positive == now[j].positive && old[i].negative == now[j].negative;
            if (!same) {
                put_be64(row, now[j].principal);
                put_le32(masks, now[j].positive);
                put_le32(masks + 4, now[j].negative);
                rc = store_put(txn, TABLE_RACL, row, 8 + key_len, masks, sizeof masks, 0, err);
            }
            i += there;
            j++;
        }
        if (rc)
            return rc;
    }
    return 0;
}
