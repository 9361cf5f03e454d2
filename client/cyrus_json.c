/* cyrus_json.c - the JSON form of a dump: one object whose members are the mailboxes, too many to hold at once.
 *
 * Each member is collected as text, up to the bracket that closes it, and only then parsed by jansson. White space may be anything.
 * When a member's text is broken, the place where the next one starts has to be guessed:
 *  - a line that begins with '"', no further in than the line of the broken one's name, begins a mailbox;
 *  - an object inside of a record, that isn't its "acl", with its name at the beginning of such a line, is no field but the next mailbox:
 *    the record in front of it has lost its '}'.
 * So with the whole dump on one line, nothing behind a broken text can be read: then the end is told as an error, not as the end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cyrus_internal.h"

#define DEPTH_MAX 32

static int no_memory(struct err *err)
{
    return err_set(err, RAFTDIR_ENOMEM, "out of memory");
}

/* What CYRUS_EOF and CYRUS_FAILED mean in the middle of a dump. */
static int cut_off(struct cyrus_dump *d, int c, struct err *err)
{
    if (c == CYRUS_FAILED)
        return err_set(err, d->in.rc, "%s", d->in.err.text);
    if (d->key.len)
        return err_set(err, RAFTDIR_ECORRUPT, "the dump is cut off in line %llu, in or behind %.200s", (unsigned long long)d->in.line, d->key.data);
    return err_set(err, RAFTDIR_ECORRUPT, "the dump is cut off in line %llu", (unsigned long long)d->in.line);
}

/* The next byte, with d->indent kept. */
static int get(struct cyrus_dump *d)
{
    int c = cyrus_input_get(&d->in);
    if (c == '\n')
        d->indent = 0;
    else if (d->indent != SIZE_MAX)
        d->indent = c == ' ' || c == '\t' || c == '\r' ? d->indent + 1 : SIZE_MAX;
    return c;
}

static bool is_space(int c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Skips white space; the byte behind it is left. */
static int skip_space(struct cyrus_dump *d)
{
    int c;
    while (is_space(c = cyrus_input_peek(&d->in)))
        get(d);
    return c;
}

/* Bytes up to the quote that ends a string, whose opening quote was read; `out` gets them without the quotes (NULL: nobody does).
 * 1, CYRUS_BAD, negative. */
static int read_string(struct cyrus_dump *d, struct cyrus_text *out, struct err *err)
{
    bool escaped = false;
    for (;;) {
        int c = cyrus_input_peek(&d->in);
        if (c < 0)
            return cut_off(d, c, err);
        if (c == '\n') { /* it is left: a line begins behind it */
            err_set(err, RAFTDIR_EINVAL, "a string has no end in its line");
            return CYRUS_BAD;
        }
        get(d);
        if (c == '"' && !escaped)
            return 1;
        escaped = c == '\\' && !escaped;
        char byte = (char)c;
        int rc = cyrus_text_add(out, &byte, 1);
        if (rc == RAFTDIR_ENOMEM)
            return no_memory(err);
        if (rc) {
            err_set(err, RAFTDIR_ETOOBIG, "record has more than %u bytes", CYRUS_RECORD_LEN_MAX);
            return CYRUS_BAD;
        }
    }
}

static int add(struct cyrus_dump *d, char byte, struct err *err)
{
    int rc = cyrus_text_add(&d->text, &byte, 1);
    if (rc == RAFTDIR_ENOMEM)
        return no_memory(err);
    if (rc) {
        err_set(err, RAFTDIR_ETOOBIG, "record has more than %u bytes", CYRUS_RECORD_LEN_MAX);
        return CYRUS_BAD;
    }
    return 1;
}

/* A value that is no object or array: up to what ends it. */
static int read_scalar(struct cyrus_dump *d, struct err *err)
{
    int c = cyrus_input_peek(&d->in), rc;
    if (c == '"') {
        get(d);
        if ((rc = add(d, '"', err)) != 1 || (rc = read_string(d, &d->text, err)) != 1)
            return rc;
        return add(d, '"', err);
    }
    while ((c = cyrus_input_peek(&d->in)) >= 0 && !is_space(c) && !strchr(",{}[]\"", c)) {
        get(d);
        if ((rc = add(d, (char)c, err)) != 1)
            return rc;
    }
    return c < 0 ? cut_off(d, c, err) : 1;
}

/* The record, into d->text. When the next mailbox begins in its midst: CYRUS_BAD, with key and value_open set to that one. */
static int read_value(struct cyrus_dump *d, struct err *err)
{
    char open[DEPTH_MAX];
    unsigned depth = 0;
    size_t string = 0, string_len = 0, string_indent = SIZE_MAX; /* the last string: where it stands in d->text */
    uint64_t string_line = 0;
    bool named = false; /* that string and a ':' are the last that came */
    int rc;
    cyrus_text_clear(&d->text);
    if (d->value_open) {
        d->value_open = false;
        open[depth++] = '}';
        if ((rc = add(d, '{', err)) != 1)
            return rc;
    } else if (cyrus_input_peek(&d->in) != '{' && cyrus_input_peek(&d->in) != '[') {
        return read_scalar(d, err);
    }
    do {
        int c = cyrus_input_peek(&d->in);
        if (c < 0)
            return cut_off(d, c, err);
        size_t indent = d->indent;
        uint64_t line = d->in.line;
        get(d);
        if ((rc = add(d, (char)c, err)) != 1)
            return rc;
        if (c == '"') {
            string = d->text.len;
            string_indent = indent;
            string_line = line;
            if ((rc = read_string(d, &d->text, err)) != 1)
                return rc;
            string_len = d->text.len - string;
            if ((rc = add(d, '"', err)) != 1)
                return rc;
            named = false;
        } else if (c == '{' || c == '[') {
            bool acl = string_len == 3 && memcmp(d->text.data + string, "acl", 3) == 0;
            if (c == '{' && depth == 1 && named && !acl && string_indent != SIZE_MAX && d->key_indent != SIZE_MAX && string_indent <= d->key_indent) {
                err_set(err, RAFTDIR_EINVAL, "record has no end: line %llu begins another one", (unsigned long long)string_line);
                cyrus_text_clear(&d->key);
                if (cyrus_text_add(&d->key, d->text.data + string, string_len) != 0)
                    return no_memory(err);
                d->key_line = string_line;
                d->key_indent = string_indent;
                d->value_open = true;
                return CYRUS_BAD;
            }
            if (depth == DEPTH_MAX) {
                err_set(err, RAFTDIR_EINVAL, "record is nested more than %d deep", DEPTH_MAX);
                return CYRUS_BAD;
            }
            open[depth++] = c == '{' ? '}' : ']';
            named = false;
        } else if (c == '}' || c == ']') {
            if (open[--depth] != c) {
                err_set(err, RAFTDIR_EINVAL, "record has '%c' in line %llu where '%c' is wanted", c, (unsigned long long)line, open[depth]);
                return CYRUS_BAD;
            }
            named = false;
        } else if (c == ':') {
            named = true;
        } else if (!is_space(c)) {
            named = false;
        }
    } while (depth);
    return 1;
}

/* After broken text: forward to where the next mailbox seems to begin, or to the end. 0 or negative. */
static int resynchronise(struct cyrus_dump *d, struct err *err)
{
    if (d->value_open) {
        d->state = JSON_VALUE;
        return 0;
    }
    for (;;) {
        int c = cyrus_input_peek(&d->in);
        if (c < 0)
            return cut_off(d, c, err);
        bool far = d->indent == SIZE_MAX || (d->key_indent != SIZE_MAX && d->indent > d->key_indent);
        if (c == '"' && !far) {
            d->state = JSON_KEY;
            return 0;
        }
        if (c == '}' && !far) {
            get(d);
            c = skip_space(d);
            if (c == CYRUS_FAILED)
                return cut_off(d, c, err);
            if (c == CYRUS_EOF) {
                d->state = JSON_END;
                return 0;
            }
            if (c == ',' || c == '}') { /* it was the broken record's own */
                d->state = JSON_AFTER;
                return 0;
            }
            continue;
        }
        get(d);
    }
}

/* Malformed: tells it, after moving on. */
static int bad(struct cyrus_dump *d, struct err *err)
{
    struct err lost;
    int rc = resynchronise(d, &lost);
    if (rc < 0 && rc != RAFTDIR_ECORRUPT)
        return err_set(err, rc, "%s", lost.text);
    /* With no way on, this record is told first; the next call finds the end where none may be, and says so. */
    if (rc < 0)
        d->state = JSON_AFTER;
    return CYRUS_BAD;
}

/* Up to the value of the next member. 1, 0 at the proper end, CYRUS_BAD, negative. */
static int next_member(struct cyrus_dump *d, uint64_t *line_r, struct err *err)
{
    for (;;) {
        int c = skip_space(d);
        if (c == CYRUS_FAILED || (c == CYRUS_EOF && d->state != JSON_END))
            return cut_off(d, c, err);
        *line_r = d->in.line;
        switch (d->state) {
        case JSON_START:
            if (c != '{')
                return err_set(err, RAFTDIR_ECORRUPT, "no JSON object: line %llu begins with '%c'", (unsigned long long)d->in.line, c);
            get(d);
            d->state = JSON_KEY;
            if (skip_space(d) == '}')
                d->state = JSON_AFTER; /* an empty one */
            break;
        case JSON_KEY: {
            if (c == '}') {
                get(d);
                d->state = JSON_END;
                err_set(err, RAFTDIR_EINVAL, "a ',' stands behind the last record");
                return CYRUS_BAD;
            }
            if (c != '"') {
                err_set(err, RAFTDIR_EINVAL, "a mailbox name in quotes is wanted, not '%c'", c);
                get(d);
                return bad(d, err);
            }
            d->key_line = d->in.line;
            d->key_indent = d->indent;
            get(d);
            cyrus_text_clear(&d->key);
            int rc = read_string(d, &d->key, err);
            if (rc != 1)
                return rc < 0 ? rc : bad(d, err);
            if ((c = skip_space(d)) < 0)
                return cut_off(d, c, err);
            if (c != ':') {
                err_set(err, RAFTDIR_EINVAL, "no ':' behind the mailbox name");
                return bad(d, err);
            }
            get(d);
            d->state = JSON_VALUE;
            break;
        }
        case JSON_VALUE:
            *line_r = d->key_line;
            return 1;
        case JSON_AFTER:
            if (c == ',') {
                get(d);
                d->state = JSON_KEY;
            } else if (c == '}') {
                get(d);
                d->state = JSON_END;
            } else {
                err_set(err, RAFTDIR_EINVAL, "',' or '}' is wanted behind a record, not '%c'", c);
                if (c != '"') {
                    get(d);
                    return bad(d, err);
                }
                d->state = JSON_KEY; /* only the comma is missing */
                return CYRUS_BAD;
            }
            break;
        case JSON_END:
            if (c == CYRUS_EOF)
                return 0;
            err_set(err, RAFTDIR_EINVAL, "there is more behind the '}' that ends the dump");
            return bad(d, err);
        }
    }
}

/* ---- one record ---- */

static int field_bad(struct err *err, const char *field, const char *wanted)
{
    err_set(err, RAFTDIR_EINVAL, "field \"%s\" is no %s", field, wanted);
    return CYRUS_BAD;
}

static int get_string(const char *field, json_t *value, char **string_r, struct err *err)
{
    if (!json_is_string(value))
        return field_bad(err, field, "string");
    *string_r = (char *)json_string_value(value); /* protobuf-c's strings aren't const; nobody writes to it */
    return 1;
}

/* Cyrus writes numbers as strings. */
static int get_number(const char *field, json_t *value, protobuf_c_boolean *has_r, uint64_t *number_r, struct err *err)
{
    *has_r = true;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *number_r = (uint64_t)json_integer_value(value);
        return 1;
    }
    const char *s = json_string_value(value);
    if (!s || *s < '0' || *s > '9')
        return field_bad(err, field, "number");
    char *end;
    errno = 0;
    *number_r = strtoull(s, &end, 10);
    return errno || *end ? field_bad(err, field, "number") : 1;
}

static int get_acl(struct cyrus_dump *d, json_t *value, struct err *err)
{
    if (!json_is_object(value))
        return field_bad(err, "acl", "object");
    const char *id;
    json_t *rights;
    json_object_foreach(value, id, rights) {
        const char *text = json_string_value(rights);
        if (!text)
            return field_bad(err, "acl", "object of strings");
        if (!*id || strchr(id, '\t') || strchr(text, '\t')) {
            err_set(err, RAFTDIR_EACL, "field \"acl\" has an identifier or rights that are empty or have a TAB");
            return CYRUS_BAD;
        }
        const char *const parts[] = {id, "\t", text, "\t"};
        for (int i = 0; i < 4; i++) {
            int rc = cyrus_text_add(&d->acl, parts[i], strlen(parts[i]));
            if (rc == RAFTDIR_ENOMEM)
                return no_memory(err);
            if (rc)
                return field_bad(err, "acl", "ACL of allowed length");
        }
    }
    d->mailbox.acl = d->acl.len ? d->acl.data : (char *)"";
    return 1;
}

static int get_history(struct cyrus_dump *d, json_t *value, struct err *err)
{
    if (!json_is_array(value))
        return field_bad(err, "name_history", "array");
    if (json_array_size(value) == 0) {
        d->mailbox.name_history = (char *)"";
        return 1;
    }
    d->history = json_dumps(value, JSON_COMPACT);
    if (!d->history)
        return no_memory(err);
    d->mailbox.name_history = d->history;
    return 1;
}

static int warn_unknown(struct cyrus_dump *d, const char *field, struct err *err)
{
    for (size_t i = 0; i < d->unknown_fields_n; i++) {
        if (strcmp(d->unknown_fields[i], field) == 0)
            return 1;
    }
    if (d->unknown_fields_n == CYRUS_UNKNOWN_FIELDS_MAX)
        return 1;
    if (!(d->unknown_fields[d->unknown_fields_n] = strdup(field)))
        return no_memory(err);
    d->unknown_fields_n++;
    struct err text;
    err_set(&text, RAFTDIR_EUNSUPPORTED, "field \"%.100s\" is unknown and not kept%s", field,
            d->unknown_fields_n == CYRUS_UNKNOWN_FIELDS_MAX ? "; further unknown fields are not told" : "");
    if (d->options.warning)
        d->options.warning(d->options.arg, d->key_line, text.text);
    return 1;
}

static int read_record(struct cyrus_dump *d, struct err *err)
{
    json_error_t jerr;
    d->json = json_loadb(d->text.data, d->text.len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &jerr);
    if (!d->json) {
        if (json_error_code(&jerr) == json_error_out_of_memory)
            return no_memory(err);
        err_set(err, RAFTDIR_EINVAL, "record can't be parsed: line %llu: %s", (unsigned long long)d->key_line + (uint64_t)(jerr.line > 0 ? jerr.line - 1 : 0), jerr.text);
        return CYRUS_BAD;
    }
    if (!json_is_object(d->json)) {
        err_set(err, RAFTDIR_EINVAL, "record is no object");
        return CYRUS_BAD;
    }
    Raftdir__Log__Mailbox *m = &d->mailbox;
    char *name = NULL, *server = NULL, *partition = NULL;
    const char *field;
    json_t *value;
    int rc = 1;
    json_object_foreach(d->json, field, value) {
        if (json_is_null(value))
            continue;
        if (strcmp(field, "name") == 0)
            rc = get_string(field, value, &name, err);
        else if (strcmp(field, "mtime") == 0)
            rc = get_number(field, value, &m->has_mtime, &m->mtime, err);
        else if (strcmp(field, "uidvalidity") == 0)
            rc = get_number(field, value, &m->has_uidvalidity, &m->uidvalidity, err);
        else if (strcmp(field, "createdmodseq") == 0)
            rc = get_number(field, value, &m->has_createdmodseq, &m->createdmodseq, err);
        else if (strcmp(field, "foldermodseq") == 0)
            rc = get_number(field, value, &m->has_foldermodseq, &m->foldermodseq, err);
        else if (strcmp(field, "mbtype") == 0)
            rc = get_string(field, value, &m->mbtype, err);
        else if (strcmp(field, "partition") == 0)
            rc = get_string(field, value, &partition, err);
        else if (strcmp(field, "server") == 0)
            rc = get_string(field, value, &server, err);
        else if (strcmp(field, "acl") == 0)
            rc = get_acl(d, value, err);
        else if (strcmp(field, "uniqueid") == 0)
            rc = get_string(field, value, &m->uniqueid, err);
        else if (strcmp(field, "jmapId") == 0)
            rc = get_string(field, value, &m->jmapid, err);
        else if (strcmp(field, "legacy_specialuse") == 0)
            rc = get_string(field, value, &m->legacy_specialuse, err);
        else if (strcmp(field, "name_history") == 0)
            rc = get_history(d, value, err);
        else
            rc = warn_unknown(d, field, err);
        if (rc != 1)
            return rc;
    }
    if (name && strcmp(name, d->name) != 0) {
        err_set(err, RAFTDIR_EINVAL, "record of this mailbox has the name \"%.200s\"", name);
        return CYRUS_BAD;
    }
    return cyrus_set_location(d, server, partition, err);
}

/* The name between its quotes, unescaped, to d->name. */
static int read_name(struct cyrus_dump *d, struct err *err)
{
    struct cyrus_text quoted = {0};
    int rc = cyrus_text_add(&quoted, "\"", 1);
    if (!rc)
        rc = cyrus_text_add(&quoted, d->key.len ? d->key.data : "", d->key.len);
    if (!rc)
        rc = cyrus_text_add(&quoted, "\"", 1);
    json_t *name = rc ? NULL : json_loadb(quoted.data, quoted.len, JSON_DECODE_ANY, NULL);
    free(quoted.data);
    if (rc == RAFTDIR_ENOMEM)
        return no_memory(err);
    if (!json_is_string(name)) {
        json_decref(name);
        err_set(err, RAFTDIR_ENAME, "mailbox name is no JSON string");
        return CYRUS_BAD;
    }
    d->name = strdup(json_string_value(name));
    json_decref(name);
    if (!d->name)
        return no_memory(err);
    d->mailbox.name = d->name;
    return 1;
}

int cyrus_json_next(struct cyrus_dump *d, uint64_t *line_r, struct err *err)
{
    int rc = next_member(d, line_r, err);
    if (rc != 1)
        return rc;
    int named = read_name(d, err);
    if (named < 0)
        return named;
    rc = read_value(d, err);
    if (rc < 0)
        return rc;
    if (rc == CYRUS_BAD)
        return bad(d, err);
    d->state = JSON_AFTER;
    return named == 1 ? read_record(d, err) : named;
}
