#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copies of guest memory on two nodes: what both views read gets some, from within KVM the first write takes them away,
# and guests that check themselves find nothing wrong, with everything at once and at random. Before that, all who write
# guest memory one by one: tests/kvm/test_writers.c.
# tests/run: alone
lab_options=(--in "$(dirname "$0")/tracker.sh")
[ -n "${LAB-}" ] || lab_options+=(--in "${MB_BUILD:-$(dirname "$0")/../../build}/tests/kvm/test_writers"
	--in "$(ldd "${MB_BUILD:-$(dirname "$0")/../../build}/tests/kvm/test_writers" | awk '/libsubunit/ { print $3 }')")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh
machine=(--views 2 --cpus 4 --memory 128M --replicas "100%")

# figure NAME PYTHON: of what the machine says of its replicas, r
figure() {
	mirrorball numa --json "$1" >"$1.new" 2>>"$1.said" && mv "$1.new" "$1.numa" && figure_of "$@"
}

# figure_of NAME PYTHON: the same of what it said last
figure_of() {
	python3 -c "import json, sys; a = json.load(open(sys.argv[1])); r = a['replicas']; print(int($2))" "$1.numa"
}

# say NAME: and leave it in NAME.last
say() {
	mirrorball numa --json "$1" 2>>"$1.said" |
		python3 -c "import json, sys; a = json.load(sys.stdin); print('$1:', a['replicas'], 'moved', a['migration'].get('moved_bytes'), a.get('reasons'))"
}

# reads_for SECONDS: leaves in copied how many MiB got a copy in that time
reads_for() {
	local end=$((SECONDS + $1))
	copied=0
	begin reads readshare size=16M ms="$(($1 * 1000 + 10000))"
	answers reads
	expect "reads: on" 1 "$(figure reads "r['state'] == 'on'")"
	until [ "${copied:-0}" -ge 12 ] || [ "$SECONDS" -ge "$end" ]; do
		sleep 1
		copied=$(figure reads "r['bytes'] >> 20")
	done
	echo "reads: ${copied:=0} MiB of copies after $((SECONDS - begun)) s"
}

# A table that all read. Where others are busy here, once more, for longer.
reads() {
	local copied
	reads_for 25
	if [ "$copied" -lt 12 ]; then
		ended_ok reads 120
		reads_for 100
	fi
	say reads
	mirrorball numa reads --why
	echo "reads: KiB of mapped copies on nodes 0 to 3: $(kib_on_nodes "$pid" copies)"
	expect "reads: three quarters of the table have a copy" 1 "$((copied >= 12))"
	ended_ok reads 120
}

# storm NAME SECONDS WORD...: moved and copied at random, for so long
storm() {
	local name=$1 seconds=$2
	shift 2
	machine=(--views 2 --cpus 4 --memory 48M --replicas "200%" --migrate storm)
	begin "$name" "$@" "seed=$RANDOM" "ms=$(((seconds + 10) * 1000))"
	answers "$name"
	sleep "$seconds"
	say "$name"
	expect "$name: copies were made, and written" 1 "$(figure "$name" "r['copied_bytes'] > 0 and r['faults'] > 0")"
	ended_ok "$name" 180
}

# What x86 forbids is not seen, on pages that were made one again under it. A fault takes long here, so it is little
# memory, and on a busy machine it may take several runs until every test had its turn and copies were written.
litmus() {
	local run collapsed=0 tests=0
	machine=(--views 2 --cpus 4 --memory 16M --replicas "200%" --migrate storm)
	for run in 1 2 3 4 5; do
		begin "litmus$run" litmus size=2M phase_ms=100 ms=30000 "seed=$RANDOM"
		answers "litmus$run"
		while kill -0 "$pid" 2>/dev/null; do
			figure "litmus$run" "r['collapsed_pages']" >litmus.collapsed
			sleep 1
		done
		ended_ok "litmus$run" 10
		sed -n 's/^splash: //p' "litmus$run.out"
		collapsed=$((collapsed + $(figure_of "litmus$run" "r['collapsed_pages']")))
		tests=$(cat litmus*.out | sed -n '/ 0 iterations/d; /iterations, 0 forbidden/p' | cut -c 1-40 | sort -u | wc -l)
		if [ "$collapsed" -ge 100 ] && [ "$tests" = 16 ]; then break; fi
	done
	echo "litmus: $collapsed pages were one again by a write"
	expect "litmus: a hundred pages were one again by a write, and every test was run" "1 16" \
		"$((collapsed >= 100)) $tests"
}

# Each on the real KVM, in both of its address spaces.
writers() {
	local status
	LD_LIBRARY_PATH=/in CK_TIMEOUT_MULTIPLIER=4 /in/test_writers >writers.out 2>&1
	status=$?
	cat writers.out
	[ "$status" = 0 ] || bad "writers: status $status, $(grep -E ':[EF]:' writers.out | cut -c 1-300 | xargs -0)"
	expect_match "writers: in two address spaces" 'address spaces of KVM: 2' writers.out
}

for part in writers reads "storm churn 30 churn size=16M" "storm radix 12 radix" "storm counts 12 writeshare size=16M" litmus; do
	begun=$SECONDS
	in_lanes "$part"
	echo "$part: $((SECONDS - begun)) s"
done
finish
