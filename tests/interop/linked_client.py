#!/usr/bin/env python3
"""linked_client.py - for tests/interop/linked: a world of mailboxes from a seed, and the same questions to two servers.

  world SEED DIR                              DIR/all.json (a dump with everything on one server), directory.json (the same, spread over be1, be2, be3), be1.json (be1's own
                                              part), users (one a line), subscriptions (USER TAB EXTERNAL-NAME), names (external names)
  compare LABEL A B USER                      asks both servers (HOST:PORT) the same as USER; commands are the lines of standard input; ends with 1 at the first answer that differs
  ask HOST:PORT USER COMMAND...               prints what came
  maps HOST:PORT USER MASTER TEXT             lists, and ends with 0 if the imapd that answers, a child of the process MASTER, has a file mapped whose name contains TEXT
  rcpt HOST:PORT RECIPIENT...                 LMTP; prints "RECIPIENT CODE TEXT"
  lmtp HOST:PORT RECIPIENT                    delivers a message
  passwords SOCKET                            answers OK to every question of libsasl2's saslauthd protocol, until it is killed
"""
import imaplib
import json
import os
import random
import re
import smtplib
import socket
import sys

PASSWORD = "secret"
TIMEOUT_S = 60


def world(seed, directory):
    r = random.Random(int(seed))
    users = ["anna", "ben", "carl.rot", "dora", "emil.blau", "frida", "gus@other.test", "hans.gelb@other.test", "ida@other.test", "jan", "games"]
    strangers = [f"user{i}" for i in range(40)] + [f"user{i}@other.test" for i in range(20)]
    rights = ["lrs", "l", "lrswipkxtecda", "r", "p", "lr", "lrswi", "a", "s", ""]

    def internal(user):
        local, _, domain = user.partition("@")
        return (domain + "!" if domain else "") + "user." + local.replace(".", "^")

    def acl(owner, domain):
        entries = {}
        if owner and r.random() < 0.95:
            entries[owner] = "lrswipkxtecda"
        people = users + strangers[:10]
        for _ in range(r.choice([0, 0, 1, 1, 2, 5])):
            who = r.choice(people)
            if ("@" in who) == bool(domain) or r.random() < 0.1:
                entries[who] = r.choice(rights)
        if r.random() < 0.12:
            entries["anyone"] = r.choice(rights)
        if r.random() < 0.15:
            entries["-" + r.choice(people + ["anyone"])] = r.choice(rights)
        if r.random() < 0.05:
            entries["anonymous"] = "lrs"
        # Debian has this user in the group of this name, and Cyrus' groups are the system's.
        if r.random() < 0.1:
            entries[r.choice(["group:games", "-group:games"])] = r.choice(rights)
        return {who: letters for who, letters in entries.items() if letters}

    names = {}
    leaves = ["Sent", "Drafts", "Trash", "Work", "Work.2024", "Work.2024.Q1", "a^b", "Lists.x.y", "&APw-ber", "Z z"]
    for user in users + strangers:
        domain = user.partition("@")[2]
        inbox = internal(user)
        names[inbox] = acl(user, domain)
        for leaf in r.sample(leaves, r.randrange(len(leaves))):
            names[f"{inbox}.{leaf}"] = acl(user, domain)
    tops = ["shared", "news", "public", "userland", "archive", "user-like", "a"]
    for domain in ["", "other.test!"]:
        for top in tops:
            for path in ["", ".x", ".x.y", ".x.y.z", ".x-y", ".z", ".^dot", ".deep.er.and.deeper"]:
                if r.random() < 0.6:
                    names[f"{domain}{top}{path}"] = acl(None, domain)
    names["user.anna"] = {"anna": "lrswipkxtecda"}  # who makes and deletes mailboxes
    names["shared.of.games"] = {"group:games": "lrs"}
    names["shared.of.games.not"] = {"anyone": "lrs", "-group:games": "l"}
    names["DELETED.user.anna.Old.5FD2B5A5"] = {"anna": "lrswipkxtecda"}

    def dump(name, at, own, acl_of_it):
        entry = {"name": name, "mtime": "1700000000", "uidvalidity": "1700000001", "createdmodseq": "4", "foldermodseq": "4", "mbtype": "e" if own else "er", "partition": "default"}
        if not own:
            entry["server"] = at
        entry.update({"acl": acl_of_it, "uniqueid": "id-" + name.encode().hex()[-40:], "name_history": []})
        return entry

    # The users that ask have their INBOX at be1, where their subscriptions are; everything else is anywhere.
    inboxes = {internal(user) for user in users}
    place = {name: "be1.test" if name in inboxes or r.random() < 0.3 else r.choice(["be2.test", "be3.test"]) for name in names}
    whole = {n: dump(n, None, True, names[n]) for n in sorted(names)}
    spread = {n: {**dump(n, place[n], False, names[n]), "mbtype": "e"} for n in sorted(names)}
    own = {n: dump(n, None, True, names[n]) for n in sorted(names) if place[n] == "be1.test"}
    # A domain in which one may see one mailbox of another server among thousands.
    crowd = {f"crowd.test!user.u{i}": {f"u{i}@crowd.test": "lrswipkxtecda"} for i in range(3000)}
    crowd.update({"crowd.test!user.max": {"max@crowd.test": "lrswipkxtecda"}, "crowd.test!board.one": {"max@crowd.test": "lrs"}})
    for n in sorted(crowd):
        spread[n] = {**dump(n, "be1.test" if n.endswith("max") else "be2.test", False, crowd[n]), "mbtype": "e"}
    own["crowd.test!user.max"] = dump("crowd.test!user.max", None, True, crowd["crowd.test!user.max"])
    for file, content in [("all.json", whole), ("directory.json", spread), ("be1.json", own)]:
        with open(os.path.join(directory, file), "w") as f:
            f.write("{\n" + ",\n".join(json.dumps(n) + ": " + json.dumps(e) for n, e in content.items()) + "\n}\n")

    def external(name):  # as users of its domain write it, with unixhierarchysep
        name = name.partition("!")[2] or name
        return name.replace(".", "/").replace("^", ".")

    with open(os.path.join(directory, "users"), "w") as f:
        f.write("".join(u + "\n" for u in users))
    with open(os.path.join(directory, "names"), "w") as f:
        f.write("".join(external(n) + "\n" for n in sorted(r.sample(sorted(names), 120))))
    with open(os.path.join(directory, "subscriptions"), "w") as f:
        for user in users:
            mine = [n for n in sorted(names) if ("!" in n) == ("@" in user)]
            # Some that the user may see, of other servers too, and some at random.
            seen = [n for n in mine if "l" in names[n].get(user, "") + names[n].get("anyone", "")]
            for name in sorted(set(r.sample(seen, min(15, len(seen))) + r.sample(mine, 10))):
                f.write(f"{user}\t{external(name)}\n")
    return 0


def connect(address, user):
    host, port = address.rsplit(":", 1)
    c = imaplib.IMAP4(host, int(port), timeout=TIMEOUT_S)
    c.login(user, PASSWORD)
    return c


def ask(c, command):
    """What came, and the tagged answer, without what differs from one server and time to the next."""
    c.send(f"t {command}\r\n".encode())
    lines = []
    while True:
        line = c.readline().decode(errors="replace").rstrip("\r\n")
        if not line:
            return lines + ["(the server closed the connection)"]
        line = re.sub(r"\(\d+\.\d+ secs( \d+ calls)?\)", "(time)", line)
        line = re.sub(r"MAILBOXID \([^)]*\)", "MAILBOXID", line)
        lines.append(line)
        if line.startswith("t "):
            return lines


def compare(label, a, b, user):
    servers = [connect(a, user), connect(b, user)]
    rows = asked = 0
    for command in sys.stdin.read().splitlines():
        wanted, got = (ask(c, command) for c in servers)
        asked += 1
        rows += len(wanted) - 1
        if wanted != got:
            print(f"{label}: {user}: {command}")
            missing = [line for line in wanted if line not in got]
            extra = [line for line in got if line not in wanted]
            print("  only without raftdir:", *missing[:5], sep="\n    ")
            print("  only with raftdir:", *extra[:5], sep="\n    ")
            if not missing and not extra:
                print("  the order differs")
            return 1
    print(f"{label}: {user}: {asked} commands, {rows} rows, equal")
    return 0


def ask_all(address, user, *commands):
    c = connect(address, user)
    for command in commands:
        print(*ask(c, command), sep="\n", flush=True)
    return 0


def maps(address, user, master, text):
    c = connect(address, user)
    ask(c, 'LIST "" "*"')
    with open(f"/proc/{master}/task/{master}/children") as f:
        children = f.read().split()
    for pid in children:
        with open(f"/proc/{pid}/maps") as f:
            if text in f.read():
                return 0
    print("nothing mapped of", text)
    return 1


def lmtp_open(address):
    host, port = address.rsplit(":", 1)
    c = smtplib.LMTP(host, int(port), local_hostname="test")
    c.sock.settimeout(TIMEOUT_S)
    c.ehlo_or_helo_if_needed()
    c.login("murder", PASSWORD)
    c.mail("sender@example.org")
    return c


def rcpt(address, *recipients):
    c = lmtp_open(address)
    for recipient in recipients:
        code, text = c.rcpt(recipient)
        print(recipient, code, text.decode().replace("\n", " "))
    c.quit()
    return 0


def lmtp(address, recipient):
    c = lmtp_open(address)
    code, text = c.rcpt(recipient)
    if code == 250:
        c.docmd("DATA")
        c.send(b"From: <sender@example.org>\r\nMessage-ID: <1@test>\r\nSubject: test\r\n\r\ntext\r\n.\r\n")
        code, text = c.getreply()
    print(recipient, code, text.decode().replace("\n", " "))
    c.quit()
    return 0


def passwords(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    os.chmod(path, 0o777)
    s.listen(16)
    while True:
        c, _ = s.accept()
        with c:
            f = c.makefile("rb")
            for _ in range(4):  # user, password, service, realm
                f.read(int.from_bytes(f.read(2), "big"))
            c.sendall(b"\0\2OK")


if __name__ == "__main__":
    commands = {"world": world, "compare": compare, "ask": ask_all, "maps": maps, "rcpt": rcpt, "lmtp": lmtp, "passwords": passwords}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
    except (OSError, imaplib.IMAP4.error, smtplib.SMTPException) as e:
        print(f"{type(e).__name__}: {e}")
        sys.exit(2)
