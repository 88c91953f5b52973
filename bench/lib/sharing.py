# SPDX-License-Identifier: Apache-2.0
"""Memory of several machines of one image: the guests have read the same, and are idle."""

import glob
import os
import shutil
import subprocess
import time

import machines
import overlay
import session

MACHINES = (machines.MIRRORBALL, machines.MIRRORBALL_UNSHARED, machines.QEMU_PC, machines.QEMU_KSM,
            machines.QEMU_KSM_DEFAULT)
MEMORY_MIB = 192
QUICK = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_KSM)
GUEST_KERNEL = "cloud-6.1"
LOOKS = (2, 30)  # seconds after the last guest has read
SCRIPT = """#!/bin/sh
mount -t proc proc /proc
cat /usr/bin/* /usr/sbin/* >/dev/null
echo; echo BENCH-READY
while :; do sleep 1000; done
"""
KSM = "/sys/kernel/mm/ksm"
SPEEDS = {
    # As fast as it settles, whatever it costs.
    machines.QEMU_KSM: {"pages_to_scan": 20000, "sleep_millisecs": 10, "use_zero_pages": 1},
    # Documentation/admin-guide/mm/ksm.rst
    machines.QEMU_KSM_DEFAULT: {"pages_to_scan": 100, "sleep_millisecs": 20, "use_zero_pages": 0},
}


def make_initrd(setup):
    if not shutil.which("guest-initrd"):
        raise setup.Failed("the guests are those of the lab: bench/run --where lab sharing")
    script = os.path.join(setup.scratch, "sharing.sh")
    with open(script, "w", encoding="ascii") as file:
        file.write(SCRIPT)
    os.chmod(script, 0o755)
    path = os.path.join(setup.scratch, "sharing.initrd")
    with open(path, "wb") as file:
        subprocess.run(["guest-initrd", GUEST_KERNEL, script], stdout=file, check=True)
    return path


def set_ksm(values):
    for name, value in values.items():
        with open(f"{KSM}/{name}", "w", encoding="ascii") as file:
            file.write(str(value))


def begin_sharing(machine):
    if machine in SPEEDS:
        set_ksm({**SPEEDS[machine], "run": 1})


def end_sharing(machine):
    if machine in SPEEDS:
        set_ksm({"run": 2})  # all pages are their own again
        set_ksm({"run": 0})
    for pid in named("mirrorballd"):
        os.kill(pid, 15)
    while named("mirrorballd"):  # the next one's CPU time begins without it
        time.sleep(0.1)


def named(name):
    found = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                if file.read().strip() == name:
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return found


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def cached_kib(path):
    said = subprocess.run(["fincore", "-nbo", "RES", path], capture_output=True, text=True, check=True)
    return int(said.stdout.split()[0]) / 1024


def cpu_s(stat):
    with open(stat, encoding="ascii", errors="replace") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sharing_cpu_s(pids):
    """Of ksmd; of mirrorballd, and of the threads that merge, take writes and look for zeroes."""
    total = sum(cpu_s(f"/proc/{pid}/stat") for name in ("ksmd", "mirrorballd") for pid in named(name))
    for pid in pids:
        for task in glob.glob(f"/proc/{pid}/task/*"):
            with open(f"{task}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() in ("share", "writes", "collapse", "content"):
                    total += cpu_s(f"{task}/stat")
    return total


def once(setup, machine, case, count, initrd):
    begin_sharing(machine)
    sessions = []
    try:
        before = sharing_cpu_s([])
        for number in range(count):
            guest = machines.Guest(setup.kernel, initrd, qemu_cpu=setup.qemu_cpu, memory_mib=MEMORY_MIB,
                                   append="console=ttyS0 quiet init=/run/labtest",
                                   disks=[(setup.root, False)])
            guest.overlay = overlay.make_overlay(setup, machine, setup.root, f"sharing{number}.qcow2")
            sessions.append(session.Session(machines.command(machine, guest, setup.programs)))
        for one in sessions:
            one.line((b"BENCH-READY",), 300)
        begin = time.monotonic()
        pids = [one.pid for one in sessions]
        for seconds in LOOKS:
            time.sleep(max(0, begin + seconds - time.monotonic()))
            kib = sum(pss_kib(pid) for pid in pids + named("mirrorballd")) + cached_kib(setup.root)
            setup.sample("sharing", case, machine, f"memory after {seconds} s", "MiB", kib / 1024)
        setup.sample("sharing", case, machine, "CPU time of sharing", "s", sharing_cpu_s(pids) - before)
    finally:
        for one in sessions:
            one.__exit__()
        end_sharing(machine)


def run(setup):
    initrd = make_initrd(setup)
    for count in (8,) if setup.quick else (1, 2, 4, 8):
        for _ in range(setup.repeat(1, 1)):
            for machine in QUICK if setup.quick else MACHINES:
                setup.again("sharing", f"{count} guest{'s' if count > 1 else ''} of {MEMORY_MIB} MiB", machine, once, count, initrd)
