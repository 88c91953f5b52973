#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The lab's instrument counts what is known beforehand: accesses of vCPUs on a known node to memory on a known
# node, misses of a cache that the memory fits in or not, within 1 %.
. "$(dirname "$0")/test-common.sh"

cat >"$tmp/walks.sh" <<'END'
#!/bin/bash
# walks.sh CPU_NODE MEMORY_NODE SIZE ROUNDS...: one vCPU each
mkdir -p /sys/fs/cgroup/walk
echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control
echo $$ >/sys/fs/cgroup/walk/cgroup.procs
while [ $# -gt 0 ]; do
	# The first of its CPUs: a vCPU that moves leaves its cache behind.
	sed 's/[-,].*//' "/sys/devices/system/node/node$1/cpulist" >/sys/fs/cgroup/walk/cpuset.cpus
	echo "$2" >/sys/fs/cgroup/walk/cpuset.mems
	mirrorball run --cpus 1 --memory 64M splash walk "size=$3" "rounds=$4" || exit
	shift 4
done
END
chmod +x "$tmp/walks.sh"

# counted WHAT FILE MATRIX
counted() {
	local said
	said=$(python3 "$here/truth/check.py" "$2" "$1" "$3")
	expect "$1: $said" 0 $?
}

# Local and remote, each of another length: 131072 lines a round.
"$lab" --truth "$tmp/nodes.json" --in "$tmp/walks.sh" -- ./walks.sh \
	0 0 8M 4 0 1 8M 6 1 0 8M 8 1 1 8M 10 >"$tmp/out"
expect "four walks" "0 4" "$? $(grep -c '^splash: walk: ok' "$tmp/out")"
for what in loads stores load_misses store_misses; do
	counted $what "$tmp/nodes.json" '524288 786432; 1048576 1310720'
done
expect "the host is not counted unless asked for" "0" \
	"$(python3 -c 'import json, sys
print(sum(map(sum, json.load(open(sys.argv[1]))["sections"]["1"]["host"]["loads"])))' "$tmp/nodes.json")"

# The model: 128 KiB stay in a cache of 256 KiB, 512 KiB never do. The pages add up to the whole. Without the
# host, whose ticks would displace some of the guest's lines.
"$lab" --nodes 1 --cpus-per-node 2 --truth "$tmp/model.json,cache=256K,ways=8,pages" \
	--in "$tmp/walks.sh" -- ./walks.sh 0 0 128K 100 0 0 512K 20 >"$tmp/out"
expect "two walks" "0 2" "$? $(grep -c '^splash: walk: ok' "$tmp/out")"
counted loads "$tmp/model.json" $((2048 * 100 + 8192 * 20))
counted stores "$tmp/model.json" $((2048 * 100 + 8192 * 20))
counted load_misses "$tmp/model.json" $((2048 + 8192 * 20))
counted store_misses "$tmp/model.json" $((8192 * 20))
cat >"$tmp/pages.py" <<'END'
import json, sys
found = json.load(open(sys.argv[1]))
section = found["sections"]["1"]
for at, what in enumerate(("loads", "stores")):
    whole = sum(section[level][what][0][0] for level in ("host", "guest"))
    pages = sum(page[2 + at] for page in found["pages"])
    assert whole == pages, (what, whole, pages)
# Each of the 128 pages of the long walk is read 64 times a round.
assert sum(1 for page in found["pages"] if page[2] >= 64 * 20) >= 128, "pages of the walk"
END
python3 "$tmp/pages.py" "$tmp/model.json"
expect "pages add up" 0 $?

# Slices of time, one run of them for each walk, add up to the section, and so do their pages.
"$lab" --nodes 2 --cpus-per-node 1 --truth "$tmp/slices.json,pages,slice=50" --in "$tmp/walks.sh" -- ./walks.sh \
	0 1 2M 60 1 1 2M 60 >"$tmp/out"
cat >"$tmp/slices.py" <<'END'
import json, sys
found = json.load(open(sys.argv[1]))
guest, slices = found["sections"]["1"]["guest"], found["slices"]
assert {s["run"] for s in slices} == {1, 2} and len(slices) > 4, "more than one slice of both runs"
for cpu in range(2):
    for node in range(2):
        whole = sum(guest[what][cpu][node] for what in ("load_misses", "store_misses"))
        assert whole == sum(s["misses"][cpu][node] for s in slices), "the section's misses"
    assert sum(map(sum, (guest[what][cpu] for what in ("load_misses", "store_misses")))) == \
        sum(page[2 + cpu] for s in slices for page in s["pages"]), "the pages' misses"
assert sum(map(sum, guest["stores"])) == sum(page[1] for s in slices for page in s["pages"]), "the pages' stores"
for before, after in zip(slices, slices[1:]):
    assert before["run"] < after["run"] or before["ms"] < after["ms"], "times"
END
python3 "$tmp/slices.py" "$tmp/slices.json"
expect "slices add up" 0 $?

# Without the model nothing is a miss. A program of the host marks, too.
"$lab" --nodes 1 --cpus-per-node 1 --truth "$tmp/off.json,cache=off,host" --in "$tmp/walks.sh" -- \
	sh -c './walks.sh 0 0 512K 20 && truth-mark 3; true; truth-mark 0' >"$tmp/out" 2>"$tmp/err"
counted loads "$tmp/off.json" $((8192 * 20))
expect "no misses" "0 0" "$(python3 -c 'import json, sys
guest = json.load(open(sys.argv[1]))["sections"]["1"]["guest"]
print(guest["load_misses"][0][0], guest["store_misses"][0][0])' "$tmp/off.json")"
expect "marks of the host, and its accesses" "1 3 True" "$(python3 -c 'import json, sys
sections = json.load(open(sys.argv[1]))["sections"]
print(*sorted(sections), sections["3"]["host"]["loads"][0][0] > 1000)' "$tmp/off.json")"

# Without a mark there is nothing, which is said.
"$lab" --nodes 1 --cpus-per-node 1 --truth "$tmp/none.json" -- true 2>"$tmp/err"
expect "no mark: status" 0 $?
expect_match "no mark: says so" '^lab: warning: --truth: no mark was seen' "$tmp/err"
finish
