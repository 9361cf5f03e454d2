/* test_store_feed.c - the events for watchers against a plain list of all that ever happened: resumed at each position there is, with random trims, refused requests and
 * reopened states; "compacted" exactly when something behind the position is gone; damage is told, never skipped. White-box. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/name.h"
#include "raftdir/store_state.h"
#include "support_store.h"

#define EVENTS_MAX 4096

struct model_event {
    uint64_t index, store_id, old_store_id;
    uint32_t ordinal;
    enum store_event event;
    bool reserved, old_reserved;
    char name[32], old_name[32];
};
struct model {
    struct model_event all[EVENTS_MAX];
    size_t n, dropped; /* the first `dropped` are gone */
};

static void add(struct store_txn *txn, struct model *m, uint64_t index, uint64_t *r)
{
    struct model_event *e = &m->all[m->n];
    struct record now = {.state = STORE_ACTIVE}, old = {.state = STORE_ACTIVE};
    uint8_t key[NAME_KEY_LEN_MAX], old_key[NAME_KEY_LEN_MAX];
    memset(e, 0, sizeof *e);
    e->index = index;
    e->ordinal = txn->feed_ordinal;
    e->event = (enum store_event)(1 + support_below(r, 4));
    bool has_now = e->event != STORE_EVENT_DELETED, has_old = e->event == STORE_EVENT_DELETED || e->event == STORE_EVENT_RENAMED || support_below(r, 2);
    snprintf(e->name, sizeof e->name, "user.a%u.b^c", support_below(r, 100));
    if (e->event == STORE_EVENT_RENAMED)
        snprintf(e->old_name, sizeof e->old_name, "x.org!user.%u", support_below(r, 100));
    e->store_id = now.store_id = has_now ? 1 + support_below(r, 9) : 0;
    e->old_store_id = old.store_id = has_old ? 1 + support_below(r, 9) : 0;
    e->reserved = has_now && support_below(r, 4) == 0;
    e->old_reserved = has_old && support_below(r, 4) == 0;
    now.state = e->reserved ? STORE_RESERVED : STORE_ACTIVE;
    old.state = e->old_reserved ? STORE_RESERVED : STORE_ACTIVE;
    size_t len = name_to_key(e->name, strlen(e->name), key), old_len = *e->old_name ? name_to_key(e->old_name, strlen(e->old_name), old_key) : 0;
    assert_int_equal(store_feed_add(txn, e->event, key, len, has_now ? &now : NULL, old_key, old_len, has_old ? &old : NULL, NULL), 0);
    m->n++;
}

/* Some indexes, as one batch does them. */
static void batch(struct store *store, struct model *m, uint64_t *index, uint64_t *r)
{
    struct store_txn *txn;
    assert_int_equal(store_write_begin(store, &txn, NULL), 0);
    for (unsigned i = 1 + support_below(r, 4); i; i--) {
        store_feed_start(txn, ++*index);
        for (unsigned k = support_below(r, 4); k && m->n + 8 < EVENTS_MAX; k--)
            add(txn, m, *index, r);
        if (support_below(r, 4) == 0) { /* a refused request's events are taken back */
            uint32_t ordinal = txn->feed_ordinal;
            size_t n = m->n;
            for (unsigned k = support_below(r, 4); k && m->n + 8 < EVENTS_MAX; k--)
                add(txn, m, *index, r);
            assert_int_equal(store_feed_truncate(txn, ordinal, NULL), 0);
            m->n = n;
        }
    }
    store->options.events_kept = 1 + support_below(r, support_below(r, 3) ? 40 : 8);
    assert_int_equal(store_feed_trim(txn, NULL), 0);
    if (support_below(r, 6) == 0) {
        assert_int_equal(store_feed_trim(txn, NULL), 0); /* nothing more goes */
    }
    if (m->n - m->dropped > store->options.events_kept)
        m->dropped = m->n - store->options.events_kept;
    txn->state.meta.applied_index = *index;
    assert_int_equal(store_write_commit(&txn, NULL), 0);
}

static int model_next(const struct model *m, uint64_t index, uint32_t done, const struct model_event **e_r)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct model_event *e = &m->all[i];
        if (e->index < index || (e->index == index && e->ordinal < done))
            continue;
        *e_r = e;
        return i < m->dropped ? RAFTDIR_ECOMPACTED : 0;
    }
    return RAFTDIR_ENOTFOUND;
}

static void compare_at(struct store_txn *txn, const struct model *m, uint64_t index, uint32_t done)
{
    const struct model_event *want = NULL;
    struct store_feed_event e;
    struct err err = {0};
    int rc = model_next(m, index, done, &want), got = store_feed_next(txn, index, done, &e, &err);
    if (rc != got)
        fail_msg("at %llu:%u: %d instead of %d: %s", (unsigned long long)index, done, got, rc, err.text);
    if (rc)
        return;
    assert_true(e.index == want->index && e.ordinal == want->ordinal && e.event == want->event && e.store_id == want->store_id &&
                e.old_store_id == want->old_store_id && e.reserved == want->reserved && e.old_reserved == want->old_reserved);
    assert_string_equal(e.name, want->name);
    assert_string_equal(e.old_name, want->old_name);
}

static void compare(struct store *store, const struct model *m, uint64_t last)
{
    struct store_txn *txn;
    assert_int_equal(store_read_begin(store, &txn, NULL), 0);
    uint64_t from = m->dropped ? m->all[m->dropped - 1].index : 0;
    for (uint64_t index = from > 3 ? from - 3 : 0; index <= last + 2; index++) {
        for (uint32_t done = 0; done < 9; done++)
            compare_at(txn, m, index, done);
        compare_at(txn, m, index, STORE_FEED_ALL);
    }
    compare_at(txn, m, 0, 0);
    compare_at(txn, m, UINT64_MAX, STORE_FEED_ALL);
    /* Read through, as a watcher does. */
    if (m->n > m->dropped) {
        struct store_feed_event e = {0};
        const struct model_event *first = &m->all[m->dropped];
        uint64_t index = first->index;
        uint32_t done = first->ordinal;
        size_t i = m->dropped;
        for (; store_feed_next(txn, index, done, &e, NULL) == 0; i++) {
            assert_true(i < m->n && e.index == m->all[i].index && e.ordinal == m->all[i].ordinal);
            index = e.index;
            done = e.ordinal + 1;
        }
        assert_int_equal(i, m->n);
    }
    store_read_end(&txn);
}

static void test_model(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    for (int round = 0; round < 4; round++) {
        struct support_store s;
        struct model *m = calloc(1, sizeof *m);
        uint64_t index = 0;
        assert_non_null(m);
        support_store_open(&s, 0);
        compare(s.store, m, 0);
        for (int i = 0; i < 60; i++) {
            batch(s.store, m, &index, &r);
            compare(s.store, m, index);
            if (support_below(&r, 20) == 0) {
                store_close(&s.store);
                support_store_reopen(&s, 0);
            }
        }
        assert_true(m->dropped > 0);
        assert_int_equal(support_verify(&s, false), 0);
        support_store_close(&s);
        free(m);
    }
}

/* Nothing is skipped because it can't be read. */
static void test_damage(void **state)
{
    (void)state;
    uint64_t r = support_seed();
    struct support_store s;
    struct model *m = calloc(1, sizeof *m);
    struct store_txn *txn;
    MDB_val v;
    uint64_t index = 0;
    assert_non_null(m);
    support_store_open(&s, 0);
    while (m->n < 30 || !m->dropped)
        batch(s.store, m, &index, &r);
    while (m->n - m->dropped < 4)
        batch(s.store, m, &index, &r);
    const struct model_event *e = &m->all[m->dropped + 1];
    uint8_t key[12], good[600], bad[600];
    put_be64(key, e->index);
    put_be32(key + 8, e->ordinal);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_get(txn, TABLE_FEED, key, sizeof key, &v, NULL), 0);
    size_t len = v.mv_size;
    memcpy(good, v.mv_data, len);
    store_read_end(&txn);
    for (size_t i = 0; i < 2 * len + 3; i++) {
        size_t bad_len = i < len ? len : i < 2 * len ? i - len : len; /* a flipped bit; cut off; then resealed nonsense */
        struct store_feed_event got;
        memcpy(bad, good, len);
        if (i < len)
            bad[i] ^= (uint8_t)(1u << support_below(&r, 8));
        if (i >= 2 * len) {
            if (i == 2 * len)
                bad[1] = 9;
            else
                put_le16(bad + 32, i == 2 * len + 1 ? 0 : 600);
            record_seal(key, sizeof key, bad[1], get_le16(bad + 2), bad, len);
        }
        assert_int_equal(store_write_begin(s.store, &txn, NULL), 0);
        assert_int_equal(store_put(txn, TABLE_FEED, key, sizeof key, bad, bad_len, 0, NULL), 0);
        assert_int_equal(store_write_commit(&txn, NULL), 0);
        assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
        assert_int_equal(store_feed_next(txn, e->index, e->ordinal, &got, NULL), RAFTDIR_ECORRUPT);
        store_read_end(&txn);
        assert_true(support_verify(&s, true) > 0);
    }
    /* A row that is missing, and a marker in the middle. */
    for (int i = 0; i < 2; i++) {
        struct store_feed_event got;
        uint8_t marker[RECORD_COMMON_LEN];
        const struct model_event *before = &m->all[m->dropped];
        assert_int_equal(store_write_begin(s.store, &txn, NULL), 0);
        record_seal(key, sizeof key, 0, 0, marker, sizeof marker);
        if (i == 0)
            assert_int_equal(store_put(txn, TABLE_FEED, key, sizeof key, marker, sizeof marker, 0, NULL), 0);
        else
            assert_int_equal(store_del(txn, TABLE_FEED, key, sizeof key, NULL), 0);
        assert_int_equal(store_write_commit(&txn, NULL), 0);
        assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
        int rc = store_feed_next(txn, before->index, before->ordinal + 1, &got, NULL);
        /* An index that lost its only event can't be told from one that had none. */
        if (i == 0 || m->all[m->dropped + 2].index == e->index)
            assert_int_equal(rc, RAFTDIR_ECORRUPT);
        store_read_end(&txn);
    }
    support_store_close(&s);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model), cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
