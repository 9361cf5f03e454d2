/* inbox.h - messages into a thread that runs a libuv loop. Any thread pushes; the loop's thread gets them in the order of pushing, as one list a wake-up.
 *
 * Messages are embedded by the sender, given on a push that returns true, and the receiver's from then on. */
#ifndef RAFTDIR_INBOX_H
#define RAFTDIR_INBOX_H
#include <stdbool.h>
#include <uv.h>
#include "wake.h"

struct inbox_msg {
    struct inbox_msg *next;
};
struct inbox {
    uv_mutex_t mutex;
    struct wake wake;
    struct inbox_msg *head, **tail;
    bool closed;
    void (*on_messages)(struct inbox *inbox, struct inbox_msg *list);
    void (*on_closed)(struct inbox *inbox);
    void *data;
};

/* 0 or a libuv code. */
int inbox_init(struct inbox *inbox, uv_loop_t *loop, void (*on_messages)(struct inbox *, struct inbox_msg *), void *data);
/* false: closed, the message stays the caller's. */
bool inbox_push(struct inbox *inbox, struct inbox_msg *msg);
/* On the loop's thread. What was pushed before is handed over first, within this call; on_closed (NULL allowed) comes from the loop. */
void inbox_close(struct inbox *inbox, void (*on_closed)(struct inbox *));
/* When no other thread can push any more and the loop is closed. */
void inbox_destroy(struct inbox *inbox);

#endif
