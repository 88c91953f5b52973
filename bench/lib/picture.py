# SPDX-License-Identifier: Apache-2.0
"""Lines over time, a panel for each of several things, and plots of one quantity over another, as SVG."""

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


def plot(title, x_name, y_name, curves):
    """One panel; curves: {label: [(x, y)]}, both from 0 on, a mark at each point."""
    width, height = WIDTH, 2 * HEIGHT
    x_end = max((x for points in curves.values() for x, _ in points), default=1) or 1
    y_end = max((y for points in curves.values() for _, y in points), default=1) or 1
    step = next(n * 10 ** e for e in range(9) for n in (1, 2, 5) if n * 10 ** e * 6 >= y_end)

    def at(x, y):
        return f"{LEFT + width * x / x_end:.1f},{TOP + height * (1 - y / y_end):.1f}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 5 * LEFT} {TOP + height + GAP}" '
           'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
           f'<text x="{LEFT}" y="{TOP - 10}">{escape(y_name)}</text>',
           f'<text x="{LEFT + width}" y="{TOP + height + 30}" text-anchor="end">{escape(x_name)}</text>']
    for i in range(int(y_end / step) + 1):
        x, y = at(0, i * step).split(",")
        out.append(f'<path d="M{x} {y}h{width}" stroke="#ddd"/><text x="{LEFT - 5}" y="{float(y) + 4:.1f}" '
                   f'text-anchor="end">{i * step}</text>')
    for x in sorted({x for points in curves.values() for x, _ in points}):
        out.append(f'<text x="{at(x, 0).split(",")[0]}" y="{TOP + height + 15}" text-anchor="middle">{x}</text>')
    for i, (label, points) in enumerate(curves.items()):
        colour = COLOURS[(i + 1) % len(COLOURS)]
        path = " ".join(at(x, y) for x, y in points)
        x, y = at(*points[-1]).split(",")
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.5" fill="{colour}"/>' for p in path.split()]
        out.append(f'<text x="{float(x) + 6}" y="{float(y) + 4:.1f}" fill="{colour}">{escape(label)}</text>')
    return "\n".join(out + ["</svg>", ""])
