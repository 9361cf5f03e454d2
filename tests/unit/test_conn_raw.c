/* test_conn_raw.c - raw connections: a server on the loop, the other end a socket of the test's own, in clear, with TLS, and from one to the other by STARTTLS.
 *
 * The server keeps what it takes; `take` says how much of each offer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "raftdir/conn.h"
#include "raftdir/limits.h"
#include "raftdir/tls.h"
#include "support_certs.h"

#define LEN_MAX 5000

enum take { ALL, NOTHING, LINES, HALF };
struct end {
    struct conn *c;
    int opened, closed, oversized, eof, tls, drained, code;
    unsigned offers;
    size_t offered, got_len; /* of the last offer; taken in all */
    char got[1 << 20], why[256], cert[64];
    enum take take;
    bool pause, echo, starttls, eof_closes, say_oversize;
};
static uv_loop_t loop;
static uv_tcp_t tcp;
static char dir[256];
static unsigned port;
static struct support_ca ca, other_ca;
static struct end server, second, *accepting; /* the latter: whose connection comes next */
static SSL_CTX *server_tls, *starttls_tls;
static bool with_eof;

static void on_open(struct conn *c)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->opened++, 0);
    snprintf(e->cert, sizeof e->cert, "%s", conn_peer_cert(c) ? conn_peer_cert(c) : "");
    assert_int_equal(conn_send(c, (const uint8_t *)"* hello\r\n", 9), 0);
}

static size_t on_data(struct conn *c, const uint8_t *data, size_t len)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->opened, 1);
    assert_int_equal(e->closed + e->eof, 0);
    assert_true(len > 0);
    e->offers++;
    e->offered = len;
    size_t n = e->take == ALL ? len : e->take == HALF ? (len + 1) / 2 : 0;
    if (e->take == LINES) {
        const uint8_t *end = memchr(data, '\n', len);
        n = end ? (size_t)(end - data) + 1 : 0;
    }
    assert_true(e->got_len + n < sizeof e->got);
    memcpy(e->got + e->got_len, data, n);
    e->got_len += n;
    e->got[e->got_len] = 0;
    if (e->pause)
        conn_pause(c, true);
    if (e->echo && n)
        assert_int_equal(conn_send(c, data, n), 0);
    if (e->starttls && n >= 10 && memcmp(data, "STARTTLS\r\n", 10) == 0) {
        assert_int_equal(conn_send(c, (const uint8_t *)"begin\r\n", 7), 0);
        conn_starttls(c, starttls_tls);
        assert_int_equal(conn_send(c, (const uint8_t *)"secret\r\n", 8), 0); /* never in clear */
    }
    if (n >= 5 && memcmp(data, "close", 5) == 0) {
        assert_int_equal(conn_send(c, (const uint8_t *)"bye\r\n", 5), 0);
        conn_close(c, RAFTDIR_EPERM, "asked for");
        assert_int_equal(conn_send(c, data, 1), RAFTDIR_ECANCELED);
    }
    return n;
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
    assert_int_equal(conn_send(c, (const uint8_t *)"too long", 8), 0);
}

static void on_close(struct conn *c, int code, const char *why)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->closed++, 0);
    e->code = code;
    snprintf(e->why, sizeof e->why, "%s", why);
    e->c = NULL;
}

static void on_tls(struct conn *c)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->tls++, 0);
    snprintf(e->cert, sizeof e->cert, "%s", conn_peer_cert(c) ? conn_peer_cert(c) : "");
}

static void on_eof(struct conn *c)
{
    struct end *e = conn_data(c);
    assert_int_equal(e->eof++, 0);
    if (e->eof_closes)
        conn_close(c, 0, "at the end");
}

static void on_connection(uv_stream_t *listener, int status)
{
    assert_int_equal(status, 0);
    struct conn_options o = {.tls = server_tls, .frame_len_max = LEN_MAX, .out_len_max = 1 << 20, .raw = true, .data = accepting};
    struct conn_events events = {
        .on_open = on_open, .on_data = on_data, .on_drain = on_drain, .on_oversize = on_oversize, .on_close = on_close, .on_tls = on_tls, .on_eof = with_eof ? on_eof : NULL};
    struct err err;
    assert_int_equal(conn_accept(&loop, listener, &o, &events, &accepting->c, &err), 0);
    assert_int_equal(accepting->opened, 0);
}

static void timer_cb(uv_timer_t *t)
{
    (void)t;
}

/* One round of the loop, which blocks for a millisecond at most. */
static void turn(void)
{
    uv_timer_t t;
    uv_timer_init(&loop, &t);
    uv_timer_start(&t, timer_cb, 1, 1);
    uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&t, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

#define RUN_UNTIL(condition)                                                                                                               \
    do {                                                                                                                                   \
        uint64_t until_ = uv_hrtime() + 15000000000ull;                                                                                    \
        while (!(condition)) {                                                                                                             \
            turn();                                                                                                                        \
            if (uv_hrtime() > until_)                                                                                                      \
                fail_msg("line %d: waited too long for " #condition " (server: %s)", __LINE__, server.why);                                \
        }                                                                                                                                  \
    } while (0)

static void run_ms(unsigned ms)
{
    uint64_t until = uv_hrtime() + ms * 1000000ull;
    do
        turn();
    while (uv_hrtime() < until);
}

static int begin(void **state)
{
    (void)state;
    memset(&server, 0, sizeof server);
    memset(&second, 0, sizeof second);
    accepting = &server;
    server_tls = starttls_tls = NULL;
    with_eof = false;
    return 0;
}

static int group_setup(void **state)
{
    (void)state;
    char file[512];
    support_dir_make(dir, sizeof dir, "conn_raw");
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
    port = ntohs(a.sin_port);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    uv_close((uv_handle_t *)&tcp, NULL);
    while (uv_run(&loop, UV_RUN_DEFAULT))
        ;
    assert_int_equal(uv_loop_close(&loop), 0);
    support_ca_free(&ca);
    support_ca_free(&other_ca);
    support_dir_remove(dir);
    return 0;
}

static SSL_CTX *optional_ctx(void)
{
    char a[512], b[512], k[512];
    snprintf(a, sizeof a, "%s/ca.crt", dir);
    snprintf(b, sizeof b, "%s/server.crt", dir);
    snprintf(k, sizeof k, "%s/server.key", dir);
    SSL_CTX *ctx = NULL;
    struct err err = {0};
    if (tls_context_create_optional(&(struct tls_files){.ca = a, .cert = b, .key = k}, &ctx, &err) != 0)
        fail_msg("%s", err.text);
    return ctx;
}

/* --- The other end --- */

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

static void say(int fd, const void *p, size_t len)
{
    uint64_t until = uv_hrtime() + 15000000000ull;
    for (size_t done = 0; done < len && uv_hrtime() < until;) {
        ssize_t n = send(fd, (const char *)p + done, len - done, MSG_NOSIGNAL);
        if (n > 0)
            done += (size_t)n;
        else
            turn();
    }
}

static void say_text(int fd, const char *s)
{
    say(fd, s, strlen(s));
}

/* Reads until `text` is the end of what was read, or the other end closes (text NULL: until then). */
static const char *hear(int fd, SSL *ssl, const char *text)
{
    static char buf[1 << 16];
    size_t len = 0;
    uint64_t until = uv_hrtime() + 15000000000ull;
    buf[0] = 0;
    while (uv_hrtime() < until && len < sizeof buf - 1) {
        if (text && len >= strlen(text) && memcmp(buf + len - strlen(text), text, strlen(text)) == 0)
            return buf;
        ssize_t n = ssl ? SSL_read(ssl, buf + len, (int)(sizeof buf - 1 - len)) : recv(fd, buf + len, sizeof buf - 1 - len, 0);
        if (n > 0)
            buf[len += (size_t)n] = 0;
        else if (ssl ? SSL_get_error(ssl, (int)n) != SSL_ERROR_WANT_READ : n == 0 || errno != EAGAIN)
            break;
        else
            turn();
    }
    ERR_clear_error();
    if (text)
        fail_msg("heard \"%s\", wanted \"%s\"", buf, text);
    return buf;
}

/* 0, or -1 when the handshake fails. */
static int tls_begin(int fd, SSL_CTX *ctx, SSL **ssl_r)
{
    SSL *ssl = SSL_new(ctx);
    assert_non_null(ssl);
    assert_int_equal(SSL_set_fd(ssl, fd), 1);
    *ssl_r = ssl;
    for (uint64_t until = uv_hrtime() + 15000000000ull; uv_hrtime() < until; turn()) {
        int rc = SSL_connect(ssl);
        if (rc == 1)
            return 0;
        if (SSL_get_error(ssl, rc) != SSL_ERROR_WANT_READ)
            break;
    }
    ERR_clear_error();
    return -1;
}

static void tls_say(SSL *ssl, const char *s)
{
    assert_int_equal(SSL_write(ssl, s, (int)strlen(s)), strlen(s));
}

static void end(int fd, SSL *ssl)
{
    SSL_free(ssl);
    close(fd);
    if (server.c && !server.eof_closes && with_eof) {
        RUN_UNTIL(server.eof || server.closed);
        if (server.c)
            conn_close(server.c, 0, "end of test");
    }
    RUN_UNTIL(server.closed);
}

/* --- In clear --- */

static void all_or_part(void **state)
{
    (void)state;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    server.echo = true;
    say_text(fd, "abc");
    hear(fd, NULL, "abc");
    assert_string_equal(server.got, "abc");
    /* Nothing is taken: the same comes again, with more. */
    server.take = NOTHING;
    say_text(fd, "de");
    RUN_UNTIL(server.offered == 2);
    say_text(fd, "f");
    RUN_UNTIL(server.offered == 3);
    assert_string_equal(server.got, "abc");
    server.take = ALL;
    say_text(fd, "g");
    hear(fd, NULL, "defg");
    /* A part: what is left isn't offered until something is new, or it is asked for. */
    server.take = LINES;
    unsigned offers = server.offers;
    say_text(fd, "1\n2\n3\n4");
    RUN_UNTIL(server.offers == offers + 1);
    run_ms(20);
    assert_int_equal(server.offers, offers + 1);
    assert_string_equal(server.got, "abcdefg1\n");
    conn_pause(server.c, false);
    assert_int_equal(server.offers, offers + 1); /* not from within the call */
    RUN_UNTIL(server.offers == offers + 2);
    say_text(fd, "5\n");
    RUN_UNTIL(server.offers == offers + 3);
    assert_string_equal(server.got, "abcdefg1\n2\n3\n");
    conn_pause(server.c, false);
    RUN_UNTIL(server.offers == offers + 4);
    hear(fd, NULL, "1\n2\n3\n45\n");
    assert_string_equal(server.got, "abcdefg1\n2\n3\n45\n");
    end(fd, NULL);
    assert_int_equal(server.code, 0);
}

/* Random pieces, halves taken: every byte comes once, in order. */
static void any_pieces(SSL *ssl, int fd)
{
    static char sent[200000];
    size_t before = server.got_len, done = 0;
    srand(4711);
    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = (char)(rand() % 250 + 1);
    uint64_t until = uv_hrtime() + 15000000000ull;
    while (done < sizeof sent && uv_hrtime() < until) {
        size_t n = (size_t)rand() % (LEN_MAX / 4) + 1;
        if (n > sizeof sent - done)
            n = sizeof sent - done;
        server.take = rand() % 3 ? HALF : ALL;
        ssize_t w = ssl ? SSL_write(ssl, sent + done, (int)n) : send(fd, sent + done, n, MSG_NOSIGNAL);
        if (w > 0)
            done += (size_t)w;
        /* Half of each offer stays, so the rest is bounded by what one turn brings. */
        for (unsigned i = 0; i < 20; i++) {
            turn();
            if (server.got_len - before == done)
                break;
            server.take = ALL;
            conn_pause(server.c, false);
        }
    }
    RUN_UNTIL(server.got_len - before == sizeof sent);
    assert_memory_equal(server.got + before, sent, sizeof sent);
}

static void pieces(void **state)
{
    (void)state;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    any_pieces(NULL, fd);
    end(fd, NULL);
}

/* Paused with something left: nothing is offered and nothing read, however much comes; then all. */
static void paused(int fd, SSL *ssl)
{
    static char bytes[100000];
    size_t before = server.got_len;
    memset(bytes, 'x', sizeof bytes);
    server.take = HALF;
    server.pause = true;
    unsigned offers = server.offers;
    if (ssl)
        tls_say(ssl, "12");
    else
        say_text(fd, "12");
    RUN_UNTIL(server.offers == offers + 1);
    if (ssl)
        assert_int_equal(SSL_write(ssl, bytes, sizeof bytes), sizeof bytes);
    else
        say(fd, bytes, sizeof bytes);
    run_ms(30);
    assert_int_equal(server.offers, offers + 1);
    server.pause = false;
    server.take = ALL;
    conn_pause(server.c, false);
    RUN_UNTIL(server.got_len == before + 2 + sizeof bytes);
    assert_memory_equal(server.got + before, "12xx", 4);
}

static void pause_clear(void **state)
{
    (void)state;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    paused(fd, NULL);
    end(fd, NULL);
}

/* More than frame_len_max that nobody wants; but not while paused. */
static void too_much(void **state)
{
    (void)state;
    static char bytes[LEN_MAX];
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    server.take = NOTHING;
    say(fd, bytes, LEN_MAX - 1);
    RUN_UNTIL(server.offered == LEN_MAX - 1);
    run_ms(10);
    assert_int_equal(server.oversized, 0);
    server.pause = true;
    say(fd, bytes, LEN_MAX);
    RUN_UNTIL(server.offered > LEN_MAX - 1);
    run_ms(10);
    assert_int_equal(server.oversized + server.closed, 0);
    server.pause = false;
    conn_pause(server.c, false);
    RUN_UNTIL(server.oversized);
    assert_string_equal(hear(fd, NULL, NULL), "too long"); /* the answer comes, then the end */
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_ETOOBIG);
}

/* Without end, in one go: bounded, whoever sends. */
static void endless(void **state)
{
    (void)state;
    static char bytes[1 << 20];
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    server.take = NOTHING;
    say(fd, bytes, sizeof bytes);
    RUN_UNTIL(server.oversized);
    assert_true(server.offered < LEN_MAX + 65536);
    close(fd);
    RUN_UNTIL(server.closed);
}

static void close_sends(void **state)
{
    (void)state;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    say_text(fd, "close and more that is never looked at");
    assert_string_equal(hear(fd, NULL, NULL), "bye\r\n");
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_EPERM);
}

/* The other end closes its side and still reads: what was queued comes; with on_eof the user decides when it is over. */
static void half_closed(void **state)
{
    for (int i = 0; i < 2; i++) {
        begin(state);
        with_eof = i == 1;
        int fd = dial();
        hear(fd, NULL, "* hello\r\n");
        server.echo = true;
        say_text(fd, "last words");
        shutdown(fd, SHUT_WR);
        if (with_eof) {
            RUN_UNTIL(server.eof);
            run_ms(20);
            assert_int_equal(server.closed, 0);
            assert_int_equal(conn_send(server.c, (const uint8_t *)", heard", 7), 0);
            conn_close(server.c, 0, "done");
        }
        assert_string_equal(hear(fd, NULL, NULL), with_eof ? "last words, heard" : "last words");
        uint64_t now = uv_hrtime();
        RUN_UNTIL(server.closed);
        assert_true(uv_hrtime() - now < CONN_LINGER_MS * 1000000ull / 2); /* both sides are closed: nothing to linger for */
        assert_int_equal(server.code, 0);
        close(fd);
    }
    /* Gone altogether: the next words show it. */
    begin(state);
    with_eof = true;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    close(fd);
    RUN_UNTIL(server.eof);
    for (int i = 0; i < 100 && server.c; i++) {
        (void)conn_send(server.c, (const uint8_t *)"hm", 2);
        run_ms(2);
    }
    RUN_UNTIL(server.closed);
}

static void queue_full(void **state)
{
    (void)state;
    static uint8_t bytes[65536];
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    int rc = 0;
    unsigned n = 0;
    while (n < 1000 && (rc = conn_send(server.c, bytes, sizeof bytes)) == 0) {
        if (++n % 8 == 0)
            run_ms(1);
    }
    assert_int_equal(rc, RAFTDIR_ELIMIT);
    assert_true(conn_queued_len(server.c) <= 1 << 20);
    server.drained = 0;
    size_t got = 0;
    static char sink[1 << 20];
    for (uint64_t until = uv_hrtime() + 15000000000ull; got < n * sizeof bytes && uv_hrtime() < until;) {
        ssize_t r = recv(fd, sink, sizeof sink, 0);
        if (r > 0)
            got += (size_t)r;
        else
            turn();
    }
    assert_int_equal(got, n * sizeof bytes); /* no headers */
    assert_int_equal(server.drained, 1);
    end(fd, NULL);
}

/* --- TLS --- */

static void tls_from_the_start(void **state)
{
    SSL_CTX *with = support_ctx(dir, "ca", "client"), *bare = support_ctx(dir, "ca", "client");
    SSL_CTX *none = SSL_CTX_new(TLS_client_method());
    for (int i = 0; i < 2; i++) {
        begin(state);
        SSL *ssl;
        server_tls = optional_ctx();
        int fd = dial();
        assert_int_equal(tls_begin(fd, i ? none : with, &ssl), 0);
        hear(fd, ssl, "* hello\r\n");
        assert_string_equal(server.cert, i ? "" : "client");
        if (i)
            assert_null(conn_peer_cert(server.c));
        server.echo = true;
        tls_say(ssl, "abc");
        hear(fd, ssl, "abc");
        server.echo = false;
        any_pieces(ssl, fd);
        paused(fd, ssl);
        tls_say(ssl, "close");
        assert_string_equal(hear(fd, ssl, NULL), "bye\r\n");
        end(fd, ssl);
        assert_int_equal(server.code, RAFTDIR_EPERM);
        SSL_CTX_free(server_tls);
    }
    /* Also where a certificate is wanted. */
    begin(state);
    SSL *ssl;
    server_tls = support_ctx(dir, "ca", "server");
    int fd = dial();
    (void)tls_begin(fd, none, &ssl);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.opened, 0);
    assert_int_equal(server.code, RAFTDIR_EAUTH);
    end(fd, ssl);
    SSL_CTX_free(server_tls);
    SSL_CTX_free(with);
    SSL_CTX_free(bare);
    SSL_CTX_free(none);
}

/* A close_notify is an end, too. */
static void tls_half_closed(void **state)
{
    (void)state;
    SSL *ssl;
    SSL_CTX *none = SSL_CTX_new(TLS_client_method());
    server_tls = optional_ctx();
    with_eof = true;
    int fd = dial();
    assert_int_equal(tls_begin(fd, none, &ssl), 0);
    hear(fd, ssl, "* hello\r\n");
    tls_say(ssl, "last words");
    (void)SSL_shutdown(ssl);
    RUN_UNTIL(server.eof);
    assert_string_equal(server.got, "last words");
    assert_int_equal(conn_send(server.c, (const uint8_t *)"heard", 5), 0);
    conn_close(server.c, 0, "done");
    hear(fd, ssl, "heard");
    end(fd, ssl);
    SSL_CTX_free(server_tls);
    SSL_CTX_free(none);
}

/* --- STARTTLS --- */

static void starttls_good(void **state)
{
    SSL_CTX *with = support_ctx(dir, "ca", "client"), *none = SSL_CTX_new(TLS_client_method());
    for (int i = 0; i < 2; i++) {
        begin(state);
        SSL *ssl;
        starttls_tls = optional_ctx();
        server.starttls = true;
        int fd = dial();
        hear(fd, NULL, "* hello\r\n");
        say_text(fd, "STARTTLS\r\n");
        hear(fd, NULL, "begin\r\n");
        run_ms(10);
        char byte;
        assert_int_equal(recv(fd, &byte, 1, MSG_PEEK), -1); /* nothing else in clear */
        assert_int_equal(server.tls, 0);
        assert_int_equal(tls_begin(fd, i ? none : with, &ssl), 0);
        tls_say(ssl, "at once");
        hear(fd, ssl, "secret\r\n");
        RUN_UNTIL(server.got_len == 17);
        assert_int_equal(server.tls, 1);
        assert_int_equal(server.opened, 1);
        assert_string_equal(server.cert, i ? "" : "client");
        server.echo = true;
        tls_say(ssl, "abc");
        hear(fd, ssl, "abc");
        server.echo = false;
        any_pieces(ssl, fd);
        paused(fd, ssl);
        end(fd, ssl);
        assert_int_equal(server.code, 0);
        SSL_CTX_free(starttls_tls);
    }
    SSL_CTX_free(with);
    SSL_CTX_free(none);
}

/* What somebody else put behind the STARTTLS is neither taken in clear nor, later, for the client's. */
static void starttls_injected(void **state)
{
    static const struct {
        const char *first, *second; /* written when the first was read and before it was answered */
    } rows[] = {{"STARTTLS\r\nX\r\n", NULL}, {"STARTTLS\r\n", "X\r\n"}, {"STARTTLS\r\n", "\x16\x03\x01"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        begin(state);
        starttls_tls = optional_ctx();
        server.starttls = true;
        server.take = LINES;
        int fd = dial();
        hear(fd, NULL, "* hello\r\n");
        if (!rows[i].second) {
            say_text(fd, rows[i].first);
        } else {
            /* It stands in the socket's buffer when the answer is about to be written. */
            server.take = NOTHING;
            server.pause = true;
            say_text(fd, rows[i].first);
            RUN_UNTIL(server.offered == 10);
            server.take = LINES;
            server.pause = false;
            server.starttls = false;
            say_text(fd, rows[i].second);
            run_ms(5);
            server.got_len = 0;
            /* conn_starttls "or later": what waits was never taken, so this closes it too. */
            conn_starttls(server.c, starttls_tls);
        }
        const char *heard = hear(fd, NULL, NULL);
        assert_null(strstr(heard, "secret"));
        close(fd);
        RUN_UNTIL(server.closed);
        assert_int_equal(server.tls, 0);
        assert_int_equal(server.code, RAFTDIR_EPROTO);
        assert_non_null(strstr(server.why, "STARTTLS"));
        assert_null(strstr(server.got, "X"));
        SSL_CTX_free(starttls_tls);
    }
    /* Taken, answered in the same turn, and more in the socket meanwhile. */
    begin(state);
    starttls_tls = optional_ctx();
    server.pause = true;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    say_text(fd, "STARTTLS\r\n");
    RUN_UNTIL(server.got_len == 10);
    say_text(fd, "X\r\n");
    usleep(20000);
    assert_int_equal(conn_send(server.c, (const uint8_t *)"begin\r\n", 7), 0);
    conn_starttls(server.c, starttls_tls);
    hear(fd, NULL, NULL);
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_EPROTO);
    SSL_CTX_free(starttls_tls);
}

static void starttls_fails(void **state)
{
    SSL_CTX *foreign = support_ctx(dir, "other", "foreign");
    SSL_CTX_set_verify(foreign, SSL_VERIFY_NONE, NULL);
    enum { GARBAGE, FOREIGN, CLOSED, WAYS };
    for (int way = 0; way < WAYS; way++) {
        begin(state);
        SSL *ssl = NULL;
        starttls_tls = optional_ctx();
        server.starttls = true;
        with_eof = way == CLOSED;
        int fd = dial();
        hear(fd, NULL, "* hello\r\n");
        say_text(fd, "STARTTLS\r\n");
        hear(fd, NULL, "begin\r\n");
        if (way == GARBAGE)
            say_text(fd, "A1 NOOP\r\n");
        else if (way == FOREIGN)
            (void)tls_begin(fd, foreign, &ssl);
        else if (way == CLOSED)
            shutdown(fd, SHUT_WR);
        hear(fd, NULL, NULL);
        close(fd);
        RUN_UNTIL(server.closed);
        assert_int_equal(server.tls + server.eof, 0);
        assert_int_equal(server.got_len, 10);
        assert_int_equal(server.code, way == GARBAGE ? RAFTDIR_EPROTO : way == FOREIGN ? RAFTDIR_EAUTH : RAFTDIR_EUNAVAIL);
        SSL_free(ssl);
        SSL_CTX_free(starttls_tls);
    }
    SSL_CTX_free(foreign);
}

/* Sends to a client that doesn't read until its socket takes no more, then STARTTLS. */
static int stuck_dial(struct end *e)
{
    static uint8_t bytes[1 << 18];
    accepting = e;
    e->starttls = true;
    int fd = dial();
    hear(fd, NULL, "* hello\r\n");
    for (unsigned i = 0; i < 1000 && conn_queued_len(e->c) < 2 * sizeof bytes; i++) {
        assert_int_equal(conn_send(e->c, bytes, sizeof bytes), 0);
        run_ms(1);
    }
    assert_true(conn_queued_len(e->c) > 0);
    say_text(fd, "STARTTLS\r\n");
    RUN_UNTIL(e->got_len == 10);
    return fd;
}

/* A client that never begins with the handshake, and one that doesn't even read the answer. */
static void starttls_too_slow(void **state)
{
    (void)state;
    starttls_tls = optional_ctx();
    int stuck = stuck_dial(&second);
    accepting = &server;
    server.starttls = true;
    int silent = dial();
    hear(silent, NULL, "* hello\r\n");
    say_text(silent, "STARTTLS\r\n");
    RUN_UNTIL(server.closed && second.closed);
    assert_int_equal(server.code, RAFTDIR_ETIMEDOUT);
    assert_int_equal(second.code, RAFTDIR_ETIMEDOUT);
    assert_int_equal(server.tls + second.tls, 0);
    close(silent);
    close(stuck);
    SSL_CTX_free(starttls_tls);
}

/* Closed while the answer is on its way: what was queued before comes in clear, what waits for TLS never does. */
static void starttls_closed(void **state)
{
    (void)state;
    static char sink[1 << 16];
    starttls_tls = optional_ctx();
    int fd = stuck_dial(&server);
    conn_close(server.c, RAFTDIR_ECANCELED, "stopping");
    size_t got = 0;
    ssize_t n = 1;
    for (uint64_t until = uv_hrtime() + 15000000000ull; uv_hrtime() < until && (n > 0 || (n < 0 && errno == EAGAIN)); turn()) {
        n = recv(fd, sink, sizeof sink, 0);
        assert_true(n <= 0 || !memchr(sink, 'c', (size_t)n)); /* of "secret" */
        got += n > 0 ? (size_t)n : 0;
    }
    assert_int_equal(n, 0);
    assert_int_equal(got % (1 << 18), 7); /* and "begin" */
    close(fd);
    RUN_UNTIL(server.closed);
    assert_int_equal(server.code, RAFTDIR_ECANCELED);
    SSL_CTX_free(starttls_tls);
}

/* --- Memory --- */

#if defined __SANITIZE_ADDRESS__
size_t __sanitizer_get_current_allocated_bytes(void);
#define allocated_len() __sanitizer_get_current_allocated_bytes()
#else
#define allocated_len() ((size_t)mallinfo2().uordblks)
#endif

/* What an idle connection keeps after it was busy. */
static void idle_memory(void **state)
{
    SSL_CTX *none = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(none, SSL_MODE_RELEASE_BUFFERS); /* the other end is in the same process */
    for (int tls = 0; tls < 2; tls++) {
        begin(state);
        SSL *ssl = NULL;
        server_tls = tls ? optional_ctx() : NULL;
        server.take = ALL;
        int fd = dial();
        if (tls)
            assert_int_equal(tls_begin(fd, none, &ssl), 0);
        hear(fd, ssl, "* hello\r\n");
        size_t before = allocated_len();
        static uint8_t bytes[60000];
        memset(bytes, 'x', sizeof bytes);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(conn_send(server.c, bytes, sizeof bytes - 1), 0);
            assert_int_equal(conn_send(server.c, (const uint8_t *)"\n", 1), 0);
            hear(fd, ssl, "\n");
            if (ssl)
                assert_int_equal(SSL_write(ssl, bytes, 16000), 16000);
            else
                say(fd, bytes, 16000);
            RUN_UNTIL(server.got_len == 16000u * (unsigned)(i + 1));
        }
        run_ms(10);
        size_t after = allocated_len();
        long kept = (long)after - (long)before;
        print_message("an idle connection keeps %ld bytes more than before it was busy (tls: %d)\n", kept, tls);
        if (kept > (ssl ? 6000 : 1000))
            fail_msg("an idle connection kept %ld bytes (tls: %d)", kept, tls);
        end(fd, ssl);
        SSL_CTX_free(server_tls);
    }
    SSL_CTX_free(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_or_part, begin),        cmocka_unit_test_setup(pieces, begin),          cmocka_unit_test_setup(pause_clear, begin),
        cmocka_unit_test_setup(too_much, begin),           cmocka_unit_test_setup(endless, begin),         cmocka_unit_test_setup(close_sends, begin),
        cmocka_unit_test_setup(half_closed, begin),        cmocka_unit_test_setup(queue_full, begin),      cmocka_unit_test_setup(tls_from_the_start, begin),
        cmocka_unit_test_setup(tls_half_closed, begin),    cmocka_unit_test_setup(starttls_good, begin),   cmocka_unit_test_setup(starttls_injected, begin),
        cmocka_unit_test_setup(starttls_fails, begin),     cmocka_unit_test_setup(starttls_too_slow, begin), cmocka_unit_test_setup(starttls_closed, begin),
        cmocka_unit_test_setup(idle_memory, begin),
    };
    return cmocka_run_group_tests_name("conn_raw", tests, group_setup, group_teardown);
}
