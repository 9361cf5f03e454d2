/* cyrus_export.h - writes mailboxes as Cyrus' `ctl_mboxlist -u` takes them back.
 *
 * JSON: byte for byte what `ctl_mboxlist -d` of 3.6 and 3.10 writes. Text: for `ctl_mboxlist -u -L`, with the numbers for types that 3.6 and later
 * read. The caller gives the mailboxes in the order in which they are to stand (Cyrus' own: name key order). */
#ifndef RAFTDIR_CYRUS_EXPORT_H
#define RAFTDIR_CYRUS_EXPORT_H
#include <stdbool.h>
#include <stdio.h>
#include "cyrus_dump.h"

struct cyrus_export_options {
    enum cyrus_format format;  /* CYRUS_FORMAT_JSON or CYRUS_FORMAT_TEXT */
    /* `ctl_mboxlist -u` skips a record without a uniqueid and says so on stderr only, with status 0. So one is made from the name: the same
     * mailbox gets the same at each export. `exact` leaves it out. */
    bool exact;
    /* Mailboxes on this server are written without one, as that backend's own dump has them. NULL: all with their server. Borrowed. */
    const char *local_server;
};

struct cyrus_export;

/* `out` is borrowed; nothing is buffered beside it. */
int cyrus_export_open(FILE *out, const struct cyrus_export_options *options, struct cyrus_export **export_r, struct err *err);
/* RAFTDIR_EINVAL: the mailbox can't be said in this format (nothing was written); RAFTDIR_EIO, RAFTDIR_ENOMEM. */
int cyrus_export_mailbox(struct cyrus_export *x, const Raftdir__Log__Mailbox *mailbox, struct err *err);
/* Writes the end and flushes. Without it the output is not whole, and readers say so. */
int cyrus_export_finish(struct cyrus_export *x, struct err *err);
void cyrus_export_close(struct cyrus_export **x);
/* Mailboxes of which the text form had to leave something out: it has no place for jmapid and name_history. */
uint64_t cyrus_export_dropped(const struct cyrus_export *x);
/* The uniqueid that is made for a mailbox without one, from a SHA-256 of its name: 24 letters and digits, as Cyrus' own. buf: CYRUS_UNIQUEID_LEN + 1.
 * False without memory. */
#define CYRUS_UNIQUEID_LEN 24
bool cyrus_export_uniqueid(const char *name, char *buf_r);

#endif
