/* apply_internal.h - between apply.c (batches, entries, requests) and the operations (apply_op.c, apply_tree.c).
 *
 * Two kinds of "no": a refusal is an answer, part of the replicated state, the same on all replicas (APPLY_REFUSED, with code and text in
 * ctx->refusal); everything negative is this node's own trouble and ends the batch. An operation refuses before it changes anything. */
#ifndef RAFTDIR_APPLY_INTERNAL_H
#define RAFTDIR_APPLY_INTERNAL_H
#include "log.pb-c.h"
#include "store_state.h"

#define APPLY_REFUSED 1

/* Keys of a subtree's mailboxes, one after another: u16 length, bytes. */
struct apply_keys {
    uint8_t *buf;
    size_t len, size;
    size_t n;
};

struct apply_ctx {
    struct store_txn *txn;
    struct err *err;
    struct err refusal;
    const Raftdir__Log__Request *req;
    uint64_t index;
    uint8_t old_buf[RECORD_LEN_MAX], new_buf[RECORD_LEN_MAX], target_buf[RECORD_LEN_MAX];
    struct apply_keys keys;
    char acl[ACL_LEN_MAX];
};

/* A mailbox as an operation finds it. The record's fields point into the buffer it was loaded to. */
struct apply_box {
    uint8_t key[NAME_KEY_LEN_MAX];
    size_t key_len;
    bool present; /* there is a record */
    bool live;    /* and it isn't a reservation that ran out */
    struct record r;
    const uint8_t *data;
    size_t len;
};

int apply_refuse(struct apply_ctx *ctx, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int apply_load(struct apply_ctx *ctx, const char *name, struct apply_box *box_r);
int apply_load_key(struct apply_ctx *ctx, const uint8_t *key, size_t key_len, uint8_t *buf, struct apply_box *box_r);
/* Writes the record unless it is what stands there already; gives it its generation. */
int apply_write(struct apply_ctx *ctx, const struct apply_box *box, struct record *now, enum store_event event, Raftdir__Log__OpResult *out);
int apply_remove(struct apply_ctx *ctx, const struct apply_box *box);
int apply_change(struct apply_ctx *ctx, const struct apply_box *box, const struct record *now, const void *data, size_t len);
/* The store of a location, 0 when there is none yet. `server!` is the box's own store when that is on the same server. */
int apply_locate(struct apply_ctx *ctx, const Raftdir__Log__Location *loc, const struct apply_box *box, uint64_t *store_id_r, bool *active_r);
int apply_make_store(struct apply_ctx *ctx, const Raftdir__Log__Location *loc, uint64_t *store_id_inout);
int apply_fence(struct apply_ctx *ctx, uint64_t store_id);
bool apply_owns(const struct apply_box *box, const uint8_t *token_hash, uint64_t store_id);
int apply_token(struct apply_ctx *ctx, bool has, const ProtobufCBinaryData *token, uint8_t hash[RECORD_TOKEN_LEN], const uint8_t **hash_r);
/* "server!partition" of a store, for a refusal's text. */
#define APPLY_PLACE_TEXT_LEN 200
int apply_place_text(struct apply_ctx *ctx, uint64_t store_id, char text_r[APPLY_PLACE_TEXT_LEN]);

int apply_op(struct apply_ctx *ctx, const Raftdir__Log__Op *op, Raftdir__Log__OpResult *out);
/* apply_tree.c: operations on one mailbox or all of a subtree. */
int apply_delete(struct apply_ctx *ctx, const Raftdir__Log__Delete *op, Raftdir__Log__OpResult *out);
int apply_rename(struct apply_ctx *ctx, const Raftdir__Log__Rename *op, Raftdir__Log__OpResult *out);
int apply_move_begin(struct apply_ctx *ctx, const Raftdir__Log__MoveBegin *op, Raftdir__Log__OpResult *out);
int apply_move_end(struct apply_ctx *ctx, const char *name, bool subtree, bool commit, Raftdir__Log__OpResult *out);

#endif
