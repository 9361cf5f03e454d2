/* cyrus_internal.h - what the parts of the dump reader share: input, the reader's state, and the two forms (cyrus_json.c, cyrus_text.c). */
#ifndef RAFTDIR_CYRUS_INTERNAL_H
#define RAFTDIR_CYRUS_INTERNAL_H
#include <jansson.h>
#include <zlib.h>
#include "cyrus_dump.h"

#define CYRUS_RECORD_LEN_MAX (2u << 20) /* one record's text; every field at its limit, escaped, fits */
#define CYRUS_UNKNOWN_FIELDS_MAX 32     /* so many unknown fields are told one by one */

/* Bytes from a file or standard input, gzipped or not, with the line they are in. */
struct cyrus_input {
    gzFile file;
    uint64_t line;
    size_t pos, len;
    int rc; /* of the read that failed */
    struct err err;
    unsigned char buf[65536];
};
enum { CYRUS_EOF = -1, CYRUS_FAILED = -2 };
int cyrus_input_open(struct cyrus_input *in, const char *path, struct err *err);
void cyrus_input_close(struct cyrus_input *in);
/* The next byte, CYRUS_EOF, or CYRUS_FAILED (see in->err). */
int cyrus_input_peek(struct cyrus_input *in);
int cyrus_input_get(struct cyrus_input *in);

/* A text that grows up to CYRUS_RECORD_LEN_MAX; always NUL-terminated. */
struct cyrus_text {
    char *data;
    size_t len, size;
};
/* RAFTDIR_ENOMEM, or RAFTDIR_ETOOBIG beyond the limit. */
int cyrus_text_add(struct cyrus_text *t, const char *s, size_t len);
void cyrus_text_clear(struct cyrus_text *t);

/* Names that were read already. */
struct cyrus_names {
    uint64_t *slots;
    size_t size, used;
};
/* 1: was there. 0: is there now. RAFTDIR_ENOMEM. */
int cyrus_names_add(struct cyrus_names *set, const char *name, size_t len);
void cyrus_names_free(struct cyrus_names *set);
/* SHA-256 of a name; false when OpenSSL fails. */
bool cyrus_name_digest(const char *name, size_t len, unsigned char digest_r[32]);

enum cyrus_json_state { JSON_START, JSON_KEY, JSON_VALUE, JSON_AFTER, JSON_END };

struct cyrus_dump {
    struct cyrus_dump_options options;
    char *default_server;
    enum cyrus_format format;
    struct cyrus_input in;
    int rc; /* what ended it: each later call says it again */
    struct err err;

    struct cyrus_names names;
    struct cyrus_text last_key; /* as long as the names ascend in Cyrus' order, none can be there twice */
    bool ascending;

    char *unknown_fields[CYRUS_UNKNOWN_FIELDS_MAX];
    size_t unknown_fields_n;

    /* JSON */
    enum cyrus_json_state state;
    struct cyrus_text key;   /* the name as it stands between its quotes */
    uint64_t key_line;
    size_t key_indent;       /* in front of it in its line; SIZE_MAX: not the first thing there */
    size_t indent;           /* of the place where the input stands: blanks since the line began; SIZE_MAX: something else came */
    bool value_open;         /* the '{' of the value has been read along with its key */

    /* The record that the caller has: valid until the next call. */
    struct cyrus_text text, acl;
    char *name, *history;
    char letters[16]; /* of a type that came as a number */
    json_t *json;
    Raftdir__Log__Mailbox mailbox;
    Raftdir__Log__Location location;
};

/* Both fill d->mailbox, d->name and what they point to. 1: a record; 0: the end; CYRUS_BAD: malformed, *err says why; negative: no further. */
enum { CYRUS_BAD = 2 };
int cyrus_json_next(struct cyrus_dump *d, uint64_t *line_r, struct err *err);
int cyrus_text_next(struct cyrus_dump *d, uint64_t *line_r, struct err *err);
/* Sets d->mailbox.location from what the record says and the default; NULL: not said. Last, when the type is known. 1 or CYRUS_BAD. */
int cyrus_set_location(struct cyrus_dump *d, const char *server, const char *partition, struct err *err);
/* The kind of what stands in d->mailbox, by its type. */
enum cyrus_kind cyrus_kind_of(const struct cyrus_dump *d);

#endif
