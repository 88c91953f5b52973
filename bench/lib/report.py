# SPDX-License-Identifier: Apache-2.0
"""Tables (which are Markdown, too) and verdicts from what was measured."""

import statistics

import clones
import machines
import picture
import sharing
import unshare

OURS = machines.MIRRORBALL
# More is better; of all others, less.
MORE = {"requests/s", "throughput"}
# Where only the machines named here are peers of ours: the others are told for information.
PEERS = {"overlay": (machines.QEMU_PC, machines.QEMU_IOTHREAD), "net": (machines.QEMU_PC,),
         "sharing": (machines.QEMU_PC, machines.QEMU_KSM), "clones": (machines.QEMU_LOADVM,)}
TITLES = {
    "start": "Start: execve to the first KVM_RUN",
    "boot": "Boot: start to the guest's init, Debian's 6.1 kernel, quiet serial console, 512 MiB",
    "memory": "Memory: resident in the idle monitor beyond guest RAM",
    "blk": "Disk: virtio-blk, O_DIRECT and io_uring on the same file",
    "overlay": "Disk with an overlay (qcow2) of a base that is in the page cache",
    "sharing": "Sharing: PSS of all monitors and the daemon, and the page cache of the image they have in common",
    "clones": "Clones: machines that go on from one snapshot, started by one command",
    "merge": "Merging: CPU time for each page that is one with other machines' from then on",
    "unshare": "Unsharing: the first write to a page that other machines have, too",
    "net": "Network: virtio-net on a tap, TCP (iperf3)",
}


class Summary:
    """Samples of one place by (bench, case, machine, metric), in the order of their coming."""

    def __init__(self, place):
        self.values, self.unit, self.order = {}, {}, {}
        for s in place["samples"]:
            key = (s["bench"], s["case"], s["machine"], s["metric"])
            self.values.setdefault(key, []).append(s["value"])
            self.unit[s["metric"]] = s["unit"]
            self.order.setdefault(s["bench"], {}).setdefault((s["case"], s["metric"]), {})[
                s["machine"]] = True

    def median(self, *key):
        return statistics.median(self.values[key]) if key in self.values else None

    def peers(self, bench, case, metric):
        return [machine for machine in self.order[bench][(case, metric)]
                if machine != OURS and machine in PEERS.get(bench, (machine,))]

    def ratio(self, bench, case, metric):
        """Ours to the best of the peers: below 1 is better where less is, above 1 where more is."""
        peers = [self.median(bench, case, machine, metric)
                 for machine in self.peers(bench, case, metric)]
        peers = [value for value in peers if value]
        ours = self.median(bench, case, OURS, metric)
        if ours is None or not peers:
            return None
        return ours / (max(peers) if metric in MORE else min(peers))

    def not_more(self, bench, case, metric):
        """Whether ours is at most the best peer's. "even": it is above, but their spreads meet."""
        ratio = self.ratio(bench, case, metric)
        if ratio is None or ratio <= 1:
            return ratio and True
        ours = self.values[(bench, case, OURS, metric)]
        medians = {machine: self.median(bench, case, machine, metric)
                   for machine in self.peers(bench, case, metric)}
        best = min((m for m in medians if medians[m]), key=medians.get)
        theirs = self.values[(bench, case, best, metric)]
        return "even" if min(len(ours), len(theirs)) > 1 and min(ours) <= max(theirs) else False

    def cases(self, bench, metric):
        return [case for case, m in self.order.get(bench, {}) if m == metric]


def number(value):
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else \
        f"{value:.2f}"


def cell(values, unit):
    if not values:
        return "–"
    text = number(statistics.median(values))
    if len(values) > 1 and min(values) != max(values):
        text += f" ({number(min(values))}–{number(max(values))})"
    return f"{text} {unit}".rstrip()


def table(rows):
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        return "| " + " | ".join(
            word.ljust(width[i]) if i == 0 else word.rjust(width[i])
            for i, word in enumerate(row)) + " |"
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":"
                          for i, w in enumerate(width)) + "|"
    return "\n".join([line(rows[0]), rule] + [line(row) for row in rows[1:]])


def bench_table(summary, bench):
    columns = []
    for found in summary.order[bench].values():
        columns += [machine for machine in found if machine not in columns]
    rows = [["median (min–max)"] + columns + ["ours / best peer"]]
    for case, metric in summary.order[bench]:
        ratio = summary.ratio(bench, case, metric)
        cells = [cell(summary.values.get((bench, case, machine, metric)), summary.unit[metric])
                 for machine in columns]
        name = f"{case}: {metric}" if bench != "start" else case
        rows.append([name] + cells + ["–" if ratio is None else f"{ratio:.2f}"])
    return table(rows)


# --- the goals ------------------------------------------------------------------------------------

def verdict(goal, found, met, note=""):
    """met: True, False, None (there is nothing to judge) or "even"."""
    word = {True: "met", False: "missed", None: "not judged"}.get(met, met)
    return {"goal": goal, "found": found, "verdict": word, "note": note}


def judge_start(summary, lab):
    small = summary.median("start", "128 MiB, 1 vCPU", OURS, "start to first KVM_RUN")
    large = summary.median("start", "64 GiB, 1 vCPU", OURS, "start to first KVM_RUN")
    if small is None or large is None:
        return []
    note = "emulated processor: only the ratio means something" if lab else ""
    ratios = [summary.ratio("start", case, "start to first KVM_RUN")
              for case in summary.cases("start", "start to first KVM_RUN")]
    ratios = [ratio for ratio in ratios if ratio]
    found = [verdict("at most 5 ms at 128 MiB", f"{small:.2f} ms", None if lab else small <= 5,
                     note),
             verdict("64 GiB sparse within 2 ms of 128 MiB", f"{large - small:+.2f} ms",
                     None if lab else large - small <= 2, note)]
    if ratios:
        found.append(verdict("(no goal) against the faster QEMU",
                             f"{min(ratios):.2f}× to {max(ratios):.2f}×", None))
    return found


def judge_boot(summary, lab):
    found = []
    for case in summary.cases("boot", "start to init"):
        ratio = summary.ratio("boot", case, "start to init")
        if ratio:
            found.append(verdict(f"{case}: no slower than the faster QEMU (aim 0.7×)",
                                 f"{ratio:.2f}×", summary.not_more("boot", case, "start to init"),
                                 "aim reached" if ratio <= 0.7 else "aim not reached"))
    return found


def judge_memory(summary, lab):
    return [verdict("at most 3 MiB resident", f"{rss:.2f} MiB", rss <= 3)
            for case in summary.cases("memory", "Rss")
            for rss in [summary.median("memory", case, OURS, "Rss")] if rss is not None]


def judge_io(bench, metric, speed):
    def judge(summary, lab):
        found = []
        for case in summary.cases(bench, metric):
            ratio, fast = summary.ratio(bench, case, metric), summary.ratio(bench, case, speed)
            if ratio:
                found.append(verdict(f"{case}: {metric} no higher than QEMU's", f"{ratio:.2f}×",
                                     summary.not_more(bench, case, metric),
                                     f"{speed} {fast:.2f}×"))
        return found
    return judge


def judge_overlay(summary, lab):
    return [verdict(f"{case}: no slower than the faster QEMU", f"{ratio:.2f}×", ratio >= 1)
            for case in summary.cases("overlay", "requests/s")
            for ratio in [summary.ratio("overlay", case, "requests/s")] if ratio]


def judge_sharing(summary, lab):
    """The goals are for 8 guests; as many as there were are judged."""
    (soon, late), cpu = sharing.IDLE, sharing.IDLE_CPU
    cases = summary.cases("sharing", soon)
    if not cases:
        return []
    case = max(cases, key=lambda text: int(text.split()[0]))

    def median(machine, metric):
        return summary.median("sharing", case, machine, metric)
    ours, plain = median(OURS, soon), median(machines.QEMU_PC, late)
    ksm = [value for value in (median(machines.QEMU_KSM, soon), median(machines.QEMU_KSM, late)) if value]
    found = []
    if ours and plain:
        found.append(verdict(f"{case}, after 2 s: at most half of QEMU without KSM", f"{ours / plain:.2f}×", ours <= plain / 2))
    if ours and ksm:
        found.append(verdict(f"{case}, after 2 s: less than KSM at its best", f"{ours / min(ksm):.2f}×", ours < min(ksm)))
    ours, plain, ksm = (median(machine, sharing.COMPILING) for machine in (OURS, machines.QEMU_PC, machines.QEMU_KSM))
    if ours and plain:
        found.append(verdict(f"{case}, all compile: at most half of QEMU without KSM", f"{ours / plain:.2f}×", ours <= plain / 2))
    if ours and ksm:
        found.append(verdict(f"{case}, all compile: less than KSM", f"{ours / ksm:.2f}×", ours < ksm))
    used, theirs = median(OURS, cpu), median(machines.QEMU_KSM, cpu)
    if used is not None and theirs:
        found.append(verdict(f"{case}: at most a tenth of KSM's CPU time", f"{used / theirs:.2f}×", used <= theirs / 10))
    return found


def judge_clones(summary, lab):
    found = []
    for case in summary.cases("clones", clones.PSS):
        if clones.number_of(case) == 3:
            mib = summary.median("clones", case, OURS, clones.PSS)
            found.append(verdict(f"{case}, idle: at most 150 MiB together", f"{mib:.1f} MiB", mib <= 150))
    for case in summary.cases("clones", clones.SPLASH):
        ms, plain = (summary.median("clones", case, machine, clones.SPLASH) for machine in (OURS, clones.PLAIN))
        found.append(verdict(f"{case}: at most 10 ms beyond the snapshot's device state", f"{ms:.1f} ms, with that; a plain start {plain:.1f} ms",
                             None if lab else ms <= 10))
    return found


def judge_merge(summary, lab):
    """Here KSM sees nothing but pages that it merges; of a guest it reads all the others, too."""
    return [verdict(f"{case}: at most a tenth of KSM's CPU time", f"{ratio:.2f}×", ratio <= .1)
            for case in summary.cases("merge", "CPU time")
            for ratio in [summary.ratio("merge", case, "CPU time")] if ratio]


def judge_unshare(summary, lab):
    """There is no goal: what it is beside a fault that needs no other thread."""
    return [verdict(f"(no goal) {case}: {metric} against the kernel's copy-on-write", f"{ratio:.1f}×", None)
            for metric in ("p50", "p99") for case in summary.cases("unshare", metric)
            for ratio in [summary.ratio("unshare", case, metric)] if ratio]


def pictures(place, bench):
    """What is drawn of it, below its table."""
    found = {", ".join(word for word in (d["machine"], d["case"]) if word): d["below_us"]
             for d in place["details"] if d["bench"] == bench and "below_us" in d}
    notes = dict.fromkeys(d["note"] for d in place["details"] if d["bench"] == bench and "note" in d)
    return [f"Note: {note}." for note in notes] + ([f"```\n{unshare.histogram(found)}\n```"] if found else [])


# {name of the file: (benchmark, metric, what is counted, unit)}
PLOTS = {"sharing-idle": ("sharing", sharing.IDLE[-1], "guests", "MiB"),
         "sharing-compile": ("sharing", sharing.COMPILING, "guests", "MiB"),
         "clones-memory": ("clones", clones.PSS, "clones", "MiB"),
         "clones-time": ("clones", clones.LAST_ANSWER, "clones", "ms")}


def plots(results):
    """{name: SVG}, of the places that have measured it, the last of them."""
    found = {}
    for place in results["places"]:
        summary = Summary(place)
        for name, (bench, metric, what, unit) in PLOTS.items():
            curves = {}
            for case in summary.cases(bench, metric):
                for machine in summary.order[bench][(case, metric)]:
                    curves.setdefault(machine, []).append((int(case.split()[0]), summary.median(bench, case, machine, metric)))
            if curves:
                where = ", emulated host" if place["host"]["lab"] else ""
                found[name] = picture.plot(f"{metric} ({results['commit']}{where})", what, unit, curves)
    return found


JUDGES = {"start": judge_start, "boot": judge_boot, "memory": judge_memory,
          "blk": judge_io("blk", "exits/request", "requests/s"),
          "overlay": judge_overlay, "sharing": judge_sharing, "clones": judge_clones, "merge": judge_merge, "unshare": judge_unshare,
          "net": judge_io("net", "exits/MB", "throughput")}


def verdicts(results):
    found = []
    for place in results["places"]:
        summary = Summary(place)
        for bench, judge in JUDGES.items():
            if bench in summary.order:
                found += [{"place": place["place"], "bench": bench, **v}
                          for v in judge(summary, place["host"]["lab"])]
    return found


# --- the whole ------------------------------------------------------------------------------------

def place_text(place):
    h = place["host"]
    where = "in the lab (emulated host)" if h["lab"] else "on this host"
    return (f"Measured {where}: Linux {h['kernel']}, {h['kvm'] or 'KVM built in'}, {h['cpus']}"
            " CPUs,"
            f" {h['model']}; huge pages {h['thp']}, for shared memory {h['shmem_thp']};"
            f" load at the start {h['load']:.1f}.")


def text(results):
    parts = [f"# Mirrorball {results['commit']}, {results['when']}"]
    for place in results["places"]:
        versions = "; ".join(v for v in place["versions"].values() if v)
        parts.append(f"## {place['place']}\n\n{place_text(place)}\n{versions}.")
        summary = Summary(place)
        for bench in summary.order:
            parts.append(f"### {TITLES[bench]}\n\n{bench_table(summary, bench)}")
            parts += pictures(place, bench)
            judged = JUDGES[bench](summary, place["host"]["lab"])
            parts.append("\n".join(
                f"- {v['goal']}: {v['found']}: **{v['verdict']}**" +
                (f" ({v['note']})" if v["note"] else "") for v in judged))
        took = ", ".join(f"{bench} {seconds:.0f} s" for bench, seconds in place["seconds"].items())
        parts.append(f"Took {took}.")
        lost = {}
        for one in place["lost"]:
            key = (one["bench"], one["machine"])
            lost[key] = lost.get(key, 0) + 1
        if lost:
            parts.append("Machines lost and started again: " + ", ".join(
                f"{bench} {machine} {n}" for (bench, machine), n in lost.items()) + ".")
        for error in place["errors"]:
            parts.append(f"**Not measured: {error['bench']}: {error['why']}**")
    return "\n\n".join(parts)

