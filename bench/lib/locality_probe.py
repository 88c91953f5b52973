#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Inside the lab: runs the same guest under each monitor in turn, from the worst placement, and notes what the host
does meanwhile. Arguments: a JSON list of systems, and perhaps a
command to run first; result: $LAB_OUT/locality_probe.json. The truth is counted outside.

A system is {command, balancing, wrong, seconds, warm, done}. "wrong": all of its memory is to come from the last node
at first. "warm": a line of the guest after which it is counted; without it, it marks by itself what counts. "done": a
line with which it ends well; without it, it is ended after "seconds"."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import control

GROUP = "/sys/fs/cgroup/locality"
START_SECONDS, SETTLE_SECONDS, SAMPLE_SECONDS = 240, 20, 2
VMSTAT = ("numa_hint_faults", "pgmigrate_success", "thp_migration_success", "thp_split_page")


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Machine:
    """Its lines, and when they came."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT,
                                        preexec_fn=lambda: write(f"{GROUP}/cgroup.procs", "0"))
        self.lines = []
        self.reader = threading.Thread(target=self.listen)
        self.reader.start()

    def listen(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.decode(errors="replace").rstrip()))

    def said_at(self, text):
        return next((at for at, line in list(self.lines) if line.startswith(text)), None)

    def await_line(self, text, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None and self.said_at(text) is None:
            time.sleep(0.2)
        return self.said_at(text) is not None

    def kib_on_nodes(self):
        """Of all of the monitor's memory. What two views have counts twice."""
        found = {}
        try:
            for line in read(f"/proc/{self.process.pid}/numa_maps").splitlines():
                size = re.search(r"kernelpagesize_kB=(\d+)", line)
                for node, n in re.findall(r" N(\d+)=(\d+)", line):
                    found[node] = found.get(node, 0) + int(n) * int(size[1] if size else 4)
        except OSError:  # it has just ended
            pass
        return found

    def await_settled(self):
        """Until the guest has touched the memory that it works in."""
        deadline = time.monotonic() + SETTLE_SECONDS
        before, same = -1, 0
        while time.monotonic() < deadline and self.process.poll() is None and same < 3:
            now = sum(self.kib_on_nodes().values())
            same = same + 1 if now - before < 1024 else 0
            before = now
            time.sleep(0.5)


def cpu_seconds(pid):
    """Of all threads of the monitor, guest included."""
    words = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def look(pid, path):
    """What the host has done so far, and what a machine of ours says of itself; None: it has just ended."""
    counts = {key: int(value) for key, value in (line.split() for line in read("/proc/vmstat").splitlines())
              if key in VMSTAT}
    found = {"at": time.monotonic(), **counts, "pauses": 0, "copied": 0, "collapses": 0}
    try:
        found["cpu"] = cpu_seconds(pid)
        found["faults"] = int(read("/sys/kernel/debug/kvm/pf_fixed"))
        if path:
            found["stat"] = next(control.ask(path, "stat"))
            found["numa"] = next(control.ask(path, "numa"))
            # Each for a huge page that was taken apart.
            found["pauses"] = found["numa"]["migration"].get("split_bytes", 0) >> 21
            found["copied"] = found["numa"]["replicas"].get("copied_bytes", 0) >> 12
            # Writes that waited until there was one page again.
            found["collapses"] = found["numa"]["replicas"].get("faults", 0)
    except (OSError, ValueError, StopIteration):
        return None
    return found


def mark(section):
    subprocess.run(["truth-mark", str(section)], check=True)


def run(system, all_nodes):
    write("/proc/sys/kernel/numa_balancing", "0")
    write(f"{GROUP}/cpuset.mems", all_nodes.split("-")[-1] if system["wrong"] else all_nodes)
    machine = Machine(system["command"])
    path = control.find(machine.process, 10) if "mirrorball" in system["command"][0] else None
    good, result = True, {}
    if system["warm"]:
        good = machine.await_line(system["warm"], START_SECONDS)
        if good:
            mark(1)
            time.sleep(2)
    else:
        machine.await_settled()
    result["kib_at_first"] = machine.kib_on_nodes()
    result["freed"] = time.monotonic()
    write(f"{GROUP}/cpuset.mems", all_nodes)
    # Not before: where nothing can be moved it learns to look less and less often.
    write("/proc/sys/kernel/numa_balancing", "1" if system["balancing"] else "0")
    looks = [look(machine.process.pid, path)]
    good = good and looks[0] is not None
    end = time.monotonic() + system["seconds"] + (0 if system["warm"] else START_SECONDS)
    while good and machine.process.poll() is None and time.monotonic() < end:
        if system["done"] and machine.await_line(system["done"], SAMPLE_SECONDS):
            break
        if not system["done"]:
            time.sleep(SAMPLE_SECONDS)
        kib, now = machine.kib_on_nodes(), look(machine.process.pid, path)
        # KVM's counts are gone with the machine.
        if now and machine.process.poll() is None and (not system["done"] or machine.said_at(system["done"]) is None):
            result["kib_at_last"] = kib
            looks[-1].pop("numa", None)  # the last one has it all
            looks.append(now)
    if system["warm"] and good:
        mark(0)
        good = machine.process.poll() is None
    if system["done"]:
        good = machine.said_at(system["done"]) is not None
        try:
            machine.process.wait(20)
        except subprocess.TimeoutExpired:
            good = False
    result["ended"] = machine.said_at(system["done"]) if system["done"] and good else time.monotonic()
    machine.process.kill()
    machine.process.wait()
    machine.reader.join()
    lines = [line for _, line in machine.lines]
    return {**result, "good": good and looks[0] is not None, "looks": looks, "said": lines[-30:]}


def main():
    os.makedirs(GROUP, exist_ok=True)
    write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset")
    all_nodes = read("/sys/devices/system/node/has_memory").strip()
    results = []
    if len(sys.argv) > 2:  # what is to be done first
        subprocess.run(["sh", "-c", sys.argv[2]], check=True)
    for system in json.loads(sys.argv[1]):
        results.append(run(system, all_nodes))
        print(f"{system['name']}: {'good' if results[-1]['good'] else 'FAILED'}", flush=True)
        if not results[-1]["good"]:
            print("\n".join(results[-1]["said"]))
            break
    write(os.path.join(os.environ["LAB_OUT"], "locality_probe.json"), json.dumps(results))


if __name__ == "__main__":
    main()
