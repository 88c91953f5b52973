# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by test-differential.sh, here and in the lab, after lib.sh or guests.sh: machines on one image that write into what they
# share, each of which checks all that it has against what it must be (splash diskchurn), and everything that may happen to
# them meanwhile, at random. $seed: of all that is chosen by chance. $mirrorball: the program. Work is in the current directory.
: "${seed:?}" "${mirrorball:?}"
RANDOM=$((seed % 32768))
image=$((seed % 250 + 1))
image_mib=${image_mib:-16}
n_checks=${n_checks:-0}
n_deaths=0
machine=() # options of all
within=()  # a command to run them with
declare -A pids=() options=() words=() ids=() shared=()
least_kib=${least_kib:-64} # that each machine shares of each kind
patience_s=300
begun=$SECONDS
next_id=$((RANDOM % 200 + 1))

# holds WHAT COMMAND...
holds() {
	n_checks=$((n_checks + 1))
	if "${@:2}"; then echo "ok: $1"; else bad "$1"; fi
}

say() { echo "$((SECONDS - begun)) s: $*"; }

# some_ms LEAST MOST: sleeps so long
some_ms() {
	local ms=$(($1 + RANDOM % ($2 - $1 + 1)))
	sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
}

# make_image FILE: as tests/guest/splash/diskchurn_content.c has it
make_image() {
	python3 - "$1" "$image" "$image_mib" <<-'END'
		import struct, sys
		image, n_blocks = int(sys.argv[2]), int(sys.argv[3]) * 256
		with open(sys.argv[1], "wb") as file:
		    for block in range(n_blocks):
		        head = 0xba << 56 | image << 48 | block << 28
		        file.write(bytes(4096) if block % 16 == 15 else struct.pack("<512Q", *range(head, head + 512)))
	END
	sync "$1"
	sleep 0.1 # its times are of before now for sure
}

# Of all of them; on a disk of theirs. 0: they go on; 1: what is not in a disk's own file may be missing; 2: that is all.
set_phase() {
	phase=$1
	printf "\\x$1\\0\\0\\0\\0\\0\\0\\0" | dd of=phase.img conv=notrunc status=none
}

# begin NAME [WORD...]
begin() {
	local name=$1
	shift
	# shellcheck disable=SC2086 # several words
	"${within[@]}" "$mirrorball" run --name "$name" "${machine[@]}" ${options[$name]} --disk phase.img,ro,direct=off \
		splash diskchurn "image=$image" "id=${ids[$name]}" "seed=$((RANDOM * 32768 + RANDOM))" \
		ms=3600000 ${words[$name]} "$@" >"$name.out" 2>"$name.err" </dev/null &
	pids[$name]=$!
}

# add NAME OPTIONS [WORDS]: a new machine
add() {
	ids[$1]=$next_id
	next_id=$((next_id % 255 + 1))
	options[$1]=$2
	words[$1]=${3-}
	shared[$1]='0 0 0'
	begin "$1"
}

runs() { kill -0 "${pids[$1]}" 2>/dev/null; }

# One that has ended by itself has found something: what is left to do is to say it.
must_run() {
	local name ended=0 status
	for name in "${!pids[@]}"; do
		! runs "$name" || continue
		ended=1 status=0
		wait "${pids[$name]}" 2>/dev/null || status=$?
		bad "$name: ended with status $status"
		cat "$name.out" "$name.err"
		unset "pids[$name]"
	done
	[ $ended = 1 ] || return 0
	n_checks=$((n_checks + 1))
	kill -KILL "${pids[@]}" 2>/dev/null || true
	wait "${pids[@]}" 2>/dev/null || true
	finish
	exit 1
}

any_machine() {
	local names=("${!pids[@]}")
	echo "${names[$1 % ${#names[@]}]}"
}

# Only the daemon of these machines: it is in a /run of its own, or the host is.
daemon_pid() { "$daemon" --stat 2>/dev/null | sed -n 's/.*"pid":\([0-9]*\).*/\1/p' | head -n 1; }

kill_daemon() {
	local pid
	pid=$(daemon_pid)
	[ -n "$pid" ] || return 0
	kill -KILL "$pid" 2>/dev/null || return 0
	n_deaths=$((n_deaths + 1))
	say "the daemon, $pid, is killed"
}

# What each has had in common with others so far, by provenance and by content, and has given back of zeroes: the most,
# in KiB; what another one of that name has begins anew.
look() {
	local name said
	for name in "${!pids[@]}"; do
		said=$("$mirrorball" stat "${pids[$name]}" --json 2>/dev/null | python3 -c '
import json, sys
s = json.load(sys.stdin)["sharing"]
now = (s["were_shared_bytes"], s["content"]["were_content_shared_bytes"], s["content"]["zero_bytes"])
print(*(max(n >> 10, int(before)) for n, before in zip(now, sys.argv[1:])))' ${shared[$name]} 2>/dev/null) || continue
		shared[$name]=$said
	done
}

# Whether all have, or NAME
has_shared() {
	local name base content zeroes
	for name in "${@:-${!pids[@]}}"; do
		read -r base content zeroes <<<"${shared[$name]}"
		[ $((base >= least_kib && content >= least_kib && zeroes >= least_kib)) = 1 ] || return
	done
}

# Otherwise nothing is tested.
all_share() {
	local name end=$((SECONDS + patience_s))
	until has_shared || [ "$SECONDS" -ge "$end" ]; do
		must_run
		sleep 0.5
		look
	done
	for name in "${!pids[@]}"; do
		say "$name, shared KiB of the image, of others' content, given back of zeroes: ${shared[$name]}"
		holds "$name: shares, and gives back" has_shared "$name"
	done
}

# No more address space than it has: mappings fail for a while.
limit_mappings() {
	local name kib
	name=$(any_machine "$RANDOM")
	kib=$(awk '/^VmSize/ { print $2 }' "/proc/${pids[$name]}/status" 2>/dev/null) || return 0
	prlimit --pid "${pids[$name]}" --as="$(((kib + RANDOM % 512) * 1024))": || return 0
	say "$name gets no more mappings"
	some_ms 300 1200
	prlimit --pid "${pids[$name]}" --as=unlimited: || true
}

# restart NAME: as it is killed or told to end; with what it wrote, if that is kept
restart() {
	local name=$1 signal=INT status=0 kept=()
	runs "$name" || return 0
	[ $((RANDOM % 2)) = 0 ] || signal=KILL
	look
	kill -s "$signal" "${pids[$name]}" || return 0
	wait "${pids[$name]}" 2>/dev/null || status=$?
	say "$name ended by SIG$signal, another one begins"
	holds "$name: status $status after SIG$signal" [ "$status" = "$([ $signal = INT ] && echo 130 || echo 137)" ]
	case ${options[$name]} in
	*overlay=*) kept=(kept=1) ;;
	*) ids[$name]=$next_id next_id=$((next_id % 255 + 1)) ;;
	esac
	begin "$name" "${kept[@]}"
}

# Whose overlay is in small/ has too little of it until now.
give_room() {
	room_mib=$((room_mib + ${1:-1}))
	say "small/ has $room_mib MiB"
	mount -o "remount,size=${room_mib}M" small
}

# lose_image FILE HOW: behind the back of all who have it
lose_image() {
	set_phase 1
	all_say "phase 1" "${!pids[@]}"
	change_image "$@"
	some_ms 500 1500
	kill_daemon
	all_say "has no image" "${!pids[@]}"
}

change_image() {
	say "$1 is $2"
	case $2 in
	cut) truncate -s $((RANDOM % image_mib))M "$1" ;;
	written)
		# In place, a piece here and a piece there.
		python3 - "$1" "$RANDOM" <<-'END'
			import os, random, sys
			random.seed(int(sys.argv[2]))
			fd = os.open(sys.argv[1], os.O_WRONLY)
			for _ in range(200):
			    n = random.choice((512, 4096, 65536))
			    os.pwrite(fd, random.randbytes(n), random.randrange((os.fstat(fd).st_size - n) // 512) * 512)
		END
		;;
	esac
}

# all_say PATTERN NAME...: waits for it
all_say() {
	local pattern=$1 name end=$((SECONDS + patience_s))
	shift
	for name in "$@"; do
		until grep -q "$pattern" "$name.out" || [ "$SECONDS" -ge "$end" ]; do
			must_run
			sleep 0.1
		done
		holds "$name: $pattern" grep -q "$pattern" "$name.out"
	done
}

# note NAME PATTERN: a number of what it said last
note() { sed -n "s/.* \([0-9]*\) $2.*/\1/p" "$1.out" | tail -n 1; }

# To the end, with everything as it should be.
all_end() {
	set_phase 2
	local name status
	for name in "${!pids[@]}"; do
		status=0
		wait "${pids[$name]}" || status=$?
		holds "$name: found everything right (status $status)" [ "$status" = 0 ]
		[ "$status" = 0 ] || cat "$name.out" "$name.err"
		grep 'all [0-9]* vCPU' "$name.out" || true
		! grep -E 'AddressSanitizer|LeakSanitizer|runtime error:|not shared' "$name.err" || bad "$name: said that"
		unset "pids[$name]"
	done
}

# happen EVENT...: in any order, as chance has it
happen() {
	local events=("$@") i
	while [ ${#events[@]} -gt 0 ]; do
		must_run
		i=$((RANDOM % ${#events[@]}))
		some_ms 400 1600
		${events[i]}
		unset "events[$i]"
		events=("${events[@]}")
	done
}

truncate -s 4K phase.img
set_phase 0
