/* mupdate_spool.h - rows of a master, first in first out, in a temporary file that has no name: a master answers nobody while it sends its list, so it isn't kept waiting for what
 * becomes of the rows. Memory: two buffers. */
#ifndef RAFTDIR_MUPDATE_SPOOL_H
#define RAFTDIR_MUPDATE_SPOOL_H
#include <stddef.h>
#include "mupdate_source.h"

#define SPOOL_BUF_LEN (1u << 20)

/* Zeroed: closed. */
struct mupdate_spool {
    int fd;
    bool open;
    uint64_t read_at, written, in_file; /* offsets: of the next row, of the end, of what isn't in `out` any more */
    char *out, *in;
    size_t out_len, in_len, in_size;
    uint64_t in_at; /* offset of in[0] */
};
int mupdate_spool_open(struct mupdate_spool *s, struct err *err);
void mupdate_spool_close(struct mupdate_spool *s);
/* RAFTDIR_EIO, ENOSPC. offset_r: for mupdate_spool_at; NULL allowed. */
int mupdate_spool_put(struct mupdate_spool *s, const struct mupdate_row *row, uint64_t *offset_r, struct err *err);
/* 0 with the next row, which lives until the next call; RAFTDIR_ENOTFOUND: all were taken. What is taken is kept until mupdate_spool_forget. */
int mupdate_spool_next(struct mupdate_spool *s, struct mupdate_row *row_r, uint64_t *offset_r, struct err *err);
/* The row at an offset, again. Doesn't change what comes next. */
int mupdate_spool_at(struct mupdate_spool *s, uint64_t offset, struct mupdate_row *row_r, struct err *err);
/* Gives the disk back what was taken, once nothing waits. */
void mupdate_spool_forget(struct mupdate_spool *s);
bool mupdate_spool_empty(const struct mupdate_spool *s);

#endif
