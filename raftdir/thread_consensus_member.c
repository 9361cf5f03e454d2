/* thread_consensus_member.c - how this node becomes a member: at a start, by bootstrap or adoption.
 *
 * Making a member (DESIGN D12; datadir.h has the invariant): an empty gen-1, the log and state in it, ports bound, then IDENTITY. What a crash
 * leaves before IDENTITY is removed by the next attempt; after it, this is a restart. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "consensus_internal.h"
#include "logger.h"

/* --- Making and opening a member ------------------------------------------------------------------------------------------------------------ */

static int boot_state(struct consensus *c, struct node_boot *boot, struct store_txn **txn_r, struct err *err)
{
    int rc = store_read_begin(c->d->store, txn_r, err);
    if (rc != 0)
        return rc;
    rc = store_meta_get(*txn_r, &boot->meta, err);
    if (rc == 0)
        rc = store_configuration_get(*txn_r, &boot->configuration, &boot->configuration_len, &boot->meta.configuration_index, err);
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

static void found_free(struct seglog_found *found)
{
    for (size_t i = 0; i < found->entries_n; i++)
        entry_unref(found->entries[i]);
    free(found->entries);
    memset(found, 0, sizeof *found);
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

/* Opens state and log and makes the node of them. On failure everything is closed again. */
static int node_open(struct consensus *c, enum make make, struct err *err)
{
    struct daemon *d = c->d;
    char state_path[PATH_MAX], log_path[PATH_MAX];
    struct seglog_found found = {0};
    struct store_txn *txn = NULL;
    struct node_boot boot = {0};
    struct seglog_identity who = {.cluster_id = c->identity.cluster_id, .incarnation = c->identity.incarnation};
    memcpy(who.uuid, d->uuid, NODE_UUID_LEN);
    int rc;
    if ((rc = datadir_path(d->datadir, "state", state_path, sizeof state_path, err)) != 0 ||
        (rc = datadir_path(d->datadir, "log", log_path, sizeof log_path, err)) != 0 ||
        (rc = store_open(state_path, &(struct store_options){0}, &d->store, err)) != 0)
        return rc;
    rc = seglog_open(log_path, &who, &d->log, &found, err);
    if (rc != 0)
        goto close_store;
    if (found.torn_len)
        logger_line(LOGGER_WARN, "log", "cut off %" PRIu64 " bytes that were being written when the node went down; they had not been acknowledged", found.torn_len);
    if (make == MAKE_BOOTSTRAP)
        rc = bootstrap_log(c, &found, err);
    else if (make == MAKE_ADOPT)
        rc = seglog_vote(d->log, found.term, found.voted_for, err); /* the file is there from now on: datadir_check wants it */
    if (rc != 0 || (rc = boot_state(c, &boot, &txn, err)) != 0 || (rc = apply_members_get(d->store, &c->applied_members, err)) != 0)
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
    struct node_options options = {.id = c->identity.node_id,
                                   .cluster_id = c->identity.cluster_id,
                                   .incarnation = c->identity.incarnation,
                                   .election_timeout_ms = d->config->election_timeout_ms,
                                   .heartbeat_ms = d->config->heartbeat_ms};
    if (getrandom(&options.seed, sizeof options.seed, 0) != sizeof options.seed)
        options.seed = (unsigned)uv_hrtime();
    struct node_io io;
    consensus_node_io(c, &io);
    rc = node_create(&options, &io, &boot, &c->node, err);
    if (rc != 0)
        goto close_log;
    store_read_end(&txn);
    daemon_log_opened(d);
    atomic_store(&d->shared.published, boot.meta.applied_index);
    c->removed = apply_members_removed(&c->applied_members, c->identity.node_id);
    logger_line(LOGGER_INFO, "consensus", "state at index %" PRIu64 ", %zu entries in the log, term %" PRIu64, boot.meta.applied_index, boot.entries_n, boot.term);
    return 0;

close_log:
    if (txn)
        store_read_end(&txn);
    found_free(&found);
    daemon_log_close(d);
close_store:
    store_close(&d->store);
    return rc;
}

int consensus_member_start(struct consensus *c, enum make make, struct err *err)
{
    struct daemon *d = c->d;
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    int rc = make == MAKE_RESTART ? datadir_check(d->datadir, err) : datadir_prepare(d->datadir, err);
    if (rc != 0 || (rc = config_host_port(d->config->peer_listen, host, port, err)) != 0 || (rc = node_open(c, make, err)) != 0)
        return rc;
    if (c->removed) {
        /* turn_end says so and ends the node before it has taken part in anything. */
        shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
        return 0;
    }
    rc = consensus_peers_start(c, host, port, err);
    if (rc != 0)
        goto destroy_node;
    rc = consensus_threads_start(c, err);
    if (rc != 0)
        goto stop_peers;
    if (make != MAKE_RESTART && (rc = datadir_join(d->datadir, &c->identity, err)) != 0) {
        if (rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EINVAL)
            daemon_stop(d, EXIT_FAULT); /* it may be on the disk all the same: what is there decides at the next start */
        goto stop_threads;
    }
    shared_identity_set(&d->shared, c->identity.cluster_id, c->identity.incarnation, c->identity.node_id);
    c->members_dirty = c->role_dirty = true;
    rc = node_start(c->node, shared_now_ms());
    if (rc != 0 && !c->failed)
        consensus_failed(c, rc, "the node didn't start");
    consensus_status_update(c, shared_now_ms()); /* service threads must not see a member without its feature level and log time */
    shared_phase_set(&d->shared, SHARED_RUNNING, NULL);
    return 0;

stop_threads:
    log_thread_stop(&c->log_thread);
    apply_thread_stop(&c->apply_thread);
stop_peers:
    consensus_peers_stop(c);
destroy_node:
    node_destroy(&c->node);
    daemon_log_close(d);
    store_close(&d->store);
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
