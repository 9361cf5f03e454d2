/* ctl_member.c - members and leadership: list, add, promote, demote, remove, transfer. */
#include "ctl_member.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LIVE_MS 2000            /* a member heard of since then is there */
#define CATCH_UP_CLOSE 1000     /* entries behind the leader: near enough for a promotion, which waits for the rest */
#define CATCH_UP_LOOK_MS 250
#define CATCH_UP_STUCK_MS 60000 /* without progress */
#define PROMOTE_TIMEOUT_MS (4 * CHANGE_TIMEOUT_MS) /* under a heavy load the rest takes its time */

const char *ctl_role_name(int role)
{
    return role == RAFTDIR_VOTER ? "voter" : role == RAFTDIR_STANDBY ? "standby" : role == RAFTDIR_SPARE ? "spare" : "?";
}

void ctl_pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

json_t *ctl_id_json(uint64_t id)
{
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, id);
    return ctl_string(text);
}

json_t *ctl_member_json(const struct raftdir_member *m)
{
    json_t *o = json_object();
    json_object_set_new(o, "id", json_integer((json_int_t)m->id));
    json_object_set_new(o, "cert_name", ctl_string(m->cert_name));
    json_object_set_new(o, "address", ctl_string(m->address));
    json_object_set_new(o, "role", ctl_string(ctl_role_name(m->role)));
    json_object_set_new(o, "leader", json_boolean(m->leader));
    json_object_set_new(o, "uuid", ctl_hex_json(m->uuid, sizeof m->uuid));
    json_object_set_new(o, "match_index", m->match_index < 0 ? json_null() : json_integer(m->match_index));
    json_object_set_new(o, "last_contact_ms", m->last_contact_ms < 0 ? json_null() : json_integer(m->last_contact_ms));
    return o;
}

const struct raftdir_member *ctl_member_by_id(const struct raftdir_members *ms, uint64_t id)
{
    for (size_t i = 0; ms && i < ms->n; i++)
        if (ms->list[i].id == id)
            return &ms->list[i];
    return NULL;
}

const struct raftdir_member *ctl_member_by_uuid(const struct raftdir_members *ms, const uint8_t uuid[RAFTDIR_UUID_LEN])
{
    for (size_t i = 0; ms && i < ms->n; i++)
        if (!memcmp(ms->list[i].uuid, uuid, RAFTDIR_UUID_LEN))
            return &ms->list[i];
    return NULL;
}

bool ctl_confirm(struct ctl *c, const char *fmt, ...)
{
    char answer[16];
    va_list ap;
    if (c->o.yes || c->o.json || !isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
        return true;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs(" [y/N] ", stderr);
    return fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

/* --- Changes that wait for others ---------------------------------------------------------------------------------------------- */

/* How far a member has come: what must move for the wait to go on, and what the bar shows. */
struct advance {
    uint64_t position, total;
    char what[96];
    const char *unit;
};

static void advance_of(raftdir *node, const struct raftdir_member *m, uint64_t last, struct advance *a)
{
    const struct raftdir_node_status *s;
    *a = (struct advance){.position = m->match_index > 0 ? (uint64_t)m->match_index : 0, .total = last, .unit = "entries"};
    snprintf(a->what, sizeof a->what, "member %" PRIu64 " catches up", m->id);
    if (!node || raftdir_status(node, &s) < 0 || !*s->fetching.phase)
        return;
    a->position = s->fetching.rows;
    a->total = s->fetching.rows_total;
    a->unit = "rows";
    snprintf(a->what, sizeof a->what, "member %" PRIu64 ": image, %s", m->id, s->fetching.phase);
}

int ctl_catch_up(struct ctl *c, raftdir *via, raftdir *node, uint64_t id)
{
    struct progress p = {0};
    struct advance before = {0};
    uint64_t moved_ms = ctl_now_ms();
    int rc = 0;
    for (;; ctl_pause_ms(CATCH_UP_LOOK_MS)) {
        const struct raftdir_members *ms;
        const struct raftdir_member *m, *leader;
        struct advance now;
        rc = raftdir_members(via, &ms);
        if (rc == RAFTDIR_EAUTH || rc == RAFTDIR_EPERM)
            break;
        if (rc == 0 && !(m = ctl_member_by_id(ms, id))) {
            rc = RAFTDIR_ENOTFOUND;
            break;
        }
        if (rc == 0 && (leader = ctl_member_by_id(ms, ms->leader))) {
            if (m->match_index >= 0 && m->match_index + CATCH_UP_CLOSE >= leader->match_index)
                break;
            advance_of(node, m, (uint64_t)leader->match_index, &now);
            if (strcmp(now.what, before.what)) {
                if (*before.what)
                    progress_end(&p);
                before = now;
                moved_ms = ctl_now_ms();
                progress_begin(&p, c, before.what, before.unit, before.total);
            } else if (now.position != before.position) {
                before.position = now.position;
                moved_ms = ctl_now_ms();
            }
            p.total = now.total;
            progress_tell(&p, now.position, now.position);
        }
        if (ctl_now_ms() - moved_ms > CATCH_UP_STUCK_MS) {
            rc = RAFTDIR_ETIMEDOUT;
            break;
        }
    }
    if (*before.what)
        progress_end(&p);
    if (rc == RAFTDIR_ETIMEDOUT)
        ctl_error(c, rc, "member %" PRIu64 " has made no progress for %d s: is it running and connected? `raftdirctl cluster status` tells; then run this again", id,
                  CATCH_UP_STUCK_MS / 1000);
    else if (rc == RAFTDIR_ENOTFOUND)
        ctl_error(c, rc, "member %" PRIu64 " was removed meanwhile", id);
    else if (rc < 0)
        ctl_error_of(c, via, rc, "waiting for the member");
    return rc;
}

/* One change at a time: what is refused because of another one, or whose answer was lost, is asked again, but no longer than the user would wait. The error is told:
 * looking whether it has happened forgets what the node had said. */
static int change_retry(struct ctl *c, raftdir *via, uint64_t id, int (*ask)(raftdir *d, uint64_t id), bool (*is_done)(const struct raftdir_member *m), unsigned patience_ms,
                        const char *what)
{
    unsigned total_ms = c->o.timeout_ms ? c->o.timeout_ms : patience_ms;
    uint64_t now = ctl_now_ms(), until = now + total_ms;
    char why[512] = "";
    int rc;
    for (;;) {
        const struct raftdir_members *ms;
        raftdir_set_timeout(via, now < until ? (unsigned)(until - now) : 1);
        rc = ask(via, id);
        if (rc >= 0)
            break;
        snprintf(why, sizeof why, "%s", *raftdir_message(via) ? raftdir_message(via) : raftdir_strerror(rc));
        raftdir_set_timeout(via, total_ms);
        if (rc == RAFTDIR_EUNCERTAIN && raftdir_members(via, &ms) == 0 && is_done(ctl_member_by_id(ms, id)))
            rc = 0;
        if (rc != RAFTDIR_EBUSY && rc != RAFTDIR_EUNCERTAIN)
            break;
        ctl_pause_ms(250);
        if ((now = ctl_now_ms()) >= until)
            break;
    }
    raftdir_set_timeout(via, total_ms);
    if (rc >= 0)
        return 0;
    ctl_error(c, rc, "%s%s%s", what ? what : "", what ? ": " : "", why);
    return rc;
}

static bool votes(const struct raftdir_member *m)
{
    return m && m->role == RAFTDIR_VOTER;
}

static bool votes_not(const struct raftdir_member *m)
{
    return m && m->role != RAFTDIR_VOTER;
}

static bool is_gone(const struct raftdir_member *m)
{
    return !m;
}

int ctl_promote(struct ctl *c, raftdir *via, uint64_t id, const char *what)
{
    return change_retry(c, via, id, raftdir_member_promote, votes, PROMOTE_TIMEOUT_MS, what);
}

int ctl_remove(struct ctl *c, raftdir *via, uint64_t id, const char *what)
{
    return change_retry(c, via, id, raftdir_member_remove, is_gone, CHANGE_TIMEOUT_MS, what);
}

/* --- Commands -------------------------------------------------------------------------------------------------------------------- */

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
            json_array_append_new(list, ctl_member_json(&ms->list[i]));
        json_object_set_new(o, "cluster_id", ctl_id_json(ms->cluster_id));
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
        table_cell(t, m->leader ? COLOR_GOOD : COLOR_NONE, "%s%s", ctl_role_name(m->role), m->leader ? ", leader" : "");
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

/* rc: an error that was told, or 0. */
static int change(struct ctl *c, uint64_t id, int rc, const char *what)
{
    if (rc < 0)
        return ctl_exit_code(rc);
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
    if ((rc = ctl_catch_up(c, c->d, NULL, id)) < 0)
        return ctl_exit_code(rc);
    return change(c, id, ctl_promote(c, c->d, id, NULL), "is a voter");
}

int ctl_member_demote(struct ctl *c)
{
    uint64_t id, leader;
    int rc = ctl_open(c);
    if (rc || (rc = find_member(c, c->args[0], &id, &leader)))
        return rc;
    if (id == leader)
        return ctl_error(c, RAFTDIR_ECONFLICT, "member %" PRIu64 " leads: `raftdirctl leader transfer` first, then demote it", id);
    return change(c, id, change_retry(c, c->d, id, raftdir_member_demote, votes_not, CHANGE_TIMEOUT_MS, NULL), "is a standby: it has everything, and doesn't vote");
}

int ctl_member_remove(struct ctl *c)
{
    uint64_t id, leader;
    int rc = ctl_open(c);
    if (rc || (rc = find_member(c, c->args[0], &id, &leader)))
        return rc;
    if (id == leader)
        return ctl_error(c, RAFTDIR_ECONFLICT, "member %" PRIu64 " leads: `raftdirctl leader transfer` first, then remove it", id);
    if (!ctl_confirm(c, "Remove member %" PRIu64 " (%s) for good? It comes back only as a new member (`raftdirctl cluster rebuild`).", id, c->args[0])) {
        fputs("Nothing was removed.\n", stderr);
        return EXIT_NO;
    }
    return change(c, id, ctl_remove(c, c->d, id, NULL), "is removed; stop its daemon");
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
        json_t *o = ctl_member_json(m);
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
