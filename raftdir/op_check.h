/* op_check.h - inside the op module: checks that op.c and op_check.c share. */
#ifndef RAFTDIR_OP_CHECK_H
#define RAFTDIR_OP_CHECK_H
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include "err.h"

/* Unknown fields, enum values and operations, at any depth: RAFTDIR_EUNSUPPORTED. */
int op_unknown_check(const ProtobufCMessage *m, struct err *err);
/* A compact JSON array (no white space outside of strings) of valid UTF-8, nested at most 16 deep? */
bool op_json_array_ok(const char *s, size_t len);

#endif
