"""What the installed DPOConfig accepts, read from its source, because importing TRL takes about five seconds.

The tables say what a recipe may not put into `trl={...}`, and what to write instead: names that have a field of their
own, names that TRL or transformers removed, names that are accepted and do nothing, and names that need another one.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RecipeError, UsageError, nearest

# A later class overrides the defaults of an earlier one, as DPOConfig inherits.
SOURCES = (
    ("transformers/training_args.py", "TrainingArguments"),
    ("trl/trainer/base_config.py", "_BaseConfig"),
    ("trl/trainer/dpo_config.py", "DPOConfig"),
)


def _each(table: dict[str, Any]) -> dict[str, Any]:
    """A table by single names, from rows that several names share."""
    return {name: value for names, value in table.items() for name in names.split()}


# One translation, no value in two places: TRL's name -> the recipe field that sets it.
OURS = _each({
    **{n: n for n in ("beta", "learning_rate", "num_train_epochs", "max_length", "seed", "trust_remote_code")},
    "loss_type loss_weights": "loss",
    "bf16 fp16": "dtype",
    "per_device_train_batch_size gradient_accumulation_steps auto_find_batch_size":
        "global_batch_size (and micro_batch_size)",
    "model_init_kwargs": "model, revision, dtype and attn_implementation",
    "output_dir": "the run folder (`dpo-recipes train --runs FOLDER`)",
    "disable_tqdm": "the progress bar, which follows the terminal",
})  # fmt: skip

# What other programs call a field of ours.
ALIASES = {
    "model_name_or_path": "model", "dataset_name": "data.path", "lr": "learning_rate", "epochs": "num_train_epochs",
    "batch_size": "global_batch_size", "lora_r": "adapter.r", "lora_alpha": "adapter.alpha", "ref_model": "reference",
}  # fmt: skip

# Gone from TRL 1.16 or transformers 5; the remedy stands beside each.
REMOVED = _each({
    "max_prompt_length max_completion_length max_target_length":
        "gone since TRL 0.29: set max_length; prompts that fill it are dropped and counted",
    "warmup_ratio": "gone from transformers 5: trl={'warmup_steps': 0.1}; a number below 1 is a share of all steps",
    "group_by_length": "gone from transformers 5: trl={'train_sampling_strategy': 'group_by_length'}",
    "evaluation_strategy": "renamed: eval_strategy",
    "push_to_hub_token": "renamed: hub_token",
    "no_cuda": "renamed: use_cpu",
    "torch_dtype": "renamed, and has a field of its own: dtype",
    "tokenizer processing_class": "not an option: the tokenizer comes with `model`",
    "overwrite_output_dir logging_dir": "gone: every run has a folder of its own, with its log",
    "force_use_ref_model ref_model_init_kwargs": "gone: set reference='model id or folder'",
    "model_adapter_name ref_adapter_name":
        "gone: adapter=LoRA(continue_from=...) continues an adapter against its frozen copy",
    "reference_free": "gone from TRL: loss='reference_free' is ours",
    "rpo_alpha": "gone: loss={'sigmoid': 1.0, 'sft': alpha}",
    "generate_during_eval": "gone: samples.jsonl in the run folder holds answers of reference and policy",
    "label_pad_token_id padding_value use_liger_loss": "gone, and nothing replaces it: delete it",
})  # fmt: skip

# Accepted by DPOConfig, and then nothing happens (TRL 1.16, transformers 5.23).
INERT = _each({
    "padding_free": "TRL 1.16 accepts it and switches it off",
    "use_liger_kernel liger_kernel_config": "deprecated, and not applied to TRL's DPO loss",
    "label_smoothing_factor": "DPO computes its own loss and never reads it; for noisy labels use loss='cdpo'",
    "average_tokens_across_devices": "DPO computes its own loss and never reads it",
    "do_train do_eval do_predict resume_from_checkpoint": "only example scripts read it",
    "include_for_metrics batch_eval_metrics": "there is no compute_metrics that it could serve",
    "pad_token": "deprecated: it changes nothing in DPO, whose labels follow a completion mask",
})  # fmt: skip

# Acts only beside one of these other options, at the value it must have; True: any but off.
OFF: tuple[Any, ...] = (None, False, 0, "no", "none", [], ["none"])
NEEDS: dict[str, dict[str, Any]] = _each({
    "f_alpha_divergence_coef": {"f_divergence_type": "alpha_divergence"},
    "precompute_ref_batch_size": {"precompute_ref_log_probs": True},
    "ref_model_mixup_alpha ref_model_sync_steps": {"sync_ref_model": True},
    "eval_steps": {"eval_strategy": "steps"},
    "eval_delay": {"eval_strategy": True},
    "save_steps": {"save_strategy": "steps"},
    "logging_steps": {"logging_strategy": "steps"},
    "fsdp_config": {"fsdp": True},
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs":
        {"gradient_checkpointing": True, "activation_checkpointing": True},
    "metric_for_best_model greater_is_better":
        {"load_best_model_at_end": True, "save_strategy": "best", "lr_scheduler_type": "reduce_lr_on_plateau"},
    "run_name project trackio_space_id trackio_bucket_id": {"report_to": True},
    "hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision hub_token": {"push_to_hub": True},
    "dataloader_persistent_workers dataloader_multiprocessing_context": {"dataloader_num_workers": True},
})  # fmt: skip

# Acts only in some of TRL's losses: name -> those losses. The first two may stand beside other losses, the rest not.
READ_BY = {"label_smoothing": {"robust", "exo_pair", "aot", "aot_unpaired"}, "discopop_tau": {"discopop"}}
F_DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# What TRL applies inside its own losses, and so never reaches a plugin.
INSIDE_TRL_LOSSES = ("ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting")


class Option(NamedTuple):
    """One DPOConfig field: its annotation as written, its default, and the choices that its source lists."""

    annotation: str
    default: Any
    choices: tuple[str, ...]


@cache
def _classes(path: str) -> dict[str, list[ast.stmt]]:
    package, _, rest = path.partition("/")
    spec = find_spec(package)  # finds the folder and imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{package} is not installed: run `make install`, or `pip install dpo-recipes`.")
    tree = ast.parse(Path(spec.submodule_search_locations[0], rest).read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def options() -> dict[str, Option]:
    """Every field of the installed DPOConfig, with TRL's defaults; a computed default is None."""
    found: dict[str, Option] = {}
    enums = _classes("transformers/trainer_utils.py") | _classes("transformers/training_args.py")
    for path, name in SOURCES:
        body = _classes(path)[name]
        # e.g. `default_optim`, set once more under `if is_torch_available():`
        names = {ast.unparse(n.targets[0]): n.value for b in body for n in ast.walk(b) if isinstance(n, ast.Assign)}
        for node in body:
            if isinstance(node, ast.AnnAssign):  # `x: T = 1`, or `field(default=1, metadata={...})`
                call = {k.arg: k.value for k in node.value.keywords} if isinstance(node.value, ast.Call) else {}
                value = call.get("default", call.get("default_factory", node.value))
                value = value.body if isinstance(value, ast.Lambda) else value
                value = names.get(value.id) or ast.List([]) if isinstance(value, ast.Name) else value
                kind = ast.unparse(node.annotation)
                listed = [_literal(n.value) for n in enums.get(kind.partition(" ")[0], ()) if isinstance(n, ast.Assign)]
                listed = listed or (_literal(call.get("metadata")) or {}).get("choices", [])
                found[ast.unparse(node.target)] = Option(kind, _literal(value), tuple(listed))
    # keep_end is deprecated in TRL, and cuts the prompt away.
    for name, known in {"f_divergence_type": F_DIVERGENCES, "truncation_mode": ("keep_start",)}.items():
        found[name] = found[name]._replace(choices=known)
    return {n: o for n, o in found.items() if not n.startswith("_") and "ClassVar" not in o.annotation}


def _literal(node: ast.expr | None) -> Any:
    with contextlib.suppress(ValueError):
        return ast.literal_eval(node) if node else None


def fits(value: Any, annotation: str) -> bool:
    """Whether a value has the type that DPOConfig's source declares; names of enums and classes stand for text."""
    words, kind = set(re.findall(r"\w+", annotation)), type(value).__name__
    if isinstance(value, str):  # for a dict it is JSON, or the path of a JSON file
        as_dict = "dict" not in words or value.lstrip().startswith("{") or value.endswith(".json")
        return as_dict and bool(words - {"int", "float", "bool", "dict", "list", "Any", "None"})
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return bool(words & {"NoneType": {"None"}, "int": {"int", "float"}}.get(kind, {kind}))


def check(given: dict[str, Any], losses: set[str], plugins: bool, precomputes: bool = False) -> None:
    """Refuse what does not exist, what has a field of its own, and what would do nothing beside these losses.

    `plugins`: one of the losses is not TRL's; `precomputes`: the reference is precomputed though `trl` does not say so.
    """
    if given:
        beside = {n: o.default for n, o in options().items()} | {"precompute_ref_log_probs": precomputes} | given
        for name, value in given.items():
            if why := _misfit(name, value):
                raise UsageError(f"trl.{name}={value!r} {why}")
            if value != options()[name].default and (why := _idle(name, losses, plugins, beside)):
                raise UsageError(f"trl.{name}={value!r} would do nothing here: {why}. Delete it.")


def _misfit(name: str, value: Any) -> str | None:
    """Why a recipe may not set this DPOConfig field, or not to this value."""
    for table, words in ((OURS, "has a place of its own: set {}"), (REMOVED, "is {}"), (INERT, "does nothing: {}")):
        if name in table:
            return f"{words.format(table[name])}."
    if name not in options():
        near = f" It is {ALIASES[name]}, a field of the recipe." if name in ALIASES else nearest(name, options())
        return f"is not a field of the installed DPOConfig.{near}"
    annotation, default, choices = options()[name]
    if not fits(value, annotation):
        return f"has the wrong type: DPOConfig declares {name}: {annotation}."
    if isinstance(value, (int, float)) and (value < 0 or name == "max_steps" and not value) and value != default:
        return f"is too small to mean anything: TRL's own is {default!r}."
    if isinstance(value, str) and choices and value not in choices:
        return f"is not one of {', '.join(choices)}.{nearest(value, choices)}"
    return None


def _idle(name: str, losses: set[str], plugins: bool, beside: dict[str, Any]) -> str | None:
    """Why an option acts on nothing beside these losses and options."""
    readers = READ_BY.get(name, losses)
    if not readers & losses:
        tail = "; TRL's sigmoid ignores it since 0.29, loss='cdpo' is label smoothing" if len(readers) > 1 else ""
        return f"read by loss {', '.join(sorted(readers))} only{tail}"
    needs = NEEDS.get(name, {}).items()
    if needs and not any(beside[n] not in OFF if value is True else beside[n] == value for n, value in needs):
        return f"read with {' or '.join(n if value is True else f'{n}={value!r}' for n, value in needs)} only"
    if plugins and name in INSIDE_TRL_LOSSES:
        return f"it acts inside TRL's own losses and would never reach the plugin loss in {sorted(losses)}"
    clash = {"f_divergence_type": losses - F_DIVERGENCE_LOSSES, "use_weighting": losses & {"aot", "aot_unpaired"}}
    return f"it has no meaning for loss={min(clash[name])!r}" if clash.get(name) else None
