"""RecipeTrainer against bare TRL and against formulas: the maths is TRL's, and what is ours is what it says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from making import make_pairs

from dpo_recipes import Data, LoRA, Recipe, RecipeError
from dpo_recipes.evaluation.pair_numbers import pair_numbers
from dpo_recipes.guard.start import loss_at_start
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.losses.trl_losses import TRL_LOSSES, readers_of
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.training import trainer as ours

FAST = {"gradient_checkpointing": False, "max_steps": 4}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """Another test may have left the same reference, computed in batches that round otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(folder, tmp_path, rows=None, cls=None, data=None, model=None, say=print, cost="", **changes):
    """A RecipeTrainer of a tiny recipe, or with `cls` bare TRL's trainer on the very same arguments.

    Each pair is read twice, as in TRL, unless `pair_sharing` says otherwise: in one row the numbers round otherwise.
    """
    given = {"adapter": LoRA(r=4), "global_batch_size": 8, "learning_rate": 1e-3, "max_length": 96, "trl": FAST}
    given["pair_sharing"] = "off"
    recipe = Recipe(model=str(folder), data=data or Data("unused"), **{**given, **changes})
    settings = resolve(recipe, Device())
    tokenizer = load_tokenizer(recipe, str(folder)).tokenizer
    rows = rows or make_pairs(24)
    arguments = {
        "model": model or load_weights(recipe, settings, str(folder)),
        "args": ours.config(dpo_arguments(recipe, settings, str(tmp_path / "out"))),
        "train_dataset": Dataset.from_list(rows),
        "eval_dataset": Dataset.from_list(make_pairs(8, seed=9)),
        "processing_class": tokenizer,
        "peft_config": peft_config(recipe.adapter),
    }
    if cls:
        return cls(**arguments)
    return ours.RecipeTrainer(recipe=recipe, settings=settings, say=say, cost_of_reading_twice=cost, **arguments)


def history(trainer, *names) -> list:
    return [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "apo_zero", {"sigmoid": 1.0, "sft": 0.5}])
def test_a_trl_loss_runs_bit_for_bit_as_in_bare_trl_over_20_steps(tiny, tmp_path, loss):
    # In each step policy and reference are of one batch, so that before the first update every pair is a tie.
    trl = FAST | {"max_steps": 20, "precompute_ref_log_probs": False}
    changes = {"loss": loss, "trl": trl, "global_batch_size": 4, "micro_batch_size": 2}
    bare = build(tiny(), tmp_path, cls=ours.DPOTrainer, **changes)
    bare.train()
    mine = build(tiny(), tmp_path, **changes)
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
def test_what_is_logged_of_the_held_out_pairs_is_what_evaluation_json_says(tiny, tmp_path, adapter):
    """Also where a reference that was computed in other batches rounds otherwise, and the last batch is smaller."""
    trainer = build(tiny(), tmp_path, adapter=adapter, micro_batch_size=4, trl=FAST | {"per_device_eval_batch_size": 3})
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
def test_full_fine_tuning_runs_bit_for_bit_as_in_bare_trl_with_a_precomputed_reference(tiny, tmp_path):
    changes = {"adapter": None, "trl": FAST | {"max_steps": 6}}
    bare = build(tiny(), tmp_path, cls=ours.DPOTrainer, **changes)
    bare.train()
    mine = build(tiny(), tmp_path, **changes)
    mine.train()
    assert mine.ref_model is None and bare.ref_model is None
    assert history(mine, "loss", "rewards/margins") == history(bare, "loss", "rewards/margins")


@pytest.mark.slow
def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(tiny, tmp_path):
    runs = []
    for micro in (8, 2):
        trainer = build(tiny(), tmp_path, micro_batch_size=micro)
        trainer.train()
        runs.append(torch.tensor(history(trainer, "loss", "grad_norm")))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)


def dpo(pairs: PairLogps, *, beta: float):
    """DPO written as a plugin, to be compared with TRL's own."""
    return -torch.nn.functional.logsigmoid(beta * pairs.h)


@pytest.mark.slow
def test_a_plugin_dpo_follows_trls_sigmoid_within_3e_7_at_each_step(tiny, tmp_path):
    runs = []
    for loss in ("sigmoid", dpo):
        trainer = build(tiny(), tmp_path, loss=loss, trl=FAST | {"max_steps": 8})
        trainer.train()
        runs.append(torch.tensor(history(trainer, "loss", "rewards/margins")))
    assert (runs[0] - runs[1]).abs().max().item() <= 3e-7


def first_loss(tiny, tmp_path, **changes) -> tuple[float, PairLogps]:
    """The loss of one batch after some training, and the log-probabilities it was computed from."""
    trainer = build(tiny(), tmp_path, **changes)
    trainer.train()
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
def test_a_plugin_or_a_mix_is_the_float64_formula_of_what_trl_measured(tiny, tmp_path, changes, formula):
    loss, pairs = first_loss(tiny, tmp_path, **changes)
    expected = sum(formula(h, 0.1) for h in pairs.h.double().tolist()) / len(pairs.h)
    assert pairs.h.abs().max() > 0.01
    assert loss == pytest.approx(expected, rel=1e-6)


def test_reference_free_reads_the_policy_alone(tiny, tmp_path):
    loss, pairs = first_loss(tiny, tmp_path, loss="reference_free")
    margins = (pairs.policy_chosen - pairs.policy_rejected).double().tolist()
    assert loss == pytest.approx(
        sum(math.log1p(math.exp(-0.1 * m)) if m > -300 else -0.1 * m for m in margins) / len(margins), rel=1e-6
    )


def test_pairs_hold_the_log_probabilities_that_a_plain_forward_gives(tiny, tmp_path):
    trainer = build(tiny(), tmp_path)
    trainer.train()
    _, pairs = trainer.held_out()
    row = trainer.eval_dataset[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])[:, :96]
    with torch.no_grad():
        logp = trainer.model.eval()(ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    start = len(row["prompt_ids"]) - 1
    assert pairs.policy_chosen[0].item() == pytest.approx(logp[start:].sum().item(), rel=1e-5)
    assert pairs.chosen_tokens[0].item() == ids.shape[1] - len(row["prompt_ids"])
    assert len(pairs.h) == 8


def test_ld_alpha_weighs_both_sides_alike_so_that_rewards_start_at_zero(tiny, tmp_path):
    trainer = build(tiny(), tmp_path, trl=FAST | {"ld_alpha": 0.3})
    metrics, pairs = trainer.held_out()
    assert pairs.h.abs().max().item() < 1e-4 and metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    whole = build(tiny(), tmp_path).held_out()[1]
    assert (pairs.policy_chosen > whole.policy_chosen + 1).any()


# ---------------------------------------------------------------------------------------------- what must stop a run


@pytest.mark.slow
def test_every_loss_starts_at_its_declared_value(tiny, tmp_path):
    with_a_value = [name for name, loss in TRL_LOSSES.items() if loss.at_start is not None]
    assert len(with_a_value) == 14
    for loss in [*with_a_value, "cdpo", "ipo_sum"]:
        trl = dict(FAST)
        if loss in readers_of("label_smoothing"):
            trl["label_smoothing"] = 0.1
        trainer = build(tiny(), tmp_path, loss=loss, micro_batch_size=4, trl=trl)
        metrics, _ = trainer.held_out()
        assert trainer.health.declared_loss == loss_at_start(trainer.recipe)
        assert metrics["loss"] == pytest.approx(trainer.health.declared_loss, rel=1e-5), loss


def test_a_reference_that_is_not_the_start_stops_before_the_first_update(tiny, tmp_path):
    trainer = build(tiny(), tmp_path)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    with pytest.raises(RecipeError, match="policy must equal its reference, but they differ by .* a wrong reference"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_dropout_that_is_on_stops_before_the_first_update(tiny, tmp_path):
    model = tiny(attention_dropout=0.5)
    trainer = build(model, tmp_path, adapter=None, trl=FAST | {"disable_dropout": False})
    with pytest.raises(RecipeError, match="dropout that is still on"):
        trainer.train()


def test_a_loss_that_is_not_what_it_declares_stops(tiny, tmp_path):
    def wrong(pairs, *, beta):
        return dpo(pairs, beta=beta) + 0.5

    wrong.at_start = lambda beta: math.log(2)
    with pytest.raises(RecipeError, match="the loss must be 0.693147, but it is 1.19"):
        build(tiny(), tmp_path, loss=wrong).train()


@pytest.mark.parametrize("adapter", [LoRA(r=4), None])
def test_a_learning_rate_of_nothing_stops(tiny, tmp_path, adapter):
    trl = FAST | {"lr_scheduler_type": "constant", "max_steps": 6}
    with pytest.raises(RecipeError, match="No trainable tensor of .* has changed"):
        build(tiny(), tmp_path, adapter=adapter, learning_rate=1e-60, trl=trl).train()


def test_frozen_weights_stop(tiny, tmp_path):
    trainer = build(tiny(), tmp_path)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("lora_A" in name)  # B is 0, so that A has no gradient, and B is frozen
    with pytest.raises(RecipeError, match="The gradient was exactly 0 in the first"):
        trainer.train()


def test_a_loss_that_is_not_finite_stops_at_once_with_the_decoded_pair(tiny, tmp_path):
    def broken(pairs, *, beta):
        return dpo(pairs, beta=beta) * torch.where(pairs.chosen_tokens > 0, torch.nan, 1.0)

    with pytest.raises(RecipeError) as stopped:
        build(tiny(), tmp_path, loss=broken).train()
    assert "The loss is nan at step 0" in str(stopped.value)
    assert (
        "--- chosen" in str(stopped.value)
        and "where is the" in str(stopped.value)
        and "no<|im_end|>" in str(stopped.value)
    )


def test_a_gradient_that_is_not_finite_stops(tiny, tmp_path):
    trainer = build(tiny(), tmp_path)
    next(p for n, p in trainer.model.named_parameters() if "lora_A" in n).register_hook(lambda g: g * torch.nan)
    with pytest.raises(RecipeError, match="The gradient norm is nan at step 1, the loss is finite"):
        trainer.train()


# ------------------------------------------------------------------------------------------------------------- data


def test_the_precomputed_reference_does_not_go_stale_when_ld_alpha_changes(tiny, tmp_path):
    values = []
    for alpha in (None, 0.5, None):
        trl = FAST | {"precompute_ref_log_probs": True} | ({"ld_alpha": alpha} if alpha else {})
        trainer = build(tiny(), tmp_path, max_length=None, trl=trl)
        values.append(trainer.train_dataset["ref_chosen_logps"][:])
    assert values[0] == values[2] and values[0] != values[1]


def test_nothing_is_sent(tiny, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse, raising=False)
    monkeypatch.delenv("CI", raising=False)
    trainer = build(tiny(), tmp_path)
    assert trainer.args.report_to == [] and json.loads(trainer.args.to_json_string())["push_to_hub"] is False


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None], ids=["lora", "full"])
def test_reading_each_pair_once_gives_the_same_losses(tiny, tmp_path, adapter):
    said: list[str] = []
    changes = {"adapter": adapter, "global_batch_size": 8, "micro_batch_size": 4, "max_length": 80}
    plain, shared = (
        build(tiny(), tmp_path, pair_sharing=how, say=said.append, **changes) for how in ("off", "require")
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


def test_where_pairs_cannot_be_read_once_that_is_said_or_refused(tiny, tmp_path):
    said: list[str] = []
    cost = "That is 9 tokens an epoch, in place of 5."
    trainer = build(tiny("bloom"), tmp_path, pair_sharing="auto", say=said.append, cost=cost)
    reason = "it has attention classes of its own"
    assert said == [f"Each pair is read twice and padded, as in TRL: {reason}. {cost}"]
    receipt = trainer.pair_reading()
    assert (receipt["read_once"], receipt["why_not"], receipt["largest_difference"]) == (False, reason, None)
    with pytest.raises(RecipeError, match="attention classes of its own. pair_sharing='auto'"):
        build(tiny("bloom"), tmp_path, pair_sharing="require")


def test_why_pairs_are_not_shared_is_said_once_where_the_reference_is_computed_beforehand(tiny, tmp_path):
    """TRL asks for the reference of each split while the trainer is being made, and models are asked before each."""
    sentences: list[str] = []
    build(tiny("bloom"), tmp_path, adapter=None, pair_sharing="auto", say=sentences.append)
    assert len(sentences) == 1
    assert "read twice and padded" in sentences[0]


def test_the_parameters_are_counted_without_a_reference_copy(tiny, tmp_path):
    trainable, total = build(tiny(), tmp_path, adapter=LoRA(r=4)).parameter_counts()
    base = build(tiny(), tmp_path, adapter=None).parameter_counts()
    assert base[0] == base[1]
    assert total == base[1] + trainable
