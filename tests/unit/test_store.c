/* test_store.c - the environment and its faults: versions, restarts, a process that dies inside of a batch, a full map, a full disk, flipped
 * bytes, index rows that are missing or too many, read transactions, checkpoints. White-box: writes rows by hand. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <raft.h>
#include "raftdir/name.h"
#include "raftdir/store_state.h"
#include "support_store.h"

static void put_some(struct support_store *s, int from, int to)
{
    struct support_arena a = {0};
    for (int i = from; i < to; i++) {
        char name[64], uniqueid[32];
        snprintf(name, sizeof name, "user.u%04d", i);
        snprintf(uniqueid, sizeof uniqueid, "id-%d", i);
        Raftdir__Log__Op *op = support_put(&a, name, "be1", i % 2 ? "p1" : "p2", "anna\tlrs\tanyone\tl\t");
        op->put->mailbox->uniqueid = support_text(&a, uniqueid);
        assert_int_equal(support_do(&a, s, op), 0);
    }
    support_free(&a);
}

static int run_batch(struct support_store *s, struct entry **entries, unsigned n, struct err *err)
{
    struct apply_batch *b = apply_batch_create(entries, n);
    assert_non_null(b);
    apply_batch_run(s->store, b);
    int status = b->status;
    *err = b->err;
    if (status)
        assert_int_equal(b->results_n, 0);
    apply_batch_destroy(&b);
    return status;
}

static struct store_meta meta_of(struct support_store *s)
{
    struct store_txn *txn;
    struct store_meta meta;
    assert_int_equal(store_read_begin(s->store, &txn, NULL), 0);
    assert_int_equal(store_meta_get(txn, &meta, NULL), 0);
    store_read_end(&txn);
    return meta;
}

static void test_reopen(void **state)
{
    (void)state;
    struct support_store s;
    struct store *other;
    struct err err = {0};
    struct store_options read_only = {.read_only = true};
    support_store_open(&s, 0);
    put_some(&s, 0, 20);
    struct store_meta before = meta_of(&s);
    assert_int_equal(store_sync(s.store, &err), 0);
    support_store_reopen(&s, 0);
    struct store_meta after = meta_of(&s);
    assert_memory_equal(before.digest, after.digest, 16);
    assert_int_equal(after.applied_index, 20);
    assert_int_equal(after.mailboxes, 20);
    assert_true(store_used_len(s.store) > 4096);
    put_some(&s, 20, 30);
    assert_int_equal(support_verify(&s, false), 0);
    /* A reader by itself: the same, and nothing where there is nothing. */
    store_close(&s.store);
    assert_int_equal(store_open(s.dir, &read_only, &other, &err), 0);
    struct store_txn *txn;
    struct store_mailbox m;
    assert_int_equal(store_read_begin(other, &txn, &err), 0);
    assert_int_equal(store_lookup(txn, "user.u0029", 10, &m, &err), 0);
    store_read_end(&txn);
    store_close(&other);
    assert_int_equal(store_open("/nonexistent/raftdir", NULL, &other, &err), RAFTDIR_EUNAVAIL);
    assert_int_equal(store_open("/nonexistent/raftdir", &read_only, &other, &err), RAFTDIR_ENOTREADY);
    support_store_reopen(&s, 0);
    support_store_close(&s);
}

static void test_other_version(void **state)
{
    (void)state;
    struct support_store s;
    struct store_txn *txn;
    struct err err = {0};
    support_store_open(&s, 0);
    assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_put(txn, TABLE_META, "version", 7, "99", 2, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    store_close(&s.store);
    assert_int_equal(store_open(s.dir, NULL, &s.store, &err), RAFTDIR_EVERSION);
    assert_non_null(strstr(err.text, "99"));
    assert_null(s.store);
    support_store_close(&s);
}

static void test_bad_entry_leaves_nothing(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct err err = {0};
    support_store_open(&s, 0);
    put_some(&s, 0, 5);
    struct store_meta before = meta_of(&s);
    Raftdir__Log__Op *op = support_put(&a, "user.x", "be1", "p1", "");
    Raftdir__Log__Request *req = support_request(&a, &s, &op, 1);
    Raftdir__Log__Op *level = support_op(&a, RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL);
    level->set_feature_level->level = FEATURE_LEVEL_MAX + 1;
    Raftdir__Log__Request *raise = support_request(&a, &s, &level, 1);
    static const uint8_t other_version[] = {0x08, 0x63, 0x10, 0x01, 0x18, 0x01, 0x20, 0x01};
    struct entry *bad[] = {
        entry_create(7, 1, RAFT_COMMAND, other_version, sizeof other_version), entry_create(7, 1, RAFT_COMMAND, "garbage", 7),
        entry_create(7, 1, 77, "", 0), entry_create(7, 1, RAFT_CHANGE, "junk", 4), support_entry(&s, 7, &raise, 1)};
    static const int want[] = {RAFTDIR_EVERSION, RAFTDIR_ECORRUPT, RAFTDIR_EVERSION, RAFTDIR_ECORRUPT, RAFTDIR_EVERSION};
    struct entry *good = support_entry(&s, 6, &req, 1);
    for (int i = 0; i < 5; i++) {
        struct entry *both[] = {good, bad[i]};
        assert_int_equal(run_batch(&s, both, 2, &err), want[i]);
        assert_non_null(strstr(err.text, "entry 7"));
        struct store_meta after = meta_of(&s);
        assert_memory_equal(&before, &after, sizeof before);
        entry_unref(bad[i]);
    }
    /* The good one by itself still goes, once; and barriers and configurations count. */
    assert_int_equal(run_batch(&s, &good, 1, &err), 0);
    assert_int_equal(run_batch(&s, &good, 1, &err), 0);
    assert_int_equal(meta_of(&s).mailboxes, 6);
    struct raft_configuration c;
    struct raft_buffer buf;
    raft_configuration_init(&c);
    assert_int_equal(raft_configuration_add(&c, 3, "c", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&c, 9, "i", RAFT_STANDBY), 0);
    assert_int_equal(raft_configuration_encode(&c, &buf), 0);
    struct entry *more[] = {entry_create(7, 1, RAFT_BARRIER, NULL, 0), entry_create(8, 2, RAFT_CHANGE, buf.base, (uint32_t)buf.len)};
    assert_int_equal(run_batch(&s, more, 2, &err), 0);
    struct store_meta after = meta_of(&s);
    assert_true(after.applied_index == 8 && after.applied_term == 2 && after.configuration_index == 8 && after.member_id_max == 9);
    struct store_txn *txn;
    const uint8_t *data;
    size_t len;
    uint64_t index;
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_configuration_get(txn, &data, &len, &index, &err), 0);
    assert_true(index == 8 && len == buf.len);
    assert_memory_equal(data, buf.base, len);
    store_read_end(&txn);
    raft_free(buf.base);
    raft_configuration_close(&c);
    entry_unref(more[0]);
    entry_unref(more[1]);
    entry_unref(good);
    support_free(&a);
    support_store_close(&s);
}

static void test_exactly_once(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    support_store_open(&s, 0);
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_CREATE);
    op->create->mailbox = support_mailbox(&a, "user.x", "be1", "p1", "x\tl\t");
    Raftdir__Log__Request *req = support_request(&a, &s, &op, 1);
    Raftdir__Log__Result *first = support_apply(&a, &s, req);
    assert_int_equal(first->code, 0);
    Raftdir__Log__Result *again = support_apply(&a, &s, req);
    assert_int_equal(again->code, 0);
    assert_int_equal(again->index, first->index);
    assert_int_equal(again->ops[0]->generation, first->ops[0]->generation);
    /* A refusal is kept too, also when it would succeed by now. */
    Raftdir__Log__Request *refused = support_request(&a, &s, &op, 1);
    assert_int_equal(support_apply(&a, &s, refused)->code, RAFTDIR_EEXIST);
    assert_int_equal(support_do(&a, &s, support_delete(&a, "user.x", false)), 0);
    assert_int_equal(support_apply(&a, &s, refused)->code, RAFTDIR_EEXIST);
    req->identity = "unix:1";
    assert_int_equal(support_apply(&a, &s, req)->code, RAFTDIR_EPERM);
    req->identity = "unix:0";
    /* After the expiry; too far ahead. */
    s.log_time_ms = req->expires_ms;
    assert_int_equal(support_apply(&a, &s, req)->code, RAFTDIR_EEXPIRED);
    req->expires_ms = s.log_time_ms + OP_TTL_MAX_MS + 1;
    assert_int_equal(support_apply(&a, &s, req)->code, RAFTDIR_EINVAL);
    req->expires_ms--;
    assert_int_equal(support_apply(&a, &s, req)->code, 0);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

static void test_token_is_hashed(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_txn *txn;
    MDB_val v;
    uint8_t key[64];
    support_store_open(&s, 0);
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
    op->reserve->name = support_text(&a, "user.x");
    op->reserve->location = support_location(&a, "be1", "p1");
    op->reserve->has_token = true;
    op->reserve->token = (ProtobufCBinaryData){16, (uint8_t *)support_text(&a, "secret-of-owner!")};
    assert_int_equal(support_do(&a, &s, op), 0);
    assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
    assert_int_equal(store_get(txn, TABLE_MAILBOX, key, name_to_key("user.x", 6, key), &v, NULL), 0);
    assert_null(memmem(v.mv_data, v.mv_size, "secret-of-owner!", 16));
    store_read_end(&txn);
    support_free(&a);
    support_store_close(&s);
}

/* A process that dies between writing and committing, and one that dies right after a commit. */
static void test_dies_in_batch(void **state)
{
    (void)state;
    struct support_store s;
    struct err err = {0};
    support_store_open(&s, 0);
    put_some(&s, 0, 50);
    struct store_meta before = meta_of(&s);
    for (int commit = 0; commit < 2; commit++) {
        store_close(&s.store);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            struct store_options o = {0};
            struct store_txn *txn;
            uint8_t key[8] = {1};
            if (store_open(s.dir, &o, &s.store, &err) || store_write_begin(s.store, &txn, &err))
                _exit(1);
            for (int i = 0; i < 3000; i++) {
                put_be64(key, (uint64_t)i);
                if (store_put(txn, TABLE_SLOT, key, 8, key, 8, 0, &err))
                    _exit(1);
            }
            if (commit) {
                for (int i = 0; i < 3000; i++) {
                    put_be64(key, (uint64_t)i);
                    if (i != 1 && store_del(txn, TABLE_SLOT, key, 8, &err))
                        _exit(1);
                }
                put_be64(key, 1);
                if (store_del(txn, TABLE_SLOT, key, 8, &err) || store_write_commit(&txn, &err))
                    _exit(1);
            }
            raise(SIGKILL);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        support_store_reopen(&s, 0);
        struct store_meta after = meta_of(&s);
        assert_memory_equal(&before, &after, sizeof before);
        assert_int_equal(support_verify(&s, false), 0);
    }
    put_some(&s, 50, 60);
    assert_int_equal(support_verify(&s, false), 0);
    support_store_close(&s);
}

/* Applies batches of puts until one is refused for want of space; returns the index that was refused. */
static struct entry *fill_up(struct support_store *s, struct support_arena *a, struct store_meta *before)
{
    struct err err;
    for (int i = 0; i < 2000; i++) {
        Raftdir__Log__Op *ops[50];
        for (int k = 0; k < 50; k++) {
            char name[64];
            snprintf(name, sizeof name, "user.f%05d.%02d", i, k);
            ops[k] = support_put(a, name, "be1", "p1", "anna\tlrs\tbert\tl\tcarl\tlrswipkxtecdan\t");
        }
        Raftdir__Log__Request *req = support_request(a, s, ops, 50);
        struct entry *e = support_entry(s, s->index + 1, &req, 1);
        *before = meta_of(s);
        int status = run_batch(s, &e, 1, &err);
        if (status) {
            assert_int_equal(status, RAFTDIR_ENOSPC);
            return e;
        }
        s->index++;
        entry_unref(e);
    }
    fail_msg("it never gets full");
    return NULL;
}

static void test_map_full(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_meta before;
    struct err err;
    support_store_open(&s, 2u << 20);
    struct entry *e = fill_up(&s, &a, &before);
    struct store_meta after = meta_of(&s);
    assert_memory_equal(&before, &after, sizeof before);
    assert_true(s.index > 3);
    assert_int_equal(support_verify(&s, false), 0); /* reads go on */
    assert_int_equal(run_batch(&s, &e, 1, &err), RAFTDIR_ENOSPC);
    support_store_reopen(&s, 64u << 20);
    assert_int_equal(run_batch(&s, &e, 1, &err), 0); /* the same entry, once there is room */
    s.index++;
    put_some(&s, 0, 100);
    assert_int_equal(support_verify(&s, false), 0);
    entry_unref(e);
    support_free(&a);
    support_store_close(&s);
}

static void test_disk_full(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_meta before;
    struct err err;
    struct rlimit old, limit;
    support_store_open(&s, 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){1u << 20, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct entry *e = fill_up(&s, &a, &before);
    struct store_meta after = meta_of(&s);
    assert_memory_equal(&before, &after, sizeof before);
    assert_int_equal(run_batch(&s, &e, 1, &err), RAFTDIR_ENOSPC);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(run_batch(&s, &e, 1, &err), 0); /* without a restart */
    s.index++;
    assert_int_equal(support_verify(&s, false), 0);
    entry_unref(e);
    support_free(&a);
    support_store_close(&s);
}

static void test_flipped_byte(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct err err = {0};
    support_store_open(&s, 0);
    put_some(&s, 0, 300);
    assert_int_equal(support_do(&a, &s, support_put(&a, "user.victim", "be1", "p1", "flip-me-here\tlrs\t")), 0);
    store_close(&s.store);
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", s.dir);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    char *data = malloc(64u << 20);
    assert_non_null(data);
    size_t len = fread(data, 1, 64u << 20, f), flips = 0;
    for (char *p = data; (p = memmem(p, len - (size_t)(p - data), "flip-me-here\tlrs\t", 17)) != NULL; p++) {
        assert_int_equal(fseek(f, p - data + 14, SEEK_SET), 0);
        assert_int_equal(fputc('a', f), 'a'); /* rights that nobody gave */
        flips++;
    }
    assert_int_equal(fclose(f), 0);
    free(data);
    assert_true(flips > 0);
    support_store_reopen(&s, 0);
    struct store_txn *txn;
    struct store_mailbox m;
    struct store_scan *scan;
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_lookup(txn, "user.victim", 11, &m, &err), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(err.text, "user.victim"));
    assert_int_equal(store_lookup(txn, "user.u0007", 10, &m, &err), 0);
    assert_int_equal(store_list_begin(&(struct store_filter){.prefix = "user.v"}, NULL, &scan, &err), 0);
    assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), RAFTDIR_ECORRUPT);
    store_scan_end(&scan);
    struct acl_subject who = {.user = "flip-me-here"};
    assert_int_equal(store_visible_begin(&who, acl_right('l'), "user.v*", NULL, &scan, &err), 0);
    assert_int_equal(store_scan_next(scan, txn, &m, NULL, &err), RAFTDIR_ECORRUPT);
    store_scan_end(&scan);
    store_read_end(&txn);
    assert_true(support_verify(&s, true) >= 2); /* the record and the digest */
    /* Apply stops as well: what it can't read, it can't change. */
    Raftdir__Log__Op *op = support_put(&a, "user.victim", "be1", "p1", "x\tl\t");
    Raftdir__Log__Request *req = support_request(&a, &s, &op, 1);
    struct entry *e = support_entry(&s, s.index + 1, &req, 1);
    assert_int_equal(run_batch(&s, &e, 1, &err), RAFTDIR_ECORRUPT);
    entry_unref(e);
    support_free(&a);
    support_store_close(&s);
}

/* The first row of a table is taken away; a row is added; a value is changed: the scrub must name the table each time. */
static char found[4096];

static void note(void *data, const char *text)
{
    (void)data;
    strncat(found, text, sizeof found - strlen(found) - 2);
    strcat(found, "\n");
}

static void verify_finds(struct support_store *s, const char *table)
{
    struct store_txn *txn;
    struct err err = {0};
    uint8_t digest[16];
    uint64_t problems = 0;
    struct store_verify_cb cb = {.problem = note};
    found[0] = '\0';
    assert_int_equal(store_read_begin(s->store, &txn, &err), 0);
    assert_int_equal(store_verify(txn, &cb, digest, &problems, &err), 0);
    store_read_end(&txn);
    if (problems == 0 || !strstr(found, table))
        fail_msg("a fault in table %s is not found; found: %s", table, found);
}

static void test_index_faults(void **state)
{
    (void)state;
    static const struct {
        enum store_table table;
        const char *says;
    } cases[] = {{TABLE_STORE, "table store"},         {TABLE_RACL, "racl"}, {TABLE_UNIQUEID, "uniqueid"}, {TABLE_RESERVED, "reserved"},
                 {TABLE_SLOT, "slot"},                 {TABLE_SERVERS, "server"}, {TABLE_PRINCIPAL, "principal"}, {TABLE_MAILBOX, "mailbox"},
                 {TABLE_STORES, "store"},              {TABLE_OP, "digest"}};
    struct support_store s;
    struct support_arena a = {0};
    struct err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int add = 0; add < 2; add++) {
            support_store_open(&s, 0);
            put_some(&s, 0, 10);
            Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_RESERVE);
            op->reserve->name = support_text(&a, "user.r");
            op->reserve->location = support_location(&a, "be1", "p1");
            assert_int_equal(support_do(&a, &s, op), 0);
            assert_int_equal(support_verify(&s, false), 0);
            struct store_txn *txn;
            MDB_cursor *cursor;
            MDB_val k, v;
            uint8_t key[STORE_KEY_MAX], value[256];
            assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
            assert_int_equal(store_cursor(txn, cases[i].table, &cursor, &err), 0);
            assert_int_equal(mdb_cursor_get(cursor, &k, &v, MDB_FIRST), 0);
            if (add) {
                /* The same row under another key. */
                memcpy(key, k.mv_data, k.mv_size);
                memcpy(value, v.mv_data, v.mv_size);
                key[k.mv_size - 1] ^= 0x80;
                if (cases[i].table == TABLE_PRINCIPAL)
                    memset(value, 0xFF, 8); /* a principal more is no fault; an id that was never given is */
                assert_int_equal(store_put(txn, cases[i].table, key, k.mv_size, value, v.mv_size, 0, &err), 0);
            } else {
                assert_int_equal(mdb_cursor_del(cursor, 0), 0);
            }
            assert_int_equal(store_write_commit(&txn, &err), 0);
            verify_finds(&s, add && cases[i].table == TABLE_OP ? "result" : cases[i].says);
            support_store_close(&s);
        }
    }
    /* A wrong mask in the reverse index. */
    support_store_open(&s, 0);
    put_some(&s, 0, 10);
    struct store_txn *txn;
    MDB_cursor *cursor;
    MDB_val k, v;
    uint8_t key[STORE_KEY_MAX];
    assert_int_equal(store_write_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_cursor(txn, TABLE_RACL, &cursor, &err), 0);
    assert_int_equal(mdb_cursor_get(cursor, &k, &v, MDB_LAST), 0);
    memcpy(key, k.mv_data, k.mv_size);
    assert_int_equal(store_put(txn, TABLE_RACL, key, k.mv_size, "\xff\0\0\0\0\0\0\0", 8, 0, &err), 0);
    assert_int_equal(store_write_commit(&txn, &err), 0);
    verify_finds(&s, "wrong row");
    support_store_close(&s);
    support_free(&a);
}

static void test_snapshots(void **state)
{
    (void)state;
    struct support_store s;
    struct store_txn *old;
    struct store_mailbox m;
    struct err err = {0};
    support_store_open(&s, 0);
    put_some(&s, 0, 1);
    assert_int_equal(store_read_begin(s.store, &old, &err), 0);
    put_some(&s, 1, 2);
    assert_int_equal(store_lookup(old, "user.u0000", 10, &m, &err), 0);
    assert_int_equal(store_lookup(old, "user.u0001", 10, &m, &err), RAFTDIR_ENOTFOUND);
    store_read_reset(old);
    assert_int_equal(store_read_renew(old, &err), 0);
    assert_int_equal(store_lookup(old, "user.u0001", 10, &m, &err), 0);
    store_read_end(&old);
    support_store_close(&s);
}

/* Readers on threads of their own while the writer goes on: each snapshot is whole. Transactions are begun here and used there. */
struct reader {
    struct store_txn *txn;
    _Atomic bool stop;
    unsigned rounds;
    uint64_t problems;
    int rc;
};

static void *read_on(void *data)
{
    struct reader *r = data;
    uint64_t last = 0;
    do {
        struct store_meta meta;
        uint8_t digest[16];
        uint64_t problems = 0;
        r->rc = store_read_renew(r->txn, NULL);
        if (!r->rc)
            r->rc = store_verify(r->txn, NULL, digest, &problems, NULL);
        if (!r->rc)
            r->rc = store_meta_get(r->txn, &meta, NULL);
        if (r->rc)
            return NULL;
        r->problems += problems + (memcmp(meta.digest, digest, 16) != 0) + (meta.applied_index < last);
        last = meta.applied_index;
        r->rounds++;
    } while (!r->stop);
    return NULL;
}

static void test_readers_beside_the_writer(void **state)
{
    (void)state;
    struct support_store s;
    struct reader readers[2] = {{0}};
    pthread_t threads[2];
    support_store_open(&s, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_read_begin(s.store, &readers[i].txn, NULL), 0);
        store_read_reset(readers[i].txn);
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readers[i]), 0);
    }
    put_some(&s, 0, 300);
    for (int i = 0; i < 2; i++)
        readers[i].stop = true;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(readers[i].rc, 0);
        assert_int_equal(readers[i].problems, 0);
        assert_true(readers[i].rounds > 0);
        store_read_end(&readers[i].txn);
    }
    support_store_close(&s);
}

static void test_checkpoints(void **state)
{
    (void)state;
    struct support_store s;
    struct store_checkpoint list[DIGESTS_KEPT + 8];
    struct store_txn *txn;
    struct err err = {0};
    size_t n = sizeof list / sizeof *list;
    enum { INTERVALS = DIGESTS_KEPT + 3 };
    support_store_open(&s, 0);
    put_some(&s, 0, 1);
    struct entry **entries = calloc(DIGEST_INTERVAL, sizeof *entries);
    assert_non_null(entries);
    for (uint64_t i = 0; i < INTERVALS; i++) {
        for (uint64_t k = 0; k < DIGEST_INTERVAL; k++)
            entries[k] = entry_create(i * DIGEST_INTERVAL + k + 1, 1, RAFT_BARRIER, NULL, 0);
        assert_int_equal(run_batch(&s, entries, DIGEST_INTERVAL, &err), 0);
        for (uint64_t k = 0; k < DIGEST_INTERVAL; k++)
            entry_unref(entries[k]);
    }
    free(entries);
    uint8_t digest[16];
    support_digest(&s, digest);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_checkpoints_get(txn, list, &n, &err), 0);
    assert_int_equal(n, DIGESTS_KEPT);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(list[i].index, (INTERVALS - DIGESTS_KEPT + 1 + i) * DIGEST_INTERVAL);
        assert_memory_equal(list[i].digest, digest, 16);
    }
    store_read_end(&txn);
    support_store_close(&s);
}

/* Everything at its limit: names, servers, partitions, groups. */
static void test_limits(void **state)
{
    (void)state;
    struct support_store s;
    struct support_arena a = {0};
    struct store_txn *txn;
    struct store_mailbox m;
    struct err err = {0};
    char name[NAME_LEN_MAX + 2], server[SERVER_LEN_MAX + 1], partition[PARTITION_LEN_MAX + 1], deleted[DELETED_NAME_LEN_MAX + 1], user[IDENTIFIER_LEN_MAX + 1];
    char acl[IDENTIFIER_LEN_MAX + 32];
    support_store_open(&s, 0);
    memset(name, 'n', sizeof name);
    memcpy(name, "user.", 5);
    name[NAME_LEN_MAX] = '\0';
    memset(server, 's', SERVER_LEN_MAX);
    server[SERVER_LEN_MAX] = '\0';
    memset(partition, 'p', PARTITION_LEN_MAX);
    partition[PARTITION_LEN_MAX] = '\0';
    memset(user, 'u', IDENTIFIER_LEN_MAX);
    user[IDENTIFIER_LEN_MAX] = '\0';
    snprintf(acl, sizeof acl, "%s\tlrs\tanyone\tl\t", user);
    assert_int_equal(support_do(&a, &s, support_put(&a, name, server, partition, acl)), 0);
    server[SERVER_LEN_MAX - 1] = 't';
    memcpy(deleted, "DELETED.user.", 13);
    memset(deleted + 13, 'd', sizeof deleted - 13);
    strcpy(deleted + DELETED_NAME_LEN_MAX - 9, ".5F847100");
    assert_int_equal(support_do(&a, &s, support_put(&a, deleted, server, partition, acl)), 0);
    assert_int_equal(support_verify(&s, false), 0);
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_lookup(txn, deleted, strlen(deleted), &m, &err), 0);
    assert_int_equal(m.server.len, SERVER_LEN_MAX);
    assert_int_equal(m.server.s[SERVER_LEN_MAX - 1], 't');
    struct store_scan *scan;
    struct acl_subject who = {.user = user};
    size_t n = 0;
    assert_int_equal(store_visible_begin(&who, acl_right('s'), "*", NULL, &scan, &err), 0);
    while (store_scan_next(scan, txn, &m, NULL, &err) == 0) {
        n++;
        store_scan_release(scan); /* resumes behind the longest names there are */
    }
    assert_int_equal(n, 2);
    store_scan_end(&scan);
    n = 0;
    assert_int_equal(store_list_begin(&(struct store_filter){.server = server, .pattern = "%.%.%.%"}, NULL, &scan, &err), 0);
    while (store_scan_next(scan, txn, &m, NULL, &err) == 0)
        n++;
    assert_int_equal(n, 1);
    store_scan_end(&scan);
    store_read_end(&txn);
    /* One byte more is refused, and nothing remains. */
    name[NAME_LEN_MAX] = 'n';
    name[NAME_LEN_MAX + 1] = '\0';
    assert_int_equal(support_do(&a, &s, support_put(&a, name, "be1", "p1", "")), RAFTDIR_ETOOBIG);
    name[NAME_LEN_MAX] = '\0';
    Raftdir__Log__Op *op = support_op(&a, RAFTDIR__LOG__OP__OP_RENAME);
    op->rename->from = support_text(&a, "user.x");
    op->rename->to = support_text(&a, name);
    op->rename->has_subtree = op->rename->subtree = true;
    assert_int_equal(support_do(&a, &s, support_delete(&a, name, false)), 0);
    assert_int_equal(support_do(&a, &s, support_put(&a, "user.x", "be1", "p1", "")), 0);
    assert_int_equal(support_do(&a, &s, support_put(&a, "user.x.y", "be1", "p1", "")), 0);
    assert_int_equal(support_do(&a, &s, op), RAFTDIR_ETOOBIG); /* the one below would be too long */
    assert_int_equal(store_read_begin(s.store, &txn, &err), 0);
    assert_int_equal(store_lookup(txn, "user.x", 6, &m, &err), 0);
    store_read_end(&txn);
    assert_int_equal(support_verify(&s, false), 0);
    support_free(&a);
    support_store_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reopen),      cmocka_unit_test(test_other_version),   cmocka_unit_test(test_bad_entry_leaves_nothing),
        cmocka_unit_test(test_exactly_once), cmocka_unit_test(test_token_is_hashed), cmocka_unit_test(test_dies_in_batch),
        cmocka_unit_test(test_map_full),    cmocka_unit_test(test_disk_full),       cmocka_unit_test(test_flipped_byte),
        cmocka_unit_test(test_index_faults), cmocka_unit_test(test_snapshots),      cmocka_unit_test(test_checkpoints),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_readers_beside_the_writer),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
