/* peers_hello.c - the first frame on a connection: is the other end the member that it says it is?
 *
 * A member is (id, certificate name, data directory UUID). All three must fit the newest list, and both ends must be of one cluster and incarnation and mean
 * each other. Each refusal says what an operator should do about it. */
#include "peers_internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t peers_hello_pack(const struct peers_options *self, const char *client_endpoint, const char *site, uint64_t to, bool removed, Raftdir__Image__Request *image,
                        uint8_t buf_r[PEER_HELLO_LEN_MAX])
{
    Raftdir__Peer__Hello hello = RAFTDIR__PEER__HELLO__INIT;
    hello.uuid.data = (uint8_t *)self->uuid;
    hello.uuid.len = NODE_UUID_LEN;
    hello.log_version = LOG_ENTRY_VERSION;
    hello.feature_level_max = FEATURE_LEVEL_MAX;
    hello.software = (char *)"raftdird " RAFTDIR_VERSION;
    hello.client_endpoint = client_endpoint && client_endpoint[0] ? (char *)client_endpoint : NULL;
    hello.site = site && site[0] ? (char *)(uintptr_t)site : NULL;
    hello.has_removed = hello.removed = removed;
    hello.image = image;
    Raftdir__Peer__Frame frame = RAFTDIR__PEER__FRAME__INIT;
    frame.version = PEER_FRAME_VERSION;
    frame.cluster_id = self->cluster_id;
    frame.incarnation = self->incarnation;
    frame.from = self->self_id;
    frame.to = to;
    frame.body_case = RAFTDIR__PEER__FRAME__BODY_HELLO;
    frame.hello = &hello;
    if (raftdir__peer__frame__get_packed_size(&frame) > PEER_HELLO_LEN_MAX)
        return 0;
    return raftdir__peer__frame__pack(&frame, buf_r);
}

int peers_hello_send(struct peers *p, struct conn *c, uint64_t to, bool removed)
{
    uint8_t buf[PEER_HELLO_LEN_MAX];
    size_t len = peers_hello_pack(&p->o, p->client_endpoint, p->site, to, removed, NULL, buf);
    if (!len) /* can't be: the endpoint is the longest field, and its length is checked */
        return RAFTDIR_ETOOBIG;
    return conn_send(c, buf, len);
}

static void uuid_text(const uint8_t uuid[NODE_UUID_LEN], char buf_r[2 * NODE_UUID_LEN + 1])
{
    for (int i = 0; i < NODE_UUID_LEN; i++)
        snprintf(buf_r + 2 * i, 3, "%02x", uuid[i]);
}

bool peers_cert_fits(struct peer_link *link, const struct peer_member *m)
{
    const char *name = conn_peer_cert(link->c);
    if (name && strcmp(name, m->who.cert_name) == 0)
        return true;
    if (link->accepted)
        peers_log(link->p, (struct peer_member *)m, NULL, CAUSE_CERT, LOGGER_WARN,
                  "refused a connection from %s that says it is member %" PRIu64 ": its certificate is named \"%s\", the member's \"%s\". "
                  "Give that host its own certificate; a renewed certificate must keep its name",
                  conn_peer_text(link->c), m->who.id, name ? name : "", m->who.cert_name);
    else
        peers_log(link->p, (struct peer_member *)m, NULL, CAUSE_CERT, LOGGER_WARN,
                  "member %" PRIu64 " at %s shows a certificate named \"%s\", expected \"%s\". Give that host the certificate of this name, or correct the member's address",
                  m->who.id, conn_peer_text(link->c), name ? name : "", m->who.cert_name);
    return false;
}

/* What a peer says of itself and is told to clients; "" where it says nothing, or what it can't mean. */
static const char *word_of(const char *s, size_t len_max)
{
    if (!s || strlen(s) > len_max)
        return "";
    for (const char *p = s; *p; p++)
        if (*p <= 0x20 || *p > 0x7e)
            return "";
    return s;
}

static int identity_check(struct peer_link *link, const Raftdir__Peer__Frame *f, struct peer_member **member_r)
{
    struct peers *p = link->p;
    const Raftdir__Peer__Hello *h = f->hello;
    const char *who = conn_peer_text(link->c), *cert = conn_peer_cert(link->c);
    struct peer_member *m = link->accepted ? peers_find(p, f->from) : link->m;
    if (f->version != PEER_FRAME_VERSION || h->log_version != LOG_ENTRY_VERSION) {
        peers_log(p, m, who, CAUSE_VERSION, LOGGER_WARN,
                  "%s (certificate \"%s\") speaks frame version %u and log version %u, this build %u and %u: run releases that fit each other", who, cert,
                  f->version, h->log_version, (unsigned)PEER_FRAME_VERSION, (unsigned)LOG_ENTRY_VERSION);
        return RAFTDIR_EVERSION;
    }
    if (f->cluster_id != p->o.cluster_id) {
        peers_log(p, m, who, CAUSE_CLUSTER, LOGGER_WARN,
                  "%s (certificate \"%s\") belongs to cluster %016" PRIx64 ", this node to %016" PRIx64 ": one of the two has a wrong address or data directory", who,
                  cert, f->cluster_id, p->o.cluster_id);
        return RAFTDIR_EFOREIGN;
    }
    if (f->incarnation != p->o.incarnation) {
        peers_log(p, m, who, CAUSE_INCARNATION, LOGGER_WARN,
                  "%s (certificate \"%s\") is of incarnation %" PRIu64 " of the cluster, this node of %" PRIu64
                  ": the older one was left behind by a restore or a forced recovery; wipe it and let it join anew",
                  who, cert, f->incarnation, p->o.incarnation);
        return RAFTDIR_EFOREIGN;
    }
    if (f->to != p->o.self_id) {
        peers_log(p, m, who, CAUSE_TO, LOGGER_WARN,
                  "%s (certificate \"%s\", member %" PRIu64 ") wants to speak to member %" PRIu64 ", but this is member %" PRIu64 ": the address of member %" PRIu64
                  " leads here; correct peer_advertise and the member's address",
                  who, cert, f->from, f->to, p->o.self_id, f->to);
        return RAFTDIR_EFOREIGN;
    }
    if (!m) {
        peers_log(p, NULL, who, CAUSE_STRANGER, LOGGER_WARN,
                  "%s (certificate \"%s\") says it is member %" PRIu64 ", which this node doesn't know. If this lasts: it was removed, or never added with "
                  "\"raftdirctl cluster join\"",
                  who, cert, f->from);
        if (p->o.removed && p->o.removed(p->o.data, f->from))
            peers_hello_send(p, link->c, f->from, true); /* a courtesy: it asks again if this is lost */
        return RAFTDIR_EPERM;
    }
    if (!link->accepted && f->from != m->who.id) {
        peers_log(p, m, NULL, CAUSE_STRANGER, LOGGER_WARN, "at %s, the address of member %" PRIu64 ", member %" PRIu64 " answers: correct the members' addresses", who,
                  m->who.id, f->from);
        return RAFTDIR_EFOREIGN;
    }
    if (!peers_cert_fits(link, m))
        return RAFTDIR_EAUTH;
    if (h->uuid.len != NODE_UUID_LEN || memcmp(h->uuid.data, m->who.uuid, NODE_UUID_LEN) != 0) {
        char theirs[2 * NODE_UUID_LEN + 1] = "malformed", ours[2 * NODE_UUID_LEN + 1];
        if (h->uuid.len == NODE_UUID_LEN)
            uuid_text(h->uuid.data, theirs);
        uuid_text(m->who.uuid, ours);
        peers_log(p, m, NULL, CAUSE_UUID, LOGGER_WARN,
                  "%s says it is member %" PRIu64 " but has another data directory (UUID %s, the member's is %s): a wiped or foreign one can't act as this "
                  "member; remove the member and let the node join anew",
                  who, m->who.id, theirs, ours);
        return RAFTDIR_EFOREIGN;
    }
    if (!link->accepted && h->removed) {
        if (p->o.on_removed)
            p->o.on_removed(p->o.data, m->who.id);
        return RAFTDIR_EPERM;
    }
    *member_r = m;
    return 0;
}

int peers_hello_check(struct peer_link *link, const uint8_t *frame, size_t len, struct peer_member **member_r, Raftdir__Peer__Frame **image_r)
{
    struct peers *p = link->p;
    struct peer_frame_head head;
    Raftdir__Peer__Frame *f = NULL;
    if (len <= PEER_HELLO_LEN_MAX && peer_frame_head(frame, len, &head) && head.body == RAFTDIR__PEER__FRAME__BODY_HELLO)
        f = raftdir__peer__frame__unpack(NULL, len, frame);
    if (!f || f->body_case != RAFTDIR__PEER__FRAME__BODY_HELLO || !f->hello) {
        if (f)
            raftdir__peer__frame__free_unpacked(f, NULL);
        peers_log(p, link->m, conn_peer_text(link->c), CAUSE_GARBAGE, LOGGER_WARN,
                  "%s (certificate \"%s\") doesn't begin with a Hello of raftdir's peer protocol: does its address lead to another kind of listener, or is it "
                  "another release?",
                  conn_peer_text(link->c), conn_peer_cert(link->c));
        return RAFTDIR_EPROTO;
    }
    int rc = identity_check(link, f, member_r);
    *image_r = NULL;
    if (!rc && link->accepted && f->hello->image) { /* from a thread that only fetches the image; it doesn't know the endpoint */
        *image_r = f;
        return 0;
    }
    if (!rc) {
        struct peer_member *m = *member_r;
        const char *endpoint = word_of(f->hello->client_endpoint, PEER_ENDPOINT_LEN_MAX), *site = word_of(f->hello->site, SITE_LEN_MAX);
        if (strcmp(m->client_endpoint, endpoint) != 0 || strcmp(m->site, site) != 0) {
            snprintf(m->client_endpoint, sizeof m->client_endpoint, "%s", endpoint);
            snprintf(m->site, sizeof m->site, "%s", site);
            if (p->o.on_endpoint)
                p->o.on_endpoint(p->o.data, m->who.id, m->client_endpoint, m->site);
        }
    }
    raftdir__peer__frame__free_unpacked(f, NULL);
    return rc;
}
