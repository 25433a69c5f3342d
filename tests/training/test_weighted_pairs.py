"""The weights of pairs: a batch's loss and gradient against formulas, and TRL's own bits where all weights are 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from making import make_pairs, perturb
from making_trainers import HELD_OUT, build, dpo, history

from dpo_recipes import RecipeError
from dpo_recipes.data.findings import weight_findings
from dpo_recipes.losses.trl_losses import COUPLED_LOSSES

pytestmark = pytest.mark.usefixtures("cache")

WEIGHTS = [0.5, 2.0, 0.5, 1.0, 0.25, 3.0, 1.0, 0.5]


def weighted(weights) -> list[dict]:
    rows = make_pairs(24)
    return [{**row, "weight": weights[number % len(weights)]} for number, row in enumerate(rows)]


def trained_a_little(tiny, **changes):
    """A trainer whose policy differs from its reference, and one batch of 8 pairs with WEIGHTS."""
    trainer = build(tiny(), train=weighted(WEIGHTS), micro_batch_size=8, **changes)
    perturb(trainer.model, 2.0)
    trainer.state.global_step = 1  # the start has been looked at
    trainer.model.eval()  # which records the log-probabilities
    examples = [trainer.train_dataset[number] for number in range(8)]
    return trainer, trainer._prepare_inputs(trainer.data_collator(examples))


def gradient(trainer, loss) -> torch.Tensor:
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def log1p_exp(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        ({"loss": "sigmoid"}, lambda h: log1p_exp(-0.1 * h)),
        ({"loss": dpo}, lambda h: log1p_exp(-0.1 * h)),
        ({"loss": {"hinge": 1.0, "ipo_sum": 0.5}}, lambda h: max(0, 1 - 0.1 * h) + 0.5 * (h - 5) ** 2),
        (
            {"loss": {"robust": 0.7, "exo_pair": 0.3}, "trl": {"label_smoothing": 0.1}},
            lambda h: (
                0.7 * (0.9 * log1p_exp(-0.1 * h) - 0.1 * log1p_exp(0.1 * h)) / 0.8
                + 0.3 * (-log1p_exp(-0.1 * h) - math.log(0.9)) / (1 + math.exp(-0.1 * h))
                + 0.3 * (-log1p_exp(0.1 * h) - math.log(0.1)) / (1 + math.exp(0.1 * h))
            ),
        ),
        ({"pair_sharing": "require"}, lambda h: log1p_exp(-0.1 * h)),
    ],
    ids=["TRL's", "a plugin", "a mix", "two of TRL's", "pairs read once"],
)
def test_a_batchs_loss_is_the_float64_formula_and_its_gradient_that_of_each_pair_alone(tiny, changes, formula):
    trainer, batch = trained_a_little(tiny, **changes)
    trainer.recorded = []
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    [pairs] = trainer.recorded
    trainer.recorded = None

    margins = pairs.h.double().tolist()
    assert max(abs(h) for h in margins) > 1
    expected = sum(weight * formula(h) for weight, h in zip(WEIGHTS, margins, strict=True)) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    whole = gradient(trainer, loss)
    of_each = torch.zeros_like(whole)
    for number, weight in enumerate(WEIGHTS):
        example = {**trainer.train_dataset[number], "weight": 1.0}
        alone = trainer._prepare_inputs(trainer.data_collator([example]))
        loss_of_pair = trainer._compute_loss(trainer.model, alone, return_outputs=False)
        of_each += weight * gradient(trainer, loss_of_pair) / 8
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(whole, of_each, rtol=1e-4, atol=1e-6 * of_each.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", dpo], ids=["TRL's", "a plugin"])
def test_weights_of_1_are_bit_for_bit_none(tiny, loss):
    runs = []
    for rows in (make_pairs(24), weighted([1.0])):
        trainer = build(tiny(), train=rows, loss=loss)
        trainer.train()
        runs.append((history(trainer, "loss", "grad_norm", "rewards/margins"), trainer.model.state_dict()))
    (logs, parameters), (weighted_logs, weighted_parameters) = runs
    assert logs == weighted_logs and len(logs) == 4
    assert all(torch.equal(parameters[name], weighted_parameters[name]) for name in parameters)


@pytest.mark.slow
def test_accumulated_weights_give_the_gradient_of_the_whole_batch(tiny):
    """A weight of 2 also doubles the gradient where it is all pairs': nothing is divided by the sum of the weights."""
    runs = []
    for weights, micro in ((WEIGHTS, 8), (WEIGHTS, 2), ([1.0], 8), ([2.0], 8)):
        trl = {"max_steps": 2, "max_grad_norm": 1e9}
        trainer = build(tiny(), train=weighted(weights), micro_batch_size=micro, trl=trl)
        trainer.train()
        runs.append(torch.tensor(history(trainer, "loss", "grad_norm")))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(2 * runs[2][0], runs[3][0], rtol=1e-5, atol=1e-6)  # before the first update


def test_what_is_logged_of_a_weighted_batch_is_logged_once_and_of_the_pairs_themselves(tiny):
    trainer, batch = trained_a_little(tiny)
    trainer._compute_loss(trainer.model, batch, return_outputs=False)
    of_weighted = {name: list(values) for name, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    plain = {name: value for name, value in batch.items() if name != "weight"}
    trainer._compute_loss(trainer.model, plain, return_outputs=False)
    assert of_weighted == trainer._metrics["eval"] and len(of_weighted["rewards/margins"]) == 8


def test_the_held_out_loss_weighs_its_pairs_too(tiny):
    trainer = build(tiny(), held_out=HELD_OUT[:8])
    trainer.eval_dataset = trainer.eval_dataset.add_column("weight", [0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0])
    metrics, pairs = trainer.held_out()
    assert metrics["loss"] == pytest.approx(0.75 * math.log(2), rel=1e-5)
    assert len(pairs.h) == 8 and metrics["rewards/accuracies"] == 0.5


@pytest.mark.slow
def test_the_routers_loss_of_a_mixture_of_experts_is_not_weighted(tiny):
    folder = tiny("mixtral", num_local_experts=4, num_experts_per_tok=2)
    losses = []
    for weights in ([1.0], [3.0], [1.0, 5.0]):
        trainer = build(folder, train=weighted(weights), micro_batch_size=4, adapter=None)
        trainer.model.eval()
        assert trainer.aux_loss_enabled
        examples = [trainer.train_dataset[number] for number in range(4)]
        batch = trainer._prepare_inputs(trainer.data_collator(examples))
        losses.append(trainer._compute_loss(trainer.model, batch, return_outputs=False).item())
    router = losses[0] - math.log(2)
    assert router > 1e-4
    of_mean_weight_3 = 3 * math.log(2) + router
    assert losses[1:] == pytest.approx([of_mean_weight_3, of_mean_weight_3], rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_couples_pairs_cannot_be_weighted(tiny):
    trainer = build(tiny(), train=weighted(WEIGHTS), loss={"sigmoid": 1.0, "sft": 0.1}, micro_batch_size=8)
    with pytest.raises(RecipeError, match="loss='sft' is of all pairs of a batch together, so that none has a loss of"):
        trainer.train()
    for loss in sorted(COUPLED_LOSSES):
        [finding] = weight_findings(np.array(WEIGHTS), [loss])
        assert finding.level == "fail" and f"loss={loss!r} is of all pairs" in finding.text


@pytest.mark.parametrize(("scale", "level"), [(1, "pass"), (0.3, "warn"), (10, "warn")])
def test_weights_are_said_and_an_average_far_from_1_is_a_warning(scale, level):
    [finding] = weight_findings(scale * np.array(WEIGHTS), [])
    assert (finding.level, finding.name) == (level, "weights")
    assert ("mind the learning rate" in finding.text) == (level == "warn")
    if scale == 1:
        assert finding.text.startswith("Pairs weigh 0.25 to 3, on average 1.09; each pair's loss is multiplied by its")
