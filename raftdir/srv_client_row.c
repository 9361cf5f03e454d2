/* srv_client_row.c - mailboxes as rows of the protocol. A row and its strings are copies: the read transaction ends before the answer is sent. */
#include <stdlib.h>
#include <string.h>
#include "srv_client.h"

#define ROWS_FIRST 16

/* A row with everything that its pointers point to; `text` holds the strings. */
struct srv_row {
    Raftdir__Client__Row row;
    Raftdir__Log__Mailbox mailbox;
    Raftdir__Log__Location location, moving_to;
    char rights[33];
    char *text;
};

void srv_rows_init(struct srv_rows *rows)
{
    memset(rows, 0, sizeof *rows);
    raftdir__client__rows__init(&rows->rows);
}

static char *put(char **at, struct store_str s)
{
    char *p = *at;
    if (s.len)
        memcpy(p, s.s, s.len);
    p[s.len] = '\0';
    *at += s.len + 1;
    return p;
}

static char *put_optional(char **at, struct store_str s)
{
    return s.len ? put(at, s) : NULL;
}

void srv_rows_add(struct srv_rows *rows, const struct store_mailbox *m, const acl_rights *rights)
{
    if (rows->n == rows->size) {
        rows->size = rows->size ? rows->size * 2 : ROWS_FIRST;
        rows->pointers = mem_realloc(rows->pointers, rows->size * sizeof *rows->pointers);
    }
    struct srv_row *r = mem_calloc(1, sizeof *r);
    size_t len = m->name_len + m->server.len + m->partition.len + m->moving_server.len + m->moving_partition.len + m->acl.len + m->mbtype.len +
                 m->uniqueid.len + m->legacy_specialuse.len + m->jmapid.len + m->name_history.len + 11;
    char *at = r->text = mem_alloc(len);
    raftdir__client__row__init(&r->row);
    raftdir__log__mailbox__init(&r->mailbox);
    raftdir__log__location__init(&r->location);
    r->row.mailbox = &r->mailbox;
    r->mailbox.name = put(&at, (struct store_str){m->name, m->name_len});
    r->mailbox.location = &r->location;
    r->location.server = put(&at, m->server);
    r->location.partition = put(&at, m->partition);
    if (m->moving_server.s) {
        raftdir__log__location__init(&r->moving_to);
        r->row.moving_to = &r->moving_to;
        r->moving_to.server = put(&at, m->moving_server);
        r->moving_to.partition = put(&at, m->moving_partition);
    }
    r->mailbox.acl = put_optional(&at, m->acl);
    r->mailbox.mbtype = put_optional(&at, m->mbtype);
    r->mailbox.uniqueid = put_optional(&at, m->uniqueid);
    r->mailbox.legacy_specialuse = put_optional(&at, m->legacy_specialuse);
    r->mailbox.jmapid = put_optional(&at, m->jmapid);
    r->mailbox.name_history = put_optional(&at, m->name_history);
#define NUMBER(field)                                                                                                                      \
    if (m->field) {                                                                                                                        \
        r->mailbox.has_##field = true;                                                                                                     \
        r->mailbox.field = m->field;                                                                                                       \
    }
    NUMBER(mtime)
    NUMBER(uidvalidity)
    NUMBER(createdmodseq)
    NUMBER(foldermodseq)
#undef NUMBER
    r->row.has_mailbox_id = r->row.has_generation = r->row.has_store_id = r->row.has_store_epoch = true;
    r->row.mailbox_id = m->id;
    r->row.generation = m->generation;
    r->row.store_id = m->store_id;
    r->row.store_epoch = m->store_epoch;
    r->row.has_reserved = m->state == STORE_RESERVED;
    r->row.reserved = r->row.has_reserved;
    if (rights) {
        r->rights[acl_rights_format(*rights, r->rights)] = '\0';
        r->row.rights = r->rights;
    }
    rows->pointers[rows->n++] = &r->row;
    rows->rows.rows = rows->pointers;
    rows->rows.n_rows = rows->n;
    rows->len += len + 64;
}

void srv_rows_free(struct srv_rows *rows)
{
    for (size_t i = 0; i < rows->n; i++) {
        struct srv_row *r = (struct srv_row *)rows->pointers[i]; /* row is its first member */
        free(r->text);
        free(r);
    }
    free(rows->pointers);
    memset(rows, 0, sizeof *rows);
}
