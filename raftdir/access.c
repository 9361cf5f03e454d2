/* access.c - see access.h. */
#include "access.h"
#include <stdio.h>
#include <string.h>

static const char *const role_names[] = {"none", "read", "backend", "admin"};

const char *access_role_name(enum access_role role)
{
    return role_names[role];
}

int access_role_parse(const char *s)
{
    for (int i = ACCESS_READ; i <= ACCESS_ADMIN; i++)
        if (strcmp(s, role_names[i]) == 0)
            return i;
    return -1;
}

static const struct access_rule *rule_find(const struct access_rule *rules, size_t n, const char *who)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(rules[i].who, who) == 0)
            return &rules[i];
    return NULL;
}

static void rule_use(const struct access_rule *rule, struct access *access_r)
{
    access_r->role = rule->role;
    snprintf(access_r->server, sizeof access_r->server, "%s", rule->server ? rule->server : "");
}

void access_of_uid(const struct access_rule *rules, size_t n, uid_t uid, uid_t own_uid, struct access *access_r)
{
    memset(access_r, 0, sizeof *access_r);
    snprintf(access_r->identity, sizeof access_r->identity, "unix:%lu", (unsigned long)uid);
    const struct access_rule *rule = rule_find(rules, n, access_r->identity);
    if (!rule)
        rule = rule_find(rules, n, "unix:*");
    if (rule) {
        rule_use(rule, access_r);
        return;
    }
    /* Any unix: section says that the site has decided for itself who comes in this way. */
    for (size_t i = 0; i < n; i++)
        if (strncmp(rules[i].who, "unix:", 5) == 0)
            return;
    access_r->role = uid == 0 || uid == own_uid ? ACCESS_ADMIN : ACCESS_READ;
}

/* "prefix:name", with "prefix:*" for those without a rule of their own. */
static int access_of(const struct access_rule *rules, size_t n, const char *prefix, const char *name, const char *what, struct access *access_r, struct err *err)
{
    char all[16];
    memset(access_r, 0, sizeof *access_r);
    int len = snprintf(access_r->identity, sizeof access_r->identity, "%s:%s", prefix, name);
    if (len < 0 || (size_t)len >= sizeof access_r->identity)
        return err_set(err, RAFTDIR_ETOOBIG, "the %s's name is longer than %zu bytes", what, sizeof access_r->identity - strlen(prefix) - 2);
    const struct access_rule *rule = rule_find(rules, n, access_r->identity);
    snprintf(all, sizeof all, "%s:*", prefix);
    if (!rule)
        rule = rule_find(rules, n, all);
    if (rule)
        rule_use(rule, access_r);
    return 0;
}

int access_of_cert(const struct access_rule *rules, size_t n, const char *cert_name, struct access *access_r, struct err *err)
{
    return access_of(rules, n, "cert", cert_name, "certificate", access_r, err);
}

int access_of_sasl(const struct access_rule *rules, size_t n, const char *user, struct access *access_r, struct err *err)
{
    return access_of(rules, n, "sasl", user, "user", access_r, err);
}

void access_of_noauth(const struct access_rule *rules, size_t n, struct access *access_r)
{
    memset(access_r, 0, sizeof *access_r);
    snprintf(access_r->identity, sizeof access_r->identity, "noauth:loopback");
    const struct access_rule *rule = rule_find(rules, n, access_r->identity);
    if (rule)
        rule_use(rule, access_r);
}
