/* thread_consensus_renewal.c - the node moves to a fresh copy of its own state, when a reader that hangs holds too much of the old one back, or an admin asks (DESIGN D8).
 *
 * Happy path: gen-(N+1) is staged -> a thread copies the state, at its index A, into it and verifies the copy, while this node goes on (thread_image_copy.c); the log is
 * kept from before A meanwhile -> a leader gives its place away -> the swap -> the old generation is removed in libuv's pool. A reader that hangs keeps the old files, which have no name
 * any more; the disk gets their room back when it goes on or ends.
 * Failures before the swap (no room, damage, the log grew past what may be held, an image is needed first): what is staged is removed, an alarm says why, and the next
 * request is heard after a back-off of 10 s to 10 minutes. The node is what it was.
 *
 * The swap, between two events of this thread. Nothing that was acknowledged, no vote and no term may be lost, so the log isn't copied: the new generation gets hard links of
 * its files. What a crash, or a failure, leaves at each step:
 *   1. the node ends (its calls as at a stop: uncertain), its log and apply threads too,    the old generation, as after any crash. Nobody writes to either
 *      and the log is closed: nothing is written from here to step 4                        generation until step 4, so what both names show is the same
 *   2. each file of gen-N/log gets a name in gen-(N+1)/log                                  the old generation; the leftover's names are removed, the files stay. On
 *                                                                                           failure the old generation is opened again, as at a restart
 *   3. datadir_swap: CURRENT points to gen-(N+1), all of whose names are durable            the old one or the new one: the same log, and a state of the same cluster that the
 *                                                                                           log reaches, older or newer. On failure as for an image's swap
 *   4. the new generation is opened as at a restart: what is behind A is applied again      the new one. The old one is never written to again: its names are only removed
 * Since the state that was current is a little newer than A, readers keep it until the new one has come as far as what was published: nothing that was read vanishes. Only then are
 * the old generation's names removed. A daemon that is killed in between comes back at A and goes on from its log, as after any crash that lost what wasn't synced.
 *
 * Known limits: the silence of the swap is that of a restart, it reads the log again (LOG_KEEP_LEN and what was held); a leader has given its place away before. A file system without
 * hard links can't do this: an alarm says so. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "consensus_internal.h"
#include "logger.h"

#define BACKOFF_MS_MIN 10000
#define BACKOFF_MS_MAX 600000
#define TRANSFER_MS 1000

static const char outgrown[] = "more was written meanwhile than the log may hold";

static void on_done(void *data, int code, const struct image_progress *image, const char *why)
{
    struct consensus *c = data;
    struct copy_said *said = mem_calloc(1, sizeof *said);
    said->msg.kind = CONSENSUS_COPIED;
    said->number = c->renewal.number;
    said->code = code;
    said->index = image->index;
    snprintf(said->why, sizeof said->why, "%s", why);
    inbox_push(&c->inbox, &said->msg.link); /* open until this thread has been joined */
}

/* Who asks for a compaction looks at this until it is over. */
static void show(struct consensus *c, const char *phase)
{
    struct shared_image shown = {.member = c->identity.node_id};
    snprintf(shown.phase, sizeof shown.phase, "%s", phase);
    shared_fetching_set(&c->d->shared, &shown);
}

/* Nothing is staged any more, for better or worse. */
static void over(struct consensus *c)
{
    image_copy_stop(&c->renewal.copy);
    c->renewal.number++;
    c->renewal.index = 0;
    if (c->node)
        node_log_hold(c->node, 0);
    datadir_unstage(c->d->datadir);
    shared_fetching_set(&c->d->shared, NULL);
}

static void failed(struct consensus *c, const char *why)
{
    struct consensus_renewal *r = &c->renewal;
    r->backoff_ms = !r->backoff_ms ? BACKOFF_MS_MIN : r->backoff_ms * 2 < BACKOFF_MS_MAX ? r->backoff_ms * 2 : BACKOFF_MS_MAX;
    r->retry_ms = shared_now_ms() + r->backoff_ms;
    char alarm[ERR_TEXT_LEN];
    snprintf(alarm, sizeof alarm, "the state can't be moved to a fresh copy: %.400s", why);
    if (shared_alarm_set(&c->d->shared, ALARM_RENEWAL, alarm))
        logger_line(LOGGER_WARN, "renewal", "%s", alarm);
    consensus_image_clean(c);
}

static void succeeded(struct consensus *c)
{
    c->renewal.backoff_ms = 0;
    c->renewal.retry_ms = 0;
    shared_alarm_set(&c->d->shared, ALARM_RENEWAL, NULL);
    consensus_image_clean(c);
}

void consensus_renewal_stop(struct consensus *c)
{
    if (c->renewal.copy || c->renewal.index)
        over(c);
}

void consensus_renewal_drop(struct consensus *c)
{
    if (!c->renewal.copy && !c->renewal.index)
        return;
    logger_line(LOGGER_INFO, "renewal", "given up for now: this node needs an image, which is a fresh state, too");
    over(c);
}

/* --- The copy -------------------------------------------------------------------------------------------------------------------------- */

static int begin(struct consensus *c, struct err *err)
{
    struct node_status s;
    int rc = datadir_stage(c->d->datadir, err);
    if (rc != 0)
        return rc;
    struct image_copy_options *o = mem_calloc(1, sizeof *o);
    if ((rc = datadir_staged_path(c->d->datadir, "state", o->dir, sizeof o->dir, err)) != 0)
        goto free_options;
    node_status_get(c->node, shared_now_ms(), &s);
    node_log_hold(c->node, s.applied_index); /* the copy is of this index or a later one */
    o->d = c->d;
    o->store = c->store;
    o->self_id = c->identity.node_id;
    o->cluster_id = c->identity.cluster_id;
    o->incarnation = c->identity.incarnation;
    o->data = c;
    o->done = on_done;
    show(c, "compacting");
    rc = image_copy_start(o, &c->renewal.copy, err);
free_options:
    free(o);
    if (rc != 0)
        over(c);
    return rc;
}

int consensus_renewal_begin(struct consensus *c, const char *why, struct err *err)
{
    struct consensus_renewal *r = &c->renewal;
    if (!c->node || c->failed || c->removed || c->stopping)
        return err_set(err, RAFTDIR_ENOTREADY, "this node takes no part in the cluster now (it is stopping, failed or was removed, or isn't a member yet)");
    if (r->copy || r->index)
        return 0;
    if (c->image.fetch || c->image.cleaning || atomic_load(&c->show_at))
        return err_set(err, RAFTDIR_EBUSY, c->image.fetch ? "an image is being fetched, which will take the place of this node's state"
                                                          : "an earlier generation of state and log is just being left: try again in a moment");
    int rc = begin(c, err);
    if (rc == 0)
        logger_line(LOGGER_INFO, "renewal", "the state is copied, to leave the old file behind: %s", why);
    return rc;
}

void consensus_renewal_wanted(struct consensus *c, const char *why)
{
    struct err err = {0};
    if (shared_now_ms() < c->renewal.retry_ms)
        return;
    int rc = consensus_renewal_begin(c, why, &err);
    if (rc != 0 && rc != RAFTDIR_ENOTREADY && rc != RAFTDIR_EBUSY) /* asked again, as long as it is so */
        failed(c, err.text);
}

void consensus_renewal_said(struct consensus *c, const struct copy_said *said)
{
    struct node_status s;
    if (!c->renewal.copy || said->number != c->renewal.number)
        return;
    image_copy_stop(&c->renewal.copy);
    node_status_get(c->node, shared_now_ms(), &s);
    if (said->code == 0 && s.log_first <= said->index + 1) {
        c->renewal.index = said->index;
        if (!c->transfer_runs) /* as one does for lack of space */
            consensus_transfer_begin(c, TRANSFER_MS);
        /* The turn's end goes on, when this is over. */
        return;
    }
    over(c);
    failed(c, said->code ? said->why : outgrown);
}

/* --- The swap -------------------------------------------------------------------------------------------------------------------------- */

static int links_and_swap(struct consensus *c, bool *sure_r, struct err *err)
{
    struct datadir *dir = c->d->datadir;
    int rc = datadir_log_link(dir, err);
    *sure_r = true;
    if (rc == 0) {
        rc = datadir_swap(dir, err);
        *sure_r = rc == 0 || rc == RAFTDIR_ENOSPC || rc == RAFTDIR_EINVAL;
    }
    return rc;
}

/* Step 4, or, when CURRENT has stayed, the old generation again; its state is still open then. */
static int open_again(struct consensus *c, uint64_t shown, struct err *err)
{
    struct node_status s;
    bool fresh = !c->store;
    int rc = consensus_node_open(c, MAKE_RESTART, NULL, 0, err);
    if (rc != 0 || c->removed) /* the turn's end says so */
        return rc;
    node_status_get(c->node, shared_now_ms(), &s);
    if (fresh && s.applied_index < shown)
        atomic_store(&c->show_at, shown); /* on_published shows it */
    else if (fresh)
        consensus_store_show(c, s.applied_index);
    if ((rc = consensus_threads_start(c, err)) != 0)
        return rc;
    c->members_dirty = c->role_dirty = true;
    if (node_start(c->node, shared_now_ms()) != 0 && !c->failed)
        consensus_failed(c, RAFTDIR_ECORRUPT, "the node didn't start on the copy of its state");
    return 0;
}

static void swap(struct consensus *c)
{
    struct daemon *d = c->d;
    struct err err = {0}, why = {0};
    uint64_t began = shared_now_ms(), index = c->renewal.index;
    struct node_status s;
    bool sure;
    c->renewal.index = 0;
    node_status_get(c->node, began, &s);
    if (s.log_first > index + 1) { /* while leadership was given away: the log wouldn't reach the copy any more */
        over(c);
        failed(c, outgrown);
        return;
    }
    node_destroy(&c->node);
    consensus_threads_stop(c);
    daemon_log_close(d);
    uint64_t shown = atomic_load(&d->shared.published); /* apply has ended: what it was at has been published, too */
    int rc = links_and_swap(c, &sure, &why);
    if (!sure) {
        logger_line(LOGGER_ERROR, "renewal", "which generation of state and log counts is only known after a restart (%s): this node stops", why.text);
        daemon_stop(d, EXIT_FAULT);
        consensus_failed(c, rc, why.text);
        return;
    }
    if (rc == 0)
        store_close(&c->store); /* readers have references of their own */
    int opened = open_again(c, shown, &err);
    c->watch_ms = shared_now_ms();
    over(c);
    if (opened != 0) {
        err_wrap(&err, "the node can't be opened again %s", rc == 0 ? "on the copy of its state" : "on its old state");
        logger_line(LOGGER_ERROR, "renewal", "%s", err.text);
        if (opened != RAFTDIR_ECORRUPT)
            daemon_stop(d, EXIT_FAULT);
        consensus_failed(c, opened, err.text);
        return;
    }
    if (rc != 0) {
        failed(c, why.text);
        return;
    }
    logger_line(LOGGER_INFO, "renewal", "a copy of the state at index %" PRIu64 " has taken its place, the log went along (%" PRIu64 " ms)", index, c->watch_ms - began);
    if (atomic_load(&c->show_at))
        show(c, "installing");
    succeeded(c);
}

void consensus_renewal_turn(struct consensus *c)
{
    if (c->image.clean_when_shown && !atomic_load(&c->show_at)) {
        if (!c->image.fetch && !c->renewal.copy && !c->renewal.index)
            shared_fetching_set(&c->d->shared, NULL);
        consensus_image_clean(c);
    }
    if (c->renewal.index && !c->transfer_runs && !c->stopping)
        swap(c);
}
