/* ctl_verify.c - `raftdirctl verify`: each node re-reads and checks everything it has; then the nodes are compared.
 *
 * Every node records the digest of its state at the same indexes (DIGEST_INTERVAL): where two nodes have the same index, the digests must be equal, whatever
 * was written meanwhile. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"

#define NODES_MAX 64
#define VERIFY_TIMEOUT_MS 60000 /* between two signs of progress */

struct node {
    char name[128], endpoint[300];
    uint64_t id, index, records, problems;
    bool verified, matches, digest_known;
    uint8_t digest[RAFTDIR_DIGEST_LEN];
    struct raftdir_checkpoint *points;
    size_t points_n;
    uint64_t compared; /* with how many others, at at least one index */
    uint64_t compared_at, differs_at;
    const struct node *differs_from;
    char error[512];
    int code;
};

static void progress(void *data, uint64_t done, uint64_t total)
{
    struct progress *p = data;
    if (p->total != total)
        p->total = total;
    progress_tell(p, done, done);
}

static void verify_node(struct ctl *c, struct node *n, json_t *problems)
{
    struct progress p;
    const struct raftdir_verify_result *r;
    char label[160];
    snprintf(label, sizeof label, "verifying %s", n->name);
    progress_begin(&p, c, label, "records", 0);
    n->code = raftdir_verify(c->d, progress, &p, &r);
    progress_end(&p);
    if (n->code < 0) {
        snprintf(n->error, sizeof n->error, "%s", raftdir_message(c->d));
        return;
    }
    n->verified = true;
    n->index = r->index;
    n->records = r->total;
    n->problems = r->problems;
    n->matches = r->matches;
    memcpy(n->digest, r->digest, sizeof n->digest);
    n->digest_known = r->index != 0;
    n->points = malloc((r->checkpoints_n + 1) * sizeof *n->points);
    if (n->points) {
        if (r->checkpoints_n)
            memcpy(n->points, r->checkpoints, r->checkpoints_n * sizeof *n->points);
        n->points_n = r->checkpoints_n;
        /* The state just read is a point like the others. */
        if (n->digest_known) {
            n->points[n->points_n].index = n->index;
            memcpy(n->points[n->points_n++].digest, n->digest, sizeof n->digest);
        }
    }
    for (size_t i = 0; i < r->problem_n; i++) {
        char text[700];
        snprintf(text, sizeof text, "%s: %s", n->name, r->problem[i]);
        json_array_append_new(problems, ctl_string(text));
    }
}

static void compare(struct node *a, struct node *b)
{
    bool common = false;
    for (size_t i = 0; i < a->points_n; i++)
        for (size_t k = 0; k < b->points_n; k++) {
            if (a->points[i].index != b->points[k].index)
                continue;
            uint64_t index = a->points[i].index;
            common = true;
            if (memcmp(a->points[i].digest, b->points[k].digest, RAFTDIR_DIGEST_LEN)) {
                if (!a->differs_at || index < a->differs_at) {
                    a->differs_at = index;
                    a->differs_from = b;
                }
                if (!b->differs_at || index < b->differs_at) {
                    b->differs_at = index;
                    b->differs_from = a;
                }
            } else {
                a->compared_at = index > a->compared_at ? index : a->compared_at;
                b->compared_at = index > b->compared_at ? index : b->compared_at;
            }
        }
    a->compared += common;
    b->compared += common;
}

static const char *verdict(const struct node *n, enum ctl_color *color_r)
{
    *color_r = COLOR_BAD;
    if (!n->verified)
        return "can't tell";
    if (n->problems || !n->matches)
        return "CORRUPT";
    if (n->differs_at)
        return "DIFFERS";
    *color_r = COLOR_GOOD;
    return "ok";
}

static json_t *node_json(const struct node *n)
{
    enum ctl_color color;
    json_t *o = json_object();
    json_object_set_new(o, "node", ctl_string(n->name));
    json_object_set_new(o, "endpoint", ctl_string(n->endpoint));
    json_object_set_new(o, "verdict", ctl_string(verdict(n, &color)));
    if (!n->verified) {
        json_object_set_new(o, "error", ctl_error_json(n->code, n->error));
        return o;
    }
    json_object_set_new(o, "node_id", json_integer((json_int_t)n->id));
    json_object_set_new(o, "records", json_integer((json_int_t)n->records));
    json_object_set_new(o, "problems", json_integer((json_int_t)n->problems));
    json_object_set_new(o, "index", json_integer((json_int_t)n->index));
    json_object_set_new(o, "digest", ctl_hex_json(n->digest, sizeof n->digest));
    json_object_set_new(o, "digest_matches", json_boolean(n->matches));
    json_object_set_new(o, "compared_with", json_integer((json_int_t)n->compared));
    json_object_set_new(o, "equal_at", n->compared_at ? json_integer((json_int_t)n->compared_at) : json_null());
    json_object_set_new(o, "differs_at", n->differs_at ? json_integer((json_int_t)n->differs_at) : json_null());
    json_object_set_new(o, "differs_from", n->differs_from ? ctl_string(n->differs_from->name) : json_null());
    return o;
}

int ctl_verify(struct ctl *c)
{
    struct node *nodes = calloc(NODES_MAX, sizeof *nodes);
    size_t n = 0, members_n = 0;
    int exit_code = ctl_open(c);
    json_t *problems = json_array();
    if (exit_code || !nodes || !problems) {
        free(nodes);
        json_decref(problems);
        return exit_code ? exit_code : ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
    }
    const char *endpoint;
    for (unsigned i = 0; (endpoint = raftdir_endpoint(c->d, i)) && n < NODES_MAX; i++) {
        struct node *node = &nodes[n];
        const struct raftdir_node_status *s;
        bool seen = false;
        raftdir_use_endpoint(c->d, (int)i);
        raftdir_set_timeout(c->d, c->o.timeout_ms ? c->o.timeout_ms : 3000);
        *node = (struct node){.code = raftdir_status(c->d, &s)};
        snprintf(node->endpoint, sizeof node->endpoint, "%s", endpoint);
        if (node->code < 0) {
            snprintf(node->name, sizeof node->name, "%s", endpoint);
            snprintf(node->error, sizeof node->error, "%s", raftdir_message(c->d));
            n++;
            continue;
        }
        for (size_t k = 0; k < n; k++)
            seen |= s->node_id && nodes[k].id == s->node_id;
        if (seen)
            continue; /* by another endpoint */
        node->id = s->node_id;
        members_n = s->members_n > members_n ? s->members_n : members_n;
        snprintf(node->name, sizeof node->name, "%s", s->node_name);
        n++;
        if (*s->failure) { /* it has nothing that could be read, and would be asked again and again until the timeout */
            node->code = RAFTDIR_EFAILED;
            snprintf(node->error, sizeof node->error, "%s: %s", s->state, s->failure);
            continue;
        }
        raftdir_set_timeout(c->d, c->o.timeout_ms ? c->o.timeout_ms : VERIFY_TIMEOUT_MS);
        verify_node(c, node, problems);
    }
    for (size_t a = 0; a < n; a++)
        for (size_t b = a + 1; b < n; b++)
            compare(&nodes[a], &nodes[b]);
    size_t good = 0, bad = 0;
    struct ctl_table *t = c->o.json ? NULL : table_begin(c, "NODE,VERDICT,>RECORDS,>PROBLEMS,>AT INDEX,DIGEST,COMPARED");
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        struct node *node = &nodes[i];
        enum ctl_color color;
        const char *v = verdict(node, &color);
        good += color == COLOR_GOOD;
        bad += node->verified && color != COLOR_GOOD;
        json_array_append_new(list, node_json(node));
        if (!t)
            continue;
        char text[2 * RAFTDIR_DIGEST_LEN + 1];
        table_cell(t, COLOR_NONE, "%s", node->name);
        table_cell(t, color, "%s", v);
        if (!node->verified) {
            for (int k = 0; k < 4; k++)
                table_cell(t, COLOR_NONE, "-");
            table_cell(t, COLOR_NONE, "%s", node->error);
            continue;
        }
        ctl_count(node->records, text, sizeof text);
        table_cell(t, COLOR_NONE, "%s", text);
        table_cell(t, node->problems ? COLOR_BAD : COLOR_NONE, "%" PRIu64, node->problems);
        table_cell(t, COLOR_NONE, "%" PRIu64, node->index);
        ctl_hex(node->digest, sizeof node->digest, text);
        table_cell(t, node->matches ? COLOR_DIM : COLOR_BAD, "%s%s", text, node->matches ? "" : " (not the recorded one)");
        if (node->differs_at)
            table_cell(t, COLOR_BAD, "differs from %s at index %" PRIu64, node->differs_from->name, node->differs_at);
        else if (node->compared)
            table_cell(t, COLOR_NONE, "equal to %" PRIu64 " other%s, last at index %" PRIu64, node->compared, node->compared == 1 ? "" : "s",
                       node->compared_at);
        else
            table_cell(t, COLOR_NONE, n > 1 ? "no index in common with another node" : members_n > 1 ? "with no other: they were not asked" : "alone");
    }
    exit_code = bad ? EXIT_INTERNAL : good == n && n ? EXIT_DONE : good ? EXIT_UNKNOWN : ctl_exit_code(n ? nodes[0].code : RAFTDIR_EUNAVAIL);
    if (t) {
        table_end(&t);
        fflush(stdout);
        for (size_t i = 0; i < json_array_size(problems); i++)
            fprintf(stderr, "  %s\n", json_string_value(json_array_get(problems, i)));
        if (bad)
            fputs("A node's data is damaged, or differs from the others'. Trust the majority; `raftdirctl -e THAT-NODE cluster rebuild --via ANOTHER` makes it whole.\n", stderr);
        if (members_n > n)
            fprintf(stderr, "note: %zu of the cluster's %zu members %s not asked: that takes --ca, --cert and --key, or their sockets with -e\n", members_n - n,
                    members_n, members_n - n == 1 ? "was" : "were");
        for (size_t i = 0; !bad && n > 1 && i < n; i++)
            if (nodes[i].verified && !nodes[i].compared)
                fprintf(stderr, "note: %s is in order by itself, but could not be compared: run verify again when less is written\n", nodes[i].name);
        json_decref(problems);
        json_decref(list);
    } else {
        json_t *o = json_object();
        json_object_set_new(o, "ok", json_boolean(exit_code == EXIT_DONE));
        json_object_set_new(o, "nodes", list);
        json_object_set_new(o, "members", json_integer((json_int_t)members_n));
        json_object_set_new(o, "problems", problems);
        ctl_json_print(o);
    }
    for (size_t i = 0; i < n; i++)
        free(nodes[i].points);
    free(nodes);
    return exit_code;
}
