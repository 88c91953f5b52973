#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Guests that check their memory, splash's churn and a stock kernel under stress-ng, on four nodes, while a hundred
# times a second a part of it moves to whatever node, every vCPU moves about, and one node is full now and then. None
# of them may notice, and the host gets all memory back. Two minutes; TORTURE_SECONDS says otherwise (tests/run torture:
# half an hour).
seconds=${TORTURE_SECONDS:-120}
if [ -z "${LAB-}" ]; then
	lab_options=(--nodes 4 --cpus-per-node 1 --memory-per-node 1G --time "$((seconds + 1500))s")
	lab_words=("$seconds")
else
	seconds=$1
fi
. "$(dirname "$0")/guests.sh"

full=3 # the node that is under pressure

# free_mib NODE: with what CPUs keep for their next allocation, which is in no line of meminfo
free_mib() {
	awk -v wanted="$1," '$1 == "Node" { here = $2 == wanted }
		here && ($1 == "nr_free_pages" || $1 == "count:") { n += $2 }
		END { print int(n / 256) }' /proc/zoneinfo
}

# The host's memory, each node's, in MiB, once it has given back what it keeps for later.
all_free() { # FILE
	sync
	sleep 2
	echo 3 >/proc/sys/vm/drop_caches
	cat /proc/meminfo >"$1"
	for node in 0 1 2 3; do free_mib "$node"; done | tr '\n' ' '
}

# Takes memory of that node until hardly any is left, and gives it back, for ever.
press() {
	echo 1000 >"/proc/$BASHPID/oom_score_adj"
	exec numactl --membind="$full" python3 - "$full" <<-'END'
		import mmap, re, sys, time
		MIB = 1 << 20
		def free():
		    text = open(f"/sys/devices/system/node/node{sys.argv[1]}/meminfo").read()
		    return int(re.search(r"MemFree:\s+(\d+)", text).group(1)) << 10
		while True:
		    taken, end = [], time.monotonic() + 10
		    while time.monotonic() < end:
		        if free() > 40 * MIB:
		            taken.append(mmap.mmap(-1, 8 * MIB))
		            taken[-1].write(b"x" * (8 * MIB))
		        else:
		            time.sleep(0.1)
		    taken.clear()
		    time.sleep(5)
	END
}

# Sends vCPUs of a process to other nodes, some a second.
shift_vcpus() { # PID
	local task comm
	while kill -0 "$1" 2>/dev/null; do
		for task in /proc/"$1"/task/*; do
			read -r comm <"$task/comm" || continue
			[ "${comm#vcpu}" != "$comm" ] || continue
			((RANDOM % 2)) || continue
			taskset -pc $((RANDOM % 4)) "${task##*/}" && echo >>"$work/shifts"
		done >/dev/null 2>&1
		sleep 0.3
	done
}

# watch NAME: what moves, to the end
watch() {
	mirrorball numa --json "$1" >"$1.numa.new" 2>/dev/null && mv "$1.numa.new" "$1.numa"
}

tortured() { # NAME SECONDS
	local name=$1 end=$((SECONDS + $2 + run_seconds))
	: >shifts
	rm -f "$name.numa"
	shift_vcpus "$pid" &
	while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do
		watch "$name"
		sleep 2
	done
}

# moved NAME: enough for it to be torture. How fast is up to the machine: the storm never rests.
moved() {
	local said
	said=$(python3 - "$1.numa" <<-'END'
		import json, sys
		m = json.load(open(sys.argv[1]))["migration"]
		print(m["state"] == "storm" and m["moved_bytes"] >> 20 >= 8 and all(n["in_bytes"] for n in m["nodes"])
		      and m["split_bytes"] > 0,
		      *(f"{m[k] >> 20} MiB {k[:-6]}," for k in ("moved_bytes", "busy_bytes", "full_bytes", "split_bytes")),
		      f"{m['moves']} moves, the longest batch {m['longest_ns'] // 1000000} ms, to nodes:",
		      *(f"{n['in_bytes'] >> 20}" for n in m["nodes"]), "MiB")
	END
	)
	echo "$1: $said"
	expect "$1: memory moved, to every node, and huge pages were taken apart" True "${said%% *}"
	echo "$1: $(wc -l <shifts) moves of vCPUs"
	expect "$1: vCPUs moved, too" 1 "$(($(wc -l <shifts) > 8))"
}

options=(--views 2 --cpus 4 --track on --migrate storm)

churns() {
	start churn "${options[@]}" --memory 256M splash churn size=64M ms="$((seconds * 400))" "seed=$RANDOM"
	tortured churn "$seconds"
	ended 10
	expect "churn: status" 0 "$status"
	expect_match "churn: checks itself" '^splash: churn: ok' churn.out
	[ "$status" = 0 ] || show churn
	moved churn
}

stressed() { tortured stock "$seconds"; }

stress_ng() {
	run_seconds=$((seconds + 300)) when_up=stressed quick_guest stock cloud-6.1 "${options[@]}" --memory 512M \
		--disk /lab/guest/root0.img <<-END
			check "stress-ng finds its memory as it was" stress-ng --verify --timeout $((seconds * 4 / 10)) \
				--vm 2 --vm-bytes 64M --mmap 1 --mmap-bytes 32M --madvise 1 --fork 2 --metrics-brief
			grep -a bogo -A 9 /run/said
			quiet_kernel
		END
	moved stock
}

# What the host takes once and for all is taken first.
start warm "${options[@]}" --memory 64M splash churn size=4M ms=3000
ended 60
before=$(all_free meminfo.before)
press 2>press.err &
press=$!
churns
stress_ng
kill -0 "$press" || bad "there was pressure on node $full: $(cat press.err)"
kill "$press"
wait "$press"
after=$(all_free meminfo.after)
paste meminfo.before meminfo.after | awk '$2 > $5 + 8192 || $5 > $2 + 8192 { print "KiB:", $1, $2, "before,", $5, "after" }'
echo "MiB free on nodes 0 to 3: $before before, $after after"
read -ra b <<<"$before"
read -ra a <<<"$after"
expect "the host has its memory back, but for a few MiB" 1 \
	"$((b[0] + b[1] + b[2] + b[3] - a[0] - a[1] - a[2] - a[3] < 48))"
finish
