/* test_lib_oom.c - libraftdir without memory: in each public function the first allocation fails, then the second, ... until it passes without a failure. Whatever fails, the
 * function says RAFTDIR_ENOMEM (or gets over it), and the handle then does a lookup and a write; nothing is leaked (AddressSanitizer looks).
 *
 * The allocator is this program's own, in front of the sanitizer's or glibc's: so the allocations of OpenSSL, protobuf-c, LMDB and libc fail as ours do. Only
 * the thread that is tested fails. What OpenSSL makes once in a process exists before: that can't be repeated after a failure (OPENSSL_init_ssl(3)).
 *
 * RAFTDIR_TEST_ONLY=NAME: this operation alone. RAFTDIR_TEST_LONG=yes: each of the allocations of a TLS handshake; else each of the first FIRST_ALL and then one in STRIDE, beginning at a place that the seed gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "raftdir/limits.h"
#include "support_certs.h"
#include "support_fake_node.h"

#define F(name) RAFTDIR__CLIENT__TO_NODE__BODY_##name
#define FIRST_ALL 40
#define STRIDE 151
#define BATCH_OPS 18 /* more than a batch has room for at first */
#define CALLS_MAX 100000 /* allocations of one operation: more is a loop */

/* --- The allocator --------------------------------------------------------------------------------------------------------- */

static _Thread_local unsigned long fail_at, allocations; /* 0: none fails */
static _Thread_local bool failed, stays; /* stays: and so do all after it */
static unsigned long stop_at; /* RAFTDIR_TEST_STOP=N: a debugger stops at the N-th allocation of an operation */

static bool fails_now(void)
{
    if (!fail_at || (++allocations != fail_at && !(stays && allocations > fail_at)))
        return false;
    failed = true;
    if (allocations == stop_at)
        raise(SIGTRAP);
    errno = ENOMEM;
    return true;
}

#if defined(__SANITIZE_ADDRESS__)
#define REAL(name) __interceptor_##name
#else
#define REAL(name) __libc_##name
#endif
void *REAL(malloc)(size_t size);
void *REAL(calloc)(size_t n, size_t size);
void *REAL(realloc)(void *p, size_t size);

#define EXPORT __attribute__((visibility("default")))
EXPORT void *malloc(size_t size)
{
    return fails_now() ? NULL : REAL(malloc)(size);
}
EXPORT void *calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : REAL(calloc)(n, size);
}
EXPORT void *realloc(void *p, size_t size)
{
    return fails_now() ? NULL : REAL(realloc)(p, size);
}
EXPORT char *strndup(const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *copy = malloc(len + 1);
    if (copy) {
        memcpy(copy, s, len);
        copy[len] = '\0';
    }
    return copy;
}
EXPORT char *strdup(const char *s)
{
    return strndup(s, strlen(s));
}

/* --- The node -------------------------------------------------------------------------------------------------------------------- */

static char dir[80], list_file[128];
static struct fake node;
static SSL_CTX *ctx;
static raftdir *d;

static void rows(struct fake *f, unsigned conn, uint64_t id, unsigned from, unsigned n, bool more)
{
    Raftdir__Log__Location l = RAFTDIR__LOG__LOCATION__INIT;
    Raftdir__Log__Mailbox b[4];
    Raftdir__Client__Row row[4], *list[4];
    Raftdir__Client__Rows all = RAFTDIR__CLIENT__ROWS__INIT;
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    char names[4][16];
    l.server = l.partition = "be1";
    for (unsigned i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "user.u%u", from + i);
        raftdir__log__mailbox__init(&b[i]);
        raftdir__client__row__init(&row[i]);
        b[i].name = names[i];
        b[i].location = &l;
        row[i].mailbox = &b[i];
        list[i] = &row[i];
    }
    all.n_rows = n;
    all.rows = list;
    m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
    m.rows = &all;
    m.has_more = m.more = more;
    m.has_index = 1;
    m.index = 10;
    fake_answer(f, conn, id, &m);
}

/* Two frames: events 0 to 2 and 3 to 6, or what of them is behind `next`. */
static void events(struct fake *f, unsigned conn, uint64_t id, unsigned next)
{
    for (unsigned first = next; first < 7; first = first < 3 ? 3 : 7) {
        Raftdir__Client__Event e[4], *list[4];
        Raftdir__Client__Events all = RAFTDIR__CLIENT__EVENTS__INIT;
        Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
        char names[4][16];
        for (unsigned i = first; i < (first < 3 ? 3 : 7); i++) {
            unsigned k = (unsigned)all.n_events++;
            snprintf(names[k], sizeof names[k], "user.u%u", i);
            raftdir__client__event__init(&e[k]);
            e[k].kind = RAFTDIR_EVENT_DELETED;
            e[k].index = 11 + i;
            e[k].done = 1;
            e[k].name = names[k];
            list[k] = &e[k];
        }
        all.events = list;
        m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_EVENTS;
        m.events = &all;
        m.has_more = m.more = m.has_index = 1;
        m.index = 20;
        fake_answer(f, conn, id, &m);
    }
}

static void answer(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *to)
{
    static uint8_t bytes[RAFTDIR_DIGEST_LEN] = {1};
    Raftdir__Client__FromNode m = RAFTDIR__CLIENT__FROM_NODE__INIT;
    Raftdir__Cluster__Member member = RAFTDIR__CLUSTER__MEMBER__INIT, *list[] = {&member};
    Raftdir__Cluster__MemberResult members = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
    Raftdir__Client__StatusResult status = RAFTDIR__CLIENT__STATUS_RESULT__INIT;
    Raftdir__Client__VerifyResult verify = RAFTDIR__CLIENT__VERIFY_RESULT__INIT;
    Raftdir__Client__CheckpointDigest point = RAFTDIR__CLIENT__CHECKPOINT_DIGEST__INIT, *points[] = {&point};
    member.id = 1;
    member.address = "127.0.0.1:1";
    member.cert_name = "n1";
    member.uuid.data = bytes;
    member.uuid.len = RAFTDIR_UUID_LEN;
    switch (to->body_case) {
    case F(LOOKUP):
        fake_row(f, conn, to->request_id, to->lookup->name, "be1", 10);
        return;
    case F(MY_RIGHTS):
        fake_row(f, conn, to->request_id, to->my_rights->name, "be1", 10);
        return;
    case F(WRITE):
        fake_write_result(f, conn, to, 0, 50, NULL);
        return;
    case F(LIST):
    case F(VISIBLE):
        /* An attempt that went on behind the first frame gets the second. */
        if (!(to->body_case == F(LIST) ? to->list->after : to->visible->after))
            rows(f, conn, to->request_id, 0, 3, true);
        rows(f, conn, to->request_id, 3, 4, false);
        return;
    case F(WATCH):
        events(f, conn, to->request_id, to->watch->has_index ? (unsigned)to->watch->index - 10 : 0);
        return;
    case F(CREDIT):
    case F(CANCEL):
        return;
    case F(STATUS):
        status.node_id = 1;
        status.node_name = status.state = status.role = status.software = "x";
        status.n_members = 1;
        status.members = list;
        m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_STATUS;
        m.status = &status;
        break;
    case F(MEMBER):
        members.n_members = 1;
        members.members = list;
        members.member = &member;
        m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_MEMBER;
        m.member = &members;
        break;
    case F(VERIFY):
        point.index = 5;
        point.digest.data = bytes;
        point.digest.len = sizeof bytes;
        verify.n_checkpoints = 1;
        verify.checkpoints = points;
        m.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_VERIFY;
        m.verify = &verify;
        m.has_more = m.more = 1;
        fake_answer(f, conn, to->request_id, &m);
        m.has_more = m.more = 0;
        break;
    default:
        break; /* barrier, bootstrap, ...: 0 */
    }
    fake_answer(f, conn, to->request_id, &m);
}

/* --- Handles ------------------------------------------------------------------------------------------------------------------------- */

static int open_handle(raftdir **d_r, char *text, size_t text_size, bool from_file)
{
    struct raftdir_options o;
    char ca[128], cert[128], key[128];
    raftdir_options_init(&o);
    o.endpoints = from_file ? list_file : node.endpoint;
    o.timeout_ms = 3000;
    o.only_these = 1;
    o.site = "here";
    o.local_dir = "";
    if (node.tls) {
        snprintf(ca, sizeof ca, "%s/ca.crt", dir);
        snprintf(cert, sizeof cert, "%s/node.crt", dir);
        snprintf(key, sizeof key, "%s/node.key", dir);
        o.ca = ca;
        o.cert = cert;
        o.key = key;
    }
    return raftdir_open(&o, d_r, text, text_size);
}

static const struct raftdir_mailbox *box(void)
{
    static struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    m.name = "user.anna";
    m.server = "be1";
    m.partition = "p1";
    m.acl = "anna\tlrs\t";
    m.uniqueid = "id";
    return &m;
}

/* --- The operations: 0, or the code ----------------------------------------------------------------------------------------------------- */

static int named(int rc, const struct raftdir_mailbox *const *m, const char *name)
{
    if (rc == 0)
        assert_string_equal((*m)->name, name);
    return rc;
}

static int op_open(void)
{
    raftdir *other = NULL;
    char text[256];
    int rc = open_handle(&other, text, sizeof text, false);
    assert_true((rc == 0) == (other != NULL));
    assert_true(rc == 0 || *text);
    raftdir_close(&other);
    return rc;
}

static int op_open_file(void)
{
    raftdir *other = NULL;
    int rc = open_handle(&other, NULL, 0, true);
    raftdir_close(&other);
    return rc;
}

static int op_lookup(void)
{
    const struct raftdir_mailbox *m;
    return named(raftdir_lookup(d, "user.anna", &m), &m, "user.anna");
}

static int op_lookup_uniqueid(void)
{
    const struct raftdir_mailbox *m;
    return named(raftdir_lookup_uniqueid(d, "id", &m), &m, "id");
}

static int op_lookup_user(void)
{
    const struct raftdir_mailbox *m;
    return named(raftdir_lookup_user(d, "anna", &m), &m, "anna");
}

static int op_my_rights(void)
{
    static const char *const groups[] = {"staff", "group:all"};
    const struct raftdir_mailbox *m;
    return named(raftdir_my_rights(d, "user.anna", "bob", groups, 2, &m), &m, "user.anna");
}

static int op_copy(void)
{
    struct raftdir_mailbox *copy = raftdir_mailbox_copy(box());
    int rc = copy ? 0 : RAFTDIR_ENOMEM;
    raftdir_mailbox_free(copy);
    return rc;
}

static int walk(int rc, raftdir_list *l)
{
    const struct raftdir_mailbox *m;
    char name[32];
    unsigned n = 0;
    while (rc == 0 && (rc = raftdir_list_next(l, &m)) == 1) {
        snprintf(name, sizeof name, "user.u%u", n++);
        assert_string_equal(m->name, name);
        rc = 0;
        if (n > 7)
            fail_msg("a row twice");
    }
    if (rc == 0)
        assert_int_equal(n, 7);
    raftdir_list_close(&l);
    return rc;
}

static int op_list(void)
{
    raftdir_list *l;
    struct raftdir_filter f;
    raftdir_filter_init(&f);
    f.prefix = "user.";
    f.server = "be1";
    int rc = raftdir_list_open(d, &f, &l);
    return walk(rc, l);
}

static int op_visible(void)
{
    static const char *const groups[] = {"staff", "all"};
    raftdir_list *l;
    struct raftdir_visible v;
    raftdir_visible_init(&v);
    v.user = "anna";
    v.groups = groups;
    v.groups_n = 2;
    v.pattern = "*";
    int rc = raftdir_visible_open(d, &v, &l);
    return walk(rc, l);
}

/* Once it is open, an event that found no memory comes at the next call: none is lost, none twice. */
static int op_watch(void)
{
    raftdir_watch *w;
    struct raftdir_watch_filter f;
    const struct raftdir_event *e;
    raftdir_watch_filter_init(&f);
    f.prefix = "user.";
    f.server = "be1";
    int first = 0, rc = raftdir_watch_open(d, &f, NULL, &w);
    if (rc < 0)
        return rc;
    for (unsigned n = 0, turns = 0; n < 7;) {
        char name[32];
        rc = raftdir_watch_next(w, 1000, &e);
        if (rc == RAFTDIR_ENOMEM && !first)
            first = rc;
        else if (rc < 0)
            fail_msg("watch: %s: %s", raftdir_errname(rc), raftdir_message(d));
        if (rc == 0) {
            snprintf(name, sizeof name, "user.u%u", n++);
            assert_string_equal(e->name, name);
        }
        if (++turns > 20)
            fail_msg("watch: event %u doesn't come", n);
    }
    raftdir_watch_close(&w);
    return first;
}

static int op_barrier(void)
{
    return raftdir_barrier(d, 0);
}

#define WRITE_OP(name, call)                                                                                                               \
    static int op_##name(void)                                                                                                             \
    {                                                                                                                                      \
        const struct raftdir_result *r;                                                                                                    \
        int rc = call;                                                                                                                     \
        if (rc == 0)                                                                                                                       \
            assert_int_equal(r->index, 50);                                                                                                \
        return rc;                                                                                                                         \
    }
WRITE_OP(create, raftdir_create(d, box(), &r))
WRITE_OP(put, raftdir_put(d, box(), &r))
WRITE_OP(update, raftdir_update(d, box(), &r))
WRITE_OP(reserve, raftdir_reserve(d, "user.a", "be1", "p", "tok", 3, 0, &r))
WRITE_OP(activate, raftdir_activate(d, box(), "tok", 3, 0, &r))
WRITE_OP(deactivate, raftdir_deactivate(d, "user.a", "be1", "p", "tok", 3, &r))
WRITE_OP(delete, raftdir_delete(d, "user.a", 1, &r))
WRITE_OP(rename, raftdir_rename(d, "user.a", "user.b", 1, NULL, NULL, &r))
WRITE_OP(setacl, raftdir_setacl(d, "user.a", "a\tl\t", &r))
WRITE_OP(setacl_one, raftdir_setacl_one(d, "user.a", "a", "l", &r))
WRITE_OP(move_begin, raftdir_move_begin(d, "user.a", "be2", "p", 0, &r))
WRITE_OP(move_commit, raftdir_move_commit(d, "user.a", 0, &r))
WRITE_OP(move_abort, raftdir_move_abort(d, "user.a", 0, &r))
WRITE_OP(feature_level, raftdir_set_feature_level(d, 1, &r))

static int batch(raftdir_batch *b)
{
    int rc = b ? 0 : RAFTDIR_ENOMEM;
    for (int i = 0; i < BATCH_OPS - 1 && rc == 0; i++)
        rc = raftdir_batch_add_put(b, box());
    if (rc == 0 && (rc = raftdir_batch_add_noop(b)) == 0)
        rc = raftdir_batch_if(b, RAFTDIR_IF_PRESENT, 0, "user.x");
    return rc;
}

static int op_batch(void)
{
    const struct raftdir_result *r;
    raftdir_batch *b = raftdir_batch_create();
    int rc = batch(b);
    if (rc == 0 && (rc = raftdir_write(d, b, &r)) == 0)
        assert_true(r->ops_n == BATCH_OPS || (r->ops_n == 0 && !r->ops)); /* done, and what became of each can't be told */
    raftdir_batch_destroy(&b);
    return rc;
}

struct told {
    unsigned n;
    int code;
};

static void written(void *data, int code, const char *message, const struct raftdir_result *r)
{
    struct told *t = data;
    (void)message;
    (void)r;
    t->n++;
    t->code = t->code ? t->code : code;
}

static int op_submit(void)
{
    struct told t = {0};
    unsigned n = 0;
    raftdir_batch *b = raftdir_batch_create();
    int rc = batch(b), drained;
    for (int i = 0; i < 3 && rc == 0; i++)
        if ((rc = raftdir_submit(d, b, written, &t)) == 0)
            n++;
    drained = raftdir_drain(d);
    assert_int_equal(drained, 0);
    assert_int_equal(t.n, n); /* each is told, and what wasn't taken isn't */
    raftdir_batch_destroy(&b);
    return rc ? rc : t.code;
}

static void answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    (void)message;
    (void)m;
    written(data, code, NULL, NULL);
}

static int op_loop(void)
{
    struct told t = {0};
    unsigned n = 0;
    int fd = raftdir_fd(d), rc = fd < 0 ? fd : 0;
    for (int i = 0; i < 3 && rc == 0; i++)
        if ((rc = i == 2 ? raftdir_my_rights_start(d, "user.a", "a", NULL, 0, answered, &t) : raftdir_lookup_start(d, "user.a", answered, &t)) == 0)
            n++;
    for (int turns = 0; t.n < n && turns < 1000; turns++) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        poll(&p, 1, 100);
        int processed = raftdir_process(d);
        assert_int_equal(processed, 0);
    }
    assert_int_equal(t.n, n);
    return rc ? rc : t.code;
}

static int op_status(void)
{
    const struct raftdir_node_status *s;
    return raftdir_status(d, &s);
}

static int op_node_info(void)
{
    const struct raftdir_node_info *i;
    return raftdir_node_info(d, &i);
}

static int op_members(void)
{
    const struct raftdir_members *m;
    return raftdir_members(d, &m);
}

static int op_member_add(void)
{
    struct raftdir_member m = {.address = "127.0.0.1:2", .cert_name = "n2"};
    const struct raftdir_members *all;
    uint64_t id;
    return raftdir_member_add(d, &m, &id, &all);
}

static int op_promote(void)
{
    return raftdir_member_promote(d, 1);
}
static int op_demote(void)
{
    return raftdir_member_demote(d, 1);
}
static int op_remove(void)
{
    return raftdir_member_remove(d, 1);
}
static int op_transfer(void)
{
    return raftdir_leader_transfer(d, 1);
}
static int op_bootstrap(void)
{
    return raftdir_bootstrap(d);
}
static int op_adopt(void)
{
    struct raftdir_member m = {.id = 1, .address = "127.0.0.1:2", .cert_name = "n2"};
    struct raftdir_members all = {.cluster_id = 1, .n = 1, .list = &m};
    return raftdir_adopt(d, 1, &all);
}
static int op_reset(void)
{
    return raftdir_reset(d, 1, 1);
}
static int op_verify(void)
{
    const struct raftdir_verify_result *r;
    return raftdir_verify(d, NULL, NULL, &r);
}

static bool is_long(void)
{
    const char *e = getenv("RAFTDIR_TEST_LONG");
    return e && !strcmp(e, "yes");
}

static const struct op {
    const char *name;
    int (*run)(void);
    bool once; /* must not be sent twice: may end uncertain */
} ops[] = {
    {"open", op_open, false},
    {"open_file", op_open_file, false},
    {"lookup", op_lookup, false},
    {"lookup_uniqueid", op_lookup_uniqueid, false},
    {"lookup_user", op_lookup_user, false},
    {"my_rights", op_my_rights, false},
    {"mailbox_copy", op_copy, false},
    {"list", op_list, false},
    {"visible", op_visible, false},
    {"watch", op_watch, false},
    {"barrier", op_barrier, false},
    {"create", op_create, false},
    {"put", op_put, false},
    {"update", op_update, false},
    {"reserve", op_reserve, false},
    {"activate", op_activate, false},
    {"deactivate", op_deactivate, false},
    {"delete", op_delete, false},
    {"rename", op_rename, false},
    {"setacl", op_setacl, false},
    {"setacl_one", op_setacl_one, false},
    {"move_begin", op_move_begin, false},
    {"move_commit", op_move_commit, false},
    {"move_abort", op_move_abort, false},
    {"set_feature_level", op_feature_level, false},
    {"batch", op_batch, false},
    {"submit", op_submit, false},
    {"loop", op_loop, false},
    {"status", op_status, false},
    {"node_info", op_node_info, false},
    {"members", op_members, false},
    {"member_add", op_member_add, false},
    {"member_promote", op_promote, true},
    {"member_demote", op_demote, true},
    {"member_remove", op_remove, true},
    {"leader_transfer", op_transfer, true},
    {"bootstrap", op_bootstrap, true},
    {"adopt", op_adopt, true},
    {"reset", op_reset, true},
    {"verify", op_verify, false},
};
#define OPS_N (sizeof ops / sizeof *ops)

/* --- The sweep ------------------------------------------------------------------------------------------------------------------------- */

static void sweep(const struct op *op, bool connected, unsigned long offset)
{
    char text[256];
    unsigned long tried = 0;
    for (unsigned long n = 1;; n += n < FIRST_ALL || !node.tls || is_long() ? 1 : n == FIRST_ALL ? 1 + offset % STRIDE : STRIDE) {
        if (n > CALLS_MAX)
            fail_msg("%s: still allocating", op->name);
        if (!d && open_handle(&d, text, sizeof text, false) < 0)
            fail_msg("open: %s", text);
        if (connected && op_lookup() < 0)
            fail_msg("%s: the handle before allocation %lu: %s", op->name, n, raftdir_message(d));
        allocations = 0;
        failed = false;
        fail_at = n;
        int rc = op->run();
        fail_at = 0;
        tried++;
        if (rc != 0 && rc != RAFTDIR_ENOMEM && !(op->once && rc == RAFTDIR_EUNCERTAIN))
            fail_msg("%s%s, allocation %lu: %s: %s", op->name, connected ? " (connected)" : "", n, raftdir_errname(rc), raftdir_message(d));
        if (rc != 0 && !failed)
            fail_msg("%s: %s without a failed allocation: %s", op->name, raftdir_errname(rc), raftdir_message(d));
        /* It is of use as before. */
        if (op_lookup() < 0 || op_create() < 0)
            fail_msg("%s%s, after allocation %lu failed: %s", op->name, connected ? " (connected)" : "", n, raftdir_message(d));
        assert_string_equal(raftdir_message(d), "");
        if (!connected)
            raftdir_close(&d);
        if (!failed)
            break;
    }
    raftdir_close(&d);
    if (getenv("RAFTDIR_TEST_VERBOSE"))
        print_message("%s%s: %lu failures\n", op->name, connected ? " (connected)" : "", tried - 1);
}

static void sweep_all(unsigned long offset)
{
    for (size_t i = 0; i < OPS_N; i++)
        for (int connected = 0; connected <= 1; connected++) {
            /* A connection is made in the same way for all, and TLS is the same below all: one kind of read, of write and of stream goes through that, and what
             * opens handles. */
            bool opens = !strncmp(ops[i].name, "open", 4);
            static const char *const through[] = {"lookup", "create", "list", "open", "open_file"};
            bool chosen = is_long();
            for (size_t k = 0; k < sizeof through / sizeof *through; k++)
                chosen |= !strcmp(through[k], ops[i].name);
            const char *only = getenv("RAFTDIR_TEST_ONLY");
            if ((chosen || (connected && !node.tls)) && !(opens && connected) && (!only || !strcmp(only, ops[i].name)))
                sweep(&ops[i], connected, offset + i);
        }
}

static void write_list(void)
{
    char path[120];
    snprintf(path, sizeof path, "%s/endpoints", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "# the nodes\n%s\n", node.endpoint);
    fclose(f);
    snprintf(list_file, sizeof list_file, "file:%s", path);
}

static void unix_socket(void **state)
{
    (void)state;
    fake_start(&node, dir, "one", answer, NULL);
    node.answers_pings = true;
    write_list();
    sweep_all(0);
}

static void tls(void **state)
{
    struct support_ca ca;
    char file[128];
    (void)state;
    snprintf(file, sizeof file, "%s/ca.crt", dir);
    support_ca_make(&ca, "CA", file);
    support_cert_make(&ca, dir, "node", &(struct support_cert){.cn = "node"});
    ctx = support_ctx(dir, "ca", "node");
    support_ca_free(&ca);
    fake_start_tls(&node, "one", ctx, answer, NULL);
    node.answers_pings = true;
    write_list();
    char text[256];
    if (open_handle(&d, text, sizeof text, false) < 0 || op_lookup() < 0)
        fail_msg("before: %s", d ? raftdir_message(d) : text);
    raftdir_close(&d);
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    const char *given = getenv("RAFTDIR_TEST_SEED");
    unsigned long seed = given ? strtoul(given, NULL, 0) : (unsigned long)ts.tv_nsec;
    print_message("RAFTDIR_TEST_SEED=%lu\n", seed);
    sweep_all(seed);
}

/* No memory any more, from the n-th allocation on: nothing gets over that, and a read says so long before its timeout. */
static void none_left(void **state)
{
    char text[256];
    (void)state;
    fake_start(&node, dir, "one", answer, NULL);
    node.answers_pings = true;
    for (unsigned long n = 1; n < 100; n++) {
        if (open_handle(&d, text, sizeof text, false) < 0)
            fail_msg("open: %s", text);
        allocations = 0;
        failed = false;
        stays = true;
        fail_at = n;
        time_t began = time(NULL);
        int rc = op_lookup();
        fail_at = 0;
        stays = false;
        if (rc != (failed ? RAFTDIR_ENOMEM : 0) || time(NULL) - began > 2)
            fail_msg("from allocation %lu on: %s: %s", n, raftdir_errname(rc), raftdir_message(d));
        assert_int_equal(op_lookup(), 0);
        raftdir_close(&d);
        if (!failed)
            return;
    }
    fail_msg("still allocating");
}

static int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "oom");
    memset(&node, 0, sizeof node);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fail_at = 0;
    raftdir_close(&d);
    fake_stop(&node);
    SSL_CTX_free(ctx);
    ctx = NULL;
    support_dir_remove(dir);
    return 0;
}

int main(void)
{
    stop_at = getenv("RAFTDIR_TEST_STOP") ? strtoul(getenv("RAFTDIR_TEST_STOP"), NULL, 10) : 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(unix_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(none_left, setup, teardown),
        cmocka_unit_test_setup_teardown(tls, setup, teardown),
    };
    return cmocka_run_group_tests_name("lib_oom", tests, NULL, NULL);
}
