/* murder_config.c - the settings file of a Cyrus server; see murder.h and cyrus.conf of raftdir in client/CYRUS.md.
 *
 * Read with libconfuse inside somebody's imapd: its complaints are kept as a text, never printed. An unknown key is an error: a misspelt one would
 * silently send a server's mail to the default. */
#include <confuse.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "murder.h"

#define TIME_MIN_MS 100
#define TIME_MAX_MS 600000

/* libconfuse's error callback carries no pointer of ours. */
static char *error_text;

static void complain(cfg_t *cfg, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void complain(cfg_t *cfg, const char *fmt, va_list ap)
{
    if (!error_text || error_text[0])
        return;
    int n = snprintf(error_text, MURDER_TEXT_LEN, "%s:%d: ", cfg->filename ? cfg->filename : "configuration", cfg->line);
    if (n > 0 && n < MURDER_TEXT_LEN)
        vsnprintf(error_text + n, MURDER_TEXT_LEN - (size_t)n, fmt, ap);
}

static bool take_text(cfg_t *cfg, const char *name, char **to)
{
    const char *value = cfg_getstr(cfg, name);
    *to = value && value[0] ? strdup(value) : NULL;
    return *to || !value || !value[0];
}

static bool take_time(cfg_t *cfg, const char *name, unsigned *to, char text[MURDER_TEXT_LEN])
{
    long value = cfg_getint(cfg, name);
    if (value < TIME_MIN_MS || value > TIME_MAX_MS) {
        snprintf(text, MURDER_TEXT_LEN, "%s: %s has to be between %d and %d", cfg->filename ? cfg->filename : "configuration", name, TIME_MIN_MS, TIME_MAX_MS);
        return false;
    }
    *to = (unsigned)value;
    return true;
}

enum murder_result murder_settings_load(struct murder_settings *s, char text[MURDER_TEXT_LEN])
{
    memset(s, 0, sizeof *s);
    text[0] = 0;
    cfg_opt_t options[] = {
        CFG_STR("endpoints", NULL, CFGF_NONE), CFG_STR("ca", NULL, CFGF_NONE), CFG_STR("cert", NULL, CFGF_NONE), CFG_STR("key", NULL, CFGF_NONE),
        CFG_STR("site", NULL, CFGF_NONE), CFG_STR("local_dir", NULL, CFGF_NONE), CFG_STR("lookups", "auto", CFGF_NONE),
        CFG_INT("write_timeout_ms", 10000, CFGF_NONE), CFG_INT("lookup_timeout_ms", 4000, CFGF_NONE), CFG_INT("unreachable_ms", 3000, CFGF_NONE), CFG_END(),
    };
    const char *path = secure_getenv("RAFTDIR_CYRUS_CONF");
    bool named = path && path[0];
    if (!named)
        path = MURDER_CONF_DEFAULT;
    cfg_t *cfg = cfg_init(options, CFGF_NONE);
    if (!cfg) {
        snprintf(text, MURDER_TEXT_LEN, "out of memory");
        return MURDER_REFUSED;
    }
    cfg_set_error_function(cfg, complain);
    error_text = text;
    int rc = CFG_SUCCESS;
    if (access(path, R_OK) == 0) {
        rc = cfg_parse(cfg, path);
    } else if (named || errno != ENOENT) {
        snprintf(text, MURDER_TEXT_LEN, "%s: %s", path, strerror(errno));
        rc = CFG_FILE_ERROR;
    }
    error_text = NULL;
    bool ok = rc == CFG_SUCCESS;
    if (!ok && !text[0])
        snprintf(text, MURDER_TEXT_LEN, "%s: it can't be read", path);
    if (ok)
        ok = take_time(cfg, "write_timeout_ms", &s->write_timeout_ms, text) && take_time(cfg, "lookup_timeout_ms", &s->lookup_timeout_ms, text) &&
             take_time(cfg, "unreachable_ms", &s->unreachable_ms, text);
    if (ok && !(take_text(cfg, "endpoints", &s->endpoints) && take_text(cfg, "ca", &s->ca) && take_text(cfg, "cert", &s->cert) && take_text(cfg, "key", &s->key) &&
                take_text(cfg, "site", &s->site) && take_text(cfg, "local_dir", &s->local_dir) && take_text(cfg, "lookups", &s->lookups))) {
        snprintf(text, MURDER_TEXT_LEN, "out of memory");
        ok = false;
    }
    cfg_free(cfg);
    return ok ? MURDER_OK : MURDER_REFUSED;
}

void murder_settings_free(struct murder_settings *s)
{
    free(s->endpoints);
    free(s->ca);
    free(s->cert);
    free(s->key);
    free(s->site);
    free(s->local_dir);
    free(s->lookups);
    memset(s, 0, sizeof *s);
}
