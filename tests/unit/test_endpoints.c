/* test_endpoints.c - libraftdir's endpoints from lists, files and DNS, and the order in which they are chosen. The library's own sources are in this program, and its
 * resolver is pointed at a name server of the test's on loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netinet/in.h>
#include <pthread.h>
#include <resolv.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "client/lib_internal.h"
#include "support_certs.h"
#include "support_fake_node.h"

static char dir[80], path[120];
static struct raftdir *d;

static int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "endpoints");
    snprintf(path, sizeof path, "%s/nodes", dir);
    d = calloc(1, sizeof *d);
    assert_non_null(d);
    d->pinned = -1;
    d->tls = (SSL_CTX *)d; /* only looked at: there are certificates */
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    endpoints_close(d, true);
    free(d);
    support_dir_remove(dir);
    return 0;
}

static void file_write(const char *text)
{
    char next[140];
    snprintf(next, sizeof next, "%s.new", path);
    FILE *f = fopen(next, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(next, path), 0);
}

/* What a call would try, in order: the texts, with a space between them. */
static const char *order(void)
{
    static char text[2000];
    struct call c = {.d = d, .pinned = -1};
    struct endpoint *ep;
    *text = '\0';
    while ((ep = choose_endpoint(&c, 1000000))) {
        c.tried |= 1ull << endpoint_number(d, ep);
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", *text ? " " : "", ep->text);
    }
    return text;
}

static int open_list(const char *list, struct err *err)
{
    memset(err, 0, sizeof *err);
    return endpoints_open(d, list, err);
}

/* --- Lists ------------------------------------------------------------------------------------------------------------------------- */

static void lists(void **state)
{
    (void)state;
    static const struct {
        const char *list, *want; /* the order, or "!" and a part of the error */
    } table[] = {
        {"/run/a", "/run/a"},
        {"unix:/run/a,tls:h:1", "unix:/run/a tls:h:1"},
        {" tls:h:1 ,\n tls:[::1]:2=n2 ", "tls:h:1 tls:[::1]:2=n2"},
        {"tls:h:1@a,tls:h:2=n@b", "tls:h:1 tls:h:2=n"},
        {"tls:h:1,tls:h:1", "tls:h:1"},
        {"", "!no endpoint is given"},
        {" , ", "!no endpoint is given"},
        {"host:1", "!want unix:/PATH or tls:HOST:PORT"},
        {"unix:", "!a socket's path has"},
        {"tls:h", "!no port"},
        {"tls::1", "!want tls:HOST:PORT"},
        {"tls:h:", "!want tls:HOST:PORT"},
        {"tls:h:1x", "!want tls:HOST:PORT"},
        {"tls:h:123456", "!want tls:HOST:PORT"},
        {"tls:[::1", "!want tls:[ADDRESS]:PORT"},
        {"tls:h:1=", "!no name after"},
        {"tls:h:1@", "!a site has 1 to"},
        {"tls:h:1@0123456789012345678901234567890123456789012345678901234567890123456789", "!a site has 1 to"},
        {"file:", "!want file:/PATH"},
        {"file:/nonexistent/nodes", "!/nonexistent/nodes: No such file"},
        {"file:/", "!/: not a file"},
        {"dns:", "!want dns:NAME"},
        {"dns::5", "!want dns:NAME"},
        {"dns:n:", "!want dns:NAME"},
        {"dns:n:5x", "!want dns:NAME"},
        {"dns:n@", "!a site has 1 to"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct err err;
        int rc = open_list(table[i].list, &err);
        if (*table[i].want == '!' ? rc >= 0 || !strstr(err.text, table[i].want + 1) : rc < 0 || strcmp(order(), table[i].want))
            fail_msg("\"%s\": %d %s, order: %s", table[i].list, rc, err.text, order());
        endpoints_close(d, true);
    }
    char many[64 * 20 + 40] = "";
    for (int i = 0; i < ENDPOINTS_MAX; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "tls:h:%d,", 1000 + i);
    struct err err;
    assert_int_equal(open_list(many, &err), 0);
    endpoints_close(d, true);
    strcat(many, "tls:h:1");
    assert_int_equal(open_list(many, &err), RAFTDIR_ELIMIT);
}

/* First the first, then our site, then the others; learned ones behind the given of their kind; slow ones behind all. */
static void preferences(void **state)
{
    (void)state;
    struct err err;
    d->site = strdup("b");
    assert_int_equal(open_list("tls:a1:1@a,tls:a2:1@a,tls:b1:1@b,tls:x:1", &err), 0);
    endpoints_learn(d, "b2:1", "b");
    endpoints_learn(d, "a3:1", "a");
    endpoints_learn(d, "a2:1", "b"); /* given as of site a: that holds */
    assert_string_equal(order(), "tls:a1:1 tls:b1:1 tls:b2:1 tls:a2:1 tls:x:1 tls:a3:1");
    d->endpoints[2]->slow_until = 2000000;
    assert_string_equal(order(), "tls:a1:1 tls:b2:1 tls:a2:1 tls:x:1 tls:a3:1 tls:b1:1");
    d->endpoints[2]->slow_until = 0;
    /* What isn't told by the user is told by the node itself. */
    endpoints_answered(d, d->endpoints[3], "b");
    assert_string_equal(order(), "tls:a1:1 tls:b1:1 tls:x:1 tls:b2:1 tls:a2:1 tls:a3:1");
    endpoints_answered(d, d->endpoints[3], "a");
    assert_string_equal(order(), "tls:a1:1 tls:b1:1 tls:b2:1 tls:a2:1 tls:x:1 tls:a3:1");
    /* Without certificates, nothing that was learned. */
    d->tls = NULL;
    assert_string_equal(order(), "tls:a1:1 tls:b1:1 tls:a2:1 tls:x:1");
}

static void own_site_is_the_first_answers(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(open_list("tls:a1:1,tls:a2:1,tls:b1:1@b", &err), 0);
    assert_string_equal(order(), "tls:a1:1 tls:a2:1 tls:b1:1");
    endpoints_answered(d, d->endpoints[0], "b");
    assert_string_equal(order(), "tls:a1:1 tls:b1:1 tls:a2:1");
    endpoints_answered(d, d->endpoints[1], "c");
    assert_string_equal(d->site, "b");
}

/* --- Files --------------------------------------------------------------------------------------------------------------------------- */

static void files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } table[] = {
        {"tls:h:1\ntls:h:2@s\n", "tls:h:1 tls:h:2"},
        {"# nodes\r\n\r\n\t tls:h:1  # the first\r\nunix:/run/a", "tls:h:1 unix:/run/a"},
        {"", "!nodes: no endpoint in it"},
        {"# nothing\n", "!nodes: no endpoint in it"},
        {"tls:h:1\n\ntls:h\n", "!nodes:3: endpoint \"tls:h\": no port"},
        {"tls:h:1 tls:h:2\n", "!nodes:1: one endpoint a line"},
        {"tls:h:1,tls:h:2\n", "!nodes:1: one endpoint a line"},
        {"tls:h:1\nfile:/etc/passwd\n", "!nodes:2: endpoint \"file:/etc/passwd\": want unix:/PATH or tls:HOST:PORT"},
        {"dns:x\n", "!nodes:1: endpoint"},
    };
    char list[140];
    struct err err;
    snprintf(list, sizeof list, "file:%s", path);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        file_write(table[i].text);
        int rc = open_list(list, &err);
        if (*table[i].want == '!' ? rc >= 0 || !strstr(err.text, table[i].want + 1) : rc < 0 || strcmp(order(), table[i].want))
            fail_msg("row %zu: %d %s, order: %s", i, rc, err.text, order());
        endpoints_close(d, true);
    }
    char *text = calloc(1, 70000);
    assert_non_null(text);
    memset(text, '#', 69999);
    file_write(text);
    assert_int_equal(open_list(list, &err), RAFTDIR_ETOOBIG);
    endpoints_close(d, true);
    *text = '\0';
    for (int i = 0; i <= ENDPOINTS_MAX; i++)
        snprintf(text + strlen(text), 70000 - strlen(text), "tls:h:%d\n", 1000 + i);
    file_write(text);
    assert_int_equal(open_list(list, &err), RAFTDIR_ELIMIT);
    assert_non_null(strstr(err.text, "nodes:65: more than 64 endpoints"));
    endpoints_close(d, true);
    free(text);
    FILE *f = fopen(path, "we");
    fwrite("tls:h:1\0\n", 1, 9, f);
    fclose(f);
    assert_int_equal(open_list(list, &err), RAFTDIR_EINVAL);
    endpoints_close(d, true);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes there: it must not stop us */
    assert_int_equal(open_list(list, &err), RAFTDIR_EINVAL);
}

static void file_changes(void **state)
{
    (void)state;
    char list[160];
    struct err err;
    uint64_t now = 10000;
    snprintf(list, sizeof list, "tls:first:1,file:%s", path);
    file_write("tls:a:1\ntls:b:1\n");
    assert_int_equal(open_list(list, &err), 0);
    assert_string_equal(order(), "tls:first:1 tls:a:1 tls:b:1");
    now += lib_now_ms();
    /* Replaced: b moves up, a goes, c comes. Numbers stay. */
    file_write("tls:b:1\ntls:c:1\n");
    endpoints_refresh(d, false, now);
    assert_string_equal(order(), "tls:first:1 tls:b:1 tls:c:1");
    assert_string_equal(d->endpoints[1]->text, "tls:a:1");
    assert_true(d->endpoints[1]->removed);
    assert_string_equal(d->endpoints[2]->text, "tls:b:1");
    /* Looked at once a second only. */
    file_write("tls:a:1\n");
    endpoints_refresh(d, false, now + 500);
    assert_string_equal(order(), "tls:first:1 tls:b:1 tls:c:1");
    endpoints_refresh(d, true, now + 501); /* unless nobody answers */
    assert_string_equal(order(), "tls:first:1 tls:a:1");
    assert_int_equal(d->endpoints_n, 4);
    /* Wrong, gone, empty: what was known stays, and the problem is known. */
    file_write("tls:a:1\nnonsense\n");
    endpoints_refresh(d, false, now += 2000);
    assert_string_equal(order(), "tls:first:1 tls:a:1");
    assert_non_null(endpoints_problem(d));
    assert_non_null(strstr(endpoints_problem(d)->text, "nodes:2: "));
    unlink(path);
    endpoints_refresh(d, false, now += 2000);
    assert_string_equal(order(), "tls:first:1 tls:a:1");
    file_write("tls:b:1\n");
    endpoints_refresh(d, false, now += 2000);
    assert_string_equal(order(), "tls:first:1 tls:b:1");
    assert_null(endpoints_problem(d));
    /* What a node tells stays in use; what the list itself has, too. */
    endpoints_learn(d, "b:1", NULL);
    file_write("tls:first:1\n");
    endpoints_refresh(d, false, now += 2000);
    assert_string_equal(order(), "tls:first:1 tls:b:1");
    file_write("tls:d:1\n");
    endpoints_refresh(d, false, now += 2000);
    assert_string_equal(order(), "tls:first:1 tls:d:1 tls:b:1");
}

/* Names that come and go for ever take no more than the places that there are; those that somebody uses stay. */
static void file_churns(void **state)
{
    (void)state;
    char list[160], text[64];
    struct err err;
    uint64_t now = lib_now_ms() + 10000;
    snprintf(list, sizeof list, "file:%s", path);
    file_write("tls:h0:1\n");
    assert_int_equal(open_list(list, &err), 0);
    for (int i = 1; i < 300; i++) {
        snprintf(text, sizeof text, "tls:h%d:1\n", i);
        file_write(text);
        endpoints_refresh(d, false, now += 2000);
        text[strlen(text) - 1] = '\0';
        assert_string_equal(order(), text);
        assert_true(d->endpoints_n <= ENDPOINTS_MAX);
        d->answer_ep = d->endpoints[0];
        d->pinned = 1;
        assert_string_equal(d->endpoints[0]->text, "tls:h0:1");
        assert_string_equal(d->endpoints[1]->text, "tls:h1:1");
        d->pinned = i == 299 ? -1 : d->pinned;
    }
    assert_int_equal(d->endpoints_n, ENDPOINTS_MAX);
}

/* The whole way: a handle goes on to the node that the file has now. */
static void served(struct fake *f, unsigned conn, const Raftdir__Client__ToNode *m)
{
    if (m->body_case == RAFTDIR__CLIENT__TO_NODE__BODY_LOOKUP)
        fake_row(f, conn, m->request_id, m->lookup->name, f->data, 10);
}

static void handle_follows_the_file(void **state)
{
    (void)state;
    static struct fake one, two;
    struct raftdir_options o;
    const struct raftdir_mailbox *m;
    char text[300];
    raftdir *h;
    fake_start(&one, dir, "one", served, (void *)(uintptr_t)"one");
    fake_start(&two, dir, "two", served, (void *)(uintptr_t)"two");
    snprintf(text, sizeof text, "%s\n", one.endpoint);
    file_write(text);
    raftdir_options_init(&o);
    char list[160];
    snprintf(list, sizeof list, "file:%s", path);
    o.endpoints = list;
    o.local_dir = "";
    assert_int_equal(raftdir_open(&o, &h, text, sizeof text), 0);
    assert_int_equal(raftdir_lookup(h, "user.a", &m), 0);
    assert_string_equal(m->server, "one");
    snprintf(text, sizeof text, "%s\n", two.endpoint);
    file_write(text);
    uint64_t until = lib_now_ms() + 5000;
    do {
        assert_int_equal(raftdir_lookup(h, "user.a", &m), 0);
        usleep(20000);
    } while (strcmp(m->server, "two") && lib_now_ms() < until);
    assert_string_equal(m->server, "two");
    assert_string_equal(raftdir_endpoint(h, 0), one.endpoint);
    /* Nobody answers any more: the file is looked at at once. */
    fake_stop(&two);
    snprintf(text, sizeof text, "%s\n", one.endpoint);
    file_write(text);
    assert_int_equal(raftdir_lookup(h, "user.a", &m), 0);
    assert_string_equal(m->server, "one");
    raftdir_close(&h);
    fake_stop(&one);
}

/* --- DNS ----------------------------------------------------------------------------------------------------------------------------------- */

static struct server {
    int fd;
    uint16_t port;
    pthread_t thread;
    atomic_int mode;    /* 0: silent, 1: the records, 2: no such name, 3: noise */
    atomic_uint queries;
    atomic_bool stop;
} dns = {.fd = -1};

int __wrap___res_ninit(res_state s);
int __real___res_ninit(res_state s);
int __wrap___res_ninit(res_state s)
{
    int rc = __real___res_ninit(s);
    s->nscount = 1;
    s->nsaddr_list[0] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(dns.port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    s->options &= ~(unsigned long)RES_DNSRCH;
    return rc;
}

static size_t put_srv(uint8_t *p, unsigned priority, unsigned weight, unsigned port, const char *host)
{
    uint8_t *at = p;
    static const uint8_t head[] = {0xc0, 12, 0, ns_t_srv, 0, ns_c_in, 0, 0, 0, 60};
    memcpy(at, head, sizeof head);
    at += sizeof head + 2;
    ns_put16((uint16_t)priority, at);
    ns_put16((uint16_t)weight, at + 2);
    ns_put16((uint16_t)port, at + 4);
    at += 6;
    while (*host) {
        size_t n = strcspn(host, "/"); /* labels end at '/', so that a label may have any byte */
        *at++ = (uint8_t)n;
        memcpy(at, host, n);
        at += n;
        host += n + (host[n] != 0);
    }
    *at++ = 0;
    ns_put16((uint16_t)(at - p - 12), p + 10);
    return (size_t)(at - p);
}

struct record {
    unsigned priority, weight, port;
    const char *host;
};
static const struct record some[] = {{20, 0, 5, "c/example/net"}, {10, 5, 7, "a/example/net"}, {30, 1, 9, "d"}, {10, 0, 0, "no-port"}, {10, 1, 8, ""}, {10, 1, 8, "sp ace/net"}, {10, 1, 8, "x,y"}};

/* An answer to _raftdir._tcp.x, as a server would send it. */
static size_t make_answer(uint8_t *p, const struct record *list, unsigned n)
{
    static const uint8_t question[] = {8, '_', 'r', 'a', 'f', 't', 'd', 'i', 'r', 4, '_', 't', 'c', 'p', 1, 'x', 0, 0, ns_t_srv, 0, ns_c_in};
    uint8_t head[12] = {0, 1, 0x84, 0, 0, 1, 0, (uint8_t)n, 0, 0, 0, 0};
    memcpy(p, head, 12);
    memcpy(p + 12, question, sizeof question);
    size_t len = 12 + sizeof question;
    for (unsigned i = 0; i < n; i++)
        len += put_srv(p + len, list[i].priority, list[i].weight, list[i].port, list[i].host);
    return len;
}

static void *serve(void *arg)
{
    (void)arg;
    uint8_t q[600], a[2000];
    struct sockaddr_in from;
    while (!atomic_load(&dns.stop)) {
        socklen_t from_len = sizeof from;
        ssize_t n = recvfrom(dns.fd, q, sizeof q, 0, (struct sockaddr *)&from, &from_len);
        if (n < 12)
            continue;
        atomic_fetch_add(&dns.queries, 1);
        int mode = atomic_load(&dns.mode);
        size_t question = (size_t)n; /* the question as it came: no additional section is sent by our resolver's settings */
        size_t len = question;
        memcpy(a, q, (size_t)n);
        a[2] |= 0x80;
        a[3] = mode == 2 ? 3 : 0;
        a[10] = a[11] = 0;
        if (mode == 1) {
            a[7] = 3;
            for (unsigned i = 0; i < 3; i++)
                len += put_srv(a + len, some[i].priority, some[i].weight, some[i].port, some[i].host);
        } else if (mode == 3) {
            a[7] = 9;
            memset(a + len, 0xc0, 40);
            len += 40;
        }
        if (mode)
            sendto(dns.fd, a, len, 0, (struct sockaddr *)&from, from_len);
    }
    return NULL;
}

static int dns_start(void **state)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    setup(state);
    dns.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval tick = {.tv_usec = 50000};
    assert_int_equal(setsockopt(dns.fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof tick), 0);
    assert_int_equal(bind(dns.fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(getsockname(dns.fd, (struct sockaddr *)&sa, &len), 0);
    dns.port = ntohs(sa.sin_port);
    atomic_store(&dns.stop, false);
    atomic_store(&dns.queries, 0);
    assert_int_equal(pthread_create(&dns.thread, NULL, serve, NULL), 0);
    return 0;
}

static int dns_stop(void **state)
{
    atomic_store(&dns.stop, true);
    pthread_join(dns.thread, NULL);
    close(dns.fd);
    return teardown(state);
}

static void dns_srv(void **state)
{
    (void)state;
    struct err err;
    atomic_store(&dns.mode, 1);
    assert_int_equal(open_list("dns:example.net@s", &err), 0);
    assert_string_equal(order(), "tls:a.example.net:7 tls:c.example.net:5 tls:d:9");
    assert_string_equal(d->endpoints[0]->site, "s");
    assert_null(endpoints_problem(d));
}

static void dns_fails_and_comes(void **state)
{
    (void)state;
    struct err err;
    for (int mode = 0; mode <= 3; mode++) {
        if (mode == 1)
            continue;
        atomic_store(&dns.mode, mode);
        uint64_t t = lib_now_ms();
        assert_int_equal(open_list("dns:example.net", &err), 0); /* no error */
        assert_true(lib_now_ms() - t < 5000);
        assert_int_equal(d->endpoints_n, 0);
        assert_non_null(endpoints_problem(d));
        assert_non_null(strstr(endpoints_problem(d)->text, "dns:example.net"));
        unsigned before = atomic_load(&dns.queries);
        uint64_t now = lib_now_ms();
        endpoints_refresh(d, false, now + 100000); /* nobody asked for it */
        endpoints_refresh(d, true, now);           /* too early */
        assert_int_equal(atomic_load(&dns.queries), before);
        atomic_store(&dns.mode, 1);
        endpoints_refresh(d, true, now + 2000);
        assert_string_equal(order(), "tls:a.example.net:7 tls:c.example.net:5 tls:d:9");
        assert_null(endpoints_problem(d));
        /* Nobody answers there: asked again, with pauses that double. */
        before = atomic_load(&dns.queries);
        endpoints_refresh(d, true, lib_now_ms() + 1100);
        assert_int_equal(atomic_load(&dns.queries), before);
        endpoints_refresh(d, true, lib_now_ms() + 2100);
        assert_int_equal(atomic_load(&dns.queries), before + 1);
        endpoints_refresh(d, true, lib_now_ms() + 2100);
        assert_int_equal(atomic_load(&dns.queries), before + 1);
        endpoints_answered(d, d->endpoints[0], NULL); /* somebody does: the pauses begin anew */
        endpoints_refresh(d, true, lib_now_ms() + 60000);
        endpoints_refresh(d, true, lib_now_ms() + 1100);
        assert_int_equal(atomic_load(&dns.queries), before + 3);
        endpoints_close(d, true);
    }
}

/* What DNS names needs certificates, even while nothing is known. */
static void dns_needs_certificates(void **state)
{
    (void)state;
    struct raftdir_options o;
    char text[300];
    raftdir *h;
    atomic_store(&dns.mode, 2);
    raftdir_options_init(&o);
    o.endpoints = "dns:example.net,unix:/nonexistent/sock";
    o.local_dir = "";
    o.timeout_ms = 300;
    assert_int_equal(raftdir_open(&o, &h, text, sizeof text), RAFTDIR_EINVAL);
    assert_non_null(strstr(text, "CA"));
}

static void dns_addresses(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(open_list("dns:127.0.0.1:7000", &err), 0);
    assert_string_equal(order(), "tls:127.0.0.1:7000");
    endpoints_close(d, true);
    assert_int_equal(open_list("dns:surely-nobody.invalid:7000,tls:h:1", &err), 0);
    assert_string_equal(order(), "tls:h:1");
}

static void srv_answers(void **state)
{
    (void)state;
    uint8_t a[2000];
    struct dns_target t[8];
    struct err err;
    size_t len = make_answer(a, some, sizeof some / sizeof *some);
    assert_int_equal(dns_read_srv(a, len, t, 8, &err), 3);
    assert_string_equal(t[0].text, "tls:a.example.net:7");
    assert_string_equal(t[1].text, "tls:c.example.net:5");
    assert_string_equal(t[2].text, "tls:d:9");
    assert_int_equal(dns_read_srv(a, len, t, 2, &err), 2); /* no more than there is room for */
    assert_int_equal(dns_read_srv(a, make_answer(a, some, 0), t, 8, &err), RAFTDIR_EUNAVAIL);
    static const struct record none[] = {{0, 0, 1, ""}};
    assert_int_equal(dns_read_srv(a, make_answer(a, none, 1), t, 8, &err), RAFTDIR_EUNAVAIL); /* "." */
    /* Cut off within its only record, wherever that is: nothing behind the end is read. */
    static const struct record last[] = {{1, 1, 1, "host"}};
    len = make_answer(a, last, 1);
    size_t record = len - 12 - 6 - 6; /* head, numbers, name */
    for (size_t rdata = 0; rdata < 12; rdata++) {
        uint8_t *cut = malloc(record + 12 + rdata);
        assert_non_null(cut);
        memcpy(cut, a, record + 12 + rdata);
        ns_put16((uint16_t)rdata, cut + record + 10);
        assert_true(dns_read_srv(cut, record + 12 + rdata, t, 8, &err) < 0);
        free(cut);
    }
    /* Weights: nine to one, about. */
    static const struct record two[] = {{1, 89, 1, "heavy"}, {1, 9, 1, "light"}};
    unsigned heavy = 0;
    len = make_answer(a, two, 2);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(dns_read_srv(a, len, t, 8, &err), 2);
        heavy += !strcmp(t[0].text, "tls:heavy:1");
    }
    assert_true(heavy > 800 && heavy < 980);
}

/* Whatever a server sends: no crash, no more than there is room for, and host names only. */
static void srv_garbage(void **state)
{
    (void)state;
    const char *given = getenv("RAFTDIR_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    printf("RAFTDIR_TEST_SEED=%u\n", seed);
    srandom(seed);
    uint8_t good[2000];
    size_t good_len = make_answer(good, some, sizeof some / sizeof *some);
    for (int round = 0; round < 20000; round++) {
        size_t len = round % 3 ? good_len : (size_t)random() % (good_len + 1);
        uint8_t *a = malloc(len ? len : 1); /* as long as it is: the sanitizer sees the end */
        memcpy(a, good, len);
        for (long n = random() % 6; n > 0 && len; n--)
            a[(size_t)random() % len] = (uint8_t)(random() % 3 ? random() : 0xc0);
        struct dns_target t[4];
        struct err err = {0};
        int n = dns_read_srv(a, len, t, 4, &err);
        assert_true(n <= 4 && n != 0 && (n > 0 || err.code == n));
        for (int i = 0; i < n; i++)
            assert_true(!strncmp(t[i].text, "tls:", 4) && !strpbrk(t[i].text, " ,@=/\\\n") && strlen(t[i].text) < sizeof t[i].text);
        free(a);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TEST_DNS(f) cmocka_unit_test_setup_teardown(f, dns_start, dns_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(lists),       TEST(preferences),         TEST(own_site_is_the_first_answers), TEST(files),        TEST(file_changes),
        TEST(file_churns), TEST(handle_follows_the_file), TEST_DNS(dns_srv),               TEST_DNS(dns_fails_and_comes),
        TEST_DNS(dns_needs_certificates), TEST(dns_addresses), TEST(srv_answers),                   TEST(srv_garbage),
    };
    return cmocka_run_group_tests_name("endpoints", tests, NULL, NULL);
}
