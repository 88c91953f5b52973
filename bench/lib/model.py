# SPDX-License-Identifier: Apache-2.0
"""What misses counted by tests/lab/lab --truth would cost on machines whose latencies are published."""

import json
import os

MACHINES = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "machines.json")
MISSES = ("load_misses", "store_misses")


def machines():
    with open(MACHINES, encoding="utf-8") as file:
        return json.load(file)


def misses(levels, level="guest"):
    """Loads and stores together. levels: a section of the result."""
    return [[sum(cell) for cell in zip(*lines)] for lines in zip(*(levels[level][m] for m in MISSES))]


def cost(matrix, ns):
    """Times in ms as counted, at best and at worst. Rows are the processors' nodes."""
    counted = best = worst = 0.0
    for cpu, row in enumerate(matrix):
        latency = ns[cpu][:len(matrix)]
        counted += sum(n * t for n, t in zip(row, latency))
        best += sum(row) * latency[cpu]
        worst += sum(row) * max(latency)
    return counted / 1e6, best / 1e6, worst / 1e6
