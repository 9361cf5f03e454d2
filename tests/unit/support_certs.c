/* support_certs.c - see support_certs.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/tls.h"
#include "support_certs.h"

void support_dir_make(char *path_r, size_t size, const char *what)
{
    const char *tmp = getenv("TMPDIR");
    if (!tmp || !*tmp)
        tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; /* memory: tests sync a lot */
    snprintf(path_r, size, "%s/raftdir-test-%s-XXXXXX", tmp, what);
    assert_non_null(mkdtemp(path_r));
}

void support_dir_remove(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    struct dirent *e;
    while ((e = readdir(d))) {
        char sub[4096];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        if (unlink(sub) != 0)
            support_dir_remove(sub);
    }
    closedir(d);
    rmdir(path);
}

static X509 *sign(const struct support_ca *ca, EVP_PKEY *key, const struct support_cert *c, bool is_ca)
{
    static long serial = 1;
    X509 *x = X509_new();
    assert_non_null(x);
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    bool dated = c->starts_s || c->ends_s;
    X509_gmtime_adj(X509_getm_notBefore(x), dated ? c->starts_s : -86400);
    X509_gmtime_adj(X509_getm_notAfter(x), dated ? c->ends_s : 86400);
    X509_set_pubkey(x, key);
    if (c->cn)
        X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_UTF8, (const unsigned char *)c->cn, -1, -1, 0);
    else
        X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "O", MBSTRING_UTF8, (const unsigned char *)"raftdir tests", -1, -1, 0);
    X509_set_issuer_name(x, ca ? X509_get_subject_name(ca->cert) : X509_get_subject_name(x));
    X509V3_CTX v3;
    X509V3_set_ctx(&v3, ca ? ca->cert : x, x, NULL, NULL, 0);
    char san[300];
    snprintf(san, sizeof san, "DNS:%s", c->dns ? c->dns : "");
    struct {
        int nid;
        const char *value;
    } exts[] = {{NID_basic_constraints, is_ca ? "critical,CA:TRUE" : "critical,CA:FALSE"},
                {NID_subject_key_identifier, "hash"},
                {NID_subject_alt_name, c->dns ? san : NULL}};
    for (size_t i = 0; i < sizeof exts / sizeof *exts; i++) {
        if (!exts[i].value)
            continue;
        X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &v3, exts[i].nid, exts[i].value);
        assert_non_null(ext);
        X509_add_ext(x, ext, -1);
        X509_EXTENSION_free(ext);
    }
    assert_true(X509_sign(x, ca ? ca->key : key, EVP_sha256()) > 0);
    return x;
}

static void cert_write(const char *file, X509 *x)
{
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_X509(f, x), 1);
    assert_int_equal(fclose(f), 0);
}

void support_ca_make(struct support_ca *ca_r, const char *name, const char *file)
{
    ca_r->key = EVP_EC_gen("P-256");
    assert_non_null(ca_r->key);
    ca_r->cert = sign(NULL, ca_r->key, &(struct support_cert){.cn = name}, true);
    cert_write(file, ca_r->cert);
}

void support_ca_free(struct support_ca *ca)
{
    X509_free(ca->cert);
    EVP_PKEY_free(ca->key);
    memset(ca, 0, sizeof *ca);
}

void support_cert_make(const struct support_ca *ca, const char *dir, const char *name, const struct support_cert *cert)
{
    char file[4096];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    assert_non_null(key);
    X509 *x = sign(ca, key, cert, false);
    snprintf(file, sizeof file, "%s/%s.crt", dir, name);
    cert_write(file, x);
    snprintf(file, sizeof file, "%s/%s.key", dir, name);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
    assert_int_equal(fclose(f), 0);
    X509_free(x);
    EVP_PKEY_free(key);
}

SSL_CTX *support_ctx(const char *dir, const char *ca, const char *name)
{
    char ca_file[4096], cert[4096], key[4096];
    snprintf(ca_file, sizeof ca_file, "%s/%s.crt", dir, ca);
    snprintf(cert, sizeof cert, "%s/%s.crt", dir, name);
    snprintf(key, sizeof key, "%s/%s.key", dir, name);
    SSL_CTX *ctx = NULL;
    struct err err;
    struct tls_files files = {.ca = ca_file, .cert = cert, .key = key};
    if (tls_context_create(&files, &ctx, &err))
        fail_msg("context of %s: %s", name, err.text);
    return ctx;
}
