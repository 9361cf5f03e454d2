/* test_tls.c - contexts from files: each thing that can be wrong with one has its own words; names in certificates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/capability.h>
#include <openssl/pem.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "raftdir/tls.h"
#include "support_certs.h"

static char dir[256];
static struct support_ca ca, other_ca;

static char *file(const char *name)
{
    static char paths[4][300];
    static unsigned next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", dir, name);
    return p;
}

static void text_write(const char *name, const char *text)
{
    FILE *f = fopen(file(name), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int setup(void **state)
{
    (void)state;
    support_dir_make(dir, sizeof dir, "tls");
    support_ca_make(&ca, "CA", file("ca.crt"));
    support_ca_make(&other_ca, "CA of others", file("other.crt"));
    support_cert_make(&ca, dir, "good", &(struct support_cert){.cn = "node1"});
    support_cert_make(&ca, dir, "dns", &(struct support_cert){.dns = "node2.example.org"});
    support_cert_make(&ca, dir, "expired", &(struct support_cert){.cn = "node1", .starts_s = -7200, .ends_s = -3600});
    support_cert_make(&ca, dir, "future", &(struct support_cert){.cn = "node1", .starts_s = 3600, .ends_s = 7200});
    support_cert_make(&other_ca, dir, "foreign", &(struct support_cert){.cn = "node1"});
    support_cert_make(&ca, dir, "nameless", &(struct support_cert){0});
    support_cert_make(&ca, dir, "control", &(struct support_cert){.cn = "node1\nadmin"});
    text_write("garbage.crt", "not a certificate\n");
    text_write("damaged.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    text_write("empty.key", "");
    /* An encrypted key. */
    EVP_PKEY *key = EVP_EC_gen("P-256");
    FILE *f = fopen(file("encrypted.key"), "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_PKCS8PrivateKey(f, key, EVP_aes_128_cbc(), "secret", 6, NULL, NULL), 1);
    fclose(f);
    EVP_PKEY_free(key);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    support_ca_free(&ca);
    support_ca_free(&other_ca);
    support_dir_remove(dir);
    return 0;
}

static void files(void **state)
{
    (void)state;
    static const struct {
        const char *ca, *cert, *key;
        int code;
        const char *says;
    } rows[] = {
        {"ca.crt", "good.crt", "good.key", 0, NULL},
        {"ca.crt", NULL, NULL, 0, NULL},
        {"none.crt", NULL, NULL, RAFTDIR_ENOTFOUND, "is missing"},
        {"garbage.crt", NULL, NULL, RAFTDIR_EINVAL, "holds no PEM certificate"},
        {"damaged.crt", NULL, NULL, RAFTDIR_EINVAL, "damaged"},
        {".", NULL, NULL, RAFTDIR_EIO, "can't be read"},
        {"ca.crt", "none.crt", "good.key", RAFTDIR_ENOTFOUND, "certificate file"},
        {"ca.crt", "good.crt", "none.key", RAFTDIR_ENOTFOUND, "key file"},
        {"ca.crt", "good.crt", NULL, RAFTDIR_EINVAL, "a key file is needed"},
        {"ca.crt", "good.crt", "empty.key", RAFTDIR_EINVAL, "holds no PEM private key"},
        {"ca.crt", "good.crt", "encrypted.key", RAFTDIR_EINVAL, "without a passphrase"},
        {"ca.crt", "good.crt", "dns.key", RAFTDIR_EAUTH, "doesn't belong to"},
        {"ca.crt", "expired.crt", "expired.key", RAFTDIR_EAUTH, "expired on"},
        {"ca.crt", "future.crt", "future.key", RAFTDIR_EAUTH, "not yet valid"},
        {"ca.crt", "foreign.crt", "foreign.key", RAFTDIR_EAUTH, "not signed by the CA"},
        {"expired.crt", NULL, NULL, RAFTDIR_EAUTH, "expired on"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct tls_files f = {.ca = file(rows[i].ca),
                              .cert = rows[i].cert ? file(rows[i].cert) : NULL,
                              .key = rows[i].key ? file(rows[i].key) : NULL};
        SSL_CTX *ctx = NULL;
        struct err err = {0};
        int rc = tls_context_create(&f, &ctx, &err);
        if (rc != rows[i].code || (rows[i].says && !strstr(err.text, rows[i].says)))
            fail_msg("row %zu: %d \"%s\", wanted %d \"%s\"", i, rc, err.text, rows[i].code, rows[i].says);
        SSL_CTX_free(ctx);
        ctx = NULL;
        assert_int_equal(tls_context_create_optional(&f, &ctx, &err), rows[i].code);
        SSL_CTX_free(ctx);
    }
    struct err err;
    SSL_CTX *ctx;
    assert_int_equal(tls_context_create(&(struct tls_files){0}, &ctx, &err), RAFTDIR_EINVAL);
    assert_int_equal(tls_context_create_optional(&(struct tls_files){0}, &ctx, &err), RAFTDIR_EINVAL);
}

/* Root reads everything, unless it puts that power away. */
static void root_reads_everything(bool yes)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    const uint32_t powers = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH;
    if (geteuid() != 0)
        return;
    assert_int_equal(syscall(SYS_capget, &header, data), 0);
    data[0].effective = yes ? data[0].effective | (powers & data[0].permitted) : data[0].effective & ~powers;
    assert_int_equal(syscall(SYS_capset, &header, data), 0);
}

static void unreadable(void **state)
{
    (void)state;
    root_reads_everything(false);
    assert_int_equal(chmod(file("dns.key"), 0), 0);
    struct err err;
    SSL_CTX *ctx;
    struct tls_files f = {.ca = file("ca.crt"), .cert = file("dns.crt"), .key = file("dns.key")};
    assert_int_equal(tls_context_create(&f, &ctx, &err), RAFTDIR_EIO);
    assert_non_null(strstr(err.text, "can't be read"));
    chmod(file("dns.key"), 0600);
    root_reads_everything(true);
}

static void names(void **state)
{
    (void)state;
    static const struct {
        const char *cert;
        int code;
        const char *name;
    } rows[] = {
        {"good.crt", 0, "node1"}, {"dns.crt", 0, "node2.example.org"}, {"nameless.crt", RAFTDIR_EAUTH, NULL}, {"control.crt", RAFTDIR_EAUTH, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        FILE *f = fopen(file(rows[i].cert), "r");
        assert_non_null(f);
        X509 *x = PEM_read_X509(f, NULL, NULL, NULL);
        fclose(f);
        char name[64];
        struct err err;
        assert_int_equal(tls_cert_name(x, name, sizeof name, &err), rows[i].code);
        if (!rows[i].code) {
            assert_string_equal(name, rows[i].name);
            assert_int_equal(tls_cert_name(x, name, strlen(rows[i].name), &err), RAFTDIR_EAUTH); /* no room for the NUL */
        }
        X509_free(x);
    }
    assert_int_equal(tls_cert_name(NULL, NULL, 0, NULL), RAFTDIR_EAUTH);
}

/* One handshake in memory: 0, or 1 with the server's (the last speaker's) error. names: the server learns a name. */
static int handshake_names(SSL_CTX *client, SSL_CTX *server, int max_version, bool names, char *text_r, size_t size)
{
    SSL *c = SSL_new(client), *s = SSL_new(server);
    BIO *a, *b;
    assert_int_equal(BIO_new_bio_pair(&a, 65536, &b, 65536), 1);
    SSL_set_bio(c, a, a);
    SSL_set_bio(s, b, b);
    SSL_set_connect_state(c);
    SSL_set_accept_state(s);
    if (max_version)
        SSL_set_max_proto_version(c, max_version);
    int rc = 1;
    text_r[0] = 0;
    for (int i = 0; i < 10; i++) {
        int x = SSL_do_handshake(c);
        if (x <= 0 && SSL_get_error(c, x) != SSL_ERROR_WANT_READ) {
            tls_error_text(c, text_r, size);
            break;
        }
        int y = SSL_do_handshake(s);
        if (y <= 0 && SSL_get_error(s, y) != SSL_ERROR_WANT_READ) {
            tls_error_text(s, text_r, size);
            break;
        }
        if (x == 1 && y == 1) {
            char name[64];
            assert_int_equal(tls_peer_name(s, name, sizeof name, NULL), names ? 0 : RAFTDIR_EAUTH);
            assert_int_equal(SSL_session_reused(s), 0);
            rc = 0;
            break;
        }
    }
    SSL_free(c);
    SSL_free(s);
    return rc;
}

static int handshake(SSL_CTX *client, SSL_CTX *server, int max_version, char *text_r, size_t size)
{
    return handshake_names(client, server, max_version, true, text_r, size);
}

/* A server that a client needn't show a certificate; a wrong one is still wrong. */
static void optional(void **state)
{
    (void)state;
    char text[300];
    struct tls_files f = {.ca = file("ca.crt"), .cert = file("good.crt"), .key = file("good.key")};
    SSL_CTX *server = NULL, *bare = NULL, *with = support_ctx(dir, "ca", "dns"), *foreign = support_ctx(dir, "other", "foreign");
    assert_int_equal(tls_context_create_optional(&f, &server, NULL), 0);
    f = (struct tls_files){.ca = file("ca.crt")};
    assert_int_equal(tls_context_create(&f, &bare, NULL), 0);
    SSL_CTX_set_verify(foreign, SSL_VERIFY_NONE, NULL);
    const int versions[] = {0, TLS1_2_VERSION};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(handshake_names(with, server, versions[i], true, text, sizeof text), 0);
        assert_int_equal(handshake_names(bare, server, versions[i], false, text, sizeof text), 0);
        assert_int_equal(handshake_names(foreign, server, versions[i], true, text, sizeof text), 1);
        assert_non_null(strstr(text, "was not accepted"));
    }
    assert_int_equal(handshake_names(with, server, TLS1_1_VERSION, true, text, sizeof text), 1);
    SSL_CTX_free(server);
    SSL_CTX_free(bare);
    SSL_CTX_free(with);
    SSL_CTX_free(foreign);
}

static void handshakes(void **state)
{
    (void)state;
    char text[300];
    SSL_CTX *server = support_ctx(dir, "ca", "good"), *client = support_ctx(dir, "ca", "dns"), *bare = NULL;
    struct tls_files f = {.ca = file("ca.crt")};
    assert_int_equal(tls_context_create(&f, &bare, NULL), 0);
    assert_int_equal(handshake(client, server, 0, text, sizeof text), 0);
    assert_int_equal(handshake(client, server, TLS1_2_VERSION, text, sizeof text), 0);
    assert_int_equal(handshake(client, server, TLS1_1_VERSION, text, sizeof text), 1);
    assert_int_equal(handshake(bare, server, 0, text, sizeof text), 1);
    assert_non_null(strstr(text, "did not return a certificate"));
    /* A client of the other CA doesn't take the server, nor would the server take it. */
    SSL_CTX *foreign = support_ctx(dir, "other", "foreign");
    assert_int_equal(handshake(foreign, server, 0, text, sizeof text), 1);
    assert_non_null(strstr(text, "was not accepted"));
    SSL_CTX_set_verify(foreign, SSL_VERIFY_NONE, NULL);
    assert_int_equal(handshake(foreign, server, 0, text, sizeof text), 1);
    assert_non_null(strstr(text, "was not accepted"));
    SSL_CTX_free(server);
    SSL_CTX_free(client);
    SSL_CTX_free(bare);
    SSL_CTX_free(foreign);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files),
        cmocka_unit_test(unreadable),
        cmocka_unit_test(names),
        cmocka_unit_test(handshakes),
        cmocka_unit_test(optional),
    };
    return cmocka_run_group_tests_name("tls", tests, setup, teardown);
}
