/* node_world.h - a tiny world for tests of the driver: up to NODES nodes, no disk, no LMDB, a network that delivers in order at once.
 *
 * A node's disk is its world_node: term, vote, log and applied state survive node_reboot(); an image is a copy of another's state. */
#ifndef NODE_WORLD_H
#define NODE_WORLD_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <raft.h>
#include "raftdir/node.h"
#include "raftdir/op.h"
#include "peer.pb-c.h"

/* Not every test program uses all of these. */
#define WORLD_FN __attribute__((unused)) static

#define NODES 4
#define CLUSTER 77
#define INCARNATION 1
#define AT_ONCE_MS 5

struct frame_item {
    struct frame_item *next;
    uint64_t from, to;
    size_t len;
    uint8_t data[];
};

struct world_node {
    uint64_t id;
    struct node *node;
    uint64_t term, vote;
    struct log_batch *log, **log_tail;
    struct apply_batch *apply, **apply_tail;
    bool cut, deaf, stalled; /* no frames in or out; no answers of the disk; none of apply */
    int failed;
    struct store_meta meta;
    uint8_t *conf; /* as applied at meta.configuration_index */
    size_t conf_len;
    unsigned applied_commands;
    struct entry **disk; /* what was written of the log: disk_first .. */
    size_t disk_n;
    uint64_t disk_first, log_cut; /* log_cut: the last of io.log_cut */
    uint64_t synced;
    uint64_t wanted_index, wanted_term; /* the last of io.image_wanted */
    unsigned wanted_times, alarms;
    char why[ERR_TEXT_LEN], alarm[ERR_TEXT_LEN]; /* of io.failed and io.alarm, the last ones */
    unsigned alarm_ends;       /* times that there was none any more */
    uint8_t flaw;              /* of its state, in the digests from now on */
    struct store_checkpoint digests[DIGESTS_KEPT];
    size_t digests_n;
};

struct write {
    struct node_write w;
    uint8_t small[256], *buf;
    int code, times;
    uint64_t index;
    uint64_t done_at;
};

struct world {
    struct world_node nodes[NODES + 1];
    struct frame_item *frames, **frames_tail;
    uint64_t now;
    struct node_options options; /* of each node that is made from now on; but for the ids and the seed */
    uint64_t sync_every;         /* states are synced after so many entries; 0: never */
    unsigned manifests;
    uint64_t bytes_sent[NODES + 1]; /* to each */
    unsigned checkpoints;        /* frames with digests, sent */
    bool checkpoints_lost;       /* they don't arrive */
};
static struct world W;

WORLD_FN int on_meta_write(void *data, uint64_t term, uint64_t vote)
{
    struct world_node *n = data;
    assert_true(term >= n->term);
    n->term = term;
    n->vote = vote;
    return 0;
}

WORLD_FN void on_log_write(void *data, struct log_batch *b)
{
    struct world_node *n = data;
    *n->log_tail = b;
    n->log_tail = &b->next;
}

WORLD_FN void on_apply(void *data, struct apply_batch *b)
{
    struct world_node *n = data;
    *n->apply_tail = b;
    n->apply_tail = &b->next;
}

WORLD_FN void on_send(void *data, uint64_t to, const uint8_t *frame, size_t len)
{
    struct world_node *n = data;
    if (n->cut || to > NODES || W.nodes[to].cut || !W.nodes[to].node)
        return;
    Raftdir__Peer__Frame *sent = raftdir__peer__frame__unpack(NULL, len, frame);
    assert_non_null(sent);
    W.manifests += sent->body_case == RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT;
    W.bytes_sent[to] += len;
    bool digests = sent->body_case == RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS;
    raftdir__peer__frame__free_unpacked(sent, NULL);
    W.checkpoints += digests;
    if (digests && W.checkpoints_lost)
        return;
    struct frame_item *f = malloc(sizeof *f + len);
    assert_non_null(f);
    f->next = NULL;
    f->from = n->id;
    f->to = to;
    f->len = len;
    memcpy(f->data, frame, len);
    *W.frames_tail = f;
    W.frames_tail = &f->next;
}

WORLD_FN void on_write_done(void *data, struct node_write *w, int code, const uint8_t *result, size_t len)
{
    (void)data;
    struct write *x = (struct write *)w;
    x->times++;
    x->code = code;
    x->done_at = W.now;
    if (code == 0) {
        Raftdir__Log__Result *r = raftdir__log__result__unpack(NULL, len, result);
        assert_non_null(r);
        x->index = r->index;
        raftdir__log__result__free_unpacked(r, NULL);
    }
}

struct world_read {
    struct node_read r;
    int code, times;
    uint64_t index;
};

WORLD_FN void on_read_done(void *data, struct node_read *r, int code, uint64_t index)
{
    (void)data;
    struct world_read *x = (struct world_read *)r;
    x->times++;
    x->code = code;
    x->index = index;
}

struct change {
    struct node_member_op m;
    int code, times;
    uint64_t id;
    size_t members;
    char text[256];
};

WORLD_FN void on_member_done(void *data, struct node_member_op *m, const Raftdir__Cluster__MemberResult *r)
{
    (void)data;
    struct change *x = (struct change *)m;
    x->times++;
    x->code = r->code;
    x->id = r->member ? r->member->id : 0;
    x->members = r->n_members;
    if (r->message)
        strncpy(x->text, r->message, sizeof x->text - 1);
}

WORLD_FN void nothing(void *data)
{
    (void)data;
}

WORLD_FN void on_failed(void *data, int code, const char *why)
{
    struct world_node *n = data;
    n->failed = code;
    snprintf(n->why, sizeof n->why, "%s", why);
}

WORLD_FN void on_log_cut(void *data, uint64_t index)
{
    struct world_node *n = data;
    assert_true(index > n->log_cut && index <= n->synced);
    n->log_cut = index;
    /* As with segments: a little more stays. */
    uint64_t first = index + 1 > 5 ? index + 1 - 5 : 1;
    while (n->disk_n && n->disk_first < first) {
        entry_unref(n->disk[0]);
        memmove(n->disk, n->disk + 1, --n->disk_n * sizeof *n->disk);
        n->disk_first++;
    }
}

WORLD_FN void on_image_wanted(void *data, uint64_t index, uint64_t term)
{
    struct world_node *n = data;
    n->wanted_index = index;
    n->wanted_term = term;
    n->wanted_times++;
}

WORLD_FN void on_alarm(void *data, const char *text)
{
    struct world_node *n = data;
    n->alarms += text != NULL;
    n->alarm_ends += text == NULL;
    snprintf(n->alarm, sizeof n->alarm, "%s", text ? text : "");
}

WORLD_FN uint64_t wall(void *data)
{
    (void)data;
    return 1000000 + W.now;
}

WORLD_FN void address_of(uint64_t id, char *buf)
{
    char host[32], name[8];
    uint8_t uuid[NODE_UUID_LEN] = {(uint8_t)id};
    snprintf(host, sizeof host, "127.0.0.1:%d", 7000 + (int)id);
    snprintf(name, sizeof name, "n%d", (int)id);
    assert_int_equal(node_address_format(host, name, uuid, buf, NODE_ADDRESS_SIZE, NULL), 0);
}

/* What a node leaves behind: nothing but its disk. */
WORLD_FN void node_stop(struct world_node *n)
{
    if (n->node)
        node_destroy(&n->node);
    for (struct log_batch *b = n->log, *next; b; b = next) {
        next = b->next;
        log_batch_destroy(&b);
    }
    for (struct apply_batch *b = n->apply, *next; b; b = next) {
        next = b->next;
        apply_batch_destroy(&b);
    }
    n->log = NULL;
    n->log_tail = &n->log;
    n->apply = NULL;
    n->apply_tail = &n->apply;
}

WORLD_FN void disk_cut(struct world_node *n, uint64_t from)
{
    while (n->disk_n && n->disk_first + n->disk_n > from)
        entry_unref(n->disk[--n->disk_n]);
}

WORLD_FN void disk_write(struct world_node *n, const struct log_batch *b)
{
    disk_cut(n, b->first);
    assert_int_equal(n->disk_first + n->disk_n, b->first);
    n->disk = realloc(n->disk, (n->disk_n + b->n) * sizeof *n->disk);
    assert_non_null(n->disk);
    for (unsigned i = 0; i < b->n; i++)
        n->disk[n->disk_n++] = entry_ref(b->entries[i]);
}

WORLD_FN void disk_free(struct world_node *n)
{
    disk_cut(n, 0);
    free(n->disk);
    n->disk = NULL;
    free(n->conf);
    n->conf = NULL;
}

/* Starts it from its disk. */
WORLD_FN void node_open(uint64_t id)
{
    struct world_node *n = &W.nodes[id];
    struct node_io io = {.data = n, .meta_write = on_meta_write, .log_write = on_log_write, .apply = on_apply, .send = on_send, .write_done = on_write_done,
                         .read_done = on_read_done, .member_done = on_member_done, .members_changed = nothing, .role_changed = nothing, .failed = on_failed, .wall_ms = wall,
                         .log_cut = on_log_cut, .image_wanted = on_image_wanted, .alarm = on_alarm};
    struct node_options o = W.options;
    struct node_boot boot = {.log_first = n->disk_first, .entries_n = n->disk_n, .term = n->term, .voted_for = n->vote, .meta = n->meta,
                             .configuration = n->conf, .configuration_len = n->conf_len,
                             .checkpoints = n->digests, .checkpoints_n = n->digests_n};
    struct err err;
    o.id = id;
    o.cluster_id = CLUSTER;
    o.incarnation = INCARNATION;
    o.seed = (unsigned)(id * 7 + 1 + W.now);
    boot.entries = malloc((n->disk_n + 1) * sizeof *boot.entries);
    assert_non_null(boot.entries);
    for (size_t i = 0; i < n->disk_n; i++)
        boot.entries[i] = entry_ref(n->disk[i]);
    assert_int_equal(node_create(&o, &io, &boot, &n->node, &err), 0);
    assert_int_equal(node_start(n->node, W.now), 0);
}

WORLD_FN void node_reboot(uint64_t id)
{
    node_stop(&W.nodes[id]);
    node_open(id);
}

/* A node whose log holds `voters` voters at index 1; none: an empty one, waiting to be added. */
WORLD_FN void node_make(uint64_t id, unsigned voters)
{
    struct world_node *n = &W.nodes[id];
    disk_free(n);
    memset(n, 0, sizeof *n);
    n->id = id;
    n->log_tail = &n->log;
    n->apply_tail = &n->apply;
    n->meta.feature_level = 1;
    n->disk_first = 1;
    if (voters) {
        struct raft_configuration c;
        struct raft_buffer b;
        char address[NODE_ADDRESS_SIZE];
        raft_configuration_init(&c);
        for (unsigned i = 1; i <= voters; i++) {
            address_of(i, address);
            assert_int_equal(raft_configuration_add(&c, i, address, RAFT_VOTER), 0);
        }
        assert_int_equal(raft_configuration_encode(&c, &b), 0);
        n->disk = malloc(sizeof *n->disk);
        n->disk[n->disk_n++] = entry_create(1, 1, RAFT_CHANGE, b.base, (uint32_t)b.len);
        raft_free(b.base);
        raft_configuration_close(&c);
        n->term = 1;
    }
    node_open(id);
}

/* --- Images ------------------------------------------------------------------------------------------------------------------ */

struct image {
    struct store_meta meta;
    uint8_t conf[4096];
    size_t conf_len;
    uint8_t flaw;
    struct store_checkpoint digests[DIGESTS_KEPT];
    size_t digests_n;
};

WORLD_FN void image_take(uint64_t from, struct image *image)
{
    const struct world_node *n = &W.nodes[from];
    image->meta = n->meta;
    assert_true(n->conf_len && n->conf_len <= sizeof image->conf);
    memcpy(image->conf, n->conf, n->conf_len);
    image->conf_len = n->conf_len;
    image->flaw = n->flaw;
    memcpy(image->digests, n->digests, sizeof image->digests);
    image->digests_n = n->digests_n;
}

/* As the daemon does it: state and log are replaced, term and vote stay. */
WORLD_FN void image_install(uint64_t id, const struct image *image)
{
    struct world_node *n = &W.nodes[id];
    assert_true(node_image_wanted(n->node, image->meta.applied_index, image->meta.applied_term));
    node_stop(n);
    disk_free(n);
    n->disk_first = image->meta.applied_index + 1;
    n->meta = image->meta;
    n->conf = malloc(image->conf_len);
    memcpy(n->conf, image->conf, image->conf_len);
    n->conf_len = image->conf_len;
    n->flaw = image->flaw;
    memcpy(n->digests, image->digests, sizeof n->digests);
    n->digests_n = image->digests_n;
    n->synced = n->log_cut = image->meta.applied_index;
    node_open(id);
}

/* --- Apply ------------------------------------------------------------------------------------------------------------------- */

WORLD_FN void digest_record(struct world_node *n, uint64_t index)
{
    if (n->digests_n == DIGESTS_KEPT)
        memmove(&n->digests[0], &n->digests[1], --n->digests_n * sizeof n->digests[0]);
    struct store_checkpoint *c = &n->digests[n->digests_n++];
    memset(c, n->flaw, sizeof *c);
    c->index = index;
    c->digest[0] = (uint8_t)(index / DIGEST_INTERVAL);
}

/* A stand-in for apply: commands succeed, an id is counted once in a life of the world. */
WORLD_FN void apply_run(struct world_node *n, struct apply_batch *b)
{
    for (unsigned i = 0; i < b->n; i++) {
        struct entry *e = b->entries[i];
        assert_int_equal(e->index, n->meta.applied_index + 1);
        n->meta.applied_index = e->index;
        n->meta.applied_term = e->term;
        if (e->index % DIGEST_INTERVAL == 0) {
            digest_record(n, e->index);
            b->checkpoints[b->checkpoints_n++] = n->digests[n->digests_n - 1];
        }
        if (e->type == RAFT_CHANGE) {
            struct raft_configuration c;
            struct raft_buffer buf = {e->data, e->len};
            assert_int_equal(raft_configuration_decode(&buf, &c), 0);
            for (unsigned k = 0; k < c.n; k++)
                if (c.servers[k].id > n->meta.member_id_max)
                    n->meta.member_id_max = c.servers[k].id;
            raft_configuration_close(&c);
            free(n->conf);
            n->conf = malloc(e->len);
            memcpy(n->conf, e->data, e->len);
            n->conf_len = e->len;
            n->meta.configuration_index = e->index;
        }
        if (e->type != RAFT_COMMAND)
            continue;
        Raftdir__Log__Entry *entry;
        assert_int_equal(op_entry_unpack(e->data, e->len, &entry, NULL), 0);
        assert_true(entry->log_time_ms >= n->meta.log_time_ms);
        n->meta.log_time_ms = entry->log_time_ms;
        for (size_t k = 0; k < entry->n_requests; k++) {
            Raftdir__Log__Result r = RAFTDIR__LOG__RESULT__INIT;
            struct apply_result *list = realloc(b->results, (b->results_n + 1) * sizeof *list);
            assert_non_null(list);
            b->results = list;
            struct apply_result *x = &list[b->results_n++];
            memset(x, 0, sizeof *x);
            memcpy(x->op_id, entry->requests[k]->op_id.data, OP_ID_LEN);
            r.index = x->index = e->index;
            x->result_len = raftdir__log__result__get_packed_size(&r);
            x->result = malloc(x->result_len);
            raftdir__log__result__pack(&r, x->result);
            n->applied_commands++;
        }
        op_entry_free(&entry);
    }
    b->meta = n->meta;
}

/* The state is on the disk. */
WORLD_FN void sync_state(struct world_node *n)
{
    struct node_synced s = {.index = n->meta.applied_index, .term = n->meta.applied_term, .configuration_index = n->meta.configuration_index,
                            .configuration = n->conf, .configuration_len = n->conf_len};
    n->synced = s.index;
    node_synced(n->node, W.now, &s);
}

/* Runs the world until nothing is left to do at `now`, then a millisecond on, until `until`. */
WORLD_FN void run(uint64_t until)
{
    while (W.now < until) {
        bool busy = true;
        for (int guard = 0; busy && guard < 1000; guard++) {
            busy = false;
            struct frame_item *f = W.frames;
            W.frames = NULL;
            W.frames_tail = &W.frames;
            while (f) {
                struct frame_item *next = f->next;
                if (W.nodes[f->to].node && !W.nodes[f->to].cut && !W.nodes[f->from].cut)
                    node_receive(W.nodes[f->to].node, W.now, f->from, f->data, f->len);
                free(f);
                f = next;
                busy = true;
            }
            for (int i = 1; i <= NODES; i++) {
                struct world_node *n = &W.nodes[i];
                if (!n->node)
                    continue;
                while (n->log && !n->deaf) {
                    struct log_batch *b = n->log;
                    n->log = b->next;
                    if (!n->log)
                        n->log_tail = &n->log;
                    disk_write(n, b);
                    node_log_written(n->node, W.now, b, 0);
                    busy = true;
                }
                while (n->apply && !n->stalled) {
                    struct apply_batch *b = n->apply;
                    n->apply = b->next;
                    if (!n->apply)
                        n->apply_tail = &n->apply;
                    apply_run(n, b);
                    node_applied(n->node, W.now, b);
                    if (W.sync_every && n->meta.applied_index - n->synced >= W.sync_every)
                        sync_state(n);
                    busy = true;
                }
                if (node_deadline(n->node, W.now) <= W.now)
                    busy = true;
                node_tick(n->node, W.now);
                node_flush(n->node, W.now);
            }
            if (guard > 50)
                break;
        }
        W.now++;
    }
}

WORLD_FN int setup(void **state)
{
    (void)state;
    memset(&W, 0, sizeof W);
    W.frames_tail = &W.frames;
    W.now = 1000;
    return 0;
}

WORLD_FN int teardown(void **state)
{
    (void)state;
    for (int i = 1; i <= NODES; i++) {
        node_stop(&W.nodes[i]);
        disk_free(&W.nodes[i]);
    }
    while (W.frames) {
        struct frame_item *f = W.frames;
        W.frames = f->next;
        free(f);
    }
    return 0;
}

WORLD_FN int leader(void)
{
    int found = 0;
    for (int i = 1; i <= NODES; i++) {
        struct node_status s;
        if (!W.nodes[i].node || W.nodes[i].cut)
            continue;
        node_status_get(W.nodes[i].node, W.now, &s);
        if (s.state == NODE_LEADER)
            found = i;
    }
    return found;
}

WORLD_FN void three(void)
{
    for (unsigned i = 1; i <= 3; i++)
        node_make(i, 3);
    run(W.now + 2000);
    assert_true(leader() > 0);
}

WORLD_FN void write_start_as(struct write *x, int node, uint32_t tag, uint64_t deadline_in, const char *identity)
{
    Raftdir__Log__Request q = RAFTDIR__LOG__REQUEST__INIT;
    Raftdir__Log__Op op = RAFTDIR__LOG__OP__INIT, *ops[1] = {&op};
    Raftdir__Log__Noop noop = RAFTDIR__LOG__NOOP__INIT;
    memset(x, 0, sizeof *x);
    memset(x->w.op_id, (int)(tag & 0xff), OP_ID_LEN);
    if (tag > 0xff)
        memcpy(x->w.op_id, &tag, sizeof tag);
    op.op_case = RAFTDIR__LOG__OP__OP_NOOP;
    op.noop = &noop;
    q.op_id.data = x->w.op_id;
    q.op_id.len = OP_ID_LEN;
    q.expires_ms = 600000;
    q.identity = (char *)(uintptr_t)identity;
    q.ops = ops;
    q.n_ops = 1;
    x->w.request_len = raftdir__log__request__get_packed_size(&q);
    if (x->w.request_len > sizeof x->small)
        x->buf = malloc(x->w.request_len); /* the caller's to free */
    x->w.request = x->buf ? x->buf : x->small;
    raftdir__log__request__pack(&q, x->buf ? x->buf : x->small);
    x->w.deadline_ms = W.now + deadline_in;
    node_write(W.nodes[node].node, W.now, &x->w);
    assert_int_equal(x->times, 0); /* never within the call */
}

WORLD_FN void write_start(struct write *x, int node, uint32_t tag, uint64_t deadline_in)
{
    write_start_as(x, node, tag, deadline_in, "test");
}

WORLD_FN void member_op(struct change *x, int node, Raftdir__Cluster__MemberRequest *q)
{
    memset(x, 0, sizeof *x);
    x->m.request = q;
    x->m.deadline_ms = W.now + 10000;
    node_member_op(W.nodes[node].node, W.now, &x->m);
    assert_int_equal(x->times, 0);
}

WORLD_FN void change_and_wait(struct change *x, int node, Raftdir__Cluster__MemberRequest *q)
{
    member_op(x, node, q);
    for (int i = 0; i < 120 && !x->times; i++)
        run(W.now + 100);
    assert_int_equal(x->times, 1);
}


#endif
