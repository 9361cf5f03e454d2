/* image_world.h - what test_image_transfer.c stands on, in one process: members that send (peers on a loop of their own, the sending threads, a state), one that
 * fetches, what these want of a daemon, a proxy between two that cuts connections, and a receiver that is played by hand. */
#ifndef IMAGE_WORLD_H
#define IMAGE_WORLD_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <raft.h>
#include "raftdir/logger.h"
#include "raftdir/peers_internal.h"
#include "raftdir/thread_consensus.h"
#include "raftdir/thread_image.h"
#include "raftdir/tls_stream.h"
#include "support_certs.h"
#include "support_store.h"

#define CLUSTER 77
#define INCARNATION 3
#define FETCHER 2 /* the id of who fetches; others: 1 and 3 send, 4 and on are more receivers */
#define CHUNK_LEN 8192

static char dir[256], staged[300];
static struct support_ca ca;
static SSL_CTX *tls_of[4]; /* by id: node-1 to node-3 */
static uint64_t seed;

/* Cmocka's assertions are for the main thread. */
#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x)) {                                                                                                                        \
            fprintf(stderr, "line %d: " #x "\n", __LINE__);                                                                                \
            abort();                                                                                                                       \
        }                                                                                                                                  \
    } while (0)
#define WAIT_UNTIL(condition)                                                                                                              \
    do {                                                                                                                                   \
        uint64_t until_ = shared_now_ms() + 30000;                                                                                         \
        while (!(condition)) {                                                                                                             \
            if (shared_now_ms() > until_)                                                                                                  \
                fail_msg("line %d: waited too long for " #condition, __LINE__);                                                            \
            usleep(2000);                                                                                                                  \
        }                                                                                                                                  \
    } while (0)

/* --- What the threads want of a daemon ------------------------------------------------------------------------------------------------ */

static _Atomic unsigned failures;

struct store *daemon_store(struct daemon *d, unsigned *generation_r)
{
    pthread_mutex_lock(&d->store_mutex);
    struct store *store = d->store ? store_ref(d->store) : NULL;
    *generation_r = atomic_load(&d->store_generation);
    pthread_mutex_unlock(&d->store_mutex);
    return store;
}

SSL_CTX *daemon_tls(struct daemon *d)
{
    SSL_CTX_up_ref(d->tls);
    return d->tls;
}

void consensus_fail(struct consensus *c, unsigned generation, int code, const char *why)
{
    (void)c;
    (void)generation;
    MUST(code == RAFTDIR_ECORRUPT && *why);
    failures++;
}

static void daemon_init(struct daemon *d, struct config *c, unsigned id)
{
    memset(d, 0, sizeof *d);
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&d->config_mutex, NULL);
    pthread_mutex_init(&d->store_mutex, NULL);
    assert_int_equal(shared_init(&d->shared), 0);
    shared_identity_set(&d->shared, CLUSTER, INCARNATION, id);
    d->config = c;
    d->tls = tls_of[id];
}

static void daemon_close(struct daemon *d)
{
    shared_close(&d->shared);
    pthread_mutex_destroy(&d->config_mutex);
    pthread_mutex_destroy(&d->store_mutex);
}

/* May be served or not. */
static void daemon_serve(struct daemon *d, struct store *store)
{
    pthread_mutex_lock(&d->store_mutex);
    d->store = store;
    pthread_mutex_unlock(&d->store_mutex);
}

static void uuid_of(uint64_t id, uint8_t uuid_r[NODE_UUID_LEN])
{
    memset(uuid_r, (int)('a' + id), NODE_UUID_LEN);
}

/* --- A sender: peers on a loop of its own, and the threads that send ------------------------------------------------------------------- */

struct sender {
    unsigned id;
    struct daemon d;
    struct config config;
    struct support_store state;
    struct image_senders *senders;
    struct peers *peers;
    uv_loop_t loop;
    uv_async_t end;
    pthread_t thread;
    unsigned port;
    _Atomic unsigned asked;
    bool runs;
    /* Instead of image_senders_take: what the connection gets, as it is. */
    void (*villain)(struct tls_stream *stream);
};
static struct sender nodes[2];

struct villain {
    struct sender *n;
    int fd;
    SSL *ssl;
};
static void *villain_main(void *data)
{
    struct villain *v = data;
    struct tls_stream_options o = {.io_timeout_ms = 3000};
    struct tls_stream *stream;
    if (tls_stream_adopt(v->fd, v->ssl, &o, &stream, NULL) == 0) {
        v->n->villain(stream);
        const uint8_t *frame;
        size_t len;
        (void)tls_stream_receive(stream, 0, &frame, &len, NULL); /* until the other end has had enough */
        tls_stream_close(&stream);
    }
    free(v);
    return NULL;
}

static void on_image(void *data, uint64_t from, int fd, SSL *ssl, const Raftdir__Image__Request *request)
{
    struct sender *n = data;
    n->asked++;
    if (!n->villain) {
        image_senders_take(n->senders, from, fd, ssl, request);
        return;
    }
    struct villain *v = calloc(1, sizeof *v);
    *v = (struct villain){n, fd, ssl};
    pthread_t thread;
    MUST(v && pthread_create(&thread, NULL, villain_main, v) == 0);
    pthread_join(thread, NULL); /* holds the loop up: so what */
}

static void on_frame(void *data, uint64_t from, const uint8_t *frame, size_t len)
{
    (void)data;
    (void)from;
    (void)frame;
    (void)len;
}

static void on_end(uv_async_t *async)
{
    struct sender *n = async->data;
    peers_stop(&n->peers, NULL, NULL);
    uv_close((uv_handle_t *)async, NULL);
}

static void *loop_main(void *data)
{
    struct sender *n = data;
    uv_run(&n->loop, UV_RUN_DEFAULT);
    return NULL;
}

static struct node_peer member(uint64_t id, unsigned port)
{
    struct node_peer m = {.id = id, .role = RAFTDIR__CLUSTER__ROLE__VOTER};
    snprintf(m.host_port, sizeof m.host_port, "127.0.0.1:%u", port);
    snprintf(m.cert_name, sizeof m.cert_name, "node-%d", id == 1 || id == 3 ? (int)id : FETCHER);
    uuid_of(id, m.uuid);
    return m;
}

/* id 1 or 3. */
static struct sender *sender_start(unsigned id)
{
    struct sender *n = &nodes[id == 3];
    n->id = id;
    daemon_init(&n->d, &n->config, id);
    n->d.store = n->state.store;
    struct err err = {0};
    assert_int_equal(image_senders_start(&n->d, &n->senders, &err), 0);
    assert_int_equal(uv_loop_init(&n->loop), 0);
    uv_async_init(&n->loop, &n->end, on_end);
    n->end.data = n;
    struct peers_options o = {.loop = &n->loop, .tls = tls_of[id], .listen_host = "127.0.0.1", .listen_port = "0", .self_id = id, .cluster_id = CLUSTER,
                              .incarnation = INCARNATION, .data = n, .on_frame = on_frame, .on_image = on_image};
    uuid_of(id, o.uuid);
    if (peers_start(&o, &n->peers, &err))
        fail_msg("%s", err.text);
    n->port = peers_port(n->peers);
    struct node_peer list[5];
    for (int i = 0; i < 5; i++)
        list[i] = member(i ? (uint64_t)i + 2 : FETCHER, 1); /* 2, 3, 4, 5, 6; nobody listens there */
    peers_members(n->peers, list, 5);
    assert_int_equal(pthread_create(&n->thread, NULL, loop_main, n), 0);
    n->runs = true;
    return n;
}

static void sender_stop(struct sender *n)
{
    if (!n->runs)
        return;
    uv_async_send(&n->end);
    pthread_join(n->thread, NULL);
    assert_int_equal(uv_loop_close(&n->loop), 0);
    uint64_t began = shared_now_ms();
    image_senders_stop(&n->senders);
    assert_true(shared_now_ms() - began < 2000);
    daemon_close(&n->d);
    n->runs = false;
    n->villain = NULL;
    n->asked = 0;
}

static void rate_set(struct sender *n, uint64_t len)
{
    pthread_mutex_lock(&n->d.config_mutex);
    n->config.image_rate_len = len;
    pthread_mutex_unlock(&n->d.config_mutex);
}

static struct shared_image sending(struct sender *n, unsigned slot)
{
    struct shared_details details;
    shared_details_get(&n->d.shared, &details);
    return details.sending[slot];
}

/* --- States ------------------------------------------------------------------------------------------------------------------------------ */

static void grow(struct support_store *s, unsigned mailboxes)
{
    static unsigned made;
    struct support_arena a = {0};
    while (mailboxes) {
        Raftdir__Log__Op *ops[500];
        size_t n = mailboxes < 500 ? mailboxes : 500;
        for (size_t i = 0; i < n; i++, made++) {
            char name[64], server[16];
            snprintf(name, sizeof name, "user.u%u.f%u", made % 997, made);
            snprintf(server, sizeof server, "be%u", made % 5);
            ops[i] = support_put(&a, name, server, "p1", "anna\tlrswipkxtecda\tgroup:staff\tlrs\tnot-so-common\tlr\t");
        }
        assert_int_equal(support_apply(&a, s, support_request(&a, s, ops, n))->code, 0);
        mailboxes -= (unsigned)n;
    }
    support_free(&a);
}

static void state_make(struct support_store *s)
{
    support_store_open(s, 1u << 28);
    struct raft_configuration c;
    struct raft_buffer buf;
    raft_configuration_init(&c);
    assert_int_equal(raft_configuration_add(&c, 1, "host:1/c/00112233445566778899aabbccddeeff", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_encode(&c, &buf), 0);
    struct entry *e = entry_create(++s->index, 1, RAFT_CHANGE, buf.base, (uint32_t)buf.len);
    struct apply_batch *b = apply_batch_create(&e, 1);
    assert_non_null(b);
    apply_batch_run(s->store, b);
    assert_int_equal(b->status, 0);
    apply_batch_destroy(&b);
    entry_unref(e);
    raft_free(buf.base);
    raft_configuration_close(&c);
    grow(s, 3000);
}

/* --- The fetching side -------------------------------------------------------------------------------------------------------------------- */

struct fetched {
    struct daemon d;
    struct config config;
    struct image_fetch *fetch;
    _Atomic int done, code;
    _Atomic unsigned indexes;
    _Atomic uint64_t index;
    struct image_progress image;
    char why[ERR_TEXT_LEN];
};

static void on_index(void *data, uint64_t index)
{
    struct fetched *f = data;
    f->indexes++;
    f->index = index;
}

static void on_done(void *data, int code, const struct image_progress *image, const char *why)
{
    struct fetched *f = data;
    MUST(!f->done);
    f->image = *image;
    snprintf(f->why, sizeof f->why, "%s", why);
    f->code = code;
    f->done = 1;
}

static void fetch_begin(struct fetched *f, uint64_t index_min, uint64_t leader, const struct node_peer *members, size_t n)
{
    memset(f, 0, sizeof *f);
    daemon_init(&f->d, &f->config, FETCHER);
    mkdir(staged, 0700);
    static struct image_fetch_options o;
    memset(&o, 0, sizeof o);
    o = (struct image_fetch_options){.d = &f->d, .self_id = FETCHER, .cluster_id = CLUSTER, .incarnation = INCARNATION, .index_min = index_min, .leader = leader,
                                     .members_n = n, .data = f, .index = on_index, .done = on_done};
    uuid_of(FETCHER, o.uuid);
    snprintf(o.dir, sizeof o.dir, "%s", staged);
    memcpy(o.members, members, n * sizeof *members);
    struct err err = {0};
    assert_int_equal(image_fetch_start(&o, &f->fetch, &err), 0);
    memset(&o, 0xee, sizeof o); /* it was copied */
}

static struct shared_image fetching(struct fetched *f)
{
    struct shared_details details;
    shared_details_get(&f->d.shared, &details);
    return details.fetching;
}

/* Stops it if it isn't done; the staged files go. */
static void fetch_end(struct fetched *f)
{
    uint64_t began = shared_now_ms();
    image_fetch_stop(&f->fetch);
    assert_null(f->fetch);
    assert_true(shared_now_ms() - began < 2000);
    daemon_close(&f->d);
    support_dir_remove(staged);
}

/* The staged state answers as the source did at that index. */
static void staged_check(const struct fetched *f, uint64_t index, const uint8_t digest[16])
{
    struct support_store s = {0};
    struct err err = {0};
    struct store_options o = {.map_len = 1u << 28};
    uint8_t have[16];
    assert_int_equal(f->image.index, index);
    if (store_open(staged, &o, &s.store, &err))
        fail_msg("%s", err.text);
    support_digest(&s, have);
    assert_memory_equal(have, digest, 16);
    assert_int_equal(support_verify(&s, false), 0);
    store_close(&s.store);
}

/* --- A proxy that cuts ---------------------------------------------------------------------------------------------------------------------- */

struct proxy {
    int listener;
    unsigned port, to;
    pthread_t thread;
    struct tls_cancel end;
    uint64_t random;
    unsigned cuts, cut_len_max; /* so many connections are cut, each after fewer bytes than that; the others pass */
    _Atomic unsigned conns, cut;
    _Atomic uint64_t bytes;    /* from the sender */
    _Atomic bool cut_now, reset; /* cut the one that is open; as a crash would look like, not as an end of stream */
};

static int dial_port(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* false: one of them has ended, or the cut has come. */
static bool pass(int from, int to, size_t *left, _Atomic uint64_t *bytes)
{
    char buf[4096];
    ssize_t n = read(from, buf, sizeof buf < *left ? sizeof buf : *left);
    if (n <= 0)
        return false;
    *left -= (size_t)n;
    *bytes += (uint64_t)n;
    for (ssize_t at = 0; at < n;) {
        ssize_t w = write(to, buf + at, (size_t)(n - at));
        if (w <= 0)
            return false;
        at += w;
    }
    return *left > 0;
}

static void *proxy_main(void *data)
{
    struct proxy *p = data;
    for (;;) {
        struct pollfd l[2] = {{.fd = p->listener, .events = POLLIN}, {.fd = p->end.fd, .events = POLLIN}};
        if (poll(l, 2, -1) < 0)
            continue;
        if (l[1].revents)
            return NULL;
        int in = accept(p->listener, NULL, NULL), out = dial_port(p->to);
        bool cut = p->cut < p->cuts;
        size_t left = cut ? 1 + support_below(&p->random, p->cut_len_max) : SIZE_MAX, up = SIZE_MAX;
        p->conns++;
        _Atomic uint64_t up_bytes = 0;
        bool ended = in < 0 || out < 0;
        while (!ended) {
            struct pollfd f[3] = {{.fd = in, .events = POLLIN}, {.fd = out, .events = POLLIN}, {.fd = p->end.fd, .events = POLLIN}};
            if (poll(f, 3, 5) < 0)
                continue;
            if (p->cut_now) {
                p->cut_now = false;
                cut = ended = true;
            } else if (f[2].revents || (f[1].revents && !pass(out, in, &left, &p->bytes)) || (f[0].revents && !pass(in, out, &up, &up_bytes))) {
                ended = true;
            }
        }
        if (cut)
            p->cut++;
        struct linger hard = {.l_onoff = 1};
        if (cut && p->reset) {
            setsockopt(in, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            setsockopt(out, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        }
        close(in);
        close(out);
    }
}

static int listen_any(unsigned *port_r)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(fd, 16), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    *port_r = ntohs(a.sin_port);
    return fd;
}

static void proxy_start(struct proxy *p, unsigned to)
{
    p->listener = listen_any(&p->port);
    p->to = to;
    assert_int_equal(tls_cancel_init(&p->end, NULL), 0);
    assert_int_equal(pthread_create(&p->thread, NULL, proxy_main, p), 0);
}

static void proxy_end(struct proxy *p)
{
    tls_cancel_now(&p->end);
    pthread_join(p->thread, NULL);
    tls_cancel_close(&p->end);
    close(p->listener);
}

/* --- A receiver by hand ------------------------------------------------------------------------------------------------------------------------ */

static struct tls_stream *ask(struct sender *n, uint64_t as, uint64_t index_min, Raftdir__Image__Position *resume)
{
    struct peers_options self = {.self_id = as, .cluster_id = CLUSTER, .incarnation = INCARNATION};
    uuid_of(as, self.uuid);
    Raftdir__Image__Request request = RAFTDIR__IMAGE__REQUEST__INIT;
    request.index_min = index_min;
    request.resume = resume;
    uint8_t buf[PEER_HELLO_LEN_MAX];
    size_t len = peers_hello_pack(&self, NULL, NULL, n->id, false, &request, buf);
    assert_true(len > 0);
    char port[8];
    snprintf(port, sizeof port, "%u", n->port);
    struct tls_stream_options o = {.connect_timeout_ms = 5000, .io_timeout_ms = 10000};
    struct tls_stream *stream;
    struct err err = {0};
    if (tls_stream_connect("127.0.0.1", port, tls_of[FETCHER], &o, &stream, &err) || tls_stream_send(stream, buf, len, &err))
        fail_msg("%s", err.text);
    const uint8_t *frame;
    if (tls_stream_receive(stream, PEER_HELLO_LEN_MAX, &frame, &len, &err))
        fail_msg("%s", err.text);
    return stream;
}

/* The next frame: its kind; of a refusal the code, of a header what it says. -1: the connection ended. */
static int next(struct tls_stream *stream, int *code_r, uint64_t *pin_r, uint64_t *index_r)
{
    const uint8_t *frame;
    size_t len;
    if (tls_stream_receive(stream, IMAGE_FRAME_LEN_MAX, &frame, &len, NULL))
        return -1;
    Raftdir__Image__Frame *f = raftdir__image__frame__unpack(NULL, len, frame);
    assert_non_null(f);
    int kind = f->body_case;
    if (kind == RAFTDIR__IMAGE__FRAME__BODY_REFUSAL) {
        *code_r = f->refusal->code;
        assert_non_null(f->refusal->message);
    } else if (kind == RAFTDIR__IMAGE__FRAME__BODY_HEADER) {
        *pin_r = f->header->pin;
        *index_r = f->header->applied_index;
    }
    raftdir__image__frame__free_unpacked(f, NULL);
    return kind;
}
#define HEADER RAFTDIR__IMAGE__FRAME__BODY_HEADER
#define REFUSAL RAFTDIR__IMAGE__FRAME__BODY_REFUSAL

#endif
