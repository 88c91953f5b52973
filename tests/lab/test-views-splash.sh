#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# splash's programs under real nested paging, with one view and with two. None is tried again.
# tests/run: alone
lab_options=(--memory-per-node 3G)
. "$(dirname "$0")/guests.sh"

ip tuntap add dev tap0 mode tap
ip link set tap0 up

# runs VIEWS CPUS MEMORY PROGRAM ARG...: the machine also has the options in $devices
devices=()
runs() {
	local what=$* views=$1 cpus=$2 memory=$3 begun=$SECONDS out=$work/splash.$lane status
	shift 3
	timeout -s QUIT -k 20 400 mirrorball run --name "splash$lane" --views "$views" \
		--cpus "$cpus" --memory "$memory" "${devices[@]}" splash "$@" \
		>"$out" 2>"$out.err" </dev/null
	status=$?
	# What a guest under fuzz writes to its console stands in between.
	if [ "$status" = 0 ] && grep -aq "splash: $1: ok\$" "$out"; then
		ok "$what: $((SECONDS - begun)) s"
	else
		bad "$what: status $status after $((SECONDS - begun)) s"
		tail -n 30 "$out" "$out.err" | tr -cd '[:print:]\n' | cut -c 1-300 | sed 's/^/  | /'
	fi
}

# all VIEWS CPUS: every program
all() {
	local views=$1 cpus=$2 arguments program
	for arguments in hello touch 'radix keys=64K ms=500' 'readshare size=4M ms=500' 'writeshare ms=500' \
		'private size=8M ms=500' 'phase size=4M ms=1000' 'churn ms=4000' 'churn size=64K ms=2000' \
		'litmus size=1M ms=3000'; do
		read -ra program <<<"$arguments"
		case $arguments in
		hello | touch | private*) ;;
		*) program+=(seed=$RANDOM) ;;
		esac
		runs "$views" "$cpus" 128M "${program[@]}" each=1
		expect "half of $cpus vCPUs in view 1, of $views views" $((cpus - (cpus + views - 1) / views)) \
			"$(grep -c '(view 1)' "$work/splash.$lane")"
	done
	runs "$views" "$cpus" 128M demo
}

# Guest memory above 4 GiB, in both views, in huge pages and in small ones
above() {
	local setting=/sys/kernel/mm/transparent_hugepage/shmem_enabled before pages
	before=$(sed 's/.*\[\(.*\)].*/\1/' "$setting")
	for pages in "$before" deny; do
		echo "$pages" >"$setting"
		runs 2 4 3584M touch size=3200M
		runs 2 4 3584M churn size=64M ms=3000
	done
	echo "$before" >"$setting"
}

# Garbage to every register and queue, with a disk and a network to it
fuzz() {
	local views
	for views in 1 2; do
		truncate -s 64M "/scratch/fuzz$views.img"
		devices=(--disk "/scratch/fuzz$views.img" --net tap=tap0 --console virtio)
		runs "$views" 4 128M fuzz ms=5000 seed="$RANDOM"
	done
	devices=()
}

# RSM in ring 3, with a state to return to, is an invalid opcode (67) in the second view, too; nobody gets
# there (69), and no process crashes its guest by it (4).
rsm() {
	local views cpus how out=$work/rsm.$lane status
	for views in 1 2; do
		for how in 1 2; do
			cpus=$((how * 2))
			timeout -s QUIT -k 20 100 mirrorball run --name rsm --views "$views" --cpus "$cpus" \
				--memory 64M splash hello rsm=$how >"$out" 2>"$out.err" </dev/null
			status=$?
			expect "RSM on the last of $cpus vCPUs, $views views: status" 67 "$status"
			[ "$status" = 67 ] || tail -n 30 "$out" "$out.err" | sed 's/^/  | /'
			expect_match "RSM on the last of $cpus vCPUs, $views views" \
				"vCPU $((cpus - 1)): exception 6," "$out"
		done
	done
}

in_lanes "all 2 4" "all 1 3" fuzz rsm
in_lanes above
finish
