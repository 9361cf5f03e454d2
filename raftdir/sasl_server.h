/* sasl_server.h - authenticating clients through the Cyrus SASL library (RFC 4422). What it looks up may block (a file, saslauthd, LDAP): each step runs in libuv's pool.
 *
 * Security layers aren't offered (maximum SSF 0): TLS is there for that. sasl_checkpass and its options come from the configuration (`sasl`), not from /etc/sasl2. */
#ifndef RAFTDIR_SASL_SERVER_H
#define RAFTDIR_SASL_SERVER_H
#include <stdbool.h>
#include <stddef.h>
#include <uv.h>
#include "err.h"
#include "limits.h"

/* Once a process, before any thread uses it; options: "NAME: VALUE", borrowed until sasl_server_close. RAFTDIR_EINVAL: no mechanism can be offered at all, with the reason. */
int sasl_server_init(const char *const *options, size_t n, struct err *err);
void sasl_server_close(void);

struct sasl_server;
struct sasl_server_options {
    const char *service;           /* "mupdate" */
    const char *hostname;          /* realm and Kerberos name */
    const char *local, *remote;    /* "address;port", or NULL */
    const char *external;          /* the name in the client's certificate; NULL: none, no EXTERNAL */
    bool plaintext;                /* mechanisms that show the password may be used: there is TLS, or the configuration says so */
};
int sasl_server_create(const struct sasl_server_options *o, struct sasl_server **s_r, struct err *err);
void sasl_server_destroy(struct sasl_server **s); /* not while a step runs */
/* "PLAIN" "SCRAM-SHA-256": quoted, separated by spaces, as a banner needs them; "" when there are none. Lives as long as s. */
const char *sasl_server_mechs(struct sasl_server *s);

struct sasl_step {
    /* in: */
    const char *mechanism; /* the first step's; NULL later. Copied */
    const char *in;        /* base64 as it came; NULL: no initial response. Copied */
    size_t in_len;
    void (*done)(struct sasl_step *step); /* on the loop's thread, once, later */
    /* out: */
    int code;      /* 0: authenticated; RAFTDIR_EAGAIN: send `out` and take a response; RAFTDIR_EAUTH: refused; RAFTDIR_EPROTO: no base64, no such mechanism, cancelled; RAFTDIR_EUNAVAIL: can't tell */
    struct err err;        /* for the log: may say more than the client should know */
    const char *out;       /* base64, with EAGAIN; with 0: what the mechanism still has to say, or NULL. Lives until the next step */
    char user[IDENTITY_LEN_MAX]; /* with 0: the authorization identity, canonical */
    /* own: */
    uv_work_t work;
    struct sasl_server *server;
    char *copy_mechanism, *copy_in;
};
/* One at a time for each s. The step lives until done. */
void sasl_server_step(struct sasl_server *s, uv_loop_t *loop, struct sasl_step *step);

#endif
