#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bench/run: what is said and drawn of clones and of machines that share, with made-up figures; clones that are no machines
# are timed and ended.
# tests/run: once
source "$(dirname "$0")/lib.sh"

# results VALUE...: of three clones, of a start from a snapshot, of eight guests that compile
results() {
	cat <<-END
		{"format": 1, "commit": "abc", "when": "then", "places": [{"place": "lab", "quick": true, "versions": {}, "lost": [], "errors": [],
		"host": {"kernel": "6", "cpus": 4, "model": "m", "kvm": "", "thp": "", "shmem_thp": "", "load": 1.0, "lab": $4}, "seconds": {"clones": 1},
		"details": [{"bench": "clones", "case": "16", "machine": "qemu pc, -loadvm", "note": "16 do not fit"}],
		"samples": [
		{"bench": "clones", "case": "1 clone of 1024 MiB", "machine": "mirrorball", "metric": "PSS of all after 10 s", "unit": "MiB", "value": 30},
		{"bench": "clones", "case": "3 clones of 1024 MiB", "machine": "mirrorball", "metric": "PSS of all after 10 s", "unit": "MiB", "value": $1},
		{"bench": "clones", "case": "3 clones of 1024 MiB", "machine": "qemu pc, -loadvm", "metric": "PSS of all after 10 s", "unit": "MiB", "value": 400},
		{"bench": "clones", "case": "splash", "machine": "mirrorball", "metric": "first instruction", "unit": "ms", "value": $2},
		{"bench": "clones", "case": "splash", "machine": "mirrorball, plain start", "metric": "first instruction", "unit": "ms", "value": 3},
		{"bench": "sharing", "case": "8 guests of 192 MiB", "machine": "mirrorball", "metric": "memory after 2 s", "unit": "MiB", "value": 600},
		{"bench": "sharing", "case": "8 guests of 192 MiB", "machine": "mirrorball", "metric": "memory while all compile", "unit": "MiB", "value": $3},
		{"bench": "sharing", "case": "8 guests of 192 MiB", "machine": "qemu pc", "metric": "memory while all compile", "unit": "MiB", "value": 1000},
		{"bench": "sharing", "case": "8 guests of 192 MiB", "machine": "qemu pc, KSM", "metric": "memory while all compile", "unit": "MiB", "value": 450}
		]}]}
	END
}
results 90 4 400 false >good.json
expect 0 '' "$here/bench/run" --report good.json
has '3 clones .*: at most 150 MiB together: 90.0 MiB: \*\*met\*\*'
has 'splash: at most 10 ms .*: 4.0 ms, with that; a plain start 3.0 ms: \*\*met\*\*'
has 'all compile: at most half of QEMU without KSM: 0.40×: \*\*met\*\*'
has 'all compile: less than KSM: 0.89×: \*\*met\*\*'
has '^Note: 16 do not fit\.$'
results 151 11 501 false >bad.json
expect 0 '' "$here/bench/run" --report bad.json
has '150 MiB together: 151.0 MiB: \*\*missed\*\*'
has 'splash: .*: 11.0 ms.*: \*\*missed\*\*'
has 'half of QEMU without KSM: 0.50×: \*\*missed\*\*'
has 'less than KSM: 1.11×: \*\*missed\*\*'
# Times of an emulated processor are not judged.
results 90 4 400 true >lab.json
expect 0 '' "$here/bench/run" --report lab.json
has 'splash: .*: \*\*not judged\*\*'

n_checks=$((n_checks + 1))
python3 -B - "$here/bench/lib" <<'END' || bad "plots"
import json, re, sys, xml.dom.minidom
sys.path.insert(0, sys.argv[1])
import picture, report
drawn = report.plots(json.load(open("lab.json")))
assert sorted(drawn) == ["clones-memory", "sharing-compile"], sorted(drawn)
for svg in drawn.values():
    xml.dom.minidom.parseString(svg)
assert "emulated host" in drawn["clones-memory"]
assert "emulated" not in report.plots(json.load(open("good.json")))["clones-memory"]
svg = picture.plot("t", "x", "y", {"a": [(1, 5), (2, 10)]})
points = re.search(r'polyline points="(\S+) (\S+)"', svg)
assert points[1] == f"{picture.LEFT + picture.WIDTH / 2:.1f},{picture.TOP + picture.HEIGHT:.1f}", points[0]
assert points[2] == f"{picture.LEFT + picture.WIDTH:.1f},{picture.TOP:.1f}", points[0]
END

# Two that say that they run and that answer, and one that does not.
mkdir clones
cat >launch <<'END'
#!/bin/sh
echo "start 1000000" >&"$1"
export FD=$1
shift 2
exec "$@"
END
chmod +x launch
n_checks=$((n_checks + 1))
python3 -B - "$here/bench/lib" <<'END' || bad "clones"
import os, sys, types
sys.path.insert(0, sys.argv[1])
import clones, session
setup = types.SimpleNamespace(scratch=os.getcwd(), native=lambda name: os.path.join(os.getcwd(), name))
one = ['echo "run 3000000 $$" >&$FD; echo virtual machine fork >clones/clone-%d.log; exec sleep 100' % i for i in (1, 2)]
command = ["bash", "-c", " ".join(f"bash -c '{text}' &" for text in one) + " wait"]
with clones.Clones(setup, command, 2) as both:
    both.wait()
    assert both.ran == [0.002, 0.002] and len(both.answered) == 2, (both.ran, both.answered)
    pids = both.pids
assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids), pids
clones.remove(setup, [])
assert os.listdir("clones") == ["said"], os.listdir("clones")
clones.CLONES_SECONDS = 1
try:
    with clones.Clones(setup, ["bash", "-c", "echo no such snapshot; exit 1"], 1) as none:
        none.wait()
except session.Lost as lost:
    assert "0 ran and 0 answered of 1" in str(lost) and "no such snapshot" in str(lost), lost
else:
    sys.exit("nobody missed it")
END
finish
