"""Reference and policy side by side on a tiny model, and rewards, win rates and KL against numbers done by hand."""

from __future__ import annotations

import io
import math
import statistics
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from making import model_state, perturb, recipe_for
from rich.console import Console

from dpo_recipes import Data, LoRA, Recipe, RecipeError, train
from dpo_recipes.data.replies import Reply
from dpo_recipes.evaluation import answers as evaluation
from dpo_recipes.evaluation.answers import _length_findings, against_truth, answers, side_by_side
from dpo_recipes.evaluation.held_out import compared
from dpo_recipes.models.generate import prompt_ids

QUESTIONS = ["where is the lamp?", "hi", "how many coins are red?"]
ASKED = [[{"role": "user", "content": question}] for question in QUESTIONS]


def ids_of(tokenizer, prompts) -> list[list[int]]:
    return [prompt_ids(tokenizer, prompt) for prompt in prompts]


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
    """(before, after) of the replies of reference and policy to ASKED."""
    ids = ids_of(trainer.processing_class, ASKED)
    return against_truth(reward, trainer.model, reference, ASKED, ids, *replies)


@pytest.mark.parametrize("kind", ["adapter off", "frozen adapter", "start weights"])
def test_before_training_the_policy_is_its_reference_and_afterwards_not(trainer_with_reference, kind):
    trainer, reference, _ = trainer_with_reference(kind)
    at_start = sampled(trainer, reference)
    of_reference, of_policy = at_start
    assert of_reference == of_policy
    assert len({reply.text for replies in of_policy for reply in replies}) > 9

    before, after = judged(trainer, reference, at_start)
    assert (before["win_rate"], before["kl"]) == (0.5, 0.0)
    assert abs(after["kl"]) <= 1e-6
    assert after["win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert after["reward"] == before["reward"]
    assert after["best_reward_at_kl"] == pytest.approx(before["reward"], abs=0.02)

    perturb(trainer.model)
    trainer.model.train()
    state = model_state(trainer.model)
    trained = sampled(trainer, reference)
    assert trained[0] == of_reference and trained[1] != of_policy
    before_again, after = judged(trainer, reference, trained)
    assert before_again == before
    assert after["kl"] > 0.01 and after["kl_stderr"] > 0
    assert after["best_reward_at_kl"] > before["reward"]
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
    with pytest.raises(RecipeError, match=r"divides_by_zero\(\) failed with prompt=.*ZeroDivisionError"):
        judged(trainer, reference, replies, reward=divides_by_zero)
    assert model_state(trainer.model) == state
    with pytest.raises(RecipeError, match="at least one token"):
        against_truth(vowels, trainer.model, reference, ASKED, prompts_without_tokens, *replies)
    assert model_state(trainer.model) == state


# ------------------------------------------------------------------------------------------------ a metric of one's own


def with_held_out_prompts(trainer, prompts):
    """The trainer as it is when its evaluation pairs are these prompts."""
    ids = ids_of(trainer.processing_class, prompts)
    trainer.eval_dataset = Dataset.from_dict({"prompt": prompts, "prompt_ids": ids})
    return trainer


def variety(prompt: str, completion: str) -> float:
    """How many different characters an answer has."""
    return float(len(set(completion)))


def test_a_measure_of_the_recipe_is_a_row_of_the_closing_table(trainer_with_reference):
    """The example to copy for a metric of one's own: a function of prompt and answer, named in the recipe."""
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, ASKED)
    perturb(trainer.model)
    recipe = recipe_for("unused", max_length=16, measures={"variety of characters": variety})

    samples, (before, after) = answers(recipe, trainer, reference, 2048)
    (row,) = compared(before, after)

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
    samples, numbers = answers(recipe_for("unused", max_length=16), trainer, reference, 2048)
    assert [sample["prompt"] for sample in samples] == ASKED and numbers == ({}, {})
    assert all(sample.keys() >= {"reference_ended", "policy_ended"} for sample in samples)


def test_where_no_prompt_leaves_room_nothing_is_asked(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, [[{"role": "user", "content": "long " * 500}]])
    recipe = recipe_for("unused", max_length=16, reward=variety, measures={"length": variety})
    assert answers(recipe, trainer, reference, 2048) == ([], ({}, {}))


PROMPTS_OF_100 = {"prompt_ids": [[1] * 100 for _ in range(10)]}


@pytest.mark.parametrize(
    ("positions", "scores", "level", "words"),
    [
        (None, {}, None, ""),
        (2048, {}, None, ""),
        (356, {}, None, ""),  # exactly the room of 256 tokens
        (355, {}, "warn", "has 355 positions, for prompt and answer together: an answer gets at most 255 new tokens"),
        (116, {}, "warn", "at most 16 new tokens instead of 256."),
        (115, {}, "warn", "no held-out prompt leaves room for an answer of 16 tokens. samples.jsonl will be empty."),
        (115, {"reward": variety}, "fail", "The reward and the measures need answers"),
        (115, {"measures": {"variety": variety}}, "fail", "The reward and the measures need answers"),
    ],
)
def test_answers_that_the_positions_shorten_are_known_before_training(positions, scores, level, words):
    findings = _length_findings(recipe_for("unused", **scores), PROMPTS_OF_100, positions)
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert words in "".join(finding.text for finding in findings)


def test_a_few_long_prompts_do_not_shorten_the_answers_to_the_others():
    lengths = [100] * 6 + [340] * 4
    [finding] = _length_findings(recipe_for("unused"), {"prompt_ids": [[1] * n for n in lengths]}, 356)
    assert "at most 256 new tokens, and only the 6 of 10 held-out prompts that leave room" in finding.text
    lengths = [100] * 30 + [340] * 4  # of which enough are left to ask
    assert not _length_findings(recipe_for("unused"), {"prompt_ids": [[1] * n for n in lengths]}, 356)


@pytest.mark.slow
def test_learned_positions_are_never_exceeded(tiny, pairs_file, tmp_path):
    """GPT-2's are a table of so many rows: whatever lies behind is an IndexError."""
    folder = tiny("gpt2", max_position_embeddings=128)
    recipe = Recipe(
        model=str(folder),
        data=Data(str(pairs_file), eval=0.25),
        adapter=LoRA(r=4),
        global_batch_size=6,
        max_length=128,
        measures={"variety": variety},
        trl={"max_steps": 1, "gradient_checkpointing": False},
    )
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


class Lent:
    """A reference that is always the same model."""

    def __init__(self, model):
        self._model = model

    @contextmanager
    def model(self):
        yield self._model


def tokens(text: str) -> list[int]:
    return list(text.encode())


def replied(*rows: list[str]) -> list[list[Reply]]:
    """Replies of these texts, one row for each prompt, a token for each letter."""
    return [[Reply(text, tokens(text), True) for text in row] for row in rows]


def by_length(prompt, completion) -> float:
    return float(len(completion))


def after_training(prompts, of_reference, of_policy, policy=None, reference=None):
    """What `against_truth` says of texts in place of replies."""
    ids = [tokens(prompt) for prompt in prompts]
    policy = policy or Elsewhere(1.0)
    reference = reference or Elsewhere(1.0)
    return against_truth(by_length, policy, Lent(reference), prompts, ids, replied(*of_reference), replied(*of_policy))


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
    assert after["best_reward_at_kl"] == pytest.approx(2.0, abs=1e-6)


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


def test_a_kl_that_rounding_puts_below_0_does_not_end_the_evaluation(monkeypatch):
    monkeypatch.setattr(evaluation, "sequence_kl", lambda *args, **_: torch.tensor([-3e-8, 1e-8]))
    _, after = after_training(
        ["one", "two"],
        of_reference=[["a", "bbb"], ["cc", "d"]],
        of_policy=[["a"], ["cc"]],
    )
    assert after["kl"] == pytest.approx(-1e-8)
    assert after["best_reward_at_kl"] == pytest.approx(1.75, abs=1e-6)


def test_one_prompt_has_an_error_of_nothing():
    _, after = after_training(["p"], of_reference=[["a"]], of_policy=[["bb"]])
    assert (after["win_rate"], after["win_rate_stderr"], after["reward_stderr"]) == (1.0, 0.0, 0.0)
