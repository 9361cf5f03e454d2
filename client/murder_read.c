/* murder_read.c - lookups, lists, barriers. A lookup is a read of the own host's copy where there is one, and tells "not there" only from a state that is
 * known to be fresh (libraftdir's absent_max_age_ms); a barrier before it makes that "now". */
#include <string.h>
#include "murder_internal.h"

enum murder_result murder_find(const char *name, const struct raftdir_mailbox **m_r)
{
    *m_r = NULL;
    if (murder_open())
        return MURDER_UNSURE;
    raftdir *d = murder_handle(murder_settings()->lookup_timeout_ms);
    if (!d)
        return MURDER_UNSURE;
    int rc = raftdir_lookup(d, name, m_r);
    if (rc < 0)
        *m_r = NULL;
    /* Cyrus looks for whatever a client says. What can't be a mailbox's name in the directory is none. */
    if (rc == RAFTDIR_ENAME || rc == RAFTDIR_ETOOBIG) {
        murder_result(d, rc);
        return MURDER_ABSENT;
    }
    return murder_result(d, rc);
}

enum murder_result murder_barrier(void)
{
    if (murder_open())
        return MURDER_UNSURE;
    raftdir *d = murder_handle(murder_settings()->lookup_timeout_ms);
    if (!d)
        return MURDER_UNSURE;
    int rc = raftdir_set_level(d, RAFTDIR_LINEARIZABLE);
    if (rc >= 0)
        rc = raftdir_barrier(d, 0);
    enum murder_result result = murder_result(d, rc);
    rc = raftdir_set_level(d, RAFTDIR_SESSION);
    return result || rc >= 0 ? result : murder_result(d, rc);
}

enum murder_result murder_list(const char *location, murder_list_fn *fn, void *data, int *callback_r)
{
    *callback_r = 0;
    struct raftdir_filter filter;
    raftdir_filter_init(&filter);
    filter.reserved = 1;
    struct murder_location at = {"", ""};
    size_t location_len = location ? strlen(location) : 0;
    /* "server!..." is asked for by server; the rest of the prefix, and one without "!", are compared here. */
    if (location_len && strchr(location, '!')) {
        if (!murder_location_parse(location, &at))
            return MURDER_REFUSED;
        filter.server = at.server;
    }
    enum murder_result result = murder_barrier();
    if (result)
        return result;
    raftdir *d = murder_handle(murder_settings()->write_timeout_ms);
    if (!d)
        return MURDER_UNSURE;
    raftdir_list *list;
    int rc = raftdir_list_open(d, &filter, &list);
    if (rc < 0)
        return murder_result(d, rc);
    const struct raftdir_mailbox *m;
    while ((rc = raftdir_list_next(list, &m)) > 0) {
        bool match = filter.server ? strncmp(m->partition, at.partition, strlen(at.partition)) == 0
                                   : strncmp(m->server, location ? location : "", location_len) == 0;
        if (match && (*callback_r = fn(m, data)))
            break;
    }
    raftdir_list_close(&list);
    return murder_result(d, rc < 0 ? rc : 0);
}
