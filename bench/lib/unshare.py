# SPDX-License-Identifier: Apache-2.0
"""The first write to a page that is shared with other machines, beside a kernel's copy-on-write fault."""

import subprocess

import machines

KERNEL = "the kernel's copy-on-write"
MIB = 8
METRICS = (("p50", .5), ("p90", .9), ("p99", .99), ("p99.9", .999))
CASES = {"views-1": "one view", "views-2": "two views"}
BAR = 40


def at(values, share):
    return values[min(len(values) - 1, int(len(values) * share))]


def parse(text):
    """Microseconds by what was measured, sorted."""
    found = {}
    for line in text.splitlines():
        what, us = line.split()
        found.setdefault(what, []).append(float(us))
    for values in found.values():
        values.sort()
    return found


def buckets(values):
    """How many took less than 1, 2, 4, ... microseconds and no less than the one before."""
    counts = []
    for us in values:
        bucket = int(us).bit_length()
        counts += [0] * (bucket + 1 - len(counts))
        counts[bucket] += 1
    return counts


def histogram(columns):
    """Lines of text; columns: {title: counts}."""
    lines = []
    for title, counts in columns.items():
        total = sum(counts)
        lines.append(f"{title} ({total} writes)")
        first = next((i for i, n in enumerate(counts) if n), 0)
        for i in range(first, len(counts)):
            bar = "#" * round(BAR * counts[i] / max(counts))
            lines.append(f"  < {1 << i:7} us {counts[i]:7}  {bar or '.' * bool(counts[i])}".rstrip())
    return "\n".join(lines)


def run(setup):
    found = {}
    for _ in range(setup.repeat(2, 5)):
        done = subprocess.run([setup.native("unshare"), str(MIB), "2" if setup.quick else "4"], capture_output=True,
                              text=True, check=False)
        if done.returncode:
            raise setup.Failed(f"unshare: {done.stderr.strip() or done.returncode}")
        said = parse(done.stdout)
        for what, values in said.items():
            found.setdefault(what, []).extend(values)
        for what, case in CASES.items():
            for machine, values in ((machines.MIRRORBALL, said[what]), (KERNEL, said["kernel"])):
                for metric, share in METRICS:
                    setup.sample("unshare", case, machine, metric, "us", at(values, share))
    for what, values in found.items():
        setup.detail("unshare", CASES.get(what, ""), KERNEL if what == "kernel" else machines.MIRRORBALL,
                     {"below_us": buckets(values)})
