# SPDX-License-Identifier: Apache-2.0
"""Lines over time, a panel for each of several things, as SVG."""

from html import escape

COLOURS = ("#999999", "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#000000")
WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 150, 50, 60, 40


def lines(title, panels):
    """panels: [(name, {label: [(x, y)]})], y from 0 to 1."""
    labels = list(dict.fromkeys(label for _, curves in panels for label in curves))
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    height = TOP + len(panels) * (HEIGHT + GAP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2 * LEFT} {height}" font-family="sans-serif" '
           'font-size="11">', '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>']
    for i, label in enumerate(labels):
        x = LEFT + i * WIDTH / len(labels)
        out.append(f'<text x="{x:.0f}" y="36" fill="{colour[label]}">{escape(label)}</text>')
    for i, (name, curves) in enumerate(panels):
        top = TOP + i * (HEIGHT + GAP)
        end = max((x for points in curves.values() for x, _ in points), default=1) or 1
        out.append(f'<text x="{LEFT}" y="{top - 5}" font-weight="bold">{escape(name)}</text>')
        for y in (0, 0.5, 1):
            at = top + HEIGHT * (1 - y)
            out.append(f'<path d="M{LEFT} {at}h{WIDTH}" stroke="#ddd"/>'
                       f'<text x="{LEFT - 5}" y="{at + 4}" text-anchor="end">{y:.0%}</text>')
        out.append(f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 13}" text-anchor="end">{end:.0f} s</text>')
        for label, points in curves.items():
            path = " ".join(f"{LEFT + WIDTH * x / end:.1f},{top + HEIGHT * (1 - y):.1f}" for x, y in points)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour[label]}" stroke-width="1.5"/>')
    return "\n".join(out + ["</svg>", ""])
