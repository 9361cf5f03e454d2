/* store_build.c - a state made of rows in their order: see store_rows.h. store_rows.c is the other direction.
 *
 * Rows are appended (MDB_APPEND), so pages are written once and full, and nothing is searched. The order is checked here, before LMDB would: a row that
 * doesn't sort behind the one before would otherwise make a tree in which it isn't found.
 *
 * A crash: until store_build_finish has returned, whoever staged this doesn't use it, so nothing has to hold before that; hence MDB_NOSYNC, and a flush after each
 * commit only so that the kernel doesn't gather gigabytes to be written at once, which would hold up the flushes of the log on the same disk.
 * finish flushes the file, then the directory with its name.
 *
 * A full disk: a failed commit leaves the tree of the commit before, the rows since then are lost, and building goes on behind the last row committed.
 * A failed flush is final: the page cache may have dropped what it couldn't write. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "store_rows.h"
#include "store_state.h"

/* A row's place in the order. Values belong to it only where one key has several rows. */
struct place {
    bool any;
    uint32_t table;
    size_t key_len, value_len;
    uint8_t key[STORE_KEY_MAX], value[STORE_KEY_MAX];
};

struct store_build {
    char *dir;
    MDB_env *env;
    bool no_sync, failed;
    MDB_dbi dbi[TABLES];
    MDB_txn *txn;       /* NULL: none begun since the last commit */
    MDB_cursor *cursor; /* of `txn`, in last.table */
    struct place last, committed;
};

static void drop_txn(struct store_build *b)
{
    if (b->txn)
        mdb_txn_abort(b->txn); /* and its cursor */
    b->txn = NULL;
    b->cursor = NULL;
    b->last = b->committed;
}

/* The transaction is gone, whatever it was. Only a lack of space leaves a build that can go on. */
static int fail(struct store_build *b, int mdb_rc, const char *what, struct err *err)
{
    drop_txn(b);
    if (mdb_rc == EIO && store_space_is_short(b->env))
        mdb_rc = ENOSPC;
    int rc = store_fail(err, mdb_rc, what);
    b->failed |= rc != RAFTDIR_ENOSPC;
    return rc;
}

int store_build_begin(const char *dir, const struct store_options *options, struct store_build **build_r, struct err *err)
{
    struct store_build *b = calloc(1, sizeof *b);
    struct store_options o = options ? *options : (struct store_options){0};
    assert(!o.read_only);
    if (!b || !(b->dir = strdup(dir))) {
        free(b);
        return err_set(err, RAFTDIR_ENOMEM, "build a state: out of memory");
    }
    b->no_sync = o.no_sync;
    MDB_stat st;
    bool small;
    int rc = store_env_open(dir, &o, MDB_NOSYNC, &b->env, &small, err);
    if (rc) {
        if (err)
            err_wrap(err, "build a state");
        goto free_build;
    }
    rc = mdb_env_stat(b->env, &st);
    if (!rc && st.ms_entries) {
        rc = err_set(err, RAFTDIR_EEXIST, "build a state in %s: there is one already", dir);
        goto close_env;
    }
    if (!rc)
        rc = mdb_txn_begin(b->env, NULL, 0, &b->txn);
    for (int t = 0; t < TABLES && !rc; t++)
        rc = store_table_create(b->txn, t, &b->dbi[t]);
    if (!rc) {
        rc = mdb_txn_commit(b->txn);
        b->txn = NULL;
    }
    if (rc) {
        rc = fail(b, rc, "build a state", err);
        goto close_env;
    }
    *build_r = b;
    return 0;
close_env:
    mdb_env_close(b->env);
free_build:
    free(b->dir);
    free(b);
    return rc;
}

/* memcmp, then length: how LMDB compares. */
static int compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

static int check(const struct store_build *b, const struct store_row *row, bool *same_key_r, struct err *err)
{
    const struct place *last = &b->last;
    *same_key_r = false;
    if (row->table >= TABLES)
        return err_set(err, RAFTDIR_EINVAL, "a row of an unknown table %u", row->table);
    const char *table = store_table_name(row->table);
    bool dups = store_table_has_dups(row->table);
    if (row->key_len == 0 || row->key_len > STORE_KEY_MAX || row->value_len > UINT32_MAX)
        return err_set(err, RAFTDIR_EINVAL, "a row of table %s with a key of %zu bytes", table, row->key_len);
    if (dups && (row->value_len == 0 || row->value_len > STORE_KEY_MAX))
        return err_set(err, RAFTDIR_EINVAL, "a row of table %s with a value of %zu bytes", table, row->value_len);
    if (!last->any || row->table > last->table)
        return 0;
    int c = row->table < last->table ? -1 : compare(row->key, row->key_len, last->key, last->key_len);
    if (c == 0 && dups) {
        *same_key_r = true;
        c = compare(row->value, row->value_len, last->value, last->value_len);
    }
    return c > 0 ? 0 : err_set(err, RAFTDIR_EINVAL, "a row of table %s out of order", table);
}

int store_build_add(struct store_build *b, const struct store_row *row, struct err *err)
{
    bool same_key;
    if (b->failed)
        return err_set(err, RAFTDIR_EFAILED, "the build has failed before");
    int rc = check(b, row, &same_key, err);
    if (rc) {
        b->failed = true;
        return rc;
    }
    if (!b->txn && (rc = mdb_txn_begin(b->env, NULL, 0, &b->txn))) {
        b->txn = NULL;
        return fail(b, rc, "begin transaction", err);
    }
    if (b->cursor && b->last.table != row->table) {
        mdb_cursor_close(b->cursor);
        b->cursor = NULL;
    }
    if (!b->cursor && (rc = mdb_cursor_open(b->txn, b->dbi[row->table], &b->cursor))) {
        b->cursor = NULL;
        return fail(b, rc, "open a table", err);
    }
    MDB_val k = {row->key_len, (void *)(uintptr_t)row->key}, v = {row->value_len, (void *)(uintptr_t)row->value};
    rc = mdb_cursor_put(b->cursor, &k, &v, same_key ? MDB_APPENDDUP : MDB_APPEND);
    if (rc)
        return fail(b, rc, "add a row", err);
    b->last.any = true;
    b->last.table = row->table;
    b->last.key_len = row->key_len;
    memcpy(b->last.key, row->key, row->key_len);
    b->last.value_len = 0;
    if (store_table_has_dups(row->table)) {
        b->last.value_len = row->value_len;
        memcpy(b->last.value, row->value, row->value_len);
    }
    return 0;
}

int store_build_commit(struct store_build *b, struct err *err)
{
    if (b->failed)
        return err_set(err, RAFTDIR_EFAILED, "the build has failed before");
    if (!b->txn)
        return 0;
    int rc = mdb_txn_commit(b->txn); /* frees it and its cursor, whatever happens */
    b->txn = NULL;
    b->cursor = NULL;
    if (rc)
        return fail(b, rc, "commit", err);
    b->committed = b->last;
    if (!b->no_sync && (rc = mdb_env_sync(b->env, 1))) {
        b->failed = true;
        return err_set(err, RAFTDIR_EIO, "flush the state: %s", mdb_strerror(rc));
    }
    return 0;
}

static int sync_dir(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "open %s: %s", dir, strerror(errno));
    if (fsync(fd))
        rc = err_set(err, RAFTDIR_EIO, "flush %s: %s", dir, strerror(errno));
    close(fd);
    return rc;
}

int store_build_finish(struct store_build *b, struct err *err)
{
    int rc = store_build_commit(b, err);
    if (rc)
        return rc;
    int mdb_rc = b->no_sync ? 0 : mdb_env_sync(b->env, 1);
    mdb_env_close(b->env);
    b->env = NULL;
    b->failed = true; /* no more rows */
    if (mdb_rc)
        return err_set(err, RAFTDIR_EIO, "flush the state: %s", mdb_strerror(mdb_rc));
    return b->no_sync ? 0 : sync_dir(b->dir, err);
}

void store_build_end(struct store_build **build)
{
    struct store_build *b = *build;
    if (!b)
        return;
    *build = NULL;
    drop_txn(b);
    if (b->env)
        mdb_env_close(b->env);
    free(b->dir);
    free(b);
}
