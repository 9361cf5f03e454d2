"""For tests/cluster/mupdate_update: what a shell can't do. Nodes' addresses come from CLUSTER_MUPDATE_1 and so on.

    mupdate_update.py listing N WANTED            UPDATE at node N is the file WANTED, line by line: order and content
    mupdate_update.py places N WANTED             LIST and UPDATE with all sorts of locations and servers, at node N, against WANTED
    mupdate_update.py one_snapshot N FILE STOP A B   an UPDATE that is read slowly while everything changes; of the mailboxes A and B, one of which is renamed to the other, the list has
                                                  exactly one; afterwards, when STOP is there, list and changes make up the copy that goes to FILE
    mupdate_update.py at_once N LOG STOP          notes in LOG when which row came (monotonic time)
    mupdate_update.py pushed A B COUNT            how long after the answer at node A a change comes to node B's and C's sessions, C being the third; prints milliseconds
    mupdate_update.py barrier A COUNT             a write at node A; NOOP at both others is answered behind its row
    mupdate_update.py partial N SERVER            a copy of one server's mailboxes, which come and go
    mupdate_update.py copies FILE STOP            three copies, each beginning at another node, until STOP is there; then NOOP, and FILE1 to FILE3; prints how many lists each took
    mupdate_update.py fill N TAG COUNT LENGTH     so many changes of 100 mailboxes, with ACLs of that length
    mupdate_update.py stalled N WORK              an UPDATE that reads nothing from the file WORK.go on until WORK.read is there, then prints how it ended; WORK.ready: the list is here
    mupdate_update.py stalled_list N WORK         the same for a LIST in whose middle it stops reading
"""
import os, socket, sys, threading, time
import mupdate_client as mc

ACL = "anna\tlrswipkxtecda\t"


def address(n):
    return os.environ["CLUSTER_MUPDATE_%s" % n]


def others(n):
    return [i for i in "123" if i != n]


def die(text):
    print(text)
    sys.exit(1)


def wait_for(path, seconds=60):
    until = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > until:
            die("%s doesn't come" % path)
        time.sleep(0.01)


def touch(path):
    open(path, "w").close()


def read_lines(path):
    with open(path, encoding="latin-1", newline="\n") as f:
        return f.read().split("\n")[:-1]


def lines(rows):
    return ["|".join(r) for r in rows]


def compare(got, wanted, what):
    if got == wanted:
        return
    for i, (a, b) in enumerate(zip(got + [""], wanted + [""])):
        if a != b:
            die("%s: row %d is %r, not %r (%d rows, %d wanted)" % (what, i, a, b, len(got), len(wanted)))
    die("%s: %d rows, %d wanted" % (what, len(got), len(wanted)))


def slow_socket(m):
    m.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)


def listing(n, wanted):
    m = mc.Mupdate(address(n)).login()
    a = m.update()
    if (a.word, a.text) != ("OK", "streaming starts"):
        die("UPDATE: %s %s" % (a.word, a.text))
    compare(lines(a.rows), read_lines(wanted), "UPDATE")
    a = m.noop()
    if a.word != "OK" or a.rows:
        die("NOOP: %r" % (a,))
    for verb, args in (("UPDATE", ()), ("LIST", ()), ("FIND", ("user.a",)), ("DELETE", ("user.a",))):
        a = m.command(verb, *args)
        if (a.word, a.text) != ("BAD", "not legal when streaming"):
            die("%s while streaming: %r" % (verb, a))
    m.logout()


def places(n, wanted):
    rows = [r.split("|") for r in read_lines(wanted)]
    servers = sorted({r[2].split("!")[0] for r in rows})
    partitions = sorted({r[2].split("!")[1] for r in rows})
    m = mc.Mupdate(address(n)).login()

    def same(got, want, what):
        compare(lines(got.rows), ["|".join(r) for r in want], what)

    prefixes = ["", servers[0][:-1], servers[0], servers[-1], "x", "!", servers[0] + "x"]
    for s in (servers[0], servers[-1]):
        prefixes += [s + "!", s + "!" + partitions[0], s + "!" + partitions[0][:-1], s + "!" + partitions[0] + "x", s + "!nowhere"]
    for p in prefixes:
        a = m.list(p)
        if (a.word, a.text) != ("OK", "list complete"):
            die("LIST %r: %r" % (p, a))
        same(a, [r for r in rows if r[2].startswith(p)], "LIST %r" % p)
    same(m.list(), rows, "LIST")
    for some in ([servers[0]], servers[:3], [servers[-1], "nobody", servers[0][:-1]], ["nobody"]):
        u = mc.Mupdate(address(n)).login()
        same(u.update(*some), [r for r in rows if r[2].split("!")[0] in some], "UPDATE of %r" % some)
        u.logout()


class Slow(mc.Mupdate):
    """Takes a little at a time."""

    def fill(self):
        data = self.socket.recv(32768)
        if not data:
            raise mc.Closed("closed by the other end")
        self.buffer += data
        time.sleep(self.nap)

    nap = 0.01


def one_snapshot(n, out, stop, first, second):
    m = Slow(address(n)).login()
    slow_socket(m)
    boxes = {}

    def take(row):
        if row[0] == "DELETE":
            boxes.pop(row[1], None)
        else:
            boxes[row[1]] = row

    begun = time.monotonic()
    a = m.update()
    took = time.monotonic() - begun
    names = [r[1] for r in a.rows]
    if names != sorted(set(names), key=mc.sort_key):
        die("the list isn't in order, or has a name twice")
    if (first in names) == (second in names):
        die("%s and %s: %s in one list" % (first, second, "both" if first in names else "neither"))
    m.on_row = take
    boxes.update((r[1], r) for r in a.rows)
    Slow.nap = 0
    wait_for(stop)
    if m.noop().word != "OK":
        die("NOOP")
    with open(out, "w", encoding="latin-1") as f:
        f.writelines("|".join(boxes[k]) + "\n" for k in sorted(boxes, key=mc.sort_key))
    print("%d rows in %.1f s" % (len(names), took))


def at_once(n, log, stop):
    m = mc.Mupdate(address(n)).login()
    with open(log, "w", encoding="latin-1") as f:
        m.update()
        touch(log + ".ready")
        m.socket.settimeout(0.05)
        while not os.path.exists(stop):
            try:
                if b"\n" not in m.buffer:
                    m.fill()
                m.socket.settimeout(5)
                f.write("%.6f %s\n" % (time.monotonic(), " ".join(m.read_row()[:2])))
            except socket.timeout:
                f.flush()
            m.socket.settimeout(0.05)


def pushed(a, b, count):
    seen, readers = {}, []
    for n in others(a):
        c = mc.Copy([address(n)], on_row=lambda row, n=n: seen.setdefault((n, row[1]), time.monotonic()))
        c.start()
        readers.append(c)
        if not c.ready.wait(20):
            die("no list at node %s" % n)
    time.sleep(0.3)
    w = mc.Mupdate(address(a)).login()
    answered = {}
    for i in range(int(count)):
        name = "user.pushed.b%d" % i
        if w.activate(name, "be1!p1", ACL).word != "OK":
            die("ACTIVATE")
        answered[name] = time.monotonic()
        time.sleep(0.02)
    until = time.monotonic() + 10
    while len(seen) < 2 * len(answered) and time.monotonic() < until:
        time.sleep(0.01)
    late = sorted((seen.get((n, name), until) - answered[name]) * 1000 for name in answered for n in others(a))
    print("%.1f %.1f %.1f" % (late[len(late) // 2], late[len(late) * 9 // 10], late[-1]))


def barrier(a, count):
    w = mc.Mupdate(address(a)).login()
    sessions = []
    for n in others(a):
        m = mc.Mupdate(address(n)).login()
        m.seen = set()
        m.on_row = lambda row, m=m: m.seen.add(row)
        m.update()
        sessions.append(m)
    for i in range(int(count)):
        name = "user.barrier.b%d" % (i // 2)
        row = ("DELETE", name) if i % 2 else ("MAILBOX", name, "be1!p1", ACL)
        r = w.delete(name) if i % 2 else w.activate(name, "be1!p1", ACL)
        if r.word != "OK":
            die("write: %r" % (r,))
        for m in sessions:
            if m.noop().word != "OK":
                die("NOOP")
            if row not in m.seen:
                die("NOOP number %d was answered before %r was sent" % (i, row))


def partial(n, server):
    got = []
    m = mc.Mupdate(address(n)).login()
    m.on_row = got.append
    if m.update(server).rows:
        die("%s has mailboxes already" % server)
    here, there = server + "!p1", "partial-other!p1"

    def step(verb, args, *rows):
        del got[:]
        w = mc.Mupdate(address(others(n)[0])).login() # a connection speaks for one server
        answer = w.command(verb, *args)
        w.logout()
        if answer.word != "OK":
            die("%s %r: %r" % (verb, args, answer))
        if m.noop().word != "OK":
            die("NOOP")
        if got != list(rows):
            die("%s %r: told %r, not %r" % (verb, args, got, rows))

    step("ACTIVATE", ("user.pa", here, ACL), ("MAILBOX", "user.pa", here, ACL))
    step("ACTIVATE", ("user.pb", there, ACL))
    step("RESERVE", ("user.pc", here), ("RESERVE", "user.pc", here))
    step("ACTIVATE", ("user.pc", here, ACL), ("MAILBOX", "user.pc", here, ACL))
    step("DEACTIVATE", ("user.pa", here), ("RESERVE", "user.pa", here))
    step("ACTIVATE", ("user.pa", there, ACL), ("DELETE", "user.pa"))
    step("ACTIVATE", ("user.pa", there, "x\tlr\t"))
    step("DEACTIVATE", ("user.pa", there))
    step("ACTIVATE", ("user.pa", here, ACL), ("MAILBOX", "user.pa", here, ACL))
    step("DELETE", ("user.pa",), ("DELETE", "user.pa"))
    step("DELETE", ("user.pb",))
    step("DELETE", ("user.pc",), ("DELETE", "user.pc"))


def copies(out, stop):
    all_of_them = []
    for n in "123":
        c = mc.Copy([address(i) for i in [n] + others(n)], connect=lambda a: mc.Mupdate(a, timeout=3))
        c.start()
        all_of_them.append(c)
    for c in all_of_them:
        if not c.ready.wait(30):
            die("no list: %s" % getattr(c, "last", "nothing came"))
    touch(out + ".ready")
    wait_for(stop, 110)
    for i, c in enumerate(all_of_them):
        c.noop()
        c.stop()
        with open(out + str(i + 1), "w", encoding="latin-1") as f:
            f.writelines(line + "\n" for line in c.dump())
        if c.problems:
            die("; ".join(c.problems))
    print(" ".join("%d" % c.lists for c in all_of_them))


def fill(n, tag, count, length):
    """So many changes with ACLs of that length, of 100 names, as fast as they go."""
    m = mc.Mupdate(address(n), timeout=30).login()
    acl = "".join("user%05d\tlrswipkxtecda\t" % i for i in range(int(length) // 24 + 1))
    count, window = int(count), 50
    for i in range(count + window):
        if i < count:
            m.send_words("F%d" % i, "ACTIVATE", ("user.%s.b%d" % (tag, i % 100), "be1!p1", acl + "x%d\tlr\t" % i))
        if i >= window:
            a = m.read_answer("F%d" % (i - window))
            if a.word != "OK":
                die("ACTIVATE: %r" % (a,))
    m.logout()


def stalled_end(m):
    """Reads what is left, and how it ends."""
    rows = 0
    try:
        while True:
            words = m.read_words()
            if words[1:2] == ["BYE"] or words[1:2] == ["OK"]:
                print("%d rows, then %s" % (rows, " ".join(words[1:])))
                return
            rows += 1
    except (mc.Closed, OSError) as e:
        print("%d rows, then closed: %s" % (rows, e))


def stalled(n, work):
    m = mc.Mupdate(address(n), timeout=60).login()
    slow_socket(m)
    m.update()
    touch(work + ".ready")
    wait_for(work + ".read")
    stalled_end(m)


def stalled_list(n, work):
    m = mc.Mupdate(address(n), timeout=60).login()
    slow_socket(m)
    m.send("L LIST\r\n")
    m.read_words()
    touch(work + ".ready")
    wait_for(work + ".read")
    stalled_end(m)


if __name__ == "__main__":
    functions = {"listing": listing, "places": places, "one_snapshot": one_snapshot, "at_once": at_once, "pushed": pushed, "barrier": barrier, "partial": partial, "copies": copies, "fill": fill, "stalled": stalled,
                 "stalled_list": stalled_list}
    try:
        functions[sys.argv[1]](*sys.argv[2:])
    except (mc.Closed, mc.Refused, OSError) as e:
        die("%s: %s" % (type(e).__name__, e))
