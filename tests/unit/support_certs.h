/* support_certs.h - certificates made at test time, in a directory of the test's own. */
#ifndef SUPPORT_CERTS_H
#define SUPPORT_CERTS_H
#include <openssl/ssl.h>

/* A fresh directory under $TMPDIR, /dev/shm or /tmp; support_dir_remove takes it away with its files (one level of folders). */
void support_dir_make(char *path_r, size_t size, const char *what);
void support_dir_remove(const char *path);

struct support_ca {
    X509 *cert;
    EVP_PKEY *key;
};
struct support_cert {
    const char *cn;          /* NULL: no common name */
    const char *dns;         /* NULL: no DNS name */
    long starts_s, ends_s;   /* from now; both 0: a day either way */
};
void support_ca_make(struct support_ca *ca_r, const char *name, const char *file);
void support_ca_free(struct support_ca *ca);
/* Signs with `ca` and writes DIR/NAME.crt and DIR/NAME.key. */
void support_cert_make(const struct support_ca *ca, const char *dir, const char *name, const struct support_cert *cert);
/* A context of DIR/CA.crt, DIR/NAME.crt, DIR/NAME.key; fails the test if there is none. */
SSL_CTX *support_ctx(const char *dir, const char *ca, const char *name);

#endif
