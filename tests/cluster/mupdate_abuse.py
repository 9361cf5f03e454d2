#!/usr/bin/env python3
"""Clients that do wrong to a node's MUPDATE, for cluster/mupdate_abuse and cluster/mupdate_garbage.

    mupdate_abuse.py probe ADDRESS FILE STOP          a good client: FIND and ACTIVATE on and on until the file STOP exists; a line "SECONDS KIND MS" each into FILE (monotonic clock)
    mupdate_abuse.py CASE ADDRESS PID PROBE QUIET     one of `cases` below, while a probe writes PROBE; QUIET holds its quiet figures ("quiet" makes it). PID: the node's, for its memory
    mupdate_abuse.py garbage ADDRESS TLS_ADDRESS      the table of things that aren't MUPDATE, one after the other, before and after a login
    mupdate_abuse.py descriptors ADDRESS PID          more connections than the node, which has 800 descriptors, may take

Prints "figure ..." lines; what is wrong goes to standard error, exit status 1.
"""
import json, os, random, resource, select, socket, ssl, struct, sys, threading, time
import mupdate_client as mc

CONNS = 10000           # of "idle"
ROOM_MS = {"find": 60, "write": 120} # what abuse may add to a good client's p99: this machine has other things to do as well, and the abusers need a processor, too;
ROOM_FACTOR = 5                      # or this many times the quiet one
failures = []


def wrong(text):
    failures.append(text)
    print("    " + text, file=sys.stderr)


def figure(text):
    print("figure " + text, flush=True)


# --- The probe --------------------------------------------------------------------------------------------------------------------------

def probe(address, file, stop):
    out, lock = open(file, "w", buffering=1), threading.Lock()

    def work(kind, pause, act):
        m = mc.Mupdate(address).login()
        n = 0
        while not os.path.exists(stop):
            began = time.monotonic()
            problem = act(m, n)
            ms = (time.monotonic() - began) * 1000
            with lock:
                out.write("%.4f %s %.3f %s\n" % (began, kind, ms, problem))
            n += 1
            time.sleep(pause)
        m.logout()

    def find(m, n):
        a = m.find("user.probe")
        return "" if a.word == "OK" and len(a.rows) == 1 and a.rows[0][0] == "MAILBOX" else "PROBLEM:%r" % (a,)

    def write(m, n):
        a = m.activate("user.probe", "be1!p1", "probe\tlrs\tn%d\tl\t" % n)
        return "" if a.word == "OK" else "PROBLEM:%r" % (a,)

    def guarded(*args):
        try:
            work(*args)
        except Exception as e: # the case that reads the file reports it
            out.write("%.4f %s 0 PROBLEM:%r\n" % (time.monotonic(), args[0], e))

    first = mc.Mupdate(address).login()
    write(first, 0)
    first.logout()
    threads = [threading.Thread(target=guarded, args=a) for a in (("find", 0.002, find), ("write", 0.01, write))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def probed(file, since, until):
    """{kind: sorted ms} of what began within the time."""
    found = {"find": [], "write": []}
    with open(file) as f:
        for line in f:
            words = line.split(" ", 3)
            if len(words) < 4 or not since <= float(words[0]) <= until:
                continue
            if words[3].strip():
                wrong("a good client's %s: %s" % (words[1], words[3].strip()))
            else:
                found[words[1]].append(float(words[2]))
    return {k: sorted(v) for k, v in found.items()}


def p99(times):
    return times[min(len(times) - 1, int(len(times) * 0.99))] if times else float("inf")


class Watched:
    """with Watched(...): what is done to the node meanwhile mustn't show in the probe's times."""

    def __init__(self, what, probe_file, quiet_file):
        self.what, self.file = what, probe_file
        self.quiet = json.load(open(quiet_file))

    def __enter__(self):
        self.began = time.monotonic()
        return self

    def __exit__(self, *e):
        ended = time.monotonic()
        time.sleep(0.1)
        for kind, times in probed(self.file, self.began, ended).items():
            quiet, busy = self.quiet[kind], p99(times)
            figure("mupdate_abuse/%s: %s p99 %.1f ms, longest %.1f ms, %d of them (quiet: %.1f ms)" % (self.what, kind, busy, times[-1] if times else -1, len(times), quiet))
            if len(times) < 10 * (ended - self.began):
                wrong("%s: only %d %s in %.1f s" % (self.what, len(times), kind, ended - self.began))
            if busy > max(quiet * ROOM_FACTOR, quiet + ROOM_MS[kind]):
                wrong("%s: a good client's %s takes %.1f ms (p99), %.1f ms when it is quiet" % (self.what, kind, busy, quiet))


def quiet(address, pid, probe_file, quiet_file):
    began = time.monotonic()
    time.sleep(2)
    times = probed(probe_file, began, time.monotonic())
    for kind in times:
        figure("mupdate_abuse/quiet: %s p99 %.1f ms, %d of them" % (kind, p99(times[kind]), len(times[kind])))
        if len(times[kind]) < 30:
            wrong("the probe does nothing: %d %s" % (len(times[kind]), kind))
    json.dump({k: p99(v) for k, v in times.items()}, open(quiet_file, "w"))


# --- Tools ------------------------------------------------------------------------------------------------------------------------------

def rss_kb(pid):
    with open("/proc/%s/status" % pid) as f:
        return next(int(l.split()[1]) for l in f if l.startswith("VmRSS"))


def dial(address, receive_len=None):
    host, port = address.rsplit(":", 1)
    s = socket.socket()
    if receive_len:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_len)
    s.settimeout(20)
    s.connect((host, int(port)))
    return s


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def read_until(s, end):
    data = b""
    while end not in data:
        piece = s.recv(65536)
        if not piece:
            raise mc.Closed("closed after %r" % data[-200:])
        data += piece
    return data


# --- Cases ------------------------------------------------------------------------------------------------------------------------------

def idle(address, pid, probe_file, quiet_file):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    n = min(CONNS, hard - 500)
    if n < CONNS:
        figure("mupdate_abuse/idle: this machine's limit of open files allows %d connections only" % n)
    n_tls, n_login = n // 20, n // 20
    with Watched("idle", probe_file, quiet_file):
        idle_rounds(address, pid, n, n_tls, n_login)


def idle_rounds(address, pid, n, n_tls, n_login):
    tops, context = [], ssl._create_unverified_context()
    for round_number in range(2):
        if round_number:
            n_tls, n_login = 20, 20
        conns, at = [], rss_kb(pid)
        began = time.monotonic()
        while len(conns) < n - n_tls - n_login:
            batch = [dial(address) for _ in range(min(200, n - n_tls - n_login - len(conns)))]
            for s in batch:
                read_until(s, b"* OK MUPDATE")
            conns += batch
        figure("mupdate_abuse/idle: %d connections in %.1f s" % (len(conns), time.monotonic() - began))
        clear = rss_kb(pid)
        per = (clear - at) / len(conns)
        for _ in range(n_login):
            conns.append(mc.Mupdate(address).login().socket)
        login = rss_kb(pid)
        for _ in range(n_tls):
            s = dial(address)
            read_until(s, b"(master)\"\r\n")
            s.sendall(b"S1 STARTTLS\r\n")
            read_until(s, b"S1 OK")
            s = context.wrap_socket(s)
            read_until(s, b"* OK MUPDATE")
            conns.append(s)
        tops.append(rss_kb(pid))
        per_tls = (tops[-1] - login) / n_tls
        time.sleep(0.5)
        if round_number == 0:
            figure("mupdate_abuse/idle: %d open; memory %.1f MB before, %.1f MB with all; %.1f KB for one, %.1f KB for one that has logged in, %.1f KB for one with TLS" %
                   (len(conns), at / 1024, tops[0] / 1024, per, (login - clear) / n_login, per_tls))
            if per > 11:
                wrong("an idle connection costs %.1f KB" % per)
            if per_tls > 40:
                wrong("an idle TLS connection costs %.1f KB" % per_tls)
        elif tops[1] > tops[0] * 1.1 + 4096:
            wrong("the same connections again take more memory: %d KB, then %d KB" % tuple(tops))
        for s in conns:
            s.close()
        time.sleep(0.5)
    figure("mupdate_abuse/idle: again %.1f MB" % (tops[1] / 1024))


def pipelines(address, pid, probe_file, quiet_file):
    before, conns, n = rss_kb(pid), [], 30000
    with Watched("pipelines", probe_file, quiet_file):
        for i in range(6):
            m = mc.Mupdate(address).login()
            m.socket.settimeout(0)
            data = bytearray()
            for k in range(n):
                if i == 0 and k % 100 == 0:
                    data += b"P%d ACTIVATE \"user.pipe%d\" \"be1!p1\" \"a\tlrs\t\"\r\n" % (k, k % 500)
                else:
                    data += b"P%d FIND \"user.m%d\"\r\n" % (k, k % 1000)
            conns.append([m, data, 0])
        # Nobody reads until nothing more is taken.
        last = time.monotonic()
        while time.monotonic() - last < 0.7:
            for c in conns:
                try:
                    k = c[0].socket.send(c[1][c[2]:c[2] + 65536]) if c[2] < len(c[1]) else 0
                    if k:
                        c[2] += k
                        last = time.monotonic()
                except BlockingIOError:
                    pass
            time.sleep(0.005)
        grown = rss_kb(pid) - before
        figure("mupdate_abuse/pipelines: %d connections, %d KB of commands taken without an answer being read, %.1f MB of memory" %
               (len(conns), sum(c[2] for c in conns) // 1024, grown / 1024))
        if grown > len(conns) * 6 * 1024:
            wrong("pipelines of %d clients take %d KB" % (len(conns), grown))
        # Then all of it: each command once, in order.
        received, deadline = [b""] * len(conns), time.monotonic() + 40
        nexts = [0] * len(conns)
        while time.monotonic() < deadline and min(nexts) < n:
            readable, writable, _ = select.select([c[0].socket for c in conns], [c[0].socket for c in conns if c[2] < len(c[1])], [], 1)
            for i, c in enumerate(conns):
                if c[0].socket in writable:
                    try:
                        c[2] += c[0].socket.send(c[1][c[2]:c[2] + 65536])
                    except BlockingIOError:
                        pass
                if c[0].socket in readable:
                    piece = c[0].socket.recv(1 << 18)
                    if not piece:
                        wrong("pipelines: connection %d was closed after %d answers" % (i, nexts[i]))
                        nexts[i] = n
                        continue
                    lines = (received[i] + piece).split(b"\n")
                    received[i] = lines.pop()
                    for line in lines:
                        if not line.startswith(b"P"):
                            continue # of a literal
                        tag, word = line.split(b" ", 2)[:2]
                        if word in (b"OK", b"NO", b"BAD"):
                            if tag != b"P%d" % nexts[i] or word != b"OK":
                                wrong("pipelines: %r instead of P%d OK" % (line, nexts[i]))
                                return
                            nexts[i] += 1
        if min(nexts) < n:
            wrong("pipelines: answers are missing: %r of %d" % (nexts, n))
    for c in conns:
        c[0].socket.close()


def list_read(m):
    """Rows up to the answer of L1, seconds; 0 rows without one."""
    rows, end, began = 0, b"", time.monotonic()
    m.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    while b"L1 OK" not in end:
        piece = m.socket.recv(1 << 20)
        if not piece:
            return 0, time.monotonic() - began
        rows += (end[-6:] + piece).count(b"MAILBOX")
        end = (end + piece)[-100:]
    return rows, time.monotonic() - began


def slow_readers(address, pid, probe_file, quiet_file):
    before, conns = rss_kb(pid), []
    with Watched("slow_readers", probe_file, quiet_file):
        for i in range(60):
            s = dial(address, 4096)
            m = mc.Mupdate(address, connected=s).login()
            m.send("L1 %s\r\n" % ("LIST" if i % 2 else "UPDATE"))
            conns.append(m)
        # Some of them read a little now and then.
        until, grown = time.monotonic() + 3, 0
        while time.monotonic() < until:
            for m in conns[:10]:
                m.socket.recv(512)
            time.sleep(0.1)
            grown = max(grown, rss_kb(pid) - before)
        figure("mupdate_abuse/slow_readers: %d LISTs and UPDATEs that nobody reads: %.1f MB of memory, %.1f MB each" % (len(conns), grown / 1024, grown / 1024 / len(conns)))
        if grown > len(conns) * 3.2 * 1024:
            wrong("%d slow readers take %d KB" % (len(conns), grown))
        # The others' lists still come; and the whole of a slow reader's, as soon as he reads.
        other = mc.Mupdate(address, timeout=20).login()
        other.send("L1 LIST\r\n")
        for who, m in (("beside slow readers", other), ("of a slow reader that reads at last", conns[11])):
            rows, took = list_read(m)
            figure("mupdate_abuse/slow_readers: LIST %s: %d rows in %.2f s" % (who, rows, took))
            if rows < 40000 or took > 10:
                wrong("LIST %s: %d rows in %.1f s" % (who, rows, took))
    for i, m in enumerate(conns):
        reset(m.socket) if i % 3 else m.socket.close()


VERBS = ["FIND {10+}\r\nuser.m0000", "LIST", "LIST \"be1!\"", "UPDATE", "NOOP", "RESERVE \"user.v%d\" \"be1!p1\"", "ACTIVATE \"user.v%d\" \"be1!p1\" {8+}\r\nme\tlrs\t ", "DEACTIVATE \"user.v%d\" \"be1!p1\"",
         "DELETE \"user.v%d\"", "LOGOUT", "AUTHENTICATE PLAIN", "COMPRESS \"DEFLATE\"", "STARTTLS"]


def vanish(address, pid, probe_file, quiet_file):
    rnd, n = random.Random(4711), 0
    before = rss_kb(pid)
    with Watched("vanish", probe_file, quiet_file):
        until = time.monotonic() + 3
        while time.monotonic() < until:
            verb = VERBS[n % len(VERBS)]
            line = ("V1 " + (verb % (n % 97) if "%d" in verb else verb) + "\r\n").encode()
            s = dial(address)
            try:
                if n % 7 and not (verb == "STARTTLS" and n % 2):
                    mc.Mupdate(address, connected=s).login()
                whole = n % 3 == 0
                s.sendall(line * (1 if n % 5 else 20) if whole else line[:rnd.randrange(1, len(line))])
                if whole and n % 2:
                    time.sleep(rnd.random() * 0.01)
                if whole and n % 4 == 1:
                    s.recv(rnd.randrange(1, 2000))
            except (OSError, mc.Closed):
                pass
            reset(s) if rnd.random() < 0.5 else s.close()
            n += 1
    figure("mupdate_abuse/vanish: %d clients, in the middle of each verb; %.1f MB more memory" % (n, (rss_kb(pid) - before) / 1024))
    if rss_kb(pid) - before > 64 * 1024:
        wrong("vanishing clients left %d KB" % (rss_kb(pid) - before))
    if n < 100:
        wrong("only %d clients came and went" % n)


# --- Garbage ----------------------------------------------------------------------------------------------------------------------------

def expect(address, name, data, wanted, login, slow=False):
    """Sends data; `wanted` (bytes, or a list of which one) must be in what comes back. BYE: and then the connection ends by itself. BAD: what comes behind it is done. Else it ends
    when we close our side."""
    s = dial(address)
    what = "garbage/%s, %s login" % (name, "after" if login else "before")
    try:
        got = read_until(s, b"(master)\"\r\n")
        if login:
            s.sendall(b'L1 AUTHENTICATE "PLAIN" "AG11cmRlcgBtdXJkZXJwdw=="\r\n')
            got = read_until(s, b"L1 OK")
            if b"L1 OK" not in got:
                wrong("%s: no login: %r" % (what, got))
                return
        wants = wanted if isinstance(wanted, list) else [wanted]
        bye, bad = wanted == b"* BYE", login and not isinstance(wanted, list) and wanted.endswith(b"BAD")
        if bad:
            data += b"G9 NOOP\r\n"
        try:
            if slow:
                for i in range(0, len(data)):
                    s.sendall(data[i:i + 1])
            else:
                s.sendall(data)
            if not bye:
                s.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass # it has said why, and closed
        got, ended = b"", False
        s.settimeout(10)
        try:
            while len(got) < 1 << 24:
                piece = s.recv(1 << 16)
                if not piece:
                    ended = True
                    break
                got += piece
        except ConnectionResetError:
            ended = True
        except socket.timeout:
            pass
        if bad and b"G9 OK" not in got:
            wrong("%s: nothing is done afterwards: %r" % (what, got[-300:]))
        if not any(w in got for w in wants):
            wrong("%s: %r instead of %r" % (what, got[-300:], wanted))
        if not ended:
            wrong("%s: the connection stays open" % what)
    except (OSError, mc.Closed) as e:
        wrong("%s: %s" % (what, e))
    finally:
        s.close()


def garbage(address, tls_address):
    rnd = random.Random(4711)
    N = b"G9 NOOP\r\n"
    both = [
        ("a literal of 99999999+", b"G1 FIND {99999999+}\r\n" + b"x" * 200000, b"* BYE"),
        ("that literal as the tag", b"{99999999+}\r\n" + b"x" * 200000, b"* BYE"),
        ("that literal as a verb", b"G1 {99999999+}\r\n" + b"x" * 200000, b"* BYE"),
        ("a literal of 99999999", b"G1 FIND {99999999}\r\n", b"G1 BAD"),
        ("a literal of 2^32", b"G1 FIND {4294967296+}\r\nabc\r\n", b"* BYE"),
        ("a literal of 2^64 and 5", b"G1 FIND {18446744073709551621+}\r\nabcde\r\n", [b"* BYE", b"BAD"]),
        ("a literal of 10^400", b"G1 FIND {1" + b"0" * 400 + b"+}\r\nabc\r\n", [b"* BYE", b"BAD"]),
        ("a literal of -1", b"G1 FIND {-1+}\r\nabc\r\n", [b"* BYE", b"BAD"]),
        ("a literal without a number", b"G1 FIND {+}\r\nabc\r\n", [b"* BYE", b"BAD"]),
        ("half a literal's head", b"G1 FIND {12", b""),
        ("half a literal", b"G1 FIND {12+}\r\nabc", b""),
        ("a synchronous literal and nothing", b"G1 FIND {12}\r\n", b"+ go ahead"),
        ("many literals", b"G1 UPDATE" + b" {4000+}\r\n" + b" {4000+}\r\n".join([b"y" * 4000] * 60) + b"\r\n", b"* BYE"),
        ("many synchronous literals", b"G1 UPDATE" + (b" {4000}\r\n" + b"y" * 4000) * 60 + b"\r\n", [b"* BYE", b"BAD"]),
        ("a line of 1 MB", b"G1 FIND " + b"x" * 1000000, b"* BYE"),
        ("a quoted string of 1 MB", b"G1 FIND \"" + b"x" * 1000000, b"* BYE"),
        ("a tag of 1 MB", b"x" * 1000000, b"* BYE"),
        ("words without end", b"G1 FIND" + b" x" * 500000, b"* BYE"),
        ("blanks without end", b" " * 1000000, b"* BYE"),
        ("70 words", b"G1 UPDATE" + b" x" * 70 + b"\r\n", b"G1 BAD"),
        ("NULs", b"\0" * 100000, b"* BYE"),
        ("a NUL in a word", b"G1 FIND a\0b\r\n", b"BAD"),
        ("a NUL in a literal", b"G1 FIND {3+}\r\na\0b\r\n", b"BAD"),
        ("a quote that doesn't end", b"G1 FIND \"abc\r\n", b"G1 BAD"),
        ("a bare CR", b"G1 FIND a\rb\r\n", b"BAD"),
        ("only a tag", b"G1\r\n", b"BAD"),
        ("no verb", b"G1 \r\n", b"BAD"),
        ("an unknown verb", b"G1 EHLO x\r\n", b"G1 BAD"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET BAD"),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rnd.randbytes(506) + b"\n", b"BAD"),
        ("20,000 empty lines", b"\r\n" * 20000, b"BAD"),
        ("20,000 bare LFs", b"\n" * 20000, b"BAD"),
        ("bytes behind STARTTLS", b"G1 STARTTLS\r\n" + N, [b"G1 OK", b"G1 BAD"]),
        ("random bytes", rnd.randbytes(200000), [b"BAD", b"* BYE"]),
        ("random lines", b"".join(rnd.randbytes(20).replace(b"{", b"}") + b"\r\n" for _ in range(5000)), [b"BAD", b"* BYE"]),
        ("base64 that is none", b"G1 AUTHENTICATE PLAIN \"!!!!\"\r\n", [b"G1 NO", b"G1 BAD"]),
        ("an unknown mechanism", b"G1 AUTHENTICATE KERBEROS_V4\r\n", [b"G1 NO", b"G1 BAD"]),
        ("a mechanism of 8,000 bytes", b"G1 AUTHENTICATE " + b"X" * 8000 + b"\r\n", [b"G1 NO", b"G1 BAD"]),
    ]
    before = [
        ("a verb without login", N, b"G9 BAD \"Please login first\""),
        ("an endless response", b"G1 AUTHENTICATE PLAIN\r\n" + b"A" * 300000, b"* BYE"),
        ("a response of 99999999+", b"G1 AUTHENTICATE PLAIN\r\n{99999999+}\r\n" + b"A" * 100000, b"* BYE"),
        ("COMPRESS without login", b"G1 COMPRESS \"DEFLATE\"\r\n", b"BAD"),
        ("40 KB, which is more than a login needs", b"G1 AUTHENTICATE PLAIN {40000+}\r\n" + b"A" * 40000 + b"\r\n", b"* BYE"),
    ]
    after = [
        ("a name of 4 KB", b"G1 FIND {4000+}\r\n" + b"x" * 4000 + b"\r\n", [b"G1 NO", b"G1 OK"]),
        ("an ACL of 66 KB", b"G1 ACTIVATE a {4+}\r\nb!p1 {66000+}\r\n" + b"x" * 66000 + b"\r\n", [b"G1 NO", b"G1 BAD"]),
        ("a location that is none", b"G1 RESERVE a b\r\n", [b"G1 NO", b"G1 BAD"]),
        ("COMPRESS and then garbage", b"G1 COMPRESS \"DEFLATE\"\r\n", b"G1 OK"),
        ("a name with a NUL", b"G1 RESERVE {3+}\r\na\0b \"b!p\"\r\n", b"BAD"),
    ]
    for login in (False, True):
        for name, data, wanted in both + (after if login else before):
            expect(address, name, data, wanted, login)
    # A byte at a time, so that each piece ends at each place.
    for name, data, wanted in both[:1] + both[9:11]:
        expect(address, name + ", byte by byte", data[:300], [wanted, b""], True, slow=True)
    # Compressed: what isn't, and what would become a gigabyte.
    import zlib
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b"\0" * (64 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    for name, data in (("a bomb", bomb), ("not compressed", b"G2 NOOP\r\n" * 1000), ("random", rnd.randbytes(100000))):
        try:
            m = mc.Mupdate(address).login()
            m.command("COMPRESS", "DEFLATE", form="quoted")
            m.send(data)
            m.socket.settimeout(10)
            m.read_all()
        except (OSError, mc.Closed, mc.Refused) as e:
            if isinstance(e, socket.timeout):
                wrong("garbage/COMPRESS and then %s: the connection stays open" % name)
    # Where TLS is spoken.
    for name, data in (("MUPDATE in clear", N), ("random bytes", rnd.randbytes(50000)), ("nothing", b""), ("half a hello", b"\x16\x03\x01\x02\x00\x01\x00")):
        s = dial(tls_address)
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except socket.timeout:
            wrong("garbage/%s to the TLS port: the connection stays open" % name)
        s.close()


def descriptors(address, pid):
    open_files = lambda: len(os.listdir("/proc/%s/fd" % pid))
    good, conns, refused = mc.Mupdate(address).login(), [], 0
    for i in range(1500):
        s = dial(address)
        got = b""
        try:
            got = s.recv(100)
        except ConnectionResetError:
            pass
        refused += not got.startswith(b"* AUTH")
        if got and not got.startswith((b"* AUTH", b"* BYE \"too many connections\"")):
            wrong("descriptors: connection %d is told %r" % (i, got))
        conns.append(s)
    figure("mupdate_garbage/descriptors: %d connections taken, %d refused, %d descriptors open of 800" % (len(conns) - refused, refused, open_files()))
    if refused < 500 or len(conns) - refused < 200 or open_files() > 800 - 200:
        wrong("descriptors: %d connections refused, %d descriptors open" % (refused, open_files()))
    if good.find("user.anna").word != "OK":
        wrong("descriptors: FIND of who was there before")
    for s in conns:
        s.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if mc.Mupdate(address).login().find("user.anna").word == "OK":
                return
        except (OSError, mc.Closed, mc.Refused):
            time.sleep(0.1)
    wrong("descriptors: no connection is taken afterwards")


cases = {f.__name__: f for f in (quiet, idle, pipelines, slow_readers, vanish)}


def main(argv):
    if argv[:1] == ["probe"]:
        probe(*argv[1:])
    elif argv[:1] == ["garbage"]:
        garbage(*argv[1:])
    elif argv[:1] == ["descriptors"]:
        descriptors(*argv[1:])
    elif argv and argv[0] in cases:
        cases[argv[0]](*argv[1:])
    else:
        print(__doc__)
        return 64
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
