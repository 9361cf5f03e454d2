/* srv_mupdate_auth.c - who a MUPDATE client is and what he may: banner, AUTHENTICATE, STARTTLS, COMPRESS, roles.
 *
 * A client is known without words when it comes over the Unix socket (its user id), or over that or loopback and there is a rule for "noauth:loopback"; where both give a role,
 * the higher one counts, and the user id's of two that are equal. It may still authenticate, and is then who it says, with that role only. A certificate says nothing by itself:
 * its owner is "cert:NAME" after AUTHENTICATE EXTERNAL, which is offered when the name has a role.
 * Mechanisms that show the password: under TLS, on the Unix socket, or where `mupdate_plaintext` says so.
 * Roles are looked up anew when the rules were reloaded; who has none any more is sent away.
 *
 * AUTHENTICATE: the session is `busy` and, between steps, `responding`; a step runs in libuv's pool (`stepping`), and a session whose connection goes meanwhile lives until it comes
 * back. A refusal is answered after MUPDATE_FAILURE_DELAY_MS, which a wait for an index that never comes stands for; the MUPDATE_FAILURES_MAX-th ends the connection. The answer
 * doesn't say whether the user exists. Somebody who proves who he is and has no role is refused too: the text says so, since he is who he says.
 *
 * COMPRESS is raw DEFLATE (RFC 1951), flushed after whatever is sent at once, as Cyrus does it. Only for those who are known: its two streams need about 130 KB. Our window is
 * small and our level low on purpose: MUPDATE's lines repeat themselves over short distances, and the loop does the work. */
#include "srv_mupdate.h"
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>
#include "logger.h"

#define ZIP_PIECE_LEN 16384
#define ZIP_WINDOW_BITS 13
#define ZIP_MEM_LEVEL 7

struct mupdate_zip {
    z_stream in, out;
};

/* --- Roles --------------------------------------------------------------------------------------------------------------------------- */

/* What the connection alone says. */
static void implied_access(struct mupdate_session *m, struct access *access_r)
{
    struct daemon *d = m->service->d;
    struct access noauth;
    uid_t uid;
    gid_t gid;
    memset(access_r, 0, sizeof *access_r);
    if (m->local && conn_peer_uid(m->conn, &uid, &gid))
        daemon_access(d, NULL, uid, access_r, NULL);
    if (!m->local && !conn_peer_loopback(m->conn))
        return;
    daemon_access_noauth(d, &noauth);
    if (noauth.role > access_r->role)
        *access_r = noauth;
}

/* Of somebody that AUTHENTICATE has named. */
static int named_access(struct mupdate_session *m, const char *name, bool by_cert, struct access *access_r, struct err *err)
{
    struct daemon *d = m->service->d;
    return by_cert ? daemon_access(d, name, 0, access_r, err) : daemon_access_sasl(d, name, access_r, err);
}

void mupdate_access_renew(struct mupdate_session *m)
{
    unsigned generation = atomic_load(&m->service->d->rules_generation);
    struct access fresh;
    if (m->auth == MUPDATE_ANONYMOUS || !m->conn || generation == m->rules_generation)
        return;
    if (m->auth == MUPDATE_IMPLIED)
        implied_access(m, &fresh);
    else
        named_access(m, m->user, m->by_cert, &fresh, NULL);
    if (!*fresh.identity)
        memcpy(fresh.identity, m->access.identity, sizeof fresh.identity); /* for the log */
    m->access = fresh;
    m->rules_generation = generation; /* read before the rules: they are looked at once too often rather than once too seldom */
    mupdate_view_refresh(m);
}

void mupdate_auth_begin(struct mupdate_session *m)
{
    struct access access;
    m->rules_generation = atomic_load(&m->service->d->rules_generation);
    implied_access(m, &access);
    if (access.role == ACCESS_NONE)
        return;
    m->access = access;
    m->auth = MUPDATE_IMPLIED;
}

bool mupdate_auth_holds(struct mupdate_session *m)
{
    mupdate_access_renew(m);
    return m->auth == MUPDATE_ANONYMOUS || m->access.role != ACCESS_NONE;
}

bool mupdate_may(struct mupdate_session *m, enum access_role role)
{
    mupdate_access_renew(m);
    if (m->access.role >= role)
        return true;
    if (m->auth == MUPDATE_ANONYMOUS)
        mupdate_answer(m, "BAD", "Please login first");
    else
        mupdate_answer(m, "NO", "%s has the role \"%s\" here, and this needs \"%s\"", m->access.identity, access_role_name(m->access.role), access_role_name(role));
    return false;
}

/* --- Banner -------------------------------------------------------------------------------------------------------------------------- */

static bool plaintext_allowed(const struct mupdate_session *m)
{
    return m->tls || m->local || m->service->d->config->mupdate_plaintext;
}

/* The certificate's name, if its owner has a role. */
static const char *external_name(struct mupdate_session *m)
{
    struct access access;
    const char *name = conn_peer_cert(m->conn);
    return name && daemon_access(m->service->d, name, 0, &access, NULL) == 0 && access.role != ACCESS_NONE ? name : NULL;
}

static void print(struct mupdate_out *o, const char *s)
{
    mupdate_print(o, s, strlen(s));
}

void mupdate_banner(struct mupdate_session *m)
{
    struct mupdate_out o = {0};
    const char *mechs = sasl_login_offer(plaintext_allowed(m), external_name(m) != NULL);
    print(&o, *mechs ? "* AUTH " : "* AUTH");
    print(&o, mechs);
    print(&o, "\r\n");
    if (!m->tls && !m->local)
        print(&o, "* STARTTLS\r\n");
    if (!m->zip)
        print(&o, "* COMPRESS \"DEFLATE\"\r\n");
    print(&o, "* PARTIAL-UPDATE\r\n* OK MUPDATE \"");
    print(&o, m->service->d->config->mupdate_hostname);
    print(&o, "\" \"raftdir\" \"" RAFTDIR_VERSION "\" \"(master)\"\r\n");
    mupdate_send(m, o.p, o.len);
    mupdate_out_free(&o);
}

/* --- AUTHENTICATE --------------------------------------------------------------------------------------------------------------------- */

static void refuse(struct mupdate_session *m)
{
    mupdate_answer(m, "NO", "%s", m->refusal);
    if (m->failures >= MUPDATE_FAILURES_MAX)
        mupdate_bye(m, "too many failed logins");
}

static void on_delay(struct srv_wait *w)
{
    refuse((struct mupdate_session *)((char *)w - offsetof(struct mupdate_session, wait)));
}

static void failed(struct mupdate_session *m, bool delay, const char *text)
{
    sasl_login_destroy(&m->sasl);
    m->failures++;
    m->refusal = text;
    if (!delay) {
        refuse(m);
        return;
    }
    m->wait.done = on_delay;
    srv_wait_begin(m->service, &m->wait, UINT64_MAX, shared_now_ms() + MUPDATE_FAILURE_DELAY_MS);
}

static void authenticated(struct mupdate_session *m)
{
    bool by_cert = strcasecmp(mupdate_arg(m, 0), "EXTERNAL") == 0;
    unsigned generation = atomic_load(&m->service->d->rules_generation);
    const char *name = by_cert ? conn_peer_cert(m->conn) : m->step.user;
    struct access access;
    struct err err = {0};
    if (!name) {
        failed(m, true, "authentication failure");
        return;
    }
    if (named_access(m, name, by_cert, &access, &err) != 0 || access.role == ACCESS_NONE) {
        logger_limited(LOGGER_WARN, "mupdate", "%s: has proved to be %s, who has no role here: login refused%s%s; see allow in raftdird.conf(5)", conn_peer_text(m->conn),
                       err.code ? "somebody" : access.identity, err.code ? ": " : "", err.text);
        failed(m, true, "you have no role here: the server's configuration has no allow section for you");
        return;
    }
    snprintf(m->user, sizeof m->user, "%s", name);
    m->by_cert = by_cert;
    m->rules_generation = generation;
    m->access = access;
    m->auth = MUPDATE_AUTHENTICATED;
    m->failures = 0;
    sasl_login_destroy(&m->sasl);
    logger_line(LOGGER_DEBUG, "mupdate", "%s: is %s (%s)", conn_peer_text(m->conn), access.identity, access_role_name(access.role));
    mupdate_view_refresh(m);
    mupdate_answer(m, "OK", "Authenticated");
}

static void on_step(struct sasl_step *step)
{
    struct mupdate_session *m = (struct mupdate_session *)((char *)step - offsetof(struct mupdate_session, step));
    m->stepping = false;
    if (!m->conn) {
        sasl_login_destroy(&m->sasl);
        mupdate_release(m);
        return;
    }
    if (m->closing)
        return; /* on_close comes */
    if (step->code == 0) {
        authenticated(m);
        return;
    }
    if (step->code == RAFTDIR_EAGAIN) {
        mupdate_send(m, step->out, strlen(step->out));
        mupdate_send(m, "\r\n", 2);
        m->responding = true;
        mupdate_go_on(m);
        return;
    }
    logger_limited(LOGGER_WARN, "mupdate", "%s: login with %s refused: %s", conn_peer_text(m->conn), mupdate_arg(m, 0), step->err.text);
    if (step->code == RAFTDIR_EAUTH)
        failed(m, true, "authentication failure");
    else if (step->code == RAFTDIR_EUNAVAIL)
        failed(m, true, "can't check who you are, try again later");
    else
        failed(m, false, step->err.text); /* about the form alone */
}

static void step(struct mupdate_session *m, const char *mechanism, const char *in, size_t len)
{
    m->step.mechanism = mechanism;
    m->step.in = in;
    m->step.in_len = len;
    m->step.done = on_step;
    m->stepping = true;
    m->service->logins.loop = &m->service->loop;
    sasl_login_step(m->sasl, &m->service->logins, &m->step);
}

void mupdate_authenticate(struct mupdate_session *m)
{
    struct err err = {0};
    if (m->auth == MUPDATE_AUTHENTICATED) {
        mupdate_answer(m, "BAD", "already authenticated");
        return;
    }
    const struct sasl_login_options o = {
        .service = "mupdate", .hostname = m->service->d->config->mupdate_hostname, .external = external_name(m), .plaintext = plaintext_allowed(m)};
    sasl_login_destroy(&m->sasl); /* of one whose response couldn't be read */
    if (sasl_login_create(&o, &m->sasl, &err) != 0) {
        logger_limited(LOGGER_ERROR, "mupdate", "%s", err.text);
        failed(m, true, "can't check who you are, try again later");
        return;
    }
    bool initial = m->line.n > 3;
    step(m, mupdate_arg(m, 0), initial ? mupdate_arg(m, 1) : NULL, initial ? m->line.word[3].len : 0);
}

void mupdate_response(struct mupdate_session *m, const struct mupdate_word *word)
{
    if (word->len == 1 && *word->s == '*')
        failed(m, false, "Client canceled authentication");
    else
        step(m, NULL, word->s, word->len);
}

/* --- STARTTLS -------------------------------------------------------------------------------------------------------------------------- */

void mupdate_starttls(struct mupdate_session *m)
{
    if (m->auth == MUPDATE_AUTHENTICATED) {
        mupdate_answer(m, "BAD", "Can't Starttls after authentication");
    } else if (m->zip) {
        mupdate_answer(m, "BAD", "Can't Starttls after Compress");
    } else if (m->tls) {
        mupdate_answer(m, "BAD", "Already did a successful Starttls");
    } else if (m->local) {
        mupdate_answer(m, "BAD", "Unrecognized command");
    } else {
        SSL_CTX *context = daemon_tls_optional(m->service->d);
        mupdate_answer(m, "OK", "Begin TLS negotiation now");
        conn_starttls(m->conn, context); /* what the client has sent behind its command closes the connection */
        SSL_CTX_free(context);
    }
}

void mupdate_tls_done(struct mupdate_session *m)
{
    m->tls = true;
    mupdate_view_refresh(m);
    mupdate_banner(m);
}

/* --- COMPRESS ---------------------------------------------------------------------------------------------------------------------------- */

void mupdate_compress(struct mupdate_session *m)
{
    if (m->zip) {
        mupdate_answer(m, "BAD", "DEFLATE active via COMPRESS");
        return;
    }
    if (strcasecmp(mupdate_arg(m, 0), "DEFLATE") != 0) {
        mupdate_answer(m, "NO", "Unknown COMPRESS algorithm: %s", mupdate_arg(m, 0));
        return;
    }
    if (m->auth == MUPDATE_ANONYMOUS) {
        mupdate_answer(m, "BAD", "Please login first");
        return;
    }
    struct mupdate_zip *zip = mem_calloc(1, sizeof *zip);
    if (inflateInit2(&zip->in, -MAX_WBITS) != Z_OK || deflateInit2(&zip->out, Z_BEST_SPEED, Z_DEFLATED, -ZIP_WINDOW_BITS, ZIP_MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
        mem_exhausted("COMPRESS");
    mupdate_answer(m, "OK", "DEFLATE active"); /* still in clear */
    m->zip = zip;
    mupdate_view_refresh(m);
}

int mupdate_inflate(struct mupdate_session *m, const uint8_t *data, size_t len, struct mupdate_out *to)
{
    z_stream *z = &m->zip->in;
    char piece[ZIP_PIECE_LEN];
    size_t before = to->len;
    z->next_in = (z_const Bytef *)data;
    z->avail_in = (uInt)len;
    do {
        z->next_out = (Bytef *)piece;
        z->avail_out = sizeof piece;
        int rc = inflate(z, Z_SYNC_FLUSH);
        if (rc == Z_MEM_ERROR)
            mem_exhausted("COMPRESS");
        if (rc != Z_OK && rc != Z_BUF_ERROR)
            return RAFTDIR_EPROTO; /* its end too: the stream is as long as the connection */
        mupdate_print(to, piece, sizeof piece - z->avail_out);
        if (to->len - before > MUPDATE_INFLATE_LEN_MAX)
            return RAFTDIR_ETOOBIG;
    } while (z->avail_out == 0);
    return 0;
}

void mupdate_deflate(struct mupdate_session *m, const void *data, size_t len, struct mupdate_out *to)
{
    z_stream *z = &m->zip->out;
    char piece[ZIP_PIECE_LEN];
    z->next_in = (z_const Bytef *)data;
    z->avail_in = (uInt)len;
    do {
        z->next_out = (Bytef *)piece;
        z->avail_out = sizeof piece;
        deflate(z, Z_SYNC_FLUSH); /* Z_OK, or Z_BUF_ERROR when there was nothing left to flush */
        mupdate_print(to, piece, sizeof piece - z->avail_out);
    } while (z->avail_out == 0);
}

/* --- The end ----------------------------------------------------------------------------------------------------------------------------- */

void mupdate_auth_close(struct mupdate_session *m)
{
    if (m->stepping)
        sasl_login_give_up(&m->step);
    else
        sasl_login_destroy(&m->sasl);
    if (!m->zip)
        return;
    inflateEnd(&m->zip->in);
    deflateEnd(&m->zip->out);
    free(m->zip);
    m->zip = NULL;
}
