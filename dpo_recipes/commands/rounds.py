"""Rounds of training on own samples: each samples with the policy of the one before, ranks, and trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from ..errors import UsageError
from ..recipe.recipe import PREPARED, Recipe
from ..result_tables import rounds_table
from ..runs.folder import Run
from ..sentences import print_line
from .pairs import pairs
from .train import train

KeptOrMoved = Literal["kept", "moved"]

# Of the recipe's data, what says where its pairs are and how they are read.
OF_OTHER_PAIRS = (
    "path",
    "mix",
    "train",
    "eval",
    "subset",
    "data_dir",
    "revision",
    "format",
    "reader",
    "streaming",
    "exclude",
)


class Round(NamedTuple):
    """What one round has left."""

    pairs: dict[str, Any]  # the report of its samples
    run: Run


def rounds(
    recipe: Recipe,
    *,
    count: int,
    prompts: str | Path,
    to: str | Path,
    reference: KeptOrMoved | None = None,
    console: Console | None = None,
    **sampling: Any,
) -> list[Round]:
    """`count` rounds in the folders to/round-1, to/round-2 ...: pairs of the policy's own replies, and a run on them.

    `reference`: "moved", each round is compared with the policy that it starts from (as in iterative DPO, 2401.10020);
    "kept", each with the start of the first (as in 2405.07863). None: kept where the recipe names a reference, else
    moved. `sampling` are arguments of `pairs`. Called again it goes on: what a round has sampled or trained is kept.
    """
    console = console or Console(quiet=True)
    if sampling.get("endpoint") is not None:
        raise UsageError(
            "--rounds trains what the next round samples from, and --endpoint serves one model all the time. Sample "
            "there without --rounds, then train on the pairs."
        )
    reference = reference or ("kept" if recipe.reference else "moved")
    _refuse_reference(recipe, reference)

    done: list[Round] = []
    for number in range(1, count + 1):
        folder = Path(to) / f"round-{number}"
        start = _started_from(recipe, done[-1].run if done else None, reference)
        print_line(console, f"Round {number} of {count}. {_reference_in_words(number, reference)}")
        finished = _finished_run(folder)
        report_file = folder / "pairs" / "report.json"
        if finished is not None and report_file.exists():
            print_line(console, f"It is done: {finished.path}")
            report = json.loads(report_file.read_text(encoding="utf-8"))
        else:
            report = pairs(
                start, prompts=prompts, to=folder / "pairs", seed=recipe.seed + number - 1, console=console, **sampling
            )
            finished = train(_on_pairs(start, folder / "pairs"), runs=folder, console=console)
        done.append(Round(report, finished))

    console.print(rounds_table([(each.pairs, each.run.evaluation["after"]) for each in done]))
    print_line(console, f"The model of the last round: {done[-1].run.model_folder}")
    return done


def _refuse_reference(recipe: Recipe, reference: KeptOrMoved) -> None:
    """What no recipe of a later round could say."""
    if reference == "moved" and recipe.reference:
        raise UsageError(
            f"--reference moved: {recipe.name} names a reference of its own, {recipe.reference}, which is kept. Leave "
            "--reference out, or delete reference= in the recipe."
        )
    if reference == "moved":
        return
    if recipe.adapter is not None and recipe.adapter.continue_from:
        raise UsageError(
            "--reference kept: the start is a model with an adapter on it, and a reference is a model alone. Merge the "
            "adapter into a model first, or leave the reference to move."
        )
    if recipe.revision and not recipe.reference:
        raise UsageError(
            "--reference kept: a reference of its own has no revision. Name a local copy of that revision as "
            "reference=, or leave the reference to move."
        )


def _reference_in_words(number: int, reference: KeptOrMoved) -> str:
    if number == 1 or reference == "kept":
        return "The reference is the start of the first round."
    return f"The reference is the policy that round {number - 1} has left."


def _started_from(recipe: Recipe, before: Run | None, reference: KeptOrMoved) -> Recipe:
    """The recipe of a round: its model, or its adapter, is what the round before has left."""
    if before is None:
        return recipe
    changes: dict[str, Any] = {}
    unset: list[str] = []
    if recipe.adapter is None:
        changes["model"] = str(before.path.resolve() / "model")
        unset.append("revision")
    else:
        adapter = recipe.adapter
        continued = str(before.path.resolve() / "model")
        changes["adapter"] = adapter.evolve(*adapter.given - {"double_quant"}, continue_from=continued)
    if reference == "kept":
        changes["reference"] = recipe.reference or recipe.model
    return _evolved(recipe, *unset, **changes)


def _on_pairs(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the pairs of a folder in place of its own."""
    first = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").partition("\n")[0])
    changes: dict[str, Any] = {"path": str(folder), "train": "train", "eval": "eval"}
    if isinstance(first["prompt"], str):
        changes["format"] = "text"
    return _evolved(recipe, data=recipe.data.evolve(*OF_OTHER_PAIRS, **changes))


def _evolved(recipe: Recipe, *unset: str, **changes: Any) -> Recipe:
    """The recipe with these changes, under its name."""
    changed = {"model": recipe.model, "data": recipe.data, "reference": recipe.reference, **changes}
    places = f"{changed['model']} {changed['data'].name} {changed['reference']}"
    if PREPARED not in places:  # nothing is left that it would make
        unset += ("prepare",)
    return recipe.evolve(*unset, **changes)


def _finished_run(folder: Path) -> Run | None:
    """The run of a round that has come to its end."""
    for path in sorted(folder.glob("*/")):
        run = Run(path)
        if run.is_finished:
            return run
    return None
