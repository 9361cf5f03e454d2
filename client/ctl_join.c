/* ctl_join.c - a node becomes the first of a cluster, a member of one, or a member anew. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "ctl.h"
#include "ctl_member.h"

#define REMOVED_TRIES 80 /* looks, a quarter of a second apart */

int ctl_cluster_bootstrap(struct ctl *c)
{
    int exit_code = ctl_open_other(c, c->o.endpoints, true, &c->d);
    if (exit_code)
        return exit_code;
    if (raftdir_endpoint(c->d, 1))
        return ctl_usage_error(c, "bootstrap is for one node: name it with -e");
    int rc = raftdir_bootstrap(c->d);
    if (rc == RAFTDIR_EEXIST)
        return ctl_error(c, rc, "%s is part of a cluster already: %s", raftdir_endpoint(c->d, 0), raftdir_message(c->d));
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    const struct raftdir_node_info *i;
    if ((rc = raftdir_node_info(c->d, &i)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "node", ctl_string(i->node_name));
        json_object_set_new(o, "node_id", json_integer((json_int_t)i->node_id));
        json_object_set_new(o, "cluster_id", ctl_id_json(i->cluster_id));
        ctl_json_print(o);
    } else
        printf("%s is the first node of cluster %016" PRIx64 "\n", i->node_name, i->cluster_id);
    return EXIT_DONE;
}

/* --- Join ------------------------------------------------------------------------------------------------------------------------- */

/* The node that joins, so far as this run has come. */
struct joiner {
    char name[256];
    uint64_t id, cluster_id;
    bool was_member, votes;
};

/* Adds the node at c->d as a standby and tells it so. An exit code with the error told, or 0. */
static int add_standby(struct ctl *c, raftdir *via, struct joiner *j)
{
    const struct raftdir_node_info *i;
    const struct raftdir_members *ms;
    int rc = raftdir_node_info(c->d, &i);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    /* Its strings live until the next call on c->d, which comes when they aren't needed any more. */
    snprintf(j->name, sizeof j->name, "%s", i->node_name);
    if (!*i->peer_address || !*i->cert_name)
        return ctl_error(c, RAFTDIR_EINVAL, "%s doesn't say its peer address and certificate name: set peer_advertise, and the TLS files, in its configuration",
                         raftdir_endpoint(c->d, 0));
    if (!c->o.timeout_ms)
        raftdir_set_timeout(via, CHANGE_TIMEOUT_MS);
    if (i->cluster_id) {
        /* Perhaps an earlier try got this far. */
        if ((rc = raftdir_members(via, &ms)) < 0)
            return ctl_error_of(c, via, rc, "--via");
        if (ms->cluster_id != i->cluster_id)
            return ctl_error(c, RAFTDIR_EFOREIGN, "%s belongs to cluster %016" PRIx64 ", --via to %016" PRIx64 ": a node joins with an empty data directory",
                             j->name, i->cluster_id, ms->cluster_id);
        const struct raftdir_member *m = ctl_member_by_uuid(ms, i->uuid);
        if (!m)
            return ctl_error(c, RAFTDIR_EFOREIGN, "%s was a member of this cluster and was removed: `raftdirctl cluster rebuild` empties its data directory and adds it again",
                             j->name);
        j->id = m->id;
        j->was_member = true;
        j->votes = m->role == RAFTDIR_VOTER;
        j->cluster_id = ms->cluster_id;
        return 0;
    }
    struct raftdir_member add = {.address = i->peer_address, .cert_name = i->cert_name, .role = RAFTDIR_STANDBY};
    memcpy(add.uuid, i->uuid, sizeof add.uuid);
    for (int tries = 0;; tries++) {
        rc = raftdir_member_add(via, &add, &j->id, &ms);
        if (rc != RAFTDIR_EBUSY || tries == BUSY_TRIES)
            break;
        ctl_pause_ms(250);
    }
    if (rc < 0)
        return ctl_error_of(c, via, rc, "adding the member");
    if (!ctl_member_by_uuid(ms, add.uuid) && (rc = raftdir_members(via, &ms)) < 0)
        return ctl_error_of(c, via, rc, "--via");
    const struct raftdir_member *m = ctl_member_by_uuid(ms, add.uuid);
    if (!m)
        return ctl_error(c, RAFTDIR_EPROTO, "the leader added %s, but doesn't list it", j->name);
    j->id = m->id;
    j->cluster_id = ms->cluster_id;
    if ((rc = raftdir_adopt(c->d, j->id, ms)) < 0)
        return ctl_error_of(c, c->d, rc, "telling the node that it is a member; run this again");
    if (!c->o.json)
        printf("%s is member %" PRIu64 "\n", j->name, j->id);
    return 0;
}

/* --replace: the member whose place this one takes goes when this one has what it had. */
static int replaced_find(struct ctl *c, raftdir *via, const struct joiner *j, uint64_t *old_r, bool *voted_r)
{
    const struct raftdir_members *ms;
    char *end;
    unsigned long long id = strtoull(c->o.replace, &end, 10);
    bool is_id = end != c->o.replace && !*end;
    int rc = raftdir_members(via, &ms);
    if (rc < 0)
        return ctl_error_of(c, via, rc, "--via");
    *old_r = 0;
    *voted_r = true; /* run again after it was removed: then only the promotion is left */
    for (size_t i = 0; i < ms->n; i++) {
        const struct raftdir_member *m = &ms->list[i];
        if (m->id == j->id || (is_id ? m->id != id : strcmp(m->cert_name, c->o.replace) != 0))
            continue;
        if (m->id == ms->leader)
            return ctl_error(c, RAFTDIR_ECONFLICT, "member %" PRIu64 " leads: `raftdirctl leader transfer` first, then run this again", m->id);
        *old_r = m->id;
        *voted_r = m->role == RAFTDIR_VOTER;
    }
    if (!*old_r && !j->was_member)
        return ctl_error(c, RAFTDIR_ENOTFOUND, "--replace: no member \"%s\": `raftdirctl member list` shows them", c->o.replace);
    return 0;
}

/* The whole way to a standby or voter. */
static int join(struct ctl *c, raftdir *via, bool promote)
{
    struct joiner j = {.id = 0};
    uint64_t old = 0;
    int exit_code = add_standby(c, via, &j), rc;
    if (exit_code)
        return exit_code;
    if (c->o.replace) {
        bool voted = false;
        if ((exit_code = replaced_find(c, via, &j, &old, &voted)))
            return exit_code;
        promote = promote || voted;
    }
    if ((promote || old) && !j.votes) {
        if ((rc = ctl_catch_up(c, via, c->d, j.id)) < 0)
            return ctl_exit_code(rc);
    }
    if (old) {
        if ((rc = ctl_remove(c, via, old, "removing the member that it replaces; run this again")) < 0)
            return ctl_exit_code(rc);
        if (!c->o.json)
            printf("member %" PRIu64 " is removed\n", old);
    }
    if (promote && !j.votes) {
        if ((rc = ctl_promote(c, via, j.id, "promoting; run this again")) < 0)
            return ctl_exit_code(rc);
        j.votes = true;
        if (!c->o.json)
            printf("member %" PRIu64 " is a voter\n", j.id);
    } else if (j.was_member && !c->o.json) {
        printf("member %" PRIu64 " was a member already, a %s\n", j.id, j.votes ? "voter" : "standby");
    }
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "node_id", json_integer((json_int_t)j.id));
        json_object_set_new(o, "voter", json_boolean(j.votes));
        if (old)
            json_object_set_new(o, "replaced", json_integer((json_int_t)old));
        ctl_json_print(o);
    }
    return EXIT_DONE;
}

/* What would only fail when the node is no member any more is asked before: is --via somebody else, and may we tell the node what it is? */
static int both_check(struct ctl *c, raftdir *via, bool via_alone)
{
    const struct raftdir_node_info *i;
    struct raftdir_answer a;
    uint8_t uuid[RAFTDIR_UUID_LEN];
    int rc = raftdir_node_info(c->d, &i);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    memcpy(uuid, i->uuid, sizeof uuid);
    if (raftdir_answer(c->d, &a) == 0 && *a.role && strcmp(a.role, "admin"))
        return ctl_error(c, RAFTDIR_EPERM, "%s has the role %s at %s, the node at -e; this needs admin there, too (allow sections, raftdird.conf(5)): nothing was changed", a.identity,
                         a.role, raftdir_endpoint(c->d, 0));
    if (via_alone && raftdir_node_info(via, &i) == 0 && !memcmp(uuid, i->uuid, sizeof uuid)) /* who doesn't answer is met again */
        return ctl_usage_error(c, "--via is the node itself: name another member of the cluster");
    return 0;
}

/* c->d is the node, *via_r the cluster. */
static int open_both(struct ctl *c, const char *what, raftdir **via_r)
{
    if (!c->o.via)
        return ctl_usage_error(c, "--via is missing: an endpoint of the cluster that the node at -e is to %s", what);
    int exit_code = ctl_open_other(c, c->o.endpoints, true, &c->d);
    if (exit_code)
        return exit_code;
    if (raftdir_endpoint(c->d, 1))
        return ctl_usage_error(c, "one node at a time: name it with -e, the cluster with --via");
    if ((exit_code = ctl_open_other(c, c->o.via, false, via_r)))
        return exit_code;
    exit_code = both_check(c, *via_r, !raftdir_endpoint(*via_r, 1));
    if (exit_code)
        raftdir_close(via_r);
    return exit_code;
}

int ctl_cluster_join(struct ctl *c)
{
    raftdir *via;
    int exit_code = open_both(c, "join", &via);
    if (exit_code)
        return exit_code;
    exit_code = join(c, via, c->o.promote);
    raftdir_close(&via);
    return exit_code;
}

/* --- Rebuild ---------------------------------------------------------------------------------------------------------------------------
 *
 * A node that has lost or damaged anything of what it had promised never comes back as who it was: its id is removed, it is reset (empty, a new UUID), and it
 * joins as a new member. Each step may have been done by an earlier run. */

static const char *what_it_is(const struct raftdir_node_status *s)
{
    return !strcmp(s->state, "failed") ? "has failed" : !strcmp(s->state, "removed") ? "was removed" : "is in order";
}

/* Waits until the node itself knows that it was removed. */
static int await_removed(struct ctl *c)
{
    const struct raftdir_node_status *s;
    for (int i = 0; i < REMOVED_TRIES; i++) {
        int rc = raftdir_status(c->d, &s);
        if (rc == 0 && (!strcmp(s->state, "failed") || !strcmp(s->state, "removed") || !strcmp(s->state, "unconfigured")))
            return 0;
        ctl_pause_ms(250);
    }
    return ctl_error(c, RAFTDIR_ETIMEDOUT, "the node was removed from the cluster and hasn't heard of it: is it connected to the others? Run this again");
}

/* A node without a cluster: reset by an earlier run, or wiped, or new. If the cluster has a member with its address and certificate, that is who it was: it goes. */
static int old_self_remove(struct ctl *c, raftdir *via, bool *promote)
{
    const struct raftdir_node_info *i;
    const struct raftdir_members *ms;
    int rc = raftdir_node_info(c->d, &i);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if ((rc = raftdir_members(via, &ms)) < 0)
        return ctl_error_of(c, via, rc, "--via");
    for (size_t k = 0; k < ms->n; k++) {
        const struct raftdir_member *m = &ms->list[k];
        uint64_t id = m->id;
        if (strcmp(m->address, i->peer_address) || strcmp(m->cert_name, i->cert_name) || !memcmp(m->uuid, i->uuid, sizeof m->uuid))
            continue;
        *promote = *promote && m->role == RAFTDIR_VOTER;
        if (!ctl_confirm(c, "%s is empty, and was member %" PRIu64 " before. Remove that member, and add this node as a new one?", i->node_name, id)) {
            fputs("Nothing was changed.\n", stderr);
            return EXIT_NO;
        }
        if ((rc = ctl_remove(c, via, id, "removing the old member; run this again")) < 0)
            return ctl_exit_code(rc);
        if (!c->o.json)
            printf("member %" PRIu64 " is removed\n", id);
        break;
    }
    return 0;
}

static int rebuild(struct ctl *c, raftdir *via)
{
    const struct raftdir_node_status *s;
    const struct raftdir_members *ms;
    const struct raftdir_member *m = NULL;
    bool promote = !c->o.standby;
    int rc = raftdir_status(c->d, &s), exit_code;
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (!s->cluster_id)
        return (exit_code = old_self_remove(c, via, &promote)) ? exit_code : join(c, via, promote);
    uint64_t id = s->node_id, cluster_id = s->cluster_id;
    bool healthy = strcmp(s->state, "failed") && strcmp(s->state, "removed");
    char name[256], state[32];
    snprintf(name, sizeof name, "%s", s->node_name);
    snprintf(state, sizeof state, "%s", what_it_is(s));
    if (!c->o.timeout_ms)
        raftdir_set_timeout(via, CHANGE_TIMEOUT_MS);
    if ((rc = raftdir_members(via, &ms)) < 0)
        return ctl_error_of(c, via, rc, "--via");
    if (ms->cluster_id != cluster_id)
        return ctl_error(c, RAFTDIR_EFOREIGN, "%s belongs to cluster %016" PRIx64 ", --via to %016" PRIx64, name, cluster_id, ms->cluster_id);
    if ((m = ctl_member_by_id(ms, id)))
        promote = promote && m->role == RAFTDIR_VOTER;
    if (healthy && m && m->role != RAFTDIR_VOTER && !c->o.standby && !c->o.force) /* perhaps an earlier run was interrupted before the last step */
        return ctl_error(c, RAFTDIR_ECONFLICT, "%s (member %" PRIu64 ") is in order, but a standby: nothing was changed. To let it vote: `raftdirctl member promote %" PRIu64 "`", name, id,
                         id);
    if (healthy && m && !c->o.force)
        return ctl_error(c, RAFTDIR_ECONFLICT, "%s (member %" PRIu64 ") %s: nothing was changed. To throw its data away and fetch it again all the same: `raftdirctl cluster rebuild --force`", name, id, state);
    if (!ctl_confirm(c, "%s (member %" PRIu64 ") %s. Delete its data, and fetch all of it from the other members, as a new member?", name, id, state)) {
        fputs("Nothing was changed.\n", stderr);
        return EXIT_NO;
    }
    if (m) {
        if ((rc = ctl_remove(c, via, id, "removing the old member; run this again")) < 0)
            return ctl_exit_code(rc);
        if (!c->o.json)
            printf("member %" PRIu64 " is removed\n", id);
    }
    if ((exit_code = await_removed(c)))
        return exit_code;
    rc = raftdir_reset(c->d, cluster_id, id);
    if (rc < 0 && rc != RAFTDIR_EUNCERTAIN)
        return ctl_error_of(c, c->d, rc, "emptying the node; run this again");
    for (int i = 0; i < REMOVED_TRIES && (raftdir_status(c->d, &s) < 0 || s->cluster_id); i++)
        ctl_pause_ms(250);
    if (!c->o.json)
        printf("%s is empty\n", name);
    return join(c, via, promote);
}

int ctl_cluster_rebuild(struct ctl *c)
{
    raftdir *via;
    int exit_code = open_both(c, "belong to", &via);
    if (exit_code)
        return exit_code;
    exit_code = rebuild(c, via);
    raftdir_close(&via);
    return exit_code;
}
