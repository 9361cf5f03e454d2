/* test_peers.c - members on loopback, several on one loop: who is let in, what is said about those who aren't, reconnecting, a member that doesn't read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/conn.h"
#include "raftdir/limits.h"
#include "raftdir/peers_internal.h"
#include "raftdir/tls_stream.h"
#include "support_certs.h"

struct node {
    uint64_t id;
    struct peers *p;
    unsigned frames, stopped;
    size_t bytes;
    uint64_t from;
    char last[32];
    char log[4096];
    char endpoint[64];
    unsigned port;
};
static uv_loop_t loop;
static char dir[256];
static struct support_ca ca, other_ca;
static struct node a, b, c;
static SSL_CTX *tls_a, *tls_b, *tls_c, *tls_foreign;

static void on_frame(void *data, uint64_t from, const uint8_t *frame, size_t len)
{
    struct node *n = data;
    Raftdir__Peer__Frame *f = raftdir__peer__frame__unpack(NULL, len, frame);
    assert_non_null(f);
    assert_int_equal(f->from, from);
    assert_int_equal(f->to, n->id);
    raftdir__peer__frame__free_unpacked(f, NULL);
    n->frames++;
    n->bytes += len;
    n->from = from;
}

static void on_endpoint(void *data, uint64_t id, const char *endpoint, const char *site)
{
    (void)id;
    struct node *n = data;
    snprintf(n->endpoint, sizeof n->endpoint, "%s %s", endpoint, site);
}

static void on_log(void *data, int level, const char *text)
{
    (void)level;
    struct node *n = data;
    size_t len = strlen(n->log);
    snprintf(n->log + len, sizeof n->log - len, "%s\n", text);
}

static void on_stopped(void *data)
{
    ((struct node *)data)->stopped = 1;
}

/* Every 5 ms, so that no round of the loop blocks for long. */
static void timer_cb(uv_timer_t *t)
{
    (void)t;
}

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
            fail_msg("line %d: waited too long for " #condition "\na: %sb: %sc: %s", __LINE__, a.log, b.log, c.log);                     \
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

struct who {
    uint64_t id, cluster, incarnation;
    char uuid; /* all 16 bytes */
    SSL_CTX *tls;
    const char *port;
    bool images;
};

static void on_image(void *data, uint64_t from, int fd, SSL *ssl, const Raftdir__Image__Request *request);

static void start(struct node *n, struct who w)
{
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "node%llu.example.org:7001", (unsigned long long)w.id);
    n->id = w.id;
    struct peers_options o = {.loop = &loop,
                              .tls = w.tls,
                              .listen_host = "127.0.0.1",
                              .listen_port = w.port ? w.port : "0",
                              .self_id = w.id,
                              .cluster_id = w.cluster ? w.cluster : 7,
                              .incarnation = w.incarnation ? w.incarnation : 1,
                              .client_endpoint = endpoint,
                              .site = w.id == 2 ? "berlin" : NULL,
                              .data = n,
                              .on_frame = on_frame,
                              .on_endpoint = on_endpoint,
                              .on_image = w.images ? on_image : NULL,
                              .log = on_log};
    memset(o.uuid, w.uuid ? w.uuid : (char)('a' + w.id - 1), NODE_UUID_LEN);
    struct err err = {0};
    if (peers_start(&o, &n->p, &err))
        fail_msg("start: %s", err.text);
    n->port = peers_port(n->p);
    assert_true(n->port > 0);
}

static struct node_peer member(const struct node *n, const char *cert)
{
    struct node_peer m = {.id = n->id};
    snprintf(m.host_port, sizeof m.host_port, "127.0.0.1:%u", n->port);
    snprintf(m.cert_name, sizeof m.cert_name, "%s", cert);
    memset(m.uuid, (char)('a' + n->id - 1), NODE_UUID_LEN);
    return m;
}

static void stop(struct node *n)
{
    if (!n->p)
        return;
    n->stopped = 0;
    peers_stop(&n->p, on_stopped, n);
    assert_null(n->p);
    assert_int_equal(n->stopped, 0);
    RUN_UNTIL(n->stopped);
}

static size_t frame_make(uint8_t *buf, uint64_t from, uint64_t to, size_t payload)
{
    static uint8_t data[ENTRY_LEN_MAX];
    Raftdir__Peer__Frame f = RAFTDIR__PEER__FRAME__INIT;
    f.version = PEER_FRAME_VERSION;
    f.cluster_id = 7;
    f.incarnation = 1;
    f.from = from;
    f.to = to;
    Raftdir__Peer__Probe probe = RAFTDIR__PEER__PROBE__INIT;
    Raftdir__Peer__AppendEntries append = RAFTDIR__PEER__APPEND_ENTRIES__INIT;
    Raftdir__Peer__LogEntry entry = RAFTDIR__PEER__LOG_ENTRY__INIT, *list = &entry;
    if (payload) {
        entry.data.data = data;
        entry.data.len = payload;
        append.entries = &list;
        append.n_entries = 1;
        f.body_case = RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES;
        f.append_entries = &append;
    } else {
        f.body_case = RAFTDIR__PEER__FRAME__BODY_PROBE;
        f.probe = &probe;
    }
    return raftdir__peer__frame__pack(&f, buf);
}

static uint8_t frame_buf[PEER_FRAME_LEN_MAX];

static void send_frame(struct node *from, struct node *to, size_t payload)
{
    peers_send(from->p, to->id, frame_buf, frame_make(frame_buf, from->id, to->id, payload));
}

static int setup(void **state)
{
    (void)state;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    memset(&c, 0, sizeof c);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    stop(&a);
    stop(&b);
    stop(&c);
    return 0;
}

static int group_setup(void **state)
{
    (void)state;
    char file[512];
    support_dir_make(dir, sizeof dir, "peers");
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    snprintf(file, sizeof file, "%s/other.crt", dir);
    support_ca_make(&other_ca, "CA of others", file);
    support_cert_make(&ca, dir, "a", &(struct support_cert){.cn = "node-a"});
    support_cert_make(&ca, dir, "b", &(struct support_cert){.cn = "node-b"});
    support_cert_make(&ca, dir, "c", &(struct support_cert){.dns = "node-c"});
    support_cert_make(&other_ca, dir, "foreign", &(struct support_cert){.cn = "node-b"});
    tls_a = support_ctx(dir, "ca", "a");
    tls_b = support_ctx(dir, "ca", "b");
    tls_c = support_ctx(dir, "ca", "c");
    tls_foreign = support_ctx(dir, "other", "foreign");
    return uv_loop_init(&loop);
}

static int group_teardown(void **state)
{
    (void)state;
    while (uv_run(&loop, UV_RUN_DEFAULT))
        ;
    assert_int_equal(uv_loop_close(&loop), 0);
    SSL_CTX_free(tls_a);
    SSL_CTX_free(tls_b);
    SSL_CTX_free(tls_c);
    SSL_CTX_free(tls_foreign);
    support_ca_free(&ca);
    support_ca_free(&other_ca);
    support_dir_remove(dir);
    return 0;
}

static void members_set(struct node *at, struct node *x, const char *cert_x, struct node *y, const char *cert_y)
{
    struct node_peer list[] = {member(x, cert_x), member(y, cert_y)};
    peers_members(at->p, list, 2);
}

static void mesh_two(void)
{
    start(&a, (struct who){.id = 1, .tls = tls_a});
    start(&b, (struct who){.id = 2, .tls = tls_b});
    members_set(&a, &a, "node-a", &b, "node-b");
    members_set(&b, &a, "node-a", &b, "node-b");
    RUN_UNTIL(strstr(a.log, "connected to") && strstr(b.log, "connected to"));
}

/* peers/three: frames of every size go both ways, endpoints are known. */
static void three(void **state)
{
    (void)state;
    mesh_two();
    start(&c, (struct who){.id = 3, .tls = tls_c});
    struct node *all[] = {&a, &b, &c};
    struct node_peer list[] = {member(&a, "node-a"), member(&b, "node-b"), member(&c, "node-c")};
    for (int i = 0; i < 3; i++)
        peers_members(all[i]->p, list, 3);
    RUN_UNTIL(peers_client_endpoint(a.p, 3) && peers_client_endpoint(c.p, 1) && peers_client_endpoint(c.p, 2) && peers_client_endpoint(b.p, 3));
    assert_string_equal(peers_client_endpoint(c.p, 2), "node2.example.org:7001");
    for (int i = 0; i < 3; i++) {
        const char *end = strrchr(all[i]->endpoint, ' '); /* of the member that said Hello last */
        assert_string_equal(end, strstr(all[i]->endpoint, "node2.") ? " berlin" : " ");
    }
    assert_true(peers_connected(a.p, 2) && peers_connected(a.p, 3) && !peers_connected(a.p, 1) && !peers_connected(a.p, 9));
    RUN_UNTIL(strstr(c.log, "to member 1") && strstr(c.log, "to member 2"));
    run_ms(100);
    send_frame(&c, &a, 0);
    RUN_UNTIL(a.frames == 1);
    assert_int_equal(a.from, 3);
    for (int i = 0; i < 10; i++)
        send_frame(&a, &b, ENTRY_LEN_MAX - 100);
    send_frame(&a, &b, 0);
    RUN_UNTIL(b.frames == 11);
    /* Removed: nothing passes any more. */
    peers_members(a.p, list, 2);
    send_frame(&c, &a, 0);
    run_ms(100);
    assert_int_equal(a.frames, 1);
    assert_false(peers_connected(a.p, 3));
    RUN_UNTIL(strstr(a.log, "doesn't know"));
}

/* peers/refused: each kind of stranger, and the words for it. */
static void refused(void **state)
{
    static const struct {
        const char *name;
        struct who who;
        const char *cert;      /* that the list of `a` wants for member 2 */
        const char *a_says, *b_says;
    } rows[] = {
        {"certificate", {.id = 2}, "node-x", "\"node-x\"", "took no Hello"},
        {"uuid", {.id = 2, .uuid = 'z'}, "node-b", "another data directory", "took no Hello"},
        {"cluster", {.id = 2, .cluster = 8}, "node-b", "belongs to cluster 0000000000000008", NULL},
        {"incarnation", {.id = 2, .incarnation = 2}, "node-b", "incarnation 2", NULL},
        {"id", {.id = 5}, "node-b", "doesn't know", NULL},
        {"foreign ca", {.id = 2, .tls = (SSL_CTX *)1}, "node-b", "was not accepted", "was not accepted"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        setup(state);
        struct who w = rows[i].who;
        w.tls = w.tls ? tls_foreign : tls_b;
        start(&a, (struct who){.id = 1, .tls = tls_a});
        start(&b, w);
        struct node as2 = b;
        as2.id = 2;
        members_set(&a, &a, "node-a", &as2, rows[i].cert);
        members_set(&b, &a, "node-a", &b, "node-b");
        RUN_UNTIL(strstr(a.log, rows[i].a_says) && (!rows[i].b_says || strstr(b.log, rows[i].b_says)));
        run_ms(300);
        assert_false(peers_connected(a.p, 2));
        send_frame(&b, &a, 0);
        send_frame(&a, &as2, 0);
        run_ms(50);
        assert_int_equal(a.frames + b.frames, 0);
        /* Once a minute, however often it tries. */
        const char *once = strstr(a.log, rows[i].a_says);
        const char *line_end = strchr(once, '\n');
        if (strcmp(rows[i].name, "foreign ca") != 0) /* said for both directions */
            assert_null(strstr(line_end, rows[i].a_says));
        teardown(state);
    }
}

/* A client that is a member by its certificate, but speaks as it likes. */
struct rogue {
    struct conn *c;
    int opened, closed, frames;
};
static void rogue_open(struct conn *x)
{
    ((struct rogue *)conn_data(x))->opened = 1;
}
static void rogue_frame(struct conn *x, const uint8_t *frame, size_t len)
{
    (void)frame;
    (void)len;
    ((struct rogue *)conn_data(x))->frames++;
}
static void rogue_close(struct conn *x, int code, const char *why)
{
    (void)code;
    (void)why;
    ((struct rogue *)conn_data(x))->closed = 1;
}
static const struct conn_events rogue_events = {.on_open = rogue_open, .on_frame = rogue_frame, .on_close = rogue_close};

static void rogue_dial(struct rogue *r)
{
    memset(r, 0, sizeof *r);
    char port[8];
    snprintf(port, sizeof port, "%u", a.port);
    struct conn_options o = {.tls = tls_b, .frame_len_max = 1 << 20, .out_len_max = 16 << 20, .data = r};
    assert_int_equal(conn_connect(&loop, "127.0.0.1", port, &o, &rogue_events, &r->c, NULL), 0);
    RUN_UNTIL(r->opened);
}

static void rogue_hello(struct rogue *r)
{
    struct peers as_b = {.o = {.self_id = 2, .cluster_id = 7, .incarnation = 1}};
    memset(as_b.o.uuid, 'b', NODE_UUID_LEN);
    assert_int_equal(peers_hello_send(&as_b, r->c, 1, false), 0);
    RUN_UNTIL(r->frames == 1);
}

/* peers/garbage: instead of Hello, after it, oversized, with another sender; and silence. */
static void rogues(void **state)
{
    (void)state;
    start(&a, (struct who){.id = 1, .tls = tls_a});
    b.id = 2;
    b.port = 1; /* nobody listens */
    members_set(&a, &a, "node-a", &b, "node-b");
    struct rogue r;
    rogue_dial(&r);
    conn_send(r.c, (const uint8_t *)"hello?", 6);
    RUN_UNTIL(r.closed);
    assert_non_null(strstr(a.log, "doesn't begin with a Hello"));

    rogue_dial(&r);
    peers_send(a.p, 2, frame_buf, 10); /* no connection to it: dropped */
    assert_true(peers_dropped(a.p, 2) > 0);
    size_t len = frame_make(frame_buf, 2, 1, 0);
    conn_send(r.c, frame_buf, len); /* a good frame, too early */
    RUN_UNTIL(r.closed);
    assert_int_equal(a.frames, 0);

    rogue_dial(&r);
    rogue_hello(&r);
    conn_send(r.c, frame_buf, len);
    RUN_UNTIL(a.frames == 1);
    conn_send(r.c, frame_buf, frame_make(frame_buf, 3, 1, 0)); /* in another's name */
    RUN_UNTIL(r.closed);
    assert_int_equal(a.frames, 1);
    assert_non_null(strstr(a.log, "from 3 to 1"));

    rogue_dial(&r);
    rogue_hello(&r);
    conn_send(r.c, (const uint8_t *)"\xff\xff\xff", 3);
    RUN_UNTIL(r.closed);
    assert_non_null(strstr(a.log, "malformed"));

    rogue_dial(&r);
    rogue_hello(&r);
    uint8_t *big = calloc(1, PEER_FRAME_LEN_MAX + 1);
    conn_send(r.c, big, PEER_FRAME_LEN_MAX + 1);
    free(big);
    RUN_UNTIL(r.closed && !peers_connected(a.p, 2));

    rogue_dial(&r); /* says nothing */
    struct rogue second;
    rogue_dial(&second);
    rogue_hello(&second);
    struct rogue third;
    rogue_dial(&third);
    rogue_hello(&third); /* replaces the second */
    RUN_UNTIL(second.closed);
    assert_int_equal(third.closed, 0);
    conn_close(third.c, 0, "done");
    RUN_UNTIL(third.closed && r.closed);
    assert_non_null(strstr(a.log, "said no Hello"));
    assert_int_equal(a.frames, 1);
}

/* peers/image: a connection that asks for an image leaves the loop, after the same checks as any other; the member's own connection stays. */
static struct {
    unsigned n;
    uint64_t from, index_min, offset;
    int fd;
    SSL *ssl;
} image;

static void on_image(void *data, uint64_t from, int fd, SSL *ssl, const Raftdir__Image__Request *request)
{
    assert_ptr_equal(data, &a);
    image.n++;
    image.from = from;
    image.index_min = request->index_min;
    image.offset = request->resume ? request->resume->offset : 0;
    image.fd = fd;
    image.ssl = ssl;
}

static void image_hello(struct rogue *r, uint64_t from, char uuid)
{
    struct peers_options as = {.self_id = from, .cluster_id = 7, .incarnation = 1};
    memset(as.uuid, uuid, NODE_UUID_LEN);
    Raftdir__Image__Position at = RAFTDIR__IMAGE__POSITION__INIT;
    Raftdir__Image__Request request = RAFTDIR__IMAGE__REQUEST__INIT;
    uint8_t buf[PEER_HELLO_LEN_MAX], key[NAME_KEY_LEN_MAX + 8] = {1}, value[NAME_KEY_LEN_MAX + 8] = {1};
    at.key.data = key;
    at.key.len = sizeof key;
    at.value.data = value;
    at.value.len = sizeof value;
    at.offset = 99;
    request.index_min = 77;
    request.resume = &at;
    size_t len = peers_hello_pack(&as, NULL, NULL, 1, false, &request, buf);
    assert_true(len > 0);
    assert_int_equal(conn_send(r->c, buf, len), 0);
}

static void images(void **state)
{
    (void)state;
    struct rogue r, normal;
    memset(&image, 0, sizeof image);
    start(&a, (struct who){.id = 1, .tls = tls_a, .images = true});
    b.id = 2;
    b.port = 1;
    members_set(&a, &a, "node-a", &b, "node-b");
    rogue_dial(&normal);
    rogue_hello(&normal);
    assert_true(peers_connected(a.p, 2));

    /* Who isn't the member gets nothing. */
    rogue_dial(&r);
    image_hello(&r, 2, 'z');
    RUN_UNTIL(r.closed);
    rogue_dial(&r);
    image_hello(&r, 5, 'b');
    RUN_UNTIL(r.closed);
    assert_int_equal(image.n, 0);
    assert_int_equal(r.frames, 0);
    assert_non_null(strstr(a.log, "another data directory"));

    rogue_dial(&r);
    image_hello(&r, 2, 'b');
    RUN_UNTIL(image.n == 1 && r.frames == 1); /* our Hello came first */
    assert_int_equal(image.from, 2);
    assert_int_equal(image.index_min, 77);
    assert_int_equal(image.offset, 99);
    struct tls_stream *stream;
    struct tls_stream_options so = {.io_timeout_ms = 1000};
    assert_int_equal(tls_stream_adopt(image.fd, image.ssl, &so, &stream, NULL), 0);
    assert_int_equal(tls_stream_send(stream, (const uint8_t *)"rows", 4, NULL), 0);
    RUN_UNTIL(r.frames == 2);
    /* Neither the endpoint nor the connection of the member itself has changed. */
    size_t len = frame_make(frame_buf, 2, 1, 0);
    conn_send(normal.c, frame_buf, len);
    RUN_UNTIL(a.frames == 1);
    assert_int_equal(normal.closed, 0);
    tls_stream_close(&stream);
    RUN_UNTIL(r.closed);

    /* It doesn't wait for our Hello. */
    rogue_dial(&r);
    image_hello(&r, 2, 'b');
    conn_send(r.c, frame_buf, len);
    run_ms(100);
    assert_int_equal(image.n, 1);
    assert_int_equal(r.closed, 0); /* until its time is up; a stop doesn't wait for that */
    stop(&a);
    RUN_UNTIL(r.closed && normal.closed);

    /* Where nobody sends images. */
    start(&a, (struct who){.id = 1, .tls = tls_a});
    members_set(&a, &a, "node-a", &b, "node-b");
    rogue_dial(&r);
    image_hello(&r, 2, 'b');
    RUN_UNTIL(r.closed);
    assert_int_equal(image.n, 1);
    assert_non_null(strstr(a.log, "doesn't send"));
}

/* peers/reconnect: the other process goes and comes back on the same port. */
static void reconnect(void **state)
{
    (void)state;
    mesh_two();
    char port[8];
    snprintf(port, sizeof port, "%u", b.port);
    for (int i = 0; i < 3; i++) {
        stop(&b);
        RUN_UNTIL(!peers_connected(a.p, 2));
        run_ms(200);
        b.log[0] = 0;
        start(&b, (struct who){.id = 2, .tls = tls_b, .port = port});
        members_set(&b, &a, "node-a", &b, "node-b");
        uint64_t began = uv_hrtime();
        unsigned before = b.frames;
        while (b.frames == before && uv_hrtime() - began < 5000000000ull) {
            send_frame(&a, &b, 0);
            run_ms(10);
        }
        assert_true(b.frames > before);
        assert_true(uv_hrtime() - began < 3000000000ull);
    }
    /* It moves to another port: dialled at once. */
    stop(&b);
    b.log[0] = 0;
    start(&b, (struct who){.id = 2, .tls = tls_b});
    members_set(&a, &a, "node-a", &b, "node-b");
    members_set(&b, &a, "node-a", &b, "node-b");
    unsigned before = b.frames;
    uint64_t began = uv_hrtime();
    while (b.frames == before && uv_hrtime() - began < 2000000000ull) {
        send_frame(&a, &b, 0);
        run_ms(10);
    }
    assert_true(b.frames > before);
}

/* peers/stopped_member: one that doesn't read costs no memory, and gets fresh frames first when it goes on. The member is a rogue that listens and pauses. */
static struct rogue listener_side;
static void on_rogue_connection(uv_stream_t *listener, int status)
{
    assert_int_equal(status, 0);
    struct conn_options o = {.tls = tls_b, .frame_len_max = PEER_FRAME_LEN_MAX, .out_len_max = 1 << 20, .data = &listener_side};
    assert_int_equal(conn_accept(&loop, listener, &o, &rogue_events, &listener_side.c, NULL), 0);
}

static void stopped_member(void **state)
{
    (void)state;
    uv_tcp_t tcp;
    struct sockaddr_in sa;
    int len = sizeof sa;
    memset(&listener_side, 0, sizeof listener_side);
    uv_ip4_addr("127.0.0.1", 0, &sa);
    uv_tcp_init(&loop, &tcp);
    assert_int_equal(uv_tcp_bind(&tcp, (struct sockaddr *)&sa, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&tcp, 4, on_rogue_connection), 0);
    uv_tcp_getsockname(&tcp, (struct sockaddr *)&sa, &len);
    start(&a, (struct who){.id = 1, .tls = tls_a});
    b.id = 2;
    b.port = ntohs(sa.sin_port);
    members_set(&a, &a, "node-a", &b, "node-b");
    RUN_UNTIL(listener_side.opened && listener_side.frames == 1);
    rogue_hello(&listener_side); /* sees frames == 1 already: its Hello is on the way */
    RUN_UNTIL(strstr(a.log, "connected to"));
    conn_pause(listener_side.c, true);
    struct peer_member *m = peers_find(a.p, 2);
    for (int i = 0; i < 30; i++) {
        send_frame(&a, &b, ENTRY_LEN_MAX - 100);
        run_ms(1);
    }
    assert_true(m->queue.bulk.len <= PEER_QUEUE_LEN_MAX);
    assert_true(peers_dropped(a.p, 2) > 5); /* 120 MB don't fit */
    RUN_UNTIL(strstr(a.log, "takes nothing"));
    assert_int_equal(m->queue.bulk.len, 0);
    uint64_t dropped = peers_dropped(a.p, 2);
    send_frame(&a, &b, 100000);
    assert_int_equal(peers_dropped(a.p, 2), dropped + 1);
    send_frame(&a, &b, 0); /* small ones wait */
    assert_int_equal(peers_dropped(a.p, 2), dropped + 1);
    int before = listener_side.frames;
    conn_pause(listener_side.c, false);
    RUN_UNTIL(m->queue.control.len == 0 && conn_queued_len(m->out->c) == 0);
    run_ms(50);
    assert_true(listener_side.frames > before && listener_side.frames < before + 15);
    before = listener_side.frames;
    send_frame(&a, &b, 100000);
    RUN_UNTIL(listener_side.frames == before + 1);
    stop(&a);
    RUN_UNTIL(listener_side.closed);
    uv_close((uv_handle_t *)&tcp, NULL);
    run_ms(1);
}

/* peers/port_taken */
static void port_taken(void **state)
{
    (void)state;
    start(&a, (struct who){.id = 1, .tls = tls_a});
    char port[8];
    snprintf(port, sizeof port, "%u", a.port);
    struct peers_options o = {.loop = &loop, .tls = tls_b, .listen_host = "127.0.0.1", .listen_port = port, .self_id = 2};
    struct peers *p = NULL;
    struct err err;
    assert_int_not_equal(peers_start(&o, &p, &err), 0);
    assert_non_null(strstr(err.text, port));
    o.listen_host = "no-such-host.invalid";
    assert_int_equal(peers_start(&o, &p, &err), RAFTDIR_EINVAL);
    run_ms(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(three, setup, teardown),          cmocka_unit_test_setup_teardown(refused, setup, teardown),
        cmocka_unit_test_setup_teardown(rogues, setup, teardown),         cmocka_unit_test_setup_teardown(reconnect, setup, teardown),
        cmocka_unit_test_setup_teardown(stopped_member, setup, teardown), cmocka_unit_test_setup_teardown(port_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(images, setup, teardown),
    };
    return cmocka_run_group_tests_name("peers", tests, group_setup, group_teardown);
}
