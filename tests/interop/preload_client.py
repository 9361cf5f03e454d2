#!/usr/bin/env python3
"""preload_client.py - for tests/interop/preload: speaks IMAP and LMTP to the Cyrus servers, and plays the password daemon that they ask.

  imap HOST:PORT USER LINE...        each LINE is an IMAP command; prints the answers; ends with 1 at the first that isn't OK (a leading "!" wants NO)
  lmtp HOST:PORT RECIPIENT...        one message; prints "RECIPIENT CODE TEXT" for each recipient's answer, to RCPT or to the message
  load HOST:PORT USER PREFIX SECONDS STOP   creates PREFIX-0, PREFIX-1, ... one after the other until the file STOP is there, and prints "NAME MILLISECONDS" for those that were done
  messages HOST:PORT USER MAILBOX    how many there are
  passwords SOCKET                   answers OK to every question of libsasl2's saslauthd protocol, until it is killed
"""
import imaplib
import os
import smtplib
import socket
import sys
import time

PASSWORD = "secret"
TIMEOUT_S = 40


def imap_open(address, user):
    host, port = address.rsplit(":", 1)
    c = imaplib.IMAP4(host, int(port), timeout=TIMEOUT_S)
    c.login(user, PASSWORD)
    return c


def raw(c, line):
    """A command as it stands; its status and everything that came."""
    tag = c._new_tag().decode()
    c.send(f"{tag} {line}\r\n".encode())
    lines = []
    while True:
        answer = c.readline().decode(errors="replace").rstrip("\r\n")
        if not answer:
            raise EOFError("the server closed the connection")
        if answer.startswith(tag + " "):
            lines.append(answer[len(tag) + 1:])
            return lines[-1].split(" ", 1)[0], lines
        lines.append(answer)


def imap(address, user, *commands):
    c = imap_open(address, user)
    for command in commands:
        wanted = "OK"
        if command.startswith("!"):
            wanted, command = "NO", command[1:]
        status, lines = raw(c, command)
        print(f"> {command}")
        print("\n".join(lines), flush=True)
        if status != wanted:
            return 1
    return 0


def lmtp(address, *recipients):
    host, port = address.rsplit(":", 1)
    c = smtplib.LMTP(host, int(port), local_hostname="test")
    c.sock.settimeout(TIMEOUT_S)
    c.ehlo_or_helo_if_needed()
    if "PLAIN" in c.esmtp_features.get("auth", ""):  # not at a server that trusts everybody (lmtpd -a)
        c.login("murder", PASSWORD)
    code, text = c.mail("sender@example.org")
    assert code == 250, text
    taken = []
    for r in recipients:
        code, text = c.rcpt(r)
        if code == 250:
            taken.append(r)
        else:
            print(r, code, text.decode().replace("\n", " "))
    if taken:
        code, text = c.docmd("DATA")
        assert code == 354, text
        c.send(f"From: <sender@example.org>\r\nMessage-ID: <{time.time_ns()}@test>\r\nSubject: test\r\n\r\ntext\r\n.\r\n".encode())
        for r in taken:
            code, text = c.getreply()
            print(r, code, text.decode().replace("\n", " "))
    c.quit()
    return 0


def load(address, user, prefix, seconds, stop):
    c = imap_open(address, user)
    end, n = time.monotonic() + float(seconds), 0
    while time.monotonic() < end and not os.path.exists(stop):
        name, t = f"{prefix}-{n}", time.monotonic()
        status, lines = raw(c, f"CREATE {name}")
        if status != "OK":
            print("failed", name, lines[-1], flush=True)
            return 1
        print(name, int((time.monotonic() - t) * 1000), flush=True)
        n += 1
        time.sleep(0.02)
    return 0


def messages(address, user, mailbox):
    c = imap_open(address, user)
    status, lines = raw(c, f"STATUS {mailbox} (MESSAGES)")
    if status != "OK":
        print(lines[-1])
        return 1
    print(lines[0].rsplit(" ", 1)[1].rstrip(")"))
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
    commands = {"imap": imap, "lmtp": lmtp, "load": load, "messages": messages, "passwords": passwords}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
    except (EOFError, OSError, imaplib.IMAP4.error, smtplib.SMTPException) as e:
        print(f"{type(e).__name__}: {e}")
        sys.exit(2)
