/* name.c - see name.h. The rules are those of Cyrus' mboxname_policycheck() (imap/mboxname.c, 3.6 to 3.10), with three differences:
 * a '!' is allowed only once, after the domain; the domain has to be printable 7-bit text without the forbidden characters;
 * and DELETED names are checked too (Cyrus skips them), except that they may be longer.
 *
 * The order is that of Cyrus' mailboxes.db keys (mbname_dbname() in imap/mboxlist.c). One byte of a name is one byte of its key, so
 * both have the same length, and a prefix of one that ends at a separator is a prefix of the other. */
#include "name.h"
#include <assert.h>
#include <string.h>

#define KEY_DOMAIN_SEP 0x1D
#define KEY_HIER_SEP 0x1F

/* Printable 7-bit characters that a name may have; '&' and '!' have rules of their own. */
static const bool good_chars[256] = {
    [' '] = true, ['#'] = true, ['$'] = true, ['\''] = true, ['('] = true, [')'] = true, ['*'] = true, ['+'] = true, [','] = true, ['-'] = true, ['.'] = true,
    ['0' ... '9'] = true, [':'] = true, ['='] = true, ['?'] = true, ['@'] = true, ['A' ... 'Z'] = true, ['['] = true, [']'] = true, ['^'] = true, ['_'] = true,
    ['a' ... 'z'] = true, ['~'] = true};

static bool is_good(char c)
{
    return good_chars[(unsigned char)c];
}

/* Why is a character not allowed: for the text of an error. */
static int bad_char(unsigned char c, size_t at, struct err *err)
{
    if (c == 0)
        return err_set(err, RAFTDIR_ENAME, "mailbox name has a NUL byte at position %zu", at);
    if (c < 0x20 || c == 0x7F)
        return err_set(err, RAFTDIR_ENAME, "mailbox name has the control character 0x%02x at position %zu", c, at);
    if (c >= 0x80)
        return err_set(err, RAFTDIR_ENAME, "mailbox name has the 8-bit character 0x%02x at position %zu: modified UTF-7 is wanted", c, at);
    return err_set(err, RAFTDIR_ENAME, "mailbox name has '%c' at position %zu, which is not allowed", c, at);
}

/* The value of a character of modified base64 (RFC 3501 section 5.1.3), or -1. */
static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == ',' ? 63 : -1;
}

/* Checks the sequence that starts behind the '&' at name[*pos - 1], and leaves *pos behind its '-'. */
static int check_utf7(const char *name, size_t len, size_t *pos, bool after_sequence, bool *was_sequence_r, struct err *err)
{
    size_t start = *pos - 1, i = *pos;
    uint32_t bits = 0;
    unsigned bits_n = 0;
    for (; i < len && name[i] != '-'; i++) {
        int v = base64_value(name[i]);
        if (v < 0)
            return err_set(err, RAFTDIR_ENAME, "mailbox name has '&' at position %zu, which starts no valid modified UTF-7", start);
        bits = bits << 6 | (uint32_t)v;
        bits_n += 6;
        if (bits_n >= 16) {
            uint32_t unit = bits >> (bits_n - 16) & 0xFFFF;
            bits_n -= 16;
            bits &= (1u << bits_n) - 1;
            if (unit < 0x80)
                return err_set(err, RAFTDIR_ENAME, "mailbox name has an ASCII character in the modified UTF-7 at position %zu", start);
        }
    }
    if (i == len)
        return err_set(err, RAFTDIR_ENAME, "mailbox name ends in the modified UTF-7 that starts at position %zu", start);
    *was_sequence_r = i > *pos;
    if (*was_sequence_r && after_sequence)
        return err_set(err, RAFTDIR_ENAME, "mailbox name has two adjacent sequences of modified UTF-7 at position %zu", start);
    if (bits_n >= 6 || bits != 0)
        return err_set(err, RAFTDIR_ENAME, "mailbox name has incomplete modified UTF-7 at position %zu", start);
    *pos = i + 1;
    return 0;
}

size_t name_domain_len(const char *name, size_t len)
{
    const char *bang = memchr(name, '!', len);
    return bang ? (size_t)(bang - name) + 1 : 0;
}

/* Is it DELETED.something.HEXTIME? `name` starts behind the domain. Returns the length of what stands between, 0 when it isn't. */
static size_t deleted_len(const char *name, size_t len)
{
    static const char prefix[] = "DELETED.";
    const size_t prefix_len = sizeof prefix - 1;
    if (len <= prefix_len || memcmp(name, prefix, prefix_len) != 0)
        return 0;
    const char *dot = memrchr(name + prefix_len, '.', len - prefix_len);
    if (!dot || dot == name + prefix_len || dot + 1 == name + len)
        return 0;
    for (const char *p = dot + 1; p < name + len; p++) {
        if (!(*p >= '0' && *p <= '9') && !(*p >= 'A' && *p <= 'F') && !(*p >= 'a' && *p <= 'f'))
            return 0;
    }
    return (size_t)(dot - name) - prefix_len;
}

static int check_domain(const char *name, size_t domain_len, struct err *err)
{
    size_t len = domain_len - 1;
    if (len == 0)
        return err_set(err, RAFTDIR_ENAME, "mailbox name starts with '!': its domain is empty");
    for (size_t i = 0; i < len; i++) {
        if (!is_good(name[i]) || name[i] == ' ')
            return bad_char((unsigned char)name[i], i, err);
        if (name[i] == '.' && (i == 0 || i + 1 == len || name[i + 1] == '.'))
            return err_set(err, RAFTDIR_ENAME, "mailbox name has an empty label in its domain at position %zu", i);
    }
    return 0;
}

int name_check(const char *name, size_t len, struct err *err)
{
    if (len == 0)
        return err_set(err, RAFTDIR_ENAME, "mailbox name is empty");
    size_t domain_len = name_domain_len(name, len);
    const char *local = name + domain_len;
    size_t local_len = len - domain_len;
    size_t len_max = deleted_len(local, local_len) ? DELETED_NAME_LEN_MAX : NAME_LEN_MAX;
    if (len > len_max)
        return err_set(err, RAFTDIR_ETOOBIG, "mailbox name has %zu bytes, more than %zu", len, len_max);
    /* Cyrus keeps such keys of mailboxes.db for itself; at the top only. */
    if (name[0] == '$')
        return err_set(err, RAFTDIR_ENAME, "mailbox name starts with '$'");
    if (domain_len) {
        int rc = check_domain(name, domain_len, err);
        if (rc)
            return rc;
        if (local_len == 0)
            return err_set(err, RAFTDIR_ENAME, "mailbox name has a domain and nothing else");
    }
    if (local[0] == '.' || local[0] == '~')
        return err_set(err, RAFTDIR_ENAME, "mailbox name starts with '%c'", local[0]);
    if (local[local_len - 1] == '.')
        return err_set(err, RAFTDIR_ENAME, "mailbox name ends with '.'");
    bool after_sequence = false;
    for (size_t i = 0; i < local_len;) {
        size_t at = domain_len + i;
        if (local[i] == '&') {
            size_t pos = at + 1;
            int rc = check_utf7(name, len, &pos, after_sequence, &after_sequence, err);
            if (rc)
                return rc;
            i = pos - domain_len;
            continue;
        }
        if (!is_good(local[i]))
            return bad_char((unsigned char)local[i], at, err);
        if (local[i] == '.' && local[i + 1] == '.') /* the last character is no '.' */
            return err_set(err, RAFTDIR_ENAME, "mailbox name has '..' at position %zu", at);
        after_sequence = false;
        i++;
    }
    static const char *const reserved[] = {"user", "user.anyone", "user.anonymous"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        if (local_len == strlen(reserved[i]) && memcmp(local, reserved[i], local_len) == 0)
            return err_set(err, RAFTDIR_ENAME, "mailbox name \"%s\" is reserved", reserved[i]);
    }
    return 0;
}

size_t name_to_key(const char *name, size_t len, uint8_t *key_r)
{
    assert(len <= NAME_KEY_LEN_MAX);
    size_t i = name_domain_len(name, len);
    if (i) {
        memcpy(key_r, name, i - 1);
        key_r[i - 1] = KEY_DOMAIN_SEP;
    }
    for (; i < len; i++)
        key_r[i] = name[i] == '.' ? KEY_HIER_SEP : name[i] == '^' ? '.' : (uint8_t)name[i];
    return len;
}

size_t name_from_key(const uint8_t *key, size_t len, char *name_r)
{
    assert(len <= NAME_KEY_LEN_MAX);
    size_t i = 0;
    const uint8_t *sep = memchr(key, KEY_DOMAIN_SEP, len);
    if (sep) {
        i = (size_t)(sep - key) + 1;
        memcpy(name_r, key, i - 1);
        name_r[i - 1] = '!';
    }
    for (; i < len; i++)
        name_r[i] = key[i] == KEY_HIER_SEP ? '.' : key[i] == '.' ? '^' : (char)key[i];
    name_r[len] = '\0';
    return len;
}

int name_key_cmp(const uint8_t *a, size_t alen, const uint8_t *b, size_t blen)
{
    int c = memcmp(a, b, alen < blen ? alen : blen);
    return c ? c : (alen > blen) - (alen < blen);
}

int name_of_user(const char *user, char *name_r, struct err *err)
{
    static const char prefix[] = "user.";
    const size_t prefix_len = sizeof prefix - 1;
    size_t len = strlen(user);
    const char *at = strrchr(user, '@');
    size_t local_len = at ? (size_t)(at - user) : len;
    size_t domain_len = at ? len - local_len - 1 : 0;
    if (local_len == 0)
        return err_set(err, RAFTDIR_ENAME, "user name is empty");
    if (at && domain_len == 0)
        return err_set(err, RAFTDIR_ENAME, "user name ends with '@'");
    size_t name_len = (at ? domain_len + 1 : 0) + prefix_len + local_len;
    if (name_len > NAME_LEN_MAX)
        return err_set(err, RAFTDIR_ENAME, "user name has %zu bytes, more than %zu", len, NAME_LEN_MAX - (name_len - len));
    if (strchr(user, '!'))
        return err_set(err, RAFTDIR_ENAME, "user name has '!', which is not allowed");
    char *p = name_r;
    if (at) {
        memcpy(p, at + 1, domain_len);
        p += domain_len;
        *p++ = '!';
    }
    memcpy(p, prefix, prefix_len);
    p += prefix_len;
    for (size_t i = 0; i < local_len; i++)
        *p++ = user[i] == '.' ? '^' : user[i];
    *p = '\0';
    return name_check(name_r, name_len, err);
}

bool name_owner(const char *name, size_t len, char *user_r)
{
    static const char prefix[] = "user.";
    const size_t prefix_len = sizeof prefix - 1;
    size_t domain_len = name_domain_len(name, len);
    const char *local = name + domain_len;
    size_t local_len = len - domain_len;
    size_t inner_len = deleted_len(local, local_len);
    if (inner_len) {
        local += sizeof "DELETED." - 1;
        local_len = inner_len;
    }
    if (local_len <= prefix_len || memcmp(local, prefix, prefix_len) != 0)
        return false;
    local += prefix_len;
    local_len -= prefix_len;
    const char *dot = memchr(local, '.', local_len);
    size_t user_len = dot ? (size_t)(dot - local) : local_len;
    if (user_len == 0 || user_len + domain_len > NAME_LEN_MAX)
        return false;
    for (size_t i = 0; i < user_len; i++)
        user_r[i] = local[i] == '^' ? '.' : local[i];
    if (domain_len) {
        user_r[user_len++] = '@';
        memcpy(user_r + user_len, name, domain_len - 1);
        user_len += domain_len - 1;
    }
    user_r[user_len] = '\0';
    return true;
}

bool name_is_within(const char *name, size_t len, const char *root, size_t root_len)
{
    if (len < root_len || memcmp(name, root, root_len) != 0)
        return false;
    return len == root_len || root_len == 0 || root[root_len - 1] == '!' || name[root_len] == '.';
}

bool name_utf8_ok(const char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)s[i];
        size_t more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : c >= 0xE0 && c < 0xF0 ? 2 : c >= 0xF0 && c < 0xF5 ? 3 : SIZE_MAX;
        if (more == SIZE_MAX || more >= len - i || c < 0x20 || c == 0x7F)
            return false;
        uint32_t point = more == 0 ? c : c & (0x3Fu >> more);
        for (size_t k = 1; k <= more; k++) {
            if (((unsigned char)s[i + k] & 0xC0) != 0x80)
                return false;
            point = point << 6 | ((unsigned char)s[i + k] & 0x3F);
        }
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (point < least[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000))
            return false;
        i += more + 1;
    }
    return true;
}
