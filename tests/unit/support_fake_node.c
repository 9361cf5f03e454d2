/* support_fake_node.c - see support_fake_node.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "raftdir/limits.h"
#include "support_fake_node.h"

void fake_lock(struct fake *f)
{
    pthread_mutex_lock(&f->lock);
}

void fake_unlock(struct fake *f)
{
    pthread_mutex_unlock(&f->lock);
}

unsigned fake_seen(struct fake *f, unsigned field)
{
    fake_lock(f);
    unsigned n = f->seen[field];
    fake_unlock(f);
    return n;
}

void fake_bytes(struct fake *f, unsigned conn, const void *data, size_t len)
{
    const char *p = data;
    while (len && f->conns[conn].fd >= 0) {
        ssize_t n = f->conns[conn].ssl ? SSL_write(f->conns[conn].ssl, p, (int)len) : send(f->conns[conn].fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && !f->conns[conn].ssl && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* the client went away */
        p += n;
        len -= (size_t)n;
    }
}

void fake_close(struct fake *f, unsigned conn)
{
    f->conns[conn].close_after = true;
}

void fake_answer(struct fake *f, unsigned conn, uint64_t request_id, Raftdir__Client__FromNode *m)
{
    m->version = CLIENT_FRAME_VERSION;
    m->request_id = request_id;
    if (f->log_time_ms && !m->has_log_time_ms) {
        m->has_log_time_ms = 1;
        m->log_time_ms = f->log_time_ms;
    }
    if (!m->has_incarnation) {
        m->has_incarnation = 1;
        m->incarnation = f->incarnation;
    }
    size_t len = raftdir__client__from_node__get_packed_size(m);
    uint8_t *buf = malloc(FRAME_HEADER_LEN + len);
    if (!buf)
        abort();
    frame_header_put(buf, (uint32_t)len);
    raftdir__client__from_node__pack(m, buf + FRAME_HEADER_LEN);
    fake_bytes(f, conn, buf, FRAME_HEADER_LEN + len);
    free(buf);
}

void fake_code(struct fake *f, unsigned conn, uint64_t request_id, int code, const char *text)
{
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    m.code = code;
    m.message = (char *)text;
    fake_answer(f, conn, request_id, &m);
}

void fake_row(struct fake *f, unsigned conn, uint64_t request_id, const char *name, const char *server, uint64_t index)
{
    Raftdir__Log__Location l = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Mailbox b = RAFTDIR__LOG__MAILBOX__INIT;
    Raftdir__Client__Row row = RAFTDIR__CLIENT__ROW__INIT, *list[] = {&row};
    Raftdir__Client__Rows rows = RAFTDIR__CLIENT__ROWS__INIT;
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    l.server = (char *)server;
    l.partition = "p";
    b.name = (char *)name;
    b.location = &l;
    row.mailbox = &b;
    rows.n_rows = 1;
    rows.rows = list;
    m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
    m.rows = &rows;
    m.has_index = 1;
    m.index = index;
    fake_answer(f, conn, request_id, &m);
}

void fake_write_result(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *to, int code, uint64_t index, const char *text)
{
    Raftdir__Log__Result r = RAFTDIR__LOG__RESULT__INIT;
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    size_t n = code ? 0 : to->write->n_ops;
    Raftdir__Log__OpResult *ops = calloc(n + 1, sizeof *ops), **list = calloc(n + 1, sizeof *list);
    if (!ops || !list)
        abort();
    for (size_t i = 0; i < n; i++) {
        raftdir__log__op_result__init(&ops[i]);
        ops[i].has_changed = ops[i].has_generation = 1;
        ops[i].changed = 1;
        ops[i].generation = index + i;
        list[i] = &ops[i];
    }
    r.code = code;
    r.message = (char *)text;
    r.index = index;
    r.has_failed_op = code != 0;
    r.n_ops = n;
    r.ops = list;
    m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_WRITE;
    m.write = &r;
    m.has_index = 1;
    m.index = index;
    fake_answer(f, conn, to->request_id, &m);
    free(ops);
    free(list);
}

static void hello(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *to)
{
    Raftdir__Client__HelloResult h = RAFTDIR__CLIENT__HELLO_RESULT__INIT;
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    if (f->hello_silent)
        return;
    if (f->hello_code) {
        fake_code(f, conn, to->request_id, f->hello_code, f->hello_text);
        fake_close(f, conn);
        return;
    }
    h.node_name = strrchr(f->path, '/') + 1;
    h.identity = (char *)f->identity;
    h.role = "admin";
    h.has_cluster_id = 1;
    h.cluster_id = 7;
    m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_HELLO;
    m.hello = &h;
    fake_answer(f, conn, to->request_id, &m);
}

static void drop(struct fake *f, unsigned conn)
{
    SSL_free(f->conns[conn].ssl);
    f->conns[conn].ssl = NULL;
    if (f->conns[conn].fd >= 0)
        close(f->conns[conn].fd);
    f->conns[conn].fd = -1;
    frame_reader_close(&f->conns[conn].in);
    memset(&f->conns[conn].in, 0, sizeof f->conns[conn].in);
    f->conns[conn].close_after = false;
}

static void read_conn(struct fake *f, unsigned conn)
{
    size_t room;
    uint8_t *at = frame_reader_room(&f->conns[conn].in, 65536, &room);
    SSL *ssl = f->conns[conn].ssl;
    ssize_t n = !at ? -1 : ssl ? SSL_read(ssl, at, (int)room) : recv(f->conns[conn].fd, at, room, 0);
    if (n <= 0) {
        if (ssl && SSL_get_error(ssl, (int)n) == SSL_ERROR_ZERO_RETURN)
            f->farewells++;
        ERR_clear_error();
        drop(f, conn);
        return;
    }
    frame_reader_fill(&f->conns[conn].in, (size_t)n);
    const uint8_t *frame;
    size_t len;
    while (!f->conns[conn].close_after && frame_reader_next(&f->conns[conn].in, CLIENT_FRAME_LEN_MAX, &frame, &len, NULL) == 1) {
        Raftdir__Client__ToNode *m = raftdir__client__to_node__unpack(NULL, len, frame);
        if (!m) {
            f->seen[0]++; /* the library sent garbage: tests look at it */
            drop(f, conn);
            return;
        }
        if (m->body_case < 64)
            f->seen[m->body_case]++;
        if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_CREDIT)
            f->credit += m->credit->rows;
        if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_HELLO)
            hello(f, conn, m);
        else if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_BARRIER && !m->has_min_index) {
            if (f->answers_pings)
                fake_code(f, conn, m->request_id, 0, NULL);
        } else if (f->handler)
            f->handler(f, conn, m);
        raftdir__client__to_node__free_unpacked(m, NULL);
    }
    if (f->conns[conn].close_after)
        drop(f, conn);
}

/* The handshake, in which the node waits: a client that goes away ends it, and one that stays silent a timeout. */
static bool take_tls(struct fake *f, unsigned conn)
{
    struct timeval patience = {.tv_sec = 5};
    setsockopt(f->conns[conn].fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    SSL *ssl = f->conns[conn].ssl = SSL_new(f->tls);
    bool ok = ssl && SSL_set_fd(ssl, f->conns[conn].fd) == 1 && SSL_accept(ssl) == 1;
    ERR_clear_error();
    return ok;
}

static void *run(void *arg)
{
    struct fake *f = arg;
    sigset_t pipes;
    sigemptyset(&pipes);
    sigaddset(&pipes, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipes, NULL); /* OpenSSL's own socket BIO raises it */
    for (;;) {
        struct pollfd fds[FAKE_CONNS_MAX + 2];
        unsigned which[FAKE_CONNS_MAX + 2];
        nfds_t n = 0;
        fake_lock(f);
        bool running = f->running;
        f->up = true;
        fds[n++] = (struct pollfd){.fd = f->listener, .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = f->wake[0], .events = POLLIN};
        for (unsigned i = 0; i < FAKE_CONNS_MAX; i++) {
            if (f->conns[i].close_after)
                drop(f, i);
            if (f->conns[i].fd < 0)
                continue;
            which[n] = i;
            fds[n++] = (struct pollfd){.fd = f->conns[i].fd, .events = POLLIN};
        }
        fake_unlock(f);
        if (!running)
            return NULL;
        if (poll(fds, n, 1000) < 0 && errno != EINTR)
            abort();
        fake_lock(f);
        if (fds[0].revents) {
            int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
            unsigned i = 0;
            while (i < FAKE_CONNS_MAX && f->conns[i].fd >= 0)
                i++;
            if (fd >= 0 && i < FAKE_CONNS_MAX) {
                f->conns[i].fd = fd;
                f->conns_opened++;
                if (f->tls && !take_tls(f, i))
                    drop(f, i);
            } else if (fd >= 0)
                close(fd);
        }
        for (nfds_t k = 2; k < n; k++)
            if (fds[k].revents && f->conns[which[k]].fd == fds[k].fd)
                read_conn(f, which[k]);
        fake_unlock(f);
    }
}

static void start(struct fake *f, fake_handler *handler, void *data)
{
    f->identity = f->tls ? "cert:test" : "unix:0";
    f->incarnation = 1;
    f->log_time_ms = 1000;
    f->handler = handler;
    f->data = data;
    f->running = true;
    for (unsigned i = 0; i < FAKE_CONNS_MAX; i++)
        f->conns[i].fd = -1;
    pthread_mutex_init(&f->lock, NULL);
    assert_int_equal(listen(f->listener, 16), 0);
    assert_int_equal(pipe(f->wake), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
    for (bool up = false; !up; usleep(100)) { /* tests fork: a thread that is just being made may hold locks of the sanitizer's */
        fake_lock(f);
        up = f->up;
        fake_unlock(f);
    }
}

void fake_start(struct fake *f, const char *dir, const char *name, fake_handler *handler, void *data)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    memset(f, 0, sizeof *f);
    assert_true((size_t)snprintf(f->path, sizeof f->path, "%s/%s.sock", dir, name) < sizeof f->path);
    snprintf(f->endpoint, sizeof f->endpoint, "unix:%s", f->path);
    memcpy(un.sun_path, f->path, strlen(f->path) + 1);
    f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(f->listener >= 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&un, sizeof un), 0);
    start(f, handler, data);
}

void fake_start_tls(struct fake *f, const char *name, SSL_CTX *tls, fake_handler *handler, void *data)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    memset(f, 0, sizeof *f);
    snprintf(f->path, sizeof f->path, "/%s", name); /* only its name in hellos */
    f->tls = tls;
    f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(f->listener >= 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(getsockname(f->listener, (struct sockaddr *)&in, &len), 0);
    snprintf(f->endpoint, sizeof f->endpoint, "tls:127.0.0.1:%u", ntohs(in.sin_port));
    start(f, handler, data);
}

void fake_stop(struct fake *f)
{
    if (!f->listener)
        return;
    fake_lock(f);
    f->running = false;
    fake_unlock(f);
    assert_int_equal(write(f->wake[1], "x", 1), 1);
    pthread_join(f->thread, NULL);
    for (unsigned i = 0; i < FAKE_CONNS_MAX; i++)
        drop(f, i);
    close(f->listener);
    close(f->wake[0]);
    close(f->wake[1]);
    if (!f->tls)
        unlink(f->path);
    pthread_mutex_destroy(&f->lock);
    f->listener = 0;
}
