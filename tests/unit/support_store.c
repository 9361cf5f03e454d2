/* support_store.c - see support_store.h. */
#include "support_store.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>
#include <raft.h>
#include <zlib.h>
#include "raftdir/op.h"

static void open_store(struct support_store *s, uint64_t map_len)
{
    struct err err = {0};
    struct store_options o = {.map_len = map_len, .no_sync = true};
    if (store_open(s->dir, &o, &s->store, &err))
        fail_msg("open the store: %s", err.text);
}

static void make_dir(struct support_store *s)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(s->dir, sizeof s->dir, "%s/raftdir-test-XXXXXX", tmp && strlen(tmp) < 32 ? tmp : "/tmp");
    if (!mkdtemp(s->dir))
        fail_msg("mkdtemp failed");
}

void support_store_open(struct support_store *s, uint64_t map_len)
{
    *s = (struct support_store){.log_time_ms = 1000};
    make_dir(s);
    open_store(s, map_len);
}

void support_store_reopen(struct support_store *s, uint64_t map_len)
{
    store_close(&s->store);
    open_store(s, map_len);
}

void support_store_close(struct support_store *s)
{
    char path[128];
    store_close(&s->store);
    snprintf(path, sizeof path, "%s/data.mdb", s->dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/lock.mdb", s->dir);
    unlink(path);
    rmdir(s->dir);
}

void support_store_copy(const struct support_store *s, struct support_store *copy)
{
    char path[128], buf[65536];
    *copy = *s;
    copy->store = NULL;
    make_dir(copy);
    snprintf(path, sizeof path, "%s/data.mdb", s->dir);
    FILE *in = fopen(path, "r");
    snprintf(path, sizeof path, "%s/data.mdb", copy->dir);
    FILE *out = fopen(path, "w");
    assert_true(in && out);
    size_t n;
    while ((n = fread(buf, 1, sizeof buf, in)) > 0)
        assert_int_equal(fwrite(buf, 1, n, out), n);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

void *support_alloc(struct support_arena *a, size_t len)
{
    if (a->n == a->size) {
        a->size = a->size ? 2 * a->size : 64;
        a->blocks = realloc(a->blocks, a->size * sizeof *a->blocks);
        assert_non_null(a->blocks);
    }
    void *p = calloc(1, len ? len : 1);
    assert_non_null(p);
    return a->blocks[a->n++] = p;
}

char *support_text(struct support_arena *a, const char *s)
{
    return s ? strcpy(support_alloc(a, strlen(s) + 1), s) : NULL;
}

void support_free(struct support_arena *a)
{
    for (size_t i = 0; i < a->n; i++)
        free(a->blocks[i]);
    free(a->blocks);
    *a = (struct support_arena){0};
}

Raftdir__Log__Location *support_location(struct support_arena *a, const char *server, const char *partition)
{
    Raftdir__Log__Location *l = support_alloc(a, sizeof *l);
    raftdir__log__location__init(l);
    l->server = support_text(a, server);
    l->partition = support_text(a, partition);
    return l;
}

Raftdir__Log__Mailbox *support_mailbox(struct support_arena *a, const char *name, const char *server, const char *partition, const char *acl)
{
    Raftdir__Log__Mailbox *m = support_alloc(a, sizeof *m);
    raftdir__log__mailbox__init(m);
    m->name = support_text(a, name);
    if (server)
        m->location = support_location(a, server, partition);
    m->acl = support_text(a, acl);
    return m;
}

Raftdir__Log__Op *support_op(struct support_arena *a, Raftdir__Log__Op__OpCase kind)
{
    Raftdir__Log__Op *op = support_alloc(a, sizeof *op);
    raftdir__log__op__init(op);
    op->op_case = kind;
    for (unsigned i = 0; i < raftdir__log__op__descriptor.n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &raftdir__log__op__descriptor.fields[i];
        if (f->id != (uint32_t)kind)
            continue;
        const ProtobufCMessageDescriptor *d = f->descriptor;
        ProtobufCMessage *m = support_alloc(a, d->sizeof_message);
        d->message_init(m);
        memcpy((char *)op + f->offset, &m, sizeof m);
    }
    return op;
}

Raftdir__Log__Op *support_put(struct support_arena *a, const char *name, const char *server, const char *partition, const char *acl)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_PUT);
    op->put->mailbox = support_mailbox(a, name, server, partition, acl);
    return op;
}

Raftdir__Log__Op *support_delete(struct support_arena *a, const char *name, bool subtree)
{
    Raftdir__Log__Op *op = support_op(a, RAFTDIR__LOG__OP__OP_DELETE);
    op->delete_->name = support_text(a, name);
    op->delete_->has_subtree = subtree;
    op->delete_->subtree = subtree;
    return op;
}

Raftdir__Log__Request *support_request(struct support_arena *a, struct support_store *s, Raftdir__Log__Op **ops, size_t n)
{
    Raftdir__Log__Request *r = support_alloc(a, sizeof *r);
    raftdir__log__request__init(r);
    r->op_id.data = support_alloc(a, OP_ID_LEN);
    r->op_id.len = OP_ID_LEN;
    s->op_seq++;
    memcpy(r->op_id.data, &s->op_seq, sizeof s->op_seq);
    r->expires_ms = s->log_time_ms + 60000;
    r->identity = support_text(a, "unix:0");
    r->n_ops = n;
    r->ops = support_alloc(a, n * sizeof *ops);
    memcpy(r->ops, ops, n * sizeof *ops);
    return r;
}

struct entry *support_entry(struct support_store *s, uint64_t index, Raftdir__Log__Request *const *requests, size_t n)
{
    struct op_packed *packed = calloc(n ? n : 1, sizeof *packed);
    assert_non_null(packed);
    for (size_t i = 0; i < n; i++) {
        packed[i].len = raftdir__log__request__get_packed_size(requests[i]);
        uint8_t *data = malloc(packed[i].len);
        assert_non_null(data);
        raftdir__log__request__pack(requests[i], data);
        packed[i].data = data;
    }
    uint8_t *data;
    size_t len;
    struct err err = {0};
    if (op_entry_pack(1, s->log_time_ms, 0, packed, n, &data, &len, &err))
        fail_msg("%s", err.text);
    struct entry *e = entry_create(index, 1, RAFT_COMMAND, data, (uint32_t)len);
    assert_non_null(e);
    free(data);
    for (size_t i = 0; i < n; i++)
        free((void *)(uintptr_t)packed[i].data);
    free(packed);
    return e;
}

Raftdir__Log__Result *support_result(struct support_arena *a, const struct apply_result *r)
{
    Raftdir__Log__Result *got = raftdir__log__result__unpack(NULL, r->result_len, r->result);
    assert_non_null(got);
    /* Into the arena. */
    Raftdir__Log__Result *copy = support_alloc(a, sizeof *copy);
    *copy = *got;
    copy->message = support_text(a, got->message);
    copy->ops = support_alloc(a, got->n_ops * sizeof *copy->ops);
    for (size_t i = 0; i < got->n_ops; i++) {
        copy->ops[i] = support_alloc(a, sizeof **copy->ops);
        *copy->ops[i] = *got->ops[i];
    }
    raftdir__log__result__free_unpacked(got, NULL);
    return copy;
}

Raftdir__Log__Result *support_apply(struct support_arena *a, struct support_store *s, Raftdir__Log__Request *req)
{
    struct entry *e = support_entry(s, s->index + 1, &req, 1);
    struct apply_batch *b = apply_batch_create(&e, 1);
    assert_non_null(b);
    apply_batch_run(s->store, b);
    if (b->status)
        fail_msg("apply: %s", b->err.text);
    assert_int_equal(b->results_n, 1);
    s->index++;
    Raftdir__Log__Result *r = support_result(a, &b->results[0]);
    apply_batch_destroy(&b);
    entry_unref(e);
    return r;
}

int support_do(struct support_arena *a, struct support_store *s, Raftdir__Log__Op *op)
{
    return support_apply(a, s, support_request(a, s, &op, 1))->code;
}

static void tell(void *quiet, const char *text)
{
    if (!*(bool *)quiet)
        print_error("verify: %s\n", text);
}

uint64_t support_verify(struct support_store *s, bool quiet)
{
    struct store_txn *txn;
    struct err err = {0};
    uint8_t digest[16];
    uint64_t problems = 0;
    struct store_verify_cb cb = {.data = &quiet, .problem = tell};
    assert_int_equal(store_read_begin(s->store, &txn, &err), 0);
    if (store_verify(txn, &cb, digest, &problems, &err))
        fail_msg("verify: %s", err.text);
    store_read_end(&txn);
    return problems;
}

void support_digest(struct support_store *s, uint8_t digest[16])
{
    struct store_txn *txn;
    struct store_meta meta;
    assert_int_equal(store_read_begin(s->store, &txn, NULL), 0);
    assert_int_equal(store_meta_get(txn, &meta, NULL), 0);
    memcpy(digest, meta.digest, 16);
    store_read_end(&txn);
}

uint64_t support_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

uint64_t support_seed(void)
{
    const char *text = getenv("RAFTDIR_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 10) : 20260101;
    print_message("seed %llu (RAFTDIR_SEED repeats another)\n", (unsigned long long)seed);
    return seed;
}

static char *dump_text(json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    char *copy = strdup(s ? s : "");
    assert_non_null(copy);
    return copy;
}

void support_dump_read(const char *path, struct support_dump *dump)
{
    gzFile f = gzopen(path, "r");
    assert_non_null(f);
    size_t len = 0, size = 1 << 20;
    char *text = malloc(size);
    assert_non_null(text);
    int n;
    while ((n = gzread(f, text + len, (unsigned)(size - len))) > 0) {
        len += (size_t)n;
        if (len == size) {
            text = realloc(text, size *= 2);
            assert_non_null(text);
        }
    }
    gzclose(f);
    json_error_t e;
    json_t *root = json_loadb(text, len, 0, &e), *m;
    if (!root)
        fail_msg("%s: %s", path, e.text);
    free(text);
    dump->rows = calloc(json_object_size(root), sizeof *dump->rows);
    dump->n = 0;
    assert_non_null(dump->rows);
    const char *name;
    json_object_foreach(root, name, m) {
        struct support_dump_row *r = &dump->rows[dump->n++];
        r->name = dump_text(m, "name");
        r->server = dump_text(m, "server");
        r->partition = dump_text(m, "partition");
        r->mbtype = dump_text(m, "mbtype");
        r->uniqueid = dump_text(m, "uniqueid");
        char *mtime = dump_text(m, "mtime");
        r->mtime = strtoull(mtime, NULL, 10);
        free(mtime);
        char acl[65536];
        size_t at = 0;
        const char *id;
        json_t *rights;
        acl[0] = '\0';
        json_object_foreach(json_object_get(m, "acl"), id, rights)
            at += (size_t)snprintf(acl + at, sizeof acl - at, "%s\t%s\t", id, json_string_value(rights));
        assert_true(at < sizeof acl);
        r->acl = strdup(acl);
        assert_non_null(r->acl);
    }
    json_decref(root);
}

void support_dump_free(struct support_dump *dump)
{
    for (size_t i = 0; i < dump->n; i++) {
        struct support_dump_row *r = &dump->rows[i];
        free(r->name);
        free(r->server);
        free(r->partition);
        free(r->acl);
        free(r->mbtype);
        free(r->uniqueid);
    }
    free(dump->rows);
}
