#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A stock guest on two nodes whose memory gets copies as the policy says, from its first instruction to its last: what it computes,
# reads and writes with DMA is right, also after a vCPU was away,
# another kernel took over, and the machine was reset. The map shows what got them; a picture of it is left in $LAB_OUT.
# tests/run: alone
lab_options=(--in "$(dirname "$0")/tracker.sh" --in "$(dirname "$0")/copied-what")
. "$(dirname "$0")/guests.sh"
# shellcheck source=tests/lab/tracker.sh
. /in/tracker.sh

# replicas NAME: what the machine says of them; $has: whether there are copies, and whether some were written so far
replicas() {
	mirrorball numa --json "$1" >"$1.numa" || bad "$1: mirrorball numa"
	has=$(python3 -c "import json, sys; r = json.load(open(sys.argv[1]))['replicas']; print(int(r['bytes'] > 0), int(r['faults'] > 0), r)" "$1.numa")
}

# look NAME: at the map, and what of the guest has copies; whether that is of each kind
look() {
	mirrorball heat --json --seconds 3 --interval 0.5 "$1" >"$1.heat" || bad "$1: mirrorball heat --json"
	tell=$(/in/copied-what "$1.heat" "$1.out")
	grep -Eq '\bcode=[1-9]' <<<"$tell" && grep -Eq '\b(rodata|cache)=[1-9]' <<<"$tell"
}

# tell_map NAME: what the map shows, and what of the guest that is, within two minutes
tell_map() {
	local tell end=$((SECONDS + 120))
	until look "$1" || [ "$SECONDS" -ge "$end" ]; do :; done
	mirrorball heat --once --seconds 1 "$1" >"$1.map" || bad "$1: mirrorball heat --once"
	cat "$1.map"
	echo "$1: $tell"
	holds "$1: the kernel's code got copies" 'code > 0'
	holds "$1: and more that is only read" 'rodata + cache > 0'
	expect_match "$1: the map tells how much" '\+ has copies: [1-9]' "$1.map"
	expect_match "$1: and where" '^ lives on .*\+' "$1.map"
}

# tell_replicas NAME: as far as its script has come
tell_replicas() {
	local has record
	mirrorball heat "$1" --svg "$LAB_OUT/$1.svg" --seconds 800 --interval 2 &
	record=$!
	await "$1.out" '^LOADED' "$run_seconds" || bad "$1: comes so far"
	tell_map "$1"
	kill "$record" && wait "$record" # the picture ends there
	replicas "$1"
	echo "$1: ${has#* }"
	expect "$1: there are copies as another kernel takes over" 1 "${has%% *}"
	printf '\n' >&"$keys"
	await "$1.out" '^SECOND' "$boot_seconds" || bad "$1: the second kernel"
	replicas "$1"
	echo "$1: ${has#* }"
	expect "$1: and copies were written" 1 "$(cut -d ' ' -f 2 <<<"$has")"
}

# The first kernel's script, then that of the one that it loads, then the first one's again after a reset.
copies() {
	local kernel=/lab/guest/vmlinuz-cloud-6.12 initrd=/lab/guest/initrd-cloud-6.12
	boot_seconds=500 run_seconds=900 reboots=1 when_up=tell_replicas quick_guest copies cloud-6.12 --cpus 4 --memory 256M --views 2 \
		--track on,budget=20 --replicas 200% --disk "/lab/guest/root$lane.img" \
		--disk "$(padded $kernel),ro" --disk "$(padded $initrd),ro" <<-END
		want=\$(cat /root/want 2>/dev/null)
		rounds="1 2"
		worker() {
			local round
			for round in \$rounds; do
				dd if=/root/made of=/root/file\$1 bs=256k oflag=direct status=none
				same "\$want" "\$(dd if=/root/file\$1 bs=256k iflag=direct status=none | sha256sum)" || return
				same "\$want" "\$(gzip -1 </root/made | gzip -d | sha256sum)" || return
			done
		}
		all_compute() { # WHEN
			local cpu workers=()
			for cpu in 0 1 2 3; do
				{ taskset -p -c \$cpu \$BASHPID >/dev/null; worker \$cpu; } &
				workers[cpu]=\$!
			done
			for cpu in 0 1 2 3; do check "vCPU \$cpu: what it wrote and read\$1" wait \${workers[cpu]}; done
		}
		first_kernel() {
		head -c 6M /dev/urandom >/root/made
		want=\$(sha256sum </root/made)
		all_compute
		echo 0 >/sys/devices/system/cpu/cpu3/online
		check "vCPU 3 comes back" bash -c 'echo 1 >/sys/devices/system/cpu/cpu3/online'
		check "and computes" same "\$want" "\$(taskset -c 3 sha256sum </root/made)"
		echo "\$want" >/root/want
		{
			echo '#!/bin/bash'
			echo 'export PATH=/usr/sbin:/usr/bin HOME=/root; ln -s /proc/self/fd /dev/fd; mount -t tmpfs tmp /tmp'
			declare -p want
			echo 'rounds=1'
			declare -f check same quiet_kernel worker all_compute
			cat <<'SECOND'
		failed=0
		check "all vCPUs are there, after kexec" same 4 "\$(nproc)"
		all_compute ", after kexec"
		quiet_kernel
		echo SECOND
		sleep 3
		sync
		reboot -f
		SECOND
		} >/root/second
		chmod 755 /root/second
		head -c $(stat -c %s $kernel) /dev/vdb >/run/vmlinuz
		head -c $(stat -c %s $initrd) /dev/vdc >/run/initrd
		check "loads the next kernel" kexec_load init=/root/second
		sync
		grep Kernel /proc/iomem
		od -An -v -t u8 -w8 /proc/kpageflags | awk '
			function has(bit) { return int(\$1 / 2 ^ bit) % 2 }
			{ printf has(10) ? "b" : has(7) ? "s" : has(26) ? "t" : has(12) ? "a" : has(5) ? "f" : "." }' |
			gzip -9 | base64 | sed 's/^/PAGES /'
		for cpu in 0 1 2 3; do
			(taskset -p -c \$cpu \$BASHPID >/dev/null; while :; do sha256sum </root/made >/dev/null; done) &
		done
		echo LOADED
		read -r _
		kexec_now
		}
		if [ -n "\$want" ]; then
			rounds=1
			all_compute ", after a reset"
			quiet_kernel
		else
			first_kernel
		fi
	END
	expect_match "copies: comes to the end" '^ok: vCPU 3: what it wrote and read, after a reset' copies.out
}

in_lanes copies
finish
