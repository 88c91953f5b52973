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

wait_s=2 signalled 143 '' 'TERM TERM' --kernel reset.elf
full_pipe "full stderr, halted guest" 143 stderr --kernel halt.elf
full_pipe "full stderr, splash" 143 stderr splash churn ms=60000
full_pipe "full stdout, splash" 143 stdout splash demo ms=60000
full_pipe "full stdout, halted guest" 143 stdout --kernel halt.elf
finish
