/* ctl_import_master.c - `raftdirctl import --mupdate`: what a running mupdate master has, compared with raftdir and taken over.
 *
 * The master's list goes to a temporary file as fast as it comes (mupdate_spool.h), and into an index by name (mupdate_index.h); then raftdir is listed once beside the index. What is
 * new is created, which is refused when somebody else was first; what differs is put on condition that it is still the generation that was seen. Either way a refusal means: look
 * again, decide anew. So nothing that anybody else writes at the same time is ever overwritten without having been seen.
 * A master knows a mailbox's location and ACL; what else raftdir knows of it stays.
 *
 * Never written: what the master says of a server of --skip-server; a mailbox or name that raftdir has at such a server; a name that raftdir holds (reservation), a mailbox that it
 * moves. Nothing is deleted because the master doesn't list it: only ctl_import_follow.c deletes, what the master was seen to delete. Reservations of the master aren't taken. */
#include "ctl_import_master.h"
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "raftdir/limits.h"
#include "raftdir/mem.h"
#include "raftdir/op.h"

#define SHOWN_DEFAULT 1000       /* differences in a table */
#define PUMP_ROWS 20000          /* taken from the master at once */
#define LIST_SILENCE_MS 120000   /* a stock master may stand still for seconds while it lists */
#define TRIES 4                  /* for one mailbox, when others write it, too */
#define PASSWORD_LEN_MAX 1024

static volatile sig_atomic_t stop_signal;

static void on_signal(int sig)
{
    (void)sig;
    stop_signal = 1;
}

bool master_stopped(void)
{
    return stop_signal != 0;
}

/* --- What a row comes to ------------------------------------------------------------------------------------------------------------- */

static bool skipped(const struct master *x, const char *server)
{
    for (unsigned i = 0; i < x->im.c->o.skip_servers_n; i++)
        if (!strcmp(x->im.c->o.skip_servers[i], server))
            return true;
    return false;
}

/* "server!" means: at that server, on whatever partition. */
static const char *partition_of(const struct mupdate_row *row, const struct raftdir_mailbox *here)
{
    return *row->partition || !here || strcmp(here->server, row->server) ? row->partition : here->partition;
}

enum master_verdict master_decide(const struct master *x, const struct mupdate_row *row, const struct raftdir_mailbox *here)
{
    if (skipped(x, row->server))
        return MASTER_SKIPPED_THERE;
    if (!here)
        return MASTER_WRITE;
    if (skipped(x, here->server) || (*here->moving_server && skipped(x, here->moving_server)))
        return MASTER_SKIPPED_HERE;
    if (here->reserved)
        return MASTER_RESERVED_HERE;
    if (*here->moving_server)
        return MASTER_MOVING_HERE;
    bool same = !strcmp(here->server, row->server) && !strcmp(here->partition, partition_of(row, here)) && !strcmp(here->acl, row->acl);
    return same ? MASTER_SAME : MASTER_WRITE;
}

bool master_may_delete(struct master *x, const struct raftdir_mailbox *here, const char *server)
{
    if (!here || here->reserved || *here->moving_server)
        return false;
    if (skipped(x, here->server) || skipped(x, server)) {
        x->skipped_here++;
        return false;
    }
    if (strcmp(here->server, server)) {
        x->elsewhere++;
        return false;
    }
    return true;
}

void master_write(struct master *x, const struct mupdate_row *row, const struct raftdir_mailbox *here)
{
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    if (here)
        m = *here;
    m.size = sizeof m;
    m.name = row->name;
    m.partition = partition_of(row, here);
    m.server = row->server;
    m.acl = row->acl;
    import_add(&x->im, here ? IMPORT_CHANGE : IMPORT_CREATE, 0, here ? here->generation : 0, &m);
}

void master_delete(struct master *x, const struct raftdir_mailbox *here)
{
    import_add(&x->im, IMPORT_DELETE, 0, here->generation, here);
}

int master_look(struct master *x, const char *name, const struct raftdir_mailbox **here_r)
{
    int rc = raftdir_lookup(x->im.c->d, name, here_r);
    if (rc == RAFTDIR_ENOTFOUND) {
        *here_r = NULL;
        return 0;
    }
    if (rc < 0 && import_refused(rc))
        import_malformed(&x->im, 0, name, raftdir_message(x->im.c->d));
    else if (rc < 0)
        import_fatal(&x->im, rc, raftdir_message(x->im.c->d));
    return rc;
}

/* One write by itself, on the same condition. */
static int write_one(struct master *x, raftdir_batch *b, const struct mupdate_row *row, const struct raftdir_mailbox *here)
{
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    if (here)
        m = *here;
    m.size = sizeof m;
    m.name = row->name;
    m.partition = partition_of(row, here);
    m.server = row->server;
    m.acl = row->acl;
    uint64_t generation = here ? here->generation : 0;
    raftdir_batch_clear(b);
    int rc = here ? raftdir_batch_add_put(b, &m) : raftdir_batch_add_create(b, &m, NULL, 0);
    if (rc >= 0 && here)
        rc = raftdir_batch_if(b, RAFTDIR_IF_GENERATION, generation, NULL);
    return rc < 0 ? rc : raftdir_write(x->im.c->d, b, NULL);
}

static int delete_one(struct master *x, raftdir_batch *b, const struct raftdir_mailbox *here)
{
    uint64_t generation = here->generation;
    raftdir_batch_clear(b);
    int rc = raftdir_batch_add_delete(b, here->name, 0, NULL, NULL, NULL, 0);
    if (rc >= 0)
        rc = raftdir_batch_if(b, RAFTDIR_IF_GENERATION, generation, NULL);
    return rc < 0 ? rc : raftdir_write(x->im.c->d, b, NULL);
}

/* A record of a batch that was refused: others came first, or something is wrong with it. */
static void again(struct import *im, const struct import_record *r)
{
    struct master *x = im->data;
    raftdir_batch *b = raftdir_batch_create();
    const struct mupdate_row row = {MUPDATE_ROW_MAILBOX, r->m->name, r->m->server, r->m->partition, r->m->acl};
    int rc = RAFTDIR_ECONFLICT;
    if (!b)
        import_no_memory();
    raftdir_set_level(im->c->d, RAFTDIR_LINEARIZABLE); /* what refused it must be seen */
    for (int i = 0; i < TRIES && rc < 0; i++) {
        const struct raftdir_mailbox *here;
        if ((rc = master_look(x, row.name, &here)) < 0)
            goto done; /* told */
        if (r->kind == IMPORT_DELETE) {
            if (!master_may_delete(x, here, row.server))
                goto done;
            if ((rc = delete_one(x, b, here)) == 0)
                im->deleted++;
        } else {
            enum master_verdict v = master_decide(x, &row, here);
            if (v == MASTER_SAME) {
                im->unchanged++;
                goto done;
            }
            if (v == MASTER_RESERVED_HERE || v == MASTER_MOVING_HERE) {
                x->reserved_here++;
                master_hold(x, &row);
                goto done;
            }
            if (v != MASTER_WRITE) {
                x->skipped_here++;
                goto done;
            }
            if ((rc = write_one(x, b, &row, here)) == 0)
                im->written++;
        }
        if (rc < 0 && rc != RAFTDIR_ECONFLICT && rc != RAFTDIR_EEXIST && rc != RAFTDIR_ERESERVED && rc != RAFTDIR_ENOTFOUND)
            break;
    }
    if (rc < 0 && import_refused(rc))
        import_malformed(im, 0, row.name, raftdir_message(im->c->d));
    else if (rc < 0)
        import_fatal(im, rc, raftdir_message(im->c->d));
done:
    raftdir_set_level(im->c->d, RAFTDIR_SESSION);
    raftdir_batch_destroy(&b);
}

/* --- Reading the master -------------------------------------------------------------------------------------------------------------- */

int master_error(struct ctl *c, const struct err *err)
{
    int exit_code = err->code == RAFTDIR_EAUTH || err->code == RAFTDIR_EPERM ? EXIT_DENIED
                    : err->code == RAFTDIR_EINVAL                           ? EXIT_USAGE
                    : err->code == RAFTDIR_EIO || err->code == RAFTDIR_ENOSPC ? EXIT_INTERNAL
                                                                            : EXIT_UNKNOWN;
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "error", ctl_error_json(err->code, err->text));
        ctl_json_print(o);
    } else {
        fflush(stdout);
        fprintf(stderr, "%sraftdirctl: mupdate master %s%s\n", ctl_paint(c->color_err, COLOR_BAD), err->text, ctl_paint(c->color_err, COLOR_NONE));
    }
    return exit_code;
}

/* A row of the list, as the index keeps it. The last one of a name counts. */
static void learn(struct master *x, const struct mupdate_row *row, uint64_t offset)
{
    struct mupdate_entry *e = mupdate_index_add(&x->now, row->name);
    e->offset = offset;
    if (row->kind == MUPDATE_ROW_MAILBOX)
        mupdate_index_set(&x->now, e, row->server, row->partition, row->acl);
    else {
        mupdate_index_clear_active(&x->now, e);
        e->reserved = row->kind == MUPDATE_ROW_RESERVED;
    }
}

int master_pump(struct master *x, unsigned timeout_ms, struct err *err)
{
    int rc = RAFTDIR_EAGAIN;
    for (unsigned n = 0; n < PUMP_ROWS; n++) {
        struct mupdate_row row;
        uint64_t offset;
        int got = mupdate_source_next(x->source, n ? 0 : timeout_ms, &row, err);
        if (got == RAFTDIR_EAGAIN)
            break;
        if (got)
            return got;
        rc = 0;
        if (row.kind == MUPDATE_ROW_END) {
            x->list_done = true;
            x->list_end = x->spool.written;
            x->current_ms = ctl_now_ms();
            break;
        }
        if (row.kind == MUPDATE_ROW_CURRENT) {
            x->nooping = false;
            x->current_ms = x->noop_ms;
            continue;
        }
        if ((got = mupdate_spool_put(&x->spool, &row, &offset, err)))
            return got;
        if (!x->list_done)
            learn(x, &row, offset);
    }
    return rc;
}

int master_read(struct master *x, bool updates, struct err *err)
{
    mupdate_spool_close(&x->spool);
    x->list_done = x->nooping = false;
    int rc = mupdate_spool_open(&x->spool, err);
    if (!rc)
        rc = mupdate_source_open(&x->so, &x->source, err);
    if (!rc)
        rc = mupdate_source_list(x->source, updates, err);
    uint64_t heard = ctl_now_ms();
    progress_begin(&x->im.progress, x->im.c, "reading the master", "mailboxes", 0);
    while (!rc && !x->list_done) {
        rc = master_pump(x, 500, err);
        uint64_t now = ctl_now_ms();
        if (!rc)
            heard = now;
        else if (rc == RAFTDIR_EAGAIN)
            rc = now - heard > LIST_SILENCE_MS ? err_set(err, RAFTDIR_ETIMEDOUT, "%s: its list stands still", x->so.address) : 0;
        if (master_stopped() && !rc && !x->list_done)
            rc = err_set(err, RAFTDIR_ECANCELED, "stopped");
        progress_tell(&x->im.progress, 0, x->now.active);
    }
    progress_end(&x->im.progress);
    x->there = x->now.active;
    return rc;
}

/* --- Differences --------------------------------------------------------------------------------------------------------------------- */

static void location(char *to, size_t size, const char *server, const char *partition)
{
    snprintf(to, size, "%s!%s", server, partition);
}

static void show(struct master *x, const char *what, const char *name, const struct mupdate_row *row, const struct raftdir_mailbox *here, bool acl, const char *would)
{
    struct ctl *c = x->im.c;
    if (!c->o.dry_run)
        return;
    uint64_t limit = c->o.has_limit ? c->o.limit : SHOWN_DEFAULT;
    if (limit && x->shown >= limit) {
        x->more++;
        return;
    }
    x->shown++;
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "difference", ctl_string(what));
        json_object_set_new(o, "name", ctl_string(name));
        json_t *there = json_null(), *ours = json_null();
        if (row) {
            there = json_object();
            json_object_set_new(there, "server", ctl_string(row->server));
            json_object_set_new(there, "partition", ctl_string(row->partition));
            json_object_set_new(there, "acl", ctl_string(row->acl));
            json_object_set_new(there, "reserved", json_boolean(row->kind == MUPDATE_ROW_RESERVED));
        }
        if (here) {
            ours = json_object();
            json_object_set_new(ours, "server", ctl_string(here->server));
            json_object_set_new(ours, "partition", ctl_string(here->partition));
            json_object_set_new(ours, "acl", ctl_string(here->acl));
            json_object_set_new(ours, "reserved", json_boolean(here->reserved));
        }
        json_object_set_new(o, "master", there);
        json_object_set_new(o, "raftdir", ours);
        json_object_set_new(o, "import", ctl_string(would));
        json_array_append_new(x->differences, o);
        return;
    }
    char a[SERVER_LEN_MAX + PARTITION_LEN_MAX + 64], b[sizeof a];
    if (!x->table)
        x->table = table_begin(c, "difference,mailbox,at the master,in raftdir,import would");
    snprintf(a, sizeof a, "-");
    snprintf(b, sizeof b, "-");
    if (row)
        location(a, sizeof a, row->server, row->partition);
    if (here)
        location(b, sizeof b, here->server, here->partition);
    table_cell(x->table, COLOR_WARN, "%s", what);
    table_cell(x->table, COLOR_NONE, "%s", name);
    table_cell(x->table, COLOR_NONE, "%s", acl && row ? row->acl : a);
    table_cell(x->table, COLOR_NONE, "%s", acl && here ? here->acl : b);
    table_cell(x->table, COLOR_DIM, "%s", would);
}

/* Would raftdir take it at all? A dry run asks nobody. */
static bool takable(struct master *x, const struct mupdate_row *row)
{
    struct err err = {0};
    Raftdir__Log__Mailbox m = RAFTDIR__LOG__MAILBOX__INIT;
    Raftdir__Log__Location l = RAFTDIR__LOG__LOCATION__INIT;
    l.server = (char *)row->server;
    l.partition = (char *)row->partition;
    m.name = (char *)row->name;
    m.location = &l;
    m.acl = (char *)row->acl;
    if (!op_mailbox_check(&m, &err))
        return true;
    import_malformed(&x->im, 0, row->name, err.text);
    return false;
}

/* The master and raftdir both know the name. */
static void both(struct master *x, const struct mupdate_row *row, const struct raftdir_mailbox *here)
{
    enum master_verdict v = master_decide(x, row, here);
    bool dry = x->im.c->o.dry_run;
    switch (v) {
    case MASTER_SAME:
        x->im.unchanged++;
        return;
    case MASTER_SKIPPED_THERE:
        x->skipped_there++;
        return;
    case MASTER_SKIPPED_HERE:
        x->skipped_here++;
        show(x, "other server", row->name, row, here, false, "leave it (--skip-server)");
        return;
    case MASTER_RESERVED_HERE:
    case MASTER_MOVING_HERE:
        x->reserved_here++;
        if (!dry)
            master_hold(x, row);
        show(x, v == MASTER_RESERVED_HERE ? "reserved here" : "moving here", row->name, row, here, false, "leave it");
        return;
    case MASTER_WRITE:
        break;
    }
    if (dry && !takable(x, row))
        return;
    bool server = strcmp(here->server, row->server) != 0, partition = !server && strcmp(here->partition, partition_of(row, here)) != 0;
    *(server ? &x->other_server : partition ? &x->other_partition : &x->other_acl) += 1;
    if (dry) {
        x->im.written++;
        show(x, server ? "other server" : partition ? "other partition" : "other ACL", row->name, row, here, !server && !partition, "change it");
    } else
        master_write(x, row, here);
}

/* Raftdir alone knows it. */
static void here_alone(struct master *x, const struct raftdir_mailbox *here)
{
    if (skipped(x, here->server)) {
        x->skipped_here++;
        return;
    }
    if (here->reserved) {
        show(x, "reserved here", here->name, NULL, here, false, "leave it");
        return;
    }
    const struct mupdate_entry *was = x->has_before ? mupdate_index_find(&x->before, here->name) : NULL;
    if (was && was->active && master_may_delete(x, here, mupdate_index_server(&x->before, was))) {
        master_delete(x, here); /* gone there while the connection was lost */
        return;
    }
    x->only_here++;
    show(x, "only here", here->name, NULL, here, false, "leave it");
}

static void visit(struct master *x, const struct raftdir_mailbox *here)
{
    struct mupdate_entry *e = mupdate_index_find(&x->now, here->name);
    struct mupdate_row row;
    struct err err = {0};
    if (!e || (!e->active && !e->reserved)) {
        here_alone(x, here);
        return;
    }
    e->seen = true;
    if (e->active && !here->reserved && !*here->moving_server && e->value == mupdate_index_value(here->server, here->partition, here->acl)) {
        if (skipped(x, here->server))
            x->skipped_there++;
        else
            x->im.unchanged++;
        return;
    }
    if (mupdate_spool_at(&x->spool, e->offset, &row, &err)) {
        import_fatal(&x->im, err.code, err.text);
        return;
    }
    if (e->active) {
        both(x, &row, here);
        return;
    }
    if (!here->reserved)
        show(x, "reserved there", here->name, &row, here, false, "leave it");
}

static void there_alone(struct master *x, const struct mupdate_row *row)
{
    if (row->kind == MUPDATE_ROW_RESERVED) {
        show(x, "reserved there", row->name, row, NULL, false, "leave it");
        return;
    }
    if (skipped(x, row->server)) {
        x->skipped_there++;
        return;
    }
    if (x->im.c->o.dry_run) {
        if (takable(x, row)) {
            x->only_there++;
            x->im.written++;
            show(x, "only there", row->name, row, NULL, false, "create it");
        }
    } else {
        x->only_there++;
        master_write(x, row, NULL);
    }
}

static void reset_counts(struct master *x)
{
    x->only_there = x->only_here = x->other_server = x->other_partition = x->other_acl = x->reserved_here = x->skipped_there = x->skipped_here = x->elsewhere = 0;
    x->im.reserved = x->im.unchanged = 0;
    x->spool.read_at = 0;
    for (size_t i = 0; i < x->now.size; i++)
        x->now.slots[i].seen = false;
}

/* Meanwhile the master goes on sending: it isn't kept waiting. What is lost with its connection is read anew later. */
static void take_in(struct master *x, uint64_t n)
{
    struct err err;
    if (x->im.c->o.follow && n % 256 == 0 && x->source) {
        int rc = master_pump(x, 0, &err);
        if (rc && rc != RAFTDIR_EAGAIN)
            mupdate_source_close(&x->source);
    }
}

void master_compare(struct master *x)
{
    struct import *im = &x->im;
    struct raftdir_filter f;
    raftdir_list *l = NULL;
    const struct raftdir_mailbox *here;
    struct mupdate_row row;
    struct err err = {0};
    uint64_t n = 0, offset;
    int rc;
    reset_counts(x);
    raftdir_filter_init(&f);
    f.reserved = 1;
    progress_begin(&im->progress, im->c, im->c->o.dry_run ? "comparing" : "importing", "mailboxes", 2 * x->there);
    if ((rc = raftdir_list_open(im->c->d, &f, &l)) < 0)
        import_fatal(im, rc, raftdir_message(im->c->d));
    while (!im->fatal && !im->stop && !master_stopped() && (rc = raftdir_list_next(l, &here)) > 0) {
        visit(x, here);
        import_redo(im);
        take_in(x, n);
        n++;
        progress_tell(&im->progress, n, n);
    }
    if (rc < 0)
        import_fatal(im, rc, raftdir_message(im->c->d));
    raftdir_list_close(&l);
    n = x->there;
    im->read = 0;
    while (!im->fatal && !im->stop && !master_stopped() && x->spool.read_at < x->list_end) {
        if ((rc = mupdate_spool_next(&x->spool, &row, &offset, &err))) {
            import_fatal(im, err.code, err.text);
            break;
        }
        const struct mupdate_entry *e = mupdate_index_find(&x->now, row.name);
        im->read++;
        if (e->offset != offset)
            continue; /* told again further on */
        im->reserved += row.kind == MUPDATE_ROW_RESERVED;
        if (!e->seen)
            there_alone(x, &row);
        import_redo(im);
        take_in(x, n);
        n++;
        progress_tell(&im->progress, n, im->read);
    }
    if (!im->c->o.dry_run)
        import_settle(im);
    progress_end(&im->progress);
}

/* --- The command --------------------------------------------------------------------------------------------------------------------- */

static int report(struct master *x, uint64_t spent_ms)
{
    struct import *im = &x->im;
    struct ctl *c = im->c;
    bool cut = !im->fatal && !c->o.follow && (im->stop || master_stopped());
    int exit_code = im->fatal ? ctl_exit_code(im->fatal) : cut ? EXIT_UNKNOWN : im->malformed ? EXIT_BAD_DATA : EXIT_DONE;
    const struct {
        const char *key, *label;
        uint64_t n;
        bool always;
    } rows[] = {
        {"read", "rows of the master", im->read, true},
        {"written", c->o.dry_run ? "would be created or changed" : "created or changed", im->written, true},
        {"unchanged", "there already, the same", im->unchanged, true},
        {"deleted", "deleted, as at the master", im->deleted, false},
        {"only_there", "  only at the master", x->only_there, c->o.dry_run},
        {"other_server", "  at another server", x->other_server, c->o.dry_run},
        {"other_partition", "  on another partition", x->other_partition, c->o.dry_run},
        {"other_acl", "  with another ACL", x->other_acl, c->o.dry_run},
        {"only_here", "only in raftdir, left as they are", x->only_here, false},
        {"reserved_here", "held or moving in raftdir, left so", x->reserved_here, false},
        {"reservations", "reserved at the master, not imported", im->reserved, false},
        {"skipped_there", "rows of skipped servers, ignored", x->skipped_there, false},
        {"skipped_here", "at skipped servers, left as they are", x->skipped_here, false},
        {"malformed", "can't be taken", im->malformed, false},
    };
    if (c->o.json) {
        json_t *o = json_object();
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            json_object_set_new(o, rows[i].key, json_integer((json_int_t)rows[i].n));
        json_object_set_new(o, "dry_run", json_boolean(c->o.dry_run));
        json_object_set_new(o, "complete", json_boolean(!im->fatal && !cut));
        json_object_set_new(o, "ms", json_integer((json_int_t)spent_ms));
        if (c->o.dry_run) {
            json_object_set(o, "differences", x->differences);
            json_object_set_new(o, "differences_not_shown", json_integer((json_int_t)x->more));
        }
        json_object_set(o, "malformed_records", im->bad);
        if (im->fatal)
            json_object_set_new(o, "error", ctl_error_json(im->fatal, im->fatal_text));
        ctl_json_print(o);
        return exit_code;
    }
    if (x->table)
        table_end(&x->table);
    char age[32], count[32];
    if (x->more) {
        ctl_count(x->more, count, sizeof count);
        printf("and %s more (--limit 0 shows all)\n", count);
    }
    if (x->shown)
        putchar('\n');
    ctl_age(spent_ms, age, sizeof age);
    printf("%s%s%s in %s\n", ctl_paint(c->color, COLOR_BOLD), c->o.dry_run ? "Dry run: nothing was changed" : "Import", ctl_paint(c->color, COLOR_NONE), age);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        import_say(rows[i].label, rows[i].n, rows[i].always);
    if (im->fatal) {
        exit_code = ctl_error(c, im->fatal, "%s", im->fatal_text);
        if (!c->o.dry_run)
            fputs("  What is counted above is done. Run the same import again when that is mended.\n", stderr);
    } else if (cut)
        fputs("raftdirctl: stopped; what is counted above is done\n", stderr);
    return exit_code;
}

/* From --mupdate-password-file or the environment: never from the command line, which others can see. */
static int read_password(struct master *x)
{
    struct ctl *c = x->im.c;
    const char *path = c->o.mupdate_password_file, *env = getenv("RAFTDIR_MUPDATE_PASSWORD");
    char line[PASSWORD_LEN_MAX + 2];
    struct stat st;
    if (!path) {
        x->password = mem_strdup(env);
        return 0;
    }
    FILE *in = fopen(path, "re");
    if (!in || !fgets(line, sizeof line, in)) {
        int rc = ctl_usage_error(c, "--mupdate-password-file %s: no password can be read there", path);
        if (in)
            fclose(in);
        return rc;
    }
    if (fstat(fileno(in), &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & (S_IRGRP | S_IROTH)))
        fprintf(stderr, "raftdirctl: %s can be read by others: chmod 600 it, and change the password if they aren't to know it\n", path);
    fclose(in);
    if (!strpbrk(line, "\r\n") && strlen(line) > PASSWORD_LEN_MAX) {
        explicit_bzero(line, sizeof line);
        return ctl_usage_error(c, "--mupdate-password-file %s: its first line, the password, is longer than %d bytes", path, PASSWORD_LEN_MAX);
    }
    line[strcspn(line, "\r\n")] = 0;
    x->password = mem_strdup(line);
    explicit_bzero(line, sizeof line);
    return 0;
}

static int prepare(struct master *x)
{
    struct ctl *c = x->im.c;
    const char *tls = c->o.mupdate_tls;
    x->so = (struct mupdate_source_options){.address = c->o.mupdate, .user = c->o.mupdate_user, .mechanism = c->o.mupdate_mechanism, .ca = c->o.mupdate_ca, .unverified = c->o.mupdate_unverified};
    if (c->args_n || c->o.server || c->o.format)
        return ctl_usage_error(c, "--mupdate takes neither a file nor --server or --format");
    if (c->o.follow && c->o.dry_run)
        return ctl_usage_error(c, "--follow changes raftdir, --dry-run does not: one of them");
    if (c->o.on_error && strcmp(c->o.on_error, "skip") && strcmp(c->o.on_error, "abort"))
        return ctl_usage_error(c, "--on-error is skip or abort");
    if (tls && strcmp(tls, "auto") && strcmp(tls, "starttls") && strcmp(tls, "implicit") && strcmp(tls, "no"))
        return ctl_usage_error(c, "--mupdate-tls is auto, starttls, implicit or no");
    if (tls)
        x->so.tls = !strcmp(tls, "auto") ? MUPDATE_TLS_AUTO : !strcmp(tls, "starttls") ? MUPDATE_TLS_STARTTLS : !strcmp(tls, "implicit") ? MUPDATE_TLS_IMPLICIT : MUPDATE_TLS_NO;
    int rc = read_password(x);
    x->so.password = x->password;
    return rc;
}

int ctl_import_master(struct ctl *c)
{
    struct master x = {0};
    struct err err = {0};
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND}; /* the second one ends it as ever */
    import_begin(&x.im, c);
    x.im.data = &x;
    x.im.again = again;
    x.differences = json_array();
    if (!x.differences)
        import_no_memory();
    uint64_t started = ctl_now_ms();
    int exit_code = prepare(&x);
    if (!exit_code) {
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        signal(SIGPIPE, SIG_IGN); /* OpenSSL writes to connections that are gone, and has no MSG_NOSIGNAL */
        exit_code = import_open(c);
    }
    if (!exit_code && master_read(&x, c->o.follow, &err))
        exit_code = master_error(c, &err);
    else if (!exit_code) {
        if (c->o.follow)
            exit_code = master_follow(&x);
        else {
            mupdate_source_close(&x.source);
            master_compare(&x);
        }
        if (!exit_code)
            exit_code = report(&x, ctl_now_ms() - started);
    }
    mupdate_source_close(&x.source);
    mupdate_spool_close(&x.spool);
    mupdate_index_free(&x.now);
    mupdate_index_free(&x.before);
    import_end(&x.im);
    json_decref(x.differences);
    if (x.password)
        explicit_bzero(x.password, strlen(x.password));
    free(x.password);
    return exit_code;
}
