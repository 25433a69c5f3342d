"""The charts of the page, each with its meaning, its direction and its alarm: one table says which there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..evaluation.held_out import METRICS
from .charts import COLOURS, Line, Point, Spot, chart, colour_of, scatter
from .contents import Contents, labels
from .text import Html, element, joined

BY_NAME = {metric.name: metric for metric in METRICS}
DIRECTIONS = {"up": "It should rise.", "down": "It should fall.", "either": "It may go either way."}


class Curve(NamedTuple):
    """A chart: whose row of METRICS explains it, and the numbers of the log that it draws with their names."""

    metric: str
    lines: tuple[tuple[str, str], ...]  # (name in the log, words); those of an evaluation begin with eval_
    title: str = ""  # where the metric's own words do not tell of all lines
    instead_of: str = ""  # drawn only where the log has no such number


CURVES = (
    Curve("loss", (("loss", "each step"), ("eval_loss", "held out"))),
    Curve("rewards/accuracies", (("window/accuracies", "last 256 pairs"), ("eval_rewards/accuracies", "held out"))),
    Curve("rewards/margins", (("window/margins", "last 256 pairs"), ("eval_rewards/margins", "held out"))),
    Curve(
        "window/chosen_change_per_token",
        (("window/chosen_change_per_token", "chosen"), ("window/rejected_change_per_token", "rejected")),
        title="change since the start, nats per token",
    ),
    Curve(
        "rewards/chosen",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        title="rewards of both sides",
        instead_of="window/chosen_change_per_token",
    ),
    Curve(
        "window/accuracies_chosen_longer",
        (
            ("window/accuracies_chosen_longer", "chosen is longer"),
            ("window/accuracies_chosen_shorter", "chosen is shorter"),
        ),
        title="ranked right, by which side is longer",
    ),
    Curve("mean_token_accuracy", (("mean_token_accuracy", "each step"), ("eval_mean_token_accuracy", "held out"))),
    Curve("entropy", (("entropy", "each step"), ("eval_entropy", "held out"))),
    Curve("grad_norm", (("grad_norm", "each step"),)),
)


def curves(run: Contents) -> Html:
    """The course of training, each chart with its meaning, its direction and its alarm."""
    marks = sorted({row["step"] for row in run.observations})
    figures = []
    for curve in _drawn([run]):
        lines = [_line(run, name, words, colour) for colour, (name, words) in enumerate(curve.lines)]
        figures.append(_figure(curve, lines, marks))
    return _grid(figures)


def curves_of_several(runs: Sequence[Contents]) -> Html:
    """The same numbers of several runs in one chart, the first of each chart's lines that the runs have."""
    names = labels(runs)
    figures = []
    for curve in _drawn(runs):
        for name, words in curve.lines:
            lines = [_line(run, name, names[number], number) for number, run in enumerate(runs)]
            figures.append(_figure(curve, lines, (), f": {words}"))
    return _grid(figures)


def frontier(runs: Sequence[Contents]) -> Html:
    """What each run has won in reward and paid for in KL, beside the reference and the best possible at that KL."""
    spots: list[Spot] = []
    keys: list[Html] = []
    for number, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        kl, reward = run.after.get("kl"), run.after.get("reward")
        if kl is None or reward is None:
            continue
        spots.append(Spot(name, kl, reward, number))
        keys.append(element("span", name, f"key c{number % COLOURS}"))
        best = run.after.get("best_reward_at_kl")
        if best is not None:
            spots.append(Spot(f"best possible at the KL of {name}", kl, best, number, hollow=True))
    if len(keys) < 2:
        return Html("")

    title = "Mean reward of sampled answers over KL to the reference"
    drawn = scatter(title, spots, "KL to the reference, nats:")
    meaning = (
        "Up is better, right is further from the reference. A ring is the best that any policy could do at that KL, "
        "estimated from the reference's own answers."
    )
    content = joined([element("h3", title), Html(drawn), element("p", joined(keys), "keys"), element("p", meaning)])
    return _grid([element("figure", content)])


def _drawn(runs: Sequence[Contents]) -> list[Curve]:
    """The curves that these runs have numbers for, none of them twice in other units."""
    logged = {name for run in runs for row in run.steps for name in row}
    return [curve for curve in CURVES if not curve.instead_of or curve.instead_of not in logged]


def _line(run: Contents, name: str, words: str, colour: int) -> Line:
    rows = run.evaluations if name.startswith("eval_") else run.steps
    points = [Point(row["step"], row[name]) for row in rows if row.get(name) is not None]
    is_evaluated, is_smooth = name.startswith("eval_"), name.startswith("window/")
    return Line(words, points, colour, dots=is_evaluated, rough=not is_evaluated and not is_smooth)


def _figure(curve: Curve, lines: Sequence[Line], marks: Sequence[int], more: str = "") -> Html:
    metric = BY_NAME[curve.metric]
    title = f"{curve.title or metric.words}{more}"
    drawn = chart(title, lines, marks, percent=metric.form.endswith("%"))
    if not drawn:
        return Html("")
    keys = []
    for line in lines:
        if line.points:
            name = f"{line.name}, and its running mean" if line.rough else line.name
            keys.append(element("span", name, f"key {colour_of(line)}"))
    parts = [
        element("h3", title),
        Html(drawn),
        element("p", joined(keys), "keys"),
        element("p", f"{metric.meaning} {DIRECTIONS[metric.direction]}"),
        element("p", joined([element("b", "Alarm: "), metric.alarm]), "alarm"),
    ]
    return element("figure", joined(parts))


def _grid(figures: Sequence[Html]) -> Html:
    inside = joined(figures)
    return element("div", inside, "charts") if inside else Html("")
