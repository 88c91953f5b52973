#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the program of $MIRRORBALL on a pseudo-terminal with the guests in the current directory."""
import os
import pty
import re
import select
import signal
import sys
import termios
import time

ESCAPE = b"\x1d"
LFLAG = 3
n_checks = 0
n_bad = 0


class Run:
    """One run on a terminal of its own, whose modes are first set to something unusual."""

    def __init__(self, *words):
        self.words = words
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            modes = termios.tcgetattr(0)
            modes[LFLAG] &= ~termios.ECHOK
            modes[6][termios.VERASE] = b"\x08"
            termios.tcsetattr(0, termios.TCSANOW, modes)
            # The shell stays: the terminal's modes are read after the program's end.
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                command = [os.environ["MIRRORBALL"], "run", "--memory", "32M", "--cpus", "1"]
                os.execv(command[0], command + list(words))
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            print("pid=%d." % pid, flush=True)
            _, status = os.waitpid(pid, 0)
            same = termios.tcgetattr(0) == modes
            code = os.waitstatus_to_exitcode(status)
            print("end=%d same=%s." % (code, same), flush=True)
            time.sleep(0.2)
            os._exit(0)
        self.expect(rb"pid=(\d+)\.")
        self.child = int(self.match.group(1))

    def read(self, wait_s):
        ready, _, _ = select.select([self.fd], [], [], wait_s)
        if ready:
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:
                return False
        return True

    def expect(self, pattern, limit_s=30):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self.match = re.search(pattern, self.seen)
            if self.match:
                return True
            if not self.read(0.1):
                break
        self.match = re.search(pattern, self.seen)
        if not self.match:
            bad(self, "nothing like %r" % pattern)
        return bool(self.match)

    def lflag(self):
        return termios.tcgetattr(self.fd)[LFLAG]

    def raw(self, limit_s=10):
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self.lflag() & (termios.ICANON | termios.ECHO | termios.ISIG):
            self.read(0.05)
        return not self.lflag() & (termios.ICANON | termios.ECHO | termios.ISIG)

    def type(self, keys):
        os.write(self.fd, keys)

    def end(self, status, pattern=None):
        """The program ends with this status and the terminal is as it was."""
        global n_checks
        n_checks += 1
        if self.expect(rb"end=(-?\d+) same=(\w+)\."):
            if int(self.match.group(1)) != status:
                bad(self, "status %s instead of %d" % (self.match.group(1).decode(), status))
            elif self.match.group(2) != b"True":
                bad(self, "the terminal is not as it was")
            elif pattern and not re.search(pattern, self.seen):
                bad(self, "nothing like %r" % pattern)
        else:
            os.kill(self.child, signal.SIGKILL)
        while self.read(0.5) and select.select([self.fd], [], [], 0)[0]:
            pass
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def bad(run, text):
    global n_bad
    n_bad += 1
    print("FAILED: %s: %s\n%s" % (" ".join(run.words), text, run.seen.decode(errors="replace")))


def check(run, good, text):
    global n_checks
    n_checks += 1
    if not good:
        bad(run, text)


def started(*words):
    run = Run(*words)
    check(run, run.raw(), "the terminal is not raw")
    return run


def main():
    run = started("--kernel", "halt.elf")
    run.expect(rb"Ctrl-\]")
    run.type(ESCAPE + b"q")
    run.end(6, rb"escape key")

    run = started("--kernel", "halt.elf", "--quiet")
    run.type(b"\x03\x1a\x1c")  # Ctrl-C, Ctrl-Z, Ctrl-\ are the guest's
    time.sleep(0.5)
    run.type(ESCAPE + b"m")
    run.expect(rb"power")
    run.type(ESCAPE + b"s")
    run.expect(rb"power button")
    run.type(ESCAPE + b"p")
    run.expect(rb"paused")
    run.type(ESCAPE + b"p")
    run.expect(rb"running")
    run.type(ESCAPE + b"q")
    run.end(6)

    # What is typed gets there: Ctrl-C as well, and the escape twice is one.
    run = started("--kernel", "echo.elf")
    run.type(b"abc\x03" + ESCAPE + ESCAPE + b"x")
    run.expect(rb"abc\x03\x1dx")
    run.type(b"Q")
    # The guest ends in the middle of a line; what is said about it has one of its own.
    run.end(0, rb"xQ\r\nmirrorball: .*powered off")

    run = started("--kernel", "echo.elf")
    run.type(ESCAPE + b"r")
    time.sleep(0.5)
    run.type(b"again")
    run.expect(rb"again")
    run.type(b"Q")
    run.end(0, rb"1 reset")

    for name, status, pattern in (
        ("hello", 0, rb"hello from the tiny guest"),
        ("reset", 5, rb"reset itself"),
        ("triple", 4, rb"crashed"),
        ("lost", 3, rb"KVM could not go on"),
    ):
        run = Run("--kernel", name + ".elf", "--no-reboot")
        run.end(status, pattern)

    run = Run("--kernel", "missing.elf")
    run.end(1, rb"no such file")
    run = Run("--kernel", "hello.elf", "--disk", "missing.img")
    run.end(1, rb"no such file")
    run = Run("--frobnicate")
    run.end(2)

    for number, status in (
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
    ):
        run = started("--kernel", "halt.elf")
        run.expect(rb"Ctrl-\]")  # it runs: before, one signal is enough
        os.kill(run.child, number)
        run.expect(rb"power button")
        os.kill(run.child, number)
        run.end(status)
    run = started("--kernel", "halt.elf")
    os.kill(run.child, signal.SIGQUIT)
    run.end(131)
    if os.path.basename(os.environ.get("MB_BUILD", "")) != "asan":
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGALRM, signal.SIGUSR2):
            run = started("--kernel", "halt.elf")
            os.kill(run.child, number)
            run.end(-number)

    # splash takes no input: the terminal stays as it is, and Ctrl-C is a signal.
    run = Run("splash", "radix", "ms=60000")
    time.sleep(1)
    check(run, run.lflag() & termios.ISIG, "Ctrl-C would be no signal")
    run.type(b"\x03")
    run.end(130)

    print("%d checks, %d failed" % (n_checks, n_bad))
    sys.exit(1 if n_bad or n_checks < 20 else 0)


main()
