"""What a verb returns, printed for a reader; with --json the command line prints the same values as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import result_tables, terminal
from .commands import recipes as recipe_files
from .sentences import Sentence, print_line


def print_recipes(recipes: list[dict[str, Any]], gpu: str | None) -> None:
    """The recipes as a table; `gpu`: the memory that they were chosen for, in the words of the command line."""
    if not recipes:
        print_line(Console(), "No recipe is like that. All of them: dpo-recipes list")
        return

    memory = [] if gpu is None else [recipe_files.memory_in_words(recipe) for recipe in recipes]
    Console().print(terminal.recipe_list(recipes, memory))
    if gpu is not None:
        print_line(
            Console(),
            "By formula, from the model's shape: between what every step holds, and more than one takes that reads "
            "pairs of max_length, one at a time unless the recipe says how many. What cannot fit is left out. What a "
            f"run on your pairs needs: dpo-recipes check NAME --gpu {gpu}",
        )


def print_values(shown: dict[str, Any], *, changed: bool) -> None:
    """A recipe's values, with `changed` only those that it sets, and what differs from TRL's defaults."""
    print(f"{shown['name']} on {shown['device']}: {shown['step']}\n")
    Console().print(terminal.values_table(shown["recipe"]))
    if not changed:
        reasons = [
            (key, entry["value"], entry["reason"]) for key, entry in shown["recipe"].items() if "reason" in entry
        ]
        if reasons:
            Console().print("", terminal.choices_table(reasons), sep="\n")
        if shown["left_open"]:
            Console().print("", Sentence(shown["left_open"]), sep="\n")
        differences = terminal.differences_table(shown["trl"])
        Console().print("\nDifferent from TRL's defaults:", differences, sep="\n", highlight=False)


def print_imported(name: str, file: Path, imported: Any) -> None:
    """What became of a YAML file: what is said in other words, what is not kept, and where the recipe is."""
    for note in imported.notes:
        print_line(Console(), note)
    if imported.left_out:
        Console().print(terminal.left_out_table(imported.program, imported.left_out))
    print_line(Console(), f"{file} is yours, a run of {imported.program}. Look at it: dpo-recipes check {name}")


def print_comparison(result: dict[str, Any], runs: Sequence[Path]) -> None:
    """Runs beside each other, the differences of each from the first, and why they may differ."""
    from .evaluation.closing_table import difference_rows, rows_of_runs

    console = Console()
    for letter, run in zip(result_tables.LETTERS, runs, strict=False):
        console.print(f"{letter}  {run}", markup=False, highlight=False, soft_wrap=True)
    console.print(result_tables.runs_table([str(run) for run in runs], rows_of_runs(result["runs"])))
    for letter, run in zip(result_tables.LETTERS[1:], result["runs"][1:], strict=False):
        of_this_run = [difference for difference in result["differences"] if difference["run"] == run["run"]]
        console.print(result_tables.differences_of_runs_table(letter, difference_rows(of_this_run)))
    if result["causes"]:
        console.print(result_tables.causes_table(result["causes"], len(runs)))
    else:
        print_line(console, "Their folders differ in nothing that could change a result.")


def print_measured(result: dict[str, Any], *, of_a_run: bool) -> None:
    """The numbers of a policy: of a run before and after training, of any other beside its reference."""
    from .evaluation.closing_table import compared

    sides = ("before", "after") if of_a_run else ("reference", "policy")
    rows = compared(result["before"], result["after"])
    Console().print(result_tables.comparison_table(result["after"]["pairs"], rows, sides))
    if "dial" in result:
        Console().print(result_tables.dial_table(result["dial"]))
    if result["written"]:
        holds = "the numbers, the pairs and the answers" if result["samples"] else "the numbers and the pairs"
        print_line(Console(), f"{result['written']} holds {holds}.")


def print_job(result: dict[str, Any], out: Path | None) -> None:
    """The file of a job, which is printed itself where it was written nowhere."""
    if out is None:
        print(result["text"], end="")
    else:
        print_line(Console(), f"{out} holds the job. Its first lines say how it is started.")


def print_trl_script(result: dict[str, Any], out: Path) -> None:
    """A script for TRL alone: what is not in it, and how it is started."""
    for sentence in result["left_out"]:
        print_line(Console(), f"Not in it: {sentence}")
    if result["why_no_yaml"] is not None:
        print_line(Console(), f"There is no file for trl dpo --config: {result['why_no_yaml']}.")
    print_line(Console(), f"{out} holds {', '.join(result['files'])}. Train with: python {out / 'train_dpo.py'}")


def print_exported_model(result: dict[str, Any], out: Path, *, merged: bool, public: bool) -> None:
    """A model that was written, how near it is to what it stands for, and where else it went."""
    from .runs.model_card import merged_in_words, nearness_in_words, nearness_rows, rounding_in_words

    if merged:
        print_line(Console(), merged_in_words(result))
        advice = rounding_in_words(result)
        if advice is not None:
            print_line(Console(), advice)
        print_line(Console(), f"{out} holds the merged model in {result['dtype']}, for whatever loads Transformers.")
    else:
        Console().print(result_tables.nearness_table(result["dial"], nearness_rows(result)))
        print_line(Console(), nearness_in_words(result))
        print_line(Console(), f"{out} holds {result['form']}: an approximation of decoding with the dial.")
    if "pushed" in result:
        seen_by = "everybody" if public else "you alone"
        print_line(Console(), f"{result['pushed']} has it too, for {seen_by} to see.")
