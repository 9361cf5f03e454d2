/* bench_mupdate.c - a load of MUPDATE (RFC 3656) on any server that speaks it: raftdir's nodes, or Cyrus' own master. bench/README.md tells more; bench/mupdate runs it on both.
 *
 *     bench_mupdate [options] dump               the mailboxes that the other modes expect, on standard output, as Cyrus 3.6 dumps them (raftdirctl import); with --flat as the "flat" form
 *                                                of a master's mailboxes.db, to be sorted (cvt_cyrusdb, which takes seconds where ctl_mboxlist -u takes an hour)
 *     bench_mupdate [options] fill               the same mailboxes by ACTIVATE, --window of them on the way on each connection
 *     bench_mupdate [options] find               FIND of mailboxes at random
 *     bench_mupdate [options] write              RESERVE, then ACTIVATE, of names that nobody has had
 *     bench_mupdate [options] update             the list of an UPDATE, from the command to its OK; afterwards each row is looked at
 *     bench_mupdate [options] find-during-update FIND for --seconds, then the same while UPDATEs run: --updates, and as many as begin within --seconds
 *     bench_mupdate [options] push               how long a change takes from ACTIVATE until --connections sessions that have said UPDATE have all got it
 *
 * One thread and epoll for FIND and writes: each connection has one command on its way. UPDATE is read by a thread of its own into memory and looked at when its time has been taken, so
 * that this program's own work isn't measured: rows in strictly ascending Cyrus order, --rows of them.
 * Where FINDs are measured meanwhile, that thread is a little less urgent (READER_NICE) than the one that asks: it stands for a frontend on another machine.
 * With --rate, FINDs are begun by the clock and timed from the moment when they should have begun; a server that stalls can't hide that by stalling its clients.
 * With --fresh, each write has a connection of its own, with banner, login and LOGOUT, as Cyrus' imapd does it.
 *
 * CPU time comes from /proc/PID/stat: of this process, and of those named by --pids; its grain is 10 ms.
 *
 * Exit status: 0; 1: an answer was wrong (NO, a row out of order, a wrong number of rows, another mailbox than asked for); 2 usage; 3 the server can't be reached or is silent for 120 s. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "raftdir/limits.h"
#include "raftdir/mem.h"
#include "raftdir/mupdate_parse.h"
#include "raftdir/mupdate_print.h"
#include "raftdir/name.h"

#define TO_MAX 16
#define PIDS_MAX 64
#define CONNS_MAX 16384
#define SILENCE_MS 120000
#define READER_NICE 10
#define FOLDERS 8 /* mailboxes of a user */

static struct {
    const char *to[TO_MAX], *user, *password, *label, *prefix;
    unsigned to_n, conns, window, updates;
    uint64_t mailboxes, rows, rate;
    double seconds;
    pid_t pids[PIDS_MAX];
    unsigned pids_n;
    bool json, flat, fresh, header;
} opt = {.conns = 1, .window = 64, .updates = 1, .mailboxes = 1000, .seconds = 5, .rows = UINT64_MAX};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(int status, const char *fmt, ...) __attribute__((noreturn, format(printf, 2, 3)));
static void die(int status, const char *fmt, ...)
{
    va_list ap;
    fputs("bench_mupdate: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(status);
}

/* Answers that are wrong: the first few are shown. */
static uint64_t faults;
static void fault(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void fault(const char *fmt, ...)
{
    va_list ap;
    if (__atomic_fetch_add(&faults, 1, __ATOMIC_RELAXED) >= 10)
        return;
    fputs("bench_mupdate: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

/* --- Which mailboxes there are: users with eight each, some in domains, some with a dot in their name ------------------------------------------ */

struct mailbox {
    char name[96], server[32], acl[96];
    const char *partition;
};
static void mailbox_at(uint64_t i, struct mailbox *m)
{
    static const char *const folders[FOLDERS] = {"", ".Archive", ".Archive.2025", ".Drafts", ".Sent", ".Spam", ".Trash", ".lists^cyrus-devel"};
    uint64_t u = i / FOLDERS;
    char domain[24] = "", user[40];
    if (u % 4 == 3)
        snprintf(domain, sizeof domain, "d%" PRIu64 ".example!", u % 64);
    snprintf(user, sizeof user, u % 4 == 1 ? "first^last%07" PRIu64 : "u%07" PRIu64, u);
    snprintf(m->name, sizeof m->name, "%suser.%s%s", domain, user, folders[i % FOLDERS]);
    snprintf(m->server, sizeof m->server, "imap%02" PRIu64 ".bench.test", u % 10);
    for (char *c = user; *c; c++)
        *c = *c == '^' ? '.' : *c;
    snprintf(m->acl, sizeof m->acl, "%s\tlrswipkxtecdan\tanyone\tp\t", user);
    m->partition = "default";
}

static void dump(void)
{
    struct mailbox m;
    if (!opt.flat)
        puts("{");
    for (uint64_t i = 0; i < opt.mailboxes; i++) {
        mailbox_at(i, &m);
        char *tab = strchr(m.acl, '\t');
        if (opt.flat) {
            uint8_t key[NAME_KEY_LEN_MAX];
            size_t len = name_to_key(m.name, strlen(m.name), key);
            printf("N%.*s\t%%(T er P %s S %s M 1795284103 A %%(%.*s lrswipkxtecdan anyone p))\n", (int)len, (const char *)key, m.partition, m.server, (int)(tab - m.acl), m.acl);
            continue;
        }
        printf("\"%s\": {\"name\": \"%s\", \"mtime\": \"1795284103\", \"uidvalidity\": \"0\", \"createdmodseq\": \"0\", \"foldermodseq\": \"0\", \"mbtype\": \"e\", "
               "\"partition\": \"%s\", \"server\": \"%s\", \"acl\": {\"%.*s\": \"lrswipkxtecdan\", \"anyone\": \"p\"}, \"uniqueid\": \"bench%019" PRIu64 "\", \"name_history\": []}%s\n",
               m.name, m.name, m.partition, m.server, (int)(tab - m.acl), m.acl, i, i + 1 < opt.mailboxes ? "," : "");
    }
    if (!opt.flat)
        puts("}");
    if (fflush(stdout) == EOF)
        die(3, "standard output: %s", strerror(errno));
}

/* --- CPU time ------------------------------------------------------------------------------------------------------------------------------------------- */

static double server_cpu(void)
{
    double all = 0;
    for (unsigned i = 0; i < opt.pids_n; i++) {
        char path[64], text[1024];
        unsigned long user, sys;
        snprintf(path, sizeof path, "/proc/%ld/stat", (long)opt.pids[i]);
        FILE *f = fopen(path, "r");
        size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
        if (f)
            fclose(f);
        text[n] = '\0';
        const char *end = strrchr(text, ')'); /* the command's name may hold anything */
        if (!end || sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) != 2)
            die(3, "%s can't be read: has the server ended?", path);
        all += (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
    }
    return all;
}

static double own_cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* --- What was measured -------------------------------------------------------------------------------------------------------------------------------- */

struct samples {
    uint64_t *ns;
    size_t n, size;
};
static void samples_add(struct samples *s, uint64_t ns)
{
    if (s->n == s->size)
        s->ns = mem_realloc(s->ns, (s->size = s->size ? 2 * s->size : 65536) * sizeof *s->ns);
    s->ns[s->n++] = ns;
}
static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
/* Of sorted samples, in microseconds. */
static double percentile(const struct samples *s, double p)
{
    if (!s->n)
        return 0;
    size_t i = (size_t)((double)s->n * p);
    return (double)s->ns[i < s->n ? i : s->n - 1] / 1e3;
}

struct clocks {
    uint64_t ns;
    double own, server;
};
static struct clocks clocks_now(void)
{
    return (struct clocks){now_ns(), own_cpu(), server_cpu()};
}

static json_t *results;
/* Adds a result; the caller may put more into it. */
static json_t *report(const char *what, uint64_t n, const struct clocks *from, const struct clocks *to, struct samples *s)
{
    double took = (double)(to->ns - from->ns) / 1e9, ops = n ? (double)n : 1;
    if (s->n)
        qsort(s->ns, s->n, sizeof *s->ns, by_number);
    json_t *o = json_pack("{s:s,s:I,s:f,s:I,s:f,s:f,s:f,s:f,s:f}", "what", what, "connections", (json_int_t)opt.conns, "seconds", took, "operations", (json_int_t)n, "rate", (double)n / took, "p50_us",
                          percentile(s, 0.5), "p99_us", percentile(s, 0.99), "max_us", percentile(s, 1), "client_cpu_us", (to->own - from->own) * 1e6 / ops);
    if (!o || json_array_append_new(results, o) < 0)
        mem_exhausted("a result");
    if (opt.pids_n)
        json_object_set_new(o, "server_cpu_us", json_real((to->server - from->server) * 1e6 / ops));
    if (opt.label)
        json_object_set_new(o, "label", json_string(opt.label));
    return o;
}

static void show(void)
{
    size_t i;
    json_t *o;
    if (opt.json) {
        json_array_foreach (results, i, o) {
            json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
            putchar('\n');
        }
        return;
    }
    if (opt.header)
        printf("%-14s %-20s %5s %8s %10s %10s %10s %10s %11s %10s %10s\n", "server", "what", "conns", "seconds", "n", "rate/s", "p50 us", "p99 us", "max us", "own CPU us", "server us");
    json_array_foreach (results, i, o) {
        json_t *cpu = json_object_get(o, "server_cpu_us");
        printf("%-14s %-20s %5lld %8.2f %10lld %10.0f %10.0f %10.0f %11.0f %10.2f ", opt.label ? opt.label : "-", json_string_value(json_object_get(o, "what")),
               (long long)json_integer_value(json_object_get(o, "connections")), json_real_value(json_object_get(o, "seconds")), (long long)json_integer_value(json_object_get(o, "operations")),
               json_real_value(json_object_get(o, "rate")), json_real_value(json_object_get(o, "p50_us")), json_real_value(json_object_get(o, "p99_us")), json_real_value(json_object_get(o, "max_us")),
               json_real_value(json_object_get(o, "client_cpu_us")));
        if (cpu)
            printf("%10.2f\n", json_real_value(cpu));
        else
            printf("%10s\n", "-");
    }
}

/* --- A connection ---------------------------------------------------------------------------------------------------------------------------------------- */

struct link {
    int fd;
    unsigned number;
    char *in; /* what came, from the first line that isn't whole */
    size_t len, size, at; /* at: what of it is done with */
    struct mupdate_parser parser;
    struct mupdate_out out;
    size_t out_at;
    bool waits_out; /* for room in the socket */
    /* The command on its way, or with a window the oldest of them. */
    char tag[16];
    unsigned sequence, on_way;
    uint64_t begun_ns, mailbox;
    bool row_seen, activating;
};

static int connect_to(const char *to)
{
    int fd;
    if (*to == '/') {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        if (strlen(to) >= sizeof a.sun_path)
            die(2, "%s is too long for a socket's path", to);
        strcpy(a.sun_path, to);
        if ((fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
            die(3, "%s: %s", to, strerror(errno));
        return fd;
    }
    const char *colon = strrchr(to, ':');
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list;
    if (!colon || colon == to || (size_t)(colon - to) >= sizeof host)
        die(2, "\"%s\" is neither HOST:PORT nor a socket's path", to);
    snprintf(host, sizeof host, "%.*s", (int)(colon - to), to);
    int rc = getaddrinfo(host, colon + 1, &hints, &list), on = 1;
    if (rc)
        die(3, "%s: %s", to, gai_strerror(rc));
    if ((fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0 || connect(fd, list->ai_addr, list->ai_addrlen) < 0)
        die(3, "%s: %s", to, strerror(errno));
    freeaddrinfo(list);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* One read. False: there is nothing more at present. */
static bool link_read(struct link *l)
{
    if (l->at) {
        memmove(l->in, l->in + l->at, l->len - l->at);
        l->len -= l->at;
        l->at = 0;
    }
    if (l->size - l->len < 65536)
        l->in = mem_realloc(l->in, l->size = l->size ? 2 * l->size : 131072);
    for (;;) {
        ssize_t n = recv(l->fd, l->in + l->len, l->size - l->len, 0);
        if (n > 0) {
            l->len += (size_t)n;
            return true;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return false;
        die(3, "the server closed a connection%s%s", n < 0 ? ": " : "", n < 0 ? strerror(errno) : "");
    }
}

/* The next whole line of what came. Its words live until the next read. */
static bool link_line(struct link *l, struct mupdate_line *line)
{
    size_t taken = 0;
    struct err err;
    if (l->at == l->len)
        return false;
    switch (mupdate_parse(&l->parser, l->in + l->at, l->len - l->at, line, &taken, &err)) {
    case MUPDATE_MORE: return false;
    case MUPDATE_LINE: l->at += taken; return true;
    default: die(1, "the server sent what isn't MUPDATE: %s", err.text);
    }
}

static void wait_for(int fd, short events)
{
    struct pollfd p = {fd, events, 0};
    while (poll(&p, 1, SILENCE_MS) < 0)
        if (errno != EINTR)
            die(3, "poll: %s", strerror(errno));
    if (!p.revents)
        die(3, "the server has been silent for %d s", SILENCE_MS / 1000);
}

static bool word_is(const struct mupdate_line *l, unsigned i, const char *text)
{
    return i < l->n && mupdate_word_is(&l->word[i], text);
}

/* Whole lines until one begins with `tag` and is an answer; waits. */
static void link_await(struct link *l, const char *tag, struct mupdate_line *line)
{
    for (;;) {
        while (link_line(l, line)) {
            if (word_is(line, 0, "*") && word_is(line, 1, "BYE"))
                die(3, "the server says BYE: %.*s", line->n > 2 ? (int)line->word[2].len : 0, line->n > 2 ? line->word[2].s : "");
            if (word_is(line, 0, tag) && (word_is(line, 1, "OK") || word_is(line, 1, "NO") || word_is(line, 1, "BAD")))
                return;
        }
        wait_for(l->fd, POLLIN);
        link_read(l);
    }
}

static bool link_flush(struct link *l)
{
    while (l->out_at < l->out.len) {
        ssize_t n = send(l->fd, l->out.p + l->out_at, l->out.len - l->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return false;
        if (n < 0)
            die(3, "a connection broke: %s", strerror(errno));
        l->out_at += (size_t)n;
    }
    l->out.len = l->out_at = 0;
    return true;
}

static void base64(const char *in, size_t len, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = 0;
        for (size_t k = 0; k < 3; k++)
            v = v << 8 | (i + k < len ? (unsigned char)in[i + k] : 0);
        for (size_t k = 0; k < 4; k++)
            *out++ = i + k <= len ? digits[v >> (18 - 6 * k) & 63] : '=';
    }
    *out = '\0';
}

static void link_open(struct link *l, unsigned number)
{
    struct mupdate_line line;
    l->number = number;
    l->fd = connect_to(opt.to[number % opt.to_n]);
    link_await(l, "*", &line);
    if (opt.user) {
        char plain[512], text[704];
        int n = snprintf(plain, sizeof plain, "%c%s%c%s", 0, opt.user, 0, opt.password);
        if (n < 0 || (size_t)n >= sizeof plain)
            die(2, "user and password are too long");
        base64(plain, (size_t)n, text);
        const struct mupdate_word args[] = {{"PLAIN", 5}, {text, strlen(text)}};
        mupdate_print_command(&l->out, "A", "AUTHENTICATE", 2, args);
        if (!link_flush(l))
            die(3, "a login doesn't fit into the socket");
        link_await(l, "A", &line);
        if (!word_is(&line, 1, "OK"))
            die(3, "the server refuses the login: %.*s", line.n > 2 ? (int)line.word[2].len : 0, line.n > 2 ? line.word[2].s : "");
    }
    if (fcntl(l->fd, F_SETFL, O_NONBLOCK) < 0)
        die(3, "fcntl: %s", strerror(errno));
}

static void link_close(struct link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    l->len = l->at = l->out.len = l->out_at = 0;
    memset(&l->parser, 0, sizeof l->parser);
}

static void link_free(struct link *l)
{
    link_close(l);
    free(l->in);
    mupdate_out_free(&l->out);
}

static void command(struct link *l, const char *verb, unsigned n, const char *const *args)
{
    struct mupdate_word w[4];
    for (unsigned i = 0; i < n; i++)
        w[i] = (struct mupdate_word){args[i], strlen(args[i])};
    snprintf(l->tag, sizeof l->tag, "X%u", l->sequence++);
    mupdate_print_command(&l->out, l->tag, verb, n, w);
    l->on_way++;
}

/* --- The loop: connections of which each is kept busy ---------------------------------------------------------------------------------------------------- */

struct load {
    struct link *links;
    int epoll;
    /* Puts the next command on its way, or not: the load ends when nobody has one. */
    void (*begin)(struct load *load, struct link *l);
    /* A line came. True: it ended the command. */
    bool (*line)(struct load *load, struct link *l, const struct mupdate_line *line);
    _Atomic bool stop;
    uint64_t until_ns, next, end; /* fill: which mailboxes are still to come */
    uint64_t done, random, last_ns, gap_ns, rate_begun_ns, rate_n;
    unsigned *idle, idle_n; /* --rate: connections without a command */
    struct samples samples;
    struct samples *during; /* of those commands that overlapped UPDATEs, which are told by update_from_ns and update_to_ns */
};

static _Atomic uint64_t update_from_ns, update_to_ns; /* when the first began, 0: none runs; when the last one ended */

static uint64_t random_next(struct load *load)
{
    /* xorshift64*: which mailbox is next, nothing more. */
    load->random ^= load->random >> 12;
    load->random ^= load->random << 25;
    load->random ^= load->random >> 27;
    return load->random * 2685821657736338717u;
}

static void watch_link(struct load *load, struct link *l, bool out, int op)
{
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = l};
    if (epoll_ctl(load->epoll, op, l->fd, &e) < 0)
        die(3, "epoll_ctl: %s", strerror(errno));
    l->waits_out = out;
}

static void push(struct load *load, struct link *l)
{
    bool whole = link_flush(l);
    if (whole == l->waits_out)
        watch_link(load, l, !whole, EPOLL_CTL_MOD);
}

static void ended(struct load *load, struct link *l)
{
    uint64_t now = now_ns();
    l->on_way--;
    load->done++;
    uint64_t from = update_from_ns;
    if (load->during && ((from && now >= from) || l->begun_ns < update_to_ns))
        samples_add(load->during, now - l->begun_ns);
    else
        samples_add(&load->samples, now - l->begun_ns);
    if (load->last_ns && now - load->last_ns > load->gap_ns)
        load->gap_ns = now - load->last_ns;
    load->last_ns = now;
}

static void drain_lines(struct load *load, struct link *l)
{
    struct mupdate_line line;
    while (link_line(l, &line)) {
        if (word_is(&line, 0, "*") && word_is(&line, 1, "BYE"))
            die(3, "the server says BYE: %.*s", line.n > 2 ? (int)line.word[2].len : 0, line.n > 2 ? line.word[2].s : "");
        if (load->line(load, l, &line))
            load->begin(load, l);
    }
}

/* --rate: what is due by the clock, on connections that are idle. In how many nanoseconds the next one is due, or -1. */
static int64_t begin_due(struct load *load)
{
    uint64_t now = now_ns();
    for (;;) {
        uint64_t due = load->rate_begun_ns + load->rate_n * 1000000000u / opt.rate;
        if (due > load->until_ns)
            return -1;
        if (due > now)
            return (int64_t)(due - now);
        if (!load->idle_n)
            return -1; /* it comes late, and its time counts from when it was due */
        struct link *l = &load->links[load->idle[--load->idle_n]];
        load->rate_n++;
        load->begin(load, l);
        l->begun_ns = due;
        push(load, l);
    }
}

static void load_run(struct load *load)
{
    struct epoll_event events[256];
    load->until_ns = now_ns() + (uint64_t)(opt.seconds * 1e9);
    load->rate_begun_ns = now_ns();
    load->rate_n = 0;
    load->stop = false;
    load->idle_n = 0;
    load->last_ns = load->gap_ns = 0;
    for (unsigned i = 0; i < opt.conns; i++) {
        if (opt.rate) {
            load->idle[load->idle_n++] = i;
            continue;
        }
        load->begin(load, &load->links[i]);
        push(load, &load->links[i]);
    }
    for (;;) {
        int64_t due_ns = opt.rate && !load->stop ? begin_due(load) : -1;
        unsigned busy = 0;
        for (unsigned i = 0; i < opt.conns && !busy; i++)
            busy = load->links[i].on_way;
        if (!busy && due_ns < 0)
            return;
        struct timespec wait = {SILENCE_MS / 1000, 0};
        if (due_ns >= 0)
            wait = (struct timespec){due_ns / 1000000000, due_ns % 1000000000};
        int n = epoll_pwait2(load->epoll, events, 256, &wait, NULL);
        if (n < 0 && errno != EINTR)
            die(3, "epoll_pwait2: %s", strerror(errno));
        if (!n && due_ns < 0)
            die(3, "the server has been silent for %d s", SILENCE_MS / 1000);
        for (int i = 0; i < n; i++) {
            struct link *l = events[i].data.ptr;
            if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && link_read(l))
                drain_lines(load, l);
            push(load, l);
        }
        if (!load->end && now_ns() >= load->until_ns)
            load->stop = true;
    }
}

static void load_open(struct load *load)
{
    signal(SIGPIPE, SIG_IGN);
    load->links = mem_calloc(opt.conns, sizeof *load->links);
    load->idle = mem_calloc(opt.conns, sizeof *load->idle);
    if ((load->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die(3, "epoll_create1: %s", strerror(errno));
    if (getrandom(&load->random, sizeof load->random, 0) != sizeof load->random)
        load->random = now_ns();
    load->random |= 1;
    for (unsigned i = 0; i < opt.conns; i++) {
        link_open(&load->links[i], i);
        watch_link(load, &load->links[i], false, EPOLL_CTL_ADD);
    }
}

static void load_measure(struct load *load, const char *what)
{
    struct clocks from = clocks_now();
    load_run(load);
    struct clocks to = clocks_now();
    struct samples none = {0};
    /* With a window, the time of one among many on the way says nothing. */
    json_t *o = report(what, load->done, &from, &to, load->end ? &none : &load->samples);
    json_object_set_new(o, "longest_gap_ms", json_real((double)load->gap_ns / 1e6));
}

static void load_close(struct load *load)
{
    for (unsigned i = 0; i < opt.conns; i++)
        link_free(&load->links[i]);
    close(load->epoll);
    free(load->links);
    free(load->idle);
    free(load->samples.ns);
}

/* --- FIND ----------------------------------------------------------------------------------------------------------------------------------------------- */

static void find_begin(struct load *load, struct link *l)
{
    struct mailbox m;
    if (load->stop)
        return;
    l->mailbox = random_next(load) % opt.mailboxes;
    mailbox_at(l->mailbox, &m);
    l->row_seen = false;
    command(l, "FIND", 1, (const char *const[]){m.name});
    l->begun_ns = now_ns();
}

static bool find_line(struct load *load, struct link *l, const struct mupdate_line *line)
{
    if (!word_is(line, 0, l->tag)) {
        fault("an answer with another tag than %s", l->tag);
        return false;
    }
    if (word_is(line, 1, "MAILBOX") && line->n == 5) {
        struct mailbox m;
        mailbox_at(l->mailbox, &m);
        l->row_seen = line->word[2].len == strlen(m.name) && !memcmp(line->word[2].s, m.name, line->word[2].len);
        return false;
    }
    if (!word_is(line, 1, "OK") || !l->row_seen) {
        struct mailbox m;
        mailbox_at(l->mailbox, &m);
        fault("FIND %s: %.*s %.*s", m.name, line->n > 1 ? (int)line->word[1].len : 0, line->n > 1 ? line->word[1].s : "", line->n > 2 ? (int)line->word[2].len : 0, line->n > 2 ? line->word[2].s : "");
    }
    ended(load, l);
    if (opt.rate) {
        load->idle[load->idle_n++] = l->number;
        return false;
    }
    return true;
}

static void find(void)
{
    struct load load = {.begin = find_begin, .line = find_line};
    load_open(&load);
    load_measure(&load, "FIND");
    load_close(&load);
}

/* --- RESERVE and ACTIVATE --------------------------------------------------------------------------------------------------------------------------------- */

#define WRITE_LOCATION "imap00.bench.test!default"
#define WRITE_ACL "writer\tlrswipkxtecdan\t"

static void write_name(const struct link *l, char *name, size_t size)
{
    snprintf(name, size, "user.%s.c%u-%06" PRIu64, opt.prefix, l->number, l->mailbox);
}

static void write_begin(struct load *load, struct link *l)
{
    char name[128];
    if (l->activating) {
        write_name(l, name, sizeof name);
        command(l, "ACTIVATE", 3, (const char *const[]){name, WRITE_LOCATION, WRITE_ACL});
        return;
    }
    if (load->stop)
        return;
    l->mailbox++;
    l->begun_ns = now_ns();
    if (opt.fresh) {
        link_close(l);
        link_open(l, l->number);
        watch_link(load, l, false, EPOLL_CTL_ADD);
    }
    write_name(l, name, sizeof name);
    command(l, "RESERVE", 2, (const char *const[]){name, WRITE_LOCATION});
}

static bool write_line(struct load *load, struct link *l, const struct mupdate_line *line)
{
    bool ok = word_is(line, 0, l->tag) && word_is(line, 1, "OK");
    if (!ok)
        fault("%s: %.*s %.*s", l->activating ? "ACTIVATE" : "RESERVE", line->n > 1 ? (int)line->word[1].len : 0, line->n > 1 ? line->word[1].s : "", line->n > 2 ? (int)line->word[2].len : 0,
              line->n > 2 ? line->word[2].s : "");
    if (ok && !l->activating) {
        l->activating = true;
        l->on_way--;
        return true;
    }
    l->activating = false;
    if (ok)
        ended(load, l);
    else
        l->on_way--;
    return true;
}

static void write_pairs(void)
{
    struct load load = {.begin = write_begin, .line = write_line};
    char prefix[32];
    load_open(&load);
    if (!opt.prefix) {
        snprintf(prefix, sizeof prefix, "w%08" PRIx32, (uint32_t)load.random);
        opt.prefix = prefix;
    }
    load_measure(&load, opt.fresh ? "RESERVE+ACTIVATE new" : "RESERVE+ACTIVATE");
    load_close(&load);
}

/* --- Filling ----------------------------------------------------------------------------------------------------------------------------------------------- */

static void fill_begin(struct load *load, struct link *l)
{
    struct mailbox m;
    char location[128];
    if (!l->on_way)
        l->begun_ns = now_ns();
    while (l->on_way < opt.window && load->next < load->end) {
        mailbox_at(load->next++, &m);
        snprintf(location, sizeof location, "%s!%s", m.server, m.partition);
        command(l, "ACTIVATE", 3, (const char *const[]){m.name, location, m.acl});
    }
}

static bool fill_line(struct load *load, struct link *l, const struct mupdate_line *line)
{
    if (!word_is(line, 1, "OK"))
        fault("ACTIVATE: %.*s %.*s", line->n > 1 ? (int)line->word[1].len : 0, line->n > 1 ? line->word[1].s : "", line->n > 2 ? (int)line->word[2].len : 0, line->n > 2 ? line->word[2].s : "");
    ended(load, l);
    /* In halves of a window, so that many commands share a write. */
    return l->on_way <= opt.window / 2;
}

static void fill(void)
{
    struct load load = {.begin = fill_begin, .line = fill_line, .end = opt.mailboxes};
    load_open(&load);
    load_measure(&load, "ACTIVATE, filling");
    load_close(&load);
}

/* --- UPDATE ---------------------------------------------------------------------------------------------------------------------------------------------------- */

struct reader {
    pthread_t thread;
    struct link link;
    uint64_t begun_ns, first_ns, ended_ns, rows;
};

/* Does what came end with the answer's last line? Rows end with a literal, so that no line of theirs can be mistaken for it, but what a literal has within could be: it has no CR LF here. */
static bool reader_ended(const struct link *l)
{
    static const char ok[] = "\nX0 OK ", no[] = "\nX0 NO ";
    if (l->len < 2 || l->in[l->len - 1] != '\n')
        return false;
    const char *last = memrchr(l->in, '\n', l->len - 1);
    size_t len = last ? l->len - (size_t)(last - l->in) : 0;
    if (!last) /* an empty list */
        return l->len >= sizeof ok - 2 && (!memcmp(l->in, ok + 1, sizeof ok - 2) || !memcmp(l->in, no + 1, sizeof no - 2));
    return len >= sizeof ok - 1 && (!memcmp(last, ok, sizeof ok - 1) || !memcmp(last, no, sizeof no - 1));
}

/* Nothing is parsed while the time runs. */
static void reader_read(struct reader *r)
{
    struct link *l = &r->link;
    l->sequence = 0;
    command(l, "UPDATE", 0, NULL);
    l->len = l->at = 0;
    if (l->size < 4u << 20)
        l->in = mem_realloc(l->in, l->size = 4u << 20);
    r->first_ns = 0;
    r->begun_ns = now_ns();
    if (!link_flush(l))
        die(3, "UPDATE doesn't fit into the socket");
    while (!reader_ended(l)) {
        if (!link_read(l))
            wait_for(l->fd, POLLIN);
        if (l->len && !r->first_ns)
            r->first_ns = now_ns();
    }
    r->ended_ns = now_ns();
}

static void reader_check(struct reader *r)
{
    struct mupdate_line line;
    uint8_t key[NAME_KEY_LEN_MAX], last[NAME_KEY_LEN_MAX];
    size_t last_len = 0;
    r->rows = 0;
    while (link_line(&r->link, &line)) {
        if (word_is(&line, 1, "OK"))
            break;
        if (word_is(&line, 1, "NO")) {
            fault("UPDATE: NO %.*s", line.n > 2 ? (int)line.word[2].len : 0, line.n > 2 ? line.word[2].s : "");
            break;
        }
        if (!((word_is(&line, 1, "MAILBOX") && line.n == 5) || (word_is(&line, 1, "RESERVE") && line.n == 4)) || line.word[2].len > NAME_KEY_LEN_MAX) {
            fault("a row that isn't one");
            continue;
        }
        size_t len = name_to_key(line.word[2].s, line.word[2].len, key);
        if (r->rows++ && name_key_cmp(last, last_len, key, len) >= 0)
            fault("%.*s comes after a name that it belongs before", (int)line.word[2].len, line.word[2].s);
        memcpy(last, key, len);
        last_len = len;
    }
    if (opt.rows != UINT64_MAX && r->rows != opt.rows)
        fault("%" PRIu64 " rows instead of %" PRIu64, r->rows, opt.rows);
}

static void update(void)
{
    struct samples s = {0};
    struct reader r = {.link.fd = -1};
    for (unsigned i = 0; i < opt.updates; i++) {
        link_open(&r.link, i);
        struct clocks from = clocks_now();
        reader_read(&r);
        struct clocks to = clocks_now();
        reader_check(&r);
        s.n = 0;
        samples_add(&s, r.ended_ns - r.begun_ns);
        json_t *o = report("UPDATE, rows", r.rows, &from, &to, &s);
        json_object_set_new(o, "first_ms", json_real((double)(r.first_ns - r.begun_ns) / 1e6));
        link_close(&r.link);
    }
    free(s.ns);
    link_free(&r.link);
}

struct updates {
    struct reader reader;
    struct load *load;
    unsigned n;
    uint64_t until_ns, ns; /* ns: of all UPDATEs */
};
static void *updates_run(void *arg)
{
    struct updates *u = arg;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), READER_NICE); /* what it can't have it does without */
    for (u->n = 0; u->n < opt.updates || now_ns() < u->until_ns; u->n++) {
        link_close(&u->reader.link);
        link_open(&u->reader.link, u->n);
        if (!u->n)
            update_from_ns = now_ns();
        reader_read(&u->reader);
        u->ns += u->reader.ended_ns - u->reader.begun_ns;
    }
    update_to_ns = u->reader.ended_ns;
    update_from_ns = 0;
    u->load->stop = true;
    return NULL;
}

static void find_during_update(void)
{
    struct load load = {.begin = find_begin, .line = find_line};
    struct samples during = {0}, times = {0};
    struct updates u = {.reader.link.fd = -1, .load = &load};
    load_open(&load);
    load_measure(&load, "FIND, quiet");
    u.until_ns = now_ns() + (uint64_t)(opt.seconds * 1e9);
    load.samples.n = load.done = 0;
    load.during = &during;
    opt.seconds = 86400; /* it ends with the last UPDATE */
    struct clocks from = clocks_now();
    int e = pthread_create(&u.reader.thread, NULL, updates_run, &u);
    if (e)
        die(3, "thread: %s", strerror(e));
    load_run(&load);
    pthread_join(u.reader.thread, NULL);
    struct clocks to = clocks_now();
    json_t *o = report("FIND during UPDATE", during.n, &from, &to, &during);
    json_object_set_new(o, "longest_gap_ms", json_real((double)load.gap_ns / 1e6));
    reader_check(&u.reader);
    samples_add(&times, u.ns / u.n);
    to = from;
    to.ns += u.ns;
    report("UPDATE meanwhile", u.reader.rows * u.n, &from, &to, &times);
    link_free(&u.reader.link);
    free(times.ns);
    free(during.ns);
    load_close(&load);
}

/* --- Changes ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static void await_row(struct link *l, const char *name)
{
    struct mupdate_line line;
    for (;;) {
        while (link_line(l, &line)) {
            if (word_is(&line, 0, "*") && word_is(&line, 1, "BYE"))
                die(3, "the server says BYE: %.*s", line.n > 2 ? (int)line.word[2].len : 0, line.n > 2 ? line.word[2].s : "");
            if (word_is(&line, 1, "MAILBOX") && line.n == 5 && line.word[2].len == strlen(name) && memcmp(line.word[2].s, name, line.word[2].len) == 0)
                return;
        }
        wait_for(l->fd, POLLIN);
        link_read(l);
    }
}

static void push_changes(void)
{
    struct link writer = {.fd = -1}, *slaves = mem_calloc(opt.conns, sizeof *slaves);
    struct samples s = {0};
    struct mupdate_line line;
    uint32_t run;
    if (getrandom(&run, sizeof run, 0) != sizeof run)
        run = (uint32_t)now_ns();
    link_open(&writer, 0);
    for (unsigned i = 0; i < opt.conns; i++) {
        link_open(&slaves[i], i);
        command(&slaves[i], "UPDATE", 0, NULL);
        if (!link_flush(&slaves[i]))
            die(3, "UPDATE doesn't fit into the socket");
        link_await(&slaves[i], slaves[i].tag, &line);
    }
    struct clocks from = clocks_now();
    uint64_t until_ns = from.ns + (uint64_t)(opt.seconds * 1e9);
    for (unsigned n = 0; now_ns() < until_ns; n++) {
        char name[64];
        snprintf(name, sizeof name, "user.p%08" PRIx32 ".c%06u", run, n);
        uint64_t begun_ns = now_ns();
        command(&writer, "ACTIVATE", 3, (const char *const[]){name, WRITE_LOCATION, WRITE_ACL});
        if (!link_flush(&writer))
            die(3, "a command doesn't fit into the socket");
        for (unsigned i = 0; i < opt.conns; i++)
            await_row(&slaves[i], name);
        samples_add(&s, now_ns() - begun_ns);
        link_await(&writer, writer.tag, &line);
        if (!word_is(&line, 1, "OK"))
            fault("ACTIVATE: %.*s", line.n > 2 ? (int)line.word[2].len : 0, line.n > 2 ? line.word[2].s : "");
    }
    struct clocks to = clocks_now();
    report("ACTIVATE to all", s.n, &from, &to, &s);
    for (unsigned i = 0; i < opt.conns; i++)
        link_free(&slaves[i]);
    link_free(&writer);
    free(slaves);
    free(s.ns);
}

/* --- Arguments ------------------------------------------------------------------------------------------------------------------------------------------------- */

static const char usage[] =
    "Usage: bench_mupdate [options] dump|fill|find|write|update|find-during-update|push\n"
    "  --to HOST:PORT       or a socket's path; may be given several times: connections go to them in turn\n"
    "  --user U --password P  SASL PLAIN; default: no login\n"
    "  --connections N      default 1\n"
    "  --seconds T          default 5\n"
    "  --mailboxes M        how many there are, or shall be; default 1000\n"
    "  --rows N             how many rows UPDATE must send\n"
    "  --updates N          how many UPDATEs, one after the other; default 1\n"
    "  --rate R             FINDs a second, by the clock; default: as fast as they are answered\n"
    "  --window N           fill: commands on the way on each connection; default 64\n"
    "  --prefix P           write: below user.P; default: random\n"
    "  --fresh              write: a new connection for each pair\n"
    "  --flat               dump: as cvt_cyrusdb takes it\n"
    "  --pids PID,...       the server's processes, whose CPU time is told\n"
    "  --label TEXT --header --json\n";

static uint64_t number(const char *text, const char *name, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    uint64_t v = strtoull(text, &end, 10);
    if (errno || end == text || *end || v < min || v > max)
        die(2, "--%s takes a number from %" PRIu64 " to %" PRIu64 ", not \"%s\"", name, min, max, text);
    return v;
}

int main(int argc, char **argv)
{
    enum { TO, USER, PASSWORD, CONNS, SECONDS, MAILBOXES, ROWS, UPDATES, RATE, WINDOW, PREFIX, FRESH, FLAT, PIDS, LABEL, HEADER, JSON, HELP };
    static const struct option options[] = {
        {"to", 1, NULL, TO},         {"user", 1, NULL, USER},     {"password", 1, NULL, PASSWORD}, {"connections", 1, NULL, CONNS}, {"seconds", 1, NULL, SECONDS}, {"mailboxes", 1, NULL, MAILBOXES},
        {"rows", 1, NULL, ROWS},     {"updates", 1, NULL, UPDATES}, {"rate", 1, NULL, RATE},       {"window", 1, NULL, WINDOW},     {"prefix", 1, NULL, PREFIX},   {"fresh", 0, NULL, FRESH},
        {"flat", 0, NULL, FLAT}, {"pids", 1, NULL, PIDS},     {"label", 1, NULL, LABEL},       {"header", 0, NULL, HEADER},     {"json", 0, NULL, JSON},       {"help", 0, NULL, HELP},
        {NULL, 0, NULL, 0}};
    static const struct { const char *name; void (*run)(void); } modes[] = {{"dump", dump}, {"fill", fill}, {"find", find}, {"write", write_pairs}, {"update", update}, {"find-during-update", find_during_update}, {"push", push_changes}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (o) {
        case TO:
            if (opt.to_n == TO_MAX)
                die(2, "more than %d servers", TO_MAX);
            opt.to[opt.to_n++] = optarg;
            break;
        case USER: opt.user = optarg; break;
        case PASSWORD: opt.password = optarg; break;
        case CONNS: opt.conns = (unsigned)number(optarg, "connections", 1, CONNS_MAX); break;
        case SECONDS: opt.seconds = (double)number(optarg, "seconds", 1, 86400); break;
        case MAILBOXES: opt.mailboxes = number(optarg, "mailboxes", 1, 100000000); break;
        case ROWS: opt.rows = number(optarg, "rows", 0, 1000000000); break;
        case UPDATES: opt.updates = (unsigned)number(optarg, "updates", 1, 1000); break;
        case RATE: opt.rate = number(optarg, "rate", 1, 1000000); break;
        case WINDOW: opt.window = (unsigned)number(optarg, "window", 2, 10000); break;
        case PREFIX: opt.prefix = optarg; break;
        case FLAT: opt.flat = true; break;
        case FRESH: opt.fresh = true; break;
        case PIDS:
            for (char *save = NULL, *w = strtok_r(optarg, ", ", &save); w; w = strtok_r(NULL, ", ", &save)) {
                if (opt.pids_n == PIDS_MAX)
                    die(2, "more than %d pids", PIDS_MAX);
                opt.pids[opt.pids_n++] = (pid_t)number(w, "pids", 1, INT32_MAX);
            }
            break;
        case LABEL: opt.label = optarg; break;
        case HEADER: opt.header = true; break;
        case JSON: opt.json = true; break;
        case HELP: fputs(usage, stdout); return 0;
        default: fputs(usage, stderr); return 2;
        }
    if (opt.fresh && opt.conns != 1)
        die(2, "--fresh takes one connection: it logs in between"); /* which waits */
    if (optind + 1 != argc || (opt.user && !opt.password) || (opt.prefix && strlen(opt.prefix) > 64)) {
        fputs(usage, stderr);
        return 2;
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(modes[i].name, argv[optind])) {
            if (i && !opt.to_n)
                die(2, "--to is missing");
            results = json_array();
            modes[i].run();
            show();
            json_decref(results);
            return faults ? 1 : 0;
        }
    fputs(usage, stderr);
    return 2;
}
