/* support_disk.h - a disk for tests of the log: each file call happens on real files (what a restarted process reads), is noted, and can fail; a power
 * cut keeps what was synced, any 512-byte sectors of what was not, and some of the directory changes that were not. */
#ifndef RAFTDIR_SUPPORT_DISK_H
#define RAFTDIR_SUPPORT_DISK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "raftdir/seglog.h"

struct change {
    struct change *next;
    bool is_write; /* else: the length becomes `at` (only longer, when `grow`) */
    bool grow;
    size_t at, len;
    uint8_t data[];
};
struct file {
    uint8_t *durable;
    size_t len;
    struct change *first, **last;
};
#define NAMES_MAX 64
struct names {
    struct {
        char name[64];
        struct file *file;
    } at[NAMES_MAX];
    size_t n;
};
struct name_change {
    enum { CREATE, RENAME, UNLINK } kind;
    char from[64], to[64];
    struct file *file;
};
struct disk {
    struct file *files[1024];
    size_t files_n;
    struct names durable, now;
    struct name_change pending[256];
    size_t pending_n;
    struct {
        int fd;
        struct file *file;
    } open[64];
    size_t open_n;
    unsigned step, fail_at; /* 0: never */
    int fail_errno;         /* 0: the power goes */
    bool crashed, failed, failed_sync;
};
extern struct disk disk;
extern char disk_dir[256];
extern const struct seglog_io disk_hooks;

extern uint64_t rng; /* of the test and of the disk's luck */
uint32_t rnd(uint32_t n);
void disk_reset(void); /* forgets everything */
void disk_fresh(void); /* an empty directory as well */
void disk_path(char path_r[512], const char *name);
void disk_file_put(const char *name, const uint8_t *data, size_t len);
struct file **disk_name_find(struct names *n, const char *name);
void disk_file_sync(struct file *f, bool torn);
void disk_power_cut(void); /* the directory becomes what the disk holds */

#endif
