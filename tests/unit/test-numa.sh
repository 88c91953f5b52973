#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What mirrorball numa says of copies that a made-up machine has of its memory.
source "$(dirname "$0")/lib.sh"
export XDG_RUNTIME_DIR=$work # not root: its sockets
"$here/tests/unit/fake-machine" "numa-$$" copies >machine.pid &
machine=$!
cleanup() {
	kill "$machine" 2>/dev/null || true
	wait || true
	rm -rf "$work"
}
for _ in {1..100}; do
	[ ! -s machine.pid ] || break
	sleep 0.1
done
[ -s machine.pid ] || bad "no fake machine"

expect 0 '' "$MIRRORBALL" numa "numa-$$"
has '^copies +78M, at most 256M: 0 of view 0, 78M of view 1; 100M were made$'
has '^writes to them +7 waited, 45 us on average, at most 300 us$'
expect 0 '' "$MIRRORBALL" numa --json "numa-$$"
for key in bytes view_bytes max_bytes copied_bytes faults fault_ns longest_ns; do
	has "\"$key\""
	grep -q "_${key}_" "$here/man/mirrorball-stat.1.scd" || bad "mirrorball-stat(1) lacks $key"
done
finish
