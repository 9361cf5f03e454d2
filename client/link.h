/* link.h - a Cyrus built from source that stands on the directory: what the files link_*.c share. They are compiled with Cyrus' own headers, linked into its
 * programs with `-Wl,--wrap=...` (deploy/build-cyrus-linked), and change no line of Cyrus' text. client/CYRUS.md, "Linked", says what that gives and what it doesn't.
 *
 * Where the directory comes in. Cyrus' mboxlist.c calls its own functions directly, and such calls can't be wrapped: mboxlist_findsub() looks up names with the same
 * static function as mboxlist_lookup(). But everything that it reads goes through cyrusdb_*(), of another object. So link_view.c stands there, for the one database
 * that is the mailbox list, and all of mboxlist.c reads
 *
 *     its own records (mailboxes of this server), and the directory's (mailboxes of others, as Cyrus' own mupdate slave would have stored them)
 *
 * while link_find.c notes for whom a list is made, so that "whose mailboxes may this user see" is one question to the directory's reverse index.
 *
 * Everything runs in the one thread of a Cyrus process. Memory comes from Cyrus' xmalloc, which ends the process when there is none, as all of Cyrus does. */
#ifndef RAFTDIR_LINK_H
#define RAFTDIR_LINK_H

#include <config.h>

#include <stddef.h>
#include <stdint.h>

#include "imap/mboxlist.h"
#include "lib/auth.h"
#include "lib/cyrusdb.h"
#include "lib/util.h"
#include "raftdir.h"

#define LINK_ROWS_KEPT_MAX 20000 /* rows of one list that are kept whole in memory; of those beyond, the names */

/* Our function that all of Cyrus calls instead of its own, which is __real_... then. */
#define WRAPPED(ret, name, ...)      \
    ret __real_##name(__VA_ARGS__);  \
    ret __wrap_##name(__VA_ARGS__);  \
    ret __wrap_##name(__VA_ARGS__)

/* --- link_dir.c: the handle ------------------------------------------------------------------------------------------------------------- */

/* Not 0: this process asks the directory: imapd.conf has a mupdate_server, whatever it says. Without one a linked program is as the stock one. */
int link_enabled(void);
/* The handle of this process, with the timeout of lookups. NULL: it can't be had; the reason is in syslog. */
raftdir *link_directory(void);
/* Says in syslog what the directory answered to `what`, unless that is an answer (0, not found). */
void link_complain(raftdir *d, int code, const char *what, const char *name);

/* --- link_row.c: the directory's mailboxes as records of Cyrus' mailbox list --------------------------------------------------------------- */

/* Names to the database's form (`example.org\x1Duser\x1Fjohn.doe`) and back. The order of that form, as bytes, is the directory's. */
void link_name_to_db(const char *name, struct buf *db_r);
void link_name_from_db(const char *db, size_t len, struct buf *name_r);
enum link_row_kind {
    LINK_ROW_ELSEWHERE, /* a mailbox of another server: the record is as a mupdate slave's */
    LINK_ROW_HERE,      /* on this very server, which knows better */
    LINK_ROW_NONE       /* a tombstone, or a level without a mailbox */
};
enum link_row_kind link_row_record(const struct raftdir_mailbox *m, struct buf *record_r);
/* What a local record says. */
enum link_local {
    LINK_LOCAL_LIVE,  /* a mailbox of this server, or one that it is about to have: nobody is asked */
    LINK_LOCAL_WEAK,  /* a tombstone or a level without a mailbox: counts when the directory has none */
    LINK_LOCAL_STALE  /* what a mupdate slave has left */
};
enum link_local link_local_kind(const char *data, size_t len);

/* --- link_find.c: for whom ------------------------------------------------------------------------------------------------------------------ */

struct link_row {
    char *db;   /* the name in the database's form */
    char *data; /* its record; NULL: a mailbox of this server, or too many rows */
};
struct link_counts {
    uint64_t rows, touched, skips; /* of the lists that the directory gave */
    uint64_t lists, lookups;       /* questions to it */
};
/* One call of a list function of Cyrus, from outside. */
struct link_scope {
    struct link_scope *outer;
    const char *call, *userid;
    const struct auth_state *auth_state;
    char *only;    /* only names that begin with this, in the database's form; NULL: any */
    int nothing;   /* no name of others can match at all */
    int here;      /* only what is on this server is meant */
    int loaded, failed;
    struct link_row *row;
    size_t rows_n, rows_size;
    struct link_counts counts;
};
extern struct link_scope *link_scope; /* NULL outside of one */
/* The rows of other users and shared ones that the scope's user may see, sorted; asks once. 0, or RAFTDIR_E*, noted in the scope. */
int link_scope_load(struct link_scope *s);
const struct link_row *link_scope_row(const struct link_scope *s, const char *db, size_t len);

#endif
