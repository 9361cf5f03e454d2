/* test_lib_sizes.c - structs of programs that are older or newer than the library: what they have counts, what they don't is not given, and what we don't know
 * is refused when it is used. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "include/raftdir.h"
#include "support_certs.h"
#include "support_fake_node.h"

#define F(name) RAFTDIR__CLIENT__TO_NODE__BODY_##name

static char dir[80];
static struct fake node;
static struct {
    char server[32], acl[32], prefix[32], user[32], pattern[32];
    bool has_acl, has_pattern;
} got;

static void copy(char *to, const char *from)
{
    snprintf(to, 32, "%s", from ? from : "");
}

static void keep(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    Raftdir__Client__FromNode end = RAFTDIR__CLIENT__FROM_NODE__INIT;
    memset(&got, 0, sizeof got);
    if (m->body_case == F(WRITE)) {
        const Raftdir__Log__Op *op = m->write->ops[0];
        const Raftdir__Log__Mailbox *b = op->op_case == RAFTDIR__LOG__OP__OP_CREATE     ? op->create->mailbox
                                         : op->op_case == RAFTDIR__LOG__OP__OP_PUT      ? op->put->mailbox
                                         : op->op_case == RAFTDIR__LOG__OP__OP_UPDATE   ? op->update->mailbox
                                                                                        : op->activate->mailbox;
        copy(got.server, b->location ? b->location->server : NULL);
        copy(got.acl, b->acl);
        got.has_acl = b->acl != NULL;
        fake_write_result(f, conn, m, 0, 50, NULL);
    } else if (m->body_case == F(LIST)) {
        copy(got.prefix, m->list->prefix);
        copy(got.pattern, m->list->pattern);
        got.has_pattern = m->list->pattern != NULL;
        fake_answer(f, conn, m->request_id, &end);
    } else if (m->body_case == F(VISIBLE)) {
        copy(got.user, m->visible->user);
        got.has_pattern = m->visible->pattern != NULL;
        fake_answer(f, conn, m->request_id, &end);
    }
}

static int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "sizes");
    fake_start(&node, dir, "one", keep, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake_stop(&node);
    support_dir_remove(dir);
    return 0;
}

/* `s`, cut off behind `size` bytes or with zeros behind it, in memory that ends there: reading beyond is seen by the sanitizer. */
static void *sized(const void *s, size_t own, size_t size)
{
    char *p = calloc(1, size);
    assert_non_null(p);
    memcpy(p, s, own < size ? own : size);
    memcpy(p, &size, sizeof size);
    return p;
}

static raftdir *open_default(void)
{
    struct raftdir_options o;
    raftdir *d;
    raftdir_options_init(&o);
    o.endpoints = node.endpoint;
    o.local_dir = "";
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), 0);
    return d;
}

static void options(void **state)
{
    (void)state;
    struct raftdir_options o;
    char text[256];
    raftdir *d;
    raftdir_options_init(&o);
    o.endpoints = node.endpoint;
    o.window = 5000; /* out of range, when it is there */
    for (size_t size = 0; size < sizeof o + 64; size += 8) {
        void *cut = sized(&o, sizeof o, size < sizeof size ? sizeof size : size);
        memcpy(cut, &size, sizeof size);
        int rc = raftdir_open(cut, &d, text, sizeof text);
        bool has_window = size >= offsetof(struct raftdir_options, window) + sizeof o.window;
        assert_int_equal(rc, size < sizeof(size_t) || has_window ? RAFTDIR_EINVAL : 0);
        raftdir_close(&d);
        free(cut);
    }
    /* A newer program's, which uses what we don't know. */
    o.window = 0;
    char *more = sized(&o, sizeof o, sizeof o + 64);
    assert_int_equal(raftdir_open((void *)more, &d, NULL, 0), 0);
    raftdir_close(&d);
    more[sizeof o + 63] = 1;
    assert_int_equal(raftdir_open((void *)more, &d, text, sizeof text), RAFTDIR_EINVAL);
    assert_non_null(strstr(text, "version"));
    free(more);
    /* Not begun at all. */
    memset(&o, 0xa5, sizeof o);
    assert_int_equal(raftdir_open(&o, &d, NULL, 0), RAFTDIR_EINVAL);
}

static void mailboxes(void **state)
{
    (void)state;
    struct raftdir_mailbox m;
    raftdir *d = open_default();
    raftdir_mailbox_init(&m);
    m.name = "user.a";
    m.server = "be1";
    m.acl = "a\tl\t";
    for (size_t size = sizeof(size_t); size < sizeof m + 64; size += 8) {
        struct raftdir_mailbox *cut = sized(&m, sizeof m, size);
        bool has_name = size >= offsetof(struct raftdir_mailbox, server), has_server = size >= offsetof(struct raftdir_mailbox, partition);
        bool has_acl = size >= offsetof(struct raftdir_mailbox, mbtype);
        int wanted = has_name && has_server ? 0 : RAFTDIR_EINVAL;
        int (*const writes[])(raftdir *, const struct raftdir_mailbox *, const struct raftdir_result **) = {raftdir_create, raftdir_put, raftdir_update};
        for (int i = 0; i < 4; i++) {
            int rc = i < 3 ? writes[i](d, cut, NULL) : raftdir_activate(d, cut, NULL, 0, 0, NULL);
            assert_int_equal(rc, i == 2 ? (has_name ? 0 : RAFTDIR_EINVAL) : wanted);
            if (rc == 0) {
                assert_int_equal(got.has_acl, has_acl);
                assert_string_equal(got.acl, has_acl ? m.acl : "");
                assert_string_equal(got.server, i == 2 ? "" : "be1");
            }
        }
        struct raftdir_mailbox *twin = raftdir_mailbox_copy(cut);
        assert_non_null(twin);
        assert_int_equal(twin->size, sizeof m);
        if (has_acl)
            assert_string_equal(twin->acl, m.acl);
        else
            assert_null(twin->acl);
        raftdir_mailbox_free(twin);
        free(cut);
    }
    m.size = 0;
    assert_int_equal(raftdir_create(d, &m, NULL), RAFTDIR_EINVAL);
    assert_null(raftdir_mailbox_copy(&m));
    raftdir_close(&d);
}

static void filters(void **state)
{
    (void)state;
    struct raftdir_filter f;
    struct raftdir_visible v;
    struct raftdir_watch_filter w;
    const struct raftdir_mailbox *m;
    raftdir_list *l;
    raftdir_watch *watch;
    raftdir *d = open_default();
    raftdir_filter_init(&f);
    f.prefix = "user.";
    f.pattern = "*";
    raftdir_visible_init(&v);
    v.user = "anna";
    v.pattern = "%";
    raftdir_watch_filter_init(&w);
    for (size_t size = sizeof(size_t); size < sizeof v + 32; size += 8) {
        struct raftdir_filter *list = sized(&f, sizeof f, size);
        assert_int_equal(raftdir_list_open(d, list, &l), 0);
        assert_int_equal(raftdir_list_next(l, &m), 0);
        raftdir_list_close(&l);
        assert_string_equal(got.prefix, size >= offsetof(struct raftdir_filter, pattern) ? "user." : "");
        assert_int_equal(got.has_pattern, size >= offsetof(struct raftdir_filter, server));
        free(list);
        struct raftdir_visible *who = sized(&v, sizeof v, size);
        bool has_user = size >= offsetof(struct raftdir_visible, groups);
        assert_int_equal(raftdir_visible_open(d, who, &l), has_user ? 0 : RAFTDIR_EINVAL);
        if (has_user) {
            assert_int_equal(raftdir_list_next(l, &m), 0);
            raftdir_list_close(&l);
            assert_string_equal(got.user, "anna");
            assert_int_equal(got.has_pattern, size >= offsetof(struct raftdir_visible, after));
        }
        free(who);
        struct raftdir_watch_filter *events = sized(&w, sizeof w, size);
        assert_int_equal(raftdir_watch_open(d, events, NULL, &watch), 0);
        raftdir_watch_close(&watch);
        free(events);
    }
    f.size = v.size = w.size = 0;
    assert_int_equal(raftdir_list_open(d, &f, &l), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_visible_open(d, &v, &l), RAFTDIR_EINVAL);
    assert_int_equal(raftdir_watch_open(d, &w, NULL, &watch), RAFTDIR_EINVAL);
    raftdir_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(options, setup, teardown),
        cmocka_unit_test_setup_teardown(mailboxes, setup, teardown),
        cmocka_unit_test_setup_teardown(filters, setup, teardown),
    };
    return cmocka_run_group_tests_name("lib_sizes", tests, NULL, NULL);
}
