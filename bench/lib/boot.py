# SPDX-License-Identifier: Apache-2.0
"""From the monitor's start to the guest's first program, on the outside's clock."""

import machines
import session

MEMORY_MIB = 512


def once(setup, machine, case, cpus):
    guest = setup.guest(memory_mib=MEMORY_MIB, cpus=cpus,
                        append="console=ttyS0 quiet panic=-1 mb.init=poweroff")
    reasons = session.Reasons(setup.profile)
    reasons.begin()
    with session.Session(machines.command(machine, guest, setup.programs)) as vm:
        line, at = vm.line((b"MB-INIT",))
        vm.hold()
        counters = vm.counters()
        found = reasons.end()
    setup.sample("boot", case, machine, "start to init", "s", at - vm.begin)
    setup.sample("boot", case, machine, "of it in the kernel", "s", float(line.split()[1]))
    if "exits" in counters:
        setup.sample("boot", case, machine, "exits", "", counters["exits"])
    setup.detail("boot", case, machine, {"counters": counters, "reasons": found})


def run(setup):
    for cpus in (1, 4):
        microvm = machines.QEMU_MICROVM if cpus == 1 else machines.QEMU_MICROVM_ACPI
        for _ in range(setup.repeat(3, 9)):
            for machine in (machines.MIRRORBALL, machines.QEMU_PC, microvm):
                setup.again("boot", "1 vCPU" if cpus == 1 else f"{cpus} vCPUs", machine, once, cpus)
