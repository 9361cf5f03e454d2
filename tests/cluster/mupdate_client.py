#!/usr/bin/env python3
"""A synchronous MUPDATE client for tests: a library and a command line. Knows no more of the protocol than RFC 3656 and what Cyrus' programs say.

    import mupdate_client as mc
    m = mc.Mupdate("127.0.0.1:3905").login()
    m.activate("user.a", "be1!p1", "a\tlrswipkxtecda\t")     # Answer(word="OK", text="done", rows=[])
    m.find("user.a").rows                                  # [("MAILBOX", "user.a", "be1!p1", "a\tlrs...\t")]
    m.command("FIND", "user.a", form="sync")               # as a literal that waits for "+ go ahead"; "quoted", "atom"
    copy = mc.Copy("127.0.0.1:3905"); copy.start()         # UPDATE in a thread: copy.boxes, copy.noop(), copy.stop()

Strings are str, each byte of the wire one character of Latin-1. Every wait has a limit (timeout); Closed means that the other end has closed, with what it said last.

    mupdate_client.py [options] ADDRESS VERB [ARGUMENT...]      prints rows ("MAILBOX|name|location|acl") and the answer ("OK done"); exit status 0: OK, 1: NO, 2: BAD, 3: no connection
    mupdate_client.py [options] ADDRESS script                  commands from standard input, one a line, arguments separated by blanks ("%s" in one is a blank, "%t" a tab)
    mupdate_client.py [options] ADDRESS raw                     sends standard input as it is, prints what comes until the other end closes (or --timeout, exit status 3)
    mupdate_client.py [options] ADDRESS copy FILE STOP          keeps a copy by UPDATE, reconnecting, through ADDRESS,ADDRESS,... in turn, until the file STOP exists; then NOOP, and
                                                                writes it to FILE, sorted, a line a mailbox. VERB's arguments: servers of a partial update
Options: --user U --password P (default: $CLUSTER_MUPDATE_USER, _PASSWORD, else murder, murderpw), --noauth, --tls, --starttls, --ca FILE, --cert FILE --key FILE,
--form plus|sync|quoted|atom, --timeout SECONDS. ADDRESS: HOST:PORT, or the path of a Unix socket.
"""
import base64, collections, os, socket, ssl, sys, threading, time

Answer = collections.namedtuple("Answer", "word text rows")


class Closed(Exception):
    pass


class Refused(Exception):
    pass


class Mupdate:
    def __init__(self, address, tls=None, ca=None, cert=None, key=None, timeout=15, banner=True, connected=None):
        """tls: None, "tls" (from the first byte) or "starttls". connected: a socket, instead of one of our own."""
        self.address, self.timeout, self.tag_number, self.updating = address, timeout, 0, None
        self.buffer, self.lines, self.auth = bytearray(), [], [] # a bytearray loses its beginning without being copied
        self.context = None
        if tls:
            self.context = ssl.create_default_context(cafile=ca) if ca else ssl._create_unverified_context()
            self.context.check_hostname = False
            if cert:
                self.context.load_cert_chain(cert, key)
        if connected:
            self.socket = connected
        elif address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        else:
            host, port = address.rsplit(":", 1)
            self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls == "tls":
            self.socket = self.context.wrap_socket(self.socket)
        if banner:
            self.read_banner()
        if tls == "starttls":
            self.starttls()

    # --- Bytes ---
    def send(self, data):
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def fill(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise Closed("closed by the other end after %r" % self.lines[-3:])
        self.buffer += data

    def take(self, n):
        while len(self.buffer) < n:
            self.fill()
        data = bytes(self.buffer[:n])
        del self.buffer[:n]
        return data

    def take_line(self):
        at = 0
        while True:
            i = self.buffer.find(b"\n", at)
            if i >= 0:
                return self.take(i + 1)
            at = len(self.buffer)
            self.fill()

    def read_all(self):
        """Everything until the other end closes."""
        try:
            while True:
                self.fill()
        except (Closed, ConnectionResetError):
            data, self.buffer = self.buffer, bytearray()
            return data.decode("latin-1")

    # --- Lines: lists of words; a quoted text and a literal are one word each ---
    def read_words(self):
        words, line = [], self.take_line()
        shown = line
        while True:
            at = 0
            while at < len(line):
                c = line[at:at + 1]
                if c in b" \r\n":
                    at += 1
                elif c == b'"':
                    word, at = b"", at + 1
                    while at < len(line) and line[at:at + 1] != b'"':
                        if line[at:at + 1] == b"\\":
                            at += 1
                        word += line[at:at + 1]
                        at += 1
                    at += 1
                    words.append(word.decode("latin-1"))
                elif c == b"{" and line.rstrip(b"\r\n").endswith(b"}") and b" " not in line[at:].rstrip(b"\r\n"):
                    n = int(line[at + 1:].rstrip(b"\r\n").rstrip(b"}").rstrip(b"+"))
                    words.append(self.take(n).decode("latin-1"))
                    line = self.take_line()
                    shown += line
                    break
                else:
                    end = at
                    while end < len(line) and line[end:end + 1] not in b" \r\n":
                        end += 1
                    words.append(line[at:end].decode("latin-1"))
                    at = end
            else:
                self.lines = self.lines[-9:] + [shown.decode("latin-1")]
                return words

    def read_banner(self):
        self.capabilities = []
        while True:
            words = self.read_words()
            if words[:1] != ["*"] or len(words) < 2:
                raise Refused("no banner: %r" % words)
            self.capabilities.append(words[1:])
            if words[1] == "AUTH":
                self.auth = words[2:]
            if words[1] == "BYE":
                raise Refused("BYE " + " ".join(words[2:]))
            if words[1] == "OK":
                return

    def read_answer(self, tag):
        """Rows and other lines up to the tag's answer; those of a running UPDATE go to on_row."""
        rows = []
        while True:
            words = self.read_words()
            if len(words) >= 2 and words[0] == tag and words[1] in ("OK", "NO", "BAD", "BYE"):
                return Answer(words[1], " ".join(words[2:]), rows)
            if words[:1] == ["*"]:
                if words[1:2] == ["BYE"]:
                    raise Closed("BYE " + " ".join(words[2:]))
                raise Refused("untagged: %r" % words)
            if words[:1] == [tag]:
                rows.append(tuple(words[1:]))
            elif self.updating and words[:1] == [self.updating]:
                self.on_row(tuple(words[1:]))
            else:
                raise Refused("a line that belongs to nothing: %r" % words)

    def on_row(self, row):
        pass

    # --- Commands ---
    def tag(self):
        self.tag_number += 1
        return "T%d" % self.tag_number

    def send_words(self, tag, verb, args, form="plus"):
        out = tag + " " + verb
        for a in args:
            if form == "quoted":
                out += ' "%s"' % a.replace("\\", "\\\\").replace('"', '\\"')
            elif form == "atom":
                out += " " + a
            elif form == "sync":
                self.send(out + " {%d}\r\n" % len(a))
                words = self.read_words()
                if words[:1] != ["+"]:
                    raise Refused("no go-ahead: %r" % words)
                out = a
            else:
                out += " {%d+}\r\n%s" % (len(a), a)
        self.send(out + "\r\n")

    def command(self, verb, *args, form="plus"):
        tag = self.tag()
        self.send_words(tag, verb, args, form)
        return self.read_answer(tag)

    def login(self, user=None, password=None):
        user = user or os.environ.get("CLUSTER_MUPDATE_USER", "murder")
        password = password or os.environ.get("CLUSTER_MUPDATE_PASSWORD", "murderpw")
        a = self.authenticate(user, password)
        if a.word != "OK":
            raise Refused("login: %s %s" % (a.word, a.text))
        return self

    def authenticate(self, user, password):
        return self.command("AUTHENTICATE", "PLAIN", base64.b64encode(("\0%s\0%s" % (user, password)).encode()).decode(), form="quoted")

    def starttls(self):
        a = self.command("STARTTLS")
        if a.word != "OK":
            raise Refused("STARTTLS: %s %s" % (a.word, a.text))
        self.socket = self.context.wrap_socket(self.socket)
        self.read_banner() # Cyrus' server says what it offers now

    def find(self, name):
        return self.command("FIND", name)

    def reserve(self, name, location):
        return self.command("RESERVE", name, location)

    def activate(self, name, location, acl):
        return self.command("ACTIVATE", name, location, acl)

    def deactivate(self, name, location):
        return self.command("DEACTIVATE", name, location)

    def delete(self, name):
        return self.command("DELETE", name)

    def list(self, *prefix):
        return self.command("LIST", *prefix)

    def noop(self):
        return self.command("NOOP")

    def update(self, *servers):
        """The rows of the first part; from here on rows come to on_row whenever something is read."""
        self.updating = self.tag()
        self.send_words(self.updating, "UPDATE", servers)
        a = self.read_answer(self.updating)
        if a.word != "OK":
            self.updating = None
        return a

    def read_row(self):
        words = self.read_words()
        if words[:2] == ["*", "BYE"]:
            raise Closed("BYE " + " ".join(words[2:]))
        if words[:1] != [self.updating]:
            raise Refused("a line that belongs to nothing: %r" % words)
        self.on_row(tuple(words[1:]))
        return tuple(words[1:])

    def logout(self):
        a = self.command("LOGOUT")
        self.close()
        return a

    def close(self):
        self.socket.close()


def sort_key(name):
    """The order of Cyrus' mailbox lists."""
    domain, bang, rest = name.rpartition("!")
    return (domain + ("\x1d" if bang else "") + rest.replace(".", "\x1f").replace("^", ".")).encode("latin-1")


class Copy(threading.Thread):
    """Follows UPDATE as a frontend does, connecting again (to the next of `addresses`) when it ends; `boxes`: name -> row."""

    def __init__(self, addresses, servers=(), login=lambda m: m.login(), connect=Mupdate, on_row=None):
        super().__init__(daemon=True)
        self.addresses = addresses.split(",") if isinstance(addresses, str) else list(addresses)
        self.servers, self.log_in, self.connect, self.watch = servers, login, connect, on_row
        self.boxes, self.lists, self.rows, self.problems = {}, 0, 0, []
        self.ready, self.stopping, self.lock = threading.Event(), False, threading.Lock()
        self.wanted, self.done, self.changed = 0, 0, threading.Condition()

    def apply(self, row):
        with self.lock:
            self.rows += 1
            if row[0] == "DELETE":
                self.boxes.pop(row[1], None)
            else:
                self.boxes[row[1]] = row
        if self.watch:
            self.watch(row)

    def session(self, address):
        m = self.connect(address)
        try:
            self.log_in(m)
            m.on_row = self.apply
            answer = m.update(*self.servers)
            if answer.word != "OK":
                raise Refused("UPDATE: %s %s" % (answer.word, answer.text))
            names = [r[1] for r in answer.rows]
            if names != sorted(names, key=sort_key):
                self.problems.append("rows not in Cyrus' order")
            if len(set(names)) != len(names):
                self.problems.append("a name twice in one list")
            with self.lock: # what the list doesn't have is gone, as a frontend does it
                self.boxes = {r[1]: r for r in answer.rows}
                self.lists += 1
            self.ready.set()
            while not self.stopping:
                with self.changed:
                    wanted = self.wanted
                if wanted > self.done:
                    a = m.noop()
                    if a.word != "OK":
                        raise Refused("NOOP: %s %s" % (a.word, a.text))
                    with self.changed:
                        self.done = wanted
                        self.changed.notify_all()
                    continue
                m.socket.settimeout(0.05)
                try:
                    if b"\n" not in m.buffer:
                        m.fill()
                    m.socket.settimeout(m.timeout)
                    m.read_row()
                except socket.timeout:
                    pass
                finally:
                    m.socket.settimeout(m.timeout)
        finally:
            m.close()

    def run(self):
        at = 0
        while not self.stopping:
            try:
                self.session(self.addresses[at % len(self.addresses)])
            except (OSError, Closed, Refused) as e:
                self.last = str(e)
                at += 1
                time.sleep(0.05)

    def noop(self, timeout=30):
        """Returns when everything that was there before this call is in the copy."""
        with self.changed:
            self.wanted += 1
            number = self.wanted
            if not self.changed.wait_for(lambda: self.done >= number, timeout):
                raise Refused("no answer to NOOP in %s s: %s" % (timeout, getattr(self, "last", "")))

    def stop(self):
        self.stopping = True
        self.join(20)

    def dump(self):
        with self.lock:
            return ["|".join(self.boxes[n]) for n in sorted(self.boxes, key=sort_key)]


def main(argv):
    options, words = {"form": "plus", "timeout": "15"}, []
    at = 0
    while at < len(argv):
        if argv[at] in ("--noauth", "--tls", "--starttls"):
            options[argv[at][2:]] = True
        elif argv[at] in ("--user", "--password", "--ca", "--cert", "--key", "--form", "--timeout") and at + 1 < len(argv):
            options[argv[at][2:]] = argv[at + 1]
            at += 1
        elif argv[at] in ("-h", "--help"):
            print(__doc__)
            return 0
        elif argv[at].startswith("--"):
            print("unknown option " + argv[at], file=sys.stderr)
            return 64
        else:
            words.append(argv[at])
        at += 1
    if len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 64
    address, verb, args = words[0], words[1], words[2:]
    tls = "tls" if options.get("tls") else "starttls" if options.get("starttls") else None

    def connect(a):
        return Mupdate(a, tls, options.get("ca"), options.get("cert"), options.get("key"), float(options["timeout"]), banner=verb != "raw")

    def login(m):
        return m if options.get("noauth") else m.login(options.get("user"), options.get("password"))

    def show(a):
        for row in a.rows:
            print("|".join(row))
        print(a.word, a.text, flush=True)
        return {"OK": 0, "NO": 1}.get(a.word, 2)

    if verb == "copy":
        copy = Copy(address, args[2:], login, connect)
        copy.start()
        while not os.path.exists(args[1]):
            time.sleep(0.05)
        copy.noop()
        copy.stop()
        with open(args[0], "w", encoding="latin-1") as f:
            f.writelines(line + "\n" for line in copy.dump())
        print("rows %d, lists %d" % (copy.rows, copy.lists))
        for problem in copy.problems:
            print(problem, file=sys.stderr)
        return 1 if copy.problems else 0
    try:
        m = connect(address)
        if verb == "raw":
            m.send(sys.stdin.buffer.read())
            sys.stdout.buffer.write(m.read_all().encode("latin-1"))
            return 0
        login(m)
        if verb == "script":
            status = 0
            for line in sys.stdin:
                w = [x.replace("%s", " ").replace("%t", "\t") for x in line.split()]
                if w:
                    status = show(m.command(w[0], *w[1:], form=options["form"]))
            return status
        return show(m.command(verb.upper(), *args, form=options["form"]))
    except (OSError, Closed, Refused) as e:
        print("mupdate_client: %s" % e, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
