/* access.h - who may do what at this node: identities ("cert:NAME", "unix:UID", "sasl:USER", "noauth:loopback"), roles, and the rules of the configuration. Pure. */
#ifndef RAFTDIR_ACCESS_H
#define RAFTDIR_ACCESS_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include "err.h"
#include "limits.h"

/* Each role includes those before it. */
enum access_role { ACCESS_NONE = 0, ACCESS_READ, ACCESS_BACKEND, ACCESS_ADMIN };

/* One `allow` section. */
struct access_rule {
    char *who; /* "cert:NAME", "cert:*", "unix:UID", "unix:*", "sasl:USER", "sasl:*", "noauth:loopback" */
    enum access_role role;
    char *server; /* NULL: a backend of any server */
};

struct access {
    enum access_role role;
    char identity[IDENTITY_LEN_MAX];
    char server[SERVER_LEN_MAX + 1]; /* "": not bound */
};

const char *access_role_name(enum access_role role);
int access_role_parse(const char *s); /* -1: unknown */

/* An exact rule wins over a "*" rule. Without any rule for Unix users: root and `own_uid` are admin, others read. A certificate without a rule: ACCESS_NONE. */
void access_of_uid(const struct access_rule *rules, size_t n, uid_t uid, uid_t own_uid, struct access *access_r);
/* RAFTDIR_ETOOBIG: a name that doesn't fit an identity; access_r is ACCESS_NONE then. */
int access_of_cert(const struct access_rule *rules, size_t n, const char *cert_name, struct access *access_r, struct err *err);
/* The user that SASL has authenticated. Without a rule: ACCESS_NONE. RAFTDIR_ETOOBIG as above. */
int access_of_sasl(const struct access_rule *rules, size_t n, const char *user, struct access *access_r, struct err *err);
/* Who connects to MUPDATE over loopback or its Unix socket and says nothing: ACCESS_NONE unless there is a rule for "noauth:loopback". */
void access_of_noauth(const struct access_rule *rules, size_t n, struct access *access_r);

#endif
