/* exec_cyrus.c - raftdir-cyrus PROGRAM [ARGUMENT...]: runs one of Cyrus' programs with libraftdir-cyrus.so preloaded, or not at all.
 *
 * Setting LD_PRELOAD by hand does the same, but the dynamic linker goes on without a module that it can't load (a package half removed, a wrong path), with one line
 * on standard error that nobody reads. An lmtpd that has lost its directory in that way takes every user of another server for unknown, and bounces
 * their mail. So this loads the module by way of trial first. What else is in LD_PRELOAD stays there, behind it.
 *
 * The module is beside this program. Exit status: the program's; EX_CONFIG (78) when the module can't be loaded, EX_UNAVAILABLE (69) when the program can't be run. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <syslog.h>
#include <unistd.h>

#define MODULE "libraftdir-cyrus.so"
#define PATH_LEN_MAX 4096

static int fail(int status, const char *what, const char *why)
{
    fprintf(stderr, "raftdir-cyrus: %s: %s\n", what, why);
    openlog("raftdir-cyrus", LOG_PID, LOG_MAIL);
    syslog(LOG_CRIT, "%s: %s", what, why);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] != '/') {
        fprintf(stderr, "usage: raftdir-cyrus /PATH/OF/PROGRAM [ARGUMENT...]\nRuns a program of Cyrus IMAP with " MODULE " (raftdir's client/CYRUS.md).\n");
        return EX_USAGE;
    }
    char path[PATH_LEN_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof MODULE);
    if (n < 0)
        return fail(EX_CONFIG, "/proc/self/exe", strerror(errno));
    path[n] = 0;
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, MODULE);
    /* A blank or a colon would part it into two names. */
    if (strpbrk(path, ": \t"))
        return fail(EX_CONFIG, path, "LD_PRELOAD can't have a path with a blank or a colon");
    if (!dlopen(path, RTLD_NOW | RTLD_LOCAL))
        return fail(EX_CONFIG, argv[1], dlerror());
    const char *others = getenv("LD_PRELOAD");
    char *preload = NULL;
    if (asprintf(&preload, "%s%s%s", path, others && others[0] ? ":" : "", others ? others : "") < 0 || setenv("LD_PRELOAD", preload, 1) != 0)
        return fail(EX_CONFIG, argv[1], "out of memory");
    execv(argv[1], argv + 1);
    return fail(EX_UNAVAILABLE, argv[1], strerror(errno));
}
