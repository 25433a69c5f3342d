"""RecipeTrainer against bare TRL and against formulas: the maths is TRL's, and what is ours is what it says."""

from __future__ import annotations

import json
import math

import making_trainers
import pytest
import torch
from making import perturb
from making_trainers import HELD_OUT, dpo, history

from dpo_recipes import LoRA, RecipeError
from dpo_recipes.evaluation.pair_numbers import pair_numbers
from dpo_recipes.guard.start import loss_at_start
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.losses.trl_losses import TRL_LOSSES, readers_of
from dpo_recipes.training import trainer as ours

pytestmark = pytest.mark.usefixtures("cache")


def build(folder, **changes):
    return making_trainers.build(folder, held_out=HELD_OUT[:8], **changes)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "apo_zero", {"sigmoid": 1.0, "sft": 0.5}])
def test_a_trl_loss_runs_bit_for_bit_as_in_bare_trl_over_20_steps(tiny, loss):
    # In each step policy and reference are of one batch, so that before the first update every pair is a tie.
    trl = {"max_steps": 20, "precompute_ref_log_probs": False}
    changes = {"loss": loss, "trl": trl, "global_batch_size": 4, "micro_batch_size": 2}
    bare = build(tiny(), cls=ours.DPOTrainer, **changes)
    bare.train()
    mine = build(tiny(), **changes)
    mine.held_out()  # an evaluation before training must not shift anything
    mine.train()
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy")
    assert len(history(mine, *names)) == 20
    assert history(mine, *names) == history(bare, *names)
    # TRL counts a tie as lost, and before the first update every pair is one.
    accuracies, of_bare = history(mine, "rewards/accuracies"), history(bare, "rewards/accuracies")
    assert accuracies[1:] == of_bare[1:] and (accuracies[0], of_bare[0]) == ([0.5], [0.0])
    weights = zip(bare.model.state_dict().items(), mine.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None], ids=["adapter off", "precomputed"])
def test_what_is_logged_of_the_held_out_pairs_is_what_evaluation_json_says(tiny, adapter):
    """Also where a reference that was computed in other batches rounds otherwise, and the last batch is smaller."""
    trainer = build(tiny(), adapter=adapter, micro_batch_size=4, trl={"per_device_eval_batch_size": 3})
    metrics, first = trainer.held_out()
    before = pair_numbers(metrics, first, 0.1, first)
    logged_before = trainer.state.log_history[-1]  # which training begins anew
    trainer.train()
    metrics, last = trainer.held_out()
    after = pair_numbers(metrics, last, 0.1, first)

    names = ("accuracies", "margins", "chosen", "rejected")
    for log, numbers in ((logged_before, before), (trainer.state.log_history[-1], after)):
        for name in (*(f"rewards/{name}" for name in names), "logps/chosen", "logps/rejected"):
            assert log[f"eval_{name}"] == pytest.approx(numbers[name], rel=1e-5, abs=1e-6), name
    assert before["rewards/accuracies"] == 0.5 == history(trainer, "rewards/accuracies")[0][0]


@pytest.mark.slow
def test_full_fine_tuning_runs_bit_for_bit_as_in_bare_trl_with_a_precomputed_reference(tiny):
    changes = {"adapter": None, "trl": {"max_steps": 6}}
    bare = build(tiny(), cls=ours.DPOTrainer, **changes)
    bare.train()
    mine = build(tiny(), **changes)
    mine.train()
    assert mine.ref_model is None and bare.ref_model is None
    assert history(mine, "loss", "rewards/margins") == history(bare, "loss", "rewards/margins")


@pytest.mark.slow
def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(tiny):
    runs = []
    for micro in (8, 2):
        trainer = build(tiny(), micro_batch_size=micro)
        trainer.train()
        runs.append(torch.tensor(history(trainer, "loss", "grad_norm")))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_plugin_dpo_follows_trls_sigmoid_within_3e_7_at_each_step(tiny):
    runs = []
    for loss in ("sigmoid", dpo):
        trainer = build(tiny(), loss=loss, trl={"max_steps": 8})
        trainer.train()
        runs.append(torch.tensor(history(trainer, "loss", "rewards/margins")))
    assert (runs[0] - runs[1]).abs().max().item() <= 3e-7


def first_loss(tiny, **changes) -> tuple[float, PairLogps]:
    """The loss of one batch of a policy that has moved, and the log-probabilities it was computed from."""
    trainer = build(tiny(), **changes)
    perturb(trainer.model, 2.0)
    trainer.state.global_step = 1  # the start has been looked at
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    trainer.recorded = []
    with torch.no_grad():
        return trainer._compute_loss(trainer.model, batch, return_outputs=False).item(), trainer.recorded[0]


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        (
            {"loss": "cdpo", "loss_args": {"label_smoothing": 0.2}},
            lambda h, b: 0.8 * math.log1p(math.exp(-b * h)) + 0.2 * math.log1p(math.exp(b * h)),
        ),
        ({"loss": "ipo_sum"}, lambda h, b: (h - 1 / (2 * b)) ** 2),
        (
            {"loss": {"sigmoid": 0.7, "ipo_sum": 0.01}},
            lambda h, b: 0.7 * math.log1p(math.exp(-b * h)) + 0.01 * (h - 1 / (2 * b)) ** 2,
        ),
        (
            {"loss": {"cdpo": 1.0, "hinge": 2.0}, "loss_args": {"label_smoothing": 0.1}},
            lambda h, b: 0.9 * math.log1p(math.exp(-b * h)) + 0.1 * math.log1p(math.exp(b * h)) + 2 * max(0, 1 - b * h),
        ),
    ],
)
def test_a_plugin_or_a_mix_is_the_float64_formula_of_what_trl_measured(tiny, changes, formula):
    loss, pairs = first_loss(tiny, **changes)
    expected = sum(formula(h, 0.1) for h in pairs.h.double().tolist()) / len(pairs.h)
    assert pairs.h.abs().max() > 0.01
    assert loss == pytest.approx(expected, rel=1e-6)


def test_reference_free_reads_the_policy_alone(tiny):
    loss, pairs = first_loss(tiny, loss="reference_free")
    margins = (pairs.policy_chosen - pairs.policy_rejected).double().tolist()
    assert loss == pytest.approx(
        sum(math.log1p(math.exp(-0.1 * m)) if m > -300 else -0.1 * m for m in margins) / len(margins), rel=1e-6
    )


def test_pairs_hold_the_log_probabilities_that_a_plain_forward_gives(tiny):
    trainer = build(tiny())
    perturb(trainer.model)
    _, pairs = trainer.held_out()
    row = trainer.eval_dataset[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])[:, :96]
    with torch.no_grad():
        logp = trainer.model.eval()(ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    start = len(row["prompt_ids"]) - 1
    assert pairs.policy_chosen[0].item() == pytest.approx(logp[start:].sum().item(), rel=1e-5)
    assert pairs.chosen_tokens[0].item() == ids.shape[1] - len(row["prompt_ids"])
    assert len(pairs.h) == 8


@pytest.mark.slow
def test_ld_alpha_weighs_both_sides_alike_so_that_rewards_start_at_zero(tiny):
    trainer = build(tiny(), trl={"ld_alpha": 0.3})
    metrics, pairs = trainer.held_out()
    assert pairs.h.abs().max().item() < 1e-4 and metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    whole = build(tiny()).held_out()[1]
    assert (pairs.policy_chosen > whole.policy_chosen + 1).any()


# ---------------------------------------------------------------------------------------------- what must stop a run


@pytest.mark.slow
def test_every_loss_starts_at_its_declared_value(tiny):
    with_a_value = [name for name, loss in TRL_LOSSES.items() if loss.at_start is not None]
    assert len(with_a_value) == 14
    for loss in [*with_a_value, "cdpo", "ipo_sum"]:
        trl = {}
        if loss in readers_of("label_smoothing"):
            trl["label_smoothing"] = 0.1
        trainer = build(tiny(), loss=loss, micro_batch_size=4, trl=trl)
        metrics, _ = trainer.held_out()
        assert trainer.health.declared_loss == loss_at_start(trainer.recipe)
        assert metrics["loss"] == pytest.approx(trainer.health.declared_loss, rel=1e-5), loss


@pytest.mark.slow
def test_a_reference_that_is_not_the_start_stops_before_the_first_update(tiny):
    trainer = build(tiny())
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    with pytest.raises(RecipeError, match="policy must equal its reference, but they differ by .* a wrong reference"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_dropout_that_is_on_stops_before_the_first_update(tiny):
    model = tiny(attention_dropout=0.5)
    trainer = build(model, adapter=None, trl={"disable_dropout": False})
    with pytest.raises(RecipeError, match="dropout that is still on"):
        trainer.train()


@pytest.mark.slow
def test_a_loss_that_is_not_what_it_declares_stops(tiny):
    def wrong(pairs, *, beta):
        return dpo(pairs, beta=beta) + 0.5

    wrong.at_start = lambda beta: math.log(2)
    with pytest.raises(RecipeError, match="the loss must be 0.693147, but it is 1.19"):
        build(tiny(), loss=wrong).train()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None])
def test_a_learning_rate_of_nothing_stops(tiny, adapter):
    trl = {"lr_scheduler_type": "constant", "max_steps": 6}
    with pytest.raises(RecipeError, match="No trainable tensor of .* has changed"):
        build(tiny(), adapter=adapter, learning_rate=1e-60, trl=trl).train()


@pytest.mark.slow
def test_frozen_weights_stop(tiny):
    trainer = build(tiny())
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("lora_A" in name)  # B is 0, so that A has no gradient, and B is frozen
    with pytest.raises(RecipeError, match="The gradient was exactly 0 in the first"):
        trainer.train()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_at_once_with_the_decoded_pair(tiny):
    def broken(pairs, *, beta):
        return dpo(pairs, beta=beta) * torch.where(pairs.chosen_tokens > 0, torch.nan, 1.0)

    with pytest.raises(RecipeError) as stopped:
        build(tiny(), loss=broken).train()
    assert "The loss is nan at step 0" in str(stopped.value)
    assert (
        "--- chosen" in str(stopped.value)
        and "where is the" in str(stopped.value)
        and "no<|im_end|>" in str(stopped.value)
    )


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops(tiny):
    trainer = build(tiny())
    next(p for n, p in trainer.model.named_parameters() if "lora_A" in n).register_hook(lambda g: g * torch.nan)
    with pytest.raises(RecipeError, match="The gradient norm is nan at step 1, the loss is finite"):
        trainer.train()


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.slow
def test_the_precomputed_reference_does_not_go_stale_when_ld_alpha_changes(tiny):
    values = []
    for alpha in (None, 0.5, None):
        trl = {"precompute_ref_log_probs": True, "ld_alpha": alpha}
        trainer = build(tiny(), max_length=None, trl=trl)
        values.append(trainer.train_dataset["ref_chosen_logps"][:])
    assert values[0] == values[2] and values[0] != values[1]


def test_nothing_is_sent(tiny, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse, raising=False)
    monkeypatch.delenv("CI", raising=False)
    trainer = build(tiny())
    assert trainer.args.report_to == [] and json.loads(trainer.args.to_json_string())["push_to_hub"] is False


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None], ids=["lora", "full"])
def test_reading_each_pair_once_gives_the_same_losses(tiny, adapter):
    said: list[str] = []
    changes = {"adapter": adapter, "global_batch_size": 8, "micro_batch_size": 4, "max_length": 80}
    plain, shared = (
        build(tiny(), pair_sharing=how, more={"say": said.append}, **changes) for how in ("off", "require")
    )
    for trainer in (plain, shared):
        trainer.train()
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy")
    for one, other in zip(history(plain, *names), history(shared, *names), strict=True):
        assert other == pytest.approx(one, rel=2e-4, abs=2e-6)
    [line] = [line for line in said if line.startswith("Each pair is read once: ")]
    assert "padded tokens; log-probabilities differ by" in line

    receipt = shared.pair_reading()
    assert receipt["read_once"] and receipt["why_not"] is None
    assert 0 < receipt["mean_difference"] <= receipt["largest_difference"] < 1e-5
    assert 0 < receipt["tokens"] < receipt["padded_tokens"]


@pytest.mark.slow
def test_in_16_bits_on_a_cpu_every_product_has_a_round_number_of_tokens(tiny):
    """As torch writes a program for each number of rows that is new. Evaluation and reference are read so, too."""
    rows: dict[str, set[int]] = {"bfloat16": set(), "float32": set()}
    for dtype, numbers in rows.items():
        trainer = build(tiny(), pair_sharing="require", dtype=dtype, max_length=200)

        def note(module, args, output, numbers=numbers):
            if args[0].dim() == 3 and args[0].size(0) == 1:  # a row of pairs; not TRL's own two rows of each
                numbers.add(args[0].size(1))

        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(note)
        trainer.held_out()
        trainer.train()
    assert len(rows["bfloat16"]) > 1 and all(number % 32 == 0 for number in rows["bfloat16"])
    assert any(number % 32 for number in rows["float32"])


def test_where_pairs_cannot_be_read_once_that_is_said_or_refused(tiny):
    said: list[str] = []
    cost = "That is 9 tokens an epoch, in place of 5."
    trainer = build(tiny("bloom"), pair_sharing="auto", more={"say": said.append, "cost_of_reading_twice": cost})
    reason = "it has attention classes of its own"
    assert said == [f"Each pair is read twice and padded, as in TRL: {reason}. {cost}"]
    receipt = trainer.pair_reading()
    assert (receipt["read_once"], receipt["why_not"], receipt["largest_difference"]) == (False, reason, None)
    with pytest.raises(RecipeError, match="attention classes of its own. pair_sharing='auto'"):
        build(tiny("bloom"), pair_sharing="require")


def test_why_pairs_are_not_shared_is_said_once_where_the_reference_is_computed_beforehand(tiny):
    """TRL asks for the reference of each split while the trainer is being made, and models are asked before each."""
    sentences: list[str] = []
    build(tiny("bloom"), adapter=None, pair_sharing="auto", more={"say": sentences.append})
    assert len(sentences) == 1
    assert "read twice and padded" in sentences[0]


@pytest.mark.slow
def test_the_parameters_are_counted_without_a_reference_copy(tiny):
    trainable, total = build(tiny(), adapter=LoRA(r=4)).parameter_counts()
    base = build(tiny(), adapter=None).parameter_counts()
    assert base[0] == base[1]
    assert total == base[1] + trainable
