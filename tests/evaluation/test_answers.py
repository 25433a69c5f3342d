"""Held-out numbers against arithmetic done by hand, and reference and policy side by side on a tiny model."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from making import make_pairs
from peft import get_peft_model

from dpo_recipes import Data, LoRA, Recipe, RecipeError
from dpo_recipes.data.replies import Reply
from dpo_recipes.evaluation import answers as evaluate
from dpo_recipes.evaluation.answers import against_truth, held_out, side_by_side, wilson
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.models import weights as models
from dpo_recipes.models.generate import prompt_ids
from dpo_recipes.recipe.resolve import Device, dpo_config, resolve
from dpo_recipes.training.trainer import RecipeTrainer, config

# ------------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("successes", "trials"), [(0.5, 1), (7.5, 10), (12.5, 64), (63.5, 64)])
def test_wilsons_ends_are_where_the_score_test_is_at_its_limit_with_ties_as_halves(successes, trials):
    p = successes / trials
    low, high = wilson(successes, trials)
    assert 0 < low < p < high < 1
    for end in (low, high):
        assert (p - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / trials, rel=1e-9)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


def test_no_interval_leaves_0_to_1():
    for n in (1, 2, 7, 1000, 10**6):
        (none, some), (most, whole) = wilson(0, n), wilson(n, n)
        assert 0.0 <= none < 1e-12 < some < 1.0 and 0.0 < most < 1 - 1e-12 < whole <= 1.0


def four() -> PairLogps:
    """Margins of 2.5, -1, 0 (a tie) and 4 nats."""
    double = torch.float64
    return PairLogps(
        policy_chosen=torch.tensor([-10.0, -20.0, -30.0, -5.0], dtype=double),
        policy_rejected=torch.tensor([-12.0, -18.0, -31.0, -11.0], dtype=double),
        reference_chosen=torch.tensor([-11.0, -19.5, -30.0, -6.0], dtype=double),
        reference_rejected=torch.tensor([-10.5, -18.5, -31.0, -8.0], dtype=double),
        chosen_tokens=torch.tensor([5, 10, 20, 2], dtype=double),
        rejected_tokens=torch.tensor([4, 8, 16, 4], dtype=double),
    )


def test_held_out_numbers_are_those_done_by_hand():
    metrics = {"loss": 0.61, "entropy": 1.25, "logits/chosen": 3.0, "runtime": 9.0, "rewards/accuracies": 0.123}
    found = held_out(metrics, four(), 0.2, moved(), same_start=False)
    margins = [0.5, -0.2, 0.0, 0.8]  # beta h
    mean = 1.1 / 4
    spread = math.sqrt(sum((m - mean) ** 2 for m in margins) / 3)
    expected = {
        "pairs": 4,
        "loss": 0.61,
        "rewards/accuracies": 2.5 / 4,
        "rewards/accuracies_interval": list(wilson(2.5, 4)),
        "rewards/margins": mean,
        "rewards/margins_stderr": spread / 2,
        "rewards/chosen": 0.2 * (1 - 0.5 + 0 + 1) / 4,
        "rewards/rejected": 0.2 * (-1.5 + 0.5 + 0 - 3) / 4,
        "logps/chosen": -65 / 4,
        "logps/rejected": -72 / 4,
        "logps/chosen_change_per_token": -3.7 / 37,
        "logps/rejected_change_per_token": 1.6 / 32,
        "entropy": 1.25,
        "logits/chosen": 3.0,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"], rel=1e-12)


def test_one_pair_has_no_standard_error():
    one = four().map(lambda t: t[:1])
    found = held_out({"loss": 0.5}, one, 0.1, one, same_start=False)
    assert found["rewards/margins_stderr"] is None and found["rewards/accuracies"] == 1.0
    assert found["rewards/accuracies_interval"][0] == pytest.approx(0.2065, abs=5e-5)


def test_rewards_scale_with_beta_and_log_probabilities_do_not():
    one, ten = (held_out({"loss": 0.5}, four(), beta, four(), same_start=False) for beta in (0.1, 1.0))
    for name in ("rewards/margins", "rewards/margins_stderr", "rewards/chosen", "rewards/rejected"):
        assert ten[name] == pytest.approx(10 * one[name], rel=1e-12)
    for name in ("rewards/accuracies", "logps/chosen"):
        assert ten[name] == one[name]


def moved() -> PairLogps:
    """The pairs of `four` after an update of one chosen and one rejected side."""
    pairs = four()
    pairs.policy_chosen[0] += 3.7
    pairs.policy_rejected[3] -= 1.6
    return pairs


def test_changes_are_counted_from_the_start_of_training_not_from_the_reference():
    found = held_out({"loss": 0.5}, moved(), 0.1, four())
    assert found["logps/chosen_change_per_token"] == pytest.approx(3.7 / 37, rel=1e-12)
    assert found["logps/rejected_change_per_token"] == pytest.approx(-1.6 / 32, rel=1e-12)
    unmoved = held_out({"loss": 0.5}, four(), 0.1, four())
    assert unmoved["logps/chosen_change_per_token"] == unmoved["logps/rejected_change_per_token"] == 0


def test_rounding_of_equal_models_is_a_tie_before_and_after():
    rounding = torch.tensor([1e-6, -2e-6, 3e-6, 0.0], dtype=torch.float64)
    pairs = four()
    same = {"reference_chosen": pairs.policy_chosen - rounding, "reference_rejected": pairs.policy_rejected}
    start = PairLogps(**{**vars(pairs), **same})
    assert held_out({"loss": 0.5}, start, 0.1, start)["rewards/accuracies"] == 0.5
    assert held_out({"loss": 0.5}, start, 0.1, start, same_start=False)["rewards/accuracies"] == 2.5 / 4
    shift = torch.tensor([1.0, -1.0, 2e-6, 1.0], dtype=torch.float64)
    end = PairLogps(**{**vars(start), "policy_chosen": start.reference_chosen + shift})
    assert held_out({"loss": 0.5}, end, 0.1, start)["rewards/accuracies"] == 2.5 / 4


# ------------------------------------------------------------------------------------------------------ the reference

KINDS = ["adapter off", "frozen adapter", "start weights", "other model"]
ASKED = [[{"role": "user", "content": text}] for text in ("where is the lamp?", "hi", "how many coins are red?")]
IDS = torch.randint(0, 250, (2, 17), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def start_adapter(tiny, tmp_path_factory):
    """A saved adapter that already changes the model."""
    folder = tmp_path_factory.mktemp("adapter")
    recipe = Recipe(model=str(tiny()), data=Data("unused"))
    model = get_peft_model(
        models.load_weights(recipe, resolve(recipe, Device()), str(tiny())), models.peft_config(LoRA(r=4))
    )
    draw = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def made(kind, tiny, start_adapter, tmp_path):
    """(trainer, its Reference, a reference loaded freshly from disk) of one kind, as train.py makes them."""
    adapter = {"adapter off": LoRA(r=4), "frozen adapter": LoRA(continue_from=str(start_adapter))}.get(kind)
    other = str(tiny(seed=1)) if kind == "other model" else None
    trl = {"gradient_checkpointing": False}
    recipe = Recipe(model=str(tiny()), data=Data("unused"), adapter=adapter, reference=other, max_length=96, trl=trl)
    settings = resolve(recipe, Device())
    assert settings.reference == kind

    def fresh():
        return models.load_weights(recipe, settings, other or str(tiny()), trainable=kind == "frozen adapter")

    trainer = RecipeTrainer(
        recipe=recipe,
        settings=settings,
        model=models.load_weights(recipe, settings, str(tiny())),
        args=config(dpo_config(recipe, settings, str(tmp_path))),
        ref_model=fresh() if kind == "other model" else None,
        train_dataset=Dataset.from_list(make_pairs(4)),
        processing_class=models.load_tokenizer(recipe, str(tiny())).tokenizer,
        peft_config=models.peft_config(adapter),
    )
    return trainer, models.Reference(trainer.model, settings, fresh), fresh().eval()


def perturb(model, size=0.3) -> None:
    """What training does, faster: every trainable tensor moves."""
    draw = torch.Generator().manual_seed(2)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            scale = size * parameter.abs().mean().clamp(min=0.1)
            parameter.data += scale * torch.randn(parameter.shape, generator=draw)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def state(model) -> list:
    active = getattr(model, "active_adapters", None)
    return [[(n, p.requires_grad, p.sum().item()) for n, p in model.named_parameters()], active, model.training] + [
        (n, m.disable_adapters, m.training) for n, m in model.named_modules() if hasattr(m, "disable_adapters")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_reference_gives_the_numbers_of_freshly_loaded_weights(tiny, start_adapter, tmp_path, kind):
    trainer, reference, fresh = made(kind, tiny, start_adapter, tmp_path)
    policy = trainer.model.eval()
    if kind != "other model":
        torch.testing.assert_close(logits(policy), logits(fresh), rtol=0, atol=1e-5)
    else:
        assert (logits(policy) - logits(fresh)).abs().max() > 0.1
    perturb(policy)
    moved, before = logits(policy), state(policy)
    with reference.model() as model:
        torch.testing.assert_close(logits(model), logits(fresh), rtol=0, atol=1e-5)
        assert not model.training
    assert (moved - logits(fresh)).abs().max() > 0.1
    assert torch.equal(logits(policy), moved) and state(policy) == before
    with pytest.raises(ZeroDivisionError), reference.model():
        _ = 1 / 0
    assert torch.equal(logits(policy), moved) and state(policy) == before
    with reference.model() as again:
        assert again is model  # weights that are loaded once more are loaded once


TWO = ["one", "two!"]


def ids_of(tokenizer, prompts) -> list[list[int]]:
    return [prompt_ids(tokenizer, prompt) for prompt in prompts]


def sampled(trainer, reference, seed=0, samples=6, temperature=1.0):
    return side_by_side(
        trainer.model, reference, trainer.processing_class, ASKED, samples=samples, reference_samples=samples,
        max_new_tokens=8, temperature=temperature, seed=seed, chat_template_kwargs={},
    )  # fmt: skip


def vowels(prompt: str, completion: str) -> float:
    assert prompt in {messages[-1]["content"] for messages in ASKED}
    return sum(completion.count(c) for c in "aeiou") + len(completion) / 7


def judged(trainer, reference, theirs, ours, reward=vowels):
    return against_truth(reward, trainer.model, reference, ASKED, ids_of(trainer.processing_class, ASKED), theirs, ours)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_before_training_the_policy_is_its_reference_and_afterwards_not(tiny, start_adapter, tmp_path, kind):
    trainer, reference, _ = made(kind, tiny, start_adapter, tmp_path)
    theirs, ours = sampled(trainer, reference)
    assert theirs == ours and len({reply.text for row in ours for reply in row}) > 9
    before, after = judged(trainer, reference, theirs, ours)
    assert abs(after["kl"]) <= 1e-6 and after["win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert after["reward"] == before["reward"] and (before["win_rate"], before["kl"]) == (0.5, 0.0)
    assert after["best_reward_at_kl"] == pytest.approx(before["reward"], abs=0.02)

    perturb(trainer.model)
    trainer.model.train()
    held = state(trainer.model)
    theirs_again, moved = sampled(trainer, reference)
    before_again, after = judged(trainer, reference, theirs_again, moved)
    assert theirs_again == theirs and moved != ours and before_again == before
    assert after["kl"] > 0.01 and after["kl_stderr"] > 0 and after["best_reward_at_kl"] > before["reward"]
    assert state(trainer.model) == held and trainer.model.training


def test_the_same_seed_gives_the_same_replies_and_greedy_ones_are_equal(tiny, start_adapter, tmp_path):
    trainer, reference, _ = made("adapter off", tiny, start_adapter, tmp_path)
    perturb(trainer.model)
    assert sampled(trainer, reference, seed=3) == sampled(trainer, reference, seed=3)
    assert sampled(trainer, reference, seed=4) != sampled(trainer, reference, seed=3)
    theirs, ours = sampled(trainer, reference, temperature=0.0, samples=2)
    assert all(row[0] == row[1] for row in theirs + ours) and theirs != ours


def test_the_models_flag_survives_an_error_while_sampling(tiny, start_adapter, tmp_path):
    trainer, reference, _ = made("adapter off", tiny, start_adapter, tmp_path)
    trainer.model.train()
    held = state(trainer.model)
    with pytest.raises(RecipeError):
        sampled(trainer, reference, samples=0)
    assert state(trainer.model) == held

    def fails(prompt, completion):
        raise ZeroDivisionError

    theirs, ours = sampled(trainer, reference, samples=1)
    with pytest.raises(RecipeError, match=r"fails\(\) failed on a sampled answer: ZeroDivisionError"):
        judged(trainer, reference, theirs, ours, reward=fails)
    assert state(trainer.model) == held


# -------------------------------------------------------------------------------------------------- the truth, by hand


class Elsewhere:
    """A model whose device is not the CPU: it must be asked there, and it answers with fixed logits."""

    device, training = torch.device("meta"), False

    def __init__(self, scale):
        self.scale, self.table = scale, torch.randn(300, 300, generator=torch.Generator().manual_seed(3))

    def __call__(self, input_ids, attention_mask):
        assert input_ids.device.type == attention_mask.device.type == "meta"
        return SimpleNamespace(logits=self.scale * self.table[: input_ids.shape[1]].repeat(input_ids.shape[0], 1, 1))

    def train(self, mode=True):
        return self

    eval = train


class Other:
    def __init__(self, model):
        self._model = model

    @contextmanager
    def model(self):
        yield self._model


def tokenizer(text):
    return {"input_ids": list(text.encode())}


def said(*rows):
    return [[Reply(text, list(text.encode()), True) for text in row] for row in rows]


def by_length(prompt, completion):
    return float(len(completion))


def test_rewards_win_rates_and_errors_are_those_done_by_hand():
    theirs = said(["a", "bbb"], ["cc", "dd"])
    ours = said(["ee", "ffff", "g"], ["hh", "i", "jj"])
    before, after = against_truth(
        by_length,
        Elsewhere(1.0),
        Other(Elsewhere(1.0)),
        ["one", "two!"],
        ids_of(tokenizer, ["one", "two!"]),
        theirs,
        ours,
    )
    assert before["reward"] == 2.0 and before["reward_stderr"] == 0.0
    means = [7 / 3, 5 / 3]
    assert after["reward"] == pytest.approx(2.0) and after["reward_stderr"] == pytest.approx(1 / 3)
    assert sum(means) / 2 == pytest.approx(after["reward"])
    # Against 1 and 3: 2 wins one of two, 4 both, 1 ties one. Against 2 and 2: a tie, a loss, a tie.
    wins = [(0.5 + 1.0 + 0.25) / 3, (0.5 + 0.0 + 0.5) / 3]
    assert after["win_rate"] == pytest.approx(sum(wins) / 2, rel=1e-12)
    assert after["win_rate_stderr"] == pytest.approx(abs(wins[0] - wins[1]) / 2, rel=1e-12)
    assert (after["kl"], after["kl_stderr"]) == (0.0, 0.0)
    assert after["best_reward_at_kl"] == pytest.approx(2.0, abs=1e-6)


def test_the_kl_is_the_sum_over_positions_of_two_known_distributions():
    policy, reference = Elsewhere(1.0), Elsewhere(0.5)
    theirs, ours = said(["xy"], ["xy"]), said(["a", "bcd"], ["ef", "g"])
    _, after = against_truth(by_length, policy, Other(reference), TWO, ids_of(tokenizer, TWO), theirs, ours)
    log_p, log_q = ((scale * policy.table.double()).log_softmax(-1) for scale in (1.0, 0.5))
    per_position = (log_p.exp() * (log_p - log_q)).sum(-1)
    # Position t predicts token t + 1; the prompts have 3 and 4 tokens.
    spans = [[(2, 3), (2, 5)], [(3, 5), (3, 4)]]
    by_hand = [[per_position[start:end].sum().item() for start, end in row] for row in spans]
    means = [sum(row) / 2 for row in by_hand]
    assert after["kl"] == pytest.approx(sum(means) / 2, rel=1e-5)
    assert after["kl_stderr"] == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-4)


def test_a_kl_that_rounding_puts_below_0_does_not_end_the_evaluation(monkeypatch):
    monkeypatch.setattr(evaluate, "sequence_kl", lambda *args: torch.tensor([-3e-8, 1e-8]))
    theirs, ours = said(["a", "bbb"], ["cc", "d"]), said(["a"], ["cc"])
    _, after = against_truth(
        by_length,
        Elsewhere(1.0),
        Other(Elsewhere(1.0)),
        ["one", "two"],
        ids_of(tokenizer, ["one", "two"]),
        theirs,
        ours,
    )
    assert after["kl"] == pytest.approx(-1e-8) and after["best_reward_at_kl"] == pytest.approx(1.75, abs=1e-6)


def test_one_prompt_has_an_error_of_nothing():
    theirs, ours = said(["a"]), said(["bb"])
    _, after = against_truth(
        by_length, Elsewhere(1.0), Other(Elsewhere(1.0)), ["p"], ids_of(tokenizer, ["p"]), theirs, ours
    )
    assert (after["win_rate"], after["win_rate_stderr"], after["reward_stderr"]) == (1.0, 0.0, 0.0)
