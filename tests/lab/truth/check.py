# SPDX-License-Identifier: Apache-2.0
"""check.py FILE WHAT EXPECTED: a matrix of the guest's counts, rows with ';' between, within 1 %"""
import json, sys
found = json.load(open(sys.argv[1]))["sections"]["1"]["guest"][sys.argv[2]]
wanted = [[int(word) for word in row.split()] for row in sys.argv[3].split(";")]
good = len(found) == len(wanted) and all(
    abs(f - w) <= max(w, 10000) / 100 for fs, ws in zip(found, wanted) for f, w in zip(fs, ws, strict=True))
print(found, "wanted", wanted)
sys.exit(not good)
