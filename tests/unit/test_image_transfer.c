/* test_image_transfer.c - images between members in one process: real TLS on loopback, real states. Whole, broken off at random bytes by a proxy between the two,
 * given up by the sender, refused, lied about, stopped in every phase. Prints its seed. */
#include "image_world.h"

static const struct image_limits limits_normal = {.io_timeout_ms = 3000, .pin_keep_ms = 3000, .pause_ms = 50, .pin_growth_max = 1u << 30};

static int setup(void **state)
{
    (void)state;
    image_limits = limits_normal;
    failures = 0;
    for (int i = 0; i < 2; i++) {
        memset(&nodes[i], 0, sizeof nodes[i]);
        state_make(&nodes[i].state);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        sender_stop(&nodes[i]);
        support_store_close(&nodes[i].state);
    }
    support_dir_remove(staged);
    return 0;
}

/* image_transfer/whole: from a follower although the leader could, then from the leader when nobody else can. */
static void whole(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1), *n3 = sender_start(3);
    struct node_peer list[] = {member(1, n1->port), member(FETCHER, 1), member(3, n3->port)};
    list[0].last_contact_ms = 9; /* the most recent, but it leads */
    list[2].last_contact_ms = 5;
    struct fetched f;
    uint8_t digest[16];
    support_digest(&n3->state, digest);
    fetch_begin(&f, n3->state.index, 1, list, 3);
    WAIT_UNTIL(f.done);
    if (f.code)
        fail_msg("%s", f.why);
    staged_check(&f, n3->state.index, digest);
    assert_int_equal(f.indexes, 1);
    assert_int_equal(f.index, n3->state.index);
    assert_int_equal(n1->asked, 0);
    assert_int_equal(n3->asked, 1);
    assert_string_equal(fetching(&f).phase, "installing");
    assert_int_equal(fetching(&f).member, 3);
    assert_true(f.image.bytes > 20 * CHUNK_LEN);
    fetch_end(&f);
    WAIT_UNTIL(!sending(n3, 0).phase[0]);

    /* It has an older state than wanted; the leader's is newer. */
    grow(&n1->state, 700);
    support_digest(&n1->state, digest);
    fetch_begin(&f, n1->state.index, 1, list, 3);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, 0);
    staged_check(&f, n1->state.index, digest);
    assert_int_equal(n1->asked, 1);
    assert_int_equal(n3->asked, 2);
    fetch_end(&f);

    /* Nobody has it. */
    fetch_begin(&f, n1->state.index + 1, 1, list, 3);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(f.why, "not yet"));
    assert_int_equal(f.indexes, 0);
    fetch_end(&f);

    /* There is nobody else at all. */
    fetch_begin(&f, 1, FETCHER, &list[1], 1);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, RAFTDIR_EUNAVAIL);
    fetch_end(&f);
}

/* image_transfer/broken: cut at random bytes, again and again, while the sender's state moves on: one image arrives, that of the first connection. */
static void broken(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    uint64_t r = seed;
    for (int round = 0; round < 12; round++) {
        struct proxy p = {.random = seed + (uint64_t)round, .cuts = 1 + support_below(&r, 6), .reset = round % 2};
        p.cut_len_max = round % 3 ? 300000 : 20000; /* the latter: in Hello and header too */
        image_commit_len = round % 4 < 2 ? 3 * CHUNK_LEN : IMAGE_COMMIT_LEN;
        proxy_start(&p, n1->port);
        struct node_peer list[] = {member(1, p.port)};
        struct fetched f;
        uint8_t digest[16];
        uint64_t index = n1->state.index;
        support_digest(&n1->state, digest);
        fetch_begin(&f, index, 0, list, 1);
        WAIT_UNTIL(f.done || f.index);
        grow(&n1->state, 50);
        WAIT_UNTIL(f.done);
        /* Cut in Hello or header again and again: that attempt is given up, and asked again, as the consensus thread does. */
        for (unsigned again = 0; f.code && again < p.cuts; again++) {
            assert_int_equal(f.code, RAFTDIR_EUNAVAIL);
            fetch_end(&f);
            index = n1->state.index;
            support_digest(&n1->state, digest);
            fetch_begin(&f, index, 0, list, 1);
            WAIT_UNTIL(f.done);
        }
        if (f.code)
            fail_msg("round %d: %s", round, f.why);
        if (f.image.index != index) /* begun anew */
            support_digest(&n1->state, digest);
        staged_check(&f, f.image.index, digest);
        fetch_end(&f);
        proxy_end(&p);
    }
    image_commit_len = IMAGE_COMMIT_LEN;
}

/* image_transfer/resumed: after a cut in the middle it goes on there, with the same image; nothing is sent twice but what was under way. */
static void resumed(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    rate_set(n1, 400000); /* so that little is under way */
    struct proxy p = {.random = seed};
    proxy_start(&p, n1->port);
    struct node_peer list[] = {member(1, p.port)};
    struct fetched f;
    uint8_t digest[16];
    uint64_t index = n1->state.index;
    support_digest(&n1->state, digest);
    fetch_begin(&f, index, 0, list, 1);
    for (unsigned i = 1; i <= 3; i++) {
        WAIT_UNTIL(f.done || (p.conns == i && p.bytes >= i * 20 * CHUNK_LEN));
        assert_false(f.done);
        p.reset = i == 2;
        p.cut_now = true;
        WAIT_UNTIL(p.cut == i);
        if (i == 3) { /* while it waits for the receiver to come back */
            WAIT_UNTIL(strcmp(sending(n1, 0).phase, "waiting") == 0 || p.conns > 3);
        }
        grow(&n1->state, 20);
    }
    WAIT_UNTIL(f.done);
    if (f.code)
        fail_msg("%s", f.why);
    assert_int_equal(f.indexes, 1);
    assert_int_equal(p.conns, 4);
    staged_check(&f, index, digest);
    if (p.bytes > f.image.bytes * 5 / 4 + 65536)
        fail_msg("%llu bytes were sent for an image of %llu", (unsigned long long)p.bytes, (unsigned long long)f.image.bytes);
    fetch_end(&f);
    proxy_end(&p);
    assert_int_equal(n1->asked, 4);
}

/* image_transfer/given_up: the state grows too much while the image is under way, and while the sender waits; the receiver gets a newer one. And nobody comes back. */
static void given_up(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    rate_set(n1, 1u << 20);
    image_limits.pin_growth_max = 200000;
    image_limits.pause_ms = 2000;
    struct proxy p = {.random = seed};
    proxy_start(&p, n1->port);
    struct node_peer list[] = {member(1, p.port)};
    struct fetched f;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    uint64_t first = f.index;
    grow(&n1->state, 4000);
    uint8_t digest[16];
    support_digest(&n1->state, digest);
    rate_set(n1, 0);
    WAIT_UNTIL(f.done);
    if (f.code)
        fail_msg("%s", f.why);
    assert_int_equal(f.indexes, 2);
    assert_true(f.image.index > first);
    staged_check(&f, n1->state.index, digest);
    fetch_end(&f);

    /* Nobody listens any more: it is noticed all the same. */
    rate_set(n1, 1u << 20);
    image_limits.pin_keep_ms = 20000;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    fetch_end(&f);
    WAIT_UNTIL(strcmp(sending(n1, 0).phase, "waiting") == 0);
    uint64_t began = shared_now_ms();
    grow(&n1->state, 4000);
    WAIT_UNTIL(!sending(n1, 0).phase[0]);
    assert_true(shared_now_ms() - began < 15000);

    /* Its time is up. */
    image_limits.pin_keep_ms = 300;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    fetch_end(&f);
    WAIT_UNTIL(!sending(n1, 0).phase[0]);

    /* This node has failed meanwhile. */
    image_limits.pin_keep_ms = 20000;
    image_limits.pin_growth_max = 1u << 30;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    daemon_serve(&n1->d, NULL);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(f.why, "may serve"));
    WAIT_UNTIL(!sending(n1, 0).phase[0]);
    fetch_end(&f);
    daemon_serve(&n1->d, n1->state.store);

    /* An image has taken the place of its state: what is pinned goes, and a new one is sent. */
    unsigned asked = n1->asked;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    atomic_fetch_add(&n1->d.store_generation, 1);
    rate_set(n1, 0);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, 0);
    assert_int_equal(n1->asked, asked + 2);
    fetch_end(&f);
    proxy_end(&p);
}

/* image_transfer/refusals: what a sender says to those that it can't serve, and who takes whose place. */
static void refusals(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    rate_set(n1, 64u << 10);
    int code;
    uint64_t pin, other_pin, index;
    struct tls_stream *s[4];

    s[0] = ask(n1, FETCHER, n1->state.index + 1, NULL);
    assert_int_equal(next(s[0], &code, &pin, &index), REFUSAL);
    assert_int_equal(code, RAFTDIR_ENOTREADY);
    assert_int_equal(next(s[0], &code, &pin, &index), -1);
    tls_stream_close(&s[0]);

    uint8_t key[] = "no such key";
    Raftdir__Image__Position at = RAFTDIR__IMAGE__POSITION__INIT;
    at.pin = 99;
    at.key = (ProtobufCBinaryData){sizeof key, key};
    at.value = (ProtobufCBinaryData){0, key};
    s[0] = ask(n1, FETCHER, 1, &at);
    assert_int_equal(next(s[0], &code, &pin, &index), REFUSAL);
    assert_int_equal(code, RAFTDIR_ENOTFOUND);
    tls_stream_close(&s[0]);

    /* A pin that is kept, and a position that isn't in it. */
    s[0] = ask(n1, FETCHER, 1, NULL);
    assert_int_equal(next(s[0], &code, &pin, &index), HEADER);
    assert_int_equal(index, n1->state.index);
    assert_true(pin != 0);
    WAIT_UNTIL(strcmp(sending(n1, 0).phase, "sending") == 0);
    assert_int_equal(sending(n1, 0).member, FETCHER);
    assert_int_equal(sending(n1, 0).index, index);
    assert_true(sending(n1, 0).rows_total > 3000);
    at.pin = pin;
    at.offset = 5;
    s[1] = ask(n1, FETCHER, 1, &at); /* takes the place of s[0] */
    assert_int_equal(next(s[1], &code, &other_pin, &index), REFUSAL);
    assert_int_equal(code, RAFTDIR_EINVAL);
    while (next(s[0], &code, &other_pin, &index) >= 0)
        ;
    tls_stream_close(&s[0]);
    tls_stream_close(&s[1]);

    /* The same receiver begins anew, without having closed: another pin. */
    s[0] = ask(n1, FETCHER, 1, NULL);
    assert_int_equal(next(s[0], &code, &pin, &index), HEADER);
    s[1] = ask(n1, FETCHER, 1, NULL);
    assert_int_equal(next(s[1], &code, &other_pin, &index), HEADER);
    assert_true(pin != other_pin);
    while (next(s[0], &code, &pin, &index) >= 0)
        ;
    tls_stream_close(&s[0]);

    /* IMAGE_SENDS_MAX receivers, and one more. */
    s[2] = ask(n1, 4, 1, NULL);
    assert_int_equal(next(s[2], &code, &pin, &index), HEADER);
    WAIT_UNTIL(sending(n1, 0).phase[0] && sending(n1, 1).phase[0]);
    s[3] = ask(n1, 5, 1, NULL);
    assert_int_equal(next(s[3], &code, &pin, &index), REFUSAL);
    assert_int_equal(code, RAFTDIR_EBUSY);
    assert_int_equal(next(s[3], &code, &pin, &index), -1);
    tls_stream_close(&s[3]);
    /* The others go on. */
    assert_true(next(s[1], &code, &pin, &index) > 0);
    assert_true(next(s[2], &code, &pin, &index) > 0);
    /* One of them comes to its end. */
    rate_set(n1, 0);
    int kind, last = 0;
    while ((kind = next(s[2], &code, &pin, &index)) > 0) {
        last = kind;
        if (kind == RAFTDIR__IMAGE__FRAME__BODY_END)
            break;
    }
    assert_int_equal(last, RAFTDIR__IMAGE__FRAME__BODY_END);
    tls_stream_close(&s[2]);
    WAIT_UNTIL(!sending(n1, 1).phase[0]);
    s[3] = ask(n1, 5, 1, NULL);
    assert_int_equal(next(s[3], &code, &pin, &index), HEADER);
    tls_stream_close(&s[3]);
    tls_stream_close(&s[1]);

    daemon_serve(&n1->d, NULL);
    s[0] = ask(n1, FETCHER, 1, NULL);
    do
        kind = next(s[0], &code, &pin, &index);
    while (kind > 0 && kind != REFUSAL);
    assert_int_equal(kind, REFUSAL);
    assert_int_equal(code, RAFTDIR_ENOTREADY);
    tls_stream_close(&s[0]);
    daemon_serve(&n1->d, n1->state.store);
    assert_int_equal(failures, 0);
}

/* image_transfer/undecided: nobody knows which of two states is right: neither goes to a third member, which would make a majority of it. */
static void undecided(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    struct node_status differs = {.differs_id = 3, .differs_index = 1024, .differs_undecided = true}, decided = {.differs_id = 3, .differs_index = 1024};
    int code, kind;
    uint64_t pin, index;
    rate_set(n1, 64u << 10);
    struct tls_stream *s = ask(n1, FETCHER, 1, NULL); /* known in the middle of it */
    assert_int_equal(next(s, &code, &pin, &index), HEADER);
    shared_status_set(&n1->d.shared, &differs, shared_now_ms());
    do
        kind = next(s, &code, &pin, &index);
    while (kind > 0 && kind != REFUSAL && kind != RAFTDIR__IMAGE__FRAME__BODY_END);
    assert_int_equal(kind, REFUSAL);
    assert_int_equal(code, RAFTDIR_ENOTREADY);
    tls_stream_close(&s);
    s = ask(n1, FETCHER, 1, NULL); /* known before */
    assert_int_equal(next(s, &code, &pin, &index), REFUSAL);
    assert_int_equal(code, RAFTDIR_ENOTREADY);
    tls_stream_close(&s);
    shared_status_set(&n1->d.shared, &decided, shared_now_ms()); /* the other one is known to be wrong */
    s = ask(n1, FETCHER, 1, NULL);
    assert_int_equal(next(s, &code, &pin, &index), HEADER);
    tls_stream_close(&s);
    assert_int_equal(failures, 0);
}

/* image_transfer/rate: the bytes a second that are configured, of all transfers together. */
static void rate(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    rate_set(n1, 400000);
    struct proxy p = {.random = seed};
    proxy_start(&p, n1->port);
    struct node_peer list[] = {member(1, p.port)};
    struct fetched f;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1);
    uint64_t began = shared_now_ms(), from = p.bytes;
    usleep(700000);
    uint64_t ms = shared_now_ms() - began, rate_len = (p.bytes - from) * 1000 / ms;
    assert_false(f.done);
    if (rate_len > 600000 || rate_len < 20000) /* a busy machine may be slower, never faster */
        fail_msg("%llu bytes a second instead of 400000", (unsigned long long)rate_len);
    rate_set(n1, 0);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, 0);
    fetch_end(&f);
    proxy_end(&p);
}

/* image_transfer/damaged: a record of the sender's own state is damaged: it doesn't travel, and the sender hears of it. */
static void damaged(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1), *n3 = sender_start(3);
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", n1->state.dir);
    int fd = open(path, O_RDWR);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    char *p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *at = p;
    assert_true(p != MAP_FAILED);
    unsigned hits = 0;
    while ((at = memmem(at, (size_t)(p + st.st_size - at), "not-so-common\tlr", 16))) {
        if (++hits % 3 == 0)
            at[14] ^= 1;
        at++;
    }
    assert_true(hits > 100);
    munmap(p, (size_t)st.st_size);
    close(fd);
    struct node_peer list[] = {member(1, n1->port), member(3, n3->port)};
    struct fetched f;
    uint8_t digest[16];
    support_digest(&n3->state, digest);
    list[0].last_contact_ms = 9;
    fetch_begin(&f, 1, 3, list, 2);
    WAIT_UNTIL(f.done);
    if (f.code)
        fail_msg("%s", f.why);
    assert_int_equal(n1->asked, 1);
    assert_int_equal(failures, 1);
    staged_check(&f, n3->state.index, digest);
    fetch_end(&f);
}

/* --- Senders that lie --- */

static const uint8_t *image_frames[4]; /* of a real image: header, first chunk, second chunk, end */
static size_t image_frame_lens[4];

static void send_raw(struct tls_stream *s, const void *p, size_t len)
{
    (void)tls_stream_send(s, p, len, NULL);
}
static void v_garbage(struct tls_stream *s)
{
    uint8_t buf[5000];
    uint64_t r = seed;
    for (size_t i = 0; i < sizeof buf; i++)
        buf[i] = (uint8_t)support_random(&r);
    send_raw(s, buf, sizeof buf);
}
static void v_oversized(struct tls_stream *s)
{
    (void)tls_stream_send_header(s, IMAGE_FRAME_LEN_MAX + 1, NULL);
    (void)tls_stream_send_bytes(s, (const uint8_t *)"x", 1, NULL);
}
static void v_empty(struct tls_stream *s)
{
    send_raw(s, "", 0);
}
static void v_closes(struct tls_stream *s)
{
    (void)s;
}
static void v_chunk_first(struct tls_stream *s)
{
    send_raw(s, image_frames[1], image_frame_lens[1]);
}
static void v_flipped(struct tls_stream *s)
{
    uint8_t buf[CHUNK_LEN + 1024];
    send_raw(s, image_frames[0], image_frame_lens[0]);
    memcpy(buf, image_frames[1], image_frame_lens[1]);
    buf[image_frame_lens[1] / 2] ^= 0x10;
    send_raw(s, buf, image_frame_lens[1]);
}
static void v_skips(struct tls_stream *s)
{
    send_raw(s, image_frames[0], image_frame_lens[0]);
    send_raw(s, image_frames[2], image_frame_lens[2]);
}
static void v_ends_early(struct tls_stream *s)
{
    send_raw(s, image_frames[0], image_frame_lens[0]);
    send_raw(s, image_frames[1], image_frame_lens[1]);
    send_raw(s, image_frames[3], image_frame_lens[3]);
}
static void v_refuses(struct tls_stream *s)
{
    send_raw(s, image_frames[0], image_frame_lens[0]);
    Raftdir__Image__Frame frame = RAFTDIR__IMAGE__FRAME__INIT;
    Raftdir__Image__Refusal refusal = RAFTDIR__IMAGE__REFUSAL__INIT;
    uint8_t buf[128];
    refusal.code = RAFTDIR_EBUSY;
    refusal.message = (char *)"not today";
    frame.body_case = REFUSAL;
    frame.refusal = &refusal;
    send_raw(s, buf, raftdir__image__frame__pack(&frame, buf));
}
static void v_half(struct tls_stream *s)
{
    send_raw(s, image_frames[0], image_frame_lens[0]);
    (void)tls_stream_send_header(s, 100000, NULL);
    (void)tls_stream_send_bytes(s, image_frames[1], image_frame_lens[1], NULL);
}

static void frames_make(struct support_store *s)
{
    struct image_reader *r;
    assert_int_equal(image_reader_begin(s->store, CLUSTER, INCARNATION, 4711, &r, NULL), 0);
    const uint8_t *p;
    size_t len;
    for (int i = 0;; i++) {
        int rc = i ? image_reader_next(r, &p, &len, NULL) : image_reader_header(r, &p, &len, NULL);
        if (rc == RAFTDIR_ENOTFOUND)
            break;
        assert_int_equal(rc, 0);
        int at = i < 3 ? i : 3; /* the last one stays */
        uint8_t *copy = malloc(len);
        assert_non_null(copy);
        memcpy(copy, p, len);
        free((void *)(uintptr_t)image_frames[at]);
        image_frames[at] = copy;
        image_frame_lens[at] = len;
    }
    image_reader_end(&r);
}

static void villains(void **state)
{
    (void)state;
    static const struct {
        void (*villain)(struct tls_stream *s);
        const char *text;
    } rows[] = {
        {v_garbage, NULL},          {v_oversized, "limit"}, {v_empty, NULL}, {v_closes, NULL},        {v_chunk_first, NULL}, {v_flipped, "damaged"},
        {v_skips, NULL},            {v_ends_early, NULL},   {v_refuses, "not today"}, {v_half, NULL},
    };
    image_limits.io_timeout_ms = 500;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sender *n1 = sender_start(1), *n3 = sender_start(3);
        if (i == 0)
            frames_make(&n1->state);
        n1->villain = rows[i].villain;
        struct node_peer list[] = {member(1, n1->port), member(3, n3->port)};
        list[0].last_contact_ms = 9;
        uint8_t digest[16];
        support_digest(&n3->state, digest);
        struct fetched f;
        /* Alone it can't harm, */
        fetch_begin(&f, 1, 0, list, 1);
        WAIT_UNTIL(f.done);
        assert_int_not_equal(f.code, 0);
        if (rows[i].text && !strstr(f.why, rows[i].text))
            fail_msg("villain %zu: %s", i, f.why);
        fetch_end(&f);
        /* nor before a good one. */
        fetch_begin(&f, 1, 3, list, 2);
        WAIT_UNTIL(f.done);
        if (f.code)
            fail_msg("villain %zu: %s", i, f.why);
        staged_check(&f, n3->state.index, digest);
        fetch_end(&f);
        sender_stop(n1);
        sender_stop(n3);
    }
    for (int i = 0; i < 4; i++)
        free((void *)(uintptr_t)image_frames[i]);
}

/* image_transfer/strangers: at a member's address is somebody else. */
static void strangers(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    struct fetched f;
    static const char *const texts[] = {"certificate is named", "another node", "instead of a Hello", "connect", "host:port"};
    for (int i = 0; i < 5; i++) {
        struct node_peer m = member(1, n1->port);
        if (i == 0)
            snprintf(m.cert_name, sizeof m.cert_name, "node-9");
        else if (i == 1)
            m.uuid[0] ^= 1;
        else if (i == 2)
            m.id = 9;
        else if (i == 3)
            snprintf(m.host_port, sizeof m.host_port, "127.0.0.1:1");
        else
            snprintf(m.host_port, sizeof m.host_port, "nonsense");
        fetch_begin(&f, 1, 0, &m, 1);
        WAIT_UNTIL(f.done);
        assert_int_not_equal(f.code, 0);
        if (!strstr(f.why, texts[i]))
            fail_msg("case %d: %s", i, f.why);
        assert_int_equal(f.indexes, 0);
        fetch_end(&f);
    }
    WAIT_UNTIL(!sending(n1, 0).phase[0]);
}

/* image_transfer/no_room: never into the reserve. */
static void no_room(void **state)
{
    (void)state;
    struct sender *n1 = sender_start(1);
    struct node_peer list[] = {member(1, n1->port)};
    struct fetched f;
    fetch_begin(&f, 1, 0, list, 0);
    fetch_end(&f);
    memset(&f, 0, sizeof f);
    rate_set(n1, 1u << 20);
    image_limits.pause_ms = 1000;
    list[0] = member(1, 1);
    fetch_begin(&f, 1, 0, list, 1); /* nobody there: in the pause the disk fills */
    WAIT_UNTIL(strcmp(fetching(&f).phase, "waiting") == 0);
    pthread_mutex_lock(&f.d.config_mutex);
    f.config.space_reserve_len = 1ull << 60;
    pthread_mutex_unlock(&f.d.config_mutex);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, RAFTDIR_ENOSPC);
    assert_non_null(strstr(f.why, "space_reserve"));
    fetch_end(&f);
}

/* image_transfer/stop: of either side, in every phase. Ends at once, without `done`. */
static void stop(void **state)
{
    (void)state;
    struct fetched f;
    image_limits.io_timeout_ms = 20000;
    image_limits.pin_keep_ms = 20000;

    /* Somebody listens, and says nothing. */
    unsigned port;
    int fd = listen_any(&port);
    struct node_peer list[] = {member(1, port)};
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(strcmp(fetching(&f).phase, "connecting") == 0);
    usleep(50000);
    fetch_end(&f);
    assert_false(f.done);
    close(fd);

    /* Between two rounds. */
    image_limits.pause_ms = 20000;
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(strcmp(fetching(&f).phase, "waiting") == 0);
    fetch_end(&f);
    assert_false(f.done);
    image_limits.pause_ms = 50;

    /* In the middle; the sender waits then. */
    struct sender *n1 = sender_start(1);
    rate_set(n1, 200000);
    list[0] = member(1, n1->port);
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1 && fetching(&f).bytes > 0);
    assert_string_equal(fetching(&f).phase, "receiving");
    fetch_end(&f);
    assert_false(f.done);
    WAIT_UNTIL(strcmp(sending(n1, 0).phase, "waiting") == 0);
    sender_stop(n1);

    /* The sender, in the middle. */
    n1 = sender_start(1);
    rate_set(n1, 200000);
    list[0] = member(1, n1->port);
    fetch_begin(&f, 1, 0, list, 1);
    WAIT_UNTIL(f.indexes == 1 && fetching(&f).bytes > 0);
    sender_stop(n1);
    WAIT_UNTIL(f.done);
    assert_int_equal(f.code, RAFTDIR_EUNAVAIL);
    fetch_end(&f);

    /* While it is verified. */
    grow(&nodes[0].state, 8000);
    n1 = sender_start(1);
    list[0] = member(1, n1->port);
    unsigned caught = 0;
    for (int i = 0; i < 5 && !caught; i++) {
        fetch_begin(&f, 1, 0, list, 1);
        WAIT_UNTIL(f.done || strcmp(fetching(&f).phase, "verifying") == 0);
        bool done = f.done;
        fetch_end(&f);
        caught += !done && !f.done;
    }
    assert_true(caught > 0);
    sender_stop(n1);

    /* Nobody ever came. */
    n1 = sender_start(1);
    sender_stop(n1);
}

static int group_setup(void **state)
{
    (void)state;
    seed = support_seed();
    signal(SIGPIPE, SIG_IGN);
    logger_level_set(getenv("RAFTDIR_TEST_LOG") ? LOGGER_DEBUG : LOGGER_ERROR);
    image_chunk_len = CHUNK_LEN;
    char file[512];
    support_dir_make(dir, sizeof dir, "transfer");
    snprintf(staged, sizeof staged, "%s/staged", dir);
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    for (int i = 1; i <= 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "node-%d", i);
        support_cert_make(&ca, dir, name, &(struct support_cert){.cn = name});
        tls_of[i] = support_ctx(dir, "ca", name);
    }
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    for (int i = 1; i <= 3; i++)
        SSL_CTX_free(tls_of[i]);
    support_ca_free(&ca);
    support_dir_remove(dir);
    return 0;
}

/* An argument: only the tests whose names match. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole, setup, teardown),     cmocka_unit_test_setup_teardown(broken, setup, teardown),
        cmocka_unit_test_setup_teardown(resumed, setup, teardown),   cmocka_unit_test_setup_teardown(given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(refusals, setup, teardown),  cmocka_unit_test_setup_teardown(rate, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged, setup, teardown),   cmocka_unit_test_setup_teardown(villains, setup, teardown),
        cmocka_unit_test_setup_teardown(strangers, setup, teardown), cmocka_unit_test_setup_teardown(no_room, setup, teardown),
        cmocka_unit_test_setup_teardown(stop, setup, teardown),
        cmocka_unit_test_setup_teardown(undecided, setup, teardown),
    };
    return cmocka_run_group_tests_name("image_transfer", tests, group_setup, group_teardown);
}
