/* fuzz_image.c - what a member sends as an image, frame by frame, into a staged state, and the check of what came of it.
 *
 * Input: a byte of flags, then frames, each a little-endian u16 length and that many bytes. Flag 1: chunks get the offset and checksum that they must have, and the end and
 * the header the right sums, so that what is behind them is tried as well. Flag 2: the writer is asked for its position after each frame.
 * A frame is refused with a text or taken; a complete image is checked without a crash; one that passes can be read as the same number of rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/image.h"
#include "raftdir/image_row.h"
#include "raftdir/store_rows.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)
#define CLUSTER 1
#define INCARNATION 1

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[256], data_path[300], lock_path[300];

static void leave(void)
{
    unlink(data_path);
    unlink(lock_path);
    rmdir(dir);
}

static void make_dir(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/raftdir-fuzz-XXXXXX", tmp && strlen(tmp) < 200 ? tmp : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    MUST(mkdtemp(dir));
    snprintf(data_path, sizeof data_path, "%s/data.mdb", dir);
    snprintf(lock_path, sizeof lock_path, "%s/lock.mdb", dir);
    atexit(leave);
}

/* As the frame would be if its sums were right; NULL: it can't be. */
static uint8_t *repair(const uint8_t *frame, size_t len, const struct image_writer *w, size_t *len_r)
{
    Raftdir__Image__Frame *f = raftdir__image__frame__unpack(NULL, len, frame);
    struct image_progress p;
    if (!f)
        return NULL;
    image_writer_progress(w, &p);
    if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_CHUNK) {
        f->chunk->offset = p.bytes;
        f->chunk->checksum = image_chunk_sum(f->chunk->data.data, f->chunk->data.len, p.bytes);
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_END) {
        f->end->length = p.bytes;
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_HEADER) {
        f->header->cluster_id = CLUSTER;
        f->header->incarnation = INCARNATION;
    }
    uint8_t *copy = malloc(*len_r = raftdir__image__frame__get_packed_size(f));
    if (copy)
        raftdir__image__frame__pack(f, copy);
    raftdir__image__frame__free_unpacked(f, NULL);
    return copy;
}

static void read_back(const struct store_options *o, uint64_t want)
{
    struct store *store;
    struct store_txn *txn;
    struct store_rows *rows;
    struct store_row row;
    uint64_t n = 0;
    MUST(store_open(dir, o, &store, NULL) == 0 && store_read_begin(store, &txn, NULL) == 0 && store_rows_begin(txn, &rows, NULL) == 0);
    while (store_rows_next(rows, &row, NULL) == 0)
        n++;
    MUST(n == want);
    store_rows_end(&rows);
    store_read_end(&txn);
    store_close(&store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct store_options o = {.no_sync = true, .map_len = 8 << 20};
    struct image_writer *w;
    struct image_progress p;
    struct err err = {0};
    if (!dir[0])
        make_dir();
    if (size < 1)
        return 0;
    uint8_t flags = *data++;
    size--;
    unlink(data_path);
    unlink(lock_path);
    image_commit_len = 300;
    MUST(image_writer_begin(dir, &o, CLUSTER, INCARNATION, &w, &err) == 0);
    int rc = 0;
    while (size >= 2 && !rc) {
        size_t len = (size_t)(data[0] | data[1] << 8);
        data += 2;
        size -= 2;
        if (len > size)
            len = size;
        size_t frame_len = len;
        uint8_t *frame = flags & 1 ? repair(data, len, w, &frame_len) : NULL;
        if (!frame) {
            frame = malloc((frame_len = len) ? len : 1); /* exactly: one byte too far is seen */
            MUST(frame);
            memcpy(frame, data, len);
        }
        data += len;
        size -= len;
        err.text[0] = '\0';
        rc = image_writer_frame(w, frame, frame_len, &err);
        free(frame);
        MUST(rc <= 0 && (rc == 0) == (err.text[0] == '\0'));
        if (rc == RAFTDIR_EUNAVAIL || rc == RAFTDIR_ENOSPC)
            rc = 0;
        const Raftdir__Image__Position *position = flags & 2 ? image_writer_position(w) : NULL;
        if (position)
            MUST(position->table < TABLES && position->key.len > 0 && position->key.len <= STORE_KEY_MAX && position->offset > 0);
    }
    image_writer_progress(w, &p);
    MUST(!p.complete || (p.rows == p.rows_total && p.rows));
    rc = image_writer_finish(w, &err);
    MUST((rc == 0) == p.complete);
    image_writer_end(&w);
    if (rc == 0 && image_check(dir, &o, &p, NULL, &err) == 0)
        read_back(&o, p.rows);
    return 0;
}
