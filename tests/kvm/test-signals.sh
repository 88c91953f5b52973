#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Signals: the first one is the power button, the second one the end; early ones, fatal ones.
source "$(dirname "$0")/lib.sh"
need_kvm
guest halt
guest spin

# Starts a machine, sends it signals, and looks at its end. $1 status, $2 pattern, $3 signals, rest: arguments.
signalled() {
	local want=$1 pattern=$2 signals=$3 pid got=0 signal
	shift 3
	n_checks=$((n_checks + 1))
	"$MIRRORBALL" run --memory 32M "$@" </dev/null >.out 2>&1 &
	pid=$!
	sleep "${wait_s:-1}"
	for signal in $signals; do
		kill -s "$signal" "$pid" 2>/dev/null || true
		sleep 0.5
	done
	for _ in {1..100}; do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	if kill -0 "$pid" 2>/dev/null; then
		bad "$signals, $*: still running"
		kill -KILL "$pid"
	fi
	wait "$pid" || got=$?
	out=$(cat .out)
	look "$want" "$pattern" "$got" "$signals to $*"
}

for guest in halt spin; do
	signalled 143 'power button' 'TERM TERM' --kernel $guest.elf
	signalled 130 'power button' 'INT INT' --kernel $guest.elf
	signalled 130 'power button' 'TERM INT' --kernel $guest.elf
	signalled 131 '' 'QUIT' --kernel $guest.elf
done
signalled 129 '' 'HUP HUP' --kernel halt.elf --cpus 4
signalled 143 '' 'TERM' splash radix ms=60000
signalled 130 '' 'INT' splash churn ms=60000
signalled 130 '' 'INT' --cpus 4 splash writeshare ms=60000

# The power button alone leaves it running.
"$MIRRORBALL" run --memory 32M --kernel halt.elf </dev/null >.out 2>&1 &
pid=$!
sleep 1
kill -TERM "$pid"
sleep 1
n_checks=$((n_checks + 1))
kill -0 "$pid" 2>/dev/null || bad "one SIGTERM ended a guest that did not react"
kill -TERM "$pid"
wait "$pid" || true

# At any time after its start: never a hang.
for ms in 0 1 2 3 5 8 10 15 20 30 50; do
	n_checks=$((n_checks + 1))
	"$MIRRORBALL" run --memory 32M --quiet splash radix ms=30000 </dev/null >.out 2>&1 &
	pid=$!
	sleep "$(printf '0.%03d' "$ms")"
	kill -TERM "$pid"
	got=0
	wait "$pid" || got=$?
	out=$(cat .out)
	look 143 '' "$got" "SIGTERM after $ms ms"
done

# A sanitizer has handlers of its own for these.
if [ "$(basename "${MB_BUILD-}")" != asan ]; then
	signalled 139 '' 'SEGV' --kernel halt.elf
	signalled 134 '' 'ABRT' --kernel halt.elf
fi
finish
