/* sim_world.c - the clock, the event queue, the random numbers, and how a violation is reported. */
#include "sim.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sim_world sim;

static struct event *heap;
static size_t heap_n, heap_cap;
static uint64_t event_seq, random_state;

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t rnd(void) /* splitmix64 */
{
    return mix(random_state += 0x9e3779b97f4a7c15ull);
}

unsigned rnd_in(unsigned min, unsigned max)
{
    return max <= min ? min : min + (unsigned)(rnd() % ((uint64_t)max - min + 1));
}

bool chance(unsigned thousandths)
{
    return thousandths && rnd() % 1000 < thousandths;
}

void *xcalloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p) {
        fprintf(stderr, "raftdir-sim: out of memory\n");
        exit(EXIT_FAILURE);
    }
    return p;
}

void *xmemdup(const void *data, size_t len)
{
    void *p = xcalloc(1, len);
    if (len)
        memcpy(p, data, len);
    return p;
}

void sim_hash(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint64_t h = sim.stats.hash;
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        h = (h ^ v) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
    }
    for (; len; p++, len--)
        h = (h ^ *p) * 0x100000001b3ull;
    sim.stats.hash = h;
}

void sim_trace(const char *fmt, ...)
{
    va_list ap;
    printf("%9" PRIu64 " ", sim.now - sim.started);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

static void print_nodes(void)
{
    static const char *const slot_names[] = {"spare", "adding", "member", "removed"};
    static const char *const state_names[] = {"?", "follower", "candidate", "leader", "failed"};
    for (unsigned i = 0; i < sim.config.slots; i++) {
        const struct sim_node *n = &sim.nodes[i];
        const struct node_status *s = &n->status;
        printf("  machine %u: id %" PRIu64 " %s %s", i + 1, n->id, slot_names[n->state],
               !n->up ? "down" : n->paused_until > sim.now ? "paused" : "up");
        if (n->up)
            printf(", %s in term %" PRIu64 ", role %d, leader %" PRIu64 ", last %" PRIu64 ", commit %" PRIu64 ", applied %" PRIu64
                   ", writes %zu",
                   state_names[s->state <= NODE_FAILED ? s->state : 0], s->term, s->role, s->leader, s->last_index, s->commit_index,
                   s->applied_index, s->writes_pending);
        printf("; on disk: term %" PRIu64 ", vote %" PRIu64 ", log %" PRIu64 "..%" PRIu64 ", synced %" PRIu64 "%s%s%s\n", n->disk.term, n->disk.voted_for,
               n->disk.log.base + 1, log_last(&n->disk.log), n->disk.synced, n->differs ? ", differs" : "", n->lost ? ", lost" : "", n->fetch ? ", fetching" : "");
    }
}

void sim_violation(const char *checker, const char *fmt, ...)
{
    static const char *const profiles[] = {"mixed", "calm", "normal", "chaos"};
    va_list ap;
    printf("VIOLATION %s: seed %" PRIu64 ", at %" PRIu64 " ms: ", checker, sim.options.seed, sim.now - sim.started);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    print_nodes();
    printf("  replay: raftdir-sim --seed %" PRIu64 " --count 1 --profile %s --duration %" PRIu64, sim.options.seed,
           profiles[sim.options.profile], sim.options.duration_ms);
    if (sim.options.nodes)
        printf(" --nodes %u", sim.options.nodes);
    if (sim.options.guards_off)
        printf(" --guards-off 0x%x", sim.options.guards_off);
    if (sim.options.plant)
        printf(" --plant %s", plant_name(sim.options.plant));
    printf(" --trace\n");
    fflush(stdout);
    _exit(EXIT_VIOLATION);
}

static bool before(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->seq < b->seq;
}

static void push(struct event ev)
{
    if (heap_n == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 1024;
        heap = realloc(heap, heap_cap * sizeof *heap);
        if (!heap)
            abort();
    }
    size_t i = heap_n++;
    while (i && before(&ev, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = ev;
}

static struct event pop(void)
{
    struct event top = heap[0], last = heap[--heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_n)
            break;
        if (child + 1 < heap_n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

void event_post(uint64_t delay_ms, void (*run)(struct event *), void (*drop)(struct event *), struct sim_node *node, void *data, uint64_t a)
{
    push((struct event){.at = sim.now + delay_ms,
                        .seq = event_seq++,
                        .run = run,
                        .drop = drop,
                        .node = node,
                        .epoch = node ? node->epoch : 0,
                        .data = data,
                        .a = a});
}

void world_init(const struct sim_options *options)
{
    memset(&sim, 0, sizeof sim);
    sim.options = *options;
    random_state = mix(mix(options->seed + 0x1234567)); /* neighbours start far apart */
    sim.now = sim.started = 1000;
    fault_config();
    request_init();
    check_init();
    model_init();
    for (unsigned i = 0; i < sim.config.slots; i++)
        node_init(&sim.nodes[i], i);
}

void world_run(uint64_t until)
{
    while (heap_n && heap[0].at <= until && !sim.stop) {
        struct event ev = pop();
        sim.now = ev.at;
        if (ev.node && (!ev.node->up || ev.node->epoch != ev.epoch)) {
            if (ev.drop)
                ev.drop(&ev);
            continue;
        }
        if (ev.node && ev.node->paused_until > sim.now) { /* SIGSTOP: nothing happens in there, and then all at once */
            ev.at = ev.node->paused_until;
            ev.seq = event_seq++;
            push(ev);
            continue;
        }
        sim.stats.steps++;
        sim_hash(&sim.now, sizeof sim.now);
        ev.run(&ev);
    }
    if (!sim.stop)
        sim.now = until;
}

void world_close(void)
{
    for (unsigned i = 0; i < sim.config.slots; i++) {
        node_crash(&sim.nodes[i], 0);
        disk_close(&sim.nodes[i]);
    }
    while (heap_n) {
        struct event ev = pop();
        if (ev.drop)
            ev.drop(&ev);
    }
    free(heap);
    heap = NULL;
    heap_cap = 0;
    client_close();
    model_close();
    check_close();
}
