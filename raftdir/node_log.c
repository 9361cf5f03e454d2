/* node_log.c - the log in memory, and what of it may go. See node.h.
 *
 * Invariants:
 *  - it is what the core's trail says: same first and last index, same terms;
 *  - io.log_write gets batches in log order; a batch whose entries were cut again counts only up to valid_to;
 *  - no entry at or below the commit index is ever cut off its end;
 *  - its beginning goes only as far as a state that is synced here has come, so that any crash leaves state and log that meet.
 *
 * What is kept (DESIGN D9, D13): log_keep_len bytes or log_keep_entries entries behind the newest, whichever is reached first, so that a member that was away for a
 * moment catches up without an image; and, while the log is shorter than log_hold_len_max, what a member needs that is fetching an image (node_image.c), or
 * what this one needs behind a copy of its own state (node_log_hold). A
 * sixteenth of it goes at a time, or more: often enough that nobody waits for the freeing, seldom enough that moving the rest down costs nothing.
 *
 * What isn't applied yet is bounded, too: beyond log_unapplied_len_max a leader proposes nothing and a follower takes nothing. They count differently: a follower
 * only what is committed, which its own apply brings down. If it counted the rest, followers full of what nobody has committed yet could refuse the very entry
 * that commits it. */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "node_internal.h"

#define TRIM_AGAIN_MS 500 /* what something held back is looked at again so often */
#define TRIM_PART 16

/* --- Batches ------------------------------------------------------------------------------------------------------------- */

struct log_batch *log_batch_create(struct entry *const *entries, unsigned count)
{
    struct log_batch *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->entries = malloc(count * sizeof(struct entry *));
    if (!b->entries) {
        free(b);
        return NULL;
    }
    for (unsigned i = 0; i < count; i++)
        b->entries[i] = entry_ref(entries[i]);
    b->first = entries[0]->index;
    b->n = count;
    b->valid_to = b->first + count - 1;
    return b;
}

void log_batch_destroy(struct log_batch **batch)
{
    struct log_batch *b = *batch;
    if (!b)
        return;
    for (unsigned i = 0; i < b->n; i++)
        entry_unref(b->entries[i]);
    free(b->entries);
    free(b);
    *batch = NULL;
}

/* --- Entries -------------------------------------------------------------------------------------------------------------- */

struct entry *node_entry(const struct node *n, uint64_t index)
{
    if (index < n->log_first || index >= n->log_first + n->log_n)
        return NULL;
    return n->log[index - n->log_first];
}

uint64_t node_last_index(const struct node *n)
{
    return n->log_first + n->log_n - 1;
}

static uint64_t entry_size(const struct entry *e)
{
    return e->len + sizeof *e;
}

static int log_push(struct node *n, struct entry *e)
{
    if (n->log_n == n->log_cap) {
        size_t cap = n->log_cap ? n->log_cap * 2 : 256;
        struct entry **log = realloc(n->log, cap * sizeof *log);
        if (!log)
            return RAFTDIR_ENOMEM;
        n->log = log;
        n->log_cap = cap;
    }
    n->log[n->log_n++] = e;
    n->log_bytes += entry_size(e);
    if (e->index > n->meta.applied_index)
        n->unapplied_len += entry_size(e);
    if (e->index > n->commit)
        n->uncommitted_len += entry_size(e);
    return 0;
}

int node_log_init(struct node *n, struct entry **entries, size_t count)
{
    struct node_options *o = &n->options;
    o->log_keep_len = o->log_keep_len ? o->log_keep_len : LOG_KEEP_LEN;
    /* Who wants to keep more than usual gets it with small entries, too, and more again for a member that fetches an image. */
    if (!o->log_keep_entries)
        o->log_keep_entries = o->log_keep_len > LOG_KEEP_LEN ? o->log_keep_len / (LOG_KEEP_LEN / LOG_KEEP_ENTRIES) : LOG_KEEP_ENTRIES;
    o->log_hold_len_max = o->log_hold_len_max ? o->log_hold_len_max : LOG_HOLD_LEN_MAX;
    if (o->log_hold_len_max < 2 * o->log_keep_len)
        o->log_hold_len_max = 2 * o->log_keep_len;
    o->log_unapplied_len_max = o->log_unapplied_len_max ? o->log_unapplied_len_max : LOG_UNAPPLIED_LEN_MAX;
    n->log = count ? malloc(count * sizeof(struct entry *)) : NULL;
    if (count && !n->log)
        return RAFTDIR_ENOMEM;
    n->log_cap = count;
    for (size_t i = 0; i < count; i++)
        log_push(n, entries[i]); /* has room */
    return 0;
}

void node_log_close(struct node *n)
{
    for (size_t i = 0; i < n->log_n; i++)
        entry_unref(n->log[i]);
    free(n->log);
    free(n->writing);
    free(n->synced.configuration);
}

/* Cuts the end off; nothing of it is committed. */
static void log_cut(struct node *n, uint64_t from)
{
    while (n->log_n && n->log[n->log_n - 1]->index >= from) {
        struct entry *e = n->log[--n->log_n];
        n->log_bytes -= entry_size(e);
        n->unapplied_len -= entry_size(e);
        n->uncommitted_len -= entry_size(e);
        entry_unref(e);
    }
    for (size_t i = 0; i < n->writing_n; i++)
        if (n->writing[i]->valid_to >= from)
            n->writing[i]->valid_to = from - 1;
}

void node_log_committed(struct node *n, uint64_t index)
{
    while (n->commit < index) {
        const struct entry *e = node_entry(n, ++n->commit);
        if (e)
            n->uncommitted_len -= entry_size(e);
    }
}

void node_log_applied(struct node *n, const struct apply_batch *batch)
{
    for (unsigned i = 0; i < batch->n; i++)
        n->unapplied_len -= entry_size(batch->entries[i]);
}

bool node_log_full(const struct node *n)
{
    return n->unapplied_len > n->options.log_unapplied_len_max;
}

bool node_log_backlogged(const struct node *n)
{
    return n->unapplied_len - n->uncommitted_len > n->options.log_unapplied_len_max;
}

void node_log_check(const struct node *n)
{
    raft_index first, last;
    guard_log_range(n->guard, &first, &last);
    assert(first == n->log_first && last == node_last_index(n));
}

/* --- Its end: what the core appends ------------------------------------------------------------------------------------------ */

static int writing_push(struct node *n, struct log_batch *b)
{
    if (n->writing_n == n->writing_cap) {
        size_t cap = n->writing_cap ? n->writing_cap * 2 : 16;
        struct log_batch **list = realloc(n->writing, cap * sizeof *list);
        if (!list)
            return RAFTDIR_ENOMEM;
        n->writing = list;
        n->writing_cap = cap;
    }
    n->writing[n->writing_n++] = b;
    return 0;
}

void node_log_returned(struct node *n, struct log_batch *batch)
{
    assert(n->writing_n && n->writing[0] == batch);
    n->writing_n--;
    memmove(n->writing, n->writing + 1, n->writing_n * sizeof *n->writing);
}

/* The entry of the event in progress that the core speaks of, found by its bytes. */
static struct entry *incoming_at(const struct node *n, uint64_t index, const void *data)
{
    if (!n->incoming_n || index < n->incoming[0]->index || index - n->incoming[0]->index >= n->incoming_n)
        return NULL;
    struct entry *e = n->incoming[index - n->incoming[0]->index];
    return e->data == data ? e : NULL;
}

int node_log_update(struct node *n, const struct raft_update *u)
{
    uint64_t index = u->entries.index;
    if (index < n->log_first || index > n->log_first + n->log_n || index <= n->commit)
        return err_set(&n->err, RAFTDIR_ECORRUPT, "the core appends at %llu, log %llu..%llu, commit %llu", (unsigned long long)index,
                       (unsigned long long)n->log_first, (unsigned long long)(n->log_first + n->log_n - 1), (unsigned long long)n->commit);
    log_cut(n, index);
    for (unsigned i = 0; i < u->entries.n; i++) {
        const struct raft_entry *r = &u->entries.batch[i];
        struct entry *e = incoming_at(n, index + i, r->buf.base);
        if (e)
            e = entry_ref(e);
        else /* the core's or the guard's own: a barrier, a CHANGE */
            e = entry_create(index + i, r->term, (uint16_t)r->type, r->buf.base, (uint32_t)r->buf.len);
        if (!e || log_push(n, e)) {
            entry_unref(e);
            return err_set(&n->err, RAFTDIR_ENOMEM, "no memory for the log");
        }
        assert(e->term == r->term);
    }
    struct log_batch *b = log_batch_create(&n->log[index - n->log_first], u->entries.n);
    if (!b || writing_push(n, b)) {
        log_batch_destroy(&b);
        return err_set(&n->err, RAFTDIR_ENOMEM, "no memory for the log");
    }
    n->io.log_write(n->io.data, b);
    return 0;
}

/* --- Its beginning: what nobody needs any more -------------------------------------------------------------------------------- */

/* Up to which index it may go; log_first - 1: nothing. Sets trim_waits when something that passes holds it back. */
static uint64_t trim_to(struct node *n)
{
    uint64_t keep_len = n->options.log_keep_len, keep_entries = n->options.log_keep_entries;
    uint64_t cut = n->log_first - 1, limit = n->synced.index, held = node_images_held(n);
    uint64_t len = n->log_bytes, left = n->log_n;
    if (n->log_held + 1 >= n->log_first && n->log_held && n->log_held < held)
        held = n->log_held;

    n->trim_waits = false;
    if (n->log_bytes < keep_len + keep_len / TRIM_PART && n->log_n < keep_entries + keep_entries / TRIM_PART)
        return cut;
    if (n->log_bytes < n->options.log_hold_len_max && held <= limit) {
        limit = held - 1; /* the core sends from an index on whose predecessor's term it knows: that of the image's last entry */
        n->trim_waits = true;
    }
    while (cut < limit) {
        const struct entry *e = node_entry(n, cut + 1);
        if (!e || (len - entry_size(e) < keep_len && left - 1 < keep_entries))
            break;
        len -= entry_size(e);
        left--;
        cut++;
    }
    return n->log_bytes - len < keep_len / TRIM_PART && n->log_n - left < keep_entries / TRIM_PART ? n->log_first - 1 : cut;
}

static void drop_to(struct node *n, uint64_t cut)
{
    size_t gone = (size_t)(cut - n->log_first + 1);
    for (size_t i = 0; i < gone; i++) {
        n->log_bytes -= entry_size(n->log[i]);
        entry_unref(n->log[i]);
    }
    n->log_n -= gone;
    memmove(n->log, n->log + gone, n->log_n * sizeof *n->log);
    n->log_first = cut + 1;
    if (n->log_cap > 1024 && n->log_cap / 4 > n->log_n) { /* it was held for long */
        struct entry **log = realloc(n->log, n->log_cap / 2 * sizeof *log);
        if (log) {
            n->log = log;
            n->log_cap /= 2;
        }
    }
}

static void trim(struct node *n)
{
    struct raft_snapshot_metadata metadata;
    struct raft_buffer b = {n->synced.configuration, n->synced.configuration_len};
    raft_index first, last;

    n->trim_ms = n->now;
    if (n->synced.index > n->meta.applied_index) { /* its batch hasn't been told yet */
        n->trim_waits = true;
        return;
    }
    uint64_t cut = trim_to(n);
    /* The core takes each index once, and only one that its trail still reaches. */
    if (cut < n->log_first || n->synced.index <= n->raft->trail.snapshot.index || !node_entry(n, n->synced.index))
        return;
    assert(n->synced.index - cut <= UINT_MAX && cut <= n->apply_sent && cut <= n->raft->last_stored);
    if (!guard_configuration_valid(b.base, b.len)) {
        node_fail(n, RAFTDIR_ECORRUPT, "the configuration of the synced state is malformed: rebuild this node from its peers");
        return;
    }
    memset(&metadata, 0, sizeof metadata);
    metadata.index = n->synced.index;
    metadata.term = n->synced.term;
    /* What is held back goes later, also when nothing is written meanwhile. So the core is told no more than this cut needs: it can be told of the same state again. */
    if (n->trim_waits) {
        uint64_t index = n->raft->trail.snapshot.index + 1;
        index = index < cut ? cut : index;
        metadata.index = index < n->synced.configuration_index ? n->synced.configuration_index : index;
        metadata.term = node_entry(n, metadata.index)->term;
    }
    metadata.configuration_index = n->synced.configuration_index;
    if (raft_configuration_decode(&b, &metadata.configuration)) {
        node_fail(n, RAFTDIR_ENOMEM, "no memory for a configuration");
        return;
    }
    /* The core's trail forgets what is at or below index - trailing: our cut. */
    int rc = guard_snapshot(n->guard, n->now, &metadata, (unsigned)(metadata.index - cut), &n->err);
    raft_configuration_close(&metadata.configuration);
    if (rc) {
        node_fail(n, rc, n->err.text);
        return;
    }
    guard_log_range(n->guard, &first, &last);
    assert(first == cut + 1);
    drop_to(n, cut);
    n->io.log_cut(n->io.data, cut);
    node_settle(n);
}

void node_synced(struct node *n, uint64_t now, const struct node_synced *synced)
{
    if (now > n->now)
        n->now = now;
    if (n->failed || synced->index <= n->synced.index)
        return;
    if (synced->configuration_index != n->synced.configuration_index || !n->synced.configuration) {
        uint8_t *configuration = malloc(synced->configuration_len ? synced->configuration_len : 1);
        if (!configuration) {
            node_fail(n, RAFTDIR_ENOMEM, "no memory for a configuration");
            return;
        }
        memcpy(configuration, synced->configuration, synced->configuration_len);
        free(n->synced.configuration);
        n->synced.configuration = configuration;
        n->synced.configuration_len = synced->configuration_len;
    }
    n->synced.index = synced->index;
    n->synced.term = synced->term;
    n->synced.configuration_index = synced->configuration_index;
    trim(n);
}

void node_log_hold(struct node *n, uint64_t index)
{
    n->log_held = index;
}

void node_log_period(struct node *n)
{
    if (!n->failed && n->trim_waits && n->now - n->trim_ms >= TRIM_AGAIN_MS)
        trim(n);
}
