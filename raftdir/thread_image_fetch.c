/* thread_image_fetch.c - the thread that fetches an image and stages it (thread_image.h, DESIGN D9).
 *
 * Happy path: connect to a member, Hello both ways, header, chunks, end into image_writer; then all of it is made durable, read again and checked (image_check).
 * Members are asked in turn: those heard of most recently first, the leader last. A member that refuses, or can't be reached, means the next one.
 * A connection that breaks: the same member again, behind what is here, until nothing has come for a third of the time that it keeps its pin; then, as
 * for anything wrong with the image, the staged files are removed and the next member is asked. After ROUNDS_MAX times round without an image: `done`, with what each one said: the
 * consensus thread knows by then whether there is another leader, list of members or index to ask for.
 *
 * Not enough room: `done` with RAFTDIR_ENOSPC. What the state will take isn't known beforehand, so it is looked at on the way: never into the reserve, which
 * is there for this node's running state.
 * Nothing here is trusted: not the sender (identity by certificate, member id and directory UUID as on every peer connection), not its bytes (image_writer). */
#include "thread_image.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "guard.h"
#include "limits.h"
#include "logger.h"
#include "peers_internal.h"
#include "tls_stream.h"

#define ROUNDS_MAX 3
#define PAUSE_RECONNECT_DIVISOR 5      /* of image_limits.pause_ms */
#define PATIENCE_DIVISOR 3             /* of image_limits.pin_keep_ms */
#define ROOM_LOOK_LEN (4u << 20)       /* bytes of rows between two looks at the disk */
#define SHOW_MS 200

struct image_fetch {
    struct image_fetch_options o;
    pthread_t thread;
    struct tls_cancel cancel;
    struct image_writer *writer;
    struct tls_stream *stream;
    struct image_progress progress;
    struct shared_image shown;
    uint64_t shown_ms, room_at, began_ms;
    uint64_t index_told;
};

/* What became of one attempt. */
enum outcome {
    COMPLETE, /* it is here and whole */
    NEXT,     /* this member can't or won't; another may */
    FATAL,    /* no other member would help */
    STOPPED,
};

/* --- For people ---------------------------------------------------------------------------------------------------------------------- */

static void show_now(struct image_fetch *f)
{
    f->shown_ms = shared_now_ms();
    shared_fetching_set(&f->o.d->shared, &f->shown);
}

static void show_now_and_then(struct image_fetch *f)
{
    if (shared_now_ms() - f->shown_ms >= SHOW_MS)
        show_now(f);
}

static void show(struct image_fetch *f, const char *phase)
{
    snprintf(f->shown.phase, sizeof f->shown.phase, "%s", phase);
    show_now(f);
}

static void problem_set(struct image_fetch *f, const struct node_peer *m, const char *text)
{
    snprintf(f->shown.problem, sizeof f->shown.problem, "member %" PRIu64 ": %.400s", m->id, text);
    logger_limited(LOGGER_INFO, "image", "no image from %s", f->shown.problem);
}

/* --- The staged files ------------------------------------------------------------------------------------------------------------------ */

/* The directory is ours alone, and flat. */
static int staging_empty(struct image_fetch *f, struct err *err)
{
    image_writer_end(&f->writer);
    memset(&f->progress, 0, sizeof f->progress);
    f->shown.index = f->shown.rows = f->shown.rows_total = f->shown.bytes = 0;
    f->room_at = 0;
    DIR *dir = opendir(f->o.dir);
    if (!dir)
        return err_set(err, err_from_errno(errno), "%s: %s", f->o.dir, strerror(errno));
    int rc = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(dirfd(dir), e->d_name, 0) && errno != ENOENT)
            rc = err_set(err, err_from_errno(errno), "%s/%s can't be removed: %s", f->o.dir, e->d_name, strerror(errno));
    }
    closedir(dir);
    return rc;
}

static int room_check(struct image_fetch *f, struct err *err)
{
    struct statvfs v;
    if (statvfs(f->o.dir, &v))
        return err_set(err, err_from_errno(errno), "%s: %s", f->o.dir, strerror(errno));
    pthread_mutex_lock(&f->o.d->config_mutex);
    uint64_t reserve = f->o.d->config->space_reserve_len;
    pthread_mutex_unlock(&f->o.d->config_mutex);
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    if (room >= reserve + ROOM_LOOK_LEN)
        return 0;
    return err_set(err, RAFTDIR_ENOSPC,
                   "the disk of data_dir has %" PRIu64 " MB left, of which %" PRIu64 " MB are the reserve (space_reserve): no room for an image, of which %" PRIu64
                   " MB are here. A node needs room for its state twice",
                   room >> 20, reserve >> 20, f->progress.bytes >> 20);
}

/* --- One connection ---------------------------------------------------------------------------------------------------------------------- */

static int hello_send(struct image_fetch *f, const struct node_peer *m, struct err *err)
{
    struct peers_options self = {.self_id = f->o.self_id, .cluster_id = f->o.cluster_id, .incarnation = f->o.incarnation};
    memcpy(self.uuid, f->o.uuid, NODE_UUID_LEN);
    Raftdir__Image__Request request = RAFTDIR__IMAGE__REQUEST__INIT;
    request.index_min = f->o.index_min;
    /* Borrowed until the next call, and only looked at. */
    request.resume = f->writer ? (Raftdir__Image__Position *)image_writer_position(f->writer) : NULL;
    uint8_t buf[PEER_HELLO_LEN_MAX];
    size_t len = peers_hello_pack(&self, NULL, NULL, m->id, false, &request, buf);
    if (!len)
        return err_set(err, RAFTDIR_ETOOBIG, "Hello is over the limit");
    return tls_stream_send(f->stream, buf, len, err);
}

static int hello_check(struct image_fetch *f, const struct node_peer *m, const uint8_t *frame, size_t len, struct err *err)
{
    Raftdir__Peer__Frame *p = raftdir__peer__frame__unpack(NULL, len, frame);
    int rc = 0;
    if (!p || p->body_case != RAFTDIR__PEER__FRAME__BODY_HELLO || !p->hello)
        rc = err_set(err, RAFTDIR_EPROTO, "it doesn't answer with a Hello");
    else if (p->version != PEER_FRAME_VERSION || p->hello->log_version != LOG_ENTRY_VERSION)
        rc = err_set(err, RAFTDIR_EVERSION, "it speaks frame version %u and log version %u", p->version, p->hello->log_version);
    else if (p->cluster_id != f->o.cluster_id || p->incarnation != f->o.incarnation || p->from != m->id || p->to != f->o.self_id ||
             p->hello->uuid.len != NODE_UUID_LEN || memcmp(p->hello->uuid.data, m->uuid, NODE_UUID_LEN) != 0)
        rc = err_set(err, RAFTDIR_EFOREIGN, "at its address answers another node, or one of another cluster or incarnation");
    else if (p->hello->removed)
        rc = err_set(err, RAFTDIR_EPERM, "it says that this node was removed");
    if (p)
        raftdir__peer__frame__free_unpacked(p, NULL);
    return rc;
}

static int greet(struct image_fetch *f, const struct node_peer *m, struct err *err)
{
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    int rc = config_host_port(m->host_port, host, port, err);
    if (rc)
        return rc;
    struct tls_stream_options o = {.connect_timeout_ms = HANDSHAKE_TIMEOUT_MS, .io_timeout_ms = image_limits.io_timeout_ms, .cancel = &f->cancel};
    if (o.connect_timeout_ms > o.io_timeout_ms)
        o.connect_timeout_ms = o.io_timeout_ms;
    SSL_CTX *tls = daemon_tls(f->o.d);
    rc = tls_stream_connect(host, port, tls, &o, &f->stream, err);
    SSL_CTX_free(tls);
    if (rc)
        return rc;
    if (strcmp(tls_stream_peer(f->stream), m->cert_name) != 0)
        return err_set(err, RAFTDIR_EAUTH, "its certificate is named \"%s\", expected \"%s\"", tls_stream_peer(f->stream), m->cert_name);
    rc = hello_send(f, m, err);
    const uint8_t *frame;
    size_t len;
    if (rc == 0)
        rc = tls_stream_receive(f->stream, PEER_HELLO_LEN_MAX, &frame, &len, err);
    if (rc == RAFTDIR_ENOTFOUND)
        rc = err_set(err, RAFTDIR_EUNAVAIL, "it closed the connection instead of a Hello: its log says why");
    return rc ? rc : hello_check(f, m, frame, len, err);
}

static void progress_look(struct image_fetch *f)
{
    image_writer_progress(f->writer, &f->progress);
    f->shown.index = f->progress.index;
    f->shown.rows = f->progress.rows;
    f->shown.rows_total = f->progress.rows_total;
    f->shown.bytes = f->progress.bytes;
    if (f->progress.index && f->progress.index != f->index_told) {
        f->index_told = f->progress.index;
        f->o.index(f->o.data, f->progress.index);
    }
    show_now_and_then(f);
}

/* From the header to the end. broken_r: it was the connection that failed, not what came over it. */
static int receive(struct image_fetch *f, bool *broken_r, struct err *err)
{
    int rc = 0;
    while (!f->progress.complete) {
        const uint8_t *frame;
        size_t len;
        *broken_r = true;
        rc = tls_stream_receive(f->stream, IMAGE_FRAME_LEN_MAX, &frame, &len, err);
        if (rc == RAFTDIR_ENOTFOUND)
            rc = err_set(err, RAFTDIR_EUNAVAIL, "it closed the connection in the middle of the image");
        if (rc == RAFTDIR_ETOOBIG || rc == RAFTDIR_EPROTO || rc == RAFTDIR_EAUTH)
            *broken_r = false;
        if (rc)
            return rc;
        *broken_r = false;
        if (tls_cancelled(&f->cancel))
            return err_set(err, RAFTDIR_ECANCELED, "canceled");
        if (!f->writer) {
            struct store_options o = {0};
            if ((rc = image_writer_begin(f->o.dir, &o, f->o.cluster_id, f->o.incarnation, &f->writer, err)) != 0)
                return rc;
        }
        rc = image_writer_frame(f->writer, frame, len, err);
        if (rc)
            return rc;
        progress_look(f);
        if (f->progress.index < f->o.index_min)
            return err_set(err, RAFTDIR_EPROTO, "its image is of index %" PRIu64 ", wanted was %" PRIu64 " at least", f->progress.index, f->o.index_min);
        if (f->progress.bytes >= f->room_at) {
            f->room_at = f->progress.bytes + ROOM_LOOK_LEN;
            if ((rc = room_check(f, err)) != 0)
                return rc;
        }
    }
    return 0;
}

static enum outcome outcome_of(int rc)
{
    switch (rc) {
    case 0:
        return COMPLETE;
    case RAFTDIR_ECANCELED:
        return STOPPED;
    case RAFTDIR_ENOMEM:
        mem_exhausted("image");
    case RAFTDIR_ENOSPC:
    case RAFTDIR_EIO: /* of our own disk: what broke on the way is EUNAVAIL */
        return FATAL;
    default:
        return NEXT;
    }
}

/* Is it the way to the member that failed, not the member? */
static bool is_outage(int rc)
{
    return rc == RAFTDIR_EUNAVAIL || rc == RAFTDIR_ETIMEDOUT || rc == RAFTDIR_EPROTO; /* TLS calls a handshake that was cut a fault of the protocol */
}

/* All of the image from one member, over as many connections as it takes. */
static int fetch_from(struct image_fetch *f, const struct node_peer *m, struct err *err)
{
    uint64_t moved_ms = shared_now_ms();
    for (;;) {
        uint64_t had = f->progress.bytes;
        bool broken = false;
        show(f, "connecting");
        int rc = greet(f, m, err);
        if (rc) {
            broken = is_outage(rc);
        } else {
            show(f, "receiving");
            rc = receive(f, &broken, err);
        }
        tls_stream_close(&f->stream); /* after the end: says that all is here */
        if (f->writer)
            progress_look(f);
        if (rc == 0 || rc == RAFTDIR_ECANCELED)
            return rc;
        uint64_t now = shared_now_ms();
        if (f->progress.bytes > had)
            moved_ms = now;
        /* What is here is worth some patience, as long as the sender keeps its pin; nothing isn't. */
        if (!broken || f->progress.bytes == 0 || now - moved_ms > image_limits.pin_keep_ms / PATIENCE_DIVISOR)
            return rc;
        if (f->progress.bytes > had)
            logger_limited(LOGGER_INFO, "image", "fetching the image from member %" PRIu64 " broke off after %" PRIu64 " bytes: %s; going on from there", m->id,
                           f->progress.bytes, err->text);
        if (tls_cancel_sleep(&f->cancel, image_limits.pause_ms / PAUSE_RECONNECT_DIVISOR))
            return err_set(err, RAFTDIR_ECANCELED, "canceled");
    }
}

/* --- The check ------------------------------------------------------------------------------------------------------------------------------ */

static void on_verify_progress(void *data, uint64_t done, uint64_t total)
{
    struct image_fetch *f = data;
    f->shown.rows = done;
    f->shown.rows_total = total;
    show_now_and_then(f);
}

static bool on_verify_stop(void *data)
{
    return tls_cancelled(&((struct image_fetch *)data)->cancel);
}

/* The node couldn't be made on another. */
static int configuration_check(const struct image_fetch *f, struct err *err)
{
    struct store_options o = {.read_only = true};
    struct store *store = NULL;
    struct store_txn *txn = NULL;
    const uint8_t *data;
    size_t len;
    uint64_t index;
    int rc = store_open(f->o.dir, &o, &store, err);
    if (rc == 0)
        rc = store_read_begin(store, &txn, err);
    if (rc == 0)
        rc = store_configuration_get(txn, &data, &len, &index, err);
    if (rc == 0 && !guard_configuration_valid(data, len))
        rc = err_set(err, RAFTDIR_ECORRUPT, "the image's configuration is malformed");
    store_read_end(&txn);
    store_close(&store);
    return rc;
}

static int verify(struct image_fetch *f, struct err *err)
{
    show(f, "verifying");
    int rc = image_writer_finish(f->writer, err);
    image_writer_end(&f->writer);
    if (rc)
        return rc;
    struct store_options o = {0};
    struct store_verify_cb cb = {.data = f, .progress = on_verify_progress, .stop = on_verify_stop};
    rc = image_check(f->o.dir, &o, &f->progress, &cb, err);
    return rc ? rc : configuration_check(f, err);
}

/* --- All of it -------------------------------------------------------------------------------------------------------------------------------- */

static enum outcome attempt(struct image_fetch *f, const struct node_peer *m, struct err *err)
{
    f->shown.member = m->id;
    f->began_ms = shared_now_ms();
    int rc = staging_empty(f, err);
    if (rc == 0)
        rc = room_check(f, err);
    if (rc == 0)
        rc = fetch_from(f, m, err);
    uint64_t received_ms = shared_now_ms();
    if (rc == 0)
        rc = verify(f, err);
    if (rc == 0)
        logger_line(LOGGER_INFO, "image", "fetched the image at index %" PRIu64 " from member %" PRIu64 ": %" PRIu64 " rows, %" PRIu64 " bytes in %.1f s, verified in %.1f s",
                    f->progress.index, m->id, f->progress.rows, f->progress.bytes, (double)(received_ms - f->began_ms) / 1000,
                    (double)(shared_now_ms() - received_ms) / 1000);
    else if (rc != RAFTDIR_ECANCELED)
        problem_set(f, m, err->text);
    return outcome_of(rc);
}

static int order_compare(const void *a, const void *b)
{
    const struct node_peer *x = a, *y = b;
    if (x->last_contact_ms != y->last_contact_ms)
        return x->last_contact_ms > y->last_contact_ms ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Most recent contact first, the leader last, ourselves not at all. */
static void members_order(struct image_fetch_options *o)
{
    struct node_peer leader;
    bool leads = false;
    size_t n = 0;
    for (size_t i = 0; i < o->members_n; i++) {
        if (o->members[i].id == o->leader && o->leader != o->self_id) {
            leader = o->members[i];
            leads = true;
        } else if (o->members[i].id != o->self_id) {
            o->members[n++] = o->members[i];
        }
    }
    qsort(o->members, n, sizeof *o->members, order_compare);
    if (leads)
        o->members[n++] = leader;
    o->members_n = n;
}

static enum outcome rounds(struct image_fetch *f, struct err *err)
{
    *err = (struct err){.code = RAFTDIR_EUNAVAIL, .text = "there is no other member"};
    for (unsigned round = 0; round < ROUNDS_MAX; round++) {
        for (size_t i = 0; i < f->o.members_n; i++) {
            enum outcome outcome = attempt(f, &f->o.members[i], err);
            if (outcome != NEXT)
                return outcome;
        }
        show(f, "waiting");
        if (tls_cancel_sleep(&f->cancel, image_limits.pause_ms))
            return STOPPED;
    }
    return NEXT;
}

static void *fetch_main(void *data)
{
    struct image_fetch *f = data;
    struct err err;
    image_thread_humble();
    enum outcome outcome = rounds(f, &err);
    image_writer_end(&f->writer);
    if (outcome == COMPLETE) {
        f->shown.problem[0] = 0;
        show(f, "installing");
        f->o.done(f->o.data, 0, &f->progress, "");
        return NULL;
    }
    shared_fetching_set(&f->o.d->shared, NULL);
    if (outcome == STOPPED || tls_cancelled(&f->cancel))
        return NULL;
    const char *why = f->shown.problem[0] ? f->shown.problem : err.text;
    f->o.done(f->o.data, err.code ? err.code : RAFTDIR_EUNAVAIL, &f->progress, why);
    return NULL;
}

int image_fetch_start(const struct image_fetch_options *o, struct image_fetch **fetch_r, struct err *err)
{
    struct image_fetch *f = mem_calloc(1, sizeof *f);
    f->o = *o;
    members_order(&f->o);
    int rc = tls_cancel_init(&f->cancel, err);
    if (rc == 0) {
        int e = pthread_create(&f->thread, NULL, fetch_main, f);
        if (e)
            rc = err_set(err, RAFTDIR_ELIMIT, "thread for an image: %s", strerror(e));
    }
    if (rc) {
        tls_cancel_close(&f->cancel);
        free(f);
        return rc;
    }
    *fetch_r = f;
    return 0;
}

void image_fetch_stop(struct image_fetch **fetch)
{
    struct image_fetch *f = *fetch;
    *fetch = NULL;
    if (!f)
        return;
    tls_cancel_now(&f->cancel);
    pthread_join(f->thread, NULL);
    tls_cancel_close(&f->cancel);
    free(f);
}
