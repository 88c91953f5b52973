#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bench/locality: the oracle and the costs, with numbers that can be worked out by hand.
. "$(dirname "$0")/lib.sh"

expect 0 '' "$here/bench/locality" --help
has 'programs of splash: readshare'
expect 2 'nosuch: there is' "$here/bench/locality" nosuch
expect 2 'fewer than 4 nodes' "$here/bench/locality" --nodes 4 --machine xeon-2s

cat >sums.py <<'END'
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import picture, placement, stock

NS = [[100, 200], [250, 100]]
# Page 1 is node 0's, page 2 node 1's, and both use page 3; page 1 changes hands in the second slice. Page 3 is read only,
# and page 1 in the second slice.
SLICES = [
    {"run": 1, "ms": 1000, "misses": [[10, 5], [0, 30]], "pages": [[1, 4, 10, 0], [2, 9, 0, 20], [3, 0, 5, 10]]},
    {"run": 1, "ms": 2000, "misses": [[0, 0], [8, 0]], "pages": [[1, 0, 0, 8]]},
    {"run": 2, "ms": 900, "misses": [[1, 0], [0, 0]], "pages": []},
]
first, second = placement.runs(SLICES)
assert len(first) == 2 and second == SLICES[2:]
whole = placement.total(s["misses"] for s in first)
assert whole == [[10, 5], [8, 30]] and placement.misses(whole) == 53
assert placement.local(whole) == 40 / 53 and placement.local([[0, 0], [0, 0]]) is None
assert placement.time_ns(whole, NS) == 10 * 100 + 5 * 200 + 8 * 250 + 30 * 100
# Page 1 on node 0: 1000 + 8 * 250; on node 1: 2000 + 800. Page 3 on node 0: 500 + 2500; on node 1: 1000 + 1000.
assert placement.best_node([10, 8], NS) == (1, 2800) and placement.best_node([5, 10], NS) == (1, 2000)
assert placement.oracle(first, NS) == ([[0, 15], [0, 38]], 2800 + 2000 + 2000)
# Where pages may follow, page 1 is local in both slices.
assert placement.oracle(first, NS, follows=True) == ([[10, 5], [0, 38]], 1000 + 2000 + 2000 + 800)
# All three in one block: 15 + 8 + 30 misses. On node 0: 1500 + 38 * 250; on node 1: 3000 + 3800.
assert placement.oracle(first, NS, granule=512) == ([[0, 15], [0, 38]], 6800)
assert placement.oracle([], NS) == (None, 0)
# With copies page 3 is local to both, and, where pages may follow, page 1 would be as well.
assert placement.oracle(first, NS, copies=True) == ([[5, 10], [0, 38]], 2800 + 2000 + 1500)
assert placement.oracle(first, NS, follows=True, copies=True) == ([[15, 0], [0, 38]], 1000 + 2000 + 1500 + 800)
# 1024 small pages and 2 blocks were moved, 3 taken apart, 2 of them in a pause, 10 were copied, one of which was written,
# with 30 faults of KVM and 10 of the host.
before = {"at": 1.5, "faults": 5, "numa_hint_faults": 0, "pgmigrate_success": 7, "thp_migration_success": 1,
          "thp_split_page": 4, "pauses": 0, "copied": 1, "collapses": 0}
after = {"at": 2.5, "faults": 35, "numa_hint_faults": 10, "pgmigrate_success": 7 + 2048, "thp_migration_success": 3,
         "thp_split_page": 7, "pauses": 2, "copied": 11, "collapses": 1}
assert placement.host_ns(before, after, 4) == (
    40 * 1250 + 50000, 1024 * 5000 + 2 * 300000 + 3 * 100000 + 2 * 4 * 500000 + 10 * 8000)

svg = picture.lines("<a>", [("b", {"x & y": [(0, 0.5), (4, 1)]})])
assert "&lt;a&gt;" in svg and "x &amp; y" in svg and 'points="50.0,135.0 690.0,60.0"' in svg, svg
for name, what in stock.WORKLOADS.items():
    script = stock.SCRIPT.format(jobs=4, n=4, once=what["once"], job=what["job"], warm=1, begins="b", is_warm="w", failed="f")
    # The whole of it is one word of the shell's.
    assert script.count("'") == 2, name
END
n_checks=$((n_checks + 1))
python3 sums.py "$here/bench/lib" || bad "sums"
finish
