/* cyrus_dump.h - reads what Cyrus' `ctl_mboxlist -d` writes, one mailbox at a time.
 *
 * Two forms, told apart by the first character:
 *  - JSON (3.6 to 3.10): one object, name -> record, in any white space. A master's dump has a server in each record, a backend's has none.
 *  - text (2.x to 3.4): `name TAB type SP [server!]partition SP acl`, where very old ones have no type; and the form that `ctl_mboxlist -u -L`
 *    of 3.6 takes: the same, then `>uniqueid mtime uidvalidity foldermodseq createdmodseq specialuse`. The types are numbers, and
 *    not the same ones in both: see cyrus_mbtype.h.
 * From a file or standard input, gzipped or not. Memory: one record, and about 16 bytes a mailbox to find names that are listed twice.
 *
 * A record that is malformed is told with its line and the reason, and reading goes on with the next one. What a dump says and we don't know
 * is told too, once a field. Not thread-safe; any number of readers at once. */
#ifndef RAFTDIR_CYRUS_DUMP_H
#define RAFTDIR_CYRUS_DUMP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "raftdir/err.h"
#include "log.pb-c.h"

enum cyrus_format { CYRUS_FORMAT_DETECT, CYRUS_FORMAT_JSON, CYRUS_FORMAT_TEXT };

enum cyrus_kind {
    CYRUS_MAILBOX,      /* an active mailbox: has a location, passes op_mailbox_check() */
    CYRUS_RESERVED,     /* mbtype has 'z': a name that mupdate holds for a server; not active */
    CYRUS_TOMBSTONE,    /* 'd': Cyrus' memory of a mailbox that was deleted or renamed away. No mailbox: don't import it */
    CYRUS_INTERMEDIATE, /* 'i': a level without a mailbox of its own. No mailbox: don't import it */
    CYRUS_MALFORMED
};

struct cyrus_record {
    enum cyrus_kind kind;
    uint64_t line;                       /* where the record starts, from 1 */
    const char *name;                    /* NULL when it can't be told (malformed ones only). Borrowed until the next call */
    const Raftdir__Log__Mailbox *mailbox; /* NULL when malformed. Borrowed until the next call. `location` is NULL in tombstones and intermediates without one */
    struct err err;                      /* malformed: why */
};

struct cyrus_dump_options {
    enum cyrus_format format;
    const char *default_server; /* for records without a server (a backend's dump); NULL: such records are malformed. Borrowed until close */
    /* Something worth telling that stops nothing: unknown fields. NULL: dropped. */
    void (*warning)(void *arg, uint64_t line, const char *text);
    void *arg;
};

struct cyrus_dump;

/* `path`: "-" is standard input. RAFTDIR_EIO (can't be opened or read), RAFTDIR_ECORRUPT (empty or no dump), RAFTDIR_EINVAL, RAFTDIR_ENOMEM. */
int cyrus_dump_open(const char *path, const struct cyrus_dump_options *options, struct cyrus_dump **dump_r, struct err *err);
/* 1: *record_r is filled, malformed ones included. 0: the end was reached, and it was a proper end. RAFTDIR_ECORRUPT: the dump is cut off or can't be
 * followed any further; RAFTDIR_EIO; RAFTDIR_ENOMEM: then nothing more can be read, and what is missing is unknown. */
int cyrus_dump_next(struct cyrus_dump *dump, struct cyrus_record *record_r, struct err *err);
enum cyrus_format cyrus_dump_format(const struct cyrus_dump *dump);
uint64_t cyrus_dump_line(const struct cyrus_dump *dump); /* how far it has read */
void cyrus_dump_close(struct cyrus_dump **dump);

#endif
