/* sim_client.c - the clients: writes with retries at other nodes under one operation id, local and linearizable reads.
 *
 * A client gives up waiting before or after the node does, asks the next node with the same id (so that two nodes may hold the same operation at once),
 * and ends with an answer or without one. Node-side answers are checked when they are given, whether or not they reach the client. */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct client {
    unsigned number;
    char identity[32];
    bool active;             /* an operation is going on */
    struct sim_node *pinned; /* a fresh write: this node only, until it succeeds */
    uint64_t serial;         /* of the operation */
    uint8_t op_id[OP_ID_LEN];
    uint8_t *request;
    size_t request_len;
    uint64_t since, give_up_at;
    unsigned attempts, outstanding; /* of this operation */
    bool maybe;                     /* an attempt ended otherwise than with "no quorum" or "no space" */
    bool done;
    bool fresh_done;
};
struct answer {
    int code;
    uint64_t serial;
};
struct op_list {
    uint8_t (*id)[OP_ID_LEN];
    size_t n, cap;
};

static struct client clients[CLIENTS_MAX + SLOTS_MAX];
static unsigned clients_n;
static bool stopped;
static struct op_list acked, denied; /* acknowledged; every attempt of them ended with "no quorum" or "no space" */

static void list_add(struct op_list *list, const uint8_t id[OP_ID_LEN])
{
    if (list->n == list->cap) {
        list->cap = list->cap ? list->cap * 2 : 256;
        list->id = realloc(list->id, list->cap * sizeof *list->id);
        if (!list->id)
            abort();
    }
    memcpy(list->id[list->n++], id, OP_ID_LEN);
}

static struct sim_node *pick_node(void)
{
    return chance(300) ? node_leader() : node_random_up();
}

static void client_next(struct event *ev);
static void client_attempt(struct event *ev);

static void client_again(struct client *c)
{
    event_post(rnd_in(1, sim.config.think_max_ms), client_next, NULL, NULL, c, 0);
}

/* --- Writes ---------------------------------------------------------------------------------------------------------------------------- */

static void op_end(struct client *c, const char *how)
{
    TRACE("client %u: %s", c->number, how);
    if (!c->done && !c->maybe && !c->outstanding)
        list_add(&denied, c->op_id);
    free(c->request);
    c->request = NULL;
    c->active = false;
    c->serial++;
    if (!c->pinned)
        client_again(c);
}

static void answered(struct event *ev)
{
    struct client *c = &clients[ev->a];
    struct answer *a = ev->data;
    if (c->active && c->serial == a->serial) {
        if (!a->code) {
            c->done = true;
            c->fresh_done = c->pinned;
            op_end(c, "done");
        } else if (!c->pinned && chance(200)) {
            op_end(c, "gives up");
        } else {
            event_post(rnd_in(0, 100), client_attempt, NULL, NULL, c, c->serial << 8 | c->attempts);
        }
    }
    free(a);
}

static void answer_drop(struct event *ev)
{
    free(ev->data);
}

/* What was kept for a repeated request has no message. */
static bool same_result(const struct model_result *m, const uint8_t *data, size_t len)
{
    if (m->result_len == len && !memcmp(m->result, data, len))
        return true;
    Raftdir__Log__Result *r = raftdir__log__result__unpack(NULL, m->result_len, m->result);
    char *message = r->message;
    uint8_t *kept = xcalloc(1, m->result_len);
    r->message = NULL;
    size_t kept_len = raftdir__log__result__pack(r, kept);
    r->message = message;
    raftdir__log__result__free_unpacked(r, NULL);
    bool same = message && kept_len == len && !memcmp(kept, data, len);
    free(kept);
    return same;
}

/* A leader whose state differs may have told wrong results meanwhile: until the next checkpoint nobody can know. */
static bool told_wrong(const struct sim_write *w)
{
    bool wrong = sim.wrong_leader_at >= w->op_since;
    for (unsigned i = 0; i < sim.config.slots; i++)
        wrong |= sim.nodes[i].differs && sim.nodes[i].status.state == NODE_LEADER;
    return wrong || w->node->differs;
}

static void check_result(const struct sim_write *w, const uint8_t *data, size_t len)
{
    Raftdir__Log__Result *result = raftdir__log__result__unpack(NULL, len, data);
    if (!result)
        sim_violation("result", "member %" PRIu64 " gives a result that doesn't parse", w->node->id);
    uint64_t index = result->index;
    int code = result->code;
    raftdir__log__result__free_unpacked(result, NULL);
    if (code == RAFTDIR_EEXPIRED) {
        sim.stats.expired++;
        return;
    }
    if (index > check_committed())
        sim_violation("acknowledged", "member %" PRIu64 " acknowledges index %" PRIu64 ", committed is %" PRIu64, w->node->id, index, check_committed());
    const struct model_result *m = model_find(w->w.op_id);
    if (!m)
        sim_violation("acknowledged", "member %" PRIu64 " acknowledges an operation that is not in the log", w->node->id);
    if (m->index != index || !same_result(m, data, len))
        sim_violation("result", "member %" PRIu64 " gives a client another result than the log says for index %" PRIu64 " (%" PRIu64 ")",
                      w->node->id, m->index, index);
    if (code)
        sim.stats.refused++;
    list_add(&acked, w->w.op_id);
    check_acked(index);
}

static void write_unlink(struct sim_write *w)
{
    if (w->prev)
        w->prev->next = w->next;
    else
        w->node->writes = w->next;
    if (w->next)
        w->next->prev = w->prev;
}

static void write_free(struct sim_write *w)
{
    free(w->request);
    free(w);
}

/* Was it never tried? Datagrams may double a forwarded write after it was refused for lack of space; the product's links don't. */
static bool definite(int code)
{
    return code == RAFTDIR_ENOQUORUM || (code == RAFTDIR_ENOSPC && sim.config.fifo);
}

static bool somebody_is_low(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].up && sim.nodes[i].space == NODE_SPACE_LOW)
            return true;
    return false;
}

/* The node's answer, or its death. */
void client_write_done(struct sim_write *w, int code, const uint8_t *result, size_t len)
{
    struct sim_node *n = w->node;
    struct client *c = w->client;
    bool current = c->active && c->serial == w->attempt;
    if (planted(PLANT_LOST_ANSWER) && !n->doomed && chance(20))
        return;
    write_unlink(w);
    if (planted(PLANT_DENY_WRITE) && code == RAFTDIR_EUNCERTAIN)
        code = RAFTDIR_ENOQUORUM;
    if (current) {
        c->outstanding--;
        c->maybe |= n->doomed || !definite(code);
    }
    if (!n->doomed) {
        TRACE("client %u: %" PRIu64 " answers %s", c->number, n->id, err_name(code));
        if (code == RAFTDIR_EUNCERTAIN)
            sim.stats.uncertain++;
        else if (code == RAFTDIR_ENOQUORUM)
            sim.stats.no_quorum++;
        else if (code == RAFTDIR_ENOSPC)
            sim.stats.no_space++;
        else if (!code)
            sim.stats.acks++;
        else if (code != RAFTDIR_ECANCELED && code != RAFTDIR_EFAILED && code != RAFTDIR_ELIMIT && code != RAFTDIR_ENOTLEADER)
            sim_violation("answer", "member %" PRIu64 " ends a write with %s", n->id, err_name(code));
        if (planted(PLANT_DENY_DELETE) && somebody_is_low() && !code)
            code = RAFTDIR_ENOSPC;
        check_no_space(w, code);
        if (!code && !told_wrong(w)) {
            uint8_t *copy = xmemdup(result, len);
            if (planted(PLANT_WRONG_RESULT) && chance(20) && len > 4)
                copy[len - 1] ^= 1;
            check_result(w, copy, len);
            free(copy);
        }
        if (sim.healing || !chance(sim.config.reply_loss)) {
            struct answer *a = xcalloc(1, sizeof *a);
            a->code = code;
            a->serial = w->attempt;
            event_post(rnd_in(0, 3), answered, answer_drop, NULL, a, c->number);
        }
    }
    write_free(w);
}

static void write_drop(struct event *ev)
{
    struct sim_write *w = ev->data;
    if (w->client->active && w->client->serial == w->attempt)
        w->client->outstanding--; /* it never arrived */
    write_free(w);
}

static void write_arrive(struct event *ev)
{
    struct sim_write *w = ev->data;
    struct sim_node *n = ev->node;
    if (n->state != SLOT_MEMBER || n->failed) {
        write_drop(ev);
        return;
    }
    w->posted_at = sim.now;
    w->op_since = w->client->since;
    w->low_leader = w->client->active && w->client->serial == w->attempt && w->client->attempts == 1 && n->space != NODE_SPACE_OK &&
                    n->status.state == NODE_LEADER;
    w->w.deadline_ms += node_clock(n);
    w->next = n->writes;
    if (w->next)
        w->next->prev = w;
    n->writes = w;
    sim.stats.writes++;
    if (planted(PLANT_FAKE_ACK) && chance(20)) {
        Raftdir__Log__Result result = RAFTDIR__LOG__RESULT__INIT;
        uint8_t buf[64];
        result.index = check_committed();
        client_write_done(w, 0, buf, raftdir__log__result__pack(&result, buf));
        return;
    }
    node_enter(n);
    node_write(n->node, node_clock(n), &w->w);
    node_leave(n);
}

static void attempt_timeout(struct event *ev)
{
    struct client *c = ev->data;
    if (c->active && (c->serial << 8 | c->attempts) == ev->a)
        client_attempt(ev);
}

static void client_attempt(struct event *ev)
{
    struct client *c = ev->data;
    if (!c->active || (c->serial << 8 | c->attempts) != ev->a)
        return;
    if (!c->pinned && sim.now > c->give_up_at) {
        op_end(c, "gives up");
        return;
    }
    struct sim_node *n = c->pinned ? c->pinned : pick_node();
    c->attempts = (c->attempts + 1) & 255;
    unsigned wait = rnd_in(200, 3000);
    event_post(wait, attempt_timeout, NULL, NULL, c, c->serial << 8 | c->attempts);
    if (!n || !n->up)
        return;
    struct sim_write *w = xcalloc(1, sizeof *w);
    w->node = n;
    w->client = c;
    w->attempt = c->serial;
    w->request = xmemdup(c->request, c->request_len);
    memcpy(w->w.op_id, c->op_id, OP_ID_LEN);
    w->w.request = w->request;
    w->w.request_len = c->request_len;
    w->w.deadline_ms = chance(700) ? wait : rnd_in(100, 6000); /* from its arrival on */
    c->outstanding++;
    TRACE("client %u: writes %02x%02x%02x%02x at %" PRIu64, c->number, c->op_id[0], c->op_id[1], c->op_id[2], c->op_id[3], n->id);
    event_post(rnd_in(0, 3), write_arrive, write_drop, n, w, 0);
}

static void op_begin(struct client *c, const struct sim_node *n)
{
    uint64_t ttl = chance(900) ? OP_TTL_DEFAULT_MS : rnd_in(1500, 8000);
    uint64_t expires = n->status.log_time_ms + ttl;
    for (unsigned i = 0; i < OP_ID_LEN; i += 8) {
        uint64_t r = rnd();
        memcpy(c->op_id + i, &r, 8);
    }
    c->request = c->pinned ? request_noop(c->op_id, n->status.log_time_ms + OP_TTL_DEFAULT_MS, c->identity, &c->request_len)
                           : request_random(c->op_id, expires, c->identity, &c->request_len);
    if (!c->request) {
        client_again(c);
        return;
    }
    c->active = true;
    c->done = c->maybe = false;
    c->attempts = c->outstanding = 0;
    c->since = sim.now;
    c->give_up_at = sim.now + rnd_in(1000, 10000);
    event_post(0, client_attempt, NULL, NULL, c, c->serial << 8);
}

/* --- Reads ------------------------------------------------------------------------------------------------------------------------------ */

static void read_unlink(struct sim_read *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        r->node->reads = r->next;
    if (r->next)
        r->next->prev = r->prev;
}

/* Reads from the environment and compares; false when it is not there yet. */
static bool look(struct sim_node *n, unsigned name, uint64_t at_least, uint64_t *applied_r)
{
    struct store_txn *txn;
    struct store_meta meta;
    struct err err;
    if (store_read_begin(n->store, &txn, &err) || store_meta_get(txn, &meta, &err))
        sim_violation("store", "member %" PRIu64 ": %s", n->id, err.text);
    bool there = meta.applied_index >= at_least;
    *applied_r = meta.applied_index;
    if (there) {
        uint64_t hash = content_hash(txn, request_names[name]), expected = model_content(name, meta.applied_index);
        if (hash != expected && !n->differs)
            sim_violation("read", "member %" PRIu64 " shows another %s at index %" PRIu64 " than the log says", n->id, request_names[name],
                          meta.applied_index);
    }
    store_read_end(&txn);
    return there;
}

static void read_finish(struct sim_read *r)
{
    sim.stats.linear_reads++;
    read_unlink(r);
    free(r);
}

void client_reads_due(struct sim_node *n)
{
    for (struct sim_read *r = n->reads, *next; r; r = next) {
        uint64_t applied;
        next = r->next;
        if (r->granted && look(n, r->name, r->index, &applied))
            read_finish(r);
    }
}

void client_reads_lost(struct sim_node *n)
{
    for (struct sim_read *r = n->reads, *next; r; r = next) {
        next = r->next;
        if (r->granted) {
            read_unlink(r);
            free(r);
        }
    }
}

void client_read_done(struct sim_read *r, int code, uint64_t index)
{
    struct sim_node *n = r->node;
    uint64_t applied;
    if (n->doomed || code) {
        if (!n->doomed && code != RAFTDIR_ENOQUORUM && code != RAFTDIR_ETIMEDOUT && code != RAFTDIR_EFAILED && code != RAFTDIR_ECANCELED &&
            code != RAFTDIR_ELIMIT)
            sim_violation("answer", "member %" PRIu64 " ends a read with %s", n->id, err_name(code));
        read_unlink(r);
        free(r);
        return;
    }
    if (index < r->acked_before)
        sim_violation("linearizable", "a read at member %" PRIu64 " is served at index %" PRIu64 "; %" PRIu64 " was acknowledged before it began",
                      n->id, index, r->acked_before);
    TRACE("client: linearizable read at %" PRIu64 " granted at index %" PRIu64, n->id, index);
    r->granted = true;
    r->index = index;
    if (look(n, r->name, index, &applied))
        read_finish(r);
}

static void read_drop(struct event *ev)
{
    free(ev->data);
}

static void linear_read(struct event *ev)
{
    struct sim_read *r = ev->data;
    struct sim_node *n = ev->node;
    if (n->failed || n->state != SLOT_MEMBER) {
        free(r);
        return;
    }
    r->posted_at = sim.now;
    r->acked_before = check_acked_max();
    r->r.deadline_ms += node_clock(n);
    r->next = n->reads;
    if (r->next)
        r->next->prev = r;
    n->reads = r;
    if (planted(PLANT_STALE_READ)) {
        client_read_done(r, 0, n->applied_seen);
        return;
    }
    node_enter(n);
    node_read(n->node, node_clock(n), &r->r);
    node_leave(n);
}

/* What the node says about its age has to be true: everything acknowledged before then is in its published state. */
static void local_read(struct event *ev)
{
    struct sim_node *n = ev->node;
    struct node_status s;
    uint64_t applied;
    if (n->failed)
        return;
    node_status_get(n->node, node_clock(n), &s);
    look(n, (unsigned)ev->a, 0, &applied);
    if (planted(PLANT_YOUNG_AGE))
        s.age_ms = 0;
    if (s.age_ms > sim.now)
        return;
    uint64_t slack = s.age_ms / 50 + 2; /* clocks differ by up to one hundredth */
    if (s.age_ms + slack < sim.now && check_acked_at(sim.now - s.age_ms - slack) > applied)
        sim_violation("age", "member %" PRIu64 " says that its state is %" PRIu64 " ms old and has applied %" PRIu64 "; by then %" PRIu64 " was acknowledged",
                      n->id, s.age_ms, applied, check_acked_at(sim.now - s.age_ms - slack));
}

static void read_begin(struct sim_node *n)
{
    unsigned name = chance(600) ? rnd_in(0, 11) : rnd_in(0, request_names_n - 1);
    sim.stats.reads++;
    if (chance(400)) {
        event_post(rnd_in(0, 3), local_read, NULL, n, NULL, name);
        return;
    }
    struct sim_read *r = xcalloc(1, sizeof *r);
    r->node = n;
    r->name = name;
    r->r.deadline_ms = rnd_in(100, 4000);
    event_post(rnd_in(0, 3), linear_read, read_drop, n, r, 0);
}

/* --- Life -------------------------------------------------------------------------------------------------------------------------------- */

static void client_next(struct event *ev)
{
    struct client *c = ev->data;
    if (stopped)
        return;
    struct sim_node *n = pick_node();
    if (!n) {
        client_again(c);
    } else if (chance(sim.config.read_chance)) {
        read_begin(n);
        client_again(c);
    } else {
        op_begin(c, n);
    }
}

void client_start(void)
{
    clients_n = sim.config.clients;
    for (unsigned i = 0; i < clients_n; i++) {
        clients[i].number = i;
        snprintf(clients[i].identity, sizeof clients[i].identity, "cert:client%u", i);
        event_post(rnd_in(200, 1500), client_next, NULL, NULL, &clients[i], 0);
    }
}

void client_stop(void)
{
    stopped = true;
}

bool client_idle(void)
{
    for (unsigned i = 0; i < clients_n; i++)
        if (clients[i].active)
            return false;
    return true;
}

static struct client *fresh_client(const struct sim_node *n)
{
    return &clients[clients_n + n->slot];
}

void client_write_fresh(struct sim_node *n)
{
    struct client *c = fresh_client(n);
    if (c->pinned)
        return;
    c->number = clients_n + n->slot;
    c->pinned = n;
    snprintf(c->identity, sizeof c->identity, "cert:fresh%u", n->slot);
    op_begin(c, n);
}

bool client_fresh_done(const struct sim_node *n)
{
    return fresh_client(n)->fresh_done;
}

void client_close(void)
{
    for (size_t i = 0; i < acked.n; i++)
        if (!model_find(acked.id[i]))
            sim_violation("acknowledged", "an acknowledged operation is not in the log at the end");
    for (size_t i = 0; i < denied.n; i++)
        if (model_find(denied.id[i]))
            sim_violation("no quorum", "an operation was applied at index %" PRIu64 ", all its attempts had ended with \"no quorum\" or \"no space\"",
                          model_find(denied.id[i])->index);
    for (unsigned i = 0; i < CLIENTS_MAX + SLOTS_MAX; i++)
        free(clients[i].request);
    free(acked.id);
    free(denied.id);
}
