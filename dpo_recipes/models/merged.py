"""An adapter and its base as one plain model, in the type in which the base is stored.

Leans on PEFT 0.21: `merge` of each adapted layer, in the type of its weight; that merging once more changes nothing;
and that an embedding which is merged takes a tied head with it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from ..errors import RecipeError
from .adapter import put_on, refuse_other_adapter_weights
from .checkpoint import load_checkpoint

# In which weights the adapter is merged, of an adapter that was trained over 4 bits.
DEQUANTISED = "the 4-bit base, dequantised"
ORIGINAL = "the original base"


def load_base(path: str, **options: Any) -> Any:
    """The base in the type in which it is stored. RecipeError where that is no type that is computed in."""
    model = load_checkpoint(path, "base model", dtype="auto", **options)
    quantized = getattr(model.config, "quantization_config", None)
    if quantized is not None:
        raise RecipeError(
            f"The base {path} is itself stored quantised, and into packed weights nothing is merged. Name the "
            "original in 16 bits as base_model_name_or_path in the adapter_config.json of the run, or use the adapter "
            "as it is."
        )
    return model


def dtype_of(model: Any) -> torch.dtype:
    """The type of its weights, as its config.json will have it."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def dequantised_weights(policy: Any) -> dict[str, torch.Tensor]:
    """Name in the base -> weights as they are computed with, of all layers of a policy that hold them in 4 bits."""
    from bitsandbytes.functional import dequantize_4bit

    weights = {}
    for name, module in policy.get_base_model().named_modules():
        own: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        state = getattr(getattr(own, "weight", None), "quant_state", None)
        if state is not None and not name.endswith(".base_layer"):
            weights[f"{name}.weight"] = dequantize_4bit(own.weight.data, state).cpu()
    return weights


def unmerged(base: Any, adapter: Path, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The base with the adapter of a folder on it. `weights` take the place of the base's own, by name.

    RecipeError where the adapter does not fit.
    """
    if weights:
        _replace(base, weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # merged() looks after it
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # PEFT asks for it by its old name
        model: Any = put_on(base, str(adapter))
    refuse_other_adapter_weights(model, str(adapter))
    return model


def merged(base: Any, adapter: Path, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The base with the adapter of a folder in its weights; what it adds is computed in 32 bits and rounded once.

    `weights` take the place of the base's own, by name. RecipeError where the adapter does not fit.
    """
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
    model = unmerged(base, adapter, weights)
    _give_head_its_own_weight(base)
    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        _merge_in_32_bits(layer, adapter)
    with warnings.catch_warnings():
        # What is done about both stands below and above.
        warnings.filterwarnings("ignore", message=".*no longer tied after merging")
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        plain = model.merge_and_unload()

    for name, parameter in plain.named_parameters():  # a module of the adapter's own may have come in 32 bits
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
        parameter.requires_grad_(False)
    _untie_where_it_differs(plain)
    return plain.eval()


def _replace(base: Any, weights: dict[str, torch.Tensor]) -> None:
    parameters = dict(base.named_parameters())
    for name, tensor in weights.items():
        parameter = parameters[name]
        parameter.data = tensor.reshape(parameter.shape).to(parameter.dtype)


def _merge_in_32_bits(layer: Any, adapter: Path) -> None:
    """One layer's: in 16 bits each of the sums and products in between would be rounded."""
    own = layer.get_base_layer()
    dtypes = {name: parameter.dtype for name, parameter in own.named_parameters()}
    own.float()
    try:
        layer.merge(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"The adapter in {adapter} cannot be merged: {str(error).strip()}") from error
    for name, parameter in own.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])


def _give_head_its_own_weight(base: Any) -> None:
    """Where the embedding is adapted and the head is that embedding: merged in place, the head would change too."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer)
    if head is None or not adapted:
        return
    own_head: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    own_embedding: Any = embedding.get_base_layer() if isinstance(embedding, BaseTunerLayer) else embedding
    if own_head.weight is own_embedding.weight:
        own_head.weight = torch.nn.Parameter(own_head.weight.detach().clone(), requires_grad=False)


def _untie_where_it_differs(model: Any) -> None:
    """A head that is no longer the embedding is stored for itself, and config.json says so."""
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return
    if getattr(model.config, "tie_word_embeddings", False) or getattr(model, "all_tied_weights_keys", None):
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
