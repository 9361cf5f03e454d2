/* seglog_remove.c - gives the disk space of segments back that were cut off.
 *
 * To free 64 MiB takes a file system up to tens of milliseconds, and no flush should wait for that: the writing thread only renames the segment, and a thread that
 * lives as long as it takes unlinks what has such a name. Nothing depends on it: what it can't remove, or a crash leaves, the next start removes ("*.tmp"). */
#include "seglog_internal.h"
#include <dirent.h>
#include <string.h>
#include <unistd.h>

static void files_remove(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *e; (e = readdir(dir));) {
        size_t len = strlen(e->d_name), suffix = sizeof SEGLOG_CUT_SUFFIX - 1;
        if (len > suffix && strcmp(e->d_name + len - suffix, SEGLOG_CUT_SUFFIX) == 0)
            (void)unlinkat(dirfd(dir), e->d_name, 0);
    }
    closedir(dir);
}

/* Until nothing was cut off while it was at it. */
static void *remover(void *data)
{
    struct seglog *log = data;
    for (;;) {
        pthread_mutex_lock(&log->durable_mutex);
        bool wanted = log->remove_wanted;
        log->remove_wanted = false;
        log->removing = wanted;
        pthread_mutex_unlock(&log->durable_mutex);
        if (!wanted)
            return NULL;
        files_remove(log->dir);
    }
}

void seglog_remove_start(struct seglog *log)
{
    pthread_mutex_lock(&log->durable_mutex);
    bool running = log->removing;
    log->remove_wanted = true;
    log->removing = true;
    pthread_mutex_unlock(&log->durable_mutex);
    if (running)
        return;
    seglog_remove_wait(log); /* the one before has ended, or is about to */
    log->remover_made = pthread_create(&log->remover, NULL, remover, log) == 0;
    if (!log->remover_made)
        (void)remover(log);
}

void seglog_remove_wait(struct seglog *log)
{
    if (log->remover_made)
        pthread_join(log->remover, NULL);
    log->remover_made = false;
}
