/* err.h - errors inside raftdir: a negative RAFTDIR_E* code for deciding, and a message for reading that every layer adds to. */
#ifndef RAFTDIR_ERR_H
#define RAFTDIR_ERR_H
#include "../include/raftdir.h"

#define ERR_TEXT_LEN 512

/* Embedded by the caller; a NULL `struct err *` is allowed everywhere and drops the text. */
struct err {
    int code;
    char text[ERR_TEXT_LEN];
};

/* Sets code and text; returns code, so that `return err_set(e, RAFTDIR_EIO, "read %s: %s", ...)` works. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "context: " before the text there is; returns the code in `e`, 0 without one: keep your own code where `e` may be NULL. */
int err_wrap(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The name ("ENOTFOUND") and the text of a code; never NULL. */
const char *err_name(int code);
const char *err_text(int code);
/* Foreign codes, translated in one place. */
int err_from_errno(int errnum);
int err_from_lmdb(int rc);
int err_from_uv(int rc);
int err_from_raft(int rc);

#endif
