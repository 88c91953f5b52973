#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Guests that check their memory, splash's churn and a stock kernel under stress-ng, on four nodes, while up to a
# hundred times a second a part of it moves to whatever node and another one gets copies, the tracker looks on, every
# vCPU moves about, and one node is full now and then. vCPUs of the stock kernel leave and come back meanwhile; where
# there is time, another kernel takes over from it (kexec), and that one resets the machine. Beside stress-ng it compiles
# this checkout, in rounds: each object has to be, byte for byte, what the same compiler makes of the same source out here,
# without a machine or a memory manager; what it frees goes back to the host (balloon). None of them may notice, and the host gets all memory back. Two minutes;
# TORTURE_SECONDS says otherwise (tests/run torture: half an hour).
# tests/run: alone
seconds=${TORTURE_SECONDS:-120}

# make_kit ROOT FILE: a disk with the compiler, with its libraries and the loader, of sources after the preprocessor, and of
# what becomes of each.
make_kit() (
	set -e
	root=$(cd "$1" && pwd)
	kit=$(mktemp -d)
	trap 'rm -rf "$kit"' EXIT
	mkdir "$kit/lib" "$kit/wanted"
	for program in "$(gcc -print-prog-name=cc1)" "$(command -v "$(gcc -print-prog-name=as)")"; do
		cp -L "$program" "$kit/"
		for library in $(ldd "$program" | grep -o '/[^ ]*'); do cp -Lu "$library" "$kit/lib/"; done
	done
	# How the compiler collects garbage must not depend on how much memory there is.
	cat >"$kit/compile" <<-'END'
		#!/bin/sh
		# SOURCE OBJECT
		kit=${0%/*}
		loaded="$kit/lib/ld-linux-x86-64.so.2 --library-path $kit/lib"
		$loaded "$kit/cc1" -quiet -O1 --param ggc-min-expand=30 --param ggc-min-heapsize=4096 "$1" -o "$2.s" || exit
		$loaded "$kit/as" "$2.s" -o "$2"
	END
	chmod 755 "$kit/compile"
	cd "$kit"
	for source in "$root"/numa/*.c; do
		name=${source##*/} name=${name%.c}
		gcc -E -P -D_GNU_SOURCE -I"$root/include/kvm" -I"$root/include/numa" "$source" -o "$name.i"
		./compile "$name.i" "wanted/$name.o"
	done
	rm wanted/*.s
	/sbin/mke2fs -q -F -t ext4 -O ^has_journal -m 0 -d . "$2" 64M >/dev/null
)

if [ -z "${LAB-}" ]; then
	kit=${MB_BUILD:-$(dirname "$0")/../../build}/torture-kit.img
	make_kit "$(dirname "$0")/../.." "$(realpath -m "$kit")" || exit
	lab_options=(--nodes 4 --cpus-per-node 1 --memory-per-node 1G --time "$((seconds + 1500))s" --in "$kit")
	lab_words=("$seconds")
else
	seconds=$1
fi
boot_seconds=400 # a storm takes most of the time
. "$(dirname "$0")/guests.sh"

full=3 # the node that is under pressure

# free_mib NODE: with what CPUs keep for their next allocation, which is in no line of meminfo
free_mib() {
	awk -v wanted="$1," '$1 == "Node" { here = $2 == wanted }
		here && ($1 == "nr_free_pages" || $1 == "count:") { n += $2 }
		END { print int(n / 256) }' /proc/zoneinfo
}

# The host's memory, each node's, in MiB, once it has given back what it keeps for later.
all_free() { # FILE
	sync
	sleep 2
	echo 3 >/proc/sys/vm/drop_caches
	cat /proc/meminfo >"$1"
	for node in 0 1 2 3; do free_mib "$node"; done | tr '\n' ' '
}

# Takes memory of that node until hardly any is left, tells so, and gives it back, for ever.
fill() {
	echo 1000 >"/proc/$BASHPID/oom_score_adj"
	exec numactl --membind="$full" python3 - "$full" <<-'END'
		import mmap, re, sys, time
		MIB = 1 << 20
		def free():
		    text = open(f"/sys/devices/system/node/node{sys.argv[1]}/meminfo").read()
		    return int(re.search(r"MemFree:\s+(\d+)", text).group(1)) << 10
		while True:
		    taken, end = [], time.monotonic() + 10
		    while time.monotonic() < end:
		        if free() > 40 * MIB:
		            taken.append(mmap.mmap(-1, 8 * MIB))
		            taken[-1].write(b"x" * (8 * MIB))
		        else:
		            time.sleep(0.1)
		    print("full", flush=True)
		    taken.clear()
		    time.sleep(5)
	END
}

# Where the kernel finds none at all it ends who takes it: another one begins. Ended, it leaves none behind.
press() {
	local filler
	trap 'kill "$filler"; exit' TERM
	while :; do
		fill &
		filler=$!
		wait "$filler"
		sleep 1
	done
}

# Sends vCPUs of a process to other nodes, some a second.
shift_vcpus() { # PID
	local task comm
	while kill -0 "$1" 2>/dev/null; do
		for task in /proc/"$1"/task/*; do
			read -r comm <"$task/comm" || continue
			[ "${comm#vcpu}" != "$comm" ] || continue
			((RANDOM % 2)) || continue
			taskset -pc $((RANDOM % 4)) "${task##*/}" && echo >>"$work/shifts"
		done >/dev/null 2>&1
		sleep 0.3
	done
}

# watch NAME: what moves, to the end
watch() {
	mirrorball numa --json "$1" >"$1.numa.new" 2>/dev/null && mv "$1.numa.new" "$1.numa"
	mirrorball stat --json "$1" >"$1.stat.new" 2>/dev/null && mv "$1.stat.new" "$1.stat"
}

tortured() { # NAME SECONDS
	local name=$1 end=$((SECONDS + $2 + run_seconds))
	: >shifts
	rm -f "$name.numa"
	shift_vcpus "$pid" &
	while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do
		watch "$name"
		sleep 2
	done
}

# moved NAME: and copied, enough for it to be torture. A node that is full now and then may have taken little.
moved() {
	local said line
	said=$(python3 - "$1.numa" "$full" <<-'END'
		import json, sys
		a = json.load(open(sys.argv[1]))
		r, m = a["replicas"], a["migration"]
		print(r["copied_bytes"] >> 20 >= 4 and r["faults"] >= 4 and r["failures"] == 0, f"{r['copied_bytes'] >> 20} MiB copied,",
		      f"{r['bytes'] >> 20} at last in {r['mappings']} mappings, {r['faults']} writes that waited for {r['fault_ns'] // 1000} us,",
		      f"{r['longest_ns'] // 1000000} ms at most, {r['collapsed_pages']} pages collapsed, {r['failures']} failures")
		print(m["state"] == "storm" and m["moved_bytes"] >> 20 >= 8 and m["split_bytes"] > 0
		      and all(n["in_bytes"] > 0 for n in m["nodes"] if n["node"] != int(sys.argv[2])),
		      *(f"{m[k] >> 20} MiB {k[:-6]}," for k in ("moved_bytes", "busy_bytes", "full_bytes", "split_bytes")),
		      f"{m['moves']} moves, the longest batch {m['longest_ns'] // 1000000} ms, to nodes:",
		      *(f"{n['in_bytes'] >> 20}" for n in m["nodes"]), "MiB")
	END
	)
	while IFS= read -r line; do echo "$1: $line"; done <<<"$said"
	expect "$1: copies were made, and written, without a failure" True "${said%% *}"
	said=${said##*$'\n'}
	expect "$1: at least 8 MiB moved, to every node that has room, and huge pages were taken apart" True "${said%% *}"
	echo "$1: $(wc -l <shifts) moves of vCPUs; reports of free memory: $(python3 -c "import json, sys
print(*(f'{v},' for v in json.load(open(sys.argv[1]))['free_page_reporting'].items()))" "$1.stat")"
	expect "$1: vCPUs moved, too" 1 "$(($(wc -l <shifts) > 8))"
}

options=(--views 2 --cpus 4 --track on --migrate storm --replicas 100%)

churns() {
	start churn "${options[@]}" --memory 96M splash churn size=64M ms="$((seconds * 400))" "seed=$RANDOM"
	tortured churn "$seconds"
	ended 10
	expect "churn: status" 0 "$status"
	expect_match "churn: checks itself" '^splash: churn: ok' churn.out
	[ "$status" = 0 ] || show churn
	moved churn
}

stressed() {
	tortured "$1" "$seconds"
	moved "$1"
	shared=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["sharing"]["were_shared_bytes"])' "$1.stat")
	echo "$1: $((shared >> 20)) MiB were shared"
	expect "$1: memory was shared with the commons" 1 $((shared >= 4 << 20))
}

# The script begins three times: of the first kernel, of the one that it loads, and after that one's reset; in two minutes
# once (without a storm tests/lab/test-replicas-guest.sh has the same).
stock_kernels() {
	local once=$((seconds < 600)) at=/var/torture kernel=/lab/guest/vmlinuz-cloud-6.1 initrd=/lab/guest/initrd-cloud-6.1
	reboots=1 run_seconds=$((seconds + 300)) when_up=stressed quick_guest stock cloud-6.1 "${options[@]}" --memory 512M \
		--disk /lab/guest/root0.img,cow=memory --disk "$(padded "$kernel"),ro" --disk "$(padded "$initrd"),ro" \
		--disk /in/torture-kit.img,ro <<-END
			leave_and_return() { # CPU
				echo 0 >/sys/devices/system/cpu/cpu\$1/online && echo 1 >/sys/devices/system/cpu/cpu\$1/online
			}
			# In rounds, until the time is over, and a few sources at least.
			compile_for() { # SECONDS WHICH: odd or even ones, 1 or 0
				local end=\$((SECONDS + \$1)) out=/tmp/objects\$2 n=0 source object
				mkdir \$out
				while :; do
					for source in \$(ls -rS /tmp/kit/*.i | awk "NR % 2 == \$2"); do
						object=\${source##*/} object=\${object%.i}.o
						/tmp/kit/compile \$source \$out/\$object || return
						cmp /tmp/kit/wanted/\$object \$out/\$object || return
						echo \$((n += 1)) >\$out/count
						[ \$SECONDS -lt \$end ] || [ \$n -lt 2 ] || return 0
					done
				done
			}
			modprobe virtio_balloon
			case \$(cat $at/turn 2>/dev/null) in
			'')
				mkdir $at
				dd if=/dev/urandom of=$at/file bs=256k count=32 oflag=direct status=none
				sha256sum $at/file >$at/sum
				mkdir /tmp/kit
				mount -o ro /dev/vdd /tmp/kit
				stress-ng --verify --timeout $((seconds * 4 / 10)) --vm 1 --vm-bytes 128M --mmap 1 --mmap-bytes 32M \
					--madvise 1 --fork 1 --metrics-brief >/run/stress 2>&1 &
				stress=\$!
				for which in 0 1; do
					compile_for $((seconds * 4 / 10)) \$which >/run/compile\$which 2>&1 &
					compiles[which]=\$!
				done
				for cpu in 3 1; do
					sleep $((seconds / 10))
					check "vCPU \$cpu leaves and comes back" leave_and_return \$cpu
				done
				check "stress-ng finds its memory as it was" wait \$stress
				for which in 0 1; do
					check "each object is as it is elsewhere" wait \${compiles[which]}
					cat /run/compile\$which
					echo "OBJECTS \$(cat /tmp/objects\$which/count)"
				done
				grep -a bogo -A 9 /run/stress
				check "the file" sha256sum --quiet -c $at/sum
				quiet_kernel
				if [ $once = 0 ]; then
					echo kexec >$at/turn
					head -c $(stat -c %s $kernel) /dev/vdb >/run/vmlinuz
					head -c $(stat -c %s $initrd) /dev/vdc >/run/initrd
					cp /run/labtest $at/again
					check "loads another kernel" kexec_load init=/var/torture/again
					sync
					[ "\$failed" = 1 ] || kexec_now
				fi
				;;
			kexec)
				echo "ok: another kernel takes over"
				check "all vCPUs are there" same 4 "\$(nproc)"
				check "the file, after kexec" sha256sum --quiet -c $at/sum
				quiet_kernel
				echo reset >$at/turn
				sync
				[ "\$failed" = 1 ] || reboot -f
				;;
			reset)
				echo "ok: it resets the machine"
				check "all vCPUs are back" same 4 "\$(nproc)"
				check "the file, after a reset" sha256sum --quiet -c $at/sum
				leave_and_return 2
				check "all vCPUs are back again" same 4 "\$(nproc)"
				quiet_kernel
				echo done >$at/turn
				;;
			esac
		END
	echo "stock: objects that were compared: $(tr -d '\r' <stock.out | sed -n 's/^OBJECTS //p' | paste -sd ' ')"
	[ "$once" = 0 ] || return 0
	for part in "another kernel takes over" "it resets the machine" "all vCPUs are back again"; do
		expect_match "stock: comes to the end" "^ok: $part" stock.out
	done
}

# What the host takes once and for all is taken first.
start warm "${options[@]}" --memory 64M splash churn size=4M ms=3000
ended 60
before=$(all_free meminfo.before)
press >press.out 2>press.err &
press=$!
churns
stock_kernels
grep -q full press.out || bad "there was pressure on node $full: $(cat press.err)"
kill "$press"
wait "$press"
# What the commons hold they keep for a minute.
pkill -x mirrorballd
while pgrep -x mirrorballd >/dev/null; do sleep 0.2; done
after=$(all_free meminfo.after)
paste meminfo.before meminfo.after | awk '$2 > $5 + 8192 || $5 > $2 + 8192 { print "KiB:", $1, $2, "before,", $5, "after" }'
echo "MiB free on nodes 0 to 3: $before before, $after after"
read -ra b <<<"$before"
read -ra a <<<"$after"
expect "the host has its memory back, but for a few MiB" 1 \
	"$((b[0] + b[1] + b[2] + b[3] - a[0] - a[1] - a[2] - a[3] < 48))"
finish
