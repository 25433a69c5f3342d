"""A norm that computes at once has Llama's output bit for bit, its gradients, and holds its input alone."""

from __future__ import annotations

import copy
import importlib
import inspect
import textwrap

import pytest
import torch
from reading_pairs import BATCH, bytes_held, compare, leave_as_they_come, load, off, two, with_lora
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dpo_recipes.benchmark.steps import Held
from dpo_recipes.shared_prefix import rms_norm
from dpo_recipes.shared_prefix.at_once import compute_at_once
from dpo_recipes.shared_prefix.rms_norm import computing

WIDTH = 48
WITH_LLAMAS_NORM = ("llama", "qwen2", "qwen3", "smollm3", "mistral", "phi3")
WITH_ANOTHER_NORM = ("gemma2", "gemma3_text", "olmo2", "gpt_oss", "gpt2", "gpt_neox", "phi")


def norms(dtype=torch.float32):
    """Llama's norm with drawn weights, and a copy that computes at once."""
    generator = torch.Generator().manual_seed(0)
    theirs = LlamaRMSNorm(WIDTH)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(WIDTH, generator=generator))
    theirs = theirs.to(dtype)
    ours = copy.deepcopy(theirs)
    compute_at_once(ours)
    return theirs, ours


def draw_input(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, WIDTH, generator=generator).mul(3).to(dtype)


def output_and_gradients(norm, x):
    """The output, and the gradients of x and of the weight; each in the dtype that it has."""
    x = x.clone().requires_grad_()
    output = norm(x)
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    of_weight = norm.weight.grad
    norm.weight.grad = None
    return output.detach(), x.grad, of_weight


def formula(weight, x, epsilon):
    """1910.07467, equation 4."""
    return weight * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def gradients_in_64_bits(norm, x):
    """Of `output_and_gradients`, by the formula, for x and for the weight."""
    given = [x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()]
    output = formula(given[1], given[0], norm.variance_epsilon)
    dtype = torch.promote_types(norm.weight.dtype, x.dtype)  # of the norm's output
    of_output = torch.linspace(-1, 1, output.numel()).to(dtype).double().view(output.shape)
    return torch.autograd.grad(output, given, of_output)


@pytest.fixture
def at_once(count_calls):
    """How many norms have computed at once."""
    return count_calls(rms_norm._RMSNorm)


@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 6, 3)])
def test_32_bits(shape, at_once):
    theirs, ours = norms()
    x = draw_input(*shape)
    (output, of_x, of_weight), expected = output_and_gradients(ours, x), output_and_gradients(theirs, x)
    assert torch.equal(output, expected[0])
    assert off(of_x, expected[1]) <= 1e-6 and off(of_weight, expected[2]) <= 1e-6
    assert len(at_once) == 1


def test_the_formula_in_64_bits():
    """Whose root is taken in 32 bits, as Llama takes it."""
    _, ours = norms()
    x = draw_input(9)
    expected = formula(ours.weight.detach().double(), x.double(), ours.variance_epsilon)
    output, *gradients = output_and_gradients(ours, x)
    assert off(output, expected) <= 1e-6
    for gradient, of_formula in zip(gradients, gradients_in_64_bits(ours, x), strict=True):
        assert off(gradient, of_formula) <= 1e-6


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32 weights"])
def test_16_bits(weights, at_once):
    """Gradients are rounded once, at their end, and so they are nearer to those in 64 bits than Llama's are."""
    theirs, ours = norms(weights)
    x = draw_input(64, dtype=torch.bfloat16)
    exact = gradients_in_64_bits(ours, x)
    found, expected = output_and_gradients(ours, x), output_and_gradients(theirs, x)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert torch.equal(found[0], expected[0])
    for gradient, of_llama, of_formula in zip(found[1:], expected[1:], exact, strict=True):
        assert off(gradient, of_formula) <= 2**-9
        assert off(gradient, of_formula) < off(of_llama, of_formula)
    assert len(at_once) == 1


def test_a_weight_in_64_bits(at_once):
    theirs, ours = norms(torch.float64)
    found, expected = (output_and_gradients(norm, draw_input(5)) for norm in (ours, theirs))
    for gradient, of_llama in zip(found, expected, strict=True):
        assert gradient.dtype == of_llama.dtype
        assert off(gradient, of_llama) <= 1e-6
    assert len(at_once) == 1


def test_64_bits_are_left_to_llama(at_once):
    theirs, ours = norms(torch.float64)
    x = draw_input(5, dtype=torch.float64)
    for found, expected in zip(output_and_gradients(ours, x), output_and_gradients(theirs, x), strict=True):
        assert torch.equal(found, expected)
    assert not at_once


def test_a_weight_that_its_module_gathers_is_left_to_llama(at_once):
    _, ours = norms()
    ours.weight.ds_id = 1  # as DeepSpeed marks it
    ours(draw_input(5))
    assert not at_once


@pytest.mark.parametrize("needs", ["x", "weight"])
def test_only_what_needs_a_gradient_has_one(needs):
    _, ours = norms()
    ours.weight.requires_grad_(needs == "weight")
    x = draw_input(5).requires_grad_(needs == "x")
    ours(x).sum().backward()
    assert (x.grad is None) == (needs == "weight") and (ours.weight.grad is None) == (needs == "x")


@pytest.mark.parametrize(("dtype", "in_llamas"), [(torch.bfloat16, 4 + 2), (torch.float32, 4 + 4)])
def test_it_holds_its_input_and_a_number_a_token(dtype, in_llamas):
    """`in_llamas`: bytes for each number of x, which are x in 32 bits, and x over its root."""
    tokens = 32
    held = []
    for norm in norms(dtype):
        x = draw_input(tokens, dtype=dtype).requires_grad_()
        with Held(norm) as bytes_of_forward:
            norm(x)
        held.append(bytes_of_forward.bytes)
    theirs, ours = held
    assert ours == tokens * (WIDTH * dtype.itemsize + 4)
    assert theirs == tokens * (WIDTH * in_llamas + 4)


def test_without_gradients_and_where_torch_compiles_it_is_llamas(at_once, monkeypatch):
    theirs, ours = norms()
    x = draw_input(5)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours(x)
    assert not at_once


def test_it_can_be_undone(at_once):
    norm = LlamaRMSNorm(WIDTH)
    undo = compute_at_once(norm)
    undo()
    norm(draw_input(3))
    assert not at_once and "forward" not in vars(norm)


def llamas_with(operation, instead):
    """A class with Llama's norm but for one operation."""
    source = textwrap.dedent(inspect.getsource(LlamaRMSNorm.forward))
    assert source.count(operation) == 1
    found = {}
    exec("import torch\n" + source.replace(operation, instead), found)
    return type("Changed", (LlamaRMSNorm,), {"forward": found["forward"]})


WEIGHED = "self.weight * hidden_states.to(input_dtype)"
OTHERS = {
    "Gemma": (WEIGHED, "(1 + self.weight) * hidden_states.to(input_dtype)"),
    "Olmo 2": (WEIGHED, "(self.weight * hidden_states).to(input_dtype)"),
    "another constant": ("pow(2)", "pow(3)"),
    "another name": ("self.variance_epsilon", "self.epsilon"),
}


@pytest.mark.parametrize(("operation", "instead"), OTHERS.values(), ids=OTHERS)
def test_a_norm_that_computes_anything_else_is_not_taken_for_llamas(operation, instead):
    assert computing(llamas_with(operation, instead)(WIDTH)) is None


def test_a_copy_of_llamas_norm_is_taken_for_it_and_no_other_module():
    assert computing(llamas_with(WEIGHED, WEIGHED)(WIDTH)) is not None
    assert computing(nn.RMSNorm(WIDTH)) is computing(nn.Linear(2, 2)) is None


def test_most_norms_of_transformers_are_llamas():
    models = importlib.import_module("transformers.models")
    found = []
    for kind in ("llama", "qwen2", "qwen3", "mistral", "phi3", "smollm3", "mixtral", "deepseek_v3", "glm4"):
        file = importlib.import_module(f"{models.__name__}.{kind}.modeling_{kind}")
        classes = [value for name, value in vars(file).items() if name.endswith("RMSNorm") and isinstance(value, type)]
        found += [computing(norm(WIDTH)) is not None for norm in classes]
    assert all(found) and len(found) >= 9


@pytest.mark.parametrize("kind", WITH_LLAMAS_NORM + WITH_ANOTHER_NORM)
def test_every_model_has_the_same_gradients(tiny, kind, at_once):
    bare, mine, said = two(load(tiny(kind)), require=True)
    compare(bare, mine, BATCH)
    at_once.clear()
    assert max(compare(bare, mine, BATCH)) <= 5e-6
    assert bool(at_once) == (kind in WITH_LLAMAS_NORM)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_with_lora_the_norms_hold_less(tiny, checkpointing):
    """Of a model in 16 bits, beside what it held with its norms as they come."""
    mine = with_lora(tiny(), checkpointing)
    less = bytes_held(mine)
    leave_as_they_come(mine, LlamaRMSNorm)
    as_they_come = bytes_held(mine)
    assert less < as_they_come
    if not checkpointing:
        assert less < 0.9 * as_they_come


def test_llamas_norm_is_this():
    """Read again if it changes: shared_prefix/rms_norm.py, line by line."""
    lines = [line.strip() for line in inspect.getsource(LlamaRMSNorm.forward).splitlines()[1:]]
    assert lines == [
        "input_dtype = hidden_states.dtype",
        "hidden_states = hidden_states.to(torch.float32)",
        "variance = hidden_states.pow(2).mean(-1, keepdim=True)",
        "hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)",
        "return self.weight * hidden_states.to(input_dtype)",
    ]
