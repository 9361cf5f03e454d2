/* lib_mupdate.c - who is connected to a node's MUPDATE listeners. The answer comes in several frames; the first one says so by `listening`, so that an answer that broke off and
 * begins anew is not counted twice. */
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

static const char *or_empty(const char *s)
{
    return s ? s : "";
}

struct receiving {
    Raftdir__Client__FromNode **frames;
    size_t n, sessions;
    bool wrong, exhausted;
};

static void frames_free(Raftdir__Client__FromNode ***frames, size_t n)
{
    for (size_t i = 0; i < n; i++)
        raftdir__client__from_node__free_unpacked((*frames)[i], NULL);
    free(*frames);
    *frames = NULL;
}

static void on_frame(struct call *c, Raftdir__Client__FromNode *m)
{
    struct receiving *r = c->data;
    if (m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_MUPDATE_SESSIONS) {
        r->wrong = true;
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    if (m->mupdate_sessions->has_listening) {
        frames_free(&r->frames, r->n);
        r->n = r->sessions = 0;
    }
    Raftdir__Client__FromNode **frames = realloc(r->frames, (r->n + 1) * sizeof *frames);
    if (!frames) {
        r->exhausted = true;
        raftdir__client__from_node__free_unpacked(m, NULL);
        return;
    }
    r->frames = frames;
    r->frames[r->n++] = m;
    r->sessions += m->mupdate_sessions->n_sessions;
}

void lib_sessions_free(struct raftdir *d)
{
    frames_free(&d->session_frames, d->session_frames_n);
    d->session_frames_n = 0;
    free(d->mupdate_session_list);
    d->mupdate_session_list = NULL;
}

static void session_from(struct raftdir_mupdate_session *to, const Raftdir__Client__MupdateSession *s)
{
    *to = (struct raftdir_mupdate_session){
        .peer = or_empty(s->peer),
        .identity = or_empty(s->identity),
        .role = or_empty(s->role),
        .server = or_empty(s->server),
        .doing = or_empty(s->doing),
        .tls = s->tls != 0,
        .compressed = s->compressed != 0,
        .updating = s->updating != 0,
        .connected_ms = s->connected_ms,
        .quiet_ms = s->quiet_ms,
        .commands = s->commands,
        .rows = s->rows,
        .bytes = s->bytes,
        .behind = s->behind,
        .queued = s->queued,
    };
}

int raftdir_mupdate_sessions(raftdir *d, const struct raftdir_mupdate_sessions **sessions_r)
{
    *sessions_r = NULL;
    int rc = lib_enter(d);
    if (rc < 0)
        return rc;
    Raftdir__Client__MupdateSessions body = RAFTDIR__CLIENT__MUPDATE_SESSIONS__INIT;
    struct receiving r = {0};
    struct call *c = call_create(d, CALL_STREAM, RAFTDIR__CLIENT__TO_NODE__BODY_MUPDATE_SESSIONS);
    if (!c || call_body(c, &body.base) < 0) {
        call_destroy(&c);
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    }
    c->level = RAFTDIR_LOCAL;
    c->on_frame = on_frame;
    c->data = &r;
    rc = call_run(d, &c);
    if (rc == 0 && (r.wrong || !r.n))
        rc = err_set(&d->err, RAFTDIR_EPROTO, "%s: answered something else than was asked", d->answer_ep ? d->answer_ep->text : "node");
    struct raftdir_mupdate_session *list = rc == 0 && !r.exhausted ? malloc((r.sessions + 1) * sizeof *list) : NULL;
    if (rc == 0 && !list)
        rc = err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    if (rc < 0) {
        frames_free(&r.frames, r.n);
        return rc;
    }
    lib_sessions_free(d);
    d->session_frames = r.frames;
    d->session_frames_n = r.n;
    d->mupdate_session_list = list;
    size_t n = 0;
    for (size_t i = 0; i < r.n; i++)
        for (size_t k = 0; k < r.frames[i]->mupdate_sessions->n_sessions; k++)
            session_from(&list[n++], r.frames[i]->mupdate_sessions->sessions[k]);
    const Raftdir__Client__MupdateSessionsResult *first = r.frames[0]->mupdate_sessions;
    d->mupdate_sessions = (struct raftdir_mupdate_sessions){.listening = first->listening != 0, .why_not = or_empty(first->why_not), .n = n, .list = list};
    *sessions_r = &d->mupdate_sessions;
    return 0;
}
