#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# More nodes than KVM has views: vCPUs change views by turns, each node's memory is told, it follows its users, and
# nothing is lost meanwhile: checked by splash, and by a stock guest whose vCPUs go and come back.
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
	holds "private: each has some" 'own0 >= 7 << 10 && own1 >= 7 << 10 && own2 >= 7 << 10 && own3 >= 7 << 10'
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

offline() {
	local before
	before=$(changes)
	# shellcheck disable=SC2154 # guests.sh sets $load and $lane
	quick_guest offline cloud-6.12 --cpus 4 --memory 512M --track on,budget=50 --disk "/lab/guest/root$lane.img" <<-END
		$load
		load 25 &
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

private
storm
copied
in_lanes offline
finish
