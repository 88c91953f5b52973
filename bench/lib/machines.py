# SPDX-License-Identifier: Apache-2.0
"""The machines that are compared: how each monitor is told to run the same guest."""

import dataclasses

MIRRORBALL = "mirrorball"
MIRRORBALL_UNSHARED = "mirrorball, share off"
MIRRORBALL_RAW = "mirrorball, raw"  # through the page cache, as the others read an overlay's base
QEMU_PC = "qemu pc"
QEMU_MICROVM = "qemu microvm"
# Debian's kernels find a second CPU through ACPI only.
QEMU_MICROVM_ACPI = "qemu microvm, acpi"
QEMU_IOTHREAD = "qemu pc, iothread"
QEMU_VHOST = "qemu pc, vhost"
QEMU_KSM = "qemu pc, KSM"  # the host merges equal pages, as fast as it can
QEMU_KSM_DEFAULT = "qemu pc, KSM as it comes"
QEMU_LOADVM = "qemu pc, -loadvm"
# A KVM that lacks an MSR which QEMU takes for given refuses the first.
QEMU_CPUS = ("host", "host,arch-capabilities=off", "qemu64")


@dataclasses.dataclass
class Guest:
    """What a machine is to run. Disks are (path, read-only) and become vda, vdb, …"""
    kernel: str
    initrd: str
    append: str = "console=ttyS0 quiet"
    memory_mib: int = 128
    cpus: int = 1
    queues: int = 1
    disks: list = dataclasses.field(default_factory=list)
    overlay: str = ""       # what is written to the first disk goes here
    tap: str = ""
    memfd: bool = False     # QEMU: guest memory that can be told from the monitor's own
    sparse: bool = False    # more memory than the host has
    embedded: bool = False  # Mirrorball: splash instead of the kernel
    qemu_cpu: str = "host"


def command(machine, guest, programs):
    """The command line as a list; programs has the paths of "mirrorball" and "qemu"."""
    if machine == MIRRORBALL_RAW:
        return [word + (",direct=off" if word.endswith(f"queues={guest.queues}") else "")
                for word in mirrorball(guest, programs["mirrorball"])]
    if machine == MIRRORBALL:
        return mirrorball(guest, programs["mirrorball"])
    if machine == MIRRORBALL_UNSHARED:
        words = mirrorball(guest, programs["mirrorball"])
        return words[:2] + ["--share", "off"] + words[2:]
    return qemu(machine, guest, programs["qemu"])


def mirrorball(guest, program):
    args = [program, "run", "--name", "bench", "--quiet", "--memory", f"{guest.memory_mib}M",
            "--cpus", str(guest.cpus)]
    if guest.sparse:
        args.append("--memory-overcommit")
    for number, (path, read_only) in enumerate(guest.disks):
        path = path.replace(",", ",,")
        if guest.overlay and not number:
            path += f",overlay={guest.overlay}"
        args += ["--disk", f"{path}{',ro' if read_only else ''},queues={guest.queues}"]
    if guest.tap:
        args += ["--net", f"tap={guest.tap}"]
    if guest.embedded:
        return args + ["splash", "hello"]
    return args + ["--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.append]


def qemu(machine, guest, program):
    microvm = machine in (QEMU_MICROVM, QEMU_MICROVM_ACPI)
    options = "pc"
    if microvm:
        acpi = "on" if machine == QEMU_MICROVM_ACPI else "off"
        options = f"microvm,x-option-roms=off,rtc=on,pit=on,pic=on,acpi={acpi}"
    memory = []
    if guest.memfd or guest.sparse:
        memory = ["-object", f"memory-backend-memfd,id=ram,size={guest.memory_mib}M,share=on,"
                  f"reserve={'off' if guest.sparse else 'on'}"]
        options += ",memory-backend=ram"
    args = [program, "-accel", "kvm", "-cpu", guest.qemu_cpu, *memory, "-M", options,
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-m", f"{guest.memory_mib}M", "-smp", str(guest.cpus),
            "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.append]
    if microvm:
        args += ["-bios", "qboot.rom"]
    bus = "device" if microvm else "pci"
    if machine == QEMU_IOTHREAD:
        args += ["-object", "iothread,id=io"]
    for number, (path, read_only) in enumerate(guest.disks):
        path = path.replace(",", ",,")
        kind = f"format=raw,file={path},cache=none"
        if guest.overlay and not number:
            kind = f"format=qcow2,file={guest.overlay},cache=writeback"
        args += ["-drive", f"if=none,id=d{number},{kind},aio=io_uring,"
                 f"readonly={'on' if read_only else 'off'}",
                 "-device", f"virtio-blk-{bus},drive=d{number},num-queues={guest.queues}"
                 f"{',iothread=io' if machine == QEMU_IOTHREAD else ''}"]
    if guest.tap:
        args += ["-netdev", f"tap,id=n,ifname={guest.tap},script=no,downscript=no,"
                 f"vhost={'on' if machine == QEMU_VHOST else 'off'}",
                 "-device", f"virtio-net-{bus},netdev=n"]
    # Ours has one, too; where the kernel has the driver it takes part in the boot.
    args += ["-device", f"virtio-rng-{bus}"]
    return args
