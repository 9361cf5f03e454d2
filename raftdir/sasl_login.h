/* sasl_login.h - authenticating clients through the Cyrus SASL library (RFC 4422). What it looks up may block (a file, saslauthd, LDAP): each step runs in libuv's pool.
 *
 * Security layers aren't offered (maximum SSF 0): TLS is there for that. sasl_checkpass and its options come from the configuration (`sasl`), not from /etc/sasl2. */
#ifndef RAFTDIR_SASL_LOGIN_H
#define RAFTDIR_SASL_LOGIN_H
#include <stdbool.h>
#include <stddef.h>
#include <uv.h>
#include "err.h"
#include "limits.h"

/* Once a process, before any thread uses it; options: "NAME: VALUE", copied. RAFTDIR_EINVAL: no mechanism can be offered at all, with the reason. */
int sasl_login_init(const char *const *options, size_t n, struct err *err);
void sasl_login_close(void); /* when no login is left; harmless without an init */

/* "PLAIN" "SCRAM-SHA-256": what a client may use, quoted, separated by spaces, as a banner needs it; "" when there is nothing. Lives until sasl_login_close.
 * plaintext: mechanisms that show the password may be used; external: the client has a certificate. Any thread. */
const char *sasl_login_offer(bool plaintext, bool external);

struct sasl_login;
struct sasl_login_options {
    const char *service;           /* "mupdate" */
    const char *hostname;          /* realm and Kerberos name */
    const char *external;          /* the name in the client's certificate; NULL: none, no EXTERNAL */
    bool plaintext;                /* mechanisms that show the password may be used: there is TLS, or the configuration says so */
};
/* One exchange. Copies the options. */
int sasl_login_create(const struct sasl_login_options *o, struct sasl_login **l_r, struct err *err);
void sasl_login_destroy(struct sasl_login **l); /* not while a step runs */

struct sasl_step {
    /* in: */
    const char *mechanism; /* the first step's; NULL later. Copied */
    const char *in;        /* base64 as it came, or "*": cancelled; first step: NULL: no initial response, "=": an empty one. Copied */
    size_t in_len;
    void (*done)(struct sasl_step *step); /* on the loop's thread, once, later */
    /* out: */
    int code;      /* 0: authenticated; RAFTDIR_EAGAIN: send `out` and take a response; RAFTDIR_EAUTH: refused; RAFTDIR_EPROTO: no base64, no such mechanism here, cancelled; RAFTDIR_EUNAVAIL: can't tell */
    struct err err;        /* for the log: may say more than the client should know */
    const char *out;       /* base64, with EAGAIN. Lives until the next step */
    char user[IDENTITY_LEN_MAX]; /* with 0: the authorization identity, canonical */
    /* own: */
    uv_work_t work;
    struct sasl_pool *pool;
    struct sasl_login *login;
    struct sasl_step *prev, *next;
    bool given_up;
    char *copy_mechanism, *copy_in;
};
/* Of one loop: at most SASL_STEPS_MAX steps of it are in libuv's pool at once, whose threads are there for others too; the rest waits its turn. Zeroed, with `loop` set. */
struct sasl_pool {
    uv_loop_t *loop;
    unsigned running;
    struct sasl_step *waiting;
};
#define SASL_STEPS_MAX 4
/* One at a time for each l. The step lives until done. After any code but EAGAIN the exchange has ended. */
void sasl_login_step(struct sasl_login *l, struct sasl_pool *pool, struct sasl_step *step);
/* Nobody wants to know any more: if its turn hasn't come, it is not begun; done comes all the same, with RAFTDIR_ECANCELED then. */
void sasl_login_give_up(struct sasl_step *step);
/* Steps that run now, of all loops. One may take as long as what it asks: saslauthd has no time limit. Any thread. */
unsigned sasl_login_running(void);

#endif
