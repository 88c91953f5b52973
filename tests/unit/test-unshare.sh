#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bench/run unshare: percentiles, the histogram, and what is said of a result, with numbers that can be worked out by hand.
# tests/run: once
source "$(dirname "$0")/lib.sh"

n_checks=$((n_checks + 1))
python3 -B - "$here/bench/lib" <<'END' || bad "sums"
import sys
sys.path.insert(0, sys.argv[1])
import unshare
found = unshare.parse("views-1 30.5\nkernel 0.4\nkernel 3\nviews-1 2.0\nkernel 1.0\n")
assert found == {"views-1": [2.0, 30.5], "kernel": [0.4, 1.0, 3.0]}, found
assert unshare.at(list(range(1000)), .999) == 999 and unshare.at([7], .5) == 7
# Below 1, 2, 4 us; what is a power of two is not below it.
assert unshare.buckets([0.4, 1.0, 3.9, 4.0]) == [1, 1, 1, 1], unshare.buckets([0.4, 1.0, 3.9, 4.0])
assert unshare.buckets([]) == []
lines = unshare.histogram({"ours": [0, 0, 100, 0, 1], "none": []}).splitlines()
assert lines == ["ours (101 writes)", "  <       4 us     100  " + 40 * "#", "  <       8 us       0", "  <      16 us       1  .",
                 "none (0 writes)"], lines
END

cat >results.json <<'END'
{"format": 1, "commit": "abc", "when": "then", "places": [{"place": "host", "quick": true, "versions": {}, "lost": [], "errors": [],
  "host": {"kernel": "6", "cpus": 2, "model": "m", "kvm": "", "thp": "", "shmem_thp": "", "load": 1.0, "lab": false}, "seconds": {"unshare": 1},
  "details": [{"bench": "unshare", "case": "one view", "machine": "mirrorball", "below_us": [0, 0, 0, 0, 0, 4]}],
  "samples": [
    {"bench": "unshare", "case": "one view", "machine": "mirrorball", "metric": "p50", "unit": "us", "value": 30},
    {"bench": "unshare", "case": "one view", "machine": "the kernel's copy-on-write", "metric": "p50", "unit": "us", "value": 4}]}]}
END
expect 0 '' "$here/bench/run" --report results.json
has 'one view: p50 against the kernel.s copy-on-write: 7.5×: \*\*not judged\*\*'
has '^  < +32 us +4  #{40}$'
expect 2 'nosuch: there is .*unshare' "$here/bench/run" nosuch
finish
