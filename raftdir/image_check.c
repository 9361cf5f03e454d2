/* image_check.c - is a staged state what its image's header said, and whole? See image.h.
 *
 * First what is cheap: the state record, the configuration, the number of rows and the checkpoints against the header. Then store_verify: every checksum, every
 * index row computed anew, the digest. What this can't know: whether the image is what the cluster agreed on; the digests that members compare
 * (checkpoints) tell that afterwards. Nor can it find damage in older checkpoints, which shows as a
 * difference when they are compared. */
#include "image.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "image_row.h"
#include "store_rows.h"

/* Passes on to the caller's callbacks, and keeps the first problem's text. */
struct watch {
    const struct store_verify_cb *cb;
    char first[ERR_TEXT_LEN / 2];
};

static void on_progress(void *data, uint64_t done, uint64_t total)
{
    const struct store_verify_cb *cb = ((struct watch *)data)->cb;
    if (cb && cb->progress)
        cb->progress(cb->data, done, total);
}

static void on_problem(void *data, const char *text)
{
    struct watch *w = data;
    if (!w->first[0])
        snprintf(w->first, sizeof w->first, "%s", text);
    if (w->cb && w->cb->problem)
        w->cb->problem(w->cb->data, text);
}

static bool on_stop(void *data)
{
    const struct store_verify_cb *cb = ((struct watch *)data)->cb;
    return cb && cb->stop && cb->stop(cb->data);
}

static int check_meta(struct store_txn *txn, const struct image_progress *image, struct err *err)
{
    struct store_meta meta;
    const uint8_t *configuration;
    size_t configuration_len;
    uint64_t configuration_index, rows;
    int rc = store_meta_get(txn, &meta, err);
    if (!rc)
        rc = store_configuration_get(txn, &configuration, &configuration_len, &configuration_index, err);
    if (!rc)
        rc = store_rows_count(txn, &rows, err);
    if (rc)
        return rc;
    if (meta.applied_index != image->index || meta.applied_term != image->term || meta.feature_level != image->feature_level ||
        meta.log_time_ms != image->log_time_ms)
        return err_set(err, RAFTDIR_ECORRUPT, "the state is of index %" PRIu64 " and term %" PRIu64 "; announced were %" PRIu64 " and %" PRIu64 ", or it differs in "
                       "feature level or log time", meta.applied_index, meta.applied_term, image->index, image->term);
    if (meta.configuration_index != image->configuration_index || configuration_index != image->configuration_index ||
        XXH3_64bits(configuration, configuration_len) != image->configuration_sum)
        return err_set(err, RAFTDIR_ECORRUPT, "the configuration isn't the one that was announced");
    if (memcmp(meta.digest, image->digest, sizeof meta.digest) != 0)
        return err_set(err, RAFTDIR_ECORRUPT, "the digest isn't the one that was announced");
    if (rows != image->rows_total)
        return err_set(err, RAFTDIR_ECORRUPT, "%" PRIu64 " rows instead of %" PRIu64, rows, image->rows_total);
    return 0;
}

/* Checkpoints are outside of the digest, but a wrong one would make the other members think that this node has diverged. */
static int check_checkpoints(struct store_txn *txn, const struct image_progress *image, struct err *err)
{
    struct store_checkpoint list[DIGESTS_KEPT + 1];
    size_t n = DIGESTS_KEPT + 1;
    int rc = store_checkpoints_get(txn, list, &n, err);
    if (rc)
        return rc;
    bool ok = n <= DIGESTS_KEPT;
    for (size_t i = 0; i < n; i++)
        ok &= list[i].index % DIGEST_INTERVAL == 0 && list[i].index <= image->index &&
              (list[i].index != image->index || memcmp(list[i].digest, image->digest, sizeof image->digest) == 0);
    return ok ? 0 : err_set(err, RAFTDIR_ECORRUPT, "the recorded digests can't be those of this state");
}

int image_check(const char *dir, const struct store_options *options, const struct image_progress *image, const struct store_verify_cb *cb, struct err *err)
{
    struct store_options o = options ? *options : (struct store_options){0};
    struct watch watch = {.cb = cb};
    const struct store_verify_cb pass = {.data = &watch, .progress = on_progress, .problem = on_problem, .stop = on_stop};
    struct store *store = NULL;
    struct store_txn *txn = NULL;
    uint8_t digest[16];
    uint64_t problems = 0;
    o.read_only = true;
    int rc = store_open(dir, &o, &store, err);
    if (!rc)
        rc = store_read_begin(store, &txn, err);
    if (!rc)
        rc = check_meta(txn, image, err);
    if (!rc)
        rc = check_checkpoints(txn, image, err);
    if (!rc)
        rc = store_verify(txn, &pass, digest, &problems, err);
    if (!rc && problems)
        rc = err_set(err, RAFTDIR_ECORRUPT, "%" PRIu64 " problems, the first: %s", problems, watch.first);
    else if (!rc && memcmp(digest, image->digest, sizeof digest) != 0)
        rc = err_set(err, RAFTDIR_ECORRUPT, "the digest of the records isn't the one that was announced");
    store_read_end(&txn);
    store_close(&store);
    if (rc && err)
        err_wrap(err, "check the image");
    return rc;
}
