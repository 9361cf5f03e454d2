/* fault.c - see fault.h. In the handler: system calls only. */
#include "fault.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "store.h"

static char mark[PATH_MAX]; /* through CURRENT: the generation at the moment of the fault */
static const char text[] = "the state's file couldn't be read (SIGBUS): the disk has lost a part of it, or a page is damaged";
static _Atomic bool opening;
static struct page *_Atomic shown;
static struct sigaction before[2];
static const int at_opening[2] = {SIGSEGV, SIGABRT};

static void on_fault(int signum, siginfo_t *info, void *context)
{
    static const char line[] = "raftdird: ALARM: ", end[] = "; it ends, and won't serve this state again\n";
    (void)context;
    if (atomic_load(&opening) || (signum == SIGBUS && store_map_holds(info->si_addr))) {
        struct page *page = atomic_load(&shown);
        if (page)
            atomic_store(&page->serving, 0);
        int fd = open(mark, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        /* What can't be written isn't, and the next start meets the fault again. */
        ssize_t n = fd >= 0 ? write(fd, text, sizeof text - 1) : 0;
        if (fd >= 0) {
            fsync(fd);
            close(fd);
        }
        n += write(STDERR_FILENO, line, sizeof line - 1);
        n += write(STDERR_FILENO, text, sizeof text - 1);
        n += write(STDERR_FILENO, end, sizeof end - 1);
        (void)n;
    }
    /* SA_RESETHAND: on return the same access is made again, and ends the process. */
}

void fault_watch(const char *data_dir)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    if ((size_t)snprintf(mark, sizeof mark, "%s/CURRENT/FAILED", data_dir) >= sizeof mark)
        return; /* datadir_open has refused such a path */
    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, NULL);
}

void fault_page(struct page *page)
{
    atomic_store(&shown, page);
}

void fault_opening(bool begins)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    sigemptyset(&sa.sa_mask);
    if (!mark[0]) /* fault_watch hasn't been called: a test */
        return;
    if (begins)
        atomic_store(&opening, true);
    for (int i = 0; i < 2; i++)
        sigaction(at_opening[i], begins ? &sa : &before[i], begins ? &before[i] : NULL);
    if (!begins)
        atomic_store(&opening, false);
}
