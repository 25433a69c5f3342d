"""The beta dial against what can be counted: every answer of a world of five words, its probability and its KL."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from asking_models import ASKED, Lent, length, with_held_out_prompts
from making import perturb, recipe_for
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_recipes.data.replies import Reply
from dpo_recipes.evaluation.answers import answers
from dpo_recipes.evaluation.dial import _kl, dial
from dpo_recipes.models.generate import generate
from dpo_recipes.models.guided import guided_by

WORDS = 5
LENGTH = 3  # tokens of an answer: 125 answers there are
PROMPT = [1, 2]


class Tokenizer(SimpleNamespace):
    pad_token_id = 0
    eos_token_id = None

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens))


def five_words(seed: int, model_type: str = "llama"):
    """A random model of five words that is sure of some of them."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        model_type, **sizes, vocab_size=WORDS, max_position_embeddings=64, eos_token_id=None, bos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6)
    return model


@torch.no_grad()
def exact(policy, reference, factor: float, temperature: float = 1.0) -> tuple[dict[tuple[int, ...], float], float]:
    """(probability of each answer under the dialled policy, its KL to the reference in nats), counted in float64."""
    answers = list(itertools.product(range(WORDS), repeat=LENGTH))
    ids = torch.tensor([[*PROMPT, *answer] for answer in answers])
    place = slice(len(PROMPT) - 1, -1)
    of_policy = policy(ids).logits[:, place].double() / temperature
    of_reference = reference(ids).logits[:, place].double() / temperature
    mixed = of_reference + factor * (of_policy - of_reference)
    tokens = torch.tensor(answers).unsqueeze(-1)
    logp = mixed.log_softmax(-1).gather(-1, tokens).sum((1, 2))
    logq = of_reference.log_softmax(-1).gather(-1, tokens).sum((1, 2))
    probabilities = dict(zip(answers, logp.exp().tolist(), strict=True))
    return probabilities, (logp.exp() * (logp - logq)).sum().item()


def drawn(policy, reference, factor: float, samples: int, temperature: float = 1.0):
    guide = guided_by(Lent(reference).model, factor)
    return generate(
        policy,
        Tokenizer(),
        [PROMPT],
        samples=samples,
        max_new_tokens=LENGTH,
        temperature=temperature,
        batch_size=2000,
        guide=guide,
    )


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_answers_are_drawn_with_the_probabilities_of_the_mixed_logits(factor):
    policy, reference = five_words(0), five_words(1)
    probabilities, _ = exact(policy, reference, factor)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-9)
    samples = 6000
    [replies] = drawn(policy, reference, factor, samples)
    counts = dict.fromkeys(probabilities, 0)
    for reply in replies:
        counts[tuple(reply.token_ids)] += 1

    # Pearson's statistic over the answers of which five and more are expected, the others together
    statistic, rest_expected, rest_count, cells = 0.0, 0.0, 0, 0
    for answer, probability in probabilities.items():
        expected = samples * probability
        if expected < 5:
            rest_expected += expected
            rest_count += counts[answer]
            continue
        statistic += (counts[answer] - expected) ** 2 / expected
        cells += 1
    if rest_expected > 1:
        statistic += (rest_count - rest_expected) ** 2 / rest_expected
        cells += 1
    freedom = cells - 1
    assert cells > 8 and statistic < freedom + 4 * math.sqrt(2 * freedom)


def replied(answers) -> list[list[Reply]]:
    return [[Reply("", list(answer), ended=False) for answer in answers]]


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "temperature"), [(0.25, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 0.6)])
def test_the_kl_along_answers_has_the_exact_kl_as_its_mean_and_is_within_two_errors_of_it_95_times_in_100(
    factor, temperature
):
    policy, reference = five_words(0), five_words(1)
    probabilities, truth = exact(policy, reference, factor, temperature)
    assert truth > 0.01
    quiet = Console(quiet=True)
    along = _kl(policy, Lent(reference), factor, [PROMPT], replied(probabilities), quiet, temperature)[0]
    weights = torch.tensor(list(probabilities.values()), dtype=torch.float64)
    assert (weights * along).sum().item() == pytest.approx(truth, rel=1e-5)

    kl_of = dict(zip(probabilities, along.tolist(), strict=True))
    estimates, samples = 240, 100
    [replies] = drawn(policy, reference, factor, estimates * samples, temperature)
    kl = torch.tensor([kl_of[tuple(reply.token_ids)] for reply in replies]).view(estimates, samples)
    distances = (kl.mean(dim=1) - truth).abs() / (kl.std(dim=1) / math.sqrt(samples))
    # 95 % of 240, give or take three standard errors of that
    assert (distances <= 2).float().mean().item() == pytest.approx(0.95, abs=0.043)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_of_an_optimal_policy_of_one_token_the_dial_is_the_optimum_of_another_beta(factor):
    """pi* = ref exp(r / beta) / Z (2305.18290, eq. 4): the dial at l gives that of beta / l, normalised and all."""
    draw = torch.Generator().manual_seed(0)
    reference = torch.randn(WORDS, generator=draw, dtype=torch.float64)
    reward = torch.randn(WORDS, generator=draw, dtype=torch.float64)
    beta = 0.7
    policy = (reference + reward / beta).log_softmax(-1)
    dialled = (reference + factor * (policy - reference)).softmax(-1)
    tilted = reference.softmax(-1) * torch.exp(reward / (beta / factor))
    torch.testing.assert_close(dialled, tilted / tilted.sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_padding_changes_nothing(model_type):
    """GPT-2's positions are a table: a padded prompt must start at its first token there."""
    policy, reference = five_words(0, model_type), five_words(1, model_type)
    guide = guided_by(Lent(reference).model, 0.6)
    settings = {"max_new_tokens": 6, "temperature": 0.0, "guide": guide}
    prompts = [[1], [1, 2, 3, 4, 1, 2], [4, 4, 2]]
    together = generate(policy, Tokenizer(), prompts, **settings)
    for prompt, [reply] in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(6):  # without a cache, without padding
            with torch.no_grad():
                p = policy(torch.tensor([ids])).logits[0, -1]
                q = reference(torch.tensor([ids])).logits[0, -1]
            ids.append(int((q.log_softmax(-1) + 0.6 * (p.log_softmax(-1) - q.log_softmax(-1))).argmax()))
        assert reply.token_ids == ids[len(prompt) :]


@pytest.mark.slow
def test_a_row_for_each_factor_from_the_reference_to_beyond_the_policy(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, ASKED)
    perturb(trainer.model, size=1.0)
    recipe = recipe_for("unused", max_length=12, beta=0.2, reward=length)
    _, (before, after) = answers(recipe, trainer, reference, 2048)
    nothing, half, whole, twice = dial(recipe, trainer, reference, 2048, [0.0, 0.5, 1.0, 2.0])

    assert [row["beta"] for row in (nothing, half, whole, twice)] == [math.inf, 0.4, 0.2, 0.1]
    assert nothing["kl"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < half["kl"] < whole["kl"] < twice["kl"]
    for name in ("reward", "win_rate", "kl", "answers/tokens"):
        assert whole[name] == pytest.approx(after[name], rel=1e-4), name
