/* test_thread_log.c - the log writer on a disk with room for a few segments only. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/logger.h"
#include "raftdir/thread_log.h"
#include "support_certs.h"

#define SEGMENT_LEN (64u << 10)
#define ENTRY_LEN 20000u /* three in a segment */
#define ROOM 3           /* segments */

static char dir[256];
static _Atomic unsigned written, failures, lacking_told, room_told, released;

static unsigned segments(void)
{
    unsigned n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += strstr(e->d_name, ".seg") != NULL; /* whole, unfinished or cut off */
    closedir(d);
    return n;
}

/* The file is there already when this is called; `vote` is no segment. */
static int small_disk(void *data, int fd, off_t len)
{
    if (len == SEGMENT_LEN && segments() > ROOM) {
        errno = ENOSPC;
        return -1;
    }
    return seglog_io_system.fallocate(data, fd, len);
}

static void on_space(void *data, bool lacking)
{
    (void)data;
    if (lacking)
        lacking_told++;
    else
        room_told++;
}

static bool on_release(void *data)
{
    (void)data;
    released++;
    return false;
}

static void on_written(void *data, struct log_batch *batches, int status)
{
    (void)data;
    while (batches) {
        struct log_batch *b = batches;
        batches = b->next;
        written += status == 0;
        failures += status != 0;
        log_batch_destroy(&b);
    }
}

static void on_broken(void *data, int code, const char *why)
{
    (void)data;
    (void)code;
    (void)why;
    failures++;
}

static void push(struct log_thread *t, uint64_t index)
{
    static uint8_t payload[ENTRY_LEN];
    struct entry *e = entry_create(index, 1, 1, payload, sizeof payload);
    assert_non_null(e);
    struct log_batch *b = log_batch_create(&e, 1);
    assert_non_null(b);
    entry_unref(e);
    log_thread_push(t, b);
}

static bool written_is(unsigned n, unsigned ms)
{
    for (unsigned i = 0; i < ms && written < n; i += 5)
        usleep(5000);
    return written >= n;
}

/* thread_log/full_disk: a write waits for room, and what is to be cut would make some. */
static void full_disk(void **state)
{
    (void)state;
    struct seglog_io io = seglog_io_system;
    io.fallocate = small_disk;
    struct seglog_options o = {.io = &io, .segment_len = SEGMENT_LEN};
    struct seglog_identity who = {.cluster_id = 1, .incarnation = 1};
    struct log_thread_ops ops = {.space = on_space, .release = on_release, .written = on_written, .broken = on_broken};
    struct seglog *log;
    struct seglog_found found;
    struct log_thread *t;
    struct err err = {0};
    assert_int_equal(seglog_open_with(dir, &who, &o, &log, &found, &err), 0);
    seglog_found_clear(&found);
    assert_int_equal(log_thread_start(log, &ops, &t, &err), 0);
    unsigned index = 0;
    while (segments() < ROOM) {
        push(t, ++index);
        assert_true(written_is(index, 5000));
    }
    while (lacking_told == 0 && index < 20) { /* the last segment fills up */
        push(t, ++index);
        if (!written_is(index, 300))
            break;
    }
    for (unsigned i = 0; i < 1000 && !lacking_told; i++)
        usleep(5000);
    assert_int_equal(lacking_told, 1);
    assert_true(released > 0);
    assert_int_equal(written, index - 1);
    log_thread_cut(t, 4); /* the state was synced meanwhile */
    assert_true(written_is(index, 5000));
    assert_int_equal(room_told, 1);
    assert_int_equal(failures, 0);
    log_thread_stop(&t);
    seglog_close(&log);
}

static int setup(void **state)
{
    (void)state;
    logger_level_set(LOGGER_ERROR);
    support_dir_make(dir, sizeof dir, "thread-log");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    support_dir_remove(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(full_disk, setup, teardown),
    };
    return cmocka_run_group_tests_name("thread_log", tests, NULL, NULL);
}
