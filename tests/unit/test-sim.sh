#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mirrorball sim: programs and traces, tables, JSON and pictures, and files that are none.
source "$(dirname "$0")/lib.sh"

sim() {
	"$MIRRORBALL" sim "$@"
}
# A condition on the JSON in out, as j.
holds() {
	n_checks=$((n_checks + 1))
	python3 -c '
import json, sys
j = json.load(open("out"))
runs = {run["name"]: run for run in j["runs"]}
sys.exit(not eval(sys.argv[1]))' "$1" || bad "not true: $1"
}

# Tables.
LC_ALL=C expect 0 '' sim
for program in private readshare writeshare phase radix idle; do
	has "^$program +[0-9.]+ +[0-9.]+"
done
has '^Modelled, not measured'
has 'write-shared'
LC_ALL=C.UTF-8 expect 0 '' sim --program private --seconds 5
has '█'
expect 0 '' sim --program private --seconds 0.5 --interval 0.1 --cpus 1 --memory 2M

# JSON.
expect 0 '' sim --json
holds 'len(runs) == 6 and j["views"] == 2'
holds 'all(r["cases"]["oracle_dynamic"]["memory_s"] <= r["cases"]["policy"]["memory_s"] * 1.0001 for r in j["runs"])'
holds 'all(r["cases"]["policy"]["memory_s"] <= r["cases"]["worst"]["memory_s"] * 1.0001 for r in j["runs"])'
holds 'all(sum(r["moved_bytes_over_time"]) == r["moved_bytes"] for r in j["runs"])'
holds 'runs["private"]["cases"]["policy"]["local"] > 0.95'
holds 'runs["idle"]["moved_bytes"] == 0 and runs["writeshare"]["moved_bytes"] == 0'
n_checks=$((n_checks + 1))
while read -r key; do
	grep -qE "_${key}_|\*${key}\*" "$here/man/mirrorball-sim.1.scd" || bad "mirrorball-sim(1) lacks the key $key"
done < <(json_keys out)
cp out first
expect 0 '' sim --json
cmp -s out first || bad "twice the same is not the same"
expect 0 '' sim --json --seed 2 --program mixed --machines 12 --nodes 4 --span 2 --start interleave
holds 'runs["mixed"]["machines"] == 12 and len(j["host"]["ns"]) == 4'
# Nodes that share views by turns are told apart, with one view they are not.
expect 0 '' sim --json --program private --nodes 4 --start worst
holds 'j["views"] == 2 and runs["private"]["cases"]["policy"]["local"] > 0.9'
expect 0 '' sim --json --program private --nodes 4 --start worst --views 1
holds 'runs["private"]["moves"] == 0'
expect 0 '' sim --program private --nodes 8 --seconds 3
has '2 views, by turns'
expect 0 '' sim --program private --nodes 8 --seconds 3 --views 8
has '8 views\.'
for start in first interleave worst best; do
	expect 0 '' sim --json --start "$start" --program private --program phase --seconds 20
	holds 'len(j["runs"]) == 2'
done
# In the right place from the beginning: nothing to do.
holds 'runs["private"]["moves"] == 0'

# Hosts.
for name in xeon-2s epyc-2s xeon-4s disco; do
	expect 0 '' sim --json --machine "$here/bench/machines.json:$name" --seconds 3
	holds 'j["host"]["ns"][0][0] > 50'
done
cat >host.json <<-'END'
	{"name": "a host", "ns": [[100, 300], [300, 100]], "distance": [[10, 30], [30, 10]], "cpus": [8, 0],
	 "memory_gib": [16, 8], "bandwidth_gb_per_s": 20, "move_page_ns": 3000, "move_block_ns": 1e5}
END
expect 0 '' sim --json --machine host.json --program writeshare
holds 'j["host"]["name"] == "a host" and j["host"]["cpus"] == [8, 0]'
holds '0 < runs["writeshare"]["cases"]["policy"]["busy"] <= 0.95'
cp host.json a:b.json
expect 0 '' sim --machine a:b.json --seconds 2
expect 1 'which machine\? .*xeon-2s, epyc-2s' sim --machine "$here/bench/machines.json"
expect 1 "no machine 'x'; there are xeon" sim --machine "$here/bench/machines.json:x"
expect 1 'missing.json: No such file' sim --machine missing.json
expect 1 'missing.json: No such file' sim --machine missing.json:x
expect 1 'directory' sim --machine .
broken() { # what it says, JSON
	echo "$2" >broken.json
	expect 1 "$1" sim --machine broken.json
}
broken 'broken.json: line [12]: ' '{"ns": [[1, 2], [2'
broken 'broken.json: line [12]: ' ''
broken 'broken.json: line 1' 'gibberish'
broken 'describes no machine' '[]'
broken 'describes no machine' '{"name": "x"}'
broken 'must be the latencies' '{"ns": 3}'
broken 'must be the latencies' '{"ns": []}'
broken 'list of 2 numbers' '{"ns": [[1, 2], [1]]}'
broken 'list of 2 numbers' '{"ns": [[1, 2], 7]}'
broken 'ns must be a number' '{"ns": [["x"]]}'
broken 'ns must be a number' '{"ns": [[1, -2], [1, 1]]}'
broken 'less than 0.1' '{"ns": [[0]]}'
broken 'cpus has 3 numbers for 1 node' '{"ns": [[1]], "cpus": [1, 2, 3]}'
broken 'memory_gib must be' '{"ns": [[1]], "memory_gib": "lots"}'
broken 'distance: 3 is less than 10' '{"ns": [[1]], "distance": [[3]]}'
broken 'without vCPUs, or a host without CPUs' '{"ns": [[1]], "cpus": 0}'
broken 'need 4 GiB of memory, and the host has 1 GiB' '{"ns": [[1]], "memory_gib": 1}'
broken 'must be the latencies' "{\"ns\": [$(printf '[1],%.0s' {1..65})[1]]}"

# Traces.
python3 - <<'END'
import json
def line(t, n=64, **more):
    extents = [{"gpa": (i << 21) + (1 << 30 if i >= 1536 else 0), "bytes": 1 << 21, "node": 4, "node_share": 1.0, "huge": True,
                "confidence": 0.8, "age_ms": 10, "read": [0.0, 300.0], "write": [0.0, 0.0]} for i in range(n)]
    tracker = {"writes": True, "covered": 1.0}
    return json.dumps({"ok": True, "name": "web1", "pid": 7, "time_ms": t, "memory_bytes": n << 21,
        "views": [{"nodes": [4]}, {"nodes": [6]}], "nodes": [4, 6], "tracker": tracker, "extents": extents, **more})
lines = [line(1000 * t) for t in range(1, 21)]
open("trace", "w").write("\n".join(lines) + "\n")
open("large", "w").write(line(5, 2048))
open("cut", "w").write("\n".join(lines)[:-100])
open("changes", "w").write(lines[0] + "\n" + line(2000, nodes=[4, 6, 8]))
open("back", "w").write(lines[1] + "\n" + lines[0])
open("wrong", "w").write(lines[0] + "\n" + line(3000).replace('"bytes": 2097152', '"bytes": -1', 1))
open("nul", "wb").write(lines[0].encode()[:50] + b"\0" + lines[0].encode()[50:])
open("blank", "w").write("\n\n")
END
expect 0 '' sim --trace trace --json
holds 'runs["web1"]["steps"] == 20'
holds 'runs["web1"]["cases"]["none"]["local"] == 0 and runs["web1"]["cases"]["policy"]["local"] > 0.9'
holds 'runs["web1"]["moved_bytes"] == 64 << 21'
expect 0 '' sim --trace trace --seconds 100 --interval 5 --json
holds 'runs["web1"]["steps"] == 20'
expect 0 '' bash -c '"$0" sim --trace - <trace' "$MIRRORBALL"
has '^web1 '
# The hole below 4 GiB is no memory.
expect 0 '' sim --trace large --json
holds 'runs["web1"]["memory_bytes"] == 4 << 30'
expect 0 '' sim --trace trace --machine "$here/bench/machines.json:disco"
expect 1 'cut: line 20: column [0-9]+' sim --trace cut
expect 1 'changes: line 2: its views or nodes' sim --trace changes
expect 1 'back: line 2: time_ms is less' sim --trace back
expect 1 'wrong: line 2: .*extents\[0\].bytes is out of range' sim --trace wrong
expect 1 'nul: line 1: a zero byte' sim --trace nul
expect 1 'blank: it is empty' sim --trace blank
expect 1 'standard input: it is empty' sim --trace -
expect 1 'missing: No such file' sim --trace missing
expect 1 '.: Is a directory' sim --trace .
echo '{"ns": [[1]]}' >one.json
expect 1 'the trace is of 2 nodes, and the host has 1' sim --trace trace --machine one.json

# Pictures.
expect 0 '' sim --svg sim.svg
has 'private'
n_checks=$((n_checks + 1))
python3 - sim.svg <<'END' || bad "sim.svg"
import sys, xml.etree.ElementTree as tree
text = open(sys.argv[1]).read()
root = tree.fromstring(text)
assert root.tag.endswith("}svg") and root.get("viewBox")
assert sum(e.get("class") == "line policy" for e in root.iter()) == 7
assert len(text) < 200000
END
expect 0 '' sim --svg - --seconds 3
has '^</svg>'
expect 0 '' sim --svg long.svg --seconds 3600 --program phase
[ "$(stat -c %s long.svg)" -lt 100000 ] || bad "a long picture is large"
expect 1 'no/x.svg: No such file' sim --svg no/x.svg
expect 1 '/dev/full: No space left.*not written' sim --svg /dev/full --seconds 2
expect 1 'standard output' bash -c '"$0" sim --seconds 2 >/dev/full' "$MIRRORBALL"
expect 1 'standard output' bash -c '"$0" sim --json --seconds 2 >/dev/full' "$MIRRORBALL"
echo before >kept.svg
expect 1 'missing' sim --trace missing --svg kept.svg
[ "$(cat kept.svg)" = before ] || bad "a picture that failed has replaced the one before"

# Interrupted, with and without a picture. A script's background jobs would ignore SIGINT.
python3 - "$MIRRORBALL" <<'END' || bad "SIGINT"
import signal, subprocess, sys, time
for more, want in ([], -signal.SIGINT), (["--svg", "cut.svg"], 128 + signal.SIGINT):
    run = subprocess.Popen([sys.argv[1], "sim", "--machines", "100", "--cpus", "512", "--nodes", "8", "--memory", "1T",
                            "--seconds", "80000", *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    try:
        said = run.communicate(timeout=30)[1]
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    assert run.returncode == want and not said, (run.returncode, said)
END
left=$(find . -name '*.svg.*')
[ -z "$left" ] && [ ! -e cut.svg ] || bad "left behind: $left"

# Command lines.
expect 2 "unexpected word 'x'" sim x
expect 2 "did you mean 'private'" sim --program privat
expect 2 'no program' sim --program doom
expect 2 'given twice' sim --seconds 3 --seconds 4
expect 2 'out of range|between' sim --machines 0
expect 2 'none of first' sim --start here
expect 2 'multiple of 2M' sim --memory 3M
expect 2 '2M for each of the 8 vCPUs' sim --memory 14M
expect 2 'shorter than --interval' sim --seconds 0.5
expect 2 'for the built-in host' sim --machine host.json --nodes 4
expect 2 '--views: --trace says that itself' sim --trace trace --views 1
expect 2 '--program: --trace says' sim --trace trace --program idle
expect 2 'exclude each other' sim --json --svg -
expect 2 'no name' sim --svg ''
expect 2 'did you mean --seconds' sim --secunds 3
finish
