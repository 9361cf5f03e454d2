/* link_find.c - for whom a list of mailboxes is made, and what that user may see (link.h).
 *
 * Cyrus' list functions are wrapped only to be noted: who asks, with which groups and patterns. The work is Cyrus' own. Where it reads the reverse index of ACLs, it
 * gets what the directory's gave to one question, asked when the first row of it is wanted: the names, and for the rows that it then reads one by one, their records.
 *
 * Patterns narrow that question to what begins as they do: LIST "" "INBOX.%" asks nothing. Only where the first part of the pattern maps to one part of the name space;
 * in doubt the whole is asked for, and Cyrus matches each name as it always does.
 *
 * A list that can't be finished ends the connection ("* BYE", 421): imapd would say OK after half of it, and clients throw away what isn't in it. */
#include "link.h"

#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#include "imap/imap_err.h"
#include "imap/mboxname.h"
#include "imap/sync_support.h"
#include "lib/libconfig.h"
#include "lib/xmalloc.h"

struct link_scope *link_scope;

/* --- The rows of one question -------------------------------------------------------------------------------------------------------------- */

static int begins(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static void row_add(struct link_scope *s, const char *db, const char *data)
{
    if (s->rows_n == s->rows_size) {
        s->rows_size = s->rows_size ? 2 * s->rows_size : 64;
        s->row = xrealloc(s->row, s->rows_size * sizeof *s->row);
    }
    struct link_row *row = &s->row[s->rows_n];
    row->db = xstrdup(db);
    row->data = data && s->rows_n < LINK_ROWS_KEPT_MAX ? xstrdup(data) : NULL;
    s->rows_n++;
}

/* The user's own mailboxes come by another way: they are his whatever their ACL says. */
static int is_own(const char *db, const char *inbox)
{
    return inbox && begins(db, inbox) && (db[strlen(inbox)] == '\0' || db[strlen(inbox)] == '\x1F');
}

int link_scope_load(struct link_scope *s)
{
    if (s->loaded || s->nothing)
        return 0;
    raftdir *d = link_directory();
    if (!d) {
        s->failed = 1;
        return RAFTDIR_EUNAVAIL;
    }
    struct buf name = BUF_INITIALIZER, record = BUF_INITIALIZER, inbox = BUF_INITIALIZER, pattern = BUF_INITIALIZER;
    strarray_t *groups = s->auth_state ? auth_groups(s->auth_state) : NULL;
    if (s->userid) {
        char *own = mboxname_user_mbox(s->userid, NULL);
        link_name_to_db(own, &inbox);
        free(own);
    }
    if (s->only && !strpbrk(s->only, "*%")) { /* these would be wildcards */
        link_name_from_db(s->only, strlen(s->only), &pattern);
        buf_putc(&pattern, '*');
    }
    struct raftdir_visible who;
    raftdir_visible_init(&who);
    who.user = s->userid ? s->userid : "anonymous";
    who.groups = groups ? (const char *const *)groups->data : NULL;
    who.groups_n = groups ? (size_t)groups->count : 0;
    who.rights = "lr";
    who.pattern = buf_len(&pattern) ? buf_cstring(&pattern) : NULL;
    raftdir_list *list = NULL;
    const struct raftdir_mailbox *m;
    int rc = raftdir_visible_open(d, &who, &list);
    s->counts.lists++;
    while (rc >= 0 && (rc = raftdir_list_next(list, &m)) > 0) {
        link_name_to_db(m->name, &name);
        const char *db = buf_cstring(&name);
        if (is_own(db, buf_len(&inbox) ? buf_cstring(&inbox) : NULL) || (s->only && !begins(db, s->only)))
            continue;
        row_add(s, db, link_row_record(m, &record) == LINK_ROW_ELSEWHERE ? buf_cstring(&record) : NULL);
        s->counts.rows++;
    }
    if (list) {
        uint64_t touched, skips;
        raftdir_list_counters(list, &touched, &skips);
        s->counts.touched += touched;
        s->counts.skips += skips;
    }
    link_complain(d, rc, "can't list what may be seen by", who.user); /* before the list goes: the text is of the handle's last call */
    raftdir_list_close(&list);
    strarray_free(groups);
    buf_free(&name);
    buf_free(&record);
    buf_free(&inbox);
    buf_free(&pattern);
    if (rc < 0)
        s->failed = 1;
    else
        s->loaded = 1;
    return rc;
}

const struct link_row *link_scope_row(const struct link_scope *s, const char *db, size_t len)
{
    size_t low = 0, high = s->rows_n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const char *have = s->row[mid].db;
        int c = strncmp(have, db, len);
        if (c == 0)
            c = have[len] != '\0';
        if (c == 0)
            return &s->row[mid];
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

/* --- Patterns -------------------------------------------------------------------------------------------------------------------------------- */

/* What all names that match begin with, in the database's form: the whole levels before the first wildcard of a single pattern. NULL: can't be said. */
static char *literal_part(const struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid)
{
    if (!ns || strarray_size(patterns) != 1 || config_getswitch(IMAPOPT_CROSSDOMAINS))
        return NULL;
    /* An administrator's `shared/%` is that of every domain. */
    if (isadmin && config_virtdomains)
        return NULL;
    const char *pattern = strarray_nth(patterns, 0);
    /* `\Special`; names of other domains, as administrators write them */
    if (*pattern == '\\' || strchr(pattern, '@'))
        return NULL;
    size_t len = strcspn(pattern, "*%?");
    int whole = pattern[len] == '\0';
    while (len && pattern[len - 1] != ns->hier_sep && !whole)
        len--;
    if (len && pattern[len - 1] == ns->hier_sep)
        len--;
    if (!len)
        return NULL;
    char *ext = xstrndup(pattern, len), *intname = NULL;
    char *sep = strchr(ext, ns->hier_sep);
    size_t top = sep ? (size_t)(sep - ext) : strlen(ext);
    const char *deleted = config_getstring(IMAPOPT_DELETEDPREFIX);
    /* INBOX is found in any case, and in names of deleted mailboxes the last level is a time. */
    int odd = (top == 5 && strncasecmp(ext, "INBOX", 5) == 0) || (deleted && top == strlen(deleted) && strncmp(ext, deleted, top) == 0);
    /* Where other users and what is shared are below a level of their own, that level alone is no mailbox. */
    if (ns->isalt && !sep)
        for (int i = NAMESPACE_USER; i <= NAMESPACE_SHARED; i++)
            odd |= strlen(ns->prefix[i]) == top + 1 && strncmp(ns->prefix[i], ext, top) == 0;
    if (!odd)
        intname = mboxname_from_external(ext, ns, userid);
    free(ext);
    if (!intname || !*intname) {
        free(intname);
        return NULL;
    }
    struct buf db = BUF_INITIALIZER;
    link_name_to_db(intname, &db);
    free(intname);
    return buf_release(&db);
}

static int is_inbox_pattern(const struct namespace *ns, const strarray_t *patterns)
{
    const char *pattern = strarray_nth(patterns, 0);
    return strarray_size(patterns) == 1 && strncasecmp(pattern, "INBOX", 5) == 0 && (pattern[5] == '\0' || pattern[5] == ns->hier_sep);
}

/* --- Scopes ------------------------------------------------------------------------------------------------------------------------------------ */

static void scope_begin(struct link_scope *s, const char *call, const struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid,
                        const struct auth_state *auth_state)
{
    memset(s, 0, sizeof *s);
    s->outer = link_scope;
    s->call = call;
    s->userid = userid;
    s->auth_state = auth_state;
    s->here = s->outer && s->outer->here;
    link_scope = s;
    if (!link_enabled() || !patterns || strarray_size(patterns) < 1)
        return;
    /* Nobody in particular asks: XFER and XBACKUP of a partition, annotations by pattern. That work is done for the mailboxes of this server. */
    s->here |= !ns && isadmin && !userid;
    s->only = literal_part(ns, patterns, isadmin, userid);
    s->nothing = ns && !isadmin && userid && is_inbox_pattern(ns, patterns);
}

/* One line for each list that asked the directory, in the file that imapd.conf names as raftdir_list_log: what it costs. */
static void scope_log(const struct link_scope *s)
{
    const char *file = config_getoverflowstring("raftdir_list_log", NULL);
    if (!file || !(s->counts.lists + s->counts.lookups))
        return;
    int fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    struct buf line = BUF_INITIALIZER;
    buf_printf(&line, "%lld %ld %s user=%s rows=%llu touched=%llu skips=%llu lists=%llu lookups=%llu\n", (long long)time(NULL), (long)getpid(), s->call,
               s->userid ? s->userid : "", (unsigned long long)s->counts.rows, (unsigned long long)s->counts.touched, (unsigned long long)s->counts.skips,
               (unsigned long long)s->counts.lists, (unsigned long long)s->counts.lookups);
    if (write(fd, buf_base(&line), buf_len(&line)) < 0)
        syslog(LOG_WARNING, "raftdir: %s: %m", file);
    close(fd);
    buf_free(&line);
}

static int scope_end(struct link_scope *s)
{
    int failed = s->failed;
    link_scope = s->outer;
    if (failed && s->outer)
        s->outer->failed = 1;
    if (link_enabled())
        scope_log(s);
    for (size_t i = 0; i < s->rows_n; i++) {
        free(s->row[i].db);
        free(s->row[i].data);
    }
    free(s->row);
    free(s->only);
    return failed;
}
static int list_end(struct link_scope *s, int r)
{
    if (scope_end(s))
        fatal("the mailbox directory can't be read now", EX_TEMPFAIL);
    return r;
}

/* --- Cyrus' functions ---------------------------------------------------------------------------------------------------------------------------- */

static void list_begin(struct link_scope *s, const char *call, struct namespace *ns, const char *pattern, int isadmin, const char *userid,
                       const struct auth_state *auth_state)
{
    strarray_t patterns = STRARRAY_INITIALIZER;
    strarray_append(&patterns, pattern);
    scope_begin(s, call, ns, &patterns, isadmin, userid, auth_state);
    strarray_fini(&patterns);
}

WRAPPED(int, mboxlist_findall, struct namespace *ns, const char *pattern, int isadmin, const char *userid, const struct auth_state *auth_state, findall_cb *proc,
        void *rock)
{
    struct link_scope s;
    list_begin(&s, "findall", ns, pattern, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findall(ns, pattern, isadmin, userid, auth_state, proc, rock));
}
WRAPPED(int, mboxlist_findall_withp, struct namespace *ns, const char *pattern, int isadmin, const char *userid, const struct auth_state *auth_state, findall_p *p,
        findall_cb *cb, void *rock)
{
    struct link_scope s;
    list_begin(&s, "findall", ns, pattern, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findall_withp(ns, pattern, isadmin, userid, auth_state, p, cb, rock));
}
WRAPPED(int, mboxlist_findallmulti, struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid, const struct auth_state *auth_state,
        findall_cb *proc, void *rock)
{
    struct link_scope s;
    scope_begin(&s, "findall", ns, patterns, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findallmulti(ns, patterns, isadmin, userid, auth_state, proc, rock));
}
WRAPPED(int, mboxlist_findallmulti_withp, struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid, const struct auth_state *auth_state,
        findall_p *p, findall_cb *cb, void *rock)
{
    struct link_scope s;
    scope_begin(&s, "findall", ns, patterns, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findallmulti_withp(ns, patterns, isadmin, userid, auth_state, p, cb, rock));
}
WRAPPED(int, mboxlist_findone, struct namespace *ns, const char *intname, int isadmin, const char *userid, const struct auth_state *auth_state, findall_cb *proc,
        void *rock)
{
    struct link_scope s;
    scope_begin(&s, "findone", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findone(ns, intname, isadmin, userid, auth_state, proc, rock));
}
WRAPPED(int, mboxlist_findone_withp, struct namespace *ns, const char *intname, int isadmin, const char *userid, const struct auth_state *auth_state, findall_p *p,
        findall_cb *cb, void *rock)
{
    struct link_scope s;
    scope_begin(&s, "findone", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findone_withp(ns, intname, isadmin, userid, auth_state, p, cb, rock));
}
/* Subscriptions are in a database of the user's; of the directory, they need lookups. */
WRAPPED(int, mboxlist_findsub, struct namespace *ns, const char *pattern, int isadmin, const char *userid, const struct auth_state *auth_state, findall_cb *proc,
        void *rock, int force)
{
    struct link_scope s;
    scope_begin(&s, "findsub", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findsub(ns, pattern, isadmin, userid, auth_state, proc, rock, force));
}
WRAPPED(int, mboxlist_findsub_withp, struct namespace *ns, const char *pattern, int isadmin, const char *userid, const struct auth_state *auth_state, findall_p *p,
        findall_cb *cb, void *rock, int force)
{
    struct link_scope s;
    scope_begin(&s, "findsub", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findsub_withp(ns, pattern, isadmin, userid, auth_state, p, cb, rock, force));
}
WRAPPED(int, mboxlist_findsubmulti, struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid, const struct auth_state *auth_state,
        findall_cb *proc, void *rock, int force)
{
    struct link_scope s;
    scope_begin(&s, "findsub", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findsubmulti(ns, patterns, isadmin, userid, auth_state, proc, rock, force));
}
WRAPPED(int, mboxlist_findsubmulti_withp, struct namespace *ns, const strarray_t *patterns, int isadmin, const char *userid, const struct auth_state *auth_state,
        findall_p *p, findall_cb *cb, void *rock, int force)
{
    struct link_scope s;
    scope_begin(&s, "findsub", ns, NULL, isadmin, userid, auth_state);
    return list_end(&s, __real_mboxlist_findsubmulti_withp(ns, patterns, isadmin, userid, auth_state, p, cb, rock, force));
}
/* What another server sends here, by XFER or replication: whether it can be taken, only this server's own mailboxes say. The directory has it elsewhere until it is here. */
static void here_begin(struct link_scope *s, const char *call)
{
    scope_begin(s, call, NULL, NULL, 0, NULL, NULL);
    s->here = 1;
}
WRAPPED(const char *, sync_apply, struct dlist *kin, struct sync_reserve_list *reserve_list, struct sync_state *state)
{
    struct link_scope s;
    here_begin(&s, "sync_apply");
    const char *answer = __real_sync_apply(kin, reserve_list, state);
    scope_end(&s);
    return answer;
}
WRAPPED(const char *, sync_get, struct dlist *kin, struct sync_state *state)
{
    struct link_scope s;
    here_begin(&s, "sync_get");
    const char *answer = __real_sync_get(kin, state);
    scope_end(&s);
    return answer;
}
WRAPPED(const char *, sync_restore, struct dlist *kin, struct sync_reserve_list *reserve_list, struct sync_state *state)
{
    struct link_scope s;
    here_begin(&s, "sync_restore");
    const char *answer = __real_sync_restore(kin, reserve_list, state);
    scope_end(&s);
    return answer;
}
/* LOCALCREATE, of XFER with older servers, asks in the same way. */
WRAPPED(int, mboxlist_createmailboxlock, const mbentry_t *mbentry, unsigned options, modseq_t highestmodseq, unsigned isadmin, const char *userid,
        const struct auth_state *auth_state, unsigned flags, struct mailbox **mailbox_r)
{
    struct link_scope s;
    if (flags & MBOXLIST_CREATE_LOCALONLY)
        here_begin(&s, "create");
    int r = __real_mboxlist_createmailboxlock(mbentry, options, highestmodseq, isadmin, userid, auth_state, flags, mailbox_r);
    if (flags & MBOXLIST_CREATE_LOCALONLY)
        scope_end(&s);
    return r;
}

/* Callers of these look at what they return. That they begin a scope of their own keeps the patterns of a list from narrowing what its callbacks ask. */
static int tree_end(struct link_scope *s, int r)
{
    int failed = scope_end(s);
    return r == 0 && failed ? IMAP_AGAIN : r;
}
WRAPPED(int, mboxlist_usermboxtree, const char *userid, const struct auth_state *auth_state, mboxlist_cb *proc, void *rock, int flags)
{
    struct link_scope s;
    scope_begin(&s, "usermboxtree", NULL, NULL, 0, userid, auth_state);
    return tree_end(&s, __real_mboxlist_usermboxtree(userid, auth_state, proc, rock, flags));
}
WRAPPED(int, mboxlist_mboxtree, const char *mboxname, mboxlist_cb *proc, void *rock, int flags)
{
    struct link_scope s;
    scope_begin(&s, "mboxtree", NULL, NULL, 0, NULL, NULL);
    return tree_end(&s, __real_mboxlist_mboxtree(mboxname, proc, rock, flags));
}
WRAPPED(int, mboxlist_allmbox, const char *prefix, mboxlist_cb *proc, void *rock, int flags)
{
    struct link_scope s;
    scope_begin(&s, "allmbox", NULL, NULL, 0, NULL, NULL);
    return tree_end(&s, __real_mboxlist_allmbox(prefix, proc, rock, flags));
}
WRAPPED(int, mboxlist_alluser, user_cb *proc, void *rock)
{
    struct link_scope s;
    scope_begin(&s, "alluser", NULL, NULL, 0, NULL, NULL);
    return tree_end(&s, __real_mboxlist_alluser(proc, rock));
}
