"""Finished runs that several tests read: each way to train is trained once."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from making import SHORT_ANSWER, write_recipe
from rich.console import Console

from dpo_recipes import Run, apply, load, train
from dpo_recipes.evaluation import rehearsal

RECIPE = """

def vowels(prompt, completion):
    return float(sum(completion.count(vowel) for vowel in "aeiou"))


recipe = Recipe(
    model={model!r},
    data=Data({pairs!r}, eval=0.25),
    adapter={adapter},
    beta=0.3,
    learning_rate=0.01,
    global_batch_size=6,
    micro_batch_size=3,
    max_length=112,
    reward=vowels,
    trl={{"gradient_checkpointing": False, "max_steps": 4}},
)
"""


@pytest.fixture(autouse=True)
def _short_answers(short_answers) -> None:
    """In all tests of the verbs, so that a run measured again is asked for what it was asked for at its end."""


class Finished(NamedTuple):
    """A run, and what it has printed."""

    run: Run
    said: str


def write(path: Path, model: Path, pairs: Path, adapter: str = "LoRA(r=4)") -> Path:
    return write_recipe(path, RECIPE.format(model=str(model), pairs=str(pairs), adapter=adapter))


@pytest.fixture
def recipe_file(tiny, pairs_file, tmp_path) -> Path:
    """A recipe file with a reward of its own."""
    return write(tmp_path / "mine.py", tiny(), pairs_file)


@pytest.fixture(scope="session")
def finished(tiny, pairs_file, tmp_path_factory) -> Callable[..., Finished]:
    """finished(adapter, changes) -> the run of a recipe file, of which the command line has changed something.

    The adapter is as in a recipe, or "continued": from the run of the first. Nobody may change the folder of a run.
    """
    made: dict[tuple[str, ...], Finished] = {}

    def build(adapter: str = "LoRA(r=4)", changes: tuple[str, ...] = ("beta=0.4",)) -> Finished:
        key = (adapter, *changes)
        if key not in made:
            if adapter == "continued":
                adapter = f"LoRA(continue_from={str(build().run.path / 'model')!r})"
            folder = tmp_path_factory.mktemp("finished")
            recipe = load(write(folder / "mine.py", tiny(), pairs_file, adapter))
            said = io.StringIO()
            console = Console(file=said, width=300)
            with pytest.MonkeyPatch.context() as patch:  # whichever fixture asks for it first
                patch.setattr(rehearsal, "MAX_NEW_TOKENS", SHORT_ANSWER)
                run = train(apply(recipe, changes), runs=folder / "runs", console=console)
            made[key] = Finished(run, said.getvalue())
        return made[key]

    return build
