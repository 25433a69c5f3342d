"""Metrics as rows of text: before and after training, of several runs, and what two of them differ by."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .held_out import METRICS, SPREADS, Metric


class ComparedMetric(NamedTuple):
    """One row of the closing table, as it is read."""

    words: str
    before: str  # empty where there is no number before training
    after: str
    spread: str  # 95 % interval or standard error of the number after training, empty where it has none


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ComparedMetric]:
    """The numbers of `after` beside those of `before`, in the order of METRICS and then of the recipe's measures."""
    in_table = [metric for metric in METRICS if metric.in_table]
    measures = [_own_measure(name) for name in after if name.startswith("measures/") and not name.endswith(SPREADS)]
    return [_compare(metric, before, after) for metric in in_table + measures if metric.name in after]


def rows_of_runs(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What each metric is after training in several runs, as texts: empty where a run has no such number."""
    after_by_words: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for row in compared(run["before"], run["after"]):
            of_runs = after_by_words.setdefault(row.words, [""] * len(runs))
            of_runs[number] = row.after
    return list(after_by_words.items())


def difference_rows(differences: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(what is measured, the difference, its interval, on what) of each difference between two runs, as texts."""
    known = {metric.name: metric for metric in METRICS}
    rows = []
    for each in differences:
        metric = known[each["metric"]]
        form = f"+{metric.form.lstrip('+')}"
        measured_on = "each its own"
        if each["paired"]:
            what = "pairs" if metric.name.startswith("rewards/") else "prompts"
            measured_on = f"the same {each['size']:,} {what}"
        interval = f"{each['low']:{form}} to {each['high']:{form}}"
        rows.append((metric.words, f"{each['difference']:{form}}", interval, measured_on))
    return rows


def _own_measure(name: str) -> Metric:
    """The row of a recipe's own measure, of which nothing but the name is known."""
    return Metric(
        name=name,
        words=name.removeprefix("measures/"),
        short=None,
        form=".3f",
        direction="either",
        alarm="It moves where the recipe did not mean it to.",
        meaning="Mean of the recipe's own measure over answers to held-out prompts.",
    )


def _compare(metric: Metric, before: Mapping[str, Any], after: Mapping[str, Any]) -> ComparedMetric:
    value_before = ""
    if metric.name in before:
        value_before = _shown(before[metric.name], metric)
    return ComparedMetric(metric.words, value_before, _shown(after[metric.name], metric), _spread(metric, after))


def _shown(value: float | None, metric: Metric) -> str:
    """A number as the table shows it; a run's file holds None where it was not finite."""
    return "not finite" if value is None else format(value, metric.form)


def _spread(metric: Metric, numbers: Mapping[str, Any]) -> str:
    """The 95 % interval of a metric, or its standard error, or what chance makes of it; else nothing.

    An error of 0 is nothing.
    """
    interval = numbers.get(f"{metric.name}_interval")
    if interval and None not in interval:
        low, high = interval
        return f"{low:{metric.form}} to {high:{metric.form}}"
    error = numbers.get(f"{metric.name}_stderr")
    if error:
        unsigned = metric.form.replace("+", "")
        return f"+- {error:{unsigned}}"
    by_chance = numbers.get(f"{metric.name}_by_chance")
    if by_chance is not None:
        return f"{by_chance:{metric.form}} by chance"
    return ""
