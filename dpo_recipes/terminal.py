"""What a person sees in a terminal: tables and findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from .errors import Finding
from .sentences import Sentence

# The worst first, which is the order in which `folded` shows them.
LEVEL_STYLES = {"fail": "bold red", "warn": "yellow", "skipped": "dim", "info": "cyan", "pass": "green"}
OBSERVATION_STYLES = {"stop": "bold red", "warning": "yellow", "note": "cyan"}
# What was typed for this run stands out, what nobody has set stands back.
ORIGIN_STYLES = {"command line": "bold", "default": "dim"}

# Padding of a cell (top, right, bottom, left): columns are told apart by a gap of two, without lines.
GAP = (0, 2, 0, 0)
GAP_AND_BLANK_LINE = (0, 2, 1, 0)


def recipe_list(recipes: Sequence[Mapping[str, Any]], memory_in_words: Sequence[str] = ()) -> Group:
    """The recipes of each group by name: loss and adapter below the name, model and data below what the recipe is.

    A recipe is a dict with the texts name, group, model, data, loss, adapter and what. The model of a broken file is
    empty. `memory_in_words`: of each recipe what is said of its memory, below loss and adapter.
    """
    names = [_name_in_list(recipe) for recipe in recipes]
    if memory_in_words:
        names = [f"{name}\n{words}" for name, words in zip(names, memory_in_words, strict=True)]
    width = max(len(line) for name in names for line in Text.from_markup(name).plain.splitlines())
    parts: list[Any] = []
    for number, recipe in enumerate(recipes):
        if number == 0 or recipe["group"] != recipes[number - 1]["group"]:
            table = Table(_whole("name"), _folded("what"), box=None, show_header=False, padding=GAP_AND_BLANK_LINE)
            table.columns[0].min_width = width
            parts += [Rule(recipe["group"], align="left", style="dim"), table]
        table.add_row(names[number], _what_in_list(recipe))
    return Group(*parts)


def _name_in_list(recipe: Mapping[str, Any]) -> str:
    name = f"[bold]{escape(recipe['name'])}[/]"
    if recipe["model"]:
        name += f"\n{escape(recipe['loss'])}, {escape(recipe['adapter'])}"
    return name


def _what_in_list(recipe: Mapping[str, Any]) -> str:
    what = escape(recipe["what"])
    if recipe["model"]:
        # What the recipe prepares for itself has no place of its own to name.
        model, data = (escape(recipe[key].replace("{prepared}/", "its own ")) for key in ("model", "data"))
        what += f"\n[dim]{model} on {data}[/]"
    return what


def values_table(values: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every value of a recipe and where it comes from; `values` is field -> {"value", "origin"}."""
    table = Table(_whole("field"), _folded("value"), _whole("origin"), box=None, header_style="bold", padding=GAP)
    for field, entry in values.items():
        style = ORIGIN_STYLES.get(entry["origin"])
        table.add_row(field, Sentence(str(entry["value"])), entry["origin"], style=style)
    return table


def differences_table(options: Mapping[str, Mapping[str, Any]]) -> Table:
    """The options of TRL's DPOConfig that differ from its own defaults; `options` is name -> {"value", "default"}."""
    columns = (_whole("DPOConfig"), _folded("this recipe"), _whole("TRL's default"))
    table = Table(*columns, box=None, header_style="bold", padding=GAP)
    for option, entry in options.items():
        table.add_row(option, Sentence(str(entry["value"])), escape(str(entry["default"])))
    return table


def choices_table(choices: Iterable[tuple[str, Any, str]]) -> Table:
    """What was chosen where the recipe leaves it open, as it would be typed, and why: (key, value, reason) each."""
    columns = (_whole("setting"), _folded("why"))
    title = "Chosen for this device"
    table = Table(*columns, box=None, show_header=False, padding=GAP, title=title, title_justify="left")
    for key, value, reason in choices:
        table.add_row(escape(f"{key}={str(value).lower()}"), Sentence(reason))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """One line for each finding, in order; the level reads without colour too."""
    table = Table.grid("", Column(style="bold"), Column(overflow="fold"), padding=GAP)
    for finding in findings:
        level = f"[{LEVEL_STYLES[finding.level]}]{finding.level}[/]"
        table.add_row(level, escape(finding.name), Sentence(finding.text))
    return table


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by their level, the worst first, and all that passed in one: what was looked at."""
    levels = list(LEVEL_STYLES)
    by_level = sorted(findings, key=lambda finding: levels.index(finding.level))
    shown = [finding for finding in by_level if finding.level != "pass"]
    passed = [finding.name for finding in by_level if finding.level == "pass"]
    if passed:
        shown.append(Finding("pass", f"{len(passed)} checks", ", ".join(passed)))
    return shown


def findings_count(findings: Iterable[Finding]) -> str:
    """How many findings there are of each level, the worst first, such as `1 warn, 7 pass`."""
    count: Counter[str] = Counter(finding.level for finding in findings)
    return ", ".join(f"{count[level]} {level}" for level in LEVEL_STYLES if level in count)


def data_table(report: dict[str, Any]) -> Table:
    """The data report: rows read, kept and dropped by reason, and lengths in tokens, for both splits."""
    table = Table(Column(no_wrap=True), "train", "eval", title="Pairs", title_justify="left")
    for row in data_rows(report):
        table.add_row(*(escape(cell) for cell in row))
    return table


def data_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the data report as texts: what is counted, of the train pairs, of the held-out ones."""
    rows: list[tuple[str, ...]] = []
    splits = [report["train"], report["eval"]]

    def add_row(words: str, cells: list[Any]) -> None:
        rows.append((words, *(_cell(value) for value in cells)))

    # How many rows there are, and what became of them.
    for name in ("rows", "pairs_made", "held_out", "kept"):
        if any(name in split for split in splits):
            add_row(name.replace("_", " "), [split.get(name, "") for split in splits])
    reasons = dict.fromkeys(reason for split in splits for reason in split["dropped"])
    for reason in reasons:
        add_row(f"dropped: {reason}", [_drop_cell(split["dropped"].get(reason)) for split in splits])

    if any("images" in split for split in splits):
        add_row("images in a pair: pairs", [_images_cell(split.get("images")) for split in splits])

    # Lengths in tokens. Of a stream nothing is known beforehand: its cells stay empty.
    for side in ("prompt", "chosen", "rejected"):
        lengths = [_lengths_cell(split["tokens"][side]) if "tokens" in split else "" for split in splits]
        add_row(f"{side} tokens, 50/95/99/100 %", lengths)
    truncated = [split["truncated"]["pairs"] if "truncated" in split else "" for split in splits]
    add_row("pairs that max_length cuts", truncated)
    for words, name in (
        ("max_length to keep 99 % whole", "max_length_keeping_99"),
        ("chosen is the longer side", "longer_chosen"),
        ('accuracy of "pick the longer"', "pick_longer_accuracy"),
    ):
        add_row(words, [split.get(name, "") for split in splits])
    return rows


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
            table.add_row(words, _cell(value))
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


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


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


def left_out_table(program: str, left_out: Iterable[tuple[str, str]]) -> Table:
    """What a file of another program says and the recipe does not keep, each with the reason."""
    columns = (Column("not kept", overflow="fold"), Column("why", overflow="fold"))
    table = Table(*columns, title=f"Of the file of {program}", title_justify="left")
    for row in left_out:
        table.add_row(*(escape(cell) for cell in row))
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


def _cell(value: Any) -> str:
    """A count with commas, a share in percent, and any text as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1%}"
    return str(value)


def _drop_cell(drop: dict[str, Any] | None) -> str | int:
    """The number of rows that one reason dropped, and the first of them."""
    if drop is None:
        return 0
    return f"{drop['count']:,} (rows {', '.join(drop['rows'])})"


def _images_cell(images: dict[str, Any] | None) -> str:
    """How many pairs have how many images, such as "1: 22, 2: 2"."""
    if not images:
        return ""
    return ", ".join(f"{number}: {pairs:,}" for number, pairs in images["pairs"].items())


def _lengths_cell(quantiles: dict[str, int]) -> str:
    return " / ".join(f"{quantiles[name]:,}" for name in ("p50", "p95", "p99", "max"))


def _whole(header: str) -> Column:
    """A column of names, origins or defaults: never cut."""
    return Column(header, no_wrap=True, overflow="fold")


def _folded(header: str) -> Column:
    """A column of values: what is longer than the terminal is wide goes on in the next line."""
    return Column(header, overflow="fold")
