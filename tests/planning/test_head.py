"""The head on paper against the real ones, TRL's and ours on a CPU: the same bytes at the worst moment."""

from __future__ import annotations

import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trl.kernels import chunked_logprob

from dpo_recipes.planning.head import CPUHeadOnPaper, Head
from dpo_recipes.planning.live_bytes import Live
from dpo_recipes.shared_prefix.cpu_head import TILE_POSITIONS, TILE_WORDS, CPUHead


class Kernel:
    """In place of a Triton kernel, which allocates nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.mark.parametrize(("triton", "tile_words"), [(False, 32768), (False, 4096), (True, 32768)])
@pytest.mark.parametrize(
    ("positions", "width", "words", "dtype", "autocast", "trains"),
    [
        (1000, 256, 32000, torch.float32, False, False),
        (2000, 64, 300, torch.float32, False, True),
        (9000, 512, 50000, torch.bfloat16, False, False),
        pytest.param(9000, 512, 128000, torch.bfloat16, True, True, marks=pytest.mark.slow),
        (64, 2048, 40000, torch.bfloat16, False, True),
        (5000, 128, 64000, torch.float32, True, True),
    ],
)
def test_the_head_on_paper_allocates_what_trls_head_does(
    monkeypatch, triton, tile_words, positions, width, words, dtype, autocast, trains
):
    """Off Triton as it is; with Triton, whose kernels stay out and whose products are added in place."""
    if triton:
        monkeypatch.setattr(chunked_logprob, "_use_triton", lambda device: True)
        monkeypatch.setattr(chunked_logprob, "_addmm_fp32", lambda *args: None)
        monkeypatch.setattr(chunked_logprob, "triton", types.SimpleNamespace(cdiv=lambda a, b: 1), raising=False)
        for name in ("_forward_kernel", "_backward_kernel"):
            monkeypatch.setattr(chunked_logprob, name, Kernel())
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    peaks = []
    for paper in (True, False):
        with FakeTensorMode(), Live() as live, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = torch.empty(positions, width, dtype=dtype, requires_grad=True)
            weight = torch.empty(words, width, dtype=torch.float32 if autocast else dtype, requires_grad=trains)
            targets = torch.zeros(positions, dtype=torch.long)
            real = (hidden, weight, None, targets, 1.0, tile_words, None, 1.0, outputs)
            logps = (
                Head.apply(live, triton, tile_words, hidden, weight)
                if paper
                else chunked_logprob.ChunkedLogProbFunction.apply(*real)[0]
            )
            forward = live.worst[0]
            with torch.autocast("cpu", enabled=False):
                logps.sum().backward()
            peaks.append((forward, live.worst[0]))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


@pytest.mark.parametrize(
    ("positions", "width", "words", "dtype", "autocast", "trains"),
    [
        (600, 256, 8192, torch.float32, False, False),
        (600, 256, 8192, torch.float32, False, True),
        (1100, 256, 8192, torch.float32, False, True),
        (100, 64, 300, torch.float32, False, True),
        (700, 128, 5000, torch.bfloat16, False, False),
        (700, 128, 5000, torch.bfloat16, False, True),
        (700, 512, 5000, torch.float32, True, True),
    ],
)
def test_our_head_on_paper_allocates_what_it_does(positions, width, words, dtype, autocast, trains):
    """On real tensors, as where the targets are is looked up."""
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    peaks = []
    for paper in (True, False):
        with Live() as live, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = torch.zeros(positions, width, dtype=dtype, requires_grad=True)
            weight = torch.zeros(words, width, dtype=torch.float32 if autocast else dtype, requires_grad=trains)
            targets = torch.arange(positions) * 997 % words  # over the whole vocabulary, as they are in a text
            if paper:
                logps = CPUHeadOnPaper.apply(live, TILE_POSITIONS, TILE_WORDS, hidden, weight)
            else:
                logps = CPUHead.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, outputs)[0]
            forward = live.worst.total
            with torch.autocast("cpu", enabled=False):
                logps.sum().backward()
            peaks.append((forward, live.worst.total))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)
