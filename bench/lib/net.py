# SPDX-License-Identifier: Apache-2.0
"""TCP through a tap device between a guest and its host: bytes a second, exits a megabyte."""

import json
import subprocess
import time

import machines
import session

MACHINES = (machines.MIRRORBALL, machines.QEMU_PC, machines.QEMU_VHOST)
TAP = "mbbench0"
HOST, GUEST = "10.213.7.1", "10.213.7.2"
LOADS = {"guest to host": ["--reverse"], "host to guest": []}


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def iperf3(seconds, *options):
    """Bytes received and how long it took."""
    done = subprocess.run(["iperf3", "-c", GUEST, "-t", str(seconds), "-J", *options],
                          stdout=subprocess.PIPE, text=True, check=False, timeout=seconds + 60)
    try:
        received = json.loads(done.stdout)["end"]["sum_received"]
        return received["bytes"], received["seconds"]
    except (ValueError, KeyError):
        raise session.Lost(f"iperf3: {done.stdout[-300:]}") from None


def wait_for_server():
    for _ in range(40):
        try:
            return iperf3(1)
        except session.Lost as error:
            lost = error
            time.sleep(0.25)
    raise lost


def once(setup, machine, case, cpus, seconds):
    guest = setup.guest(agent=True, memory_mib=256, cpus=cpus,
                        disks=[(setup.root, True)], tap=TAP)
    with session.Session(machines.command(machine, guest, setup.programs)) as vm:
        vm.ready()
        vm.ask(f"net {GUEST} /dev/vda")
        wait_for_server()
        for load, options in LOADS.items():
            row = f"{load}{case}"
            reasons = session.Reasons(setup.profile)
            reasons.begin()
            before = vm.counters()
            count, took = iperf3(seconds, *options)
            counters = session.difference(vm.counters(), before)
            setup.sample("net", row, machine, "throughput", "MB/s", count / 1e6 / took)
            if "exits" in counters:
                setup.sample("net", row, machine, "exits/MB", "", counters["exits"] / (count / 1e6))
                setup.sample("net", row, machine, "of it host interrupts", "",
                             counters.get("irq_exits", 0) / (count / 1e6))
            setup.detail("net", row, machine, {"counters": counters, "reasons": reasons.end(),
                                               "MB": count / 1e6})


def run(setup):
    ip("tuntap", "add", "dev", TAP, "mode", "tap")
    try:
        ip("address", "add", f"{HOST}/24", "dev", TAP)
        ip("link", "set", TAP, "up")
        for cpus in (1,) if setup.quick else (1, 4):
            case = "" if cpus == 1 else f", {cpus} vCPUs"
            for _ in range(setup.repeat(2, 5)):
                for machine in MACHINES:
                    setup.again("net", case, machine, once, cpus, 3 if setup.quick else 8)
    finally:
        ip("link", "delete", TAP)
