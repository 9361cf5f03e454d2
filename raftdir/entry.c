/* entry.c - see entry.h. */
#include "entry.h"
#include <stdlib.h>
#include <string.h>

struct entry *entry_create(uint64_t index, uint64_t term, uint16_t type, const void *data, uint32_t len)
{
    struct entry *e = malloc(sizeof *e + len);
    if (!e)
        return NULL;
    atomic_init(&e->refs, 1);
    e->len = len;
    e->index = index;
    e->term = term;
    e->type = type;
    if (data && len)
        memcpy(e->data, data, len);
    return e;
}

struct entry *entry_ref(struct entry *e)
{
    atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    return e;
}

void entry_unref(struct entry *e)
{
    if (e && atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) == 1)
        free(e);
}
