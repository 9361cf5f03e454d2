/* murder.h - what Cyrus asks a MUPDATE master, asked of the directory instead. Knows nothing of Cyrus' structures: the preloaded module (preload_*.c)
 * and the linked one (link_*.c) stand on it.
 *
 * One directory handle a process, opened when it is first needed and again in a child after fork. Not for several threads at once (Cyrus' processes have one).
 * Everything ends by itself: murder_settings has the times.
 *
 * How the protocol's verbs are mapped (RFC 3656 can't say more; what could lose mail is refused):
 *   RESERVE      holds the name for RESERVE_TTL. Where the server has the mailbox already it changes nothing, whatever the partition.
 *   ACTIVATE     makes it active: what is absent, reserved here, or at the same server. A mailbox that is active at another server stays there: refused.
 *                Another partition of the same server is a move within it. An empty partition ("server!") keeps the one that is known.
 *   DEACTIVATE   XFER's first step: the mailbox is held (without an end) for whoever activates it next. So XFER is DEACTIVATE here, ACTIVATE there: a move.
 *   DELETE       only what is at this server. What is not there is deleted: success. Where it isn't known whether it was done, the mailbox is put back: Cyrus keeps its own.
 *   RENAME       comes as DELETE old, RESERVE new, ACTIVATE new on one session: the old one's partition goes over, and when the new name is refused
 *                the old one is put back, since Cyrus then puts its own back.
 *   FIND         by murder_find. A caller that would wipe its own copy of what is found elsewhere must not be told: see preload_mupdate.c.
 */
#ifndef CLIENT_MURDER_H
#define CLIENT_MURDER_H

#include <stdbool.h>
#include <stddef.h>
#include "raftdir.h"

enum murder_result {
    MURDER_OK = 0,
    MURDER_ABSENT,  /* surely not there */
    MURDER_REFUSED, /* the directory says no; nothing has changed */
    MURDER_UNSURE   /* can't tell, or maybe done: a temporary failure, never "not there" */
};

#define MURDER_TEXT_LEN 512
#define MURDER_CONF_DEFAULT "/etc/raftdir/cyrus.conf"

/* From the file $RAFTDIR_CYRUS_CONF or /etc/raftdir/cyrus.conf (a missing default file is fine), `key = "value"`. What isn't given comes from
 * libraftdir's own environment variables and defaults. */
struct murder_settings {
    char *endpoints, *ca, *cert, *key, *site, *local_dir; /* NULL: not given */
    unsigned write_timeout_ms;  /* 10,000: mailboxes are locked meanwhile */
    unsigned lookup_timeout_ms; /* 4,000 */
    unsigned unreachable_ms;    /* 3,000: when no node can be connected at all */
    char *lookups;              /* programs that find mailboxes elsewhere: see preload_lookup.c */
};
/* MURDER_OK or MURDER_REFUSED with a text. Free with murder_settings_free, also after a failure. */
enum murder_result murder_settings_load(struct murder_settings *s, char text[MURDER_TEXT_LEN]);
void murder_settings_free(struct murder_settings *s);

/* The process's own. Opening it connects to nothing. Not OK: murder_message says why (a file with an error in it, a certificate that can't be read). */
enum murder_result murder_open(void);
void murder_close(void); /* harmless when nothing is open */
const struct murder_settings *murder_settings(void); /* after murder_open */
/* Why the last call wasn't OK, for people. */
const char *murder_message(void);

/* What a server does between connect and disconnect. Zeroed is a fresh one; end it with murder_session_end. */
struct murder_session {
    struct raftdir_mailbox *deleted; /* by the last DELETE, until the next verb shows whether it was the beginning of a rename: RESERVE */
    bool renaming;
};
void murder_session_end(struct murder_session *s);

/* location: "server!partition". */
enum murder_result murder_reserve(struct murder_session *s, const char *name, const char *location);
enum murder_result murder_activate(struct murder_session *s, const char *name, const char *location, const char *acl);
enum murder_result murder_deactivate(struct murder_session *s, const char *name, const char *location);
/* server: who deletes. ABSENT: it was not there. */
enum murder_result murder_delete(struct murder_session *s, const char *name, const char *server);

/* Reads. *m_r lives until the next murder function. A reservation is found too: m->reserved. */
enum murder_result murder_find(const char *name, const struct raftdir_mailbox **m_r);
/* All that anybody was told to be done is seen by the reads that follow. */
enum murder_result murder_barrier(void);
/* Mailboxes and reservations whose location begins with `location` ("server!", "server!part", NULL: all), in Cyrus' order, none missing. The callback
 * must not call murder functions; not 0 from it ends the list and is in *callback_r. */
typedef int murder_list_fn(const struct raftdir_mailbox *m, void *data);
enum murder_result murder_list(const char *location, murder_list_fn *fn, void *data, int *callback_r);

/* Something for the operator: to syslog, as the program that we are in. */
void murder_log(int priority, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
