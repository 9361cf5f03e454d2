/* ctl_batch.c - `raftdirctl batch`: JSON lines to one atomic write. A line that can't be read stops everything before anything is sent. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"
#include "raftdir/limits.h"

#define BATCH_LINE_MAX (1u << 20)

static const char *text(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static uint64_t number(const json_t *o, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(o, key));
    return n > 0 ? (uint64_t)n : 0;
}

static bool flag(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key));
}

static const struct {
    const char *key;
    char kind; /* s: string, n: number, b: true or false, *: anything */
} known_keys[] = {{"op", 's'},       {"name", 's'},        {"server", 's'},         {"partition", 's'},    {"acl", 's'},          {"mbtype", 's'},
                  {"uniqueid", 's'}, {"jmapid", 's'},      {"legacy_specialuse", 's'}, {"name_history", 's'}, {"mtime", 'n'},        {"uidvalidity", 'n'},
                  {"createdmodseq", 'n'}, {"foldermodseq", 'n'}, {"token", 's'},     {"ttl_ms", 'n'},       {"take_over", 'b'},    {"subtree", 'b'},
                  {"from", 's'},     {"to", 's'},          {"identifier", 's'},     {"rights", 's'},       {"if", '*'}};

/* A misspelt field must not be a field that is silently left out. */
static const char *unknown_key(const json_t *o, bool *wrong_type_r)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o, key, value) {
        size_t i = 0, n = sizeof known_keys / sizeof *known_keys;
        while (i < n && strcmp(known_keys[i].key, key))
            i++;
        *wrong_type_r = i < n;
        if (i == n)
            return key;
        char k = known_keys[i].kind;
        if ((k == 's' && !json_is_string(value)) || (k == 'n' && (!json_is_integer(value) || json_integer_value(value) < 0)) ||
            (k == 'b' && !json_is_boolean(value)))
            return key;
    }
    return NULL;
}

static int condition_of(raftdir_batch *b, const char *word, const char *name)
{
    if (!strcmp(word, "absent"))
        return raftdir_batch_if(b, RAFTDIR_IF_ABSENT, 0, name);
    if (!strcmp(word, "present"))
        return raftdir_batch_if(b, RAFTDIR_IF_PRESENT, 0, name);
    return RAFTDIR_EINVAL;
}

/* "absent", "present", {"generation": 5, "name": ...}, {"is": "absent", "name": ...}, or a list of them. */
static int add_condition(raftdir_batch *b, const json_t *j)
{
    if (json_is_string(j))
        return condition_of(b, json_string_value(j), NULL);
    if (json_is_object(j)) {
        const json_t *g = json_object_get(j, "generation");
        if (json_is_integer(g) && json_integer_value(g) >= 0)
            return raftdir_batch_if(b, RAFTDIR_IF_GENERATION, (uint64_t)json_integer_value(g), text(j, "name"));
        return text(j, "is") ? condition_of(b, text(j, "is"), text(j, "name")) : RAFTDIR_EINVAL;
    }
    if (!json_is_array(j))
        return RAFTDIR_EINVAL;
    for (size_t i = 0; i < json_array_size(j); i++) {
        const json_t *one = json_array_get(j, i);
        int rc = json_is_array(one) ? RAFTDIR_EINVAL : add_condition(b, one);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int add_operation(raftdir_batch *b, const json_t *o, const char **why_r)
{
    const char *op = text(o, "op"), *name = text(o, "name"), *server = text(o, "server"), *partition = text(o, "partition"), *token = text(o, "token");
    size_t token_len = token ? strlen(token) : 0;
    struct raftdir_mailbox m;
    raftdir_mailbox_init(&m);
    m.name = name;
    m.server = server;
    m.partition = partition;
    m.acl = text(o, "acl");
    m.mbtype = text(o, "mbtype");
    m.uniqueid = text(o, "uniqueid");
    m.legacy_specialuse = text(o, "legacy_specialuse");
    m.jmapid = text(o, "jmapid");
    m.name_history = text(o, "name_history");
    m.mtime = number(o, "mtime");
    m.uidvalidity = number(o, "uidvalidity");
    m.createdmodseq = number(o, "createdmodseq");
    m.foldermodseq = number(o, "foldermodseq");
    m.fields = (json_object_get(o, "mtime") ? RAFTDIR_F_MTIME : 0) | (json_object_get(o, "uidvalidity") ? RAFTDIR_F_UIDVALIDITY : 0) |
               (json_object_get(o, "createdmodseq") ? RAFTDIR_F_CREATEDMODSEQ : 0) | (json_object_get(o, "foldermodseq") ? RAFTDIR_F_FOLDERMODSEQ : 0);
    *why_r = "a field that this operation needs is missing or empty";
    if (!op)
        return RAFTDIR_EINVAL;
    if (!strcmp(op, "create"))
        return raftdir_batch_add_create(b, &m, token, token_len);
    if (!strcmp(op, "put"))
        return raftdir_batch_add_put(b, &m);
    if (!strcmp(op, "update"))
        return raftdir_batch_add_update(b, &m);
    if (!strcmp(op, "reserve"))
        return raftdir_batch_add_reserve(b, name, server, partition, token, token_len, number(o, "ttl_ms"));
    if (!strcmp(op, "activate"))
        return raftdir_batch_add_activate(b, &m, token, token_len, flag(o, "take_over"));
    if (!strcmp(op, "deactivate"))
        return raftdir_batch_add_deactivate(b, name, server, partition, token, token_len);
    if (!strcmp(op, "delete"))
        return raftdir_batch_add_delete(b, name, flag(o, "subtree"), server, partition, token, token_len);
    if (!strcmp(op, "rename"))
        return raftdir_batch_add_rename(b, text(o, "from") ? text(o, "from") : name, text(o, "to"), flag(o, "subtree"), server, partition);
    if (!strcmp(op, "setacl"))
        return text(o, "identifier") ? raftdir_batch_add_setacl_one(b, name, text(o, "identifier"), text(o, "rights"))
                                     : raftdir_batch_add_setacl(b, name, m.acl);
    if (!strcmp(op, "move_begin"))
        return raftdir_batch_add_move_begin(b, name, server, partition, flag(o, "subtree"));
    if (!strcmp(op, "move_commit"))
        return raftdir_batch_add_move_commit(b, name, flag(o, "subtree"));
    if (!strcmp(op, "move_abort"))
        return raftdir_batch_add_move_abort(b, name, flag(o, "subtree"));
    if (!strcmp(op, "noop"))
        return raftdir_batch_add_noop(b);
    *why_r = "no such operation";
    return RAFTDIR_EINVAL;
}

static int bad_line(struct ctl *c, unsigned long line, const char *fmt, const char *what)
{
    char message[512];
    snprintf(message, sizeof message, fmt, what);
    ctl_error(c, RAFTDIR_EINVAL, "line %lu: %s; nothing was changed", line, message);
    return EXIT_BAD_DATA;
}

/* The batch from the file. lines_r: the line of each operation, given. */
static int read_batch(struct ctl *c, FILE *in, raftdir_batch *b, unsigned long **lines_r)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t len;
    unsigned long n = 0;
    int exit_code = 0;
    while (!exit_code && (len = getline(&line, &size, in)) >= 0) {
        n++;
        if (strspn(line, " \t\r\n") == (size_t)len)
            continue;
        json_error_t error;
        bool wrong_type;
        json_t *o = (size_t)len <= BATCH_LINE_MAX ? json_loads(line, JSON_REJECT_DUPLICATES, &error) : NULL;
        const char *why = NULL, *key;
        int rc;
        if (!o)
            exit_code = bad_line(c, n, "%s", (size_t)len > BATCH_LINE_MAX ? "longer than a request can be" : error.text);
        else if (!json_is_object(o))
            exit_code = bad_line(c, n, "%s", "not a JSON object");
        else if ((key = unknown_key(o, &wrong_type)))
            exit_code = bad_line(c, n, wrong_type ? "\"%s\" has a value of the wrong type" : "no field is named \"%s\"", key);
        else if ((rc = add_operation(b, o, &why)) < 0)
            exit_code = rc == RAFTDIR_EINVAL ? bad_line(c, n, "%s", why) : ctl_error(c, rc, "line %lu: the batch is larger than one request can be (%d operations, %u KiB); nothing was changed: split it", n,
                                                                                  REQUEST_OPS_MAX, REQUEST_LEN_MAX >> 10);
        else if (json_object_get(o, "if") && (rc = add_condition(b, json_object_get(o, "if"))) < 0)
            exit_code = rc == RAFTDIR_EINVAL ? bad_line(c, n, "%s", "\"if\" can't be read") : ctl_error(c, rc, "line %lu: the batch is over the limit", n);
        json_decref(o);
        if (!exit_code) {
            unsigned long *lines = realloc(*lines_r, raftdir_batch_count(b) * sizeof *lines);
            if (!lines)
                exit_code = ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
            else {
                *lines_r = lines;
                lines[raftdir_batch_count(b) - 1] = n;
            }
        }
    }
    if (!exit_code && ferror(in))
        exit_code = ctl_error(c, RAFTDIR_EIO, "reading: %s", strerror(errno));
    if (!exit_code && !raftdir_batch_count(b))
        exit_code = ctl_usage_error(c, "there is no operation in it");
    free(line);
    return exit_code;
}

int ctl_batch(struct ctl *c)
{
    const char *path = c->args_n ? c->args[0] : "-";
    FILE *in = strcmp(path, "-") ? fopen(path, "r") : stdin;
    if (!in)
        return ctl_usage_error(c, "%s: %s", path, strerror(errno));
    raftdir_batch *b = raftdir_batch_create();
    unsigned long *lines = NULL;
    int exit_code = b ? read_batch(c, in, b, &lines) : ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    if (in != stdin)
        fclose(in);
    if (!exit_code && c->o.has_epoch)
        raftdir_batch_set_store_epoch(b, c->o.epoch);
    if (!exit_code && !(exit_code = ctl_open(c))) {
        const struct raftdir_result *r = NULL;
        int rc = raftdir_write(c->d, b, &r);
        if (rc < 0 && r && r->failed_op >= 0 && (size_t)r->failed_op < raftdir_batch_count(b))
            exit_code = ctl_error(c, rc, "line %lu: %s; nothing was changed", lines[r->failed_op], raftdir_message(c->d));
        else if (rc < 0)
            exit_code = ctl_error_of(c, c->d, rc, NULL);
        else if (c->o.json) {
            json_t *o = json_object(), *list = json_array();
            for (size_t i = 0; i < r->ops_n; i++)
                json_array_append_new(list, json_pack("{s:I,s:I,s:I}", "changed", (json_int_t)r->ops[i].changed, "generation",
                                                      (json_int_t)r->ops[i].generation, "mailbox_id", (json_int_t)r->ops[i].mailbox_id));
            json_object_set_new(o, "index", json_integer((json_int_t)r->index));
            json_object_set_new(o, "operations", list);
            ctl_json_print(o);
        } else {
            uint64_t changed = 0;
            for (size_t i = 0; i < r->ops_n; i++)
                changed += r->ops[i].changed;
            printf("%zu operation%s done, %llu mailbox%s changed\n", r->ops_n, r->ops_n == 1 ? "" : "s", (unsigned long long)changed,
                   changed == 1 ? "" : "es");
        }
    }
    raftdir_batch_destroy(&b);
    free(lines);
    return exit_code;
}
