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

static void on_async(uv_async_t *async)
{
    deliver(async->data);
}

int inbox_init(struct inbox *inbox, uv_loop_t *loop, void (*on_messages)(struct inbox *, struct inbox_msg *), void *data)
{
    int rc = uv_mutex_init(&inbox->mutex);
    if (rc != 0)
        return rc;
    rc = uv_async_init(loop, &inbox->async, on_async);
    if (rc != 0) {
        uv_mutex_destroy(&inbox->mutex);
        return rc;
    }
    inbox->async.data = inbox;
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
    bool open = !inbox->closed;
    if (open) {
        bool first = !inbox->head;
        msg->next = NULL;
        *inbox->tail = msg;
        inbox->tail = &msg->next;
        if (first)
            uv_async_send(&inbox->async); /* under the mutex: the handle can't be closed meanwhile */
    }
    uv_mutex_unlock(&inbox->mutex);
    return open;
}

static void on_async_closed(uv_handle_t *handle)
{
    struct inbox *inbox = handle->data;
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
    uv_close((uv_handle_t *)&inbox->async, on_async_closed);
}

void inbox_destroy(struct inbox *inbox)
{
    uv_mutex_destroy(&inbox->mutex);
}
