/* preload_internal.h - what libraftdir-cyrus.so has to know of Cyrus IMAP 3.6.1: as little as it touches, declared here since Debian ships no headers of
 * libcyrus_imap. From that version's imap/mupdate.h, imap/mupdate-client.h, imap/backend.h, imap/mboxlist.h, lib/util.h, imap/imap_err.et and
 * imap/mupdate_err.et, built as Debian does (with TLS; 64 bit). preload_check.c makes sure at load time that this is what runs. */
#ifndef CLIENT_PRELOAD_INTERNAL_H
#define CLIENT_PRELOAD_INTERNAL_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include "murder.h"

#define CYRUS_VERSION_WANTED "3.6.1" /* and whatever the distribution appends: "3.6.1-Debian-3.6.1-4+deb12u5" */

/* The numbers of com_err tables "mupd" and "imap", in the order of their files. */
#define MUPD_BASE (-1627742720)
enum {
    MUPDATE_FAIL = MUPD_BASE,
    MUPDATE_FAIL_RESERVE,
    MUPDATE_NOCONN,
    MUPDATE_NOAUTH,
    MUPDATE_TIMEOUT,
    MUPDATE_BADPARAM,
    MUPDATE_PROTOCOL_ERROR,
    MUPDATE_MAILBOX_UNKNOWN
};
enum { IMAP_MAILBOX_NONEXISTENT = -1904809452, IMAP_MAILBOX_RESERVED = -1904809447, IMAP_SERVER_UNAVAILABLE = -1904809423 };

enum mupdate_cmd_response { MUPDATE_OK = 0, MUPDATE_NO = -1, MUPDATE_NONE = 1 };

struct buf {
    char *s;
    size_t len, alloc;
    unsigned flags;
};

enum mbtype { ACTIVE, RESERVE };
struct mupdate_mailboxdata {
    const char *mailbox, *location, *acl;
    enum mbtype t;
};
typedef int mupdate_callback(struct mupdate_mailboxdata *mdata, const char *cmd, void *context);

struct protstream;
/* Only `out` is used, by the hidden mupdate_reserve. */
struct backend {
    char hostname[64];
    char banner[2048];
    struct sockaddr_storage addr;
    int sock;
    void *prot, *context, *clientin, **current, **inbox, *timeout, *saslconn, *sasl_cb;
    unsigned ext_ssf;
    void *tlsconn, *tlssess;
    unsigned long capability;
    int num_cap_params;
    void *cap_params;
    struct buf last_result;
    struct protstream *in, *out;
};
#define MAX_MAILBOX_BUFFER 1024
struct mupdate_handle {
    void *sasl_cb;
    struct backend *conn;
    unsigned tagn;
    struct buf tag, cmd, arg1, arg2, arg3;
    char mailbox_buf[MAX_MAILBOX_BUFFER], location_buf[MAX_MAILBOX_BUFFER];
    char *acl;
    struct mupdate_mailboxdata mailboxdata_buf;
    int saslcompleted;
    /* From here on ours: Cyrus' code never sees the handle's size. */
    struct buf sent;    /* what was written to conn->out */
    struct murder_session session;
    const char *probe;  /* not NULL: preload_check.c tries the layout; what was sent is compared with this */
    bool probe_same;
};
#if __SIZEOF_POINTER__ == 8
static_assert(offsetof(struct backend, out) == 0x960, "struct backend of 3.6.1");
static_assert(offsetof(struct mupdate_handle, saslcompleted) == 0x8e0, "struct mupdate_handle_s of 3.6.1");
#endif

#define MBTYPE_REMOTE (1 << 4)
struct ptrarray {
    int count, alloc;
    void **data;
};
struct mboxlist_entry {
    char *name, *ext_name;
    time_t mtime;
    uint32_t uidvalidity;
    uint64_t createdmodseq, foldermodseq;
    uint32_t mbtype;
    char *partition, *server, *acl, *uniqueid, *legacy_specialuse;
    struct ptrarray name_history;
};
#if __SIZEOF_POINTER__ == 8
static_assert(sizeof(struct mboxlist_entry) == 0x70, "struct mboxlist_entry of 3.6.1");
#endif

/* What of Cyrus is called; found at load time. In a program that doesn't use libcyrus_imap all of it is NULL, and nothing of ours is ever called. */
struct preload_cyrus {
    struct protstream *(*prot_writebuf)(struct buf *buf);
    int (*prot_flush)(struct protstream *s);
    int (*prot_free)(struct protstream *s);
    void (*buf_free)(struct buf *buf);
    struct mboxlist_entry *(*mboxlist_entry_create)(void);
    struct mboxlist_entry *(*mboxlist_entry_copy)(const struct mboxlist_entry *src);
    void (*mboxlist_entry_free)(struct mboxlist_entry **mbentry);
    int (*mboxlist_lookup)(const char *name, struct mboxlist_entry **mbentry, void **tid);
    int (*mupdate_activate)(struct mupdate_handle *h, const char *mailbox, const char *location, const char *acl);
    const char **config_servername, **config_mupdate_server;
    const char *version;
};
extern struct preload_cyrus preload_cyrus;

/* preload_mupdate.c, also used by the check at load time */
struct mupdate_handle *preload_handle_create(void); /* NULL: out of memory */
void preload_handle_destroy(struct mupdate_handle **h);

/* preload_check.c: Cyrus' own mupdate_activate, given a handle of ours, writes what we expect. */
bool preload_trial(void);

/* preload_wire.c: the words of "TAG VERB {n+}CRLF word {n+}CRLF word CRLF", as mupdate_reserve writes it. Splits `text` in place. */
#define PRELOAD_WORDS_MAX 5
int preload_split(char *text, size_t len, char *word[PRELOAD_WORDS_MAX]); /* how many words; -1: malformed */

/* preload_lookup.c */
void preload_lookup_setup(void); /* which code of this program is given mailboxes of other servers; at load time */

#endif
