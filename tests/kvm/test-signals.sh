#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Signals: the first one is the power button, the second one the end; early ones, fatal ones.
source "$(dirname "$0")/lib.sh"
need_kvm
guest halt
guest spin

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

# At any time after its start: never a hang. Before it is there the shell that becomes it gets the signal, and may lose it.
read -r shell <"/proc/$BASHPID/comm"
for ms in 0 1 2 3 5 8 10 15 20 30 50; do
	n_checks=$((n_checks + 1))
	"$MIRRORBALL" run --memory 32M --quiet splash radix ms=30000 </dev/null >.out 2>&1 &
	pid=$!
	comm=$shell
	while [ "$comm" = "$shell" ]; do read -r comm <"/proc/$pid/comm"; done
	sleep "$(printf '0.%03d' "$ms")"
	kill -TERM "$pid"
	got=0
	wait "$pid" || got=$?
	out=$(cat .out)
	look 143 '' "$got" "SIGTERM after $ms ms"
done

# While the machine is built: it finds a program `passt` in the directory $1. $2 signals, $3 status, $4 pattern, $5
# limit in seconds, rest: arguments.
built() {
	local dir=$1 signals=$2 want=$3 pattern=$4 limit_s=$5
	shift 5
	MUTE=$work PATH=$work/$dir:$PATH signalled "$want" "$pattern" "$signals" "$@"
}

# A passt that says nothing: 3 s each, and a signal ends that with the one that is being waited for.
mkdir mute held
printf '#!/bin/sh\nexec sleep 30\n' >mute/passt
chmod +x mute/passt
nets=(--net passt --net passt --net passt --net passt)
wait_s=2 built mute INT 130 '' 5 "${nets[@]}" splash hello
[ "$(grep -c '' <<<"$out")" = 1 ] || bad "INT while passt starts: did not stop at the first: $out"
wait_s=2 built mute TERM 143 '' 5 "${nets[@]}" --dry-run splash hello
[ "$(grep -c '' <<<"$out")" = 1 ] || bad "TERM while passt starts: did not stop at the first: $out"
left=$(grep -lzxs "MUTE=$work" /proc/[0-9]*/environ || true)
[ -z "$left" ] || bad "a passt is left over: $(for file in $left; do tr '\0' ' ' <"${file%/*}/cmdline"; done)"
# Somebody holds a lease on the program: the kernel does not start it until it is given up (fcntl(2)).
cp "$(type -P true)" held/passt
python3 - held/passt <<-'END' &
	import fcntl, os, signal, sys, time
	signal.signal(signal.SIGIO, signal.SIG_IGN)
	fd = os.open(sys.argv[1], os.O_RDWR)
	fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
	open("leased", "w").close()
	time.sleep(40)
END
holder=$!
cleanups+=("kill $holder")
for _ in {1..50}; do
	if [ -e leased ] || ! kill -0 "$holder" 2>/dev/null; then break; fi
	sleep 0.1
done
if [ -e leased ]; then
	what='while opening its disks and networks$'
	built held INT 130 "Interrupt: ended $what" 5 --net passt --kernel halt.elf
	built held 'TERM TERM' 143 "Terminated: ended $what" 1 --net passt --kernel halt.elf
	built held 'TERM INT' 130 "Interrupt: ended $what" 1 --net passt --dry-run --kernel halt.elf
	built held QUIT 131 "ended $what" 5 --net passt splash hello
else
	echo "a file cannot be leased here: not tested"
fi

# A sanitizer has handlers of its own for these.
if [ "$(basename "${MB_BUILD-}")" != asan ]; then
	signalled 139 '' 'SEGV' --kernel halt.elf
	signalled 134 '' 'ABRT' --kernel halt.elf
fi
finish
