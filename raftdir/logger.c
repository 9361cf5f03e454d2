/* logger.c - see logger.h. */
#include "logger.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_LEN_MAX 2048
#define LIMIT_MS 60000

static _Atomic int level_max = LOGGER_INFO;
static const char *const names[] = {"error", "warn", "info", "debug"};

void logger_level_set(enum logger_level level)
{
    atomic_store(&level_max, (int)level);
}

int logger_level_parse(const char *s)
{
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(s, names[i]) == 0)
            return i;
    return -1;
}

void logger_line(enum logger_level level, const char *module, const char *fmt, ...)
{
    if ((int)level > atomic_load_explicit(&level_max, memory_order_relaxed))
        return;
    char line[LINE_LEN_MAX];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    int m = snprintf(line + n, sizeof line - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000, names[level], module);
    n += (size_t)m;
    va_list ap;
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof line - n, fmt, ap);
    va_end(ap);
    size_t end = m < 0 ? n : n + (size_t)m;
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    for (size_t i = n; i < end; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[end++] = '\n';
    for (size_t done = 0; done < end;) {
        ssize_t w = write(STDERR_FILENO, line + done, end - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return; /* nobody reads the log: nothing that could be done about it */
        done += (size_t)w;
    }
}

bool logger_limit_pass(struct logger_limit *limit, uint64_t *held_back_r)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t now = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
    uint64_t next = atomic_load(&limit->next_ms);
    if (now < next || !atomic_compare_exchange_strong(&limit->next_ms, &next, now + LIMIT_MS)) {
        atomic_fetch_add(&limit->held_back, 1);
        *held_back_r = 0;
        return false;
    }
    *held_back_r = atomic_exchange(&limit->held_back, 0);
    return true;
}
