/* dump_roundtrip.c - reads a dump of Cyrus and writes it again: raftdir's reader and writer without a directory between them.
 *
 *   dump_roundtrip [-x] [-t] [-m] [-s SERVER] FILE
 *     -x  exact: no uniqueid is made up      -t  write the text form of ctl_mboxlist -u -L
 *     -s  the server of records that name none; they are written without it again
 *     -m  only what is a mailbox or reserved: what an import takes
 * Exit codes: 0 done, 1 malformed records were left out, 2 usage, 3 the dump or the output failed. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "client/cyrus_export.h"

static void warning(void *arg, uint64_t line, const char *text)
{
    (void)arg;
    fprintf(stderr, "line %llu: warning: %s\n", (unsigned long long)line, text);
}

int main(int argc, char **argv)
{
    struct cyrus_dump_options in = {.warning = warning};
    struct cyrus_export_options out = {.format = CYRUS_FORMAT_JSON};
    bool mailboxes_only = false;
    int opt;
    while ((opt = getopt(argc, argv, "xtms:")) != -1) {
        switch (opt) {
        case 'x': out.exact = true; break;
        case 't': out.format = CYRUS_FORMAT_TEXT; break;
        case 'm': mailboxes_only = true; break;
        case 's': in.default_server = out.local_server = optarg; break;
        default: return 2;
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "usage: dump_roundtrip [-x] [-t] [-m] [-s SERVER] FILE\n");
        return 2;
    }
    struct cyrus_dump *dump = NULL;
    struct cyrus_export *export = NULL;
    struct err err;
    struct cyrus_record record;
    unsigned long malformed = 0;
    int rc = cyrus_dump_open(argv[optind], &in, &dump, &err);
    if (!rc)
        rc = cyrus_export_open(stdout, &out, &export, &err);
    while (!rc && (rc = cyrus_dump_next(dump, &record, &err)) == 1) {
        rc = 0;
        if (record.kind == CYRUS_MALFORMED) {
            fprintf(stderr, "line %llu: %s: %s\n", (unsigned long long)record.line, record.name ? record.name : "?", record.err.text);
            malformed++;
        } else if (!mailboxes_only || record.kind == CYRUS_MAILBOX || record.kind == CYRUS_RESERVED) {
            rc = cyrus_export_mailbox(export, record.mailbox, &err);
        }
    }
    if (!rc)
        rc = cyrus_export_finish(export, &err);
    if (rc)
        fprintf(stderr, "dump_roundtrip: %s\n", err.text);
    cyrus_export_close(&export);
    cyrus_dump_close(&dump);
    return rc ? 3 : malformed ? 1 : 0;
}
