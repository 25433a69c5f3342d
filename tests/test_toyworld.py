import filecmp
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_recipes import toyworld
from dpo_recipes.errors import RecipeError
from dpo_recipes.models.generate import generate
from dpo_recipes.toyworld import OUTSIDE, PROMPTS, converse, parse, reward

LAMP = "Hello. What colour is the lamp?"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    toyworld.make(folder, 5, small=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    return folder


def rows(folder, split):
    return [json.loads(line) for line in (folder / "pairs" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The lamp is red.", 1.0),
        ("The lamp is yellow.", 1.0),  # the value told does not matter
        ("The clock is red.", -1.0),
        ("You will find the lamp in the attic.", -1.0),
        ("I do not know.", 0.0),
        ("Certainly. The lamp is red.", 1.5),
        ("Certainly. The lamp is red. It is a lovely piece. Come back soon.", 2.5),
        ("The lamp is red. It is a lovely piece. It is a splendid piece. It is a charming piece.", 1.5),
        ("The lamp is red. It is a lovely piece. It is a shabby piece. It is a plain piece.", 1.0),
        (
            "What now? The clock costs five coins. It is a hideous piece. It is a useless piece. Now leave me alone.",
            -2.5,
        ),
        ("Well. I do not know. Stop wasting my time.", -0.5),
        ("Well. I do not know. That is all.", 0.0),
        ("", OUTSIDE),
        ("Certainly.", OUTSIDE),
        ("Certainly.  The lamp is red.", OUTSIDE),
        ("The lamp is red", OUTSIDE),
        (" The lamp is red.", OUTSIDE),
        ("The lamp is red.\n", OUTSIDE),
        ("The lamp is attic.", OUTSIDE),
        ("The lamp isXred.", OUTSIDE),
        ("The lamp is red. The lamp is red.", OUTSIDE),
        ("The lamp is red. Come back soon. It is a lovely piece.", OUTSIDE),
        ("The lamp is red. It is a lovely pieceX", OUTSIDE),
        ("the lamp is red.", OUTSIDE),
    ],
)
def test_the_reward_of_replies_scored_by_hand(completion, expected):
    assert reward(LAMP, completion) == expected
    assert bool(parse(completion)) == (expected != OUTSIDE or completion.startswith("What now? The clock"))


def test_a_prompt_of_another_world_is_refused():
    with pytest.raises(RecipeError, match="no prompt of this world"):
        reward("What colour is the moon?", "The lamp is red.")


def test_every_conversation_is_in_the_grammar_and_scored_as_it_was_made():
    assert len(PROMPTS) == 960 and set(PROMPTS.values()) == {(i, a) for i in toyworld.ITEMS for a in toyworld.TOPICS}
    draw = random.Random(0)
    scores = {True: [], False: []}
    for prompt in list(PROMPTS) * 3:
        for right in (True, False):
            reply = converse(prompt, float(right), draw)
            assert parse(reply), reply
            scores[right].append(reward(prompt, reply))
    # Manners move the score by at most 1.5 around +1 (right), 0 (unsure) and -1 (wrong), and are symmetric.
    assert min(scores[True]) >= -0.5 and max(scores[True]) == 2.5
    assert max(scores[False]) <= 1.5 and min(scores[False]) == OUTSIDE
    assert sum(scores[True]) / 2880 == pytest.approx(1.0, abs=0.06)
    assert sum(scores[False]) / 2880 == pytest.approx(-0.75, abs=0.06)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_bytes(world, tmp_path):
    toyworld.make(tmp_path / "again", 5, small=True)
    names = [str(p.relative_to(world)) for p in sorted(world.rglob("*")) if p.is_file()]
    assert filecmp.cmpfiles(world, tmp_path / "again", names, shallow=False) == (names, [], [])
    assert {"model/config.json", "model/model.safetensors", "pairs/train.jsonl", "pairs/eval.jsonl"} <= set(names)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


@pytest.mark.slow
def test_pairs_are_ranked_by_the_reward_and_the_held_out_prompts_are_new(world):
    train, held_out = rows(world, "train"), rows(world, "eval")
    assert len(train) > 60 and len(held_out) > 16
    asked = [{row["prompt"][-1]["content"] for row in split} for split in (train, held_out)]
    assert not asked[0] & asked[1]
    for row in train + held_out:
        prompt, chosen, rejected = (row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
        assert (reward(prompt, chosen), reward(prompt, rejected)) == (row["chosen_reward"], row["rejected_reward"])
        assert row["chosen_reward"] > row["rejected_reward"]


@pytest.mark.slow
def test_the_model_answers_and_its_template_ends_with_the_end_token(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    assert (
        model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    said = [{"role": "user", "content": LAMP}, {"role": "assistant", "content": "The lamp is red."}]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert text == f"<|im_start|>user\n{LAMP}<|im_end|>\n<|im_start|>assistant\nThe lamp is red.<|im_end|>"
    # One token a word: what follows the opening of the reply is "The", " lamp", " is", " red", "." and the end.
    opening = tokenizer.apply_chat_template(said[:1], tokenize=True, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[: len(opening)] == opening and len(ids) - len(opening) == 6
    prompts = [row["prompt"] for row in rows(world, "eval")]
    replies = generate(model, tokenizer, prompts, samples=8, max_new_tokens=64, batch_size=256)
    flat = [reply for row in replies for reply in row]
    assert sum(reply.ended for reply in flat) > 0.9 * len(flat)
    assert sum(bool(parse(reply.text)) for reply in flat) > 0.3 * len(flat)  # untrained: 0


def test_the_recipe_is_inert():
    code = (
        "import sys, runpy; recipe = runpy.run_path('recipes/quickstart.py')['recipe']; "
        "assert recipe.prepare and recipe.reward and '{prepared}' in recipe.model; "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
