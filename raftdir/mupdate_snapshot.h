/* mupdate_snapshot.h - one snapshot of the directory as rows of MUPDATE, in Cyrus' mailbox order, in pieces of text. No socket, no clock.
 *
 * One thread at a time: the pieces may be made by different threads, one after the other (the state's read transactions aren't bound to a thread: store_env.c, MDB_NOTLS). */
#ifndef RAFTDIR_MUPDATE_SNAPSHOT_H
#define RAFTDIR_MUPDATE_SNAPSHOT_H
#include <stdatomic.h>
#include "mupdate_print.h"
#include "store.h"

struct mupdate_snapshot;
/* Which rows. An empty filter: all. Everything is copied. */
struct mupdate_snapshot_filter {
    const struct mupdate_word *servers; /* only theirs; servers_n 0: any */
    size_t servers_n;
    struct mupdate_word prefix;         /* of "server!partition"; len 0: any. With "server!" the index of that server's mailboxes is used */
};
struct mupdate_snapshot *mupdate_snapshot_create(const struct mupdate_word *tag, const struct mupdate_snapshot_filter *filter);
/* Of which state; before the first piece, with which the snapshot is taken. Referenced until the end. */
void mupdate_snapshot_of(struct mupdate_snapshot *r, struct store *store);
/* Whole rows, appended to `out` until it has `len` bytes or a little more; or fewer, maybe none, after MUPDATE_SNAPSHOT_TOUCHED rows that the filter doesn't want, or when *stop is set.
 * 0: there may be more; RAFTDIR_ENOTFOUND: that was all, the snapshot is let go of. Any other error, too, lets go of it: RAFTDIR_ECORRUPT: a record or a page is damaged; what is in
 * `out` is no list. *rows_r: how many were appended. */
int mupdate_snapshot_piece(struct mupdate_snapshot *r, size_t len, const _Atomic bool *stop, struct mupdate_out *out, uint64_t *rows_r, struct err *err);
uint64_t mupdate_snapshot_index(const struct mupdate_snapshot *r); /* of the snapshot, once there was a piece */
void mupdate_snapshot_destroy(struct mupdate_snapshot **rows);     /* may be called by any thread, while none makes a piece */

#define MUPDATE_SNAPSHOT_TOUCHED 65536

#endif
