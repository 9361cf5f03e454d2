/* entry.h - one log entry in memory, shared between the log, the log writer, the apply thread and the peers by reference count.
 * Immutable once made; entry_ref and entry_unref are thread-safe. */
#ifndef RAFTDIR_ENTRY_H
#define RAFTDIR_ENTRY_H
#include <stdatomic.h>
#include <stdint.h>

struct entry {
    _Atomic unsigned refs;
    uint32_t len;
    uint64_t index;
    uint64_t term;
    uint16_t type; /* RAFT_COMMAND, RAFT_BARRIER, RAFT_CHANGE */
    uint8_t data[];
};

/* NULL without memory. Copies `data` when it is not NULL. One reference. */
struct entry *entry_create(uint64_t index, uint64_t term, uint16_t type, const void *data, uint32_t len);
struct entry *entry_ref(struct entry *e);
void entry_unref(struct entry *e); /* NULL is allowed */

#endif
