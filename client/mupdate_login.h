/* mupdate_login.h - what the parts of the MUPDATE client share: the connection as mupdate_source.c has it, and logging in. */
#ifndef RAFTDIR_MUPDATE_LOGIN_H
#define RAFTDIR_MUPDATE_LOGIN_H
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <sasl/sasl.h>
#include <sasl/saslutil.h>
#include <time.h>
#include "mupdate_source.h"
#include "raftdir/mupdate_parse.h"
#include "raftdir/mupdate_print.h"

#define SOURCE_LITERAL_LEN_MAX (1u << 20)

struct mupdate_source {
    struct mupdate_source_options o;
    int fd;
    SSL_CTX *tls;
    SSL *ssl;
    bool encrypted, local, starttls, listing;
    char host[256], port[16], mechanisms[512];
    char *buf; /* received; from pos on not yet understood */
    size_t pos, len, size;
    struct mupdate_parser parser;
    struct mupdate_line line;
    const char *tag; /* of LIST or UPDATE */
    struct { char *text; size_t size; } row;
    sasl_conn_t *sasl;
    sasl_secret_t *secret;
    sasl_callback_t callbacks[5];
};

int mupdate_source_send(struct mupdate_source *s, const char *data, size_t len, struct err *err);
int mupdate_source_line(struct mupdate_source *s, uint64_t deadline, struct err *err); /* into s->line; RAFTDIR_EAGAIN after the deadline */
int mupdate_source_answer(struct mupdate_source *s, struct err *err);                  /* the same, of something that must come */
void mupdate_source_text(const struct mupdate_source *s, unsigned from, char *text_r, size_t size); /* words of s->line, for people */

int mupdate_login(struct mupdate_source *s, struct err *err);
void mupdate_login_end(struct mupdate_source *s);

#endif
