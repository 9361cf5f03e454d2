/* preload_lookup.c - mboxlist_lookup: what isn't in this server's mailboxes.db is looked for in the directory, so that a mailbox that lives elsewhere is found
 * without a mupdate slave, and then proxied or referred to as a slave's entry would be: server and partition set, MBTYPE_REMOTE.
 *
 * Who gets such entries. In imapd, lmtpd, pop3d, smmapd and timsieved the question "where is this?" is asked by code that is linked into the program itself (proxy_mlookup in most),
 * while libcyrus_imap asks mboxlist_lookup for mailboxes that it is about to open, make, sync or delete HERE. So calls from the program are answered from
 * the directory, calls from the library are not, and tools (ctl_mboxlist, cyr_expire, reconstruct, sync_client) never are: for them "not in mailboxes.db" has
 * to stay "not here". The setting `lookups` names other programs, or "none".
 *
 * On a miss proxy_mlookup calls kick_mupdate and asks again: kick makes the answer current (a barrier), so that "no such mailbox", which bounces mail,
 * is never said from a state that some acknowledged CREATE is missing in. If that can't be had, the answer is IMAP_SERVER_UNAVAILABLE: LMTP 451, IMAP NO. */
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include "preload_internal.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int mboxlist_lookup(const char *name, struct mboxlist_entry **mbentryptr, void **tid);
EXPORT void kick_mupdate(void);

static struct {
    uintptr_t start, end; /* the program's own code */
    bool asked;           /* whether this program takes part: known once the settings are */
    bool takes_part;
    bool kick_failed;     /* the state may lack what others were told to be done */
} lookup;

static int find_program(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size, (void)data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) {
            lookup.start = info->dlpi_addr + p->p_vaddr;
            lookup.end = lookup.start + p->p_memsz;
        }
    }
    return 1; /* the first is the program */
}

void preload_lookup_setup(void)
{
    dl_iterate_phdr(find_program, NULL);
}

/* Is `program` in a list such as "imapd, lmtpd"? */
static bool is_in(const char *list, const char *program)
{
    size_t len = strlen(program);
    for (const char *p = list; *p;) {
        p += strspn(p, ", \t");
        size_t n = strcspn(p, ", \t");
        if (n == len && memcmp(p, program, n) == 0)
            return true;
        p += n;
    }
    return false;
}

static bool takes_part(void)
{
    if (lookup.asked)
        return lookup.takes_part;
    /* Settings that can't be read are the lookups' failure, not that of every tool: as long as they can't, the preset counts. */
    bool read = murder_open() == MURDER_OK;
    const char *list = read ? murder_settings()->lookups : NULL;
    if (!list || strcmp(list, "auto") == 0)
        list = "imapd lmtpd pop3d smmapd timsieved";
    lookup.takes_part = is_in(list, program_invocation_short_name);
    lookup.asked = read;
    return lookup.takes_part;
}

EXPORT void kick_mupdate(void)
{
    if (!*preload_cyrus.config_mupdate_server || !takes_part())
        return;
    lookup.kick_failed = murder_barrier() != MURDER_OK;
    if (lookup.kick_failed)
        murder_log(LOG_ERR, "the directory can't be asked: %s", murder_message());
}

/* As a mupdate slave would have written it, and Cyrus read it again. */
static struct mboxlist_entry *entry_of(const struct raftdir_mailbox *m)
{
    struct mboxlist_entry *e = preload_cyrus.mboxlist_entry_create();
    e->name = strdup(m->name);
    e->server = strdup(m->server);
    e->partition = strdup(m->partition);
    e->acl = strdup(m->acl);
    e->mbtype = MBTYPE_REMOTE;
    if (!e->name || !e->server || !e->partition || !e->acl)
        preload_cyrus.mboxlist_entry_free(&e); /* makes it NULL */
    return e;
}

static int elsewhere(const char *name, struct mboxlist_entry **mbentryptr)
{
    const struct raftdir_mailbox *m;
    enum murder_result result = murder_find(name, &m);
    if (result == MURDER_ABSENT && lookup.kick_failed) {
        kick_mupdate();
        result = lookup.kick_failed ? MURDER_UNSURE : murder_find(name, &m);
    }
    if (result == MURDER_ABSENT)
        return IMAP_MAILBOX_NONEXISTENT;
    if (result != MURDER_OK) {
        murder_log(LOG_ERR, "can't tell where %s is: %s", name, murder_message());
        return IMAP_SERVER_UNAVAILABLE;
    }
    if (m->reserved)
        return IMAP_MAILBOX_RESERVED; /* being made, or on its way to another server */
    if (strcmp(m->server, *preload_cyrus.config_servername) == 0) {
        /* Mail for it must wait, not bounce: perhaps it is mailboxes.db that is wrong. */
        murder_log(LOG_ERR, "the directory has %s here, mailboxes.db doesn't: see ctl_mboxlist -mw", name);
        return IMAP_SERVER_UNAVAILABLE;
    }
    if (!mbentryptr)
        return 0;
    *mbentryptr = entry_of(m);
    return *mbentryptr ? 0 : IMAP_SERVER_UNAVAILABLE;
}

EXPORT int mboxlist_lookup(const char *name, struct mboxlist_entry **mbentryptr, void **tid)
{
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    int r = preload_cyrus.mboxlist_lookup(name, mbentryptr, tid);
    if (r != IMAP_MAILBOX_NONEXISTENT || tid || caller < lookup.start || caller >= lookup.end || !*preload_cyrus.config_mupdate_server)
        return r;
    return takes_part() ? elsewhere(name, mbentryptr) : r;
}
