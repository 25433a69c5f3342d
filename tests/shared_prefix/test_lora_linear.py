"""A LoRA layer that computes at once has PEFT's output and gradients; what is not that formula is left to PEFT."""

from __future__ import annotations

import copy
import functools
import inspect
import re

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from reading_pairs import BATCH, load, off, two
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpo_recipes.benchmark.steps import Held
from dpo_recipes.shared_prefix import lora_linear
from dpo_recipes.shared_prefix.at_once import compute_at_once

INPUTS, OUTPUTS, RANK = 24, 40, 4
SCALING = 1.5  # alpha over rank: no power of two, by which nothing would be rounded


class Layers(nn.Module):
    """Three linear layers that read the same input."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(INPUTS, OUTPUTS, bias=bias) for _ in range(3))

    def forward(self, x):
        return self.a(x) * self.b(x) + self.c(x)


def adapted(dtype=torch.float64, bias=True, **options):
    """PEFT's layers, and copies of them that compute at once; each is trained already."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(
            r=RANK, lora_alpha=RANK * SCALING, target_modules=["a", "b", "c"], init_lora_weights=False, **options
        )
        theirs = get_peft_model(Layers(bias).to(dtype), config, autocast_adapter_dtype=dtype != torch.bfloat16)
    ours = copy.deepcopy(theirs)
    compute_at_once(ours)
    return theirs, ours


def draw_input(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, INPUTS, generator=generator, dtype=torch.float64).to(dtype)


def numbers(model, x, autocast=None, needs_x=True):
    """The output and every gradient, of x first, as one vector in float64; each gradient has its weight's dtype."""
    x = x.clone().requires_grad_(needs_x)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    (output * weights).sum().backward()
    gradients = [p.grad for p in (x, *model.parameters()) if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat([output.detach().flatten().double(), *(gradient.flatten().double() for gradient in gradients)])


@pytest.fixture
def at_once(count_calls):
    """How many layers have computed at once."""
    return count_calls(lora_linear._LoRALinear)


@pytest.mark.parametrize("shape", [(5,), (2, 7), (1, 9)])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("needs_x", [True, False], ids=["", "first layer"])
def test_64_bits(shape, bias, needs_x, at_once):
    theirs, ours = adapted(bias=bias)
    x = draw_input(*shape)
    assert off(numbers(ours, x, needs_x=needs_x), numbers(theirs, x, needs_x=needs_x)) <= 1e-14
    assert len(at_once) == 3


def test_32_bits(at_once):
    theirs, ours = adapted(torch.float32)
    x = draw_input(64, dtype=torch.float32)
    assert off(numbers(ours, x), numbers(theirs, x)) <= 1e-6
    assert len(at_once) == 3


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_autocast_is_no_further_from_the_truth_than_peft(weights, at_once):
    theirs, ours = adapted(weights)
    x = draw_input(64, dtype=weights)
    truth = numbers(copy.deepcopy(theirs).double(), x.double())
    our_numbers = numbers(ours, x, torch.bfloat16)
    error = off(our_numbers, truth)
    assert 0 < error <= off(numbers(theirs, x, torch.bfloat16), truth) <= 2**-7
    assert len(at_once) == 3


def test_layers_that_read_the_same_input_hold_it_once():
    """PEFT makes a copy in 32 bits and one in 16 for each of them."""
    tokens = 64
    theirs, ours = adapted(torch.bfloat16, bias=False)
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    x = draw_input(tokens, dtype=torch.bfloat16).requires_grad_()
    held = []
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16), Held(model) as bytes_of_forward:
            model(x)
        held.append(bytes_of_forward.bytes)
    of_product = 2 * tokens * OUTPUTS  # numbers: two factors
    assert held[1] == 2 * (tokens * INPUTS + 3 * tokens * RANK + of_product)
    assert held[0] - held[1] >= 2 * 2 * tokens * INPUTS


def disabled(model):
    for layer in layers_of(model):
        layer.enable_adapters(False)


def merged(model):
    for layer in layers_of(model):
        layer.merge()


def with_trained_base(model):
    for layer in layers_of(model):
        layer.get_base_layer().weight.requires_grad_()


def with_two_adapters(model):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model.add_adapter("second", LoraConfig(r=2, target_modules=["a", "b", "c"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def with_hooks(model):
    for layer in layers_of(model):
        layer.lora_A["default"].register_forward_pre_hook(lambda module, args: (2 * args[0],))


def gathered_when_called(model):
    for layer in layers_of(model):
        layer.lora_B["default"].weight.ds_id = 1


def in_32_bits_over_16(model):
    for layer in layers_of(model):
        layer.get_base_layer().bfloat16()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Linear)]


CHANGES = [disabled, merged, with_trained_base, with_two_adapters, with_hooks, gathered_when_called, in_32_bits_over_16]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_the_formula_alone_is_left_to_peft(change, at_once):
    models = adapted(torch.float32)
    x = draw_input(5, dtype=torch.float32)
    if change is in_32_bits_over_16:
        x = x.bfloat16()
    for model in models:
        change(model)
    theirs, ours = models
    assert torch.equal(numbers(ours, x), numbers(theirs, x))
    assert not at_once


OPTIONS = {"DoRA": {"use_dora": True}, "a bias of LoRA": {"lora_bias": True}, "dropout": {"lora_dropout": 0.5}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_other_kinds_of_lora_are_left_to_peft(options, at_once):
    theirs, ours = adapted(torch.float32, **options)
    x = draw_input(5, dtype=torch.float32)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        found.append(numbers(model.train(), x))
    assert torch.equal(*found)
    assert not at_once


def test_dropout_of_a_model_that_does_not_train_is_none(at_once):
    theirs, ours = adapted(lora_dropout=0.5)
    x = draw_input(5)
    assert off(numbers(ours.eval(), x), numbers(theirs.eval(), x)) <= 1e-14
    assert len(at_once) == 3


def test_other_layers_are_left_to_peft(at_once):
    model = nn.Sequential(Conv1D(OUTPUTS, INPUTS))
    theirs = get_peft_model(model, LoraConfig(target_modules=["0"], init_lora_weights=False, fan_in_fan_out=True))
    ours = copy.deepcopy(theirs)
    compute_at_once(ours)
    x = draw_input(5, dtype=torch.float32)
    assert torch.equal(numbers(ours, x), numbers(theirs, x)) and not at_once


def test_without_gradients_it_is_peft(at_once):
    theirs, ours = adapted(torch.float32)
    x = draw_input(5, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert not at_once


def test_what_torch_compiles_is_peft(at_once, monkeypatch):
    theirs, ours = adapted(torch.float32)
    x = draw_input(5, dtype=torch.float32)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(numbers(ours, x), numbers(theirs, x))
    assert not at_once


def test_a_copy_computes_with_weights_of_its_own(at_once):
    _, ours = adapted()
    other = copy.deepcopy(ours)
    before = numbers(ours, draw_input(5))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(numbers(ours, draw_input(5)), before)
    assert numbers(other, draw_input(5)).abs().max() == 0
    assert len(at_once) == 9


def test_it_can_be_undone(at_once):
    ours, _ = adapted()
    undo = compute_at_once(ours)
    undo()
    undo()
    numbers(ours, draw_input(5))
    assert not at_once and not any("forward" in vars(layer) for layer in layers_of(ours))


def test_a_forward_that_somebody_has_replaced_stays(at_once):
    model, _ = adapted()
    first, second, _ = layers_of(model)
    vars(first)["forward"] = before = functools.partial(Linear.forward, first)
    undo = compute_at_once(model)
    numbers(model, draw_input(5))
    assert len(at_once) == 2
    vars(second)["forward"] = later = functools.partial(Linear.forward, second)
    undo()
    assert vars(first)["forward"] is before and vars(second)["forward"] is later


def test_another_adapter_inside_the_layer_is_left_to_peft(at_once):
    def nested():
        torch.manual_seed(0)
        inner = get_peft_model(Layers(), LoHaConfig(r=2, target_modules=["a", "b", "c"], init_weights=False))
        outer = LoraConfig(r=2, target_modules=["a", "b", "c"], init_lora_weights=False)
        return get_peft_model(inner.base_model.model, outer)

    with torch.random.fork_rng():
        theirs, ours = nested(), nested()
    compute_at_once(ours)
    x = draw_input(5, dtype=torch.float32)
    assert torch.equal(numbers(ours, x), numbers(theirs, x))
    assert layers_of(ours) and not at_once


@pytest.mark.parametrize("shape", [(0,), (1, 0)])
def test_no_tokens(shape, at_once):
    theirs, ours = adapted()
    x = draw_input(*shape)
    assert ours(x).shape == theirs(x).shape
    assert torch.equal(numbers(ours, x), numbers(theirs, x)) and len(at_once) == 6


@pytest.mark.parametrize(("needs", "held"), [("lora_A", 4 * INPUTS), ("lora_B", 4 * RANK)])
def test_only_what_a_gradient_needs_is_held(needs, held):
    """Bytes of a token, where neither x nor the other matrix needs a gradient."""
    tokens = 8
    _, ours = adapted(torch.float32, bias=False)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(needs in name)
    layer = layers_of(ours)[0]
    x = draw_input(tokens, dtype=torch.float32)
    with Held(layer) as bytes_of_forward:
        output = layer(x)
    output.sum().backward()
    assert bytes_of_forward.bytes == tokens * held
    with_gradients = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert with_gradients == {f"{needs}.default.weight"}


def test_a_gradient_of_a_gradient_is_refused():
    _, ours = adapted()
    x = draw_input(5).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_a_model_that_reads_pairs_once_does_so(tiny, at_once, checkpointing):
    """In every layer, the last included; until its numbers are trusted no more."""
    model = load(tiny())
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    _, mine, said = two(model)
    layers = len(layers_of(mine))
    assert layers == 14  # seven of each of two
    if checkpointing:
        mine.gradient_checkpointing_enable()
        mine.enable_input_require_grads()

    def calls_of_a_step() -> int:
        at_once.clear()
        mine(**BATCH).log_probs.sum().backward()
        return len(at_once)

    assert calls_of_a_step() == layers * (2 if checkpointing else 1)
    assert calls_of_a_step() == layers * (2 if checkpointing else 1)
    assert len(said) == 1 and "read once" in said[0]

    log_probs = mine(**BATCH).log_probs
    with torch.no_grad():
        mine(**{**BATCH, "attention_mask": BATCH["attention_mask"].flip(-1)})  # padded on the left
    assert "read twice" in said[-1]
    log_probs.sum().backward()  # what was computed at once is computed again at once
    assert calls_of_a_step() == 0


def test_peft_computes_by_these_attributes_alone():
    """Read again if this changes: peft/tuners/lora/layer.py, `Linear.forward`, and lora_linear.py."""
    read = set(re.findall(r"self\.(\w+)", inspect.getsource(Linear.forward)))
    assert read == {
        "_cast_input_dtype",
        "_check_forward_args",
        "_mixed_batch_forward",
        "active_adapters",
        "base_layer",
        "disable_adapters",
        "lora_A",
        "lora_B",
        "lora_dropout",
        "lora_variant",
        "merged",
        "scaling",
        "unmerge",
    }
