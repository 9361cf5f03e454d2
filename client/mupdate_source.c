/* mupdate_source.c - see mupdate_source.h. The connection, TLS, and what the master says; mupdate_login.c logs in. */
#include "mupdate_source.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "mupdate_login.h"
#include "raftdir/mem.h"

#define PORT "3905"
#define READ_LEN (64u << 10)
#define CONNECT_MS 10000
#define ANSWER_MS 30000  /* of the banner, STARTTLS, a write */

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int tls_error(struct mupdate_source *s, const char *what, struct err *err)
{
    char text[160] = "";
    long verified = s->ssl && !s->encrypted ? SSL_get_verify_result(s->ssl) : X509_V_OK;
    unsigned long e = ERR_get_error();
    ERR_error_string_n(e, text, sizeof text);
    ERR_clear_error();
    if (verified != X509_V_OK)
        return err_set(err, RAFTDIR_EAUTH, "%s: its certificate: %s (--mupdate-ca FILE names whom to trust)", what, X509_verify_cert_error_string(verified));
    return err_set(err, RAFTDIR_EPROTO, "%s: %s", what, e ? text : "the connection was closed");
}

/* Until the socket is ready for `events`. 0, or RAFTDIR_EAGAIN after the deadline or a signal. */
static int wait_for(struct mupdate_source *s, short events, uint64_t deadline)
{
    struct pollfd p = {.fd = s->fd, .events = events};
    uint64_t now = now_ms();
    int rc = poll(&p, 1, now >= deadline ? 0 : (int)(deadline - now));
    return rc > 0 ? 0 : RAFTDIR_EAGAIN;
}

int mupdate_source_send(struct mupdate_source *s, const char *data, size_t len, struct err *err)
{
    uint64_t deadline = now_ms() + ANSWER_MS;
    while (len) {
        ssize_t n;
        short wanted = POLLOUT;
        if (s->ssl) {
            int rc = SSL_write(s->ssl, data, len > INT32_MAX ? INT32_MAX : (int)len);
            int why = rc > 0 ? SSL_ERROR_NONE : SSL_get_error(s->ssl, rc);
            if (rc <= 0 && why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
                return tls_error(s, "writing", err);
            n = rc > 0 ? rc : -1;
            wanted = why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        } else {
            n = send(s->fd, data, len, MSG_NOSIGNAL);
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                return err_set(err, RAFTDIR_EUNAVAIL, "the connection is lost: %s", strerror(errno));
        }
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (wait_for(s, wanted, deadline) && now_ms() >= deadline)
            return err_set(err, RAFTDIR_ETIMEDOUT, "it takes nothing");
    }
    return 0;
}

/* 1: something came; 0: nothing until the deadline; negative. */
static int receive(struct mupdate_source *s, uint64_t deadline, struct err *err)
{
    if (s->pos) {
        memmove(s->buf, s->buf + s->pos, s->len - s->pos);
        s->len -= s->pos;
        s->pos = 0;
    }
    if (s->size - s->len < READ_LEN) {
        s->size = s->size ? 2 * s->size : 4 * READ_LEN;
        s->buf = mem_realloc(s->buf, s->size);
    }
    for (;;) {
        ssize_t n;
        short wanted = POLLIN;
        if (s->ssl) {
            int rc = SSL_read(s->ssl, s->buf + s->len, (int)(s->size - s->len));
            int why = rc > 0 ? SSL_ERROR_NONE : SSL_get_error(s->ssl, rc);
            if (why == SSL_ERROR_ZERO_RETURN)
                return err_set(err, RAFTDIR_EUNAVAIL, "the connection was closed");
            if (rc <= 0 && why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
                return tls_error(s, "reading", err), RAFTDIR_EUNAVAIL;
            n = rc > 0 ? rc : -1;
            wanted = why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
        } else {
            n = recv(s->fd, s->buf + s->len, s->size - s->len, 0);
            if (n == 0)
                return err_set(err, RAFTDIR_EUNAVAIL, "the connection was closed");
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                return err_set(err, RAFTDIR_EUNAVAIL, "the connection is lost: %s", strerror(errno));
        }
        if (n > 0) {
            s->len += (size_t)n;
            return 1;
        }
        if (wait_for(s, wanted, deadline))
            return 0;
    }
}

int mupdate_source_line(struct mupdate_source *s, uint64_t deadline, struct err *err)
{
    for (;;) {
        size_t taken = 0;
        /* An ACL that we don't take is told with its name; so it may be longer here than we would send one. */
        s->parser.line_len_max = s->parser.literal_len_max = SOURCE_LITERAL_LEN_MAX;
        s->parser.len_max = 2 * SOURCE_LITERAL_LEN_MAX;
        switch (mupdate_parse(&s->parser, s->buf + s->pos, s->len - s->pos, &s->line, &taken, err)) {
        case MUPDATE_LINE:
            s->pos += taken;
            return 0;
        case MUPDATE_BAD:
            s->pos += taken;
            /* A text for people that isn't quoted well is still an answer. */
            return s->line.n >= 2 ? 0 : RAFTDIR_EPROTO;
        case MUPDATE_FATAL:
            return err ? err->code : RAFTDIR_EPROTO;
        case MUPDATE_GO_AHEAD: {
            int rc = mupdate_source_send(s, "+ go ahead\r\n", 12, err);
            if (rc)
                return rc;
            continue;
        }
        case MUPDATE_MORE:
            break;
        }
        int rc = receive(s, deadline, err);
        if (rc <= 0)
            return rc < 0 ? rc : RAFTDIR_EAGAIN;
    }
}

/* A line, which must come. */
int mupdate_source_answer(struct mupdate_source *s, struct err *err)
{
    uint64_t deadline = now_ms() + ANSWER_MS;
    int rc;
    while ((rc = mupdate_source_line(s, deadline, err)) == RAFTDIR_EAGAIN && now_ms() < deadline)
        ;
    return rc == RAFTDIR_EAGAIN ? err_set(err, RAFTDIR_ETIMEDOUT, "no answer") : rc;
}

void mupdate_source_text(const struct mupdate_source *s, unsigned from, char *text_r, size_t size)
{
    size_t len = 0;
    text_r[0] = 0;
    for (unsigned i = from; i < s->line.n && len + 1 < size; i++)
        len += (size_t)snprintf(text_r + len, size - len, "%s%.*s", i > from ? " " : "", (int)s->line.word[i].len, s->line.word[i].s);
    for (char *p = text_r; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
}

static bool is(const struct mupdate_source *s, unsigned word, const char *text)
{
    return word < s->line.n && mupdate_word_is(&s->line.word[word], text);
}

/* Up to "* OK MUPDATE". */
static int banner(struct mupdate_source *s, struct err *err)
{
    char text[256];
    s->mechanisms[0] = 0;
    s->starttls = false;
    for (;;) {
        int rc = mupdate_source_answer(s, err);
        if (rc)
            return rc;
        if (!is(s, 0, "*"))
            return err_set(err, RAFTDIR_EPROTO, "it doesn't speak MUPDATE");
        if (is(s, 1, "AUTH"))
            mupdate_source_text(s, 2, s->mechanisms, sizeof s->mechanisms);
        else if (is(s, 1, "STARTTLS"))
            s->starttls = true;
        else if (is(s, 1, "BYE") || is(s, 1, "NO") || is(s, 1, "BAD")) {
            mupdate_source_text(s, 2, text, sizeof text);
            return err_set(err, RAFTDIR_EUNAVAIL, "it says: %s", text);
        } else if (is(s, 1, "OK")) {
            mupdate_source_text(s, 6, text, sizeof text);
            if (!strncmp(text, "mupdate://", 10))
                return err_set(err, RAFTDIR_EUNAVAIL, "it is no master but a copy of %s", text);
            return 0;
        }
    }
}

/* --- Connecting ---------------------------------------------------------------------------------------------------------------------- */

static int split_address(struct mupdate_source *s, const char *address, struct err *err)
{
    const char *port = NULL, *end;
    if (address[0] == '[') {
        end = strchr(address, ']');
        if (!end || (end[1] && end[1] != ':'))
            return err_set(err, RAFTDIR_EINVAL, "an address is HOST[:PORT] or [V6][:PORT]");
        port = end[1] ? end + 2 : NULL;
        address++;
    } else {
        const char *colon = strchr(address, ':');
        if (colon && strchr(colon + 1, ':'))
            colon = NULL; /* bare IPv6 */
        end = colon ? colon : address + strlen(address);
        port = colon ? colon + 1 : NULL;
    }
    if (end == address || (size_t)(end - address) >= sizeof s->host || (port && (!*port || strlen(port) >= sizeof s->port)))
        return err_set(err, RAFTDIR_EINVAL, "an address is HOST[:PORT] or [V6][:PORT]");
    memcpy(s->host, address, (size_t)(end - address));
    snprintf(s->port, sizeof s->port, "%s", port ? port : PORT);
    return 0;
}

static int connect_one(struct mupdate_source *s, int family, const struct sockaddr *sa, socklen_t len, struct err *err)
{
    s->fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s", strerror(errno));
    int rc = connect(s->fd, sa, len), error = rc < 0 ? errno : 0;
    if (error == EINPROGRESS) {
        socklen_t size = sizeof error;
        if (wait_for(s, POLLOUT, now_ms() + CONNECT_MS))
            error = ETIMEDOUT;
        else if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
            error = errno;
    }
    if (!error)
        return 0;
    close(s->fd);
    s->fd = -1;
    return err_set(err, RAFTDIR_EUNAVAIL, "%s%s", strerror(error), error == ECONNREFUSED ? ": is that its port, and does it run? (a raftdir node without a quorum refuses, too)" : "");
}

static int dial(struct mupdate_source *s, struct err *err)
{
    if (s->o.address[0] == '/') {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        if (strlen(s->o.address) >= sizeof un.sun_path)
            return err_set(err, RAFTDIR_EINVAL, "the path is too long");
        strcpy(un.sun_path, s->o.address);
        strcpy(s->host, "localhost");
        s->local = true;
        return connect_one(s, AF_UNIX, (struct sockaddr *)&un, sizeof un, err);
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    int rc = split_address(s, s->o.address, err);
    if (rc)
        return rc;
    int gai = getaddrinfo(s->host, s->port, &hints, &list);
    if (gai)
        return err_set(err, RAFTDIR_EUNAVAIL, "%s", gai_strerror(gai));
    rc = RAFTDIR_EUNAVAIL;
    for (struct addrinfo *a = list; a && rc; a = a->ai_next)
        rc = connect_one(s, a->ai_family, a->ai_addr, a->ai_addrlen, err);
    freeaddrinfo(list);
    if (rc)
        return rc;
    int on = 1;
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(s->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    if (!getpeername(s->fd, (struct sockaddr *)&peer, &peer_len)) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&peer;
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&peer;
        s->local = (peer.ss_family == AF_INET && ntohl(v4->sin_addr.s_addr) >> 24 == 127) || (peer.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr));
    }
    return 0;
}

static int tls_begin(struct mupdate_source *s, struct err *err)
{
    unsigned char ip[16];
    if (!(s->tls = SSL_CTX_new(TLS_client_method())) || !SSL_CTX_set_min_proto_version(s->tls, TLS1_2_VERSION))
        return tls_error(s, "TLS", err);
    SSL_CTX_set_mode(s->tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (!s->o.unverified) {
        SSL_CTX_set_verify(s->tls, SSL_VERIFY_PEER, NULL);
        if (s->o.ca ? SSL_CTX_load_verify_file(s->tls, s->o.ca) != 1 : SSL_CTX_set_default_verify_paths(s->tls) != 1)
            return err_set(err, RAFTDIR_EAUTH, "--mupdate-ca %s: no certificates can be read there", s->o.ca ? s->o.ca : "");
    }
    if (!(s->ssl = SSL_new(s->tls)) || SSL_set_fd(s->ssl, s->fd) != 1)
        return tls_error(s, "TLS", err);
    bool numeric = inet_pton(AF_INET, s->host, ip) == 1 || inet_pton(AF_INET6, s->host, ip) == 1;
    if (!numeric && (SSL_set_tlsext_host_name(s->ssl, s->host) != 1 || SSL_set1_host(s->ssl, s->host) != 1))
        return tls_error(s, "TLS", err);
    if (numeric && X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(s->ssl), s->host) != 1)
        return tls_error(s, "TLS", err);
    uint64_t deadline = now_ms() + ANSWER_MS;
    for (int rc; (rc = SSL_connect(s->ssl)) != 1;) {
        int why = SSL_get_error(s->ssl, rc);
        if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
            return tls_error(s, "TLS", err);
        if (wait_for(s, why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline) && now_ms() >= deadline)
            return err_set(err, RAFTDIR_ETIMEDOUT, "no TLS handshake");
    }
    s->encrypted = true;
    return 0;
}

static int start_tls(struct mupdate_source *s, struct err *err)
{
    char text[256];
    int rc = mupdate_source_send(s, "S01 STARTTLS\r\n", 14, err);
    if (rc || (rc = mupdate_source_answer(s, err)))
        return rc;
    if (!is(s, 0, "S01") || !is(s, 1, "OK")) {
        mupdate_source_text(s, 1, text, sizeof text);
        return err_set(err, RAFTDIR_EPROTO, "STARTTLS: %s", text);
    }
    if (s->pos != s->len) /* sent before there was TLS: by whom? */
        return err_set(err, RAFTDIR_EPROTO, "STARTTLS: something follows it in clear text");
    if ((rc = tls_begin(s, err)))
        return rc;
    return banner(s, err);
}

static int open_all(struct mupdate_source *s, struct err *err)
{
    int rc = dial(s, err);
    if (!rc && s->o.tls == MUPDATE_TLS_IMPLICIT)
        rc = tls_begin(s, err);
    if (!rc && (rc = banner(s, err)) && !s->encrypted && s->line.n == 0 && rc != RAFTDIR_EPROTO)
        err_wrap(err, "it says nothing in clear (is it the port for --mupdate-tls implicit?)");
    if (!rc && s->o.tls == MUPDATE_TLS_STARTTLS && !s->starttls)
        rc = err_set(err, RAFTDIR_EAUTH, "it offers no STARTTLS");
    if (!rc && s->starttls && !s->encrypted && s->o.tls != MUPDATE_TLS_NO)
        rc = start_tls(s, err);
    if (!rc && s->o.user)
        rc = mupdate_login(s, err);
    return rc;
}

int mupdate_source_open(const struct mupdate_source_options *options, struct mupdate_source **source_r, struct err *err)
{
    struct mupdate_source *s = mem_calloc(1, sizeof *s);
    s->fd = -1;
    s->o = *options;
    int rc = open_all(s, err);
    if (rc) {
        err_wrap(err, "%s", options->address);
        mupdate_source_close(&s);
    }
    *source_r = s;
    return rc;
}

int mupdate_source_fd(const struct mupdate_source *s)
{
    return s->fd;
}

void mupdate_source_close(struct mupdate_source **sp)
{
    struct mupdate_source *s = *sp;
    *sp = NULL;
    if (!s)
        return;
    mupdate_login_end(s);
    if (s->encrypted)
        SSL_shutdown(s->ssl);
    SSL_free(s->ssl);
    SSL_CTX_free(s->tls);
    ERR_clear_error();
    if (s->fd >= 0)
        close(s->fd);
    free(s->buf);
    free(s->row.text);
    free(s);
}

/* --- Rows ---------------------------------------------------------------------------------------------------------------------------- */

int mupdate_source_list(struct mupdate_source *s, bool updates, struct err *err)
{
    s->tag = updates ? "U01" : "L01";
    s->listing = true;
    int rc = updates ? mupdate_source_send(s, "U01 UPDATE\r\n", 12, err) : mupdate_source_send(s, "L01 LIST\r\n", 10, err);
    if (rc)
        err_wrap(err, "%s", s->o.address);
    return rc;
}

int mupdate_source_noop(struct mupdate_source *s, struct err *err)
{
    int rc = mupdate_source_send(s, "N01 NOOP\r\n", 10, err);
    if (rc)
        err_wrap(err, "%s", s->o.address);
    return rc;
}

/* Copies words 2.. of the line, each NUL-terminated. */
static void copy_row(struct mupdate_source *s, unsigned n, const char *to_r[3])
{
    size_t len = 0;
    for (unsigned i = 0; i < n; i++)
        len += s->line.word[2 + i].len + 1;
    if (len > s->row.size) {
        s->row.size = 2 * len;
        s->row.text = mem_realloc(s->row.text, s->row.size);
    }
    char *to = s->row.text;
    for (unsigned i = 0; i < n; i++) {
        const struct mupdate_word *w = &s->line.word[2 + i];
        memcpy(to, w->s, w->len);
        to[w->len] = 0;
        to_r[i] = to;
        to += w->len + 1;
    }
}

static int next_row(struct mupdate_source *s, uint64_t deadline, struct mupdate_row *row_r, struct err *err)
{
    char text[256];
    for (;;) {
        const char *part[3] = {"", "", ""};
        int rc = mupdate_source_line(s, deadline, err);
        if (rc)
            return rc;
        unsigned args = s->line.n >= 2 ? s->line.n - 2 : 0;
        bool ours = s->tag && is(s, 0, s->tag);
        if (ours && is(s, 1, "MAILBOX") && args == 3)
            row_r->kind = MUPDATE_ROW_MAILBOX;
        else if (ours && is(s, 1, "RESERVE") && args == 2)
            row_r->kind = MUPDATE_ROW_RESERVED;
        else if (ours && is(s, 1, "DELETE") && args == 1)
            row_r->kind = MUPDATE_ROW_DELETED;
        else if (ours && is(s, 1, "OK") && s->listing) {
            s->listing = false;
            *row_r = (struct mupdate_row){MUPDATE_ROW_END, "", "", "", ""};
            return 0;
        } else if (is(s, 0, "N01") && is(s, 1, "OK")) {
            *row_r = (struct mupdate_row){MUPDATE_ROW_CURRENT, "", "", "", ""};
            return 0;
        } else if (is(s, 1, "BYE") || is(s, 1, "NO") || is(s, 1, "BAD")) {
            mupdate_source_text(s, 1, text, sizeof text);
            return err_set(err, is(s, 1, "BYE") ? RAFTDIR_EUNAVAIL : RAFTDIR_EPERM, "it says: %s%s", text, s->o.user ? "" : " (--mupdate-user names whom to log in as)");
        } else if (is(s, 0, "*"))
            continue;
        else {
            mupdate_source_text(s, 0, text, sizeof text);
            return err_set(err, RAFTDIR_EPROTO, "not understood: %s", text);
        }
        copy_row(s, args, part);
        /* "server!partition"; a master takes a location without a "!", too. */
        char *bang = args > 1 ? strchr(part[1], '!') : NULL;
        row_r->name = part[0];
        row_r->server = part[1];
        row_r->partition = bang ? bang + 1 : "";
        row_r->acl = part[2];
        if (bang)
            *bang = 0;
        return 0;
    }
}

int mupdate_source_next(struct mupdate_source *s, unsigned timeout_ms, struct mupdate_row *row_r, struct err *err)
{
    int rc = next_row(s, now_ms() + timeout_ms, row_r, err);
    if (rc && rc != RAFTDIR_EAGAIN)
        err_wrap(err, "%s", s->o.address);
    return rc;
}
