/* ctl_import.h - what the parts of `raftdirctl import` share: batches of writes in flight, counts, the report.
 *
 * ctl_import.c         a dump of ctl_mboxlist
 * ctl_import_send.c    batches
 * ctl_import_master.c  a running mupdate master: compare, take over
 * ctl_import_follow.c  and go on with what changes there */
#ifndef RAFTDIR_CTL_IMPORT_H
#define RAFTDIR_CTL_IMPORT_H
#include "ctl.h"

/* What a write may do. All but PUT are refused when somebody else has come first: then import.again decides anew. */
enum import_kind { IMPORT_PUT, IMPORT_CREATE, IMPORT_CHANGE /* of the generation that was seen */, IMPORT_DELETE /* the same */ };

struct import_record {
    enum import_kind kind;
    uint64_t line, generation;
    struct raftdir_mailbox *m;
};
struct import_flight {
    struct import *im;
    struct import_record *records;
    unsigned n;
};

struct import {
    struct ctl *c;
    unsigned batch_n;
    raftdir_batch *batch;
    struct import_flight *filling;
    struct import_flight **redo; /* batches that were refused */
    size_t redo_n, redo_size;
    /* A record whose condition didn't hold, by itself: looks anew and does what is right now. */
    void (*again)(struct import *im, const struct import_record *r);
    void *data;
    /* counts */
    uint64_t read, written, deleted, unchanged, malformed, serverless, reserved, tombstones, intermediates;
    int fatal;            /* code that stops the import */
    char fatal_text[512];
    json_t *bad;          /* malformed records, for --json */
    struct progress progress;
    bool stop;
};

void import_no_memory(void) __attribute__((noreturn));
void import_fatal(struct import *im, int code, const char *text);
void import_malformed(struct import *im, uint64_t line, const char *name, const char *why);
bool import_refused(int code); /* because of a record: others may be taken */
void import_begin(struct import *im, struct ctl *c);
void import_end(struct import *im);
/* Adds a write; `m` is copied. Nothing is done when it can't be: that is told. */
void import_add(struct import *im, enum import_kind kind, uint64_t line, uint64_t generation, const struct raftdir_mailbox *m);
void import_send(struct import *im);   /* what is there, as a batch */
void import_redo(struct import *im);   /* refused batches, record by record */
void import_discard(struct import *im); /* what wasn't sent */
void import_settle(struct import *im); /* sends, and waits until all of it has ended */
/* Finds out soon whether anybody is there and lets us in; then is patient. */
int import_open(struct ctl *c);
void import_say(const char *label, uint64_t n, bool always);

int ctl_import_master(struct ctl *c);

#endif
