/* mupdate_source.h - a client of a MUPDATE master: connects, logs in, reads its list and its changes. For `raftdirctl import --mupdate`.
 *
 * TLS (OpenSSL) by STARTTLS or from the first byte; logs in through the Cyrus SASL library with whatever it has in common with the master. One thread; waits only as long as it is told. */
#ifndef RAFTDIR_MUPDATE_SOURCE_H
#define RAFTDIR_MUPDATE_SOURCE_H
#include <stdbool.h>
#include <stdint.h>
#include "raftdir/err.h"

enum mupdate_tls {
    MUPDATE_TLS_AUTO,     /* STARTTLS where it is offered; without it no mechanism that shows the password, unless the master is on this host */
    MUPDATE_TLS_STARTTLS, /* or nothing */
    MUPDATE_TLS_IMPLICIT, /* from the first byte */
    MUPDATE_TLS_NO        /* never: the password may be seen on the wire */
};
/* All borrowed until the source is closed. */
struct mupdate_source_options {
    const char *address;   /* HOST[:PORT], [V6][:PORT] or /path of a Unix socket */
    const char *user;      /* NULL: doesn't log in, as for a master that takes this host's word */
    const char *password;  /* NULL: none (GSSAPI) */
    const char *mechanism; /* NULL: the best of those offered */
    enum mupdate_tls tls;
    const char *ca;        /* PEM file; NULL: the system's */
    bool unverified;       /* any certificate is good */
};

enum mupdate_row_kind { MUPDATE_ROW_MAILBOX = 1, MUPDATE_ROW_RESERVED, MUPDATE_ROW_DELETED, MUPDATE_ROW_END /* the list is whole */, MUPDATE_ROW_CURRENT /* all that came before the noop */ };
/* Strings are never NULL; they live until the next call. */
struct mupdate_row {
    enum mupdate_row_kind kind;
    const char *name, *server, *partition, *acl;
};

struct mupdate_source;
/* RAFTDIR_EUNAVAIL (nobody there), EAUTH (certificate, password, no mechanism), EPROTO, ETIMEDOUT, EINVAL; err says which master. */
int mupdate_source_open(const struct mupdate_source_options *options, struct mupdate_source **source_r, struct err *err);
/* Asks for the list; with `updates` for what changes afterwards, too. */
int mupdate_source_list(struct mupdate_source *s, bool updates, struct err *err);
/* Asks for a MUPDATE_ROW_CURRENT behind what has changed until now: masters may hold changes back for seconds otherwise. One at a time. */
int mupdate_source_noop(struct mupdate_source *s, struct err *err);
/* 0 with a row; RAFTDIR_EAGAIN when none came within timeout_ms; else the connection is of no more use: EUNAVAIL (closed), EPROTO, ETOOBIG. */
int mupdate_source_next(struct mupdate_source *s, unsigned timeout_ms, struct mupdate_row *row_r, struct err *err);
int mupdate_source_fd(const struct mupdate_source *s);
void mupdate_source_close(struct mupdate_source **s); /* NULL is fine */

#endif
