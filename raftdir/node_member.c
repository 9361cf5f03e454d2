/* node_member.c - membership, one change at a time, on whichever node the operator asks (the leader does it).
 *
 * add: a standby with a new id (never one that was used before; the same data directory again: the same member). promote: catches up, then votes.
 * remove: never the leader itself, which first hands leadership over; never when the voters that are left and reachable would be no quorum.
 * demote: a voter becomes a standby, by the same rules. transfer: leadership.
 * Each is answered when its CHANGE is applied on the leader; what the core or the guards refuse for the moment is tried again until the deadline. All but `transfer` may be
 * repeated without harm, so they are sent again to a new leader. */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "node_internal.h"

#define MEMBER_RESEND_MS 1000
#define MEMBER_QUORUM_WAIT_MS 2000 /* for voters that haven't answered, before a change is refused that would leave no quorum */

typedef Raftdir__Cluster__MemberRequest request_t;
typedef Raftdir__Cluster__MemberResult result_t;

static request_t *request_copy(const request_t *q)
{
    size_t len = raftdir__cluster__member_request__get_packed_size(q);
    uint8_t *buf = malloc(len ? len : 1);
    if (!buf)
        return NULL;
    raftdir__cluster__member_request__pack(q, buf);
    request_t *copy = raftdir__cluster__member_request__unpack(NULL, len, buf);
    free(buf);
    return copy;
}

static void member_tell(struct node *n, struct member *m, const result_t *result)
{
    if (m->local) {
        n->io.member_done(n->io.data, m->local, result);
    } else {
        Raftdir__Peer__Frame f;
        Raftdir__Peer__MemberForwardResult body = RAFTDIR__PEER__MEMBER_FORWARD_RESULT__INIT;
        node_frame_init(n, &f, m->peer, RAFTDIR__PEER__FRAME__BODY_MEMBER_FORWARD_RESULT);
        f.member_forward_result = &body;
        body.corr = m->corr;
        body.result = (result_t *)(uintptr_t)result;
        node_frame_send(n, &f);
    }
}

static void member_free(struct node *n, struct member *m)
{
    DL_DELETE(n->members, m);
    if (m->request)
        raftdir__cluster__member_request__free_unpacked(m->request, NULL);
    free(m->result);
    free(m);
}

/* A result is kept packed until node_flush tells it: never within the call that began the operation. */
static void member_end(struct node *n, struct member *m, result_t *result)
{
    result->has_cluster_id = result->has_incarnation = result->has_term = result->has_leader = result->has_index = true;
    result->cluster_id = n->options.cluster_id;
    result->incarnation = n->options.incarnation;
    result->term = n->term;
    result->leader = n->leader;
    result->index = n->meta.applied_index;
    m->result_len = raftdir__cluster__member_result__get_packed_size(result);
    m->result = malloc(m->result_len);
    if (!m->result) {
        node_fail(n, RAFTDIR_ENOMEM, "no memory for a result");
        return;
    }
    raftdir__cluster__member_result__pack(result, m->result);
    m->state = MEMBER_ENDED;
}

static void member_end_code(struct node *n, struct member *m, int code, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void member_end_code(struct node *n, struct member *m, int code, const char *fmt, ...)
{
    result_t r = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
    char text[ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r.code = code;
    r.message = text;
    member_end(n, m, &r);
}

/* --- What members look like in answers ----------------------------------------------------------------------------------- */

struct member_view {
    struct node_peer peer;
    Raftdir__Cluster__Member pb;
};

static void view_fill(struct node *n, struct member_view *v)
{
    raftdir__cluster__member__init(&v->pb);
    v->pb.id = v->peer.id;
    v->pb.address = v->peer.host_port;
    v->pb.cert_name = v->peer.cert_name;
    v->pb.uuid.data = v->peer.uuid;
    v->pb.uuid.len = NODE_UUID_LEN;
    v->pb.role = (Raftdir__Cluster__Role)v->peer.role;
    v->pb.has_match_index = v->pb.has_leader = true;
    v->pb.match_index = v->peer.match_index;
    v->pb.leader = v->peer.id == n->leader;
    v->pb.has_last_contact_ms = v->peer.last_contact_ms != UINT64_MAX;
    v->pb.last_contact_ms = v->peer.last_contact_ms;
}

static void member_end_list(struct node *n, struct member *m, uint64_t about)
{
    result_t r = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
    struct node_peer peers[MEMBERS_MAX];
    struct member_view views[MEMBERS_MAX];
    Raftdir__Cluster__Member *list[MEMBERS_MAX];
    size_t count = node_members(n, n->now, peers, MEMBERS_MAX);
    for (size_t i = 0; i < count; i++) {
        views[i].peer = peers[i];
        view_fill(n, &views[i]);
        list[i] = &views[i].pb;
        if (peers[i].id == about)
            r.member = list[i];
    }
    r.members = list;
    r.n_members = count;
    member_end(n, m, &r);
}

/* --- The changes ---------------------------------------------------------------------------------------------------------------- */

static unsigned voters_count(const struct node *n)
{
    unsigned voters = 0;
    for (unsigned i = 0; i < n->raft->configuration.n; i++)
        voters += n->raft->configuration.servers[i].role == RAFT_VOTER;
    return voters;
}

/* Heard of lately, and since the operator asked: one that has just died was heard of lately, too. */
static bool reachable(struct node *n, const struct member *m, uint64_t id)
{
    if (id == n->options.id)
        return true;
    const struct node_peer_state *p = node_peer_state(n, id);
    return p && p->last_frame_ms > m->began_ms && n->now - p->last_frame_ms <= 2 * (uint64_t)n->options.election_timeout_ms;
}

/* The present configuration with one server added, given another role, or left out (role -1). */
static int propose(struct node *n, struct member *m, uint64_t id, const char *address, int role)
{
    const struct raft_configuration *old = &n->raft->configuration;
    struct raft_configuration c;
    int rc = 0;
    bool found = false;
    raft_configuration_init(&c);
    for (unsigned i = 0; i < old->n && !rc; i++) {
        int r = old->servers[i].role;
        if (old->servers[i].id == id) {
            found = true;
            if (role < 0)
                continue;
            r = role;
        }
        rc = raft_configuration_add(&c, old->servers[i].id, old->servers[i].address, r);
    }
    if (!rc && !found && role >= 0)
        rc = raft_configuration_add(&c, id, address, role);
    if (rc) {
        raft_configuration_close(&c);
        member_end_code(n, m, rc == RAFT_DUPLICATEADDRESS ? RAFTDIR_EEXIST : err_from_raft(rc), "%s", raft_strerror(rc));
        return -1;
    }
    rc = guard_change(n->guard, n->now, &c, &n->err);
    raft_configuration_close(&c);
    if (rc == 0) {
        m->state = MEMBER_APPLYING;
        m->maybe = true;
        m->busy_code = 0;
        m->id = id;
        m->index = n->log_first + n->log_n - 1;
        m->term = n->term;
        node_settle(n);
        return 0;
    }
    if (rc == RAFTDIR_EBUSY || rc == RAFTDIR_ENOTLEADER) { /* again at the next turn */
        m->busy_code = rc;
        snprintf(m->busy_text, sizeof m->busy_text, "%s", n->err.text);
        return -1;
    }
    member_end_code(n, m, rc, "%s", n->err.text);
    return -1;
}

static void change_add(struct node *n, struct member *m)
{
    const Raftdir__Cluster__Member *add = m->request->add;
    struct node_peer peers[MEMBERS_MAX];
    char address[NODE_ADDRESS_SIZE];
    size_t count = node_members(n, n->now, peers, MEMBERS_MAX);
    uint64_t id = n->meta.member_id_max;

    if (add->uuid.len != NODE_UUID_LEN) {
        member_end_code(n, m, RAFTDIR_EINVAL, "the uuid of a data directory has %d bytes", NODE_UUID_LEN);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (memcmp(peers[i].uuid, add->uuid.data, NODE_UUID_LEN) == 0) {
            if (strcmp(peers[i].host_port, add->address) || strcmp(peers[i].cert_name, add->cert_name))
                member_end_code(n, m, RAFTDIR_EEXIST, "this data directory is member %llu already, as %s with certificate %s: remove that first",
                                (unsigned long long)peers[i].id, peers[i].host_port, peers[i].cert_name);
            else
                member_end_list(n, m, peers[i].id); /* asked before */
            return;
        }
        if (strcmp(peers[i].host_port, add->address) == 0) {
            member_end_code(n, m, RAFTDIR_EEXIST, "%s is the address of member %llu, which has another data directory: remove that member first", add->address,
                            (unsigned long long)peers[i].id);
            return;
        }
        if (peers[i].id > id)
            id = peers[i].id;
    }
    if (count >= MEMBERS_MAX) {
        member_end_code(n, m, RAFTDIR_ETOOBIG, "a cluster has at most %d members", MEMBERS_MAX);
        return;
    }
    if (node_address_format(add->address, add->cert_name, add->uuid.data, address, sizeof address, &n->err)) {
        member_end_code(n, m, n->err.code, "%s", n->err.text);
        return;
    }
    propose(n, m, id + 1, address, RAFT_STANDBY);
}

static void change_promote(struct node *n, struct member *m)
{
    uint64_t id = m->request->promote;
    const struct raft_server *s = node_server(n, id);
    int status = 0;
    m->id = id;
    if (!s) {
        member_end_code(n, m, RAFTDIR_EINVAL, "there is no member %llu: see `raftdirctl member list`", (unsigned long long)id);
    } else if (s->role == RAFT_VOTER) {
        member_end_list(n, m, id);
    } else if (voters_count(n) >= VOTERS_MAX) {
        member_end_code(n, m, RAFTDIR_ETOOBIG, "a cluster has at most %d voters: remove one first", VOTERS_MAX);
    } else if (m->state == MEMBER_TODO) {
        int rc = guard_catch_up(n->guard, n->now, id, &n->err);
        if (rc == 0)
            m->state = MEMBER_CATCHING_UP;
        m->busy_code = rc ? rc : RAFTDIR_ETIMEDOUT;
        snprintf(m->busy_text, sizeof m->busy_text, "%s", rc ? n->err.text : "the member has not caught up with the log: is it running and connected?");
        node_settle(n);
    } else if (raft_catch_up(n->raft, id, &status) || status == RAFT_CATCH_UP_ABORTED || status == RAFT_CATCH_UP_NONE) {
        m->state = MEMBER_TODO; /* too slow this time */
        m->since_ms = n->now;
    } else if (status == RAFT_CATCH_UP_FINISHED) {
        propose(n, m, id, NULL, RAFT_VOTER);
    }
}

/* May this voter stop voting? Not the last one, not when the others would be no quorum; and the leader hands over first (defect 10 of the core): the new
 * one gets the request again. false: not now, or never; the caller has nothing more to do. */
static bool voter_may_leave(struct node *n, struct member *m, uint64_t id)
{
    unsigned left = 0, alive = 0;
    for (unsigned i = 0; i < n->raft->configuration.n; i++) {
        const struct raft_server *other = &n->raft->configuration.servers[i];
        if (other->role != RAFT_VOTER || other->id == id)
            continue;
        left++;
        alive += reachable(n, m, other->id);
    }
    if (!left) {
        member_end_code(n, m, RAFTDIR_EINVAL, "member %llu is the last voter: promote another one first", (unsigned long long)id);
        return false;
    }
    if (alive <= left / 2) {
        m->busy_code = RAFTDIR_ENOQUORUM;
        snprintf(m->busy_text, sizeof m->busy_text, "without member %llu, %u voters are left and only %u can be reached: no quorum; bring them back first",
                 (unsigned long long)id, left, alive);
        return false; /* they may answer before MEMBER_QUORUM_WAIT_MS have passed */
    }
    if (id != n->options.id)
        return true;
    if (guard_transfer(n->guard, n->now, 0, &n->err) == 0)
        m->since_ms = n->now;
    m->busy_code = RAFTDIR_EBUSY;
    snprintf(m->busy_text, sizeof m->busy_text, "leadership could not be handed to another voter");
    node_settle(n);
    return false;
}

static void change_remove(struct node *n, struct member *m)
{
    uint64_t id = m->request->remove;
    const struct raft_server *s = node_server(n, id);
    m->id = id;
    if (!s && (id == 0 || id > n->meta.member_id_max))
        member_end_code(n, m, RAFTDIR_EINVAL, "there has never been a member %llu: see `raftdirctl member list`", (unsigned long long)id);
    else if (!s)
        member_end_list(n, m, 0); /* asked before: it is gone */
    else if (s->role != RAFT_VOTER || voter_may_leave(n, m, id))
        propose(n, m, id, NULL, -1);
}

static void change_demote(struct node *n, struct member *m)
{
    uint64_t id = m->request->demote;
    const struct raft_server *s = node_server(n, id);
    m->id = id;
    if (!s)
        member_end_code(n, m, RAFTDIR_EINVAL, "there is no member %llu: see `raftdirctl member list`", (unsigned long long)id);
    else if (s->role != RAFT_VOTER)
        member_end_list(n, m, id); /* asked before */
    else if (voter_may_leave(n, m, id))
        propose(n, m, id, NULL, RAFT_STANDBY);
}

static void change_transfer(struct node *n, struct member *m)
{
    uint64_t id = m->request->transfer;
    if (id == n->options.id) {
        member_end_list(n, m, id);
        return;
    }
    const struct raft_server *s = id ? node_server(n, id) : NULL;
    if (id && (!s || s->role != RAFT_VOTER)) {
        member_end_code(n, m, RAFTDIR_EINVAL, "member %llu is no voter: see `raftdirctl member list`", (unsigned long long)id);
        return;
    }
    if (voters_count(n) < 2) {
        member_end_code(n, m, RAFTDIR_EINVAL, "there is no other voter to lead");
        return;
    }
    if (id && !reachable(n, m, id)) {
        m->busy_code = RAFTDIR_EUNAVAIL;
        snprintf(m->busy_text, sizeof m->busy_text, "member %llu can't be reached", (unsigned long long)id);
        return;
    }
    int rc = guard_transfer(n->guard, n->now, id, &n->err);
    if (rc == 0) {
        m->state = MEMBER_TRANSFERRING;
        m->since_ms = n->now;
        m->sent_term = n->term;
        m->id = id;
    }
    m->busy_code = rc ? rc : RAFTDIR_ETIMEDOUT;
    snprintf(m->busy_text, sizeof m->busy_text, "%s", rc ? n->err.text : "the other voter did not take over");
    node_settle(n);
}

static void member_forward(struct node *n, struct member *m)
{
    Raftdir__Peer__Frame f;
    Raftdir__Peer__MemberForward body = RAFTDIR__PEER__MEMBER_FORWARD__INIT;
    node_frame_init(n, &f, n->leader, RAFTDIR__PEER__FRAME__BODY_MEMBER_FORWARD);
    f.member_forward = &body;
    body.corr = m->corr;
    body.request = m->request;
    m->state = MEMBER_FORWARDED;
    if (!m->asked_leader)
        m->asked_leader = n->leader;
    m->maybe = m->request->op_case != RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST;
    m->sent_ms = n->now;
    m->sent_term = n->term;
    m->busy_code = RAFTDIR_ETIMEDOUT;
    snprintf(m->busy_text, sizeof m->busy_text, "the leader, member %llu, has not answered", (unsigned long long)n->leader);
    node_frame_send(n, &f);
}

/* Answers are about what is committed: the newest configuration may still be rolled back, and with it the id that was given or the removal that lets an
 * operator wipe a machine. */
static bool change_in_progress(struct node *n, struct member *m)
{
    uint64_t index = n->raft->configuration_uncommitted_index;
    if (!index)
        return false;
    m->busy_code = RAFTDIR_EBUSY;
    snprintf(m->busy_text, sizeof m->busy_text, "another change is in progress (entry %llu is not applied yet)", (unsigned long long)index);
    return true;
}

static void member_step(struct node *n, struct member *m)
{
    bool leads = n->state == RAFT_LEADER;
    if (m->state == MEMBER_ENDED)
        return;
    if (n->now >= m->deadline_ms && m->maybe) {
        member_end_code(n, m, RAFTDIR_EUNCERTAIN, "it may have happened, or may yet%s%s: see `raftdirctl member list`",
                        m->busy_code ? "; last: " : "", m->busy_code ? m->busy_text : "");
        return;
    }
    if (n->now >= m->deadline_ms) {
        member_end_code(n, m, m->busy_code ? m->busy_code : RAFTDIR_ENOQUORUM, "%s", m->busy_code ? m->busy_text : "no leader: the cluster has no quorum");
        return;
    }
    if (leads && m->state == MEMBER_TODO && !m->maybe && m->busy_code == RAFTDIR_ENOQUORUM && n->now - m->began_ms >= MEMBER_QUORUM_WAIT_MS) {
        member_end_code(n, m, m->busy_code, "%s", m->busy_text); /* rather than at a deadline that the node that forwarded it doesn't wait for */
        return;
    }
    if (m->request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST && !leads && !n->leader) {
        if (n->now - m->since_ms >= NO_QUORUM_AFTER_MS)
            member_end_code(n, m, RAFTDIR_ENOQUORUM, "no leader: the cluster has no quorum");
        return;
    }
    /* The old leader forgets who asked when it hands over; asking the new one again would hand leadership back. */
    if (m->request->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER && m->asked_leader && n->leader && n->leader != m->asked_leader &&
        (m->request->transfer == 0 || m->request->transfer == n->leader)) {
        member_end_list(n, m, n->leader);
        return;
    }
    if (!leads) {
        if (!m->local) {
            member_free(n, m); /* its node asks the new leader */
            return;
        }
        if (m->state == MEMBER_TRANSFERRING && n->leader && n->leader != n->options.id) {
            member_end_list(n, m, n->leader);
            return;
        }
        if (m->state == MEMBER_TRANSFERRING)
            return;
        if (n->leader && (m->state != MEMBER_FORWARDED || m->sent_term != n->term || n->now - m->sent_ms >= MEMBER_RESEND_MS))
            member_forward(n, m);
        return;
    }
    if (m->state == MEMBER_FORWARDED)
        m->state = MEMBER_TODO;
    if (m->state == MEMBER_TRANSFERRING) {
        if (n->term != m->sent_term || !raft_transferee(n->raft))
            m->state = MEMBER_TODO; /* it came to nothing; try again */
        return;
    }
    if (m->state == MEMBER_APPLYING) {
        if (m->term != n->term)
            m->state = MEMBER_TODO;
        else if (n->meta.applied_index >= m->index)
            member_end_list(n, m, m->id);
        if (m->state != MEMBER_TODO)
            return;
    }
    switch (m->request->op_case) {
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST:
        member_end_list(n, m, 0);
        break;
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_ADD:
        if (!change_in_progress(n, m))
            change_add(n, m);
        break;
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_PROMOTE:
        if (!change_in_progress(n, m))
            change_promote(n, m);
        break;
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_REMOVE:
        if (!raft_transferee(n->raft) && !change_in_progress(n, m))
            change_remove(n, m);
        break;
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_DEMOTE:
        if (!raft_transferee(n->raft) && !change_in_progress(n, m))
            change_demote(n, m);
        break;
    case RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_TRANSFER:
        change_transfer(n, m);
        break;
    default:
        member_end_code(n, m, RAFTDIR_EUNSUPPORTED, "unknown membership operation: the leader may run an older version");
    }
}

void node_members_progress(struct node *n)
{
    struct member *m, *tmp;
    DL_FOREACH_SAFE(n->members, m, tmp) {
        if (n->failed && m->state != MEMBER_ENDED)
            member_end_code(n, m, RAFTDIR_EFAILED, "this node has failed");
        else
            member_step(n, m);
    }
}

/* Results are told at the end of a burst. */
void node_members_flush(struct node *n)
{
    struct member *m, *tmp;
    node_members_progress(n);
    DL_FOREACH_SAFE(n->members, m, tmp) {
        if (m->state != MEMBER_ENDED)
            continue;
        result_t *result = raftdir__cluster__member_result__unpack(NULL, m->result_len, m->result);
        if (result) {
            member_tell(n, m, result);
            raftdir__cluster__member_result__free_unpacked(result, NULL);
            member_free(n, m);
        }
    }
}

static struct member *member_create(struct node *n, const request_t *request, uint64_t deadline_ms)
{
    struct member *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->request = request_copy(request);
    if (!m->request) {
        free(m);
        return NULL;
    }
    m->state = MEMBER_TODO;
    m->deadline_ms = deadline_ms;
    m->began_ms = m->since_ms = n->now;
    DL_APPEND(n->members, m);
    return m;
}

void node_member_op(struct node *n, uint64_t now, struct node_member_op *local)
{
    if (now > n->now)
        n->now = now;
    struct member *m = member_create(n, local->request, local->deadline_ms);
    local->own = m;
    if (!m) {
        result_t r = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
        r.code = RAFTDIR_ENOMEM;
        node_fail(n, RAFTDIR_ENOMEM, "no memory for a membership change");
        n->io.member_done(n->io.data, local, &r);
        return;
    }
    m->local = local;
    m->corr = n->corr_next++;
}

void node_members_forward(struct node *n, uint64_t from, const Raftdir__Peer__MemberForward *f)
{
    struct member *m;
    if (n->state != RAFT_LEADER)
        return; /* it is sent again, here or to another leader */
    DL_FOREACH(n->members, m)
        if (!m->local && m->peer == from && m->corr == f->corr)
            return;
    m = member_create(n, f->request, n->now + MEMBER_CHANGE_TIMEOUT_MS);
    if (!m)
        return;
    m->peer = from;
    m->corr = f->corr;
}

void node_members_forward_result(struct node *n, uint64_t from, const Raftdir__Peer__MemberForwardResult *r)
{
    struct member *m, *tmp;
    (void)from;
    DL_FOREACH_SAFE(n->members, m, tmp) {
        if (!m->local || m->corr != r->corr || m->state == MEMBER_ENDED)
            continue;
        member_tell(n, m, r->result);
        member_free(n, m);
        return;
    }
}

void node_members_leader_changed(struct node *n)
{
    struct member *m;
    DL_FOREACH(n->members, m)
        if (m->state == MEMBER_CATCHING_UP || m->state == MEMBER_APPLYING)
            m->state = MEMBER_TODO; /* asked again of whoever leads; all but a transfer may be repeated */
}

void node_members_close(struct node *n)
{
    struct member *m, *tmp;
    DL_FOREACH_SAFE(n->members, m, tmp) {
        result_t r = RAFTDIR__CLUSTER__MEMBER_RESULT__INIT;
        r.code = RAFTDIR_ECANCELED;
        if (m->local)
            n->io.member_done(n->io.data, m->local, &r);
        member_free(n, m);
    }
}
