/* fuzz_cyrus_dump.c - dumps of ctl_mboxlist: whatever is read as a mailbox can be exported, and what was exported reads back as the same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "client/cyrus_dump.h"
#include "client/cyrus_export.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads a dump and exports its mailboxes; the text is given. `clean`: it must be read to its end without a malformed record. */
static char *again(const void *data, size_t size, int clean, size_t *len_r)
{
    int fd = memfd_create("dump", MFD_CLOEXEC);
    char path[64];
    MUST(fd >= 0 && write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct cyrus_dump_options options = {.default_server = clean ? NULL : "be1.test"};
    struct cyrus_export_options wanted = {.format = CYRUS_FORMAT_JSON, .exact = true};
    struct cyrus_dump *dump = NULL;
    struct cyrus_export *x = NULL;
    struct cyrus_record r;
    struct err err = {0};
    char *text = NULL;
    FILE *out = open_memstream(&text, len_r);
    MUST(out && cyrus_export_open(out, &wanted, &x, &err) == 0);
    int rc = cyrus_dump_open(path, &options, &dump, &err);
    if (rc) {
        MUST(!dump && err.text[0] && !clean);
    } else {
        while ((rc = cyrus_dump_next(dump, &r, &err)) == 1) {
            MUST(r.kind != CYRUS_MALFORMED || (r.err.code < 0 && r.err.text[0] && !clean));
            if (r.kind == CYRUS_MAILBOX) {
                MUST(r.name && r.mailbox && r.mailbox->location);
                MUST(cyrus_export_mailbox(x, r.mailbox, &err) == 0);
            }
        }
        MUST(rc == 0 || (err.text[0] && !clean));
        cyrus_dump_close(&dump);
    }
    MUST(cyrus_export_finish(x, &err) == 0);
    cyrus_export_close(&x);
    MUST(fclose(out) == 0);
    close(fd);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t first_len = 0, second_len = 0;
    char *first = again(data, size, 0, &first_len);
    char *second = again(first, first_len, 1, &second_len);
    MUST(first_len == second_len && memcmp(first, second, first_len) == 0);
    free(first);
    free(second);
    return 0;
}
