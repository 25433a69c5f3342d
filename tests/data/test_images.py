"""Images of pairs as files: found beside the rows or written out of them, decoded once, and known again."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from making import make_image, make_image_pairs, make_pair, make_pairs, write_jsonl
from reading_files import only_drop, read, refused

from dpo_recipes.data import images
from dpo_recipes.errors import RecipeError


def images_of(found) -> dict[str, list]:
    """Row -> its images, of both sides."""
    return {row["row"]: row["images"] for row in (*found.train, *found.eval)}


def rows_about(paths: list[str]) -> list[dict]:
    return [row | {"images": [path]} for row, path in zip(make_pairs(len(paths)), paths, strict=True)]


def test_names_are_those_of_files_beside_the_rows_whatever_the_working_folder_is(tmp_path, monkeypatch):
    path = make_image_pairs(tmp_path / "set", 8)
    monkeypatch.chdir("/")
    found = images_of(read(path, eval=0.25))
    [first] = found["0"]
    assert first["path"] == str(tmp_path / "set" / "pictures" / "0.png")
    assert [(image["width"], image["height"]) for [image] in (found["0"], found["1"], found["2"])] == [
        (40, 24),
        (30, 60),
        (20, 20),
    ]
    assert len({image["key"] for [image] in found.values()}) == 8


def test_a_folder_of_splits_has_its_images_beside_it(tmp_path):
    make_image_pairs(tmp_path, 8).rename(tmp_path / "train.jsonl")
    write_jsonl(tmp_path / "test.jsonl", rows_about(["pictures/7.png"]) + rows_about(["pictures/1.png"] * 2)[1:])
    found = read(tmp_path, eval="test", train="train[:6]")
    assert all(image["path"].startswith(str(tmp_path / "pictures")) for [image] in images_of(found).values())


@pytest.mark.parametrize("column", ["images", "image"])
def test_images_in_a_parquet_file_are_written_to_the_cache_once(tmp_path, column):
    """As RLAIF-V has one image a row, and HuggingFaceH4/rlaif-v_formatted a list."""
    bytes_of = [make_image(tmp_path / f"{number}.png", seed=number).read_bytes() for number in range(2)]
    rows = make_pairs(8)
    for number, row in enumerate(rows):
        image = {"bytes": bytes_of[number % 2], "path": f"{number}.jpg"}
        row[column] = [image] if column == "images" else image
    image = datasets.Image()
    kind = datasets.List(image) if column == "images" else image
    features = datasets.Features({name: datasets.Json() for name in ("prompt", "chosen", "rejected")} | {column: kind})
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    found = images_of(read(path, eval=0.25))
    files = {image["path"] for [image] in found.values()}
    assert len(found) == 8 and len(files) == 2
    assert sorted(Path(file).read_bytes() for file in files) == sorted(bytes_of)


def test_what_is_no_image_is_dropped_counted_and_named(tmp_path):
    path = make_image_pairs(tmp_path, 22)
    (tmp_path / "pictures" / "3.png").unlink()
    reason, entry = only_drop(read(path, max_dropped=0.1))
    assert (reason, entry) == ("malformed: images names a file that is not there", {"count": 1, "rows": ["3"]})
    whole = (tmp_path / "pictures" / "4.png").read_bytes()
    (tmp_path / "pictures" / "4.png").write_bytes(whole[: len(whole) // 2])
    message = refused(path)
    assert "images names a file that is no whole image: 1 (rows 4 ...: " in message and "4.png)" in message


def test_the_cache_forgets_what_it_knows_of_a_file_that_has_changed(tmp_path):
    path = make_image_pairs(tmp_path, 22)
    (tmp_path / "pictures" / "3.png").unlink()
    assert "3" not in images_of(read(path, max_dropped=0.1))
    make_image(tmp_path / "pictures" / "3.png", 50, 50)
    make_image(tmp_path / "pictures" / "5.png", 60, 60)
    found = images_of(read(path))
    assert found["3"][0]["width"] == 50 and found["5"][0]["width"] == 60


def test_addresses_and_other_things_are_no_files(tmp_path):
    for value, reason in (
        ("https://x.org/1.png", "holds an address"),
        (7, "holds a int"),
        ("data:image/png;", "address"),
    ):
        write_jsonl(tmp_path / "a.jsonl", rows_about([value] * 4))
        assert reason in refused(tmp_path / "a.jsonl")


def test_the_same_question_about_another_image_is_another_prompt(tmp_path):
    rows = []
    for number in range(12):
        make_image(tmp_path / f"{number}.png", seed=number)
        rows.append(make_pair("What is it?", "a lamp", "a cat", images=[f"{number}.png"]))
    found = read(write_jsonl(tmp_path / "a.jsonl", rows + rows[:1]), eval=0.25)
    train = found.report["train"]
    assert (len(found.train), len(found.eval)) == (9, 3)
    assert train["dropped"] == {"exact duplicate": {"count": 1, "rows": ["12"]}}
    assert found.report["near_duplicates"]["count"] == found.report["near_prompts"]["count"] == 0


def test_pairs_with_and_without_images_may_stand_together(tmp_path):
    make_image(tmp_path / "1.png")
    rows = make_pairs(8)
    for row in rows[:6]:
        row["image"] = "1.png"
    found = read(write_jsonl(tmp_path / "a.jsonl", rows), eval=write_text_only(tmp_path))
    counts = images.count_images(found.train)
    assert counts == {"pairs": {"0": 2, "1": 6}, "different": 1}
    assert found.eval["images"][:] == [None] * 2


def write_text_only(folder) -> str:
    return str(write_jsonl(folder / "eval.jsonl", make_pairs(2, seed=5)))


def test_pairs_of_text_have_no_column_of_images(tmp_path):
    found = read(write_jsonl(tmp_path / "a.jsonl", make_pairs(8)), eval=0.25)
    assert not {"images", "image_files"} & {*found.train.column_names, *found.eval.column_names}


def test_a_stream_is_of_text_alone(tmp_path):
    path = make_image_pairs(tmp_path, 4)
    held_out = write_jsonl(tmp_path / "eval.jsonl", make_pairs(2, seed=5))
    found = read(path, streaming=True, eval=str(held_out))
    with pytest.raises(RecipeError, match="row 0 has images, and data.streaming reads text alone"):
        next(iter(found.train))


def test_without_pillow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'dpo-recipes[vision]'" in refused(make_image_pairs(tmp_path, 4))


def test_a_reader_may_leave_images_out_or_name_them(tmp_path):
    path = make_image_pairs(tmp_path, 8)

    def without(row):
        return {name: row[name] for name in ("prompt", "chosen", "rejected")}

    def first(row):
        return without(row) | {"images": row["images"][:1]}

    assert "images" not in read(path, eval=0.25, reader=without).train.column_names
    assert len(images_of(read(path, eval=0.25, reader=first))["0"]) == 1
