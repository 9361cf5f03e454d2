/* op.c - entries of the log, packed and unpacked: see op.h and proto/log.proto.
 *
 * An entry is packed by hand, around requests that are packed already: fields 1 to 4 are varints, then each request is field 5, length-delimited.
 * What a node has checked with op_request_check() must unpack here without an error on every node, or one bad request would stop the
 * whole cluster: so both use op_unknown_check() and nothing here is stricter than there. The fuzz target holds us to that. */
#include "op.h"
#include "op_check.h"
#include <stdlib.h>
#include <string.h>

#define VARINT_LEN_MAX 10
#define TAG(field, wire_type) ((field) << 3 | (wire_type))
enum { WIRE_VARINT = 0, WIRE_LEN = 2 };
enum { FIELD_VERSION = 1, FIELD_FEATURE_LEVEL, FIELD_LOG_TIME, FIELD_WALL_TIME, FIELD_REQUESTS };

static size_t varint_put(uint64_t v, uint8_t *p)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        p[n++] = (uint8_t)(v | 0x80);
    p[n++] = (uint8_t)v;
    return n;
}

static size_t varint_len(uint64_t v)
{
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

/* False when the data ends in it or it is too long. */
static bool varint_get(const uint8_t *data, size_t len, size_t *pos, uint64_t *v_r)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < VARINT_LEN_MAX && *pos < len; i++) {
        uint8_t b = data[(*pos)++];
        v |= (uint64_t)(b & 0x7F) << (7 * i);
        if (!(b & 0x80)) {
            *v_r = v;
            return true;
        }
    }
    return false;
}

int op_entry_pack(uint32_t feature_level, uint64_t log_time_ms, uint64_t wall_time_ms, const struct op_packed *requests, size_t n,
                  uint8_t **data_r, size_t *len_r, struct err *err)
{
    const uint64_t head[] = {LOG_ENTRY_VERSION, feature_level, log_time_ms, wall_time_ms};
    uint8_t head_bytes[4 * (1 + VARINT_LEN_MAX)];
    size_t head_len = 0;
    for (size_t i = 0; i < 4; i++) {
        head_bytes[head_len++] = (uint8_t)TAG(FIELD_VERSION + i, WIRE_VARINT);
        head_len += varint_put(head[i], head_bytes + head_len);
    }
    size_t len = head_len;
    for (size_t i = 0; i < n; i++) {
        if (requests[i].len > REQUEST_LEN_MAX)
            return err_set(err, RAFTDIR_ETOOBIG, "request has %zu bytes, more than %u", requests[i].len, REQUEST_LEN_MAX);
        len += 1 + varint_len(requests[i].len) + requests[i].len;
        if (len > ENTRY_LEN_MAX)
            return err_set(err, RAFTDIR_ETOOBIG, "log entry would have more than %u bytes", ENTRY_LEN_MAX);
    }
    uint8_t *data = malloc(len);
    if (!data)
        return err_set(err, RAFTDIR_ENOMEM, "log entry of %zu bytes: out of memory", len);
    memcpy(data, head_bytes, head_len);
    uint8_t *p = data + head_len;
    for (size_t i = 0; i < n; i++) {
        *p++ = TAG(FIELD_REQUESTS, WIRE_LEN);
        p += varint_put(requests[i].len, p);
        if (requests[i].len)
            memcpy(p, requests[i].data, requests[i].len);
        p += requests[i].len;
    }
    *data_r = data;
    *len_r = len;
    return 0;
}

/* protobuf-c answers NULL both for what it can't parse and for want of memory: this tells them apart. */
static void *counting_alloc(void *failed, size_t size)
{
    void *p = malloc(size);
    if (!p)
        *(bool *)failed = true;
    return p;
}

static void counting_free(void *failed, void *p)
{
    (void)failed;
    free(p);
}

/* What the entry says of its version and feature level, also when the rest can't be parsed. */
static int check_versions(const uint8_t *data, size_t len, struct err *err)
{
    uint64_t version, level;
    size_t pos = 0;
    if (len == 0 || data[pos++] != TAG(FIELD_VERSION, WIRE_VARINT) || !varint_get(data, len, &pos, &version))
        return err_set(err, RAFTDIR_ECORRUPT, "log entry doesn't start with its version");
    if (version != LOG_ENTRY_VERSION)
        return err_set(err, RAFTDIR_EVERSION, "log entry has version %llu; this program knows version %d", (unsigned long long)version, LOG_ENTRY_VERSION);
    if (pos == len || data[pos++] != TAG(FIELD_FEATURE_LEVEL, WIRE_VARINT) || !varint_get(data, len, &pos, &level))
        return err_set(err, RAFTDIR_ECORRUPT, "log entry has no feature level behind its version");
    if (level > FEATURE_LEVEL_MAX)
        return err_set(err, RAFTDIR_EVERSION, "log entry has feature level %llu; this program knows levels up to %d", (unsigned long long)level, FEATURE_LEVEL_MAX);
    return 0;
}

int op_entry_unpack(const uint8_t *data, size_t len, Raftdir__Log__Entry **entry_r, struct err *err)
{
    if (len > ENTRY_LEN_MAX)
        return err_set(err, RAFTDIR_ECORRUPT, "log entry has %zu bytes, more than %u", len, ENTRY_LEN_MAX);
    int rc = check_versions(data, len, err);
    if (rc)
        return rc;
    bool no_memory = false;
    ProtobufCAllocator allocator = {counting_alloc, counting_free, &no_memory};
    Raftdir__Log__Entry *entry = raftdir__log__entry__unpack(&allocator, len, data);
    if (!entry && no_memory)
        return err_set(err, RAFTDIR_ENOMEM, "log entry of %zu bytes: out of memory", len);
    if (!entry)
        return err_set(err, RAFTDIR_ECORRUPT, "log entry of %zu bytes can't be parsed", len);
    /* Again, since a field that is given twice has its last value. */
    if (entry->version != LOG_ENTRY_VERSION || entry->feature_level > FEATURE_LEVEL_MAX)
        rc = err_set(err, RAFTDIR_EVERSION, "unknown version %u or feature level %u", entry->version, entry->feature_level);
    else
        rc = op_unknown_check(&entry->base, err);
    if (rc) {
        op_entry_free(&entry);
        err_wrap(err, "log entry");
        if (err)
            err->code = RAFTDIR_EVERSION;
        return RAFTDIR_EVERSION;
    }
    *entry_r = entry;
    return 0;
}

void op_entry_free(Raftdir__Log__Entry **entry)
{
    /* The counting allocator's memory is malloc's. */
    raftdir__log__entry__free_unpacked(*entry, NULL);
    *entry = NULL;
}

const char *op_name(const Raftdir__Log__Op *op)
{
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE: return op->reserve->name;
    case RAFTDIR__LOG__OP__OP_ACTIVATE: return op->activate->mailbox->name;
    case RAFTDIR__LOG__OP__OP_DEACTIVATE: return op->deactivate->name;
    case RAFTDIR__LOG__OP__OP_CREATE: return op->create->mailbox->name;
    case RAFTDIR__LOG__OP__OP_UPDATE: return op->update->mailbox->name;
    case RAFTDIR__LOG__OP__OP_SET_ACL: return op->set_acl->name;
    case RAFTDIR__LOG__OP__OP_DELETE: return op->delete_->name;
    case RAFTDIR__LOG__OP__OP_RENAME: return op->rename->from;
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN: return op->move_begin->name;
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT: return op->move_commit->name;
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT: return op->move_abort->name;
    case RAFTDIR__LOG__OP__OP_PUT: return op->put->mailbox->name;
    case RAFTDIR__LOG__OP__OP_NOOP:
    case RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL:
    default: return NULL;
    }
}

static const char *server_of(const Raftdir__Log__Location *location)
{
    return location ? location->server : NULL;
}

const char *op_server(const Raftdir__Log__Op *op)
{
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_RESERVE: return server_of(op->reserve->location);
    case RAFTDIR__LOG__OP__OP_ACTIVATE: return server_of(op->activate->mailbox->location);
    case RAFTDIR__LOG__OP__OP_DEACTIVATE: return server_of(op->deactivate->location);
    case RAFTDIR__LOG__OP__OP_CREATE: return server_of(op->create->mailbox->location);
    case RAFTDIR__LOG__OP__OP_DELETE: return server_of(op->delete_->location);
    case RAFTDIR__LOG__OP__OP_RENAME: return server_of(op->rename->location);
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN: return server_of(op->move_begin->to);
    case RAFTDIR__LOG__OP__OP_PUT: return server_of(op->put->mailbox->location);
    default: return NULL;
    }
}

static bool op_grows(const Raftdir__Log__Op *op)
{
    switch (op->op_case) {
    case RAFTDIR__LOG__OP__OP_DELETE: /* of a subtree too: an event is shorter than its mailbox's record and rows */
    case RAFTDIR__LOG__OP__OP_NOOP:
    case RAFTDIR__LOG__OP__OP_SET_FEATURE_LEVEL: return false;
    /* Gives a reservation up, or takes an active mailbox's rows out of the reverse ACL index. A token's hash may come into the record, once: activating is refused. */
    case RAFTDIR__LOG__OP__OP_DEACTIVATE: return false;
    /* One id of a fixed place in the record for another. Nobody can begin another move meanwhile. */
    case RAFTDIR__LOG__OP__OP_MOVE_COMMIT:
    case RAFTDIR__LOG__OP__OP_MOVE_ABORT: return false;
    /* Rights can always be taken away: all of an ACL's, an identifier's, or some of its ("lrsd" without "s" is some letters longer, once). */
    case RAFTDIR__LOG__OP__OP_SET_ACL:
        return op->set_acl->acl ? *op->set_acl->acl : !op->set_acl->rights || (*op->set_acl->rights && *op->set_acl->rights != '-');
    case RAFTDIR__LOG__OP__OP_RESERVE:
    case RAFTDIR__LOG__OP__OP_ACTIVATE:
    case RAFTDIR__LOG__OP__OP_CREATE:
    case RAFTDIR__LOG__OP__OP_UPDATE:
    case RAFTDIR__LOG__OP__OP_RENAME:     /* names in the record's keys, and both in the event */
    case RAFTDIR__LOG__OP__OP_MOVE_BEGIN: /* may make a store */
    case RAFTDIR__LOG__OP__OP_PUT:
    default: return true;
    }
}

bool op_request_grows(const Raftdir__Log__Request *req)
{
    for (size_t i = 0; i < req->n_ops; i++)
        if (op_grows(req->ops[i]))
            return true;
    return false;
}
