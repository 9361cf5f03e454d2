/* fuzz_frame.c - a byte stream cut into frames: however it arrives, the same frames come out as a plain reading of it gives.
 * The first byte says in which pieces it arrives. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/frame.h"

#define LEN_MAX 4096
#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t piece = (size_t)data[0] + 1, fed = 0, pos = 0;
    data++;
    size--;
    struct frame_reader r = {0};
    struct err err = {0};
    int rc = 0;
    while (rc >= 0 && fed < size) {
        size_t n = size - fed < piece ? size - fed : piece, room;
        uint8_t *place = frame_reader_room(&r, n, &room);
        MUST(place && room >= n);
        memcpy(place, data + fed, n);
        frame_reader_fill(&r, n);
        fed += n;
        const uint8_t *frame;
        size_t len;
        while ((rc = frame_reader_next(&r, LEN_MAX, &frame, &len, &err)) == 1) {
            MUST(pos + FRAME_HEADER_LEN + len <= fed && len <= LEN_MAX);
            MUST(memcmp(frame, data + pos + FRAME_HEADER_LEN, len) == 0);
            pos += FRAME_HEADER_LEN + len;
        }
    }
    if (rc < 0)
        MUST(rc == RAFTDIR_ETOOBIG && err.text[0] && size - pos >= FRAME_HEADER_LEN);
    MUST(r.size < 1u << 20);
    frame_reader_close(&r);
    return 0;
}
