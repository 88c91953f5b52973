#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A stock guest is written down while it writes, reads and checks its disk and talks to its network; three machines go on
# from there at once, each with what it had, on a disk and in memory of its own, and with another generation ID, of which
# its kernel is told. Of an idle guest three have nearly all memory in common. So it is with one view of memory, and with one a node, where machines
# go on to look who uses which memory, and have on each node once what they have in common.
# tests/run: last 200
. "$(dirname "$0")/guests.sh"

base=/lab/guest/root0.img

# as the monitor does: passt takes its addresses from the host's route to the outside
modprobe dummy && ip link add outside type dummy
ip addr add 192.0.2.10/24 dev outside
ip link set outside up
ip route add default via 192.0.2.1
chmod 1777 /scratch

pids() { sed -n 's/^[a-z]*-[0-9] //p' "$1"; }
pss_kib() { pids "$1" | while read -r p; do sed -n 's/^Pss: *\([0-9]*\) kB/\1/p' "/proc/$p/smaps_rollup"; done | awk '{ n += $1 } END { print n + 0 }'; }
# asked COMMAND KEY...: of a machine's answer
asked() { mirrorball stat "$1" --json | python3 -c 'import functools, json, sys; print(functools.reduce(lambda o, k: o[k], sys.argv[1:], json.load(sys.stdin)))' "${@:2}"; }

one_view() { # NAME: three idle clones
	sleep 4
	echo "PSS of three idle clones: $(pss_kib "$1.pids") KiB"
	expect "$1: at most 150 MiB together" 1 $(($(pss_kib "$1.pids") <= 150 << 10))
}

two_views() {
	local n=0 i pss
	for i in 1 2 3; do
		expect "$1-$i: views" 2 "$(asked "$1-$i" views)"
		expect "$1-$i: it is counted who uses what" on "$(asked "$1-$i" tracker state)"
	done
	until pss=$(pss_kib "$1.pids") && [ "$pss" -le $((150 << 10)) ] || ((++n > 60)); do sleep 1; done
	echo "PSS of three idle clones with two views: $pss KiB after $n s"
	mirrorball stat "$1-1" | sed -n '/^footprint/,/^tracker/p; /^sharing/,/^free/p'
	expect "$1: at most 150 MiB together" 1 $((pss <= 150 << 10))
}

look() { # NAME: its script waits twice
	await "$1.out" 'IDLE' 200 || bad "$1: not ready"
	sleep 2
	expect "$1: an idle snapshot" 0 "$(mirrorball snapshot "$1" "/scratch/$1-idle" >&2; echo $?)"
	du -h "/scratch/$1-idle"/* | sed 's/^/  /'
	mirrorball clone "/scratch/$1-idle/" -n 3 --name "$1i" --output . >"$1i.pids"
	expect "$1: three idle ones run" 3 "$(pids "$1i.pids" | wc -l)"
	"$kind" "$1i"
	expect_match "$1: they are seen" "^$1i-2 .* running " <(mirrorball ps)
	pids "$1i.pids" | xargs kill -QUIT
	printf '\n' >&"$keys"
	await "$1.out" 'LOADED' 100 || bad "$1: no load"
	sleep 1
	expect "$1: a snapshot under load" 0 "$(mirrorball snapshot "$1" "/scratch/$1-load" >&2; echo $?)"
	mirrorball clone "/scratch/$1-load/" -n 3 --name "$1" --output . >"$1.pids"
	expect "$1: three run" 3 "$(pids "$1.pids" | wc -l)"
}

forks() { tr -d '\r' <"$1" | sed -n 's/^FORKS \([0-9]*\) .*/\1/p'; }

# try NAME KIND OPTION...
try() {
	local name=$1 kind=$2 i
	shift 2
	when_up=look quick_guest "$name" cloud-6.12 --memory 1G --disk "$base,cow=memory" --net passt "$@" <<-'END'
		modprobe virtio_net
		# Until it has been seeded there is nothing to seed anew, and it says nothing.
		modprobe virtio_rng
		head -c 1 /dev/random >/dev/null
		ip addr add 192.0.2.10/24 dev eth0
		ip link set eth0 up
		cat >/tmp/disk.py <<'PYTHON'
		import hashlib, os, sys, time
		end, n = time.monotonic() + 10, 0
		while time.monotonic() < end or n < 3:
		    data = hashlib.sha256(b"%d" % n).digest() * 32768
		    with open("/root/file", "wb") as f:
		        f.write(data)
		        os.fsync(f.fileno())
		        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
		    with open("/root/file", "rb") as f:
		        assert f.read() == data, "round %d differs" % n
		    n += 1
		print(n, "rounds")
		PYTHON
		cat >/tmp/net.py <<'PYTHON'
		import socket, time
		s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
		end = time.monotonic() + 10
		while time.monotonic() < end:
		    for _ in range(50): s.sendto(b"x" * 1000, ("192.0.2.1", 9))
		    time.sleep(0.01)
		PYTHON
		echo IDLE >/dev/console
		read -r _ </dev/console
		python3 /tmp/net.py & net=$!
		python3 /tmp/disk.py >/tmp/disk.said 2>&1 & disk=$!
		sleep 2
		echo LOADED >/dev/console
		wait $disk; status=$?
		check "its disk is as it wrote it" same 0 $status "$(cat /tmp/disk.said)"
		wait $net
		check "its network goes on" same 0 $?
		check "the whole of it can be read" eval 'cat /usr/bin/* >/dev/null'
		echo "FORKS $(dmesg | grep -c 'reseeded due to virtual machine fork') CLOCK $(date +%s)" >/dev/console
		echo "RANDOM $(head -c 16 /dev/urandom | sha256sum | cut -c 1-32)" >/dev/console
		quiet_kernel
	END
	expect "$name: is itself" 0 "$(forks "$name.out")"
	for i in 1 2 3; do
		pid=$(sed -n "s/^$name-$i //p" "$name.pids")
		await "$name-$i.log" 'LABTEST-END' 100 || bad "$name-$i: does not end"
		expect_match "$name-$i: found all as it had it" '^LABTEST-END 0' "$name-$i.log"
		sed -n "s/^\(ok\|FAILED\): /$name-$i: &/p" "$name-$i.log" | tr -d '\r'
		expect "$name-$i: was told of its new generation" 1 "$(forks "$name-$i.log")"
		await "$name-$i.log" 'powered off' 20 || bad "$name-$i: is not off"
	done
	expect "$name: all random numbers differ" 4 \
		"$(cat "$name.out" "$name"-?.log | tr -d '\r' | grep -a '^RANDOM' | sort -u | wc -l)"
	pid=
}

try narrow one_view --cpus 2 --views 1
try wide two_views --cpus 4
finish
