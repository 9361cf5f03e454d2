/* bench_image.c - how fast a state becomes an image, an image a state, and how fast that is checked; how large it is beside the state's file, what memory it takes; and
 * what it does to the log, that is to a file beside that is flushed all the time.
 *
 *   bench_image [mailboxes] [directory] [commit KB] [flush]
 *   default: 200000 /tmp, IMAGE_COMMIT_LEN, 1 (0: nothing is flushed before the end, which shows what the flushes between cost and what they are for) */
#include <fcntl.h>
#include <pthread.h>
#include <raft.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "raftdir/apply.h"
#include "raftdir/image.h"
#include "raftdir/op.h"

#define PUTS 200
#define SAMPLES_MAX 1000000

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

/* Twenty mailboxes for each user, three ACL entries, as a site has them (bench_apply's). */
static void fill(struct store *store, unsigned long n)
{
    static char name[PUTS][128], acl[PUTS][256], uid[PUTS][32], server[PUTS][32];
    static Raftdir__Log__Op ops[PUTS], *ptrs[PUTS];
    static Raftdir__Log__Put puts[PUTS];
    static Raftdir__Log__Mailbox mailboxes[PUTS];
    static Raftdir__Log__Location location[PUTS];
    static struct entry *entries[64];
    struct err err = {0};
    uint64_t index = 0;
    for (unsigned long i = 0; i < n;) {
        unsigned in_batch = 0;
        for (; in_batch < 64 && i < n; in_batch++) {
            unsigned k = 0;
            for (; k < PUTS && i < n; k++, i++) {
                snprintf(name[k], sizeof name[k], "d%02lu.example!user.u%07lu.folder%02lu", i / 20 % 50, i / 20, i % 20);
                snprintf(acl[k], sizeof acl[k], "u%07lu@d%02lu.example\tlrswipkxtecdan\tgroup:staff%02lu\tlrs\tu%07lu@d%02lu.example\tlr\t", i / 20, i / 20 % 50,
                         i / 20 % 50, i / 20 / 2, i / 20 % 50);
                snprintf(uid[k], sizeof uid[k], "uid%016lx", i * 0x9E3779B97F4A7C15ul);
                snprintf(server[k], sizeof server[k], "imap%02lu.example.net", i / 20 % 8);
                raftdir__log__location__init(&location[k]);
                location[k].server = server[k];
                location[k].partition = "p1";
                raftdir__log__mailbox__init(&mailboxes[k]);
                mailboxes[k].name = name[k];
                mailboxes[k].location = &location[k];
                mailboxes[k].acl = acl[k];
                mailboxes[k].uniqueid = uid[k];
                raftdir__log__put__init(&puts[k]);
                puts[k].mailbox = &mailboxes[k];
                raftdir__log__op__init(&ops[k]);
                ops[k].op_case = RAFTDIR__LOG__OP__OP_PUT;
                ops[k].put = &puts[k];
                ptrs[k] = &ops[k];
            }
            Raftdir__Log__Request r = RAFTDIR__LOG__REQUEST__INIT;
            uint8_t id[OP_ID_LEN] = {0}, *data;
            memcpy(id, &i, sizeof i);
            r.op_id = (ProtobufCBinaryData){OP_ID_LEN, id};
            r.expires_ms = 600000;
            r.identity = "unix:0";
            r.ops = ptrs;
            r.n_ops = k;
            struct op_packed packed = {.len = raftdir__log__request__get_packed_size(&r)};
            uint8_t *p = malloc(packed.len);
            size_t len;
            if (!p)
                exit(4);
            raftdir__log__request__pack(&r, p);
            packed.data = p;
            if (op_entry_pack(1, 1000, 0, &packed, 1, &data, &len, &err))
                die("pack", &err);
            entries[in_batch] = entry_create(++index, 1, RAFT_COMMAND, data, (uint32_t)len);
            free(data);
            free(p);
        }
        struct apply_batch *b = apply_batch_create(entries, in_batch);
        apply_batch_run(store, b);
        if (b->status)
            die("apply", &b->err);
        apply_batch_destroy(&b);
        for (unsigned k = 0; k < in_batch; k++)
            entry_unref(entries[k]);
    }
}

/* The log beside: 4 KB into a preallocated file, flushed, fifty times a second and as long as it takes. */
static struct {
    char path[300];
    _Atomic bool stop;
    double ms[SAMPLES_MAX];
    size_t n;
} beside;

static void *flush_beside(void *unused)
{
    (void)unused;
    static char block[4096];
    int fd = open(beside.path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, 64 << 20) || fsync(fd))
        exit(1);
    beside.n = 0;
    for (off_t at = 0; !beside.stop && beside.n < SAMPLES_MAX; at = (at + 4096) % (64 << 20)) {
        double t = now();
        block[0]++;
        if (pwrite(fd, block, sizeof block, at) != sizeof block || fdatasync(fd))
            exit(1);
        beside.ms[beside.n++] = (now() - t) * 1e3;
        usleep(2000);
    }
    close(fd);
    return NULL;
}

static pthread_t beside_start(void)
{
    pthread_t thread;
    beside.stop = false;
    if (pthread_create(&thread, NULL, flush_beside, NULL))
        exit(1);
    return thread;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void beside_stop(pthread_t thread, const char *when)
{
    beside.stop = true;
    pthread_join(thread, NULL);
    qsort(beside.ms, beside.n, sizeof *beside.ms, by_value);
    if (beside.n)
        printf("a log beside, %s: flush p50 %.2f ms, p99 %.2f ms, longest %.2f ms (%zu)\n", when, beside.ms[beside.n / 2], beside.ms[beside.n * 99 / 100],
               beside.ms[beside.n - 1], beside.n);
}

static long rss_kb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss;
}

static void remove_state(const char *dir)
{
    char path[300];
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/lock.mdb", dir);
    unlink(path);
    rmdir(dir);
}

static double file_mb(const char *dir)
{
    char path[300];
    struct stat st;
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    return stat(path, &st) ? 0 : (double)st.st_size / 1e6;
}

int main(int argc, char **argv)
{
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 200000;
    char dir[256], staged[256];
    struct err err = {0};
    struct store *store;
    struct image_reader *reader;
    struct image_writer *writer;
    struct image_progress p;
    const uint8_t *frame;
    size_t len, frames = 0;
    if (argc > 3)
        image_commit_len = strtoul(argv[3], NULL, 10) << 10;
    struct store_options no_sync = {.no_sync = true}, o = {.no_sync = argc > 4 && !atoi(argv[4])};
    snprintf(dir, sizeof dir, "%s/raftdir-bench-XXXXXX", argc > 2 ? argv[2] : "/tmp");
    snprintf(staged, sizeof staged, "%s/raftdir-bench-XXXXXX", argc > 2 ? argv[2] : "/tmp");
    if (!mkdtemp(dir) || !mkdtemp(staged) || store_open(dir, &no_sync, &store, &err))
        die("open", &err);
    snprintf(beside.path, sizeof beside.path, "%s.log", dir);
    fill(store, n);
    if (store_sync(store, &err))
        die("sync", &err);
    pthread_t thread = beside_start();
    usleep(2000000);
    beside_stop(thread, "quiet");

    double t = now();
    if (image_reader_begin(store, 1, 1, 1, &reader, &err))
        die("read", &err);
    while (image_reader_next(reader, &frame, &len, &err) == 0)
        frames++;
    double read_s = now() - t;
    if (image_reader_seek(reader, NULL, &err) || image_reader_header(reader, &frame, &len, &err))
        die("read", &err);
    if (image_writer_begin(staged, &o, 1, 1, &writer, &err))
        die("write", &err);
    long rss = rss_kb();
    thread = beside_start();
    double write_s = 0, longest = 0;
    do {
        t = now();
        if (image_writer_frame(writer, frame, len, &err))
            die("write", &err);
        double took = now() - t;
        write_s += took;
        if (took > longest)
            longest = took;
    } while (image_reader_next(reader, &frame, &len, &err) == 0);
    image_writer_progress(writer, &p);
    t = now();
    if (image_writer_finish(writer, &err))
        die("finish", &err);
    if (o.no_sync) { /* what was put off */
        char path[300];
        snprintf(path, sizeof path, "%s/data.mdb", staged);
        int fd = open(path, O_RDWR);
        if (fd < 0 || fdatasync(fd))
            die("flush", &err);
        close(fd);
    }
    double finish_s = now() - t;
    beside_stop(thread, "while written");
    rss = rss_kb() - rss;
    image_writer_end(&writer);
    image_reader_end(&reader);
    t = now();
    if (image_check(staged, NULL, &p, NULL, &err))
        die("check", &err);
    double check_s = now() - t, rows = (double)p.rows, mb = (double)p.bytes / 1e6;
    printf("image of %lu mailboxes: %.0f rows, %.1f MB, %zu frames; %.1f rows and %.0f bytes a mailbox\n", n, rows, mb, frames, rows / (double)n, mb * 1e6 / (double)n);
    printf("read:  %.0f rows/s, %.0f MB/s\n", rows / read_s, mb / read_s);
    printf("write: %.0f rows/s, %.0f MB/s; the longest frame %.1f ms; the end %.1f ms; %ld KB of memory\n", rows / write_s, mb / write_s, longest * 1e3, finish_s * 1e3, rss);
    printf("check: %.0f rows/s, %.0f MB/s\n", rows / check_s, mb / check_s);
    printf("state %.1f MB, staged %.1f MB (%.2f of it), rows %.2f of that\n", file_mb(dir), file_mb(staged), file_mb(staged) / file_mb(dir), mb / file_mb(staged));
    store_close(&store);
    unlink(beside.path);
    remove_state(dir);
    remove_state(staged);
    return 0;
}
