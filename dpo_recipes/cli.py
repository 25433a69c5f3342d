"""The command line: a few lines for each verb, heavy imports inside. The only file that prints errors and exits."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .errors import Finding, RecipeError, UsageError
from .recipe import catalogue, overrides
from .recipe import resolve as settings

app = typer.Typer(
    name="dpo-recipes",
    help="Preference tuning recipes: one small Python file becomes a trained model, through Hugging Face TRL.",
    epilog="Start with: dpo-recipes train quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
LOOK, MAKE, RUN = "Look", "Make your own", "Run"
# An unknown option falls into the overrides, where the message can say how values are written.
LENIENT = {"ignore_unknown_options": True}

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or the path of a file.", show_default=False)]
HELP = "Changes: beta=0.05 adapter.r=64 data.train=train trl.max_grad_norm=0.5 adapter=none"
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders are made.")]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="The new recipe's name.", show_default=False)]
Count = Annotated[int, typer.Option("-n", min=1, help="How many pairs.")]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="MEMORY", help="Plan for a device of e.g. 24GB.")]
Really = Annotated[bool, typer.Option("--run", help="Load the model and take a few real steps beside the plan.")]
Source = Annotated[str, typer.Option("--from", metavar="RECIPE", help="The recipe to copy.")]


def table(*columns: str, **options: Any) -> Table:
    """Names, origins and defaults are never cut, values fold."""
    whole = ("name", "field", "origin", "DPOConfig", "TRL's default")
    made = [Column(column, no_wrap=column in whole, overflow="fold") for column in columns]
    return Table(*made, box=None, header_style="bold", **{"padding": (0, 2, 0, 0), **options})


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(metadata.version("dpo-recipes"))


@app.command("list", rich_help_panel=LOOK)
def list_(as_json: AsJson = False) -> None:
    """The recipes: name, model, data, loss, adapter, and what each is."""
    rows = catalogue.rows()
    if as_json:
        return print(json.dumps(rows, indent=2))
    shown = table("name", "what", show_header=False, padding=(0, 2, 1, 0))
    for row in rows:
        name, model, data, loss, adapter, what = (escape(v.replace("{prepared}/", "its own ")) for v in row.values())
        kind, source = (f"\n{loss}, {adapter}", f"\n[dim]{model} on {data}[/]") if model else ("", "")
        shown.add_row(f"[bold]{name}[/]{kind}", what + source)
    Console().print(shown)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def show(recipe: RecipeName, changes: Overrides = None, as_json: AsJson = False) -> None:
    """Every value of a recipe with its origin, then what differs from TRL's own defaults."""
    shown = settings.show(overrides.apply(catalogue.load(recipe), changes or []))
    if as_json:
        return print(json.dumps(shown, indent=2, default=str))
    ours, differing = table("field", "value", "origin"), table("DPOConfig", "this recipe", "TRL's default")
    styles = {"default": "dim", "command line": "bold"}
    for key, entry in shown["recipe"].items():
        ours.add_row(key, escape(str(entry["value"])), entry["origin"], style=styles.get(entry["origin"]))
    for key, entry in shown["trl"].items():
        differing.add_row(key, escape(str(entry["value"])), escape(str(entry["default"])))
    print(f"{shown['name']} on {shown['device']}: {shown['step']}\n")
    Console().print(ours, "\nDifferent from TRL's defaults:", differing, sep="\n", highlight=False)


@app.command(rich_help_panel=MAKE)
def new(name: NewName, source: Source = "quickstart") -> None:
    """Fork a recipe: copy its file to recipes/NAME.py, ready to edit."""
    print(f"{catalogue.new(name, source)} is yours. Edit it, then: dpo-recipes train {name}")


def _report(findings: Iterable[Finding], as_json: bool, **more: Any) -> None:
    """Print findings, as a table or with `more` as JSON; exit 1 where one of them failed."""
    shown, found = Table.grid("", Column(style="bold"), Column(overflow="fold"), padding=(0, 2, 0, 0)), list(findings)
    styles = {"pass": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}
    count = Counter(finding.level for finding in found)
    for level, name, text in found:
        shown.add_row(f"[{styles[level]}]{level}[/]", escape(name), escape(text))
    if as_json:
        print(json.dumps({"findings": [finding._asdict() for finding in found], **more}, indent=2))
    else:
        said = ", ".join(f"{n} {level}" for level, n in count.items())
        Console().print(shown, said, sep="\n", highlight=False)
    if any(finding.level == "fail" for finding in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def preview(recipe: RecipeName, changes: Overrides = None, count: Count = 3, as_json: AsJson = False) -> None:
    """A few pairs as the model sees them, their border, what is cut."""
    value = overrides.apply(catalogue.load(recipe), changes or [])
    from .commands.preview import preview as run

    shown = run(value, count=count, console=Console(quiet=as_json))
    if as_json:
        print(json.dumps(shown, indent=2))


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def check(
    recipe: RecipeName, changes: Overrides = None, gpu: Gpu = None, run: Really = False, as_json: AsJson = False
) -> None:
    """All that can be known before training; exit 1 on a fail."""
    value = overrides.apply(catalogue.load(recipe), changes or [])
    from .commands.check import check as run_checks
    from .training.session import table as pairs

    found = run_checks(value, gpu=gpu, run=run, console=Console(quiet=as_json))
    if found["data"] and not as_json:
        Console().print(pairs(found["data"]))
    _report(as_json=as_json, **found)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: AsJson = False) -> None:
    """This machine: versions, devices, hub, caches, known problems."""
    from .commands.doctor import doctor as look

    _report(look(), as_json)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def train(recipe: RecipeName, changes: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Train a recipe: a run folder with the model, held-out numbers before and after, and answers side by side."""
    value = overrides.apply(catalogue.load(recipe), changes or [])
    from .commands.train import train as run

    at_fork = getattr(os, "register_at_fork", dict)  # Ctrl-C reaches worker processes too: no traceback of each
    at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        run(value, runs=runs)
    except BaseException as error:
        if KeyboardInterrupt not in (type(error), type(error.__context__)):  # what breaks on the way out is no error
            raise
        print("\nStopped. What a run folder holds by now stays there.", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """What is the user's to fix becomes one message and an exit code; a traceback is a bug of ours."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? instead of a traceback
    try:
        app()
    except RecipeError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
