#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Inside the lab: runs a machine, asks for its heat now and then, and notes which page of the host's
memory is behind each page of the guest. Argument: a JSON object; result: $LAB_OUT/heat_probe.json."""

import glob
import json
import os
import re
import struct
import subprocess
import sys
import time

import control

PAGE = 4096
LOW_MAX, HIGH_BASE = 0xc0000000, 1 << 32


def pages(pid, memory):
    """{guest page: host page}, from all mappings of guest memory."""
    found = {}
    low = min(memory, LOW_MAX)
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) .*mirrorball-ram", line)
            if not match:
                continue
            start, end, offset = (int(x, 16) for x in match.groups())
            pagemap.seek(start // PAGE * 8)
            data = pagemap.read((end - start) // PAGE * 8)
            for i, (entry,) in enumerate(struct.iter_unpack("<Q", data)):
                if entry >> 63:
                    at = offset + i * PAGE
                    gpa = at if at < low else HIGH_BASE + at - low
                    found[gpa // PAGE] = entry & ((1 << 55) - 1)
    return found


def kernel_counts():
    """Of all machines of this host: KVM's flushes of remote TLBs; and memory mapped as huge pages."""
    found = {}
    for path in glob.glob("/sys/kernel/debug/kvm/remote_tlb_flush*"):
        with open(path, encoding="ascii") as file:
            found[os.path.basename(path)] = int(file.read())
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(("ShmemPmdMapped", "ShmemHugePages")):
                found[line.split(":")[0]] = int(line.split()[1]) << 10
    return found


def main():
    options = json.loads(sys.argv[1])
    subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=False,
                   stderr=subprocess.DEVNULL)
    machine = subprocess.Popen(options["command"], stdin=subprocess.PIPE if options.get("keys") else
                               subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    path, snapshots, behind = control.find(machine, 60), [], {}
    time.sleep(options.get("wait", 0))
    if options.get("mark"):
        subprocess.run(["truth-mark", "1"], check=True)
    begun = time.monotonic()
    if path:
        try:
            for answer in control.ask(path, "heat"):
                now = time.monotonic() - begun
                snapshots.append({"s": now, "host": kernel_counts(), **answer})
                if options["memory"] and len(snapshots) % 5 == 1:
                    behind.update(pages(machine.pid, options["memory"]))
                if options.get("seconds") and now > options["seconds"]:
                    break
                time.sleep(options["interval"])
        except (ConnectionError, BrokenPipeError, OSError, ValueError):
            pass
    if options.get("mark"):
        subprocess.run(["truth-mark", "0"], check=True)
    if options.get("seconds"):
        machine.kill()
    said = machine.communicate()[0]
    sys.stdout.write(said)
    with open(os.path.join(os.environ["LAB_OUT"], "heat_probe.json"), "w", encoding="utf-8") as file:
        json.dump({"snapshots": snapshots, "behind": list(behind.items()), "said": said,
                   "status": machine.returncode}, file)


main()
