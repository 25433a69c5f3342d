"""The maths of a step is that of the recipe, whatever was chosen for the device: loss and gradient, step by step."""

from __future__ import annotations

import pytest
import torch
from making import make_pairs
from making_trainers import build
from transformers import TrainerCallback

from dpo_recipes import LoRA
from dpo_recipes.planning.chosen_settings import Situation, choose
from dpo_recipes.recipe.choices import with_choices
from dpo_recipes.recipe.resolve import Device, resolve

pytestmark = pytest.mark.usefixtures("cache")


class Gradients(TrainerCallback):
    """The gradient of each step, before the optimiser takes it."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, *_, model, **__):
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(parts).clone())


def steps_of(trainer) -> list[tuple[float, torch.Tensor]]:
    """(loss, gradient) of each step."""
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return list(zip(losses, seen.gradients, strict=True))


def chosen_on_a_gpu(recipe, train_pairs: int):
    """A recipe as it would run where anything fits."""
    situation = Situation(
        device=Device("cuda", bf16=True, processes=1),
        memory=10**12,
        config={"model_type": "llama"},
        train_pairs=train_pairs,
        longest=None,
        planned=lambda _: type("Plan", (), {"peak": 10**9}),
        why_padded=None,
    )
    return with_choices(recipe, choose(recipe, situation).choices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "pair_sharing", "left_over"),
    [(LoRA(r=4), "auto", 6), (LoRA(r=4), "off", 4), (None, "auto", 4), (None, "off", 6)],
)
def test_loss_and_gradient_of_each_step_are_those_of_what_is_inherited(tiny, adapter, pair_sharing, left_over):
    """Four pairs a forward with activations computed twice, against as many as make a step with all of them kept.

    With 6 pairs left over TRL's mean would weigh the last two twice, in micro-batches of four: the inherited size is
    then one that weighs all alike, as the chosen one does.
    """
    rows = make_pairs(16 + left_over)
    trl = {"max_steps": 3, "optim": "sgd", "gradient_checkpointing": None}
    given = {"adapter": adapter, "pair_sharing": pair_sharing, "train": rows, "learning_rate": 0.1, "trl": trl}
    inherited = build(tiny(), **given, micro_batch_size=4 if left_over == 4 else 2)
    assert inherited.args.gradient_checkpointing

    chosen = chosen_on_a_gpu(build(tiny(), **given).recipe, len(rows))
    assert (resolve(chosen, Device()).micro_batch_size, chosen.trl["gradient_checkpointing"]) == (8, False)
    changed = build(tiny(), **given | {"trl": chosen.trl}, micro_batch_size=chosen.micro_batch_size)

    seen = list(zip(steps_of(inherited), steps_of(changed), strict=True))
    assert len(seen) == 3
    for (loss, gradient), (other_loss, other_gradient) in seen:
        assert other_loss == pytest.approx(loss, abs=1e-6)
        assert (other_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_trls_optimiser_is_the_fused_one_and_steps_as_the_plain_one_does():
    """What a recipe inherits is one kernel for all weights; its steps are those of AdamW's formula to rounding."""
    from transformers import TrainingArguments

    assert TrainingArguments.__dataclass_fields__["optim"].default == "adamw_torch_fused"
    steps = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 32))
        optimiser = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01, fused=fused)
        for _ in range(20):
            weight.grad = torch.sin(weight.detach() * 3)
            optimiser.step()
        steps.append(weight.detach())
    assert torch.allclose(steps[0], steps[1], atol=1e-6)


@pytest.mark.slow
def test_a_run_takes_the_fused_optimiser_unless_the_recipe_sets_another(tiny):
    trainer = build(tiny())
    assert trainer.create_optimizer().defaults["fused"] is True
    trainer = build(tiny(), trl={"optim": "adamw_torch"})
    assert not trainer.create_optimizer().defaults["fused"]
