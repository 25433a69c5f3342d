"""The page: one HTML file that needs nothing but itself, of one run or of several, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs import files
from ..runs.folder import PAGE
from . import curves, sections
from .contents import Contents, contents, labels
from .text import Html, element, escape, joined

# Nothing is fetched and nothing runs: a browser holds the page to it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def write_report(run: Path) -> Path:
    """Write report.html into a run folder; returns its path. Raises OSError where it cannot be written."""
    path = run / PAGE
    files.write_text(path, page([contents(run)]))
    return path


def page(runs: Sequence[Contents]) -> str:
    """The whole page of one run, or of several laid over each other."""
    body = _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _of_one(run: Contents) -> Html:
    parts: list[Any] = [
        element("h1", run.name),
        sections.judged(run),
        sections.section("What was trained", sections.subject(run)),
        sections.section("Seen while training", sections.observed(run)),
        sections.section(f"Held out: {run.after.get('pairs', 0):,} pairs", sections.numbers(run)),
        sections.section("Curves", curves.curves(run)),
        sections.section("Answers side by side", sections.answers(run)),
        sections.section("Data", sections.data_report(run)),
        sections.section("Agreement with TRL", sections.agreement(run)),
        sections.section("Recipe", sections.recipe_values(run)),
        sections.section("Versions", sections.versions(run)),
    ]
    return element("main", joined(parts))


def _of_several(runs: Sequence[Contents]) -> Html:
    verdicts = []
    for run, label in zip(runs, labels(runs), strict=True):
        head = [element("h2", label)]
        if label != run.name:
            head.append(element("p", element("small", run.name)))
        verdicts.append(element("section", joined([*head, sections.judged_in_short(run)])))
    parts: list[Any] = [
        element("h1", f"{len(runs)} runs"),
        *verdicts,
        sections.section("What reward has cost", curves.frontier(runs)),
        sections.section("Held out, after training", sections.numbers_of_several(runs)),
        sections.section("Against the first", sections.against_the_first(runs)),
        sections.section("Why they may differ", sections.why_they_may_differ(runs)),
        sections.section("Curves", curves.curves_of_several(runs)),
    ]
    return element("main", joined(parts))
