"""The forgetting budget against sums done by hand in float64, and the texts on which it is measured."""

from __future__ import annotations

import json
import math

import pytest
import torch
from asking_models import pairs_with_prompts_of
from making import model_state, perturb, recipe_for

from dpo_recipes.errors import RecipeError
from dpo_recipes.evaluation.forgetting import forgetting, over_budget
from dpo_recipes.evaluation.rehearsal import rehearsed
from dpo_recipes.evaluation.unrelated_texts import unrelated_texts

TEXTS = ["The lamp is red.", "x", "Water boils sooner on a mountain than by the sea.", "Two and two are four."]


@torch.no_grad()
def by_hand(policy, reference, tokenizer) -> tuple[list[float], list[int], list[int], list[int]]:
    """Of each text: KL in nats, tokens that the policy has right, that the reference has, and all."""
    kls, policy_right, reference_right, counts = [], [], [], []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if len(ids) < 2:
            continue
        p = policy(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        q = reference(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum().item())
        policy_right.append(sum(int(row.argmax()) == token for row, token in zip(p, ids[1:], strict=True)))
        reference_right.append(sum(int(row.argmax()) == token for row, token in zip(q, ids[1:], strict=True)))
        counts.append(len(ids) - 1)
    return kls, policy_right, reference_right, counts


@pytest.mark.parametrize("kind", ["adapter off", "start weights"])
def test_kl_and_accuracy_are_means_over_the_tokens_of_all_texts(trainer_with_reference, kind):
    trainer, reference, fresh = trainer_with_reference(kind)
    tokenizer = trainer.processing_class
    before, after = forgetting(trainer.model, reference, tokenizer, TEXTS, None)
    assert after["forgetting/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert after["forgetting/token_accuracy"] == before["forgetting/token_accuracy"]

    perturb(trainer.model, size=1.0)
    trainer.model.train()
    state = model_state(trainer.model)
    before, after = forgetting(trainer.model, reference, tokenizer, TEXTS, None)
    assert model_state(trainer.model) == state

    trainer.model.eval()
    kls, policy_right, reference_right, counts = by_hand(trainer.model, fresh, tokenizer)
    tokens = sum(counts)
    value = sum(kls) / tokens
    assert value > 0.01 and before["forgetting/kl_per_token"] == 0.0
    assert after["forgetting/kl_per_token"] == pytest.approx(value, rel=1e-4)
    residuals = [kl - value * count for kl, count in zip(kls, counts, strict=True)]
    error = math.sqrt(3 / 2 * sum(residual**2 for residual in residuals)) / tokens
    assert after["forgetting/kl_per_token_stderr"] == pytest.approx(error, rel=1e-3)
    assert before["forgetting/token_accuracy"] == pytest.approx(sum(reference_right) / tokens)
    assert after["forgetting/token_accuracy"] == pytest.approx(sum(policy_right) / tokens)
    change = (sum(policy_right) - sum(reference_right)) / tokens
    assert after["forgetting/token_accuracy_change"] == pytest.approx(change)


def test_a_text_is_read_as_far_as_the_model_reaches_and_no_text_is_no_number(trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    perturb(trainer.model)
    tokenizer = trainer.processing_class
    short = forgetting(trainer.model, reference, tokenizer, [TEXTS[2][:10]], None)
    cut = forgetting(trainer.model, reference, tokenizer, [TEXTS[2]], 10)
    assert cut == short and cut.after["forgetting/kl_per_token_stderr"] is None
    assert forgetting(trainer.model, reference, tokenizer, ["x", ""], None) == ({}, {})


@pytest.mark.parametrize(("limit", "moved", "is_over"), [(None, 9.0, False), (0.2, 0.19, False), (0.2, 0.21, True)])
def test_a_limit_that_is_crossed_is_a_sentence_with_ways_out(limit, moved, is_over):
    text = over_budget(recipe_for("unused", forgetting_limit=limit), {"forgetting/kl_per_token": moved})
    assert (text is not None) == is_over
    if text:
        assert "moved 0.21 nats per token" in text and "forgetting_limit allows 0.2" in text and "higher beta" in text


# ------------------------------------------------------------------------------------------------------- the texts


def test_our_own_texts_are_some_thirty_different_paragraphs():
    texts = unrelated_texts(recipe_for("unused"))
    assert 25 <= len(texts) == len(set(texts)) and all(100 < len(text) < 400 for text in texts)
    assert all(text.isascii() and text.endswith(".") for text in texts)


def test_a_file_has_a_text_a_line_and_a_jsonl_file_says_it_as_text(tmp_path):
    plain = tmp_path / "texts.txt"
    plain.write_text("One text.\n\nAnother {one}.\n", "utf-8")
    assert unrelated_texts(recipe_for("unused", forgetting=str(plain))) == ["One text.", "Another {one}."]
    rows = tmp_path / "texts.jsonl"
    rows.write_text(json.dumps({"text": "One\nin two lines", "id": 3}) + "\n" + json.dumps("Two") + "\n", "utf-8")
    assert unrelated_texts(recipe_for("unused", forgetting=str(rows))) == ["One\nin two lines", "Two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nope.txt", None, "cannot be read: No such file or directory."),
        ("empty.txt", b"\n \n", "holds no text: each line is one."),
        ("bytes.txt", b"\xff\xfe\x00", "is no text in UTF-8."),
        ("broken.jsonl", b'{"text": "one"}\n{"text"', r"broken.jsonl, line 2 is no JSON"),
        ("other.jsonl", b'{"content": "one"}', "other.jsonl, line 1 has no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_fail_before_training(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    recipe = recipe_for("unused", forgetting=str(tmp_path / name))
    with pytest.raises(RecipeError, match=words):
        unrelated_texts(recipe)
    [finding] = rehearsed(recipe, pairs_with_prompts_of(5), None)
    assert (finding.level, finding.name) == ("fail", "forgetting")
