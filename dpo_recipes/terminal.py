"""What a person sees in a terminal before a run: recipes, values, findings, pairs."""

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
        rows.append((words, *(cell_of(value) for value in cells)))

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


def left_out_table(program: str, left_out: Iterable[tuple[str, str]]) -> Table:
    """What a file of another program says and the recipe does not keep, each with the reason."""
    columns = (Column("not kept", overflow="fold"), Column("why", overflow="fold"))
    table = Table(*columns, title=f"Of the file of {program}", title_justify="left")
    for row in left_out:
        table.add_row(*(escape(cell) for cell in row))
    return table


def cell_of(value: Any) -> str:
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
