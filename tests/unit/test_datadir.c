/* test_datadir.c - the data directory: what a crash before each step leaves, who is refused, and that what was made durable is found again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "raftdir/datadir.h"
#include "raftdir/seglog.h"

static char top[] = "/tmp/raftdir-test-datadir-XXXXXX";
static char dir[128];
static struct err err;

/* Takes the place of the C library's: notes what is synced, and fails once. */
static char synced[64][160];
static int synced_n, fsync_fails_at;
int fsync(int fd)
{
    char link[64];
    if (fsync_fails_at && --fsync_fails_at == 0) {
        errno = EIO;
        return -1;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, synced[synced_n % 64], sizeof synced[0] - 1);
    if (n > 0)
        synced[synced_n++ % 64][n] = '\0';
    return (int)syscall(SYS_fsync, fd);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void wipe(void)
{
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/d", top);
    wipe();
    datadir_step_hook = NULL;
    fsync_fails_at = 0;
    memset(&err, 0, sizeof err);
    return 0;
}

static void write_file(const char *name, const char *text, size_t len)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, len), (ssize_t)len);
    close(fd);
}

static size_t read_file(const char *name, char *buf, size_t size)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    ssize_t n = read(fd, buf, size - 1);
    assert_true(n >= 0);
    buf[n] = '\0';
    close(fd);
    return (size_t)n;
}

static struct datadir *open_ok(void)
{
    struct datadir *d = NULL;
    if (datadir_open(dir, &d, &err) != 0)
        fail_msg("%s", err.text);
    return d;
}

static struct datadir_identity sample(void)
{
    struct datadir_identity id = {.cluster_id = 0xfeedface12345678, .incarnation = 3, .node_id = 7, .members_n = 2};
    for (size_t i = 0; i < 2; i++) {
        id.members[i].id = i + 1;
        id.members[i].role = (int)i;
        memset(id.members[i].uuid, (int)(0xa0 + i), NODE_UUID_LEN);
        snprintf(id.members[i].host_port, sizeof id.members[i].host_port, "[2001:db8::%zu]:3906", i + 1);
        snprintf(id.members[i].cert_name, sizeof id.members[i].cert_name, "Node %zu of ours", i + 1);
    }
    return id;
}

static void test_create_and_find_again(void **state)
{
    (void)state;
    struct datadir *d = open_ok();
    uint8_t uuid[NODE_UUID_LEN], zero[NODE_UUID_LEN] = {0};
    memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
    assert_memory_not_equal(uuid, zero, NODE_UUID_LEN);
    assert_int_equal(datadir_identity(d)->cluster_id, 0);
    datadir_close(&d);
    d = open_ok();
    assert_memory_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
    assert_int_equal(datadir_prepare(d, &err), 0);
    struct datadir_identity id = sample();
    assert_int_equal(datadir_join(d, &id, &err), 0);
    /* A member is a member: nothing is removed, and it can't join another cluster. */
    assert_int_equal(datadir_prepare(d, &err), RAFTDIR_EBUSY);
    assert_int_equal(datadir_join(d, &id, &err), RAFTDIR_EBUSY);
    datadir_close(&d);
    d = open_ok();
    const struct datadir_identity *found = datadir_identity(d);
    assert_memory_equal(found->uuid, uuid, NODE_UUID_LEN);
    assert_true(found->cluster_id == id.cluster_id && found->incarnation == 3 && found->node_id == 7 && found->members_n == 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(found->members[i].id, id.members[i].id);
        assert_int_equal(found->members[i].role, id.members[i].role);
        assert_memory_equal(found->members[i].uuid, id.members[i].uuid, NODE_UUID_LEN);
        assert_string_equal(found->members[i].host_port, id.members[i].host_port);
        assert_string_equal(found->members[i].cert_name, id.members[i].cert_name);
    }
    datadir_close(&d);
}

static void test_two_directories_differ(void **state)
{
    (void)state;
    uint8_t uuid[NODE_UUID_LEN];
    struct datadir *d = open_ok();
    memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
    datadir_close(&d);
    wipe();
    d = open_ok();
    assert_memory_not_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
    datadir_close(&d);
}

static void test_second_daemon_refused(void **state)
{
    (void)state;
    struct datadir *d = open_ok(), *other = NULL;
    char want[64];
    assert_int_equal(datadir_open(dir, &other, &err), RAFTDIR_EBUSY);
    assert_null(other);
    snprintf(want, sizeof want, "in use by another raftdird (process %ld)", (long)getpid());
    assert_non_null(strstr(err.text, want));
    datadir_close(&d);
    d = open_ok();
    datadir_close(&d);
}

static void test_foreign_directory_refused(void **state)
{
    (void)state;
    struct datadir *d = NULL;
    assert_int_equal(mkdir(dir, 0700), 0);
    write_file("mailboxes.db", "x", 1);
    assert_int_equal(datadir_open(dir, &d, &err), RAFTDIR_EINVAL);
    assert_non_null(strstr(err.text, "not empty (\"mailboxes.db\")"));
    /* A member whose IDENTITY was lost isn't taken for a fresh one either. */
    wipe();
    d = open_ok();
    assert_int_equal(datadir_prepare(d, &err), 0);
    datadir_close(&d);
    char path[256];
    snprintf(path, sizeof path, "%s/IDENTITY", dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(datadir_open(dir, &d, &err), RAFTDIR_EINVAL);
}

static void test_other_version(void **state)
{
    (void)state;
    struct datadir *d = open_ok();
    datadir_close(&d);
    char text[4096];
    size_t len = read_file("IDENTITY", text, sizeof text);
    char *version = strstr(text, "identity 1");
    assert_non_null(version);
    version[9] = '2';
    write_file("IDENTITY", text, len);
    assert_int_equal(datadir_open(dir, &d, &err), RAFTDIR_EVERSION);
    assert_non_null(strstr(err.text, "has version 2"));
    assert_non_null(strstr(err.text, "run the raftdird that wrote it"));
}

/* Any changed, missing or added byte is noticed. */
static void test_damaged_identity(void **state)
{
    (void)state;
    struct datadir *d = open_ok();
    struct datadir_identity id = sample();
    assert_int_equal(datadir_prepare(d, &err), 0);
    assert_int_equal(datadir_join(d, &id, &err), 0);
    datadir_close(&d);
    char text[4096], bad[4096];
    size_t len = read_file("IDENTITY", text, sizeof text);
    for (size_t i = 0; i < len; i++) {
        memcpy(bad, text, len);
        bad[i] ^= 1;
        write_file("IDENTITY", bad, len);
        int rc = datadir_open(dir, &d, &err);
        if (rc != RAFTDIR_ECORRUPT && rc != RAFTDIR_EVERSION)
            fail_msg("byte %zu changed: %d %s", i, rc, rc ? err.text : "taken");
        write_file("IDENTITY", text, i);
        assert_int_equal(datadir_open(dir, &d, &err), RAFTDIR_ECORRUPT);
    }
    memcpy(bad, text, len);
    bad[len] = 'x';
    write_file("IDENTITY", bad, len + 1);
    assert_int_equal(datadir_open(dir, &d, &err), RAFTDIR_ECORRUPT);
    write_file("IDENTITY", text, len);
    d = open_ok();
    datadir_close(&d);
}

/* --- Crashes: everything stops before step N, for every N ---------------------------------------------------------------------- */

static int steps_left;
static int stop_at(const char *step)
{
    (void)step;
    return steps_left-- <= 0;
}

/* From nothing to a member. Returns the code of what stopped it. */
static int become_member(const struct datadir_identity *id)
{
    struct datadir *d = NULL;
    int rc = datadir_open(dir, &d, &err);
    if (rc == 0)
        rc = datadir_prepare(d, &err);
    if (rc == 0) {
        write_file("gen-1/log/vote", "v", 1);
        rc = datadir_join(d, id, &err);
    }
    if (d)
        datadir_close(&d);
    return rc;
}

static void test_crash_at_each_step(void **state)
{
    (void)state;
    struct datadir_identity id = sample();
    int n, rc = RAFTDIR_ECANCELED;
    for (n = 0; rc != 0; n++) {
        assert_true(n < 100);
        wipe();
        datadir_step_hook = stop_at;
        steps_left = n;
        rc = become_member(&id);
        datadir_step_hook = NULL;
        if (rc != 0)
            assert_int_equal(rc, RAFTDIR_ECANCELED);
        /* What was left is a fresh node or a member, never something between; a fresh one becomes a member at the next attempt. */
        struct datadir *d = open_ok();
        bool member = datadir_identity(d)->cluster_id != 0;
        if (member) {
            assert_int_equal(datadir_identity(d)->node_id, 7);
            assert_int_equal(datadir_check(d, &err), 0);
        }
        datadir_close(&d);
        if (!member) {
            assert_int_equal(become_member(&id), 0);
            d = open_ok();
            assert_int_equal(datadir_check(d, &err), 0);
            datadir_close(&d);
        }
    }
    assert_true(n > 10); /* the hook was asked */
}

/* IDENTITY is written only when the names of the files in gen-1 are durable, so not when there is nothing to sync. */
static void test_no_member_without_its_directories(void **state)
{
    (void)state;
    static const char *const names[] = {"gen-1/state", "gen-1/log"};
    struct datadir_identity id = sample();
    for (int i = 0; i < 2; i++) {
        char path[256];
        wipe();
        struct datadir *d = open_ok();
        assert_int_equal(datadir_prepare(d, &err), 0);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(rmdir(path), 0);
        assert_int_not_equal(datadir_join(d, &id, &err), 0);
        datadir_close(&d);
        d = open_ok();
        assert_int_equal(datadir_identity(d)->cluster_id, 0);
        datadir_close(&d);
    }
}

/* Leftovers of an attempt don't become part of the next one. */
static void test_leftovers_removed(void **state)
{
    (void)state;
    struct datadir *d = open_ok();
    assert_int_equal(datadir_prepare(d, &err), 0);
    write_file("gen-1/log/vote", "old", 3);
    write_file("gen-1/state/data.mdb", "old", 3);
    datadir_close(&d);
    d = open_ok();
    assert_int_equal(datadir_prepare(d, &err), 0);
    char path[512];
    assert_int_equal(datadir_path(d, "log/vote", path, sizeof path, &err), 0);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(datadir_path(d, "state/data.mdb", path, sizeof path, &err), 0);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(datadir_path(d, "state", path, sizeof path, &err), 0);
    assert_int_equal(access(path, F_OK), 0);
    datadir_close(&d);
}

static void test_member_without_log_refused(void **state)
{
    (void)state;
    struct datadir_identity id = sample();
    char path[256];
    assert_int_equal(become_member(&id), 0);
    struct datadir *d = open_ok();
    assert_int_equal(datadir_check(d, &err), 0);
    snprintf(path, sizeof path, "%s/gen-1/log/vote", dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(datadir_check(d, &err), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(err.text, "remove member 7"));
    datadir_close(&d);
}

static void test_members_that_cannot_be_written(void **state)
{
    (void)state;
    struct datadir_identity id = sample();
    struct datadir *d = open_ok();
    assert_int_equal(datadir_prepare(d, &err), 0);
    snprintf(id.members[1].cert_name, sizeof id.members[1].cert_name, "x\nnode 9");
    assert_int_equal(datadir_join(d, &id, &err), RAFTDIR_EINVAL);
    assert_int_equal(datadir_identity(d)->cluster_id, 0);
    datadir_close(&d);
}

/* --- Generations --------------------------------------------------------------------------------------------------------------- */

static bool exists(const char *name)
{
    char path[1024];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return lstat(path, &st) == 0;
}

/* Which life the current log/vote is of: the text that the test wrote into it. */
static int life(struct datadir *d)
{
    char path[512], buf[32];
    assert_int_equal(datadir_path(d, "log/vote", path, sizeof path, &err), 0);
    read_file(path + strlen(dir) + 1, buf, sizeof buf);
    return atoi(buf);
}

static void life_write(const char *path, int n)
{
    char text[32];
    int len = snprintf(text, sizeof text, "%d", n);
    write_file(path + strlen(dir) + 1, text, (size_t)len);
}

static struct datadir *open_member(void)
{
    struct datadir_identity id = sample();
    char path[512];
    assert_int_equal(become_member(&id), 0);
    struct datadir *d = open_ok();
    assert_int_equal(datadir_path(d, "log/vote", path, sizeof path, &err), 0);
    life_write(path, 1);
    assert_int_equal(datadir_path(d, "state/data.mdb", path, sizeof path, &err), 0);
    life_write(path, 1);
    return d;
}

static int stage_filled(struct datadir *d, int n)
{
    char path[512];
    int rc = datadir_stage(d, &err);
    if (rc != 0)
        return rc;
    assert_int_equal(datadir_staged_path(d, "state/data.mdb", path, sizeof path, &err), 0);
    assert_int_equal(access(path, F_OK), -1);
    life_write(path, n);
    assert_int_equal(datadir_staged_path(d, "log/vote", path, sizeof path, &err), 0);
    assert_int_equal(access(path, F_OK), -1);
    life_write(path, n);
    return 0;
}

static void test_stage_and_swap(void **state)
{
    (void)state;
    struct datadir *d = open_member();
    char path[512], want[512];
    assert_int_equal(datadir_staged_path(d, "state", path, sizeof path, &err), RAFTDIR_EINVAL);
    assert_int_equal(datadir_swap(d, &err), RAFTDIR_EINVAL);
    for (int n = 2; n < 12; n++) {
        assert_int_equal(stage_filled(d, n), 0);
        assert_int_equal(life(d), n - 1);
        assert_int_equal(datadir_swap(d, &err), 0);
        assert_int_equal(life(d), n);
        assert_int_equal(datadir_path(d, "state", path, sizeof path, &err), 0);
        snprintf(want, sizeof want, "%s/gen-%d/state", dir, n);
        assert_string_equal(path, want);
        assert_int_equal(datadir_staged_path(d, "state", path, sizeof path, &err), RAFTDIR_EINVAL);
        snprintf(want, sizeof want, "gen-%d/state/data.mdb", n - 1);
        assert_true(exists(want)); /* somebody may still read it */
        if (n % 2)
            assert_int_equal(datadir_clean(d, &err), 0);
        datadir_close(&d);
        d = open_ok();
        assert_int_equal(datadir_check(d, &err), 0);
        assert_int_equal(datadir_identity(d)->node_id, 7);
        assert_int_equal(life(d), n);
    }
    assert_true(exists("gen-11") && !exists("gen-10") && !exists("gen-9"));
    datadir_close(&d);
}

/* What is staged is left alone until it isn't wanted; nor is anything else touched that isn't a generation. */
static void test_clean(void **state)
{
    (void)state;
    static const char *const others[] = {"gen-1.bak", "gen-x", "gen-", "gen-01", "gen-0", "gen-99999999999999999999", "lost+found"};
    struct datadir *d = open_member();
    char path[256];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, others[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    static const char *const left[] = {"gen-5", "gen-5/state", "gen-5/log", "gen-5/log/deep", "gen-77"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, left[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    write_file("gen-5/log/deep/file", "x", 1);
    write_file("gen-8", "x", 1);
    write_file("IDENTITY.tmp", "x", 1);
    snprintf(path, sizeof path, "%s/CURRENT.tmp", dir);
    assert_int_equal(symlink("gen-5", path), 0);
    assert_int_equal(datadir_clean(d, &err), 0);
    assert_true(!exists("gen-5") && !exists("gen-77") && !exists("gen-8") && !exists("IDENTITY.tmp") && !exists("CURRENT.tmp"));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_true(exists(others[i]));
    assert_int_equal(stage_filled(d, 2), 0);
    assert_int_equal(datadir_clean(d, &err), 0);
    assert_true(exists("gen-2/log/vote") && exists("gen-1/log/vote"));
    datadir_unstage(d);
    assert_int_equal(datadir_swap(d, &err), RAFTDIR_EINVAL);
    assert_int_equal(datadir_clean(d, &err), 0);
    assert_true(!exists("gen-2") && exists("gen-1/log/vote"));
    /* Which one is the member's can't be told: nothing is removed. */
    assert_int_equal(stage_filled(d, 2), 0);
    datadir_unstage(d);
    snprintf(path, sizeof path, "%s/CURRENT", dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(datadir_clean(d, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(datadir_stage(d, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(symlink("../somewhere", path), 0);
    assert_int_equal(datadir_clean(d, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(datadir_stage(d, &err), RAFTDIR_ECORRUPT);
    assert_true(exists("gen-1/log/vote") && exists("gen-2/log/vote"));
    datadir_close(&d);
}

/* An image that isn't whole never becomes current. */
static void test_incomplete_stage(void **state)
{
    (void)state;
    static const char *const missing[] = {"gen-2/log/vote", "gen-2/log", "gen-2/state"};
    struct datadir *d = open_member();
    char path[256];
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        assert_int_equal(datadir_stage(d, &err), 0);
        if (i != 0) {
            assert_int_equal(datadir_staged_path(d, "log/vote", path, sizeof path, &err), 0);
            life_write(path, 2);
        }
        if (i == 1)
            assert_int_equal(unlink(path), 0);
        snprintf(path, sizeof path, "%s/%s", dir, missing[i]);
        if (i)
            assert_int_equal(rmdir(path), 0);
        assert_int_equal(datadir_swap(d, &err), RAFTDIR_EINVAL);
        assert_non_null(strstr(err.text, i == 2 ? "gen-2/state" : "gen-2/log/vote"));
        assert_int_equal(life(d), 1);
    }
    datadir_close(&d);
    /* Nobody stages beside what isn't a member. */
    wipe();
    d = open_ok();
    assert_int_equal(datadir_stage(d, &err), RAFTDIR_EBUSY);
    assert_int_equal(datadir_prepare(d, &err), 0);
    assert_int_equal(datadir_stage(d, &err), RAFTDIR_EBUSY);
    datadir_close(&d);
}

static char last_step[64];
static int stop_at_noted(const char *step)
{
    if (steps_left-- > 0)
        return 0;
    snprintf(last_step, sizeof last_step, "%s", step);
    return 1;
}

/* Where every sync stands; and when one fails, what may have happened is told apart from what can't have. */
static void test_swap_syncs(void **state)
{
    (void)state;
    static const char *const order[] = {"/gen-2/state", "/gen-2/log", "/gen-2", "", ""};
    struct datadir *d = open_member();
    assert_int_equal(stage_filled(d, 2), 0);
    synced_n = 0;
    assert_int_equal(datadir_swap(d, &err), 0);
    assert_int_equal(synced_n, 5);
    for (int i = 0; i < 5; i++) {
        char want[256];
        snprintf(want, sizeof want, "%s%s", dir, order[i]);
        assert_string_equal(synced[i], want);
    }
    for (int n = 1; n <= 5; n++) {
        assert_int_equal(stage_filled(d, 3), 0);
        fsync_fails_at = n;
        assert_int_equal(datadir_swap(d, &err), RAFTDIR_EIO);
        assert_int_equal(fsync_fails_at, 0);
        assert_int_equal(life(d), n < 5 ? 2 : 3);
    }
    /* What failed before anything changed can be tried again. */
    assert_int_equal(stage_filled(d, 4), 0);
    datadir_step_hook = stop_at_noted;
    steps_left = 5; /* the rename */
    assert_int_equal(datadir_swap(d, &err), RAFTDIR_ECANCELED);
    datadir_step_hook = NULL;
    assert_string_equal(last_step, "rename CURRENT");
    assert_int_equal(life(d), 3);
    assert_int_equal(datadir_swap(d, &err), 0);
    assert_int_equal(life(d), 4);
    datadir_close(&d);
}

/* The directory opens as the old one or as the new one, and goes on from there. */
static void test_crash_at_each_step_of_a_swap(void **state)
{
    (void)state;
    int n, rc = RAFTDIR_ECANCELED;
    bool was_new = false;
    for (n = 0; rc != 0; n++) {
        assert_true(n < 100);
        wipe();
        struct datadir *d = open_member();
        uint8_t uuid[NODE_UUID_LEN];
        memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
        write_file("CURRENT.tmp", "x", 1);
        datadir_step_hook = stop_at_noted;
        steps_left = n;
        rc = stage_filled(d, 2);
        bool swapped = rc == 0 && (rc = datadir_swap(d, &err)) == 0;
        if (rc == 0)
            rc = datadir_clean(d, &err);
        datadir_step_hook = NULL;
        if (rc != 0)
            assert_int_equal(rc, RAFTDIR_ECANCELED);
        datadir_close(&d);
        d = open_ok();
        assert_memory_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
        assert_int_equal(datadir_identity(d)->node_id, 7);
        if (datadir_check(d, &err) != 0)
            fail_msg("before %s: %s", last_step, err.text);
        bool new = life(d) == 2;
        assert_true(new || life(d) == 1);
        assert_true(new || !swapped);
        if (rc != 0)
            assert_int_equal(new, was_new || strcmp(last_step, "sync CURRENT") == 0);
        was_new = new;
        assert_int_equal(datadir_clean(d, &err), 0);
        assert_true(exists(new ? "gen-2" : "gen-1") && !exists(new ? "gen-1" : "gen-2") && !exists("CURRENT.tmp"));
        assert_int_equal(stage_filled(d, 3), 0);
        assert_int_equal(datadir_swap(d, &err), 0);
        assert_int_equal(datadir_check(d, &err), 0);
        assert_int_equal(life(d), 3);
        datadir_close(&d);
    }
    assert_true(was_new && n > 10);
}

/* What was found wrong stays so, and goes with the generation that it is about. */
static void test_failure_is_kept(void **state)
{
    (void)state;
    char why[128];
    struct datadir *d = open_member();
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), RAFTDIR_ENOTFOUND);
    fsync_fails_at = 1;
    assert_int_equal(datadir_failure_set(d, "never durable", &err), RAFTDIR_EIO);
    fsync_fails_at = 0;
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), RAFTDIR_ENOTFOUND);
    synced_n = 0;
    assert_int_equal(datadir_failure_set(d, "the digest differs at index 1024", &err), 0);
    assert_int_equal(synced_n, 2); /* the file, then its name */
    assert_non_null(strstr(synced[0], "FAILED"));
    assert_non_null(strstr(synced[1], "gen-1"));
    datadir_close(&d);
    d = open_ok();
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), 0);
    assert_string_equal(why, "the digest differs at index 1024");
    assert_int_equal(datadir_failure_get(d, why, 5, &err), 0);
    assert_string_equal(why, "the ");
    assert_int_equal(stage_filled(d, 2), 0);
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), 0);
    assert_int_equal(datadir_swap(d, &err), 0);
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), RAFTDIR_ENOTFOUND);
    assert_int_equal(datadir_failure_set(d, "again", &err), 0);
    assert_int_equal(datadir_reset(d, &err), 0);
    assert_int_equal(datadir_prepare(d, &err), 0);
    assert_int_equal(datadir_failure_get(d, why, sizeof why, &err), RAFTDIR_ENOTFOUND);
    datadir_close(&d);
}

/* Either still the member, with everything, or a new node; never a member without its log, nor the old identity without its cluster. */
static void test_crash_at_each_step_of_a_reset(void **state)
{
    (void)state;
    struct datadir_identity id = sample();
    int n, rc = RAFTDIR_ECANCELED;
    bool was_new = false;
    for (n = 0; rc != 0; n++) {
        assert_true(n < 100);
        wipe();
        struct datadir *d = open_member();
        uint8_t uuid[NODE_UUID_LEN], uuid_new[NODE_UUID_LEN];
        memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
        assert_int_equal(stage_filled(d, 2), 0);
        assert_int_equal(datadir_swap(d, &err), 0);
        assert_int_equal(stage_filled(d, 3), 0); /* gen-1 is gone, gen-2 current, gen-3 staged */
        datadir_step_hook = stop_at_noted;
        steps_left = n;
        rc = datadir_reset(d, &err);
        datadir_step_hook = NULL;
        if (rc != 0)
            assert_int_equal(rc, RAFTDIR_ECANCELED);
        memcpy(uuid_new, datadir_identity(d)->uuid, NODE_UUID_LEN);
        bool told = datadir_identity(d)->cluster_id == 0;
        datadir_close(&d);
        d = open_ok();
        bool new = datadir_identity(d)->cluster_id == 0;
        assert_true(new || (!was_new && !told));
        if (!new) {
            assert_memory_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
            assert_int_equal(datadir_check(d, &err), 0);
            assert_int_equal(life(d), 2);
            datadir_close(&d);
            continue;
        }
        was_new = true;
        assert_memory_not_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
        if (told)
            assert_memory_equal(datadir_identity(d)->uuid, uuid_new, NODE_UUID_LEN);
        if (rc == 0)
            assert_true(!exists("gen-1") && !exists("gen-2") && !exists("gen-3") && !exists("CURRENT"));
        datadir_close(&d);
        assert_int_equal(become_member(&id), 0);
        d = open_ok();
        assert_int_equal(datadir_check(d, &err), 0);
        assert_true(exists("gen-1") && !exists("gen-2") && !exists("gen-3") && !exists("gen-1/state/data.mdb"));
        datadir_close(&d);
    }
    assert_true(was_new && n > 8);
}

/* A member that lost any part of what it had: it is told what, isn't started, and can be reset. */
static void test_damaged_member_is_reset(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
    } lost[] = {{"gen-1", "gen-1 is missing, to which CURRENT points"}, {"gen-1/log", "gen-1/log is missing"}, {"gen-1/log/vote", "log/vote is missing"},
                {"gen-1/state", "gen-1/state is missing"}, {"CURRENT", "CURRENT, which points to the node's log and state, can't be read"},
                {"CURRENT>/etc", "CURRENT points to \"/etc\"; wanted gen-N"}, {"CURRENT>gen-1/", "wanted gen-N"},
                {"CURRENT>gen-01", "wanted gen-N"}, {"CURRENT>gen-1.bak", "wanted gen-N"}, {"CURRENT>gen-2", "gen-2 is missing, to which CURRENT points"}};
    struct datadir_identity id = sample();
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        wipe();
        struct datadir *d = open_member();
        uint8_t uuid[NODE_UUID_LEN];
        char path[256];
        memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
        snprintf(path, sizeof path, "%s/%s", dir, lost[i].name);
        path[strcspn(path, ">")] = '\0';
        if (nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS) != 0)
            fail_msg("%s", path);
        if (strchr(lost[i].name, '>'))
            assert_int_equal(symlink(strchr(lost[i].name, '>') + 1, path), 0);
        datadir_close(&d);
        d = open_ok();
        assert_int_equal(datadir_check(d, &err), RAFTDIR_ECORRUPT);
        if (!strstr(err.text, lost[i].text) || !strstr(err.text, "remove member 7"))
            fail_msg("%s", err.text);
        assert_int_equal(datadir_reset(d, &err), 0);
        assert_memory_not_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
        assert_int_equal(datadir_identity(d)->cluster_id, 0);
        assert_int_equal(datadir_identity(d)->members_n, 0);
        assert_true(!exists("gen-1") && !exists("CURRENT"));
        memcpy(uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
        assert_int_equal(datadir_prepare(d, &err), 0); /* in the same process, too */
        datadir_close(&d);
        assert_int_equal(become_member(&id), 0);
        d = open_ok();
        assert_memory_equal(datadir_identity(d)->uuid, uuid, NODE_UUID_LEN);
        assert_int_equal(datadir_check(d, &err), 0);
        datadir_close(&d);
    }
}

/* A node that isn't prepared doesn't join on what is left of another life. */
static void test_join_wants_a_prepared_directory(void **state)
{
    (void)state;
    struct datadir_identity id = sample();
    char path[256];
    struct datadir *d = open_ok();
    assert_int_equal(datadir_join(d, &id, &err), RAFTDIR_ECORRUPT);
    assert_int_equal(datadir_prepare(d, &err), 0);
    snprintf(path, sizeof path, "%s/CURRENT", dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("gen-2", path), 0);
    assert_int_equal(datadir_join(d, &id, &err), RAFTDIR_EINVAL);
    assert_int_equal(datadir_identity(d)->cluster_id, 0);
    datadir_close(&d);
}

/* A generation that takes long to remove holds nobody up. */
static sem_t removing, go_on;
static int wait_at_removal(const char *step)
{
    if (strcmp(step, "remove gen-1") == 0) {
        sem_post(&removing);
        sem_wait(&go_on);
    }
    return 0;
}

static void *cleaner(void *data)
{
    return (void *)(intptr_t)datadir_clean(data, NULL);
}

static void test_clean_beside_others(void **state)
{
    (void)state;
    struct datadir *d = open_member();
    char path[512];
    pthread_t t;
    void *rc;
    assert_int_equal(stage_filled(d, 2), 0);
    assert_int_equal(datadir_swap(d, &err), 0);
    sem_init(&removing, 0, 0);
    sem_init(&go_on, 0, 0);
    datadir_step_hook = wait_at_removal;
    assert_int_equal(pthread_create(&t, NULL, cleaner, d), 0);
    sem_wait(&removing);
    assert_int_equal(datadir_path(d, "log", path, sizeof path, &err), 0);
    assert_int_equal(life(d), 2);
    assert_int_equal(datadir_stage(d, &err), RAFTDIR_EBUSY);
    datadir_unstage(d);
    assert_int_equal(datadir_staged_path(d, "log", path, sizeof path, &err), RAFTDIR_EINVAL);
    sem_post(&go_on);
    pthread_join(t, &rc);
    datadir_step_hook = NULL;
    assert_null(rc);
    assert_int_equal(stage_filled(d, 3), 0);
    assert_int_equal(datadir_swap(d, &err), 0);
    assert_int_equal(life(d), 3);
    datadir_close(&d);
}

/* --- A log that goes along --------------------------------------------------------------------------------------------------------------- */

#define ALONG_ENTRIES 40

static const struct seglog_options small_segments = {.segment_len = 8 * 4096};

static struct seglog *log_of(struct datadir *d, struct seglog_found *found)
{
    struct seglog_identity who = {.cluster_id = 9, .incarnation = 1};
    struct seglog *log;
    char path[512];
    memcpy(who.uuid, datadir_identity(d)->uuid, NODE_UUID_LEN);
    assert_int_equal(datadir_path(d, "log", path, sizeof path, &err), 0);
    if (seglog_open_with(path, &who, &small_segments, &log, found, &err) != 0)
        fail_msg("%s", err.text);
    return log;
}

static void log_add(struct seglog *log, uint64_t index)
{
    char text[2000];
    memset(text, 'a' + (int)(index % 26), sizeof text);
    struct entry *e = entry_create(index, 3, 1, text, sizeof text);
    struct log_batch *b = log_batch_create(&e, 1);
    assert_int_equal(seglog_write(log, b, &err), 0);
    log_batch_destroy(&b);
    entry_unref(e);
}

/* Entries first..last, each as it was written, and the vote. */
static void log_holds(struct datadir *d, uint64_t first, uint64_t last, uint64_t term, uint64_t voted_for)
{
    struct seglog_found found;
    struct seglog *log = log_of(d, &found);
    assert_int_equal(found.term, term);
    assert_int_equal(found.voted_for, voted_for);
    assert_true(found.first <= first && found.first + found.entries_n == last + 1);
    assert_int_equal(found.torn_len, 0);
    for (size_t i = 0; i < found.entries_n; i++)
        assert_true(found.entries[i]->index == found.first + i && found.entries[i]->len == 2000 && found.entries[i]->data[1999] == 'a' + (int)(found.entries[i]->index % 26));
    seglog_found_clear(&found);
    seglog_close(&log);
}

/* Whatever a crash leaves: the whole log, term and vote; and whoever goes on from there, in whichever generation, keeps them when the other one's names are removed. */
static void test_crash_at_each_step_of_a_renewal(void **state)
{
    (void)state;
    int n, rc = RAFTDIR_ECANCELED;
    bool was_new = false;
    for (n = 0; rc != 0; n++) {
        struct seglog_found found;
        char path[512];
        assert_true(n < 100);
        wipe();
        struct datadir_identity id = sample();
        assert_int_equal(become_member(&id), 0);
        struct datadir *d = open_ok();
        assert_int_equal(datadir_path(d, "log/vote", path, sizeof path, &err), 0);
        unlink(path); /* become_member's */
        struct seglog *log = log_of(d, &found);
        seglog_found_clear(&found);
        assert_int_equal(seglog_vote(log, 3, 7, &err), 0);
        for (uint64_t i = 1; i <= ALONG_ENTRIES; i++)
            log_add(log, i);
        assert_int_equal(seglog_cut(log, 8, &err), 0); /* some of it waits to be removed, or is just being */
        seglog_close(&log);
        write_file("gen-1/state/data.mdb", "old", 3);
        write_file("gen-1/log/00000000000000000001.seg.cut.tmp", "x", 1);
        write_file("gen-1/log/vote.tmp", "x", 1);
        datadir_step_hook = stop_at_noted;
        steps_left = n;
        rc = datadir_stage(d, &err);
        if (rc == 0) {
            assert_int_equal(datadir_staged_path(d, "state/data.mdb", path, sizeof path, &err), 0);
            write_file(path + strlen(dir) + 1, "new", 3);
            rc = datadir_log_link(d, &err);
        }
        bool swapped = rc == 0 && (rc = datadir_swap(d, &err)) == 0;
        if (rc == 0)
            rc = datadir_clean(d, &err);
        datadir_step_hook = NULL;
        if (rc != 0)
            assert_int_equal(rc, RAFTDIR_ECANCELED);
        datadir_close(&d);
        d = open_ok();
        assert_int_equal(datadir_check(d, &err), 0);
        uint64_t number;
        assert_int_equal(datadir_generation(d, &number, &err), 0);
        bool new = number == 2;
        assert_true(new || (number == 1 && !swapped));
        if (rc != 0)
            assert_int_equal(new, was_new || strcmp(last_step, "sync CURRENT") == 0);
        was_new = new;
        char text[8];
        read_file(new ? "gen-2/state/data.mdb" : "gen-1/state/data.mdb", text, sizeof text);
        assert_memory_equal(text, new ? "new" : "old", 3);
        assert_true(!exists("gen-2/log/vote.tmp") && !exists("gen-2/log/00000000000000000001.seg.cut.tmp"));
        log_holds(d, 9, ALONG_ENTRIES, 3, 7);
        /* It goes on, while the other names are there, and when they are gone; segments are cut under one name only. */
        log = log_of(d, &found);
        seglog_found_clear(&found);
        for (uint64_t i = ALONG_ENTRIES + 1; i <= 2 * ALONG_ENTRIES; i++)
            log_add(log, i);
        assert_int_equal(seglog_vote(log, 4, 2, &err), 0);
        assert_int_equal(seglog_cut(log, ALONG_ENTRIES, &err), 0);
        seglog_close(&log);
        log_holds(d, ALONG_ENTRIES + 1, 2 * ALONG_ENTRIES, 4, 2);
        assert_int_equal(datadir_clean(d, &err), 0);
        assert_true(exists(new ? "gen-2" : "gen-1") && !exists(new ? "gen-1" : "gen-2"));
        log_holds(d, ALONG_ENTRIES + 1, 2 * ALONG_ENTRIES, 4, 2);
        datadir_close(&d);
    }
    assert_true(was_new && n > 15);
}

/* Nothing is linked where nothing is staged, or into what isn't empty; and what is left of the attempt goes. */
static void test_log_link_refused(void **state)
{
    (void)state;
    struct datadir *d = open_member();
    char path[512];
    assert_int_equal(datadir_log_link(d, &err), RAFTDIR_EINVAL);
    assert_int_equal(stage_filled(d, 2), 0); /* with a vote of its own */
    assert_int_not_equal(datadir_log_link(d, &err), 0);
    datadir_unstage(d);
    assert_int_equal(life(d), 1);
    assert_int_equal(datadir_clean(d, &err), 0);
    assert_int_equal(life(d), 1);
    assert_int_equal(datadir_stage(d, &err), 0);
    assert_int_equal(datadir_staged_path(d, "state/data.mdb", path, sizeof path, &err), 0);
    write_file(path + strlen(dir) + 1, "new", 3);
    assert_int_equal(datadir_log_link(d, &err), 0);
    assert_int_equal(datadir_swap(d, &err), 0);
    assert_int_equal(life(d), 1); /* the same file */
    datadir_close(&d);
}

static void mode_is(const char *name, unsigned mode, gid_t group)
{
    struct stat st;
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(stat(path, &st), 0);
    if ((st.st_mode & 07777) != mode || st.st_gid != group)
        fail_msg("%s has mode %o and group %d, wanted %o and %d", name, st.st_mode & 07777, (int)st.st_gid, mode, (int)group);
}

/* What a local group may look into, whenever it is given, and whatever umask is; everything else stays the owner's. */
static void test_share(void **state)
{
    struct datadir *d;
    gid_t groups[64], own = getegid();
    int n = getgroups(64, groups);
    gid_t group = geteuid() == 0 ? 8 : n > 0 && groups[0] ? groups[0] : own;
    mode_t before = umask(0077);
    (void)state;
    /* Later, for a member that is there. */
    assert_int_equal(datadir_open(dir, &d, &err), 0);
    assert_int_equal(datadir_group(d), -1);
    assert_int_equal(datadir_share(d, -1, &err), 0);
    mode_is("", 0700, own);
    assert_int_equal(datadir_prepare(d, &err), 0);
    mode_is("gen-1", 0700, own);
    struct datadir_identity id = {.cluster_id = 5, .incarnation = 1, .node_id = 1};
    assert_int_equal(datadir_join(d, &id, &err), 0);
    assert_int_equal(datadir_share(d, (int)group, &err), 0);
    for (int i = 0; i < 2; i++) {
        uint64_t number;
        mode_is("", 0750, group);
        mode_is("gen-1", 0750, group);
        mode_is("gen-1/state", 0750, group);
        mode_is("gen-1/log", 0700, own);
        mode_is("IDENTITY", 0600, own);
        mode_is("lock", 0600, own);
        assert_int_equal(datadir_generation(d, &number, &err), 0);
        assert_int_equal(number, 1);
        datadir_close(&d);
        assert_int_equal(datadir_open(dir, &d, &err), 0);
        assert_int_equal(datadir_share(d, (int)group, &err), 0);
    }
    /* What is staged then is as shared. */
    assert_int_equal(datadir_group(d), group);
    assert_int_equal(datadir_stage(d, &err), 0);
    mode_is("gen-2", 0750, group);
    mode_is("gen-2/state", 0750, group);
    mode_is("gen-2/log", 0700, own);
    datadir_close(&d);
    /* Not any more. */
    assert_int_equal(datadir_open(dir, &d, &err), 0);
    assert_int_equal(datadir_share(d, -1, &err), 0);
    assert_int_equal(datadir_group(d), -1);
    struct stat st;
    char path[256];
    snprintf(path, sizeof path, "%s/gen-1/state", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    datadir_close(&d);
    umask(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_create_and_find_again, setup),      cmocka_unit_test_setup(test_two_directories_differ, setup),
        cmocka_unit_test_setup(test_second_daemon_refused, setup),      cmocka_unit_test_setup(test_foreign_directory_refused, setup),
        cmocka_unit_test_setup(test_other_version, setup),              cmocka_unit_test_setup(test_damaged_identity, setup),
        cmocka_unit_test_setup(test_crash_at_each_step, setup),         cmocka_unit_test_setup(test_leftovers_removed, setup),
        cmocka_unit_test_setup(test_no_member_without_its_directories, setup),
        cmocka_unit_test_setup(test_member_without_log_refused, setup), cmocka_unit_test_setup(test_members_that_cannot_be_written, setup),
        cmocka_unit_test_setup(test_stage_and_swap, setup),             cmocka_unit_test_setup(test_clean, setup),
        cmocka_unit_test_setup(test_incomplete_stage, setup),           cmocka_unit_test_setup(test_swap_syncs, setup),
        cmocka_unit_test_setup(test_crash_at_each_step_of_a_swap, setup),
        cmocka_unit_test_setup(test_crash_at_each_step_of_a_reset, setup), cmocka_unit_test_setup(test_failure_is_kept, setup),
        cmocka_unit_test_setup(test_damaged_member_is_reset, setup),    cmocka_unit_test_setup(test_join_wants_a_prepared_directory, setup),
        cmocka_unit_test_setup(test_clean_beside_others, setup),
        cmocka_unit_test_setup(test_share, setup),                      cmocka_unit_test_setup(test_crash_at_each_step_of_a_renewal, setup),
        cmocka_unit_test_setup(test_log_link_refused, setup),
    };
    if (!mkdtemp(top))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    setup(NULL);
    rmdir(top);
    return rc;
}
