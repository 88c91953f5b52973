# SPDX-License-Identifier: Apache-2.0
"""A disk whose base stays as it is: requests a second of reads, first writes and overwrites."""

import os
import shutil
import subprocess

import blk
import machines
import session

MACHINES = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_IOTHREAD, machines.MIRRORBALL_UNSHARED,
            machines.MIRRORBALL_RAW)
# order, block, depth, requests, and whether it writes; in this order, on one disk. What has a place of its own before comes from
# the lines above; the random ones go to the same places, and those in sequence to the first half of the disk.
LOADS = {
    "4 KiB random reads of the base, 32 at a time": ("rand", 4096, 32, 4000, False),
    "4 KiB random writes, the first there, 32 at a time": ("rand", 4096, 32, 4000, True),
    "4 KiB random writes, where something is, 32 at a time": ("rand", 4096, 32, 4000, True),
    "4 KiB random reads of that, 32 at a time": ("rand", 4096, 32, 4000, False),
    "128 KiB writes in sequence over these and more, 8 at a time": ("seq", 131072, 8, 1000, True),
    "128 KiB writes in sequence where something is, 8 at a time": ("seq", 131072, 8, 1000, True),
    "128 KiB reads in sequence, 8 at a time": ("seq", 131072, 8, 1000, False),
}


def make_overlay(setup, machine, base, name="overlay.qcow2"):
    path = os.path.join(setup.scratch, name)
    if os.path.exists(path):
        os.unlink(path)
    if machine in (machines.MIRRORBALL, machines.MIRRORBALL_UNSHARED):
        subprocess.run([setup.programs["mirrorball"], "image", "create", "--base", base, path],
                       check=True)
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path],
                       check=True)
    return path


def once(setup, machine, base):
    guest = setup.guest(agent=True, memory_mib=256)
    if machine == machines.MIRRORBALL_RAW:
        copy = os.path.join(setup.scratch, "raw.img")
        shutil.copyfile(base, copy)
        guest.disks = [(copy, False)]
    else:
        guest.disks = [(base, False)]
        guest.overlay = make_overlay(setup, machine, base)
    with session.Session(machines.command(machine, guest, setup.programs)) as vm:
        vm.ready()
        vm.ask("blk /dev/vda seq 131072 8 200")
        for row, (order, block, depth, count, write) in LOADS.items():
            answer = vm.ask(f"blk /dev/vda {order} {block} {depth} {count} {'write' if write else 'read'}")
            setup.sample("overlay", row, machine, "requests/s", "/s",
                         count / (int(answer["ns"]) / 1e9))


def run(setup):
    base = blk.backing_file(setup)
    for _ in range(setup.repeat(2, 7)):
        for machine in MACHINES:
            setup.again("overlay", "", machine, lambda s, m, _case: once(s, m, base))
