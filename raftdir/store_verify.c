/* store_verify.c - the scrub: everything is read again and compared, in one snapshot (DESIGN D3).
 *
 * Forward: every record's checksum and fields; every index row that it asks for is looked up. Backward: every row of every index is counted, and when
 * there are more than were asked for, each is traced back to its record to name the ones that are too many. Since the rows that are asked for differ
 * from each other, equal counts and no missing row mean equal tables. The digest and the counters are computed anew. On the way every table must ascend, and
 * each row of those that aren't indexes be found by its own key: a damaged page can hide rows from lookups that a walk still meets.
 * Memory: one record's worth of ACL rows. A problem is told and counted; only trouble with the environment itself ends the scrub. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "log.pb-c.h"
#include "name.h"
#include "store_state.h"

#define PROGRESS_EVERY 4096
#define STOP_EVERY 512

struct scrub {
    struct store_txn *txn;
    const struct store_verify_cb *cb;
    struct err *err;
    uint64_t problems, done, total;
    struct record_digest digest;
    uint64_t want[TABLES]; /* rows that the records ask for */
    uint64_t counted;      /* rows of the table that is being counted */
    uint64_t active, mailbox_id_max, change_seq;
    struct store_racl_row rows[ACL_ENTRIES_MAX];
};

static void problem(struct scrub *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void problem(struct scrub *s, const char *fmt, ...)
{
    char text[ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    s->problems++;
    if (s->cb && s->cb->problem)
        s->cb->problem(s->cb->data, text);
}

static int step(struct scrub *s)
{
    s->done++;
    if (s->done % PROGRESS_EVERY == 0 && s->cb && s->cb->progress)
        s->cb->progress(s->cb->data, s->done, s->total);
    if (s->done % STOP_EVERY == 0 && s->cb && s->cb->stop && s->cb->stop(s->cb->data))
        return err_set(s->err, RAFTDIR_ECANCELED, "verify: stopped");
    return 0;
}

static int count_row(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    (void)k;
    (void)v;
    s->counted++;
    return 0;
}

static int compare(const MDB_val *a, const MDB_val *b)
{
    int c = memcmp(a->mv_data, b->mv_data, a->mv_size < b->mv_size ? a->mv_size : b->mv_size);
    return c ? c : (a->mv_size > b->mv_size) - (a->mv_size < b->mv_size);
}

/* Walks a table; row() tells problems itself and returns only trouble. */
static int walk(struct scrub *s, enum store_table table, int (*row)(struct scrub *s, const MDB_val *k, const MDB_val *v))
{
    bool dups = store_table_has_dups(table), told = false;
    MDB_cursor *cursor;
    MDB_val k, v, before_k = {0}, before_v = {0}, found;
    int rc = mdb_cursor_open(s->txn->mdb, s->txn->store->dbi[table], &cursor);
    if (rc)
        return store_fail(s->err, rc, "verify: open a cursor");
    int rc2 = 0;
    uintptr_t page = 0;
    struct err err = {0};
    for (rc = mdb_cursor_get(cursor, &k, &v, MDB_FIRST); rc == 0 && rc2 == 0; rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
        int order = before_k.mv_data ? compare(&before_k, &k) : -1;
        bool ascends = order < 0 || (order == 0 && dups && compare(&before_v, &v) < 0);
        /* By its key the row is at the very place where the cursor is. */
        bool at_its_place = dups || row == count_row || (mdb_get(s->txn->mdb, s->txn->store->dbi[table], &k, &found) == 0 && found.mv_data == v.mv_data);
        if (!told && !(ascends && at_its_place)) {
            problem(s, "table %s: %s; a page is damaged", store_table_name(table), ascends ? "a row isn't found by its key" : "rows are out of order");
            told = true;
        } else if (!told && store_leaf_check(s->txn, table, &k, &page, &err)) {
            problem(s, "%s", err.text);
            told = true;
        }
        before_k = k;
        before_v = v;
        rc2 = row(s, &k, &v);
        if (rc2 == 0)
            rc2 = step(s);
    }
    mdb_cursor_close(cursor);
    if (rc2)
        return rc2;
    return rc && rc != MDB_NOTFOUND ? store_fail(s->err, rc, store_table_name(table)) : 0;
}

/* Is there a row with this key and, unless NULL, this value? */
static int want_row(struct scrub *s, enum store_table table, const void *key, size_t key_len, const void *value, size_t len, const char *whose)
{
    MDB_val v;
    s->want[table]++;
    int rc = store_get(s->txn, table, key, key_len, &v, s->err);
    if (rc == RAFTDIR_ENOTFOUND)
        problem(s, "table %s lacks a row of %s", store_table_name(table), whose);
    else if (rc)
        return rc;
    else if (value && (v.mv_size != len || memcmp(v.mv_data, value, len) != 0))
        problem(s, "table %s has a wrong row of %s", store_table_name(table), whose);
    return 0;
}

static int check_uniqueid(struct scrub *s, struct store_str uniqueid, const MDB_val *k, const char *whose)
{
    MDB_cursor *cursor;
    MDB_val key = {uniqueid.len, (void *)(uintptr_t)uniqueid.s}, v = *k;
    if (uniqueid.len == 0)
        return 0;
    s->want[TABLE_UNIQUEID]++;
    int rc = mdb_cursor_open(s->txn->mdb, s->txn->store->dbi[TABLE_UNIQUEID], &cursor);
    if (rc)
        return store_fail(s->err, rc, "verify: open a cursor");
    rc = mdb_cursor_get(cursor, &key, &v, MDB_GET_BOTH);
    mdb_cursor_close(cursor);
    if (rc == MDB_NOTFOUND)
        problem(s, "table uniqueid lacks a row of %s", whose);
    else if (rc)
        return store_fail(s->err, rc, "uniqueid");
    return 0;
}

/* The ACL's rows into s->rows. A principal without an id is a problem, not trouble. */
static int acl_rows(struct scrub *s, const MDB_val *k, const struct record *r, size_t *n_r, const char *whose)
{
    struct err err = {0};
    *n_r = 0;
    if (r->state != STORE_ACTIVE)
        return 0;
    int rc = store_racl_rows(s->txn, k->mv_data, k->mv_size, r->field[RECORD_ACL], false, s->rows, n_r, &err);
    if (rc == RAFTDIR_ECORRUPT) {
        *n_r = 0;
        problem(s, "%s: %s", whose, err.text);
        return 0;
    }
    return rc ? err_set(s->err, rc, "%s", err.text) : 0;
}

static int check_mailbox(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    char name[NAME_KEY_LEN_MAX + 1], whose[NAME_KEY_LEN_MAX + 32];
    uint8_t row[STORE_KEY_MAX], masks[8];
    struct err err = {0};
    struct record r;
    if (k->mv_size > NAME_KEY_LEN_MAX) {
        problem(s, "table mailbox has a key of %zu bytes", k->mv_size);
        return 0;
    }
    size_t len = name_from_key(k->mv_data, k->mv_size, name);
    snprintf(whose, sizeof whose, "mailbox \"%s\"", name);
    if (record_decode(k->mv_data, k->mv_size, v->mv_data, v->mv_size, &r, &err)) {
        problem(s, "%s: %s", whose, err.text);
        return 0;
    }
    /* Only now: the length of what doesn't decode may be anything, and lead beyond the file. */
    record_digest_add(&s->digest, TABLE_MAILBOX, k->mv_data, k->mv_size, v->mv_data, v->mv_size);
    if (name_check(name, len, &err))
        problem(s, "%s: %s", whose, err.text);
    s->active += r.state == STORE_ACTIVE;
    if (r.id > s->mailbox_id_max)
        s->mailbox_id_max = r.id;
    if (r.generation > s->change_seq)
        s->change_seq = r.generation;
    memcpy(row + 8, k->mv_data, k->mv_size);
    put_be64(row, r.store_id);
    int rc = want_row(s, TABLE_STORE, row, 8 + k->mv_size, "", 0, whose);
    if (!rc && r.state == STORE_RESERVED && r.reserved_until_ms) {
        put_be64(row, r.reserved_until_ms);
        rc = want_row(s, TABLE_RESERVED, row, 8 + k->mv_size, "", 0, whose);
    }
    if (!rc)
        rc = check_uniqueid(s, r.field[RECORD_UNIQUEID], k, whose);
    for (int i = 0; i < 2 && !rc; i++) {
        const struct record_store *place;
        uint64_t id = i ? r.moving_store_id : r.store_id;
        if (id && store_place_get(s->txn, id, &place, &err))
            problem(s, "%s: %s", whose, err.text);
    }
    size_t n = 0;
    if (!rc)
        rc = acl_rows(s, k, &r, &n, whose);
    for (size_t i = 0; i < n && !rc; i++) {
        put_be64(row, s->rows[i].principal);
        put_le32(masks, s->rows[i].positive);
        put_le32(masks + 4, s->rows[i].negative);
        rc = want_row(s, TABLE_RACL, row, 8 + k->mv_size, masks, sizeof masks, whose);
    }
    return rc;
}

static int check_store(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct err err = {0};
    struct record_store store;
    char whose[64];
    if (k->mv_size != 8) {
        problem(s, "table stores has a key of %zu bytes", k->mv_size);
        return 0;
    }
    snprintf(whose, sizeof whose, "store %llu", (unsigned long long)get_be64(k->mv_data));
    if (get_be64(k->mv_data) > s->txn->state.store_id_max)
        problem(s, "%s has an id that wasn't given yet", whose);
    if (record_decode_store(k->mv_data, k->mv_size, v->mv_data, v->mv_size, &store, &err)) {
        problem(s, "%s: %s", whose, err.text);
        return 0;
    }
    record_digest_add(&s->digest, TABLE_STORES, k->mv_data, k->mv_size, v->mv_data, v->mv_size);
    for (unsigned i = 0; i < store.slots_n; i++) {
        const struct record_slot *slot = &store.slot[i];
        uint8_t key[8 + PARTITION_LEN_MAX], id_key[9], name_key[STORE_KEY_MAX], id[8];
        if (slot->partition.len > PARTITION_LEN_MAX || slot->server.len > SERVER_LEN_MAX) {
            problem(s, "%s: slot %u has a server or partition that is too long", whose, i);
            continue;
        }
        put_be64(key, slot->server_id);
        memcpy(key + 8, slot->partition.s, slot->partition.len);
        int rc = want_row(s, TABLE_SLOT, key, 8 + slot->partition.len, k->mv_data, 8, whose);
        if (rc)
            return rc;
        /* The server's name is written down in the slot too: both say the same. */
        MDB_val value;
        struct store_str name;
        id_key[0] = 'i';
        put_be64(id_key + 1, slot->server_id);
        rc = store_get(s->txn, TABLE_SERVERS, id_key, sizeof id_key, &value, s->err);
        if (rc && rc != RAFTDIR_ENOTFOUND)
            return rc;
        if (rc || record_decode_rest(id_key, sizeof id_key, value.mv_data, value.mv_size, RECORD_COMMON_LEN, &name, &err) ||
            !str_eq(name, slot->server))
            problem(s, "%s: slot %u names server \"%.*s\", whose record is missing or another", whose, i, (int)slot->server.len, slot->server.s);
        put_be64(id, slot->server_id);
        size_t name_len = store_server_key(slot->server, name_key, &rc, s->err);
        MDB_val found;
        if (!rc)
            rc = store_get(s->txn, TABLE_SERVERS, name_key, name_len, &found, s->err);
        if (rc == RAFTDIR_ENOTFOUND || (!rc && (found.mv_size != 8 || memcmp(found.mv_data, id, 8) != 0)))
            problem(s, "%s: server \"%.*s\" isn't found by its name", whose, (int)slot->server.len, slot->server.s);
        else if (rc)
            return rc;
    }
    return 0;
}

static int check_server(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct err err = {0};
    struct store_str name;
    const uint8_t *key = k->mv_data;
    if (key[0] == 'n' || key[0] == 'h')
        return 0; /* counted against the 'i' rows */
    s->want[TABLE_SERVERS]++;
    if (key[0] != 'i' || k->mv_size != 9) {
        problem(s, "table servers has a malformed key");
        return 0;
    }
    if (record_decode_rest(key, k->mv_size, v->mv_data, v->mv_size, RECORD_COMMON_LEN, &name, &err)) {
        problem(s, "server %llu: %s", (unsigned long long)get_be64(key + 1), err.text);
        return 0;
    }
    record_digest_add(&s->digest, TABLE_SERVERS, k->mv_data, k->mv_size, v->mv_data, v->mv_size);
    if (get_be64(key + 1) > s->txn->state.server_id_max)
        problem(s, "server \"%.*s\" has an id that wasn't given yet", (int)name.len, name.s);
    uint8_t name_key[STORE_KEY_MAX];
    int rc;
    size_t len = store_server_key(name, name_key, &rc, s->err);
    return rc ? rc : want_row(s, TABLE_SERVERS, name_key, len, key + 1, 8, "a server");
}

static int check_op(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct err err = {0};
    struct store_str rest;
    if (k->mv_size != 8 + OP_ID_LEN) {
        problem(s, "table op has a key of %zu bytes", k->mv_size);
    } else if (record_decode_rest(k->mv_data, k->mv_size, v->mv_data, v->mv_size, RECORD_RESULT_HEAD_LEN, &rest, &err)) {
        problem(s, "a stored result: %s", err.text);
    } else {
        store_op_digest(&s->digest, true, k->mv_data, k->mv_size, v->mv_data, v->mv_size);
    }
    return 0;
}

/* Each node's own, outside the digest. */
static int check_feed(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    if (!store_feed_row_good(k, v))
        problem(s, "table feed has a malformed row");
    return 0;
}

static int check_digest(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    if (k->mv_size != 8 || v->mv_size != 16 || get_be64(k->mv_data) > s->txn->state.meta.applied_index)
        problem(s, "table digests has a malformed row");
    return 0;
}

static int check_principal(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    if (v->mv_size != 8 || get_be64(v->mv_data) == 0 || get_be64(v->mv_data) > s->txn->state.principal_id_max)
        problem(s, "principal \"%.*s\" has a wrong id", (int)k->mv_size, (const char *)k->mv_data);
    return 0;
}

/* The record that an index row points to, or a problem. */
static bool trace(struct scrub *s, enum store_table table, const uint8_t *key, size_t len, struct record *r, int *rc_r)
{
    char name[NAME_KEY_LEN_MAX + 1];
    struct err err = {0};
    MDB_val v;
    *rc_r = 0;
    if (len == 0 || len > NAME_KEY_LEN_MAX) {
        problem(s, "table %s has a malformed row", store_table_name(table));
        return false;
    }
    int rc = store_mailbox_get(s->txn, key, len, r, &v, &err);
    if (rc == 0)
        return true;
    name_from_key(key, len, name);
    if (rc == RAFTDIR_ENOTFOUND)
        problem(s, "table %s has a row of mailbox \"%s\", which doesn't exist", store_table_name(table), name);
    else if (rc != RAFTDIR_ECORRUPT && rc != RAFTDIR_EVERSION) /* these were told already */
        *rc_r = err_set(s->err, rc, "%s", err.text);
    return false;
}

static void problem_extra(struct scrub *s, enum store_table table, const uint8_t *key, size_t len)
{
    char name[NAME_KEY_LEN_MAX + 1];
    name_from_key(key, len, name);
    problem(s, "table %s has a row of mailbox \"%s\" that its record doesn't ask for", store_table_name(table), name);
}

static int trace_store(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct record r;
    int rc;
    (void)v;
    const uint8_t *key = (const uint8_t *)k->mv_data + 8;
    size_t len = k->mv_size < 8 ? 0 : k->mv_size - 8;
    if (trace(s, TABLE_STORE, key, len, &r, &rc) && r.store_id != get_be64(k->mv_data))
        problem_extra(s, TABLE_STORE, key, len);
    return rc;
}

static int trace_reserved(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct record r;
    int rc;
    (void)v;
    const uint8_t *key = (const uint8_t *)k->mv_data + 8;
    size_t len = k->mv_size < 8 ? 0 : k->mv_size - 8;
    if (trace(s, TABLE_RESERVED, key, len, &r, &rc) && (r.state != STORE_RESERVED || r.reserved_until_ms != get_be64(k->mv_data)))
        problem_extra(s, TABLE_RESERVED, key, len);
    return rc;
}

static int trace_uniqueid(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct record r;
    int rc;
    if (trace(s, TABLE_UNIQUEID, v->mv_data, v->mv_size, &r, &rc) &&
        !str_eq(r.field[RECORD_UNIQUEID], (struct store_str){k->mv_data, k->mv_size}))
        problem_extra(s, TABLE_UNIQUEID, v->mv_data, v->mv_size);
    return rc;
}

static int trace_racl(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct record r;
    int rc;
    size_t n;
    (void)v;
    MDB_val name = {k->mv_size < 8 ? 0 : k->mv_size - 8, (uint8_t *)k->mv_data + 8};
    if (!trace(s, TABLE_RACL, name.mv_data, name.mv_size, &r, &rc))
        return rc;
    rc = acl_rows(s, &name, &r, &n, "a mailbox");
    bool found = false;
    for (size_t i = 0; i < n; i++)
        found |= s->rows[i].principal == get_be64(k->mv_data);
    if (!rc && !found)
        problem_extra(s, TABLE_RACL, name.mv_data, name.mv_size);
    return rc;
}

static int trace_slot(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    struct err err = {0};
    const struct record_store *place;
    if (k->mv_size < 8 || v->mv_size != 8) {
        problem(s, "table slot has a malformed row");
        return 0;
    }
    struct store_str partition = {(const char *)k->mv_data + 8, k->mv_size - 8};
    bool found = false;
    if (store_place_get(s->txn, get_be64(v->mv_data), &place, &err) == 0) {
        for (unsigned i = 0; i < place->slots_n; i++)
            found |= place->slot[i].server_id == get_be64(k->mv_data) && str_eq(place->slot[i].partition, partition);
    }
    if (!found)
        problem(s, "table slot has a row for partition \"%.*s\" that its store doesn't ask for", (int)partition.len, partition.s);
    return 0;
}

static int trace_server(struct scrub *s, const MDB_val *k, const MDB_val *v)
{
    const uint8_t *key = k->mv_data;
    uint8_t id_key[9] = {'i'}, name_key[STORE_KEY_MAX];
    struct err err = {0};
    struct store_str name;
    MDB_val value;
    int rc;
    if (key[0] == 'i')
        return 0;
    if (v->mv_size == 8) {
        memcpy(id_key + 1, v->mv_data, 8);
        rc = store_get(s->txn, TABLE_SERVERS, id_key, sizeof id_key, &value, s->err);
        if (rc && rc != RAFTDIR_ENOTFOUND)
            return rc;
        if (!rc && record_decode_rest(id_key, sizeof id_key, value.mv_data, value.mv_size, RECORD_COMMON_LEN, &name, &err) == 0) {
            size_t len = store_server_key(name, name_key, &rc, s->err);
            if (rc)
                return rc;
            if (len == k->mv_size && memcmp(name_key, key, len) == 0)
                return 0;
        }
    }
    problem(s, "table servers has a name that no server has");
    return 0;
}

/* Backward: count, and trace when the count is wrong. */
static int check_count(struct scrub *s, enum store_table table, int (*row)(struct scrub *s, const MDB_val *k, const MDB_val *v))
{
    s->counted = 0;
    int rc = walk(s, table, count_row);
    uint64_t have = s->counted;
    if (rc || have == s->want[table])
        return rc;
    uint64_t before = s->problems;
    s->total += have; /* once more */
    rc = walk(s, table, row);
    if (!rc && s->problems == before && have > s->want[table])
        problem(s, "table %s has %llu rows instead of %llu", store_table_name(table), (unsigned long long)have, (unsigned long long)s->want[table]);
    return rc;
}

int store_verify(struct store_txn *txn, const struct store_verify_cb *cb, uint8_t digest_r[16], uint64_t *problems_r, struct err *err)
{
    struct scrub *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, RAFTDIR_ENOMEM, "verify: out of memory");
    s->txn = txn;
    s->cb = cb;
    s->err = err;
    static const enum store_table walked[] = {TABLE_MAILBOX, TABLE_STORES, TABLE_SERVERS, TABLE_OP, TABLE_PRINCIPAL, TABLE_FEED, TABLE_DIGESTS,
                                              TABLE_STORE, TABLE_RESERVED, TABLE_UNIQUEID, TABLE_RACL, TABLE_SLOT, TABLE_SERVERS};
    int rc = 0;
    for (size_t i = 0; i < sizeof walked / sizeof *walked && !rc; i++) {
        MDB_stat st;
        rc = mdb_stat(txn->mdb, txn->store->dbi[walked[i]], &st);
        if (rc)
            rc = store_fail(err, rc, "verify");
        else
            s->total += st.ms_entries;
    }
    if (!rc)
        rc = store_state_get(txn, err);
    const uint8_t *configuration;
    size_t configuration_len;
    uint64_t configuration_index;
    if (!rc)
        rc = store_configuration_get(txn, &configuration, &configuration_len, &configuration_index, err);
    static const struct {
        enum store_table table;
        int (*row)(struct scrub *s, const MDB_val *k, const MDB_val *v);
    } forward[] = {{TABLE_MAILBOX, check_mailbox}, {TABLE_STORES, check_store}, {TABLE_SERVERS, check_server}, {TABLE_OP, check_op},
                   {TABLE_PRINCIPAL, check_principal}, {TABLE_FEED, check_feed}, {TABLE_DIGESTS, check_digest}},
      backward[] = {{TABLE_STORE, trace_store}, {TABLE_RESERVED, trace_reserved}, {TABLE_UNIQUEID, trace_uniqueid}, {TABLE_RACL, trace_racl},
                    {TABLE_SLOT, trace_slot}, {TABLE_SERVERS, trace_server}};
    for (size_t i = 0; i < sizeof forward / sizeof *forward && !rc; i++)
        rc = walk(s, forward[i].table, forward[i].row);
    for (size_t i = 0; i < sizeof backward / sizeof *backward && !rc; i++)
        rc = check_count(s, backward[i].table, backward[i].row);
    if (!rc) {
        const struct store_totals *t = &txn->state;
        if (s->active != t->meta.mailboxes)
            problem(s, "%llu mailboxes are active, the counter says %llu", (unsigned long long)s->active, (unsigned long long)t->meta.mailboxes);
        if (s->mailbox_id_max > t->mailbox_id_max || s->change_seq > t->meta.change_seq)
            problem(s, "a mailbox has an id or a generation that wasn't given yet");
        if (s->digest.lo != t->digest.lo || s->digest.hi != t->digest.hi)
            problem(s, "the digest of the records is not the one that is written down");
        record_digest_bytes(&s->digest, digest_r);
        if (cb && cb->progress)
            cb->progress(cb->data, s->total, s->total);
    }
    *problems_r = s->problems; /* those that were told before trouble ended it, too */
    free(s);
    return rc;
}
