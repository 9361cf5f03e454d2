/* preload_check.c - is this the Cyrus that the module was written for? Asked once, when the program is loaded, before any of its code runs.
 *
 * - A program without libcyrus_imap (master, a shell between master and a service) is none of our business: the module stays asleep in it.
 * - A program with it must be 3.6.1 (its CYRUS_VERSION), export what we call, and pass a trial: Cyrus' own mupdate_activate, which is replaced by ours but can
 *   still be called, is given a handle of ours, and has to write the line that we expect into the stream that we expect it in. It reaches them through the same
 *   structures as mupdate_reserve.
 * Else the reason goes to syslog and standard error, and the program ends with EX_CONFIG: structures of another shape would be written over at random. */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <syslog.h>
#include <unistd.h>
#include "preload_internal.h"

struct preload_cyrus preload_cyrus;

static void refuse(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void refuse(const char *fmt, ...)
{
    char text[MURDER_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "libraftdir-cyrus.so: %s: %s\n", program_invocation_short_name, text);
    fflush(stderr);
    openlog(program_invocation_short_name, LOG_PID, LOG_MAIL);
    syslog(LOG_CRIT, "libraftdir-cyrus.so: %s", text);
    _exit(EX_CONFIG);
}

/* The next one behind ours: Cyrus'. dlsym gives data pointers, POSIX lets them be functions. */
static void *need(const char *name)
{
    void *p = dlsym(RTLD_NEXT, name);
    if (!p)
        refuse("this Cyrus (%s) has no %s; the module is for %s", preload_cyrus.version, name, CYRUS_VERSION_WANTED);
    return p;
}
#define NEED(name) (*(void **)&preload_cyrus.name = need(#name))

static bool version_fits(const char *version)
{
    size_t len = strlen(CYRUS_VERSION_WANTED);
    return strncmp(version, CYRUS_VERSION_WANTED, len) == 0 && (version[len] == 0 || version[len] == '-');
}

bool preload_trial(void)
{
    struct mupdate_handle *h = preload_handle_create();
    if (!h)
        return false;
    h->probe = "X7 ACTIVATE {6+}\r\nuser.x {6+}\r\nbe!def {5+}\r\nx\tlr\t\r\n";
    h->tagn = 7;
    bool fits = preload_cyrus.mupdate_activate(h, "user.x", "be!def", "x\tlr\t") == 0 && h->probe_same && h->tagn == 8;
    preload_handle_destroy(&h);
    return fits;
}

static bool is_copy(const char *a, const char *b)
{
    return a && b && a != b && strcmp(a, b) == 0;
}

/* Cyrus' copy of an entry of ours has all that ours has. */
static bool entry_trial(void)
{
    char name[] = "user.x", partition[] = "def", server[] = "be", acl[] = "x\tlr\t";
    struct mboxlist_entry e = {.name = name, .partition = partition, .server = server, .acl = acl, .mbtype = MBTYPE_REMOTE, .foldermodseq = 7};
    struct mboxlist_entry *copy = preload_cyrus.mboxlist_entry_copy(&e);
    bool fits = is_copy(copy->name, name) && is_copy(copy->partition, partition) && is_copy(copy->server, server) && is_copy(copy->acl, acl) &&
                copy->mbtype == e.mbtype && copy->foldermodseq == e.foldermodseq && !copy->uniqueid && !copy->ext_name;
    preload_cyrus.mboxlist_entry_free(&copy);
    return fits && !copy;
}

__attribute__((constructor)) static void preload_check(void)
{
    preload_cyrus.version = dlsym(RTLD_NEXT, "CYRUS_VERSION");
    bool cyrus_imap = dlsym(RTLD_NEXT, "mupdate_connect") || dlsym(RTLD_NEXT, "mboxlist_lookup");
    if (!cyrus_imap)
        return;
    if (!preload_cyrus.version)
        refuse("this Cyrus doesn't tell its version; the module is for %s", CYRUS_VERSION_WANTED);
    if (!version_fits(preload_cyrus.version))
        refuse("this is Cyrus %s; the module is for %s only. Start the program without it, or build the linked form (raftdir's client/CYRUS.md)", preload_cyrus.version,
               CYRUS_VERSION_WANTED);
    NEED(prot_writebuf);
    NEED(prot_flush);
    NEED(prot_free);
    NEED(buf_free);
    NEED(mboxlist_entry_create);
    NEED(mboxlist_entry_copy);
    NEED(mboxlist_entry_free);
    NEED(mboxlist_lookup);
    NEED(mupdate_activate);
    NEED(config_servername);
    NEED(config_mupdate_server);
    if (!preload_trial())
        refuse("this Cyrus says it is %s, but its mupdate client works otherwise", preload_cyrus.version);
    if (!entry_trial())
        refuse("this Cyrus says it is %s, but its mailbox entries are others", preload_cyrus.version);
    preload_lookup_setup();
}
