#!/usr/bin/env python3
"""mupdate_check.py - for tests/interop/mupdate*: a MUPDATE client, lists that can be compared, and Cyrus clients that compete.

  mup HOST:PORT USER PASSWORD VERB ARGUMENT...   one command; prints the rows of FIND and LIST; ends with 1 unless it is answered OK
  holds HOST:PORT USER PASSWORD raftdir|stock STATEMENT...   prints those of "at NAME SERVER!PARTITION", "acl NAME ACL", "gone NAME" that aren't so (a stock master forgets partitions)
  rows SERVER          a dump of ctl_mboxlist on standard input as rows: those at SERVER if it says no server itself, without tombstones and intermediate names
  race A B USER PREFIX COUNT         CREATEs each of PREFIX0, PREFIX1, ... at A and B at once; prints "NAME a|b|both|none"
  script A USER        IMAP commands from standard input, one a line; prints those that weren't answered OK; goes on with a new connection when the server closes its own

A HOST:PORT of MUPDATE may be several, with commas: the first that takes the client. MUPDATE_CHECK_TLS=starttls in the environment: the MUPDATE client uses TLS.

A row: NAME TAB SERVER!PARTITION TAB ACL (its tabs as spaces) TAB active|reserved.
"""
import imaplib
import json
import os
import random
import sys
import threading
import time

import preload_client

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
import mupdate_client as mc  # noqa: E402

TIMEOUT_S = 30


def mupdate(address, user, password):
    failure = None
    for one in address.split(","):
        try:
            return mc.Mupdate(one, tls=os.environ.get("MUPDATE_CHECK_TLS"), timeout=TIMEOUT_S).login(user, password)
        except (OSError, mc.Closed, mc.Refused) as e:
            failure = e
    raise failure


def mup(address, user, password, verb, *args):
    answer = mupdate(address, user, password).command(verb, *args)
    for word, name, location, *acl in answer.rows:
        print(name, location, (acl or [""])[0].replace("\t", " "), "active" if word == "MAILBOX" else "reserved", sep="\t")
    if answer.word != "OK":
        print(answer.word, answer.text, file=sys.stderr)
        return 1
    return 0


def holds(address, user, password, directory, *statements):
    m = mupdate(address, user, password)
    for statement in statements:
        kind, name, *wanted = statement.split(" ", 2)
        wanted = wanted[0] if wanted else ""
        answer = m.find(name)
        word, _, location, acl = (*answer.rows[0], "")[:4] if answer.rows else ("", "", "", "")
        if directory == "stock" and kind == "at":
            location, wanted = location.split("!")[0], wanted.split("!")[0]
        got = {"at": location if word == "MAILBOX" else f"{word} {location}", "acl": acl.replace("\t", " "), "gone": word}[kind]
        if answer.word != "OK" or got != wanted:
            print(f'{statement}: it is "{got}" ({answer.word} {answer.text})')
    return 0


def rows(server):
    pairs = json.load(sys.stdin, object_pairs_hook=lambda p: p)
    for name, entry in pairs:
        e = dict(entry)
        kind = e.get("mbtype") or ""
        if set(kind) & set("dim") or ("server" not in e and "r" in kind):
            continue
        acl = e.get("acl") or []
        acl = acl.replace("\t", " ") if isinstance(acl, str) else "".join(f"{i} {r} " for i, r in acl)
        print(name, (e.get("server") or server) + "!" + (e.get("partition") or ""), acl, "reserved" if "z" in kind else "active", sep="\t")
    return 0


class Patient:
    """A connection that is opened anew when the server has closed it: what an ordinary client does."""

    def __init__(self, address, user):
        self.address, self.user, self.c = address, user, None

    def command(self, line):
        for attempt in range(2):
            fresh = self.c is None
            try:
                if self.c is None:
                    self.c = preload_client.imap_open(self.address, self.user)
                return preload_client.raw(self.c, line)
            except (EOFError, OSError, imaplib.IMAP4.error):
                self.c = None
                if fresh or attempt:
                    raise
        return None


def race(a, b, user, prefix, count):
    both = {"a": Patient(a, user), "b": Patient(b, user)}
    barrier, won = threading.Barrier(2), {"a": set(), "b": set()}
    for p in both.values():
        p.command("NOOP")

    def run(who):
        for i in range(int(count)):
            # Cyrus 3.10 answers NO and ends: be connected before it starts.
            try:
                both[who].command("NOOP")
            finally:
                barrier.wait(60)
            time.sleep(random.random() / 300)
            if both[who].command(f"CREATE {prefix}{i}")[0] == "OK":
                won[who].add(i)

    threads = [threading.Thread(target=run, args=(who,)) for who in both]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(int(count)):
        print(f"{prefix}{i}", {(True, False): "a", (False, True): "b", (True, True): "both", (False, False): "none"}[i in won["a"], i in won["b"]])
    return 0


def script(address, user):
    c, bad = Patient(address, user), 0
    for line in sys.stdin.read().splitlines():
        wanted = "OK"
        if line.startswith("!"):
            wanted, line = "NO", line[1:]
        status, answers = c.command(line)
        if status != wanted:
            print(f"{line}: {answers[-1]}")
            bad = 1
    return bad


if __name__ == "__main__":
    commands = {"mup": mup, "holds": holds, "rows": rows, "race": race, "script": script}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
    except (EOFError, OSError, imaplib.IMAP4.error, mc.Closed, mc.Refused) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
