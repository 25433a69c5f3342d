"""The command line: a few lines for each verb, heavy imports inside. The only file that prints errors and exits."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import catalogue, overrides, settings
from .errors import RecipeError, UsageError, nearest

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
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes: beta=0.05 adapter.r=64 data.train=train trl.max_grad_norm=0.5 adapter=none",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]


def speaking(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn what is the user's to fix into one message and an exit code; a traceback is a bug of ours."""

    @functools.wraps(verb)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except RecipeError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("\nStopped. What is in the run folder stays there.")
            raise typer.Exit(130) from None

    return wrapped


def recipe_of(name: str, assignments: list[str] | None, *options: str) -> Any:
    """The recipe with its overrides; `options` are those of the verb, for a word that comes close to one."""
    for text in assignments or []:
        if text.startswith("--") and (near := nearest(text.partition("=")[0], options)):
            raise UsageError(f"{text} is not an option of this command.{near}")
    return overrides.apply(catalogue.load(name), assignments or [])


def version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a checkout that is not installed
            print(metadata.version("dpo-recipes"))
        raise typer.Exit


@app.callback()
def top(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)] = False,
) -> None:
    pass


@app.command("list", rich_help_panel=LOOK)
@speaking
def list_(as_json: AsJson = False) -> None:
    """The recipes: name, model, data, loss, adapter, and what each is."""
    rows = catalogue.rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    console = Console()
    wide = console.width >= 150
    table = Table(box=None, show_header=wide, header_style="bold", padding=(0, 2, 0 if wide else 1, 0))
    for column in ("name", "model", "data", "loss", "adapter", "what") if wide else ("name", "what"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        name, model, data, loss, adapter, what = (escape(v.replace("{prepared}/", "its own ")) for v in row.values())
        if wide:
            table.add_row(f"[bold]{name}[/]", model, data, loss, adapter, what)
        else:
            under = (f"\n{loss}, {adapter}", f"\n[dim]{model} on {data}[/]") if model else ("", "")
            table.add_row(f"[bold]{name}[/]{under[0]}", f"{what}{under[1]}")
    console.print(table)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
@speaking
def show(recipe: RecipeName, changes: Overrides = None, as_json: AsJson = False) -> None:
    """Every value of a recipe with its origin, then what differs from TRL's own defaults."""
    shown = settings.show(recipe_of(recipe, changes, "--json", "--help"))
    if as_json:
        print(json.dumps(shown, indent=2, default=str))
        return
    console = Console()
    styles = {"default": "dim", "command line": "bold"}
    table = Table("field", "value", "origin", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for key, entry in shown["recipe"].items():
        style = styles.get(entry["origin"], "")
        table.add_row(key, escape(str(entry["value"])), entry["origin"], style=style)
    differing = Table("DPOConfig", "this recipe", "TRL's default", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for key, entry in shown["trl"].items():
        differing.add_row(key, escape(str(entry["value"])), escape(str(entry["default"])))
    for each in (table, differing):
        each.columns[0].no_wrap, each.columns[1].overflow, each.columns[2].no_wrap = True, "fold", True
    console.print(f"{shown['name']} on {shown['device']}: {shown['step']}", "", highlight=False, markup=False)
    console.print(table, "\nDifferent from TRL's defaults:", differing, sep="\n", highlight=False)


@app.command(rich_help_panel=MAKE)
@speaking
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new recipe's name.", show_default=False)],
    source: Annotated[str, typer.Option("--from", metavar="RECIPE", help="The recipe to copy.")] = "quickstart",
) -> None:
    """Fork a recipe: copy its file to recipes/NAME.py, ready to edit."""
    path = catalogue.new(name, source)
    Console().print(f"{path} is yours. Edit it, then: dpo-recipes train {name}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
@speaking
def train(
    recipe: RecipeName,
    changes: Overrides = None,
    runs: Annotated[Path, typer.Option(metavar="FOLDER", help="Where run folders are made.")] = Path("runs"),
) -> None:
    """Train a recipe: a run folder with the model, held-out numbers before and after, and answers side by side."""
    value = recipe_of(recipe, changes, "--runs", "--help")
    from .train import train as run

    run(value, runs=runs)


def main() -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? instead of a traceback
    app()
