#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a program of splash in two machines at once, whose vCPUs take turns on the same CPUs. The tracker of the
first is on in some turns, nobody ever watches the second. Notes for each line of progress what CPU time the monitor
has had. On a host or inside the lab. Argument: a JSON object, the arguments of measure(); result:
$LAB_OUT/turns.json."""

import glob
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

LINE = re.compile(r"splash: \w+: after \d+ ms: (\d+) ?\w+$")
# Off twice, so that off beside off tells what is chance.
ORDER = (True, False, False)
# What does not count of a turn: the tracker waits a second until it knows how busy the guest is, and then does more
# from second to second; what it took out comes back at once.
SETTLE_S = {True: 3.5, False: 1}


def threads(pid):
    """[(id, name, CPU time in ns)]."""
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*"):
        try:
            with open(task + "/schedstat", encoding="ascii") as file:
                ns = int(file.read().split()[0])
            with open(task + "/comm", encoding="utf-8") as file:
                found.append((int(os.path.basename(task)), file.read().strip(), ns))
        except OSError:  # it has just ended
            pass
    return found


def hurry(tid):
    """Each line is to meet the CPU time of its own moment, also on a busy host. Without the right to that there is
    more chance in the result."""
    try:
        os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pass


class Machine(threading.Thread):
    """Reads what a machine says. rows: [wall ns, CPU ns, the tracker's of it, operations]."""

    def __init__(self, command):
        super().__init__()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.rows, self.said, self.begun = [], [], threading.Event()
        self.start()

    def run(self):
        hurry(0)
        for line in self.process.stdout:
            match = LINE.match(line)
            if match:
                wall, found = time.monotonic_ns(), threads(self.process.pid)
                self.rows.append([wall, sum(ns for _, _, ns in found),
                                  sum(ns for _, name, ns in found if name == "tracker"), int(match[1])])
                self.begun.set()
            else:
                self.said.append(line)
        self.process.wait()
        self.begun.set()

    def settle(self):
        """Its vCPUs are where those of the other machine are."""
        self.begun.wait()
        for tid, name, _ in threads(self.process.pid):
            if name.startswith("vcpu"):
                cpus = sorted(os.sched_getaffinity(tid))
                os.sched_setaffinity(tid, {cpus[int(name[4:]) % len(cpus)]})
            elif name == "console-out":
                hurry(tid)

    def watch(self):
        """A connection that has asked for heat: while it is open, the tracker runs."""
        places = ("/run/mirrorball", os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/"), "mirrorball"),
                  f"/tmp/mirrorball-{os.getuid()}")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(next(path for place in places for path in glob.glob(f"{place}/*.{self.process.pid}")))
        sock.sendall(b'{"request":"heat"}\n')
        with sock.makefile(encoding="utf-8") as stream:
            answer = json.loads(stream.readline())
        if not answer["ok"]:
            raise OSError(answer)
        return sock


def measure(command, turn_s, seconds):
    """The rows of both machines, and [on, begin ns, end ns] of what counts of each turn. Not of the first, in which
    the tracker finds out what a fault costs. The command ends by itself some time later."""
    machines, turns = [Machine(command), Machine(command)], []
    for machine in machines:
        machine.settle()
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(m.is_alive() for m in machines):
        on = ORDER[len(turns) % len(ORDER)]
        watcher = machines[0].watch() if on else None
        time.sleep(SETTLE_S[on])
        begin = time.monotonic_ns()
        time.sleep(turn_s)
        turns.append([on, begin, time.monotonic_ns()])
        if watcher:
            watcher.close()
    for machine in machines:
        machine.join()
    return {"rows": [m.rows for m in machines], "turns": turns[1:], "said": ["".join(m.said) for m in machines],
            "status": [m.process.returncode for m in machines]}


def main():
    found = measure(**json.loads(sys.argv[1]))
    with open(os.path.join(os.environ["LAB_OUT"], "turns.json"), "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
