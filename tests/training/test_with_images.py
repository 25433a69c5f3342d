"""Pairs with images in training: as bare TRL trains them, on the language part, and what is refused beside them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from making import make_image, make_image_pairs, make_pairs, quiet, short_recipe, write_jsonl
from making_trainers import history

from dpo_recipes import Data, LoRA, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.origins import values_with_origins
from dpo_recipes.training import trainer as ours
from dpo_recipes.training.session import Session
from dpo_recipes.training.with_images import WithImages

MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
KINDS = ["idefics3", "llava"]


def session_of(folder, pairs, **changes) -> Session:
    given = {"pair_sharing": "off", "max_length": 200}
    session = Session(short_recipe(folder, pairs, **{**given, **changes}), quiet())
    session.read_pairs()
    return session


def as_trl_takes_them(pairs) -> list[dict]:
    """The rows of tokenised pairs as someone writes them for TRL: messages in blocks, and images that are open."""
    from PIL import Image

    rows = []
    for pair in pairs:
        question = pair["prompt"][0]["content"].replace("\ufdd0", "")
        images = [Image.open(image["path"]) for image in pair["images"] or []]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        sides = {}
        for side in ("chosen", "rejected"):
            text = [{"type": "text", "text": pair[side][0]["content"]}]
            sides[side] = [{"role": "assistant", "content": text}]
        rows.append({"images": images, "prompt": [{"role": "user", "content": content}], **sides})
    return rows


def bare_trainer(session: Session, output):
    """TRL's own trainer on the same rows, options, weights and adapter; it makes its collator itself."""
    from datasets import Dataset, Features, Image, Json, List

    features = {"images": List(Image()), **dict.fromkeys(("prompt", "chosen", "rejected"), Json())}
    rows = Dataset.from_list(as_trl_takes_them(session.train), features=Features(features))
    recipe, settings = session.recipe, session.settings
    return ours.DPOTrainer(
        model=load_weights(recipe, settings, session.model_path),
        args=ours.config(dpo_arguments(recipe, settings, str(output))),
        train_dataset=rows,
        processing_class=session.tokenizer.processor,
        peft_config=peft_config(recipe.adapter),
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None], ids=["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_bit_for_bit_those_of_bare_trl(tiny_vision, image_pairs_file, tmp_path, kind, adapter):
    """The same numbers in each step, and the same weights after it: nothing is added to the maths."""
    rate = 1e-3 if adapter else 1e-4
    session = session_of(
        tiny_vision(kind), image_pairs_file, adapter=adapter, loss=MPO, learning_rate=rate, micro_batch_size=3
    )
    bare = bare_trainer(session, tmp_path)
    bare.train()
    mine = session.make_trainer(tmp_path, [])
    mine.train()
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy")
    assert len(history(mine, *names)) == 3
    assert history(mine, *names) == history(bare, *names)
    weights = zip(bare.model.state_dict().items(), mine.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_on_what_reads_text_and_nothing_else(tiny_vision, image_pairs_file, tmp_path, kind):
    session = session_of(tiny_vision(kind), image_pairs_file)
    trainer = session.make_trainer(tmp_path, [])
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and all(re.search(r"\.(text_model|language_model)\.layers\.", name) for name in trained)
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    value, origin = values_with_origins(session.recipe, session.settings)["adapter.target_modules"]
    assert origin == "chosen" and re.fullmatch(value, "model.text_model.layers.0.mlp.up_proj") or kind == "llava"


def test_the_targets_of_the_user_decide_also_where_they_are_the_default(tiny_vision, image_pairs_file, tmp_path):
    adapter = LoRA(r=4, target_modules="all-linear")
    session = session_of(tiny_vision(), image_pairs_file, adapter=adapter)
    trainer = session.make_trainer(tmp_path, [])
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert any(".vision_model." in name for name in trained) and any(".connector." in name for name in trained)


def test_pairs_of_text_train_such_a_model_as_ever(tiny_vision, pairs_file, tmp_path):
    session = session_of(tiny_vision("llava"), pairs_file)
    assert not session.has_images and session.recipe.adapter.target_modules == "all-linear"
    assert session.settings.precompute
    trainer = session.make_trainer(tmp_path, [])
    assert trainer.reference_cache["train"].startswith("computed")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trl": {"precompute_ref_log_probs": True}}, "TRL reads images in each step anew"),
        ({"pair_sharing": "require"}, "pair_sharing='require' does not go with images"),
        ({"reward": lambda prompt, completion: 0.0}, "reward does not go with images: it is of sampled answers"),
        ({"measures": {"length": lambda prompt, completion: 0.0}}, "measures does not go with images"),
        ({"answers": 2}, "answers does not go with images"),
        ({"trl": {"pad_to_multiple_of": 8}}, "trl.pad_to_multiple_of does not go with images"),
    ],
)
def test_what_does_not_go_with_images_is_refused_before_anything_is_loaded(
    tiny_vision, image_pairs_file, changes, reason
):
    with pytest.raises(RecipeError, match=re.escape(reason)):
        session_of(tiny_vision(), image_pairs_file, **changes)


def test_a_model_that_reads_text_alone_is_refused(tiny, image_pairs_file):
    with pytest.raises(
        RecipeError, match="The pairs have images, and .* reads text alone. Take a vision-language model"
    ):
        session_of(tiny(), image_pairs_file)


def test_another_reference_reads_the_images_too(tiny_vision, image_pairs_file, tmp_path):
    session = session_of(tiny_vision(), image_pairs_file, reference=str(tiny_vision()))
    assert (session.settings.reference, session.settings.precompute) == ("other model", False)
    trainer = session.make_trainer(tmp_path, [])
    assert trainer.ref_model is not None
    _, pairs = trainer.held_out()
    assert torch.allclose(pairs.policy_chosen, pairs.reference_chosen, atol=1e-4)


@pytest.mark.slow
def test_the_images_decide_what_a_model_says(tiny_vision, tmp_path):
    """The same texts about other images have other log-probabilities: pixels reach the model."""
    changed = make_image_pairs(tmp_path / "other", 8)
    for number in range(8):
        size = ((40, 24), (30, 60), (20, 20))[number % 3]
        make_image(tmp_path / "other" / "pictures" / f"{number}.png", *size, seed=100 + number)
    logps = []
    for path in (make_image_pairs(tmp_path / "one", 8), changed):
        trainer = session_of(tiny_vision("llava"), path).make_trainer(tmp_path, [])
        logps.append(trainer.held_out()[1].policy_chosen)
    assert logps[0].shape == logps[1].shape and (logps[0] - logps[1]).abs().min() > 1e-4


def test_an_image_that_is_gone_or_changed_while_training_is_named(tiny_vision, tmp_path):
    session = session_of(tiny_vision(), make_image_pairs(tmp_path, 8))
    trainer = session.make_trainer(tmp_path / "out", [])
    row = session.train[0]
    make_image(tmp_path / "pictures" / f"{row['row']}.png", 64, 64)
    with pytest.raises(RecipeError, match=f"Row {row['row']}: its image .* is no longer 40x24|30x60|20x20"):
        trainer.data_collator([row])
    (tmp_path / "pictures" / f"{row['row']}.png").unlink()
    with pytest.raises(RecipeError, match=f"Row {row['row']}: its image .* cannot any more"):
        trainer.data_collator([row])


def test_a_batch_that_would_be_cut_through_its_images_is_refused(tiny_vision, image_pairs_file):
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    session = session_of(tiny_vision(), image_pairs_file)
    row = session.train[0]
    prompt = len(row["prompt_ids"]) + row["image_tokens"]
    whole = WithImages(DataCollatorForVisionPreference(session.tokenizer.processor, max_length=prompt + 1))
    assert whole([row])["input_ids"].shape == (2, prompt + 1)
    cut = WithImages(DataCollatorForVisionPreference(session.tokenizer.processor, max_length=prompt))
    with pytest.raises(RecipeError, match=f"Row {row['row']}: its images make more tokens than were counted"):
        cut([row])


@pytest.mark.slow
def test_pairs_with_weights_and_without_images_train_among_the_others(tiny_vision, tmp_path):
    path = make_image_pairs(tmp_path, 12)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["weight"] = 1.0 + number % 2
    rows += [row | {"weight": 2.0} for row in make_pairs(12, seed=4)]
    write_jsonl(path, rows)
    session = session_of(tiny_vision(), path, trl={"max_steps": 3, "gradient_checkpointing": False})
    assert {number for number, count in session.report["train"]["images"]["pairs"].items() if count} == {"0", "1"}
    trainer = session.make_trainer(tmp_path / "out", [])
    trainer.train()
    losses = [loss for [loss] in history(trainer, "loss")]
    assert len(losses) == 3 and losses[0] > 0.8  # ln 2 times a weight of more than 1


def test_data_for_a_split_of_its_own_without_images_is_read_beside_them(tiny_vision, image_pairs_file, tmp_path):
    held_out = write_jsonl(tmp_path / "eval.jsonl", make_pairs(4, seed=7))
    session = session_of(tiny_vision("llava"), None, data=Data(str(image_pairs_file), eval=str(held_out)))
    trainer = session.make_trainer(tmp_path / "out", [])
    metrics, _ = trainer.held_out()
    assert metrics["loss"] == pytest.approx(0.6931, abs=1e-3)
