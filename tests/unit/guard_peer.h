/* guard_peer.h - servers for test_guard.c: a driver of the guard in memory (log, term and vote, outgoing messages), and a small lossless network.
 *
 * raft_step is wrapped by the linker: each call first fills the stack below it with 0x7f, so that what the core reads without having written it is the
 * same everywhere. The core's heap is zeroed, with zeros behind each block, so that reading beyond one is harmless and the same everywhere, too. */
#ifndef GUARD_PEER_H
#define GUARD_PEER_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "raftdir/guard.h"

/* Not every test program uses all of these. */
#define PEER_FN __attribute__((unused)) static

#define PEER_LOG_MAX 4096
#define PEER_OUT_MAX 512
#define ELECTION_MS 1000
#define BEAT_MS 100
#define HEAP_PAD 4096

struct sent {
    struct raft_message m;
    struct raft_entry *entries; /* own copies */
};

struct peer {
    raft_id id;
    unsigned off;
    struct guard *g;
    struct raft *r;
    raft_term term; /* as made durable */
    raft_id vote;
    struct raft_entry log[PEER_LOG_MAX]; /* log[0] is index 1 + base */
    raft_index base;
    unsigned log_n, stored_n; /* stored_n: what is on the disk */
    raft_index applied;
    raft_term applied_term;
    struct sent out[PEER_OUT_MAX];
    unsigned out_n;
    unsigned incoming_n; /* entries in the message at hand */
    unsigned manifests;  /* InstallSnapshots sent; a receiver drops them, for they have no configuration */
    bool wild;           /* the core handed out more entries than it was given */
    unsigned flags;      /* all update flags since they were last zeroed */
    int fail_next;       /* on_update returns this once */
    unsigned updates;
    const void *last_buf;                    /* the first entry's, as handed to on_update */
    struct raft_snapshot_metadata installed; /* of the last UPDATE_SNAPSHOT, without its configuration */
};

static raft_time now = 1000;

/* --- Checks: cmocka's jump back into the test runner, which is wrong in a child process --------------------------------------------- */

#define CHILD_CHECK_FAILED 99
static bool in_child;

PEER_FN void check_failed(const char *file, int line, const char *what, long long a, long long b)
{
    fprintf(stderr, "%s:%d: %s (%lld, %lld)\n", file, line, what, a, b);
    if (in_child)
        _exit(CHILD_CHECK_FAILED);
    _fail(file, line);
}

#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition, 0, 1))
#define CHECK_EQ(a, b) check_eq(__FILE__, __LINE__, #a " == " #b, (long long)(a), (long long)(b))
#define CHECK_STR(a, b) (strcmp(a, b) == 0 ? (void)0 : check_failed(__FILE__, __LINE__, a, 0, 1))

PEER_FN void check_eq(const char *file, int line, const char *what, long long a, long long b)
{
    if (a != b)
        check_failed(file, line, what, a, b);
}

/* --- The core's stack and heap ------------------------------------------------------------------------------------------------- */

int __real_raft_step(struct raft *r, struct raft_event *event, struct raft_update *update);
int __wrap_raft_step(struct raft *r, struct raft_event *event, struct raft_update *update);

__attribute__((noinline, no_sanitize("address", "undefined"))) static void poison_stack(void)
{
    volatile unsigned char below[16384];
    for (size_t i = 0; i < sizeof below; i++)
        below[i] = 0x7f;
}

static int step_error;      /* the next step ends with this, without a step */
static unsigned heap_fails; /* the n-th allocation from now on fails; 0: none does */

int __wrap_raft_step(struct raft *r, struct raft_event *event, struct raft_update *update)
{
    if (step_error) {
        int rv = step_error;
        step_error = 0;
        return rv;
    }
    poison_stack();
    return __real_raft_step(r, event, update);
}

PEER_FN void *heap_malloc(void *data, size_t size)
{
    (void)data;
    if (heap_fails && --heap_fails == 0)
        return NULL;
    size_t *p = calloc(1, size + HEAP_PAD + 16);
    if (!p)
        return NULL;
    *p = size;
    return (char *)p + 16;
}

PEER_FN void heap_free(void *data, void *p)
{
    (void)data;
    if (p)
        free((char *)p - 16);
}

PEER_FN void *heap_calloc(void *data, size_t n, size_t size)
{
    return heap_malloc(data, n * size);
}

PEER_FN void *heap_realloc(void *data, void *p, size_t size)
{
    void *q = heap_malloc(data, size);
    if (q && p) {
        size_t old = *(size_t *)(void *)((char *)p - 16);
        memcpy(q, p, old < size ? old : size);
        heap_free(data, p);
    }
    return q;
}

PEER_FN void *heap_aligned_alloc(void *data, size_t alignment, size_t size)
{
    (void)data;
    return aligned_alloc(alignment, size);
}

PEER_FN void heap_aligned_free(void *data, size_t alignment, void *p)
{
    (void)data;
    (void)alignment;
    free(p);
}

static struct raft_heap heap = {NULL, heap_malloc, heap_free, heap_calloc, heap_realloc, heap_aligned_alloc, heap_aligned_free};

/* --- Configurations, written "1v 2v 3s" ------------------------------------------------------------------------------------------ */

PEER_FN void conf_parse(const char *text, struct raft_configuration *c)
{
    raft_configuration_init(c);
    while (*text) {
        char *end, address[16];
        raft_id id = strtoull(text, &end, 10);
        snprintf(address, sizeof address, "n%llu", id);
        CHECK_EQ(raft_configuration_add(c, id, address, *end == 'v' ? RAFT_VOTER : RAFT_STANDBY), 0);
        for (text = end + 1; *text == ' '; text++)
            ;
    }
}

PEER_FN struct raft_buffer conf_encode(const char *text)
{
    struct raft_configuration c;
    struct raft_buffer raft, copy;
    conf_parse(text, &c);
    CHECK_EQ(raft_configuration_encode(&c, &raft), 0);
    raft_configuration_close(&c);
    copy.len = raft.len;
    copy.base = malloc(raft.len);
    memcpy(copy.base, raft.base, raft.len);
    raft_free(raft.base);
    return copy;
}

PEER_FN const char *conf_text(const struct raft_configuration *c)
{
    static char text[256];
    size_t len = 0;
    text[0] = 0;
    for (unsigned i = 0; i < c->n && len < sizeof text; i++)
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%llu%c", i ? " " : "", c->servers[i].id, c->servers[i].role == RAFT_VOTER ? 'v' : 's');
    return text;
}

/* --- Entries ------------------------------------------------------------------------------------------------------------------- */

/* `payload` is the configuration's text for a CHANGE. */
PEER_FN struct raft_entry entry_make(raft_term term, enum raft_entry_type type, const char *payload)
{
    struct raft_entry e;
    memset(&e, 0, sizeof e);
    e.term = term;
    e.type = type;
    if (type == RAFT_CHANGE) {
        e.buf = conf_encode(payload);
    } else {
        e.buf.len = strlen(payload) + 1;
        e.buf.base = strdup(payload);
    }
    return e;
}

PEER_FN struct raft_entry entry_copy(const struct raft_entry *e)
{
    struct raft_entry copy = *e;
    copy.batch = NULL;
    copy.buf.base = malloc(e->buf.len ? e->buf.len : 1);
    memcpy(copy.buf.base, e->buf.base, e->buf.len);
    return copy;
}

PEER_FN void log_cut(struct peer *p, raft_index index)
{
    while (p->log_n && p->base + p->log_n >= index)
        free(p->log[--p->log_n].buf.base);
    if (p->stored_n > p->log_n)
        p->stored_n = p->log_n;
}

PEER_FN void log_push(struct peer *p, struct raft_entry e)
{
    CHECK(p->log_n < PEER_LOG_MAX);
    p->log[p->log_n++] = e;
}

PEER_FN const struct raft_entry *log_at(const struct peer *p, raft_index index)
{
    return index > p->base && index <= p->base + p->log_n ? &p->log[index - p->base - 1] : NULL;
}

PEER_FN raft_index last_index(const struct peer *p)
{
    return p->base + p->log_n;
}

/* --- Messages ------------------------------------------------------------------------------------------------------------------ */

PEER_FN void sent_free(struct sent *s)
{
    for (unsigned i = 0; s->entries && i < s->m.append_entries.n_entries; i++)
        free(s->entries[i].buf.base);
    free(s->entries);
    memset(s, 0, sizeof *s);
}

PEER_FN void out_remove(struct peer *p, unsigned i)
{
    memmove(&p->out[i], &p->out[i + 1], (p->out_n - i - 1) * sizeof p->out[0]);
    p->out_n--;
}

PEER_FN void out_clear(struct peer *p)
{
    while (p->out_n)
        sent_free(&p->out[--p->out_n]);
}

PEER_FN void out_push(struct peer *p, const struct raft_message *m)
{
    CHECK(p->out_n < PEER_OUT_MAX);
    p->manifests += m->type == RAFT_INSTALL_SNAPSHOT;
    struct sent *s = &p->out[p->out_n++];
    memset(s, 0, sizeof *s);
    s->m = *m;
    s->m.server_address = NULL;
    if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries) {
        unsigned n = m->append_entries.n_entries;
        s->entries = calloc(n, sizeof *s->entries);
        for (unsigned i = 0; i < n; i++) {
            const struct raft_entry *e = log_at(p, m->append_entries.prev_log_index + 1 + i);
            CHECK(e != NULL);
            s->entries[i] = entry_copy(e);
        }
    }
    s->m.append_entries.entries = m->type == RAFT_APPEND_ENTRIES ? s->entries : s->m.append_entries.entries;
}

/* --- The driver ---------------------------------------------------------------------------------------------------------------- */

PEER_FN int peer_on_update(void *data, const struct raft_update *u)
{
    struct peer *p = data;
    p->updates++;
    if (p->fail_next) {
        int rc = p->fail_next;
        p->fail_next = 0;
        return rc;
    }
    p->flags |= u->flags;
    if (u->flags & (RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR)) {
        CHECK(raft_current_term(p->r) >= p->term);
        p->term = raft_current_term(p->r);
        p->vote = raft_voted_for(p->r);
    }
    if (u->flags & RAFT_UPDATE_ENTRIES) {
        if (p->incoming_n && u->entries.n > p->incoming_n) {
            p->wild = true;
            return 0;
        }
        p->last_buf = u->entries.batch[0].buf.base;
        log_cut(p, u->entries.index);
        CHECK_EQ(u->entries.index, last_index(p) + 1);
        for (unsigned i = 0; i < u->entries.n; i++)
            log_push(p, entry_copy(&u->entries.batch[i]));
    }
    if (u->flags & RAFT_UPDATE_SNAPSHOT) {
        p->installed = u->snapshot.metadata;
        memset(&p->installed.configuration, 0, sizeof p->installed.configuration);
    }
    if (u->flags & RAFT_UPDATE_MESSAGES)
        for (unsigned i = 0; i < u->messages.n; i++)
            out_push(p, &u->messages.batch[i]);
    return 0;
}

PEER_FN const struct raft_entry *peer_entry_at(void *data, raft_index index)
{
    return log_at(data, index);
}

PEER_FN raft_index peer_applied_index(void *data)
{
    return ((struct peer *)data)->applied;
}

PEER_FN raft_term peer_applied_term(void *data)
{
    return ((struct peer *)data)->applied_term;
}

PEER_FN void peer_create(struct peer *p)
{
    struct guard_options o = {.id = p->id,
                              .address = "self",
                              .seed = (unsigned)p->id * 7919,
                              .election_timeout_ms = ELECTION_MS,
                              .heartbeat_ms = BEAT_MS,
                              .max_inflight_entries = 64,
                              .off = p->off};
    struct guard_ops ops = {p, peer_on_update, peer_entry_at, peer_applied_index, peer_applied_term};
    struct err err;
    p->wild = false;
    p->flags = 0;
    CHECK_EQ(guard_create(&o, &ops, &p->g, &err), 0);
    p->r = guard_raft(p->g);
}

/* From the log and the term that are on the disk; everything is applied again. */
PEER_FN void peer_start(struct peer *p)
{
    struct err err;
    peer_create(p);
    log_cut(p, p->base + p->stored_n + 1);
    p->applied = 0;
    p->applied_term = 0;
    struct guard_start start = {.term = p->term, .voted_for = p->vote, .start_index = 1, .entries = p->log, .n_entries = p->log_n};
    CHECK_EQ(guard_start(p->g, now, &start, &err), 0);
}

PEER_FN struct peer *peer_new(raft_id id, unsigned off, raft_term term)
{
    struct peer *p = calloc(1, sizeof *p);
    p->id = id;
    p->off = off;
    p->term = term;
    return p;
}

/* A server whose log is the given configurations, all of term 1. */
PEER_FN struct peer *peer_boot(raft_id id, unsigned off, raft_term term, const char *const *confs, unsigned n)
{
    struct peer *p = peer_new(id, off, term);
    for (unsigned i = 0; i < n; i++)
        log_push(p, entry_make(1, RAFT_CHANGE, confs[i]));
    p->stored_n = n;
    peer_start(p);
    return p;
}

PEER_FN struct peer *peer_boot1(raft_id id, unsigned off, raft_term term, const char *conf)
{
    return peer_boot(id, off, term, &conf, 1);
}

PEER_FN void peer_crash(struct peer *p)
{
    guard_destroy(&p->g);
    p->r = NULL;
    out_clear(p);
}

PEER_FN void peer_free(struct peer *p)
{
    guard_destroy(&p->g);
    out_clear(p);
    log_cut(p, 0);
    free(p);
}

/* A server with an empty log that begins after an image of `index`. */
PEER_FN struct peer *peer_boot_image(raft_id id, unsigned off, raft_term term, raft_index index, raft_term index_term, const char *conf)
{
    struct peer *p = peer_new(id, off, term);
    struct raft_snapshot_metadata metadata = {.index = index, .term = index_term, .configuration_index = 1};
    struct guard_start start = {.term = term, .metadata = &metadata, .start_index = index + 1};
    struct err err;
    conf_parse(conf, &metadata.configuration);
    p->base = p->applied = index;
    p->applied_term = index_term;
    peer_create(p);
    CHECK_EQ(guard_start(p->g, now, &start, &err), 0);
    return p;
}

PEER_FN bool leads(const struct peer *p)
{
    return raft_state(p->r) == RAFT_LEADER;
}

PEER_FN void peer_timeout(struct peer *p)
{
    struct err err;
    CHECK_EQ(guard_timeout(p->g, now, &err), 0);
}

/* Lets the election timer (or, for a leader, the next heartbeat) expire. */
PEER_FN void peer_expire(struct peer *p)
{
    raft_time at = raft_timeout(p->r);
    now = at > now ? at : now + 1;
    peer_timeout(p);
}

PEER_FN void peer_stored(struct peer *p)
{
    struct err err;
    p->stored_n = p->log_n;
    CHECK_EQ(guard_persisted_entries(p->g, now, last_index(p), &err), 0);
}

PEER_FN void peer_apply(struct peer *p)
{
    struct err err;
    raft_index to = raft_commit_index(p->r) < p->r->last_stored ? raft_commit_index(p->r) : p->r->last_stored;
    while (p->applied < to) {
        raft_index index = p->applied + 1;
        const struct raft_entry *e = log_at(p, index);
        CHECK(e != NULL);
        p->applied = index;
        p->applied_term = e->term;
        if (e->type == RAFT_CHANGE)
            CHECK_EQ(guard_configuration(p->g, now, index, e->buf.base, e->buf.len, &err), 0);
    }
}

PEER_FN int peer_submit(struct peer *p, const char *payload, struct err *err)
{
    struct raft_entry e = entry_make(0, RAFT_COMMAND, payload);
    int rc = guard_submit(p->g, now, &e, 1, err);
    free(e.buf.base);
    return rc;
}

PEER_FN int peer_change(struct peer *p, const char *conf, struct err *err)
{
    struct raft_configuration c;
    conf_parse(conf, &c);
    int rc = guard_change(p->g, now, &c, err);
    raft_configuration_close(&c);
    return rc;
}

PEER_FN int peer_receive(struct peer *p, raft_id from, struct raft_message m)
{
    char address[16];
    struct err err;
    snprintf(address, sizeof address, "n%llu", from);
    m.server_id = from;
    m.server_address = address;
    p->incoming_n = m.type == RAFT_APPEND_ENTRIES ? m.append_entries.n_entries : 0;
    int rc = guard_receive(p->g, now, &m, &err);
    p->incoming_n = 0;
    return rc;
}

/* The first waiting message of that type to that server (0: any) goes to `to`; false: there is none. */
PEER_FN bool pass(struct peer *from, struct peer *to, enum raft_message_type type)
{
    for (unsigned i = 0; i < from->out_n; i++)
        if (from->out[i].m.type == type && from->out[i].m.server_id == to->id) {
            struct sent s = from->out[i];
            out_remove(from, i);
            CHECK_EQ(peer_receive(to, from->id, s.m), 0);
            sent_free(&s);
            return true;
        }
    return false;
}

PEER_FN const struct raft_message *waiting(const struct peer *p, enum raft_message_type type, raft_id to)
{
    for (unsigned i = p->out_n; i-- > 0;)
        if (p->out[i].m.type == type && p->out[i].m.server_id == to)
            return &p->out[i].m;
    return NULL;
}

/* An AppendEntries made by hand; entries are freed. */
PEER_FN int peer_append(struct peer *p, raft_id from, raft_term term, raft_index prev, raft_term prev_term, raft_index commit, struct raft_entry *entries,
                        unsigned n)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = RAFT_APPEND_ENTRIES;
    m.append_entries.term = term;
    m.append_entries.prev_log_index = prev;
    m.append_entries.prev_log_term = prev_term;
    m.append_entries.leader_commit = commit;
    m.append_entries.entries = entries;
    m.append_entries.n_entries = n;
    int rc = peer_receive(p, from, m);
    for (unsigned i = 0; i < n; i++)
        free(entries[i].buf.base);
    return rc;
}

/* `p` becomes leader with the votes of `q`. What it sends then is thrown away. */
PEER_FN void elect(struct peer *p, struct peer *q)
{
    peer_expire(p);
    CHECK(pass(p, q, RAFT_REQUEST_VOTE)); /* pre-vote */
    CHECK(pass(q, p, RAFT_REQUEST_VOTE_RESULT));
    CHECK(pass(p, q, RAFT_REQUEST_VOTE));
    CHECK(pass(q, p, RAFT_REQUEST_VOTE_RESULT));
    CHECK(leads(p));
    out_clear(p);
}

/* --- A network without loss: each message takes 1 ms, each log write less ----------------------------------------------------------- */

PEER_FN void run(struct peer *const *peers, unsigned n, raft_time ms)
{
    for (raft_time end = now + ms; now < end;) {
        now++;
        for (unsigned i = 0; i < n; i++) {
            struct peer *p = peers[i];
            if (!p->g)
                continue;
            if (p->stored_n < p->log_n)
                peer_stored(p);
            peer_apply(p);
            if (raft_timeout(p->r) <= now)
                peer_timeout(p);
        }
        for (unsigned i = 0; i < n; i++) {
            unsigned count = peers[i]->out_n;
            for (unsigned k = 0; k < count; k++) {
                struct sent s = peers[i]->out[0];
                out_remove(peers[i], 0);
                for (unsigned j = 0; j < n; j++)
                    if (peers[j]->id == s.m.server_id && peers[j]->g)
                        CHECK_EQ(peer_receive(peers[j], peers[i]->id, s.m), 0);
                sent_free(&s);
            }
        }
    }
}

PEER_FN struct peer *leader_of(struct peer *const *peers, unsigned n)
{
    struct peer *best = NULL;
    for (unsigned i = 0; i < n; i++)
        if (peers[i]->g && leads(peers[i]) && (!best || raft_current_term(peers[i]->r) > raft_current_term(best->r)))
            best = peers[i];
    return best;
}

#endif
