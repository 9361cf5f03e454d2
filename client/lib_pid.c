/* lib_pid.c - which process is this? Asked at the start of every call (a handle is of use in the process that opened it), so it must not cost a system call: that is a fifth of
 * a local lookup.
 *
 * The number is kept in a page of its own that the kernel empties in each child (madvise(2), MADV_WIPEONFORK, Linux 4.14), however the child was made. Where that
 * can't be had, the system is asked each time. Thread-safe. */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>
#include "lib_internal.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic pid_t *kept; /* 0: not asked yet in this process. The page stays until the process ends */

static void prepare(void)
{
    size_t len = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return;
    if (madvise(page, len, MADV_WIPEONFORK) == 0)
        kept = page;
    else
        munmap(page, len);
}

pid_t lib_pid(void)
{
    pthread_once(&once, prepare);
    pid_t pid = kept ? atomic_load_explicit(kept, memory_order_relaxed) : 0;
    if (pid == 0) {
        pid = getpid();
        if (kept)
            atomic_store_explicit(kept, pid, memory_order_relaxed);
    }
    return pid;
}
