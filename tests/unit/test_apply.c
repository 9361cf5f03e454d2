/* test_apply.c - what the random stream of test_apply_model.c doesn't reach: big subtrees and their limit, a request too big to be taken back,
 * replicas' registrations, the feed, what a digest leaves out, checkpoints. White-box. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <raft.h>
#include "raftdir/name.h"
#include "raftdir/op.h"
#include "raftdir/store_state.h"
#include "support_store.h"

static void put_tree(struct support_store *s, const char *root, int from, int to, const char *acl)
{
    struct support_arena a = {0};
    Raftdir__Log__Op *ops[500];
    for (int i = from; i < to;) {
        size_t n = 0;
        for (; n < 500 && i < to; i++, n++) {
            char name[64];
            snprintf(name, sizeof name, "%s.f%06d", root, i);
            ops[n] = support_put(&a, name, "be1", "p1", acl);
        }
        assert_int_equal(support_apply(&a, s, support_request(&a, s, ops, n))->code, 0);
        support_free(&a);
    }
}

static Raftdir__Log__Op *rename_op(struct support_arena *a, const char *from, const char *to)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_RENAME);
    op->rename->from = support_text(a, from);
    op->rename->to = support_text(a, to);
    op->rename->has_subtree = op->rename->subtree = true;
    return op;
}

static bool exists(struct support_store *s, const char *name)
{
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    assert_int_equal(store_read_begin(s->store, &txn, &err), 0);
    int rc = store_lookup(txn, name, strlen(name), &m, &err);
    assert_true(rc == 0 || rc == RAFTDIR_ENOTFOUND);
    store_read_end(&txn);
    return rc == 0;
}

static void test_big_subtree(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    put_tree(&s, "user.big", 0, SUBTREE_MAX, "big\tlrs\t");
    Raftdir__Log__Op *op = rename_op(&a, "user.big", "user.huge");
    Raftdir__Log__Result *r = support_apply(&a, &s, support_request(&a, &s, &op, 1));
    assert_int_equal(r->code, 0);
    assert_int_equal(r->ops[0]->changed, SUBTREE_MAX);
    assert_true(exists(&s, "user.huge.f099999") && !exists(&s, "user.big.f099999"));
    put_tree(&s, "user.huge", SUBTREE_MAX, SUBTREE_MAX + 1, "big\tlrs\t");
    uint8_t before[16];
    support_digest(&s, before);
    assert_int_equal(support_do(&a, &s, rename_op(&a, "user.huge", "user.x")), RAFTDIR_ETOOBIG);
    assert_int_equal(support_do(&a, &s, support_delete(&a, "user.huge", true)), RAFTDIR_ETOOBIG);
    assert_true(exists(&s, "user.huge.f100000"));
    assert_int_equal(support_do(&a, &s, support_delete(&a, "user.huge.f100000", true)), 0);
    assert_int_equal(support_do(&a, &s, support_delete(&a, "user.huge", true)), 0);
    struct store_txn *txn;
    struct store_meta meta;
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_meta_get(txn, &meta, NULL), 0);
    assert_int_equal(meta.mailboxes, 0);
    store_read_end(&txn);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

static void test_too_big_to_take_back(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    put_tree(&s, "user.t", 0, 100, "t\tlrs\tanyone\tl\t");
    s.store->writer->undo.len_max = 30000;
    /* Some renames fit, then it is too much: all of them are taken back. */
    Raftdir__Log__Op *ops[6] = {support_put(&a, "user.new", "be7", "p7", "fresh\tl\t"), rename_op(&a, "user.t", "user.u"), rename_op(&a, "user.u", "user.v"),
                                rename_op(&a, "user.v", "user.w"), rename_op(&a, "user.w", "user.x"), support_delete(&a, "user.x", true)};
    Raftdir__Log__Result *r = support_apply(&a, &s, support_request(&a, &s, ops, 6));
    assert_int_equal(r->code, RAFTDIR_ETOOBIG);
    assert_true(r->failed_op > 0 && r->failed_op < 5);
    assert_true(exists(&s, "user.t.f000099") && !exists(&s, "user.x.f000000") && !exists(&s, "user.new"));
    assert_int_equal(support_verify(&s, false), 0);
    /* By itself one of them needs no taking back. */
    assert_int_equal(support_do(&a, &s, ops[1]), 0);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

/* A store of two slots, be1!p1 active and be2!p2 its replica, as a later release will make them. */
static void add_replica_slot(struct support_store *s)
{
    struct store_txn *txn;
    struct err err = {0};
    struct record_store two;
    uint64_t id, be2_id;
    bool active;
    MDB_val v;
    uint8_t key[8], buf[RECORD_STORE_LEN_MAX], old[RECORD_STORE_LEN_MAX], slot[10];
    assert_int_equal(store_write_begin(s->store, &txn, &err), 0);
    assert_int_equal(store_place_find(txn, (struct store_str){"be1", 3}, (struct store_str){"p1", 2}, &id, &active, &err), 0);
    assert_int_equal(store_server_find(txn, (struct store_str){"be2", 3}, &be2_id, &err), 0);
    put_be64(key, id);
    assert_int_equal(store_get(txn, TABLE_STORES, key, 8, &v, &err), 0);
    size_t old_len = v.mv_size;
    memcpy(old, v.mv_data, old_len);
    assert_int_equal(record_decode_store(key, 8, old, old_len, &two, &err), 0);
    two.implicit = false;
    two.epoch = 5;
    two.slots_n = 2;
    two.slot[1] = (struct record_slot){be2_id, {"be2", 3}, {"p2", 2}};
    size_t len = record_encode_store(key, 8, &two, buf);
    record_digest_sub(&txn->state.digest, TABLE_STORES, key, 8, old, old_len);
    record_digest_add(&txn->state.digest, TABLE_STORES, key, 8, buf, len);
    assert_int_equal(store_put(txn, TABLE_STORES, key, 8, buf, len, 0, &err), 0);
    put_be64(slot, be2_id);
    memcpy(slot + 8, "p2", 2);
    assert_int_equal(store_put(txn, TABLE_SLOT, slot, 10, key, 8, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
}

static int activate(struct support_arena *a, struct support_store *s, const char *name, const char *server, const char *partition, const char *acl)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_ACTIVATE);
    op->activate->mailbox = support_mailbox(a, name, server, partition, acl);
    return support_do(a, s, op);
}

static void test_replica_and_epoch(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    assert_int_equal(activate(&a, &s, "user.a", "be1", "p1", "a\tlrs\t"), 0);
    assert_int_equal(activate(&a, &s, "user.b", "be2", "px", "b\tlrs\t"), 0); /* makes the server be2 known */
    add_replica_slot(&s);
    assert_int_equal(support_verify(&s, false), 0);
    uint8_t before[16], after[16];
    /* The same again from the replica succeeds and changes nothing but its own result; anything else is refused. */
    struct store_txn *txn;
    struct store_mailbox m;
    assert_int_equal(activate(&a, &s, "user.a", "be2", "p2", "a\tlrs\t"), 0);
    assert_int_equal(activate(&a, &s, "user.a", "be2", "p2", "a\tl\t"), RAFTDIR_EOTHERSTORE);
    assert_int_equal(activate(&a, &s, "user.new", "be2", "p2", "a\tl\t"), RAFTDIR_EOTHERSTORE);
    Raftdir__Log__Op *op = support_delete(&a, "user.a", false);
    op->delete_->location = support_location(&a, "be2", "p2");
    assert_int_equal(support_do(&a, &s, op), RAFTDIR_EOTHERSTORE);
    op = support_op(&a, RAFTDIR__LOG__OP__OP_DEACTIVATE);
    op->deactivate->name = support_text(&a, "user.a");
    op->deactivate->location = support_location(&a, "be2", "p2");
    assert_int_equal(support_do(&a, &s, op), RAFTDIR_EOTHERSTORE);
    op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(&a, "user.a");
    op->reserve->location = support_location(&a, "be2", "p2");
    assert_int_equal(support_do(&a, &s, op), 0); /* is registered there already */
    op->reserve->name = support_text(&a, "user.new");
    assert_int_equal(support_do(&a, &s, op), RAFTDIR_EOTHERSTORE);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_lookup(txn, "user.a", 6, &m, NULL), 0);
    assert_true(m.server.len == 3 && memcmp(m.server.s, "be1", 3) == 0 && m.store_epoch == 5);
    assert_int_equal(m.generation, 1);
    store_read_end(&txn);
    /* The fence: who believes in another epoch writes nothing. */
    support_digest(&s, before);
    op = support_delete(&a, "user.a", false);
    Raftdir__Log__Request *req = support_request(&a, &s, &op, 1);
    req->has_store_epoch = true;
    req->store_epoch = 4;
    assert_int_equal(support_apply(&a, &s, req)->code, RAFTDIR_EFENCED);
    support_digest(&s, after);
    assert_memory_not_equal(before, after, 16); /* the refusal is kept */
    assert_true(exists(&s, "user.a"));
    req = support_request(&a, &s, &op, 1);
    req->has_store_epoch = true;
    req->store_epoch = 5;
    assert_int_equal(support_apply(&a, &s, req)->code, 0);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

/* RESERVE and ACTIVATE as a MUPDATE listener sends them. */
static Raftdir__Log__Op *any_reserve(struct support_arena *a, const char *name, const char *server, const char *partition, const char *token)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(a, name);
    op->reserve->location = support_location(a, server, partition);
    op->reserve->has_any_partition = op->reserve->any_partition = true;
    op->reserve->has_token = token != NULL;
    op->reserve->token.data = (uint8_t *)support_text(a, token);
    op->reserve->token.len = token ? strlen(token) : 0;
    return op;
}

static Raftdir__Log__Op *any_activate(struct support_arena *a, const char *name, const char *server, const char *partition, const char *acl)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_ACTIVATE);
    op->activate->mailbox = support_mailbox(a, name, server, partition, acl);
    op->activate->has_any_partition = op->activate->any_partition = true;
    return op;
}

static void check_place(struct support_store *s, const char *name, enum store_state wanted, const char *server, const char *partition, const char *acl)
{
    struct store_txn *txn;
    struct store_mailbox m;
    assert_int_equal(store_read_begin(s->store, &txn, NULL), 0);
    assert_int_equal(store_lookup(txn, name, strlen(name), &m, NULL), 0);
    assert_int_equal(m.state, wanted);
    assert_true(m.server.len == strlen(server) && memcmp(m.server.s, server, m.server.len) == 0);
    assert_true(m.partition.len == strlen(partition) && memcmp(m.partition.s, partition, m.partition.len) == 0);
    assert_true(m.acl.len == strlen(acl) && memcmp(m.acl.s, acl, m.acl.len) == 0);
    store_read_end(&txn);
}

static void test_any_partition(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    /* Active: a RESERVE from any partition of its server changes nothing, an ACTIVATE moves it; another server gets neither. */
    assert_int_equal(activate(&a, &s, "user.a", "be1", "p1", "a\tlrs\t"), 0);
    Raftdir__Log__Op *op = any_reserve(&a, "user.a", "be1", "p2", NULL);
    Raftdir__Log__Result *r = support_apply(&a, &s, support_request(&a, &s, &op, 1));
    assert_true(r->code == 0 && r->ops[0]->changed == 0);
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.a", "be2", "p1", NULL)), RAFTDIR_EEXIST);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.a", "be2", "p1", "a\tl\t")), RAFTDIR_EOTHERSTORE);
    assert_int_equal(activate(&a, &s, "user.a", "be1", "p2", "a\tl\t"), RAFTDIR_EOTHERSTORE); /* without it: another store */
    check_place(&s, "user.a", STORE_ACTIVE, "be1", "p1", "a\tlrs\t");
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.a", "be1", "p2", "a\tl\t")), 0);
    check_place(&s, "user.a", STORE_ACTIVE, "be1", "p2", "a\tl\t");
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.a", "be1", "", "")), 0); /* keeps the partition, and the ACL is empty, not kept */
    check_place(&s, "user.a", STORE_ACTIVE, "be1", "p2", "");
    /* Reserved without a token: the server's own, wherever there. With one: its owner's. */
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.r", "be1", "p1", NULL)), 0);
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.r", "be1", "p2", NULL)), 0);
    check_place(&s, "user.r", STORE_RESERVED, "be1", "p2", "");
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.r", "be2", "p2", NULL)), RAFTDIR_ERESERVED);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.r", "be2", "p2", "r\tl\t")), RAFTDIR_ERESERVED);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.r", "be1", "p3", "r\tl\t")), 0);
    check_place(&s, "user.r", STORE_ACTIVE, "be1", "p3", "r\tl\t");
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.t", "be1", "p1", "secret")), 0);
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.t", "be1", "p2", NULL)), RAFTDIR_ERESERVED);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.t", "be1", "p2", "t\tl\t")), RAFTDIR_ERESERVED);
    op = any_activate(&a, "user.t", "be2", "px", "t\tl\t");
    op->activate->has_token = true;
    op->activate->token = (ProtobufCBinaryData){6, (uint8_t *)support_text(&a, "secret")};
    assert_int_equal(support_do(&a, &s, op), 0);
    /* Of a declared store, the active slot's server counts: a replica's server has nothing there. */
    assert_int_equal(activate(&a, &s, "user.b", "be1", "p1", "b\tl\t"), 0);
    add_replica_slot(&s);
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.b", "be2", "px", NULL)), RAFTDIR_EEXIST);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.b", "be2", "px", "b\tl\t")), RAFTDIR_EOTHERSTORE);
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.b", "be2", "p2", "b\tlr\t")), RAFTDIR_EOTHERSTORE);
    assert_int_equal(support_do(&a, &s, any_reserve(&a, "user.b", "be1", "px", NULL)), 0);
    check_place(&s, "user.b", STORE_ACTIVE, "be1", "p1", "b\tl\t");
    assert_int_equal(support_do(&a, &s, any_activate(&a, "user.b", "be1", "px", "b\tl\t")), 0);
    check_place(&s, "user.b", STORE_ACTIVE, "be1", "px", "b\tl\t");
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

struct event {
    uint64_t index;
    uint32_t ordinal;
    uint8_t kind;
    char name[64], old[64];
};

static size_t events(struct support_store *s, struct event *list, size_t max)
{
    struct store_txn *txn;
    MDB_cursor *cursor;
    MDB_val k, v;
    size_t n = 0;
    assert_int_equal(store_read_begin(s->store, &txn, NULL), 0);
    assert_int_equal(mdb_cursor_open(txn->mdb, s->store->dbi[TABLE_FEED], &cursor), 0);
    while (n < max && mdb_cursor_get(cursor, &k, &v, MDB_NEXT) == 0) {
        struct event *e = &list[n++];
        memset(e, 0, sizeof *e);
        e->index = get_be64(k.mv_data);
        e->ordinal = get_be32((uint8_t *)k.mv_data + 8);
        e->kind = ((uint8_t *)v.mv_data)[1];
        if (!e->kind) { /* the marker of what was dropped */
            n--;
            continue;
        }
        struct store_feed_event f;
        assert_int_equal(store_feed_next(txn, e->index, e->ordinal, &f, NULL), 0);
        assert_true(f.index == e->index && f.ordinal == e->ordinal);
        assert_true(strlen(f.name) < sizeof e->name && strlen(f.old_name) < sizeof e->old);
        memcpy(e->name, f.name, strlen(f.name));
        memcpy(e->old, f.old_name, strlen(f.old_name));
    }
    mdb_cursor_close(cursor);
    store_read_end(&txn);
    return n;
}

static void test_feed(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct event list[32];
    support_store_open(&s, 0);
    Raftdir__Log__Op *ops[3] = {support_put(&a, "user.a", "be1", "p1", ""), support_put(&a, "user.a.b", "be1", "p1", ""), rename_op(&a, "user.a", "user.c")};
    assert_int_equal(support_apply(&a, &s, support_request(&a, &s, ops, 3))->code, 0);
    /* What is refused, or changes nothing, is no event: also after some of its operations had worked. */
    Raftdir__Log__Op *bad[3] = {support_put(&a, "user.d", "be1", "p1", ""), support_delete(&a, "user.c", true), support_delete(&a, "user.none", false)};
    Raftdir__Log__Request *reqs[2] = {support_request(&a, &s, bad, 3), support_request(&a, &s, &bad[0], 1)};
    struct entry *e = support_entry(&s, ++s.index, reqs, 2);
    struct apply_batch *b = apply_batch_create(&e, 1);
    apply_batch_run(s.store, b);
    assert_int_equal(b->status, 0);
    apply_batch_destroy(&b);
    entry_unref(e);
    assert_int_equal(support_do(&a, &s, support_put(&a, "user.d", "be1", "p1", "")), 0); /* the same again */
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(&a, "user.r");
    op->reserve->location = support_location(&a, "be1", "p1");
    op->reserve->has_ttl_ms = true;
    op->reserve->ttl_ms = 10;
    assert_int_equal(support_do(&a, &s, op), 0);
    s.log_time_ms += 10;
    assert_int_equal(support_do(&a, &s, support_delete(&a, "user.d", false)), 0);
    static const struct event want[] = {
        {1, 0, STORE_EVENT_CHANGED, "user.a", ""},  {1, 1, STORE_EVENT_CHANGED, "user.a.b", ""},  {1, 2, STORE_EVENT_RENAMED, "user.c", "user.a"},
        {1, 3, STORE_EVENT_RENAMED, "user.c.b", "user.a.b"}, {2, 0, STORE_EVENT_CHANGED, "user.d", ""}, {4, 0, STORE_EVENT_RESERVED, "user.r", ""},
        {5, 0, STORE_EVENT_DELETED, "user.r", ""},  {5, 1, STORE_EVENT_DELETED, "user.d", ""},
    };
    assert_int_equal(events(&s, list, 32), sizeof want / sizeof *want);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_string_equal(list[i].name, want[i].name);
        assert_string_equal(list[i].old, want[i].old);
        assert_true(list[i].index == want[i].index && list[i].ordinal == want[i].ordinal && list[i].kind == want[i].kind);
    }
    support_free(&a);
    support_store_close(&s);
}

static void test_feed_is_trimmed(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_txn *txn;
    struct event first;
    MDB_stat st;
    support_store_open(&s, 0);
    assert_int_equal(store_write_begin(s.store, &txn, NULL), 0);
    store_feed_start(txn, 0);
    for (int i = 0; i < FEED_EVENTS_KEPT + 50; i++)
        assert_int_equal(store_feed_add(txn, STORE_EVENT_CHANGED, (const uint8_t *)"x", 1, NULL, NULL, 0, NULL, NULL), 0);
    assert_int_equal(store_write_commit(&txn, NULL), 0);
    assert_int_equal(support_do(&a, &s, support_put(&a, "user.a", "be1", "p1", "")), 0);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(mdb_stat(txn->mdb, s.store->dbi[TABLE_FEED], &st), 0);
    assert_int_equal(st.ms_entries, FEED_EVENTS_KEPT + 1); /* and the marker */
    store_read_end(&txn);
    assert_int_equal(events(&s, &first, 1), 1);
    assert_int_equal(first.ordinal, 51); /* the oldest are gone, the newest is in */
    support_free(&a);
    support_store_close(&s);
}

/* A later version may word a refusal anew: that must be no divergence. So no text is kept; the first answer has it, a repeated one hasn't. */
static void test_no_text_in_the_state(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_txn *txn;
    MDB_cursor *cursor;
    MDB_val k, v;
    support_store_open(&s, 0);
    Raftdir__Log__Op *ops[] = {support_put(&a, "user.a", "be1", "p1", ""), support_delete(&a, "user.none", false)};
    Raftdir__Log__Request *req = support_request(&a, &s, ops, 2);
    Raftdir__Log__Result *first = support_apply(&a, &s, req);
    assert_int_equal(first->code, RAFTDIR_ENOTFOUND);
    assert_non_null(first->message);
    assert_non_null(strstr(first->message, "user.none"));
    Raftdir__Log__Result *again = support_apply(&a, &s, req);
    assert_int_equal(again->code, first->code);
    assert_int_equal(again->index, first->index);
    assert_true(again->has_failed_op && again->failed_op == 1);
    assert_null(again->message);

    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_cursor(txn, TABLE_OP, &cursor, NULL), 0);
    int rows = 0;
    while (mdb_cursor_get(cursor, &k, &v, MDB_NEXT) == 0) {
        Raftdir__Log__Result *kept =
            raftdir__log__result__unpack(NULL, v.mv_size - RECORD_RESULT_HEAD_LEN, (uint8_t *)v.mv_data + RECORD_RESULT_HEAD_LEN);
        assert_non_null(kept);
        assert_null(kept->message);
        raftdir__log__result__free_unpacked(kept, NULL);
        rows++;
    }
    assert_int_equal(rows, 1);
    mdb_cursor_close(cursor); /* a read transaction's isn't closed with it */
    store_read_end(&txn);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

/* More results run out at once than one entry removes: the rest is refused all the same, and goes with the next entries. */
static void test_expiry_is_bounded(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    enum { N = OP_EXPIRE_BATCH + 100 };
    Raftdir__Log__Request **reqs = calloc(N, sizeof *reqs);
    assert_non_null(reqs);
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_NOOP);
    for (int i = 0; i < N; i++)
        reqs[i] = support_request(&a, &s, &op, 1);
    struct entry *e = support_entry(&s, ++s.index, reqs, N);
    struct apply_batch *b = apply_batch_create(&e, 1);
    apply_batch_run(s.store, b);
    assert_int_equal(b->status, 0);
    assert_int_equal(b->results_n, N);
    apply_batch_destroy(&b);
    entry_unref(e);
    s.log_time_ms = reqs[0]->expires_ms;
    assert_int_equal(support_apply(&a, &s, reqs[N - 1])->code, RAFTDIR_EEXPIRED);
    struct store_txn *txn;
    MDB_stat st;
    for (int left = 100; left >= 0; left -= 100) {
        assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
        assert_int_equal(mdb_stat(txn->mdb, s.store->dbi[TABLE_OP], &st), 0);
        assert_int_equal(st.ms_entries, left);
        store_read_end(&txn);
        assert_int_equal(support_apply(&a, &s, reqs[0])->code, RAFTDIR_EEXPIRED);
    }
    assert_int_equal(support_verify(&s, false), 0);
    free(reqs);
    support_free(&a);
    support_store_close(&s);
}

/* Bytes in the rows of all tables, apart from those that are bounded by themselves: results, the feed, digests. */
static size_t state_len(struct support_store *s)
{
    struct store_txn *txn;
    size_t len = 0;
    assert_int_equal(store_read_begin(s->store, &txn, NULL), 0);
    for (int t = 0; t < TABLES; t++) {
        MDB_cursor *cursor;
        MDB_val k, v;
        if (t == TABLE_OP || t == TABLE_FEED || t == TABLE_DIGESTS)
            continue;
        assert_int_equal(mdb_cursor_open(txn->mdb, s->store->dbi[t], &cursor), 0);
        while (mdb_cursor_get(cursor, &k, &v, MDB_NEXT) == 0)
            len += k.mv_size + v.mv_size;
        mdb_cursor_close(cursor);
    }
    store_read_end(&txn);
    return len;
}

/* What op_request_grows says of operations, against what they do to all kinds of mailboxes. */
static void test_what_grows(void **state)
{
    (void)state;
    static const Raftdir__Log__Op__OpCase kinds[] = {
        RAFTDIR__LOG__OP__OP_RESERVE, RAFTDIR__LOG__OP__OP_ACTIVATE, RAFTDIR__LOG__OP__OP_DEACTIVATE, RAFTDIR__LOG__OP__OP_CREATE,
        RAFTDIR__LOG__OP__OP_UPDATE, RAFTDIR__LOG__OP__OP_SET_ACL, RAFTDIR__LOG__OP__OP_DELETE, RAFTDIR__LOG__OP__OP_RENAME,
        RAFTDIR__LOG__OP__OP_MOVE_BEGIN, RAFTDIR__LOG__OP__OP_MOVE_COMMIT, RAFTDIR__LOG__OP__OP_MOVE_ABORT, RAFTDIR__LOG__OP__OP_PUT,
        RAFTDIR__LOG__OP__OP_NOOP, RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL,
    };
    static const char *const rights[] = {"", "-s", "-xyz", "+lrswipkxtea", "lrs"};
    static const char *const boxes[] = {"user.active", "user.reserved", "user.token", "user.deactivated", "user.moving", "user.none"};
    enum { KINDS = sizeof kinds / sizeof *kinds, BOXES = sizeof boxes / sizeof *boxes };
    bool grew[KINDS] = {false};
    struct support_arena a = {0};
    struct support_store s, made;
    support_store_open(&made, 0);
    for (int i = 0; i < BOXES - 1; i++) {
        Raftdir__Log__Op *op = support_put(&a, boxes[i], "be1", "p1", "anna\tlrsd\tbert\tlrswipkxtecda\tanyone\tl\t"), *then = NULL;
        if (i == 1 || i == 2) {
            op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
            op->reserve->name = support_text(&a, boxes[i]);
            op->reserve->location = support_location(&a, "be1", "p1");
            op->reserve->has_token = i == 2;
            op->reserve->token = (ProtobufCBinaryData){5, (uint8_t *)"token"};
        } else if (i == 3) {
            then = support_op(&a, RAFTDIR__LOG__OP__OP_DEACTIVATE);
            then->deactivate->name = support_text(&a, boxes[i]);
        } else if (i == 4) {
            then = support_op(&a, RAFTDIR__LOG__OP__OP_MOVE_BEGIN);
            then->move_begin->name = support_text(&a, boxes[i]);
            then->move_begin->to = support_location(&a, "be2", "p2");
        }
        assert_int_equal(support_do(&a, &made, op), 0);
        if (then)
            assert_int_equal(support_do(&a, &made, then), 0);
    }
    store_close(&made.store);
    unsigned shrank = 0, done = 0;
    for (int kind = 0; kind < KINDS; kind++)
        for (int box = 0; box < BOXES; box++)
            for (int variant = 0; variant < 5; variant++) {
                Raftdir__Log__Op *op = support_op(&a, kinds[kind]);
                char *name = support_text(&a, boxes[box]);
                Raftdir__Log__Mailbox *m = support_mailbox(&a, name, "be1", "p1", "anna\tlrs\tcarla\tlrswipkxtea\tdora\tlrswipkxtea\teva\tlrswipkxtea\tfritz\tlr\tgisela\tlr\t");
                bool token = variant & 1, subtree = variant & 2;
                ProtobufCBinaryData bytes = {5, (uint8_t *)"token"};
                size_t allowance = 0;
                switch (kinds[kind]) {
                case RAFTDIR__LOG__OP__OP_RESERVE:
                    op->reserve->name = name;
                    op->reserve->location = m->location;
                    break;
                case RAFTDIR__LOG__OP__OP_ACTIVATE:
                    op->activate->mailbox = m;
                    op->activate->has_token = token;
                    op->activate->token = bytes;
                    break;
                case RAFTDIR__LOG__OP__OP_DEACTIVATE:
                    op->deactivate->name = name;
                    op->deactivate->has_token = token;
                    op->deactivate->token = bytes;
                    allowance = token ? RECORD_TOKEN_LEN : 0;
                    break;
                case RAFTDIR__LOG__OP__OP_CREATE:
                    op->create->mailbox = m;
                    break;
                case RAFTDIR__LOG__OP__OP_UPDATE:
                    op->update->mailbox = m;
                    m->location = NULL;
                    break;
                case RAFTDIR__LOG__OP__OP_SET_ACL:
                    op->set_acl->name = name;
                    if (variant == 3 && box == 0) {
                        op->set_acl->acl = support_text(&a, "");
                    } else {
                        op->set_acl->identifier = support_text(&a, "anna");
                        op->set_acl->rights = support_text(&a, rights[variant]);
                        allowance = *rights[variant] == '-' ? 16 : 0; /* a macro letter has become the rights that it stands for */
                    }
                    break;
                case RAFTDIR__LOG__OP__OP_DELETE:
                    op->delete_->name = name;
                    op->delete_->has_token = token;
                    op->delete_->token = bytes;
                    op->delete_->has_subtree = op->delete_->subtree = subtree;
                    break;
                case RAFTDIR__LOG__OP__OP_RENAME:
                    op->rename->from = name;
                    op->rename->to = support_text(&a, "user.a.much.longer.name");
                    break;
                case RAFTDIR__LOG__OP__OP_MOVE_BEGIN:
                    op->move_begin->name = name;
                    op->move_begin->to = support_location(&a, "be3", "p3");
                    break;
                case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
                    op->move_commit->name = name;
                    op->move_commit->has_subtree = op->move_commit->subtree = subtree;
                    break;
                case RAFTDIR__LOG__OP__OP_MOVE_ABORT:
                    op->move_abort->name = name;
                    op->move_abort->has_subtree = op->move_abort->subtree = subtree;
                    break;
                case RAFTDIR__LOG__OP__OP_PUT:
                    op->put->mailbox = m;
                    break;
                case RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL:
                    op->set_feature_level->level = 1;
                    break;
                default:
                    break;
                }
                support_store_copy(&made, &s);
                support_store_reopen(&s, 0);
                Raftdir__Log__Request *req = support_request(&a, &s, &op, 1);
                size_t before = state_len(&s);
                done += support_apply(&a, &s, req)->code == 0;
                size_t after = state_len(&s);
                if (after > before + allowance && !op_request_grows(req))
                    fail_msg("operation %d on %s, variant %d: %zu bytes were %zu", (int)kinds[kind], boxes[box], variant, after, before);
                grew[kind] |= after > before;
                shrank += after < before;
                support_store_close(&s);
            }
    /* And none is refused without need. */
    for (int kind = 0; kind < KINDS; kind++) {
        Raftdir__Log__Op *op = support_op(&a, kinds[kind]);
        Raftdir__Log__Request req = RAFTDIR__LOG__REQUEST__INIT;
        req.ops = &op;
        req.n_ops = 1;
        if (op_request_grows(&req) && !grew[kind])
            fail_msg("operation %d never made the state larger", (int)kinds[kind]);
    }
    assert_true(shrank >= 20 && done >= 100);
    support_free(&a);
    support_store_close(&made);
}

static struct store_meta run_one(struct support_store *s, struct apply_batch *b, int status, size_t checkpoints)
{
    apply_batch_run(s->store, b);
    assert_int_equal(b->status, status);
    assert_int_equal(b->checkpoints_n, checkpoints);
    return b->meta;
}

/* A batch tells the digests that it has recorded: each once, also when it has to be run again. */
static void test_checkpoints(void **state)
{
    (void)state;
    enum { N = 2 * DIGEST_INTERVAL + 100, A = DIGEST_INTERVAL - 10, B = DIGEST_INTERVAL + 10 };
    struct support_store s, steps;
    struct support_arena a = {0};
    struct entry **entries = calloc(N + 1, sizeof(struct entry *)); /* by index */
    struct store_checkpoint list[DIGESTS_KEPT];
    size_t list_n = DIGESTS_KEPT;
    struct store_txn *txn;
    assert_non_null(entries);
    support_store_open(&s, 256 << 10);
    support_store_open(&steps, 0);
    for (int i = 1; i <= N; i++) {
        Raftdir__Log__Op *ops[500];
        char name[32];
        if (i != A && i != B) {
            entries[i] = entry_create((uint64_t)i, 1, RAFT_BARRIER, NULL, 0);
            continue;
        }
        size_t n = i == A ? 1 : 500; /* the second one needs more room than the small store has */
        for (size_t k = 0; k < n; k++) {
            snprintf(name, sizeof name, "user.u%d.%zu", i, k);
            ops[k] = support_put(&a, name, "be1", "p1", "anna\tlrs\t");
        }
        Raftdir__Log__Request *req = support_request(&a, &s, ops, n);
        entries[i] = support_entry(&s, (uint64_t)i, &req, 1);
    }

    /* Step by step: which digests these are. */
    struct apply_batch *b = apply_batch_create(entries + 1, DIGEST_INTERVAL - 1);
    run_one(&steps, b, 0, 0);
    apply_batch_destroy(&b);
    b = apply_batch_create(entries + DIGEST_INTERVAL, 1);
    struct store_meta first = run_one(&steps, b, 0, 1);
    apply_batch_destroy(&b);
    b = apply_batch_create(entries + DIGEST_INTERVAL + 1, DIGEST_INTERVAL);
    struct store_meta second = run_one(&steps, b, 0, 1);
    assert_int_equal(b->checkpoints[0].index, 2 * DIGEST_INTERVAL);
    apply_batch_destroy(&b);
    assert_memory_not_equal(first.digest, second.digest, 16);

    /* All in one; there is no room at first. */
    b = apply_batch_create(entries + 1, N);
    run_one(&s, b, RAFTDIR_ENOSPC, 0);
    run_one(&s, b, RAFTDIR_ENOSPC, 0);
    support_store_reopen(&s, 0);
    run_one(&s, b, 0, 2);
    assert_int_equal(b->checkpoints[0].index, DIGEST_INTERVAL);
    assert_int_equal(b->checkpoints[1].index, 2 * DIGEST_INTERVAL);
    assert_memory_equal(b->checkpoints[0].digest, first.digest, 16);
    assert_memory_equal(b->checkpoints[1].digest, second.digest, 16);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_checkpoints_get(txn, list, &list_n, NULL), 0);
    store_read_end(&txn);
    assert_int_equal(list_n, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(list[i].index, b->checkpoints[i].index);
        assert_memory_equal(list[i].digest, b->checkpoints[i].digest, 16);
    }
    run_one(&s, b, 0, 0); /* applied already */
    apply_batch_destroy(&b);
    for (int i = 1; i <= N; i++)
        entry_unref(entries[i]);
    free(entries);
    support_free(&a);
    support_store_close(&s);
    support_store_close(&steps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_big_subtree),      cmocka_unit_test(test_too_big_to_take_back), cmocka_unit_test(test_replica_and_epoch),
        cmocka_unit_test(test_any_partition),
        cmocka_unit_test(test_feed),             cmocka_unit_test(test_feed_is_trimmed),      cmocka_unit_test(test_no_text_in_the_state),
        cmocka_unit_test(test_expiry_is_bounded), cmocka_unit_test(test_checkpoints),
        cmocka_unit_test(test_what_grows),
    };
    return cmocka_run_group_tests_name("apply", tests, NULL, NULL);
}
