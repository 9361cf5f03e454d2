/* power_cut_helper.c - for tests/cluster/power_cut: what a shell can't do.
 *
 *     power_cut_helper copy FROM TO        clones FROM (FICLONE: a file system with reflink) to TO, which is created; prints the clock before and after
 *     power_cut_helper clock               prints the clock
 *     power_cut_helper writeback FILE...   has some of each file's dirty pages written, chosen at random, in no order and without a flush
 *
 * The clock is CLOCK_MONOTONIC in microseconds, as in bench_load's journal. A shell's cp would not do: what is acknowledged while it starts is not known to have
 * been before the copy, and an acknowledgement given some milliseconds too early would never be seen.
 * Writeback is what the kernel does by itself after some 30 seconds, or sooner when memory is short: without it a disk holds what was flushed
 * and nothing else, which a program that never flushes would survive well. A file that has gone meanwhile is left out.
 *
 * Exit status: 0 done, 1 not, 2 usage. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE_LEN 4096

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int failed(const char *what)
{
    fprintf(stderr, "power_cut_helper: %s: %s\n", what, strerror(errno));
    return 1;
}

static int copy(const char *from_path, const char *to_path)
{
    int from = open(from_path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return failed(from_path);
    int to = open(to_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return failed(to_path);
    uint64_t before = now_us();
    if (ioctl(to, FICLONE, from) != 0)
        return failed("reflink");
    uint64_t after = now_us();
    return printf("%" PRIu64 " %" PRIu64 "\n", before, after) < 0 || fflush(stdout) != 0;
}

/* Runs of 1 to 16 pages, every second one or so; pages that are clean cost nothing. */
static int writeback(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : failed(path);
    if (fstat(fd, &st) != 0)
        return failed(path);
    for (off_t at = 0; at < st.st_size;) {
        off_t len = (off_t)(1 + random() % 16) * PAGE_LEN;
        if (random() % 2 && sync_file_range(fd, at, len, SYNC_FILE_RANGE_WRITE) != 0)
            return failed(path);
        at += len;
    }
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "copy") == 0)
        return copy(argv[2], argv[3]);
    if (argc == 2 && strcmp(argv[1], "clock") == 0)
        return printf("%" PRIu64 "\n", now_us()) < 0 || fflush(stdout) != 0;
    if (argc > 2 && strcmp(argv[1], "writeback") == 0) {
        srandom((unsigned)now_us());
        for (int i = 2; i < argc; i++)
            if (writeback(argv[i]) != 0)
                return 1;
        return 0;
    }
    fputs("Usage: power_cut_helper copy FROM TO | clock | writeback FILE...\n", stderr);
    return 2;
}
