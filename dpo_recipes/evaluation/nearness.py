"""How near one model of scaled weights is to decoding with the beta dial, on the held-out pairs of its run."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from ..data.replies import Replies
from ..models.generate import padded
from ..models.reference import Reference
from ..progress import Stage
from ..recipe.judges import JudgeEndpoint
from ..recipe.recipe import Recipe
from .answers import Said, drawn, said_of, scorer_of
from .dial import answers_of_reference, beta_at, dialled_answers
from .held_out import Numbers
from .intervals import mean_and_error
from .kl import batches, ids_of_each, kl_along, summed_kl
from .logits import Lend, lent_logits, logits_of, tokens_of_a_batch
from .rehearsal import Questions, draws, questions

PAIRS = 128  # held-out pairs that are read, at most
OTHERS = ("exported", "policy", "reference")  # what the exact dial is compared with, token by token


def nearness(
    recipe: Recipe,
    held_out: Any,
    policy: Any,
    reference: Reference,
    exported: Lend,
    tokenizer: Any,
    positions: int | None,
    factor: float,
    console: Console,
) -> dict[str, Any]:
    """What decoding with the dial at `factor` shows and what the model `exported` does, and how far they are apart.

    {"dial", "beta", "exact", "exported", "along_answers", "along_pairs"}: `exact` and `exported` hold the numbers of
    answers to the held-out prompts, drawn with the same random numbers. The other two are of the tokens of the exact
    dial's own answers, and of both sides of held-out pairs: the KL of the exact dial to each of OTHERS, in nats per
    token. A judge is not asked: that would send answers away.
    """
    if isinstance(recipe.reward, JudgeEndpoint):
        recipe = recipe.evolve(reward=None)
    asked = questions(recipe, held_out, positions)
    result: dict[str, Any] = {"dial": factor, "beta": beta_at(recipe.beta, factor)}
    if asked.prompts:
        of_reference = answers_of_reference(recipe, asked, reference, tokenizer, console)
        scorer = scorer_of(recipe, policy.device)

        exact_replies, kl = dialled_answers(recipe, asked, policy, reference, tokenizer, factor, console)
        exact = said_of(recipe, scorer, asked.prompts, of_reference, exact_replies, kl, console)
        replies, kl = _answers_of(exported, recipe, asked, policy, reference, tokenizer, console)
        said = said_of(recipe, scorer, asked.prompts, of_reference, replies, kl, console)
        result |= {"prompts": len(asked.prompts), "exact": exact.after, "exported": said.after}
        result |= _reward_difference(exact, said)

        prompts, answers = ids_of_each(asked.ids, exact_replies)
        result["along_answers"] = _distances(
            policy, reference, exported, prompts, answers, factor, "Tokens of the answers", console
        )
    pairs = held_out.select(range(min(PAIRS, len(held_out))))
    prompts = [list(ids) for ids in pairs["prompt_ids"]] * 2
    sides = [list(ids) for side in ("chosen_ids", "rejected_ids") for ids in pairs[side]]
    result["along_pairs"] = _distances(
        policy, reference, exported, prompts, sides, factor, "Tokens of the pairs", console
    )
    result["pairs"] = len(pairs)
    return result


def _answers_of(
    exported: Lend,
    recipe: Recipe,
    asked: Questions,
    policy: Any,
    reference: Reference,
    tokenizer: Any,
    console: Console,
) -> tuple[Replies, torch.Tensor]:
    """(answers of the exported model, their KL to the reference in nats: (prompts, samples))."""
    with exported() as model:
        samples = draws(recipe).policy
        replies = drawn(model, tokenizer, recipe, asked, samples, "Answers of the export", console)
    exported_logits, reference_logits = lent_logits(exported), lent_logits(reference.model)
    temperature = recipe.answers_temperature
    kl = kl_along(policy, exported_logits, reference_logits, asked.ids, replies, console, temperature)
    return replies, kl


def _reward_difference(exact: Said, exported: Said) -> Numbers:
    """The mean reward of the exported model above that of the exact dial, prompt by prompt, where there is a reward."""
    if "policy_reward" not in exact.by_prompt:
        return {}
    differences = exported.by_prompt["policy_reward"] - exact.by_prompt["policy_reward"]
    return mean_and_error("reward_difference", differences.unsqueeze(1))


@torch.no_grad()
def _distances(
    policy: Any,
    reference: Reference,
    exported: Lend,
    prompts: list[list[int]],
    answers: list[list[int]],
    factor: float,
    words: str,
    console: Console,
) -> Numbers:
    """The KL of the exact dial to each of OTHERS, as a mean over all tokens of the answers: nats."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    sums = torch.zeros(len(OTHERS), dtype=torch.float64)
    tokens = done = 0
    with Stage(console, words, unit="answers") as stage:
        for batch in batches([len(row) for row in rows], 64, tokens_of_a_batch(policy)):
            ids, mask = padded([rows[index] for index in batch], 0, "right")
            of_policy = logits_of(policy, ids, mask)
            with reference.model() as model:
                of_reference = logits_of(model, ids, mask)
            with exported() as model:
                of_export = logits_of(model, ids, mask)
            # Row by row: full-vocabulary copies of a whole batch in 32 bits would be large.
            for k, index in enumerate(batch):
                # Position t predicts token t + 1.
                place = slice(len(prompts[index]) - 1, len(rows[index]) - 1)
                ours, theirs = of_policy[k, place].float(), of_reference[k, place].float()
                exact = theirs + factor * (ours - theirs)
                others = (of_export[k, place], ours, theirs)
                sums += torch.tensor([summed_kl(exact, other).item() for other in others], dtype=torch.float64)
                tokens += len(answers[index])
            done += len(batch)
            stage.show(done, len(rows))
    return dict(zip(OTHERS, (sums / max(1, tokens)).tolist(), strict=True))


@torch.no_grad()
def answer_logps(model: Any, pairs: Any) -> torch.Tensor:
    """The log-probability of each token of both sides of these pairs, nats, one behind the other on the CPU."""
    values = []
    for pair in pairs:
        for side in ("chosen_ids", "rejected_ids"):
            row = list(pair["prompt_ids"]) + list(pair[side])
            ids = torch.tensor([row], device=model.device)
            logps = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().log_softmax(-1)
            start = len(pair["prompt_ids"])
            values.append(logps[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0].cpu())
    return torch.cat(values)
