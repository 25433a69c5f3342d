"""Tokenizer, weights, quantisation, adapter, and who the reference is. The only file on peft and bitsandbytes."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from ..data.preference_dataset import pin_date, unread_kwargs
from ..errors import RecipeError
from ..recipe.recipe import LoRA, QLoRA, Recipe
from ..recipe.resolve import Device, Settings

Say = Callable[[str], None]

# TRL and peft use the old name of this option themselves, so the warning says nothing to a user.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def device(say: Say = lambda _: None, use_cpu: bool = False) -> Device:
    """Where this process trains. On CUDA, switches off an attention kernel whose gradients can be NaN, and says so."""
    if Device().processes > 1:
        raise RecipeError(f"This version trains in one process; a launcher started {Device().processes}.")
    if torch.cuda.is_available() and not use_cpu:
        if (count := torch.cuda.device_count()) > 1:
            raise RecipeError(f"{count} GPUs are visible, and one process uses one. Set CUDA_VISIBLE_DEVICES=0, say.")
        if Version(torch.__version__) >= Version("2.11") and torch.backends.cuda.cudnn_sdp_enabled():
            # pytorch#196678, trl#7181: NaN in grad_q under a mask at lengths of 64 mod 128 on H100 and H200, since
            # 2.11, seen on 2.13. To be bounded above by the first release that carries the fix.
            torch.backends.cuda.enable_cudnn_sdp(False)
            say(f"cuDNN attention is off: with torch {torch.__version__} its gradients can be NaN under a mask.")
        return Device("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available() and not use_cpu:
        return Device("mps")
    return Device()


@dataclass
class Tokenizer:
    """A tokenizer as training uses it, and the chat template that is saved with the model."""

    tokenizer: Any
    template: str | None  # as published or as the recipe gives it, not pinned to a date

    def save(self, folder: Path) -> None:
        pinned, self.tokenizer.chat_template = self.tokenizer.chat_template, self.template
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = pinned


def load_tokenizer(recipe: Recipe, path: str, say: Say = lambda _: None) -> Tokenizer:
    """The model's tokenizer, with the recipe's chat template and date. RecipeError when there is none."""
    data, trust = recipe.data, recipe.trust_remote_code
    with _explained("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=recipe.revision, trust_remote_code=trust)
    if tokenizer.eos_token is None:
        raise RecipeError(f"The tokenizer of {path!r} has no end token, so no answer could end. Set eos_token.")
    template = data.chat_template or tokenizer.chat_template
    if isinstance(template, dict):  # some tokenizers carry several by name
        template = template.get("default")
    given = [n for n in ("chat_template_kwargs", "template_date") if getattr(data, n)]
    if template is None and given:
        raise RecipeError(f"data.{given[0]} is for a chat template, and the tokenizer of {path!r} has none.")
    tokenizer.chat_template = pin_date(str(template), data.template_date) if data.template_date else template
    if data.template_date and tokenizer.chat_template == template:
        say(f"data.template_date={data.template_date} changes nothing: this chat template prints no date.")
    if unread := unread_kwargs(template or "", data.chat_template_kwargs):
        say(f"data.chat_template_kwargs: this chat template does not read {', '.join(unread)}.")
    return Tokenizer(tokenizer, template)


def load_weights(
    recipe: Recipe, settings: Settings, path: str, *, trainable: bool = True, say: Say = lambda _: None
) -> Any:
    """The policy before training, or (`trainable=False`) a reference of its own: base weights, quantised for QLoRA.

    TRL adds a new adapter later; one that is continued is loaded here. RecipeError where something cannot be read.
    """
    adapter, options = recipe.adapter, _options(recipe, settings, trainable)
    if "quantization_config" in options and torch.cuda.is_available() and not recipe.trl.get("use_cpu"):
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    with _explained("model", path):
        model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    _keep_4bit_gradients_right(model)
    if trainable and getattr(model, "peft_config", None):
        remedy = f"To train it on, set model= to its base and adapter.continue_from={path}"
        raise RecipeError(f"model={path!r} is an adapter, which a new one would replace. {remedy}")
    if trainable and adapter is not None and adapter.continue_from:
        folder = os.path.expanduser(adapter.continue_from)
        with _lora(adapter) as config:
            model = PeftModel.from_pretrained(model, folder, is_trainable=True)
        if os.path.realpath(made_on := str(config.base_model_name_or_path)) != os.path.realpath(path):
            same = "they must be the same weights"
            say(f"The adapter {folder} was made on {made_on}, and is continued on {path}: {same}.")
        _cast_as_trl(model)  # before TRL copies the adapter for the reference, so that both are the same numbers
    return model


def skeleton(recipe: Recipe, settings: Settings, path: str, *, trainable: bool = True) -> Any:
    """What `load_weights` and TRL would make of it, adapter included, from the config alone: on the meta device."""
    adapter, options = recipe.adapter, _options(recipe, settings, trainable)
    revision, quantization = options.pop("revision", None), options.pop("quantization_config", None)
    if options.get("attn_implementation") != "eager":  # SDPA, which needs as much as kernels that are not there
        options.pop("attn_implementation", None)
    with _explained("model", path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=recipe.trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, **options)
    if quantization:
        from bitsandbytes.functional import create_dynamic_map, name2qmap

        quantizer = AutoHfQuantizer.from_config(quantization)
        quantizer.preprocess_model(model, device_map=None)
        name2qmap.setdefault("dynamic", create_dynamic_map())  # made once for the process: let it have numbers
        for module in (m for m in model.modules() if type(m).__name__ == "Linear4bit"):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(options["dtype"])
            module.weight._quantize("meta")
        quantizer.postprocess_model(model)
    if trainable and adapter is not None:
        with torch.device("meta"), _lora(adapter) as made:
            made.inference_mode = False
            model = get_peft_model(model, made)
            _cast_as_trl(model)
            if settings.reference == "frozen adapter":
                model.add_adapter("ref", made)
    return model


def _options(recipe: Recipe, settings: Settings, trainable: bool) -> dict[str, Any]:
    """How a model is made. The revision and the 4 bits are the policy's own, so also those of its start weights."""
    adapter, dtype = recipe.adapter, getattr(torch, settings.weights)
    options = {"dtype": dtype, "trust_remote_code": recipe.trust_remote_code}
    if recipe.attn_implementation:
        options["attn_implementation"] = recipe.attn_implementation
    if trainable or recipe.reference is None:
        options["revision"] = recipe.revision
        if isinstance(adapter, QLoRA):
            options["quantization_config"] = _quantization(adapter.double_quant, dtype)
    return options


def need_embeddings(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings, before a row that uses one of them."""
    tokens, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise RecipeError(f"The tokenizer has {tokens} tokens, but the model {rows} embeddings: they do not match.")


def _quantization(double_quant: bool, dtype: torch.dtype) -> Any:
    options = {"quant_type": "nf4", "compute_dtype": dtype, "use_double_quant": double_quant}
    return BitsAndBytesConfig(load_in_4bit=True, **{f"bnb_4bit_{name}": value for name, value in options.items()})


def _keep_4bit_gradients_right(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16.

    It repacks for an inference kernel that has no gradient; back in train mode the loss stays right, but gradients
    through these layers are garbage (0.50.2). To go when that kernel has a gradient or train() unpacks.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def _lora(adapter: LoRA) -> Iterator[Any]:
    """The adapter's configuration, new or of the folder it continues; what goes wrong with it becomes a RecipeError."""
    folder = os.path.expanduser(adapter.continue_from or "")
    try:
        config = PeftConfig.from_pretrained(folder) if folder else peft_config(adapter)
        if config.peft_type != "LORA":
            raise TypeError(f"it is a {config.peft_type.value} adapter")
        yield config
    except Exception as error:
        form = "It must be a folder with adapter_config.json and adapter_model.safetensors, made on the same base."
        why = f"adapter.continue_from={folder!r} holds no LoRA adapter for this model: {_short(error)}. {form}"
        raise RecipeError(why if folder else f"This model takes no such adapter: {_short(error)}.") from error


def _cast_as_trl(model: Any) -> None:
    """Over 4-bit weights TRL trains the adapter in bf16, all but DoRA's magnitudes."""
    if getattr(model, "is_loaded_in_4bit", False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)


def peft_config(adapter: LoRA | None) -> Any:
    """The LoraConfig of a new adapter; None in full fine-tuning and when an adapter is continued."""
    if adapter is None or adapter.continue_from:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM", r=adapter.r, lora_alpha=adapter.alpha or 2 * adapter.r, lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules, use_rslora=adapter.use_rslora, use_dora=adapter.use_dora,
    )  # fmt: skip


class Reference:
    """The frozen model a trained policy is compared with, on demand: never a second model while training."""

    def __init__(self, policy: Any, settings: Settings, load: Callable[[], Any]):
        self.policy, self.kind = policy, settings.reference
        self._load = functools.cache(lambda: load().to(policy.device).eval())

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The reference as a model in eval mode: the adapter off, its frozen copy, or weights loaded once more."""
        if self.kind == "adapter off":
            with self.policy.disable_adapter():
                yield self.policy
        elif self.kind == "frozen adapter":
            self.policy.set_adapter("ref")
            try:
                yield self.policy
            finally:
                self.policy.set_adapter("default")
        else:
            yield self._load()


def load_trained(folder: Path, resolved: dict[str, Any]) -> tuple[Any, Any]:
    """(model, tokenizer) of a finished run: the base as it was trained on (4-bit for QLoRA), with the adapter on."""
    where = folder / "model"
    if not (where / "config.json").is_file() and not (where / "adapter_config.json").is_file():
        raise RecipeError(f"{where} holds no model: the run has not finished.")
    value = {key: entry["value"] for key, entry in resolved.items()}
    dtype = getattr(torch, str(value["dtype"]).split()[0])
    options: dict[str, Any] = {"trust_remote_code": value["trust_remote_code"], "dtype": dtype}
    tokenizer = AutoTokenizer.from_pretrained(where)
    if value["adapter"] is None:
        return AutoModelForCausalLM.from_pretrained(where, **options), tokenizer
    base = PeftConfig.from_pretrained(str(where)).base_model_name_or_path
    if value["adapter"] == "QLoRA":
        options["quantization_config"] = _quantization(value["adapter.double_quant"], dtype)
    with _explained("base model", base):
        model = AutoModelForCausalLM.from_pretrained(base, revision=value["revision"], **options)
    _keep_4bit_gradients_right(model)
    return PeftModel.from_pretrained(model, where), tokenizer


def _short(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:300] or type(error).__name__


@contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    """Turn whatever a loader raises into what could not be loaded, why, and what to look at."""
    try:
        yield
    except Exception as error:
        remedy = "Check model= and revision=; a gated model also needs `hf auth login`."
        if "trust_remote_code" in str(error):
            remedy = "The model brings its own code; read it, then set trust_remote_code=True in the recipe."
        elif "attn" in str(error) or "attention" in str(error):
            remedy = "Check attn_implementation."
        elif os.path.isdir(path):
            found = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
            remedy = f"A model folder has config.json, model.safetensors and tokenizer files; this one: {found}."
        raise RecipeError(f"No {what} could be loaded from {path!r}: {_short(error)}. {remedy}") from error
