#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The tracker under real nested paging, on two nodes: how many views it has, what it says of programs whose use of
# memory is known, guests that check themselves under it, huge pages that stay, and what it asks of KVM.
# tests/run: alone
lab_options=(--in "$(dirname "$0")/tracker.sh" --in "$(dirname "$0")/../kvm/heat.py")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# ---- views

# chooses WHAT CHOICE OPTION...: how many views, whether memory migrates, whether it is copied and into how many MiB at most
chooses() {
	local what=$1 wanted=$2
	shift 2
	start views --quiet --memory 256M "$@" splash hello ms=60000
	answers views
	expect "$what" "$wanted" "$(python3 - views.stat <<-'END'
		import json, sys
		m = json.load(open(sys.argv[1]))
		copies = m["replicas"]
		print(m["views"], m["migration"]["state"], copies["state"], copies.get("max_bytes", 0) >> 20, sep=", ")
	END
	)"
	kill -INT "$pid"
	ended 20
	rm views.stat
}

# in_cgroup NAME FILE=VALUE...: as_user
in_cgroup() {
	local group=/sys/fs/cgroup/$1 setting
	shift
	mkdir -p "$group"
	for setting; do echo "${setting#*=}" >"$group/${setting%%=*}"; done
	# shellcheck disable=SC2016 # of the inner shell
	as_user=(sh -c 'echo $$ >'"$group"'/cgroup.procs; exec "$@"' sh)
}

views() {
	local one="off with all vCPUs on one node, off, 0"
	chooses "by itself" "2, on, on, 64" --cpus 4
	chooses "two vCPUs" "1, $one" --cpus 2
	chooses "one vCPU, tracked" "1, on, off with one view, 0" --cpus 1 --track on
	chooses "tracked" "2, on, on, 64" --cpus 4 --track on,budget=50
	chooses "no copies" "2, on, off, 0" --cpus 4 --replicas off
	chooses "no migration" "1, switched off, off, 0" --cpus 4 --migrate off
	chooses "not tracked" "1, off with --track off, off, 0" --cpus 4 --track off
	chooses "not placed" "1, off with --placement none or spread, without --track on, off, 0" --cpus 4 --placement none
	as_user=(taskset -c 2-3)
	chooses "CPUs of one node" "1, $one" --cpus 4
	echo +cpuset +memory >/sys/fs/cgroup/cgroup.subtree_control
	in_cgroup one "cpuset.cpus=$(cat /sys/devices/system/node/node1/cpulist)" cpuset.mems=1
	chooses "a cpuset of one node" "1, $one" --cpus 4
	in_cgroup enough memory.max=$((256 + 16 + 64 + 32 << 20))
	chooses "a cgroup with room for copies" "2, on, on, 64" --cpus 4
	in_cgroup little memory.max=$((256 + 16 + 1 << 20))
	chooses "a cgroup without" "2, on, off: no memory is left for them, 0" --cpus 4
	chooses "a cgroup without, and told to" "2, on, on, 128" --cpus 4 --replicas 128M
	as_user=()
}

# ---- who uses what

private() {
	told private 22 private size=64M
	holds "private: most of the 64 MiB is hot" 'hot >= 56 << 10'
	holds "private: of one view each" '(own0 + own1) * 100 >= hot * 80'
	holds "private: both have some" 'own0 >= 20 << 10 && own1 >= 20 << 10'
	holds "private: lives with its user" 'at_home * 100 >= (own0 + own1) * 95'
}

readshare() {
	told readshare 22 readshare size=16M
	holds "readshare: the table is read by both" 'read_both >= 13 << 10'
	holds "readshare: and not written" 'written <= 4 << 10'
	holds "readshare: nodes are known" 'nodeless == 0'
}

writeshare() {
	told writeshare 22 writeshare size=4M
	holds "writeshare: written by both" 'written_both >= 3 << 10'
	holds "writeshare: hardly anything else" 'read_both + own0 + own1 <= 3 << 10'
}

# ---- torture

# flaps NAME: until the machine ends the tracker stops and starts, since somebody looks for a moment or for a second
flaps() {
	local looks=0
	answers "$1"
	while kill -0 "$pid" && /in/heat.py "$pid" flap 5 >"$1.flap"; do
		looks=$((looks + 5))
		mv "$1.flap" "$1.heat"
		kill -0 "$pid" && /in/heat.py "$pid" watch 1 >"$1.flap" || break
		looks=$((looks + 1))
		mv "$1.flap" "$1.heat"
	done 2>"$1.said"
	sleep 1
	! kill -0 "$pid" 2>/dev/null || { bad "$1: heat: $(tail -n 1 "$1.said")"; kill -INT "$pid"; }
	tell "$1"
	echo "$1: switched on and off $looks times" # as often as this host can
}

churns() {
	local setting=/sys/kernel/mm/transparent_hugepage/shmem_enabled before pages what track
	before=$(sed 's/.*\[\(.*\)].*/\1/' "$setting")
	for what in huge small; do
		pages=$before
		[ $what = huge ] || pages=deny
		echo "$pages" >"$setting"
		track=on,budget=50
		begin "churn-$what" churn size=32M ms=9000 "seed=$RANDOM"
		ask "churn-$what" 8
		tell "churn-$what"
		ended_ok "churn-$what" 90
		track=auto,budget=50
		begin "flaps-$what" churn size=32M ms=10000 "seed=$RANDOM"
		flaps "flaps-$what"
		ended_ok "flaps-$what" 90
	done
	echo "$before" >"$setting"
}

# Memory is thrown away and comes back empty, again and again.
resets() {
	begin resets fuzz reset=1 ms=100000 "seed=$RANDOM"
	ask resets 6
	tell resets
	expect "resets: still runs" running "$(mirrorball stat --json resets | sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' | head -n 1)"
	kill -INT "$pid"
	ended 30
	expect "resets: status" 130 "$status"
}

# ---- what it asks of KVM

flushes() { cat /sys/kernel/debug/kvm/remote_tlb_flush_requests; }

# rate NAME OPTION...: the same for any number of vCPUs and any size
rate() {
	local name=$1 before after
	shift
	machine=("$@")
	begin "$name" private size=64M ms=11000
	sleep 3
	before=$(flushes)
	ask "$name" 6
	after=$(flushes)
	tell "$name"
	echo "$name: KVM counts $(((after - before) / 6)) flushes a second"
	holds "$name: zaps a second" 'windows > 0 && zaps <= 220'
	expect "$name: flushes a second" 1 "$(((after - before) / 6 <= 440))"
	ended_ok "$name" 60
}

rates() {
	rate cpus1 --cpus 1 --memory 256M
	rate cpus8 --cpus 8 --memory 256M
	rate large --cpus 8 --memory 64G --memory-overcommit
}

# ---- a limit on memory

# Whoever the kernel ends, nothing hangs.
limited() {
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control
	in_cgroup limited memory.max=96M
	begin limited private size=192M ms=5000
	ended 60
	echo "limited: status $status, $(grep oom_kill /sys/fs/cgroup/limited/memory.events | xargs)"
	expect "limited: status" 137 "$status"
}

# One at a time: a second one would take the first one's time.
[ $# -gt 0 ] || set -- views private readshare writeshare churns resets rates limited
for part; do
	begun=$SECONDS
	in_lanes "$part"
	echo "$part: $((SECONDS - begun)) s"
done
finish
