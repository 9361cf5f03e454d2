/* test_tls_stream.c - frames over blocking TLS: every size, a peer that stalls, lies, breaks off or never answers, and an end called from another thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "raftdir/limits.h"
#include "raftdir/tls_stream.h"
#include "support_certs.h"

#define LEN_MAX (1u << 20)

static char dir[256], port[8];
static struct support_ca ca, other_ca;
static SSL_CTX *server_tls, *client_tls, *foreign_tls;
static int listener;

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* One connection, accepted on a thread of its own. */
enum manner { ECHO, SILENT, MUTE_TLS, OVERSIZED, HALF, ABRUPT, POLITE, DEAF };
struct server {
    pthread_t thread;
    enum manner manner;
    struct tls_cancel end; /* of what waits */
};

static void *server_main(void *data)
{
    struct server *s = data;
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) /* cmocka's assertions are for the main thread */
        abort();
    if (s->manner == MUTE_TLS) {
        tls_cancel_sleep(&s->end, 20000);
        close(fd);
        return NULL;
    }
    SSL *ssl = SSL_new(server_tls);
    SSL_set_fd(ssl, fd);
    if (SSL_accept(ssl) != 1) {
        SSL_free(ssl);
        close(fd);
        return NULL;
    }
    struct tls_stream *stream;
    struct tls_stream_options o = {.io_timeout_ms = 10000, .cancel = &s->end};
    if (tls_stream_adopt(fd, ssl, &o, &stream, NULL))
        abort();
    const uint8_t *frame;
    size_t len;
    switch (s->manner) {
    case ECHO:
        while (tls_stream_receive(stream, LEN_MAX, &frame, &len, NULL) == 0 && tls_stream_send(stream, frame, len, NULL) == 0)
            ;
        break;
    case OVERSIZED:
        tls_stream_send_header(stream, LEN_MAX + 1, NULL);
        tls_stream_send_bytes(stream, (const uint8_t *)"x", 1, NULL);
        tls_stream_receive(stream, 0, &frame, &len, NULL);
        break;
    case HALF:
        tls_stream_send_header(stream, 100, NULL);
        tls_stream_send_bytes(stream, (const uint8_t *)"half", 4, NULL);
        break;
    case ABRUPT:
        shutdown(fd, SHUT_RDWR);
        break;
    case SILENT:
    case DEAF:
        tls_cancel_sleep(&s->end, 20000);
        break;
    default:
        break;
    }
    tls_stream_close(&stream);
    return NULL;
}

static void server_start(struct server *s, enum manner manner)
{
    s->manner = manner;
    assert_int_equal(tls_cancel_init(&s->end, NULL), 0);
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

static void server_end(struct server *s)
{
    tls_cancel_now(&s->end);
    pthread_join(s->thread, NULL);
    tls_cancel_close(&s->end);
}

static int dial(SSL_CTX *tls, unsigned timeout_ms, const struct tls_cancel *cancel, struct tls_stream **stream_r, struct err *err)
{
    struct tls_stream_options o = {.connect_timeout_ms = timeout_ms, .io_timeout_ms = timeout_ms, .cancel = cancel};
    *err = (struct err){0};
    return tls_stream_connect("127.0.0.1", port, tls, &o, stream_r, err);
}

/* tls_stream/sizes: around the edges of a record, whole and in pieces. */
static void sizes(void **state)
{
    (void)state;
    static const size_t lens[] = {0, 1, 3, 16379, 16380, 16381, 16383, 16384, 16385, 65536, 262144, LEN_MAX};
    struct server s;
    struct tls_stream *c;
    struct err err;
    const uint8_t *frame;
    size_t len;
    server_start(&s, ECHO);
    assert_int_equal(dial(client_tls, 10000, NULL, &c, &err), 0);
    assert_string_equal(tls_stream_peer(c), "server");
    uint8_t *data = malloc(LEN_MAX);
    assert_non_null(data);
    for (size_t i = 0; i < LEN_MAX; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8));
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        assert_int_equal(tls_stream_send(c, data, lens[i], &err), 0);
        assert_int_equal(tls_stream_receive(c, LEN_MAX, &frame, &len, &err), 0);
        assert_int_equal(len, lens[i]);
        assert_memory_equal(frame, data, len);
    }
    assert_int_equal(tls_stream_send_header(c, 20000, &err), 0);
    for (size_t at = 0, piece = 1; at < 20000; at += piece, piece = piece * 3 < 20000 - at - piece ? piece * 3 : 20000 - at - piece)
        assert_int_equal(tls_stream_send_bytes(c, data + at, piece, &err), 0);
    assert_int_equal(tls_stream_receive(c, LEN_MAX, &frame, &len, &err), 0);
    assert_int_equal(len, 20000);
    assert_memory_equal(frame, data, len);
    free(data);
    tls_stream_close(&c);
    assert_null(c);
    server_end(&s);
}

/* tls_stream/peers: each way in which the other end can fail us, and what it is called. */
static void peers(void **state)
{
    (void)state;
    static const struct {
        enum manner manner;
        int code;
        const char *text;
    } rows[] = {
        {SILENT, RAFTDIR_ETIMEDOUT, "nothing moved"}, {OVERSIZED, RAFTDIR_ETOOBIG, "limit"},   {HALF, RAFTDIR_EUNAVAIL, "middle of a frame"},
        {ABRUPT, RAFTDIR_EUNAVAIL, "broke"},          {POLITE, RAFTDIR_ENOTFOUND, "closed"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct server s;
        struct tls_stream *c;
        struct err err;
        const uint8_t *frame;
        size_t len;
        server_start(&s, rows[i].manner);
        assert_int_equal(dial(client_tls, 500, NULL, &c, &err), 0);
        uint64_t began = now_ms();
        assert_int_equal(tls_stream_receive(c, LEN_MAX, &frame, &len, &err), rows[i].code);
        assert_non_null(strstr(err.text, rows[i].text));
        assert_true(now_ms() - began < 5000);
        tls_stream_close(&c);
        server_end(&s);
    }
}

/* tls_stream/deaf: one that takes nothing more. */
static void deaf(void **state)
{
    (void)state;
    struct server s;
    struct tls_stream *c;
    struct err err;
    server_start(&s, DEAF);
    assert_int_equal(dial(client_tls, 500, NULL, &c, &err), 0);
    uint8_t *data = calloc(1, LEN_MAX);
    assert_non_null(data);
    int rc = 0;
    for (int i = 0; i < 64 && !rc; i++)
        rc = tls_stream_send(c, data, LEN_MAX, &err);
    assert_int_equal(rc, RAFTDIR_ETIMEDOUT);
    free(data);
    tls_stream_close(&c);
    server_end(&s);
}

/* tls_stream/connecting: nobody there, nobody who speaks TLS, nobody we know, no such name. */
static void connecting(void **state)
{
    (void)state;
    struct server s;
    struct tls_stream *c;
    struct err err;
    struct tls_stream_options o = {.connect_timeout_ms = 300, .io_timeout_ms = 300};
    assert_int_equal(tls_stream_connect("127.0.0.1", "1", client_tls, &o, &c, &err), RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(err.text, "127.0.0.1:1"));
    server_start(&s, MUTE_TLS);
    assert_int_equal(dial(client_tls, 300, NULL, &c, &err), RAFTDIR_ETIMEDOUT);
    server_end(&s);
    server_start(&s, ECHO);
    assert_int_equal(dial(foreign_tls, 3000, NULL, &c, &err), RAFTDIR_EAUTH);
    server_end(&s);
    o.connect_timeout_ms = 20000;
    int rc = tls_stream_connect("no-such-host.invalid", "1", client_tls, &o, &c, &err);
    assert_true(rc == RAFTDIR_EUNAVAIL || rc == RAFTDIR_ETIMEDOUT);
    assert_non_null(strstr(err.text, "no-such-host.invalid"));
}

struct canceller {
    struct tls_cancel cancel;
    pthread_t thread;
    uint64_t at_ms;
};
static void *canceller_main(void *data)
{
    struct canceller *c = data;
    usleep(100000);
    c->at_ms = now_ms();
    tls_cancel_now(&c->cancel);
    return NULL;
}
static void canceller_start(struct canceller *c)
{
    assert_int_equal(tls_cancel_init(&c->cancel, NULL), 0);
    assert_false(tls_cancelled(&c->cancel));
    assert_int_equal(pthread_create(&c->thread, NULL, canceller_main, c), 0);
}
static void canceller_end(struct canceller *c)
{
    pthread_join(c->thread, NULL);
    assert_true(now_ms() - c->at_ms < 1000);
    tls_cancel_close(&c->cancel);
}

/* tls_stream/cancel: in each place where a call waits. */
static void cancel(void **state)
{
    (void)state;
    struct server s;
    struct tls_stream *c;
    struct err err;
    const uint8_t *frame;
    size_t len;
    struct canceller end;

    canceller_start(&end);
    assert_true(tls_cancel_sleep(&end.cancel, 20000));
    assert_true(tls_cancelled(&end.cancel));
    tls_cancel_clear(&end.cancel);
    assert_false(tls_cancelled(&end.cancel));
    assert_false(tls_cancel_sleep(&end.cancel, 1));
    canceller_end(&end);

    server_start(&s, MUTE_TLS);
    canceller_start(&end);
    assert_int_equal(dial(client_tls, 20000, &end.cancel, &c, &err), RAFTDIR_ECANCELED);
    canceller_end(&end);
    server_end(&s);

    server_start(&s, SILENT);
    canceller_start(&end);
    assert_int_equal(dial(client_tls, 20000, &end.cancel, &c, &err), 0);
    assert_int_equal(tls_stream_receive(c, LEN_MAX, &frame, &len, &err), RAFTDIR_ECANCELED);
    canceller_end(&end);
    tls_stream_close(&c);
    server_end(&s);

    server_start(&s, DEAF);
    canceller_start(&end);
    assert_int_equal(dial(client_tls, 20000, &end.cancel, &c, &err), 0);
    uint8_t *data = calloc(1, LEN_MAX);
    assert_non_null(data);
    int rc = 0;
    for (int i = 0; i < 64 && !rc; i++)
        rc = tls_stream_send(c, data, LEN_MAX, &err);
    assert_int_equal(rc, RAFTDIR_ECANCELED);
    free(data);
    canceller_end(&end);
    tls_stream_close(&c);
    server_end(&s);

    /* While a name is looked up, or soon after: the thread that does it is left behind. */
    struct tls_stream_options o = {.connect_timeout_ms = 20000, .io_timeout_ms = 20000, .cancel = &end.cancel};
    assert_int_equal(tls_cancel_init(&end.cancel, NULL), 0);
    tls_cancel_now(&end.cancel);
    assert_int_equal(tls_stream_connect("no-such-host.invalid", "1", client_tls, &o, &c, &err), RAFTDIR_ECANCELED);
    assert_int_equal(tls_stream_connect("localhost", port, client_tls, &o, &c, &err), RAFTDIR_ECANCELED);
    tls_cancel_close(&end.cancel);
    usleep(300000);
}

static int group_setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    char file[512];
    support_dir_make(dir, sizeof dir, "stream");
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    snprintf(file, sizeof file, "%s/other.crt", dir);
    support_ca_make(&other_ca, "CA of others", file);
    support_cert_make(&ca, dir, "server", &(struct support_cert){.cn = "server"});
    support_cert_make(&ca, dir, "client", &(struct support_cert){.cn = "client"});
    support_cert_make(&other_ca, dir, "foreign", &(struct support_cert){.cn = "client"});
    server_tls = support_ctx(dir, "ca", "server");
    client_tls = support_ctx(dir, "ca", "client");
    foreign_tls = support_ctx(dir, "other", "foreign");
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(listener, 8), 0);
    getsockname(listener, (struct sockaddr *)&a, &len);
    snprintf(port, sizeof port, "%u", ntohs(a.sin_port));
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    close(listener);
    SSL_CTX_free(server_tls);
    SSL_CTX_free(client_tls);
    SSL_CTX_free(foreign_tls);
    support_ca_free(&ca);
    support_ca_free(&other_ca);
    support_dir_remove(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes), cmocka_unit_test(peers), cmocka_unit_test(deaf), cmocka_unit_test(connecting), cmocka_unit_test(cancel),
    };
    return cmocka_run_group_tests_name("tls_stream", tests, group_setup, group_teardown);
}
