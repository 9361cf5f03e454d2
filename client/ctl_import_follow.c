/* ctl_import_follow.c - `raftdirctl import --mupdate --follow`: after the list, what changes at the master, until SIGINT or SIGTERM.
 *
 * Rows are taken in order, in batches of different names; each is decided on what raftdir has at that moment and written on condition that it still is so. The master holds changes back
 * for seconds unless it is asked: a NOOP every NOOP_MS, whose answer also tells how current we are.
 * A mailbox that the master deletes is deleted here only while raftdir has it at the server at which the master had it.
 *
 * The connection lost: it is made again, the list read and compared anew; what the master had before and has no longer was deleted meanwhile. A master that came back with much less than
 * it had isn't believed: that ends the following, with nothing changed. Raftdir lost: the rows wait in the spool.
 * A name that raftdir holds (somebody creates it there at this moment) or moves: the row is kept and tried again every HELD_MS, until another row of that name comes. */
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>
#include "ctl_import_master.h"
#include "raftdir/mem.h"

#define ROWS_AT_ONCE 256
#define NOOP_MS 25
#define ANSWER_MS 60000    /* without an answer to a NOOP the connection is taken for lost */
#define HELD_MS 5000
#define HELD_MAX 10000     /* more are left for the next comparison */
#define RETRY_MS 1000      /* raftdir can't be asked */
#define RECONNECT_MAX_MS 5000
#define TOLD_EVERY_MS 60000
#define FOLLOW_TIMEOUT_MS 10000
#define MISSING_MIN 100    /* fewer may be missing in a new list, or 1 % */

struct master_held {
    UT_hash_handle hh;
    char *text; /* name, server, partition, ACL */
    struct mupdate_row row;
};

static char *row_copy(const struct mupdate_row *row, struct mupdate_row *copy_r)
{
    const char *part[4] = {row->name, row->server, row->partition, row->acl};
    const char **to[4] = {&copy_r->name, &copy_r->server, &copy_r->partition, &copy_r->acl};
    size_t len[4], all = 0;
    for (int i = 0; i < 4; i++)
        all += len[i] = strlen(part[i]) + 1;
    char *text = mem_alloc(all), *p = text;
    copy_r->kind = row->kind;
    for (int i = 0; i < 4; i++) {
        memcpy(p, part[i], len[i]);
        *to[i] = p;
        p += len[i];
    }
    return text;
}

/* --- Held rows ----------------------------------------------------------------------------------------------------------------------- */

static void let_go(struct master *x, const char *name)
{
    struct master_held *h;
    HASH_FIND_STR(x->held, name, h);
    if (!h)
        return;
    HASH_DEL(x->held, h);
    free(h->text);
    free(h);
}

void master_hold(struct master *x, const struct mupdate_row *row)
{
    if (!x->im.c->o.follow || HASH_COUNT(x->held) >= HELD_MAX)
        return;
    struct master_held *h = mem_calloc(1, sizeof *h);
    h->text = row_copy(row, &h->row); /* before it is let go: it may be the same */
    let_go(x, row->name);
    HASH_ADD_KEYPTR(hh, x->held, h->row.name, strlen(h->row.name), h);
}

/* --- Telling ------------------------------------------------------------------------------------------------------------------------- */

static void tell(struct master *x, const char *event, const char *text)
{
    struct ctl *c = x->im.c;
    char age[32], there[32], changes[32];
    uint64_t now = ctl_now_ms(), behind = x->current_ms ? now - x->current_ms : 0;
    x->told_ms = now;
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "event", ctl_string(event));
        if (text)
            json_object_set_new(o, "text", ctl_string(text));
        json_object_set_new(o, "master", json_integer((json_int_t)x->now.active));
        json_object_set_new(o, "changes", json_integer((json_int_t)x->changes));
        json_object_set_new(o, "held", json_integer((json_int_t)HASH_COUNT(x->held)));
        json_object_set_new(o, "current", json_boolean(mupdate_spool_empty(&x->spool)));
        json_object_set_new(o, "behind_ms", json_integer((json_int_t)behind));
        ctl_json_print(o);
        fflush(stdout);
        return;
    }
    ctl_age(behind, age, sizeof age);
    ctl_count(x->source ? x->now.active : x->before.active, there, sizeof there);
    ctl_count(x->changes, changes, sizeof changes);
    bool terminal = isatty(STDERR_FILENO), status = !strcmp(event, "status");
    if (terminal)
        fputs("\r\033[K", stderr);
    if (!status)
        fprintf(stderr, "%s%s%s\n", event, text ? ": " : "", text ? text : "");
    if (status || !terminal)
        fprintf(stderr, "following %s: %s mailboxes there, %s changes taken, %u held back; %s%s%s", x->so.address, there, changes, HASH_COUNT(x->held),
                x->source ? "as the master was " : "not connected for ", age, x->source ? " ago" : "");
    if (!terminal)
        fputc('\n', stderr);
    fflush(stderr);
}

static void tell_sometimes(struct master *x)
{
    if (ctl_now_ms() - x->told_ms >= (isatty(STDERR_FILENO) && !x->im.c->o.json ? 500 : TOLD_EVERY_MS))
        tell(x, "status", NULL);
}

/* --- Rows ---------------------------------------------------------------------------------------------------------------------------- */

/* Forgets what stopped the writes. What was taken of the rows is done: they may be done again. */
static void recover(struct master *x)
{
    x->im.fatal = 0;
    import_discard(&x->im);
}

/* Can it be so for a while only? */
static bool passing(int code)
{
    int exit_code = ctl_exit_code(code);
    return exit_code == EXIT_UNKNOWN || code == RAFTDIR_EBUSY || code == RAFTDIR_ENOSPC;
}

/* Waits, unless it is to stop. */
static void pause_ms(unsigned ms)
{
    for (uint64_t until = ctl_now_ms() + ms, now; !master_stopped() && (now = ctl_now_ms()) < until;)
        poll(NULL, 0, (int)(until - now < 200 ? until - now : 200));
}

static void decide(struct master *x, const struct mupdate_row *row)
{
    const struct raftdir_mailbox *here;
    if (master_look(x, row->name, &here) < 0)
        return;
    if (row->kind == MUPDATE_ROW_DELETED) {
        if (master_may_delete(x, here, row->server))
            master_delete(x, here);
        return;
    }
    switch (master_decide(x, row, here)) {
    case MASTER_WRITE:
        master_write(x, row, here);
        break;
    case MASTER_RESERVED_HERE:
    case MASTER_MOVING_HERE:
        x->reserved_here++;
        master_hold(x, row);
        break;
    case MASTER_SKIPPED_HERE:
        x->skipped_here++;
        break;
    case MASTER_SKIPPED_THERE:
        x->skipped_there++;
        break;
    case MASTER_SAME:
        x->im.unchanged++;
        break;
    }
}

/* All of them, however long raftdir can't be asked. 0, or an exit code: it will never take them. */
static int apply(struct master *x, const struct mupdate_row *rows, unsigned n)
{
    for (bool told = false; !master_stopped();) {
        for (unsigned i = 0; i < n && !x->im.fatal; i++)
            decide(x, &rows[i]);
        import_settle(&x->im);
        if (!x->im.fatal) {
            if (told)
                tell(x, "raftdir answers again", NULL);
            return 0;
        }
        if (!passing(x->im.fatal))
            return ctl_error(x->im.c, x->im.fatal, "%s", x->im.fatal_text);
        if (!told)
            tell(x, "raftdir can't take changes, trying again", x->im.fatal_text);
        told = true;
        recover(x);
        pause_ms(RETRY_MS);
    }
    recover(x);
    return 0;
}

/* What the index says of a row before it is taken. False: there is nothing to do. */
static bool note(struct master *x, struct mupdate_row *row)
{
    struct mupdate_entry *e = mupdate_index_add(&x->now, row->name);
    let_go(x, row->name);
    switch (row->kind) {
    case MUPDATE_ROW_MAILBOX:
        mupdate_index_set(&x->now, e, row->server, row->partition, row->acl);
        return true;
    case MUPDATE_ROW_DELETED:
        e->reserved = false;
        if (!e->active)
            return false;
        row->server = mupdate_index_server(&x->now, e); /* where the master had it */
        mupdate_index_clear_active(&x->now, e);
        return true;
    case MUPDATE_ROW_RESERVED: /* held for a move: raftdir goes on to say where it still is */
        e->reserved = true;
        return false;
    default:
        return false;
    }
}

/* Rows of the spool, up to one whose name is among them already. */
static int take_rows(struct master *x)
{
    static struct mupdate_row rows[ROWS_AT_ONCE];
    static char *texts[ROWS_AT_ONCE];
    unsigned n = 0;
    int exit_code = 0;
    struct err err = {0};
    while (n < ROWS_AT_ONCE && !mupdate_spool_empty(&x->spool)) {
        struct mupdate_row row;
        uint64_t offset;
        bool again = false;
        if (mupdate_spool_next(&x->spool, &row, &offset, &err)) {
            exit_code = master_error(x->im.c, &err);
            break;
        }
        for (unsigned i = 0; i < n && !again; i++)
            again = !strcmp(rows[i].name, row.name);
        if (again) {
            x->spool.read_at = offset;
            break;
        }
        x->changes++;
        if (note(x, &row)) {
            texts[n] = row_copy(&row, &rows[n]);
            n++;
        }
    }
    if (!exit_code && n)
        exit_code = apply(x, rows, n);
    for (unsigned i = 0; i < n; i++)
        free(texts[i]);
    mupdate_spool_forget(&x->spool);
    return exit_code;
}

static int take_held(struct master *x)
{
    struct mupdate_row *rows = mem_calloc(HASH_COUNT(x->held) + 1, sizeof *rows);
    char **texts = mem_calloc(HASH_COUNT(x->held) + 1, sizeof *texts);
    unsigned n = 0;
    for (struct master_held *h = x->held; h; h = h->hh.next, n++)
        texts[n] = row_copy(&h->row, &rows[n]);
    for (unsigned i = 0; i < n; i++)
        let_go(x, rows[i].name); /* what is still so holds it again */
    uint64_t counted = x->reserved_here;
    int exit_code = n ? apply(x, rows, n) : 0;
    x->reserved_here = counted;
    for (unsigned i = 0; i < n; i++)
        free(texts[i]);
    free(texts);
    free(rows);
    return exit_code;
}

/* --- The connection ------------------------------------------------------------------------------------------------------------------ */

/* Names that the master had, and has no longer. */
static size_t missing(const struct master *x)
{
    size_t n = 0;
    for (size_t i = 0; i < x->before.size; i++) {
        const struct mupdate_entry *e = &x->before.slots[i], *now;
        if (e->a && e->active && (!(now = mupdate_index_same(&x->now, e)) || (!now->active && !now->reserved)))
            n++;
    }
    return n;
}

/* The list that was read becomes raftdir's. 0 or an exit code. */
static int compare(struct master *x)
{
    uint64_t written = x->im.written;
    char text[128];
    bool told = false;
    while (master_compare(x), x->im.fatal && !master_stopped()) {
        if (!passing(x->im.fatal))
            return ctl_error(x->im.c, x->im.fatal, "%s", x->im.fatal_text);
        if (!told)
            tell(x, "raftdir can't be compared, trying again", x->im.fatal_text);
        told = true;
        recover(x);
        pause_ms(RETRY_MS);
    }
    if (x->im.stop)
        return EXIT_BAD_DATA;
    if (master_stopped()) {
        recover(x);
        return 0;
    }
    mupdate_index_free(&x->before);
    x->has_before = false;
    snprintf(text, sizeof text, "%" PRIu64 " mailboxes of the master, %" PRIu64 " created or changed here", x->there, x->im.written - written);
    tell(x, "the list is taken", text);
    return 0;
}

static int reconnect(struct master *x, const char *why)
{
    struct err err = {0};
    unsigned wait = 1000;
    x->lost++;
    tell(x, "the master is lost", why);
    mupdate_index_free(&x->before);
    x->before = x->now;
    x->has_before = true;
    x->now = (struct mupdate_index){0};
    while (!master_stopped()) {
        mupdate_source_close(&x->source);
        mupdate_index_free(&x->now);
        int rc = master_read(x, true, &err);
        if (!rc)
            break;
        if (master_stopped())
            break;
        if (wait == 1000 || ctl_now_ms() - x->told_ms >= TOLD_EVERY_MS)
            tell(x, "trying again", err.text);
        pause_ms(wait);
        wait = 2 * wait < RECONNECT_MAX_MS ? 2 * wait : RECONNECT_MAX_MS;
    }
    if (master_stopped())
        return 0;
    size_t gone = missing(x), had = x->before.active;
    if (gone > MISSING_MIN && gone > had / 100) {
        err_set(&err, RAFTDIR_ECONFLICT, "%s: it came back without %zu of the %zu mailboxes that it had: nothing was changed. Started again, this command takes its list as it is, and deletes nothing",
                x->so.address, gone, had);
        return master_error(x->im.c, &err);
    }
    return compare(x);
}

/* The end of what is sent, or that there is none any more. */
static int keep_current(struct master *x, struct err *err)
{
    uint64_t now = ctl_now_ms();
    if (x->nooping && now - x->noop_ms > ANSWER_MS)
        return err_set(err, RAFTDIR_ETIMEDOUT, "%s: no answer for %u s", x->so.address, ANSWER_MS / 1000);
    if (x->nooping || now - x->noop_ms < NOOP_MS)
        return 0;
    x->noop_ms = now;
    x->nooping = true;
    return mupdate_source_noop(x->source, err);
}

static int go_on(struct master *x)
{
    uint64_t held_ms = ctl_now_ms();
    int exit_code = 0;
    struct err err = {0};
    while (!exit_code && !master_stopped() && !x->im.stop) {
        int rc = x->source ? keep_current(x, &err) : err_set(&err, RAFTDIR_EUNAVAIL, "the connection was lost while its list was compared");
        if (!rc)
            rc = master_pump(x, mupdate_spool_empty(&x->spool) ? NOOP_MS : 0, &err);
        if (rc && rc != RAFTDIR_EAGAIN) {
            exit_code = reconnect(x, err.text);
            continue;
        }
        if (!mupdate_spool_empty(&x->spool))
            exit_code = take_rows(x);
        if (!exit_code && x->held && ctl_now_ms() - held_ms >= HELD_MS) {
            exit_code = take_held(x);
            held_ms = ctl_now_ms();
        }
        tell_sometimes(x);
    }
    return exit_code;
}

int master_follow(struct master *x)
{
    if (!x->im.c->o.timeout_ms)
        raftdir_set_timeout(x->im.c->d, FOLLOW_TIMEOUT_MS);
    int exit_code = compare(x);
    if (!exit_code)
        exit_code = go_on(x);
    if (isatty(STDERR_FILENO) && !x->im.c->o.json)
        fputs("\r\033[K", stderr);
    for (struct master_held *h = x->held, *next; h; h = next) {
        next = h->hh.next;
        HASH_DEL(x->held, h);
        free(h->text);
        free(h);
    }
    return exit_code;
}
