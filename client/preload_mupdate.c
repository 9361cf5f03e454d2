/* preload_mupdate.c - Cyrus' mupdate client (imap/mupdate-client.h of 3.6.1), answered by the directory.
 *
 * Cyrus calls mupdate_connect, some verbs, mupdate_disconnect. Connecting costs nothing here: the process keeps one handle of the directory.
 *
 * mupdate_reserve can't be replaced: it is hidden in libcyrus_imap and called directly. It prints "X<n> RESERVE {n+}... {n+}..." to handle->conn->out and then calls
 * mupdate_scarf, by way of the PLT. So a handle of ours has a conn whose `out` writes to memory (prot_writebuf), and mupdate_scarf below reads what was
 * printed, does it, and answers. Nothing else in 3.6.1 writes there: all other verbs are replaced whole.
 *
 * What the answers do (imap/mboxlist.c, imap/imapd.c, imap/ctl_mboxlist.c of 3.6.1):
 *   MUPDATE_FAIL, _FAIL_RESERVE   the directory says no: CREATE and RENAME are rolled back, ctl_mboxlist goes on with the next mailbox
 *   MUPDATE_NOCONN                can't tell: the same, XFER tries once more, ctl_mboxlist -m stops
 *
 * mupdate_find is called by `ctl_mboxlist -m` alone, for a mailbox that is here and isn't listed here, and if it says "found" ctl_mboxlist WIPES the mailbox
 * here. It is never told so: the directory may be wrong, and the mail be here. What is active elsewhere is refused when ctl_mboxlist then tries to
 * activate it, said in syslog and on standard error, and left to a person. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include "preload_internal.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int mupdate_connect(const char *server, const char *port, struct mupdate_handle **handle, void *cbs);
EXPORT void mupdate_disconnect(struct mupdate_handle **hp);
EXPORT int mupdate_activate(struct mupdate_handle *h, const char *mailbox, const char *location, const char *acl);
EXPORT int mupdate_deactivate(struct mupdate_handle *h, const char *mailbox, const char *location);
EXPORT int mupdate_delete(struct mupdate_handle *h, const char *mailbox);
EXPORT int mupdate_find(struct mupdate_handle *h, const char *mailbox, struct mupdate_mailboxdata **target);
EXPORT int mupdate_list(struct mupdate_handle *h, mupdate_callback *callback, const char *prefix, void *context);
EXPORT int mupdate_noop(struct mupdate_handle *h, mupdate_callback *callback, void *context);
EXPORT int mupdate_scarf(struct mupdate_handle *h, mupdate_callback *callback, void *context, int wait_for_ok, enum mupdate_cmd_response *response);

struct mupdate_handle *preload_handle_create(void)
{
    struct mupdate_handle *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->conn = calloc(1, sizeof *h->conn);
    if (!h->conn) {
        free(h);
        return NULL;
    }
    h->conn->sock = -1;
    h->conn->out = preload_cyrus.prot_writebuf(&h->sent); /* Cyrus' allocator: never NULL */
    h->saslcompleted = 1;
    return h;
}

void preload_handle_destroy(struct mupdate_handle **hp)
{
    struct mupdate_handle *h = *hp;
    *hp = NULL;
    murder_session_end(&h->session);
    preload_cyrus.prot_free(h->conn->out);
    preload_cyrus.buf_free(&h->sent);
    free(h->acl);
    free(h->conn);
    free(h);
}

static int code(enum murder_result result, int refusal)
{
    switch (result) {
    case MURDER_OK:
        return 0;
    case MURDER_ABSENT:
    case MURDER_REFUSED:
        return refusal;
    default:
        return MUPDATE_NOCONN;
    }
}

static int done(enum murder_result result, int refusal, const char *verb, const char *mailbox)
{
    int r = code(result, refusal);
    if (r)
        murder_log(r == MUPDATE_NOCONN ? LOG_ERR : LOG_WARNING, "%s %s: %s", verb, mailbox, murder_message());
    return r;
}

EXPORT int mupdate_connect(const char *server, const char *port, struct mupdate_handle **handle, void *cbs)
{
    (void)server, (void)port, (void)cbs;
    if (!handle)
        return MUPDATE_BADPARAM;
    *handle = NULL;
    static bool tried;
    if (!tried && !preload_trial()) {
        /* It did before imapd.conf was read: so it is the configuration that makes the server's name disappear from locations. */
        murder_log(LOG_CRIT, "mupdate_config: replicated can't be served by raftdir: set it to standard");
        return MUPDATE_NOCONN;
    }
    tried = true;
    if (murder_open()) {
        murder_log(LOG_ERR, "%s", murder_message());
        return MUPDATE_NOCONN;
    }
    *handle = preload_handle_create();
    return *handle ? 0 : MUPDATE_NOCONN;
}

EXPORT void mupdate_disconnect(struct mupdate_handle **hp)
{
    if (hp && *hp)
        preload_handle_destroy(hp);
}

static bool bad(const struct mupdate_handle *h, const char *verb, const char *mailbox, const char *location)
{
    if (h && mailbox && location)
        return false;
    murder_log(LOG_ERR, "%s without %s", verb, !h ? "a handle" : !mailbox ? "a mailbox" : "a location");
    return true;
}

EXPORT int mupdate_activate(struct mupdate_handle *h, const char *mailbox, const char *location, const char *acl)
{
    if (bad(h, "ACTIVATE", mailbox, location))
        return MUPDATE_BADPARAM;
    return done(murder_activate(&h->session, mailbox, location, acl), MUPDATE_FAIL, "ACTIVATE", mailbox);
}

EXPORT int mupdate_deactivate(struct mupdate_handle *h, const char *mailbox, const char *location)
{
    if (bad(h, "DEACTIVATE", mailbox, location))
        return MUPDATE_BADPARAM;
    return done(murder_deactivate(&h->session, mailbox, location), MUPDATE_FAIL_RESERVE, "DEACTIVATE", mailbox);
}

EXPORT int mupdate_delete(struct mupdate_handle *h, const char *mailbox)
{
    if (bad(h, "DELETE", mailbox, ""))
        return MUPDATE_BADPARAM;
    enum murder_result result = murder_delete(&h->session, mailbox, *preload_cyrus.config_servername);
    if (result == MURDER_ABSENT) {
        murder_log(LOG_INFO, "DELETE %s: it was not in the directory", mailbox);
        return 0;
    }
    return done(result, MUPDATE_FAIL, "DELETE", mailbox);
}

EXPORT int mupdate_find(struct mupdate_handle *h, const char *mailbox, struct mupdate_mailboxdata **target)
{
    if (target)
        *target = NULL;
    if (!target || bad(h, "FIND", mailbox, ""))
        return MUPDATE_BADPARAM;
    const struct raftdir_mailbox *m;
    enum murder_result result = murder_find(mailbox, &m);
    if (result == MURDER_UNSURE)
        return done(result, MUPDATE_FAIL, "FIND", mailbox);
    if (result == MURDER_OK && strcmp(m->server, *preload_cyrus.config_servername) != 0) {
        murder_log(LOG_ERR, "%s is here, and the directory has it at %s!%s: nothing is wiped; see raftdir's CYRUS.md, \"Two servers have it\"", mailbox, m->server,
                   m->partition);
        fprintf(stderr, "%s: the directory has it at %s!%s; left alone\n", mailbox, m->server, m->partition);
    }
    return MUPDATE_MAILBOX_UNKNOWN;
}

struct listing {
    mupdate_callback *callback;
    void *context;
};

static int list_one(const struct raftdir_mailbox *m, void *data)
{
    struct listing *l = data;
    char location[MAX_MAILBOX_BUFFER];
    int n = snprintf(location, sizeof location, "%s!%s", m->server, m->partition);
    if (n < 0 || (size_t)n >= sizeof location)
        return MUPDATE_PROTOCOL_ERROR;
    struct mupdate_mailboxdata box = {m->name, location, m->reserved ? NULL : m->acl, m->reserved ? RESERVE : ACTIVE};
    return l->callback(&box, m->reserved ? "RESERVE" : "MAILBOX", l->context);
}

EXPORT int mupdate_list(struct mupdate_handle *h, mupdate_callback *callback, const char *prefix, void *context)
{
    if (bad(h, "LIST", callback ? "" : NULL, ""))
        return MUPDATE_BADPARAM;
    struct listing l = {callback, context};
    int stopped;
    enum murder_result result = murder_list(prefix, list_one, &l, &stopped);
    return stopped ? stopped : done(result, MUPDATE_FAIL, "LIST", prefix ? prefix : "");
}

EXPORT int mupdate_noop(struct mupdate_handle *h, mupdate_callback *callback, void *context)
{
    (void)context;
    if (bad(h, "NOOP", callback ? "" : NULL, ""))
        return MUPDATE_BADPARAM;
    return done(murder_barrier(), MUPDATE_FAIL, "NOOP", "");
}

/* What mupdate_reserve has printed. */
static int serve(struct mupdate_handle *h, enum mupdate_cmd_response *response)
{
    char *word[PRELOAD_WORDS_MAX];
    int n = h->sent.s ? preload_split(h->sent.s, h->sent.len, word) : -1;
    if (n != 4 || strcmp(word[1], "RESERVE") != 0) {
        murder_log(LOG_ERR, "Cyrus has said something unexpected to MUPDATE: this module doesn't fit it");
        return MUPDATE_PROTOCOL_ERROR;
    }
    enum murder_result result = murder_reserve(&h->session, word[2], word[3]);
    int r = done(result, MUPDATE_FAIL_RESERVE, "RESERVE", word[2]);
    if (r == MUPDATE_NOCONN)
        return r;
    *response = r ? MUPDATE_NO : MUPDATE_OK; /* NO: mupdate_reserve makes MUPDATE_FAIL_RESERVE of it */
    return 0;
}

EXPORT int mupdate_scarf(struct mupdate_handle *h, mupdate_callback *callback, void *context, int wait_for_ok, enum mupdate_cmd_response *response)
{
    (void)context;
    if (bad(h, "scarf", callback ? "" : NULL, ""))
        return MUPDATE_BADPARAM;
    if (!wait_for_ok || !response)
        return 0; /* nothing comes by itself */
    preload_cyrus.prot_flush(h->conn->out);
    int r = 0;
    if (h->probe) {
        *response = MUPDATE_OK;
        h->probe_same = h->sent.s && h->sent.len == strlen(h->probe) && memcmp(h->sent.s, h->probe, h->sent.len) == 0;
    } else {
        r = serve(h, response);
    }
    h->sent.len = 0;
    return r;
}
