/* daemon.h - one running raftdird: what its threads share, and who may touch what. README.md draws the picture.
 *
 * main thread        signals, reload, the order of starting and stopping
 * consensus thread   struct node, peers; opens the log and the state when the node becomes a member (thread_consensus.c)
 * log thread         seglog_write (thread_log.c)
 * apply thread       the only writer of the store (thread_apply.c)
 * service threads    client connections and reads (thread_service.c, srv_client*.c)
 * libuv's pool       verify, name resolution */
#ifndef RAFTDIR_DAEMON_H
#define RAFTDIR_DAEMON_H
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <uv.h>
#include "access.h"
#include "config.h"
#include "datadir.h"
#include "err.h"
#include "mem.h"
#include "seglog.h"
#include "shared.h"
#include "store.h"

struct consensus;
struct service;
struct space_watch;
struct scrub;
struct readers_watch;

struct daemon {
    const char *config_path;
    /* Replaced by a reload, under the mutex; the generation says that the rules may have changed. */
    pthread_mutex_t config_mutex;
    struct config *config;
    SSL_CTX *tls, *tls_optional;
    _Atomic unsigned rules_generation;

    uid_t own_uid;
    char cert_name[256];
    uint8_t uuid[NODE_UUID_LEN]; /* consensus thread only, once it runs: a reset changes it; others have shared_view's */
    uint64_t started_ms;

    struct datadir *datadir; /* consensus thread only, once it runs */
    struct shared shared;
    /* Set by the consensus thread before the phase becomes SHARED_RUNNING, and again when an image takes the state's place; closed by main after all threads
     * have ended. Others take references with daemon_store. */
    pthread_mutex_t store_mutex;
    struct store *store;
    _Atomic unsigned store_generation; /* counts the states: a reader whose number differs drops its transaction and takes the new one */
    struct seglog *log;
    /* Who reads the log's files beside the log thread: daemon_log_hold. */
    pthread_cond_t log_idle;
    bool log_readable;
    unsigned log_readers;
    _Atomic bool log_closing;

    struct space_watch *space; /* created before the consensus thread, destroyed after it */
    struct scrub *scrub;       /* NULL: none runs */
    struct readers_watch *readers;
    struct consensus *consensus;
    struct service **services;
    unsigned services_n;
    unsigned conns_max;        /* connections, all together: so that FILES_RESERVED descriptors are left, whoever connects how often */
    _Atomic unsigned clients;  /* connections, of all service threads */
    _Atomic unsigned mupdates; /* MUPDATE connections, of all service threads */
    _Atomic uint64_t mupdate_seen; /* the highest index that a MUPDATE client was told of here: later reads aren't older, whoever asks */
    pthread_mutex_t mupdate_mutex; /* of `mupdate_views` */
    struct mupdate_view *mupdate_views; /* all sessions, of all service threads: srv_mupdate_view.c */
    char mupdate_why_not[200];     /* under it too: why nobody listens; "": somebody does */
    _Atomic bool mupdate_listens;  /* service thread 0 does; the others follow it */
    _Atomic unsigned watchers; /* open watches, of all service threads */
    _Atomic size_t open_len;   /* memory of their open requests, as far as they chose it */
    _Atomic bool verify_runs;  /* one at a time */

    uv_loop_t loop;
    uv_async_t wake;
    uv_signal_t signals[3];
    _Atomic int exit_code;
    _Atomic bool stop_wanted;
    _Atomic bool services_closing; /* the consensus thread has ended: connections may close */
};

/* Stops the daemon in order, from any thread. The first code other than EXIT_ORDERLY stays. */
void daemon_stop(struct daemon *d, int exit_code);
/* The state that is current now, with a reference (store_close gives it back); NULL: there is none, or it may not be served any more. Thread-safe. */
struct store *daemon_store(struct daemon *d, unsigned *generation_r);
/* Consensus thread: `store` (given; NULL: none) is the current state from now on. */
void daemon_store_set(struct daemon *d, struct store *store);
/* The log, for reading its files (seglog_scrub); NULL: there is none. It stays open until daemon_log_release; the reader looks at d->log_closing and ends soon when
 * it is set. Thread-safe. */
const struct seglog *daemon_log_hold(struct daemon *d);
void daemon_log_release(struct daemon *d);
/* Consensus thread: d->log is open, and its files may be read; closes d->log, after waiting for those who read. */
void daemon_log_opened(struct daemon *d);
void daemon_log_close(struct daemon *d);
/* The role of a connection, by the rules as they are now. cert_name NULL: a Unix socket's uid. */
int daemon_access(struct daemon *d, const char *cert_name, uid_t uid, struct access *access_r, struct err *err);
int daemon_access_sasl(struct daemon *d, const char *user, struct access *access_r, struct err *err);
void daemon_access_noauth(struct daemon *d, struct access *access_r);
/* The context for new connections; give it back with SSL_CTX_free. */
SSL_CTX *daemon_tls(struct daemon *d);
SSL_CTX *daemon_tls_optional(struct daemon *d); /* for MUPDATE: a client certificate is welcome, and not needed */

#endif
