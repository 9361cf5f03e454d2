/* main.c - raftdird: command line, signals, reload, and the order in which things start and stop.
 *
 * Start: configuration, certificates, privileges, data directory, ports, then threads. Whatever fails before the threads run is said on
 * standard error, with what to do, and everything opened so far is closed again.
 * Stop: leadership goes elsewhere and the consensus thread ends (reads are still answered), then connections, then the store. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon.h"
#include "fault.h"
#include "logger.h"
#include "sasl_login.h"
#include "thread_consensus.h"
#include "thread_readers.h"
#include "thread_scrub.h"
#include "thread_service.h"
#include "thread_space.h"
#include "tls.h"

#define STOP_VERIFY_MS 3000 /* also for logins */
#define POOL_THREADS 4      /* libuv's own default */

static void usage(FILE *out)
{
    fprintf(out, "usage: raftdird -c FILE [-f]\n"
                 "       raftdird --check-config -c FILE\n"
                 "       raftdird --version | --help\n"
                 "\n"
                 "  -c FILE         the configuration, see raftdird.conf(5)\n"
                 "  -f              stay in the foreground (raftdird always does; for scripts that give it)\n"
                 "  --check-config  read the configuration and the certificates, say what is wrong, start nothing\n");
}

/* --- What other files ask of the daemon ------------------------------------------------------------------------------------------ */

void daemon_stop(struct daemon *d, int exit_code)
{
    int none = EXIT_ORDERLY;
    if (exit_code != EXIT_ORDERLY)
        atomic_compare_exchange_strong(&d->exit_code, &none, exit_code);
    atomic_store(&d->stop_wanted, true);
    uv_async_send(&d->wake);
}

int daemon_access(struct daemon *d, const char *cert_name, uid_t uid, struct access *access_r, struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&d->config_mutex);
    if (cert_name)
        rc = access_of_cert(d->config->allow, d->config->allow_n, cert_name, access_r, err);
    else
        access_of_uid(d->config->allow, d->config->allow_n, uid, d->own_uid, access_r);
    pthread_mutex_unlock(&d->config_mutex);
    return rc;
}

int daemon_access_sasl(struct daemon *d, const char *user, struct access *access_r, struct err *err)
{
    pthread_mutex_lock(&d->config_mutex);
    int rc = access_of_sasl(d->config->allow, d->config->allow_n, user, access_r, err);
    pthread_mutex_unlock(&d->config_mutex);
    return rc;
}

void daemon_access_noauth(struct daemon *d, struct access *access_r)
{
    pthread_mutex_lock(&d->config_mutex);
    access_of_noauth(d->config->allow, d->config->allow_n, access_r);
    pthread_mutex_unlock(&d->config_mutex);
}

/* One of the daemon's two contexts. */
static SSL_CTX *tls_ref(struct daemon *d, SSL_CTX *const *from)
{
    pthread_mutex_lock(&d->config_mutex);
    SSL_CTX *tls = *from;
    SSL_CTX_up_ref(tls);
    pthread_mutex_unlock(&d->config_mutex);
    return tls;
}

SSL_CTX *daemon_tls(struct daemon *d)
{
    return tls_ref(d, &d->tls);
}

SSL_CTX *daemon_tls_optional(struct daemon *d)
{
    return tls_ref(d, &d->tls_optional);
}

struct store *daemon_store(struct daemon *d, unsigned *generation_r)
{
    pthread_mutex_lock(&d->store_mutex);
    struct store *store = d->store ? store_ref(d->store) : NULL;
    *generation_r = atomic_load(&d->store_generation);
    pthread_mutex_unlock(&d->store_mutex);
    return store;
}

void daemon_store_set(struct daemon *d, struct store *store)
{
    pthread_mutex_lock(&d->store_mutex);
    store_map_watch(store);
    struct store *old = d->store;
    d->store = store;
    atomic_fetch_add(&d->store_generation, 1);
    pthread_mutex_unlock(&d->store_mutex);
    store_close(&old); /* the environment goes with its last reader */
}

const struct seglog *daemon_log_hold(struct daemon *d)
{
    const struct seglog *log = NULL;
    pthread_mutex_lock(&d->store_mutex);
    if (d->log_readable) {
        log = d->log;
        d->log_readers++;
    }
    pthread_mutex_unlock(&d->store_mutex);
    return log;
}

void daemon_log_release(struct daemon *d)
{
    pthread_mutex_lock(&d->store_mutex);
    if (--d->log_readers == 0)
        pthread_cond_signal(&d->log_idle);
    pthread_mutex_unlock(&d->store_mutex);
}

void daemon_log_opened(struct daemon *d)
{
    pthread_mutex_lock(&d->store_mutex);
    d->log_readable = true;
    pthread_mutex_unlock(&d->store_mutex);
}

void daemon_log_close(struct daemon *d)
{
    pthread_mutex_lock(&d->store_mutex);
    d->log_readable = false;
    atomic_store(&d->log_closing, true);
    while (d->log_readers)
        pthread_cond_wait(&d->log_idle, &d->store_mutex);
    atomic_store(&d->log_closing, false);
    pthread_mutex_unlock(&d->store_mutex);
    seglog_close(&d->log);
}

/* --- Certificates ------------------------------------------------------------------------------------------------------------------- */

/* Both contexts of the same files, or none. */
static int certificates_load(const struct config *c, SSL_CTX **tls_r, SSL_CTX **optional_r, char *name_r, size_t size, struct err *err)
{
    struct tls_files files = {.ca = c->tls_ca, .cert = c->tls_cert, .key = c->tls_key};
    int rc = tls_context_create(&files, tls_r, err);
    if (rc != 0)
        return rc;
    if ((rc = tls_context_create_optional(&files, optional_r, err)) != 0) {
        SSL_CTX_free(*tls_r);
        *tls_r = NULL;
        return rc;
    }
    rc = tls_cert_name(SSL_CTX_get0_certificate(*tls_r), name_r, size, err);
    if (rc == 0 && strpbrk(name_r, "/\r\n"))
        rc = err_set(err, RAFTDIR_EAUTH, "the name \"%s\" has a slash or a line break, which a member's name can't have", name_r);
    if (rc != 0) {
        err_wrap(err, "%s", c->tls_cert);
        SSL_CTX_free(*tls_r);
        SSL_CTX_free(*optional_r);
        *tls_r = *optional_r = NULL;
    }
    return rc;
}

/* --- Reload (SIGHUP): certificates, access rules, log level, mupdate_take_over --------------------------------------------------------------------------- */

static bool sasl_differs(const struct config *a, const struct config *b)
{
    bool differs = a->sasl_n != b->sasl_n;
    for (size_t i = 0; i < a->sasl_n && !differs; i++)
        differs = strcmp(a->sasl[i], b->sasl[i]) != 0;
    return differs;
}

static bool mupdate_differs(const struct config *a, const struct config *b)
{
    return strcmp(a->mupdate_listen, b->mupdate_listen) || strcmp(a->mupdate_tls_listen, b->mupdate_tls_listen) || strcmp(a->mupdate_socket, b->mupdate_socket) ||
           a->mupdate_socket_mode != b->mupdate_socket_mode || a->mupdate_plaintext != b->mupdate_plaintext || strcmp(a->mupdate_hostname, b->mupdate_hostname) || sasl_differs(a, b);
}

static void reload(struct daemon *d)
{
    struct config *fresh;
    struct err err = {0};
    char name[sizeof d->cert_name];
    SSL_CTX *tls, *optional;
    if (config_load(d->config_path, &fresh, &err) != 0) {
        logger_line(LOGGER_ERROR, "main", "reload refused, everything stays as it was: %s", err.text);
        return;
    }
    if (certificates_load(fresh, &tls, &optional, name, sizeof name, &err) != 0) {
        logger_line(LOGGER_ERROR, "main", "reload refused, everything stays as it was: %s", err.text);
        config_destroy(&fresh);
        return;
    }
    if (strcmp(name, d->cert_name) != 0) {
        logger_line(LOGGER_ERROR, "main", "reload refused, everything stays as it was: the new certificate is \"%s\", this member is known as \"%s\"", name, d->cert_name);
        SSL_CTX_free(tls);
        SSL_CTX_free(optional);
        config_destroy(&fresh);
        return;
    }
    struct config *c = d->config;
    if (strcmp(fresh->peer_listen, c->peer_listen) || strcmp(fresh->client_listen, c->client_listen) || strcmp(fresh->data_dir, c->data_dir) ||
        strcmp(fresh->client_socket, c->client_socket) || strcmp(fresh->peer_advertise, c->peer_advertise) || fresh->service_threads != c->service_threads ||
        fresh->election_timeout_ms != c->election_timeout_ms || fresh->heartbeat_ms != c->heartbeat_ms || fresh->space_reserve_len != c->space_reserve_len ||
        fresh->state_quota_len != c->state_quota_len || fresh->state_growth_len != c->state_growth_len || strcmp(fresh->local_group, c->local_group) ||
        strcmp(fresh->site, c->site) || fresh->image_rate_len != c->image_rate_len || fresh->scrub_interval_s != c->scrub_interval_s ||
        fresh->log_keep_len != c->log_keep_len || fresh->events_kept != c->events_kept || mupdate_differs(fresh, c))
        logger_line(LOGGER_WARN, "main", "reload: certificates, allow sections, log_level and mupdate_take_over are taken; other changes need a restart");
    pthread_mutex_lock(&d->config_mutex);
    struct access_rule *allow = c->allow;
    size_t allow_n = c->allow_n;
    c->allow = fresh->allow;
    c->allow_n = fresh->allow_n;
    c->mupdate_take_over = fresh->mupdate_take_over;
    fresh->allow = allow; /* destroyed with it */
    fresh->allow_n = allow_n;
    SSL_CTX *old = d->tls, *old_optional = d->tls_optional;
    d->tls = tls;
    d->tls_optional = optional;
    pthread_mutex_unlock(&d->config_mutex);
    atomic_fetch_add(&d->rules_generation, 1);
    consensus_reload(d->consensus, tls);
    SSL_CTX_free(old);
    SSL_CTX_free(old_optional);
    logger_level_set((enum logger_level)fresh->log_level);
    config_destroy(&fresh);
    logger_line(LOGGER_INFO, "main", "reloaded certificates, allow sections, log level and mupdate_take_over");
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct daemon *d = handle->data;
    if (signum == SIGHUP) {
        reload(d);
        return;
    }
    if (atomic_load(&d->stop_wanted))
        return;
    logger_line(LOGGER_INFO, "main", "stopping (signal %d)", signum);
    daemon_stop(d, EXIT_ORDERLY);
}

static void on_wake(uv_async_t *async)
{
    struct daemon *d = async->data;
    if (atomic_load(&d->stop_wanted))
        uv_stop(&d->loop);
}

/* --- Privileges ------------------------------------------------------------------------------------------------------------------------- */

static int privileges_drop(const struct config *c, struct err *err)
{
    if (!*c->run_as)
        return 0;
    struct passwd *pw = getpwnam(c->run_as);
    if (!pw)
        return err_set(err, RAFTDIR_EPERM, "run_as: there is no user \"%s\"", c->run_as);
    if (geteuid() == pw->pw_uid)
        return 0;
    if (geteuid() != 0)
        return err_set(err, RAFTDIR_EPERM, "run_as: only root can become \"%s\": start it as root or as that user", c->run_as);
    /* The directory is made here, since the user may not be able to; what is in it is the user's business. */
    if (mkdir(c->data_dir, 0700) == 0) {
        if (chown(c->data_dir, pw->pw_uid, pw->pw_gid) != 0)
            return err_set(err, RAFTDIR_EPERM, "run_as: can't give %s to \"%s\": %s", c->data_dir, c->run_as, strerror(errno));
    } else if (errno != EEXIST) {
        return err_set(err, RAFTDIR_EIO, "data_dir %s: create: %s", c->data_dir, strerror(errno));
    }
    if (initgroups(c->run_as, pw->pw_gid) != 0 || setgid(pw->pw_gid) != 0 || setuid(pw->pw_uid) != 0)
        return err_set(err, RAFTDIR_EPERM, "run_as: can't become \"%s\": %s", c->run_as, strerror(errno));
    return setuid(0) == 0 ? err_set(err, RAFTDIR_EPERM, "run_as: could become root again") : 0;
}

/* The data directory, and the page that tells the processes of this host about the state. A node without a page serves as ever, over sockets. */
static int local_readers_admit(struct daemon *d, struct err *err)
{
    struct group *gr = *d->config->local_group ? getgrnam(d->config->local_group) : NULL;
    struct page *page = NULL;
    struct err why = {0};
    int group = gr ? (int)gr->gr_gid : -1;
    if (*d->config->local_group && !gr)
        return err_set(err, RAFTDIR_EPERM, "local_group: there is no group \"%s\"", d->config->local_group);
    int rc = datadir_share(d->datadir, group, err);
    if (rc == RAFTDIR_EPERM && gr)
        return err_set(err, rc, "local_group: this user (%u) can't give files to the group \"%s\": make it a member (usermod -aG %s USER), or name a group that it is in",
                       (unsigned)d->own_uid, d->config->local_group, d->config->local_group);
    if (rc != 0)
        return rc;
    rc = page_create(d->config->data_dir, d->config->node_name, group, &page, &why);
    if (rc != 0)
        logger_line(LOGGER_WARN, "main", "no status page, so the processes of this host ask over the socket until the next start: %s", why.text);
    shared_page_set(&d->shared, page);
    fault_page(page);
    return 0;
}

/* MUPDATE's logins, if anybody may come that way. The process's end ends them: some of the library's plugins (GSSAPI) lose memory when they are unloaded. */
static int sasl_start(const struct config *c, struct err *err)
{
    if (!*c->mupdate_listen && !*c->mupdate_tls_listen && !*c->mupdate_socket)
        return 0;
    return sasl_login_init((const char *const *)c->sasl, c->sasl_n, err);
}

/* libuv's pool is for name resolution, verify, and MUPDATE's logins, which may all wait for something slow at once: the others shall find a thread. */
static void pool_size_set(const struct config *c)
{
    char text[16];
    snprintf(text, sizeof text, "%u", POOL_THREADS + SASL_STEPS_MAX * c->service_threads);
    setenv("UV_THREADPOOL_SIZE", text, 0);
}

/* As many open files as we may have; how many connections that allows. */
static unsigned files_limit_raise(void)
{
    const unsigned wanted = CLIENT_CONNS_MAX + MUPDATE_CONNS_MAX + FILES_RESERVED;
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l); /* without it there are fewer connections; that is all */
    }
    if (getrlimit(RLIMIT_NOFILE, &l) != 0)
        l.rlim_cur = wanted;
    unsigned files = l.rlim_cur < wanted ? (unsigned)l.rlim_cur : wanted;
    return files > 2 * FILES_RESERVED ? files - FILES_RESERVED : files / 2;
}

/* --- Running ------------------------------------------------------------------------------------------------------------------------------ */

static void on_walk(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* Ends the service threads; one that is in the middle of a verify or a login is not waited for longer than STOP_VERIFY_MS. */
static void services_stop(struct daemon *d)
{
    atomic_store(&d->services_closing, true);
    uint64_t until = shared_now_ms() + STOP_VERIFY_MS;
    while ((atomic_load(&d->verify_runs) || sasl_login_running()) && shared_now_ms() < until)
        usleep(10000);
    if (atomic_load(&d->verify_runs) || sasl_login_running()) {
        logger_line(LOGGER_WARN, "main", "stopped in the middle of a %s", atomic_load(&d->verify_runs) ? "verify" : "login");
        _exit(atomic_load(&d->exit_code));
    }
    for (unsigned i = 0; i < d->services_n; i++)
        service_stop(d->services[i]);
}

static int run(struct daemon *d, struct err *err)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    unsigned created = 0, running = 0;
    int rc = 0;
    d->services_n = d->config->service_threads;
    d->services = mem_calloc(d->services_n, sizeof *d->services);
    for (; created < d->services_n; created++)
        if ((rc = service_create(d, created, &d->services[created], err)) != 0)
            goto destroy_services;
    if ((rc = space_watch_create(d, &d->space, err)) != 0 || (rc = consensus_start(d, &d->consensus, err)) != 0)
        goto destroy_services;
    if ((rc = space_watch_start(d->space, err)) != 0 || (rc = scrub_start(d, &d->scrub, err)) != 0 || (rc = readers_watch_start(d, &d->readers, err)) != 0)
        goto stop_consensus;
    for (; running < d->services_n; running++)
        if ((rc = service_run(d->services[running], err)) != 0)
            break;
    if (rc == 0) {
        for (int i = 0; i < 3; i++) {
            uv_signal_init(&d->loop, &d->signals[i]);
            d->signals[i].data = d;
            uv_signal_start(&d->signals[i], on_signal, signals[i]);
        }
        struct shared_view view;
        shared_view_get(&d->shared, &view);
        logger_line(LOGGER_INFO, "main", "raftdird " RAFTDIR_VERSION " serves as %s, certificate %s, %s%s%s%s", d->config->node_name, d->cert_name, d->config->client_listen,
                    *d->config->client_listen && *d->config->client_socket ? " and " : "", d->config->client_socket,
                    view.phase == SHARED_UNCONFIGURED ? "; not part of a cluster yet: raftdirctl cluster bootstrap, or join" : "");
        uv_run(&d->loop, UV_RUN_DEFAULT);
    }
stop_consensus:
    atomic_store(&d->stop_wanted, true);
    scrub_stop(&d->scrub);
    readers_watch_stop(&d->readers);
    consensus_stop(d->consensus);
    unsigned all = d->services_n;
    d->services_n = running;
    services_stop(d);
    d->services_n = all;
    space_watch_stop(d->space);
    consensus_destroy(&d->consensus);
destroy_services:
    space_watch_destroy(&d->space);
    for (unsigned i = 0; i < created; i++)
        service_destroy(&d->services[i]);
    free(d->services);
    daemon_log_close(d);
    daemon_store_set(d, NULL);
    return rc;
}

/* Everything up to the threads; the exit code. */
static int start(struct daemon *d, const char *path, bool check_only)
{
    struct err err = {0};
    int code = EXIT_START;
    d->config_path = path;
    if (config_load(path, &d->config, &err) != 0) {
        fprintf(stderr, "raftdird: %s\n", err.text);
        return EXIT_CONFIG;
    }
    logger_level_set((enum logger_level)d->config->log_level);
    if (certificates_load(d->config, &d->tls, &d->tls_optional, d->cert_name, sizeof d->cert_name, &err) != 0) {
        if (check_only) {
            fprintf(stderr, "raftdird: %s\n", err.text);
            code = EXIT_CONFIG;
            goto destroy_config;
        }
        goto report;
    }
    if (check_only) {
        if (sasl_start(d->config, &err) != 0) {
            fprintf(stderr, "raftdird: %s: %s\n", path, err.text);
            code = EXIT_CONFIG;
            goto free_tls;
        }
        printf("%s: in order; node %s, certificate %s\n", path, d->config->node_name, d->cert_name);
        code = EXIT_ORDERLY;
        goto free_tls;
    }
    pool_size_set(d->config);
    if (privileges_drop(d->config, &err) != 0 || sasl_start(d->config, &err) != 0)
        goto report;
    d->own_uid = geteuid();
    d->conns_max = files_limit_raise();
    fault_watch(d->config->data_dir);
    if (datadir_open(d->config->data_dir, &d->datadir, &err) != 0)
        goto report;
    memcpy(d->uuid, datadir_identity(d->datadir)->uuid, NODE_UUID_LEN);
    if (local_readers_admit(d, &err) != 0)
        goto report;
    shared_reset(&d->shared, d->uuid);
    int rc = run(d, &err);
    fault_page(NULL);
    shared_page_close(&d->shared);
    if (rc != 0)
        goto report;
    code = atomic_load(&d->exit_code);
    if (code == EXIT_ORDERLY)
        logger_line(LOGGER_INFO, "main", "stopped in order");
    else
        logger_line(LOGGER_ERROR, "main", "stopped after a fault, exit code %d", code);
    goto close_datadir;

report:
    logger_line(LOGGER_ERROR, "main", "can't start: %s", err.text);
close_datadir:
    datadir_close(&d->datadir);
free_tls:
    SSL_CTX_free(d->tls);
    SSL_CTX_free(d->tls_optional);
destroy_config:
    config_destroy(&d->config);
    return code;
}

/* Started with standard error closed, the first file that we open would get its number, and the log would be written into that. */
static void reserve_standard_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

int main(int argc, char **argv)
{
    const char *path = NULL;
    bool check_only = false;
    reserve_standard_streams();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-c") == 0 && i + 1 < argc) {
            path = argv[++i];
        } else if (strcmp(argv[i], "--check-config") == 0) {
            check_only = true;
        } else if (strcmp(argv[i], "--version") == 0) {
            printf("raftdird " RAFTDIR_VERSION "\n");
            return EXIT_ORDERLY;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            usage(stdout);
            return EXIT_ORDERLY;
        } else if (strcmp(argv[i], "-f") != 0) {
            fprintf(stderr, strcmp(argv[i], "-c") == 0 ? "raftdird: %s needs a FILE\n" : "raftdird: unknown argument \"%s\"\n", argv[i]);
            usage(stderr);
            return EXIT_CONFIG;
        }
    }
    if (!path) {
        fprintf(stderr, "raftdird: -c FILE is missing\n");
        usage(stderr);
        return EXIT_CONFIG;
    }
    struct daemon *d = mem_calloc(1, sizeof *d);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is met as EFBIG, like a full disk, not as our end */
    umask(0077);
    d->started_ms = shared_now_ms();
    pthread_mutex_init(&d->config_mutex, NULL);
    pthread_mutex_init(&d->store_mutex, NULL);
    pthread_mutex_init(&d->mupdate_mutex, NULL);
    pthread_cond_init(&d->log_idle, NULL);
    if (shared_init(&d->shared) != 0 || uv_loop_init(&d->loop) != 0 || uv_async_init(&d->loop, &d->wake, on_wake) != 0)
        mem_exhausted("start");
    d->wake.data = d;
    int code = start(d, path, check_only);
    uv_walk(&d->loop, on_walk, NULL);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    uv_loop_close(&d->loop);
    shared_close(&d->shared);
    pthread_cond_destroy(&d->log_idle);
    pthread_mutex_destroy(&d->mupdate_mutex);
    pthread_mutex_destroy(&d->store_mutex);
    pthread_mutex_destroy(&d->config_mutex);
    free(d);
    return code;
}
