/* lib_dns.c - endpoints from DNS: SRV records (RFC 2782), or all addresses of a name.
 *
 * An answer is a stranger's bytes: it is read by libresolv's parser, what isn't a host name or a port is passed over, and no more than the caller has room for is taken.
 * Limits: answers up to ANSWER_LEN_MAX; each name server is waited for DNS_TIMEOUT_S, once. The library's resolver state is its own for each lookup, so handles in
 * different threads don't meet, and a changed resolv.conf is seen. */
#include <arpa/nameser.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "lib_internal.h"

#define ANSWER_LEN_MAX 16384
#define DNS_TIMEOUT_S 1
#define SRV_RDATA_LEN_MIN 7 /* priority, weight, port, and a name of one byte */

struct srv {
    uint16_t priority, weight, port;
    char host[NS_MAXDNAME];
};

static bool is_host_name(const char *s)
{
    size_t len = strlen(s);
    return len && len <= 253 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == len;
}

static int by_priority(const void *a, const void *b)
{
    const struct srv *x = a, *y = b;
    return (x->priority > y->priority) - (x->priority < y->priority);
}

/* RFC 2782: within a priority each place is drawn with the weights that are left. */
static int shuffle(struct srv *list, size_t n, struct err *err)
{
    qsort(list, n, sizeof *list, by_priority);
    for (size_t i = 0; i < n; i++) {
        uint32_t sum = 0, at;
        size_t end = i;
        for (; end < n && list[end].priority == list[i].priority; end++)
            sum += list[end].weight + 1u; /* those of weight 0 have a small chance, too */
        if (lib_random(&at, sizeof at, err) < 0)
            return err->code;
        at %= sum;
        size_t k = i;
        while (at >= list[k].weight + 1u)
            at -= list[k++].weight + 1u;
        struct srv drawn = list[k];
        list[k] = list[i];
        list[i] = drawn;
    }
    return 0;
}

int dns_read_srv(const uint8_t *answer, size_t len, struct dns_target *targets, unsigned targets_max, struct err *err)
{
    ns_msg m;
    ns_rr rr;
    size_t n = 0;
    int rc;
    if (len > ANSWER_LEN_MAX || ns_initparse(answer, (int)len, &m) < 0)
        return err_set(err, RAFTDIR_EPROTO, "an answer that can't be read (%zu bytes)", len);
    struct srv *list = calloc(targets_max, sizeof *list);
    if (!list)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    for (int i = 0; i < ns_msg_count(m, ns_s_an) && n < targets_max; i++) {
        if (ns_parserr(&m, ns_s_an, i, &rr) < 0)
            break; /* what came before it is good */
        if (ns_rr_type(rr) != ns_t_srv || ns_rr_class(rr) != ns_c_in || ns_rr_rdlen(rr) < SRV_RDATA_LEN_MIN)
            continue;
        const uint8_t *p = ns_rr_rdata(rr);
        struct srv *s = &list[n];
        s->priority = (uint16_t)ns_get16(p);
        s->weight = (uint16_t)ns_get16(p + 2);
        s->port = (uint16_t)ns_get16(p + 4);
        /* A target of "." says that there is no such service. */
        if (ns_name_uncompress(ns_msg_base(m), ns_msg_end(m), p + 6, s->host, sizeof s->host) < 0 || !s->port || !strcmp(s->host, ".") || !is_host_name(s->host))
            continue;
        n++;
    }
    if ((rc = shuffle(list, n, err)) == 0)
        for (size_t i = 0; i < n; i++)
            snprintf(targets[i].text, sizeof targets[i].text, "tls:%.253s:%u", list[i].host, list[i].port);
    free(list);
    if (rc < 0)
        return rc;
    return n ? (int)n : err_set(err, RAFTDIR_EUNAVAIL, "there is no such service");
}

static int lookup_srv(const char *name, struct dns_target *targets, unsigned targets_max, struct err *err)
{
    char query[NS_MAXDNAME];
    struct __res_state state;
    if ((size_t)snprintf(query, sizeof query, "_raftdir._tcp.%s", name) >= sizeof query)
        return err_set(err, RAFTDIR_EINVAL, "too long a name");
    uint8_t *answer = malloc(ANSWER_LEN_MAX);
    if (!answer)
        return err_set(err, RAFTDIR_ENOMEM, "out of memory");
    memset(&state, 0, sizeof state);
    if (res_ninit(&state) < 0) {
        free(answer);
        return err_set(err, RAFTDIR_EUNAVAIL, "no resolver");
    }
    state.retrans = DNS_TIMEOUT_S;
    state.retry = 1;
    int rc, len = res_nquery(&state, query, ns_c_in, ns_t_srv, answer, ANSWER_LEN_MAX);
    if (len < 0)
        rc = err_set(err, RAFTDIR_EUNAVAIL, "%s: %s", query,
                     state.res_h_errno == HOST_NOT_FOUND ? "no such name"
                     : state.res_h_errno == NO_DATA      ? "the name has no SRV records"
                                                         : "no answer from DNS");
    else if ((rc = dns_read_srv(answer, len > ANSWER_LEN_MAX ? ANSWER_LEN_MAX : (size_t)len, targets, targets_max, err)) < 0)
        err_wrap(err, "%s", query);
    res_nclose(&state);
    free(answer);
    return rc;
}

static int lookup_addresses(const char *name, const char *port, struct dns_target *targets, unsigned targets_max, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG}, *list = NULL;
    unsigned n = 0;
    int rc = getaddrinfo(name, port, &hints, &list);
    if (rc)
        return err_set(err, rc == EAI_MEMORY ? RAFTDIR_ENOMEM : RAFTDIR_EUNAVAIL, "%s: %s", name, rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    for (struct addrinfo *ai = list; ai && n < targets_max; ai = ai->ai_next) {
        char host[NI_MAXHOST];
        if (getnameinfo(ai->ai_addr, ai->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST))
            continue;
        snprintf(targets[n++].text, sizeof targets->text, strchr(host, ':') ? "tls:[%.100s]:%.5s" : "tls:%.100s:%.5s", host, port);
    }
    freeaddrinfo(list);
    return n ? (int)n : err_set(err, RAFTDIR_EUNAVAIL, "%s: no addresses", name);
}

int dns_lookup(const char *name, const char *port, struct dns_target *targets, unsigned targets_max, struct err *err)
{
    return port ? lookup_addresses(name, port, targets, targets_max, err) : lookup_srv(name, targets, targets_max, err);
}
