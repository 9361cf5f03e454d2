/* store_ask.c - questions as clients ask them: the arguments are checked, then the store is read. One place, so that a node and a local reader of its state answer alike. */
#include <string.h>
#include "name.h"
#include "store.h"

static bool has_control(const char *s, size_t len)
{
    bool found = false;
    for (size_t i = 0; i < len; i++)
        found |= (unsigned char)s[i] < 0x20;
    return found;
}

/* Names that are there are legal ones, so what is found needn't be checked: that would be a tenth of a lookup. Only control characters could be taken for separators (name_to_key). */
static int ask_name(struct store_txn *txn, const char *name, struct store_mailbox *m, struct err *err)
{
    size_t len = strlen(name);
    int rc = RAFTDIR_ENOTFOUND, illegal;
    bool tried = len <= NAME_KEY_LEN_MAX && !has_control(name, len);
    if (tried && (rc = store_lookup(txn, name, len, m, err)) != RAFTDIR_ENOTFOUND)
        return rc;
    illegal = name_check(name, len, err);
    if (illegal)
        return illegal;
    return tried ? rc : store_lookup(txn, name, len, m, err);
}

int store_ask(struct store_txn *txn, enum store_by by, const char *key, struct store_mailbox *m, struct err *err)
{
    char name[NAME_LEN_MAX + 1];
    int rc;
    switch (by) {
    case STORE_BY_NAME:
        return ask_name(txn, key, m, err);
    case STORE_BY_UNIQUEID:
        if (strlen(key) > UNIQUEID_LEN_MAX)
            return err_set(err, RAFTDIR_ETOOBIG, "the uniqueid is longer than %d bytes", UNIQUEID_LEN_MAX);
        return store_lookup_uniqueid(txn, key, strlen(key), m, err);
    case STORE_BY_USER:
        if ((rc = name_of_user(key, name, err)) != 0)
            return rc;
        return store_lookup(txn, name, strlen(name), m, err);
    }
    return err_set(err, RAFTDIR_EINVAL, "lookup by what? name, uniqueid or user");
}

static int groups_check(const struct acl_subject *who, struct err *err)
{
    return who->groups_n > USER_GROUPS_MAX ? err_set(err, RAFTDIR_ETOOBIG, "%zu groups; at most %d are allowed", who->groups_n, USER_GROUPS_MAX) : 0;
}

int store_ask_rights(struct store_txn *txn, const char *name, const struct acl_subject *who, struct store_mailbox *m, acl_rights *rights_r, struct err *err)
{
    int rc = groups_check(who, err);
    if (rc == 0)
        rc = store_ask(txn, STORE_BY_NAME, name, m, err);
    if (rc == 0)
        *rights_r = acl_eval(m->acl.s, m->acl.len, who);
    return rc;
}

static int text_check(const char *what, const char *s, size_t max, struct err *err)
{
    return s && strlen(s) > max ? err_set(err, RAFTDIR_ETOOBIG, "%s is longer than %zu bytes", what, max) : 0;
}

static const char *or_null(const char *s)
{
    return s && *s ? s : NULL;
}

int store_ask_list(const struct store_filter *filter, const char *after, struct store_scan **scan_r, struct err *err)
{
    int rc;
    if ((rc = text_check("prefix", filter->prefix, NAME_KEY_LEN_MAX, err)) != 0 || (rc = text_check("pattern", filter->pattern, 2 * NAME_KEY_LEN_MAX, err)) != 0 ||
        (rc = text_check("server", filter->server, SERVER_LEN_MAX, err)) != 0 || (rc = text_check("partition", filter->partition, PARTITION_LEN_MAX, err)) != 0 ||
        (rc = text_check("after", after, NAME_KEY_LEN_MAX, err)) != 0)
        return rc;
    return store_list_begin(filter, or_null(after), scan_r, err);
}

int store_ask_visible(const struct acl_subject *who, const char *letters, const char *pattern, const char *after, struct store_scan **scan_r, struct err *err)
{
    int rc;
    acl_rights rights;
    if ((rc = text_check("user", who->user, IDENTIFIER_LEN_MAX, err)) != 0 || (rc = text_check("pattern", pattern, 2 * NAME_KEY_LEN_MAX, err)) != 0 ||
        (rc = text_check("after", after, NAME_KEY_LEN_MAX, err)) != 0 || (rc = groups_check(who, err)) != 0)
        return rc;
    for (size_t i = 0; i < who->groups_n; i++)
        if ((rc = text_check("group", who->groups[i], IDENTIFIER_LEN_MAX, err)) != 0)
            return rc;
    if (!or_null(letters))
        letters = "l";
    if ((rc = acl_rights_parse(letters, strlen(letters), &rights, err)) != 0)
        return rc;
    return store_visible_begin(who, rights, or_null(pattern) ? pattern : "*", or_null(after), scan_r, err);
}
