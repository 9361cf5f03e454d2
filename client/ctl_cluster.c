/* ctl_cluster.c - bootstrap, join, status, members, leader. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "ctl.h"

#define STATUS_TIMEOUT_MS 1500  /* of one node: a paused one must not hold up the others */
#define CHANGE_TIMEOUT_MS 45000 /* a promotion waits until the member has caught up */
#define LIVE_MS 2000            /* a member heard of since then is there */
#define BUSY_TRIES 40           /* another change, or the member isn't there yet */

static const char *role_name(int role)
{
    return role == RAFTDIR_VOTER ? "voter" : role == RAFTDIR_STANDBY ? "standby" : role == RAFTDIR_SPARE ? "spare" : "?";
}

static void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

static json_t *hex_id(uint64_t id)
{
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, id);
    return ctl_string(text);
}

static json_t *member_json(const struct raftdir_member *m)
{
    json_t *o = json_object();
    json_object_set_new(o, "id", json_integer((json_int_t)m->id));
    json_object_set_new(o, "cert_name", ctl_string(m->cert_name));
    json_object_set_new(o, "address", ctl_string(m->address));
    json_object_set_new(o, "role", ctl_string(role_name(m->role)));
    json_object_set_new(o, "leader", json_boolean(m->leader));
    json_object_set_new(o, "uuid", ctl_hex_json(m->uuid, sizeof m->uuid));
    json_object_set_new(o, "match_index", m->match_index < 0 ? json_null() : json_integer(m->match_index));
    json_object_set_new(o, "last_contact_ms", m->last_contact_ms < 0 ? json_null() : json_integer(m->last_contact_ms));
    return o;
}

/* --- Bootstrap and join ------------------------------------------------------------------------------------------------------ */

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
        json_object_set_new(o, "cluster_id", hex_id(i->cluster_id));
        ctl_json_print(o);
    } else
        printf("%s is the first node of cluster %016" PRIx64 "\n", i->node_name, i->cluster_id);
    return EXIT_DONE;
}

static const struct raftdir_member *member_by_uuid(const struct raftdir_members *ms, const uint8_t uuid[RAFTDIR_UUID_LEN])
{
    for (size_t i = 0; ms && i < ms->n; i++)
        if (!memcmp(ms->list[i].uuid, uuid, RAFTDIR_UUID_LEN))
            return &ms->list[i];
    return NULL;
}

/* Another change may be going on (others join at the same time), and a new standby needs a moment before it can be promoted. */
static int promote(struct ctl *c, raftdir *via, uint64_t id)
{
    int rc = 0;
    if (!c->o.timeout_ms)
        raftdir_set_timeout(via, CHANGE_TIMEOUT_MS);
    for (int i = 0; i < BUSY_TRIES; i++) {
        rc = raftdir_member_promote(via, id);
        if (rc != RAFTDIR_EBUSY && rc != RAFTDIR_EUNCERTAIN)
            break;
        /* Uncertain: has it happened? */
        const struct raftdir_members *ms;
        if (rc == RAFTDIR_EUNCERTAIN && raftdir_members(via, &ms) == 0)
            for (size_t k = 0; k < ms->n; k++)
                if (ms->list[k].id == id && ms->list[k].role == RAFTDIR_VOTER)
                    return 0;
        pause_ms(250);
    }
    return rc;
}

static int join(struct ctl *c, raftdir *via)
{
    struct raftdir_node_info info;
    const struct raftdir_node_info *i;
    const struct raftdir_members *ms;
    bool was_member = false, was_voter = false;
    int rc = raftdir_node_info(c->d, &i);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    info = *i; /* its strings live until the next call on c->d, which comes last */
    if (!*info.peer_address || !*info.cert_name)
        return ctl_error(c, RAFTDIR_EINVAL, "%s doesn't say its peer address and certificate name: set peer_advertise, and the TLS files, in its configuration",
                         raftdir_endpoint(c->d, 0));
    if (!c->o.timeout_ms)
        raftdir_set_timeout(via, CHANGE_TIMEOUT_MS);
    if (info.cluster_id) {
        /* Perhaps an earlier try got this far. */
        if ((rc = raftdir_members(via, &ms)) < 0)
            return ctl_error_of(c, via, rc, "--via");
        if (ms->cluster_id != info.cluster_id)
            return ctl_error(c, RAFTDIR_EFOREIGN, "%s belongs to cluster %016" PRIx64 ", --via to %016" PRIx64 ": a node joins with an empty data directory",
                             info.node_name, info.cluster_id, ms->cluster_id);
        const struct raftdir_member *m = member_by_uuid(ms, info.uuid);
        if (!m)
            return ctl_error(c, RAFTDIR_EFOREIGN, "%s was a member of this cluster and was removed: empty its data directory to add it again", info.node_name);
        info.node_id = m->id;
        was_member = true;
        was_voter = m->role == RAFTDIR_VOTER;
    } else {
        struct raftdir_member add = {.address = info.peer_address, .cert_name = info.cert_name, .role = RAFTDIR_STANDBY};
        memcpy(add.uuid, info.uuid, sizeof add.uuid);
        for (int tries = 0;; tries++) {
            rc = raftdir_member_add(via, &add, &info.node_id, &ms);
            if (rc != RAFTDIR_EBUSY || tries == BUSY_TRIES)
                break;
            pause_ms(250);
        }
        if (rc < 0)
            return ctl_error_of(c, via, rc, "adding the member");
        if (!member_by_uuid(ms, info.uuid) && (rc = raftdir_members(via, &ms)) < 0)
            return ctl_error_of(c, via, rc, "--via");
        const struct raftdir_member *m = member_by_uuid(ms, info.uuid);
        if (!m)
            return ctl_error(c, RAFTDIR_EPROTO, "the leader added %s, but doesn't list it", info.node_name);
        info.node_id = m->id;
        char *name = strdup(info.node_name); /* goes with the next call on the handle */
        if (!name)
            return ctl_error(c, RAFTDIR_ENOMEM, "out of memory");
        rc = raftdir_adopt(c->d, info.node_id, ms);
        if (rc < 0) {
            rc = ctl_error_of(c, c->d, rc, "telling the node that it is a member; run this again");
            free(name);
            return rc;
        }
        if (!c->o.json)
            printf("%s is member %" PRIu64 "\n", name, info.node_id);
        free(name);
    }
    if (c->o.promote) {
        struct progress p;
        progress_begin(&p, c, "waiting until it has caught up", "", 0);
        if ((rc = promote(c, via, info.node_id)) < 0)
            return ctl_error_of(c, via, rc, "promoting");
        if (!c->o.json && !was_member)
            printf("member %" PRIu64 " is a voter\n", info.node_id);
    }
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "node_id", json_integer((json_int_t)info.node_id));
        json_object_set_new(o, "voter", json_boolean(c->o.promote || was_voter));
        ctl_json_print(o);
    } else if (was_member)
        printf("member %" PRIu64 " was a member already, a %s\n", info.node_id, c->o.promote || was_voter ? "voter" : "standby");
    return EXIT_DONE;
}

int ctl_cluster_join(struct ctl *c)
{
    if (!c->o.via)
        return ctl_usage_error(c, "--via is missing: an endpoint of the cluster that the node at -e is to join");
    int exit_code = ctl_open_other(c, c->o.endpoints, true, &c->d);
    if (exit_code)
        return exit_code;
    if (raftdir_endpoint(c->d, 1))
        return ctl_usage_error(c, "one node joins at a time: name it with -e, the cluster with --via");
    raftdir *via;
    if ((exit_code = ctl_open_other(c, c->o.via, false, &via)))
        return exit_code;
    exit_code = join(c, via);
    raftdir_close(&via);
    return exit_code;
}

/* --- Status ------------------------------------------------------------------------------------------------------------------------ */

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
    json_object_set_new(o, "cluster_id", hex_id(s->cluster_id));
    json_object_set_new(o, "incarnation", json_integer((json_int_t)s->incarnation));
    json_object_set_new(o, "mailboxes", json_integer((json_int_t)s->mailboxes));
    json_object_set_new(o, "log_bytes", json_integer((json_int_t)s->log_bytes));
    json_object_set_new(o, "state_bytes", json_integer((json_int_t)s->state_bytes));
    json_object_set_new(o, "digest", s->has_digest ? ctl_hex_json(s->digest, sizeof s->digest) : json_null());
    json_object_set_new(o, "feature_level", json_integer(s->feature_level));
    json_object_set_new(o, "failure", *s->failure ? ctl_string(s->failure) : json_null());
    json_object_set_new(o, "software", ctl_string(s->software));
    json_object_set_new(o, "uptime_ms", json_integer((json_int_t)s->uptime_ms));
    json_t *members = json_array();
    for (size_t i = 0; i < s->members_n; i++)
        json_array_append_new(members, member_json(&s->members[i]));
    json_object_set_new(o, "members", members);
    return o;
}

static void status_row(struct ctl_table *t, const struct raftdir_node_status *s, const char *endpoint)
{
    char text[64];
    bool leads = !strcmp(s->state, "leader"), bad = !strcmp(s->state, "failed") || !strcmp(s->state, "candidate") || !s->quorum;
    table_cell(t, COLOR_NONE, "%s", s->node_name);
    if (s->node_id)
        table_cell(t, COLOR_NONE, "%" PRIu64, s->node_id);
    else
        table_cell(t, COLOR_NONE, "-");
    table_cell(t, !strcmp(s->state, "unconfigured") ? COLOR_WARN : bad ? COLOR_BAD : leads ? COLOR_GOOD : COLOR_NONE, "%s%s", s->state,
               s->quorum || !s->node_id ? "" : " (no quorum)");
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
    char *failures = NULL, *errors = NULL;
    size_t failures_len = 0, errors_len = 0, errors_n = 0, not_asked = 0, answered = 0, members_n = 0;
    bool quorum = false;
    char identity[300] = "", role[32] = "";
    int last_error = RAFTDIR_EUNAVAIL;
    FILE *failed = open_memstream(&failures, &failures_len), *err = open_memstream(&errors, &errors_len);
    if (!failed || !err)
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
                json_array_append_new(members, member_json(&s->members[k]));
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
                table_cell(t, COLOR_NONE, "%s", role_name(known[k].role));
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
    exit_code = quorum ? EXIT_DONE : answered ? EXIT_UNKNOWN : ctl_exit_code(last_error);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "cluster_id", cluster_id ? hex_id(cluster_id) : json_null());
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
    return exit_code;
}

/* --- Members --------------------------------------------------------------------------------------------------------------------------- */

int ctl_member_list(struct ctl *c)
{
    const struct raftdir_members *ms;
    int rc = ctl_open(c);
    if (rc)
        return rc;
    if ((rc = raftdir_members(c->d, &ms)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (c->o.json) {
        json_t *o = json_object(), *list = json_array();
        for (size_t i = 0; i < ms->n; i++)
            json_array_append_new(list, member_json(&ms->list[i]));
        json_object_set_new(o, "cluster_id", hex_id(ms->cluster_id));
        json_object_set_new(o, "incarnation", json_integer((json_int_t)ms->incarnation));
        json_object_set_new(o, "term", json_integer((json_int_t)ms->term));
        json_object_set_new(o, "leader", ms->leader ? json_integer((json_int_t)ms->leader) : json_null());
        json_object_set_new(o, "members", list);
        ctl_json_print(o);
        return EXIT_DONE;
    }
    struct ctl_table *t = table_begin(c, ">ID,NAME,ROLE,ADDRESS,>MATCH,>LAST CONTACT,UUID");
    for (size_t i = 0; i < ms->n; i++) {
        const struct raftdir_member *m = &ms->list[i];
        char text[2 * RAFTDIR_UUID_LEN + 1];
        table_cell(t, COLOR_NONE, "%" PRIu64, m->id);
        table_cell(t, COLOR_NONE, "%s", m->cert_name);
        table_cell(t, m->leader ? COLOR_GOOD : COLOR_NONE, "%s%s", role_name(m->role), m->leader ? ", leader" : "");
        table_cell(t, COLOR_NONE, "%s", m->address);
        if (m->match_index < 0)
            table_cell(t, COLOR_NONE, "-");
        else
            table_cell(t, COLOR_NONE, "%" PRId64, m->match_index);
        if (m->leader || m->last_contact_ms < 0)
            table_cell(t, COLOR_NONE, "-");
        else {
            ctl_age((uint64_t)m->last_contact_ms, text, sizeof text);
            table_cell(t, m->last_contact_ms > 1000 ? COLOR_BAD : COLOR_NONE, "%s", text);
        }
        ctl_hex(m->uuid, sizeof m->uuid, text);
        table_cell(t, COLOR_DIM, "%s", text);
    }
    table_end(&t);
    return EXIT_DONE;
}

/* An id, or the name in the certificate. Gives the leader's id too. */
static int find_member(struct ctl *c, const char *word, uint64_t *id_r, uint64_t *leader_r)
{
    const struct raftdir_members *ms;
    int rc = raftdir_members(c->d, &ms);
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    char *end;
    errno = 0;
    unsigned long long id = strtoull(word, &end, 10);
    bool is_id = !errno && end != word && !*end;
    *leader_r = ms->leader;
    for (size_t i = 0; i < ms->n; i++)
        if (is_id ? ms->list[i].id == id : !strcmp(ms->list[i].cert_name, word)) {
            *id_r = ms->list[i].id;
            return 0;
        }
    return ctl_error(c, RAFTDIR_ENOTFOUND, "no member \"%s\": `raftdirctl member list` shows them", word);
}

static int parse_uuid(const char *s, uint8_t uuid[RAFTDIR_UUID_LEN])
{
    size_t n = 0;
    for (; *s; s++) {
        if (*s == '-')
            continue;
        const char *digits = "0123456789abcdef", *d = strchr(digits, *s >= 'A' && *s <= 'F' ? *s + 32 : *s);
        if (!d || n == 2 * RAFTDIR_UUID_LEN)
            return -1;
        uuid[n / 2] = (uint8_t)(n % 2 ? uuid[n / 2] | (d - digits) : (d - digits) << 4);
        n++;
    }
    return n == 2 * RAFTDIR_UUID_LEN ? 0 : -1;
}

int ctl_member_add(struct ctl *c)
{
    struct raftdir_member m = {.address = c->args[0], .cert_name = c->args[1], .role = RAFTDIR_STANDBY};
    if (parse_uuid(c->args[2], m.uuid) < 0)
        return ctl_usage_error(c, "UUID is 32 hexadecimal digits: that of the node's data directory, from its file IDENTITY");
    int rc = ctl_open(c);
    if (rc)
        return rc;
    if (!c->o.timeout_ms)
        raftdir_set_timeout(c->d, CHANGE_TIMEOUT_MS);
    uint64_t id;
    if ((rc = raftdir_member_add(c->d, &m, &id, NULL)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (c->o.json)
        ctl_json_print(json_pack("{s:I}", "node_id", (json_int_t)id));
    else
        printf("%s is member %" PRIu64 ", a standby; it has to be told: `raftdirctl -e ITS-ENDPOINT cluster join --via ...` does that\n", m.cert_name, id);
    return EXIT_DONE;
}

static int change(struct ctl *c, uint64_t id, int rc, const char *what)
{
    if (rc < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (c->o.json)
        ctl_json_print(json_pack("{s:I,s:b}", "node_id", (json_int_t)id, "done", 1));
    else
        printf("member %" PRIu64 " %s\n", id, what);
    return EXIT_DONE;
}

int ctl_member_promote(struct ctl *c)
{
    uint64_t id, leader;
    int rc = ctl_open(c);
    if (rc || (rc = find_member(c, c->args[0], &id, &leader)))
        return rc;
    return change(c, id, promote(c, c->d, id), "is a voter");
}

int ctl_member_remove(struct ctl *c)
{
    uint64_t id, leader;
    int rc = ctl_open(c);
    if (rc || (rc = find_member(c, c->args[0], &id, &leader)))
        return rc;
    if (id == leader)
        return ctl_error(c, RAFTDIR_ECONFLICT, "member %" PRIu64 " leads: `raftdirctl leader transfer` first, then remove it", id);
    if (!c->o.yes && !c->o.json && isatty(STDIN_FILENO) && isatty(STDERR_FILENO)) {
        char answer[16];
        fprintf(stderr, "Remove member %" PRIu64 " (%s) for good? It comes back only with an empty data directory. [y/N] ", id, c->args[0]);
        if (!fgets(answer, sizeof answer, stdin) || (answer[0] != 'y' && answer[0] != 'Y')) {
            fputs("Nothing was removed.\n", stderr);
            return EXIT_NO;
        }
    }
    if (!c->o.timeout_ms)
        raftdir_set_timeout(c->d, CHANGE_TIMEOUT_MS);
    rc = raftdir_member_remove(c->d, id);
    /* The node that was asked may be the one that goes, and then it can't say how it ended: the others know. */
    const struct raftdir_members *ms;
    if (rc == RAFTDIR_EUNCERTAIN && raftdir_members(c->d, &ms) == 0) {
        rc = 0;
        for (size_t i = 0; i < ms->n; i++)
            if (ms->list[i].id == id)
                rc = RAFTDIR_EUNCERTAIN;
    }
    return change(c, id, rc, "is removed; stop its daemon");
}

int ctl_leader_show(struct ctl *c)
{
    const struct raftdir_members *ms;
    int rc = ctl_open(c);
    if (rc)
        return rc;
    if ((rc = raftdir_members(c->d, &ms)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    const struct raftdir_member *m = NULL;
    for (size_t i = 0; i < ms->n; i++)
        if (ms->list[i].id == ms->leader)
            m = &ms->list[i];
    if (!ms->leader || !m)
        return ctl_error(c, RAFTDIR_ENOQUORUM, "nobody leads at the moment");
    if (c->o.json) {
        json_t *o = member_json(m);
        json_object_set_new(o, "term", json_integer((json_int_t)ms->term));
        ctl_json_print(o);
    } else
        printf("%s (member %" PRIu64 ", %s) leads term %" PRIu64 "\n", m->cert_name, m->id, m->address, ms->term);
    return EXIT_DONE;
}

/* The voter that has the most of the log, the leader apart, among those that were heard of lately. 0: none. */
static uint64_t next_leader(const struct raftdir_members *ms)
{
    const struct raftdir_member *best = NULL;
    for (size_t i = 0; i < ms->n; i++) {
        const struct raftdir_member *m = &ms->list[i];
        if (m->id != ms->leader && m->role == RAFTDIR_VOTER && m->last_contact_ms >= 0 && m->last_contact_ms <= LIVE_MS &&
            (!best || m->match_index > best->match_index))
            best = m;
    }
    return best ? best->id : 0;
}

int ctl_leader_transfer(struct ctl *c)
{
    uint64_t id = 0, leader;
    int rc = ctl_open(c);
    if (rc)
        return rc;
    const struct raftdir_members *ms;
    if (c->args_n && (rc = find_member(c, c->args[0], &id, &leader)))
        return rc;
    /* To a certain member: sent again to the new leader, as happens when the answer of the old one is lost, "to another" would hand it back. */
    if (!id && (rc = raftdir_members(c->d, &ms)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    if (!id && !(id = next_leader(ms)))
        return ctl_error(c, RAFTDIR_EUNAVAIL, "there is no other voter that could lead: `raftdirctl member list`");
    if ((rc = raftdir_leader_transfer(c->d, id)) < 0)
        return ctl_error_of(c, c->d, rc, NULL);
    uint64_t now = 0;
    if (raftdir_members(c->d, &ms) == 0)
        now = ms->leader;
    if (c->o.json)
        ctl_json_print(json_pack("{s:I}", "leader", (json_int_t)now));
    else
        printf("member %" PRIu64 " leads\n", now);
    return EXIT_DONE;
}
