/* thread_consensus_image.c - a member that is too far behind: an image is fetched beside what it has, and takes its place (DESIGN D9).
 *
 * Happy path: the node says that it wants an image (a manifest of its leader, repeated) -> gen-(N+1) is staged -> the fetching thread fills its state, verifies it
 * and makes it durable, while this node goes on as the follower that it is -> the swap -> the old generation is removed in libuv's pool.
 * Failures: a fetch that gave up (nobody can send, no space, damage) is begun anew with the next manifest, after a back-off of 1 to 30 s; an alarm says why.
 * A log that caught up by itself: the fetch is dropped. The node failed, was removed, or the daemon stops: the fetch ends at once, what it staged is a leftover.
 *
 * The swap, between two events of this thread, so that the node neither votes nor acknowledges in the middle of it. What a crash, or a failure, leaves at each step:
 *   1. staged log: empty, begins after the image, with the term and vote of the old one    the old generation, and a leftover; on failure this node goes on
 *   2. datadir_swap: CURRENT points to gen-(N+1), durably                                  the old one or the new one, both whole. On failure: nothing has
 *      changed, and this node goes on; or it isn't sure which, and the daemon stops (no vote may be given until a start has found out)
 *   3. the node ends (its calls as at a stop: uncertain), its log and apply threads too    the new one, as from here on. What the old log got since step 2 was
 *      acknowledged to nobody, since acknowledgements pass this thread
 *   4. the new generation is opened as at a restart, and shown to readers                  on failure the daemon stops; damage: the node fails
 * The peers' connections stay: they know nothing of the node, and no frame is handled in between. Local reads go on from the old state until the new one is shown.
 *
 * While something is being removed in the pool nothing is staged (datadir.h), and a reset waits. Known limits: a stop waits for the removal to end. A fetch that the log
 * made needless is joined on this thread: should it be in the middle of a flush, or of removing what it had staged, that takes as long as the disk takes. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "consensus_internal.h"
#include "logger.h"

#define BACKOFF_MS_MIN 1000
#define BACKOFF_MS_MAX 30000
#define UNNEEDED_MS 3000 /* a new leader has to say first whether its log reaches further back */

/* --- Removing what isn't current -------------------------------------------------------------------------------------------------- */

struct clean {
    uv_work_t work;
    struct consensus *c;
    int rc;
    struct err err;
};

static void clean_work(uv_work_t *work)
{
    struct clean *k = work->data;
    k->rc = datadir_clean(k->c->d->datadir, &k->err);
}

static void clean_after(uv_work_t *work, int status)
{
    struct clean *k = work->data;
    struct consensus *c = k->c;
    (void)status;
    if (k->rc != 0)
        logger_limited(LOGGER_WARN, "consensus", "leftovers of an image can't be removed: %s", k->err.text);
    free(k);
    c->image.cleaning = false;
    if (c->image.clean_again) {
        c->image.clean_again = false;
        consensus_image_clean(c);
    }
    if (c->reset && !c->image.cleaning) {
        struct consensus_call *call = c->reset;
        c->reset = NULL;
        consensus_reset(c, call);
    }
}

void consensus_image_clean(struct consensus *c)
{
    c->image.clean_when_shown = atomic_load(&c->show_at) != 0;
    if (c->image.clean_when_shown)
        return;
    if (c->image.cleaning) {
        c->image.clean_again = true;
        return;
    }
    struct clean *k = mem_calloc(1, sizeof *k);
    k->work.data = k;
    k->c = c;
    c->image.cleaning = true;
    uv_queue_work(&c->loop, &k->work, clean_work, clean_after); /* fails only without a callback */
}

/* --- Fetching ------------------------------------------------------------------------------------------------------------------------ */

static void say(struct consensus *c, const struct image_said *what)
{
    struct image_said *said = mem_alloc(sizeof *said);
    *said = *what;
    said->msg.kind = CONSENSUS_IMAGE;
    said->number = c->image.number;
    inbox_push(&c->inbox, &said->msg.link); /* open until this thread has been joined */
}

static void on_index(void *data, uint64_t index)
{
    say(data, &(struct image_said){.index = index});
}

static void on_done(void *data, int code, const struct image_progress *image, const char *why)
{
    struct image_said said = {.done = true, .code = code};
    if (image) {
        said.index = image->index;
        said.term = image->term;
    }
    snprintf(said.why, sizeof said.why, "%s", why ? why : "");
    say(data, &said);
}

/* The thread is joined, nothing is staged any more. */
static void fetch_end(struct consensus *c)
{
    image_fetch_stop(&c->image.fetch);
    c->image.number++;
    c->image.unneeded_ms = 0;
    if (c->node)
        node_image_fetching(c->node, 0);
    datadir_unstage(c->d->datadir);
}

static void failed(struct consensus *c, const char *why)
{
    struct consensus_image *i = &c->image;
    i->backoff_ms = !i->backoff_ms ? BACKOFF_MS_MIN : i->backoff_ms * 2 < BACKOFF_MS_MAX ? i->backoff_ms * 2 : BACKOFF_MS_MAX;
    i->retry_ms = shared_now_ms() + i->backoff_ms;
    struct shared_image shown = {.phase = "waiting"};
    snprintf(shown.problem, sizeof shown.problem, "%s", why);
    shared_fetching_set(&c->d->shared, &shown);
    char alarm[ERR_TEXT_LEN];
    snprintf(alarm, sizeof alarm, "this node is too far behind and can't fetch an image: %.400s", why);
    if (shared_alarm_set(&c->d->shared, ALARM_IMAGE, alarm))
        logger_line(LOGGER_WARN, "image", "%s; it is tried again", alarm);
    consensus_image_clean(c);
}

/* It isn't needed any more, for better or worse. */
static void over(struct consensus *c)
{
    c->image.backoff_ms = 0;
    c->image.retry_ms = 0;
    shared_fetching_set(&c->d->shared, NULL);
    shared_alarm_set(&c->d->shared, ALARM_IMAGE, NULL);
    consensus_image_clean(c);
}

static int fetch_begin(struct consensus *c, uint64_t index, struct err *err)
{
    struct image_fetch_options *o;
    struct node_peer list[MEMBERS_MAX];
    struct node_status s;
    int rc = datadir_stage(c->d->datadir, err);
    if (rc != 0)
        return rc;
    o = mem_calloc(1, sizeof *o);
    if ((rc = datadir_staged_path(c->d->datadir, "state", o->dir, sizeof o->dir, err)) != 0)
        goto free_options;
    node_status_get(c->node, shared_now_ms(), &s);
    o->d = c->d;
    o->self_id = c->identity.node_id;
    o->cluster_id = c->identity.cluster_id;
    o->incarnation = c->identity.incarnation;
    memcpy(o->uuid, c->d->uuid, NODE_UUID_LEN);
    o->index_min = index;
    o->leader = s.leader;
    size_t n = consensus_members(c, list);
    for (size_t i = 0; i < n; i++)
        if (list[i].id != c->identity.node_id)
            o->members[o->members_n++] = list[i];
    o->data = c;
    o->index = on_index;
    o->done = on_done;
    rc = image_fetch_start(o, &c->image.fetch, err);
free_options:
    free(o);
    if (rc != 0)
        datadir_unstage(c->d->datadir);
    return rc;
}

void consensus_image_turn(struct consensus *c, uint64_t now)
{
    struct consensus_image *i = &c->image;
    uint64_t index = i->wanted;
    struct err err = {0};
    i->wanted = 0;
    if (!i->needed && (i->fetch || i->backoff_ms)) {
        if (!i->unneeded_ms)
            i->unneeded_ms = now;
        if (now - i->unneeded_ms < UNNEEDED_MS)
            return;
        i->unneeded_ms = 0;
        if (i->fetch) {
            logger_line(LOGGER_INFO, "image", "the log has caught up: the image that was being fetched isn't needed any more");
            fetch_end(c);
        }
        over(c);
        return;
    }
    i->unneeded_ms = 0;
    if (!index || i->fetch || i->cleaning || now < i->retry_ms || c->stopping)
        return;
    consensus_renewal_drop(c);
    int rc = fetch_begin(c, index, &err);
    if (rc == 0)
        logger_line(LOGGER_INFO, "image", "the leader's log begins after this node's: an image at index %" PRIu64 " or later is fetched", index);
    else
        failed(c, err.text);
}

void consensus_image_stop(struct consensus *c)
{
    if (!c->image.fetch)
        return;
    fetch_end(c);
    shared_fetching_set(&c->d->shared, NULL);
}

/* --- The swap -------------------------------------------------------------------------------------------------------------------------- */

/* Step 1. */
static int staged_log_make(struct consensus *c, uint64_t index, struct seglog **log_r, struct err *err)
{
    struct seglog_identity who = {.cluster_id = c->identity.cluster_id, .incarnation = c->identity.incarnation};
    struct seglog_found found;
    char path[PATH_MAX];
    memcpy(who.uuid, c->d->uuid, NODE_UUID_LEN);
    int rc = datadir_staged_path(c->d->datadir, "log", path, sizeof path, err);
    if (rc != 0 || (rc = seglog_open(path, &who, log_r, &found, err)) != 0)
        return rc;
    seglog_found_clear(&found);
    if ((rc = seglog_vote(*log_r, c->term, c->voted_for, err)) == 0)
        rc = seglog_base(*log_r, index, err);
    return rc;
}

/* Steps 3 and 4: what is on the disk is the new generation. */
static int swapped_open(struct consensus *c, uint64_t index, struct seglog **log, struct err *err)
{
    node_destroy(&c->node);
    consensus_threads_stop(c);
    daemon_log_close(c->d);
    store_close(&c->store); /* readers have references of their own */
    int rc = consensus_node_open(c, MAKE_RESTART, log, index, err);
    if (rc != 0)
        return rc;
    if (c->removed)
        return 0; /* the turn's end says so */
    consensus_store_show(c, index);
    if ((rc = consensus_threads_start(c, err)) != 0)
        return rc;
    c->members_dirty = c->role_dirty = true;
    rc = node_start(c->node, shared_now_ms());
    if (rc != 0 && !c->failed)
        consensus_failed(c, rc, "the node didn't start on its image");
    return 0;
}

static void swap(struct consensus *c, uint64_t index)
{
    struct daemon *d = c->d;
    struct err err = {0};
    struct seglog *log = NULL;
    uint64_t began = shared_now_ms();
    int rc = staged_log_make(c, index, &log, &err);
    if (rc == 0 && (rc = datadir_swap(d->datadir, &err)) != 0 && rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EINVAL) {
        logger_line(LOGGER_ERROR, "image", "which generation of state and log counts is only known after a restart (%s): this node stops", err.text);
        daemon_stop(d, EXIT_FAULT);
        consensus_failed(c, rc, err.text);
        goto close_log;
    }
    if (rc != 0) {
        datadir_unstage(d->datadir);
        failed(c, err.text);
        goto close_log;
    }
    rc = swapped_open(c, index, &log, &err);
    c->watch_ms = shared_now_ms();
    if (rc != 0) {
        err_wrap(&err, "the image of index %" PRIu64 " has taken the place of state and log, but can't be opened", index);
        logger_line(LOGGER_ERROR, "image", "%s", err.text);
        if (rc != RAFTDIR_ECORRUPT)
            daemon_stop(d, EXIT_FAULT);
        consensus_failed(c, rc, err.text);
        goto close_log;
    }
    logger_line(LOGGER_INFO, "image", "the image of index %" PRIu64 " has taken the place of state and log (%" PRIu64 " ms)", index, c->watch_ms - began);
    over(c);
close_log:
    seglog_close(&log); /* unless it was taken */
}

void consensus_image_said(struct consensus *c, const struct image_said *said)
{
    if (!c->image.fetch || said->number != c->image.number)
        return;
    if (!said->done) {
        node_image_fetching(c->node, said->index);
        return;
    }
    image_fetch_stop(&c->image.fetch);
    c->image.number++;
    c->image.unneeded_ms = 0;
    if (said->code == 0 && node_image_wanted(c->node, said->index, said->term) && !c->stopping) {
        swap(c, said->index);
        if (c->node)
            node_image_fetching(c->node, 0);
        return;
    }
    node_image_fetching(c->node, 0);
    datadir_unstage(c->d->datadir);
    if (said->code != 0) {
        failed(c, said->why);
    } else {
        logger_line(LOGGER_INFO, "image", "the log has caught up: the image of index %" PRIu64 " isn't needed any more", said->index);
        over(c);
    }
}
