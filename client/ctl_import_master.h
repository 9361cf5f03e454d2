/* ctl_import_master.h - what `raftdirctl import --mupdate` and its --follow share. */
#ifndef RAFTDIR_CTL_IMPORT_MASTER_H
#define RAFTDIR_CTL_IMPORT_MASTER_H
#include "ctl_import.h"
#include "mupdate_index.h"
#include "mupdate_source.h"
#include "mupdate_spool.h"

struct master_held; /* a row that can't be taken yet; ctl_import_follow.c */

struct master {
    struct import im;
    struct mupdate_source_options so;
    char *password;
    struct mupdate_source *source;
    struct mupdate_spool spool;  /* rows of the list, then of what changed */
    uint64_t list_end;           /* in it */
    bool list_done;
    struct mupdate_index now, before; /* what the master has; what it had when its connection was lost */
    bool has_before;
    /* follow */
    struct master_held *held;
    bool nooping;
    uint64_t noop_ms, current_ms, told_ms, changes, lost;
    /* what was compared */
    uint64_t there, only_there, only_here, other_server, other_partition, other_acl, reserved_here, skipped_there, skipped_here, elsewhere, refused;
    struct ctl_table *table;
    json_t *differences;
    uint64_t shown, more;
};

/* What a row of the master comes to. */
enum master_verdict {
    MASTER_WRITE,
    MASTER_SAME,
    MASTER_SKIPPED_THERE, /* it names a server that talks to raftdir already */
    MASTER_SKIPPED_HERE,  /* raftdir has the mailbox at such a server */
    MASTER_RESERVED_HERE, /* raftdir holds the name: it may become a mailbox, or be free soon */
    MASTER_MOVING_HERE    /* or moves the mailbox */
};
enum master_verdict master_decide(const struct master *x, const struct mupdate_row *row, const struct raftdir_mailbox *here); /* here NULL: absent */
/* Is `here` to go because the master deleted what it had at `server`? */
bool master_may_delete(struct master *x, const struct raftdir_mailbox *here, const char *server);
/* Adds the write that makes the mailbox as the row says; what else is known of it here stays. */
void master_write(struct master *x, const struct mupdate_row *row, const struct raftdir_mailbox *here);
void master_delete(struct master *x, const struct raftdir_mailbox *here);
void master_hold(struct master *x, const struct mupdate_row *row); /* ctl_import_follow.c */
/* The mailbox of that name, NULL for none. Negative: the row was told as malformed (import_refused), or raftdir couldn't be asked. */
int master_look(struct master *x, const char *name, const struct raftdir_mailbox **here_r);

int master_error(struct ctl *c, const struct err *err); /* tells it, gives the exit code */
/* Connects, and reads the whole list into spool and index. 0 or a code. `updates`: what changes follows it. */
int master_read(struct master *x, bool updates, struct err *err);
/* Takes what the master has sent into the spool; waits at most timeout_ms for the first. 0, RAFTDIR_EAGAIN when nothing came, or a code: the connection is lost. */
int master_pump(struct master *x, unsigned timeout_ms, struct err *err);
/* Compares the list with raftdir, and (unless --dry-run) makes raftdir the same. x->im.fatal tells what stopped it; it may be repeated. */
void master_compare(struct master *x);
int master_follow(struct master *x); /* an exit code */
bool master_stopped(void);           /* SIGINT or SIGTERM came */

#endif
