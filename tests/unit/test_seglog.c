/* test_seglog.c - the log on disk against a model: every file call fails once, the power goes at every file call, every byte flips once.
 *
 * The disk is support_disk.h's. SEED=n replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "raftdir/seglog_internal.h"
#include "support_certs.h"
#include "support_disk.h"

#define SEGMENT_LEN 65536
static const struct seglog_identity me = {.cluster_id = 0xc1, .incarnation = 3, .uuid = "0123456789abcde"};
static const struct seglog_options hooked = {.io = &disk_hooks, .segment_len = SEGMENT_LEN};

/* --- The model --- */

#define ENTRIES_MAX 4000
struct model {
    struct {
        uint64_t term, seed;
        uint32_t len;
    } at[ENTRIES_MAX]; /* by index */
    uint64_t last;     /* `base`: empty */
    uint64_t cut;      /* entries up to here may be gone */
    uint64_t base;     /* where seglog_base made it begin */
    uint64_t term, voted_for;
};
static struct model acked, maybe; /* maybe: with the call that didn't return 0 */

static void fill(uint8_t *p, uint32_t len, uint64_t seed)
{
    for (uint32_t i = 0; i < len; i++)
        p[i] = (uint8_t)((seed * 2654435761u + i * 40503u) >> 7);
}

static struct entry *entry_make(uint64_t index, uint64_t term, uint32_t len, uint64_t seed)
{
    struct entry *e = entry_create(index, term, 1, NULL, len);
    assert_non_null(e);
    fill(e->data, len, seed);
    return e;
}

static struct log_batch *batch_make(struct model *m, uint64_t first, unsigned n, uint32_t len_max)
{
    struct log_batch *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->first = first;
    b->n = n;
    b->entries = calloc(n, sizeof *b->entries);
    assert_non_null(b->entries);
    for (unsigned i = 0; i < n; i++) {
        uint64_t index = first + i, seed = rnd(1000000);
        uint32_t len = rnd(len_max + 1);
        assert_true(index < ENTRIES_MAX);
        m->at[index].term = m->term + 1;
        m->at[index].seed = seed;
        m->at[index].len = len;
        b->entries[i] = entry_make(index, m->term + 1, len, seed);
    }
    m->last = first + n - 1;
    return b;
}

static void batches_free(struct log_batch *b)
{
    while (b) {
        struct log_batch *next = b->next;
        for (unsigned i = 0; i < b->n; i++)
            entry_unref(b->entries[i]);
        free(b->entries);
        free(b);
        b = next;
    }
}

static bool found_is(const struct seglog_found *f, const struct model *m)
{
    if (f->term != m->term || f->voted_for != m->voted_for)
        return false;
    if (m->last == m->base)
        return f->entries_n == 0 && f->first == m->base + 1;
    if (!f->entries_n || f->first > m->cut + 1 || f->first <= m->base || f->first + f->entries_n - 1 != m->last)
        return false;
    for (size_t i = 0; i < f->entries_n; i++) {
        uint64_t index = f->first + i;
        const struct entry *e = f->entries[i];
        if (e->index != index || e->term != m->at[index].term || e->len != m->at[index].len || e->type != 1)
            return false;
        uint8_t *want = malloc(e->len + 1);
        assert_non_null(want);
        fill(want, e->len, m->at[index].seed);
        bool same = memcmp(want, e->data, e->len) == 0;
        free(want);
        if (!same)
            return false;
    }
    return true;
}

static const char *const DIFFERS = "what was found is neither the acknowledged log nor that with the last write";

/* --- One random life --- */

static struct seglog *slog;

/* 0, or the code of the call that failed; `maybe` then tells what it wanted. */
static int one_step(struct err *err)
{
    maybe = acked;
    int rc = 0;
    switch (rnd(12)) {
    case 0:
    case 1:
        maybe.voted_for = rnd(3) + 1;
        maybe.term++;
        rc = seglog_vote(slog, maybe.term, maybe.voted_for, err);
        break;
    case 2:
        if (acked.last > acked.base) {
            uint64_t index = rnd((uint32_t)acked.last + 1);
            maybe.cut = acked.cut = index > acked.cut ? index : acked.cut;
            rc = seglog_cut(slog, index, err);
        }
        break;
    case 3: {
        struct seglog_found found;
        seglog_close(&slog);
        rc = seglog_open_with(disk_dir, &me, &hooked, &slog, &found, err);
        if (!rc) {
            if (!found_is(&found, &acked))
                fail_msg("%s", DIFFERS);
            seglog_found_clear(&found);
        }
        break;
    }
    default: {
        struct log_batch *list = NULL, **end = &list;
        for (int i = (int)rnd(3); i >= 0; i--) {
            uint64_t first = maybe.last + 1;
            if (maybe.last > maybe.cut && rnd(4) == 0)
                first = maybe.cut + 1 + rnd((uint32_t)(maybe.last - maybe.cut));
            *end = batch_make(&maybe, first, 1 + rnd(4), rnd(3) ? 300 : 4000);
            end = &(*end)->next;
        }
        rc = seglog_write(slog, list, err);
        if (rc == RAFTDIR_ENOSPC && !disk.crashed) { /* room was made: the same again */
            rc = seglog_write(slog, list, err);
            if (!rc && disk.failed_sync)
                fail_msg("a write passed after a failed sync");
        }
        batches_free(list);
    }
    }
    if (!rc)
        acked = maybe;
    return rc;
}

/* Opens what is left, which must be acked or maybe; goes on from there. */
static void reopen(const struct seglog_options *o)
{
    struct seglog_found found;
    struct err err = {0};
    int rc = seglog_open_with(disk_dir, &me, o, &slog, &found, &err);
    if (rc)
        fail_msg("open: %s: %s", err_name(rc), err.text);
    if (found_is(&found, &maybe))
        acked = maybe;
    else if (!found_is(&found, &acked))
        fail_msg("%s (found %zu from %llu, term %llu; acked up to %llu, term %llu)", DIFFERS, found.entries_n, (unsigned long long)found.first,
                 (unsigned long long)found.term, (unsigned long long)acked.last, (unsigned long long)acked.term);
    seglog_found_clear(&found);
}

/* A life of `steps` with one fault at file call `fail_at`. Returns the number of file calls. */
static unsigned life(uint64_t seed, unsigned steps, unsigned fail_at, int fail_errno)
{
    disk_fresh();
    rng = seed;
    memset(&acked, 0, sizeof acked);
    maybe = acked;
    disk.fail_at = fail_at;
    disk.fail_errno = fail_errno;
    struct err err = {0};
    struct seglog_found found;
    slog = NULL;
    int rc = seglog_open_with(disk_dir, &me, &hooked, &slog, &found, &err);
    if (!rc)
        seglog_found_clear(&found);
    if (!rc && seed % 2) { /* a log that begins after an image */
        maybe.base = maybe.cut = maybe.last = 20 + rnd(20);
        rc = seglog_base(slog, maybe.base, &err);
        if (rc == RAFTDIR_ENOSPC && !disk.crashed)
            rc = seglog_base(slog, maybe.base, &err);
        if (!rc)
            acked = maybe;
    }
    for (unsigned i = 0; i < steps && !rc; i++)
        rc = one_step(&err);
    if (rc && !disk.failed)
        fail_msg("seed %llu: %s: %s", (unsigned long long)seed, err_name(rc), err.text);
    if (rc && disk.failed_sync && slog) { /* final */
        static struct model scratch;
        scratch = acked;
        struct log_batch *b = batch_make(&scratch, acked.last + 1, 1, 10);
        assert_int_equal(seglog_write(slog, b, NULL), RAFTDIR_EIO);
        assert_int_equal(seglog_vote(slog, acked.term + 1, 1, NULL), RAFTDIR_EIO);
        assert_int_equal(seglog_cut(slog, 1, NULL), RAFTDIR_EIO);
        batches_free(b);
    }
    unsigned calls = disk.step;
    disk.fail_at = 0;
    if (!fail_at) {
        seglog_close(&slog);
        reopen(&hooked);
        seglog_close(&slog);
        return calls;
    }
    return calls;
}

static void sweep(int fail_errno, unsigned seeds)
{
    const char *env = getenv("SEED");
    uint64_t seed0 = env ? strtoull(env, NULL, 0) : 1;
    for (uint64_t seed = seed0; seed < seed0 + (env ? 1 : seeds); seed++) {
        unsigned calls = life(seed, 25, 0, 0);
        for (unsigned at = 1; at <= calls; at++) {
            life(seed, 25, at, fail_errno);
            if (!disk.failed) { /* the last calls are those of the close */
                seglog_close(&slog);
                continue;
            }
            bool process_only = fail_errno && rnd(2); /* the process dies, the machine doesn't */
            if (disk.crashed || !process_only) {
                disk.crashed = true; /* closing must not repair anything */
                seglog_close(&slog);
                disk_power_cut();
            } else {
                disk.crashed = true;
                seglog_close(&slog);
            }
            disk.crashed = disk.failed = disk.failed_sync = false;
            disk.fail_at = 0;
            reopen(&hooked);
            /* What is written behind a cut tail is never confused with it. */
            struct err err = {0};
            for (int i = rnd(2) ? 4 : 0; i > 0; i--) {
                int rc = one_step(&err);
                if (rc)
                    fail_msg("seed %llu call %u: after the fault: %s", (unsigned long long)seed, at, err.text);
            }
            disk.crashed = true;
            seglog_close(&slog);
            disk_power_cut();
            disk.crashed = false;
            maybe = acked;
            reopen(&hooked);
            seglog_close(&slog);
        }
        printf("seed %llu: %u file calls\n", (unsigned long long)seed, calls);
    }
}

static void power_cuts(void **state)
{
    (void)state;
    sweep(0, 12);
}

static void io_errors(void **state)
{
    (void)state;
    sweep(EIO, 6);
}

static void full_disk(void **state)
{
    (void)state;
    sweep(ENOSPC, 6);
}

/* Many lives without a fault: segments roll, are cut, are reopened. */
static void model_random(void **state)
{
    (void)state;
    for (uint64_t seed = 100; seed < 112; seed++)
        life(seed, 150, 0, 0);
}

/* --- Cases --- */

static void small_log(unsigned frames, bool closed)
{
    disk_fresh();
    rng = 5;
    memset(&acked, 0, sizeof acked);
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    struct seglog_found found;
    assert_int_equal(seglog_open_with(disk_dir, &me, &o, &slog, &found, NULL), 0);
    seglog_found_clear(&found);
    for (unsigned i = 0; i < frames; i++) {
        struct log_batch *b = batch_make(&acked, acked.last + 1, 2, 60);
        assert_int_equal(seglog_write(slog, b, NULL), 0);
        batches_free(b);
    }
    acked.term = 4;
    acked.voted_for = 2;
    assert_int_equal(seglog_vote(slog, 4, 2, NULL), 0);
    maybe = acked;
    if (closed)
        seglog_close(&slog);
}

static uint8_t *file_get(const char *name, size_t *len_r)
{
    char path[512];
    disk_path(path, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    uint8_t *p = malloc(1 << 20);
    assert_non_null(p);
    *len_r = fread(p, 1, 1 << 20, f);
    fclose(f);
    return p;
}

#define SEGMENT_1 "00000000000000000001.seg"

/* Each byte that carries something, changed. `frames` data frames; then a seal when the log was closed. */
static void flip_bytes(bool closed)
{
    const unsigned frames = 3;
    small_log(frames, closed);
    size_t seg_len, vote_len;
    uint8_t *seg = file_get(SEGMENT_1, &seg_len), *vote = file_get("vote", &vote_len);
    if (!closed)
        seglog_close(&slog); /* the files are put back below */
    struct model whole = acked, shorter = acked;
    shorter.last -= 2;
    unsigned torn = 0, corrupt = 0, harmless = 0;
    size_t at = 0, end = 4096 * (1 + frames + closed);
    while (at < end + vote_len) {
        bool in_vote = at >= end;
        size_t pos = in_vote ? at - end : at;
        disk_file_put(SEGMENT_1, seg, seg_len);
        disk_file_put("vote", vote, vote_len);
        uint8_t *p = in_vote ? vote : seg;
        uint8_t bit = (uint8_t)(1u << (pos % 8));
        p[pos] ^= bit;
        disk_file_put(in_vote ? "vote" : SEGMENT_1, p, in_vote ? vote_len : seg_len);
        p[pos] ^= bit;
        struct seglog_found found;
        struct err err = {0};
        int rc = seglog_open_with(disk_dir, &me, &hooked, &slog, &found, &err);
        size_t block = pos / 4096;
        bool last_data = !in_vote && !closed && block == frames;
        if (rc) {
            if ((rc != RAFTDIR_ECORRUPT && rc != RAFTDIR_EVERSION) || in_vote || last_data)
                fail_msg("byte %zu of %s: %s: %s", pos, in_vote ? "vote" : "segment", err_name(rc), err.text);
            corrupt++;
        } else if (found_is(&found, &whole)) {
            harmless++; /* padding, the seal, or one of the vote's two slots */
            if (!in_vote && pos % 4096 < 48 && !(closed && block == frames + 1))
                fail_msg("byte %zu of a header changed, and nobody noticed", pos);
        } else if (last_data && found_is(&found, &shorter) && found.torn_len) {
            torn++; /* what can't be decided: top of seglog.c */
        } else {
            fail_msg("byte %zu of %s: a wrong log was found", pos, in_vote ? "vote" : "segment");
        }
        if (!rc) {
            seglog_found_clear(&found);
            seglog_close(&slog);
        }
        disk_reset();
        /* Headers and payloads byte by byte; of the padding a few. */
        size_t left = 4096 - pos % 4096;
        at += pos % 4096 < 280 ? 1 : left < 509 ? left : 509;
    }
    printf("corrupt %u, torn %u, harmless %u\n", corrupt, torn, harmless);
    assert_true(corrupt > 3 * 70);
    assert_int_equal(torn > 70, !closed);
    free(seg);
    free(vote);
}

static void flips(void **state)
{
    (void)state;
    flip_bytes(false);
}

static void flips_after_close(void **state)
{
    (void)state;
    flip_bytes(true);
}

static int open_code(const struct seglog_identity *who, char *text_r)
{
    struct seglog_found found;
    struct err err = {0};
    int rc = seglog_open(disk_dir, who, &slog, &found, &err);
    if (!rc) {
        seglog_found_clear(&found);
        seglog_close(&slog);
    }
    strcpy(text_r, err.text);
    return rc;
}

static void foreign(void **state)
{
    (void)state;
    char text[ERR_TEXT_LEN];
    small_log(2, true);
    struct seglog_identity other = me;
    other.cluster_id++;
    assert_int_equal(open_code(&other, text), RAFTDIR_EFOREIGN);
    other = me;
    other.incarnation++;
    assert_int_equal(open_code(&other, text), RAFTDIR_EFOREIGN);
    other = me;
    other.uuid[3] ^= 1;
    assert_int_equal(open_code(&other, text), RAFTDIR_EFOREIGN);
    assert_int_equal(open_code(&me, text), 0);
}

static void missing_files(void **state)
{
    (void)state;
    char text[ERR_TEXT_LEN], path[512];
    small_log(2, true);
    disk_path(path, "vote");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(text, "vote"));
    small_log(2, true);
    disk_path(path, SEGMENT_1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    /* One in the middle, by many segments. */
    small_log(40, true);
    disk_path(path, "00000000000000000002.seg");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(text, "is missing"));
    /* The end of one that isn't the newest. */
    small_log(40, true);
    size_t len;
    uint8_t *p = file_get(SEGMENT_1, &len);
    memset(p + len - 4096, 0, 4096);
    disk_file_put(SEGMENT_1, p, len);
    free(p);
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    /* Another version. */
    small_log(1, true);
    p = file_get(SEGMENT_1, &len);
    p[8] = 9;
    disk_file_put(SEGMENT_1, p, len);
    free(p);
    assert_int_equal(open_code(&me, text), RAFTDIR_EVERSION);
}

static void bad_calls(void **state)
{
    (void)state;
    small_log(2, false);
    struct model m = acked;
    struct err err;
    struct log_batch *b = batch_make(&m, acked.last + 2, 1, 10);
    assert_int_equal(seglog_write(slog, b, &err), RAFTDIR_EINVAL);
    batches_free(b);
    assert_int_equal(seglog_write(slog, NULL, &err), RAFTDIR_EINVAL);
    b = batch_make(&m, acked.last + 1, 1, 10);
    entry_unref(b->entries[0]);
    b->entries[0] = entry_make(acked.last + 1, 1, SEGMENT_LEN, 1);
    assert_int_equal(seglog_write(slog, b, &err), RAFTDIR_ETOOBIG);
    batches_free(b);
    assert_int_equal(seglog_vote(slog, 3, 1, &err), RAFTDIR_EINVAL);
    assert_int_equal(seglog_vote(slog, 4, 1, &err), RAFTDIR_EINVAL);
    assert_int_equal(seglog_vote(slog, 4, 2, &err), 0);
    assert_true(seglog_used_len(slog) >= 3 * 4096 && seglog_used_len(slog) < SEGMENT_LEN);
    seglog_close(&slog);
    reopen(NULL);
    seglog_close(&slog);
}

static unsigned files_count(const char *suffix)
{
    unsigned n = 0;
    DIR *d = opendir(disk_dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        n += len > strlen(suffix) && strcmp(e->d_name + len - strlen(suffix), suffix) == 0;
    }
    closedir(d);
    return n;
}

/* seglog/cut: old segments go, the newest entries stay, whatever index is given. */
static void cuts(void **state)
{
    (void)state;
    small_log(60, false);
    uint64_t before = seglog_used_len(slog);
    assert_int_equal(seglog_cut(slog, acked.last, NULL), 0);
    assert_true(seglog_used_len(slog) < before);
    acked.cut = maybe.cut = acked.last;
    seglog_close(&slog);
    struct seglog_found found;
    assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
    assert_true(found.first > 30 && found.entries_n > 0 && found_is(&found, &acked));
    seglog_found_clear(&found);
    seglog_close(&slog);
    char path[512];
    disk_path(path, SEGMENT_1);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(files_count(".seg"), 1);
}

/* seglog/cut_gives_space_back: by closing at the latest; what a crash left of it goes at the next start. */
static void cut_gives_space_back(void **state)
{
    (void)state;
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    small_log(60, false);
    for (uint64_t index = 20; index < acked.last; index += 7) /* in the middle of the one before, too */
        assert_int_equal(seglog_cut(slog, index, NULL), 0);
    assert_int_equal(files_count(".seg"), slog->segments_n);
    seglog_close(&slog);
    assert_int_equal(files_count(".tmp"), 0);
    disk_file_put("00000000000000000001.cut.tmp", (const uint8_t *)"x", 1);
    disk_file_put("00000000000000000099.seg.tmp", (const uint8_t *)"x", 1);
    struct seglog_found found;
    assert_int_equal(seglog_open_with(disk_dir, &me, &o, &slog, &found, NULL), 0);
    seglog_found_clear(&found);
    assert_int_equal(files_count(".tmp"), 0);
    seglog_close(&slog);
}

/* seglog/begins_anywhere: after an image was installed the log begins behind it. */
static void begins_anywhere(void **state)
{
    (void)state;
    disk_fresh();
    memset(&acked, 0, sizeof acked);
    struct seglog_found found;
    assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
    assert_int_equal(found.first, 1);
    seglog_found_clear(&found);
    struct log_batch *b = batch_make(&acked, 1000, 3, 10);
    assert_int_equal(seglog_write(slog, b, NULL), 0);
    batches_free(b);
    b = batch_make(&maybe, 999, 1, 10);
    assert_int_equal(seglog_write(slog, b, NULL), RAFTDIR_EINVAL);
    batches_free(b);
    seglog_close(&slog);
    assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
    assert_int_equal(found.first, 1000);
    assert_int_equal(found.entries_n, 3);
    seglog_found_clear(&found);
    seglog_close(&slog);
}

/* seglog/torn_tail_is_gone: what was cut off stays nowhere in the file. */
static void torn_tail_is_gone(void **state)
{
    (void)state;
    small_log(3, false);
    size_t len;
    uint8_t *p = file_get(SEGMENT_1, &len);
    seglog_close(&slog);
    memset(p + 4 * 4096, 0xaa, 5 * 4096); /* of a frame whose header never arrived */
    disk_file_put(SEGMENT_1, p, len);
    free(p);
    struct seglog_found found;
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    assert_int_equal(seglog_open_with(disk_dir, &me, &o, &slog, &found, NULL), 0);
    assert_int_equal(found.torn_len, 5 * 4096);
    assert_true(found_is(&found, &acked));
    seglog_found_clear(&found);
    p = file_get(SEGMENT_1, &len);
    assert_int_equal(len, SEGMENT_LEN);
    for (size_t i = 5 * 4096; i < len; i++) /* block 4: the seal that opening wrote */
        assert_int_equal(p[i], 0);
    free(p);
    seglog_close(&slog);
}

/* seglog/vote_repair: one slot is bad, and the power goes while it is repaired: the vote is still there. */
static void vote_repair(void **state)
{
    (void)state;
    for (int slot = 0; slot < 2; slot++) {
        for (unsigned at = 1; at < 12; at++) {
            for (unsigned luck = 0; luck < 8; luck++) {
                disk_fresh();
                memset(&acked, 0, sizeof acked);
                struct seglog_found found;
                assert_int_equal(seglog_open_with(disk_dir, &me, &hooked, &slog, &found, NULL), 0);
                assert_int_equal(seglog_vote(slog, 9, 2, NULL), 0);
                seglog_close(&slog);
                struct file *f = *disk_name_find(&disk.now, "vote");
                f->durable[slot * 4096 + 30] ^= 4;
                disk_file_put("vote", f->durable, f->len);
                rng = luck;
                disk.step = 0;
                disk.fail_at = at;
                if (seglog_open_with(disk_dir, &me, &hooked, &slog, &found, NULL) == 0)
                    seglog_found_clear(&found);
                disk.crashed = true;
                seglog_close(&slog);
                disk_power_cut();
                disk.crashed = false;
                disk.fail_at = 0;
                acked.term = 9;
                acked.voted_for = 2;
                maybe = acked;
                reopen(&hooked);
                seglog_close(&slog);
            }
        }
    }
}

/* seglog/cut_power: several segments go, and the power at each call. */
static void cut_power(void **state)
{
    (void)state;
    for (unsigned at = 1; at < 14; at++) {
        for (unsigned luck = 0; luck < 6; luck++) {
            disk_fresh();
            rng = luck + 1;
            memset(&acked, 0, sizeof acked);
            struct seglog_found found;
            assert_int_equal(seglog_open_with(disk_dir, &me, &hooked, &slog, &found, NULL), 0);
            for (int i = 0; i < 70; i++) {
                struct log_batch *b = batch_make(&acked, acked.last + 1, 1, 50);
                assert_int_equal(seglog_write(slog, b, NULL), 0);
                batches_free(b);
            }
            acked.cut = acked.last;
            maybe = acked;
            disk.step = 0;
            disk.fail_at = at;
            (void)seglog_cut(slog, acked.last, NULL);
            disk.crashed = true;
            seglog_close(&slog);
            disk_power_cut();
            disk.crashed = false;
            disk.fail_at = 0;
            reopen(&hooked);
            seglog_close(&slog);
        }
    }
}

static void *voter(void *data); /* votes in terms 5..104 for 1 */

/* --- A log that begins after an image --- */

static void found_base(uint64_t base, const struct seglog_options *o)
{
    struct seglog_found found;
    struct err err = {0};
    if (seglog_open_with(disk_dir, &me, o, &slog, &found, &err))
        fail_msg("%s", err.text);
    assert_int_equal(found.first, base + 1);
    assert_int_equal(found.entries_n, 0);
    assert_int_equal(found.term, 7);
    assert_int_equal(found.voted_for, 3);
    seglog_found_clear(&found);
}

static void base_log(uint64_t base)
{
    disk_fresh();
    rng = 9;
    memset(&acked, 0, sizeof acked);
    struct seglog_found found;
    assert_int_equal(seglog_open_with(disk_dir, &me, &hooked, &slog, &found, NULL), 0);
    seglog_found_clear(&found);
    assert_int_equal(seglog_vote(slog, 7, 3, NULL), 0);
    assert_int_equal(seglog_base(slog, base, NULL), 0);
    acked.term = 7;
    acked.voted_for = 3;
    acked.base = acked.cut = acked.last = base;
}

static int write_one(uint64_t first)
{
    struct log_batch *b = batch_make(&maybe, first, 1, 10);
    int rc = seglog_write(slog, b, NULL);
    batches_free(b);
    return rc;
}

/* seglog/base: from where on it takes entries, before and after a start; what else may be done with it. */
static void base(void **state)
{
    (void)state;
    for (int restarts = 0; restarts < 3; restarts++) {
        base_log(999);
        for (int i = 0; i < restarts; i++) {
            seglog_close(&slog);
            found_base(999, &hooked);
        }
        maybe = acked;
        assert_int_equal(write_one(999), RAFTDIR_EINVAL);
        assert_int_equal(write_one(1001), RAFTDIR_EINVAL);
        assert_int_equal(write_one(1), RAFTDIR_EINVAL);
        assert_int_equal(seglog_base(slog, 998, NULL), RAFTDIR_EINVAL);
        assert_int_equal(seglog_base(slog, 999, NULL), 0); /* after an error the same call may be made again */
        assert_int_equal(seglog_cut(slog, 5000, NULL), 0);
        seglog_close(&slog);
        found_base(999, &hooked);
        maybe = acked;
        assert_int_equal(write_one(1000), 0);
        assert_int_equal(write_one(1001), 0);
        assert_int_equal(write_one(1000), 0); /* another leader's */
        assert_int_equal(write_one(999), RAFTDIR_EINVAL);
        assert_int_equal(seglog_base(slog, 999, NULL), RAFTDIR_EINVAL);
        acked = maybe;
        acked.last = 1000;
        seglog_close(&slog);
        maybe = acked;
        reopen(&hooked);
        assert_int_equal(acked.last, 1000);
        seglog_close(&slog);
    }
    /* From the beginning; beyond the end; where there is a log. */
    base_log(0);
    seglog_close(&slog);
    found_base(0, &hooked);
    maybe = acked;
    assert_int_equal(write_one(2), RAFTDIR_EINVAL);
    assert_int_equal(write_one(1), 0);
    seglog_close(&slog);
    small_log(1, false);
    assert_int_equal(seglog_base(slog, 2, NULL), RAFTDIR_EINVAL);
    assert_int_equal(seglog_base(slog, UINT64_MAX, NULL), RAFTDIR_EINVAL);
    seglog_close(&slog);
}

/* seglog/base_flips: no changed bit of it makes a log that begins anywhere else. */
static void base_flips(void **state)
{
    (void)state;
    base_log(999);
    size_t len;
    disk.crashed = true; /* no seal by closing: the call's own has to do */
    seglog_close(&slog);
    disk.crashed = false;
    uint8_t *p = file_get(SEGMENT_1, &len);
    for (size_t at = 4096; at < 4096 + 64; at++) {
        p[at] ^= (uint8_t)(1 << at % 8);
        disk_file_put(SEGMENT_1, p, len);
        p[at] ^= (uint8_t)(1 << at % 8);
        char text[ERR_TEXT_LEN];
        assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    }
    memset(p + 4096, 0, 4096); /* not written at all */
    disk_file_put(SEGMENT_1, p, len);
    char text[ERR_TEXT_LEN];
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    free(p);
}

/* seglog/base_torn: a write right behind it that never was whole takes nothing with it. */
static void base_torn(void **state)
{
    (void)state;
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    for (size_t n = 1; n <= 4096; n += 65) {
        base_log(999);
        maybe = acked;
        assert_int_equal(write_one(1000), 0);
        disk.crashed = true;
        seglog_close(&slog);
        size_t len;
        uint8_t *p = file_get(SEGMENT_1, &len);
        memset(p + 3 * 4096, 0, 47); /* 1: base, 2: seal, 3: the entry */
        memset(p + 3 * 4096 + 47, 0xaa, n);
        disk_file_put(SEGMENT_1, p, len);
        free(p);
        disk_reset();
        found_base(999, &o);
        maybe = acked;
        assert_int_equal(write_one(1001), RAFTDIR_EINVAL);
        assert_int_equal(write_one(1000), 0);
        seglog_close(&slog);
    }
}

/* A batch of no entries behind anything else is damage. */
static void base_in_the_middle(void **state)
{
    (void)state;
    small_log(2, false);
    size_t len;
    seglog_close(&slog); /* blocks: header, 2 frames, seal */
    uint8_t *p = file_get(SEGMENT_1, &len);
    uint64_t salt = seglog_get_u64(p + 64);
    struct log_batch b = {.first = 5};
    seglog_payload_put(p + 4 * 4096 + 48, &b);
    struct seglog_frame_header h = {.batches = 1, .len = 16, .seq = 4, .durable_seq = 3, .payload_sum = seglog_sum(p + 4 * 4096 + 48, 16, salt)};
    seglog_frame_header_put(p + 4 * 4096, &h, salt);
    disk_file_put(SEGMENT_1, p, len);
    char text[ERR_TEXT_LEN];
    assert_int_equal(open_code(&me, text), RAFTDIR_ECORRUPT);
    free(p);
}

/* seglog/cut_across_an_empty_segment: a start on a full disk left one that took nothing; the log is cut all the same. */
static int no_room(void *data, int fd, off_t len)
{
    (void)data, (void)fd, (void)len;
    errno = ENOSPC;
    return -1;
}

static void cut_across_an_empty_segment(void **state)
{
    (void)state;
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    struct seglog_io io = seglog_io_system;
    io.fallocate = no_room;
    const struct seglog_options full = {.segment_len = SEGMENT_LEN, .io = &io};
    char path[512];
    small_log(16, false); /* the last one is segment 2's */
    seglog_close(&slog);
    disk_path(path, "00000000000000000002.seg");
    assert_int_equal(truncate(path, 4096), 0);
    acked.last -= 2;
    maybe = acked;
    reopen(&full);
    seglog_close(&slog);
    reopen(&o); /* there is room again: that segment is used */
    seglog_close(&slog);
    assert_int_equal(truncate(path, 4096), 0);
    reopen(&full);
    struct seglog *l = slog;
    assert_int_equal(seglog_cut(slog, acked.last, NULL), 0); /* nothing but the first segment says where the log begins */
    assert_int_equal(slog->segments_n, 2);
    l->io.fallocate = seglog_io_system.fallocate; /* room, but the segment has stayed as it is */
    for (int i = 0; i < 40; i++)
        assert_int_equal(write_one(maybe.last + 1), 0);
    acked = maybe;
    assert_int_equal(seglog_cut(slog, acked.last - 1, NULL), 0);
    acked.cut = acked.last - 1;
    for (int i = 1; i <= 3; i++) {
        char name[40];
        snprintf(name, sizeof name, "%020d.seg", i);
        disk_path(path, name);
        assert_int_equal(access(path, F_OK), -1);
    }
    seglog_close(&slog);
    maybe = acked;
    reopen(&o);
    seglog_close(&slog);
}

/* seglog/almost_nothing_left: everything that can be cut is; what is left says where it begins and ends, as often as it is opened. */
static void almost_nothing_left(void **state)
{
    (void)state;
    static const struct seglog_options o = {.segment_len = SEGMENT_LEN};
    for (unsigned frames = 13; frames < 48; frames++) { /* the newest segment is anything from full to a single frame */
        small_log(frames, false);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(seglog_cut(slog, acked.last + 10, NULL), 0); /* may be asked for more than there is */
            assert_true(slog->segments_n == 1);
            seglog_close(&slog);
            struct seglog_found found;
            assert_int_equal(seglog_open_with(disk_dir, &me, &o, &slog, &found, NULL), 0);
            acked.cut = acked.last;
            assert_true(found.entries_n > 0 && found_is(&found, &acked));
            seglog_found_clear(&found);
        }
        maybe = acked;
        assert_int_equal(write_one(acked.last + 2), RAFTDIR_EINVAL);
        maybe.last = acked.last;
        assert_int_equal(write_one(acked.last + 1), 0);
        seglog_close(&slog);
    }
}

/* --- The scrub --- */

struct heard {
    unsigned told, asked, stop_at;
    char text[ERR_TEXT_LEN];
    uint64_t len;
};

static void on_problem(void *data, const char *text)
{
    struct heard *h = data;
    h->told++;
    snprintf(h->text, sizeof h->text, "%s", text);
}

static bool on_stop(void *data)
{
    struct heard *h = data;
    return ++h->asked == h->stop_at;
}

static void on_progress(void *data, uint64_t len)
{
    struct heard *h = data;
    assert_true(len > h->len);
    h->len = len;
}

static uint64_t scrub(struct heard *h)
{
    struct seglog_scrub_cb cb = {.data = h, .problem = on_problem, .stop = on_stop, .progress = on_progress};
    uint64_t problems;
    struct err err = {0};
    memset(h, 0, sizeof *h);
    int rc = seglog_scrub(slog, &cb, &problems, &err);
    if (rc)
        fail_msg("scrub: %s: %s", err_name(rc), err.text);
    assert_int_equal(problems, h->told);
    return problems;
}

static void byte_flip(const char *name, size_t at, uint8_t bit)
{
    char path[512];
    uint8_t v;
    disk_path(path, name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &v, 1, (off_t)at), 1);
    v ^= bit;
    assert_int_equal(pwrite(fd, &v, 1, (off_t)at), 1);
    close(fd);
}

/* seglog/scrub_flips: every byte that carries something, in old and new segments, under an open log: found, and as one problem. */
static void scrub_flips(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t at, len;
        bool harmless;
    } parts[] = {
        {SEGMENT_1, 0, 80, false},                         /* headers of segments */
        {"00000000000000000002.seg", 0, 80, false},
        {"00000000000000000003.seg", 0, 80, false},
        {SEGMENT_1, 4096, 48 + 16 + 2 * 16, false},        /* frames: the first, one within, the last; headers, batch, entries' headers */
        {SEGMENT_1, 7 * 4096, 48 + 16 + 16, false},
        {SEGMENT_1, 15 * 4096, 48 + 16 + 16, false},
        {"00000000000000000002.seg", 4096, 48 + 16 + 16, false},
        {"00000000000000000003.seg", 4096, 48 + 16 + 16, false},
        {"00000000000000000003.seg", 5 * 4096, 48 + 16 + 16, false}, /* the newest frame */
        {"vote", 0, 80, false},
        {"vote", 4096, 80, false},
        {SEGMENT_1, 80, 40, true},
        {SEGMENT_1, 2 * 4096 - 40, 40, true},
        {"00000000000000000003.seg", 6 * 4096, 100, true}, /* not written yet */
        {"vote", 80, 40, true},
    };
    struct heard h;
    small_log(35, false);
    assert_int_equal(slog->segments_n, 3);
    assert_int_equal(scrub(&h), 0);
    assert_true(h.asked >= 3 && h.len == 3 * SEGMENT_LEN);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        for (size_t at = parts[i].at; at < parts[i].at + parts[i].len; at++) {
            uint8_t bit = (uint8_t)(1u << rnd(8));
            byte_flip(parts[i].name, at, bit);
            uint64_t n = scrub(&h);
            if (n != !parts[i].harmless)
                fail_msg("byte %zu of %s: %u problems: %s", at, parts[i].name, h.told, h.text);
            if (n && !strstr(h.text, parts[i].name))
                fail_msg("byte %zu of %s: told as %s", at, parts[i].name, h.text);
            byte_flip(parts[i].name, at, bit);
        }
    }
    assert_int_equal(scrub(&h), 0);
    /* Every entry's bytes. */
    for (unsigned frame = 0; frame < 35; frame++) {
        char name[40];
        snprintf(name, sizeof name, "%020u.seg", frame / 15 + 1);
        size_t at = 4096 * (1 + frame % 15) + 48 + 16 + 16 + rnd(10);
        byte_flip(name, at, 1);
        if (scrub(&h) != 1)
            fail_msg("frame %u: %u problems", frame + 1, h.told);
        byte_flip(name, at, 1);
    }
    /* Several at once: each is told. */
    byte_flip(SEGMENT_1, 4096 + 5, 1);
    byte_flip(SEGMENT_1, 9 * 4096 + 5, 1);
    byte_flip("00000000000000000003.seg", 5 * 4096 + 70, 1);
    byte_flip("vote", 20, 1);
    assert_int_equal(scrub(&h), 4);
    seglog_close(&slog);
}

/* seglog/scrub_missing: files and parts of them that are gone, or aren't what they were. */
static void scrub_missing(void **state)
{
    (void)state;
    static const char *const names[] = {SEGMENT_1, "00000000000000000002.seg", "00000000000000000003.seg"};
    struct heard h;
    char path[512], other[512];
    size_t len;
    for (int i = 0; i < 3; i++) {
        small_log(35, false);
        disk_path(path, names[i]);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(scrub(&h), 1);
        assert_non_null(strstr(h.text, "is missing"));
        seglog_close(&slog);

        small_log(35, false); /* an end that was durable, and is zeros now */
        disk_path(path, names[i]);
        uint8_t *p = file_get(names[i], &len);
        memset(p + (i == 2 ? 5 : 15) * 4096, 0, 4096);
        disk_file_put(names[i], p, len);
        if (scrub(&h) != 1)
            fail_msg("%s: its end: %u: %s", names[i], h.told, h.text);
        assert_int_equal(truncate(path, 3 * 4096), 0);
        assert_int_equal(scrub(&h), 1);
        assert_int_equal(truncate(path, 100), 0);
        assert_true(scrub(&h) >= 1);
        assert_int_equal(truncate(path, 0), 0);
        assert_true(scrub(&h) >= 1);
        free(p);
        seglog_close(&slog);
    }
    small_log(35, false); /* another segment in its place */
    disk_path(path, names[0]);
    disk_path(other, names[1]);
    uint8_t *p = file_get(names[1], &len);
    disk_file_put(names[0], p, len);
    assert_int_equal(scrub(&h), 1);
    assert_non_null(strstr(h.text, "calls itself segment 2"));
    free(p);
    seglog_close(&slog);
    small_log(3, false); /* a write that the disk had acknowledged and never did: a copy of the vote */
    p = file_get("vote", &len);
    assert_int_equal(seglog_vote(slog, 9, 1, NULL), 0);
    size_t len_new;
    uint8_t *new = file_get("vote", &len_new);
    memcpy(new + 4096, p + 4096, 4096);
    disk_file_put("vote", new, len_new);
    assert_int_equal(scrub(&h), 1);
    assert_non_null(strstr(h.text, "copy 2 of term and vote"));
    disk_file_put("vote", p, 4096);
    assert_int_equal(scrub(&h), 2);
    free(new);
    free(p);
    seglog_close(&slog);
}

/* seglog/scrub_large: an entry of several chunks, and what stands behind it; in a log that was closed and opened. */
static void scrub_large(void **state)
{
    (void)state;
    static const size_t at[] = {47, 100, 262144 - 4096, 262144 - 4095, 300000, 524288, 699999, 700000 + 79, 700416 + 20, 700416 + 90};
    struct seglog_found found;
    struct heard h;
    disk_fresh();
    assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
    for (uint64_t i = 1; i < 3; i++) {
        struct entry *e = entry_make(i, 1, i == 1 ? 700000 : 100, 3);
        struct log_batch b = {.first = i, .n = 1, .entries = &e};
        assert_int_equal(seglog_write(slog, &b, NULL), 0);
        entry_unref(e);
    }
    for (int opened = 0; opened < 2; opened++) {
        assert_int_equal(scrub(&h), 0);
        for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
            byte_flip(SEGMENT_1, 4096 + at[i], 2);
            if (scrub(&h) != 1)
                fail_msg("offset %zu, opened %d: %u problems", 4096 + at[i], opened, h.told);
            byte_flip(SEGMENT_1, 4096 + at[i], 2);
        }
        seglog_close(&slog);
        assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
        assert_int_equal(found.entries_n, 2);
        seglog_found_clear(&found);
    }
    seglog_close(&slog);
}

/* seglog/scrub_any_log: nothing is found where there is nothing, whatever the log went through; it can be stopped anywhere. */
static void scrub_any_log(void **state)
{
    (void)state;
    struct heard h;
    disk_fresh();
    struct seglog_found found;
    assert_int_equal(seglog_open(disk_dir, &me, &slog, &found, NULL), 0);
    assert_int_equal(scrub(&h), 0);
    assert_int_equal(seglog_vote(slog, 2, 1, NULL), 0);
    assert_int_equal(seglog_base(slog, 50, NULL), 0);
    assert_int_equal(scrub(&h), 0);
    seglog_close(&slog);
    for (uint64_t seed = 200; seed < 212; seed++) {
        life(seed, 60, 0, 0);
        maybe = acked;
        reopen(&hooked);
        struct err err = {0};
        for (int i = 0; i < 20; i++) {
            assert_int_equal(one_step(&err), 0);
            if (scrub(&h))
                fail_msg("seed %llu: %s", (unsigned long long)seed, h.text);
        }
        seglog_close(&slog);
    }
    small_log(35, false);
    struct seglog_scrub_cb cb = {.data = &h, .stop = on_stop};
    uint64_t problems;
    for (unsigned at = 1; at <= 3; at++) {
        memset(&h, 0, sizeof h);
        h.stop_at = at;
        assert_int_equal(seglog_scrub(slog, &cb, &problems, NULL), RAFTDIR_ECANCELED);
    }
    byte_flip(SEGMENT_1, 4096, 1);
    struct seglog_scrub_cb none = {0};
    assert_int_equal(seglog_scrub(slog, &none, &problems, NULL), 0);
    assert_int_equal(problems, 1);
    seglog_close(&slog);
}

/* seglog/scrub_at_each_call: before and after each file call of a writer that writes and cuts, nothing is found. */
static unsigned scrubs;
static bool scrubbing;
static void scrub_now(void)
{
    struct heard h;
    if (!scrubbing)
        return;
    if (scrub(&h))
        fail_msg("a false alarm: %s", h.text);
    scrubs++;
}
static ssize_t s_pwritev(void *data, int fd, const struct iovec *iov, int n, off_t at)
{
    scrub_now();
    ssize_t w = seglog_io_system.pwritev(data, fd, iov, n, at);
    scrub_now();
    return w;
}
static int s_sync(void *data, int fd)
{
    (void)data, (void)fd;
    scrub_now();
    return 0;
}
static int s_rename(void *data, const char *from, const char *to)
{
    scrub_now();
    int rc = seglog_io_system.rename(data, from, to);
    scrub_now();
    return rc;
}
static int s_unlink(void *data, const char *path)
{
    scrub_now();
    return seglog_io_system.unlink(data, path);
}

static void scrub_at_each_call(void **state)
{
    (void)state;
    struct seglog_io io = seglog_io_system;
    io.pwritev = s_pwritev;
    io.fsync = io.fdatasync = s_sync;
    io.rename = s_rename;
    io.unlink = s_unlink;
    const struct seglog_options o = {.segment_len = 5 * 4096, .io = &io};
    small_log(2, true);
    maybe = acked;
    scrubbing = false;
    reopen(&o);
    scrubbing = true;
    for (int i = 0; i < 40; i++) {
        struct log_batch *b = batch_make(&acked, acked.last + 1, 1, 300);
        assert_int_equal(seglog_write(slog, b, NULL), 0);
        batches_free(b);
        if (i % 9 == 8)
            assert_int_equal(seglog_cut(slog, acked.last - 2, NULL), 0);
    }
    scrubbing = false;
    assert_true(scrubs > 150);
    seglog_close(&slog);
}

/* seglog/scrub_beside_vote: one that reads the copies while they are written says nothing wrong of them. */
static pthread_t scrubber;
static void *scrub_once(void *data)
{
    (void)data;
    struct heard h;
    return (void *)(uintptr_t)scrub(&h);
}
static ssize_t v_pwritev(void *data, int fd, const struct iovec *iov, int n, off_t at)
{
    if (scrubbing) {
        scrubbing = false;
        assert_int_equal(pthread_create(&scrubber, NULL, scrub_once, NULL), 0);
        usleep(100000); /* it has read the old copies, and waits to compare them */
    }
    return seglog_io_system.pwritev(data, fd, iov, n, at);
}

static void scrub_beside_vote(void **state)
{
    (void)state;
    struct seglog_io io = seglog_io_system;
    io.pwritev = v_pwritev;
    const struct seglog_options o = {.segment_len = SEGMENT_LEN, .io = &io};
    small_log(2, true);
    maybe = acked;
    scrubbing = false;
    reopen(&o);
    for (uint64_t term = 5; term < 9; term++) {
        void *problems;
        scrubbing = true;
        assert_int_equal(seglog_vote(slog, term, 1, NULL), 0);
        pthread_join(scrubber, &problems);
        assert_null(problems);
    }
    seglog_close(&slog);
}

/* seglog/scrub_beside_write: never a false alarm, whatever is written, cut and voted meanwhile. */
static int no_sync(void *data, int fd)
{
    (void)data, (void)fd;
    return 0;
}

static _Atomic bool writer_done;
static void *writer(void *data)
{
    (void)data;
    for (int i = 0; i < 1500; i++) {
        uint64_t first = acked.last > acked.cut && i % 5 == 0 ? acked.last : acked.last + 1;
        struct log_batch *b = batch_make(&acked, first, 1 + (unsigned)i % 3, i % 7 ? 300 : 6000);
        int rc = seglog_write(slog, b, NULL);
        batches_free(b);
        if (rc == 0 && i % 40 == 39) {
            acked.cut = acked.last - 5;
            rc = seglog_cut(slog, acked.cut, NULL);
        }
        if (rc) {
            atomic_store(&writer_done, true);
            return (void *)1;
        }
    }
    atomic_store(&writer_done, true);
    return NULL;
}

static void scrub_beside_write(void **state)
{
    (void)state;
    struct seglog_io io = seglog_io_system;
    io.fsync = io.fdatasync = no_sync; /* many more meetings a second */
    const struct seglog_options o = {.segment_len = SEGMENT_LEN, .io = &io};
    small_log(20, true);
    maybe = acked;
    reopen(&o);
    pthread_t w, v;
    struct heard h;
    unsigned rounds = 0;
    atomic_store(&writer_done, false);
    assert_int_equal(pthread_create(&w, NULL, writer, NULL), 0);
    assert_int_equal(pthread_create(&v, NULL, voter, NULL), 0);
    while (!atomic_load(&writer_done)) {
        if (scrub(&h))
            fail_msg("a false alarm: %s", h.text);
        rounds++;
    }
    void *rc;
    pthread_join(w, &rc);
    assert_null(rc);
    pthread_join(v, &rc);
    assert_null(rc);
    printf("%u scrubs beside %llu entries, %zu segments at the end\n", rounds, (unsigned long long)acked.last, slog->segments_n);
    assert_true(rounds > 5);
    seglog_close(&slog);
    acked.term = 104;
    acked.voted_for = 1;
    maybe = acked;
    reopen(NULL);
    seglog_close(&slog);
}

static void *voter(void *data)
{
    (void)data;
    for (uint64_t term = 5; term < 105; term++) {
        if (seglog_vote(slog, term, 1, NULL))
            return (void *)1;
    }
    return NULL;
}

/* seglog/vote_beside_write: from another thread. */
static void vote_beside_write(void **state)
{
    (void)state;
    small_log(1, false);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, voter, NULL), 0);
    for (int i = 0; i < 100; i++) {
        struct log_batch *b = batch_make(&acked, acked.last + 1, 1, 50);
        assert_int_equal(seglog_write(slog, b, NULL), 0);
        batches_free(b);
    }
    void *rc;
    pthread_join(t, &rc);
    assert_null(rc);
    acked.term = 104;
    acked.voted_for = 1;
    maybe = acked;
    seglog_close(&slog);
    reopen(NULL);
    seglog_close(&slog);
}

static int teardown(void **state)
{
    (void)state;
    if (disk_dir[0])
        support_dir_remove(disk_dir);
    disk_reset();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_random), cmocka_unit_test(power_cuts),        cmocka_unit_test(io_errors),       cmocka_unit_test(full_disk),
        cmocka_unit_test(flips),        cmocka_unit_test(flips_after_close), cmocka_unit_test(foreign),         cmocka_unit_test(missing_files),
        cmocka_unit_test(torn_tail_is_gone), cmocka_unit_test(vote_repair), cmocka_unit_test(cut_power),
        cmocka_unit_test(bad_calls),    cmocka_unit_test(cuts),              cmocka_unit_test(begins_anywhere), cmocka_unit_test(vote_beside_write),
        cmocka_unit_test(base),         cmocka_unit_test(base_flips),        cmocka_unit_test(base_torn),       cmocka_unit_test(base_in_the_middle),
        cmocka_unit_test(cut_across_an_empty_segment), cmocka_unit_test(almost_nothing_left), cmocka_unit_test(cut_gives_space_back),
        cmocka_unit_test(scrub_flips),  cmocka_unit_test(scrub_missing),     cmocka_unit_test(scrub_any_log),   cmocka_unit_test(scrub_beside_write), cmocka_unit_test(scrub_large), cmocka_unit_test(scrub_at_each_call), cmocka_unit_test(scrub_beside_vote),
    };
    if (getenv("TEST")) /* a pattern of names */
        cmocka_set_test_filter(getenv("TEST"));
    return cmocka_run_group_tests_name("seglog", tests, NULL, teardown);
}
