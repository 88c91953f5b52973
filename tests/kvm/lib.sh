# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests of the kvm suite. MIRRORBALL: the program under test. A test ends with 0, 77 or
# anything else; every check that fails is said, and the test goes on.
# shellcheck shell=bash
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${MIRRORBALL:=$here/../../build/cli/mirrorball}"
[ -x "$MIRRORBALL" ] || {
	echo "$MIRRORBALL: not built"
	exit 1
}
export here MIRRORBALL

out=
work=$(mktemp -d)
n_checks=0
n_bad=0
cleanups=()
on_exit() {
	local status=$? i
	for ((i = ${#cleanups[@]}; i > 0; i--)); do
		eval "${cleanups[i - 1]}" || true
	done
	rm -rf "$work"
	exit "$status"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$work"

skip() {
	echo "$1"
	exit 77
}

need_kvm() {
	if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
		skip "needs /dev/kvm"
	fi
}

need_root() {
	[ "$(id -u)" = 0 ] || skip "needs root"
}

bad() {
	n_bad=$((n_bad + 1))
	echo "FAILED: $*"
}

guest() {
	"$here/tiny-guest" "$1" "$1.elf"
}

# Runs a command and looks at its status and at what it says.
#
#   expect STATUS PATTERN COMMAND...
#
# PATTERN is an extended regular expression that a line of its output must match ("": none needed). Whatever
# the status, the command must say nothing of a sanitizer, leave no core file, and an error of ours is one line. Output: $out.
expect() {
	local want=$1 pattern=$2 got=0 lines
	shift 2
	n_checks=$((n_checks + 1))
	timeout -k 5 "${limit:-60}" "$@" >"$work/.out" 2>&1 </dev/null || got=$?
	out=$(tr -d '\0' <"$work/.out")
	look "$want" "$pattern" "$got" "$*"
	if [ "$want" = 1 ] && [ "${1##*/}" = mirrorball ]; then
		lines=$(grep -c '' "$work/.out" || true)
		[ "$lines" = 1 ] || bad "$*: $lines lines instead of one: $out"
	fi
}

# $1 wanted status, $2 pattern, $3 status, $4 command
look() {
	if [ "$3" != "$1" ]; then
		bad "$4: status $3 instead of $1: $(head -c 1500 <<<"$out")"
	elif [ -n "$2" ] && ! grep -qE -- "$2" <<<"$out"; then
		bad "$4: no line matches '$2': $(head -c 1500 <<<"$out")"
	fi
	if grep -qE 'AddressSanitizer|LeakSanitizer|runtime error:' <<<"$out"; then
		bad "$4: a sanitizer spoke: $(head -c 4000 <<<"$out")"
	fi
	if compgen -G 'core*' >/dev/null; then
		bad "$4: left a core file"
	fi
}

# Starts a machine, sends it signals half a second apart, and looks at its end. $1 status, $2 pattern, $3 signals, rest:
# arguments. limit_s: within which it must be there, 10.
signalled() {
	local want=$1 pattern=$2 signals=$3 pid got=0 signal i
	shift 3
	n_checks=$((n_checks + 1))
	"$MIRRORBALL" run --memory 32M "$@" </dev/null >.out 2>&1 &
	pid=$!
	sleep "${wait_s:-1}"
	for signal in $signals; do
		kill -s "$signal" "$pid" 2>/dev/null || true
		sleep 0.5
	done
	for ((i = 0; i < ${limit_s:-10} * 10; i++)); do
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

finish() {
	echo "$n_checks checks, $n_bad failed"
	[ "$n_bad" -eq 0 ] && [ "$n_checks" -gt 0 ]
}
