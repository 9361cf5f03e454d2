/* ctl_import.c - `raftdirctl import`: a Cyrus dump into the directory (or a running master: ctl_import_master.c).
 *
 * Each record is a Put, so an import may be repeated and stopped at any moment: what is there already stays as it is. --resume lists the directory first and sends
 * only what differs: fingerprints of 16 bytes a mailbox are kept for that. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "ctl_import.h"
#include "cyrus_dump.h"

struct print {
    uint64_t a, b;
};

struct dump {
    struct import im;
    /* what --resume found */
    struct print *there;
    size_t there_n, there_size;
    uint64_t lines;
};

/* --- What is there already ------------------------------------------------------------------------------------------------- */

static void mix(struct print *p, const void *data, size_t len)
{
    const unsigned char *s = data;
    for (size_t i = 0; i < len; i++) {
        p->a = (p->a ^ s[i]) * 1099511628211ull;
        p->b = (p->b + s[i]) * 0x9e3779b97f4a7c15ull;
        p->b ^= p->b >> 29;
    }
}

static void mix_string(struct print *p, const char *s)
{
    mix(p, s ? s : "", (s ? strlen(s) : 0) + 1);
}

static struct print fingerprint(const struct raftdir_mailbox *m)
{
    struct print p = {14695981039346656037ull, 0x2545f4914f6cdd1dull};
    const uint64_t numbers[] = {m->mtime, m->uidvalidity, m->createdmodseq, m->foldermodseq};
    mix_string(&p, m->name);
    mix_string(&p, m->server);
    mix_string(&p, m->partition);
    mix_string(&p, m->acl);
    mix_string(&p, m->mbtype);
    mix_string(&p, m->uniqueid);
    mix_string(&p, m->legacy_specialuse);
    mix_string(&p, m->jmapid);
    mix_string(&p, m->name_history);
    mix(&p, numbers, sizeof numbers);
    p.a |= 1; /* 0 marks a free place */
    return p;
}

static struct print *place(struct dump *x, struct print p)
{
    size_t i = (size_t)(p.b ^ p.a >> 7) & (x->there_size - 1);
    while (x->there[i].a && (x->there[i].a != p.a || x->there[i].b != p.b))
        i = (i + 1) & (x->there_size - 1);
    return &x->there[i];
}

static void there_add(struct dump *x, struct print p)
{
    if (2 * (x->there_n + 1) > x->there_size) {
        struct print *old = x->there;
        size_t old_size = x->there_size;
        x->there_size = old_size ? 2 * old_size : 4096;
        if (!(x->there = calloc(x->there_size, sizeof *x->there)))
            import_no_memory();
        for (size_t i = 0; i < old_size; i++)
            if (old[i].a)
                *place(x, old[i]) = old[i];
        free(old);
    }
    struct print *at = place(x, p);
    x->there_n += !at->a;
    *at = p;
}

static int find_what_is_there(struct dump *x)
{
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    struct progress p;
    uint64_t n = 0;
    int rc = raftdir_list_open(x->im.c->d, NULL, &l);
    if (rc < 0)
        return rc;
    progress_begin(&p, x->im.c, "comparing", "mailboxes", 0);
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        there_add(x, fingerprint(m));
        progress_tell(&p, 0, ++n);
    }
    progress_end(&p);
    raftdir_list_close(&l);
    return rc;
}

static void mailbox_of(struct raftdir_mailbox *m, const Raftdir__Log__Mailbox *b)
{
    raftdir_mailbox_init(m);
    m->name = b->name;
    m->server = b->location ? b->location->server : NULL;
    m->partition = b->location ? b->location->partition : NULL;
    m->acl = b->acl;
    m->mbtype = b->mbtype;
    m->uniqueid = b->uniqueid;
    m->legacy_specialuse = b->legacy_specialuse;
    m->jmapid = b->jmapid;
    m->name_history = b->name_history;
    m->mtime = b->mtime;
    m->uidvalidity = b->uidvalidity;
    m->createdmodseq = b->createdmodseq;
    m->foldermodseq = b->foldermodseq;
}

static void take_mailbox(struct dump *x, uint64_t line, const Raftdir__Log__Mailbox *b)
{
    struct raftdir_mailbox m;
    mailbox_of(&m, b);
    if (x->there_size && place(x, fingerprint(&m))->a)
        x->im.unchanged++;
    else if (x->im.c->o.dry_run)
        x->im.written++;
    else
        import_add(&x->im, IMPORT_PUT, line, 0, &m);
}

/* --- Reading --------------------------------------------------------------------------------------------------------------------- */

static void warning(void *arg, uint64_t line, const char *text)
{
    struct import *im = arg;
    if (!im->c->o.json)
        fprintf(stderr, "%sline %" PRIu64 ": %s\n", im->progress.shown ? "\r\033[K" : "", line, text);
}

/* How long it will be: lines, for the progress bar only. 0: not known. */
static uint64_t count_lines(const char *path)
{
    if (!strcmp(path, "-"))
        return 0;
    gzFile in = gzopen(path, "rb");
    static char buf[1 << 17];
    uint64_t n = 0;
    int len;
    if (!in)
        return 0;
    while ((len = gzread(in, buf, sizeof buf)) > 0)
        for (char *p = buf; (p = memchr(p, '\n', (size_t)(buf + len - p))); p++)
            n++;
    gzclose(in);
    return n;
}

static int read_dump(struct dump *x, const char *path, enum cyrus_format format)
{
    struct import *im = &x->im;
    struct cyrus_dump_options options = {.format = format, .default_server = im->c->o.server, .warning = warning, .arg = im};
    struct cyrus_dump *dump;
    struct cyrus_record r;
    struct err err = {0};
    int rc = cyrus_dump_open(path, &options, &dump, &err);
    if (rc < 0) {
        import_fatal(im, rc, err.text);
        return rc;
    }
    progress_begin(&im->progress, im->c, "importing", "mailboxes", x->lines);
    while (!im->fatal && !im->stop && (rc = cyrus_dump_next(dump, &r, &err)) > 0) {
        im->read++;
        switch (r.kind) {
        case CYRUS_MAILBOX:
            take_mailbox(x, r.line, r.mailbox);
            break;
        case CYRUS_RESERVED:
            im->reserved++;
            break;
        case CYRUS_TOMBSTONE:
            im->tombstones++;
            break;
        case CYRUS_INTERMEDIATE:
            im->intermediates++;
            break;
        case CYRUS_MALFORMED:
            im->serverless += strstr(r.err.text, "no server") != NULL;
            import_malformed(im, r.line, r.name, r.err.text);
            break;
        }
        if (im->redo_n)
            import_redo(im);
        progress_tell(&im->progress, cyrus_dump_line(dump), im->written + im->unchanged);
    }
    if (rc < 0) {
        import_send(im); /* what was read before the dump broke off is good */
        import_fatal(im, rc, err.text);
    }
    cyrus_dump_close(&dump);
    if (!im->c->o.dry_run)
        import_settle(im); /* also when it stops: what was read until then is kept */
    progress_end(&im->progress);
    return 0;
}

/* --- The outcome ------------------------------------------------------------------------------------------------------------------ */

static int report(struct import *im, uint64_t spent_ms)
{
    struct ctl *c = im->c;
    uint64_t done = im->written + im->unchanged, rate = spent_ms ? done * 1000 / spent_ms : done;
    bool data_fault = im->fatal == RAFTDIR_ECORRUPT || im->fatal == RAFTDIR_EINVAL;
    int exit_code = im->fatal ? (data_fault ? EXIT_BAD_DATA : ctl_exit_code(im->fatal)) : im->malformed ? EXIT_BAD_DATA : EXIT_DONE;
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "read", json_integer((json_int_t)im->read));
        json_object_set_new(o, "written", json_integer((json_int_t)im->written));
        json_object_set_new(o, "unchanged", json_integer((json_int_t)im->unchanged));
        json_object_set_new(o, "malformed", json_integer((json_int_t)im->malformed));
        json_object_set_new(o, "reservations", json_integer((json_int_t)im->reserved));
        json_object_set_new(o, "tombstones", json_integer((json_int_t)im->tombstones));
        json_object_set_new(o, "intermediates", json_integer((json_int_t)im->intermediates));
        json_object_set_new(o, "dry_run", json_boolean(c->o.dry_run));
        json_object_set_new(o, "complete", json_boolean(!im->fatal && !im->stop));
        json_object_set_new(o, "ms", json_integer((json_int_t)spent_ms));
        json_object_set_new(o, "per_second", json_integer((json_int_t)rate));
        json_object_set_new(o, "malformed_records", json_incref(im->bad));
        if (im->fatal)
            json_object_set_new(o, "error", ctl_error_json(im->fatal, im->fatal_text));
        ctl_json_print(o);
        return exit_code;
    }
    char age[32], count[32];
    ctl_age(spent_ms, age, sizeof age);
    ctl_count(rate, count, sizeof count);
    printf("%s%s%s in %s, %s/s\n", ctl_paint(c->color, COLOR_BOLD), c->o.dry_run ? "Dry run: nothing was changed" : "Import", ctl_paint(c->color, COLOR_NONE),
           age, count);
    import_say(c->o.dry_run ? "would be created or changed" : "created or changed", im->written, true);
    import_say("there already, the same", im->unchanged, true);
    import_say("malformed, not imported", im->malformed, false);
    import_say("reservations, not imported", im->reserved, false);
    import_say("tombstones, not imported", im->tombstones, false);
    import_say("intermediate levels, dropped", im->intermediates, false);
    fflush(stdout);
    if (im->fatal) {
        int code = ctl_error(c, im->fatal, "stopped after %" PRIu64 " records: %s", im->read, im->fatal_text);
        if (!c->o.dry_run)
            fputs("  What is counted above is done. Run the same import again with --resume when that is mended.\n", stderr);
        return data_fault ? EXIT_BAD_DATA : code;
    }
    if (im->serverless && !c->o.server)
        fputs("  A backend's dump names no servers: say which it is from with --server NAME.\n", stderr);
    else if (im->malformed && im->malformed == im->read)
        fputs("  Nothing in it is a mailbox: is this what `ctl_mboxlist -d` wrote?\n", stderr);
    if (im->stop)
        fputs("raftdirctl: stopped at the first malformed record, as --on-error abort says; what came before it is done\n", stderr);
    return exit_code;
}

int ctl_import(struct ctl *c)
{
    if (c->o.mupdate)
        return ctl_import_master(c);
    if (!c->args_n)
        return ctl_usage_error(c, "a file is missing, or --mupdate HOST");
    if (c->o.follow || c->o.skip_servers_n)
        return ctl_usage_error(c, "--%s goes with --mupdate", c->o.follow ? "follow" : "skip-server");
    struct dump x = {0};
    enum cyrus_format format = CYRUS_FORMAT_DETECT;
    if (c->o.format && !strcmp(c->o.format, "json"))
        format = CYRUS_FORMAT_JSON;
    else if (c->o.format && !strcmp(c->o.format, "legacy"))
        format = CYRUS_FORMAT_TEXT;
    else if (c->o.format && strcmp(c->o.format, "auto"))
        return ctl_usage_error(c, "--format is json, legacy or auto");
    if (c->o.on_error && strcmp(c->o.on_error, "skip") && strcmp(c->o.on_error, "abort"))
        return ctl_usage_error(c, "--on-error is skip or abort");
    struct stat st;
    if (strcmp(c->args[0], "-") && (access(c->args[0], R_OK) < 0 || stat(c->args[0], &st) < 0))
        return ctl_usage_error(c, "%s: %s", c->args[0], strerror(errno));
    if (strcmp(c->args[0], "-") && S_ISDIR(st.st_mode))
        return ctl_usage_error(c, "%s: %s", c->args[0], strerror(EISDIR));
    import_begin(&x.im, c);
    bool needs_directory = !c->o.dry_run || c->o.resume;
    int exit_code = needs_directory ? import_open(c) : 0, rc;
    if (!exit_code && c->o.resume && (rc = find_what_is_there(&x)) < 0)
        exit_code = ctl_error_of(c, c->d, rc, "listing what is there");
    if (!exit_code && c->o.resume && !x.there_size)
        c->o.resume = false; /* empty: nothing to compare with */
    if (!exit_code) {
        if (!c->o.json && isatty(STDERR_FILENO))
            x.lines = count_lines(c->args[0]);
        uint64_t started = ctl_now_ms();
        read_dump(&x, c->args[0], format);
        exit_code = report(&x.im, ctl_now_ms() - started);
    }
    import_end(&x.im);
    free(x.there);
    return exit_code;
}
