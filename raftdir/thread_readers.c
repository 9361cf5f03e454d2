/* thread_readers.c - see thread_readers.h; store_readers.c knows the slots.
 *
 * A look every READERS_CHECK_MS. What the oldest reader holds back is counted only when the file is longer than what it holds by half of state_growth at least, since that
 * reads a row for each commit since. From that half on: an alarm with the process and how far it is behind. Beyond all of it: consensus_renew, again and again while it is so; the
 * consensus thread decides when that can be.
 * The daemon's own readers (a scrub, a verify, an image that is sent, a copy) end by limits of their own, and a new copy would not help: they are told, and nothing more.
 *
 * Held up: LMDB's mutex of the slots is held for a few instructions by a process that begins to read; one that is stopped just there holds this thread up, until it goes on or
 * ends (the mutex is robust). Nobody waits for this thread, not even the stop: what it shares with the daemon is left to it then, and the process's end ends it. Meanwhile dead slots aren't
 * freed and the alarm stays what it was. Whoever takes a slot of that file waits likewise: a scrub, a verify, an image or copy at their begin, and a daemon that is started on it. LMDB has no limit of
 * time there; the process has to be continued or killed. */
#include "thread_readers.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "cond.h"
#include "logger.h"
#include "space.h"
#include "thread_consensus.h"

#define STOP_WAIT_MS 500

struct readers_watch {
    struct daemon *d; /* not any more once it is abandoned */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool stopping, ended, abandoned; /* under the mutex */
    unsigned generation;             /* of the state that was looked at last */
    bool alarmed;
};

static void alarm_set(struct readers_watch *w, const char *text)
{
    struct daemon *d = w->d;
    shared_alarm_set(&d->shared, ALARM_READER, text);
    if (text && !w->alarmed)
        logger_line(LOGGER_WARN, "readers", "ALARM: %s", text);
    else if (!text && w->alarmed)
        logger_line(LOGGER_INFO, "readers", "no reader holds much of the state back any more");
    w->alarmed = text != NULL;
}

static int held_get(struct store *store, const struct store_readers *r, uint64_t worth, uint64_t *held_r, struct err *err)
{
    struct store_txn *txn;
    uint64_t used = store_used_len(store), live;
    *held_r = 0;
    if (!r->oldest_lag || used < worth)
        return 0;
    int rc = store_read_begin(store, &txn, err);
    if (rc != 0)
        return rc;
    rc = store_live_len(txn, &live, err);
    if (rc == 0 && used - (live < used ? live : used) >= worth)
        rc = store_held_len(txn, r->oldest_at, held_r, err);
    store_read_end(&txn);
    return rc;
}

static void judge(struct readers_watch *w, const struct store_readers *r, uint64_t held)
{
    struct daemon *d = w->d;
    uint64_t growth = d->config->state_growth_len;
    char text[ERR_TEXT_LEN], a[SPACE_TEXT_SIZE], b[SPACE_TEXT_SIZE];
    if (held <= growth / 2) {
        alarm_set(w, NULL);
        return;
    }
    space_text(held, a);
    space_text(growth, b);
    if (r->oldest_pid == (int)getpid()) {
        snprintf(text, sizeof text, "a scrub, a verify or an image that is sent reads the state as it was %" PRIu64 " commits ago and holds %s of it back; it ends by itself", r->oldest_lag, a);
        alarm_set(w, text);
        return;
    }
    snprintf(text, sizeof text, "process %d of this host reads the state as it was %" PRIu64 " commits ago and holds %s of it back (state_growth is %s): does it hang, or is it stopped? %s", r->oldest_pid,
             r->oldest_lag, a, b, held > growth ? "The state is copied, and it keeps the old one until it ends" : "It may be ended");
    alarm_set(w, text);
    if (held > growth)
        consensus_renew(d->consensus, text);
}

/* After each step that may take as long as a stopped process likes: is there still somebody to tell? */
static bool abandoned(struct readers_watch *w)
{
    pthread_mutex_lock(&w->mutex);
    bool is = w->abandoned;
    pthread_mutex_unlock(&w->mutex);
    return is;
}

static void look(struct readers_watch *w)
{
    struct store_readers r = {0};
    struct err err = {0};
    uint64_t held = 0;
    unsigned generation;
    struct store *store = daemon_store(w->d, &generation);
    if (!store) {
        alarm_set(w, NULL);
        shared_readers_set(&w->d->shared, 0);
        return;
    }
    uint64_t worth = w->d->config->state_growth_len / 2;
    int rc = store_readers_check(store, &r, &err);
    if (rc == 0 && !abandoned(w))
        rc = held_get(store, &r, worth, &held, &err);
    if (abandoned(w))
        return; /* the daemon may be gone, and the process ends */
    if (rc != 0) {
        logger_limited(LOGGER_WARN, "readers", "can't look after the readers of the state: %s", err.text);
    } else {
        shared_readers_set(&w->d->shared, r.others);
        judge(w, &r, held);
    }
    store_close(&store);
}

static void *run(void *arg)
{
    struct readers_watch *w = arg;
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping) {
        pthread_mutex_unlock(&w->mutex);
        look(w);
        struct timespec until = cond_after_ms(READERS_CHECK_MS);
        pthread_mutex_lock(&w->mutex);
        while (!w->stopping && pthread_cond_timedwait(&w->cond, &w->mutex, &until) == 0)
            ;
    }
    w->ended = true;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

int readers_watch_start(struct daemon *d, struct readers_watch **watch_r, struct err *err)
{
    struct readers_watch *w = mem_calloc(1, sizeof *w);
    w->d = d;
    pthread_mutex_init(&w->mutex, NULL);
    cond_init(&w->cond);
    int rc = pthread_create(&w->thread, NULL, run, w);
    if (rc != 0) {
        pthread_cond_destroy(&w->cond);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        return err_set(err, err_from_errno(rc), "can't start the readers thread: too many threads?");
    }
    *watch_r = w;
    return 0;
}

void readers_watch_stop(struct readers_watch **watch)
{
    struct readers_watch *w = *watch;
    *watch = NULL;
    if (!w)
        return;
    struct timespec until = cond_after_ms(STOP_WAIT_MS);
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_broadcast(&w->cond);
    while (!w->ended && pthread_cond_timedwait(&w->cond, &w->mutex, &until) == 0)
        ;
    w->abandoned = !w->ended;
    pthread_mutex_unlock(&w->mutex);
    if (w->abandoned) { /* never freed: it is the thread's, and the process ends */
        pthread_detach(w->thread);
        logger_line(LOGGER_WARN, "readers", "a process that was stopped while it began to read the state holds up who looks after the readers: not waited for");
        return;
    }
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}
