/* fuzz_name.c - mailbox names: whatever comes in is refused with a text or survives every way through the module.
 *
 * The input is split at its first newline: a name (or user), and a pattern. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/name.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nl = memchr(data, '\n', size);
    size_t len = nl ? (size_t)(nl - data) : size;
    /* Exactly sized copies, so that a read past an end is seen. */
    char *name = malloc(len + 1), *pattern = malloc(size - len + 1);
    MUST(name && pattern);
    memcpy(name, data, len);
    name[len] = '\0';
    size_t pattern_len = nl ? size - len - 1 : 0;
    memcpy(pattern, nl ? nl + 1 : data, pattern_len);
    pattern[pattern_len] = '\0';

    struct err err = {0};
    int rc = name_check(name, len, &err);
    if (rc) {
        MUST(rc == RAFTDIR_ENAME || rc == RAFTDIR_ETOOBIG);
        MUST(err.code == rc && err.text[0]);
    } else {
        MUST(strlen(name) == len && len <= DELETED_NAME_LEN_MAX);
        uint8_t key[NAME_KEY_LEN_MAX];
        char back[NAME_KEY_LEN_MAX + 1], user[NAME_LEN_MAX + 1];
        size_t key_len = name_to_key(name, len, key);
        MUST(key_len == len);
        MUST(name_from_key(key, key_len, back) == len && strcmp(back, name) == 0);
        MUST(name_is_within(name, len, "", 0) && name_is_within(name, len, name, len));
        MUST(name_domain_len(name, len) <= len);
        MUST(name_match("*", name, len) && name_match(name, name, len));
        if (name_owner(name, len, user)) {
            char inbox[NAME_LEN_MAX + 1];
            if (name_of_user(user, inbox, NULL) == 0)
                MUST(name_check(inbox, strlen(inbox), NULL) == 0);
        }
        size_t literal = name_pattern_literal(pattern);
        MUST(literal <= strlen(pattern));
        if (name_match(pattern, name, len))
            MUST(literal <= len && memcmp(pattern, name, literal) == 0);
    }
    char inbox[NAME_LEN_MAX + 1], user[NAME_LEN_MAX + 1];
    if (name_of_user(name, inbox, &err) == 0) {
        MUST(name_check(inbox, strlen(inbox), NULL) == 0);
        MUST(name_owner(inbox, strlen(inbox), user));
        char again[NAME_LEN_MAX + 1];
        MUST(name_of_user(user, again, NULL) == 0 && strcmp(again, inbox) == 0);
    }
    free(name);
    free(pattern);
    return 0;
}
