/* image_write.c - an image as a staged state: see image.h and proto/image.proto. image_read.c is the other side.
 *
 * Nothing of a frame is believed: its length, then each length inside is checked before it is used; rows must come in the order of the tables, each chunk where
 * the one before ended, with its checksum, and at the end as many rows as the header said. What the rows say is checked when all are there, from the
 * staged state itself, by image_check: it is the same scrub that a running node does.
 *
 * Commits: every IMAGE_COMMIT_LEN. `committed` is where the writer goes back to when the disk is full (store_rows.h), `taken` where it is.
 * Happy path: header, chunks, end -> complete -> image_writer_finish -> image_check. A connection breaks: position -> the sender seeks -> the same header, then chunks
 * from there. Anything wrong: `over`, and the staged state is rubbish. */
#include "image.h"
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "image_row.h"
#include "store_rows.h"

size_t image_commit_len = IMAGE_COMMIT_LEN;

struct place {
    uint64_t offset, rows; /* rows 0: nothing yet, and what follows doesn't count */
    uint32_t table;
    size_t key_len, value_len;
    uint8_t key[STORE_KEY_MAX], value[STORE_KEY_MAX];
};

struct image_writer {
    struct store_build *build;
    uint64_t cluster_id, incarnation;
    Raftdir__Image__Header *header; /* NULL: none yet */
    struct place taken, committed;
    Raftdir__Image__Position position;
    bool complete, over;
};

int image_writer_begin(const char *dir, const struct store_options *options, uint64_t cluster_id, uint64_t incarnation, struct image_writer **writer_r, struct err *err)
{
    struct image_writer *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(err, RAFTDIR_ENOMEM, "stage an image: out of memory");
    w->cluster_id = cluster_id;
    w->incarnation = incarnation;
    int rc = store_build_begin(dir, options, &w->build, err);
    if (rc) {
        free(w);
        return err ? err_wrap(err, "stage an image") : rc;
    }
    *writer_r = w;
    return 0;
}

static bool bytes_eq(const ProtobufCBinaryData *a, const ProtobufCBinaryData *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

static bool header_eq(const Raftdir__Image__Header *a, const Raftdir__Image__Header *b)
{
    return a->pin == b->pin && a->applied_index == b->applied_index && a->applied_term == b->applied_term && a->feature_level == b->feature_level &&
           a->log_time_ms == b->log_time_ms && a->configuration_index == b->configuration_index && a->rows == b->rows && bytes_eq(&a->digest, &b->digest) &&
           bytes_eq(&a->configuration, &b->configuration);
}

static int check_header(const struct image_writer *w, const Raftdir__Image__Header *h, struct err *err)
{
    if (h->version != IMAGE_VERSION)
        return err_set(err, RAFTDIR_EVERSION, "it has version %u; this program knows %d", h->version, IMAGE_VERSION);
    if (h->cluster_id != w->cluster_id || h->incarnation != w->incarnation)
        return err_set(err, RAFTDIR_EFOREIGN, "it is of cluster %016" PRIx64 " incarnation %" PRIu64 ", this node of %016" PRIx64 " incarnation %" PRIu64,
                       (uint64_t)h->cluster_id, (uint64_t)h->incarnation, w->cluster_id, w->incarnation);
    if (h->store_version != STORE_VERSION)
        return err_set(err, RAFTDIR_EVERSION, "its state has version %u; this program knows %d", h->store_version, STORE_VERSION);
    if (h->feature_level > FEATURE_LEVEL_MAX)
        return err_set(err, RAFTDIR_EVERSION, "its state has feature level %u; this program knows up to %d", h->feature_level, FEATURE_LEVEL_MAX);
    if (h->digest.len != 16 || h->configuration.len > IMAGE_CONFIGURATION_LEN_MAX || h->rows == 0)
        return err_set(err, RAFTDIR_EPROTO, "malformed header");
    return 0;
}

/* The header is given, in every case. */
static int take_header(struct image_writer *w, Raftdir__Image__Header *h, struct err *err)
{
    int rc = check_header(w, h, err);
    if (!rc && w->header && w->taken.rows && !header_eq(w->header, h))
        rc = err_set(err, RAFTDIR_EPROTO, "the transfer goes on with another image");
    if (!rc) {
        Raftdir__Image__Header *old = w->header;
        w->header = h;
        h = old;
    }
    if (h)
        raftdir__image__header__free_unpacked(h, NULL);
    return rc;
}

/* The disk is full: what wasn't committed is gone. */
static int add_failed(struct image_writer *w, int rc)
{
    if (rc == RAFTDIR_ENOSPC)
        w->taken = w->committed;
    return rc == RAFTDIR_EINVAL ? RAFTDIR_EPROTO : rc;
}

static int commit(struct image_writer *w, struct err *err)
{
    int rc = store_build_commit(w->build, err);
    if (rc)
        return add_failed(w, rc);
    w->committed = w->taken;
    return 0;
}

static int take_rows(struct image_writer *w, const uint8_t *p, size_t len, struct err *err)
{
    const uint8_t *end = p + len;
    struct store_row row = {0};
    uint64_t rows = w->taken.rows;
    while (p < end) {
        if (end - p < IMAGE_ROW_HEAD_LEN)
            return err_set(err, RAFTDIR_EPROTO, "a row is cut off");
        row = (struct store_row){.table = p[0], .key_len = get_le16(p + 1), .value_len = get_le32(p + 3)};
        p += IMAGE_ROW_HEAD_LEN;
        size_t left = (size_t)(end - p);
        if (row.key_len > left || row.value_len > left - row.key_len)
            return err_set(err, RAFTDIR_EPROTO, "a row is cut off");
        row.key = p;
        row.value = p + row.key_len;
        p += row.key_len + row.value_len;
        if (++rows > w->header->rows)
            return err_set(err, RAFTDIR_EPROTO, "more than the %" PRIu64 " rows that were announced", (uint64_t)w->header->rows);
        int rc = store_build_add(w->build, &row, err);
        if (rc)
            return add_failed(w, rc);
    }
    /* The builder has checked the key's length, and that of the value where it counts. */
    struct place *t = &w->taken;
    t->offset += len;
    t->rows = rows;
    t->table = row.table;
    t->key_len = row.key_len;
    memcpy(t->key, row.key, row.key_len);
    t->value_len = store_table_has_dups(row.table) ? row.value_len : 0;
    if (t->value_len)
        memcpy(t->value, row.value, t->value_len);
    return t->offset - w->committed.offset >= image_commit_len ? commit(w, err) : 0;
}

static int take_chunk(struct image_writer *w, const Raftdir__Image__Chunk *c, struct err *err)
{
    if (!w->header)
        return err_set(err, RAFTDIR_EPROTO, "a chunk before the header");
    if (c->offset != w->taken.offset)
        return err_set(err, RAFTDIR_EPROTO, "a chunk at %" PRIu64 " instead of %" PRIu64, (uint64_t)c->offset, w->taken.offset);
    if (c->data.len == 0 || c->data.len > IMAGE_CHUNK_LEN)
        return err_set(err, RAFTDIR_EPROTO, "a chunk of %zu bytes", c->data.len);
    if (c->checksum != image_chunk_sum(c->data.data, c->data.len, c->offset))
        return err_set(err, RAFTDIR_ECORRUPT, "the chunk at %" PRIu64 " was damaged on its way", (uint64_t)c->offset);
    return take_rows(w, c->data.data, c->data.len, err);
}

static int take_end(struct image_writer *w, const Raftdir__Image__End *e, struct err *err)
{
    if (!w->header)
        return err_set(err, RAFTDIR_EPROTO, "the end before the header");
    if (e->length != w->taken.offset || w->taken.rows != w->header->rows)
        return err_set(err, RAFTDIR_EPROTO, "it ends after %" PRIu64 " bytes and %" PRIu64 " rows; announced were %" PRIu64 " and %" PRIu64, w->taken.offset,
                       w->taken.rows, (uint64_t)e->length, (uint64_t)w->header->rows);
    int rc = commit(w, err);
    w->complete = rc == 0;
    return rc;
}

/* A peer's words go into logs: printable, and not too many. */
static int refused(const Raftdir__Image__Refusal *r, struct err *err)
{
    char text[200];
    size_t n = 0;
    for (const char *s = r->message ? r->message : ""; *s && n < sizeof text - 1; s++)
        text[n++] = (char)(isascii((unsigned char)*s) && isprint((unsigned char)*s) ? *s : '?');
    text[n] = '\0';
    return err_set(err, RAFTDIR_EUNAVAIL, "the sender refuses: %s", n ? text : err_text(r->code)); /* the codes' texts speak to clients */
}

int image_writer_frame(struct image_writer *w, const uint8_t *data, size_t len, struct err *err)
{
    if (w->over || w->complete)
        return err_set(err, RAFTDIR_EPROTO, "stage an image: the transfer is over");
    /* What protobuf allocates for it is bounded by a small multiple of this. */
    Raftdir__Image__Frame *f = len > IMAGE_FRAME_LEN_MAX ? NULL : raftdir__image__frame__unpack(NULL, len, data);
    int rc;
    if (!f) {
        rc = err_set(err, RAFTDIR_EPROTO, "malformed frame of %zu bytes", len);
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_HEADER) {
        Raftdir__Image__Header *h = f->header;
        f->header = NULL;
        f->body_case = RAFTDIR__IMAGE__FRAME__BODY__NOT_SET;
        rc = take_header(w, h, err);
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_CHUNK) {
        rc = take_chunk(w, f->chunk, err);
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_END) {
        rc = take_end(w, f->end, err);
    } else if (f->body_case == RAFTDIR__IMAGE__FRAME__BODY_REFUSAL) {
        rc = refused(f->refusal, err);
    } else {
        rc = err_set(err, RAFTDIR_EPROTO, "a frame of an unknown kind");
    }
    if (f)
        raftdir__image__frame__free_unpacked(f, NULL);
    w->over = rc && rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EUNAVAIL;
    if (rc && err)
        err_wrap(err, "stage an image");
    return rc;
}

void image_writer_progress(const struct image_writer *w, struct image_progress *p)
{
    *p = (struct image_progress){.rows = w->taken.rows, .bytes = w->taken.offset, .complete = w->complete};
    const Raftdir__Image__Header *h = w->header;
    if (!h)
        return;
    p->index = h->applied_index;
    p->term = h->applied_term;
    p->pin = h->pin;
    p->rows_total = h->rows;
    memcpy(p->digest, h->digest.data, sizeof p->digest);
    p->configuration_index = h->configuration_index;
    p->configuration_sum = XXH3_64bits(h->configuration.data, h->configuration.len);
    p->feature_level = h->feature_level;
    p->log_time_ms = h->log_time_ms;
}

const Raftdir__Image__Position *image_writer_position(struct image_writer *w)
{
    struct place *t = &w->taken;
    if (!t->rows)
        return NULL;
    raftdir__image__position__init(&w->position);
    w->position.pin = w->header->pin;
    w->position.offset = t->offset;
    w->position.table = t->table;
    w->position.key = (ProtobufCBinaryData){t->key_len, t->key};
    w->position.value = (ProtobufCBinaryData){t->value_len, t->value};
    return &w->position;
}

int image_writer_finish(struct image_writer *w, struct err *err)
{
    if (!w->complete || w->over)
        return err_set(err, RAFTDIR_EPROTO, "stage an image: it isn't complete");
    w->over = true;
    int rc = store_build_finish(w->build, err);
    if (rc && err)
        err_wrap(err, "stage an image");
    return rc;
}

void image_writer_end(struct image_writer **writer)
{
    struct image_writer *w = *writer;
    if (!w)
        return;
    *writer = NULL;
    store_build_end(&w->build);
    if (w->header)
        raftdir__image__header__free_unpacked(w->header, NULL);
    free(w);
}
