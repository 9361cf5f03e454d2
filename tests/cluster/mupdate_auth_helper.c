/* mupdate_auth_helper.c - a client of the SASL library for tests/cluster/mupdate_auth, as a pipe.
 *
 *     mupdate_auth_helper MECHANISM HOST USER AUTHZ PASSWORD
 *
 * Prints the initial response, "-" for none, "=" for an empty one; then reads a challenge a line and prints the response to it, all in base64. Exit status 1: the library can't. */
#include <sasl/sasl.h>
#include <sasl/saslutil.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct who {
    const char *user, *authz, *host;
    sasl_secret_t *secret;
};

static int on_simple(void *context, int id, const char **result_r, unsigned *len_r)
{
    struct who *w = context;
    *result_r = id == SASL_CB_USER ? w->authz : w->user;
    if (len_r)
        *len_r = (unsigned)strlen(*result_r);
    return SASL_OK;
}

static int on_secret(sasl_conn_t *conn, void *context, int id, sasl_secret_t **secret_r)
{
    (void)conn;
    (void)id;
    *secret_r = ((struct who *)context)->secret;
    return SASL_OK;
}

static int on_realm(void *context, int id, const char **realms, const char **result_r)
{
    (void)id;
    (void)realms;
    *result_r = ((struct who *)context)->host;
    return SASL_OK;
}

static int put(const char *data, unsigned len, const char *none)
{
    char base64[65536];
    if (!data || sasl_encode64(data, len, base64, sizeof base64, NULL) != SASL_OK)
        return puts(none) < 0 || fflush(stdout);
    return puts(len ? base64 : "=") < 0 || fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    size_t len = strlen(argv[5]);
    struct who w = {.host = argv[2], .user = argv[3], .authz = argv[4], .secret = malloc(sizeof *w.secret + len + 1)};
    if (!w.secret)
        return 1;
    w.secret->len = len;
    memcpy(w.secret->data, argv[5], len + 1);
    const sasl_callback_t callbacks[] = {{SASL_CB_USER, (int (*)(void))(void (*)(void))on_simple, &w},
                                         {SASL_CB_AUTHNAME, (int (*)(void))(void (*)(void))on_simple, &w},
                                         {SASL_CB_PASS, (int (*)(void))(void (*)(void))on_secret, &w},
                                         {SASL_CB_GETREALM, (int (*)(void))(void (*)(void))on_realm, &w},
                                         {SASL_CB_LIST_END, NULL, NULL}};
    static char line[65536], in[65536];
    const char *out = NULL, *chosen;
    unsigned out_len = 0, in_len;
    sasl_conn_t *conn = NULL;
    int rc = sasl_client_init(callbacks), status = 1;
    if (rc == SASL_OK)
        rc = sasl_client_new("mupdate", w.host, NULL, NULL, callbacks, 0, &conn);
    if (rc == SASL_OK)
        rc = sasl_client_start(conn, argv[1], NULL, &out, &out_len, &chosen);
    if ((rc != SASL_OK && rc != SASL_CONTINUE) || put(out, out_len, "-") != 0)
        goto end;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = '\0';
        out = NULL;
        rc = sasl_decode64(line, (unsigned)strlen(line), in, sizeof in, &in_len);
        if (rc == SASL_OK)
            rc = sasl_client_step(conn, in, in_len, NULL, &out, &out_len);
        if ((rc != SASL_OK && rc != SASL_CONTINUE) || put(out, out_len, "=") != 0)
            goto end;
    }
    status = 0;
end:
    if (status)
        fprintf(stderr, "%s: %s\n", argv[1], conn ? sasl_errdetail(conn) : sasl_errstring(rc, NULL, NULL));
    sasl_dispose(&conn);
    sasl_client_done();
    free(w.secret);
    return status;
}
