/* test_sasl_login.c - logins through the SASL library: a client of the library on one side, sasl_login on the other, users in a sasldb, and a saslauthd of our own that may hang. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sasl/sasl.h>
#include <sasl/saslutil.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "raftdir/logger.h"
#include "raftdir/sasl_login.h"

#define HOST "mup.example.org"

static char dir[] = "/tmp/raftdir-test-sasl-XXXXXX";
static char db_option[128], authd_option[128];
static uv_loop_t loop;
static struct sasl_pool pool = {.loop = &loop};

static void library_start(const char *const *options, size_t n)
{
    struct err err = {0};
    if (sasl_login_init(options, n, &err) != 0)
        fail_msg("%s", err.text);
}

static void library_with_db(void)
{
    const char *options[] = {db_option};
    library_start(options, 1);
}

static void user_create(const char *realm, const char *user, const char *password)
{
    sasl_conn_t *conn;
    assert_int_equal(sasl_server_new("mupdate", realm, NULL, NULL, NULL, NULL, 0, &conn), SASL_OK);
    if (sasl_setpass(conn, user, password, (unsigned)strlen(password), NULL, 0, SASL_SET_CREATE) != SASL_OK)
        fail_msg("%s", sasl_errdetail(conn));
    sasl_dispose(&conn);
}

/* --- One step, and one exchange ------------------------------------------------------------------------------------------------------ */

static unsigned dones;
static void on_done(struct sasl_step *step)
{
    (void)step;
    dones++;
}

static int step_do(struct sasl_login *l, struct sasl_step *step, const char *mechanism, const char *in)
{
    unsigned before = dones;
    step->mechanism = mechanism;
    step->in = in;
    step->in_len = in ? strlen(in) : 0;
    step->done = on_done;
    sasl_login_step(l, &pool, step);
    assert_int_equal(dones, before); /* later, never within the call */
    while (dones == before)
        uv_run(&loop, UV_RUN_ONCE);
    assert_int_equal(dones, before + 1);
    assert_int_equal(sasl_login_running(), 0);
    return step->code;
}

static struct sasl_login *login_create(bool plaintext, const char *external)
{
    struct sasl_login *l;
    struct err err = {0};
    const struct sasl_login_options o = {.service = "mupdate", .hostname = HOST, .external = external, .plaintext = plaintext};
    if (sasl_login_create(&o, &l, &err) != 0)
        fail_msg("%s", err.text);
    return l;
}

struct who {
    const char *user, *authz, *realm;
    sasl_secret_t *secret;
};

static int on_simple(void *context, int id, const char **result_r, unsigned *len_r)
{
    struct who *w = context;
    *result_r = id == SASL_CB_AUTHNAME ? w->user : w->authz;
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
    *result_r = ((struct who *)context)->realm;
    return SASL_OK;
}

/* The code, and the user in user_r. */
static int exchange(const char *mechanism, const char *user, const char *authz, const char *realm, const char *password, char user_r[IDENTITY_LEN_MAX])
{
    struct who w = {.user = user, .authz = authz, .realm = realm};
    w.secret = malloc(sizeof *w.secret + strlen(password) + 1);
    assert_non_null(w.secret);
    w.secret->len = strlen(password);
    strcpy((char *)w.secret->data, password);
    const sasl_callback_t callbacks[] = {{SASL_CB_USER, (int (*)(void))(void (*)(void))on_simple, &w},
                                         {SASL_CB_AUTHNAME, (int (*)(void))(void (*)(void))on_simple, &w},
                                         {SASL_CB_PASS, (int (*)(void))(void (*)(void))on_secret, &w},
                                         {SASL_CB_GETREALM, (int (*)(void))(void (*)(void))on_realm, &w},
                                         {SASL_CB_LIST_END, NULL, NULL}};
    sasl_conn_t *client;
    struct sasl_login *l = login_create(true, NULL);
    struct sasl_step step = {0};
    const char *out = NULL, *chosen;
    unsigned len = 0;
    char base64[8192], plain[8192];
    assert_int_equal(sasl_client_new("mupdate", HOST, NULL, NULL, callbacks, 0, &client), SASL_OK);
    int rc = sasl_client_start(client, mechanism, NULL, &out, &len, &chosen);
    if (rc != SASL_OK && rc != SASL_CONTINUE)
        fail_msg("%s: %s", mechanism, sasl_errdetail(client));
    if (out)
        assert_int_equal(sasl_encode64(out, len, base64, sizeof base64, NULL), SASL_OK);
    int code = step_do(l, &step, chosen, out ? base64 : NULL);
    for (int i = 0; code == RAFTDIR_EAGAIN && i < 10; i++) {
        assert_int_equal(sasl_decode64(step.out, (unsigned)strlen(step.out), plain, sizeof plain, &len), SASL_OK);
        out = NULL;
        rc = sasl_client_step(client, plain, len, NULL, &out, &len);
        if (rc != SASL_OK && rc != SASL_CONTINUE) {
            code = step_do(l, &step, NULL, "*");
            break;
        }
        assert_int_equal(sasl_encode64(out ? out : "", out ? len : 0, base64, sizeof base64, NULL), SASL_OK);
        code = step_do(l, &step, NULL, base64);
    }
    if (code == 0)
        assert_null(step.out);
    snprintf(user_r, IDENTITY_LEN_MAX, "%s", step.user);
    sasl_dispose(&client);
    sasl_login_destroy(&l);
    assert_null(l);
    free(w.secret);
    return code;
}

/* --- Tests ------------------------------------------------------------------------------------------------------------------------------ */

static void test_users(void **state)
{
    (void)state;
    static const struct {
        const char *mechanism, *user, *authz, *realm, *password;
        int code;
        const char *name;
    } rows[] = {
        {"PLAIN", "murder", "", "", "murderpw", 0, "murder"},
        {"PLAIN", "murder", "murder", "", "murderpw", 0, "murder"}, /* what Cyrus sends */
        {"SCRAM-SHA-256", "murder", "murder", "", "murderpw", 0, "murder"},
        {"SCRAM-SHA-256", "murder", "", "", "murderpw", 0, "murder"},
        {"SCRAM-SHA-512", "murder", "murder", "", "murderpw", 0, "murder"},
        {"DIGEST-MD5", "murder", "murder", HOST, "murderpw", 0, "murder"},
        {"DIGEST-MD5", "murder", "", HOST, "murderpw", 0, "murder"},
        /* Our realm, in any case, is no part of the name; another is. */
        {"PLAIN", "murder@" HOST, "", "", "murderpw", 0, "murder"},
        {"PLAIN", "murder@MUP.example.ORG", "murder", "", "murderpw", 0, "murder"},
        {"SCRAM-SHA-256", "murder@" HOST, "murder", "", "murderpw", 0, "murder"},
        {"PLAIN", "murder@" HOST "@" HOST, "", "", "murderpw", 0, "murder"}, /* one identity, so that the rule for it holds */
        {"PLAIN", "murder@" HOST "@MUP.example.ORG@" HOST, "", "", "murderpw", 0, "murder"},
        {"PLAIN", " murder@" HOST " ", "", "", "murderpw", 0, "murder"},
        {"PLAIN", "murder@" HOST " @" HOST "\t", "", "", "murderpw", 0, "murder"},
        {"SCRAM-SHA-256", "murder@" HOST "@" HOST, "murder", "", "murderpw", 0, "murder"},
        {"PLAIN", "murder@other.org", "", "", "otherpw", 0, "murder@other.org"},
        {"PLAIN", "murder@other.org", "", "", "murderpw", RAFTDIR_EAUTH, ""},
        {"PLAIN", "murder@other.org", "murder", "", "otherpw", RAFTDIR_EAUTH, ""},
        {"SCRAM-SHA-256", "murder@other.org", "", "", "otherpw", 0, "murder@other.org"},
        {"DIGEST-MD5", "murder", "", "other.org", "otherpw", RAFTDIR_EAUTH, ""}, /* the client takes the realm that is offered */
        {"PLAIN", "xmup.example.org", "", "", "xpw", 0, "xmup.example.org"}, /* ends as our realm does, without "@" */
        /* Nobody acts for somebody else. */
        {"PLAIN", "murder", "cyrus", "", "murderpw", RAFTDIR_EAUTH, ""},
        {"SCRAM-SHA-256", "murder", "cyrus", "", "murderpw", RAFTDIR_EAUTH, ""},
        {"DIGEST-MD5", "murder", "cyrus", HOST, "murderpw", RAFTDIR_EAUTH, ""},
        {"PLAIN", "murder", "murder@other.org", "", "murderpw", RAFTDIR_EAUTH, ""},
        /* Wrong passwords and users. */
        {"PLAIN", "murder", "", "", "wrong", RAFTDIR_EAUTH, ""},
        {"PLAIN", "murder", "", "", "murderpw ", RAFTDIR_EAUTH, ""},
        {"PLAIN", "Murder", "", "", "murderpw", RAFTDIR_EAUTH, ""},
        {"PLAIN", "nobody", "", "", "murderpw", RAFTDIR_EAUTH, ""},
        {"SCRAM-SHA-256", "murder", "", "", "wrong", RAFTDIR_EAUTH, ""},
        {"SCRAM-SHA-256", "nobody", "", "", "wrong", RAFTDIR_EAUTH, ""},
        {"DIGEST-MD5", "murder", "", HOST, "wrong", RAFTDIR_EAUTH, ""},
        {"DIGEST-MD5", "nobody", "", HOST, "wrong", RAFTDIR_EAUTH, ""},
    };
    library_with_db();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char user[IDENTITY_LEN_MAX];
        int code = exchange(rows[i].mechanism, rows[i].user, rows[i].authz, rows[i].realm, rows[i].password, user);
        if (code != rows[i].code || strcmp(user, rows[i].name) != 0)
            fail_msg("row %zu (%s %s for \"%s\"): %d \"%s\"", i, rows[i].mechanism, rows[i].user, rows[i].authz, code, user);
    }
    sasl_login_close();
}

/* Steps as they come over the wire: "mechanism" "input" -> code; a second input after EAGAIN. */
static void test_steps(void **state)
{
    (void)state;
    static const struct {
        bool plaintext;
        const char *external, *mechanism, *in, *in2;
        int code, code2;
        const char *user;
    } rows[] = {
        {true, NULL, "PLAIN", "AG11cmRlcgBtdXJkZXJwdw==", NULL, 0, 0, "murder"},
        {true, NULL, "plain", "AG11cmRlcgBtdXJkZXJwdw==", NULL, 0, 0, "murder"},
        {true, NULL, "PLAIN", NULL, "AG11cmRlcgBtdXJkZXJwdw==", RAFTDIR_EAGAIN, 0, "murder"},
        {true, NULL, "PLAIN", NULL, "*", RAFTDIR_EAGAIN, RAFTDIR_EPROTO, ""},
        {true, NULL, "PLAIN", NULL, "", RAFTDIR_EAGAIN, RAFTDIR_EPROTO, ""},
        {true, NULL, "PLAIN", NULL, "=", RAFTDIR_EAGAIN, RAFTDIR_EPROTO, ""}, /* means "empty" in the first step alone */
        {true, NULL, "PLAIN", "=", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "PLAIN", "!!!", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "PLAIN", "AG11cmRlcgBtdXJkZXJwdw=", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "PLAIN", "AG11cmRlcgBtdXJkZXJwdw", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "PLAIN", "AAAA", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "FOO", "AAAA", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "", "AAAA", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "PLAINPLAINPLAINPLAINPLAINPLAINPLAIN", "AAAA", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "ANONYMOUS", "AAAA", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "CRAM-MD5", NULL, NULL, RAFTDIR_EPROTO, 0, ""}, /* installed, not ours */
        {false, NULL, "PLAIN", "AG11cmRlcgBtdXJkZXJwdw==", NULL, RAFTDIR_EPROTO, 0, ""},
        {true, NULL, "EXTERNAL", "=", NULL, RAFTDIR_EPROTO, 0, ""},
        {false, "be1", "EXTERNAL", "=", NULL, 0, 0, "be1"},
        {false, "be1", "EXTERNAL", "", NULL, 0, 0, "be1"},
        {false, "be1", "EXTERNAL", NULL, "", RAFTDIR_EAGAIN, 0, "be1"},
        {false, "be1", "EXTERNAL", "YmUx", NULL, 0, 0, "be1"},
        {false, "be1", "EXTERNAL", "YmUy", NULL, RAFTDIR_EAUTH, 0, ""},
        {false, "be1@" HOST, "EXTERNAL", "=", NULL, 0, 0, "be1@" HOST}, /* a certificate's name is nobody's realm */
        {false, "be1", "PLAIN", "AG11cmRlcgBtdXJkZXJwdw==", NULL, RAFTDIR_EPROTO, 0, ""},
    };
    library_with_db();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sasl_login *l = login_create(rows[i].plaintext, rows[i].external);
        struct sasl_step step = {0};
        int code = step_do(l, &step, rows[i].mechanism, rows[i].in);
        if (code != rows[i].code)
            fail_msg("row %zu: %d (%s)", i, code, step.err.text);
        if (code == RAFTDIR_EAGAIN && rows[i].in2) {
            assert_string_equal(step.out, "");
            code = step_do(l, &step, NULL, rows[i].in2);
            if (code != rows[i].code2)
                fail_msg("row %zu, second step: %d (%s)", i, code, step.err.text);
        }
        if (strcmp(step.user, rows[i].user) != 0)
            fail_msg("row %zu: \"%s\"", i, step.user);
        if (code != 0 && code != RAFTDIR_EAGAIN)
            assert_true(step.err.text[0]);
        if (code != RAFTDIR_EAGAIN)
            assert_int_equal(step_do(l, &step, NULL, "AAAA"), RAFTDIR_EPROTO); /* it has ended */
        sasl_login_destroy(&l);
    }
    /* Begun, and nothing more: what was under way is freed. A response without a beginning; two beginnings. */
    struct sasl_login *l = login_create(false, NULL);
    struct sasl_step step = {0};
    assert_int_equal(step_do(l, &step, "DIGEST-MD5", NULL), RAFTDIR_EAGAIN);
    assert_true(step.out[0]);
    assert_int_equal(step_do(l, &step, "DIGEST-MD5", NULL), RAFTDIR_EPROTO);
    sasl_login_destroy(&l);
    l = login_create(false, NULL);
    assert_int_equal(step_do(l, &step, NULL, "AAAA"), RAFTDIR_EPROTO);
    sasl_login_destroy(&l);
    l = login_create(false, NULL);
    sasl_login_destroy(&l);
    sasl_login_destroy(&l);
    sasl_login_close();
}

/* Names that are no identity of ours. */
static void test_names(void **state)
{
    (void)state;
    library_with_db();
    char longer[IDENTITY_LEN_MAX + 1], user[IDENTITY_LEN_MAX];
    memset(longer, 'l', IDENTITY_LEN_MAX);
    longer[IDENTITY_LEN_MAX] = '\0';
    user_create(HOST, longer, "pw");
    user_create(HOST, longer + 1, "pw");
    user_create(HOST, "a\nb", "pw");
    assert_int_equal(exchange("PLAIN", longer, "", "", "pw", user), RAFTDIR_EAUTH);
    assert_string_equal(user, "");
    assert_int_equal(exchange("PLAIN", longer + 1, "", "", "pw", user), 0);
    assert_string_equal(user, longer + 1);
    assert_int_equal(exchange("PLAIN", "a\nb", "", "", "pw", user), RAFTDIR_EAUTH);
    sasl_login_close();
}

static void test_offers(void **state)
{
    (void)state;
    library_with_db();
    assert_string_equal(sasl_login_offer(true, true), "\"EXTERNAL\" \"SCRAM-SHA-512\" \"SCRAM-SHA-256\" \"SCRAM-SHA-1\" \"DIGEST-MD5\" \"PLAIN\"");
    assert_string_equal(sasl_login_offer(true, false), "\"SCRAM-SHA-512\" \"SCRAM-SHA-256\" \"SCRAM-SHA-1\" \"DIGEST-MD5\" \"PLAIN\"");
    assert_string_equal(sasl_login_offer(false, false), "\"SCRAM-SHA-512\" \"SCRAM-SHA-256\" \"SCRAM-SHA-1\" \"DIGEST-MD5\"");
    assert_string_equal(sasl_login_offer(false, true), "\"EXTERNAL\" \"SCRAM-SHA-512\" \"SCRAM-SHA-256\" \"SCRAM-SHA-1\" \"DIGEST-MD5\"");
    sasl_login_close();
    assert_string_equal(sasl_login_offer(true, true), "");

    /* saslauthd knows no passwords: only what shows them to it. */
    const char *authd[] = {"pwcheck_method: saslauthd"};
    library_start(authd, 1);
    assert_string_equal(sasl_login_offer(true, true), "\"EXTERNAL\" \"PLAIN\"");
    assert_string_equal(sasl_login_offer(false, false), "");
    sasl_login_close();

    /* What the site says counts, also against the defaults. */
    const char *list[] = {"pwcheck_method:  saslauthd ", "mech_list:\tDIGEST-MD5 CRAM-MD5 "};
    library_start(list, 2);
    assert_string_equal(sasl_login_offer(true, true), "\"DIGEST-MD5\" \"CRAM-MD5\"");
    sasl_login_close();

    struct err err = {0};
    const char *none[] = {"mech_list: NOSUCH-1"};
    assert_int_equal(sasl_login_init(none, 1, &err), RAFTDIR_EINVAL);
    assert_non_null(strstr(err.text, "none of the mechanisms \"NOSUCH-1\" is installed"));
    sasl_login_close();
}

/* A database that isn't there, or that can't be read, lets nobody in. */
static void test_no_database(void **state)
{
    (void)state;
    char option[128], path[128], user[IDENTITY_LEN_MAX];
    snprintf(option, sizeof option, "sasldb_path: %s/none", dir);
    const char *options[] = {option};
    library_start(options, 1);
    assert_int_not_equal(exchange("PLAIN", "murder", "", "", "murderpw", user), 0);
    assert_int_not_equal(exchange("SCRAM-SHA-256", "murder", "", "", "murderpw", user), 0);
    sasl_login_close();
    snprintf(path, sizeof path, "%s/none", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("this is no database", f);
    fclose(f);
    library_start(options, 1);
    assert_int_not_equal(exchange("PLAIN", "murder", "", "", "murderpw", user), 0);
    sasl_login_close();
    unlink(path);
}

/* --- A saslauthd that answers when it is told to ------------------------------------------------------------------------------------------ */

static int authd_socket;
static pthread_mutex_t authd_mutex = PTHREAD_MUTEX_INITIALIZER; /* held: it hangs */
static _Atomic unsigned authd_asked;

static void *authd_one(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char field[4][128] = {{0}};
    for (int i = 0; i < 4; i++) {
        unsigned char len[2];
        if (recv(fd, len, 2, MSG_WAITALL) != 2 || len[0] || len[1] >= sizeof field[i] || (len[1] && recv(fd, field[i], len[1], MSG_WAITALL) != len[1]))
            break;
    }
    atomic_fetch_add(&authd_asked, 1);
    pthread_mutex_lock(&authd_mutex);
    pthread_mutex_unlock(&authd_mutex);
    bool good = strcmp(field[0], "murder") == 0 && strcmp(field[1], "murderpw") == 0 && strcmp(field[2], "mupdate") == 0;
    if (send(fd, good ? "\0\2OK" : "\0\2NO", 4, MSG_NOSIGNAL) != 4)
        fprintf(stderr, "saslauthd: who asked is gone\n");
    close(fd);
    return NULL;
}

static void *authd_run(void *arg)
{
    int fd;
    (void)arg;
    while ((fd = accept(authd_socket, NULL, NULL)) >= 0) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, authd_one, (void *)(intptr_t)fd) == 0)
            pthread_detach(thread);
    }
    return NULL;
}

#define MANY 20
static struct sasl_step many[MANY];
static unsigned many_done;
static void on_many(struct sasl_step *step)
{
    (void)step;
    many_done++;
}

static void test_many(void **state)
{
    (void)state;
    const char *options[] = {"pwcheck_method: saslauthd", authd_option};
    char user[IDENTITY_LEN_MAX];
    struct sasl_login *l[MANY];
    library_start(options, 2);
    assert_int_not_equal(exchange("PLAIN", "murder", "", "", "murderpw", user), 0); /* nobody answers yet */

    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s/mux", dir);
    authd_socket = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(authd_socket, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(authd_socket, 64), 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, authd_run, NULL), 0);
    assert_int_equal(exchange("PLAIN", "murder", "", "", "murderpw", user), 0);
    assert_string_equal(user, "murder");
    assert_int_equal(exchange("PLAIN", "murder", "", "", "wrong", user), RAFTDIR_EAUTH);

    /* It hangs: SASL_STEPS_MAX are under way, the rest waits, in order; every third of those gives up, and is never asked about. */
    pthread_mutex_lock(&authd_mutex);
    atomic_store(&authd_asked, 0);
    for (int i = 0; i < MANY; i++) {
        const char *in = i % 2 ? "AG11cmRlcgBtdXJkZXJwdw==" : "AG11cmRlcgB3cm9uZw==";
        l[i] = login_create(true, NULL);
        many[i] = (struct sasl_step){.mechanism = "PLAIN", .in = in, .in_len = strlen(in), .done = on_many};
        sasl_login_step(l[i], &pool, &many[i]);
    }
    for (int i = 0; i < 1000 && atomic_load(&authd_asked) < SASL_STEPS_MAX; i++)
        usleep(5000);
    usleep(20000);
    assert_int_equal(atomic_load(&authd_asked), SASL_STEPS_MAX);
    assert_int_equal(sasl_login_running(), SASL_STEPS_MAX);
    assert_int_equal(many_done, 0);
    unsigned given_up = 0;
    for (int i = 0; i < MANY; i += 3) {
        sasl_login_give_up(&many[i]);
        given_up += i >= SASL_STEPS_MAX;
    }
    pthread_mutex_unlock(&authd_mutex);
    while (many_done < MANY)
        uv_run(&loop, UV_RUN_ONCE);
    for (int i = 0; i < MANY; i++) {
        int want = i % 3 == 0 && i >= SASL_STEPS_MAX ? RAFTDIR_ECANCELED : i % 2 ? 0 : RAFTDIR_EAUTH;
        if (many[i].code != want)
            fail_msg("%d: %d (%s)", i, many[i].code, many[i].err.text);
        assert_string_equal(many[i].user, want == 0 ? "murder" : "");
        sasl_login_destroy(&l[i]);
    }
    assert_int_equal(atomic_load(&authd_asked), MANY - given_up);
    assert_int_equal(sasl_login_running(), 0);
    assert_int_equal(pool.running, 0);
    assert_null(pool.waiting);
    shutdown(authd_socket, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(authd_socket);
    unlink(sa.sun_path);
    sasl_login_close();
}

/* The library and its database in several threads at once. */
static void test_parallel(void **state)
{
    (void)state;
    struct sasl_login *l[MANY];
    library_with_db();
    for (int round = 0; round < 5; round++) {
        many_done = 0;
        for (int i = 0; i < MANY; i++) {
            const char *in = i % 3 ? "AG11cmRlcgBtdXJkZXJwdw==" : "AG11cmRlcgB3cm9uZw==";
            l[i] = login_create(true, NULL);
            many[i] = (struct sasl_step){.mechanism = "PLAIN", .in = in, .in_len = strlen(in), .done = on_many};
            sasl_login_step(l[i], &pool, &many[i]);
        }
        while (many_done < MANY)
            uv_run(&loop, UV_RUN_ONCE);
        for (int i = 0; i < MANY; i++) {
            if (many[i].code != (i % 3 ? 0 : RAFTDIR_EAUTH))
                fail_msg("%d: %d (%s)", i, many[i].code, many[i].err.text);
            sasl_login_destroy(&l[i]);
        }
    }
    sasl_login_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_users),  cmocka_unit_test(test_steps),       cmocka_unit_test(test_names),
        cmocka_unit_test(test_offers), cmocka_unit_test(test_no_database), cmocka_unit_test(test_many),
        cmocka_unit_test(test_parallel),
    };
    char path[64];
    if (!mkdtemp(dir) || uv_loop_init(&loop) != 0)
        return 1;
    logger_level_set(LOGGER_ERROR);
    snprintf(path, sizeof path, "%s/sasldb", dir);
    snprintf(db_option, sizeof db_option, "sasldb_path: %s", path);
    snprintf(authd_option, sizeof authd_option, "saslauthd_path: %s/mux", dir);
    library_with_db();
    user_create(HOST, "murder", "murderpw");
    user_create(HOST, "xmup.example.org", "xpw");
    user_create("other.org", "murder", "otherpw");
    sasl_login_close();
    if (sasl_client_init(NULL) != SASL_OK)
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    sasl_client_done();
    uv_loop_close(&loop);
    uv_library_shutdown();
    unlink(path);
    rmdir(dir);
    return rc;
}
