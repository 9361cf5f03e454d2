/* peers_image.c - accepted connections that are to carry an image (DESIGN D9): the Hello is checked as any other, answered, and the connection taken away
 * from the loop and handed over (peers_options.on_image), since bulk data has no place on the consensus thread.
 *
 * Happy path: all in one turn. Our Hello not yet taken by the socket, or no descriptor left: tried again every HAND_OVER_RETRY_MS; bytes that the other end sent
 * without waiting for our Hello: never possible. Either way it is closed when HANDSHAKE_TIMEOUT_MS have passed. */
#include <inttypes.h>
#include "peers_internal.h"

#define HAND_OVER_RETRY_MS 10

void peers_image_go_on(struct peer_link *l)
{
    struct peers *p = l->p;
    Raftdir__Peer__Frame *hello = l->image;
    uint64_t from = hello->from, now = peers_now(p);
    if (!peers_find(p, from)) {
        peers_link_refuse(l, RAFTDIR_EPERM, "no longer a member");
        return;
    }
    int fd;
    SSL *ssl;
    if (conn_detach(l->c, &fd, &ssl)) {
        if (now >= l->image_until_ms) {
            peers_log(p, peers_find(p, from), NULL, CAUSE_IMAGE, LOGGER_WARN,
                      "member %" PRIu64 " (%s) asks for an image, but its connection can't be handed over: it doesn't take our Hello, or doesn't wait for it",
                      from, conn_peer_text(l->c));
            peers_link_refuse(l, RAFTDIR_ETIMEDOUT, "not handed over");
            return;
        }
        l->deadline_ms = now + HAND_OVER_RETRY_MS;
        peers_schedule(p);
        return;
    }
    l->image = NULL;
    peers_link_part(l);
    p->o.on_image(p->o.data, from, fd, ssl, hello->hello->image);
    raftdir__peer__frame__free_unpacked(hello, NULL);
}

void peers_image_begin(struct peer_link *l, struct peer_member *m, Raftdir__Peer__Frame *hello)
{
    struct peers *p = l->p;
    l->image = hello;
    if (!p->o.on_image) {
        peers_log(p, m, NULL, CAUSE_IMAGE, LOGGER_INFO, "member %" PRIu64 " (%s) asks for an image, which this node doesn't send", m->who.id, conn_peer_text(l->c));
        peers_link_refuse(l, RAFTDIR_EUNSUPPORTED, "no images here");
        return;
    }
    int rc = peers_hello_send(p, l->c, m->who.id, false);
    if (rc) {
        peers_link_refuse(l, rc, "hello could not be sent");
        return;
    }
    conn_pause(l->c, true);
    l->image_until_ms = peers_now(p) + HANDSHAKE_TIMEOUT_MS;
    peers_image_go_on(l);
}
