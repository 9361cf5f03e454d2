/* lib_batch.h - a batch, for lib_batch.c and lib_write.c. */
#ifndef RAFTDIR_LIB_BATCH_H
#define RAFTDIR_LIB_BATCH_H
#include "lib_internal.h"

#define BATCH_OP_OVERHEAD 6                     /* an operation's tag and length */
#define BATCH_OVERHEAD (IDENTITY_LEN_MAX + 256) /* op id, expiry, epoch; and what the node adds to the request: identity, origin */

struct raftdir_batch {
    uint8_t *ops;
    size_t len, size;
    uint32_t *ends;
    size_t n, ends_size;
    uint64_t store_epoch;
};

/* Packs the batch as the body of a write call, with a new operation id. */
int batch_pack(const raftdir_batch *b, struct call *c, struct err *err);

#endif
