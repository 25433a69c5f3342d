"""A stream: the pairs of the file it reads, counted as they come, and where it stops."""

from __future__ import annotations

import datasets
import pytest
from making import make_pairs, write_jsonl
from reading_files import LEAKED, read, refused, save, three

from dpo_recipes.errors import RecipeError


def test_a_stream_gives_the_same_pairs_and_counts_what_it_drops(tmp_path):
    pairs = make_pairs(12)
    broken = {**pairs[3], "chosen": pairs[3]["rejected"]}
    train = write_jsonl(tmp_path / "train.jsonl", [*pairs[:3], broken, *pairs[4:]])
    test = write_jsonl(tmp_path / "test.jsonl", pairs[:2])
    stored, streamed = (read(str(train), eval=str(test), streaming=on, max_dropped=0.5) for on in (False, True))
    assert isinstance(streamed.train, datasets.IterableDataset) and streamed.report["train"]["dropped"] == {}
    assert [row["row"] for row in streamed.train] == ["2", *map(str, range(4, 12))] == stored.train["row"][:]
    assert [row["chosen"] for row in streamed.train] == stored.train["chosen"][:]
    twice = {LEAKED: {"count": 4, "rows": ["0", "1", "0"]}, "identical sides": {"count": 2, "rows": ["3", "3"]}}
    assert streamed.report["train"]["dropped"] == twice  # it was read twice
    assert streamed.eval["chosen"][:] == stored.eval["chosen"][:]


def test_a_stream_needs_one_path_and_evaluation_pairs_of_their_own(tmp_path, pairs_file):
    assert "name one path, and a split as data.eval" in refused(str(pairs_file), streaming=True, eval=0.1)
    message = refused(str(pairs_file), streaming=True, train="train[:5]", eval=str(pairs_file))
    assert "What is streamed has no slices" in message


def test_a_stream_of_a_file_holds_nothing_out_where_the_split_that_is_named_is_missing(pairs_file):
    assert "is a single file, which has no splits" in refused(str(pairs_file), streaming=True, eval="test")


def test_a_stream_that_breaks_off_names_its_file(tmp_path, pairs_file):
    cut = tmp_path / "cut.jsonl"
    cut.write_text(pairs_file.read_text() * 10 + '{"prompt": "a')
    stream = read(str(cut), eval=str(pairs_file), streaming=True).train
    with pytest.raises(RecipeError, match=r"cut.jsonl is not readable as jsonl: line 241 is not one whole JSON object"):
        list(stream)


def test_a_stream_with_too_many_unusable_rows_stops(tmp_path, pairs_file):
    rows = three(200)
    for row in rows[::4]:
        row["chosen"] = ""
    path = save(tmp_path / "a.jsonl", rows)
    stream = read(path, streaming=True, eval=str(pairs_file)).train
    with pytest.raises(
        RecipeError, match="26 of the first 101 rows cannot be used. The last: empty side.* data.max_dropped"
    ):
        list(stream)
    assert len(list(read(path, streaming=True, eval=str(pairs_file), max_dropped=0.3).train)) == 150
