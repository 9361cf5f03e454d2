/* test_image.c - images of random states: read, written, broken off and gone on with, damaged in every way that bytes can be; faults at the source; a full
 * disk; growth; memory. An image either gives the state it was made of, byte for byte, or is refused. Prints its seed. */
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>
#include <raft.h>
#include "raftdir/image.h"
#include "raftdir/image_row.h"
#include "raftdir/store_rows.h"
#include "raftdir/store_state.h"
#include "support_store.h"
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
size_t __sanitizer_get_current_allocated_bytes(void); /* its header isn't installed with every gcc */
#endif

#define CLUSTER 0x1122334455667788ull
#define INCARNATION 3
#define PIN 0xABCDEF0123456789ull

static size_t allocated(void)
{
#if defined(__SANITIZE_ADDRESS__)
    return __sanitizer_get_current_allocated_bytes();
#else
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
#endif
}

/* --- states ------------------------------------------------------------------------------------------------------------------ */

static char *random_acl(struct support_arena *a, uint64_t *r)
{
    static const char *const ids[] = {"anna", "ben", "group:staff", "anyone", "-carl", "dora@d.org", "emil"};
    size_t n = support_below(r, 40) == 0 ? 400 : support_below(r, 6), at = 0;
    char *acl = support_alloc(a, 64 + n * 20);
    for (size_t i = 0; i < n; i++)
        at += (size_t)(i < 7 ? sprintf(acl + at, "%s\t%s\t", ids[(i * 3 + n) % 7], i % 2 ? "lrs" : "lrswipkxtecda") : sprintf(acl + at, "u%zu\tlr\t", i));
    return acl;
}

static char *random_name(struct support_arena *a, uint64_t *r)
{
    char name[512];
    int at = support_below(r, 3) == 0 ? sprintf(name, "d%u.org!", support_below(r, 3)) : 0;
    at += sprintf(name + at, "user.u%u", support_below(r, 40));
    unsigned depth = support_below(r, 4);
    for (unsigned i = 0; i < depth; i++)
        at += sprintf(name + at, ".f%u", support_below(r, 4));
    if (support_below(r, 15) == 0)
        at += sprintf(name + at, ".%0*d", (int)(380 + support_below(r, 80)), 7);
    return support_text(a, name);
}

static Raftdir__Log__Op *random_op(struct support_arena *a, uint64_t *r)
{
    char server[16], text[32];
    Raftdir__Log__Op *op;
    snprintf(server, sizeof server, "be%u", support_below(r, 6));
    switch (support_below(r, 12)) {
    case 0:
        return support_delete(a, random_name(a, r), support_below(r, 2));
    case 1:
        op = support_op(a, RAFTDIR__LOG__OP__OP_RENAME);
        op->rename->from = random_name(a, r);
        op->rename->to = random_name(a, r);
        op->rename->has_subtree = op->rename->subtree = support_below(r, 2);
        return op;
    case 2:
        op = support_op(a, RAFTDIR__LOG__OP__OP_RESERVE);
        op->reserve->name = random_name(a, r);
        op->reserve->location = support_location(a, server, "p1");
        op->reserve->has_ttl_ms = true;
        op->reserve->ttl_ms = 1 + support_below(r, 20000);
        return op;
    case 3:
        op = support_op(a, RAFTDIR__LOG__OP__OP_MOVE_BEGIN);
        op->move_begin->name = random_name(a, r);
        op->move_begin->to = support_location(a, server, "p2");
        return op;
    case 4:
        op = support_op(a, RAFTDIR__LOG__OP__OP_SET_ACL);
        op->set_acl->name = random_name(a, r);
        op->set_acl->acl = random_acl(a, r);
        return op;
    default:
        op = support_put(a, random_name(a, r), server, support_below(r, 2) ? "p1" : "p2", random_acl(a, r));
        snprintf(text, sizeof text, "id-%u", support_below(r, 60)); /* several mailboxes have one */
        op->put->mailbox->uniqueid = support_text(a, text);
        if (support_below(r, 60) == 0) {
            char *history = support_alloc(a, 60001);
            memset(history, 'h', 60000);
            memcpy(history, "[\"", 2);
            memcpy(history + 59998, "\"]", 2);
            op->put->mailbox->name_history = history;
        }
        return op;
    }
}

static Raftdir__Log__Request *random_request(struct support_arena *a, struct support_store *s, uint64_t *r)
{
    Raftdir__Log__Op *ops[300];
    size_t n = support_below(r, 30) == 0 ? 300 : 1 + support_below(r, 5);
    s->log_time_ms += support_below(r, 2000);
    for (size_t i = 0; i < n; i++)
        ops[i] = random_op(a, r);
    return support_request(a, s, ops, n);
}

static void apply_entry(struct support_store *s, struct entry *e)
{
    struct apply_batch *b = apply_batch_create(&e, 1);
    assert_non_null(b);
    apply_batch_run(s->store, b);
    if (b->status)
        fail_msg("apply: %s", b->err.text);
    apply_batch_destroy(&b);
}

/* A configuration, then random requests; far on, so that there are checkpoints. */
static void grow(struct support_store *s, unsigned entries, uint64_t *r)
{
    if (s->index == 0) {
        struct raft_configuration c;
        struct raft_buffer buf;
        raft_configuration_init(&c);
        assert_int_equal(raft_configuration_add(&c, 3, "host:1/c/00112233445566778899aabbccddeeff", RAFT_VOTER), 0);
        assert_int_equal(raft_configuration_encode(&c, &buf), 0);
        struct entry *e = entry_create(++s->index, 1, RAFT_CHANGE, buf.base, (uint32_t)buf.len);
        apply_entry(s, e);
        entry_unref(e);
        raft_free(buf.base);
        raft_configuration_close(&c);
    }
    for (unsigned i = 0; i < entries; i++) {
        struct support_arena a = {0};
        support_apply(&a, s, random_request(&a, s, r));
        support_free(&a);
        if (i == entries / 2) {
            for (int k = 0; k < DIGEST_INTERVAL + 10; k++) {
                struct entry *e = entry_create(++s->index, 1, RAFT_BARRIER, NULL, 0);
                apply_entry(s, e);
                entry_unref(e);
            }
        }
    }
}

/* An empty directory for a staged state; support_store_close removes it. */
static void stage(const struct support_store *s, struct support_store *copy_r)
{
    struct support_store empty;
    char path[128];
    support_store_open(&empty, 0);
    store_close(&empty.store);
    snprintf(path, sizeof path, "%s/data.mdb", empty.dir);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/lock.mdb", empty.dir);
    assert_int_equal(unlink(path), 0);
    *copy_r = *s;
    copy_r->store = NULL;
    memcpy(copy_r->dir, empty.dir, sizeof empty.dir);
}

/* Are all rows the same? */
static bool same_rows(struct store *a, struct store *b)
{
    struct store *stores[2] = {a, b};
    struct store_txn *txn[2];
    struct store_rows *rows[2];
    struct store_row row[2];
    bool same = true;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_read_begin(stores[i], &txn[i], NULL), 0);
        assert_int_equal(store_rows_begin(txn[i], &rows[i], NULL), 0);
    }
    for (;;) {
        int rc = store_rows_next(rows[0], &row[0], NULL), rc2 = store_rows_next(rows[1], &row[1], NULL);
        same = rc == rc2 && (rc || (row[0].table == row[1].table && row[0].key_len == row[1].key_len && row[0].value_len == row[1].value_len &&
                                    memcmp(row[0].key, row[1].key, row[0].key_len) == 0 &&
                                    (row[0].value_len == 0 || memcmp(row[0].value, row[1].value, row[0].value_len) == 0)));
        if (rc || !same)
            break;
    }
    for (int i = 0; i < 2; i++) {
        store_rows_end(&rows[i]);
        store_read_end(&txn[i]);
    }
    return same;
}

static bool same_state(struct support_store *a, struct support_store *b)
{
    support_store_reopen(b, 0);
    return same_rows(a->store, b->store);
}

/* --- frames ------------------------------------------------------------------------------------------------------------------ */

struct frames {
    struct {
        uint8_t *data;
        size_t len;
    } * at;
    size_t n;
};

static void frames_add(struct frames *f, const uint8_t *data, size_t len)
{
    f->at = realloc(f->at, (f->n + 1) * sizeof *f->at);
    assert_non_null(f->at);
    f->at[f->n].data = malloc(len ? len : 1); /* exactly, so that a sanitizer sees one byte too far */
    assert_non_null(f->at[f->n].data);
    memcpy(f->at[f->n].data, data, len);
    f->at[f->n++].len = len;
}

static void frames_read(struct store *store, struct frames *f)
{
    struct image_reader *reader;
    struct err err = {0};
    const uint8_t *data;
    size_t len;
    int rc;
    *f = (struct frames){0};
    assert_int_equal(image_reader_begin(store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
    frames_add(f, data, len);
    while ((rc = image_reader_next(reader, &data, &len, &err)) == 0) {
        assert_true(len <= IMAGE_FRAME_LEN_MAX);
        frames_add(f, data, len);
    }
    assert_int_equal(rc, RAFTDIR_ENOTFOUND);
    assert_int_equal(image_reader_next(reader, &data, &len, &err), RAFTDIR_ENOTFOUND);
    image_reader_end(&reader);
    assert_null(reader);
}

static void frames_free(struct frames *f)
{
    for (size_t i = 0; i < f->n; i++)
        free(f->at[i].data);
    free(f->at);
}

static struct image_writer *writer(struct support_store *staged)
{
    struct image_writer *w;
    struct err err = {0};
    struct store_options o = {.no_sync = true};
    if (image_writer_begin(staged->dir, &o, CLUSTER, INCARNATION, &w, &err))
        fail_msg("%s", err.text);
    return w;
}

/* Gives all frames, finishes, checks: the first code that isn't 0. */
static int write_all(struct support_store *staged, const struct frames *f, struct err *err)
{
    struct image_writer *w = writer(staged);
    struct image_progress p;
    int rc = 0;
    for (size_t i = 0; i < f->n && !rc; i++)
        rc = image_writer_frame(w, f->at[i].data, f->at[i].len, err);
    image_writer_progress(w, &p);
    if (!rc)
        rc = image_writer_finish(w, err);
    image_writer_end(&w);
    assert_null(w);
    return rc ? rc : image_check(staged->dir, NULL, &p, NULL, err);
}

/* --- tests ------------------------------------------------------------------------------------------------------------------- */

static unsigned breaks, steps_back;

/* Carries an image over a connection that breaks; sometimes what was on its way is lost, sometimes it had come. */
static void carry(struct image_reader *reader, struct image_writer *w, unsigned one_in, uint64_t *r)
{
    struct err err = {0};
    const uint8_t *data;
    size_t len;
    struct image_progress p;
    for (;;) {
        assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
        if (image_writer_frame(w, data, len, &err))
            fail_msg("%s", err.text);
        for (;;) {
            int rc = image_reader_next(reader, &data, &len, &err);
            if (rc)
                fail_msg("%s", err.text);
            if (support_below(r, one_in) == 0)
                break; /* lost */
            rc = image_writer_frame(w, data, len, &err);
            if (rc)
                fail_msg("%s", err.text);
            image_writer_progress(w, &p);
            if (p.complete)
                return;
            if (support_below(r, one_in) == 0)
                break;
        }
        breaks++;
        /* The position travels. */
        const Raftdir__Image__Position *position = image_writer_position(w);
        if (position) {
            uint8_t packed[2048];
            assert_true(raftdir__image__position__get_packed_size(position) <= sizeof packed);
            len = raftdir__image__position__pack(position, packed);
            Raftdir__Image__Position *got = raftdir__image__position__unpack(NULL, len, packed);
            assert_non_null(got);
            if (image_reader_seek(reader, got, &err))
                fail_msg("%s", err.text);
            raftdir__image__position__free_unpacked(got, NULL);
        } else {
            assert_int_equal(image_reader_seek(reader, NULL, &err), 0);
        }
    }
}

static void round_trip(uint64_t *r)
{
    struct support_store s, staged;
    struct image_reader *reader;
    struct image_progress p;
    struct store_meta meta;
    struct store_txn *txn;
    struct err err = {0};
    uint8_t d1[16], d2[16];
    support_store_open(&s, 0);
    grow(&s, 20 + support_below(r, 200), r);
    stage(&s, &staged);
    struct image_writer *w = writer(&staged);
    image_writer_progress(w, &p);
    assert_true(p.index == 0 && p.rows == 0 && !p.complete);
    assert_null(image_writer_position(w));
    assert_int_equal(image_reader_begin(s.store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    carry(reader, w, 2 + support_below(r, 12), r);
    image_reader_end(&reader);
    image_writer_progress(w, &p);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_meta_get(txn, &meta, NULL), 0);
    store_read_end(&txn);
    assert_true(p.complete && p.index == meta.applied_index && p.term == meta.applied_term && p.pin == PIN && p.rows == p.rows_total && p.bytes > 0);
    assert_memory_equal(p.digest, meta.digest, 16);
    if (image_writer_finish(w, &err))
        fail_msg("%s", err.text);
    assert_int_not_equal(image_writer_finish(w, &err), 0);
    image_writer_end(&w);
    if (image_check(staged.dir, NULL, &p, NULL, &err))
        fail_msg("%s", err.text);
    assert_true(same_state(&s, &staged));
    assert_int_equal(support_verify(&staged, false), 0);
    /* And they go on alike. */
    for (int i = 0; i < 60; i++) {
        struct support_arena a = {0};
        Raftdir__Log__Request *req = random_request(&a, &s, r);
        struct entry *e = support_entry(&s, s.index + 1, &req, 1);
        s.index++;
        apply_entry(&s, e);
        apply_entry(&staged, e);
        entry_unref(e);
        support_free(&a);
    }
    support_digest(&s, d1);
    support_digest(&staged, d2);
    assert_memory_equal(d1, d2, 16);
    assert_true(same_rows(s.store, staged.store));
    assert_int_equal(support_verify(&staged, false), 0);
    support_store_close(&s);
    support_store_close(&staged);
}

static void test_round_trip(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    for (int i = 0; i < 12; i++) {
        image_chunk_len = i % 3 == 0 ? IMAGE_CHUNK_LEN : 1 + support_below(&r, i % 3 == 1 ? 600 : 20000);
        image_commit_len = 1 + support_below(&r, 100000);
        round_trip(&r);
    }
    print_message("%u breaks\n", breaks);
    assert_true(breaks > 500);
    image_chunk_len = IMAGE_CHUNK_LEN;
    image_commit_len = IMAGE_COMMIT_LEN;
}

/* Bytes of a frame changed in some way. */
static void damage(struct frames *f, size_t i, uint64_t *r)
{
    uint8_t *p = f->at[i].data;
    size_t len = f->at[i].len;
    switch (support_below(r, 6)) {
    case 0: /* one bit */
    case 1:
        p[support_random(r) % len] ^= (uint8_t)(1u << support_below(r, 8));
        break;
    case 2: /* a few bytes, rather in front where the lengths are */
        for (int k = 0; k < 3; k++)
            p[support_random(r) % (len < 40 ? len : 40)] = (uint8_t)support_random(r);
        break;
    case 3: /* cut */
        f->at[i].len = support_random(r) % len;
        break;
    case 4: /* a hole */
        memset(p + len / 2, 0, len - len / 2 < 100 ? len - len / 2 : 100);
        break;
    default: /* two frames change places, or one comes twice */
        if (i + 1 < f->n) {
            size_t k = i + 1 + support_below(r, (unsigned)(f->n - i - 1));
            uint8_t *q = malloc(f->at[k].len);
            assert_non_null(q);
            memcpy(q, f->at[k].data, f->at[k].len);
            free(f->at[i].data);
            f->at[i].data = q;
            f->at[i].len = f->at[k].len;
        }
    }
}

static void frames_copy(const struct frames *f, struct frames *c)
{
    *c = (struct frames){0};
    for (size_t i = 0; i < f->n; i++)
        frames_add(c, f->at[i].data, f->at[i].len);
}

static void test_damaged_frames(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames whole, f;
    struct err err = {0};
    size_t refused = 0, harmless = 0;
    image_chunk_len = 2500;
    support_store_open(&s, 0);
    grow(&s, 60, &r);
    frames_read(s.store, &whole);
    assert_true(whole.n > 12);
    for (int i = 0; i < 400; i++) {
        frames_copy(&whole, &f);
        unsigned n = 1 + support_below(&r, 2);
        for (unsigned k = 0; k < n; k++)
            damage(&f, support_below(&r, 3) ? support_below(&r, (unsigned)f.n) : support_below(&r, 2) ? 0 : f.n - 1, &r);
        stage(&s, &staged);
        err.text[0] = '\0';
        int rc = write_all(&staged, &f, &err);
        assert_true(rc != RAFTDIR_ENOSPC && rc != RAFTDIR_EIO && rc != RAFTDIR_ENOMEM);
        if (rc) {
            assert_true(err.text[0]);
            refused++;
        } else {
            assert_true(same_state(&s, &staged));
            harmless++;
        }
        support_store_close(&staged);
        frames_free(&f);
    }
    print_message("%zu refused, %zu harmless\n", refused, harmless);
    assert_true(refused > 200);
    frames_free(&whole);
    support_store_close(&s);
    image_chunk_len = IMAGE_CHUNK_LEN;
}

/* A sender that sends wrong rows with right checksums: a bug or bad memory there. The feed, recorded digests and principals that nobody has are not derivable. */
static void test_wrong_rows(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames whole, f;
    struct err err = {0};
    size_t tables[TABLES] = {0}, missed[TABLES] = {0};
    image_chunk_len = 3000;
    support_store_open(&s, 0);
    grow(&s, 60, &r);
    frames_read(s.store, &whole);
    for (int i = 0; i < 12 * TABLES; i++) {
        frames_copy(&whole, &f);
        /* Any row of this table; a reservoir of one. */
        uint32_t table = (uint32_t)i % TABLES;
        size_t at = 0, pos = 0, n = 0;
        for (size_t k = 1; k + 1 < f.n; k++) {
            Raftdir__Image__Frame *frame = raftdir__image__frame__unpack(NULL, f.at[k].len, f.at[k].data);
            assert_true(frame && frame->body_case == RAFTDIR__IMAGE__FRAME__BODY_CHUNK);
            const uint8_t *p = frame->chunk->data.data;
            for (size_t o = 0; o < frame->chunk->data.len; o += IMAGE_ROW_HEAD_LEN + get_le16(p + o + 1) + get_le32(p + o + 3)) {
                if (p[o] == table && support_below(&r, (unsigned)++n) == 0) {
                    at = k;
                    pos = o;
                }
            }
            raftdir__image__frame__free_unpacked(frame, NULL);
        }
        assert_true(n > 0);
        Raftdir__Image__Frame *frame = raftdir__image__frame__unpack(NULL, f.at[at].len, f.at[at].data);
        assert_non_null(frame);
        uint8_t *p = frame->chunk->data.data + pos;
        p[IMAGE_ROW_HEAD_LEN + support_random(&r) % (get_le16(p + 1) + get_le32(p + 3))] ^= (uint8_t)(1 + support_below(&r, 255));
        frame->chunk->checksum = image_chunk_sum(frame->chunk->data.data, frame->chunk->data.len, frame->chunk->offset);
        assert_int_equal(raftdir__image__frame__pack(frame, f.at[at].data), f.at[at].len);
        raftdir__image__frame__free_unpacked(frame, NULL);
        stage(&s, &staged);
        int rc = write_all(&staged, &f, &err);
        tables[table]++;
        missed[table] += rc == 0;
        if (rc == 0 && table != TABLE_FEED && table != TABLE_DIGESTS && table != TABLE_PRINCIPAL)
            fail_msg("a wrong row in table %s isn't found", store_table_name(table));
        support_store_close(&staged);
        frames_free(&f);
    }
    for (int t = 0; t < TABLES; t++)
        print_message("%s %zu/%zu ", store_table_name(t), missed[t], tables[t]);
    print_message("missed\n");
    frames_free(&whole);
    support_store_close(&s);
    image_chunk_len = IMAGE_CHUNK_LEN;
}

static int give(struct image_writer *w, const Raftdir__Image__Frame *f, struct err *err)
{
    size_t len = raftdir__image__frame__get_packed_size(f);
    uint8_t *p = malloc(len ? len : 1);
    assert_non_null(p);
    raftdir__image__frame__pack(f, p);
    int rc = image_writer_frame(w, p, len, err);
    free(p);
    return rc;
}

static void test_headers(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        int code;
    } cases[] = {{"good", 0}, {"version", RAFTDIR_EVERSION}, {"store version", RAFTDIR_EVERSION}, {"feature level", RAFTDIR_EVERSION},
                 {"cluster", RAFTDIR_EFOREIGN}, {"incarnation", RAFTDIR_EFOREIGN}, {"digest", RAFTDIR_EPROTO}, {"rows", RAFTDIR_EPROTO},
                 {"configuration", RAFTDIR_EPROTO}};
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames f;
    struct err err = {0};
    support_store_open(&s, 0);
    grow(&s, 30, &r);
    frames_read(s.store, &f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Raftdir__Image__Frame *frame = raftdir__image__frame__unpack(NULL, f.at[0].len, f.at[0].data);
        assert_non_null(frame);
        Raftdir__Image__Header *h = frame->header;
        uint8_t *big = calloc(1, IMAGE_CONFIGURATION_LEN_MAX + 1);
        ProtobufCBinaryData configuration = h->configuration;
        assert_non_null(big);
        h->version += i == 1;
        h->store_version += i == 2;
        h->feature_level += i == 3;
        h->cluster_id += i == 4;
        h->incarnation += i == 5;
        h->digest.len -= i == 6;
        h->rows = i == 7 ? 0 : h->rows;
        if (i == 8)
            h->configuration = (ProtobufCBinaryData){IMAGE_CONFIGURATION_LEN_MAX + 1, big};
        stage(&s, &staged);
        struct image_writer *w = writer(&staged);
        int rc = give(w, frame, &err);
        if (rc != cases[i].code)
            fail_msg("%s: %d", cases[i].what, rc);
        if (rc)
            assert_int_equal(image_writer_frame(w, f.at[0].data, f.at[0].len, &err), RAFTDIR_EPROTO); /* over */
        assert_int_not_equal(image_writer_finish(w, &err), 0);
        image_writer_end(&w);
        support_store_close(&staged);
        h->configuration = configuration;
        free(big);
        raftdir__image__frame__free_unpacked(frame, NULL);
    }
    frames_free(&f);
    support_store_close(&s);
}

/* One frame more, less, or in the wrong place. */
static void test_order_of_frames(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames f, other;
    struct err err = {0};
    struct image_writer *w;
    image_chunk_len = 4000;
    support_store_open(&s, 0);
    grow(&s, 40, &r);
    frames_read(s.store, &f);
    assert_true(f.n > 6);
    static const uint8_t empty[1];
    uint8_t *long_one = calloc(1, IMAGE_FRAME_LEN_MAX + 1);
    assert_non_null(long_one);
    for (int i = 0; i < 10; i++) {
        stage(&s, &staged);
        w = writer(&staged);
        int rc = 0;
        if (i == 0) { /* no header */
            rc = image_writer_frame(w, f.at[1].data, f.at[1].len, &err);
        } else if (i == 1) {
            rc = image_writer_frame(w, f.at[f.n - 1].data, f.at[f.n - 1].len, &err);
        } else {
            for (size_t k = 0; k < 3; k++)
                assert_int_equal(image_writer_frame(w, f.at[k].data, f.at[k].len, &err), 0);
            if (i == 2) /* twice */
                rc = image_writer_frame(w, f.at[2].data, f.at[2].len, &err);
            if (i == 3) /* one is missing */
                rc = image_writer_frame(w, f.at[4].data, f.at[4].len, &err);
            if (i == 4) /* the end too early */
                rc = image_writer_frame(w, f.at[f.n - 1].data, f.at[f.n - 1].len, &err);
            if (i == 5)
                rc = image_writer_frame(w, empty, 0, &err);
            if (i == 6)
                rc = image_writer_frame(w, long_one, IMAGE_FRAME_LEN_MAX + 1, &err);
            if (i == 7) /* not yet */
                rc = image_writer_finish(w, &err);
            if (i == 8) { /* after the end */
                for (size_t k = 3; k < f.n; k++)
                    assert_int_equal(image_writer_frame(w, f.at[k].data, f.at[k].len, &err), 0);
                rc = image_writer_frame(w, f.at[f.n - 1].data, f.at[f.n - 1].len, &err);
                assert_int_equal(image_writer_finish(w, &err), 0);
            }
            if (i == 9) { /* a refusal changes nothing */
                Raftdir__Image__Frame frame = RAFTDIR__IMAGE__FRAME__INIT;
                Raftdir__Image__Refusal refusal = RAFTDIR__IMAGE__REFUSAL__INIT;
                frame.body_case = RAFTDIR__IMAGE__FRAME__BODY_REFUSAL;
                frame.refusal = &refusal;
                refusal.code = RAFTDIR_EBUSY;
                refusal.message = (char[]){"two\nsends"};
                assert_int_equal(give(w, &frame, &err), RAFTDIR_EUNAVAIL);
                assert_non_null(strstr(err.text, "two?sends"));
                for (size_t k = 3; k < f.n; k++)
                    assert_int_equal(image_writer_frame(w, f.at[k].data, f.at[k].len, &err), 0);
                rc = RAFTDIR_EPROTO;
            }
        }
        assert_int_equal(rc, RAFTDIR_EPROTO);
        image_writer_end(&w);
        support_store_close(&staged);
    }
    free(long_one);
    /* More rows than announced: refused at once, not when the disk is full of them. */
    Raftdir__Image__Frame *header = raftdir__image__frame__unpack(NULL, f.at[0].len, f.at[0].data);
    assert_non_null(header);
    header->header->rows = 5;
    stage(&s, &staged);
    w = writer(&staged);
    assert_int_equal(give(w, header, &err), 0);
    raftdir__image__frame__free_unpacked(header, NULL);
    assert_int_equal(image_writer_frame(w, f.at[1].data, f.at[1].len, &err), RAFTDIR_EPROTO);
    image_writer_end(&w);
    support_store_close(&staged);
    /* After a break: another image is refused, unless nothing has come yet. */
    grow(&s, 3, &r);
    frames_read(s.store, &other);
    for (size_t n = 1; n < 3; n++) {
        stage(&s, &staged);
        w = writer(&staged);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(image_writer_frame(w, f.at[k].data, f.at[k].len, &err), 0);
        assert_int_equal(image_writer_frame(w, f.at[0].data, f.at[0].len, &err), 0);
        assert_int_equal(image_writer_frame(w, other.at[0].data, other.at[0].len, &err), n == 1 ? 0 : RAFTDIR_EPROTO);
        for (size_t k = 1; k < other.n && n == 1; k++)
            assert_int_equal(image_writer_frame(w, other.at[k].data, other.at[k].len, &err), 0);
        image_writer_end(&w);
        support_store_close(&staged);
    }
    frames_free(&f);
    frames_free(&other);
    support_store_close(&s);
    image_chunk_len = IMAGE_CHUNK_LEN;
}

/* Chunks with right sums whose rows aren't. */
static void test_malformed_rows(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        const char *data;
        size_t len;
    } cases[] = {
        {"nothing", "", 0},
        {"half a head", "\1\1\0", 3},
        {"head only", "\1\1\0\0\0\0\0", 7},
        {"key too long", "\1\3\0\0\0\0\0ab", 9},
        {"value too long", "\1\1\0\3\0\0\0abc", 10},
        {"value far too long", "\1\1\0\xff\xff\xff\xff" "abc", 10},
        {"both far too long", "\1\xff\xff\xff\xff\xff\xff" "abc", 10},
        {"no key", "\1\0\0\1\0\0\0a", 8},
        {"unknown table", "\x0d\1\0\1\0\0\0ab", 9},
        {"a second one cut off", "\1\1\0\1\0\0\0ab\1\1\0\5\0\0\0b", 17},
        {"a second one before the first", "\1\1\0\1\0\0\0ba\1\1\0\1\0\0\0aa", 18},
    };
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames f;
    struct err err = {0};
    support_store_open(&s, 0);
    grow(&s, 20, &r);
    frames_read(s.store, &f);
    uint8_t *large = malloc(IMAGE_CHUNK_LEN + 1);
    assert_non_null(large);
    memset(large, 1, IMAGE_CHUNK_LEN + 1);
    for (size_t i = 0; i <= sizeof cases / sizeof *cases; i++) {
        Raftdir__Image__Frame frame = RAFTDIR__IMAGE__FRAME__INIT;
        Raftdir__Image__Chunk chunk = RAFTDIR__IMAGE__CHUNK__INIT;
        bool last = i == sizeof cases / sizeof *cases;
        chunk.data = last ? (ProtobufCBinaryData){IMAGE_CHUNK_LEN + 1, large} : (ProtobufCBinaryData){cases[i].len, (uint8_t *)(uintptr_t)cases[i].data};
        chunk.checksum = image_chunk_sum(chunk.data.data, chunk.data.len, 0);
        frame.body_case = RAFTDIR__IMAGE__FRAME__BODY_CHUNK;
        frame.chunk = &chunk;
        stage(&s, &staged);
        struct image_writer *w = writer(&staged);
        assert_int_equal(image_writer_frame(w, f.at[0].data, f.at[0].len, &err), 0);
        int rc = give(w, &frame, &err);
        if (rc != RAFTDIR_EPROTO)
            fail_msg("%s: %d", last ? "too long" : cases[i].what, rc);
        image_writer_end(&w);
        support_store_close(&staged);
    }
    free(large);
    frames_free(&f);
    support_store_close(&s);
}

/* Nothing that the state can hold is too long for a frame. */
static void test_longest_rows(void **state)
{
    (void)state;
    struct support_store s, staged;
    struct support_arena a = {0};
    struct frames f;
    struct err err = {0};
    support_store_open(&s, 0);
    char *name = support_alloc(&a, NAME_LEN_MAX + 1), *acl = support_alloc(&a, ACL_LEN_MAX + 64), *history = support_alloc(&a, NAME_HISTORY_LEN_MAX + 1);
    size_t at = 0;
    memset(name, 'n', NAME_LEN_MAX);
    memcpy(name, "user.", 5);
    for (int i = 0; i < ACL_ENTRIES_MAX; i++)
        at += (size_t)sprintf(acl + at, "u%07d\tlrswip\t", i);
    assert_true(at <= ACL_LEN_MAX && at > ACL_LEN_MAX - 16);
    memset(history, 'h', NAME_HISTORY_LEN_MAX);
    memcpy(history, "[\"", 2);
    memcpy(history + NAME_HISTORY_LEN_MAX - 2, "\"]", 2);
    Raftdir__Log__Op *op = support_put(&a, name, "be1", "p1", acl);
    op->put->mailbox->name_history = history;
    assert_int_equal(support_do(&a, &s, op), 0);
    /* A result of as many operations as there may be; numbers are made long by nothing but use, so 10 bytes each is what a small test can't reach. */
    Raftdir__Log__Op **ops = support_alloc(&a, REQUEST_OPS_MAX * sizeof *ops);
    for (int i = 0; i < REQUEST_OPS_MAX; i++) {
        char box[32];
        snprintf(box, sizeof box, "user.u%04d", i);
        ops[i] = support_put(&a, box, "be1", "p1", "");
    }
    assert_int_equal(support_apply(&a, &s, support_request(&a, &s, ops, REQUEST_OPS_MAX))->code, 0);
    frames_read(s.store, &f);
    size_t longest = 0;
    for (size_t i = 0; i < f.n; i++)
        longest = f.at[i].len > longest ? f.at[i].len : longest;
    print_message("the longest frame has %zu bytes\n", longest);
    assert_true(longest > ACL_LEN_MAX + NAME_HISTORY_LEN_MAX && longest <= IMAGE_CHUNK_LEN + IMAGE_FRAME_EXTRA);
    stage(&s, &staged);
    if (write_all(&staged, &f, &err))
        fail_msg("%s", err.text);
    assert_true(same_state(&s, &staged));
    frames_free(&f);
    support_free(&a);
    support_store_close(&s);
    support_store_close(&staged);
}

static void test_positions(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s;
    struct image_reader *reader;
    struct err err = {0};
    const uint8_t *data;
    size_t len;
    support_store_open(&s, 0);
    grow(&s, 30, &r);
    assert_int_equal(image_reader_begin(s.store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    Raftdir__Image__Position p = RAFTDIR__IMAGE__POSITION__INIT;
    p.pin = PIN + 1;
    p.table = TABLE_META;
    p.key = (ProtobufCBinaryData){5, (uint8_t *)(uintptr_t)"state"};
    assert_int_equal(image_reader_seek(reader, &p, &err), RAFTDIR_EINVAL);
    p.pin = PIN;
    assert_int_equal(image_reader_seek(reader, &p, &err), 0);
    assert_int_equal(image_reader_next(reader, &data, &len, &err), 0);
    static const struct {
        uint32_t table;
        const char *key;
        size_t len;
    } bad[] = {{TABLE_META, "stale", 5}, {TABLES, "state", 5}, {UINT32_MAX, "state", 5}, {TABLE_MAILBOX, "", 0}, {TABLE_UNIQUEID, "id-1", 4}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        p.table = bad[i].table;
        p.key = (ProtobufCBinaryData){bad[i].len, (uint8_t *)(uintptr_t)bad[i].key};
        assert_int_equal(image_reader_seek(reader, &p, &err), RAFTDIR_EINVAL);
        assert_int_equal(image_reader_next(reader, &data, &len, &err), RAFTDIR_ENOTFOUND);
    }
    assert_int_equal(image_reader_seek(reader, NULL, &err), 0);
    assert_int_equal(image_reader_next(reader, &data, &len, &err), 0);
    image_reader_end(&reader);
    support_store_close(&s);
}

/* One row at the source is removed or changed, past everything that keeps indexes right. */
static void test_faults_at_the_source(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, copy, staged;
    struct err err = {0};
    support_store_open(&s, 0);
    grow(&s, 80, &r);
    for (int t = TABLE_MAILBOX; t <= TABLE_RESERVED; t++) {
        for (int change = 0; change < 2; change++) {
            struct store_txn *txn;
            MDB_cursor *cursor;
            MDB_val k, v;
            support_store_copy(&s, &copy);
            support_store_reopen(&copy, 0);
            assert_int_equal(store_write_begin(copy.store, &txn, &err), 0);
            assert_int_equal(store_cursor(txn, t, &cursor, &err), 0);
            assert_int_equal(mdb_cursor_get(cursor, &k, &v, MDB_FIRST), 0);
            uint8_t key[STORE_KEY_MAX], *value = malloc(v.mv_size + 1);
            size_t key_len = k.mv_size, len = v.mv_size;
            assert_non_null(value);
            memcpy(key, k.mv_data, key_len);
            memcpy(value, v.mv_data, len);
            assert_int_equal(mdb_cursor_del(cursor, 0), 0);
            if (change) {
                if (len) {
                    value[len - 1] ^= 1;
                    if (t == TABLE_PRINCIPAL)
                        memset(value, 0xFF, len);
                } else {
                    key[key_len - 1] ^= 1;
                }
                assert_int_equal(store_put(txn, t, key, key_len, value, len, 0, &err), 0);
            }
            free(value);
            assert_int_equal(store_write_commit(&txn, &err), 0);
            struct image_reader *reader;
            const uint8_t *data;
            size_t frame_len;
            int rc;
            assert_int_equal(image_reader_begin(copy.store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
            while ((rc = image_reader_next(reader, &data, &frame_len, &err)) == 0)
                ;
            image_reader_end(&reader);
            bool record = t == TABLE_MAILBOX || t == TABLE_STORES || t == TABLE_SERVERS || t == TABLE_OP;
            assert_int_equal(rc, record && change ? RAFTDIR_ECORRUPT : RAFTDIR_ENOTFOUND); /* found on the way out */
            if (rc == RAFTDIR_ENOTFOUND) {
                struct frames f;
                frames_read(copy.store, &f);
                stage(&s, &staged);
                rc = write_all(&staged, &f, &err);
                if (rc != RAFTDIR_ECORRUPT)
                    fail_msg("a fault in table %s: %d", store_table_name(t), rc);
                support_store_close(&staged);
                frames_free(&f);
            }
            support_store_close(&copy);
        }
    }
    support_store_close(&s);
}

static unsigned told_progress, told_problems;
static bool stop_now;
static void on_progress(void *data, uint64_t done, uint64_t total)
{
    (void)data;
    assert_true(done <= total);
    told_progress++;
}
static void on_problem(void *data, const char *text)
{
    (void)data;
    assert_true(*text);
    told_problems++;
}
static bool on_stop(void *data)
{
    (void)data;
    return stop_now;
}

/* A whole state that isn't the announced one. */
static void test_check(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct frames f;
    struct err err = {0};
    struct image_progress good, p;
    struct store_verify_cb cb = {.progress = on_progress, .problem = on_problem, .stop = on_stop};
    support_store_open(&s, 0);
    grow(&s, 40, &r);
    frames_read(s.store, &f);
    stage(&s, &staged);
    struct image_writer *w = writer(&staged);
    for (size_t i = 0; i < f.n; i++)
        assert_int_equal(image_writer_frame(w, f.at[i].data, f.at[i].len, &err), 0);
    image_writer_progress(w, &good);
    assert_int_equal(image_writer_finish(w, &err), 0);
    image_writer_end(&w);
    for (int i = 0; i < 9; i++) {
        p = good;
        p.index += i == 1;
        p.term += i == 2;
        p.digest[15] ^= i == 3;
        p.configuration_index += i == 4;
        p.configuration_sum += i == 5;
        p.feature_level += i == 6;
        p.log_time_ms += i == 7;
        p.rows_total += i == 8;
        told_progress = 0;
        int rc = image_check(staged.dir, NULL, &p, &cb, &err);
        if (rc != (i ? RAFTDIR_ECORRUPT : 0))
            fail_msg("case %d: %d, %s", i, rc, err.text);
        assert_true(i || told_progress);
    }
    stop_now = true;
    assert_int_equal(image_check(staged.dir, NULL, &good, &cb, &err), RAFTDIR_ECANCELED);
    stop_now = false;
    /* Problems are told, and the first one is in the text. */
    struct store_txn *txn;
    MDB_cursor *cursor;
    MDB_val k, v;
    support_store_reopen(&staged, 0);
    assert_int_equal(store_write_begin(staged.store, &txn, &err), 0);
    assert_int_equal(store_cursor(txn, TABLE_RACL, &cursor, &err), 0);
    assert_int_equal(mdb_cursor_get(cursor, &k, &v, MDB_FIRST), 0);
    assert_int_equal(mdb_cursor_del(cursor, 0), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    store_close(&staged.store);
    p = good;
    p.rows_total--;
    assert_int_equal(image_check(staged.dir, NULL, &p, &cb, &err), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(err.text, "racl"));
    assert_true(told_problems > 0);
    /* A recorded digest that can't be. */
    support_store_reopen(&staged, 0);
    assert_int_equal(store_write_begin(staged.store, &txn, &err), 0);
    assert_int_equal(store_checkpoint_put(txn, (good.index / DIGEST_INTERVAL + 1) * DIGEST_INTERVAL, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    store_close(&staged.store);
    p.rows_total++;
    assert_int_equal(image_check(staged.dir, NULL, &p, &cb, &err), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(err.text, "recorded digests"));
    support_store_close(&staged);
    stage(&s, &staged);
    assert_int_not_equal(image_check(staged.dir, NULL, &good, &cb, &err), 0); /* nothing there */
    support_store_close(&staged);
    frames_free(&f);
    support_store_close(&s);
}

static void test_disk_full(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, staged;
    struct image_reader *reader;
    struct image_writer *w;
    struct image_progress p;
    struct rlimit old, limit;
    struct err err = {0};
    const uint8_t *data;
    size_t len, fulls = 0;
    bool sent = true;
    int rc;
    image_chunk_len = 3000;
    image_commit_len = 20000;
    support_store_open(&s, 0);
    grow(&s, 300, &r);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){100 << 10, old.rlim_max};
    stage(&s, &staged);
    w = writer(&staged);
    assert_int_equal(image_reader_begin(s.store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
    for (int i = 0; i < 100000; i++) {
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        rc = image_writer_frame(w, data, len, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        image_writer_progress(w, &p);
        if (p.complete)
            break;
        if (rc == 0) {
            sent = true;
            assert_int_equal(image_reader_next(reader, &data, &len, &err), 0);
            continue;
        }
        assert_int_equal(rc, RAFTDIR_ENOSPC);
        if (++fulls % 2 == 0)
            limit.rlim_cur += 40 << 10;
        const Raftdir__Image__Position *position = image_writer_position(w);
        steps_back += p.bytes > 0;
        if (image_reader_seek(reader, position, &err))
            fail_msg("%s", err.text);
        assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
        assert_true(sent);
        sent = false;
    }
    print_message("%zu times full, %u steps back, %llu bytes, %d\n", fulls, steps_back, (unsigned long long)p.bytes, p.complete);
    assert_true(p.complete && fulls > 4 && steps_back > 2);
    assert_int_equal(image_writer_finish(w, &err), 0);
    image_writer_end(&w);
    image_reader_end(&reader);
    if (image_check(staged.dir, NULL, &p, NULL, &err))
        fail_msg("%s", err.text);
    assert_true(same_state(&s, &staged));
    support_store_close(&staged);
    support_store_close(&s);
    image_chunk_len = IMAGE_CHUNK_LEN;
    image_commit_len = IMAGE_COMMIT_LEN;
}

/* Writes go on while an image is read: it stays what it was, the growth is told, and the store may be closed by everybody else. */
static void test_pin(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s, before, staged;
    struct image_reader *reader;
    struct err err = {0};
    const uint8_t *data;
    size_t len;
    struct image_progress p;
    int rc;
    image_chunk_len = 5000;
    support_store_open(&s, 0);
    grow(&s, 60, &r);
    support_store_copy(&s, &before);
    assert_int_equal(image_reader_begin(s.store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    assert_int_equal(image_reader_growth(reader), 0);
    assert_int_equal(image_reader_index(reader), s.index);
    stage(&s, &staged);
    struct image_writer *w = writer(&staged);
    assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
    assert_int_equal(image_writer_frame(w, data, len, &err), 0);
    uint64_t growth = 0;
    for (int i = 0; (rc = image_reader_next(reader, &data, &len, &err)) == 0; i++) {
        assert_int_equal(image_writer_frame(w, data, len, &err), 0);
        if (i < 20)
            grow(&s, 5, &r);
        if (i == 20)
            store_close(&s.store);
        assert_true(image_reader_growth(reader) >= growth);
        growth = image_reader_growth(reader);
    }
    assert_int_equal(rc, RAFTDIR_ENOTFOUND);
    assert_true(growth > 100000);
    image_reader_end(&reader);
    image_writer_progress(w, &p);
    assert_int_equal(image_writer_finish(w, &err), 0);
    image_writer_end(&w);
    if (image_check(staged.dir, NULL, &p, NULL, &err))
        fail_msg("%s", err.text);
    support_store_reopen(&before, 0);
    assert_true(same_state(&before, &staged));
    support_store_reopen(&s, 0); /* was closed with the reader: else LMDB would refuse, or the second would spoil the first's locks */
    assert_int_equal(support_verify(&s, false), 0);
    support_store_close(&s);
    support_store_close(&before);
    support_store_close(&staged);
    image_chunk_len = IMAGE_CHUNK_LEN;
}

/* As many mailboxes as a site has: memory on either side doesn't depend on their number. */
static void fill(struct support_store *s, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to;) {
        struct support_arena a = {0};
        Raftdir__Log__Op *ops[500];
        size_t n = 0;
        for (; n < 500 && i < to; n++, i++) {
            char name[64], uniqueid[32], acl[64];
            snprintf(name, sizeof name, "user.u%06u.folder%02u", i / 20, i % 20);
            snprintf(uniqueid, sizeof uniqueid, "uid%016llx", i * 0x9E3779B97F4A7C15ull);
            snprintf(acl, sizeof acl, "u%06u\tlrswipkxtecda\tgroup:staff\tlrs\t", i / 20);
            ops[n] = support_put(&a, name, i % 3 ? "be1" : "be2", "p1", acl);
            ops[n]->put->mailbox->uniqueid = support_text(&a, uniqueid);
        }
        Raftdir__Log__Request *req = support_request(&a, s, ops, n);
        struct entry *e = support_entry(s, ++s->index, &req, 1);
        apply_entry(s, e);
        entry_unref(e);
        support_free(&a);
    }
}

static size_t peak(struct support_store *s, uint64_t *bytes_r)
{
    struct support_store staged;
    struct image_reader *reader;
    struct image_progress p;
    struct err err = {0};
    const uint8_t *data;
    size_t len, most = 0;
    stage(s, &staged);
    size_t before = allocated();
    struct image_writer *w = writer(&staged);
    assert_int_equal(image_reader_begin(s->store, CLUSTER, INCARNATION, PIN, &reader, &err), 0);
    assert_int_equal(image_reader_header(reader, &data, &len, &err), 0);
    do {
        if (image_writer_frame(w, data, len, &err))
            fail_msg("%s", err.text);
        size_t now = allocated();
        if (now > before && now - before > most)
            most = now - before;
    } while (image_reader_next(reader, &data, &len, &err) == 0);
    image_reader_end(&reader);
    image_writer_progress(w, &p);
    *bytes_r = p.bytes;
    assert_int_equal(image_writer_finish(w, &err), 0);
    image_writer_end(&w);
    if (image_check(staged.dir, NULL, &p, NULL, &err))
        fail_msg("%s", err.text);
    support_store_close(&staged);
    return most;
}

static void test_memory(void **state)
{
    (void)state;
    struct support_store s;
    uint64_t bytes_small, bytes;
    support_store_open(&s, 0);
    fill(&s, 0, 50000);
    size_t small = peak(&s, &bytes_small);
    fill(&s, 50000, 200000);
    size_t most = peak(&s, &bytes);
    print_message("%llu MB of rows: %zu KB; %llu MB: %zu KB\n", (unsigned long long)bytes_small >> 20, small >> 10, (unsigned long long)bytes >> 20, most >> 10);
    assert_true(bytes > 3 * bytes_small && bytes_small > IMAGE_COMMIT_LEN);
    assert_true(most < 3 * IMAGE_COMMIT_LEN);
    assert_true(most < small + (8u << 20));
    support_store_close(&s);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damaged_frames), cmocka_unit_test(test_wrong_rows), cmocka_unit_test(test_headers),
        cmocka_unit_test(test_order_of_frames), cmocka_unit_test(test_malformed_rows), cmocka_unit_test(test_longest_rows), cmocka_unit_test(test_positions), cmocka_unit_test(test_faults_at_the_source), cmocka_unit_test(test_check),
        cmocka_unit_test(test_disk_full), cmocka_unit_test(test_pin), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
