/* test_conn.c - connections with both ends on one loop: plain, Unix socket, TLS; and what goes wrong on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "raftdir/conn.h"
#include "raftdir/limits.h"
#include "raftdir/tls_stream.h"
#include "support_certs.h"

#define LEN_MAX (1u << 20)

struct end {
    struct conn *c;
    int opened, closed, drained, oversized, code;
    unsigned frames;
    size_t bytes;
    char last[64], why[256], cert[64];
    bool echo, pause_first;
    unsigned detach_at_frame; /* 0: never */
    int detach_rc, detach_fd;
    SSL *detach_ssl;
};
static uv_loop_t loop;
static uv_tcp_t tcp;
static uv_pipe_t pipe_listener;
static char dir[256], sock[300], port[8];
static struct support_ca ca, other_ca;
static struct end server, client;
static SSL_CTX *server_tls;
static size_t server_out_max;

static void on_open(struct conn *c)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->opened++, 0);
    snprintf(e->cert, sizeof e->cert, "%s", conn_peer_cert(c) ? conn_peer_cert(c) : "");
}

static void on_frame(struct conn *c, const uint8_t *frame, size_t len)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->opened, 1);
    assert_int_equal(e->closed, 0);
    e->frames++;
    e->bytes += len;
    snprintf(e->last, sizeof e->last, "%.*s", len < 60 ? (int)len : 60, (const char *)frame);
    if (e->pause_first && e->frames == 1)
        conn_pause(c, true);
    if (e->echo)
        assert_int_equal(conn_send(c, frame, len), 0);
    if (e->frames == e->detach_at_frame)
        e->detach_rc = conn_detach(c, &e->detach_fd, &e->detach_ssl);
    if (strcmp(e->last, "close") == 0) {
        assert_int_equal(conn_send(c, (const uint8_t *)"goodbye", 7), 0);
        conn_close(c, RAFTDIR_EPERM, "asked for");
        conn_close(c, 0, "twice");
        assert_int_equal(conn_send(c, (const uint8_t *)"x", 1), RAFTDIR_ECANCELED);
        assert_int_equal(e->closed, 0); /* never within conn_close */
    }
}

static void on_drain(struct conn *c)
{
    ((struct end *)conn_data(c))->drained++;
}

static void on_oversize(struct conn *c, int code, const char *why)
{
    struct end *e = conn_data(c);
    assert_int_equal(code, RAFTDIR_ETOOBIG);
    assert_non_null(why);
    e->oversized++;
    conn_send(c, (const uint8_t *)"too long", 8);
}

static void on_close(struct conn *c, int code, const char *why)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->closed++, 0);
    e->code = code;
    snprintf(e->why, sizeof e->why, "%s", why);
    e->c = NULL;
}

static const struct conn_events events = {.on_open = on_open, .on_frame = on_frame, .on_drain = on_drain, .on_oversize = on_oversize, .on_close = on_close};

static void on_connection(uv_stream_t *listener, int status)
{
    assert_int_equal(status, 0);
    struct conn_options o = {.tls = server_tls, .frame_len_max = LEN_MAX, .out_len_max = server_out_max ? server_out_max : 4 * LEN_MAX, .data = &server};
    struct err err;
    assert_int_equal(conn_accept(&loop, listener, &o, &events, &server.c, &err), 0);
    assert_int_equal(server.opened, 0);
}

/* Every 5 ms, so that no round of the loop blocks for long. */
static void timer_cb(uv_timer_t *t)
{
    (void)t;
}

/* Runs the loop until the condition holds; 10 seconds are too long. */
#define RUN_UNTIL(condition)                                                                                                               \
    do {                                                                                                                                   \
        bool late_ = false;                                                                                                                \
        uint64_t until_ = uv_hrtime() + 10000000000ull;                                                                                    \
        uv_timer_t timer_;                                                                                                                 \
        uv_timer_init(&loop, &timer_);                                                                                                     \
        uv_timer_start(&timer_, timer_cb, 5, 5);                                                                                           \
        while (!(condition) && !(late_ = uv_hrtime() > until_))                                                                            \
            uv_run(&loop, UV_RUN_ONCE);                                                                                                    \
        uv_close((uv_handle_t *)&timer_, NULL);                                                                                            \
        uv_run(&loop, UV_RUN_NOWAIT);                                                                                                      \
        if (late_)                                                                                                                         \
            fail_msg("line %d: waited too long for " #condition " (client: %s; server: %s)", __LINE__, client.why, server.why);           \
    } while (0)

static void run_ms(unsigned ms)
{
    uint64_t until = uv_hrtime() + ms * 1000000ull;
    uv_timer_t t;
    uv_timer_init(&loop, &t);
    uv_timer_start(&t, timer_cb, 1, 5);
    do
        uv_run(&loop, UV_RUN_ONCE);
    while (uv_hrtime() < until);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void dial(SSL_CTX *tls, const char *host, const char *to_port)
{
    struct conn_options o = {.tls = tls, .frame_len_max = LEN_MAX, .out_len_max = 4 * LEN_MAX, .data = &client};
    struct err err;
    assert_int_equal(conn_connect(&loop, host, to_port, &o, &events, &client.c, &err), 0);
    assert_int_equal(client.opened + client.closed, 0);
}

static void send_text(struct end *e, const char *s)
{
    assert_int_equal(conn_send(e->c, (const uint8_t *)s, strlen(s)), 0);
}

static void both_end(void)
{
    if (client.c)
        conn_close(client.c, 0, "end of test");
    if (server.c)
        conn_close(server.c, 0, "end of test");
    RUN_UNTIL(!client.c && !server.c);
}

static int begin(void **state)
{
    (void)state;
    memset(&server, 0, sizeof server);
    memset(&client, 0, sizeof client);
    server_tls = NULL;
    server_out_max = 0;
    return 0;
}

static int group_setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "conn");
    snprintf(sock, sizeof sock, "%s/s", dir);
    char file[512];
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    snprintf(file, sizeof file, "%s/other.crt", dir);
    support_ca_make(&other_ca, "CA of others", file);
    support_cert_make(&ca, dir, "server", &(struct support_cert){.cn = "server"});
    support_cert_make(&ca, dir, "client", &(struct support_cert){.cn = "client"});
    support_cert_make(&other_ca, dir, "foreign", &(struct support_cert){.cn = "client"});
    assert_int_equal(uv_loop_init(&loop), 0);
    struct sockaddr_in a;
    uv_ip4_addr("127.0.0.1", 0, &a);
    uv_tcp_init(&loop, &tcp);
    assert_int_equal(uv_tcp_bind(&tcp, (struct sockaddr *)&a, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&tcp, 16, on_connection), 0);
    int len = sizeof a;
    uv_tcp_getsockname(&tcp, (struct sockaddr *)&a, &len);
    snprintf(port, sizeof port, "%u", ntohs(a.sin_port));
    uv_pipe_init(&loop, &pipe_listener, 0);
    assert_int_equal(uv_pipe_bind(&pipe_listener, sock), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&pipe_listener, 16, on_connection), 0);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    uv_close((uv_handle_t *)&tcp, NULL);
    uv_close((uv_handle_t *)&pipe_listener, NULL);
    while (uv_run(&loop, UV_RUN_DEFAULT))
        ;
    assert_int_equal(uv_loop_close(&loop), 0);
    support_ca_free(&ca);
    support_ca_free(&other_ca);
    support_dir_remove(dir);
    return 0;
}

static void exchange(void)
{
    server.echo = true;
    send_text(&client, "early"); /* before on_open */
    RUN_UNTIL(client.frames == 1);
    assert_string_equal(client.last, "early");
    for (int i = 0; i < 1000; i++)
        send_text(&client, "hello");
    assert_int_equal(conn_queued_len(client.c), 9 * 1000);
    RUN_UNTIL(client.frames == 1001);
    assert_int_equal(conn_queued_len(client.c), 0);
    /* The largest that is allowed. */
    uint8_t *big = calloc(1, LEN_MAX);
    assert_non_null(big);
    assert_int_equal(conn_send(client.c, big, LEN_MAX), 0);
    RUN_UNTIL(client.frames == 1002);
    free(big);
    server.echo = false;
    send_text(&client, "close");
    RUN_UNTIL(client.closed && server.closed);
    assert_string_equal(client.last, "goodbye"); /* came before the end */
    assert_int_equal(client.code, 0);
    assert_int_equal(server.code, RAFTDIR_EPERM);
    assert_string_equal(server.why, "asked for");
}

static void plain(void **state)
{
    (void)state;
    dial(NULL, "127.0.0.1", port);
    exchange();
}

static void by_name(void **state)
{
    (void)state;
    struct addrinfo *known = NULL;
    bool resolves = getaddrinfo("localhost", port, NULL, &known) == 0; /* not on a bare system without /etc/hosts */
    if (known)
        freeaddrinfo(known);
    dial(NULL, "localhost", port); /* may try ::1 first, where nobody listens */
    RUN_UNTIL(client.opened || client.closed);
    assert_int_equal(client.opened, resolves);
    if (!resolves) {
        assert_int_equal(client.code, RAFTDIR_EUNAVAIL);
        assert_string_not_equal(client.why, "");
        return;
    }
    both_end();
}

static void unix_socket(void **state)
{
    (void)state;
    dial(NULL, sock, NULL);
    RUN_UNTIL(server.opened && client.opened);
    uid_t uid = 4711;
    gid_t gid = 4711;
    assert_true(conn_peer_uid(server.c, &uid, &gid));
    assert_int_equal(uid, getuid());
    assert_int_equal(gid, getgid());
    assert_null(conn_peer_cert(server.c));
    exchange();
}

static void tls(void **state)
{
    (void)state;
    SSL_CTX *c = support_ctx(dir, "ca", "client");
    server_tls = support_ctx(dir, "ca", "server");
    dial(c, "127.0.0.1", port);
    RUN_UNTIL(server.opened && client.opened);
    assert_string_equal(server.cert, "client");
    assert_string_equal(client.cert, "server");
    exchange();
    SSL_CTX_free(c);
    SSL_CTX_free(server_tls);
}

/* tls/refused: each side says why. */
static void tls_refused(void **state)
{
    support_cert_make(&ca, dir, "expired", &(struct support_cert){.cn = "client", .starts_s = -100, .ends_s = 3});
    SSL_CTX *good = support_ctx(dir, "ca", "client"), *foreign = support_ctx(dir, "other", "foreign"), *expired = support_ctx(dir, "ca", "expired");
    server_tls = support_ctx(dir, "ca", "server");
    sleep(4); /* `expired` does so meanwhile */
    SSL_CTX_set_verify(foreign, SSL_VERIFY_NONE, NULL); /* else the client would refuse first */
    const struct {
        SSL_CTX *tls;
        const char *server_says;
    } rows[] = {{foreign, "certificate was not accepted"}, {expired, "expired"}};
    SSL_CTX *s = server_tls;
    for (size_t i = 0; i < 2; i++) {
        begin(state);
        server_tls = s;
        dial(rows[i].tls, "127.0.0.1", port);
        RUN_UNTIL(client.closed && server.closed);
        assert_int_equal(server.opened, 0);
        assert_int_equal(server.code, RAFTDIR_EAUTH);
        assert_non_null(strstr(server.why, rows[i].server_says));
        assert_int_equal(client.code, RAFTDIR_EAUTH); /* by the alert */
    }
    /* The server's certificate isn't of the client's CA. */
    begin(state);
    server_tls = s;
    SSL_CTX_set_verify(foreign, SSL_VERIFY_PEER, NULL);
    dial(foreign, "127.0.0.1", port);
    RUN_UNTIL(client.closed && server.closed);
    assert_int_equal(client.opened + server.opened, 0);
    assert_int_equal(client.code, RAFTDIR_EAUTH);
    assert_int_equal(server.code, RAFTDIR_EAUTH);
    SSL_CTX_free(good);
    SSL_CTX_free(foreign);
    SSL_CTX_free(expired);
    SSL_CTX_free(s);
}

static int raw_socket(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void raw_write(int fd, const void *p, size_t len)
{
    assert_int_equal(send(fd, p, len, MSG_NOSIGNAL), len);
}

/* conn/garbage_to_tls */
static void garbage_to_tls(void **state)
{
    (void)state;
    server_tls = support_ctx(dir, "ca", "server");
    int fd = raw_socket();
    raw_write(fd, "GET / HTTP/1.1\r\n\r\n", 18);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.opened, 0);
    assert_int_equal(server.code, RAFTDIR_EPROTO);
    close(fd);
    SSL_CTX_free(server_tls);
}

/* conn/silent_in_handshake */
static void silent(void **state)
{
    (void)state;
    server_tls = support_ctx(dir, "ca", "server");
    int fd = raw_socket();
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_ETIMEDOUT);
    close(fd);
    SSL_CTX_free(server_tls);
}

/* conn/oversized: refused, and the answer arrives although the rest of the frame was never read. */
static void oversized(void **state)
{
    (void)state;
    int fd = raw_socket();
    static uint8_t bytes[300000] = {0x7f, 0xff, 0xff, 0xff};
    raw_write(fd, bytes, sizeof bytes);
    RUN_UNTIL(server.oversized);
    run_ms(50);
    uint8_t answer[12];
    assert_int_equal(recv(fd, answer, sizeof answer, MSG_WAITALL), 12);
    assert_memory_equal(answer + 4, "too long", 8);
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_ETOOBIG);
}

/* conn/half_frame */
static void half_frame(void **state)
{
    (void)state;
    int fd = raw_socket();
    raw_write(fd, "\0\0\0\5abc", 7);
    RUN_UNTIL(server.opened);
    run_ms(20);
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.frames, 0);
    assert_int_equal(server.code, RAFTDIR_EPROTO);
    assert_non_null(strstr(server.why, "middle of a frame"));
}

/* conn/backpressure: a limit is told, and on_drain comes when there is room. */
static void backpressure(void **state)
{
    (void)state;
    server_out_max = 1 << 20;
    int fd = raw_socket();
    RUN_UNTIL(server.opened);
    static uint8_t frame[65536];
    int rc = 0, n = 0;
    while (n < 1000 && (rc = conn_send(server.c, frame, sizeof frame)) == 0) {
        n++;
        if (n % 8 == 0)
            run_ms(1);
    }
    assert_int_equal(rc, RAFTDIR_ELIMIT);
    assert_true(conn_queued_len(server.c) <= 1 << 20);
    uint64_t sent = conn_sent_len(server.c);
    server.drained = 0;
    run_ms(50);
    assert_int_equal(conn_sent_len(server.c), sent); /* nobody reads */
    assert_int_equal(server.drained, 0);
    size_t want = (size_t)n * (sizeof frame + 4), got = 0;
    while (got < want) {
        static uint8_t sink[1 << 20];
        ssize_t r = recv(fd, sink, sizeof sink, MSG_DONTWAIT);
        if (r > 0)
            got += (size_t)r;
        else
            run_ms(1);
    }
    assert_int_equal(server.drained, 1);
    assert_int_equal(conn_queued_len(server.c), 0);
    /* One frame larger than the limit passes when nothing waits. */
    uint8_t *big = calloc(1, 2 << 20);
    assert_int_equal(conn_send(server.c, big, 2 << 20), 0);
    free(big);
    close(fd);
    RUN_UNTIL(server.closed);
}

/* conn/pause: nothing more comes, then all of it. */
static void pause_reading(void **state)
{
    (void)state;
    SSL_CTX *c = support_ctx(dir, "ca", "client");
    server_tls = support_ctx(dir, "ca", "server");
    server.pause_first = true;
    dial(c, "127.0.0.1", port);
    for (int i = 0; i < 100; i++)
        send_text(&client, "hello");
    RUN_UNTIL(server.frames == 1);
    run_ms(50);
    assert_int_equal(server.frames, 1);
    conn_pause(server.c, false);
    assert_int_equal(server.frames, 1); /* not from within the call */
    RUN_UNTIL(server.frames == 100);
    both_end();
    SSL_CTX_free(c);
    SSL_CTX_free(server_tls);
}

/* conn/nobody_there */
static void nobody(void **state)
{
    dial(NULL, "127.0.0.1", "1");
    RUN_UNTIL(client.closed);
    assert_int_equal(client.code, RAFTDIR_EUNAVAIL);
    begin(state);
    dial(NULL, "no-such-host.invalid", "1");
    RUN_UNTIL(client.closed);
    assert_int_equal(client.code, RAFTDIR_EUNAVAIL);
    begin(state);
    dial(NULL, "/nonexistent/socket", NULL);
    RUN_UNTIL(client.closed);
    assert_int_equal(client.code, RAFTDIR_EUNAVAIL);
    /* Closed while it connects. */
    begin(state);
    dial(NULL, "localhost", port);
    conn_close(client.c, RAFTDIR_ECANCELED, "changed my mind");
    RUN_UNTIL(client.closed);
    assert_int_equal(client.code, RAFTDIR_ECANCELED);
    run_ms(50);
    if (server.c)
        both_end();
}

/* conn/detach: the server's end leaves the loop in the middle of a conversation, and a thread of its own goes on with it. */
static void *echo_main(void *data)
{
    struct tls_stream *stream = data;
    const uint8_t *frame;
    size_t len;
    struct err err;
    int rc;
    while ((rc = tls_stream_receive(stream, LEN_MAX, &frame, &len, &err)) == 0) {
        if ((rc = tls_stream_send(stream, frame, len, &err)) != 0)
            break;
    }
    tls_stream_close(&stream);
    return (void *)(intptr_t)rc;
}

static void detach(void **state)
{
    /* Without and with TLS 1.3 session tickets, which the server sends behind the handshake. */
    for (int tickets = 0; tickets < 2; tickets++) {
        begin(state);
        SSL_CTX *s = support_ctx(dir, "ca", "server"), *c = support_ctx(dir, "ca", "client");
        if (tickets) {
            SSL_CTX_clear_options(s, SSL_OP_NO_TICKET);
            SSL_CTX_clear_options(c, SSL_OP_NO_TICKET);
            SSL_CTX_set_session_cache_mode(s, SSL_SESS_CACHE_SERVER);
            SSL_CTX_set_session_id_context(s, (const unsigned char *)"t", 1);
            SSL_CTX_set_num_tickets(s, 2);
        }
        server_tls = s;
        dial(c, "127.0.0.1", port);
        RUN_UNTIL(client.opened && server.opened);
        int fd = -1;
        SSL *ssl = NULL;
        /* Bytes under way to it: two frames, of which on_frame has seen one. */
        server.detach_at_frame = 1;
        send_text(&client, "one");
        send_text(&client, "two");
        RUN_UNTIL(server.frames == 2);
        assert_int_equal(server.detach_rc, RAFTDIR_EBUSY);
        /* Bytes under way from it: more than the socket takes while the client doesn't read. */
        conn_pause(client.c, true);
        uint8_t *big = calloc(1, LEN_MAX);
        assert_non_null(big);
        for (int i = 0; i < 12; i++) {
            run_ms(5);
            if (conn_queued_len(server.c) < LEN_MAX)
                assert_int_equal(conn_send(server.c, big, LEN_MAX), 0);
        }
        run_ms(20);
        assert_int_equal(conn_detach(server.c, &fd, &ssl), RAFTDIR_EBUSY);
        assert_int_equal(server.closed, 0);
        conn_pause(client.c, false);
        RUN_UNTIL(conn_queued_len(server.c) == 0);
        run_ms(20);
        /* From within on_frame, with an answer that was queued just before. */
        unsigned frames = client.frames;
        server.echo = true;
        server.detach_at_frame = 3;
        send_text(&client, "three");
        RUN_UNTIL(server.closed);
        assert_int_equal(server.detach_rc, 0);
        assert_int_equal(server.code, 0);
        fd = server.detach_fd;
        ssl = server.detach_ssl;
        RUN_UNTIL(client.frames == frames + 1);
        assert_string_equal(client.last, "three");
        assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
        assert_int_not_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
        /* Both directions, small and large. */
        struct tls_stream *stream;
        struct tls_stream_options o = {.io_timeout_ms = 5000};
        struct err err = {0};
        assert_int_equal(tls_stream_adopt(fd, ssl, &o, &stream, &err), 0);
        assert_string_equal(tls_stream_peer(stream), "client");
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, echo_main, stream), 0);
        frames = client.frames;
        size_t bytes = client.bytes;
        send_text(&client, "four");
        RUN_UNTIL(client.frames == frames + 1);
        assert_string_equal(client.last, "four");
        for (int i = 0; i < 5; i++) {
            assert_int_equal(conn_send(client.c, big, LEN_MAX - (size_t)i), 0);
            RUN_UNTIL(client.frames == frames + 2 + (unsigned)i);
        }
        assert_int_equal(client.bytes, bytes + 4 + 5 * LEN_MAX - 10);
        free(big);
        assert_int_equal(client.closed, 0);
        conn_close(client.c, 0, "done");
        RUN_UNTIL(client.closed);
        void *rc;
        pthread_join(thread, &rc);
        assert_int_equal((intptr_t)rc, RAFTDIR_ENOTFOUND); /* closed in order */
        SSL_CTX_free(s);
        SSL_CTX_free(c);
    }
}

/* conn/vanishes: the other end is gone with unread bytes (a reset); no SIGPIPE. */
static void vanishes(void **state)
{
    (void)state;
    int fd = raw_socket();
    RUN_UNTIL(server.opened);
    send_text(&server, "unread");
    run_ms(20);
    close(fd);
    for (int i = 0; i < 10 && server.c; i++) {
        send_text(&server, "more");
        run_ms(5);
    }
    RUN_UNTIL(server.closed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(plain, begin),          cmocka_unit_test_setup(by_name, begin),       cmocka_unit_test_setup(unix_socket, begin),
        cmocka_unit_test_setup(tls, begin),            cmocka_unit_test_setup(tls_refused, begin),   cmocka_unit_test_setup(garbage_to_tls, begin),
        cmocka_unit_test_setup(silent, begin),         cmocka_unit_test_setup(oversized, begin),     cmocka_unit_test_setup(half_frame, begin),
        cmocka_unit_test_setup(backpressure, begin),   cmocka_unit_test_setup(pause_reading, begin), cmocka_unit_test_setup(nobody, begin),
        cmocka_unit_test_setup(vanishes, begin),       cmocka_unit_test_setup(detach, begin),
    };
    return cmocka_run_group_tests_name("conn", tests, group_setup, group_teardown);
}
