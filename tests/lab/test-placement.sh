#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Which nodes machines are put on: apart from each other, where less runs, in the place of one that was killed, as asked for,
# within a cpuset; and a rebalance, after which memory follows.
# tests/run: alone
. "$(dirname "$0")/guests.sh"

# Of one node's size, nearly: two of them do not fit one node.
large=(--cpus 2 --memory 1200M)

# begin NAME OPTION...: and it answers; $pid
declare -A pid_of
begin() {
	local name=$1 end
	start "$name" --quiet "${@:2}"
	pid_of[$name]=$pid
	end=$((SECONDS + 30))
	until mirrorball stat "$name" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] && kill -0 "$pid" 2>/dev/null || {
			bad "$name: does not answer"
			show "$name"
			return
		}
		sleep 0.3
	done
}

# over NAME...: ends them
over() {
	local name
	for name; do kill -INT "${pid_of[$name]}" 2>/dev/null; done
	for name; do
		timeout 20 tail -s 0.2 --pid="${pid_of[$name]}" -f /dev/null || bad "$name: does not end"
	done
}

# placed NAME: its nodes and why, as it says
placed() {
	mirrorball numa --json "$1" >"$1.numa" 2>>"$1.said" || return
	python3 -c 'import json, sys
p = json.load(open(sys.argv[1]))["placement"]
print(*p["nodes"], "-", p["reason"])' "$1.numa"
}

# on NAME: the nodes only
on() { placed "$1" | sed 's/ - .*//'; }

# cpus NAME THREAD: where a thread may run
cpus() {
	local task
	for task in /proc/"${pid_of[$1]}"/task/*; do
		[ "$(cat "$task/comm")" != "$2" ] || awk '/^Cpus_allowed_list/ { print $2 }' "$task/status"
	done
}

# pages NAME: KiB of its memory on nodes 0 and 1
pages() {
	awk '/mirrorball-ram/ { for (i = 1; i <= NF; i++) if ($i ~ /^N[01]=/) { split($i, a, /[N=]/); if (a[3] * 4 > n[a[2]]) n[a[2]] = a[3] * 4 } }
		END { print n[0] + 0, n[1] + 0 }' "/proc/${pid_of[$1]}/numa_maps"
}

# policy NAME: of its memory
policy() { awk '/mirrorball-ram/ { print $2; exit }' "/proc/${pid_of[$1]}/numa_maps"; }

cpus_of=(0-1 2-3)
registry=/run/mirrorball/placement

# Two that start at once go apart; a third goes to where less runs; the place of one that was killed is free.
apart() {
	local node other pages
	start a --quiet "${large[@]}" splash private size=64M ms=600000
	pid_of[a]=$pid
	begin b --cpus 1 --memory 1200M splash hello ms=600000
	answers_or_bad a
	node=$(on a)
	other=$((1 - node))
	echo "a: $(placed a); b: $(placed b)"
	expect "b: on the other node" "$other" "$(on b)"
	expect "a: its vCPUs" "${cpus_of[node]}" "$(cpus a vcpu1)"
	expect "a: its I/O" "${cpus_of[node]}" "$(cpus a io0)"
	expect "b: its vCPUs" "${cpus_of[other]}" "$(cpus b vcpu0)"
	expect "a: its memory's policy" "prefer:$node" "$(policy a)"
	sleep 3
	pages=$(pages a)
	echo "a: KiB on nodes 0 and 1: $pages"
	expect "a: its memory is there" 1 "$(awk -v n="$node" '{ print ($(n + 1) > 60000 && $(2 - n) < 1000) }' <<<"$pages")"
	expect "two records" 2 "$(find "$registry" -type f ! -name lock | wc -l)"
	sleep 12 # a look
	grep -h . "$registry"/* | sort -u
	begin c --cpus 1 --memory 64M splash hello ms=600000
	echo "c: $(placed c)"
	expect "c: where less runs" "$other" "$(on c)"
	kill -KILL "${pid_of[b]}"
	timeout 5 tail -s 0.1 --pid="${pid_of[b]}" -f /dev/null
	begin d "${large[@]}" splash hello ms=600000
	echo "d: $(placed d)"
	expect "d: in the place of the one that was killed" "$other" "$(on d)"
	over a c d
	sleep 11
	begin e --cpus 1 --memory 64M splash hello ms=600000
	expect "what the killed one left is removed" 1 "$(find "$registry" -type f ! -name lock | wc -l)"
	over e
}

answers_or_bad() {
	for ((i = 0; i < 60; i++)); do
		! mirrorball stat "$1" >/dev/null 2>&1 || return 0
		sleep 0.3
	done
	bad "$1: does not answer"
}

asked_for() {
	local pages
	begin one "${large[@]}" --placement nodes=1 splash private size=32M ms=600000
	expect "nodes=1" "1 - asked for" "$(placed one)"
	expect "nodes=1: its vCPUs" 2-3 "$(cpus one vcpu0)"
	begin all --cpus 2 --memory 256M --placement spread splash private size=32M ms=600000
	expect "spread" "0 1 - spread over all nodes, as asked for" "$(placed all)"
	expect "spread: its vCPUs" 0-3 "$(cpus all vcpu0)"
	expect "spread: its memory's policy" interleave:0-1 "$(policy all)"
	sleep 3
	pages=$(pages all)
	echo "spread: KiB on nodes 0 and 1: $pages"
	expect "spread: its memory" 1 "$(awk '{ print ($1 > 12000 && $2 > 12000) }' <<<"$pages")"
	begin none --cpus 2 --memory 256M --placement none splash hello ms=600000
	expect "none" "0 1 - not placed, as asked for" "$(placed none)"
	expect "none: its vCPUs" 0-3 "$(cpus none vcpu0)"
	expect "none: its memory's policy" local "$(policy none)"
	over one all none
	mirrorball run --placement nodes=1,7 splash hello >nodes.out 2>&1
	expect "nodes=1,7: status" 1 $?
	expect_match "nodes=1,7" 'may not use a node 7 of this host; it may use 0 and 1' nodes.out
	begin four --cpus 4 --memory 256M splash hello ms=600000
	expect "as many vCPUs as CPUs" "0 1 - all nodes, for its vCPUs" "$(placed four)"
	over four
}

# Where there is no registry to be had, or somebody keeps its lock, machines run all the same, and one line says why.
without() {
	local holder
	flock "$registry/lock" sleep 100 &
	holder=$!
	sleep 0.5
	begin locked --cpus 1 --memory 64M splash hello ms=600000
	expect_match "lock held: says so" 'does not let go of the registry.s lock' locked.err
	expect "lock held: is known all the same" 1 "$(find "$registry" -type f ! -name lock | wc -l)"
	pkill -P "$holder"
	over locked
	mv "$registry" "$registry.away"
	: >"$registry"
	begin none --cpus 1 --memory 64M splash hello ms=600000
	expect_match "no directory: says so" 'runs, but other machines do not know .*placement: Not a directory' none.err
	expect "no directory: is placed" 1 "$(placed none | grep -c 'the fewest nodes that hold it')"
	over none
	rm "$registry"
	mv "$registry.away" "$registry"
	mount -t tmpfs -o size=4k,mode=700 tmpfs /run/mirrorball
	head -c 4096 /dev/zero >/run/mirrorball/full
	begin full --cpus 1 --memory 64M splash hello ms=600000
	expect_match "full disk: says so" 'runs, but other machines do not know .*: No space left' full.err
	expect "full disk: once" 1 "$(wc -l <full.err)"
	over full
	umount /run/mirrorball
}

# in_cpuset MEMS CPUS COMMAND...
in_cpuset() {
	mkdir -p /sys/fs/cgroup/place
	echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control
	echo "$1" >/sys/fs/cgroup/place/cpuset.mems
	echo "$2" >/sys/fs/cgroup/place/cpuset.cpus
	# shellcheck disable=SC2016 # of the inner shell
	as_user=(sh -c 'echo $$ >/sys/fs/cgroup/place/cgroup.procs; exec "$@"' sh)
	"${@:3}"
	as_user=()
}

cpuset() {
	in_cpuset 1 2-3 begin inside "${large[@]}" splash hello ms=600000
	expect "cpuset of node 1" "1 - the only node with CPUs" "$(placed inside)"
	expect "cpuset of node 1: its vCPUs" 2-3 "$(cpus inside vcpu0)"
	over inside
	in_cpuset 0-1 2-3 begin cpus --cpus 2 --memory 256M splash hello ms=600000
	expect "cpuset of node 1's CPUs" 1 "$(on cpus)"
	over cpus
	# Memory of one node, CPUs of both: what fits it is put there.
	in_cpuset 1 0-3 begin mems --cpus 2 --memory 256M splash hello ms=600000
	expect "cpuset of node 1's memory" 1 "$(on mems)"
	over mems
	in_cpuset 1 2-3 start refused --quiet --placement nodes=0 splash hello
	ended 20
	expect "cpuset: nodes=0" 1 "$status"
	expect_match "cpuset: nodes=0 says what there is" 'may not use a node 0 of this host; it may use 1' refused.err
}

# Hogs on a machine's node: its vCPU leaves, and its memory follows. This shell keeps off the other node.
rebalance() {
	local node other hogs=() pages end
	begin moves --cpus 1 --memory 256M --track auto,budget=50 splash private size=32M ms=600000
	echo "moves: $(placed moves)"
	node=$(on moves)
	other=$((1 - node))
	taskset -pc "${cpus_of[node]}" $$ >/dev/null
	sleep 5
	echo "moves: KiB on nodes 0 and 1 at first: $(pages moves)"
	for _ in 1 2 3 4; do
		sh -c 'while :; do :; done' &
		hogs+=($!)
	done
	begun=$SECONDS
	if await moves.err 'moved 1 vCPUs' 120; then
		ok "moves: leaves an overloaded node, after $((SECONDS - begun)) s"
	else
		bad "moves: stays on an overloaded node"
		grep -h . "$registry"/* | sort -u
		cat "/proc/${pid_of[moves]}"/task/*/schedstat
	fi
	kill "${hogs[@]}"
	wait "${hogs[@]}" 2>/dev/null
	taskset -pc 0-3 $$ >/dev/null
	cat moves.err
	expect "moves: says so" "$other" "$(on moves)"
	expect "moves: its vCPU" "${cpus_of[other]}" "$(cpus moves vcpu0)"
	expect "moves: its I/O" "${cpus_of[other]}" "$(cpus moves io0)"
	expect "moves: its memory's policy" "prefer:$other" "$(policy moves)"
	end=$((SECONDS + 60))
	until pages=$(pages moves) && awk -v n="$other" '{ exit !($(n + 1) > 9 * $(2 - n)) }' <<<"$pages"; do
		[ "$SECONDS" -lt "$end" ] || break
		sleep 1
	done
	echo "moves: KiB on nodes 0 and 1, $((SECONDS - begun)) s after the hogs came: $pages"
	expect "moves: nine tenths of its memory follow" 1 "$(awk -v n="$other" '{ print ($(n + 1) > 9 * $(2 - n)) }' <<<"$pages")"
	mirrorball numa moves >moves.text
	cat moves.text
	expect_match "moves: numa says so" "^rebalanced +after .* from node $node .* to $other" moves.text
	over moves
}

for part in apart asked_for without cpuset rebalance; do
	begun=$SECONDS
	"$part"
	echo "$part: $((SECONDS - begun)) s"
done
finish
