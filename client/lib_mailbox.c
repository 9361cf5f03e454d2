/* lib_mailbox.c - mailboxes as the API gives them. */
#include <stdlib.h>
#include <string.h>
#include "lib_internal.h"

static const char *or_empty(const char *s)
{
    return s ? s : "";
}

void mailbox_from_row(struct raftdir_mailbox *m, const Raftdir__Client__Row *row)
{
    const Raftdir__Log__Mailbox *b = row->mailbox;
    *m = (struct raftdir_mailbox){
        .size = sizeof *m,
        .name = or_empty(b->name),
        .server = b->location ? or_empty(b->location->server) : "",
        .partition = b->location ? or_empty(b->location->partition) : "",
        .acl = or_empty(b->acl),
        .mbtype = or_empty(b->mbtype),
        .uniqueid = or_empty(b->uniqueid),
        .legacy_specialuse = or_empty(b->legacy_specialuse),
        .jmapid = or_empty(b->jmapid),
        .name_history = or_empty(b->name_history),
        .mtime = b->mtime,
        .uidvalidity = b->uidvalidity,
        .createdmodseq = b->createdmodseq,
        .foldermodseq = b->foldermodseq,
        .fields = RAFTDIR_F_MTIME | RAFTDIR_F_UIDVALIDITY | RAFTDIR_F_CREATEDMODSEQ | RAFTDIR_F_FOLDERMODSEQ,
        .mailbox_id = row->mailbox_id,
        .generation = row->generation,
        .store_id = row->store_id,
        .store_epoch = row->store_epoch,
        .reserved = row->reserved != 0,
        .moving_server = row->moving_to ? or_empty(row->moving_to->server) : "",
        .moving_partition = row->moving_to ? or_empty(row->moving_to->partition) : "",
        .rights = or_empty(row->rights),
    };
}

int mailbox_from_answer(const Raftdir__Client__FromNode *m, const struct endpoint *ep, struct raftdir_mailbox *m_r, struct err *err)
{
    /* Only RAFTDIR_ENOTFOUND means "not there": an empty answer means nothing. */
    if (!m || m->body_case != RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS || m->rows->n_rows != 1)
        return err_set(err, RAFTDIR_EPROTO, "%s: a lookup was answered without a mailbox", ep ? ep->text : "node");
    mailbox_from_row(m_r, m->rows->rows[0]);
    return 0;
}

/* Every string of a mailbox, for copying. */
#define STRINGS(X) X(name) MAILBOX_STRINGS(X) X(rights)

struct raftdir_mailbox *raftdir_mailbox_copy(const struct raftdir_mailbox *m)
{
    struct raftdir_mailbox own;
    if (!lib_sized(&own, sizeof own, m, m->size))
        return NULL;
    own.size = sizeof own;
    m = &own;
    size_t len = sizeof *m;
#define X(field) len += m->field ? strlen(m->field) + 1 : 0;
    STRINGS(X)
#undef X
    struct raftdir_mailbox *copy = malloc(len);
    if (!copy)
        return NULL;
    *copy = *m;
    char *p = (char *)(copy + 1);
#define X(field)                                                                                                                           \
    if (m->field) {                                                                                                                        \
        size_t n = strlen(m->field) + 1;                                                                                                   \
        copy->field = memcpy(p, m->field, n);                                                                                              \
        p += n;                                                                                                                            \
    }
    STRINGS(X)
#undef X
    return copy;
}

void raftdir_mailbox_free(struct raftdir_mailbox *m)
{
    free(m);
}
