#!/usr/bin/env python3
"""The cases of tests/cluster/mupdate_auth that speak MUPDATE: mupdate_auth_cases.py CASE [ARGUMENT...], with the variables of `localcluster env`, HELPER (mupdate_auth_helper),
HOST (the server's name) and TLS_DIR. Says what is wrong and ends with status 1."""
import base64, concurrent.futures, os, socket, subprocess, sys, time, zlib
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mupdate_client as mc

PLAIN, TLS, UNIX = (os.environ["CLUSTER_MUPDATE" + v + "_1"] for v in ("", "_TLS", "_UNIX"))
CERTS = os.environ.get("TLS_DIR", "")
CA = CERTS + "/ca.crt"


def check(got, wanted, what):
    if got != wanted:
        sys.exit("%s: %r instead of %r" % (what, got, wanted))


def check_in(part, whole, what):
    if part not in whole:
        sys.exit("%s: no %r in %r" % (what, part, whole))


def connect(address=PLAIN, tls=None, cert=None, **more):
    if cert:
        more.update(cert="%s/%s.crt" % (CERTS, cert), key="%s/%s.key" % (CERTS, cert))
    return mc.Mupdate(address, tls=tls, ca=CA, **more)


def sasl(m, mechanism, user="murder", authz="", password="murderpw", initial=True):
    """AUTHENTICATE with the library's client: (word, text)."""
    p = subprocess.Popen([os.environ["HELPER"], mechanism, os.environ["HOST"], user, authz, password], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"))  # of the client's plugins
    first = p.stdout.readline().strip()
    if not first:
        sys.exit("the client can't do " + mechanism)
    tag = m.tag()
    command = "%s AUTHENTICATE \"%s\"" % (tag, mechanism)
    held = None if first == b"-" else first
    if held and initial:
        command += " =" if held == b"=" else " {%d+}\r\n%s" % (len(held), held.decode())
        held = None
    m.send(command + "\r\n")
    while True:
        line = m.take_line().rstrip(b"\r\n")
        if line.startswith(tag.encode() + b" "):
            p.stdin.close()
            p.wait()
            word, _, text = line.decode()[len(tag) + 1:].partition(" ")
            return word, text.strip('"')
        if held:
            response, held = held, None
        else:
            try:
                p.stdin.write(line + b"\n")
                p.stdin.flush()
                response = p.stdout.readline().strip()
            except BrokenPipeError:
                response = b""
            if not response:
                response = b"*"  # the client's side has given up
        m.send((b"" if response == b"=" else response) + b"\r\n")


def works(m, what):
    check(m.noop(), mc.Answer("OK", "Noop done", []), what)


def plain(user, password, authz=""):
    return base64.b64encode(("%s\0%s\0%s" % (authz, user, password)).encode()).decode()


def mechanisms():
    every = ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5", "CRAM-MD5"]
    shows = ["LOGIN", "PLAIN"]
    check(sorted(connect().auth), sorted(every), "offered in clear")
    check(sorted(connect(TLS, "tls").auth), sorted(every + shows), "offered under TLS")
    check(sorted(connect(UNIX).auth), sorted(every + shows), "offered on the socket")
    check(sorted(connect(tls="starttls").auth), sorted(every + shows), "offered after STARTTLS")
    for mechanism in every + shows:
        for address, tls in ((PLAIN, None), (PLAIN, "starttls"), (TLS, "tls"), (UNIX, None)):
            for initial in (True, False) if address == PLAIN else (True,):
                m = connect(address, tls)
                word, text = sasl(m, mechanism, authz="murder", initial=initial)
                if mechanism in shows and address == PLAIN and not tls:
                    check(word, "NO", mechanism + " in clear")
                    continue
                check((word, text), ("OK", "Authenticated"), "%s at %s (%s)" % (mechanism, address, tls))
                works(m, mechanism)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:  # each refusal takes its time
        wrong = [(mechanism, user, pool.submit(sasl, connect(TLS, "tls"), mechanism, user, password="wrong")) for mechanism in every + shows for user in ("murder", "nosuchuser")]
    for mechanism, user, result in wrong:
        check(result.result()[0], "NO", "%s with %s's wrong password" % (mechanism, user))


def starttls():
    m = connect()
    check(["STARTTLS"] in m.capabilities, True, "STARTTLS in the banner")
    m = connect(tls="starttls")
    check(["STARTTLS"] in m.capabilities, False, "STARTTLS in the banner after it")
    check(m.capabilities[-1][:2], ["OK", "MUPDATE"], "the banner's end")
    check_in("Already did", m.command("STARTTLS").text, "STARTTLS twice")
    m.login()
    check(m.command("STARTTLS"), mc.Answer("BAD", "Can't Starttls after authentication", []), "STARTTLS after login")
    works(m, "after that")
    check(["STARTTLS"] in connect(TLS, "tls").capabilities, False, "STARTTLS in the banner of the TLS port")
    check(["STARTTLS"] in connect(UNIX).capabilities, False, "STARTTLS in the banner of the socket")
    check(connect(UNIX).command("STARTTLS").word, "BAD", "STARTTLS on the socket")
    # What somebody in between puts behind the command is never taken for something said under TLS.
    for behind in (b"x NOOP\r\n", b"x", b"x AUTHENTICATE \"PLAIN\" \"%s\"\r\n" % plain("murder", "murderpw").encode()):
        m = connect()
        m.send(b"s STARTTLS\r\n" + behind)
        said = m.read_all()
        check(said.count("\r\n") <= 1 and "x " not in said, True, "answer to what was injected: %r" % said)
    # A handshake that never comes, one that is garbage.
    m = connect()
    m.send("s STARTTLS\r\n")
    check(m.take_line()[:4], b"s OK", "STARTTLS")
    m.send("NOOP NOOP NOOP NOOP\r\n")
    m.read_all()
    silent = connect()
    check(silent.command("STARTTLS").word, "OK", "STARTTLS")
    works(connect(TLS, "tls").login(), "beside it")


def external():
    for address, tls in ((TLS, "tls"), (PLAIN, "starttls")):
        check("EXTERNAL" in connect(address, tls).auth, False, "EXTERNAL without a certificate")
        check("EXTERNAL" in connect(address, tls, cert="stranger").auth, False, "EXTERNAL for one without a role")
        check("EXTERNAL" in connect(address, tls, cert="backend").auth, True, "EXTERNAL for one with a role")
        check(connect(address, tls).command("AUTHENTICATE", "EXTERNAL", "=", form="atom").word, "NO", "EXTERNAL without a certificate")
        check(connect(address, tls, cert="stranger").command("AUTHENTICATE", "EXTERNAL", "=", form="atom").word, "NO", "EXTERNAL of one without a role")
        check(connect(address, tls, cert="backend").find("user.x").word, "BAD", "a certificate alone")
        m = connect(address, tls, cert="backend")
        check(m.command("AUTHENTICATE", "EXTERNAL", "=", form="atom").word, "OK", "EXTERNAL")
        check(m.activate("user.ext", "be1!p", "ext\tlrs\t").word, "OK", "a backend's write")
        m = connect(address, tls, cert="reader")
        m.send("e AUTHENTICATE EXTERNAL\r\n")
        check(m.take_line(), b"\r\n", "the empty challenge")
        m.send("\r\n")
        check(m.read_answer("e").word, "OK", "EXTERNAL without an initial response")
        check(m.find("user.ext").rows[0][2], "be1!p", "a reader's FIND")
        a = m.reserve("user.ext2", "be1!p")
        check(a.word, "NO", "a reader's write")
        check_in("cert:reader", a.text, "a reader's write")
        m = connect(address, tls, cert="backend")
        check(m.command("AUTHENTICATE", "EXTERNAL", base64.b64encode(b"ops").decode()).word, "NO", "EXTERNAL for somebody else")
        check(m.command("AUTHENTICATE", "EXTERNAL", base64.b64encode(b"backend").decode()).word, "OK", "EXTERNAL by name")
    try:
        m = connect(TLS, "tls", cert="foreign")
        sys.exit("a certificate of another CA was taken: %r" % m.auth)
    except OSError:
        pass
    except mc.Closed:
        pass


def anonymous():
    """Nobody has a role by coming from here."""
    m = connect()
    for verb in (("FIND", "x"), ("NOOP",), ("UPDATE",), ("LIST",), ("ACTIVATE", "a", "b!c", ""), ("FROB",), ("COMPRESS", "DEFLATE")):
        check(m.command(*verb), mc.Answer("BAD", "Please login first", []), verb[0])
    check(m.command("COMPRESS", "LZW", form="quoted").text, "Unknown COMPRESS algorithm: LZW", "COMPRESS")
    check(m.command("LOGOUT").word, "OK", "LOGOUT")


def noauth(role):
    check(connect(tls="starttls").find("x").word, "OK", "FIND without a login")
    check(connect().find("x").word, "OK", "FIND without a login")
    check(connect().reserve("user.noauth", "be1!p").word, "OK" if role == "backend" else "NO", "RESERVE without a login")
    connect().command("DELETE", "user.noauth")
    m = connect(tls="starttls")  # who logs in is who he says, with that role alone
    check(sasl(m, "PLAIN", "reader", password="readerpw")[0], "OK", "login")
    check(m.reserve("user.noauth", "be1!p").word, "NO", "RESERVE of a reader that came over loopback")
    m = connect(tls="starttls")
    check(sasl(m, "PLAIN", "reader", password="wrong")[0], "NO", "login")
    check(m.find("x").word, "OK", "after a login that failed")
    # Only over loopback: who comes by another address of this machine is nobody.
    outside = [a for a in subprocess.run(["ip", "-o", "-4", "addr", "show", "scope", "global"], capture_output=True, text=True).stdout.split() if "/" in a and a[0].isdigit()]
    if not outside:
        print("no address but loopback")
        return
    address = outside[0].split("/")[0] + ":" + PLAIN.split(":")[1]
    check(connect(address).find("x"), mc.Answer("BAD", "Please login first", []), "FIND without a login by way of " + address)
    works(connect(address, "starttls").login(), "by way of " + address)


def refusals():
    m = connect(tls="starttls")
    words = []
    begun = time.monotonic()
    for user, password in (("murder", "wrong"), ("nosuchuser", "wrong")):
        a = m.command("AUTHENTICATE", "PLAIN", plain(user, password))
        words.append((a.word, a.text))
    check(words[0], words[1], "a wrong password, an unknown user")
    took = time.monotonic() - begun
    check(1.8 < took < 8, True, "two refusals took %.1f s" % took)
    # Refusals wait, nobody else does.
    waiting = [connect(tls="starttls") for _ in range(30)]
    other = connect(tls="starttls").login()
    for w in waiting:
        w.send_words("w", "AUTHENTICATE", ("PLAIN", plain("murder", "wrong")))
    begun = time.monotonic()
    for _ in range(10):
        check(other.find("user.ext").word, "OK", "FIND beside refusals")
    took = time.monotonic() - begun
    check(took < 0.9, True, "ten FINDs beside refusals took %.2f s" % took)
    for w in waiting[:15]:
        check(w.read_answer("w").word, "NO", "refused")
    for w in waiting[15:]:
        w.close()  # in the middle of the delay
    a = m.command("AUTHENTICATE", "PLAIN", plain("murder", "wrong"))
    check(a.word, "NO", "the third")
    try:
        m.noop()
        sys.exit("a fourth command was taken")
    except (mc.Closed, OSError):
        pass
    m = connect(tls="starttls")
    a = m.command("AUTHENTICATE", "PLAIN", plain("norole", "norolepw"))
    check(a.word, "NO", "a user without a role")
    check_in("no role", a.text, "a user without a role")
    check(m.command("AUTHENTICATE", "PLAIN", plain("murder", "murderpw", "reader")).word, "NO", "murder for reader")
    check(m.login() is m, True, "a third try that is right")
    check(m.command("AUTHENTICATE", "PLAIN", plain("murder", "murderpw")), mc.Answer("BAD", "already authenticated", []), "twice")
    works(m, "after that")
    for line, wanted in (('a AUTHENTICATE', "BAD"), ('a AUTHENTICATE "FOO"', "NO"), ('a AUTHENTICATE "ANONYMOUS" "AAAA"', "NO"), ('a AUTHENTICATE "PLAIN" "!!!"', "NO"),
                         ('a AUTHENTICATE "PLAIN" "AAAA" "AAAA"', "BAD"), ('a AUTHENTICATE "EXTERNAL" =', "NO"), ('a AUTHENTICATE ""', "NO"), ('a AUTHENTICATE "' + "X" * 1000 + '"', "NO")):
        m = connect(tls="starttls")
        m.send(line + "\r\n")
        check(m.read_answer("a").word, wanted, line)
        m.login()
    m = connect(tls="starttls")
    for response in ("*", "!!!"):
        m.send('a AUTHENTICATE "PLAIN"\r\n')
        check(m.take_line(), b"\r\n", "the empty challenge")
        m.send(response + "\r\n")
        check(m.read_answer("a").word, "NO", response)
    m.send('a AUTHENTICATE "PLAIN"\r\n%s\r\nb NOOP\r\n' % plain("murder", "murderpw"))  # all at once
    check(m.take_line(), b"\r\n", "the empty challenge")
    check(m.read_answer("a").word, "OK", "pipelined")
    check(m.read_answer("b").word, "OK", "pipelined")
    # Responses without an end, in the middle of an exchange.
    m = connect(tls="starttls")
    m.send('a AUTHENTICATE "SCRAM-SHA-256"\r\n')
    m.take_line()
    try:
        m.send("A" * 200000)
    except OSError:
        pass
    said = m.read_all()
    check("OK" in said, False, "an endless response: %r" % said)
    # Clients that go in the middle of everything.
    for _ in range(40):
        m = connect()
        m.send('a AUTHENTICATE "SCRAM-SHA-256" "%s"\r\n' % base64.b64encode(b"n,,n=murder,r=abcdefgh").decode())
        m.close()
    works(connect(tls="starttls").login(), "after all of that")


class Packed:
    """The bytes of a connection after COMPRESS."""

    def __init__(self, m):
        self.m, self.out, self.into = m, zlib.compressobj(6, zlib.DEFLATED, -15), zlib.decompressobj(-15)
        m.real_fill = m.fill
        m.fill = self.fill
        m.send = self.send
        self.raw = m.socket
        m.starts = m.buffer
        check(m.buffer, b"", "sent before the compression")

    def send(self, data):
        data = data.encode("latin-1") if isinstance(data, str) else data
        self.raw.sendall(self.out.compress(data) + self.out.flush(zlib.Z_SYNC_FLUSH))

    def fill(self):
        data = self.raw.recv(1 << 16)
        if not data:
            raise mc.Closed("closed")
        self.m.buffer += self.into.decompress(data)


def compress():
    for tls in (None, "starttls"):
        m = connect(tls=tls)
        check(sasl(m, "SCRAM-SHA-256")[0], "OK", "login")
        check(m.command("COMPRESS", "DEFLATE", form="quoted"), mc.Answer("OK", "DEFLATE active", []), "COMPRESS")
        Packed(m)
        for i in range(20):
            check(m.activate("user.z%d" % i, "be1!p", "z%d\tlrswipkxtecda\t" % i).word, "OK", "ACTIVATE")
        check([r[1] for r in m.list("be1").rows if r[1].startswith("user.z")], sorted(("user.z%d" % i for i in range(20)), key=mc.sort_key), "LIST")
        check(m.command("COMPRESS", "DEFLATE").text, "DEFLATE active via COMPRESS", "COMPRESS twice")
        m.send("".join("p%d NOOP\r\n" % i for i in range(500)))
        for i in range(500):
            check(m.read_answer("p%d" % i).word, "OK", "pipelined")
        check(m.find("x" * 60000).word, "OK", "a long literal")
        for i in range(20):
            check(m.delete("user.z%d" % i).word, "OK", "DELETE")
    # A bomb of 256 MB, and garbage.
    for bomb in (True, False):
        m = connect()
        check(sasl(m, "SCRAM-SHA-256")[0], "OK", "login")
        m.command("COMPRESS", "DEFLATE")
        z = zlib.compressobj(9, zlib.DEFLATED, -15)
        try:
            m.send(b"".join(z.compress(b"x" * (1 << 20)) for _ in range(256)) + z.flush(zlib.Z_SYNC_FLUSH) if bomb else b"\xff" * 4096)
        except OSError:
            pass
        m.read_all()
    works(connect(tls="starttls").login(), "after that")


def hold(ready, go, *steps):
    """A session that stays while the rules change: each step is "verb=word"; `go` is a file that says so by its number of lines."""
    m = connect(tls="starttls").login()
    check(m.reserve("user.hold", "be1!p").word, "OK", "as a backend")
    for i, step in enumerate(steps, 1):
        open(ready, "a").write("%d\n" % i)
        until = time.monotonic() + 20
        while (open(go).read() if os.path.exists(go) else "").count("\n") < i:
            if time.monotonic() > until:
                sys.exit("nobody says go")
            time.sleep(0.02)
        what, word = step.split("=")
        if word == "BYE":
            try:
                m.timeout = 5
                m.socket.settimeout(5)
                said = m.read_all()
            except socket.timeout:
                sys.exit("still connected without a role")
            check_in("* BYE", said, "without a role")
            return
        a = m.find("user.hold") if what == "find" else m.reserve("user.hold." + what, what + "!p")
        check(a.word, word, "step %d: %s (%s)" % (i, step, a.text))


def gssapi():
    m = connect()
    check("GSSAPI" in m.auth, True, "GSSAPI is offered")
    check(sasl(m, "GSSAPI", "murder", "", "")[0], "OK", "GSSAPI")
    works(m, "GSSAPI")
    m = connect()
    check(sasl(m, "GSSAPI", "murder", "murder", "", initial=False)[0], "OK", "GSSAPI, authorized as himself")
    check(sasl(connect(), "GSSAPI", "murder", "reader", "")[0], "NO", "GSSAPI for somebody else")


def gssapi_without():
    for token in ("=", base64.b64encode(os.urandom(700)).decode()):
        m = connect()
        m.send("g AUTHENTICATE GSSAPI %s\r\n" % token)
        line = m.take_line()
        if not line.startswith(b"g "):  # the mechanism's own way to say no
            m.send("*\r\n")
            line = m.take_line()
        check(line[:4], b"g NO", "GSSAPI without a ticket")


def hang(path):
    """A saslauthd that never answers, at path; logins that wait for it; others are served."""
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(50)
    hung = [connect(tls="starttls") for _ in range(20)]
    for h in hung:
        h.send_words("h", "AUTHENTICATE", ("PLAIN", plain("murder", "murderpw")))
    time.sleep(0.5)
    for h in hung[10:]:
        h.close()
    m = connect(UNIX)
    check(m.activate("user.hung", "be1!p", "x\tlrs\t").word, "OK", "a write beside logins that hang")
    check(m.list("be1").word, "OK", "LIST beside logins that hang")
    check(m.update().word, "OK", "UPDATE beside logins that hang")
    subprocess.run(sys.argv[3:], check=True)  # stops the node


globals()[sys.argv[1]](*(sys.argv[2:] if sys.argv[1] != "hang" else sys.argv[2:3]))
