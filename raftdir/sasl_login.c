/* sasl_login.c - see sasl_login.h. Needs libsasl2 2.1.27.
 *
 * Happy path: sasl_login_create -> sasl_login_step with the mechanism (AGAIN: with a response, and so on) -> code 0 and the user. A step: base64 decoded, sasl_server_start or
 * sasl_server_step in libuv's pool, base64 encoded; `done` on the loop.
 * Failure: the connection of the library has ended, and every later step fails; make a new one to try again.
 *
 * The user. Mechanisms give "murder" or "murder@realm". Our own realm, which is the host name that we are known by, is taken off before the library looks the user up, so that the
 * two are one user with one identity, however often it stands there (who has a rule of his own must not come under that of "sasl:*"); another realm stays. Somebody may act for himself
 * only: the library's own policy, which we don't replace, refuses an authorization identity that isn't the authentication identity (both after the realm was taken off).
 *
 * Options. Ours by default: pwcheck_method auxprop, auxprop_plugin sasldb, and the mechanisms that this can serve. GSSAPI only when `keytab` is set or `mech_list` says so: its
 * plugin offers itself without a key too, and clients that have the plugin then choose it and fail. With a pwcheck_method that isn't auxprop nobody has the passwords that
 * SCRAM and DIGEST-MD5 need. What `mech_list` names counts as it is.
 *
 * Security: passwords pass through here in clear (PLAIN): the buffers are wiped, and the library's messages of its two most talkative levels, which may quote them, are dropped. */
#include "sasl_login.h"
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <sasl/sasl.h>
#include <sasl/saslutil.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <utlist.h>
#include "logger.h"
#include "mem.h"

#define MECH_LEN_MAX SASL_MECHNAMEMAX
#define OFFERS_N 4 /* plaintext or not, EXTERNAL or not */

struct option {
    char *name, *value;
};
static struct {
    bool running;
    _Atomic bool quiet; /* quiet: while we only try */
    struct option *options;
    size_t options_n;
    char *offered[OFFERS_N];
} sasl;

static _Atomic unsigned running;

struct sasl_login {
    sasl_conn_t *conn;
    sasl_callback_t callbacks[2];
    char *hostname;
    char *out;
    bool started, ended;
    bool external; /* the mechanism that was begun with */
};

static void wipe_free(char *p, size_t len)
{
    if (p)
        explicit_bzero(p, len);
    free(p);
}

/* --- What the library asks of us ----------------------------------------------------------------------------------------------------- */

static void *lock_create(void)
{
    pthread_mutex_t *mutex = mem_alloc(sizeof *mutex);
    pthread_mutex_init(mutex, NULL);
    return mutex;
}

static int lock_take(void *mutex)
{
    return pthread_mutex_lock(mutex) ? SASL_FAIL : SASL_OK;
}

static int lock_give(void *mutex)
{
    return pthread_mutex_unlock(mutex) ? SASL_FAIL : SASL_OK;
}

static void lock_destroy(void *mutex)
{
    pthread_mutex_destroy(mutex);
    free(mutex);
}

static const char *option_find(const char *name)
{
    for (size_t i = 0; i < sasl.options_n; i++)
        if (strcmp(sasl.options[i].name, name) == 0)
            return sasl.options[i].value;
    return NULL;
}

/* "plugin_option" goes before "option", as in the library's own files. */
static int on_getopt(void *context, const char *plugin, const char *option, const char **result_r, unsigned *len_r)
{
    char name[128];
    (void)context;
    const char *value = NULL;
    if (plugin && (size_t)snprintf(name, sizeof name, "%s_%s", plugin, option) < sizeof name)
        value = option_find(name);
    if (!value)
        value = option_find(option);
    if (!value)
        return SASL_FAIL;
    *result_r = value;
    if (len_r)
        *len_r = (unsigned)strlen(value);
    return SASL_OK;
}

static int on_log(void *context, int level, const char *text)
{
    (void)context;
    if (!text || level == SASL_LOG_NONE || level >= SASL_LOG_TRACE)
        return SASL_OK;
    if (sasl.quiet || level > SASL_LOG_WARN)
        logger_line(LOGGER_DEBUG, "sasl", "%s", text);
    else if (level == SASL_LOG_FAIL) /* a wrong password: whoever asked logs where it came from */
        logger_line(LOGGER_DEBUG, "sasl", "%s", text);
    else
        logger_limited(LOGGER_WARN, "sasl", "%s", text);
    return SASL_OK;
}

static int on_canon_user(sasl_conn_t *conn, void *context, const char *in, unsigned in_len, unsigned flags, const char *realm, char *out_r, unsigned out_max, unsigned *out_len_r)
{
    struct sasl_login *l = context;
    (void)conn;
    (void)flags;
    (void)realm;
    size_t len = in_len, host_len = strlen(l->hostname);
    /* Blanks, which the library takes off after us, and our realm as often as it stands there: what the library looks up is what we call him. */
    while (!l->external && len && isspace((unsigned char)*in)) {
        in++;
        len--;
    }
    for (bool more = !l->external; more;) {
        while (len && isspace((unsigned char)in[len - 1]))
            len--;
        more = len > host_len + 1 && in[len - host_len - 1] == '@' && strncasecmp(in + len - host_len, l->hostname, host_len) == 0;
        len -= more ? host_len + 1 : 0;
    }
    if (len == 0 || len >= out_max)
        return len ? SASL_BUFOVER : SASL_BADPROT;
    memmove(out_r, in, len);
    out_r[len] = '\0';
    *out_len_r = (unsigned)len;
    return SASL_OK;
}

/* --- Once a process ---------------------------------------------------------------------------------------------------------------------- */

static void option_add(const char *name, size_t name_len, const char *value)
{
    sasl.options = mem_realloc(sasl.options, (sasl.options_n + 1) * sizeof *sasl.options);
    struct option *o = &sasl.options[sasl.options_n++];
    o->name = mem_alloc(name_len + 1);
    memcpy(o->name, name, name_len);
    o->name[name_len] = '\0';
    o->value = mem_strdup(value);
    for (size_t len = strlen(o->value); len && (o->value[len - 1] == ' ' || o->value[len - 1] == '\t');)
        o->value[--len] = '\0';
}

static void options_set(const char *const *options, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t len = strcspn(options[i], ":");
        const char *value = options[i] + len + (options[i][len] != '\0');
        option_add(options[i], len, value + strspn(value, " \t"));
    }
    if (!option_find("pwcheck_method"))
        option_add("pwcheck_method", 14, "auxprop");
    if (!option_find("auxprop_plugin"))
        option_add("auxprop_plugin", 14, "sasldb");
    if (option_find("mech_list"))
        return;
    char list[128];
    bool auxprop = strstr(option_find("pwcheck_method"), "auxprop") != NULL;
    snprintf(list, sizeof list, "EXTERNAL%s%s PLAIN", option_find("keytab") ? " GSSAPI" : "", auxprop ? " SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 DIGEST-MD5" : "");
    option_add("mech_list", 9, list);
}

/* What a banner may say: the same for every connection of a kind, and a connection of the library costs more than it. */
static int offers_make(struct err *err)
{
    for (int i = 0; i < OFFERS_N; i++) {
        struct sasl_login_options o = {.service = "mupdate", .hostname = "localhost", .external = i & 1 ? "somebody" : NULL, .plaintext = i & 2};
        struct sasl_login *l;
        const char *list = NULL;
        int n = 0, rc = sasl_login_create(&o, &l, err);
        if (rc != 0)
            return rc;
        sasl.offered[i] = mem_strdup(sasl_listmech(l->conn, NULL, "\"", "\" \"", "\"", &list, NULL, &n) == SASL_OK && n > 0 ? list : "");
        sasl_login_destroy(&l);
    }
    if (!*sasl.offered[OFFERS_N - 1]) /* plaintext and EXTERNAL */
        return err_set(err, RAFTDIR_EINVAL, "sasl: none of the mechanisms \"%s\" is installed and can be offered; install their plugins (Debian: libsasl2-modules), or name others in mech_list",
                       option_find("mech_list"));
    return 0;
}

/* Said at the start rather than at the first login. */
static void database_look(void)
{
    const char *path = option_find("sasldb_path"), *offer = sasl.offered[OFFERS_N - 2];
    if (strcmp(option_find("pwcheck_method"), "auxprop") != 0 || strcmp(option_find("auxprop_plugin"), "sasldb") != 0 || !*offer || strcmp(offer, "\"GSSAPI\"") == 0)
        return;
    if (!path)
        path = "/etc/sasldb2";
    if (access(path, R_OK) != 0)
        logger_line(LOGGER_WARN, "sasl", "nobody can log in with a password: %s: %s", path, strerror(errno));
}

int sasl_login_init(const char *const *options, size_t n, struct err *err)
{
    /* Those of a connection go before these. The casts are the library's way. */
    static const sasl_callback_t callbacks[] = {
        {SASL_CB_GETOPT, (int (*)(void))(void (*)(void))on_getopt, NULL}, {SASL_CB_LOG, (int (*)(void))(void (*)(void))on_log, NULL}, {SASL_CB_LIST_END, NULL, NULL}};
    options_set(options, n);
    sasl_set_alloc(mem_alloc, mem_calloc, mem_realloc, free);
    sasl_set_mutex(lock_create, lock_take, lock_give, lock_destroy);
    sasl.quiet = true; /* plugins that nobody wants say why they can't be used */
    int rc = sasl_server_init(callbacks, NULL);
    if (rc != SASL_OK) {
        err_set(err, RAFTDIR_EINVAL, "sasl: the library can't start: %s", sasl_errstring(rc, NULL, NULL));
        sasl_login_close();
        return RAFTDIR_EINVAL;
    }
    sasl.running = true;
    rc = offers_make(err);
    sasl.quiet = false;
    if (rc != 0)
        sasl_login_close();
    else
        database_look();
    return rc;
}

void sasl_login_close(void)
{
    if (sasl.running)
        sasl_server_done();
    for (size_t i = 0; i < sasl.options_n; i++) {
        free(sasl.options[i].name);
        wipe_free(sasl.options[i].value, strlen(sasl.options[i].value));
    }
    free(sasl.options);
    for (int i = 0; i < OFFERS_N; i++)
        free(sasl.offered[i]);
    memset(&sasl, 0, sizeof sasl);
}

const char *sasl_login_offer(bool plaintext, bool external)
{
    const char *list = sasl.offered[(plaintext ? 2 : 0) + (external ? 1 : 0)];
    return list ? list : "";
}

/* --- One exchange -------------------------------------------------------------------------------------------------------------------------- */

int sasl_login_create(const struct sasl_login_options *o, struct sasl_login **l_r, struct err *err)
{
    struct sasl_login *l = mem_calloc(1, sizeof *l);
    sasl_security_properties_t properties = {.max_ssf = 0, .security_flags = SASL_SEC_NOANONYMOUS | (o->plaintext ? 0 : SASL_SEC_NOPLAINTEXT)};
    l->hostname = mem_strdup(o->hostname);
    l->callbacks[0] = (sasl_callback_t){SASL_CB_CANON_USER, (int (*)(void))(void (*)(void))on_canon_user, l};
    l->callbacks[1] = (sasl_callback_t){SASL_CB_LIST_END, NULL, NULL};
    int rc = sasl_server_new(o->service, l->hostname, NULL, NULL, NULL, l->callbacks, 0, &l->conn);
    if (rc == SASL_OK)
        rc = sasl_setprop(l->conn, SASL_SEC_PROPS, &properties);
    if (rc == SASL_OK && o->external)
        rc = sasl_setprop(l->conn, SASL_AUTH_EXTERNAL, o->external);
    if (rc != SASL_OK) {
        sasl_login_destroy(&l);
        return err_set(err, RAFTDIR_EUNAVAIL, "SASL: %s", sasl_errstring(rc, NULL, NULL));
    }
    *l_r = l;
    return 0;
}

void sasl_login_destroy(struct sasl_login **l)
{
    struct sasl_login *gone = *l;
    *l = NULL;
    if (!gone)
        return;
    sasl_dispose(&gone->conn);
    free(gone->hostname);
    free(gone->out);
    free(gone);
}

static int code_of(int rc)
{
    switch (rc) {
    case SASL_NOMECH:
    case SASL_BADPROT:
    case SASL_BADPARAM:
    case SASL_TOOWEAK: /* not allowed on this connection */
    case SASL_ENCRYPT:
        return RAFTDIR_EPROTO;
    case SASL_BADAUTH:
    case SASL_NOAUTHZ:
    case SASL_NOUSER:
    case SASL_NOVERIFY:
    case SASL_TRANS:
    case SASL_EXPIRED:
    case SASL_DISABLED:
    case SASL_BADMAC:
    case SASL_BADVERS:
    case SASL_WEAKPASS:
    case SASL_BADBINDING:
        return RAFTDIR_EAUTH;
    default:
        return RAFTDIR_EUNAVAIL; /* the library's own trouble, or that of what it asks */
    }
}

static int user_take(struct sasl_login *l, struct sasl_step *step)
{
    const void *user = NULL;
    int rc = sasl_getprop(l->conn, SASL_USERNAME, &user);
    if (rc != SASL_OK || !user || !*(const char *)user)
        return err_set(&step->err, RAFTDIR_EAUTH, "the mechanism gives no user");
    const char *s = user;
    size_t len = strlen(s);
    if (len >= sizeof step->user)
        return err_set(&step->err, RAFTDIR_EAUTH, "the user's name is longer than %zu bytes", sizeof step->user - 1);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < ' ' || s[i] == 0x7f)
            return err_set(&step->err, RAFTDIR_EAUTH, "the user's name has control characters in it");
    memcpy(step->user, s, len + 1);
    return 0;
}

/* The client's bytes; *in_r given, NULL: none. */
static int in_decode(const struct sasl_step *step, char **in_r, unsigned *len_r, struct err *err)
{
    *in_r = NULL;
    *len_r = 0;
    if (!step->copy_in)
        return 0;
    bool empty = step->copy_mechanism && strcmp(step->copy_in, "=") == 0;
    *in_r = mem_alloc(step->in_len + 1);
    if (!empty && step->in_len && sasl_decode64(step->copy_in, (unsigned)step->in_len, *in_r, (unsigned)step->in_len + 1, len_r) != SASL_OK)
        return err_set(err, RAFTDIR_EPROTO, "that is no base64");
    (*in_r)[*len_r] = '\0';
    return 0;
}

static int out_encode(struct sasl_login *l, const char *out, unsigned len, struct err *err)
{
    unsigned size = (len + 2) / 3 * 4 + 1;
    free(l->out);
    l->out = mem_alloc(size);
    l->out[0] = '\0';
    if (len && sasl_encode64(out, len, l->out, size, NULL) != SASL_OK)
        return err_set(err, RAFTDIR_EUNAVAIL, "SASL: can't encode the challenge");
    return 0;
}

static int step_run(struct sasl_login *l, struct sasl_step *step)
{
    const char *out = NULL;
    char *in;
    unsigned in_len, out_len = 0;
    if (step->copy_in && strcmp(step->copy_in, "*") == 0)
        return err_set(&step->err, RAFTDIR_EPROTO, "the client has cancelled");
    if (l->ended || l->started == (step->copy_mechanism != NULL))
        return err_set(&step->err, RAFTDIR_EPROTO, "not a step of this exchange");
    if (step->copy_mechanism && (strlen(step->copy_mechanism) > MECH_LEN_MAX || !*step->copy_mechanism))
        return err_set(&step->err, RAFTDIR_EPROTO, "no such mechanism");
    int rc = in_decode(step, &in, &in_len, &step->err);
    if (rc != 0)
        goto free_in;
    if (step->copy_mechanism) {
        l->started = true;
        l->external = strcasecmp(step->copy_mechanism, "EXTERNAL") == 0;
        rc = sasl_server_start(l->conn, step->copy_mechanism, in, in_len, &out, &out_len);
    } else {
        rc = sasl_server_step(l->conn, in, in_len, &out, &out_len);
    }
    if (rc == SASL_CONTINUE) {
        rc = out_encode(l, out, out_len, &step->err);
        if (rc == 0)
            rc = RAFTDIR_EAGAIN;
    } else if (rc == SASL_OK) {
        rc = user_take(l, step);
    } else {
        const char *detail = sasl_errdetail(l->conn), *text = rc != SASL_NOMECH && detail && *detail ? detail : sasl_errstring(rc, NULL, NULL);
        rc = err_set(&step->err, code_of(rc), "%.*s", (int)strcspn(text, "\r\n"), text);
    }
free_in:
    wipe_free(in, in_len);
    return rc;
}

static void on_work(uv_work_t *work)
{
    struct sasl_step *step = work->data;
    struct sasl_login *l = step->login;
    atomic_fetch_add(&running, 1);
    step->code = step_run(l, step);
    l->ended = step->code != RAFTDIR_EAGAIN;
    step->out = step->code == RAFTDIR_EAGAIN ? l->out : NULL;
    atomic_fetch_sub(&running, 1);
}

static void after_work(uv_work_t *work, int status);

static void step_end(struct sasl_step *step)
{
    free(step->copy_mechanism);
    wipe_free(step->copy_in, step->in_len);
    step->copy_mechanism = step->copy_in = NULL;
    step->done(step); /* may free it, and begin others */
}

static void next_begin(struct sasl_pool *pool)
{
    struct sasl_step *step;
    while (pool->running < SASL_STEPS_MAX && (step = pool->waiting)) {
        DL_DELETE(pool->waiting, step);
        if (step->given_up) {
            step->code = err_set(&step->err, RAFTDIR_ECANCELED, "given up");
            step_end(step);
            continue;
        }
        pool->running++;
        uv_queue_work(pool->loop, &step->work, on_work, after_work);
    }
}

static void after_work(uv_work_t *work, int status)
{
    struct sasl_step *step = work->data;
    struct sasl_pool *pool = step->pool;
    (void)status; /* never cancelled */
    pool->running--;
    step_end(step);
    next_begin(pool);
}

void sasl_login_step(struct sasl_login *l, struct sasl_pool *pool, struct sasl_step *step)
{
    step->login = l;
    step->pool = pool;
    step->work.data = step;
    step->given_up = false;
    memset(&step->err, 0, sizeof step->err);
    step->user[0] = '\0';
    step->out = NULL;
    step->copy_mechanism = mem_strdup(step->mechanism);
    step->copy_in = NULL;
    if (step->in) {
        step->copy_in = mem_alloc(step->in_len + 1);
        memcpy(step->copy_in, step->in, step->in_len);
        step->copy_in[step->in_len] = '\0';
    }
    step->mechanism = step->in = NULL; /* borrowed for this call only */
    if (pool->running < SASL_STEPS_MAX && !pool->waiting) {
        pool->running++;
        uv_queue_work(pool->loop, &step->work, on_work, after_work);
    } else {
        DL_APPEND(pool->waiting, step); /* something runs, or is about to begin: its end begins the next */
    }
}

void sasl_login_give_up(struct sasl_step *step)
{
    step->given_up = true;
}

unsigned sasl_login_running(void)
{
    return atomic_load(&running);
}
