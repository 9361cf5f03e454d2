/* cyrus_input.c - bytes of a dump, texts that grow, and the set of names: see cyrus_internal.h.
 *
 * zlib's gzread hands plain files through, so gzipped and plain input are one case. A gzip stream that is cut off reads as a
 * normal end but for gzerror(): that is asked at each end. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cyrus_internal.h"

int cyrus_input_open(struct cyrus_input *in, const char *path, struct err *err)
{
    in->line = 1;
    in->pos = in->len = 0;
    in->rc = 0;
    bool standard = strcmp(path, "-") == 0;
    int fd = standard ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, RAFTDIR_EIO, "%s: %s", standard ? "standard input" : path, strerror(errno));
    in->file = gzdopen(fd, "rb");
    if (!in->file) {
        close(fd);
        return err_set(err, RAFTDIR_ENOMEM, "%s: out of memory", standard ? "standard input" : path);
    }
    return 0;
}

void cyrus_input_close(struct cyrus_input *in)
{
    if (in->file)
        gzclose_r(in->file);
    in->file = NULL;
}

static int fill(struct cyrus_input *in)
{
    if (in->rc)
        return CYRUS_FAILED;
    errno = 0;
    int n = gzread(in->file, in->buf, sizeof in->buf);
    int zerr = Z_OK;
    const char *text = gzerror(in->file, &zerr);
    if (n > 0) {
        in->pos = 0;
        in->len = (size_t)n;
        return n;
    }
    if (n == 0 && zerr == Z_OK)
        return CYRUS_EOF;
    if (zerr == Z_ERRNO)
        in->rc = err_set(&in->err, RAFTDIR_EIO, "read: %s", strerror(errno));
    else if (zerr == Z_BUF_ERROR)
        in->rc = err_set(&in->err, RAFTDIR_ECORRUPT, "the gzip data are cut off in line %llu", (unsigned long long)in->line);
    else if (zerr == Z_MEM_ERROR)
        in->rc = err_set(&in->err, RAFTDIR_ENOMEM, "out of memory");
    else
        in->rc = err_set(&in->err, RAFTDIR_ECORRUPT, "the gzip data are damaged after line %llu: %s", (unsigned long long)in->line, text);
    return CYRUS_FAILED;
}

int cyrus_input_peek(struct cyrus_input *in)
{
    if (in->pos == in->len) {
        int rc = fill(in);
        if (rc < 0)
            return rc;
    }
    return in->buf[in->pos];
}

int cyrus_input_get(struct cyrus_input *in)
{
    int c = cyrus_input_peek(in);
    if (c >= 0)
        in->pos++;
    if (c == '\n')
        in->line++;
    return c;
}

int cyrus_text_add(struct cyrus_text *t, const char *s, size_t len)
{
    if (len > CYRUS_RECORD_LEN_MAX - t->len)
        return RAFTDIR_ETOOBIG;
    if (t->len + len + 1 > t->size) {
        size_t size = t->size ? t->size : 1024;
        while (size < t->len + len + 1)
            size *= 2;
        char *data = realloc(t->data, size);
        if (!data)
            return RAFTDIR_ENOMEM;
        t->data = data;
        t->size = size;
    }
    memcpy(t->data + t->len, s, len);
    t->len += len;
    t->data[t->len] = '\0';
    return 0;
}

void cyrus_text_clear(struct cyrus_text *t)
{
    t->len = 0;
    if (t->data)
        t->data[0] = '\0';
}

bool cyrus_name_digest(const char *name, size_t len, unsigned char digest_r[32])
{
    return EVP_Digest(name, len, digest_r, NULL, EVP_sha256(), NULL) == 1;
}

static bool names_insert(struct cyrus_names *set, uint64_t print)
{
    size_t i = (size_t)print & (set->size - 1);
    while (set->slots[i]) {
        if (set->slots[i] == print)
            return false;
        i = (i + 1) & (set->size - 1);
    }
    set->slots[i] = print;
    set->used++;
    return true;
}

/* A name is 64 bits of its digest: with 20 million names, one in 100,000 dumps would have two that look the same. */
int cyrus_names_add(struct cyrus_names *set, const char *name, size_t len)
{
    if (set->used + 1 > set->size / 4 * 3) {
        struct cyrus_names bigger = {.size = set->size ? set->size * 2 : 1024};
        bigger.slots = calloc(bigger.size, sizeof *bigger.slots);
        if (!bigger.slots)
            return RAFTDIR_ENOMEM;
        for (size_t i = 0; i < set->size; i++) {
            if (set->slots[i])
                names_insert(&bigger, set->slots[i]);
        }
        free(set->slots);
        *set = bigger;
    }
    unsigned char digest[32];
    if (!cyrus_name_digest(name, len, digest))
        return RAFTDIR_ENOMEM;
    uint64_t print;
    memcpy(&print, digest, sizeof print);
    return !names_insert(set, print ? print : 1);
}

void cyrus_names_free(struct cyrus_names *set)
{
    free(set->slots);
    set->slots = NULL;
    set->size = set->used = 0;
}
