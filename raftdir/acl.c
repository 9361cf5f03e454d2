/* acl.c - see acl.h. What Cyrus does is in lib/acl.c and lib/acl_afs.c there (cyrus_acl_strtomask, _masktostr, _myrights, _set).
 *
 * The macros: c stands for kx and d for te, as Cyrus has it with its default "deleteright: c". A macro counts only when none of its
 * member rights is given beside it. Cyrus writes a macro's letter behind the members whenever it has one of them
 * ("lrswipkxtecdan"), for old clients; so do we, so that a text that we wrote and one that Cyrus wrote are the same bytes.
 * Where we depart: Cyrus ignores a malformed rest and unknown letters. We refuse both when an ACL comes in (acl_check), and grant
 * nothing by an ACL that is malformed all the same (acl_eval): its negative entries might be in the part that can't be read. */
#include "acl.h"
#include <string.h>
#include "name.h"

enum {
    RIGHT_L, RIGHT_R, RIGHT_S, RIGHT_W, RIGHT_I, RIGHT_P, RIGHT_K, RIGHT_X, RIGHT_T, RIGHT_E, RIGHT_A, RIGHT_N, RIGHT_0
};
#define BIT(right) (1u << (right))
#define MACRO_C (BIT(RIGHT_K) | BIT(RIGHT_X))
#define MACRO_D (BIT(RIGHT_T) | BIT(RIGHT_E))
#define GROUP_PREFIX "group:"
#define GROUP_PREFIX_LEN (sizeof GROUP_PREFIX - 1)

acl_rights acl_right(char letter)
{
    if (letter >= '0' && letter <= '9')
        return BIT(RIGHT_0 + (letter - '0'));
    switch (letter) {
    case 'l': return BIT(RIGHT_L);
    case 'r': return BIT(RIGHT_R);
    case 's': return BIT(RIGHT_S);
    case 'w': return BIT(RIGHT_W);
    case 'i': return BIT(RIGHT_I);
    case 'p': return BIT(RIGHT_P);
    case 'k': return BIT(RIGHT_K);
    case 'x': return BIT(RIGHT_X);
    case 't': return BIT(RIGHT_T);
    case 'e': return BIT(RIGHT_E);
    case 'a': return BIT(RIGHT_A);
    case 'n': return BIT(RIGHT_N);
    default: return 0;
    }
}

/* The index of the first unknown letter, or len. */
static size_t rights_scan(const char *s, size_t len, acl_rights *rights_r)
{
    acl_rights rights = 0, c = 0, d = 0;
    size_t i;
    for (i = 0; i < len; i++) {
        acl_rights bit = acl_right(s[i]);
        if (bit)
            rights |= bit;
        else if (s[i] == 'c')
            c = MACRO_C;
        else if (s[i] == 'd')
            d = MACRO_D;
        else
            break;
    }
    if (!(rights & c))
        rights |= c;
    if (!(rights & d))
        rights |= d;
    *rights_r = rights;
    return i;
}

int acl_rights_parse(const char *s, size_t len, acl_rights *rights_r, struct err *err)
{
    size_t good = rights_scan(s, len, rights_r);
    if (good == len)
        return 0;
    unsigned char c = (unsigned char)s[good];
    if (c < 0x20 || c >= 0x7F)
        return err_set(err, RAFTDIR_EACL, "ACL rights have the byte 0x%02x, which is no right", c);
    return err_set(err, RAFTDIR_EACL, "ACL rights \"%.*s\" have '%c', which is no right", (int)(len > 64 ? 64 : len), s, c);
}

size_t acl_rights_format(acl_rights rights, char *buf_r)
{
    char *p = buf_r;
    for (int right = RIGHT_L; right < RIGHT_0 + 10; right++) {
        if (right == RIGHT_A) { /* the macros stand before 'a' */
            if (rights & MACRO_C)
                *p++ = 'c';
            if (rights & MACRO_D)
                *p++ = 'd';
        }
        if (rights & BIT(right))
            *p++ = ACL_RIGHT_LETTERS[right];
    }
    *p = '\0';
    return (size_t)(p - buf_r);
}

/* Without texts and without checking identifiers: the form for evaluating. 1, 0 or RAFTDIR_EACL. */
static int entry_next(const char *acl, size_t len, size_t *pos, struct acl_entry *e)
{
    if (*pos >= len)
        return 0;
    const char *start = acl + *pos;
    const char *tab = memchr(start, '\t', len - *pos);
    if (!tab)
        return RAFTDIR_EACL;
    const char *rights = tab + 1;
    const char *end = memchr(rights, '\t', len - (size_t)(rights - acl));
    if (!end)
        return RAFTDIR_EACL;
    e->negative = *start == '-';
    e->id = start + e->negative;
    e->id_len = (size_t)(tab - e->id);
    e->rights_text = rights;
    e->rights_len = (size_t)(end - rights);
    *pos = (size_t)(end - acl) + 1;
    if (e->id_len == 0 || rights_scan(rights, e->rights_len, &e->rights) != e->rights_len)
        return RAFTDIR_EACL;
    return 1;
}

static int check_id(const char *id, size_t len, struct err *err)
{
    if (len == 0)
        return err_set(err, RAFTDIR_EACL, "ACL identifier is empty");
    if (len > IDENTIFIER_LEN_MAX)
        return err_set(err, RAFTDIR_EACL, "ACL identifier has %zu bytes, more than %d", len, IDENTIFIER_LEN_MAX);
    if (!name_utf8_ok(id, len))
        return err_set(err, RAFTDIR_EACL, "ACL identifier has a control character or is not UTF-8");
    return 0;
}

int acl_next(const char *acl, size_t len, size_t *pos, struct acl_entry *e, struct err *err)
{
    size_t start = *pos;
    int rc = entry_next(acl, len, pos, e);
    if (rc == 0)
        return 0;
    if (rc < 0) {
        /* Which of the reasons: only a malformed ACL pays for this. */
        const char *tab = memchr(acl + start, '\t', len - start);
        if (!tab)
            return err_set(err, RAFTDIR_EACL, "ACL has no TAB behind the identifier at position %zu", start);
        size_t rights = (size_t)(tab - acl) + 1;
        if (!memchr(acl + rights, '\t', len - rights))
            return err_set(err, RAFTDIR_EACL, "ACL has no TAB behind the rights at position %zu", rights);
        if (e->id_len == 0)
            return err_set(err, RAFTDIR_EACL, "ACL has an empty identifier at position %zu", start);
        return acl_rights_parse(e->rights_text, e->rights_len, &e->rights, err);
    }
    rc = check_id(e->id, e->id_len, err);
    return rc ? rc : 1;
}

int acl_check(const char *acl, size_t len, struct err *err)
{
    if (len > ACL_LEN_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "ACL has %zu bytes, more than %d", len, ACL_LEN_MAX);
    size_t pos = 0, entries = 0;
    struct acl_entry e;
    int rc;
    while ((rc = acl_next(acl, len, &pos, &e, err)) == 1) {
        if (++entries > ACL_ENTRIES_MAX)
            return err_set(err, RAFTDIR_ETOOBIG, "ACL has more than %d entries", ACL_ENTRIES_MAX);
    }
    return rc;
}

static bool is_group(const char *id, size_t len)
{
    return len >= GROUP_PREFIX_LEN && memcmp(id, GROUP_PREFIX, GROUP_PREFIX_LEN) == 0;
}

size_t acl_principal(const char *id, size_t len, char *buf_r)
{
    if (len > IDENTIFIER_LEN_MAX)
        return 0;
    bool group = is_group(id, len);
    for (size_t i = 0; i < len; i++)
        buf_r[i] = id[i] == '^' && !group ? '.' : id[i];
    return len;
}

/* Are these two identifiers the same principal? Neither is a group. */
static bool user_eq(const char *a, const char *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (a[i] != b[i] && !((a[i] == '^' || a[i] == '.') && (b[i] == '^' || b[i] == '.')))
            return false;
    }
    return true;
}

static bool id_eq(const char *a, size_t a_len, const char *b, size_t b_len)
{
    if (a_len != b_len)
        return false;
    bool group = is_group(a, a_len);
    if (group || is_group(b, b_len))
        return memcmp(a, b, a_len) == 0;
    return user_eq(a, b, a_len);
}

static bool in_groups(const char *id, size_t len, const struct acl_subject *who)
{
    const char *name = id + GROUP_PREFIX_LEN;
    size_t name_len = len - GROUP_PREFIX_LEN;
    for (size_t i = 0; i < who->groups_n; i++) {
        const char *group = who->groups[i];
        if (strncmp(group, GROUP_PREFIX, GROUP_PREFIX_LEN) == 0)
            group += GROUP_PREFIX_LEN;
        if (strncmp(group, name, name_len) == 0 && group[name_len] == '\0')
            return true;
    }
    return false;
}

acl_rights acl_eval(const char *acl, size_t len, const struct acl_subject *who)
{
    static const char anyone[] = "anyone";
    acl_rights positive = 0, negative = 0;
    size_t user_len = who->user ? strlen(who->user) : 0;
    size_t pos = 0;
    struct acl_entry e;
    int rc;
    while ((rc = entry_next(acl, len, &pos, &e)) == 1) {
        bool matches;
        if (is_group(e.id, e.id_len)) /* never by the user's name: nobody joins a group by calling himself one */
            matches = in_groups(e.id, e.id_len, who);
        else
            matches = (e.id_len == user_len && user_eq(e.id, who->user, user_len)) ||
                      (e.id_len == sizeof anyone - 1 && memcmp(e.id, anyone, sizeof anyone - 1) == 0);
        if (matches)
            *(e.negative ? &negative : &positive) |= e.rights;
    }
    return rc < 0 ? 0 : positive & ~negative;
}

/* The text that acl_modify writes. */
struct out {
    char *buf;
    size_t size, len;
    size_t entries;
    bool full;
};

static void out_put(struct out *o, const char *s, size_t len)
{
    if (o->full || len > o->size - o->len) {
        o->full = true;
        return;
    }
    memcpy(o->buf + o->len, s, len);
    o->len += len;
}

static void out_entry(struct out *o, const char *id, size_t id_len, bool negative, const char *rights, size_t rights_len)
{
    out_put(o, "-", negative);
    out_put(o, id, id_len);
    out_put(o, "\t", 1);
    out_put(o, rights, rights_len);
    out_put(o, "\t", 1);
    o->entries++;
}

int acl_modify(const char *acl, size_t len, const char *id, const char *rights, char *buf_r, size_t buf_size, size_t *len_r, struct err *err)
{
    bool negative = *id == '-';
    id += negative;
    size_t id_len = strlen(id);
    int rc = check_id(id, id_len, err);
    if (rc)
        return rc;
    char mode = *rights == '+' || *rights == '-' ? *rights++ : '=';
    acl_rights given;
    rc = acl_rights_parse(rights, strlen(rights), &given, err);
    if (rc)
        return rc;

    /* What the identifier has now, however often it is listed. */
    acl_rights old = 0;
    unsigned found = 0;
    size_t pos = 0;
    struct acl_entry e;
    while ((rc = acl_next(acl, len, &pos, &e, err)) == 1) {
        if (e.negative == negative && id_eq(e.id, e.id_len, id, id_len)) {
            old |= e.rights;
            found++;
        }
    }
    if (rc < 0)
        return rc;
    acl_rights want = mode == '+' ? old | given : mode == '-' ? old & ~given : given;
    char text[33];
    size_t text_len = acl_rights_format(want, text);

    /* The entry keeps its place and its spelling, and its text when its rights stay the same; a second one of the same is dropped. */
    struct out o = {.buf = buf_r, .size = buf_size > ACL_LEN_MAX ? ACL_LEN_MAX : buf_size};
    bool written = false;
    for (pos = 0; entry_next(acl, len, &pos, &e) == 1;) {
        if (e.negative != negative || !id_eq(e.id, e.id_len, id, id_len)) {
            out_entry(&o, e.id, e.id_len, e.negative, e.rights_text, e.rights_len);
        } else if (want && !written) {
            bool same = found == 1 && want == old;
            out_entry(&o, e.id, e.id_len, negative, same ? e.rights_text : text, same ? e.rights_len : text_len);
            written = true;
        }
    }
    if (want && !written)
        out_entry(&o, id, id_len, negative, text, text_len);
    if (o.full)
        return err_set(err, RAFTDIR_ETOOBIG, "changed ACL would have more than %zu bytes", o.size);
    if (o.entries > ACL_ENTRIES_MAX)
        return err_set(err, RAFTDIR_ETOOBIG, "changed ACL would have more than %d entries", ACL_ENTRIES_MAX);
    *len_r = o.len;
    return 0;
}
