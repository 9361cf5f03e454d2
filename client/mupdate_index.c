/* mupdate_index.c - see mupdate_index.h. */
#include "mupdate_index.h"
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "raftdir/mem.h"

static struct mupdate_entry *place(struct mupdate_entry *slots, size_t size, uint64_t a, uint64_t b)
{
    size_t i = (size_t)b & (size - 1);
    while (slots[i].a && (slots[i].a != a || slots[i].b != b))
        i = (i + 1) & (size - 1);
    return &slots[i];
}

static void hash(const char *name, uint64_t *a_r, uint64_t *b_r)
{
    XXH128_hash_t h = XXH3_128bits(name, strlen(name));
    *a_r = h.high64 ? h.high64 : 1;
    *b_r = h.low64;
}

struct mupdate_entry *mupdate_index_find(const struct mupdate_index *x, const char *name)
{
    uint64_t a, b;
    if (!x->size)
        return NULL;
    hash(name, &a, &b);
    struct mupdate_entry *e = place(x->slots, x->size, a, b);
    return e->a ? e : NULL;
}

const struct mupdate_entry *mupdate_index_same(const struct mupdate_index *x, const struct mupdate_entry *e)
{
    if (!x->size)
        return NULL;
    const struct mupdate_entry *found = place(x->slots, x->size, e->a, e->b);
    return found->a ? found : NULL;
}

struct mupdate_entry *mupdate_index_add(struct mupdate_index *x, const char *name)
{
    if (2 * (x->used + 1) > x->size) {
        size_t size = x->size ? 2 * x->size : 4096;
        struct mupdate_entry *slots = mem_calloc(size, sizeof *slots);
        for (size_t i = 0; i < x->size; i++)
            if (x->slots[i].a)
                *place(slots, size, x->slots[i].a, x->slots[i].b) = x->slots[i];
        free(x->slots);
        x->slots = slots;
        x->size = size;
    }
    uint64_t a, b;
    hash(name, &a, &b);
    struct mupdate_entry *e = place(x->slots, x->size, a, b);
    if (!e->a) {
        e->a = a;
        e->b = b;
        x->used++;
    }
    return e;
}

uint64_t mupdate_index_value(const char *server, const char *partition, const char *acl)
{
    /* Each is hashed by itself: "a" and "bc" are not "ab" and "c". */
    uint64_t parts[3] = {XXH3_64bits(server, strlen(server)), XXH3_64bits(partition, strlen(partition)), XXH3_64bits(acl, strlen(acl))};
    return XXH3_64bits(parts, sizeof parts);
}

/* Servers are few; rows of one come one after the other. */
static uint32_t server_number(struct mupdate_index *x, const char *server)
{
    for (size_t i = x->servers_n; i-- > 0;)
        if (!strcmp(x->servers[i], server))
            return (uint32_t)i;
    x->servers = mem_realloc(x->servers, (x->servers_n + 1) * sizeof *x->servers);
    x->servers[x->servers_n] = mem_strdup(server);
    return (uint32_t)x->servers_n++;
}

void mupdate_index_set(struct mupdate_index *x, struct mupdate_entry *e, const char *server, const char *partition, const char *acl)
{
    x->active += !e->active;
    e->active = true;
    e->reserved = false;
    e->server = server_number(x, server);
    e->value = mupdate_index_value(server, partition, acl);
}

void mupdate_index_clear_active(struct mupdate_index *x, struct mupdate_entry *e)
{
    x->active -= e->active;
    e->active = false;
}

const char *mupdate_index_server(const struct mupdate_index *x, const struct mupdate_entry *e)
{
    return x->servers[e->server];
}

void mupdate_index_free(struct mupdate_index *x)
{
    for (size_t i = 0; i < x->servers_n; i++)
        free(x->servers[i]);
    free(x->servers);
    free(x->slots);
    *x = (struct mupdate_index){0};
}
