/* ctl_out.c - tables, colour, numbers for people, JSON, the progress bar. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "ctl.h"

#define TABLE_COLUMNS_MAX 16
#define TABLE_CHUNK_ROWS 500

static void *need_memory(void *p)
{
    if (!p) {
        fputs("raftdirctl: out of memory\n", stderr);
        exit(EXIT_INTERNAL);
    }
    return p;
}

uint64_t ctl_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

const char *ctl_paint(bool on, enum ctl_color color)
{
    static const char *const codes[] = {"\033[0m", "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m"};
    return on ? codes[color] : "";
}

/* --- Tables ------------------------------------------------------------------------------------------------------------- */

struct cell {
    char *text;
    enum ctl_color color;
};
struct ctl_table {
    bool color;
    unsigned columns;
    char *titles[TABLE_COLUMNS_MAX];
    bool right[TABLE_COLUMNS_MAX];
    int width[TABLE_COLUMNS_MAX];
    struct cell *cells;
    size_t n, size;
    bool title_printed;
};

struct ctl_table *table_begin(struct ctl *c, const char *titles)
{
    struct ctl_table *t = need_memory(calloc(1, sizeof *t));
    t->color = c->color;
    for (const char *p = titles; *p && t->columns < TABLE_COLUMNS_MAX;) {
        size_t len = strcspn(p, ",");
        bool right = *p == '>';
        t->right[t->columns] = right;
        t->titles[t->columns] = need_memory(strndup(p + right, len - right));
        t->width[t->columns++] = (int)(len - right);
        p += len + (p[len] == ',');
    }
    return t;
}

/* Columns on a terminal: characters, of UTF-8. */
static int width_of(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_cell(struct ctl_table *t, unsigned column, const char *text, enum ctl_color color)
{
    int pad = t->width[column] - width_of(text);
    bool last = column + 1 == t->columns;
    if (t->right[column])
        printf("%*s", pad, "");
    printf("%s%s%s", color ? ctl_paint(t->color, color) : "", text, color ? ctl_paint(t->color, COLOR_NONE) : "");
    if (!t->right[column] && !last)
        printf("%*s", pad, "");
    fputs(last ? "\n" : "  ", stdout);
}

static void flush_rows(struct ctl_table *t)
{
    for (size_t i = 0; i < t->n; i++) {
        int len = width_of(t->cells[i].text);
        if (len > t->width[i % t->columns])
            t->width[i % t->columns] = len;
    }
    if (t->n && !t->title_printed) {
        for (unsigned i = 0; i < t->columns; i++)
            print_cell(t, i, t->titles[i], COLOR_BOLD);
        t->title_printed = true;
    }
    for (size_t i = 0; i < t->n; i++) {
        print_cell(t, (unsigned)(i % t->columns), t->cells[i].text, t->cells[i].color);
        free(t->cells[i].text);
    }
    t->n = 0;
}

void table_cell(struct ctl_table *t, enum ctl_color color, const char *fmt, ...)
{
    if (t->n == t->size) {
        t->size = t->size ? t->size * 2 : 64;
        t->cells = need_memory(realloc(t->cells, t->size * sizeof *t->cells));
    }
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    va_end(ap);
    need_memory(text);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = *p == '\t' ? ' ' : '?'; /* what comes from a directory doesn't command a terminal */
    t->cells[t->n++] = (struct cell){text, color};
    if (t->n == (size_t)TABLE_CHUNK_ROWS * t->columns)
        flush_rows(t);
}

void table_end(struct ctl_table **tp)
{
    struct ctl_table *t = *tp;
    if (t->n % t->columns == 0)
        flush_rows(t);
    for (unsigned i = 0; i < t->columns; i++)
        free(t->titles[i]);
    free(t->cells);
    free(t);
    *tp = NULL;
}

/* --- Numbers ------------------------------------------------------------------------------------------------------------------ */

void ctl_bytes(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    unsigned u = 0;
    while (v >= 1024 && u + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        u++;
    }
    snprintf(buf, size, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
}

void ctl_age(uint64_t ms, char *buf, size_t size)
{
    uint64_t s = ms / 1000;
    if (ms < 1000)
        snprintf(buf, size, "%" PRIu64 " ms", ms);
    else if (s < 60)
        snprintf(buf, size, "%" PRIu64 ".%" PRIu64 " s", s, ms % 1000 / 100);
    else if (s < 3600)
        snprintf(buf, size, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(buf, size, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
    else
        snprintf(buf, size, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
}

void ctl_count(uint64_t n, char *buf, size_t size)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    size_t out = 0;
    for (int i = 0; i < len && out + 2 < size; i++) {
        if (i && (len - i) % 3 == 0)
            buf[out++] = ',';
        buf[out++] = digits[i];
    }
    buf[out] = '\0';
}

void ctl_hex(const uint8_t *data, size_t len, char *buf)
{
    for (size_t i = 0; i < len; i++)
        snprintf(buf + 2 * i, 3, "%02x", data[i]);
    buf[2 * len] = '\0';
}

/* --- JSON -------------------------------------------------------------------------------------------------------------------------- */

json_t *ctl_string(const char *s)
{
    json_t *j = json_string(s ? s : "");
    if (j)
        return j;
    /* Not UTF-8: byte by byte. */
    size_t len = strlen(s);
    char *out = need_memory(malloc(3 * len + 1)), *p = out;
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)s[i] < 0x80)
            *p++ = s[i];
        else {
            memcpy(p, "\xef\xbf\xbd", 3);
            p += 3;
        }
    }
    *p = '\0';
    j = json_string(out);
    free(out);
    return need_memory(j);
}

json_t *ctl_hex_json(const uint8_t *data, size_t len)
{
    char *buf = need_memory(malloc(2 * len + 1));
    ctl_hex(data, len, buf);
    json_t *j = need_memory(json_string(buf));
    free(buf);
    return j;
}

void ctl_json_print(json_t *j)
{
    need_memory(j);
    if (json_dumpf(j, stdout, JSON_COMPACT) < 0) {
        fputs("raftdirctl: can't write JSON: out of memory\n", stderr);
        exit(EXIT_INTERNAL);
    }
    putchar('\n');
    json_decref(j);
}

static void set_string(json_t *o, const char *key, const char *s)
{
    json_object_set_new(o, key, ctl_string(s));
}

static void set_number(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

json_t *ctl_mailbox_json(const struct raftdir_mailbox *m)
{
    json_t *o = need_memory(json_object());
    set_string(o, "name", m->name);
    set_string(o, "server", m->server);
    set_string(o, "partition", m->partition);
    set_string(o, "acl", m->acl);
    set_string(o, "mbtype", m->mbtype);
    set_string(o, "uniqueid", m->uniqueid);
    set_number(o, "mtime", m->mtime);
    set_number(o, "uidvalidity", m->uidvalidity);
    set_number(o, "createdmodseq", m->createdmodseq);
    set_number(o, "foldermodseq", m->foldermodseq);
    set_string(o, "legacy_specialuse", m->legacy_specialuse);
    set_string(o, "jmapid", m->jmapid);
    set_string(o, "name_history", m->name_history);
    set_number(o, "mailbox_id", m->mailbox_id);
    set_number(o, "generation", m->generation);
    set_number(o, "store_id", m->store_id);
    set_number(o, "store_epoch", m->store_epoch);
    json_object_set_new(o, "reserved", json_boolean(m->reserved));
    if (*m->moving_server) {
        json_t *to = need_memory(json_object());
        set_string(to, "server", m->moving_server);
        set_string(to, "partition", m->moving_partition);
        json_object_set_new(o, "moving_to", to);
    }
    if (*m->rights)
        set_string(o, "rights", m->rights);
    return o;
}

json_t *ctl_answer_json(raftdir *d)
{
    struct raftdir_answer a;
    json_t *o = need_memory(json_object());
    raftdir_answer(d, &a);
    set_string(o, "node", a.node);
    set_number(o, "incarnation", a.incarnation);
    set_number(o, "index", a.index);
    json_object_set_new(o, "age_ms", a.age_ms < 0 ? json_null() : json_integer(a.age_ms));
    json_object_set_new(o, "local", json_boolean(a.local));
    return o;
}

static void field(struct ctl *c, const char *label, const char *value)
{
    if (!*value)
        return;
    printf("%s%-18s%s", ctl_paint(c->color, COLOR_DIM), label, ctl_paint(c->color, COLOR_NONE));
    for (const char *p = value; *p; p++)
        putchar((unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p);
    putchar('\n');
}

static void field_number(struct ctl *c, const char *label, uint64_t n)
{
    char buf[24];
    snprintf(buf, sizeof buf, "%" PRIu64, n);
    if (n)
        field(c, label, buf);
}

void ctl_mailbox_print(struct ctl *c, const struct raftdir_mailbox *m)
{
    printf("%s%s%s%s\n", ctl_paint(c->color, COLOR_BOLD), m->name, ctl_paint(c->color, COLOR_NONE), m->reserved ? "  (reserved)" : "");
    field(c, "  server", m->server);
    field(c, "  partition", m->partition);
    if (*m->moving_server) {
        char to[700];
        snprintf(to, sizeof to, "%s!%s", m->moving_server, m->moving_partition);
        field(c, "  moving to", to);
    }
    if (*m->rights)
        field(c, "  rights", m->rights);
    /* identifier TAB rights TAB ...: a line each */
    const char *label = "  acl";
    for (const char *p = m->acl; *p;) {
        size_t id = strcspn(p, "\t");
        const char *r = p + id + (p[id] == '\t');
        size_t rights = strcspn(r, "\t");
        printf("%s%-18s%s%.*s %.*s\n", ctl_paint(c->color, COLOR_DIM), label, ctl_paint(c->color, COLOR_NONE), (int)id, p, (int)rights, r);
        p = r + rights + (r[rights] == '\t');
        label = "";
    }
    field(c, "  mbtype", m->mbtype);
    field(c, "  uniqueid", m->uniqueid);
    field(c, "  specialuse", m->legacy_specialuse);
    field(c, "  jmapid", m->jmapid);
    field(c, "  name history", m->name_history);
    if (m->mtime) {
        char when[40];
        time_t t = (time_t)m->mtime;
        struct tm tm;
        if (localtime_r(&t, &tm) && strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S %z", &tm))
            field(c, "  mtime", when);
    }
    field_number(c, "  uidvalidity", m->uidvalidity);
    field_number(c, "  createdmodseq", m->createdmodseq);
    field_number(c, "  foldermodseq", m->foldermodseq);
    field_number(c, "  generation", m->generation);
}

/* --- Progress: on a terminal's standard error, at most ten times a second --------------------------------------------------------------- */

void progress_begin(struct progress *p, struct ctl *c, const char *label, const char *unit, uint64_t total)
{
    *p = (struct progress){.shown = isatty(STDERR_FILENO) && !c->o.json, .label = label, .unit = unit, .total = total, .started_ms = ctl_now_ms()};
}

void progress_tell(struct progress *p, uint64_t position, uint64_t done)
{
    uint64_t now = ctl_now_ms();
    if (!p->shown || now - p->printed_ms < 100)
        return;
    p->printed_ms = now;
    uint64_t spent = now - p->started_ms;
    char count[32], rate[32], left[48] = "", bar[48] = "";
    ctl_count(done, count, sizeof count);
    ctl_count(spent ? done * 1000 / spent : 0, rate, sizeof rate);
    int percent = -1;
    if (p->total) {
        double share = position >= p->total ? 1 : (double)position / (double)p->total;
        percent = (int)(share * 100);
        int filled = (int)(share * 20);
        snprintf(bar, sizeof bar, "[%.*s%.*s] ", filled, "####################", 20 - filled, "....................");
        if (share > 0.01 && spent > 1000) {
            char age[32];
            ctl_age((uint64_t)((double)spent * (1 - share) / share) / 1000 * 1000 + 1000, age, sizeof age); /* rounded up: never "0 ms" */
            snprintf(left, sizeof left, "  %s left", age);
        }
    }
    char line[256];
    struct winsize w;
    if (percent >= 0)
        snprintf(line, sizeof line, "%s %s%3d%%  %s %s  %s/s%s", p->label, bar, percent, count, p->unit, rate, left);
    else
        snprintf(line, sizeof line, "%s  %s %s  %s/s", p->label, count, p->unit, rate);
    /* A line that wraps can't be written over. */
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col - 1 : 79;
    fprintf(stderr, "\r%.*s\033[K", columns, line);
    fflush(stderr);
}

void progress_end(struct progress *p)
{
    if (p->shown && p->printed_ms)
        fputs("\r\033[K", stderr);
    p->shown = false;
}
