/* sim_check_cut.c - what is cut off a log, what takes the place of log and state, what is refused for lack of space, who says of itself that it is corrupt. */
#include "sim.h"
#include <inttypes.h>
#include <string.h>
#include "raftdir/image.h"
#include "raftdir/op.h"

#define TOLD_MS 6000 /* what a member says of its space may be so old, at the worst */
#define HOLD_MS (LOG_HOLD_MS + 10000)

/* --- The log's beginning -------------------------------------------------------------------------------------------------- */

/* The driver says that entries up to `index` aren't needed any more. */
void check_cut(const struct sim_node *n, uint64_t index)
{
    if (index > n->disk.synced)
        sim_violation("cut", "member %" PRIu64 " cuts its log up to %" PRIu64 ", its state is durable up to %" PRIu64, n->id, index, n->disk.synced);
    if (index > check_committed())
        sim_violation("cut", "member %" PRIu64 " cuts its log up to %" PRIu64 ", committed is %" PRIu64, n->id, index, check_committed());
}

/* A process starts on what its disk holds. */
void check_boot_log(const struct sim_node *n, uint64_t applied)
{
    if (applied < n->disk.log.base)
        sim_violation("cut", "member %" PRIu64 " has applied %" PRIu64 ", its log begins after %" PRIu64, n->id, applied, n->disk.log.base);
    if (applied > log_last(&n->disk.log))
        sim_violation("apply order", "member %" PRIu64 " has applied %" PRIu64 ", its log ends at %" PRIu64, n->id, applied, log_last(&n->disk.log));
}

/* Somebody fetches an image, or did a while ago and may be catching up still: others may keep more for it. */
static bool anybody_fetches(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].fetch)
            return true;
    return sim.fetched_at && sim.now <= sim.fetched_at + HOLD_MS;
}

static uint64_t entry_size(const struct sim_node *n, uint64_t index)
{
    const struct entry *e = log_at(&n->log, index);
    return e ? e->len + sizeof *e : 0;
}

/* A report that the state is synced was handled. Of what was durable at the report before, less is left in memory than a quarter of what is to be kept, but
 * for that itself. */
void check_bounded(struct sim_node *n)
{
    const struct node_status *s = &n->status;
    uint64_t keep_len = sim.config.log_keep_len ? sim.config.log_keep_len : LOG_KEEP_LEN;
    uint64_t keep_entries = sim.config.log_keep_entries ? sim.config.log_keep_entries : LOG_KEEP_ENTRIES;
    uint64_t hold_len = sim.config.log_hold_len_max ? sim.config.log_hold_len_max : LOG_HOLD_LEN_MAX;
    if (hold_len < 2 * keep_len)
        hold_len = 2 * keep_len;
    uint64_t len = 0, left = s->last_index + 1 - s->log_first, idle = 0, idle_len = 0;
    bool many = left >= keep_entries + keep_entries / 4;
    if (n->failed)
        return;
    for (uint64_t i = s->log_first; i <= s->last_index; i++)
        len += entry_size(n, i);
    if (anybody_fetches() && len <= hold_len + entry_size(n, s->last_index))
        return;
    for (uint64_t i = s->log_first; i <= n->synced_before && (len - entry_size(n, i) >= keep_len || left - 1 >= keep_entries); i++) {
        len -= entry_size(n, i);
        left--;
        idle++;
        idle_len += entry_size(n, i);
    }
    if (idle && ((many && idle >= keep_entries / 4) || idle_len >= keep_len / 4))
        sim_violation("log bounded", "member %" PRIu64 " keeps entries %" PRIu64 "..%" PRIu64 "; its state was durable up to %" PRIu64 ": %" PRIu64 " too many", n->id,
                      s->log_first, s->last_index, n->synced_before, idle);
}

/* --- Images --------------------------------------------------------------------------------------------------------------------- */

static void problem(void *data, const char *text)
{
    const struct sim_node *n = data;
    sim_violation("image", "the state that member %" PRIu64 " was sent: %s", n->id, text);
}

/* What is staged in `dir` is about to take the place of n's state. */
void check_image(const struct sim_node *n, const char *dir, uint64_t index, uint64_t term)
{
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    struct store_verify_cb cb = {.data = (void *)n, .problem = problem};
    struct store *store;
    struct store_txn *txn;
    struct store_meta meta;
    struct err err;
    uint8_t digest[16];
    uint64_t problems;
    if (index > check_committed() || check_committed_term(index) != term)
        sim_violation("image", "member %" PRIu64 " takes an image of index %" PRIu64 ", term %" PRIu64 ", which is not committed", n->id, index, term);
    if (index <= n->applied_seen)
        sim_violation("image", "member %" PRIu64 " takes an image of index %" PRIu64 ", it has applied %" PRIu64, n->id, index, n->applied_seen);
    if (store_open(dir, &options, &store, &err) || store_read_begin(store, &txn, &err) || store_meta_get(txn, &meta, &err) ||
        store_verify(txn, &cb, digest, &problems, &err))
        sim_violation("image", "member %" PRIu64 ": %s", n->id, err.text);
    if (meta.applied_index != index || meta.applied_term != term || problems || memcmp(digest, meta.digest, sizeof digest) || !check_same_state(index, digest))
        sim_violation("image", "what member %" PRIu64 " was sent is not the state at index %" PRIu64, n->id, index);
    store_read_end(&txn);
    store_close(&store);
}

/* --- Space ------------------------------------------------------------------------------------------------------------------------- */

static bool grows(const struct sim_write *w)
{
    Raftdir__Log__Request *req = raftdir__log__request__unpack(NULL, w->w.request_len, w->request);
    bool does = req && op_request_grows(req);
    if (req)
        raftdir__log__request__free_unpacked(req, NULL);
    return does;
}

/* How a write ended at a node. */
void check_no_space(const struct sim_write *w, int code)
{
    const struct sim_node *n = w->node;
    if (code == RAFTDIR_ENOSPC && !grows(w)) {
        bool none = false; /* had somebody no space at all since the client began, or so lately before that the leader may not know better? */
        for (unsigned i = 0; i < sim.config.slots; i++)
            none |= sim.nodes[i].space == NODE_SPACE_NONE || (sim.nodes[i].none_at && sim.nodes[i].none_at + TOLD_MS >= w->op_since);
        if (!none)
            sim_violation("no space", "member %" PRIu64 " refuses a write that doesn't grow the state; nobody lacks more than the space to grow", n->id);
    }
    if (!code && w->low_leader && n->space != NODE_SPACE_OK && n->status.state == NODE_LEADER && grows(w))
        sim_violation("no space", "member %" PRIu64 " leads, is low in space, and took a write that grows the state", n->id);
}

/* --- Failures ----------------------------------------------------------------------------------------------------------------------- */

void check_failed(const struct sim_node *n, int code, const char *why)
{
    if (n->doomed || code == RAFTDIR_EIO || (code == RAFTDIR_ECORRUPT && n->differs))
        return;
    sim_violation("node failed", "member %" PRIu64 ": %s (%s)", n->id, why, err_name(code));
}
