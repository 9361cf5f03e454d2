/* guard_step.c - one raft_step: what is repaired in its update before the driver sees it. See guard.h.
 *
 * Memory: a SUBMIT or an AppendEntries carries an array of entries that is one raft_malloc block, which is also the `batch` of each of them. The core
 * frees batches on some paths (answered, ignored, failed) and hands them out in the update on the others: then they are freed here, after on_update. So
 * the array lives exactly as long as the core or the driver may look at it, and the payloads stay the caller's all the time.
 *
 * Known bug of the core that can't be closed from outside: when memory runs out while it queues the answer to an AppendEntries, it frees the
 * batch twice. The daemon ends on memory shortage anyway. */
#include "guard_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int guard_fail(struct guard *g, int code, struct err *err, const char *fmt, ...)
{
    char text[ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!g->failed)
        g->failed = code;
    return err_set(err, code, "%s", text);
}

raft_index guard_trail_last(const struct raft *r)
{
    const struct raft_trail *t = &r->trail;
    if (t->front == t->back)
        return t->snapshot.index;
    return t->records[(t->back + t->size - 1) % t->size].index;
}

raft_term guard_trail_term(const struct raft *r, raft_index index)
{
    const struct raft_trail *t = &r->trail;
    if (index == 0)
        return 0;
    if (index > t->offset)
        for (unsigned i = t->front; i != t->back; i = (i + 1) % t->size)
            if (index <= t->records[i].index)
                return t->records[i].term;
    return index == t->snapshot.index ? t->snapshot.term : 0;
}

static void message_remove(struct raft_update *u, unsigned i)
{
    memmove(&u->messages.batch[i], &u->messages.batch[i + 1], (u->messages.n - i - 1) * sizeof *u->messages.batch);
    u->messages.n--;
    if (u->messages.n == 0)
        u->flags &= ~(unsigned)(RAFT_UPDATE_MESSAGES);
}

/* An AppendEntries that carries a CHANGE which this leader itself hasn't stored yet. */
static bool carries_unstored_change(const struct raft *r, const struct raft_append_entries *a)
{
    raft_index change = r->configuration_uncommitted_index;
    return change > r->last_stored && change > a->prev_log_index && change - a->prev_log_index <= a->n_entries;
}

static void repair_messages(struct guard *g, struct guard_step *s, struct raft_update *u)
{
    struct raft *r = &g->raft;
    unsigned i = 0;
    while (i < u->messages.n) {
        struct raft_message *m = &u->messages.batch[i];
        bool drop = false;
        switch (m->type) {
        case RAFT_APPEND_ENTRIES:
            drop = guard_on(g, GUARD_CHANGE_STORED) && carries_unstored_change(r, &m->append_entries);
            g->counts.changes_held += drop;
            break;
        case RAFT_APPEND_ENTRIES_RESULT:
            if (s->stale && guard_on(g, GUARD_STALE_RESULT)) {
                m->append_entries_result.rejected = 0;
                m->append_entries_result.last_log_index = 0;
            }
            if (m->append_entries_result.rejected)
                s->rejected = true;
            break;
        case RAFT_REQUEST_VOTE_RESULT: {
            struct raft_request_vote_result *v = &m->request_vote_result;
            drop = s->own_vote;
            if (guard_on(g, GUARD_PREVOTE_TERM) && v->pre_vote && !v->vote_granted && v->term < r->current_term)
                v->term = r->current_term;
            break;
        }
        case RAFT_INSTALL_SNAPSHOT: /* the core leaves these two uninitialised */
            raft_configuration_init(&m->install_snapshot.conf);
            memset(&m->install_snapshot.data, 0, sizeof m->install_snapshot.data);
            break;
        default:
            break;
        }
        if (drop)
            message_remove(u, i);
        else
            i++;
    }
    /* The messages of this round carry the flag; those of the next rounds won't. */
    if (r->state == RAFT_CANDIDATE && guard_on(g, GUARD_DISRUPT_ONCE))
        r->candidate_state.disrupt_leader = false;
}

static bool has_barrier(const struct raft_update *u)
{
    if (u->flags & RAFT_UPDATE_ENTRIES)
        for (unsigned i = 0; i < u->entries.n; i++)
            if (u->entries.batch[i].type == RAFT_BARRIER)
                return true;
    return false;
}

int guard_step_barrier(struct guard *g, raft_time now, struct err *err)
{
    static const uint64_t zero;
    struct raft_entry barrier = {.type = RAFT_BARRIER, .buf = {.base = (void *)(uintptr_t)&zero, .len = sizeof zero}};
    return guard_step_submit(g, now, &barrier, 1, NULL, err);
}

int guard_step(struct guard *g, raft_time now, struct guard_step *s, int *refused, struct err *err)
{
    struct raft *r = &g->raft;
    unsigned short state = r->state;
    raft_term term = r->current_term;
    raft_index commit = r->commit_index;
    struct raft_update u;
    memset(&u, 0, sizeof u);
    s->event.time = now;
    s->event.capacity = 0;
    int rc = raft_step(r, &s->event, &u);
    if (refused)
        *refused = rc;
    if (rc) {
        if (refused && (rc == RAFT_NOTLEADER || rc == RAFT_CANTCHANGE || rc == RAFT_NOSPACE || rc == RAFT_NOTFOUND || rc == RAFT_BADID || rc == RAFT_MALFORMED))
            return 0; /* refused before the core changed anything */
        return guard_fail(g, err_from_raft(rc), err, "the core failed in event %d: %s", (int)s->event.type, raft_strerror(rc));
    }
    s->stepped = true;
    if (s->new_term)
        u.flags |= RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR;
    if (s->own_vote)
        r->election_timer_start = s->timer;
    if (guard_on(g, GUARD_COMMIT_MONOTONIC) && r->commit_index < commit) {
        r->commit_index = commit;
        u.flags &= ~(unsigned)(RAFT_UPDATE_COMMIT_INDEX);
    }
    if (!(u.flags & RAFT_UPDATE_MESSAGES))
        u.messages.n = 0;
    repair_messages(g, s, &u);
    bool elected = r->state == RAFT_LEADER && (state != RAFT_LEADER || term != r->current_term);
    bool barrier = has_barrier(&u);

    rc = g->ops.on_update(g->ops.data, &u);
    if (u.flags & RAFT_UPDATE_ENTRIES)
        raft_free(u.entries.batch[0].batch);
    if (u.flags & RAFT_UPDATE_SNAPSHOT)
        raft_configuration_close(&u.snapshot.metadata.configuration);
    if (rc < 0)
        return guard_fail(g, rc, err, "the driver failed to carry out an update: %s", err_text(rc));
    if (elected && !barrier && guard_on(g, GUARD_BARRIER))
        return guard_step_barrier(g, now, err);
    return 0;
}

int guard_step_submit(struct guard *g, raft_time now, const struct raft_entry *entries, unsigned n, int *refused, struct err *err)
{
    struct guard_step s;
    struct raft_entry *batch = raft_malloc(n * sizeof *batch);
    if (!batch)
        return guard_fail(g, RAFTDIR_ENOMEM, err, "no memory to submit %u entries", n);
    for (unsigned i = 0; i < n; i++) {
        batch[i] = entries[i];
        batch[i].term = g->raft.current_term;
        batch[i].batch = batch;
    }
    memset(&s, 0, sizeof s);
    s.event.type = RAFT_SUBMIT;
    s.event.submit.entries = batch;
    s.event.submit.n = n;
    int rv = 0;
    int rc = guard_step(g, now, &s, &rv, err);
    if (rv)
        raft_free(batch); /* the core leaves a refused batch to us */
    if (refused)
        *refused = rv;
    else if (!rc && rv)
        return guard_fail(g, err_from_raft(rv), err, "the core refused a barrier: %s", raft_strerror(rv));
    return rc;
}
