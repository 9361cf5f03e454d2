/* linear.c - the search described in linear.h. */
#include "linear.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_DEFAULT 20000000ull
#define SEEN_MAX (1u << 24) /* sets remembered for one key; 24 bytes each */

static const char *const kinds[LINEAR_KINDS] = {"create", "put", "setacl", "delete", "lookup"};
static const char *const outcomes[LINEAR_OUTCOMES] = {"done", "notfound", "exists", "uncertain", "notdone"};

/* --- The model: a mailbox is absent (0) or has a value ------------------------------------------------------------------------------------------ */

/* May `op` come next? And what is then? */
static bool model_step(uint64_t state, const struct linear_op *op, uint64_t *state_r)
{
    bool there = state != 0;
    *state_r = state;
    switch (op->kind) {
    case LINEAR_CREATE:
        if (op->outcome == LINEAR_EXISTS)
            return there;
        if (there)
            return op->outcome == LINEAR_UNCERTAIN;
        *state_r = op->value;
        return true;
    case LINEAR_PUT:
        *state_r = op->value;
        return true;
    case LINEAR_SETACL:
    case LINEAR_DELETE:
        if (op->outcome == LINEAR_NOT_FOUND)
            return !there;
        if (!there)
            return op->outcome == LINEAR_UNCERTAIN;
        *state_r = op->kind == LINEAR_DELETE ? 0 : op->value;
        return true;
    default:
        return op->outcome == LINEAR_NOT_FOUND ? !there : state == op->value;
    }
}

static bool well_formed(const struct linear_op *op)
{
    bool writes_value = op->kind == LINEAR_CREATE || op->kind == LINEAR_PUT || op->kind == LINEAR_SETACL;
    if (op->outcome == LINEAR_EXISTS && op->kind != LINEAR_CREATE)
        return false;
    if (op->outcome == LINEAR_NOT_FOUND && (op->kind == LINEAR_CREATE || op->kind == LINEAR_PUT))
        return false;
    if ((writes_value || (op->kind == LINEAR_LOOKUP && op->outcome == LINEAR_DONE)) && !op->value)
        return false;
    if (op->return_ns == UINT64_MAX && op->outcome != LINEAR_UNCERTAIN)
        return false;
    return op->invoke_ns <= op->return_ns;
}

/* --- Sets that were tried ------------------------------------------------------------------------------------------------------------------------ */

struct set {
    uint64_t a, b; /* hash of the operations; 0, 0: a free place */
    uint64_t state;
};
struct seen {
    struct set *slots;
    size_t size, n;
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u; /* splitmix64 */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static struct set *seen_find(const struct seen *s, const struct set *k)
{
    size_t i = mix(k->a ^ mix(k->state)) & (s->size - 1);
    while ((s->slots[i].a || s->slots[i].b) && (s->slots[i].a != k->a || s->slots[i].b != k->b || s->slots[i].state != k->state))
        i = (i + 1) & (s->size - 1);
    return &s->slots[i];
}

/* 1: new; 0: known; -1: no room. */
static int seen_add(struct seen *s, const struct set *k)
{
    if (2 * s->n >= s->size) {
        struct seen bigger = {.size = s->size ? 2 * s->size : 1024, .n = s->n};
        if (bigger.size > 2ull * SEEN_MAX || !(bigger.slots = calloc(bigger.size, sizeof *bigger.slots)))
            return -1;
        for (size_t i = 0; i < s->size; i++)
            if (s->slots[i].a || s->slots[i].b)
                *seen_find(&bigger, &s->slots[i]) = s->slots[i];
        free(s->slots);
        *s = bigger;
    }
    struct set *at = seen_find(s, k);
    if (at->a || at->b)
        return 0;
    *at = *k;
    s->n++;
    return 1;
}

/* --- One key --------------------------------------------------------------------------------------------------------------------------------------- */

/* The beginnings and ends in the order of time; those of operations that have their place are unlinked. */
struct event {
    struct event *prev, *next, *end; /* end: of a beginning; NULL: there is none */
    const struct linear_op *op;
    uint64_t at;
    size_t number;                   /* of the operation */
    bool is_end;
};

static int by_time(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    /* At the same moment: neither was before the other, so beginnings first. */
    return (int)x->is_end - (int)y->is_end;
}

static void unlink_event(struct event *e)
{
    e->prev->next = e->next;
    if (e->next)
        e->next->prev = e->prev;
}

static void link_event(struct event *e)
{
    e->prev->next = e;
    if (e->next)
        e->next->prev = e;
}

static void lift(struct event *begin)
{
    unlink_event(begin);
    if (begin->end)
        unlink_event(begin->end);
}

static void put_back(struct event *begin)
{
    if (begin->end)
        link_event(begin->end);
    link_event(begin);
}

static void add_text(char *text, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void add_text(char *text, size_t size, const char *fmt, ...)
{
    size_t len = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + len, size - len, fmt, ap);
    va_end(ap);
}

static void add_op(char *text, size_t size, const struct linear_op *op, uint64_t from)
{
    add_text(text, size, "  client %u: %s", op->client, kinds[op->kind]);
    if (op->value)
        add_text(text, size, " %llu", (unsigned long long)op->value);
    add_text(text, size, " %s, from %.3f", outcomes[op->outcome], (double)(int64_t)(op->invoke_ns - from) / 1e6);
    if (op->return_ns == UINT64_MAX)
        add_text(text, size, " ms on\n");
    else
        add_text(text, size, " to %.3f ms\n", (double)(int64_t)(op->return_ns - from) / 1e6);
}

struct search {
    struct event *events, head;
    struct event **chosen; /* the order so far */
    uint64_t *before;      /* the state before each of them */
    size_t depth, events_n, ops_n, certain;
    struct seen seen;
};

static void search_free(struct search *s)
{
    free(s->events);
    free(s->chosen);
    free(s->before);
    free(s->seen.slots);
}

static int search_init(struct search *s, const struct linear_op *const *ops, size_t n)
{
    memset(s, 0, sizeof *s);
    s->events = calloc(2 * n + 1, sizeof *s->events);
    s->chosen = calloc(n + 1, sizeof *s->chosen);
    s->before = calloc(n + 1, sizeof *s->before);
    struct event **begins = calloc(n + 1, sizeof *begins);
    if (!s->events || !s->chosen || !s->before || !begins) {
        free(begins);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        s->events[s->events_n++] = (struct event){.op = ops[i], .at = ops[i]->invoke_ns, .number = i};
        if (ops[i]->outcome == LINEAR_UNCERTAIN)
            continue;
        s->certain++;
        s->events[s->events_n++] = (struct event){.op = ops[i], .at = ops[i]->return_ns, .number = i, .is_end = true};
    }
    s->ops_n = n;
    qsort(s->events, s->events_n, sizeof *s->events, by_time);
    struct event *last = &s->head;
    for (size_t i = 0; i < s->events_n; i++) {
        struct event *e = &s->events[i];
        if (e->is_end)
            begins[e->number]->end = e;
        else
            begins[e->number] = e;
        e->prev = last;
        last->next = e;
        last = e;
    }
    free(begins);
    return 0;
}

/* What is told of a history that nothing explains: the furthest that the search got. */
static void explain(const struct search *s, const struct event *blocked, uint64_t state, size_t placed, char *text, size_t size)
{
    uint64_t from = s->events[0].at;
    *text = '\0';
    add_text(text, size, "%zu of %zu certain operations can be put in an order (the mailbox is then ", placed, s->certain);
    if (state)
        add_text(text, size, "at value %llu), the last ones:\n", (unsigned long long)state);
    else
        add_text(text, size, "absent), the last ones:\n");
    for (size_t i = s->depth > 4 ? s->depth - 4 : 0; i < s->depth; i++)
        add_op(text, size, s->chosen[i]->op, from);
    add_text(text, size, "but none of those that must come next can:\n");
    unsigned shown = 0;
    for (const struct event *e = s->head.next; e && e != blocked && shown < 6; e = e->next)
        if (!e->is_end && ++shown)
            add_op(text, size, e->op, from);
}

static enum linear_verdict check_key(const struct linear_op *const *ops, size_t n, uint64_t steps_max, uint64_t *steps_r, char *text, size_t size)
{
    struct search s;
    enum linear_verdict verdict = LINEAR_UNDECIDED;
    uint64_t state = 0, steps = 0;
    snprintf(text, size, "out of memory");
    if (search_init(&s, ops, n) < 0)
        goto done;
    size_t certain = 0, best = 0;
    bool explained = false;
    struct set set = {0};
    struct event *e = s.head.next;
    while (certain < s.certain) {
        if (++steps > steps_max) {
            snprintf(text, size, "undecided after %llu steps (%zu operations, %zu of them uncertain)", (unsigned long long)steps_max, n, n - s.certain);
            goto done;
        }
        uint64_t next_state;
        if (!e->is_end) {
            bool uncertain = e->op->outcome == LINEAR_UNCERTAIN;
            /* An uncertain write that would change nothing needn't be put anywhere. */
            if (model_step(state, e->op, &next_state) && !(uncertain && next_state == state)) {
                struct set with = {set.a ^ mix(2 * e->number + 1), set.b ^ mix(~(2 * (uint64_t)e->number)), next_state};
                int added = seen_add(&s.seen, &with);
                if (added < 0) {
                    snprintf(text, size, "undecided: more than %u sets to remember (%zu operations, %zu of them uncertain)", SEEN_MAX, n, n - s.certain);
                    goto done;
                }
                if (added) {
                    s.chosen[s.depth] = e;
                    s.before[s.depth++] = state;
                    certain += !uncertain;
                    state = next_state;
                    set = with;
                    lift(e);
                    e = s.head.next;
                    continue;
                }
            }
            e = e->next;
            continue;
        }
        /* The end of an operation that has no place yet: nothing that began later may come before it. */
        if (!explained || certain > best) {
            best = certain;
            explained = true;
            explain(&s, e, state, certain, text, size);
        }
        if (!s.depth) {
            verdict = LINEAR_BAD;
            goto done;
        }
        e = s.chosen[--s.depth];
        put_back(e);
        certain -= e->op->outcome != LINEAR_UNCERTAIN;
        state = s.before[s.depth];
        set.a ^= mix(2 * e->number + 1);
        set.b ^= mix(~(2 * (uint64_t)e->number));
        e = e->next;
    }
    verdict = LINEAR_OK;
    *text = '\0';
done:
    *steps_r += steps;
    search_free(&s);
    return verdict;
}

/* --- A history ---------------------------------------------------------------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b)
{
    const struct linear_op *x = *(const struct linear_op *const *)a, *y = *(const struct linear_op *const *)b;
    int c = strcmp(x->key, y->key);
    if (c)
        return c;
    return (x->invoke_ns > y->invoke_ns) - (x->invoke_ns < y->invoke_ns);
}

enum linear_verdict linear_check(const struct linear_op *ops, size_t n, uint64_t steps_max, struct linear_report *r)
{
    enum linear_verdict verdict = LINEAR_OK;
    memset(r, 0, sizeof *r);
    const struct linear_op **list = calloc(n + 1, sizeof *list);
    if (!list) {
        snprintf(r->text, sizeof r->text, "out of memory");
        return LINEAR_UNDECIDED;
    }
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (!well_formed(&ops[i])) {
            snprintf(r->key, sizeof r->key, "%s", ops[i].key);
            snprintf(r->text, sizeof r->text, "operation %zu makes no sense (%s %s)", i + 1, kinds[ops[i].kind], outcomes[ops[i].outcome]);
            free(list);
            return LINEAR_UNDECIDED;
        }
        if (ops[i].outcome == LINEAR_NOT_DONE || (ops[i].kind == LINEAR_LOOKUP && ops[i].outcome == LINEAR_UNCERTAIN))
            continue;
        r->uncertain += ops[i].outcome == LINEAR_UNCERTAIN;
        list[used++] = &ops[i];
    }
    r->ops = used;
    qsort(list, used, sizeof *list, by_key);
    for (size_t i = 0, end; i < used; i = end) {
        char text[sizeof r->text];
        for (end = i + 1; end < used && !strcmp(list[end]->key, list[i]->key); end++)
            ;
        r->keys++;
        enum linear_verdict one = check_key(list + i, end - i, steps_max ? steps_max : STEPS_DEFAULT, &r->steps, text, sizeof text);
        /* What is surely wrong is worth more than what isn't known. */
        if (one != LINEAR_OK && (verdict == LINEAR_OK || (one == LINEAR_BAD && verdict == LINEAR_UNDECIDED))) {
            verdict = one;
            snprintf(r->key, sizeof r->key, "%s", list[i]->key);
            memcpy(r->text, text, sizeof text);
        }
    }
    free(list);
    return verdict;
}

/* --- Files ---------------------------------------------------------------------------------------------------------------------------------------------- */

int linear_write(FILE *f, const struct linear_op *op)
{
    char end[24] = "-";
    if (op->return_ns != UINT64_MAX)
        snprintf(end, sizeof end, "%llu", (unsigned long long)op->return_ns);
    return fprintf(f, "%u %s %s %llu %s %llu %s\n", op->client, op->key, kinds[op->kind], (unsigned long long)op->value, outcomes[op->outcome],
                   (unsigned long long)op->invoke_ns, end) < 0 ? -1 : 0;
}

static int word_in(const char *word, const char *const *list, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(word, list[i]))
            return i;
    return -1;
}

static bool number(const char *s, uint64_t *value_r)
{
    char *end;
    errno = 0;
    *value_r = strtoull(s, &end, 10);
    return *s >= '0' && *s <= '9' && !*end && !errno;
}

static bool parse(const char *line, struct linear_op *op)
{
    char kind[16], outcome[16], value[24], from[24], to[24];
    int used = 0, k, o;
    memset(op, 0, sizeof *op);
    if (sscanf(line, "%u %63s %15s %23s %15s %23s %23s %n", &op->client, op->key, kind, value, outcome, from, to, &used) != 7 || line[used])
        return false;
    if ((k = word_in(kind, kinds, LINEAR_KINDS)) < 0 || (o = word_in(outcome, outcomes, LINEAR_OUTCOMES)) < 0)
        return false;
    op->kind = (enum linear_kind)k;
    op->outcome = (enum linear_outcome)o;
    if (!number(value, &op->value) || !number(from, &op->invoke_ns))
        return false;
    op->return_ns = UINT64_MAX;
    return !strcmp(to, "-") || number(to, &op->return_ns);
}

long linear_read(FILE *f, struct linear_op **ops_r, size_t *n_r)
{
    char line[256];
    size_t room = *n_r;
    for (long at = 1; fgets(line, sizeof line, f); at++) {
        if (*n_r == room) {
            room = room ? 2 * room : 1024;
            struct linear_op *more = realloc(*ops_r, room * sizeof *more);
            if (!more)
                return -1;
            *ops_r = more;
        }
        if (!strchr(line, '\n') || !parse(line, &(*ops_r)[*n_r]))
            return at; /* a line that was cut off is a history that isn't whole */
        (*n_r)++;
    }
    return ferror(f) ? -1 : 0;
}
