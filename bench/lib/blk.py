# SPDX-License-Identifier: Apache-2.0
"""Reads of a virtio disk in a guest: requests a second, exits a request."""

import os

import machines
import session

MACHINES = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_IOTHREAD)
FILE_BYTES = 256 << 20
# order, block, depth, requests
LOADS = {
    "4 KiB random, 1 at a time": ("rand", 4096, 1, 2000),
    "4 KiB random, 32 at a time": ("rand", 4096, 32, 8000),
    "128 KiB in sequence, 1 at a time": ("seq", 131072, 1, 500),
    "128 KiB in sequence, 8 at a time": ("seq", 131072, 8, 1000),
}


def backing_file(setup):
    """A file with every block written: holes would be answered without the disk."""
    path = os.path.join(setup.scratch, "bench.img")
    if os.path.exists(path) and os.path.getsize(path) == FILE_BYTES:
        return path
    with open(path, "wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(FILE_BYTES >> 20):
            file.write(block)
        os.fsync(file.fileno())
    return path


def once(setup, machine, case, cpus, path):
    """All loads in one machine: a boot costs more than they do."""
    guest = setup.guest(agent=True, memory_mib=256, cpus=cpus, queues=cpus,
                        disks=[(path, False)])
    with session.Session(machines.command(machine, guest, setup.programs)) as vm:
        vm.ready()
        setup.detail("blk", case, machine, {"guest": vm.ask("info")})
        vm.ask("blk /dev/vda rand 4096 8 200")
        for load, (order, block, depth, count) in LOADS.items():
            row = f"{load}{case}"
            reasons = session.Reasons(setup.profile)
            reasons.begin()
            before = vm.counters()
            answer = vm.ask(f"blk /dev/vda {order} {block} {depth} {count}")
            counters = session.difference(vm.counters(), before)
            seconds = int(answer["ns"]) / 1e9
            setup.sample("blk", row, machine, "requests/s", "/s", count / seconds)
            if "exits" in counters:
                setup.sample("blk", row, machine, "exits/request", "", counters["exits"] / count)
                setup.sample("blk", row, machine, "of it host interrupts", "",
                             counters.get("irq_exits", 0) / count)
            setup.detail("blk", row, machine, {"counters": counters, "reasons": reasons.end(),
                                               "requests": count})


def run(setup):
    path = backing_file(setup)
    for cpus in (1,) if setup.quick else (1, 4):
        case = "" if cpus == 1 else f", {cpus} vCPUs and queues"
        for _ in range(setup.repeat(2, 7)):
            for machine in MACHINES:
                setup.again("blk", case, machine, once, cpus, path)
