/* peers.h - connections to the other members over mutual TLS: who may speak to the consensus code, and how frames travel (proto/peer.proto).
 *
 * Each node sends on connections that it opened itself and receives on those that it accepted; a connection starts with Hello both ways. A frame reaches on_frame only if
 * cluster id and incarnation are ours, `to` is us, and (from, certificate name, data directory UUID) is a member by the newest list given.
 * A second connection of the same member replaces the first; what was queued on a lost connection is dropped (raft sends again). Reconnects with back-off,
 * at once when a member's address changes. All calls on the loop's thread. */
#ifndef RAFTDIR_PEERS_H
#define RAFTDIR_PEERS_H
#include <openssl/ssl.h>
#include <uv.h>
#include "err.h"
#include "node.h"

struct peers;
struct peers_options {
    uv_loop_t *loop;
    SSL_CTX *tls;
    const char *listen_host, *listen_port;
    uint64_t self_id, cluster_id, incarnation;
    uint8_t uuid[NODE_UUID_LEN];
    const char *client_endpoint; /* told to the others in Hello; NULL or "": none */
    void *data;
    void (*on_frame)(void *data, uint64_t from, const uint8_t *frame, size_t len); /* borrowed */
    void (*on_endpoint)(void *data, uint64_t id, const char *client_endpoint); /* from a member's Hello; borrowed; NULL allowed */
    void (*log)(void *data, int level, const char *text); /* refused connections and why, once per cause and minute */
};
int peers_start(const struct peers_options *o, struct peers **peers_r, struct err *err);
void peers_members(struct peers *p, const struct node_peer *members, size_t n); /* copied; self may be among them */
void peers_send(struct peers *p, uint64_t to, const uint8_t *frame, size_t len); /* copied; dropped when not connected or PEER_QUEUE_LEN_MAX is full */
void peers_tls_set(struct peers *p, SSL_CTX *tls); /* for connections from now on; takes a reference */
void peers_stop(struct peers **p, void (*stopped)(void *data), void *data);
/* For status: is there a live connection to that member, either way? */
bool peers_connected(struct peers *p, uint64_t id);

#endif
