/* thread_space.h - room on data_dir's disk and in the map (DESIGN D13): looked at every SPACE_CHECK_MS, told to the consensus thread, with a reserve.
 *
 * The reserve is a ballast file, data_dir/ballast, of space_reserve bytes: what fills the disk from outside can't take it. With less than space_reserve free beside
 * it, NODE_SPACE_LOW: the leader admits only what doesn't grow the state. When a write of log or state fails for lack of space, the ballast is given up, so that
 * deletes go on. When there is room again (twice the reserve), it is made again and everything goes on by itself. */
#ifndef RAFTDIR_THREAD_SPACE_H
#define RAFTDIR_THREAD_SPACE_H
#include "daemon.h"

struct space_watch;
/* Before the consensus thread is there: its log and apply threads release the ballast. */
int space_watch_create(struct daemon *d, struct space_watch **watch_r, struct err *err);
/* The looking begins. d->consensus is there from now on, until the stop. */
int space_watch_start(struct space_watch *w, struct err *err);
/* A write found no room. true: the ballast was given up just now, try again at once. Any thread. */
bool space_watch_release(struct space_watch *w);
void space_watch_stop(struct space_watch *w); /* joins; release may still be called */
void space_watch_destroy(struct space_watch **watch);

#endif
