/* sim_node.c - one process: the real driver with a simulated world around it, its clock, its deaths and its pauses.
 *
 * A process dies between events, or inside any call that the driver makes into the world (`doomed`): from that moment nothing leaves it
 * any more, and it is thrown away when the driver returns. What its disk keeps is up to sim_disk.c and sim_apply.c. */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WALL_BASE_MS 1767225600000ull

/* --- Clocks ------------------------------------------------------------------------------------------------------------------ */

uint64_t node_clock(const struct sim_node *n)
{
    uint64_t elapsed = sim.now - n->up_since;
    return n->clock_base + elapsed + (uint64_t)((int64_t)elapsed * n->drift / 1000);
}

/* World time until the node's clock shows `local`. */
static uint64_t node_delay(const struct sim_node *n, uint64_t local)
{
    uint64_t now = node_clock(n);
    if (local <= now)
        return 0;
    if (local - now > 60000)
        return 60000;
    return (local - now) * 1000 / (uint64_t)(1000 + n->drift) + 1;
}

/* --- The world as the driver sees it ------------------------------------------------------------------------------------------ */

static bool dies_here(struct sim_node *n)
{
    if (!sim.healing && !n->doomed && rnd() % 100000 < sim.config.crash_point) {
        n->doomed = true;
        sim.stats.crash_points++;
        TRACE("node: %" PRIu64 " dies inside a call", n->id);
    }
    return n->doomed;
}

static int io_meta_write(void *data, uint64_t term, uint64_t voted_for)
{
    struct sim_node *n = data;
    return n->doomed ? RAFTDIR_EIO : disk_meta_write(n, term, voted_for);
}

static void io_log_write(void *data, struct log_batch *batch)
{
    struct sim_node *n = data;
    if (n->doomed || (dies_here(n) && chance(500)))
        disk_log_lose(n, batch); /* the driver may look at it until it is gone itself */
    else
        disk_log_write(n, batch);
}

static void io_apply(void *data, struct apply_batch *batch)
{
    struct sim_node *n = data;
    if (n->doomed || dies_here(n))
        apply_batch_destroy(&batch);
    else
        apply_submit(n, batch);
}

static void io_send(void *data, uint64_t to, const uint8_t *frame, size_t len)
{
    struct sim_node *n = data;
    if (len > PEER_FRAME_LEN_MAX)
        sim_violation("limits", "member %" PRIu64 " sends a frame of %zu bytes", n->id, len);
    if (n->doomed || n->ending || dies_here(n))
        return;
    uint8_t *other;
    if (sim.options.plant && plant_frame(n, frame, len, &other, &len)) {
        if (len)
            net_send(n, to, other, len);
        free(other);
        return;
    }
    net_send(n, to, frame, len);
}

static void io_write_done(void *data, struct node_write *w, int code, const uint8_t *result, size_t len)
{
    (void)data;
    client_write_done((struct sim_write *)w, code, result, len);
}

static void io_read_done(void *data, struct node_read *r, int code, uint64_t index)
{
    (void)data;
    client_read_done((struct sim_read *)r, code, index);
}

static void io_member_done(void *data, struct node_member_op *m, const Raftdir__Cluster__MemberResult *result)
{
    (void)data;
    admin_done((struct sim_member *)m, result);
}

static void io_nothing(void *data)
{
    (void)data;
}

static void io_log_cut(void *data, uint64_t index)
{
    struct sim_node *n = data;
    TRACE("node: %" PRIu64 " doesn't need its log up to %" PRIu64, n->id, index);
    check_cut(n, index);
    if (!n->doomed && !dies_here(n))
        disk_log_cut(n, index);
}

static void io_image_wanted(void *data, uint64_t index, uint64_t term)
{
    struct sim_node *n = data;
    (void)term;
    if (!n->doomed && !n->ending)
        image_wanted(n, index);
}

static void io_alarm(void *data, const char *text)
{
    const struct sim_node *n = data;
    TRACE("node: %" PRIu64 " alarm: %s", n->id, text);
}

static void io_failed(void *data, int code, const char *why)
{
    struct sim_node *n = data;
    n->failed = true;
    TRACE("node: %" PRIu64 " failed: %s (%s)", n->id, why, err_name(code));
    check_failed(n, code, why);
    if (!n->doomed && code == RAFTDIR_ECORRUPT)
        n->condemned = true;
}

static uint64_t io_wall_ms(void *data)
{
    const struct sim_node *n = data;
    return WALL_BASE_MS + sim.now + (uint64_t)n->wall_skew_ms;
}

/* --- Identity --------------------------------------------------------------------------------------------------------------------- */

void node_new_identity(struct sim_node *n)
{
    n->id = n->term_seen = 0;
    n->rotting = n->differs = n->differs_now = n->condemned = n->lost = n->clone = false;
    n->lives++;
    for (unsigned i = 0; i < NODE_UUID_LEN; i++)
        n->uuid[i] = (uint8_t)rnd();
    snprintf(n->host_port, sizeof n->host_port, "10.0.0.%u:%u", n->slot + 1, 7000 + n->lives);
    snprintf(n->cert_name, sizeof n->cert_name, "dir%u.example.org", n->slot + 1);
    struct err err;
    if (node_address_format(n->host_port, n->cert_name, n->uuid, n->address, sizeof n->address, &err))
        sim_violation("address", "%s", err.text);
}

void node_init(struct sim_node *n, unsigned slot)
{
    memset(n, 0, sizeof *n);
    n->slot = slot;
    disk_init(n);
    node_new_identity(n);
}

/* --- Life and death --------------------------------------------------------------------------------------------------------------- */

static void tick(struct event *ev);

static void arm(struct sim_node *n)
{
    uint64_t local = node_clock(n), deadline = node_deadline(n->node, local);
    uint64_t delay = node_delay(n, deadline);
    if (!delay)
        delay = 1; /* a driver that always wants to be called at once would never let time go on */
    if (!sim.healing && chance(50))
        delay += rnd_in(1, 5);
    if (n->tick_at && n->tick_at > sim.now && n->tick_at <= sim.now + delay)
        return; /* an earlier tick is armed: it will look again */
    n->tick_at = sim.now + delay;
    event_post(delay, tick, NULL, n, NULL, ++n->tick_gen);
}

static void tick(struct event *ev)
{
    struct sim_node *n = ev->node;
    if (ev->a != n->tick_gen)
        return;
    n->tick_at = 0;
    if (node_deadline(n->node, node_clock(n)) > node_clock(n)) {
        arm(n);
        return;
    }
    node_enter(n);
    node_tick(n->node, node_clock(n));
    node_leave(n);
}

static void flush(struct event *ev)
{
    struct sim_node *n = ev->node;
    unsigned epoch = n->epoch;
    node_enter(n);
    node_flush(n->node, node_clock(n));
    node_leave(n); /* `flush_posted` still stands: a flush needs no flush after it */
    if (n->up && n->epoch == epoch)
        n->flush_posted = false;
}

void node_flush_soon(struct sim_node *n)
{
    if (n->flush_posted)
        return;
    n->flush_posted = true;
    event_post(chance(700) ? 0 : rnd_in(1, 3), flush, NULL, n, NULL, 0);
}

void node_enter(struct sim_node *n)
{
    if (n->busy || !n->up || n->doomed)
        sim_violation("simulation", "a call into a driver that is not there");
    n->busy = true;
}

/* What is known to be wrong stays down (raftdir/datadir.h); what is gone can't start. */
static bool may_start(const struct sim_node *n)
{
    return !n->up && n->state == SLOT_MEMBER && (!n->condemned || n->clone);
}

static void restart(struct event *ev)
{
    struct sim_node *n = &sim.nodes[ev->a];
    if (may_start(n) && (unsigned)(uintptr_t)ev->data == n->epoch)
        node_up(n);
}

static void restart_later(struct sim_node *n, uint64_t delay)
{
    event_post(delay, restart, NULL, NULL, (void *)(uintptr_t)n->epoch, n->slot);
}

static void die_of_failure(struct event *ev)
{
    node_crash(ev->node, rnd_in(50, 1500));
}

void node_leave(struct sim_node *n)
{
    bool had_failed = n->status.state == NODE_FAILED;
    n->busy = false;
    node_status_get(n->node, node_clock(n), &n->status);
    check_node(n);
    if (n->doomed) {
        node_crash(n, rnd_in(50, 3000));
        return;
    }
    if (n->failed && !n->condemned && !had_failed) /* the daemon ends by itself; until then it does nothing more. A corrupt one stays, and says why */
        event_post(rnd_in(1, 200), die_of_failure, NULL, n, NULL, 0);
    node_flush_soon(n);
    arm(n);
}

static void sync_later(struct sim_node *n);

static void sync_now(struct event *ev)
{
    if (!ev->node->failed)
        apply_sync(ev->node);
    if (planted(PLANT_IMAGE_OLD) && ev->node->slot == 1)
        image_wanted(ev->node, 1);
    sync_later(ev->node);
}

static void sync_later(struct sim_node *n)
{
    event_post(rnd_in(sim.config.sync_min_ms, sim.config.sync_max_ms), sync_now, NULL, n, NULL, 0);
}

void node_up(struct sim_node *n)
{
    static const struct node_io io = {.meta_write = io_meta_write,
                                      .log_write = io_log_write,
                                      .apply = io_apply,
                                      .send = io_send,
                                      .write_done = io_write_done,
                                      .read_done = io_read_done,
                                      .member_done = io_member_done,
                                      .members_changed = io_nothing,
                                      .role_changed = io_nothing,
                                      .failed = io_failed,
                                      .wall_ms = io_wall_ms,
                                      .log_cut = io_log_cut,
                                      .image_wanted = io_image_wanted,
                                      .alarm = io_alarm};
    struct node_io mine = io;
    struct node_options options = {.id = n->id,
                                   .cluster_id = CLUSTER_ID,
                                   .incarnation = 1,
                                   .seed = (unsigned)rnd(),
                                   .election_timeout_ms = sim.config.election_timeout_ms,
                                   .heartbeat_ms = sim.config.heartbeat_ms,
                                   .guards_off = sim.options.guards_off,
                                   .log_keep_len = sim.config.log_keep_len,
                                   .log_keep_entries = sim.config.log_keep_entries,
                                   .log_hold_len_max = sim.config.log_hold_len_max,
                                   .log_unapplied_len_max = sim.config.log_unapplied_len_max};
    struct store_checkpoint checkpoints[DIGESTS_KEPT];
    struct node_boot boot;
    struct store_txn *txn;
    struct err err;
    mine.data = n;
    apply_open(n);
    if (store_read_begin(n->store, &txn, &err))
        sim_violation("store", "member %" PRIu64 ": %s", n->id, err.text);
    memset(&boot, 0, sizeof boot);
    boot.term = n->disk.term;
    boot.voted_for = n->disk.voted_for;
    uint64_t conf_index;
    boot.checkpoints = checkpoints;
    boot.checkpoints_n = DIGESTS_KEPT;
    if (store_meta_get(txn, &boot.meta, &err) || store_configuration_get(txn, &boot.configuration, &boot.configuration_len, &conf_index, &err) ||
        store_checkpoints_get(txn, checkpoints, &boot.checkpoints_n, &err))
        sim_violation("store", "member %" PRIu64 ": %s", n->id, err.text);
    check_boot_log(n, boot.meta.applied_index);
    if (n->differs) { /* a power loss, or an image, may have made it good: if no digest that it has recorded says otherwise */
        n->differs_now = !check_same_state(boot.meta.applied_index, boot.meta.digest);
        n->differs = n->differs_now;
        for (size_t i = 0; i < boot.checkpoints_n && !n->differs; i++)
            n->differs = !check_same_state(checkpoints[i].index, checkpoints[i].digest);
    }
    boot.log_first = n->disk.log.base + 1;
    boot.entries_n = n->disk.log.n;
    boot.entries = xcalloc(boot.entries_n, sizeof(struct entry *));
    for (size_t i = 0; i < boot.entries_n; i++)
        boot.entries[i] = entry_ref(n->disk.log.e[i]);
    log_copy(&n->log, &n->disk.log, UINT64_MAX);
    n->epoch++;
    n->up = true;
    n->doomed = n->failed = n->busy = n->flush_posted = n->was_leader = false;
    n->up_since = n->resumed_at = sim.now;
    n->paused_until = 0;
    n->drift = (int)rnd_in(0, 10) - 5;
    n->clock_base = rnd_in(1, 100000000);
    n->wall_skew_ms = chance(300) ? (int64_t)rnd_in(0, 4000000) - 2000000 : 0;
    n->tick_at = 0;
    n->applied_seen = boot.meta.applied_index;
    n->commit_seen = n->synced_told = n->synced_before = 0;
    if (n->space == NODE_SPACE_NONE)
        n->none_at = sim.now;
    n->space = NODE_SPACE_OK;
    memset(&n->status, 0, sizeof n->status);
    TRACE("node: %" PRIu64 " starts on machine %u: term %" PRIu64 ", log %" PRIu64 "..%" PRIu64 ", applied %" PRIu64, n->id, n->slot + 1, boot.term,
          boot.log_first, log_last(&n->log), boot.meta.applied_index);
    check_boot(n, boot.term, boot.voted_for);
    if (node_create(&options, &mine, &boot, &n->node, &err))
        sim_violation("start", "member %" PRIu64 ": %s", n->id, err.text);
    store_read_end(&txn);
    sync_later(n);
    unsigned epoch = n->epoch;
    node_enter(n);
    if (node_start(n->node, node_clock(n)) && !n->doomed)
        sim_violation("start", "member %" PRIu64 " can't start", n->id);
    node_leave(n);
    if (n->up && n->epoch == epoch && n->disk.full_until > sim.now)
        node_lack_space(n, NODE_SPACE_NONE, n->disk.full_until - sim.now);
}

/* The driver is gone; its requests have ended. */
static void process_end(struct sim_node *n, bool power_loss)
{
    node_destroy(&n->node);
    client_reads_lost(n);
    if (n->writes || n->reads || n->members)
        sim_violation("requests", "member %" PRIu64 " was destroyed without ending its requests", n->id);
    image_fetch_drop(n);
    image_send_drop(n);
    apply_crash(n, power_loss);
    disk_crash(n, power_loss);
    net_reset(n);
    n->up = n->busy = n->doomed = n->ending = false;
    n->epoch++;
    n->paused_until = 0;
    memset(&n->status, 0, sizeof n->status);
}

void node_crash(struct sim_node *n, uint64_t restart_ms)
{
    if (!n->up)
        return;
    bool power_loss = chance(sim.config.power_loss);
    sim.stats.crashes++;
    TRACE("node: %" PRIu64 " dies%s", n->id, power_loss ? ", power lost" : "");
    n->doomed = true; /* what the driver calls back now reaches nobody */
    process_end(n, power_loss);
    if (planted(PLANT_WRONG_INDEX_ROW))
        plant_break_index(n->disk.dir);
    if (restart_ms && may_start(n))
        restart_later(n, chance(300) ? rnd_in(1, 30) : restart_ms); /* some are back before anybody has noticed */
}

void node_pause(struct sim_node *n, uint64_t ms)
{
    uint64_t end = sim.started + sim.options.duration_ms; /* of the faults */
    if (!n->up || n->paused_until > sim.now || sim.now >= end)
        return; /* a pause is never cut short: what was kept back for its end is on its way */
    if (ms > end - sim.now)
        ms = end - sim.now;
    n->paused_until = n->resumed_at = sim.now + ms;
    sim.stats.pauses++;
    TRACE("node: %" PRIu64 " is paused for %" PRIu64 " ms", n->id, ms);
}

/* The daemon stops node, log and apply, puts the staged generation in the place of the current one, and starts them again. Whenever it dies, it has one of
 * the two: all of it is durable. */
void node_image(struct sim_node *n, uint64_t index, uint64_t term)
{
    if (!sim.healing && chance(50)) {
        TRACE("image: %" PRIu64 " dies before it takes the place", n->id);
        node_crash(n, rnd_in(50, 3000));
        return;
    }
    n->ending = true;
    process_end(n, false);
    disk_image(n, index);
    apply_image(n);
    n->disk.synced = n->disk.applied = index;
    sim.stats.images++;
    TRACE("image: index %" PRIu64 ", term %" PRIu64 " takes the place of state and log of %" PRIu64, index, term, n->id);
    restart_later(n, !sim.healing && chance(100) ? rnd_in(50, 3000) : rnd_in(1, 30));
}

/* --- Space and disks --------------------------------------------------------------------------------------------------------------- */

static void space_set(struct sim_node *n, enum node_space space)
{
    if (n->space == NODE_SPACE_NONE)
        n->none_at = sim.now;
    n->space = space;
    if (!planted(PLANT_SPACE_UNTOLD))
        node_space_set(n->node, space);
}

static void space_again(struct event *ev)
{
    if (ev->a == ev->node->space_gen)
        space_set(ev->node, NODE_SPACE_OK);
}

/* What the daemon says when there is little room on its disk or in its map. */
void node_lack_space(struct sim_node *n, enum node_space space, uint64_t ms)
{
    TRACE("node: %" PRIu64 " has %s space for %" PRIu64 " ms", n->id, space == NODE_SPACE_LOW ? "little" : "no", ms);
    space_set(n, space);
    event_post(ms, space_again, NULL, n, NULL, ++n->space_gen);
}

/* Neither log nor state can be written; the daemon tries again and again, and says so. */
void node_fill_disk(struct sim_node *n, uint64_t ms)
{
    n->disk.full_until = sim.now + ms;
    node_lack_space(n, NODE_SPACE_NONE, ms);
}

static void clone_up(struct event *ev)
{
    struct sim_node *n = &sim.nodes[ev->a];
    if (may_start(n))
        node_up(n);
}

/* The data directory is gone. What the member had promised counts, but nobody can keep it: the operator takes it out, and the machine joins anew. Meanwhile
 * somebody may start an old copy of the directory, with the id in its IDENTITY and another UUID. */
void node_lose_disk(struct sim_node *n)
{
    struct raft_configuration conf;
    node_crash(n, 0);
    size_t members = model_members_at(n->disk.applied, &conf);
    unsigned voters = 0;
    for (size_t i = 0; i < members; i++)
        voters += conf.servers[i].role == RAFT_VOTER;
    raft_configuration_close(&conf);
    bool clone = voters > 1 && chance(500); /* a sole voter's copy would lead itself: nobody could keep it from that */
    TRACE("node: %" PRIu64 " loses its disk%s", n->id, clone ? "; a copy of it is started" : "");
    sim.stats.disks_lost++;
    disk_lose(n, clone);
    sim.by_id[n->id] = planted(PLANT_CLONE) ? n : NULL;
    n->lost = n->condemned = true;
    n->rotting = n->differs = false;
    n->clone = clone;
    n->term_seen = 0;
    if (!clone) {
        apply_wipe(n);
        return;
    }
    for (unsigned i = 0; i < NODE_UUID_LEN; i++)
        n->clone_uuid[i] = (uint8_t)rnd();
    event_post(rnd_in(1, 1000), clone_up, NULL, NULL, NULL, n->slot);
}

bool node_serves(const struct sim_node *n)
{
    return n->up && n->state == SLOT_MEMBER && !n->failed && !n->lost;
}

struct sim_node *node_random_up(void)
{
    unsigned first = rnd_in(0, sim.config.slots - 1);
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[(first + i) % sim.config.slots];
        if (n->up && n->state == SLOT_MEMBER)
            return n;
    }
    return NULL;
}

struct sim_node *node_leader(void)
{
    struct sim_node *leader = NULL;
    for (unsigned i = 0; i < sim.config.slots; i++) {
        struct sim_node *n = &sim.nodes[i];
        if (n->up && n->status.state == NODE_LEADER && (!leader || n->status.term > leader->status.term))
            leader = n;
    }
    return leader;
}
