/* record.h - the bytes of the store's values: mailbox records, store records, server records, results. Pure; no allocation; thread-safe.
 *
 * Integers in values are little-endian, in keys big-endian (memcmp order is numeric order). Values have no alignment: they are
 * read with memcpy. Every value starts with the same head:
 *
 *   0  u8   RECORD_VERSION
 *   1  u8   kind: for a mailbox enum store_state, otherwise 0
 *   2  u16  flags (of the table; unknown ones are 0)
 *   4  u32  length of the whole value
 *   8  u64  XXH3-64 of the bytes from 16 on, seeded with the XXH3-64 of the key, that one seeded with bytes 0..7
 *
 * so a value that was flipped, cut, or is found under another key is not taken for a good one.
 *
 * mailbox (key: the name's key, name.h):
 *   16 u64 mailbox id   24 u64 store id   32 u64 generation   40 u64 store id that it moves to, or 0
 *   48 u64 reserved until (log time; 0: not reserved, or without an end)
 *   56 u64 mtime   64 u64 uidvalidity   72 u64 createdmodseq   80 u64 foldermodseq
 *   88 u32 x RECORD_FIELDS: where each field ends, counted from byte RECORD_HEAD_LEN; then the fields one after another
 * store (key: u64 store id):
 *   flags: bit 0 implicit (made from a plain server!partition)
 *   16 u64 epoch   24 u16 slots   26 u16 active slot   28 u32 0
 *   then for each slot: u64 server id, u16 server length, u16 partition length, server, partition. The server's name stands here as well,
 *   so that resolving a location is one descent. At most STORE_SLOTS_MAX slots.
 * server (key: 'i' || u64 server id):
 *   16 the name
 * result (key: u64 expiry || op id):
 *   16 the first 16 bytes of SHA-256 of the identity   32 packed raftdir.log.Result
 *
 * A field is only ever added behind the last, with a new RECORD_VERSION that the feature level allows: records of two versions
 * with the same content have different digests, so all replicas must write the same one. */
#ifndef RAFTDIR_RECORD_H
#define RAFTDIR_RECORD_H
#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "err.h"
#include "store.h"

enum record_field {
    RECORD_ACL,
    RECORD_MBTYPE,
    RECORD_UNIQUEID,
    RECORD_SPECIALUSE,
    RECORD_JMAPID,
    RECORD_NAME_HISTORY,
    RECORD_TOKEN, /* SHA-256 of the reservation's token; empty: a reservation without a token */
    RECORD_FIELDS
};
#define RECORD_COMMON_LEN 16
#define RECORD_HEAD_LEN (88 + 4 * RECORD_FIELDS)
#define RECORD_TOKEN_LEN 32
#define RECORD_LEN_MAX                                                                                                                     \
    (RECORD_HEAD_LEN + ACL_LEN_MAX + MBTYPE_LEN_MAX + 2 * UNIQUEID_LEN_MAX + SPECIALUSE_LEN_MAX + NAME_HISTORY_LEN_MAX + RECORD_TOKEN_LEN)
#define RECORD_IDENTITY_LEN 16
#define RECORD_RESULT_HEAD_LEN (RECORD_COMMON_LEN + RECORD_IDENTITY_LEN)
#define STORE_SLOTS_MAX 16
#define RECORD_STORE_LEN_MAX (32 + STORE_SLOTS_MAX * (12 + SERVER_LEN_MAX + PARTITION_LEN_MAX))
#define RECORD_SERVER_LEN_MAX (RECORD_COMMON_LEN + SERVER_LEN_MAX)
#define RECORD_STORE_IMPLICIT 1

/* A decoded mailbox record; the fields point into the value, or to wherever the writer has them. */
struct record {
    enum store_state state;
    uint64_t id, store_id, generation, moving_store_id, reserved_until_ms;
    uint64_t mtime, uidvalidity, createdmodseq, foldermodseq;
    struct store_str field[RECORD_FIELDS];
};

struct record_slot {
    uint64_t server_id;
    struct store_str server, partition;
};
struct record_store {
    bool implicit;
    uint64_t epoch;
    unsigned slots_n, active;
    struct record_slot slot[STORE_SLOTS_MAX];
};

/* RAFTDIR_ECORRUPT, with what is wrong, or RAFTDIR_EVERSION. The views point into `data`. */
int record_decode(const uint8_t *key, size_t key_len, const void *data, size_t len, struct record *r_r, struct err *err);
int record_decode_store(const uint8_t *key, size_t key_len, const void *data, size_t len, struct record_store *s_r, struct err *err);
/* Server and result: what is behind the head. */
int record_decode_rest(const uint8_t *key, size_t key_len, const void *data, size_t len, size_t head_len, struct store_str *rest_r,
                       struct err *err);

/* Writes the value into buf (RECORD_..._LEN_MAX; the fields' limits have been checked and are asserted) and returns its length. */
size_t record_encode(const uint8_t *key, size_t key_len, const struct record *r, uint8_t *buf);
size_t record_encode_store(const uint8_t *key, size_t key_len, const struct record_store *s, uint8_t *buf);
/* The head of a value whose bytes from 16 on are in place. */
void record_seal(const uint8_t *key, size_t key_len, uint8_t kind, uint16_t flags, uint8_t *buf, size_t len);

/* 128-bit numbers for the digest: sums mod 2^128. */
struct record_digest {
    uint64_t lo, hi;
};
void record_digest_add(struct record_digest *d, uint8_t table, const uint8_t *key, size_t key_len, const void *data, size_t len);
void record_digest_sub(struct record_digest *d, uint8_t table, const uint8_t *key, size_t key_len, const void *data, size_t len);
void record_digest_bytes(const struct record_digest *d, uint8_t bytes_r[16]); /* big-endian */

/* SHA-256; RAFTDIR_ENOMEM. */
int record_sha256(const void *data, size_t len, uint8_t hash_r[32], struct err *err);

static inline void put_be64(uint8_t *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, 8);
}
static inline uint64_t get_be64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return be64toh(v);
}
static inline void put_be32(uint8_t *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, 4);
}
static inline uint32_t get_be32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return be32toh(v);
}
static inline void put_le64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, 8);
}
static inline uint64_t get_le64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return le64toh(v);
}
static inline void put_le32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, 4);
}
static inline uint32_t get_le32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return le32toh(v);
}
static inline void put_le16(uint8_t *p, uint16_t v)
{
    v = htole16(v);
    memcpy(p, &v, 2);
}
static inline uint16_t get_le16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return le16toh(v);
}

static inline bool str_eq(struct store_str a, struct store_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.s, b.s, a.len) == 0);
}

#endif
