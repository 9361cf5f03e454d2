/* test_config.c - raftdird.conf: every refusal names file, line and key, says what is wrong and what would be right; and what a good file gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "raftdir/config.h"
#include "raftdir/logger.h"

static char path[] = "/tmp/raftdir-test-config-XXXXXX";

#define GOOD                                                                                                                               \
    "node_name = \"n1\"\ndata_dir = \"/d\"\npeer_listen = \"10.0.0.1:3906\"\nclient_socket = \"/run/s\"\n"                                \
    "tls_ca = \"/ca\"\ntls_cert = \"/crt\"\ntls_key = \"/key\"\n" /* 7 lines */

static int load(const char *text, struct config **config_r, struct err *err)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
    *config_r = NULL;
    memset(err, 0, sizeof *err);
    return config_load(path, config_r, err);
}

static void test_defaults(void **state)
{
    (void)state;
    struct config *c;
    struct err err;
    if (load(GOOD, &c, &err) != 0)
        fail_msg("%s", err.text);
    assert_string_equal(c->node_name, "n1");
    assert_string_equal(c->peer_advertise, "10.0.0.1:3906");
    assert_string_equal(c->client_listen, "");
    assert_string_equal(c->client_advertise, "");
    assert_string_equal(c->run_as, "");
    assert_int_equal(c->client_socket_mode, 0660);
    assert_int_equal(c->service_threads, 1);
    assert_int_equal(c->election_timeout_ms, 250);
    assert_int_equal(c->heartbeat_ms, 50);
    assert_int_equal(c->log_level, LOGGER_INFO);
    assert_int_equal(c->allow_n, 0);
    assert_int_equal(c->space_reserve_len, 256ull << 20);
    assert_int_equal(c->state_quota_len, 0);
    assert_int_equal(c->image_rate_len, 0);
    assert_int_equal(c->state_growth_len, 1 << 30);
    assert_string_equal(c->local_group, "");
    assert_string_equal(c->site, "");
    assert_int_equal(c->scrub_interval_s, 86400);
    assert_int_equal(c->log_keep_len, 64ull << 20);
    assert_string_equal(c->mupdate_listen, "");
    assert_string_equal(c->mupdate_tls_listen, "");
    assert_string_equal(c->mupdate_socket, "");
    assert_int_equal(c->mupdate_socket_mode, 0660);
    assert_false(c->mupdate_plaintext);
    assert_false(c->mupdate_take_over);
    char name[256] = "";
    assert_int_equal(gethostname(name, sizeof name - 1), 0);
    assert_string_equal(c->mupdate_hostname, name);
    assert_int_equal(c->sasl_n, 0);
    config_destroy(&c);
    assert_null(c);
}

static void test_all_keys(void **state)
{
    (void)state;
    struct config *c;
    struct err err;
    if (load("# a comment { that opens nothing\n// nor { here /*\n/* { { */\n" GOOD "peer_advertise = \"n1.example:3906\"\nclient_listen = \"[::]:3907\"\nclient_advertise = \"n1.example:3907\"\n"
                                  "client_socket_mode = \"0600\"\nrun_as = \"root\"\nlog_level = debug\nservice_threads = 4\nelection_timeout_ms = 1000\n"
                                  "heartbeat_ms = 100\nlocal_group = mail\nsite = berlin-2\nstate_growth = 2M\nallow \"cert:{be1\" { role = \"backend\" server = \"be1\" }\nallow \"unix:*\" {\n role = read\n}\n",
             &c, &err) != 0)
        fail_msg("%s", err.text);
    assert_string_equal(c->peer_advertise, "n1.example:3906");
    assert_string_equal(c->client_listen, "[::]:3907");
    assert_int_equal(c->client_socket_mode, 0600);
    assert_int_equal(c->service_threads, 4);
    assert_int_equal(c->log_level, LOGGER_DEBUG);
    assert_string_equal(c->local_group, "mail");
    assert_string_equal(c->site, "berlin-2");
    assert_int_equal(c->state_growth_len, 2 << 20);
    assert_int_equal(c->allow_n, 2);
    assert_string_equal(c->allow[0].who, "cert:{be1");
    assert_int_equal(c->allow[0].role, ACCESS_BACKEND);
    assert_string_equal(c->allow[0].server, "be1");
    assert_string_equal(c->allow[1].who, "unix:*");
    assert_int_equal(c->allow[1].role, ACCESS_READ);
    assert_null(c->allow[1].server);
    config_destroy(&c);
}

static void test_mupdate_keys(void **state)
{
    (void)state;
    struct config *c;
    struct err err;
    if (load(GOOD "mupdate_listen = \"[::]:3905\"\nmupdate_tls_listen = \"[::]:3995\"\nmupdate_socket = /run/raftdir/mupdate\nmupdate_socket_mode = 0666\nmupdate_plaintext = yes\n"
                  "mupdate_take_over = \"yes\"\nmupdate_hostname = mupdate.example.org\n"
                  "sasl = { \"pwcheck_method: saslauthd\", \"mech_list: PLAIN # no comment\",\n \"x-y_1:v:w\" }\n"
                  "allow \"sasl:murder\" { role = backend server = be1 }\nallow \"sasl:*\" { role = read }\nallow \"noauth:loopback\" { role = admin }\n",
             &c, &err) != 0)
        fail_msg("%s", err.text);
    assert_string_equal(c->mupdate_listen, "[::]:3905");
    assert_string_equal(c->mupdate_tls_listen, "[::]:3995");
    assert_string_equal(c->mupdate_socket, "/run/raftdir/mupdate");
    assert_int_equal(c->mupdate_socket_mode, 0666);
    assert_true(c->mupdate_plaintext);
    assert_true(c->mupdate_take_over);
    assert_string_equal(c->mupdate_hostname, "mupdate.example.org");
    assert_int_equal(c->sasl_n, 3);
    assert_string_equal(c->sasl[0], "pwcheck_method: saslauthd");
    assert_string_equal(c->sasl[1], "mech_list: PLAIN # no comment");
    assert_string_equal(c->sasl[2], "x-y_1:v:w");
    assert_int_equal(c->allow_n, 3);
    assert_string_equal(c->allow[0].who, "sasl:murder");
    assert_string_equal(c->allow[0].server, "be1");
    assert_string_equal(c->allow[2].who, "noauth:loopback");
    assert_int_equal(c->allow[2].role, ACCESS_ADMIN);
    config_destroy(&c);
    assert_int_equal(load(GOOD "sasl = {}\n", &c, &err), 0);
    assert_int_equal(c->sasl_n, 0);
    config_destroy(&c);
}

/* Sizes and times, as they are written -> as they are meant. */
static void test_units(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        uint64_t reserve, quota, rate, keep;
        unsigned scrub_s;
    } rows[] = {
        {"", 256ull << 20, 0, 0, 64ull << 20, 86400},
        {"space_reserve = 0\nscrub_interval = 0\nstate_quota = 0\nimage_rate = 0\n", 0, 0, 0, 64ull << 20, 0},
        {"space_reserve = \"1M\"\nstate_quota = 16M\nimage_rate = 64K\nlog_keep = 1M\nscrub_interval = 1s\n", 1 << 20, 16 << 20, 64 << 10, 1 << 20, 1},
        {"space_reserve = 1T\nstate_quota = 1T\nimage_rate = 1T\nlog_keep = 16G\nscrub_interval = 365d\n", 1ull << 40, 1ull << 40, 1ull << 40, 16ull << 30, 365 * 86400},
        {"space_reserve = 1048577\nstate_quota = 20000000\nimage_rate = 3G\nlog_keep = 2048K\nscrub_interval = 90m\n", 1048577, 20000000, 3ull << 30, 2 << 20, 5400},
        {"scrub_interval = 12h\n", 256ull << 20, 0, 0, 64ull << 20, 43200},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[1024];
        struct config *c;
        struct err err;
        snprintf(text, sizeof text, "%s%s", GOOD, rows[i].line);
        if (load(text, &c, &err) != 0)
            fail_msg("%s", err.text);
        assert_int_equal(c->space_reserve_len, rows[i].reserve);
        assert_int_equal(c->state_quota_len, rows[i].quota);
        assert_int_equal(c->image_rate_len, rows[i].rate);
        assert_int_equal(c->log_keep_len, rows[i].keep);
        assert_int_equal(c->scrub_interval_s, rows[i].scrub_s);
        config_destroy(&c);
    }
}

/* Text of the file -> what the message must hold ("%s" stands for the file's path). */
static const struct {
    const char *text;
    const char *want[3];
} bad[] = {
    {GOOD "colour = \"red\"\n", {"%s:8: colour: unknown key", "raftdird.conf(5)"}},
    {GOOD "\n\nservice_threads = 0\n", {"%s:10: service_threads: \"0\"", "wanted 1 to 64"}},
    {GOOD "service_threads = 65\n", {"%s:8: service_threads: \"65\"", "wanted 1 to 64"}},
    {GOOD "client_socket_mode = \"04755\"\n", {"%s:8: client_socket_mode: \"04755\"", "octal"}},
    {GOOD "service_threads = many\n", {"%s:8: service_threads: \"many\"", "wanted 1 to 64"}},
    {GOOD "service_threads = -1\n", {"%s:8: service_threads: \"-1\"", "wanted 1 to 64"}},
    {GOOD "service_threads = 99999999999999999999\n", {"%s:8: service_threads", "wanted 1 to 64"}},
    {GOOD "election_timeout_ms = 10\n", {"%s:8: election_timeout_ms: \"10\"", "wanted 50 to 60000"}},
    {GOOD "space_reserve = much\n", {"%s:8: space_reserve: \"much\" is not a size", "wanted 1M to 1T, or \"0\": none", "K, M, G or T behind it"}},
    {GOOD "space_reserve = \"\"\n", {"%s:8: space_reserve: \"\" is not a size", "such as \"256M\""}},
    {GOOD "space_reserve = 1023K\n", {"%s:8: space_reserve: \"1023K\"", "wanted 1M to 1T"}},
    {GOOD "space_reserve = 1048577M\n", {"%s:8: space_reserve", "wanted 1M to 1T"}},
    {GOOD "space_reserve = 18446744073709551616\n", {"%s:8: space_reserve", "wanted 1M to 1T"}},
    {GOOD "space_reserve = 16777217T\n", {"%s:8: space_reserve", "wanted 1M to 1T"}}, /* overflows to less than the maximum */
    {GOOD "space_reserve = 256MB\n", {"%s:8: space_reserve: \"256MB\"", "K, M, G or T"}},
    {GOOD "space_reserve = 256m\n", {"%s:8: space_reserve: \"256m\"", "K, M, G or T"}},
    {GOOD "space_reserve = -1\n", {"%s:8: space_reserve: \"-1\""}},
    {GOOD "space_reserve = \" 256M\"\n", {"%s:8: space_reserve: \" 256M\""}},
    {GOOD "space_reserve = 1.5G\n", {"%s:8: space_reserve: \"1.5G\"", "a whole number"}},
    {GOOD "state_quota = 15M\n", {"%s:8: state_quota: \"15M\"", "wanted 16M to 1T, or \"0\": none"}},
    {GOOD "state_quota = 2T\n", {"%s:8: state_quota: \"2T\"", "wanted 16M to 1T"}},
    {GOOD "image_rate = 1\n", {"%s:8: image_rate: \"1\"", "wanted 64K to 1T, or \"0\": none"}},
    {GOOD "state_growth = 0\n", {"%s:8: state_growth: \"0\" is not a size that is allowed here; wanted 1M to 1T"}},
    {GOOD "local_group = nobodys-group\n", {"%s:8: local_group: there is no group \"nobodys-group\" on this machine", "addgroup"}},
    {GOOD "local_group = root\n", {"%s:8: local_group: \"root\" is the group of root"}},
    {GOOD "site = \"a b\"\n", {"%s:8: site: \"a b\" is no site name"}},
    {GOOD "log_keep = 0\n", {"%s:8: log_keep: \"0\" is not a size that is allowed here; wanted 1M to 16G"}},
    {GOOD "scrub_interval = 86400\n", {"%s:8: scrub_interval: \"86400\" is not a time", "wanted 1s to 365d, or \"0\": never", "s, m, h or d behind it, such as \"24h\""}},
    {GOOD "scrub_interval = 366d\n", {"%s:8: scrub_interval: \"366d\"", "wanted 1s to 365d"}},
    {GOOD "scrub_interval = 213503982334602d\n", {"%s:8: scrub_interval", "wanted 1s to 365d"}}, /* overflows */
    {GOOD "scrub_interval = 1w\n", {"%s:8: scrub_interval: \"1w\"", "s, m, h or d"}},
    {GOOD "heartbeat_ms = 200\n", {"heartbeat_ms 200 is too long for election_timeout_ms 250", "at most half"}},
    {GOOD "log_level = loud\n", {"%s:8: log_level: \"loud\"", "wanted error, warn, info or debug"}},
    {GOOD "client_socket_mode = \"0999\"\n", {"%s:8: client_socket_mode: \"0999\"", "octal"}},
    {GOOD "client_listen = \"localhost\"\n", {"%s:8: client_listen: \"localhost\" has no port", "wanted \"host:port\""}},
    {GOOD "client_listen = \"localhost:99999\"\n", {"%s:8: client_listen", "from 1 to 65535"}},
    {GOOD "client_listen = \"localhost:+1\"\n", {"%s:8: client_listen", "from 1 to 65535"}},
    {GOOD "client_listen = \"::1:3907\"\n", {"%s:8: client_listen", "brackets"}},
    {GOOD "client_listen = \":3907\"\n", {"%s:8: client_listen", "has no host"}},
    {GOOD "client_listen = \"tls:host:3907\"\n", {"%s:8: client_listen", "more than one colon"}},
    {GOOD "peer_advertise = \"0.0.0.0:3906\"\n", {"peer_advertise is \"0.0.0.0:3906\"", "at which the other nodes reach"}},
    {GOOD "client_listen = \"[::]:3907\"\n", {"client_advertise is \"[::]:3907\"", "at which clients reach"}},
    {GOOD "run_as = \"no-such-user-here\"\n", {"%s:8: run_as: there is no user \"no-such-user-here\"", "create it"}},
    {GOOD "node_name = \"n2\"\n", {"%s:8: node_name: given twice"}},
    {GOOD "allow \"be1\" { role = \"read\" }\n", {"%s:8: allow \"be1\": no identity", "\"cert:NAME\""}},
    {GOOD "allow \"unix:joe\" { role = \"read\" }\n", {"%s:8: allow \"unix:joe\": no identity", "(a number)"}},
    {GOOD "allow \"cert:\" { role = \"read\" }\n", {"%s:8: allow \"cert:\": no identity"}},
    {GOOD "allow \"cert:a\" {\n role = \"god\"\n}\n", {"%s:9: role: \"god\" is no role", "\"read\", \"backend\" or \"admin\""}},
    {GOOD "allow \"cert:a\" { }\n", {"%s:8: allow \"cert:a\": role is missing"}},
    {GOOD "allow \"cert:a\" { role = \"admin\" server = \"be1\" }\n", {"%s:8: allow \"cert:a\": server binds a backend"}},
    {GOOD "allow \"cert:a\" { role = \"read\" }\nallow \"cert:a\" { role = \"admin\" }\n", {"%s:9: allow \"cert:a\": given twice"}},
    {GOOD "allow \"cert:a\" { role = \"read\" colour = \"red\" }\n", {"%s:8: colour: unknown key"}},
    {GOOD "allow \"sasl:\" { role = \"read\" }\n", {"%s:8: allow \"sasl:\": no identity", "\"sasl:USER\""}},
    {GOOD "allow \"noauth:any\" { role = \"read\" }\n", {"%s:8: allow \"noauth:any\": no identity", "\"noauth:loopback\""}},
    {GOOD "mupdate_listen = \"3905\"\n", {"%s:8: mupdate_listen: \"3905\" has no port"}},
    {GOOD "mupdate_tls_listen = \"a:b:3905\"\n", {"%s:8: mupdate_tls_listen:", "more than one colon"}},
    {GOOD "mupdate_socket = \"run/mupdate\"\n", {"%s:8: mupdate_socket: \"run/mupdate\" is not an absolute path"}},
    {GOOD "mupdate_socket = \"/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678\"\n",
     {"%s:8: mupdate_socket: the path is longer than the 107 bytes"}},
    {GOOD "mupdate_socket_mode = \"rw\"\n", {"%s:8: mupdate_socket_mode: \"rw\" is not a file mode"}},
    {GOOD "mupdate_plaintext = true\n", {"%s:8: mupdate_plaintext: \"true\" is neither \"yes\" nor \"no\""}},
    {GOOD "mupdate_take_over = 1\n", {"%s:8: mupdate_take_over: \"1\" is neither"}},
    {GOOD "mupdate_hostname = \"m x\"\n", {"%s:8: mupdate_hostname: \"m x\" is no host name", "mupdate.example.org"}},
    {GOOD "mupdate_hostname = \"m:3905\"\n", {"%s:8: mupdate_hostname: \"m:3905\" is no host name"}},
    {GOOD "mupdate_listen = \"10.0.0.1:3906\"\n", {"%s: peer_listen and mupdate_listen are both \"10.0.0.1:3906\""}},
    {GOOD "mupdate_listen = \"a:1\"\nmupdate_tls_listen = \"a:1\"\n", {"%s: mupdate_listen and mupdate_tls_listen are both \"a:1\""}},
    {GOOD "mupdate_socket = \"/run/s\"\n", {"%s: client_socket and mupdate_socket are both \"/run/s\""}},
    {GOOD "sasl = \"pwcheck_method\"\n", {"%s:8: sasl: \"pwcheck_method\" is no option", "\"NAME: VALUE\""}},
    {GOOD "sasl = { \"a: b\",\n \"pw check: x\" }\n", {"%s:9: sasl: \"pw check\" is no option"}},
    {GOOD "sasl = { \"mech_list: \" }\n", {"%s:8: sasl: \"mech_list\" is no option"}},
    {GOOD "sasl = { \"sasl_mech_list: PLAIN\" }\n", {"%s:8: sasl: \"sasl_mech_list\": in this list", "wanted \"mech_list: ...\""}},
    {GOOD "sasl = { \"mech_list: PLAIN\", \"mech_list: LOGIN\" }\n", {"%s:8: sasl: \"mech_list\" is given twice"}},
    {GOOD "sasl = { \"mech_list: PLAIN\" }\nsasl = { \"log_level: 3\" }\n", {"%s:9: sasl: given twice"}},
    {GOOD "service_threads 4\n", {"%s:8:", "KEY = \"VALUE\""}},
    {GOOD "allow \"cert:a\" { role = \"read\"\n", {"%s:", "the last section is not closed"}},
    {"data_dir = \"/d\"\n", {"%s: node_name is missing"}},
    {"node_name = \"n 1\"\n", {"%s:1: node_name: \"n 1\""}},
    {"node_name = \"n1\"\ndata_dir = \"var/lib\"\n", {"%s:2: data_dir: \"var/lib\" is not an absolute path"}},
    {"node_name = \"n1\"\ndata_dir = \"/d\"\npeer_listen = \"10.0.0.1:3906\"\ntls_ca = \"/ca\"\ntls_cert = \"/crt\"\ntls_key = \"/key\"\n",
     {"neither client_listen nor client_socket is set"}},
    {"node_name = \"n1\"\ndata_dir = \"/d\"\npeer_listen = \"\"\nclient_socket = \"/s\"\ntls_ca = \"/ca\"\ntls_cert = \"/crt\"\ntls_key = \"/key\"\n",
     {"peer_listen is empty"}},
};

static void test_bad_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct config *c;
        struct err err;
        if (load(bad[i].text, &c, &err) == 0)
            fail_msg("taken: %s", bad[i].text);
        assert_null(c);
        for (int k = 0; k < 3 && bad[i].want[k]; k++) {
            char want[512];
            snprintf(want, sizeof want, bad[i].want[k], path);
            if (!strstr(err.text, want))
                fail_msg("row %zu: no \"%s\" in \"%s\"", i, want, err.text);
        }
    }
}

/* The sample has every key, with the defaults. */
static void test_sample(void **state)
{
    (void)state;
    struct config *c, *plain;
    struct err err = {0};
    if (config_load(TEST_DATA "/../../deploy/sample/raftdird.conf", &c, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(load(GOOD, &plain, &err), 0);
    assert_int_equal(c->space_reserve_len, plain->space_reserve_len);
    assert_int_equal(c->state_quota_len, plain->state_quota_len);
    assert_int_equal(c->image_rate_len, plain->image_rate_len);
    assert_int_equal(c->scrub_interval_s, plain->scrub_interval_s);
    assert_int_equal(c->log_keep_len, plain->log_keep_len);
    assert_int_equal(c->election_timeout_ms, plain->election_timeout_ms);
    assert_int_equal(c->heartbeat_ms, plain->heartbeat_ms);
    assert_int_equal(c->service_threads, plain->service_threads);
    assert_int_equal(c->client_socket_mode, plain->client_socket_mode);
    assert_int_equal(c->log_level, plain->log_level);
    config_destroy(&plain);
    config_destroy(&c);
}

static void test_missing_file(void **state)
{
    (void)state;
    struct config *c = NULL;
    struct err err;
    assert_int_equal(config_load("/nonexistent/raftdird.conf", &c, &err), RAFTDIR_EINVAL);
    assert_non_null(strstr(err.text, "/nonexistent/raftdird.conf: can't be read: No such file"));
}

static void test_access_rules(void **state)
{
    (void)state;
    struct access a;
    struct err err;
    /* Without rules: root and the daemon's own user are admin, others read; certificates are not let in. */
    access_of_uid(NULL, 0, 0, 500, &a);
    assert_int_equal(a.role, ACCESS_ADMIN);
    assert_string_equal(a.identity, "unix:0");
    access_of_uid(NULL, 0, 500, 500, &a);
    assert_int_equal(a.role, ACCESS_ADMIN);
    access_of_uid(NULL, 0, 501, 500, &a);
    assert_int_equal(a.role, ACCESS_READ);
    assert_int_equal(access_of_cert(NULL, 0, "be1", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_NONE);
    assert_string_equal(a.identity, "cert:be1");

    struct access_rule rules[] = {{"cert:be1", ACCESS_BACKEND, "be1.example"}, {"cert:*", ACCESS_READ, NULL}, {"unix:501", ACCESS_ADMIN, NULL}};
    assert_int_equal(access_of_cert(rules, 3, "be1", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_BACKEND);
    assert_string_equal(a.server, "be1.example");
    assert_int_equal(access_of_cert(rules, 3, "be2", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_READ);
    assert_string_equal(a.server, "");
    access_of_uid(rules, 3, 501, 500, &a);
    assert_int_equal(a.role, ACCESS_ADMIN);
    /* The site has decided about Unix users: nobody else comes in by default. */
    access_of_uid(rules, 3, 0, 500, &a);
    assert_int_equal(a.role, ACCESS_NONE);
    char name[IDENTITY_LEN_MAX + 8];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(access_of_cert(rules, 3, name, &a, &err), RAFTDIR_ETOOBIG);
    assert_int_equal(access_of_sasl(rules, 3, name, &a, &err), RAFTDIR_ETOOBIG);
    assert_int_equal(a.role, ACCESS_NONE);
}

static void test_access_mupdate(void **state)
{
    (void)state;
    struct access a;
    struct err err;
    assert_int_equal(access_of_sasl(NULL, 0, "murder", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_NONE);
    assert_string_equal(a.identity, "sasl:murder");
    access_of_noauth(NULL, 0, &a);
    assert_int_equal(a.role, ACCESS_NONE);
    assert_string_equal(a.identity, "noauth:loopback");

    /* A certificate's name and a user's are two things, and none is everybody else's. */
    struct access_rule rules[] = {{"sasl:*", ACCESS_READ, NULL}, {"cert:murder", ACCESS_ADMIN, NULL}, {"sasl:be1", ACCESS_BACKEND, "be1.example"}, {"cert:*", ACCESS_ADMIN, NULL}};
    assert_int_equal(access_of_sasl(rules, 4, "murder", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_READ);
    assert_int_equal(access_of_sasl(rules, 4, "be1", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_BACKEND);
    assert_string_equal(a.server, "be1.example");
    assert_int_equal(access_of_sasl(rules + 1, 3, "murder", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_NONE);
    access_of_noauth(rules, 4, &a);
    assert_int_equal(a.role, ACCESS_NONE);
    struct access_rule noauth = {"noauth:loopback", ACCESS_BACKEND, "be2.example"};
    access_of_noauth(&noauth, 1, &a);
    assert_int_equal(a.role, ACCESS_BACKEND);
    assert_string_equal(a.server, "be2.example");
    assert_int_equal(access_of_sasl(&noauth, 1, "loopback", &a, &err), 0);
    assert_int_equal(a.role, ACCESS_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),     cmocka_unit_test(test_all_keys),     cmocka_unit_test(test_units),        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_sample),       cmocka_unit_test(test_missing_file), cmocka_unit_test(test_access_rules),
        cmocka_unit_test(test_mupdate_keys), cmocka_unit_test(test_access_mupdate),
    };
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return rc;
}
