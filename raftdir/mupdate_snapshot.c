/* mupdate_snapshot.c - see mupdate_snapshot.h.
 *
 * What isn't a prefix of a server's name alone is left to the store's index: "server!", and a single server. Several servers, or half a server's name, are compared with each mailbox's
 * place: a walk over all mailboxes in order is cheaper than a merge of many servers' rows, whose records lie all over the file.
 *
 * Nothing is left out for being damaged: each record's checksum is verified as it is read, each page accounts for its bytes (store_absent.c), and an error ends the list. */
#include "mupdate_snapshot.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "mem.h"

struct mupdate_snapshot {
    struct store *store;
    struct store_txn *txn; /* NULL: not begun, or ended */
    struct store_scan *scan;
    struct mupdate_word tag;
    struct mupdate_word *servers;
    size_t servers_n;
    struct mupdate_word prefix, partition; /* of the whole place, or of the partition on `server` */
    char *server;                          /* for the store's index; NULL: not used */
    uint64_t index;
    bool ended;
    char *text; /* where all of them are */
};

/* A name with a NUL byte is nobody's, and as text it would be another's. */
static bool is_text(const struct mupdate_word *w)
{
    return w->len && !memchr(w->s, '\0', w->len);
}

static struct mupdate_word keep(char **at, const struct mupdate_word *w)
{
    struct mupdate_word kept = {*at, w->len};
    if (w->len)
        memcpy(*at, w->s, w->len);
    (*at)[w->len] = '\0';
    *at += w->len + 1;
    return kept;
}

static void choose_index(struct mupdate_snapshot *r, char **at)
{
    const char *mark = r->prefix.len ? memchr(r->prefix.s, '!', r->prefix.len) : NULL;
    struct mupdate_word server = {r->prefix.s, mark ? (size_t)(mark - r->prefix.s) : 0};
    if (mark && is_text(&server)) {
        r->server = (char *)(uintptr_t)keep(at, &server).s;
        r->partition = (struct mupdate_word){mark + 1, r->prefix.len - server.len - 1};
        r->prefix.len = 0;
    } else if (!r->prefix.len && r->servers_n == 1 && is_text(&r->servers[0])) {
        r->server = (char *)(uintptr_t)r->servers[0].s;
        r->servers_n = 0;
    }
}

struct mupdate_snapshot *mupdate_snapshot_create(const struct mupdate_word *tag, const struct mupdate_snapshot_filter *filter)
{
    struct mupdate_snapshot *r = mem_calloc(1, sizeof *r);
    size_t len = tag->len + 2 * filter->prefix.len + 3;
    for (size_t i = 0; i < filter->servers_n; i++)
        len += filter->servers[i].len + 1;
    char *at = r->text = mem_alloc(len);
    r->tag = keep(&at, tag);
    r->prefix = keep(&at, &filter->prefix);
    r->servers_n = filter->servers_n;
    r->servers = mem_calloc(r->servers_n + 1, sizeof *r->servers);
    for (size_t i = 0; i < r->servers_n; i++)
        r->servers[i] = keep(&at, &filter->servers[i]);
    choose_index(r, &at);
    return r;
}

void mupdate_snapshot_of(struct mupdate_snapshot *r, struct store *store)
{
    assert(!r->store);
    r->store = store_ref(store);
}

static void let_go(struct mupdate_snapshot *r)
{
    r->ended = true;
    store_scan_end(&r->scan);
    store_read_end(&r->txn);
}

void mupdate_snapshot_destroy(struct mupdate_snapshot **rows)
{
    struct mupdate_snapshot *r = *rows;
    *rows = NULL;
    if (!r)
        return;
    let_go(r);
    if (r->store)
        store_close(&r->store);
    free(r->servers);
    free(r->text);
    free(r);
}

uint64_t mupdate_snapshot_index(const struct mupdate_snapshot *r)
{
    return r->index;
}

static int begin(struct mupdate_snapshot *r, struct err *err)
{
    struct store_meta meta;
    int rc = store_read_begin(r->store, &r->txn, err);
    if (rc == 0)
        rc = store_meta_get(r->txn, &meta, err);
    if (rc != 0)
        return rc;
    r->index = meta.applied_index;
    struct store_filter filter = {.server = r->server, .reserved = true};
    if ((rc = store_list_begin(&filter, NULL, &r->scan, err)) == 0)
        store_scan_bound(r->scan, MUPDATE_SNAPSHOT_TOUCHED);
    return rc;
}

static bool word_is(const struct mupdate_word *w, struct store_str s)
{
    return w->len == s.len && (s.len == 0 || memcmp(w->s, s.s, s.len) == 0);
}

/* Does "server!partition" begin with the prefix? */
static bool place_begins(const struct store_mailbox *m, const struct mupdate_word *prefix)
{
    size_t n = prefix->len < m->server.len ? prefix->len : m->server.len;
    if (memcmp(prefix->s, m->server.s, n) != 0)
        return false;
    if (prefix->len <= m->server.len)
        return true;
    size_t rest = prefix->len - m->server.len - 1;
    return prefix->s[m->server.len] == '!' && rest <= m->partition.len && (rest == 0 || memcmp(prefix->s + m->server.len + 1, m->partition.s, rest) == 0);
}

static bool wanted(const struct mupdate_snapshot *r, const struct store_mailbox *m)
{
    if (r->partition.len && (r->partition.len > m->partition.len || memcmp(r->partition.s, m->partition.s, r->partition.len) != 0))
        return false;
    if (r->prefix.len && !place_begins(m, &r->prefix))
        return false;
    for (size_t i = 0; i < r->servers_n; i++)
        if (word_is(&r->servers[i], m->server))
            return true;
    return r->servers_n == 0;
}

int mupdate_snapshot_piece(struct mupdate_snapshot *r, size_t len, const _Atomic bool *stop, struct mupdate_out *out, uint64_t *rows_r, struct err *err)
{
    struct store_mailbox m;
    uint64_t rows = 0;
    assert(!r->ended);
    int rc = r->txn ? 0 : begin(r, err);
    for (unsigned seen = 0; rc == 0 && out->len < len && seen < MUPDATE_SNAPSHOT_TOUCHED && !atomic_load_explicit(stop, memory_order_relaxed); seen++) {
        rc = store_scan_next(r->scan, r->txn, &m, NULL, err);
        if (rc == 0 && wanted(r, &m)) {
            mupdate_print_mailbox(out, &r->tag, &m);
            rows++;
        }
    }
    *rows_r = rows;
    if (rc == RAFTDIR_EBUSY) /* the bound, before a row was found */
        rc = 0;
    if (rc != 0)
        let_go(r);
    return rc;
}
