"""DPO runs of `trl dpo --config` and of the alignment handbook, which adds to it data sets in shares.

Leans on TRL 1.16: the keys and defaults of ScriptArguments, ModelConfig and DPOConfig; and on the names of before.
"""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..recipe.trl_options import options
from .translation import Translation

# Keys that only runs of another method have.
SIGNS = {
    "GRPO": ("reward_funcs", "num_generations", "scale_rewards"),
    "KTO": ("desirable_weight", "undesirable_weight"),
    "CPO or SimPO": ("cpo_alpha", "simpo_gamma"),
    "RLOO": ("rloo_k", "num_mini_batches"),
    "reward model": ("center_rewards_coefficient",),
    "SFT": (
        "max_seq_length",
        "packing",
        "dataset_text_field",
        "assistant_only_loss",
        "completion_only_loss",
        "dataset_kwargs",
        "eval_packing",
    ),
}
OF_DPO = ("beta", "loss_type", "max_prompt_length", "precompute_ref_log_probs", "rpo_alpha", "reference_free")


def other_method(values: dict[str, Any]) -> str | None:
    """The method of a file that is no DPO run, as far as its keys tell."""
    for method, keys in SIGNS.items():
        if any(values.get(key) is not None for key in keys):
            return method
    for part in _parts(values):
        if "messages" in part.get("columns", ()) and "chosen" not in part["columns"]:
            return "SFT"
    return None


def translate(values: dict[str, Any]) -> Translation:
    """UsageError where the data of the file cannot be said in a recipe."""
    is_handbook = "dataset_mixer" in values or "dataset_mixture" in values
    file = Translation("the alignment handbook" if is_handbook else "TRL", values)
    file.move("model_name_or_path", "model")
    file.move("model_revision", "revision")
    if file.values.get("revision") == "main":
        del file.values["revision"]
    file.move("attn_implementation", "attn_implementation")
    _data(file)
    _objective(file)
    _optimisation(file)
    _adapter(file)
    for key in ("dtype", "torch_dtype", "bf16", "fp16"):
        file.leave(
            key,
            "dtype='auto' decides: 16-bit weights under an adapter, 32 bits that are trained, bf16 where it is native",
        )
    file.leave(
        "preprocessing_num_workers",
        "as many processes as there are cores prepare the pairs; trl.dataset_num_proc is another number",
    )
    file.options()
    return file


def _objective(file: Translation) -> None:
    losses = file.take("loss_type", "sigmoid")
    losses = losses if isinstance(losses, list) else [losses]
    weights = file.take("loss_weights") or [1.0] * len(losses)
    if "kto_pair" in losses:
        raise UsageError(
            "loss_type: kto_pair is gone from TRL, which trains KTO apart; of DPO's losses apo_zero is near."
        )
    if len(losses) == 1:
        file.values["loss"] = losses[0]
    else:
        file.values["loss"] = {loss: float(weight) for loss, weight in zip(losses, weights, strict=True)}
    if file.take("reference_free"):
        file.values["loss"] = "reference_free"
    file.move("rpo_alpha", "sft_weight")
    file.smoothing("label_smoothing")
    file.move("ref_model_name_or_path", "reference")
    defaults = options()
    file.values["beta"] = file.take("beta", defaults["beta"].default)


def _optimisation(file: Translation) -> None:
    defaults = options()
    for name in ("learning_rate", "num_train_epochs", "max_length", "seed"):
        file.values[name] = file.unread.pop(name, defaults[name].default)
    file.values["learning_rate"] = float(file.values["learning_rate"])  # 5e-7 without a dot is text to YAML
    if file.unread.get("max_steps") == -1:
        file.take("max_steps")
    if "trust_remote_code" in file.unread:
        file.move("trust_remote_code", "trust_remote_code")
    pairs = file.take("per_device_train_batch_size", defaults["per_device_train_batch_size"].default)
    file.batch(pairs, file.take("gradient_accumulation_steps", 1))


def _adapter(file: Translation) -> None:
    lora = ("r", "alpha", "dropout", "target_modules", "modules_to_save", "task_type", "target_parameters")
    if not file.take("use_peft", False):
        for key in [f"lora_{name}" for name in lora] + ["load_in_4bit", "use_rslora", "use_dora"]:
            file.leave(key, "without use_peft all weights are trained")
        return
    file.values["adapter"] = "qlora" if file.take("load_in_4bit") else "lora"
    file.values["adapter.r"] = file.take("lora_r", 16)
    file.values["adapter.alpha"] = file.take("lora_alpha", 32)
    modules = file.take("lora_target_modules")
    if modules is None:
        modules = ["q_proj", "v_proj"]
        file.notes.append("Without lora_target_modules PEFT chooses by architecture: q_proj and v_proj for most.")
    is_all = modules in ("all-linear", ["all-linear"])
    file.values["adapter.target_modules"] = "all-linear" if is_all else modules
    for key in ("use_rslora", "use_dora"):
        if file.take(key):
            file.values[f"adapter.{key}"] = True
    file.no_dropout("lora_dropout")
    if file.values["adapter"] == "qlora":
        file.values["adapter.double_quant"] = bool(file.take("use_bnb_nested_quant", False))
        if file.take("bnb_4bit_quant_type", "nf4") != "nf4":
            file.left_out.append(("bnb_4bit_quant_type", "4 bits are NF4 here"))
    file.leave("lora_modules_to_save", "an adapter here holds no whole modules")
    file.leave("lora_target_parameters", "an adapter here takes modules, not single tensors")
    file.leave("load_in_8bit", "a base is of 16 bits here, or of 4")
    file.take("lora_task_type")


# --------------------------------------------------------------------------------------------------------------- data


def _parts(values: dict[str, Any]) -> list[dict[str, Any]]:
    mixture = values.get("dataset_mixture") or {}
    return [part for part in mixture.get("datasets", []) if isinstance(part, dict)]


def _data(file: Translation) -> None:
    parts = _parts(file.unread)
    if parts:
        mixture = file.take("dataset_mixture")
        _mixture(file, parts, mixture)
    elif "dataset_mixer" in file.unread:
        _mixer(file)
    elif isinstance(file.unread.get("datasets"), list):
        _mixture(
            file, [{"id": part.get("path"), "config": part.get("name"), **part} for part in file.take("datasets")], {}
        )
    else:
        file.move("dataset_name", "data.path")
        file.move("dataset_config", "data.subset")
        file.move("dataset_train_split", "data.train")
        if _evaluates(file.unread):  # TRL reads the split for it only then
            file.unread.setdefault("dataset_test_split", "test")
        file.move("dataset_test_split", "data.eval")
        if file.take("dataset_streaming"):
            file.values["data.streaming"] = True
    file.move("chat_template", "data.chat_template")
    if "data.path" not in file.values and "data.mix" not in file.values:
        raise UsageError("The file names no data set: dataset_name is missing.")


def _evaluates(values: dict[str, Any]) -> bool:
    """Whether TRL would evaluate while it trains."""
    return values.get("eval_strategy", values.get("evaluation_strategy", "no")) != "no"


def _mixer(file: Translation) -> None:
    """The handbook's first form: {data set: share} and the splits of all."""
    shares = {name: float(share) for name, share in file.take("dataset_mixer").items()}
    splits = file.take("dataset_splits") or ["train"]
    _set_paths(file, shares)
    train = [split for split in splits if "test" not in split]
    held_out = [split for split in splits if "test" in split]
    file.values["data.train"] = "+".join(train)
    if held_out:
        file.values["data.eval"] = "+".join(held_out)
    configs = file.take("dataset_configs")
    if configs:
        file.values["data.subset"] = configs[0]


def _set_paths(file: Translation, shares: dict[str, float]) -> None:
    if len(shares) == 1 and set(shares.values()) == {1.0}:
        file.values["data.path"] = next(iter(shares))
    else:
        file.values["data.mix"] = shares


def _mixture(file: Translation, parts: list[dict[str, Any]], mixture: dict[str, Any]) -> None:
    """Data sets with a split and a share each; those of one name are one data set with several splits."""
    train: dict[str, dict[str, float]] = {}  # data set -> its splits and their shares
    held_out: dict[str, list[str]] = {}
    for part in parts:
        split = part.get("split") or "train"
        if split.startswith("test"):
            held_out.setdefault(part["id"], []).append(split)
        else:
            train.setdefault(part["id"], {})[split] = float(part.get("weight") or 1.0)

    configs = {part.get("config") or "default" for part in parts}
    if len(configs) > 1:
        raise UsageError(
            f"The data sets have several configurations, {', '.join(sorted(configs))}, and a recipe names one."
        )
    if configs != {"default"}:
        file.values["data.subset"] = configs.pop()
    _set_splits(file, train)
    evaluated = {"+".join(splits) for splits in held_out.values()}
    if len(evaluated) == 1 and held_out.keys() == train.keys():
        file.values["data.eval"] = evaluated.pop()
        if mixture.get("test_split_size"):
            file.notes.append(
                f"The handbook trains on {file.values['data.eval']} too and holds out {mixture['test_split_size']:,} "
                "pairs of all; here it is what is held out."
            )
    elif mixture.get("test_split_size"):
        file.left_out.append(
            (
                f"test_split_size: {mixture['test_split_size']}",
                "pairs are held out by share: data.eval, 0.05 unless set",
            )
        )


def _set_splits(file: Translation, train: dict[str, dict[str, float]]) -> None:
    if len(train) == 1:
        [(path, splits)] = train.items()
        file.values["data.path"] = path
        named = [split if share == 1 else f"{split}[:{100 * share:g}%]" for split, share in splits.items()]
        file.values["data.train"] = "+".join(named)
        if set(splits.values()) != {1.0}:
            file.notes.append(
                "Of a split with a weight the handbook draws that share; here it is the first part of it."
            )
        return
    names = {"+".join(splits) for splits in train.values()}
    if len(names) > 1:
        raise UsageError(
            f"The data sets name different splits to train on, {', '.join(sorted(names))}, and a recipe names one for "
            "all. Import one of them, or write the pairs of all into one file."
        )
    _set_paths(file, {path: next(iter(splits.values())) for path, splits in train.items()})
    file.values["data.train"] = names.pop()
