#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016 # expanded in the host, not here
# The host has the nodes, CPUs, memory and kernel that were asked for.
. "$(dirname "$0")/test-common.sh"

"$lab" -- numactl -H >"$tmp/two"
expect "status of numactl" 0 $?
expect_match "two nodes by default" '^available: 2 nodes \(0-1\)$' "$tmp/two"
expect_match "CPUs of node 1" '^node 1 cpus: 2 3$' "$tmp/two"
expect_match "distance" '^ +1: +21 +10' "$tmp/two"

# A large machine: nodes at several distances, one of them without memory, one without CPUs.
"$lab" --nodes 4 --cpus-per-node 1 --memory-per-node 512M --memoryless-node 1 --cpuless-node 3 \
	--distance '10 16 28 33; 16 10 28 33; 28 28 10 17; 30 31 17 10' \
	-- sh -c 'numactl -H; mirrorball run splash touch' >"$tmp/odd"
expect "a guest on an odd host" 0 $?
expect_match "which verifies" '^splash: touch: ok' "$tmp/odd"
expect_match "four nodes" '^available: 4 nodes \(0-3\)$' "$tmp/odd"
expect_match "a node without memory" '^node 1 size: 0 MB$' "$tmp/odd"
expect_match "which has a CPU" '^node 1 cpus: 1$' "$tmp/odd"
expect_match "a node without CPUs" '^node 3 cpus:$' "$tmp/odd"
expect_match "which has memory" '^node 3 size: (4[0-9][0-9]|50[0-9]) MB$' "$tmp/odd"
expect_match "its distances" '^ +3: +30 +31 +17 +10' "$tmp/odd"

# As many nodes as there can be, in a line; their distances from a file
for a in 0 1 2 3 4 5 6 7; do
	row=
	for b in 0 1 2 3 4 5 6 7; do row+=" $((10 + 3 * (a > b ? a - b : b - a)))"; done
	echo "$row"
done >"$tmp/matrix"
"$lab" --nodes 8 --cpus-per-node 1 --memory-per-node 512M --distance "$tmp/matrix" -- numactl -H >"$tmp/eight"
expect "eight nodes" 8 "$(grep -Ec '^node [0-7] size: (4[0-9][0-9]|50[0-9]) MB$' "$tmp/eight")"
expect_match "CPU of node 3" '^node 3 cpus: 3$' "$tmp/eight"
expect_match "distances from a file" '^ +5: +25 +22 +19 +16 +13 +10 +13 +16' "$tmp/eight"

expect "one node, kernel 6.1" "1 6.1" \
	"$("$lab" --nodes 1 --cpus-per-node 1 --kernel 6.1 -- sh -c 'test -c /dev/kvm &&
		echo "$(nproc) $(uname -r | cut -d. -f1,2)"')"
finish
