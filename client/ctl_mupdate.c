/* ctl_mupdate.c - `raftdirctl mupdate sessions`: who is connected to the nodes' MUPDATE listeners, since when, as what, and how far behind. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"

#define NODES_MAX 64
#define NODE_TIMEOUT_MS 3000 /* a paused node must not hold up the others */

static json_t *session_json(const struct raftdir_mupdate_session *s)
{
    json_t *o = json_object();
    json_object_set_new(o, "peer", ctl_string(s->peer));
    json_object_set_new(o, "identity", ctl_string(s->identity));
    json_object_set_new(o, "role", ctl_string(s->role));
    json_object_set_new(o, "server", *s->server ? ctl_string(s->server) : json_null());
    json_object_set_new(o, "tls", json_boolean(s->tls));
    json_object_set_new(o, "compressed", json_boolean(s->compressed));
    json_object_set_new(o, "doing", ctl_string(s->doing));
    json_object_set_new(o, "updating", json_boolean(s->updating));
    json_object_set_new(o, "connected_ms", json_integer((json_int_t)s->connected_ms));
    json_object_set_new(o, "quiet_ms", json_integer((json_int_t)s->quiet_ms));
    json_object_set_new(o, "commands", json_integer((json_int_t)s->commands));
    json_object_set_new(o, "rows", json_integer((json_int_t)s->rows));
    json_object_set_new(o, "bytes", json_integer((json_int_t)s->bytes));
    json_object_set_new(o, "behind", s->updating ? json_integer((json_int_t)s->behind) : json_null());
    json_object_set_new(o, "queued", json_integer((json_int_t)s->queued));
    return o;
}

static void session_row(struct ctl_table *t, const char *node, const struct raftdir_mupdate_session *s)
{
    char text[64];
    table_cell(t, COLOR_NONE, "%s", node);
    table_cell(t, COLOR_NONE, "%s", s->peer);
    table_cell(t, COLOR_NONE, "%s", s->identity);
    table_cell(t, COLOR_NONE, "%s", s->role);
    table_cell(t, COLOR_NONE, "%s", *s->server ? s->server : "-");
    table_cell(t, COLOR_NONE, "%s%s", s->tls ? "TLS" : "-", s->compressed ? ", compressed" : "");
    table_cell(t, s->updating ? COLOR_GOOD : COLOR_NONE, "%s", s->doing);
    ctl_age(s->connected_ms, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_age(s->quiet_ms, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_count(s->commands, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_count(s->rows, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    if (s->updating) {
        ctl_count(s->behind, text, sizeof text);
        table_cell(t, s->behind > 1000 ? COLOR_WARN : COLOR_NONE, "%s", text);
    } else {
        table_cell(t, COLOR_NONE, "-");
    }
    ctl_bytes(s->queued, text, sizeof text);
    table_cell(t, s->queued > 1u << 20 ? COLOR_WARN : COLOR_NONE, "%s", text);
}

struct seen {
    uint64_t ids[NODES_MAX];
    size_t n;
};

static bool seen_before(struct seen *seen, uint64_t id)
{
    for (size_t i = 0; i < seen->n; i++)
        if (id && seen->ids[i] == id)
            return true;
    if (seen->n < NODES_MAX)
        seen->ids[seen->n++] = id;
    return false;
}

int ctl_mupdate_sessions(struct ctl *c)
{
    if (!c->o.timeout_ms)
        c->o.timeout_ms = NODE_TIMEOUT_MS;
    int exit_code = ctl_open(c), last_error = RAFTDIR_EUNAVAIL;
    if (exit_code)
        return exit_code;
    struct ctl_table *t = c->o.json ? NULL : table_begin(c, "NODE,PEER,IDENTITY,ROLE,SERVER,TLS,DOING,>SINCE,>QUIET,>COMMANDS,>ROWS,>BEHIND,>QUEUED");
    json_t *nodes = json_array();
    char *notes = NULL;
    size_t notes_len = 0, answered = 0, failed = 0, sessions_n = 0;
    FILE *note = open_memstream(&notes, &notes_len);
    struct seen seen = {.n = 0};
    if (!note || !nodes)
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    const char *endpoint;
    for (unsigned i = 0; (endpoint = raftdir_endpoint(c->d, i)); i++) { /* grows while nodes tell of others */
        const struct raftdir_node_status *s;
        const struct raftdir_mupdate_sessions *l = NULL;
        char name[256];
        raftdir_use_endpoint(c->d, (int)i);
        int rc = raftdir_status(c->d, &s);
        if (rc == 0 && seen_before(&seen, s->node_id))
            continue; /* by another endpoint */
        snprintf(name, sizeof name, "%s", rc == 0 ? s->node_name : endpoint);
        bool wanted = rc == 0 && s->mupdate_listening >= 0;
        if (rc == 0)
            rc = raftdir_mupdate_sessions(c->d, &l);
        json_t *o = json_object();
        json_object_set_new(o, "node", ctl_string(name));
        json_object_set_new(o, "endpoint", ctl_string(endpoint));
        json_array_append_new(nodes, o);
        if (rc < 0) {
            last_error = rc;
            failed++;
            json_object_set_new(o, "error", ctl_error_json(rc, raftdir_message(c->d)));
            fprintf(note, "  %s\n", raftdir_message(c->d));
            continue;
        }
        answered++;
        json_t *list = json_array();
        json_object_set_new(o, "listening", json_boolean(l->listening));
        json_object_set_new(o, "why_not", l->listening ? json_null() : ctl_string(l->why_not));
        json_object_set_new(o, "sessions", list);
        if (!l->listening && wanted)
            fprintf(note, "  %s takes no connections: %s\n", name, l->why_not);
        for (size_t k = 0; k < l->n; k++) {
            sessions_n++;
            if (t)
                session_row(t, name, &l->list[k]);
            else
                json_array_append_new(list, session_json(&l->list[k]));
        }
    }
    fclose(note);
    exit_code = answered ? failed ? EXIT_UNKNOWN : EXIT_DONE : ctl_exit_code(last_error);
    if (t) {
        table_end(&t);
        printf("%s%zu session%s.%s\n", ctl_paint(c->color, COLOR_DIM), sessions_n, sessions_n == 1 ? "" : "s", ctl_paint(c->color, COLOR_NONE));
        fflush(stdout);
        if (notes_len)
            fprintf(stderr, "%s", notes);
        json_decref(nodes);
    } else {
        json_t *o = json_object();
        json_object_set_new(o, "ok", json_boolean(exit_code == EXIT_DONE));
        json_object_set_new(o, "nodes", nodes);
        ctl_json_print(o);
    }
    free(notes);
    return exit_code;
}
