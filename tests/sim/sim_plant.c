/* sim_plant.c - bugs planted in the simulated world (never in the product), each to show that a checker finds what it is for: tests/sim/run-planted. */
#include "sim.h"
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "peer.pb-c.h"
#include "raftdir/op.h"

static const struct {
    const char *name, *found_by, *what;
} plants[] = {
    [PLANT_NONE] = {"none", "", ""},
    [PLANT_FORGET_VOTE] = {"forget-vote", "vote|election safety", "a crash forgets the vote"},
    [PLANT_FORGET_TERM] = {"forget-term", "term monotonic|vote", "a power loss puts the term back by one"},
    [PLANT_ACK_BEFORE_DURABLE] = {"ack-before-durable", "durable majority", "the log writer reports a write before its flush"},
    [PLANT_LOSE_LOG] = {"lose-log", "apply order|durable majority|leader completeness|committed entries|liveness|node failed",
                        "a power loss takes the last durable entries"},
    [PLANT_SWAP_ENTRY] = {"swap-entry", "log matching|committed entries|apply durable", "a disk changes a bit in an entry"},
    [PLANT_SKIP_DEDUP] = {"skip-dedup", "exactly once", "apply doesn't recognise an operation id again"},
    [PLANT_LOSE_APPLY] = {"lose-apply", "digest|result", "one node leaves the requests of an entry out"},
    [PLANT_DIFFERENT_APPLY] = {"different-apply", "digest|result", "one node applies an entry with another time"},
    [PLANT_WRONG_INDEX_ROW] = {"wrong-index-row", "verify|apply|read|lookup|digest|result|image", "a row of an index is removed behind the store's back"},
    [PLANT_STALE_READ] = {"stale-read", "linearizable", "a node serves linearizable reads from what it has"},
    [PLANT_FAKE_ACK] = {"fake-ack", "acknowledged|result", "a node acknowledges a write that it never proposed"},
    [PLANT_WRONG_RESULT] = {"wrong-result", "result", "a client gets another result than was applied"},
    [PLANT_DENY_WRITE] = {"deny-write", "no quorum", "an uncertain write is reported as one that was never tried"},
    [PLANT_LOST_ANSWER] = {"lost-answer", "deadline|requests", "a write never ends"},
    [PLANT_YOUNG_AGE] = {"young-age", "age", "a node calls its state fresh"},
    [PLANT_MUTE_NODE] = {"mute-node", "liveness", "a node can't send when all the faults are over"},
    [PLANT_PHANTOM_MEMBER] = {"phantom-member", "configuration", "a node takes a standby for a voter"},
    [PLANT_EARLY_MEMBER] = {"early-member", "membership answer", "an operator is told that a change succeeded that was refused"},
    [PLANT_CUT_UNSYNCED] = {"cut-unsynced", "cut", "the state is reported as synced, and isn't"},
    [PLANT_NEVER_CUT] = {"never-cut", "log bounded", "the driver isn't told that the state is synced"},
    [PLANT_FORGET_BASE] = {"forget-base", "apply order|cut|log|start", "the log that begins after an image forgets where"},
    [PLANT_IMAGE_LOST_ROW] = {"image-lost-row", "image", "a row is gone from a staged state after it was verified"},
    [PLANT_IMAGE_OLD] = {"image-old", "image", "an image takes the place of a newer state"},
    [PLANT_IMAGE_NO_VOTE] = {"image-no-vote", "vote", "the vote is forgotten when an image takes the state's place"},
    [PLANT_IMAGE_NEVER] = {"image-never", "liveness", "no image ever arrives"},
    [PLANT_HIGH_ACK] = {"high-ack", "node failed|durable majority|committed entries|commit", "a follower says that it has applied what it hasn't"},
    [PLANT_UNSEEN_ROT] = {"unseen-rot", "divergence", "digests reach nobody"},
    [PLANT_DENY_DELETE] = {"deny-delete", "no space", "a write that doesn't grow the state is refused though there is some space"},
    [PLANT_SPACE_UNTOLD] = {"space-untold", "no space", "the driver isn't told that space is low"},
    [PLANT_CLONE] = {"clone", "identity|vote|term monotonic|durable majority|node failed", "the transport takes a clone for the member"},
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

struct entry *plant_nothing(const struct entry *e)
{
    return remake(e, true, 0, 0);
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
void plant_break_index(const char *dir)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi main_dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    if (!dir[0] || mdb_env_create(&env))
        return;
    mdb_env_set_maxdbs(env, 64);
    mdb_env_set_mapsize(env, SIM_MAP_LEN);
    if (mdb_env_open(env, dir, MDB_NOSYNC, 0600))
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
        TRACE("plant: removed a row of %s in %s", name, dir);
    }
    mdb_cursor_close(cursor);
    mdb_txn_commit(txn);
close:
    mdb_env_close(env);
}

/* Frames that a planted bug changes on their way out, or drops (length 0). */
bool plant_frame(const struct sim_node *n, const uint8_t *frame, size_t len, uint8_t **frame_r, size_t *len_r)
{
    if (!planted(PLANT_UNSEEN_ROT) && (!planted(PLANT_HIGH_ACK) || n->slot != 1))
        return false;
    Raftdir__Peer__Frame *f = raftdir__peer__frame__unpack(NULL, len, frame);
    if (!f)
        return false;
    bool changed = false;
    if (planted(PLANT_UNSEEN_ROT) && f->body_case == RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS) {
        changed = true;
        *frame_r = NULL;
        *len_r = 0;
    } else if (planted(PLANT_HIGH_ACK) && f->body_case == RAFTDIR__PEER__FRAME__BODY_FRESHNESS && f->freshness->has_applied_index) {
        changed = true;
        f->freshness->applied_index += 8;
        *len_r = raftdir__peer__frame__get_packed_size(f);
        *frame_r = xcalloc(1, *len_r);
        raftdir__peer__frame__pack(f, *frame_r);
    }
    raftdir__peer__frame__free_unpacked(f, NULL);
    return changed;
}
