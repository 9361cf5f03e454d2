/* thread_consensus_member.c - how this node becomes a member (at a start, by bootstrap or adoption), and how it ends being one.
 *
 * Making a member (DESIGN D12; datadir.h has the invariant): an empty gen-1, the log and state in it, ports bound, then IDENTITY. What a crash
 * leaves before IDENTITY is removed by the next attempt; after it, this is a restart.
 *
 * A start whose log or state is damaged (RAFTDIR_ECORRUPT) is no error here: the caller makes it a failed node, which answers Status with the reason. Nothing
 * of what it has is repaired, cut or removed: an operator may want to look at it, and its peers have the data.
 *
 * Reset: what failed, or was removed, becomes a new node: nothing is open any more, then datadir_reset. From its return on this process is that of another node,
 * with another UUID; a crash within it leaves the old member without a log, which doesn't start, or the new node. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include "consensus_internal.h"
#include "fault.h"
#include "logger.h"
#include "thread_service.h"

/* --- Making and opening a member ------------------------------------------------------------------------------------------------------------ */

static int boot_state(struct consensus *c, struct node_boot *boot, struct store_checkpoint checkpoints[DIGESTS_KEPT], struct store_txn **txn_r, struct err *err)
{
    int rc = store_sync(c->store, err); /* what a process that was killed had committed may not have reached the disk yet */
    if (rc != 0 || (rc = store_read_begin(c->store, txn_r, err)) != 0)
        return rc;
    rc = store_meta_get(*txn_r, &boot->meta, err);
    if (rc == 0)
        rc = store_configuration_get(*txn_r, &boot->configuration, &boot->configuration_len, &boot->meta.configuration_index, err);
    boot->checkpoints_n = DIGESTS_KEPT;
    if (rc == 0)
        rc = store_checkpoints_get(*txn_r, checkpoints, &boot->checkpoints_n, err);
    boot->checkpoints = checkpoints;
    return rc;
}

/* The first entry of a new cluster, durable, in term 1. */
static int bootstrap_log(struct consensus *c, struct seglog_found *found, struct err *err)
{
    struct daemon *d = c->d;
    char address[NODE_ADDRESS_SIZE];
    int rc = node_address_format(d->config->peer_advertise, d->cert_name, d->uuid, address, sizeof address, err);
    if (rc != 0)
        return rc;
    struct entry *e = node_bootstrap_entry(c->identity.node_id, address, err);
    if (!e)
        return RAFTDIR_ENOMEM;
    struct log_batch *batch = log_batch_create(&e, 1);
    if (!batch)
        mem_exhausted("bootstrap");
    if ((rc = seglog_vote(d->log, 1, 0, err)) == 0)
        rc = seglog_write(d->log, batch, err);
    log_batch_destroy(&batch);
    if (rc != 0) {
        entry_unref(e);
        return rc;
    }
    free(found->entries);
    found->entries = mem_alloc(sizeof *found->entries);
    found->entries[0] = e;
    found->entries_n = 1;
    found->first = 1;
    found->term = 1;
    found->voted_for = 0;
    return 0;
}

/* A data directory that was copied or carried to another node: two of them would take each other's connections. */
static int self_check(struct consensus *c, const struct node_boot *boot, struct err *err)
{
    const struct daemon *d = c->d;
    struct node_peer self;
    int rc = node_boot_self(boot, c->identity.node_id, &self, err);
    if (rc != 0)
        return rc == RAFTDIR_ENOTFOUND ? 0 : rc;
    if (strcmp(self.cert_name, d->cert_name) != 0 || strcmp(self.host_port, d->config->peer_advertise) != 0)
        return err_set(err, RAFTDIR_EFOREIGN,
                       "data_dir is that of member %" PRIu64 ", certificate \"%s\", at %s; this configuration has the certificate \"%s\" and peer_advertise %s: "
                       "is it a copy of another node's? To give a member another address or name, remove it and join it anew with an empty data_dir",
                       self.id, self.cert_name, self.host_port, d->cert_name, d->config->peer_advertise);
    return 0;
}

static void node_options_get(struct consensus *c, struct node_options *o_r)
{
    const struct config *config = c->d->config;
    *o_r = (struct node_options){.id = c->identity.node_id,
                                 .cluster_id = c->identity.cluster_id,
                                 .incarnation = c->identity.incarnation,
                                 .election_timeout_ms = config->election_timeout_ms,
                                 .heartbeat_ms = config->heartbeat_ms,
                                 .log_keep_len = config->log_keep_len};
    if (getrandom(&o_r->seed, sizeof o_r->seed, 0) != sizeof o_r->seed)
        o_r->seed = (unsigned)uv_hrtime();
}

/* A log that was made for an image, and is open already. */
static int log_take(struct consensus *c, struct seglog **staged, uint64_t base, struct seglog_found *found_r)
{
    c->d->log = *staged;
    *staged = NULL;
    found_r->first = base + 1;
    found_r->term = c->term;
    found_r->voted_for = c->voted_for;
    return 0;
}

/* The log of the current generation, as found; for a new member with what makes it one. */
static int log_open(struct consensus *c, enum make make, struct seglog_found *found_r, struct err *err)
{
    struct daemon *d = c->d;
    char path[PATH_MAX];
    struct seglog_identity who = {.cluster_id = c->identity.cluster_id, .incarnation = c->identity.incarnation};
    memcpy(who.uuid, d->uuid, NODE_UUID_LEN);
    int rc;
    if ((rc = datadir_path(d->datadir, "log", path, sizeof path, err)) != 0 || (rc = seglog_open(path, &who, &d->log, found_r, err)) != 0)
        return rc;
    if (found_r->torn_len)
        logger_line(LOGGER_WARN, "log", "cut off %" PRIu64 " bytes that were being written when the node went down; they had not been acknowledged", found_r->torn_len);
    if (make == MAKE_BOOTSTRAP)
        rc = bootstrap_log(c, found_r, err);
    else if (make == MAKE_ADOPT)
        rc = seglog_vote(d->log, found_r->term, found_r->voted_for, err); /* the file is there from now on: datadir_check wants it */
    if (rc != 0)
        seglog_close(&d->log);
    return rc;
}

static int state_open(struct consensus *c, enum make make, struct err *err)
{
    char path[PATH_MAX];
    int rc = datadir_generation(c->d->datadir, &c->generation, err);
    if (rc != 0 || (rc = datadir_path(c->d->datadir, "state/data.mdb", path, sizeof path, err)) != 0)
        return rc;
    if (make == MAKE_RESTART && access(path, F_OK) != 0) /* an empty one must not be made in its place */
        return err_set(err, RAFTDIR_ECORRUPT, "%s, this node's state, is missing", path);
    path[strlen(path) - strlen("/data.mdb")] = '\0';
    fault_opening(true);
    rc = store_open(path, &(struct store_options){.events_kept = c->d->config->events_kept, .group = datadir_group(c->d->datadir)}, &c->store, err);
    if (rc == 0)
        store_map_watch(c->store); /* it is read before it serves */
    fault_opening(false);
    return rc;
}

int consensus_node_open(struct consensus *c, enum make make, struct seglog **staged, uint64_t base, struct err *err)
{
    struct daemon *d = c->d;
    struct seglog_found found = {0};
    struct store_txn *txn = NULL;
    struct store_checkpoint *checkpoints = mem_calloc(DIGESTS_KEPT, sizeof *checkpoints);
    struct node_boot boot = {0};
    int rc = c->store ? 0 : state_open(c, make, err);
    if (rc != 0)
        goto free_checkpoints;
    rc = staged ? log_take(c, staged, base, &found) : log_open(c, make, &found, err);
    if (rc != 0)
        goto close_store;
    if ((rc = boot_state(c, &boot, checkpoints, &txn, err)) != 0 || (rc = apply_members_get(c->store, &c->applied_members, err)) != 0)
        goto close_log;
    boot.term = found.term;
    boot.voted_for = found.voted_for;
    boot.log_first = found.first;
    boot.entries = found.entries;
    boot.entries_n = found.entries_n;
    if ((rc = self_check(c, &boot, err)) != 0)
        goto close_log;
    found.entries = NULL; /* node_create takes them */
    found.entries_n = 0;
    struct node_options options;
    struct node_io io;
    node_options_get(c, &options);
    consensus_node_io(c, &io);
    rc = node_create(&options, &io, &boot, &c->node, err);
    if (rc != 0)
        goto close_log;
    store_read_end(&txn);
    free(checkpoints);
    c->term = boot.term;
    c->voted_for = boot.voted_for;
    c->removed = apply_members_removed(&c->applied_members, c->identity.node_id);
    atomic_store(&d->shared.log_len, seglog_used_len(d->log));
    daemon_log_opened(d);
    logger_line(LOGGER_INFO, "consensus", "state at index %" PRIu64 ", %zu entries in the log, term %" PRIu64, boot.meta.applied_index, boot.entries_n, boot.term);
    return 0;

close_log:
    if (txn)
        store_read_end(&txn);
    seglog_found_clear(&found);
    seglog_close(&d->log);
close_store:
    store_close(&c->store);
free_checkpoints:
    free(checkpoints);
    return rc;
}

/* The order matters: who sees the index published must find the state that has it; and once show_at is 0 the consensus thread removes the generation that readers had. */
void consensus_store_show(struct consensus *c, uint64_t published)
{
    struct daemon *d = c->d;
    daemon_store_set(d, c->store ? store_ref(c->store) : NULL);
    if (c->store) {
        shared_generation_set(&d->shared, c->generation);
        shared_published_set(&d->shared, published);
    }
    atomic_store(&c->show_at, 0);
    for (unsigned i = 0; i < d->services_n; i++)
        service_published(d->services[i], UINT64_MAX); /* whoever waits looks again: without a state it fails */
}

void consensus_member_close(struct consensus *c, bool keep)
{
    struct node_status s;
    uint64_t now = shared_now_ms();
    consensus_image_stop(c);
    consensus_renewal_stop(c);
    if (c->node) {
        node_status_get(c->node, now, &s);
        s.leader = 0;
        s.quorum = false;
        shared_status_set(&c->d->shared, &s, now);
        node_destroy(&c->node);
    }
    consensus_peers_stop(c);
    if (c->senders)
        image_senders_stop(&c->senders);
    consensus_threads_stop(c);
    store_close(&c->store);
    if (keep)
        return;
    consensus_store_show(c, 0);
    daemon_log_close(c->d);
    atomic_store(&c->d->shared.log_len, 0);
}

static uint64_t applied_index(struct consensus *c)
{
    struct node_status s;
    node_status_get(c->node, shared_now_ms(), &s);
    return s.applied_index;
}

int consensus_member_start(struct consensus *c, enum make make, struct err *err)
{
    struct daemon *d = c->d;
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    int rc = make == MAKE_RESTART ? datadir_check(d->datadir, err) : datadir_prepare(d->datadir, err);
    if (rc != 0 || (rc = config_host_port(d->config->peer_listen, host, port, err)) != 0 || (rc = consensus_node_open(c, make, NULL, 0, err)) != 0)
        return rc;
    if (c->removed) {
        /* turn_end says so and ends the node before it has taken part in anything. */
        shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
        return 0;
    }
    if ((rc = image_senders_start(d, &c->senders, err)) != 0 || (rc = consensus_peers_start(c, host, port, err)) != 0 || (rc = consensus_threads_start(c, err)) != 0)
        goto close;
    if (make != MAKE_RESTART && (rc = datadir_join(d->datadir, &c->identity, err)) != 0) {
        if (rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EINVAL)
            daemon_stop(d, EXIT_FAULT); /* it may be on the disk all the same: what is there decides at the next start */
        goto close;
    }
    shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
    c->members_dirty = c->role_dirty = true;
    rc = node_start(c->node, shared_now_ms());
    if (rc != 0 && !c->failed)
        consensus_failed(c, rc, "the node didn't start");
    consensus_status_update(c, shared_now_ms()); /* service threads must not see a member without its feature level and log time */
    consensus_store_show(c, applied_index(c));
    if (!c->failed) /* else the turn's end says so */
        shared_phase_set(&d->shared, SHARED_RUNNING, NULL);
    consensus_image_clean(c); /* what an image left that was being staged, or was swapped in */
    return 0;

close:
    consensus_member_close(c, false);
    return rc;
}

void consensus_make(struct consensus *c, struct consensus_call *call)
{
    struct daemon *d = c->d;
    bool adopt = call->msg.kind == CONSENSUS_ADOPT;
    const struct datadir_identity *have = datadir_identity(d->datadir);
    int rc;
    if (have->cluster_id) {
        bool same = adopt && have->cluster_id == call->u.adopt->cluster_id && have->incarnation == call->u.adopt->incarnation &&
                    have->node_id == call->u.adopt->node_id;
        rc = same ? 0 : err_set(&call->err, RAFTDIR_EEXIST, "this node is part of cluster %016" PRIx64 " as member %" PRIu64 " already", have->cluster_id, have->node_id);
    } else if (c->stopping || atomic_load(&d->stop_wanted)) {
        rc = RAFTDIR_ECANCELED;
    } else {
        memset(&c->identity, 0, sizeof c->identity);
        if (adopt) {
            c->identity = *call->u.adopt;
        } else {
            while (c->identity.cluster_id == 0)
                if (getrandom(&c->identity.cluster_id, sizeof c->identity.cluster_id, 0) < 0)
                    mem_exhausted("getrandom");
            c->identity.incarnation = 1;
            c->identity.node_id = 1;
        }
        rc = consensus_member_start(c, adopt ? MAKE_ADOPT : MAKE_BOOTSTRAP, &call->err);
        if (rc == 0)
            logger_line(LOGGER_INFO, "consensus", "%s cluster %016" PRIx64 " as member %" PRIu64, adopt ? "adopted into" : "bootstrapped", c->identity.cluster_id,
                        c->identity.node_id);
        else
            logger_line(LOGGER_ERROR, "consensus", "%s failed: %s", adopt ? "adoption" : "bootstrap", call->err.text);
    }
    consensus_call_done(call, rc);
}

/* --- Reset ------------------------------------------------------------------------------------------------------------------------------------ */

static int reset_check(struct consensus *c, const struct consensus_call *call, struct err *err)
{
    const struct datadir_identity *have = datadir_identity(c->d->datadir);
    if (!have->cluster_id)
        return err_set(err, RAFTDIR_EINVAL, "this node is not part of a cluster: there is nothing to reset");
    if (have->cluster_id != call->u.reset.cluster_id || have->node_id != call->u.reset.node_id)
        return err_set(err, RAFTDIR_EINVAL, "this node is member %" PRIu64 " of cluster %016" PRIx64 ", not member %" PRIu64 " of cluster %016" PRIx64 ": nothing was changed",
                       have->node_id, have->cluster_id, call->u.reset.node_id, call->u.reset.cluster_id);
    if (!c->ended)
        return err_set(err, RAFTDIR_EBUSY, "this node takes part in the cluster: only one that has failed, or was removed from it, can be reset");
    if (c->stopping)
        return err_set(err, RAFTDIR_ECANCELED, "the daemon stops");
    return 0;
}

/* Nothing is open any more (consensus_end_check); here begins the life of another node. */
static int reset(struct consensus *c, struct err *err)
{
    struct daemon *d = c->d;
    int rc = datadir_reset(d->datadir, err);
    const struct datadir_identity *have = datadir_identity(d->datadir);
    if (have->cluster_id)
        return rc;
    if (rc != 0)
        logger_line(LOGGER_WARN, "consensus", "what the node had isn't all removed yet (%s): the next attempt to be a member does that", err->text);
    logger_line(LOGGER_WARN, "consensus", "reset: member %" PRIu64 " of cluster %016" PRIx64 " is no more, its state and log are removed; this is a new node, of no cluster",
                c->identity.node_id, c->identity.cluster_id);
    memcpy(d->uuid, have->uuid, NODE_UUID_LEN);
    c->failed = 0;
    c->why[0] = '\0';
    c->removed = c->ended = false;
    c->term = c->voted_for = 0;
    memset(&c->identity, 0, sizeof c->identity);
    memset(&c->applied_members, 0, sizeof c->applied_members);
    memset(&c->last, 0, sizeof c->last);
    memset(&c->image, 0, sizeof c->image);
    memset(&c->renewal, 0, sizeof c->renewal);
    shared_reset(&d->shared, d->uuid);
    atomic_store(&d->mupdate_seen, 0); /* another cluster's indexes begin anew */
    return 0;
}

void consensus_reset(struct consensus *c, struct consensus_call *call)
{
    int rc = reset_check(c, call, &call->err);
    if (rc == 0 && c->image.cleaning) {
        if (!c->reset) {
            c->reset = call; /* consensus_image_clean's end comes back to it */
            return;
        }
        rc = err_set(&call->err, RAFTDIR_EBUSY, "a reset is under way already");
    }
    if (rc == 0)
        rc = reset(c, &call->err);
    consensus_call_done(call, rc);
}
