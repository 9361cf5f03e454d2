/* tls.c - see tls.h.
 *
 * The files are read by hand, before OpenSSL gets them, only to say exactly what is wrong with them: an operator who renews certificates at night
 * reads "expired on ..." and not "error:0A000086".
 * No session is ever resumed: each connection is verified against the CA file of now, so a reloaded CA takes effect at the next connection.
 * No revocation lists: a certificate is withdrawn by removing its member or its `allow` section. */
#include "tls.h"
#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

/* An encrypted key would make OpenSSL ask on the terminal. */
static int passphrase_refuse(char *buf, int size, int rwflag, void *data)
{
    (void)rwflag;
    *(bool *)data = true;
    if (size > 0)
        buf[0] = 0;
    return -1;
}

/* The deepest reason in OpenSSL's queue, which is emptied. */
static void queue_text(char *buf_r, size_t size)
{
    unsigned long code = ERR_peek_error();
    const char *reason = code ? ERR_reason_error_string(code) : NULL;
    if (code && ERR_SYSTEM_ERROR(code))
        snprintf(buf_r, size, "%s", strerror(ERR_GET_REASON(code)));
    else if (reason)
        snprintf(buf_r, size, "%s", reason);
    else
        snprintf(buf_r, size, "unknown TLS error %lu", code);
    ERR_clear_error();
}

bool tls_no_memory(SSL *ssl)
{
    if (ssl && SSL_get_verify_result(ssl) == X509_V_ERR_OUT_OF_MEM)
        return true;
    return ERR_GET_REASON(ERR_peek_error()) == ERR_R_MALLOC_FAILURE || ERR_GET_REASON(ERR_peek_last_error()) == ERR_R_MALLOC_FAILURE;
}

static int openssl_fail(struct err *err, int code, const char *what)
{
    char text[256];
    if (tls_no_memory(NULL))
        code = RAFTDIR_ENOMEM;
    queue_text(text, sizeof text);
    return err_set(err, code, "%s: %s", what, text);
}

static int file_open(const char *kind, const char *path, FILE **f_r, struct err *err)
{
    *f_r = fopen(path, "re");
    if (*f_r)
        return 0;
    int e = errno;
    if (e == ENOENT)
        return err_set(err, RAFTDIR_ENOTFOUND, "%s file %s is missing", kind, path);
    return err_set(err, e == ENOMEM ? RAFTDIR_ENOMEM : RAFTDIR_EIO, "%s file %s can't be read: %s", kind, path, strerror(e));
}

static void time_text(const ASN1_TIME *t, char *buf_r, size_t size)
{
    BIO *bio = BIO_new(BIO_s_mem());
    int n = -1;
    if (bio && ASN1_TIME_print(bio, t))
        n = BIO_read(bio, buf_r, (int)size - 1);
    BIO_free(bio);
    buf_r[n > 0 ? n : 0] = 0;
    ERR_clear_error();
}

static int dates_check(const char *kind, const char *path, X509 *cert, struct err *err)
{
    char when[64];
    if (X509_cmp_current_time(X509_get0_notBefore(cert)) > 0) {
        time_text(X509_get0_notBefore(cert), when, sizeof when);
        return err_set(err, RAFTDIR_EAUTH, "%s in %s is not yet valid: it starts on %s", kind, path, when);
    }
    if (X509_cmp_current_time(X509_get0_notAfter(cert)) < 0) {
        time_text(X509_get0_notAfter(cert), when, sizeof when);
        return err_set(err, RAFTDIR_EAUTH, "%s in %s expired on %s", kind, path, when);
    }
    return 0;
}

/* All certificates of a PEM file, at least one. */
static int certs_read(const char *kind, const char *path, STACK_OF(X509) **certs_r, struct err *err)
{
    FILE *f;
    int rc = file_open(kind, path, &f, err);
    if (rc)
        return rc;
    STACK_OF(X509) *certs = sk_X509_new_null();
    if (!certs) {
        rc = err_set(err, RAFTDIR_ENOMEM, "read %s: out of memory", path);
        goto close_file;
    }
    X509 *cert;
    while ((cert = PEM_read_X509(f, NULL, NULL, NULL))) {
        if (!sk_X509_push(certs, cert)) {
            X509_free(cert);
            rc = err_set(err, RAFTDIR_ENOMEM, "read %s: out of memory", path);
            goto free_certs;
        }
    }
    unsigned long code = ERR_peek_last_error();
    bool at_end = ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
    if (ferror(f))
        rc = err_set(err, RAFTDIR_EIO, "%s file %s can't be read: %s", kind, path, strerror(errno));
    else if (!at_end && tls_no_memory(NULL))
        rc = err_set(err, RAFTDIR_ENOMEM, "read %s: out of memory", path);
    else if (!at_end)
        rc = err_set(err, RAFTDIR_EINVAL, "%s file %s holds a damaged PEM certificate", kind, path);
    else if (sk_X509_num(certs) == 0)
        rc = err_set(err, RAFTDIR_EINVAL, "%s file %s holds no PEM certificate", kind, path);
    ERR_clear_error();
    if (rc)
        goto free_certs;
    fclose(f);
    *certs_r = certs;
    return 0;
free_certs:
    sk_X509_pop_free(certs, X509_free);
close_file:
    fclose(f);
    return rc;
}

static int key_read(const char *path, EVP_PKEY **key_r, struct err *err)
{
    FILE *f;
    int rc = file_open("key", path, &f, err);
    if (rc)
        return rc;
    bool encrypted = false;
    *key_r = PEM_read_PrivateKey(f, NULL, passphrase_refuse, &encrypted);
    bool read_failed = ferror(f) != 0;
    int e = errno;
    bool no_memory = !*key_r && tls_no_memory(NULL);
    fclose(f);
    ERR_clear_error();
    if (*key_r)
        return 0;
    if (no_memory)
        return err_set(err, RAFTDIR_ENOMEM, "read %s: out of memory", path);
    if (read_failed)
        return err_set(err, RAFTDIR_EIO, "key file %s can't be read: %s", path, strerror(e));
    if (encrypted)
        return err_set(err, RAFTDIR_EINVAL, "key file %s is encrypted: raftdir needs it without a passphrase", path);
    return err_set(err, RAFTDIR_EINVAL, "key file %s holds no PEM private key", path);
}

/* Is our own certificate one that the others, with the same CA file, will take? */
static int chain_check(const struct tls_files *files, SSL_CTX *ctx, STACK_OF(X509) *chain, struct err *err)
{
    X509_STORE_CTX *sc = X509_STORE_CTX_new();
    if (!sc)
        return err_set(err, RAFTDIR_ENOMEM, "check %s: out of memory", files->cert);
    int rc = 0;
    if (!X509_STORE_CTX_init(sc, SSL_CTX_get_cert_store(ctx), sk_X509_value(chain, 0), chain))
        rc = openssl_fail(err, RAFTDIR_ENOMEM, files->cert);
    else if (X509_verify_cert(sc) != 1)
        rc = err_set(err, X509_STORE_CTX_get_error(sc) == X509_V_ERR_OUT_OF_MEM || tls_no_memory(NULL) ? RAFTDIR_ENOMEM : RAFTDIR_EAUTH, "certificate in %s is not signed by the CA in %s: %s", files->cert, files->ca,
                     X509_verify_cert_error_string(X509_STORE_CTX_get_error(sc)));
    X509_STORE_CTX_free(sc);
    ERR_clear_error();
    return rc;
}

static int ca_use(SSL_CTX *ctx, const char *path, struct err *err)
{
    STACK_OF(X509) *cas;
    int rc = certs_read("CA", path, &cas, err);
    if (rc)
        return rc;
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    int usable = 0;
    for (int i = 0; i < sk_X509_num(cas) && rc != RAFTDIR_ENOMEM; i++) {
        X509 *ca = sk_X509_value(cas, i);
        /* One of several may have run out (a CA being replaced); all of them may not. */
        int bad = dates_check("CA certificate", path, ca, err);
        if (bad) {
            rc = bad;
            continue;
        }
        usable++;
        if (!X509_STORE_add_cert(store, ca) || !SSL_CTX_add_client_CA(ctx, ca))
            rc = openssl_fail(err, RAFTDIR_ENOMEM, path);
    }
    sk_X509_pop_free(cas, X509_free);
    if (usable && rc != RAFTDIR_ENOMEM)
        rc = 0;
    return rc;
}

static int cert_use(SSL_CTX *ctx, const struct tls_files *files, struct err *err)
{
    if (!files->key)
        return err_set(err, RAFTDIR_EINVAL, "a key file is needed for certificate %s", files->cert);
    STACK_OF(X509) *chain;
    int rc = certs_read("certificate", files->cert, &chain, err);
    if (rc)
        return rc;
    X509 *cert = sk_X509_value(chain, 0);
    EVP_PKEY *key = NULL;
    rc = dates_check("certificate", files->cert, cert, err);
    if (!rc)
        rc = key_read(files->key, &key, err);
    if (rc)
        goto free_chain;
    if (X509_check_private_key(cert, key) != 1) {
        rc = err_set(err, RAFTDIR_EAUTH, "key in %s doesn't belong to the certificate in %s", files->key, files->cert);
        goto free_key;
    }
    rc = chain_check(files, ctx, chain, err);
    if (rc)
        goto free_key;
    if (SSL_CTX_use_certificate(ctx, cert) != 1) {
        rc = openssl_fail(err, RAFTDIR_EAUTH, files->cert);
        goto free_key;
    }
    if (SSL_CTX_use_PrivateKey(ctx, key) != 1) {
        rc = openssl_fail(err, RAFTDIR_EAUTH, files->key);
        goto free_key;
    }
    for (int i = 1; i < sk_X509_num(chain); i++) {
        if (SSL_CTX_add1_chain_cert(ctx, sk_X509_value(chain, i)) != 1) {
            rc = openssl_fail(err, RAFTDIR_EAUTH, files->cert);
            goto free_key;
        }
    }
free_key:
    EVP_PKEY_free(key);
free_chain:
    sk_X509_pop_free(chain, X509_free);
    ERR_clear_error();
    return rc;
}

static int context_create_once(const struct tls_files *files, int verify, SSL_CTX **ctx_r, struct err *err)
{
    if (!files->ca)
        return err_set(err, RAFTDIR_EINVAL, "a CA file is needed for TLS");
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    if (!ctx)
        return openssl_fail(err, RAFTDIR_ENOMEM, "create a TLS context");
    int rc = 0;
    if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!eNULL") != 1) { /* of TLS 1.2 only */
        rc = openssl_fail(err, RAFTDIR_EUNSUPPORTED, "set up TLS");
        goto free_ctx;
    }
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_verify(ctx, verify, NULL);
    rc = ca_use(ctx, files->ca, err);
    if (!rc && files->cert)
        rc = cert_use(ctx, files, err);
    if (rc)
        goto free_ctx;
    ERR_clear_error();
    *ctx_r = ctx;
    return 0;
free_ctx:
    SSL_CTX_free(ctx);
    return rc;
}

static int context_create(const struct tls_files *files, int verify, SSL_CTX **ctx_r, struct err *err)
{
    int rc = context_create_once(files, verify, ctx_r, err);
    /* Where memory was lacking, OpenSSL says now and then that a certificate is bad. What is wrong with it is wrong twice. */
    return rc && rc != RAFTDIR_ENOMEM ? context_create_once(files, verify, ctx_r, err) : rc;
}

int tls_context_create(const struct tls_files *files, SSL_CTX **ctx_r, struct err *err)
{
    return context_create(files, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, ctx_r, err);
}

int tls_context_create_optional(const struct tls_files *files, SSL_CTX **ctx_r, struct err *err)
{
    return context_create(files, SSL_VERIFY_PEER, ctx_r, err);
}

/* A name goes into logs, configurations and member addresses: one line of printable text, nothing that ends a C string early. */
static int name_copy(const ASN1_STRING *s, char *buf_r, size_t size, struct err *err)
{
    unsigned char *utf8 = NULL;
    int len = ASN1_STRING_to_UTF8(&utf8, s);
    int rc = 0;
    if (len <= 0)
        rc = err_set(err, RAFTDIR_EAUTH, "the certificate's name is empty or not text");
    else if ((size_t)len >= size)
        rc = err_set(err, RAFTDIR_EAUTH, "the certificate's name is longer than %zu bytes", size - 1);
    for (int i = 0; !rc && i < len; i++) {
        if (utf8[i] < 0x20 || utf8[i] == 0x7f)
            rc = err_set(err, RAFTDIR_EAUTH, "the certificate's name holds a control character");
    }
    if (!rc) {
        memcpy(buf_r, utf8, (size_t)len);
        buf_r[len] = 0;
    }
    OPENSSL_free(utf8);
    ERR_clear_error();
    return rc;
}

int tls_cert_name(X509 *cert, char *buf_r, size_t size, struct err *err)
{
    if (!cert)
        return err_set(err, RAFTDIR_EAUTH, "there is no certificate");
    X509_NAME *subject = X509_get_subject_name(cert);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at >= 0) {
        if (X509_NAME_get_index_by_NID(subject, NID_commonName, at) >= 0)
            return err_set(err, RAFTDIR_EAUTH, "the certificate has several common names");
        return name_copy(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)), buf_r, size, err);
    }
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    int rc = err_set(err, RAFTDIR_EAUTH, "the certificate has neither a common name nor a DNS name");
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type == GEN_DNS) {
            rc = name_copy(name->d.dNSName, buf_r, size, err);
            break;
        }
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    return rc;
}

int tls_peer_name(SSL *ssl, char *buf_r, size_t size, struct err *err)
{
    X509 *cert = SSL_get0_peer_certificate(ssl);
    if (!cert)
        return err_set(err, RAFTDIR_EAUTH, "the other end sent no certificate");
    return tls_cert_name(cert, buf_r, size, err);
}

void tls_error_text(SSL *ssl, char *buf_r, size_t size)
{
    long verify = ssl ? SSL_get_verify_result(ssl) : X509_V_OK;
    if (verify != X509_V_OK) {
        ERR_clear_error();
        snprintf(buf_r, size, "the other end's certificate was not accepted: %s", X509_verify_cert_error_string(verify));
        return;
    }
    queue_text(buf_r, size);
}
