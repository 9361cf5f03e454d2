/* thread_image_copy.c - the thread that makes a fresh copy of this node's own state (thread_image.h): what a renewal begins with (thread_consensus_renewal.c).
 *
 * An image read and written in one process: rows in order into an empty file, so that the copy takes what its records take. What is read is checked as when it
 * is sent to another node, and the copy as one that was fetched (image_check): damage is never copied, nor made by copying. Constant memory.
 * The snapshot that is read pins its pages, as an image's does at a sender: past IMAGE_PIN_GROWTH_MAX the copy is given up. Never into the reserve, which is there
 * for the running state.
 *
 * `done` once, last, with RAFTDIR_ENOSPC, RAFTDIR_ECORRUPT (the state is damaged: the scrub, or a reader, will say so of the node), RAFTDIR_ELIMIT or 0; not when it was stopped. */
#include "thread_image.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/statvfs.h>
#include "logger.h"
#include "tls_stream.h"

#define ROOM_LOOK_LEN (4u << 20) /* bytes of rows between two looks at the disk */
#define SHOW_MS 200

struct image_copy {
    struct image_copy_options o;
    pthread_t thread;
    struct tls_cancel cancel;
    struct image_progress progress;
    struct shared_image shown;
    uint64_t shown_ms;
};

static void show(struct image_copy *c, bool now)
{
    uint64_t at = shared_now_ms();
    if (!now && at - c->shown_ms < SHOW_MS)
        return;
    c->shown_ms = at;
    shared_fetching_set(&c->o.d->shared, &c->shown);
}

static void phase_set(struct image_copy *c, const char *phase)
{
    snprintf(c->shown.phase, sizeof c->shown.phase, "%s", phase);
    show(c, true);
}

static int room_check(const struct image_copy *c, struct err *err)
{
    struct statvfs v;
    if (statvfs(c->o.dir, &v))
        return err_set(err, err_from_errno(errno), "%s: %s", c->o.dir, strerror(errno));
    uint64_t reserve = c->o.d->config->space_reserve_len, room = (uint64_t)v.f_bavail * v.f_frsize;
    if (room >= reserve + ROOM_LOOK_LEN)
        return 0;
    return err_set(err, RAFTDIR_ENOSPC, "the disk of data_dir has %" PRIu64 " MB left, of which %" PRIu64 " MB are the reserve (space_reserve): no room for a second state, of which %" PRIu64
                   " MB are there", room >> 20, reserve >> 20, c->progress.bytes >> 20);
}

static int rows_copy(struct image_copy *c, struct image_reader *reader, struct image_writer *writer, struct err *err)
{
    const uint8_t *frame;
    size_t len;
    uint64_t room_at = 0;
    int rc = image_reader_header(reader, &frame, &len, err);
    for (; rc == 0; rc = image_reader_next(reader, &frame, &len, err)) {
        if ((rc = image_writer_frame(writer, frame, len, err)) != 0)
            return rc;
        image_writer_progress(writer, &c->progress);
        c->shown.index = c->progress.index;
        c->shown.rows = c->progress.rows;
        c->shown.rows_total = c->progress.rows_total;
        c->shown.bytes = c->progress.bytes;
        show(c, false);
        if (tls_cancelled(&c->cancel))
            return RAFTDIR_ECANCELED;
        if (image_reader_growth(reader) > image_limits.pin_growth_max)
            return err_set(err, RAFTDIR_ELIMIT, "the state grew by more than %" PRIu64 " MB while it was copied", image_limits.pin_growth_max >> 20);
        if (c->progress.bytes >= room_at) {
            room_at = c->progress.bytes + ROOM_LOOK_LEN;
            if ((rc = room_check(c, err)) != 0)
                return rc;
        }
    }
    return rc == RAFTDIR_ENOTFOUND ? 0 : rc;
}

static int copy(struct image_copy *c, struct err *err)
{
    struct image_reader *reader = NULL;
    struct image_writer *writer = NULL;
    struct store_options o = {0};
    uint64_t pin = 0;
    if (getrandom(&pin, sizeof pin, 0) != sizeof pin)
        pin = shared_now_ms();
    phase_set(c, "compacting");
    int rc = image_reader_begin(c->o.store, c->o.cluster_id, c->o.incarnation, pin, &reader, err);
    store_close(&c->o.store); /* the reader has a reference, and gives it back before the check: what it pins isn't needed any more then */
    if (rc == 0)
        rc = image_writer_begin(c->o.dir, &o, c->o.cluster_id, c->o.incarnation, &writer, err);
    if (rc == 0)
        rc = rows_copy(c, reader, writer, err);
    image_reader_end(&reader);
    if (rc == 0)
        rc = image_writer_finish(writer, err);
    image_writer_end(&writer);
    return rc;
}

static void on_verify_progress(void *data, uint64_t done, uint64_t total)
{
    struct image_copy *c = data;
    c->shown.rows = done;
    c->shown.rows_total = total;
    show(c, false);
}

static bool on_verify_stop(void *data)
{
    return tls_cancelled(&((struct image_copy *)data)->cancel);
}

static void *copy_main(void *data)
{
    struct image_copy *c = data;
    struct err err = {0};
    image_thread_humble();
    uint64_t began = shared_now_ms(), copied;
    int rc = copy(c, &err);
    copied = shared_now_ms();
    if (rc == 0) {
        struct store_options o = {0};
        struct store_verify_cb cb = {.data = c, .progress = on_verify_progress, .stop = on_verify_stop};
        phase_set(c, "verifying");
        rc = image_check(c->o.dir, &o, &c->progress, &cb, &err);
    }
    if (rc == RAFTDIR_ENOMEM)
        mem_exhausted("copy of the state");
    if (tls_cancelled(&c->cancel))
        return NULL;
    if (rc == 0) {
        logger_line(LOGGER_INFO, "renewal", "copied the state at index %" PRIu64 ": %" PRIu64 " rows, %" PRIu64 " bytes in %.1f s, verified in %.1f s", c->progress.index, c->progress.rows,
                    c->progress.bytes, (double)(copied - began) / 1000, (double)(shared_now_ms() - copied) / 1000);
        phase_set(c, "installing");
    }
    c->o.done(c->o.data, rc, &c->progress, err.text);
    return NULL;
}

int image_copy_start(const struct image_copy_options *o, struct image_copy **copy_r, struct err *err)
{
    struct image_copy *c = mem_calloc(1, sizeof *c);
    c->o = *o;
    c->shown.member = o->self_id;
    int rc = tls_cancel_init(&c->cancel, err);
    if (rc != 0) {
        free(c);
        return rc;
    }
    store_ref(o->store);
    int e = pthread_create(&c->thread, NULL, copy_main, c);
    if (e != 0) {
        rc = err_set(err, RAFTDIR_ELIMIT, "thread for a copy of the state: %s", strerror(e));
        store_close(&c->o.store);
        tls_cancel_close(&c->cancel);
        free(c);
        return rc;
    }
    *copy_r = c;
    return 0;
}

void image_copy_stop(struct image_copy **copy)
{
    struct image_copy *c = *copy;
    *copy = NULL;
    if (!c)
        return;
    tls_cancel_now(&c->cancel);
    pthread_join(c->thread, NULL);
    tls_cancel_close(&c->cancel);
    free(c);
}
