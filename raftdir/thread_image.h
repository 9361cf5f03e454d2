/* thread_image.h - images between nodes: the threads that send one (thread_image_send.c) and the one that fetches and stages one (thread_image_fetch.c).
 *
 * The copy of a node's own state, which a renewal begins with, is an image, too (thread_image_copy.c).
 *
 * Bulk data never passes the consensus thread: an accepted connection whose Hello asks for an image is handed over (peers.h, on_image), and the receiver's thread
 * connects by itself. Blocking sockets, one thread a transfer, low priority, bounded by IMAGE_IO_TIMEOUT_MS without a byte, ended at once by stop. */
#ifndef RAFTDIR_THREAD_IMAGE_H
#define RAFTDIR_THREAD_IMAGE_H
#include <openssl/ssl.h>
#include "daemon.h"
#include "image.h"

/* Tests only: shorter times and lower limits than those of limits.h. */
struct image_limits {
    unsigned io_timeout_ms, pin_keep_ms, pause_ms;
    uint64_t pin_growth_max;
};
extern struct image_limits image_limits;
void image_thread_humble(void); /* the calling thread: lowest priority, no signals */

/* --- Sending: at most IMAGE_SENDS_MAX at a time; more are refused with RAFTDIR_EBUSY. ------------------------------------------------- */
struct image_senders;
int image_senders_start(struct daemon *d, struct image_senders **senders_r, struct err *err);
/* The connection is given. Any thread. */
void image_senders_take(struct image_senders *s, uint64_t to, int fd, SSL *ssl, const Raftdir__Image__Request *request);
void image_senders_stop(struct image_senders **senders); /* joins */

/* --- Fetching: one at a time ------------------------------------------------------------------------------------------------------------ */
struct image_fetch_options {
    struct daemon *d;
    uint64_t self_id, cluster_id, incarnation;
    uint8_t uuid[NODE_UUID_LEN];
    char dir[4096];      /* the staged state's directory, empty */
    uint64_t index_min;  /* what the leader said */
    uint64_t leader;     /* asked last: it has enough to do */
    struct node_peer members[MEMBERS_MAX]; /* whom to ask */
    size_t members_n;
    /* Both on the fetching thread. */
    void *data;
    void (*index)(void *data, uint64_t index); /* the image has this index: the leader should keep its log from there */
    /* Once, last. 0: the image is complete, verified and durable. Else this attempt is given up (nobody can send one, no space, damage): the staged state is rubbish. */
    void (*done)(void *data, int code, const struct image_progress *image, const char *why);
};
struct image_fetch;
int image_fetch_start(const struct image_fetch_options *o, struct image_fetch **fetch_r, struct err *err); /* copied */
void image_fetch_stop(struct image_fetch **fetch); /* joins; `done` has been called, or never will be */

/* --- A copy of this node's own state: one at a time ---------------------------------------------------------------------------------------- */
struct image_copy_options {
    struct daemon *d;
    struct store *store; /* referenced */
    uint64_t self_id, cluster_id, incarnation;
    char dir[4096];      /* the staged state's directory, empty */
    /* On the copying thread, once, last. 0: the copy is complete, verified and durable. Else what is in the directory is rubbish. */
    void *data;
    void (*done)(void *data, int code, const struct image_progress *image, const char *why);
};
struct image_copy;
int image_copy_start(const struct image_copy_options *o, struct image_copy **copy_r, struct err *err); /* copied */
void image_copy_stop(struct image_copy **copy); /* joins; `done` has been called, or never will be */

#endif
