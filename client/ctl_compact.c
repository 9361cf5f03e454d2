/* ctl_compact.c - `raftdirctl compact`: a node moves to a fresh copy of its state, so that the disk gets back what deletions, or a reader that hung, have left free inside. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>
#include "ctl.h"

#define COMPACT_TIMEOUT_MS 3600000u
#define BUSY_MS 30000     /* an earlier generation may still be being removed */
#define ABSENT_MS 30000   /* the node restarts itself within its process: longer without an answer, and something is wrong */
#define LOOK_MS 200

/* The endpoint of the node of that name or id; NULL: the first one. */
static int node_choose(struct ctl *c, const char *wanted)
{
    const struct raftdir_node_status *s;
    const char *endpoint;
    char id[32];
    int rc = RAFTDIR_EUNAVAIL;
    for (unsigned i = 0; (endpoint = raftdir_endpoint(c->d, i)); i++) {
        raftdir_use_endpoint(c->d, (int)i);
        if ((rc = raftdir_status(c->d, &s)) < 0 && !wanted)
            return ctl_error_of(c, c->d, rc, NULL);
        if (rc < 0)
            continue;
        snprintf(id, sizeof id, "%" PRIu64, s->node_id);
        if (!wanted || strcmp(wanted, s->node_name) == 0 || strcmp(wanted, id) == 0)
            return 0;
    }
    return ctl_error(c, RAFTDIR_ENOTFOUND, "no node that can be reached has the name or id \"%s\"", wanted ? wanted : "");
}

/* Until it is done, or was given up. */
static int wait_for(struct ctl *c, uint64_t until_ms, const struct raftdir_node_status **s_r)
{
    struct progress p;
    uint64_t heard_ms = ctl_now_ms();
    int rc;
    progress_begin(&p, c, "copying", "records", 0);
    for (;;) {
        rc = raftdir_status(c->d, s_r);
        uint64_t now = ctl_now_ms();
        if (rc == 0) {
            const struct raftdir_image *image = &(*s_r)->fetching;
            heard_ms = now;
            if (!*image->phase || image->member != (*s_r)->node_id)
                break;
            p.total = image->rows_total;
            progress_tell(&p, image->rows, image->rows);
        } else if (now - heard_ms > ABSENT_MS) {
            break;
        }
        if (now > until_ms) {
            rc = ctl_error(c, RAFTDIR_ETIMEDOUT, "it isn't done yet, and goes on: see raftdirctl cluster status");
            progress_end(&p);
            return rc;
        }
        usleep(LOOK_MS * 1000);
    }
    progress_end(&p);
    return rc < 0 ? ctl_error_of(c, c->d, rc, NULL) : 0;
}

int ctl_compact(struct ctl *c)
{
    const struct raftdir_node_status *s;
    char before_text[32], after_text[32];
    unsigned timeout = c->o.timeout_ms ? c->o.timeout_ms : COMPACT_TIMEOUT_MS;
    int rc = ctl_open(c);
    if (rc)
        return rc;
    uint64_t until = ctl_now_ms() + timeout;
    raftdir_set_timeout(c->d, 5000);
    if ((rc = node_choose(c, c->args_n ? c->args[0] : NULL)) != 0)
        return rc;
    if ((rc = raftdir_status(c->d, &s)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    uint64_t before = s->state_bytes, began = ctl_now_ms();
    char name[128];
    snprintf(name, sizeof name, "%s", s->node_name);
    while ((rc = raftdir_compact(c->d)) == RAFTDIR_EBUSY && ctl_now_ms() - began < BUSY_MS)
        usleep(LOOK_MS * 1000);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if ((rc = wait_for(c, until, &s)) != 0)
        return rc;
    for (size_t i = 0; i < s->alarms_n; i++)
        if (strstr(s->alarms[i], "fresh copy"))
            return ctl_error(c, RAFTDIR_EUNAVAIL, "%s: %s", name, s->alarms[i]);
    uint64_t after = s->state_bytes;
    ctl_bytes(before, before_text, sizeof before_text);
    ctl_bytes(after, after_text, sizeof after_text);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "node_name", ctl_string(name));
        json_object_set_new(o, "state_bytes_before", json_integer((json_int_t)before));
        json_object_set_new(o, "state_bytes", json_integer((json_int_t)after));
        ctl_json_print(o);
        return EXIT_DONE;
    }
    printf("%s: the state takes %s, before %s\n", name, after_text, before_text);
    return EXIT_DONE;
}
