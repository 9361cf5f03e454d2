/* srv_client_mupdate.c - who is connected to MUPDATE, for `raftdirctl mupdate sessions`: the list is copied under its mutex, then sent in frames of MUPDATE_VIEW_ROWS. */
#include <stdlib.h>
#include <utlist.h>
#include "srv_client.h"
#include "srv_mupdate.h"

#define SESSION_LEN_MAX (sizeof(struct mupdate_view) + 64)
_Static_assert(MUPDATE_VIEW_ROWS * SESSION_LEN_MAX + 1024 <= CLIENT_FRAME_LEN_MAX, "a frame holds so many sessions");

static struct mupdate_view *views_copy(struct daemon *d, size_t *n_r)
{
    struct mupdate_view *v, *copy;
    size_t n = 0;
    pthread_mutex_lock(&d->mupdate_mutex);
    DL_FOREACH(d->mupdate_views, v)
        n++;
    copy = mem_alloc((n + 1) * sizeof *copy);
    n = 0;
    DL_FOREACH(d->mupdate_views, v)
        copy[n++] = *v;
    pthread_mutex_unlock(&d->mupdate_mutex);
    *n_r = n;
    return copy;
}

static void session_fill(Raftdir__Client__MupdateSession *s, struct mupdate_view *v, uint64_t now, uint64_t published)
{
    raftdir__client__mupdate_session__init(s);
    s->peer = v->peer;
    s->identity = v->identity;
    s->role = v->role;
    s->server = *v->server ? v->server : NULL;
    s->doing = v->doing;
    s->has_tls = s->has_compressed = s->has_updating = s->has_connected_ms = s->has_quiet_ms = s->has_commands = s->has_rows = s->has_bytes = s->has_queued = true;
    s->tls = v->tls;
    s->compressed = v->compressed;
    s->updating = v->updating;
    s->connected_ms = now - v->since_ms;
    s->quiet_ms = now - v->last_ms;
    s->commands = v->commands;
    s->rows = v->rows;
    s->bytes = v->sent_len;
    s->queued = v->queued_len;
    s->has_index = s->has_behind = v->updating;
    s->index = v->index;
    s->behind = published > v->index ? published - v->index : 0;
}

void srv_mupdate_sessions(struct request *r)
{
    struct daemon *d = r->service->d;
    size_t n, at = 0;
    struct mupdate_view *views = views_copy(d, &n);
    Raftdir__Client__MupdateSession *sessions = mem_calloc(MUPDATE_VIEW_ROWS, sizeof *sessions), *pointers[MUPDATE_VIEW_ROWS];
    char why_not[sizeof d->mupdate_why_not];
    bool listening = mupdate_listen_state(d, why_not, sizeof why_not), more;
    uint64_t published = atomic_load(&d->shared.published), now = shared_now_ms();
    do {
        Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
        Raftdir__Client__MupdateSessionsResult result = RAFTDIR__CLIENT__MUPDATE_SESSIONS_RESULT__INIT;
        result.has_listening = at == 0;
        result.listening = listening;
        if (at == 0 && !listening)
            result.why_not = why_not;
        for (; at < n && result.n_sessions < MUPDATE_VIEW_ROWS; at++) {
            session_fill(&sessions[result.n_sessions], &views[at], now, published);
            pointers[result.n_sessions] = &sessions[result.n_sessions];
            result.n_sessions++;
        }
        more = at < n;
        result.sessions = pointers;
        f.has_more = f.more = more;
        f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_MUPDATE_SESSIONS;
        f.mupdate_sessions = &result;
        srv_answer(r, &f); /* without `more` it frees the request */
    } while (more);
    free(sessions);
    free(views);
}
