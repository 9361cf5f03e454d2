/* murder_internal.h - between murder_*.c. */
#ifndef CLIENT_MURDER_INTERNAL_H
#define CLIENT_MURDER_INTERNAL_H

#include "murder.h"

/* The open handle, with the timeout set for what follows. NULL: the message says why. */
raftdir *murder_handle(unsigned timeout_ms);
/* What a code of libraftdir means to Cyrus; remembers its text. */
enum murder_result murder_result(raftdir *d, int rc);
enum murder_result murder_fail(enum murder_result result, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "server!partition", taken apart: copies. */
struct murder_location {
    char server[513];
    char partition[257];
};
/* false: too long, or a second '!'. */
bool murder_location_parse(const char *text, struct murder_location *l);

#endif
