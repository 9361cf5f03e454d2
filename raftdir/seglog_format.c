/* seglog_format.c - bytes of segment headers, frames and batches (layout: seglog.c). Pure. */
#include "seglog_internal.h"
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

static const uint8_t SEGMENT_MAGIC[8] = {'R', 'D', 'I', 'R', 'L', 'O', 'G', '\n'};
#define FRAME_MAGIC 0x4d524652u /* "RFRM" */
#define SEGMENT_SUM_AT 72

void seglog_put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

void seglog_put_u64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

uint32_t seglog_get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t seglog_get_u64(const uint8_t *p)
{
    return (uint64_t)seglog_get_u32(p) | (uint64_t)seglog_get_u32(p + 4) << 32;
}

uint64_t seglog_sum(const uint8_t *p, size_t len, uint64_t salt)
{
    return XXH3_64bits_withSeed(p, len, salt);
}

bool seglog_all_zero(const uint8_t *p, size_t len)
{
    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

size_t seglog_frame_padded(size_t payload_len)
{
    return (payload_len + SEGLOG_FRAME_HEADER_LEN + SEGLOG_BLOCK_LEN - 1) / SEGLOG_BLOCK_LEN * SEGLOG_BLOCK_LEN;
}

void seglog_segment_header_put(uint8_t block_r[SEGLOG_BLOCK_LEN], const struct seglog_identity *who, const struct seglog_segment_header *h)
{
    memset(block_r, 0, SEGLOG_BLOCK_LEN);
    memcpy(block_r, SEGMENT_MAGIC, sizeof SEGMENT_MAGIC);
    seglog_put_u32(block_r + 8, LOG_FILE_VERSION);
    seglog_put_u32(block_r + 12, SEGLOG_BLOCK_LEN);
    seglog_put_u64(block_r + 16, h->number);
    seglog_put_u64(block_r + 24, h->first_seq);
    seglog_put_u64(block_r + 32, who->cluster_id);
    seglog_put_u64(block_r + 40, who->incarnation);
    memcpy(block_r + 48, who->uuid, NODE_UUID_LEN);
    seglog_put_u64(block_r + 64, h->salt);
    seglog_put_u64(block_r + SEGMENT_SUM_AT, seglog_sum(block_r, SEGMENT_SUM_AT, 0));
}

int seglog_segment_header_get(const uint8_t *block, size_t len, const struct seglog_identity *who, struct seglog_segment_header *h_r, struct err *err)
{
    if (len < SEGLOG_BLOCK_LEN || memcmp(block, SEGMENT_MAGIC, sizeof SEGMENT_MAGIC) != 0)
        return err_set(err, RAFTDIR_ECORRUPT, "not a raftdir log segment");
    /* The version stands at the same place in every version, the checksum need not. */
    uint32_t version = seglog_get_u32(block + 8);
    bool sum_ok = seglog_get_u64(block + SEGMENT_SUM_AT) == seglog_sum(block, SEGMENT_SUM_AT, 0);
    if (version != LOG_FILE_VERSION && !sum_ok && version > 0 && version < 1024)
        return err_set(err, RAFTDIR_EVERSION, "log version %u, this build reads %u", version, (unsigned)LOG_FILE_VERSION);
    if (!sum_ok)
        return err_set(err, RAFTDIR_ECORRUPT, "the segment's header is damaged");
    if (version != LOG_FILE_VERSION || seglog_get_u32(block + 12) != SEGLOG_BLOCK_LEN)
        return err_set(err, RAFTDIR_EVERSION, "log version %u with blocks of %u bytes, this build reads version %u with %u", version,
                       seglog_get_u32(block + 12), (unsigned)LOG_FILE_VERSION, SEGLOG_BLOCK_LEN);
    if (memcmp(block + 48, who->uuid, NODE_UUID_LEN) != 0)
        return err_set(err, RAFTDIR_EFOREIGN, "the log belongs to another node (its data directory UUID differs)");
    if (seglog_get_u64(block + 32) != who->cluster_id || seglog_get_u64(block + 40) != who->incarnation)
        return err_set(err, RAFTDIR_EFOREIGN,
                       "the log belongs to cluster %016" PRIx64 " incarnation %" PRIu64 ", this node to %016" PRIx64 " incarnation %" PRIu64,
                       seglog_get_u64(block + 32), seglog_get_u64(block + 40), who->cluster_id, who->incarnation);
    h_r->number = seglog_get_u64(block + 16);
    h_r->first_seq = seglog_get_u64(block + 24);
    h_r->salt = seglog_get_u64(block + 64);
    return 0;
}

void seglog_frame_header_put(uint8_t *p, const struct seglog_frame_header *h, uint64_t salt)
{
    seglog_put_u32(p, FRAME_MAGIC);
    seglog_put_u32(p + 4, h->batches);
    seglog_put_u32(p + 8, h->len);
    seglog_put_u32(p + 12, 0);
    seglog_put_u64(p + 16, h->seq);
    seglog_put_u64(p + 24, h->durable_seq);
    seglog_put_u64(p + 32, h->payload_sum);
    seglog_put_u64(p + 40, seglog_sum(p, 40, salt));
}

bool seglog_frame_header_get(const uint8_t *p, uint64_t salt, struct seglog_frame_header *h_r)
{
    if (seglog_get_u32(p) != FRAME_MAGIC || seglog_get_u64(p + 40) != seglog_sum(p, 40, salt))
        return false;
    h_r->batches = seglog_get_u32(p + 4);
    h_r->len = seglog_get_u32(p + 8);
    h_r->seq = seglog_get_u64(p + 16);
    h_r->durable_seq = seglog_get_u64(p + 24);
    h_r->payload_sum = seglog_get_u64(p + 32);
    return true;
}

int seglog_payload_len(const struct log_batch *batches, size_t max, size_t *len_r, uint32_t *batches_r)
{
    size_t len = 0;
    uint32_t n = 0;
    for (const struct log_batch *b = batches; b; b = b->next) {
        n++;
        len += SEGLOG_BATCH_HEADER_LEN;
        for (unsigned i = 0; i < b->n; i++) {
            len += SEGLOG_ENTRY_HEADER_LEN + (size_t)b->entries[i]->len;
            if (len > max)
                return RAFTDIR_ETOOBIG;
        }
    }
    *len_r = len;
    *batches_r = n;
    return len > max ? RAFTDIR_ETOOBIG : 0;
}

void seglog_payload_put(uint8_t *p, const struct log_batch *batches)
{
    for (const struct log_batch *b = batches; b; b = b->next) {
        seglog_put_u64(p, b->first);
        seglog_put_u32(p + 8, b->n);
        seglog_put_u32(p + 12, 0);
        p += SEGLOG_BATCH_HEADER_LEN;
        for (unsigned i = 0; i < b->n; i++) {
            const struct entry *e = b->entries[i];
            seglog_put_u64(p, e->term);
            seglog_put_u32(p + 8, e->len);
            seglog_put_u32(p + 12, e->type);
            memcpy(p + SEGLOG_ENTRY_HEADER_LEN, e->data, e->len);
            p += SEGLOG_ENTRY_HEADER_LEN + (size_t)e->len;
        }
    }
}
