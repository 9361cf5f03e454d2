/* node_address.c - a member's identity in the `address` of its raft_server: "host:port/cert_name/uuid-hex".
 *
 * It stands in the raft configuration itself, so that who may speak as a member changes atomically with the membership. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include "node.h"

int node_address_format(const char *host_port, const char *cert_name, const uint8_t uuid[NODE_UUID_LEN], char *buf_r, size_t size, struct err *err)
{
    struct node_peer peer;
    if (!*host_port || !strchr(host_port, ':') || strchr(host_port, '/'))
        return err_set(err, RAFTDIR_EINVAL, "address \"%s\" is not host:port", host_port);
    if (!*cert_name || strchr(cert_name, '/'))
        return err_set(err, RAFTDIR_EINVAL, "certificate name \"%s\" is empty or contains a slash", cert_name);
    if (strlen(host_port) >= sizeof peer.host_port || strlen(cert_name) >= sizeof peer.cert_name)
        return err_set(err, RAFTDIR_ETOOBIG, "address or certificate name is longer than %zu bytes", sizeof peer.host_port - 1);
    int len = snprintf(buf_r, size, "%s/%s/", host_port, cert_name);
    if (len < 0 || (size_t)len + 2 * NODE_UUID_LEN >= size)
        return err_set(err, RAFTDIR_ETOOBIG, "member address is too long");
    for (int i = 0; i < NODE_UUID_LEN; i++)
        snprintf(buf_r + len + 2 * i, 3, "%02x", uuid[i]);
    return 0;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

int node_address_parse(const char *address, struct node_peer *peer_r, struct err *err)
{
    const char *cert = strchr(address, '/');
    const char *uuid = cert ? strchr(cert + 1, '/') : NULL;
    if (!uuid || strlen(uuid + 1) != 2 * NODE_UUID_LEN)
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" is not host:port/certificate/uuid", address);
    size_t host_len = (size_t)(cert - address), cert_len = (size_t)(uuid - cert - 1);
    if (!host_len || !cert_len || host_len >= sizeof peer_r->host_port || cert_len >= sizeof peer_r->cert_name)
        return err_set(err, RAFTDIR_EINVAL, "\"%s\" is not host:port/certificate/uuid", address);
    for (int i = 0; i < NODE_UUID_LEN; i++) {
        int hi = hex(uuid[1 + 2 * i]), lo = hex(uuid[2 + 2 * i]);
        if (hi < 0 || lo < 0)
            return err_set(err, RAFTDIR_EINVAL, "\"%s\" has a malformed uuid", address);
        peer_r->uuid[i] = (uint8_t)(hi << 4 | lo);
    }
    memcpy(peer_r->host_port, address, host_len);
    peer_r->host_port[host_len] = 0;
    memcpy(peer_r->cert_name, cert + 1, cert_len);
    peer_r->cert_name[cert_len] = 0;
    return 0;
}
