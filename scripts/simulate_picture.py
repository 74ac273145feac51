"""An SVG of figures over a number, such as that of the nodes: one small chart for each figure, one line for each series. Written
by hand."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from meshnode.simulation.run import Result

WIDTH, HEIGHT, MARGIN, ACROSS = 360, 220, 48, 2
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5572", "#b8860b", "#4b4e6d", "#00867d", "#7a7a7a")
Columns = Mapping[str, tuple[str, Callable[[Result], float | None]]]
Line = list[tuple[float, float, float]]
"""Place on the axis, median, greatest."""


class Point(NamedTuple):
    """A figure of one run: of which series, and where on the axis."""

    series: str
    at: float
    figure: float | None


def picture(results: Sequence[Result], columns: Columns) -> str:
    """Of simulated meshes: medians as lines, the greatest over the seeds as dots."""
    points = {
        heading: [Point(result.scenario, result.nodes, value(result)) for result in results]
        for heading, value in columns.values()
    }
    return drawing(points, axis="nodes", note=": median (line) and greatest (dots) over the seeds")


def drawing(points: Mapping[str, Sequence[Point]], *, axis: str, note: str = "") -> str:
    """A chart for each heading in `points`."""
    charts = [(heading, _lines(each)) for heading, each in points.items()]
    charts = [(heading, lines) for heading, lines in charts if any(most > 0 for line in lines.values() for _, _, most in line)]
    names = list(dict.fromkeys(point.series for each in points.values() for point in each))
    rows = math.ceil(len(charts) / ACROSS)
    height = rows * HEIGHT + 24 * len(names) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{ACROSS * WIDTH}" height="{height}" font-family="sans-serif">',
        "<style>text { font-size: 11px }</style>",
        f'<rect width="{ACROSS * WIDTH}" height="{height}" fill="white"/>',
    ]
    for place, (heading, lines) in enumerate(charts):
        parts += _chart(heading, lines, names, axis=axis, x=place % ACROSS * WIDTH, y=place // ACROSS * HEIGHT)
    for place, name in enumerate(names):
        y = rows * HEIGHT + 24 * place + 16
        parts.append(f'<rect x="{MARGIN}" y="{y - 9}" width="18" height="4" fill="{_colour(place)}"/>')
        parts.append(f'<text x="{MARGIN + 26}" y="{y - 3}">{escape(name)}{escape(note)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _lines(points: Sequence[Point]) -> dict[str, Line]:
    groups: dict[tuple[str, float], list[float]] = defaultdict(list)
    for point in points:
        if point.figure is not None and math.isfinite(point.figure):
            groups[point.series, point.at].append(point.figure)
    lines: dict[str, Line] = defaultdict(list)
    for (name, at), figures in sorted(groups.items()):
        lines[name].append((at, statistics.median(figures), max(figures)))
    return lines


def _nice(most: float) -> float:
    """The next number that a reader likes as the end of an axis."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most)


def _chart(heading: str, lines: dict[str, Line], names: Sequence[str], *, axis: str, x: int, y: int) -> list[str]:
    sizes = sorted({nodes for line in lines.values() for nodes, _, _ in line})
    top = _nice(max(most for line in lines.values() for _, _, most in line))
    left, right, low, high = x + MARGIN, x + WIDTH - 16, y + HEIGHT - 34, y + 26

    def at(nodes: float, figure: float) -> str:
        across = (nodes - sizes[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.5
        return f"{left + across * (right - left):.1f},{low - figure / top * (low - high):.1f}"

    parts = [
        f'<text x="{left}" y="{y + 16}" font-weight="bold">{escape(heading)}</text>',
        f'<polyline fill="none" stroke="#444" points="{left},{high} {left},{low} {right},{low}"/>',
        f'<text x="{(left + right) / 2}" y="{low + 30}" text-anchor="middle" fill="#444">{escape(axis)}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        up = low - share * (low - high)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{up}" y2="{up}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 5}" y="{up + 4}" text-anchor="end" fill="#444">{top * share:g}</text>')
    for nodes in sizes:
        across = at(nodes, 0).partition(",")[0]
        parts.append(f'<text x="{across}" y="{low + 14}" text-anchor="middle" fill="#444">{nodes:g}</text>')
    for name, line in lines.items():
        colour = _colour(names.index(name))
        points = " ".join(at(nodes, middle) for nodes, middle, _ in line)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        for nodes, _, most in line:
            across, _, height = at(nodes, most).partition(",")
            parts.append(f'<circle cx="{across}" cy="{height}" r="3" fill="{colour}"/>')
    return parts
