#!/usr/bin/env python3
"""mupdate_chaos_client.py - for tests/interop/mupdate_chaos: users and administrators of a murder who go on while its directory is disturbed, and try again what failed.

  work BE1 BE2 FE FE-LMTP SEED WORKERS STOP MODEL     until the file STOP exists; then MODEL has a line "NAME TAB SERVER TAB ACL" for each mailbox that has to be there, and nothing else
                                                      may be below user.w*. Prints figures; ends with 1 when something couldn't be done within a minute, or mail bounced

What is asked for: whatever was answered OK stays done; what wasn't can be tried again until it succeeds; mail for a user whom the frontend has seen is never refused for good.
Names have letters and digits only, because of a fault of Cyrus' frontends (deploy/MUPDATE.md).
"""
import imaplib
import os
import random
import smtplib
import sys
import threading
import time

import preload_client
from mupdate_check import Patient

PATIENCE_S = 75


class Failed(Exception):
    pass


class Worker(threading.Thread):
    def __init__(self, number, addresses, lmtp, seed, stop):
        super().__init__()
        self.tag, self.at, self.lmtp, self.stop = f"w{number}", addresses, lmtp, stop
        self.random = random.Random(f"{seed}-{number}")
        self.sessions, self.model, self.error = {}, {}, None
        self.steady, self.done, self.tried_again, self.slowest, self.mails, self.waits = None, 0, 0, (0, ""), 0, 0

    def session(self, server, user):
        key = server, user
        if key not in self.sessions:
            self.sessions[key] = Patient(self.at[server], user)
        return self.sessions[key]

    def once(self, server, user, command):
        try:
            status, lines = self.session(server, user).command(command)
        except (EOFError, OSError, imaplib.IMAP4.error) as e:
            return "lost", str(e)
        return status, lines[-1]

    def do(self, server, user, command, already=None):
        """Until it is answered OK; already() says after a failure that it is done nevertheless."""
        t, answers = time.monotonic(), []
        while True:
            status, text = self.once(server, user, command)
            if status == "OK":
                break
            answers.append(f"{time.monotonic() - t:.1f}: {text}")
            if already and already(text):
                break
            if time.monotonic() - t > PATIENCE_S:
                raise Failed(f"{server} {user} {command}: {' | '.join(answers[:3])} | ... | {answers[-1]}")
            self.tried_again += 1
            time.sleep(0.2 + self.random.random() / 2)
        took = time.monotonic() - t
        self.done += 1
        if took > self.slowest[0]:
            self.slowest = took, f"{server} {command}"

    def there(self, server, name):
        return self.once(server, "cyrus", f"STATUS {name} (MESSAGES)")[0] == "OK"

    def create(self, server, name):
        # The administrator's own second attempt finds the first.
        self.do(server, "cyrus", f"CREATE {name}", lambda text: "already exists" in text and self.there(server, name))

    def rename(self, server, old, new):
        self.do(server, "cyrus", f"RENAME {old} {new}", lambda text: not self.there(server, old) and self.there(server, new))

    def mail(self, user):
        """One mail by way of the frontend, until it is taken."""
        t = time.monotonic()
        while True:
            try:
                host, port = self.lmtp.rsplit(":", 1)
                c = smtplib.LMTP(host, int(port), local_hostname="test", timeout=60)
                code, text = c.docmd("MAIL FROM:<x@example.org>")
                if code == 250:
                    code, text = c.rcpt(f"{user}@test")
                if code == 250:
                    code, text = c.docmd("DATA")
                if code == 354:
                    c.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
                    code, text = c.getreply()
                c.close()
            except (OSError, smtplib.SMTPException) as e:
                code, text = 400, str(e).encode()
            if code == 250:
                self.mails += 1
                return
            if code >= 500:
                raise Failed(f"mail for {user} bounced: {code} {text}")
            self.waits += 1
            if time.monotonic() - t > PATIENCE_S:
                raise Failed(f"mail for {user} waits: {code} {text}")
            time.sleep(0.5)

    def round(self, i):
        user, server = f"{self.tag}u{i}", self.random.choice(["be1", "be2"])
        other = "be2" if server == "be1" else "be1"
        base, acl = f"user/{user}", f"{user} lrswipkxtecdan "
        mine = {"": acl, "/a": acl, "/a/b": acl}
        self.create(server, base)
        self.create(server, f"{base}/a")
        self.create(server, f"{base}/a/b")
        self.do(server, "cyrus", f"SETACL {base}/a boss lrs")
        mine["/a"] = acl + "boss lrs "
        self.mail(self.steady)
        if i % 2:
            self.do("fe", user, "CREATE INBOX/f", lambda text: "already exists" in text)
            mine["/f"] = acl
        if i % 3 == 1:
            self.rename(server, f"{base}/a", f"{base}/c")
            mine["/c"], mine["/c/b"] = mine.pop("/a"), mine.pop("/a/b")
        if i % 4 == 2:
            self.do(server, user, "DELETE INBOX/a/b" if "/a/b" in mine else "DELETE INBOX/c/b", lambda text: "does not exist" in text)
            mine.pop("/a/b", None)
            mine.pop("/c/b", None)
        if i % 5 == 3:
            self.do(server, "cyrus", f"XFER {base} {other}.test", lambda text: not self.there(server, base) and self.there(other, base))
            server = other
        elif i % 5 == 4:
            for key in list(mine):
                self.do(server, "cyrus", f"SETACL {base}{key} boss lr")
                mine[key] = acl + "boss lr "
        for key, rights in mine.items():
            self.model[(base + key).replace("/", ".")] = server, rights

    def run(self):
        try:
            self.steady = f"{self.tag}steady"
            server = "be1" if self.tag[-1] in "02468" else "be2"
            self.create(server, f"user/{self.steady}")
            self.model[f"user.{self.steady}"] = server, f"{self.steady} lrswipkxtecdan "
            while self.once("fe", self.steady, "STATUS INBOX (MESSAGES)")[0] != "OK":
                time.sleep(0.2)
            i = 0
            while not os.path.exists(self.stop):
                self.round(i)
                i += 1
        except Exception as e:  # pylint: disable=broad-except
            self.error = f"{type(e).__name__}: {e}"


def work(be1, be2, fe, lmtp, seed, count, stop, model):
    addresses = {"be1": be1, "be2": be2, "fe": fe}
    workers = [Worker(n, addresses, lmtp, seed, stop) for n in range(int(count))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    with open(model, "w", encoding="utf-8") as f:
        for w in workers:
            for name, (server, acl) in w.model.items():
                f.write(f"{name}\t{server}.test\t{acl}\n")
    slowest = max(w.slowest for w in workers)
    print(f"figure {sum(w.done for w in workers)} operations, {sum(w.tried_again for w in workers)} tries more; {sum(w.mails for w in workers)} mails, {sum(w.waits for w in workers)} waited a while; "
          f"the slowest operation took {slowest[0]:.1f} s ({slowest[1]})")
    errors = [f"{w.tag}: {w.error}" for w in workers if w.error]
    for e in errors:
        print(e, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    preload_client.TIMEOUT_S = 90
    if len(sys.argv) != 10 or sys.argv[1] != "work":
        sys.exit(__doc__)
    sys.exit(work(*sys.argv[2:]))
