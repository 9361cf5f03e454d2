/* frame.c - see frame.h.
 *
 * The buffer grows by doubling as bytes arrive, never by what a header promises: a peer that announces a large frame and sends nothing costs
 * nothing. A buffer that one large frame blew up is given back once it is empty. */
#include "frame.h"
#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BUF_LEN_MIN 4096
#define BUF_LEN_KEPT (256u << 10) /* larger ones are freed when empty */

void frame_header_put(uint8_t header_r[FRAME_HEADER_LEN], uint32_t len)
{
    header_r[0] = (uint8_t)(len >> 24);
    header_r[1] = (uint8_t)(len >> 16);
    header_r[2] = (uint8_t)(len >> 8);
    header_r[3] = (uint8_t)len;
}

static void reader_rewind(struct frame_reader *r)
{
    if (r->start == 0)
        return;
    size_t n = r->end - r->start;
    if (n)
        memmove(r->buf, r->buf + r->start, n);
    r->start = 0;
    r->end = n;
}

uint8_t *frame_reader_room(struct frame_reader *r, size_t want, size_t *room_r)
{
    if (want == 0)
        want = 1;
    if (r->start == r->end) {
        r->start = r->end = 0;
        if (r->size > BUF_LEN_KEPT && want <= BUF_LEN_KEPT)
            frame_reader_close(r);
    }
    if (r->size - r->end < want)
        reader_rewind(r);
    if (r->size - r->end < want) {
        if (want > SIZE_MAX / 4 || r->end > SIZE_MAX / 4)
            return NULL;
        size_t size = r->size ? r->size : BUF_LEN_MIN;
        while (size - r->end < want)
            size *= 2;
        uint8_t *buf = realloc(r->buf, size);
        if (!buf)
            return NULL;
        r->buf = buf;
        r->size = size;
    }
    *room_r = r->size - r->end;
    return r->buf + r->end;
}

void frame_reader_fill(struct frame_reader *r, size_t n)
{
    assert(n <= r->size - r->end);
    r->end += n;
}

int frame_reader_next(struct frame_reader *r, size_t len_max, const uint8_t **frame_r, size_t *len_r, struct err *err)
{
    if (r->end - r->start < FRAME_HEADER_LEN)
        return 0;
    const uint8_t *h = r->buf + r->start;
    uint32_t len = (uint32_t)h[0] << 24 | (uint32_t)h[1] << 16 | (uint32_t)h[2] << 8 | h[3];
    if (len > len_max)
        return err_set(err, RAFTDIR_ETOOBIG, "a frame of %u bytes, the limit is %zu", len, len_max);
    if (r->end - r->start - FRAME_HEADER_LEN < len)
        return 0;
    *frame_r = h + FRAME_HEADER_LEN;
    *len_r = len;
    r->start += FRAME_HEADER_LEN + (size_t)len;
    return 1;
}

void frame_reader_close(struct frame_reader *r)
{
    free(r->buf);
    memset(r, 0, sizeof *r);
}
