/* thread_image_send.c - images that other members fetch here (thread_image.h, DESIGN D9).
 *
 * IMAGE_SENDS_MAX places, each with a thread that sleeps until a connection is given to its place. Happy path: reference and snapshot of the state (the pin),
 * header, chunks, end; then the receiver closes in order, which says that it has all of it.
 * A receiver has one place: a newer connection of the same receiver takes it over from an older one, whatever that is doing. It goes on behind what the receiver
 * has if it names the pin, else from a new snapshot.
 * Broken connection: the pin is kept for pin_keep_ms. Given up before, with a Refusal where somebody listens: when the state has grown by pin_growth_max
 * since (pinned pages can't be used again), when this node's state may not be served any more or an image has taken its place, at the stop. A damaged record met on the way fails the node.
 * While a member's digest differs and no majority says which of the two is right, neither sends: a copy of the wrong state would be a vote for it, and the majority
 * that is made of the two would stop the node that is right (node_digest.c).
 * The rate is that of the node, all transfers together: a point in time that each piece sent moves on; pieces are small enough for a receiver's patience.
 *
 * Known limit: a receiver that takes its time keeps its place as long as the state doesn't grow. */
#include "thread_image.h"
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "cond.h"
#include "limits.h"
#include "logger.h"
#include "thread_consensus.h"
#include "tls_stream.h"

#define PIECE_LEN 16384u /* what one TLS record carries */
#define LOOK_MS 1000     /* while nobody fetches: is the pin still worth it? */

struct image_limits image_limits = {
    .io_timeout_ms = IMAGE_IO_TIMEOUT_MS,
    .pin_keep_ms = IMAGE_PIN_KEEP_MS,
    .pin_growth_max = IMAGE_PIN_GROWTH_MAX,
    .pause_ms = 1000,
};

/* A connection that was given, not yet the thread's. */
struct visitor {
    int fd;
    SSL *ssl; /* NULL: none */
    uint64_t index_min, pin;  /* pin 0: from the beginning */
    Raftdir__Image__Request *request; /* given; its `resume` is used */
};

struct place {
    struct image_senders *s;
    unsigned number;
    pthread_t thread;
    bool started;
    struct tls_cancel cancel; /* set when a visitor waits, and at the stop */
    pthread_cond_t given;
    /* Under the mutex. */
    bool busy; /* a transfer, or a pin that is kept */
    uint64_t to;
    struct visitor next;
    /* The thread's. */
    struct visitor now;
    struct tls_stream *stream;
    struct image_reader *reader;
    unsigned generation; /* of the state that `reader` reads */
    uint64_t pin, began_ms;
    struct shared_image shown;
};

struct image_senders {
    struct daemon *d;
    pthread_mutex_t mutex;
    bool stopping;
    uint64_t next_ns; /* when the next piece may go, by the rate */
    struct place places[IMAGE_SENDS_MAX];
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* A transfer takes what the rest of the machine leaves. On Linux this is the thread's own; without it, it is only less polite. */
void image_thread_humble(void)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL); /* signals are main's; a closed socket is an error, not SIGPIPE */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
}

static void visitor_close(struct visitor *v)
{
    if (v->ssl) {
        SSL_free(v->ssl);
        close(v->fd);
    }
    if (v->request)
        raftdir__image__request__free_unpacked(v->request, NULL);
    memset(v, 0, sizeof *v);
}

/* --- Sending -------------------------------------------------------------------------------------------------------------------------- */

static void show(struct place *p, const char *phase)
{
    snprintf(p->shown.phase, sizeof p->shown.phase, "%s", phase);
    shared_sending_set(&p->s->d->shared, p->number, &p->shown);
}

static int refusal_send(struct tls_stream *stream, int code, const char *why)
{
    Raftdir__Image__Refusal refusal = RAFTDIR__IMAGE__REFUSAL__INIT;
    Raftdir__Image__Frame frame = RAFTDIR__IMAGE__FRAME__INIT;
    uint8_t buf[ERR_TEXT_LEN + 64];
    refusal.code = code;
    refusal.message = (char *)why;
    frame.body_case = RAFTDIR__IMAGE__FRAME__BODY_REFUSAL;
    frame.refusal = &refusal;
    size_t len = raftdir__image__frame__get_packed_size(&frame);
    if (len > sizeof buf)
        return RAFTDIR_ETOOBIG;
    raftdir__image__frame__pack(&frame, buf);
    return tls_stream_send(stream, buf, len, NULL);
}

/* The next piece's turn has come: RAFTDIR_ECANCELED when something else comes first. */
static int rate_wait(struct place *p, size_t len, struct err *err)
{
    struct image_senders *s = p->s;
    pthread_mutex_lock(&s->d->config_mutex);
    uint64_t rate = s->d->config->image_rate_len;
    pthread_mutex_unlock(&s->d->config_mutex);
    if (!rate)
        return 0;
    pthread_mutex_lock(&s->mutex);
    uint64_t now = now_ns();
    if (s->next_ns < now)
        s->next_ns = now;
    uint64_t at = s->next_ns;
    s->next_ns += (uint64_t)((double)len * 1e9 / (double)rate);
    pthread_mutex_unlock(&s->mutex);
    if (tls_cancel_sleep(&p->cancel, (at - now) / 1000000))
        return err_set(err, RAFTDIR_ECANCELED, "canceled");
    return 0;
}

static int frame_send(struct place *p, const uint8_t *frame, size_t len, struct err *err)
{
    int rc = tls_stream_send_header(p->stream, (uint32_t)len, err);
    while (rc == 0 && len) {
        size_t piece = len < PIECE_LEN ? len : PIECE_LEN;
        if ((rc = rate_wait(p, piece, err)) == 0 && (rc = tls_stream_send_bytes(p->stream, frame, piece, err)) == 0)
            p->shown.bytes += piece;
        frame += piece;
        len -= piece;
    }
    return rc;
}

/* Nobody knows that this node's state is the wrong one. */
static int digests_check(struct place *p, struct err *err)
{
    struct shared_view view;
    shared_view_get(&p->s->d->shared, &view);
    if (!view.status.differs_undecided)
        return 0;
    return err_set(err, RAFTDIR_ENOTREADY, "the states of this node and member %" PRIu64 " differ, and no majority says which is right: rebuild the wrong one first",
                   view.status.differs_id);
}

/* May the pinned snapshot still be given to others? */
static int worth_check(struct place *p, struct err *err)
{
    int rc = digests_check(p, err);
    if (rc)
        return rc;
    unsigned generation;
    struct store *store = daemon_store(p->s->d, &generation);
    bool served = store != NULL;
    store_close(&store);
    if (!served)
        return err_set(err, RAFTDIR_ENOTREADY, "this node's state may not be served any more");
    if (generation != p->generation) /* its files are removed, but stay on the disk as long as somebody reads them */
        return err_set(err, RAFTDIR_EBUSY, "an image has taken the place of this node's state: ask for a newer one");
    uint64_t growth = image_reader_growth(p->reader);
    if (growth > image_limits.pin_growth_max)
        return err_set(err, RAFTDIR_EBUSY, "the state has grown by %" PRIu64 " bytes since the image was begun: ask for a newer one", growth);
    return 0;
}

static int begin(struct place *p, struct err *err)
{
    struct daemon *d = p->s->d;
    struct shared_view view;
    int rc = digests_check(p, err);
    if (rc)
        return rc;
    shared_view_get(&d->shared, &view);
    struct store *store = daemon_store(d, &p->generation);
    if (!store)
        return err_set(err, RAFTDIR_ENOTREADY, "this node has no state that it may serve");
    do { /* not 0, and not what an earlier transfer had */
        if (getrandom(&p->pin, sizeof p->pin, 0) != (ssize_t)sizeof p->pin)
            p->pin = now_ns();
    } while (!p->pin);
    rc = image_reader_begin(store, view.cluster_id, view.incarnation, p->pin, &p->reader, err);
    store_close(&store);
    if (rc)
        return rc;
    uint64_t index = image_reader_index(p->reader);
    if (index < p->now.index_min) {
        image_reader_end(&p->reader);
        return err_set(err, RAFTDIR_ENOTREADY, "this node has applied %" PRIu64 ", not yet %" PRIu64, index, p->now.index_min);
    }
    p->began_ms = shared_now_ms();
    p->shown = (struct shared_image){.member = p->to, .index = index};
    return 0;
}

/* The rows in an image, for people. */
static void rows_look(struct place *p, const uint8_t *frame, size_t len)
{
    Raftdir__Image__Frame *f = raftdir__image__frame__unpack(NULL, len, frame);
    if (f && f->body_case == RAFTDIR__IMAGE__FRAME__BODY_HEADER)
        p->shown.rows_total = f->header->rows;
    if (f)
        raftdir__image__frame__free_unpacked(f, NULL);
}

/* One connection. 0: the receiver has all of it. *refuse_r: the error is for the receiver to read, else the connection broke or something else comes first. */
static int connection_run(struct place *p, bool *refuse_r, struct err *err)
{
    const uint8_t *frame;
    size_t len;
    *refuse_r = true;
    int rc;
    if (p->now.pin) {
        if (!p->reader || p->now.pin != p->pin)
            return err_set(err, RAFTDIR_ENOTFOUND, "the image that was begun is not kept any more");
        rc = image_reader_seek(p->reader, p->now.request->resume, err);
        if (rc == 0)
            logger_line(LOGGER_INFO, "image", "sending the image at index %" PRIu64 " to member %" PRIu64 " goes on after %" PRIu64 " bytes", p->shown.index, p->to,
                        p->now.request->resume->offset);
    } else {
        image_reader_end(&p->reader);
        rc = begin(p, err);
        if (rc == 0)
            logger_line(LOGGER_INFO, "image", "sending an image at index %" PRIu64 " to member %" PRIu64, p->shown.index, p->to);
    }
    if (rc == 0)
        rc = image_reader_header(p->reader, &frame, &len, err);
    if (rc)
        return rc;
    rows_look(p, frame, len);
    show(p, "sending");
    for (;;) {
        *refuse_r = false;
        if ((rc = frame_send(p, frame, len, err)) != 0)
            return rc;
        *refuse_r = true;
        if (tls_cancelled(&p->cancel)) {
            *refuse_r = false;
            return err_set(err, RAFTDIR_ECANCELED, "canceled");
        }
        if ((rc = worth_check(p, err)) != 0)
            return rc;
        rc = image_reader_next(p->reader, &frame, &len, err);
        if (rc == RAFTDIR_ENOTFOUND)
            break;
        if (rc)
            return rc;
        show(p, "sending");
    }
    *refuse_r = false;
    rc = tls_stream_receive(p->stream, 0, &frame, &len, err); /* it has nothing to say but goodbye */
    return rc == RAFTDIR_ENOTFOUND ? 0 : rc ? rc : err_set(err, RAFTDIR_EPROTO, "the receiver sent a frame");
}

/* Waits for the receiver to come back. true: it has. */
static bool await_return(struct place *p, struct err *err)
{
    struct image_senders *s = p->s;
    uint64_t until = shared_now_ms() + image_limits.pin_keep_ms;
    show(p, "waiting");
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (!s->stopping && !p->next.ssl) {
            uint64_t now = shared_now_ms(), ms = now < until ? until - now : 0;
            if (!ms)
                break;
            struct timespec at = cond_after_ms(ms < LOOK_MS ? ms : LOOK_MS);
            if (pthread_cond_timedwait(&p->given, &s->mutex, &at))
                break;
        }
        bool stopping = s->stopping, back = p->next.ssl != NULL;
        pthread_mutex_unlock(&s->mutex);
        if (stopping || back)
            return back && !stopping;
        if (worth_check(p, err))
            return false;
        if (shared_now_ms() >= until) {
            err_set(err, RAFTDIR_ETIMEDOUT, "it did not come back within %u ms", image_limits.pin_keep_ms);
            return false;
        }
    }
}

/* Takes the visitor that waits; if there is none, the place is free for anybody. */
static bool visitor_take(struct place *p)
{
    struct image_senders *s = p->s;
    visitor_close(&p->now);
    pthread_mutex_lock(&s->mutex);
    bool there = !s->stopping && p->next.ssl;
    if (there) {
        p->now = p->next;
        memset(&p->next, 0, sizeof p->next);
        tls_cancel_clear(&p->cancel);
    }
    p->busy = there;
    pthread_mutex_unlock(&s->mutex);
    return there;
}

static bool is_stopping(struct image_senders *s)
{
    pthread_mutex_lock(&s->mutex);
    bool stop = s->stopping;
    pthread_mutex_unlock(&s->mutex);
    return stop;
}

/* All connections of one receiver, until it has its image or nobody comes any more. */
static void transfer(struct place *p)
{
    struct tls_stream_options o = {.io_timeout_ms = image_limits.io_timeout_ms, .cancel = &p->cancel};
    struct err err;
    for (;;) {
        bool refuse = false;
        err = (struct err){0};
        int fd = p->now.fd;
        SSL *ssl = p->now.ssl;
        p->now.ssl = NULL;
        int rc = tls_stream_adopt(fd, ssl, &o, &p->stream, &err);
        if (rc == 0)
            rc = connection_run(p, &refuse, &err);
        if (rc && refuse)
            (void)refusal_send(p->stream, rc, err.text);
        tls_stream_close(&p->stream);
        if (rc == RAFTDIR_ECORRUPT) /* a record of our own state */
            consensus_fail(p->s->d->consensus, p->generation, rc, err.text);
        if (rc == 0) {
            logger_line(LOGGER_INFO, "image", "member %" PRIu64 " has the image at index %" PRIu64 ": %" PRIu64 " rows, %" PRIu64 " bytes sent, %.1f s", p->to, p->shown.index,
                        p->shown.rows_total, p->shown.bytes, (double)(shared_now_ms() - p->began_ms) / 1000);
        } else if (refuse) {
            logger_line(LOGGER_INFO, "image", "no image for member %" PRIu64 " now: %s", p->to, err.text);
        } else if (rc != RAFTDIR_ECANCELED && p->reader) {
            logger_line(LOGGER_INFO, "image", "the image at index %" PRIu64 " did not get to member %" PRIu64 ": %s; kept %u s for it to come back", p->shown.index, p->to,
                        err.text, image_limits.pin_keep_ms / 1000);
            err = (struct err){0};
            if (!await_return(p, &err) && !is_stopping(p->s))
                logger_line(LOGGER_INFO, "image", "the image at index %" PRIu64 " is given up: %s", p->shown.index, err.text);
        }
        /* With the pin when the next one may name it: after a broken or replaced connection. */
        bool keep = rc && !refuse;
        if (!keep)
            image_reader_end(&p->reader);
        if (!visitor_take(p))
            return;
        show(p, "sending");
    }
}

static void *place_main(void *data)
{
    struct place *p = data;
    struct image_senders *s = p->s;
    image_thread_humble();
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (!s->stopping && !p->next.ssl)
            pthread_cond_wait(&p->given, &s->mutex);
        bool stop = s->stopping;
        pthread_mutex_unlock(&s->mutex);
        if (stop)
            return NULL;
        if (visitor_take(p)) {
            p->shown = (struct shared_image){.member = p->to};
            transfer(p);
            image_reader_end(&p->reader);
        }
        shared_sending_set(&s->d->shared, p->number, NULL);
    }
}

/* --- The outside --------------------------------------------------------------------------------------------------------------------- */

/* More than there are places for: said in one write that doesn't wait. */
static void turn_away(int fd, SSL *ssl, uint64_t to)
{
    struct tls_stream_options o = {0};
    struct tls_stream *stream;
    char why[ERR_TEXT_LEN];
    snprintf(why, sizeof why, "%d other members are fetching an image here", IMAGE_SENDS_MAX);
    if (tls_stream_adopt(fd, ssl, &o, &stream, NULL))
        return;
    (void)refusal_send(stream, RAFTDIR_EBUSY, why);
    tls_stream_close(&stream);
    logger_limited(LOGGER_INFO, "image", "no image for member %" PRIu64 " now: %s", to, why);
}

static struct place *place_for(struct image_senders *s, uint64_t to)
{
    struct place *free_one = NULL;
    for (unsigned i = 0; i < IMAGE_SENDS_MAX; i++) {
        struct place *p = &s->places[i];
        bool used = p->busy || p->next.ssl;
        if (used && p->to == to)
            return p;
        if (!used && !free_one)
            free_one = p;
    }
    return free_one;
}

/* Copied: the request is another thread's. NULL: no memory, or garbage. */
static Raftdir__Image__Request *request_copy(const Raftdir__Image__Request *request)
{
    size_t len = raftdir__image__request__get_packed_size(request);
    uint8_t *buf = malloc(len ? len : 1);
    if (!buf)
        return NULL;
    raftdir__image__request__pack(request, buf);
    Raftdir__Image__Request *copy = raftdir__image__request__unpack(NULL, len, buf);
    free(buf);
    return copy;
}

void image_senders_take(struct image_senders *s, uint64_t to, int fd, SSL *ssl, const Raftdir__Image__Request *request)
{
    struct visitor v = {.fd = fd, .ssl = ssl, .index_min = request->index_min, .request = request_copy(request)};
    if (!v.request) {
        visitor_close(&v);
        return;
    }
    v.pin = v.request->resume ? v.request->resume->pin : 0;
    pthread_mutex_lock(&s->mutex);
    struct place *p = s->stopping ? NULL : place_for(s, to);
    bool full = !s->stopping && !p;
    if (p) {
        visitor_close(&p->next);
        p->next = v;
        if (p->to != to) /* then the thread is at rest */
            p->to = to;
        tls_cancel_now(&p->cancel);
        pthread_cond_signal(&p->given);
    }
    pthread_mutex_unlock(&s->mutex);
    if (full) {
        v.ssl = NULL;
        turn_away(fd, ssl, to);
    }
    if (!p)
        visitor_close(&v);
}

int image_senders_start(struct daemon *d, struct image_senders **senders_r, struct err *err)
{
    struct image_senders *s = mem_calloc(1, sizeof *s);
    int rc = 0;
    s->d = d;
    pthread_mutex_init(&s->mutex, NULL);
    for (unsigned i = 0; i < IMAGE_SENDS_MAX; i++) {
        s->places[i].s = s;
        s->places[i].number = i;
        s->places[i].cancel.fd = -1;
        cond_init(&s->places[i].given);
    }
    for (unsigned i = 0; i < IMAGE_SENDS_MAX && !rc; i++) {
        struct place *p = &s->places[i];
        rc = tls_cancel_init(&p->cancel, err);
        if (rc)
            break;
        int e = pthread_create(&p->thread, NULL, place_main, p);
        p->started = e == 0;
        if (e)
            rc = err_set(err, RAFTDIR_ELIMIT, "thread for images: %s", strerror(e));
    }
    if (rc)
        image_senders_stop(&s);
    *senders_r = s;
    return rc;
}

void image_senders_stop(struct image_senders **senders)
{
    struct image_senders *s = *senders;
    *senders = NULL;
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    s->stopping = true;
    for (unsigned i = 0; i < IMAGE_SENDS_MAX; i++) {
        if (s->places[i].started)
            tls_cancel_now(&s->places[i].cancel);
        pthread_cond_signal(&s->places[i].given);
    }
    pthread_mutex_unlock(&s->mutex);
    for (unsigned i = 0; i < IMAGE_SENDS_MAX; i++) {
        struct place *p = &s->places[i];
        if (p->started)
            pthread_join(p->thread, NULL);
        visitor_close(&p->next);
        tls_cancel_close(&p->cancel);
        pthread_cond_destroy(&p->given);
    }
    pthread_mutex_destroy(&s->mutex);
    free(s);
}
