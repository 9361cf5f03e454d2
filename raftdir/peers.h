/* peers.h - connections to the other members over mutual TLS: who may speak to the consensus code, and how frames travel (proto/peer.proto).
 *
 * Each node sends on connections that it opened itself and receives on those that it accepted; a connection starts with Hello both ways. A frame reaches on_frame only if
 * cluster id and incarnation are ours, `to` is us, and (from, certificate name, data directory UUID) is a member by the newest list given.
 * A second connection of the same member replaces the first; what was queued on a lost connection is dropped (raft sends again). Reconnects with back-off,
 * at once when a member's address changes. All calls on the loop's thread. No callback is made from within peers_members, peers_send and
 * peers_stop; all of these may be called from within a callback. */
#ifndef RAFTDIR_PEERS_H
#define RAFTDIR_PEERS_H
#include <openssl/ssl.h>
#include <uv.h>
#include "err.h"
#include "image.pb-c.h"
#include "node.h"

struct peers;
struct peers_options {
    uv_loop_t *loop;
    SSL_CTX *tls;
    const char *listen_host, *listen_port;
    uint64_t self_id, cluster_id, incarnation;
    uint8_t uuid[NODE_UUID_LEN];
    const char *client_endpoint, *site; /* told to the others in Hello; NULL or "": none */
    void *data;
    void (*on_frame)(void *data, uint64_t from, const uint8_t *frame, size_t len); /* borrowed */
    void (*on_endpoint)(void *data, uint64_t id, const char *client_endpoint, const char *site); /* from a member's Hello; "": none; borrowed; NULL allowed */
    /* A node that was removed can't learn it from the log: nobody sends it that any more. So a member that refuses its Hello says it. */
    bool (*removed)(void *data, uint64_t id); /* was `id` a member once, and is none any more? NULL allowed: nobody was */
    void (*on_removed)(void *data, uint64_t by); /* member `by` says that this node was removed; NULL allowed */
    /* A member wants an image over this connection, which is given: a blocking socket with its SSL object, on which it has got our Hello. The request is
     * borrowed. NULL allowed: refused. */
    void (*on_image)(void *data, uint64_t from, int fd, SSL *ssl, const Raftdir__Image__Request *request);
    void (*log)(void *data, int level, const char *text); /* level: enum logger_level; refused connections and why, once per cause and minute */
};
int peers_start(const struct peers_options *o, struct peers **peers_r, struct err *err);
void peers_members(struct peers *p, const struct node_peer *members, size_t n); /* copied; self may be among them */
void peers_send(struct peers *p, uint64_t to, const uint8_t *frame, size_t len); /* copied; dropped when not connected, or by the rules of peers_queue.c */
void peers_tls_set(struct peers *p, SSL_CTX *tls); /* for connections from now on; takes a reference */
/* Nulls *p. `stopped` comes from the loop when everything is closed (connections may take CONN_LINGER_MS); no other callback does. */
void peers_stop(struct peers **p, void (*stopped)(void *data), void *data);
/* For status: is there a live connection to that member, either way? */
bool peers_connected(struct peers *p, uint64_t id);
/* Where that member takes TLS clients, by its newest Hello; NULL: not known. Borrowed until the loop runs on. */
const char *peers_client_endpoint(struct peers *p, uint64_t id);
unsigned peers_port(const struct peers *p); /* that we listen on; differs from listen_port when that was 0 */
/* Frames that peers_send took for this member and dropped (not connected, stuck, full). */
uint64_t peers_dropped(struct peers *p, uint64_t id);

#endif
