/* murder_handle.c - the process's one handle of the directory, and what its errors mean to Cyrus.
 *
 * Cyrus' master forks and then execs its services, but any of them may fork for itself: a child opens its own. The handle outlives sessions: an imapd
 * serves many users, and a connection to the node is worth keeping. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>
#include "murder_internal.h"

static struct {
    raftdir *d;
    pid_t pid;
    bool settings_read;
    struct murder_settings settings;
    char message[MURDER_TEXT_LEN];
} process;

void murder_log(int priority, const char *fmt, ...)
{
    char text[2 * MURDER_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    syslog(priority, "raftdir: %s", text);
}

enum murder_result murder_fail(enum murder_result result, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(process.message, sizeof process.message, fmt, ap);
    va_end(ap);
    return result;
}

const char *murder_message(void)
{
    return process.message;
}

const struct murder_settings *murder_settings(void)
{
    return &process.settings;
}

void murder_close(void)
{
    raftdir_close(&process.d);
    murder_settings_free(&process.settings);
    process.settings_read = false;
}

static enum murder_result open_handle(void)
{
    const struct murder_settings *s = &process.settings;
    struct raftdir_options o;
    raftdir_options_init(&o);
    o.endpoints = s->endpoints;
    o.ca = s->ca;
    o.cert = s->cert;
    o.key = s->key;
    o.site = s->site;
    o.local_dir = s->local_dir;
    o.timeout_ms = s->write_timeout_ms;
    o.unreachable_ms = s->unreachable_ms;
    o.software = "cyrus " RAFTDIR_VERSION;
    char text[256];
    int rc = raftdir_open(&o, &process.d, text, sizeof text);
    if (rc < 0)
        return murder_fail(MURDER_UNSURE, "%s", text[0] ? text : raftdir_strerror(rc));
    process.pid = getpid();
    return MURDER_OK;
}

enum murder_result murder_open(void)
{
    if (process.d && process.pid == getpid())
        return MURDER_OK;
    raftdir_close(&process.d); /* the parent's: its connections stay the parent's */
    if (!process.settings_read) {
        char text[MURDER_TEXT_LEN];
        if (murder_settings_load(&process.settings, text)) {
            murder_settings_free(&process.settings);
            return murder_fail(MURDER_UNSURE, "%s", text);
        }
        process.settings_read = true;
    }
    return open_handle();
}

raftdir *murder_handle(unsigned timeout_ms)
{
    if (murder_open())
        return NULL;
    int rc = raftdir_set_timeout(process.d, timeout_ms);
    if (rc >= 0)
        rc = raftdir_set_level(process.d, RAFTDIR_SESSION);
    if (rc < 0) {
        murder_result(process.d, rc);
        return NULL;
    }
    return process.d;
}

/* Whatever isn't known to be a refusal can't be told: a code of a later library must not become "not there". */
static enum murder_result meaning(int rc)
{
    if (rc >= 0)
        return MURDER_OK;
    switch (rc) {
    case RAFTDIR_ENOTFOUND:
        return MURDER_ABSENT;
    case RAFTDIR_EEXIST:
    case RAFTDIR_ECONFLICT:
    case RAFTDIR_ERESERVED:
    case RAFTDIR_EOTHERSTORE:
    case RAFTDIR_EFENCED:
    case RAFTDIR_ENAME:
    case RAFTDIR_ETOOBIG:
    case RAFTDIR_EACL:
    case RAFTDIR_EINVAL:
    case RAFTDIR_EPERM:
        return MURDER_REFUSED;
    default:
        return MURDER_UNSURE;
    }
}

enum murder_result murder_result(raftdir *d, int rc)
{
    enum murder_result result = meaning(rc);
    if (result == MURDER_OK) {
        process.message[0] = 0;
        return MURDER_OK;
    }
    const char *why = raftdir_message(d);
    return murder_fail(result, "%s", why && why[0] ? why : raftdir_strerror(rc));
}

bool murder_location_parse(const char *text, struct murder_location *l)
{
    const char *bang = strchr(text, '!');
    size_t server_len = bang ? (size_t)(bang - text) : strlen(text);
    const char *partition = bang ? bang + 1 : "";
    if (server_len == 0 || server_len >= sizeof l->server || strlen(partition) >= sizeof l->partition || strchr(partition, '!')) {
        murder_fail(MURDER_REFUSED, "\"%.200s\" is no location", text);
        return false;
    }
    memcpy(l->server, text, server_len);
    l->server[server_len] = 0;
    strcpy(l->partition, partition);
    return true;
}
