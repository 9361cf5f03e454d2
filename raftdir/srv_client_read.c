/* srv_client_read.c - reads: first a state that is new enough for the level, then the answer from one read transaction.
 *
 * LOCAL: at once. SESSION: once min_index is published. LINEARIZABLE: the consensus thread confirms with a quorum and gives an index, then as SESSION.
 * The state may be replaced by an image's between two transactions: what is published only grows by that, and a scan's position is a name.
 * max_age_ms, absent_max_age_ms: LOCAL and SESSION are answered, or a "not there" told, only from a state that is known to be so fresh; else ESTALE.
 * Failures: another incarnation: EFOREIGN; no quorum: ENOQUORUM; not published in time: ETIMEDOUT. Never "not found" for any of them. */
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_client.h"

/* --- Waiting ------------------------------------------------------------------------------------------------------------------ */

void srv_wait_for_set(struct service *s)
{
    uint64_t lowest = UINT64_MAX;
    struct request *r;
    DL_FOREACH(s->waiting, r)
        if (r->wait_index < lowest)
            lowest = r->wait_index;
    atomic_store(&s->waiting_for, lowest);
}

void srv_wait_for(struct request *r, uint64_t index)
{
    struct service *s = r->service;
    r->wait_index = index;
    if (atomic_load(&s->d->shared.published) >= index) {
        srv_read_ready(r);
        return;
    }
    r->state = REQUEST_WAIT;
    DL_APPEND(s->waiting, r);
    if (index < atomic_load(&s->waiting_for))
        atomic_store(&s->waiting_for, index);
    /* Published between the look and the store: apply may not have seen that somebody waits. */
    if (atomic_load(&s->d->shared.published) >= index)
        srv_wait_published(s);
}

/* Unlinked first, answered after: an answer may change the list. */
static void waiting_take(struct service *s, struct request **taken, uint64_t published, uint64_t expired_before)
{
    struct request *r, *next;
    DL_FOREACH_SAFE(s->waiting, r, next) {
        if (r->wait_index > published && r->deadline_ms >= expired_before)
            continue;
        DL_DELETE(s->waiting, r);
        r->state = REQUEST_NEW;
        DL_APPEND(*taken, r);
    }
    srv_wait_for_set(s);
}

void srv_wait_published(struct service *s)
{
    struct request *taken = NULL, *r, *next;
    struct shared_view view;
    shared_view_get(&s->d->shared, &view);
    bool serves = view.phase == SHARED_RUNNING || view.phase == SHARED_STOPPING; /* else nothing is published any more, and all of them fail */
    waiting_take(s, &taken, serves ? atomic_load(&s->d->shared.published) : UINT64_MAX, 0);
    DL_FOREACH_SAFE(taken, r, next) {
        DL_DELETE(taken, r);
        srv_read_ready(r);
    }
}

void srv_wait_expired(struct service *s, uint64_t now)
{
    struct request *taken = NULL, *r, *next;
    if (!s->waiting)
        return;
    uint64_t published = atomic_load(&s->d->shared.published);
    waiting_take(s, &taken, published, now);
    DL_FOREACH_SAFE(taken, r, next) {
        DL_DELETE(taken, r);
        if (r->wait_index <= published || srv_watch_expired(r))
            srv_read_ready(r);
        else
            srv_fail(r, RAFTDIR_ETIMEDOUT, "this node's state is at index %llu, the request wants %llu: it is behind; ask another node, or again with more time",
                     (unsigned long long)published, (unsigned long long)r->wait_index);
    }
}

void srv_read_linearize(struct request *r)
{
    srv_consensus_call(r, CONSENSUS_READ);
}

void srv_read_begin(struct request *r)
{
    const Raftdir__Client__ToNode *m = r->msg;
    struct shared_view view;
    shared_view_get(&r->service->d->shared, &view);
    if (m->has_min_index && m->has_incarnation && m->incarnation != view.incarnation) {
        srv_fail(r, RAFTDIR_EFOREIGN, "the index is of incarnation %llu, this cluster's is %llu: it was restored or recovered; begin a new session",
                 (unsigned long long)m->incarnation, (unsigned long long)view.incarnation);
        return;
    }
    switch (m->has_level ? m->level : RAFTDIR__CLIENT__READ_LEVEL__LOCAL) {
    case RAFTDIR__CLIENT__READ_LEVEL__LINEARIZABLE:
        srv_read_linearize(r);
        break;
    case RAFTDIR__CLIENT__READ_LEVEL__SESSION:
        srv_wait_for(r, m->has_min_index ? m->min_index : 0);
        break;
    case RAFTDIR__CLIENT__READ_LEVEL__LOCAL:
        srv_wait_for(r, m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_BARRIER && m->has_min_index ? m->min_index : 0);
        break;
    default:
        srv_fail(r, RAFTDIR_EUNSUPPORTED, "unknown read level %d; this node knows local, session and linearizable", (int)m->level);
        break;
    }
}

void srv_read_called(struct request *r)
{
    uint64_t index = r->call.index;
    switch (r->call.code) {
    case 0:
        if (r->msg->has_min_index && r->msg->min_index > index)
            index = r->msg->min_index;
        srv_wait_for(r, index);
        break;
    case RAFTDIR_ECANCELED:
        srv_fail(r, RAFTDIR_EUNAVAIL, "this node ended its part in the cluster (it is stopping, failed or was removed): ask another");
        break;
    case RAFTDIR_ENOQUORUM:
        srv_fail(r, RAFTDIR_ENOQUORUM, "no quorum: this node can't confirm its state with a majority; level local answers with what it has, and says how old that is");
        break;
    default:
        srv_fail(r, r->call.code, "%s", r->call.err.text);
        break;
    }
}

/* --- Freshness ------------------------------------------------------------------------------------------------------------------ */

uint64_t srv_read_age(struct request *r)
{
    struct shared_view view;
    shared_view_get(&r->service->d->shared, &view);
    return shared_age_ms(&view, shared_now_ms());
}

static bool is_linearizable(const struct request *r)
{
    return r->msg->has_level && r->msg->level == RAFTDIR__CLIENT__READ_LEVEL__LINEARIZABLE;
}

static void stale_text(char text_r[ERR_TEXT_LEN], uint64_t age_ms, uint64_t max_ms)
{
    if (age_ms == UINT64_MAX)
        snprintf(text_r, ERR_TEXT_LEN, "how old this node's state is, is not known (no leader is in reach); at most %llu ms are wanted", (unsigned long long)max_ms);
    else
        snprintf(text_r, ERR_TEXT_LEN, "this node's state may be %llu ms old; at most %llu ms are wanted", (unsigned long long)age_ms, (unsigned long long)max_ms);
}

bool srv_read_fresh(struct request *r, uint64_t age_ms)
{
    const Raftdir__Client__ToNode *m = r->msg;
    if (!m->has_max_age_ms || !m->max_age_ms || age_ms <= m->max_age_ms || is_linearizable(r))
        return true;
    char text[ERR_TEXT_LEN];
    stale_text(text, age_ms, m->max_age_ms);
    srv_fail(r, RAFTDIR_ESTALE, "%s", text);
    return false;
}

/* --- Answering ------------------------------------------------------------------------------------------------------------------- */

void srv_store_drop(struct service *s, bool end)
{
    if (!s->store || (!end && atomic_load(&s->d->store_generation) == s->store_generation))
        return;
    if (s->txn)
        store_read_end(&s->txn);
    store_close(&s->store);
}

int srv_txn(struct service *s, struct store_meta *meta_r, struct err *err)
{
    srv_store_drop(s, false);
    if (!s->store && !(s->store = daemon_store(s->d, &s->store_generation)))
        return err_set(err, RAFTDIR_EFAILED, "this node has no state that it may serve (it failed or was removed): ask another node");
    int rc = s->txn ? store_read_renew(s->txn, err) : store_read_begin(s->store, &s->txn, err);
    if (rc != 0)
        return rc;
    if ((rc = store_meta_get(s->txn, meta_r, err)) != 0)
        store_read_reset(s->txn);
    return rc;
}

void srv_corrupt(struct service *s, const char *why)
{
    char text[ERR_TEXT_LEN];
    logger_limited(LOGGER_ERROR, "store", "a record is corrupt: %s", why);
    snprintf(text, sizeof text, "a record of the state is corrupt: %.400s; rebuild this node from its peers: raftdirctl cluster rebuild", why);
    consensus_fail(s->d->consensus, s->store_generation, RAFTDIR_ECORRUPT, text);
}

void srv_txn_done(struct service *s)
{
    store_read_reset(s->txn);
}

static int lookup(struct service *s, const Raftdir__Client__Lookup *l, struct store_mailbox *m, struct err *err)
{
    switch (l->by_case) {
    case RAFTDIR__CLIENT__LOOKUP__BY_NAME:
        return store_ask(s->txn, STORE_BY_NAME, l->name, m, err);
    case RAFTDIR__CLIENT__LOOKUP__BY_UNIQUEID:
        return store_ask(s->txn, STORE_BY_UNIQUEID, l->uniqueid, m, err);
    case RAFTDIR__CLIENT__LOOKUP__BY_USER:
        return store_ask(s->txn, STORE_BY_USER, l->user, m, err);
    default:
        return err_set(err, RAFTDIR_EINVAL, "lookup by what? name, uniqueid or user");
    }
}

static void answer_row(struct request *r, const struct store_meta *meta, const struct store_mailbox *m, const acl_rights *rights)
{
    struct srv_rows rows;
    srv_rows_init(&rows);
    srv_rows_add(&rows, m, rights);
    srv_txn_done(r->service);
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.has_index = true;
    f.index = meta->applied_index;
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
    f.rows = &rows.rows;
    srv_answer(r, &f);
    srv_rows_free(&rows);
}

/* "Not there" carries the index as well: it is an answer about a state. */
static void answer_not_found(struct request *r, const struct store_meta *meta, uint64_t age_ms, int code, struct err *err)
{
    const Raftdir__Client__ToNode *m = r->msg;
    srv_txn_done(r->service);
    if (code == RAFTDIR_ENOTFOUND && m->has_absent_max_age_ms && m->absent_max_age_ms && age_ms > m->absent_max_age_ms && !is_linearizable(r)) {
        code = RAFTDIR_ESTALE; /* somebody's mail may bounce for it */
        stale_text(err->text, age_ms, m->absent_max_age_ms);
    }
    if (code == RAFTDIR_ECORRUPT) {
        srv_corrupt(r->service, err->text);
        code = RAFTDIR_EFAILED; /* this node's fault: the client asks another */
    }
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.code = code;
    f.message = (char *)(uintptr_t)(*err->text ? err->text : err_text(code));
    f.has_index = true;
    f.index = meta->applied_index;
    srv_answer(r, &f);
}

static void answer_lookup(struct request *r)
{
    struct store_meta meta;
    struct store_mailbox m;
    struct err err = {0};
    uint64_t age_ms = srv_read_age(r); /* before the state is read, which may get fresher meanwhile */
    if (!srv_read_fresh(r, age_ms))
        return;
    int rc = srv_txn(r->service, &meta, &err);
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    rc = lookup(r->service, r->msg->lookup, &m, &err);
    if (rc != 0)
        answer_not_found(r, &meta, age_ms, rc, &err);
    else
        answer_row(r, &meta, &m, NULL);
}

static void answer_my_rights(struct request *r)
{
    const Raftdir__Client__MyRights *q = r->msg->my_rights;
    struct store_meta meta;
    struct store_mailbox m;
    struct err err = {0};
    acl_rights rights = 0;
    struct acl_subject who = {.user = q->user, .groups = (const char *const *)q->groups, .groups_n = q->n_groups};
    uint64_t age_ms = srv_read_age(r); /* before the state is read, which may get fresher meanwhile */
    if (!srv_read_fresh(r, age_ms))
        return;
    int rc = srv_txn(r->service, &meta, &err);
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    rc = store_ask_rights(r->service->txn, q->name, &who, &m, &rights, &err);
    if (rc != 0)
        answer_not_found(r, &meta, age_ms, rc, &err);
    else
        answer_row(r, &meta, &m, &rights);
}

static void answer_barrier(struct request *r)
{
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.has_index = true;
    f.index = atomic_load(&r->service->d->shared.published);
    srv_answer(r, &f);
}

void srv_read_ready(struct request *r)
{
    if (!srv_phase_allows(r)) /* again: it may have failed, or been removed, while the request waited */
        return;
    if (srv_client_backed_up(r->client)) {
        srv_client_backed_up_set(r->client);
        srv_request_block(r);
        return;
    }
    switch (r->msg->body_case) {
    case RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP:
        answer_lookup(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_MY_RIGHTS:
        answer_my_rights(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_LIST:
    case RAFTDIR__CLIENT__TO_NODE__BODY_VISIBLE:
        srv_list_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_WATCH:
        srv_watch_ready(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_VERIFY:
        srv_verify_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_WRITE:
        r->linearized = true;
        srv_write_begin(r);
        break;
    default:
        answer_barrier(r);
        break;
    }
}
