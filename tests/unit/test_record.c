/* test_record.c - the values' bytes: what goes in comes out, any flipped bit and any cut is found, another key's value is not taken; the
 * digest's arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "raftdir/record.h"
#include "support_store.h"

static const uint8_t key[] = "user\x1f" "anna";
#define KEY_LEN (sizeof key - 1)
static uint8_t buf[RECORD_LEN_MAX + 1];

static struct record sample(void)
{
    struct record r = {.state = STORE_RESERVED, .id = 1, .store_id = 2, .generation = UINT64_MAX, .moving_store_id = 4, .reserved_until_ms = 5,
                       .mtime = 6, .uidvalidity = 7, .createdmodseq = 8, .foldermodseq = 9};
    static const char *const texts[RECORD_FIELDS] = {"anna\tlrs\t", "", "uid-1", "\\Sent", "J1", "[1]", ""};
    for (int i = 0; i < RECORD_FIELDS; i++)
        r.field[i] = (struct store_str){texts[i], strlen(texts[i])};
    return r;
}

static void same(const struct record *a, const struct record *b)
{
    assert_int_equal(a->state, b->state);
    assert_true(a->id == b->id && a->store_id == b->store_id && a->generation == b->generation && a->moving_store_id == b->moving_store_id);
    assert_true(a->reserved_until_ms == b->reserved_until_ms && a->mtime == b->mtime && a->uidvalidity == b->uidvalidity);
    assert_true(a->createdmodseq == b->createdmodseq && a->foldermodseq == b->foldermodseq);
    for (int i = 0; i < RECORD_FIELDS; i++)
        assert_true(str_eq(a->field[i], b->field[i]));
}

static void test_round_trip(void **state)
{
    (void)state;
    struct record r = sample(), got;
    struct err err = {0};
    size_t len = record_encode(key, KEY_LEN, &r, buf);
    assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, &err), 0);
    same(&r, &got);
    /* At an odd address: nothing may depend on alignment. */
    memmove(buf + 1, buf, len);
    assert_int_equal(record_decode(key, KEY_LEN, buf + 1, len, &got, &err), 0);
    same(&r, &got);
    /* The largest there can be. */
    char *big = malloc(ACL_LEN_MAX);
    assert_non_null(big);
    memset(big, 'x', ACL_LEN_MAX);
    static const size_t max[RECORD_FIELDS] = {ACL_LEN_MAX, MBTYPE_LEN_MAX, UNIQUEID_LEN_MAX, SPECIALUSE_LEN_MAX, UNIQUEID_LEN_MAX, NAME_HISTORY_LEN_MAX, RECORD_TOKEN_LEN};
    for (int i = 0; i < RECORD_FIELDS; i++)
        r.field[i] = (struct store_str){big, max[i]};
    len = record_encode(key, KEY_LEN, &r, buf);
    assert_int_equal(len, RECORD_LEN_MAX);
    assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, &err), 0);
    same(&r, &got);
    free(big);
}

static void test_every_flip(void **state)
{
    (void)state;
    struct record r = sample(), got;
    size_t len = record_encode(key, KEY_LEN, &r, buf);
    for (size_t i = 0; i < len * 8; i++) {
        buf[i / 8] ^= (uint8_t)(1u << i % 8);
        assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
        buf[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    for (size_t cut = 0; cut < len; cut++)
        assert_int_equal(record_decode(key, KEY_LEN, buf, cut, &got, NULL), RAFTDIR_ECORRUPT);
    assert_int_equal(record_decode(key, KEY_LEN - 1, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
    assert_int_equal(record_decode((const uint8_t *)"user\x1f" "bert", KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
}

/* Well-sealed nonsense: the checks behind the checksum. */
static void test_sealed_nonsense(void **state)
{
    (void)state;
    struct record r = sample(), got;
    size_t len = record_encode(key, KEY_LEN, &r, buf);
    put_le32(buf + 88, 1000000);
    record_seal(key, KEY_LEN, STORE_ACTIVE, 0, buf, len);
    assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
    len = record_encode(key, KEY_LEN, &r, buf);
    put_le32(buf + 92, 0); /* ends before it starts */
    record_seal(key, KEY_LEN, STORE_ACTIVE, 0, buf, len);
    assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
    len = record_encode(key, KEY_LEN, &r, buf);
    record_seal(key, KEY_LEN, 9, 0, buf, len);
    assert_int_equal(record_decode(key, KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
    len = record_encode(key, KEY_LEN, &r, buf);
    record_seal(key, KEY_LEN, STORE_ACTIVE, 0, buf, len + 1); /* a byte behind the fields */
    assert_int_equal(record_decode(key, KEY_LEN, buf, len + 1, &got, NULL), RAFTDIR_ECORRUPT);
}

static void test_store(void **state)
{
    (void)state;
    struct record_store s = {.epoch = 7, .slots_n = 3, .active = 2}, got;
    const char *servers[] = {"be1.example.org", "be2", "be3"}, *partitions[] = {"p1", "", "default"};
    for (unsigned i = 0; i < 3; i++) {
        s.slot[i].server_id = i + 10;
        s.slot[i].server = (struct store_str){servers[i], strlen(servers[i])};
        s.slot[i].partition = (struct store_str){partitions[i], strlen(partitions[i])};
    }
    size_t len = record_encode_store(key, KEY_LEN, &s, buf);
    assert_int_equal(record_decode_store(key, KEY_LEN, buf, len, &got, NULL), 0);
    assert_int_equal(got.epoch, 7);
    assert_int_equal(got.active, 2);
    assert_false(got.implicit);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(got.slot[i].server_id, i + 10);
        assert_true(str_eq(got.slot[i].server, s.slot[i].server) && str_eq(got.slot[i].partition, s.slot[i].partition));
    }
    for (size_t i = 0; i < len * 8; i++) {
        buf[i / 8] ^= (uint8_t)(1u << i % 8);
        assert_int_equal(record_decode_store(key, KEY_LEN, buf, len, &got, NULL), RAFTDIR_ECORRUPT);
        buf[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    for (size_t cut = 16; cut < len; cut++) { /* sealed at each length */
        uint8_t part[256];
        memcpy(part, buf, cut);
        record_seal(key, KEY_LEN, 0, 0, part, cut);
        assert_int_equal(record_decode_store(key, KEY_LEN, part, cut, &got, NULL), RAFTDIR_ECORRUPT);
    }
}

static void test_digest(void **state)
{
    (void)state;
    uint64_t random = support_seed();
    struct record_digest a = {0, 0}, b = {0, 0};
    uint64_t values[200];
    for (int i = 0; i < 200; i++)
        values[i] = support_random(&random);
    for (int i = 0; i < 200; i++)
        record_digest_add(&a, 1, key, KEY_LEN, &values[i], 8);
    for (int i = 199; i >= 0; i--)
        record_digest_add(&b, 1, key, KEY_LEN, &values[i], 8);
    assert_true(a.lo == b.lo && a.hi == b.hi && (a.lo || a.hi));
    struct record_digest other = a;
    record_digest_add(&other, 2, key, KEY_LEN, &values[0], 8); /* the table counts */
    record_digest_add(&a, 1, key, KEY_LEN, &values[0], 8);
    assert_true(a.lo != other.lo);
    record_digest_sub(&a, 1, key, KEY_LEN, &values[0], 8);
    for (int i = 0; i < 200; i++)
        record_digest_sub(&a, 1, key, KEY_LEN, &values[(i * 7) % 200], 8);
    assert_true(a.lo == 0 && a.hi == 0); /* carries and borrows meet */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_every_flip), cmocka_unit_test(test_sealed_nonsense),
        cmocka_unit_test(test_store),      cmocka_unit_test(test_digest),
    };
    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
