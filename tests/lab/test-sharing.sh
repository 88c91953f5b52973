#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What stock guests have read of one root disk is in memory once: each finds what the disk has, whatever the other one writes,
# with one view and with two, while the daemon is killed, and after a reboot. And it takes less memory.
# tests/run: last 120
. "$(dirname "$0")/guests.sh"

base=/lab/guest/root0.img

# sum: of what a guest reads much of; and in another one without sharing it is the same
reads='(cd / && find usr/bin usr/lib/x86_64-linux-gnu usr/lib/python3* -xdev -type f | sort | xargs sha256sum) | sha256sum | cut -c 1-64'

# sharing NAME KEY: of its answer
sharing() { mirrorball stat "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["sharing"][sys.argv[1]])' "$2"; }

# ram_kib PID: that the host has for guest memory
ram_kib() {
	local fd
	for fd in /proc/"$1"/fd/*; do
		[[ $(readlink "$fd") != /memfd:mirrorball-ram* ]] || { stat -L -c %b "$fd" | awk '{ print $1 / 2 }'; return; }
	done
}

look() { # NAME: once its script waits
	local shared n=0
	await "$1.out" 'READY' 400 || bad "$1: not ready"
	until shared=$(sharing "$1" shared_bytes) && [ "$shared" -gt 20000000 ] || ((++n > 20)); do sleep 1; done
	mirrorball stat "$1" | sed -n '/^sharing/,$p'
	echo "$1: $(ram_kib "$pid") KiB of memory of its own; RssFile, RssShmem: $(awk '/^Rss(File|Shmem)/ { print $2 }' "/proc/$pid/status" | tr '\n' ' ')"
	[ "$1" = alone ] || expect "$1: shares" 1 $((shared > 20000000))
	touch "$1.seen"
	printf '\n' >&"$keys"
}

guest() { # NAME OPTION...
	local name=$1
	shift
	(
		when_up=look
		quick_guest "$name" cloud-6.12 --memory 384M "$@" <<-END
			$load
			sum=\$($reads)
			echo "SUM \$sum"
			echo READY >/dev/console
			read -r _ </dev/console
			check "reads the same again" same "\$sum" "\$($reads)"
			load 5
			for i in 1 2 3; do
				head -c 3000000 /dev/urandom >/root/f.\$i
				cp /usr/bin/* /tmp && rm -f /tmp/[a-z]*
				sed -i "s/e/E/" /usr/share/common-licenses/* 2>/dev/null
			done
			echo 3 >/proc/sys/vm/drop_caches
			check "and once more" same "\$sum" "\$($reads)"
			quiet_kernel
		END
	)
	tr -d '\r' <"$name.out" | sed -n 's/^SUM //p' >"$name.sum"
}

alone() { guest alone --cpus 1 --disk "$base,cow=memory" --share off; }
one() { guest one --cpus 1 --disk "$base,cow=memory"; }
two() { guest two --cpus 2 --views 2 --placement nodes=0-1 --disk "$base,overlay=/scratch/two.qcow2"; }

one &
two
wait
alone
mirrorballd --stat
expect "one found what two found" "$(cat alone.sum)" "$(cat one.sum)"
expect "and two" "$(cat alone.sum)" "$(cat two.sum)"
finish
