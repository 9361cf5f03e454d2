/* lib_local_read.c - lookups and rights from this host's copy of the state: may it answer, the answer, and is it still the one to answer from. See lib_local.h.
 *
 * LOCAL: any state that is served. SESSION: one of the incarnation and at least the index that the handle has seen. LINEARIZABLE: never. With max_age only a
 * state that is known to be so fresh; "not there" at session level only from one known to be at most absent_max_age old.
 * Everything else, trouble included, is passed to the socket; why is kept in l->why, and told when that fails, too.
 *
 * The record is copied and the read transaction ends before the call returns: an idle process pins no page of the state, for the price of copying about 150 bytes. */
#include "lib_local.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int local_begin(struct raftdir *d, int level, uint64_t min_index, struct local_view *v)
{
    struct local *l = d->local;
    struct store_meta meta;
    if (!l || d->pinned >= 0 || level == RAFTDIR_LINEARIZABLE)
        return LOCAL_PASS;
    if (local_attach(l, &v->age_ms) != 0)
        return LOCAL_PASS;
    l->why.code = 0;
    const struct page *p = local_page_of(l);
    v->incarnation = atomic_load(&p->incarnation);
    if (d->cluster_id && d->cluster_id != l->key.cluster_id) {
        err_set(&l->why, RAFTDIR_EFOREIGN, "%s is of another cluster than the nodes that were asked", l->dir);
        return LOCAL_PASS;
    }
    if (d->max_age_ms && (v->age_ms < 0 || v->age_ms > (int64_t)d->max_age_ms)) {
        if (v->age_ms < 0)
            err_set(&l->why, RAFTDIR_ESTALE, "%s: how old its state is, is not known", l->endpoint);
        else
            err_set(&l->why, RAFTDIR_ESTALE, "%s: its state may be %" PRId64 " ms old; at most %u ms are wanted", l->endpoint, v->age_ms, d->max_age_ms);
        return LOCAL_PASS;
    }
    bool session = level == RAFTDIR_SESSION && d->index;
    if (session && d->incarnation != v->incarnation)
        return LOCAL_PASS; /* by socket the session is begun anew, or it is found that this node lags behind a restore */
    if (local_txn(l) != 0) {
        local_fails(l);
        return LOCAL_PASS;
    }
    if (store_meta_get(l->txn, &meta, &l->why) != 0) {
        store_read_reset(l->txn);
        local_fails(l);
        return LOCAL_PASS;
    }
    v->index = meta.applied_index;
    if ((session && v->index < d->index) || v->index < min_index) {
        store_read_reset(l->txn);
        err_set(&l->why, RAFTDIR_ESTALE, "%s: its state is at index %" PRIu64 ", and %" PRIu64 " was seen", l->endpoint, v->index, session ? d->index : min_index);
        return LOCAL_PASS;
    }
    return 0;
}

bool local_end(struct raftdir *d)
{
    store_read_reset(d->local->txn);
    return local_is_same(d->local);
}

void local_answered(struct raftdir *d, const struct local_view *v)
{
    d->answer_local = true;
    d->answer_ep = NULL;
    d->answer_incarnation = v->incarnation;
    d->answer_index = v->index;
    d->answer_age_ms = v->age_ms;
    if (v->incarnation != d->incarnation) {
        d->incarnation = v->incarnation; /* indexes of different incarnations say nothing about each other */
        d->index = v->index;
    } else if (v->index > d->index)
        d->index = v->index;
}

/* --- A mailbox for the user -------------------------------------------------------------------------------------------------------- */

#define RIGHTS_SIZE 33

size_t local_text_len(const struct store_mailbox *m)
{
    size_t len = m->name_len + 1 + RIGHTS_SIZE;
#define X(field) len += m->field.len + 1;
    MAILBOX_STRINGS(X)
#undef X
    return len;
}

void local_mailbox(struct raftdir_mailbox *r, const struct store_mailbox *m, const acl_rights *rights, char *at)
{
    memcpy(at, m->name, m->name_len + 1);
    r->size = sizeof *r;
    r->name = at;
    at += m->name_len + 1;
#define X(f)                                                                                                                               \
    if (m->f.len) {                                                                                                                        \
        r->f = memcpy(at, m->f.s, m->f.len);                                                                                               \
        at[m->f.len] = '\0';                                                                                                               \
        at += m->f.len + 1;                                                                                                                \
    } else                                                                                                                                 \
        r->f = "";
    MAILBOX_STRINGS(X)
#undef X
    r->rights = "";
    if (rights) {
        at[acl_rights_format(*rights, at)] = '\0';
        r->rights = at;
    }
    r->mtime = m->mtime;
    r->uidvalidity = m->uidvalidity;
    r->createdmodseq = m->createdmodseq;
    r->foldermodseq = m->foldermodseq;
    r->fields = RAFTDIR_F_MTIME | RAFTDIR_F_UIDVALIDITY | RAFTDIR_F_CREATEDMODSEQ | RAFTDIR_F_FOLDERMODSEQ;
    r->mailbox_id = m->id;
    r->generation = m->generation;
    r->store_id = m->store_id;
    r->store_epoch = m->store_epoch;
    r->reserved = m->state == STORE_RESERVED;
}

/* --- Questions ------------------------------------------------------------------------------------------------------------------------ */

/* Codes that another node would give, too: they are about the question, or about what is there. */
static bool is_answer(int rc)
{
    return rc == 0 || rc == RAFTDIR_ENOTFOUND || rc == RAFTDIR_ENAME || rc == RAFTDIR_ETOOBIG || rc == RAFTDIR_EINVAL || rc == RAFTDIR_EACL;
}

static int ask(struct store_txn *txn, const struct local_question *q, struct store_mailbox *m, acl_rights *rights_r, struct err *err)
{
    struct acl_subject who = {.user = q->user, .groups = q->groups, .groups_n = q->groups_n};
    switch (q->kind) {
    case LOCAL_LOOKUP_NAME:
        return store_ask(txn, STORE_BY_NAME, q->key, m, err);
    case LOCAL_LOOKUP_UNIQUEID:
        return store_ask(txn, STORE_BY_UNIQUEID, q->key, m, err);
    case LOCAL_LOOKUP_USER:
        return store_ask(txn, STORE_BY_USER, q->key, m, err);
    case LOCAL_RIGHTS:
        return store_ask_rights(txn, q->key, &who, m, rights_r, err);
    default:
        return err_set(err, RAFTDIR_EINVAL, "no question for one mailbox");
    }
}

/* Not the memory of the mailbox that was given last: the question may be made of that, and be asked again. */
static char *room(struct local *l, size_t len)
{
    unsigned i = l->text_i;
    if (len > l->text[i].size) {
        char *s = malloc(len + len / 2);
        if (!s)
            return NULL;
        free(l->text[i].s);
        l->text[i].s = s;
        l->text[i].size = len + len / 2;
    }
    return l->text[i].s;
}

int local_ask(struct raftdir *d, const struct local_question *q, const struct raftdir_mailbox **m_r)
{
    struct local_view v;
    struct store_mailbox m;
    struct raftdir_mailbox found;
    acl_rights rights = 0;
    for (int i = 0; i < LOCAL_TRIES; i++) {
        int rc = local_begin(d, d->level, 0, &v);
        if (rc != 0)
            return rc;
        struct local *l = d->local;
        rc = ask(l->txn, q, &m, &rights, &l->why);
        bool stale = rc == RAFTDIR_ENOTFOUND && d->level == RAFTDIR_SESSION && (v.age_ms < 0 || v.age_ms > (int64_t)d->absent_max_age_ms);
        if (rc == 0) {
            size_t len = local_text_len(&m);
            char *at = room(l, len);
            if (!at) {
                local_end(d);
                return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
            }
            local_mailbox(&found, &m, q->kind == LOCAL_RIGHTS ? &rights : NULL, at);
        }
        if (!local_end(d))
            continue;
        if (stale) {
            if (v.age_ms < 0)
                err_set(&l->why, RAFTDIR_ESTALE, "%s: not there, but how old its state is, is not known", l->endpoint);
            else
                err_set(&l->why, RAFTDIR_ESTALE, "%s: not there, but its state may be %" PRId64 " ms old; at most %u ms are wanted for that", l->endpoint, v.age_ms,
                        d->absent_max_age_ms);
            return LOCAL_PASS;
        }
        if (!is_answer(rc))
            return LOCAL_PASS;
        local_answered(d, &v);
        if (rc == 0) {
            d->mailbox = found;
            l->text_i ^= 1;
            *m_r = &d->mailbox;
        } else
            d->err = l->why;
        l->why.code = 0;
        return rc;
    }
    err_set(&d->local->why, RAFTDIR_EUNAVAIL, "%s: the node is replacing its state", d->local->endpoint);
    return LOCAL_PASS;
}

void local_explain(struct raftdir *d, int level)
{
    const struct local *l = d->local;
    if (!l || !l->why.code || d->pinned >= 0 || level == RAFTDIR_LINEARIZABLE)
        return;
    bool cant = d->err.code == RAFTDIR_EUNAVAIL || d->err.code == RAFTDIR_ETIMEDOUT || d->err.code == RAFTDIR_ESTALE;
    if (!cant || (!l->asked_for && l->why.code == RAFTDIR_ENOTFOUND))
        return;
    struct err both;
    /* A state was there, and not fresh enough; nobody else could be asked: that is what stands in the way. */
    int code = l->why.code == RAFTDIR_ESTALE ? RAFTDIR_ESTALE : d->err.code;
    err_set(&both, code, "%.250s; and %.220s", d->err.text, l->why.text);
    d->err = both;
}
