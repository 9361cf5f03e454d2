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

static void waited(struct srv_wait *w)
{
    struct request *r = (struct request *)((char *)w - offsetof(struct request, wait));
    struct shared_view view;
    r->state = REQUEST_NEW;
    shared_view_get(&w->service->d->shared, &view);
    bool serves = view.phase == SHARED_RUNNING || view.phase == SHARED_STOPPING;
    if (!serves || srv_wait_reached(w) || srv_watch_expired(r))
        srv_read_ready(r);
    else
        srv_fail(r, RAFTDIR_ETIMEDOUT, "this node's state is at index %llu, the request wants %llu: it is behind; ask another node, or again with more time",
                 (unsigned long long)atomic_load(&w->service->d->shared.published), (unsigned long long)w->index);
}

void srv_wait_for(struct request *r, uint64_t index)
{
    r->state = REQUEST_WAIT;
    r->wait.done = waited;
    srv_wait_begin(r->service, &r->wait, index, r->deadline_ms);
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
    uint64_t age_ms = srv_age_ms(r->service); /* before the state is read, which may get fresher meanwhile */
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
    uint64_t age_ms = srv_age_ms(r->service); /* before the state is read, which may get fresher meanwhile */
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
