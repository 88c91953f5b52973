#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An interrupted making of images leaves nothing behind that looks complete, and the next one makes it whole.
. "$(dirname "$0")/test-common.sh"
cache=${LAB_CACHE:-$here/../../build/lab}
if [ "$(id -u)" != 0 ] || ! LAB_CACHE=$cache "$here/images" --check; then
	echo "skipped: needs root, and complete images"
	exit 77
fi
for part in apt kernels guest host; do ln -s "$(realpath "$cache/$part")" "$tmp/$part"; done
export LAB_CACHE=$tmp

setsid "$here/images" >"$tmp/said" 2>&1 &
pid=$!
for _ in $(seq 600); do
	[ -z "$(find "$tmp" -path '*/make.*/emulator/usr/bin/*' 2>/dev/null | head -n 1)" ] || break
	sleep 0.1
done
if grep -q 'cannot download' "$tmp/said"; then
	echo "skipped: no network"
	exit 77
fi
kill -KILL -- "-$pid"
wait "$pid"
expect "killed in between" 137 $?
expect "no emulator yet" 1 "$([ -e "$tmp/emulator" ]; echo $?)"
"$here/images" --check
expect "which is known" 1 $?

"$here/images" >"$tmp/said" 2>&1
expect "made whole" 0 $?
"$here/images" --check
expect "and complete" 0 $?
expect "nothing half-made is left" "" "$(find "$tmp" -maxdepth 1 -name 'make.*')"
emulator=emulator/usr/bin/qemu-system-x86_64
expect "the same as the lab's" "" "$(cmp "$tmp/$emulator" "$cache/$emulator" 2>&1)"
expect "the emulator is mended" 0 "$("$here/mend-emulator" --check "$tmp/$emulator"; echo $?)"
finish
