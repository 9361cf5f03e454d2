/* name_match.c - IMAP's wildcards (RFC 3501 section 6.3.8) over names in internal form: see name.h.
 *
 * '*' stands for anything, '%' for anything without a separator ('.', or the '!' after the domain). A pattern is cut into literal
 * characters with a gap before each and one at the end; a gap says what may be skipped there. The name is then read once, with the set
 * of gaps at which the pattern may stand: so the time is bounded by name length times pattern length, whatever the pattern is.
 * Both are bounded by NAME_KEY_LEN_MAX: a pattern with more literals can't match. */
#include "name.h"
#include <string.h>

enum { GAP_NONE, GAP_LEVEL, GAP_ANY };

struct pattern {
    char literal[NAME_KEY_LEN_MAX];
    uint8_t gap[NAME_KEY_LEN_MAX + 1];
    size_t literals;
};

/* False when there are more literals than a name can have. */
static bool pattern_cut(const char *text, size_t literals_max, struct pattern *p)
{
    p->literals = 0;
    p->gap[0] = GAP_NONE;
    for (; *text; text++) {
        if (*text == '*') {
            p->gap[p->literals] = GAP_ANY;
        } else if (*text == '%') {
            if (p->gap[p->literals] == GAP_NONE)
                p->gap[p->literals] = GAP_LEVEL;
        } else {
            if (p->literals == literals_max)
                return false;
            p->literal[p->literals++] = *text;
            p->gap[p->literals] = GAP_NONE;
        }
    }
    return true;
}

size_t name_pattern_literal(const char *pattern)
{
    return strcspn(pattern, "*%");
}

bool name_match(const char *pattern, const char *name, size_t len)
{
    /* Most patterns are a literal, or a literal with one wildcard at its end. */
    size_t literal = name_pattern_literal(pattern);
    if (literal > len || memcmp(pattern, name, literal) != 0 || len > NAME_KEY_LEN_MAX)
        return false;
    pattern += literal;
    name += literal;
    len -= literal;
    if (!*pattern)
        return len == 0;
    if (pattern[0] == '*' && !pattern[1])
        return true;
    if (pattern[0] == '%' && !pattern[1])
        return !memchr(name, '.', len) && !memchr(name, '!', len);

    struct pattern p;
    if (!pattern_cut(pattern, len, &p))
        return false;
    bool at[NAME_KEY_LEN_MAX + 1];
    memset(at, 0, p.literals + 1);
    at[0] = true;
    size_t high = 0; /* the last gap that is set, or an upper bound of it */
    for (size_t i = 0; i < len; i++) {
        bool sep = name[i] == '.' || name[i] == '!';
        bool some = false;
        if (high < p.literals)
            high++;
        for (size_t g = high + 1; g-- > 0;) {
            bool stays = at[g] && (p.gap[g] == GAP_ANY || (p.gap[g] == GAP_LEVEL && !sep));
            bool comes = g > 0 && at[g - 1] && p.literal[g - 1] == name[i];
            at[g] = stays || comes;
            some |= at[g];
        }
        if (!some)
            return false;
    }
    return at[p.literals];
}
