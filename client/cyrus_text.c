/* cyrus_text.c - the text form of a dump, a line a mailbox (imap/ctl_mboxlist.c of Cyrus 2.3 to 3.4, do_undump_legacy() of 3.6):
 *   name TAB [type SP] [server "!"] partition (SP | TAB) acl [">" uniqueid SP mtime SP uidvalidity SP foldermodseq SP createdmodseq [SP specialuse]] LF
 * Empty partitions and ACLs may stand as "(null)", printf's way to write a missing one.
 * With the part behind the ACL the type has the numbers of 3.6, without it those of 3.4 and before (cyrus_mbtype.h). Known limit: an
 * identifier that starts with '>' may be taken for that part if the rest of the line looks like it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cyrus_internal.h"
#include "cyrus_mbtype.h"

/* The line without its end, in d->text. 1, 0 at the end, CYRUS_BAD for one that is too long, negative. */
static int read_line(struct cyrus_dump *d, struct err *err)
{
    cyrus_text_clear(&d->text);
    bool too_long = false, nul = false, some = false;
    for (;;) {
        int c = cyrus_input_get(&d->in);
        if (c == CYRUS_FAILED)
            return err_set(err, d->in.rc, "%s", d->in.err.text);
        if (c == CYRUS_EOF) {
            if (!some)
                return 0;
            return err_set(err, RAFTDIR_ECORRUPT, "the dump is cut off: line %llu has no end", (unsigned long long)d->in.line);
        }
        some = true;
        if (c == '\n')
            break;
        nul |= c == 0;
        char byte = (char)c;
        int rc = too_long ? 0 : cyrus_text_add(&d->text, &byte, 1);
        if (rc == RAFTDIR_ENOMEM)
            return err_set(err, rc, "out of memory");
        too_long |= rc == RAFTDIR_ETOOBIG;
    }
    if (too_long)
        err_set(err, RAFTDIR_ETOOBIG, "line has more than %u bytes", CYRUS_RECORD_LEN_MAX);
    else if (nul)
        err_set(err, RAFTDIR_EINVAL, "line has a NUL byte");
    else if (d->text.len && d->text.data[d->text.len - 1] == '\r')
        d->text.data[--d->text.len] = '\0';
    return too_long || nul ? CYRUS_BAD : 1;
}

static bool read_number(char **p, uint64_t *n_r)
{
    if (**p < '0' || **p > '9')
        return false;
    errno = 0;
    *n_r = strtoull(*p, p, 10);
    return errno == 0;
}

/* What stands behind the '>': all of it, or nothing at all. */
static bool read_tail(struct cyrus_dump *d, char *p)
{
    Raftdir__Log__Mailbox *m = &d->mailbox;
    if (!*p)
        return true;
    char *end = strchr(p, ' ');
    if (!end || end == p)
        return false;
    uint64_t *const numbers[] = {&m->mtime, &m->uidvalidity, &m->foldermodseq, &m->createdmodseq};
    char *q = end;
    for (size_t i = 0; i < 4; i++) {
        if (*q++ != ' ' || !read_number(&q, numbers[i]))
            return false;
    }
    if (*q && *q++ != ' ')
        return false;
    *end = '\0';
    m->uniqueid = p;
    m->legacy_specialuse = q;
    m->has_mtime = m->has_uidvalidity = m->has_foldermodseq = m->has_createdmodseq = true;
    return true;
}

/* Where the part behind the ACL starts: behind its '>'. NULL: there is none. */
static char *find_tail(char *acl)
{
    if (*acl == '>')
        return acl + 1;
    char *found = NULL;
    for (char *p = strstr(acl, "\t>"); p; p = strstr(p + 1, "\t>"))
        found = p + 2;
    return found;
}

int cyrus_text_next(struct cyrus_dump *d, uint64_t *line_r, struct err *err)
{
    *line_r = d->in.line;
    int rc = read_line(d, err);
    if (rc != 1)
        return rc;
    char *name = d->text.len ? d->text.data : (char *)"";
    char *tab = strchr(name, '\t');
    if (!tab || tab == name) {
        err_set(err, RAFTDIR_EINVAL, tab ? "line has no mailbox name" : "line has no TAB behind the mailbox name");
        return CYRUS_BAD;
    }
    *tab = '\0';
    d->name = strdup(name);
    if (!d->name)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    d->mailbox.name = d->name;

    /* Very old dumps have no type; a partition may start with a digit. */
    char *p = tab + 1;
    uint64_t type = 0;
    size_t digits = strspn(p, "0123456789");
    if (digits && p[digits] == ' ') {
        if (!read_number(&p, &type))
            type = UINT64_MAX;
        p++;
    }
    char *place = p;
    p += strcspn(p, " \t");
    if (!*p) {
        err_set(err, RAFTDIR_EINVAL, "line has no ACL behind the partition");
        return CYRUS_BAD;
    }
    *p++ = '\0';

    char *acl = p, *tail = find_tail(acl);
    bool newer = tail && read_tail(d, tail);
    if (newer)
        tail[-1] = '\0';
    d->mailbox.acl = strcmp(acl, "(null)") == 0 ? (char *)"" : acl;
    if (type > UINT32_MAX || !(newer ? cyrus_mbtype_from_new : cyrus_mbtype_from_old)((uint32_t)type, d->letters)) {
        err_set(err, RAFTDIR_EINVAL, "mailbox type %llu is unknown", (unsigned long long)type);
        return CYRUS_BAD;
    }
    d->mailbox.mbtype = d->letters;

    char *bang = strchr(place, '!');
    if (bang)
        *bang = '\0';
    char *partition = bang ? bang + 1 : place;
    if (strcmp(partition, "(null)") == 0)
        partition = NULL;
    return cyrus_set_location(d, bang ? place : NULL, partition, err);
}
