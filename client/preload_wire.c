/* preload_wire.c - one line of MUPDATE, as Cyrus' client writes it: atoms and {n+} literals, one space between them, CRLF at the end. */
#include <string.h>
#include "preload_internal.h"

#define LITERAL_DIGITS_MAX 9

/* The literal whose '{' is at *pos. Leaves *pos behind its last byte. */
static char *literal(char *text, size_t len, size_t *pos)
{
    size_t n = 0, i = *pos + 1, digits = 0;
    for (; i < len && text[i] >= '0' && text[i] <= '9'; i++, digits++) {
        if (digits == LITERAL_DIGITS_MAX)
            return NULL;
        n = n * 10 + (size_t)(text[i] - '0');
    }
    if (digits == 0 || len - i < 4 || memcmp(text + i, "+}\r\n", 4) != 0)
        return NULL;
    i += 4;
    if (len - i < n || memchr(text + i, 0, n))
        return NULL;
    *pos = i + n;
    return text + i;
}

int preload_split(char *text, size_t len, char *word[PRELOAD_WORDS_MAX])
{
    size_t pos = 0;
    int n = 0;
    while (pos < len) {
        if (n == PRELOAD_WORDS_MAX)
            return -1;
        if (text[pos] == '{') {
            if (!(word[n] = literal(text, len, &pos)))
                return -1;
        } else {
            size_t start = pos;
            while (pos < len && text[pos] != ' ' && text[pos] != '\r')
                if (!text[pos++])
                    return -1;
            if (pos == start)
                return -1;
            word[n] = text + start;
        }
        n++;
        if (len - pos >= 2 && text[pos] == '\r' && text[pos + 1] == '\n') {
            text[pos] = 0;
            return pos + 2 == len ? n : -1;
        }
        if (pos >= len || text[pos] != ' ')
            return -1;
        text[pos++] = 0;
    }
    return -1;
}
