/* store_pattern.h - what a prefix or pattern means for seeking in name keys. Pure; thread-safe.
 *
 * A literal prefix in internal form is one range of keys, or two: without a '!' in it, its end may lie inside of a domain, where '.' and '^'
 * stand for themselves in keys, or in a name without a domain, where they don't. */
#ifndef RAFTDIR_STORE_PATTERN_H
#define RAFTDIR_STORE_PATTERN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "limits.h"

struct store_range {
    uint8_t prefix[NAME_KEY_LEN_MAX];
    size_t len;
};
/* The ranges, ascending and disjoint: 1 or 2, 0 when the literal is longer than any name. */
unsigned store_pattern_ranges(const char *literal, size_t len, struct store_range range_r[2]);

/* A pattern as levels of a key, for skipping. */
struct store_pattern {
    const char *text;
    uint8_t domain[NAME_KEY_LEN_MAX]; /* with its 0x1D */
    size_t domain_len;
    bool skips;        /* false: this pattern never allows it */
    const char *local; /* what follows the domain, in internal form */
};
void store_pattern_init(struct store_pattern *p, const char *text); /* text is borrowed */
/* For a key that the pattern does not match: the length of the target, the least key after `key` that it may match (`target_r`:
 * NAME_KEY_LEN_MAX), or 0 when nothing better than the next key is known. The target is always greater than `key`. */
size_t store_pattern_skip(const struct store_pattern *p, const uint8_t *key, size_t key_len, uint8_t *target_r);

#endif
