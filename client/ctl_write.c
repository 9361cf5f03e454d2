/* ctl_write.c - the commands that change one thing. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "ctl.h"

/* NAME and LOCATION the other way round: "be1!p1 user.anna" would be the mailbox p1 of a domain be1, at a server user.anna. */
static bool swapped(const char *name, const char *location)
{
    const char *in_domain = strstr(location, "!user."), *name_in_domain = strchr(name, '!');
    return (!strncmp(location, "user.", 5) || in_domain) && strncmp(name_in_domain ? name_in_domain + 1 : name, "user.", 5) != 0 &&
           strncmp(name, "DELETED.", 8) != 0;
}

int ctl_location(struct ctl *c, const char *text, char **server_r, const char **partition_r)
{
    *server_r = strdup(text);
    if (!*server_r)
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    char *bang = strchr(*server_r, '!');
    if (bang)
        *bang = '\0';
    *partition_r = bang ? bang + 1 : "";
    if (**server_r && !swapped(c->args[0], text))
        return 0;
    if (**server_r) {
        free(*server_r);
        *server_r = NULL;
        return ctl_usage_error(c, "\"%s\" looks like a mailbox and \"%s\" like its location: the name comes first (`raftdirctl batch` if that is meant)", text,
                               c->args[0]);
    }
    free(*server_r);
    *server_r = NULL;
    return ctl_usage_error(c, "\"%s\" is no location: want SERVER!PARTITION", text);
}

/* "anna lrs bob lr", or with tabs (then an identifier may have spaces): the form that is stored. Given; NULL without memory. */
static char *acl_of(const char *text)
{
    const char *between = strchr(text, '\t') ? "\t" : " ";
    char *acl = malloc(strlen(text) + 2), *p = acl;
    if (!acl)
        return NULL;
    for (text += strspn(text, between); *text; text += strspn(text, between)) {
        size_t n = strcspn(text, between);
        memcpy(p, text, n);
        p += n;
        *p++ = '\t';
        text += n;
    }
    *p = '\0';
    return acl;
}

/* Fields from the options. *acl_r is given. */
static int mailbox_of(struct ctl *c, struct raftdir_mailbox *m, char **acl_r)
{
    const struct ctl_options *o = &c->o;
    raftdir_mailbox_init(m);
    m->name = c->args[0];
    *acl_r = NULL;
    if (o->acl && !(*acl_r = acl_of(o->acl)))
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    m->acl = *acl_r;
    m->mbtype = o->mbtype;
    m->uniqueid = o->uniqueid;
    m->legacy_specialuse = o->specialuse;
    m->jmapid = o->jmapid;
    m->name_history = o->name_history;
    m->mtime = o->mtime;
    m->uidvalidity = o->uidvalidity;
    m->createdmodseq = o->createdmodseq;
    m->foldermodseq = o->foldermodseq;
    m->fields = o->fields;
    return 0;
}

/* Adds the preconditions that were asked for, writes the batch, tells the outcome. `rc` is that of adding the operation. Destroys the batch. */
static int finish(struct ctl *c, raftdir_batch *b, int rc, const char *what)
{
    const struct raftdir_result *r = NULL;
    int exit_code;
    if (!b)
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    if (c->o.if_absent && (c->o.if_present || c->o.if_generation)) {
        raftdir_batch_destroy(&b);
        return ctl_usage_error(c, "--if-absent and --if-%s exclude each other", c->o.if_present ? "present" : "generation");
    }
    if (!rc && c->o.if_absent)
        rc = raftdir_batch_if(b, RAFTDIR_IF_ABSENT, 0, NULL);
    if (!rc && c->o.if_present)
        rc = raftdir_batch_if(b, RAFTDIR_IF_PRESENT, 0, NULL);
    if (!rc && c->o.if_generation)
        rc = raftdir_batch_if(b, RAFTDIR_IF_GENERATION, c->o.generation, NULL);
    if (c->o.has_epoch)
        raftdir_batch_set_store_epoch(b, c->o.epoch);
    if (rc < 0)
        exit_code = ctl_error(c, rc, "%s: %s", c->args[0], rc == RAFTDIR_EINVAL ? "a name or location is empty" : raftdir_strerror(rc));
    else if (!(exit_code = ctl_open(c))) {
        rc = raftdir_write(c->d, b, &r);
        if (rc < 0)
            exit_code = ctl_error_of(c, c->d, rc, c->args[0]);
        else {
            uint32_t changed = r->ops_n ? r->ops[0].changed : 0;
            if (c->o.json) {
                json_t *o = json_object();
                json_object_set_new(o, "name", ctl_string(c->args[0]));
                json_object_set_new(o, "changed", json_integer(changed));
                json_object_set_new(o, "generation", json_integer(r->ops_n ? (json_int_t)r->ops[0].generation : 0));
                json_object_set_new(o, "mailbox_id", json_integer(r->ops_n ? (json_int_t)r->ops[0].mailbox_id : 0));
                json_object_set_new(o, "index", json_integer((json_int_t)r->index));
                ctl_json_print(o);
            } else if (!changed)
                printf("%s: nothing to change\n", c->args[0]);
            else if (changed == 1)
                printf("%s: %s\n", c->args[0], what);
            else
                printf("%s: %s, %" PRIu32 " mailboxes\n", c->args[0], what, changed);
        }
    }
    raftdir_batch_destroy(&b);
    return exit_code;
}

static size_t token_len(const struct ctl *c)
{
    return c->o.token ? strlen(c->o.token) : 0;
}

/* create, put, activate: NAME LOCATION and fields. */
static int with_mailbox(struct ctl *c, int kind)
{
    struct raftdir_mailbox m;
    char *acl, *server = NULL;
    const char *partition;
    int exit_code = mailbox_of(c, &m, &acl);
    if (!exit_code && kind != 'u') {
        exit_code = ctl_location(c, c->args[1], &server, &partition);
        m.server = server;
        m.partition = partition;
    }
    if (!exit_code) {
        raftdir_batch *b = raftdir_batch_create();
        int rc = !b            ? RAFTDIR_ENOMEM
                 : kind == 'c' ? raftdir_batch_add_create(b, &m, c->o.token, token_len(c))
                 : kind == 'p' ? raftdir_batch_add_put(b, &m)
                 : kind == 'a' ? raftdir_batch_add_activate(b, &m, c->o.token, token_len(c), c->o.take_over)
                               : raftdir_batch_add_update(b, &m);
        exit_code = finish(c, b, rc, kind == 'c' ? "created" : kind == 'p' ? "put" : kind == 'a' ? "active" : "updated");
    }
    free(server);
    free(acl);
    return exit_code;
}

int ctl_create(struct ctl *c)
{
    return with_mailbox(c, 'c');
}

int ctl_put(struct ctl *c)
{
    return with_mailbox(c, 'p');
}

int ctl_activate(struct ctl *c)
{
    return with_mailbox(c, 'a');
}

int ctl_update(struct ctl *c)
{
    const struct ctl_options *o = &c->o;
    if (!o->acl && !o->mbtype && !o->uniqueid && !o->specialuse && !o->jmapid && !o->name_history && !o->fields)
        return ctl_usage_error(c, "no field is given that is to be changed");
    return with_mailbox(c, 'u');
}

/* Commands of NAME and a location, which may be absent (NULL). */
static int at_location(struct ctl *c, const char *location, int kind)
{
    char *server = NULL;
    const char *partition = NULL, *name = c->args[0];
    int exit_code = location ? ctl_location(c, location, &server, &partition) : 0;
    if (exit_code)
        return exit_code;
    raftdir_batch *b = raftdir_batch_create();
    int rc = RAFTDIR_ENOMEM;
    const char *what = "";
    switch (b ? kind : 0) {
    case 'r':
        rc = raftdir_batch_add_reserve(b, name, server, partition, c->o.token, token_len(c), c->o.ttl_ms);
        what = "reserved";
        break;
    case 'd':
        rc = raftdir_batch_add_deactivate(b, name, server, partition, c->o.token, token_len(c));
        what = "deactivated";
        break;
    case 'x':
        rc = raftdir_batch_add_delete(b, name, c->o.subtree, server, partition, c->o.token, token_len(c));
        what = "deleted";
        break;
    case 'n':
        rc = raftdir_batch_add_rename(b, name, c->args[1], c->o.subtree, server, partition);
        what = "renamed";
        break;
    case 'm':
        rc = raftdir_batch_add_move_begin(b, name, server, partition, c->o.subtree);
        what = "moving";
        break;
    }
    exit_code = finish(c, b, rc, what);
    free(server);
    return exit_code;
}

int ctl_reserve(struct ctl *c)
{
    return at_location(c, c->args[1], 'r');
}

int ctl_deactivate(struct ctl *c)
{
    return at_location(c, c->args_n > 1 ? c->args[1] : NULL, 'd');
}

/* Whoever deletes a subtree by hand sees first how much it is. */
static int confirm_subtree(struct ctl *c)
{
    struct raftdir_filter f;
    const struct raftdir_mailbox *m;
    raftdir_list *l;
    uint64_t n = 0;
    const size_t root = strlen(c->args[0]);
    raftdir_filter_init(&f);
    f.prefix = c->args[0];
    int rc = ctl_open_read(c); /* what is shown must not be older than what is deleted */
    if (rc)
        return rc;
    if ((rc = raftdir_list_open(c->d, &f, &l)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    while ((rc = raftdir_list_next(l, &m)) > 0)
        n += !m->name[root] || m->name[root] == '.';
    raftdir_list_close(&l);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    raftdir_close(&c->d);
    if (!n)
        return 0; /* the directory says why not */
    char count[32], answer[16];
    ctl_count(n, count, sizeof count);
    fprintf(stderr, "Delete %s and everything below it: %s mailbox%s. Sure? [y/N] ", c->args[0], count, n == 1 ? "" : "es");
    if (!fgets(answer, sizeof answer, stdin) || (answer[0] != 'y' && answer[0] != 'Y')) {
        fputs("Nothing was deleted.\n", stderr);
        return EXIT_NO;
    }
    return 0;
}

int ctl_delete(struct ctl *c)
{
    if (c->o.subtree && !c->o.yes && !c->o.json && isatty(STDIN_FILENO) && isatty(STDERR_FILENO)) {
        int rc = confirm_subtree(c);
        if (rc)
            return rc;
    }
    return at_location(c, c->o.location, 'x');
}

int ctl_rename(struct ctl *c)
{
    return at_location(c, c->o.location, 'n');
}

int ctl_move_begin(struct ctl *c)
{
    return at_location(c, c->args[1], 'm');
}

int ctl_move_commit(struct ctl *c)
{
    raftdir_batch *b = raftdir_batch_create();
    return finish(c, b, b ? raftdir_batch_add_move_commit(b, c->args[0], c->o.subtree) : RAFTDIR_ENOMEM, "moved");
}

int ctl_move_abort(struct ctl *c)
{
    raftdir_batch *b = raftdir_batch_create();
    return finish(c, b, b ? raftdir_batch_add_move_abort(b, c->args[0], c->o.subtree) : RAFTDIR_ENOMEM, "stays where it was");
}

int ctl_setacl(struct ctl *c)
{
    raftdir_batch *b = raftdir_batch_create();
    if (c->args_n == 3)
        return finish(c, b, b ? raftdir_batch_add_setacl_one(b, c->args[0], c->args[1], c->args[2]) : RAFTDIR_ENOMEM, "ACL changed");
    char *acl = acl_of(c->args[1]);
    unsigned parts = 0;
    for (const char *p = acl; p && (p = strchr(p, '\t')); p++)
        parts++;
    if (parts % 2) {
        free(acl);
        raftdir_batch_destroy(&b);
        return ctl_usage_error(c, "in the ACL \"%s\" an identifier has no rights; want \"anna lrs anyone lr\"", c->args[1]);
    }
    int exit_code = finish(c, b, b && acl ? raftdir_batch_add_setacl(b, c->args[0], acl) : RAFTDIR_ENOMEM, "ACL changed");
    free(acl);
    return exit_code;
}
