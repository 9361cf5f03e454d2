/* mupdate_login.c - AUTHENTICATE at a MUPDATE master, through the Cyrus SASL library. No security layer of SASL's own: TLS is there for that.
 *
 * A mechanism that shows the password is used only under TLS, towards this host, or when MUPDATE_TLS_NO says that it may be seen. */
#include "mupdate_login.h"
#include <stdlib.h>
#include <string.h>
#include "raftdir/mem.h"

#define STEPS_MAX 32

static int get_simple(void *context, int id, const char **result, unsigned *len)
{
    struct mupdate_source *s = context;
    if (id != SASL_CB_USER && id != SASL_CB_AUTHNAME)
        return SASL_BADPARAM;
    *result = s->o.user;
    if (len)
        *len = (unsigned)strlen(s->o.user);
    return SASL_OK;
}

static int get_secret(sasl_conn_t *conn, void *context, int id, sasl_secret_t **secret)
{
    struct mupdate_source *s = context;
    (void)conn;
    if (id != SASL_CB_PASS || !s->secret)
        return SASL_FAIL;
    *secret = s->secret;
    return SASL_OK;
}

static int get_realm(void *context, int id, const char **realms, const char **result)
{
    (void)context;
    if (id != SASL_CB_GETREALM)
        return SASL_BADPARAM;
    *result = realms && realms[0] ? realms[0] : "";
    return SASL_OK;
}

static int fail(struct mupdate_source *s, int rc, const char *what, struct err *err)
{
    const char *why = s->sasl ? sasl_errdetail(s->sasl) : sasl_errstring(rc, NULL, NULL);
    if (rc == SASL_NOMECH)
        return err_set(err, RAFTDIR_EAUTH,
                       s->mechanisms[0] ? "no mechanism in common: it offers %s%s" : "it offers no mechanism without TLS%s%s",
                       s->mechanisms[0] ? s->mechanisms : "",
                       s->encrypted || s->local || s->o.tls == MUPDATE_TLS_NO ? "; is its module of libsasl2 installed?" : "; passwords in clear text want TLS, or --mupdate-tls no");
    return err_set(err, RAFTDIR_EAUTH, "%s: %s%s", what, why, s->secret ? "" : " (no password was given: --mupdate-password-file, or RAFTDIR_MUPDATE_PASSWORD)");
}

static int client_init(void)
{
    static int rc = SASL_FAIL;
    static bool done;
    if (!done) {
        rc = sasl_client_init(NULL);
        done = true;
    }
    return rc;
}

/* The next of ours, in base64; NULL without one. Given. */
static char *encode(const char *out, unsigned len)
{
    unsigned size = (len + 2) / 3 * 4 + 1, got = 0;
    char *text = mem_alloc(size);
    if (sasl_encode64(out ? out : "", len, text, size, &got) != SASL_OK)
        got = 0;
    text[got] = 0;
    return text;
}

static int begin(struct mupdate_source *s, struct err *err)
{
    sasl_ssf_t ssf = s->encrypted ? (sasl_ssf_t)SSL_get_cipher_bits(s->ssl, NULL) : 0;
    sasl_security_properties_t props = {.maxbufsize = 0, .max_ssf = 0, .security_flags = SASL_SEC_NOANONYMOUS};
    if (!s->encrypted && !s->local && s->o.tls != MUPDATE_TLS_NO)
        props.security_flags |= SASL_SEC_NOPLAINTEXT;
    if (s->o.password) {
        size_t len = strlen(s->o.password);
        s->secret = mem_calloc(1, sizeof *s->secret + len + 1);
        s->secret->len = len;
        memcpy(s->secret->data, s->o.password, len);
    }
    s->callbacks[0] = (sasl_callback_t){SASL_CB_USER, (int (*)(void))(void *)get_simple, s};
    s->callbacks[1] = (sasl_callback_t){SASL_CB_AUTHNAME, (int (*)(void))(void *)get_simple, s};
    s->callbacks[2] = (sasl_callback_t){SASL_CB_PASS, (int (*)(void))(void *)get_secret, s};
    s->callbacks[3] = (sasl_callback_t){SASL_CB_GETREALM, (int (*)(void))(void *)get_realm, s};
    s->callbacks[4] = (sasl_callback_t){SASL_CB_LIST_END, NULL, NULL};
    int rc = client_init();
    if (rc == SASL_OK)
        rc = sasl_client_new("mupdate", s->host, NULL, NULL, s->callbacks, 0, &s->sasl);
    if (rc == SASL_OK)
        rc = sasl_setprop(s->sasl, SASL_SEC_PROPS, &props);
    if (rc == SASL_OK)
        rc = sasl_setprop(s->sasl, SASL_SSF_EXTERNAL, &ssf);
    return rc == SASL_OK ? 0 : fail(s, rc, "SASL", err);
}

static int send_response(struct mupdate_source *s, const char *out, unsigned len, struct err *err)
{
    struct mupdate_out line = {0};
    char *text = encode(out, len);
    mupdate_print(&line, text, strlen(text));
    mupdate_print(&line, "\r\n", 2);
    int rc = mupdate_source_send(s, line.p, line.len, err);
    explicit_bzero(line.p, line.len);
    explicit_bzero(text, strlen(text));
    mupdate_out_free(&line);
    free(text);
    return rc;
}

static int steps(struct mupdate_source *s, struct err *err)
{
    for (unsigned i = 0; i < STEPS_MAX; i++) {
        char why[256];
        int rc = mupdate_source_answer(s, err);
        if (rc)
            return rc;
        if (s->line.n >= 2 && mupdate_word_is(&s->line.word[0], "A01")) {
            if (mupdate_word_is(&s->line.word[1], "OK"))
                return 0;
            mupdate_source_text(s, 2, why, sizeof why);
            return err_set(err, RAFTDIR_EAUTH, "logging in as %s: %s", s->o.user, why);
        }
        if (s->line.n > 1) {
            mupdate_source_text(s, 0, why, sizeof why);
            return err_set(err, RAFTDIR_EAUTH, "logging in as %s: %s", s->o.user, why);
        }
        const struct mupdate_word challenge = s->line.n ? s->line.word[0] : (struct mupdate_word){"", 0};
        char *data = mem_alloc(challenge.len + 1);
        unsigned len = 0;
        const char *out = NULL;
        unsigned out_len = 0;
        rc = sasl_decode64(challenge.s, (unsigned)challenge.len, data, (unsigned)challenge.len + 1, &len);
        if (rc == SASL_OK)
            rc = sasl_client_step(s->sasl, data, len, NULL, &out, &out_len);
        free(data);
        if (rc != SASL_OK && rc != SASL_CONTINUE) {
            int failed = fail(s, rc, "logging in", err);
            mupdate_source_send(s, "*\r\n", 3, NULL);
            return failed;
        }
        if ((rc = send_response(s, out, out_len, err)))
            return rc;
    }
    return err_set(err, RAFTDIR_EPROTO, "logging in takes no end");
}

int mupdate_login(struct mupdate_source *s, struct err *err)
{
    const char *out = NULL, *mech = NULL;
    unsigned out_len = 0;
    int rc = begin(s, err);
    if (rc)
        return rc;
    rc = sasl_client_start(s->sasl, s->o.mechanism ? s->o.mechanism : s->mechanisms, NULL, &out, &out_len, &mech);
    if (rc != SASL_OK && rc != SASL_CONTINUE)
        return fail(s, rc, "logging in", err);
    struct mupdate_out line = {0};
    char *first = out ? encode(out, out_len) : NULL;
    struct mupdate_word args[2] = {{mech, strlen(mech)}, {first, first ? strlen(first) : 0}};
    mupdate_print_command(&line, "A01", "AUTHENTICATE", first ? 2 : 1, args);
    rc = mupdate_source_send(s, line.p, line.len, err);
    explicit_bzero(line.p, line.len);
    mupdate_out_free(&line);
    if (first)
        explicit_bzero(first, strlen(first));
    free(first);
    return rc ? rc : steps(s, err);
}

void mupdate_login_end(struct mupdate_source *s)
{
    if (s->sasl)
        sasl_dispose(&s->sasl);
    if (s->secret)
        explicit_bzero(s->secret->data, s->secret->len);
    free(s->secret);
    s->secret = NULL;
}
