/* srv_mupdate.h - MUPDATE (RFC 3656) on a service thread, as Cyrus' clients speak it. Private to thread_service.c and srv_mupdate*.c.
 *
 * srv_mupdate.c         connections: commands in order, LOGOUT, limits
 * srv_mupdate_listen.c  who listens when
 * srv_mupdate_auth.c    AUTHENTICATE, STARTTLS, COMPRESS; who somebody is and what he may
 * srv_mupdate_write.c   RESERVE, ACTIVATE, DEACTIVATE, DELETE
 * srv_mupdate_request.c their requests to the log, and back
 * srv_mupdate_undo.c    takes back what a client can only believe to have failed
 * srv_mupdate_read.c    FIND, NOOP: levels, "not there" against "can't tell"
 * srv_mupdate_list.c    LIST and the first part of UPDATE: rows of a snapshot, made by a thread of its own
 * srv_mupdate_update.c  the rest of UPDATE: changes as they are published
 * srv_mupdate_view.c    who is connected, for `raftdirctl mupdate sessions`
 *
 * A session works on one command at a time; what comes meanwhile waits in its connection's buffer (nothing more is read beyond MUPDATE_AHEAD_LEN). Each command ends with exactly one
 * mupdate_answer. A session whose connection is gone (conn NULL) lives on while something of it is under way (call, SASL step, list, update): mupdate_release frees it when nothing is.
 * A verb's function is called when the number of its arguments, the login, "not while updating" and the role were looked at, and no argument has a NUL in it.
 *
 * Invariants: nothing is answered OK before it is committed; NO means that it was not done, or (text) that it can't be told; a row, and "no such mailbox", come from a state that has
 * everything that any MUPDATE client of this node was told (daemon.mupdate_seen); lists are in Cyrus' order, from one snapshot that a majority has confirmed; no answer makes a
 * backend wipe a mailbox (FIND after LIST of a server: srv_mupdate_read.c). */
#ifndef RAFTDIR_SRV_MUPDATE_H
#define RAFTDIR_SRV_MUPDATE_H
#include "access.h"
#include "conn.h"
#include "log.pb-c.h"
#include "mupdate_parse.h"
#include "mupdate_print.h"
#include "sasl_login.h"
#include "srv.h"

/* What others may know of a session; under daemon.mupdate_mutex. */
struct mupdate_view {
    struct mupdate_view *prev, *next;
    char peer[128], identity[IDENTITY_LEN_MAX], role[16], server[SERVER_LEN_MAX + 1]; /* server: whose locations it has written or listed; "": not known */
    bool tls, compressed, updating;
    uint64_t since_ms, last_ms;   /* monotonic: connected; last command */
    uint64_t commands, rows, sent_len;
    uint64_t index;               /* UPDATE: everything up to here was sent (to the socket); behind by published - index */
    size_t queued_len;            /* bytes that wait for it */
    char doing[32];               /* "idle", "login", "list", "update", or a verb */
};

enum mupdate_auth { MUPDATE_ANONYMOUS, MUPDATE_IMPLIED /* loopback or peer credentials: may still AUTHENTICATE */, MUPDATE_AUTHENTICATED };

struct mupdate_list;   /* srv_mupdate_list.c */
struct mupdate_update; /* srv_mupdate_update.c */
struct mupdate_zip;    /* srv_mupdate_auth.c: zlib's two streams */

struct mupdate_verb;   /* srv_mupdate.c */

/* The write, or FIND, that is worked on; zeroed when it begins. */
struct mupdate_write {
    void (*begin)(struct mupdate_session *m);                               /* to look again, and decide anew */
    void (*done)(struct mupdate_session *m, const Raftdir__Log__Result *r); /* of the request that was sent: it has this result */
    uint8_t op_id[OP_ID_LEN];
    uint64_t expires_ms;
    size_t request_len;
    bool sent;       /* the request is at the consensus thread */
    bool activates;  /* it is an ACTIVATE */
    bool confirmed;  /* a majority has confirmed the state that is published */
    unsigned tries, expired; /* decisions that somebody else's change has overtaken; ids that were too old */
    Raftdir__Log__Mailbox *was; /* DELETE: what it takes away */
    char *refusal;       /* NO, as soon as what was deleted is back */
    char *from;          /* ACTIVATE with a take-over: "server!partition" that loses the mailbox, */
    uint64_t generation; /* and what of it was seen; 0: without */
};

struct mupdate_session {
    struct mupdate_session *prev, *next;
    struct service *service;
    struct conn *conn; /* NULL: gone */
    struct mupdate_view view; /* own fields are written under the mutex, by mupdate_view_* */
    bool local, tls, closing;
    uint64_t since_ms, last_ms; /* connected; the last command, or its end */
    uint64_t commands;

    /* srv_mupdate_auth.c */
    enum mupdate_auth auth;
    struct access access;
    unsigned rules_generation, failures;
    char user[IDENTITY_LEN_MAX]; /* AUTHENTICATED: whom SASL named, or the certificate's name */
    bool by_cert;
    const char *refusal;         /* what is answered when the delay of a refused login is over */
    struct sasl_login *sasl;
    struct sasl_step step;
    bool stepping, responding; /* a step is in the pool; the next line is a response */
    struct mupdate_zip *zip;

    /* The command that is worked on. */
    struct mupdate_parser parser;
    bool busy;
    char *command;            /* a copy: tag and words live as long as the command */
    size_t command_size;
    const struct mupdate_verb *verb;
    struct mupdate_word tag;
    struct mupdate_line line;
    uint64_t deadline_ms;
    void (*next_step)(struct mupdate_session *m); /* who goes on after a call or wait */
    struct consensus_call call;
    bool calling;
    struct srv_wait wait;
    uint8_t *packed;          /* of a write */
    unsigned attempt;

    /* srv_mupdate_write.c: the mailbox of the last DELETE, until the next verb shows whether it was the beginning of a rename. */
    Raftdir__Log__Mailbox *deleted;
    bool renaming; /* it was */
    struct mupdate_write write;
    bool listed; /* LIST of a server's locations: this is ctl_mboxlist -m of view.server */

    struct mupdate_list *list;
    struct mupdate_update *update; /* not NULL from UPDATE on: only NOOP and LOGOUT are legal */

    /* srv_mupdate.c: input. */
    struct mupdate_out input; /* with COMPRESS: what came, inflated */
    struct srv_stream turn;   /* with COMPRESS: to go on with it */
    bool taking;              /* within on_data: an answer doesn't begin the next command */
    bool waits;               /* whole lines may be left */
    bool held;                /* conn_pause(conn, true) was called */
    bool ended;               /* the other end sends nothing more: what it has sent is worked on, then the connection closes */
    bool logged_out;
    uint64_t sent_len, sent_ms; /* what its socket had taken, and when that was last seen to change */
    bool freed; /* the connection is gone: see mupdate_release */
};

/* srv_mupdate_listen.c */
void mupdate_listen_look(struct service *s, uint64_t now);
void mupdate_listen_close(struct service *s, const char *why);
bool mupdate_listen_wanted(const struct config *c); /* the configuration names an address */
/* Does this node take connections? Why not, else "". Any thread. */
bool mupdate_listen_state(struct daemon *d, char *why_not_r, size_t size);

/* srv_mupdate.c */
void mupdate_accept(struct srv_listener *l, bool local, bool tls);
/* Fills in the listeners, which open in srv_mupdate_tick when this node can serve; service 0 also tries whether the addresses can be had at all (RAFTDIR_EUNAVAIL). */
int srv_mupdate_start(struct service *s, struct err *err);
void srv_mupdate_tick(struct service *s, uint64_t now);        /* each SRV_TICK_MS */
void srv_mupdate_stop(struct service *s);                      /* closes listeners and sessions: `* BYE`. The service ends when s->mupdates is NULL and s->works is 0 */
/* Ends the command that is worked on; the next one begins later, not within this call. word: "OK", "NO", "BAD". Harmless to a session whose connection is gone. */
void mupdate_answer(struct mupdate_session *m, const char *word, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Sends bytes (compressed where that was agreed). The session may be gone meanwhile: harmless. */
void mupdate_send(struct mupdate_session *m, const void *data, size_t len);
bool mupdate_backed_up(const struct mupdate_session *m); /* more than MUPDATE_OUT_LEN_MAX wait; mupdate_drained comes */
void mupdate_bye(struct mupdate_session *m, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* "* BYE" and the end */
/* Frees a session whose connection is gone, once nothing is under way: neither `calling` nor `stepping` is set, `list` and `update` are NULL. Whoever ends one of them calls this, last. */
void mupdate_release(struct mupdate_session *m);
void mupdate_go_on(struct mupdate_session *m); /* `responding` was set: the response may be there already */
const char *mupdate_arg(const struct mupdate_session *m, unsigned i); /* the i-th argument (0: after the verb), NUL-terminated */

/* srv_mupdate_auth.c */
void mupdate_auth_begin(struct mupdate_session *m);  /* connection open: who is it, as far as that is known without words */
void mupdate_banner(struct mupdate_session *m);
void mupdate_authenticate(struct mupdate_session *m);
void mupdate_response(struct mupdate_session *m, const struct mupdate_word *word);
void mupdate_starttls(struct mupdate_session *m);
void mupdate_tls_done(struct mupdate_session *m);
void mupdate_compress(struct mupdate_session *m);
int mupdate_inflate(struct mupdate_session *m, const uint8_t *data, size_t len, struct mupdate_out *to); /* < 0: garbage, or more than a bomb may become */
void mupdate_deflate(struct mupdate_session *m, const void *data, size_t len, struct mupdate_out *to);
void mupdate_access_renew(struct mupdate_session *m); /* m->access by the rules as they are now */
bool mupdate_may(struct mupdate_session *m, enum access_role role); /* by the rules as they are now; answers itself when not */
bool mupdate_auth_holds(struct mupdate_session *m); /* false: who it was let in as has no role any more, by the rules as they are now */
void mupdate_auth_close(struct mupdate_session *m);

/* srv_mupdate_read.c */
/* m->next_step comes when the published state has `index`, and everything that was told; or the command was answered NO. */
void mupdate_wait(struct mupdate_session *m, uint64_t index, void (*next_step)(struct mupdate_session *m));
/* The same, of a state that a majority has confirmed after now. */
void mupdate_linearize(struct mupdate_session *m, void (*next_step)(struct mupdate_session *m));
/* An index that a client is told of by an answer. */
void mupdate_seen(struct service *s, uint64_t index);
void mupdate_find(struct mupdate_session *m);
void mupdate_noop(struct mupdate_session *m); /* also while updating: everything up to the barrier is sent before its OK */

/* srv_mupdate_write.c */
void mupdate_reserve(struct mupdate_session *m);
void mupdate_activate(struct mupdate_session *m);
void mupdate_deactivate(struct mupdate_session *m);
void mupdate_delete(struct mupdate_session *m);

/* srv_mupdate_request.c */
void mupdate_write_begin(struct mupdate_session *m, void (*begin)(struct mupdate_session *m)); /* calls begin, and again when it shall look and decide anew */
/* Checks, sends, waits; done comes with the result, or the command was answered, or begin is called again. */
void mupdate_submit(struct mupdate_session *m, Raftdir__Log__Op *op, void (*when_done)(struct mupdate_session *m, const Raftdir__Log__Result *r));
/* The ends of a write: OK "done"; NO: nothing was done, and what the client has deleted for it is put back. */
void mupdate_done(struct mupdate_session *m);
void mupdate_refuse(struct mupdate_session *m, const char *text);
void mupdate_refuse_result(struct mupdate_session *m, const Raftdir__Log__Result *r);
void mupdate_deleted_forget(struct mupdate_session *m);
void mupdate_write_close(struct mupdate_session *m); /* the connection is gone */
/* Fresh random bytes, and an expiry. */
void mupdate_op_id(struct service *s, uint8_t op_id_r[OP_ID_LEN], uint64_t *expires_ms_r);
/* A packed request (malloc'd), checked. NULL: it can't be sent, err says why. */
uint8_t *mupdate_request(struct service *s, const char *identity, const uint8_t op_id[OP_ID_LEN], uint64_t expires_ms, Raftdir__Log__Op **ops, size_t n, size_t *len_r,
                         struct err *err);

/* srv_mupdate_undo.c */
#define MUPDATE_UNDO_MS 1000 /* of one attempt */
struct mupdate_undo_plan {
    const uint8_t *op_id;            /* of a write whose outcome isn't known: it is found out, and can't happen any more. NULL: it is known */
    uint64_t expires_ms;
    bool deletion;                   /* that write was the DELETE of put_back: put back only if it happened */
    Raftdir__Log__Mailbox *put_back; /* given: created again, unless somebody else has the name. NULL: nothing */
    const char *drop, *drop_server;  /* copied: deleted, if it still is what the write made of it. NULL: nothing */
    uint64_t drop_generation;        /* 0: as that write's result says */
    const char *why;                 /* for the log; copied */
};
/* Goes on by itself, whatever becomes of the session, until it is done or the operation id expires. then (NULL allowed): comes once, when a first attempt to put back has ended, however. */
void mupdate_undo(struct mupdate_session *m, const struct mupdate_undo_plan *plan, void (*then)(struct mupdate_session *m));

/* srv_mupdate_list.c */
void mupdate_list(struct mupdate_session *m);
/* Rows of one snapshot of a confirmed state to the client, tagged with the command's tag; then done(m, index of the snapshot), or the session has ended. servers: only theirs; n 0: all. */
void mupdate_rows(struct mupdate_session *m, const struct mupdate_word *servers, unsigned n, const char *prefix, void (*done)(struct mupdate_session *m, uint64_t index));
void srv_mupdate_lists_made(struct inbox *inbox, struct inbox_msg *list); /* the service's lists_made: the lister has worked */
void mupdate_list_drained(struct mupdate_session *m);
void mupdate_list_close(struct mupdate_session *m); /* the connection is gone */

/* srv_mupdate_update.c */
void mupdate_update(struct mupdate_session *m);
/* Sends what was published up to `index`, then done(m). */
void mupdate_update_until(struct mupdate_session *m, uint64_t index, void (*done)(struct mupdate_session *m));
void mupdate_update_drained(struct mupdate_session *m);
void mupdate_update_close(struct mupdate_session *m);

/* srv_mupdate_view.c */
void mupdate_view_open(struct mupdate_session *m);
void mupdate_view_doing(struct mupdate_session *m, const char *doing);
void mupdate_view_server(struct mupdate_session *m, const char *server, size_t len);
void mupdate_view_sent(struct mupdate_session *m, uint64_t rows, uint64_t index);
void mupdate_view_refresh(struct mupdate_session *m); /* identity, role, flags */
void mupdate_view_close(struct mupdate_session *m);

#endif
