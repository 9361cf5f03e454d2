/* thread_service.c - see thread_service.h.
 *
 * Wakes up for: connections, the inbox (calls that come back from the consensus thread), publications that somebody waits for, the tick (deadlines,
 * progress), and the idle handle while a stream has rows to send: one chunk a turn, so that lookups in between don't wait for a list. */
#include "thread_service.h"
#include <stddef.h>
#include <stdlib.h>
#include "logger.h"
#include "srv_client.h"
#include "srv_mupdate.h"
#include "worker.h"

static void on_messages(struct inbox *inbox, struct inbox_msg *list)
{
    struct service *s = inbox->data;
    while (list) {
        struct consensus_call *call = (struct consensus_call *)((char *)list - offsetof(struct consensus_call, reply));
        list = list->next;
        s->calls--;
        call->done(call);
    }
}

static void on_publication(struct wake *w)
{
    srv_wait_published(w->data);
}

void service_published(struct service *s, uint64_t index)
{
    if (atomic_load(&s->waiting_for) <= index)
        wake_send(&s->publication);
}

static void close_begin(struct service *s);

static void on_tick(uv_timer_t *timer)
{
    struct service *s = timer->data;
    srv_ticked(s, shared_now_ms());
    srv_wait_expired(s, shared_now_ms());
    srv_clients_silent_close(s, shared_now_ms());
    srv_mupdate_tick(s, shared_now_ms());
    srv_verify_progress(s);
    srv_store_drop(s, false);
    if (!s->stopping && atomic_load(&s->d->stop_wanted) && atomic_load(&s->d->services_closing)) {
        s->stopping = true;
        srv_listen_close(&s->client_tcp);
        srv_listen_close(&s->client_pipe);
        for (struct client *c = s->clients; c; c = c->next)
            conn_close(c->conn, 0, "the daemon stops");
        srv_mupdate_stop(s);
    }
    if (s->stopping && !s->closed && !s->clients && !s->calls && !s->verifies && !s->mupdates && !s->works)
        close_begin(s);
}

static void close_begin(struct service *s)
{
    s->closed = true;
    inbox_close(&s->inbox, NULL);
    inbox_close(&s->lists_made, NULL);
    uv_close((uv_handle_t *)&s->publication.poll, NULL);
    uv_close((uv_handle_t *)&s->tick, NULL);
    uv_close((uv_handle_t *)&s->turn, NULL);
    uv_close((uv_handle_t *)&s->lists_pace, NULL);
}

/* --- Listening -------------------------------------------------------------------------------------------------------------- */

static void take(struct srv_listener *l, bool local)
{
    struct service *s = l->service;
    struct err err = {0};
    struct conn *c;
    SSL_CTX *tls = local ? NULL : daemon_tls(s->d);
    struct conn_options o = {.tls = tls, .frame_len_max = CLIENT_FRAME_LEN_MAX, .out_len_max = SRV_OUT_LEN_MAX};
    int rc = conn_accept(&s->loop, &l->stream, &o, &srv_client_events, &c, &err);
    SSL_CTX_free(tls);
    if (rc != 0) {
        logger_limited(LOGGER_WARN, "client", "can't take a connection: %s", err.text);
        return;
    }
    srv_client_accepted(s, c, local);
}

static void take_tcp(struct srv_listener *l)
{
    take(l, false);
}

static void take_pipe(struct srv_listener *l)
{
    take(l, true);
}

int service_probe(const char *what, const char *address, struct err *err)
{
    return srv_listen_probe(what, address, err);
}

static int listen_clients(struct service *s, struct err *err)
{
    const struct config *c = s->d->config;
    int rc = 0;
    s->client_tcp = (struct srv_listener){.service = s, .take = take_tcp, .conns = &s->d->clients};
    s->client_pipe = (struct srv_listener){.service = s, .take = take_pipe, .conns = &s->d->clients};
    if (*c->client_listen)
        rc = srv_listen_tcp(&s->client_tcp, "client_listen", c->client_listen, err);
    if (rc == 0 && s->number == 0 && *c->client_socket)
        rc = srv_listen_pipe(&s->client_pipe, "client_socket", c->client_socket, c->client_socket_mode, err);
    return rc;
}

/* --- Life --------------------------------------------------------------------------------------------------------------------- */

static void on_walk(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

int service_create(struct daemon *d, unsigned number, struct service **service_r, struct err *err)
{
    struct service *s = mem_calloc(1, sizeof *s);
    s->d = d;
    s->number = number;
    atomic_store(&s->waiting_for, UINT64_MAX);
    if (uv_loop_init(&s->loop) != 0 || inbox_init(&s->inbox, &s->loop, on_messages, s) != 0 || inbox_init(&s->lists_made, &s->loop, srv_mupdate_lists_made, s) != 0 ||
        wake_init(&s->publication, &s->loop, on_publication, s) != 0)
        mem_exhausted("service loop");
    uv_timer_init(&s->loop, &s->tick);
    uv_idle_init(&s->loop, &s->turn);
    uv_timer_init(&s->loop, &s->lists_pace);
    s->tick.data = s->turn.data = s->lists_pace.data = s;
    int rc = listen_clients(s, err);
    if (rc == 0)
        rc = srv_mupdate_start(s, err);
    if (rc != 0) {
        service_destroy(&s);
        return rc;
    }
    *service_r = s;
    return 0;
}

static void run(void *arg)
{
    struct service *s = arg;
    uv_timer_start(&s->tick, on_tick, SRV_TICK_MS, SRV_TICK_MS);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    worker_stop(&s->lister);
    srv_store_drop(s, true); /* a read transaction is this thread's */
}

int service_run(struct service *s, struct err *err)
{
    int rc = uv_thread_create(&s->thread, run, s);
    return rc != 0 ? err_set(err, err_from_uv(rc), "can't start a service thread: %s", uv_strerror(rc)) : 0;
}

void service_stop(struct service *s)
{
    uv_thread_join(&s->thread);
}

void service_destroy(struct service **service)
{
    struct service *s = *service;
    *service = NULL;
    if (!s)
        return;
    uv_walk(&s->loop, on_walk, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_loop_close(&s->loop);
    inbox_destroy(&s->inbox);
    inbox_destroy(&s->lists_made);
    wake_destroy(&s->publication);
    free(s);
}
