/* frame.h - length-prefixed frames: a 4-byte big-endian length, then that many bytes. Pure; shared by daemon and library. */
#ifndef RAFTDIR_FRAME_H
#define RAFTDIR_FRAME_H
#include <stddef.h>
#include <stdint.h>
#include "err.h"

#define FRAME_HEADER_LEN 4
void frame_header_put(uint8_t header_r[FRAME_HEADER_LEN], uint32_t len);

/* Collects bytes and gives frames out. Zero it before the first use. */
struct frame_reader {
    uint8_t *buf;
    size_t start, end, size;
};
/* Room to read into: at least `want` bytes at the returned place; NULL without memory. Then say how many came with frame_reader_fill. */
uint8_t *frame_reader_room(struct frame_reader *r, size_t want, size_t *room_r);
void frame_reader_fill(struct frame_reader *r, size_t n);
/* 1 with a frame (borrowed until the next call on the reader), 0: more bytes are needed, RAFTDIR_ETOOBIG: longer than len_max (nothing of it was allocated). */
int frame_reader_next(struct frame_reader *r, size_t len_max, const uint8_t **frame_r, size_t *len_r, struct err *err);
void frame_reader_close(struct frame_reader *r);

#endif
