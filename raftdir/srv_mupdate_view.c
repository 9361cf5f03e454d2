/* srv_mupdate_view.c - who is connected, for `raftdirctl mupdate sessions`: each session keeps what others may know of it in the daemon's list, under the daemon's
 * mutex, which is held for a few stores at a time, and by the one who copies the list (srv_client_mupdate.c). A session's own thread reads its own fields without it. */
#include <stdio.h>
#include <string.h>
#include <utlist.h>
#include "srv_mupdate.h"

static void begin(struct mupdate_session *m)
{
    pthread_mutex_lock(&m->service->d->mupdate_mutex);
}

static void end(struct mupdate_session *m)
{
    pthread_mutex_unlock(&m->service->d->mupdate_mutex);
}

void mupdate_view_open(struct mupdate_session *m)
{
    begin(m);
    snprintf(m->view.peer, sizeof m->view.peer, "%s", conn_peer_text(m->conn));
    m->view.tls = m->tls;
    m->view.since_ms = m->view.last_ms = m->since_ms;
    snprintf(m->view.doing, sizeof m->view.doing, "connecting");
    DL_APPEND(m->service->d->mupdate_views, &m->view);
    end(m);
}

void mupdate_view_doing(struct mupdate_session *m, const char *doing)
{
    begin(m);
    snprintf(m->view.doing, sizeof m->view.doing, "%s", doing);
    m->view.last_ms = m->last_ms;
    m->view.commands = m->commands;
    m->view.sent_len = m->conn ? conn_sent_len(m->conn) : m->view.sent_len;
    m->view.queued_len = m->conn ? conn_queued_len(m->conn) : 0;
    end(m);
}

void mupdate_view_server(struct mupdate_session *m, const char *server, size_t len)
{
    if (len >= sizeof m->view.server || (strlen(m->view.server) == len && memcmp(m->view.server, server, len) == 0))
        return;
    begin(m);
    memcpy(m->view.server, server, len);
    m->view.server[len] = '\0';
    end(m);
}

void mupdate_view_sent(struct mupdate_session *m, uint64_t rows, uint64_t index)
{
    begin(m);
    m->view.rows += rows;
    if (index > m->view.index)
        m->view.index = index;
    end(m);
}

void mupdate_view_refresh(struct mupdate_session *m)
{
    begin(m);
    snprintf(m->view.identity, sizeof m->view.identity, "%s", m->access.identity);
    snprintf(m->view.role, sizeof m->view.role, "%s", access_role_name(m->access.role));
    m->view.tls = m->tls;
    m->view.compressed = m->zip != NULL;
    m->view.updating = m->update != NULL;
    end(m);
}

void mupdate_view_close(struct mupdate_session *m)
{
    begin(m);
    DL_DELETE(m->service->d->mupdate_views, &m->view);
    end(m);
}
