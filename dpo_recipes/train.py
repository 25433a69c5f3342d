"""The spine: a recipe becomes a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from . import hub, rundir
from .errors import RecipeError
from .recipe import PREPARED, QLoRA, Recipe
from .settings import Device, Settings, dpo_config, here, resolve, rows

if TYPE_CHECKING:
    from .data import Read
    from .model import Reference, Tokenizer
    from .trainer import RecipeTrainer

SAMPLED_PROMPTS = 8  # held-out prompts whose answers land in samples.jsonl
REWARDED_PROMPTS, POLICY_SAMPLES, REFERENCE_SAMPLES = 64, 8, 24  # where the recipe has a reward
MAX_NEW_TOKENS = 256


def train(recipe: Recipe, *, runs: Path | str = "runs", console: Console | None = None) -> rundir.Run:
    """Train a recipe; returns its finished run folder: the model, the numbers before and after, the answers.

    Raises RecipeError with one readable message for whatever is the user's to fix; nothing is left half-written.
    """
    console = console or Console()
    resolve(recipe, here())  # what can be refused is refused before anything is loaded
    folder = hub.prepared(recipe, console)
    model_path, data_path, reference_path = (
        os.path.expanduser(text.replace(PREPARED, str(folder)))
        for text in (recipe.model, recipe.data.path, recipe.reference or "")
    )
    other = [reference_path] if reference_path else []
    hub.require([model_path, *other], recipe.revision, data_path, recipe.data.revision)
    with console.status("loading the libraries"):
        # bitsandbytes announces an optional kernel that is not installed, at every import on a CPU.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        import datasets
        from transformers import PrinterCallback
        from transformers.utils.logging import disable_progress_bar

        from . import data, model, progress
        from .evaluate import changes, held_out
        from .trainer import RecipeTrainer, config

        disable_progress_bar()  # of loading shards, which is quick or has a download bar
        if not console.is_terminal and not console.is_jupyter:
            datasets.disable_progress_bars()
            os.environ["TQDM_DISABLE"] = "1"  # read by TRL for the reference pass

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    device = model.device(say, use_cpu=bool(recipe.trl.get("use_cpu")))
    settings = resolve(recipe, device)
    tokenizer = model.load_tokenizer(recipe, model_path, say)
    read = data.read(recipe.data, data_path, num_proc=recipe.trl.get("dataset_num_proc"))
    _need_template(recipe, read, tokenizer, model_path)
    for note in read.report["notes"]:
        say(note)
    with console.status("loading the model"):
        policy = model.load_weights(recipe, settings, model_path)

    run = rundir.create(Path(runs), recipe.name)
    bar = progress.Bar(console)
    try:
        arguments = config(dpo_config(recipe, settings, str(run.path / "checkpoints")))
        load_reference = functools.partial(
            model.load_weights, recipe, settings, reference_path or model_path, trainable=False
        )
        trainer = RecipeTrainer(
            recipe=recipe, settings=settings, model=policy, args=arguments,
            ref_model=load_reference() if settings.reference in ("other model", "moving copy") else None,
            train_dataset=read.train, eval_dataset=read.eval, processing_class=tokenizer.tokenizer,
            peft_config=model.peft_config(recipe.adapter),
            callbacks=[bar, progress.MetricsFile(run.path / "metrics.jsonl")],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        who = _who(recipe, settings, trainer)
        _describe(run, recipe, settings, device, trainer, read, who)
        say(who["sentence"])
        say(_amounts(recipe, settings, device, trainer))

        reference = model.Reference(trainer.model, settings, load_reference)
        with console.status("held-out pairs before training"):
            metrics, start = trainer.held_out()
        before = held_out(metrics, start, recipe.beta)
        trainer.train()
        bar.close()
        with console.status("held-out pairs after training"):
            metrics, end = trainer.held_out()
        after = held_out(metrics, end, recipe.beta)
        changes(before, after, start, end)
        _answers(run, recipe, read, tokenizer, trainer, reference, before, after, console)
        rundir.write_json(run.path / "evaluation.json", {"before": before, "after": after})
        rundir.write_folder(run.path / "model", lambda where: _save(where, trainer, tokenizer, who, recipe, after))
    except BaseException:
        bar.close()
        if not any((run.path / name).exists() for name in ("metrics.jsonl", "checkpoints")):
            shutil.rmtree(run.path, ignore_errors=True)  # nothing in it that anyone could miss
        raise
    console.print(progress.table(before, after))
    say(f"{run.path} holds the model, the numbers and the answers.")
    return run


def _need_template(recipe: Recipe, read: Read, tokenizer: Tokenizer, path: str) -> None:
    if not read.text and tokenizer.template is None:
        raise RecipeError(
            f"The data are conversations, and the tokenizer of {path!r} has no chat template to render them. Ways out: "
            "an instruct model, data.chat_template= with a Jinja template, or data.format=text for plain strings."
        )


def _who(recipe: Recipe, settings: Settings, trainer: RecipeTrainer) -> dict[str, Any]:
    """Policy and reference in words, one sentence."""
    name = recipe.model.replace(f"{PREPARED}/", f"{recipe.name}'s own ")
    name += f"@{recipe.revision}" if recipe.revision else ""
    trainable, total = trainer.parameter_counts()
    counts = f"{trainable:,} of {total:,} parameters train"
    adapter = recipe.adapter
    if adapter is None:
        policy = f"{name}, all weights ({counts})"
    else:
        kind = f"{type(adapter).__name__} " + (
            f"continued from {adapter.continue_from}" if adapter.continue_from else f"of rank {adapter.r}"
        )
        policy = f"{name} + {kind} ({counts})"
    reference = {
        "adapter off": "the same model with the adapter off",
        "frozen adapter": f"the same model with the frozen copy of {adapter.continue_from}" if adapter else "",
        "start weights": "the weights it starts from, as log-probabilities computed before training",
        "other model": f"{recipe.reference}, as log-probabilities computed before training",
        "moving copy": "a second copy of the weights, moved towards the policy (TR-DPO)",
    }[settings.reference]
    return {
        "policy": policy, "reference": reference, "kind": settings.reference, "model": recipe.model,
        "revision": recipe.revision, "precomputed": settings.precompute,
        "sentence": f"Policy: {policy}. Reference: {reference}.",
    }  # fmt: skip


def _amounts(recipe: Recipe, settings: Settings, device: Device, trainer: RecipeTrainer) -> str:
    """Pairs, batch and precision, one sentence."""
    batch = f"{settings.micro_batch_size} pairs x {settings.accumulation} accumulation"
    batch += f" x {device.processes} processes" if device.processes > 1 else ""
    precision = "4-bit NF4 weights, computing in " if isinstance(recipe.adapter, QLoRA) else ""
    precision += settings.weights + (f" with {settings.autocast} autocast" if settings.autocast else "")
    return (
        f"{len(trainer.train_dataset):,} pairs to train on, {len(trainer.eval_dataset):,} held out; "
        f"{recipe.global_batch_size} pairs a step = {batch}; {precision} on {device.kind}."
    )


def _describe(
    run: rundir.Run,
    recipe: Recipe,
    settings: Settings,
    device: Device,
    trainer: RecipeTrainer,
    read: Read,
    who: dict[str, Any],
) -> None:
    """Everything about a run that is known before its first step."""
    source = recipe.source.read_text(encoding="utf-8") if recipe.source else f"recipe = {recipe!r}\n"
    rundir.write_text(run.path / "recipe.py", source)
    rundir.write_json(
        run.path / "recipe.json", {k: {"value": v, "origin": o} for k, (v, o) in rows(recipe, settings).items()}
    )
    rundir.write_json(run.path / "trl.json", trainer.args.to_dict())
    rundir.write_json(run.path / "environment.json", rundir.environment(recipe.seed, vars(device)))
    tokenised = {
        "tokenised": trainer.dropped,
        "train_pairs": len(trainer.train_dataset),
        "eval_pairs": len(trainer.eval_dataset),
    }
    rundir.write_json(run.path / "data.json", {**read.report, **tokenised})
    rundir.write_json(run.path / "reference.json", {**who, "fingerprint": trainer.fingerprint()})


def _answers(
    run: rundir.Run, recipe: Recipe, read: Read, tokenizer: Tokenizer, trainer: RecipeTrainer, reference: Reference,
    before: dict[str, Any], after: dict[str, Any], console: Console,
) -> None:  # fmt: skip
    """Sample reference and policy on held-out prompts; with a reward, also what that reward says."""
    from .evaluate import against_truth, side_by_side

    prompts: list[Any] = []
    for row in read.eval.select_columns("prompt"):
        if row["prompt"] not in prompts:
            prompts.append(row["prompt"])
        if len(prompts) == (REWARDED_PROMPTS if recipe.reward else SAMPLED_PROMPTS):
            break
    longest = max(len(ids) for ids in trainer.eval_dataset["prompt_ids"][: len(prompts)])
    room = min(MAX_NEW_TOKENS, recipe.max_length - longest if recipe.max_length else MAX_NEW_TOKENS)
    kwargs = recipe.data.chat_template_kwargs
    with console.status("answers of reference and policy"), trainer.accelerator.autocast():
        theirs, ours = side_by_side(
            trainer.model, reference, tokenizer.tokenizer, prompts, max_new_tokens=max(room, 16),
            samples=POLICY_SAMPLES if recipe.reward else 1, reference_samples=REFERENCE_SAMPLES if recipe.reward else 1,
            temperature=1.0 if recipe.reward else 0.0, seed=recipe.seed, chat_template_kwargs=kwargs,
        )  # fmt: skip
        if recipe.reward:
            start, end = against_truth(
                recipe.reward, trainer.model, reference, tokenizer.tokenizer, prompts, theirs, ours, kwargs
            )
            before.update(start)
            after.update(end)
    samples = zip(prompts[:SAMPLED_PROMPTS], theirs, ours, strict=False)
    written = [
        {
            "prompt": p,
            "reference": t[0].text,
            "policy": o[0].text,
            "reference_ended": t[0].ended,
            "policy_ended": o[0].ended,
        }
        for p, t, o in samples
    ]
    rundir.write_jsonl(run.path / "samples.jsonl", written)


def _save(
    where: Path,
    trainer: RecipeTrainer,
    tokenizer: Tokenizer,
    who: dict[str, Any],
    recipe: Recipe,
    after: dict[str, Any],
) -> None:
    trainer.save_model(str(where))
    shutil.rmtree(where / "ref", ignore_errors=True)  # the frozen copy of a continued adapter is not the result
    (where / "training_args.bin").unlink(missing_ok=True)  # a pickle; trl.json says the same
    tokenizer.save(where)
    low, high = after["rewards/accuracies_interval"]
    kind = "library_name: peft\n" if recipe.adapter else "library_name: transformers\n"
    base = (
        f"base_model: {recipe.model}\n"
        if PREPARED not in recipe.model and not recipe.model.startswith(("/", "."))
        else ""
    )
    card = (
        f"---\n{kind}{base}tags: [trl, dpo]\n---\n# {recipe.name}\n\n"
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.\n\n"
        f"* Policy: {who['policy']}.\n* Reference: {who['reference']}.\n"
        f"* Data: {recipe.data.path}, split {recipe.data.train}.\n"
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.\n"
        f"* Held-out pairs ranked as in the data: {after['rewards/accuracies']:.1%} of {after['pairs']} "
        f"(95 % interval {low:.1%} to {high:.1%}).\n"
    )
    (where / "README.md").write_text(card, encoding="utf-8")
