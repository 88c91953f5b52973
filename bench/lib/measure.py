# SPDX-License-Identifier: Apache-2.0
"""Runs benchmarks on this host and writes what was measured, as JSON. bench/run calls it.

usage: measure.py SETUP.json RESULT.json
"""

import json
import os
import platform
import subprocess
import sys
import time

import blk
import boot
import clones
import machines
import memory
import merge
import net
import overlay
import session
import sharing
import start
import unshare

BENCHMARKS = {"start": start, "boot": boot, "memory": memory, "blk": blk, "overlay": overlay,
              "sharing": sharing, "clones": clones, "merge": merge, "unshare": unshare, "net": net}
MAX_LOST = 3    # machines in a row that did not boot


class Failed(Exception):
    """A benchmark cannot be done; the text says why."""


class Setup:
    """What a benchmark is told, and where it leaves what it finds."""

    Failed = Failed

    def __init__(self, config):
        self.quick = config["quick"]
        self.profile = config["profile"]
        self.wanted = config["repeat"]
        self.lab = bool(os.environ.get("LAB"))
        self.programs = config["programs"]
        self.native_dir = config["native"]
        self.kernel, self.initrd = config["kernel"], config["initrd"]
        self.agent_initrd, self.root = config["agent_initrd"], config["root"]
        self.kit, self.scratch = config["kit"], config["scratch"]
        self.qemu_cpu = ""
        self.samples, self.details, self.lost, self.errors = [], [], [], []

    def native(self, name):
        return os.path.join(self.native_dir, name)

    def guest(self, agent=False, **more):
        return machines.Guest(self.kernel, self.agent_initrd if agent else self.initrd,
                              qemu_cpu=self.qemu_cpu, **more)

    def repeat(self, quick, full):
        return self.wanted or (quick if self.quick else full)

    def sample(self, bench, case, machine, metric, unit, value):
        self.samples.append({"bench": bench, "case": case, "machine": machine, "metric": metric,
                             "unit": unit, "value": value})

    def detail(self, bench, case, machine, what):
        self.details.append({"bench": bench, "case": case, "machine": machine, **what})

    def again(self, bench, case, machine, once, *args):
        """once(self, machine, case, *args), repeated where the machine was lost, which counts."""
        for attempt in range(MAX_LOST):
            keep = len(self.samples), len(self.details)
            try:
                return once(self, machine, case, *args)
            except (session.Lost, OSError, subprocess.TimeoutExpired) as error:
                del self.samples[keep[0]:], self.details[keep[1]:]
                self.lost.append({"bench": bench, "case": case, "machine": machine,
                                  "why": str(error)})
                print(f"bench: {bench}: {machine}: lost: {error}", file=sys.stderr, flush=True)
                if attempt == MAX_LOST - 1:
                    raise Failed(f"{machine}: {MAX_LOST} machines in a row were lost; the last: "
                                 f"{error}") from error


def first_word(path):
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def chosen(text):
    """The one in brackets, of what a file in sysfs offers."""
    return text[text.find("[") + 1:text.find("]")] if "[" in text else text


def version(program):
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.split("\n")[0]


def host(setup):
    thp = "/sys/kernel/mm/transparent_hugepage"
    model = [line.split(":", 1)[1].strip() for line in first_word("/proc/cpuinfo").split("\n")
             if line.startswith("model name")]
    kvm = [name for name in os.listdir("/sys/module") if name.startswith("kvm_")]
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "model": (model or ["?"])[0],
            "kvm": ", ".join(kvm), "thp": chosen(first_word(f"{thp}/enabled")),
            "shmem_thp": chosen(first_word(f"{thp}/shmem_enabled")),
            "load": os.getloadavg()[0], "lab": setup.lab}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        config = json.load(file)
    config["scratch"] = config["scratch"] or "/scratch"
    os.makedirs(config["scratch"], exist_ok=True)
    setup = Setup(config)
    if "qemu" in setup.programs and not set(config["names"]) <= {"merge", "unshare"}:
        setup.qemu_cpu = start.usable_qemu_cpu(setup)
    result = {"place": config["place"], "quick": setup.quick, "host": host(setup),
              "versions": {name: version(path) for name, path in setup.programs.items()},
              "qemu_cpu": setup.qemu_cpu, "seconds": {}}
    for name in config["names"]:
        print(f"bench: {config['place']}: {name}", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            BENCHMARKS[name].run(setup)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            setup.errors.append({"bench": name, "why": str(error)})
            print(f"bench: {name}: {error}", file=sys.stderr, flush=True)
        result["seconds"][name] = round(time.monotonic() - begin, 1)
    result.update(samples=setup.samples, details=setup.details, lost=setup.lost,
                  errors=setup.errors)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
