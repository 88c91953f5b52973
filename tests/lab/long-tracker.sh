#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The tracker beside a stock guest that resets itself, takes CPUs offline, fills its memory, is idle and busy: five
# minutes, so that tests/run leaves it out.
lab_options=(--in "$(dirname "$0")/tracker.sh" --in "$(dirname "$0")/../kvm/heat.py")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# ratios NAME: samples until the guest says END; the least share of huge pages that is mapped as such, in percent
ratios() {
	local end=$((SECONDS + 120)) all mapped share least=1000 n=0
	until grep -aq "^$2" "$1.out" || [ "$SECONDS" -ge "$end" ]; do
		read -r all mapped < <(awk '/^ShmemHugePages/ { a = $2 } /^ShmemPmdMapped/ { m = $2 }
			END { print a, m }' /proc/meminfo)
		share=$((mapped * 1000 / all))
		[ "$share" -ge "$least" ] || least=$share
		n=$((n + 1))
		sleep 1
	done
	echo "$1, $3: of $((all >> 10)) MiB in huge pages at least $((least / 10)).$((least % 10)) % mapped so, in $n looks"
	expect "$1, $3: huge pages stay" 1 "$((n >= 4 && least >= 950))"
	expect "$1, $3: most memory is in huge pages" 1 "$((all > 700 << 10))"
}

look() {
	await "$1.out" '^FILLED' "$((boot_seconds + run_seconds))" || { bad "$1: fills its memory"; return; }
	ratios "$1" BUSY idle
	mirrorball stat --json "$1" >"$1.stat"
	ratios "$1" DONE busy
	ask "$1" 2
	tell "$1"
	holds "$1: heat" 'hot > 0 && windows > 50'
}

# The budget is what lets it boot in time: KVM repeats a fault while a translation is being dropped, which takes long
# in the lab, and nobody counts that. With 50 some boots take minutes.
stock_guest() {
	lane=0 reboots=1 when_up=look guest stock cloud-6.1 --views 2 --cpus 4 --memory 1G --track on,budget=10 \
		--disk /lab/guest/root0.img <<-'END'
		if [ ! -e /written ]; then
			touch /written
			sync
			check "reboots" systemctl --no-block reboot
			sleep 1000
		fi
		check "systemd is content" same running "$(systemctl is-system-running --wait)"
		for cpu in 1 3; do
			online=/sys/devices/system/cpu/cpu$cpu/online
			check "vCPU $cpu leaves" tee $online <<<0
			sleep 1
			check "vCPU $cpu comes back" tee $online <<<1
		done
		check "all vCPUs are back" same 4 "$(nproc)"
		mount -t tmpfs -o size=100% fill /mnt
		head -c 8M /dev/urandom >/mnt/piece
		sum=$(sha256sum </mnt/piece)
		head -c 750M /dev/zero >/mnt/fill
		echo; echo FILLED
		sleep 10
		echo; echo BUSY
		until=$((SECONDS + 10))
		for i in 1 2 3 4; do
			while [ $SECONDS -lt $until ]; do cat /mnt/fill >/dev/null; done &
		done
		wait
		echo; echo DONE
		check "what it wrote" same "$sum" "$(sha256sum </mnt/piece)"
		quiet_kernel
	END
}

stock_guest
finish
