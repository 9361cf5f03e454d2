/* link_mupdate.c - Cyrus' mupdate client (imap/mupdate-client.h), answered by the directory through murder.h, in a linked Cyrus (link.h). What the verbs
 * do is said there; what their answers do in Cyrus, and why `ctl_mboxlist -m` is never told that a mailbox of its own is elsewhere, in preload_mupdate.c.
 *
 * Cyrus' handle is opaque to all but its mupdate server (imap/mupdate), which must not be linked with this file. */
#include "link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

#include "imap/mupdate-client.h"
#include "imap/mupdate_err.h"
#include "lib/libconfig.h"
#include "lib/xmalloc.h"
#include "murder.h"

struct mupdate_handle_s {
    struct murder_session session;
};

static int answer(enum murder_result result, int refusal, const char *verb, const char *mailbox)
{
    if (result == MURDER_OK)
        return 0;
    int r = result == MURDER_UNSURE ? MUPDATE_NOCONN : refusal;
    murder_log(r == MUPDATE_NOCONN ? LOG_ERR : LOG_NOTICE, "%s %s: %s", verb, mailbox, murder_message());
    return r;
}

static int bad(const void *handle, const char *verb, const char *mailbox, const char *location)
{
    if (handle && mailbox && location)
        return 0;
    murder_log(LOG_ERR, "%s without %s", verb, !handle ? "a handle" : !mailbox ? "a mailbox" : "a location");
    return 1;
}

WRAPPED(int, mupdate_connect, const char *server, const char *port, mupdate_handle **handle, sasl_callback_t *cbs)
{
    (void)server, (void)port, (void)cbs;
    if (!handle)
        return MUPDATE_BADPARAM;
    *handle = NULL;
    if (config_mupdate_config == IMAP_ENUM_MUPDATE_CONFIG_REPLICATED) {
        /* Its locations have no server in them. */
        murder_log(LOG_CRIT, "mupdate_config: replicated can't be served by raftdir: set it to standard or unified");
        return MUPDATE_NOCONN;
    }
    if (murder_open()) {
        murder_log(LOG_ERR, "%s", murder_message());
        return MUPDATE_NOCONN;
    }
    *handle = xzmalloc(sizeof **handle);
    return 0;
}

WRAPPED(void, mupdate_disconnect, mupdate_handle **handle)
{
    if (!handle || !*handle)
        return;
    murder_session_end(&(*handle)->session);
    free(*handle);
    *handle = NULL;
}

WRAPPED(int, mupdate_reserve, mupdate_handle *handle, const char *mailbox, const char *location)
{
    if (bad(handle, "RESERVE", mailbox, location))
        return MUPDATE_BADPARAM;
    return answer(murder_reserve(&handle->session, mailbox, location), MUPDATE_FAIL_RESERVE, "RESERVE", mailbox);
}

WRAPPED(int, mupdate_activate, mupdate_handle *handle, const char *mailbox, const char *location, const char *acl)
{
    if (bad(handle, "ACTIVATE", mailbox, location))
        return MUPDATE_BADPARAM;
    return answer(murder_activate(&handle->session, mailbox, location, acl), MUPDATE_FAIL, "ACTIVATE", mailbox);
}

WRAPPED(int, mupdate_deactivate, mupdate_handle *handle, const char *mailbox, const char *location)
{
    if (bad(handle, "DEACTIVATE", mailbox, location))
        return MUPDATE_BADPARAM;
    return answer(murder_deactivate(&handle->session, mailbox, location), MUPDATE_FAIL_RESERVE, "DEACTIVATE", mailbox);
}

WRAPPED(int, mupdate_delete, mupdate_handle *handle, const char *mailbox)
{
    if (bad(handle, "DELETE", mailbox, ""))
        return MUPDATE_BADPARAM;
    enum murder_result result = murder_delete(&handle->session, mailbox, config_servername);
    if (result == MURDER_ABSENT) {
        murder_log(LOG_INFO, "DELETE %s: it was not in the directory", mailbox);
        return 0;
    }
    return answer(result, MUPDATE_FAIL, "DELETE", mailbox);
}

WRAPPED(int, mupdate_find, mupdate_handle *handle, const char *mailbox, struct mupdate_mailboxdata **target)
{
    if (target)
        *target = NULL;
    if (!target || bad(handle, "FIND", mailbox, ""))
        return MUPDATE_BADPARAM;
    const struct raftdir_mailbox *m;
    enum murder_result result = murder_find(mailbox, &m);
    if (result == MURDER_UNSURE)
        return answer(result, MUPDATE_FAIL, "FIND", mailbox);
    if (result == MURDER_OK && strcmp(m->server, config_servername) != 0) {
        murder_log(LOG_ERR, "%s is here, and the directory has it at %s!%s: nothing is wiped; see raftdir's CYRUS.md, \"Two servers have it\"", mailbox, m->server,
                   m->partition);
        fprintf(stderr, "%s: the directory has it at %s!%s; left alone\n", mailbox, m->server, m->partition);
    }
    return MUPDATE_MAILBOX_UNKNOWN;
}

struct listing {
    mupdate_callback callback;
    void *context;
};

static int list_one(const struct raftdir_mailbox *m, void *data)
{
    struct listing *l = data;
    struct buf location = BUF_INITIALIZER;
    buf_printf(&location, "%s!%s", m->server, m->partition);
    struct mupdate_mailboxdata box = { m->name, buf_cstring(&location), m->reserved ? NULL : m->acl, m->reserved ? RESERVE : ACTIVE };
    int r = l->callback(&box, m->reserved ? "RESERVE" : "MAILBOX", l->context);
    buf_free(&location);
    return r;
}

WRAPPED(int, mupdate_list, mupdate_handle *handle, mupdate_callback callback, const char *prefix, void *context)
{
    if (bad(handle, "LIST", callback ? "" : NULL, ""))
        return MUPDATE_BADPARAM;
    struct listing l = { callback, context };
    int stopped;
    enum murder_result result = murder_list(prefix, list_one, &l, &stopped);
    return stopped ? stopped : answer(result, MUPDATE_FAIL, "LIST", prefix ? prefix : "");
}

WRAPPED(int, mupdate_noop, mupdate_handle *handle, mupdate_callback callback, void *context)
{
    (void)context;
    if (bad(handle, "NOOP", callback ? "" : NULL, ""))
        return MUPDATE_BADPARAM;
    return answer(murder_barrier(), MUPDATE_FAIL, "NOOP", "");
}
