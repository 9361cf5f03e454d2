/* srv_client_admin.c - what admins ask: membership, bootstrap, adopt, reset, verify.
 *
 * Verify is a run of the scrub (thread_scrub.h) in libuv's pool: minutes on a large directory. One at a time; its progress is sent at each tick. It ends before
 * its time when its client goes or cancels, and when the daemon stops. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_client.h"
#include "thread_scrub.h"

/* --- Membership ----------------------------------------------------------------------------------------------------------------- */

void srv_member_begin(struct request *r)
{
    const Raftdir__Cluster__MemberRequest *q = r->msg->member;
    struct err err = {0};
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN], address[NODE_ADDRESS_SIZE];
    if (q->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP__NOT_SET) {
        srv_fail(r, RAFTDIR_EUNSUPPORTED, "this node doesn't know this membership operation");
        return;
    }
    if (q->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD) {
        int rc = 0;
        if (q->add->uuid.len != NODE_UUID_LEN)
            rc = err_set(&err, RAFTDIR_EINVAL, "the UUID has %zu bytes; wanted %d", q->add->uuid.len, NODE_UUID_LEN);
        if (rc == 0)
            rc = config_host_port(q->add->address, host, port, &err);
        if (rc == 0)
            rc = node_address_format(q->add->address, q->add->cert_name, q->add->uuid.data, address, sizeof address, &err);
        if (rc != 0) {
            srv_fail_err(r, rc, &err);
            return;
        }
    }
    /* A change waits for the new member to catch up: longer than other requests. */
    if (!r->msg->has_timeout_ms || !r->msg->timeout_ms)
        r->deadline_ms = shared_now_ms() + MEMBER_CHANGE_TIMEOUT_MS;
    memset(&r->call.u.member, 0, sizeof r->call.u.member);
    r->call.u.member.request = q;
    srv_consensus_call(r, CONSENSUS_MEMBER);
}

void srv_member_done(struct request *r)
{
    if (r->call.code == RAFTDIR_ECANCELED || !r->call.result) {
        srv_fail(r, r->call.code == RAFTDIR_ECANCELED ? RAFTDIR_EUNCERTAIN : r->call.code, "%s",
                 r->call.code == RAFTDIR_ECANCELED ? "this node ended its part in it (stopping, failed or removed): look at member list on another, then try again there" : r->call.err.text);
        return;
    }
    Raftdir__Cluster__MemberResult *result = raftdir__cluster__member_result__unpack(NULL, r->call.result_len, r->call.result);
    if (!result)
        mem_exhausted("member");
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.code = result->code;
    f.message = result->message;
    f.has_index = result->has_index;
    f.index = result->index;
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_MEMBER;
    f.member = result;
    srv_answer(r, &f);
    raftdir__cluster__member_result__free_unpacked(result, NULL);
}

/* --- Bootstrap and adopt ------------------------------------------------------------------------------------------------------------- */

static int adopt_check(struct request *r, const Raftdir__Client__Adopt *q, struct datadir_identity *id_r, struct err *err)
{
    struct daemon *d = r->service->d;
    struct shared_view view;
    shared_view_get(&d->shared, &view);
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN], address[NODE_ADDRESS_SIZE];
    if (!q->cluster_id || !q->node_id)
        return err_set(err, RAFTDIR_EINVAL, "cluster id and node id must not be 0");
    if (q->n_members == 0 || q->n_members > MEMBERS_MAX)
        return err_set(err, RAFTDIR_EINVAL, "%zu members; wanted 1 to %d", q->n_members, MEMBERS_MAX);
    id_r->cluster_id = q->cluster_id;
    id_r->incarnation = q->incarnation;
    id_r->node_id = q->node_id;
    for (size_t i = 0; i < q->n_members; i++) {
        const Raftdir__Cluster__Member *m = q->members[i];
        struct node_peer *p = &id_r->members[i];
        if (!m->id || m->uuid.len != NODE_UUID_LEN)
            return err_set(err, RAFTDIR_EINVAL, "member %zu has no id or no valid UUID", i + 1);
        int rc = config_host_port(m->address, host, port, err);
        if (rc == 0)
            rc = node_address_format(m->address, m->cert_name, m->uuid.data, address, sizeof address, err);
        if (rc == 0)
            rc = node_address_parse(address, p, err);
        if (rc != 0)
            return rc;
        p->id = m->id;
        p->role = (int)m->role;
        if (m->id != q->node_id)
            continue;
        if (memcmp(m->uuid.data, view.uuid, NODE_UUID_LEN) != 0)
            return err_set(err, RAFTDIR_EFOREIGN, "member %" PRIu64 " is another data directory (UUID) than this node's: add this node first, it gets an id of its own", q->node_id);
        if (strcmp(m->cert_name, d->cert_name) != 0)
            return err_set(err, RAFTDIR_EFOREIGN, "the cluster knows member %" PRIu64 " by the certificate \"%.100s\", this node's is \"%.100s\"", q->node_id, m->cert_name, d->cert_name);
    }
    id_r->members_n = q->n_members;
    return 0;
}

void srv_make_begin(struct request *r)
{
    struct err err = {0};
    if (r->msg->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_BOOTSTRAP) {
        srv_consensus_call(r, CONSENSUS_BOOTSTRAP);
        return;
    }
    r->adopt = mem_calloc(1, sizeof *r->adopt);
    int rc = adopt_check(r, r->msg->adopt, r->adopt, &err);
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    r->call.u.adopt = r->adopt;
    srv_consensus_call(r, CONSENSUS_ADOPT);
}

void srv_make_done(struct request *r)
{
    if (r->call.code != 0) {
        srv_fail(r, r->call.code, "%s", r->call.err.text);
        return;
    }
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    srv_answer(r, &f);
}

/* --- Reset --------------------------------------------------------------------------------------------------------------------------------- */

void srv_reset_begin(struct request *r)
{
    const Raftdir__Client__Reset *q = r->msg->reset;
    r->call.u.reset.cluster_id = q->cluster_id;
    r->call.u.reset.node_id = q->node_id;
    srv_consensus_call(r, CONSENSUS_RESET);
}

/* --- Verify ------------------------------------------------------------------------------------------------------------------------------ */

struct verify {
    uv_work_t work;
    struct verify *prev, *next;
    struct request *r;
    _Atomic bool unwanted;
    uint64_t told;
    /* The pool's until the end, but for the atomics in `run`. */
    int rc;
    struct err err;
    struct scrub_run run;
};

static bool on_stop(void *data)
{
    return atomic_load(&((struct verify *)data)->unwanted);
}

static void verify_work(uv_work_t *work)
{
    struct verify *v = work->data;
    v->rc = scrub_run(&v->run, &v->err);
}

static void verify_answer(struct verify *v, struct request *r)
{
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    Raftdir__Client__VerifyResult result = RAFTDIR__CLIENT__VERIFY_RESULT__INIT;
    Raftdir__Client__CheckpointDigest list[DIGESTS_KEPT], *pointers[DIGESTS_KEPT];
    struct scrub_run *run = &v->run;
    result.has_done = result.has_total = result.has_digest = result.has_digest_stored = result.has_problems = result.has_log_bytes = true;
    result.done = atomic_load(&run->done);
    result.total = atomic_load(&run->total);
    result.log_bytes = atomic_load(&run->log_len);
    result.digest.data = run->digest;
    result.digest.len = sizeof run->digest;
    result.digest_stored.data = run->meta.digest;
    result.digest_stored.len = sizeof run->meta.digest;
    result.problems = run->problems;
    result.problem = run->texts;
    result.n_problem = run->texts_n;
    for (size_t i = 0; i < run->checkpoints_n; i++) {
        raftdir__client__checkpoint_digest__init(&list[i]);
        list[i].index = run->checkpoints[i].index;
        list[i].digest.data = run->checkpoints[i].digest;
        list[i].digest.len = sizeof run->checkpoints[i].digest;
        pointers[i] = &list[i];
    }
    result.checkpoints = pointers;
    result.n_checkpoints = run->checkpoints_n;
    f.has_index = true;
    f.index = run->meta.applied_index;
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_VERIFY;
    f.verify = &result;
    srv_answer(r, &f);
}

static void verify_after(uv_work_t *work, int status)
{
    struct verify *v = work->data;
    struct request *r = v->r;
    struct service *s = r->service;
    (void)status;
    atomic_store(&s->d->verify_runs, false);
    s->verifies--;
    DL_DELETE(s->verify_list, v);
    r->verify = NULL;
    r->state = REQUEST_NEW;
    if (!r->client)
        srv_request_free(r);
    else if (v->rc != 0)
        srv_fail_err(r, v->rc, &v->err);
    else
        verify_answer(v, r);
    scrub_run_clear(&v->run);
    free(v);
}

void srv_verify_begin(struct request *r)
{
    struct service *s = r->service;
    if (atomic_exchange(&s->d->verify_runs, true)) {
        srv_fail(r, RAFTDIR_EBUSY, "a verify, or the scrub, is running at this node already: wait for it, or ask another node");
        return;
    }
    struct verify *v = mem_calloc(1, sizeof *v);
    v->work.data = v;
    v->r = r;
    v->run.d = s->d;
    v->run.data = v;
    v->run.stop = on_stop;
    r->verify = v;
    r->state = REQUEST_VERIFY;
    s->verifies++;
    DL_APPEND(s->verify_list, v);
    uv_queue_work(&s->loop, &v->work, verify_work, verify_after); /* fails only without a callback */
}

void srv_verify_unwanted(struct request *r)
{
    if (r->verify)
        atomic_store(&r->verify->unwanted, true);
}

void srv_verify_progress(struct service *s)
{
    struct verify *v;
    DL_FOREACH(s->verify_list, v) {
        uint64_t done = atomic_load(&v->run.done), log_len = atomic_load(&v->run.log_len);
        bool in_log = atomic_load(&v->run.in_log);
        if (!v->r->client || done + log_len == v->told || srv_client_backed_up(v->r->client))
            continue;
        v->told = done + log_len;
        Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
        Raftdir__Client__VerifyResult result = RAFTDIR__CLIENT__VERIFY_RESULT__INIT;
        result.has_done = result.has_total = result.has_log_bytes = true;
        result.done = done;
        result.total = atomic_load(&v->run.total);
        result.log_bytes = log_len;
        result.phase = (char *)(uintptr_t)(in_log ? "log" : "state");
        f.has_more = f.more = true;
        f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_VERIFY;
        f.verify = &result;
        srv_answer(v->r, &f);
    }
}
