/* datadir.h - the data directory: who this node is, and where its log and state are. I/O.
 *
 *   lock       held (flock) while a daemon runs
 *   IDENTITY   text, checksummed, replaced atomically: the node's UUID and, once it is part of a cluster, which, as whom, and whom to talk to first
 *   page       what this node tells the processes of its host (page.h)
 *   CURRENT -> gen-N/{state,log}   a symbolic link; gen-N/FAILED: why this one is not to be used. Other gen-* (a number, nothing else) are what an image is staged in, or what is left of one: removed
 *              by datadir_clean at the next start. CURRENT.tmp, IDENTITY.tmp: unfinished
 *
 * Invariant: gen-N belongs to the node only if IDENTITY names a cluster, which is written last, when everything in gen-N is durable. So whatever
 * a crash leaves of a bootstrap or an adoption is a leftover that datadir_prepare removes, and never half a member. On the other side, a member
 * whose log is gone is refused: it would have forgotten its votes. CURRENT changes in one step, and only when all of what it will point to is durable.
 *
 * Who may read: the owner alone (0700); with a local group, data_dir, gen-N and gen-N/state are 0750 and that group's. gen-N/log and the files stay the owner's; the
 * state's files are the store's business, the page is page.c's.
 *
 * Threads: the paths, prepare, stage, unstage, swap, clean and reset may be called from any thread; prepare, swap, clean and reset wait for each other. Nothing
 * may run beside open, join and close. */
#ifndef RAFTDIR_DATADIR_H
#define RAFTDIR_DATADIR_H
#include <stdbool.h>
#include <stdint.h>
#include "err.h"
#include "node.h"

struct datadir_identity {
    uint8_t uuid[NODE_UUID_LEN];
    uint64_t cluster_id; /* 0: not part of a cluster yet; then nothing below counts */
    uint64_t incarnation;
    uint64_t node_id;
    struct node_peer members[MEMBERS_MAX]; /* as adopted; empty after a bootstrap. id, role, host_port, cert_name, uuid */
    size_t members_n;
};

struct datadir;

/* Creates it when it is absent or empty. RAFTDIR_EBUSY: another daemon runs in it; RAFTDIR_EVERSION; RAFTDIR_ECORRUPT; RAFTDIR_EINVAL: something else is in it. */
int datadir_open(const char *path, struct datadir **datadir_r, struct err *err);
void datadir_close(struct datadir **datadir);
const struct datadir_identity *datadir_identity(const struct datadir *d);
/* group (-1: none): its processes may look into the data directory and read the state; everything else stays the owner's. What is there is adapted now, and what is made
 * later is made so. Of a data directory that was shared before, the states aren't any more. RAFTDIR_EPERM: the daemon isn't in that group. Before any thread runs. */
int datadir_share(struct datadir *d, int group, struct err *err);
int datadir_group(const struct datadir *d);
/* For a node that isn't a member yet: removes what an interrupted attempt left, makes an empty, durable gen-1 and CURRENT. */
int datadir_prepare(struct datadir *d, struct err *err);
/* Makes it a member: durable on return. The files of the log and state in gen-1 must be so already; that they are there is made durable here. uuid is
 * ignored: it stays. */
int datadir_join(struct datadir *d, const struct datadir_identity *identity, struct err *err);
/* For a member: is what it must have there? RAFTDIR_ECORRUPT with what to do. */
int datadir_check(struct datadir *d, struct err *err);
int datadir_generation(struct datadir *d, uint64_t *number_r, struct err *err); /* N of the current gen-N; RAFTDIR_ECORRUPT */
/* Paths through the generation that was current at the call. */
int datadir_path(struct datadir *d, const char *name, char *buf_r, size_t size, struct err *err);

/* Staging an image (DESIGN D9): removes what datadir_clean does (call that before, from another thread, where this one can't wait), and an earlier staged
 * one, and makes an empty gen-(N+1)/{state,log}. RAFTDIR_EBUSY: not a member, or another thread is removing one at the moment: later. Path as by datadir_path, of the staged one. */
int datadir_stage(struct datadir *d, struct err *err);
int datadir_staged_path(struct datadir *d, const char *name, char *buf_r, size_t size, struct err *err);
/* It isn't wanted any more: datadir_clean removes it. Quick. */
void datadir_unstage(struct datadir *d);
/* Each file of the current generation's log gets a second name in the staged one's: a log that goes along. Nobody may write to either until datadir_swap. An error: the
 * staged generation is rubbish, nothing else has changed. RAFTDIR_EUNSUPPORTED: the file system has no hard links. */
int datadir_log_link(struct datadir *d, struct err *err);
/* The staged generation, whose files are durable, becomes the current one, atomically and durably. The old one stays until datadir_clean.
 * RAFTDIR_ENOSPC, RAFTDIR_EINVAL (nothing staged, or log/vote or state isn't there): nothing has changed. Any other error: which generation a start will find
 * isn't certain, and a vote must not be given in either until then: the daemon has to end. */
int datadir_swap(struct datadir *d, struct err *err);
/* Removes every generation that is neither current nor staged, and unfinished files. May take long. RAFTDIR_ECORRUPT: a member's CURRENT can't be read:
 * nothing is removed. */
int datadir_clean(struct datadir *d, struct err *err);
/* For a member that is to start anew, as somebody else, also when what it had is damaged or missing: a new UUID and no cluster in IDENTITY (durable first), then
 * all generations are removed. After an error datadir_identity tells how far it came; datadir_prepare removes the rest. */
int datadir_reset(struct datadir *d, struct err *err);

/* The current log or state was found to be wrong: kept until it is replaced (an image, datadir_reset), so that a restart doesn't serve it again. */
int datadir_failure_set(struct datadir *d, const char *why, struct err *err);
int datadir_failure_get(struct datadir *d, char *why_r, size_t size, struct err *err); /* RAFTDIR_ENOTFOUND: there is none */

/* Tests only: called before each step that a crash could fall before; not 0: stop there, as a crash would. */
extern int (*datadir_step_hook)(const char *step);

#endif
