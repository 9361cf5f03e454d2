/* node_frame.c - the driver's frames to and from peers (proto/peer.proto).
 *
 * Encoding fills AppendEntries from the log at the moment of sending, and splits one that would be larger than APPEND_LEN_MAX into
 * consecutive ones: to the receiver they are what a leader might have sent anyway, each with its own answer.
 * Decoding trusts nothing: a frame that doesn't parse, names an unknown entry type or carries a configuration that doesn't decode is counted and
 * dropped before the core sees it. */
#include <stdlib.h>
#include <string.h>
#include "node_internal.h"

void node_frame_init(struct node *n, Raftdir__Peer__Frame *f, uint64_t to, Raftdir__Peer__Frame__BodyCase body)
{
    raftdir__peer__frame__init(f);
    f->version = PEER_FRAME_VERSION;
    f->cluster_id = n->options.cluster_id;
    f->incarnation = n->options.incarnation;
    f->from = n->options.id;
    f->to = to;
    f->body_case = body;
}

void node_frame_send(struct node *n, const Raftdir__Peer__Frame *f)
{
    size_t len = raftdir__peer__frame__get_packed_size(f);
    if (len > n->frame_size) {
        size_t size = len + len / 2;
        uint8_t *frame = realloc(n->frame, size);
        if (!frame) {
            n->frames_dropped++; /* a frame may always be lost */
            return;
        }
        n->frame = frame;
        n->frame_size = size;
    }
    raftdir__peer__frame__pack(f, n->frame);
    n->io.send(n->io.data, f->to, n->frame, len);
}

static void send_append(struct node *n, uint64_t to, const struct raft_append_entries *a)
{
    Raftdir__Peer__Frame f;
    Raftdir__Peer__AppendEntries body = RAFTDIR__PEER__APPEND_ENTRIES__INIT;
    uint64_t prev = a->prev_log_index, prev_term = a->prev_log_term;
    unsigned left = a->n_entries;
    Raftdir__Peer__LogEntry *items = NULL;
    Raftdir__Peer__LogEntry **list = NULL;
    struct node_peer_state *peer = node_peer_state(n, to);
    /* Sent before and not acknowledged (the core probes once a heartbeat): one frame is enough to see whether it is taken now. */
    bool again = peer && left && peer->append_prev == prev;

    node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES);
    f.append_entries = &body;
    body.term = a->term;
    body.leader_commit = a->leader_commit;
    if (left) {
        items = malloc(left * sizeof *items);
        list = malloc(left * sizeof(Raftdir__Peer__LogEntry *));
        if (!items || !list) {
            n->frames_dropped++;
            goto free_lists;
        }
    }
    do {
        unsigned count = 0;
        size_t bytes = 0;
        uint64_t last_term = prev_term;
        while (count < left) {
            struct entry *e = node_entry(n, prev + 1 + count);
            if (!e) { /* can't happen: the core keeps its trail in step with this log */
                node_fail(n, RAFTDIR_ECORRUPT, "the core asked for an entry that the log doesn't hold");
                goto free_lists;
            }
            if (count && bytes + e->len > APPEND_LEN_MAX)
                break;
            raftdir__peer__log_entry__init(&items[count]);
            items[count].term = e->term;
            items[count].type = e->type;
            items[count].data.data = e->data;
            items[count].data.len = e->len;
            list[count] = &items[count];
            bytes += e->len;
            last_term = e->term;
            count++;
        }
        body.prev_log_index = prev;
        body.prev_log_term = prev_term;
        body.entries = list;
        body.n_entries = count;
        node_frame_send(n, &f);
        prev += count;
        prev_term = last_term;
        left -= count;
    } while (left && !again);
    if (peer && a->n_entries)
        peer->append_prev = a->prev_log_index;
free_lists:
    free(items);
    free(list);
}

/* An AppendEntries without entries, as a heartbeat is (dissertation section 3.5), from outside of the core. The commit index in it is never beyond what the member is
 * known to have as we have it: whatever else is in its log, it may count that as committed. One that lacks entries hears it with them. */
void node_frames_tell_commit(struct node *n)
{
    const struct raft_configuration *c = &n->raft->configuration;
    if (n->state != RAFT_LEADER)
        return;
    for (unsigned i = 0; i < c->n; i++) {
        struct node_peer_state *p = node_peer_state(n, c->servers[i].id);
        struct raft_append_entries a = {.term = n->term, .leader_commit = n->commit};
        raft_index match;
        if (!p || c->servers[i].id == n->options.id || raft_match_index(n->raft, c->servers[i].id, &match) || match != node_last_index(n) || match < n->commit)
            continue;
        if (p->commit_term == n->term && p->commit_sent >= n->commit)
            continue;
        const struct entry *e = node_entry(n, match);
        if (!e)
            continue; /* idle, and cut: it was told long ago */
        p->commit_term = n->term;
        p->commit_sent = n->commit;
        a.prev_log_index = match;
        a.prev_log_term = e->term;
        send_append(n, p->id, &a);
    }
}

void node_frame_send_raft(struct node *n, const struct raft_message *m)
{
    Raftdir__Peer__Frame f;
    uint64_t to = m->server_id;

    switch (m->type) {
    case RAFT_REQUEST_VOTE: {
        Raftdir__Peer__RequestVote b = RAFTDIR__PEER__REQUEST_VOTE__INIT;
        node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE);
        f.request_vote = &b;
        b.term = m->request_vote.term;
        b.candidate_id = m->request_vote.candidate_id;
        b.last_log_index = m->request_vote.last_log_index;
        b.last_log_term = m->request_vote.last_log_term;
        b.disrupt_leader = m->request_vote.disrupt_leader;
        b.pre_vote = m->request_vote.pre_vote;
        node_frame_send(n, &f);
        return;
    }
    case RAFT_REQUEST_VOTE_RESULT: {
        Raftdir__Peer__RequestVoteResult b = RAFTDIR__PEER__REQUEST_VOTE_RESULT__INIT;
        node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE_RESULT);
        f.request_vote_result = &b;
        b.term = m->request_vote_result.term;
        b.vote_granted = m->request_vote_result.vote_granted;
        b.pre_vote = m->request_vote_result.pre_vote;
        b.has_features = b.has_capacity = true;
        b.features = m->request_vote_result.features;
        b.capacity = m->request_vote_result.capacity;
        node_frame_send(n, &f);
        return;
    }
    case RAFT_APPEND_ENTRIES:
        send_append(n, to, &m->append_entries);
        return;
    case RAFT_APPEND_ENTRIES_RESULT: {
        Raftdir__Peer__AppendEntriesResult b = RAFTDIR__PEER__APPEND_ENTRIES_RESULT__INIT;
        node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES_RESULT);
        f.append_entries_result = &b;
        b.term = m->append_entries_result.term;
        b.rejected = m->append_entries_result.rejected;
        b.last_log_index = m->append_entries_result.last_log_index;
        b.has_features = b.has_capacity = true;
        b.features = m->append_entries_result.features;
        b.capacity = m->append_entries_result.capacity;
        node_frame_send(n, &f);
        return;
    }
    case RAFT_TIMEOUT_NOW: {
        Raftdir__Peer__TimeoutNow b = RAFTDIR__PEER__TIMEOUT_NOW__INIT;
        node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_TIMEOUT_NOW);
        f.timeout_now = &b;
        b.term = m->timeout_now.term;
        b.last_log_index = m->timeout_now.last_log_index;
        b.last_log_term = m->timeout_now.last_log_term;
        node_frame_send(n, &f);
        return;
    }
    case RAFT_INSTALL_SNAPSHOT: {
        /* The manifest (DESIGN D9): our log begins after what that member holds. It fetches an image by itself, from whomever. */
        Raftdir__Peer__InstallSnapshot b = RAFTDIR__PEER__INSTALL_SNAPSHOT__INIT;
        node_frame_init(n, &f, to, RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT);
        f.install_snapshot = &b;
        b.term = m->install_snapshot.term;
        b.last_index = m->install_snapshot.last_index;
        b.last_term = m->install_snapshot.last_term;
        node_frame_send(n, &f);
        return;
    }
    }
}

/* The first `count` entries of a received AppendEntries as our own; 0, or negative when the frame is malformed or memory ran out. */
static int entries_decode(const Raftdir__Peer__AppendEntries *a, size_t count, struct entry ***list_r)
{
    struct entry **list = NULL;
    *list_r = NULL;
    if (!count)
        return 0;
    if (count > UNCOMMITTED_ENTRIES_MAX)
        return RAFTDIR_ETOOBIG;
    list = calloc(count, sizeof *list);
    if (!list)
        return RAFTDIR_ENOMEM;
    int rc = 0;
    for (size_t i = 0; i < count && !rc; i++) {
        const Raftdir__Peer__LogEntry *e = a->entries[i];
        if (e->data.len > ENTRY_LEN_MAX)
            rc = RAFTDIR_ETOOBIG;
        else if (e->type != RAFT_COMMAND && e->type != RAFT_BARRIER && e->type != RAFT_CHANGE)
            rc = RAFTDIR_EPROTO;
        else if (e->type == RAFT_CHANGE && !guard_configuration_valid(e->data.data, e->data.len))
            rc = RAFTDIR_EPROTO;
        if (!rc && !(list[i] = entry_create(a->prev_log_index + 1 + i, e->term, (uint16_t)e->type, e->data.data, (uint32_t)e->data.len)))
            rc = RAFTDIR_ENOMEM;
    }
    if (rc) {
        for (size_t i = 0; i < count; i++)
            entry_unref(list[i]);
        free(list);
        return rc;
    }
    *list_r = list;
    return 0;
}

static int receive_append(struct node *n, struct raft_message *m, const Raftdir__Peer__AppendEntries *a)
{
    struct entry **list;
    struct raft_entry *raft_entries = NULL;
    /* Too much waits to be applied here: then it is only a heartbeat. The core's answer acknowledges nothing new, and the leader sends again from there. */
    size_t count = node_log_backlogged(n) ? 0 : a->n_entries;
    int rc = entries_decode(a, count, &list);
    if (rc) {
        n->frames_dropped++;
        return 0;
    }
    m->type = RAFT_APPEND_ENTRIES;
    m->append_entries.term = a->term;
    m->append_entries.prev_log_index = a->prev_log_index;
    m->append_entries.prev_log_term = a->prev_log_term;
    m->append_entries.leader_commit = a->leader_commit;
    if (count) {
        raft_entries = calloc(count, sizeof *raft_entries);
        if (!raft_entries) {
            n->frames_dropped++;
            goto free_entries;
        }
        for (size_t i = 0; i < count; i++) {
            raft_entries[i].term = list[i]->term;
            raft_entries[i].type = list[i]->type;
            raft_entries[i].buf.base = list[i]->data;
            raft_entries[i].buf.len = list[i]->len;
        }
    }
    m->append_entries.entries = raft_entries;
    m->append_entries.n_entries = (unsigned)count;
    n->incoming = list;
    n->incoming_n = count;
    rc = guard_receive(n->guard, n->now, m, &n->err);
    n->incoming = NULL;
    n->incoming_n = 0;
free_entries:
    free(raft_entries);
    for (size_t i = 0; i < count; i++)
        entry_unref(list[i]);
    free(list);
    return rc;
}

void node_frame_receive_raft(struct node *n, uint64_t from, const Raftdir__Peer__Frame *f)
{
    struct raft_message m;
    char address[NODE_ADDRESS_SIZE];
    int rc;
    const struct raft_server *server = node_server(n, from);

    memset(&m, 0, sizeof m);
    m.server_id = from;
    /* A copy: the core may replace its configuration during the step. */
    strncpy(address, server ? server->address : "", sizeof address - 1);
    address[sizeof address - 1] = 0;
    m.server_address = address;
    switch (f->body_case) {
    case RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE:
        m.type = RAFT_REQUEST_VOTE;
        m.request_vote.version = 2;
        m.request_vote.term = f->request_vote->term;
        m.request_vote.candidate_id = f->request_vote->candidate_id;
        m.request_vote.last_log_index = f->request_vote->last_log_index;
        m.request_vote.last_log_term = f->request_vote->last_log_term;
        m.request_vote.disrupt_leader = f->request_vote->disrupt_leader;
        m.request_vote.pre_vote = f->request_vote->pre_vote;
        if (m.request_vote.candidate_id != from) {
            n->frames_dropped++;
            return;
        }
        rc = guard_receive(n->guard, n->now, &m, &n->err);
        break;
    case RAFTDIR__PEER__FRAME__BODY_REQUEST_VOTE_RESULT:
        m.type = RAFT_REQUEST_VOTE_RESULT;
        m.request_vote_result.version = 2;
        m.request_vote_result.term = f->request_vote_result->term;
        m.request_vote_result.vote_granted = f->request_vote_result->vote_granted;
        m.request_vote_result.pre_vote = f->request_vote_result->pre_vote;
        m.request_vote_result.features = (unsigned short)f->request_vote_result->features;
        m.request_vote_result.capacity = (unsigned short)f->request_vote_result->capacity;
        rc = guard_receive(n->guard, n->now, &m, &n->err);
        break;
    case RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES:
        rc = receive_append(n, &m, f->append_entries);
        break;
    case RAFTDIR__PEER__FRAME__BODY_APPEND_ENTRIES_RESULT:
        m.type = RAFT_APPEND_ENTRIES_RESULT;
        m.append_entries_result.version = 1;
        m.append_entries_result.term = f->append_entries_result->term;
        m.append_entries_result.rejected = f->append_entries_result->rejected;
        m.append_entries_result.last_log_index = f->append_entries_result->last_log_index;
        m.append_entries_result.features = (unsigned short)f->append_entries_result->features;
        m.append_entries_result.capacity = (unsigned short)f->append_entries_result->capacity;
        rc = guard_receive(n->guard, n->now, &m, &n->err);
        break;
    case RAFTDIR__PEER__FRAME__BODY_TIMEOUT_NOW:
        m.type = RAFT_TIMEOUT_NOW;
        m.timeout_now.term = f->timeout_now->term;
        m.timeout_now.last_log_index = f->timeout_now->last_log_index;
        m.timeout_now.last_log_term = f->timeout_now->last_log_term;
        rc = guard_receive(n->guard, n->now, &m, &n->err);
        break;
    case RAFTDIR__PEER__FRAME__BODY_INSTALL_SNAPSHOT:
        node_images_manifest(n, from, f->install_snapshot); /* never stepped: the core would forget its log and wait for data */
        return;
    default:
        n->frames_dropped++;
        return;
    }
    if (rc && !n->failed)
        node_fail(n, rc, n->err.text);
}
