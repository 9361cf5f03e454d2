/* murder_write.c - RESERVE, ACTIVATE, DEACTIVATE, DELETE; murder.h says how they are mapped.
 *
 * Each is one write that happens exactly once. Where the answer depends on what is there (another partition of the same server), the record is looked up
 * and the write repeated on condition that it is still the same generation: nobody's change in between is overwritten.
 *
 * What a crash leaves: between DEACTIVATE and ACTIVATE the name is held, without an end, and lookups of it fail for now (never "not there"); `ctl_mboxlist -m`
 * on the server that still has the mailbox, or MUPDATEPUSH, activates it. Between a rename's DELETE and ACTIVATE the name is missing until the same command
 * runs. A reservation expires by itself. */
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include "murder_internal.h"

/* Whoever activates next may: what DEACTIVATE holds is held under this, which is no secret. A RESERVE holds without a token, for its own server alone. */
static const char move_token[] = "cyrus XFER";
#define MOVE_TOKEN move_token, sizeof move_token - 1
/* Another writer may come in between a look and a conditional write; then it is looked at again. */
#define TRIES 4

static raftdir *writer(void)
{
    return murder_open() ? NULL : murder_handle(murder_settings()->write_timeout_ms);
}

/* The message of a refusal, kept while something else is asked. */
static void keep_message(char text[MURDER_TEXT_LEN])
{
    snprintf(text, MURDER_TEXT_LEN, "%s", murder_message());
}

static void forget(struct murder_session *s)
{
    raftdir_mailbox_free(s->deleted);
    s->deleted = NULL;
    s->renaming = false;
}

void murder_session_end(struct murder_session *s)
{
    forget(s);
}

/* The partition that an empty one means: that of the mailbox that was deleted just before, the old name of a rename. */
static const char *partition_of(const struct murder_session *s, const struct murder_location *at)
{
    if (at->partition[0] || !s->deleted || strcmp(s->deleted->server, at->server) != 0)
        return at->partition;
    return s->deleted->partition;
}

/* Cyrus keeps what it was about to delete, or takes the old name of a rename back: so do we. The message stays that of what failed. */
static void put_back(struct murder_session *s)
{
    struct raftdir_mailbox *m = s->deleted;
    if (!m)
        return;
    s->deleted = NULL;
    s->renaming = false;
    char why[MURDER_TEXT_LEN];
    keep_message(why);
    enum murder_result result = MURDER_UNSURE;
    raftdir *d = writer();
    raftdir_batch *b = raftdir_batch_create();
    if (d && b) {
        int rc = raftdir_batch_add_create(b, m, NULL, 0);
        if (rc >= 0)
            rc = raftdir_write(d, b, NULL);
        result = murder_result(d, rc);
        const struct raftdir_mailbox *there;
        char put[MURDER_TEXT_LEN];
        keep_message(put);
        if (rc == RAFTDIR_EEXIST && murder_find(m->name, &there) == MURDER_OK && !there->reserved && strcmp(there->server, m->server) == 0)
            result = MURDER_OK; /* it was never gone */
        else
            murder_fail(result, "%s", put);
    }
    if (result)
        murder_log(LOG_ERR, "%s may have been deleted for something that failed, and could not be put back (%s): run ctl_mboxlist -m", m->name, murder_message());
    else
        murder_log(LOG_NOTICE, "%s is in the directory as before: its deletion or rename failed (%s)", m->name, why);
    raftdir_batch_destroy(&b);
    raftdir_mailbox_free(m);
    murder_fail(MURDER_OK, "%s", why);
}

enum murder_result murder_reserve(struct murder_session *s, const char *name, const char *location)
{
    s->renaming = s->deleted != NULL;
    struct murder_location at;
    if (!murder_location_parse(location, &at))
        return MURDER_REFUSED;
    raftdir *d = writer();
    if (!d)
        return MURDER_UNSURE;
    int rc = raftdir_reserve(d, name, at.server, partition_of(s, &at), NULL, 0, 0, NULL);
    enum murder_result result = murder_result(d, rc);
    if (rc == RAFTDIR_EEXIST) {
        char why[MURDER_TEXT_LEN];
        keep_message(why);
        const struct raftdir_mailbox *m;
        if (murder_find(name, &m) == MURDER_OK && !m->reserved && strcmp(m->server, at.server) == 0)
            result = MURDER_OK; /* on another of its own partitions: ACTIVATE moves it */
        else
            murder_fail(result, "%s", why);
    }
    if (result)
        put_back(s);
    return result;
}

/* One attempt. generation 0: as a server does that knows nothing; else: taking over from the record of that generation. */
static int activate(raftdir *d, raftdir_batch *b, const struct raftdir_mailbox *m, uint64_t generation)
{
    raftdir_batch_clear(b);
    int rc = raftdir_batch_add_activate(b, m, MOVE_TOKEN, generation != 0);
    if (rc >= 0 && generation)
        rc = raftdir_batch_if(b, RAFTDIR_IF_GENERATION, generation, NULL);
    /* An empty ACL means "not given" to activate, and "nobody" to Cyrus. */
    if (rc >= 0 && !m->acl[0])
        rc = raftdir_batch_add_setacl(b, m->name, "");
    return rc < 0 ? rc : raftdir_write(d, b, NULL);
}

enum murder_result murder_activate(struct murder_session *s, const char *name, const char *location, const char *acl)
{
    if (!s->renaming) /* ctl_mboxlist -m: it deletes one, and activates another, which has nothing to do with it */
        forget(s);
    struct murder_location at;
    if (!murder_location_parse(location, &at))
        return MURDER_REFUSED;
    raftdir *d = writer();
    if (!d)
        return MURDER_UNSURE;
    raftdir_batch *b = raftdir_batch_create();
    if (!b)
        return murder_fail(MURDER_UNSURE, "out of memory");
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    m.name = name;
    m.server = at.server;
    m.partition = partition_of(s, &at);
    m.acl = acl ? acl : "";
    enum murder_result result = MURDER_UNSURE;
    for (int i = 0; i < TRIES; i++) {
        int rc = activate(d, b, &m, 0);
        result = murder_result(d, rc);
        if (rc != RAFTDIR_EOTHERSTORE)
            break;
        const struct raftdir_mailbox *there;
        char why[MURDER_TEXT_LEN];
        keep_message(why);
        enum murder_result found = murder_find(name, &there);
        if (found == MURDER_OK && !there->reserved && strcmp(there->server, at.server) == 0) {
            uint64_t generation = there->generation;
            if (!(d = writer())) /* murder_find has set the timeout of lookups */
                break;
            rc = activate(d, b, &m, generation);
            result = murder_result(d, rc);
        } else {
            result = murder_fail(found == MURDER_UNSURE ? found : result, "%s", why);
            rc = RAFTDIR_EOTHERSTORE;
            if (found != MURDER_ABSENT)
                break;
        }
        if (rc != RAFTDIR_ECONFLICT && rc != RAFTDIR_EOTHERSTORE)
            break;
    }
    raftdir_batch_destroy(&b);
    if (result)
        put_back(s);
    else
        forget(s);
    return result;
}

enum murder_result murder_deactivate(struct murder_session *s, const char *name, const char *location)
{
    forget(s);
    struct murder_location at;
    if (!murder_location_parse(location, &at))
        return MURDER_REFUSED;
    raftdir *d = writer();
    if (!d)
        return MURDER_UNSURE;
    int rc = raftdir_deactivate(d, name, at.server, at.partition, MOVE_TOKEN, NULL);
    if (rc == RAFTDIR_EOTHERSTORE) {
        /* Active on another partition of this server, as the directory knows it: it is the server's own all the same. */
        const struct raftdir_mailbox *m;
        if (murder_find(name, &m) == MURDER_OK && strcmp(m->server, at.server) == 0 && (d = writer()))
            rc = raftdir_deactivate(d, name, at.server, "", MOVE_TOKEN, NULL);
        if (!d)
            return MURDER_UNSURE;
    }
    enum murder_result result = murder_result(d, rc);
    return result == MURDER_ABSENT ? MURDER_REFUSED : result;
}

enum murder_result murder_delete(struct murder_session *s, const char *name, const char *server)
{
    forget(s);
    /* What it was, for the rename that this may be the beginning of. Without it a rename still works, on an unknown partition. */
    const struct raftdir_mailbox *m;
    struct raftdir_mailbox *was = NULL;
    if (murder_find(name, &m) == MURDER_OK && !m->reserved && strcmp(m->server, server) == 0)
        was = raftdir_mailbox_copy(m);
    raftdir *d = writer();
    raftdir_batch *b = d ? raftdir_batch_create() : NULL;
    if (!b) {
        raftdir_mailbox_free(was);
        return d ? murder_fail(MURDER_UNSURE, "out of memory") : MURDER_UNSURE;
    }
    int rc = raftdir_batch_add_delete(b, name, 0, server, "", MOVE_TOKEN);
    if (rc >= 0)
        rc = raftdir_write(d, b, NULL);
    enum murder_result result = murder_result(d, rc);
    raftdir_batch_destroy(&b);
    if (result == MURDER_OK || rc == RAFTDIR_EUNCERTAIN)
        s->deleted = was;
    else
        raftdir_mailbox_free(was);
    /* Cyrus goes on as if nothing were deleted. If it was, mail for the name would bounce until somebody runs ctl_mboxlist -m. */
    if (rc == RAFTDIR_EUNCERTAIN)
        put_back(s);
    return result;
}
