/* apply_tree.c - delete, rename and move, of one mailbox or of a whole subtree (at most SUBTREE_MAX mailboxes).
 *
 * Each runs twice over the names: first it checks all of them, then it changes them, so a refusal leaves nothing half done.
 * A subtree need not have a mailbox at its root. Reservations inside of a subtree: somebody is creating something there, so a rename or a move is
 * refused (RAFTDIR_ERESERVED); a delete takes those that it owns, as a delete of each name alone would. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "apply_internal.h"
#include "name.h"

static int keys_add(struct apply_ctx *ctx, const uint8_t *key, size_t key_len)
{
    struct apply_keys *k = &ctx->keys;
    if (k->n == SUBTREE_MAX)
        return apply_refuse(ctx, RAFTDIR_ETOOBIG, "the subtree has more than %d mailboxes", SUBTREE_MAX);
    if (k->size - k->len < 2 + key_len) {
        size_t size = k->size ? 2 * k->size : 16384;
        uint8_t *buf = realloc(k->buf, size);
        if (!buf)
            return err_set(ctx->err, RAFTDIR_ENOMEM, "list a subtree: out of memory");
        k->buf = buf;
        k->size = size;
    }
    put_le16(k->buf + k->len, (uint16_t)key_len);
    memcpy(k->buf + k->len + 2, key, key_len);
    k->len += 2 + key_len;
    k->n++;
    return 0;
}

static bool keys_next(const struct apply_keys *k, size_t *pos, const uint8_t **key_r, size_t *len_r)
{
    if (*pos == k->len)
        return false;
    *len_r = get_le16(k->buf + *pos);
    *key_r = k->buf + *pos + 2;
    *pos += 2 + *len_r;
    return true;
}

/* The names that an operation is about into ctx->keys: those with a live record. None is RAFTDIR_ENOTFOUND. */
static int collect(struct apply_ctx *ctx, const char *name, bool subtree)
{
    struct apply_box box;
    ctx->keys.len = ctx->keys.n = 0;
    int rc = apply_load(ctx, name, &box);
    if (!rc && box.live)
        rc = keys_add(ctx, box.key, box.key_len);
    if (rc)
        return rc;
    if (subtree && box.key_len < NAME_KEY_LEN_MAX) {
        /* Not simply onwards from the root: a domain of the same name sorts between it and what is below it. */
        uint8_t below[NAME_KEY_LEN_MAX];
        size_t below_len = box.key_len + 1;
        memcpy(below, box.key, box.key_len);
        below[box.key_len] = 0x1F;
        MDB_cursor *cursor;
        MDB_val k = {below_len, below}, v;
        rc = store_cursor(ctx->txn, TABLE_MAILBOX, &cursor, ctx->err);
        if (rc)
            return rc;
        for (rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE); rc == 0; rc = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
            if (k.mv_size < below_len || memcmp(k.mv_data, below, below_len) != 0)
                break;
            struct record r;
            int rc2 = record_decode(k.mv_data, k.mv_size, v.mv_data, v.mv_size, &r, ctx->err);
            if (!rc2 && !store_mailbox_expired(&r, ctx->txn->state.meta.log_time_ms))
                rc2 = keys_add(ctx, k.mv_data, k.mv_size);
            if (rc2)
                return rc2;
        }
        if (rc && rc != MDB_NOTFOUND)
            return store_fail(ctx->err, rc, "list a subtree");
    }
    if (ctx->keys.n == 0)
        return apply_refuse(ctx, RAFTDIR_ENOTFOUND, subtree ? "no mailbox \"%.200s\", nor any below it" : "no mailbox \"%.200s\"", name);
    return 0;
}

/* The next of ctx->keys, loaded. Its record was there a moment ago. */
static bool next_box(struct apply_ctx *ctx, size_t *pos, struct apply_box *box, int *rc_r)
{
    const uint8_t *key;
    size_t len;
    if (*rc_r || !keys_next(&ctx->keys, pos, &key, &len))
        return false;
    *rc_r = apply_load_key(ctx, key, len, ctx->old_buf, box);
    if (*rc_r)
        return false;
    assert(box->live);
    return true;
}

static const char *box_name(const struct apply_box *box, char name[NAME_KEY_LEN_MAX + 1])
{
    name_from_key(box->key, box->key_len, name);
    return name;
}

static int refuse_reserved(struct apply_ctx *ctx, const struct apply_box *box)
{
    char name[NAME_KEY_LEN_MAX + 1];
    return apply_refuse(ctx, RAFTDIR_ERESERVED, "the name \"%.200s\" is reserved", box_name(box, name));
}

static int refuse_other_store(struct apply_ctx *ctx, const struct apply_box *box)
{
    char name[NAME_KEY_LEN_MAX + 1], place[APPLY_PLACE_TEXT_LEN];
    int rc = apply_place_text(ctx, box->r.store_id, place);
    return rc ? rc : apply_refuse(ctx, RAFTDIR_EOTHERSTORE, "mailbox \"%.160s\" is at %s", box_name(box, name), place);
}

int apply_delete(struct apply_ctx *ctx, const Raftdir__Log__Delete *op, Raftdir__Log__OpResult *out)
{
    uint8_t hash[RECORD_TOKEN_LEN];
    const uint8_t *token;
    struct apply_box box;
    size_t pos = 0;
    int rc = collect(ctx, op->name, op->has_subtree && op->subtree);
    if (!rc)
        rc = apply_token(ctx, op->has_token, &op->token, hash, &token);
    while (next_box(ctx, &pos, &box, &rc)) {
        uint64_t store_id = box.r.store_id;
        bool active = true;
        if (op->location)
            rc = apply_locate(ctx, op->location, &box, &store_id, &active);
        if (!rc)
            rc = apply_fence(ctx, store_id);
        if (rc)
            return rc;
        if (store_id != box.r.store_id || !active)
            return refuse_other_store(ctx, &box);
        if (box.r.state == STORE_RESERVED && !apply_owns(&box, token, store_id))
            return refuse_reserved(ctx, &box);
    }
    pos = 0;
    while (next_box(ctx, &pos, &box, &rc)) {
        rc = apply_remove(ctx, &box);
        if (!rc)
            rc = store_feed_add(ctx->txn, STORE_EVENT_DELETED, box.key, box.key_len, NULL, NULL, 0, &box.r, ctx->err);
    }
    out->has_changed = true;
    out->changed = (uint32_t)ctx->keys.n;
    return rc;
}

/* The new name of one of the renamed; checked. */
static int new_key(struct apply_ctx *ctx, const Raftdir__Log__Rename *op, const struct apply_box *box, uint8_t key[NAME_KEY_LEN_MAX], size_t *len_r)
{
    char name[2 * NAME_KEY_LEN_MAX + 1], old[NAME_KEY_LEN_MAX + 1];
    size_t from_len = strlen(op->from), to_len = strlen(op->to);
    size_t old_len = name_from_key(box->key, box->key_len, old);
    assert(old_len >= from_len && to_len <= NAME_KEY_LEN_MAX);
    memcpy(name, op->to, to_len);
    memcpy(name + to_len, old + from_len, old_len - from_len);
    size_t len = to_len + old_len - from_len;
    if (name_check(name, len, &ctx->refusal)) {
        err_wrap(&ctx->refusal, "the new name of \"%.200s\"", old);
        return APPLY_REFUSED;
    }
    *len_r = name_to_key(name, len, key);
    return 0;
}

/* The store of a renamed mailbox; `made` is the one of op->location. */
static int new_store(struct apply_ctx *ctx, const Raftdir__Log__Rename *op, const struct apply_box *box, bool make, uint64_t *store_id_r)
{
    bool active;
    *store_id_r = box->r.store_id;
    if (!op->location)
        return 0;
    int rc = apply_locate(ctx, op->location, box, store_id_r, &active);
    return rc || !make ? rc : apply_make_store(ctx, op->location, store_id_r);
}

int apply_rename(struct apply_ctx *ctx, const Raftdir__Log__Rename *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box, target;
    uint64_t store_id;
    size_t pos = 0, len;
    uint8_t key[NAME_KEY_LEN_MAX];
    bool stays = strcmp(op->from, op->to) == 0; /* only to another store */
    bool subtree = op->has_subtree && op->subtree;
    if (subtree && !stays && name_is_within(op->to, strlen(op->to), op->from, strlen(op->from)))
        return apply_refuse(ctx, RAFTDIR_EINVAL, "a subtree can't be renamed into itself");
    if (stays && !op->location)
        return apply_refuse(ctx, RAFTDIR_EINVAL, "rename to the same name");
    int rc = collect(ctx, op->from, subtree);
    while (next_box(ctx, &pos, &box, &rc)) {
        if (box.r.state == STORE_RESERVED)
            return refuse_reserved(ctx, &box);
        rc = new_store(ctx, op, &box, false, &store_id);
        if (!rc)
            rc = apply_fence(ctx, store_id);
        if (rc)
            return rc;
        if (stays)
            continue;
        rc = new_key(ctx, op, &box, key, &len);
        if (!rc)
            rc = apply_load_key(ctx, key, len, ctx->target_buf, &target);
        if (rc)
            return rc;
        char name[NAME_KEY_LEN_MAX + 1];
        if (target.live)
            return apply_refuse(ctx, target.r.state == STORE_RESERVED ? RAFTDIR_ERESERVED : RAFTDIR_EEXIST, "the name \"%.200s\" is %s",
                                box_name(&target, name), target.r.state == STORE_RESERVED ? "reserved" : "in use");
    }
    pos = 0;
    while (next_box(ctx, &pos, &box, &rc)) {
        rc = new_store(ctx, op, &box, true, &store_id);
        if (rc)
            return rc;
        struct record now = box.r;
        if (store_id != now.store_id)
            now.moving_store_id = 0;
        now.store_id = store_id;
        Raftdir__Log__OpResult one = RAFTDIR__LOG__OP_RESULT__INIT;
        if (stays) {
            rc = apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, &one);
        } else {
            rc = new_key(ctx, op, &box, key, &len);
            if (!rc)
                rc = apply_load_key(ctx, key, len, ctx->target_buf, &target);
            if (!rc)
                rc = apply_change(ctx, &box, NULL, NULL, 0);
            if (rc)
                return rc;
            now.generation = ++ctx->txn->state.meta.change_seq;
            size_t data_len = record_encode(target.key, target.key_len, &now, ctx->new_buf);
            rc = apply_change(ctx, &target, &now, ctx->new_buf, data_len); /* over a reservation that ran out, perhaps */
            if (!rc)
                rc = store_feed_add(ctx->txn, STORE_EVENT_RENAMED, target.key, target.key_len, &now, box.key, box.key_len, &box.r, ctx->err);
            one.changed = 1;
        }
        if (out->changed == 0 && pos == 2 + box.key_len) { /* the first one */
            out->has_generation = out->has_mailbox_id = true;
            out->generation = now.generation;
            out->mailbox_id = now.id;
        }
        out->changed += one.changed;
    }
    out->has_changed = true;
    return rc;
}

int apply_move_begin(struct apply_ctx *ctx, const Raftdir__Log__MoveBegin *op, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    uint64_t store_id = 0;
    bool active;
    char name[NAME_KEY_LEN_MAX + 1], place[APPLY_PLACE_TEXT_LEN];
    size_t pos = 0;
    int rc = collect(ctx, op->name, op->has_subtree && op->subtree);
    if (!rc)
        rc = apply_locate(ctx, op->to, NULL, &store_id, &active);
    while (next_box(ctx, &pos, &box, &rc)) {
        if (box.r.state == STORE_RESERVED)
            return refuse_reserved(ctx, &box);
        rc = apply_fence(ctx, box.r.store_id);
        if (rc)
            return rc;
        if (box.r.store_id == store_id)
            return apply_refuse(ctx, RAFTDIR_EINVAL, "mailbox \"%.200s\" is there already", box_name(&box, name));
        if (box.r.moving_store_id && box.r.moving_store_id != store_id) {
            rc = apply_place_text(ctx, box.r.moving_store_id, place);
            return rc ? rc : apply_refuse(ctx, RAFTDIR_EBUSY, "mailbox \"%.160s\" is being moved to %s", box_name(&box, name), place);
        }
    }
    if (!rc)
        rc = apply_make_store(ctx, op->to, &store_id);
    pos = 0;
    while (next_box(ctx, &pos, &box, &rc)) {
        struct record now = box.r;
        now.moving_store_id = store_id;
        rc = apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
    }
    return rc;
}

int apply_move_end(struct apply_ctx *ctx, const char *name, bool subtree, bool commit, Raftdir__Log__OpResult *out)
{
    struct apply_box box;
    size_t pos = 0, moving = 0;
    int rc = collect(ctx, name, subtree);
    while (next_box(ctx, &pos, &box, &rc)) {
        if (!box.r.moving_store_id)
            continue;
        moving++;
        rc = apply_fence(ctx, box.r.store_id);
    }
    if (rc)
        return rc;
    if (moving == 0)
        return apply_refuse(ctx, RAFTDIR_ECONFLICT, "no move of \"%.200s\" is in progress", name);
    pos = 0;
    while (next_box(ctx, &pos, &box, &rc)) {
        if (!box.r.moving_store_id)
            continue;
        struct record now = box.r;
        if (commit)
            now.store_id = now.moving_store_id;
        now.moving_store_id = 0;
        rc = apply_write(ctx, &box, &now, STORE_EVENT_CHANGED, out);
    }
    return rc;
}
