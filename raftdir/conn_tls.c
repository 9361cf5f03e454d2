/* conn_tls.c - TLS for conn.c: OpenSSL sees two memory BIOs and never a socket, so that libuv alone does I/O.
 *
 * Happy path: bytes from the socket -> conn_tls_feed -> conn_tls_handshake until done -> conn_tls_read gives plain bytes; conn_tls_fill encrypts
 * what is queued. Failure: the alert that OpenSSL wrote into ssl_out still goes out (the connection lingers), so that the other end can say why.
 * Memory of an idle connection: SSL_MODE_RELEASE_BUFFERS (tls.c) and, for raw ones, conn_tls_trim; the BIOs would keep what they ever grew to. */
#include "conn_internal.h"
#include "tls.h"
#include <openssl/buffer.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIO_LEN_KEPT 2048 /* of a memory BIO that is empty */

static BIO *memory_bio(void)
{
    BIO *bio = BIO_new(BIO_s_mem());
    if (bio)
        BIO_set_mem_eof_return(bio, -1); /* empty means: later */
    return bio;
}

int conn_tls_init(struct conn *c, bool accepted, struct err *err)
{
    c->ssl = SSL_new(c->o.tls);
    BIO *in = memory_bio(), *out = memory_bio();
    if (!c->ssl || !in || !out) {
        SSL_free(c->ssl);
        c->ssl = NULL;
        BIO_free(in);
        BIO_free(out);
        ERR_clear_error();
        return err_set(err, RAFTDIR_ENOMEM, "TLS connection: out of memory");
    }
    SSL_set_bio(c->ssl, in, out);
    c->ssl_in = in;
    c->ssl_out = out;
    if (accepted)
        SSL_set_accept_state(c->ssl);
    else
        SSL_set_connect_state(c->ssl);
    return 0;
}

void conn_tls_close(struct conn *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    c->ssl_in = c->ssl_out = NULL;
}

int conn_tls_feed(struct conn *c, const uint8_t *data, size_t len)
{
    return BIO_write(c->ssl_in, data, (int)len) == (int)len ? 0 : RAFTDIR_ENOMEM;
}

/* Is the error at the head of OpenSSL's queue about who we or they are (rather than about the protocol)? */
static int error_code(struct conn *c)
{
    if (SSL_get_verify_result(c->ssl) != X509_V_OK)
        return RAFTDIR_EAUTH;
    switch (ERR_GET_REASON(ERR_peek_error())) {
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_NO_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return RAFTDIR_EAUTH;
    default:
        return RAFTDIR_EPROTO;
    }
}

static void broken(struct conn *c, const char *doing)
{
    c->ssl_broken = true;
    int code = error_code(c);
    char text[200], why[256];
    tls_error_text(c->ssl, text, sizeof text);
    snprintf(why, sizeof why, "%s: %s", doing, text);
    conn_end(c, code, why, BIO_ctrl_pending(c->ssl_out) > 0);
}

void conn_tls_handshake(struct conn *c)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(c->ssl);
    if (rc != 1) {
        if (SSL_get_error(c->ssl, rc) == SSL_ERROR_WANT_READ)
            conn_wake(c); /* our part of the handshake goes out */
        else
            broken(c, "TLS handshake");
        return;
    }
    struct err err;
    bool asked_only = SSL_is_server(c->ssl) && !(SSL_get_verify_mode(c->ssl) & SSL_VERIFY_FAIL_IF_NO_PEER_CERT);
    if (asked_only && !SSL_get0_peer_certificate(c->ssl))
        rc = 0; /* tls_context_create_optional */
    else
        rc = tls_peer_name(c->ssl, c->cert_name, sizeof c->cert_name, &err);
    if (rc) {
        c->cert_name[0] = 0;
        conn_end(c, rc, err.text, true);
        return;
    }
    conn_opened(c);
}

size_t conn_tls_get(struct conn *c, uint8_t *buf_r, size_t size)
{
    if (c->ssl_broken)
        return 0;
    ERR_clear_error();
    int n = SSL_read(c->ssl, buf_r, size > INT32_MAX ? INT32_MAX : (int)size);
    if (n > 0)
        return (size_t)n;
    switch (SSL_get_error(c->ssl, n)) {
    case SSL_ERROR_WANT_READ:
        if (BIO_ctrl_pending(c->ssl_out))
            conn_wake(c); /* a key update's answer */
        break;
    case SSL_ERROR_ZERO_RETURN:
        conn_other_ended(c);
        break;
    default:
        broken(c, "TLS");
    }
    return 0;
}

int conn_tls_read(struct conn *c)
{
    size_t room;
    uint8_t *p = frame_reader_room(&c->in, SSL3_RT_MAX_PLAIN_LENGTH, &room);
    if (!p) {
        conn_end(c, RAFTDIR_ENOMEM, "out of memory", false);
        return 0;
    }
    size_t n = conn_tls_get(c, p, room);
    frame_reader_fill(&c->in, n);
    return n > 0;
}

/* Moves what OpenSSL wrote to the wire. */
static int drain(struct conn *c)
{
    char *p;
    long len = BIO_get_mem_data(c->ssl_out, &p);
    if (len <= 0)
        return 0;
    int rc = conn_buf_append(&c->wire, p, (size_t)len);
    if (rc)
        return rc;
    (void)BIO_reset(c->ssl_out);
    return 0;
}

int conn_tls_fill(struct conn *c)
{
    size_t len = conn_buf_len(&c->out);
    if (len && c->announced && !c->starttls && !c->ssl_broken) {
        if (len > CONN_TLS_CHUNK_LEN)
            len = CONN_TLS_CHUNK_LEN;
        ERR_clear_error();
        int n = SSL_write(c->ssl, c->out.p + c->out.start, (int)len);
        if (n > 0) {
            conn_buf_consume(&c->out, (size_t)n);
        } else if (SSL_get_error(c->ssl, n) != SSL_ERROR_WANT_READ) {
            c->ssl_broken = true;
            ERR_clear_error();
            return RAFTDIR_EPROTO;
        }
    }
    return drain(c);
}

void conn_tls_bye(struct conn *c)
{
    if (c->ssl_broken || !SSL_is_init_finished(c->ssl))
        return;
    ERR_clear_error();
    (void)SSL_shutdown(c->ssl);
    ERR_clear_error();
    c->ssl_broken = true;
}

static bool is_large(BIO *bio)
{
    BUF_MEM *mem = NULL;
    BIO_get_mem_ptr(bio, &mem);
    return mem && mem->max > BIO_LEN_KEPT && BIO_ctrl_pending(bio) == 0;
}

void conn_tls_trim(struct conn *c)
{
    BIO *bio;
    if (is_large(c->ssl_in) && (bio = memory_bio())) {
        SSL_set0_rbio(c->ssl, bio); /* frees the old one */
        c->ssl_in = bio;
    }
    if (is_large(c->ssl_out) && (bio = memory_bio())) {
        SSL_set0_wbio(c->ssl, bio);
        c->ssl_out = bio;
    }
    ERR_clear_error();
}
