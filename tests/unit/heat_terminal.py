#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mirrorball heat's live map on a pseudo-terminal: heat_terminal.py NAME HANGING MORTAL, three fake machines."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

TAKE, GIVE = b"\x1b[?1049h", b"\x1b[?1049l"
n_checks = 0
n_bad = 0


class Run:
    """One run on a terminal of its own; a parent stays, so that modes can be read after the end."""

    def __init__(self, *words, env=None, rows=24, columns=100):
        self.words = words
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            modes = termios.tcgetattr(0)
            modes[3] &= ~termios.ECHOK
            termios.tcsetattr(0, termios.TCSANOW, modes)
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                vars_ = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "", "LC_ALL": "C.UTF-8", "NO_COLOR": ""}
                os.execve(os.environ["MIRRORBALL"], ["mirrorball", "heat", *words], {**vars_, **(env or {})})
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            print("pid=%d." % pid, flush=True)
            while True:
                _, status = os.waitpid(pid, os.WUNTRACED)
                same = termios.tcgetattr(0) == modes
                if not os.WIFSTOPPED(status):
                    break
                print("stopped same=%s." % same, flush=True)
            print("end=%d same=%s." % (os.waitstatus_to_exitcode(status), same), flush=True)
            os._exit(0)
        self.expect(rb"pid=(\d+)\.")
        self.child = int(self.match.group(1))

    def read(self, wait_s):
        if select.select([self.fd], [], [], wait_s)[0]:
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:
                return False
        return True

    def expect(self, pattern, limit_s=20):
        end = time.monotonic() + limit_s
        while not re.search(pattern, self.seen) and time.monotonic() < end and self.read(0.1):
            pass
        self.match = re.search(pattern, self.seen)
        check(self, self.match, "nothing like %r" % pattern)

    def forget(self):
        self.seen = b""

    def type(self, keys):
        os.write(self.fd, keys)

    def ends(self, status, limit_s=20):
        self.expect(rb"end=(-?\d+) same=(\w+)\.", limit_s)
        if self.match:
            check(self, int(self.match.group(1)) == status, "status %s" % self.match.group(1).decode())
            check(self, self.match.group(2) == b"True", "the terminal's modes are others")
        check(self, self.seen.count(TAKE) == self.seen.count(GIVE), "the screen is not given back")
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def check(run, good, what):
    global n_checks, n_bad
    n_checks += 1
    if not good:
        n_bad += 1
        print("FAILED: heat %s: %s; seen:\n%r" % (" ".join(run.words), what, plain(run.seen)[-3000:]))


def plain(seen):
    return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen)


name, hanging, mortal = sys.argv[1:]

run = Run("--interval", "0.2", name)
run.expect(re.escape(TAKE))
run.expect("view 1 \\(node 1\\)".encode())
run.expect("▀▀▀".encode())
run.expect(b"\x1b\\[0;48;5;\\d+")
check(run, not termios.tcgetattr(run.fd)[3] & (termios.ICANON | termios.ECHO), "keys are not read at once")
run.type(b"m")
run.expect(b"read by")
run.type(b"m")
run.expect(b"written by")
run.type(b"n")
time.sleep(0.5)
run.read(0.1)
run.forget()
run.expect(b"(?s)own node .*q quit")
check(run, "▀".encode() not in run.seen.split(b"\x1b[H")[-1], "n does not hide where it lives")
fcntl.ioctl(run.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
time.sleep(0.6)
run.read(0.1)
run.forget()
run.expect(b"\x1b\\[H[^\x00]*\x1b\\[J[^\x00]*\x1b\\[H")
frame = run.seen.split(b"\x1b[H")[1]
lines = plain(frame).decode().split("\n")
check(run, len(lines) <= 10, "%d lines on 10" % len(lines))
check(run, max(len(line.rstrip("\r")) for line in lines) < 40, "too wide for 40 columns")
run.seen = TAKE
run.type(b"q")
run.ends(0)

run = Run(name)
run.expect(b"q quit")
run.type(b"\x03")
run.ends(0)

for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    run = Run(name)
    run.expect(b"q quit")
    os.kill(run.child, sig)
    run.ends(128 + sig)

# Died of something that it does not expect: the terminal comes back all the same.
run = Run(name)
run.expect(b"q quit")
os.kill(run.child, signal.SIGUSR1)
run.expect(b"end=")
check(run, GIVE in run.seen and b"same=True" in run.seen, "the terminal is lost")

run = Run(name)
run.expect(b"q quit")
run.type(b"\x1a")
run.expect(b"stopped same=True")
check(run, GIVE in run.seen, "stopped with the screen taken")
run.forget()
os.kill(run.child, signal.SIGCONT)
run.expect(re.escape(TAKE) + b"[^\x00]*q quit")
run.seen = TAKE
run.type(b"q")
run.ends(0)

run = Run("--seconds", "1", name)
run.ends(0)

# A machine that says nothing: keys work.
run = Run(hanging)
run.expect(b"no answer for some time")
run.type(b"q")
run.ends(0, 3)

# A machine that ends.
run = Run("--interval", "0.1", mortal)
run.ends(0)
check(run, b"the machine has ended" in run.seen, "it does not say so")

# Terminals that can do less.
run = Run(name, env={"NO_COLOR": "1"})
run.expect(b"heat: 1 to 8")
check(run, not re.search(rb"\x1b\[0;[34]", run.seen), "colours")
run.type(b"q")
run.ends(0)
run = Run(name, env={"TERM": "vt100", "LC_ALL": "C"})
run.expect(b"\x1b\\[0;4\\d")
run.expect(b"q quit")
check(run, not re.search(rb"\x1b\[0;[34]8|[\x80-\xff]", run.seen), "256 colours or no ASCII")
run.type(b"q")
run.ends(0)
run = Run(name, env={"COLORTERM": "truecolor"})
run.expect(b"\x1b\\[0;48;2;\\d+;\\d+;\\d+")
run.type(b"q")
run.ends(0)
run = Run(name, env={"TERM": "dumb"})
run.ends(0)
check(run, b"own node" in run.seen and b"\x1b[H" not in run.seen, "escapes on a dumb terminal")

print("%d checks, %d failed" % (n_checks, n_bad))
sys.exit(n_bad > 0)
