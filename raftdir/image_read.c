/* image_read.c - a state as an image: see image.h and proto/image.proto. image_write.c is the other side.
 *
 * One read transaction holds the snapshot from begin to end: LMDB can't reuse a page that it shows, so the state's file grows meanwhile
 * (image_reader_growth). Memory: one chunk and its frame. Records are checked against their checksums on the way out: a damaged one ends the image with
 * RAFTDIR_ECORRUPT here, where the fault is, instead of at every receiver after all of it has travelled. */
#include "image.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "image_row.h"
#include "store_rows.h"

size_t image_chunk_len = IMAGE_CHUNK_LEN;

struct image_reader {
    struct store *store;
    struct store_txn *txn;
    struct store_rows *rows;
    struct store_meta meta;
    const uint8_t *configuration; /* lives in the transaction */
    size_t configuration_len;
    uint64_t configuration_index, rows_n;
    uint64_t cluster_id, incarnation, pin;
    uint64_t used_len;    /* of the store, at the beginning */
    uint64_t offset;      /* bytes of rows before the next chunk */
    struct store_row row; /* read already, for the next chunk */
    bool have_row, rows_ended, ended;
    uint8_t data[IMAGE_CHUNK_LEN], frame[IMAGE_CHUNK_LEN + IMAGE_FRAME_EXTRA];
};

int image_reader_begin(struct store *store, uint64_t cluster_id, uint64_t incarnation, uint64_t pin, struct image_reader **reader_r, struct err *err)
{
    struct image_reader *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(err, RAFTDIR_ENOMEM, "read an image: out of memory");
    r->store = store_ref(store);
    r->cluster_id = cluster_id;
    r->incarnation = incarnation;
    r->pin = pin;
    int rc = store_read_begin(store, &r->txn, err);
    if (!rc)
        rc = store_meta_get(r->txn, &r->meta, err);
    if (!rc)
        rc = store_configuration_get(r->txn, &r->configuration, &r->configuration_len, &r->configuration_index, err);
    if (!rc && r->configuration_len > IMAGE_CONFIGURATION_LEN_MAX)
        rc = err_set(err, RAFTDIR_ECORRUPT, "the configuration has %zu bytes", r->configuration_len);
    if (!rc)
        rc = store_rows_count(r->txn, &r->rows_n, err);
    if (!rc)
        rc = store_rows_begin(r->txn, &r->rows, err);
    if (rc) {
        if (err)
            err_wrap(err, "read an image");
        image_reader_end(&r);
        return rc;
    }
    r->used_len = store_used_len(store);
    *reader_r = r;
    return 0;
}

static void pack(struct image_reader *r, const Raftdir__Image__Frame *f, const uint8_t **frame_r, size_t *len_r)
{
    assert(raftdir__image__frame__get_packed_size(f) <= sizeof r->frame);
    *len_r = raftdir__image__frame__pack(f, r->frame);
    *frame_r = r->frame;
}

int image_reader_header(struct image_reader *r, const uint8_t **frame_r, size_t *len_r, struct err *err)
{
    (void)err;
    Raftdir__Image__Frame f = RAFTDIR__IMAGE__FRAME__INIT;
    Raftdir__Image__Header h = RAFTDIR__IMAGE__HEADER__INIT;
    h.version = IMAGE_VERSION;
    h.cluster_id = r->cluster_id;
    h.incarnation = r->incarnation;
    h.applied_index = r->meta.applied_index;
    h.applied_term = r->meta.applied_term;
    h.feature_level = r->meta.feature_level;
    h.log_time_ms = r->meta.log_time_ms;
    h.configuration_index = r->configuration_index;
    h.configuration = (ProtobufCBinaryData){r->configuration_len, (uint8_t *)(uintptr_t)r->configuration};
    h.digest = (ProtobufCBinaryData){sizeof r->meta.digest, r->meta.digest};
    h.rows = r->rows_n;
    h.store_version = STORE_VERSION;
    h.pin = r->pin;
    f.body_case = RAFTDIR__IMAGE__FRAME__BODY_HEADER;
    f.header = &h;
    pack(r, &f, frame_r, len_r);
    return 0;
}

uint64_t image_reader_index(const struct image_reader *r)
{
    return r->meta.applied_index;
}

int image_reader_seek(struct image_reader *r, const Raftdir__Image__Position *after, struct err *err)
{
    int rc;
    if (after && after->pin != r->pin)
        return err_set(err, RAFTDIR_EINVAL, "the position is of another image");
    if (after) {
        const struct store_row row = {.table = after->table, .key = after->key.data, .key_len = after->key.len,
                                      .value = after->value.data, .value_len = after->value.len};
        rc = store_rows_seek(r->rows, &row, err);
        if (rc == RAFTDIR_ENOTFOUND)
            rc = err_set(err, RAFTDIR_EINVAL, "the image has no row at the position");
    } else {
        store_rows_end(&r->rows);
        rc = store_rows_begin(r->txn, &r->rows, err);
    }
    if (rc) {
        r->ended = true; /* nobody knows where it stands */
        return rc;
    }
    r->offset = after ? after->offset : 0; /* the receiver's count: whoever lies spoils only what he gets */
    r->have_row = r->rows_ended = r->ended = false;
    return 0;
}

static int check_row(const struct store_row *row, struct err *err)
{
    const char *table = store_table_name(row->table);
    const uint8_t *key = row->key;
    struct store_str rest;
    if (row->key_len > STORE_KEY_MAX || row->value_len > IMAGE_CHUNK_LEN - IMAGE_ROW_HEAD_LEN - STORE_KEY_MAX)
        return err_set(err, RAFTDIR_ECORRUPT, "table %s has a row of %zu and %zu bytes", table, row->key_len, row->value_len);
    bool record;
    switch (row->table) {
    case TABLE_MAILBOX:
    case TABLE_STORES:
    case TABLE_OP:
        record = true;
        break;
    case TABLE_SERVERS:
        record = row->key_len && key[0] == 'i';
        break;
    case TABLE_META:
        record = !(row->key_len == STORE_VERSION_KEY_LEN && memcmp(key, STORE_VERSION_KEY, STORE_VERSION_KEY_LEN) == 0);
        break;
    default: /* index rows have no checksum: the receiver computes them anew */
        record = false;
    }
    if (!record)
        return 0;
    int rc = record_decode_rest(key, row->key_len, row->value, row->value_len, RECORD_COMMON_LEN, &rest, err);
    if (rc && err)
        err_wrap(err, "a record of table %s", table);
    return rc;
}

/* The next row into r->row. */
static int read_row(struct image_reader *r, struct err *err)
{
    int rc = store_rows_next(r->rows, &r->row, err);
    if (rc == RAFTDIR_ENOTFOUND) {
        r->rows_ended = true;
        return 0;
    }
    if (!rc)
        rc = check_row(&r->row, err);
    r->have_row = rc == 0;
    return rc;
}

int image_reader_next(struct image_reader *r, const uint8_t **frame_r, size_t *len_r, struct err *err)
{
    Raftdir__Image__Frame f = RAFTDIR__IMAGE__FRAME__INIT;
    Raftdir__Image__Chunk chunk = RAFTDIR__IMAGE__CHUNK__INIT;
    Raftdir__Image__End end = RAFTDIR__IMAGE__END__INIT;
    size_t len = 0;
    if (r->ended)
        return RAFTDIR_ENOTFOUND;
    for (;;) {
        if (!r->have_row && !r->rows_ended) {
            int rc = read_row(r, err);
            if (rc) {
                r->ended = true;
                return err ? err_wrap(err, "read an image") : rc;
            }
        }
        if (r->rows_ended)
            break;
        size_t row_len = IMAGE_ROW_HEAD_LEN + r->row.key_len + r->row.value_len;
        if (len && len + row_len > image_chunk_len)
            break;
        assert(row_len <= sizeof r->data - len); /* check_row */
        uint8_t *p = r->data + len;
        p[0] = (uint8_t)r->row.table;
        put_le16(p + 1, (uint16_t)r->row.key_len);
        put_le32(p + 3, (uint32_t)r->row.value_len);
        memcpy(p + IMAGE_ROW_HEAD_LEN, r->row.key, r->row.key_len);
        if (r->row.value_len)
            memcpy(p + IMAGE_ROW_HEAD_LEN + r->row.key_len, r->row.value, r->row.value_len);
        len += row_len;
        r->have_row = false;
    }
    if (len) {
        chunk.offset = r->offset;
        chunk.data = (ProtobufCBinaryData){len, r->data};
        chunk.checksum = image_chunk_sum(r->data, len, r->offset);
        f.body_case = RAFTDIR__IMAGE__FRAME__BODY_CHUNK;
        f.chunk = &chunk;
        r->offset += len;
    } else {
        end.length = r->offset;
        f.body_case = RAFTDIR__IMAGE__FRAME__BODY_END;
        f.end = &end;
        r->ended = true;
    }
    pack(r, &f, frame_r, len_r);
    return 0;
}

uint64_t image_reader_growth(const struct image_reader *r)
{
    uint64_t now = store_used_len(r->store);
    return now > r->used_len ? now - r->used_len : 0;
}

void image_reader_end(struct image_reader **reader)
{
    struct image_reader *r = *reader;
    if (!r)
        return;
    *reader = NULL;
    store_rows_end(&r->rows);
    store_read_end(&r->txn);
    store_close(&r->store);
    free(r);
}
