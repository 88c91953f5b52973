#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A stock guest is written down while it writes, reads and checks its disk and talks to its network; three machines go on
# from there at once, each with what it had, on a disk and in memory of its own, and with another generation ID, of which
# its kernel is told. Of an idle guest three have nearly all memory in common.
# tests/run: last 120
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

look() { # NAME: its script waits twice
	await "$1.out" 'IDLE' 200 || bad "$1: not ready"
	sleep 2
	expect "idle: a snapshot" 0 "$(mirrorball snapshot "$1" /scratch/idle >&2; echo $?)"
	du -h /scratch/idle/* | sed 's/^/  /'
	mirrorball clone /scratch/idle/ -n 3 --name idle --output . >idle.pids
	expect "idle: three run" 3 "$(pids idle.pids | wc -l)"
	sleep 4
	echo "PSS of three idle clones: $(pss_kib idle.pids) KiB"
	expect "idle: at most 150 MiB together" 1 $(($(pss_kib idle.pids) <= 150 << 10))
	expect_match "idle: they are seen" '^idle-2 .* running ' <(mirrorball ps)
	pids idle.pids | xargs kill -QUIT
	printf '\n' >&"$keys"
	await "$1.out" 'LOADED' 100 || bad "$1: no load"
	sleep 1
	expect "load: a snapshot" 0 "$(mirrorball snapshot "$1" /scratch/load >&2; echo $?)"
	mirrorball clone /scratch/load/ -n 3 --name load --output . >load.pids
	expect "load: three run" 3 "$(pids load.pids | wc -l)"
}

when_up=look quick_guest origin cloud-6.12 --cpus 2 --memory 1G --views 1 --disk "$base,cow=memory" --net passt <<-'END'
	modprobe virtio_net
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
forks() { tr -d '\r' <"$1" | sed -n 's/^FORKS \([0-9]*\) .*/\1/p'; }
expect "origin: is itself" 0 "$(forks origin.out)"
for i in 1 2 3; do
	pid=$(sed -n "s/^load-$i //p" load.pids)
	await "load-$i.log" 'LABTEST-END' 100 || bad "load-$i: does not end"
	expect_match "load-$i: found all as it had it" '^LABTEST-END 0' "load-$i.log"
	sed -n 's/^\(ok\|FAILED\): /load-'"$i"': &/p' "load-$i.log" | tr -d '\r'
	expect "load-$i: was told of its new generation" 1 "$(forks "load-$i.log")"
	await "load-$i.log" 'powered off' 20 || bad "load-$i: is not off"
done
expect "all random numbers differ" 4 "$(cat origin.out load-?.log | tr -d '\r' | grep -a '^RANDOM' | sort -u | wc -l)"
pid=
finish
