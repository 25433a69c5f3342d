"""Rotary positions that are computed at once are Llama's bit for bit, with its gradients, in one module alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from reading_pairs import ALL, BATCH, bytes_held, compare, leave_as_they_come, load, off, two, with_lora
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention

from dpo_recipes.shared_prefix import rotary
from dpo_recipes.shared_prefix.at_once import compute_at_once
from dpo_recipes.shared_prefix.rotary import APPLY, computing

WITH_LLAMAS_ROTARY = ("llama", "qwen2", "qwen3", "smollm3", "mistral", "gemma3_text", "gemma2", "mixtral", "qwen3_moe")
WITH_ANOTHER = ("phi3", "gpt_neox", "olmo2", "gpt_oss")
WITHOUT = ("gpt2",)
HEADS, TOKENS, SIZE = 3, 7, 8

pytestmark = pytest.mark.skipif(
    not inspect.isfunction(modeling_llama.apply_rotary_pos_emb),
    reason="with the package kernels Transformers makes something else of Llama's function",
)


@pytest.fixture
def at_once(count_calls):
    """How many tensors have been turned at once."""
    return count_calls(rotary._Rotary)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_positions(dtype=torch.float32, halves_alike=True):
    """cos and sin (1, TOKENS, SIZE); Llama's halves are alike, those of models with several kinds of positions not."""
    angles = draw(1, TOKENS, SIZE, seed=1)
    if halves_alike:
        angles = torch.cat([angles[..., : SIZE // 2]] * 2, dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned_and_gradients(apply, dtype, positions, heads_behind_tokens=False):
    """Queries and keys as they were turned, and the gradients of what they were."""
    states = [draw(2, TOKENS, heads, SIZE, dtype=dtype, seed=heads) for heads in (HEADS, 1)]
    if not heads_behind_tokens:
        states = [x.transpose(1, 2) for x in states]
    states = [x.requires_grad_() for x in states]
    turned = apply(*states, *positions, unsqueeze_dim=2 if heads_behind_tokens else 1)
    of_each = [draw(*x.shape, dtype=torch.bfloat16, seed=5).to(x.dtype) for x in turned]
    gradients = torch.autograd.grad(turned, states, of_each)
    return turned, gradients


@pytest.mark.parametrize("heads_behind_tokens", [False, True], ids=["", "heads behind tokens"])
@pytest.mark.parametrize("halves_alike", [True, False], ids=["", "halves of their own"])
@pytest.mark.parametrize(
    ("dtype", "of_positions", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-15),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 2**-7),
        (torch.bfloat16, torch.float32, 2**-7),
    ],
    ids=["64 bits", "32 bits", "16 bits", "16 bits under autocast"],
)
def test_it_is_llamas(dtype, of_positions, tolerance, halves_alike, heads_behind_tokens, at_once):
    """Gradients within a rounding: in 16 bits Llama rounds both products before it adds them, and we one of them."""
    positions = draw_positions(of_positions, halves_alike)
    turned, gradients = turned_and_gradients(rotary._apply, dtype, positions, heads_behind_tokens)
    assert len(at_once) == 2
    expected, of_expected = turned_and_gradients(
        modeling_llama.apply_rotary_pos_emb, dtype, positions, heads_behind_tokens
    )
    for ours, theirs in zip(turned, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(gradients, of_expected, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert off(ours, theirs) <= tolerance


def test_a_gradient_in_16_bits_is_nearer_to_that_in_64():
    positions = draw_positions(torch.bfloat16)
    _, exact = turned_and_gradients(modeling_llama.apply_rotary_pos_emb, torch.float64, [x.double() for x in positions])
    _, (ours, _) = turned_and_gradients(rotary._apply, torch.bfloat16, positions)
    _, (theirs, _) = turned_and_gradients(modeling_llama.apply_rotary_pos_emb, torch.bfloat16, positions)
    assert off(ours, exact[0]) < off(theirs, exact[0])


@pytest.mark.parametrize("what", ["trained", "another size", "more rows"])
def test_what_has_another_shape_or_trained_positions_is_left_to_llama(what, at_once):
    cos, sin = draw_positions()
    query = draw(1, HEADS, TOKENS, SIZE)
    if what == "trained":
        cos.requires_grad_()
    elif what == "another size":
        cos, sin = cos[..., :1], sin[..., :1]
    else:
        cos, sin = cos.repeat(2, 1, 1), sin.repeat(2, 1, 1)
    found = rotary._apply(query, query, cos, sin)
    expected = modeling_llama.apply_rotary_pos_emb(query, query, cos, sin)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert not at_once


def test_heads_may_be_counted_from_the_end(at_once):
    states = draw(2, HEADS, TOKENS, SIZE)
    positions = draw_positions()
    found = rotary._apply(states, states, *positions, unsqueeze_dim=-3)
    expected = modeling_llama.apply_rotary_pos_emb(states, states, *positions, unsqueeze_dim=-3)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert len(at_once) == 2


def plain_attention():
    """Llama's, of any size."""
    attention = LlamaAttention.__new__(LlamaAttention)
    nn.Module.__init__(attention)
    return attention


def test_its_file_keeps_llamas_own(tiny, at_once):
    """What another model, which nobody asked to compute at once, goes on with."""
    mine, other = load(tiny()), load(tiny())
    compute_at_once(mine)
    tokens = torch.arange(1, 6)[None]
    found = mine(tokens).logits
    assert len(at_once) == 2 * mine.config.num_hidden_layers
    at_once.clear()
    assert torch.equal(other(tokens).logits, found)
    assert not at_once
    assert LlamaAttention.forward.__globals__[APPLY] is modeling_llama.apply_rotary_pos_emb


def test_what_is_put_into_its_file_later_is_called(tiny, at_once, monkeypatch):
    model = load(tiny(), attn_implementation="eager")
    compute_at_once(model)
    called = []
    eager = modeling_llama.eager_attention_forward

    def noted(*args, **given):
        called.append("eager")
        return eager(*args, **given)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", noted)
    model(torch.arange(1, 6)[None])
    assert called and at_once

    at_once.clear()
    turn = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, APPLY, lambda *states: turn(*states))
    model(torch.arange(1, 6)[None])
    assert not at_once


@pytest.mark.parametrize("name", [APPLY, "rotate_half"])
def test_what_turns_otherwise_is_left(name, monkeypatch):
    """A file that defines another function by a name of Llama's."""
    monkeypatch.setitem(LlamaAttention.forward.__globals__, name, lambda *states: states)
    assert computing(plain_attention()) is None


def test_what_does_not_turn_is_left():
    assert computing(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("kind", WITH_LLAMAS_ROTARY + WITH_ANOTHER + WITHOUT)
def test_every_model_has_the_same_gradients(tiny, kind, at_once):
    bare, mine, _ = two(load(tiny(kind, **ALL[kind])), require=True)
    compare(bare, mine, BATCH)
    at_once.clear()
    assert max(compare(bare, mine, BATCH)) <= 5e-6
    assert bool(at_once) == (kind in WITH_LLAMAS_ROTARY)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_it_holds_no_more(tiny, checkpointing, at_once):
    """Than attention as it comes."""
    mine = with_lora(tiny(), checkpointing)
    at_once.clear()
    held = bytes_held(mine)
    assert at_once
    at_once.clear()
    leave_as_they_come(mine, LlamaAttention)
    assert held <= bytes_held(mine)
    assert not at_once


def test_in_16_bits_a_policy_starts_where_a_reference_is_that_the_library_has_computed(tiny, at_once):
    """The log-probabilities with gradients, at once, and those without, by the library's own attention."""
    _, mine, _ = two(load(tiny(), torch.bfloat16))
    with torch.no_grad():
        mine(**BATCH)  # compared with TRL's own forward
        reference = mine(**BATCH).log_probs
    assert not at_once
    policy = mine(**BATCH).log_probs
    assert at_once
    assert torch.equal(policy.detach(), reference)


def test_it_can_be_undone(tiny, at_once):
    model = load(tiny())
    undo = compute_at_once(model)
    model(torch.arange(1, 6)[None])
    assert at_once
    at_once.clear()
    undo()
    model(torch.arange(1, 6)[None])
    assert not at_once
    assert not any("forward" in vars(module) for module in model.modules())


def test_llamas_rotary_positions_are_these():
    """Read again if they change: shared_prefix/rotary.py, line by line."""

    def lines(function):
        code = inspect.getsource(function).split('"""')[-1]
        return [line.strip() for line in code.splitlines() if line.strip()]

    assert lines(modeling_llama.apply_rotary_pos_emb) == [
        "cos = cos.unsqueeze(unsqueeze_dim)",
        "sin = sin.unsqueeze(unsqueeze_dim)",
        "q_embed = (q * cos) + (rotate_half(q) * sin)",
        "k_embed = (k * cos) + (rotate_half(k) * sin)",
        "return q_embed, k_embed",
    ]
    assert lines(modeling_llama.rotate_half) == [
        "x1 = x[..., : x.shape[-1] // 2]",
        "x2 = x[..., x.shape[-1] // 2 :]",
        "return torch.cat((-x2, x1), dim=-1)",
    ]
    arguments = inspect.signature(modeling_llama.apply_rotary_pos_emb).parameters.values()
    assert [str(argument) for argument in arguments] == ["q", "k", "cos", "sin", "unsqueeze_dim=1"]
