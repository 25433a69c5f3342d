"""What a person sees in a terminal of what has come of runs: numbers, observations, rounds, sweeps, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from .sentences import Sentence
from .terminal import GAP, cell_of

OBSERVATION_STYLES = {"stop": "bold red", "warning": "yellow", "note": "cyan"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # by which runs beside each other are called


def comparison_table(
    pairs: int, rows: Iterable[tuple[str, str, str, str]], sides: tuple[str, str] = ("before", "after")
) -> Table:
    """The closing table: numbers of so many held-out pairs before and after training, or of other two `sides`.

    A row is what is measured, its value before, its value after, and its interval or error: four texts.
    """
    first, second = sides
    columns = ("", Column(first, justify="right"), Column(second, justify="right"), "95 % interval or s.e.")
    table = Table(*columns, title=f"Held out: {pairs} pairs", title_justify="left")
    for words, before, after, spread in rows:
        table.add_row(escape(words), before, after, spread)  # the name of a recipe's own measure may be any text
    return table


def observations_table(observations: Iterable[tuple[int, str, str, str, str]]) -> Table:
    """What the rules of the guard have seen while training: step, rule, level, what was seen, what to do."""
    table = Table(title="Seen while training", title_justify="left", show_header=False, box=None, padding=GAP)
    for step, rule, level, seen, _advice in observations:
        styled = f"[{OBSERVATION_STYLES[level]}]{level}[/]"
        table.add_row(f"step {step:,}", styled, Sentence(f" {seen}", start=f"{rule}:", style="bold"))
    return table


def pairs_table(report: Mapping[str, Any]) -> Table:
    """What became of sampled replies: how many there are, why some were not used, and the pairs of the others."""
    table = Table(Column(no_wrap=True), Column(justify="right"), title="Pairs of own replies", title_justify="left")
    for name, words in (
        ("prompts", "prompts"),
        ("repeated_prompts", "dropped: prompts that repeat another"),
        ("replies", "replies"),
        ("unfinished", "not used: cut off before their end"),
        ("blank", "not used: blank"),
        ("duplicates", "not used: the same as another"),
        ("mean_reward", "mean reward of the others"),
        ("prompts_without_pair", "prompts without a pair"),
        ("pairs", "pairs"),
        ("train", "to train on"),
        ("eval", "held out, by prompt"),
    ):
        value = report[name]
        if isinstance(value, float):
            table.add_row(words, f"{value:+.3f}")
        elif value or name in ("pairs", "train", "eval"):
            table.add_row(words, cell_of(value))
    return table


def rounds_table(rounds: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Table:
    """What each round has sampled and what came of it: (report of its pairs, held-out numbers after it)."""
    columns = [Column(words, justify="right") for words in ("round", "pairs", "sampled", "after", "win rate", "KL")]
    title = "Mean reward, round by round; win rate and KL against the round's reference"
    table = Table(*columns, title=title, title_justify="left")
    for number, (report, after) in enumerate(rounds, 1):
        table.add_row(
            str(number),
            f"{report['pairs']:,}",
            f"{report['mean_reward']:+.3f}",
            f"{after['reward']:+.3f} +- {after['reward_stderr']:.3f}",
            f"{after['win_rate']:.3f}",
            f"{after['kl']:.3f}",
        )
    return table


def sweep_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What each combination of values has come to: a mean, half its 95 % interval, and the best reward at its KL.

    In the order of their KL, nats, so that the frontier can be read from top to bottom.
    """
    rows = sorted(rows, key=lambda row: (row.get("kl") or {}).get("mean") or 0.0)
    shown = (
        ("rewards/accuracies", "ranked", ".1%"),
        ("kl", "KL", ".2f"),
        ("reward", "reward", "+.2f"),
        ("best_reward_at_kl", "best", "+.2f"),
        ("win_rate", "win rate", ".2f"),
    )
    columns = [column for column in shown if any(column[0] in row for row in rows)]
    table = Table(Column(""), title="Sweep, held out", title_justify="left", box=None, padding=GAP)
    for _, words, _ in columns:
        table.add_column(words, no_wrap=True)
    for row in rows:
        cells = [_with_interval(row.get(name), form) for name, _, form in columns]
        table.add_row(escape(row["name"]), *cells)
    return table


def _with_interval(number: Mapping[str, float | None] | None, form: str) -> str:
    """A mean and half the width of its interval; the mean alone where it has none."""
    if number is None:
        return ""
    shown = f"{number['mean']:{form}}"
    low, high = number["low"], number["high"]
    if low is None or high is None:
        return shown
    return f"{shown} [dim]+-{(high - low) / 2:{form.lstrip('+')}}[/]"


def runs_table(names: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Table:
    """What each run has come to: a row is what is measured, and its value in each."""
    table = Table(title="After training, held out", title_justify="left")
    table.add_column("")
    for letter, _ in zip(LETTERS, names, strict=False):
        table.add_column(letter, justify="right")
    for words, values in rows:
        table.add_row(escape(words), *values)
    return table


def differences_of_runs_table(letter: str, rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """By how much a run differs from the first: what is measured, the difference, its interval, and on what."""
    columns = ("", Column("difference", justify="right"), "95 % interval", "on")
    table = Table(*columns, title=f"{letter} against A", title_justify="left")
    for words, difference, interval, measured_on in rows:
        table.add_row(escape(words), difference, interval, measured_on)
    return table


def causes_table(causes: Iterable[Mapping[str, Any]], count: int) -> Table:
    """In what `count` runs differ: the kind of thing, its name, and its value in each."""
    table = Table("", "what", title="Why they may differ", title_justify="left")
    for letter in LETTERS[:count]:
        table.add_column(letter, overflow="fold")
    for cause in causes:
        table.add_row(cause["cause"], escape(cause["name"]), *(escape(str(value)) for value in cause["values"]))
    return table


def dial_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the beta dial shows: a row for each factor."""
    right = [Column(name, justify="right") for name in ("dial", "as beta", "KL, nats", "reward", "win rate", "best")]
    table = Table(*right, title="The beta dial", title_justify="left")
    for row in rows:
        cells = [f"{row['dial']:g}", f"{row['beta']:.3g}", _with_error(row, "kl", ".2f")]
        cells += [_with_error(row, "reward", "+.3f"), _with_error(row, "win_rate", ".3f")]
        table.add_row(*cells, _with_error(row, "best_reward_at_kl", "+.3f"))
    return table


def nearness_table(factor: float, rows: Iterable[tuple[str, str, str]]) -> Table:
    """What decoding with the exact dial shows, and what the one model does that was exported for it."""
    columns = ("", Column("exact dial", justify="right"), Column("exported", justify="right"))
    table = Table(*columns, title=f"The dial at {factor:g}, on held-out prompts", title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _with_error(row: Mapping[str, Any], name: str, form: str) -> str:
    """A number and its standard error where it has one; nothing where it is not there."""
    if name not in row:
        return ""
    error = row.get(f"{name}_stderr")
    behind = f" +-{error:{form.replace('+', '')}}" if error else ""
    return f"{row[name]:{form}}{behind}"


def bench_table(result: Mapping[str, Any]) -> Table:
    """What `bench` has measured of TRL's trainer and of ours."""
    seconds = result["seconds_per_step"]
    pairs = result["pairs_per_second"]
    tokens = result["tokens_per_second"]
    held = result["held_bytes"]
    low, high = result["ratio_quartiles"]
    columns = ("", Column("TRL", justify="right"), Column("ours", justify="right"), Column("ratio", justify="right"))
    title = f"{result['recipe']} ({result['model']}) on {result['lengths']}"
    table = Table(*columns, title=escape(title), title_justify="left")
    ratio = f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"
    table.add_row("seconds a step", f"{seconds['trl']:.3g}", f"{seconds['ours']:.3g}", ratio)
    for part, name in (("layers", "the model's layers"), ("head", "head and loss"), ("rest", "the rest")):
        cells = [_share_cell(part, result["seconds_of_parts"][side]) for side in ("trl", "ours")]
        table.add_row(f"  {name}", *cells, "")
    together = [f"{result['seconds_of_all_steps'][side]:.3g}" for side in ("trl", "ours")]
    table.add_row("seconds of all steps", *together, f"{result['ratio_of_all_steps']:.2f}")
    table.add_row("pairs a second", f"{pairs['trl']:.3g}", f"{pairs['ours']:.3g}", "")
    table.add_row("tokens a second", f"{tokens['trl']:,.0f}", f"{tokens['ours']:,.0f}", "")
    megabytes = [f"{held[side] / 1e6:,.0f} MB" for side in ("trl", "ours")]
    table.add_row("held for backward", *megabytes, f"{result['memory_ratio']:.2f}")
    return table


def bench_lines(result: Mapping[str, Any]) -> list[str]:
    """What stands below the table of `bench`: how near the limit it is, whether both agree, and what was compared."""
    threads = f" ({result['threads']} thread(s))" if result["device"] == "cpu" else ""
    return [
        f"Reading each token once would give {result['limit']:.2f}; {result['share_of_limit']:.0%} of it is reached.",
        f"Largest difference: loss {result['loss_difference']:.0e}, gradient {result['gradient_difference']:.0e}, "
        "relative.",
        f"Compared with {result['against']}, on {result['device']}{threads}: {result['batches']} steps of "
        f"{result['pairs_per_batch']} pairs, in turns.",
    ]


def _share_cell(part: str, seconds: Mapping[str, float]) -> str:
    """Seconds of a part of a step, and its share of the whole."""
    return f"{seconds[part]:.3g} ({seconds[part] / sum(seconds.values()):.0%})"
