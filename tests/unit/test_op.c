/* test_op.c - entries of the log: packed around packed requests and read back; what is unknown stops apply; what a client may ask. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/op.h"
#include "raftdir/op_check.h"
#include "support_store.h"

/* One request with one operation, to change and to break; everything in it is static or on the caller's stack. */
struct sample {
    Raftdir__Log__Request req;
    Raftdir__Log__Op op, *ops[1];
    Raftdir__Log__Mailbox mailbox;
    Raftdir__Log__Location location;
    Raftdir__Log__Create create;
    uint8_t op_id[OP_ID_LEN];
};

static void sample_init(struct sample *s)
{
    raftdir__log__request__init(&s->req);
    raftdir__log__op__init(&s->op);
    raftdir__log__mailbox__init(&s->mailbox);
    raftdir__log__location__init(&s->location);
    raftdir__log__create__init(&s->create);
    memset(s->op_id, 7, sizeof s->op_id);
    s->req.op_id.data = s->op_id;
    s->req.op_id.len = sizeof s->op_id;
    s->req.expires_ms = 1000;
    s->req.identity = (char *)"unix:0";
    s->ops[0] = &s->op;
    s->req.ops = s->ops;
    s->req.n_ops = 1;
    s->op.op_case = RAFTDIR__LOG__OP__OP_CREATE;
    s->op.create = &s->create;
    s->create.mailbox = &s->mailbox;
    s->mailbox.name = (char *)"user.foo";
    s->mailbox.location = &s->location;
    s->mailbox.acl = (char *)"foo\tlrs\t";
    s->location.server = (char *)"be1.example.org";
    s->location.partition = (char *)"default";
}

static void check(const struct sample *s, int rc, const char *text)
{
    struct err err = {0};
    int got = op_request_check(&s->req, 1, &err);
    if (got != rc || (text && !strstr(err.text, text)))
        fail_msg("%d \"%s\", wanted %d \"%s\"", got, err.text, rc, text ? text : "");
    assert_int_equal(op_request_check(&s->req, 1, NULL), rc);
}

static void pack_request(const Raftdir__Log__Request *req, uint8_t **data_r, size_t *len_r)
{
    *len_r = raftdir__log__request__get_packed_size(req);
    *data_r = malloc(*len_r ? *len_r : 1);
    assert_non_null(*data_r);
    raftdir__log__request__pack(req, *data_r);
}

static void op_pack_unpack(void **state)
{
    (void)state;
    enum { N = 3 };
    struct sample s[N];
    struct op_packed packed[N];
    uint8_t *bytes[N];
    char names[N][300];
    for (int i = 0; i < N; i++) {
        sample_init(&s[i]);
        /* 100 and 200 bytes: lengths of one and of two varint bytes */
        snprintf(names[i], sizeof names[i], "user.%0*d", 10 + 100 * i, i);
        s[i].mailbox.name = names[i];
        check(&s[i], 0, NULL);
        pack_request(&s[i].req, &bytes[i], &packed[i].len);
        packed[i].data = bytes[i];
    }
    uint8_t *data;
    size_t len;
    struct err err;
    assert_int_equal(op_entry_pack(1, UINT64_MAX, 1795287242000, packed, N, &data, &len, &err), 0);

    /* What protobuf-c itself would have made of it, byte for byte. */
    Raftdir__Log__Entry by_hand = RAFTDIR__LOG__ENTRY__INIT;
    Raftdir__Log__Request *requests[N] = {&s[0].req, &s[1].req, &s[2].req};
    by_hand.version = LOG_ENTRY_VERSION;
    by_hand.feature_level = 1;
    by_hand.log_time_ms = UINT64_MAX;
    by_hand.wall_time_ms = 1795287242000;
    by_hand.requests = requests;
    by_hand.n_requests = N;
    assert_int_equal(raftdir__log__entry__get_packed_size(&by_hand), len);
    uint8_t *wanted = malloc(len);
    assert_non_null(wanted);
    raftdir__log__entry__pack(&by_hand, wanted);
    assert_memory_equal(data, wanted, len);

    Raftdir__Log__Entry *entry;
    assert_int_equal(op_entry_unpack(data, len, &entry, &err), 0);
    assert_int_equal(entry->n_requests, N);
    assert_true(entry->log_time_ms == UINT64_MAX && entry->wall_time_ms == 1795287242000);
    for (int i = 0; i < N; i++)
        assert_string_equal(entry->requests[i]->ops[0]->create->mailbox->name, names[i]);
    op_entry_free(&entry);
    assert_null(entry);

    /* Cut short anywhere, it is corrupt or loses whole requests; it is never read beyond its end. */
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *part = malloc(cut ? cut : 1);
        assert_non_null(part);
        memcpy(part, data, cut);
        int rc = op_entry_unpack(part, cut, &entry, &err);
        if (rc == 0)
            op_entry_free(&entry);
        else
            assert_int_equal(rc, RAFTDIR_ECORRUPT);
        free(part);
    }
    for (int i = 0; i < N; i++)
        free(bytes[i]);
    free(wanted);
    free(data);
}

static void op_pack_limits(void **state)
{
    (void)state;
    uint8_t *data, *big = calloc(1, REQUEST_LEN_MAX + 1);
    assert_non_null(big);
    size_t len;
    struct err err;
    struct op_packed packed[5] = {{big, REQUEST_LEN_MAX + 1}};
    assert_int_equal(op_entry_pack(1, 1, 1, packed, 1, &data, &len, &err), RAFTDIR_ETOOBIG);
    for (int i = 0; i < 5; i++)
        packed[i] = (struct op_packed){big, REQUEST_LEN_MAX};
    assert_int_equal(op_entry_pack(1, 1, 1, packed, 5, &data, &len, &err), RAFTDIR_ETOOBIG);
    assert_int_equal(op_entry_pack(1, 1, 1, packed, 3, &data, &len, &err), 0);
    assert_true(len <= ENTRY_LEN_MAX);
    free(data);
    free(big);
    /* No request at all is an entry too: it moves the log time on. */
    Raftdir__Log__Entry *entry;
    assert_int_equal(op_entry_pack(0, 5, 6, NULL, 0, &data, &len, &err), 0);
    assert_int_equal(op_entry_unpack(data, len, &entry, &err), 0);
    assert_int_equal(entry->n_requests, 0);
    assert_int_equal(entry->log_time_ms, 5);
    op_entry_free(&entry);
    free(data);
    uint8_t *huge = calloc(1, ENTRY_LEN_MAX + 1);
    assert_non_null(huge);
    assert_int_equal(op_entry_unpack(huge, ENTRY_LEN_MAX + 1, &entry, &err), RAFTDIR_ECORRUPT);
    free(huge);
}

/* An unknown field: number 100, varint 1. */
static const uint8_t unknown_field[] = {0xA0, 0x06, 0x01};

/* Wraps bytes as the field `tag` of an enclosing message. */
static size_t wrap(uint8_t *out, uint8_t tag, const uint8_t *in, size_t len)
{
    size_t n = 0;
    out[n++] = tag;
    assert_true(len < 0x4000);
    if (len >= 0x80) {
        out[n++] = (uint8_t)(len | 0x80);
        out[n++] = (uint8_t)(len >> 7);
    } else {
        out[n++] = (uint8_t)len;
    }
    memmove(out + n, in, len);
    return n + len;
}

static int unpack_with(const uint8_t *request, size_t len, struct err *err)
{
    uint8_t *data;
    size_t data_len;
    struct op_packed packed = {request, len};
    assert_int_equal(op_entry_pack(1, 1, 1, &packed, 1, &data, &data_len, NULL), 0);
    Raftdir__Log__Entry *entry = NULL;
    int rc = op_entry_unpack(data, data_len, &entry, err);
    if (rc == 0)
        op_entry_free(&entry);
    else
        assert_null(entry);
    free(data);
    return rc;
}

/* The same request with an unknown field in the message at each depth: Request, Op, Create, Mailbox, Location. */
static void op_unknown_at_every_depth(void **state)
{
    (void)state;
    static const char *const where[] = {"Location has", "Mailbox has", "Create has", "Op has", "Request has"};
    struct sample s;
    for (int depth = -1; depth < 5; depth++) {
        sample_init(&s);
        uint8_t a[1024], b[1024];
        size_t len = raftdir__log__location__pack(&s.location, a);
        if (depth == 0) {
            memcpy(a + len, unknown_field, 3);
            len += 3;
        }
        size_t n = wrap(b, 1 << 3 | 2, (const uint8_t *)"user.foo", 8);
        n += wrap(b + n, 2 << 3 | 2, a, len);
        if (depth == 1) {
            memcpy(b + n, unknown_field, 3);
            n += 3;
        }
        len = wrap(a, 1 << 3 | 2, b, n); /* Create.mailbox */
        if (depth == 2) {
            memcpy(a + len, unknown_field, 3);
            len += 3;
        }
        n = wrap(b, 5 << 3 | 2, a, len); /* Op.create */
        if (depth == 3) {
            memcpy(b + n, unknown_field, 3);
            n += 3;
        }
        Raftdir__Log__Request head = s.req;
        head.n_ops = 0;
        len = raftdir__log__request__pack(&head, a);
        len += wrap(a + len, 6 << 3 | 2, b, n);
        if (depth == 4) {
            memcpy(a + len, unknown_field, 3);
            len += 3;
        }
        struct err err = {0};
        int rc = unpack_with(a, len, &err);
        Raftdir__Log__Request *req = raftdir__log__request__unpack(NULL, len, a);
        assert_non_null(req);
        if (depth < 0) {
            assert_int_equal(rc, 0);
            assert_int_equal(op_request_check(req, 1, NULL), 0);
        } else {
            assert_int_equal(rc, RAFTDIR_EVERSION);
            assert_int_equal(err.code, RAFTDIR_EVERSION);
            assert_non_null(strstr(err.text, where[depth]));
            assert_non_null(strstr(err.text, "unknown field 100"));
            assert_int_equal(op_request_check(req, 1, NULL), RAFTDIR_EUNSUPPORTED);
        }
        raftdir__log__request__free_unpacked(req, NULL);
    }
}

static void op_unknown_values(void **state)
{
    (void)state;
    struct sample s;
    struct err err;
    uint8_t *bytes, raw[512];
    size_t len;

    /* An operation that this version doesn't know: the oneof stays unset. */
    sample_init(&s);
    Raftdir__Log__Request head = s.req;
    head.n_ops = 0;
    len = raftdir__log__request__pack(&head, raw);
    static const uint8_t empty_op[] = {6 << 3 | 2, 0};
    memcpy(raw + len, empty_op, 2);
    assert_int_equal(unpack_with(raw, len + 2, &err), RAFTDIR_EVERSION);
    static const uint8_t op_99[] = {6 << 3 | 2, 3, 0x9A, 0x06, 0x00}; /* field 99, an empty message */
    memcpy(raw + len, op_99, 5);
    assert_int_equal(unpack_with(raw, len + 5, &err), RAFTDIR_EVERSION);

    /* An unknown condition. */
    sample_init(&s);
    Raftdir__Log__Precondition p = RAFTDIR__LOG__PRECONDITION__INIT, *ps[] = {&p};
    p.condition = (Raftdir__Log__Condition)9;
    s.op.preconditions = ps;
    s.op.n_preconditions = 1;
    check(&s, RAFTDIR_EUNSUPPORTED, "condition has the unknown value 9");
    pack_request(&s.req, &bytes, &len);
    assert_int_equal(unpack_with(bytes, len, &err), RAFTDIR_EVERSION);
    free(bytes);

    /* The entry's own version and level, also when what follows can't be read. */
    static const struct {
        uint8_t data[16];
        size_t len;
        int rc;
    } rows[] = {
        {{0}, 0, RAFTDIR_ECORRUPT},
        {{0x08}, 1, RAFTDIR_ECORRUPT},
        {{0x08, 0x80}, 2, RAFTDIR_ECORRUPT},
        {{0x10, 0x01}, 2, RAFTDIR_ECORRUPT},
        {{0x08, 0x02}, 2, RAFTDIR_EVERSION},
        {{0x08, 0x02, 0xFF, 0xFF}, 4, RAFTDIR_EVERSION},
        {{0x08, 0x01}, 2, RAFTDIR_ECORRUPT},
        {{0x08, 0x01, 0x10, 0x02}, 4, RAFTDIR_EVERSION},
        {{0x08, 0x01, 0x10, 0x02, 0x18, 0x01, 0x20, 0x01}, 8, RAFTDIR_EVERSION},
        {{0x08, 0x01, 0x10, 0x01}, 4, RAFTDIR_ECORRUPT},
        {{0x08, 0x01, 0x10, 0x01, 0x18, 0x01, 0x20, 0x01}, 8, 0},
        {{0x08, 0x01, 0x10, 0x01, 0x18, 0x01, 0x20, 0x01, 0x08, 0x02}, 10, RAFTDIR_EVERSION}, /* said twice: the last counts */
        {{0x08, 0x01, 0x10, 0x01, 0x18, 0x01, 0x20, 0x01, 0xA0, 0x06, 0x01}, 11, RAFTDIR_EVERSION},
        {{0x08, 0x01, 0x10, 0x01, 0x18, 0x01, 0x20, 0x01, 0x2A, 0x05, 0x01}, 11, RAFTDIR_ECORRUPT},
        {{0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01}, 12, RAFTDIR_ECORRUPT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Raftdir__Log__Entry *entry = NULL;
        int rc = op_entry_unpack(rows[i].data, rows[i].len, &entry, &err);
        if (rc != rows[i].rc)
            fail_msg("row %zu: %d \"%s\", wanted %d", i, rc, rc ? err.text : "", rows[i].rc);
        if (rc == 0)
            op_entry_free(&entry);
    }
}

static char *text_of(size_t len)
{
    static char text[NAME_HISTORY_LEN_MAX + 16];
    memset(text, 'x', len);
    text[len] = '\0';
    return text;
}

static void op_request_head(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    check(&s, 0, NULL);
    s.req.op_id.len = 15;
    check(&s, RAFTDIR_EINVAL, "operation id has 15 bytes");
    sample_init(&s);
    s.req.expires_ms = 0;
    check(&s, RAFTDIR_EINVAL, "no expiry");
    sample_init(&s);
    s.req.identity = (char *)"";
    check(&s, RAFTDIR_EINVAL, "no identity");
    s.req.identity = text_of(IDENTITY_LEN_MAX);
    check(&s, 0, NULL);
    s.req.identity = text_of(IDENTITY_LEN_MAX + 1);
    check(&s, RAFTDIR_ETOOBIG, "identity");
    s.req.identity = (char *)"a\nb";
    check(&s, RAFTDIR_EINVAL, "control character");
    sample_init(&s);
    s.req.origin = text_of(IDENTITY_LEN_MAX + 1);
    check(&s, RAFTDIR_ETOOBIG, "origin");
    sample_init(&s);
    s.req.n_ops = 0;
    check(&s, RAFTDIR_EINVAL, "no operation");

    sample_init(&s);
    static Raftdir__Log__Op *many[REQUEST_OPS_MAX + 1];
    for (size_t i = 0; i <= REQUEST_OPS_MAX; i++)
        many[i] = &s.op;
    s.req.ops = many;
    s.req.n_ops = REQUEST_OPS_MAX;
    check(&s, 0, NULL);
    s.req.n_ops++;
    check(&s, RAFTDIR_ETOOBIG, "4097 operations");
    s.req.n_ops = 2;
    s.mailbox.acl = (char *)"bad";
    check(&s, RAFTDIR_EACL, "operation 1: ACL has no TAB");
    /* Together too long, each of them allowed. */
    static char acl[ACL_LEN_MAX + 1];
    memset(acl, 'x', sizeof acl - 1);
    for (size_t i = 400; i + 3 < ACL_LEN_MAX; i += 403)
        memcpy(acl + i, "\tl\t", 3);
    acl[ACL_LEN_MAX / 403 * 403] = '\0';
    s.mailbox.acl = acl;
    s.req.n_ops = 15;
    check(&s, 0, NULL);
    s.req.n_ops = 17;
    check(&s, RAFTDIR_ETOOBIG, "more than 1048576");
}

static void op_mailbox_fields(void **state)
{
    (void)state;
    struct sample s;
    struct row {
        size_t offset;
        const char *value;
        size_t len; /* when the value is NULL: so many letters */
        int rc;
        const char *text;
    };
#define FIELD(f) offsetof(Raftdir__Log__Mailbox, f)
    static const struct row rows[] = {
        {FIELD(name), "user", 0, RAFTDIR_ENAME, "reserved"},
        {FIELD(name), "", 0, RAFTDIR_ENAME, "empty"},
        {FIELD(name), NULL, NAME_LEN_MAX + 1, RAFTDIR_ETOOBIG, "mailbox name has 491 bytes"},
        {FIELD(acl), "", 0, 0, NULL},
        {FIELD(acl), "foo", 0, RAFTDIR_EACL, NULL},
        {FIELD(mbtype), "er", 0, 0, NULL},
        {FIELD(mbtype), "some-later-type", 0, 0, NULL}, /* opaque */
        {FIELD(mbtype), NULL, MBTYPE_LEN_MAX, 0, NULL},
        {FIELD(mbtype), NULL, MBTYPE_LEN_MAX + 1, RAFTDIR_ETOOBIG, "mbtype has 65 bytes"},
        {FIELD(mbtype), "e\n", 0, RAFTDIR_EINVAL, "0x0a"},
        {FIELD(uniqueid), NULL, UNIQUEID_LEN_MAX, 0, NULL},
        {FIELD(uniqueid), NULL, UNIQUEID_LEN_MAX + 1, RAFTDIR_ETOOBIG, "uniqueid"},
        {FIELD(uniqueid), "a b", 0, RAFTDIR_EINVAL, "uniqueid has ' '"},
        {FIELD(jmapid), NULL, UNIQUEID_LEN_MAX + 1, RAFTDIR_ETOOBIG, "jmapid"},
        {FIELD(legacy_specialuse), "\\Sent \\Drafts", 0, 0, NULL},
        {FIELD(legacy_specialuse), NULL, SPECIALUSE_LEN_MAX + 1, RAFTDIR_ETOOBIG, "legacy_specialuse"},
        {FIELD(name_history), "", 0, 0, NULL},
        {FIELD(name_history), "[]", 0, 0, NULL},
        {FIELD(name_history), "[{\"name\":\"user.x\",\"mtime\":\"1\"}]", 0, 0, NULL},
        {FIELD(name_history), "[{]", 0, RAFTDIR_EINVAL, "no compact JSON array"},
        {FIELD(name_history), "{}", 0, RAFTDIR_EINVAL, "no compact JSON array"},
        {FIELD(name_history), "[ ]", 0, RAFTDIR_EINVAL, "no compact JSON array"},
        {FIELD(name_history), NULL, NAME_HISTORY_LEN_MAX + 1, RAFTDIR_ETOOBIG, "name_history has 65537 bytes"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        sample_init(&s);
        const char *value = rows[i].value ? rows[i].value : text_of(rows[i].len);
        memcpy((char *)&s.mailbox + rows[i].offset, &value, sizeof value);
        check(&s, rows[i].rc, rows[i].text);
    }
    sample_init(&s);
    s.mailbox.has_uidvalidity = true;
    s.mailbox.uidvalidity = UINT32_MAX;
    check(&s, 0, NULL);
    s.mailbox.uidvalidity++;
    check(&s, RAFTDIR_EINVAL, "uidvalidity 4294967296");
    sample_init(&s);
    s.mailbox.has_mtime = true;
    s.mailbox.mtime = UINT64_MAX;
    check(&s, RAFTDIR_EINVAL, "mtime");

    static const struct {
        const char *server, *partition;
        int rc;
        const char *text;
    } locations[] = {
        {"be1", "", 0, NULL},
        {"", "default", RAFTDIR_EINVAL, "server is empty"},
        {"be1!x", "default", RAFTDIR_EINVAL, "server has '!'"},
        {"be 1", "default", RAFTDIR_EINVAL, "server has ' '"},
        {"be1", "p\t", RAFTDIR_EINVAL, "partition has the byte 0x09"},
        {"b\xc3\xbc", "p", RAFTDIR_EINVAL, "server has the byte 0xc3"},
    };
    for (size_t i = 0; i < sizeof locations / sizeof *locations; i++) {
        sample_init(&s);
        s.location.server = (char *)locations[i].server;
        s.location.partition = (char *)locations[i].partition;
        check(&s, locations[i].rc, locations[i].text);
    }
    sample_init(&s);
    s.location.server = text_of(SERVER_LEN_MAX);
    check(&s, 0, NULL);
    s.location.server = text_of(SERVER_LEN_MAX + 1);
    check(&s, RAFTDIR_ETOOBIG, "server has 513 bytes");
    sample_init(&s);
    s.location.partition = text_of(PARTITION_LEN_MAX + 1);
    check(&s, RAFTDIR_ETOOBIG, "partition has 65 bytes");
    sample_init(&s);
    s.mailbox.location = NULL;
    check(&s, RAFTDIR_EINVAL, "no location");
}

static void op_each_operation(void **state)
{
    (void)state;
    struct sample s;
    uint8_t token[TOKEN_LEN_MAX + 1] = {0};

#define START(kind, KIND)                                          \
    sample_init(&s);                                               \
    Raftdir__Log__##kind kind = RAFTDIR__LOG__##KIND##__INIT;      \
    s.op.op_case = RAFTDIR__LOG__OP__OP_##KIND
    {
        START(Reserve, RESERVE);
        s.op.reserve = &Reserve;
        Reserve.name = (char *)"user.a";
        Reserve.location = &s.location;
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.a");
        assert_string_equal(op_server(&s.op), "be1.example.org");
        Reserve.has_ttl_ms = true;
        Reserve.ttl_ms = RESERVATION_TTL_MAX_MS;
        check(&s, 0, NULL);
        Reserve.ttl_ms++;
        check(&s, RAFTDIR_ETOOBIG, "reservation for");
        Reserve.ttl_ms = 0;
        Reserve.has_token = true;
        Reserve.token.data = token;
        Reserve.token.len = TOKEN_LEN_MAX;
        check(&s, 0, NULL);
        Reserve.token.len++;
        check(&s, RAFTDIR_ETOOBIG, "token has 65 bytes");
        Reserve.token.len = 0;
        check(&s, RAFTDIR_EINVAL, "token has 0 bytes");
        Reserve.has_token = false;
        Reserve.name = (char *)"user..a";
        check(&s, RAFTDIR_ENAME, NULL);
    }
    {
        START(Activate, ACTIVATE);
        s.op.activate = &Activate;
        Activate.mailbox = &s.mailbox;
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.foo");
        assert_string_equal(op_server(&s.op), "be1.example.org");
        s.mailbox.location = NULL;
        check(&s, RAFTDIR_EINVAL, "no location");
    }
    {
        START(Deactivate, DEACTIVATE);
        s.op.deactivate = &Deactivate;
        Deactivate.name = (char *)"user.a";
        check(&s, 0, NULL);
        assert_null(op_server(&s.op));
        Deactivate.location = &s.location;
        check(&s, 0, NULL);
        assert_string_equal(op_server(&s.op), "be1.example.org");
        s.location.server = (char *)"";
        check(&s, RAFTDIR_EINVAL, NULL);
    }
    {
        START(Update, UPDATE);
        s.op.update = &Update;
        Update.mailbox = &s.mailbox;
        check(&s, RAFTDIR_EINVAL, "can't change the location");
        s.mailbox.location = NULL;
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.foo");
        assert_null(op_server(&s.op));
    }
    {
        START(SetAcl, SET_ACL);
        s.op.set_acl = &SetAcl;
        SetAcl.name = (char *)"user.a";
        check(&s, RAFTDIR_EINVAL, "neither");
        SetAcl.acl = (char *)"a\tl\t";
        check(&s, 0, NULL);
        SetAcl.rights = (char *)"l";
        check(&s, RAFTDIR_EINVAL, "both");
        SetAcl.acl = NULL;
        check(&s, RAFTDIR_EINVAL, "neither");
        SetAcl.identifier = (char *)"a";
        check(&s, 0, NULL);
        SetAcl.rights = (char *)"";
        check(&s, 0, NULL);
        SetAcl.rights = (char *)"+lz";
        check(&s, RAFTDIR_EACL, "'z'");
        SetAcl.rights = (char *)"lrswipkxtecdan0123456789";
        SetAcl.identifier = text_of(IDENTIFIER_LEN_MAX);
        check(&s, 0, NULL);
        SetAcl.identifier = text_of(IDENTIFIER_LEN_MAX + 1);
        check(&s, RAFTDIR_EACL, "491 bytes");
    }
    {
        START(Delete, DELETE);
        s.op.delete_ = &Delete;
        Delete.name = (char *)"user.a";
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.a");
        Delete.location = &s.location;
        assert_string_equal(op_server(&s.op), "be1.example.org");
        Delete.name = (char *)"user";
        check(&s, RAFTDIR_ENAME, NULL);
    }
    {
        START(Rename, RENAME);
        s.op.rename = &Rename;
        Rename.from = (char *)"user.a";
        Rename.to = (char *)"user.b";
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.a");
        Rename.to = (char *)"user.a";
        check(&s, RAFTDIR_EINVAL, "same name");
        Rename.location = &s.location;
        check(&s, 0, NULL);
        assert_string_equal(op_server(&s.op), "be1.example.org");
        Rename.to = (char *)"user.a.b";
        check(&s, 0, NULL);
        Rename.has_subtree = Rename.subtree = true;
        check(&s, RAFTDIR_EINVAL, "into itself");
        Rename.to = (char *)"user.ab";
        check(&s, 0, NULL);
        Rename.to = (char *)"user.a/b";
        check(&s, RAFTDIR_ENAME, NULL);
    }
    {
        START(MoveBegin, MOVE_BEGIN);
        s.op.move_begin = &MoveBegin;
        MoveBegin.name = (char *)"user.a";
        MoveBegin.to = &s.location;
        check(&s, 0, NULL);
        assert_string_equal(op_server(&s.op), "be1.example.org");
    }
    {
        START(MoveCommit, MOVE_COMMIT);
        s.op.move_commit = &MoveCommit;
        MoveCommit.name = (char *)"user.a";
        check(&s, 0, NULL);
        assert_string_equal(op_name(&s.op), "user.a");
    }
    {
        START(MoveAbort, MOVE_ABORT);
        s.op.move_abort = &MoveAbort;
        MoveAbort.name = (char *)"";
        check(&s, RAFTDIR_ENAME, NULL);
    }
    {
        START(Put, PUT);
        s.op.put = &Put;
        Put.mailbox = &s.mailbox;
        check(&s, 0, NULL);
        assert_string_equal(op_server(&s.op), "be1.example.org");
    }
    {
        START(SetFeatureLevel, SET_FEATURE_LEVEL);
        s.op.set_feature_level = &SetFeatureLevel;
        SetFeatureLevel.level = 1;
        check(&s, 0, NULL);
        SetFeatureLevel.level = FEATURE_LEVEL_MAX + 1;
        check(&s, RAFTDIR_EUNSUPPORTED, "feature level");
        SetFeatureLevel.level = 0;
        check(&s, RAFTDIR_EUNSUPPORTED, "feature level");
    }
    {
        START(Noop, NOOP);
        s.op.noop = &Noop;
        check(&s, 0, NULL);
        assert_null(op_name(&s.op));
        assert_null(op_server(&s.op));
        Raftdir__Log__Precondition p = RAFTDIR__LOG__PRECONDITION__INIT, *ps[] = {&p};
        s.op.preconditions = ps;
        s.op.n_preconditions = 1;
        p.condition = RAFTDIR__LOG__CONDITION__ABSENT;
        check(&s, RAFTDIR_EINVAL, "no name");
        p.name = (char *)"user.x";
        check(&s, 0, NULL);
        p.name = (char *)"user..x";
        check(&s, RAFTDIR_ENAME, NULL);
        p.name = (char *)"user.x";
        p.condition = RAFTDIR__LOG__CONDITION__GENERATION;
        check(&s, RAFTDIR_EINVAL, "generation");
        p.has_generation = true;
        check(&s, 0, NULL);
    }
}

static void op_json_arrays(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
    } rows[] = {
        {"[]", true}, {"[{}]", true}, {"[1,-2.5e+3,0,true,false,null,\"a\"]", true}, {"[{\"a\":[{}],\"b\":\"\\u00e9\\n\\\"\"}]", true}, {"[\"\xc3\xbc\"]", true},
        {"[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]", true}, {"[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]", false},
        {"", false}, {"[", false}, {"]", false}, {"[]]", false}, {"[],", false}, {"\"a\"", false}, {"[1,]", false}, {"[,1]", false}, {"[01]", false}, {"[-]", false},
        {"[1.]", false}, {"[1e]", false}, {"[tru]", false}, {"[{\"a\"}]", false}, {"[{\"a\":}]", false}, {"[{a:1}]", false}, {"[\"a]", false}, {"[\"\\x\"]", false},
        {"[\"\\u12g4\"]", false}, {"[\"\\", false}, {"[\"\\u12", false}, {"[\"\xff\"]", false}, {"[\"a\nb\"]", false}, {"[1 ]", false}, {"[{]}", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t len = strlen(rows[i].text);
        char *copy = malloc(len ? len : 1); /* without a NUL behind it: reading beyond shows */
        assert_non_null(copy);
        memcpy(copy, rows[i].text, len);
        if (op_json_array_ok(copy, len) != rows[i].ok)
            fail_msg("%s", rows[i].text);
        free(copy);
    }
}

/* Each operation that there is: whoever adds one has to say which kind it is. What apply does with them: test_apply, what_grows. */
static void op_which_grow(void **state)
{
    (void)state;
    static const struct {
        Raftdir__Log__Op__OpCase kind;
        const char *acl, *rights; /* SetAcl's */
        bool grows;
    } rows[] = {
        {RAFTDIR__LOG__OP__OP_RESERVE, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_ACTIVATE, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_DEACTIVATE, NULL, NULL, false},
        {RAFTDIR__LOG__OP__OP_CREATE, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_UPDATE, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_SET_ACL, "anna\tlrs\t", NULL, true},
        {RAFTDIR__LOG__OP__OP_SET_ACL, "", NULL, false},
        {RAFTDIR__LOG__OP__OP_SET_ACL, NULL, "", false},
        {RAFTDIR__LOG__OP__OP_SET_ACL, NULL, "-lr", false},
        {RAFTDIR__LOG__OP__OP_SET_ACL, NULL, "+lr", true},
        {RAFTDIR__LOG__OP__OP_SET_ACL, NULL, "lr", true},
        {RAFTDIR__LOG__OP__OP_DELETE, NULL, NULL, false},
        {RAFTDIR__LOG__OP__OP_RENAME, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_MOVE_BEGIN, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_MOVE_COMMIT, NULL, NULL, false},
        {RAFTDIR__LOG__OP__OP_MOVE_ABORT, NULL, NULL, false},
        {RAFTDIR__LOG__OP__OP_PUT, NULL, NULL, true},
        {RAFTDIR__LOG__OP__OP_NOOP, NULL, NULL, false},
        {RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL, NULL, NULL, false},
    };
    enum { N = sizeof rows / sizeof *rows };
    struct support_arena a = {0};
    Raftdir__Log__Op *ops[N];
    for (size_t i = 0; i < N; i++) {
        ops[i] = support_op(&a, rows[i].kind);
        if (rows[i].kind == RAFTDIR__LOG__OP__OP_SET_ACL) {
            ops[i]->set_acl->acl = support_text(&a, rows[i].acl);
            ops[i]->set_acl->identifier = support_text(&a, rows[i].rights ? "anna" : NULL);
            ops[i]->set_acl->rights = support_text(&a, rows[i].rights);
        }
        Raftdir__Log__Request req = RAFTDIR__LOG__REQUEST__INIT;
        req.ops = &ops[i];
        req.n_ops = 1;
        if (op_request_grows(&req) != rows[i].grows)
            fail_msg("row %zu", i);
    }
    for (unsigned i = 0; i < raftdir__log__op__descriptor.n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &raftdir__log__op__descriptor.fields[i];
        bool known = !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF);
        for (size_t k = 0; k < N; k++)
            known |= rows[k].kind == f->id;
        if (!known)
            fail_msg("operation %s is in no row", f->name);
    }
    /* One that grows is enough, wherever it stands. */
    Raftdir__Log__Op *none[3] = {ops[11], ops[17], ops[11]};
    Raftdir__Log__Request req = RAFTDIR__LOG__REQUEST__INIT;
    req.ops = none;
    req.n_ops = 3;
    assert_false(op_request_grows(&req));
    for (int i = 0; i < 3; i++) {
        Raftdir__Log__Op *was = none[i];
        none[i] = ops[3];
        assert_true(op_request_grows(&req));
        none[i] = was;
    }
    Raftdir__Log__Op unknown = RAFTDIR__LOG__OP__INIT;
    none[2] = &unknown;
    assert_true(op_request_grows(&req));
    support_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(op_pack_unpack),   cmocka_unit_test(op_pack_limits), cmocka_unit_test(op_unknown_at_every_depth), cmocka_unit_test(op_unknown_values),
        cmocka_unit_test(op_request_head),  cmocka_unit_test(op_mailbox_fields), cmocka_unit_test(op_each_operation), cmocka_unit_test(op_json_arrays),
        cmocka_unit_test(op_which_grow),
    };
    return cmocka_run_group_tests_name("op", tests, NULL, NULL);
}
