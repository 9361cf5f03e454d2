/* srv_client_list.c - list and visible: rows in chunks, each from a read transaction of its own that ends with the chunk; the position in between is a name.
 *
 * A stream is RUNNABLE (it gets one chunk a loop turn, round robin with the other streams, after the lookups of that turn), CREDIT (the client
 * has to ask for more) or BLOCKED (the client hasn't taken what it got). Each chunk states the index that it was read from: rows of
 * one list may be of different indexes, each row is whole. */
#include <stdlib.h>
#include <string.h>
#include "logger.h"
#include "srv_client.h"

static void turn(struct srv_stream *st);

void srv_list_resume(struct request *r)
{
    r->state = REQUEST_RUNNABLE;
    r->stream.turn = turn;
    srv_stream_run(r->service, &r->stream);
}

void srv_list_credit(struct request *r, uint32_t rows)
{
    if (!r->scan && !r->watch)
        return;
    uint64_t credit = (uint64_t)r->credit + rows;
    r->credit = credit < LIST_CREDIT_MAX ? (uint32_t)credit : LIST_CREDIT_MAX;
    if (r->state == REQUEST_CREDIT && r->credit)
        srv_list_resume(r);
}

void srv_list_begin(struct request *r)
{
    struct err err = {0};
    uint32_t credit;
    uint64_t limit;
    int rc;
    if (r->msg->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_LIST) {
        const Raftdir__Client__List *q = r->msg->list;
        struct store_filter filter = {.prefix = q->prefix, .pattern = q->pattern, .server = q->server, .partition = q->partition, .reserved = q->reserved};
        credit = q->credit;
        limit = q->limit;
        rc = store_ask_list(&filter, q->after, &r->scan, &err);
    } else {
        const Raftdir__Client__Visible *q = r->msg->visible;
        struct acl_subject who = {.user = q->user, .groups = (const char *const *)q->groups, .groups_n = q->n_groups};
        credit = q->credit;
        limit = q->limit;
        r->visible = true;
        rc = store_ask_visible(&who, q->rights, q->pattern, q->after, &r->scan, &err);
    }
    if (rc != 0) {
        srv_fail_err(r, rc, &err);
        return;
    }
    store_scan_bound(r->scan, SRV_CHUNK_TOUCHED);
    r->credit = !credit ? LIST_CREDIT_DEFAULT : credit < LIST_CREDIT_MAX ? credit : LIST_CREDIT_MAX;
    r->rows_left = limit ? limit : UINT64_MAX;
    srv_list_resume(r);
}

/* Rows up to the bounds of a chunk, which may be none. 0: there may be more; RAFTDIR_ENOTFOUND: that was the end. */
static int chunk_read(struct request *r, struct srv_rows *rows, struct store_meta *meta, struct err *err)
{
    int rc = srv_txn(r->service, meta, err);
    if (rc != 0)
        return rc;
    struct store_counters before, now;
    store_scan_counters(r->scan, &before);
    now = before;
    uint64_t until = uv_hrtime() + SRV_CHUNK_NS;
    while (rc == 0 && (rows->n == 0 || uv_hrtime() < until) && rows->n < LIST_CHUNK_ROWS && rows->len < SRV_CHUNK_LEN && now.touched - before.touched < SRV_CHUNK_TOUCHED && r->credit) {
        struct store_mailbox m;
        acl_rights rights = 0;
        rc = store_scan_next(r->scan, r->service->txn, &m, r->visible ? &rights : NULL, err);
        if (rc == RAFTDIR_EBUSY) {
            rc = 0; /* the bound, before a row was found: on in the next chunk */
            break;
        }
        if (rc != 0)
            break;
        store_scan_counters(r->scan, &now);
        srv_rows_add(rows, &m, r->visible ? &rights : NULL);
        r->credit--;
        if (--r->rows_left == 0)
            rc = RAFTDIR_ENOTFOUND;
    }
    store_scan_release(r->scan);
    srv_txn_done(r->service);
    return rc;
}

static void chunk(struct request *r)
{
    struct srv_rows rows;
    struct store_meta meta;
    struct store_counters counters;
    struct err err = {0};
    if (!srv_read_fresh(r, srv_age_ms(r->service)))
        return;
    srv_rows_init(&rows);
    int rc = chunk_read(r, &rows, &meta, &err);
    if (rc != 0 && rc != RAFTDIR_ENOTFOUND) {
        if (rc == RAFTDIR_ECORRUPT) {
            srv_corrupt(r->service, err.text);
            rc = RAFTDIR_EFAILED;
        }
        srv_rows_free(&rows);
        srv_fail_err(r, rc, &err);
        return;
    }
    store_scan_counters(r->scan, &counters);
    rows.rows.has_touched = rows.rows.has_skips = true;
    rows.rows.touched = counters.touched;
    rows.rows.skips = counters.skips;
    Raftdir__Client__FromNode f = RAFTDIR__CLIENT__FROM_NODE__INIT;
    f.has_index = true;
    f.index = meta.applied_index;
    f.has_more = f.more = rc == 0;
    f.body_case = RAFTDIR__CLIENT__FROM_NODE__BODY_ROWS;
    f.rows = &rows.rows;
    bool more = rc == 0;
    if (!more || rows.n)
        srv_answer(r, &f);
    srv_rows_free(&rows);
    if (!more)
        return;
    if (srv_client_stream_full(r->client)) {
        srv_request_block(r);
    } else if (!r->credit) {
        r->state = REQUEST_CREDIT;
    } else {
        srv_list_resume(r);
    }
}

static void turn(struct srv_stream *st)
{
    struct request *r = (struct request *)((char *)st - offsetof(struct request, stream));
    r->state = REQUEST_NEW;
    if (srv_client_stream_full(r->client))
        srv_request_block(r);
    else if (r->watch)
        srv_watch_chunk(r);
    else
        chunk(r);
}
