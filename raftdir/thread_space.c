/* thread_space.c - see thread_space.h; space.c decides, and has the ballast.
 *
 * A thread of its own: a statvfs of a disk that hangs must hold nobody up. Every look tells the consensus thread how it stands when that has changed, and the status
 * how much is free; log lines are written at changes only.
 * NODE_SPACE_NONE is not said here: the log and apply threads know it first, from the write that failed. After that the ballast is gone and the disk is
 * LOW at least until it can be made again, so a node never swings between "none" and "enough".
 *
 * Failures: a disk that can't be asked leaves everything as it was, with a line in the log; a ballast that can't be made is tried again after BALLAST_RETRY_MS. On a file
 * system without fallocate there is no ballast: LOW is said all the same, at twice the reserve, but what fills the disk from outside can take everything.
 * Known limits: quotas of the file system that statvfs doesn't show are met as a failed write only. The state's file never shrinks: what deletions set free inside is
 * counted as room of the quota, and the disk gets it back with an image. */
#include "thread_space.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include "cond.h"
#include "logger.h"
#include "space.h"
#include "thread_consensus.h"

#define BALLAST_RETRY_MS 10000
#define STATE_LOOK_MS 5000 /* the free pages are counted this often, and only when the file is near its end */

struct space_watch {
    struct daemon *d;
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex; /* stopping, ballast */
    pthread_cond_t cond;
    bool stopping;
    struct space_ballast ballast;
    /* The thread's own. */
    struct space_plan plan;
    bool told, unsupported;
    uint64_t ballast_next_ms;
    uint64_t state_next_ms, state_used, state_max;
    unsigned state_generation;
};

/* --- Looking --------------------------------------------------------------------------------------------------------------------- */

/* What the state takes, without the pages that are free inside: those are only counted when they matter. */
static int state_look(struct space_watch *w, uint64_t now, struct err *err)
{
    struct daemon *d = w->d;
    unsigned generation;
    struct store *store = daemon_store(d, &generation);
    struct store_txn *txn;
    if (!store) {
        w->state_used = w->state_max = 0;
        return 0;
    }
    int rc = 0;
    uint64_t used = store_used_len(store), max = store_map_len(store), free_len = 0, quota = d->config->state_quota_len;
    if (quota && quota < max)
        max = quota;
    if (used < max - max / 10) {
        w->state_used = used;
    } else if (now >= w->state_next_ms || generation != w->state_generation) {
        if ((rc = store_read_begin(store, &txn, err)) == 0) {
            rc = store_free_len(txn, &free_len, err);
            store_read_end(&txn);
        }
        if (rc == 0)
            w->state_used = used > free_len ? used - free_len : 0;
        w->state_next_ms = now + STATE_LOOK_MS;
    }
    w->state_max = max;
    w->state_generation = generation;
    store_close(&store);
    return rc;
}

static void alarm_tell(struct space_watch *w, const struct space_look *look)
{
    char text[ERR_TEXT_LEN], a[SPACE_TEXT_SIZE], b[SPACE_TEXT_SIZE];
    if (w->plan.disk_low)
        snprintf(text, sizeof text, "%s free on the disk of %s, less than the reserve of %s%s: writes that grow the directory are refused, deletes pass; make room there",
                 space_text(look->free_len, a), w->d->config->data_dir, space_text(look->reserve_len, b),
                 look->ballast_len ? " beside the ballast file" : ", which is given up or couldn't be made");
    else if (w->plan.state_low)
        snprintf(text, sizeof text, "the state takes %s of the %s that it may (%s): writes that grow the directory are refused, deletes pass; delete, or raise it",
                 space_text(look->used_len, a), space_text(look->used_max, b), w->d->config->state_quota_len == look->used_max ? "state_quota" : "the map's length");
    bool low = w->plan.disk_low || w->plan.state_low;
    shared_alarm_set(&w->d->shared, ALARM_SPACE, low ? text : NULL);
}

static void changes_log(struct space_watch *w, const struct space_look *look, const struct space_plan *before)
{
    char a[SPACE_TEXT_SIZE], b[SPACE_TEXT_SIZE];
    if (w->plan.disk_low && !before->disk_low)
        logger_line(LOGGER_WARN, "space", "ALARM: low: %s free on the disk of %s, the reserve is %s: only writes that don't grow the directory are taken; make room there",
                    space_text(look->free_len, a), w->d->config->data_dir, space_text(look->reserve_len, b));
    else if (!w->plan.disk_low && before->disk_low)
        logger_line(LOGGER_INFO, "space", "%s free on the disk of %s: enough again", space_text(look->free_len, a), w->d->config->data_dir);
    if (w->plan.state_low && !before->state_low)
        logger_line(LOGGER_WARN, "space", "ALARM: low: the state takes %s of the %s that it may: only writes that don't grow the directory are taken; delete, or raise state_quota",
                    space_text(look->used_len, a), space_text(look->used_max, b));
    else if (!w->plan.state_low && before->state_low)
        logger_line(LOGGER_INFO, "space", "the state takes %s of the %s that it may: enough room again", space_text(look->used_len, a), space_text(look->used_max, b));
}

static void ballast_make(struct space_watch *w, uint64_t reserve, uint64_t now)
{
    struct err err = {0};
    char text[SPACE_TEXT_SIZE];
    if (w->unsupported || now < w->ballast_next_ms)
        return;
    w->ballast_next_ms = now + BALLAST_RETRY_MS;
    pthread_mutex_lock(&w->mutex);
    int rc = space_ballast_make(&w->ballast, reserve, &err);
    pthread_mutex_unlock(&w->mutex);
    w->unsupported = rc == RAFTDIR_EUNSUPPORTED;
    if (rc == 0)
        logger_line(LOGGER_INFO, "space", "a reserve of %s is kept in %s/ballast", space_text(reserve, text), w->d->config->data_dir);
    else if (w->unsupported)
        logger_line(LOGGER_WARN, "space", "the file system of %s can't keep room for a file (%s): there is no reserve when it is filled from outside", w->d->config->data_dir, err.text);
    else
        logger_limited(LOGGER_WARN, "space", "the reserve of %s can't be made in %s: %s", space_text(reserve, text), w->d->config->data_dir, err.text);
}

static void look(struct space_watch *w)
{
    struct daemon *d = w->d;
    struct statvfs vfs;
    struct err err = {0};
    uint64_t now = shared_now_ms();
    while (fstatvfs(w->ballast.dir_fd, &vfs) != 0) {
        if (errno == EINTR)
            continue;
        logger_limited(LOGGER_WARN, "space", "can't ask the disk of %s how much is free: %s", d->config->data_dir, strerror(errno));
        return;
    }
    if (state_look(w, now, &err) != 0)
        logger_limited(LOGGER_WARN, "space", "can't ask the state how much is free: %s", err.text);
    pthread_mutex_lock(&w->mutex);
    struct space_look look = {.free_len = (uint64_t)vfs.f_bavail * vfs.f_frsize,
                              .ballast_len = w->ballast.len,
                              .reserve_len = d->config->space_reserve_len,
                              .used_len = w->state_used,
                              .used_max = w->state_max};
    pthread_mutex_unlock(&w->mutex);
    struct space_plan before = w->plan;
    w->plan = space_decide(&look, &before);
    shared_space_set(&d->shared, look.free_len ? look.free_len : 1); /* 0: not looked yet */
    if (!w->told || space_of_plan(&w->plan) != space_of_plan(&before))
        consensus_space(d->consensus, space_of_plan(&w->plan));
    w->told = true;
    alarm_tell(w, &look);
    changes_log(w, &look, &before);
    if (w->plan.ballast_make)
        ballast_make(w, look.reserve_len, now);
}

static void *run(void *arg)
{
    struct space_watch *w = arg;
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping) {
        pthread_mutex_unlock(&w->mutex);
        look(w);
        struct timespec until = cond_after_ms(SPACE_CHECK_MS);
        pthread_mutex_lock(&w->mutex);
        while (!w->stopping && pthread_cond_timedwait(&w->cond, &w->mutex, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* --- For the others ------------------------------------------------------------------------------------------------------------------ */

int space_watch_create(struct daemon *d, struct space_watch **watch_r, struct err *err)
{
    struct space_watch *w = mem_calloc(1, sizeof *w);
    w->d = d;
    int rc = space_ballast_open(&w->ballast, d->config->data_dir, d->config->space_reserve_len, err);
    if (rc != 0) {
        free(w);
        return rc;
    }
    pthread_mutex_init(&w->mutex, NULL);
    cond_init(&w->cond);
    *watch_r = w;
    return 0;
}

int space_watch_start(struct space_watch *w, struct err *err)
{
    int rc = pthread_create(&w->thread, NULL, run, w);
    if (rc != 0)
        return err_set(err, err_from_errno(rc), "can't start the space thread: too many threads?");
    w->started = true;
    return 0;
}

bool space_watch_release(struct space_watch *w)
{
    char text[SPACE_TEXT_SIZE];
    pthread_mutex_lock(&w->mutex);
    bool released = space_ballast_free(&w->ballast);
    pthread_mutex_unlock(&w->mutex);
    if (released)
        logger_line(LOGGER_WARN, "space", "ALARM: the disk of %s is full: the reserve of %s was given up, so that deletes go on; make room there", w->d->config->data_dir,
                    space_text(w->d->config->space_reserve_len, text));
    return released;
}

void space_watch_stop(struct space_watch *w)
{
    if (!w || !w->started)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    w->started = false;
}

void space_watch_destroy(struct space_watch **watch)
{
    struct space_watch *w = *watch;
    *watch = NULL;
    if (!w)
        return;
    space_ballast_close(&w->ballast);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}
