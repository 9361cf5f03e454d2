/* support_store.h - for tests of the store and of apply: a store in a directory of its own, requests built from parts, entries applied,
 * results unpacked, a Cyrus dump read. A failure in here ends the test by a cmocka assertion. */
#ifndef SUPPORT_STORE_H
#define SUPPORT_STORE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "log.pb-c.h"
#include "raftdir/apply.h"
#include "raftdir/store.h"

struct support_store {
    char dir[64];
    struct store *store;
    uint64_t index;       /* of the last entry applied through support_apply */
    uint64_t log_time_ms; /* given to each entry; move it as you like */
    uint64_t op_seq;
};
void support_store_open(struct support_store *s, uint64_t map_len);
void support_store_reopen(struct support_store *s, uint64_t map_len);
void support_store_close(struct support_store *s); /* and removes the directory */
void support_store_copy(const struct support_store *s, struct support_store *copy_r); /* closed: open it with reopen */

/* Memory of built messages. */
struct support_arena {
    void **blocks;
    size_t n, size;
};
void *support_alloc(struct support_arena *a, size_t len);
char *support_text(struct support_arena *a, const char *s); /* NULL gives NULL */
void support_free(struct support_arena *a);

Raftdir__Log__Location *support_location(struct support_arena *a, const char *server, const char *partition);
Raftdir__Log__Mailbox *support_mailbox(struct support_arena *a, const char *name, const char *server, const char *partition, const char *acl);
/* An Op with the operation of this kind, initialised but empty; reach it through op->create and the like. */
Raftdir__Log__Op *support_op(struct support_arena *a, Raftdir__Log__Op__OpCase kind);
Raftdir__Log__Op *support_put(struct support_arena *a, const char *name, const char *server, const char *partition, const char *acl);
Raftdir__Log__Op *support_delete(struct support_arena *a, const char *name, bool subtree);
/* A request with a fresh op id, from "unix:0", that expires a minute after the store's log time. */
Raftdir__Log__Request *support_request(struct support_arena *a, struct support_store *s, Raftdir__Log__Op **ops, size_t n);
struct entry *support_entry(struct support_store *s, uint64_t index, Raftdir__Log__Request *const *requests, size_t n);

/* Applies one request as the next entry; the result is the arena's. */
Raftdir__Log__Result *support_apply(struct support_arena *a, struct support_store *s, Raftdir__Log__Request *req);
/* Applies one operation; returns the code. */
int support_do(struct support_arena *a, struct support_store *s, Raftdir__Log__Op *op);
Raftdir__Log__Result *support_result(struct support_arena *a, const struct apply_result *r);
/* Problems that store_verify finds; the first texts are printed unless quiet. */
uint64_t support_verify(struct support_store *s, bool quiet);
void support_digest(struct support_store *s, uint8_t digest_r[16]);

/* Deterministic random numbers (splitmix64). */
uint64_t support_random(uint64_t *state);
static inline unsigned support_below(uint64_t *state, unsigned n)
{
    return (unsigned)(support_random(state) % n);
}
uint64_t support_seed(void); /* RAFTDIR_SEED or a fixed one; printed */

/* The mailboxes of a dump, in its order. */
struct support_dump_row {
    char *name, *server, *partition, *acl, *mbtype, *uniqueid;
    uint64_t mtime;
};
struct support_dump {
    struct support_dump_row *rows;
    size_t n;
};
void support_dump_read(const char *path, struct support_dump *dump_r);
void support_dump_free(struct support_dump *dump);

#endif
