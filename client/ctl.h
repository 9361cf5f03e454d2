/* ctl.h - what the parts of raftdirctl share: the options, the handle, output.
 *
 * A command is a function `int cmd(struct ctl *c)` that gets its words in c->args and returns an exit code. Output for people goes through tables
 * (ctl_out.c), output for programs is one JSON object on standard output; errors too, so that a program reads one stream. */
#ifndef RAFTDIR_CTL_H
#define RAFTDIR_CTL_H
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "include/raftdir.h"

enum { /* exit codes */
    EXIT_DONE = 0,
    EXIT_NO = 1,       /* the directory says no */
    EXIT_USAGE = 2,
    EXIT_UNKNOWN = 3,  /* can't tell */
    EXIT_DENIED = 4,
    EXIT_BAD_DATA = 5,
    EXIT_INTERNAL = 6
};

/* Every option of every command; NULL, 0 or false when not given. */
struct ctl_options {
    char *endpoints;
    const char *ca, *cert, *key;
    unsigned timeout_ms; /* 0: not given */
    bool json, yes, help;
    int level;           /* enum raftdir_level; 0: not given */
    const char *local_dir; /* NULL: not given */
    unsigned max_age_ms; /* 0: not given */
    /* reads */
    bool by_uniqueid, by_user, reserved;
    const char *groups, *rights, *pattern, *prefix, *server, *partition, *after, *from;
    uint64_t limit;
    /* writes */
    bool subtree, take_over, if_absent, if_present;
    const char *token, *location, *acl, *mbtype, *uniqueid, *specialuse, *jmapid, *name_history;
    uint64_t mtime, uidvalidity, createdmodseq, foldermodseq, generation, epoch, ttl_ms;
    unsigned fields;     /* RAFTDIR_F_* that were given */
    bool if_generation, has_epoch;
    /* cluster */
    const char *via;
    const char *replace;
    bool promote, standby, force;
    /* import, export */
    const char *format, *output, *on_error, *local_server;
    bool dry_run, resume, exact;
    unsigned batch, window;
    /* import --mupdate */
    const char *mupdate, *mupdate_user, *mupdate_password_file, *mupdate_mechanism, *mupdate_tls, *mupdate_ca;
    bool mupdate_unverified, follow;
    const char *skip_servers[64];
    unsigned skip_servers_n;
    bool has_limit;
};

struct ctl {
    struct ctl_options o;
    char **args;
    int args_n;
    const struct ctl_command *command;
    raftdir *d;          /* opened by ctl_open */
    bool color, color_err;
};

struct ctl_command {
    const char *words;   /* "cluster status" */
    int (*run)(struct ctl *c);
    int args_min, args_max;
    const char *args;    /* for the usage line */
    const char *summary;
    const char *options; /* names of those it takes, beside the global ones, comma separated; "mailbox" stands for all fields of a mailbox */
    const char *text;    /* more for --help; NULL */
};
extern const struct ctl_command ctl_commands[]; /* ends with words NULL */

/* ctl_main.c */
int ctl_usage_error(struct ctl *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ctl_open.c */
int ctl_open(struct ctl *c);               /* 0, or an exit code; the error is told */
int ctl_open_read(struct ctl *c);          /* the same, for reads: linearizable unless --level says otherwise */
int ctl_open_other(struct ctl *c, const char *endpoints, bool only_these, raftdir **d_r);
int ctl_exit_code(int code);
/* Tells an error, with what to do next, in the form that was asked for; gives the exit code. */
int ctl_error(struct ctl *c, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int ctl_error_of(struct ctl *c, raftdir *d, int code, const char *what); /* with the handle's message */
json_t *ctl_error_json(int code, const char *message);

/* ctl_out.c */
enum ctl_color { COLOR_NONE, COLOR_BOLD, COLOR_DIM, COLOR_GOOD, COLOR_WARN, COLOR_BAD };
struct ctl_table;
/* Column titles, comma separated; a title that starts with '>' is for numbers, aligned right. Rows are printed in chunks, so a long list needs little memory. */
struct ctl_table *table_begin(struct ctl *c, const char *titles);
void table_cell(struct ctl_table *t, enum ctl_color color, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void table_end(struct ctl_table **t); /* prints what is left; a table without rows prints nothing */
const char *ctl_paint(bool on, enum ctl_color color);
void ctl_bytes(uint64_t bytes, char *buf_r, size_t size);
void ctl_age(uint64_t ms, char *buf_r, size_t size);
void ctl_count(uint64_t n, char *buf_r, size_t size); /* with thousands separators */
void ctl_hex(const uint8_t *data, size_t len, char *buf_r);
json_t *ctl_string(const char *s); /* never NULL but without memory: bytes that are no UTF-8 become U+FFFD */
json_t *ctl_hex_json(const uint8_t *data, size_t len);
void ctl_json_print(json_t *j);    /* one line; takes the reference */
json_t *ctl_mailbox_json(const struct raftdir_mailbox *m);
json_t *ctl_answer_json(raftdir *d); /* incarnation, index, age_ms, node */
void ctl_mailbox_print(struct ctl *c, const struct raftdir_mailbox *m);

struct progress {
    bool shown;
    const char *label, *unit;
    uint64_t total, started_ms, printed_ms;
    uint64_t first; /* what was done before the rate began to count */
};
void progress_begin(struct progress *p, struct ctl *c, const char *label, const char *unit, uint64_t total);
void progress_tell(struct progress *p, uint64_t position, uint64_t done); /* position of total; done: units, for the rate */
void progress_end(struct progress *p);
uint64_t ctl_now_ms(void);

/* ctl_write.c */
/* "server!partition" or "server"; the parts in *server_r and *partition_r, given (free *server_r). */
int ctl_location(struct ctl *c, const char *text, char **server_r, const char **partition_r);

/* ctl_watch.c: "INCARNATION:INDEX:DONE" */
void ctl_position(const struct raftdir_position *p, char *buf_r, size_t size);

/* Commands. */
int ctl_lookup(struct ctl *c);
int ctl_list(struct ctl *c);
int ctl_visible(struct ctl *c);
int ctl_rights(struct ctl *c);
int ctl_create(struct ctl *c);
int ctl_put(struct ctl *c);
int ctl_update(struct ctl *c);
int ctl_reserve(struct ctl *c);
int ctl_activate(struct ctl *c);
int ctl_deactivate(struct ctl *c);
int ctl_delete(struct ctl *c);
int ctl_rename(struct ctl *c);
int ctl_setacl(struct ctl *c);
int ctl_move_begin(struct ctl *c);
int ctl_move_commit(struct ctl *c);
int ctl_move_abort(struct ctl *c);
int ctl_batch(struct ctl *c);
int ctl_import(struct ctl *c);
int ctl_export(struct ctl *c);
int ctl_verify(struct ctl *c);
int ctl_compact(struct ctl *c);
int ctl_mupdate_sessions(struct ctl *c);
int ctl_barrier(struct ctl *c);
int ctl_watch(struct ctl *c);
int ctl_cluster_bootstrap(struct ctl *c);
int ctl_cluster_join(struct ctl *c);
int ctl_cluster_rebuild(struct ctl *c);
int ctl_cluster_status(struct ctl *c);
int ctl_member_list(struct ctl *c);
int ctl_member_add(struct ctl *c);
int ctl_member_promote(struct ctl *c);
int ctl_member_demote(struct ctl *c);
int ctl_member_remove(struct ctl *c);
int ctl_leader_show(struct ctl *c);
int ctl_leader_transfer(struct ctl *c);

#endif
