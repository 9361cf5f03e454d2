/* store_pattern.c - see store_pattern.h.
 *
 * The levels of the pattern are compared with those of the key, from the left, up to the first level with a '*'. At the first level that
 * doesn't match, nothing below it can match either: its whole subtree is skipped; and when the level of the pattern has a literal start that
 * the key has yet to reach, the seek goes there, or over all siblings when it is past it. A key with more levels than the pattern is skipped with
 * everything below its last level that counts. Names of another domain are never skipped: there the range decides. */
#include "store_pattern.h"
#include <string.h>
#include "name.h"

#define KEY_DOMAIN_SEP 0x1D
#define KEY_HIER_SEP 0x1F
#define KEY_AFTER_HIER_SEP 0x20

unsigned store_pattern_ranges(const char *literal, size_t len, struct store_range range[2])
{
    if (len > NAME_KEY_LEN_MAX)
        return 0;
    range[0].len = name_to_key(literal, len, range[0].prefix);
    if (memchr(literal, '!', len))
        return 1;
    memcpy(range[1].prefix, literal, len);
    range[1].len = len;
    /* 0x1F < '.', and '.' < '^': where they differ first, the converted form is the lower one. */
    return memcmp(range[0].prefix, range[1].prefix, len) == 0 ? 1 : 2;
}

void store_pattern_init(struct store_pattern *p, const char *text)
{
    p->text = text;
    p->domain_len = 0;
    p->local = text;
    const char *bang = strchr(text, '!');
    size_t literal = name_pattern_literal(text);
    p->skips = true;
    if (bang && (size_t)(bang - text) < literal && bang - text < NAME_KEY_LEN_MAX) {
        p->domain_len = (size_t)(bang - text) + 1;
        memcpy(p->domain, text, p->domain_len - 1);
        p->domain[p->domain_len - 1] = KEY_DOMAIN_SEP;
        p->local = bang + 1;
    } else if (bang) {
        p->skips = false; /* a wildcard in the domain */
    }
}

/* One level: '%' is any run of characters. `pattern` is in internal form, `s` part of a key. */
static bool level_match(const char *pattern, size_t pattern_len, const uint8_t *s, size_t len)
{
    size_t i = 0, j = 0, star = SIZE_MAX, from = 0;
    while (j < len) {
        if (i < pattern_len && pattern[i] == '%') {
            star = i++;
            from = j;
        } else if (i < pattern_len && (pattern[i] == '^' ? '.' : (uint8_t)pattern[i]) == s[j]) {
            i++;
            j++;
        } else if (star != SIZE_MAX) {
            i = star + 1;
            j = ++from;
        } else {
            return false;
        }
    }
    while (i < pattern_len && pattern[i] == '%')
        i++;
    return i == pattern_len;
}

/* prefix[0..len) and one byte more: the target, unless it is too long to be a key. */
static size_t target(const uint8_t *prefix, size_t len, uint8_t next, uint8_t *target_r)
{
    if (len + 1 > NAME_KEY_LEN_MAX)
        return 0;
    memcpy(target_r, prefix, len);
    target_r[len] = next;
    return len + 1;
}

size_t store_pattern_skip(const struct store_pattern *p, const uint8_t *key, size_t key_len, uint8_t *target_r)
{
    if (!p->skips)
        return 0;
    if (p->domain_len ? key_len < p->domain_len || memcmp(key, p->domain, p->domain_len) != 0 : memchr(key, KEY_DOMAIN_SEP, key_len) != NULL)
        return 0;
    const char *level = p->local;
    size_t at = p->domain_len; /* where the key's level starts */
    for (;;) {
        size_t level_len = strcspn(level, ".");
        if (memchr(level, '*', level_len))
            return 0;
        const uint8_t *sep = memchr(key + at, KEY_HIER_SEP, key_len - at);
        size_t end = sep ? (size_t)(sep - key) : key_len;
        if (!level_match(level, level_len, key + at, end - at)) {
            uint8_t literal[NAME_KEY_LEN_MAX];
            size_t n = strcspn(level, "%");
            if (n > level_len)
                n = level_len;
            if (n > NAME_KEY_LEN_MAX - at)
                return 0;
            for (size_t i = 0; i < n; i++)
                literal[i] = level[i] == '^' ? '.' : (uint8_t)level[i];
            size_t common = n < end - at ? n : end - at;
            int c = memcmp(key + at, literal, common);
            if (c < 0 || (c == 0 && end - at < n)) { /* before the literal start: there */
                memcpy(target_r, key, at);
                memcpy(target_r + at, literal, n);
                return at + n;
            }
            if (c > 0) /* past it: over all siblings */
                return at > p->domain_len ? target(key, at - 1, KEY_AFTER_HIER_SEP, target_r) : 0;
            return target(key, end, KEY_AFTER_HIER_SEP, target_r);
        }
        if (level[level_len] == '\0') /* the pattern's last level matches, so the key has more */
            return sep ? target(key, end, KEY_AFTER_HIER_SEP, target_r) : 0;
        if (!sep)
            return 0; /* the key ends first: what matches is below it */
        level += level_len + 1;
        at = end + 1;
    }
}
