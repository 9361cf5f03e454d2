/* ctl_import_send.c - writes of an import: in atomic batches, several of them in flight. A batch that the directory refuses (because of one record) is done again record by
 * record, so that one bad record costs nothing but itself. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl_import.h"

#define BATCH_DEFAULT 256
#define WINDOW_DEFAULT_BATCHES 16
#define BATCH_BYTES (256u << 10)    /* a batch is sent at this size, even with fewer records */
#define IMPORT_TIMEOUT_MS 60000     /* an election in the middle is no reason to stop */
#define TOLD_MAX 50                 /* malformed records told one by one; all are counted */

void import_no_memory(void)
{
    fputs("raftdirctl: out of memory\n", stderr);
    exit(EXIT_INTERNAL);
}

static void flight_free(struct import_flight *f)
{
    if (!f)
        return;
    for (unsigned i = 0; i < f->n; i++)
        raftdir_mailbox_free(f->records[i].m);
    free(f->records);
    free(f);
}

void import_malformed(struct import *im, uint64_t line, const char *name, const char *why)
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
        if (line)
            fprintf(stderr, "line %" PRIu64 ": ", line);
        fprintf(stderr, "%s%s%s\n", name ? name : "", name ? ": " : "", why);
        if (im->malformed == TOLD_MAX)
            fputs("(more are counted, and told with --json)\n", stderr);
    }
    if (im->c->o.on_error && !strcmp(im->c->o.on_error, "abort"))
        im->stop = true;
}

bool import_refused(int code)
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

void import_fatal(struct import *im, int code, const char *text)
{
    if (im->fatal)
        return;
    im->fatal = code;
    snprintf(im->fatal_text, sizeof im->fatal_text, "%s", text);
}

static void batch_done(void *data, int code, const char *text, const struct raftdir_result *r)
{
    struct import_flight *f = data;
    struct import *im = f->im;
    if (code == 0) {
        for (unsigned i = 0; i < f->n; i++)
            if (f->records[i].kind == IMPORT_DELETE)
                im->deleted++;
            else if (i < r->ops_n && !r->ops[i].changed)
                im->unchanged++;
            else
                im->written++;
    } else if (import_refused(code)) {
        if (im->redo_n == im->redo_size) {
            im->redo_size = im->redo_size ? 2 * im->redo_size : 8;
            if (!(im->redo = realloc(im->redo, im->redo_size * sizeof *im->redo)))
                import_no_memory();
        }
        im->redo[im->redo_n++] = f;
        return;
    } else
        import_fatal(im, code, text);
    flight_free(f);
}

void import_send(struct import *im)
{
    if (!im->filling)
        return;
    struct import_flight *f = im->filling;
    im->filling = NULL;
    int rc = raftdir_submit(im->c->d, im->batch, batch_done, f);
    raftdir_batch_clear(im->batch);
    if (rc < 0) {
        import_fatal(im, rc, raftdir_message(im->c->d));
        flight_free(f);
    }
}

/* A put by itself. */
static void put_again(struct import *im, const struct import_record *r)
{
    const struct raftdir_result *result;
    int rc = raftdir_put(im->c->d, r->m, &result);
    if (rc == 0 && result->ops_n && !result->ops[0].changed)
        im->unchanged++;
    else if (rc == 0)
        im->written++;
    else if (import_refused(rc))
        import_malformed(im, r->line, r->m->name, raftdir_message(im->c->d));
    else
        import_fatal(im, rc, raftdir_message(im->c->d));
}

void import_redo(struct import *im)
{
    for (size_t k = 0; k < im->redo_n; k++) {
        struct import_flight *f = im->redo[k];
        for (unsigned i = 0; i < f->n && !im->fatal && !im->stop; i++)
            if (f->records[i].kind == IMPORT_PUT)
                put_again(im, &f->records[i]);
            else
                im->again(im, &f->records[i]);
        flight_free(f);
    }
    im->redo_n = 0;
}

static int add(raftdir_batch *b, enum import_kind kind, uint64_t generation, const struct raftdir_mailbox *m)
{
    int rc = kind == IMPORT_CREATE   ? raftdir_batch_add_create(b, m, NULL, 0)
             : kind == IMPORT_DELETE ? raftdir_batch_add_delete(b, m->name, 0, NULL, NULL, NULL, 0)
                                     : raftdir_batch_add_put(b, m);
    if (rc >= 0 && (kind == IMPORT_CHANGE || kind == IMPORT_DELETE))
        rc = raftdir_batch_if(b, RAFTDIR_IF_GENERATION, generation, NULL);
    return rc;
}

void import_add(struct import *im, enum import_kind kind, uint64_t line, uint64_t generation, const struct raftdir_mailbox *m)
{
    struct raftdir_mailbox *copy = raftdir_mailbox_copy(m); /* what the handle has given lives until its next call, and sending is one */
    if (!copy)
        import_no_memory();
    int rc = add(im->batch, kind, generation, copy);
    if (rc == RAFTDIR_ETOOBIG && im->filling) {
        import_send(im);
        rc = add(im->batch, kind, generation, copy);
    }
    if (rc == RAFTDIR_ENOMEM)
        import_no_memory();
    if (rc < 0) {
        import_malformed(im, line, copy->name, rc == RAFTDIR_ETOOBIG ? "larger than a request can be" : "no name or no server");
        raftdir_mailbox_free(copy);
        return;
    }
    if (!im->filling) {
        im->filling = calloc(1, sizeof *im->filling);
        if (!im->filling || !(im->filling->records = calloc(im->batch_n, sizeof *im->filling->records)))
            import_no_memory();
        im->filling->im = im;
    }
    im->filling->records[im->filling->n++] = (struct import_record){kind, line, generation, copy};
    if (im->filling->n == im->batch_n || raftdir_batch_len(im->batch) >= BATCH_BYTES)
        import_send(im);
}

void import_settle(struct import *im)
{
    if (!im->fatal)
        import_send(im);
    int rc = raftdir_drain(im->c->d);
    if (rc < 0)
        import_fatal(im, rc, raftdir_message(im->c->d));
    import_redo(im);
}

void import_discard(struct import *im)
{
    flight_free(im->filling);
    im->filling = NULL;
    raftdir_batch_clear(im->batch);
}

void import_begin(struct import *im, struct ctl *c)
{
    *im = (struct import){.c = c};
    if (!c->o.window)
        c->o.window = WINDOW_DEFAULT_BATCHES;
    im->batch_n = c->o.batch ? c->o.batch : BATCH_DEFAULT;
    im->batch = raftdir_batch_create();
    im->bad = json_array();
    if (!im->batch || !im->bad)
        import_no_memory();
}

void import_end(struct import *im)
{
    import_discard(im);
    free(im->redo);
    raftdir_batch_destroy(&im->batch);
    json_decref(im->bad);
}

int import_open(struct ctl *c)
{
    unsigned given = c->o.timeout_ms;
    int exit_code = ctl_open(c), rc;
    if (!exit_code && !given) {
        const struct raftdir_node_info *info;
        if ((rc = raftdir_node_info(c->d, &info)) < 0)
            exit_code = ctl_error_of(c, c->d, rc, NULL);
        raftdir_set_timeout(c->d, IMPORT_TIMEOUT_MS);
    }
    return exit_code;
}

void import_say(const char *label, uint64_t n, bool always)
{
    char count[32];
    if (!n && !always)
        return;
    ctl_count(n, count, sizeof count);
    printf("  %-36s %12s\n", label, count);
}
