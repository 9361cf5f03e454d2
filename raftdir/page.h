/* page.h - the status page: what a node tells the processes of its own host without a socket (DESIGN D8). Daemon and libraftdir share it.
 *
 * DATA_DIR/page is one memory page, mapped by the daemon for writing and by local readers for reading. Layout: struct page, little-endian on every platform that we
 * support; fixed for a PAGE_VERSION. Each field is an atomic of its own; what must fit together is ordered:
 *  - `serving` is 0 before the state named by `generation` stops being one to answer from, and is set last when one begins to be;
 *  - `generation` changes after the new generation's state can be opened, and before the old one is removed;
 *  - `cluster_id` and `node_id` change only while `serving` is 0. With `generation` they say which state it is: a node that was reset begins again with gen-1, as
 *    somebody else;
 *  - a reader looks at these four again after it has read, and throws away what it read when they have changed.
 * The file is replaced (another inode), never truncated: a mapped page stays readable. After a crash `serving` may still be 1: the state is the node's, only its age
 * grows, because `fresh_at_ms` stands still. After a reboot the clock is another one: boot_id tells.
 *
 * Thread-safety: the daemon writes through shared.c only; reading by anybody. */
#ifndef RAFTDIR_PAGE_H
#define RAFTDIR_PAGE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "err.h"

#define PAGE_FILE "page"
#define PAGE_VERSION 1
#define PAGE_MAGIC 0x5244504147450a1aull
#define PAGE_LEN 4096

struct page {
    uint64_t magic;
    uint32_t version, len;
    uint8_t boot_id[16];          /* of /proc/sys/kernel/random/boot_id: CLOCK_BOOTTIME means nothing in another boot */
    char node_name[256];
    _Atomic uint64_t cluster_id, node_id; /* 0: not part of a cluster. They change only while `serving` is 0 */
    _Atomic uint64_t serving;     /* 1: the state may be answered from */
    _Atomic uint64_t generation;  /* N of gen-N */
    _Atomic uint64_t incarnation;
    _Atomic uint64_t published;   /* index; at least this is in the state */
    _Atomic uint64_t fresh_at_ms; /* CLOCK_BOOTTIME: everything committed before this moment is in the published state; 0: not known */
    _Atomic uint64_t alive_at_ms; /* CLOCK_BOOTTIME: the daemon's last sign of life; every PAGE_ALIVE_MS */
    _Atomic uint64_t pid;         /* of the daemon; 0: it has ended in order */
};
#define PAGE_ALIVE_MS 50

/* The daemon's side. Makes a new page (serving 0) in place of an earlier one, which says from then on that it isn't to be served from; group (-1: none) may read it.
 * After an error there is none. */
int page_create(const char *data_dir, const char *node_name, int group, struct page **page_r, struct err *err);
void page_destroy(struct page **page); /* says that the daemon has ended; the file stays, serving stays what it is */
/* The reader's side. RAFTDIR_ENOTFOUND: there is none; RAFTDIR_EVERSION; RAFTDIR_EPERM. Unmapped by page_unmap. page_is_current: the file hasn't been replaced (a daemon
 * was started meanwhile); costs a stat. */
int page_map(const char *data_dir, const struct page **page_r, uint64_t *inode_r, struct err *err);
void page_unmap(const struct page **page);
bool page_is_current(const char *data_dir, uint64_t inode);
uint64_t page_now_ms(void); /* CLOCK_BOOTTIME */
/* How old the state is: now - fresh_at_ms; -1: not known (never fresh, another boot, or fresh in the future: another time namespace). */
int64_t page_age_ms(const struct page *page);

#endif
