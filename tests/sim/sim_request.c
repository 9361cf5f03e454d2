/* sim_request.c - random requests about a small set of names, so that clients step on each other's toes.
 *
 * Names: users with folders, in two domains, and shared mailboxes; renames move users and folders within the set (a rename target outside of it can't
 * happen: the targets of subtree renames are chosen so that what lands below them is in the set too). */
#include "sim.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/name.h"
#include "raftdir/op.h"

#define USERS 8
#define FOLDERS 3

char request_names[NAMES_MAX][64];
unsigned request_names_n;
static unsigned roots_n;
static char roots[32][48];

void request_init(void)
{
    static const char *const folders[FOLDERS] = {"Sent", "Sent.old", "a^b"};
    request_names_n = roots_n = 0;
    for (unsigned d = 0; d < 2; d++)
        for (unsigned u = 0; u < USERS; u++)
            snprintf(roots[roots_n++], sizeof roots[0], "%suser.%s%u", d ? "example.org!" : "", u % 3 ? "u" : "john^doe", u);
    for (unsigned i = 0; i < 4; i++)
        snprintf(roots[roots_n++], sizeof roots[0], "shared%u", i);
    for (unsigned r = 0; r < roots_n; r++) {
        snprintf(request_names[request_names_n++], sizeof request_names[0], "%.47s", roots[r]);
        for (unsigned f = 0; f < FOLDERS; f++)
            snprintf(request_names[request_names_n++], sizeof request_names[0], "%.47s.%s", roots[r], folders[f]);
    }
}

/* --- Strings live in a small arena that each request resets. -------------------------------------------------------------------- */

static char arena[1 << 19];
static size_t arena_used;

static void *take(size_t len)
{
    len = (len + 15) & ~(size_t)15;
    if (arena_used + len > sizeof arena)
        sim_violation("simulation", "a request is too big for its arena");
    void *p = arena + arena_used;
    arena_used += len;
    memset(p, 0, len);
    return p;
}

static char *text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *text(const char *fmt, ...)
{
    char buf[512];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    char *s = take((size_t)len + 1);
    memcpy(s, buf, (size_t)len + 1);
    return s;
}

#define MAKE(var, type, init)  \
    type *var = take(sizeof *var); \
    init(var)

static char *random_name(void)
{
    /* A few names are much busier than the rest. */
    return request_names[chance(500) ? rnd_in(0, 11) : rnd_in(0, request_names_n - 1)];
}

static char *random_root(void)
{
    return roots[chance(600) ? rnd_in(0, 3) : rnd_in(0, roots_n - 1)];
}

static Raftdir__Log__Location *random_location(void)
{
    MAKE(l, Raftdir__Log__Location, raftdir__log__location__init);
    l->server = text("be%u.example.org", rnd_in(1, 3));
    l->partition = text("p%u", rnd_in(0, 1));
    return l;
}

static char *random_acl(void)
{
    static const char *const who[] = {"anyone", "u1", "u2@example.org", "group:staff", "john.doe0", "-u4", "-anyone", "anonymous"};
    static const char *const rights[] = {"lrs", "lrswipkxtea", "p", "lr", "lrsip", "a0123"};
    char buf[256];
    size_t len = 0;
    if (sim.config.big && chance(250)) {
        size_t size = rnd_in(1000, ACL_LEN_MAX);
        char *acl = take(size + 1);
        for (unsigned i = 0; i < ACL_ENTRIES_MAX && len + 80 < size; i++)
            len += (size_t)snprintf(acl + len, size + 1 - len, "user-with-a-long-name-%u@example.org\tlrswi\t", i);
        return acl;
    }
    unsigned first = rnd_in(0, 7);
    buf[0] = '\0';
    for (unsigned i = 0, n = rnd_in(0, 4); i < n; i++) {
        int w = snprintf(buf + len, sizeof buf - len, "%s\t%s\t", who[(first + i) % 8], rights[rnd_in(0, 5)]);
        len += (size_t)w;
    }
    return text("%s", buf);
}

static Raftdir__Log__Mailbox *random_mailbox(char *name, bool located)
{
    MAKE(m, Raftdir__Log__Mailbox, raftdir__log__mailbox__init);
    m->name = name;
    if (located)
        m->location = random_location();
    if (chance(800))
        m->acl = random_acl();
    if (chance(300))
        m->mbtype = text("%c", "ecas"[rnd_in(0, 3)]);
    if (chance(400))
        m->uniqueid = text("uid-%u", rnd_in(0, 400));
    m->has_mtime = chance(500);
    m->mtime = m->has_mtime ? rnd_in(1, 1u << 30) : 0;
    m->has_uidvalidity = chance(500);
    m->uidvalidity = m->has_uidvalidity ? rnd_in(1, 1u << 30) : 0;
    m->has_foldermodseq = chance(200);
    m->foldermodseq = m->has_foldermodseq ? rnd_in(1, 1000) : 0;
    return m;
}

static void add_precondition(Raftdir__Log__Op *op)
{
    MAKE(p, Raftdir__Log__Precondition, raftdir__log__precondition__init);
    p->condition = (Raftdir__Log__Condition)rnd_in(0, 3);
    if (p->condition == RAFTDIR__LOG__CONDITION__GENERATION) {
        p->has_generation = true;
        p->generation = rnd_in(1, 300);
    }
    if (chance(300) || op->op_case == RAFTDIR__LOG__OP__OP_NOOP)
        p->name = random_name();
    op->preconditions = take(sizeof *op->preconditions);
    op->preconditions[0] = p;
    op->n_preconditions = 1;
}

static void set_token(ProtobufCBinaryData *token, protobuf_c_boolean *has)
{
    *has = chance(600);
    if (*has) {
        token->data = (uint8_t *)text("token-%u", rnd_in(0, 1));
        token->len = strlen((char *)token->data);
    }
}

static Raftdir__Log__Op *random_op(void)
{
    MAKE(op, Raftdir__Log__Op, raftdir__log__op__init);
    unsigned what = rnd_in(0, 99);
    if (what < 30) {
        MAKE(o, Raftdir__Log__Create, raftdir__log__create__init);
        o->mailbox = random_mailbox(random_name(), true);
        if (chance(200))
            set_token(&o->token, &o->has_token);
        op->op_case = RAFTDIR__LOG__OP__OP_CREATE;
        op->create = o;
    } else if (what < 40) {
        MAKE(o, Raftdir__Log__Put, raftdir__log__put__init);
        o->mailbox = random_mailbox(random_name(), true);
        op->op_case = RAFTDIR__LOG__OP__OP_PUT;
        op->put = o;
    } else if (what < 48) {
        MAKE(o, Raftdir__Log__Reserve, raftdir__log__reserve__init);
        o->name = random_name();
        o->location = random_location();
        set_token(&o->token, &o->has_token);
        o->has_ttl_ms = chance(600);
        o->ttl_ms = o->has_ttl_ms ? rnd_in(500, 10000) : 0;
        o->has_any_partition = o->any_partition = chance(300);
        op->op_case = RAFTDIR__LOG__OP__OP_RESERVE;
        op->reserve = o;
    } else if (what < 56) {
        MAKE(o, Raftdir__Log__Activate, raftdir__log__activate__init);
        o->mailbox = random_mailbox(random_name(), true);
        set_token(&o->token, &o->has_token);
        o->has_take_over = chance(300);
        o->take_over = o->has_take_over;
        o->has_any_partition = o->any_partition = chance(300);
        op->op_case = RAFTDIR__LOG__OP__OP_ACTIVATE;
        op->activate = o;
    } else if (what < 60) {
        MAKE(o, Raftdir__Log__Deactivate, raftdir__log__deactivate__init);
        o->name = random_name();
        if (chance(300))
            o->location = random_location();
        op->op_case = RAFTDIR__LOG__OP__OP_DEACTIVATE;
        op->deactivate = o;
    } else if (what < 66) {
        MAKE(o, Raftdir__Log__Update, raftdir__log__update__init);
        o->mailbox = random_mailbox(random_name(), false);
        op->op_case = RAFTDIR__LOG__OP__OP_UPDATE;
        op->update = o;
    } else if (what < 78) {
        MAKE(o, Raftdir__Log__SetAcl, raftdir__log__set_acl__init);
        o->name = random_name();
        if (chance(500)) {
            o->acl = random_acl();
        } else {
            static const char *const rights[] = {"", "+p", "-r", "lrs"};
            o->identifier = text("u%u", rnd_in(0, 5));
            o->rights = text("%s", rights[rnd_in(0, 3)]);
        }
        op->op_case = RAFTDIR__LOG__OP__OP_SET_ACL;
        op->set_acl = o;
    } else if (what < 88) {
        MAKE(o, Raftdir__Log__Delete, raftdir__log__delete__init);
        o->has_subtree = chance(400);
        o->subtree = o->has_subtree;
        o->name = o->subtree ? random_root() : random_name();
        op->op_case = RAFTDIR__LOG__OP__OP_DELETE;
        op->delete_ = o;
    } else if (what < 94) {
        MAKE(o, Raftdir__Log__Rename, raftdir__log__rename__init);
        o->has_subtree = chance(500);
        o->subtree = o->has_subtree;
        o->from = o->subtree ? random_root() : random_name();
        o->to = o->subtree ? random_root() : random_name();
        if (chance(300))
            o->location = random_location();
        op->op_case = RAFTDIR__LOG__OP__OP_RENAME;
        op->rename = o;
    } else if (what < 96) {
        MAKE(o, Raftdir__Log__MoveBegin, raftdir__log__move_begin__init);
        o->name = random_name();
        o->to = random_location();
        op->op_case = RAFTDIR__LOG__OP__OP_MOVE_BEGIN;
        op->move_begin = o;
    } else if (what < 98) {
        MAKE(o, Raftdir__Log__MoveCommit, raftdir__log__move_commit__init);
        o->name = random_name();
        op->op_case = RAFTDIR__LOG__OP__OP_MOVE_COMMIT;
        op->move_commit = o;
    } else if (what < 99) {
        MAKE(o, Raftdir__Log__MoveAbort, raftdir__log__move_abort__init);
        o->name = random_name();
        op->op_case = RAFTDIR__LOG__OP__OP_MOVE_ABORT;
        op->move_abort = o;
    } else {
        MAKE(o, Raftdir__Log__Noop, raftdir__log__noop__init);
        op->op_case = RAFTDIR__LOG__OP__OP_NOOP;
        op->noop = o;
    }
    if (chance(150))
        add_precondition(op);
    return op;
}

static uint8_t *pack(Raftdir__Log__Request *req, const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, const char *identity, size_t *len_r)
{
    struct err err;
    req->op_id.data = take(OP_ID_LEN);
    memcpy(req->op_id.data, op_id, OP_ID_LEN);
    req->op_id.len = OP_ID_LEN;
    req->expires_ms = expires_ms;
    req->identity = text("%s", identity);
    if (op_request_check(req, FEATURE_LEVEL_MAX, &err)) {
        TRACE("client: refused before it is sent: %s", err.text);
        return NULL;
    }
    *len_r = raftdir__log__request__get_packed_size(req);
    uint8_t *data = xcalloc(1, *len_r);
    raftdir__log__request__pack(req, data);
    return data;
}

uint8_t *request_random(const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, const char *identity, size_t *len_r)
{
    arena_used = 0;
    MAKE(req, Raftdir__Log__Request, raftdir__log__request__init);
    req->n_ops = chance(150) ? rnd_in(2, 5) : 1;
    req->ops = take(req->n_ops * sizeof *req->ops);
    for (size_t i = 0; i < req->n_ops; i++)
        req->ops[i] = random_op();
    return pack(req, op_id, expires_ms, identity, len_r);
}

uint8_t *request_noop(const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, const char *identity, size_t *len_r)
{
    arena_used = 0;
    MAKE(req, Raftdir__Log__Request, raftdir__log__request__init);
    MAKE(op, Raftdir__Log__Op, raftdir__log__op__init);
    MAKE(noop, Raftdir__Log__Noop, raftdir__log__noop__init);
    op->op_case = RAFTDIR__LOG__OP__OP_NOOP;
    op->noop = noop;
    req->n_ops = 1;
    req->ops = take(sizeof *req->ops);
    req->ops[0] = op;
    uint8_t *data = pack(req, op_id, expires_ms, identity, len_r);
    if (!data)
        sim_violation("simulation", "a noop is refused");
    return data;
}

static void touch(const char *root, bool subtree, uint64_t touched[NAMES_MAX / 64])
{
    if (!root)
        return;
    size_t root_len = strlen(root);
    for (unsigned i = 0; i < request_names_n; i++)
        if (subtree ? name_is_within(request_names[i], strlen(request_names[i]), root, root_len) : !strcmp(request_names[i], root))
            touched[i / 64] |= 1ull << (i % 64);
}

void request_touched(const Raftdir__Log__Request *req, uint64_t touched_r[NAMES_MAX / 64])
{
    for (size_t i = 0; i < req->n_ops; i++) {
        const Raftdir__Log__Op *op = req->ops[i];
        switch (op->op_case) {
        case RAFTDIR__LOG__OP__OP_DELETE:
            touch(op->delete_->name, op->delete_->subtree, touched_r);
            break;
        case RAFTDIR__LOG__OP__OP_RENAME:
            touch(op->rename->from, op->rename->subtree, touched_r);
            touch(op->rename->to, op->rename->subtree, touched_r);
            break;
        case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
            touch(op->move_commit->name, op->move_commit->subtree, touched_r);
            break;
        default:
            touch(op_name(op), false, touched_r);
        }
    }
}
