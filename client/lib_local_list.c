/* lib_local_list.c - listings from this host's copy of the state. See lib_local.h.
 *
 * A chunk of rows is read in one transaction and copied; it ends before the first row of it is given. So a caller that stops between two rows, for hours or by SIGSTOP,
 * pins no page. The position is a name: the next chunk may be of another snapshot, or of another generation. Rows of one listing may be of different
 * indexes, each row is whole, and no chunk is older than the one before. When a chunk can't be read here, the listing goes on by socket behind the last row. */
#include "lib_local.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_LEN (256u << 10) /* a chunk ends beyond so many bytes of strings */

struct block {
    struct block *next;
    size_t used, size;
    char s[];
};

struct local_list {
    struct raftdir *d;
    const Raftdir__Client__List *list; /* what is asked; `who` where it is not NULL */
    const Raftdir__Client__Visible *who;
    struct store_scan *scan;
    struct local_key key; /* of the state that the scan was begun in: principals have other ids in another cluster's */
    struct store_counters before; /* of the scans before this one */
    bool ended, began;
    int level;
    uint64_t left; /* rows that may still be given */
    uint64_t incarnation, index; /* of the last chunk */
    struct raftdir_mailbox rows[LOCAL_CHUNK_ROWS];
    size_t rows_n, row;
    struct block *blocks; /* the strings of `rows` */
    char *last;           /* the name that ended the chunk before */
};

static char *block_room(struct local_list *l, size_t len)
{
    struct block *b = l->blocks;
    if (!b || len > b->size - b->used) {
        size_t size = len > LOCAL_BLOCK_LEN ? len : LOCAL_BLOCK_LEN;
        if (!(b = malloc(sizeof *b + size)))
            return NULL;
        b->used = 0;
        b->size = size;
        b->next = l->blocks;
        l->blocks = b;
    }
    b->used += len;
    return b->s + b->used - len;
}

/* All but one, which is enough for most chunks. */
static void blocks_reset(struct local_list *l, bool all)
{
    while (l->blocks && (all || l->blocks->next)) {
        struct block *b = l->blocks;
        l->blocks = b->next;
        free(b);
    }
    if (l->blocks)
        l->blocks->used = 0;
}

/* 0: rows, or none yet; RAFTDIR_ENOTFOUND: and that was the end; RAFTDIR_ENOMEM; other codes: the state's trouble, in l->why. */
static int rows_read(struct local_list *l)
{
    struct local *local = l->d->local;
    struct store_counters first, now;
    size_t len = 0;
    int rc = 0;
    store_scan_counters(l->scan, &first);
    now = first;
    while (l->rows_n < LOCAL_CHUNK_ROWS && len < CHUNK_LEN && now.touched - first.touched < LOCAL_CHUNK_TOUCHED) {
        struct store_mailbox m;
        acl_rights rights = 0;
        rc = store_scan_next(l->scan, local->txn, &m, l->who ? &rights : NULL, &local->why);
        if (rc == RAFTDIR_EBUSY)
            return 0; /* the bound of touched rows: on in the next chunk */
        if (rc != 0)
            return rc;
        store_scan_counters(l->scan, &now);
        size_t n = local_text_len(&m);
        char *at = block_room(l, n);
        if (!at)
            return err_set(&l->d->err, RAFTDIR_ENOMEM, "out of memory");
        len += n;
        local_mailbox(&l->rows[l->rows_n++], &m, l->who ? &rights : NULL, at);
        if (--l->left == 0)
            return RAFTDIR_ENOTFOUND;
    }
    return 0;
}

/* Behind `after`; NULL: where the request begins. */
static int scan_begin(struct local_list *l, const char *after)
{
    struct err *err = &l->d->err;
    if (l->scan) {
        local_list_counters(l, &l->before.touched, &l->before.skips);
        store_scan_end(&l->scan);
    }
    int rc;
    if (l->who) {
        struct acl_subject who = {.user = l->who->user, .groups = (const char *const *)l->who->groups, .groups_n = l->who->n_groups};
        rc = store_ask_visible(&who, l->who->rights, l->who->pattern, after ? after : l->who->after, &l->scan, err);
    } else {
        const Raftdir__Client__List *q = l->list;
        struct store_filter filter = {.prefix = q->prefix, .pattern = q->pattern, .server = q->server, .partition = q->partition, .reserved = q->reserved};
        rc = store_ask_list(&filter, after ? after : q->after, &l->scan, err);
    }
    if (rc == 0)
        store_scan_bound(l->scan, LOCAL_CHUNK_TOUCHED);
    return rc;
}

static bool key_is(const struct local_key *a, const struct local_key *b)
{
    return a->cluster_id == b->cluster_id && a->node_id == b->node_id && a->generation == b->generation;
}

/* One try. 0; LOCAL_PASS; RAFTDIR_EBUSY: the state was replaced meanwhile; RAFTDIR_ENOMEM. */
static int chunk_try(struct local_list *l)
{
    struct raftdir *d = l->d;
    struct local_view v;
    l->rows_n = l->row = 0;
    blocks_reset(l, false);
    int rc = local_begin(d, l->level, l->index, &v);
    if (rc != 0)
        return rc;
    struct local *local = d->local;
    if (l->began && (v.incarnation != l->incarnation || local->key.cluster_id != l->key.cluster_id)) {
        local_end(d);
        return LOCAL_PASS;
    }
    if (!key_is(&l->key, &local->key)) {
        if ((rc = scan_begin(l, l->last)) != 0) {
            local_end(d);
            return rc;
        }
        l->key = local->key;
    }
    rc = rows_read(l);
    store_scan_release(l->scan);
    if (!local_end(d)) {
        l->key.generation = 0; /* the scan has gone on without its rows: to be begun anew */
        l->rows_n = 0;
        return RAFTDIR_EBUSY;
    }
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND) {
        l->rows_n = 0;
        return rc == RAFTDIR_ENOMEM ? err_set(&d->err, RAFTDIR_ENOMEM, "out of memory") : LOCAL_PASS;
    }
    l->ended = rc == RAFTDIR_ENOTFOUND;
    l->began = true;
    l->incarnation = v.incarnation;
    l->index = v.index;
    local_answered(d, &v);
    local->why.code = 0;
    return 0;
}

static int chunk(struct local_list *l)
{
    if (l->rows_n) {
        char *last = strdup(l->rows[l->rows_n - 1].name);
        if (!last)
            return err_set(&l->d->err, RAFTDIR_ENOMEM, "out of memory");
        free(l->last);
        l->last = last;
    }
    uint64_t left = l->left;
    for (int i = 0; i < LOCAL_TRIES; i++) {
        l->left = left;
        int rc = chunk_try(l);
        if (rc != RAFTDIR_EBUSY)
            return rc;
    }
    return LOCAL_PASS;
}

int local_list_open(struct raftdir *d, const Raftdir__Client__List *list, const Raftdir__Client__Visible *who, uint64_t limit, struct local_list **l_r)
{
    if (!d->local || d->pinned >= 0 || d->level == RAFTDIR_LINEARIZABLE)
        return LOCAL_PASS;
    struct local_list *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(&d->err, RAFTDIR_ENOMEM, "out of memory");
    l->d = d;
    l->level = d->level;
    l->left = limit ? limit : UINT64_MAX;
    l->list = list;
    l->who = who;
    int rc = scan_begin(l, NULL); /* what is wrong with the request is found without any state */
    if (rc == 0) {
        struct local_view v;
        if ((rc = local_begin(d, l->level, 0, &v)) == 0) {
            l->key = d->local->key;
            local_end(d);
            rc = chunk(l);
        }
    }
    if (rc != 0)
        local_list_close(&l);
    *l_r = l;
    return rc;
}

int local_list_next(struct local_list *l, uint64_t deadline, const struct raftdir_mailbox **m_r)
{
    while (l->row == l->rows_n) {
        if (l->ended)
            return 0;
        int rc = chunk(l);
        if (rc == LOCAL_PASS)
            return LOCAL_LIST_PASS;
        if (rc != 0)
            return rc;
        if (!l->rows_n && !l->ended && lib_now_ms() >= deadline)
            return err_set(&l->d->err, RAFTDIR_ETIMEDOUT, "%s: no row that matches was found in time", l->d->local->endpoint);
    }
    *m_r = &l->rows[l->row++];
    return 1;
}

bool local_list_began(const struct local_list *l)
{
    return l->began;
}

void local_list_state(const struct local_list *l, uint64_t *incarnation_r, uint64_t *index_r)
{
    *incarnation_r = l->incarnation;
    *index_r = l->index;
}

const char *local_list_last(const struct local_list *l)
{
    return l->last;
}

void local_list_counters(const struct local_list *l, uint64_t *touched_r, uint64_t *skips_r)
{
    struct store_counters c;
    store_scan_counters(l->scan, &c);
    *touched_r = l->before.touched + c.touched;
    *skips_r = l->before.skips + c.skips;
}

void local_list_close(struct local_list **lp)
{
    struct local_list *l = *lp;
    *lp = NULL;
    if (!l)
        return;
    if (l->scan)
        store_scan_end(&l->scan);
    blocks_reset(l, true);
    free(l->last);
    free(l);
}
