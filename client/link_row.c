/* link_row.c - the directory's mailboxes as records of Cyrus' mailbox list (link.h).
 *
 * A record that we make has the older of the two forms that Cyrus reads, `FLAGS SERVER!PARTITION ACL`: all that a mupdate slave knows, and the ACL as it is. */
#include "link.h"

#include <stdlib.h>
#include <string.h>

#include "imap/dlist.h"
#include "lib/libconfig.h"

#define DB_DOMAIN_SEP '\x1D'
#define DB_HIER_SEP '\x1F'

void link_name_to_db(const char *name, struct buf *db_r)
{
    const char *sep = strchr(name, '!');
    buf_reset(db_r);
    if (sep) {
        buf_appendmap(db_r, name, (size_t)(sep - name));
        buf_putc(db_r, DB_DOMAIN_SEP);
        name = sep + 1;
    }
    for (; *name; name++)
        buf_putc(db_r, *name == '.' ? DB_HIER_SEP : *name == '^' ? '.' : *name);
    buf_cstring(db_r);
}

void link_name_from_db(const char *db, size_t len, struct buf *name_r)
{
    const char *sep = memchr(db, DB_DOMAIN_SEP, len), *end = db + len;
    buf_reset(name_r);
    if (sep) {
        buf_appendmap(name_r, db, (size_t)(sep - db));
        buf_putc(name_r, '!');
        db = sep + 1;
    }
    for (; db < end; db++)
        buf_putc(name_r, *db == DB_HIER_SEP ? '.' : *db == '.' ? '^' : *db);
    buf_cstring(name_r);
}

/* Cyrus' letters; of a type that this version doesn't know, mailboxes are for mail. */
static uint32_t type_of(const char *mbtype)
{
    switch (*mbtype) {
    case 'n': return MBTYPE_NETNEWS;
    case 'b': return MBTYPE_COLLECTION;
    case 'c': return MBTYPE_CALENDAR;
    case 'a': return MBTYPE_ADDRESSBOOK;
    case 's': return MBTYPE_JMAPSUBMIT;
    case 'p': return MBTYPE_JMAPPUSHSUB;
    case 'f': return MBTYPE_SIEVE;
    default: return MBTYPE_EMAIL;
    }
}

enum link_row_kind link_row_record(const struct raftdir_mailbox *m, struct buf *record_r)
{
    if (*m->mbtype && strpbrk(m->mbtype, "di"))
        return LINK_ROW_NONE;
    if (strcmp(m->server, config_servername) == 0)
        return LINK_ROW_HERE;
    uint32_t flags = type_of(m->mbtype) | MBTYPE_REMOTE;
    if (m->reserved)
        flags |= MBTYPE_RESERVE;
    buf_reset(record_r);
    buf_printf(record_r, "%u %s!%s ", flags, m->server, m->partition);
    buf_appendcstr(record_r, m->acl);
    buf_cstring(record_r);
    return LINK_ROW_ELSEWHERE;
}

static enum link_local kind_of_flags(int remote, int weak)
{
    return remote ? LINK_LOCAL_STALE : weak ? LINK_LOCAL_WEAK : LINK_LOCAL_LIVE;
}

enum link_local link_local_kind(const char *data, size_t len)
{
    if (len && *data == '%') {
        struct dlist *dl = NULL;
        const char *type = NULL;
        enum link_local kind = LINK_LOCAL_LIVE;
        if (dlist_parsemap(&dl, 0, 0, data, (unsigned)len) == 0 && dlist_getatom(dl, "T", &type) && type)
            kind = kind_of_flags(strchr(type, 'r') != NULL, strchr(type, 'd') || strchr(type, 'i'));
        dlist_free(&dl);
        return kind;
    }
    /* `(uniqueid X ...) FLAGS PARTITION ACL`, of Cyrus before 2.5 */
    const char *end = data + len, *p = data;
    if (p < end && *p == '(') {
        while (p < end && *p != ')')
            p++;
        while (p < end && (*p == ')' || *p == ' '))
            p++;
    }
    unsigned long flags = 0;
    for (; p < end && *p >= '0' && *p <= '9' && flags < UINT32_MAX; p++)
        flags = flags * 10 + (unsigned long)(*p - '0');
    return kind_of_flags((flags & MBTYPE_REMOTE) != 0, (flags & (MBTYPE_DELETED | MBTYPE_INTERMEDIATE)) != 0);
}
