/* srv_client.c - connections of the client protocol: who it is, what is open, what may be asked, and how answers leave. See srv_client.h.
 *
 * What clients can make this process hold is bounded: requests by number and by memory, in a connection and in all (an operation under way that nobody
 * waits for any more counts on), and what waits for them to read it.
 * Garbage and a request id used twice close that one connection, with a log line a cause and minute. A client that doesn't
 * read is not read from once CLIENT_OUT_LEN_MAX bytes wait for it; what it asked before waits as BLOCKED. Roles are those of the rules at the time of the request. */
#include "srv_client.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "logger.h"

/* --- Requests -------------------------------------------------------------------------------------------------------------- */

/* A frame's memory once it is unpacked can be dozens of times its length (unknown fields, empty submessages): counted, and bounded. */
struct message_memory {
    size_t used;
    bool exhausted; /* for want of memory, not by the bound */
};

static void *message_alloc(void *data, size_t len)
{
    struct message_memory *m = data;
    if (len > CLIENT_MESSAGE_LEN_MAX - m->used)
        return NULL;
    void *p = malloc(len);
    if (!p) {
        m->exhausted = true;
        return NULL;
    }
    size_t whole = (len + 8 + 31) / 16 * 16; /* roughly, with malloc's own: small ones cost most */
    m->used = whole < CLIENT_MESSAGE_LEN_MAX - m->used ? m->used + whole : CLIENT_MESSAGE_LEN_MAX;
    return p;
}

static void message_free(void *data, void *p)
{
    (void)data;
    free(p);
}

static struct request *request_create(struct client *c, Raftdir__Client__ToNode *msg, size_t len)
{
    struct request *r = mem_calloc(1, sizeof *r);
    r->id = msg->request_id;
    r->client = c;
    r->service = c->service;
    r->msg = msg;
    r->len = len;
    c->open_len += r->len;
    atomic_fetch_add(&c->service->d->open_len, r->len);
    r->state = REQUEST_NEW;
    uint64_t timeout = msg->has_timeout_ms && msg->timeout_ms ? msg->timeout_ms : REQUEST_TIMEOUT_DEFAULT_MS;
    r->deadline_ms = shared_now_ms() + (timeout < REQUEST_TIMEOUT_MAX_MS ? timeout : REQUEST_TIMEOUT_MAX_MS);
    HASH_ADD(hh, c->requests, id, sizeof r->id, r);
    return r;
}

static void request_unlist(struct request *r)
{
    switch (r->state) {
    case REQUEST_WAIT:
        srv_wait_cancel(&r->wait);
        break;
    case REQUEST_RUNNABLE:
        srv_stream_stop(&r->stream);
        break;
    case REQUEST_BLOCKED:
        DL_DELETE(r->client->blocked, r);
        break;
    case REQUEST_NEW:
    case REQUEST_CALL:
    case REQUEST_CREDIT:
    case REQUEST_VERIFY:
        break;
    }
    r->state = REQUEST_NEW;
}

/* Nobody waits for its answer any more. */
static void request_part(struct request *r)
{
    if (!r->client)
        return;
    HASH_DEL(r->client->requests, r);
    r->client->open_len -= r->len;
    r->client = NULL;
    if (r->state == REQUEST_VERIFY)
        srv_verify_unwanted(r);
}

void srv_request_free(struct request *r)
{
    srv_watch_free(r);
    request_unlist(r);
    request_part(r);
    atomic_fetch_sub(&r->service->d->open_len, r->len);
    if (r->scan)
        store_scan_end(&r->scan);
    raftdir__client__to_node__free_unpacked(r->msg, NULL);
    free(r->packed);
    free(r->adopt);
    free(r->call.result);
    free(r);
}

void srv_request_block(struct request *r)
{
    request_unlist(r);
    r->state = REQUEST_BLOCKED;
    DL_APPEND(r->client->blocked, r);
}

/* --- Answers ----------------------------------------------------------------------------------------------------------------- */

bool srv_client_backed_up(struct client *c)
{
    return conn_queued_len(c->conn) > CLIENT_OUT_LEN_MAX;
}

bool srv_client_stream_full(struct client *c)
{
    return conn_queued_len(c->conn) > SRV_STREAM_OUT_LEN;
}

void srv_client_backed_up_set(struct client *c)
{
    if (!c->backed_up && srv_client_backed_up(c)) {
        c->backed_up = true;
        conn_pause(c->conn, true); /* on_drain goes on */
    }
}

static void answer_send(const struct request *r, Raftdir__Client__FromNode *f)
{
    struct client *c = r->client;
    if (c) {
        struct shared_view view;
        uint64_t now = shared_now_ms(), age;
        shared_view_get(&r->service->d->shared, &view);
        f->version = CLIENT_FRAME_VERSION;
        f->request_id = r->id;
        if (view.cluster_id) {
            f->has_incarnation = true;
            f->incarnation = view.incarnation;
            /* A node that has applied nothing doesn't know the cluster's log time yet, and expiries are computed from this. */
            f->has_log_time_ms = view.taken_ms && view.status.applied_index;
            f->log_time_ms = f->has_log_time_ms ? shared_log_time_ms(&view, now) : 0;
            age = shared_age_ms(&view, now);
            f->has_age_ms = age != UINT64_MAX;
            f->age_ms = f->has_age_ms ? age : 0;
        }
        size_t len = raftdir__client__from_node__get_packed_size(f);
        uint8_t *data = mem_alloc(len);
        raftdir__client__from_node__pack(f, data);
        int rc = conn_send(c->conn, data, len);
        free(data);
        if (rc == RAFTDIR_ENOMEM)
            mem_exhausted("answer");
        if (rc == RAFTDIR_ELIMIT) {
            logger_limited(LOGGER_WARN, "client", "%s doesn't read its answers: connection closed", conn_peer_text(c->conn));
            conn_close(c->conn, RAFTDIR_ELIMIT, "the client doesn't read its answers");
        }
        srv_client_backed_up_set(c);
    }
}

void srv_answer(struct request *r, Raftdir__Client__FromNode *f)
{
    answer_send(r, f);
    if (!f->has_more || !f->more)
        srv_request_free(r);
}

void srv_fail(struct request *r, int code, const char *fmt, ...)
{
    char text[ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.code = code;
    f.message = *text ? text : (char *)(uintptr_t)err_text(code);
    srv_answer(r, &f);
}

void srv_fail_err(struct request *r, int code, const struct err *err)
{
    srv_fail(r, code, "%s", err->text);
}

/* --- Calls to the consensus thread ------------------------------------------------------------------------------------------------- */

static void consensus_done(struct consensus_call *call);

void srv_consensus_call(struct request *r, enum consensus_kind kind)
{
    r->state = REQUEST_CALL;
    r->call.done = consensus_done;
    srv_call(r->service, &r->call, kind, r->deadline_ms);
}

static void consensus_done(struct consensus_call *call)
{
    struct request *r = (struct request *)((char *)call - offsetof(struct request, call));
    r->state = REQUEST_NEW;
    if (!r->client) {
        srv_request_free(r);
        return;
    }
    switch (r->call.msg.kind) {
    case CONSENSUS_READ:
        srv_read_called(r);
        break;
    case CONSENSUS_WRITE:
        srv_write_done(r);
        break;
    case CONSENSUS_MEMBER:
        srv_member_done(r);
        break;
    case CONSENSUS_BOOTSTRAP:
    case CONSENSUS_ADOPT:
    case CONSENSUS_RESET:
    case CONSENSUS_COMPACT:
        srv_make_done(r);
        break;
    default:
        abort(); /* no other kind is ever submitted here */
    }
}

/* --- What may be asked ------------------------------------------------------------------------------------------------------------ */

static enum access_role role_wanted(const Raftdir__Client__ToNode *m)
{
    switch (m->body_case) {
    case RAFTDIR__CLIENT__TO_NODE__BODY_WRITE:
        return ACCESS_BACKEND;
    case RAFTDIR__CLIENT__TO_NODE__BODY_MEMBER:
        return m->member->op_case == RAFTDIR__CLUSTER__MEMBER_REQUEST__OP_LIST ? ACCESS_READ : ACCESS_ADMIN;
    case RAFTDIR__CLIENT__TO_NODE__BODY_VERIFY:
    case RAFTDIR__CLIENT__TO_NODE__BODY_BOOTSTRAP:
    case RAFTDIR__CLIENT__TO_NODE__BODY_ADOPT:
    case RAFTDIR__CLIENT__TO_NODE__BODY_RESET:
    case RAFTDIR__CLIENT__TO_NODE__BODY_COMPACT:
    case RAFTDIR__CLIENT__TO_NODE__BODY_MUPDATE_SESSIONS:
        return ACCESS_ADMIN;
    default:
        return ACCESS_READ;
    }
}

bool srv_phase_allows(struct request *r)
{
    struct shared_view view;
    int body = (int)r->msg->body_case;
    shared_view_get(&r->service->d->shared, &view);
    bool makes = body == RAFTDIR__CLIENT__TO_NODE__BODY_BOOTSTRAP || body == RAFTDIR__CLIENT__TO_NODE__BODY_ADOPT;
    if (body == RAFTDIR__CLIENT__TO_NODE__BODY_STATUS || body == RAFTDIR__CLIENT__TO_NODE__BODY_HELLO || body == RAFTDIR__CLIENT__TO_NODE__BODY_MUPDATE_SESSIONS)
        return true;
    switch (view.phase) {
    case SHARED_UNCONFIGURED:
        if (makes)
            return true;
        srv_fail(r, RAFTDIR_ENOTREADY, "this node is not part of a cluster yet: raftdirctl cluster bootstrap begins a new one here, raftdirctl cluster join --via NODE enters one");
        return false;
    case SHARED_FAILED:
    case SHARED_REMOVED: {
        if (body == RAFTDIR__CLIENT__TO_NODE__BODY_RESET)
            return true;
        struct shared_details *details = mem_alloc(sizeof *details);
        shared_details_get(&r->service->d->shared, details);
        if (view.phase == SHARED_FAILED)
            srv_fail(r, RAFTDIR_EFAILED, "this node has failed and serves nothing but status: %s; ask another node", details->failure);
        else
            srv_fail(r, RAFTDIR_ENOTREADY, "%s", details->failure);
        free(details);
        return false;
    }
    case SHARED_RUNNING:
    case SHARED_STOPPING:
        return true; /* bootstrap, adopt, reset: the consensus thread says what is so already, or may not be */
    }
    return false;
}

static int access_refresh(struct client *c, struct err *err)
{
    unsigned generation = atomic_load(&c->service->d->rules_generation);
    if (generation == c->rules_generation)
        return 0;
    c->rules_generation = generation;
    return daemon_access(c->service->d, c->local ? NULL : conn_peer_cert(c->conn), c->uid, &c->access, err);
}

/* The limit is the place's: one line a cause and minute. */
#define garbage(c, what)                                                                                                                   \
    do {                                                                                                                                   \
        logger_limited(LOGGER_WARN, "client", "%s (%s): %s: connection closed", conn_peer_text((c)->conn), (c)->access.identity, what);    \
        conn_close((c)->conn, RAFTDIR_EPROTO, what);                                                                                       \
    } while (0)

bool srv_role_allows(struct request *r)
{
    struct client *c = r->client;
    struct err err = {0};
    int rc = access_refresh(c, &err);
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return false;
    }
    if (c->access.role >= role_wanted(r->msg))
        return true;
    srv_fail(r, RAFTDIR_EPERM, "%s has the role %s at this node; this needs %s (allow sections, raftdird.conf(5))", c->access.identity, access_role_name(c->access.role),
             access_role_name(role_wanted(r->msg)));
    return false;
}

static void dispatch(struct request *r)
{
    struct client *c = r->client;
    Raftdir__Client__ToNode *m = r->msg;
    struct err err = {0};
    if (m->version != CLIENT_FRAME_VERSION) {
        srv_fail(r, RAFTDIR_EVERSION, "protocol version %u; this node speaks version %d: use the client of the same release", m->version, CLIENT_FRAME_VERSION);
        return;
    }
    int rc = access_refresh(c, &err);
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    bool hello = m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_HELLO;
    if (c->access.role == ACCESS_NONE) {
        srv_fail(r, RAFTDIR_EPERM, "%s is not let in: the configuration of node %s has no allow section for it; add allow \"%s\" { role = \"read\" } and reload (SIGHUP)",
                 c->access.identity, c->service->d->config->node_name, c->access.identity);
        if (hello)
            conn_close(c->conn, 0, "not let in");
        return;
    }
    if (!hello && !c->greeted) {
        srv_fail(r, RAFTDIR_EPROTO, "the first request of a connection is hello");
        return;
    }
    if (!srv_role_allows(r) || !srv_phase_allows(r))
        return;
    switch (m->body_case) {
    case RAFTDIR__CLIENT__TO_NODE__BODY_HELLO:
        c->greeted = true;
        srv_hello(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_STATUS:
        srv_status(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_MUPDATE_SESSIONS:
        srv_mupdate_sessions(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP:
    case RAFTDIR__CLIENT__TO_NODE__BODY_LIST:
    case RAFTDIR__CLIENT__TO_NODE__BODY_VISIBLE:
    case RAFTDIR__CLIENT__TO_NODE__BODY_MY_RIGHTS:
    case RAFTDIR__CLIENT__TO_NODE__BODY_BARRIER:
    case RAFTDIR__CLIENT__TO_NODE__BODY_VERIFY:
    case RAFTDIR__CLIENT__TO_NODE__BODY_WATCH:
        srv_read_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_WRITE:
        srv_write_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_MEMBER:
        srv_member_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_BOOTSTRAP:
    case RAFTDIR__CLIENT__TO_NODE__BODY_ADOPT:
        srv_make_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_RESET:
        srv_reset_begin(r);
        break;
    case RAFTDIR__CLIENT__TO_NODE__BODY_COMPACT:
        srv_consensus_call(r, CONSENSUS_COMPACT);
        break;
    default:
        srv_fail(r, RAFTDIR_EUNSUPPORTED, "this node (raftdird " RAFTDIR_VERSION ") doesn't know this kind of request: use a client of its release, or upgrade the node");
        break;
    }
}

/* Credit and cancel are about another request of the same id and have no answer of their own. */
static void about_open_request(struct client *c, const Raftdir__Client__ToNode *m, struct request *r)
{
    if (!r)
        return; /* it has ended meanwhile */
    if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_CREDIT) {
        srv_list_credit(r, m->credit->rows);
    } else if (r->state == REQUEST_CALL || r->state == REQUEST_VERIFY) {
        /* Somebody else works on it: its memory stays until that one is done; the client is answered now, through a copy of what an answer needs. */
        bool changes = r->state == REQUEST_CALL && r->call.msg.kind != CONSENSUS_READ;
        struct request answered = {.id = r->id, .client = c, .service = r->service};
        Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
        f.code = changes ? RAFTDIR_EUNCERTAIN : RAFTDIR_ECANCELED;
        f.message = (char *)(uintptr_t)(changes ? "cancelled while it was on its way: it may still happen" : "cancelled");
        answer_send(&answered, &f);
        request_part(r);
    } else {
        srv_fail(r, RAFTDIR_ECANCELED, "cancelled");
    }
}

/* --- Connections ------------------------------------------------------------------------------------------------------------------- */

static void on_frame(struct conn *conn, const uint8_t *frame, size_t len)
{
    struct client *c = conn_data(conn);
    struct message_memory memory = {0};
    ProtobufCAllocator allocator = {message_alloc, message_free, &memory}; /* malloc's, so that it is freed like any other */
    Raftdir__Client__ToNode *m = raftdir__client__to_node__unpack(&allocator, len, frame);
    if (!m && memory.exhausted)
        mem_exhausted("request");
    if (!m) {
        garbage(c, "sent what is no request of this protocol");
        return;
    }
    struct request *r = NULL;
    HASH_FIND(hh, c->requests, &m->request_id, sizeof m->request_id, r);
    if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_CREDIT || m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_CANCEL) {
        about_open_request(c, m, r);
        raftdir__client__to_node__free_unpacked(m, NULL);
        return;
    }
    if (r) {
        raftdir__client__to_node__free_unpacked(m, NULL);
        garbage(c, "used the id of an open request for another");
        return;
    }
    bool full = HASH_COUNT(c->requests) >= CLIENT_REQUESTS_MAX;
    size_t copies = m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_WRITE ? 2 * len : 0; /* packed for the log, and the consensus thread's own */
    size_t need = sizeof *r + memory.used + copies;
    bool too_much = c->open_len + need > CLIENT_OPEN_LEN_MAX;
    bool all_too_much = atomic_load(&c->service->d->open_len) + need > CLIENTS_OPEN_LEN_MAX;
    r = request_create(c, m, need);
    if (full)
        srv_fail(r, RAFTDIR_ELIMIT, "%d requests are open on this connection: wait for answers, or open another", CLIENT_REQUESTS_MAX);
    else if (too_much)
        srv_fail(r, RAFTDIR_ELIMIT, "the open requests of this connection take %u bytes of memory: wait for answers, or send smaller ones", CLIENT_OPEN_LEN_MAX);
    else if (all_too_much)
        srv_fail(r, RAFTDIR_ELIMIT, "the open requests of all clients take %u bytes of this node's memory: send it again in a moment, or to another node", CLIENTS_OPEN_LEN_MAX);
    else
        dispatch(r);
}

static void on_open(struct conn *conn)
{
    struct client *c = conn_data(conn);
    gid_t gid;
    struct err err = {0};
    if (c->local && !conn_peer_uid(conn, &c->uid, &gid)) {
        garbage(c, "has no peer credentials");
        return;
    }
    c->rules_generation = atomic_load(&c->service->d->rules_generation) - 1;
    if (access_refresh(c, &err) != 0)
        garbage(c, err.text);
}

static void on_drain(struct conn *conn)
{
    struct client *c = conn_data(conn);
    c->backed_up = false;
    conn_pause(conn, false);
    while (c->blocked && !srv_client_backed_up(c)) {
        struct request *r = c->blocked;
        request_unlist(r);
        if (r->scan)
            srv_list_resume(r);
        else
            srv_read_ready(r);
    }
    srv_client_backed_up_set(c);
}

static void on_oversize(struct conn *conn, int code, const char *why)
{
    struct client *c = conn_data(conn);
    (void)code;
    garbage(c, why);
}

static void on_close(struct conn *conn, int code, const char *why)
{
    struct client *c = conn_data(conn);
    struct service *s = c->service;
    struct request *r, *next;
    if (code != 0)
        logger_line(LOGGER_DEBUG, "client", "%s: closed: %s (%s)", conn_peer_text(conn), why, err_name(code));
    if (code == RAFTDIR_EAUTH)
        logger_limited(LOGGER_WARN, "client", "%s: refused: %s", conn_peer_text(conn), why);
    HASH_ITER(hh, c->requests, r, next) {
        if (r->state == REQUEST_CALL || r->state == REQUEST_VERIFY) {
            request_part(r);
        } else {
            srv_request_free(r);
        }
    }
    DL_DELETE(s->clients, c);
    atomic_fetch_sub(&s->d->clients, 1);
    free(c);
}

void srv_clients_silent_close(struct service *s, uint64_t now)
{
    if (now - s->silent_ms < 1000)
        return;
    s->silent_ms = now;
    for (struct client *c = s->clients; c; c = c->next)
        if (!c->greeted && now - c->since_ms > 2 * HANDSHAKE_TIMEOUT_MS)
            garbage(c, "said nothing for too long");
}

const struct conn_events srv_client_events = {.on_open = on_open, .on_frame = on_frame, .on_drain = on_drain, .on_oversize = on_oversize, .on_close = on_close};

void srv_client_accepted(struct service *s, struct conn *conn, bool local)
{
    struct client *c = mem_calloc(1, sizeof *c);
    c->service = s;
    c->conn = conn;
    c->local = local;
    c->since_ms = shared_now_ms();
    snprintf(c->access.identity, sizeof c->access.identity, "not identified yet");
    conn_data_set(conn, c);
    DL_APPEND(s->clients, c);
    if (atomic_fetch_add(&s->d->clients, 1) >= CLIENT_CONNS_MAX) {
        logger_limited(LOGGER_WARN, "client", "%d connections are open: no more are taken until some close", CLIENT_CONNS_MAX);
        conn_close(conn, RAFTDIR_ELIMIT, "too many connections");
    }
}
