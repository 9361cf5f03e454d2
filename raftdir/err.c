/* err.c - see err.h. */
#include "err.h"
#include <errno.h>
#include <lmdb.h>
#include <raft.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *e, int code, const char *fmt, ...)
{
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    e->code = code;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return code;
}

int err_wrap(struct err *e, const char *fmt, ...)
{
    if (!e)
        return 0;
    char whole[2 * ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(whole, ERR_TEXT_LEN, fmt, ap);
    va_end(ap);
    if (n < 0)
        return e->code;
    if (n >= ERR_TEXT_LEN)
        n = ERR_TEXT_LEN - 1;
    snprintf(whole + n, sizeof whole - (size_t)n, ": %s", e->text);
    whole[ERR_TEXT_LEN - 1] = 0;
    memcpy(e->text, whole, ERR_TEXT_LEN);
    return e->code;
}

const char *err_name(int code)
{
    switch (code) {
    case 0:
        return "OK";
#define X(name, value, text)                                                                                                               \
    case value:                                                                                                                            \
        return #name;
        RAFTDIR_ERRORS(X)
#undef X
    }
    return "EUNKNOWN";
}

const char *err_text(int code)
{
    switch (code) {
    case 0:
        return "ok";
#define X(name, value, text)                                                                                                               \
    case value:                                                                                                                            \
        return text;
        RAFTDIR_ERRORS(X)
#undef X
    }
    return "unknown error code";
}

int err_from_errno(int errnum)
{
    switch (errnum) {
    case 0:
        return 0;
    case ENOMEM:
        return RAFTDIR_ENOMEM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return RAFTDIR_ENOSPC;
    case EACCES:
    case EPERM:
        return RAFTDIR_EPERM;
    case ETIMEDOUT:
        return RAFTDIR_ETIMEDOUT;
    case EINVAL:
        return RAFTDIR_EINVAL;
    case EMFILE:
    case ENFILE:
        return RAFTDIR_ELIMIT;
    case ECONNREFUSED:
    case ECONNRESET:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EPIPE:
    case ENOENT:
        return RAFTDIR_EUNAVAIL;
    default:
        return RAFTDIR_EIO;
    }
}

int err_from_lmdb(int rc)
{
    switch (rc) {
    case 0:
        return 0;
    case MDB_NOTFOUND:
        return RAFTDIR_ENOTFOUND;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
        return RAFTDIR_ENOSPC;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID: /* no LMDB file, or none any more */
    case MDB_CURSOR_FULL: /* these come of nothing but pages that lead in a circle, or aren't what they were */
    case MDB_PAGE_FULL:
    case MDB_INCOMPATIBLE:
        return RAFTDIR_ECORRUPT;
    case MDB_PANIC: /* an earlier write of the environment failed: what the disk has is whole, this process can't use it any more */
        return RAFTDIR_EIO;
    case MDB_VERSION_MISMATCH:
        return RAFTDIR_EVERSION;
    case MDB_MAP_RESIZED: /* it has grown beyond what this process maps */
        return RAFTDIR_EUNAVAIL;
    case MDB_READERS_FULL:
        return RAFTDIR_ELIMIT;
    case MDB_KEYEXIST:
        return RAFTDIR_EEXIST;
    default:
        return rc > 0 ? err_from_errno(rc) : RAFTDIR_EIO;
    }
}

int err_from_uv(int rc)
{
    return rc < 0 ? err_from_errno(-rc) : 0; /* libuv's codes are negative errno on Unix */
}

int err_from_raft(int rc)
{
    switch (rc) {
    case 0:
        return 0;
    case RAFT_NOMEM:
        return RAFTDIR_ENOMEM;
    case RAFT_NOTLEADER:
    case RAFT_LEADERSHIPLOST:
        return RAFTDIR_ENOTLEADER;
    case RAFT_CANTCHANGE:
    case RAFT_BUSY:
        return RAFTDIR_EBUSY;
    case RAFT_CORRUPT:
    case RAFT_MALFORMED:
        return RAFTDIR_ECORRUPT;
    case RAFT_NOSPACE:
        return RAFTDIR_ENOSPC;
    case RAFT_IOERR:
        return RAFTDIR_EIO;
    default:
        return RAFTDIR_EINVAL;
    }
}
