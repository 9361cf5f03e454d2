/* store_readers.c - who reads the state, in all processes: the slots of the lock file (DESIGN D8). See store.h.
 *
 * A reader's snapshot pins the pages that were replaced since. Slots of processes that are gone are found by LMDB, through the lock that each process holds on a byte
 * of the file as long as it lives, and freed. A process that lives, but was stopped within a transaction, keeps its slot: nothing here can free it, and nothing may, since it will
 * go on reading. What to do about it is the caller's to decide; the writer never waits for a reader.
 *
 * LMDB tells its table as text: a head, then lines of "pid thread transaction", decimal, hexadecimal and decimal, "-" for a reader that keeps its slot and reads nothing; or
 * one line in parentheses when there is none. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "store_state.h"

#define MAIN_DBI 1 /* LMDB's own: the tables' names and roots */
#define META_PAGES 2

struct walk {
    struct store_readers *r;
    long own_pid;
    uint64_t oldest; /* UINT64_MAX: nobody reads */
};

static int take_line(const char *line, void *data)
{
    struct walk *w = data;
    char *end;
    long pid = strtol(line, &end, 10);
    if (end == line || pid <= 0)
        return 0; /* the head, or that there are none */
    w->r->slots++;
    w->r->others += pid != w->own_pid;
    strtoull(end, &end, 16);
    while (*end == ' ')
        end++;
    if (*end < '0' || *end > '9')
        return 0;
    uint64_t at = strtoull(end, NULL, 10);
    if (at < w->oldest) {
        w->oldest = at;
        w->r->oldest_pid = (int)pid;
    }
    return 0;
}

int store_readers_check(struct store *store, struct store_readers *r, struct err *err)
{
    struct walk w = {.r = r, .own_pid = getpid(), .oldest = UINT64_MAX};
    MDB_envinfo info;
    int dead;
    memset(r, 0, sizeof *r);
    int rc = mdb_reader_check(store->env, &dead);
    if (!rc)
        rc = mdb_reader_list(store->env, take_line, &w) < 0 ? EIO : 0;
    if (!rc)
        rc = mdb_env_info(store->env, &info); /* after the list: no reader in it is ahead of this */
    if (rc)
        return store_fail(err, rc, "check the readers");
    if (w.oldest < info.me_last_txnid) {
        r->oldest_lag = info.me_last_txnid - w.oldest;
        r->oldest_at = w.oldest;
    }
    return 0;
}

int store_live_len(struct store_txn *txn, uint64_t *len_r, struct err *err)
{
    uint64_t pages = META_PAGES;
    MDB_stat st;
    int rc = mdb_stat(txn->mdb, MAIN_DBI, &st);
    if (!rc)
        pages += st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
    for (int t = 0; t < TABLES && !rc; t++) {
        rc = mdb_stat(txn->mdb, txn->store->dbi[t], &st);
        pages += st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
    }
    if (rc)
        return store_fail(err, rc, "count the state's pages");
    *len_r = pages * st.ms_psize;
    return 0;
}
