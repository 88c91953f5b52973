#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Memory follows its users on two nodes: what begins on the wrong one, what nobody has to move, and guests that check
# themselves while it happens.
# tests/run: alone
lab_options=(--in "$(dirname "$0")/tracker.sh")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# asked NAME PYTHON: of the machine's answer a
asked() {
	mirrorball numa --json "$1" >"$1.numa" 2>>"$1.said" || return
	python3 -c "import json, sys; a = json.load(open(sys.argv[1])); m = a['migration']; print(int($2))" "$1.numa"
}

# node_kib KEY: of node 0
node_kib() { awk -v key="$1:" '$3 == key { print $4 }' /sys/devices/system/node/node0/meminfo; }

# Node 0 has hardly any memory free, but file caches, which make room.
fill() {
	local at=0 wanted=$((400 << 10))
	exec 7</lab/guest/root0.img # its cache goes with who has it open last
	[ -e /tmp/full ] || taskset -c 0 fallocate -l "$(($(node_kib MemFree) - wanted))K" /tmp/full
	while [ "$(($(node_kib MemFree) * 25))" -ge "$(node_kib MemTotal)" ] && [ "$at" -lt 2000 ]; do
		taskset -c 0 dd if=/lab/guest/root0.img of=/dev/null bs=1M skip="$at" count=50 status=none
		at=$((at + 50))
	done
	echo "$1: $(node_kib MemFree) of $(node_kib MemTotal) KiB of node 0 are free, $(node_kib 'Inactive(file)') in file caches"
	expect "$1: hardly any memory is free where it belongs" 1 "$(($(node_kib MemFree) * 25 < $(node_kib MemTotal)))"
}

# Everything begins on node 1, where only half of it belongs: the cpuset says so, and then no more.
wrong() {
	local before after moved=0 end
	mkdir -p /sys/fs/cgroup/wrong
	echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control
	echo 1 >/sys/fs/cgroup/wrong/cpuset.mems
	# shellcheck disable=SC2016 # of the inner shell
	as_user=(sh -c 'echo $$ >/sys/fs/cgroup/wrong/cgroup.procs; exec "$@"' sh)
	begin wrong private size=64M ms=400000
	as_user=()
	answers wrong
	sleep 3
	before=$(kib_on_nodes "$pid" ram)
	echo "wrong: $(asked wrong "(m['locality'] or 0) * 100") % local at first"
	fill wrong
	echo 0-1 >/sys/fs/cgroup/wrong/cpuset.mems
	end=$((SECONDS + 150))
	until [ "${moved:-0}" -ge $((24 << 10)) ] || [ "$SECONDS" -ge "$end" ]; do
		sleep 1
		moved=$(asked wrong "m['moved_bytes'] >> 10")
	done
	ask wrong 4
	tell wrong
	echo "wrong: after $((SECONDS - begun)) s: $(asked wrong "m['locality'] * 100") % of accesses local, moved $moved KiB"
	after=$(kib_on_nodes "$pid" ram)
	echo "wrong: KiB on nodes 0 to 3: $before before, $after after"
	holds "wrong: nine tenths live with their user" 'own0 + own1 >= 40 << 10 && at_home * 100 >= (own0 + own1) * 90'
	expect "wrong: all on node 1 at first" 1 "$((${before%% *} < 4096))"
	expect "wrong: the kernel finds half on node 0" 1 "$((${after%% *} >= 24 << 10))"
	mirrorball numa wrong --why
	expect "wrong: says why" 1 "$(asked wrong "any(d['why'] == 'migrate' and d['to'] == 0 for d in a['decisions'])")"
	expect "wrong: and of all memory where it stays" 1 \
		"$(asked wrong "sum(r['bytes'] for r in a['ranges']) == sum(a['reasons'].values()) > 0")"
	kill -INT "$pid"
	ended 20
	expect "wrong: status" 130 "$status"
}

# Home is on node 1 for the most part, since node 0 has no memory at all; then it has file caches, which make room: the copy for
# who runs on node 0 is there. $here and $there: KiB of copies on nodes 0 and 1, $of_1: KiB that view 1 has.
crowd() {
	local end i
	mkdir -p more && mount -t tmpfs -o size=100% more more
	echo 3 >/proc/sys/vm/drop_caches
	taskset -c 0 fallocate -l "$(node_kib MemFree)K" more/full
	start crowded --quiet --views 2 --cpus 4 --memory 256M --track on,budget=50 --migrate on --replicas 50% splash readshare size=16M ms=400000
	# Until it has filled its table
	for ((i = 0; i < 600; i++)); do
		[ "$(stat -L -c %b "$(find "/proc/$pid/fd" -lname '*mirrorball-ram*' 2>/dev/null | head -n 1)" 2>/dev/null || echo 0)" -lt $((16 << 11)) ] || break
		sleep 0.1
	done
	umount more
	fill crowded
	echo "crowded: table filled, and caches, after $((SECONDS - begun)) s; guest memory: $(kib_on_nodes "$pid" ram)"
	answers crowded
	end=$((SECONDS + 90))
	until [ "${here:-0}" -ge $((4 << 10)) ] || [ "$SECONDS" -ge "$end" ]; do
		sleep 1
		read -r here there _ < <(kib_on_nodes "$pid" copies)
	done
	# What is just being copied is on its way.
	for ((i = 0; i < 30; i++)); do
		read -r here there _ < <(kib_on_nodes "$pid" copies)
		of_1=$(asked crowded "a['replicas']['view_bytes'][1] >> 10")
		[ "$there" -gt $((of_1 + 1024)) ] || break
		sleep 1
	done
	echo "crowded: $(node_kib MemFree) KiB of node 0 free, copies: $here KiB there, $there on node 1, of view 1: ${of_1:=0}"
	kill -INT "$pid"
	ended 20
	rm /tmp/full
}

# Linux may find memory on node 0 after all, where it needs no copies: once more, then.
crowded() {
	local here=0 there=0 of_1 try
	for try in 1 2 3; do
		crowd
		expect "crowded: no copies where they are not of use, $try" 1 "$((there <= of_1 + 1024))"
		[ "$here" -lt $((4 << 10)) ] || break
	done
	expect "crowded: copies where they are of use" 1 "$((here >= 4 << 10))"
}

# Memory changes its user every few seconds, and is followed some of the time.
phases() {
	begin phases phase size=16M phase_ms=8000 ms=20000
	answers phases
	sleep 15
	echo "phases: moved $(asked phases "m['moved_bytes'] >> 10") KiB in $(asked phases "m['moves']") moves"
	ended_ok phases 60
}

churns() {
	begin churn churn size=32M ms=8000 "seed=$RANDOM"
	answers churn
	sleep 5
	echo "churn: moved $(asked churn "m['moved_bytes'] >> 10") KiB"
	ended_ok churn 60
}

# still NAME SECONDS WORD...: next to nothing moves
still() {
	local name=$1 seconds=$2 moved
	shift 2
	begin "$name" "$@" "ms=$(((seconds + 2) * 1000))"
	answers "$name"
	sleep "$seconds"
	moved=$(asked "$name" "m['moved_bytes'] >> 10")
	echo "$name: moved ${moved:=none} KiB"
	expect "$name: hardly anything moves" 1 "$((moved <= 4096))"
	ended_ok "$name" 60
}

off() {
	start off --quiet "${machine[@]}" --track on,budget=50 --migrate off splash hello ms=4000
	answers off
	expect "--migrate off" 1 "$(asked off "m['state'] == 'switched off'")"
	ended 30
}

for part in wrong crowded phases churns "still shared 10 writeshare size=4M" "still home 6 private size=32M" "still idle 4 hello" off; do
	begun=$SECONDS
	in_lanes "$part"
	echo "$part: $((SECONDS - begun)) s"
done
finish
