"""The spine: a recipe becomes a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from . import hub, rundir
from .errors import RecipeError
from .recipe import PREPARED, QLoRA, Recipe
from .settings import Device, dpo_config, here, resolve, rows
from .sources import FULL, is_path

if TYPE_CHECKING:
    from .data import Read
    from .model import Tokenizer
    from .trainer import RecipeTrainer


SMALL = 20_000_000  # bytes of a file that is read, tokenised and compared within seconds


def train(recipe: Recipe, *, runs: Path | str = "runs", console: Console | None = None) -> rundir.Run:
    """Train a recipe; returns its finished run folder: the model, the numbers before and after, the answers.

    Raises RecipeError with one readable message for whatever is the user's to fix; nothing is left half-written.
    """
    console = console or Console()
    resolve(recipe, here())  # what can be refused is refused before anything is loaded
    folder = hub.prepared(recipe, console)

    def place(text: str) -> str:
        return os.path.expanduser(text.replace(PREPARED, str(folder)))

    model_path, reference_path = place(recipe.model), place(recipe.reference or "")
    paths = {place(path): share for path, share in recipe.data.paths.items()}
    models = [path for path in (model_path, reference_path) if path]
    hub.require(models, recipe.revision, list(paths), recipe.data.revision)
    with console.status("loading the libraries"):
        # bitsandbytes announces an optional kernel that is not installed, at every import on a CPU.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        import datasets
        from transformers import PrinterCallback
        from transformers.utils.logging import disable_progress_bar

        from . import model, progress
        from .evaluate import answers, held_out
        from .trainer import RecipeTrainer, config

        disable_progress_bar()  # of loading shards, which is quick or has a download bar
        watched = console.is_terminal or console.is_jupyter
        if not watched or all(os.path.exists(path) and os.path.getsize(path) < SMALL for path in paths):
            datasets.disable_progress_bars()
        if not watched:
            os.environ["TQDM_DISABLE"] = "1"  # read by TRL for the reference pass

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=not console.is_terminal)  # one line each in a log

    device = model.device(say, use_cpu=bool(recipe.trl.get("use_cpu")))
    settings = resolve(recipe, device)
    run = rundir.create(Path(runs), recipe.name)
    bar = progress.Bar(console, run.path / "metrics.jsonl")
    try:
        tokenizer = model.load_tokenizer(recipe, model_path, say)
        read = _read(recipe, paths, tokenizer, say)
        with console.status("loading the model"):
            policy = model.load_weights(recipe, settings, model_path, say=say)
        model.need_embeddings(policy, tokenizer.tokenizer)
        arguments = config(dpo_config(recipe, settings, str(run.path / "checkpoints")))
        origin = reference_path or model_path
        load_reference = functools.partial(model.load_weights, recipe, settings, origin, trainable=False)
        second = load_reference() if settings.reference in ("other model", "moving copy") else None
        try:
            trainer = RecipeTrainer(
                recipe=recipe, settings=settings, model=policy, args=arguments, ref_model=second,
                train_dataset=read.train, eval_dataset=read.eval, processing_class=tokenizer.tokenizer,
                peft_config=model.peft_config(recipe.adapter), callbacks=[bar],
            )  # fmt: skip
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise RecipeError(f"TRL refuses the recipe: {str(error).strip()}") from error
        trainer.remove_callback(PrinterCallback)
        who = _who(trainer)
        _describe(run, trainer, device, read, who)
        say(f"Policy: {who['policy']}. Reference: {who['reference']}.")
        for line in (*_drops(trainer, read), _amounts(trainer)):
            say(line)

        reference = model.Reference(trainer.model, settings, load_reference)
        with console.status("held-out pairs before training"):
            metrics, start = trainer.held_out()
        before = held_out(metrics, start, recipe.beta, start, trainer.health.same_start)
        trainer.train()
        bar.close()
        # The model first: whatever goes wrong from here on, the training is not lost.
        rundir.write_folder(run.path / "model", lambda where: _save(where, trainer, tokenizer))
        with console.status("held-out pairs after training"):
            metrics, end = trainer.held_out()
        after = held_out(metrics, end, recipe.beta, start, trainer.health.same_start)
        rundir.write_json(run.path / "evaluation.json", {"before": before, "after": after})
        rundir.write_text(run.path / "model" / "README.md", _card(recipe, who, after))
        with console.status("answers of reference and policy"), trainer.accelerator.autocast():
            samples, truth = answers(recipe, trainer, reference)
        rundir.write_jsonl(run.path / "samples.jsonl", samples)
        for numbers, more in zip((before, after), truth, strict=True):
            numbers.update(more)
        rundir.write_json(run.path / "evaluation.json", {"before": before, "after": after})
    except BaseException as error:
        bar.close()
        if not any((run.path / name).exists() for name in ("metrics.jsonl", "checkpoints")):
            shutil.rmtree(run.path, ignore_errors=True)  # nothing in it that anyone could miss
        if isinstance(error, OSError) and error.errno in FULL:
            where = "HF_DATASETS_CACHE names another place for the pairs, --runs for the run"
            raise RecipeError(f"There is no place to write: {error}. {where}.") from error
        if isinstance(error, ImportError):
            raise RecipeError(f"A package that the recipe asks for is missing: {error}") from error
        raise
    console.print(progress.table(before, after))
    say(f"{run.path} holds the model, the numbers and the answers.")
    return run


def _read(recipe: Recipe, paths: dict[str, float], tokenizer: Tokenizer, say: Callable[[str], None]) -> Read:
    from . import data

    try:
        read = data.read(recipe.data, paths, num_proc=recipe.trl.get("dataset_num_proc"))
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RecipeError(f"{recipe.data.name} cannot be read: {error}. Connect, or name local files.") from error
    if not read.text and tokenizer.template is None:
        raise RecipeError(
            f"The data are conversations, and the tokenizer of {recipe.model!r} has no chat template to render them. "
            "Ways out: an instruct model, data.chat_template= in Jinja, or data.format=text for plain strings."
        )
    for note in read.report["notes"]:
        say(note)
    if (swapped := read.report["contradictions"])["count"]:
        rows = ", ".join(swapped["rows"])
        say(f"{swapped['count']:,} train pairs stand in the data the other way round too: rows {rows} ...")
    return read


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
    settings, a_step, pairs = trainer.settings, trainer.recipe.global_batch_size, len(trainer.train_dataset)
    precision = "4-bit NF4 weights, computing in " if isinstance(trainer.recipe.adapter, QLoRA) else ""
    precision += settings.weights + (f" with {settings.autocast} autocast" if settings.autocast else "")
    return (
        f"{pairs:,} pairs to train on, {len(trainer.eval_dataset):,} held out; {a_step} pairs a step = "
        f"{settings.micro_batch_size} pairs x {settings.accumulation} accumulation; {precision} on {settings.device}."
        f"{' There are fewer pairs than one step takes.' if pairs < a_step else ''}"
    )


def _drops(trainer: RecipeTrainer, read: Read) -> Iterator[str]:
    """One sentence for each reason that pairs of a split were dropped for, and for those that lose their end."""
    for split in ("train", "eval"):
        for reason, drop in read.report[split]["dropped"].items():
            yield f"{drop['count']:,} {split} pairs dropped, {reason}: rows {', '.join(drop['rows'])} ..."
        yield from (f"{n:,} {split} pairs dropped, {reason}." for reason, n in trainer.dropped[split].items() if n)
        if n := trainer.cut[split]["pairs"]:
            at = f"max_length={trainer.args.max_length}; the longest has {trainer.cut[split]['longest']:,} tokens"
            yield f"{n:,} {split} pairs are cut at {at}. A side without its end teaches to run on."


def _describe(run: rundir.Run, trainer: RecipeTrainer, device: Device, read: Read, who: dict[str, Any]) -> None:
    """Everything about a run that is known before its first step."""
    recipe = trainer.recipe
    made = f"from dpo_recipes import Data, LoRA, QLoRA, Recipe\n\nrecipe = {recipe!r}\n"
    source = recipe.source.read_text(encoding="utf-8") if recipe.source else made
    rundir.write_text(run.path / "recipe.py", source)
    resolved = rows(recipe, trainer.settings).items()
    pairs = {"train_pairs": len(trainer.train_dataset), "eval_pairs": len(trainer.eval_dataset)}
    for name, value in {
        "recipe": {key: {"value": value, "origin": origin} for key, (value, origin) in resolved},
        "trl": trainer.args.to_dict(),
        "environment": rundir.environment(recipe.seed, vars(device)),
        "data": {**read.report, "tokenised": trainer.dropped, "cut": trainer.cut, **pairs},
        "reference": who,
    }.items():
        rundir.write_json(run.path / f"{name}.json", value)


def _save(where: Path, trainer: RecipeTrainer, tokenizer: Tokenizer) -> None:
    trainer.save_model(str(where))
    shutil.rmtree(where / "ref", ignore_errors=True)  # the frozen copy of a continued adapter is not the result
    (where / "training_args.bin").unlink(missing_ok=True)  # a pickle; trl.json says the same
    tokenizer.save(where)


def _card(recipe: Recipe, who: dict[str, Any], after: dict[str, Any]) -> str:
    """The model card."""
    low, high = after["rewards/accuracies_interval"]
    base = "" if is_path(recipe.model) or PREPARED in recipe.model else f"base_model: {recipe.model}\n"
    return (
        f"---\nlibrary_name: {'peft' if recipe.adapter else 'transformers'}\n{base}tags: [trl, dpo]\n---\n"
        f"# {recipe.name}\n\n"
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.\n\n"
        f"* Policy: {who['policy']}.\n* Reference: {who['reference']}.\n"
        f"* Data: {recipe.data.name}, split {recipe.data.train}.\n"
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.\n"
        f"* Held-out pairs ranked as labelled: {after['rewards/accuracies']:.1%} of {after['pairs']} "
        f"(95 % interval {low:.1%} to {high:.1%}).\n"
    )
