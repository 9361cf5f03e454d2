/* ctl_watch.c - watch: changes as they happen, one a line, each with the position behind it, so that it can be gone on with by --from.
 *
 * Runs until it is stopped, or --limit events were told. Each line is flushed: a program that reads them acts on each at once. A node that is lost is replaced by another
 * without a word; when none could be asked for the timeout (-t, default 10 s), it ends with exit code 3. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"

#define TURN_MS 1000
#define GIVE_UP_MS 10000
#define POSITION_LEN 64
#define POSITION_WIDTH 20
#define KIND_WIDTH 8
#define NAME_WIDTH 40

void ctl_position(const struct raftdir_position *p, char *buf, size_t size)
{
    if (p->done == RAFTDIR_DONE_ALL)
        snprintf(buf, size, "%" PRIu64 ":%" PRIu64 ":all", p->incarnation, p->index);
    else
        snprintf(buf, size, "%" PRIu64 ":%" PRIu64 ":%" PRIu32, p->incarnation, p->index, p->done);
}

/* One number of a position, and the character behind it. */
static bool number(const char **p, char end, uint64_t max, uint64_t *n_r)
{
    char *stop;
    if (**p < '0' || **p > '9')
        return false;
    errno = 0;
    *n_r = strtoull(*p, &stop, 10);
    if (errno || *stop != end || *n_r > max)
        return false;
    *p = stop + (end != '\0');
    return true;
}

static bool position_parse(const char *s, struct raftdir_position *p)
{
    uint64_t done;
    if (!number(&s, ':', UINT64_MAX, &p->incarnation) || !p->incarnation || !number(&s, ':', UINT64_MAX, &p->index))
        return false;
    if (!strcmp(s, "all")) {
        p->done = RAFTDIR_DONE_ALL;
        return true;
    }
    if (!number(&s, '\0', UINT32_MAX, &done))
        return false;
    p->done = (uint32_t)done;
    return true;
}

static const char *kind_text(int kind)
{
    static const char *const texts[] = {"?", "changed", "deleted", "renamed", "reserved", "progress"};
    return kind >= RAFTDIR_EVENT_CHANGED && kind <= RAFTDIR_EVENT_PROGRESS ? texts[kind] : texts[0];
}

static void print_json(const struct raftdir_event *e, const char *position)
{
    json_t *o = json_object();
    json_object_set_new(o, "event", ctl_string(kind_text(e->kind)));
    if (e->kind != RAFTDIR_EVENT_PROGRESS) {
        json_object_set_new(o, "name", ctl_string(e->name));
        if (*e->old_name)
            json_object_set_new(o, "old_name", ctl_string(e->old_name));
        json_object_set_new(o, "mailbox", e->m ? ctl_mailbox_json(e->m) : json_null());
    }
    json_object_set_new(o, "position", ctl_string(position));
    ctl_json_print(o);
}

/* What comes from a directory doesn't command a terminal. */
static void put_text(const char *s, int width)
{
    int n = 0;
    for (; *s; s++) {
        putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
        n += ((unsigned char)*s & 0xc0) != 0x80; /* columns: characters of UTF-8 */
    }
    printf("%*s", n < width ? width - n : 0, "");
}

static void print_line(struct ctl *c, const struct raftdir_event *e, const char *position)
{
    enum ctl_color color = e->kind == RAFTDIR_EVENT_DELETED ? COLOR_BAD : e->kind == RAFTDIR_EVENT_PROGRESS ? COLOR_DIM : COLOR_NONE;
    const char *off = color ? ctl_paint(c->color, COLOR_NONE) : "";
    printf("%s%-*s%s  ", ctl_paint(c->color, COLOR_DIM), POSITION_WIDTH, position, ctl_paint(c->color, COLOR_NONE));
    if (e->kind == RAFTDIR_EVENT_PROGRESS) {
        printf("%s%s%s\n", ctl_paint(c->color, color), kind_text(e->kind), off);
        return;
    }
    printf("%s%-*s%s  ", color ? ctl_paint(c->color, color) : "", KIND_WIDTH, kind_text(e->kind), off);
    put_text(e->name, e->m || *e->old_name ? NAME_WIDTH : 0);
    if (e->m) {
        fputs("  ", stdout);
        put_text(e->m->server, 0);
        putchar('!');
        put_text(e->m->partition, 0);
        if (*e->m->moving_server) {
            fputs("  moving to ", stdout);
            put_text(e->m->moving_server, 0);
            putchar('!');
            put_text(e->m->moving_partition, 0);
        }
    }
    if (*e->old_name) {
        fputs("  from ", stdout);
        put_text(e->old_name, 0);
    }
    putchar('\n');
}

static int watch_loop(struct ctl *c, raftdir_watch *w)
{
    uint64_t give_up = c->o.timeout_ms ? c->o.timeout_ms : GIVE_UP_MS, told = 0, failing_since = 0;
    for (;;) {
        const struct raftdir_event *e;
        char position[POSITION_LEN];
        int rc = raftdir_watch_next(w, TURN_MS, &e);
        if (rc == 0) {
            ctl_position(&e->position, position, sizeof position);
            if (c->o.json)
                print_json(e, position);
            else
                print_line(c, e, position);
            if (fflush(stdout) == EOF)
                return EXIT_INTERNAL; /* main says why */
            told += e->kind != RAFTDIR_EVENT_PROGRESS;
            if (c->o.limit && told >= c->o.limit)
                return EXIT_DONE;
        }
        if (rc == 0 || rc == RAFTDIR_EAGAIN) {
            failing_since = 0;
            continue;
        }
        uint64_t now = ctl_now_ms();
        if (!failing_since)
            failing_since = now;
        if (rc == RAFTDIR_ECOMPACTED || rc == RAFTDIR_EFOREIGN || ctl_exit_code(rc) != EXIT_UNKNOWN || now - failing_since >= give_up)
            return ctl_error_of(c, c->d, rc, NULL);
    }
}

int ctl_watch(struct ctl *c)
{
    struct raftdir_watch_filter f;
    struct raftdir_position from = {0};
    raftdir_watch_filter_init(&f);
    f.prefix = c->o.prefix;
    f.server = c->o.server;
    f.partition = c->o.partition;
    f.reserved = c->o.reserved;
    if (c->o.from && !position_parse(c->o.from, &from))
        return ctl_usage_error(c, "--from is a position, INCARNATION:INDEX:DONE as `watch` prints it, not \"%s\"", c->o.from);
    int rc = ctl_open(c);
    if (rc)
        return rc;
    raftdir_watch *w;
    rc = raftdir_watch_open(c->d, &f, c->o.from ? &from : NULL, &w);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    rc = watch_loop(c, w);
    raftdir_watch_close(&w);
    return rc;
}
