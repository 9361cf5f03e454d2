/* peers_internal.h - what peers.c (members, connections), peers_hello.c (who is it?), peers_image.c (connections for images), peers_queue.c (what waits) and
 * peers_frame.c (heads of frames) share. */
#ifndef RAFTDIR_PEERS_INTERNAL_H
#define RAFTDIR_PEERS_INTERNAL_H
#include "conn.h"
#include "limits.h"
#include "logger.h"
#include "peer.pb-c.h"
#include "peers.h"

#define PEER_ENDPOINT_LEN_MAX 255

/* --- peers_frame.c: pure --- */
struct peer_frame_head {
    uint64_t version, cluster_id, incarnation, from, to;
    unsigned body; /* field number of the body; 0: none */
};
/* The fields before the body, without unpacking it. Each must be there exactly once. False: not a Frame. */
bool peer_frame_head(const uint8_t *frame, size_t len, struct peer_frame_head *head_r);

/* --- peers_queue.c --- */
struct peer_waiting {
    struct peer_waiting *next;
    size_t len;
    uint8_t frame[];
};
struct peer_lane {
    struct peer_waiting *first, **last;
    size_t len;
};
struct peer_queue {
    struct peer_lane control, bulk;
    uint64_t sent_len, progress_ms; /* of the connection: bytes taken by the socket, and since when no more */
    bool stalled;
    uint64_t dropped;
};
void peer_queue_init(struct peer_queue *q);
void peer_queue_clear(struct peer_queue *q);
/* Takes a frame for an open connection. */
void peer_queue_send(struct peer_queue *q, struct conn *c, uint64_t now, const uint8_t *frame, size_t len);
void peer_queue_drain(struct peer_queue *q, struct conn *c, uint64_t now);
/* Notices a connection that takes nothing more. Returns when it wants to be called again; UINT64_MAX: when something is queued. */
uint64_t peer_queue_tick(struct peer_queue *q, struct conn *c, uint64_t now);

/* --- peers.c --- */
enum peer_cause { /* of a line in the log; each has its own minute */
    CAUSE_CONNECT,
    CAUSE_HANDSHAKE,
    CAUSE_CERT,
    CAUSE_UUID,
    CAUSE_CLUSTER,
    CAUSE_INCARNATION,
    CAUSE_STRANGER,
    CAUSE_TO,
    CAUSE_VERSION,
    CAUSE_GARBAGE,
    CAUSE_SILENT,
    CAUSE_LOST,
    CAUSE_REPLACED,
    CAUSE_CONNECTED,
    CAUSE_STUCK,
    CAUSE_CROWD,
    CAUSE_IMAGE,
    CAUSES,
};

struct peer_link;
struct peer_member {
    struct node_peer who;
    char host[256], port[16];
    struct peer_link *out, *in;  /* ready or on their way; `in` only when ready */
    unsigned attempts;           /* of dialling, since a connection lasted */
    uint64_t dial_ms;            /* when to dial next, while there is no `out` */
    uint64_t ready_ms;           /* since when `out` is ready */
    struct peer_queue queue;
    bool stall_told;
    char client_endpoint[PEER_ENDPOINT_LEN_MAX + 1], site[SITE_LEN_MAX + 1];
    uint64_t logged_ms[CAUSES];
};

/* A connection. */
struct peer_link {
    struct peers *p;
    struct conn *c;
    struct peer_member *m;    /* accepted: NULL until its Hello; NULL too once it has parted */
    bool accepted, ready;
    bool parted;              /* given up, only waits for on_close */
    uint64_t deadline_ms;     /* for its Hello; UINT64_MAX: none */
    Raftdir__Peer__Frame *image; /* accepted, its Hello asks for an image: that Hello, until the connection is handed over */
    uint64_t image_until_ms;     /* by when that must have been possible; deadline_ms is the next attempt */
    struct peer_link *prev, *next;
};

#define STRANGERS_KEPT 64
struct peer_stranger {
    uint64_t key, logged_ms;
};

#define PEER_LISTENERS_MAX 8
struct peers {
    struct peers_options o;
    char client_endpoint[PEER_ENDPOINT_LEN_MAX + 1], site[SITE_LEN_MAX + 1];
    uv_tcp_t listeners[PEER_LISTENERS_MAX];
    unsigned listeners_n;
    unsigned port;
    uv_timer_t tick;
    struct peer_member *members[MEMBERS_MAX];
    size_t members_n;
    struct peer_link *links;
    size_t strangers_n; /* accepted links without Hello */
    struct peer_stranger strangers[STRANGERS_KEPT];
    size_t open; /* handles and connections that are not closed yet */
    bool stopping;
    void (*stopped)(void *data);
    void *stopped_data;
};

uint64_t peers_now(const struct peers *p);
struct peer_member *peers_find(struct peers *p, uint64_t id);
/* One line a minute for each cause and member (or address, when it is none). */
void peers_log(struct peers *p, struct peer_member *m, const char *stranger, enum peer_cause cause, enum logger_level level, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));

/* For every reason that is known here: closes the link. */
void peers_link_refuse(struct peer_link *l, int code, const char *why);
/* From now on the link is nobody's; on_close will free it. */
void peers_link_part(struct peer_link *l);
void peers_schedule(struct peers *p); /* sets the timer to the next thing to do */

/* --- peers_image.c --- */
/* `l` has shown by its Hello (given) that it is `m`, and that it wants an image. */
void peers_image_begin(struct peer_link *l, struct peer_member *m, Raftdir__Peer__Frame *hello);
void peers_image_go_on(struct peer_link *l); /* its deadline_ms has come */

/* --- peers_hello.c --- */
#define PEER_HELLO_LEN_MAX 4096
/* A packed Frame with the Hello of `self` (its ids and uuid count); 0: over the limit. image, client_endpoint, site: NULL allowed. */
size_t peers_hello_pack(const struct peers_options *self, const char *client_endpoint, const char *site, uint64_t to, bool removed, Raftdir__Image__Request *image,
                        uint8_t buf_r[PEER_HELLO_LEN_MAX]);
int peers_hello_send(struct peers *p, struct conn *c, uint64_t to, bool removed);
/* Checks the first frame of a connection. 0: it is `*member_r` (for a dialled one: link->m). Else the reason is in the log, and the link must be closed.
 * image_r: not NULL when the connection is to carry an image: its Hello, given. */
int peers_hello_check(struct peer_link *link, const uint8_t *frame, size_t len, struct peer_member **member_r, Raftdir__Peer__Frame **image_r);
/* The certificate's name fits the member? Logs if not. */
bool peers_cert_fits(struct peer_link *link, const struct peer_member *m);

#endif
