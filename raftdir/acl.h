/* acl.h - ACLs as Cyrus stores them: "identifier TAB rights TAB identifier TAB rights TAB". Pure; thread-safe.
 *
 * Letters lrswipkxtean0-9, and Cyrus' macros c (kx) and d (te): read, each counts when none of its members is given; written, each stands
 * behind the members as Cyrus writes it ("lrswipkxtecdan"), so that our texts and Cyrus' compare equal.
 * Effective rights = OR of matching positive entries AND NOT the OR of matching negative ("-id") entries, whatever the order. */
#ifndef RAFTDIR_ACL_H
#define RAFTDIR_ACL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "limits.h"

typedef uint32_t acl_rights; /* a bit a letter */

#define ACL_RIGHT_LETTERS "lrswipkxtean0123456789"
acl_rights acl_right(char letter);                                        /* 0: unknown letter, or a macro */
int acl_rights_parse(const char *s, size_t len, acl_rights *rights_r, struct err *err); /* macros expanded; RAFTDIR_EACL */
size_t acl_rights_format(acl_rights rights, char *buf_r);                 /* buf: 33 bytes; in Cyrus' order; returns length */

struct acl_entry {
    const char *id; /* without the '-'; points into the ACL text */
    size_t id_len;
    bool negative;
    acl_rights rights;
    const char *rights_text;
    size_t rights_len;
};
/* Walks an ACL: *pos starts at 0; 1 with an entry, 0 at the end, RAFTDIR_EACL when malformed. */
int acl_next(const char *acl, size_t len, size_t *pos, struct acl_entry *entry_r, struct err *err);
int acl_check(const char *acl, size_t len, struct err *err); /* RAFTDIR_EACL, RAFTDIR_ETOOBIG */

/* The form in which identifiers are compared and indexed: user identifiers with '^' as '.'; the rest as it is.
 * buf: IDENTIFIER_LEN_MAX; returns the length, 0 when the identifier is longer than that (so nobody's). */
size_t acl_principal(const char *id, size_t len, char *buf_r);

/* Who asks: a user as people write it and the groups that come with the query. */
struct acl_subject {
    const char *user; /* "anonymous" is a user like others, but "anyone" holds for it as well */
    const char *const *groups; /* with or without "group:" */
    size_t groups_n;
};
/* Allocates nothing. A malformed ACL grants nothing; a user called "group:..." is no group. */
acl_rights acl_eval(const char *acl, size_t len, const struct acl_subject *who);

/* One identifier's entry ("-id": its negative one) set, changed ("+lr", "-s") or removed (""), as SetAcl says; it keeps its place, a new one
 * goes to the end. Writes into buf_r of buf_size; *len_r the new length. */
int acl_modify(const char *acl, size_t len, const char *id, const char *rights, char *buf_r, size_t buf_size, size_t *len_r, struct err *err);

#endif
