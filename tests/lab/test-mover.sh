#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tests/unit/test_mover.c where there are two nodes: what moves and what cannot, with and without privilege, beside
# threads that write; on both kernels.
# tests/run: alone
. "$(dirname "$0")/test-common.sh"
build=${MB_BUILD:-$here/../../build}
libraries=()

for word in $(ldd "$build/tests/unit/test_mover" | awk '/libsubunit|libcheck/ { print $3 }'); do
	libraries+=(--in "$word")
done
for kernel in 6.12 6.1; do
	"$lab" --time 8m --kernel "$kernel" --memory-per-node 512M --build "$build" --in "$build/tests/unit/test_mover" \
		"${libraries[@]}" -- sh -c 'LD_LIBRARY_PATH=/in /in/test_mover' >"$tmp/out" 2>&1
	expect "$kernel: status" 0 $?
	cat "$tmp/out"
	expect_match "$kernel: nothing failed" '^100%: Checks: [0-9]+, Failures: 0' "$tmp/out"
done
finish
