/* test_lib_local.c - libraftdir reading a real state beside a status page that the test writes; a fake node stands by for what must be asked by socket.
 *
 * What writes the state is always a child process: LMDB allows one environment of a file in a process, and here the library has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "include/raftdir.h"
#include "raftdir/limits.h"
#include "raftdir/page.h"
#include "support_certs.h"
#include "support_fake_node.h"
#include "support_store.h"

#define F(name) RAFTDIR__CLIENT__TO_NODE__BODY_##name
#define CLUSTER 7 /* as the fake node says */
#define LOOK_MS 150 /* LOCAL_LOOK_MS, and some */

struct gen {
    struct support_store s;
    unsigned number;
};

static char dir[80], data[100]; /* the test's; the node's data directory in it */
static struct gen gens[4];      /* by number, from 1 */
static struct page *page;
static struct fake node, second;
static raftdir *d;
/* What came by socket last. */
static uint32_t seen_max_age, seen_absent;
static char seen_after[512];
static int node_code; /* answered to lookups, if not 0 */

static void sleep_ms(unsigned ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* The node knows each name, at server "by-socket". */
static void answers(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    seen_max_age = m->has_max_age_ms ? m->max_age_ms : 0;
    seen_absent = m->has_absent_max_age_ms ? m->absent_max_age_ms : 0;
    if ((m->body_case == F(LOOKUP) || m->body_case == F(MY_RIGHTS)) && node_code)
        fake_code(f, conn, m->request_id, node_code, NULL);
    else if (m->body_case == F(LOOKUP))
        fake_row(f, conn, m->request_id, m->lookup->name, "by-socket", 50);
    else if (m->body_case == F(MY_RIGHTS))
        fake_row(f, conn, m->request_id, m->my_rights->name, "by-socket", 50);
    else if (m->body_case == F(LIST)) {
        snprintf(seen_after, sizeof seen_after, "%s", m->list->after ? m->list->after : "");
        fake_row(f, conn, m->request_id, "user.zz", "by-socket", 50); /* and that is all */
    } else if (m->body_case == F(WRITE))
        fake_write_result(f, conn, m, 0, 50, NULL);
}

static unsigned asked(void)
{
    return fake_seen(&node, F(LOOKUP)) + fake_seen(&node, F(MY_RIGHTS)) + fake_seen(&node, F(LIST)) + fake_seen(&node, F(VISIBLE));
}

/* --- The state --------------------------------------------------------------------------------------------------------------- */

static void child_end(pid_t pid)
{
    int status;
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("the child ended with %s %d", WIFEXITED(status) ? "status" : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

/* Forks at a moment when the fake node's thread allocates nothing: a child of the address sanitizer would wait for that thread's locks for ever. */
static pid_t fork_quietly(void)
{
    if (node.listener)
        fake_lock(&node);
    pid_t pid = fork();
    if (node.listener && pid != 0)
        fake_unlock(&node);
    return pid;
}

/* Puts NAME.0 ... NAME.(n-1), or NAME itself when n is 0. */
static void put(struct gen *g, const char *name, unsigned n, const char *server, const char *acl)
{
    pid_t pid = fork_quietly();
    if (pid == 0) {
        struct support_arena a = {0};
        g->s.store = NULL; /* the parent has none */
        support_store_reopen(&g->s, 0);
        for (unsigned i = 0; i < (n ? n : 1); i++) {
            char full[128];
            snprintf(full, sizeof full, n ? "%s.%05u" : "%s", name, i);
            Raftdir__Log__Op *op = support_put(&a, full, server, "p1", acl);
            op->put->mailbox->uniqueid = support_text(&a, full);
            op->put->mailbox->mbtype = support_text(&a, "e");
            if (support_do(&a, &g->s, op) != 0)
                _exit(9);
        }
        store_close(&g->s.store);
        _exit(0);
    }
    child_end(pid);
    g->s.index += n ? n : 1;
    g->s.op_seq += n ? n : 1;
    atomic_store(&page->published, g->s.index);
}

static struct gen *gen_make(unsigned number)
{
    struct gen *g = &gens[number];
    char path[160];
    g->number = number;
    pid_t pid;
    /* The directory is made here, the environment by a child. */
    const char *tmp = getenv("TMPDIR");
    memset(&g->s, 0, sizeof g->s);
    g->s.log_time_ms = 1000;
    snprintf(g->s.dir, sizeof g->s.dir, "%s/raftdir-test-XXXXXX", tmp && strlen(tmp) < 32 ? tmp : "/tmp");
    assert_non_null(mkdtemp(g->s.dir));
    if ((pid = fork_quietly()) == 0) {
        support_store_reopen(&g->s, 0);
        store_close(&g->s.store);
        _exit(0);
    }
    child_end(pid);
    snprintf(path, sizeof path, "%s/gen-%u", data, number);
    assert_int_equal(mkdir(path, 0755), 0);
    snprintf(path, sizeof path, "%s/gen-%u/state", data, number);
    assert_int_equal(symlink(g->s.dir, path), 0);
    return g;
}

static void gen_remove(struct gen *g)
{
    char path[160];
    if (!g->number)
        return;
    snprintf(path, sizeof path, "%s/gen-%u/state", data, g->number);
    unlink(path);
    snprintf(path, sizeof path, "%s/gen-%u", data, g->number);
    rmdir(path);
    support_store_close(&g->s); /* removes the files; there is no store open */
    memset(g, 0, sizeof *g);
}

static void fresh(int64_t age_ms) /* -1: not known */
{
    atomic_store(&page->fresh_at_ms, age_ms < 0 ? 0 : page_now_ms() - (uint64_t)age_ms);
    atomic_store(&page->alive_at_ms, page_now_ms());
}

static void serve(unsigned generation)
{
    atomic_store(&page->serving, 0);
    atomic_store(&page->cluster_id, CLUSTER);
    atomic_store(&page->node_id, 1);
    atomic_store(&page->incarnation, 1);
    atomic_store(&page->generation, generation);
    fresh(10);
    atomic_store(&page->serving, 1);
}

static void page_make(void)
{
    struct err err = {0};
    if (page_create(data, "n1", -1, &page, &err) < 0)
        fail_msg("page_create: %s", err.text);
}

static int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "local");
    snprintf(data, sizeof data, "%s/data", dir);
    assert_int_equal(mkdir(data, 0755), 0);
    memset(&node, 0, sizeof node);
    memset(&second, 0, sizeof second);
    d = NULL;
    seen_max_age = seen_absent = 0;
    seen_after[0] = '\0';
    node_code = 0;
    page_make();
    gen_make(1);
    put(&gens[1], "user.anna", 0, "be1", "anna\tlrs\tanyone\tl\t");
    serve(1);
    fake_start(&node, dir, "node", answers, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char path[160];
    raftdir_close(&d);
    fake_stop(&node);
    fake_stop(&second);
    for (unsigned i = 1; i < 4; i++)
        gen_remove(&gens[i]);
    page_destroy(&page);
    snprintf(path, sizeof path, "%s/" PAGE_FILE, data);
    unlink(path);
    rmdir(data);
    support_dir_remove(dir);
    return 0;
}

static void open_with(raftdir **d_r, int level, unsigned max_age_ms, unsigned timeout_ms)
{
    struct raftdir_options o;
    char text[256];
    raftdir_options_init(&o);
    o.endpoints = node.endpoint;
    o.local_dir = data;
    o.level = level;
    o.max_age_ms = max_age_ms;
    o.timeout_ms = timeout_ms ? timeout_ms : 3000;
    if (raftdir_open(&o, d_r, text, sizeof text) < 0)
        fail_msg("raftdir_open: %s", text);
}

/* Asked for a name: found, from where? */
static bool is_local(raftdir *h, const char *name, const char *server)
{
    const struct raftdir_mailbox *m;
    struct raftdir_answer a;
    int rc = raftdir_lookup(h, name, &m);
    if (rc < 0)
        fail_msg("%s: %d %s", name, rc, raftdir_message(h));
    raftdir_answer(h, &a);
    assert_string_equal(m->server, a.local ? server : "by-socket");
    return a.local;
}

/* Where the data file of a generation is mapped in this process: so many times. */
static unsigned mapped(const char *file)
{
    char line[600];
    unsigned n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        n += strstr(line, file) && strstr(line, "/data.mdb");
    fclose(f);
    return n;
}

/* --- Answers --------------------------------------------------------------------------------------------------------------------- */

static void lookups(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    struct raftdir_answer a;
    open_with(&d, 0, 0, 0);
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    assert_string_equal(m->name, "user.anna");
    assert_string_equal(m->server, "be1");
    assert_string_equal(m->partition, "p1");
    assert_string_equal(m->acl, "anna\tlrs\tanyone\tl\t");
    assert_string_equal(m->mbtype, "e");
    assert_string_equal(m->uniqueid, "user.anna");
    assert_string_equal(m->moving_server, "");
    assert_string_equal(m->name_history, "");
    assert_string_equal(m->rights, "");
    assert_int_equal(m->size, sizeof *m);
    assert_int_not_equal(m->mailbox_id, 0);
    assert_string_equal(raftdir_message(d), "");
    assert_int_equal(raftdir_answer(d, &a), 0);
    assert_int_equal(a.local, 1);
    assert_int_equal(a.index, gens[1].s.index);
    assert_int_equal(a.incarnation, 1);
    assert_true(a.age_ms >= 10 && a.age_ms < 5000);
    assert_string_equal(a.node, "n1");
    assert_true(strncmp(a.endpoint, "local:", 6) == 0 && strcmp(a.endpoint + 6, data) == 0);
    assert_string_equal(a.identity, "");
    /* The question may be made of the answer before. */
    assert_int_equal(raftdir_lookup(d, m->name, &m), 0);
    assert_int_equal(raftdir_lookup_uniqueid(d, m->uniqueid, &m), 0);
    assert_string_equal(m->name, "user.anna");
    assert_int_equal(raftdir_lookup_user(d, "anna", &m), 0);
    assert_string_equal(m->name, "user.anna");
    assert_int_equal(raftdir_my_rights(d, m->name, "bob", NULL, 0, &m), 0);
    assert_string_equal(m->rights, "l");
    assert_int_equal(raftdir_my_rights(d, "user.anna", "anna", NULL, 0, &m), 0);
    assert_string_equal(m->rights, "lrs");
    /* What isn't so is told with a text, and nothing is given. */
    assert_int_equal(raftdir_lookup(d, "user.nobody", &m), RAFTDIR_ENOTFOUND);
    assert_null(m);
    assert_non_null(strstr(raftdir_message(d), "user.nobody"));
    assert_int_equal(raftdir_lookup(d, "user..x", &m), RAFTDIR_ENAME);
    assert_int_equal(raftdir_lookup_user(d, "no body@", &m), RAFTDIR_ENAME);
    assert_int_equal(asked(), 0);
    assert_int_equal(node.conns_opened, 0);
    /* A change is seen by the next call. */
    put(&gens[1], "user.anna", 0, "be2", "anna\tl\t");
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    assert_string_equal(m->server, "be2");
    assert_int_equal(asked(), 0);
}

static void levels(void **state)
{
    (void)state;
    open_with(&d, 0, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    assert_int_equal(raftdir_set_level(d, RAFTDIR_LOCAL), 0);
    assert_true(is_local(d, "user.anna", "be1"));
    assert_int_equal(raftdir_set_level(d, RAFTDIR_LINEARIZABLE), 0);
    assert_false(is_local(d, "user.anna", "be1"));
    assert_int_equal(raftdir_set_level(d, RAFTDIR_LOCAL), 0);
    assert_int_equal(raftdir_use_endpoint(d, 0), 0);
    assert_false(is_local(d, "user.anna", "be1"));
}

/* What the handle has written or seen is at index 50; the state gets there later. */
static void session(void **state)
{
    (void)state;
    struct raftdir_mailbox m;
    open_with(&d, 0, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    raftdir_mailbox_init(&m);
    m.name = "user.new";
    m.server = "be1";
    assert_int_equal(raftdir_create(d, &m, NULL), 0);
    assert_false(is_local(d, "user.anna", "be1"));
    assert_int_equal(raftdir_set_level(d, RAFTDIR_LOCAL), 0);
    assert_true(is_local(d, "user.anna", "be1"));
    assert_int_equal(raftdir_set_level(d, RAFTDIR_SESSION), 0);
    put(&gens[1], "user.more", 48, "be1", "anna\tl\t");
    assert_int_equal(gens[1].s.index, 49);
    assert_false(is_local(d, "user.anna", "be1"));
    put(&gens[1], "user.last", 0, "be1", "anna\tl\t");
    assert_true(is_local(d, "user.anna", "be1"));
    /* Of another incarnation an index says nothing. */
    atomic_store(&page->incarnation, 2);
    assert_false(is_local(d, "user.anna", "be1"));
}

static void max_age(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    open_with(&d, 0, 1000, 400);
    assert_true(is_local(d, "user.anna", "be1"));
    fresh(2000);
    assert_false(is_local(d, "user.anna", "be1"));
    assert_int_equal(seen_max_age, 1000);
    fresh(-1);
    assert_false(is_local(d, "user.anna", "be1"));
    raftdir_set_level(d, RAFTDIR_LOCAL);
    assert_false(is_local(d, "user.anna", "be1"));
    /* Nobody is as fresh: said at the timeout, and what was in the way. */
    node_code = RAFTDIR_ESTALE;
    uint64_t started = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), RAFTDIR_ESTALE);
    assert_true(now_ms() - started >= 300);
    assert_non_null(strstr(raftdir_message(d), "local:"));
    fake_stop(&node);
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), RAFTDIR_ESTALE);
    assert_int_equal(raftdir_set_max_age(d, 0), 0);
    assert_true(is_local(d, "user.anna", "be1"));
}

static void absent(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    open_with(&d, 0, 0, 400);
    fresh(4000);
    assert_int_equal(raftdir_lookup(d, "user.nobody", &m), RAFTDIR_ENOTFOUND);
    assert_int_equal(asked(), 0);
    fresh(6000);
    assert_true(is_local(d, "user.anna", "be1")); /* what is there is told from any state */
    assert_false(is_local(d, "user.nobody", "?"));
    assert_int_equal(seen_absent, 5000);
    assert_int_equal(seen_max_age, 0);
    fresh(-1);
    assert_int_equal(raftdir_my_rights(d, "user.nobody", "anna", NULL, 0, &m), 0);
    assert_string_equal(m->server, "by-socket");
    /* At level local it is told as it is, of any age. */
    raftdir_set_level(d, RAFTDIR_LOCAL);
    unsigned before = asked();
    assert_int_equal(raftdir_lookup(d, "user.nobody", &m), RAFTDIR_ENOTFOUND);
    assert_int_equal(asked(), before);
    raftdir_set_level(d, RAFTDIR_SESSION);
    fake_stop(&node);
    assert_int_equal(raftdir_lookup(d, "user.nobody", &m), RAFTDIR_ESTALE);
}

/* --- Which state ------------------------------------------------------------------------------------------------------------------ */

static void not_serving(void **state)
{
    (void)state;
    open_with(&d, 0, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    atomic_store(&page->serving, 0);
    raftdir_set_level(d, RAFTDIR_LOCAL); /* the fake node's index 50 isn't in the state */
    assert_false(is_local(d, "user.anna", "be1"));
    assert_int_equal(mapped(gens[1].s.dir), 0); /* given back at once */
    atomic_store(&page->serving, 1);
    assert_true(is_local(d, "user.anna", "be1"));
}

static void next_generation(void **state)
{
    (void)state;
    raftdir *other = NULL;
    struct gen *g = gen_make(2);
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    open_with(&other, RAFTDIR_LOCAL, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    assert_true(is_local(other, "user.anna", "be1"));
    assert_int_equal(mapped(gens[1].s.dir), 1); /* one for both */
    put(g, "user.anna", 0, "be9", "anna\tl\t");
    serve(2);
    assert_true(is_local(d, "user.anna", "be9"));
    assert_int_equal(mapped(gens[1].s.dir), 1);
    assert_int_equal(mapped(g->s.dir), 1);
    assert_true(is_local(other, "user.anna", "be9"));
    assert_int_equal(mapped(gens[1].s.dir), 0);
    assert_int_equal(mapped(g->s.dir), 1);
    raftdir_close(&other);
    raftdir_close(&d);
    assert_int_equal(mapped(g->s.dir), 0);
    assert_int_equal(asked(), 0);
}

/* The node was reset, and is somebody else's by now: its first generation is gen-1 again. */
static void reset_node(void **state)
{
    (void)state;
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    atomic_store(&page->serving, 0);
    gen_remove(&gens[1]);
    gen_make(1);
    put(&gens[1], "user.anna", 0, "be7", "anna\tl\t");
    serve(1);
    atomic_store(&page->node_id, 5);
    assert_true(is_local(d, "user.anna", "be7"));
    assert_int_equal(mapped("(deleted)"), 0);
    /* Another cluster's state isn't what this handle's nodes know. */
    raftdir_set_level(d, RAFTDIR_LINEARIZABLE);
    assert_false(is_local(d, "user.anna", "?"));
    raftdir_set_level(d, RAFTDIR_LOCAL);
    assert_true(is_local(d, "user.anna", "be7"));
    atomic_store(&page->cluster_id, CLUSTER + 1);
    assert_false(is_local(d, "user.anna", "?"));
}

/* The daemon was started again: another page, which old readers find. */
static void new_page(void **state)
{
    (void)state;
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    page_destroy(&page);
    assert_true(is_local(d, "user.anna", "be1")); /* it goes on while there is no daemon */
    page_make();
    assert_false(is_local(d, "user.anna", "be1"));
    serve(1);
    sleep_ms(LOOK_MS);
    assert_true(is_local(d, "user.anna", "be1"));
    assert_int_equal(mapped(gens[1].s.dir), 1);
    /* A file that was put there by somebody else, so that nobody has told the old page: found by its age. */
    char path[160], aside[180];
    snprintf(path, sizeof path, "%s/" PAGE_FILE, data);
    snprintf(aside, sizeof aside, "%s.aside", path);
    struct page *old = page;
    assert_int_equal(rename(path, aside), 0);
    page_make();
    serve(1);
    gen_make(2);
    put(&gens[2], "user.anna", 0, "be3", "anna\tl\t");
    serve(2);
    atomic_store(&old->fresh_at_ms, page_now_ms() - 3000);
    sleep_ms(LOOK_MS);
    assert_true(is_local(d, "user.anna", "be3"));
    page_destroy(&old);
    unlink(aside);
}

/* --- What isn't there or can't be used: by socket, without a word ------------------------------------------------------------------------- */

static void nothing_there(void **state)
{
    (void)state;
    char path[160], aside[180];
    snprintf(path, sizeof path, "%s/" PAGE_FILE, data);
    snprintf(aside, sizeof aside, "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_false(is_local(d, "user.anna", "be1"));
    /* It comes: found, though not at once, since looking costs something. */
    assert_int_equal(rename(aside, path), 0);
    uint64_t until = now_ms() + 6000;
    bool found = false;
    unsigned tries = 0;
    for (; !found && now_ms() < until; tries++) {
        found = is_local(d, "user.anna", "be1");
        sleep_ms(5);
    }
    assert_true(found);
    assert_true(tries > 1);
    /* Nobody answers at all: both reasons. */
    raftdir_close(&d);
    assert_int_equal(rename(path, aside), 0);
    fake_stop(&node);
    const struct raftdir_mailbox *m;
    open_with(&d, RAFTDIR_LOCAL, 0, 200);
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(raftdir_message(d), PAGE_FILE));
    assert_int_equal(rename(aside, path), 0);
}

static void never(void **state)
{
    (void)state;
    struct raftdir_options o;
    raftdir_options_init(&o);
    o.endpoints = node.endpoint;
    o.local_dir = "";
    assert_int_equal(setenv("RAFTDIR_LOCAL", data, 1), 0);
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), 0);
    assert_false(is_local(d, "user.anna", "be1"));
    raftdir_close(&d);
    o.local_dir = NULL;
    o.level = RAFTDIR_LOCAL;
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), 0);
    assert_true(is_local(d, "user.anna", "be1"));
    unsetenv("RAFTDIR_LOCAL");
}

static void other_versions(void **state)
{
    (void)state;
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    page->version = PAGE_VERSION + 1;
    assert_false(is_local(d, "user.anna", "be1"));
    raftdir_close(&d);
    page->version = PAGE_VERSION;
    page->magic ^= 1;
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_false(is_local(d, "user.anna", "be1"));
    raftdir_close(&d);
    page->magic ^= 1;
    atomic_store(&page->generation, 3); /* there is no gen-3 */
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_false(is_local(d, "user.anna", "be1"));
    atomic_store(&page->generation, 1);
    sleep_ms(LOOK_MS);
    assert_true(is_local(d, "user.anna", "be1"));
}

/* In a child, which may be somebody else. */
static void in_child(void (*fn)(void))
{
    pid_t pid = fork_quietly();
    if (pid == 0) {
        fn();
        raftdir_close(&d);
        _exit(0);
    }
    child_end(pid);
}

static void as_nobody(void)
{
    if (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
        _exit(8);
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    if (is_local(d, "user.anna", "be1"))
        _exit(7);
}

static void not_permitted(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(chmod(dir, 0711), 0);
    assert_int_equal(chmod(node.path, 0777), 0);
    in_child(as_nobody); /* the page is the owner's */
    char path[160];
    snprintf(path, sizeof path, "%s/" PAGE_FILE, data);
    assert_int_equal(chmod(path, 0644), 0);
    in_child(as_nobody); /* the state is */
    snprintf(path, sizeof path, "%s/data.mdb", gens[1].s.dir);
    assert_int_equal(chmod(gens[1].s.dir, 0755), 0);
    assert_int_equal(chmod(path, 0644), 0);
    in_child(as_nobody); /* its lock file is: without a slot nobody reads */
}

static void with_little_room(void)
{
    char line[200];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmSize: %llu", &kb) == 1)
            break;
    if (f)
        fclose(f);
    struct rlimit l = {(rlim_t)(kb + 24 * 1024) * 1024, RLIM_INFINITY};
    if (!kb || setrlimit(RLIMIT_AS, &l) != 0)
        _exit(8);
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    if (is_local(d, "user.anna", "be1"))
        _exit(7);
}

static void address_space(void **state)
{
    (void)state;
    in_child(with_little_room);
}

static void corrupt_record(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    static const char marked[] = "xyzzymark\tl\t";
    char path[160], buf[1 << 16];
    put(&gens[1], "user.hurt", 0, "be1", marked);
    snprintf(path, sizeof path, "%s/data.mdb", gens[1].s.dir);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    unsigned hurt = 0;
    ssize_t n;
    for (off_t at = 0; (n = pread(fd, buf, sizeof buf, at)) > 0; at += n - (off_t)(n > 64 ? 32 : 0)) {
        char *p = n > 0 ? memmem(buf, (size_t)n, marked, sizeof marked - 1) : NULL;
        if (p) {
            hurt++;
            assert_int_equal(pwrite(fd, "X", 1, at + (p - buf)), 1);
        }
        if (n < (ssize_t)sizeof buf)
            break;
    }
    close(fd);
    assert_true(hurt >= 1);
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_false(is_local(d, "user.hurt", "be1"));
    assert_string_equal(raftdir_message(d), "");
    assert_true(is_local(d, "user.anna", "be1"));
    fake_stop(&node);
    raftdir_set_timeout(d, 200);
    assert_int_equal(raftdir_lookup(d, "user.hurt", &m), RAFTDIR_EUNAVAIL);
    assert_non_null(strstr(raftdir_message(d), "user.hurt"));
}

/* --- Listings ------------------------------------------------------------------------------------------------------------------------- */

static unsigned list_all(raftdir_list *l, char last_r[512])
{
    const struct raftdir_mailbox *m;
    unsigned n = 0;
    int rc;
    last_r[0] = '\0';
    while ((rc = raftdir_list_next(l, &m)) > 0) {
        if (strcmp(m->server, "by-socket") != 0)
            assert_true(!*last_r || strcmp(last_r, m->name) < 0);
        snprintf(last_r, 512, "%s", m->name);
        n++;
    }
    if (rc < 0)
        fail_msg("list: %s", raftdir_message(d));
    return n;
}

static void lists(void **state)
{
    (void)state;
    struct raftdir_filter f;
    struct raftdir_visible v;
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    struct raftdir_answer a;
    char last[512];
    uint64_t touched, skips;
    put(&gens[1], "user.bob", 700, "be2", "bob\tlr\t");
    open_with(&d, 0, 0, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(list_all(l, last), 701);
    assert_string_equal(last, "user.bob.00699");
    assert_int_equal(raftdir_list_next(l, &m), 0);
    raftdir_list_counters(l, &touched, &skips);
    assert_true(touched >= 701);
    raftdir_answer(d, &a);
    assert_int_equal(a.local, 1);
    raftdir_list_close(&l);
    raftdir_filter_init(&f);
    f.pattern = "user.bob.%";
    f.server = "be2";
    f.after = "user.bob.00099";
    f.limit = 300;
    assert_int_equal(raftdir_list_open(d, &f, &l), 0);
    assert_int_equal(list_all(l, last), 300);
    assert_string_equal(last, "user.bob.00399");
    raftdir_list_close(&l);
    raftdir_visible_init(&v);
    v.user = "bob";
    assert_int_equal(raftdir_visible_open(d, &v, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1); /* user.anna, by anyone */
    assert_string_equal(m->name, "user.anna");
    assert_string_equal(m->rights, "l");
    assert_int_equal(raftdir_list_next(l, &m), 1);
    assert_string_equal(m->rights, "lr");
    assert_int_equal(list_all(l, last), 699);
    raftdir_list_close(&l);
    char long_name[NAME_KEY_LEN_MAX + 2];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    raftdir_filter_init(&f);
    f.prefix = long_name;
    assert_int_equal(raftdir_list_open(d, &f, &l), RAFTDIR_ETOOBIG);
    assert_int_equal(asked(), 0);
}

/* The generation changes between two chunks: on in the new one, behind the last row. */
static void list_over_generations(void **state)
{
    (void)state;
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    char last[512];
    put(&gens[1], "user.bob", 400, "be2", "bob\tlr\t");
    gen_make(2);
    put(&gens[2], "user.carl", 200, "be2", "x1\tl\tx2\tl\tx3\tl\tbob\tlr\t"); /* bob's number is another there */
    put(&gens[2], "user.bob", 500, "be3", "bob\tlr\t");
    open_with(&d, 0, 0, 0);
    struct raftdir_visible v;
    raftdir_visible_init(&v);
    v.user = "bob";
    assert_int_equal(raftdir_visible_open(d, &v, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1);
    serve(2);
    assert_int_equal(list_all(l, last), 700); /* user.anna was seen in the old one */
    raftdir_list_close(&l);
    raftdir_close(&d);
    serve(1);
    open_with(&d, 0, 0, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(raftdir_list_next(l, &m), 1);
    serve(2);
    assert_int_equal(list_all(l, last), 601); /* of 701 */
    assert_string_equal(last, "user.carl.00199");
    raftdir_list_close(&l);
    assert_int_equal(asked(), 0);
}

/* The state isn't served any more: on by socket, behind the last row. */
static void list_goes_on_by_socket(void **state)
{
    (void)state;
    raftdir_list *l;
    const struct raftdir_mailbox *m;
    char last[512];
    put(&gens[1], "user.bob", 400, "be2", "bob\tlr\t");
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1);
    atomic_store(&page->serving, 0);
    assert_int_equal(list_all(l, last), 256); /* the rest of the chunk, and the node's row */
    assert_string_equal(last, "user.zz");
    assert_string_equal(seen_after, "user.bob.00254");
    raftdir_list_close(&l);
}

/* --- Processes and threads ------------------------------------------------------------------------------------------------------------------ */

/* In a process of its own: readers of the state, and whether one of them pins anything. */
static void readers(unsigned *others_r, int *oldest_pid_r)
{
    int fds[2];
    struct store_readers r = {0};
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork_quietly();
    if (pid == 0) {
        gens[1].s.store = NULL;
        support_store_reopen(&gens[1].s, 0);
        struct err err = {0};
        if (store_readers_check(gens[1].s.store, &r, &err) != 0 || write(fds[1], &r, sizeof r) != (ssize_t)sizeof r)
            _exit(9);
        store_close(&gens[1].s.store);
        _exit(0);
    }
    child_end(pid);
    assert_int_equal(read(fds[0], &r, sizeof r), sizeof r);
    close(fds[0]);
    close(fds[1]);
    *others_r = r.others;
    *oldest_pid_r = r.oldest_pid;
}

/* Between calls nothing is pinned, not by a listing that stands in the middle either. */
static void pins_nothing(void **state)
{
    (void)state;
    const struct raftdir_mailbox *m;
    raftdir_list *l;
    unsigned others;
    int pid;
    put(&gens[1], "user.bob", 300, "be2", "bob\tlr\t");
    open_with(&d, 0, 0, 0);
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    readers(&others, &pid);
    assert_int_equal(others, 1);
    assert_int_equal(pid, 0);
    assert_int_equal(raftdir_list_open(d, NULL, &l), 0);
    assert_int_equal(raftdir_list_next(l, &m), 1);
    readers(&others, &pid);
    assert_int_equal(others, 1);
    assert_int_equal(pid, 0);
    raftdir_list_close(&l);
    raftdir_close(&d);
    readers(&others, &pid);
    assert_int_equal(others, 0);
}

static void forked(void)
{
    const struct raftdir_mailbox *m;
    raftdir *own = NULL;
    struct raftdir_list *l;
    if (raftdir_lookup(d, "user.anna", &m) != RAFTDIR_EINVAL || !strstr(raftdir_message(d), "fork") || raftdir_list_open(d, NULL, &l) != RAFTDIR_EINVAL)
        _exit(7);
    raftdir_close(&d);
    open_with(&own, RAFTDIR_LOCAL, 0, 0);
    if (!is_local(own, "user.anna", "be1") || mapped(gens[1].s.dir) != 2) /* beside the parent's, which nobody may touch here */
        _exit(6);
    raftdir_close(&own);
    open_with(&own, RAFTDIR_LOCAL, 0, 0);
    if (!is_local(own, "user.anna", "be1"))
        _exit(5);
    raftdir_close(&own);
}

static void forks(void **state)
{
    (void)state;
    unsigned others;
    int pid;
    open_with(&d, RAFTDIR_LOCAL, 0, 0);
    assert_true(is_local(d, "user.anna", "be1"));
    for (int i = 0; i < 3; i++) {
        in_child(forked);
        /* The slot is still ours, and nobody takes us for dead. */
        readers(&others, &pid);
        assert_int_equal(others, 1);
        assert_true(is_local(d, "user.anna", "be1"));
    }
    assert_int_equal(mapped(gens[1].s.dir), 1);
}

static _Atomic bool stop;
static _Atomic unsigned locals, wrong;

static void *looks(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop)) {
        raftdir *h = NULL;
        open_with(&h, RAFTDIR_LOCAL, 0, 0);
        for (int i = 0; i < 50; i++) {
            const struct raftdir_mailbox *m;
            struct raftdir_answer a;
            if (raftdir_lookup(h, "user.anna", &m) != 0) {
                atomic_fetch_add(&wrong, 1);
                continue;
            }
            raftdir_answer(h, &a);
            /* Server and ACL are of one state. */
            bool one = !strcmp(m->server, "be1") && !strncmp(m->acl, "anna\tlrs\t", 9), two = !strcmp(m->server, "be2") && !strcmp(m->acl, "two\tl\t");
            atomic_fetch_add(&locals, a.local != 0);
            if (a.local ? !one && !two : strcmp(m->server, "by-socket") != 0)
                atomic_fetch_add(&wrong, 1);
        }
        raftdir_close(&h);
    }
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    pthread_t t[4];
    gen_make(2);
    put(&gens[2], "user.anna", 0, "be2", "two\tl\t");
    atomic_store(&stop, false);
    atomic_store(&locals, 0);
    atomic_store(&wrong, 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, looks, NULL), 0);
    for (unsigned i = 0; i < 40; i++) {
        serve(1 + i % 2);
        sleep_ms(10);
        assert_true(mapped(gens[1].s.dir) <= 1 && mapped(gens[2].s.dir) <= 1);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(atomic_load(&wrong), 0);
    assert_true(atomic_load(&locals) > 100);
    assert_int_equal(mapped(gens[1].s.dir) + mapped(gens[2].s.dir), 0);
}

/* --- In an event loop --------------------------------------------------------------------------------------------------------------------------- */

static int told_code, told_n;
static char told[64];

static void tell(void *unused, int code, const char *message, const struct raftdir_mailbox *m)
{
    (void)unused;
    told_n++;
    told_code = code;
    snprintf(told, sizeof told, "%s", m ? m->server : message);
}

static void event_loop(void **state)
{
    (void)state;
    open_with(&d, 0, 0, 0);
    struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
    assert_true(p.fd >= 0);
    told_n = 0;
    assert_int_equal(raftdir_lookup_start(d, "user.anna", tell, NULL), 0);
    assert_int_equal(told_n, 0); /* never from within */
    assert_int_equal(poll(&p, 1, 1000), 1);
    assert_int_equal(raftdir_process(d), 0);
    assert_int_equal(told_n, 1);
    assert_int_equal(told_code, 0);
    assert_string_equal(told, "be1");
    assert_int_equal(raftdir_lookup_user_start(d, "nobody", tell, NULL), 0);
    assert_int_equal(poll(&p, 1, 1000), 1);
    assert_int_equal(raftdir_process(d), 0);
    assert_int_equal(told_n, 2);
    assert_int_equal(told_code, RAFTDIR_ENOTFOUND);
    assert_int_equal(asked(), 0);
}

/* --- Ages over the wire: others are asked, until the deadline -------------------------------------------------------------------------------------- */

static unsigned stale_left;
static int second_code;

static void stale_first(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == F(LOOKUP) && stale_left) {
        stale_left--;
        fake_code(f, conn, m->request_id, RAFTDIR_ESTALE, "too old");
    } else if (m->body_case == F(LOOKUP) && second_code)
        fake_code(f, conn, m->request_id, second_code, NULL);
    else if (m->body_case == F(LOOKUP))
        fake_row(f, conn, m->request_id, m->lookup->name, "second", 50);
}

static void stale_nodes(void **state)
{
    (void)state;
    struct raftdir_options o;
    const struct raftdir_mailbox *m;
    char list[300];
    fake_start(&second, dir, "second", stale_first, NULL);
    raftdir_options_init(&o);
    snprintf(list, sizeof list, "%s,%s", node.endpoint, second.endpoint);
    o.endpoints = list;
    o.max_age_ms = 500;
    o.timeout_ms = 1000;
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), 0);
    second_code = 0;
    /* One is too old: the other. */
    node_code = RAFTDIR_ESTALE;
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    /* Both: until one isn't any more. */
    stale_left = 3;
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), 0);
    assert_int_equal(stale_left, 0);
    /* Never. Another's reason doesn't hide it. */
    stale_left = 2;
    node_code = second_code = RAFTDIR_ENOQUORUM;
    uint64_t started = now_ms();
    assert_int_equal(raftdir_lookup(d, "user.anna", &m), RAFTDIR_ESTALE);
    assert_true(now_ms() - started < 2000);
    assert_non_null(strstr(raftdir_message(d), "too old"));
    raftdir_close(&d);
    fake_stop(&second);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(lookups), T(levels), T(session), T(max_age), T(absent), T(not_serving), T(next_generation), T(reset_node), T(new_page), T(nothing_there), T(never),
        T(other_versions), T(not_permitted), T(address_space), T(corrupt_record), T(lists), T(list_over_generations), T(list_goes_on_by_socket), T(pins_nothing),
        T(forks), T(threads), T(event_loop), T(stale_nodes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
