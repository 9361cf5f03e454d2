/* image_row.h - what reading and writing images share: a row's bytes in a chunk (proto/image.proto) and how long one can be. */
#ifndef RAFTDIR_IMAGE_ROW_H
#define RAFTDIR_IMAGE_ROW_H
#include <xxhash.h>
#include "limits.h"
#include "record.h"
#include "store_state.h"

#define IMAGE_ROW_HEAD_LEN 7 /* u8 table, u16 key length, u32 value length */
/* The longest values of all tables: a mailbox record, and the result of a request with as many operations as there may be, each with a generation, a mailbox id (ten
 * bytes and a tag at most), a count (five and a tag), and its own tag and length. Both fit into a chunk, so a longer row is damage. */
#define IMAGE_RESULT_LEN_MAX (RECORD_RESULT_HEAD_LEN + 64 + REQUEST_OPS_MAX * (11 + 11 + 6 + 2))
#define IMAGE_CONFIGURATION_LEN_MAX (64u << 10)
#define IMAGE_FRAME_EXTRA 128 /* tags, lengths, offset and checksum around a chunk's data; the header without its configuration */
_Static_assert(IMAGE_ROW_HEAD_LEN + STORE_KEY_MAX + RECORD_LEN_MAX <= IMAGE_CHUNK_LEN, "a mailbox record fits into a chunk");
_Static_assert(IMAGE_ROW_HEAD_LEN + STORE_KEY_MAX + IMAGE_RESULT_LEN_MAX <= IMAGE_CHUNK_LEN, "a result fits into a chunk");
_Static_assert(IMAGE_ROW_HEAD_LEN + STORE_KEY_MAX + RECORD_STORE_LEN_MAX <= IMAGE_CHUNK_LEN, "a store record fits into a chunk");
_Static_assert(IMAGE_CHUNK_LEN + IMAGE_FRAME_EXTRA <= IMAGE_FRAME_LEN_MAX, "a chunk fits into a frame");
_Static_assert(IMAGE_CONFIGURATION_LEN_MAX + IMAGE_FRAME_EXTRA <= IMAGE_CHUNK_LEN, "a header fits where a chunk does");

static inline uint64_t image_chunk_sum(const void *data, size_t len, uint64_t offset)
{
    return XXH3_64bits_withSeed(data, len, offset);
}

#endif
