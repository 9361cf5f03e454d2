/* linear.h - is there an order of what clients did that explains all that they were told?
 *
 * A history is a list of operations, each with the time at which its client began it and the time at which the answer came (one monotonic clock for all of them).
 * It is linearizable when, for each mailbox by itself (linearizability is local: Herlihy and Wing, 1990), the operations can be put in one order in which
 * each has the result that it was told, and which agrees with time: what was answered before something else began comes before it.
 *
 * The search is Wing and Gong's with Lowe's memory of what was tried ("Testing for linearizability", 2017), as in porcupine: depth first over the orders; a set of operations
 * that led to the same state once isn't tried again. Sets are remembered by a hash of 128 bits that is kept up to date by exclusive or; a collision could only
 * make a good history bad, never a bad one good.
 *
 * - An uncertain write takes effect once, at any time after it began, maybe after the end of the history, or never.
 * - A refused write (exists already, not there) is a read of what refused it. What was surely not done, and reads without an answer, say nothing.
 * - The search is bounded. LINEAR_UNDECIDED is no success.
 *
 * One mailbox is one key: a rename, which is about two of them, has no place here. */
#ifndef LINEAR_H
#define LINEAR_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum linear_kind { LINEAR_CREATE, LINEAR_PUT, LINEAR_SETACL, LINEAR_DELETE, LINEAR_LOOKUP, LINEAR_KINDS };
enum linear_outcome {
    LINEAR_DONE,      /* lookup: found, with that value */
    LINEAR_NOT_FOUND, /* setacl, delete, lookup */
    LINEAR_EXISTS,    /* create */
    LINEAR_UNCERTAIN,
    LINEAR_NOT_DONE,  /* surely had no effect, and says nothing */
    LINEAR_OUTCOMES
};
#define LINEAR_KEY_LEN 63

struct linear_op {
    char key[LINEAR_KEY_LEN + 1];
    uint32_t client;
    enum linear_kind kind;
    enum linear_outcome outcome;
    uint64_t value;     /* what create, put and setacl write, and lookup found; not 0 */
    uint64_t invoke_ns;
    uint64_t return_ns; /* UINT64_MAX: the client never got an answer */
};

enum linear_verdict { LINEAR_OK, LINEAR_BAD, LINEAR_UNDECIDED };

struct linear_report {
    size_t keys, ops;         /* looked at */
    size_t uncertain;
    uint64_t steps;
    char key[LINEAR_KEY_LEN + 1]; /* the first one that isn't fine */
    char text[2000];          /* why: what could not be put in an order */
};

/* All keys of a history. steps_max: for each key; 0: a default that takes some seconds. */
enum linear_verdict linear_check(const struct linear_op *ops, size_t n, uint64_t steps_max, struct linear_report *r);

/* A line of text for each operation: CLIENT KEY KIND VALUE OUTCOME INVOKE RETURN; RETURN is "-" when there was no answer. */
int linear_write(FILE *f, const struct linear_op *op);
/* Adds a file's operations to *ops_r (realloc'ed). 0, or the number of the line that can't be read; -1: no memory or a read error. */
long linear_read(FILE *f, struct linear_op **ops_r, size_t *n_r);

#endif
