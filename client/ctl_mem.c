/* ctl_mem.c - mem.h for raftdirctl: without memory it says so and ends. What it was writing is told to be done or not by a second run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/mem.h"

#define CTL_EXIT_INTERNAL 6 /* as in ctl.h, whose other codes have the names of the daemon's */

void mem_exhausted(const char *where)
{
    fprintf(stderr, "raftdirctl: out of memory (%s)\n", where);
    exit(CTL_EXIT_INTERNAL);
}

void *mem_alloc(size_t len)
{
    void *p = malloc(len ? len : 1);
    if (!p)
        mem_exhausted("alloc");
    return p;
}

void *mem_calloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        mem_exhausted("calloc");
    return p;
}

void *mem_realloc(void *p, size_t len)
{
    p = realloc(p, len ? len : 1);
    if (!p)
        mem_exhausted("realloc");
    return p;
}

char *mem_strdup(const char *s)
{
    char *p = s ? strdup(s) : NULL;
    if (s && !p)
        mem_exhausted("strdup");
    return p;
}
