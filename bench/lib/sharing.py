# SPDX-License-Identifier: Apache-2.0
"""Memory of several machines of one image: the guests have read the same, and are idle; and while all compile the same."""

import glob
import os
import shutil
import statistics
import subprocess
import sys
import time

import kit
import machines
import overlay
import session

MACHINES = (machines.MIRRORBALL, machines.MIRRORBALL_UNSHARED, machines.QEMU_PC, machines.QEMU_KSM,
            machines.QEMU_KSM_DEFAULT)
MEMORY_MIB = 192
QUICK = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_KSM)
GUEST_KERNEL = "cloud-6.1"
LOOKS = (2, 30)  # seconds after the last guest has read
ROUNDS = 2          # of the compile, of which the first also reads the compiler
SAMPLE_SECONDS = 3
COMPILE_SECONDS = 600
SCRIPT = f"""#!/bin/sh
mount -t proc proc /proc
mount -o ro /dev/vdb /mnt
cat /usr/bin/* /usr/sbin/* >/dev/null
echo; echo BENCH-READY
while read -r rounds; do
	i=0
	while [ $((i += 1)) -le "$rounds" ]; do
		{kit.COMPILE} && {kit.COMPARE} || echo BENCH-FAILED
		rm /run/out.s
	done
	echo; echo BENCH-DONE
done
while :; do sleep 1000; done
"""
IDLE = tuple(f"memory after {seconds} s" for seconds in LOOKS)
IDLE_CPU = "CPU time of sharing so far"
COMPILING, COMPILE_TIME = "memory while all compile", "until the last has compiled"
COMPILE_CPU = "CPU time of sharing while all compile"
KSM = "/sys/kernel/mm/ksm"
SPEEDS = {
    # As fast as it settles, whatever it costs.
    machines.QEMU_KSM: {"pages_to_scan": 20000, "sleep_millisecs": 10, "use_zero_pages": 1},
    # Documentation/admin-guide/mm/ksm.rst
    machines.QEMU_KSM_DEFAULT: {"pages_to_scan": 100, "sleep_millisecs": 20, "use_zero_pages": 0},
}


def make_initrd(setup, name, text, kernel=GUEST_KERNEL):
    """An initial ramdisk with this script, which takes init=/run/labtest."""
    if not shutil.which("guest-initrd"):
        raise setup.Failed(f"the guests are those of the lab: bench/run --where lab {name}")
    script = os.path.join(setup.scratch, f"{name}.sh")
    with open(script, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(script, 0o755)
    path = os.path.join(setup.scratch, f"{name}.initrd")
    with open(path, "wb") as file:
        subprocess.run(["guest-initrd", kernel, script], stdout=file, check=True)
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


class Series:
    """Machines that become more and then fewer, and stay in between."""

    def __init__(self, setup, machine, initrd):
        self.setup, self.machine, self.initrd = setup, machine, initrd
        self.sessions = []
        self.images = [setup.root, os.path.join(setup.scratch, "kit.img")]
        self.before = sharing_cpu_s([])

    def kib(self):
        return sum(pss_kib(pid) for pid in self.pids() + named("mirrorballd")) + sum(cached_kib(path) for path in self.images)

    def pids(self):
        return [one.pid for one in self.sessions]

    def grow(self, count):
        """To as many; until all have read, all of which the time of the last is."""
        more = []
        for number in range(len(self.sessions), count):
            guest = machines.Guest(self.setup.kernel, self.initrd, qemu_cpu=self.setup.qemu_cpu, memory_mib=MEMORY_MIB,
                                   append="console=ttyS0 quiet init=/run/labtest",
                                   disks=[(self.images[0], False), (self.images[1], True)])
            guest.overlay = overlay.make_overlay(self.setup, self.machine, self.setup.root, f"sharing{number}.qcow2")
            more.append(session.Session(machines.command(self.machine, guest, self.setup.programs)))
            self.sessions.append(more[-1])
        for one in more:
            one.line((b"BENCH-READY",), 300)
        return time.monotonic()

    def shrink(self, count):
        for one in self.sessions[count:]:
            one.__exit__()
        del self.sessions[count:]

    def idle(self, case, begin):
        for seconds, metric in zip(LOOKS, IDLE):
            time.sleep(max(0, begin + seconds - time.monotonic()))
            self.setup.sample("sharing", case, self.machine, metric, "MiB", self.kib() / 1024)
        self.setup.sample("sharing", case, self.machine, IDLE_CPU, "s", sharing_cpu_s(self.pids()) - self.before)

    def compile(self, case):
        begin, before = time.monotonic(), sharing_cpu_s(self.pids())
        for one in self.sessions:
            os.write(one.process.stdin.fileno(), f"{ROUNDS}\n".encode())
        kib, left = [], list(self.sessions)
        while left:
            if len(left) == len(self.sessions):
                kib.append(self.kib())
            time.sleep(SAMPLE_SECONDS)
            left = [one for one in left if not self.has_compiled(one)]
            if time.monotonic() > begin + COMPILE_SECONDS:
                raise session.Lost(f"{len(left)} of {len(self.sessions)} do not end to compile")
        self.setup.sample("sharing", case, self.machine, COMPILING, "MiB", statistics.median(kib) / 1024)
        self.setup.sample("sharing", case, self.machine, COMPILE_TIME, "s", time.monotonic() - begin)
        self.setup.sample("sharing", case, self.machine, COMPILE_CPU, "s", sharing_cpu_s(self.pids()) - before)
        self.setup.detail("sharing", case, self.machine, {"compiling_kib": kib})

    def has_compiled(self, one):
        try:
            line, _ = one.line((b"BENCH-DONE", b"BENCH-FAILED"), 0.02)
        except session.Late:
            return False
        if line != "BENCH-DONE":
            raise self.setup.Failed(f"{self.machine}: a guest has compiled something else than the host")
        return True


def name_of(count):
    return f"{count} guest{'s' if count > 1 else ''} of {MEMORY_MIB} MiB"


def once(setup, machine, _case, counts, initrd):
    """All counts in one series: up for what is idle, since who has compiled has other things in memory, and down again."""
    begin_sharing(machine)
    series = Series(setup, machine, initrd)
    try:
        for count in counts:
            series.idle(name_of(count), series.grow(count))
        for count in reversed(counts):
            series.shrink(count)
            series.compile(name_of(count))
    finally:
        series.shrink(0)
        end_sharing(machine)


def run(setup):
    initrd = make_initrd(setup, "sharing", SCRIPT)
    shutil.copyfile(setup.kit, os.path.join(setup.scratch, "kit.img"))
    for _ in range(setup.repeat(1, 1)):
        for machine in QUICK if setup.quick else MACHINES:
            begin = time.monotonic()
            setup.again("sharing", "", machine, once, (8,) if setup.quick else (1, 2, 4, 8), initrd)
            print(f"bench: sharing: {machine}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
