/* disk_copy.c - for tests/cluster/power_cut: a file's contents at one instant, and when that was.
 *
 *     disk_copy FROM TO     clones FROM (FICLONE: a file system with reflink) to TO, which is created; prints the clock before and after
 *     disk_copy             prints the clock
 *
 * The clock is CLOCK_MONOTONIC in microseconds, as in bench_load's journal. A shell's cp would not do: what is acknowledged while it starts is not known to have
 * been before the copy, and an acknowledgement given some milliseconds too early would never be seen. Exit status: 0 done, 1 not, 2 usage. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int failed(const char *what)
{
    fprintf(stderr, "disk_copy: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 1 && argc != 3) {
        fputs("Usage: disk_copy [FROM TO]\n", stderr);
        return 2;
    }
    if (argc == 1)
        return printf("%" PRIu64 "\n", now_us()) < 0 || fflush(stdout) != 0;
    int from = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return failed(argv[1]);
    int to = open(argv[2], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return failed(argv[2]);
    uint64_t before = now_us();
    if (ioctl(to, FICLONE, from) != 0)
        return failed("reflink");
    uint64_t after = now_us();
    return printf("%" PRIu64 " %" PRIu64 "\n", before, after) < 0 || fflush(stdout) != 0;
}
