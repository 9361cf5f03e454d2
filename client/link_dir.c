/* link_dir.c - the directory's handle in a linked Cyrus process (link.h): that of murder_*.c, with its settings. */
#include "link.h"

#include <syslog.h>

#include "lib/libconfig.h"
#include "murder_internal.h"

int link_enabled(void)
{
    return config_mupdate_server != NULL;
}

raftdir *link_directory(void)
{
    raftdir *d = murder_open() == MURDER_OK ? murder_handle(murder_settings()->lookup_timeout_ms) : NULL;
    if (!d)
        murder_log(LOG_ERR, "%s", murder_message());
    return d;
}

void link_complain(raftdir *d, int code, const char *what, const char *name)
{
    if (!d || code >= 0 || code == RAFTDIR_ENOTFOUND)
        return;
    murder_result(d, code);
    murder_log(LOG_ERR, "%s%s%s: %s (%s)", what, name ? " " : "", name ? name : "", murder_message(), raftdir_errname(code));
}
