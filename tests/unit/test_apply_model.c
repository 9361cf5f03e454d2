/* test_apply_model.c - a random stream of requests against a plain model in arrays: every result (code, generation, id, count), every lookup,
 * lists and visible, expiry, exactly-once; and that batching, restarts and replays from an older copy change nothing. The model says in simple code
 * what apply.c, apply_op.c and apply_tree.c promise; it shares only name matching and ACL evaluation with them, which have tests of their own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "raftdir/name.h"
#include "support_store.h"

#define ROUNDS 8
#define ENTRIES 250
#define BOXES_MAX 256

static const char *const names[] = {
    "user.a", "user.a.x", "user.a.x.y", "user.a^b", "user.a^b.x", "user.ab", "user.b", "user.b.x", "shared", "shared.t", "shared.t.u", "shared-x",
    "shared.x", "d.org!user.a", "d.org!user.a.x", "d.org!shared", "e.org!user.z", "DELETED.user.a.5F847100", "shared!user.q", "user.c",
};
#define NAMES (sizeof names / sizeof *names)
static const char *const servers[] = {"be1", "be2"};
static const char *const partitions[] = {"", "p1", "p2"};
static const char *const tokens[] = {NULL, NULL, "t1", "t2"};

struct box {
    char name[128];
    bool active;
    char server[8], partition[8];
    bool moving;
    char to_server[8], to_partition[8];
    char acl[256], uniqueid[16];
    uint64_t mtime;
    const char *token;
    uint64_t until;
    uint64_t id, generation;
};

struct model {
    struct box box[BOXES_MAX];
    size_t n;
    uint64_t change_seq, id_max, log_time_ms;
};

static bool expired(const struct model *m, const struct box *b)
{
    return !b->active && b->until && b->until <= m->log_time_ms;
}

static struct box *find(struct model *m, const char *name)
{
    for (size_t i = 0; i < m->n; i++) {
        if (strcmp(m->box[i].name, name) == 0 && !expired(m, &m->box[i]))
            return &m->box[i];
    }
    return NULL;
}

static void drop(struct model *m, struct box *b)
{
    *b = m->box[--m->n];
}

static void sweep(struct model *m)
{
    for (size_t i = m->n; i-- > 0;) {
        if (expired(m, &m->box[i]))
            drop(m, &m->box[i]);
    }
}

static bool at(const struct box *b, const Raftdir__Log__Location *l)
{
    return strcmp(b->server, l->server) == 0 && (!*l->partition || strcmp(b->partition, l->partition) == 0);
}

/* Of the server, with any_partition: wherever there. */
static bool at_server(const struct box *b, const Raftdir__Log__Location *l, bool any_partition)
{
    return (any_partition || !*b->partition) && strcmp(b->server, l->server) == 0;
}

static bool owns(const struct box *b, const char *token, bool same_store)
{
    return b->token ? token && strcmp(b->token, token) == 0 : same_store;
}

/* b as it was and as it should be: what a write does. `was` NULL: made now. */
static void done(struct model *m, const struct box *was, struct box *now, Raftdir__Log__OpResult *out)
{
    if (!was) {
        now->id = ++m->id_max;
    } else if (memcmp(was, now, sizeof *now) == 0) {
        out->generation = now->generation;
        out->mailbox_id = now->id;
        return;
    }
    now->generation = ++m->change_seq;
    out->changed++;
    out->generation = now->generation;
    out->mailbox_id = now->id;
}

static struct box *add(struct model *m, const char *name)
{
    sweep(m); /* a reservation that ran out must not be found beside the new one */
    assert_true(m->n < BOXES_MAX);
    struct box *b = &m->box[m->n++];
    memset(b, 0, sizeof *b);
    strcpy(b->name, name);
    return b;
}

static void settle(struct box *b, const char *server, const char *partition)
{
    memset(b->server, 0, sizeof b->server);
    memset(b->partition, 0, sizeof b->partition);
    strcpy(b->server, server);
    strcpy(b->partition, partition);
}

static void stop_move(struct box *b)
{
    b->moving = false;
    memset(b->to_server, 0, sizeof b->to_server);
    memset(b->to_partition, 0, sizeof b->to_partition);
}

static void set_text(char *field, size_t size, const char *text)
{
    memset(field, 0, size);
    snprintf(field, size, "%s", text ? text : "");
}

static void merge(struct box *b, const Raftdir__Log__Mailbox *m, bool exact)
{
    if (m->acl || exact)
        set_text(b->acl, sizeof b->acl, m->acl);
    if (m->uniqueid || exact)
        set_text(b->uniqueid, sizeof b->uniqueid, m->uniqueid);
    if (m->has_mtime || exact)
        b->mtime = m->has_mtime ? m->mtime : 0;
}

static const char *text_of(bool has, const ProtobufCBinaryData *token)
{
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens && has; i++) {
        if (tokens[i] && strlen(tokens[i]) == token->len && memcmp(tokens[i], token->data, token->len) == 0)
            return tokens[i];
    }
    return NULL;
}

static int m_reserve(struct model *m, const Raftdir__Log__Reserve *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, op->name);
    const Raftdir__Log__Location *l = op->location;
    const char *token = text_of(op->has_token, &op->token);
    bool any_partition = op->has_any_partition && op->any_partition;
    if (fenced)
        return RAFTDIR_EFENCED;
    if (b && b->active) {
        if (!at(b, l) && !at_server(b, l, any_partition))
            return RAFTDIR_EEXIST;
        done(m, b, b, out);
        return 0;
    }
    if (b && !owns(b, token, at(b, l) || (any_partition && at_server(b, l, true))))
        return RAFTDIR_ERESERVED;
    struct box was;
    bool made = !b;
    if (made)
        b = add(m, op->name);
    was = *b;
    if (made || !at(b, l))
        settle(b, l->server, l->partition);
    if (made || b->until)
        b->until = m->log_time_ms + (op->has_ttl_ms && op->ttl_ms ? op->ttl_ms : RESERVATION_TTL_DEFAULT_MS);
    if (token)
        b->token = token;
    done(m, made ? NULL : &was, b, out);
    return 0;
}

static int m_activate(struct model *m, const Raftdir__Log__Mailbox *x, const char *token, bool take_over, bool any_partition, bool create, bool fenced,
                      Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, x->name);
    const Raftdir__Log__Location *l = x->location;
    if (fenced)
        return RAFTDIR_EFENCED;
    if (b && b->active) {
        if (create)
            return RAFTDIR_EEXIST;
        if (!at(b, l) && !at_server(b, l, any_partition) && !take_over)
            return RAFTDIR_EOTHERSTORE;
    } else if (b && !take_over && !owns(b, token, at(b, l) || (any_partition && at_server(b, l, true)))) {
        return RAFTDIR_ERESERVED;
    }
    struct box was;
    bool made = !b;
    if (made)
        b = add(m, x->name);
    was = *b;
    merge(b, x, false);
    b->active = true;
    b->until = 0;
    b->token = NULL;
    if (made || !at(b, l)) {
        settle(b, l->server, l->partition);
        stop_move(b);
    }
    done(m, made ? NULL : &was, b, out);
    return 0;
}

static int m_deactivate(struct model *m, const Raftdir__Log__Deactivate *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, op->name);
    const char *token = text_of(op->has_token, &op->token);
    if (!b)
        return RAFTDIR_ENOTFOUND;
    if (fenced)
        return RAFTDIR_EFENCED;
    if (op->location && !at(b, op->location))
        return RAFTDIR_EOTHERSTORE;
    struct box was = *b;
    if (!b->active) {
        if (!owns(b, token, true))
            return RAFTDIR_ERESERVED;
        if (b->until) {
            drop(m, b);
            m->change_seq++;
            out->changed = 1;
            return 0;
        }
    } else {
        b->active = false;
        b->until = 0;
        b->token = token;
        stop_move(b);
    }
    done(m, &was, b, out);
    return 0;
}

static int m_update(struct model *m, const Raftdir__Log__Mailbox *x, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, x->name);
    if (!b || !b->active)
        return RAFTDIR_ENOTFOUND;
    if (fenced)
        return RAFTDIR_EFENCED;
    struct box was = *b;
    merge(b, x, false);
    done(m, &was, b, out);
    return 0;
}

static int m_set_acl(struct model *m, const Raftdir__Log__SetAcl *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, op->name);
    if (!b || !b->active)
        return RAFTDIR_ENOTFOUND;
    if (fenced)
        return RAFTDIR_EFENCED;
    struct box was = *b;
    if (op->acl) {
        set_text(b->acl, sizeof b->acl, op->acl);
    } else {
        char acl[256] = "";
        size_t len;
        assert_int_equal(acl_modify(was.acl, strlen(was.acl), op->identifier, op->rights, acl, sizeof acl - 1, &len, NULL), 0);
        acl[len] = '\0';
        set_text(b->acl, sizeof b->acl, acl);
    }
    done(m, &was, b, out);
    return 0;
}

static int m_put(struct model *m, const Raftdir__Log__Mailbox *x, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *b = find(m, x->name), was;
    if (fenced)
        return RAFTDIR_EFENCED;
    bool made = !b;
    if (made)
        b = add(m, x->name);
    was = *b;
    merge(b, x, true);
    b->active = true;
    b->until = 0;
    b->token = NULL;
    if (strcmp(b->server, x->location->server) != 0 || strcmp(b->partition, x->location->partition) != 0) {
        settle(b, x->location->server, x->location->partition);
        stop_move(b);
    }
    done(m, made ? NULL : &was, b, out);
    return 0;
}

static int cmp_boxes(const void *a, const void *b)
{
    const struct box *x = *(struct box *const *)a, *y = *(struct box *const *)b;
    uint8_t k[NAME_KEY_LEN_MAX], l[NAME_KEY_LEN_MAX];
    size_t k_len = name_to_key(x->name, strlen(x->name), k), l_len = name_to_key(y->name, strlen(y->name), l);
    return name_key_cmp(k, k_len, l, l_len);
}

/* The live ones at or below a name, in order. */
static size_t tree(struct model *m, const char *root, bool subtree, struct box **list)
{
    size_t n = 0, len = strlen(root);
    for (size_t i = 0; i < m->n; i++) {
        struct box *b = &m->box[i];
        bool in = strcmp(b->name, root) == 0 || (subtree && strncmp(b->name, root, len) == 0 && b->name[len] == '.');
        if (in && !expired(m, b))
            list[n++] = b;
    }
    qsort(list, n, sizeof *list, cmp_boxes);
    return n;
}

static int m_delete(struct model *m, const Raftdir__Log__Delete *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *list[BOXES_MAX];
    const char *token = text_of(op->has_token, &op->token);
    size_t n = tree(m, op->name, op->has_subtree && op->subtree, list);
    if (n == 0)
        return RAFTDIR_ENOTFOUND;
    for (size_t i = 0; i < n; i++) {
        if (fenced)
            return RAFTDIR_EFENCED;
        if (op->location && !at(list[i], op->location))
            return RAFTDIR_EOTHERSTORE;
        if (!list[i]->active && !owns(list[i], token, true))
            return RAFTDIR_ERESERVED;
    }
    char gone[BOXES_MAX][128];
    for (size_t i = 0; i < n; i++)
        strcpy(gone[i], list[i]->name);
    for (size_t i = 0; i < n; i++)
        drop(m, find(m, gone[i]));
    m->change_seq += n;
    out->changed = (uint32_t)n;
    return 0;
}

static int m_rename(struct model *m, const Raftdir__Log__Rename *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *list[BOXES_MAX];
    bool stays = strcmp(op->from, op->to) == 0;
    size_t n = tree(m, op->from, op->has_subtree && op->subtree, list);
    if (n == 0)
        return RAFTDIR_ENOTFOUND;
    for (size_t i = 0; i < n; i++) {
        char name[256];
        if (!list[i]->active)
            return RAFTDIR_ERESERVED;
        if (fenced)
            return RAFTDIR_EFENCED;
        if (stays)
            continue;
        snprintf(name, sizeof name, "%s%s", op->to, list[i]->name + strlen(op->from));
        assert_int_equal(name_check(name, strlen(name), NULL), 0);
        struct box *there = find(m, name);
        if (there)
            return there->active ? RAFTDIR_EEXIST : RAFTDIR_ERESERVED;
    }
    char moved[BOXES_MAX][128];
    for (size_t i = 0; i < n; i++)
        strcpy(moved[i], list[i]->name);
    sweep(m); /* the new names may be those of reservations that ran out */
    for (size_t i = 0; i < n; i++) {
        struct box *b = find(m, moved[i]), was = *b;
        Raftdir__Log__OpResult one = RAFTDIR__LOG__OP_RESULT__INIT;
        if (op->location && !at(b, op->location)) {
            settle(b, op->location->server, op->location->partition);
            stop_move(b);
        }
        if (stays) {
            done(m, &was, b, &one);
        } else {
            memset(b->name, 0, sizeof b->name);
            snprintf(b->name, sizeof b->name, "%s%s", op->to, moved[i] + strlen(op->from));
            b->generation = ++m->change_seq;
            one.changed = 1;
        }
        if (i == 0) {
            out->generation = b->generation;
            out->mailbox_id = b->id;
        }
        out->changed += one.changed;
    }
    return 0;
}

static int m_move_begin(struct model *m, const Raftdir__Log__MoveBegin *op, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *list[BOXES_MAX];
    size_t n = tree(m, op->name, op->has_subtree && op->subtree, list);
    if (n == 0)
        return RAFTDIR_ENOTFOUND;
    for (size_t i = 0; i < n; i++) {
        struct box *b = list[i];
        if (!b->active)
            return RAFTDIR_ERESERVED;
        if (fenced)
            return RAFTDIR_EFENCED;
        if (strcmp(b->server, op->to->server) == 0 && strcmp(b->partition, op->to->partition) == 0)
            return RAFTDIR_EINVAL;
        if (b->moving && (strcmp(b->to_server, op->to->server) != 0 || strcmp(b->to_partition, op->to->partition) != 0))
            return RAFTDIR_EBUSY;
    }
    for (size_t i = 0; i < n; i++) {
        struct box was = *list[i];
        list[i]->moving = true;
        set_text(list[i]->to_server, sizeof list[i]->to_server, op->to->server);
        set_text(list[i]->to_partition, sizeof list[i]->to_partition, op->to->partition);
        done(m, &was, list[i], out);
    }
    return 0;
}

static int m_move_end(struct model *m, const char *name, bool subtree, bool commit, bool fenced, Raftdir__Log__OpResult *out)
{
    struct box *list[BOXES_MAX];
    size_t n = tree(m, name, subtree, list), moving = 0;
    if (n == 0)
        return RAFTDIR_ENOTFOUND;
    for (size_t i = 0; i < n; i++)
        moving += list[i]->moving;
    if (moving == 0)
        return RAFTDIR_ECONFLICT;
    if (fenced)
        return RAFTDIR_EFENCED;
    for (size_t i = 0; i < n; i++) {
        struct box was = *list[i];
        if (!was.moving)
            continue;
        if (commit)
            settle(list[i], was.to_server, was.to_partition);
        stop_move(list[i]);
        done(m, &was, list[i], out);
    }
    return 0;
}

static int m_op(struct model *m, const Raftdir__Log__Op *op, bool fenced, Raftdir__Log__OpResult *out)
{
    for (size_t i = 0; i < op->n_preconditions; i++) {
        const Raftdir__Log__Precondition *p = op->preconditions[i];
        struct box *b = find(m, p->name);
        if (p->condition == RAFTDIR__LOG__CONDITION__ABSENT ? b != NULL : p->condition != RAFTDIR__LOG__CONDITION__ANY && (!b || !b->active))
            return RAFTDIR_ECONFLICT;
        if (p->condition == RAFTDIR__LOG__CONDITION__GENERATION && b->generation != p->generation)
            return RAFTDIR_ECONFLICT;
    }
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE: return m_reserve(m, op->reserve, fenced, out);
    case RAFTDIR__LOG__OP__OP_ACTIVATE:
        return m_activate(m, op->activate->mailbox, text_of(op->activate->has_token, &op->activate->token), op->activate->take_over,
                          op->activate->any_partition, false, fenced, out);
    case RAFTDIR__LOG__OP__OP_CREATE:
        return m_activate(m, op->create->mailbox, text_of(op->create->has_token, &op->create->token), false, false, true, fenced, out);
    case RAFTDIR__LOG__OP__OP_DEACTIVATE: return m_deactivate(m, op->deactivate, fenced, out);
    case RAFTDIR__LOG__OP__OP_UPDATE: return m_update(m, op->update->mailbox, fenced, out);
    case RAFTDIR__LOG__OP__OP_SET_ACL: return m_set_acl(m, op->set_acl, fenced, out);
    case RAFTDIR__LOG__OP__OP_DELETE: return m_delete(m, op->delete_, fenced, out);
    case RAFTDIR__LOG__OP__OP_RENAME: return m_rename(m, op->rename, fenced, out);
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN: return m_move_begin(m, op->move_begin, fenced, out);
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT: return m_move_end(m, op->move_commit->name, op->move_commit->subtree, true, fenced, out);
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT: return m_move_end(m, op->move_abort->name, op->move_abort->subtree, false, fenced, out);
    case RAFTDIR__LOG__OP__OP_PUT: return m_put(m, op->put->mailbox, fenced, out);
    default: return 0;
    }
}

/* --- random requests ------------------------------------------------------------------------------------------------ */

static const char *pick(uint64_t *r, const char *const *list, size_t n)
{
    return list[support_below(r, (unsigned)n)];
}

static char *random_acl(struct support_arena *a, uint64_t *r)
{
    static const char *const ids[] = {"a", "b", "a^b", "a.b", "a@d.org", "group:g1", "group:g2", "anyone", "anonymous", "-a", "-group:g1", "-anyone", "-a.b"};
    static const char *const rights[] = {"l", "lr", "lrs", "p", "", "lrswipkxtecdan"};
    char acl[256] = "";
    for (unsigned n = support_below(r, 4); n > 0; n--) {
        strcat(acl, pick(r, ids, sizeof ids / sizeof *ids));
        strcat(acl, "\t");
        strcat(acl, pick(r, rights, sizeof rights / sizeof *rights));
        strcat(acl, "\t");
    }
    return support_text(a, acl);
}

static Raftdir__Log__Location *random_location(struct support_arena *a, uint64_t *r)
{
    return support_location(a, pick(r, servers, 2), pick(r, partitions, 3));
}

static Raftdir__Log__Mailbox *random_mailbox(struct support_arena *a, uint64_t *r, bool located)
{
    Raftdir__Log__Mailbox *m = support_mailbox(a, pick(r, names, NAMES), NULL, NULL, support_below(r, 4) ? random_acl(a, r) : NULL);
    static const char *const ids[] = {"u1", "u2", "u3", ""};
    if (located)
        m->location = random_location(a, r);
    if (support_below(r, 2))
        m->uniqueid = support_text(a, pick(r, ids, 4));
    if (support_below(r, 3) == 0) {
        m->has_mtime = true;
        m->mtime = support_below(r, 3);
    }
    return m;
}

static void random_token(struct support_arena *a, uint64_t *r, protobuf_c_boolean *has, ProtobufCBinaryData *data)
{
    const char *token = pick(r, tokens, 4);
    *has = token != NULL;
    if (token) {
        data->data = (uint8_t *)support_text(a, token);
        data->len = strlen(token);
    }
}

static Raftdir__Log__Op *random_op(struct support_arena *a, uint64_t *r)
{
    static const Raftdir__Log__Op__OpCase kinds[] = {
        RAFTDIR__LOG__OP__OP_RESERVE, RAFTDIR__LOG__OP__OP_RESERVE, RAFTDIR__LOG__OP__OP_ACTIVATE, RAFTDIR__LOG__OP__OP_ACTIVATE,
        RAFTDIR__LOG__OP__OP_ACTIVATE, RAFTDIR__LOG__OP__OP_CREATE, RAFTDIR__LOG__OP__OP_CREATE, RAFTDIR__LOG__OP__OP_CREATE,
        RAFTDIR__LOG__OP__OP_DEACTIVATE, RAFTDIR__LOG__OP__OP_UPDATE, RAFTDIR__LOG__OP__OP_SET_ACL, RAFTDIR__LOG__OP__OP_SET_ACL,
        RAFTDIR__LOG__OP__OP_DELETE, RAFTDIR__LOG__OP__OP_DELETE, RAFTDIR__LOG__OP__OP_RENAME, RAFTDIR__LOG__OP__OP_RENAME,
        RAFTDIR__LOG__OP__OP_RENAME, RAFTDIR__LOG__OP__OP_MOVE_BEGIN, RAFTDIR__LOG__OP__OP_MOVE_BEGIN, RAFTDIR__LOG__OP__OP_MOVE_COMMIT,
        RAFTDIR__LOG__OP__OP_MOVE_ABORT, RAFTDIR__LOG__OP__OP_PUT, RAFTDIR__LOG__OP__OP_PUT, RAFTDIR__LOG__OP__OP_PUT, RAFTDIR__LOG__OP__OP_NOOP,
    };
    Raftdir__Log__Op *op = support_op(a, kinds[support_below(r, sizeof kinds / sizeof *kinds)]);
    char *name = support_text(a, pick(r, names, NAMES));
    bool subtree = support_below(r, 2);
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE:
        op->reserve->name = name;
        op->reserve->location = random_location(a, r);
        random_token(a, r, &op->reserve->has_token, &op->reserve->token);
        if (support_below(r, 2)) {
            op->reserve->has_ttl_ms = true;
            op->reserve->ttl_ms = support_below(r, 3) * 2000;
        }
        op->reserve->has_any_partition = op->reserve->any_partition = support_below(r, 3) == 0;
        break;
    case RAFTDIR__LOG__OP__OP_ACTIVATE:
        op->activate->mailbox = random_mailbox(a, r, true);
        random_token(a, r, &op->activate->has_token, &op->activate->token);
        op->activate->has_take_over = op->activate->take_over = support_below(r, 5) == 0;
        op->activate->has_any_partition = op->activate->any_partition = support_below(r, 3) == 0;
        break;
    case RAFTDIR__LOG__OP__OP_CREATE:
        op->create->mailbox = random_mailbox(a, r, true);
        random_token(a, r, &op->create->has_token, &op->create->token);
        break;
    case RAFTDIR__LOG__OP__OP_DEACTIVATE:
        op->deactivate->name = name;
        if (support_below(r, 3) == 0)
            op->deactivate->location = random_location(a, r);
        random_token(a, r, &op->deactivate->has_token, &op->deactivate->token);
        break;
    case RAFTDIR__LOG__OP__OP_UPDATE: op->update->mailbox = random_mailbox(a, r, false); break;
    case RAFTDIR__LOG__OP__OP_SET_ACL:
        op->set_acl->name = name;
        if (support_below(r, 2)) {
            op->set_acl->acl = random_acl(a, r);
        } else {
            static const char *const rights[] = {"", "+lr", "-r", "lrs"};
            static const char *const ids[] = {"a", "group:g1", "-a", "anyone"};
            op->set_acl->identifier = support_text(a, pick(r, ids, 4));
            op->set_acl->rights = support_text(a, pick(r, rights, 4));
        }
        break;
    case RAFTDIR__LOG__OP__OP_DELETE:
        op->delete_->name = name;
        op->delete_->has_subtree = op->delete_->subtree = subtree;
        if (support_below(r, 4) == 0)
            op->delete_->location = random_location(a, r);
        random_token(a, r, &op->delete_->has_token, &op->delete_->token);
        break;
    case RAFTDIR__LOG__OP__OP_RENAME:
        op->rename->from = name;
        op->rename->to = support_text(a, pick(r, names, NAMES));
        op->rename->has_subtree = op->rename->subtree = subtree;
        if (support_below(r, 3) == 0)
            op->rename->location = random_location(a, r);
        break;
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN:
        op->move_begin->name = name;
        op->move_begin->to = random_location(a, r);
        op->move_begin->has_subtree = op->move_begin->subtree = subtree;
        break;
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
        op->move_commit->name = name;
        op->move_commit->has_subtree = op->move_commit->subtree = subtree;
        break;
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT:
        op->move_abort->name = name;
        op->move_abort->has_subtree = op->move_abort->subtree = subtree;
        break;
    case RAFTDIR__LOG__OP__OP_PUT: op->put->mailbox = random_mailbox(a, r, true); break;
    default: break;
    }
    if (support_below(r, 6) == 0) {
        Raftdir__Log__Precondition *p = support_alloc(a, sizeof *p);
        raftdir__log__precondition__init(p);
        p->condition = (Raftdir__Log__Condition)support_below(r, 4);
        p->name = support_text(a, pick(r, names, NAMES));
        p->has_generation = true;
        p->generation = support_below(r, 50);
        op->n_preconditions = 1;
        op->preconditions = support_alloc(a, sizeof *op->preconditions);
        op->preconditions[0] = p;
    }
    return op;
}

/* What a node refuses before it looks at the directory. */
static bool ill_formed(const Raftdir__Log__Op *op)
{
    if (op->op_case != RAFTDIR__LOG__OP__OP_RENAME)
        return false;
    const Raftdir__Log__Rename *x = op->rename;
    size_t len = strlen(x->from);
    return strcmp(x->from, x->to) == 0 ? !x->location : x->subtree && strncmp(x->to, x->from, len) == 0 && x->to[len] == '.';
}

/* A subtree's new names: some pairs give a name that no mailbox may have (DELETED below a user and the like never do here). */
static struct model scratch;

static void expect(struct model *m, const Raftdir__Log__Request *req, const Raftdir__Log__Result *got)
{
    Raftdir__Log__OpResult out[8];
    bool fenced = req->has_store_epoch && req->store_epoch != 1;
    int code = 0;
    size_t i;
    for (i = 0; i < req->n_ops && !code; i++)
        code = ill_formed(req->ops[i]) ? RAFTDIR_EINVAL : 0;
    bool malformed = code != 0;
    scratch = *m;
    for (i = 0; i < req->n_ops && !code; i++) {
        raftdir__log__op_result__init(&out[i]);
        code = m_op(m, req->ops[i], fenced, &out[i]);
    }
    if (got->code != code)
        fail_msg("operation %d of kind %d: code %d (%s) instead of %d", (int)i - 1, (int)req->ops[i ? i - 1 : 0]->op_case, got->code,
                 got->message ? got->message : "", code);
    if (code) {
        *m = scratch;
        assert_true(got->has_failed_op && got->message && *got->message);
        if (!malformed)
            assert_int_equal(got->failed_op, i - 1);
        return;
    }
    assert_int_equal(got->n_ops, req->n_ops);
    for (i = 0; i < req->n_ops; i++) {
        if (got->ops[i]->changed != out[i].changed || (got->ops[i]->has_generation && got->ops[i]->generation != out[i].generation) ||
            (got->ops[i]->has_mailbox_id && got->ops[i]->mailbox_id != out[i].mailbox_id))
            fail_msg("operation %zu of kind %d: changed %u, generation %llu, id %llu instead of %u, %llu, %llu", i, (int)req->ops[i]->op_case,
                     got->ops[i]->changed, (unsigned long long)got->ops[i]->generation, (unsigned long long)got->ops[i]->mailbox_id,
                     out[i].changed, (unsigned long long)out[i].generation, (unsigned long long)out[i].mailbox_id);
    }
}

/* --- reading ---------------------------------------------------------------------------------------------------------- */

static bool text_is(struct store_str s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.s, text, s.len) == 0;
}

static void check_box(const struct box *b, const struct store_mailbox *m)
{
    assert_string_equal(m->name, b->name);
    assert_int_equal(m->state, b->active ? STORE_ACTIVE : STORE_RESERVED);
    assert_true(text_is(m->server, b->server) && text_is(m->partition, b->partition));
    assert_true(text_is(m->acl, b->acl) && text_is(m->uniqueid, b->uniqueid));
    assert_int_equal(m->id, b->id);
    assert_int_equal(m->generation, b->generation);
    assert_int_equal(m->mtime, b->mtime);
    assert_int_equal(m->store_epoch, 1);
    assert_int_equal(m->reserved_until_ms, b->until);
    assert_int_equal(b->moving, m->moving_server.s != NULL);
    if (b->moving)
        assert_true(text_is(m->moving_server, b->to_server) && text_is(m->moving_partition, b->to_partition));
}

static void check_lookups(struct model *m, struct store_txn *txn)
{
    struct store_mailbox got;
    struct err err = {0};
    for (size_t i = 0; i < NAMES; i++) {
        struct box *b = find(m, names[i]);
        int rc = store_lookup(txn, names[i], strlen(names[i]), &got, &err);
        if (rc != (b ? 0 : RAFTDIR_ENOTFOUND))
            fail_msg("lookup %s: %d (%s)", names[i], rc, err.text);
        if (b)
            check_box(b, &got);
    }
    static const char *const ids[] = {"u1", "u2", "u3"};
    for (int i = 0; i < 3; i++) {
        struct box *want = NULL;
        for (size_t k = 0; k < m->n; k++) {
            struct box *b = &m->box[k];
            if (expired(m, b) || strcmp(b->uniqueid, ids[i]) != 0)
                continue;
            if (!want || (b->active && !want->active) || (b->active == want->active && cmp_boxes(&b, &want) < 0))
                want = b;
        }
        int rc = store_lookup_uniqueid(txn, ids[i], 2, &got, &err);
        assert_int_equal(rc, want ? 0 : RAFTDIR_ENOTFOUND);
        if (want)
            check_box(want, &got);
    }
}

static const char *const patterns[] = {NULL, "*", "%", "user.%", "user.a*", "user.a.%", "user.a^b*", "shared.%.u", "%.%", "d.org!%", "d.org!user.%",
                                       "*.x", "shared*", "s%", "user.%.x", "user.a^%", "%!user.%", "*!*", "user.%.x.%", "user.a", "d.o*", "share%.t"};
#define PATTERNS (sizeof patterns / sizeof *patterns)

static void check_list(struct model *m, struct store_txn *txn, uint64_t *r)
{
    static const char *const prefixes[] = {NULL, NULL, "user.", "user.a", "d.", "shared", "user.a^", "x"};
    struct store_filter f = {.prefix = pick(r, prefixes, 8), .pattern = pick(r, patterns, PATTERNS), .reserved = support_below(r, 2)};
    if (support_below(r, 2))
        f.server = support_below(r, 5) ? pick(r, servers, 2) : "nowhere";
    if (support_below(r, 3) == 0)
        f.partition = pick(r, partitions, 3);
    const char *after = support_below(r, 3) ? NULL : pick(r, names, NAMES);
    struct box *list[BOXES_MAX], mark;
    const struct box *mark_p = &mark;
    size_t n = 0;
    if (after)
        strcpy(mark.name, after);
    for (size_t i = 0; i < m->n; i++) {
        struct box *b = &m->box[i];
        if (!expired(m, b) && (b->active || f.reserved) && (!f.prefix || strncmp(b->name, f.prefix, strlen(f.prefix)) == 0) &&
            (!f.pattern || name_match(f.pattern, b->name, strlen(b->name))) && (!f.server || strcmp(b->server, f.server) == 0) &&
            (!f.partition || strcmp(b->partition, f.partition) == 0) && (!after || cmp_boxes(&b, &mark_p) > 0))
            list[n++] = b;
    }
    qsort(list, n, sizeof *list, cmp_boxes);
    struct store_scan *scan;
    struct store_mailbox got;
    struct err err = {0};
    assert_int_equal(store_list_begin(&f, after, &scan, &err), 0);
    for (size_t i = 0; i <= n; i++) {
        int rc = store_scan_next(scan, txn, &got, NULL, &err);
        if (rc != (i < n ? 0 : RAFTDIR_ENOTFOUND))
            fail_msg("list prefix %s pattern %s server %s after %s: %d (%s) at %s", f.prefix, f.pattern, f.server, after, rc, rc ? err.text : got.name,
                     i < n ? list[i]->name : "the end");
        if (i < n)
            check_box(list[i], &got);
        if (support_below(r, 3) == 0)
            store_scan_release(scan);
    }
    store_scan_end(&scan);
}

static bool in_own_domain(const char *name, const char *user)
{
    size_t len = name_domain_len(name, strlen(name));
    const char *d = strchr(user, '@');
    return len ? d && strlen(d + 1) == len - 1 && strncmp(d + 1, name, len - 1) == 0 : !d;
}

/* A positive entry with rights, of the user or a group. */
static bool named(const char *acl, const struct acl_subject *who)
{
    struct acl_entry e;
    size_t pos = 0;
    while (acl_next(acl, strlen(acl), &pos, &e, NULL) == 1) {
        char one[64];
        snprintf(one, sizeof one, "%.*s\tl\t", (int)e.id_len, e.id);
        if (!e.negative && e.rights && strncmp(one, "anyone\t", 7) != 0 && acl_eval(one, strlen(one), who))
            return true;
    }
    return false;
}

static void check_visible(struct model *m, struct store_txn *txn, uint64_t *r)
{
    static const char *const users[] = {"a", "b", "a.b", "a^b", "a@d.org", "q@shared", "anonymous", "nobody", "z@e.org", "anyone"};
    static const char *const groups[] = {"g1", "group:g2", "g3"};
    const char *mine[3];
    struct acl_subject who = {.user = pick(r, users, 10), .groups = mine, .groups_n = support_below(r, 4)};
    for (size_t i = 0; i < who.groups_n; i++)
        mine[i] = pick(r, groups, 3);
    acl_rights rights = support_below(r, 2) ? acl_right('l') : acl_right('p') | acl_right('s');
    const char *pattern = pick(r, patterns + 1, PATTERNS - 1), *after = support_below(r, 3) ? NULL : pick(r, names, NAMES);
    struct box *list[BOXES_MAX], mark;
    const struct box *mark_p = &mark;
    size_t n = 0;
    if (after)
        strcpy(mark.name, after);
    for (size_t i = 0; i < m->n; i++) {
        struct box *b = &m->box[i];
        if (b->active && name_match(pattern, b->name, strlen(b->name)) && (!after || cmp_boxes(&b, &mark_p) > 0) &&
            (acl_eval(b->acl, strlen(b->acl), &who) & rights) && (in_own_domain(b->name, who.user) || named(b->acl, &who)))
            list[n++] = b;
    }
    qsort(list, n, sizeof *list, cmp_boxes);
    struct store_scan *scan;
    struct store_mailbox got;
    struct err err = {0};
    acl_rights have;
    assert_int_equal(store_visible_begin(&who, rights, pattern, after, &scan, &err), 0);
    for (size_t i = 0; i <= n; i++) {
        int rc = store_scan_next(scan, txn, &got, &have, &err);
        if (rc != (i < n ? 0 : RAFTDIR_ENOTFOUND))
            fail_msg("visible to %s, pattern %s: %d (%s) at %s", who.user, pattern, rc, rc ? err.text : got.name, i < n ? list[i]->name : "the end");
        if (i < n) {
            check_box(list[i], &got);
            assert_int_equal(have, acl_eval(list[i]->acl, strlen(list[i]->acl), &who));
        }
        if (support_below(r, 3) == 0)
            store_scan_release(scan);
    }
    store_scan_end(&scan);
}

static void check_reads(struct model *m, struct support_store *s, uint64_t *r)
{
    struct store_txn *txn;
    struct store_meta meta;
    struct err err = {0};
    assert_int_equal(store_read_begin(s->store, &txn, &err), 0);
    assert_int_equal(store_meta_get(txn, &meta, &err), 0);
    size_t active = 0;
    for (size_t i = 0; i < m->n; i++)
        active += m->box[i].active;
    assert_int_equal(meta.mailboxes, active);
    assert_int_equal(meta.change_seq, m->change_seq);
    assert_int_equal(meta.log_time_ms, m->log_time_ms);
    check_lookups(m, txn);
    for (int i = 0; i < 3; i++) {
        check_list(m, txn, r);
        check_visible(m, txn, r);
    }
    store_read_end(&txn);
}

/* Applies entries [from, to) in batches of random size. */
static void feed(struct support_store *s, struct entry **entries, size_t from, size_t to, unsigned batch_max, uint64_t *r)
{
    while (from < to) {
        unsigned n = 1 + support_below(r, batch_max);
        if (n > to - from)
            n = (unsigned)(to - from);
        struct apply_batch *b = apply_batch_create(entries + from, n);
        assert_non_null(b);
        apply_batch_run(s->store, b);
        if (b->status)
            fail_msg("apply: %s", b->err.text);
        apply_batch_destroy(&b);
        from += n;
    }
}

static void round_run(uint64_t *r)
{
    static struct model m;
    static Raftdir__Log__Request *old_req;
    struct support_store s, other, copy = {0};
    struct support_arena a = {0};
    struct entry *entries[ENTRIES];
    size_t replays = 0, refused = 0, done_n = 0, expired_n = 0;
    memset(&m, 0, sizeof m);
    support_store_open(&s, 0);
    support_store_open(&other, 0);
    old_req = NULL;
    uint64_t old_index = 0, old_time = 0;
    for (size_t i = 0; i < ENTRIES; i++) {
        Raftdir__Log__Request *reqs[4];
        size_t n = 1 + support_below(r, 4);
        bool back = support_below(r, 10) == 0;
        s.log_time_ms += support_below(r, 5) == 0 ? support_below(r, 4000) : 10;
        if (s.log_time_ms > m.log_time_ms)
            m.log_time_ms = s.log_time_ms;
        for (size_t k = 0; k < n; k++) {
            Raftdir__Log__Op *ops[6];
            size_t ops_n = support_below(r, 3) ? 1 : 1 + support_below(r, 6);
            for (size_t o = 0; o < ops_n; o++)
                ops[o] = random_op(&a, r);
            reqs[k] = support_request(&a, &s, ops, ops_n);
            if (support_below(r, 20) == 0) {
                reqs[k]->has_store_epoch = true;
                reqs[k]->store_epoch = 1 + support_below(r, 2);
            }
        }
        bool retry = old_req && support_below(r, 8) == 0;
        if (retry)
            reqs[n - 1] = old_req;
        uint64_t now = s.log_time_ms;
        if (back)
            s.log_time_ms -= 500; /* a leader whose clock lags: time stands still */
        entries[i] = support_entry(&s, i + 1, reqs, n);
        s.log_time_ms = now;
        if (back && m.log_time_ms == now) { /* unless it had moved on by this entry only */
            struct store_txn *txn;
            struct store_meta meta;
            assert_int_equal(store_read_begin(s.store, &txn, NULL), 0);
            assert_int_equal(store_meta_get(txn, &meta, NULL), 0);
            m.log_time_ms = meta.log_time_ms > now - 500 ? meta.log_time_ms : now - 500;
            store_read_end(&txn);
        }
        struct apply_batch *b = apply_batch_create(&entries[i], 1);
        assert_non_null(b);
        apply_batch_run(s.store, b);
        if (b->status)
            fail_msg("apply: %s", b->err.text);
        assert_int_equal(b->results_n, n);
        s.index++;
        sweep(&m);
        for (size_t k = 0; k < n; k++) {
            Raftdir__Log__Result *got = support_result(&a, &b->results[k]);
            assert_memory_equal(b->results[k].op_id, reqs[k]->op_id.data, OP_ID_LEN);
            if (retry && k == n - 1) {
                if (old_time <= m.log_time_ms) {
                    assert_int_equal(got->code, RAFTDIR_EEXPIRED);
                    expired_n++;
                } else {
                    assert_true(b->results[k].replayed);
                    assert_int_equal(got->index, old_index);
                    replays++;
                }
                continue;
            }
            assert_false(b->results[k].replayed);
            assert_int_equal(got->index, i + 1);
            expect(&m, reqs[k], got);
            *(got->code ? &refused : &done_n) += 1;
        }
        if (!old_req || (!retry && support_below(r, 30) == 0)) {
            old_req = reqs[0];
            old_index = i + 1;
            old_time = old_req->expires_ms;
        }
        apply_batch_destroy(&b);
        check_reads(&m, &s, r);
        if (i % 50 == 49)
            assert_int_equal(support_verify(&s, false), 0);
        if (i == ENTRIES / 2)
            support_store_copy(&s, &copy);
    }
    /* Another batching, with restarts; and the older copy, to which everything comes once more. */
    uint8_t d1[16], d2[16];
    support_digest(&s, d1);
    feed(&other, entries, 0, ENTRIES / 3, 20, r);
    support_store_reopen(&other, 0);
    feed(&other, entries, ENTRIES / 4, ENTRIES, 90, r);
    support_digest(&other, d2);
    assert_memory_equal(d1, d2, 16);
    assert_int_equal(support_verify(&other, false), 0);
    support_store_reopen(&copy, 0);
    feed(&copy, entries, 0, ENTRIES, 200, r);
    support_digest(&copy, d2);
    assert_memory_equal(d1, d2, 16);
    check_reads(&m, &copy, r);
    print_message("%zu done, %zu refused, %zu replays, %zu expired ids, %zu mailboxes\n", done_n, refused, replays, expired_n, m.n);
    assert_true(done_n > ENTRIES / 4 && refused > ENTRIES / 4 && replays > 0);
    for (size_t i = 0; i < ENTRIES; i++)
        entry_unref(entries[i]);
    support_free(&a);
    support_store_close(&s);
    support_store_close(&other);
    support_store_close(&copy);
}

static void test_model(void **state)
{
    (void)state;
    uint64_t seed = support_seed();
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t r = seed + (uint64_t)i;
        round_run(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};
    return cmocka_run_group_tests_name("apply_model", tests, NULL, NULL);
}
