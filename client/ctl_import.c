/* ctl_import.c - `raftdirctl import`: a Cyrus dump into the directory.
 *
 * Each record is a Put, so an import may be repeated and stopped at any moment: what is there already stays as it is. Puts travel in atomic batches, several
 * of them in flight. A batch that the directory refuses (because of one record) is done again record by record, so that one bad record costs nothing
 * but itself. --resume lists the directory first and sends only what differs: fingerprints of 16 bytes a mailbox are kept for that. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "ctl.h"
#include "cyrus_dump.h"

#define BATCH_DEFAULT 256
#define WINDOW_DEFAULT_BATCHES 16
#define BATCH_BYTES (256u << 10)    /* a batch is sent at this size, even with fewer records */
#define IMPORT_TIMEOUT_MS 60000     /* an election in the middle is no reason to stop */
#define TOLD_MAX 50                 /* malformed records told one by one; all are counted */

struct record {
    uint64_t line;
    struct raftdir_mailbox *m;
};
struct flight {
    struct import *im;
    struct record *records;
    unsigned n;
};
struct print {
    uint64_t a, b;
};

struct import {
    struct ctl *c;
    unsigned batch_n;
    raftdir_batch *batch;
    struct flight *filling;
    struct flight **redo; /* batches that were refused */
    size_t redo_n, redo_size;
    /* what --resume found */
    struct print *there;
    size_t there_n, there_size;
    /* counts */
    uint64_t read, written, unchanged, malformed, serverless, reserved, tombstones, intermediates;
    int fatal;            /* code that stops the import */
    char fatal_text[512];
    json_t *bad;          /* malformed records, for --json */
    struct progress progress;
    uint64_t lines;
    bool stop;
};

static void no_memory(void)
{
    fputs("raftdirctl: out of memory\n", stderr);
    exit(EXIT_INTERNAL);
}

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

static struct print *place(struct import *im, struct print p)
{
    size_t i = (size_t)(p.b ^ p.a >> 7) & (im->there_size - 1);
    while (im->there[i].a && (im->there[i].a != p.a || im->there[i].b != p.b))
        i = (i + 1) & (im->there_size - 1);
    return &im->there[i];
}

static void there_add(struct import *im, struct print p)
{
    if (2 * (im->there_n + 1) > im->there_size) {
        struct print *old = im->there;
        size_t old_size = im->there_size;
        im->there_size = old_size ? 2 * old_size : 4096;
        if (!(im->there = calloc(im->there_size, sizeof *im->there)))
            no_memory();
        for (size_t i = 0; i < old_size; i++)
            if (old[i].a)
                *place(im, old[i]) = old[i];
        free(old);
    }
    struct print *at = place(im, p);
    im->there_n += !at->a;
    *at = p;
}

static int find_what_is_there(struct import *im)
{
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    struct progress p;
    uint64_t n = 0;
    int rc = raftdir_list_open(im->c->d, NULL, &l);
    if (rc < 0)
        return rc;
    progress_begin(&p, im->c, "comparing", "mailboxes", 0);
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        there_add(im, fingerprint(m));
        progress_tell(&p, 0, ++n);
    }
    progress_end(&p);
    raftdir_list_close(&l);
    return rc;
}

/* --- Sending --------------------------------------------------------------------------------------------------------------------- */

static void flight_free(struct flight *f)
{
    if (!f)
        return;
    for (unsigned i = 0; i < f->n; i++)
        raftdir_mailbox_free(f->records[i].m);
    free(f->records);
    free(f);
}

static void malformed(struct import *im, uint64_t line, const char *name, const char *why)
{
    im->malformed++;
    if (im->c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "line", json_integer((json_int_t)line));
        json_object_set_new(o, "name", name ? ctl_string(name) : json_null());
        json_object_set_new(o, "error", ctl_string(why));
        json_array_append_new(im->bad, o);
    } else if (im->malformed <= TOLD_MAX) {
        if (im->progress.shown)
            fputs("\r\033[K", stderr);
        fprintf(stderr, "line %" PRIu64 ": %s%s%s\n", line, name ? name : "", name ? ": " : "", why);
        if (im->malformed == TOLD_MAX)
            fputs("(more are counted, and told with --json)\n", stderr);
    }
    if (im->c->o.on_error && !strcmp(im->c->o.on_error, "abort"))
        im->stop = true;
}

static bool refused_for_a_record(int code)
{
    switch (code) {
    case RAFTDIR_EINVAL:
    case RAFTDIR_ENAME:
    case RAFTDIR_ETOOBIG:
    case RAFTDIR_EACL:
    case RAFTDIR_EEXIST:
    case RAFTDIR_ECONFLICT:
    case RAFTDIR_ERESERVED:
    case RAFTDIR_EOTHERSTORE:
    case RAFTDIR_EFENCED:
        return true;
    }
    return false;
}

static void fatal(struct import *im, int code, const char *text)
{
    if (im->fatal)
        return;
    im->fatal = code;
    snprintf(im->fatal_text, sizeof im->fatal_text, "%s", text);
}

static void batch_done(void *data, int code, const char *text, const struct raftdir_result *r)
{
    struct flight *f = data;
    struct import *im = f->im;
    if (code == 0) {
        for (unsigned i = 0; i < f->n; i++)
            if (i < r->ops_n && !r->ops[i].changed)
                im->unchanged++;
            else
                im->written++;
    } else if (refused_for_a_record(code)) {
        if (im->redo_n == im->redo_size) {
            im->redo_size = im->redo_size ? 2 * im->redo_size : 8;
            if (!(im->redo = realloc(im->redo, im->redo_size * sizeof *im->redo)))
                no_memory();
        }
        im->redo[im->redo_n++] = f;
        return;
    } else
        fatal(im, code, text);
    flight_free(f);
}

static void send_batch(struct import *im)
{
    if (!im->filling)
        return;
    struct flight *f = im->filling;
    im->filling = NULL;
    int rc = raftdir_submit(im->c->d, im->batch, batch_done, f);
    raftdir_batch_clear(im->batch);
    if (rc < 0) {
        fatal(im, rc, raftdir_message(im->c->d));
        flight_free(f);
    }
}

/* Refused batches, record by record. */
static void redo_batches(struct import *im)
{
    for (size_t k = 0; k < im->redo_n; k++) {
        struct flight *f = im->redo[k];
        for (unsigned i = 0; i < f->n && !im->fatal && !im->stop; i++) {
            const struct raftdir_result *r;
            int rc = raftdir_put(im->c->d, f->records[i].m, &r);
            if (rc == 0 && r->ops_n && !r->ops[0].changed)
                im->unchanged++;
            else if (rc == 0)
                im->written++;
            else if (refused_for_a_record(rc))
                malformed(im, f->records[i].line, f->records[i].m->name, raftdir_message(im->c->d));
            else
                fatal(im, rc, raftdir_message(im->c->d));
        }
        flight_free(f);
    }
    im->redo_n = 0;
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

static void take_mailbox(struct import *im, uint64_t line, const Raftdir__Log__Mailbox *b)
{
    struct raftdir_mailbox m;
    mailbox_of(&m, b);
    if (im->c->o.dry_run && !im->there_size) {
        im->written++;
        return;
    }
    if (im->there_size) {
        struct print p = fingerprint(&m), *at = place(im, p);
        if (at->a) {
            im->unchanged++;
            return;
        }
        if (im->c->o.dry_run) {
            im->written++;
            return;
        }
    }
    int rc = raftdir_batch_add_put(im->batch, &m);
    if (rc == RAFTDIR_ETOOBIG && im->filling) {
        send_batch(im);
        rc = raftdir_batch_add_put(im->batch, &m);
    }
    if (rc == RAFTDIR_ENOMEM)
        no_memory();
    if (rc < 0) {
        malformed(im, line, m.name, rc == RAFTDIR_ETOOBIG ? "larger than a request can be" : "no name or no server");
        return;
    }
    if (!im->filling) {
        im->filling = calloc(1, sizeof *im->filling);
        if (!im->filling || !(im->filling->records = calloc(im->batch_n, sizeof *im->filling->records)))
            no_memory();
        im->filling->im = im;
    }
    struct record *r = &im->filling->records[im->filling->n++];
    r->line = line;
    if (!(r->m = raftdir_mailbox_copy(&m)))
        no_memory();
    if (im->filling->n == im->batch_n || raftdir_batch_len(im->batch) >= BATCH_BYTES)
        send_batch(im);
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

static int read_dump(struct import *im, const char *path, enum cyrus_format format)
{
    struct cyrus_dump_options options = {.format = format, .default_server = im->c->o.server, .warning = warning, .arg = im};
    struct cyrus_dump *dump;
    struct cyrus_record r;
    struct err err = {0};
    int rc = cyrus_dump_open(path, &options, &dump, &err);
    if (rc < 0) {
        fatal(im, rc, err.text);
        return rc;
    }
    progress_begin(&im->progress, im->c, "importing", "mailboxes", im->lines);
    while (!im->fatal && !im->stop && (rc = cyrus_dump_next(dump, &r, &err)) > 0) {
        im->read++;
        switch (r.kind) {
        case CYRUS_MAILBOX:
            take_mailbox(im, r.line, r.mailbox);
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
            malformed(im, r.line, r.name, r.err.text);
            break;
        }
        if (im->redo_n)
            redo_batches(im);
        progress_tell(&im->progress, cyrus_dump_line(dump), im->written + im->unchanged);
    }
    if (rc < 0) {
        send_batch(im); /* what was read before the dump broke off is good */
        fatal(im, rc, err.text);
    }
    cyrus_dump_close(&dump);
    if (!im->c->o.dry_run) {
        /* Also when it stops: what was read until then is kept. */
        if (!im->fatal)
            send_batch(im);
        if ((rc = raftdir_drain(im->c->d)) < 0)
            fatal(im, rc, raftdir_message(im->c->d));
        redo_batches(im);
    }
    progress_end(&im->progress);
    return 0;
}

/* --- The outcome ------------------------------------------------------------------------------------------------------------------ */

static void say(const char *label, uint64_t n, bool always)
{
    char count[32];
    if (!n && !always)
        return;
    ctl_count(n, count, sizeof count);
    printf("  %-28s %12s\n", label, count);
}

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
    say(c->o.dry_run ? "would be created or changed" : "created or changed", im->written, true);
    say("there already, the same", im->unchanged, true);
    say("malformed, not imported", im->malformed, false);
    say("reservations, not imported", im->reserved, false);
    say("tombstones, not imported", im->tombstones, false);
    say("intermediate levels, dropped", im->intermediates, false);
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
    struct import im = {.c = c};
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
    if (!c->o.window)
        c->o.window = WINDOW_DEFAULT_BATCHES;
    im.batch_n = c->o.batch ? c->o.batch : BATCH_DEFAULT;
    im.batch = raftdir_batch_create();
    im.bad = json_array();
    if (!im.batch || !im.bad)
        no_memory();
    bool needs_directory = !c->o.dry_run || c->o.resume;
    int exit_code = 0, rc;
    if (needs_directory) {
        unsigned given = c->o.timeout_ms;
        exit_code = ctl_open(c);
        if (!exit_code && !given) {
            /* Find out soon whether anybody is there and lets us in; then be patient. */
            const struct raftdir_node_info *info;
            if ((rc = raftdir_node_info(c->d, &info)) < 0)
                exit_code = ctl_error_of(c, c->d, rc, NULL);
            raftdir_set_timeout(c->d, IMPORT_TIMEOUT_MS);
        }
        if (!exit_code && c->o.resume && (rc = find_what_is_there(&im)) < 0)
            exit_code = ctl_error_of(c, c->d, rc, "listing what is there");
        if (!exit_code && c->o.resume && !im.there_size)
            c->o.resume = false; /* empty: nothing to compare with */
    }
    if (!exit_code) {
        if (!c->o.json && isatty(STDERR_FILENO))
            im.lines = count_lines(c->args[0]);
        uint64_t started = ctl_now_ms();
        read_dump(&im, c->args[0], format);
        exit_code = report(&im, ctl_now_ms() - started);
    }
    flight_free(im.filling);
    free(im.redo);
    free(im.there);
    raftdir_batch_destroy(&im.batch);
    json_decref(im.bad);
    return exit_code;
}
