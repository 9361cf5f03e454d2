/* mupdate_parse.c - see mupdate_parse.h. A state machine over bytes that never goes back: what a line is doesn't depend on the pieces that it comes in.
 *
 * Faults are of two kinds. After most of them the line's structure is still known (a NUL, too many words, an empty word): it is read to its end and is BAD as a whole, so that
 * nothing of it is ever taken for a command. Where the structure is lost (text behind a closing quote), everything up to the next LF is skipped; if that could be the head of a
 * literal, nobody can say where the next command begins, and the line is FATAL.
 *
 * Escapes are removed when a quoted string ends, within its own bytes. */
#include "mupdate_parse.h"
#include <string.h>

enum state {
    AT_WORD, /* the first byte of a word */
    IN_ATOM,
    IN_QUOTED,
    ESCAPED,
    IN_SIZE, /* "{" was read */
    AFTER_PLUS,
    AFTER_BRACE,
    AT_LITERAL_LF,
    IN_LITERAL,
    AFTER_WORD, /* behind a quoted string or literal */
    AT_LF,
    SKIPPING
};

enum fault { NO_FAULT, FAULT_EMPTY_WORD, FAULT_NUL, FAULT_ESCAPE, FAULT_WORDS, FAULT_TAG, FAULT_CR, FAULT_AFTER, FAULT_LITERAL, FAULT_QUOTE, FAULT_LINE_LEN, FAULT_LITERAL_LEN, FAULT_LEN };

static size_t limit(size_t wanted, size_t standard)
{
    return wanted ? wanted : standard;
}

static int fault_set(const struct mupdate_parser *p, struct err *err)
{
    switch ((enum fault)p->own.fault) {
    case FAULT_EMPTY_WORD: return err_set(err, RAFTDIR_EPROTO, "an empty word: one space between words, none at the end");
    case FAULT_NUL:        return err_set(err, RAFTDIR_EPROTO, "a NUL in it");
    case FAULT_ESCAPE:     return err_set(err, RAFTDIR_EPROTO, "a backslash in a quoted string before something else than a quote or a backslash");
    case FAULT_WORDS:      return err_set(err, RAFTDIR_ETOOBIG, "more than %u words", (unsigned)MUPDATE_WORDS_MAX);
    case FAULT_TAG:        return err_set(err, RAFTDIR_EPROTO, "the tag is not an atom");
    case FAULT_CR:         return err_set(err, RAFTDIR_EPROTO, "a CR without its LF");
    case FAULT_AFTER:      return err_set(err, RAFTDIR_EPROTO, "no space behind a quoted string or literal");
    case FAULT_LITERAL:    return err_set(err, RAFTDIR_EPROTO, "a malformed literal");
    case FAULT_QUOTE:      return err_set(err, RAFTDIR_EPROTO, "a quoted string without an end");
    case FAULT_LINE_LEN:   return err_set(err, RAFTDIR_ETOOBIG, "a line longer than %zu bytes", limit(p->line_len_max, MUPDATE_LINE_LEN_MAX));
    case FAULT_LITERAL_LEN:
        return err_set(err, RAFTDIR_ETOOBIG, "a literal or response longer than %zu bytes", limit(p->literal_len_max, MUPDATE_LITERAL_LEN_MAX));
    case FAULT_LEN:        return err_set(err, RAFTDIR_ETOOBIG, "a command longer than %zu bytes", limit(p->len_max, MUPDATE_COMMAND_LEN_MAX));
    case NO_FAULT:         break;
    }
    return 0;
}

static void fault(struct mupdate_parser *p, enum fault f)
{
    if (!p->own.fault)
        p->own.fault = f;
}

static void word_end(struct mupdate_parser *p, size_t at, size_t len)
{
    if (!p->own.fault && p->own.n == MUPDATE_WORDS_MAX)
        fault(p, FAULT_WORDS);
    if (p->own.fault)
        return;
    p->own.word[p->own.n].at = at;
    p->own.word[p->own.n++].len = len;
}

/* The length without the escapes. */
static size_t unescape(char *s, size_t len)
{
    char *from = memchr(s, '\\', len), *to = from, *end = s + len;
    if (!from)
        return len;
    while (from < end) {
        if (*from == '\\' && from + 1 < end)
            from++;
        *to++ = *from++;
    }
    return (size_t)(to - s);
}

/* Could what stands before an LF be the head of a literal that the sender doesn't wait for? Looks at the last line only. */
static bool may_be_literal(const char *s, size_t len)
{
    const char *p = s + len;
    if (p > s && p[-1] == '\r')
        p--;
    if (p - s < 4 || p[-1] != '}' || p[-2] != '+' || p[-3] < '0' || p[-3] > '9')
        return false;
    for (p -= 2; p > s && p[-1] >= '0' && p[-1] <= '9'; p--)
        ;
    return p > s && p[-1] == '{';
}

static void restart(struct mupdate_parser *p)
{
    p->own.state = AT_WORD;
    p->own.fault = NO_FAULT;
    p->own.n = 0;
    p->own.sync = p->own.response = false;
    p->own.at = p->own.line_at = p->own.word_at = p->own.literal_left = p->own.literals_len = 0;
}

/* The line's end was read: own.at is behind it. */
static enum mupdate_parsed finish(struct mupdate_parser *p, char *data, struct mupdate_line *line_r, size_t *taken_r, struct err *err)
{
    line_r->n = p->own.n;
    for (unsigned i = 0; i < p->own.n; i++) {
        line_r->word[i].s = data + p->own.word[i].at;
        line_r->word[i].len = p->own.word[i].len;
    }
    *taken_r = p->own.at;
    int rc = fault_set(p, err);
    restart(p);
    return rc ? MUPDATE_BAD : MUPDATE_LINE;
}

/* The head of a literal is read. MORE: its bytes come next. */
static enum mupdate_parsed literal_begin(struct mupdate_parser *p, char *data, struct mupdate_line *line_r, size_t *taken_r, struct err *err)
{
    size_t literal_max = limit(p->literal_len_max, MUPDATE_LITERAL_LEN_MAX), len_max = limit(p->len_max, MUPDATE_COMMAND_LEN_MAX), n = p->own.literal_left;
    bool too_long = n > literal_max || p->own.at > len_max || n > len_max - p->own.at;
    if (too_long && !p->own.fault)
        fault(p, n > literal_max ? FAULT_LITERAL_LEN : FAULT_LEN);
    if (too_long && !p->own.sync) {
        fault_set(p, err);
        return MUPDATE_FATAL;
    }
    if (p->own.fault && p->own.sync) /* the sender hasn't sent it, and won't: the answer comes in place of the go-ahead */
        return finish(p, data, line_r, taken_r, err);
    p->own.literals_len += n;
    p->own.word_at = p->own.at;
    p->own.state = IN_LITERAL;
    return p->own.sync ? MUPDATE_GO_AHEAD : MUPDATE_MORE;
}

static enum mupdate_parsed words(struct mupdate_parser *p, char *data, size_t len, struct mupdate_line *line_r, size_t *taken_r, struct err *err)
{
    size_t line_max = limit(p->line_len_max, MUPDATE_LINE_LEN_MAX), len_max = limit(p->len_max, MUPDATE_COMMAND_LEN_MAX);
    for (;;) {
        if (p->own.state == IN_LITERAL) {
            size_t n = len - p->own.at < p->own.literal_left ? len - p->own.at : p->own.literal_left;
            if (n && memchr(data + p->own.at, 0, n))
                fault(p, FAULT_NUL);
            p->own.at += n;
            p->own.literal_left -= n;
            if (p->own.literal_left)
                return MUPDATE_MORE;
            word_end(p, p->own.word_at, p->own.at - p->own.word_at);
            p->own.line_at = p->own.at;
            p->own.state = AFTER_WORD;
        }
        if (p->own.at == len)
            return MUPDATE_MORE;
        if (p->own.at - p->own.literals_len >= line_max || p->own.at >= len_max) {
            p->own.fault = p->own.at >= len_max ? FAULT_LEN : FAULT_LINE_LEN;
            fault_set(p, err);
            return MUPDATE_FATAL;
        }
        size_t at = p->own.at++;
        char c = data[at];
        switch ((enum state)p->own.state) {
        case AT_WORD:
            p->own.word_at = at;
            if (c == ' ' || ((c == '\r' || c == '\n') && at)) {
                fault(p, FAULT_EMPTY_WORD);
                p->own.word_at = at + 1;
            }
            if (c == '\n')
                return finish(p, data, line_r, taken_r, err);
            if (c == '\r')
                p->own.state = AT_LF;
            else if (c == '"' || c == '{') {
                if (!at && !p->own.response)
                    fault(p, FAULT_TAG);
                p->own.state = c == '"' ? IN_QUOTED : IN_SIZE;
                p->own.sync = true;
            } else if (c != ' ') {
                p->own.state = IN_ATOM;
                if (!c)
                    fault(p, FAULT_NUL);
            }
            break;
        case IN_ATOM:
            if (c == ' ' || c == '\r' || c == '\n')
                word_end(p, p->own.word_at, at - p->own.word_at);
            if (c == '\n')
                return finish(p, data, line_r, taken_r, err);
            if (c == ' ')
                p->own.state = AT_WORD;
            else if (c == '\r')
                p->own.state = AT_LF;
            else if (!c)
                fault(p, FAULT_NUL);
            break;
        case IN_QUOTED:
        case ESCAPED:
            if (c == '\r' || c == '\n') {
                fault(p, FAULT_QUOTE);
                p->own.state = SKIPPING;
                p->own.at = at; /* the end of the line is looked at there */
            } else if (p->own.state == ESCAPED) {
                if (c != '"' && c != '\\')
                    fault(p, c ? FAULT_ESCAPE : FAULT_NUL);
                p->own.state = IN_QUOTED;
            } else if (c == '\\') {
                p->own.state = ESCAPED;
            } else if (c == '"') {
                size_t begin = p->own.word_at + 1;
                word_end(p, begin, p->own.fault ? 0 : unescape(data + begin, at - begin));
                p->own.state = AFTER_WORD;
            } else if (!c)
                fault(p, FAULT_NUL);
            break;
        case IN_SIZE:
            if (c >= '0' && c <= '9') {
                p->own.literal_left = p->own.literal_left > SIZE_MAX / 16 ? p->own.literal_left : p->own.literal_left * 10 + (size_t)(c - '0');
                break;
            }
            if (at - p->own.word_at < 2 || (c != '+' && c != '}'))
                goto malformed_literal;
            p->own.sync = c == '}';
            p->own.state = c == '+' ? AFTER_PLUS : AFTER_BRACE;
            break;
        case AFTER_PLUS:
            if (c != '}')
                goto malformed_literal;
            p->own.state = AFTER_BRACE;
            break;
        case AFTER_BRACE:
        case AT_LITERAL_LF:
            if (c == '\n') {
                enum mupdate_parsed rc = literal_begin(p, data, line_r, taken_r, err);
                if (rc != MUPDATE_MORE)
                    return rc;
            } else if (c == '\r' && p->own.state == AFTER_BRACE)
                p->own.state = AT_LITERAL_LF;
            else
                goto malformed_literal;
            break;
        malformed_literal:
            fault(p, FAULT_LITERAL);
            p->own.state = SKIPPING;
            p->own.at = at;
            break;
        case AFTER_WORD:
            if (c == '\n')
                return finish(p, data, line_r, taken_r, err);
            if (c == ' ')
                p->own.state = AT_WORD;
            else if (c == '\r')
                p->own.state = AT_LF;
            else {
                fault(p, FAULT_AFTER);
                p->own.state = SKIPPING;
            }
            break;
        case AT_LF:
            if (c == '\n')
                return finish(p, data, line_r, taken_r, err);
            fault(p, FAULT_CR);
            p->own.state = SKIPPING;
            break;
        case SKIPPING:
            if (c != '\n')
                break;
            if (may_be_literal(data + p->own.line_at, at - p->own.line_at)) {
                fault_set(p, err);
                err_wrap(err, "where the next command begins can't be told");
                return MUPDATE_FATAL;
            }
            return finish(p, data, line_r, taken_r, err);
        case IN_LITERAL:
            break;
        }
    }
}

enum mupdate_parsed mupdate_parse(struct mupdate_parser *p, char *data, size_t len, struct mupdate_line *line_r, size_t *taken_r, struct err *err)
{
    return words(p, data, len, line_r, taken_r, err);
}

enum mupdate_parsed mupdate_parse_response(struct mupdate_parser *p, char *data, size_t len, struct mupdate_word *word_r, size_t *taken_r, struct err *err)
{
    if (!len)
        return MUPDATE_MORE;
    if (data[0] == '"' || data[0] == '{' || p->own.response) {
        struct mupdate_line line;
        p->own.response = true;
        enum mupdate_parsed rc = words(p, data, len, &line, taken_r, err);
        if (rc == MUPDATE_LINE && line.n == 1)
            *word_r = line.word[0];
        else if (rc == MUPDATE_LINE) {
            err_set(err, RAFTDIR_EPROTO, "more than one response on the line");
            rc = MUPDATE_BAD;
        }
        return rc;
    }
    size_t max = limit(p->literal_len_max, MUPDATE_LITERAL_LEN_MAX);
    char *lf = memchr(data + p->own.at, '\n', len - p->own.at);
    size_t n = lf ? (size_t)(lf - data) : len;
    if (memchr(data + p->own.at, 0, n - p->own.at))
        fault(p, FAULT_NUL);
    p->own.at = n;
    size_t text_len = n && data[n - 1] == '\r' ? n - 1 : n;
    if (text_len > max) {
        p->own.fault = FAULT_LITERAL_LEN;
        fault_set(p, err);
        return MUPDATE_FATAL;
    }
    if (!lf)
        return MUPDATE_MORE;
    *word_r = (struct mupdate_word){data, text_len};
    *taken_r = n + 1;
    int rc = fault_set(p, err);
    restart(p);
    return rc ? MUPDATE_BAD : MUPDATE_LINE;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
}

bool mupdate_word_is(const struct mupdate_word *w, const char *text)
{
    size_t i = 0;
    for (; i < w->len && text[i]; i++)
        if (lower(w->s[i]) != lower(text[i]))
            return false;
    return i == w->len && !text[i];
}

int mupdate_location_parse(const struct mupdate_word *w, struct mupdate_location *l_r, struct err *err)
{
    const char *bang = w->len ? memchr(w->s, '!', w->len) : NULL, *end = w->s + w->len;
    if (!bang || bang == w->s || (bang + 1 < end && memchr(bang + 1, '!', (size_t)(end - bang - 1))))
        return err_set(err, RAFTDIR_EINVAL, "a location is server!partition");
    *l_r = (struct mupdate_location){w->s, bang + 1, (size_t)(bang - w->s), (size_t)(end - bang - 1)};
    return 0;
}
