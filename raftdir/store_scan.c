/* store_scan.c - lists and what a user may see, in Cyrus' mailbox order.
 *
 * Happy path: a scan has sources, each an ascending run of name keys: the table mailbox itself, or rows `id || NAME` of the table store
 * (a filter on server or partition: one source for each store whose active slot is there) or of racl (visible: one for the user, each group and
 * `anyone`). A binary heap merges them. A key that the pattern refuses is passed by a seek to the next key that it may match, in every source;
 * for visible, a key whose rows already say no is passed without reading the record, and a record that is read is evaluated
 * exactly, by acl_eval over its whole ACL.
 *
 * Rule for `anyone` (Cyrus' virtdomains): its entries make a mailbox visible to the users of the mailbox's own domain only; for users without a
 * domain, mailboxes without one. A positive entry for the user or one of the groups makes a mailbox a candidate in any domain, and then
 * the whole ACL counts, as it does for MYRIGHTS.
 *
 * Counters: touched counts every row that a cursor or a get returned (index rows, principals, store and mailbox records); skips counts seeks.
 * A source costs one seek for each range at its start.
 *
 * The position is the last name given, so a scan survives its transaction; then sources are looked up anew and sought once more. */
#include <stdlib.h>
#include <string.h>
#include "name.h"
#include "store_pattern.h"
#include "store_state.h"

struct source {
    MDB_cursor *cursor;
    uint64_t id;
    MDB_val key, value; /* of the current row; in the map */
    uintptr_t page;     /* that was checked last */
};

struct store_scan {
    bool visible;
    /* list */
    char *prefix, *pattern, *server, *partition;
    bool reserved;
    /* visible */
    char *user;
    char **groups;
    struct acl_subject who;
    acl_rights rights;
    uint64_t *ids; /* principals: the groups, then the user, then anyone. 0: not known, or none yet; ids are never taken back */

    struct store_pattern levels;
    struct store_range range[2];
    unsigned ranges_n, range_i;
    uint8_t last[NAME_KEY_LEN_MAX];
    size_t last_len;
    bool has_last, done;

    /* Of the snapshot that it is bound to. */
    struct store_txn *txn;
    uint64_t snapshot;
    enum store_table table;
    size_t id_len; /* bytes before the name key in a row's key */
    struct source *sources;
    size_t sources_n, sources_size;
    size_t *heap; /* indexes of sources that have a row, least key first */
    size_t heap_n;
    struct store_counters counters;
    uint64_t touched_max; /* in one call; 0: any */
};

static char *copy_text(const char *s, bool *failed)
{
    if (!s)
        return NULL;
    char *copy = strdup(s);
    if (!copy)
        *failed = true;
    return copy;
}

static int scan_create(const char *prefix, const char *pattern, const char *after, struct store_scan **scan_r, struct err *err)
{
    bool failed = false;
    struct store_scan *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, RAFTDIR_ENOMEM, "list: out of memory");
    s->prefix = copy_text(prefix, &failed);
    s->pattern = copy_text(pattern, &failed);
    if (failed) {
        store_scan_end(&s);
        return err_set(err, RAFTDIR_ENOMEM, "list: out of memory");
    }
    if (s->pattern)
        store_pattern_init(&s->levels, s->pattern);
    /* Both hold; the longer literal is the narrower range. */
    size_t prefix_len = prefix ? strlen(prefix) : 0, literal_len = pattern ? name_pattern_literal(pattern) : 0;
    if (prefix_len > literal_len)
        s->ranges_n = store_pattern_ranges(prefix, prefix_len, s->range);
    else
        s->ranges_n = store_pattern_ranges(pattern ? pattern : "", literal_len, s->range);
    s->done = s->ranges_n == 0;
    if (after) {
        size_t len = strlen(after);
        if (len > NAME_KEY_LEN_MAX) {
            store_scan_end(&s);
            return err_set(err, RAFTDIR_ETOOBIG, "the name to resume after has %zu bytes, more than %d", len, NAME_KEY_LEN_MAX);
        }
        s->last_len = name_to_key(after, len, s->last);
        s->has_last = len > 0;
    }
    *scan_r = s;
    return 0;
}

int store_list_begin(const struct store_filter *filter, const char *after, struct store_scan **scan_r, struct err *err)
{
    static const struct store_filter all = {0};
    bool failed = false;
    if (!filter)
        filter = &all;
    int rc = scan_create(filter->prefix, filter->pattern, after, scan_r, err);
    if (rc)
        return rc;
    struct store_scan *s = *scan_r;
    s->server = copy_text(filter->server, &failed);
    s->partition = copy_text(filter->partition, &failed);
    s->reserved = filter->reserved;
    if (failed) {
        store_scan_end(scan_r);
        return err_set(err, RAFTDIR_ENOMEM, "list: out of memory");
    }
    return 0;
}

int store_visible_begin(const struct acl_subject *who, acl_rights rights, const char *pattern, const char *after, struct store_scan **scan_r,
                        struct err *err)
{
    bool failed = false;
    if (who->groups_n > USER_GROUPS_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "%zu groups, more than %d", who->groups_n, USER_GROUPS_MAX);
    if (!who->user || !*who->user)
        return err_set(err, RAFTDIR_EINVAL, "user name is empty");
    int rc = scan_create(NULL, pattern, after, scan_r, err);
    if (rc)
        return rc;
    struct store_scan *s = *scan_r;
    s->visible = true;
    s->rights = rights;
    s->user = copy_text(who->user, &failed);
    s->groups = calloc(who->groups_n ? who->groups_n : 1, sizeof *s->groups);
    s->ids = calloc(who->groups_n + 2, sizeof *s->ids);
    if (!s->groups || !s->ids)
        failed = true;
    for (size_t i = 0; i < who->groups_n && !failed; i++) {
        s->groups[i] = copy_text(who->groups[i], &failed);
        s->who.groups_n = i + 1;
    }
    if (failed) {
        store_scan_end(scan_r);
        return err_set(err, RAFTDIR_ENOMEM, "list: out of memory");
    }
    s->who.user = s->user;
    s->who.groups = (const char *const *)s->groups;
    return 0;
}

void store_scan_counters(const struct store_scan *scan, struct store_counters *c_r)
{
    *c_r = scan->counters;
}

void store_scan_bound(struct store_scan *scan, uint64_t touched_max)
{
    scan->touched_max = touched_max;
}

void store_scan_release(struct store_scan *s)
{
    for (size_t i = 0; i < s->sources_n; i++)
        mdb_cursor_close(s->sources[i].cursor);
    s->sources_n = 0;
    s->heap_n = 0;
    s->txn = NULL;
    s->snapshot = 0;
}

void store_scan_end(struct store_scan **scan)
{
    struct store_scan *s = *scan;
    if (!s)
        return;
    store_scan_release(s);
    free(s->prefix);
    free(s->pattern);
    free(s->server);
    free(s->partition);
    free(s->user);
    for (size_t i = 0; i < s->who.groups_n && s->groups; i++)
        free(s->groups[i]);
    free(s->groups);
    free(s->ids);
    free(s->sources);
    free(s->heap);
    free(s);
    *scan = NULL;
}

static int add_source(struct store_scan *s, uint64_t id, struct err *err)
{
    for (size_t i = 0; i < s->sources_n; i++) { /* a group given twice; a store with two slots on one server */
        if (s->sources[i].id == id)
            return 0;
    }
    if (s->sources_n == s->sources_size) {
        size_t size = s->sources_size ? 2 * s->sources_size : 8;
        struct source *sources = realloc(s->sources, size * sizeof *sources);
        if (sources)
            s->sources = sources;
        size_t *heap = sources ? realloc(s->heap, size * sizeof *heap) : NULL;
        if (!heap)
            return err_set(err, RAFTDIR_ENOMEM, "list: out of memory");
        s->heap = heap;
        s->sources_size = size;
    }
    struct source *src = &s->sources[s->sources_n];
    *src = (struct source){.id = id};
    int rc = mdb_cursor_open(s->txn->mdb, s->txn->store->dbi[s->table], &src->cursor);
    if (rc)
        return store_fail(err, rc, "open a cursor");
    s->sources_n++;
    return 0;
}

static int add_principal(struct store_scan *s, uint64_t *id, const char *text, size_t len, struct err *err)
{
    if (!*id) {
        int rc = store_racl_principal(s->txn, text, len, id, err);
        if (rc == RAFTDIR_ENOTFOUND)
            return 0; /* nobody has ever named it in an ACL */
        if (rc)
            return rc;
        s->counters.touched++;
    }
    return add_source(s, *id, err);
}

static int open_visible(struct store_scan *s, struct err *err)
{
    char text[STORE_ANYONE_LEN + IDENTIFIER_LEN_MAX + 6];
    size_t user_len = strlen(s->user);
    int rc = 0;
    /* A user isn't a group by calling himself one; longer than any identifier, nothing can name him. */
    if (user_len <= IDENTIFIER_LEN_MAX && strncmp(s->user, "group:", 6) != 0)
        rc = add_principal(s, &s->ids[s->who.groups_n], text, acl_principal(s->user, user_len, text), err);
    for (size_t i = 0; i < s->who.groups_n && !rc; i++) {
        const char *group = s->groups[i];
        if (strncmp(group, "group:", 6) == 0)
            group += 6;
        size_t len = strlen(group);
        if (len + 6 > IDENTIFIER_LEN_MAX)
            continue;
        memcpy(text, "group:", 6);
        memcpy(text + 6, group, len);
        rc = add_principal(s, &s->ids[i], text, len + 6, err);
    }
    const char *at = strrchr(s->user, '@');
    size_t domain_len = at ? strlen(at + 1) : 0;
    if (!rc && domain_len <= IDENTIFIER_LEN_MAX) {
        memcpy(text, STORE_ANYONE, STORE_ANYONE_LEN);
        if (domain_len)
            memcpy(text + STORE_ANYONE_LEN, at + 1, domain_len);
        rc = add_principal(s, &s->ids[s->who.groups_n + 1], text, STORE_ANYONE_LEN + domain_len, err);
    }
    return rc;
}

/* Is the active slot of a store where the filter wants it? */
static bool place_matches(const struct store_scan *s, const struct record_store *place)
{
    const struct record_slot *slot = &place->slot[place->active];
    return (!s->server || (slot->server.len == strlen(s->server) && memcmp(slot->server.s, s->server, slot->server.len) == 0)) &&
           (!s->partition || (slot->partition.len == strlen(s->partition) && memcmp(slot->partition.s, s->partition, slot->partition.len) == 0));
}

/* One source for each store: those with a slot on the server, or all of them when only the partition is given. */
static int open_stores(struct store_scan *s, struct err *err)
{
    uint8_t start[8];
    uint64_t server_id = 0;
    enum store_table table = s->server ? TABLE_SLOT : TABLE_STORES;
    int rc = 0;
    if (s->server) {
        rc = store_server_find(s->txn, (struct store_str){s->server, strlen(s->server)}, &server_id, err);
        if (rc)
            return rc == RAFTDIR_ENOTFOUND ? 0 : rc;
        s->counters.touched++;
    }
    put_be64(start, server_id);
    MDB_cursor *cursor;
    rc = mdb_cursor_open(s->txn->mdb, s->txn->store->dbi[table], &cursor);
    if (rc)
        return store_fail(err, rc, "open a cursor");
    MDB_val k = {sizeof start, start}, v;
    int rc2 = 0;
    s->counters.skips++;
    for (rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE); rc == 0 && rc2 == 0; rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
        s->counters.touched += 2;
        if (k.mv_size < 8 || (s->server && v.mv_size != 8)) {
            rc2 = err_set(err, RAFTDIR_ECORRUPT, "table %s has a malformed row", store_table_name(table));
            break;
        }
        if (s->server && get_be64(k.mv_data) != server_id)
            break;
        uint64_t id = get_be64(s->server ? v.mv_data : k.mv_data);
        const struct record_store *place;
        rc2 = store_place_get(s->txn, id, &place, err);
        if (!rc2 && place_matches(s, place))
            rc2 = add_source(s, id, err);
    }
    mdb_cursor_close(cursor);
    if (rc2)
        return rc2;
    return rc && rc != MDB_NOTFOUND ? store_fail(err, rc, "read stores") : 0;
}

static int cmp_keys(const struct store_scan *s, size_t a, size_t b)
{
    const MDB_val *x = &s->sources[s->heap[a]].key, *y = &s->sources[s->heap[b]].key;
    return name_key_cmp((const uint8_t *)x->mv_data + s->id_len, x->mv_size - s->id_len, (const uint8_t *)y->mv_data + s->id_len,
                        y->mv_size - s->id_len);
}

static void heap_swap(struct store_scan *s, size_t a, size_t b)
{
    size_t t = s->heap[a];
    s->heap[a] = s->heap[b];
    s->heap[b] = t;
}

static void heap_down(struct store_scan *s, size_t i)
{
    for (;;) {
        size_t least = i, left = 2 * i + 1;
        if (left < s->heap_n && cmp_keys(s, left, least) < 0)
            least = left;
        if (left + 1 < s->heap_n && cmp_keys(s, left + 1, least) < 0)
            least = left + 1;
        if (least == i)
            return;
        heap_swap(s, i, least);
        i = least;
    }
}

static void heap_push(struct store_scan *s, size_t source)
{
    size_t i = s->heap_n++;
    s->heap[i] = source;
    while (i && cmp_keys(s, i, (i - 1) / 2) < 0) {
        heap_swap(s, i, (i - 1) / 2);
        i = (i - 1) / 2;
    }
}

/* Moves a source to the least key at or after `name` (after: strictly), or to the next one (name NULL). *has_r: there is one in the range. */
static int source_move(struct store_scan *s, struct source *src, const uint8_t *name, size_t len, bool after, bool *has_r, struct err *err)
{
    uint8_t key[STORE_KEY_MAX];
    int rc;
    *has_r = false;
    if (!name) {
        rc = mdb_cursor_get(src->cursor, &src->key, &src->value, MDB_NEXT);
    } else {
        if (s->id_len)
            put_be64(key, src->id);
        memcpy(key + s->id_len, name, len);
        src->key = (MDB_val){s->id_len + len, key};
        s->counters.skips++;
        rc = mdb_cursor_get(src->cursor, &src->key, &src->value, src->key.mv_size ? MDB_SET_RANGE : MDB_FIRST);
        if (rc == 0 && after && src->key.mv_size == s->id_len + len && memcmp(src->key.mv_data, key, src->key.mv_size) == 0) {
            s->counters.touched++;
            rc = mdb_cursor_get(src->cursor, &src->key, &src->value, MDB_NEXT);
        }
    }
    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc)
        return store_fail(err, rc, "list");
    s->counters.touched++;
    rc = store_leaf_check(s->txn, s->table, &src->key, &src->page, err);
    if (rc)
        return rc;
    const struct store_range *range = &s->range[s->range_i];
    const uint8_t *p = src->key.mv_data;
    if (s->id_len && (src->key.mv_size <= s->id_len || get_be64(p) != src->id))
        return 0;
    if (src->key.mv_size - s->id_len > NAME_KEY_LEN_MAX)
        return err_set(err, RAFTDIR_ECORRUPT, "table %s has a malformed row", store_table_name(s->table));
    if (s->table == TABLE_RACL && src->value.mv_size != 8)
        return err_set(err, RAFTDIR_ECORRUPT, "table racl has a malformed row");
    *has_r = src->key.mv_size - s->id_len >= range->len && memcmp(p + s->id_len, range->prefix, range->len) == 0;
    return 0;
}

/* Puts every source to where the scan goes on in the present range. */
static int start_range(struct store_scan *s, struct err *err)
{
    const struct store_range *range = &s->range[s->range_i];
    const uint8_t *from = range->prefix;
    size_t from_len = range->len;
    bool after = s->has_last && name_key_cmp(s->last, s->last_len, from, from_len) >= 0;
    if (after) {
        from = s->last;
        from_len = s->last_len;
    }
    s->heap_n = 0;
    for (size_t i = 0; i < s->sources_n; i++) {
        bool has;
        int rc = source_move(s, &s->sources[i], from, from_len, after, &has, err);
        if (rc)
            return rc;
        if (has)
            heap_push(s, i);
    }
    return 0;
}

/* Binds the scan to a snapshot. */
static int bind(struct store_scan *s, struct store_txn *txn, struct err *err)
{
    if (s->txn == txn && s->snapshot == txn->snapshot)
        return 0;
    store_scan_release(s);
    s->txn = txn;
    s->snapshot = txn->snapshot;
    s->range_i = 0;
    int rc;
    if (s->visible) {
        s->table = TABLE_RACL;
        s->id_len = 8;
        rc = open_visible(s, err);
    } else if (s->server || s->partition) {
        s->table = TABLE_STORE;
        s->id_len = 8;
        rc = open_stores(s, err);
    } else {
        s->table = TABLE_MAILBOX;
        s->id_len = 0;
        rc = add_source(s, 0, err);
    }
    return rc ? rc : start_range(s, err);
}

/* The source on top moves on; the heap stays in order. */
static int top_move(struct store_scan *s, const uint8_t *name, size_t len, struct err *err)
{
    bool has;
    int rc = source_move(s, &s->sources[s->heap[0]], name, len, false, &has, err);
    if (rc)
        return rc;
    if (!has)
        s->heap[0] = s->heap[--s->heap_n];
    heap_down(s, 0);
    return 0;
}

static bool top_is_below(const struct store_scan *s, const uint8_t *name, size_t len)
{
    if (!s->heap_n)
        return false;
    const MDB_val *k = &s->sources[s->heap[0]].key;
    return name_key_cmp((const uint8_t *)k->mv_data + s->id_len, k->mv_size - s->id_len, name, len) < 0;
}

static bool top_is(const struct store_scan *s, const uint8_t *name, size_t len)
{
    if (!s->heap_n)
        return false;
    const MDB_val *k = &s->sources[s->heap[0]].key;
    return k->mv_size - s->id_len == len && memcmp((const uint8_t *)k->mv_data + s->id_len, name, len) == 0;
}

/* Is s->last in the user's domain? Only then the rows of `anyone` are among those that were merged. */
static bool own_domain(const struct store_scan *s)
{
    const char *at = strrchr(s->user, '@');
    const uint8_t *sep = memchr(s->last, 0x1D, s->last_len);
    size_t user_len = at ? strlen(at + 1) : 0, len = sep ? (size_t)(sep - s->last) : 0;
    return len == user_len && (len == 0 || memcmp(s->last, at + 1, len) == 0);
}

/* Reads the record of s->last; ENOTFOUND: not a row for this scan. */
static int read_row(struct store_scan *s, const MDB_val *value, struct store_mailbox *m, acl_rights *rights_r, struct err *err)
{
    struct store_txn *txn = s->txn;
    struct record r;
    MDB_val v;
    int rc;
    if (s->table == TABLE_MAILBOX) {
        rc = record_decode(s->last, s->last_len, value->mv_data, value->mv_size, &r, err);
        if (rc && err)
            err_wrap(err, "mailbox \"%s\"", m->name);
    } else {
        s->counters.touched++;
        rc = store_mailbox_get(txn, s->last, s->last_len, &r, &v, err);
        if (rc == RAFTDIR_ENOTFOUND)
            return err_set(err, RAFTDIR_ECORRUPT, "table %s has a row for \"%s\", which doesn't exist", store_table_name(s->table), m->name);
    }
    if (rc)
        return rc;
    if (r.state == STORE_RESERVED) {
        if (s->visible)
            return err_set(err, RAFTDIR_ECORRUPT, "table racl has a row for \"%s\", which isn't active", m->name);
        if (!s->reserved)
            return RAFTDIR_ENOTFOUND;
        rc = store_state_get(txn, err);
        if (rc)
            return rc;
        if (store_mailbox_expired(&r, txn->state.meta.log_time_ms))
            return RAFTDIR_ENOTFOUND;
    }
    acl_rights rights = 0;
    if (s->visible) {
        rights = acl_eval(r.field[RECORD_ACL].s, r.field[RECORD_ACL].len, &s->who);
        if (!(rights & s->rights))
            return RAFTDIR_ENOTFOUND;
    }
    if (rights_r)
        *rights_r = rights;
    uint64_t places = txn->places_read;
    rc = store_mailbox_view(txn, &r, m, err);
    s->counters.touched += txn->places_read - places;
    return rc;
}

int store_scan_next(struct store_scan *s, struct store_txn *txn, struct store_mailbox *m, acl_rights *rights_r, struct err *err)
{
    if (s->done)
        return RAFTDIR_ENOTFOUND;
    int rc = bind(s, txn, err);
    if (rc) {
        store_scan_release(s);
        return rc;
    }
    uint64_t start = s->counters.touched;
    for (bool first = true;; first = false) {
        /* Every name up to s->last is dealt with, so this is a place to stop at. */
        if (!first && s->touched_max && s->counters.touched - start >= s->touched_max)
            return err_set(err, RAFTDIR_EBUSY, "nothing found yet");
        while (s->heap_n == 0) {
            if (s->range_i + 1 >= s->ranges_n) {
                s->done = true;
                return RAFTDIR_ENOTFOUND;
            }
            s->range_i++;
            rc = start_range(s, err);
            if (rc)
                return rc;
        }
        const MDB_val key = s->sources[s->heap[0]].key, value = s->sources[s->heap[0]].value;
        s->last_len = key.mv_size - s->id_len;
        memcpy(s->last, (const uint8_t *)key.mv_data + s->id_len, s->last_len);
        s->has_last = true;
        m->name_len = name_from_key(s->last, s->last_len, m->name);
        bool fits = (!s->prefix || strncmp(m->name, s->prefix, strlen(s->prefix)) == 0) &&
                    (!s->pattern || name_match(s->pattern, m->name, m->name_len));
        uint8_t target[NAME_KEY_LEN_MAX];
        size_t target_len = fits || !s->pattern ? 0 : store_pattern_skip(&s->levels, s->last, s->last_len, target);
        if (target_len) {
            while (top_is_below(s, target, target_len)) {
                rc = top_move(s, target, target_len, err);
                if (rc)
                    return rc;
            }
            continue;
        }
        /* All rows of this name together, so that a group's negative entry removes what the user's own gives. */
        acl_rights positive = 0, negative = 0;
        do {
            const MDB_val *v = &s->sources[s->heap[0]].value;
            if (s->visible) {
                positive |= get_le32(v->mv_data);
                negative |= get_le32((const uint8_t *)v->mv_data + 4);
            }
            rc = top_move(s, NULL, 0, err);
            if (rc)
                return rc;
        } while (top_is(s, s->last, s->last_len));
        if (!fits || (s->visible && !positive))
            continue;
        if (s->visible && !(positive & ~negative & s->rights) && own_domain(s))
            continue;
        rc = read_row(s, &value, m, rights_r, err);
        if (rc != RAFTDIR_ENOTFOUND)
            return rc;
    }
}
