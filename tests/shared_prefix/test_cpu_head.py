"""The head on a CPU beside TRL's own function: numbers of each token, and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from dpo_recipes.benchmark.steps import Held
from dpo_recipes.shared_prefix.cpu_head import TILE_POSITIONS, TILE_WORDS, CPUHead, cpu_head, keeps_weights

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
# Several tiles of either kind, the last ones not full.
POSITIONS, WORDS, WIDTH = TILE_POSITIONS + 30, 2 * TILE_WORDS + 100, 16
WIDE = 140  # so that backward may have what forward has exponentiated


def inputs(dtype=torch.float32, positions=POSITIONS, words=WORDS, width=WIDTH):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator)
    weight = torch.randn(words, width, generator=generator) / width**0.5  # logits of one nat or so, as a model's
    targets = torch.randint(0, words, (positions,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def both(hidden, weight, targets, bias=None, temperature=1.0, cap=None, scale=1.0, outputs=OUTPUTS):
    """What TRL's function returns, in tiles of our width, and what ours does."""
    given = (hidden, weight, bias, targets, temperature, TILE_WORDS, cap, scale, outputs)
    return ChunkedLogProbFunction.apply(*given), CPUHead.apply(*given)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True)


def distance(a, b):
    """Of b from a, relative."""
    return ((a - b).double().norm() / a.double().norm()).item()


@pytest.mark.parametrize("width", [WIDTH, WIDE])
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.25)])
def test_numbers_and_gradients_are_trls(temperature, scale, width):
    hidden, weight, targets = inputs(width=width)
    theirs, ours = both(hidden, weight, targets, temperature=temperature, scale=scale)
    for a, b in zip(theirs[:4], ours[:4], strict=True):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6)
    assert torch.equal(theirs[4], ours[4])

    of_tokens = torch.linspace(-1, 1, POSITIONS)
    for a, b in zip(
        gradients((theirs[0] * of_tokens).sum(), hidden, weight),
        gradients((ours[0] * of_tokens).sum(), hidden, weight),
        strict=True,
    ):
        assert distance(a, b) < 1e-6


@pytest.mark.parametrize("width", [WIDTH, WIDE])
def test_log_probabilities_and_gradients_are_those_of_a_float64_formula(width):
    hidden, weight, targets = inputs(width=width)
    _, ours = both(hidden, weight, targets)
    exact_hidden, exact_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = -F.cross_entropy(exact_hidden @ exact_weight.t(), targets, reduction="none")
    torch.testing.assert_close(ours[0].double(), exact, rtol=1e-6, atol=1e-5)

    of_tokens = torch.linspace(-1, 1, POSITIONS)
    exact_gradients = gradients((exact * of_tokens).sum(), exact_hidden, exact_weight)
    our_gradients = gradients((ours[0] * of_tokens).sum(), hidden, weight)
    for a, b in zip(exact_gradients, our_gradients, strict=True):
        assert distance(a, b) < 1e-6


def test_a_frozen_head_makes_logits_once_and_a_trained_one_twice(monkeypatch):
    products = []
    product = torch.mm

    def counting(a, b, **given):
        products.append(b.shape)
        return product(a, b, **given)

    monkeypatch.setattr(torch, "mm", counting)
    counts = {}
    for trains_head in (False, True):
        hidden, weight, targets = inputs()
        weight.requires_grad_(trains_head)
        products.clear()
        log_probs = CPUHead.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
        log_probs.sum().backward()
        counts[trains_head] = len(products)
        assert (weight.grad is not None) == trains_head
    tiles = 2 * 3
    assert counts == {False: tiles, True: 2 * tiles}


def test_of_few_positions_logits_are_made_once_and_what_came_of_them_is_kept(monkeypatch):
    products = []
    product = torch.mm

    def counting(*given, **options):
        products.append(1)
        return product(*given, **options)

    monkeypatch.setattr(torch, "mm", counting)
    most = 4 * WIDE  # rows: as large as head, gradient and two states of Adam
    for positions, is_kept in ((most, True), (most + 1, False)):
        hidden, weight, targets = inputs(positions=positions, width=WIDE)
        products.clear()
        with Held(torch.nn.ParameterList([hidden, weight])) as held:
            log_probs = CPUHead.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
        log_probs.sum().backward()
        assert (held.bytes >= 4 * positions * WORDS) == is_kept
        assert len(products) == (1 if is_kept else 2) * 2 * 3  # tiles


def test_it_is_kept_of_32_bits_alone():
    assert keeps_weights(10, WIDE, torch.float32) and not keeps_weights(10, WIDE, torch.bfloat16)


def test_logits_that_grow_from_tile_to_tile_are_kept_as_exactly():
    """What is kept of the first tile is relative to the largest logit by then, which is far below the last."""
    hidden, weight, targets = inputs(width=WIDE)
    with torch.no_grad():
        hidden[:, 0] = 1
        weight[:, 0] = torch.linspace(-60, 60, WORDS)
    theirs, ours = both(hidden, weight, targets)
    for a, b in zip(gradients(theirs[0].sum(), hidden, weight), gradients(ours[0].sum(), hidden, weight), strict=True):
        assert torch.isfinite(b).all() and distance(a, b) < 1e-6


def test_without_gradients_nothing_is_kept_for_them(monkeypatch):
    """As in an evaluation, where the head is one that is trained."""
    hidden, weight, targets = inputs(width=WIDE)
    shapes = []
    empty = torch.empty

    def noting(*shape, **given):
        shapes.append(shape)
        return empty(*shape, **given)

    monkeypatch.setattr(torch, "empty", noting)
    with torch.no_grad():
        # As the hidden state of a forward without gradients, which has none either
        theirs, ours = both(hidden.detach(), weight, targets)
    assert shapes and (POSITIONS, WORDS) not in shapes
    assert not ours[0].requires_grad
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=2e-6)


def test_what_is_not_asked_for_is_none():
    ours = CPUHead.apply(*inputs()[:2], None, inputs()[2], 1.0, 32768, None, 1.0, ("log_probs", "mean_logits"))
    assert [value is None for value in ours] == [False, True, True, False, True]


def test_of_several_maxima_the_first_counts():
    hidden = torch.ones(6, WIDTH)
    weight = torch.zeros(3 * TILE_WORDS, WIDTH)
    maxima = [5, 9, TILE_WORDS + 3]
    weight[maxima] = 1.0
    targets = torch.tensor([*maxima, 0, 4, 2 * TILE_WORDS])
    theirs, ours = both(hidden, weight, targets)
    assert ours[4].tolist() == theirs[4].tolist() == [True, False, False, False, False, False]


def test_in_16_bits_numbers_are_trls_and_gradients_no_further_from_the_truth():
    hidden, weight, targets = inputs(torch.bfloat16)
    theirs, ours = both(hidden, weight, targets)
    for a, b in zip(theirs[:4], ours[:4], strict=True):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6)

    of_tokens = torch.linspace(-1, 1, POSITIONS)
    exact_hidden, exact_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = -F.cross_entropy(exact_hidden @ exact_weight.t(), targets, reduction="none")
    exact_gradients = gradients((exact * of_tokens).sum(), exact_hidden, exact_weight)
    their_gradients = gradients((theirs[0] * of_tokens).sum(), hidden, weight)
    our_gradients = gradients((ours[0] * of_tokens).sum(), hidden, weight)
    for exact_one, a, b in zip(exact_gradients, their_gradients, our_gradients, strict=True):
        assert distance(exact_one, b) <= 1.05 * distance(exact_one, a)


def test_autocast_decides_the_type_of_the_product_and_of_no_sum():
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = both(hidden, weight, targets)
    for a, b in zip(theirs[:4], ours[:4], strict=True):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6)
    assert not torch.equal(ours[0], both(hidden, weight, targets)[1][0])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "none"), (torch.bfloat16, "bf16")])
def test_sums_of_words_are_rounded_as_the_product_is_and_the_setting_comes_back(monkeypatch, dtype, precision):
    """A CPU with units for bf16 uses them where TRL rounds to it, and for nothing else."""
    matmul = torch.backends.mkldnn.matmul
    seen = []
    addmm_ = torch.Tensor.addmm_

    def noting(*given, **options):
        seen.append(matmul.fp32_precision)
        return addmm_(*given, **options)

    monkeypatch.setattr(torch.Tensor, "addmm_", noting)
    assert matmul.fp32_precision == "none"
    hidden, weight, targets = inputs(dtype)
    CPUHead.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0].sum().backward()
    assert set(seen) == {precision} and matmul.fp32_precision == "none"
    assert torch.get_float32_matmul_precision() == "highest"  # which torch refuses to say where settings are at odds


@pytest.mark.parametrize("width", [WIDTH, WIDE])
def test_the_gradient_of_the_entropy_is_trls(width):
    hidden, weight, targets = inputs(width=width)
    theirs, ours = both(hidden, weight, targets, scale=0.5)
    their_gradients = gradients((theirs[0] + theirs[1].square()).sum(), hidden, weight)
    our_gradients = gradients((ours[0] + ours[1].square()).sum(), hidden, weight)
    for a, b in zip(their_gradients, our_gradients, strict=True):
        assert distance(a, b) < 1e-6


def test_a_bias_and_a_cap_on_the_logits_are_left_to_trl():
    hidden, weight, targets = inputs()
    bias = torch.linspace(-1, 1, WORDS, requires_grad=True)
    theirs, ours = both(hidden, weight, targets, bias=bias, cap=5.0)
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)
    their_gradients = gradients(theirs[0].sum(), hidden, weight, bias)
    our_gradients = gradients(ours[0].sum(), hidden, weight, bias)
    for a, b in zip(their_gradients, our_gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_scored_has_no_numbers_and_no_gradient(dtype):
    hidden, weight, targets = inputs(dtype, positions=0)
    log_probs = CPUHead.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, OUTPUTS)[0]
    assert log_probs.shape == (0,)
    of_hidden, of_weight = gradients(log_probs.sum(), hidden, weight)
    assert of_hidden.shape == hidden.shape and not of_weight.any()


def test_trls_function_comes_back_whatever_happens():
    of_trl = utils._ChunkedLogProbFunction
    with pytest.raises(KeyError), cpu_head(torch.device("cpu")):
        assert utils._ChunkedLogProbFunction is CPUHead
        raise KeyError
    assert utils._ChunkedLogProbFunction is of_trl
    with cpu_head(torch.device("cuda")):
        assert utils._ChunkedLogProbFunction is of_trl
