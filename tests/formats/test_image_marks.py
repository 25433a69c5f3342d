"""Where the images of a pair stand in its prompt, and rows in which that cannot be told."""

from __future__ import annotations

import pytest
from making import make_pair, said, system, user

from dpo_recipes.formats.image_marks import blocks, image_values
from dpo_recipes.formats.messages import IMAGE, Drop
from dpo_recipes.formats.raw_row import explicit_pair

A_BLOCK = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def prompt_of(row: dict) -> list[str]:
    """The texts of a row's prompt, with [] for each image."""
    pair = explicit_pair(row, "preference", strict=True)
    assert isinstance(pair, dict), pair
    return [message["content"].replace(IMAGE, "[]") for message in pair["prompt"]]


def dropped(row: dict) -> Drop:
    drop = explicit_pair(row, "preference", strict=True)
    assert isinstance(drop, Drop), drop
    return drop


def test_images_without_places_stand_before_the_first_question_as_in_trl():
    row = make_pair("What is it?", "a", "b", images=["1.png", "2.png"])
    assert prompt_of(row) == ["[][]What is it?"]
    row["prompt"] = [system("Be brief."), user("Look."), said("I do."), user("What is it?")]
    assert prompt_of(row) == ["Be brief.", "[][]Look.", "I do.", "What is it?"]


def test_images_stand_where_blocks_or_tags_say():
    row = make_pair("", "a", "b", images=["1.png", "2.png"])
    row["prompt"] = [user([text("Is "), A_BLOCK, text(" like "), A_BLOCK, text("?")])]
    assert prompt_of(row) == ["Is [] like []?"]
    row["prompt"] = [user("<image>\nIs it like this one? <image>")]
    assert prompt_of(row) == ["[]\nIs it like this one? []"]
    row["prompt"] = [user("<image>What is it?"), said("A lamp."), user("And <image>?")]
    assert prompt_of(row) == ["[]What is it?", "A lamp.", "And []?"]


def test_the_blocks_of_published_sets_are_read_with_the_text_that_arrow_fills_in():
    row = {
        "images": [{"bytes": b"x", "path": None}],
        "prompt": [user([{"text": None, "type": "image"}, text("Name it.")])],
        "chosen": [said([text("A lamp.")])],
        "rejected": [said([text("A cat.")])],
    }
    assert prompt_of(row) == ["[]Name it."]


def test_a_row_without_images_is_read_as_ever_whatever_its_text_says():
    row = make_pair("What does <image> mean in HTML?", "nothing", "a lot", images=[])
    pair = explicit_pair(row, "preference", strict=True)
    assert prompt_of(row) == ["What does <image> mean in HTML?"] and "images" not in pair
    assert explicit_pair({**row, "image": None}, "preference", strict=True) == pair


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"images": ["1", "2"], "prompt": [user([A_BLOCK, text("Ok?")])]},
            "images are 2, and the prompt has places for 1",
        ),
        ({"prompt": [user([A_BLOCK, text("Ok?")])]}, "images are missing, and the prompt has places for 1"),
        ({"images": ["1"], "prompt": [user("<image> or <image>?")]}, "images are 1, and the prompt has places for 2"),
        ({"images": ["1"], "chosen": [said([A_BLOCK, text("a")])]}, "chosen holds an image, and images are read in"),
        ({"images": ["1"], "prompt": [system([A_BLOCK, text("x")]), user("Ok?")]}, "an image that is not the user's"),
        ({"images": ["1"], "image": "2"}, "images stand beside image: which of them is meant?"),
        ({"images": ["1", None]}, "images holds an image without a file and without bytes"),
        ({"images": ["1"], "tools": [{"name": "clock"}]}, "tools stand beside images"),
        ({"prompt": [user([{**A_BLOCK, "image": "1.png"}])]}, "prompt holds an image in a block, as image"),
    ],
)
def test_a_row_whose_images_have_no_clear_place_is_dropped(changes, reason):
    drop = dropped(make_pair("What is it?", "a", "b") | changes)
    assert drop.is_malformed and reason in drop.reason and IMAGE not in str(drop)


def test_text_without_a_template_has_no_place_for_images():
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "images": ["1.png"]}
    assert "have no place in text" in str(explicit_pair(row, "text", strict=False))


def test_one_image_and_a_list_in_a_csv_file_are_lists():
    assert image_values({"image": "1.png"}) == ["1.png"]
    assert image_values({"images": '["1.png", "2.png"]'}) == ["1.png", "2.png"]
    assert image_values({"image": {"bytes": b"x", "path": None}}) == [{"bytes": b"x", "path": None}]
    assert image_values({"image": {"bytes": None, "path": None}}) == []


def test_a_processor_gets_every_text_in_blocks():
    messages = [system("Be brief."), user(f"{IMAGE}Is it {IMAGE}?"), said("Yes.")]
    assert [message["content"] for message in blocks(messages)] == [
        [text("Be brief.")],
        [A_BLOCK, text("Is it "), A_BLOCK, text("?")],
        [text("Yes.")],
    ]
