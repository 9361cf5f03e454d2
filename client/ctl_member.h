/* ctl_member.h - what the commands about members share. */
#ifndef RAFTDIR_CTL_MEMBER_H
#define RAFTDIR_CTL_MEMBER_H
#include "ctl.h"

#define CHANGE_TIMEOUT_MS 45000 /* a promotion waits until the member has caught up */
#define BUSY_TRIES 40           /* of an addition that meets another change */

const char *ctl_role_name(int role);
json_t *ctl_id_json(uint64_t id); /* of a cluster, as people see it */
json_t *ctl_member_json(const struct raftdir_member *m);
void ctl_pause_ms(long ms);
/* NULL: not in it. */
const struct raftdir_member *ctl_member_by_id(const struct raftdir_members *ms, uint64_t id);
const struct raftdir_member *ctl_member_by_uuid(const struct raftdir_members *ms, const uint8_t uuid[RAFTDIR_UUID_LEN]);
/* Waits, with progress, until the member has nearly all of the log: however long that takes, as long as there is progress. `node` (NULL allowed) is asked how its
 * image comes along. A RAFTDIR_E* code with the error told, or 0. */
int ctl_catch_up(struct ctl *c, raftdir *via, raftdir *node, uint64_t id);
/* Tried again while another change is in progress. A RAFTDIR_E* code with the error told, `what` (or NULL) before it, or 0. */
int ctl_promote(struct ctl *c, raftdir *via, uint64_t id, const char *what);
/* The same for removing; done when it is gone, whoever did it. */
int ctl_remove(struct ctl *c, raftdir *via, uint64_t id, const char *what);
/* Asks on a terminal; true without one, with --yes or --json. */
bool ctl_confirm(struct ctl *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
