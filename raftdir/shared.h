/* shared.h - what the daemon's threads tell each other without messages: the node's status as the consensus thread last saw it, and what apply has published.
 *
 * The consensus thread writes the status at least every SHARED_REFRESH_MS; readers add the time since, so that the age of a node whose
 * consensus thread hangs, or that is cut off, grows. Readers take copies. Lock order: nothing else is taken under this mutex.
 *
 * What the processes of this host read (page.h) is written here too, beside what it says to the daemon's own threads, so that the two never tell different things. */
#ifndef RAFTDIR_SHARED_H
#define RAFTDIR_SHARED_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include "node.h"
#include "page.h"
#include "store.h"

#define SHARED_REFRESH_MS 50

enum shared_phase {
    SHARED_UNCONFIGURED = 0, /* no part of a cluster: Hello, Status, Bootstrap, Adopt only */
    SHARED_RUNNING,
    SHARED_FAILED,   /* divergence or corruption: Hello and Status only */
    SHARED_REMOVED,  /* no member any more: Hello and Status only */
    SHARED_STOPPING, /* a running one: local reads still go on. The others stay what they are */
};

/* What every answer needs. */
struct shared_view {
    enum shared_phase phase;
    uint8_t uuid[NODE_UUID_LEN]; /* of the data directory; a reset gives it another */
    uint64_t cluster_id, incarnation, node_id;
    struct node_status status;
    uint64_t taken_ms; /* monotonic; when `status` was true */
};
/* An image on its way, for people. */
struct shared_image {
    uint64_t member, index, rows, rows_total, bytes;
    char phase[16];              /* "": none; the words of proto/client.proto, ImageProgress */
    char problem[ERR_TEXT_LEN];  /* why the last attempt failed */
};
/* What an operator should look at; one text each, "" when all is well. */
enum shared_alarm {
    ALARM_SPACE,     /* reserve, disk or map */
    ALARM_DIFFERS,   /* a member's digest differs, and there is no majority's opinion */
    ALARM_SCRUB,     /* the scrub found something */
    ALARM_IMAGE,     /* an image can't be fetched */
    ALARM_READER,    /* a reader holds pages of the state back */
    ALARM_RENEWAL,   /* and the state can't be moved to a fresh copy */
    SHARED_ALARMS
};
/* The rest, for Status and Hello. */
struct shared_details {
    char failure[ERR_TEXT_LEN];
    struct node_peer members[MEMBERS_MAX];
    size_t members_n;
    char endpoints[MEMBERS_MAX][256]; /* client endpoints, "" when not known; by member */
    char sites[MEMBERS_MAX][SITE_LEN_MAX + 1]; /* likewise */
    struct shared_image fetching, sending[IMAGE_SENDS_MAX];
    char alarms[SHARED_ALARMS][ERR_TEXT_LEN];
    unsigned local_readers;
    uint64_t space_free;  /* bytes; 0: not looked yet */
    uint64_t scrubbed_ms; /* monotonic; when the last complete scrub ended; 0: none yet */
};

struct shared {
    pthread_mutex_t mutex;
    struct shared_view view;
    struct shared_details details;
    _Atomic uint64_t log_len;   /* bytes of the log's files; written with the status */
    _Atomic uint64_t published; /* applied index of the last commit: a reader that begins now sees at least this */
    struct page *page;          /* NULL: none. Set before any thread runs */
    int64_t boot_ahead_ms, boot_ahead_seen_ms; /* how far CLOCK_BOOTTIME is ahead of the monotonic clock: at the moment that the page tells, and now */
    uint64_t slept_ms;                         /* monotonic: when that was seen to have changed */
};

uint64_t shared_now_ms(void); /* monotonic; the clock of everything in the daemon */

int shared_init(struct shared *s);
void shared_close(struct shared *s);
void shared_view_get(struct shared *s, struct shared_view *view_r);
void shared_details_get(struct shared *s, struct shared_details *details_r);
/* Age of the state and log time at `now`, from a view taken earlier. UINT64_MAX: unknown. */
uint64_t shared_age_ms(const struct shared_view *view, uint64_t now_ms);
uint64_t shared_log_time_ms(const struct shared_view *view, uint64_t now_ms);
/* Writers. Those up to shared_status_set are the consensus thread's; published is whose state it is. */
void shared_page_set(struct shared *s, struct page *page); /* given; before any thread runs */
void shared_page_close(struct shared *s);                  /* after all have ended: says that the daemon has ended in order */
void shared_published_set(struct shared *s, uint64_t index);
void shared_generation_set(struct shared *s, uint64_t generation); /* of the state that readers get from now on; before its published index */
void shared_alive(struct shared *s); /* at least every PAGE_ALIVE_MS */
void shared_page_stop(struct shared *s); /* the state was found to be wrong: no process reads it directly from now on; the phase follows */
void shared_phase_set(struct shared *s, enum shared_phase phase, const char *why); /* why: NULL keeps what there is */
/* A node that is of no cluster: nothing is left of an earlier one. Also at the start. */
void shared_reset(struct shared *s, const uint8_t uuid[NODE_UUID_LEN]);
void shared_identity_set(struct shared *s, uint64_t cluster_id, uint64_t incarnation, uint64_t node_id);
void shared_status_set(struct shared *s, const struct node_status *status, uint64_t now_ms);
void shared_members_set(struct shared *s, const struct node_peer *members, size_t n);
void shared_endpoint_set(struct shared *s, uint64_t id, const char *endpoint, const char *site);
void shared_fetching_set(struct shared *s, const struct shared_image *image); /* NULL: none */
void shared_sending_set(struct shared *s, unsigned slot, const struct shared_image *image); /* NULL: none */
bool shared_alarm_set(struct shared *s, enum shared_alarm alarm, const char *text); /* NULL: all is well. true: it was another one before: worth a line in the log */
void shared_space_set(struct shared *s, uint64_t free_len);
void shared_readers_set(struct shared *s, unsigned others); /* slots of the state's readers in other processes */
void shared_scrubbed(struct shared *s, uint64_t now_ms);

#endif
