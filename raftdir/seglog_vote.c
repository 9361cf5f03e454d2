/* seglog_vote.c - the file `vote`: current term and vote.
 *
 * Two slots, each in a block of its own:
 *   0 magic "RDVOTE\n\0"   8 u32 version   12 u32 0   16 u64 counter   24 u64 term   32 u64 voted_for
 *   40 u64 cluster id   48 u64 incarnation   56 uuid (16)   72 u64 XXH3-64 of the 72 bytes before       (little-endian)
 * A change writes and syncs the first slot, then the second, both with the new counter, and only then returns. So at any moment at most one slot is
 * torn, and the other one holds the new or the last acknowledged value; and later damage to either slot loses nothing. With one slot bad or older at
 * start, the better one is written to both again. Both bad: RAFTDIR_ECORRUPT, since a forgotten vote elects two leaders. */
#include "seglog_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SLOT_SUM_AT 72
static const uint8_t MAGIC[8] = "RDVOTE\n";

struct slot {
    uint64_t counter, term, voted_for;
};

static void slot_put(uint8_t block_r[SEGLOG_BLOCK_LEN], const struct seglog_identity *who, const struct slot *s)
{
    memset(block_r, 0, SEGLOG_BLOCK_LEN);
    memcpy(block_r, MAGIC, sizeof MAGIC);
    seglog_put_u32(block_r + 8, LOG_FILE_VERSION);
    seglog_put_u64(block_r + 16, s->counter);
    seglog_put_u64(block_r + 24, s->term);
    seglog_put_u64(block_r + 32, s->voted_for);
    seglog_put_u64(block_r + 40, who->cluster_id);
    seglog_put_u64(block_r + 48, who->incarnation);
    memcpy(block_r + 56, who->uuid, NODE_UUID_LEN);
    seglog_put_u64(block_r + SLOT_SUM_AT, seglog_sum(block_r, SLOT_SUM_AT, 0));
}

static int slot_get(const uint8_t *block, const struct seglog_identity *who, struct slot *s_r, struct err *err)
{
    if (memcmp(block, MAGIC, sizeof MAGIC) != 0 || seglog_get_u64(block + SLOT_SUM_AT) != seglog_sum(block, SLOT_SUM_AT, 0))
        return err_set(err, RAFTDIR_ECORRUPT, "damaged");
    if (seglog_get_u32(block + 8) != LOG_FILE_VERSION)
        return err_set(err, RAFTDIR_EVERSION, "version %u, this build reads %u", seglog_get_u32(block + 8), (unsigned)LOG_FILE_VERSION);
    if (memcmp(block + 56, who->uuid, NODE_UUID_LEN) != 0 || seglog_get_u64(block + 40) != who->cluster_id ||
        seglog_get_u64(block + 48) != who->incarnation)
        return err_set(err, RAFTDIR_EFOREIGN, "it belongs to another node, cluster or incarnation");
    s_r->counter = seglog_get_u64(block + 16);
    s_r->term = seglog_get_u64(block + 24);
    s_r->voted_for = seglog_get_u64(block + 32);
    return 0;
}

/* `first`: the slot to write first; never the only good one. */
static int slots_write(struct seglog *log, const struct slot *s, int first, struct err *err)
{
    uint8_t block[SEGLOG_BLOCK_LEN];
    slot_put(block, &log->who, s);
    for (int i = 0; i < 2; i++) {
        off_t at = (i == 0 ? first : 1 - first) * (off_t)SEGLOG_BLOCK_LEN;
        int e = seglog_write_all(&log->io, log->vote_fd, block, sizeof block, at);
        if (e)
            return seglog_broken(log, err, e, "write the vote in", log->dir);
        if (log->io.fdatasync(log->io.data, log->vote_fd) < 0)
            return seglog_broken(log, err, errno, "sync the vote in", log->dir);
    }
    log->vote_counter = s->counter;
    log->term = s->term;
    log->voted_for = s->voted_for;
    return 0;
}

int seglog_vote_create(struct seglog *log, struct err *err)
{
    char path[SEGLOG_PATH_LEN_MAX], tmp[SEGLOG_PATH_LEN_MAX];
    int rc = seglog_path(log, "vote", path, err);
    if (!rc)
        rc = seglog_path(log, "vote.tmp", tmp, err);
    if (rc)
        return rc;
    const struct seglog_io *io = &log->io;
    log->vote_fd = io->open(io->data, tmp, O_RDWR | O_CREAT | O_TRUNC);
    if (log->vote_fd < 0)
        return seglog_fail_errno(err, errno, "create", tmp);
    if (io->fallocate(io->data, log->vote_fd, 2 * (off_t)SEGLOG_BLOCK_LEN) < 0)
        return seglog_fail_errno(err, errno, "preallocate", tmp);
    struct slot s = {.counter = 1};
    rc = slots_write(log, &s, 0, err);
    if (rc)
        return rc;
    if (io->fsync(io->data, log->vote_fd) < 0)
        return seglog_broken(log, err, errno, "sync", tmp);
    if (io->rename(io->data, tmp, path) < 0)
        return seglog_fail_errno(err, errno, "rename to", path);
    return seglog_dir_sync(log, err);
}

int seglog_vote_load(struct seglog *log, bool *exists_r, struct err *err)
{
    char path[SEGLOG_PATH_LEN_MAX];
    int rc = seglog_path(log, "vote", path, err);
    if (rc)
        return rc;
    *exists_r = true;
    log->vote_fd = log->io.open(log->io.data, path, O_RDWR);
    if (log->vote_fd < 0 && errno == ENOENT) {
        *exists_r = false;
        return 0;
    }
    if (log->vote_fd < 0)
        return seglog_fail_errno(err, errno, "open", path);
    if (log->io.fdatasync(log->io.data, log->vote_fd) < 0)
        return seglog_broken(log, err, errno, "sync", path);
    (void)posix_fadvise(log->vote_fd, 0, 0, POSIX_FADV_DONTNEED);
    uint8_t blocks[2 * SEGLOG_BLOCK_LEN];
    rc = seglog_read_all(path, log->vote_fd, blocks, sizeof blocks, 0, err);
    if (rc == RAFTDIR_EIO)
        return err_wrap(err, "term and vote");
    if (rc)
        return rc;
    struct slot s[2];
    struct err e[2];
    int rcs[2];
    for (int i = 0; i < 2; i++) {
        rcs[i] = slot_get(blocks + (size_t)i * SEGLOG_BLOCK_LEN, &log->who, &s[i], &e[i]);
        if (rcs[i] && rcs[i] != RAFTDIR_ECORRUPT)
            return err_set(err, rcs[i], "%s: %s", path, e[i].text);
    }
    if (rcs[0] && rcs[1])
        return err_set(err, RAFTDIR_ECORRUPT, "%s: term and vote are lost: both copies are damaged. Rebuild this node from the others, as a new member", path);
    int best = rcs[0] ? 1 : rcs[1] ? 0 : s[1].counter > s[0].counter ? 1 : 0;
    log->vote_counter = s[best].counter;
    log->term = s[best].term;
    log->voted_for = s[best].voted_for;
    if (rcs[0] || rcs[1] || s[0].counter != s[1].counter) {
        struct slot again = s[best];
        return slots_write(log, &again, 1 - best, err);
    }
    return 0;
}

int seglog_vote(struct seglog *log, uint64_t term, uint64_t voted_for, struct err *err)
{
    pthread_mutex_lock(&log->vote_mutex);
    int rc = seglog_refused(log, err);
    if (!rc && (term < log->term || (term == log->term && log->voted_for && voted_for != log->voted_for)))
        rc = err_set(err, RAFTDIR_EINVAL, "term %llu, vote %llu: the log holds term %llu, vote %llu, which can't be taken back", (unsigned long long)term,
                     (unsigned long long)voted_for, (unsigned long long)log->term, (unsigned long long)log->voted_for);
    if (!rc && (term != log->term || voted_for != log->voted_for)) {
        struct slot s = {.counter = log->vote_counter + 1, .term = term, .voted_for = voted_for};
        rc = slots_write(log, &s, 0, err);
    }
    pthread_mutex_unlock(&log->vote_mutex);
    return rc;
}

/* Is this copy what seglog_vote wrote last? */
static bool slot_is_current(const struct seglog *log, const uint8_t *block)
{
    struct slot s;
    return slot_get(block, &log->who, &s, NULL) == 0 && s.counter == log->vote_counter && s.term == log->term && s.voted_for == log->voted_for;
}

/* Once without the mutex, so that a slow disk holds no vote up; with it only when something looks wrong: a vote may have been on its way. */
int seglog_vote_scrub(struct seglog *log, bool bad_r[2], struct err *err)
{
    uint8_t blocks[2 * SEGLOG_BLOCK_LEN];
    for (int locked = 0; locked < 2; locked++) {
        if (locked)
            pthread_mutex_lock(&log->vote_mutex);
        (void)posix_fadvise(log->vote_fd, 0, 0, POSIX_FADV_DONTNEED);
        int rc = 0;
        for (int i = 0; i < 2 && rc != RAFTDIR_ENOMEM; i++) {
            uint8_t *block = blocks + (size_t)i * SEGLOG_BLOCK_LEN;
            rc = seglog_read_all("vote", log->vote_fd, block, SEGLOG_BLOCK_LEN, i * (off_t)SEGLOG_BLOCK_LEN, err);
            if (rc) /* damage as good as any */
                memset(block, 0, SEGLOG_BLOCK_LEN);
        }
        if (!locked)
            pthread_mutex_lock(&log->vote_mutex);
        for (int i = 0; i < 2; i++)
            bad_r[i] = !slot_is_current(log, blocks + (size_t)i * SEGLOG_BLOCK_LEN);
        pthread_mutex_unlock(&log->vote_mutex);
        if (rc == RAFTDIR_ENOMEM)
            return rc;
        if (!bad_r[0] && !bad_r[1])
            break;
    }
    return 0;
}
