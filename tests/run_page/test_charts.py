"""The charts: round numbers on the axes, nothing outside, no spike lost, the same bytes for the same numbers."""

from __future__ import annotations

import math
import re

import pytest

from dpo_recipes.run_page import charts
from dpo_recipes.run_page.charts import HEIGHT, WIDTH, Line, Point, Spot, chart, scatter


def line(values, name: str = "loss", **changes) -> Line:
    return Line(name, [Point(step, value) for step, value in enumerate(values)], 0, **changes)


def places(svg: str) -> list[tuple[float, float]]:
    paths = re.findall(r'class="line[^"]*" d="M([^"]*)"', svg)
    return [tuple(map(float, place.split())) for path in paths for place in path.split("L")]


@pytest.mark.parametrize(
    "values", [[0.1, 0.9], [-3, 1e4], [1e-9, 3e-9], [5.0], [0.0, 0.0], [-7.1, -7.0], [0.333] * 9, [1e12, -1e12]]
)
def test_all_values_lie_between_the_first_and_the_last_of_a_few_round_numbers(values):
    ticks = charts._ticks(values)
    assert 3 <= len(ticks) <= 7
    assert ticks[0] <= min(values) + 1e-9 * abs(min(values)) and ticks[-1] >= max(values) - 1e-9 * abs(max(values))
    step = ticks[1] - ticks[0]
    assert re.fullmatch(r"(1|2|2\.5|5|10)0*", f"{step / 10 ** math.floor(math.log10(step) + 1e-9):.3g}")
    for across, down in places(chart("t", [line(values)])):
        assert 0 <= across <= WIDTH and 0 <= down <= HEIGHT


def test_values_go_up_the_page_and_steps_to_the_right():
    (x0, y0), (x1, y1) = places(chart("t", [line([1.0, 2.0])]))
    assert x0 < x1 and y0 > y1


def test_a_long_line_keeps_its_lowest_and_its_highest_value():
    values = [math.sin(k / 50) for k in range(20_000)]
    values[12_345], values[777] = 9.0, -9.0
    thinned = charts._thinned([Point(step, value) for step, value in enumerate(values)])
    assert len(thinned) <= charts.MOST_POINTS + 10
    assert Point(12_345, 9.0) in thinned and Point(777, -9.0) in thinned
    assert [point.step for point in thinned] == sorted(point.step for point in thinned)


def test_what_is_not_finite_is_left_out_and_nothing_at_all_is_no_chart():
    assert chart("t", []) == chart("t", [line([])]) == chart("t", [line([math.nan, math.inf, None])]) == ""
    assert len(places(chart("t", [line([1.0, math.nan, None, 2.0])]))) == 2


def test_measurements_are_dots_steps_have_a_running_mean_and_marks_stand_at_their_steps():
    svg = chart("t", [line([1.0, 2.0, 3.0], dots=True), line(range(40), rough=True)], marks=[20])
    assert svg.count("<circle") == 3 and svg.count("dashed") == 1 and svg.count("faint") == 1
    assert svg.count('class="mark"') == 1
    assert charts._running_mean([Point(k, k) for k in range(20)])[-1] == Point(19, 18.5)
    assert chart("t", [line([1.0])]).count("<circle") == 1  # a line of one point would not be seen


def test_a_chart_says_its_course_in_words_and_escapes_them():
    svg = chart('a "title" <&>', [line([0.69, 0.5], "each <step>")])
    assert 'aria-label="a &quot;title&quot; &lt;&amp;&gt;: each &lt;step&gt; from 0.69 to 0.5"' in svg


def test_more_lines_than_colours_are_told_apart_by_dots():
    lines = [line([1.0, 2.0])._replace(colour=number) for number in range(8)]
    svg = chart("t", lines)
    assert svg.count('class="line c1"') == svg.count('class="line c1 dotted"') == 1


def test_shares_are_written_in_percent():
    assert ">50%</text>" in chart("t", [line([0.5, 0.9])], percent=True).replace("<text", "\n<text")


def test_spots_lie_where_their_two_numbers_say():
    spots = [Spot("low", 0.0, 1.0, 0), Spot("high <b>", 2.0, 3.0, 1, hollow=True), Spot("none", math.inf, 1.0, 2)]
    svg = scatter("Reward over KL", spots, "KL")
    found = re.findall(r'<circle class="([^"]+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [css for css, _, _ in found] == ["c0", "c1 hollow"]
    (_, x0, y0), (_, x1, y1) = found
    assert 0 <= float(x0) < float(x1) <= WIDTH and 0 <= float(y1) < float(y0) <= HEIGHT
    assert "high &lt;b&gt;: 3 at 2" in svg and "<b>" not in svg and "none" not in svg
    assert scatter("t", [spots[2]], "KL") == ""
