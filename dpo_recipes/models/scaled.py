"""Weights between a reference and its policy: the one model that is nearest to decoding with the beta dial.

Of an adapter what it adds to its base is scaled, of a whole model every weight lies on the line between the two models
(2109.01903). Both are exact for the weights, and an approximation of the dial, which mixes the logits of two models.

Leans on PEFT 0.21: the names in an adapter's file, that a new adapter changes nothing, where DoRA's magnitudes begin.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import save_file

from ..errors import RecipeError

NAME = "scaled"  # of the adapter beside the policy's own, which PEFT calls `default`
# Ways to begin an adapter that leave its base as it is; others move part of the base's weights into the adapter.
BASE_LEFT_ALONE = (True, False, "gaussian", "orthogonal")
NAMED = 3  # tensors that a message names


class ScaledAdapter:
    """A second adapter on the policy's base: `factor` of the way from the reference to the policy.

    Where the reference is the base, LoRA's B is multiplied: the product B A, and with it what is added to a weight, is
    scaled. DoRA's magnitudes and whole modules of the adapter lie between those of the base and the trained ones.
    Where the adapter was continued, the reference is its start, and what lies between two products is one of twice the
    rank: of (1 - factor) times the start's B and factor times the trained one, beside each other, and both A.
    """

    def __init__(self, policy: Any, trained: Path, factor: float, start: str | None):
        """`policy`: the base with the adapter of the folder `trained` on it; `start`: the folder that it continued.

        RecipeError where no adapter lies between the two.
        """
        self.policy = policy
        config: Any = PeftConfig.from_pretrained(str(trained))
        _refuse_other_kinds(config, trained, continued=start is not None)
        tensors = _loaded(str(trained))
        if factor == 1:
            self.tensors, self.config = tensors, config
        elif start is None:
            self.tensors = _towards(tensors, _nothing_learned(policy, config, tensors), factor)
            self.config = config
        else:
            self.tensors = _between(_loaded(start), tensors, factor, config.use_rslora)
            self.config = _of_twice_the_rank(config)
        policy.add_adapter(NAME, _new(self.config))
        set_peft_model_state_dict(policy, dict(self.tensors), adapter_name=NAME)
        policy.eval()

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The policy with this adapter in place of its own."""
        self.policy.set_adapter(NAME)
        try:
            yield self.policy
        finally:
            self.policy.set_adapter("default")

    def write(self, where: Path) -> None:
        """The adapter's two files."""
        self.config.save_pretrained(str(where))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, where / "adapter_model.safetensors", metadata={"format": "pt"})

    def in_words(self) -> str:
        """What was done to the weights."""
        if self.config.use_dora:
            return "a DoRA adapter, with what it adds and its magnitudes scaled"
        return f"a LoRA adapter of rank {self.config.r}, with what it adds scaled"


class ScaledModel:
    """A whole model, each weight of it `factor` of the way from the reference's to the policy's."""

    def __init__(self, policy: Any, reference: Any, factor: float):
        """RecipeError where the two have other weights than each other."""
        ours, theirs = policy.state_dict(), reference.state_dict()
        differing = [
            name
            for name in ours.keys() | theirs.keys()
            if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
        ]
        if differing:
            raise RecipeError(
                f"No model lies between the policy and its reference: {len(differing)} of their weights have other "
                f"names or shapes, such as {', '.join(sorted(differing)[:NAMED])}. The dial itself mixes logits, and "
                "works: dpo-recipes evaluate RUN --dial FACTOR"
            )
        between = {}
        for name, tensor in ours.items():
            if tensor.is_floating_point() and factor != 1:
                start = theirs[name].to(tensor.device).float()
                tensor = (start + factor * (tensor.float() - start)).to(tensor.dtype)
            between[name] = tensor
        self._model = copy.deepcopy(policy)
        self._model.load_state_dict(between)
        self._model.eval()

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The model between the two."""
        yield self._model

    def write(self, where: Path) -> None:
        """Its weights, its config and its generation config."""
        self._model.save_pretrained(str(where))

    def in_words(self) -> str:
        """What was done to the weights."""
        return "a whole model, each weight of it between the reference's and the policy's"


# ------------------------------------------------------------------------------------------------- tensors of adapters


def _refuse_other_kinds(config: Any, folder: Path, *, continued: bool) -> None:
    """RecipeError for what PEFT knows and a product of two matrices does not show."""
    advice = "The dial itself mixes logits, and works: dpo-recipes evaluate RUN --dial FACTOR"
    if config.peft_type != "LORA":
        raise RecipeError(f"{folder} is a {config.peft_type.value} adapter, and only LoRA's can be scaled. {advice}")
    if config.init_lora_weights not in BASE_LEFT_ALONE:
        raise RecipeError(
            f"The adapter in {folder} began with init_lora_weights={config.init_lora_weights!r}, which moves part of "
            f"the base's weights into it, so that scaling it would scale those too. {advice}"
        )
    if continued and getattr(config, "target_parameters", None):
        raise RecipeError(
            f"The adapter in {folder} adapts the weights of experts in one tensor, where two of its states cannot "
            f"stand beside each other in one adapter. {advice}"
        )


def _loaded(folder: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file in 32 bits, in which PEFT computes with them, so that scaling rounds nothing."""
    return {name: tensor.float() for name, tensor in load_peft_weights(folder, device="cpu").items()}


def _new(config: Any) -> Any:
    """The same adapter as one that begins without a change to its base."""
    config = copy.deepcopy(config)
    config.init_lora_weights = True
    config.inference_mode = True
    return config


def _is_a(name: str) -> bool:
    return ".lora_A." in name or name.endswith(".lora_embedding_A")


def _is_of_b(name: str) -> bool:
    """Its weight, which is 0 before training, as is its bias where it has one."""
    return ".lora_B." in name or name.endswith(".lora_embedding_B")


def _nothing_learned(policy: Any, config: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an adapter of this kind holds before training, where it would not be zero."""
    if all(_is_a(name) or _is_of_b(name) for name in tensors):
        return {}
    policy.add_adapter("untrained", _new(config))
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(policy, adapter_name="untrained")
    untrained = {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}
    policy.delete_adapter("untrained")
    return untrained


def _towards(
    trained: dict[str, torch.Tensor], untrained: dict[str, torch.Tensor], factor: float
) -> dict[str, torch.Tensor]:
    """`factor` of what was learned since the base."""
    scaled = {}
    for name, tensor in trained.items():
        if _is_a(name):
            scaled[name] = tensor
        elif _is_of_b(name):
            scaled[name] = factor * tensor
        else:
            scaled[name] = untrained[name] + factor * (tensor - untrained[name])
    return scaled


def _between(
    start: dict[str, torch.Tensor], trained: dict[str, torch.Tensor], factor: float, rslora: bool
) -> dict[str, torch.Tensor]:
    """Both products beside each other, weighted; what is no product lies between its two values.

    rslora divides by the root of the rank, and would make of twice the rank and alpha a scale of root 2.
    """
    rescaled = 1 / math.sqrt(2) if rslora else 1.0
    between = {}
    for name, tensor in trained.items():
        if _is_a(name):
            between[name] = torch.cat([start[name], tensor], dim=0)
        elif name.endswith(".lora_B.bias"):
            between[name] = rescaled * ((1 - factor) * start[name] + factor * tensor)
        elif _is_of_b(name):
            between[name] = rescaled * torch.cat([(1 - factor) * start[name], factor * tensor], dim=1)
        else:
            between[name] = start[name] + factor * (tensor - start[name])
    return between


def _of_twice_the_rank(config: Any) -> Any:
    """The configuration of both adapters beside each other, in which alpha / r stays what it is."""
    config = copy.deepcopy(config)
    config.r *= 2
    config.lora_alpha *= 2
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
    return config
