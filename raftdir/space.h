/* space.h - how much room there is, and the reserve (DESIGN D13): what thread_space.c does at every look. The decision is pure; the ballast file is I/O.
 *
 * Headroom is what the disk has left once the ballast is whole: free + ballast - reserve. So giving the ballast up, or making it, changes nothing about how much room
 * there is said to be, and a disk that was full up to the ballast stays LOW until somebody makes room. */
#ifndef RAFTDIR_SPACE_H
#define RAFTDIR_SPACE_H
#include <stdbool.h>
#include <stdint.h>
#include "err.h"
#include "node.h"

struct space_look {
    uint64_t free_len;    /* on data_dir's disk, beside the ballast */
    uint64_t ballast_len; /* 0: there is none */
    uint64_t reserve_len; /* as configured; 0: none */
    uint64_t used_len, used_max; /* of the state: without what is free inside; its quota or map, whichever is less. used_max 0: there is no state */
};
struct space_plan {
    bool disk_low, state_low;
    bool ballast_make; /* there is no ballast, and room for it and as much again */
};
/* LOW below the reserve (and the last 5 % of the state's room); not any more at a quarter beyond. before: what was decided at the last look; all false at first. */
struct space_plan space_decide(const struct space_look *look, const struct space_plan *before);
enum node_space space_of_plan(const struct space_plan *plan);

/* The file data_dir/ballast, mode 0600, with all its blocks. A partial one, or one of another length, is removed by open. */
struct space_ballast {
    int dir_fd;
    uint64_t len; /* 0: there is none */
};
int space_ballast_open(struct space_ballast *b, const char *dir, uint64_t reserve_len, struct err *err);
/* RAFTDIR_EUNSUPPORTED: this file system can't keep room for a file. */
int space_ballast_make(struct space_ballast *b, uint64_t reserve_len, struct err *err);
bool space_ballast_free(struct space_ballast *b); /* true: there is more room now */
void space_ballast_close(struct space_ballast *b); /* the file stays */

#define SPACE_TEXT_SIZE 32
const char *space_text(uint64_t len, char buf_r[SPACE_TEXT_SIZE]); /* "12.3M", as raftdird.conf has sizes */

#endif
