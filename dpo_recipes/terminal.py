"""What a person sees in a terminal: tables, findings and the progress bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from .errors import Finding

LEVEL_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}
# What was typed for this run stands out, what nobody has set stands back.
ORIGIN_STYLES = {"command line": "bold", "default": "dim"}

# Padding of a cell (top, right, bottom, left): columns are told apart by a gap of two, without lines.
GAP = (0, 2, 0, 0)
GAP_AND_BLANK_LINE = (0, 2, 1, 0)


def recipe_list(recipes: Iterable[Mapping[str, str]]) -> Table:
    """The recipes by name: loss and adapter below the name, model and data below what the recipe is.

    A recipe is a dict of texts: name, model, data, loss, adapter, what. The model of a broken file is empty.
    """
    table = Table(_whole("name"), _folded("what"), box=None, show_header=False, padding=GAP_AND_BLANK_LINE)
    for recipe in recipes:
        # What the recipe prepares for itself has no place of its own to name.
        text = {key: escape(value.replace("{prepared}/", "its own ")) for key, value in recipe.items()}
        name = f"[bold]{text['name']}[/]"
        what = text["what"]
        if text["model"]:
            name += f"\n{text['loss']}, {text['adapter']}"
            what += f"\n[dim]{text['model']} on {text['data']}[/]"
        table.add_row(name, what)
    return table


def values_table(values: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every value of a recipe and where it comes from; `values` is field -> {"value", "origin"}."""
    table = Table(_whole("field"), _folded("value"), _whole("origin"), box=None, header_style="bold", padding=GAP)
    for field, entry in values.items():
        style = ORIGIN_STYLES.get(entry["origin"])
        table.add_row(field, escape(str(entry["value"])), entry["origin"], style=style)
    return table


def differences_table(options: Mapping[str, Mapping[str, Any]]) -> Table:
    """The options of TRL's DPOConfig that differ from its own defaults; `options` is name -> {"value", "default"}."""
    columns = (_whole("DPOConfig"), _folded("this recipe"), _whole("TRL's default"))
    table = Table(*columns, box=None, header_style="bold", padding=GAP)
    for option, entry in options.items():
        table.add_row(option, escape(str(entry["value"])), escape(str(entry["default"])))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """One line for each finding, in order; the level reads without colour too."""
    table = Table.grid("", Column(style="bold"), Column(overflow="fold"), padding=GAP)
    for finding in findings:
        level = f"[{LEVEL_STYLES[finding.level]}]{finding.level}[/]"
        table.add_row(level, escape(finding.name), escape(finding.text))
    return table


def findings_count(findings: Iterable[Finding]) -> str:
    """How many findings there are of each level, such as `7 pass, 1 warn`."""
    count = Counter(finding.level for finding in findings)
    return ", ".join(f"{number} {level}" for level, number in count.items())


def _whole(header: str) -> Column:
    """A column of names, origins or defaults: never cut."""
    return Column(header, no_wrap=True, overflow="fold")


def _folded(header: str) -> Column:
    """A column of values: what is longer than the terminal is wide goes on in the next line."""
    return Column(header, overflow="fold")
