/* stuck_reader_helper.c - for tests/cluster/stuck_reader: processes that read a node's state directly.
 *
 *     stuck_reader_helper hang DATA_DIR            begins to read, prints "reading", and stays in that snapshot until standard input ends; then it checks that all that it
 *                                                  sees is still whole, prints the number of mailboxes, and ends
 *     stuck_reader_helper follow DATA_DIR NAME     reads again and again, each time from the state that the status page names, until standard input ends. NAME is there all
 *                                                  the time: not to find it, or a published index that isn't in the state, or that goes back while one daemon runs, is
 *                                                  an error. Prints how often it read, and from how many generations
 *
 * Exit status: 0 done, 1 not, 2 usage. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/page.h"
#include "raftdir/store.h"

static struct err err;

static int failed(const char *what)
{
    fprintf(stderr, "stuck_reader_helper: %s: %s\n", what, err.text);
    return 1;
}

static bool input_ended(int wait_ms)
{
    struct pollfd p = {.fd = 0, .events = POLLIN};
    char buf[64];
    return poll(&p, 1, wait_ms) > 0 && read(0, buf, sizeof buf) <= 0;
}

static int state_open(const char *data_dir, const struct page *page, struct store **store_r)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/gen-%" PRIu64 "/state", data_dir, (uint64_t)atomic_load(&page->generation));
    return store_open(path, &(struct store_options){.read_only = true}, store_r, &err);
}

static int hang(const char *data_dir)
{
    const struct page *page;
    struct store *store;
    struct store_txn *txn;
    struct store_meta before, after;
    uint64_t inode, problems = 0;
    uint8_t digest[16];
    if (page_map(data_dir, &page, &inode, &err) != 0 || state_open(data_dir, page, &store) != 0 || store_read_begin(store, &txn, &err) != 0 || store_meta_get(txn, &before, &err) != 0)
        return failed("begin");
    printf("reading\n");
    fflush(stdout);
    while (!input_ended(-1))
        ;
    if (store_meta_get(txn, &after, &err) != 0 || store_verify(txn, NULL, digest, &problems, &err) != 0)
        return failed("what was read");
    if (problems || memcmp(digest, before.digest, sizeof digest) != 0 || after.applied_index != before.applied_index)
        return failed("the snapshot has changed");
    printf("%" PRIu64 "\n", before.mailboxes);
    store_read_end(&txn);
    store_close(&store);
    page_unmap(&page);
    return 0;
}

/* As libraftdir reads: one environment of the newest generation, one slot in it, a snapshot a look. */
struct follower {
    const struct page *page;
    uint64_t inode, generation, seen;
    struct store *store;
    struct store_txn *txn; /* reset between looks */
    uint64_t looks;
    unsigned opened;
};

static void state_close(struct follower *f)
{
    store_read_end(&f->txn);
    store_close(&f->store);
}

/* 0: looked; 1: something is wrong; 2: nothing can be said now, since the state is just changing. */
static int look(struct follower *f, const char *data_dir, const char *name)
{
    const struct page *page = f->page;
    struct store_meta meta;
    struct store_mailbox m;
    if (!atomic_load(&page->serving))
        return 2;
    uint64_t now = atomic_load(&page->generation), published;
    if (!f->store || now != f->generation) {
        state_close(f);
        if (state_open(data_dir, page, &f->store) != 0)
            return atomic_load(&page->generation) != now || !atomic_load(&page->serving) ? 2 : failed("open the state that is served");
        f->generation = now;
        f->opened++;
    }
    published = atomic_load(&page->published);
    int rc = f->txn ? store_read_renew(f->txn, &err) : store_read_begin(f->store, &f->txn, &err);
    if (rc != 0)
        return failed("begin");
    rc = store_meta_get(f->txn, &meta, &err);
    if (rc == 0)
        rc = store_lookup(f->txn, name, strlen(name), &m, &err);
    store_read_reset(f->txn);
    if (!atomic_load(&page->serving) || atomic_load(&page->generation) != now)
        return 2;
    if (rc != 0)
        return failed("lookup");
    if (meta.applied_index < published || published < f->seen) {
        snprintf(err.text, sizeof err.text, "published %" PRIu64 ", seen before %" PRIu64 ", the state has %" PRIu64, published, f->seen, meta.applied_index);
        return failed("gone back");
    }
    f->seen = published;
    f->looks++;
    return 0;
}

static int follow(const char *data_dir, const char *name)
{
    struct follower f = {0};
    int status = 0;
    while (!status && !input_ended(1)) {
        if (f.page && !page_is_current(data_dir, f.inode)) {
            page_unmap(&f.page);
            state_close(&f);
            f.seen = 0; /* another daemon: after a crash it may begin behind */
        }
        if (!f.page && page_map(data_dir, &f.page, &f.inode, &err) != 0)
            continue;
        if (look(&f, data_dir, name) == 1 && page_is_current(data_dir, f.inode)) /* else a daemon has just started, and what it found is its to say */
            status = 1;
    }
    if (!status)
        printf("%" PRIu64 " %u\n", f.looks, f.opened);
    state_close(&f);
    page_unmap(&f.page);
    return status;
}

static int end(int status)
{
    printf("end %d\n", status); /* for a shell that isn't our parent */
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "hang") == 0)
        return end(hang(argv[2]));
    if (argc == 4 && strcmp(argv[1], "follow") == 0)
        return end(follow(argv[2], argv[3]));
    fprintf(stderr, "usage: stuck_reader_helper hang DATA_DIR | follow DATA_DIR NAME\n");
    return 2;
}
