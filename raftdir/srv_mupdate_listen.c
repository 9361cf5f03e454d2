/* srv_mupdate_listen.c - MUPDATE's listening sockets, which are open only while this node can serve; see srv_mupdate.h.
 *
 * A Cyrus program that finds a closed port goes on by itself to the next address of its mupdate_server; one that is answered NO gives up. So a node listens while it is a running member
 * whose state is known to be no older than MUPDATE_STALE_MS, and after a time without that, again once its state was fresh for MUPDATE_FRESH_MS.
 *
 * Looked at each tick, and before each connection is taken: a process that was stopped wakes up with an old state, and with connections that the kernel has taken for it meanwhile; they are reset.
 * Service thread 0 opens first, since it alone can tell that somebody else has an address (srv_listen.c), and the others follow it. An address that is taken is tried again each tick. */
#include <stdio.h>
#include "logger.h"
#include "srv_mupdate.h"

static bool is_open(const struct service *s)
{
    return s->mupdate_tcp.open || s->mupdate_tls.open || s->mupdate_pipe.open;
}

static bool may_serve(struct service *s, uint64_t now, char *why_r, size_t size)
{
    struct shared_view view;
    shared_view_get(&s->d->shared, &view);
    uint64_t age = shared_age_ms(&view, now);
    bool was_open = is_open(s);
    const char *phase = view.phase == SHARED_UNCONFIGURED ? "this node is not part of a cluster"
                        : view.phase == SHARED_FAILED     ? "this node has failed"
                        : view.phase == SHARED_REMOVED    ? "this node was removed from the cluster"
                        : view.phase == SHARED_STOPPING   ? "the daemon stops"
                                                          : NULL;
    *why_r = '\0';
    if (view.phase != SHARED_RUNNING || age > MUPDATE_FRESH_MS)
        s->mupdate_fresh_ms = 0;
    else if (!s->mupdate_fresh_ms)
        s->mupdate_fresh_ms = now;
    if (phase)
        snprintf(why_r, size, "%s", phase);
    else if (age == UINT64_MAX)
        snprintf(why_r, size, "its state may be of any age: it hasn't heard of a leader yet");
    else if (age > MUPDATE_STALE_MS)
        snprintf(why_r, size, "its state may be %llu s old: it hears of no leader that a majority follows", (unsigned long long)(age / 1000));
    else if (!was_open && s->mupdate_opened && (!s->mupdate_fresh_ms || now - s->mupdate_fresh_ms < MUPDATE_FRESH_MS))
        snprintf(why_r, size, "its state has only just become fresh again");
    return !*why_r;
}

bool mupdate_listen_wanted(const struct config *c)
{
    return *c->mupdate_listen || *c->mupdate_tls_listen || *c->mupdate_socket;
}

static int listen_all(struct service *s, struct err *err)
{
    const struct config *c = s->d->config;
    int rc = 0;
    if (*c->mupdate_listen && !s->mupdate_tcp.open)
        rc = srv_listen_tcp(&s->mupdate_tcp, "mupdate_listen", c->mupdate_listen, err);
    if (rc == 0 && *c->mupdate_tls_listen && !s->mupdate_tls.open)
        rc = srv_listen_tcp(&s->mupdate_tls, "mupdate_tls_listen", c->mupdate_tls_listen, err);
    if (rc == 0 && s->number == 0 && *c->mupdate_socket && !s->mupdate_pipe.open)
        rc = srv_listen_pipe(&s->mupdate_pipe, "mupdate_socket", c->mupdate_socket, c->mupdate_socket_mode, err);
    return rc;
}

bool mupdate_listen_state(struct daemon *d, char *why_not_r, size_t size)
{
    pthread_mutex_lock(&d->mupdate_mutex);
    snprintf(why_not_r, size, "%s", d->mupdate_why_not);
    pthread_mutex_unlock(&d->mupdate_mutex);
    return atomic_load(&d->mupdate_listens);
}

static void why_not_set(struct daemon *d, const char *why)
{
    pthread_mutex_lock(&d->mupdate_mutex);
    snprintf(d->mupdate_why_not, sizeof d->mupdate_why_not, "%s", why);
    pthread_mutex_unlock(&d->mupdate_mutex);
}

void mupdate_listen_close(struct service *s, const char *why)
{
    bool open = is_open(s);
    srv_listen_close(&s->mupdate_tcp);
    srv_listen_close(&s->mupdate_tls);
    srv_listen_close(&s->mupdate_pipe);
    if (s->number != 0)
        return;
    atomic_store(&s->d->mupdate_listens, false);
    why_not_set(s->d, why);
    if (open)
        logger_line(LOGGER_INFO, "mupdate", "takes no more connections: %s", why);
}

static void listeners_open(struct service *s)
{
    const struct config *c = s->d->config;
    struct err err = {0};
    if (s->number != 0 && !atomic_load(&s->d->mupdate_listens))
        return; /* number 0 finds out whether somebody else has the addresses */
    int rc = listen_all(s, &err);
    if (rc == RAFTDIR_EBUSY)
        return; /* in a moment */
    if (rc != 0) {
        logger_limited(LOGGER_ERROR, "mupdate", "can't take connections: %s", err.text);
        mupdate_listen_close(s, err.text);
        return;
    }
    s->mupdate_opened = true;
    if (s->number != 0 || atomic_load(&s->d->mupdate_listens))
        return;
    atomic_store(&s->d->mupdate_listens, true);
    why_not_set(s->d, "");
    logger_line(LOGGER_INFO, "mupdate", "takes connections at%s%s%s%s%s%s", *c->mupdate_listen ? " " : "", c->mupdate_listen, *c->mupdate_tls_listen ? " (TLS) " : "",
                c->mupdate_tls_listen, *c->mupdate_socket ? " " : "", c->mupdate_socket);
}

void mupdate_listen_look(struct service *s, uint64_t now)
{
    char why[128] = "the daemon stops";
    bool open = is_open(s);
    if (!mupdate_listen_wanted(s->d->config))
        return;
    bool may = !s->stopping && may_serve(s, now, why, sizeof why) && (s->number == 0 || atomic_load(&s->d->mupdate_listens));
    if (may)
        listeners_open(s);
    else if (open)
        mupdate_listen_close(s, why);
    else if (s->number == 0)
        why_not_set(s->d, why);
}

static void accept_one(struct srv_listener *l, bool local, bool tls)
{
    mupdate_listen_look(l->service, shared_now_ms());
    if (l->open)
        mupdate_accept(l, local, tls);
}

static void take_tcp(struct srv_listener *l)
{
    accept_one(l, false, false);
}

static void take_tls(struct srv_listener *l)
{
    accept_one(l, false, true);
}

static void take_pipe(struct srv_listener *l)
{
    accept_one(l, true, false);
}

int srv_mupdate_start(struct service *s, struct err *err)
{
    const struct config *c = s->d->config;
    int rc = 0;
    static const char full[] = "* BYE \"too many connections\"\r\n";
    s->mupdate_tcp = (struct srv_listener){.service = s, .take = take_tcp, .conns = &s->d->mupdates, .refusal = full};
    s->mupdate_tls = (struct srv_listener){.service = s, .take = take_tls, .conns = &s->d->mupdates};
    s->mupdate_pipe = (struct srv_listener){.service = s, .take = take_pipe, .conns = &s->d->mupdates, .refusal = full};
    if (s->number != 0)
        return 0;
    why_not_set(s->d, mupdate_listen_wanted(c) ? "the daemon starts" : "the configuration names no address for it (mupdate_listen, mupdate_tls_listen, mupdate_socket)");
    if (*c->mupdate_listen)
        rc = srv_listen_probe("mupdate_listen", c->mupdate_listen, err);
    if (rc == 0 && *c->mupdate_tls_listen)
        rc = srv_listen_probe("mupdate_tls_listen", c->mupdate_tls_listen, err);
    return rc;
}
