/* ctl_cluster.c - `raftdirctl cluster status`: every node that can be reached, side by side, and what an operator should look at. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"
#include "ctl_member.h"

#define STATUS_TIMEOUT_MS 1500 /* of one node: a paused one must not hold up the others */

struct seen {
    uint64_t ids[64];
    size_t n;
};

static bool is_seen(const struct seen *s, uint64_t id)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->ids[i] == id)
            return true;
    return false;
}

static json_t *image_json(const struct raftdir_image *i)
{
    json_t *o = json_object();
    json_object_set_new(o, "phase", ctl_string(i->phase));
    json_object_set_new(o, "member", i->member ? json_integer((json_int_t)i->member) : json_null());
    json_object_set_new(o, "index", json_integer((json_int_t)i->index));
    json_object_set_new(o, "rows", json_integer((json_int_t)i->rows));
    json_object_set_new(o, "rows_total", json_integer((json_int_t)i->rows_total));
    json_object_set_new(o, "bytes", json_integer((json_int_t)i->bytes));
    json_object_set_new(o, "problem", *i->problem ? ctl_string(i->problem) : json_null());
    return o;
}

static json_t *status_json(const struct raftdir_node_status *s, const char *endpoint)
{
    json_t *o = json_object();
    json_object_set_new(o, "endpoint", ctl_string(endpoint));
    json_object_set_new(o, "node_id", json_integer((json_int_t)s->node_id));
    json_object_set_new(o, "node_name", ctl_string(s->node_name));
    json_object_set_new(o, "state", ctl_string(s->state));
    json_object_set_new(o, "role", ctl_string(s->role));
    json_object_set_new(o, "term", json_integer((json_int_t)s->term));
    json_object_set_new(o, "leader", json_integer((json_int_t)s->leader));
    json_object_set_new(o, "quorum", json_boolean(s->quorum));
    json_object_set_new(o, "last_index", json_integer((json_int_t)s->last_index));
    json_object_set_new(o, "commit_index", json_integer((json_int_t)s->commit_index));
    json_object_set_new(o, "applied_index", json_integer((json_int_t)s->applied_index));
    json_object_set_new(o, "published_index", json_integer((json_int_t)s->published_index));
    json_object_set_new(o, "cluster_id", ctl_id_json(s->cluster_id));
    json_object_set_new(o, "incarnation", json_integer((json_int_t)s->incarnation));
    json_object_set_new(o, "mailboxes", json_integer((json_int_t)s->mailboxes));
    json_object_set_new(o, "log_bytes", json_integer((json_int_t)s->log_bytes));
    json_object_set_new(o, "state_bytes", json_integer((json_int_t)s->state_bytes));
    json_object_set_new(o, "digest", s->has_digest ? ctl_hex_json(s->digest, sizeof s->digest) : json_null());
    json_object_set_new(o, "feature_level", json_integer(s->feature_level));
    json_object_set_new(o, "failure", *s->failure ? ctl_string(s->failure) : json_null());
    json_object_set_new(o, "software", ctl_string(s->software));
    json_object_set_new(o, "uptime_ms", json_integer((json_int_t)s->uptime_ms));
    json_object_set_new(o, "log_first", json_integer((json_int_t)s->log_first));
    json_object_set_new(o, "space", ctl_string(*s->space ? s->space : "ok"));
    json_object_set_new(o, "space_free", s->space_free ? json_integer((json_int_t)s->space_free) : json_null());
    json_object_set_new(o, "local_readers", json_integer(s->local_readers));
    json_object_set_new(o, "watchers", json_integer(s->watchers));
    json_object_set_new(o, "scrub_age_s", s->scrub_age_s < 0 ? json_null() : json_integer(s->scrub_age_s));
    json_object_set_new(o, "image", *s->fetching.phase ? image_json(&s->fetching) : json_null());
    json_t *mupdate = s->mupdate_listening < 0 ? json_null() : json_object();
    if (s->mupdate_listening >= 0) {
        json_object_set_new(mupdate, "listening", json_boolean(s->mupdate_listening));
        json_object_set_new(mupdate, "why_not", s->mupdate_listening ? json_null() : ctl_string(s->mupdate_why_not));
        json_object_set_new(mupdate, "sessions", json_integer(s->mupdate_sessions));
    }
    json_object_set_new(o, "mupdate", mupdate);
    json_t *sending = json_array(), *alarms = json_array();
    for (size_t i = 0; i < s->sending_n; i++)
        json_array_append_new(sending, image_json(&s->sending[i]));
    for (size_t i = 0; i < s->alarms_n; i++)
        json_array_append_new(alarms, ctl_string(s->alarms[i]));
    json_object_set_new(o, "sending", sending);
    json_object_set_new(o, "alarms", alarms);
    json_t *members = json_array();
    for (size_t i = 0; i < s->members_n; i++)
        json_array_append_new(members, ctl_member_json(&s->members[i]));
    json_object_set_new(o, "members", members);
    return o;
}

/* What an operator should know beside the table, a line each. */
static void cares(FILE *out, const struct raftdir_node_status *s)
{
    char bytes[32];
    if (s->mupdate_listening == 0 && s->node_id && !*s->failure)
        fprintf(out, "  %s: takes no MUPDATE connections: %s\n", s->node_name, s->mupdate_why_not);
    for (size_t i = 0; i < s->alarms_n; i++)
        fprintf(out, "  %s: %s\n", s->node_name, s->alarms[i]);
    for (size_t i = 0; i <= s->sending_n; i++) {
        const struct raftdir_image *image = i < s->sending_n ? &s->sending[i] : &s->fetching;
        if (!*image->phase)
            continue;
        ctl_bytes(image->bytes, bytes, sizeof bytes);
        if (image == &s->fetching && s->node_id && image->member == s->node_id) {
            fprintf(out, "  %s: a fresh copy of its state, %s: %" PRIu64 " of %" PRIu64 " rows, %s\n", s->node_name, image->phase, image->rows, image->rows_total, bytes);
            continue;
        }
        if (!image->index) { /* nobody has answered yet */
            fprintf(out, "  %s: an image is wanted, %s%s%s\n", s->node_name, image->phase, *image->problem ? ": " : "", image->problem);
            continue;
        }
        fprintf(out, "  %s: image of index %" PRIu64 " %s member %" PRIu64 ", %s: ", s->node_name, image->index, i < s->sending_n ? "to" : "from", image->member, image->phase);
        if (image->rows) /* who sends counts bytes */
            fprintf(out, "%" PRIu64 " of %" PRIu64 " rows, ", image->rows, image->rows_total);
        fprintf(out, "%s%s%s\n", bytes, *image->problem ? "; " : "", image->problem);
    }
}

static void status_row(struct ctl_table *t, const struct raftdir_node_status *s, const char *endpoint)
{
    char text[64];
    bool leads = !strcmp(s->state, "leader"), bad = !strcmp(s->state, "failed") || !strcmp(s->state, "removed") || !strcmp(s->state, "candidate") || !s->quorum;
    table_cell(t, COLOR_NONE, "%s", s->node_name);
    if (s->node_id)
        table_cell(t, COLOR_NONE, "%" PRIu64, s->node_id);
    else
        table_cell(t, COLOR_NONE, "-");
    bool busy = *s->fetching.phase != 0, fetches = busy && s->fetching.member != s->node_id;
    table_cell(t, !strcmp(s->state, "unconfigured") || fetches ? COLOR_WARN : bad ? COLOR_BAD : leads ? COLOR_GOOD : COLOR_NONE, "%s%s%s", s->state,
               fetches ? ", fetching an image" : busy ? ", compacting" : "", s->quorum || !s->node_id || fetches ? "" : " (no quorum)"); /* until it has caught up it can't know */
    table_cell(t, COLOR_NONE, "%s", s->role);
    table_cell(t, COLOR_NONE, "%" PRIu64, s->term);
    table_cell(t, COLOR_NONE, "%" PRIu64, s->applied_index);
    uint64_t lag = s->last_index > s->applied_index ? s->last_index - s->applied_index : 0;
    table_cell(t, lag > 1000 ? COLOR_WARN : COLOR_NONE, "%" PRIu64, lag);
    ctl_count(s->mailboxes, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_bytes(s->log_bytes, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_bytes(s->state_bytes, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    ctl_age(s->uptime_ms, text, sizeof text);
    table_cell(t, COLOR_NONE, "%s", text);
    table_cell(t, COLOR_DIM, "%s", endpoint);
}

int ctl_cluster_status(struct ctl *c)
{
    if (!c->o.timeout_ms)
        c->o.timeout_ms = STATUS_TIMEOUT_MS;
    int exit_code = ctl_open(c);
    if (exit_code)
        return exit_code;
    struct ctl_table *t = c->o.json ? NULL : table_begin(c, "NODE,>ID,STATE,ROLE,>TERM,>APPLIED,>BEHIND,>MAILBOXES,>LOG,>STATE,>UP,ENDPOINT");
    json_t *nodes = json_array(), *unreachable = json_array(), *members = NULL;
    struct seen seen = {.n = 0};
    uint64_t cluster_id = 0, incarnation = 0, leader = 0, term = 0;
    char *failures = NULL, *errors = NULL, *notes = NULL;
    size_t failures_len = 0, errors_len = 0, notes_len = 0, errors_n = 0, not_asked = 0, answered = 0, members_n = 0;
    bool quorum = false;
    char identity[300] = "", role[32] = "";
    int last_error = RAFTDIR_EUNAVAIL;
    FILE *failed = open_memstream(&failures, &failures_len), *err = open_memstream(&errors, &errors_len),
         *note = open_memstream(&notes, &notes_len);
    if (!failed || !err || !note)
        return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    struct known_member {
        uint64_t id;
        int role;
        char *name, *address;
    } known[64];
    const char *endpoint;
    for (unsigned i = 0; (endpoint = raftdir_endpoint(c->d, i)); i++) { /* grows while nodes tell of others */
        const struct raftdir_node_status *s;
        raftdir_use_endpoint(c->d, (int)i);
        int rc = raftdir_status(c->d, &s);
        if (rc < 0) {
            last_error = rc;
            json_t *o = json_object();
            json_object_set_new(o, "endpoint", ctl_string(endpoint));
            json_object_set_new(o, "error", ctl_error_json(rc, raftdir_message(c->d)));
            json_array_append_new(unreachable, o);
            fprintf(err, "  %s\n", raftdir_message(c->d));
            errors_n++;
            continue;
        }
        answered++;
        struct raftdir_answer a;
        if (!*identity && raftdir_answer(c->d, &a) == 0) {
            snprintf(identity, sizeof identity, "%s", a.identity);
            snprintf(role, sizeof role, "%s", a.role);
        }
        if (s->node_id && is_seen(&seen, s->node_id) && cluster_id == s->cluster_id)
            continue; /* by another endpoint */
        if (s->node_id && seen.n < 64)
            seen.ids[seen.n++] = s->node_id;
        if (cluster_id && s->cluster_id && s->cluster_id != cluster_id)
            fprintf(failed, "  %s belongs to another cluster: %016" PRIx64 "\n", s->node_name, s->cluster_id);
        else if (s->cluster_id)
            cluster_id = s->cluster_id;
        quorum |= s->quorum;
        incarnation = s->incarnation > incarnation ? s->incarnation : incarnation;
        if (s->term >= term && s->leader) {
            term = s->term;
            leader = s->leader;
        }
        cares(note, s);
        if (*s->failure)
            fprintf(failed, "  %s has stopped: %s\n", s->node_name, s->failure);
        if (s->members_n && (!members_n || s->leader == s->node_id)) {
            while (members_n) {
                members_n--;
                free(known[members_n].name);
                free(known[members_n].address);
            }
            json_decref(members);
            members = json_array();
            for (size_t k = 0; k < s->members_n && k < 64; k++) {
                known[members_n].id = s->members[k].id;
                known[members_n].role = s->members[k].role;
                known[members_n].name = strdup(s->members[k].cert_name);
                known[members_n++].address = strdup(s->members[k].address);
                json_array_append_new(members, ctl_member_json(&s->members[k]));
            }
        }
        json_array_append_new(nodes, status_json(s, endpoint));
        if (t)
            status_row(t, s, endpoint);
    }
    if (t) {
        for (size_t k = 0; k < members_n; k++)
            if (!is_seen(&seen, known[k].id)) {
                table_cell(t, COLOR_NONE, "%s", known[k].name ? known[k].name : "");
                table_cell(t, COLOR_NONE, "%" PRIu64, known[k].id);
                /* Where every endpoint that we know has answered, this one's isn't known: that is no fault of the node. */
                table_cell(t, errors_n ? COLOR_BAD : COLOR_DIM, errors_n ? "no answer" : "not asked");
                not_asked += !errors_n;
                table_cell(t, COLOR_NONE, "%s", ctl_role_name(known[k].role));
                for (int i = 0; i < 7; i++)
                    table_cell(t, COLOR_NONE, "-");
                table_cell(t, COLOR_DIM, "peer %s", known[k].address ? known[k].address : "");
            }
        table_end(&t);
    }
    while (members_n) {
        members_n--;
        free(known[members_n].name);
        free(known[members_n].address);
    }
    fclose(failed);
    fclose(err);
    fclose(note);
    exit_code = quorum ? EXIT_DONE : answered ? EXIT_UNKNOWN : ctl_exit_code(last_error);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "cluster_id", cluster_id ? ctl_id_json(cluster_id) : json_null());
        json_object_set_new(o, "incarnation", json_integer((json_int_t)incarnation));
        json_object_set_new(o, "leader", leader ? json_integer((json_int_t)leader) : json_null());
        json_object_set_new(o, "term", json_integer((json_int_t)term));
        json_object_set_new(o, "quorum", json_boolean(quorum));
        json_object_set_new(o, "identity", ctl_string(identity));
        json_object_set_new(o, "role", ctl_string(role));
        json_object_set_new(o, "nodes", nodes);
        json_object_set_new(o, "unreachable", unreachable);
        json_object_set_new(o, "members", members ? members : json_array());
        ctl_json_print(o);
    } else {
        json_decref(nodes);
        json_decref(unreachable);
        json_decref(members);
        if (answered)
            printf("%sYou are %s, role %s.%s\n", ctl_paint(c->color, COLOR_DIM), identity, role, ctl_paint(c->color, COLOR_NONE));
        fflush(stdout);
        if (errors_len)
            fprintf(stderr, "%sNot reached:%s\n%s", ctl_paint(c->color_err, COLOR_WARN), ctl_paint(c->color_err, COLOR_NONE), errors);
        if (not_asked)
            fprintf(stderr, "%zu of the members %s not asked: that takes --ca, --cert and --key (RAFTDIR_CA, RAFTDIR_CERT, RAFTDIR_KEY), or their sockets with -e.\n",
                    not_asked, not_asked == 1 ? "was" : "were");
        if (notes_len)
            fprintf(stderr, "%sTo be looked at, or under way:%s\n%s", ctl_paint(c->color_err, COLOR_WARN), ctl_paint(c->color_err, COLOR_NONE), notes);
        if (failures_len)
            fprintf(stderr, "%sFaults:%s\n%s", ctl_paint(c->color_err, COLOR_BAD), ctl_paint(c->color_err, COLOR_NONE), failures);
        if (answered && !cluster_id)
            fputs("This node is not part of a cluster: `raftdirctl cluster bootstrap`, or `raftdirctl cluster join --via ENDPOINT`.\n", stderr);
        else if (answered && !quorum)
            fputs("No quorum: changes and linearizable reads wait until a majority of the voters reach each other.\n", stderr);
        else if (!answered)
            fputs("No node answered. Is raftdird running? Name its socket or address with -e, or in RAFTDIR_ENDPOINTS.\n", stderr);
    }
    free(failures);
    free(errors);
    free(notes);
    return exit_code;
}
