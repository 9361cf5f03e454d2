/* thread_service.c - see thread_service.h.
 *
 * Wakes up for: connections, the inbox (calls that come back from the consensus thread), publications that somebody waits for, the tick (deadlines,
 * progress), and the idle handle while a stream has rows to send: one chunk a turn, so that lookups in between don't wait for a list. */
#include "thread_service.h"
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "logger.h"
#include "srv_client.h"

#define BACKLOG 1024

static void on_messages(struct inbox *inbox, struct inbox_msg *list)
{
    struct service *s = inbox->data;
    while (list) {
        struct request *r = (struct request *)((char *)list - offsetof(struct request, call.reply));
        list = list->next;
        s->calls--;
        srv_consensus_done(r);
    }
}

static void on_publication(uv_async_t *async)
{
    srv_wait_published(async->data);
}

void service_published(struct service *s, uint64_t index)
{
    if (atomic_load(&s->waiting_for) <= index)
        uv_async_send(&s->publication);
}

static void on_turn(uv_idle_t *idle)
{
    struct service *s = idle->data;
    srv_list_turn(s);
    if (!s->runnable)
        uv_idle_stop(idle);
}

void srv_turn_start(struct service *s)
{
    uv_idle_start(&s->turn, on_turn);
}

static void close_begin(struct service *s);

static void on_tick(uv_timer_t *timer)
{
    struct service *s = timer->data;
    srv_wait_expired(s, shared_now_ms());
    srv_clients_silent_close(s, shared_now_ms());
    srv_verify_progress(s);
    srv_store_drop(s, false);
    if (!s->stopping && atomic_load(&s->d->stop_wanted) && atomic_load(&s->d->services_closing)) {
        s->stopping = true;
        if (s->has_tcp)
            uv_close((uv_handle_t *)&s->tcp, NULL);
        if (s->has_pipe)
            uv_close((uv_handle_t *)&s->pipe, NULL);
        s->has_tcp = s->has_pipe = false;
        for (struct client *c = s->clients; c; c = c->next)
            conn_close(c->conn, 0, "the daemon stops");
    }
    if (s->stopping && !s->closed && !s->clients && !s->calls && !s->verifies)
        close_begin(s);
}

static void close_begin(struct service *s)
{
    s->closed = true;
    inbox_close(&s->inbox, NULL);
    uv_close((uv_handle_t *)&s->publication, NULL);
    uv_close((uv_handle_t *)&s->tick, NULL);
    uv_close((uv_handle_t *)&s->turn, NULL);
}

/* --- Listening -------------------------------------------------------------------------------------------------------------- */

static void take(struct service *s, uv_stream_t *listener, bool local)
{
    struct daemon *d = s->d;
    struct err err = {0};
    struct conn *c;
    SSL_CTX *tls = local ? NULL : daemon_tls(d);
    struct conn_options o = {.tls = tls, .frame_len_max = CLIENT_FRAME_LEN_MAX, .out_len_max = SRV_OUT_LEN_MAX};
    int rc = conn_accept(&s->loop, listener, &o, &srv_client_events, &c, &err);
    SSL_CTX_free(tls);
    if (rc != 0) {
        logger_limited(LOGGER_WARN, "client", "can't take a connection: %s", err.text);
        return;
    }
    srv_client_accepted(s, c, local);
}

static void on_tcp(uv_stream_t *listener, int status)
{
    struct service *s = listener->data;
    if (status < 0)
        logger_limited(LOGGER_WARN, "client", "can't take a connection: %s (raise the limit of open files?)", uv_strerror(status));
    else
        take(s, listener, false);
}

static void on_pipe(uv_stream_t *listener, int status)
{
    struct service *s = listener->data;
    if (status < 0)
        logger_limited(LOGGER_WARN, "client", "can't take a connection: %s (raise the limit of open files?)", uv_strerror(status));
    else
        take(s, listener, true);
}

static int socket_bind(const char *what, const char *address, bool reuse_port, int *fd_r, struct err *err)
{
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list;
    int rc = config_host_port(address, host, port, err);
    if (rc != 0)
        return rc;
    rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s: %s; give an address of this machine", what, address, gai_strerror(rc));
    int one = 1, fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) != 0) || bind(fd, list->ai_addr, list->ai_addrlen) != 0) {
        rc = err_set(err, RAFTDIR_EUNAVAIL, "%s: can't bind to %s: %s%s", what, address, strerror(errno),
                     errno == EADDRINUSE       ? "; stop the program that has it, or give another port"
                     : errno == EADDRNOTAVAIL  ? "; give an address of this machine"
                     : errno == EACCES         ? "; ports below 1024 need CAP_NET_BIND_SERVICE"
                                               : "");
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    *fd_r = fd;
    return rc;
}

int service_probe(const char *what, const char *address, struct err *err)
{
    int fd, rc = socket_bind(what, address, false, &fd, err);
    if (rc == 0)
        close(fd);
    return rc;
}

static int tcp_open(struct service *s, struct err *err)
{
    struct daemon *d = s->d;
    int fd, rc;
    bool many = d->config->service_threads > 1;
    if (many && s->number == 0) {
        /* With SO_REUSEPORT a second daemon of the same user would get a share of the connections without anybody noticing. */
        if ((rc = service_probe("client_listen", d->config->client_listen, err)) != 0)
            return rc;
    }
    if ((rc = socket_bind("client_listen", d->config->client_listen, many, &fd, err)) != 0)
        return rc;
    uv_tcp_init(&s->loop, &s->tcp);
    s->tcp.data = s;
    s->has_tcp = true;
    if ((rc = uv_tcp_open(&s->tcp, fd)) != 0) {
        close(fd);
        return err_set(err, err_from_uv(rc), "client_listen: %s", uv_strerror(rc));
    }
    if ((rc = uv_listen((uv_stream_t *)&s->tcp, BACKLOG, on_tcp)) != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "client_listen: can't listen on %s: %s", d->config->client_listen, uv_strerror(rc));
    return 0;
}

/* A socket that a dead daemon left is removed, a living one's is not. */
static int stale_socket_remove(const char *path, struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set(err, RAFTDIR_EUNAVAIL, "client_socket: %s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, RAFTDIR_EUNAVAIL, "client_socket: %s exists and is no socket; remove it, or give another path", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "client_socket: %s", strerror(errno));
    int rc = connect(fd, (struct sockaddr *)&a, sizeof a);
    int e = errno;
    close(fd);
    if (rc == 0 || e != ECONNREFUSED)
        return err_set(err, RAFTDIR_EUNAVAIL, "client_socket: %s is in use by another program; stop that one, or give another path", path);
    return unlink(path) != 0 ? err_set(err, RAFTDIR_EUNAVAIL, "client_socket: can't remove the old %s: %s", path, strerror(errno)) : 0;
}

static int pipe_open(struct service *s, struct err *err)
{
    const char *path = s->d->config->client_socket;
    int rc = stale_socket_remove(path, err);
    if (rc != 0)
        return rc;
    uv_pipe_init(&s->loop, &s->pipe, 0);
    s->pipe.data = s;
    s->has_pipe = true;
    mode_t old = umask(0777); /* nobody gets in before the mode is right */
    rc = uv_pipe_bind(&s->pipe, path);
    umask(old);
    if (rc != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "client_socket: can't bind %s: %s; does its directory exist, and may this user write there?", path, uv_strerror(rc));
    if ((rc = uv_listen((uv_stream_t *)&s->pipe, BACKLOG, on_pipe)) != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "client_socket: can't listen on %s: %s", path, uv_strerror(rc));
    if (chmod(path, s->d->config->client_socket_mode) != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "client_socket: can't set the mode of %s: %s", path, strerror(errno));
    return 0;
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
    if (uv_loop_init(&s->loop) != 0 || inbox_init(&s->inbox, &s->loop, on_messages, s) != 0 || uv_async_init(&s->loop, &s->publication, on_publication) != 0)
        mem_exhausted("service loop");
    uv_timer_init(&s->loop, &s->tick);
    uv_idle_init(&s->loop, &s->turn);
    s->publication.data = s->tick.data = s->turn.data = s;
    int rc = 0;
    if (*d->config->client_listen)
        rc = tcp_open(s, err);
    if (rc == 0 && number == 0 && *d->config->client_socket)
        rc = pipe_open(s, err);
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
    free(s);
}
