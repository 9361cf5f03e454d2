/* mem.c - see mem.h. */
#include "mem.h"
#include "logger.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void mem_exhausted(const char *where)
{
    logger_line(LOGGER_ERROR, "memory", "out of memory (%s): exiting; nothing acknowledged is lost", where);
    _exit(EXIT_NO_MEMORY);
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
    if (!s)
        return NULL;
    char *p = strdup(s);
    if (!p)
        mem_exhausted("strdup");
    return p;
}
