"""DPO runs of LLaMA-Factory, whose data sets have names of their own in dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..recipe.trl_options import options
from .translation import Translation

STAGES = {"sft": "SFT", "pt": "pre-training", "rm": "reward model", "ppo": "PPO", "kto": "KTO"}
LOSSES = ("sigmoid", "hinge", "ipo")  # of `pref_loss`; the others have no reference, or no pairs
ATTENTION = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
# Keys, by what is said of them.
LEFT = {
    "the tokenizer's own chat template is used; another is data.chat_template, its text in Jinja": ("template",),
    "as many processes as there are cores prepare the pairs": ("preprocessing_num_workers",),
    "the pairs are cached in our own way": ("overwrite_cache", "tokenized_path", "cache_dir"),
    "dtype='auto' decides: 16-bit weights under an adapter, bf16 where it is native": ("bf16", "fp16", "pure_bf16"),
    "the model here reads no images": ("image_max_pixels", "video_max_pixels", "freeze_vision_tower"),
}


def other_method(values: dict[str, Any]) -> str | None:
    """The method of a file that is no DPO run."""
    stage = values.get("stage", "sft")
    if stage != "dpo":
        return STAGES.get(stage, str(stage).upper())
    loss = values.get("pref_loss", "sigmoid")
    if loss in LOSSES:
        return None
    return {"orpo": "ORPO", "simpo": "SimPO", "kto_pair": "KTO"}.get(loss, str(loss))


def translate(values: dict[str, Any], folder: Path) -> Translation:
    """`folder` is that of the file. UsageError where the file cannot be said in a recipe."""
    file = Translation("LLaMA-Factory", values)
    file.take("stage")
    file.move("model_name_or_path", "model")
    file.move("model_revision", "revision")
    _data(file, folder)
    file.values["loss"] = file.take("pref_loss", "sigmoid")
    file.values["beta"] = file.take("pref_beta", 0.1)
    if file.unread.get("pref_ftx"):
        file.move("pref_ftx", "sft_weight")
    file.smoothing("dpo_label_smoothing")
    file.move("ref_model", "reference")
    _optimisation(file)
    _adapter(file)
    file.leave_all(LEFT)
    file.options()
    return file


def _optimisation(file: Translation) -> None:
    file.values["learning_rate"] = float(file.take("learning_rate", 5e-5))
    file.values["num_train_epochs"] = float(file.take("num_train_epochs", 3.0))
    file.values["max_length"] = file.take("cutoff_len", 2048)
    file.move("seed", "seed")
    if file.take("trust_remote_code"):
        file.values["trust_remote_code"] = True
    if file.unread.get("max_steps") == -1:
        file.take("max_steps")
    pairs = file.take("per_device_train_batch_size", options()["per_device_train_batch_size"].default)
    file.batch(pairs, file.take("gradient_accumulation_steps", 1))
    attention = file.take("flash_attn", "auto")
    if attention in ATTENTION:
        file.values["attn_implementation"] = ATTENTION[attention]
    if file.unread.get("disable_gradient_checkpointing") is not None:
        file.unread["gradient_checkpointing"] = not file.take("disable_gradient_checkpointing")


def _adapter(file: Translation) -> None:
    kind = file.take("finetuning_type", "lora")
    continued = file.take("adapter_name_or_path")
    bits = file.take("quantization_bit")
    file.take("quantization_method")
    if kind == "full":
        return
    if kind != "lora":
        raise UsageError(f"finetuning_type: {kind} trains part of the weights in place; lora and full are known here.")
    file.values["adapter"] = "qlora" if bits == 4 else "lora"
    if bits not in (None, 4):
        file.left_out.append((f"quantization_bit: {bits}", "a base is of 16 bits here, or of 4"))
    if bits == 4:
        file.values["adapter.double_quant"] = bool(file.take("double_quantization", True))
    file.no_dropout("lora_dropout")
    if continued:
        file.values["adapter.continue_from"] = continued
        for key in ("lora_rank", "lora_alpha", "lora_target", "use_dora", "use_rslora"):
            file.leave(key, "the continued adapter brings its own")
        return
    rank = file.take("lora_rank", 8)
    file.values["adapter.r"] = rank
    file.values["adapter.alpha"] = file.take("lora_alpha", 2 * rank)
    target = file.take("lora_target", "all")
    is_all = target in ("all", ["all"])
    names = target if isinstance(target, list) else [name.strip() for name in str(target).split(",")]
    file.values["adapter.target_modules"] = "all-linear" if is_all else names
    for key in ("use_dora", "use_rslora"):
        if file.take(key):
            file.values[f"adapter.{key}"] = True
    file.leave("additional_target", "an adapter here holds no whole modules")


def _data(file: Translation, folder: Path) -> None:
    listed = file.take("dataset")
    if not listed:
        raise UsageError("The file names no data set: dataset is missing.")
    names = listed if isinstance(listed, list) else [name.strip() for name in str(listed).split(",")]
    known = _dataset_info(file.take("dataset_dir", "data"), folder)
    field = "data.path" if len(names) == 1 else "data.mix"
    paths = [_place(file, name, known, field) for name in names]
    if len(paths) == 1:
        file.values["data.path"] = paths[0]
    else:
        file.values["data.mix"] = dict.fromkeys(paths, 1.0)
    rows = file.take("max_samples")
    if rows:
        file.values["data.train"] = f"train[:{rows}]"
    share = file.take("val_size")
    if share and share < 1:
        file.values["data.eval"] = float(share)
    elif share:
        file.left_out.append((f"val_size: {share}", "pairs are held out by share: data.eval, 0.05 unless set"))
    evaluated = file.take("eval_dataset")
    if evaluated:
        file.values["data.eval"] = _place(file, str(evaluated), known, "data.eval")


def _dataset_info(named: Any, folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Name -> its entry and the folder of its files, where dataset_info.json is found as LLaMA-Factory finds it."""
    for place in (Path(str(named)), folder / str(named), *(parent / str(named) for parent in folder.resolve().parents)):
        info = place / "dataset_info.json"
        if info.is_file():
            entries = json.loads(info.read_text(encoding="utf-8"))
            return {name: (entry, place) for name, entry in entries.items()}
    return {}


def _place(file: Translation, name: str, known: dict[str, tuple[dict[str, Any], Path]], field: str) -> str:
    """Where the rows of a data set lie that a field names; a file of that name where nothing says it."""
    if name not in known:
        guess = f"./{name}.json"
        file.notes.append(f"No dataset_info.json says where {name} lies: set {field}, which has {guess} now.")
        return guess
    entry, place = known[name]
    if "hf_hub_url" in entry:
        if entry.get("subset"):
            file.values["data.subset"] = entry["subset"]
        return str(entry["hf_hub_url"])
    return str((place / entry["file_name"]).resolve())
