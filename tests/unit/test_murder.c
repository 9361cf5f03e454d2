/* test_murder.c - the settings file of a Cyrus server, locations, the process's handle. What the verbs do is tried against Cyrus itself (tests/interop/preload). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "client/murder_internal.h"
#include "support_certs.h"
#include "support_fake_node.h"

static char path[] = "/tmp/raftdir-test-murder.XXXXXX";

static void settings_file(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(setenv("RAFTDIR_CYRUS_CONF", path, 1), 0);
}

static void settings_read(void **state)
{
    (void)state;
    struct murder_settings s;
    char text[MURDER_TEXT_LEN];
    settings_file("# comment\nendpoints = \"unix:/a,tls:b:1\"\nca = \"/ca\"\ncert=\"/cert\"\nkey=\"/key\"\nsite=\"here\"\nlocal_dir=\"\"\n"
                  "write_timeout_ms = 7000\nlookup_timeout_ms = 100\nunreachable_ms = 600000\nlookups = \"imapd\"\n");
    assert_int_equal(murder_settings_load(&s, text), MURDER_OK);
    assert_string_equal(s.endpoints, "unix:/a,tls:b:1");
    assert_string_equal(s.ca, "/ca");
    assert_string_equal(s.cert, "/cert");
    assert_string_equal(s.key, "/key");
    assert_string_equal(s.site, "here");
    assert_null(s.local_dir); /* "" is "not given" */
    assert_string_equal(s.lookups, "imapd");
    assert_int_equal(s.write_timeout_ms, 7000);
    assert_int_equal(s.lookup_timeout_ms, 100);
    assert_int_equal(s.unreachable_ms, 600000);
    murder_settings_free(&s);
    settings_file("");
    assert_int_equal(murder_settings_load(&s, text), MURDER_OK);
    assert_null(s.endpoints);
    assert_string_equal(s.lookups, "auto");
    assert_int_equal(s.write_timeout_ms, 10000);
    assert_int_equal(s.lookup_timeout_ms, 4000);
    assert_int_equal(s.unreachable_ms, 3000);
    murder_settings_free(&s);
}

static void settings_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"endpoint = \"unix:/a\"\n", ":1: "},
        {"ca = \"/ca\"\nendpoints = \"unix:/a\n", ":"},
        {"\n\nwrite_timeout_ms = soon\n", ":3: "},
        {"write_timeout_ms = 99\n", "write_timeout_ms has to be between 100 and 600000"},
        {"lookup_timeout_ms = 600001\n", "lookup_timeout_ms has to be between"},
        {"unreachable_ms = -1\n", "unreachable_ms has to be between"},
    };
    struct murder_settings s;
    char text[MURDER_TEXT_LEN];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        settings_file(rows[i].text);
        assert_int_equal(murder_settings_load(&s, text), MURDER_REFUSED);
        assert_non_null(strstr(text, path));
        assert_non_null(strstr(text, rows[i].says));
        murder_settings_free(&s);
    }
    assert_int_equal(setenv("RAFTDIR_CYRUS_CONF", "/nowhere/at/all", 1), 0);
    assert_int_equal(murder_settings_load(&s, text), MURDER_REFUSED);
    assert_non_null(strstr(text, "/nowhere/at/all: No such file"));
    murder_settings_free(&s);
}

static void locations(void **state)
{
    (void)state;
    struct murder_location l;
    assert_true(murder_location_parse("be1!p1", &l));
    assert_string_equal(l.server, "be1");
    assert_string_equal(l.partition, "p1");
    assert_true(murder_location_parse("be1!", &l));
    assert_string_equal(l.partition, "");
    assert_true(murder_location_parse("be1", &l));
    assert_string_equal(l.server, "be1");
    assert_string_equal(l.partition, "");
    assert_false(murder_location_parse("", &l));
    assert_false(murder_location_parse("!p1", &l));
    assert_false(murder_location_parse("be1!p1!p2", &l));
    char text[1024];
    memset(text, 'x', sizeof text);
    text[sizeof l.server - 1] = 0;
    assert_true(murder_location_parse(text, &l));
    text[sizeof l.server - 1] = 'x';
    text[sizeof l.server] = 0;
    assert_false(murder_location_parse(text, &l));
    text[1] = '!';
    text[2 + sizeof l.partition - 1] = 0;
    assert_true(murder_location_parse(text, &l));
    text[2 + sizeof l.partition - 1] = 'x';
    text[2 + sizeof l.partition] = 0;
    assert_false(murder_location_parse(text, &l));
}

/* A directory that can't be reached can't tell: nothing is absent, nothing is refused. */
static void unsure(void)
{
    const struct raftdir_mailbox *m;
    struct murder_session s = {0};
    int stopped;
    assert_int_equal(murder_find("user.x", &m), MURDER_UNSURE);
    assert_null(m);
    assert_int_equal(murder_barrier(), MURDER_UNSURE);
    assert_int_equal(murder_reserve(&s, "user.x", "be1!p1"), MURDER_UNSURE);
    assert_int_equal(murder_activate(&s, "user.x", "be1!p1", "x\tlr\t"), MURDER_UNSURE);
    assert_int_equal(murder_deactivate(&s, "user.x", "be1!p1"), MURDER_UNSURE);
    assert_int_equal(murder_delete(&s, "user.x", "be1"), MURDER_UNSURE);
    assert_int_equal(murder_list("be1!", NULL, NULL, &stopped), MURDER_UNSURE);
    assert_true(murder_message()[0] != 0);
    murder_session_end(&s);
}

static void unreachable(void **state)
{
    (void)state;
    settings_file("endpoints = \"unix:/nowhere/raftdird.sock\"\nlocal_dir = \"/nowhere\"\nlookup_timeout_ms = 200\nwrite_timeout_ms = 200\nunreachable_ms = 100\n");
    unsure();
    murder_close();
    settings_file("endpoints = \"what:ever\"\n");
    unsure();
    assert_non_null(strstr(murder_message(), "what:ever"));
    murder_close();
    settings_file("endpoints = nothing at all\n");
    unsure();
    assert_non_null(strstr(murder_message(), path));
    murder_close();
}

static void forks(void **state)
{
    (void)state;
    settings_file("endpoints = \"unix:/nowhere/raftdird.sock\"\nlookup_timeout_ms = 200\nunreachable_ms = 100\n");
    raftdir *parent = murder_handle(1000);
    assert_non_null(parent);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        /* A handle of the parent's would say EINVAL, which would be a refusal. */
        const struct raftdir_mailbox *m;
        _exit(murder_handle(1000) && murder_find("user.x", &m) == MURDER_UNSURE ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_ptr_equal(murder_handle(1000), parent);
    murder_close();
}

/* A directory with one mailbox. What it does with a DELETE is the test's: its result gets lost. */
static struct {
    bool there, does_it;
    unsigned deletes, creates;
} world;

static void answer(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP) {
        if (world.there)
            fake_row(f, conn, m->request_id, m->lookup->name, "be1", 60);
        else
            fake_code(f, conn, m->request_id, RAFTDIR_ENOTFOUND, "no mailbox");
    } else if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_WRITE && m->write->ops[0]->op_case == RAFTDIR__LOG__OP__OP_DELETE) {
        if (++world.deletes == 1 && world.does_it)
            world.there = false;
        if (world.deletes == 1)
            fake_close(f, conn); /* the result is lost, and the next node knows us as somebody else */
        else
            fake_write_result(f, conn, m, RAFTDIR_EPERM, 61, "the operation id is somebody else's");
    } else if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_WRITE && m->write->ops[0]->op_case == RAFTDIR__LOG__OP__OP_CREATE) {
        world.creates++;
        fake_write_result(f, conn, m, world.there ? RAFTDIR_EEXIST : 0, 62, world.there ? "active" : NULL);
        world.there = true;
    }
}

/* A DELETE that nobody knows the outcome of. Cyrus keeps the mailbox, as after any that failed: so it has to be in the directory, or mail for it bounces. */
static void uncertain_delete(void **state)
{
    (void)state;
    char dir[80], text[300];
    struct fake node = {0};
    support_dir_make(dir, sizeof dir, "murder");
    for (int does_it = 0; does_it < 2; does_it++) {
        struct murder_session s = {NULL};
        memset(&world, 0, sizeof world);
        world.there = true;
        world.does_it = does_it;
        memset(&node, 0, sizeof node);
        fake_start(&node, dir, "one", answer, NULL);
        snprintf(text, sizeof text, "endpoints = \"%s\"\nlocal_dir = \"/nowhere\"\n", node.endpoint);
        settings_file(text);
        assert_int_equal(murder_delete(&s, "user.x", "be1"), MURDER_UNSURE);
        assert_non_null(strstr(murder_message(), "another identity"));
        assert_null(s.deleted);
        murder_close();
        fake_stop(&node);
        assert_int_equal(world.deletes, 2);
        assert_int_equal(world.creates, 1);
        assert_true(world.there);
    }
    support_dir_remove(dir);
}

/* A directory that deletes "user.x", and refuses to activate anything. */
static void answer_refusing(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP) {
        fake_row(f, conn, m->request_id, m->lookup->name, strcmp(m->lookup->name, "user.x") == 0 ? "be1" : "be2", 60);
    } else if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_WRITE) {
        int op = (int)m->write->ops[0]->op_case;
        world.deletes += op == RAFTDIR__LOG__OP__OP_DELETE;
        world.creates += op == RAFTDIR__LOG__OP__OP_CREATE;
        fake_write_result(f, conn, m, op == RAFTDIR__LOG__OP__OP_ACTIVATE ? RAFTDIR_EOTHERSTORE : 0, 61, "");
    }
}

/* A rename that is refused puts back what was deleted for it. ctl_mboxlist -m deletes one mailbox and activates another, without a RESERVE: what it has deleted stays so. */
static void what_a_refusal_puts_back(void **state)
{
    (void)state;
    char dir[80], text[300];
    struct fake node = {0};
    support_dir_make(dir, sizeof dir, "murder");
    fake_start(&node, dir, "one", answer_refusing, NULL);
    snprintf(text, sizeof text, "endpoints = \"%s\"\nlocal_dir = \"/nowhere\"\n", node.endpoint);
    settings_file(text);
    for (int renames = 0; renames < 2; renames++) {
        struct murder_session s = {0};
        memset(&world, 0, sizeof world);
        assert_int_equal(murder_delete(&s, "user.x", "be1"), MURDER_OK);
        if (renames)
            assert_int_equal(murder_reserve(&s, "user.y", "be1!"), MURDER_OK);
        assert_int_equal(murder_activate(&s, "user.y", "be1!default", ""), MURDER_REFUSED);
        assert_int_equal(world.deletes, 1);
        assert_int_equal(world.creates, renames);
        assert_null(s.deleted);
        murder_session_end(&s);
    }
    murder_close();
    fake_stop(&node);
    support_dir_remove(dir);
}

static int setup(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}
static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_read), cmocka_unit_test(settings_wrong), cmocka_unit_test(locations), cmocka_unit_test(unreachable), cmocka_unit_test(forks),
        cmocka_unit_test(uncertain_delete), cmocka_unit_test(what_a_refusal_puts_back),
    };
    return cmocka_run_group_tests_name("murder", tests, setup, teardown);
}
