/* peers_frame.c - the head of a peer frame: who sends what to whom, read from the packed protobuf without unpacking a body that may be megabytes long.
 *
 * Stricter than protobuf: each of the five head fields once, and no groups; so no later duplicate can say something else to whoever unpacks the whole frame. */
#include "peers_internal.h"
#include <string.h>

static bool varint_get(const uint8_t **p, const uint8_t *end, uint64_t *v_r)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (*p == end)
            return false;
        uint8_t b = *(*p)++;
        if (shift == 63 && b > 1)
            return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *v_r = v;
            return true;
        }
    }
    return false;
}

static uint64_t fixed64_get(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

bool peer_frame_head(const uint8_t *frame, size_t len, struct peer_frame_head *head_r)
{
    enum { VARINT, FIXED64, BYTES, FIXED32 = 5 };
    const uint8_t *p = frame, *end = frame + len;
    unsigned seen = 0;
    memset(head_r, 0, sizeof *head_r);
    while (p < end) {
        uint64_t tag, v = 0;
        if (!varint_get(&p, end, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
            return false;
        unsigned field = (unsigned)(tag >> 3), type = (unsigned)(tag & 7);
        switch (type) {
        case VARINT:
            if (!varint_get(&p, end, &v))
                return false;
            break;
        case FIXED64:
            if (end - p < 8)
                return false;
            v = fixed64_get(p);
            p += 8;
            break;
        case BYTES:
            if (!varint_get(&p, end, &v) || v > (uint64_t)(end - p))
                return false;
            p += v;
            break;
        case FIXED32:
            if (end - p < 4)
                return false;
            p += 4;
            break;
        default:
            return false;
        }
        if (field > 5) {
            if (type == BYTES && field >= 10)
                head_r->body = field;
            continue;
        }
        if (seen & 1u << field || type != (field == 2 ? FIXED64 : VARINT))
            return false;
        seen |= 1u << field;
        uint64_t *to[] = {NULL, &head_r->version, &head_r->cluster_id, &head_r->incarnation, &head_r->from, &head_r->to};
        *to[field] = v;
    }
    return seen == 0x3e;
}
