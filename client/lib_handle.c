/* lib_handle.c - opening and closing a handle, its settings, its errors. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include "lib_internal.h"
#include "lib_local.h"
#include "raftdir/tls.h"

#define ENDPOINT_DEFAULT "unix:/run/raftdir/raftdird.sock"

const char *raftdir_strerror(int code)
{
    return err_text(code);
}

const char *raftdir_errname(int code)
{
    return err_name(code);
}

uint64_t lib_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int lib_random(void *buf, size_t len, struct err *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = getrandom((char *)buf + done, len - done, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, RAFTDIR_EIO, "getrandom: %s", strerror(errno));
        done += (size_t)n;
    }
    return 0;
}

static const char *or_env(const char *given, const char *variable)
{
    if (given)
        return given;
    const char *e = secure_getenv(variable);
    return e && *e ? e : NULL;
}

/* Members may only be added at the end: a caller's struct may be shorter than ours (an older program: the rest is not given) or longer (a newer one: it works
 * while it doesn't use what we don't know). */
bool lib_sized(void *own, size_t own_size, const void *given, size_t given_size)
{
    if (given_size < sizeof(size_t) || given_size > own_size + SIZED_EXTRA_MAX)
        return false;
    for (size_t i = own_size; i < given_size; i++)
        if (((const char *)given)[i])
            return false;
    memset(own, 0, own_size);
    memcpy(own, given, given_size < own_size ? given_size : own_size);
    return true;
}

int raftdir_open(const struct raftdir_options *o, raftdir **d_r, char *text_r, size_t text_size)
{
    struct err err = {0};
    struct raftdir_options own;
    *d_r = NULL;
    if (text_r && text_size)
        *text_r = '\0';
    struct raftdir *d = calloc(1, sizeof *d);
    if (!d) {
        err_set(&err, RAFTDIR_ENOMEM, "out of memory");
        goto failed;
    }
    wait_init(d);
    raftdir_options_init(&own);
    if (o && !lib_sized(&own, sizeof own, o, o->size)) {
        err_set(&err, RAFTDIR_EINVAL, "options of another version: use raftdir_options_init");
        goto failed;
    }
    o = &own;
    if (o->level < 0 || o->level > RAFTDIR_LINEARIZABLE || o->window > WINDOW_MAX) {
        err_set(&err, RAFTDIR_EINVAL, "options: level or window out of range");
        goto failed;
    }
    d->pid = lib_pid();
    d->pinned = -1;
    d->answer_age_ms = -1;
    d->timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_DEFAULT_MS;
    d->patience_ms = o->patience_ms ? o->patience_ms : PATIENCE_DEFAULT_MS;
    d->unreachable_ms = o->unreachable_ms;
    d->window = o->window ? o->window : WINDOW_DEFAULT;
    d->level = o->level ? o->level : RAFTDIR_SESSION;
    d->max_age_ms = o->max_age_ms;
    d->absent_max_age_ms = o->absent_max_age_ms ? o->absent_max_age_ms : ABSENT_MAX_AGE_DEFAULT_MS;
    d->only_these = o->only_these != 0;
    d->software = strdup(o->software ? o->software : "libraftdir " RAFTDIR_VERSION);
    if (!d->software) {
        err_set(&err, RAFTDIR_ENOMEM, "out of memory");
        goto failed;
    }
    if (lib_random(&d->next_serial, sizeof d->next_serial, &err) < 0)
        goto failed;
    d->next_serial = (d->next_serial >> (CALL_ATTEMPT_BITS + 8)) + 1; /* room to count; 0 is no call's */
    const char *list = or_env(o->endpoints, "RAFTDIR_ENDPOINTS");
    const char *site = or_env(o->site, "RAFTDIR_SITE");
    if (site && *site && !(d->site = strdup(site))) {
        err_set(&err, RAFTDIR_ENOMEM, "out of memory");
        goto failed;
    }
    const char *local_dir = or_env(o->local_dir, "RAFTDIR_LOCAL");
    bool local_asked_for = local_dir != NULL;
    if (!local_dir && !list)
        local_dir = LOCAL_DIR_DEFAULT;
    if (local_dir && *local_dir && local_create(local_dir, local_asked_for, &d->local) < 0) {
        err_set(&err, RAFTDIR_ENOMEM, "out of memory");
        goto failed;
    }
    choose_init(d);
    if (endpoints_open(d, list ? list : ENDPOINT_DEFAULT, &err) < 0)
        goto failed;
    bool needs_tls = endpoints_need_tls(d);
    struct tls_files files = {or_env(o->ca, "RAFTDIR_CA"), or_env(o->cert, "RAFTDIR_CERT"), or_env(o->key, "RAFTDIR_KEY")};
    if (needs_tls && !files.ca) {
        err_set(&err, RAFTDIR_EINVAL, "a tls: endpoint needs the CA's certificate (and ours, with its key)");
        goto failed;
    }
    if (!files.cert != !files.key) {
        err_set(&err, RAFTDIR_EINVAL, "a certificate and its key are needed together");
        goto failed;
    }
    /* With Unix sockets alone, certificates are only for learned endpoints: files that this user can't read are no reason to fail. */
    if (files.ca && tls_context_create(&files, &d->tls, needs_tls ? &err : NULL) < 0 && needs_tls) {
        if (err.code == RAFTDIR_ENOTFOUND)
            err.code = RAFTDIR_EAUTH; /* a file that is missing; callers take ENOTFOUND for a mailbox that isn't there */
        goto failed;
    }
    *d_r = d;
    return 0;

failed:
    if (text_r && text_size)
        snprintf(text_r, text_size, "%s", err.text);
    raftdir_close(&d);
    return err.code;
}

void raftdir_close(raftdir **dp)
{
    struct raftdir *d = dp ? *dp : NULL;
    if (!d)
        return;
    *dp = NULL;
    assert(!d->in_callback);
    bool ours = d->pid == lib_pid();
    wait_close(d, ours);
    while (d->calls) {
        struct call *c = d->calls;
        if (!ours)
            c->attempts_n = 0; /* nothing is said on the parent's connections */
        call_destroy(&c);
    }
    endpoints_close(d, !ours);
    local_destroy(&d->local, ours);
    SSL_CTX_free(d->tls);
    if (d->kept)
        raftdir__client__from_node__free_unpacked(d->kept, NULL);
    free(d->result_ops);
    free(d->member_list);
    lib_sessions_free(d);
    free(d->checkpoints);
    free(d->software);
    free(d);
}

int lib_check(struct raftdir *d)
{
    if (d->pid == lib_pid())
        return 0;
    return err_set(&d->err, RAFTDIR_EINVAL, "this handle was opened by process %ld before a fork: open one of its own in process %ld", (long)d->pid,
                   (long)lib_pid());
}

int lib_enter_callback(struct raftdir *d)
{
    int rc = lib_check(d);
    if (rc < 0)
        return rc;
    if (d->closing)
        return err_set(&d->err, RAFTDIR_ECANCELED, "the handle is being closed");
    d->err.code = 0;
    d->err.text[0] = '\0';
    return 0;
}

int lib_enter(struct raftdir *d)
{
    int rc = lib_enter_callback(d);
    if (rc < 0 || !d->in_callback)
        return rc;
    return err_set(&d->err, RAFTDIR_EINVAL, "called from within a callback: only raftdir_*_start and raftdir_submit may be");
}

const char *raftdir_message(const raftdir *d)
{
    return d->err.text;
}

int raftdir_set_timeout(raftdir *d, unsigned timeout_ms)
{
    int rc = lib_check(d);
    if (!rc)
        d->timeout_ms = timeout_ms ? timeout_ms : TIMEOUT_DEFAULT_MS;
    return rc;
}

int raftdir_set_level(raftdir *d, int level)
{
    int rc = lib_check(d);
    if (rc < 0)
        return rc;
    if (level < RAFTDIR_LOCAL || level > RAFTDIR_LINEARIZABLE)
        return err_set(&d->err, RAFTDIR_EINVAL, "no such read level: %d", level);
    d->level = level;
    return 0;
}

int raftdir_set_max_age(raftdir *d, unsigned max_age_ms)
{
    int rc = lib_check(d);
    if (!rc)
        d->max_age_ms = max_age_ms;
    return rc;
}

int raftdir_answer(raftdir *d, struct raftdir_answer *a)
{
    struct endpoint *ep = d->answer_ep;
    a->incarnation = d->answer_incarnation;
    a->index = d->answer_index;
    a->age_ms = d->answer_age_ms;
    a->local = d->answer_local;
    a->node = d->answer_local ? d->local->node : ep && ep->node ? ep->node : "";
    a->endpoint = d->answer_local ? d->local->endpoint : ep ? ep->text : "";
    a->identity = ep && ep->identity ? ep->identity : "";
    a->role = ep && ep->role ? ep->role : "";
    return lib_check(d);
}

const char *raftdir_endpoint(raftdir *d, unsigned i)
{
    return i < d->endpoints_n ? d->endpoints[i]->text : NULL;
}

int raftdir_use_endpoint(raftdir *d, int i)
{
    int rc = lib_check(d);
    if (rc < 0)
        return rc;
    if (i < -1 || i >= (int)d->endpoints_n)
        return err_set(&d->err, RAFTDIR_EINVAL, "no endpoint of that number: %d", i);
    d->pinned = i;
    return 0;
}
