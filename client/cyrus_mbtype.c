/* cyrus_mbtype.c - see cyrus_mbtype.h. From imap/mboxlist.h of Cyrus 2.3 to 3.4, and 3.6 to 3.10; the order of the flags is
 * that of mboxlist_mbtype_to_string(). */
#include "cyrus_mbtype.h"
#include <stddef.h>
#include <string.h>

struct letter {
    char letter;
    uint32_t number;
};
static const struct letter old_kinds[] = {{'n', 1 << 2}, {'c', 1 << 5}, {'a', 1 << 6}, {'b', 1 << 7}, {'s', 1 << 9}, {'p', 1 << 10}};
static const struct letter old_flags[] = {{'d', 1 << 4}, {'m', 1 << 3}, {'r', 1 << 0}, {'z', 1 << 1}, {'i', 1 << 8}};
static const struct letter new_kinds[] = {{'e', 0}, {'n', 1}, {'s', 2}, {'p', 3}, {'j', 4}, {'f', 5}, {'b', 8}, {'c', 9}, {'a', 10}};
static const struct letter new_flags[] = {{'d', 1 << 7}, {'m', 1 << 6}, {'r', 1 << 4}, {'z', 1 << 5}, {'i', 1 << 8}, {'l', 1 << 9}};
#define COUNT(a) (sizeof(a) / sizeof *(a))

bool cyrus_mbtype_from_old(uint32_t number, char *buf_r)
{
    char *p = buf_r;
    *p++ = 'e';
    for (size_t i = 0; i < COUNT(old_kinds); i++) {
        if (number & old_kinds[i].number) {
            if (buf_r[0] != 'e')
                return false;
            buf_r[0] = old_kinds[i].letter;
            number &= ~old_kinds[i].number;
        }
    }
    for (size_t i = 0; i < COUNT(old_flags); i++) {
        if (number & old_flags[i].number)
            *p++ = old_flags[i].letter;
        number &= ~old_flags[i].number;
    }
    *p = '\0';
    return number == 0;
}

bool cyrus_mbtype_from_new(uint32_t number, char *buf_r)
{
    char *p = buf_r;
    for (size_t i = 0; i < COUNT(new_kinds); i++) {
        if ((number & 0xF) == new_kinds[i].number)
            *p++ = new_kinds[i].letter;
    }
    if (p == buf_r)
        return false;
    number &= ~0xFu;
    for (size_t i = 0; i < COUNT(new_flags); i++) {
        if (number & new_flags[i].number)
            *p++ = new_flags[i].letter;
        number &= ~new_flags[i].number;
    }
    *p = '\0';
    return number == 0;
}

bool cyrus_mbtype_to_new(const char *letters, uint32_t *number_r)
{
    uint32_t number = 0;
    for (size_t k = 0; k < COUNT(new_kinds); k++) {
        if (*letters && *letters == new_kinds[k].letter) {
            number = new_kinds[k].number;
            letters++;
            break;
        }
    }
    for (; *letters; letters++) {
        size_t i = 0;
        while (i < COUNT(new_flags) && new_flags[i].letter != *letters)
            i++;
        if (i == COUNT(new_flags))
            return false;
        number |= new_flags[i].number;
    }
    *number_r = number;
    return true;
}

bool cyrus_mbtype_has(const char *letters, char flag)
{
    return strchr(letters, flag) != NULL;
}
