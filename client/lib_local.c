/* lib_local.c - what this process has open of the node on its own host: the status page and the state, shared by all handles and threads. See lib_local.h.
 *
 * A page is one mapping a data directory; a state is one LMDB environment a data file. Both are counted, found in lists under one mutex, and closed with the last
 * handle that uses them. The mutex is taken when a handle opens or drops one, never by a lookup that finds both as they were.
 *
 * One environment a file and process is LMDB's rule: POSIX locks belong to the process, and closing any descriptor of lock.mdb drops them all, after which the daemon
 * would take this process for dead and free the slots that it reads under. So a state is known by device and inode of its data file, not by its path: after a
 * reset of the node there is another gen-1.
 *
 * fork. The child has the parent's mappings and slot numbers, and none of its locks. In LMDB 0.9 ending a transaction or closing an environment clears slots that are the
 * parent's (by the pid that the environment was opened with): so a child doesn't touch what it inherited, ever; it is kept reachable and costs address space and two
 * descriptors until the child ends or executes something. Handles opened in the child open environments of their own. The mutex is held across the
 * fork, so that the child finds the lists whole.
 *
 * Known limits
 * - A handle holds its environment between calls (not a snapshot: those are ended at once). The disk space of a generation that was replaced is free when each process that
 *   had it open has made a call again, or has ended.
 * - Descriptors closed behind the library's back (closefrom) take the locks with them. Open handles after becoming a daemon.
 * - Readers and the daemon must share a PID namespace: LMDB tells them apart by pid.
 * - A state that is damaged in LMDB's own pages may end the process, as it ends the daemon, which then doesn't serve it again (fault.h). Damaged records are found by
 *   their checksums. The file is never truncated, so reading it raises no SIGBUS, unless its disk fails.
 * - A process that is stopped (SIGSTOP) in the microseconds in which it takes its slot holds LMDB's readers' mutex: others' first lookup waits for it. */
#include "lib_local.h"
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct local_page {
    struct local_page *next;
    unsigned refs;
    char *dir;
    const struct page *page;
    uint64_t inode;
};

struct local_state {
    struct local_state *next;
    unsigned refs;
    dev_t dev;
    ino_t ino;
    struct store *store;
};

/* A transaction that must not be ended: see local_txn. */
struct lost_txn {
    struct lost_txn *next;
    struct store_txn *txn;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static int fork_rc;
static struct local_page *pages;
static struct local_state *states;
/* Reachable, so that leak checkers don't take them for forgotten; never looked at. */
static struct lost_txn *lost_txns;
static struct local *inherited;
static struct local_state *inherited_states;

/* --- fork ------------------------------------------------------------------------------------------------------------------- */

static void fork_prepare(void)
{
    pthread_mutex_lock(&mutex);
}

static void fork_parent(void)
{
    pthread_mutex_unlock(&mutex);
}

static void fork_child(void)
{
    struct local_state **last = &inherited_states;
    while (*last)
        last = &(*last)->next;
    *last = states;
    states = NULL;
    pages = NULL; /* their handles still hold them; a mapping of a file is the child's own to keep */
    pthread_mutex_unlock(&mutex);
}

static void fork_register(void)
{
    fork_rc = pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* --- Pages --------------------------------------------------------------------------------------------------------------------- */

static int page_open(const char *dir, struct local_page **page_r, struct err *err)
{
    for (struct local_page *p = pages; p; p = p->next)
        if (strcmp(p->dir, dir) == 0 && page_is_current(dir, p->inode)) {
            p->refs++;
            *page_r = p;
            return 0;
        }
    struct local_page *p = calloc(1, sizeof *p);
    if (!p || !(p->dir = strdup(dir))) {
        free(p);
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    }
    int rc = page_map(dir, &p->page, &p->inode, err);
    if (rc != 0) {
        free(p->dir);
        free(p);
        return rc;
    }
    p->refs = 1;
    p->next = pages;
    pages = p;
    *page_r = p;
    return 0;
}

static void page_close(struct local_page **page)
{
    struct local_page *p = *page;
    *page = NULL;
    if (!p)
        return;
    pthread_mutex_lock(&mutex);
    bool last = --p->refs == 0;
    if (last)
        for (struct local_page **at = &pages; *at; at = &(*at)->next)
            if (*at == p) {
                *at = p->next;
                break;
            }
    pthread_mutex_unlock(&mutex);
    if (!last)
        return;
    page_unmap(&p->page);
    free(p->dir);
    free(p);
}

/* --- States ---------------------------------------------------------------------------------------------------------------------- */

static int state_path(const char *dir, uint64_t generation, const char *file, char *path_r, size_t size, struct err *err)
{
    int n = snprintf(path_r, size, "%s/gen-%llu/state%s", dir, (unsigned long long)generation, file);
    return n < 0 || (size_t)n >= size ? err_set(err, RAFTDIR_EINVAL, "%s: the path is too long", dir) : 0;
}

static int state_open(const char *dir, uint64_t generation, struct local_state **state_r, struct err *err)
{
    char path[4096], data[4096];
    struct stat before, after;
    int rc;
    if ((rc = state_path(dir, generation, "", path, sizeof path, err)) != 0 || (rc = state_path(dir, generation, "/data.mdb", data, sizeof data, err)) != 0)
        return rc;
    if (stat(data, &before) != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s can't be read", data);
    for (struct local_state *s = states; s; s = s->next)
        if (s->dev == before.st_dev && s->ino == before.st_ino) {
            s->refs++;
            *state_r = s;
            return 0;
        }
    struct local_state *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    struct store_options o = {.read_only = true};
    if ((rc = store_open(path, &o, &s->store, err)) != 0) {
        free(s);
        return rc;
    }
    /* Another file by now: which of them is open isn't known. */
    if (stat(data, &after) != 0 || after.st_dev != before.st_dev || after.st_ino != before.st_ino) {
        store_close(&s->store);
        free(s);
        return err_set(err, RAFTDIR_EUNAVAIL, "%s was replaced", data);
    }
    s->dev = before.st_dev;
    s->ino = before.st_ino;
    s->refs = 1;
    s->next = states;
    states = s;
    *state_r = s;
    return 0;
}

/* Closed under the mutex: the same file must not be opened before its descriptors are closed. */
static void state_close(struct local_state **state)
{
    struct local_state *s = *state;
    *state = NULL;
    if (!s)
        return;
    pthread_mutex_lock(&mutex);
    if (--s->refs == 0) {
        for (struct local_state **at = &states; *at; at = &(*at)->next)
            if (*at == s) {
                *at = s->next;
                break;
            }
        store_close(&s->store);
        free(s);
    }
    pthread_mutex_unlock(&mutex);
}

/* --- A handle's part -------------------------------------------------------------------------------------------------------------- */

int local_create(const char *dir, bool asked_for, struct local **l_r)
{
    struct local *l = calloc(1, sizeof *l);
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    if (!l || !(l->dir = strndup(dir, len)) || asprintf(&l->endpoint, "local:%s", l->dir) < 0) {
        if (l)
            free(l->dir);
        free(l);
        return RAFTDIR_ENOMEM;
    }
    l->asked_for = asked_for;
    *l_r = l;
    return 0;
}

void local_destroy(struct local **lp, bool ours)
{
    struct local *l = *lp;
    *lp = NULL;
    if (!l)
        return;
    if (!ours) {
        /* The child's mutex is free, but its lists are its own: nothing here is in them. */
        l->next = inherited;
        inherited = l;
        return;
    }
    local_state_drop(l);
    page_close(&l->page);
    free(l->dir);
    free(l->endpoint);
    free(l->text[0].s);
    free(l->text[1].s);
    free(l);
}

const struct page *local_page_of(const struct local *l)
{
    return l->page->page;
}

static void key_of(const struct page *p, struct local_key *key_r)
{
    key_r->cluster_id = atomic_load(&p->cluster_id);
    key_r->node_id = atomic_load(&p->node_id);
    key_r->generation = atomic_load(&p->generation);
}

bool local_is_same(const struct local *l)
{
    struct local_key now;
    const struct page *p = l->page->page;
    key_of(p, &now);
    return now.cluster_id == l->key.cluster_id && now.node_id == l->key.node_id && now.generation == l->key.generation && atomic_load(&p->serving) == 1;
}

void local_state_drop(struct local *l)
{
    if (l->txn)
        store_read_end(&l->txn);
    state_close(&l->state);
}

static int later(struct local *l, int rc, uint64_t now)
{
    l->retry_ms = !l->retry_ms ? LOCAL_RETRY_MIN_MS : l->retry_ms * 2 < LOCAL_RETRY_MAX_MS ? l->retry_ms * 2 : LOCAL_RETRY_MAX_MS;
    l->retry_at = now + l->retry_ms;
    return rc;
}

void local_fails(struct local *l)
{
    local_state_drop(l);
    later(l, 0, page_now_ms());
}

/* Something isn't as it was: the page, the generation, or there is nothing yet. */
static int attach_anew(struct local *l)
{
    uint64_t now = page_now_ms();
    if (l->page && now >= l->look_at) {
        l->look_at = now + LOCAL_LOOK_MS;
        if (!page_is_current(l->dir, l->page->inode)) {
            local_state_drop(l);
            page_close(&l->page);
            l->retry_at = l->retry_ms = 0;
        }
    }
    if (l->page && atomic_load(&l->page->page->serving) != 1) {
        local_state_drop(l); /* or an idle handle would keep the files of a state that is gone */
        return err_set(&l->why, RAFTDIR_EUNAVAIL, "%s: the node has no state that it may serve", l->dir);
    }
    if (l->page && l->state && local_is_same(l))
        return 0;
    local_state_drop(l);
    if (now < l->retry_at)
        return l->why.code ? l->why.code : RAFTDIR_EUNAVAIL;
    l->why.code = 0;
    pthread_once(&fork_once, fork_register);
    if (fork_rc != 0)
        return err_set(&l->why, RAFTDIR_ENOMEM, "out of memory");
    pthread_mutex_lock(&mutex);
    int rc = l->page ? 0 : page_open(l->dir, &l->page, &l->why);
    const struct page *p = l->page ? l->page->page : NULL;
    if (rc == 0 && atomic_load(&p->serving) != 1)
        rc = err_set(&l->why, RAFTDIR_EUNAVAIL, "%s: the node has no state that it may serve", l->dir);
    else if (rc == 0) {
        key_of(p, &l->key);
        rc = state_open(l->dir, l->key.generation, &l->state, &l->why);
        if (rc == 0) {
            snprintf(l->node, sizeof l->node, "%.*s", (int)sizeof p->node_name - 1, p->node_name);
            l->retry_at = l->retry_ms = 0;
        }
    }
    pthread_mutex_unlock(&mutex);
    if (rc == RAFTDIR_EUNAVAIL && !l->state && l->page && atomic_load(&p->serving) != 1)
        return rc; /* a look at the page costs nothing: no pause */
    if (rc != 0)
        return later(l, rc, now);
    if (!local_is_same(l)) { /* it changed while we opened */
        local_state_drop(l);
        return err_set(&l->why, RAFTDIR_EUNAVAIL, "%s: the node is replacing its state", l->dir);
    }
    return 0;
}

/* The age of what the page speaks of, computed once a tick of the system (a few milliseconds): reading the exact clock costs as much as a twentieth of a lookup. The tick is
 * added, so that it is never told too young. */
static int64_t age_of(struct local *l)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    uint64_t tick = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    if (tick != l->age_tick || tick == 0) {
        l->age_tick = tick;
        l->age_ms = page_age_ms(l->page->page);
        if (l->age_ms >= 0)
            l->age_ms += LOCAL_TICK_MS;
    }
    return l->age_ms;
}

int local_attach(struct local *l, int64_t *age_ms_r)
{
    if (l->page && l->state && local_is_same(l)) {
        *age_ms_r = age_of(l);
        if (*age_ms_r >= 0 && *age_ms_r < LOCAL_AGE_LOOK_MS)
            return 0;
    }
    l->age_tick = 0;
    int rc = attach_anew(l);
    if (rc == 0)
        *age_ms_r = page_age_ms(l->page->page);
    return rc;
}

int local_txn(struct local *l)
{
    if (!l->txn)
        return store_read_begin(l->state->store, &l->txn, &l->why);
    int rc = store_read_renew(l->txn, &l->why);
    if (rc != 0) {
        /* The slot may be another reader's by now (somebody took this process for dead): ending the transaction would clear it there. */
        struct lost_txn *lost = malloc(sizeof *lost);
        if (lost) {
            lost->txn = l->txn;
            pthread_mutex_lock(&mutex);
            lost->next = lost_txns;
            lost_txns = lost;
            pthread_mutex_unlock(&mutex);
        }
        l->txn = NULL;
    }
    return rc;
}
