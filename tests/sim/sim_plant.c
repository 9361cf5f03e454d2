/* sim_plant.c - bugs planted in the simulated world (never in the product), each to show that a checker finds what it is for: tests/sim/run-planted. */
#include "sim.h"
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/op.h"

static const struct {
    const char *name, *found_by, *what;
} plants[] = {
    [PLANT_NONE] = {"none", "", ""},
    [PLANT_FORGET_VOTE] = {"forget-vote", "vote|election safety", "a crash forgets the vote"},
    [PLANT_FORGET_TERM] = {"forget-term", "term monotonic", "a power loss puts the term back by one"},
    [PLANT_ACK_BEFORE_DURABLE] = {"ack-before-durable", "durable majority", "the log writer reports a write before its flush"},
    [PLANT_LOSE_LOG] = {"lose-log", "apply order|durable majority|leader completeness|committed entries|liveness|node failed",
                        "a power loss takes the last durable entries"},
    [PLANT_SWAP_ENTRY] = {"swap-entry", "log matching|committed entries|apply durable", "a disk changes a bit in an entry"},
    [PLANT_SKIP_DEDUP] = {"skip-dedup", "exactly once", "apply doesn't recognise an operation id again"},
    [PLANT_LOSE_APPLY] = {"lose-apply", "digest|result", "one node leaves the requests of an entry out"},
    [PLANT_DIFFERENT_APPLY] = {"different-apply", "digest|result", "one node applies an entry with another time"},
    [PLANT_WRONG_INDEX_ROW] = {"wrong-index-row", "verify|apply|read|lookup|digest|result", "a row of an index is removed behind the store's back"},
    [PLANT_STALE_READ] = {"stale-read", "linearizable", "a node serves linearizable reads from what it has"},
    [PLANT_FAKE_ACK] = {"fake-ack", "acknowledged|result", "a node acknowledges a write that it never proposed"},
    [PLANT_WRONG_RESULT] = {"wrong-result", "result", "a client gets another result than was applied"},
    [PLANT_DENY_WRITE] = {"deny-write", "no quorum", "an uncertain write is reported as one that was never tried"},
    [PLANT_LOST_ANSWER] = {"lost-answer", "deadline|requests", "a write never ends"},
    [PLANT_YOUNG_AGE] = {"young-age", "age", "a node calls its state fresh"},
    [PLANT_MUTE_NODE] = {"mute-node", "liveness", "a node can't send when all the faults are over"},
    [PLANT_PHANTOM_MEMBER] = {"phantom-member", "configuration", "a node takes a standby for a voter"},
    [PLANT_EARLY_MEMBER] = {"early-member", "membership answer", "an operator is told that a change succeeded that was refused"},
};

bool planted(enum plant plant)
{
    return sim.options.plant == plant;
}

enum plant plant_by_name(const char *name)
{
    for (unsigned i = 1; i < sizeof plants / sizeof *plants; i++)
        if (!strcmp(plants[i].name, name))
            return (enum plant)i;
    return PLANT_NONE;
}

const char *plant_name(enum plant plant)
{
    return plants[plant].name;
}

void plant_list(void)
{
    for (unsigned i = 1; i < sizeof plants / sizeof *plants; i++)
        printf("%s\t%s\t%s\n", plants[i].name, plants[i].found_by, plants[i].what);
}

/* The same entry with other requests or other ids. */
static struct entry *remake(const struct entry *e, bool empty, uint64_t add_ms, uint64_t mask)
{
    Raftdir__Log__Entry *entry;
    struct err err;
    if (op_entry_unpack(e->data, e->len, &entry, &err))
        sim_violation("entry", "%s", err.text);
    size_t n = empty ? 0 : entry->n_requests, len;
    struct op_packed *packed = xcalloc(n, sizeof *packed);
    for (size_t i = 0; i < n; i++) {
        uint64_t id;
        memcpy(&id, entry->requests[i]->op_id.data, sizeof id);
        id ^= mask;
        memcpy(entry->requests[i]->op_id.data, &id, sizeof id);
        packed[i].len = raftdir__log__request__get_packed_size(entry->requests[i]);
        uint8_t *buf = xcalloc(1, packed[i].len);
        raftdir__log__request__pack(entry->requests[i], buf);
        packed[i].data = buf;
    }
    uint8_t *data;
    if (op_entry_pack(entry->feature_level, entry->log_time_ms + add_ms, entry->wall_time_ms, packed, n, &data, &len, &err))
        sim_violation("entry", "%s", err.text);
    struct entry *other = entry_create(e->index, e->term, e->type, data, (uint32_t)len);
    if (!other)
        abort();
    free(data);
    for (size_t i = 0; i < n; i++)
        free((void *)packed[i].data);
    free(packed);
    op_entry_free(&entry);
    return other;
}

struct entry *plant_change_entry(const struct entry *e, const struct sim_node *n)
{
    if (e->type == RAFT_COMMAND) {
        if (planted(PLANT_SKIP_DEDUP))
            return remake(e, false, 0, e->index * 0x9e3779b97f4a7c15ull);
        if (n && n->slot == 1 && e->index % 16 == 0) {
            if (planted(PLANT_LOSE_APPLY))
                return remake(e, true, 0, 0);
            if (planted(PLANT_DIFFERENT_APPLY))
                return remake(e, false, 1, 0);
        }
    }
    return entry_ref((struct entry *)e);
}

/* Puts the ids back that PLANT_SKIP_DEDUP changed. */
void plant_restore_results(struct apply_batch *batch)
{
    if (!planted(PLANT_SKIP_DEDUP))
        return;
    for (size_t i = 0; i < batch->results_n; i++) {
        uint64_t id;
        memcpy(&id, batch->results[i].op_id, sizeof id);
        id ^= batch->results[i].index * 0x9e3779b97f4a7c15ull;
        memcpy(batch->results[i].op_id, &id, sizeof id);
    }
}

/* Removes the first row of some table with several rows, but for the mailboxes' own and the meta data. The environment is closed. */
void plant_break_index(struct sim_node *n)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi main_dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    if (!n->disk.dir[0] || mdb_env_create(&env))
        return;
    mdb_env_set_maxdbs(env, 64);
    mdb_env_set_mapsize(env, 256ull << 20);
    if (mdb_env_open(env, n->disk.dir, MDB_NOSYNC, 0600))
        goto close;
    if (mdb_txn_begin(env, NULL, 0, &txn))
        goto close;
    if (mdb_dbi_open(txn, NULL, 0, &main_dbi) || mdb_cursor_open(txn, main_dbi, &cursor)) {
        mdb_txn_abort(txn);
        goto close;
    }
    bool removed = false;
    unsigned skip = rnd_in(0, 3);
    while (!removed && !mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        char name[64];
        MDB_dbi dbi;
        MDB_stat stat;
        if (key.mv_size >= sizeof name)
            continue;
        memcpy(name, key.mv_data, key.mv_size);
        name[key.mv_size] = '\0';
        if (!strstr(name, "acl") && !strstr(name, "uniqueid"))
            continue;
        if (mdb_dbi_open(txn, name, 0, &dbi) || mdb_stat(txn, dbi, &stat) || stat.ms_entries < 2 || skip--)
            continue;
        MDB_cursor *rows;
        MDB_val row_key, row;
        if (mdb_cursor_open(txn, dbi, &rows))
            continue;
        removed = !mdb_cursor_get(rows, &row_key, &row, MDB_FIRST) && !mdb_cursor_del(rows, 0);
        mdb_cursor_close(rows);
        TRACE("plant: removed a row of %s at machine %u", name, n->slot + 1);
    }
    mdb_cursor_close(cursor);
    mdb_txn_commit(txn);
close:
    mdb_env_close(env);
}
