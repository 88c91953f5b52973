#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Two SIGTERMs end a machine whatever stands in the way: a guest that reboots for ever, a standard error that
# nobody reads, a console that nobody reads.
source "$(dirname "$0")/lib.sh"
need_kvm
guest reset
guest halt

# $1 what, $2 wanted status, rest: what python makes of it. The machine's standard error (or output) is a full pipe.
full_pipe() {
	local what=$1 want=$2 stream=$3 got=0
	shift 3
	n_checks=$((n_checks + 1))
	timeout -k 5 60 python3 - "$stream" "$MIRRORBALL" run --memory 32M "$@" <<-'END' >.out 2>&1 || got=$?
		import fcntl, os, signal, subprocess, sys, time
		r, w = os.pipe()
		os.set_blocking(w, False)
		try:
		    while True:
		        os.write(w, b"x" * 4096)
		except BlockingIOError:
		    pass
		os.set_blocking(w, True)
		streams = {"stdin": subprocess.DEVNULL, sys.argv[1]: w}
		p = subprocess.Popen(sys.argv[2:], **streams)
		time.sleep(1.5)
		for _ in range(2):
		    p.send_signal(signal.SIGTERM)
		    time.sleep(0.5)
		try:
		    sys.exit(p.wait(8) % 256 if p.returncode is None or p.returncode >= 0 else 128 - p.returncode)
		except subprocess.TimeoutExpired:
		    p.kill()
		    sys.exit(99)
	END
	out=$(cat .out)
	look "$want" '' "$got" "$what"
}

n_checks=$((n_checks + 1))
"$MIRRORBALL" run --memory 32M --kernel reset.elf </dev/null >.out 2>&1 &
pid=$!
sleep 2
kill -TERM "$pid"
sleep 1
kill -TERM "$pid" 2>/dev/null || true
for _ in {1..80}; do
	kill -0 "$pid" 2>/dev/null || break
	sleep 0.1
done
if kill -0 "$pid" 2>/dev/null; then
	bad "a guest that reboots for ever outlives two SIGTERMs"
	kill -KILL "$pid"
fi
got=0
wait "$pid" || got=$?
out=$(cat .out)
look 143 '' "$got" "two SIGTERMs to a guest that reboots for ever"

full_pipe "full stderr, halted guest" 143 stderr --kernel halt.elf
full_pipe "full stderr, splash" 143 stderr splash churn ms=60000
full_pipe "full stdout, splash" 143 stdout splash demo ms=60000
full_pipe "full stdout, halted guest" 143 stdout --kernel halt.elf
finish
