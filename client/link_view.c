/* link_view.c - Cyrus' mailbox list as it reads it: the records of this server, and the directory's (link.h).
 *
 * Only the database that is the mailbox list is looked at, only records of names ('N') and the reverse index of ACLs ('A'); only reads outside of a transaction. Within
 * one Cyrus is changing its own records, and holds the lock of the whole database: then nobody else is asked. So writes are as they always were, and the directory hears
 * of them by mupdate_*() (link_mupdate.c).
 *
 * Which of the two counts, for one name:
 *
 *     local record                    directory                        the view
 *     a mailbox (reserved, moving)    whatever                         the local record; the directory isn't asked
 *     a tombstone, an empty level     on another server, or reserved   the directory's
 *                                     not there, or on this server     the local record
 *     none, or a slave's leftover     on another server, or reserved   the directory's
 *                                     not there                        not there
 *                                     on this server                   not there, to Cyrus itself: what is here, it knows; to a client or a sender of mail: can't tell,
 *                                                                      since it may be mailboxes.db that is wrong (proxy_mlookup)
 *     one of the last two             can't tell                       can't tell (IMAP_AGAIN, 451), never "not there"
 *
 * The reverse index is always there, and is the directory's; where Cyrus keeps one of its own (reverseacls), it goes on being written for the day on which the
 * stock programs are used again. With crossdomains there is none: the directory bounds `anyone` by domain, and Cyrus then reads all names.
 *
 * The order is Cyrus': both come in the order of the database's keys, and are merged. */
#include "link.h"

#include <string.h>
#include <stdlib.h>
#include <syslog.h>

#include "imap/global.h"
#include "imap/imap_err.h"
#include "imap/mboxname.h"
#include "imap/proxy.h"
#include "lib/libconfig.h"
#include "lib/xmalloc.h"
#include "murder.h"

#define KEY_NAME 'N'
#define KEY_ACL 'A'
#define ACL_SEP '\x1E'
#define ACL_MARK "AS\x1E" /* there is a reverse index */

static struct db *view;       /* this process's mailbox list, while it is open */
static int in_transaction;    /* of that database */
static int own_index;         /* it has a reverse index of its own */
static int for_client;        /* Cyrus looks something up to tell a client, not to work on its own mailboxes */
static int kick_failed;       /* the state may lack what others were told to be done */

static void note_transaction(struct txn **tid)
{
    if (tid)
        in_transaction = *tid != NULL;
}

static int is_view(const struct db *db)
{
    return db && db == view;
}

/* Whether the directory has a say in this read. */
static int asks(const struct db *db, struct txn **tid, size_t len)
{
    return is_view(db) && !tid && !in_transaction && len && !(link_scope && link_scope->here);
}

static int index_usable(void)
{
    return !config_getswitch(IMAPOPT_CROSSDOMAINS);
}

static int is_mailbox_list(const char *fname)
{
    const char *path = config_getstring(IMAPOPT_MBOXLIST_DB_PATH);
    if (path)
        return strcmp(fname, path) == 0;
    size_t len = config_dir ? strlen(config_dir) : 0;
    return config_dir && strncmp(fname, config_dir, len) == 0 && strcmp(fname + len, FNAME_MBOXLIST) == 0;
}

int __real_cyrusdb_fetch(struct db *db, const char *key, size_t len, const char **data_r, size_t *len_r, struct txn **tid);
int __real_cyrusdb_foreach(struct db *db, const char *prefix, size_t len, foreach_p *p, foreach_cb *cb, void *rock, struct txn **tid);

/* --- One record ------------------------------------------------------------------------------------------------------------------------------- */

/* "No such mailbox", said to a client or to a sender of mail. */
static int cant_tell(const struct buf *name, const char *why)
{
    murder_log(LOG_ERR, "can't tell where %s is: %s", buf_cstring(name), why);
    if (link_scope)
        link_scope->failed = 1;
    return CYRUSDB_AGAIN;
}

/* A name that has no local record that counts: 0 with the directory's, CYRUSDB_NOTFOUND, CYRUSDB_AGAIN. */
static int directory_record(const char *db, size_t len, struct buf *record_r)
{
    const struct link_row *row = link_scope && link_scope->loaded ? link_scope_row(link_scope, db, len) : NULL;
    if (row && row->data) {
        buf_setcstr(record_r, row->data);
        buf_cstring(record_r);
        return CYRUSDB_OK;
    }
    struct buf name = BUF_INITIALIZER;
    const struct raftdir_mailbox *m;
    link_name_from_db(db, len, &name);
    if (link_scope)
        link_scope->counts.lookups++;
    enum murder_result result = murder_find(buf_cstring(&name), &m);
    if (result == MURDER_ABSENT && kick_failed) {
        /* What somebody was told to be done may be missing in what we see. */
        kick_failed = murder_barrier() != MURDER_OK;
        result = kick_failed ? MURDER_UNSURE : murder_find(buf_cstring(&name), &m);
    }
    int r = CYRUSDB_NOTFOUND;
    if (result == MURDER_OK) {
        enum link_row_kind kind = link_row_record(m, record_r);
        if (kind == LINK_ROW_ELSEWHERE)
            r = CYRUSDB_OK;
        else if (kind == LINK_ROW_HERE && for_client)
            r = cant_tell(&name, "the directory has it here, mailboxes.db doesn't: see ctl_mboxlist -mw");
    } else if (result != MURDER_ABSENT)
        r = cant_tell(&name, murder_message());
    buf_free(&name);
    return r;
}

/* The view of one name. The data lives until the next call, as that of Cyrus' own databases. */
static int view_fetch(const char *key, size_t len, const char **data_r, size_t *len_r)
{
    static struct buf record = BUF_INITIALIZER;
    const char *local = NULL;
    size_t local_len = 0;
    enum link_local kind = LINK_LOCAL_STALE;
    int r = __real_cyrusdb_fetch(view, key, len, &local, &local_len, NULL);
    if (r != CYRUSDB_OK && r != CYRUSDB_NOTFOUND)
        return r;
    if (r == CYRUSDB_OK)
        kind = link_local_kind(local, local_len);
    if (kind != LINK_LOCAL_LIVE) {
        r = directory_record(key + 1, len - 1, &record);
        if (r == CYRUSDB_OK) {
            local = buf_cstring(&record);
            local_len = buf_len(&record);
        } else if (r == CYRUSDB_NOTFOUND && kind == LINK_LOCAL_WEAK)
            r = CYRUSDB_OK;
    }
    if (r == CYRUSDB_OK && data_r)
        *data_r = local;
    if (r == CYRUSDB_OK && len_r)
        *len_r = local_len;
    return r;
}

/* --- Names that begin with ... ---------------------------------------------------------------------------------------------------------------------- */

struct merge {
    raftdir *directory;
    raftdir_list *list;     /* of the directory; NULL: nothing of it is wanted */
    int row;                /* there is one, that is not told yet: */
    struct buf key, record;
    foreach_p *p;
    foreach_cb *cb;
    void *rock;
    int code;               /* why the list can't go on; 0 */
    struct buf local_key, local_data;
};

static void merge_next(struct merge *g)
{
    const struct raftdir_mailbox *m;
    struct buf db = BUF_INITIALIZER;
    int rc;
    g->row = 0;
    while (!g->row && g->list && (rc = raftdir_list_next(g->list, &m)) != 0) {
        if (rc < 0) {
            link_complain(g->directory, rc, "a list can't be finished", NULL);
            g->code = rc;
            break;
        }
        if (link_row_record(m, &g->record) != LINK_ROW_ELSEWHERE)
            continue;
        link_name_to_db(m->name, &db);
        buf_reset(&g->key);
        buf_putc(&g->key, KEY_NAME);
        buf_append(&g->key, &db);
        buf_cstring(&g->key);
        g->row = 1;
        if (link_scope)
            link_scope->counts.rows++;
    }
    buf_free(&db);
}

static int merge_tell(struct merge *g)
{
    int r = 0;
    if (!g->p || g->p(g->rock, buf_base(&g->key), buf_len(&g->key), buf_base(&g->record), buf_len(&g->record)))
        r = g->cb(g->rock, buf_base(&g->key), buf_len(&g->key), buf_base(&g->record), buf_len(&g->record));
    if (!r)
        merge_next(g);
    return r ? r : g->code ? IMAP_AGAIN : 0;
}

static int merge_compare(const struct merge *g, const char *key, size_t len)
{
    size_t have = buf_len(&g->key);
    int c = memcmp(buf_base(&g->key), key, have < len ? have : len);
    return c ? c : (have > len) - (have < len);
}

static int merge_local(void *rock, const char *key, size_t len, const char *data, size_t data_len)
{
    struct merge *g = rock;
    int r;
    if (g->row && merge_compare(g, key, len) <= 0) {
        /* What is told now may read the database, and move its map away under the record. */
        buf_setmap(&g->local_key, key, len);
        buf_setmap(&g->local_data, data, data_len);
        key = buf_cstring(&g->local_key);
        data = buf_cstring(&g->local_data);
        while (g->row && merge_compare(g, key, len) < 0)
            if ((r = merge_tell(g)) != 0)
                return r;
    }
    enum link_local kind = link_local_kind(data, data_len);
    if (g->row && merge_compare(g, key, len) == 0) {
        if (kind != LINK_LOCAL_LIVE)
            return merge_tell(g);
        merge_next(g);
        if (g->code)
            return IMAP_AGAIN;
    } else if (kind == LINK_LOCAL_STALE)
        return 0;
    if (g->p && !g->p(g->rock, key, len, data, data_len))
        return 0;
    return g->cb(g->rock, key, len, data, data_len);
}

/* The narrower of two prefixes; NULL: nothing begins with both. */
static const char *narrower(const char *a, const char *b)
{
    size_t alen = strlen(a), blen = strlen(b);
    if (strncmp(a, b, alen < blen ? alen : blen) != 0)
        return NULL;
    return alen > blen ? a : b;
}

static int view_foreach(const char *prefix, size_t len, foreach_p *p, foreach_cb *cb, void *rock)
{
    struct merge g = { .p = p, .cb = cb, .rock = rock };
    struct buf wanted = BUF_INITIALIZER, name = BUF_INITIALIZER;
    int r = 0;
    buf_setmap(&wanted, prefix + 1, len - 1);
    const char *only = buf_cstring(&wanted);
    if (link_scope && link_scope->only)
        only = narrower(only, link_scope->only);
    if (only) {
        raftdir *d = link_directory();
        struct raftdir_filter filter;
        raftdir_filter_init(&filter);
        link_name_from_db(only, strlen(only), &name);
        filter.prefix = buf_cstring(&name);
        g.directory = d;
        g.code = d ? raftdir_list_open(d, &filter, &g.list) : RAFTDIR_EUNAVAIL;
        if (g.code)
            link_complain(d, g.code, "can't list what begins with", filter.prefix);
        else
            merge_next(&g);
        if (link_scope)
            link_scope->counts.lists++;
        r = g.code ? IMAP_AGAIN : 0;
    }
    if (!r)
        r = __real_cyrusdb_foreach(view, prefix, len, NULL, merge_local, &g, NULL);
    while (!r && g.row)
        r = merge_tell(&g);
    if (link_scope) {
        uint64_t touched = 0, skips = 0;
        if (g.list)
            raftdir_list_counters(g.list, &touched, &skips);
        link_scope->counts.touched += touched;
        link_scope->counts.skips += skips;
        if (g.code)
            link_scope->failed = 1;
    }
    raftdir_list_close(&g.list);
    buf_free(&g.key);
    buf_free(&g.record);
    buf_free(&g.local_key);
    buf_free(&g.local_data);
    buf_free(&wanted);
    buf_free(&name);
    return r;
}

/* --- The reverse index --------------------------------------------------------------------------------------------------------------------------------- */

static int is_of_a_user(const char *db)
{
    const char *sep = strchr(db, '\x1D'), *deleted = config_getstring(IMAPOPT_DELETEDPREFIX);
    if (sep)
        db = sep + 1;
    size_t len = deleted ? strlen(deleted) : 0;
    if (len && strncmp(db, deleted, len) == 0 && db[len] == '\x1F')
        db += len + 1;
    return strncmp(db, "user\x1F", 5) == 0;
}

/* `A`, `U` (of users) or `S` (shared), RS, whose rights, RS, name. Cyrus asks for the user, for each group, last for anyone, and takes all of it together:
 * the whole answer is given where it asks for anyone. */
static int index_foreach(const char *prefix, size_t len, foreach_p *p, foreach_cb *cb, void *rock)
{
    static const char anyone[] = "anyone";
    const size_t head = 3;
    const char *sep = len > head ? memchr(prefix + head, ACL_SEP, len - head) : NULL;
    if (!sep || !link_scope) {
        syslog(LOG_ERR, "raftdir: Cyrus reads its reverse index in a way that isn't known here: this Cyrus is none that client/CYRUS.md speaks of");
        return CYRUSDB_INTERNAL;
    }
    if ((size_t)(sep - prefix) != head + sizeof anyone - 1 || memcmp(prefix + head, anyone, sizeof anyone - 1) != 0)
        return 0;
    struct link_scope *s = link_scope;
    if (link_scope_load(s) < 0)
        return CYRUSDB_AGAIN;
    const char *name = sep + 1;
    size_t name_len = (size_t)(prefix + len - name);
    int r = 0;
    struct buf key = BUF_INITIALIZER;
    for (size_t i = 0; !r && i < s->rows_n; i++) {
        const char *db = s->row[i].db;
        if (is_of_a_user(db) != (prefix[1] == 'U') || strncmp(db, name, name_len) != 0)
            continue;
        buf_setmap(&key, prefix, (size_t)(name - prefix));
        buf_appendcstr(&key, db);
        buf_cstring(&key);
        if (!p || p(rock, buf_base(&key), buf_len(&key), "", 0))
            r = cb(rock, buf_base(&key), buf_len(&key), "", 0);
    }
    buf_free(&key);
    return r;
}

/* --- Cyrus' functions ----------------------------------------------------------------------------------------------------------------------------------- */

/* Cyrus kicks its mupdate slave when it doesn't find something, and looks again. */
WRAPPED(void, kick_mupdate, void)
{
    if (!link_enabled())
        return;
    kick_failed = murder_barrier() != MURDER_OK;
    if (kick_failed)
        murder_log(LOG_ERR, "the directory can't be asked: %s", murder_message());
}

/* What the services ask for clients' commands and for recipients of mail. */
WRAPPED(int, proxy_mlookup, const char *name, mbentry_t **mbentry, void *tid, struct mbox_refer *refer)
{
    int outer = for_client;
    for_client = 1;
    int r = __real_proxy_mlookup(name, mbentry, tid, refer);
    for_client = outer;
    return r;
}

WRAPPED(int, cyrusdb_open, const char *backend, const char *fname, int flags, struct db **ret)
{
    int r = __real_cyrusdb_open(backend, fname, flags, ret);
    if (!r && link_enabled() && is_mailbox_list(fname)) {
        view = *ret;
        in_transaction = 0;
        own_index = __real_cyrusdb_fetch(view, ACL_MARK, strlen(ACL_MARK), NULL, NULL, NULL) == CYRUSDB_OK;
    }
    return r;
}

WRAPPED(int, cyrusdb_close, struct db *db)
{
    if (is_view(db))
        view = NULL;
    return __real_cyrusdb_close(db);
}

int __wrap_cyrusdb_fetch(struct db *db, const char *key, size_t len, const char **data_r, size_t *len_r, struct txn **tid);
int __wrap_cyrusdb_fetch(struct db *db, const char *key, size_t len, const char **data_r, size_t *len_r, struct txn **tid)
{
    if (asks(db, tid, len) && key[0] == KEY_NAME)
        return view_fetch(key, len, data_r, len_r);
    /* Asked once, when the list is opened, whoever made Cyrus open it. */
    if (is_view(db) && !tid && index_usable() && len == strlen(ACL_MARK) && memcmp(key, ACL_MARK, len) == 0) {
        if (data_r)
            *data_r = "";
        if (len_r)
            *len_r = 0;
        return CYRUSDB_OK;
    }
    int r = __real_cyrusdb_fetch(db, key, len, data_r, len_r, tid);
    if (is_view(db))
        note_transaction(tid);
    return r;
}

WRAPPED(int, cyrusdb_fetchlock, struct db *db, const char *key, size_t len, const char **data_r, size_t *len_r, struct txn **tid)
{
    int r = __real_cyrusdb_fetchlock(db, key, len, data_r, len_r, tid);
    if (is_view(db))
        note_transaction(tid);
    return r;
}

WRAPPED(int, cyrusdb_forone, struct db *db, const char *key, size_t len, foreach_p *p, foreach_cb *cb, void *rock, struct txn **tid)
{
    const char *data = NULL;
    size_t data_len = 0;
    if (!asks(db, tid, len) || key[0] != KEY_NAME) {
        int r = __real_cyrusdb_forone(db, key, len, p, cb, rock, tid);
        if (is_view(db))
            note_transaction(tid);
        return r;
    }
    int r = view_fetch(key, len, &data, &data_len);
    if (r == CYRUSDB_NOTFOUND)
        return 0;
    if (r)
        return r == CYRUSDB_AGAIN ? IMAP_AGAIN : r;
    return !p || p(rock, key, len, data, data_len) ? cb(rock, key, len, data, data_len) : 0;
}

int __wrap_cyrusdb_foreach(struct db *db, const char *prefix, size_t len, foreach_p *p, foreach_cb *cb, void *rock, struct txn **tid);
int __wrap_cyrusdb_foreach(struct db *db, const char *prefix, size_t len, foreach_p *p, foreach_cb *cb, void *rock, struct txn **tid)
{
    if (asks(db, tid, len)) {
        if (prefix[0] == KEY_NAME)
            return view_foreach(prefix, len, p, cb, rock);
        if (prefix[0] == KEY_ACL && index_usable())
            return index_foreach(prefix, len, p, cb, rock);
    }
    int r = __real_cyrusdb_foreach(db, prefix, len, p, cb, rock, tid);
    if (is_view(db))
        note_transaction(tid);
    return r;
}

/* Cyrus believes that it has a reverse index, and keeps it: where it really has one, let it. */
static int is_index_row(const struct db *db, const char *key, size_t len)
{
    return is_view(db) && !own_index && len && key[0] == KEY_ACL && index_usable();
}

WRAPPED(int, cyrusdb_store, struct db *db, const char *key, size_t len, const char *data, size_t data_len, struct txn **tid)
{
    if (is_index_row(db, key, len))
        return CYRUSDB_OK;
    int r = __real_cyrusdb_store(db, key, len, data, data_len, tid);
    if (is_view(db))
        note_transaction(tid);
    return r;
}

WRAPPED(int, cyrusdb_delete, struct db *db, const char *key, size_t len, struct txn **tid, int force)
{
    if (is_index_row(db, key, len))
        return CYRUSDB_OK;
    int r = __real_cyrusdb_delete(db, key, len, tid, force);
    if (is_view(db))
        note_transaction(tid);
    return r;
}

WRAPPED(int, cyrusdb_commit, struct db *db, struct txn *tid)
{
    if (is_view(db))
        in_transaction = 0;
    return __real_cyrusdb_commit(db, tid);
}

WRAPPED(int, cyrusdb_abort, struct db *db, struct txn *tid)
{
    if (is_view(db))
        in_transaction = 0;
    return __real_cyrusdb_abort(db, tid);
}
