"""Curves as SVG, drawn by hand: no library, no script, readable in light and dark.

Colours are variables of the page: --line for the curve, --grid, --muted for words.
"""

import html
import math
from collections.abc import Sequence

WIDE, HIGH = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 24
MOST = 300  # points of a curve; more are averaged
DECADES = 1.5  # a range wider than that, all above 0, is drawn on a logarithmic axis

Point = tuple[float, float]


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """At most about `most` points: means of neighbours, the last point as it is."""
    if len(points) <= most:
        return list(points)
    each = -(-len(points) // most)
    parts = [points[i : i + each] for i in range(0, len(points), each)]
    means = [tuple(math.fsum(x) / len(x) for x in zip(*p, strict=True)) for p in parts]
    return [points[0], *means[1:-1], points[-1]]


def is_wide(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic axis."""
    low, high = min(values), max(values)
    return low > 0 and math.log10(high / low) > DECADES


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from `low` to `high`, at least one."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    start = math.ceil(low / step - 1e-9)
    stop = math.floor(high / step + 1e-9)
    return [step * i for i in range(start, stop + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, given as their logarithms; at most five."""
    found = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    return [float(x) for x in found[:: -(-len(found) // 5) or 1]] or [low]


def short(value: float) -> str:
    """A number for an axis: 0.001, 1.5, 20000, 2e+06."""
    return f"{value:.4g}"


def scale(low: float, high: float, start: float, end: float):
    """The map from [low, high] to [start, end]; the middle if low is high."""
    if high == low:
        return lambda x: (start + end) / 2
    return lambda x: start + (x - low) / (high - low) * (end - start)


def curve(name: str, points: Sequence[Point]) -> str:
    """An SVG of points (step, value), all finite, in order of steps; at least one."""
    points = thin(points)
    log = is_wide([y for _, y in points])
    drawn = [(x, math.log10(y) if log else y) for x, y in points]
    xs, ys = zip(*drawn, strict=True)
    low, high = min(ys), max(ys)
    room = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    low, high = low - room, high + room
    across = scale(xs[0], xs[-1], LEFT, WIDE - RIGHT)
    up = scale(low, high, HIGH - BOTTOM, TOP)
    marks = decades(low, high) if log else ticks(low, high)
    parts = [mark(up(y), short(10**y if log else y)) for y in marks]
    parts += [below(across(x), short(x)) for x in sorted({xs[0], xs[-1]})]
    parts.append(below((LEFT + WIDE - RIGHT) / 2, "step"))
    parts.append(path([(across(x), up(y)) for x, y in drawn]))
    said = html.escape(f"{name}, {short(points[0][1])} to {short(points[-1][1])}")
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{said}">'
        + "".join(parts)
        + "</svg>"
    )


def mark(y: float, text: str) -> str:
    """A line of the grid and its number."""
    return (
        f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def below(x: float, text: str) -> str:
    """A number of the step axis, inside the picture at both ends."""
    anchor = "start" if x < WIDE / 3 else "end" if x > 2 * WIDE / 3 else "middle"
    return f'<text x="{x:.1f}" y="{HIGH - 6}" text-anchor="{anchor}">{text}</text>'


def path(points: Sequence[Point]) -> str:
    """The curve; a single point is a dot."""
    if len(points) == 1:
        x, y = points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="d"/>'
    return '<polyline class="c" points="{}"/>'.format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    )
