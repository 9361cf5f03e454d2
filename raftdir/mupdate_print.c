/* mupdate_print.c - see mupdate_print.h. A row is measured, has its room made once, and is copied: a million of them are a part of what one UPDATE sends. */
#include "mupdate_print.h"
#include <stdlib.h>
#include <string.h>
#include "mem.h"

#define OUT_LEN_MIN 4096
#define LITERAL_HEAD_MAX 25 /* "{", 20 digits, "+}", CRLF */

void mupdate_out_free(struct mupdate_out *o)
{
    free(o->p);
    *o = (struct mupdate_out){0};
}

/* Room for so many bytes; where they begin. */
static char *room(struct mupdate_out *o, size_t len)
{
    if (o->size - o->len < len) {
        size_t size = o->size ? o->size : OUT_LEN_MIN;
        while (size - o->len < len)
            size *= 2;
        o->p = mem_realloc(o->p, size);
        o->size = size;
    }
    return o->p + o->len;
}

static char *put(char *to, const char *s, size_t len)
{
    if (len) /* s may be NULL */
        memcpy(to, s, len);
    return to + len;
}

static char *put_head(char *to, size_t len)
{
    char digits[20], *d = digits + sizeof digits;
    do
        *--d = (char)('0' + len % 10);
    while (len /= 10);
    *to++ = '{';
    to = put(to, d, (size_t)(digits + sizeof digits - d));
    return put(to, "+}\r\n", 4);
}

static char *put_literal(char *to, const char *s, size_t len)
{
    return put(put_head(to, len), s, len);
}

static void end(struct mupdate_out *o, char *to)
{
    to = put(to, "\r\n", 2);
    o->len = (size_t)(to - o->p);
}

void mupdate_print(struct mupdate_out *o, const char *s, size_t len)
{
    put(room(o, len), s, len);
    o->len += len;
}

void mupdate_print_answer(struct mupdate_out *o, const struct mupdate_word *tag, const char *word, const char *text)
{
    size_t word_len = strlen(word), text_len = strlen(text);
    char *to = room(o, tag->len + word_len + 2 * text_len + 6);
    to = put(to, tag->s, tag->len);
    *to++ = ' ';
    to = put(to, word, word_len);
    to = put(to, " \"", 2);
    for (const char *p = text; *p; p++) {
        if (*p == '"' || *p == '\\')
            *to++ = '\\';
        *to++ = *p == '\r' || *p == '\n' ? ' ' : *p;
    }
    *to++ = '"';
    end(o, to);
}

void mupdate_print_mailbox(struct mupdate_out *o, const struct mupdate_word *tag, const struct store_mailbox *m)
{
    bool active = m->state == STORE_ACTIVE;
    /* The location's length stands before its two parts. */
    char *to = room(o, tag->len + 9 + m->name_len + m->server.len + 1 + m->partition.len + (active ? m->acl.len : 0) + 3 * LITERAL_HEAD_MAX + 4);
    to = put(to, tag->s, tag->len);
    to = active ? put(to, " MAILBOX ", 9) : put(to, " RESERVE ", 9);
    to = put_literal(to, m->name, m->name_len);
    *to++ = ' ';
    to = put_head(to, m->server.len + 1 + m->partition.len);
    to = put(to, m->server.s, m->server.len);
    *to++ = '!';
    to = put(to, m->partition.s, m->partition.len);
    if (active) {
        *to++ = ' ';
        to = put_literal(to, m->acl.s, m->acl.len);
    }
    end(o, to);
}

void mupdate_print_delete(struct mupdate_out *o, const struct mupdate_word *tag, const char *name)
{
    size_t len = strlen(name);
    char *to = room(o, tag->len + 8 + len + LITERAL_HEAD_MAX + 2);
    to = put(to, tag->s, tag->len);
    to = put(to, " DELETE ", 8);
    end(o, put_literal(to, name, len));
}

void mupdate_print_command(struct mupdate_out *o, const char *tag, const char *verb, unsigned n, const struct mupdate_word *args)
{
    size_t tag_len = strlen(tag), verb_len = strlen(verb), len = tag_len + verb_len + 3;
    for (unsigned i = 0; i < n; i++)
        len += 1 + LITERAL_HEAD_MAX + args[i].len;
    char *to = room(o, len);
    to = put(to, tag, tag_len);
    *to++ = ' ';
    to = put(to, verb, verb_len);
    for (unsigned i = 0; i < n; i++) {
        *to++ = ' ';
        to = put_literal(to, args[i].s, args[i].len);
    }
    end(o, to);
}
