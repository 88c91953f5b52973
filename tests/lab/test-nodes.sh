#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# More nodes than KVM has views: vCPUs change views by turns, each node's memory is told, it follows its users, and
# nothing is lost meanwhile: checked by splash, and by a stock guest whose vCPUs go and come back. And a view that leaves a
# node has its copies where it goes.
# tests/run: alone
lab_options=(--nodes 4 --cpus-per-node 1 --memory-per-node 640M --in "$(dirname "$0")/tracker.sh")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

trace_views
changes() { grep -c 'entering SMM' "$trace/trace"; }

private() {
	machine=(--cpus 4 --memory 256M)
	told private 30 private size=48M
	holds "private: most of the 48 MiB is hot" 'hot >= 40 << 10'
	holds "private: of one node each" '(own0 + own1 + own2 + own3) * 100 >= hot * 80'
	holds "private: each has some" 'own0 >= 4 << 10 && own1 >= 4 << 10 && own2 >= 4 << 10 && own3 >= 4 << 10'
	holds "private: lives with its user" 'at_home * 100 >= (own0 + own1 + own2 + own3) * 90'
	expect "private: views that KVM has" 2 "$(python3 -c 'import json; print(json.load(open("private.stat"))["views"])')"
}

# Memory is moved about, and who writes what changes, under vCPUs that change views.
storm() {
	local before
	before=$(changes)
	machine=(--cpus 4 --memory 256M --migrate storm)
	begin storm churn size=48M ms=20000
	answers storm
	ended_ok storm 90
	expect "storm: vCPUs change views" 1 $(($(changes) - before >= 2))
}

# Copies belong to views: nobody changes.
copied() {
	local before
	machine=(--cpus 4 --memory 256M --replicas 50%)
	begin copied readshare size=16M ms=12000
	answers copied
	sleep 1
	before=$(changes)
	ended_ok copied 60
	expect "copied: vCPUs stay in their views" 0 $(($(changes) - before))
}

# look_at_copies FILE...: into kib, as the kernel tells: those that are mapped on nodes 0 to 3, and all in these files
look_at_copies() {
	read -ra kib < <(
		kib_on_nodes "$pid" copies | tr '\n' ' '
		stat -L -c %b "$@" | awk '{ n += $1 / 2 } END { print n + 0 }'
	)
}

# copies_left FROM TO: there are some on TO and none on FROM. The tracker takes pages out of page tables, where nobody tells
# their node: what counts is a look that finds nearly all of them mapped.
copies_left() {
	((kib[$1] == 0 && kib[$2] >= 1024 && (kib[0] + kib[1] + kib[2] + kib[3]) * 10 >= kib[4] * 9))
}

# Hogs on a node of a view that has copies there: it leaves, all copies are given back, and its new ones are where it runs.
leaves() {
	local task comm on=() free=(0 1 2 3) others=() files kib=() hogs=() from='' to node end
	machine=(--cpus 2 --memory 64M --replicas "100%")
	begin leaves readshare size=16M ms=900000
	answers leaves
	for task in /proc/"$pid"/task/*; do
		read -r comm 2>/dev/null <"$task/comm" || continue
		case $comm in
		vcpu*) on+=("$(awk '/^Cpus_allowed_list/ { print $2 }' "$task/status")") ;;
		io*) ;;
		*) others+=("${task##*/}") ;;
		esac
	done
	for node in "${on[@]}"; do unset "free[$node]"; done
	free=("${free[@]}")
	expect "leaves: runs on two nodes of one CPU each" "2 2" "${#on[@]} ${#free[@]}"
	mapfile -t files < <(find "/proc/$pid/fd" -lname '*mirrorball-copies*')
	# A view goes to an idle node only, so what else runs here keeps to the other one.
	for task in "${others[@]}" $$; do taskset -pc "${free[0]}" "$task"; done >/dev/null 2>&1
	end=$((SECONDS + 180))
	until [ -n "$from" ] || [ "$SECONDS" -ge "$end" ]; do
		sleep 1
		look_at_copies "${files[@]}"
		for node in "${on[@]}"; do [ "${kib[node]}" -lt 1024 ] || from=$node; done
	done
	echo "leaves: KiB of copies on each node, and all, after $((SECONDS - begun)) s: ${kib[*]}"
	expect "leaves: a view on nodes ${on[*]} has copies there, and there are none elsewhere" "1 0 0" \
		"${from:+1} ${kib[free[0]]} ${kib[free[1]]}"
	for _ in 1 2 3; do
		taskset -c "${from:-${on[0]}}" sh -c 'while :; do :; done' &
		hogs+=($!)
	done
	await leaves.err 'moved 1 vCPUs' 300 || bad "leaves: stays on an overloaded node"
	kill "${hogs[@]}"
	wait "${hogs[@]}" 2>/dev/null
	for task in "${others[@]}" $$; do taskset -pc 0-3 "$task"; done >/dev/null 2>&1
	cat leaves.err
	to=$(sed -n 's/.* from node '"$from"', .* to node \([0-3]\): .*/\1/p' leaves.err)
	expect "leaves: node $from, for one of nodes ${free[*]}" 1 "$(grep -cx "[${free[0]}${free[1]}]" <<<"$to")"
	echo "leaves: gone after $((SECONDS - begun)) s"
	end=$((SECONDS + 120))
	until look_at_copies "${files[@]}" && copies_left "${from:-0}" "${to:-0}" || [ "$SECONDS" -ge "$end" ]; do
		sleep 0.5
	done
	echo "leaves: KiB of copies on each node, and all, after $((SECONDS - begun)) s: ${kib[*]}"
	expect "leaves: copies on node $to, none on node $from" 0 "$(copies_left "${from:-0}" "${to:-0}"; echo $?)"
	kill -INT "$pid"
	ended 60
}

offline() {
	local before
	before=$(changes)
	# shellcheck disable=SC2154 # guests.sh sets $load and $lane
	quick_guest offline cloud-6.12 --cpus 4 --memory 512M --track on,budget=50 --disk "/lab/guest/root$lane.img" <<-END
		$load
		load 25 &
		until [ "\$(grep -c vCPU /tmp/load.on 2>/dev/null)" = 4 ] || [ \$((tries = \${tries:-0} + 1)) -gt 100 ]; do sleep 0.1; done
		for round in 1 2; do
			for cpu in 1 2 3; do
				online=/sys/devices/system/cpu/cpu\$cpu/online
				echo 0 >\$online && sleep 1 && echo 1 >\$online && sleep 1 || echo "\$cpu" >>/tmp/stays
			done
		done
		wait
		check "vCPUs leave and come back" test ! -e /tmp/stays
		check "all vCPUs are back" same 4 "\$(nproc)"
		quiet_kernel
	END
	expect "offline: vCPUs changed views" 1 $(($(changes) - before >= 4))
}

for part in private storm copied leaves "in_lanes offline"; do
	begun=$SECONDS
	$part
	echo "$part: $((SECONDS - begun)) s"
done
finish
