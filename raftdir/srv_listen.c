/* srv_listen.c - listening sockets of the service threads; see srv.h. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "logger.h"
#include "srv.h"

#define BACKLOG 1024

union refused {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

static void on_refused(uv_handle_t *handle)
{
    free(handle->data);
}

/* Closed at once: what lingers would keep its descriptor. */
static void refuse(struct srv_listener *l)
{
    union refused *r = mem_calloc(1, sizeof *r);
    if (l->stream.type == UV_TCP)
        uv_tcp_init(&l->service->loop, &r->tcp);
    else
        uv_pipe_init(&l->service->loop, &r->pipe, 0);
    r->handle.data = r;
    if (uv_accept(&l->stream, &r->stream) == 0 && l->refusal) {
        uv_buf_t buf = uv_buf_init((char *)(uintptr_t)l->refusal, (unsigned)strlen(l->refusal));
        (void)uv_try_write(&r->stream, &buf, 1); /* as far as it goes */
    }
    uv_close(&r->handle, on_refused);
}

/* Whoever connects how often: descriptors are left for the log's files and the members, and neither protocol's clients keep the other's out. */
static bool is_full(const struct srv_listener *l)
{
    struct daemon *d = l->service->d;
    return atomic_load(l->conns) >= d->conns_max - d->conns_max / 4 || atomic_load(&d->clients) + atomic_load(&d->mupdates) >= d->conns_max;
}

static void on_connection(uv_stream_t *stream, int status)
{
    struct srv_listener *l = stream->data;
    if (status == 0 && is_full(l)) {
        logger_limited(LOGGER_WARN, "service", "%u clients and %u of MUPDATE are connected: no more are taken until some close (raise the limit of open files?)", atomic_load(&l->service->d->clients),
                       atomic_load(&l->service->d->mupdates));
        refuse(l);
        return;
    }
    if (status < 0)
        logger_limited(LOGGER_WARN, "service", "can't take a connection: %s (raise the limit of open files?)", uv_strerror(status));
    else
        l->take(l);
}

static int socket_bind(const char *key, const char *address, bool reuse_port, int *fd_r, struct err *err)
{
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list;
    int rc = config_host_port(address, host, port, err);
    if (rc != 0)
        return rc;
    rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s: %s; give an address of this machine", key, address, gai_strerror(rc));
    int one = 1, fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) != 0) || bind(fd, list->ai_addr, list->ai_addrlen) != 0) {
        rc = err_set(err, RAFTDIR_EUNAVAIL, "%s: can't bind to %s: %s%s", key, address, strerror(errno),
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

int srv_listen_probe(const char *key, const char *address, struct err *err)
{
    int fd, rc = socket_bind(key, address, false, &fd, err);
    if (rc == 0)
        close(fd);
    return rc;
}

static int listen_begin(struct srv_listener *l, const char *key, const char *address, struct err *err)
{
    int rc = uv_listen(&l->stream, BACKLOG, on_connection);
    return rc != 0 ? err_set(err, RAFTDIR_EUNAVAIL, "%s: can't listen on %s: %s", key, address, uv_strerror(rc)) : 0;
}

int srv_listen_tcp(struct srv_listener *l, const char *key, const char *address, struct err *err)
{
    struct service *s = l->service;
    int fd, rc;
    bool many = s->d->config->service_threads > 1;
    if (l->closing)
        return err_set(err, RAFTDIR_EBUSY, "%s: the socket is still closing", key);
    /* With SO_REUSEPORT a second daemon of the same user would get a share of the connections without anybody noticing. */
    if (many && s->number == 0 && (rc = srv_listen_probe(key, address, err)) != 0)
        return rc;
    if ((rc = socket_bind(key, address, many, &fd, err)) != 0)
        return rc;
    uv_tcp_init(&s->loop, &l->tcp);
    l->tcp.data = l;
    l->open = true;
    if ((rc = uv_tcp_open(&l->tcp, fd)) != 0) {
        close(fd);
        err_set(err, err_from_uv(rc), "%s: %s", key, uv_strerror(rc));
    } else {
        rc = listen_begin(l, key, address, err);
    }
    if (rc != 0)
        srv_listen_close(l);
    return rc != 0 ? err->code : 0;
}

static int stale_socket_remove(const char *key, const char *path, struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set(err, RAFTDIR_EUNAVAIL, "%s: %s: %s", key, path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s exists and is no socket; remove it, or give another path", key, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, err_from_errno(errno), "%s: %s", key, strerror(errno));
    int rc = connect(fd, (struct sockaddr *)&a, sizeof a);
    int e = errno;
    close(fd);
    if (rc == 0 || e != ECONNREFUSED)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: %s is in use by another program; stop that one, or give another path", key, path);
    return unlink(path) != 0 ? err_set(err, RAFTDIR_EUNAVAIL, "%s: can't remove the old %s: %s", key, path, strerror(errno)) : 0;
}

static int pipe_open(struct srv_listener *l, const char *key, const char *path, mode_t mode, struct err *err)
{
    mode_t old = umask(0777); /* nobody gets in before the mode is right */
    int rc = uv_pipe_bind(&l->pipe, path);
    umask(old);
    if (rc != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: can't bind %s: %s; does its directory exist, and may this user write there?", key, path, uv_strerror(rc));
    if ((rc = listen_begin(l, key, path, err)) != 0)
        return rc;
    if (chmod(path, mode) != 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s: can't set the mode of %s: %s", key, path, strerror(errno));
    return 0;
}

int srv_listen_pipe(struct srv_listener *l, const char *key, const char *path, mode_t mode, struct err *err)
{
    if (l->closing)
        return err_set(err, RAFTDIR_EBUSY, "%s: the socket is still closing", key);
    int rc = stale_socket_remove(key, path, err);
    if (rc != 0)
        return rc;
    uv_pipe_init(&l->service->loop, &l->pipe, 0);
    l->pipe.data = l;
    l->open = true;
    if ((rc = pipe_open(l, key, path, mode, err)) != 0)
        srv_listen_close(l);
    return rc;
}

static void on_closed(uv_handle_t *handle)
{
    struct srv_listener *l = handle->data;
    l->closing = false;
}

void srv_listen_close(struct srv_listener *l)
{
    if (!l->open)
        return;
    l->open = false;
    l->closing = true;
    uv_close((uv_handle_t *)&l->stream, on_closed);
}
