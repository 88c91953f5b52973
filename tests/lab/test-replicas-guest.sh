#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A stock guest on two nodes whose memory gets copies as the policy says, from its first instruction to its last: what it computes,
# reads and writes with DMA is right, also after a vCPU was away.
lab_options=(--in "$(dirname "$0")/tracker.sh")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# tell_replicas NAME: as far as its script has come
tell_replicas() {
	await "$1.out" '^LOADED' "$run_seconds" || bad "$1: comes so far"
	mirrorball numa --json "$1" >"$1.numa" || bad "$1: mirrorball numa"
	python3 -c "import json, sys; a = json.load(open(sys.argv[1])); print(a['replicas'], a['migration']['moved_bytes'])" "$1.numa"
	expect "$1: copies were made, and written" 1 \
		"$(python3 -c "import json, sys; r = json.load(open(sys.argv[1]))['replicas']; print(int(r['copied_bytes'] > 0 and r['faults'] > 0))" "$1.numa")"
}

copies() {
	when_up=tell_replicas stock copies cloud-6.12 4 256 --views 2 --track on,budget=20 --replicas 200% <<-'END'
		head -c 6M /dev/urandom >/tmp/made
		want=$(sha256sum </tmp/made)
		worker() {
			local round
			for round in 1 2; do
				dd if=/tmp/made of=/root/file$1 bs=256k oflag=direct status=none
				same "$want" "$(dd if=/root/file$1 bs=256k iflag=direct status=none | sha256sum)" || return
				same "$want" "$(gzip -1 </tmp/made | gzip -d | sha256sum)" || return
			done
		}
		for cpu in 0 1 2 3; do
			{ taskset -p -c $cpu $BASHPID >/dev/null; worker $cpu; } &
			workers[cpu]=$!
		done
		for cpu in 0 1 2 3; do check "vCPU $cpu: what it wrote and read" wait ${workers[cpu]}; done
		echo LOADED
		sleep 3
		echo 0 >/sys/devices/system/cpu/cpu3/online
		check "vCPU 3 comes back" bash -c 'echo 1 >/sys/devices/system/cpu/cpu3/online'
		check "and computes" same "$want" "$(taskset -c 3 sha256sum </tmp/made)"
	END
}

in_lanes copies
finish
