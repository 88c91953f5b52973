#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The tracker beside a real guest that checks its memory: it finds what is touched, loses nothing however it is
# switched, held or starved, and says in one line what the host denies it.
# tests/run: once
source "$(dirname "$0")/lib.sh"
need_kvm

pids=()
end_all() {
	[ "${#pids[@]}" = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
	wait 2>/dev/null || true
}
cleanups+=(end_all)
# Starts a machine. $1 name, rest: arguments. Sets pid.
begin() {
	local name=$1
	shift
	"${before[@]}" "$MIRRORBALL" run --name "$name" --memory 128M --cpus 2 "$@" </dev/null >"$name.log" 2>&1 &
	pid=$!
	pids+=("$pid")
}
before=()
# Waits for its end. $1 name, $2 status, $3 pattern
ended() {
	local got=0
	n_checks=$((n_checks + 1))
	timeout 60 tail -s 0.1 --pid="$pid" -f /dev/null || kill -KILL "$pid"
	wait "$pid" || got=$?
	out=$(cat "$1.log")
	look "$2" "$3" "$got" "$1"
}
# $1 what, rest: an expression of Python about the answer `a` in $heat
holds() {
	n_checks=$((n_checks + 1))
	python3 - "$heat" "$2" <<-'END' || bad "$1: $2: $(head -c 1500 <<<"$heat")"
		import json, sys
		a = json.loads(sys.argv[1])
		assert eval(sys.argv[2])
	END
}
# Whether it is true.
true_of() { python3 -c 'import json, sys; a = json.loads(sys.argv[1]); sys.exit(not eval(sys.argv[2]))' "$heat" "$1"; }
heat() { heat=$("$here/heat.py" "$@") || bad "heat.py $*"; }

# It finds the table that all read, while somebody watches, and what it costs is within its budget.
begin table --track auto,budget=5 splash readshare size=16M ms=26000
heat "$pid" watch 22
holds "read" 'sum(e["bytes"] for e in a["extents"] if e["read"][0] > 50 and e["confidence"] > 0.3) >= 15 << 20'
holds "hardly written" 'sum(e["bytes"] for e in a["extents"] if (e["write"] or [0])[0] > 50) <= 6 << 20'
holds "whole" 'all(e["bytes"] > 0 and e["gpa"] % 4096 == 0 for e in a["extents"])'
holds "covered" 'a["tracker"]["covered"] > 0.9'
holds "one view" 'len(a["views"]) == len(a["extents"][0]["read"])'
ended table 0 'readshare: ok'

# Off when nobody watches any more; the next one begins with what was known.
begin idle splash hello ms=100000
heat "$pid" watch 3
sleep 0.3
expect 0 'state *off until somebody watches' "$MIRRORBALL" stat idle
heat "$pid" watch 0
holds "goes on" 'a["tracker"]["windows"] > 0 and a["tracker"]["state"] == "on"'
kill -INT "$pid"
ended idle 130 ''

# Always on, and never.
begin always --track on,budget=5 splash writeshare size=4M ms=15000
heat "$pid" watch 9
holds "written" 'not a["tracker"]["writes"] or any(e["write"][0] > 50 for e in a["extents"])'
ended always 0 'writeshare: ok'
begin never --track off splash hello ms=10000
heat "$pid" watch 0
holds "says so" 'not a["ok"] and "--track off" in a["error"]'
ended never 0 'hello: ok'

# On and off 1,000 times, by two who watch, under the torture test.
begin flaps --track auto,budget=50 splash churn size=16M ms=28000
heat "$pid" watch 3 # so that it knows what the guest does by itself, and begins at once from then on
"$here/heat.py" "$pid" flap 500 >/dev/null &
other=$!
heat "$pid" flap 500
wait "$other"
holds "answers" 'a["ok"]'
n_checks=$((n_checks + 1))
[ "$(find "/proc/$pid/fd" -mindepth 1 | wc -l)" -lt 60 ] || bad "descriptors left: $(ls -l "/proc/$pid/fd")"
n_checks=$((n_checks + 1))
[ "$(grep -c mirrorball-ram "/proc/$pid/maps")" -le 4 ] || bad "mappings left: $(cat "/proc/$pid/maps")"
ended flaps 0 'churn: ok'

# As much as it may, under the torture test.
begin most --track on,budget=50 splash churn size=32M ms=12000
heat "$pid" watch 4
ended most 0 'churn: ok'

# Resets with the tracker running, from which memory comes back empty.
begin resets --track on,budget=20 splash fuzz reset=1 ms=100000
sleep 6
kill -INT "$pid"
ended resets 130 'ended by Interrupt after .*, [0-9]+ resets'

# What the host may lack: userfaultfd(2) (nr 323), then the scan of page tables (PAGEMAP_SCAN) as well.
if "$here/without" cap:9999 -- /bin/true; then
	for rules in call:323:1 "call:323:1 ioctl:0xc0606610:25"; do
		# Where others are busy here, once more, for longer.
		reads='any(e["read"][0] > 20 for e in a["extents"])'
		for seconds in "15 9" "75 60"; do
			# shellcheck disable=SC2206 # words
			before=("$here/without" $rules --)
			begin denied --track on,budget=10 splash readshare size=8M ms="${seconds% *}000"
			before=()
			heat "$pid" watch "${seconds#* }"
			ended denied 0 'readshare: ok'
			! true_of "$reads" || break
		done
		holds "without $rules" 'a["ok"] and not a["tracker"]["writes"] and not a["tracker"]["exact"]'
		holds "reads without $rules" "$reads"
		holds "null without $rules" 'all(e["write"] is None for e in a["extents"])'
		n_checks=$((n_checks + 1))
		[ "$(grep -c 'tracker: ' denied.log)" = 2 ] || bad "not said once each: $(cat denied.log)"
	done
fi

# A limit on memory that the guest reaches: whoever the kernel ends, nothing hangs.
group=/sys/fs/cgroup/mirrorball-test-$$
if [ "$(id -u)" = 0 ] && [ -e /sys/fs/cgroup/cgroup.procs ] && mkdir "$group" 2>/dev/null; then
	cleanups+=('rmdir "$group"')
	if echo 48M >"$group/memory.max"; then
		echo 0 >"$group/memory.swap.max" 2>/dev/null || true
		# shellcheck disable=SC2016 # for the inner shell
		before=(sh -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$group")
		begin limited --track on,budget=20 splash touch size=64M
		before=()
		ended limited 137 ''
	fi
fi

# A thread of the machine is killed: that is the end of the process, by the kernel's rule.
begin killed --track on splash churn ms=20000
sleep 1
vcpu=$(grep -l '^vcpu1$' "/proc/$pid/task/"*/comm | sed 's|/comm$||; s|.*/||')
python3 -c 'import ctypes, sys; ctypes.CDLL(None).syscall(234, int(sys.argv[1]), int(sys.argv[2]), 9)' "$pid" "$vcpu"
ended killed 137 ''
finish
