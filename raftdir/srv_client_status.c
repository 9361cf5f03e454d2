/* srv_client_status.c - Hello and Status: answered in every phase, unconfigured and failed nodes included. */
#include <stdlib.h>
#include <string.h>
#include "srv_client.h"
#include "srv_mupdate.h"

static const char *state_text(const struct shared_view *v)
{
    switch (v->phase) {
    case SHARED_UNCONFIGURED:
        return "unconfigured";
    case SHARED_FAILED:
        return "failed";
    case SHARED_REMOVED:
        return "removed";
    case SHARED_RUNNING:
    case SHARED_STOPPING:
        break;
    }
    return v->status.state == NODE_LEADER ? "leader" : v->status.state == NODE_CANDIDATE ? "candidate" : "follower";
}

static const char *role_text(int role)
{
    return role == RAFTDIR__CLUSTER__ROLE__VOTER ? "voter" : role == RAFTDIR__CLUSTER__ROLE__STANDBY ? "standby" : role == RAFTDIR__CLUSTER__ROLE__SPARE ? "spare" : "none";
}

void srv_hello(struct request *r)
{
    struct client *c = r->client;
    struct daemon *d = r->service->d;
    struct shared_view view;
    struct shared_details *details = mem_alloc(sizeof *details);
    char *endpoints[MEMBERS_MAX], *sites[MEMBERS_MAX];
    shared_view_get(&d->shared, &view);
    shared_details_get(&d->shared, details);
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    Raftdir__Client__HelloResult h = RAFTDIR__CLIENT__HELLO_RESULT__INIT;
    h.node_name = d->config->node_name;
    h.identity = c->access.identity;
    h.role = (char *)(uintptr_t)access_role_name(c->access.role);
    h.server = *c->access.server ? c->access.server : NULL;
    h.endpoints = endpoints;
    h.endpoint_sites = sites;
    for (size_t i = 0; i < details->members_n; i++)
        if (*details->endpoints[i]) {
            endpoints[h.n_endpoints++] = details->endpoints[i];
            sites[h.n_endpoint_sites++] = details->sites[i];
        }
    if (*d->config->site)
        h.site = d->config->site;
    h.has_uuid = true;
    h.uuid.data = view.uuid;
    h.uuid.len = NODE_UUID_LEN;
    h.cert_name = d->cert_name;
    h.peer_address = d->config->peer_advertise;
    if (view.cluster_id) {
        h.has_node_id = h.has_cluster_id = h.has_feature_level = true;
        h.node_id = view.node_id;
        h.cluster_id = view.cluster_id;
        h.feature_level = view.status.feature_level;
    }
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_HELLO;
    f.hello = &h;
    srv_answer(r, &f);
    free(details);
}

static void members_fill(Raftdir__Client__StatusResult *s, const struct shared_details *details, uint64_t leader, Raftdir__Cluster__Member *members,
                         Raftdir__Cluster__Member **pointers)
{
    for (size_t i = 0; i < details->members_n; i++) {
        const struct node_peer *p = &details->members[i];
        Raftdir__Cluster__Member *m = &members[i];
        raftdir__cluster__member__init(m);
        m->id = p->id;
        m->address = (char *)(uintptr_t)p->host_port;
        m->cert_name = (char *)(uintptr_t)p->cert_name;
        m->uuid.data = (uint8_t *)(uintptr_t)p->uuid;
        m->uuid.len = NODE_UUID_LEN;
        m->role = (Raftdir__Cluster__Role)p->role;
        m->has_match_index = p->match_index != 0;
        m->match_index = p->match_index;
        m->has_last_contact_ms = p->last_contact_ms != UINT64_MAX;
        m->last_contact_ms = p->last_contact_ms;
        m->has_leader = m->leader = p->id == leader;
        pointers[i] = m;
    }
    s->members = pointers;
    s->n_members = details->members_n;
}

static Raftdir__Client__ImageProgress *image_fill(Raftdir__Client__ImageProgress *p, const struct shared_image *i)
{
    raftdir__client__image_progress__init(p);
    p->has_member = i->member != 0;
    p->member = i->member;
    p->has_index = p->has_rows = p->has_rows_total = p->has_bytes = true;
    p->index = i->index;
    p->rows = i->rows;
    p->rows_total = i->rows_total;
    p->bytes = i->bytes;
    p->phase = (char *)(uintptr_t)i->phase;
    if (*i->problem)
        p->problem = (char *)(uintptr_t)i->problem;
    return p;
}

/* What the state says of itself; nothing where there is none to trust. */
static void state_fill(struct request *r, Raftdir__Client__FromNode *f, Raftdir__Client__StatusResult *s, struct store_meta *meta)
{
    struct err err = {0};
    if (srv_txn(r->service, meta, &err) == 0) {
        srv_txn_done(r->service);
        s->has_state_bytes = s->has_mailboxes = s->has_digest = true;
        s->state_bytes = store_used_len(r->service->store);
        s->published_index = meta->applied_index; /* of the digest beside it */
        s->mailboxes = meta->mailboxes;
        s->digest.data = meta->digest;
        s->digest.len = sizeof meta->digest;
        f->has_index = true;
        f->index = meta->applied_index;
    }
}

/* Space, images, alarms. */
struct care {
    Raftdir__Client__ImageProgress fetching, sending[IMAGE_SENDS_MAX], *sending_list[IMAGE_SENDS_MAX];
    char *alarms[SHARED_ALARMS];
};

static void care_fill(struct care *care, Raftdir__Client__StatusResult *s, const struct shared_view *view, const struct shared_details *details)
{
    s->has_space_free = details->space_free != 0;
    s->space_free = details->space_free;
    if (view->status.space != NODE_SPACE_OK)
        s->space = (char *)(uintptr_t)(view->status.space == NODE_SPACE_LOW ? "low" : "none");
    if (*details->fetching.phase)
        s->image = image_fill(&care->fetching, &details->fetching);
    for (size_t i = 0; i < IMAGE_SENDS_MAX; i++)
        if (*details->sending[i].phase)
            care->sending_list[s->n_sending++] = image_fill(&care->sending[i], &details->sending[i]);
    s->sending = care->sending_list;
    for (size_t i = 0; i < SHARED_ALARMS; i++)
        if (*details->alarms[i])
            care->alarms[s->n_alarms++] = (char *)(uintptr_t)details->alarms[i];
    s->alarms = care->alarms;
    s->has_local_readers = view->cluster_id != 0;
    s->local_readers = details->local_readers;
    s->has_scrub_age_s = details->scrubbed_ms != 0;
    s->scrub_age_s = (shared_now_ms() - details->scrubbed_ms) / 1000;
}

void srv_status(struct request *r)
{
    struct daemon *d = r->service->d;
    struct shared_view view;
    struct shared_details *details = mem_alloc(sizeof *details);
    Raftdir__Cluster__Member *members = mem_calloc(MEMBERS_MAX, sizeof *members);
    Raftdir__Cluster__Member *pointers[MEMBERS_MAX];
    struct store_meta meta;
    struct care care;
    shared_view_get(&d->shared, &view);
    shared_details_get(&d->shared, details);
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    Raftdir__Client__StatusResult s = RAFTDIR__CLIENT__STATUS_RESULT__INIT;
    s.node_name = d->config->node_name;
    s.state = (char *)(uintptr_t)state_text(&view);
    s.software = (char *)(uintptr_t)"raftdird " RAFTDIR_VERSION;
    s.has_watchers = true;
    s.watchers = atomic_load(&d->watchers);
    s.has_uptime_ms = true;
    s.uptime_ms = shared_now_ms() - d->started_ms;
    char why_not[sizeof d->mupdate_why_not];
    s.has_mupdate_listening = s.has_mupdate_sessions = mupdate_listen_wanted(d->config);
    s.mupdate_listening = mupdate_listen_state(d, why_not, sizeof why_not);
    s.mupdate_sessions = atomic_load(&d->mupdates);
    if (s.has_mupdate_listening && !s.mupdate_listening)
        s.mupdate_why_not = why_not;
    if (view.phase == SHARED_FAILED || view.phase == SHARED_REMOVED)
        s.failure = details->failure;
    if (view.cluster_id) {
        s.has_node_id = s.has_cluster_id = s.has_incarnation = s.has_term = s.has_leader = s.has_last_index = s.has_commit_index = s.has_applied_index =
            s.has_published_index = s.has_feature_level = s.has_log_bytes = s.has_log_first = s.has_quorum = true;
        s.node_id = view.node_id;
        s.cluster_id = view.cluster_id;
        s.incarnation = view.incarnation;
        s.role = (char *)(uintptr_t)role_text(view.status.role);
        s.term = view.status.term;
        s.leader = view.status.leader;
        s.last_index = view.status.last_index;
        s.commit_index = view.status.commit_index;
        s.applied_index = view.status.applied_index;
        s.published_index = atomic_load(&d->shared.published);
        s.feature_level = view.status.feature_level;
        s.quorum = view.status.quorum;
        s.log_bytes = atomic_load(&d->shared.log_len);
        s.log_first = view.status.log_first;
        state_fill(r, &f, &s, &meta);
    }
    care_fill(&care, &s, &view, details);
    members_fill(&s, details, view.status.leader, members, pointers);
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_STATUS;
    f.status = &s;
    srv_answer(r, &f);
    free(members);
    free(details);
}
