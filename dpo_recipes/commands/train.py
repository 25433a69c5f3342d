"""The spine: a recipe becomes a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..data.sources import is_path
from ..errors import RecipeError
from ..recipe.origins import values_with_origins
from ..recipe.recipe import PREPARED, QLoRA, Recipe
from ..runs import environment, files, folder
from ..runs.model_card import model_card
from ..terminal import TrainingBar, comparison_table, data_table
from ..training.session import Start

if TYPE_CHECKING:
    from ..models.tokenizer import Tokenizer
    from ..training.trainer import RecipeTrainer


def train(recipe: Recipe, *, runs: Path | str = "runs", console: Console | None = None) -> folder.Run:
    """Train a recipe; returns its finished run folder: the model, the numbers before and after, the answers.

    Raises RecipeError with one readable message for whatever is the user's to fix; nothing is left half-written.
    """
    console = console or Console()
    start = Start(recipe, console)
    from ..evaluation.answers import answers
    from ..evaluation.held_out import METRICS, compared, held_out
    from ..training.metrics_log import MetricsLog

    say = start.say
    run = folder.create(Path(runs), recipe.name)
    bar = TrainingBar(console, {metric.name: metric.short for metric in METRICS if metric.short})
    try:
        start.pairs()
        console.print(data_table(start.report))
        for found in start.findings:
            if found.level == "warn" or found.name == "pairs":
                say(found.text)
        if fails := [f"{found.name}: {found.text}" for found in start.findings if found.level == "fail"]:
            raise RecipeError("\n".join(fails))
        trainer = start.trainer(run.path / "checkpoints", [MetricsLog(run.path / "metrics.jsonl", bar)])
        who = _who(trainer)
        _describe(run, trainer, start, who)
        say(f"Policy: {who['policy']}. Reference: {who['reference']}.")
        say(_amounts(trainer))

        with console.status("held-out pairs before training"):
            metrics, first = trainer.held_out()
        before = held_out(metrics, first, recipe.beta, first, trainer.health.same_start)
        if recipe.data.streaming:  # what was read to look at it is read again
            start.report["train"]["dropped"].clear()
        trainer.train()
        bar.close()
        if recipe.data.streaming:  # its drops are known now
            files.write_json(run.path / "data.json", start.report)
            console.print(data_table(start.report))
        # The model first: whatever goes wrong from here on, the training is not lost.
        files.write_folder(run.path / "model", lambda where: _save(where, trainer, start.tokenizer))
        with console.status("held-out pairs after training"):
            metrics, last = trainer.held_out()
        after = held_out(metrics, last, recipe.beta, first, trainer.health.same_start)
        files.write_json(run.path / "evaluation.json", {"before": before, "after": after})
        on_the_hub = not is_path(recipe.model) and PREPARED not in recipe.model
        card = model_card(recipe, base_model=recipe.model if on_the_hub else None, who=who, after=after)
        files.write_text(run.path / "model" / "README.md", card)
        with console.status("answers of reference and policy"), trainer.accelerator.autocast():
            samples, truth = answers(recipe, trainer, start.reference)
        files.write_jsonl(run.path / "samples.jsonl", samples)
        for numbers, more in zip((before, after), truth, strict=True):
            numbers.update(more)
        files.write_json(run.path / "evaluation.json", {"before": before, "after": after})
    except BaseException:
        bar.close()
        if not any((run.path / name).exists() for name in ("metrics.jsonl", "checkpoints")):
            shutil.rmtree(run.path, ignore_errors=True)  # nothing in it that anyone could miss
        raise
    console.print(comparison_table(after["pairs"], compared(before, after)))
    say(f"{run.path} holds the model, the numbers and the answers.")
    return run


def _who(trainer: RecipeTrainer) -> dict[str, Any]:
    """Policy and reference in words."""
    recipe, kind = trainer.recipe, trainer.settings.reference
    name = recipe.model.replace(f"{PREPARED}/", f"{recipe.name}'s own ")
    name += f"@{recipe.revision}" if recipe.revision else ""
    start = recipe.adapter and recipe.adapter.continue_from
    adapter = "all weights"
    if recipe.adapter:
        how = f"continued from {start}" if start else f"of rank {recipe.adapter.r}"
        adapter = f"{type(recipe.adapter).__name__} {how}"
    trainable, total = trainer.parameter_counts()
    reference = {
        "adapter off": "the same model with the adapter off",
        "frozen adapter": f"the same model with the frozen copy of {start}",
        "start weights": "the weights it starts from, as log-probabilities computed before training",
        "other model": f"{recipe.reference}, as log-probabilities computed before training",
        "moving copy": "a second copy of the weights, moved towards the policy (TR-DPO)",
    }[kind]
    return {
        "policy": f"{name} + {adapter} ({trainable:,} of {total:,} parameters train)",
        "reference": reference, "kind": kind, "model": recipe.model, "revision": recipe.revision,
        "precomputed": trainer.settings.precompute, "fingerprint": trainer.fingerprint(),
    }  # fmt: skip


def _amounts(trainer: RecipeTrainer) -> str:
    """Pairs, batch and precision, one sentence."""
    settings, a_step = trainer.settings, trainer.recipe.global_batch_size
    pairs = math.inf if trainer.recipe.data.streaming else len(trainer.train_dataset)
    precision = "4-bit NF4 weights, computing in " if isinstance(trainer.recipe.adapter, QLoRA) else ""
    precision += settings.weights + (f" with {settings.autocast} autocast" if settings.autocast else "")
    return (
        f"{'A stream of' if pairs == math.inf else format(pairs, ',')} pairs to train on, "
        f"{len(trainer.eval_dataset):,} held out; {a_step} pairs a step = "
        f"{settings.micro_batch_size} pairs x {settings.accumulation} accumulation; {precision} on {settings.device}."
        f"{' There are fewer pairs than one step takes.' if pairs < a_step else ''}"
    )


def _describe(run: folder.Run, trainer: RecipeTrainer, start: Start, who: dict[str, Any]) -> None:
    """Everything about a run that is known before its first step."""
    recipe = trainer.recipe
    made = f"from dpo_recipes import Data, LoRA, QLoRA, Recipe\n\nrecipe = {recipe!r}\n"
    source = recipe.source.read_text(encoding="utf-8") if recipe.source else made
    files.write_text(run.path / "recipe.py", source)
    resolved = values_with_origins(recipe, trainer.settings).items()
    for name, value in {
        "recipe": {key: {"value": value, "origin": origin} for key, (value, origin) in resolved},
        "trl": trainer.args.to_dict(),
        "environment": environment.environment(recipe.seed, vars(start.device)),
        "data": start.report,
        "reference": who,
    }.items():
        files.write_json(run.path / f"{name}.json", value)


def _save(where: Path, trainer: RecipeTrainer, tokenizer: Tokenizer) -> None:
    trainer.save_model(str(where))
    shutil.rmtree(where / "ref", ignore_errors=True)  # the frozen copy of a continued adapter is not the result
    (where / "training_args.bin").unlink(missing_ok=True)  # a pickle; trl.json says the same
    tokenizer.save(where)
