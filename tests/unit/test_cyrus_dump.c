/* test_cyrus_dump.c - Cyrus' dumps read and written: the kept dumps byte for byte, malformed rows, white space, truncation, gzip, both text forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <jansson.h>
#include <zlib.h>
#include "client/cyrus_export.h"
#include "client/cyrus_mbtype.h"

static char temp_path[] = "/tmp/raftdir-test-dump-XXXXXX";

static int make_temp(void **state)
{
    (void)state;
    int fd = mkstemp(temp_path);
    return fd < 0 || close(fd);
}

static int remove_temp(void **state)
{
    (void)state;
    return unlink(temp_path);
}

static void put_temp(const char *data, size_t len, bool gzip)
{
    if (gzip) {
        gzFile file = gzopen(temp_path, "wb");
        assert_non_null(file);
        assert_int_equal(gzwrite(file, data, (unsigned)len), (int)len);
        assert_int_equal(gzclose(file), Z_OK);
        return;
    }
    FILE *file = fopen(temp_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static char warnings[4096];

static void warning(void *arg, uint64_t line, const char *text)
{
    (void)arg;
    size_t len = strlen(warnings);
    snprintf(warnings + len, sizeof warnings - len, "%llu:%s\n", (unsigned long long)line, text);
}

/* What a dump is read as: one line a record, "LINE kind name" or "LINE bad name: reason"; then how it ended. */
static void describe(const struct cyrus_record *r, char *out, size_t size)
{
    static const char *const kinds[] = {"mailbox", "reserved", "tombstone", "intermediate", "bad"};
    size_t len = strlen(out);
    const Raftdir__Log__Mailbox *m = r->mailbox;
    if (!m)
        snprintf(out + len, size - len, "%llu bad %s: %s\n", (unsigned long long)r->line, r->name ? r->name : "?", r->err.text);
    else
        snprintf(out + len, size - len, "%llu %s %s\n", (unsigned long long)r->line, kinds[r->kind], m->name);
}

static int read_temp(const struct cyrus_dump_options *options, char *out, size_t size)
{
    struct cyrus_dump *dump = NULL;
    struct err err = {0};
    out[0] = warnings[0] = '\0';
    int rc = cyrus_dump_open(temp_path, options, &dump, &err);
    struct cyrus_record r;
    for (int guard = 0; !rc && guard < 100000; guard++) {
        rc = cyrus_dump_next(dump, &r, &err);
        if (rc <= 0)
            break;
        describe(&r, out, size);
        rc = 0;
    }
    size_t len = strlen(out);
    if (rc < 0) {
        snprintf(out + len, size - len, "%d %s\n", rc, err.text);
        /* Once it has failed, it goes on failing. */
        if (dump)
            assert_int_equal(cyrus_dump_next(dump, &r, &err), rc);
    } else {
        snprintf(out + len, size - len, "end\n");
    }
    cyrus_dump_close(&dump);
    assert_null(dump);
    return rc;
}

#define REC(name) "\"" name "\": {\"name\": \"" name "\", \"mbtype\": \"e\", \"partition\": \"p\", \"server\": \"s\", \"acl\": {}, \"name_history\": []}"
#define REC_WITH(name, fields) "\"" name "\": {\"partition\": \"p\", \"server\": \"s\", " fields "}"

struct row {
    const char *input;
    const char *wanted; /* as many lines; the parts of each, separated by '|', have to be there in this order */
    int rc;
};

static unsigned lines(const char *s)
{
    unsigned n = 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

static void run_rows(const struct row *rows, size_t n, const struct cyrus_dump_options *options)
{
    static char out[65536];
    for (size_t i = 0; i < n; i++) {
        put_temp(rows[i].input, strlen(rows[i].input), false);
        int rc = read_temp(options, out, sizeof out);
        bool ok = rc == rows[i].rc && lines(out) == lines(rows[i].wanted) + 1;
        const char *at = out;
        char wanted[1024];
        snprintf(wanted, sizeof wanted, "%s", rows[i].wanted);
        for (char *save, *part = strtok_r(wanted, "|\n", &save); part; part = strtok_r(NULL, "|\n", &save)) {
            at = at ? strstr(at, part) : NULL;
            ok &= at != NULL;
            if (at)
                at += strlen(part);
        }
        if (!ok)
            fail_msg("row %zu: %s\nis read as\n%swanted %s (%d)", i, rows[i].input, out, rows[i].wanted, rows[i].rc);
    }
}

static void json_rows(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\n\n}\n", "end", 0},
        {"{}", "end", 0},
        {" \n {\n" REC("a") "\n}\n", "3 mailbox a\nend", 0},
        {"{\n" REC("a") ",\n" REC("b") "\n}\n", "2 mailbox a\n3 mailbox b\nend", 0},
        {"{" REC("a") "," REC("b") "}", "1 mailbox a\n1 mailbox b\nend", 0},
        {"{\"a\":{\"partition\":\"p\",\"server\":\"s\"}}", "mailbox a\nend", 0},
        {"{\"user.a\\u0062\":{\"partition\":\"p\",\"server\":\"s\"}}", "mailbox user.ab\nend", 0},
        /* nothing, or no dump */
        {"", "the dump is empty", RAFTDIR_ECORRUPT},
        {" \n\n ", "the dump is empty", RAFTDIR_ECORRUPT},
        /* one record is wrong, the others are read */
        {"{\n" REC("a") ",\n" REC_WITH("b", "\"acl\": []") ",\n" REC("c") "\n}\n", "2 mailbox a\n3 bad b: field \"acl\" is no object\n4 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"acl\": {\"a\": 1}") ",\n" REC("c") "\n}\n", "2 bad b: field \"acl\" is no object of strings\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"acl\": {\"a\": \"z\"}") ",\n" REC("c") "\n}\n", "2 bad b: |'z', which is no right\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"acl\": {\"a\\tb\": \"l\"}") ",\n" REC("c") "\n}\n", "2 bad b: |TAB\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"acl\": {\"\": \"l\"}") ",\n" REC("c") "\n}\n", "2 bad b: |empty\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"acl\": {\"a\": \"l\", \"a\": \"r\"}") ",\n" REC("c") "\n}\n", "2 bad b: |duplicate\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"mtime\": \"1x\"") ",\n" REC("c") "\n}\n", "2 bad b: field \"mtime\" is no number\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"mtime\": \"-1\"") ",\n" REC("c") "\n}\n", "2 bad b: field \"mtime\" is no number\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"mtime\": -1") ",\n" REC("c") "\n}\n", "2 bad b: field \"mtime\" is no number\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"mtime\": \"\"") ",\n" REC("c") "\n}\n", "2 bad b: field \"mtime\" is no number\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"foldermodseq\": \"18446744073709551616\"") ",\n" REC("c") "\n}\n", "2 bad b: field \"foldermodseq\" is no number\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"foldermodseq\": \"18446744073709551615\"") ",\n" REC("c") "\n}\n", "2 mailbox b\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"uidvalidity\": \"4294967296\"") ",\n" REC("c") "\n}\n", "2 bad b: uidvalidity\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"mbtype\": 1") ",\n" REC("c") "\n}\n", "2 bad b: field \"mbtype\" is no string\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"name_history\": {}") ",\n" REC("c") "\n}\n", "2 bad b: field \"name_history\" is no array\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"name\": \"x\"") ",\n" REC("c") "\n}\n", "2 bad b: record of this mailbox has the name \"x\"\n3 mailbox c\nend", 0},
        {"{\n" REC_WITH("b", "\"x\": tru") ",\n" REC("c") "\n}\n", "2 bad b: record can't be parsed\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"partition\": \"p\"},\n" REC("c") "\n}\n", "2 bad b: record has no server and no default server is given\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"server\": \"s\"},\n" REC("c") "\n}\n", "2 bad b: record has no partition\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"server\": null, \"partition\": \"p\"},\n" REC("c") "\n}\n", "2 bad b: record has no server\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"server\": \"s!x\", \"partition\": \"p\"},\n" REC("c") "\n}\n", "2 bad b: server has '!'\n3 mailbox c\nend", 0},
        {"{\n" REC("b/c") ",\n" REC("c") "\n}\n", "2 bad b/c: mailbox name has '/'\n3 mailbox c\nend", 0},
        {"{\n" REC("user..x") ",\n" REC("c") "\n}\n", "2 bad user..x: mailbox name has '..'\n3 mailbox c\nend", 0},
        {"{\n\"b\": 1,\n" REC("c") "\n}\n", "2 bad b: record is no object\n3 mailbox c\nend", 0},
        {"{\n\"b\": \"x\",\n" REC("c") "\n}\n", "2 bad b: record is no object\n3 mailbox c\nend", 0},
        {"{\n\"b\": [{}],\n" REC("c") "\n}\n", "2 bad b: record is no object\n3 mailbox c\nend", 0},
        {"{\n\"b\": null,\n" REC("c") "\n}\n", "2 bad b: record is no object\n3 mailbox c\nend", 0},
        {"{\"b\": tru," REC("c") "}", "1 bad b: record can't be parsed\n1 mailbox c\nend", 0},
        {"{\n\"\\ud800\": {},\n" REC("c") "\n}\n", "2 bad ?: mailbox name is no JSON string\n3 mailbox c\nend", 0},
        {"{\n\"a\\u0000b\": {},\n" REC("c") "\n}\n", "2 bad ?: mailbox name is no JSON string\n3 mailbox c\nend", 0},
        /* the text itself is broken: reading goes on with the next line that begins a mailbox */
        {"{\n\"b: {\"partition\": \"p\"},\n" REC("c") "\n}\n", "2 bad ?: no ':' behind the mailbox name\n3 mailbox c\nend", 0},
        {"{\n\"b,\n" REC("c") "\n}\n", "2 bad ?: a string has no end in its line\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"partition: \"p\"},\n" REC("c") "\n}\n", "2 bad b: a string has no end in its line\n3 mailbox c\nend", 0},
        {"{\n\"b\": {\"partition\": \"p\",\n" REC("c") ",\n" REC("d") "\n}\n", "2 bad b: record has no end: line 3 begins another one\n3 mailbox c\n4 mailbox d\nend", 0},
        {"{\n\"b\": {\"acl\": {\"x\": \"l\"},\n" REC("c") ",\n" REC("d") "\n}\n", "2 bad b: record has no end\n3 mailbox c\n4 mailbox d\nend", 0},
        {"{\n\"b\": {\"partition\": \"p\"]},\n" REC("c") "\n}\n", "2 bad b: record has ']' in line 2 where '}' is wanted\n3 mailbox c\nend", 0},
        {"{\n" REC("b") "},\n" REC("c") "\n}\n", "2 mailbox b\n2 bad ?: there is more behind the '}'\n3 mailbox c\nend", 0},
        {"{\n" REC("b") "\n" REC("c") "\n}\n", "2 mailbox b\n3 bad ?: ',' or '}' is wanted behind a record\n3 mailbox c\nend", 0},
        {"{\n" REC("b") ";\n" REC("c") "\n}\n", "2 mailbox b\n2 bad ?: ',' or '}' is wanted behind a record, not ';'\n3 mailbox c\nend", 0},
        {"{\n" REC("b") ",\n}\n", "2 mailbox b\n3 bad ?: a ',' stands behind the last record\nend", 0},
        {"{\n" REC("b") ",,\n" REC("c") "\n}\n", "2 mailbox b\n2 bad ?: a mailbox name in quotes is wanted\n3 mailbox c\nend", 0},
        {"{\n[],\n" REC("c") "\n}\n", "2 bad ?: a mailbox name in quotes is wanted\n3 mailbox c\nend", 0},
        {"{\n" REC("b") "\n}\nrubbish\n", "2 mailbox b\n4 bad ?: there is more behind the '}' that ends the dump\n-19 the dump is cut off", RAFTDIR_ECORRUPT},
        /* pretty-printed: nested lines are further in */
        {"{\n  \"a\": {\n    \"partition\": \"p\",\n    \"server\": \"s\",\n    \"acl\": {\n      \"x\": \"lr\"\n    }\n  },\n  \"b\": {\n    \"partition: \"p\"\n  },\n  \"c\": {\n"
         "    \"partition\": \"p\",\n    \"server\": \"s\"\n  }\n}\n",
         "2 mailbox a\n9 bad b: a string has no end in its line\n12 mailbox c\nend", 0},
        {"{\n  \"b\": {\n    \"partition\": \"p\",\n    \"acl\": {\n      \"x\": \"lr\"\n    },\n  \"c\": {\n    \"partition\": \"p\",\n    \"server\": \"s\"\n  }\n}\n",
         "2 bad b: record has no end: line 7 begins another one\n7 mailbox c\nend", 0},
        {"{\n  \"c\": {\n    \"partition: \"p\"\n  }\n}\n", "2 bad c: a string has no end in its line\nend", 0},
        /* every line begins at its left end, and nothing is broken */
        {"{\n\"a\": {\n\"acl\": {\n\"x\": \"lr\"\n},\n\"partition\": \"p\",\n\"name_history\": [\n{\n\"name\": \"z\"\n}\n],\n\"server\": \"s\"\n}\n}\n", "2 mailbox a\nend", 0},
        /* on one line nothing tells where the next one begins */
        {"{\"b\": {\"partition: \"p\"}," REC("c") "}", "cut off", RAFTDIR_ECORRUPT},
        /* kinds */
        {"{\n" REC_WITH("a", "\"mbtype\": \"ed\"") ",\n" REC_WITH("b", "\"mbtype\": \"ei\"") ",\n" REC_WITH("c", "\"mbtype\": \"erz\"") ",\n\"d\": {\"mbtype\": \"ed\", \"acl\": {}}\n}\n",
         "2 tombstone a\n3 intermediate b\n4 reserved c\n5 tombstone d\nend", 0},
        /* listed twice: also when not one behind the other */
        {"{\n" REC("a") ",\n" REC("a") ",\n" REC("b") "\n}\n", "2 mailbox a\n3 bad a: mailbox is listed a second time\n4 mailbox b\nend", 0},
        {"{\n" REC("c") ",\n" REC("b") ",\n" REC("c") ",\n" REC("b") "\n}\n", "2 mailbox c\n3 mailbox b\n4 bad c: mailbox is listed a second time\n5 bad b: |second time\nend", 0},
    };
    struct cyrus_dump_options options = {.warning = warning};
    run_rows(rows, sizeof rows / sizeof *rows, &options);
    /* Asked for by name, other things are no JSON. */
    static const struct row no_json[] = {{"user.a\t0 p \n", "no JSON object: line 1 begins with 'u'", RAFTDIR_ECORRUPT}, {"", "cut off", RAFTDIR_ECORRUPT}, {"[]", "no JSON object", RAFTDIR_ECORRUPT}};
    options.format = CYRUS_FORMAT_JSON;
    run_rows(no_json, 3, &options);
}

static void json_limits(void **state)
{
    (void)state;
    static char in[6u << 20], out[65536];
    struct cyrus_dump_options options = {.default_server = "s"};
    /* A record that never ends: read up to the limit, then the next line. */
    size_t len = (size_t)sprintf(in, "{\n\"a\": {\"x\": \"");
    memset(in + len, 'x', 3u << 20);
    len += 3u << 20;
    len += (size_t)sprintf(in + len, "\"},\n" REC("b") "\n}\n");
    put_temp(in, len, true);
    assert_int_equal(read_temp(&options, out, sizeof out), 0);
    assert_string_equal(out, "2 bad a: record has more than 2097152 bytes\n3 mailbox b\nend\n");
    len = (size_t)sprintf(in, "{\n\"");
    memset(in + len, 'x', 3u << 20);
    len += 3u << 20;
    len += (size_t)sprintf(in + len, "\": {},\n" REC("b") "\n}\n");
    put_temp(in, len, true);
    assert_int_equal(read_temp(&options, out, sizeof out), 0);
    assert_string_equal(out, "2 bad ?: record has more than 2097152 bytes\n3 mailbox b\nend\n");
    len = (size_t)sprintf(in, "{\n\"a\": ");
    memset(in + len, '[', 1000);
    len += 1000;
    len += (size_t)sprintf(in + len, ",\n" REC("b") "\n}\n");
    put_temp(in, len, false);
    assert_int_equal(read_temp(&options, out, sizeof out), 0);
    assert_string_equal(out, "2 bad a: record is nested more than 32 deep\n3 mailbox b\nend\n");
    /* The same for a line of the text form. */
    len = (size_t)sprintf(in, "user.a\t0 p ");
    memset(in + len, 'x', 3u << 20);
    len += 3u << 20;
    static const char rest[] = "\nuser.b\t0 p \nuser.\0c\t0 p \nuser.d\t0 p \n";
    memcpy(in + len, rest, sizeof rest - 1);
    put_temp(in, len + sizeof rest - 1, true);
    assert_int_equal(read_temp(&options, out, sizeof out), 0);
    assert_string_equal(out, "1 bad ?: line has more than 2097152 bytes\n2 mailbox user.b\n3 bad ?: line has a NUL byte\n4 mailbox user.d\nend\n");
}

static void json_fields(void **state)
{
    (void)state;
    static const char input[] =
        "{\"d.org!user.a^b\": {\"name\": \"d.org!user.a^b\", \"mtime\": \"5\", \"uidvalidity\": 6, \"createdmodseq\": \"7\", \"foldermodseq\": \"18446744073709551615\", "
        "\"mbtype\": \"er\", \"partition\": \"\", \"server\": \"be1\", \"acl\": {\"a^b\": \"lrswipkxtecdan\", \"-anyone\": \"p\"}, \"uniqueid\": \"u1\", \"jmapId\": \"j1\", "
        "\"legacy_specialuse\": \"\\\\Sent\", \"name_history\": [{\"name\": \"user.old\", \"mtime\": \"1\"}], \"later\": 1, \"later2\": {}}, "
        "\"e\": {\"later\": 2, \"partition\": \"p\"}}";
    put_temp(input, sizeof input - 1, false);
    struct cyrus_dump_options options = {.warning = warning, .default_server = "backend1"};
    struct cyrus_dump *dump;
    struct cyrus_record r;
    warnings[0] = '\0';
    assert_int_equal(cyrus_dump_open(temp_path, &options, &dump, NULL), 0);
    assert_int_equal(cyrus_dump_format(dump), CYRUS_FORMAT_JSON);
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    const Raftdir__Log__Mailbox *m = r.mailbox;
    assert_string_equal(m->name, "d.org!user.a^b");
    assert_true(m->has_mtime && m->mtime == 5 && m->uidvalidity == 6 && m->createdmodseq == 7 && m->foldermodseq == UINT64_MAX);
    assert_string_equal(m->mbtype, "er");
    assert_string_equal(m->location->server, "be1");
    assert_string_equal(m->location->partition, "");
    assert_string_equal(m->acl, "a^b\tlrswipkxtecdan\t-anyone\tp\t");
    assert_string_equal(m->uniqueid, "u1");
    assert_string_equal(m->jmapid, "j1");
    assert_string_equal(m->legacy_specialuse, "\\Sent");
    assert_string_equal(m->name_history, "[{\"name\":\"user.old\",\"mtime\":\"1\"}]");
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    m = r.mailbox;
    assert_string_equal(m->name, "e");
    assert_string_equal(m->location->server, "backend1");
    assert_true(!m->has_mtime && !m->uniqueid && (!m->acl || !*m->acl) && (!m->name_history || !*m->name_history));
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 0);
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 0);
    cyrus_dump_close(&dump);
    assert_string_equal(warnings, "1:field \"later\" is unknown and not kept\n1:field \"later2\" is unknown and not kept\n");
}

static void text_rows(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"user.a\t0 p a\tlrs\t\n", "1 mailbox user.a\nend", 0},
        {"user.a\t0 p a\tlrs\t\r\nuser.b\t0 p b\tlrs\t\r\n", "1 mailbox user.a\n2 mailbox user.b\nend", 0},
        {"user.a\t0 p \nuser.b\t1 be2!p a\tl\t\n", "1 mailbox user.a\n2 mailbox user.b\nend", 0},
        {"user.a\tp a\tlrs\t\n", "1 mailbox user.a\nend", 0},
        {"user.a\tp\ta\tlrs\t\n", "1 mailbox user.a\nend", 0},
        {"user.a\t2p a\tlrs\t\n", "1 mailbox user.a\nend", 0},
        {"shared dep with space\t0 p \n", "1 mailbox shared dep with space\nend", 0},
        {"user.a\t16 (null) (null)\nuser.b\t256 (null) (null)\nuser.c\t3 s!p \n", "1 tombstone user.a\n2 intermediate user.b\n3 reserved user.c\nend", 0},
        {"user.a\n", "1 bad ?: line has no TAB\nend", 0},
        {"user.x\t0 p \n\nuser.a\t0 p \n", "1 mailbox user.x\n2 bad ?: line has no TAB\n3 mailbox user.a\nend", 0},
        {"\t0 p \nuser.a\t0 p \n", "1 bad ?: line has no mailbox name\n2 mailbox user.a\nend", 0},
        {"user.a\t0 p\nuser.b\t0 p \n", "1 bad user.a: line has no ACL\n2 mailbox user.b\nend", 0},
        {"user.a\t0 (null) a\tl\t\nuser.b\t0 p \n", "1 bad user.a: record has no partition\n2 mailbox user.b\nend", 0},
        {"user.a\t0 p a\tlrs\nuser.b\t0 p \n", "1 bad user.a: ACL has no TAB\n2 mailbox user.b\nend", 0},
        {"user.a\t0 p a\nuser.b\t0 p \n", "1 bad user.a: ACL has no TAB\n2 mailbox user.b\nend", 0},
        {"user.a\t2048 p a\tl\t\nuser.b\t0 p \n", "1 bad user.a: mailbox type 2048 is unknown\n2 mailbox user.b\nend", 0},
        {"user.a\t96 p a\tl\t\nuser.b\t0 p \n", "1 bad user.a: mailbox type 96 is unknown\n2 mailbox user.b\nend", 0},
        {"user.a\t99999999999999999999 p a\tl\t\nuser.b\t0 p \n", "1 bad user.a: \n2 mailbox user.b\nend", 0},
        {"user.a/b\t0 p \nuser.b\t0 p \n", "1 bad user.a/b: mailbox name has '/'\n2 mailbox user.b\nend", 0},
        {"user.b\t0 p \nuser.a\t0 p \nuser.b\t1 be2!p \n", "1 mailbox user.b\n2 mailbox user.a\n3 bad user.b: mailbox is listed a second time\nend", 0},
        {"user.a\t0 p a\tlrs\t\nuser.b\t0 p", "1 mailbox user.a\n-19 the dump is cut off: line 2 has no end", RAFTDIR_ECORRUPT},
        {"user.a\t16 p a\tlrs\t>uid1 1 2 3 4 \\Sent\n", "1 mailbox user.a\nend", 0},
        {"user.a\t16 p >uid1 1 2 3 4\n", "1 mailbox user.a\nend", 0},
        {"user.a\t128 p >uid1 1 2 3 4\n", "1 tombstone user.a\nend", 0},
        {"user.a\t0 p a\tl\t>uid1 1 2 x 4\n", "1 bad user.a: ACL has no TAB\nend", 0},
        {"user.a\t0 p a\tl\t>uid1\n", "1 bad user.a: ACL has no TAB\nend", 0},
        {"user.a\t0 p a\tl\t>\n", "1 mailbox user.a\nend", 0},
        {"user.a\t0 p a\tl\t>b\tr\t\n", "1 mailbox user.a\nend", 0}, /* an identifier that starts so */
    };
    struct cyrus_dump_options options = {.default_server = "s"};
    run_rows(rows, sizeof rows / sizeof *rows, &options);
    static const struct row empty[] = {{"", "end", 0}};
    options.format = CYRUS_FORMAT_TEXT;
    run_rows(empty, 1, &options); /* asked for by name, a dump without mailboxes */
    static const struct row no_default[] = {{"user.a\t0 p \nuser.b\t1 s!p \n", "1 bad user.a: record has no server\n2 mailbox user.b\nend", 0}};
    options.default_server = NULL;
    run_rows(no_default, 1, &options);
}

static void text_fields(void **state)
{
    (void)state;
    static const char input[] = "user.a\t1 be1.example.org!p2 a\tlrs\t-b\tp\t\n"
                                "user.b\t89 be2!p b\tl\t>uid1 1 2 3 4 \\Sent \\Drafts\n"
                                "user.c\t32 p \n"
                                "user.d\t9 p >uid2 1 2 3 4\n";
    put_temp(input, sizeof input - 1, false);
    struct cyrus_dump_options options = {.default_server = "s"};
    struct cyrus_dump *dump;
    struct cyrus_record r;
    assert_int_equal(cyrus_dump_open(temp_path, &options, &dump, NULL), 0);
    assert_int_equal(cyrus_dump_format(dump), CYRUS_FORMAT_TEXT);
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    assert_string_equal(r.mailbox->location->server, "be1.example.org");
    assert_string_equal(r.mailbox->location->partition, "p2");
    assert_string_equal(r.mailbox->mbtype, "er"); /* 1 in the old numbers */
    assert_string_equal(r.mailbox->acl, "a\tlrs\t-b\tp\t");
    assert_false(r.mailbox->has_mtime);
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    assert_string_equal(r.mailbox->mbtype, "cmr"); /* 9 + 16 + 64 in the new ones */
    assert_string_equal(r.mailbox->uniqueid, "uid1");
    assert_true(r.mailbox->mtime == 1 && r.mailbox->uidvalidity == 2 && r.mailbox->foldermodseq == 3 && r.mailbox->createdmodseq == 4);
    assert_string_equal(r.mailbox->legacy_specialuse, "\\Sent \\Drafts");
    assert_string_equal(r.mailbox->acl, "b\tl\t");
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    assert_string_equal(r.mailbox->mbtype, "c"); /* 32 in the old ones */
    assert_string_equal(r.mailbox->location->server, "s");
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 1);
    assert_string_equal(r.mailbox->mbtype, "c"); /* 9 in the new ones */
    assert_string_equal(r.mailbox->acl, "");
    assert_int_equal(cyrus_dump_next(dump, &r, NULL), 0);
    cyrus_dump_close(&dump);
}

static void mbtype_numbers(void **state)
{
    (void)state;
    char letters[CYRUS_MBTYPE_LEN];
    unsigned known = 0;
    for (uint32_t n = 0; n < 4096; n++) {
        if (!cyrus_mbtype_from_new(n, letters))
            continue;
        uint32_t back;
        assert_true(cyrus_mbtype_to_new(letters, &back));
        assert_int_equal(back, n);
        known++;
    }
    assert_int_equal(known, 9 * 64);
    known = 0;
    for (uint32_t n = 0; n < 4096; n++)
        known += cyrus_mbtype_from_old(n, letters);
    assert_int_equal(known, 7 * 32);
    uint32_t n;
    assert_true(cyrus_mbtype_to_new("", &n) && n == 0);
    assert_true(cyrus_mbtype_to_new("r", &n) && n == 16);
    assert_false(cyrus_mbtype_to_new("eq", &n));
}

/* Reads temp_path and writes it again; the caller frees what comes back. */
static char *again(const char *path, const struct cyrus_dump_options *in, const struct cyrus_export_options *out, size_t *len_r, unsigned *records_r)
{
    struct cyrus_dump *dump;
    struct cyrus_export *export;
    struct err err = {0};
    char *text = NULL;
    FILE *file = open_memstream(&text, len_r);
    assert_non_null(file);
    if (cyrus_dump_open(path, in, &dump, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(cyrus_export_open(file, out, &export, &err), 0);
    struct cyrus_record r;
    int rc;
    *records_r = 0;
    while ((rc = cyrus_dump_next(dump, &r, &err)) == 1) {
        if (r.kind == CYRUS_MALFORMED)
            fail_msg("line %llu: %s", (unsigned long long)r.line, r.err.text);
        if (cyrus_export_mailbox(export, r.mailbox, &err) != 0)
            fail_msg("%s", err.text);
        ++*records_r;
    }
    if (rc)
        fail_msg("%s", err.text);
    assert_int_equal(cyrus_export_finish(export, &err), 0);
    cyrus_export_close(&export);
    cyrus_dump_close(&dump);
    assert_int_equal(fclose(file), 0);
    return text;
}

static char *slurp(const char *path, size_t *len_r)
{
    gzFile file = gzopen(path, "rb");
    assert_non_null(file);
    size_t size = 16u << 20;
    char *data = malloc(size);
    assert_non_null(data);
    int n = gzread(file, data, (unsigned)size);
    assert_true(n > 0 && (size_t)n < size);
    gzclose(file);
    *len_r = (size_t)n;
    return data;
}

static void kept_dumps_byte_for_byte(void **state)
{
    (void)state;
    static const struct {
        const char *path, *server;
        unsigned records;
    } dumps[] = {{TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", NULL, 29095},
                 {TEST_DATA "/mailboxes-cyrus-3.10-master.json", NULL, 0},
                 {TEST_DATA "/mailboxes-cyrus-3.10-backend.json", "be1.example.org", 0}};
    for (size_t i = 0; i < 3; i++) {
        struct cyrus_dump_options in = {.default_server = dumps[i].server};
        struct cyrus_export_options out = {.format = CYRUS_FORMAT_JSON, .exact = true, .local_server = dumps[i].server};
        size_t wanted_len, len;
        unsigned records;
        char *wanted = slurp(dumps[i].path, &wanted_len), *got = again(dumps[i].path, &in, &out, &len, &records);
        if (len != wanted_len || memcmp(got, wanted, len) != 0)
            fail_msg("%s comes out otherwise", dumps[i].path);
        assert_true(records > 10 && (!dumps[i].records || records == dumps[i].records));
        free(wanted);
        free(got);
    }
}

/* Other white space, the same mailboxes: what jq, json_pp and Python make of a dump. */
static void pretty_printed(void **state)
{
    (void)state;
    size_t wanted_len;
    char *wanted = slurp(TEST_DATA "/mailboxes-cyrus-3.10-master.json", &wanted_len);
    json_t *json = json_loadb(wanted, wanted_len, 0, NULL);
    assert_non_null(json);
    const size_t flags[] = {JSON_INDENT(2), JSON_INDENT(4), JSON_COMPACT, JSON_INDENT(1) | JSON_COMPACT, 0};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        char *text = json_dumps(json, flags[i]);
        assert_non_null(text);
        for (int kind = 0; kind < 3; kind++) {
            char *copy = strdup(text);
            assert_non_null(copy);
            /* As it is; every line at its left end; gzipped. */
            if (kind == 1) {
                char *to = copy;
                for (char *from = copy; *from; from++) {
                    if (*from != ' ' || (from > copy && from[-1] != '\n' && from[-1] != ' '))
                        *to++ = *from;
                }
                *to = '\0';
            }
            put_temp(copy, strlen(copy), kind == 2);
            struct cyrus_dump_options in = {0};
            struct cyrus_export_options out = {.format = CYRUS_FORMAT_JSON, .exact = true};
            size_t len;
            unsigned records;
            char *got = again(temp_path, &in, &out, &len, &records);
            if (len != wanted_len || memcmp(got, wanted, len) != 0)
                fail_msg("flags %zu, kind %d", i, kind);
            free(got);
            free(copy);
        }
        free(text);
    }
    json_decref(json);
    free(wanted);
}

/* Cut off at each byte: never a proper end before the whole, plain or gzipped. */
static void truncated(void **state)
{
    (void)state;
    static const char json[] = "{\n" REC("a") ",\n" REC_WITH("b", "\"acl\": {\"x\\\"y\": \"lr\"}, \"name_history\": [{\"name\": \"z\"}]") ",\n" REC("c") "\n}\n";
    static char out[65536];
    struct cyrus_dump_options options = {.format = CYRUS_FORMAT_JSON};
    for (size_t len = 0; len < sizeof json - 1; len++) {
        put_temp(json, len, false);
        int rc = read_temp(&options, out, sizeof out);
        bool whole = len >= sizeof json - 2; /* without the last line feed it is whole too */
        if (rc != (whole ? 0 : RAFTDIR_ECORRUPT) || (!whole && !strstr(out, "cut off")) || strstr(out, "bad"))
            fail_msg("%zu of %zu bytes: %d\n%s", len, sizeof json - 1, rc, out);
    }
    put_temp(json, sizeof json - 1, true);
    size_t size = 0;
    FILE *file = fopen(temp_path, "rb");
    static char gz[4096];
    assert_non_null(file);
    size = fread(gz, 1, sizeof gz, file);
    fclose(file);
    assert_true(size > 50 && size < sizeof gz);
    for (size_t len = 2; len < size; len++) {
        put_temp(gz, len, false);
        int rc = read_temp(&options, out, sizeof out);
        if (rc != RAFTDIR_ECORRUPT || !strstr(out, "the gzip data are cut off"))
            fail_msg("%zu of %zu gzipped bytes: %d\n%s", len, size, rc, out);
    }
    gz[size - 6] ^= 1; /* its checksum */
    put_temp(gz, size, false);
    assert_int_equal(read_temp(&options, out, sizeof out), RAFTDIR_ECORRUPT);
    assert_non_null(strstr(out, "damaged"));
}

static void open_errors(void **state)
{
    (void)state;
    struct cyrus_dump_options options = {0};
    struct cyrus_dump *dump = NULL;
    struct err err;
    assert_int_equal(cyrus_dump_open("/nonexistent/dump", &options, &dump, &err), RAFTDIR_EIO);
    assert_non_null(strstr(err.text, "/nonexistent/dump: No such file"));
    assert_int_equal(cyrus_dump_open("/tmp", &options, &dump, &err), RAFTDIR_EIO);
    assert_non_null(strstr(err.text, "directory"));
    options.default_server = "a b";
    assert_int_equal(cyrus_dump_open(temp_path, &options, &dump, &err), RAFTDIR_EINVAL);
    assert_non_null(strstr(err.text, "default server"));
    assert_null(dump);
    struct cyrus_export *export = NULL;
    struct cyrus_export_options out = {.format = CYRUS_FORMAT_DETECT};
    assert_int_equal(cyrus_export_open(stdout, &out, &export, &err), RAFTDIR_EINVAL);
    FILE *full = fopen("/dev/full", "w");
    if (full) {
        out.format = CYRUS_FORMAT_JSON;
        assert_int_equal(cyrus_export_open(full, &out, &export, &err), 0);
        assert_int_equal(cyrus_export_finish(export, &err), RAFTDIR_EIO);
        cyrus_export_close(&export);
        fclose(full);
    }
}

static void export_one(enum cyrus_format format, bool exact, const char *local, const Raftdir__Log__Mailbox *m, int rc, const char *wanted)
{
    struct cyrus_export *export;
    struct cyrus_export_options options = {.format = format, .exact = exact, .local_server = local};
    char *text = NULL;
    size_t len;
    FILE *file = open_memstream(&text, &len);
    assert_non_null(file);
    struct err err = {0};
    assert_int_equal(cyrus_export_open(file, &options, &export, &err), 0);
    int got = cyrus_export_mailbox(export, m, &err);
    assert_int_equal(fflush(file), 0);
    const char *said = got ? err.text : text + (format == CYRUS_FORMAT_JSON ? 2 : 0);
    if (got != rc || (rc ? !strstr(said, wanted) : strcmp(said, wanted) != 0))
        fail_msg("%d: %s\nwanted %d: %s", got, said, rc, wanted);
    cyrus_export_close(&export);
    fclose(file);
    free(text);
}

static void exports(void **state)
{
    (void)state;
    Raftdir__Log__Location l = RAFTDIR__LOG__LOCATION__INIT;
    l.server = (char *)"be1";
    l.partition = (char *)"p";
    Raftdir__Log__Mailbox m = RAFTDIR__LOG__MAILBOX__INIT;
    m.name = (char *)"user.a";
    m.location = &l;
    m.acl = (char *)"a\tlr\t-b\tp\t";
    const enum cyrus_format json = CYRUS_FORMAT_JSON, text = CYRUS_FORMAT_TEXT;
    export_one(json, true, NULL, &m, 0,
               "\"user.a\": {\"name\": \"user.a\", \"mtime\": \"0\", \"uidvalidity\": \"0\", \"createdmodseq\": \"0\", \"foldermodseq\": \"0\", \"mbtype\": \"e\", \"partition\": \"p\", "
               "\"server\": \"be1\", \"acl\": {\"a\": \"lr\", \"-b\": \"p\"}, \"name_history\": []}");
    export_one(json, true, "be1", &m, 0,
               "\"user.a\": {\"name\": \"user.a\", \"mtime\": \"0\", \"uidvalidity\": \"0\", \"createdmodseq\": \"0\", \"foldermodseq\": \"0\", \"mbtype\": \"e\", \"partition\": \"p\", "
               "\"acl\": {\"a\": \"lr\", \"-b\": \"p\"}, \"name_history\": []}");
    export_one(text, true, NULL, &m, 0, "user.a\t0 be1!p a\tlr\t-b\tp\t>\n");
    export_one(text, true, "be1", &m, 0, "user.a\t0 p a\tlr\t-b\tp\t>\n");

    /* A uniqueid is made, the same each time and for no other name. */
    char id[CYRUS_UNIQUEID_LEN + 1], other[CYRUS_UNIQUEID_LEN + 1], wanted[256];
    assert_true(cyrus_export_uniqueid("user.a", id) && cyrus_export_uniqueid("user.b", other));
    assert_int_equal(strlen(id), CYRUS_UNIQUEID_LEN);
    assert_int_equal(strspn(id, "0123456789abcdefghijklmnopqrstuvwxyz"), CYRUS_UNIQUEID_LEN);
    assert_string_not_equal(id, other);
    assert_string_equal(id, "vtib48jq91z5zm3kzrvzd4vo"); /* for good: exports of later versions must agree */
    snprintf(wanted, sizeof wanted, "user.a\t0 be1!p a\tlr\t-b\tp\t>%s 0 0 0 0\n", id);
    export_one(text, false, NULL, &m, 0, wanted);

    m.uniqueid = (char *)"u1";
    m.mbtype = (char *)"cr";
    m.has_mtime = m.has_uidvalidity = m.has_createdmodseq = m.has_foldermodseq = true;
    m.mtime = 1;
    m.uidvalidity = 2;
    m.createdmodseq = 3;
    m.foldermodseq = UINT64_MAX;
    m.jmapid = (char *)"j1";
    m.legacy_specialuse = (char *)"\\Sent";
    m.name_history = (char *)"[{\"name\":\"user.x\",\"mtime\":\"1\"}]";
    /* Twice in the ACL: an object has it once. */
    m.acl = (char *)"a\tl\tb\tp\ta\tr\t";
    export_one(json, false, NULL, &m, 0,
               "\"user.a\": {\"name\": \"user.a\", \"mtime\": \"1\", \"uidvalidity\": \"2\", \"createdmodseq\": \"3\", \"foldermodseq\": \"18446744073709551615\", \"mbtype\": \"cr\", "
               "\"partition\": \"p\", \"server\": \"be1\", \"acl\": {\"a\": \"lr\", \"b\": \"p\"}, \"uniqueid\": \"u1\", \"jmapId\": \"j1\", \"legacy_specialuse\": \"\\\\Sent\", "
               "\"name_history\": [{\"name\": \"user.x\", \"mtime\": \"1\"}]}");
    export_one(text, false, NULL, &m, 0, "user.a\t25 be1!p a\tl\tb\tp\ta\tr\t>u1 1 2 18446744073709551615 3 \\Sent\n");

    m.name_history = (char *)"[";
    export_one(json, false, NULL, &m, RAFTDIR_EINVAL, "user.a can't be written as JSON");
    m.name_history = NULL;
    m.acl = (char *)"a\tl";
    export_one(json, false, NULL, &m, RAFTDIR_EINVAL, "user.a can't be written as JSON");
    m.acl = (char *)"<a>\tl\t";
    export_one(text, false, NULL, &m, RAFTDIR_EINVAL, "'>' in an ACL");
    m.acl = NULL;
    export_one(text, false, NULL, &m, 0, "user.a\t25 be1!p >u1 1 2 18446744073709551615 3 \\Sent\n");
    m.mbtype = (char *)"q";
    export_one(text, false, NULL, &m, RAFTDIR_EINVAL, "type \"q\"");
    m.mbtype = (char *)"e";
    m.uniqueid = NULL;
    export_one(text, true, NULL, &m, RAFTDIR_EINVAL, "has no uniqueid");
    l.partition = (char *)"";
    export_one(text, false, "be1", &m, RAFTDIR_EINVAL, "no location");
    l.partition = (char *)"p";
    char *acl = malloc(20001);
    assert_non_null(acl);
    for (int i = 0; i < 20000; i += 4)
        memcpy(acl + i, "a\tl\t", 5);
    m.acl = acl;
    export_one(text, false, NULL, &m, RAFTDIR_EINVAL, "ctl_mboxlist -u -L reads 16383");
    free(acl);
}

/* The text form there and back: what it can say comes back. */
static void text_there_and_back(void **state)
{
    (void)state;
    struct cyrus_dump_options in = {0};
    struct cyrus_export_options out = {.format = CYRUS_FORMAT_TEXT};
    size_t len, len2, len3;
    unsigned records;
    char *text = again(TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", &in, &out, &len, &records);
    assert_int_equal(records, 29095);
    put_temp(text, len, true);
    char *text2 = again(temp_path, &in, &out, &len2, &records);
    assert_int_equal(len, len2);
    assert_memory_equal(text, text2, len);
    out.format = CYRUS_FORMAT_JSON;
    char *json = again(temp_path, &in, &out, &len2, &records);
    char *wanted = slurp(TEST_DATA "/mailboxes-cyrus-3.6.1.json.gz", &len3);
    assert_int_equal(len2, len3);
    assert_memory_equal(json, wanted, len3);
    free(text);
    free(text2);
    free(json);
    free(wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_rows),      cmocka_unit_test(json_limits),    cmocka_unit_test(json_fields),
        cmocka_unit_test(text_rows),      cmocka_unit_test(text_fields),    cmocka_unit_test(mbtype_numbers),
        cmocka_unit_test(kept_dumps_byte_for_byte), cmocka_unit_test(pretty_printed), cmocka_unit_test(truncated),
        cmocka_unit_test(open_errors),    cmocka_unit_test(exports),        cmocka_unit_test(text_there_and_back),
    };
    return cmocka_run_group_tests_name("cyrus_dump", tests, make_temp, remove_temp);
}
