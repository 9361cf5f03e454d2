/* test_datadir.c - the data directory: what a crash before each step leaves, who is refused, and that what was made durable is found again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "raftdir/datadir.h"

static char top[] = "/tmp/raftdir-test-datadir-XXXXXX";
static char dir[128];
static struct err err;

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_create_and_find_again, setup),      cmocka_unit_test_setup(test_two_directories_differ, setup),
        cmocka_unit_test_setup(test_second_daemon_refused, setup),      cmocka_unit_test_setup(test_foreign_directory_refused, setup),
        cmocka_unit_test_setup(test_other_version, setup),              cmocka_unit_test_setup(test_damaged_identity, setup),
        cmocka_unit_test_setup(test_crash_at_each_step, setup),         cmocka_unit_test_setup(test_leftovers_removed, setup),
        cmocka_unit_test_setup(test_no_member_without_its_directories, setup),
        cmocka_unit_test_setup(test_member_without_log_refused, setup), cmocka_unit_test_setup(test_members_that_cannot_be_written, setup),
    };
    if (!mkdtemp(top))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    setup(NULL);
    rmdir(top);
    return rc;
}
