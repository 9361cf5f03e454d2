/* mupdate_parse.h - lines of MUPDATE (RFC 3656, section 4 and 7) as words, for servers and clients. Pure.
 *
 *     line    = tag *(SP word) CRLF             a bare LF ends a line too, as Cyrus takes it; nothing at all: an empty line
 *     tag     = atom
 *     word    = atom / quoted / literal
 *     atom    = 1*(any but SP CR LF NUL), the first neither DQUOTE nor "{"
 *     quoted  = DQUOTE *(any but CR LF NUL; "\" before DQUOTE and "\") DQUOTE
 *     literal = "{" number ["+"] "}" CRLF *OCTET         any but NUL; without "+" the sender waits for a continuation first
 *
 * Works on a buffer that begins with the line and grows; what was looked at isn't looked at again. Nothing is allocated. */
#ifndef RAFTDIR_MUPDATE_PARSE_H
#define RAFTDIR_MUPDATE_PARSE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "err.h"
#include "limits.h"

struct mupdate_word {
    const char *s; /* in the buffer, not NUL-terminated, escapes removed in place */
    size_t len;
};
struct mupdate_line {
    unsigned n; /* 0: an empty line */
    struct mupdate_word word[MUPDATE_WORDS_MAX];
};
/* Zeroed for a new line; the limits stay. */
struct mupdate_parser {
    size_t line_len_max, literal_len_max, len_max; /* 0: the MUPDATE_*_MAX of limits.h */
    struct { /* the parser's own */
        unsigned state, fault, n;
        bool sync, response;
        size_t at, line_at, word_at, literal_left, literals_len;
        struct { size_t at, len; } word[MUPDATE_WORDS_MAX];
    } own;
};
enum mupdate_parsed {
    MUPDATE_MORE,     /* the line isn't whole yet */
    MUPDATE_GO_AHEAD, /* the sender waits for a continuation before it sends the literal. Told once a literal; call again at once, it may not have waited */
    MUPDATE_LINE,     /* *taken_r bytes were a line; the words live as long as the buffer stays */
    MUPDATE_BAD,      /* *taken_r bytes were something else, err says what: the next line may be good. line_r: the words before the fault, so that an answer can bear the tag */
    MUPDATE_FATAL,    /* too long, or its end can't be found: the connection must end */
};
/* `data`: everything from the line's first byte on; the same bytes as at the last call, and more. It may have moved. Written to where escapes are removed, and nowhere else.
 * A literal over the limit is refused when its length is read: BAD where the sender waits to be told to go ahead, else FATAL.
 * After LINE and BAD the parser is ready for the next line. err.code: RAFTDIR_EPROTO or RAFTDIR_ETOOBIG. */
enum mupdate_parsed mupdate_parse(struct mupdate_parser *p, char *data, size_t len, struct mupdate_line *line_r, size_t *taken_r, struct err *err);
/* A line that isn't words: a SASL response, base64 or "*", as long as a literal may be. One literal or quoted string in place of it is taken too. */
enum mupdate_parsed mupdate_parse_response(struct mupdate_parser *p, char *data, size_t len, struct mupdate_word *word_r, size_t *taken_r, struct err *err);

bool mupdate_word_is(const struct mupdate_word *w, const char *text); /* without regard to the case of ASCII letters, as verbs are */
/* "server!partition" into its parts, views of `w`. An empty partition is allowed; no server, no "!" or two aren't: RAFTDIR_EINVAL. */
struct mupdate_location {
    const char *server, *partition;
    size_t server_len, partition_len;
};
int mupdate_location_parse(const struct mupdate_word *w, struct mupdate_location *l_r, struct err *err);

#endif
