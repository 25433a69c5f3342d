"""Line charts as inline SVG: no script, no font, no colour of their own but the page's.

A chart is as wide as a phone, so that its text keeps its size wherever it is shown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from .text import escape

WIDTH, HEIGHT = 340, 190  # in pixels where it is not scaled
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins, for the numbers of the axes
COLOURS = 6  # that style.css has
MOST_POINTS = 300  # of a line; more cannot be told apart


class Point(NamedTuple):
    step: float
    value: float


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    colour: int  # which of the page's colours, from 0
    dots: bool = False  # few measurements, each of them marked
    rough: bool = False  # of single steps: drawn faintly, behind its running mean


def chart(title: str, lines: Sequence[Line], marks: Sequence[int] = (), percent: bool = False) -> str:
    """An SVG of lines over steps; `marks` are steps at which something was seen. Empty where there is nothing to draw.

    Values that are not finite are left out.
    """
    lines = [line._replace(points=_finite(line.points)) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    last_step = max(1.0, *(point.step for line in lines for point in line.points))
    ticks = _ticks([point.value for line in lines for point in line.points])
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_in_words(title, lines))}">']
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick, percent)}</text>')
    for mark in marks:
        parts.append(f'<path class="mark" d="M{x(mark):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">step 0</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{last_step:,.0f}</text>')
    for line in lines:
        strokes = [(line.points, "")]
        if line.dots:
            strokes = [(line.points, " dashed")]
        elif line.rough:
            strokes = [(line.points, " faint"), (_running_mean(line.points), "")]
        for points, css in strokes:
            path = "L".join(f"{x(point.step):.1f} {y(point.value):.1f}" for point in _thinned(points))
            parts.append(f'<path class="line {colour_of(line)}{css}" d="M{path}"/>')
        if line.dots or len(line.points) == 1:
            for point in line.points:
                place = f'cx="{x(point.step):.1f}" cy="{y(point.value):.1f}"'
                parts.append(f'<circle class="{colour_of(line)}" {place} r="3"/>')
    parts.append("</svg>")
    return "".join(parts)


def colour_of(line: Line) -> str:
    """The classes of a line's colour; when all colours are used up they come again, dotted."""
    css = f"c{line.colour % COLOURS}"
    return f"{css} dotted" if line.colour // COLOURS % 2 else css


def _in_words(title: str, lines: Sequence[Line]) -> str:
    """What a reader hears who cannot see the chart."""
    courses = [f"{line.name} from {line.points[0].value:.3g} to {line.points[-1].value:.3g}" for line in lines]
    return f"{title}: {'; '.join(courses)}"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.value is not None and math.isfinite(point.value)]


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """The mean of each point and those before it, a tenth of the line in all."""
    width = max(1, len(points) // 10)
    sums = list(itertools.accumulate((point.value for point in points), initial=0.0))
    means = []
    for end, point in enumerate(points, 1):
        start = max(0, end - width)
        means.append(Point(point.step, (sums[end] - sums[start]) / (end - start)))
    return means


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The lowest and the highest of each stretch of a long line, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    thinned = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        thinned += sorted({min(part, key=_value), max(part, key=_value)})
    thinned.append(points[-1])
    return thinned


def _value(point: Point) -> float:
    return point.value


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to six round numbers, the first at or below all values and the last at or above them."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = abs(high) / 2 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    """A number of an axis, short."""
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


class Spot(NamedTuple):
    """One measurement of two numbers."""

    name: str
    x: float
    y: float
    colour: int  # which of the page's colours, from 0
    hollow: bool = False  # what could be, beside what is


def scatter(title: str, spots: Sequence[Spot], x_words: str) -> str:
    """An SVG of points by two numbers, of which `x_words` names the one from left to right, from 0."""
    spots = [spot for spot in spots if math.isfinite(spot.x) and math.isfinite(spot.y)]
    if not spots:
        return ""
    x_high = _ticks([0.0, *(spot.x for spot in spots)])[-1]
    ticks = _ticks([spot.y for spot in spots])
    low, high = ticks[0], ticks[-1]

    courses = "; ".join(f"{spot.name} {spot.y:.3g} at {spot.x:.3g}" for spot in spots)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {courses}")}">']
    for tick in ticks:
        place = TOP + (HEIGHT - TOP - BOTTOM) * (high - tick) / (high - low)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_number(tick, percent=False)}</text>'
        )
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">0</text>')
    words = escape(f"{x_words} {_number(x_high, percent=False)}")
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{words}</text>')
    for spot in spots:
        x = LEFT + (WIDTH - LEFT - RIGHT) * spot.x / x_high
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - spot.y) / (high - low)
        css = f"c{spot.colour % COLOURS}{' hollow' if spot.hollow else ''}"
        described = f"<title>{escape(f'{spot.name}: {spot.y:.3g} at {spot.x:.3g}')}</title>"
        parts.append(f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="4">{described}</circle>')
    parts.append("</svg>")
    return "".join(parts)
