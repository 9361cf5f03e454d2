/* config.h - raftdird.conf, read with libconfuse and checked: raftdird.conf(5) is the reference.
 *
 * An error names file, line and key, and says what is wrong and what would be right. Unknown keys and keys given twice are refused. */
#ifndef RAFTDIR_CONFIG_H
#define RAFTDIR_CONFIG_H
#include <stddef.h>
#include <sys/types.h>
#include "access.h"
#include "err.h"

#define CONFIG_SERVICE_THREADS_MAX 64
#define CONFIG_HOST_LEN 256
#define CONFIG_PORT_LEN 8
#define CONFIG_SASL_OPTIONS_MAX 64

/* All strings are owned and never NULL; "" where the key was left out. */
struct config {
    char *node_name, *data_dir;
    char *peer_listen, *peer_advertise, *client_listen, *client_advertise; /* "host:port" */
    char *client_socket;
    mode_t client_socket_mode;
    char *tls_ca, *tls_cert, *tls_key;
    char *run_as;
    char *local_group; /* whose processes may read the state directly; "": none */
    char *site;        /* where this node stands; "": not said */
    int log_level;
    unsigned service_threads, election_timeout_ms, heartbeat_ms;
    uint64_t space_reserve_len;  /* bytes; 0: no reserve */
    uint64_t state_quota_len;    /* bytes; 0: as long as there is disk and map */
    uint64_t state_growth_len;   /* bytes that readers may hold back in the state; then it is copied, and they are left behind */
    uint64_t image_rate_len;     /* bytes a second that this node sends of images; 0: no limit */
    unsigned scrub_interval_s;   /* 0: never by itself */
    unsigned events_kept;        /* for watchers; FEED_EVENTS_KEPT */
    uint64_t log_keep_len;       /* LOG_KEEP_LEN */
    /* MUPDATE; see raftdird.conf(5). */
    char *mupdate_listen;        /* "host:port"; STARTTLS is offered */
    char *mupdate_tls_listen;    /* "host:port"; TLS from the first byte */
    char *mupdate_socket;        /* path */
    mode_t mupdate_socket_mode;
    bool mupdate_plaintext;      /* mechanisms that show the password also without TLS */
    bool mupdate_take_over;      /* ACTIVATE may take an active mailbox away from another server */
    char *mupdate_hostname;      /* as the banner and SASL (realm, Kerberos) say; never "" */
    char **sasl;                 /* `sasl = { "NAME: VALUE", ... }`: options of the SASL library; NAME without "sasl_" */
    size_t sasl_n;
    struct access_rule *allow;
    size_t allow_n;
};

/* RAFTDIR_EINVAL with a text that is fit to be shown as it is. */
int config_load(const char *path, struct config **config_r, struct err *err);
void config_destroy(struct config **config);
/* "host:port" or "[v6]:port" into its parts. */
int config_host_port(const char *s, char host_r[CONFIG_HOST_LEN], char port_r[CONFIG_PORT_LEN], struct err *err);

#endif
