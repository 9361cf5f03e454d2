/* lib_local.h - reading the state of this host's node without a socket (DESIGN D8): what lib_read.c, lib_list.c and the event-loop form see of it.
 *
 * lib_local.c       the pages and environments of this process, fork
 * lib_local_read.c  which state may answer at which level and age; lookup, rights
 * lib_local_list.c  listings, a chunk at a time */
#ifndef RAFTDIR_LIB_LOCAL_H
#define RAFTDIR_LIB_LOCAL_H
#include "lib_internal.h"
#include "raftdir/page.h"
#include "raftdir/store.h"

#define LOCAL_DIR_DEFAULT "/var/lib/raftdir"
#define LOCAL_RETRY_MIN_MS 50    /* what couldn't be opened is tried again after this, doubled each time, */
#define LOCAL_RETRY_MAX_MS 5000  /* up to this */
#define LOCAL_LOOK_MS 100        /* a page that isn't served from, or seems forgotten, is compared with the file this often */
#define LOCAL_AGE_LOOK_MS 1000   /* an age from which on the page may be forgotten */
#define LOCAL_TICK_MS 10         /* the longest tick (CONFIG_HZ=100) */
#define LOCAL_TRIES 3            /* reads that a change of generation spoilt, in one call */
#define LOCAL_CHUNK_ROWS LIST_CHUNK_ROWS
#define LOCAL_CHUNK_TOUCHED 4096 /* and so many rows touched, whether they matched or not, in one read transaction */
#define LOCAL_BLOCK_LEN (32u << 10) /* memory for the strings of a chunk comes in blocks */

struct local_page;
struct local_state;

/* Which state it is that the page speaks of. */
struct local_key {
    uint64_t cluster_id, node_id, generation;
};

/* A handle's. */
struct local {
    struct local *next;   /* among those that a forked child leaves alone */
    char *dir, *endpoint; /* "local:DIR" */
    bool asked_for;       /* somebody named the directory: what is wrong with it is worth telling */
    struct local_page *page;   /* NULL: not mapped */
    struct local_state *state; /* NULL: not open */
    struct local_key key;      /* of `state` */
    struct store_txn *txn;     /* of `state`; reset between uses */
    uint64_t retry_at, retry_ms, look_at;
    uint64_t age_tick;    /* of CLOCK_MONOTONIC_COARSE, in which the age was computed; 0: not yet */
    int64_t age_ms;
    struct err why;       /* the last call wasn't answered here because */
    char node[sizeof ((struct page *)0)->node_name];
    struct {
        char *s;
        size_t size;
    } text[2];            /* strings of the mailbox that was given last, and room for the next one's: the question may be the last answer */
    unsigned text_i;      /* the one for the next */
};

/* lib_local.c */
int local_create(const char *dir, bool asked_for, struct local **l_r); /* touches no file yet. RAFTDIR_ENOMEM */
/* ours: false in a forked child, where nothing of it is touched. */
void local_destroy(struct local **l, bool ours);
/* The page mapped, the state that it names open. 0, or why not (in l->why). *age_ms_r: -1: not known. */
int local_attach(struct local *l, int64_t *age_ms_r);
const struct page *local_page_of(const struct local *l);
bool local_is_same(const struct local *l); /* does the page still name this state, and let it be served? */
int local_txn(struct local *l);            /* the handle's transaction, live */
void local_state_drop(struct local *l);
void local_fails(struct local *l);         /* after an error of the state's: it is opened again, but not at once */

/* lib_local_read.c */
struct local_view { /* of a live transaction */
    uint64_t incarnation, index;
    int64_t age_ms;
};
/* Begins a read at this level: 0 (end it by local_end), or LOCAL_PASS with the reason in l->why. min_index: at least that, beside what the handle has seen. */
int local_begin(struct raftdir *d, int level, uint64_t min_index, struct local_view *view_r);
/* Ends the transaction. false: what was read doesn't count. */
bool local_end(struct raftdir *d);
void local_answered(struct raftdir *d, const struct local_view *view); /* raftdir_answer, and what the session has seen */
size_t local_text_len(const struct store_mailbox *m);
/* The mailbox for the user; `at` has room for local_text_len. rights: NULL allowed. */
void local_mailbox(struct raftdir_mailbox *m_r, const struct store_mailbox *m, const acl_rights *rights, char *at);

/* lib_local_list.c */
struct local_list;
/* A listing from here: 0; LOCAL_PASS; or a negative code in d->err: the request is wrong, or no memory. `who` NULL: list; else visible. Both live as long as the listing. */
int local_list_open(struct raftdir *d, const Raftdir__Client__List *list, const Raftdir__Client__Visible *who, uint64_t limit, struct local_list **l_r);
/* 1 with a row that lives until the next call; 0: the end; LOCAL_LIST_PASS: on by socket, behind the last row; else a negative code in d->err. `deadline`: of lib_now_ms. */
#define LOCAL_LIST_PASS 2
int local_list_next(struct local_list *l, uint64_t deadline, const struct raftdir_mailbox **m_r);
bool local_list_began(const struct local_list *l); /* a state was read: no older one will do from now on */
void local_list_state(const struct local_list *l, uint64_t *incarnation_r, uint64_t *index_r); /* that the last chunk was read from */
const char *local_list_last(const struct local_list *l); /* name of the row that was given last; NULL: none */
void local_list_counters(const struct local_list *l, uint64_t *touched_r, uint64_t *skips_r);
void local_list_close(struct local_list **l);

#endif
