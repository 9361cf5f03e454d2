/* inbox.c - see inbox.h. */
#include "inbox.h"
#include <stddef.h>

static struct inbox_msg *take_all(struct inbox *inbox)
{
    uv_mutex_lock(&inbox->mutex);
    struct inbox_msg *list = inbox->head;
    inbox->head = NULL;
    inbox->tail = &inbox->head;
    uv_mutex_unlock(&inbox->mutex);
    return list;
}

static void deliver(struct inbox *inbox)
{
    struct inbox_msg *list = take_all(inbox);
    if (list)
        inbox->on_messages(inbox, list);
}

static void on_wake(struct wake *w)
{
    deliver(w->data);
}

int inbox_init(struct inbox *inbox, uv_loop_t *loop, void (*on_messages)(struct inbox *, struct inbox_msg *), void *data)
{
    int rc = uv_mutex_init(&inbox->mutex);
    if (rc != 0)
        return rc;
    rc = wake_init(&inbox->wake, loop, on_wake, inbox);
    if (rc != 0) {
        uv_mutex_destroy(&inbox->mutex);
        return rc;
    }
    inbox->head = NULL;
    inbox->tail = &inbox->head;
    inbox->closed = false;
    inbox->on_messages = on_messages;
    inbox->on_closed = NULL;
    inbox->data = data;
    return 0;
}

bool inbox_push(struct inbox *inbox, struct inbox_msg *msg)
{
    uv_mutex_lock(&inbox->mutex);
    bool open = !inbox->closed, first = open && !inbox->head;
    if (open) {
        msg->next = NULL;
        *inbox->tail = msg;
        inbox->tail = &msg->next;
    }
    uv_mutex_unlock(&inbox->mutex);
    if (first)
        wake_send(&inbox->wake); /* without the mutex, which the loop wants at once */
    return open;
}

static void on_wake_closed(uv_handle_t *handle)
{
    struct inbox *inbox = ((struct wake *)handle->data)->data;
    if (inbox->on_closed)
        inbox->on_closed(inbox);
}

void inbox_close(struct inbox *inbox, void (*on_closed)(struct inbox *))
{
    uv_mutex_lock(&inbox->mutex);
    bool was_closed = inbox->closed;
    inbox->closed = true;
    uv_mutex_unlock(&inbox->mutex);
    if (was_closed)
        return;
    inbox->on_closed = on_closed;
    deliver(inbox);
    uv_close((uv_handle_t *)&inbox->wake.poll, on_wake_closed);
}

void inbox_destroy(struct inbox *inbox)
{
    wake_destroy(&inbox->wake);
    uv_mutex_destroy(&inbox->mutex);
}
