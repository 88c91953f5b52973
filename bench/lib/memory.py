# SPDX-License-Identifier: Apache-2.0
"""Resident memory of a monitor beyond the guest's own, while the guest does nothing."""

import re
import time

import machines
import session

MACHINES = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_MICROVM)
SETTLE_SECONDS = 2
RAM = re.compile(r"memfd:(mirrorball-ram|memory-backend-memfd)|/mirrorball-ram")


def kind(name, program):
    """What a mapping is, in a word."""
    if not name or name.startswith("[anon"):
        return "anonymous"
    if name in ("[heap]", "[stack]"):
        return name[1:-1]
    if name.startswith("["):
        return "kernel's (vdso)"
    if ".so" in name:
        return "libraries"
    if name == program or name.rsplit("/", 1)[-1] == program.rsplit("/", 1)[-1]:
        return "program"
    return "other files"


def resident(pid, program):
    """KiB by kind: {kind: (rss, pss)}."""
    found = {}
    name = ""
    rss = 0
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split(None, 5)
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name = words[5].strip() if len(words) > 5 else ""
            elif RAM.search(name):
                continue
            elif words[0] == "Rss:":
                rss = int(words[1])
            elif words[0] == "Pss:":
                have = found.get(kind(name, program), (0, 0))
                found[kind(name, program)] = (have[0] + rss, have[1] + int(words[1]))
    return found


def once(setup, machine, case, cpus):
    guest = setup.guest(agent=True, cpus=cpus, memfd=True)
    command = machines.command(machine, guest, setup.programs)
    with session.Session(command) as vm:
        vm.ready()
        time.sleep(SETTLE_SECONDS)
        found = resident(vm.pid, command[0])
        with open(f"/proc/{vm.pid}/status", encoding="ascii", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
    for column, metric in enumerate(("Rss", "Pss")):
        setup.sample("memory", case, machine, metric, "MiB",
                     sum(value[column] for value in found.values()) / 1024)
    for name, value in found.items():
        setup.sample("memory", case, machine, f"Rss, {name}", "MiB", value[0] / 1024)
    setup.sample("memory", case, machine, "its page tables", "MiB",
                 int(status["VmPTE"].split()[0]) / 1024)


def run(setup):
    for _ in range(setup.repeat(1, 3)):
        for machine in MACHINES:
            setup.again("memory", "1 vCPU, 128 MiB", machine, once, 1)
