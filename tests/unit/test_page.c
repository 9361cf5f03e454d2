/* test_page.c - the status page: between processes, replaced, of another boot, damaged, and as the daemon's threads fill it (shared.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "raftdir/page.h"
#include "raftdir/shared.h"

static char top[] = "/tmp/raftdir-test-page-XXXXXX";
static char file[128];
static struct err err;

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static int setup(void **state)
{
    (void)state;
    snprintf(file, sizeof file, "%s/" PAGE_FILE, top);
    unlink(file);
    memset(&err, 0, sizeof err);
    return 0;
}

static struct page *made(void)
{
    struct page *page = NULL;
    assert_int_equal(page_create(top, "n1", -1, &page, &err), 0);
    return page;
}

/* Another process sees what this one writes, at once and in order. */
static void test_two_processes(void **state)
{
    struct page *page = made();
    int up[2], down[2], status;
    char c;
    (void)state;
    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    pid_t child = fork();
    if (child == 0) {
        const struct page *p;
        uint64_t inode;
        if (page_map(top, &p, &inode, NULL) != 0 || atomic_load(&p->serving) != 0 || strcmp(p->node_name, "n1") != 0 || page_age_ms(p) != -1)
            _exit(1);
        if (atomic_load(&p->pid) != (uint64_t)getppid() || !page_is_current(top, inode))
            _exit(2);
        if (write(up[1], "a", 1) != 1 || read(down[0], &c, 1) != 1)
            _exit(3);
        int64_t age = page_age_ms(p);
        if (atomic_load(&p->serving) != 1 || atomic_load(&p->generation) != 7 || atomic_load(&p->published) != 42 || age < 1000 || age > 11000)
            _exit(4);
        if (write(up[1], "b", 1) != 1 || read(down[0], &c, 1) != 1)
            _exit(5);
        if (atomic_load(&p->pid) != 0 || atomic_load(&p->serving) != 1 || page_age_ms(p) < age) /* the daemon has ended: the state stays, and ages */
            _exit(6);
        page_unmap(&p);
        _exit(p ? 7 : 0);
    }
    assert_true(child > 0);
    assert_int_equal(read(up[0], &c, 1), 1);
    atomic_store(&page->generation, 7);
    atomic_store(&page->published, 42);
    atomic_store(&page->fresh_at_ms, page_now_ms() - 1000);
    atomic_store(&page->serving, 1);
    assert_int_equal(write(down[1], "x", 1), 1);
    assert_int_equal(read(up[0], &c, 1), 1);
    page_destroy(&page);
    assert_null(page);
    assert_int_equal(write(down[1], "x", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_true(WIFEXITED(status));
    close(up[0]), close(up[1]), close(down[0]), close(down[1]);
}

static void test_replaced(void **state)
{
    struct page *first = made(), *second;
    const struct page *reader, *again;
    uint64_t inode, inode_again;
    (void)state;
    atomic_store(&first->published, 5);
    atomic_store(&first->serving, 1);
    assert_int_equal(page_map(top, &reader, &inode, &err), 0);
    assert_true(page_is_current(top, inode));
    second = made();
    assert_false(page_is_current(top, inode));
    assert_int_equal(atomic_load(&reader->serving), 0); /* told where it still looks, */
    assert_int_equal(atomic_load(&reader->published), 5); /* and still readable */
    assert_int_equal(page_map(top, &again, &inode_again, &err), 0);
    assert_int_not_equal(inode, inode_again);
    assert_int_equal(atomic_load(&again->serving), 0);
    assert_int_equal(atomic_load(&again->published), 0);
    page_unmap(&reader);
    page_unmap(&again);
    page_destroy(&first);
    page_destroy(&second);
    assert_int_equal(unlink(file), 0);
    assert_false(page_is_current(top, inode_again));
}

static void test_other_boot(void **state)
{
    struct page *page = made();
    (void)state;
    atomic_store(&page->fresh_at_ms, page_now_ms());
    assert_in_range(page_age_ms(page), 0, 10000);
    atomic_store(&page->fresh_at_ms, page_now_ms() + 50); /* rounding; never negative, which would say "not known" */
    assert_int_equal(page_age_ms(page), 0);
    atomic_store(&page->fresh_at_ms, page_now_ms() + 60000); /* by the clock of another time namespace */
    assert_int_equal(page_age_ms(page), -1);
    atomic_store(&page->fresh_at_ms, page_now_ms());
    page->boot_id[3] ^= 1;
    assert_int_equal(page_age_ms(page), -1);
    page_destroy(&page);
}

static void put(const void *data, size_t len)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    close(fd);
}

/* Neither read nor, by the daemon, written to. */
static void refused(const void *data, size_t len, int code)
{
    const struct page *p = NULL;
    struct page *page;
    uint64_t inode;
    put(data, len);
    int rc = page_map(top, &p, &inode, &err);
    assert_int_equal(rc, code);
    assert_non_null(strstr(err.text, file));
    assert_null(p);
    assert_int_equal(link(file, "kept"), 0);
    page = made();
    char have[PAGE_LEN + 1];
    int fd = open("kept", O_RDONLY);
    assert_int_equal(read(fd, have, sizeof have), (ssize_t)len);
    assert_memory_equal(have, data, len);
    close(fd);
    assert_int_equal(unlink("kept"), 0);
    page_destroy(&page);
}

static void test_damaged(void **state)
{
    uint8_t whole[PAGE_LEN + 1] = {0};
    const struct page *p;
    uint64_t inode;
    (void)state;
    assert_int_equal(chdir(top), 0);
    assert_int_equal(page_map(top, &p, &inode, &err), RAFTDIR_ENOTFOUND);
    assert_int_equal(page_map("/nonexistent", &p, &inode, &err), RAFTDIR_ENOTFOUND);
    struct page *page = made();
    atomic_store(&page->serving, 1);
    memcpy(whole, page, PAGE_LEN);
    page_destroy(&page);
    struct page *w = (struct page *)(void *)whole;
    refused(whole, 0, RAFTDIR_EVERSION);
    refused(whole, 100, RAFTDIR_EVERSION);
    refused(whole, PAGE_LEN - 1, RAFTDIR_EVERSION); /* a mapping beyond the end is a SIGBUS */
    refused(whole, PAGE_LEN + 1, RAFTDIR_EVERSION);
    w->version++;
    refused(whole, PAGE_LEN, RAFTDIR_EVERSION);
    w->version--;
    w->len++;
    refused(whole, PAGE_LEN, RAFTDIR_EVERSION);
    w->len--;
    w->magic ^= 1;
    refused(whole, PAGE_LEN, RAFTDIR_EVERSION);
    w->magic ^= 1;
    put(whole, PAGE_LEN);
    assert_int_equal(page_map(top, &p, &inode, &err), 0);
    page_unmap(&p);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(mkdir(file, 0700), 0); /* something else of that name */
    assert_int_equal(page_map(top, &p, &inode, &err), RAFTDIR_EVERSION);
    assert_int_not_equal(page_create(top, "n1", -1, &page, &err), 0);
    assert_int_equal(rmdir(file), 0);
}

static void test_group(void **state)
{
    struct page *page = made();
    struct stat st;
    gid_t groups[64];
    (void)state;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    page_destroy(&page);
    int n = getgroups(64, groups);
    gid_t group = geteuid() == 0 ? 8 : n > 0 ? groups[0] : getegid(); /* 8: mail, on Debian */
    if (group == 0)
        skip();
    assert_int_equal(page_create(top, "n1", (int)group, &page, &err), 0);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(st.st_gid, group);
    page_destroy(&page);
}

/* --- As the daemon fills it -------------------------------------------------------------------------------------------------- */

static void test_shared(void **state)
{
    struct shared s;
    struct shared_view view;
    static const uint8_t uuid[NODE_UUID_LEN] = {1};
    struct node_status status = {.age_ms = 300};
    struct page *page = made();
    (void)state;
    assert_int_equal(shared_init(&s), 0);
    shared_page_set(&s, page);
    shared_reset(&s, uuid);
    shared_identity_set(&s, 11, 2, 3);
    shared_generation_set(&s, 4);
    shared_published_set(&s, 99);
    assert_int_equal(atomic_load(&page->serving), 0); /* not before it runs */
    shared_phase_set(&s, SHARED_RUNNING, NULL);
    assert_int_equal(atomic_load(&page->serving), 1);
    assert_int_equal(atomic_load(&page->cluster_id), 11);
    assert_int_equal(atomic_load(&page->incarnation), 2);
    assert_int_equal(atomic_load(&page->node_id), 3);
    assert_int_equal(atomic_load(&page->generation), 4);
    assert_int_equal(atomic_load(&page->published), 99);
    assert_int_equal(atomic_load(&s.published), 99);
    /* The age is that of the answers. */
    assert_int_equal(page_age_ms(page), -1);
    shared_status_set(&s, &status, shared_now_ms());
    shared_view_get(&s, &view);
    usleep(20000);
    int64_t age = page_age_ms(page), told = (int64_t)shared_age_ms(&view, shared_now_ms());
    assert_in_range(age, 320, 10000);
    assert_in_range(age - told + 100, 98, 110); /* at most a millisecond or two younger, or what lay between the two lines */
    uint64_t fresh = atomic_load(&page->fresh_at_ms), alive = atomic_load(&page->alive_at_ms);
    status.age_ms = UINT64_MAX; /* a node that begins anew on the same state: what was true of it stays true */
    shared_status_set(&s, &status, shared_now_ms());
    assert_int_equal(atomic_load(&page->fresh_at_ms), fresh);
    status.age_ms = 5000;
    shared_status_set(&s, &status, shared_now_ms());
    assert_int_equal(atomic_load(&page->fresh_at_ms), fresh);
    assert_true(atomic_load(&page->alive_at_ms) >= alive + 20);
    /* The machine slept for an hour, in CLOCK_BOOTTIME only: what was fresh before that is an hour old. */
    s.boot_ahead_ms -= 3600000;
    s.boot_ahead_seen_ms -= 3600000;
    atomic_store(&page->fresh_at_ms, fresh - 3600000);
    status.age_ms = 10;
    shared_status_set(&s, &status, shared_now_ms());
    assert_in_range(page_age_ms(page), 3600000, 3700000);
    usleep(30000);
    shared_status_set(&s, &status, shared_now_ms()); /* fresh since the sleep */
    assert_in_range(page_age_ms(page), 10, 10000);
    /* The end of it, in order or not. */
    shared_phase_set(&s, SHARED_STOPPING, NULL);
    assert_int_equal(atomic_load(&page->serving), 1);
    shared_page_stop(&s);
    assert_int_equal(atomic_load(&page->serving), 0);
    shared_phase_set(&s, SHARED_RUNNING, NULL);
    shared_phase_set(&s, SHARED_FAILED, "x");
    assert_int_equal(atomic_load(&page->serving), 0);
    shared_phase_set(&s, SHARED_RUNNING, NULL);
    shared_phase_set(&s, SHARED_REMOVED, "x");
    assert_int_equal(atomic_load(&page->serving), 0);
    shared_phase_set(&s, SHARED_STOPPING, NULL);
    assert_int_equal(atomic_load(&page->serving), 0);
    shared_reset(&s, uuid);
    assert_int_equal(atomic_load(&page->published), 0);
    assert_int_equal(atomic_load(&page->cluster_id), 0);
    assert_int_equal(page_age_ms(page), -1);
    const struct page *reader;
    uint64_t inode;
    assert_int_equal(page_map(top, &reader, &inode, &err), 0);
    shared_page_close(&s);
    assert_int_equal(atomic_load(&reader->pid), 0);
    page_unmap(&reader);
    /* Without a page everything goes on. */
    shared_phase_set(&s, SHARED_RUNNING, NULL);
    shared_status_set(&s, &status, shared_now_ms());
    shared_published_set(&s, 1);
    shared_generation_set(&s, 1);
    shared_alive(&s);
    shared_page_stop(&s);
    shared_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_two_processes, setup), cmocka_unit_test_setup(test_replaced, setup), cmocka_unit_test_setup(test_other_boot, setup),
        cmocka_unit_test_setup(test_damaged, setup),       cmocka_unit_test_setup(test_group, setup),    cmocka_unit_test_setup(test_shared, setup),
    };
    if (!mkdtemp(top))
        return 1;
    int failed = cmocka_run_group_tests_name("page", tests, NULL, NULL);
    nftw(top, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return failed;
}
