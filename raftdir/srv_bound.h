/* srv_bound.h - what a backend that is bound to a server may write. A service thread's own: it looks at the state. */
#ifndef RAFTDIR_SRV_BOUND_H
#define RAFTDIR_SRV_BOUND_H
#include "access.h"
#include "log.pb-c.h"
#include "srv.h"

/* 0: all of it, or the identity isn't bound. RAFTDIR_EPERM with a text: refused. RAFTDIR_ENOTFOUND: can't be said from a state that may be older than the request: once
 * one that a majority has confirmed is published here, ask again with `confirmed`. Takes the service's read transaction. */
int srv_bound_check(struct service *s, const struct access *a, Raftdir__Log__Op *const *ops, size_t n, bool confirmed, struct err *err);

#endif
