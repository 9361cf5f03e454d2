/* wake.c - see wake.h: an eventfd.
 *
 * No wake is lost: a sender does its work, then sets `pending`; the loop clears it, then looks for work. */
#include "wake.h"
#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct wake *w = poll->data;
    uint64_t n;
    (void)status;
    (void)events;
    if (read(w->fd, &n, sizeof n) != sizeof n && errno == EAGAIN)
        return;
    atomic_store(&w->pending, false);
    w->on_wake(w);
}

int wake_init(struct wake *w, uv_loop_t *loop, void (*on_wake)(struct wake *w), void *data)
{
    w->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (w->fd < 0)
        return -errno;
    atomic_store(&w->pending, false);
    w->on_wake = on_wake;
    w->data = data;
    int rc = uv_poll_init(loop, &w->poll, w->fd);
    w->poll.data = w;
    if (rc == 0 && (rc = uv_poll_start(&w->poll, UV_READABLE, on_poll)) != 0)
        uv_close((uv_handle_t *)&w->poll, NULL); /* the loop isn't run before the caller has given up */
    if (rc != 0) {
        close(w->fd);
        w->fd = -1;
    }
    return rc;
}

void wake_send(struct wake *w)
{
    static const uint64_t one = 1;
    if (atomic_exchange(&w->pending, true))
        return;
    while (write(w->fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

void wake_destroy(struct wake *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}
