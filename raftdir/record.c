/* record.c - see record.h. */
#include "record.h"
#include <assert.h>
#include <openssl/evp.h>
#include <xxhash.h>

static uint64_t checksum(const uint8_t *key, size_t key_len, const uint8_t *data, size_t len)
{
    uint64_t seed = XXH3_64bits_withSeed(key, key_len, get_le64(data));
    return XXH3_64bits_withSeed(data + RECORD_COMMON_LEN, len - RECORD_COMMON_LEN, seed);
}

void record_seal(const uint8_t *key, size_t key_len, uint8_t kind, uint16_t flags, uint8_t *buf, size_t len)
{
    assert(len >= RECORD_COMMON_LEN && len <= UINT32_MAX);
    buf[0] = RECORD_VERSION;
    buf[1] = kind;
    put_le16(buf + 2, flags);
    put_le32(buf + 4, (uint32_t)len);
    put_le64(buf + 8, checksum(key, key_len, buf, len));
}

/* The head, for every kind of value. */
static int check_head(const uint8_t *key, size_t key_len, const uint8_t *p, size_t len, size_t head_len, struct err *err)
{
    if (len < head_len)
        return err_set(err, RAFTDIR_ECORRUPT, "record has %zu bytes, fewer than its head", len);
    if (get_le32(p + 4) != len)
        return err_set(err, RAFTDIR_ECORRUPT, "record has %zu bytes and says %u", len, get_le32(p + 4));
    uint64_t want = get_le64(p + 8), is = checksum(key, key_len, p, len);
    if (want != is)
        return err_set(err, RAFTDIR_ECORRUPT, "record's checksum is %016llx and should be %016llx", (unsigned long long)is, (unsigned long long)want);
    if (p[0] != RECORD_VERSION)
        return err_set(err, RAFTDIR_EVERSION, "record has version %u; this program knows %d", p[0], RECORD_VERSION);
    return 0;
}

int record_decode(const uint8_t *key, size_t key_len, const void *data, size_t len, struct record *r, struct err *err)
{
    const uint8_t *p = data;
    int rc = check_head(key, key_len, p, len, RECORD_HEAD_LEN, err);
    if (rc)
        return rc;
    if (p[1] != STORE_ACTIVE && p[1] != STORE_RESERVED)
        return err_set(err, RAFTDIR_ECORRUPT, "mailbox record has the unknown state %u", p[1]);
    r->state = p[1];
    r->id = get_le64(p + 16);
    r->store_id = get_le64(p + 24);
    r->generation = get_le64(p + 32);
    r->moving_store_id = get_le64(p + 40);
    r->reserved_until_ms = get_le64(p + 48);
    r->mtime = get_le64(p + 56);
    r->uidvalidity = get_le64(p + 64);
    r->createdmodseq = get_le64(p + 72);
    r->foldermodseq = get_le64(p + 80);
    uint32_t start = 0;
    for (int i = 0; i < RECORD_FIELDS; i++) {
        uint32_t end = get_le32(p + 88 + 4 * i);
        if (end < start || end > len - RECORD_HEAD_LEN)
            return err_set(err, RAFTDIR_ECORRUPT, "mailbox record's field %d ends at %u of %zu", i, end, len - RECORD_HEAD_LEN);
        r->field[i].s = (const char *)p + RECORD_HEAD_LEN + start;
        r->field[i].len = end - start;
        start = end;
    }
    if (start != len - RECORD_HEAD_LEN)
        return err_set(err, RAFTDIR_ECORRUPT, "mailbox record has %zu bytes behind its fields", len - RECORD_HEAD_LEN - start);
    return 0;
}

size_t record_encode(const uint8_t *key, size_t key_len, const struct record *r, uint8_t *p)
{
    put_le64(p + 16, r->id);
    put_le64(p + 24, r->store_id);
    put_le64(p + 32, r->generation);
    put_le64(p + 40, r->moving_store_id);
    put_le64(p + 48, r->reserved_until_ms);
    put_le64(p + 56, r->mtime);
    put_le64(p + 64, r->uidvalidity);
    put_le64(p + 72, r->createdmodseq);
    put_le64(p + 80, r->foldermodseq);
    size_t end = 0;
    for (int i = 0; i < RECORD_FIELDS; i++) {
        assert(r->field[i].len <= RECORD_LEN_MAX - RECORD_HEAD_LEN - end);
        if (r->field[i].len)
            memcpy(p + RECORD_HEAD_LEN + end, r->field[i].s, r->field[i].len);
        end += r->field[i].len;
        put_le32(p + 88 + 4 * i, (uint32_t)end);
    }
    record_seal(key, key_len, (uint8_t)r->state, 0, p, RECORD_HEAD_LEN + end);
    return RECORD_HEAD_LEN + end;
}

int record_decode_store(const uint8_t *key, size_t key_len, const void *data, size_t len, struct record_store *s, struct err *err)
{
    const uint8_t *p = data;
    int rc = check_head(key, key_len, p, len, 32, err);
    if (rc)
        return rc;
    s->implicit = get_le16(p + 2) & RECORD_STORE_IMPLICIT;
    s->epoch = get_le64(p + 16);
    s->slots_n = get_le16(p + 24);
    s->active = get_le16(p + 26);
    if (s->slots_n == 0 || s->slots_n > STORE_SLOTS_MAX || s->active >= s->slots_n)
        return err_set(err, RAFTDIR_ECORRUPT, "store record has %u slots, of which %u is active", s->slots_n, s->active);
    size_t pos = 32;
    for (unsigned i = 0; i < s->slots_n; i++) {
        if (len - pos < 12)
            return err_set(err, RAFTDIR_ECORRUPT, "store record ends in slot %u", i);
        size_t server_len = get_le16(p + pos + 8), partition_len = get_le16(p + pos + 10);
        if (server_len == 0 || server_len + partition_len > len - pos - 12)
            return err_set(err, RAFTDIR_ECORRUPT, "store record ends in slot %u", i);
        s->slot[i].server_id = get_le64(p + pos);
        s->slot[i].server = (struct store_str){(const char *)p + pos + 12, server_len};
        s->slot[i].partition = (struct store_str){(const char *)p + pos + 12 + server_len, partition_len};
        pos += 12 + server_len + partition_len;
    }
    if (pos != len)
        return err_set(err, RAFTDIR_ECORRUPT, "store record has %zu bytes behind its slots", len - pos);
    return 0;
}

size_t record_encode_store(const uint8_t *key, size_t key_len, const struct record_store *s, uint8_t *p)
{
    assert(s->slots_n >= 1 && s->slots_n <= STORE_SLOTS_MAX && s->active < s->slots_n);
    put_le64(p + 16, s->epoch);
    put_le16(p + 24, (uint16_t)s->slots_n);
    put_le16(p + 26, (uint16_t)s->active);
    put_le32(p + 28, 0);
    size_t pos = 32;
    for (unsigned i = 0; i < s->slots_n; i++) {
        const struct record_slot *slot = &s->slot[i];
        assert(slot->server.len <= SERVER_LEN_MAX && slot->partition.len <= PARTITION_LEN_MAX);
        put_le64(p + pos, slot->server_id);
        put_le16(p + pos + 8, (uint16_t)slot->server.len);
        put_le16(p + pos + 10, (uint16_t)slot->partition.len);
        memcpy(p + pos + 12, slot->server.s, slot->server.len);
        if (slot->partition.len)
            memcpy(p + pos + 12 + slot->server.len, slot->partition.s, slot->partition.len);
        pos += 12 + slot->server.len + slot->partition.len;
    }
    record_seal(key, key_len, 0, s->implicit ? RECORD_STORE_IMPLICIT : 0, p, pos);
    return pos;
}

int record_decode_rest(const uint8_t *key, size_t key_len, const void *data, size_t len, size_t head_len, struct store_str *rest,
                       struct err *err)
{
    int rc = check_head(key, key_len, data, len, head_len, err);
    if (rc)
        return rc;
    *rest = (struct store_str){(const char *)data + head_len, len - head_len};
    return 0;
}

static XXH128_hash_t digest_of(uint8_t table, const uint8_t *key, size_t key_len, const void *data, size_t len)
{
    /* The key goes in as the seed, so that nothing has to be copied together. */
    return XXH3_128bits_withSeed(data, len, XXH3_64bits_withSeed(key, key_len, table));
}

void record_digest_add(struct record_digest *d, uint8_t table, const uint8_t *key, size_t key_len, const void *data, size_t len)
{
    XXH128_hash_t h = digest_of(table, key, key_len, data, len);
    d->lo += h.low64;
    d->hi += h.high64 + (d->lo < h.low64);
}

void record_digest_sub(struct record_digest *d, uint8_t table, const uint8_t *key, size_t key_len, const void *data, size_t len)
{
    XXH128_hash_t h = digest_of(table, key, key_len, data, len);
    d->hi -= h.high64 + (d->lo < h.low64);
    d->lo -= h.low64;
}

void record_digest_bytes(const struct record_digest *d, uint8_t bytes[16])
{
    put_be64(bytes, d->hi);
    put_be64(bytes + 8, d->lo);
}

int record_sha256(const void *data, size_t len, uint8_t hash[32], struct err *err)
{
    if (EVP_Digest(data, len, hash, NULL, EVP_sha256(), NULL) != 1)
        return err_set(err, RAFTDIR_ENOMEM, "SHA-256 failed");
    return 0;
}
