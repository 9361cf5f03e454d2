/* wake.h - makes a thread's libuv loop call a function, from any thread; several wakes before the call are one.
 *
 * In place of uv_async_t: up to libuv 1.44 (Debian 12) a loop that wakes up spins until the sender has come back from its write to the descriptor, and a sender on the same processor,
 * which the loop has just displaced, comes back only when the loop has spun for a while (50 us) and yielded. With a thread of low priority it is worse. */
#ifndef RAFTDIR_WAKE_H
#define RAFTDIR_WAKE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <uv.h>

struct wake {
    uv_poll_t poll; /* a handle of the loop: uv_close it (poll.data is the wake's) */
    int fd;
    _Atomic bool pending;
    void (*on_wake)(struct wake *w);
    void *data;
};
/* 0 or a libuv code. */
int wake_init(struct wake *w, uv_loop_t *loop, void (*on_wake)(struct wake *w), void *data);
void wake_send(struct wake *w); /* until wake_destroy; after uv_close nobody is called any more */
void wake_destroy(struct wake *w); /* when the handle is closed and no thread sends any more */

#endif
