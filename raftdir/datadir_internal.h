/* datadir_internal.h - what the files of the data directory share. */
#ifndef RAFTDIR_DATADIR_INTERNAL_H
#define RAFTDIR_DATADIR_INTERNAL_H
#include "datadir.h"
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#define DATADIR_GENERATION_SIZE 32 /* "gen-N" with its NUL */

struct datadir {
    char path[PATH_MAX / 2];
    int dir_fd, lock_fd;
    int group; /* -1: none */
    struct datadir_identity identity;
    pthread_mutex_t mutex; /* held by whoever makes, removes or changes generations */
    _Atomic uint64_t staged; /* number of the generation that an image is staged in; 0: none */
};

/* datadir.c */
int datadir_step(const char *name, struct err *err); /* datadir_step_hook */
int datadir_fail_errno(struct datadir *d, const char *what, struct err *err);
int datadir_identity_write(struct datadir *d, const struct datadir_identity *id, struct err *err);
int datadir_uuid_make(struct datadir *d, uint8_t uuid_r[NODE_UUID_LEN], struct err *err);

/* datadir_generation.c */
int datadir_current(struct datadir *d, uint64_t *number_r, struct err *err); /* RAFTDIR_ECORRUPT: no CURRENT, or it points to no generation's name */
void datadir_generation_name(uint64_t number, char name_r[DATADIR_GENERATION_SIZE]);
int datadir_dir_share(struct datadir *d, const char *name, struct err *err); /* 0750 and the group's, or 0700 when there is none */
int datadir_dir_sync(struct datadir *d, const char *name, struct err *err); /* below data_dir */

#endif
