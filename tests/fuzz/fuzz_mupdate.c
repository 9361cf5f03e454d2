/* fuzz_mupdate.c - MUPDATE's parser: whatever comes, in one piece or in many, it makes the same of it; words lie within their line and can be printed and read back.
 *
 * The input: a byte of flags, a byte that seeds the pieces, then the stream. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/mupdate_parse.h"
#include "raftdir/mupdate_print.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

enum { SMALL = 1, RESPONSES = 2, BYTEWISE = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void line_ok(const struct mupdate_line *l, const char *buf, size_t taken)
{
    for (unsigned i = 0; i < l->n; i++) {
        MUST(l->word[i].s >= buf && l->word[i].s + l->word[i].len <= buf + taken);
        MUST(!l->word[i].len || !memchr(l->word[i].s, 0, l->word[i].len));
    }
}

/* Read back what is printed of it. */
static void print_ok(const struct mupdate_line *l)
{
    struct mupdate_out o = {0};
    struct mupdate_parser p = {.len_max = SIZE_MAX / 2, .literal_len_max = SIZE_MAX / 4, .line_len_max = SIZE_MAX / 4};
    struct mupdate_line again = {0};
    size_t taken = 0;
    char *tag = strndup(l->word[0].s, l->word[0].len);
    MUST(tag && tag[0]);
    mupdate_print_command(&o, tag, "X", l->n - 1, l->word + 1);
    bool fits = l->n < MUPDATE_WORDS_MAX;
    MUST(mupdate_parse(&p, o.p, o.len, &again, &taken, NULL) == (fits ? MUPDATE_LINE : MUPDATE_BAD));
    MUST(taken == o.len && again.n == (fits ? l->n + 1 : MUPDATE_WORDS_MAX));
    MUST(again.word[0].len == l->word[0].len && !memcmp(again.word[0].s, tag, again.word[0].len));
    for (unsigned i = 1; i < again.n - 1; i++)
        MUST(again.word[i + 1].len == l->word[i].len && !memcmp(again.word[i + 1].s, l->word[i].s, l->word[i].len));
    free(tag);
    mupdate_out_free(&o);
}

static void put(struct mupdate_out *story, const char *s, size_t len)
{
    mupdate_print(story, (const char *)&len, sizeof len);
    mupdate_print(story, s, len);
}

/* Everything that the parser says about the stream. */
static struct mupdate_out read_it(const uint8_t *data, size_t size, unsigned flags, unsigned seed)
{
    struct mupdate_out story = {0};
    struct mupdate_parser p = {0};
    if (flags & SMALL)
        p = (struct mupdate_parser){.line_len_max = 24, .literal_len_max = 12, .len_max = 40};
    char *buf = NULL;
    size_t have = 0, fed = 0;
    bool ended = false;
    while (!ended && fed < size) {
        size_t n = size - fed;
        if (seed) {
            seed = seed * 1103515245 + 12345;
            size_t piece = flags & BYTEWISE ? 1 : 1 + (seed >> 16) % 13;
            n = piece < n ? piece : n;
        }
        char *moved = malloc(have + n);
        MUST(moved);
        if (have)
            memcpy(moved, buf, have);
        memcpy(moved + have, data + fed, n);
        free(buf);
        buf = moved;
        have += n;
        fed += n;
        for (unsigned ahead = 0;;) {
            struct mupdate_line l = {0};
            struct err err = {0};
            size_t taken = 0;
            char what[1];
            enum mupdate_parsed rc;
            if (flags & RESPONSES)
                rc = mupdate_parse_response(&p, buf, have, &l.word[0], &taken, &err), l.n = rc == MUPDATE_LINE;
            else
                rc = mupdate_parse(&p, buf, have, &l, &taken, &err);
            if (rc == MUPDATE_MORE)
                break;
            what[0] = (char)rc;
            put(&story, what, 1);
            if (rc == MUPDATE_GO_AHEAD) {
                MUST(++ahead <= MUPDATE_WORDS_MAX); /* once a literal */
                continue;
            }
            ahead = 0;
            MUST(!(rc == MUPDATE_LINE) == !!err.text[0]);
            if (rc == MUPDATE_FATAL) {
                put(&story, err.text, strlen(err.text));
                ended = true;
                break;
            }
            MUST(taken && taken <= have && buf[taken - 1] == '\n');
            line_ok(&l, buf, taken);
            for (unsigned i = 0; i < l.n; i++)
                put(&story, l.word[i].s, l.word[i].len);
            put(&story, err.text, strlen(err.text));
            if (rc == MUPDATE_LINE && l.n && !(flags & RESPONSES))
                print_ok(&l);
            struct mupdate_location where;
            for (unsigned i = 0; i < l.n; i++)
                if (!mupdate_location_parse(&l.word[i], &where, &err))
                    MUST(where.server_len && where.server_len + 1 + where.partition_len == l.word[i].len && where.server[where.server_len] == '!');
            memmove(buf, buf + taken, have - taken);
            have -= taken;
        }
    }
    free(buf);
    return story;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 100000)
        return 0;
    struct mupdate_out whole = read_it(data + 2, size - 2, data[0], 0), pieces = read_it(data + 2, size - 2, data[0], 1u + data[1]);
    MUST(whole.len == pieces.len && (!whole.len || !memcmp(whole.p, pieces.p, whole.len)));
    mupdate_out_free(&whole);
    mupdate_out_free(&pieces);
    return 0;
}
