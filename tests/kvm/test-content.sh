#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Sharing by content: two splash guests of one trust group that fill a table with the same words have it in memory once,
# and read it right; one that writes all the time, looked through as fast as it goes, has what it should.
# tests/run: once
source "$(dirname "$0")/lib.sh"
need_kvm
export XDG_RUNTIME_DIR=$work
daemon=$(dirname "$MIRRORBALL")/mirrorballd
# Root's is in one place for all.
! "$daemon" --stat >stat.json 2>/dev/null || grep -q '"groups"' stat.json || skip "a mirrorballd runs that knows no groups"
cleanups+=('wait')

# begin NAME OPTION...
begin() {
	local name=$1
	"$MIRRORBALL" run --quiet --name "$@" >"$name.out" 2>"$name.err" </dev/null &
	pids[$name]=$!
	cleanups+=("kill -INT ${pids[$name]} 2>/dev/null")
}
declare -A pids

# content NAME KEY: of its answer; nothing while there is none
content() {
	"$MIRRORBALL" stat "${pids[$1]}" --json 2>/dev/null |
		python3 -c 'import json, sys; print(json.load(sys.stdin)["sharing"]["content"].get(sys.argv[1], 0))' "$2" 2>/dev/null || echo 0
}

seconds=150
ms=600000 # until they are told to end
group=test-$$
begin one --cpus 1 --memory 64M --trust-group "$group" --content-budget 20 splash readshare size=16M seed=7 ms="$ms"
for ((i = 0; i < 300; i++)); do
	state=$(content one state)
	[ "$state" = 0 ] || break
	sleep 0.1
done
[ "$state" != "not possible on this host" ] || skip "needs /dev/userfaultfd"
begin two --cpus 1 --memory 64M --trust-group "$group" --content-budget 20 splash readshare size=16M seed=7 ms="$ms"
begin busy --cpus 1 --memory 64M --trust-group "$group" --content-budget 100 splash churn size=8M ms="$ms"
begin zero --cpus 1 --memory 64M --content-budget 20 splash hello ms="$ms"

for ((i = 0; i < seconds; i++)); do
	[ "$(content one content_shared_bytes)" -lt 15000000 ] || [ "$(content two content_shared_bytes)" -lt 15000000 ] || break
	sleep 1
done
for name in one two; do
	shared=$(content "$name" content_shared_bytes)
	[ "$shared" -ge 15000000 ] || bad "$name shares $shared bytes: $("$MIRRORBALL" stat "${pids[$name]}")"
done
[ "$(content zero state)" = zeroes ] || bad "without a group: $(content zero state)"
"$MIRRORBALL" stat "${pids[one]}" --json >stat.json
python3 - stat.json "$here/../../man/mirrorball-stat.1.scd" <<'END' || bad "what it tells is not in mirrorball-stat(1)"
import json, sys
page = open(sys.argv[2]).read()
content = json.load(open(sys.argv[1]))["sharing"]["content"]
for key in content:
    assert f"_{key}_" in page, key
assert content["scanned_pages"] > 0 and content["scan_cpu_seconds"] > 0 and content["passes"] > 0, content
END
expect 0 '"noted_hashes"' "$daemon" --stat

# Each checks what it reads and has written as long as it runs, and ends where that is wrong.
sleep 3
for name in one two busy zero; do
	n_checks=$((n_checks + 1))
	status=0
	kill -INT "${pids[$name]}" || bad "$name has ended"
	wait "${pids[$name]}" || status=$?
	[ "$status" = 130 ] || bad "$name ended with $status: $(cat "$name.out" "$name.err")"
done
finish
