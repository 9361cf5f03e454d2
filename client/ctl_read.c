/* ctl_read.c - lookup, list, visible, rights, barrier. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"

/* "a,b,c" split in place; the array is given, the strings are in *copy_r, given as well. */
static const char **split(const char *list, char **copy_r, size_t *n_r)
{
    *n_r = 0;
    *copy_r = NULL;
    if (!list || !*list)
        return NULL;
    size_t n = 1;
    for (const char *p = list; *p; p++)
        n += *p == ',';
    const char **words = calloc(n, sizeof *words);
    *copy_r = strdup(list);
    if (!words || !*copy_r) {
        fputs("raftdirctl: out of memory\n", stderr);
        exit(EXIT_INTERNAL);
    }
    for (char *save = NULL, *w = strtok_r(*copy_r, ",", &save); w; w = strtok_r(NULL, ",", &save))
        words[(*n_r)++] = w;
    return words;
}

/* A stale answer is told: the reader at 3 a.m. must not take it for the present. */
static void tell_age(struct ctl *c)
{
    struct raftdir_answer a;
    raftdir_answer(c->d, &a);
    if (a.age_ms < 0 && c->o.level != RAFTDIR_LINEARIZABLE)
        fprintf(stderr, "%snote: %s has no contact with a leader; how old this is, is not known%s\n", ctl_paint(c->color_err, COLOR_WARN), a.node,
                ctl_paint(c->color_err, COLOR_NONE));
    else if (a.age_ms > 1000) {
        char age[32];
        ctl_age((uint64_t)a.age_ms, age, sizeof age);
        fprintf(stderr, "%snote: %s's state may be %s old%s\n", ctl_paint(c->color_err, COLOR_WARN), a.node, age, ctl_paint(c->color_err, COLOR_NONE));
    }
}

/* "Not there" is an answer like others: it may be an old one, at level local, and then that must be seen too. */
static int not_there(struct ctl *c, int rc, const char *name)
{
    if (rc != RAFTDIR_ENOTFOUND)
        return ctl_error_of(c, c->d, rc, name);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "error", ctl_error_json(rc, raftdir_message(c->d)));
        json_object_set_new(o, "answer", ctl_answer_json(c->d));
        ctl_json_print(o);
        return ctl_exit_code(rc);
    }
    rc = ctl_error_of(c, c->d, rc, name);
    if (strchr(name, '@') && !c->o.by_user && !c->o.by_uniqueid)
        fputs("  a name is in Cyrus' internal form (example.org!user.anna); for the INBOX of a user: `raftdirctl lookup --user USER`\n", stderr);
    tell_age(c);
    return rc;
}

int ctl_lookup(struct ctl *c)
{
    if (c->o.by_uniqueid && c->o.by_user)
        return ctl_usage_error(c, "--user and --by-uniqueid exclude each other");
    int exit_code = ctl_open_read(c);
    if (exit_code)
        return exit_code;
    json_t *list = c->args_n > 1 && c->o.json ? json_array() : NULL;
    for (int i = 0; i < c->args_n; i++) {
        const struct raftdir_mailbox *m;
        int rc = c->o.by_uniqueid ? raftdir_lookup_uniqueid(c->d, c->args[i], &m)
                 : c->o.by_user   ? raftdir_lookup_user(c->d, c->args[i], &m)
                                  : raftdir_lookup(c->d, c->args[i], &m);
        if (rc < 0) {
            int code;
            if (list) {
                json_t *o = json_object();
                json_object_set_new(o, "name", ctl_string(c->args[i]));
                json_object_set_new(o, "error", ctl_error_json(rc, raftdir_message(c->d)));
                if (rc == RAFTDIR_ENOTFOUND)
                    json_object_set_new(o, "answer", ctl_answer_json(c->d));
                json_array_append_new(list, o);
                code = ctl_exit_code(rc);
            } else
                code = not_there(c, rc, c->args[i]);
            if (code > exit_code)
                exit_code = code;
            continue;
        }
        if (c->o.json) {
            json_t *o = ctl_mailbox_json(m);
            json_object_set_new(o, "answer", ctl_answer_json(c->d));
            if (list)
                json_array_append_new(list, o);
            else
                ctl_json_print(o);
        } else {
            if (i)
                putchar('\n');
            ctl_mailbox_print(c, m);
        }
    }
    if (list) {
        json_t *o = json_object();
        json_object_set_new(o, "mailboxes", list);
        ctl_json_print(o);
    } else if (!c->o.json && exit_code == 0)
        tell_age(c);
    return exit_code;
}

static int print_rows(struct ctl *c, raftdir_list *l, bool visible)
{
    const struct raftdir_mailbox *m;
    uint64_t n = 0, touched, skips;
    int rc;
    struct ctl_table *t = NULL;
    if (c->o.json)
        fputs("{\"mailboxes\":[", stdout);
    else
        t = table_begin(c, visible ? "MAILBOX,SERVER,PARTITION,RIGHTS" : "MAILBOX,SERVER,PARTITION,ACL");
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        if (c->o.json) {
            json_t *o = ctl_mailbox_json(m);
            fputs(n ? ",\n" : "\n", stdout); /* a row a line */
            json_dumpf(o, stdout, JSON_COMPACT);
            json_decref(o);
        } else {
            table_cell(t, m->reserved ? COLOR_DIM : COLOR_NONE, "%s", m->name);
            table_cell(t, COLOR_NONE, "%s", m->server);
            table_cell(t, COLOR_NONE, "%s", m->partition);
            if (visible)
                table_cell(t, COLOR_NONE, "%s", m->rights);
            else
                table_cell(t, COLOR_DIM, "%s%s", m->reserved ? "(reserved) " : *m->moving_server ? "(moving) " : "", m->acl);
        }
        n++;
    }
    raftdir_list_counters(l, &touched, &skips);
    if (c->o.json) {
        json_t *tail = json_object();
        json_object_set_new(tail, "count", json_integer((json_int_t)n));
        json_object_set_new(tail, "touched", json_integer((json_int_t)touched));
        json_object_set_new(tail, "skips", json_integer((json_int_t)skips));
        json_object_set_new(tail, "complete", json_boolean(rc == 0));
        json_object_set_new(tail, "answer", ctl_answer_json(c->d));
        struct raftdir_position p;
        char position[64];
        if (raftdir_list_position(l, &p) == 0) {
            ctl_position(&p, position, sizeof position);
            json_object_set_new(tail, "position", ctl_string(position));
        }
        if (rc < 0)
            json_object_set_new(tail, "error", ctl_error_json(rc, raftdir_message(c->d)));
        char *text = json_dumps(tail, JSON_COMPACT);
        printf("\n],%s\n", text ? text + 1 : "}"); /* the tail's fields belong to the outer object */
        free(text);
        json_decref(tail);
        return ctl_exit_code(rc);
    }
    table_end(&t);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, n ? "the list is not complete" : NULL);
    char count[32];
    ctl_count(n, count, sizeof count);
    fflush(stdout);
    if (!n || c->color)
        fprintf(stderr, "%s mailbox%s\n", count, n == 1 ? "" : "es");
    tell_age(c);
    return EXIT_DONE;
}

int ctl_list(struct ctl *c)
{
    struct raftdir_filter f;
    raftdir_filter_init(&f);
    f.prefix = c->o.prefix;
    f.pattern = c->args_n ? c->args[0] : NULL;
    f.server = c->o.server;
    f.partition = c->o.partition;
    f.after = c->o.after;
    f.limit = c->o.limit;
    f.reserved = c->o.reserved;
    int rc = ctl_open_read(c);
    if (rc)
        return rc;
    raftdir_list *l;
    rc = raftdir_list_open(c->d, &f, &l);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    rc = print_rows(c, l, false);
    raftdir_list_close(&l);
    return rc;
}

int ctl_visible(struct ctl *c)
{
    struct raftdir_visible v;
    raftdir_visible_init(&v);
    char *copy;
    const char **groups = split(c->o.groups, &copy, &v.groups_n);
    v.groups = groups;
    v.user = c->args[0];
    v.rights = c->o.rights;
    v.pattern = c->o.pattern;
    v.after = c->o.after;
    v.limit = c->o.limit;
    int rc = ctl_open_read(c);
    if (!rc) {
        raftdir_list *l;
        if ((rc = raftdir_visible_open(c->d, &v, &l)) < 0)
            rc = ctl_error_of(c, c->d, rc, NULL);
        else {
            rc = print_rows(c, l, true);
            raftdir_list_close(&l);
        }
    }
    free(groups);
    free(copy);
    return rc;
}

int ctl_rights(struct ctl *c)
{
    char *copy;
    size_t n;
    const char **groups = split(c->o.groups, &copy, &n);
    const struct raftdir_mailbox *m;
    int rc = ctl_open_read(c);
    if (!rc) {
        rc = raftdir_my_rights(c->d, c->args[0], c->args[1], groups, n, &m);
        if (rc < 0)
            rc = not_there(c, rc, c->args[0]);
        else if (c->o.json) {
            json_t *o = json_object();
            json_object_set_new(o, "name", ctl_string(m->name));
            json_object_set_new(o, "user", ctl_string(c->args[1]));
            json_object_set_new(o, "rights", ctl_string(m->rights));
            json_object_set_new(o, "answer", ctl_answer_json(c->d));
            ctl_json_print(o);
        } else {
            puts(*m->rights ? m->rights : "(none)");
            tell_age(c);
        }
    }
    free(groups);
    free(copy);
    return rc;
}

int ctl_barrier(struct ctl *c)
{
    uint64_t index = 0;
    if (c->args_n) {
        char *end;
        errno = 0;
        index = strtoull(c->args[0], &end, 10);
        if (errno || *end || end == c->args[0])
            return ctl_usage_error(c, "INDEX is a number, not \"%s\"", c->args[0]);
    }
    if (!c->o.level && !index)
        c->o.level = RAFTDIR_LINEARIZABLE; /* what is done by now */
    int rc = ctl_open(c);
    if (rc)
        return rc;
    /* An index belongs to an incarnation: learn the node's. */
    const struct raftdir_node_status *s;
    if (index && ((rc = raftdir_status(c->d, &s)) < 0))
        return ctl_error_of(c, c->d, rc, NULL);
    rc = raftdir_barrier(c->d, index);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (c->o.json)
        ctl_json_print(ctl_answer_json(c->d));
    return EXIT_DONE;
}
