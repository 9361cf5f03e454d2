/* preload_fake.c - for tests/interop/preload: a "libcyrus_imap" of another version (FAKE_VERSION), or of the right one with other structures, to see that the
 * preloaded module refuses it. Only what the module looks at while it is loaded. */
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
struct buf;
struct protstream;
EXPORT extern const char CYRUS_VERSION[];
EXPORT const char CYRUS_VERSION[] = FAKE_VERSION;
EXPORT extern const char *config_servername, *config_mupdate_server;
const char *config_servername, *config_mupdate_server;
EXPORT int mupdate_connect(void);
EXPORT int mupdate_activate(void *h, const char *mailbox, const char *location, const char *acl);
EXPORT int mboxlist_lookup(void);
EXPORT void *mboxlist_entry_create(void);
EXPORT void *mboxlist_entry_copy(const void *src);
EXPORT void mboxlist_entry_free(void **e);
EXPORT void *prot_writebuf(struct buf *b);
EXPORT int prot_flush(struct protstream *s);
EXPORT int prot_free(struct protstream *s);
EXPORT void buf_free(struct buf *b);

int mupdate_connect(void) { return 0; }
/* Says nothing: as if it wrote into another stream. */
int mupdate_activate(void *h, const char *mailbox, const char *location, const char *acl)
{
    (void)h, (void)mailbox, (void)location, (void)acl;
    return 0;
}
int mboxlist_lookup(void) { return 0; }
void *mboxlist_entry_create(void) { return calloc(1, 112); }
void *mboxlist_entry_copy(const void *src)
{
    void *p = malloc(112);
    return p ? memcpy(p, src, 112) : NULL;
}
void mboxlist_entry_free(void **e) { *e = NULL; }
void *prot_writebuf(struct buf *b) { return (void)b, calloc(1, 64); }
int prot_flush(struct protstream *s) { return (void)s, 0; }
int prot_free(struct protstream *s) { return free(s), 0; }
void buf_free(struct buf *b) { (void)b; }
