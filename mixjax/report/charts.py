"""Curves as SVG, drawn without a library or scripts, for light and dark pages.

Colours come from the page's style sheet: classes g (grid), c (curve) and d (dot).
"""

import html
import math
from collections.abc import Sequence

WIDE, HIGH = 360, 200  # the size in pixels of its own coordinates; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 24  # margins, with room for the numbers
MOST = 300  # points of a curve, about one per pixel; more are averaged
DECADES = 1.5  # positive values that span more are drawn on a logarithmic axis

Point = tuple[float, float]


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """At most about `most` points: means of neighbours, but both ends unchanged."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)  # rounded up
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [tuple(math.fsum(x) / len(x) for x in zip(*p, strict=True)) for p in parts]
    return [points[0], *means[1:-1], points[-1]]


def is_wide(values: Sequence[float]) -> bool:
    """Whether values are positive and span more than DECADES."""
    low, high = min(values), max(values)
    return low > 0 and math.log10(high / low) > DECADES


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from `low` to `high`, at least one."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    # Margins against rounding: a limit that is a round number gets a tick.
    start = math.ceil(low / step - 1e-9)
    stop = math.floor(high / step + 1e-9)
    return [step * i for i in range(start, stop + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from 10^low to 10^high as exponents: one to five of them."""
    exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    stride = -(-len(exponents) // 5) or 1  # rounded up; 1 if there are none
    return [float(x) for x in exponents[::stride]] or [low]


def short(value: float) -> str:
    """A number as axes show it: 0.001, 1.5, 2e+04."""
    return f"{value:.4g}"


def scale(low: float, high: float, start: float, end: float):
    """The linear map from [low, high] to [start, end]; constant if low equals high."""
    if high == low:
        return lambda x: (start + end) / 2
    return lambda x: start + (x - low) / (high - low) * (end - start)


def curve(name: str, points: Sequence[Point]) -> str:
    """An SVG of points (step, value): at least one, all finite, sorted by step."""
    points = thin(points)
    log = is_wide([y for _, y in points])
    drawn = [(x, math.log10(y) if log else y) for x, y in points]
    xs, ys = zip(*drawn, strict=True)
    low, high = min(ys), max(ys)
    # Space above and below the curve, also around a constant and around 0.
    room = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    low, high = low - room, high + room
    across = scale(xs[0], xs[-1], LEFT, WIDE - RIGHT)
    up = scale(low, high, HIGH - BOTTOM, TOP)  # in SVG, y grows downward
    marks = decades(low, high) if log else ticks(low, high)
    parts = [mark(up(y), short(10**y if log else y)) for y in marks]
    parts += [below(across(x), short(x)) for x in sorted({xs[0], xs[-1]})]
    parts.append(below((LEFT + WIDE - RIGHT) / 2, "step"))
    parts.append(path([(across(x), up(y)) for x, y in drawn]))
    label = html.escape(f"{name}, {short(points[0][1])} to {short(points[-1][1])}")
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def mark(y: float, text: str) -> str:
    """A horizontal grid line and its number."""
    return (
        f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def below(x: float, text: str) -> str:
    """A text below the chart, aligned so that it stays inside at both ends."""
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
