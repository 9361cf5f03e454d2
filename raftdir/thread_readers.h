/* thread_readers.h - looks after the processes that read the state directly (DESIGN D8): frees the slots of those that are gone, and says who holds pages back. */
#ifndef RAFTDIR_THREAD_READERS_H
#define RAFTDIR_THREAD_READERS_H
#include "daemon.h"

struct readers_watch;
/* After consensus_start. */
int readers_watch_start(struct daemon *d, struct readers_watch **watch_r, struct err *err);
/* Before consensus_stop. Doesn't wait for a look that a stopped process holds up. */
void readers_watch_stop(struct readers_watch **watch);

#endif
