#!/usr/bin/env python3
"""The cases of tests/cluster/mupdate_writes, mupdate_faults and mupdate_no_quorum: each a function, named on the command line; the nodes are in CLUSTER_MUPDATE_1.. of the environment. A case that fails says why and ends with 1."""
import os, signal, sys, threading, time
import mupdate_client as mc

ACL = "a\tlrswipkxtecda\t"
nodes = [os.environ[k] for k in ("CLUSTER_MUPDATE_1", "CLUSTER_MUPDATE_2", "CLUSTER_MUPDATE_3") if k in os.environ]


def fail(*words):
    print(*words, file=sys.stderr)
    sys.exit(1)


def session(n=1, user=None, password=None, timeout=15):
    return mc.Mupdate(nodes[n - 1], timeout=timeout).login(user, password)


def want(answer, word, text=None, rows=None):
    caller = sys._getframe(1).f_lineno
    if answer.word != word or (text is not None and text not in answer.text) or (rows is not None and list(answer.rows) != rows):
        fail("line %d: %r instead of %s %r %r" % (caller, answer, word, text or "", rows if rows is not None else ""))
    return answer


def box(name, location, acl=ACL):
    return ("MAILBOX", name, location, acl)


def held(name, location):
    return ("RESERVE", name, location)


def found(m, name):
    """What FIND says: the row, or None."""
    a = want(m.find(name), "OK", "Search completed")
    return a.rows[0] if a.rows else None


def want_found(m, name, row):
    got = found(m, name)
    if got != row:
        fail("line %d: FIND %s is %r instead of %r" % (sys._getframe(1).f_lineno, name, got, row))


# --- What each verb answers: the stock master's table, and where we depart from it ---------------------------------------------------------

def semantics():
    m = session()
    a = "q\tlr\t"
    want(m.activate("user.q1", "be!d", a), "OK", "done")  # without RESERVE
    want(m.find("user.q1"), "OK", "Search completed", [box("user.q1", "be!d", a)])
    want(m.reserve("user.q1", "be!d"), "OK", "done")
    want_found(m, "user.q1", box("user.q1", "be!d", a))  # departure: not demoted, the ACL not blanked
    want(m.reserve("user.q1", "other!d"), "NO", "mailbox already exists")
    want(m.activate("user.q1", "noserverpart", ""), "NO", "server!partition")  # departure: a location has both
    want(m.activate("user.q1", "a!b!c", "x"), "NO", "server!partition")
    want(m.activate("user.q1", "!d", a), "NO", "server!partition")
    want(m.deactivate("user.q1", "zz!d"), "NO", "active at be!d")  # departure: it is not zz's
    want_found(m, "user.q1", box("user.q1", "be!d", a))
    want(m.deactivate("user.q1", "be!other"), "OK", "done")
    want_found(m, "user.q1", held("user.q1", "be!d"))
    want(m.deactivate("user.q1", "yy!d"), "NO", "mailbox not currently active")
    want(m.deactivate("user.q1", "be!d"), "OK", "done")  # again: an XFER that was begun anew
    want(m.reserve("user.q1", "be!d"), "OK", "done")     # its own
    want(m.reserve("user.q1", "yy!d"), "NO", "mailbox already exists")
    want_found(m, "user.q1", held("user.q1", "be!d"))
    want(m.activate("user.q1", "be!d", ""), "OK", "done")
    want_found(m, "user.q1", box("user.q1", "be!d", ""))  # an empty ACL: nobody
    want(m.delete("user.q1"), "OK", "done")
    want(m.find("user.q1"), "OK", "Search completed", [])
    # Unknown names: the stock master dies of these.
    want(m.delete("user.q1"), "NO", "mailbox doesn't exist")
    want(m.deactivate("user.q1", "be!d"), "NO", "mailbox doesn't exist")
    want(m.activate("user.q2", "s!", "anyone\tlr\tanyone\tp\tz\t\tbad"), "NO")  # departure: no ACL
    want(m.activate("user.q2", "s!", "anyone\tlr\t"), "OK", "done")
    want_found(m, "user.q2", box("user.q2", "s!", "anyone\tlr\t"))
    want(m.activate("user.q2", "s!p9", "anyone\tlr\t"), "OK", "done")  # now the partition is known,
    want(m.activate("user.q2", "s!", "anyone\tl\t"), "OK", "done")     # and stays so
    want_found(m, "user.q2", box("user.q2", "s!p9", "anyone\tl\t"))
    want(session().delete("user.q2"), "OK", "done")
    # Names that can't be.
    want(m.activate("", "s!p", ""), "NO")
    want(m.find(""), "OK", "Search completed", [])
    for bad in ("user.\xe9\"\\", "user.\r\nx", "user..x", "x" * 600):
        want(m.activate(bad, "be!d", "x"), "NO")
        want(m.find(bad), "OK", "Search completed", [])
        want(m.delete(bad), "NO")
    want(m.find("x" * 60000), "OK", "Search completed", [])
    # Reservations.
    m = session()
    want(m.reserve("user.q3", "s!p"), "OK", "done")
    want_found(m, "user.q3", held("user.q3", "s!p"))
    want(m.reserve("user.q3", "t!p"), "NO", "mailbox already exists")
    want(m.activate("user.q3", "t!p", a), "NO", "reserved at s!p")
    want(m.deactivate("user.q3", "s!p"), "NO", "mailbox not currently active")
    want_found(m, "user.q3", held("user.q3", "s!p"))
    want(m.reserve("user.q3", "s!p2"), "OK", "done")  # departure: all partitions of a server are its own
    want_found(m, "user.q3", held("user.q3", "s!p2"))
    want(m.activate("user.q3", "s!p3", a), "OK", "done")
    want_found(m, "user.q3", box("user.q3", "s!p3", a))
    want(m.reserve("user.q3", "s!p"), "OK", "done")   # active there, on another partition
    want_found(m, "user.q3", box("user.q3", "s!p3", a))
    want(m.delete("user.q3"), "OK", "done")
    want(m.reserve("user.q3", "s!p"), "OK", "done")
    want(m.delete("user.q3"), "OK", "done")
    want_found(m, "user.q3", None)
    want(m.activate("user.q4", "s!" + "p" * 65, a), "NO", "too long")
    want(m.activate("user.q4", "s" * 513 + "!p", a), "NO", "too long")
    want(m.noop(), "OK", "Noop done")
    # What ctl_mboxlist -m does, and what it must not be told: it would wipe its own.
    want(m.activate("user.q5", "be1!p", a), "OK")
    want(m.activate("user.q6", "be2!p", a), "OK")
    want(m.reserve("user.q7", "be2!p"), "OK")
    want(m.list("be1!"), "OK", "list complete", [box("user.q5", "be1!p", a)])
    want_found(m, "user.q6", None)
    want_found(m, "user.q7", None)
    want_found(m, "user.q5", box("user.q5", "be1!p", a))
    want(m.activate("user.q6", "be1!p", a), "NO", "active at be2!p")
    want_found(session(), "user.q6", box("user.q6", "be2!p", a))
    for n in ("user.q5", "user.q6", "user.q7"):
        want(session().delete(n), "OK")
    m.logout()


# --- Listeners see no flicker -----------------------------------------------------------------------------------------------------------------

def flicker():
    m = session(1)
    rows, seen = [], []
    want(m.activate("user.f", "be1!p1", ACL), "OK")
    copies = []
    for n in (1, 2):
        log = []
        c = mc.Copy([nodes[n - 1]], on_row=log.append)
        c.start()
        if not c.ready.wait(10):
            fail("no UPDATE from node %d: %s" % (n, getattr(c, "last", "")))
        copies.append((c, log))
    for i in range(20):
        want(m.reserve("user.f", "be1!p%d" % (1 + i % 3)), "OK", "done")
    want_found(m, "user.f", box("user.f", "be1!p1"))
    for c, log in copies:
        c.noop()
        if [r for r in log if r[0] != "MAILBOX" or r[3] != ACL]:
            fail("a listener saw %r" % log)
    want(m.activate("user.f", "be1!p2", ACL), "OK")
    for c, log in copies:
        c.noop()
        if not log or log[-1] != box("user.f", "be1!p2") or any(r[0] != "MAILBOX" for r in log):
            fail("a listener saw %r" % log)
        c.stop()
    want(m.delete("user.f"), "OK")


# --- Sequences of Cyrus ---------------------------------------------------------------------------------------------------------------------------

def rename():
    m = session()
    want(m.activate("user.r.A", "be1!fast", ACL), "OK")
    m.logout()
    m = session(2)
    want(m.delete("user.r.A"), "OK", "done")
    want(m.reserve("user.r.C", "be1!"), "OK", "done")
    want_found(m, "user.r.C", held("user.r.C", "be1!fast"))
    want(m.activate("user.r.C", "be1!", ACL), "OK", "done")
    m.logout()
    m = session(3)
    want(m.noop(), "OK")
    want_found(m, "user.r.C", box("user.r.C", "be1!fast"))
    want_found(m, "user.r.A", None)
    # Without a rename, and after another server's DELETE, an empty partition is one.
    want(m.activate("user.r.other", "be2!slow", ACL), "OK")
    m.logout()
    m = session()
    want(m.delete("user.r.other"), "OK")
    want(m.activate("user.r.D", "be1!", ACL), "OK")
    want_found(m, "user.r.D", box("user.r.D", "be1!"))
    want(m.delete("user.r.C"), "OK")
    want(m.delete("user.r.D"), "OK")
    m.logout()


def xfer():
    """DEACTIVATE at the one, ACTIVATE from the other server; the shell does the same with raftdirctl in between."""
    a, b = session(1), session(2)
    want(a.activate("user.x", "be1!p", ACL), "OK")
    want(b.noop(), "OK")
    want(b.activate("user.x", "be2!q", ACL), "NO", "active at be1!p")
    want(a.deactivate("user.x", "be1!p"), "OK", "done")
    want(b.reserve("user.x", "be2!q"), "NO", "mailbox already exists")
    want(b.activate("user.x", "be2!q", ACL), "OK", "done")
    want_found(b, "user.x", box("user.x", "be2!q"))
    want(a.deactivate("user.x", "be1!p"), "NO", "active at be2!q")
    want(a.activate("user.x", "be1!p", ACL), "NO", "active at be2!q")
    want(a.delete("user.x"), "NO", "is at be2!q")  # what this connection has spoken for is be1
    want_found(b, "user.x", box("user.x", "be2!q"))
    # Given up: the source takes its own back.
    want(b.deactivate("user.x", "be2!q"), "OK")
    want(b.activate("user.x", "be2!q", ACL), "OK")
    want(b.delete("user.x"), "OK")


def guard():
    m = session()
    want(m.activate("user.g1", "be1!p", ACL), "OK")
    want(m.activate("user.g2", "be2!p", ACL), "OK")
    m.logout()
    m = session(2)
    want(m.noop(), "OK")
    want(m.list("be1!"), "OK")
    want(m.delete("user.g2"), "NO", "is at be2!p")
    m.logout()
    for verb, args in (("RESERVE", ("user.g3", "be1!p")), ("ACTIVATE", ("user.g3", "be1!p", ACL)), ("DEACTIVATE", ("user.g3", "be1!p"))):
        m = session(3)
        want(m.noop(), "OK")
        want(m.command(verb, *args), "OK")
        want(m.delete("user.g2"), "NO", "is at be2!p")
        want(m.delete("user.g1") if verb == "DEACTIVATE" else m.find("user.g1"), "OK")
        m.logout()
    m = session()
    for n in ("user.g2", "user.g3"):
        want(m.noop(), "OK")
        want(session().delete(n), "OK")


def bound():
    """The user be1 may write be1's locations only."""
    m, free = session(1, "be1", "be1pw"), session(1)
    want(m.activate("user.b1", "be1!p", ACL), "OK")
    want(m.activate("user.b1", "be1!q", ACL), "OK")
    want(m.reserve("user.b2", "be2!p"), "NO", "bound to server")
    want(m.activate("user.b2", "be2!p", ACL), "NO", "bound to server")
    want(free.activate("user.b2", "be2!p", ACL), "OK")
    want(m.activate("user.b2", "be1!p", ACL), "NO", "active at be2!p")
    want(m.deactivate("user.b2", "be2!p"), "NO", "bound to server")
    want(m.deactivate("user.b2", "be1!p"), "NO")
    want(m.delete("user.b2"), "NO", "is at be2!p")
    want(session(2, "be1", "be1pw").delete("user.b2"), "NO", "is at be2!p")
    want_found(free, "user.b2", box("user.b2", "be2!p"))
    want(m.deactivate("user.b1", "be1!p"), "OK")
    want(free.activate("user.b1", "be2!p", ACL), "OK")  # an XFER
    want(m.delete("user.b1"), "NO")
    want(session(3, "reader", "readerpw").delete("user.b2"), "NO", "role")
    want(session(3, "reader", "readerpw").find("user.b2"), "OK")
    for n in ("user.b1", "user.b2"):
        want(free.delete(n), "OK")


def take_over():
    """The third node's configuration allows it."""
    a, c = session(1), session(3)
    want(a.activate("user.t", "be1!p", ACL), "OK")
    want(a.activate("user.t2", "be1!p", ACL), "OK")
    want(a.activate("user.t", "be2!p", ACL), "NO", "active at be1!p")
    want(c.noop(), "OK")
    want(c.activate("user.t", "be2!q", ACL), "OK", "done")
    want_found(c, "user.t", box("user.t", "be2!q"))
    want(session(3, "be1", "be1pw").activate("user.t", "be1!p", ACL), "NO", "bound to server")
    want(c.activate("user.t2", "be1!q", ACL), "OK")  # within the server: no take-over
    want(a.noop(), "OK")
    want_found(a, "user.t", box("user.t", "be2!q"))
    for n in ("user.t", "user.t2"):
        want(session().delete(n), "OK")


# --- What failed in the middle is as before ---------------------------------------------------------------------------------------------------------

def await_found(name, row, what, seconds=10):
    m, end = session(2), time.time() + seconds
    while True:
        want(m.noop(), "OK")
        got = found(m, name)
        if got == row:
            return
        if time.time() > end:
            fail("%s: FIND %s is %r instead of %r" % (what, name, got, row))
        time.sleep(0.05)


def put_back():
    m = session()
    want(m.activate("user.p.taken", "be2!p", ACL), "OK")
    row = box("user.p.old", "be1!fast", "x\tlrs\t")
    want(m.activate(row[1], row[2], row[3]), "OK")
    for what in ("RESERVE", "ACTIVATE", "location", "ACL"):
        m = session()
        want(m.noop(), "OK")
        want(m.delete("user.p.old"), "OK")
        want_found(m, "user.p.old", None)
        if what == "RESERVE":
            want(m.reserve("user.p.taken", "be1!"), "NO", "mailbox already exists")
        elif what == "ACTIVATE":
            want(m.reserve("user.p.new", "be1!"), "OK")
            want(m.activate("user.p.taken", "be1!", ACL), "NO", "active at be2!p")
        elif what == "location":
            want(m.reserve("user.p.new", "nonsense"), "NO")
        else:
            want(m.reserve("user.p.new", "be1!"), "OK")
            want(m.activate("user.p.new", "be1!", "no acl at all"), "NO")
        want_found(m, "user.p.old", row)  # at once, on the same connection
        m.logout()
    # No rename, without a RESERVE: ctl_mboxlist -m deletes one and activates another.
    m = session()
    want(m.noop(), "OK")
    want(m.delete("user.p.old"), "OK")
    want(m.activate("user.p.taken", "be1!p", ACL), "NO", "active at be2!p")
    m.close()
    time.sleep(0.3)
    await_found("user.p.old", None, "what ctl_mboxlist deletes", 0)
    want(session().activate(*row[1:]), "OK")
    # The connection goes within a rename.
    m = session()
    want(m.noop(), "OK")
    want(m.delete("user.p.old"), "OK")
    want(m.reserve("user.p.new2", "be1!"), "OK")
    m.close()
    await_found("user.p.old", row, "a connection that ended within a rename")
    # A DELETE that was answered, and the end of it, with and without a word: it stays deleted.
    for word in (True, False):
        m = session()
        want(m.delete("user.p.old"), "OK")
        if word:
            m.logout()
        else:
            m.close()
        time.sleep(0.5)
        await_found("user.p.old", None, "a DELETE that was answered", 0)
        want(session().activate(*row[1:]), "OK")
    # A rename that ended well, and a connection that then goes.
    m = session()
    want(m.noop(), "OK")
    want(m.delete("user.p.old"), "OK")
    want(m.reserve("user.p.moved", "be1!"), "OK")
    want(m.activate("user.p.moved", "be1!", row[3]), "OK")
    m.close()
    time.sleep(0.3)
    await_found("user.p.old", None, "a rename that ended well", 0)
    await_found("user.p.moved", box("user.p.moved", "be1!fast", row[3]), "a rename that ended well", 0)
    for n in ("user.p.moved", "user.p.taken"):
        want(session().delete(n), "OK")
    want(session().delete("user.p.new"), "OK") # reservations that would run out
    want(session().delete("user.p.new2"), "OK")


def seen():
    """What any client of a node was told, every client of that node finds, at once: Cyrus opens a connection for each change."""
    for n in (1, 2, 3):
        a, b = session(n), session(n)
        for i in range(60):
            want(a.activate("user.seen", "be1!p", "%d\tl\t" % i), "OK")
            want_found(b, "user.seen", box("user.seen", "be1!p", "%d\tl\t" % i))
            if i % 3 == 2:
                want(b.delete("user.seen"), "OK")
                want_found(a, "user.seen", None)
    # What only another node's client was told: NOOP.
    a, b = session(1), session(2)
    for i in range(20):
        want(a.activate("user.seen", "be1!p", "%d\tl\t" % i), "OK")
        want(b.noop(), "OK")
        want_found(b, "user.seen", box("user.seen", "be1!p", "%d\tl\t" % i))
        a, b = b, a
    want(session().delete("user.seen"), "OK")


# --- Races -----------------------------------------------------------------------------------------------------------------------------------------

def races():
    """8 clients, as 8 servers, on two nodes: RESERVE, ACTIVATE of one name; exactly one wins, and the directory has it there."""
    rounds = int(os.environ.get("ROUNDS", "40"))
    clients, problems = 8, []
    barrier = threading.Barrier(clients)
    won = [[] for _ in range(rounds)]

    def client(i):
        try:
            m = session(1 + i % 2)
            for r in range(rounds):
                barrier.wait(60)
                ok = r % 2 == 1 or m.reserve("user.race%d" % r, "be%d!p" % i).word == "OK"
                if ok:
                    a = m.activate("user.race%d" % r, "be%d!p" % i, "be%d\tlr\t" % i)
                    if a.word == "OK":
                        won[r].append(i)
                    elif r % 2 == 0:
                        problems.append("round %d: reserved, and then not activated: %r" % (r, a))
        except Exception as e:
            problems.append("client %d: %r" % (i, e))
            barrier.abort()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    [t.start() for t in threads]
    [t.join(120) for t in threads]
    if problems:
        fail(problems[0])
    m = session(3)
    want(m.noop(), "OK")
    for r in range(rounds):
        if len(won[r]) != 1:
            fail("round %d: %r have won" % (r, won[r]))
        want_found(m, "user.race%d" % r, box("user.race%d" % r, "be%d!p" % won[r][0], "be%d\tlr\t" % won[r][0]))
    print("winners: %s" % sorted({w[0] for w in won}))


# --- While nodes die ----------------------------------------------------------------------------------------------------------------------------------

def writer(state, i, at, own):
    """Creates and sometimes deletes mailboxes of its own, through one node; notes what was acknowledged. NO must say that nothing was done, or that it can't tell."""
    n, m = 0, None
    while not state["stop"]:
        n += 1
        name = "user.%s%d.%d" % (own, i, n)
        t = time.time()
        try:
            if m is None:
                m = session(at, timeout=12)
            verb = "ACTIVATE"
            a = m.activate(name, "be%d!p" % i, ACL)
            if a.word == "OK" and n % 4 == 0:
                state["sure"][name] = True
                verb = "DELETE"
                a = m.delete(name)
                if a.word == "OK":
                    state["sure"][name] = False
                elif "can't tell" in a.text:
                    state["sure"].pop(name)
            elif a.word == "OK":
                state["sure"][name] = True
            elif "can't tell" not in a.text:
                state["sure"][name] = False
            if a.word != "OK":
                state["no"].append("%s %s: %s" % (verb, name, a.text))
                if "try again" not in a.text:
                    state["problems"].append("a temporary failure that doesn't say so: %s" % a.text)
            state["acked"] += a.word == "OK"
        except (OSError, mc.Closed, mc.Refused):
            state["lost"] += 1
            state["sure"].pop(name, None)
            m = None
            if at == state["victim"]:
                time.sleep(0.05)
        took = time.time() - t
        state["longest"] = max(state["longest"], took) if m else state["longest"]
    if m:
        m.close()


def check(state):
    """Every node has what was acknowledged, and nothing of what was surely not done."""
    for n in (1, 2, 3):
        end = time.time() + 15
        while True:
            try:
                m = session(n)
                break
            except (OSError, mc.Closed, mc.Refused):
                if time.time() > end:
                    fail("node %d doesn't come back" % n)
                time.sleep(0.1)
        want(m.noop(), "OK")
        rows = {r[1] for r in want(m.list(), "OK").rows}
        for name, there in state["sure"].items():
            if (name in rows) != there:
                fail("node %d: %s is %s, and the client was told %s" % (n, name, "there" if name in rows else "not there", "OK" if there else "that it wasn't"))


def load(own, victim, disturb, writers=6, others_only=False):
    """`disturb` runs while clients write through all nodes. Through the others every command is answered OK."""
    state = {"stop": False, "sure": {}, "no": [], "problems": [], "acked": 0, "lost": 0, "longest": 0, "victim": victim}
    at = [n for n in (1, 2, 3) if not others_only or n != victim]
    threads = [threading.Thread(target=writer, args=(state, i, at[i % len(at)], own)) for i in range(writers)]
    [t.start() for t in threads]
    try:
        time.sleep(0.5)
        disturb()
        time.sleep(0.5)
    finally:
        state["stop"] = True
        [t.join(30) for t in threads]
    if state["problems"]:
        fail(state["problems"][0])
    if state["acked"] < 50:
        fail("hardly any write: %r" % state)
    print("%d acknowledged, %d NO, %d connections lost, longest %.1f s" % (state["acked"], len(state["no"]), state["lost"], state["longest"]))
    return state


def kill():
    """A command in flight on a follower while the leader dies waits a moment, and is answered OK."""
    victim, pid = int(os.environ["VICTIM"]), int(os.environ["VICTIM_PID"])
    state = load(os.environ["OWN"], victim, lambda: (os.kill(pid, signal.SIGKILL), time.sleep(2.5)), others_only=True)
    if state["no"] or state["lost"]:
        fail("the leader died, and on other nodes: %r, %d connections lost" % (state["no"][:3], state["lost"]))
    if state["longest"] > 8:
        fail("a command took %.1f s" % state["longest"])
    if state["longest"] < 0.1:
        fail("no command was in flight while the leader died: the longest took %.3f s" % state["longest"])
    with open(os.environ["STATE"], "w") as f:
        f.writelines("%s %d\n" % i for i in state["sure"].items())


def pause():
    """The leader stops for a while; its own clients wait or are told NO, nobody is told something wrong."""
    victim, pid = int(os.environ["VICTIM"]), int(os.environ["VICTIM_PID"])

    def disturb():
        for seconds in (0.3, 2):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.4)
    check(load(os.environ["OWN"], victim, disturb))


def checked():
    with open(os.environ["STATE"]) as f:
        check({"sure": {l.split()[0]: l.split()[1] == "1" for l in f}})


def gave_up():
    """A node is stopped within its clients' renames until they give up, as Cyrus does after 10 s. They believe that nothing was done, and so it is in the end: of what had been sent before it was
    stopped, and of what came meanwhile."""
    victim, pid, leader = int(os.environ["VICTIM"]), int(os.environ["VICTIM_PID"]), int(os.environ["LEADER_PID"])
    other = 1 + victim % 3
    if victim == int(os.environ["LEADER"]):
        fail("the victim leads")
    steps = [(when, step) for when in ("before", "meanwhile") for step in ("DELETE", "RESERVE", "ACTIVATE")]
    sessions = []

    def old(i):
        return box("user.g%d.old" % i, "be1!fast")

    def command(i):
        step, m = steps[i][1], sessions[i]
        args = {"DELETE": (old(i)[1],), "RESERVE": ("user.g%d.new" % i, "be1!"), "ACTIVATE": ("user.g%d.new" % i, "be1!", ACL)}[step]
        m.send_words("Z", step, args)

    for i, (when, step) in enumerate(steps):
        want(session(other).activate(*old(i)[1:]), "OK")
        m = session(victim)
        want(m.noop(), "OK")
        if step != "DELETE":
            want(m.delete(old(i)[1]), "OK")
        if step == "ACTIVATE":
            want(m.reserve("user.g%d.new" % i, "be1!"), "OK")
        sessions.append(m)
    # The leader hangs for a moment, so that nothing is answered before the victim is stopped; then it does what it was sent.
    os.kill(leader, signal.SIGSTOP)
    try:
        [command(i) for i in range(3)]
        time.sleep(0.1)
    finally:
        os.kill(pid, signal.SIGSTOP)
        os.kill(leader, signal.SIGCONT)
    try:
        [command(i) for i in range(3, 6)]
        time.sleep(10.5)
        [m.close() for m in sessions]
    finally:
        os.kill(pid, signal.SIGCONT)
    end = time.time() + 15
    while True:
        try:
            o = session(other)
            want(o.noop(), "OK")
            wrong = []
            for i, step in enumerate(steps):
                was, new = found(o, old(i)[1]), found(o, "user.g%d.new" % i)
                if was != old(i) or (new and new[0] != "RESERVE"):
                    wrong.append("%s %s: old is %r, new is %r" % (step + (was, new)))
            if not wrong:
                break
        except (OSError, mc.Closed, mc.Refused) as e:
            wrong = [repr(e)]
        if time.time() > end:
            fail("what clients have given up: %s" % "; ".join(wrong))
        time.sleep(0.1)
    time.sleep(1)
    want(o.noop(), "OK")
    for i in range(len(steps)):
        want_found(o, old(i)[1], old(i))
        want(session(other).delete(old(i)[1]), "OK")
        session(other).delete("user.g%d.new" % i)


def held_taken():
    """What is held at one server is activated at another between the look of a DELETE and its request: it isn't deleted there."""
    victim, leader = int(os.environ["VICTIM"]), int(os.environ["LEADER_PID"])
    want(session(victim).activate("user.h", "be1!p", ACL), "OK")
    want(session(victim).deactivate("user.h", "be1!p"), "OK")
    a, b = session(victim), session(victim)
    [want(m.noop(), "OK") for m in (a, b)]
    os.kill(leader, signal.SIGSTOP)
    try:
        b.send_words("Z", "ACTIVATE", ("user.h", "be2!q", ACL))
        time.sleep(0.1)
        a.send_words("Z", "DELETE", ("user.h",))
        time.sleep(0.1)
    finally:
        os.kill(leader, signal.SIGCONT)
    want(b.read_answer("Z"), "OK")
    want(a.read_answer("Z"), "NO", "be2!q")
    want_found(a, "user.h", box("user.h", "be2!q"))
    want(session(victim).delete("user.h"), "OK")


def stop():
    """A follower is told to stop while DELETEs are on their way to the leader: each is answered, and what isn't answered OK wasn't done, or was taken back."""
    victim, pid, leader = int(os.environ["VICTIM"]), int(os.environ["VICTIM_PID"]), int(os.environ["LEADER_PID"])
    other = 1 + victim % 3
    sessions = []
    for i in range(8):
        want(session(other).activate("user.s%d" % i, "be1!p", ACL), "OK")
        m = session(victim)
        want(m.noop(), "OK")
        sessions.append(m)
    os.kill(leader, signal.SIGSTOP)
    try:
        [m.send_words("Z", "DELETE", ("user.s%d" % i,)) for i, m in enumerate(sessions)]
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
    finally:
        os.kill(leader, signal.SIGCONT)
    said = []
    for m in sessions:
        try:
            said.append(m.read_answer("Z").word)
        except (OSError, mc.Closed, mc.Refused) as e:
            said.append(repr(e))
    time.sleep(0.5)
    o = session(other)
    want(o.noop(), "OK")
    for i, word in enumerate(said):
        there = found(o, "user.s%d" % i) is not None
        if there == (word == "OK"):
            fail("user.s%d is %s, and its DELETE was answered %s (%r)" % (i, "there" if there else "gone", word, said))
        if there:
            want(o.delete("user.s%d" % i), "OK")
    if "OK" not in said:
        fail("no command in flight was waited for: %r" % said)


def stop_load():
    """The leader is told to stop while clients write through all nodes: no command is answered NO."""
    victim, pid = int(os.environ["VICTIM"]), int(os.environ["VICTIM_PID"])
    state = load(os.environ["OWN"], victim, lambda: (os.kill(pid, signal.SIGTERM), time.sleep(2)))
    if state["no"]:
        fail("a leader was told to stop: %d NO, %r" % (len(state["no"]), state["no"][:3]))
    with open(os.environ["STATE"], "w") as f:
        f.writelines("%s %d\n" % i for i in state["sure"].items())


def no_quorum():
    """The other two are stopped: what is there is found, what isn't can't be told once the state is too old, writes end in time, and the text says that one shall try again."""
    at = int(os.environ["AT"])
    m = session(at)
    want(m.noop(), "OK")
    want(m.activate("user.nq", "be1!p", ACL), "OK")
    want_found(m, "user.nq", box("user.nq", "be1!p"))
    pids = [int(p) for p in os.environ["OTHER_PIDS"].split()]
    # For a moment: commands wait for it to pass.
    patient, sessions = [session(at) for _ in range(2)], [session(at) for _ in range(7)] # it takes no new ones for a while
    answers = []
    [os.kill(p, signal.SIGSTOP) for p in pids]
    try:
        time.sleep(1)
        threads = [threading.Thread(target=lambda x, c: answers.append(x.command(*c)), args=a) for a in zip(patient, (("ACTIVATE", "user.nq1", "be1!p", ACL), ("NOOP",)))]
        [t.start() for t in threads]
        time.sleep(2)
    finally:
        [os.kill(p, signal.SIGCONT) for p in pids]
    [t.join(20) for t in threads]
    if [a.word for a in answers] != ["OK", "OK"]:
        fail("a quorum that came back after 3 s: %r" % answers)
    want(m.delete("user.nq1"), "OK")
    # For longer. What this node's clients were told has to be published here: some milliseconds.
    time.sleep(0.5)
    [os.kill(p, signal.SIGSTOP) for p in pids]
    try:
        t = time.time()
        results = {}

        def run(i, *command):
            if command[0] == "FIND":
                want_found(sessions[i], command[1], None)
                time.sleep(5.5) # the state gets too old
            begun = time.time()
            a = sessions[i].command(*command)
            results[command[0]] = (a, time.time() - begun)
        commands = [("ACTIVATE", "user.nq2", "be1!p", ACL), ("RESERVE", "user.nq3", "be1!p"), ("DELETE", "user.nq"), ("NOOP",), ("LIST",), ("DEACTIVATE", "user.nq", "be1!p"),
                    ("FIND", "user.nq-absent")]
        threads = [threading.Thread(target=run, args=(i,) + c) for i, c in enumerate(commands)]
        [x.start() for x in threads]
        while any(x.is_alive() for x in threads):
            b = time.time()
            want_found(m, "user.nq", box("user.nq", "be1!p"))
            if time.time() - b > 0.5:
                fail("FIND of a mailbox that is there took %.1f s" % (time.time() - b))
            if time.time() - t > 15:
                fail("no answer in 15 s: %r" % results)
            time.sleep(0.05)
        for c in commands:
            a, took = results[c[0]]
            if a.word != "NO" or "try again" not in a.text:
                fail("%r without a quorum: %r" % (c, a))
            if took > 9.5:
                fail("%r without a quorum took %.1f s" % (c, took))
        want_found(m, "user.nq", box("user.nq", "be1!p"))
    finally:
        [os.kill(p, signal.SIGCONT) for p in pids]
    end = time.time() + 20
    while True:
        a = m.noop()
        if a.word == "OK":
            break
        if time.time() > end:
            fail("no quorum again: %r" % (a,))
    want_found(m, "user.nq-absent", None)
    time.sleep(1)
    want(m.noop(), "OK")
    # Nothing that was answered NO was done, or it was taken back.
    want_found(m, "user.nq", box("user.nq", "be1!p"))
    want(m.delete("user.nq"), "OK")
    for n in ("user.nq2", "user.nq3"):
        m.delete(n)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
