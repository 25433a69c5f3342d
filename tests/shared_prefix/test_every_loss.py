"""TRL's losses on every architecture, over pairs that are whole or cut from either side, in float32.

A model is asked once and TRL's own loss code many times, about the output that it has given.
"""

from __future__ import annotations

import pytest
import torch
from making import perturb
from reading_pairs import ALL, load, off, two
from test_forward_in_trainer import trainer
from trl import DPOTrainer

from dpo_recipes.losses.trl_losses import TRL_LOSSES

KINDS = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "phi",
    "olmo2",
    "gpt_neox",
    "smollm3",
    # Beyond the usual: scores that are capped without a kernel, and experts
    "gemma2",
    "mixtral",
]
# What a loss is computed with: DPOTrainer's attributes.
LOSSES = {loss: {"loss_types": [loss], "label_smoothing": 0.1} for loss in TRL_LOSSES}
LOSSES["sigmoid, ld_alpha"] = {"loss_types": ["sigmoid"], "ld_alpha": 0.3}
LOSSES["sigmoid, use_weighting"] = {"loss_types": ["sigmoid"], "use_weighting": True}
PLAIN = {"loss_weights": [1.0], "label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False}


@pytest.fixture(scope="module")
def trl(tiny, tmp_path_factory):
    """TRL's trainer, which only computes losses here."""
    made = trainer(DPOTrainer, tiny(), tmp_path_factory.mktemp("trl"))
    made.precompute_ref_logps = True  # "the batch carries the reference"
    return made


def read(model, inputs):
    """The output of TRL's call."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, use_cache=False)


def logps(trl, output, inputs):
    """(6,): what TRL sums of an output, in nats, chosen first."""
    return torch.cat(trl.compute_ref_log_probs(lambda **_: output, inputs)).double().detach()


def loss_and_gradient(trl, model, output, inputs, reference):
    """TRL's loss about an output that the model has given, beside the reference's log-probabilities, (6,)."""
    chosen, rejected = reference.chunk(2)
    given = inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = trl._compute_loss(lambda **_: output, given, False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def assert_same(trl, monkeypatch, folder, losses):
    """The losses and gradients of the trainer's pairs, at the same margins: see test_all_of_trls_losses_in_float32."""
    inputs = trl.data_collator([trl.train_dataset[index] for index in range(3)])
    reference, _, _ = two(load(folder))
    policy = load(folder)
    perturb(policy, 0.1)
    bare, mine, said = two(policy, require=True)
    with torch.no_grad():
        reference_output = read(reference, inputs)
    theirs, ours = read(bare, inputs), read(mine, inputs)
    assert "read once" in said[0]

    for loss in losses:
        for name, value in (PLAIN | LOSSES[loss]).items():
            monkeypatch.setattr(trl, name, value)
        reference_logps, their_logps, our_logps = (
            logps(trl, output, inputs) for output in (reference_output, theirs, ours)
        )
        last_bit = torch.finfo(torch.float32).eps * their_logps.abs()
        assert ((our_logps - their_logps).abs() <= 8 * last_bit).all()

        shift = our_logps - their_logps
        our_loss, our_gradient = loss_and_gradient(trl, mine, ours, inputs, reference_logps)
        their_loss, their_gradient = loss_and_gradient(trl, bare, theirs, inputs, reference_logps - shift)
        assert our_loss == pytest.approx(their_loss, rel=5e-6, abs=2e-6), loss
        assert their_gradient.norm() > 1e-3 and off(our_gradient, their_gradient) <= 5e-6, loss


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss(tiny, trl, monkeypatch, kind):
    assert_same(trl, monkeypatch, tiny(kind, **ALL[kind]), LOSSES)
    assert len(TRL_LOSSES) == 15


@pytest.mark.parametrize(("max_length", "mode"), [(70, "keep_start"), (40, "keep_end")])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_are_cut(tiny, trl, monkeypatch, kind, max_length, mode):
    monkeypatch.setattr(trl.data_collator, "max_length", max_length)
    monkeypatch.setattr(trl.data_collator, "truncation_mode", mode)
    assert_same(trl, monkeypatch, tiny(kind, **ALL[kind]), ["sigmoid", "ipo"])
