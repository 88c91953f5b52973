#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# However a lab is ended, no emulator and no file of it stays behind.
. "$(dirname "$0")/test-common.sh"

# emulator_of PID: whether an emulator of this process is there
emulator_of() { pgrep -P "$1" -f qemu-system; }

killed=
for signal in KILL TERM INT; do
	coproc "$lab" -- bash -c 'echo up; sleep 1000' 2>"$tmp/err"
	# shellcheck disable=SC2153 # bash sets it
	pid=$COPROC_PID
	read -r -t 300 line <&"${COPROC[0]}"
	expect "$signal: command runs" up "$line"
	emulator=$(emulator_of "$pid")
	run=$(tr '\0' '\n' <"/proc/$emulator/cmdline" | sed -n 's/.*file=\(.*\)\/in\.tar.*/\1/p')
	expect "$signal: its directory is there" 0 "$(test -d "$run"; echo $?)"
	kill -s "$signal" "$pid"
	wait "$pid" 2>/dev/null
	status=$?
	expect "$signal: status" $((128 + $(kill -l "$signal"))) "$status"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		kill -0 "$emulator" 2>/dev/null || break
		sleep 0.2
	done
	expect "$signal: emulator is gone" 1 "$(kill -0 "$emulator" 2>/dev/null; echo $?)"
	if [ "$signal" = KILL ]; then
		killed=$run
	else
		expect "$signal: directory is gone" 1 "$(test -e "$run"; echo $?)"
	fi
done
# The next lab has cleared up after the killed one.
expect "KILL: directory is gone" 1 "$(test -e "$killed"; echo $?)"
finish
