#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bench/model: times and ratios that can be worked out by hand, and files that are none.
# tests/run: once
set -euo pipefail
model=$(cd "$(dirname "$0")/../.." && pwd)/bench/model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
n_bad=0
expect() {
	if [ "$2" != "$3" ]; then
		echo "FAILED: $1: wanted '$2', got '$3'"
		n_bad=1
	fi
}

# section LOAD_MISSES STORE_MISSES
section() {
	echo "{\"sections\": {\"1\": {\"guest\": {\"load_misses\": $1, \"store_misses\": $2}}}}"
}
# figures FILE MACHINE: misses, ms, to best, to worst
figures() {
	"$model" --json --machine "$2" "$1" | python3 -c '
import json, sys
for row in json.load(sys.stdin):
    print(row["misses"], *(f"{row[key]:.4f}" for key in ("ms", "to_best", "to_worst")))'
}

# Disco's machine: 1,000 local and 500 + 500 remote misses are 300 us and 900 us.
section '[[1000, 500], [0, 0]]' '[[0, 500], [0, 0]]' >half.json
expect "half of it remote" "2000 1.2000 2.0000 0.6667" "$(figures half.json disco)"
section '[[1000, 0], [0, 1000]]' '[[0, 0], [0, 0]]' >local.json
expect "all local" "2000 0.6000 1.0000 0.3333" "$(figures local.json disco)"
# Rows are processors: those of node 1 wait longer for node 0 than the other way round.
section '[[0, 0], [1000000, 0]]' '[[0, 0], [0, 0]]' >remote.json
expect "all remote" "1000000 141.6000 1.7374 1.0000" "$(figures remote.json xeon-2s)"
expect "it says that it is a model" 1 "$("$model" half.json | grep -c '^Modelled from counted misses')"
expect "all machines" 4 "$("$model" half.json | grep -c '^| half.json')"

echo '[]' >bad.json
for file in bad.json missing.json; do
	status=0
	"$model" "$file" 2>err >/dev/null || status=$?
	expect "$file" "1 1" "$status $(wc -l <err)"
done
section '[[1,1,1],[1,1,1],[1,1,1]]' '[[1,1,1],[1,1,1],[1,1,1]]' >three.json
expect "too many nodes" "bench/model: three.json: 3 nodes, xeon-2s has 2" \
	"$("$model" --machine xeon-2s three.json 2>&1 || true)"
exit "$n_bad"
