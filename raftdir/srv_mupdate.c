/* srv_mupdate.c - MUPDATE sessions: connections, commands in order, limits, and who listens when; see srv_mupdate.h.
 *
 * Input. on_data takes lines from the connection's buffer while no command is worked on, copies each (its words live as long as the command), looks the verb up and calls its
 * function. A verb that has to wait leaves the rest in the buffer, with `waits` set; mupdate_answer then asks the connection to offer it again, in a later turn of the loop: who answers never finds
 * the session changed under him. At most MUPDATE_TURN_COMMANDS in a row, so that a client that sends a thousand at once doesn't keep others waiting; at most MUPDATE_AHEAD_LEN
 * read ahead; and nothing is taken while more than MUPDATE_OUT_LEN_MAX waits to go out. With COMPRESS all of this works on `input` in place of the connection's buffer.
 *
 * The other end closes its side: what it sent whole before is worked on and answered, as by Cyrus' server; then the connection ends.
 * The node is removed, fails or stops: BYE. Its state is merely too old: sessions stay, their commands say what can't be told; only new ones aren't taken (srv_mupdate_listen.c).
 *
 * Failures: a connection that is lost, or whose client takes nothing for MUPDATE_STALL_MS, ends the session; what is under way for it goes on to its end. */
#include "srv_mupdate.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "logger.h"

#define TEXT_LEN_MAX 1024
#define FRAME_LEN_MAX (MUPDATE_COMMAND_LEN_MAX + 2 * MUPDATE_AHEAD_LEN) /* never reached: a longer command is refused, and then reading stops */
/* on_drain comes below half of this. A little under what mupdate_backed_up means, so that it surely comes after that was true. */
#define OUT_LEN_MAX (2 * (MUPDATE_OUT_LEN_MAX - 65536u))
#define USER_TIMEOUT_MS (2 * MUPDATE_STALL_MS) /* the kernel's patience ends after ours, which tells the log why */
#define COMMAND_LEN_KEPT 4096 /* of a session's memory for commands, between them */
#define LOOK_MS 1000          /* sessions' times are looked at this often */
#define INFLATE_STEP_LEN 1024 /* so much compressed input at a time */

struct mupdate_verb {
    const char *name, *doing;
    unsigned args_min, args_max;
    enum access_role role;         /* ACCESS_NONE: before somebody is authenticated too */
    bool updating;                 /* legal after UPDATE */
    bool last;                     /* what comes behind it is read in another way, or not at all, if it succeeds */
    uint64_t time_ms;
    void (*run)(struct mupdate_session *m);
};

static void logout(struct mupdate_session *m);

static const struct mupdate_verb verbs[] = {
    {"FIND", "find", 1, 1, ACCESS_READ, false, false, MUPDATE_READ_MS, mupdate_find},
    {"RESERVE", "reserve", 2, 2, ACCESS_BACKEND, false, false, MUPDATE_WRITE_MS, mupdate_reserve},
    {"ACTIVATE", "activate", 3, 3, ACCESS_BACKEND, false, false, MUPDATE_WRITE_MS, mupdate_activate},
    {"DEACTIVATE", "deactivate", 2, 2, ACCESS_BACKEND, false, false, MUPDATE_WRITE_MS, mupdate_deactivate},
    {"DELETE", "delete", 1, 1, ACCESS_BACKEND, false, false, MUPDATE_WRITE_MS, mupdate_delete},
    {"NOOP", "noop", 0, 0, ACCESS_READ, true, false, MUPDATE_READ_MS, mupdate_noop},
    {"LIST", "list", 0, 1, ACCESS_READ, false, false, MUPDATE_READ_MS, mupdate_list},
    {"UPDATE", "update", 0, MUPDATE_WORDS_MAX - 2, ACCESS_READ, false, false, MUPDATE_READ_MS, mupdate_update},
    {"LOGOUT", "logout", 0, 0, ACCESS_NONE, true, true, MUPDATE_READ_MS, logout},
    {"AUTHENTICATE", "login", 1, 2, ACCESS_NONE, false, false, MUPDATE_LOGIN_MS, mupdate_authenticate},
    {"STARTTLS", "login", 0, 0, ACCESS_NONE, false, true, MUPDATE_LOGIN_MS, mupdate_starttls},
    {"COMPRESS", "login", 1, 1, ACCESS_NONE, false, true, MUPDATE_LOGIN_MS, mupdate_compress},
};

/* --- Output ------------------------------------------------------------------------------------------------------------------------ */

static void out(struct mupdate_session *m, const void *data, size_t len)
{
    int rc = conn_send(m->conn, data, len);
    if (rc == RAFTDIR_ENOMEM)
        mem_exhausted("MUPDATE output");
    if (rc == RAFTDIR_ELIMIT) {
        logger_limited(LOGGER_WARN, "mupdate", "%s (%s): doesn't read what it asked for: connection closed", conn_peer_text(m->conn), m->access.identity);
        m->closing = true;
        conn_close(m->conn, rc, "the client doesn't read");
    }
}

void mupdate_send(struct mupdate_session *m, const void *data, size_t len)
{
    if (!m->conn || !len)
        return;
    if (!m->zip) {
        out(m, data, len);
        return;
    }
    struct mupdate_out packed = {0};
    mupdate_deflate(m, data, len, &packed);
    out(m, packed.p, packed.len);
    mupdate_out_free(&packed);
}

bool mupdate_backed_up(const struct mupdate_session *m)
{
    return m->conn && conn_queued_len(m->conn) > MUPDATE_OUT_LEN_MAX;
}

static void say(struct mupdate_session *m, const struct mupdate_word *tag, const char *word, const char *fmt, va_list ap)
{
    static const struct mupdate_word untagged = {"*", 1};
    char text[TEXT_LEN_MAX];
    struct mupdate_out o = {0};
    vsnprintf(text, sizeof text, fmt, ap);
    mupdate_print_answer(&o, tag ? tag : &untagged, word, text);
    mupdate_send(m, o.p, o.len);
    mupdate_out_free(&o);
}

static void say_bad(struct mupdate_session *m, const struct mupdate_word *tag, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say_bad(struct mupdate_session *m, const struct mupdate_word *tag, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(m, tag, "BAD", fmt, ap);
    va_end(ap);
}

void mupdate_bye(struct mupdate_session *m, const char *fmt, ...)
{
    va_list ap;
    if (!m->conn || m->closing)
        return;
    va_start(ap, fmt);
    say(m, NULL, "BYE", fmt, ap);
    va_end(ap);
    m->closing = true;
    conn_close(m->conn, 0, "the session has ended");
}

/* --- The end of a command ------------------------------------------------------------------------------------------------------------ */

static bool may_take(const struct mupdate_session *m)
{
    return m->conn && !m->closing && (!m->busy || m->responding) && !mupdate_backed_up(m);
}

static void end_by_itself(struct mupdate_session *m)
{
    if (m->closing)
        return;
    m->closing = true;
    conn_close(m->conn, 0, "closed by the other end");
}

void mupdate_go_on(struct mupdate_session *m)
{
    if (m->taking || !may_take(m))
        return;
    if (m->waits && m->zip) {
        srv_stream_run(m->service, &m->turn);
    } else if (m->waits || m->held) {
        m->waits = m->held = false;
        conn_pause(m->conn, false); /* offers what is left */
    } else if (m->ended) {
        end_by_itself(m);
    }
}

static void view_doing(struct mupdate_session *m)
{
    mupdate_view_doing(m, m->busy ? m->verb->doing : m->update ? "update" : m->auth == MUPDATE_ANONYMOUS ? "login" : "idle");
}

/* An AUTHENTICATE may hold a password. */
static void command_wipe(struct mupdate_session *m)
{
    if (m->command && m->verb && m->verb->run == mupdate_authenticate)
        explicit_bzero(m->command, m->command_size);
}

static void command_end(struct mupdate_session *m)
{
    command_wipe(m);
    m->busy = m->responding = false;
    m->next_step = NULL;
    m->last_ms = shared_now_ms();
    if (m->command_size > COMMAND_LEN_KEPT) {
        free(m->command);
        m->command = NULL;
        m->command_size = 0;
    }
    if (atomic_load(&m->service->d->stop_wanted) && !m->deleted && !m->logged_out)
        mupdate_bye(m, "this node is shutting down, use another"); /* else who sends one command after the other keeps it from that; a rename may go on */
    if (m->taking)
        return;
    view_doing(m);
    mupdate_go_on(m);
}

void mupdate_answer(struct mupdate_session *m, const char *word, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(m, &m->tag, word, fmt, ap);
    va_end(ap);
    command_end(m);
}

const char *mupdate_arg(const struct mupdate_session *m, unsigned i)
{
    return m->line.word[2 + i].s;
}

static void logout(struct mupdate_session *m)
{
    m->logged_out = true;
    mupdate_answer(m, "OK", "bye-bye");
    m->closing = true;
    conn_close(m->conn, 0, "logged out");
}

/* --- Commands ------------------------------------------------------------------------------------------------------------------------ */

static const struct mupdate_verb *verb_find(const struct mupdate_word *w)
{
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (mupdate_word_is(w, verbs[i].name))
            return &verbs[i];
    return NULL;
}

/* The line's bytes are the connection's: kept while the command is worked on. */
static void command_keep(struct mupdate_session *m, const char *data, size_t len, const struct mupdate_line *line)
{
    if (m->command_size < len + 1) {
        free(m->command);
        m->command_size = len + 1 < 256 ? 256 : len + 1;
        m->command = mem_alloc(m->command_size);
    }
    memcpy(m->command, data, len);
    m->line.n = line->n;
    for (unsigned i = 0; i < line->n; i++) {
        m->line.word[i].s = m->command + (line->word[i].s - data);
        m->line.word[i].len = line->word[i].len;
        m->command[line->word[i].s - data + (ptrdiff_t)line->word[i].len] = '\0'; /* behind a word there is a quote, a space or the line's end */
    }
    m->tag = m->line.word[0];
}

static void dispatch(struct mupdate_session *m)
{
    const struct mupdate_verb *v = verb_find(&m->line.word[1]);
    unsigned args = m->line.n - 2;
    if (m->auth == MUPDATE_ANONYMOUS && (!v || v->role != ACCESS_NONE)) {
        mupdate_answer(m, "BAD", "Please login first");
        return;
    }
    if (!v) {
        mupdate_answer(m, "BAD", "Unrecognized command");
        return;
    }
    if (args < v->args_min || args > v->args_max) {
        mupdate_answer(m, "BAD", args < v->args_min ? "Missing arguments" : "Extra arguments");
        return;
    }
    if (m->update && !v->updating) {
        mupdate_answer(m, "BAD", "not legal when streaming");
        return;
    }
    m->verb = v;
    m->attempt = 0;
    m->deadline_ms = shared_now_ms() + v->time_ms;
    if (v->role != ACCESS_NONE && !mupdate_may(m, v->role))
        return;
    v->run(m);
}

/* Not words, or not enough of them. The texts are the stock master's where it has one. */
static void refuse(struct mupdate_session *m, const struct mupdate_line *line, const char *why)
{
    const char *behind = line->n ? line->word[0].s + line->word[0].len : NULL;
    if (line->n == 0 || *behind != ' ')
        say_bad(m, NULL, "Need command");
    else if (line->n == 1 && (behind[1] == ' ' || behind[1] == '\r' || behind[1] == '\n'))
        say_bad(m, &line->word[0], "Null command");
    else
        say_bad(m, &line->word[0], "%s", why);
}

/* Takes one line, or a response, if it is whole; how many bytes. 0: nothing more can be taken for now. */
static size_t take_one(struct mupdate_session *m, char *data, size_t len)
{
    struct err err = {0};
    struct mupdate_line line;
    struct mupdate_word word;
    size_t taken = 0;
    enum mupdate_parsed parsed;
    m->parser.len_max = m->auth == MUPDATE_ANONYMOUS ? MUPDATE_UNAUTH_LEN_MAX : 0;
    m->parser.literal_len_max = m->parser.len_max;
    do {
        parsed = m->responding ? mupdate_parse_response(&m->parser, data, len, &word, &taken, &err) : mupdate_parse(&m->parser, data, len, &line, &taken, &err);
        if (parsed == MUPDATE_GO_AHEAD)
            mupdate_send(m, "+ go ahead\r\n", 12);
    } while (parsed == MUPDATE_GO_AHEAD && m->conn && !m->closing);
    if (parsed == MUPDATE_FATAL) {
        logger_limited(LOGGER_WARN, "mupdate", "%s (%s): %s: connection closed", conn_peer_text(m->conn), m->access.identity, err.text);
        mupdate_bye(m, "%s", err.text);
        return 0;
    }
    if (parsed != MUPDATE_LINE && parsed != MUPDATE_BAD)
        return 0;
    if (m->responding) {
        m->responding = false;
        if (parsed == MUPDATE_LINE)
            mupdate_response(m, &word);
        else
            mupdate_answer(m, "BAD", "%s", err.text);
    } else if (parsed == MUPDATE_BAD || line.n < 2) {
        refuse(m, &line, err.text);
    } else {
        command_keep(m, data, taken, &line);
        m->busy = true;
        m->commands++;
        dispatch(m);
    }
    return taken;
}

/* Lines of `data` while there is no reason to wait; how many bytes. m->waits: there may be more. again_r: it stopped by itself, and shall go on in a later turn. */
static size_t take(struct mupdate_session *m, char *data, size_t len, bool *again_r)
{
    size_t at = 0;
    bool stop = false, part = false;
    m->taking = true;
    for (unsigned n = 0; at < len && !stop && !part && may_take(m); n++) {
        uint64_t commands = m->commands;
        if (!m->busy) /* a response belongs to the command before */
            m->verb = NULL;
        size_t taken = take_one(m, data + at, len - at);
        part = taken == 0;
        at += taken;
        stop = n + 1 == MUPDATE_TURN_COMMANDS || (m->commands != commands && m->verb && m->verb->last);
    }
    m->taking = false;
    m->waits = at < len && !part;
    *again_r = m->waits && may_take(m);
    return at;
}

/* Some more of what came, inflated; how much of it was read. Stops when there is enough to work on. */
static size_t inflate_some(struct mupdate_session *m, const uint8_t *data, size_t len)
{
    size_t at = 0;
    while (at < len && m->input.len < MUPDATE_AHEAD_LEN) {
        size_t step = len - at < INFLATE_STEP_LEN ? len - at : INFLATE_STEP_LEN;
        if (mupdate_inflate(m, data + at, step, &m->input) < 0) {
            logger_limited(LOGGER_WARN, "mupdate", "%s (%s): what it sends can't be decompressed: connection closed", conn_peer_text(m->conn), m->access.identity);
            mupdate_bye(m, "what came can't be decompressed");
            return len;
        }
        at += step;
    }
    return at;
}

static size_t take_packed(struct mupdate_session *m, const uint8_t *data, size_t len, bool *again_r)
{
    size_t read = inflate_some(m, data, len), taken = 0;
    if (m->input.len && !m->closing)
        taken = take(m, m->input.p, m->input.len, again_r);
    if (taken)
        memmove(m->input.p, m->input.p + taken, m->input.len - taken);
    m->input.len -= taken;
    if (m->input.len == 0)
        mupdate_out_free(&m->input);
    if (read < len) {
        m->waits = true;
        *again_r = *again_r || (taken && may_take(m)); /* there is room for more of it */
    }
    return read;
}

static size_t on_data(struct conn *conn, const uint8_t *data, size_t len)
{
    struct mupdate_session *m = conn_data(conn);
    bool again = false;
    if (m->closing)
        return len;
    m->waits = false;
    size_t taken = m->zip ? take_packed(m, data, len, &again) : take(m, (char *)(uintptr_t)data, len, &again);
    if (m->closing)
        return len;
    if (len - taken >= MUPDATE_AHEAD_LEN && m->waits) {
        m->held = true;
        conn_pause(conn, true);
    }
    if (again)
        srv_stream_run(m->service, &m->turn);
    else if (m->ended && may_take(m))
        end_by_itself(m); /* the rest is part of a line */
    view_doing(m);
    return taken;
}

static void on_turn(struct srv_stream *st)
{
    struct mupdate_session *m = (struct mupdate_session *)((char *)st - offsetof(struct mupdate_session, turn));
    if (m->zip && m->input.len)
        on_data(m->conn, NULL, 0);
    if (m->closing)
        return;
    m->held = false;
    conn_pause(m->conn, false); /* offers what is left */
}

/* --- Connections ------------------------------------------------------------------------------------------------------------------------ */

static void on_open(struct conn *conn)
{
    struct mupdate_session *m = conn_data(conn);
    if (m->closing)
        return;
    mupdate_auth_begin(m);
    mupdate_view_refresh(m);
    view_doing(m);
    mupdate_banner(m);
}

static void on_drain(struct conn *conn)
{
    struct mupdate_session *m = conn_data(conn);
    if (m->list)
        mupdate_list_drained(m);
    if (m->update)
        mupdate_update_drained(m);
    mupdate_go_on(m);
}

static void on_oversize(struct conn *conn, int code, const char *why)
{
    struct mupdate_session *m = conn_data(conn);
    (void)code;
    logger_limited(LOGGER_WARN, "mupdate", "%s (%s): %s: connection closed", conn_peer_text(conn), m->access.identity, why);
}

static void on_tls(struct conn *conn)
{
    struct mupdate_session *m = conn_data(conn);
    if (!m->closing)
        mupdate_tls_done(m);
}

static void on_eof(struct conn *conn)
{
    struct mupdate_session *m = conn_data(conn);
    m->ended = true;
    if (m->update && !m->busy)
        end_by_itself(m); /* a slave that has gone */
    else
        mupdate_go_on(m);
}

void mupdate_release(struct mupdate_session *m)
{
    struct service *s = m->service;
    if (!m->freed || m->calling || m->stepping || m->list || m->update)
        return;
    DL_DELETE(s->mupdates, m);
    srv_wait_cancel(&m->wait);
    srv_stream_stop(&m->turn);
    free(m->call.result);
    free(m->packed);
    command_wipe(m);
    free(m->command);
    mupdate_out_free(&m->input);
    free(m);
}

static void on_close(struct conn *conn, int code, const char *why)
{
    struct mupdate_session *m = conn_data(conn);
    if (code == RAFTDIR_EAUTH)
        logger_limited(LOGGER_WARN, "mupdate", "%s: refused: %s", conn_peer_text(conn), why);
    else
        logger_line(LOGGER_DEBUG, "mupdate", "%s (%s): closed: %s", conn_peer_text(conn), m->access.identity, why);
    mupdate_view_close(m);
    m->conn = NULL;
    m->closing = m->freed = true;
    atomic_fetch_sub(&m->service->d->mupdates, 1);
    srv_wait_cancel(&m->wait);
    srv_stream_stop(&m->turn);
    mupdate_list_close(m);
    mupdate_update_close(m);
    mupdate_write_close(m);
    mupdate_auth_close(m);
    mupdate_release(m);
}

static const struct conn_events events = {.on_open = on_open,
                                          .on_data = on_data,
                                          .on_tls = on_tls,
                                          .on_drain = on_drain,
                                          .on_oversize = on_oversize,
                                          .on_eof = on_eof,
                                          .on_close = on_close};

void mupdate_accept(struct srv_listener *l, bool local, bool tls)
{
    struct service *s = l->service;
    struct err err = {0};
    struct conn *conn;
    SSL_CTX *context = tls ? daemon_tls_optional(s->d) : NULL;
    struct conn_options o = {.tls = context, .raw = true, .frame_len_max = FRAME_LEN_MAX, .out_len_max = OUT_LEN_MAX, .notsent_len = MUPDATE_NOTSENT_LEN, .user_timeout_ms = USER_TIMEOUT_MS};
    int rc = conn_accept(&s->loop, &l->stream, &o, &events, &conn, &err);
    SSL_CTX_free(context);
    if (rc != 0) {
        logger_limited(LOGGER_WARN, "mupdate", "can't take a connection: %s", err.text);
        return;
    }
    struct mupdate_session *m = mem_calloc(1, sizeof *m);
    m->service = s;
    m->conn = conn;
    m->local = local;
    m->tls = tls;
    m->since_ms = m->last_ms = m->sent_ms = shared_now_ms();
    m->turn.turn = on_turn;
    snprintf(m->access.identity, sizeof m->access.identity, "not identified yet");
    conn_data_set(conn, m);
    DL_APPEND(s->mupdates, m);
    mupdate_view_open(m);
    if (atomic_fetch_add(&s->d->mupdates, 1) >= MUPDATE_CONNS_MAX) {
        logger_limited(LOGGER_WARN, "mupdate", "%d connections are open: no more are taken until some close", MUPDATE_CONNS_MAX);
        mupdate_bye(m, "too many connections");
    }
}

/* --- Time --------------------------------------------------------------------------------------------------------------------------------- */

/* What ends a session without a word of its client's. */
static void session_look(struct mupdate_session *m, uint64_t now, enum shared_phase phase)
{
    if (m->closing)
        return;
    uint64_t sent = conn_sent_len(m->conn);
    if (sent != m->sent_len || conn_queued_len(m->conn) == 0) {
        m->sent_len = sent;
        m->sent_ms = now;
    }
    if (phase == SHARED_FAILED)
        mupdate_bye(m, "this node has failed, use another");
    else if (phase == SHARED_REMOVED || phase == SHARED_UNCONFIGURED)
        mupdate_bye(m, "this node is no member of the cluster any more, use another");
    else if (phase == SHARED_STOPPING && !m->busy && !m->deleted)
        mupdate_bye(m, "this node is shutting down, use another");
    else if (!m->busy && !mupdate_auth_holds(m))
        mupdate_bye(m, "%s has no role here any more", m->access.identity);
    else if (m->auth == MUPDATE_ANONYMOUS && now - m->since_ms > MUPDATE_LOGIN_MS)
        mupdate_bye(m, "too long without login");
    else if (!m->busy && !m->update && now - m->last_ms > MUPDATE_IDLE_MS)
        mupdate_bye(m, "too long without a command");
    else if (now - m->sent_ms > MUPDATE_STALL_MS) {
        logger_limited(LOGGER_WARN, "mupdate", "%s (%s): has read nothing for %d s while %zu bytes wait for it: connection closed", conn_peer_text(m->conn), m->access.identity,
                       MUPDATE_STALL_MS / 1000, conn_queued_len(m->conn));
        m->closing = true;
        conn_close(m->conn, RAFTDIR_ETIMEDOUT, "the client doesn't read");
    } else if (m->update || m->busy || m->view.queued_len) {
        view_doing(m); /* what is queued for it */
    }
}

void srv_mupdate_tick(struct service *s, uint64_t now)
{
    struct shared_view view;
    mupdate_listen_look(s, now);
    shared_view_get(&s->d->shared, &view);
    if (view.phase == SHARED_RUNNING && now - s->mupdate_looked_ms < LOOK_MS)
        return;
    s->mupdate_looked_ms = now;
    for (struct mupdate_session *m = s->mupdates; m; m = m->next)
        session_look(m, now, view.phase);
}

void srv_mupdate_stop(struct service *s)
{
    mupdate_listen_close(s, "the daemon stops");
    for (struct mupdate_session *m = s->mupdates; m; m = m->next)
        mupdate_bye(m, "this node is shutting down, use another");
}
