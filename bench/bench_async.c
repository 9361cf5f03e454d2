/* bench_async.c - lookups in an event loop: one thread, one handle, one connection, N questions in flight. bench/README.md tells more.
 *
 *     bench_async [--endpoint E] [--in-flight N] [--seconds T] NAME...      names of mailboxes, asked in turn
 *
 * Prints one JSON object: lookups a second, and the latency of each from start to callback. Exit status: 0; 1: a lookup failed; 2 usage. */
#include <getopt.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "include/raftdir.h"

#define IN_FLIGHT_MAX 1024
#define BUCKETS 100000 /* of 10 us */

static raftdir *d;
static char **names;
static size_t names_n, next_name;
static uint64_t started_us[IN_FLIGHT_MAX], stop_us, lookups, failed, histogram[BUCKETS];
static unsigned in_flight;

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void ask(size_t i);

static void answered(void *data, int code, const char *message, const struct raftdir_mailbox *m)
{
    size_t i = (size_t)(uintptr_t)data;
    uint64_t now = now_us(), took = (now - started_us[i]) / 10;
    (void)m;
    in_flight--;
    lookups++;
    histogram[took < BUCKETS ? took : BUCKETS - 1]++;
    if (code < 0 && !failed++)
        fprintf(stderr, "bench_async: %s\n", message);
    if (now < stop_us)
        ask(i);
}

static void ask(size_t i)
{
    started_us[i] = now_us();
    const char *name = names[next_name++ % names_n];
    if (raftdir_lookup_start(d, name, answered, (void *)(uintptr_t)i) < 0) {
        fprintf(stderr, "bench_async: %s\n", raftdir_message(d));
        exit(1);
    }
    in_flight++;
}

static double percentile(double p)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((double)(sum += histogram[i]) >= p * (double)lookups)
            return (double)(i + 1) / 100;
    return -1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"endpoint", required_argument, NULL, 'e'}, {"in-flight", required_argument, NULL, 'n'}, {"seconds", required_argument, NULL, 's'}, {0}};
    struct raftdir_options o;
    unsigned n = 1000;
    double seconds = 5;
    char text[256];
    int c;
    raftdir_options_init(&o);
    o.local_dir = "";
    o.only_these = 1;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (c == 'e')
            o.endpoints = optarg;
        else if (c == 'n')
            n = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 's')
            seconds = strtod(optarg, NULL);
        else
            return 2;
    names = argv + optind;
    names_n = (size_t)(argc - optind);
    if (!names_n || !n || n > IN_FLIGHT_MAX) {
        fprintf(stderr, "usage: bench_async [--endpoint E] [--in-flight N] [--seconds T] NAME...\n");
        return 2;
    }
    if (raftdir_open(&o, &d, text, sizeof text) < 0) {
        fprintf(stderr, "bench_async: %s\n", text);
        return 1;
    }
    struct pollfd p = {.fd = raftdir_fd(d), .events = POLLIN};
    uint64_t began = now_us(), turns = 0;
    stop_us = began + (uint64_t)(seconds * 1e6);
    for (size_t i = 0; i < n; i++)
        ask(i);
    while (in_flight)
        if (poll(&p, 1, 1000) == 1) {
            raftdir_process(d);
            turns++;
        }
    double took = (double)(now_us() - began) / 1e6;
    printf("{\"in_flight\":%u,\"seconds\":%.2f,\"lookups\":%llu,\"failed\":%llu,\"rate\":%.0f,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"turns\":%llu}\n", n, took,
           (unsigned long long)lookups, (unsigned long long)failed, (double)lookups / took, percentile(0.5), percentile(0.99), (unsigned long long)turns);
    raftdir_close(&d);
    return failed != 0;
}
