# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by tests/run: how a test is run, told and counted, and how tests go side by side. $logs: the directory of
# their logs. $verbose: show what they say.

child=
cpu_ms=0
lanes=()

# A test is a process group of its own (timeout makes it): end it, and what it started, with us.
end_children() {
	local pid
	trap '' INT TERM HUP
	[ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
	for pid in "${lanes[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	wait
}

stop() {
	end_children
	echo "tests/run: interrupted" >&2
	exit 130
}

# Of this shell's children that have ended. Not in a subshell: that one's are others.
children_ms() { # sets cpu_ms
	local user system
	times >"$logs/times.$BASHPID"
	{ read -r user && read -r user system; } <"$logs/times.$BASHPID"
	rm "$logs/times.$BASHPID"
	cpu_ms=0
	for user in "$user" "$system"; do
		system=${user#*m} system=${system%s}
		cpu_ms=$((cpu_ms + ${user%%m*} * 60000 + ${system%.*} * 1000 + 10#${system#*.}))
	done
}

now_ms() {
	local t=$EPOCHREALTIME
	echo $((${t%[.,]*} * 1000 + 10#${t#*[.,]} / 1000))
}

# ---- what is told and counted. Several do so at once: what one test says stays in one piece.

tell() { flock "$logs/telling" cat; }

# $cpu_ms: processors' time, of what was waited for
say() { # mark name ms [note]
	printf '%-5s %-44s %5d.%d s %5d.%d s of CPU%s\n' "$1" "$2" $(($3 / 1000)) $(($3 % 1000 / 100)) \
		$((cpu_ms / 1000)) $((cpu_ms % 1000 / 100)) "${4:+  $4}"
}

# Its end, and before that what it says failed.
show_log() {
	[ -z "$verbose" ] || return 0
	{
		head -n -40 "$1" | grep -a -A 3 '^FAILED' || true
		tail -n 40 "$1"
	} 2>/dev/null | sed 's/^/      | /'
}

# count WHAT N [NAME]: passed, failed, skipped tests, or those of the lab that were run again
count() { echo "$*" >>"$logs/counts"; }

# counted WHAT: how many
counted() { awk -v what="$1" '$1 == what { n += $2 } END { print n + 0 }' "$logs/counts"; }

# Counts one test and says how it went. $1 name, $2 status, $3 ms, $4 log, $5 limit
verdict() {
	case $2 in
	0)
		count passed 1
		say PASS "$1" "$3"
		;;
	77)
		count skipped 1
		say SKIP "$1" "$3" "$(tail -n 1 "$4" 2>/dev/null | cut -c 1-120)"
		;;
	*)
		count failed 1 "$1"
		if [ "$2" = 124 ] || [ "$2" = 137 ]; then
			say FAIL "$1" "$3" "no end within $5 s"
		else
			say FAIL "$1" "$3" "status $2, $4"
		fi
		show_log "$4"
		;;
	esac | tell
}

# ---- one test

# Runs a command under a time limit with its output in a log. $1 log, $2 limit in seconds, rest: command.
# Sets status, took_ms, and cpu_ms.
run_limited() {
	local log=$1 limit=$2 start before
	shift 2
	start=$(now_ms)
	children_ms
	before=$cpu_ms
	status=0
	# A background job of a script is born with SIGINT ignored; tests send that signal and mean it.
	timeout -k 15 "$limit" env --default-signal=INT,QUIT "$@" >"$log" 2>&1 </dev/null &
	child=$!
	wait "$child" || status=$?
	child=
	took_ms=$(($(now_ms) - start))
	children_ms
	cpu_ms=$((cpu_ms - before))
	[ -z "$verbose" ] || sed 's/^/      | /' "$log" | tell
}

# A step that everything after it needs: a failure is counted as a failed test. $1 name, rest: command.
step() {
	local name=$1 log
	shift
	log=$logs/${name//[ \/]/-}.log
	run_limited "$log" 1800 "$@"
	if [ "$status" -eq 0 ]; then
		say DONE "$name" "$took_ms" | tell
		return 0
	fi
	verdict "$name" 1 "$took_ms" "$log" 1800
	return 1
}

# One program of the unit suite. Check writes a line a case (TAP), and they are what is counted.
run_unit() { # name limit command...
	local name=$1 limit=$2 log tap ok not_ok skipped
	shift 2
	log=$logs/${name//\//-}.log
	tap=$log.tap
	rm -f "$tap"
	run_limited "$log" "$limit" env CK_TAP_LOG_FILE_NAME="$tap" "$@"
	if [ ! -s "$tap" ]; then
		verdict "$name" "$status" "$took_ms" "$log" "$limit"
		return
	fi
	ok=$(grep -c '^ok ' "$tap" || true)
	not_ok=$(grep -c '^not ok ' "$tap" || true)
	# Cases that found something missing say so, one line each, and are "ok" to Check; the program ends with 77.
	skipped=0
	if [ "$status" -eq 77 ] && [ "$not_ok" -eq 0 ]; then
		skipped=$(grep -c '^skipped: ' "$log" || true)
		[ "$skipped" -gt 0 ] || skipped=1
		[ "$skipped" -le "$ok" ] || skipped=$ok
		ok=$((ok - skipped))
		count skipped "$skipped"
		status=0
	fi
	# A program that dies before or after its cases has failed as well.
	[ "$status" -eq 0 ] || [ "$not_ok" -gt 0 ] || not_ok=1
	count passed "$ok"
	if [ "$not_ok" -gt 0 ]; then
		count failed "$not_ok" "$name"
		say FAIL "$name" "$took_ms" "$not_ok of $((ok + not_ok)) cases, status $status, $log"
		grep '^not ok ' "$tap" | sed 's/^/      | /' || true
		show_log "$log"
	else
		say PASS "$name" "$took_ms" "$ok cases$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
	fi | tell
}

run_script() { # name limit script
	local log=$logs/${1//\//-}.log
	run_limited "$log" "$2" "$3"
	verdict "$1" "$status" "$took_ms" "$log" "$2"
}

# A test of the lab. The emulator hangs or kills a processor now and then (tests/lab/README.md), host and
# guests alike: then the test runs once more, and that is said. Where the lab itself held and the guest was
# splash or torture, nothing but we can be the cause: no second try.
run_lab() { # name limit script
	local log=$logs/${1//\//-}.log
	run_limited "$log" "$2" "$3"
	case $status in
	0 | 77) ;;
	*)
		if [[ $1 != *splash* && $1 != *torture* ]] || grep -q '^lab: ' "$log"; then
			{
				say again "$1" "$took_ms" "status $status, ${log%.log}.first.log"
				show_log "$log"
			} | tell
			mv "$log" "${log%.log}.first.log"
			count again 1 "$1"
			run_limited "$log" "$2" "$3"
		fi
		;;
	esac
	verdict "$1" "$status" "$took_ms" "$log" "$2"
}

# ---- side by side

# lane COMMAND...: runs these commands of ours one after the other, beside everything else, until join.
lane() {
	(
		lanes=()
		trap 'end_children; exit 130' INT TERM HUP
		for command; do eval "$command"; done
	) &
	lanes+=($!)
}

# join: waits for all lanes
join() {
	local pid
	for pid in "${lanes[@]}"; do
		wait "$pid" || count failed 1 "a lane of tests"
	done
	lanes=()
}
