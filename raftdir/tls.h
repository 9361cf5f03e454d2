/* tls.h - OpenSSL contexts as raftdir wants them: TLS 1.3 (1.2 at least), peers verified against one CA file, no renegotiation, no compression.
 * Shared by daemon and library. */
#ifndef RAFTDIR_TLS_H
#define RAFTDIR_TLS_H
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include "err.h"

struct tls_files {
    const char *ca;   /* PEM, required */
    const char *cert; /* PEM chain; NULL: a client without a certificate */
    const char *key;
};
/* A context for both directions; a server with it demands a client certificate. Errors name the file and say what is wrong with it (missing, unreadable,
 * expired, not yet valid, key doesn't fit, not signed by the CA). */
int tls_context_create(const struct tls_files *files, SSL_CTX **ctx_r, struct err *err);
/* The same files, for a server that asks for a client certificate and goes on without one; one that is given must verify. */
int tls_context_create_optional(const struct tls_files *files, SSL_CTX **ctx_r, struct err *err);
/* The name in our own or the peer's certificate: the common name, else the first DNS name. RAFTDIR_EAUTH without one. */
int tls_cert_name(X509 *cert, char *buf_r, size_t size, struct err *err);
int tls_peer_name(SSL *ssl, char *buf_r, size_t size, struct err *err);
/* The reason of the last failure as text (of a failed verification: which); empties the OpenSSL queue of this thread. */
void tls_error_text(SSL *ssl, char *buf_r, size_t size);
/* Was it for lack of memory that the last call failed? As far as OpenSSL tells. Leaves its queue as it is. */
bool tls_no_memory(SSL *ssl);

#endif
