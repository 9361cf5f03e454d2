/* name.h - mailbox names: validity, Cyrus' order as key bytes, users. Pure; no allocation; thread-safe.
 *
 * Internal form: [domain!]user.foo.bar, '.' separates, '^' stands for a literal dot (DESIGN D4).
 * Key form: domain raw, 0x1D, then the rest with '.' as 0x1F and '^' as 0x2E; memcmp order of keys is Cyrus' mailbox order. */
#ifndef RAFTDIR_NAME_H
#define RAFTDIR_NAME_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "limits.h"

/* 0, or RAFTDIR_ENAME / RAFTDIR_ETOOBIG with a text that says which rule and where. */
int name_check(const char *name, size_t len, struct err *err);
/* Name to key and back (len <= NAME_KEY_LEN_MAX, asserted); `key` and `name` have room for NAME_KEY_LEN_MAX (+1 for the terminating NUL of name). Return the length. */
size_t name_to_key(const char *name, size_t len, uint8_t *key_r);
size_t name_from_key(const uint8_t *key, size_t len, char *name_r);
int name_key_cmp(const uint8_t *a, size_t alen, const uint8_t *b, size_t blen);
/* "john.doe@example.org" -> "example.org!user.john^doe" (the INBOX). 0 or RAFTDIR_ENAME. name_r: NAME_LEN_MAX + 1. */
int name_of_user(const char *user, char *name_r, struct err *err);
/* The owner of a mailbox in the user. namespace (DELETED.user. too) as people write it; false for shared mailboxes. user_r: NAME_LEN_MAX + 1. */
bool name_owner(const char *name, size_t len, char *user_r);
/* Length of the domain part including '!' (0 without one). */
size_t name_domain_len(const char *name, size_t len);
/* Is `name` `root` itself or below it? All names are within "", those of a domain within "domain!". */
bool name_is_within(const char *name, size_t len, const char *root, size_t root_len);
/* Does an IMAP pattern with % (one level; doesn't cross '!' either) and * (any) match? Both in internal form. Time is bounded by len times pattern length. */
bool name_match(const char *pattern, const char *name, size_t len);
/* The literal start of a pattern, up to its first wildcard. */
size_t name_pattern_literal(const char *pattern);
/* Valid UTF-8 without control characters: what identifiers of ACLs and other free text have to be. */
bool name_utf8_ok(const char *s, size_t len);

#endif
