"""The text of a plain TRL script for a recipe, and of the page beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ..recipe.adapters import LoRA, QLoRA
from ..recipe.recipe import Recipe
from ..training.session import Session

# As models/weights.py does it, where the reason stands.
KEEP_4_BIT_GRADIENTS_RIGHT = [
    "for module in model.modules():",
    "    # On CPUs with AVX512-BF16 bitsandbytes would pack 4-bit weights anew for a kernel that has no gradient.",
    '    if getattr(module, "support_avx512bf16_for_cpu", False):',
    "        module.support_avx512bf16_for_cpu = False",
]


def script(session: Session, weights: str, said: Mapping[str, Any], *, has_template: bool, on_cpu: bool) -> str:
    """Python that trains the recipe with TRL alone; `said`: arguments of DPOConfig, `weights`: dtype of the base."""
    recipe = session.recipe
    adapter = recipe.adapter
    continues = adapter is not None and adapter.continue_from is not None
    arguments = {**said, "output_dir": '`str(here / "model")`'}
    sections = [
        [f'"""{recipe.name}: Direct Preference Optimization with TRL {version("trl")} alone. python train_dpo.py"""'],
        _imports(session, is_new=adapter is not None and not continues),
        ["here = Path(__file__).resolve().parent"],
        _model_lines(session, weights),
    ]
    if on_cpu and isinstance(adapter, QLoRA):
        sections.append(KEEP_4_BIT_GRADIENTS_RIGHT)
    if adapter is not None and continues:
        sections.append(_continued_lines(adapter))
    if recipe.reference is not None:
        sections.append(_reference_lines(session, weights))
    sections += [
        _tokenizer_lines(session, has_template),
        _pairs_lines(session),
        _call("arguments = DPOConfig", arguments),
    ]
    if adapter is not None and not continues:
        sections.append(_adapter_lines(adapter))
    sections += [_trainer_lines(session, is_new=adapter is not None and not continues)]
    sections += [["trainer.train()", "trainer.save_model(arguments.output_dir)"]]
    if len(session.eval):
        sections[-1].append("print(trainer.evaluate())")
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def page(recipe: Recipe, result: Mapping[str, Any]) -> str:
    """README.md of the folder: how it is run, and what of the run is not in it."""
    lines = [
        f"# {recipe.name}, for TRL alone",
        "",
        f"Made by dpo-recipes. It needs trl {version('trl')} and what that brings, and nothing of dpo-recipes:",
        "",
        "```",
        "python train_dpo.py",
    ]
    if result["why_no_yaml"] is None:
        lines.append("trl dpo --config dpo.yaml    # the same, from this folder")
    lines += ["```", ""]
    if result["why_no_yaml"] is not None:
        lines += [f"There is no file for `trl dpo --config`: {result['why_no_yaml']}.", ""]
    lines += ["The losses of its steps are those of the run itself. What the run has beside them:", ""]
    lines += [f"* {sentence}" for sentence in result["left_out"]]
    return "\n".join(lines) + "\n"


def _imports(session: Session, *, is_new: bool) -> list[str]:
    from_peft = []
    if session.recipe.adapter is not None:
        from_peft.append("LoraConfig" if is_new else "PeftModel")
    if session.reference_adapter and "PeftModel" not in from_peft:
        from_peft.append("PeftModel")
    from_transformers = "AutoModelForCausalLM, AutoTokenizer"
    if isinstance(session.recipe.adapter, QLoRA):
        from_transformers += ", BitsAndBytesConfig"
    lines = ["from pathlib import Path", "", "import torch", "from datasets import load_dataset"]
    if from_peft:
        lines.append(f"from peft import {', '.join(from_peft)}")
    return [*lines, f"from transformers import {from_transformers}", "from trl import DPOConfig, DPOTrainer"]


def _call(name: str, values: Mapping[str, Any]) -> list[str]:
    """A call with a keyword a line; a value in backticks is code."""
    lines = [f"    {keyword}={_code(value)}," for keyword, value in values.items()]
    return [f"{name}(", *lines, ")"]


def _code(value: Any) -> str:
    if isinstance(value, str) and value.startswith("`"):
        return value.strip("`")
    return repr(value)


def _loading(session: Session, weights: str, *, of_the_policy: bool) -> dict[str, Any]:
    """The options of from_pretrained, as training has them."""
    recipe = session.recipe
    values: dict[str, Any] = {"dtype": f"`torch.{weights}`"}
    if recipe.attn_implementation:
        values["attn_implementation"] = recipe.attn_implementation
    if recipe.trust_remote_code:
        values["trust_remote_code"] = recipe.trust_remote_code
    if of_the_policy and recipe.revision:
        values["revision"] = recipe.revision
    if of_the_policy and isinstance(recipe.adapter, QLoRA):
        values["quantization_config"] = "`four_bit`"
    return values


def _from_pretrained(name: str, path: str, values: Mapping[str, Any]) -> list[str]:
    options = "".join(f", {keyword}={_code(value)}" for keyword, value in values.items())
    return [f"{name}.from_pretrained({path!r}{options})"]


def _model_lines(session: Session, weights: str) -> list[str]:
    lines = []
    adapter = session.recipe.adapter
    if isinstance(adapter, QLoRA):
        values = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": f"`torch.{weights}`",
            "bnb_4bit_use_double_quant": adapter.double_quant,
        }
        lines += _call("four_bit = BitsAndBytesConfig", values)
    values = _loading(session, weights, of_the_policy=True)
    return lines + _from_pretrained("model = AutoModelForCausalLM", session.model_path, values)


def _continued_lines(adapter: LoRA) -> list[str]:
    folder = os.path.abspath(os.path.expanduser(str(adapter.continue_from)))
    if not os.path.isdir(folder):  # on the hub
        folder = str(adapter.continue_from)
    lines = [f"model = PeftModel.from_pretrained(model, {folder!r}, is_trainable=True)"]
    if isinstance(adapter, QLoRA):
        lines += [
            "for name, parameter in model.named_parameters():",
            "    # Before TRL copies the adapter for the reference, so that both are the same numbers",
            '    if parameter.requires_grad and "lora_magnitude_vector" not in name:',
            "        parameter.data = parameter.data.to(torch.bfloat16)",
        ]
    return lines


def _reference_lines(session: Session, weights: str) -> list[str]:
    values = _loading(session, weights, of_the_policy=False)
    lines = _from_pretrained("reference = AutoModelForCausalLM", session.reference_path, values)
    if session.reference_adapter:
        lines.append(
            f"reference = PeftModel.from_pretrained(reference, {session.reference_adapter!r}).get_base_model()"
        )
    return lines


def _tokenizer_lines(session: Session, has_template: bool) -> list[str]:
    recipe = session.recipe
    values: dict[str, Any] = {}
    if recipe.revision:
        values["revision"] = recipe.revision
    if recipe.trust_remote_code:
        values["trust_remote_code"] = recipe.trust_remote_code
    lines = _from_pretrained("tokenizer = AutoTokenizer", session.model_path, values)
    if has_template:
        lines.append('tokenizer.chat_template = (here / "chat_template.jinja").read_text(encoding="utf-8")')
    return lines


def _pairs_lines(session: Session) -> list[str]:
    lines = ['files = {"train": str(here / "pairs" / "train.jsonl")}']
    if len(session.eval):
        lines.append('files["test"] = str(here / "pairs" / "test.jsonl")')
    return [*lines, 'pairs = load_dataset("json", data_files=files)']


def _adapter_lines(adapter: LoRA) -> list[str]:
    values: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": adapter.r,
        "lora_alpha": adapter.alpha or 2 * adapter.r,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter.target_modules,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }
    return _call("adapter = LoraConfig", values)


def _trainer_lines(session: Session, *, is_new: bool) -> list[str]:
    values: dict[str, Any] = {"model": "`model`"}
    if session.recipe.reference is not None:
        values["ref_model"] = "`reference`"
    values |= {"args": "`arguments`", "train_dataset": '`pairs["train"]`'}
    if len(session.eval):
        values["eval_dataset"] = '`pairs["test"]`'
    values["processing_class"] = "`tokenizer`"
    if is_new:
        values["peft_config"] = "`adapter`"
    return _call("trainer = DPOTrainer", values)
