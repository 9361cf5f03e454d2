/* config.c - see config.h.
 *
 * Every value is read as a string and checked by our own table, so that one place makes all messages. libconfuse calls the checks
 * while it parses, when it knows the line; what spans keys (required ones, heartbeat against election timeout) is checked at the end. */
#include "config.h"
#include <arpa/inet.h>
#include <confuse.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "limits.h"
#include "logger.h"

#define FILE_LEN_MAX (1 << 20)

enum kind { KIND_TEXT, KIND_NAME, KIND_PATH, KIND_SOCKET, KIND_HOST_PORT, KIND_HOST, KIND_USER, KIND_GROUP, /* up to here: char * */ KIND_MODE, KIND_NUMBER, KIND_LEVEL, KIND_SIZE, KIND_TIME, KIND_YESNO };

struct key {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct config */
    const char *preset;
    uint64_t min, max;
    bool required;
    bool none; /* 0 is allowed too, and means "none" or "never" */
};
#define STR(field) offsetof(struct config, field)
static const struct key keys[] = {
    {"node_name", KIND_NAME, STR(node_name), NULL, 0, 0, true, false},
    {"data_dir", KIND_PATH, STR(data_dir), NULL, 0, 0, true, false},
    {"peer_listen", KIND_HOST_PORT, STR(peer_listen), NULL, 0, 0, true, false},
    {"peer_advertise", KIND_HOST_PORT, STR(peer_advertise), NULL, 0, 0, false, false},
    {"client_listen", KIND_HOST_PORT, STR(client_listen), NULL, 0, 0, false, false},
    {"client_advertise", KIND_HOST_PORT, STR(client_advertise), NULL, 0, 0, false, false},
    {"client_socket", KIND_SOCKET, STR(client_socket), NULL, 0, 0, false, false},
    {"client_socket_mode", KIND_MODE, STR(client_socket_mode), "0660", 0, 0777, false, false},
    {"tls_ca", KIND_PATH, STR(tls_ca), NULL, 0, 0, true, false},
    {"tls_cert", KIND_PATH, STR(tls_cert), NULL, 0, 0, true, false},
    {"tls_key", KIND_PATH, STR(tls_key), NULL, 0, 0, true, false},
    {"run_as", KIND_USER, STR(run_as), NULL, 0, 0, false, false},
    {"local_group", KIND_GROUP, STR(local_group), NULL, 0, 0, false, false},
    {"site", KIND_NAME, STR(site), NULL, 0, 0, false, false},
    {"log_level", KIND_LEVEL, STR(log_level), "info", 0, 0, false, false},
    {"service_threads", KIND_NUMBER, STR(service_threads), "1", 1, CONFIG_SERVICE_THREADS_MAX, false, false},
    {"election_timeout_ms", KIND_NUMBER, STR(election_timeout_ms), NULL, 50, 60000, false, false},
    {"heartbeat_ms", KIND_NUMBER, STR(heartbeat_ms), NULL, 10, 20000, false, false},
    {"space_reserve", KIND_SIZE, STR(space_reserve_len), NULL, 1 << 20, 1ull << 40, false, true},
    {"state_quota", KIND_SIZE, STR(state_quota_len), "0", 16 << 20, STORE_MAP_LEN, false, true},
    {"state_growth", KIND_SIZE, STR(state_growth_len), NULL, 1 << 20, STORE_MAP_LEN, false, false},
    {"image_rate", KIND_SIZE, STR(image_rate_len), "0", 64 << 10, 1ull << 40, false, true}, /* less, and a chunk would outlast IMAGE_IO_TIMEOUT_MS */
    {"scrub_interval", KIND_TIME, STR(scrub_interval_s), NULL, 1, 365 * 86400, false, true},
    {"events_kept", KIND_NUMBER, STR(events_kept), NULL, 1, 1000000000, false, false},
    {"log_keep", KIND_SIZE, STR(log_keep_len), NULL, 1 << 20, 16ull << 30, false, false},
    {"mupdate_listen", KIND_HOST_PORT, STR(mupdate_listen), NULL, 0, 0, false, false},
    {"mupdate_tls_listen", KIND_HOST_PORT, STR(mupdate_tls_listen), NULL, 0, 0, false, false},
    {"mupdate_socket", KIND_SOCKET, STR(mupdate_socket), NULL, 0, 0, false, false},
    {"mupdate_socket_mode", KIND_MODE, STR(mupdate_socket_mode), "0660", 0, 0777, false, false},
    {"mupdate_plaintext", KIND_YESNO, STR(mupdate_plaintext), "no", 0, 0, false, false},
    {"mupdate_take_over", KIND_YESNO, STR(mupdate_take_over), "no", 0, 0, false, false},
    {"mupdate_hostname", KIND_HOST, STR(mupdate_hostname), NULL, 0, 0, false, false},
};
#define KEYS_N (sizeof keys / sizeof *keys)

/* libconfuse's callbacks carry no pointer of ours. Configuration is read by one thread at a time (start, SIGHUP). */
static struct parse {
    struct config *config;
    struct err *err;
    bool seen[KEYS_N];
    bool failed;
} parse;

/* The first error counts: those after it are mostly its echoes. */
static void fail(cfg_t *cfg, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fail(cfg_t *cfg, const char *fmt, ...)
{
    if (parse.failed)
        return;
    parse.failed = true;
    char text[ERR_TEXT_LEN];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(parse.err, RAFTDIR_EINVAL, "%s:%d: %s", cfg->filename ? cfg->filename : "configuration", cfg->line, text);
}

static void on_error(cfg_t *cfg, const char *fmt, va_list ap)
{
    char text[ERR_TEXT_LEN], name[128];
    vsnprintf(text, sizeof text, fmt, ap);
    if (sscanf(text, "no such option '%127[^']", name) == 1)
        fail(cfg, "%s: unknown key; remove it, or see raftdird.conf(5) for the keys that there are", name);
    else if (sscanf(text, "found duplicate title '%127[^']", name) == 1)
        fail(cfg, "allow \"%s\": given twice; keep one section for each identity", name);
    else
        fail(cfg, "%s; a line is KEY = \"VALUE\", or allow \"IDENTITY\" { role = \"ROLE\" }", text);
}

int config_host_port(const char *s, char host_r[CONFIG_HOST_LEN], char port_r[CONFIG_PORT_LEN], struct err *err)
{
    const char *host = s, *colon = strrchr(s, ':');
    size_t host_len = colon ? (size_t)(colon - s) : 0;
    if (!colon)
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" has no port; wanted \"host:port\" or \"[address]:port\"", s);
    if (*host == '[') {
        if (host_len < 2 || host[host_len - 1] != ']')
            return err_set(err, RAFTDIR_EINVAL, "\"%s\" is not an address in brackets and a port; wanted \"[2001:db8::1]:port\"", s);
        host++;
        host_len -= 2;
    } else if (memchr(host, ':', host_len)) {
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" has more than one colon; an IPv6 address goes in brackets: \"[2001:db8::1]:port\"", s);
    }
    if (host_len == 0 || host_len >= CONFIG_HOST_LEN)
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" has no host; wanted \"host:port\" (\"0.0.0.0:port\" listens on every address)", s);
    if (strcspn(s, " \t/") != strlen(s))
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" has a space or a slash in it; wanted \"host:port\"", s);
    char *end;
    errno = 0;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (errno || *end || end == colon + 1 || colon[1] < '0' || colon[1] > '9' || port < 1 || port > 65535)
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" has no valid port; wanted a number from 1 to 65535 after the colon", s);
    memcpy(host_r, host, host_len);
    host_r[host_len] = '\0';
    snprintf(port_r, CONFIG_PORT_LEN, "%lu", port);
    return 0;
}

static int name_of_node_check(const char *s)
{
    size_t len = strlen(s);
    return len > 0 && len <= 64 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == len;
}

static bool host_check(const char *s)
{
    size_t len = strlen(s);
    return len < CONFIG_HOST_LEN && s[0] != '.' && s[0] != '-' && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") == len;
}

struct suffix {
    char letter;
    uint64_t factor;
};
static const struct suffix sizes[] = {{'K', 1ull << 10}, {'M', 1ull << 20}, {'G', 1ull << 30}, {'T', 1ull << 40}};
static const struct suffix times[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
#define SUFFIXES_N 4

/* A whole number and, unless it is 0, for times the suffix that says which; for sizes it may be left out: bytes. */
static bool scaled_parse(const char *value, bool time, uint64_t *number_r)
{
    const struct suffix *suffixes = time ? times : sizes;
    char *end;
    if (*value < '0' || *value > '9')
        return false;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (errno)
        return false;
    *number_r = number;
    if (!*end)
        return !time || number == 0;
    for (size_t i = 0; i < SUFFIXES_N; i++)
        if (suffixes[i].letter == *end && !end[1])
            return !__builtin_mul_overflow(number, suffixes[i].factor, number_r);
    return false;
}

/* In the largest unit that it is a whole number of. */
static const char *scaled_text(uint64_t number, bool time, char buf_r[32])
{
    const struct suffix *suffixes = time ? times : sizes;
    for (size_t i = SUFFIXES_N; i-- > 0;)
        if (number % suffixes[i].factor == 0) {
            snprintf(buf_r, 32, "%" PRIu64 "%c", number / suffixes[i].factor, suffixes[i].letter);
            return buf_r;
        }
    snprintf(buf_r, 32, "%" PRIu64, number);
    return buf_r;
}

static int scaled_take(cfg_t *cfg, const struct key *key, const char *value, void *field)
{
    bool time = key->kind == KIND_TIME;
    uint64_t number;
    char min[32], max[32];
    bool ok = scaled_parse(value, time, &number);
    if (!ok || ((number < key->min || number > key->max) && !(key->none && number == 0))) {
        fail(cfg, "%s: \"%s\" is not a %s that is allowed here; wanted %s to %s%s%s", key->name, value, time ? "time" : "size", scaled_text(key->min, time, min),
             scaled_text(key->max, time, max), key->none ? time ? ", or \"0\": never" : ", or \"0\": none" : "",
             ok ? "" : time ? "; a whole number with s, m, h or d behind it, such as \"24h\"" : "; a whole number, with K, M, G or T behind it for powers of 1024, such as \"256M\"");
        return -1;
    }
    if (time)
        *(unsigned *)field = (unsigned)number;
    else
        *(uint64_t *)field = number;
    return 0;
}

static int group_check(cfg_t *cfg, const struct key *key, const char *value)
{
    errno = 0;
    struct group *gr = getgrnam(value);
    if (gr && gr->gr_gid != 0)
        return 0;
    if (gr)
        fail(cfg, "%s: \"%s\" is the group of root: its processes need no permission; wanted the group of the programs that read, such as \"mail\"", key->name, value);
    else if (errno == 0 || errno == ENOENT || errno == ESRCH)
        fail(cfg, "%s: there is no group \"%s\" on this machine; create it (addgroup --system), or name another", key->name, value);
    else
        fail(cfg, "%s: can't look up the group \"%s\": %s", key->name, value, strerror(errno));
    return -1;
}

/* Checks one value and puts it into the configuration. */
static int value_take(cfg_t *cfg, const struct key *key, const char *value)
{
    char *field = (char *)parse.config + key->offset;
    struct err err;
    char host[CONFIG_HOST_LEN], port[CONFIG_PORT_LEN], *end;
    unsigned long number;
    switch (key->kind) {
    case KIND_SIZE:
    case KIND_TIME:
        return scaled_take(cfg, key, value, field);
    case KIND_NUMBER:
    case KIND_MODE:
        errno = 0;
        number = strtoul(value, &end, key->kind == KIND_MODE ? 8 : 10);
        if (errno || *end || *value < '0' || *value > '9' || number < key->min || number > key->max) {
            if (key->kind == KIND_MODE)
                fail(cfg, "%s: \"%s\" is not a file mode; wanted an octal number such as \"0660\"", key->name, value);
            else
                fail(cfg, "%s: \"%s\" is not a number that is allowed here; wanted %" PRIu64 " to %" PRIu64, key->name, value, key->min, key->max);
            return -1;
        }
        if (key->kind == KIND_MODE)
            *(mode_t *)(void *)field = (mode_t)number;
        else
            *(unsigned *)(void *)field = (unsigned)number;
        return 0;
    case KIND_LEVEL:
        if (logger_level_parse(value) < 0) {
            fail(cfg, "%s: \"%s\" is no level; wanted error, warn, info or debug", key->name, value);
            return -1;
        }
        *(int *)(void *)field = logger_level_parse(value);
        return 0;
    case KIND_HOST_PORT:
        if (*value && config_host_port(value, host, port, &err) != 0) {
            fail(cfg, "%s: %s", key->name, err.text);
            return -1;
        }
        break;
    case KIND_NAME:
        if (!name_of_node_check(value) && (*value || key->required)) {
            fail(cfg, "%s: \"%s\" is no %s name; wanted 1 to 64 letters, digits, '.', '-' and '_'", key->name, value, key->offset == STR(site) ? "site" : "node");
            return -1;
        }
        break;
    case KIND_PATH:
    case KIND_SOCKET:
        if (*value && *value != '/') {
            fail(cfg, "%s: \"%s\" is not an absolute path; wanted one that starts with '/'", key->name, value);
            return -1;
        }
        if (key->kind == KIND_SOCKET && strlen(value) > 107) {
            fail(cfg, "%s: the path is longer than the 107 bytes that a Unix socket's address holds; wanted a shorter one", key->name);
            return -1;
        }
        break;
    case KIND_HOST:
        if (*value && !host_check(value)) {
            fail(cfg, "%s: \"%s\" is no host name; wanted letters, digits, '.' and '-', as in \"mupdate.example.org\"", key->name, value);
            return -1;
        }
        break;
    case KIND_YESNO:
        if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0) {
            fail(cfg, "%s: \"%s\" is neither \"yes\" nor \"no\"", key->name, value);
            return -1;
        }
        *(bool *)(void *)field = *value == 'y';
        return 0;
    case KIND_USER:
        errno = 0;
        if (*value && !getpwnam(value)) {
            if (errno == 0 || errno == ENOENT || errno == ESRCH)
                fail(cfg, "%s: there is no user \"%s\" on this machine; create it (adduser --system), or name another", key->name, value);
            else
                fail(cfg, "%s: can't look up the user \"%s\": %s", key->name, value, strerror(errno));
            return -1;
        }
        break;
    case KIND_GROUP:
        if (*value && group_check(cfg, key, value) != 0)
            return -1;
        break;
    case KIND_TEXT:
        break;
    }
    char **text = (char **)(void *)field;
    char *copy = strdup(value);
    if (!copy) {
        fail(cfg, "%s: out of memory", key->name);
        return -1;
    }
    free(*text);
    *text = copy;
    return 0;
}

static int on_key(cfg_t *cfg, cfg_opt_t *opt)
{
    for (size_t i = 0; i < KEYS_N; i++) {
        if (strcmp(keys[i].name, cfg_opt_name(opt)) != 0)
            continue;
        if (parse.seen[i]) {
            fail(cfg, "%s: given twice; keep one of the lines", keys[i].name);
            return -1;
        }
        parse.seen[i] = true;
        const char *value = cfg_opt_getnstr(opt, 0);
        return value_take(cfg, &keys[i], value ? value : "");
    }
    return -1;
}

static int on_role(cfg_t *cfg, cfg_opt_t *opt)
{
    const char *value = cfg_opt_getnstr(opt, 0);
    if (value && access_role_parse(value) >= 0)
        return 0;
    fail(cfg, "role: \"%s\" is no role; wanted \"read\", \"backend\" or \"admin\"", value ? value : "");
    return -1;
}

static int on_allow(cfg_t *cfg, cfg_opt_t *opt)
{
    cfg_t *sec = cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1);
    const char *who = cfg_title(sec), *role = cfg_getstr(sec, "role"), *server = cfg_getstr(sec, "server");
    char *end;
    bool ok = strcmp(who, "noauth:loopback") == 0;
    if (strncmp(who, "cert:", 5) == 0 || strncmp(who, "sasl:", 5) == 0) {
        ok = who[5] != '\0' && strlen(who) < IDENTITY_LEN_MAX;
    } else if (strncmp(who, "unix:", 5) == 0) {
        strtoul(who + 5, &end, 10);
        ok = strcmp(who + 5, "*") == 0 || (who[5] >= '0' && who[5] <= '9' && *end == '\0');
    }
    if (!ok) {
        fail(cfg, "allow \"%s\": no identity; wanted \"cert:NAME\", \"cert:*\", \"unix:UID\" (a number), \"unix:*\", \"sasl:USER\", \"sasl:*\" or \"noauth:loopback\"", who);
        return -1;
    }
    if (!role) {
        fail(cfg, "allow \"%s\": role is missing; wanted role = \"read\", \"backend\" or \"admin\"", who);
        return -1;
    }
    if (server && access_role_parse(role) != ACCESS_BACKEND) {
        fail(cfg, "allow \"%s\": server binds a backend; remove it, or make role \"backend\"", who);
        return -1;
    }
    if (server && (!*server || strlen(server) > SERVER_LEN_MAX)) {
        fail(cfg, "allow \"%s\": server: wanted 1 to %d bytes, as Cyrus' servername", who, SERVER_LEN_MAX);
        return -1;
    }
    struct config *c = parse.config;
    struct access_rule *rules = realloc(c->allow, (c->allow_n + 1) * sizeof *rules);
    if (!rules)
        goto no_memory;
    c->allow = rules;
    struct access_rule *rule = &rules[c->allow_n];
    rule->role = (enum access_role)access_role_parse(role);
    rule->who = strdup(who);
    rule->server = server ? strdup(server) : NULL;
    c->allow_n++;
    if (rule->who && (!server || rule->server))
        return 0;
no_memory:
    fail(cfg, "allow \"%s\": out of memory", who);
    return -1;
}

/* One entry of `sasl`: "NAME: VALUE", as it stands in a file of the SASL library's. */
static int on_sasl(cfg_t *cfg, cfg_opt_t *opt)
{
    static const char name_bytes[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    struct config *c = parse.config;
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    if (!value)
        value = "";
    size_t name_len = strspn(value, name_bytes);
    if (c->sasl_n && cfg_opt_size(opt) == c->sasl_n && strcmp(value, c->sasl[c->sasl_n - 1]) == 0)
        return 0; /* the list's end: libconfuse asks about the last one again */
    if (cfg_opt_size(opt) <= c->sasl_n) { /* it began anew */
        fail(cfg, "sasl: given twice; keep one list: sasl = { \"NAME: VALUE\", \"NAME: VALUE\" }");
        return -1;
    }
    if (name_len == 0 || value[name_len] != ':' || !value[name_len + 1 + strspn(value + name_len + 1, " \t")] || strpbrk(value, "\r\n")) {
        fail(cfg, "sasl: \"%.*s\" is no option of the SASL library; wanted \"NAME: VALUE\", such as \"pwcheck_method: saslauthd\"",
             (int)strcspn(value, ":\r\n"), value); /* not the value: it may be a password */
        return -1;
    }
    if (strncmp(value, "sasl_", 5) == 0) {
        fail(cfg, "sasl: \"%.*s\": in this list the names have no \"sasl_\" before them; wanted \"%.*s: ...\"", (int)name_len, value, (int)name_len - 5, value + 5);
        return -1;
    }
    for (size_t i = 0; i < c->sasl_n; i++)
        if (strncmp(c->sasl[i], value, name_len + 1) == 0) {
            fail(cfg, "sasl: \"%.*s\" is given twice; keep one of them", (int)name_len, value);
            return -1;
        }
    if (c->sasl_n == CONFIG_SASL_OPTIONS_MAX) {
        fail(cfg, "sasl: more than %d options", CONFIG_SASL_OPTIONS_MAX);
        return -1;
    }
    char **sasl = realloc(c->sasl, (c->sasl_n + 1) * sizeof *sasl);
    if (sasl) {
        c->sasl = sasl;
        if ((sasl[c->sasl_n] = strdup(value))) {
            c->sasl_n++;
            return 0;
        }
    }
    fail(cfg, "sasl: out of memory");
    return -1;
}

static int presets(struct config *c, cfg_t *cfg)
{
    for (size_t i = 0; i < KEYS_N; i++)
        if (keys[i].preset && value_take(cfg, &keys[i], keys[i].preset) != 0)
            return -1;
    for (size_t i = 0; i < KEYS_N; i++) {
        char **text = (char **)(void *)((char *)c + keys[i].offset);
        if (keys[i].kind <= KIND_GROUP && !*text && !(*text = strdup("")))
            return -1;
    }
    c->election_timeout_ms = ELECTION_TIMEOUT_MS;
    c->heartbeat_ms = HEARTBEAT_MS;
    c->space_reserve_len = SPACE_RESERVE_LEN;
    c->state_growth_len = STATE_GROWTH_LEN;
    c->scrub_interval_s = SCRUB_INTERVAL_S;
    c->events_kept = FEED_EVENTS_KEPT;
    c->log_keep_len = LOG_KEEP_LEN;
    return 0;
}

/* What no single key shows. */
static int whole_check(struct config *c, const char *path, struct err *err)
{
    for (size_t i = 0; i < KEYS_N; i++)
        if (keys[i].required && !parse.seen[i])
            return err_set(err, RAFTDIR_EINVAL, "%s: %s is missing; add a line %s = \"...\" (see raftdird.conf(5))", path, keys[i].name, keys[i].name);
    for (size_t i = 0; i < KEYS_N; i++)
        if (keys[i].required && !**(char **)(void *)((char *)c + keys[i].offset))
            return err_set(err, RAFTDIR_EINVAL, "%s: %s is empty; give it a value (see raftdird.conf(5))", path, keys[i].name);
    if (!*c->client_listen && !*c->client_socket)
        return err_set(err, RAFTDIR_EINVAL, "%s: neither client_listen nor client_socket is set: nobody could reach this node; set one or both", path);
    /* Two that share an address would each get some of the other's connections (SO_REUSEPORT). */
    const struct {
        const char *key, *value;
    } listens[] = {{"peer_listen", c->peer_listen}, {"client_listen", c->client_listen}, {"client_socket", c->client_socket}, {"mupdate_listen", c->mupdate_listen},
                   {"mupdate_tls_listen", c->mupdate_tls_listen}, {"mupdate_socket", c->mupdate_socket}};
    for (size_t i = 0; i < sizeof listens / sizeof *listens; i++)
        for (size_t k = 0; k < i; k++)
            if (*listens[i].value && strcmp(listens[i].value, listens[k].value) == 0)
                return err_set(err, RAFTDIR_EINVAL, "%s: %s and %s are both \"%s\"; each needs an address of its own", path, listens[k].key, listens[i].key, listens[i].value);
    if (c->heartbeat_ms * 2 > c->election_timeout_ms)
        return err_set(err, RAFTDIR_EINVAL,
                       "%s: heartbeat_ms %u is too long for election_timeout_ms %u; wanted at most half of it (a fifth is usual)", path,
                       c->heartbeat_ms, c->election_timeout_ms);
    struct {
        char **text;
        const char *from;
    } defaults[] = {{&c->peer_advertise, c->peer_listen}, {&c->client_advertise, c->client_listen}};
    for (size_t i = 0; i < 2; i++) {
        if (**defaults[i].text)
            continue;
        char *copy = strdup(defaults[i].from);
        if (!copy)
            return err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
        free(*defaults[i].text);
        *defaults[i].text = copy;
    }
    if (!*c->mupdate_hostname) {
        char name[CONFIG_HOST_LEN] = "";
        char *copy = gethostname(name, sizeof name - 1) == 0 && host_check(name) && *name ? strdup(name) : strdup("localhost");
        if (!copy)
            return err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
        free(c->mupdate_hostname);
        c->mupdate_hostname = copy;
    }
    static const char *const any[] = {"0.0.0.0:", "[::]:"};
    struct {
        const char *key, *value, *who;
    } reached[] = {{"peer_advertise", c->peer_advertise, "the other nodes"}, {"client_advertise", c->client_advertise, "clients"}};
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < 2; k++)
            if (strncmp(reached[i].value, any[k], strlen(any[k])) == 0)
                return err_set(err, RAFTDIR_EINVAL, "%s: %s is \"%s\", which nobody can connect to from elsewhere; set it to the address at which %s reach this node",
                               path, reached[i].key, reached[i].value, reached[i].who);
    return 0;
}

/* libconfuse 3.3 counts the lines of a comment three times, so comments are made blanks before it sees them: then its line numbers are right. */
static void comments_blank(char *text, size_t len)
{
    enum { CODE, STRING, LINE, BLOCK } in = CODE;
    char quote = 0;
    for (size_t i = 0; i < len; i++) {
        char next = i + 1 < len ? text[i + 1] : '\0';
        switch (in) {
        case CODE:
            if (text[i] == '"' || text[i] == '\'') {
                in = STRING;
                quote = text[i];
            } else if (text[i] == '#' || (text[i] == '/' && next == '/')) {
                in = LINE;
                text[i] = ' ';
            } else if (text[i] == '/' && next == '*') {
                in = BLOCK;
                text[i] = text[i + 1] = ' ';
                i++;
            }
            break;
        case STRING:
            if (text[i] == '\\')
                i++;
            else if (text[i] == quote)
                in = CODE;
            break;
        case LINE:
            if (text[i] == '\n')
                in = CODE;
            else
                text[i] = ' ';
            break;
        case BLOCK:
            if (text[i] == '*' && next == '/') {
                text[i] = text[i + 1] = ' ';
                i++;
                in = CODE;
            } else if (text[i] != '\n') {
                text[i] = ' ';
            }
            break;
        }
    }
}

/* The whole file without its comments, given, as a stream on *text_r. */
static FILE *file_open(const char *path, char **text_r, struct err *err)
{
    FILE *f = fopen(path, "re"), *clean = NULL;
    if (!f) {
        err_set(err, RAFTDIR_EINVAL, "%s: can't be read: %s; give the configuration file's path with -c", path, strerror(errno));
        return NULL;
    }
    size_t len = 0;
    char *text = malloc(FILE_LEN_MAX + 2);
    if (!text)
        err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
    else if ((len = fread(text, 1, FILE_LEN_MAX + 1, f)) > FILE_LEN_MAX)
        err_set(err, RAFTDIR_EINVAL, "%s: has more than %d bytes: is it a configuration file?", path, FILE_LEN_MAX);
    else if (ferror(f))
        err_set(err, RAFTDIR_EINVAL, "%s: can't be read: %s", path, strerror(errno));
    else if (memchr(text, '\0', len))
        err_set(err, RAFTDIR_EINVAL, "%s: has zero bytes: is it a configuration file?", path);
    else {
        text[len++] = '\n'; /* fmemopen takes no empty buffer */
        comments_blank(text, len);
        if (!(clean = fmemopen(text, len, "r")))
            err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
    }
    fclose(f);
    if (clean)
        *text_r = text;
    else
        free(text);
    return clean;
}

/* libconfuse takes a section that the end of the file cuts off for a whole one; what was cut off may have been a restriction. */
static int open_braces(FILE *f)
{
    int open = 0, quote = 0, c, before = 0;
    enum { CODE, LINE_COMMENT, BLOCK_COMMENT } in = CODE;
    rewind(f);
    for (; (c = getc(f)) != EOF; before = c) {
        if (in == LINE_COMMENT) {
            in = c == '\n' ? CODE : LINE_COMMENT;
        } else if (in == BLOCK_COMMENT) {
            in = before == '*' && c == '/' ? CODE : BLOCK_COMMENT;
        } else if (quote) {
            if (c == '\\')
                c = getc(f) == EOF ? EOF : 0;
            else if (c == quote)
                quote = 0;
        } else if (c == '"' || c == '\'') {
            quote = c;
        } else if (c == '#' || (before == '/' && c == '/')) {
            in = LINE_COMMENT;
        } else if (before == '/' && c == '*') {
            in = BLOCK_COMMENT;
            c = 0;
        } else {
            open += (c == '{') - (c == '}');
        }
    }
    return open;
}

int config_load(const char *path, struct config **config_r, struct err *err)
{
    cfg_opt_t allow[] = {CFG_STR("role", NULL, CFGF_NONE), CFG_STR("server", NULL, CFGF_NONE), CFG_END()};
    cfg_opt_t opts[KEYS_N + 3];
    memset(opts, 0, sizeof opts);
    for (size_t i = 0; i < KEYS_N; i++) {
        cfg_opt_t opt = CFG_STR(keys[i].name, NULL, CFGF_NONE);
        opts[i] = opt;
    }
    cfg_opt_t sec = CFG_SEC("allow", allow, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES);
    opts[KEYS_N] = sec;
    cfg_opt_t end = CFG_END();
    cfg_opt_t sasl = CFG_STR_LIST("sasl", NULL, CFGF_NONE);
    opts[KEYS_N + 1] = sasl;
    opts[KEYS_N + 2] = end;

    int rc;
    char *text;
    struct err none = {0};
    FILE *f = file_open(path, &text, err ? err : &none);
    if (!f)
        return err ? err->code : none.code;
    struct config *c = calloc(1, sizeof *c);
    cfg_t *cfg = cfg_init(opts, CFGF_NONE);
    if (!c || !cfg || !(cfg->filename = strdup(path))) {
        rc = err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
        goto out;
    }
    memset(&parse, 0, sizeof parse);
    parse.config = c;
    parse.err = err;
    cfg_set_error_function(cfg, on_error);
    for (size_t i = 0; i < KEYS_N; i++)
        cfg_set_validate_func(cfg, keys[i].name, on_key);
    cfg_set_validate_func(cfg, "allow", on_allow);
    cfg_set_validate_func(cfg, "allow|role", on_role);
    cfg_set_validate_func(cfg, "sasl", on_sasl);
    if (presets(c, cfg) != 0)
        rc = err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", path);
    else if (cfg_parse_fp(cfg, f) != CFG_SUCCESS || parse.failed)
        rc = parse.failed ? RAFTDIR_EINVAL : err_set(err, RAFTDIR_EINVAL, "%s: can't be parsed", path);
    else if (open_braces(f) > 0)
        rc = err_set(err, RAFTDIR_EINVAL, "%s:%d: the last section is not closed; wanted a line with \"}\"", path, cfg->line);
    else
        rc = whole_check(c, path, err);
out:
    fclose(f);
    free(text);
    if (cfg)
        cfg_free(cfg);
    if (rc == 0)
        *config_r = c;
    else
        config_destroy(&c);
    return rc;
}

void config_destroy(struct config **config)
{
    struct config *c = *config;
    *config = NULL;
    if (!c)
        return;
    for (size_t i = 0; i < KEYS_N; i++)
        if (keys[i].kind <= KIND_GROUP)
            free(*(char **)(void *)((char *)c + keys[i].offset));
    for (size_t i = 0; i < c->allow_n; i++) {
        free(c->allow[i].who);
        free(c->allow[i].server);
    }
    free(c->allow);
    for (size_t i = 0; i < c->sasl_n; i++)
        free(c->sasl[i]);
    free(c->sasl);
    free(c);
}
