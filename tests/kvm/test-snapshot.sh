#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A machine that checks itself is written down while it computes, and goes on from there: once, three times at once,
# from a snapshot of what came from a snapshot. What is damaged, changed or cannot be saved is refused.
source "$(dirname "$0")/own-run.sh" "$@"
source "$(dirname "$0")/lib.sh"
need_kvm
if [ "$(id -u)" != 0 ]; then
	mkdir -m 700 run
	export XDG_RUNTIME_DIR=$work/run
fi
export TMPDIR=$work

declare -A machines=() # PIDs of those that run
end_all() {
	[ "${#machines[@]}" = 0 ] || kill -KILL "${!machines[@]}" 2>/dev/null || true
}
cleanups+=(end_all)
check() {
	n_checks=$((n_checks + 1))
	"$@" || bad "$*: $(head -c 1500 <<<"$out")"
}
# await FILE PATTERN: a line of a file, within 30 s
await() {
	local i
	for ((i = 0; i < 300; i++)); do
		! grep -qsE -- "$2" "$1" || return 0
		sleep 0.1
	done
	bad "$1: no '$2': $(head -c 1000 "$1")"
}
# begin NAME ARG...: a machine that says what it does every 0.2 s; waits for its first word. Sets pid.
begin() {
	local name=$1
	shift
	"$MIRRORBALL" run --memory 64M --cpus 2 --name "$name" "$@" </dev/null >"$name.log" 2>&1 &
	pid=$!
	machines[$pid]=1
	await "$name.log" 'after [0-9]* ms'
}
# over PID STATUS FILE: it ends by itself, with that status, and found no fault
over() {
	local got=0
	wait "$1" || got=$?
	unset "machines[$1]"
	out=$(tr -d '\0' <"$3")
	look "$2" '' "$got" "$3"
	[ "$2" != 0 ] || grep -q ': ok$' "$3" || bad "$3: no 'ok': $out"
	n_checks=$((n_checks + 1))
}
nothing_left() { # of one that was given up
	check test -z "$(find "$work" -maxdepth 2 -name '*.new-*')"
}

for program in churn litmus; do
	begin "$program" splash "$program" ms=6000 every_ms=200
	expect 0 '' "$MIRRORBALL" snapshot "$program" "$program.snap"
	check test -z "$out"
	expect 0 ': ok$' "$MIRRORBALL" restore "$program.snap" --check
	over "$pid" 0 "$program.log"
done
# It is a file with holes, for its owner's eyes only.
check test "$(stat -c %a churn.snap churn.snap/state churn.snap/ram | tr '\n' ' ')" = '700 400 400 '
check test "$(stat -c %s churn.snap/ram)" = $((64 << 20))
check test "$(($(stat -c %b churn.snap/ram) * 512))" -lt $((40 << 20))

before=$(sha256sum churn.snap/*)

# Devices in whatever state a guest can bring them to.
for seed in 1 2 3; do
	truncate -s 4M scratch.img
	truncate -s 3M image.img
	"$MIRRORBALL" run --memory 64M --cpus 2 --name fuzz --disk scratch.img,cow --pmem image.img --console virtio splash fuzz ms=3000 \
		seed=$seed </dev/null >fuzz.log 2>&1 &
	pid=$!
	machines[$pid]=1
	sleep 1.5
	expect 0 '' "$MIRRORBALL" snapshot fuzz fuzz.snap
	expect 0 ': ok$' "$MIRRORBALL" restore fuzz.snap
	over "$pid" 0 fuzz.log
	touch image.img
	expect 1 'pmem .*/image.img: was changed since the snapshot was made' "$MIRRORBALL" restore fuzz.snap
	rm -rf fuzz.snap
done

# Three at once, of a running one and of a snapshot; each has its own name and memory.
begin origin splash churn ms=10000 every_ms=200
mkdir logs
expect 0 '^origin-3 [0-9]+$' "$MIRRORBALL" clone origin -n 3 --output logs
check test "$(grep -c '^origin-[123] [0-9]*$' <<<"$out")" = 3
expect 0 '^other-2 [0-9]+$' "$MIRRORBALL" clone ./churn.snap --name other --number 2 --output logs
for name in origin-1 origin-2 origin-3 other-1 other-2; do
	await "logs/$name.log" ': ok$'
	await "logs/$name.log" "mirrorball: $name: powered off"
done
over "$pid" 0 origin.log
check test -z "$(find "$work" -maxdepth 1 -name 'mirrorball-clone-*')"
expect 1 'logs/no/churn-1.log: No such file' "$MIRRORBALL" clone ./churn.snap --output logs/no
expect 1 "no machine 'churn.snap' is running" "$MIRRORBALL" clone churn.snap

# A number that a machine has is not given again.
begin taken-1 splash churn ms=600000 every_ms=200
expect 0 '^taken-2 [0-9]+$' "$MIRRORBALL" clone ./churn.snap --name taken --output logs
kill -QUIT "$pid"
over "$pid" 131 taken-1.log
await logs/taken-2.log 'mirrorball: taken-2: powered off'

# A snapshot of one that came from a snapshot, and of what came from that.
begin long splash churn ms=600000 every_ms=200
long=$pid
expect 0 '' "$MIRRORBALL" snapshot long long.snap
from=long.snap
for i in 1 2 3; do
	"$MIRRORBALL" restore "$from" --name "again$i" --check </dev/null >"again$i.log" 2>&1 &
	pid=$!
	machines[$pid]=1
	await "again$i.log" 'after [0-9]* ms'
	from=again$i.snap
	expect 0 '' "$MIRRORBALL" snapshot --json "again$i" "$work/$from"
	grep -q '"took_ms": [0-9]' <<<"$out" || bad "snapshot --json: $out"
	kill -QUIT "$pid" || bad "again$i has ended: $(cat "again$i.log")"
	over "$pid" 131 "again$i.log"
done
# What machines from it wrote is not in it.
check test "$(sha256sum churn.snap/*)" = "$before"

# A guest that resets itself is loaded anew, into memory that is empty; not in the middle of that.
"$MIRRORBALL" run --memory 64M --cpus 2 --name reset splash fuzz ms=600000 reset=1 seed=7 </dev/null >reset.log 2>&1 &
pid=$!
machines[$pid]=1
sleep 1
for _ in {1..100}; do
	"$MIRRORBALL" snapshot reset reset.snap 2>reset.why && break
	sleep 0.1
done
check test -d reset.snap
kill -QUIT "$pid"
over "$pid" 131 reset.log
expect 131 '[0-9]+ resets?$' timeout --preserve-status -s QUIT 6 "$MIRRORBALL" restore reset.snap

# ---- what is refused ----

expect 1 'churn.snap: there is something of that name' "$MIRRORBALL" snapshot long churn.snap
expect 1 'cannot be made: No such file' "$MIRRORBALL" snapshot long nowhere/snap
expect 1 "no machine 'lon' is running; did you mean 'long'" "$MIRRORBALL" snapshot lon lon.snap
expect 2 'the directory is missing' "$MIRRORBALL" snapshot long
expect 2 "'c' is too much" "$MIRRORBALL" snapshot a b c
expect 2 'no directory is named' "$MIRRORBALL" restore
expect 2 "'b' is too much" "$MIRRORBALL" restore a b
expect 2 '1 to 1000|at most 1000|from 1 to 1000' "$MIRRORBALL" clone -n 1001 long
expect 1 'snapshot nowhere: No such file' "$MIRRORBALL" restore nowhere
truncate -s 4M disk.img
begin disk --disk disk.img splash churn ms=600000 every_ms=200
expect 1 'disk disk.img: is written.*ro or cow' "$MIRRORBALL" snapshot disk disk.snap
kill -QUIT "$pid"
over "$pid" 131 disk.log
nothing_left

# spoilt WHAT MESSAGE COMMAND: a copy of it after a command in it
spoilt() {
	cp -a churn.snap spoilt
	chmod u+w spoilt/*
	(cd spoilt && eval "$3")
	expect 1 "snapshot spoilt: $2" "$MIRRORBALL" restore spoilt "${@:4}"
	rm -rf spoilt
}
spoilt 'a byte' 'file state: is damaged' 'printf x | dd of=state bs=1 seek=5000 conv=notrunc status=none'
spoilt 'shorter' 'file state: .*cut off' 'truncate -s -1 state'
spoilt 'version' 'file state: has version 9' 'printf "\011" | dd of=state bs=1 seek=8 conv=notrunc status=none'
spoilt 'no state' 'file state: No such file' 'rm state'
spoilt 'ram shorter' 'file ram: has 67104768 bytes instead of 67108864' 'truncate -s -4096 ram'
spoilt 'ram changed' 'file ram: was changed' 'touch ram'
spoilt 'ram damaged' 'file ram: is damaged' \
	'touch -r ram ../time && printf xyz | dd of=ram bs=1 seek=1234567 conv=notrunc status=none && touch -r ../time ram' --check
cp -a churn.snap copy
expect 0 ': ok$' "$MIRRORBALL" restore copy/

# The file is cut off under a machine that runs: its end is told, and it does end.
cp -a long.snap cut
chmod u+w cut/ram
"$MIRRORBALL" restore cut </dev/null >cut.log 2>&1 &
pid=$!
await cut.log '.'
truncate -s 1M cut/ram
got=0
wait "$pid" || got=$?
n_checks=$((n_checks + 1))
[ "$got" = 0 ] || grep -qE 'guest memory that the host could not provide|memory in file ram cannot be read|Bus error' cut.log ||
	bad "cut off: status $got: $(cat cut.log)"

# ---- in the way of it ----

# No room: nothing is left, and the machine goes on.
if [ "$(id -u)" = 0 ]; then
	mkdir small
	mount -t tmpfs -o size=4M none small
	cleanups+=('umount small')
	expect 1 'file ram: No space left' "$MIRRORBALL" snapshot long small/snap
	check test -z "$(ls small)"
fi
n=$(grep -c 'after' long.log)
sleep 1
check test "$(grep -c 'after' long.log)" -gt "$n"

# Who asked is gone: it is whole, or not there. The machine goes on.
for i in 1 2 3 4 5; do
	"$MIRRORBALL" snapshot long "gone$i.snap" 2>/dev/null &
	pid=$!
	sleep 0.0$i
	kill -INT "$pid" 2>/dev/null || true
	wait "$pid" || true
done
expect 0 '' "$MIRRORBALL" snapshot long last.snap
nothing_left
for snap in gone?.snap; do
	[ ! -e "$snap" ] || expect 131 '' timeout --preserve-status -s QUIT 1 "$MIRRORBALL" restore --check "$snap"
done
# Who clones is ended: no snapshot is left.
for i in 1 2 3 4 5 6; do
	"$MIRRORBALL" clone long -n 2 --name "ended$i" >ended.pids &
	pid=$!
	sleep "0.0$i"
	kill -TERM "$pid" 2>/dev/null || true
	wait "$pid" || true
	while read -r _ clone; do kill -QUIT "$clone"; done <ended.pids
done
check test -z "$(find "$work" -maxdepth 1 -name 'mirrorball-clone-*')"
# The machine is ended meanwhile.
"$MIRRORBALL" snapshot long end.snap >end.log 2>&1 &
pid=$!
kill -QUIT "$long"
wait "$pid" || true
over "$long" 131 long.log
nothing_left
[ ! -e end.snap ] || expect 131 '' timeout --preserve-status -s QUIT 1 "$MIRRORBALL" restore --check end.snap
# Ctrl-C of one that was restored.
"$MIRRORBALL" restore last.snap </dev/null >last.log 2>&1 &
pid=$!
machines[$pid]=1
await last.log 'after [0-9]* ms'
kill -INT "$pid"
over "$pid" 130 last.log
finish
