# SPDX-License-Identifier: Apache-2.0
"""From the monitor's execve to its first KVM_RUN."""

import os
import subprocess

import machines

MACHINES = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_MICROVM)
METRIC = "start to first KVM_RUN"
MEMORY_MIB = {"128 MiB": 128, "64 GiB": 64 << 10}


def cases(quick):
    cpus = (1, 64) if quick else (1, 4, 64)
    return [(f"{name}, {n} vCPU{'s' if n > 1 else ''}", MEMORY_MIB[name], n)
            for n in cpus for name in MEMORY_MIB]


def to_first_run(setup, machine, command, count=1):
    """Milliseconds from the command's execve to the first KVM_RUN, at which it ends, of each of the machines that it
    makes; sorted."""
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    command = [setup.native("launch"), str(theirs), setup.native("first_run.so"), *command]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, pass_fds=[theirs]) as process:
        os.close(theirs)
        with open(ours, encoding="ascii") as file:
            said = [line.split() for line in file]
        text = process.stdout.read().decode(errors="replace").strip()
    runs = sorted(int(words[1]) for words in said if words[0] == "run")
    if len(runs) != count:
        raise setup.Failed(f"{machine}: {len(runs)} of {count} came to KVM_RUN: {text or process.returncode}")
    return [(ns - int(said[0][1])) / 1e6 for ns in runs]


def once(setup, machine, memory_mib, cpus, embedded=False):
    guest = setup.guest(memory_mib=memory_mib, cpus=cpus, sparse=True, embedded=embedded)
    return to_first_run(setup, machine, machines.command(machine, guest, setup.programs))[0]


def usable_qemu_cpu(setup):
    """The first CPU model with which QEMU gets to run a guest on this KVM."""
    for setup.qemu_cpu in machines.QEMU_CPUS:
        try:
            once(setup, machines.QEMU_PC, 128, 1)
            return setup.qemu_cpu
        except setup.Failed as error:
            failed = error
    raise failed


def run(setup):
    for case, memory_mib, cpus in cases(setup.quick):
        for machine in MACHINES:    # the page cache is warm, and all of it runs at all
            once(setup, machine, memory_mib, cpus)
        for _ in range(setup.repeat(3 if setup.lab else 9, 15)):
            for machine in MACHINES:
                setup.sample("start", case, machine, METRIC, "ms",
                             once(setup, machine, memory_mib, cpus))
            if cpus == 1:   # no kernel to load: what is left is the monitor's own
                setup.sample("start", f"{case}, no kernel (splash)", machines.MIRRORBALL, METRIC,
                             "ms", once(setup, machines.MIRRORBALL, memory_mib, cpus, True))
