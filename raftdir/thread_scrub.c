/* thread_scrub.c - see thread_scrub.h.
 *
 * Happy path of a run: a reference of the state, one read transaction, store_verify; then the log's files, seglog_scrub; nothing found: scrubbed.
 * Anything found, in state or log, or pages that LMDB refuses: consensus_fail, with the first problem.
 * Given up: the daemon stops, the log is closed or the state replaced (image, reset) meanwhile, or the state grew by IMAGE_PIN_GROWTH_MAX while the run's
 * snapshot kept old pages from being used again; the scrub then comes back after RETRY_S. While a verify runs, which does the same, it waits as well.
 *
 * The thread has nice 19 and the idle I/O class: it takes what nobody else wants. The first scrub of a process comes after a tenth of the interval and some
 * jitter, so that neither restarts nor a whole cluster started at once scrub all the time.
 *
 * Known limits: what is in the page cache is read from there, so a bad sector under a cached page is found when the page is read from the disk again.
 * LMDB reads its file through a mapping: a sector that the disk can't read raises SIGBUS in whichever thread touches it, and the process ends; the next start is
 * in state FAILED (fault.h). Stale but well-formed pages in the place of current ones are found by the digest and the counters, not by their checksums. */
#include "thread_scrub.h"
#include <inttypes.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "cond.h"
#include "logger.h"
#include "thread_consensus.h"

#define FIRST_MIN_S 60
#define RETRY_S 60
#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_IDLE (3 << 13)

/* --- One run ------------------------------------------------------------------------------------------------------------------------- */

static void on_progress(void *data, uint64_t done, uint64_t total)
{
    struct scrub_run *run = data;
    atomic_store(&run->total, total);
    atomic_store(&run->done, done);
}

static void on_log_progress(void *data, uint64_t len)
{
    struct scrub_run *run = data;
    atomic_store(&run->log_len, len);
}

static void text_keep(struct scrub_run *run, const char *text)
{
    if (run->texts_n < VERIFY_PROBLEMS_MAX)
        run->texts[run->texts_n++] = mem_strdup(text);
}

static void on_problem(void *data, const char *text)
{
    text_keep(data, text);
}

static bool on_stop(void *data)
{
    struct scrub_run *run = data;
    struct daemon *d = run->d;
    if (run->why_stopped)
        return true;
    if (atomic_load(&d->stop_wanted) || atomic_load(&d->store_generation) != run->generation || (run->stop && run->stop(run->data)))
        run->why_stopped = RAFTDIR_ECANCELED;
    else if (atomic_load(&run->in_log) && atomic_load(&d->log_closing))
        run->why_stopped = RAFTDIR_ECANCELED;
    else if (run->store && store_used_len(run->store) > run->used_len + IMAGE_PIN_GROWTH_MAX)
        run->why_stopped = RAFTDIR_ELIMIT;
    return run->why_stopped != 0;
}

/* A tree that can't be walked to its end is damage as well. */
static int damage_to_problem(struct scrub_run *run, int rc, const struct err *err)
{
    if (run->why_stopped || (rc != RAFTDIR_ECORRUPT && rc != RAFTDIR_EIO))
        return rc;
    run->problems++;
    text_keep(run, err->text);
    return 0;
}

static int state_read(struct scrub_run *run, struct err *err)
{
    struct store_txn *txn;
    int rc = store_read_begin(run->store, &txn, err);
    if (rc != 0)
        return rc;
    struct store_verify_cb cb = {.data = run, .progress = on_progress, .problem = on_problem, .stop = on_stop};
    uint64_t problems = 0;
    run->checkpoints_n = DIGESTS_KEPT;
    if ((rc = store_meta_get(txn, &run->meta, err)) == 0 && (rc = store_checkpoints_get(txn, run->checkpoints, &run->checkpoints_n, err)) == 0)
        rc = store_verify(txn, &cb, run->digest, &problems, err);
    store_read_end(&txn);
    run->problems += problems;
    return damage_to_problem(run, rc, err);
}

static int log_read(struct scrub_run *run, struct err *err)
{
    const struct seglog *log = daemon_log_hold(run->d);
    if (!log)
        return 0;
    struct seglog_scrub_cb cb = {.data = run, .problem = on_problem, .stop = on_stop, .progress = on_log_progress};
    uint64_t problems = 0;
    atomic_store(&run->in_log, true);
    int rc = seglog_scrub(log, &cb, &problems, err);
    daemon_log_release(run->d);
    run->problems += problems;
    return rc;
}

int scrub_run(struct scrub_run *run, struct err *err)
{
    struct daemon *d = run->d;
    run->store = daemon_store(d, &run->generation);
    if (!run->store)
        return err_set(err, RAFTDIR_ENOTREADY, "there is no state to read");
    run->used_len = store_used_len(run->store);
    int rc = state_read(run, err);
    store_close(&run->store);
    if (rc == 0)
        rc = log_read(run, err);
    if (rc == RAFTDIR_ECANCELED && run->why_stopped == RAFTDIR_ELIMIT)
        rc = err_set(err, RAFTDIR_ELIMIT, "given up, because the state grew by %llu bytes meanwhile, whose pages it held back: try again when less is written", IMAGE_PIN_GROWTH_MAX);
    /* What was found in a state that isn't this node's any more says nothing about the one that is. */
    if (rc == 0 && atomic_load(&d->store_generation) != run->generation)
        rc = RAFTDIR_ECANCELED;
    if (rc == RAFTDIR_ECANCELED)
        return err_set(err, rc, atomic_load(&d->stop_wanted) ? "the daemon stops" : "stopped before everything was read");
    if (rc != 0)
        return rc;
    if (run->problems) {
        char why[ERR_TEXT_LEN];
        snprintf(why, sizeof why, "%" PRIu64 " problem%s on this node's disk: %s", run->problems, run->problems == 1 ? "" : "s",
                 run->texts_n ? run->texts[0] : "");
        logger_line(LOGGER_ERROR, "scrub", "ALARM: %s", why);
        shared_alarm_set(&d->shared, ALARM_SCRUB, why);
        consensus_fail(d->consensus, run->generation, RAFTDIR_ECORRUPT, why);
    } else {
        shared_alarm_set(&d->shared, ALARM_SCRUB, NULL);
        shared_scrubbed(&d->shared, shared_now_ms());
    }
    return 0;
}

void scrub_run_clear(struct scrub_run *run)
{
    for (size_t i = 0; i < run->texts_n; i++)
        free(run->texts[i]);
    run->texts_n = 0;
}

/* --- The thread ------------------------------------------------------------------------------------------------------------------------ */

struct scrub {
    struct daemon *d;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    _Atomic bool stopping; /* changed under the mutex */
};

static bool asked_to_stop(void *data)
{
    return atomic_load(&((struct scrub *)data)->stopping);
}

/* One scrub; how many seconds until the next. */
static unsigned scrub_once(struct scrub *s)
{
    struct daemon *d = s->d;
    unsigned interval_s = d->config->scrub_interval_s, retry_s = interval_s < RETRY_S ? interval_s : RETRY_S;
    struct shared_view view;
    struct err err = {0};
    shared_view_get(&d->shared, &view);
    if (view.phase != SHARED_RUNNING || atomic_exchange(&d->verify_runs, true))
        return retry_s;
    struct scrub_run *run = mem_calloc(1, sizeof *run);
    run->d = d;
    run->data = s;
    run->stop = asked_to_stop;
    uint64_t began = shared_now_ms();
    logger_line(LOGGER_DEBUG, "scrub", "begins");
    int rc = scrub_run(run, &err);
    atomic_store(&d->verify_runs, false);
    uint64_t took = shared_now_ms() - began;
    if (rc == 0)
        logger_line(LOGGER_INFO, "scrub", "read %" PRIu64 " rows at index %" PRIu64 " and %" PRIu64 " bytes of the log in %" PRIu64 ".%03" PRIu64 " s: %s", atomic_load(&run->done),
                    run->meta.applied_index, atomic_load(&run->log_len), took / 1000, took % 1000, run->problems ? "damaged" : "in order");
    else if (rc == RAFTDIR_ECANCELED || rc == RAFTDIR_ENOTREADY)
        logger_line(LOGGER_DEBUG, "scrub", "%s", err.text);
    else
        logger_line(LOGGER_WARN, "scrub", "not complete: %s", err.text);
    scrub_run_clear(run);
    free(run);
    return rc == 0 ? interval_s : retry_s;
}

static void *thread_main(void *arg)
{
    struct scrub *s = arg;
    unsigned interval_s = s->d->config->scrub_interval_s, jitter = 0;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19); /* of this thread; without it the scrub is in the way, no more */
    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE);
    if (getrandom(&jitter, sizeof jitter, 0) != sizeof jitter)
        jitter = 0;
    unsigned wait_s = interval_s / 10 + jitter % (interval_s / 10 + 1);
    if (wait_s < FIRST_MIN_S)
        wait_s = interval_s < FIRST_MIN_S ? interval_s : FIRST_MIN_S;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        struct timespec until = cond_after_ms(1000ull * wait_s);
        while (!atomic_load(&s->stopping) && pthread_cond_timedwait(&s->cond, &s->mutex, &until) == 0)
            ;
        if (atomic_load(&s->stopping))
            break;
        pthread_mutex_unlock(&s->mutex);
        wait_s = scrub_once(s);
        pthread_mutex_lock(&s->mutex);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

int scrub_start(struct daemon *d, struct scrub **scrub_r, struct err *err)
{
    *scrub_r = NULL;
    if (!d->config->scrub_interval_s)
        return 0;
    struct scrub *s = mem_calloc(1, sizeof *s);
    s->d = d;
    pthread_mutex_init(&s->mutex, NULL);
    cond_init(&s->cond);
    int rc = pthread_create(&s->thread, NULL, thread_main, s);
    if (rc != 0) {
        pthread_cond_destroy(&s->cond);
        pthread_mutex_destroy(&s->mutex);
        free(s);
        return err_set(err, err_from_errno(rc), "can't start the scrub thread: too many threads?");
    }
    *scrub_r = s;
    return 0;
}

void scrub_stop(struct scrub **scrub)
{
    struct scrub *s = *scrub;
    *scrub = NULL;
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    atomic_store(&s->stopping, true);
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}
