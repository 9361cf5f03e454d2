/* op.h - packing, unpacking and checking what goes into the log (proto/log.proto). Pure; thread-safe.
 *
 * Two kinds of check: op_request_check() is what the node that takes a request does (clear errors for a client's faults);
 * op_entry_unpack() is what apply does (anything unknown is RAFTDIR_EVERSION: apply must stop, DESIGN D3). */
#ifndef RAFTDIR_OP_H
#define RAFTDIR_OP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "limits.h"
#include "log.pb-c.h"

/* A client's request, before it is proposed: names, ACLs, lengths, counts, known operations and feature level. */
int op_request_check(const Raftdir__Log__Request *req, uint32_t feature_level, struct err *err);
/* A Cyrus entry's fields by themselves (import uses it). */
int op_mailbox_check(const Raftdir__Log__Mailbox *m, struct err *err);

/* Wraps packed requests (borrowed) into a packed entry without unpacking them. *data_r is malloc'd and given. */
struct op_packed {
    const uint8_t *data;
    size_t len;
};
int op_entry_pack(uint32_t feature_level, uint64_t log_time_ms, uint64_t wall_time_ms, const struct op_packed *requests, size_t n,
                  uint8_t **data_r, size_t *len_r, struct err *err);
/* RAFTDIR_EVERSION for anything unknown, RAFTDIR_ECORRUPT for what doesn't parse. Free with op_entry_free. */
int op_entry_unpack(const uint8_t *data, size_t len, Raftdir__Log__Entry **entry_r, struct err *err);
void op_entry_free(Raftdir__Log__Entry **entry);

/* The operation's main name and server, for role checks; NULL where it has none. */
const char *op_name(const Raftdir__Log__Op *op);
const char *op_server(const Raftdir__Log__Op *op);
/* May the request make the state larger, beyond its result, which is kept until it expires? False: each of its operations only frees, or writes over what is
 * there (DESIGN D13: these pass while space is short). Tells nothing about what the state holds: a Put of what is there already may grow. */
bool op_request_grows(const Raftdir__Log__Request *req);

#endif
