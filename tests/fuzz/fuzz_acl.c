/* fuzz_acl.c - ACLs: the input is "identifier NL rights NL acl", where acl_modify has to agree with acl_eval. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/acl.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *line(const uint8_t **data, size_t *size)
{
    const uint8_t *nl = memchr(*data, '\n', *size);
    size_t len = nl ? (size_t)(nl - *data) : *size;
    char *s = malloc(len + 1);
    MUST(s);
    memcpy(s, *data, len);
    s[len] = '\0';
    *data += nl ? len + 1 : len;
    *size -= nl ? len + 1 : len;
    return s;
}

/* What the definition says, entry by entry. */
static acl_rights brute_force(const char *acl, size_t len, const char *principal, size_t principal_len)
{
    acl_rights positive = 0, negative = 0;
    struct acl_entry e;
    size_t pos = 0;
    char id[IDENTIFIER_LEN_MAX];
    while (acl_next(acl, len, &pos, &e, NULL) == 1) {
        size_t id_len = acl_principal(e.id, e.id_len, id);
        int mine = (id_len == principal_len && id_len && memcmp(id, principal, id_len) == 0) || (e.id_len == 6 && memcmp(e.id, "anyone", 6) == 0);
        if (mine && e.negative)
            negative |= e.rights;
        else if (mine)
            positive |= e.rights;
    }
    return positive & ~negative;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *id = line(&data, &size), *rights = line(&data, &size);
    char *acl = malloc(size ? size : 1);
    MUST(acl);
    memcpy(acl, data, size);

    struct err err = {0};
    struct acl_subject who = {.user = id};
    int rc = acl_check(acl, size, &err);
    if (rc) {
        MUST((rc == RAFTDIR_EACL || rc == RAFTDIR_ETOOBIG) && err.text[0]);
        (void)acl_eval(acl, size, &who); /* may grant what its well-formed entries say; must not read beyond it */
    } else {
        char principal[IDENTIFIER_LEN_MAX];
        size_t n = acl_principal(id, strlen(id), principal);
        if (strncmp(id, "group:", 6) != 0 && id[0] != '-' && n)
            MUST(acl_eval(acl, size, &who) == brute_force(acl, size, principal, n));
        char *changed = malloc(ACL_LEN_MAX);
        MUST(changed);
        size_t changed_len = 0;
        rc = acl_modify(acl, size, id, rights, changed, ACL_LEN_MAX, &changed_len, &err);
        if (rc == 0) {
            MUST(changed_len <= ACL_LEN_MAX);
            MUST(acl_check(changed, changed_len, &err) == 0);
            /* Doing it again changes nothing. */
            char *again = malloc(ACL_LEN_MAX);
            size_t again_len = 0;
            MUST(again);
            MUST(acl_modify(changed, changed_len, id, rights, again, ACL_LEN_MAX, &again_len, &err) == 0);
            MUST(again_len == changed_len && memcmp(again, changed, again_len) == 0);
            free(again);
        } else {
            MUST(rc == RAFTDIR_EACL || rc == RAFTDIR_ETOOBIG || rc == RAFTDIR_EINVAL);
        }
        free(changed);
    }
    acl_rights r;
    if (acl_rights_parse(rights, strlen(rights), &r, &err) == 0) {
        char text[33];
        acl_rights back;
        size_t n = acl_rights_format(r, text);
        MUST(n < sizeof text && acl_rights_parse(text, n, &back, &err) == 0 && back == r);
    }
    free(acl);
    free(id);
    free(rights);
    return 0;
}
