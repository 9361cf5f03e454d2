/* mem.h - allocation in the daemon's own threads: without memory the process says so and exits with EXIT_NO_MEMORY (the log and the
 * state are made to survive that at any moment). Not for code that the library shares. */
#ifndef RAFTDIR_MEM_H
#define RAFTDIR_MEM_H
#include <stddef.h>

/* raftdird's exit codes. */
enum { EXIT_ORDERLY = 0, EXIT_CONFIG = 1, EXIT_START = 2, EXIT_FAULT = 3, EXIT_NO_MEMORY = 4 };

void *mem_alloc(size_t len);
void *mem_calloc(size_t n, size_t size);
void *mem_realloc(void *p, size_t len);
char *mem_strdup(const char *s); /* NULL gives NULL */
void mem_exhausted(const char *where) __attribute__((noreturn));

#endif
