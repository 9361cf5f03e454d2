/* logger.h - the daemon's log: lines on standard error, "2026-01-02T03:04:05.678Z level module: text", one write(2) a line.
 *
 * Thread-safe. Control characters in the text (it may quote what a peer sent) are shown as '?', so that one event is one line. */
#ifndef RAFTDIR_LOGGER_H
#define RAFTDIR_LOGGER_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum logger_level { LOGGER_ERROR = 0, LOGGER_WARN, LOGGER_INFO, LOGGER_DEBUG };

void logger_level_set(enum logger_level level);
/* "error", "warn", "info" or "debug"; -1 for anything else. */
int logger_level_parse(const char *s);
void logger_line(enum logger_level level, const char *module, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* One line a cause and minute: what came in between is counted and said with the next line. Zero-initialised, any number of threads. */
struct logger_limit {
    _Atomic uint64_t next_ms;
    _Atomic uint64_t held_back;
};
bool logger_limit_pass(struct logger_limit *limit, uint64_t *held_back_r);
/* As logger_line; the cause is the place in the source. */
#define logger_limited(level, module, ...)                                                                                                 \
    do {                                                                                                                                   \
        static struct logger_limit limit_;                                                                                                 \
        uint64_t held_back_;                                                                                                               \
        if (logger_limit_pass(&limit_, &held_back_)) {                                                                                     \
            logger_line(level, module, __VA_ARGS__);                                                                                       \
            if (held_back_)                                                                                                                \
                logger_line(level, module, "(%llu more of this kind were not logged)", (unsigned long long)held_back_);                   \
        }                                                                                                                                  \
    } while (0)

#endif
