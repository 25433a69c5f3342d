"""DPO runs of Axolotl."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..recipe.data import FILE_SUFFIXES
from .translation import OWN_FOLDER, Translation

METHODS = {"dpo": "sigmoid", "ipo": "ipo"}  # value of `rl` -> the loss
# Its name of an option -> DPOConfig's.
OPTIONS = {
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "optim_args": "optim_args",
    "dpo_use_weighting": "use_weighting",
    "dataset_processes": "dataset_num_proc",
}
PREPARATION = "the pairs are prepared and cached in our own way"
# Keys, by what is said of them.
LEFT = {
    "the model and its tokenizer know their own classes": ("model_type", "tokenizer_type"),
    PREPARATION: ("dataset_prepared_path", "shuffle_merged_datasets", "sample_packing"),
    "exact duplicates are dropped in any case, and counted": ("dataset_exact_deduplication",),
    "a pair is read once, without padding, as far as the model can": ("pad_to_sequence_len", "dpo_padding_free"),
    "the kernels are chosen by Transformers": ("plugins", "use_kernels", "use_scattermoe", "use_sonicmoe"),
    "the tokenizer's own tokens are used; set others in the tokenizer itself": (
        "special_tokens",
        "eot_tokens",
        "tokens",
    ),
    "runs are evaluated before and after; trl.eval_strategy and trl.eval_steps do it in between": ("evals_per_epoch",),
    "checkpoints are written by the clock; trl.save_strategy and trl.save_steps pace them": ("saves_per_epoch",),
    "the guard stops a run whose loss is no number": ("loss_watchdog_threshold", "loss_watchdog_patience"),
    "an adapter here holds no whole modules": ("lora_modules_to_save",),
    "a base is of 16 bits here, or of 4": ("load_in_8bit",),
    "dtype='auto' decides: 16-bit weights under an adapter, bf16 where it is native": ("bf16", "fp16", "bfloat16"),
    "TRL's DPO loss does not apply it": ("dpo_use_liger_kernel", "liger_rope", "liger_rms_norm"),
    OWN_FOLDER: ("save_safetensors",),
}


def other_method(values: dict[str, Any]) -> str | None:
    """The method of a file that is no DPO run."""
    if values.get("reward_model"):
        return "reward model"
    if values.get("process_reward_model"):
        return "process reward model"
    method = values.get("rl")
    if method is None:
        return "SFT"
    return None if method in METHODS else str(method).upper()


def translate(values: dict[str, Any]) -> Translation:
    """UsageError where the data of the file cannot be said in a recipe."""
    file = Translation("Axolotl", values)
    file.values["loss"] = METHODS[file.take("rl")]
    file.move("base_model", "model")
    file.move("revision_of_model", "revision")
    _data(file)
    _objective(file)
    _optimisation(file)
    _adapter(file)
    file.leave_all(LEFT)
    file.options()
    return file


def _objective(file: Translation) -> None:
    nested = file.take("trl") or {}
    betas = [file.take("rl_beta"), file.take("dpo_beta"), nested.get("beta")]
    file.values["beta"] = next((beta for beta in betas if beta is not None), 0.1)
    losses = file.take("dpo_loss_type")
    if losses:
        weights = file.take("dpo_loss_weights") or [1.0] * len(losses)
        is_one = len(losses) == 1
        file.values["loss"] = losses[0] if is_one else dict(zip(losses, map(float, weights), strict=True))
    file.smoothing("dpo_label_smoothing")
    file.move("rpo_alpha", "sft_weight")


def _optimisation(file: Translation) -> None:
    file.values["learning_rate"] = float(file.take("learning_rate", 2e-4))
    file.values["num_train_epochs"] = float(file.take("num_epochs", 1))
    file.values["max_length"] = file.take("sequence_len", 512)
    file.move("seed", "seed")
    if file.take("trust_remote_code"):
        file.values["trust_remote_code"] = True
    pairs = file.take("micro_batch_size", 1)
    file.batch(pairs, file.take("gradient_accumulation_steps", 1))
    file.take("eval_batch_size")
    file.unread.setdefault("lr_scheduler", "cosine")  # its own default
    for theirs, ours in OPTIONS.items():
        if theirs != ours and theirs in file.unread:
            file.unread[ours] = file.take(theirs)
    file.move("attn_implementation", "attn_implementation")
    for key in ("flash_attention", "sdp_attention"):
        if file.take(key):
            file.values["attn_implementation"] = {"flash_attention": "flash_attention_2"}.get(key, "sdpa")


def _adapter(file: Translation) -> None:
    kind = file.take("adapter")
    in_4_bits = file.take("load_in_4bit", False)
    if kind is None:
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear", "lora_target_modules"):
            file.leave(key, "without adapter all weights are trained")
        return
    if kind not in ("lora", "qlora"):
        raise UsageError(f"adapter: {kind} is no adapter of ours: lora and qlora are.")
    file.values["adapter"] = "qlora" if kind == "qlora" or in_4_bits else "lora"
    continued = file.take("lora_model_dir")
    if continued:
        file.values["adapter.continue_from"] = continued
        for key in ("lora_r", "lora_alpha", "lora_target_linear", "lora_target_modules"):
            file.leave(key, "the continued adapter brings its own")
        return
    file.values["adapter.r"] = file.take("lora_r", 8)
    file.values["adapter.alpha"] = file.take("lora_alpha", 16)
    modules = file.take("lora_target_modules")
    if file.take("lora_target_linear"):
        modules = "all-linear"
    file.values["adapter.target_modules"] = modules or ["q_proj", "v_proj"]
    for theirs, ours in (("peft_use_dora", "use_dora"), ("peft_use_rslora", "use_rslora")):
        if file.take(theirs):
            file.values[f"adapter.{ours}"] = True
    file.no_dropout("lora_dropout")


def _data(file: Translation) -> None:
    parts = file.take("datasets") or []
    if not parts:
        raise UsageError("The file names no data set: datasets is empty.")
    paths = list(dict.fromkeys(_path(part) for part in parts))
    if len(paths) == 1:
        file.values["data.path"] = paths[0]
    else:
        file.values["data.mix"] = dict.fromkeys(paths, 1.0)
    if len(paths) < len(parts):
        file.notes.append("A data set that is named twice is read once.")

    splits = {part.get("split") or "train" for part in parts}
    subsets = {part.get("name") for part in parts}
    if len(splits) > 1 or len(subsets) > 1:
        raise UsageError(
            "The data sets name different splits or configurations, and a recipe names one for all. Import one of "
            "them, or write the pairs of all into one file."
        )
    file.values["data.train"] = splits.pop()
    subset = subsets.pop()
    if subset is not None:
        file.values["data.subset"] = subset
    for kind in dict.fromkeys(str(part.get("type")) for part in parts):
        file.left_out.append((f"datasets.type: {kind}", "the form is recognised by the columns: see it with preview"))

    share = file.take("val_set_size")
    if share and share < 1:
        file.values["data.eval"] = float(share)
    elif share:
        file.left_out.append((f"val_set_size: {share}", "pairs are held out by share: data.eval, 0.05 unless set"))
    tests = file.take("test_datasets")
    if tests:
        file.left_out.append((f"test_datasets: {_path(tests[0])}", "name a split or a file with data.eval"))
    template = file.take("chat_template")
    if template not in (None, "tokenizer_default"):
        file.left_out.append(
            (
                f"chat_template: {template}",
                "the tokenizer's own is used; another is data.chat_template, its text in Jinja",
            )
        )
    file.move("chat_template_jinja", "data.chat_template")


def _path(part: dict[str, Any]) -> str:
    files = part.get("data_files")
    path = str(part.get("path"))
    if files and path in ("json", "csv", "parquet"):
        path = files if isinstance(files, str) else files[0]
    is_file = path.endswith(FILE_SUFFIXES) and not path.startswith((".", "/", "~"))
    return f"./{path}" if is_file else path
