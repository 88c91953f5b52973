# SPDX-License-Identifier: Apache-2.0
"""CPU time that it takes to merge a page with other machines', beside the kernel's KSM."""

import glob
import subprocess
import sys

import machines

KSM = "KSM"
MIB = 16
VIEWS = {"views-1": "one view", "views-2": "two views"}


def parse(text):
    """(what, pages of a run): nanoseconds a page, in the order of measuring."""
    found = {}
    for line in text.splitlines():
        what, run_pages, ns = line.split()
        found.setdefault((what, int(run_pages)), []).append(float(ns))
    return found


def cases(found):
    """(case, machine, values): each of ours beside KSM's, which knows no runs."""
    ksm = found.get(("ksm", 1), [])
    for (what, run_pages), values in found.items():
        if what in VIEWS:
            case = f"{VIEWS[what]}, runs of {run_pages} page{'s' if run_pages > 1 else ''}"
            yield case, machines.MIRRORBALL, values
            yield case, KSM, ksm


def others_for_ksm():
    """Processes with memory that KSM would look at, too, as a QEMU's: what it costs is then not for ours alone."""
    found = []
    for path in glob.glob("/proc/[0-9]*/smaps"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                if any(line.startswith("VmFlags:") and " mg" in line for line in file):
                    found.append(path.split("/")[2])
        except OSError:
            pass
    return found


def run(setup):
    others = others_for_ksm()
    if others:
        print(f"bench: merge: KSM is not measured: process {others[0]} has memory for it, too", file=sys.stderr)
    ksm = [] if others else ["ksm"]
    for _ in range(setup.repeat(2, 5)):
        done = subprocess.run([setup.native("merge"), str(MIB), "1", *ksm], capture_output=True, text=True, check=False)
        if done.returncode:
            raise setup.Failed(f"merge: {done.stderr.strip() or done.returncode}")
        for case, machine, values in cases(parse(done.stdout)):
            for ns in values:
                setup.sample("merge", case, machine, "CPU time", "ns/page", ns)
