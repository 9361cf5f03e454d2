/* op_json.c - is a text a compact JSON array? For name_history, which we carry as Cyrus dumps it and give back unread: what isn't JSON
 * would break every later export, so it is refused at the door. Grammar: RFC 8259, without white space. Pure, bounded depth. */
#include <stdint.h>
#include <string.h>
#include "name.h"
#include "op_check.h"

#define DEPTH_MAX 16

struct scan {
    const char *p, *end;
};

static bool take(struct scan *s, char c)
{
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Control characters and UTF-8 are checked over the whole text before. */
static bool scan_string(struct scan *s)
{
    if (!take(s, '"'))
        return false;
    while (s->p < s->end) {
        char c = *s->p++;
        if (c == '"')
            return true;
        if (c != '\\')
            continue;
        if (s->p == s->end)
            return false;
        c = *s->p++;
        if (c == 'u') {
            if (s->end - s->p < 4)
                return false;
            for (int i = 0; i < 4; i++) {
                if (!is_hex(*s->p++))
                    return false;
            }
        } else if (c == '\0' || !strchr("\"\\/bfnrt", c)) {
            return false;
        }
    }
    return false;
}

static size_t scan_digits(struct scan *s)
{
    const char *start = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return (size_t)(s->p - start);
}

static bool scan_number(struct scan *s)
{
    take(s, '-');
    if (!take(s, '0') && !scan_digits(s))
        return false;
    if (take(s, '.') && !scan_digits(s))
        return false;
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+'))
            take(s, '-');
        return scan_digits(s) > 0;
    }
    return true;
}

static bool scan_word(struct scan *s, const char *word)
{
    size_t len = strlen(word);
    if ((size_t)(s->end - s->p) < len || memcmp(s->p, word, len) != 0)
        return false;
    s->p += len;
    return true;
}

static bool scan_value(struct scan *s, unsigned depth);

static bool scan_members(struct scan *s, char close, bool object, unsigned depth)
{
    if (depth == 0)
        return false;
    if (take(s, close))
        return true;
    do {
        if (object && (!scan_string(s) || !take(s, ':')))
            return false;
        if (!scan_value(s, depth - 1))
            return false;
    } while (take(s, ','));
    return take(s, close);
}

static bool scan_value(struct scan *s, unsigned depth)
{
    if (s->p == s->end)
        return false;
    switch (*s->p) {
    case '{': s->p++; return scan_members(s, '}', true, depth);
    case '[': s->p++; return scan_members(s, ']', false, depth);
    case '"': return scan_string(s);
    case 't': return scan_word(s, "true");
    case 'f': return scan_word(s, "false");
    case 'n': return scan_word(s, "null");
    default: return scan_number(s);
    }
}

bool op_json_array_ok(const char *text, size_t len)
{
    struct scan s = {text, text + len};
    return name_utf8_ok(text, len) && len > 0 && text[0] == '[' && scan_value(&s, DEPTH_MAX) && s.p == s.end;
}
