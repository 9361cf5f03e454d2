/* ctl_main.c - raftdirctl: the commands and their options. client/README.md tells how it is used.
 *
 * Options may stand anywhere. One table has all of them; each command says which it takes, so that one that does nothing is an error. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "ctl.h"

#define LOCATION_TEXT "  LOCATION is SERVER!PARTITION, or SERVER alone.\n"

const struct ctl_command ctl_commands[] = {
    {"cluster bootstrap", ctl_cluster_bootstrap, 0, 0, "", "make the node at -e the first of a new cluster", "", NULL},
    {"cluster join", ctl_cluster_join, 0, 0, "--via ENDPOINT", "make the node at -e a member of the cluster at --via", "via,promote,replace",
     "  The new node becomes a standby; with --promote it votes as soon as it has caught up. May be repeated: what is done stays done.\n"
     "  --replace MEMBER: it takes the place of that member, which is removed when the new one has caught up.\n"},
    {"cluster rebuild", ctl_cluster_rebuild, 0, 0, "--via ENDPOINT", "empty a failed or removed node (-e) and fetch everything anew", "via,standby,force,yes",
     "  The node's old id is removed, its data deleted, and it joins as a new member: a voter, unless it was a standby or --standby says so.\n"
     "  Asks on a terminal unless --yes. --force: also a node that is in order. May be repeated: what is done stays done.\n"},
    {"cluster status", ctl_cluster_status, 0, 0, "", "all nodes, who leads, how far behind", "", "  Exit code 3 when no node with a quorum answers.\n"},
    {"member list", ctl_member_list, 0, 0, "", "the members as the leader sees them", "", NULL},
    {"member add", ctl_member_add, 3, 3, "ADDRESS CERT-NAME UUID", "add a standby by hand (`cluster join` does this and more)", "", NULL},
    {"member promote", ctl_member_promote, 1, 1, "MEMBER", "let a standby vote", "", "  MEMBER is an id, or the name in the member's certificate.\n"},
    {"member demote", ctl_member_demote, 1, 1, "MEMBER", "a voter becomes a standby", "",
     "  MEMBER is an id, or the name in the member's certificate. The leader can't demote itself: `raftdirctl leader transfer` first.\n"},
    {"member remove", ctl_member_remove, 1, 1, "MEMBER", "remove a member for good", "yes",
     "  MEMBER is an id, or the name in the member's certificate. The leader can't remove itself: `raftdirctl leader transfer` first.\n"},
    {"leader show", ctl_leader_show, 0, 0, "", "who leads", "", NULL},
    {"leader transfer", ctl_leader_transfer, 0, 1, "[MEMBER]", "let another voter lead; without MEMBER the one with the most", "", NULL},
    {"lookup", ctl_lookup, 1, 1000, "NAME...", "where mailboxes are, and all their fields", "uniqueid-key,user",
     "  --user: NAME is a user (john.doe@example.org), and the INBOX is meant. --by-uniqueid: NAME is a uniqueid.\n"},
    {"list", ctl_list, 0, 1, "[PATTERN]", "mailboxes in Cyrus' order", "prefix,server,partition,after,limit,reserved",
     "  PATTERN: % stands for one level, * for anything.\n"},
    {"visible", ctl_visible, 1, 1, "USER", "the mailboxes that a user has rights on", "groups,rights,pattern,after,limit",
     "  USER as people write it: john.doe@example.org. --rights: any of these letters (default l).\n"},
    {"rights", ctl_rights, 2, 2, "NAME USER", "a user's effective rights on a mailbox", "groups", NULL},
    {"create", ctl_create, 2, 2, "NAME LOCATION", "create a mailbox; the name must be free", "mailbox,token,epoch", LOCATION_TEXT},
    {"put", ctl_put, 2, 2, "NAME LOCATION", "make a mailbox exactly this, whatever was there", "mailbox,if,epoch", LOCATION_TEXT},
    {"update", ctl_update, 1, 1, "NAME", "change the fields that are given", "mailbox,if,epoch", NULL},
    {"reserve", ctl_reserve, 2, 2, "NAME LOCATION", "hold a name", "token,ttl,epoch", LOCATION_TEXT},
    {"activate", ctl_activate, 2, 2, "NAME LOCATION", "make a reserved or absent name a mailbox", "mailbox,token,take-over,epoch", LOCATION_TEXT},
    {"deactivate", ctl_deactivate, 1, 2, "NAME [LOCATION]", "make a mailbox a reservation", "token,epoch", LOCATION_TEXT},
    {"delete", ctl_delete, 1, 1, "NAME", "delete a mailbox", "subtree,yes,at,token,if,epoch",
     "  --subtree: and everything below it, atomically; asks on a terminal unless --yes. --at LOCATION: only if it is there.\n"},
    {"rename", ctl_rename, 2, 2, "FROM TO", "rename a mailbox", "subtree,at,if,epoch",
     "  --subtree: with everything below it, atomically. --at LOCATION: to that location.\n"},
    {"setacl", ctl_setacl, 2, 3, "NAME ACL | NAME IDENTIFIER RIGHTS", "set the whole ACL, or one identifier's rights", "if,epoch",
     "  ACL: \"anna lrswipkxtecda anyone lr\" (spaces or tabs). RIGHTS: letters; \"+lr\" adds, \"-s\" takes away, \"\" removes the identifier.\n"},
    {"move begin", ctl_move_begin, 2, 2, "NAME LOCATION", "begin a move to another location", "subtree,if,epoch", LOCATION_TEXT},
    {"move commit", ctl_move_commit, 1, 1, "NAME", "the mailbox is there now", "subtree,if,epoch", NULL},
    {"move abort", ctl_move_abort, 1, 1, "NAME", "the mailbox stays where it was", "subtree,if,epoch", NULL},
    {"batch", ctl_batch, 0, 1, "[FILE]", "many changes as one: all of them happen, or none", "epoch",
     "  FILE (default: standard input) has a JSON object a line: {\"op\":\"create\",\"name\":\"user.a\",\"server\":\"be1\",\"partition\":\"p1\",\"if\":\"absent\"}.\n"
     "  op: create put update reserve activate deactivate delete rename setacl move_begin move_commit move_abort noop.\n"
     "  Fields are those of `lookup --json`; beside them: token ttl_ms take_over subtree from to identifier rights,\n"
     "  and if: \"absent\", \"present\", {\"generation\":N}, or a list of {\"is\":\"absent\",\"name\":...}.\n"},
    {"import", ctl_import, 0, 1, "FILE|-|--mupdate HOST", "take over what `ctl_mboxlist -d` wrote, or what a running mupdate master has",
     "server,format,on-error,dry-run,resume,batch,window,mupdate,mupdate-user,mupdate-password-file,mupdate-mechanism,mupdate-tls,mupdate-ca,mupdate-unverified,follow,skip-server,limit",
     "  JSON of Cyrus 3.6 and later or the older text form, gzipped or not. --server NAME: for a backend's dump, which names no servers.\n"
     "  May be repeated: what is there already stays as it is. --on-error abort (default skip): stop at a malformed record.\n"
     "  --resume: compare with what is there first, and send only what differs. Exit code 5 when a malformed record was skipped.\n"
     "  --mupdate HOST[:PORT]: live from a master. Nothing is deleted here because it isn't there. --dry-run: the differences (--limit N rows of them, default 1,000; 0: all).\n"
     "  --follow: go on with what changes there until stopped. --skip-server NAME (repeatable): talks to raftdir already: what the master says of it is ignored,\n"
     "  and what raftdir has there is never changed. Logs in as --mupdate-user with the password in --mupdate-password-file or RAFTDIR_MUPDATE_PASSWORD.\n"
     "  --mupdate-tls auto (default: STARTTLS where offered), starttls, implicit, no; --mupdate-ca FILE, or --mupdate-unverified for any certificate.\n"},
    {"export", ctl_export, 0, 0, "", "write what `ctl_mboxlist -u` takes", "format,exact,output,prefix,pattern,server,partition,local-server",
     "  --format json (default) or legacy (for `ctl_mboxlist -u -L`). Cyrus needs a uniqueid: one is made up where there is none, unless --exact.\n"
     "  --local-server NAME: mailboxes there are written without a server, as that backend's own dump has them.\n"},
    {"verify", ctl_verify, 0, 0, "", "every node re-reads and compares everything", "", "  Exit code 6 when a node finds a problem or nodes differ.\n"},
    {"watch", ctl_watch, 0, 0, "", "changes as they happen, one a line", "prefix,server,partition,from,limit,reserved",
     "  Each line begins with the position behind the event; --from POSITION goes on there, at any node, and tells nothing twice. To begin with what is there:\n"
     "  `raftdirctl list --json` ends with its position. --limit N: end after N events. Exit code 1: the events from there on are no longer kept.\n"},
    {"mupdate sessions", ctl_mupdate_sessions, 0, 0, "", "who is connected to the nodes' MUPDATE listeners", "",
     "  BEHIND: log entries published since what an updating session was sent last. QUEUED: bytes that wait for it. Exit code 3 when a node didn't answer.\n"},
    {"compact", ctl_compact, 0, 1, "[NODE]", "a node moves to a fresh copy of its state", "",
     "  NODE: a name or id; default: the node that is asked. The file of the state never shrinks by itself: this gives the disk back what is free inside.\n"},
    {"barrier", ctl_barrier, 0, 1, "[INDEX]", "wait until the node has what is done by now, or INDEX", "", NULL},
    {NULL, NULL, 0, 0, NULL, NULL, NULL, NULL}};

/* --- Options ------------------------------------------------------------------------------------------------------------- */

enum {
    OPT_CA = 256,
    OPT_CERT,
    OPT_KEY,
    OPT_JSON,
    OPT_COLOR,
    OPT_LEVEL,
    OPT_MAX_AGE,
    OPT_LOCAL_DIR,
    OPT_VERSION,
    OPT_FIRST_OF_COMMANDS,
    OPT_BY_UNIQUEID = OPT_FIRST_OF_COMMANDS,
    OPT_USER,
    OPT_RESERVED,
    OPT_GROUPS,
    OPT_RIGHTS,
    OPT_PATTERN,
    OPT_PREFIX,
    OPT_SERVER,
    OPT_PARTITION,
    OPT_AFTER,
    OPT_LIMIT,
    OPT_FROM,
    OPT_SUBTREE,
    OPT_TAKE_OVER,
    OPT_IF_ABSENT,
    OPT_IF_PRESENT,
    OPT_IF_GENERATION,
    OPT_TOKEN,
    OPT_AT,
    OPT_ACL,
    OPT_MBTYPE,
    OPT_UNIQUEID,
    OPT_SPECIALUSE,
    OPT_JMAPID,
    OPT_NAME_HISTORY,
    OPT_MTIME,
    OPT_UIDVALIDITY,
    OPT_CREATEDMODSEQ,
    OPT_FOLDERMODSEQ,
    OPT_EPOCH,
    OPT_TTL,
    OPT_VIA,
    OPT_PROMOTE,
    OPT_REPLACE,
    OPT_STANDBY,
    OPT_FORCE,
    OPT_FORMAT,
    OPT_ON_ERROR,
    OPT_DRY_RUN,
    OPT_RESUME,
    OPT_EXACT,
    OPT_LOCAL_SERVER,
    OPT_BATCH,
    OPT_WINDOW,
    OPT_MUPDATE,
    OPT_MUPDATE_USER,
    OPT_MUPDATE_PASSWORD_FILE,
    OPT_MUPDATE_MECHANISM,
    OPT_MUPDATE_TLS,
    OPT_MUPDATE_CA,
    OPT_MUPDATE_UNVERIFIED,
    OPT_FOLLOW,
    OPT_SKIP_SERVER
};

static const struct option options[] = {{"endpoint", required_argument, NULL, 'e'},
                                        {"timeout", required_argument, NULL, 't'},
                                        {"help", no_argument, NULL, 'h'},
                                        {"yes", no_argument, NULL, 'y'},
                                        {"output", required_argument, NULL, 'o'},
                                        {"ca", required_argument, NULL, OPT_CA},
                                        {"cert", required_argument, NULL, OPT_CERT},
                                        {"key", required_argument, NULL, OPT_KEY},
                                        {"json", no_argument, NULL, OPT_JSON},
                                        {"color", required_argument, NULL, OPT_COLOR},
                                        {"level", required_argument, NULL, OPT_LEVEL},
                                        {"max-age", required_argument, NULL, OPT_MAX_AGE},
                                        {"local-dir", required_argument, NULL, OPT_LOCAL_DIR},
                                        {"version", no_argument, NULL, OPT_VERSION},
                                        {"by-uniqueid", no_argument, NULL, OPT_BY_UNIQUEID},
                                        {"user", no_argument, NULL, OPT_USER},
                                        {"reserved", no_argument, NULL, OPT_RESERVED},
                                        {"groups", required_argument, NULL, OPT_GROUPS},
                                        {"rights", required_argument, NULL, OPT_RIGHTS},
                                        {"pattern", required_argument, NULL, OPT_PATTERN},
                                        {"prefix", required_argument, NULL, OPT_PREFIX},
                                        {"server", required_argument, NULL, OPT_SERVER},
                                        {"partition", required_argument, NULL, OPT_PARTITION},
                                        {"after", required_argument, NULL, OPT_AFTER},
                                        {"limit", required_argument, NULL, OPT_LIMIT},
                                        {"from", required_argument, NULL, OPT_FROM},
                                        {"subtree", no_argument, NULL, OPT_SUBTREE},
                                        {"take-over", no_argument, NULL, OPT_TAKE_OVER},
                                        {"if-absent", no_argument, NULL, OPT_IF_ABSENT},
                                        {"if-present", no_argument, NULL, OPT_IF_PRESENT},
                                        {"if-generation", required_argument, NULL, OPT_IF_GENERATION},
                                        {"token", required_argument, NULL, OPT_TOKEN},
                                        {"at", required_argument, NULL, OPT_AT},
                                        {"acl", required_argument, NULL, OPT_ACL},
                                        {"mbtype", required_argument, NULL, OPT_MBTYPE},
                                        {"uniqueid", required_argument, NULL, OPT_UNIQUEID},
                                        {"specialuse", required_argument, NULL, OPT_SPECIALUSE},
                                        {"jmapid", required_argument, NULL, OPT_JMAPID},
                                        {"name-history", required_argument, NULL, OPT_NAME_HISTORY},
                                        {"mtime", required_argument, NULL, OPT_MTIME},
                                        {"uidvalidity", required_argument, NULL, OPT_UIDVALIDITY},
                                        {"createdmodseq", required_argument, NULL, OPT_CREATEDMODSEQ},
                                        {"foldermodseq", required_argument, NULL, OPT_FOLDERMODSEQ},
                                        {"epoch", required_argument, NULL, OPT_EPOCH},
                                        {"ttl", required_argument, NULL, OPT_TTL},
                                        {"via", required_argument, NULL, OPT_VIA},
                                        {"promote", no_argument, NULL, OPT_PROMOTE},
                                        {"replace", required_argument, NULL, OPT_REPLACE},
                                        {"standby", no_argument, NULL, OPT_STANDBY},
                                        {"force", no_argument, NULL, OPT_FORCE},
                                        {"format", required_argument, NULL, OPT_FORMAT},
                                        {"on-error", required_argument, NULL, OPT_ON_ERROR},
                                        {"dry-run", no_argument, NULL, OPT_DRY_RUN},
                                        {"resume", no_argument, NULL, OPT_RESUME},
                                        {"exact", no_argument, NULL, OPT_EXACT},
                                        {"local-server", required_argument, NULL, OPT_LOCAL_SERVER},
                                        {"batch", required_argument, NULL, OPT_BATCH},
                                        {"window", required_argument, NULL, OPT_WINDOW},
                                        {"mupdate", required_argument, NULL, OPT_MUPDATE},
                                        {"mupdate-user", required_argument, NULL, OPT_MUPDATE_USER},
                                        {"mupdate-password-file", required_argument, NULL, OPT_MUPDATE_PASSWORD_FILE},
                                        {"mupdate-mechanism", required_argument, NULL, OPT_MUPDATE_MECHANISM},
                                        {"mupdate-tls", required_argument, NULL, OPT_MUPDATE_TLS},
                                        {"mupdate-ca", required_argument, NULL, OPT_MUPDATE_CA},
                                        {"mupdate-unverified", no_argument, NULL, OPT_MUPDATE_UNVERIFIED},
                                        {"follow", no_argument, NULL, OPT_FOLLOW},
                                        {"skip-server", required_argument, NULL, OPT_SKIP_SERVER},
                                        {NULL, 0, NULL, 0}};

/* What the words in ctl_command.options stand for, where they aren't an option's own name. */
static const struct {
    const char *word, *stands_for;
} groups[] = {
    {"mailbox", ",acl,mbtype,uniqueid,specialuse,jmapid,name-history,mtime,uidvalidity,createdmodseq,foldermodseq,"},
    {"if", ",if-absent,if-present,if-generation,"},
    {"uniqueid-key", ",by-uniqueid,"},
};

static const char *option_name(int o)
{
    for (const struct option *p = options; p->name; p++)
        if (p->val == o)
            return p->name;
    return "?";
}

static bool listed(const char *list, const char *word)
{
    size_t len = strlen(word);
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        if (n == len && !memcmp(p, word, len))
            return true;
        p += n + (p[n] == ',');
    }
    return false;
}

static bool takes(const struct ctl_command *command, const char *option)
{
    if (listed(command->options, option))
        return true;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (listed(command->options, groups[i].word) && listed(groups[i].stands_for, option))
            return true;
    return false;
}

static void print_options(const struct ctl_command *command)
{
    bool any = false;
    for (const struct option *p = options; p->name; p++)
        if ((p->val >= OPT_FIRST_OF_COMMANDS || p->val == 'y' || p->val == 'o') && takes(command, p->name)) {
            printf("%s --%s%s", any ? "" : "Options:", p->name, p->has_arg ? "=..." : "");
            any = true;
        }
    if (any)
        putchar('\n');
}

static const char global_help[] =
    "Options:\n"
    "  -e, --endpoint LIST   where nodes are: unix:/PATH, tls:HOST:PORT[=CERT-NAME]; repeatable, or separated by commas\n"
    "                        (RAFTDIR_ENDPOINTS; default unix:/run/raftdir/raftdird.sock)\n"
    "      --ca, --cert, --key FILE   for tls: endpoints (RAFTDIR_CA, RAFTDIR_CERT, RAFTDIR_KEY)\n"
    "  -t, --timeout SECONDS how long to try (default 10)\n"
    "      --level LEVEL     of reads: linearizable (default: all that anybody was told to be done), local (whatever the node has;\n"
    "                        answered without a quorum), session (for the library: here as local, but \"not there\" only from a fresh state)\n"
    "      --max-age SECONDS reads are answered only from a state that is at most so old (default level: session)\n"
    "      --local-dir DIR   data directory of this host's node: reads at level local or session take its state directly, without asking\n"
    "                        the node (RAFTDIR_LOCAL; default level with the option: session)\n"
    "      --json            one JSON object, errors too\n"
    "      --color WHEN      auto (default), always, never\n"
    "  -h, --help            of the command, when there is one\n"
    "      --version\n"
    "Exit codes: 0 done, 1 the directory says no, 2 usage, 3 can't tell (no quorum, unreachable, uncertain), 4 not permitted,\n"
    "            5 bad input data, 6 internal or corrupt\n";

static void print_help(void)
{
    printf("Usage: raftdirctl [OPTIONS] COMMAND [ARGUMENTS]\n\nCommands:\n");
    for (const struct ctl_command *k = ctl_commands; k->words; k++) {
        char line[120];
        snprintf(line, sizeof line, "%s %s", k->words, k->args);
        printf("  %-40s %s%s\n", line, strlen(line) > 40 ? "\n                                           " : "", k->summary);
    }
    printf("\n%s", global_help);
}

static void print_command_help(const struct ctl_command *k)
{
    printf("Usage: raftdirctl [OPTIONS] %s%s%s\n  %s\n%s", k->words, *k->args ? " " : "", k->args, k->summary, k->text ? k->text : "");
    print_options(k);
    printf("Those of all commands: raftdirctl --help\n");
}

/* --- Mistakes ------------------------------------------------------------------------------------------------------------------ */

int ctl_usage_error(struct ctl *c, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c->o.json) {
        json_t *o = json_object();
        json_object_set_new(o, "error", ctl_error_json(RAFTDIR_EINVAL, text));
        ctl_json_print(o);
        return EXIT_USAGE;
    }
    fprintf(stderr, "%sraftdirctl: %s%s\n", ctl_paint(c->color_err, COLOR_BAD), text, ctl_paint(c->color_err, COLOR_NONE));
    if (c->command)
        fprintf(stderr, "  usage: raftdirctl %s%s%s\n  more: raftdirctl %s --help\n", c->command->words, *c->command->args ? " " : "", c->command->args,
                c->command->words);
    else
        fprintf(stderr, "  all commands: raftdirctl --help\n");
    return EXIT_USAGE;
}

static unsigned least(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* Edits (insert, delete, replace) from one word to another; both are short. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[64];
    size_t la = strlen(a), lb = strlen(b);
    if (la > 40 || lb > 40)
        return 99;
    for (unsigned j = 0; j <= lb; j++)
        row[j] = j;
    for (size_t i = 1; i <= la; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= lb; j++) {
            unsigned replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = least(replaced, least(row[j], row[j - 1]) + 1);
        }
    }
    return row[lb];
}

static int unknown_command(struct ctl *c)
{
    char given[128];
    const char *best = NULL;
    unsigned best_d = 99;
    snprintf(given, sizeof given, "%s%s%s", c->args[0], c->args_n > 1 ? " " : "", c->args_n > 1 ? c->args[1] : "");
    /* The first word of a pair alone: what can follow it. */
    char following[256] = "";
    for (const struct ctl_command *k = ctl_commands; k->words; k++) {
        size_t len = strlen(c->args[0]);
        if (!strncmp(k->words, c->args[0], len) && k->words[len] == ' ') {
            snprintf(following + strlen(following), sizeof following - strlen(following), "%s%s", *following ? ", " : "", k->words + len + 1);
        }
        unsigned d = distance(given, k->words), d1 = strchr(k->words, ' ') ? 99 : distance(c->args[0], k->words);
        if (least(d, d1) < best_d) {
            best_d = least(d, d1);
            best = k->words;
        }
        /* The second word alone ("status"). */
        const char *second = strchr(k->words, ' ');
        if (second && (d = distance(c->args[0], second + 1)) + 1 < best_d) {
            best_d = d + 1;
            best = k->words;
        }
    }
    if (*following) {
        size_t len = strlen(c->args[0]);
        const char *second = c->args_n > 1 && best && !strncmp(best, c->args[0], len) ? strchr(best, ' ') : NULL;
        if (second && distance(c->args[1], second + 1) <= 1 + strlen(second + 1) / 3)
            return ctl_usage_error(c, "no command \"%s\"; did you mean \"%s\"?", given, best);
        return ctl_usage_error(c, "\"%s\" wants one of: %s", c->args[0], following);
    }
    if (best && best_d <= 1 + strlen(best) / 3)
        return ctl_usage_error(c, "no command \"%s\"; did you mean \"%s\"?", given, best);
    return ctl_usage_error(c, "no command \"%s\"", given);
}

static bool number(const char *s, uint64_t *n_r)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno || end == s || *end || *s == '-')
        return false;
    *n_r = v;
    return true;
}

/* --- Main ------------------------------------------------------------------------------------------------------------------------- */

static int add_endpoint(struct ctl *c, const char *text)
{
    char *joined;
    if (asprintf(&joined, "%s%s%s", c->o.endpoints ? c->o.endpoints : "", c->o.endpoints ? "," : "", text) < 0) {
        fputs("raftdirctl: out of memory\n", stderr);
        exit(EXIT_INTERNAL);
    }
    free(c->o.endpoints);
    c->o.endpoints = joined;
    return 0;
}

/* 0, or an exit code with the error told. */
static int take_option(struct ctl *c, int o, const char *arg)
{
    struct ctl_options *x = &c->o;
    uint64_t n = 0;
    switch (o) {
    case OPT_LIMIT:
    case OPT_IF_GENERATION:
    case OPT_MTIME:
    case OPT_UIDVALIDITY:
    case OPT_CREATEDMODSEQ:
    case OPT_FOLDERMODSEQ:
    case OPT_EPOCH:
    case OPT_BATCH:
    case OPT_WINDOW:
        if (!number(arg, &n))
            return ctl_usage_error(c, "--%s wants a number, not \"%s\"", option_name(o), arg);
    }
    switch (o) {
    case 'e':
        return add_endpoint(c, arg);
    case 't':
    case OPT_MAX_AGE:
    case OPT_TTL: {
        char *end;
        double s = strtod(arg, &end);
        if (end == arg || *end || !(s > 0) || s > 86400)
            return ctl_usage_error(c, "--%s wants seconds, not \"%s\"", option_name(o), arg);
        if (o == 't')
            x->timeout_ms = s * 1000 < 1 ? 1 : (unsigned)(s * 1000);
        else if (o == OPT_MAX_AGE)
            x->max_age_ms = s * 1000 < 1 ? 1 : (unsigned)(s * 1000);
        else
            x->ttl_ms = (uint64_t)(s * 1000);
        break;
    }
    case 'h': x->help = true; break;
    case 'y': x->yes = true; break;
    case 'o': x->output = arg; break;
    case OPT_CA: x->ca = arg; break;
    case OPT_CERT: x->cert = arg; break;
    case OPT_KEY: x->key = arg; break;
    case OPT_JSON: x->json = true; break;
    case OPT_COLOR:
        if (!strcmp(arg, "always"))
            c->color = c->color_err = true;
        else if (!strcmp(arg, "never"))
            c->color = c->color_err = false;
        else if (strcmp(arg, "auto"))
            return ctl_usage_error(c, "--color wants auto, always or never, not \"%s\"", arg);
        break;
    case OPT_LEVEL:
        x->level = !strcmp(arg, "local") ? RAFTDIR_LOCAL : !strcmp(arg, "session") ? RAFTDIR_SESSION : !strcmp(arg, "linearizable") ? RAFTDIR_LINEARIZABLE : 0;
        if (!x->level)
            return ctl_usage_error(c, "--level wants local, session or linearizable, not \"%s\"", arg);
        break;
    case OPT_LOCAL_DIR: x->local_dir = arg; break;
    case OPT_BY_UNIQUEID: x->by_uniqueid = true; break;
    case OPT_USER: x->by_user = true; break;
    case OPT_RESERVED: x->reserved = true; break;
    case OPT_GROUPS: x->groups = arg; break;
    case OPT_RIGHTS: x->rights = arg; break;
    case OPT_PATTERN: x->pattern = arg; break;
    case OPT_PREFIX: x->prefix = arg; break;
    case OPT_SERVER: x->server = arg; break;
    case OPT_PARTITION: x->partition = arg; break;
    case OPT_AFTER: x->after = arg; break;
    case OPT_FROM: x->from = arg; break;
    case OPT_LIMIT:
        x->limit = n;
        x->has_limit = true;
        break;
    case OPT_SUBTREE: x->subtree = true; break;
    case OPT_TAKE_OVER: x->take_over = true; break;
    case OPT_IF_ABSENT: x->if_absent = true; break;
    case OPT_IF_PRESENT: x->if_present = true; break;
    case OPT_IF_GENERATION:
        x->if_generation = true;
        x->generation = n;
        break;
    case OPT_TOKEN: x->token = arg; break;
    case OPT_AT: x->location = arg; break;
    case OPT_ACL: x->acl = arg; break;
    case OPT_MBTYPE: x->mbtype = arg; break;
    case OPT_UNIQUEID: x->uniqueid = arg; break;
    case OPT_SPECIALUSE: x->specialuse = arg; break;
    case OPT_JMAPID: x->jmapid = arg; break;
    case OPT_NAME_HISTORY: x->name_history = arg; break;
    case OPT_MTIME:
        x->mtime = n;
        x->fields |= RAFTDIR_F_MTIME;
        break;
    case OPT_UIDVALIDITY:
        x->uidvalidity = n;
        x->fields |= RAFTDIR_F_UIDVALIDITY;
        break;
    case OPT_CREATEDMODSEQ:
        x->createdmodseq = n;
        x->fields |= RAFTDIR_F_CREATEDMODSEQ;
        break;
    case OPT_FOLDERMODSEQ:
        x->foldermodseq = n;
        x->fields |= RAFTDIR_F_FOLDERMODSEQ;
        break;
    case OPT_EPOCH:
        x->has_epoch = true;
        x->epoch = n;
        break;
    case OPT_VIA: x->via = arg; break;
    case OPT_PROMOTE: x->promote = true; break;
    case OPT_REPLACE: x->replace = arg; break;
    case OPT_STANDBY: x->standby = true; break;
    case OPT_FORCE: x->force = true; break;
    case OPT_FORMAT: x->format = arg; break;
    case OPT_ON_ERROR: x->on_error = arg; break;
    case OPT_DRY_RUN: x->dry_run = true; break;
    case OPT_RESUME: x->resume = true; break;
    case OPT_EXACT: x->exact = true; break;
    case OPT_LOCAL_SERVER: x->local_server = arg; break;
    case OPT_BATCH:
        if (n < 1 || n > 4096)
            return ctl_usage_error(c, "--batch is 1 to 4096");
        x->batch = (unsigned)n;
        break;
    case OPT_WINDOW:
        if (n < 1 || n > 1024)
            return ctl_usage_error(c, "--window is 1 to 1024");
        x->window = (unsigned)n;
        break;
    case OPT_MUPDATE: x->mupdate = arg; break;
    case OPT_MUPDATE_USER: x->mupdate_user = arg; break;
    case OPT_MUPDATE_PASSWORD_FILE: x->mupdate_password_file = arg; break;
    case OPT_MUPDATE_MECHANISM: x->mupdate_mechanism = arg; break;
    case OPT_MUPDATE_TLS: x->mupdate_tls = arg; break;
    case OPT_MUPDATE_CA: x->mupdate_ca = arg; break;
    case OPT_MUPDATE_UNVERIFIED: x->mupdate_unverified = true; break;
    case OPT_FOLLOW: x->follow = true; break;
    case OPT_SKIP_SERVER:
        if (x->skip_servers_n == sizeof x->skip_servers / sizeof *x->skip_servers)
            return ctl_usage_error(c, "at most %zu times --skip-server", sizeof x->skip_servers / sizeof *x->skip_servers);
        if (!*arg)
            return ctl_usage_error(c, "--skip-server wants a server's name");
        x->skip_servers[x->skip_servers_n++] = arg;
        break;
    }
    return 0;
}

static const struct ctl_command *find_command(struct ctl *c)
{
    for (const struct ctl_command *k = ctl_commands; k->words; k++) {
        const char *space = strchr(k->words, ' ');
        size_t len = space ? (size_t)(space - k->words) : strlen(k->words);
        if (strlen(c->args[0]) != len || memcmp(c->args[0], k->words, len))
            continue;
        if (space && (c->args_n < 2 || strcmp(c->args[1], space + 1)))
            continue;
        int words = space ? 2 : 1;
        c->args += words;
        c->args_n -= words;
        return k;
    }
    return NULL;
}

static int run(struct ctl *c, int argc, char **argv)
{
    int given[64], given_n = 0, o, rc;
    bool no_color = getenv("NO_COLOR") && *getenv("NO_COLOR");
    c->color = !no_color && isatty(STDOUT_FILENO);
    c->color_err = !no_color && isatty(STDERR_FILENO);
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--json"))
            c->o.json = true; /* so that a mistake before it is told in JSON, too */
    opterr = 0;
    while ((o = getopt_long(argc, argv, ":e:t:hyo:", options, NULL)) != -1) {
        if (o == '?' || o == ':') {
            const char *word = argv[optind - 1];
            if (o == ':')
                return ctl_usage_error(c, "%s wants a value", word);
            for (int i = 1; optopt && optopt < 256 && i < optind; i++)
                if (!strcmp(argv[i], "setacl"))
                    return ctl_usage_error(c, "no option -%c; what begins with \"-\" needs \"--\" before it: setacl NAME IDENTIFIER -- -lr, setacl NAME -- -IDENTIFIER lr", optopt);
            if (optopt && optopt < 256)
                return ctl_usage_error(c, "no option -%c", optopt);
            const char *best = NULL;
            unsigned best_d = 99;
            for (const struct option *p = options; p->name && !strncmp(word, "--", 2); p++)
                if (distance(word + 2, p->name) < best_d) {
                    best_d = distance(word + 2, p->name);
                    best = p->name;
                }
            if (best && best_d <= 3)
                return ctl_usage_error(c, "no option %s; did you mean --%s?", word, best);
            return ctl_usage_error(c, "no option %s", word);
        }
        if (o == OPT_VERSION) {
            if (c->o.json)
                ctl_json_print(json_pack("{s:s}", "version", RAFTDIR_VERSION));
            else
                printf("raftdirctl %s\n", RAFTDIR_VERSION);
            return EXIT_DONE;
        }
        if ((rc = take_option(c, o, optarg)))
            return rc;
        if ((o >= OPT_FIRST_OF_COMMANDS || o == 'y' || o == 'o') && given_n < 64)
            given[given_n++] = o;
    }
    c->args = argv + optind;
    c->args_n = argc - optind;
    if (!c->args_n) {
        if (c->o.help) {
            print_help();
            return EXIT_DONE;
        }
        return ctl_usage_error(c, "a command is missing");
    }
    if (!(c->command = find_command(c))) {
        if (c->o.help || !strcmp(c->args[0], "help")) {
            print_help();
            return EXIT_DONE;
        }
        return unknown_command(c);
    }
    if (c->o.help) {
        print_command_help(c->command);
        return EXIT_DONE;
    }
    for (int i = 0; i < given_n; i++)
        if (!takes(c->command, option_name(given[i])) && given[i] != 'y')
            return ctl_usage_error(c, "\"%s\" has no option --%s", c->command->words, option_name(given[i]));
    if (c->args_n < c->command->args_min)
        return ctl_usage_error(c, "%s is missing", c->args_n ? "an argument" : c->command->args);
    if (c->args_n > c->command->args_max)
        return ctl_usage_error(c, "one argument too many: \"%s\"", c->args[c->command->args_max]);
    /* A variable of a script that is empty. An empty ACL, or empty rights, are meant. */
    int may_be_empty = c->command->run == ctl_setacl ? c->args_n - 1 : c->args_n;
    for (int i = 0; i < may_be_empty; i++)
        if (!*c->args[i])
            return ctl_usage_error(c, "argument %d is empty", i + 1);
    return c->command->run(c);
}

/* Whoever starts us with standard output or error closed must not find our text in the first socket or file that we open: it would get their number. */
static void reserve_standard_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDONLY); /* writing to it fails, so that lost output is told */
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

int main(int argc, char **argv)
{
    struct ctl c = {0};
    reserve_standard_streams();
    signal(SIGPIPE, SIG_DFL); /* `raftdirctl list | head` just ends */
    int rc = run(&c, argc, argv);
    raftdir_close(&c.d);
    free(c.o.endpoints);
    errno = 0;
    if (fflush(stdout) == EOF || ferror(stdout)) {
        /* When an earlier write failed, its reason is gone. */
        fprintf(stderr, "raftdirctl: the output is not whole: %s\n", errno ? strerror(errno) : "it could not be written");
        return rc ? rc : EXIT_INTERNAL;
    }
    return rc;
}
