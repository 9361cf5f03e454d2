/* sim_fault.c - what the seed chooses: the size of the cluster, the manners of its network and disks, and when which fault strikes. */
#include "sim.h"
#include <inttypes.h>
#include <string.h>
#include "raftdir/image.h"

void fault_config(void)
{
    struct sim_config *c = &sim.config;
    enum profile profile = sim.options.profile;
    if (profile == PROFILE_MIXED) {
        unsigned which = rnd_in(0, 9);
        profile = which == 0 ? PROFILE_CALM : which <= 5 ? PROFILE_NORMAL : PROFILE_CHAOS;
    }
    memset(c, 0, sizeof *c);
    c->profile = profile;
    unsigned size = rnd_in(0, 19);
    c->voters = sim.options.nodes ? sim.options.nodes : size < 12 ? 3 : size < 17 ? 5 : size < 18 ? 4 : size < 19 ? 7 : 2;
    c->bootstrap_one = chance(300);
    c->slots = c->voters + rnd_in(0, 2);
    if (c->slots > SLOTS_MAX)
        c->slots = SLOTS_MAX;
    c->fifo = chance(600);
    c->latency_max_ms = chance(800) ? rnd_in(1, 8) : rnd_in(8, 30);
    c->flush_max_ms = rnd_in(0, 6);
    c->apply_max_ms = rnd_in(0, 5);
    c->election_timeout_ms = chance(700) ? 0 : rnd_in(300, 1000);
    c->heartbeat_ms = c->election_timeout_ms ? c->election_timeout_ms / 5 : 0;
    c->clients = rnd_in(2, CLIENTS_MAX);
    c->think_max_ms = chance(200) ? 10 : rnd_in(60, 250);
    c->read_chance = rnd_in(100, 500);
    c->big = chance(60);
    c->sync_min_ms = chance(500) ? 50 : 300;
    c->sync_max_ms = chance(500) ? 600 : 2500;
    c->log_keep_entries = chance(850) ? rnd_in(1, chance(600) ? 30 : 300) : 0;
    c->log_keep_len = chance(500) ? rnd_in(200, 20000) : 0;
    c->log_hold_len_max = c->log_keep_len && chance(600) ? rnd_in(1000, 100000) : 0;
    c->log_unapplied_len_max = chance(200) ? rnd_in(1000, 30000) : 0;
    image_chunk_len = rnd_in(200, chance(500) ? 2000 : 20000);
    image_commit_len = chance(500) ? rnd_in(1, 50000) : IMAGE_COMMIT_LEN;
    c->segment_entries = chance(300) ? 1 : rnd_in(2, 40);
    c->cut_put_off = rnd_in(0, 600);
    c->image_ms = chance(700) ? rnd_in(20, 600) : rnd_in(600, 4000);
    c->busy_end = !c->log_hold_len_max && !c->log_unapplied_len_max; /* else nobody promises that a member can catch up under writes */
    if (profile == PROFILE_CALM) {
        c->admin_min_ms = 500;
        c->admin_max_ms = 5000;
        return;
    }
    bool chaos = profile == PROFILE_CHAOS;
    c->loss = rnd_in(0, chaos ? 100 : 40);
    c->duplicate = rnd_in(0, chaos ? 80 : 30);
    c->straggle = rnd_in(0, chaos ? 40 : 15);
    c->crash_point = chance(600) ? rnd_in(1, chaos ? 60 : 15) : 0;
    c->power_loss = rnd_in(0, 1000);
    c->io_error = chance(200) ? rnd_in(1, 40) : 0;
    c->slow_disk = rnd_in(0, chaos ? 30 : 10);
    c->fault_min_ms = chaos ? 150 : 500;
    c->fault_max_ms = chaos ? 2500 : 7000;
    c->admin_min_ms = chaos ? 50 : 300;
    c->admin_max_ms = chaos ? 1500 : 5000;
    c->image_break = chance(700) ? rnd_in(0, chaos ? 60 : 20) : 0;
    c->image_damage = chance(300) ? rnd_in(1, 10) : 0;
    c->rot = chance(200) || planted(PLANT_UNSEEN_ROT);
    c->disk_loss = !c->rot && (chance(300) || planted(PLANT_CLONE));
    c->reply_loss = rnd_in(0, chaos ? 100 : 30);
    c->churn = chance(chaos ? 300 : 100);
    if (c->churn) {
        if (!sim.options.nodes && c->voters > 3)
            c->voters = rnd_in(2, 3);
        c->slots = c->voters + rnd_in(1, 2);
        c->admin_min_ms = 10;
        c->admin_max_ms = 200;
        c->fault_max_ms = chaos ? 1200 : 4000;
        c->rot = c->disk_loss = false; /* it would be the operator who stops the cluster */
    }
}

static void heal_net(struct event *ev)
{
    (void)ev;
    if (!sim.healing)
        net_heal();
}

static void crash_all(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++)
        node_crash(&sim.nodes[i], rnd_in(20, 1500));
}

static void strike(struct event *ev)
{
    (void)ev;
    if (sim.healing)
        return;
    unsigned what = rnd_in(0, 99);
    struct sim_node *n = chance(400) ? node_leader() : node_random_up();
    if (what < 38) {
        if (n)
            node_crash(n, rnd_in(20, 4000));
    } else if (what < 42) {
        crash_all();
    } else if (what < 46) { /* a majority at once */
        for (unsigned i = 0; i < sim.config.slots; i++)
            if (chance(600))
                node_crash(&sim.nodes[i], rnd_in(20, 3000));
    } else if (what < 62) {
        net_partition();
    } else if (what < 74) {
        if (n)
            net_isolate(n);
    } else if (what < 86) {
        if (n)
            node_pause(n, rnd_in(50, 3500));
    } else if (what < 90) {
        if (n) {
            n->disk.slow_until = sim.now + rnd_in(500, 4000);
            TRACE("fault: the disk of machine %u is slow", n->slot + 1);
        }
    } else if (what < 97) {
        unsigned how = rnd_in(0, 9), ms = rnd_in(300, 3000);
        if (n && n->up && how < 5)
            node_lack_space(n, NODE_SPACE_LOW, ms);
        else if (n && n->up && how < 7)
            node_lack_space(n, NODE_SPACE_NONE, ms);
        else if (n && n->up)
            node_fill_disk(n, ms);
    } else {
        net_heal();
    }
    event_post(rnd_in(sim.config.fault_min_ms, sim.config.fault_max_ms), heal_net, NULL, NULL, NULL, 0);
    event_post(rnd_in(sim.config.fault_min_ms, sim.config.fault_max_ms), strike, NULL, NULL, NULL, 0);
}

/* A member's state comes to differ, or its disk is lost. Not while the operator still waits for the answer to a removal. */
static void hurt(struct event *ev)
{
    (void)ev;
    sim.hurting = false;
    struct sim_node *n = chance(300) ? node_leader() : node_random_up();
    if (sim.healing || !n || !node_serves(n) || !admin_may_hurt())
        return;
    if (sim.config.rot) {
        n->rotting = true;
        TRACE("fault: the state of machine %u is about to rot", n->slot + 1);
    } else {
        node_lose_disk(n);
    }
}

static void hurt_later(struct event *ev)
{
    (void)ev;
    sim.hurting = true;
    event_post(8000, hurt, NULL, NULL, NULL, 0);
}

void fault_start(void)
{
    if (sim.config.rot || sim.config.disk_loss)
        event_post(rnd_in(100, 8000), hurt_later, NULL, NULL, NULL, 0);
    if (sim.config.fault_max_ms)
        event_post(rnd_in(1500, 4000), strike, NULL, NULL, NULL, 0);
}

/* From here on nothing fails any more. */
void fault_heal(void)
{
    sim.healing = true;
    net_heal();
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[i];
        n->disk.slow_until = n->disk.full_until = 0;
        if (!n->up && n->state == SLOT_MEMBER && !n->condemned)
            node_up(n);
    }
    admin_sweep();
}
