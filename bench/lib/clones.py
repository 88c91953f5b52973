# SPDX-License-Identifier: Apache-2.0
"""Machines that go on from one snapshot: how soon each runs, how soon its guest has an answer, what memory all take."""

import os
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

import machines
import overlay
import session
import sharing
import start

MACHINES = (machines.MIRRORBALL, machines.QEMU_LOADVM)
MEMORY_MIB = 1024
GUEST_KERNEL = "cloud-6.12"  # Debian's 6.1 knows nothing of generation IDs
SETTLE_SECONDS = 5      # from the guest's last word to the snapshot
IDLE_SECONDS = 10       # from the last clone's answer to the look at memory
CLONES_SECONDS = 120    # within which all have answered
# The kernel says to its log that it is another machine now (VM generation ID), and a process that waits for this says so. It
# says so if its random generator had a seed, for which somebody has to wait once.
SCRIPT = """#!/bin/sh
mount -t proc proc /proc
head -c 1 /dev/random >/dev/null
cat /dev/kmsg | grep --line-buffered -o 'virtual machine fork' &
sleep 1
echo; echo BENCH-READY
while :; do sleep 1000; done
"""
ANSWER = b"virtual machine fork"
MIDDLE_RUN, LAST_RUN = "first instruction, the middle one", "first instruction, the last one"
MIDDLE_ANSWER, LAST_ANSWER = "the guest answers, the middle one", "the guest answers, the last one"
PSS, CACHE = f"PSS of all after {IDLE_SECONDS} s", "page cache of the snapshot's files"
SPLASH = "first instruction"
RESTORE, PLAIN = "mirrorball restore", "mirrorball, plain start"


def number_of(case):
    return int(case.split()[0])


# --- the snapshots ---------------------------------------------------------------------------------

def place(setup, *names):
    return os.path.join(setup.scratch, "clones", *names)


def snapshot_mirrorball(setup, initrd):
    guest = guest_of(setup, initrd)
    command = machines.command(machines.MIRRORBALL, guest, setup.programs)
    command[command.index("--disk") + 1] = f"{setup.root},cow=memory"
    command[2:2] = ["--views", "1"]
    with session.Session(command) as origin:
        origin.ready()
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        subprocess.run([setup.programs["mirrorball"], "snapshot", str(origin.pid), place(setup, "snapshot")], check=True)
        return time.monotonic() - begin


def monitor(path, line):
    """What QEMU's monitor says to a line."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CLONES_SECONDS)
        sock.connect(path)
        said = b""
        for text in (b"", line.encode() + b"\n"):
            sock.sendall(text)
            said = b""
            while not said.endswith(b"(qemu) "):
                data = sock.recv(4096)
                if not data:
                    raise OSError(f"{path}: {said!r}")
                said += data
    return said.decode(errors="replace")


def snapshot_qemu(setup, initrd):
    path = place(setup, "monitor")
    image = overlay.make_overlay(setup, machines.QEMU_PC, setup.root, "clones/snapshot.qcow2")
    with session.Session(qemu(setup, initrd, image) + ["-monitor", f"unix:{path},server=on,wait=off"]) as origin:
        origin.ready()
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        said = monitor(path, "savevm booted")
        if "Error" in said:
            raise setup.Failed(f"{machines.QEMU_LOADVM}: savevm: {said}")
        return time.monotonic() - begin


def guest_of(setup, initrd, image=""):
    return machines.Guest(f"/lab/guest/vmlinuz-{GUEST_KERNEL}", initrd, qemu_cpu=setup.qemu_cpu, memory_mib=MEMORY_MIB,
                          append="console=ttyS0 quiet init=/run/labtest", disks=[(setup.root, False)], overlay=image)


def qemu(setup, initrd, image):
    return machines.command(machines.QEMU_PC, guest_of(setup, initrd, image), setup.programs) + \
        ["-device", "vmgenid,guid=auto"]


def make_snapshot(setup, machine, case, initrd):
    make = snapshot_mirrorball if machine == machines.MIRRORBALL else snapshot_qemu
    setup.detail("clones", case, machine, {"snapshot_s": make(setup, initrd)})


# --- the clones ------------------------------------------------------------------------------------

def console(setup, number):
    """Where the clone of this number, from 1 on, prints; a pipe with a name."""
    return place(setup, f"clone-{number}.log")


def command_of(setup, machine, count, initrd):
    """A command that starts them all, and the files that they come from."""
    if machine == machines.MIRRORBALL:
        files = [place(setup, "snapshot", name) for name in os.listdir(place(setup, "snapshot"))]
        return [setup.programs["mirrorball"], "clone", place(setup, "snapshot"), "-n", str(count), "--name", "clone",
                "--output", place(setup)], files
    lines, files = [], []
    for number in range(1, count + 1):
        image = place(setup, f"{number}.qcow2")  # each writes its own, and the snapshot is in it
        shutil.copyfile(place(setup, "snapshot.qcow2"), image)
        files.append(image)
        lines.append(f"{shlex.join([*qemu(setup, initrd, image), '-loadvm', 'booted'])} </dev/null "
                     f">{shlex.quote(console(setup, number))} 2>&1 &")
    os.sync()
    return ["sh", "-c", "\n".join([*lines, "wait"])], files


class Clones:
    """As many as that, started by one command. Use as a context: they end with it."""

    def __init__(self, setup, command, count):
        self.count, self.pids, self.ran, self.answered = count, [], [], {}
        self.texts = {}
        for number in range(1, count + 1):
            os.mkfifo(console(setup, number))
            self.texts[os.open(console(setup, number), os.O_RDWR | os.O_NONBLOCK)] = b""
        self.said = open(place(setup, "said"), "w+", encoding="utf-8", errors="replace")
        self.pipe, theirs = os.pipe()
        os.set_inheritable(theirs, True)
        self.process = subprocess.Popen(
            [setup.native("launch"), str(theirs), setup.native("first_run.so"), *command], stdin=subprocess.DEVNULL,
            stdout=self.said, stderr=self.said, pass_fds=[theirs], env={**os.environ, "MB_BENCH_GOES_ON": "1"})
        os.close(theirs)
        self.begin = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in self.pids):
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        self.said.close()
        for fd in (self.pipe, *self.texts):
            os.close(fd)

    def _hear_start(self):
        """Lines are shorter than what a pipe takes in one piece."""
        for line in os.read(self.pipe, 1 << 16).decode().splitlines():
            word, at, *pid = line.split()
            if word == "start":
                self.begin = int(at) / 1e9
            else:
                self.pids.append(int(pid[0]))
                self.ran.append(int(at) / 1e9 - self.begin)

    def _hear(self, fd):
        if fd == self.pipe:
            return self._hear_start()
        self.texts[fd] += os.read(fd, 1 << 16)
        if ANSWER in self.texts[fd] and fd not in self.answered:
            self.answered[fd] = time.monotonic() - self.begin
        return None

    def wait(self):
        """Until each has run and has answered."""
        deadline = time.monotonic() + CLONES_SECONDS
        while len(self.ran) < self.count or len(self.answered) < self.count:
            ready = select.select([self.pipe, *self.texts], [], [], 1)[0]
            for fd in ready:
                self._hear(fd)
            if time.monotonic() > deadline or (not ready and self.process.poll()):
                self.said.seek(0)
                ends = [text[-200:] for fd, text in self.texts.items() if fd not in self.answered]
                raise session.Lost(f"{len(self.ran)} ran and {len(self.answered)} answered of {self.count} clones: "
                                   f"{self.said.read()[-400:]!r} {ends[:2]}")


def remove(setup, files):
    for name in os.listdir(place(setup)):
        if name.startswith("clone-") or place(setup, name) in files:
            os.unlink(place(setup, name))


def once(setup, machine, case, count, initrd):
    command, files = command_of(setup, machine, count, initrd)
    try:
        with Clones(setup, command, count) as clones:
            clones.wait()
            time.sleep(IDLE_SECONDS)
            kib = [sharing.pss_kib(pid) for pid in clones.pids + sharing.named("mirrorballd")]
            cached = sum(sharing.cached_kib(path) for path in files)
    finally:
        remove(setup, files)
    for metric, values in (((MIDDLE_RUN, LAST_RUN), clones.ran), ((MIDDLE_ANSWER, LAST_ANSWER), clones.answered.values())):
        setup.sample("clones", case, machine, metric[0], "ms", statistics.median(values) * 1000)
        setup.sample("clones", case, machine, metric[1], "ms", max(values) * 1000)
    setup.sample("clones", case, machine, PSS, "MiB", sum(kib) / 1024)
    setup.sample("clones", case, machine, CACHE, "MiB", cached / 1024)
    setup.detail("clones", case, machine, {"ran_s": clones.ran, "answered_s": list(clones.answered.values()), "pss_kib": kib})
    return sum(kib) / count


def available_kib():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))


def run_stock(setup):
    shutil.rmtree(place(setup), ignore_errors=True)
    os.makedirs(place(setup))
    initrd = sharing.make_initrd(setup, "clones", SCRIPT, GUEST_KERNEL)
    for machine in MACHINES:
        setup.again("clones", "snapshot", machine, make_snapshot, initrd)
    one_kib = {}
    for count in (1, 3, 8) if setup.quick else (1, 2, 3, 4, 8, 16):
        case = f"{count} clone{'s' if count > 1 else ''} of {MEMORY_MIB} MiB"
        for _ in range(setup.repeat(1, 2)):
            for machine in MACHINES:
                if one_kib.get(machine, 0) * count * 1.1 > available_kib():
                    setup.detail("clones", case, machine, {"note": f"{machine}: {case} do not fit this host"})
                    continue
                one_kib[machine] = setup.again("clones", case, machine, once, count, initrd)
    shutil.rmtree(place(setup))


# --- without a stock guest: the monitor's own time -------------------------------------------------

def forget_ended(program):
    """Who ends at KVM_RUN leaves its socket, which the next to look for machines removes."""
    subprocess.run([program, "ps"], capture_output=True, check=False)


def run_splash(setup):
    """Beside a plain start of the same machine. A guest that computes, so that its vCPUs are in whatever state."""
    program = setup.programs["mirrorball"]
    for cpus in (1, 4):
        case = f"splash, {MEMORY_MIB} MiB, {cpus} vCPU{'s' if cpus > 1 else ''}"
        options = ["--memory", f"{MEMORY_MIB}M", "--cpus", str(cpus), "--memory-overcommit"]
        directory = os.path.join(setup.scratch, "clones-splash")
        shutil.rmtree(directory, ignore_errors=True)
        with session.Session([program, "run", "--name", "bench", *options, "splash", "churn", "ms=3600000", "every_ms=200"]) as vm:
            vm.line((b"splash: churn: after",))
            subprocess.run([program, "snapshot", str(vm.pid), directory], check=True)
        commands = {machines.MIRRORBALL: [program, "clone", directory], RESTORE: [program, "restore", "--quiet", directory],
                    PLAIN: [program, "run", "--quiet", *options, "splash", "churn"]}
        for name, command in commands.items():  # the page cache is warm
            start.to_first_run(setup, name, command)
        for _ in range(setup.repeat(20, 40)):
            for name, command in commands.items():
                setup.sample("clones", case, name, SPLASH, "ms", start.to_first_run(setup, name, command)[0])
                forget_ended(program)
        for _ in range(setup.repeat(5, 20)):
            found = start.to_first_run(setup, machines.MIRRORBALL, [program, "clone", "-n", "16", directory], 16)
            setup.sample("clones", f"{case}, 16 at once", machines.MIRRORBALL, LAST_RUN, "ms", found[-1])
            forget_ended(program)
        shutil.rmtree(directory)


def run(setup):
    if shutil.which("guest-initrd"):
        run_stock(setup)
    else:
        print("bench: clones: of splash only: the stock guests are the lab's", file=sys.stderr, flush=True)
        run_splash(setup)
