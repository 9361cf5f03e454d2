/* test_thread_apply.c - the apply thread beside a process that was stopped while it took a reader's slot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <raft.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "raftdir/thread_apply.h"
#include "support_store.h"

#define LOCK_MAGIC 0xBEEFC0DEu
#define MUTEX_AT 8 /* in LMDB 0.9's lock file: behind magic and format */
#define WAIT_MS 5000

static _Atomic uint64_t applied, published, synced;
static _Atomic unsigned ended;

static void on_space(void *data, bool lacking)
{
    (void)data;
    (void)lacking;
}

static bool on_release(void *data)
{
    (void)data;
    return false;
}

static void on_published(void *data, const struct store_meta *meta)
{
    (void)data;
    atomic_store(&published, meta->applied_index);
}

static void on_applied(void *data, struct apply_batch *batch, const struct apply_members *members)
{
    (void)data;
    (void)members;
    ended += batch->status != 0;
    atomic_store(&applied, batch->meta.applied_index);
    apply_batch_destroy(&batch);
}

static void on_synced(void *data, struct apply_synced *s)
{
    (void)data;
    atomic_store(&synced, s->index);
    free(s->configuration);
}

static void on_broken(void *data, int code, const char *why)
{
    (void)data;
    (void)code;
    fprintf(stderr, "broken: %s\n", why);
    ended++;
}

static bool comes_to(_Atomic uint64_t *what, uint64_t index)
{
    for (int i = 0; i < WAIT_MS / 10 && atomic_load(what) != index; i++)
        usleep(10000);
    return atomic_load(what) == index;
}

/* A process that has the mutex of the readers' table and stops. */
static pid_t stopped_reader(const char *dir)
{
    char path[128];
    int status;
    snprintf(path, sizeof path, "%s/lock.mdb", dir);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = open(path, O_RDWR);
        uint8_t *m = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        uint32_t magic = 0;
        if (m != MAP_FAILED)
            memcpy(&magic, m, sizeof magic);
        if (magic != LOCK_MAGIC || pthread_mutex_lock((pthread_mutex_t *)(void *)(m + MUTEX_AT)) != 0)
            _exit(1);
        raise(SIGSTOP);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    return pid;
}

static void test_stopped_reader(void **state)
{
    static const struct apply_thread_ops ops = {.space = on_space, .release = on_release, .published = on_published, .applied = on_applied, .synced = on_synced, .broken = on_broken};
    struct support_store s = {0};
    struct apply_thread *t;
    struct err err = {0};
    (void)state;
    support_store_open(&s, 0);
    assert_int_equal(apply_thread_start(s.store, &ops, &t, &err), 0);
    pid_t reader = stopped_reader(s.dir);
    bool good = true;
    for (uint64_t i = 1; i <= 3 && good; i++) { /* each is synced by itself, when nothing more comes */
        struct entry *e = entry_create(i, 1, RAFT_BARRIER, NULL, 0);
        struct apply_batch *b = apply_batch_create(&e, 1);
        assert_non_null(b);
        entry_unref(e);
        apply_thread_push(t, b);
        good = comes_to(&applied, i) && comes_to(&published, i) && comes_to(&synced, i);
    }
    kill(reader, SIGKILL); /* first: whoever waits goes on */
    waitpid(reader, NULL, 0);
    apply_thread_stop(&t);
    support_store_close(&s);
    if (!good)
        fail_msg("applied %llu, synced %llu while another process holds the readers' mutex", (unsigned long long)applied, (unsigned long long)synced);
    assert_int_equal(ended, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stopped_reader)};
    return cmocka_run_group_tests_name("thread_apply", tests, NULL, NULL);
}
