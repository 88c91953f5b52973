#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Disks that an NBD server has: what is said of them, a guest that uses them, and servers that are not there, or not any more.
# tests/run: once
source "$(dirname "$0")/lib.sh"
need_kvm
command -v nbdkit >/dev/null || skip "needs nbdkit"
# Not in a build without libnbd.
"$MIRRORBALL" run --dry-run --disk nbd+unix:///?socket=none splash hello >said 2>&1 || true
! grep -q 'built without network disks' said || skip "built without libnbd"

server=
stop() {
	[ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
	[ -z "$server" ] || wait "$server" 2>/dev/null || true
	server=
}
cleanups+=(stop)
# $1: socket, rest: what nbdkit is to do.
serve() {
	rm -f "$1"
	nbdkit -f -U "$1" "${@:2}" >>nbdkit.log 2>&1 &
	server=$!
	for ((i = 0; i < 200; i++)); do
		[ ! -S "$1" ] || return 0
		sleep 0.05
	done
	bad "nbdkit ${*:2}: no socket: $(tail -n 3 nbdkit.log)"
}
uri="nbd+unix:///?socket=$work/s"
truncate -s 16M disk.img

# ---- what is said
serve "$work/s" file disk.img
expect 0 '^disk 0 +nbd.*, 16M, writable, network, 3 queues$' "$MIRRORBALL" run --dry-run --cpus 3 --disk "$uri" splash hello
expect 0 '^name +mirrorball-' "$MIRRORBALL" run --dry-run --disk "$uri" splash hello
expect 0 '"queues": 2' "$MIRRORBALL" run --dry-run --json --disk "$uri,ro,queues=2" splash hello
python3 -c '
import json, sys
disk = json.load(sys.stdin)["disks"][0]
assert disk["path"] == sys.argv[1] and disk["size_bytes"] == 16 << 20 and disk["readonly"] and not disk["direct"], disk
' "$uri" <<<"$out" || bad "--json: $out"
expect 2 'direct= is for files' "$MIRRORBALL" run --disk "$uri,direct=on" splash hello
expect 2 'overlay= needs a file' "$MIRRORBALL" run --disk "$uri,overlay=o.qcow2" splash hello
expect 2 'given twice' "$MIRRORBALL" run --disk "$uri" --disk "$uri,cow" splash hello
stop
serve "$work/s" --filter=multi-conn file disk.img multi-conn-mode=disable
expect 0 ', 1 queue$' "$MIRRORBALL" run --dry-run --cpus 3 --disk "$uri" splash hello
stop
serve "$work/s" -r file disk.img
expect 1 'read-only; open it with ,ro' "$MIRRORBALL" run --disk "$uri" splash hello
stop
rm -f s
expect 1 'cannot connect: .*does the server run' "$MIRRORBALL" run --disk "$uri" splash hello

# ---- who uses no such disk does not load the library
loads() { # of a machine that runs for a while
	"$MIRRORBALL" run --quiet --memory 64M "$@" splash radix ms=3000 every_ms=100 </dev/null >.hold 2>&1 &
	local pid=$! i
	for ((i = 0; i < 100; i++)); do
		sleep 0.05
		! grep -q splash .hold || break
	done
	grep -c libnbd "/proc/$pid/maps" || true
	wait "$pid" || true
}
n_checks=$((n_checks + 2))
[ "$(loads --disk disk.img)" = 0 ] || bad "libnbd is loaded without need"
serve "$work/s" file disk.img
[ "$(loads --disk "$uri")" -gt 0 ] || bad "libnbd is not loaded"

# ---- a guest
expect 0 . "$MIRRORBALL" run --quiet --memory 64M --disk "$uri" splash hello
before=$(sha256sum disk.img)
n_checks=$((n_checks + 1)) got=0
"$MIRRORBALL" run --quiet --memory 64M --cpus 2 --disk "$uri,cow" splash fuzz ms=1500 </dev/null >.cow 2>&1 || got=$?
out=$(tr -d '\0' <.cow)
look "$got" '' "$got" "fuzz, cow"
[ "$got" = 0 ] || [ "$got" = 4 ] || bad "fuzz, cow: status $got: $out" # it may crash, which is its right
[ "$before" = "$(sha256sum disk.img)" ] || bad "a base was written"

# ---- a server that goes away while the guest has its way with the disk, and one that comes back
"$MIRRORBALL" run --quiet --memory 64M --cpus 2 --disk "$uri" splash fuzz ms=6000 </dev/null >.fuzz 2>&1 &
pid=$!
sleep 2
stop
sleep 1
serve "$work/s" file disk.img
got=0
wait "$pid" || got=$?
n_checks=$((n_checks + 1))
out=$(tr -d '\0' <.fuzz)
look "$got" 'lost the connection' "$got" "fuzz, server killed"
[ "$got" = 0 ] || [ "$got" = 4 ] || bad "fuzz, server killed: status $got"
if [ "$got" = 0 ]; then grep -q 'connected again' <<<"$out" || bad "not connected again: $out"; fi

# ---- one that hangs: the machine does not start, and a signal ends the waiting
kill -STOP "$server"
n_checks=$((n_checks + 1))
begin=$SECONDS got=0
timeout -s INT -k 20 2 "$MIRRORBALL" run --memory 64M --disk "$uri" splash hello </dev/null >.hang 2>&1 || got=$?
[ $((SECONDS - begin)) -lt 9 ] || bad "a signal did not end the waiting: $((SECONDS - begin)) s: $(cat .hang)"
[ "$got" = 124 ] || [ "$got" = 130 ] || bad "signal: status $got"
limit=40 expect 1 'no answer within 10 s' "$MIRRORBALL" run --memory 64M --disk "$uri" splash hello
kill -CONT "$server"
finish
