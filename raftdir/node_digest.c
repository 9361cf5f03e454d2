/* node_digest.c - the digest of this node's state, compared with the other members' (DESIGN D3).
 *
 * Apply records the digest of the state at every DIGEST_INTERVAL-th index. Each member tells all others: at once when it has a new one, again every
 * CHECKPOINT_REPEAT_MS, and when it first hears of another. A frame has the newest ones, and those where the recipient stands by what it told last: so a
 * member that lags, or starts again with an old state, finds indexes in common. Both sides keep DIGESTS_KEPT of each member.
 *
 * At an index that is known of both:
 *  - a majority of all voters (by the newest configuration here) tell one digest, and it isn't ours: this node is wrong. It fails: what it holds is never
 *    served again, and it has to be rebuilt;
 *  - a member differs, and a majority of the voters agree with us: it is wrong, and finds so by itself. An alarm says so, in case that it can't. (If it finds so
 *    before it has told us, there is none: its own status says it.)
 *  - a member differs and there is no majority for either (1 : 1, 2 : 2, or all different): nobody guesses, nobody stops. An alarm, once all voters have spoken, or
 *    when DIGEST_ALARM_AFTER_MS have passed: a voter that is only late isn't worth one.
 * Standbys compare and are compared, but only voters count. A sole voter has nobody to ask; a standby of its believes it.
 *
 * Invariants: an alarm is raised once for each member and verdict, until the member agrees again at a later index, or is none any more; then it is taken back.
 * Nothing is remembered of who isn't a member.
 * Limits: a difference that comes and goes between two checkpoints isn't seen here (store_verify finds what doesn't fit in one node by itself); members that are
 * more than DIGESTS_KEPT checkpoints apart have nothing in common until the later one comes nearer. That a node was found
 * wrong outlives it: the daemon notes it down (datadir_failure_set). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "node_internal.h"

#define DIGEST_LEN 16
#define DIGEST_ALARM_AFTER_MS (3 * CHECKPOINT_REPEAT_MS)

/* --- Lists ------------------------------------------------------------------------------------------------------------------ */

static const struct store_checkpoint *list_find(const struct digest_list *l, uint64_t index)
{
    for (size_t i = l->n; i > 0 && l->at[i - 1].index >= index; i--)
        if (l->at[i - 1].index == index)
            return &l->at[i - 1];
    return NULL;
}

static uint64_t list_newest(const struct digest_list *l)
{
    return l->n ? l->at[l->n - 1].index : 0;
}

/* In its place; what is said again replaces what was said. When the list is full, the oldest gives way. */
static void list_put(struct digest_list *l, const struct store_checkpoint *c)
{
    size_t i = l->n;
    while (i > 0 && l->at[i - 1].index > c->index)
        i--;
    if (i > 0 && l->at[i - 1].index == c->index) {
        l->at[i - 1] = *c;
        return;
    }
    if (l->n == DIGESTS_KEPT) {
        if (i == 0)
            return;
        memmove(&l->at[0], &l->at[1], --i * sizeof l->at[0]);
    } else {
        memmove(&l->at[i + 1], &l->at[i], (l->n - i) * sizeof l->at[0]);
        l->n++;
    }
    l->at[i] = *c;
}

static bool same(const struct store_checkpoint *a, const struct store_checkpoint *b)
{
    return memcmp(a->digest, b->digest, DIGEST_LEN) == 0;
}

static const char *hex(const struct store_checkpoint *c, char text[2 * DIGEST_LEN + 1])
{
    for (size_t i = 0; i < DIGEST_LEN; i++)
        snprintf(text + 2 * i, 3, "%02x", c->digest[i]);
    return text;
}

/* --- Members ---------------------------------------------------------------------------------------------------------------- */

static bool is_voter(const struct node *n, uint64_t id)
{
    const struct raft_server *s = node_server(n, id);
    return s && s->role == RAFT_VOTER;
}

/* A member's alarm is over. There is one text for all: that of another is raised anew (by the next period), or there is none any more. */
static void alarm_over(struct node *n)
{
    bool others = false;
    for (size_t i = 0; i < n->digests.members_n; i++) {
        others |= n->digests.members[i]->alarmed != DIGEST_FINE;
        n->digests.members[i]->alarmed = DIGEST_FINE;
    }
    if (!others)
        n->io.alarm(n->io.data, NULL);
}

/* Those that aren't members any more are forgotten. */
static void members_prune(struct node *n)
{
    struct digests *d = &n->digests;
    size_t kept = 0;
    bool alarmed = false;
    for (size_t i = 0; i < d->members_n; i++) {
        if (node_server(n, d->members[i]->id)) {
            d->members[kept++] = d->members[i];
            continue;
        }
        alarmed |= d->members[i]->alarmed != DIGEST_FINE;
        free(d->members[i]);
    }
    d->members_n = kept;
    if (alarmed)
        alarm_over(n);
}

/* Makes it; NULL without memory, and beyond MEMBERS_MAX. */
static struct digest_member *member_get(struct node *n, uint64_t id)
{
    struct digests *d = &n->digests;
    for (size_t i = 0; i < d->members_n; i++)
        if (d->members[i]->id == id)
            return d->members[i];
    if (d->members_n == MEMBERS_MAX)
        members_prune(n);
    if (d->members_n == MEMBERS_MAX)
        return NULL;
    struct digest_member *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->id = id;
    d->members[d->members_n++] = m;
    return m;
}

/* --- Who is right ----------------------------------------------------------------------------------------------------------- */

/* What the voters say about one index. */
struct opinion {
    unsigned voters;
    unsigned told;   /* of them, without this node, that have said anything */
    unsigned ours;   /* that say what we say, this node counted if it is one */
    unsigned theirs; /* the most that say one same thing that isn't ours */
    const struct store_checkpoint *other; /* and what */
};

static void opinion_get(const struct node *n, const struct store_checkpoint *own, struct opinion *o)
{
    const struct raft_configuration *c = &n->raft->configuration;
    const struct store_checkpoint *said[MEMBERS_MAX];
    unsigned said_n = 0;
    memset(o, 0, sizeof *o);
    for (unsigned i = 0; i < c->n; i++)
        o->voters += c->servers[i].role == RAFT_VOTER;
    o->ours = is_voter(n, n->options.id);
    for (size_t i = 0; i < n->digests.members_n; i++) {
        const struct digest_member *m = n->digests.members[i];
        const struct store_checkpoint *their = list_find(&m->told, own->index);
        if (!their || !is_voter(n, m->id))
            continue;
        o->told++;
        if (same(their, own))
            o->ours++;
        else
            said[said_n++] = their;
    }
    for (unsigned i = 0; i < said_n; i++) {
        unsigned alike = 0;
        for (unsigned k = 0; k < said_n; k++)
            alike += same(said[i], said[k]);
        if (alike > o->theirs) {
            o->theirs = alike;
            o->other = said[i];
        }
    }
}

/* The voters that say so, as "2, 3"; in the configuration's order, which is that of their ids. */
static void who_says(const struct node *n, const struct store_checkpoint *c, char *text, size_t size)
{
    const struct raft_configuration *members = &n->raft->configuration;
    size_t len = 0;
    text[0] = 0;
    for (unsigned k = 0; k < members->n; k++)
        for (size_t i = 0; i < n->digests.members_n && len < size; i++) {
            const struct digest_member *m = n->digests.members[i];
            const struct store_checkpoint *their = list_find(&m->told, c->index);
            if (m->id == members->servers[k].id && members->servers[k].role == RAFT_VOTER && their && same(their, c))
                len += (size_t)snprintf(text + len, size - len, "%s%llu", len ? ", " : "", (unsigned long long)m->id);
        }
}

/* Is this node wrong at that index? Then it fails. */
static void judge_self(struct node *n, const struct store_checkpoint *own)
{
    struct opinion o;
    char ours[2 * DIGEST_LEN + 1], theirs[2 * DIGEST_LEN + 1], who[128];
    if (n->failed)
        return;
    opinion_get(n, own, &o);
    if (2 * o.theirs <= o.voters)
        return;
    who_says(n, o.other, who, sizeof who);
    err_set(&n->err, RAFTDIR_ECORRUPT,
            "this node's state is not the cluster's: at index %llu its digest is %s, and %s at %u of %u voters (members %s). It is not served any more. Rebuild this node from the "
            "others: raftdirctl cluster rebuild",
            (unsigned long long)own->index, hex(own, ours), hex(o.other, theirs), o.theirs, o.voters, who);
    node_fail(n, RAFTDIR_ECORRUPT, n->err.text);
}

static void alarm_member(struct node *n, const struct digest_member *m, enum digest_verdict verdict, const struct store_checkpoint *own,
                         const struct store_checkpoint *their, const struct opinion *o)
{
    char ours[2 * DIGEST_LEN + 1], theirs[2 * DIGEST_LEN + 1], text[ERR_TEXT_LEN];
    if (verdict == DIGEST_MEMBER_IS_WRONG)
        snprintf(text, sizeof text,
                 "member %llu differs from the majority and should stop by itself: at index %llu its digest is %s, and %s here, as at %u of %u voters. Rebuild it: "
                 "raftdirctl cluster rebuild",
                 (unsigned long long)m->id, (unsigned long long)own->index, hex(their, theirs), hex(own, ours), o->ours, o->voters);
    else
        snprintf(text, sizeof text,
                 "the state of member %llu differs from this node's, and no majority of the %u voters says which one is right: at index %llu its digest is %s, and %s here. "
                 "Nobody stops by itself. Look at both with raftdirctl verify, and rebuild the wrong one: raftdirctl cluster rebuild",
                 (unsigned long long)m->id, o->voters, (unsigned long long)own->index, hex(their, theirs), hex(own, ours));
    n->io.alarm(n->io.data, text);
}

/* Where does a member stand, by all that is known of both? */
static void judge_member(struct node *n, struct digest_member *m)
{
    const struct store_checkpoint *own = NULL, *their = NULL;
    struct opinion o, here;
    uint64_t newest = 0;
    enum digest_verdict verdict = DIGEST_UNDECIDED;
    for (size_t i = m->told.n; i > 0; i--) {
        const struct store_checkpoint *t = &m->told.at[i - 1], *w = list_find(&n->digests.own, t->index);
        if (!w)
            continue;
        if (same(t, w)) {
            if (their)
                break; /* it differs since after this */
            bool alarmed = m->alarmed != DIGEST_FINE;
            m->differs_index = 0;
            m->alarmed = DIGEST_FINE;
            if (alarmed)
                alarm_over(n);
            return;
        }
        opinion_get(n, w, &here);
        if (!newest)
            newest = w->index;
        if (!their || 2 * here.ours > here.voters) {
            own = w;
            their = t;
            o = here;
        }
        if (2 * here.ours > here.voters) { /* others may have got no further yet than this */
            verdict = DIGEST_MEMBER_IS_WRONG;
            break;
        }
    }
    if (!their)
        return; /* nothing in common any more: what was known stands */
    if (!m->differs_index)
        m->differs_ms = n->now;
    m->differs_index = newest;
    if (verdict == DIGEST_UNDECIDED && o.told < o.voters - is_voter(n, n->options.id) && n->now - m->differs_ms < DIGEST_ALARM_AFTER_MS)
        return;
    if (verdict > m->alarmed) {
        m->alarmed = verdict;
        alarm_member(n, m, verdict, own, their, &o);
    }
}

static void judge_members(struct node *n)
{
    for (size_t i = 0; i < n->digests.members_n && !n->failed; i++)
        judge_member(n, n->digests.members[i]);
}

/* --- What comes in ---------------------------------------------------------------------------------------------------------- */

void node_digests_boot(struct node *n, const struct store_checkpoint *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        list_put(&n->digests.own, &list[i]);
}

void node_digests_applied(struct node *n, const struct store_checkpoint *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        list_put(&n->digests.own, &list[i]);
    if (!count)
        return;
    n->digests.news = true;
    for (size_t i = 0; i < count; i++)
        judge_self(n, &list[i]);
    judge_members(n);
}

void node_digests_receive(struct node *n, uint64_t from, const Raftdir__Peer__Checkpoints *c)
{
    struct store_checkpoint list[CHECKPOINTS_PER_FRAME];
    bool fine = node_server(n, from) && c->n_checkpoints > 0 && c->n_checkpoints <= CHECKPOINTS_PER_FRAME;
    for (size_t i = 0; fine && i < c->n_checkpoints; i++) {
        const Raftdir__Peer__Checkpoint *one = c->checkpoints[i];
        fine = one->index > 0 && one->index % DIGEST_INTERVAL == 0 && one->digest.len == DIGEST_LEN && (i == 0 || one->index > list[i - 1].index);
        if (fine) {
            list[i].index = one->index;
            memcpy(list[i].digest, one->digest.data, DIGEST_LEN);
        }
    }
    struct digest_member *m = fine ? member_get(n, from) : NULL;
    if (!m) {
        n->frames_dropped++;
        return;
    }
    for (size_t i = 0; i < c->n_checkpoints; i++)
        list_put(&m->told, &list[i]);
    for (size_t i = 0; i < c->n_checkpoints; i++) {
        const struct store_checkpoint *own = list_find(&n->digests.own, list[i].index);
        if (own)
            judge_self(n, own);
    }
    judge_members(n);
}

/* --- What goes out ---------------------------------------------------------------------------------------------------------- */

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Half of it the newest, half of it where the other stands; either takes what the other half leaves. */
static void tell(struct node *n, const struct digest_member *m)
{
    const struct digest_list *own = &n->digests.own;
    Raftdir__Peer__Checkpoint items[CHECKPOINTS_PER_FRAME], *list[CHECKPOINTS_PER_FRAME];
    Raftdir__Peer__Checkpoints body = RAFTDIR__PEER__CHECKPOINTS__INIT;
    Raftdir__Peer__Frame f;
    size_t stands = 0;
    while (stands < own->n && own->at[stands].index <= list_newest(&m->told))
        stands++;
    size_t newest = min_size(own->n - stands, CHECKPOINTS_PER_FRAME / 2);
    size_t common = min_size(stands, CHECKPOINTS_PER_FRAME - newest);
    newest = min_size(own->n - stands, CHECKPOINTS_PER_FRAME - common);
    for (size_t i = 0; i < common + newest; i++) {
        const struct store_checkpoint *c = i < common ? &own->at[stands - common + i] : &own->at[own->n - newest + i - common];
        raftdir__peer__checkpoint__init(&items[i]);
        items[i].index = c->index;
        items[i].digest.data = (uint8_t *)(uintptr_t)c->digest;
        items[i].digest.len = DIGEST_LEN;
        list[i] = &items[i];
    }
    node_frame_init(n, &f, m->id, RAFTDIR__PEER__FRAME__BODY_CHECKPOINTS);
    f.checkpoints = &body;
    body.checkpoints = list;
    body.n_checkpoints = common + newest;
    node_frame_send(n, &f);
}

static void tell_members(struct node *n)
{
    const struct raft_configuration *c = &n->raft->configuration;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->servers[i].id == n->options.id)
            continue;
        struct digest_member *m = member_get(n, c->servers[i].id);
        if (!m)
            continue;
        const struct node_peer_state *p = node_peer_state(n, m->id);
        bool met = p && p->last_frame_ms && !m->heard;
        if (!n->digests.news && !met && m->sent_ms && n->now - m->sent_ms < CHECKPOINT_REPEAT_MS)
            continue;
        m->heard |= met;
        m->sent_ms = n->now;
        tell(n, m);
    }
    n->digests.news = false;
}

void node_digests_period(struct node *n)
{
    struct digests *d = &n->digests;
    const struct raft *r = n->raft;
    if (n->failed)
        return;
    if (d->configuration_seen[0] != r->configuration_committed_index || d->configuration_seen[1] != r->configuration_uncommitted_index) {
        d->configuration_seen[0] = r->configuration_committed_index;
        d->configuration_seen[1] = r->configuration_uncommitted_index;
        members_prune(n); /* other majorities are looked at with the next frames, which repeat what these members have said */
    }
    for (size_t i = 0; i < d->members_n; i++)
        if (d->members[i]->differs_index && !d->members[i]->alarmed)
            judge_member(n, d->members[i]);
    if (d->own.n)
        tell_members(n);
}

/* --- For others ------------------------------------------------------------------------------------------------------------- */

void node_digests_status(const struct node *n, struct node_status *s)
{
    const struct digest_member *first = NULL;
    for (size_t i = 0; i < n->digests.members_n; i++) {
        const struct digest_member *m = n->digests.members[i];
        if (!m->differs_index || !node_server(n, m->id))
            continue;
        s->differs_undecided |= m->alarmed != DIGEST_MEMBER_IS_WRONG;
        /* The most certain one; of equals, the one that has been so for longest. */
        if (!first || m->alarmed > first->alarmed || (m->alarmed == first->alarmed && m->differs_ms < first->differs_ms))
            first = m;
    }
    s->differs_id = first ? first->id : 0;
    s->differs_index = first ? first->differs_index : 0;
}

void node_digests_close(struct node *n)
{
    for (size_t i = 0; i < n->digests.members_n; i++)
        free(n->digests.members[i]);
    n->digests.members_n = 0;
}
