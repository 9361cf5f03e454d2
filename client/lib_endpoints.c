/* lib_endpoints.c - where nodes may be reached: the list that was given, files and DNS names in it, and what nodes tell.
 *
 *     unix:/path   /path   tls:host:port[=NAME][@SITE]   file:/path   dns:name[:port][@SITE]
 *
 * A file has one unix: or tls: endpoint a line; # begins a comment. It is read when the handle is opened, where anything wrong with it is an error that names the line,
 * and again when it has changed (looked at once a second while calls are in flight, and when no node answers). A file that became unreadable or wrong changes nothing.
 * A DNS name is looked up when the handle is opened, where a failure is no error, and again when no node answers, with pauses that double.
 *
 * An endpoint lives as long as its handle, since its number is the user's. It is used while the list, a file or a name has it, or a node told it. One that nobody has any more
 * is left alone, and its place is taken by a new one only when all ENDPOINTS_MAX are taken.
 *
 * Security: what a node tells is only an address; the certificate there must be of the same CA, as everywhere. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "lib_internal.h"

#define SOURCES_MAX 16
#define GIVEN_IN_LIST (1u << SOURCES_MAX) /* beside a bit for each source */
#define FILE_LEN_MAX 65536
#define FILE_CHECK_MS 1000
#define FILE_SETTLE_S 2      /* a file younger than this may change again without a new time */
#define DNS_AGAIN_MIN_MS 1000
#define DNS_AGAIN_MAX_MS 30000
#define SITE_LEN_MAX 64
#define ORDER_LEARNED (1u << 30)

struct source {
    char *text;              /* as it was given */
    char *path;              /* file: */
    char *name, *port, *site; /* dns: */
    uint32_t order;
    uint64_t next_at;        /* no look before */
    unsigned looks;          /* dns: since a node has last answered */
    bool unsettled;          /* read while it was just being changed */
    struct stat seen;        /* of the file as it was read */
    struct err err;          /* of the last look; code 0: fine */
};

/* --- One endpoint -------------------------------------------------------------------------------------------------------------------- */

static void endpoint_free_parts(struct endpoint *ep)
{
    free(ep->text);
    free(ep->path);
    free(ep->host);
    free(ep->port);
    free(ep->name);
    free(ep->site);
    free(ep->node);
    free(ep->identity);
    free(ep->role);
}

static void endpoint_free(struct endpoint *ep)
{
    if (!ep)
        return;
    endpoint_free_parts(ep);
    free(ep);
}

/* tls:host:port[=NAME]; host may be [v6]. */
static int parse_tls(struct endpoint *ep, const char *s, struct err *err)
{
    const char *name = strchr(s, '=');
    size_t len = name ? (size_t)(name - s) : strlen(s);
    const char *host = s, *colon;
    size_t host_len;
    if (*s == '[') {
        const char *close = memchr(s, ']', len);
        if (!close || close[1] != ':')
            return err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": want tls:[ADDRESS]:PORT", ep->text);
        host++;
        host_len = (size_t)(close - host);
        colon = close + 1;
    } else {
        colon = memrchr(s, ':', len);
        if (!colon)
            return err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": no port; want tls:HOST:PORT", ep->text);
        host_len = (size_t)(colon - s);
    }
    size_t port_len = len - (size_t)(colon + 1 - s);
    if (!host_len || !port_len || port_len > 5 || strspn(colon + 1, "0123456789") < port_len)
        return err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": want tls:HOST:PORT", ep->text);
    ep->host = strndup(host, host_len);
    ep->port = strndup(colon + 1, port_len);
    if (!ep->host || !ep->port)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    if (name) {
        if (!name[1])
            return err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": no name after \"=\"", ep->text);
        if (!(ep->name = strdup(name + 1)))
            return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    }
    return 0;
}

/* Cuts @SITE off a copied text. */
static int cut_site(char *text, char **site_r, struct err *err)
{
    char *at = strrchr(text, '@');
    if (!at)
        return 0;
    if (!at[1] || strlen(at + 1) > SITE_LEN_MAX)
        return err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": a site has 1 to %d bytes", text, SITE_LEN_MAX);
    if (!(*site_r = strdup(at + 1)))
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    *at = '\0';
    return 0;
}

static struct endpoint *endpoint_parse(const char *text, size_t len, struct err *err)
{
    struct endpoint *ep = calloc(1, sizeof *ep);
    if (!ep || !(ep->text = strndup(text, len))) {
        free(ep);
        err_set(err, RAFTDIR_ENOMEM, "out of memory");
        return NULL;
    }
    int rc = 0;
    if (!strncmp(ep->text, "unix:", 5) || ep->text[0] == '/') {
        const char *path = ep->text[0] == '/' ? ep->text : ep->text + 5;
        struct sockaddr_un un;
        if (!*path || strlen(path) >= sizeof un.sun_path)
            rc = err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": a socket's path has 1 to %zu bytes", ep->text, sizeof un.sun_path - 1);
        else if (!(ep->path = strdup(path)))
            rc = err_set(err, RAFTDIR_ENOMEM, "out of memory");
    } else if (!strncmp(ep->text, "tls:", 4)) {
        rc = cut_site(ep->text, &ep->site, err);
        ep->site_given = ep->site != NULL;
        if (!rc)
            rc = parse_tls(ep, ep->text + 4, err);
    } else
        rc = err_set(err, RAFTDIR_EINVAL, "endpoint \"%.300s\": want unix:/PATH or tls:HOST:PORT", ep->text);
    if (rc < 0) {
        endpoint_free(ep);
        return NULL;
    }
    return ep;
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static bool same_place(const struct endpoint *a, const struct endpoint *b)
{
    return same_text(a->path, b->path) && same_text(a->host, b->host) && same_text(a->port, b->port);
}

/* The place of one that nobody has any more, nor looks at. */
static unsigned place_of_removed(const struct raftdir *d)
{
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        const struct endpoint *ep = d->endpoints[i];
        bool in_use = !ep->removed || ep->link || d->answer_ep == ep || d->pinned == (int)i;
        for (const struct call *c = d->calls; c && !in_use; c = c->next) {
            in_use = c->pinned == (int)i || c->answered_by == ep;
            for (unsigned k = 0; k < c->attempts_n; k++)
                in_use |= c->attempts[k].ep == ep;
        }
        if (!in_use)
            return i;
    }
    return d->endpoints_n;
}

static void judge(struct endpoint *ep, unsigned number)
{
    ep->removed = !ep->given && !ep->told;
    ep->learned = !ep->given;
    if (ep->learned)
        ep->order = ORDER_LEARNED + number;
}

/* Takes the endpoint, which is `fresh` and ours, in: as that same one, if it is known. `given`: a bit; 0: a node told it. */
static int endpoint_take(struct raftdir *d, struct endpoint *fresh, uint32_t given, uint32_t order, struct err *err)
{
    unsigned i = 0;
    while (i < d->endpoints_n && !(same_place(d->endpoints[i], fresh) && (!given || same_text(d->endpoints[i]->name, fresh->name))))
        i++;
    if (i < d->endpoints_n) {
        struct endpoint *ep = d->endpoints[i];
        if (given && (!ep->given || order < ep->order))
            ep->order = order;
        if (fresh->site && (given || !ep->site_given)) {
            free(ep->site);
            ep->site = fresh->site;
            ep->site_given = given != 0;
            fresh->site = NULL;
        }
        ep->given |= given;
        ep->told |= !given;
        judge(ep, i);
        endpoint_free(fresh);
        return 0;
    }
    if (i == ENDPOINTS_MAX) {
        if ((i = place_of_removed(d)) == d->endpoints_n) {
            endpoint_free(fresh);
            return err_set(err, RAFTDIR_ELIMIT, "more than %d endpoints", ENDPOINTS_MAX);
        }
        for (struct call *c = d->calls; c; c = c->next)
            c->tried &= ~(1ull << i);
        endpoint_free_parts(d->endpoints[i]);
        *d->endpoints[i] = *fresh; /* others may know the struct by its address */
        free(fresh);
    } else
        d->endpoints[d->endpoints_n++] = fresh;
    struct endpoint *ep = d->endpoints[i];
    ep->order = order;
    ep->given = given;
    ep->told = !given;
    judge(ep, i);
    return 0;
}

void endpoints_learn(struct raftdir *d, const char *address, const char *site)
{
    char text[300];
    int n = snprintf(text, sizeof text, "tls:%s%s%s", address, site && *site ? "@" : "", site && *site ? site : "");
    if (n <= 4 || (size_t)n >= sizeof text)
        return;
    struct err err;
    struct endpoint *ep = endpoint_parse(text, (size_t)n, &err);
    if (!ep)
        return;
    ep->site_given = false;
    endpoint_take(d, ep, 0, 0, &err); /* one too many is no reason to fail */
}

void endpoints_answered(struct raftdir *d, struct endpoint *ep, const char *site)
{
    for (unsigned i = 0; i < d->sources_n; i++)
        d->sources[i].looks = 0;
    if (!site || !*site || strlen(site) > SITE_LEN_MAX)
        return;
    if (!ep->site_given && !same_text(ep->site, site)) {
        char *copy = strdup(site);
        if (!copy)
            return; /* only a preference */
        free(ep->site);
        ep->site = copy;
    }
    if (!d->site)
        d->site = strdup(site);
}

/* --- Files and DNS --------------------------------------------------------------------------------------------------------------------- */

/* Replaces what a source has given before. Takes the endpoints. */
static int source_apply(struct raftdir *d, unsigned number, struct endpoint **fresh, unsigned n, struct err *err)
{
    int rc = 0;
    struct source *s = &d->sources[number];
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        d->endpoints[i]->given &= ~(1u << number);
        judge(d->endpoints[i], i);
    }
    for (unsigned i = 0; i < n; i++) {
        struct err later;
        int one = endpoint_take(d, fresh[i], 1u << number, s->order + i, &later);
        if (one < 0 && !rc) {
            *err = later;
            rc = one;
        }
    }
    return rc;
}

static int read_lines(const struct source *s, char *text, struct endpoint **fresh, unsigned *n_r, struct err *err)
{
    unsigned line = 0, n = 0;
    for (char *p = text, *end; p; p = end) {
        line++;
        if ((end = strchr(p, '\n')))
            *end++ = '\0';
        p[strcspn(p, "#")] = '\0';
        p += strspn(p, " \t\r");
        size_t len = strlen(p);
        while (len && strchr(" \t\r", p[len - 1]))
            len--;
        if (!len)
            continue;
        if (strcspn(p, " \t\r,") < len)
            err_set(err, RAFTDIR_EINVAL, "one endpoint a line");
        else if (n == ENDPOINTS_MAX)
            err_set(err, RAFTDIR_ELIMIT, "more than %d endpoints", ENDPOINTS_MAX);
        else if ((fresh[n] = endpoint_parse(p, len, err))) {
            n++;
            continue;
        }
        *n_r = n;
        return err_wrap(err, "%s:%u", s->path, line);
    }
    *n_r = n;
    return n ? 0 : err_set(err, RAFTDIR_EINVAL, "%s: no endpoint in it", s->path);
}

static int read_whole(struct source *s, char **text_r, struct err *err)
{
    struct timespec now;
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not stop us */
    if (fd < 0)
        return err_set(err, errno == EACCES ? RAFTDIR_EPERM : RAFTDIR_EINVAL, "%s: %s", s->path, strerror(errno));
    char *text = NULL;
    int rc = 0;
    if (fstat(fd, &s->seen) < 0)
        rc = err_set(err, RAFTDIR_EIO, "%s: %s", s->path, strerror(errno));
    else if (!S_ISREG(s->seen.st_mode))
        rc = err_set(err, RAFTDIR_EINVAL, "%s: not a file", s->path);
    else if (s->seen.st_size > FILE_LEN_MAX)
        rc = err_set(err, RAFTDIR_ETOOBIG, "%s: over the limit of %d bytes", s->path, FILE_LEN_MAX);
    else if (!(text = malloc(FILE_LEN_MAX + 1)))
        rc = err_set(err, RAFTDIR_ENOMEM, "out of memory");
    size_t len = 0;
    while (!rc && len < FILE_LEN_MAX) {
        ssize_t n = read(fd, text + len, FILE_LEN_MAX - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = err_set(err, RAFTDIR_EIO, "%s: %s", s->path, strerror(errno));
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    close(fd);
    if (rc < 0) {
        free(text);
        return rc;
    }
    text[len] = '\0';
    clock_gettime(CLOCK_REALTIME, &now);
    s->unsettled = now.tv_sec - s->seen.st_mtim.tv_sec < FILE_SETTLE_S;
    if (strlen(text) != len) {
        free(text);
        return err_set(err, RAFTDIR_EINVAL, "%s: a NUL byte in it", s->path);
    }
    *text_r = text;
    return 0;
}

static int read_file(struct raftdir *d, unsigned number, struct err *err)
{
    struct endpoint *fresh[ENDPOINTS_MAX];
    unsigned n = 0;
    char *text = NULL;
    int rc = read_whole(&d->sources[number], &text, err);
    if (rc < 0)
        return rc;
    rc = read_lines(&d->sources[number], text, fresh, &n, err);
    free(text);
    if (rc < 0) {
        while (n)
            endpoint_free(fresh[--n]);
        return rc;
    }
    return source_apply(d, number, fresh, n, err);
}

static int read_dns(struct raftdir *d, unsigned number, struct err *err)
{
    const struct source *s = &d->sources[number];
    struct endpoint *fresh[ENDPOINTS_MAX];
    unsigned n = 0;
    struct dns_target *targets = calloc(ENDPOINTS_MAX, sizeof *targets);
    if (!targets)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    int rc = dns_lookup(s->name, s->port, targets, ENDPOINTS_MAX, err);
    for (int i = 0; i < rc; i++) {
        struct endpoint *ep = endpoint_parse(targets[i].text, strlen(targets[i].text), err);
        if (ep && s->site && !(ep->site = strdup(s->site))) {
            endpoint_free(ep);
            ep = NULL;
        }
        if (!ep) {
            rc = err_set(err, RAFTDIR_ENOMEM, "out of memory");
            break;
        }
        ep->site_given = ep->site != NULL;
        fresh[n++] = ep;
    }
    free(targets);
    if (rc < 0) {
        while (n)
            endpoint_free(fresh[--n]);
        return err_wrap(err, "%s", s->text);
    }
    return source_apply(d, number, fresh, n, err);
}

static bool file_changed(const struct source *s)
{
    struct stat st;
    if (stat(s->path, &st) < 0)
        return s->err.code == 0; /* once is enough to know */
    return s->unsettled || st.st_ino != s->seen.st_ino || st.st_dev != s->seen.st_dev || st.st_size != s->seen.st_size ||
           st.st_mtim.tv_sec != s->seen.st_mtim.tv_sec || st.st_mtim.tv_nsec != s->seen.st_mtim.tv_nsec;
}

static void source_look(struct raftdir *d, unsigned number, uint64_t now)
{
    struct source *s = &d->sources[number];
    struct err err = {0};
    if (s->path)
        read_file(d, number, &err);
    else
        read_dns(d, number, &err);
    s->err = err;
    if (s->path) {
        s->next_at = now + FILE_CHECK_MS;
        return;
    }
    uint64_t pause = DNS_AGAIN_MIN_MS;
    for (unsigned i = 0; i < s->looks && pause < DNS_AGAIN_MAX_MS; i++)
        pause *= 2;
    s->looks++;
    s->next_at = lib_now_ms() + (pause < DNS_AGAIN_MAX_MS ? pause : DNS_AGAIN_MAX_MS); /* from the moment when the answer came */
}

/* Connections to what nobody has any more, unless somebody still waits for an answer there. */
static void close_removed(struct raftdir *d)
{
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        struct endpoint *ep = d->endpoints[i];
        bool waited_for = false;
        for (const struct call *c = d->calls; c && ep->removed && ep->link; c = c->next)
            for (unsigned k = 0; k < c->attempts_n; k++)
                waited_for |= c->attempts[k].ep == ep;
        if (ep->removed && !waited_for)
            link_close(&ep->link, false);
    }
}

void endpoints_refresh(struct raftdir *d, bool none_answers, uint64_t now)
{
    for (unsigned i = 0; i < d->sources_n; i++) {
        struct source *s = &d->sources[i];
        if (s->path ? (none_answers || now >= s->next_at) : (none_answers && now >= s->next_at)) {
            s->next_at = now + FILE_CHECK_MS;
            if (!s->path || file_changed(s))
                source_look(d, i, now);
            close_removed(d);
        }
    }
}

const struct err *endpoints_problem(const struct raftdir *d)
{
    for (unsigned i = 0; i < d->sources_n; i++)
        if (d->sources[i].err.code)
            return &d->sources[i].err;
    return NULL;
}

/* --- The list --------------------------------------------------------------------------------------------------------------------------------- */

/* dns:name[:port][@SITE] */
static int parse_dns(struct source *s, struct err *err)
{
    char *copy = strdup(s->text + 4);
    if (!copy)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    int rc = cut_site(copy, &s->site, err);
    char *colon = strchr(copy, ':');
    if (!rc && colon) {
        *colon++ = '\0';
        if (!*colon || strlen(colon) > 5 || strspn(colon, "0123456789") != strlen(colon))
            rc = err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": want dns:NAME or dns:NAME:PORT", s->text);
        else if (!(s->port = strdup(colon)))
            rc = err_set(err, RAFTDIR_ENOMEM, "out of memory");
    }
    if (!rc && (!*copy || strlen(copy) > 253 || strchr(copy, '=')))
        rc = err_set(err, RAFTDIR_EINVAL, "endpoint \"%s\": want dns:NAME or dns:NAME:PORT", s->text);
    if (rc < 0)
        free(copy);
    else
        s->name = copy;
    return rc;
}

static int source_add(struct raftdir *d, const char *text, size_t len, uint32_t order, struct err *err)
{
    if (d->sources_n == SOURCES_MAX)
        return err_set(err, RAFTDIR_ELIMIT, "more than %d file: and dns: endpoints", SOURCES_MAX);
    if (!d->sources && !(d->sources = calloc(SOURCES_MAX, sizeof *d->sources)))
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    unsigned number = d->sources_n++;
    struct source *s = &d->sources[number];
    s->order = order;
    if (!(s->text = strndup(text, len)))
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    if (!strncmp(s->text, "file:", 5)) {
        if (!s->text[5])
            return err_set(err, RAFTDIR_EINVAL, "endpoint \"file:\": want file:/PATH");
        if (!(s->path = strdup(s->text + 5)))
            return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    } else if (parse_dns(s, err) < 0)
        return err->code;
    source_look(d, number, lib_now_ms());
    /* A file that is wrong is the administrator's to mend; DNS may answer in a moment. */
    if (s->err.code && (s->path || s->err.code == RAFTDIR_ENOMEM)) {
        *err = s->err;
        return err->code;
    }
    return 0;
}

int endpoints_open(struct raftdir *d, const char *list, struct err *err)
{
    uint32_t item = 0;
    for (const char *p = list; *p;) {
        p += strspn(p, ", \t\n");
        size_t len = strcspn(p, ", \t\n");
        if (!len)
            continue;
        uint32_t order = item++ * 2 * ENDPOINTS_MAX;
        if (item > 2 * ENDPOINTS_MAX)
            return err_set(err, RAFTDIR_ELIMIT, "more than %d endpoints", ENDPOINTS_MAX);
        if (!strncmp(p, "file:", 5) || !strncmp(p, "dns:", 4)) {
            if (source_add(d, p, len, order, err) < 0)
                return err->code;
        } else {
            struct endpoint *ep = endpoint_parse(p, len, err);
            if (!ep || endpoint_take(d, ep, GIVEN_IN_LIST, order, err) < 0)
                return err->code;
        }
        p += len;
    }
    if (!item)
        return err_set(err, RAFTDIR_EINVAL, "no endpoint is given");
    return 0;
}

bool endpoints_need_tls(const struct raftdir *d)
{
    for (unsigned i = 0; i < d->endpoints_n; i++)
        if (!d->endpoints[i]->path)
            return true;
    for (unsigned i = 0; i < d->sources_n; i++)
        if (!d->sources[i].path)
            return true;
    return false;
}

void endpoints_close(struct raftdir *d, bool quiet)
{
    for (unsigned i = 0; i < d->endpoints_n; i++) {
        link_close(&d->endpoints[i]->link, quiet);
        endpoint_free(d->endpoints[i]);
    }
    d->endpoints_n = 0;
    for (unsigned i = 0; i < d->sources_n; i++) {
        free(d->sources[i].text);
        free(d->sources[i].path);
        free(d->sources[i].name);
        free(d->sources[i].port);
        free(d->sources[i].site);
    }
    free(d->sources);
    d->sources = NULL;
    d->sources_n = 0;
    free(d->site);
    d->site = NULL;
}
