/* ctl_open.c - the handle, and errors: what they mean for the exit code, and what to do next. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "ctl.h"

/* Without --timeout nobody wants to wait long for a socket that isn't there; with it, the user said how long. */
#define UNREACHABLE_MS 1000

int ctl_open_other(struct ctl *c, const char *endpoints, bool only_these, raftdir **d_r)
{
    struct raftdir_options o;
    char text[512];
    raftdir_options_init(&o);
    o.endpoints = endpoints;
    o.ca = c->o.ca;
    o.cert = c->o.cert;
    o.key = c->o.key;
    o.timeout_ms = c->o.timeout_ms;
    o.unreachable_ms = c->o.timeout_ms ? 0 : UNREACHABLE_MS;
    o.level = c->o.level;
    o.max_age_ms = c->o.max_age_ms;
    o.local_dir = c->o.local_dir; /* NULL: $RAFTDIR_LOCAL, else "": who types a command asks a node, unless it is said */
    if (!o.local_dir && !getenv("RAFTDIR_LOCAL"))
        o.local_dir = "";
    o.window = c->o.window;
    o.only_these = only_these;
    o.software = "raftdirctl " RAFTDIR_VERSION;
    int rc = raftdir_open(&o, d_r, text, sizeof text);
    /* A certificate that can't be read says nothing about any mailbox, and nothing about the directory. */
    if (rc == RAFTDIR_ENOTFOUND || rc == RAFTDIR_EIO)
        rc = RAFTDIR_EAUTH;
    return rc < 0 ? ctl_error(c, rc, "%s", text) : 0;
}

int ctl_open(struct ctl *c)
{
    return ctl_open_other(c, c->o.endpoints, false, &c->d);
}

/* A session is a handle, and each command has its own: at that level "no mailbox" could be said of what the command before has made. So not by default. */
int ctl_open_read(struct ctl *c)
{
    if (!c->o.level) /* who names an age or a directory doesn't mean a quorum's answer */
        c->o.level = c->o.max_age_ms || c->o.local_dir ? RAFTDIR_SESSION : RAFTDIR_LINEARIZABLE;
    return ctl_open(c);
}

int ctl_exit_code(int code)
{
    switch (code) {
    case 0:
        return EXIT_DONE;
    case RAFTDIR_ENOTFOUND:
    case RAFTDIR_EEXIST:
    case RAFTDIR_ECONFLICT:
    case RAFTDIR_ERESERVED:
    case RAFTDIR_EOTHERSTORE:
    case RAFTDIR_EFENCED:
    case RAFTDIR_EBUSY:
    case RAFTDIR_ECOMPACTED:
        return EXIT_NO;
    case RAFTDIR_EINVAL:
    case RAFTDIR_ENAME:
    case RAFTDIR_ETOOBIG:
    case RAFTDIR_EACL:
        return EXIT_USAGE;
    case RAFTDIR_EPERM:
    case RAFTDIR_EAUTH:
        return EXIT_DENIED;
    case RAFTDIR_ENOMEM:
    case RAFTDIR_EPROTO:
    case RAFTDIR_EVERSION:
    case RAFTDIR_EUNSUPPORTED: /* of a read, too: not "no such mailbox" */
    case RAFTDIR_EIO:
    case RAFTDIR_ECORRUPT:
        return EXIT_INTERNAL;
    }
    return EXIT_UNKNOWN;
}

static const char *hint(int code)
{
    switch (code) {
    case RAFTDIR_ENOQUORUM:
        return "`raftdirctl cluster status` shows which nodes are up; a majority of the voters must reach each other. Lookups with --level local still work";
    case RAFTDIR_EUNAVAIL:
        return "is raftdird running? Name its socket or address with -e, or in RAFTDIR_ENDPOINTS; more than one may be given";
    case RAFTDIR_ETIMEDOUT:
        return "the node is there but slow: `raftdirctl cluster status`; a longer --timeout may help";
    case RAFTDIR_ESTALE:
        return "`raftdirctl cluster status` shows who is cut off; without --max-age, and with --level local, a node answers with what it has and says how old that is";
    case RAFTDIR_EUNCERTAIN:
        return "look whether it has happened (`raftdirctl lookup NAME`) before doing it again";
    case RAFTDIR_EPERM:
        return "`raftdirctl cluster status` says who you are to the nodes; roles are in their configuration (allow sections, client_socket_mode)";
    case RAFTDIR_EAUTH:
        return "check --ca, --cert and --key (RAFTDIR_CA, RAFTDIR_CERT, RAFTDIR_KEY), and the clock";
    case RAFTDIR_ENOTREADY:
        return "this node is not part of a cluster: `raftdirctl cluster bootstrap` makes it the first node of a new one, "
               "`raftdirctl cluster join --via ENDPOINT` adds it to another's";
    case RAFTDIR_ENAME:
        return "names are in Cyrus' internal form: user.anna.Sent, example.org!user.anna; a dot within a part is written ^";
    case RAFTDIR_EACL:
        return "an ACL is identifier, rights, identifier, rights ...; rights are letters of lrswipkxtecdan0-9";
    case RAFTDIR_EBUSY:
        return "one membership change at a time: wait for the other, see `raftdirctl member list`";
    case RAFTDIR_ENOSPC:
        return "free space on the nodes' disks; deletes still work";
    case RAFTDIR_EFAILED:
        return "this node has stopped serving: see its log; ask another one with -e";
    case RAFTDIR_EFOREIGN:
        return "the node belongs to another cluster than the others that were asked: check -e";
    case RAFTDIR_EOTHERSTORE:
        return "the mailbox is active elsewhere: `raftdirctl lookup NAME`; --take-over if that is meant";
    case RAFTDIR_ERESERVED:
        return "wait until the reservation expires, or give its --token";
    case RAFTDIR_ECOMPACTED:
        return "`raftdirctl list --json` says what is there and ends with a position: watch from that one";
    case RAFTDIR_ECONFLICT:
        return "somebody changed it: look again, then decide";
    }
    return NULL;
}

json_t *ctl_error_json(int code, const char *message)
{
    json_t *e = json_object();
    json_object_set_new(e, "code", ctl_string(raftdir_errname(code)));
    json_object_set_new(e, "number", json_integer(code));
    json_object_set_new(e, "message", ctl_string(message));
    return e;
}

int ctl_error(struct ctl *c, int code, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    /* What is said already needs no more; least of all "bootstrap" for a node that was removed. */
    const char *next = strstr(text, "`raftdirctl") || strstr(text, "data_dir") || strstr(text, "data directory") ? NULL : hint(code);
    if (c->o.json) {
        json_t *o = json_object(), *e = ctl_error_json(code, text);
        if (next)
            json_object_set_new(e, "hint", ctl_string(next));
        json_object_set_new(o, "error", e);
        ctl_json_print(o);
    } else {
        fflush(stdout);
        fprintf(stderr, "%sraftdirctl: %s%s\n", ctl_paint(c->color_err, COLOR_BAD), text, ctl_paint(c->color_err, COLOR_NONE));
        if (next)
            fprintf(stderr, "  %s\n", next);
    }
    return ctl_exit_code(code);
}

int ctl_error_of(struct ctl *c, raftdir *d, int code, const char *what)
{
    const char *m = raftdir_message(d);
    if (!*m)
        m = raftdir_strerror(code);
    /* A name may be longer than the text has room for; what is wrong comes last and must be seen. */
    return what ? ctl_error(c, code, "%.300s%s: %s", what, strlen(what) > 300 ? "..." : "", m) : ctl_error(c, code, "%s", m);
}
