/* mupdate_print.h - what is said in MUPDATE, into a buffer that grows. Pure. Strings are literals ("{n+}" CRLF bytes), texts for people quoted, as Cyrus' server sends them. */
#ifndef RAFTDIR_MUPDATE_PRINT_H
#define RAFTDIR_MUPDATE_PRINT_H
#include <stddef.h>
#include "mupdate_parse.h"
#include "store.h"

/* Zeroed: empty. The memory ends the process when there is none (mem.h). */
struct mupdate_out {
    char *p;
    size_t len, size;
};
void mupdate_out_free(struct mupdate_out *o);
void mupdate_print(struct mupdate_out *o, const char *s, size_t len);
/* tag SP word SP "text" CRLF: OK, NO, BAD, BYE. What can't be in a quoted string becomes a space; DQUOTE and "\" are escaped. */
void mupdate_print_answer(struct mupdate_out *o, const struct mupdate_word *tag, const char *word, const char *text);
/* tag MAILBOX name location acl / tag RESERVE name location, by m->state. The location is "server!partition". */
void mupdate_print_mailbox(struct mupdate_out *o, const struct mupdate_word *tag, const struct store_mailbox *m);
void mupdate_print_delete(struct mupdate_out *o, const struct mupdate_word *tag, const char *name);
/* A command of a client: tag verb string..., CRLF; strings as "{n+}" literals. */
void mupdate_print_command(struct mupdate_out *o, const char *tag, const char *verb, unsigned n, const struct mupdate_word *args);

#endif
