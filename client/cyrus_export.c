/* cyrus_export.c - the writer of Cyrus' dumps: see cyrus_export.h.
 *
 * JSON: the fields in dump_cb()'s order (imap/ctl_mboxlist.c, 3.6 to 3.10), absent ones left out, numbers as strings; jansson, which Cyrus
 * uses too, makes the text. Text: what do_undump_legacy() scans; it has no place for jmapid and name_history (cyrus_export_dropped()), and
 * it reads lines of up to 16,383 bytes and ACLs without '>': more is refused here, since there it would be misread without a word. */
#include "cyrus_export.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "cyrus_internal.h"
#include "cyrus_mbtype.h"
#include "raftdir/acl.h"

#define UNDUMP_LINE_LEN_MAX 16383

struct cyrus_export {
    FILE *out;
    struct cyrus_export_options options;
    uint64_t mailboxes, dropped;
};

int cyrus_export_open(FILE *out, const struct cyrus_export_options *options, struct cyrus_export **export_r, struct err *err)
{
    if (options->format != CYRUS_FORMAT_JSON && options->format != CYRUS_FORMAT_TEXT)
        return err_set(err, RAFTDIR_EINVAL, "export needs a format");
    struct cyrus_export *x = calloc(1, sizeof *x);
    if (!x)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    x->out = out;
    x->options = *options;
    if (options->format == CYRUS_FORMAT_JSON && fputs("{\n", out) == EOF) {
        free(x);
        return err_set(err, RAFTDIR_EIO, "write: %s", strerror(errno));
    }
    *export_r = x;
    return 0;
}

bool cyrus_export_uniqueid(const char *name, char *buf_r)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    unsigned char digest[32];
    if (!cyrus_name_digest(name, strlen(name), digest))
        return false;
    /* The digest's first 20 bytes as a number to the base 36, its last 24 digits. */
    for (int i = 0; i < CYRUS_UNIQUEID_LEN; i++) {
        unsigned rest = 0;
        for (int k = 0; k < 20; k++) {
            unsigned n = rest << 8 | digest[k];
            digest[k] = (unsigned char)(n / 36);
            rest = n % 36;
        }
        buf_r[CYRUS_UNIQUEID_LEN - 1 - i] = letters[rest];
    }
    buf_r[CYRUS_UNIQUEID_LEN] = '\0';
    return true;
}

static const char *server_of(const struct cyrus_export *x, const Raftdir__Log__Mailbox *m)
{
    if (!m->location || (x->options.local_server && strcmp(m->location->server, x->options.local_server) == 0))
        return NULL;
    return m->location->server;
}

/* The uniqueid to write, or NULL. */
static int uniqueid_of(const struct cyrus_export *x, const Raftdir__Log__Mailbox *m, char *buf, const char **id_r, struct err *err)
{
    *id_r = NULL;
    if (m->uniqueid && *m->uniqueid)
        *id_r = m->uniqueid;
    else if (!x->options.exact && !cyrus_export_uniqueid(m->name, buf))
        return err_set(err, RAFTDIR_ENOMEM, "digest of a mailbox name: out of memory");
    else if (!x->options.exact)
        *id_r = buf;
    return 0;
}

/* ---- JSON ---- */

/* True when it is in the object, or absent and so needn't be. */
static bool set_string(json_t *object, const char *field, const char *value)
{
    return !value || json_object_set_new(object, field, json_string(value)) == 0;
}

static bool set_number(json_t *object, const char *field, bool has, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, has ? value : 0);
    return set_string(object, field, text);
}

static json_t *acl_object(const char *acl)
{
    json_t *object = json_object();
    size_t len = acl ? strlen(acl) : 0, pos = 0;
    struct acl_entry e;
    int rc;
    while (object && (rc = acl_next(acl, len, &pos, &e, NULL)) != 0) {
        char id[IDENTIFIER_LEN_MAX + 2], merged[33];
        const char *rights = e.rights_text;
        size_t rights_len = e.rights_len;
        if (rc == 1)
            snprintf(id, sizeof id, "%s%.*s", e.negative ? "-" : "", (int)e.id_len, e.id);
        json_t *before = rc == 1 ? json_object_get(object, id) : NULL;
        acl_rights more;
        /* An object can't have an identifier twice: together they grant what both grant. */
        if (before && acl_rights_parse(json_string_value(before), json_string_length(before), &more, NULL) == 0) {
            rights = merged;
            rights_len = acl_rights_format(more | e.rights, merged);
        }
        if (rc != 1 || json_object_set_new(object, id, json_stringn(rights, rights_len)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static json_t *history_array(const char *text)
{
    return text && *text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : json_array();
}

static const char *non_empty(const char *s)
{
    return s && *s ? s : NULL;
}

static json_t *record_object(const struct cyrus_export *x, const Raftdir__Log__Mailbox *m, const char *uniqueid)
{
    json_t *o = json_object();
    bool ok = o && set_string(o, "name", m->name) && set_number(o, "mtime", m->has_mtime, m->mtime) &&
              set_number(o, "uidvalidity", m->has_uidvalidity, m->uidvalidity) && set_number(o, "createdmodseq", m->has_createdmodseq, m->createdmodseq) &&
              set_number(o, "foldermodseq", m->has_foldermodseq, m->foldermodseq) && set_string(o, "mbtype", non_empty(m->mbtype) ? m->mbtype : "e") &&
              set_string(o, "partition", m->location ? m->location->partition : NULL) && set_string(o, "server", server_of(x, m)) &&
              json_object_set_new(o, "acl", acl_object(m->acl)) == 0 && set_string(o, "uniqueid", uniqueid) && set_string(o, "jmapId", non_empty(m->jmapid)) &&
              set_string(o, "legacy_specialuse", non_empty(m->legacy_specialuse)) && json_object_set_new(o, "name_history", history_array(m->name_history)) == 0;
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

static int json_mailbox(struct cyrus_export *x, const Raftdir__Log__Mailbox *m, const char *uniqueid, struct err *err)
{
    json_t *parent = json_object(), *record = record_object(x, m, uniqueid);
    /* jansson doesn't tell what failed: not UTF-8, no JSON, or no memory. */
    int rc = 0;
    char *text = NULL;
    if (!parent || !record || json_object_set(parent, m->name, record) != 0 || !(text = json_dumps(parent, JSON_EMBED)))
        rc = err_set(err, RAFTDIR_EINVAL, "mailbox %s can't be written as JSON", m->name);
    else if ((x->mailboxes && fputs(",\n", x->out) == EOF) || fputs(text, x->out) == EOF)
        rc = err_set(err, RAFTDIR_EIO, "write: %s", strerror(errno));
    free(text);
    json_decref(record);
    json_decref(parent);
    return rc;
}

/* ---- text ---- */

static int text_mailbox(struct cyrus_export *x, const Raftdir__Log__Mailbox *m, const char *uniqueid, struct err *err)
{
    const char *type = m->mbtype ? m->mbtype : "", *acl = m->acl ? m->acl : "", *server = server_of(x, m);
    const char *partition = m->location ? m->location->partition : "", *use = non_empty(m->legacy_specialuse);
    uint32_t number;
    if (!cyrus_mbtype_to_new(type, &number))
        return err_set(err, RAFTDIR_EINVAL, "mailbox %s: type \"%s\" has no number in the text form", m->name, type);
    if (!server && !*partition)
        return err_set(err, RAFTDIR_EINVAL, "mailbox %s has no location to write in the text form", m->name);
    if (strchr(acl, '>'))
        return err_set(err, RAFTDIR_EINVAL, "mailbox %s: '>' in an ACL can't be written in the text form", m->name);
    char numbers[4 * 24] = "";
    if (uniqueid)
        snprintf(numbers, sizeof numbers, " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, m->has_mtime ? m->mtime : 0, m->has_uidvalidity ? m->uidvalidity : 0,
                 m->has_foldermodseq ? m->foldermodseq : 0, m->has_createdmodseq ? m->createdmodseq : 0);
    else if ((m->has_mtime && m->mtime) || (m->has_uidvalidity && m->uidvalidity) || (m->has_foldermodseq && m->foldermodseq) ||
             (m->has_createdmodseq && m->createdmodseq) || use)
        return err_set(err, RAFTDIR_EINVAL, "mailbox %s has no uniqueid: the text form has no place for its other fields then", m->name);
    char *line = NULL;
    int len = asprintf(&line, "%s\t%" PRIu32 " %s%s%s %s>%s%s%s%s\n", m->name, number, server ? server : "", server ? "!" : "", partition, acl,
                       uniqueid ? uniqueid : "", numbers, use ? " " : "", use ? use : "");
    if (len < 0)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    int rc = 0;
    if (len > UNDUMP_LINE_LEN_MAX)
        rc = err_set(err, RAFTDIR_EINVAL, "mailbox %s: its line has %d bytes; ctl_mboxlist -u -L reads %d", m->name, len, UNDUMP_LINE_LEN_MAX);
    else if (fputs(line, x->out) == EOF)
        rc = err_set(err, RAFTDIR_EIO, "write: %s", strerror(errno));
    free(line);
    if (!rc && (non_empty(m->jmapid) || (non_empty(m->name_history) && strcmp(m->name_history, "[]") != 0)))
        x->dropped++;
    return rc;
}

int cyrus_export_mailbox(struct cyrus_export *x, const Raftdir__Log__Mailbox *m, struct err *err)
{
    char made[CYRUS_UNIQUEID_LEN + 1];
    const char *uniqueid;
    int rc = uniqueid_of(x, m, made, &uniqueid, err);
    if (!rc)
        rc = (x->options.format == CYRUS_FORMAT_JSON ? json_mailbox : text_mailbox)(x, m, uniqueid, err);
    if (!rc)
        x->mailboxes++;
    return rc;
}

uint64_t cyrus_export_dropped(const struct cyrus_export *x)
{
    return x->dropped;
}

int cyrus_export_finish(struct cyrus_export *x, struct err *err)
{
    if ((x->options.format == CYRUS_FORMAT_JSON && fputs("\n}\n", x->out) == EOF) || fflush(x->out) == EOF || ferror(x->out))
        return err_set(err, RAFTDIR_EIO, "write: %s", strerror(errno));
    return 0;
}

void cyrus_export_close(struct cyrus_export **x)
{
    free(*x);
    *x = NULL;
}
