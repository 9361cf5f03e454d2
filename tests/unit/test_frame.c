/* test_frame.c - length-prefixed frames and the heads of peer frames: tables, cut anywhere, oversized, garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/frame.h"
#include "raftdir/limits.h"
#include "raftdir/peers_internal.h"

static void put(struct frame_reader *r, const void *p, size_t len)
{
    size_t room;
    uint8_t *to = frame_reader_room(r, len, &room);
    assert_non_null(to);
    assert_true(room >= len);
    memcpy(to, p, len);
    frame_reader_fill(r, len);
}

/* frame/header: big-endian. */
static void header(void **state)
{
    (void)state;
    uint8_t h[FRAME_HEADER_LEN];
    frame_header_put(h, 0x01020304);
    assert_memory_equal(h, "\1\2\3\4", 4);
}

/* frame/table: bytes in, frames out. */
static void table(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        size_t max;
        const char *frames[3]; /* what comes out */
        int last;              /* and then */
    } rows[] = {
        {"", 0, 10, {0}, 0},
        {"\0\0\0", 3, 10, {0}, 0},
        {"\0\0\0\1", 4, 10, {0}, 0},
        {"\0\0\0\1a", 5, 10, {"a"}, 0},
        {"\0\0\0\0", 4, 10, {""}, 0},
        {"\0\0\0\1a\0\0\0\2bc", 11, 10, {"a", "bc"}, 0},
        {"\0\0\0\1a\0\0\0\2b", 10, 10, {"a"}, 0},
        {"\0\0\0\12aaaaaaaaaa", 14, 10, {"aaaaaaaaaa"}, 0},
        {"\0\0\0\13", 4, 10, {0}, RAFTDIR_ETOOBIG},
        {"\0\0\0\1a\xff\xff\xff\xff", 9, 10, {"a"}, RAFTDIR_ETOOBIG},
        {"GET / HTTP/1.1\r\n", 16, 1 << 20, {0}, RAFTDIR_ETOOBIG},
        {"\0\0\0\1", 4, 0, {0}, RAFTDIR_ETOOBIG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        /* All at once, then a byte at a time. */
        for (int bytewise = 0; bytewise < 2; bytewise++) {
            struct frame_reader r = {0};
            struct err err;
            unsigned n = 0;
            const uint8_t *f;
            size_t len;
            int rc = 0;
            for (size_t at = 0; at < rows[i].len || (at == 0 && rows[i].len == 0);) {
                size_t step = bytewise ? 1 : rows[i].len;
                if (rows[i].len) /* put nothing for the empty row */
                    put(&r, rows[i].bytes + at, step);
                at += step ? step : 1;
                while ((rc = frame_reader_next(&r, rows[i].max, &f, &len, &err)) > 0) {
                    assert_non_null(rows[i].frames[n]);
                    assert_int_equal(len, strlen(rows[i].frames[n]));
                    assert_memory_equal(f, rows[i].frames[n], len);
                    n++;
                }
                if (rc < 0)
                    break;
            }
            assert_int_equal(rc, rows[i].last);
            assert_true(n == 3 || !rows[i].frames[n]);
            frame_reader_close(&r);
        }
    }
}

/* frame/promise_costs_nothing: a header that announces megabytes allocates none, and a large buffer is given back. */
static void memory(void **state)
{
    (void)state;
    struct frame_reader r = {0};
    const uint8_t *f;
    size_t len, room;
    uint8_t h[FRAME_HEADER_LEN];
    frame_header_put(h, 100u << 20);
    put(&r, h, sizeof h);
    assert_int_equal(frame_reader_next(&r, 200u << 20, &f, &len, NULL), 0);
    assert_true(r.size <= 4096);
    frame_reader_close(&r);

    frame_header_put(h, 4u << 20);
    put(&r, h, sizeof h);
    uint8_t *big = calloc(1, 4u << 20);
    assert_non_null(big);
    put(&r, big, 4u << 20);
    free(big);
    assert_int_equal(frame_reader_next(&r, 4u << 20, &f, &len, NULL), 1);
    assert_int_equal(len, 4u << 20);
    assert_non_null(frame_reader_room(&r, 100, &room));
    assert_true(r.size <= 65536);
    frame_reader_close(&r);
}

/* frame/random: any cut of a stream gives the same frames. */
static void random_cuts(void **state)
{
    (void)state;
    const char *env = getenv("SEED");
    unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 20;
    printf("SEED=%u\n", seed);
    srand(seed);
    for (int round = 0; round < 50; round++) {
        enum { FRAMES = 40 };
        size_t lens[FRAMES], total = 0;
        static uint8_t stream[FRAMES * 3100];
        for (int i = 0; i < FRAMES; i++) {
            lens[i] = (size_t)(rand() % 3 ? rand() % 50 : rand() % 3000);
            frame_header_put(stream + total, (uint32_t)lens[i]);
            memset(stream + total + 4, i, lens[i]);
            total += 4 + lens[i];
        }
        struct frame_reader r = {0};
        int n = 0;
        for (size_t at = 0; at < total;) {
            size_t step = 1 + (size_t)rand() % 2000;
            if (step > total - at)
                step = total - at;
            put(&r, stream + at, step);
            at += step;
            const uint8_t *f;
            size_t len;
            while (frame_reader_next(&r, 3000, &f, &len, NULL) == 1) {
                assert_int_equal(len, lens[n]);
                for (size_t k = 0; k < len; k++)
                    assert_int_equal(f[k], n);
                n++;
            }
        }
        assert_int_equal(n, FRAMES);
        frame_reader_close(&r);
    }
}

static size_t sample(uint8_t *buf, size_t size)
{
    Raftdir__Peer__Probe probe = RAFTDIR__PEER__PROBE__INIT;
    probe.term = 300;
    probe.seq = 77;
    Raftdir__Peer__Frame f = RAFTDIR__PEER__FRAME__INIT;
    f.version = 1;
    f.cluster_id = 0x1122334455667788ull;
    f.incarnation = UINT64_MAX;
    f.from = 300;
    f.to = 2;
    f.body_case = RAFTDIR__PEER__FRAME__BODY_PROBE;
    f.probe = &probe;
    assert_true(raftdir__peer__frame__get_packed_size(&f) <= size);
    return raftdir__peer__frame__pack(&f, buf);
}

/* peer_frame_head/as_protobuf: what we read is what protobuf reads, and every prefix that ends within the head is refused. */
static void head(void **state)
{
    (void)state;
    uint8_t buf[256];
    size_t len = sample(buf, sizeof buf);
    struct peer_frame_head h;
    assert_true(peer_frame_head(buf, len, &h));
    assert_true(h.version == 1 && h.cluster_id == 0x1122334455667788ull && h.incarnation == UINT64_MAX && h.from == 300 && h.to == 2);
    assert_int_equal(h.body, RAFTDIR__PEER__FRAME__BODY_PROBE);
    unsigned whole = 0;
    for (size_t n = 0; n < len; n++)
        whole += peer_frame_head(buf, n, &h);
    assert_int_equal(whole, 1); /* exactly the one that ends before the body */
}

/* peer_frame_head/refuses */
static void head_refuses(void **state)
{
    (void)state;
    uint8_t buf[300];
    size_t len = sample(buf, sizeof buf);
    struct peer_frame_head h;
    static const struct {
        const char *tail;
        size_t len;
        bool ok;
    } tails[] = {
        {"\x20\x05", 2, false},                 /* `from` again */
        {"\x08\x01", 2, false},                 /* version again */
        {"\x29\1\2\3\4\5\6\7\10", 9, false},    /* `to` as fixed64 */
        {"\xfb\x07", 2, false},                 /* a group begins */
        {"\0\0", 2, false},                     /* field 0 */
        {"\x52\x7f", 2, false},                 /* body longer than the frame */
        {"\x52\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, false},
        {"\x52\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 11, false}, /* varint over 64 bits */
        {"\xa0\x06\x01", 3, true},              /* unknown field 100 */
        {"\xa5\x06\1\2\3\4", 6, true},          /* unknown fixed32 */
    };
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        memcpy(buf + len, tails[i].tail, tails[i].len);
        assert_int_equal(peer_frame_head(buf, len + tails[i].len, &h), tails[i].ok);
    }
    assert_false(peer_frame_head((const uint8_t *)"", 0, &h));
}

/* peer_frame_head/random: whatever both take, both read alike. */
static void head_random(void **state)
{
    (void)state;
    srand(7);
    unsigned both = 0;
    for (int i = 0; i < 20000; i++) {
        uint8_t buf[256];
        size_t len = sample(buf, sizeof buf);
        for (int k = rand() % 3; k >= 0; k--)
            buf[(size_t)rand() % len] = (uint8_t)rand();
        struct peer_frame_head h;
        Raftdir__Peer__Frame *f = raftdir__peer__frame__unpack(NULL, len, buf);
        if (peer_frame_head(buf, len, &h) && f && h.version <= UINT32_MAX) {
            both++;
            assert_true(h.version == f->version && h.cluster_id == f->cluster_id && h.incarnation == f->incarnation && h.from == f->from && h.to == f->to);
        }
        if (f)
            raftdir__peer__frame__free_unpacked(f, NULL);
    }
    assert_true(both > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header),       cmocka_unit_test(table),        cmocka_unit_test(memory),
        cmocka_unit_test(random_cuts),  cmocka_unit_test(head),         cmocka_unit_test(head_refuses),
        cmocka_unit_test(head_random),
    };
    return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
