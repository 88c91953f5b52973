# SPDX-License-Identifier: Apache-2.0
"""A running machine: its console, the agent inside (native/agent.c), KVM's counters."""

import glob
import os
import select
import signal
import subprocess
import time

BOOT_SECONDS = 90
TRACE = "/sys/kernel/debug/tracing/events/kvm"
# tracepoint: the field that is counted
HISTOGRAMS = {"kvm_exit": "exit_reason", "kvm_msr": "ecx", "kvm_pio": "port", "kvm_mmio": "gpa"}


class Lost(Exception):
    """The machine did not come as far as it should have; the text has the end of its console."""


class Late(Lost):
    """It has not come as far yet."""


class Session:
    """Starts a machine and reads its console. Use as a context: the machine ends with it."""

    def __init__(self, command):
        # CLOCK_MONOTONIC; the fork that follows is part of what both sides need.
        self.begin = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        self.text = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    @property
    def pid(self):
        return self.process.pid

    def line(self, begins, seconds=BOOT_SECONDS):
        """The next line that begins with one of these, and when it was complete."""
        deadline = time.monotonic() + seconds
        while True:
            at = time.monotonic()
            while b"\n" in self.text:
                line, self.text = self.text.split(b"\n", 1)
                line = line.strip()
                if line.startswith(begins):
                    return line.decode(errors="replace"), at
            left = deadline - at
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Late(f"no answer in {seconds} s; the console ends with {self.text[-200:]!r}")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise Lost(f"ended with status {self.process.wait()}: {self.text[-200:]!r}")
            self.text += data

    def ready(self):
        return self.line((b"BENCH-READY",))

    def ask(self, request, seconds=BOOT_SECONDS):
        """The agent's answer, as a dictionary."""
        os.write(self.process.stdin.fileno(), request.encode() + b"\n")
        line, _ = self.line((b"BENCH-DONE", b"BENCH-FAILED"), seconds)
        if not line.startswith("BENCH-DONE"):
            raise Lost(f"{request}: {line}")
        return dict(word.split("=", 1) for word in line.split()[1:])

    def hold(self):
        """Stops the monitor: with a guest that powers off go its counters."""
        self.process.send_signal(signal.SIGSTOP)

    def counters(self):
        """KVM's statistics of this machine, all vCPUs together; {} where debugfs is not."""
        found = {}
        for directory in glob.glob(f"/sys/kernel/debug/kvm/{self.pid}-*"):
            for entry in os.scandir(directory):
                if entry.is_file():
                    try:
                        with open(entry.path, encoding="ascii") as file:
                            found[entry.name] = int(file.read())
                    except (OSError, ValueError):
                        pass
        return found


def difference(after, before):
    return {name: after[name] - before.get(name, 0) for name in after
            if after[name] != before.get(name, 0)}


class Reasons:
    """What machines exit for, counted by the kernel's histograms (all machines of the host)."""

    def __init__(self, wanted):
        self.on = wanted and all(os.path.exists(f"{TRACE}/{name}/hist") for name in HISTOGRAMS)

    @staticmethod
    def _trigger(event, text):
        with open(f"{TRACE}/{event}/trigger", "w", encoding="ascii") as file:
            file.write(text)

    def begin(self):
        if self.on:
            for event, field in HISTOGRAMS.items():
                self._trigger(event, f"hist:keys={field}.hex")

    def end(self):
        """{tracepoint: {value of its field, hexadecimal: how often}}"""
        found = {}
        for event, field in HISTOGRAMS.items() if self.on else ():
            counts = {}
            with open(f"{TRACE}/{event}/hist", encoding="ascii") as file:
                for line in file:
                    # { exit_reason:         7b } hitcount:       3220
                    words = line.replace("{", " ").replace("}", " ").split()
                    if words[:1] == [f"{field}:"] and words[2:3] == ["hitcount:"]:
                        counts[words[1]] = int(words[3])
            self._trigger(event, f"!hist:keys={field}.hex")
            found[event] = dict(sorted(counts.items(), key=lambda item: -item[1]))
        return found
