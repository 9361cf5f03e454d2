/* ctl_export.c - `raftdirctl export`: the directory as Cyrus' `ctl_mboxlist -u` takes it. A file appears under its name only when it is whole; a
 * device or a pipe (-o /dev/null) is written to, not replaced.
 *
 * Known limit: an export that is interrupted leaves FILE.PID.tmp behind. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ctl.h"
#include "cyrus_export.h"

static char *string_of(const char *s)
{
    return *s ? (char *)s : NULL;
}

static void mailbox_of(Raftdir__Log__Mailbox *b, Raftdir__Log__Location *l, const struct raftdir_mailbox *m)
{
    raftdir__log__mailbox__init(b);
    raftdir__log__location__init(l);
    l->server = (char *)m->server;
    l->partition = (char *)m->partition;
    b->name = (char *)m->name;
    b->location = l;
    b->acl = string_of(m->acl);
    b->mbtype = string_of(m->mbtype);
    b->uniqueid = string_of(m->uniqueid);
    b->legacy_specialuse = string_of(m->legacy_specialuse);
    b->jmapid = string_of(m->jmapid);
    b->name_history = string_of(m->name_history);
    b->has_mtime = b->has_uidvalidity = b->has_createdmodseq = b->has_foldermodseq = 1;
    b->mtime = m->mtime;
    b->uidvalidity = m->uidvalidity;
    b->createdmodseq = m->createdmodseq;
    b->foldermodseq = m->foldermodseq;
}

struct outcome {
    uint64_t written, unsayable, dropped;
};

static int write_all(struct ctl *c, FILE *out, enum cyrus_format format, struct outcome *n)
{
    struct cyrus_export_options options = {.format = format, .exact = c->o.exact, .local_server = c->o.local_server};
    struct cyrus_export *x = NULL;
    struct err err = {0};
    struct raftdir_filter f;
    const struct raftdir_mailbox *m;
    raftdir_list *l = NULL;
    struct progress p;
    raftdir_filter_init(&f);
    f.prefix = c->o.prefix;
    f.pattern = c->o.pattern;
    f.server = c->o.server;
    f.partition = c->o.partition;
    int rc = raftdir_list_open(c->d, &f, &l);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    int exit_code = 0;
    if ((rc = cyrus_export_open(out, &options, &x, &err)) < 0)
        exit_code = ctl_error(c, rc, "%s", err.text);
    progress_begin(&p, c, "exporting", "mailboxes", 0);
    while (!exit_code && (rc = raftdir_list_next(l, &m)) > 0) {
        Raftdir__Log__Mailbox b;
        Raftdir__Log__Location at;
        mailbox_of(&b, &at, m);
        rc = cyrus_export_mailbox(x, &b, &err);
        if (rc == RAFTDIR_EINVAL) {
            n->unsayable++;
            if (!c->o.json)
                fprintf(stderr, "%s%s: %s\n", p.shown ? "\r\033[K" : "", m->name, err.text);
        } else if (rc < 0)
            exit_code = ctl_error(c, rc, "%s", err.text);
        else
            n->written++;
        progress_tell(&p, 0, n->written);
    }
    progress_end(&p);
    if (!exit_code && rc < 0)
        exit_code = ctl_error_of(c, c->d, rc, "the export is not complete");
    if (!exit_code && (rc = cyrus_export_finish(x, &err)) < 0)
        exit_code = ctl_error(c, rc, "%s", err.text);
    if (x)
        n->dropped = cyrus_export_dropped(x);
    cyrus_export_close(&x);
    raftdir_list_close(&l);
    return exit_code;
}

/* Where the export is written: a file beside `path` (*temporary_r, given, and *target_r, given, that it is to replace), or what `path` is itself when that
 * is no file. */
static int open_output(struct ctl *c, const char *path, FILE **out_r, char **temporary_r, char **target_r)
{
    struct stat st;
    bool there = stat(path, &st) == 0;
    *temporary_r = *target_r = NULL;
    if (there && !S_ISREG(st.st_mode)) {
        if (!S_ISDIR(st.st_mode) && (*out_r = fopen(path, "w")))
            return 0;
        return ctl_error(c, RAFTDIR_EIO, "%s: %s", path, strerror(S_ISDIR(st.st_mode) ? EISDIR : errno));
    }
    if (!(*target_r = there ? realpath(path, NULL) : strdup(path)) || asprintf(temporary_r, "%s.%ld.tmp", *target_r, (long)getpid()) < 0) {
        *temporary_r = NULL;
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    }
    if (!(*out_r = fopen(*temporary_r, "wx")))
        return ctl_error(c, RAFTDIR_EIO, "%s: %s", *temporary_r, strerror(errno));
    if (there && fchmod(fileno(*out_r), st.st_mode & 07777) < 0) {
        int e = errno;
        fclose(*out_r);
        unlink(*temporary_r);
        return ctl_error(c, RAFTDIR_EIO, "%s: %s", *temporary_r, strerror(e));
    }
    return 0;
}

int ctl_export(struct ctl *c)
{
    enum cyrus_format format = CYRUS_FORMAT_JSON;
    if (c->o.format && !strcmp(c->o.format, "legacy"))
        format = CYRUS_FORMAT_TEXT;
    else if (c->o.format && strcmp(c->o.format, "json"))
        return ctl_usage_error(c, "--format is json or legacy");
    const char *path = c->o.output && strcmp(c->o.output, "-") ? c->o.output : NULL;
    if (c->o.json && !path)
        return ctl_usage_error(c, "--json tells the outcome on standard output: give the dump a file with -o");
    int exit_code = ctl_open_read(c);
    if (exit_code)
        return exit_code;
    FILE *out = stdout;
    char *temporary = NULL, *target = NULL;
    if (path && (exit_code = open_output(c, path, &out, &temporary, &target))) {
        free(temporary);
        free(target);
        return exit_code;
    }
    struct outcome n = {0};
    exit_code = write_all(c, out, format, &n);
    if (path) {
        bool written = !fflush(out) && (!temporary || !fsync(fileno(out)));
        written = !fclose(out) && written;
        if (!exit_code && (!written || (temporary && rename(temporary, target) < 0)))
            exit_code = ctl_error(c, RAFTDIR_EIO, "%s: %s", path, strerror(errno));
        if (exit_code && temporary)
            unlink(temporary);
        free(temporary);
        free(target);
    }
    if (exit_code)
        return exit_code;
    if (c->o.json)
        ctl_json_print(json_pack("{s:I,s:I,s:I,s:o}", "written", (json_int_t)n.written, "left_out", (json_int_t)n.unsayable, "shortened",
                                 (json_int_t)n.dropped, "file", ctl_string(path)));
    else if (path || n.unsayable || n.dropped) {
        char count[32];
        ctl_count(n.written, count, sizeof count);
        fprintf(stderr, "%s mailboxes written\n", count);
    }
    if (n.dropped && !c->o.json)
        fprintf(stderr, "%" PRIu64 " mailboxes were written without their jmapid or name history: the text form has no place for them, --format json has\n", n.dropped);
    if (n.unsayable) {
        fprintf(stderr, "raftdirctl: %" PRIu64 " mailboxes can't be said in this format and were left out\n", n.unsayable);
        return EXIT_BAD_DATA;
    }
    return EXIT_DONE;
}
