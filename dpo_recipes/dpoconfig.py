"""What the installed DPOConfig accepts, read from its source, because importing TRL takes about five seconds.

The tables say what a recipe may not put into `trl={...}`, and what to write instead: names that have a field of their
own, names that TRL or transformers removed, names that are accepted and do nothing, and names that need another one.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import RecipeError, UsageError, nearest

# A later class overrides the defaults of an earlier one, as DPOConfig inherits.
SOURCES = (
    ("transformers/training_args.py", "TrainingArguments"),
    ("trl/trainer/base_config.py", "_BaseConfig"),
    ("trl/trainer/dpo_config.py", "DPOConfig"),
)
# Annotations that name an enum, and the file that lists its values.
ENUMS = dict.fromkeys(
    ("SchedulerType", "IntervalStrategy", "SaveStrategy", "HubStrategy"), "transformers/trainer_utils.py"
)
ENUMS["OptimizerNames"] = "transformers/training_args.py"

# One translation, no value in two places: TRL's name -> the recipe field that sets it.
OURS = {
    **{n: n for n in ("beta", "learning_rate", "num_train_epochs", "max_length", "seed", "trust_remote_code")},
    "loss_type": "loss", "loss_weights": "loss", "bf16": "dtype", "fp16": "dtype",
    "auto_find_batch_size": "micro_batch_size",
    "per_device_train_batch_size": "global_batch_size (and micro_batch_size)",
    "gradient_accumulation_steps": "global_batch_size (and micro_batch_size)",
    "model_init_kwargs": "model, revision, dtype and attn_implementation",
    "output_dir": "the run folder (`dpo-recipes train --runs FOLDER`)",
    "disable_tqdm": "the progress bar, which follows the terminal",
}  # fmt: skip

# What other programs call a field of ours: TRL's own script, and everyday short forms.
ALIASES = {
    "model_name_or_path": "model", "model_revision": "revision", "ref_model": "reference", "lr": "learning_rate",
    "epochs": "num_train_epochs", "batch_size": "global_batch_size", "max_seq_length": "max_length",
    "use_peft": "adapter", "peft_config": "adapter", "load_in_4bit": "adapter", "rank": "adapter.r",
    "lora_r": "adapter.r", "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "dataset_name": "data.path", "dataset": "data.path", "dataset_config": "data.subset",
    "dataset_train_split": "data.train", "dataset_test_split": "data.eval",
}  # fmt: skip

# Gone from TRL 1.16 or transformers 5; the remedy stands beside each.
REMOVED = {
    "max_prompt_length": "gone since TRL 0.29: set max_length; prompts that fill it are dropped and counted",
    "max_completion_length": "gone since TRL 0.29: set max_length",
    "max_target_length": "gone: set max_length",
    "warmup_ratio": "gone from transformers 5: trl={'warmup_steps': 0.1}; a number below 1 is a share of all steps",
    "evaluation_strategy": "renamed: eval_strategy",
    **dict.fromkeys(("tokenizer", "processing_class"), "not an option: the tokenizer comes with `model`"),
    "torch_dtype": "renamed, and has a field of its own: dtype",
    "overwrite_output_dir": "gone: every run has a folder of its own",
    "save_safetensors": "gone: safetensors is the only format",
    "logging_dir": "gone from transformers 5: the run folder holds the log",
    "group_by_length": "gone from transformers 5: trl={'train_sampling_strategy': 'group_by_length'}",
    "push_to_hub_token": "renamed: hub_token",
    "no_cuda": "renamed: use_cpu",
    "ref_model_init_kwargs": "gone: the reference is loaded as the policy is; see `reference`",
    "model_adapter_name": "gone: adapter=LoRA(continue_from=...) continues an adapter against its frozen copy",
    "ref_adapter_name": "gone: adapter=LoRA(continue_from=...) continues an adapter against its frozen copy",
    "reference_free": "gone from TRL: loss='reference_free' is ours",
    "rpo_alpha": "gone: loss={'sigmoid': 1.0, 'sft': alpha}",
    "force_use_ref_model": "gone: set reference='model id or folder'",
    "use_logits_to_keep": "gone: TRL's head scores completion tokens only",
    "is_encoder_decoder": "gone: decoder-only models only",
    "tools": "a column of the data, not an option",
    "generate_during_eval": "gone: samples.jsonl in the run folder holds answers of reference and policy",
    "dataset_text_field": "not a DPO option",
    **dict.fromkeys(
        ("label_pad_token_id", "padding_value", "base_model_attribute_name", "optimize_device_cache", "use_liger_loss",
         "include_tokens_per_second"), "gone, and nothing replaces it: delete it",
    ),
}  # fmt: skip

# Accepted by DPOConfig, and then nothing happens (TRL 1.16, transformers 5.23).
INERT = {
    "padding_free": "TRL 1.16 accepts it and switches it off",
    "use_liger_kernel": "deprecated, and not applied to TRL's DPO loss",
    "liger_kernel_config": "deprecated together with use_liger_kernel",
    "label_smoothing_factor": "DPO computes its own loss and never reads it; for noisy labels use loss='cdpo'",
    "average_tokens_across_devices": "DPO computes its own loss and never reads it",
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "resume_from_checkpoint"), "it is read by example scripts only"
    ),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics"), "there is no compute_metrics that it could serve"),
    "pad_token": "deprecated: it changes nothing in DPO, whose labels follow a completion mask",
    "local_rank": "it is set by the launcher",
}

# Acts only beside another option: name -> alternatives (the other option, the value it must have; True: any but off).
OFF: tuple[Any, ...] = (None, False, 0, "no", "none", [], ["none"])
_CHECKPOINTED = (("gradient_checkpointing", True), ("activation_checkpointing", True))
_BEST = (("load_best_model_at_end", True), ("save_strategy", "best"), ("lr_scheduler_type", "reduce_lr_on_plateau"))
_HUB = ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "hub_token")
_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
NEEDS: dict[str, tuple[tuple[str, Any], ...]] = {
    "f_alpha_divergence_coef": (("f_divergence_type", "alpha_divergence"),),
    "precompute_ref_batch_size": (("precompute_ref_log_probs", True),),
    "eval_steps": (("eval_strategy", "steps"),),
    "eval_delay": (("eval_strategy", True),),
    "save_steps": (("save_strategy", "steps"),),
    "logging_steps": (("logging_strategy", "steps"),),
    "fsdp_config": (("fsdp", True),),
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), (("sync_ref_model", True),)),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), _CHECKPOINTED),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _BEST),
    **dict.fromkeys(("run_name", "project", "trackio_space_id", "trackio_bucket_id"), (("report_to", True),)),
    **dict.fromkeys(_HUB, (("push_to_hub", True),)),
    **dict.fromkeys(("torch_compile_mode", "torch_compile_backend"), (("torch_compile", True),)),
    **dict.fromkeys(_WORKERS, (("dataloader_num_workers", True),)),
}

# A value that the field's type allows and that cannot work.
REFUSED = {
    "truncation_mode": ("keep_end", "is deprecated in TRL and cuts the prompt away: only 'keep_start' remains"),
    "report_to": (None, "would be taken for the name of an integration: nowhere is the text 'none'"),
}

# Acts only in some of TRL's losses: name -> those losses. The first two may stand beside other losses, the rest not.
READ_BY = {"label_smoothing": {"robust", "exo_pair", "aot", "aot_unpaired"}, "discopop_tau": {"discopop"}}
F_DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# What TRL applies inside its own losses, and so never reaches a plugin.
INSIDE_TRL_LOSSES = ("ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting")


@dataclass(frozen=True)
class Option:
    """One DPOConfig field: its annotation as written, its default (a literal of the source), and its listed choices."""

    annotation: str
    default: Any
    choices: tuple[str, ...] = ()


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
    """Every field of the installed DPOConfig, with TRL's defaults."""
    found: dict[str, Option] = {}
    for path, name in SOURCES:
        body = _classes(path)[name]
        # e.g. `default_optim`, set once more under `if is_torch_available():`
        constants = {t.id: n.value for b in body for n in ast.walk(b) if isinstance(n, ast.Assign)
                     for t in n.targets if isinstance(t, ast.Name)}  # fmt: skip
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _option(node, constants)
    return {n: o for n, o in found.items() if not n.startswith("_") and "ClassVar" not in o.annotation}


def _option(node: ast.AnnAssign, constants: dict[str, ast.expr]) -> Option:
    """`x: T = 1`, `field(default=1, metadata={...})` or `field(default_factory=list)`; a computed default is None."""
    value, listed = node.value, None
    if isinstance(value, ast.Call):
        given = {k.arg: k.value for k in value.keywords}
        value = given.get("default", given.get("default_factory"))
        value = value.body if isinstance(value, ast.Lambda) else value
        if isinstance(metadata := given.get("metadata"), ast.Dict):
            listed = next(
                (v for k, v in zip(metadata.keys, metadata.values, strict=True) if _literal(k) == "choices"), None
            )
    if isinstance(value, ast.Name):
        value = {"list": ast.List([]), "dict": ast.Dict([], [])}.get(value.id, constants.get(value.id))
    return Option(ast.unparse(node.annotation), _literal(value), tuple(_literal(listed) or ()))


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def choices(name: str) -> tuple[str, ...]:
    """The values that a DPOConfig field takes, where its source lists them: an enum, the metadata, or a docstring."""
    option = options()[name]
    for enum, path in ENUMS.items():
        if enum in option.annotation:
            return tuple(_literal(n.value) for n in _classes(path)[enum] if isinstance(n, ast.Assign))
    return F_DIVERGENCES if name == "f_divergence_type" else option.choices


def fits(value: Any, annotation: str) -> bool:
    """Whether a value has the type that DPOConfig's source declares; names of enums and classes stand for text."""
    words = {
        ast.unparse(node) for node in ast.walk(ast.parse(annotation)) if isinstance(node, (ast.Name, ast.Attribute))
    }
    if value is None:
        return "None" in annotation or "Optional" in annotation
    if isinstance(value, bool):
        return "bool" in words or "Literal[False]" in annotation and not value
    if isinstance(value, int):
        return bool(words & {"int", "float"})
    if isinstance(value, float):
        return "float" in words and math.isfinite(value)
    if isinstance(value, (list, dict)):
        return type(value).__name__ in words
    text = isinstance(value, str) and bool(words - {"int", "float", "bool", "dict", "list", "Any"})
    # Text for a dict is JSON, or the path of a JSON file.
    return text and ("dict" not in words or value.lstrip().startswith("{") or value.endswith(".json"))


def check(given: dict[str, Any], losses: set[str], plugins: bool, precomputes: bool = False) -> None:
    """Refuse what does not exist, what has a field of its own, and what would do nothing in this recipe.

    `losses` are the loss names; `plugins` says whether one of them is ours or the user's; `precomputes` whether the
    reference's log-probabilities are computed before training even if `trl` does not ask for it.
    """
    if not given:
        return
    effective = {n: o.default for n, o in options().items()} | {"precompute_ref_log_probs": precomputes} | given
    for name, value in given.items():
        at = f"trl.{name}"
        if name in OURS:
            raise UsageError(f"{at} has a place of its own: set {OURS[name]}. One value, one place.")
        if name in REMOVED:
            raise UsageError(f"{at}: {REMOVED[name]}.")
        if name in INERT:
            raise UsageError(f"{at} would do nothing: {INERT[name]}. Delete it.")
        option = options().get(name)
        if option is None:
            near = f" It is {ALIASES[name]}, a field of the recipe." if name in ALIASES else nearest(name, options())
            raise UsageError(f"{at} is not a field of the installed DPOConfig.{near}")
        if not fits(value, option.annotation):
            raise UsageError(f"{at}={value!r} has the wrong type: DPOConfig declares {name}: {option.annotation}.")
        if value == option.default and type(value) is type(option.default):
            continue
        if isinstance(value, (int, float)) and (value < 0 or (name == "max_steps" and not value)):
            raise UsageError(f"{at}={value!r} is too small to mean anything: TRL's own is {option.default!r}.")
        if isinstance(value, str) and (known := choices(name)) and value not in known:
            raise UsageError(f"{at}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")
        if name in REFUSED and value == REFUSED[name][0]:
            raise UsageError(f"{at}={value!r} {REFUSED[name][1]}.")
        if reason := _idle(name, losses, effective):
            raise UsageError(f"{at}={value!r} would do nothing here: {reason}.")
        if plugins and name in INSIDE_TRL_LOSSES:
            raise UsageError(
                f"{at}={value!r} acts inside TRL's own losses and would never reach the plugin loss in "
                f"{sorted(losses)}. Delete it, or use TRL's losses only."
            )
        clash = {"f_divergence_type": losses - F_DIVERGENCE_LOSSES, "use_weighting": losses & {"aot", "aot_unpaired"}}
        if clash.get(name):
            raise UsageError(f"{at}={value!r} has no meaning for loss={min(clash[name])!r}: delete one of the two.")


def _idle(name: str, losses: set[str], effective: dict[str, Any]) -> str | None:
    """Why an option acts on nothing beside these losses and options, or None."""
    readers = READ_BY.get(name, losses)
    if not readers & losses:
        tail = "; TRL's sigmoid ignores it since 0.29. For label smoothing use loss='cdpo'" if len(readers) > 1 else ""
        return f"read by loss {', '.join(sorted(readers))} only{tail}"
    needs = NEEDS.get(name, ())
    if not needs or any(effective[n] not in OFF if value is True else effective[n] == value for n, value in needs):
        return None
    return f"read with {' or '.join(n if value is True else f'{n}={value!r}' for n, value in needs)} only"
