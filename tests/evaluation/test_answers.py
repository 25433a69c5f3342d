"""Reference and policy side by side on a tiny model, and rewards, win rates and KL against numbers done by hand."""

from __future__ import annotations

import io
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from asking_models import ASKED, QUESTIONS, Lent, ids_of, length, with_held_out_prompts
from making import model_state, perturb, recipe_for, short_recipe
from rich.console import Console

from dpo_recipes import RecipeError, train
from dpo_recipes.data.replies import Reply
from dpo_recipes.evaluation.answers import _texts, answers, repeated_share, rewarded, side_by_side
from dpo_recipes.evaluation.closing_table import compared
from dpo_recipes.evaluation.intervals import mean_and_error
from dpo_recipes.evaluation.kl import kl_to_reference


def sampled(trainer, reference, seed=0, samples=6, temperature=1.0):
    """(replies of the reference, replies of the policy) to ASKED."""
    return side_by_side(
        trainer.model,
        reference,
        trainer.processing_class,
        ASKED,
        samples=samples,
        reference_samples=samples,
        max_new_tokens=8,
        temperature=temperature,
        seed=seed,
        chat_template_kwargs={},
    )


def vowels(prompt: str, completion: str) -> float:
    assert prompt in QUESTIONS
    return sum(completion.count(vowel) for vowel in "aeiou") + len(completion) / 7


def judged(trainer, reference, replies, reward=vowels):
    """(before, after) of the replies of reference and policy to ASKED, with the KL of the policy's."""
    numbers = rewarded("vowels", reward, ASKED, *replies)
    kl = kl_to_reference(trainer.model, reference, ids_of(trainer.processing_class, ASKED), replies[1])
    return numbers.before, numbers.after | mean_and_error("kl", kl)


@pytest.mark.parametrize("kind", ["adapter off", "frozen adapter", "start weights"])
def test_before_training_the_policy_is_its_reference_and_afterwards_not(trainer_with_reference, kind):
    trainer, reference, _ = trainer_with_reference(kind)
    at_start = sampled(trainer, reference)
    of_reference, of_policy = at_start
    assert of_reference == of_policy
    assert len({reply.text for replies in of_policy for reply in replies}) > 9

    before, after = judged(trainer, reference, at_start)
    assert before["win_rate"] == 0.5
    assert abs(after["kl"]) <= 1e-6
    assert after["win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert after["reward"] == before["reward"]

    perturb(trainer.model)
    trainer.model.train()
    state = model_state(trainer.model)
    trained = sampled(trainer, reference)
    assert trained[0] == of_reference and trained[1] != of_policy
    before_again, after = judged(trainer, reference, trained)
    assert before_again == before
    assert after["kl"] > 0.01 and after["kl_stderr"] > 0
    assert model_state(trainer.model) == state and trainer.model.training


def test_the_same_seed_gives_the_same_replies_and_greedy_ones_are_equal(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    perturb(trainer.model)
    assert sampled(trainer, reference, seed=3) == sampled(trainer, reference, seed=3)
    assert sampled(trainer, reference, seed=4) != sampled(trainer, reference, seed=3)
    of_reference, of_policy = sampled(trainer, reference, temperature=0.0, samples=2)
    assert of_reference != of_policy
    assert all(first == second for first, second in of_reference + of_policy)


def divides_by_zero(prompt, completion):
    raise ZeroDivisionError


def test_an_error_leaves_the_model_in_its_mode(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    trainer.model.train()
    state = model_state(trainer.model)
    replies = sampled(trainer, reference, samples=1)
    prompts_without_tokens: list = [[] for _ in ASKED]

    # While sampling, while scoring, and while the KL is computed
    with pytest.raises(RecipeError):
        sampled(trainer, reference, samples=0)
    assert model_state(trainer.model) == state
    with pytest.raises(RecipeError, match=r"vowels\(\) failed with prompt=.*ZeroDivisionError"):
        judged(trainer, reference, replies, reward=divides_by_zero)
    assert model_state(trainer.model) == state
    with pytest.raises(RecipeError, match="at least one token"):
        kl_to_reference(trainer.model, reference, prompts_without_tokens, replies[1])
    assert model_state(trainer.model) == state


# ------------------------------------------------------------------------------------------------ a metric of one's own


def variety(prompt: str, completion: str) -> float:
    """How many different characters an answer has."""
    return float(len(set(completion)))


def test_a_measure_of_the_recipe_is_a_row_of_the_closing_table(trainer_with_reference):
    """The example to copy for a metric of one's own: a function of prompt and answer, named in the recipe."""
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, ASKED)
    perturb(trainer.model, size=1.0)
    recipe = recipe_for("unused", max_length=16, measures={"variety of characters": variety})

    samples, (before, after) = answers(recipe, trainer, reference, 2048)
    row = compared(before, after)[-1]

    of_reference = [variety("", sample["reference"]) for sample in samples]
    of_policy = [variety("", sample["policy"]) for sample in samples]
    assert len(samples) == len(ASKED) and of_reference != of_policy
    assert row.words == "variety of characters"
    assert row.before == f"{statistics.mean(of_reference):.3f}"
    assert row.after == f"{statistics.mean(of_policy):.3f}"
    assert row.spread == f"+- {statistics.stdev(of_policy) / math.sqrt(len(ASKED)):.3f}"


def test_each_prompt_is_asked_once_and_only_where_an_answer_has_room(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    long = [{"role": "user", "content": "long " * 500}]
    with_held_out_prompts(trainer, [ASKED[0], long, ASKED[0], *ASKED])
    samples, (before, after) = answers(recipe_for("unused", max_length=16), trainer, reference, 2048)
    assert [sample["prompt"] for sample in samples] == ASKED
    for sample in samples:  # the policy is its reference still, and both are drawn with the same random numbers
        assert sample["reference"] == sample["policy"] and abs(sample["kl"]) < 1e-6
        assert sample["reference_ended"] == sample["policy_ended"] and sample["policy_tokens"] <= 16
    assert before["answers/tokens"] == after["answers/tokens"] == sum(row["policy_tokens"] for row in samples) / 3
    assert before["kl"] == 0.0 and after["kl"] == pytest.approx(0.0, abs=1e-6)


def test_where_no_prompt_leaves_room_nothing_is_asked(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, [[{"role": "user", "content": "long " * 500}]])
    recipe = recipe_for("unused", max_length=16, reward=variety, measures={"length": variety})
    assert answers(recipe, trainer, reference, 2048) == ([], ({}, {}))


@pytest.mark.slow
def test_learned_positions_are_never_exceeded(tiny, pairs_file, tmp_path):
    """GPT-2's are a table of so many rows: whatever lies behind is an IndexError."""
    folder = tiny("gpt2", max_position_embeddings=128)
    trl = {"max_steps": 1, "gradient_checkpointing": False}
    recipe = short_recipe(folder, pairs_file, max_length=128, measures={"variety": variety}, trl=trl)
    said = io.StringIO()
    run = train(recipe, runs=tmp_path, console=Console(file=said, width=200))
    assert "answers: The model has 128 positions" in said.getvalue() and len(run.samples) > 0
    assert run.evaluation["after"]["measures/variety"] > 0


# -------------------------------------------------------------------------------------------------- the truth, by hand


class Elsewhere:
    """A model whose device is not the CPU: it must be asked there, and it answers with fixed logits."""

    device = torch.device("meta")
    training = False

    def __init__(self, scale: float):
        self.scale = scale
        self.table = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))  # (position, vocabulary)

    def __call__(self, input_ids, attention_mask):
        assert input_ids.device.type == attention_mask.device.type == "meta"
        rows, length = input_ids.shape
        return SimpleNamespace(logits=self.scale * self.table[:length].repeat(rows, 1, 1))

    def train(self, mode=True):
        return self

    eval = train


def tokens(text: str) -> list[int]:
    return list(text.encode())


def replied(*rows: list[str]) -> list[list[Reply]]:
    """Replies of these texts, one row for each prompt, a token for each letter."""
    replies = []
    for row in rows:
        replies.append([Reply(text, tokens(text), True) for text in row])
    return replies


def after_training(prompts, of_reference, of_policy, policy=None, reference=None):
    """(before, after) of texts in place of replies, rewarded by their length."""
    ids = [tokens(prompt) for prompt in prompts]
    policy = policy or Elsewhere(1.0)
    reference = reference or Elsewhere(1.0)
    numbers = rewarded("length", length, prompts, replied(*of_reference), replied(*of_policy))
    kl = kl_to_reference(policy, Lent(reference), ids, replied(*of_policy))
    return numbers.before, numbers.after | mean_and_error("kl", kl)


def test_rewards_win_rates_and_errors_are_those_done_by_hand():
    before, after = after_training(
        ["one", "two!"],
        of_reference=[["a", "bbb"], ["cc", "dd"]],
        of_policy=[["ee", "ffff", "g"], ["hh", "i", "jj"]],
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


def test_the_kl_is_the_sum_over_positions_of_two_known_distributions():
    policy = Elsewhere(1.0)
    reference = Elsewhere(0.5)
    _, after = after_training(
        ["one", "two!"],
        of_reference=[["xy"], ["xy"]],
        of_policy=[["a", "bcd"], ["ef", "g"]],
        policy=policy,
        reference=reference,
    )
    log_p = policy.table.double().log_softmax(-1)
    log_q = (0.5 * policy.table.double()).log_softmax(-1)
    kl_at = (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
    # Position t predicts token t + 1; the prompts have 3 and 4 tokens.
    means = [
        (sum(kl_at[2:3]) + sum(kl_at[2:5])) / 2,
        (sum(kl_at[3:5]) + sum(kl_at[3:4])) / 2,
    ]
    assert after["kl"] == pytest.approx(sum(means) / 2, rel=1e-5)
    assert after["kl_stderr"] == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-4)


def reply(text: str, ended: bool = True) -> Reply:
    return Reply(text, tokens(text), ended)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("abc", 0.0),
        ("abcd", 0.0),
        ("abcde", 0.0),
        ("abababab", 3 / 5),
        ("aaaaa", 1 / 2),
        ("abcdabcd", 1 / 5),
    ],
)
def test_the_share_of_runs_of_four_tokens_that_stand_in_it_before(text, share):
    assert repeated_share(reply(text)) == pytest.approx(share)


def test_length_cap_and_repetition_are_means_over_answers_and_errors_over_prompts():
    numbers = _texts("answers", [[reply("abcd"), reply("aaaaaa", ended=False)], [reply("ab"), reply("abcdef")]])
    assert numbers["answers/tokens"] == 4.5 and numbers["answers/tokens_stderr"] == pytest.approx(0.5)
    assert numbers["answers/capped"] == 0.25 and numbers["answers/capped_interval"][1] > 0.25
    assert numbers["answers/repeated_4grams"] == pytest.approx((0 + 2 / 3 + 0 + 0) / 4)


@pytest.mark.slow
def test_the_best_reward_is_left_out_where_so_few_samples_could_not_show_it(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, ASKED)
    recipe = recipe_for("unused", max_length=16, reward=variety)
    _, (before, after) = answers(recipe, trainer, reference, 2048)
    assert after["best_reward_at_kl"] == pytest.approx(before["reward"], abs=1e-3)

    perturb(trainer.model, size=8.0)
    samples, (_, after) = answers(recipe, trainer, reference, 2048)
    assert after["kl"] > math.log(24) and "best_reward_at_kl" not in after
    assert after["win_rate"] == pytest.approx(statistics.mean(row["win_rate"] for row in samples))
    assert after["reward"] == pytest.approx(statistics.mean(row["policy_reward"] for row in samples))


def test_one_prompt_has_an_error_of_nothing():
    _, after = after_training(["p"], of_reference=[["a"]], of_policy=[["bb"]])
    assert (after["win_rate"], after["win_rate_stderr"], after["reward_stderr"]) == (1.0, 0.0, 0.0)
