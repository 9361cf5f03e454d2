/* lib_read.c - lookups, listings, rights, barrier: from this host's copy of the state where that may answer (lib_local.h), else by socket.
 *
 * A listing holds the frames that came and weren't given out yet; credit goes back to the node as rows are taken. When its node is lost, the request is
 * sent to another one with `after` set to the last row that came, at session level and at least the index of the first answer. */
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"
#include "lib_local.h"

static struct call *read_call(struct raftdir *d, unsigned field, const ProtobufCMessage *body)
{
    struct call *c = call_create(d, CALL_HEDGE, field);
    if (!c || call_body(c, body) < 0) {
        call_destroy(&c);
        err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    return c;
}

struct call *read_lookup(struct raftdir *d, Raftdir__Client__Lookup__ByCase by, const char *key)
{
    if (!key || !*key) {
        err_set(&d->err, RAFTDIR_EINVAL, "lookup of an empty name");
        return NULL;
    }
    Raftdir__Client__Lookup l = RAFTDIR__CLIENT__LOOKUP__INIT;
    l.by_case = by;
    l.name = (char *)key; /* the union's members are all strings */
    return read_call(d, RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP, &l.base);
}

struct call *read_my_rights(struct raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n)
{
    if (!name || !*name || !user || !*user) {
        err_set(&d->err, RAFTDIR_EINVAL, "a mailbox's name and a user are needed");
        return NULL;
    }
    if (groups_n > USER_GROUPS_MAX) {
        err_set(&d->err, RAFTDIR_ETOOBIG, "%zu groups; at most %d", groups_n, USER_GROUPS_MAX);
        return NULL;
    }
    Raftdir__Client__MyRights r = RAFTDIR__CLIENT__MY_RIGHTS__INIT;
    r.name = (char *)name;
    r.user = (char *)user;
    r.groups = (char **)groups;
    r.n_groups = groups_n;
    return read_call(d, RAFTDIR__CLIENT__TO_NODE__BODY_MY_RIGHTS, &r.base);
}

/* Asks a node for one mailbox. */
static int one_row(struct raftdir *d, struct call *c, const struct raftdir_mailbox **m_r)
{
    if (!c)
        return d->err.code;
    int rc = call_run(d, &c);
    if (rc < 0) {
        local_explain(d, d->level);
        rc = d->err.code;
    }
    if (rc == 0 && (rc = mailbox_from_answer(d->kept, d->answer_ep, &d->mailbox, &d->err)) == 0)
        *m_r = &d->mailbox;
    return rc;
}

static int lookup(struct raftdir *d, enum local_kind kind, Raftdir__Client__Lookup__ByCase by, const char *key, const struct raftdir_mailbox **m_r)
{
    *m_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    struct local_question q = {.kind = kind, .key = key};
    if (key && *key && (rc = local_ask(d, &q, m_r)) != LOCAL_PASS)
        return rc;
    return one_row(d, read_lookup(d, by, key), m_r);
}

int raftdir_lookup(raftdir *d, const char *name, const struct raftdir_mailbox **m_r)
{
    return lookup(d, LOCAL_LOOKUP_NAME, RAFTDIR__CLIENT__LOOKUP__BY_NAME, name, m_r);
}

int raftdir_lookup_uniqueid(raftdir *d, const char *uniqueid, const struct raftdir_mailbox **m_r)
{
    return lookup(d, LOCAL_LOOKUP_UNIQUEID, RAFTDIR__CLIENT__LOOKUP__BY_UNIQUEID, uniqueid, m_r);
}

int raftdir_lookup_user(raftdir *d, const char *user, const struct raftdir_mailbox **m_r)
{
    return lookup(d, LOCAL_LOOKUP_USER, RAFTDIR__CLIENT__LOOKUP__BY_USER, user, m_r);
}

int raftdir_my_rights(raftdir *d, const char *name, const char *user, const char *const *groups, size_t groups_n,
                      const struct raftdir_mailbox **m_r)
{
    *m_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    struct local_question q = {.kind = LOCAL_RIGHTS, .key = name, .user = user, .groups = groups, .groups_n = groups_n};
    if (name && *name && user && *user && (rc = local_ask(d, &q, m_r)) != LOCAL_PASS)
        return rc;
    return one_row(d, read_my_rights(d, name, user, groups, groups_n), m_r);
}

int raftdir_barrier(raftdir *d, uint64_t index)
{
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    Raftdir__Client__Barrier b = RAFTDIR__CLIENT__BARRIER__INIT;
    struct call *c = call_create(d, CALL_HEDGE, RAFTDIR__CLIENT__TO_NODE__BODY_BARRIER);
    if (!c || call_body(c, &b.base) < 0) {
        call_destroy(&c);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    if (c->level == RAFTDIR_LOCAL)
        c->level = RAFTDIR_SESSION;
    c->min_index = index;
    c->min_incarnation = d->incarnation;
    return call_run(d, &c);
}

/* --- Listings ------------------------------------------------------------------------------------------------------------ */

struct frame {
    struct frame *next;
    Raftdir__Client__FromNode *answer;
};

struct raftdir_list {
    struct raftdir *d;
    struct local_list *local;    /* while rows come from this host's copy; then `call` is NULL */
    struct call *call;
    bool visible;
    struct frame *first, **last; /* frames that came */
    size_t row;                  /* the next row of the first one */
    struct frame *given;         /* the frame of the row given last, when it is used up */
    uint32_t waiting_rows;       /* rows in the frames that came */
    uint32_t taken;              /* rows taken since credit was last given */
    char *after;                 /* name of the last row that came; NULL: none yet */
    struct raftdir_position position; /* of the first answer; incarnation 0: none yet */
    uint64_t rows_n, limit;      /* came so far; 0: no limit */
    int level;
    uint64_t touched, skips;     /* of the attempts before this one; of this one */
    uint64_t touched_now, skips_now;
    struct raftdir_mailbox mailbox;
    Raftdir__Client__List list;  /* the request as it was made; the strings are ours */
    Raftdir__Client__Visible who;
};

static void frame_free(struct frame *f)
{
    if (!f)
        return;
    raftdir__client__from_node__free_unpacked(f->answer, NULL);
    free(f);
}

static int list_prepare(struct call *c)
{
    struct raftdir_list *l = c->data;
    uint64_t left = l->limit ? l->limit - l->rows_n : 0;
    uint32_t credit = l->waiting_rows < LIST_WINDOW ? LIST_WINDOW - l->waiting_rows : 1;
    l->taken = 0;
    l->touched += l->touched_now;
    l->skips += l->skips_now;
    l->touched_now = l->skips_now = 0;
    if (l->visible) {
        Raftdir__Client__Visible who = l->who;
        if (l->after)
            who.after = l->after;
        who.has_limit = left != 0;
        who.limit = left;
        who.has_credit = 1;
        who.credit = credit;
        return call_body(c, &who.base);
    }
    Raftdir__Client__List list = l->list;
    if (l->after)
        list.after = l->after;
    list.has_limit = left != 0;
    list.limit = left;
    list.has_credit = 1;
    list.credit = credit;
    return call_body(c, &list.base);
}

static void fail_stream(struct call *c, int code, const char *text)
{
    c->attempts_n = 0;
    c->done = true;
    err_set(&c->result, code, "%s", text);
}

static void list_on_frame(struct call *c, Raftdir__Client__FromNode *m)
{
    struct raftdir_list *l = c->data;
    struct frame *f = m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS ? calloc(1, sizeof *f) : NULL;
    if (m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS) {
        l->touched_now = m->rows->touched;
        l->skips_now = m->rows->skips;
        if (!l->position.incarnation && m->has_incarnation && m->has_index)
            l->position = (struct raftdir_position){m->incarnation, m->index, RAFTDIR_DONE_ALL};
        /* From now on no older state will do: at session level that is what this handle has seen, this answer included. */
        if (c->level == RAFTDIR_LOCAL)
            c->level = RAFTDIR_SESSION;
    }
    char *after = NULL;
    size_t n = f ? m->rows->n_rows : 0;
    if (n) {
        after = strdup(m->rows->rows[n - 1]->mailbox->name);
        if (!after) {
            free(f);
            f = NULL;
        }
    }
    if (n && f) {
        f->answer = m;
        *l->last = f;
        l->last = &f->next;
        l->waiting_rows += (uint32_t)n;
        l->rows_n += n;
        free(l->after);
        l->after = after;
        return;
    }
    bool no_memory = m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS && m->rows->n_rows;
    bool wrong = m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS && m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY__NOT_SET;
    free(f);
    raftdir__client__from_node__free_unpacked(m, NULL);
    if (no_memory)
        fail_stream(c, RAFTDIR_ENOMEM, "out of memory");
    else if (wrong)
        fail_stream(c, RAFTDIR_EPROTO, "a listing was answered with something else");
}

/* By socket: from the start, or behind the last row. */
static int list_ask(struct raftdir_list *l)
{
    struct raftdir *d = l->d;
    if (!(l->call = call_create(d, CALL_STREAM | CALL_SWITCH, l->visible ? RAFTDIR__CLIENT__TO_NODE__BODY_VISIBLE : RAFTDIR__CLIENT__TO_NODE__BODY_LIST)))
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    l->call->level = l->level;
    l->call->data = l;
    l->call->prepare = list_prepare;
    l->call->on_frame = list_on_frame;
    call_start(l->call);
    engine_flush(d);
    l->call->waiting_since = 0; /* nobody waits before raftdir_list_next */
    return 0;
}

/* A row from here: as local_list_next, but that LOCAL_PASS is gone: then l->call takes over. */
static int list_next_local(struct raftdir_list *l, const struct raftdir_mailbox **m_r)
{
    struct raftdir *d = l->d;
    int rc = local_list_next(l->local, lib_now_ms() + d->timeout_ms, m_r);
    if (rc == 1)
        l->rows_n++;
    if (rc != LOCAL_LIST_PASS)
        return rc;
    const char *last = local_list_last(l->local);
    if (last && !(l->after = strdup(last)))
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    if (local_list_began(l->local) && l->level == RAFTDIR_LOCAL)
        l->level = RAFTDIR_SESSION; /* as in list_on_frame */
    local_list_counters(l->local, &l->touched, &l->skips);
    local_list_close(&l->local);
    rc = list_ask(l);
    return rc < 0 ? rc : LOCAL_LIST_PASS;
}

/* The strings of the two requests, for copying and freeing. */
static char **list_strings(struct raftdir_list *l, size_t i)
{
    char **all[] = {&l->list.prefix, &l->list.pattern, &l->list.server, &l->list.partition, &l->list.after,
                    &l->who.user,    &l->who.rights,   &l->who.pattern, &l->who.after};
    return i < sizeof all / sizeof *all ? all[i] : NULL;
}

static int list_start(struct raftdir *d, struct raftdir_list *l, raftdir_list **l_r)
{
    l->d = d;
    l->last = &l->first;
    char **s, **groups = l->who.groups; /* the caller's, until they are copied */
    size_t groups_n = l->who.n_groups;
    l->who.groups = NULL;
    l->who.n_groups = 0;
    for (size_t i = 0; (s = list_strings(l, i)); i++)
        if (*s && !(*s = strdup(*s))) {
            while ((s = list_strings(l, ++i)))
                *s = NULL; /* not ours yet */
            goto no_memory;
        }
    if (groups_n && !(l->who.groups = calloc(groups_n, sizeof *l->who.groups)))
        goto no_memory;
    for (; l->who.n_groups < groups_n; l->who.n_groups++)
        if (!(l->who.groups[l->who.n_groups] = strdup(groups[l->who.n_groups])))
            goto no_memory;
    l->level = d->level;
    int rc = local_list_open(d, &l->list, l->visible ? &l->who : NULL, l->limit, &l->local);
    if (rc == 0) {
        l->position = (struct raftdir_position){.done = RAFTDIR_DONE_ALL};
        local_list_state(l->local, &l->position.incarnation, &l->position.index); /* of the first chunk, which has just been read */
        *l_r = l;
        return 0;
    }
    if (rc != LOCAL_PASS || (rc = list_ask(l)) < 0) {
        raftdir_list_close(&l);
        return rc;
    }
    *l_r = l;
    return 0;
no_memory:
    raftdir_list_close(&l);
    return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
}

int raftdir_list_open(raftdir *d, const struct raftdir_filter *f, raftdir_list **l_r)
{
    struct raftdir_filter own;
    *l_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    raftdir_filter_init(&own);
    if (f && !lib_sized(&own, sizeof own, f, f->size))
        return err_set(&d->err, RAFTDIR_EINVAL, "a filter of another version: use raftdir_filter_init");
    f = &own;
    struct raftdir_list *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    raftdir__client__list__init(&l->list);
    raftdir__client__visible__init(&l->who);
    l->list.prefix = (char *)f->prefix;
    l->list.pattern = (char *)f->pattern;
    l->list.server = (char *)f->server;
    l->list.partition = (char *)f->partition;
    l->list.after = (char *)f->after;
    l->list.has_reserved = l->list.reserved = f->reserved != 0;
    l->limit = f->limit;
    return list_start(d, l, l_r);
}

int raftdir_visible_open(raftdir *d, const struct raftdir_visible *v, raftdir_list **l_r)
{
    struct raftdir_visible own;
    *l_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    if (!v || !lib_sized(&own, sizeof own, v, v->size) || !own.user || !*own.user)
        return err_set(&d->err, RAFTDIR_EINVAL, "a user is needed, in a struct that raftdir_visible_init began");
    v = &own;
    if (v->groups_n > USER_GROUPS_MAX)
        return err_set(&d->err, RAFTDIR_ETOOBIG, "%zu groups; at most %d", v->groups_n, USER_GROUPS_MAX);
    struct raftdir_list *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    raftdir__client__list__init(&l->list);
    raftdir__client__visible__init(&l->who);
    l->visible = true;
    l->who.user = (char *)v->user;
    l->who.groups = (char **)v->groups;
    l->who.n_groups = v->groups_n;
    l->who.rights = (char *)v->rights;
    l->who.pattern = (char *)v->pattern;
    l->who.after = (char *)v->after;
    l->limit = v->limit;
    return list_start(d, l, l_r);
}

int raftdir_list_next(raftdir_list *l, const struct raftdir_mailbox **m_r)
{
    struct raftdir *d = l->d;
    *m_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    if (l->local && (rc = list_next_local(l, m_r)) != LOCAL_LIST_PASS)
        return rc;
    if (!l->call && (rc = list_ask(l)) < 0) /* there was no memory for it before */
        return rc;
    frame_free(l->given);
    l->given = NULL;
    if (!l->first) {
        if (l->limit && l->rows_n >= l->limit)
            return 0;
        if (!l->call->waiting_since) { /* else a call that didn't wait began it */
            l->call->waiting_since = lib_now_ms();
            l->call->deadline = l->call->waiting_since + l->call->timeout_ms;
        }
        while (!l->first && !l->call->done) {
            engine_turn(d, d->nonblocking ? 0 : UINT64_MAX);
            if (d->nonblocking && !l->first && !l->call->done)
                return err_set(&d->err, RAFTDIR_EAGAIN, "no row has come yet");
        }
        l->call->waiting_since = 0;
    }
    if (!l->first) {
        if (l->call->result.code < 0) {
            d->err = l->call->result;
            local_explain(d, l->level);
        }
        return d->err.code;
    }
    struct frame *f = l->first;
    mailbox_from_row(&l->mailbox, f->answer->rows->rows[l->row++]);
    *m_r = &l->mailbox;
    if (l->row == f->answer->rows->n_rows) {
        l->given = f;
        l->row = 0;
        if (!(l->first = f->next))
            l->last = &l->first;
    }
    l->waiting_rows--;
    if (++l->taken >= LIST_WINDOW / 2 && !l->call->done) {
        if ((rc = call_credit(l->call, l->taken)) < 0)
            return err_set(&d->err, rc, "out of memory");
        l->taken = 0;
        engine_flush(d);
    }
    return 1;
}

int raftdir_list_position(const raftdir_list *l, struct raftdir_position *position_r)
{
    *position_r = l->position;
    return l->position.incarnation ? 0 : RAFTDIR_EAGAIN;
}

void raftdir_list_counters(const raftdir_list *l, uint64_t *touched_r, uint64_t *skips_r)
{
    uint64_t touched = 0, skips = 0;
    if (l->local)
        local_list_counters(l->local, &touched, &skips);
    *touched_r = l->touched + l->touched_now + touched;
    *skips_r = l->skips + l->skips_now + skips;
}

void raftdir_list_close(raftdir_list **lp)
{
    struct raftdir_list *l = *lp;
    if (!l)
        return;
    *lp = NULL;
    /* In a forked child nothing may be said on the parent's connection. */
    if (l->call && lib_check(l->d) < 0)
        l->call->attempts_n = 0;
    bool tell = l->call && !l->call->done && l->call->attempts_n;
    call_destroy(&l->call);
    if (tell)
        engine_flush(l->d); /* the node shouldn't read on for nobody */
    local_list_close(&l->local);
    while (l->first) {
        struct frame *f = l->first;
        l->first = f->next;
        frame_free(f);
    }
    frame_free(l->given);
    free(l->after);
    char **s;
    for (size_t i = 0; (s = list_strings(l, i)); i++)
        free(*s);
    for (size_t i = 0; i < l->who.n_groups; i++)
        free(l->who.groups[i]);
    free(l->who.groups);
    free(l);
}
