"""Tokens of pairs with images, counted without reading one, against those that TRL's collator makes."""

from __future__ import annotations

import pytest
from making import CHATML, IN_BLOCKS, make_image, make_pair, make_pairs, said, tokenize_pairs, user

from dpo_recipes.data.image_pairs import ImageReader
from dpo_recipes.data.images import files_of_images, images_of_files
from dpo_recipes.errors import RecipeError
from dpo_recipes.formats.messages import IMAGE


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def processor(request, tiny_vision):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_vision(request.param))


def with_images(row: dict, folder, *sizes: tuple[int, int]) -> dict:
    """The row with images of these sizes, at the marks of its prompt."""
    paths = [str(make_image(folder / f"{width}x{height}.png", width, height)) for width, height in sizes]
    return row | {"images": images_of_files(files_of_images(paths, [""]))}


def tokenized(processor, rows, **changes):
    return tokenize_pairs(rows, processor.tokenizer, images=ImageReader(processor), **changes)


@pytest.mark.slow
def test_the_tokens_are_as_many_as_trls_collator_makes(processor, tmp_path):
    """Of images of all shapes, of none, and of several at several places."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    from dpo_recipes.training.with_images import WithImages

    two = make_pair(f"Is {IMAGE} as {IMAGE}?", "yes it is", "no")
    later = make_pair("", "it is", "never") | {"prompt": [user(f"{IMAGE}Look."), said("I do."), user(f"And {IMAGE}?")]}
    rows = [
        with_images(make_pair(f"{IMAGE}What is it?", "a lamp", "a cat in the attic"), tmp_path, (40, 24)),
        with_images(make_pair(f"What is it? {IMAGE}", "a lamp", "no"), tmp_path, (7, 90)),
        with_images(two, tmp_path, (33, 64), (64, 33)),
        with_images(later, tmp_path, (100, 100), (20, 20)),
        make_pair("What is it?", "a red lamp", "a cat", images=[]),
    ]
    pairs, _ = tokenized(processor, rows)
    collate = WithImages(DataCollatorForVisionPreference(processor))
    for pair in pairs:
        batch = collate([pair])
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        prompt = len(pair["prompt_ids"]) + pair["image_tokens"]
        assert lengths == [prompt + len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")]
        assert pair["length"] == max(lengths)
        [chosen, _rejected] = batch["input_ids"]
        assert chosen[prompt : lengths[0]].tolist() == pair["chosen_ids"]
    assert [bool(pair["image_tokens"]) for pair in pairs] == [True] * 4 + [False]


def test_a_pair_whose_images_fill_max_length_is_dropped_and_counted(processor, tmp_path):
    row = with_images(make_pair(f"{IMAGE}What is it?", "a lamp", "a cat"), tmp_path, (40, 24))
    pairs, _ = tokenized(processor, [row])
    [prompt] = [len(pair["prompt_ids"]) + pair["image_tokens"] for pair in pairs]
    text = make_pair("Ok?", "yes", "no", images=[])
    kept, report = tokenized(processor, [row, text], max_length=prompt)
    assert len(kept) == 1 and report["dropped"] == {"prompt fills max_length": {"count": 1, "rows": ["file:0"]}}
    kept, report = tokenized(processor, [row, text], max_length=prompt + 1)
    assert len(kept) == 2 - len(report["dropped"]) and report["tokens"]["prompt"]["max"] == prompt


def test_text_that_writes_an_image_itself_is_dropped(processor, tmp_path):
    row = with_images(make_pair(f"{IMAGE}What does <image> mean?", "this", "that"), tmp_path, (40, 24))
    fine = with_images(make_pair(f"{IMAGE}What is it?", "this", "that"), tmp_path, (40, 24))
    _, report = tokenized(processor, [row, fine])
    [reason] = report["dropped"]
    assert "it makes 2 places '<image>' for 1 images" in reason


def test_an_image_that_the_processor_refuses_is_dropped_with_its_words(processor, tmp_path, monkeypatch):
    reader = ImageReader(processor)

    def refuse(image):
        raise ValueError("absolute aspect ratio must be smaller than 200.")

    monkeypatch.setattr(reader, "tokens_of", refuse)
    rows = [with_images(make_pair(f"{IMAGE}What is it?", "a", "b"), tmp_path, (900, 2))]
    with pytest.raises(RecipeError, match="processor refuses every row. Its own words: absolute aspect ratio"):
        tokenize_pairs(rows, processor.tokenizer, images=reader)


def test_a_template_that_reads_no_blocks_has_no_place_for_images(processor):
    before = processor.chat_template
    for template in (CHATML, IN_BLOCKS.replace("'<image>' if", "'' if")):
        processor.chat_template = template
        try:
            with pytest.raises(RecipeError, match="no place for an image.*data.chat_template that reads"):
                ImageReader(processor)
        finally:
            processor.chat_template = before


def test_a_template_that_puts_images_first_is_understood(processor):
    """As LLaVA 1.5's, which writes all images of a message before its text."""
    before = processor.chat_template
    first = "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    start = "{{ '<|im_start|>' + m['role'] + '\\n' }}"
    processor.chat_template = IN_BLOCKS.replace("'<image>' if", "'' if").replace(start, start + first)
    try:
        reader = ImageReader(processor)
        assert reader.placeholder == "<image>"
        assert reader.apply_chat_template([user(f"What is {IMAGE}?")]).startswith(
            "<|im_start|>user\n<image>\nWhat is ?"
        )
    finally:
        processor.chat_template = before


def test_the_cache_knows_other_tokens_of_another_processor(processor):
    from making import make_dataset

    from dpo_recipes.data import tokenize as tokens

    pairs = make_dataset(make_pairs(3))
    key = tokens._key(pairs, processor.tokenizer, False, {1}, ImageReader(processor))
    assert key == tokens._key(pairs, processor.tokenizer, False, {1}, ImageReader(processor))
    assert key != tokens._key(pairs, processor.tokenizer, False, {1}, None)
    before, processor.image_processor.size = processor.image_processor.size, {"longest_edge": 128}
    other = tokens._key(pairs, processor.tokenizer, False, {1}, ImageReader(processor))
    processor.image_processor.size = before
    assert key != other


def test_a_reader_sees_words_in_the_place_of_an_image(processor):
    reader = ImageReader(processor)
    image = {"width": 640, "height": 480}
    assert reader.with_words("<image>What is it?", [image]) == "[image 640x480] What is it?"
    assert reader.with_words("Is <image> it?", [image]) == "Is [image 640x480] it?"
