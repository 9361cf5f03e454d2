/* test_inbox.c - messages between threads: each once, in the order of pushing of each sender, and none lost at the close. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "raftdir/inbox.h"

#define SENDERS 3
#define MESSAGES 20000

struct message {
    struct inbox_msg link;
    unsigned sender, number;
};
struct sender {
    struct inbox *inbox;
    unsigned id, taken;
};

static unsigned next_number[SENDERS], received, closed;

static void on_messages(struct inbox *inbox, struct inbox_msg *list)
{
    (void)inbox;
    while (list) {
        struct message *m = (struct message *)list;
        list = list->next;
        assert_int_equal(m->number, next_number[m->sender]);
        next_number[m->sender]++;
        received++;
        free(m);
    }
}

static void on_closed(struct inbox *inbox)
{
    (void)inbox;
    closed++;
}

static void send_all(void *arg)
{
    struct sender *s = arg;
    for (unsigned i = 0; i < MESSAGES; i++) {
        struct message *m = calloc(1, sizeof *m);
        if (!m)
            abort();
        m->sender = s->id;
        m->number = i;
        if (!inbox_push(s->inbox, &m->link)) {
            free(m);
            return;
        }
        s->taken++;
    }
}

static void run_with(unsigned close_after)
{
    uv_loop_t loop;
    struct inbox inbox;
    uv_thread_t threads[SENDERS];
    struct sender senders[SENDERS];
    memset(next_number, 0, sizeof next_number);
    received = closed = 0;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(inbox_init(&inbox, &loop, on_messages, NULL), 0);
    for (unsigned i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){&inbox, i, 0};
        assert_int_equal(uv_thread_create(&threads[i], send_all, &senders[i]), 0);
    }
    while (received < close_after)
        uv_run(&loop, UV_RUN_ONCE);
    inbox_close(&inbox, on_closed);
    inbox_close(&inbox, on_closed); /* once is enough */
    for (unsigned i = 0; i < SENDERS; i++)
        uv_thread_join(&threads[i]);
    assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(closed, 1);
    unsigned taken = 0;
    for (unsigned i = 0; i < SENDERS; i++)
        taken += senders[i].taken;
    assert_int_equal(received, taken); /* what a push took, arrives */
    struct message late;
    assert_false(inbox_push(&inbox, &late.link));
    assert_int_equal(uv_loop_close(&loop), 0);
    inbox_destroy(&inbox);
}

static void test_each_once_in_order(void **state)
{
    (void)state;
    run_with(SENDERS * MESSAGES);
    assert_int_equal(received, SENDERS * MESSAGES);
}

static void test_close_while_sending(void **state)
{
    (void)state;
    run_with(1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_once_in_order), cmocka_unit_test(test_close_while_sending)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
