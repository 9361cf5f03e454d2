/* cyrus_dump.c - the reader of Cyrus' dumps: what both forms have in common. See cyrus_dump.h. */
#include "cyrus_dump.h"
#include <stdlib.h>
#include <string.h>
#include "cyrus_internal.h"
#include "cyrus_mbtype.h"
#include "raftdir/name.h"
#include "raftdir/op.h"

static void record_release(struct cyrus_dump *d)
{
    json_decref(d->json);
    d->json = NULL;
    free(d->name);
    free(d->history);
    d->name = d->history = NULL;
    cyrus_text_clear(&d->acl);
    raftdir__log__mailbox__init(&d->mailbox);
    raftdir__log__location__init(&d->location);
}

enum cyrus_kind cyrus_kind_of(const struct cyrus_dump *d)
{
    const char *type = d->mailbox.mbtype ? d->mailbox.mbtype : "";
    return cyrus_mbtype_has(type, 'd') ? CYRUS_TOMBSTONE : cyrus_mbtype_has(type, 'i') ? CYRUS_INTERMEDIATE : cyrus_mbtype_has(type, 'z') ? CYRUS_RESERVED : CYRUS_MAILBOX;
}

int cyrus_set_location(struct cyrus_dump *d, const char *server, const char *partition, struct err *err)
{
    enum cyrus_kind kind = cyrus_kind_of(d);
    bool needed = kind == CYRUS_MAILBOX || kind == CYRUS_RESERVED;
    if (!server)
        server = d->default_server;
    if (!partition && needed) {
        err_set(err, RAFTDIR_EINVAL, "record has no partition");
        return CYRUS_BAD;
    }
    if (!server && needed) {
        err_set(err, RAFTDIR_EINVAL, "record has no server and no default server is given");
        return CYRUS_BAD;
    }
    if (server && partition) {
        d->location.server = (char *)server;
        d->location.partition = (char *)partition;
        d->mailbox.location = &d->location;
    }
    return 1;
}

static int check_default_server(const char *server, struct err *err)
{
    Raftdir__Log__Location location = RAFTDIR__LOG__LOCATION__INIT;
    location.server = (char *)server;
    location.partition = (char *)"";
    Raftdir__Log__Mailbox mailbox = RAFTDIR__LOG__MAILBOX__INIT;
    mailbox.name = (char *)"shared";
    mailbox.location = &location;
    int rc = op_mailbox_check(&mailbox, err);
    return rc ? err_wrap(err, "default server"), rc : 0;
}

/* By the first character that is no white space. Nothing is consumed but blocks of white space: a name may begin with a blank. */
static int detect(struct cyrus_dump *d, struct err *err)
{
    for (;;) {
        int c = cyrus_input_peek(&d->in);
        if (c == CYRUS_FAILED)
            return err_set(err, d->in.rc, "%s", d->in.err.text);
        if (c == CYRUS_EOF)
            return err_set(err, RAFTDIR_ECORRUPT, "the dump is empty");
        for (size_t i = d->in.pos; i < d->in.len; i++) {
            if (d->in.buf[i] == '\0' || !strchr(" \t\r\n", d->in.buf[i])) {
                d->format = d->in.buf[i] == '{' ? CYRUS_FORMAT_JSON : CYRUS_FORMAT_TEXT;
                return 0;
            }
        }
        while (d->in.pos < d->in.len)
            cyrus_input_get(&d->in);
    }
}

int cyrus_dump_open(const char *path, const struct cyrus_dump_options *options, struct cyrus_dump **dump_r, struct err *err)
{
    int rc;
    if (options->default_server && (rc = check_default_server(options->default_server, err)) != 0)
        return rc;
    struct cyrus_dump *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    d->options = *options;
    d->ascending = true;
    d->state = JSON_START;
    d->format = options->format;
    record_release(d);
    if (options->default_server && !(d->default_server = strdup(options->default_server)))
        rc = err_set(err, RAFTDIR_ENOMEM, "out of memory");
    else
        rc = cyrus_input_open(&d->in, path, err);
    if (!rc && d->format == CYRUS_FORMAT_DETECT)
        rc = detect(d, err);
    if (rc) {
        cyrus_dump_close(&d);
        return rc;
    }
    *dump_r = d;
    return 0;
}

/* 1: this name was read before. Names in Cyrus' order can't be: then nothing hangs on the digests. */
static int check_duplicate(struct cyrus_dump *d, const char *name, size_t len, struct err *err)
{
    uint8_t key[NAME_KEY_LEN_MAX];
    size_t key_len = name_to_key(name, len, key);
    if (d->ascending) {
        if (d->last_key.len && name_key_cmp((uint8_t *)d->last_key.data, d->last_key.len, key, key_len) >= 0)
            d->ascending = false;
        cyrus_text_clear(&d->last_key);
        int rc = cyrus_text_add(&d->last_key, (char *)key, key_len);
        if (rc)
            return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    }
    int rc = cyrus_names_add(&d->names, name, len);
    if (rc < 0)
        return err_set(err, rc, "out of memory");
    return rc == 1 && !d->ascending;
}

int cyrus_dump_next(struct cyrus_dump *d, struct cyrus_record *r, struct err *err)
{
    record_release(d);
    memset(r, 0, sizeof *r);
    if (d->rc < 0)
        return err_set(err, d->rc, "%s", d->err.text);
    int rc = d->format == CYRUS_FORMAT_JSON ? cyrus_json_next(d, &r->line, &d->err) : cyrus_text_next(d, &r->line, &d->err);
    if (rc == 1) {
        r->kind = cyrus_kind_of(d);
        if (op_mailbox_check(&d->mailbox, &d->err) != 0) {
            rc = CYRUS_BAD;
        } else {
            int twice = check_duplicate(d, d->mailbox.name, strlen(d->mailbox.name), &d->err);
            if (twice < 0)
                rc = twice;
            else if (twice)
                err_set(&d->err, RAFTDIR_EEXIST, "mailbox is listed a second time"), rc = CYRUS_BAD;
        }
    }
    if (rc == 0)
        return 0;
    if (rc < 0) {
        d->rc = rc;
        return err_set(err, rc, "%s", d->err.text);
    }
    r->name = d->name;
    if (rc == CYRUS_BAD) {
        r->kind = CYRUS_MALFORMED;
        r->err = d->err;
    } else {
        r->mailbox = &d->mailbox;
    }
    return 1;
}

enum cyrus_format cyrus_dump_format(const struct cyrus_dump *d)
{
    return d->format;
}

uint64_t cyrus_dump_line(const struct cyrus_dump *d)
{
    return d->in.line;
}

void cyrus_dump_close(struct cyrus_dump **dump)
{
    struct cyrus_dump *d = *dump;
    *dump = NULL;
    if (!d)
        return;
    record_release(d);
    cyrus_input_close(&d->in);
    cyrus_names_free(&d->names);
    free(d->last_key.data);
    free(d->key.data);
    free(d->text.data);
    free(d->acl.data);
    for (size_t i = 0; i < d->unknown_fields_n; i++)
        free(d->unknown_fields[i]);
    free(d->default_server);
    free(d);
}
