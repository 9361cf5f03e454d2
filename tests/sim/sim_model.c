/* sim_model.c - the reference: the committed log, applied once, entry by entry, to an environment of its own, and what every index means.
 *
 * Nodes batch, skip, replay and roll back; the model does nothing of that. It keeps for each index the digest and the results, for each operation id how
 * often it was really applied, and for each name the history of its mailbox. */
#include "sim.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "raftdir/op.h"

struct version {
    uint64_t index, hash;
};
struct history {
    struct version *v;
    size_t n, cap;
};

static struct store *store;
static uint64_t applied, log_time;
static struct apply_batch **batches; /* batches[i] applied index i + 1 */
static uint8_t (*digests)[16];
static size_t cap;
static struct model_result **table; /* open addressing, by operation id */
static size_t table_cap, table_n;
static struct history histories[NAMES_MAX];

static uint64_t hash_bytes(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3ull;
    return (h ^ len) * 0x100000001b3ull;
}

uint64_t content_hash(struct store_txn *txn, const char *name)
{
    struct store_mailbox m;
    struct err err;
    int rc = store_lookup(txn, name, strlen(name), &m, &err);
    if (rc == RAFTDIR_ENOTFOUND || (!rc && m.state != STORE_ACTIVE))
        return 0;
    if (rc)
        sim_violation("lookup", "%s: %s", name, err.text);
    const struct store_str *const texts[] = {&m.server,   &m.partition, &m.moving_server,     &m.moving_partition, &m.acl,
                                             &m.mbtype,   &m.uniqueid,  &m.legacy_specialuse, &m.jmapid,           &m.name_history};
    const uint64_t numbers[] = {m.id, m.store_id, m.store_epoch, m.generation, m.mtime, m.uidvalidity, m.createdmodseq, m.foldermodseq};
    uint64_t h = hash_bytes(0xcbf29ce484222325ull, m.name, m.name_len);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        h = hash_bytes(h, texts[i]->s, texts[i]->len);
    return hash_bytes(h, numbers, sizeof numbers) | 1;
}

void model_init(void)
{
    struct err err;
    char dir[256];
    struct store_options options = {.map_len = SIM_MAP_LEN, .no_sync = true};
    snprintf(dir, sizeof dir, "%s/model", sim.options.dir);
    if ((mkdir(dir, 0700) && errno != EEXIST) || store_open(dir, &options, &store, &err))
        sim_violation("store", "can't open the model's environment %s: %s", dir, err.text);
    table_cap = 1 << 16;
    table = xcalloc(table_cap, sizeof *table);
}

static struct model_result **find_slot(const uint8_t op_id[OP_ID_LEN])
{
    uint64_t h;
    memcpy(&h, op_id, sizeof h);
    for (size_t i = h % table_cap;; i = (i + 1) % table_cap)
        if (!table[i] || !memcmp(table[i]->op_id, op_id, OP_ID_LEN))
            return &table[i];
}

const struct model_result *model_find(const uint8_t op_id[OP_ID_LEN])
{
    model_advance(check_committed());
    return *find_slot(op_id);
}

static void note_result(uint64_t index, const uint8_t op_id[OP_ID_LEN], const struct apply_result *r)
{
    Raftdir__Log__Result *result = raftdir__log__result__unpack(NULL, r->result_len, r->result);
    if (!result)
        sim_violation("result", "the result at index %" PRIu64 " doesn't parse", index);
    int code = result->code;
    raftdir__log__result__free_unpacked(result, NULL);
    if (r->replayed) {
        sim.stats.replays++;
        return;
    }
    if (code == RAFTDIR_EEXPIRED) /* refused: nothing was applied */
        return;
    struct model_result **slot = find_slot(op_id);
    if (!*slot) {
        if (++table_n > table_cap / 2)
            sim_violation("simulation", "too many operations in one run");
        *slot = xcalloc(1, sizeof **slot);
        memcpy((*slot)->op_id, op_id, OP_ID_LEN);
        (*slot)->index = index;
        (*slot)->code = code;
        (*slot)->result = xmemdup(r->result, r->result_len);
        (*slot)->result_len = r->result_len;
    }
    if (++(*slot)->applications > 1)
        sim_violation("exactly once", "an operation was applied at index %" PRIu64 " and again at %" PRIu64, (*slot)->index, index);
}

static void trace_result(uint64_t index, const Raftdir__Log__Request *req, const struct apply_result *r)
{
    Raftdir__Log__Result *result = raftdir__log__result__unpack(NULL, r->result_len, r->result);
    if (!result)
        return;
    unsigned op = result->has_failed_op ? result->failed_op : 0;
    const char *name = op < req->n_ops ? op_name(req->ops[op]) : NULL;
    TRACE("model: %" PRIu64 ": %02x%02x%02x%02x, op %d %s, %zu in all%s: %s %s", index, req->op_id.data[0], req->op_id.data[1], req->op_id.data[2],
          req->op_id.data[3], op < req->n_ops ? (int)req->ops[op]->op_case : 0, name ? name : "", req->n_ops, r->replayed ? ", replayed" : "",
          result->code ? err_name(result->code) : "done", result->message ? result->message : "");
    raftdir__log__result__free_unpacked(result, NULL);
}

static void note_contents(uint64_t index, const uint64_t touched[NAMES_MAX / 64])
{
    struct store_txn *txn;
    struct err err;
    if (store_read_begin(store, &txn, &err))
        sim_violation("store", "model: %s", err.text);
    for (unsigned i = 0; i < request_names_n; i++) {
        if (!(touched[i / 64] >> (i % 64) & 1))
            continue;
        struct history *h = &histories[i];
        uint64_t hash = content_hash(txn, request_names[i]);
        if ((h->n ? h->v[h->n - 1].hash : 0) == hash)
            continue;
        if (h->n == h->cap) {
            h->cap = h->cap ? h->cap * 2 : 16;
            h->v = realloc(h->v, h->cap * sizeof *h->v);
            if (!h->v)
                abort();
        }
        h->v[h->n++] = (struct version){index, hash};
    }
    store_read_end(&txn);
}

static void note_entry(const struct entry *e, const struct apply_batch *b)
{
    Raftdir__Log__Entry *unpacked;
    struct err err;
    uint64_t touched[NAMES_MAX / 64] = {0};
    if (op_entry_unpack(e->data, e->len, &unpacked, &err))
        sim_violation("entry", "%" PRIu64 ": %s", e->index, err.text);
    if (unpacked->log_time_ms < log_time)
        sim_violation("log time", "goes back at index %" PRIu64 ", from %" PRIu64 " to %" PRIu64, e->index, log_time, unpacked->log_time_ms);
    log_time = unpacked->log_time_ms;
    if (b->results_n != unpacked->n_requests)
        sim_violation("result", "index %" PRIu64 " has %zu requests and %zu results", e->index, unpacked->n_requests, b->results_n);
    for (size_t i = 0; i < unpacked->n_requests; i++) {
        const Raftdir__Log__Request *req = unpacked->requests[i];
        if (!planted(PLANT_SKIP_DEDUP) && memcmp(req->op_id.data, b->results[i].op_id, OP_ID_LEN))
            sim_violation("result", "index %" PRIu64 ": result %zu is another operation's", e->index, i);
        note_result(e->index, req->op_id.data, &b->results[i]);
        if (sim.options.trace)
            trace_result(e->index, req, &b->results[i]);
        request_touched(req, touched);
    }
    op_entry_free(&unpacked);
    note_contents(e->index, touched);
}

void model_advance(uint64_t index)
{
    while (applied < index) {
        struct entry *e = (struct entry *)check_entry(applied + 1);
        struct entry *run = plant_change_entry(e, NULL);
        if (applied == cap) {
            cap = cap ? cap * 2 : 1024;
            batches = realloc(batches, cap * sizeof *batches);
            digests = realloc(digests, cap * sizeof *digests);
            if (!batches || !digests)
                abort();
        }
        struct apply_batch *b = apply_batch_create(&run, 1);
        if (!b)
            abort();
        entry_unref(run);
        apply_batch_run(store, b);
        plant_restore_results(b);
        if (b->status)
            sim_violation("apply", "index %" PRIu64 ": %s", e->index, b->err.text);
        batches[applied] = b;
        memcpy(digests[applied], b->meta.digest, 16);
        applied++;
        if (e->type == RAFT_COMMAND)
            note_entry(e, b);
    }
}

void model_digest(uint64_t index, uint8_t digest_r[16])
{
    memset(digest_r, 0, 16);
    if (!index)
        return;
    model_advance(index);
    memcpy(digest_r, digests[index - 1], 16);
}

const struct apply_result *model_results(uint64_t index, size_t *n_r)
{
    model_advance(index);
    *n_r = batches[index - 1]->results_n;
    return batches[index - 1]->results;
}

uint64_t model_content(unsigned name, uint64_t index)
{
    const struct history *h = &histories[name];
    model_advance(index);
    size_t lo = 0, hi = h->n; /* the number of versions at or below index */
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (h->v[mid].index <= index)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? h->v[lo - 1].hash : 0;
}

/* The last change at or below index. */
size_t model_members_at(uint64_t index, struct raft_configuration *conf_r)
{
    raft_configuration_init(conf_r);
    for (uint64_t i = index; i; i--) {
        const struct entry *e = check_entry(i);
        if (e->type != RAFT_CHANGE)
            continue;
        struct raft_buffer buf = {(void *)(uintptr_t)e->data, e->len};
        if (raft_configuration_decode(&buf, conf_r))
            sim_violation("configuration", "the change at %" PRIu64 " doesn't parse", i);
        break;
    }
    return conf_r->n;
}

size_t model_members(struct raft_configuration *conf_r)
{
    struct store_txn *txn;
    struct err err;
    const uint8_t *data;
    size_t len;
    uint64_t index;
    model_advance(check_committed());
    raft_configuration_init(conf_r);
    if (store_read_begin(store, &txn, &err) || store_configuration_get(txn, &data, &len, &index, &err))
        sim_violation("store", "model: %s", err.text);
    if (len) {
        uint8_t *copy = xmemdup(data, len);
        struct raft_buffer buf = {copy, len};
        if (raft_configuration_decode(&buf, conf_r))
            sim_violation("store", "the model's configuration doesn't parse");
        free(copy);
    }
    store_read_end(&txn);
    return conf_r->n;
}

void model_close(void)
{
    for (uint64_t i = 0; i < applied; i++)
        apply_batch_destroy(&batches[i]);
    free(batches);
    free(digests);
    for (size_t i = 0; i < table_cap; i++) {
        if (table[i])
            free(table[i]->result);
        free(table[i]);
    }
    free(table);
    for (unsigned i = 0; i < NAMES_MAX; i++)
        free(histories[i].v);
    store_close(&store);
}
