/* sim_main.c - raftdir-sim: runs seeds, each in a process of its own, so that a crash or a failed assert is reported with its seed. */
#include "sim.h"
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SEED_SECONDS_MAX 300 /* of real time: a run that takes longer hangs */
#define FAILURES_MAX 10

static const char *const profile_names[] = {"mixed", "calm", "normal", "chaos"};
static char work_dir[160];
static volatile sig_atomic_t interrupted;
static volatile pid_t running; /* the seed's process; 0: none */

static void help(FILE *f)
{
    fputs("raftdir-sim - whole raftdir clusters in one process, under a seeded clock, network and disk\n"
          "\n"
          "  raftdir-sim [options]\n"
          "  --seed N           the first seed (default 1)\n"
          "  --count N          how many seeds, from there on (default 1)\n"
          "  --duration MS      virtual time with faults (default 20000); up to 20 s more without, to converge\n"
          "  --nodes N          voters, 2 to 7 (default: the seed chooses)\n"
          "  --profile NAME     mixed (the default: the seed chooses), calm, normal or chaos\n"
          "  --guards-off MASK  switches guards off (the bits of raftdir/guard.h)\n"
          "  --plant NAME       plants a bug, to see a checker find it\n"
          "  --plants           lists the bugs: name, the checkers that may find it, what it does (tabs between)\n"
          "  --trace            prints every event\n"
          "  --progress         prints a line for each seed\n"
          "  --keep-going       doesn't stop after 10 failed seeds\n"
          "  --help\n"
          "\n"
          "The same seed and options give the same run, whose hash is printed. A violated property is printed with its seed, the virtual time and the\n"
          "command that replays it. Exit status: 0 no violation, 1 some seed failed, 2 usage.\n"
          "Environments are kept under $TMPDIR, or /dev/shm, while a seed runs.\n",
          f);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void run_seed(const struct sim_options *options)
{
    world_init(options);
    check_periodic();
    admin_start();
    client_start();
    fault_start();
    world_run(sim.started + options->duration_ms);
    fault_heal();
    check_converge_start();
    world_run(UINT64_MAX);
    check_final();
    struct sim_stats stats = sim.stats;
    world_close();
    sim.stats = stats;
}

static void interrupt(int sig)
{
    interrupted = sig;
    if (running)
        kill(running, SIGKILL);
}

/* In a child. */
static void child(const struct sim_options *options, int out)
{
    alarm(SEED_SECONDS_MAX);
    run_seed(options);
    fflush(stdout);
    if (write(out, &sim.stats, sizeof sim.stats) != (ssize_t)sizeof sim.stats)
        exit(EXIT_FAILURE);
    exit(EXIT_SUCCESS);
}

/* False when the seed failed. */
static bool one_seed(struct sim_options *options, struct sim_stats *stats_r)
{
    char dir[176];
    int fds[2], status = 0;
    snprintf(dir, sizeof dir, "%s/%" PRIu64, work_dir, options->seed);
    if (mkdir(dir, 0700) || pipe(fds)) {
        fprintf(stderr, "raftdir-sim: %s: %s\n", dir, strerror(errno));
        exit(EXIT_FAILURE);
    }
    options->dir = dir;
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0) {
        fprintf(stderr, "raftdir-sim: fork: %s\n", strerror(errno));
        exit(EXIT_FAILURE);
    }
    if (!pid) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        close(fds[0]);
        child(options, fds[1]);
    }
    running = pid;
    if (interrupted) /* before it was known */
        kill(pid, SIGKILL);
    close(fds[1]);
    bool ok = read(fds[0], stats_r, sizeof *stats_r) == (ssize_t)sizeof *stats_r;
    close(fds[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    running = 0;
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (interrupted)
        return false;
    if (WIFSIGNALED(status))
        printf("VIOLATION crash: seed %" PRIu64 " was ended by signal %d (%s)\n  replay: raftdir-sim --seed %" PRIu64
               " --count 1 --profile %s --duration %" PRIu64 " --trace, with the options given\n",
               options->seed, WTERMSIG(status), strsignal(WTERMSIG(status)), options->seed, profile_names[options->profile], options->duration_ms);
    else if (WEXITSTATUS(status) && WEXITSTATUS(status) != EXIT_VIOLATION)
        printf("VIOLATION exit: seed %" PRIu64 " ended with status %d\n", options->seed, WEXITSTATUS(status));
    fflush(stdout);
    return ok && !status;
}

static void print_totals(uint64_t seeds, uint64_t failed, const struct sim_stats *total, double seconds)
{
    printf("seeds %" PRIu64 ", failed %" PRIu64, seeds, failed);
#define X(field, name) printf(", %s %" PRIu64, name, total->field);
    SIM_STATS(X)
#undef X
    printf(", slowest convergence %" PRIu64 " ms, hash %016" PRIx64 ", %.1f s, %.2f seeds/s\n", total->settle_ms, total->hash, seconds,
           seconds > 0 ? (double)seeds / seconds : 0.0);
}

static uint64_t number(const char *option, const char *text, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 0);
    if (errno || *end || end == text || *text == '-' || v < min || v > max) {
        fprintf(stderr, "raftdir-sim: --%s: \"%s\" is not a number from %" PRIu64 " to %" PRIu64 "\n", option, text, min, max);
        exit(2);
    }
    return v;
}

static void remove_work_dir(void)
{
    rmdir(work_dir);
}

int main(int argc, char **argv)
{
    enum { SEED = 1, COUNT, DURATION, NODES, PROFILE, GUARDS_OFF, PLANT, PLANTS, TRACE_OPT, PROGRESS, KEEP_GOING, HELP };
    static const struct option long_options[] = {{"seed", required_argument, NULL, SEED},
                                                 {"count", required_argument, NULL, COUNT},
                                                 {"duration", required_argument, NULL, DURATION},
                                                 {"nodes", required_argument, NULL, NODES},
                                                 {"profile", required_argument, NULL, PROFILE},
                                                 {"guards-off", required_argument, NULL, GUARDS_OFF},
                                                 {"plant", required_argument, NULL, PLANT},
                                                 {"plants", no_argument, NULL, PLANTS},
                                                 {"trace", no_argument, NULL, TRACE_OPT},
                                                 {"progress", no_argument, NULL, PROGRESS},
                                                 {"keep-going", no_argument, NULL, KEEP_GOING},
                                                 {"help", no_argument, NULL, HELP},
                                                 {NULL, 0, NULL, 0}};
    struct sim_options options = {.seed = 1, .duration_ms = 20000};
    uint64_t count = 1;
    bool progress = false, keep_going = false;
    int opt;
    while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (opt) {
        case SEED:
            options.seed = number("seed", optarg, 0, UINT64_MAX / 2);
            break;
        case COUNT:
            count = number("count", optarg, 1, 100000000);
            break;
        case DURATION:
            options.duration_ms = number("duration", optarg, 1000, 3600000);
            break;
        case NODES:
            options.nodes = (unsigned)number("nodes", optarg, 2, VOTERS_MAX);
            break;
        case PROFILE:
            for (options.profile = PROFILE_CHAOS; options.profile && strcmp(profile_names[options.profile], optarg);)
                options.profile--;
            if (strcmp(profile_names[options.profile], optarg)) {
                fprintf(stderr, "raftdir-sim: --profile: \"%s\" is not mixed, calm, normal or chaos\n", optarg);
                return 2;
            }
            break;
        case GUARDS_OFF:
            options.guards_off = (unsigned)number("guards-off", optarg, 0, UINT32_MAX);
            break;
        case PLANT:
            options.plant = plant_by_name(optarg);
            if (!options.plant) {
                fprintf(stderr, "raftdir-sim: --plant: there is no \"%s\"; --plants lists them\n", optarg);
                return 2;
            }
            break;
        case PLANTS:
            plant_list();
            return 0;
        case TRACE_OPT:
            options.trace = true;
            break;
        case PROGRESS:
            progress = true;
            break;
        case KEEP_GOING:
            keep_going = true;
            break;
        case HELP:
            help(stdout);
            return 0;
        default:
            help(stderr);
            return 2;
        }
    }
    if (optind < argc) {
        help(stderr);
        return 2;
    }
    const char *tmp = getenv("TMPDIR");
    if (!tmp)
        tmp = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    if ((size_t)snprintf(work_dir, sizeof work_dir, "%s/raftdir-sim.XXXXXX", tmp) >= sizeof work_dir - 8 || !mkdtemp(work_dir)) {
        fprintf(stderr, "raftdir-sim: can't make a directory in %s\n", tmp);
        return 2;
    }
    atexit(remove_work_dir);
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);

    struct sim_stats total = {0};
    struct timespec from, to;
    uint64_t done = 0, failed = 0;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (; done < count && (keep_going || failed < FAILURES_MAX); done++) {
        struct sim_stats stats = {0};
        bool ok = one_seed(&options, &stats);
        if (interrupted)
            break;
        failed += !ok;
#define X(field, name) total.field += stats.field;
        SIM_STATS(X)
#undef X
        if (stats.settle_ms > total.settle_ms)
            total.settle_ms = stats.settle_ms;
        total.hash = total.hash * 31 + stats.hash;
        if (progress && ok)
            printf("seed %" PRIu64 ": ok, %" PRIu64 " steps, %" PRIu64 " commits, %" PRIu64 " acks, converged in %" PRIu64 " ms, hash %016" PRIx64 "\n",
                   options.seed, stats.steps, stats.commits, stats.acks, stats.settle_ms, stats.hash);
        options.seed++;
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    print_totals(done, failed, &total, (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec));
    if (interrupted)
        printf("interrupted at seed %" PRIu64 "\n", options.seed);
    return failed || interrupted ? 1 : 0;
}
