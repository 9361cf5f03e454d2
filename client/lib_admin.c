/* lib_admin.c - status, membership, bootstrap and adoption, verification. */
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

static const char *or_empty(const char *s)
{
    return s ? s : "";
}

static int run(struct raftdir *d, unsigned flags, unsigned field, const ProtobufCMessage *body)
{
    struct call *c = call_create(d, flags, field);
    if (!c || call_body(c, body) < 0) {
        call_destroy(&c);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    return call_run(d, &c);
}

static int wrong_answer(struct raftdir *d)
{
    return err_set(&d->err, RAFTDIR_EPROTO, "%s: answered something else than was asked", d->answer_ep ? d->answer_ep->text : "node");
}

int members_from(struct raftdir *d, Raftdir__Cluster__Member *const *list, size_t n, uint64_t leader)
{
    struct raftdir_member *m = realloc(d->member_list, (n ? n : 1) * sizeof *m);
    if (!m)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    d->member_list = m;
    for (size_t i = 0; i < n; i++) {
        const Raftdir__Cluster__Member *from = list[i];
        m[i] = (struct raftdir_member){
            .id = from->id,
            .address = or_empty(from->address),
            .cert_name = or_empty(from->cert_name),
            .role = (int)from->role,
            .leader = (from->has_leader && from->leader) || (leader && from->id == leader),
            .last_contact_ms = from->has_last_contact_ms && from->last_contact_ms <= INT64_MAX ? (int64_t)from->last_contact_ms : -1,
            .match_index = from->has_match_index && from->match_index <= INT64_MAX ? (int64_t)from->match_index : -1,
        };
        if (from->uuid.len == RAFTDIR_UUID_LEN)
            memcpy(m[i].uuid, from->uuid.data, RAFTDIR_UUID_LEN);
    }
    return 0;
}

static struct raftdir_image image_from(const Raftdir__Client__ImageProgress *i)
{
    return (struct raftdir_image){
        .member = i ? i->member : 0,
        .index = i ? i->index : 0,
        .rows = i ? i->rows : 0,
        .rows_total = i ? i->rows_total : 0,
        .bytes = i ? i->bytes : 0,
        .phase = or_empty(i ? i->phase : NULL),
        .problem = or_empty(i ? i->problem : NULL),
    };
}

int raftdir_status(raftdir *d, const struct raftdir_node_status **status_r)
{
    *status_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    Raftdir__Client__Status body = RAFTDIR__CLIENT__STATUS__INIT;
    int level = d->level;
    d->level = RAFTDIR_LOCAL;
    rc = run(d, CALL_HEDGE, RAFTDIR__CLIENT__TO_NODE__BODY_STATUS, &body.base);
    d->level = level;
    if (rc < 0)
        return rc;
    if (d->kept->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_STATUS)
        return wrong_answer(d);
    const Raftdir__Client__StatusResult *s = d->kept->status;
    if (!d->incarnation)
        d->incarnation = s->incarnation; /* so that raftdir_barrier can name an index of it */
    if ((rc = members_from(d, s->members, s->n_members, s->leader)) < 0)
        return rc;
    d->status = (struct raftdir_node_status){
        .node_id = s->node_id,
        .node_name = or_empty(s->node_name),
        .state = or_empty(s->state),
        .role = or_empty(s->role),
        .software = or_empty(s->software),
        .failure = or_empty(s->failure),
        .cluster_id = s->cluster_id,
        .incarnation = s->incarnation,
        .term = s->term,
        .leader = s->leader,
        .last_index = s->last_index,
        .commit_index = s->commit_index,
        .applied_index = s->applied_index,
        .published_index = s->published_index,
        .mailboxes = s->mailboxes,
        .log_bytes = s->log_bytes,
        .state_bytes = s->state_bytes,
        .uptime_ms = s->uptime_ms,
        .feature_level = s->feature_level,
        .quorum = s->has_quorum && s->quorum,
        .has_digest = s->has_digest && s->digest.len == RAFTDIR_DIGEST_LEN,
        .members_n = s->n_members,
        .members = d->member_list,
        .log_first = s->log_first,
        .space = or_empty(s->space),
        .space_free = s->space_free,
        .local_readers = s->local_readers,
        .watchers = s->watchers,
        .scrub_age_s = s->has_scrub_age_s && s->scrub_age_s <= INT64_MAX ? (int64_t)s->scrub_age_s : -1,
        .fetching = image_from(s->image),
        .sending_n = s->n_sending < LIB_SENDING_MAX ? s->n_sending : LIB_SENDING_MAX,
        .sending = d->sending,
        .alarms_n = s->n_alarms,
        .alarms = (const char *const *)s->alarms,
        .mupdate_listening = !s->has_mupdate_listening ? -1 : s->mupdate_listening != 0,
        .mupdate_why_not = or_empty(s->mupdate_why_not),
        .mupdate_sessions = s->mupdate_sessions,
    };
    for (size_t i = 0; i < d->status.sending_n; i++)
        d->sending[i] = image_from(s->sending[i]);
    if (d->status.has_digest)
        memcpy(d->status.digest, s->digest.data, RAFTDIR_DIGEST_LEN);
    *status_r = &d->status;
    return 0;
}

int raftdir_node_info(raftdir *d, const struct raftdir_node_info **info_r)
{
    *info_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    /* Asked again, not taken from when the link was made: it changes when a node becomes part of a cluster. */
    Raftdir__Client__Hello hello = RAFTDIR__CLIENT__HELLO__INIT;
    hello.software = d->software;
    int level = d->level;
    d->level = RAFTDIR_LOCAL;
    rc = run(d, CALL_HEDGE, RAFTDIR__CLIENT__TO_NODE__BODY_HELLO, &hello.base);
    d->level = level;
    if (rc < 0)
        return rc;
    if (d->kept->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_HELLO)
        return wrong_answer(d);
    const Raftdir__Client__HelloResult *h = d->kept->hello;
    d->info = (struct raftdir_node_info){
        .node_name = or_empty(h->node_name),
        .cert_name = or_empty(h->cert_name),
        .peer_address = or_empty(h->peer_address),
        .node_id = h->node_id,
        .cluster_id = h->has_cluster_id ? h->cluster_id : 0,
        .feature_level = h->feature_level,
    };
    if (h->has_uuid && h->uuid.len == RAFTDIR_UUID_LEN)
        memcpy(d->info.uuid, h->uuid.data, RAFTDIR_UUID_LEN);
    *info_r = &d->info;
    return 0;
}

/* --- Membership ---------------------------------------------------------------------------------------------------------- */

static int member_run(struct raftdir *d, const Raftdir__Cluster__MemberRequest *r, unsigned flags, const struct raftdir_members **members_r)
{
    if (members_r)
        *members_r = NULL;
    int rc = run(d, flags, RAFTDIR__CLIENT__TO_NODE__BODY_MEMBER, &r->base);
    if (rc < 0)
        return rc;
    if (d->kept->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_MEMBER)
        return wrong_answer(d);
    const Raftdir__Cluster__MemberResult *m = d->kept->member;
    if ((rc = members_from(d, m->members, m->n_members, m->leader)) < 0)
        return rc;
    d->members = (struct raftdir_members){
        .cluster_id = m->cluster_id,
        .incarnation = m->incarnation,
        .term = m->term,
        .leader = m->leader,
        .n = m->n_members,
        .list = d->member_list,
    };
    if (members_r)
        *members_r = &d->members;
    return 0;
}

int raftdir_members(raftdir *d, const struct raftdir_members **members_r)
{
    Raftdir__Cluster__MemberRequest r = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    *members_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    r.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST;
    r.list = 1;
    return member_run(d, &r, CALL_HEDGE, members_r);
}

int raftdir_member_add(raftdir *d, const struct raftdir_member *m, uint64_t *id_r, const struct raftdir_members **members_r)
{
    Raftdir__Cluster__MemberRequest r = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    Raftdir__Cluster__Member add = RAFTDIR__CLUSTER__MEMBER__INIT;
    if (members_r)
        *members_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    if (!m || !m->address || !*m->address || !m->cert_name || !*m->cert_name)
        return err_set(&d->err, RAFTDIR_EINVAL, "a member needs an address and the name in its certificate");
    add.id = m->id;
    add.address = (char *)m->address;
    add.cert_name = (char *)m->cert_name;
    add.uuid.data = (uint8_t *)m->uuid;
    add.uuid.len = RAFTDIR_UUID_LEN;
    add.role = RAFTDIR__CLUSTER__ROLE__STANDBY;
    r.op_case = RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD;
    r.add = &add;
    /* Idempotent by uuid, so it may be sent again; not to two nodes at once. */
    rc = member_run(d, &r, 0, members_r);
    if (rc == 0 && id_r)
        *id_r = d->kept->member->member ? d->kept->member->member->id : 0;
    return rc;
}

static int member_change(struct raftdir *d, Raftdir__Cluster__MemberRequest__OpCase op, uint64_t id)
{
    Raftdir__Cluster__MemberRequest r = RAFTDIR__CLUSTER__MEMBER_REQUEST__INIT;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    r.op_case = op;
    r.promote = id; /* the union's members are all ids */
    return member_run(d, &r, CALL_ONCE, NULL);
}

int raftdir_member_promote(raftdir *d, uint64_t id)
{
    return member_change(d, RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE, id);
}

int raftdir_member_demote(raftdir *d, uint64_t id)
{
    return member_change(d, RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE, id);
}

int raftdir_member_remove(raftdir *d, uint64_t id)
{
    return member_change(d, RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE, id);
}

int raftdir_leader_transfer(raftdir *d, uint64_t id)
{
    return member_change(d, RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER, id);
}

/* --- Nodes that are not part of a cluster ------------------------------------------------------------------------------------- */

static int one_node(struct raftdir *d)
{
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    if (d->pinned < 0 && d->endpoints_n > 1)
        return err_set(&d->err, RAFTDIR_EINVAL, "several endpoints are known: say which node is meant");
    return 0;
}

static int run_pinned(struct raftdir *d, unsigned flags, unsigned field, const ProtobufCMessage *body)
{
    int pinned = d->pinned, level = d->level;
    if (pinned < 0)
        d->pinned = 0;
    d->level = RAFTDIR_LOCAL;
    int rc = run(d, flags, field, body);
    d->pinned = pinned;
    d->level = level;
    return rc;
}

int raftdir_bootstrap(raftdir *d)
{
    Raftdir__Client__Bootstrap body = RAFTDIR__CLIENT__BOOTSTRAP__INIT;
    int rc = one_node(d);
    return rc < 0 ? rc : run_pinned(d, CALL_ONCE, RAFTDIR__CLIENT__TO_NODE__BODY_BOOTSTRAP, &body.base);
}

int raftdir_adopt(raftdir *d, uint64_t node_id, const struct raftdir_members *members)
{
    int rc = one_node(d);
    if (rc < 0)
        return rc;
    if (!node_id || !members || !members->n || members->n > MEMBERS_MAX)
        return err_set(&d->err, RAFTDIR_EINVAL, "a node id and the members (1 to %d) are needed", MEMBERS_MAX);
    Raftdir__Client__Adopt a = RAFTDIR__CLIENT__ADOPT__INIT;
    Raftdir__Cluster__Member list[MEMBERS_MAX], *pointers[MEMBERS_MAX];
    for (size_t i = 0; i < members->n; i++) {
        const struct raftdir_member *m = &members->list[i];
        raftdir__cluster__member__init(&list[i]);
        list[i].id = m->id;
        list[i].address = (char *)or_empty(m->address);
        list[i].cert_name = (char *)or_empty(m->cert_name);
        list[i].uuid.data = (uint8_t *)m->uuid;
        list[i].uuid.len = RAFTDIR_UUID_LEN;
        list[i].role = (Raftdir__Cluster__Role)m->role;
        pointers[i] = &list[i];
    }
    a.cluster_id = members->cluster_id;
    a.incarnation = members->incarnation;
    a.node_id = node_id;
    a.n_members = members->n;
    a.members = pointers;
    return run_pinned(d, CALL_ONCE, RAFTDIR__CLIENT__TO_NODE__BODY_ADOPT, &a.base);
}

int raftdir_reset(raftdir *d, uint64_t cluster_id, uint64_t node_id)
{
    Raftdir__Client__Reset body = RAFTDIR__CLIENT__RESET__INIT;
    int rc = one_node(d);
    if (rc < 0)
        return rc;
    body.cluster_id = cluster_id;
    body.node_id = node_id;
    return run_pinned(d, CALL_ONCE, RAFTDIR__CLIENT__TO_NODE__BODY_RESET, &body.base);
}

int raftdir_compact(raftdir *d)
{
    Raftdir__Client__Compact body = RAFTDIR__CLIENT__COMPACT__INIT;
    int rc = one_node(d);
    return rc < 0 ? rc : run_pinned(d, CALL_ONCE, RAFTDIR__CLIENT__TO_NODE__BODY_COMPACT, &body.base);
}

/* --- Verification ----------------------------------------------------------------------------------------------------------------- */

struct verifying {
    void (*progress)(void *data, uint64_t done, uint64_t total);
    void *data;
    Raftdir__Client__FromNode *last;
};

static void verify_on_frame(struct call *c, Raftdir__Client__FromNode *m)
{
    struct verifying *v = c->data;
    if (m->body_case == RAFTDIR__CLIENT__FROM_NODE__BODY_VERIFY && v->progress)
        v->progress(v->data, m->verify->done, m->verify->total);
    if (v->last)
        raftdir__client__from_node__free_unpacked(v->last, NULL);
    v->last = m;
}

int raftdir_verify(raftdir *d, void (*progress)(void *data, uint64_t done, uint64_t total), void *data, const struct raftdir_verify_result **result_r)
{
    *result_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    Raftdir__Client__Verify body = RAFTDIR__CLIENT__VERIFY__INIT;
    struct verifying v = {progress, data, NULL};
    struct call *c = call_create(d, CALL_STREAM, RAFTDIR__CLIENT__TO_NODE__BODY_VERIFY);
    if (!c || call_body(c, &body.base) < 0) {
        call_destroy(&c);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    c->level = RAFTDIR_LOCAL;
    c->on_frame = verify_on_frame;
    c->data = &v;
    rc = call_run(d, &c);
    if (d->kept)
        raftdir__client__from_node__free_unpacked(d->kept, NULL);
    d->kept = v.last;
    if (rc < 0)
        return rc;
    if (!d->kept || d->kept->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_VERIFY)
        return wrong_answer(d);
    const Raftdir__Client__VerifyResult *r = d->kept->verify;
    struct raftdir_checkpoint *points = realloc(d->checkpoints, (r->n_checkpoints ? r->n_checkpoints : 1) * sizeof *points);
    if (!points)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    d->checkpoints = points;
    size_t n = 0;
    for (size_t i = 0; i < r->n_checkpoints; i++)
        if (r->checkpoints[i]->digest.len == RAFTDIR_DIGEST_LEN) {
            points[n].index = r->checkpoints[i]->index;
            memcpy(points[n++].digest, r->checkpoints[i]->digest.data, RAFTDIR_DIGEST_LEN);
        }
    d->verify = (struct raftdir_verify_result){
        .done = r->done,
        .total = r->total,
        .problems = r->problems,
        .index = d->kept->index,
        .problem_n = r->n_problem,
        .problem = (const char *const *)r->problem,
        .checkpoints_n = n,
        .checkpoints = points,
    };
    bool both = r->has_digest && r->has_digest_stored && r->digest.len == RAFTDIR_DIGEST_LEN && r->digest_stored.len == RAFTDIR_DIGEST_LEN;
    if (both) {
        memcpy(d->verify.digest, r->digest.data, RAFTDIR_DIGEST_LEN);
        memcpy(d->verify.digest_stored, r->digest_stored.data, RAFTDIR_DIGEST_LEN);
        d->verify.matches = !memcmp(d->verify.digest, d->verify.digest_stored, RAFTDIR_DIGEST_LEN);
    }
    *result_r = &d->verify;
    return 0;
}
