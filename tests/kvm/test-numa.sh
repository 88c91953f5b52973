#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mirrorball numa, and --migrate, on a host with one node: nothing moves, nothing is started for it, and it says so.
source "$(dirname "$0")/lib.sh"
need_kvm
export XDG_RUNTIME_DIR=$work

# begin NAME OPTION...
begin() {
	"$MIRRORBALL" run --quiet --cpus 1 --memory 32M --name "$@" >"$1.out" 2>"$1.err" </dev/null &
	pid=$!
	cleanups+=("kill -INT $pid 2>/dev/null")
	for ((i = 0; i < 100; i++)); do
		! "$MIRRORBALL" stat "$pid" >stat.out 2>/dev/null || return 0
		sleep 0.1
	done
	bad "$1: does not answer: $(cat "$1.err")"
}

# threads: names of its threads
threads() { cat /proc/"$pid"/task/*/comm | sort -u | xargs; }

nodes=$(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' | wc -l)

begin tracked --track on splash hello ms=60000
expect 0 '^migration ' "$MIRRORBALL" numa "$pid"
expect 0 '"ok": true' "$MIRRORBALL" numa "$pid" --json
python3 - .out "$here/../../man/mirrorball-numa.1.scd" <<'END' || bad "--json is not what was expected: $out"
import json, sys
a, page = json.load(open(sys.argv[1])), open(sys.argv[2]).read()
assert a["name"] == "tracked" and a["time_ms"] > 0 and a["views"], a
for key in a:
    assert f"*{key}*" in page, key
for key in a["placement"]:
    assert f"_{key}_" in page, key
assert a["placement"]["kind"] == "auto" and a["placement"]["nodes"], a
END
expect 0 '"migration": *[{]' "$MIRRORBALL" stat "$pid" --json
if [ "$nodes" -le 1 ]; then
	expect 0 'off on a host with one node' "$MIRRORBALL" numa --why "$pid"
	expect 0 '^placement +auto: node [0-9]+, the only node with CPUs$' "$MIRRORBALL" numa "$pid"
	[[ " $(threads) " != *" manager "* ]] || bad "a manager with nothing to do: $(threads)"
fi
kill -INT "$pid"
wait "$pid" || true

begin on --migrate on splash hello ms=60000
[[ " $(threads) " == *" tracker "* ]] || bad "--migrate on does not track: $(threads)"
kill -INT "$pid"
wait "$pid" || true

begin off --track on --migrate off splash hello ms=60000
expect 0 'switched off' "$MIRRORBALL" numa "$pid"
kill -INT "$pid"
wait "$pid" || true

begin auto splash hello ms=60000
[ "$nodes" -gt 1 ] || expect 0 'off on a host with one node' "$MIRRORBALL" numa "$pid"
[ "$nodes" -gt 1 ] || [[ " $(threads) " != *" tracker "* ]] || bad "a tracker with nothing to do: $(threads)"
kill -INT "$pid"
wait "$pid" || true

expect 0 '"migrate": "off"' "$MIRRORBALL" run --dry-run --json --migrate off
expect 0 '^migrated +between NUMA nodes, if vCPUs are on several$' "$MIRRORBALL" run --dry-run
expect 0 '^copied +up to a quarter' "$MIRRORBALL" run --dry-run
expect 0 '"replica_bytes": "auto"' "$MIRRORBALL" run --dry-run --json
expect 0 '^copied +never$' "$MIRRORBALL" run --dry-run --migrate off
expect 0 '^migrated +never$' "$MIRRORBALL" run --dry-run --track off
expect 0 '^migrated +between' "$MIRRORBALL" run --dry-run --migrate on
expect 0 '"track": "on"' "$MIRRORBALL" run --dry-run --json --migrate on
expect 2 'no machine is named' "$MIRRORBALL" numa
expect 2 'numa takes one machine' "$MIRRORBALL" numa a b
expect 2 "did you mean --why" "$MIRRORBALL" numa --whi a
expect 1 "no machine" "$MIRRORBALL" numa nobody
expect 0 'mirrorball-numa' "$MIRRORBALL" numa --help
expect 0 '^mirrorball ' "$MIRRORBALL" numa --version
finish
