# SPDX-License-Identifier: Apache-2.0
"""What placements of memory cost: of the lab's truth in slices of time (tests/lab/truth), with latencies of a machine
whose data are published (model.py). Times in ns. A slice is {"ms": its end, "misses": matrix, "pages": [[page, stores,
misses from node 0, ...]]}."""

# What the host does costs, on a processor and not in the lab: a fault in nested paging, or of the host's kernel (500 us in
# the lab are 400 times as much as there), and moves as Mirrorball's policy takes them (numa/policy.c): a huge page that is taken
# apart, 100 us, and 500 us of each vCPU that is paused for it. A copy's page costs what the policy takes, and a write to one what
# bench/collapse measures.
FAULT_NS, MOVE_PAGE_NS, MOVE_BLOCK_NS, SPLIT_NS, PAUSE_NS = 1250, 5000, 300000, 100000, 500000
COPY_PAGE_NS, COLLAPSE_NS = 8000, 50000
PAGES_A_BLOCK = 512


def total(matrices):
    """Their sum; None without any."""
    found = None
    for matrix in matrices:
        found = [[a + b for a, b in zip(*rows)] for rows in zip(found, matrix)] if found else matrix
    return found


def misses(matrix):
    return sum(map(sum, matrix))


def local(matrix):
    """The share of misses in memory of the processor's own node; None without misses."""
    n = misses(matrix)
    return sum(row[node] for node, row in enumerate(matrix)) / n if n else None


def time_ns(matrix, ns):
    return sum(n * ns[cpu][node] for cpu, row in enumerate(matrix) for node, n in enumerate(row))


def best_node(from_nodes, ns):
    """Where a page is to be that has these misses from each node, and what they cost then."""
    costs = [sum(n * ns[cpu][node] for cpu, n in enumerate(from_nodes)) for node in range(len(from_nodes))]
    node = costs.index(min(costs))
    return node, costs[node]


def by_page(slices, granule=1):
    """{page: [stores, misses from node 0, ...]} of all of them; pages of so many pages (1, or PAGES_A_BLOCK)."""
    pages = {}
    for piece in slices:
        for page, *n in piece["pages"]:
            at = page // granule
            pages[at] = [a + b for a, b in zip(pages[at], n)] if at in pages else n
    return pages


def oracle(slices, ns, follows=False, granule=1, copies=False):
    """The matrix and the time of the best placement, known beforehand and for nothing: each page is put somewhere once, or,
    if it follows, anew in each slice. With copies, what nobody writes meanwhile is on every node."""
    matrix, time = None, 0
    for part in ([[s] for s in slices] if follows else [slices]):
        for stores, *from_nodes in by_page(part, granule).values():
            node, _ = best_node(from_nodes, ns)
            if not matrix:
                matrix = [[0] * len(from_nodes) for _ in from_nodes]
            for cpu, n in enumerate(from_nodes):
                place = cpu if copies and not stores else node
                matrix[cpu][place] += n
                time += n * ns[cpu][place]
    return matrix, time


def host_ns(before, after, cpus):
    """What the host's work between two looks (locality_probe.py) costs: faults, and moves and copies."""
    n = {key: after[key] - before[key] for key in before if isinstance(before[key], int)}
    blocks = n["thp_migration_success"]
    pages = max(0, n["pgmigrate_success"] - blocks * PAGES_A_BLOCK)
    return ((n["faults"] + n["numa_hint_faults"]) * FAULT_NS + n["collapses"] * COLLAPSE_NS,
            pages * MOVE_PAGE_NS + blocks * MOVE_BLOCK_NS + n["thp_split_page"] * SPLIT_NS + n["pauses"] * cpus * PAUSE_NS +
            n["copied"] * COPY_PAGE_NS)


def runs(slices):
    """Lists of slices, each of one run."""
    found = {}
    for piece in slices:
        found.setdefault(piece["run"], []).append(piece)
    return [found[run] for run in sorted(found)]
