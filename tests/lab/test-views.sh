#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Stock kernels with half of their vCPUs in view 1: the same boots, a reboot, a kexec, vCPUs that go and
# come back, traffic through a tap, verified load on all of them; and where the page tables of views are.
# tests/run: last 150
. "$(dirname "$0")/guests.sh"

trace_views

# in_view_1 PID: the vCPUs that KVM has there, by what it said last of each
in_view_1() {
	(cd "/proc/$1/task" && echo *) | cat - "$trace/trace" | awk '
		NR == 1 { for (i = 1; i <= NF; i++) thread[$i] = 1; next }
		match($0, /-[0-9]+ /) && substr($0, RSTART + 1, RLENGTH - 2) in thread &&
			match($0, /vcpu [0-9]+: (entering|leaving) SMM/) {
			split(substr($0, RSTART, RLENGTH), word, /[ :]+/)
			last[word[2]] = word[3]
		}
		END { for (vcpu in last) if (last[vcpu] == "entering") print vcpu }' |
		sort -n | tr '\n' ' '
}

# look NAME: while the guest runs its script
# shellcheck disable=SC2154 # $cpus is of stock
look() {
	local wanted='' of_view=(0-1 2-3) used=2 task comm i
	for ((i = 0; i < cpus; i++)); do
		[ $((i * 2 / cpus)) = 0 ] || wanted+="$i " used=3
	done
	expect "$1: vCPUs that KVM translates through view 1" "$wanted" "$(in_view_1 "$pid")"
	# Guest memory is mapped for the monitor itself and for each view. What the vCPUs of a view have
	# not touched is not in its page tables.
	expect "$1: mappings of guest memory in use" "$used" \
		"$(awk '/mirrorball-ram/ { here = 1 } /^Rss:/ && here { n += $2 > 4096; here = 0 }
			END { print n }' "/proc/$pid/smaps")"
	expect "$1: which is in huge pages" 1 \
		"$(awk '/mirrorball-ram/ { here = 1 } /^ShmemPmdMapped:/ && here { n += $2; here = 0 }
			END { print (n > 4096) }' "/proc/$pid/smaps")"
	for task in /proc/"$pid"/task/*; do
		read -r comm <"$task/comm"
		[ "${comm#vcpu}" != "$comm" ] || continue
		expect "$1: $comm stays on the node of its view" "${of_view[${comm#vcpu} * 2 / cpus]}" \
			"$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$task/status")"
	done
}

# boots HOW KERNEL CPUS [SECONDS]: as in test-boot-kernels.sh
boots() {
	when_up=look "$1" "$2x$3" "$2" "$3" 512 --views 2 --placement nodes=0-1 <<-END
		$load
		load ${4-5}
	END
}

# Two boots of one machine; a vCPU leaves and comes back in the second.
reboots() {
	local cpus=4
	ip tuntap add dev tap0 mode tap
	ip addr add 10.0.0.1/24 dev tap0
	ip link set tap0 up
	head -c 16M /dev/urandom >down.bin
	timeout 1800 socat TCP-LISTEN:5002,reuseaddr,fork OPEN:down.bin,rdonly &
	timeout 1800 socat -u TCP-LISTEN:5001,reuseaddr,fork OPEN:up.bin,creat,append &
	reboots=1 when_up=after_reboot quick_guest reboots cloud-6.1 --views 2 --cpus 4 \
		--disk "/lab/guest/root$lane.img" --net tap=tap0 <<-END
		if [ ! -e /written ]; then
			head -c 32M /dev/urandom >/root/file
			sha256sum /root/file >/written
			sync
			sleep 5
			reboot -f
			sleep 1000
		fi
		echo AGAIN
		check "all vCPUs are back" same 4 "\$(nproc)"
		check "the file" sha256sum --quiet -c /written
		sleep 5
		$load
		load 15
		modprobe virtio_net
		ip addr add 10.0.0.2/24 dev eth0
		ip link set eth0 up
		head -c 16M /dev/urandom >/tmp/up
		socat -u OPEN:/tmp/up TCP:10.0.0.1:5001
		check "32 MiB of traffic" same "$(sha256sum <down.bin)" \
			"\$(socat -u TCP:10.0.0.1:5002 STDOUT | sha256sum)"
		echo "UP \$(sha256sum </tmp/up)"
		for cpu in 1 3; do
			online=/sys/devices/system/cpu/cpu\$cpu/online
			check "vCPU \$cpu, of view \$((cpu / 2)), leaves" bash -c "echo 0 >\$online"
			echo "GONE \$cpu"
			sleep 5
			check "vCPU \$cpu comes back" bash -c "echo 1 >\$online"
			# And at once
			check "vCPU \$cpu leaves and comes back" bash -c "echo 0 >\$online; echo 1 >\$online"
		done
		check "all vCPUs are back" same 4 "\$(nproc)"
		echo BACK
		load 5
	END
	expect "reboots: what the guest sent" "$(tr -d '\r' <reboots.out | sed -n 's/^UP //p')" \
		"$(sha256sum <up.bin)"
}

after_reboot() {
	look "$1, first boot"
	await "$1.out" '^AGAIN' "$boot_seconds" || { bad "$1: boots again"; return; }
	look "$1, second boot"
	await "$1.out" '^GONE 3' "$run_seconds" || { bad "$1: vCPU 3 leaves"; return; }
	expect "$1: the vCPU that left is in view 0" "2 " "$(in_view_1 "$pid")"
	await "$1.out" '^BACK' "$run_seconds" || { bad "$1: vCPU 3 comes back"; return; }
	look "$1, vCPUs back"
}

# Another kernel takes over without a reset: INIT and SIPI to vCPUs that have been in view 1.
kexecs() {
	local cpus=4 kernel=/lab/guest/vmlinuz-cloud-6.1 initrd=/lab/guest/initrd-cloud-6.1
	when_up=after_kexec quick_guest kexecs cloud-6.1 --views 2 --cpus 4 --disk "/lab/guest/root$lane.img" \
		--disk "$(padded "$kernel"),ro" --disk "$(padded "$initrd"),ro" <<-END
		if [ ! -e /root/again ]; then
			head -c $(stat -c %s $kernel) /dev/vdb >/run/vmlinuz
			head -c $(stat -c %s $initrd) /dev/vdc >/run/initrd
			cp /run/labtest /root/again
			sync
			check "loads the next kernel" kexec_load init=/root/again
			sleep 5
			[ "\$failed" = 1 ] || kexec_now
		fi
		$load
		check "it is the second kernel" grep -q init=/root/again /proc/cmdline
		echo SECOND
		check "all vCPUs are there" same 4 "\$(nproc)"
		sleep 5
		load 15
		quiet_kernel
	END
}

after_kexec() {
	look "$1, first kernel"
	await "$1.out" '^SECOND' "$boot_seconds" || { bad "$1: the second kernel"; return; }
	look "$1, second kernel"
}

# tables VIEWS: the most KiB of second-level page tables that a guest of 4 KiB pages had on each node
tables() {
	local before now most=(0 0) node pid
	mapfile -t before < <(table_kib)
	mirrorball run --name tables --quiet --views "$1" --cpus 4 --memory 512M splash \
		readshare size=256M ms=20000 </dev/null >tables.out 2>&1 &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		mapfile -t now < <(table_kib)
		for node in 0 1; do
			[ $((now[node] - before[node])) -le "${most[node]}" ] || most[node]=$((now[node] - before[node]))
		done
		sleep 1
	done
	echo "${most[@]}"
}
table_kib() { sed -n 's/.*SecPageTables: *\([0-9]*\).*/\1/p' /sys/devices/system/node/node*/meminfo; }

# A view's tables are on the node of its vCPUs: 512 KiB for 256 MiB each. With one view all vCPUs walk the same.
page_tables() {
	local setting=/sys/kernel/mm/transparent_hugepage/shmem_enabled before one two a b
	before=$(sed 's/.*\[\(.*\)\].*/\1/' "$setting")
	echo deny >"$setting"
	one=$(tables 1)
	two=$(tables 2)
	echo "$before" >"$setting"
	echo "KiB of page tables on nodes 0 and 1: one view: $one; two: $two"
	read -r a b <<<"$two"
	expect "page tables of view 0 on its node" 1 $((a >= 450 && a < 900))
	expect "page tables of view 1 on its node" 1 $((b >= 450 && b < 900))
	read -r a b <<<"$one"
	expect "page tables of one view" 1 $((a + b >= 450 && a + b < 900))
}

# A machine stays within the CPUs and the nodes' memory that it was given.
limited() {
	local pid task comm=
	mkdir -p /sys/fs/cgroup/limited
	echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control
	cat /sys/devices/system/node/node1/cpulist >/sys/fs/cgroup/limited/cpuset.cpus
	echo 1 >/sys/fs/cgroup/limited/cpuset.mems
	# shellcheck disable=SC2016 # of the inner shell
	sh -c 'echo $$ >/sys/fs/cgroup/limited/cgroup.procs
		exec mirrorball run --name limited --quiet --views 2 --cpus 4 --memory 256M splash readshare size=64M ms=15000' \
		</dev/null >limited.out 2>&1 &
	pid=$!
	sleep 10
	for task in /proc/"$pid"/task/*; do
		read -r comm <"$task/comm"
		expect "limited: CPUs of $comm" 2-3 "$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$task/status")"
	done
	expect "limited: memory on node 1 only" "N1" \
		"$(grep mirrorball-ram "/proc/$pid/numa_maps" | grep -o 'N[0-9]*=' | tr -d = | sort -u | xargs)"
	wait "$pid"
	expect "limited: status" 0 $?
}

in_lanes page_tables
in_lanes limited
in_lanes reboots kexecs "boots stock cloud-6.12 4" "boots quick_stock full-6.1 2" "boots quick_stock cloud-6.12 1"
finish
