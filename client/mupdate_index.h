/* mupdate_index.h - what a MUPDATE master has, by name: where, since when known, and whether it was found here. 40 bytes a mailbox, in a table that is at most half full; names aren't
 * kept, but 128 bits of their hash. */
#ifndef RAFTDIR_MUPDATE_INDEX_H
#define RAFTDIR_MUPDATE_INDEX_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mupdate_entry {
    uint64_t a, b;    /* of the name; a 0: free */
    uint64_t value;   /* hash of server, partition and ACL */
    uint64_t offset;  /* in the spool, while that has it */
    uint32_t server;  /* number; mupdate_index_server */
    bool active, reserved, seen; /* neither active nor reserved: it was deleted */
};
/* Zeroed: empty. */
struct mupdate_index {
    struct mupdate_entry *slots;
    size_t size, used, active;
    char **servers;
    size_t servers_n;
};
struct mupdate_entry *mupdate_index_find(const struct mupdate_index *x, const char *name); /* NULL: never heard of */
struct mupdate_entry *mupdate_index_add(struct mupdate_index *x, const char *name);        /* found or made. Others move */
const struct mupdate_entry *mupdate_index_same(const struct mupdate_index *x, const struct mupdate_entry *e); /* the entry of the same name in another index */
void mupdate_index_set(struct mupdate_index *x, struct mupdate_entry *e, const char *server, const char *partition, const char *acl); /* active there */
void mupdate_index_clear_active(struct mupdate_index *x, struct mupdate_entry *e);
const char *mupdate_index_server(const struct mupdate_index *x, const struct mupdate_entry *e);
uint64_t mupdate_index_value(const char *server, const char *partition, const char *acl);
void mupdate_index_free(struct mupdate_index *x);

#endif
