# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by tests of commands that need no machine: a place to work in, checks that are counted, and their end.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
: "${MIRRORBALL:=$here/build/cli/mirrorball}"
export MIRRORBALL
work=$(mktemp -d)
cleanup() { rm -rf "$work"; } # may be made anew
trap cleanup EXIT
cd "$work"
n_checks=0
n_bad=0
bad() {
	echo "FAILED: $*"
	n_bad=$((n_bad + 1))
}
# $1: status, $2: what standard error says; rest: command. Leaves out and err. A failure is told in one line.
expect() {
	local want=$1 says=$2 status=0
	shift 2
	"$@" >out 2>err </dev/null || status=$?
	n_checks=$((n_checks + 1))
	[ "$status" -eq "$want" ] || bad "$*: status $status, not $want: $(head -c 500 err)"
	[ -z "$says" ] || grep -qE -- "$says" err || bad "$*: standard error lacks '$says': $(head -c 500 err)"
	[ "$want" -ne 1 ] || [ "$(wc -l <err)" -eq 1 ] || bad "$*: more than a line: $(head -c 500 err)"
}
# $1: pattern, $2: file, if not out
has() {
	n_checks=$((n_checks + 1))
	grep -qE -- "$1" "${2:-out}" || bad "no '$1' in: $(head -c 3000 "${2:-out}")"
}
# The keys of all objects in a file of JSON, sorted.
json_keys() {
	python3 - "$1" <<-'END'
		import json, sys

		def keys(value):
		    if isinstance(value, dict):
		        for key, inner in value.items():
		            yield key
		            yield from keys(inner)
		    elif isinstance(value, list):
		        for inner in value:
		            yield from keys(inner)

		print("\n".join(sorted(set(keys(json.load(open(sys.argv[1])))))))
	END
}
finish() {
	echo "$n_checks checks, $n_bad failed"
	[ "$n_bad" -eq 0 ]
}
