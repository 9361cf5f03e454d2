/* image.h - images as they travel (proto/image.proto): a header, chunks of rows, an end. Pure but for LMDB: the daemon and the simulation move the bytes.
 *
 * Reader: a state -> header, chunks, end. Writer: header, chunks, end -> a staged state, complete and durable, verified: nothing of a damaged or mixed-up
 * image gets through (each chunk's checksum, the count of rows, the digest and every index recomputed from the staged records by image_check).
 * Constant memory on both sides. One thread each. */
#ifndef RAFTDIR_IMAGE_H
#define RAFTDIR_IMAGE_H
#include <stdint.h>
#include "err.h"
#include "image.pb-c.h"
#include "store.h"

/* --- Reader ------------------------------------------------------------------------------------------------------------------ */
struct image_reader;
/* Takes a reference of the store and pins its newest snapshot until image_reader_end. */
int image_reader_begin(struct store *store, uint64_t cluster_id, uint64_t incarnation, uint64_t pin, struct image_reader **reader_r, struct err *err);
/* Packed raftdir.image.Frame with the header; borrowed until the next call. */
int image_reader_header(struct image_reader *r, const uint8_t **frame_r, size_t *len_r, struct err *err);
uint64_t image_reader_index(const struct image_reader *r); /* applied index of the snapshot */
/* Go on after what a receiver has (a Position of its); NULL: from the beginning. RAFTDIR_EINVAL: not a position of this image. */
int image_reader_seek(struct image_reader *r, const Raftdir__Image__Position *after, struct err *err);
/* The next packed Frame: a chunk, or the end, after which RAFTDIR_ENOTFOUND. Borrowed until the next call. */
int image_reader_next(struct image_reader *r, const uint8_t **frame_r, size_t *len_r, struct err *err);
/* Bytes by which the state has grown since the snapshot was pinned: past IMAGE_PIN_GROWTH_MAX the sender gives it up. */
uint64_t image_reader_growth(const struct image_reader *r);
void image_reader_end(struct image_reader **reader);

/* --- Writer ------------------------------------------------------------------------------------------------------------------ */
struct image_progress {
    uint64_t index, term;       /* of the image */
    uint64_t pin;               /* the sender's name of it: to be given when the transfer is resumed */
    uint64_t rows, rows_total, bytes; /* taken; they go back when the disk is full */
    bool complete;              /* the end has come: image_writer_finish is next */
    /* What image_check compares. */
    uint8_t digest[16];
    uint64_t configuration_index, configuration_sum; /* XXH3-64 of its bytes */
    uint64_t log_time_ms;
    uint32_t feature_level;
};
struct image_writer;
/* `dir`: an empty directory for the staged state. */
int image_writer_begin(const char *dir, const struct store_options *options, uint64_t cluster_id, uint64_t incarnation, struct image_writer **writer_r, struct err *err);
/* One packed Frame in the order of the reader. RAFTDIR_EPROTO, RAFTDIR_ECORRUPT (a checksum), RAFTDIR_EVERSION, RAFTDIR_EFOREIGN, RAFTDIR_EIO: this transfer
 * is over, begin another with another writer and an empty directory. RAFTDIR_EUNAVAIL: a Refusal; err has the sender's words; nothing has changed.
 * RAFTDIR_ENOSPC: what was taken since the last commit is gone (at most IMAGE_COMMIT_LEN): when there is room, go on from image_writer_position() as after a break.
 * A header after a break must be the same as before, unless there is nothing taken yet. */
int image_writer_frame(struct image_writer *w, const uint8_t *frame, size_t len, struct err *err);
void image_writer_progress(const struct image_writer *w, struct image_progress *progress_r);
/* Where to go on after a break; borrowed until the next call. NULL: from the beginning. */
const Raftdir__Image__Position *image_writer_position(struct image_writer *w);
/* After the end frame: everything is durable in the directory. */
int image_writer_finish(struct image_writer *w, struct err *err);
void image_writer_end(struct image_writer **writer);
/* Opens the finished state and verifies all of it against the header (store_verify). cb as there; 0 only when it is whole. */
int image_check(const char *dir, const struct store_options *options, const struct image_progress *image, const struct store_verify_cb *cb, struct err *err);

/* Tests and the simulation only: IMAGE_CHUNK_LEN and IMAGE_COMMIT_LEN, lowered before any reader or writer begins, so that a small state is an image of many
 * chunks. A row that is longer goes by itself. */
extern size_t image_chunk_len, image_commit_len;

#endif
