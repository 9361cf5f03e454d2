/* sim_admin.c - the operator: who makes the cluster, adds, promotes, demotes and removes members and moves the leadership, through whatever node answers.
 *
 * An answer that got lost, or a change that timed out, is asked again, as raftdirctl's user would. A removed member goes on running for a while (a stale
 * server that campaigns is something that the cluster has to bear), then it is stopped and wiped, and may come back as another member. So it goes with one
 * that says that it is corrupt, or has lost its disk: "raftdirctl cluster rebuild". */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void boot_member(struct sim_node *n, uint64_t id)
{
    if (id >= IDS_MAX)
        sim_violation("ids", "member id %" PRIu64 " is beyond what a run can use", id);
    if (sim.given[id])
        sim_violation("ids", "member id %" PRIu64 " was given twice", id);
    if (id > sim.id_max)
        sim.id_max = id;
    n->id = id;
    n->state = SLOT_MEMBER;
    sim.given[id] = true;
    sim.by_id[id] = n;
    node_up(n);
}

/* The first entry of a cluster that starts with several voters. */
static struct entry *first_entry(unsigned voters)
{
    struct raft_configuration conf;
    struct raft_buffer buf;
    raft_configuration_init(&conf);
    for (unsigned i = 0; i < voters; i++)
        if (raft_configuration_add(&conf, i + 1, sim.nodes[i].address, RAFT_VOTER))
            abort();
    if (raft_configuration_encode(&conf, &buf))
        abort();
    struct entry *e = entry_create(1, 1, RAFT_CHANGE, buf.base, (uint32_t)buf.len);
    if (!e)
        abort();
    raft_free(buf.base);
    raft_configuration_close(&conf);
    return e;
}

static void wipe(struct event *ev)
{
    struct sim_node *n = &sim.nodes[ev->a];
    if (n->state != SLOT_REMOVED)
        return;
    node_crash(n, 0);
    TRACE("admin: machine %u (member %" PRIu64 ") is wiped", n->slot + 1, n->id);
    disk_wipe(n);
    apply_wipe(n);
    node_new_identity(n);
    n->state = SLOT_SPARE;
}

/* Machines follow the committed configuration: one whose member was removed is retired, one that was added while the answer got lost starts. */
void admin_sweep(void)
{
    struct raft_configuration conf;
    model_members(&conf);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[i];
        const struct raft_server *found = NULL;
        for (unsigned k = 0; k < conf.n; k++)
            if (!strcmp(conf.servers[k].address, n->address))
                found = &conf.servers[k];
        if (n->state == SLOT_MEMBER && !found && conf.n) {
            n->state = SLOT_REMOVED;
            TRACE("admin: member %" PRIu64 " was removed", n->id);
            event_post(sim.healing ? 0 : rnd_in(0, 4000), wipe, NULL, NULL, NULL, n->slot);
        } else if (n->state == SLOT_REMOVED && sim.healing) {
            event_post(0, wipe, NULL, NULL, NULL, n->slot);
        } else if ((n->state == SLOT_ADDING || n->state == SLOT_SPARE) && found) {
            TRACE("admin: machine %u joins as member %llu", n->slot + 1, found->id);
            boot_member(n, found->id);
        }
    }
    raft_configuration_close(&conf);
}

static void sweep(struct event *ev)
{
    (void)ev;
    admin_sweep();
    event_post(rnd_in(100, 600), sweep, NULL, NULL, NULL, 0);
}

/* A machine (its answer came, or it learnt so otherwise) starts as what the leader said. */
static void joined(struct event *ev)
{
    struct sim_node *n = &sim.nodes[ev->a];
    if (n->state == SLOT_ADDING)
        boot_member(n, (uint64_t)(uintptr_t)ev->data);
}

void admin_done(struct sim_member *m, const Raftdir__Cluster__MemberResult *result)
{
    struct sim_node *n = m->node;
    if (m->prev)
        m->prev->next = m->next;
    else
        n->members = m->next;
    if (m->next)
        m->next->prev = m->prev;
    TRACE("admin: %" PRIu64 " answers %s %s", n->id, err_name(result->code), result->message ? result->message : "");
    bool told = !result->code || (planted(PLANT_EARLY_MEMBER) && m->request.op_case != RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD);
    if (!n->doomed && told) {
        if (m->request.op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD) {
            if (!result->member || !result->member->id)
                sim_violation("members", "an add was answered without the member's id");
            check_member_answer(result->member->id, RAFT_STANDBY);
            struct sim_node *about = &sim.nodes[m->slot];
            if (about->state == SLOT_ADDING && !memcmp(about->uuid, m->member.uuid.data, NODE_UUID_LEN))
                event_post(rnd_in(1, 50), joined, NULL, NULL, (void *)(uintptr_t)result->member->id, m->slot);
        }
        if (m->request.op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE)
            check_member_answer(m->request.promote, RAFT_VOTER);
        if (m->request.op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE)
            check_member_answer(m->request.remove, -1);
        if (m->request.op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE)
            check_member_answer(m->request.demote, RAFT_STANDBY);
        if (m->request.op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER)
            sim.stats.transfers++;
    }
    free(m->member.uuid.data);
    free(m->member.address);
    free(m->member.cert_name);
    free(m);
}

static void ask(struct sim_node *at, const Raftdir__Cluster__MemberRequest *request, const struct sim_node *about)
{
    struct sim_member *m = xcalloc(1, sizeof *m);
    m->node = at;
    m->request = *request;
    m->posted_at = sim.now;
    if (request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD) {
        m->slot = about->slot;
        raftdir__cluster__member__init(&m->member);
        m->member.address = xmemdup(about->host_port, strlen(about->host_port) + 1);
        m->member.cert_name = xmemdup(about->cert_name, strlen(about->cert_name) + 1);
        m->member.uuid.data = xmemdup(about->uuid, NODE_UUID_LEN);
        m->member.uuid.len = NODE_UUID_LEN;
        m->member.role = RAFTDIR__CLUSTER__ROLE__STANDBY;
        m->request.add = &m->member;
    }
    m->m.request = &m->request;
    m->m.deadline_ms = node_clock(at) + rnd_in(500, 6000);
    m->next = at->members;
    if (m->next)
        m->next->prev = m;
    at->members = m;
    sim.stats.changes++;
    TRACE("admin: asks %" PRIu64 ": %s %" PRIu64, at->id,
          request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD        ? "add"
          : request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE  ? "promote"
          : request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE   ? "remove"
          : request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE   ? "demote"
          : request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER ? "transfer"
                                                                              : "list",
          about ? about->id : 0);
    node_enter(at);
    node_member_op(at->node, node_clock(at), &m->m);
    node_leave(at);
}

/* A member's state differs, or is about to, or its disk is lost. */
static bool in_trouble(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++) {
        const struct sim_node *n = &sim.nodes[i];
        if (n->state != SLOT_SPARE && (n->rotting || n->differs || n->condemned || n->lost))
            return true;
    }
    return false;
}

static void change(struct event *ev)
{
    (void)ev;
    if (sim.healing)
        return;
    event_post(rnd_in(sim.config.admin_min_ms, sim.config.admin_max_ms), change, NULL, NULL, NULL, 0);
    struct sim_node *at = chance(500) ? node_leader() : node_random_up();
    if (!at || at->failed || at->paused_until > sim.now || at->state != SLOT_MEMBER)
        return;
    Raftdir__Cluster__MemberRequest request;
    raftdir__cluster__member_request__init(&request);
    struct raft_configuration conf;
    model_members(&conf);
    unsigned voters = 0;
    for (unsigned i = 0; i < conf.n; i++)
        voters += conf.servers[i].role == RAFT_VOTER;
    struct sim_node *about = &sim.nodes[rnd_in(0, sim.config.slots - 1)];
    const struct raft_server *server = NULL;
    for (unsigned i = 0; i < conf.n; i++)
        if (conf.servers[i].id == about->id)
            server = &conf.servers[i];
    bool quiet = sim.hurting || in_trouble(); /* nobody takes a member out while another is in trouble */
    bool growing = voters < sim.config.voters && !(sim.config.churn && voters > 1 && chance(500)); /* towards the size that the seed wants */
    if (about->state == SLOT_SPARE || about->state == SLOT_ADDING) {
        if (conf.n && (growing || chance(600)) && sim.id_max < IDS_MAX - 8) {
            about->state = SLOT_ADDING;
            request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD;
        }
    } else if (server && server->role == RAFT_STANDBY) {
        if (growing || chance(700)) {
            if (voters < VOTERS_MAX) {
                request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE;
                request.promote = about->id;
            }
        } else if (!quiet) {
            request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
            request.remove = about->id;
        }
    } else if (server && !growing && !quiet && voters > 1 && chance(sim.config.churn ? 700 : 400)) {
        if (chance(250)) {
            request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE;
            request.demote = about->id;
        } else {
            request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
            request.remove = about->id;
        }
    } else if (server && chance(300)) {
        request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER;
        request.transfer = chance(500) ? about->id : 0;
    } else if (chance(100)) {
        request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST;
        request.list = true;
    }
    raft_configuration_close(&conf);
    if (request.op_case != RAFTDIR__CLUSTER__MEMBER_REQUEST__OP__NOT_SET)
        ask(at, &request, about);
}

/* --- Members beyond repair -------------------------------------------------------------------------------------------------- */

bool admin_repairing(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        if (sim.nodes[i].state == SLOT_MEMBER && sim.nodes[i].condemned)
            return true;
    return false;
}

/* One that differs or is lost has to be taken out by the others: three voters at least, and no change under way that would make them fewer. */
bool admin_may_hurt(void)
{
    struct raft_configuration conf;
    unsigned voters = 0;
    for (unsigned i = 0; i < sim.config.slots; i++) {
        const struct sim_node *n = &sim.nodes[i];
        for (uint64_t k = log_last(&n->disk.log); k > check_committed(); k--)
            if (k > n->disk.log.base && log_at(&n->disk.log, k)->type == RAFT_CHANGE)
                return false;
        for (uint64_t k = n->up ? log_last(&n->log) : 0; k > check_committed() && k > n->log.base; k--)
            if (log_at(&n->log, k)->type == RAFT_CHANGE)
                return false;
    }
    model_members(&conf);
    for (unsigned i = 0; i < conf.n; i++)
        voters += conf.servers[i].role == RAFT_VOTER;
    raft_configuration_close(&conf);
    return voters >= 3 && !in_trouble();
}

/* A member that is beyond repair is removed; then its machine is wiped (`admin_sweep`), and may come back as another. Asked until it is done. */
static void repair(struct event *ev)
{
    (void)ev;
    event_post(rnd_in(200, 900), repair, NULL, NULL, NULL, 0);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        const struct sim_node *n = &sim.nodes[i];
        if (n->state != SLOT_MEMBER || !n->condemned)
            continue;
        struct sim_node *at = chance(700) ? node_leader() : node_random_up();
        if (!at || !node_serves(at) || at->paused_until > sim.now)
            continue;
        Raftdir__Cluster__MemberRequest request;
        raftdir__cluster__member_request__init(&request);
        request.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE;
        request.remove = n->id;
        sim.stats.repairs++;
        ask(at, &request, n);
        return; /* one at a time: `at` may have died of it */
    }
}

void admin_start(void)
{
    struct err err;
    if (sim.config.bootstrap_one) {
        struct entry *e = node_bootstrap_entry(1, sim.nodes[0].address, &err);
        if (!e)
            sim_violation("bootstrap", "%s", err.text);
        check_first_entry(e);
        log_append(&sim.nodes[0].disk.log, &e, 1);
        entry_unref(e);
        sim.nodes[0].disk.term = 1;
        boot_member(&sim.nodes[0], 1);
    } else {
        struct entry *e = first_entry(sim.config.voters);
        check_first_entry(e);
        for (unsigned i = 0; i < sim.config.voters; i++) {
            log_append(&sim.nodes[i].disk.log, &e, 1);
            sim.nodes[i].disk.term = 1;
            boot_member(&sim.nodes[i], i + 1);
        }
        entry_unref(e);
    }
    if (sim.config.admin_max_ms)
        event_post(rnd_in(300, 2000), change, NULL, NULL, NULL, 0);
    event_post(100, sweep, NULL, NULL, NULL, 0);
    event_post(500, repair, NULL, NULL, NULL, 0);
}
