/* thread_scrub.h - the scrub (DESIGN D3): every scrub_interval, at low priority, everything on the disk is read again: records, indexes, digest, log.
 * What it finds fails the node (consensus_fail): it stops serving, and is rebuilt from its peers. */
#ifndef RAFTDIR_THREAD_SCRUB_H
#define RAFTDIR_THREAD_SCRUB_H
#include "daemon.h"

struct scrub;
int scrub_start(struct daemon *d, struct scrub **scrub_r, struct err *err);
void scrub_stop(struct scrub **scrub); /* at once, in the middle of a scrub too */

#endif
