#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every program of the thin guest on 1, 2 and 4 vCPUs and with each number of views that this host has: ends
# with status 0, which says that its own check passed.
source "$(dirname "$0")/lib.sh"
need_kvm
# More vCPUs than CPUs wait for each other: on a loaded host that takes its time.
export limit=150

views=$("$MIRRORBALL" doctor --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["views"])')
mapfile -t programs < <("$MIRRORBALL" run splash --list | sed -n 's/^\([a-z]\+\) .*/\1/p')
[ "${#programs[@]}" -ge 8 ] || bad "only these programs: ${programs[*]}"

truncate -s 8M disk.img
for program in "${programs[@]}"; do
	arg=(ms=30) disk=()
	case $program in
	touch | walk) arg=(size=8M) ;;
	diskchurn) disk=(--disk "disk.img,cow=memory") ;;
	esac
	for cpus in 1 2 4; do
		for ((view = 1; view <= views; view++)); do
			expect 0 . "$MIRRORBALL" run --quiet --cpus "$cpus" --memory 128M --views "$view" "${disk[@]}" \
				splash "$program" "${arg[@]}"
		done
	done
done

# Progress: more with time (a busy host may have nothing new to say once), of all vCPUs, until the end; none unless asked for.
for program in radix readshare writeshare private phase churn litmus; do
	arg=(ms=1000 every_ms=50 raw=1)
	[ "$program" != radix ] || arg+=(keys=64K)
	"$MIRRORBALL" run --quiet --cpus 2 --memory 128M splash "$program" "${arg[@]}" >progress ||
		bad "$program every_ms=50: status $?"
	awk '/: after [0-9]+ ms: [0-9]+ ?[A-Za-z]+$/ { if (!n++) first = $6; wrong += $4 <= ms || $4 >= 1000 || $6 < ops; ms = $4; ops = $6 }
		END { exit !ops || wrong || (n > 1 && ops == first) }' progress || bad "$program every_ms=50: $(cat progress)"
done
"$MIRRORBALL" run --quiet --memory 64M splash readshare ms=100 >progress
! grep after progress || bad "progress that nobody asked for"
expect 66 'unknown argument "every_ms=1"' "$MIRRORBALL" run --memory 64M splash touch every_ms=1

# The demonstration, the least and more memory than fits below the PCI hole, and more vCPUs than CPUs.
expect 0 'powered off' "$MIRRORBALL" run
expect 0 . "$MIRRORBALL" run --quiet --memory 16M splash hello
expect 0 . "$MIRRORBALL" run --quiet --memory 6G --memory-overcommit splash hello
expect 0 . "$MIRRORBALL" run --quiet --memory 64G --memory-overcommit splash hello
expect 0 . "$MIRRORBALL" run --quiet --cpus 16 --memory 128M splash hello
# More than xAPIC ids there are.
expect 0 'hello: all 300 vCPUs' "$MIRRORBALL" run --quiet --cpus 300 --memory 128M splash hello
expect 0 '^$' "$MIRRORBALL" run --quiet --console off --memory 64M splash hello
expect 66 . "$MIRRORBALL" run --memory 64M splash radix keys=nonsense
expect 66 . "$MIRRORBALL" run --memory 64M splash hello nonsense=1

# On a vCPU of the first view RSM is what it is on a processor.
expect 67 'vCPU 1: exception 6,' "$MIRRORBALL" run --cpus 2 --memory 64M splash hello rsm=1

# With devices attached.
expect 66 'needs a disk' "$MIRRORBALL" run --memory 64M splash diskchurn
expect 0 . "$MIRRORBALL" run --quiet --memory 64M --disk disk.img,queues=2 splash hello
finish
